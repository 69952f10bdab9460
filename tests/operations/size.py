#!/usr/bin/env python3
"""What a governed call takes in stream, journal, logs and traces, measured, and held against deploy/sizing.md.

    python3 tests/operations/size.py [--writ target/debug/writ] [--calls 300] [--update]

The page may be off by a quarter, since names are longer or shorter elsewhere; more is a fault. `--update` writes the
figures and what follows from them into the page.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from harness import ends_in_order  # noqa: E402
from harness.units import Agent, Site  # noqa: E402
from harness.writ import Failed, free_port  # noqa: E402

PAGE = ROOT / "deploy" / "sizing.md"
OFF_MAX = 0.25
# Below this a difference says nothing.
OFF_BYTES_MIN = 40
SETTLE_SECONDS_MAX = 30
DAY = 86_400
MONTHS_6, DAYS_400 = 183, 400
STREAM_GIB = 1
# From here on nothing new is allowed.
FULL = 0.9
COLUMNS = ("stream", "journal", "log", "traces")


class Sink:
    """An OTLP endpoint that counts bytes."""

    def __init__(self) -> None:
        self.bytes = 0
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                sink.bytes += len(body)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Listens no longer."""
        self._server.shutdown()
        self._server.server_close()


@dataclass(frozen=True)
class Taken:
    """Bytes in each place, and messages in the stream."""

    stream: int
    journal: int
    log: int
    traces: int
    messages: int

    def minus(self, other: Taken) -> Taken:
        return Taken(*(getattr(self, name) - getattr(other, name) for name in self.__dataclass_fields__))


class Scale:
    """A running set-up that is weighed before and after something is done many times."""

    def __init__(self, site: Site, sink: Sink) -> None:
        self.site, self.sink = site, sink
        self.monitor = free_port()
        conf = site.etc / "nats" / "server.conf"
        conf.write_text(f'http: "127.0.0.1:{self.monitor}"\n' + conf.read_text())
        site.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = sink.url
        # What is measured here is traces.
        site.env["OTEL_LOGS_EXPORTER"] = "none"
        site.systemctl("stop", "writ-node", "writ-broker", "nats-server")
        site.systemctl("start", *site.UNITS)
        site.ready()

    def weigh(self) -> Taken:
        """What there is once everything has settled."""
        late = time.monotonic() + SETTLE_SECONDS_MAX
        last, now = None, self._now()
        # Spans are sent in batches, a few seconds apart.
        while last != now and time.monotonic() < late:
            last = now
            time.sleep(6)
            now = self._now()
        return now

    def _now(self) -> Taken:
        address = f"http://127.0.0.1:{self.monitor}/jsz?streams=1&accounts=1"
        with urllib.request.urlopen(address, timeout=10) as answer:
            accounts = json.load(answer)["account_details"]
        streams = {stream["name"]: stream["state"] for account in accounts for stream in account["stream_detail"]}
        audit = next(state for name, state in streams.items() if name.endswith("_p0"))
        journals = sum(file.stat().st_size for file in self.site.lib.rglob("*.journal"))
        logs = sum(len(self.site.log(unit)) for unit in ("writ-broker", "writ-node"))
        return Taken(audit["bytes"], journals, logs, self.sink.bytes, audit["messages"])

    def each(self, times: int, what: Callable[[], object]) -> dict[str, float]:
        """Bytes of one of them, and messages in hundredths."""
        before = self.weigh()
        for _ in range(times):
            what()
        taken = self.weigh().minus(before)
        each: dict[str, float] = {column: round(getattr(taken, column) / times) for column in COLUMNS}
        return each | {"messages": round(taken.messages / times, 1)}


def measure(scale: Scale, calls: int) -> dict[str, dict[str, float]]:
    """Every row of the page's first table."""
    site, folder = scale.site, scale.site.folder
    rows = {}
    with site.agent("planner", others=["researcher"]) as agent:

        def call(wanted: bool, capability: str | None, sql: str) -> None:
            done, said = agent.call("crm__read", capability, sql=sql)
            if done is not wanted:
                raise Failed(f"`{sql}` was to be {'allowed' if wanted else 'denied'}: {said}")

        read, write = "SELECT name FROM customers", "DELETE FROM customers"
        # The first one raises the task's label, which happens once.
        call(True, None, read)
        rows["a call that is allowed, and its outcome"] = scale.each(calls, lambda: call(True, None, read))
        handed = _handed(agent)
        rows["the same, handed on once"] = scale.each(calls, lambda: call(True, handed, read))
        rows["a call that is denied"] = scale.each(calls, lambda: call(False, None, write))
    tasks = max(calls // 10, 10)
    rows["a task that is started"] = scale.each(tasks, lambda: site.task("planner", folder / "size.cap"))
    return rows


def _handed(agent: Agent) -> str:
    done, said = agent.call("writ_delegate", agent="researcher", tools=["crm__read"])
    if not done:
        raise Failed(f"nothing can be handed to the researcher: {said}")
    return str(json.loads(said)["capability"])


def first_table(rows: dict[str, dict[str, float]]) -> str:
    """The measured figures."""
    lines = ["| | messages | stream | journal | log | traces |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['messages']} | " + " | ".join(f"{row[column]:,}" for column in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def read_table(text: str) -> dict[str, dict[str, float]]:
    """The figures that stand in the page."""
    rows = {}
    for line in text.strip().splitlines()[2:]:
        name, messages, *figures = (cell.strip() for cell in line.strip("|").split("|"))
        values = [float(figure.replace(",", "")) for figure in figures]
        rows[name] = dict(zip(COLUMNS, values, strict=True)) | {"messages": float(messages)}
    return rows


def second_table(rows: dict[str, dict[str, float]]) -> str:
    """What follows: a day, six months, 400 days, and how long the default stream lasts."""
    call = rows["a call that is allowed, and its outcome"]
    lines = [
        "| allowed calls | stream, a day | journal, a day | traces, a day "
        "| stream, 6 months | stream, 400 days | 1 GiB of stream lasts |",
        "|---|---|---|---|---|---|---|",
    ]
    for rate in (1, 10, 100):
        day = {column: call[column] * rate * DAY for column in COLUMNS}
        lasts = STREAM_GIB * 2**30 * FULL / day["stream"]
        kept = [_size(day["stream"] * days) for days in (MONTHS_6, DAYS_400)]
        of_a_day = [_size(day[column]) for column in ("stream", "journal", "traces")]
        lines.append(f"| {rate} a second | " + " | ".join([*of_a_day, *kept, _time(lasts)]) + " |")
    return "\n".join(lines) + "\n"


def _size(count: float) -> str:
    for unit in ("MiB", "GiB", "TiB"):
        count /= 1024 if unit != "MiB" else 2**20
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count / 1024:.3g} PiB"


def _time(days: float) -> str:
    return f"{days:.1f} days" if days >= 2 else f"{days * 24:.1f} hours"


def between(text: str, name: str) -> str:
    """A table of the page, between its marks."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", text, re.S)
    if found is None:
        raise Failed(f"{PAGE.name} has no table `{name}`")
    return found[1]


def faults(measured: dict[str, dict[str, float]], text: str) -> list[str]:
    """Where the page is wrong."""
    found = []
    page = read_table(between(text, "measured"))
    if page.keys() != measured.keys():
        found.append(f"the page has the rows {sorted(page)}, measured are {sorted(measured)}")
    for name in page.keys() & measured.keys():
        for column in COLUMNS:
            said, real = page[name][column], measured[name][column]
            if abs(said - real) > max(OFF_MAX * real, OFF_BYTES_MIN):
                found.append(f"{name}, {column}: the page says {said} bytes, measured are {real}")
    if between(text, "arithmetic") != second_table(page):
        found.append("the second table does not follow from the first; `--update` writes both")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--writ", default="writ", help="the binary; the one on PATH by default")
    parser.add_argument("--calls", type=int, default=300, help="how many calls of each kind")
    parser.add_argument("--update", action="store_true", help="write the figures into deploy/sizing.md")
    options = parser.parse_args()
    ends_in_order()
    folder = Path(tempfile.mkdtemp(prefix="writ-size-"))
    sink = Sink()
    try:
        with Site(options.writ, folder / "site") as site:
            measured = measure(Scale(site, sink), options.calls)
        print(first_table(measured))
        text = PAGE.read_text()
        if options.update:
            for name, table in (("measured", first_table(measured)), ("arithmetic", second_table(measured))):
                text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{table}\g<2>", text, flags=re.S)
            PAGE.write_text(text)
        found = faults(measured, text)
    except Failed as error:
        found = [str(error)]
    finally:
        sink.close()
        shutil.rmtree(folder, ignore_errors=True)
    for fault in found:
        print(f"FAULT {fault}")
    print("size           " + ("FAIL" if found else "ok"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
