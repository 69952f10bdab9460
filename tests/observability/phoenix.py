#!/usr/bin/env python3
"""One task's traces as Phoenix shows them: sent by OTLP, read back by Phoenix's REST API.

    python3 tests/observability/phoenix.py [--writ target/debug/writ] [--keep]

Phoenix comes from PyPI into an environment of its own, with the versions of requirements.txt. A planner reads, is
denied, hands over twice, and a mail waits for bob. What has to be seen: one trace for that and one for what went on
after bob said yes, both in one session named after the task; the verdict first in the name, below the agents that led
to it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from harness import ends_in_order, venvs  # noqa: E402
from harness.units import Site  # noqa: E402
from harness.writ import Failed, Process, free_port  # noqa: E402

# Phoenix makes its database first.
PHOENIX_SECONDS_MAX = 120
# Spans leave in batches, a few seconds apart.
SPANS_SECONDS_MAX = 30
READ = "SELECT email FROM customers"
WRITE = "DELETE FROM customers"
MAIL: dict[str, Any] = {"to": ["ada@example.com"], "subject": "Your order", "body": "It is on its way, with punched cards."}
# What a trace must not hold, besides capabilities: content of calls and results, tokens.
SECRETS = (READ, WRITE, MAIL["body"], MAIL["subject"], "Ada Lovelace", "grace@example.com", "eyJ")
KINDS = {
    "task": "CHAIN",
    "issue": "CHAIN",
    "resume": "CHAIN",
    "delegate": "CHAIN",
    "invoke_agent": "AGENT",
    "execute_tool": "TOOL",
    "run": "TOOL",
    "ALLOW": "GUARDRAIL",
    "DENY": "GUARDRAIL",
    "HOLD": "GUARDRAIL",
}
PARENTS = {
    "issue": {"task"},
    "invoke_agent": {"task", "invoke_agent"},
    "delegate": {"invoke_agent"},
    "execute_tool": {"invoke_agent", "resume"},
    "run": {"execute_tool"},
    "ALLOW": {"execute_tool"},
    "DENY": {"execute_tool"},
    "HOLD": {"execute_tool"},
}
VERDICTS = {"ALLOW": ("allow", "allow"), "DENY": ("deny", "deny"), "HOLD": ("hold", "escalate")}


class Phoenix:
    """A running Phoenix. Its gRPC port listens on every address, and nothing is sent there."""

    def __init__(self, folder: Path) -> None:
        python = venvs.python(venvs.cache("phoenix"), HERE / "requirements.txt")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        env = {
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(self.port),
            "PHOENIX_GRPC_PORT": str(free_port()),
            "PHOENIX_WORKING_DIR": str(folder / "phoenix"),
            "PHOENIX_TELEMETRY_ENABLED": "false",
        }
        self._process = Process([python.parent / "phoenix", "serve"], folder / "phoenix.log", env)

    def __enter__(self) -> Phoenix:
        late = time.monotonic() + PHOENIX_SECONDS_MAX
        while time.monotonic() < late:
            try:
                self.get("/v1/projects")
                return self
            except OSError:
                time.sleep(0.5)
        said = self._process.text()[-2000:]
        self._process.end()
        raise Failed(f"Phoenix does not answer within {PHOENIX_SECONDS_MAX} s:\n{said}")

    def __exit__(self, *_: object) -> None:
        self._process.end()

    def get(self, path: str) -> Any:
        """One answer of the REST API."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)["data"]

    def spans(self, verdicts: int) -> list[dict[str, Any]]:
        """All spans, once as many verdicts are there and nothing more comes."""
        late = time.monotonic() + SPANS_SECONDS_MAX
        spans: list[dict[str, Any]] = []
        while time.monotonic() < late:
            before, spans = len(spans), self.get("/v1/projects/default/spans?limit=1000")
            if before == len(spans) and sum(span["span_kind"] == "GUARDRAIL" for span in spans) >= verdicts:
                return spans
            time.sleep(3)
        raise Failed(f"{verdicts} verdicts were to come, and there is {sorted(span['name'] for span in spans)}")


def story(site: Site) -> tuple[str, list[str]]:
    """A task with all that can be seen; its id, and how each capability that was handed on begins and ends."""
    with site.agent("planner", others=["researcher", "mailer"]) as agent:

        def call(wanted: bool, tool: str, capability: str | None = None, **arguments: Any) -> str:
            done, said = agent.call(tool, capability, **arguments)
            if done is not wanted:
                raise Failed(f"{tool} was to be {'done' if wanted else 'refused'}: {said}")
            return said

        call(True, "crm__read", sql=READ)
        call(False, "crm__read", sql=WRITE)
        handed = call(True, "writ_delegate", agent="researcher", tools=["crm__read", "mail__send"])
        researcher = json.loads(handed)["capability"]
        call(True, "crm__read", researcher, sql=READ)
        handed = call(True, "writ_delegate", researcher, agent="mailer", tools=["mail__send"])
        mailer = json.loads(handed)["capability"]
        held = re.search(r"\bap-[0-9a-f]{32}\b", call(False, "mail__send", mailer, **MAIL))
        if held is None:
            raise Failed("the mail does not wait for an approval")
        site.run("approval", "grant", held[0], "--yes", approver="bob")
        call(True, "mail__send", mailer, **MAIL)
    pieces = [piece for handed in (researcher, mailer) for piece in (handed[:48], handed[-48:])]
    return str(site.run("task", "show", "last")["task"]), pieces


class Traces:
    """The spans of a story."""

    def __init__(self, spans: list[dict[str, Any]], task: str) -> None:
        self.all, self.task = spans, task
        self.by_id = {span["context"]["span_id"]: span for span in spans}

    def word(self, span: dict[str, Any]) -> str:
        return str(span["name"].split(" ")[0])

    def named(self, start: str) -> list[dict[str, Any]]:
        return [span for span in self.all if span["name"].startswith(start)]

    def agents_above(self, span: dict[str, Any]) -> list[str]:
        """The agents that led to a span, the first one first."""
        agents: list[str] = []
        while span["parent_id"]:
            span = self.by_id[span["parent_id"]]
            if self.word(span) == "invoke_agent":
                agents.insert(0, span["name"].split(" ")[1])
        return agents

    def shape(self) -> Iterator[str]:
        """Names, kinds, parents: one span per hop."""
        for span in self.all:
            word = self.word(span)
            if span["span_kind"] != KINDS.get(word):
                yield f"`{span['name']}` is of kind {span['span_kind']}"
            parent = self.by_id.get(span["parent_id"])
            if span["parent_id"] and parent is None:
                yield f"`{span['name']}` is an orphan"
            above = self.word(parent) if parent else None
            if above not in PARENTS.get(word, {None}):
                yield f"`{span['name']}` is below `{above}`"
        counted = Counter(self.word(span) for span in self.all)
        wanted = {"task": 1, "issue": 1, "resume": 1, "invoke_agent": 3, "execute_tool": 5, "run": 3}
        wanted |= {"ALLOW": 3, "DENY": 1, "HOLD": 1}
        for word, times in wanted.items():
            if counted[word] != times:
                yield f"{counted[word]} spans `{word} …` instead of {times}"
        handed = {span["name"] for span in self.named("delegate ")}
        if handed != {"delegate researcher", "delegate mailer"}:
            yield f"handed over by {sorted(handed)}"

    def verdicts(self) -> Iterator[str]:
        """What a verdict says of itself, and whom it stands below."""
        chains = {"DENY crm": ["planner"], "HOLD mail": ["planner", "researcher", "mailer"]}
        for span in (span for span in self.all if span["span_kind"] == "GUARDRAIL"):
            name, has = span["name"], span["attributes"]
            verdict, mirrored = VERDICTS[self.word(span)]
            wanted = {
                "writ.verdict": verdict,
                "gen_ai.guardrail.verdict.type": mirrored,
                "gen_ai.operation.name": "run_guardrail",
                "metadata.verdict": verdict,
                "user.id": "alice",
            }
            for attribute, value in wanted.items():
                if has.get(attribute) != value:
                    yield f"`{name}`: {attribute} is {has.get(attribute)!r} instead of {value!r}"
            for attribute in ("writ.audit.seq", "writ.audit.origin", "writ.policy.sha256", "input.value"):
                if attribute not in has:
                    yield f"`{name}` has no {attribute}"
            if (span["status_code"] == "ERROR") is not (verdict == "deny"):
                yield f"`{name}` has the status {span['status_code']}"
            if name in chains and (self.agents_above(span) != chains[name] or has.get("writ.chain") != chains[name]):
                yield f"`{name}` stands below {self.agents_above(span)}, and says {has.get('writ.chain')}"
        for name, reason in (("DENY crm", "sql.not_read_only"), ("HOLD mail", "approval.needed")):
            if [span["attributes"].get("writ.deny.reason") for span in self.named(name)] != [reason]:
                yield f"`{name}` does not say {reason}"

    def session(self, sessions: list[dict[str, Any]]) -> Iterator[str]:
        """Both traces are one session, and the second says what it goes on with."""
        found = {session["session_id"]: {trace["trace_id"] for trace in session["traces"]} for session in sessions}
        traces = {span["context"]["trace_id"] for span in self.all}
        if found != {self.task: traces} or len(traces) != 2:
            yield f"the sessions are {found} instead of one, {self.task}, with the two traces {traces}"
        (held,) = self.named("HOLD ")
        for span in self.named("resume "):
            if span["attributes"].get("writ.resumes.trace_id") != held["context"]["trace_id"]:
                yield f"`{span['name']}` does not name the trace it goes on with"

    def same_as_audit(self, site: Site) -> Iterator[str]:
        """The number on a verdict is the record's."""
        code, said = site.try_shell("writ audit tail -n 1000 --no-follow -o json")
        records = [json.loads(line)["record"] for line in said.splitlines()] if code == 0 else []
        on_record = {}
        for record in records:
            if "verdict" in record["body"]:
                name = next(iter(record["id"]["origin"].values()))
                on_record[f"{name}/{record['id']['boot']}", record["id"]["seq"]] = record["body"]["verdict"]["decision"]
        for span in (span for span in self.all if span["span_kind"] == "GUARDRAIL"):
            has = span["attributes"]
            found = on_record.get((has.get("writ.audit.origin"), has.get("writ.audit.seq")))
            if found != has.get("writ.verdict"):
                yield f"`{span['name']}` says {has.get('writ.verdict')}, and its record {found}"

    def secrets(self, capabilities: list[str]) -> Iterator[str]:
        """Nothing of content, capability or token."""
        for span in self.all:
            text = json.dumps(span)
            for secret in [*SECRETS, *capabilities]:
                if secret in text:
                    yield f"`{span['name']}` holds `{secret}`"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--writ", default="writ", help="the binary; the one on PATH by default")
    parser.add_argument("--keep", action="store_true", help="keep configuration and logs")
    options = parser.parse_args()
    ends_in_order()
    folder = Path(tempfile.mkdtemp(prefix="writ-phoenix-"))
    faults = 0
    try:
        site = Site(options.writ, folder / "site")
        with Phoenix(folder) as phoenix:
            site.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = phoenix.url
            # Phoenix takes traces only.
            site.env["OTEL_LOGS_EXPORTER"] = "none"
            with site:
                task, capabilities = story(site)
                traces = Traces(phoenix.spans(verdicts=5), task)
                sessions = phoenix.get("/v1/projects/default/sessions")
                steps: dict[str, Iterator[str]] = {
                    "shape": traces.shape(),
                    "verdicts": traces.verdicts(),
                    "session": traces.session(sessions),
                    "same as audit": traces.same_as_audit(site),
                    "secrets": traces.secrets(capabilities),
                }
                for name, step in steps.items():
                    found = list(step)
                    print(f"{name:<14} {'FAIL' if found else 'ok'}", flush=True)
                    for fault in found:
                        print(f"FAULT {name}: {fault}")
                    faults += len(found)
    except (Failed, urllib.error.URLError) as error:
        print(f"FAULT {error}")
        faults += 1
    finally:
        if options.keep:
            print(f"kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
