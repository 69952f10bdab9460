#!/usr/bin/env python3
"""MCP's conformance suite against `writ mcp` in front of a reference server.

    python3 tests/conformance/run.py              the reference server by itself, then through Writ
    python3 tests/conformance/run.py --baseline   the reference server by itself

What a revision requires and the reference server passes has to pass through Writ too, but for what skips.toml lists
with a reason. A skip that is no longer needed is an error. README.md says more.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from harness import ends_in_order, venvs  # noqa: E402
from harness.writ import Failed, Process, Upstream, Writ, free_port  # noqa: E402

SUITE_SECONDS_MAX = 300
INSTALL_SECONDS_MAX = 600


@dataclass(frozen=True)
class Leg:
    """One run of a suite: which version of it, and what of it."""

    package: str
    revision: str
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.revision} by {self.package}"


LEGS = (
    Leg("conformance-0.2", "2025-11-25", ("--requirements", "2025-11-25")),
    Leg("conformance-0.2", "2026-07-28", ("--requirements", "2026-07-28")),
    # The stable version knows nothing of 2026-07-28; what is active in it is of 2025-11-25.
    Leg("conformance-0.1", "2025-11-25", ("--suite", "active")),
)


@dataclass
class Outcome:
    """What a suite found."""

    # Per scenario the checks that failed; none where it passed.
    failed: dict[str, set[str]]
    # Scenarios that no revision requires, with the suite's reason.
    optional: dict[str, str]

    def passes(self, scenario: str) -> bool:
        return not self.failed.get(scenario, {"not run"})


def install() -> tuple[Path, Path]:
    """The suite with its Node, and the reference server's folder."""
    suite = venvs.cache("conformance") / "suite"
    recipe = (HERE / "package-lock.json").read_bytes()
    if not venvs.fresh(suite, recipe):
        suite.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, suite)
        command = ["npm", "ci", "--silent", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=suite, check=True, timeout=INSTALL_SECONDS_MAX)
        venvs.finish(suite, recipe)
    reference = venvs.cache("conformance") / "reference"
    recipe = (HERE / "reference.txt").read_bytes()
    if not venvs.fresh(reference, recipe):
        reference.mkdir(parents=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--require-hashes", "--dest", str(reference), "--requirement", str(HERE / "reference.txt")]
        subprocess.run(command, check=True, timeout=INSTALL_SECONDS_MAX)
        (archive,) = reference.glob("mcp-*.tar.gz")
        with tarfile.open(archive) as files:
            files.extractall(reference, filter="data")
        venvs.finish(reference, recipe)
    (server,) = reference.glob("mcp-*/examples/servers/everything-server")
    return suite, server


def run_suite(suite: Path, leg: Leg, url: str, results: Path) -> Outcome:
    """Runs one leg. Its exit code says nothing here: what failed is read off its summary and its results."""
    index = suite / "node_modules" / leg.package / "dist" / "index.js"
    node = suite / "node_modules" / "node" / "bin" / "node"
    command = [str(node), str(index), "server", "--url", url, *leg.arguments, "--output-dir", str(results)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SUITE_SECONDS_MAX, check=False)
    said = ended.stdout + ended.stderr
    results.mkdir(parents=True, exist_ok=True)
    (results / "said.txt").write_text(said)
    failed = {}
    for mark, scenario in re.findall(r"^([✓✗]) (\S+): \d+ passed, \d+ failed", said, re.M):
        failed[scenario] = set() if mark == "✓" else failed_checks(results, scenario)
    if not failed:
        raise Failed(f"{leg.name}: the suite came to no summary:\n{said[-2000:]}")
    return Outcome(failed, dict(re.findall(r"^  [✓✗] (\S+) \(([\w-]+)\)", said, re.M)))


def failed_checks(results: Path, scenario: str) -> set[str]:
    """The checks that made a scenario fail; an unnamed one if it came to none."""
    failed = set()
    for file in results.glob(f"server-{scenario}-20*/checks.json"):
        failed |= {check["id"] for check in json.loads(file.read_text()) if check["status"] == "FAILURE"}
    return failed or {"it came to an end"}


def skips() -> dict[tuple[str, str, str], str]:
    """(revision, scenario, check) to the reason; the check is empty where all of them are meant."""
    reasons = {}
    for skip in tomllib.loads((HERE / "skips.toml").read_text()).get("skip", []):
        for revision in skip["revisions"]:
            for name in skip["scenarios"]:
                scenario, _, check = name.partition(":")
                reasons[revision, scenario, check] = skip["reason"]
    return reasons


def compare(leg: Leg, direct: Outcome, through: Outcome, reasons: dict[tuple[str, str, str], str]) -> list[str]:
    """What is wrong with what came through Writ, a skip that is not needed included."""
    faults = []
    for scenario in direct.failed:
        if not direct.passes(scenario):
            continue
        skipped = {check for revision, name, check in reasons if (revision, name) == (leg.revision, scenario)}
        failed = through.failed.get(scenario, {"not run"})
        stale = skipped - failed if "" not in skipped else (set() if failed else {"all of it"})
        faults += [f"{leg.name}: {scenario}: {check} passes; take it out of skips.toml" for check in sorted(stale)]
        if scenario not in direct.optional and "" not in skipped:
            unexpected = sorted(failed - skipped)
            faults += [f"{leg.name}: {scenario}: {check} fails through Writ only" for check in unexpected]
    return faults


def tell(leg: Leg, direct: Outcome, through: Outcome | None, reasons: dict[tuple[str, str, str], str]) -> None:
    """A line per leg, and what does not come through, by reason."""
    required = [scenario for scenario in direct.failed if direct.passes(scenario) and scenario not in direct.optional]
    line = f"{leg.name:<32} {len(direct.failed):>3} scenarios, {len(required)} required and passed directly"
    if through is not None:
        line += f", {sum(map(through.passes, required))} of these through Writ"
    print(line)
    if through is None:
        return
    missing: dict[str, list[str]] = {}
    for scenario in direct.failed:
        if direct.passes(scenario) and not through.passes(scenario):
            leg_and_name = (leg.revision, scenario)
            known = {why for (revision, name, _), why in reasons.items() if (revision, name) == leg_and_name}
            optional = direct.optional.get(scenario)
            for why in known or {f"not required ({optional})" if optional else "REQUIRED"}:
                missing.setdefault(why, []).append(scenario)
    for why, scenarios in missing.items():
        print(f"  {why}:\n    {', '.join(scenarios)}")


def undocumented(reasons: dict[tuple[str, str, str], str]) -> list[str]:
    """Skips that README.md does not speak of."""
    readme = (HERE / "README.md").read_text()
    needed = {text for (_, scenario, _), why in reasons.items() for text in (why, f"`{scenario}`")}
    return [f"README.md does not speak of {text}" for text in sorted(needed) if text not in readme]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--baseline", action="store_true", help="only the reference server by itself")
    parser.add_argument("--writ", default="writ", help="the binary; the one on PATH by default")
    parser.add_argument("--keep", action="store_true", help="keep configuration, logs and results")
    options = parser.parse_args()
    ends_in_order()

    suite, server = install()
    python = venvs.python(venvs.cache("conformance") / "python", HERE / "requirements.txt")
    folder = Path(tempfile.mkdtemp(prefix="writ-conformance-"))
    port = free_port()
    command = [str(python), "-m", "mcp_everything_server", "--port", str(port), "--log-level", "WARNING"]
    reference = Process(command, folder / "reference.log", {"PYTHONPATH": str(server)})
    reasons = skips()
    faults = undocumented(reasons)
    try:
        reference.answers(port)
        url = f"http://127.0.0.1:{port}/mcp"
        direct = {leg: run_suite(suite, leg, url, folder / "direct" / leg.name) for leg in LEGS}
        through: dict[Leg, Outcome] = {}
        if not options.baseline:
            upstream = Upstream("everything", {"url": url})
            with Writ(options.writ, folder / "writ", HERE / "policies", upstream) as writ:
                writ.adopt("conformance", "planner")
                gateway = writ.gateway("planner", "conformance", "--open")
                for leg in LEGS:
                    through[leg] = run_suite(suite, leg, gateway.url, folder / "through" / leg.name)
                    faults += compare(leg, direct[leg], through[leg], reasons)
        for leg in LEGS:
            tell(leg, direct[leg], through.get(leg), reasons)
    except Failed as error:
        faults.append(str(error))
    finally:
        reference.end()
        if options.keep:
            print(f"kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for fault in faults:
        print(f"FAULT {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
