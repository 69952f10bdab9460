"""A model that follows a script: an OpenAI-compatible server on loopback, for tests of agent frameworks.

It speaks chat completions and the Responses API, as far as the frameworks here use them. What it answers does not
depend on what it is told; what it is told is kept, because that is what a test wants to see: a denial that never
reached the model is no use to anybody.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REQUEST_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True)
class Call:
    """The model wants a tool."""

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    # What has to be in what the model gets back, each part somewhere in it.
    gets: Sequence[str] = ()
    # What must not be there.
    lacks: Sequence[str] = ()
    # Told what the model got back, before the model answers that; may raise AssertionError.
    then: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Together:
    """The model wants several tools at once."""

    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Say:
    """The model's last word."""

    text: str


Step = Call | Together | Say
# What every agent does, by the name in "You are <name>" of its system message.
Script = Mapping[str, Sequence[Step]]


def calls_of(step: Step) -> tuple[Call, ...]:
    """The tools a step wants."""
    match step:
        case Call():
            return (step,)
        case Together():
            return step.calls
        case Say():
            return ()


@dataclass
class Turn:
    """What one request told the model."""

    agent: str
    offered: list[str]
    messages: list[tuple[str, str]]


class ScriptedModel:
    """The server. `with` starts and stops it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.play({})

    @property
    def url(self) -> str:
        """What OPENAI_BASE_URL is set to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ScriptedModel:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def play(self, script: Script) -> None:
        """Begins a script."""
        with self._lock:
            self._script = script
            self._next: dict[str, int] = dict.fromkeys(script, 0)
            self._given: dict[str, Step] = {}
            self.turns: list[Turn] = []
            self.faults: list[str] = []

    def left(self) -> list[str]:
        """What the script says and nobody asked for."""
        return [
            f"{agent} never came to {step}"
            for agent, steps in self._script.items()
            for step in steps[self._next[agent] :]
        ]

    def offered(self, agent: str) -> set[str]:
        """The tools this agent's model was ever offered."""
        return {tool for turn in self.turns if turn.agent == agent for tool in turn.offered}

    def _answer(self, turn: Turn, digest: str) -> Step:
        with self._lock:
            # A client that asks the same again, say after a timeout, is given the same again.
            if digest in self._given:
                return self._given[digest]
            self.turns.append(turn)
            steps = self._script.get(turn.agent)
            if steps is None:
                return self._fault(f"nobody wrote a part for `{turn.agent}`")
            position = self._next[turn.agent]
            if position >= len(steps):
                return self._fault(f"`{turn.agent}` is asked once more than its part is long")
            if position > 0:
                self._check(turn, steps[position - 1])
            step = steps[position]
            missing = {call.tool for call in calls_of(step)} - set(turn.offered)
            if missing:
                return self._fault(f"`{turn.agent}` wants {missing}, but is offered {sorted(turn.offered)}")
            self._next[turn.agent] = position + 1
            self._given[digest] = step
            return step

    def _check(self, turn: Turn, step: Step) -> None:
        calls = calls_of(step)
        # Answers come in the order of the calls, last.
        answers = [text for _, text in turn.messages[len(turn.messages) - len(calls) :]]
        if len(answers) < len(calls):
            self.faults.append(f"the model got {len(answers)} answers to {len(calls)} calls")
        for call, told in zip(calls, answers, strict=False):
            for part in call.gets:
                if part not in told:
                    self.faults.append(f"{call.tool}: the model is not told `{part}`: {told[:400]}")
            for part in call.lacks:
                if part in told:
                    self.faults.append(f"{call.tool}: the model is told `{part}`")
            if call.then is not None:
                try:
                    call.then(told)
                except Exception as error:  # a fault of the test is told like any other
                    self.faults.append(f"{call.tool}: {error}")

    def _fault(self, fault: str) -> Say:
        self.faults.append(fault)
        return Say(f"the script ends here: {fault}")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        model = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = min(int(self.headers.get("content-length") or 0), REQUEST_BYTES_MAX)
                body = self.rfile.read(length)
                read, write = _FORMS.get(self.path.split("?")[0].removeprefix("/v1"), (None, None))
                if read is None or write is None:
                    return self._send(404, {"error": {"message": f"{self.path} is not served here"}})
                request = json.loads(body)
                if request.get("stream"):
                    return self._send(400, {"error": {"message": "this model does not stream"}})
                step = model._answer(read(request), hashlib.sha256(body).hexdigest())
                return self._send(200, write(step))

            def _send(self, status: int, answer: Mapping[str, Any]) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                # A client that was ended meanwhile reads no answer.
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(_text(part) for part in content)
    if isinstance(content, dict):
        return str(content.get("text") or content.get("refusal") or "")
    return "" if content is None else str(content)


def _agent(messages: Sequence[tuple[str, str]]) -> str:
    """Who this is: the last `You are <name>` before anything a tool said."""
    for role, text in messages:
        if role in ("system", "developer"):
            found = re.search(r"You are (?:the )?([a-z_]+)", text)
            if found:
                return found[1]
    return "nobody"


def _read_chat(request: Mapping[str, Any]) -> Turn:
    messages = [(message["role"], _text(message.get("content"))) for message in request["messages"]]
    offered = [tool["function"]["name"] for tool in request.get("tools") or []]
    return Turn(_agent(messages), offered, messages)


def _write_chat(step: Step) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": step.text if isinstance(step, Say) else None}
    calls = [{"name": call.tool, "arguments": json.dumps(dict(call.arguments))} for call in calls_of(step)]
    if calls:
        message["tool_calls"] = [{"id": _id("call"), "type": "function", "function": call} for call in calls]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    answer = {"id": _id("chat"), "object": "chat.completion", "created": 0, "model": "script"}
    return answer | {"choices": [choice], "usage": usage}


def _read_responses(request: Mapping[str, Any]) -> Turn:
    messages = [("system", _text(request.get("instructions")))]
    items = request["input"]
    for item in [{"role": "user", "content": items}] if isinstance(items, str) else items:
        if item.get("type") == "function_call_output":
            messages.append(("tool", _text(item.get("output"))))
        elif "role" in item:
            messages.append((item["role"], _text(item.get("content"))))
    offered = [tool["name"] for tool in request.get("tools") or [] if tool.get("type") == "function"]
    return Turn(_agent(messages), offered, messages)


def _write_responses(step: Step) -> dict[str, Any]:
    output: list[dict[str, Any]]
    if isinstance(step, Say):
        content = [{"type": "output_text", "text": step.text, "annotations": []}]
        message = {"type": "message", "id": _id("msg"), "role": "assistant", "status": "completed"}
        output = [message | {"content": content}]
    else:
        calls = [{"name": call.tool, "arguments": json.dumps(dict(call.arguments))} for call in calls_of(step)]
        called = {"type": "function_call", "status": "completed"}
        output = [called | {"id": _id("fc"), "call_id": _id("call")} | call for call in calls]
    zero = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    usage = zero | {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {
        "id": _id("resp"),
        "object": "response",
        "created_at": 0,
        "status": "completed",
        "model": "script",
        "output": output,
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage,
    }


_COUNT = iter(range(1, 1_000_000))


def _id(kind: str) -> str:
    return f"{kind}_{next(_COUNT)}"


_FORMS: dict[str, tuple[Callable[[Mapping[str, Any]], Turn], Callable[[Step], dict[str, Any]]]] = {
    "/chat/completions": (_read_chat, _write_chat),
    "/responses": (_read_responses, _write_responses),
}
