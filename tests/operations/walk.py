#!/usr/bin/env python3
"""The pages of deploy/operations, walked: their commands as they stand, on a nats-server, a broker and a node.

    python3 tests/operations/walk.py [--writ target/debug/writ] [--keep]

Only the places are others, and `systemctl` is a small program that starts and stops these three. What is there after
each restore is compared with what was there before: records, tasks, verdicts. A command of a page that is not walked is
a fault.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from harness import ends_in_order  # noqa: E402
from harness.units import Site  # noqa: E402
from harness.writ import Failed  # noqa: E402

PAGES = ROOT / "deploy" / "operations"
RECORDS_MAX = 100_000
READ = {"sql": "SELECT name FROM customers"}
WRITE = {"sql": "DELETE FROM customers"}


class Page:
    """One page: the commands below each of its headings."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.blocks: dict[str, list[str]] = {}
        text = (PAGES / name).read_text()
        for chapter in re.split(r"^#+ ", text, flags=re.M)[1:]:
            heading = chapter.split("\n", 1)[0]
            self.blocks[heading] = re.findall(r"^```sh\n(.*?)^```", chapter, re.M | re.S)

    def take(self, heading: str) -> Iterator[str]:
        """The commands below a heading, each once."""
        if not self.blocks.get(heading):
            raise Failed(f"{self.name} has no commands below `{heading}`, or they were walked already")
        while self.blocks[heading]:
            yield self.blocks[heading].pop(0)


class Walk:
    """One walk through all of them."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder = site, folder
        self.pages = {name: Page(name) for name in ("backup.md", "restore.md", "rebuild.md")}
        self.places = {"ETC": site.etc, "LIB": site.lib, "STORE": site.store, "BACKUP": folder / "backup"}
        self.capability = folder / "task.cap"
        self.task = ""
        self.saved: list[Any] = []

    def before(self) -> None:
        """A task, with something that is allowed and something that is not; then the places, by name."""
        self.task = self.site.task("planner", self.capability)
        self.decides_as_ever()
        (places,) = self.pages["backup.md"].take("Places")
        named = set(re.findall(r"^export (\w+)=", places, re.M))
        self.same("the places", named, set(self.places))

    def backup(self) -> None:
        """Making a backup loses nothing."""
        before = self.records()
        for block in self.pages["backup.md"].take("Making it"):
            self.shell(block)
        self.saved = before
        self.kept()
        self.decides_as_ever()

    def everything(self) -> None:
        """All of it destroyed, and as it was."""
        self.site.systemctl("kill", *self.site.UNITS)
        for place in ("ETC", "LIB", "STORE"):
            shutil.rmtree(self.places[place])
        self.walk("restore.md", "Everything as it was")
        self.kept()
        self.same("what the task is", self.site.run("task", "show", self.task)["stopped"], None)
        self.decides_as_ever()

    def node(self) -> None:
        """A node's folder destroyed."""
        before = self.records()
        self.walk("restore.md", "One node is lost")
        self.kept(before)
        self.decides_as_ever()

    def broker(self) -> None:
        """The broker's folder destroyed."""
        before, shown = self.records(), self.site.run("task", "show", self.task)
        self.walk("restore.md", "The broker is lost")
        self.kept(before)
        self.same("what the broker knows of the task", self.site.run("task", "show", self.task), shown)
        self.decides_as_ever()

    def index(self) -> None:
        """The index damaged, refused, and made again."""
        before, shown = self.records(), self.site.run("task", "show", self.task)
        self.site.systemctl("stop", "writ-broker")
        self.flip(self.site.lib / "broker" / "index" / "db", self.task.encode())
        refused = self.refused("systemctl start writ-broker", "rebuild it from the stream with `writ broker --rebuild`")
        print(f"  refused: {refused}")
        self.walk("rebuild.md", "Rebuild the broker's index")
        self.kept(before)
        self.same("what the broker knows of the task", self.site.run("task", "show", self.task), shown)
        self.decides_as_ever()

    def streams(self) -> None:
        """The streams older than what was seen: refused; then accepted, with what was lost done again."""
        later = self.site.task("planner", self.folder / "later.cap")
        self.site.run("task", "halt", self.task, "--wait")
        self.denied("revoked.task")
        blocks = self.pages["restore.md"].take("The streams are lost")
        self.shell(next(blocks))
        print(f"  refused: {self.refused('systemctl start writ-broker', 'state.rollback')}")
        self.shell("systemctl start writ-node")
        if "state.rollback" not in self.site.log("writ-node"):
            raise Failed(f"the node takes the older streams:\n{self.site.log('writ-node')}")
        self.shell("systemctl stop writ-node")
        self.shell(next(blocks))
        # Its record was put back from the broker's journal. Why everything is halted meanwhile: the control stream has
        # nothing of the halt of one task.
        if self.site.try_shell(f"writ task show {later}")[0]:
            raise Failed("the record of a task that was started later was not put back")
        self.same("what stops the task", self.site.run("task", "show", self.task)["stopped"], "halt.all")
        self.shell(next(blocks))
        faults = self.shell(next(blocks)).splitlines()
        if [line for line in faults if line.startswith("FAULT") and "everything is halted" not in line]:
            raise Failed(f"more is wrong than that everything is halted: {faults}")
        self.denied("halt.all")
        self.shell(next(blocks))
        self.kept()
        self.denied("revoked.task")
        # A task of today is decided as one of yesterday.
        self.task = self.site.task("planner", self.capability)
        self.decides_as_ever()

    def nothing_left(self) -> None:
        """Every command was walked."""
        for page in self.pages.values():
            for heading, blocks in page.blocks.items():
                if blocks:
                    raise Failed(f"{page.name}, `{heading}`: not walked:\n{blocks[0]}")

    def walk(self, page: str, heading: str) -> None:
        for block in self.pages[page].take(heading):
            self.shell(block)

    def shell(self, text: str) -> str:
        return self.site.shell(text, TASK=self.task, **self.places)

    def refused(self, text: str, why: str) -> str:
        """Commands that have to fail; the line that says why."""
        code, said = self.site.try_shell(text, **self.places)
        lines = [line for line in said.splitlines() if why in line]
        if code == 0 or not lines:
            raise Failed(f"`{text}` was to be refused with `{why}`, ended with {code} and said\n{said}")
        return lines[0].replace(str(self.folder), "…")

    def decides_as_ever(self) -> None:
        """A read is done and a deletion is not, for the reason it always was."""
        with self.site.agent("planner", self.capability) as agent:
            done, said = agent.call("crm__read", **READ)
            if not done or "Ada Lovelace" not in said:
                raise Failed(f"reading is not allowed any more: {said}")
            done, said = agent.call("crm__read", **WRITE)
            if done or "sql.not_read_only" not in said:
                raise Failed(f"deleting was to be denied with sql.not_read_only: {said}")

    def denied(self, reason: str) -> None:
        """The task goes no further, whether at the first call or before."""
        try:
            with self.site.agent("planner", self.capability) as agent:
                done, said = agent.call("crm__read", **READ)
        except Failed as error:
            done, said = False, str(error)
        if done or reason not in said:
            raise Failed(f"the task was to be denied with {reason}: {said}")

    def records(self) -> list[Any]:
        """Every record of the stream, signature checked, in order."""
        code, said = self.site.try_shell(f"writ audit tail -n {RECORDS_MAX} --no-follow -o json")
        records = [json.loads(line) for line in said.splitlines()] if code == 0 else []
        faulty = [record for record in records if record["fault"]]
        if code or not records or faulty:
            raise Failed(f"the records cannot be read, or not believed: {faulty or said[-600:]}")
        return records

    def kept(self, before: list[Any] | None = None) -> None:
        """What was on record is so still: the same records, at the same places, in the same order."""
        saved, now = before or self.saved, self.records()
        self.same("the records of before", now[: len(saved)], saved)
        chain = self.site.run("audit", "chain", self.task)["chain"]
        if [fault for fault in chain["faults"] if "missing" in str(fault)]:
            raise Failed(f"records are missing: {chain['faults']}")

    def same(self, what: str, now: Any, before: Any) -> None:
        if now != before:
            raise Failed(f"{what}: {str(now)[:1500]} instead of {str(before)[:1500]}")

    def flip(self, file: Path, near: bytes) -> None:
        """Flips one bit of what stands at some bytes."""
        data = bytearray(file.read_bytes())
        at = data.rfind(near)
        if at < 0:
            raise Failed(f"{file} does not hold {near!r}")
        data[at] ^= 1
        file.write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--writ", default="writ", help="the binary; the one on PATH by default")
    parser.add_argument("--keep", action="store_true", help="keep configuration and logs")
    options = parser.parse_args()
    ends_in_order()
    folder = Path(tempfile.mkdtemp(prefix="writ-operations-"))
    try:
        with Site(options.writ, folder / "site") as site:
            walk = Walk(site, folder)
            steps: tuple[Callable[[], None], ...] = (
                walk.before,
                walk.backup,
                walk.everything,
                walk.node,
                walk.broker,
                walk.index,
                walk.streams,
                walk.nothing_left,
            )
            for step in steps:
                step()
                print(f"{step.__name__:<14} ok", flush=True)
    except Failed as error:
        print(f"FAULT {error}")
        return 1
    finally:
        if options.keep:
            print(f"kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
