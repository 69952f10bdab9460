#!/usr/bin/env python3
"""Alerts, runbooks and the dashboard of deploy/, against promtool and against what a broker and a node really show.

    python3 tests/observability/run.py [--writ target/debug/writ] [--promtool promtool]

promtool is the one on PATH, or comes from Debian's package by version and hash into Writ's cache folder. README.md says
what is tried.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from harness import ends_in_order, venvs  # noqa: E402
from harness.units import Site  # noqa: E402
from harness.writ import Failed, Process, free_port  # noqa: E402

RULES = ROOT / "deploy" / "observability"
PAGES = ROOT / "deploy" / "runbooks"
HEADINGS = ["See", "Likely causes", "Do", "Over"]
# Debian 12's package; by its hash, since it comes over plain HTTP.
PACKAGE = "prometheus=2.42.0+ds-5+b6"
PACKAGE_HASHES = {"3b0e0255b059a7696bd4a139a4a4eb24d71df067936a61ece5093559cbc7991c"}
TOOL_SECONDS_MAX = 120
SHOWN_SECONDS_MAX = 10
LIVE_SECONDS_MAX = 90
# Prometheus' own.
OF_PROMETHEUS = {"up"}
# A node shows numbers of the inspectors it has, and the set-up has none.
INSPECTOR = '[[inspector]]\nname = "patterns"\nkind = "builtin"\ndirections = ["tool_args"]\ntools = ["tool.crm"]\n'
# Named by rules already, and shown by no release yet.
NOT_YET: set[str] = set()


def promtool(named: str | None) -> Path:
    """Where promtool is, after fetching it if need be."""
    found = shutil.which(named or "promtool")
    if found:
        return Path(found)
    if named:
        raise Failed(f"there is no `{named}`")
    folder = venvs.cache("promtool")
    recipe = PACKAGE.encode()
    if not venvs.fresh(folder, recipe):
        folder.mkdir(parents=True)
        try:
            fetch = ["apt-get", "download", "--quiet", PACKAGE]
            subprocess.run(fetch, cwd=folder, check=True, capture_output=True, timeout=TOOL_SECONDS_MAX)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failed(f"promtool is not on PATH and `apt-get download {PACKAGE}` does not work: {error}") from error
        (package,) = folder.glob("*.deb")
        if hashlib.sha256(package.read_bytes()).hexdigest() not in PACKAGE_HASHES:
            raise Failed(f"{package.name} is not the package that is pinned here; put promtool on PATH")
        subprocess.run(["dpkg-deb", "-x", package, folder / "files"], check=True, timeout=TOOL_SECONDS_MAX)
        venvs.finish(folder, recipe)
    return folder / "files" / "usr" / "bin" / "promtool"


class Alerts:
    """alerts.yaml as text: its blocks, one per rule. It is our own file, written one way."""

    def __init__(self) -> None:
        self.text = (RULES / "alerts.yaml").read_text()
        self.blocks = {
            found[1]: found[0]
            for found in re.finditer(r"^      - alert: (\w+)\n(?:        .*\n|\n(?=        ))+", self.text, re.M)
        }

    def expression(self, name: str) -> str:
        """What an alert asks."""
        found = re.search(r"        expr: (?:\|\n((?:          .*\n)+)|(.*)\n)", self.blocks[name])
        if found is None:
            raise Failed(f"alerts.yaml: {name} has no expression")
        return found[1] or found[2]

    def without(self, name: str) -> str:
        """The file without one alert."""
        return self.text.replace(self.blocks[name], "")

    def always(self, name: str) -> str:
        """The file with an alert that always fires."""
        block = re.sub(
            r"        expr: (?:\|\n(?:          .*\n)+|.*\n)", "        expr: vector(1)\n", self.blocks[name]
        )
        return self.text.replace(self.blocks[name], re.sub(r"        for: .*\n", "", block))


class Bench:
    """One run."""

    def __init__(self, tool: Path, site: Site, folder: Path) -> None:
        self.tool, self.site, self.folder = tool, site, folder
        self.alerts = Alerts()

    def panels(self) -> dict[str, str]:
        """What the dashboard asks."""
        dashboard = json.loads((RULES / "dashboard.json").read_text())
        return {
            f"panel {panel['title']} {target['refId']}": target["expr"]
            for panel in dashboard["panels"]
            for target in panel.get("targets", [])
        }

    def rules(self) -> Iterator[str]:
        """promtool reads the rules and the configuration."""
        for command in (("check", "rules", "alerts.yaml"), ("check", "config", "prometheus.yaml")):
            code, said = self._promtool(RULES, *command)
            if code:
                yield said
        # Grafana is not here; what it would ask is read as rules are.
        lines = ["groups:", "  - name: panels", "    rules:"]
        for number, expression in enumerate(self.panels().values()):
            lines.append(f"      - {json.dumps({'record': f'panel:{number}', 'expr': _filled_in(expression)})}")
        (self.folder / "panels.yaml").write_text("\n".join(lines))
        code, said = self._promtool(self.folder, "check", "rules", "panels.yaml")
        if code:
            yield said

    def stories(self) -> Iterator[str]:
        """The alerts fire when they are to, and not otherwise."""
        code, said = self._promtool(RULES, "test", "rules", "alerts_test.yaml")
        if code:
            yield said
        tests = (RULES / "alerts_test.yaml").read_text()
        for name in self.alerts.blocks:
            if f"  - name: {name}\n" not in tests:
                yield f"alerts_test.yaml tells no story of {name}"

    def stories_are_strict(self) -> Iterator[str]:
        """A rule that is taken out, or always fires, does not get past its own story."""
        copy = self.folder / "rules"
        copy.mkdir()
        head, *stories = re.split(r"^(?=  - name: )", (RULES / "alerts_test.yaml").read_text(), flags=re.M)
        for name in self.alerts.blocks:
            own = [story for story in stories if story.startswith(f"  - name: {name}\n")]
            (copy / "alerts_test.yaml").write_text(head + "".join(own))
            for what, text in (("left out", self.alerts.without(name)), ("always firing", self.alerts.always(name))):
                (copy / "alerts.yaml").write_text(text)
                if self._promtool(copy, "check", "rules", "alerts.yaml")[0]:
                    yield f"{name} could not be {what}"
                elif not self._promtool(copy, "test", "rules", "alerts_test.yaml")[0]:
                    yield f"with {name} {what}, alerts_test.yaml passes all the same"

    def metrics(self) -> Iterator[str]:
        """What rules and dashboard ask for is shown, with those labels."""
        config = self.site.etc / "node-1.toml"
        config.write_text(f"{config.read_text()}\n{INSPECTOR}")
        self.site.systemctl("restart", "writ-node")
        self.site.ready()
        with self.site.agent("planner") as agent:
            agent.call("crm__read", sql="SELECT name FROM customers")
            agent.call("crm__read", sql="DELETE FROM customers")
        for verdict in ("allow", "deny"):
            self._counted(f'verdict="{verdict}"')
        shown, labels = self._shown()
        asked = {f"alert {name}": self.alerts.expression(name) for name in self.alerts.blocks}
        asked["recording rules"] = self.alerts.text.split("  - name: writ-running")[0]
        asked |= self.panels()
        recorded = set(re.findall(r"- record: (\S+)", self.alerts.text))
        for where, expression in asked.items():
            for name in set(re.findall(r"\bwrit_[a-z0-9_]+|\bwrit:[a-z0-9_:]+", expression)):
                if name not in shown | recorded | NOT_YET:
                    yield f"{where}: nothing shows `{name}`"
            for name, matchers in re.findall(r"\b(writ_[a-z0-9_]+)\{([^}]*)\}", expression):
                for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
                    if label not in labels.get(name, set()) | {"tenant", "job", "instance"} and name not in NOT_YET:
                        yield f"{where}: `{name}` has no label `{label}`"
        for name in NOT_YET & shown:
            yield f"`{name}` is shown now: it is no exception any more"
        panels = "".join(text for where, text in asked.items() if where.startswith("panel"))
        for name in self._families():
            if not re.search(rf"\b{name}(_bucket|_sum|_count)?\b", panels):
                yield f"no panel shows `{name}`"

    def manual(self) -> Iterator[str]:
        """deploy/README.md lists what is shown."""
        readme = (ROOT / "deploy" / "README.md").read_text()
        table = readme[readme.index("| metric | of | meaning |") :].split("\n\n")[0]
        listed = set(re.findall(r"`(writ_[a-z_]+)", table))
        for name in sorted(self._families() ^ (listed - NOT_YET)):
            what = "listed in deploy/README.md and not shown" if name in listed else "shown and not listed"
            yield f"`{name}` is {what}"

    def compliance(self) -> Iterator[str]:
        """deploy/compliance.md names fields and commands that exist; what does not yet is marked with (*)."""
        text = (ROOT / "deploy" / "compliance.md").read_text()
        record = (ROOT / "common" / "src" / "record.rs").read_text()
        for row in re.findall(r"^\| (`.*?) \|", text.split("## EU AI Act")[0], re.M):
            for field in re.findall(r"`([^`]+)`", row):
                for name in re.split(r"[./]", field.replace("[]", "")):
                    if not re.search(rf"pub {name}: ", record) and name not in ("who", "what", "basis", "outcome"):
                        yield f"there is no field `{name}` in a record ({field})"
        for command in sorted(set(re.findall(r"`writ ([a-z-]+(?: [a-z-]+)?)[^`]*`(?! \(\*\))", text))):
            if self._no_command(command.split()):
                yield f"there is no command `writ {command}`"

    def reasons(self) -> Iterator[str]:
        """Every reason code that is named exists."""
        texts = [self.alerts.text, (RULES / "dashboard.json").read_text().replace('\\"', '"')]
        texts.append((RULES / "alerts_test.yaml").read_text())
        codes = set()
        for text in texts:
            for pattern in re.findall(r'reason(?:=~|!~|=|!=)"([^"]+)"', text):
                codes |= set(_alternatives(pattern))
        for page in PAGES.glob("*.md"):
            codes |= set(re.findall(r"writ explain ([a-z_]+\.[a-z_]+)", page.read_text()))
            codes |= set(re.findall(r"^\| `([a-z_]+\.[a-z_]+)`", page.read_text(), re.M))
        for code in sorted(codes):
            if not code.endswith("*") and self.site.try_shell(f"writ explain {code}")[0]:
                yield f"there is no reason `{code}`"

    def pages(self) -> Iterator[str]:
        """Every alert has a page, every page an alert, and every command on it exists."""
        pages = {page.stem: page.read_text() for page in PAGES.glob("*.md")}
        for name in sorted(set(pages) ^ set(self.alerts.blocks)):
            what = "no page in deploy/runbooks" if name in self.alerts.blocks else "a page, and is no alert"
            yield f"{name} has {what}"
        for name, block in self.alerts.blocks.items():
            if f"          runbook: deploy/runbooks/{name}.md\n" not in block:
                yield f"alert {name} does not name its page"
        commands = set()
        for name, text in pages.items():
            if not text.startswith(f"# {name}\n") or re.findall(r"^## (.*)$", text, re.M) != HEADINGS:
                yield f"{name}.md does not have the form of a page: its name, then {', '.join(HEADINGS)}"
            commands |= set(re.findall(r"(?:^|`)writ (?:--profile \S+ )?([a-z-]+(?: [a-z-]+)?)", text, re.M))
        for command in sorted(commands):
            words = [word for word in command.split() if not word.startswith("-")][:2]
            if self._no_command(words):
                yield f"there is no command `writ {' '.join(words)}`"

    def _no_command(self, words: list[str]) -> bool:
        code, said = self.site.try_shell(f"writ {words[0]} --help")
        if code == 0 and len(words) > 1 and "\nCommands:\n" in said:
            return re.search(rf"^  {words[1]} ", said, re.M) is None
        return code != 0

    def live(self) -> Iterator[str]:
        """Prometheus itself, on this set-up: nothing fires, the bus is stopped, two alerts fire, and end."""
        binary = shutil.which("prometheus", path=str(self.tool.parent))
        if binary is None:
            print(f"live: left out, there is no prometheus beside {self.tool}")
            return
        folder, port = self.folder / "live", free_port()
        folder.mkdir()
        shutil.copy(RULES / "alerts.yaml", folder)
        text = (RULES / "prometheus.yaml").read_text().replace("interval: 15s", "interval: 1s")
        text = text.replace("127.0.0.1:9464", f"127.0.0.1:{self.site.http['writ-broker']}")
        node = f"127.0.0.1:{self.site.http['writ-node']}"
        (folder / "prometheus.yaml").write_text(text.replace('127.0.0.1:9465", "127.0.0.1:9466', node))
        listen = f"--web.listen-address=127.0.0.1:{port}"
        options = ["--config.file=prometheus.yaml", "--storage.tsdb.path=data", listen]
        command = ["sh", "-c", f'cd "{folder}" && exec "{binary}" {" ".join(options)}']
        process = Process(command, self.folder / "prometheus.log")
        try:
            process.answers(port)
            prometheus = Prometheus(port)
            prometheus.until("it is ready", prometheus.is_ready)
            prometheus.until("both targets are looked at", lambda: prometheus.value("sum(up)") == 2)
            for where, expression in self.panels().items():
                prometheus.query(_filled_in(expression), where)
            if prometheus.firing():
                yield f"fires although all is well: {sorted(prometheus.firing())}"
            self.site.systemctl("stop", "nats-server")
            wanted = {"WritBusDisconnected", "WritNodeStale"}
            prometheus.until(f"{sorted(wanted)} fire", lambda: wanted <= prometheus.firing())
            self.site.systemctl("start", "nats-server")
            prometheus.until("nothing fires any more", lambda: not prometheus.firing())
        finally:
            process.end()

    def _counted(self, label: str) -> None:
        """Waits until the node shows a verdict; numbers are published ten times a second."""
        late = time.monotonic() + SHOWN_SECONDS_MAX
        while not re.search(rf"^writ_decisions_total\{{{label}.* [1-9]", self.site.scrape("writ-node"), re.M):
            if time.monotonic() > late:
                raise Failed(f"the node does not count {label}:\n{self.site.scrape('writ-node')[:600]}")
            time.sleep(0.1)

    def _families(self) -> set[str]:
        """What is shown, histograms as one."""
        texts = [self.site.scrape(unit) for unit in self.site.http]
        return {name for text in texts for name in re.findall(r"^# TYPE (\S+) ", text, re.M)}

    def _shown(self) -> tuple[set[str], dict[str, set[str]]]:
        """Names of samples, and which labels each can have."""
        shown: set[str] = set()
        labels: dict[str, set[str]] = {}
        for unit in self.site.http:
            text = self.site.scrape(unit)
            for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M):
                shown |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
            for name, pairs in re.findall(r"^(writ_\w+)(?:\{(.*)\})? ", text, re.M):
                labels.setdefault(name, set()).update(re.findall(r'(\w+)="', pairs))
        return shown, labels

    def _promtool(self, folder: Path, *arguments: str) -> tuple[int, str]:
        command = [str(self.tool), *arguments]
        ended = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TOOL_SECONDS_MAX, check=False
        )
        return ended.returncode, (ended.stdout + ended.stderr).strip()


class Prometheus:
    """A running one, asked over HTTP."""

    def __init__(self, port: int) -> None:
        self._api = f"http://127.0.0.1:{port}/api/v1"

    def is_ready(self) -> bool:
        """Whether it answers questions."""
        try:
            return bool(self.query("vector(1)", "the first question"))
        except Failed:
            return False

    def query(self, expression: str, where: str) -> list[Any]:
        """What an expression comes to."""
        try:
            with urllib.request.urlopen(f"{self._api}/query?{urlencode({'query': expression})}", timeout=10) as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise Failed(f"{where}: {error.read().decode()}") from error

    def value(self, expression: str) -> float:
        """The first number of it, or 0."""
        return float(next((row["value"][1] for row in self.query(expression, expression)), 0))

    def firing(self) -> set[str]:
        """The alerts that fire."""
        with urllib.request.urlopen(f"{self._api}/alerts", timeout=10) as answer:
            alerts = json.load(answer)["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def until(self, what: str, is_so: Callable[[], bool]) -> None:
        """Waits for something."""
        late = time.monotonic() + LIVE_SECONDS_MAX
        while not is_so():
            if time.monotonic() > late:
                raise Failed(f"within {LIVE_SECONDS_MAX} s it did not come to this: {what}")
            time.sleep(0.5)


def _filled_in(expression: str) -> str:
    """An expression of the dashboard with Grafana's variables as Grafana fills them in."""
    expression = expression.replace("$__rate_interval", "1m").replace("$__range", "6h")
    return expression.replace("$tenant", ".*").replace("$instance", ".*")


def _alternatives(pattern: str) -> list[str]:
    """The words a pattern of ours stands for: `a[.](b|c)|d` is a.b, a.c, d."""
    parts, depth = [""], 0
    for character in pattern:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    words = []
    for part in parts:
        found = re.fullmatch(r"(.*)\((.*)\)", part)
        words += [f"{found[1]}{end}" for end in found[2].split("|")] if found else [part]
    return [word.replace("[.]", ".") for word in words]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--writ", default="writ", help="the binary; the one on PATH by default")
    parser.add_argument("--promtool", help="promtool; the one on PATH by default, else Debian's")
    parser.add_argument("--keep", action="store_true", help="keep configuration and logs")
    options = parser.parse_args()
    ends_in_order()
    folder = Path(tempfile.mkdtemp(prefix="writ-observability-"))
    faults = 0
    try:
        tool = promtool(options.promtool)
        with Site(options.writ, folder / "site") as site:
            bench = Bench(tool, site, folder)
            steps: tuple[Callable[[], Iterator[str]], ...] = (
                bench.rules,
                bench.stories,
                bench.stories_are_strict,
                bench.metrics,
                bench.manual,
                bench.compliance,
                bench.reasons,
                bench.pages,
                bench.live,
            )
            for step in steps:
                found = list(step())
                print(f"{step.__name__:<20} {'FAIL' if found else 'ok'}", flush=True)
                for fault in found:
                    print(f"FAULT {step.__name__}: {fault}")
                faults += len(found)
    except Failed as error:
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
