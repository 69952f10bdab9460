"""The parts of a Writ as processes of their own: one nats-server, one broker, one node, as deploy/README.md has them.

Files, keys and the first enrollments come from one run of `writ dev`; after that nothing of it is left running. Parts
are started and stopped by `systemctl` in `path`, a small program of this file that stands in for systemd, so that
the commands of an operator's page can be run as they stand there.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import venvs  # noqa: E402
from harness.writ import COMMAND_SECONDS_MAX, START_SECONDS_MAX, Failed, Process, free_port  # noqa: E402

STOP_SECONDS_MAX = 20
KIND = "customer-answer"
NATS_SERVER = "nats-server-2.15.1"
# PKCS#8 (RFC 8410 section 7) before an Ed25519 seed, and the public key's info before a public key.
_PKCS8 = bytes.fromhex("302e020100300506032b657004220420")


class Site:
    """Everything of one set-up below one folder: `etc`, `lib` (broker and node), `store` (the server's)."""

    UNITS = ("nats-server", "writ-broker", "writ-node")

    def __init__(self, binary: str, folder: Path) -> None:
        found = shutil.which(binary)
        if found is None:
            raise Failed(f"there is no `{binary}`; build it (`cargo build -p writ`), or name it with --writ")
        self.binary, self.folder = Path(found).resolve(), folder
        self.etc, self.lib, self.store = folder / "etc", folder / "lib", folder / "store"
        self.path = folder / "bin"
        self.http = {"writ-broker": free_port(), "writ-node": free_port()}
        # What the processes get besides this one's environment.
        self.env: dict[str, str] = {}

    def __enter__(self) -> Site:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for unit in reversed(self.UNITS):
            end(self.folder, unit, signal.SIGKILL)

    def systemctl(self, verb: str, *units: str) -> None:
        """As the command of that name, without its output."""
        self.shell(shlex.join(["systemctl", verb, *units]))

    def shell(self, text: str, **env: str | Path) -> str:
        """Runs commands as an operator types them, and gives what they say; anything but 0 raises."""
        code, said = self.try_shell(text, **env)
        if code:
            raise Failed(f"ended with {code}:\n{text}\n{said}")
        return said

    def try_shell(self, text: str, **env: str | Path) -> tuple[int, str]:
        """The same, and gives the exit code too."""
        places = {"PATH": f"{self.path}:{os.environ['PATH']}", "WRIT_PROFILE": self.etc / "operator.toml"}
        environment = {**os.environ, **self.env, **places, **env}
        ended = subprocess.run(
            ["sh", "-euc", text],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={name: str(value) for name, value in environment.items()},
            text=True,
            timeout=START_SECONDS_MAX * 3,
            check=False,
        )
        return ended.returncode, ended.stdout

    def run(self, *arguments: str, approver: str | None = None) -> Any:
        """One command of an operator, or of an approver, and what it answers."""
        profile = self.etc / f"{approver or 'operator'}.toml"
        command = [str(self.binary), "--profile", str(profile), "--output", "json", *arguments]
        env = {**os.environ, **self.env}
        ended = subprocess.run(
            command, capture_output=True, text=True, env=env, timeout=COMMAND_SECONDS_MAX, check=False
        )
        if ended.returncode:
            raise Failed(f"writ {' '.join(arguments)}: {ended.stderr.strip() or ended.stdout.strip()}")
        return json.loads(ended.stdout) if ended.stdout.strip() else None

    def log(self, unit: str) -> str:
        """What a part said since it was started last."""
        return (self.folder / f"{unit}.log").read_text(errors="replace")

    def scrape(self, unit: str) -> str:
        """`/metrics` of a part."""
        address = f"http://127.0.0.1:{self.http[unit]}/metrics"
        with urllib.request.urlopen(address, timeout=COMMAND_SECONDS_MAX) as answer:
            return answer.read().decode()

    def ready(self) -> None:
        """Waits until broker and node can decide."""
        late = time.monotonic() + START_SECONDS_MAX
        for unit, port in self.http.items():
            said = ""
            while time.monotonic() < late:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                        break
                except urllib.error.HTTPError as error:
                    said = error.read().decode()
                except OSError as error:
                    said = str(error)
                time.sleep(0.1)
            else:
                raise Failed(f"{unit} is not ready: {said}\n{self.log(unit)[-2000:]}")
        # The broker knows of a node what it said with its last question, which may be from before.
        while (code := self.try_shell("writ doctor")[0]) and time.monotonic() < late:
            time.sleep(0.2)
        if code:
            raise Failed(self.try_shell("writ doctor")[1])

    def token(self, user: str, group: str) -> Path:
        """A file with a user's token, signed by the issuer's key the way identity providers do it."""
        now = int(time.time())
        header = {"alg": "EdDSA", "kid": "dev", "typ": "at+jwt"}
        claims = {"iss": self._issuer, "aud": "writ", "sub": user, "groups": [group]}
        claims |= {"iat": now, "nbf": now, "exp": now + 3600}
        signed = ".".join(_text(json.dumps(part).encode()) for part in (header, claims))
        payload, file = self.folder / "token.bytes", self.folder / f"{user}.token"
        payload.write_text(signed)
        sign = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", str(self.folder / "idp.pem"), "-in", str(payload)]
        signature = subprocess.run(sign, capture_output=True, check=True, timeout=COMMAND_SECONDS_MAX).stdout
        file.touch(mode=0o600)
        file.write_text(f"{signed}.{_text(signature)}")
        return file

    def task(self, agent: str, file: Path) -> str:
        """Starts a task of alice's for an agent, with its capability in a file; its id."""
        token = str(self.token("alice", "analysts"))
        started = ("task", "start", KIND, "--agent", agent, "--token-file", token, "--out", str(file))
        return str(self.run(*started)["task"])

    def agent(self, name: str, capability: Path | None = None, others: Sequence[str] = ()) -> Agent:
        """An agent at work on a new task of alice's, or on the one its capability is for; `others` it may hand to."""
        on = ["--capability", str(capability)] if capability else ["--token-file", str(self.token("alice", "analysts"))]
        profile = str(self.etc / "operator.toml")
        command = [str(self.binary), "--profile", profile, "mcp", "--agent", name, "--kind", KIND, *on]
        for other in others:
            command += ["--with", other]
        return Agent(command, self.folder / "agent.log", self.env)

    def _make(self) -> None:
        dev = Process([self.binary, "dev", "--dir", self.etc], self._made("dev.log"))
        try:
            dev.says("Ctrl-C stops everything")
        finally:
            dev.end()
        self.lib.mkdir()
        (self.etc / "broker").rename(self.lib / "broker")
        (self.etc / "node-1").rename(self.lib / "node-1")
        (self.etc / "nats" / "jetstream").rename(self.store)
        self._take_over_the_issuer()
        _edit(
            self.etc / "broker.toml",
            {
                'state = "broker"': f'state = "{self.lib}/broker"',
                "discovery = true": 'jwks_file = "idp/jwks.json"',
                'listen = "127.0.0.1:0"': f'listen = "127.0.0.1:{self.http["writ-broker"]}"',
            },
        )
        _edit(
            self.etc / "node-1.toml",
            {
                'journal = "node-1"': f'journal = "{self.lib}/node-1"',
                'listen = "127.0.0.1:0"': f'listen = "127.0.0.1:{self.http["writ-node"]}"',
            },
        )
        _edit(self.etc / "nats" / "server.conf", {str(self.etc / "nats" / "jetstream"): str(self.store)})
        self._write_units()
        self.systemctl("start", "nats-server")
        self.systemctl("start", "writ-broker")
        self.systemctl("start", "writ-node")
        self.ready()

    def _made(self, name: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def _take_over_the_issuer(self) -> None:
        """The identity provider of `writ dev` is gone with it: its key stays, its keys become a file."""
        seed = bytes.fromhex((self.etc / "idp" / "idp.key").read_text().strip().rsplit(":", 1)[-1])
        pem = self.folder / "idp.pem"
        pem.touch(mode=0o600)
        body = base64.b64encode(_PKCS8 + seed).decode()
        kind = "PRIVATE" + " KEY"
        pem.write_text(f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n")
        show = ["openssl", "pkey", "-in", str(pem), "-pubout", "-outform", "DER"]
        public = subprocess.run(show, capture_output=True, check=True, timeout=COMMAND_SECONDS_MAX).stdout[-32:]
        key = {"kty": "OKP", "crv": "Ed25519", "x": _text(public), "kid": "dev", "use": "sig", "alg": "EdDSA"}
        (self.etc / "idp" / "jwks.json").write_text(json.dumps({"keys": [key]}))
        found = re.search(r'issuer = "(http://[^"]+)"', (self.etc / "broker.toml").read_text())
        if found is None:
            raise Failed("broker.toml names no issuer")
        self._issuer = found[1]

    def _write_units(self) -> None:
        conf = self.etc / "nats" / "server.conf"
        server = shutil.which("nats-server") or str(venvs.cache(NATS_SERVER) / "bin" / "nats-server")
        port = re.search(r'listen: "127\.0\.0\.1:(\d+)"', conf.read_text())
        if port is None:
            raise Failed(f"{conf} does not say where it listens")
        writ = str(self.binary)
        units = {
            "nats-server": {"command": [server, "-c", str(conf)], "says": "Server is ready"},
            "writ-broker": {"command": [writ, "broker", "--config", str(self.etc / "broker.toml")], "says": "ready"},
            # A node that sees a rolled-back stream runs, and never says that it is ready.
            "writ-node": {
                "command": [writ, "node", "--config", str(self.etc / "node-1.toml")],
                "says": r"ready|state[.]rollback",
            },
        }
        (self.folder / "units.json").write_text(json.dumps(units))
        self.path.mkdir()
        (self.path / "writ").symlink_to(self.binary)
        shim = self.path / "systemctl"
        command = shlex.join([sys.executable, str(Path(__file__).resolve()), str(self.folder)])
        shim.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        shim.chmod(0o755)


class Agent:
    """An agent that calls tools, through `writ mcp` on standard input and output."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **env},
                text=True,
                start_new_session=True,
            )
        if self._process.stdin is None or self._process.stdout is None:
            raise Failed("writ mcp has no standard input or output")
        self._in, self._out = self._process.stdin, self._process.stdout
        self._count = 0
        info = {"name": "test", "version": "1"}
        self._ask("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info})
        self._tell({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self._in.close()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def tools(self) -> list[str]:
        """What it is offered."""
        return [tool["name"] for tool in self._ask("tools/list", {})["tools"]]

    def call(self, tool: str, capability: str | None = None, **arguments: Any) -> tuple[bool, str]:
        """Whether a call was done, and what is said of it; with a capability of its own, if one is given."""
        params: dict[str, Any] = {"name": tool, "arguments": arguments}
        if capability:
            params["_meta"] = {"dev.writ/capability": capability}
        answer = self._ask("tools/call", params)
        said = " ".join(part.get("text", "") for part in answer.get("content", []))
        return not answer.get("isError", False), said

    def _ask(self, method: str, params: Mapping[str, Any]) -> Any:
        self._count += 1
        self._tell({"jsonrpc": "2.0", "id": self._count, "method": method, "params": params})
        for line in self._out:
            answer = json.loads(line)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise Failed(f"{method}: {answer['error']}")
                return answer["result"]
        self._process.wait(STOP_SECONDS_MAX)
        raise Failed(f"writ mcp ended with {self._process.returncode}:\n{self._log.read_text()[-2000:]}")

    def _tell(self, message: Mapping[str, Any]) -> None:
        self._in.write(json.dumps(message) + "\n")
        self._in.flush()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _edit(file: Path, changes: Mapping[str, str]) -> None:
    text = file.read_text()
    for old, new in changes.items():
        if old not in text:
            raise Failed(f"{file} does not say `{old}` any more")
        text = text.replace(old, new, 1)
    file.write_text(text)


def _pid(folder: Path, unit: str) -> int | None:
    file = folder / f"{unit}.pid"
    if not file.exists():
        return None
    pid = int(file.read_text())
    # A process that ended is a zombie until somebody waits; nobody does for what `systemctl` left behind.
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return None if state.stdout.strip()[:1] in ("", "Z") else pid


def start(folder: Path, unit: str) -> str | None:
    """Starts a part; what is wrong, if it does not come up."""
    if _pid(folder, unit) is not None:
        return None
    settings = json.loads((folder / "units.json").read_text())[unit]
    log = folder / f"{unit}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            settings["command"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "WRIT_LOG": "info"},
            start_new_session=True,
        )
    (folder / f"{unit}.pid").write_text(str(process.pid))
    late = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < late:
        if re.search(rf"\b({settings['says']})\b", log.read_text(errors="replace")):
            return None
        if process.poll() is not None:
            return f"{unit} ended with {process.returncode}:\n{log.read_text(errors='replace')[-2000:]}"
        time.sleep(0.05)
    return f"{unit} is not up:\n{log.read_text(errors='replace')[-2000:]}"


def end(folder: Path, unit: str, how: signal.Signals) -> None:
    """Ends a part that runs."""
    pid = _pid(folder, unit)
    if pid is None:
        return
    os.kill(pid, how)
    late = time.monotonic() + STOP_SECONDS_MAX
    while _pid(folder, unit) is not None:
        if time.monotonic() > late:
            os.kill(pid, signal.SIGKILL)
            late = time.monotonic() + STOP_SECONDS_MAX
        time.sleep(0.05)


def main() -> int:
    """`systemctl start|stop|kill|restart <unit>…`, for the parts of one folder."""
    folder, verb, *units = sys.argv[1:]
    faults = []
    for unit in units:
        if verb in ("stop", "restart"):
            end(Path(folder), unit, signal.SIGTERM)
        if verb == "kill":
            end(Path(folder), unit, signal.SIGKILL)
        if verb in ("start", "restart"):
            faults.append(start(Path(folder), unit))
    for fault in filter(None, faults):
        print(fault, file=sys.stderr)
    return 1 if any(faults) else 0


if __name__ == "__main__":
    sys.exit(main())
