"""A Writ of its own, on loopback: `writ dev` with one MCP server behind its node, and gateways for agents."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS_MAX = 60
COMMAND_SECONDS_MAX = 30
STOP_SECONDS_MAX = 10


class Failed(Exception):
    """Something did not start, or a command said no."""


class Process:
    """A process of ours, with its output in a file; `end` ends it and whatever it started."""

    def __init__(self, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    def says(self, pattern: str) -> re.Match[str]:
        """Waits until the output has something."""
        end = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < end:
            found = re.search(pattern, self.text())
            if found:
                return found
            if self._process.poll() is not None:
                raise Failed(f"ended with {self._process.returncode}:\n{self.text()[-2000:]}")
            time.sleep(0.05)
        raise Failed(f"did not say /{pattern}/ within {START_SECONDS_MAX} s:\n{self.text()[-2000:]}")

    def text(self) -> str:
        """What it said so far."""
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        """Asks it to stop, and makes it stop."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS_MAX)
        with contextlib.suppress(ProcessLookupError):
            # The group is the one that `start_new_session` made for this process alone.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def answers(self, port: int) -> None:
        """Waits until something listens on a port of this machine."""
        end = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise Failed(f"ended with {self._process.returncode}:\n{self.text()[-2000:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        raise Failed(f"did not listen on {port} within {START_SECONDS_MAX} s:\n{self.text()[-2000:]}")


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Upstream:
    """An MCP server to be governed: the settings of its `[[tool]]` in a node's configuration."""

    name: str
    settings: Mapping[str, Any]

    def toml(self) -> str:
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.settings.items()]
        return "\n".join(["[[tool]]", f'resource = "tool.{self.name}"', 'kind = "mcp"', *lines, ""])


@dataclass(frozen=True)
class Gateway:
    """A running `writ mcp --http`."""

    url: str
    bearer_file: Path
    process: Process

    def env(self) -> dict[str, str]:
        """What an application is told."""
        return {"WRIT_URL": self.url, "WRIT_BEARER_FILE": str(self.bearer_file)}


class Writ:
    """The whole set-up. `with` starts and stops it."""

    def __init__(self, binary: str, folder: Path, policies: Path, upstream: Upstream) -> None:
        found = shutil.which(binary)
        if found is None:
            raise Failed(f"there is no `{binary}`; build it (`cargo build -p writ`), or name it with --writ")
        self.binary, self.folder, self.upstream = Path(found).resolve(), folder, upstream
        self._policies = policies
        self._started: list[Process] = []

    def __enter__(self) -> Writ:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._started:
            self._started.pop().end()

    def run(self, *arguments: str, approver: str | None = None) -> Any:
        """One command of an operator, or of an approver, and what it answers."""
        profile = self.folder / f"{approver or 'operator'}.toml"
        command = [str(self.binary), "--profile", str(profile), "--output", "json", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False)
        if ended.returncode:
            raise Failed(f"writ {' '.join(arguments)}: {ended.stderr.strip() or ended.stdout.strip()}")
        return json.loads(ended.stdout) if ended.stdout.strip() else None

    def adopt(self, kind: str, agent: str) -> None:
        """Takes every tool of the server into the policy, for anybody's task of a kind, without anybody's approval."""
        resource = f"tool.{self.upstream.name}"
        node, policies = str(self.folder / "node-1.toml"), self.folder / "policies"
        proposed = self.run("tools", "import", resource, "--node", node, "--policies", str(policies))
        # What is proposed has a person approve every call of a tool nobody has looked at.
        shutil.rmtree(policies / "imported")
        rights = [f"{resource}:{action}" for action in proposed["added"]]
        task = {"kind": kind, "agents": [agent], "rights": rights}
        lines = [f"{key} = {json.dumps(value)}" for key, value in task.items()]
        role = "\n".join(["[[role]]", 'name = "analyst"', "", "[[role.task]]", *lines, ""])
        (policies / "roles.toml").write_text(role)
        self.run("policy", "activate", str(policies))

    def gateway(self, agent: str, kind: str, *options: str) -> Gateway:
        """An agent's gateway, on alice's authority."""
        number = len(self._started)
        bearer_file = self.folder / f"bearer-{number}"
        command: list[str | Path] = [*self._mcp(agent, kind), "--http", "127.0.0.1:0", *options]
        if "--open" not in options:
            command += ["--bearer-file", bearer_file]
        process = self._process(command, f"gateway-{number}")
        return Gateway(process.says(r"(http://127\.0\.0\.1:\d+/mcp)")[1], bearer_file, process)

    def command(self, agent: str, kind: str, *options: str) -> str:
        """The command of an agent's gateway on standard input and output, for a shell."""
        return shlex.join([*self._mcp(agent, kind), *options])

    def _mcp(self, agent: str, kind: str) -> list[str]:
        profile = str(self.folder / "operator.toml")
        return [str(self.binary), "--profile", profile, "mcp", "--agent", agent, "--user", "alice", "--kind", kind]

    def _start(self) -> None:
        (self.folder / "upstreams").mkdir(mode=0o700, parents=True)
        (self.folder / "upstreams" / f"{self.upstream.name}.toml").write_text(self.upstream.toml())
        shutil.copytree(self._policies, self.folder / "policies")
        running = self._process([self.binary, "dev", "--dir", self.folder], "dev")
        running.says("Ctrl-C stops everything")
        if f'"tool.{self.upstream.name}"' not in (self.folder / "node-1.toml").read_text():
            raise Failed(f"the node did not take up tool.{self.upstream.name}:\n{running.text()[-2000:]}")

    def _process(self, command: Sequence[str | Path], name: str) -> Process:
        process = Process(command, self.folder / f"{name}.log")
        self._started.append(process)
        return process
