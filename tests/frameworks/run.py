#!/usr/bin/env python3
"""Agent frameworks as they come from PyPI, each with Writ in front of the same MCP server.

    python3 tests/frameworks/run.py [--only langgraph] [--writ target/debug/writ] [--keep]

Every framework gets an environment of its own, with the versions of its requirements.txt, and a model that follows a
script. README.md says what is tried, and how to put Writ in front of an application of yours.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from harness import ends_in_order, venvs  # noqa: E402
from harness.model import Call, Say, Script, ScriptedModel, Together  # noqa: E402
from harness.writ import Failed, Upstream, Writ  # noqa: E402

AGENT_SECONDS_MAX = 120
FAULTS_SHOWN_MAX = 4
# How long policies/rules.datalog lets an errand live.
ERRAND_SECONDS = 20


@dataclass(frozen=True)
class Framework:
    """A framework, and what is different about it."""

    name: str
    # What the planner's model calls to hand over; None if the application hands over without asking the model.
    hands_over: Call | None
    # Whether the capability goes with each call, so that both agents share a connection and are offered the same.
    per_call: bool
    # Whether the planner has the last word.
    planner_ends: bool


FRAMEWORKS = (
    Framework("langgraph", Call("ask_researcher", {"question": "Where?"}), per_call=True, planner_ends=True),
    Framework("openai_agents", Call("transfer_to_researcher"), per_call=True, planner_ends=False),
    Framework("autogen", Call("transfer_to_researcher"), per_call=False, planner_ends=False),
    Framework("crewai", None, per_call=False, planner_ends=True),
)


class Bench:
    """One framework's run of all scenarios."""

    def __init__(self, framework: Framework, writ: Writ, model: ScriptedModel, journal: Path) -> None:
        self.framework, self.writ, self.model, self.journal = framework, writ, model, journal
        requirements = HERE / framework.name / "requirements.txt"
        self.python = venvs.python(venvs.cache("frameworks") / framework.name, requirements)

    def desk(self) -> list[str]:
        """Over HTTP."""
        return self._desk("desk", self.writ.gateway("planner", "desk").env())

    def by_command(self) -> list[str]:
        """Over standard input and output, as applications start MCP servers by themselves."""
        return self._desk("by_command", {"WRIT_COMMAND": self.writ.command("planner", "desk")})

    def _desk(self, entry: str, env: Mapping[str, str]) -> list[str]:
        """Allowed, denied, held and granted, failed upstream, halted: in one conversation."""
        refund, too_much = {"order": "101", "cents": 500}, {"order": "102", "cents": 990000}
        lookup = Call("lookup_order", {"order": "101"}, gets=["analytical engine: shipped"])
        script: Script = {
            "planner": [
                Together((lookup, Call("list_orders", {"customer": "ada"}, gets=["orders of ada: 101, 102"]))),
                Call("export_customers", {"to": "all"}, gets=["customers are not exported"], lacks=["sent to"]),
                Call("refund_order", refund, gets=["approval"], lacks=["refunded"], then=self._grant),
                Call("refund_order", refund, gets=["refunded 500 cents of order 101"]),
                Call("refund_order", too_much, gets=["approval"], lacks=["refunded"], then=self._refuse),
                Call("refund_order", too_much, gets=["that is too much"], lacks=["refunded"]),
                Call("print_label", {"order": "101"}, gets=["Error executing tool print_label"], then=self._halt),
                Call("lookup_order", {"order": "102"}, gets=["revoked.task"], lacks=["punched cards"]),
                Say("Ada has her money back."),
            ]
        }
        did = ["lookup_order 101", "list_orders ada", "refund_order 101 500", "print_label 101"]
        return self._run(entry, script, env, "Ada has her money back.", did) + self._chain()

    def expiry(self) -> list[str]:
        """The capability expires while the agent works, and is not renewed."""
        over = time.monotonic() + ERRAND_SECONDS + 1
        gateway = self.writ.gateway("planner", "errand")
        script: Script = {
            "planner": [
                Call("lookup_order", {"order": "101"}, gets=["analytical engine: shipped"], then=_until(over)),
                Call("lookup_order", {"order": "102"}, gets=["an errand is short"], lacks=["punched cards"]),
                Say("It took too long."),
            ]
        }
        return self._run("desk", script, gateway.env(), "It took too long.", ["lookup_order 101"])

    def handoff(self) -> list[str]:
        """The researcher is handed one right, and is held to it."""
        gateway = self.writ.gateway("planner", "desk", "--with", "researcher")
        planner = [self.framework.hands_over] if self.framework.hands_over else []
        # A framework that shares the connection offers the researcher everything, and Writ says no.
        tried = Call("list_orders", {"customer": "ada"}, gets=["delegation.widening"], lacks=["orders of"])
        script: Script = {
            "planner": [*planner, *([Say("The planner is done.")] if self.framework.planner_ends else [])],
            "researcher": [
                Call("lookup_order", {"order": "101"}, gets=["analytical engine: shipped"]),
                *([tried] if self.framework.per_call else []),
                Say("The researcher is done."),
            ],
        }
        last = "The planner is done." if self.framework.name == "langgraph" else "The researcher is done."
        faults = self._run("handoff", script, gateway.env(), last, ["lookup_order 101"])
        seen = self.model.offered("researcher") & {"lookup_order", "list_orders", "refund_order"}
        if not self.framework.per_call and seen != {"lookup_order"}:
            faults.append(f"the researcher was to be offered lookup_order alone, and was offered {sorted(seen)}")
        return faults

    def _run(self, entry: str, script: Script, env: Mapping[str, str], last: str, did: list[str]) -> list[str]:
        self.journal.write_text("")
        self.model.play(script)
        code, said = self._agent(entry, env)
        faults = self.model.faults + self.model.left()
        if code != 0:
            faults.append(f"ended with {code}: {said[-1500:]}")
        if last not in said:
            faults.append(f"did not end with `{last}`: {said[-500:]}")
        really = self.journal.read_text().splitlines()
        # In any order, since what is called together runs together; but each as often as it should.
        if sorted(really) != sorted(did):
            faults.append(f"the MCP server did {really} instead of {did}")
        return faults

    def _agent(self, entry: str, connection: Mapping[str, str]) -> tuple[int | str, str]:
        log = self.writ.folder / f"{self.framework.name}-{entry}.log"
        env = {
            **os.environ,
            **connection,
            "OPENAI_API_KEY": "none",
            "OPENAI_BASE_URL": self.model.url,
            # Nothing leaves this machine.
            "CREWAI_DISABLE_TELEMETRY": "true",
            "CREWAI_TRACING_ENABLED": "false",
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
            "OTEL_SDK_DISABLED": "true",
        }
        program = HERE / self.framework.name / "agent.py"
        command = [str(self.python), str(program), entry, "Please see to Ada's order 101."]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True
            )
            try:
                code: int | str = process.wait(AGENT_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = f"nothing for {AGENT_SECONDS_MAX} s, and was ended"
        return code, log.read_text(errors="replace")

    def _grant(self, told: str) -> None:
        """Bob says yes, from a terminal of his own, to the approval the model was told of."""
        self.writ.run("approval", "grant", _approval(told), "--yes", approver="bob")

    def _refuse(self, told: str) -> None:
        self.writ.run("approval", "refuse", _approval(told), "--comment", "that is too much", "--yes", approver="bob")

    def _halt(self, _told: str) -> None:
        self.writ.run("task", "halt", self._last_task()["task"], "--wait")

    def _last_task(self) -> Any:
        return self.writ.run("audit", "chain", "last")["chain"]

    def _chain(self) -> list[str]:
        """The audit stream tells the same story."""
        chain = self._last_task()
        faults = [f"audit: {fault}" for fault in chain["faults"]]
        if chain["denied"] != 3 or chain["held"] != 2:
            faults.append(f"audit: {chain['denied']} denied and {chain['held']} held instead of 3 and 2")
        return faults


def _approval(told: str) -> str:
    found = re.search(r"\bap-[0-9a-f]{32}\b", told)
    if found is None:
        raise Failed(f"the model is not told which approval it waits for: {told[:400]}")
    return found[0]


def _until(moment: float) -> Callable[[str], None]:
    return lambda _told: time.sleep(max(0.0, moment - time.monotonic()))


def readme_faults(framework: Framework) -> list[str]:
    """The README shows what runs here: every block of its chapter stands in agent.py."""
    readme = (HERE / "README.md").read_text()
    chapter = re.search(rf"^## [^\n]*\({framework.name}/\)\n(.*?)(?=^## |\Z)", readme, re.M | re.S)
    blocks = re.findall(r"^```python\n(.*?)^```", chapter[1], re.M | re.S) if chapter else []
    if not blocks:
        return ["README.md shows no code of it"]
    code = (HERE / framework.name / "agent.py").read_text()
    return [f"README.md shows what agent.py has not:\n{block}" for block in blocks if block not in code]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=[framework.name for framework in FRAMEWORKS])
    parser.add_argument("--writ", default="writ", help="the binary; the one on PATH by default")
    parser.add_argument("--keep", action="store_true", help="keep configuration and logs")
    options = parser.parse_args()
    ends_in_order()
    chosen = [framework for framework in FRAMEWORKS if not options.only or framework.name in options.only]

    folder = Path(tempfile.mkdtemp(prefix="writ-frameworks-"))
    journal = folder / "journal"
    python = venvs.python(venvs.cache("frameworks") / "upstream", HERE / "upstream" / "requirements.txt")
    arguments = [str(HERE / "upstream" / "server.py"), str(journal)]
    upstream = Upstream("orders", {"command": str(python), "args": arguments})
    faults: dict[tuple[str, str], list[str]] = {}
    try:
        with ScriptedModel() as model:
            for framework in chosen:
                with Writ(options.writ, folder / framework.name, HERE / "policies", upstream) as writ:
                    bench = Bench(framework, writ, model, journal)
                    faults[framework.name, "readme"] = readme_faults(framework)
                    for scenario in (bench.desk, bench.by_command, bench.expiry, bench.handoff):
                        began = time.monotonic()
                        try:
                            found = scenario()
                        except Failed as error:
                            found = [str(error)]
                        faults[framework.name, scenario.__name__] = found
                        taken = time.monotonic() - began
                        end = "FAIL" if found else "ok"
                        print(f"{framework.name:<14} {scenario.__name__:<10} {end:<5} {taken:5.1f} s", flush=True)
    finally:
        if options.keep:
            print(f"kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for (name, tried), found in faults.items():
        # The first one is the cause of most others.
        for fault in found[:FAULTS_SHOWN_MAX]:
            print(f"FAULT {name} {tried}: {fault}")
    return 1 if any(faults.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
