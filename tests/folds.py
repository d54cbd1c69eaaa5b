"""Runs to fold: what a run may say, in every kind and order that a wire must have an answer to; and golden files.

A wire's bytes for each of them stand in tests/golden/<wire>/<run>.txt; `GOLDEN=write` writes them anew.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import UNSET

from streaming.events import (
    Cancelled,
    Checkpoints,
    Custom,
    Debug,
    Done,
    Error,
    Event,
    Events,
    Interrupt,
    Queued,
    Reasoning,
    Reset,
    Start,
    Tasks,
    Token,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Updates,
    Usage,
    Values,
)
from streaming.log import Cursor, EventLog
from wires.fold import Encoder, Folded

from .conftest import ROOT

RUN = "0123456789abcdef0123456789abcdef"
CREATED = 1_795_261_842
GOLDEN = ROOT / "tests" / "golden"
USAGE = Usage(14, 8, cached_tokens=6, reasoning_tokens=2)
ESTIMATE = Usage(3, 4, estimated=True)


def start(provider: str = "openai", model: str = "gpt-4o-mini", thread: str | None = None) -> Start:
    return Start(RUN, provider, model, CREATED, UNSET if thread is None else thread)


def done(reason: Any = "stop", usage: Usage = USAGE, model: str = "gpt-4o-mini-2024-07-18") -> Done:
    return Done(finish_reason=reason, model=model, usage=usage, tokens=3, ttft_ms=20, latency_ms=50)


def error(code: str = "upstream_unavailable", text: str = "The upstream failed.") -> Error:
    return Error(error=text, code=code, retryable=True, usage=ESTIMATE)


def call(number: int, tool: str, args: Any, *parts: str, **where: Any) -> list[Event]:
    """A call as it streams, and whole."""
    first, *rest = parts or ("",)
    return [
        ToolCallDelta(number, first, f"call_{number}", tool, **where),
        *(ToolCallDelta(number, part, **where) for part in rest),
        ToolCall(f"call_{number}", tool, args, **where),
    ]


HELLO: list[Event] = [Token("Hel"), Token("lo, "), Token("world")]
PARIS, ROME = {"city": "Paris"}, {"city": "Rome"}
AGENT: dict[str, Any] = {"node": "model"}
INNER: dict[str, Any] = {"node": "writer", "ns": ("within:1a2b",)}
SIGNATURE = "EqQBCgIYAhIM"
UNICODE = 'Grüße 世界 👩‍👩‍👧‍👦 \u2028 \u2029 \x85 \n "\\" \x00'

RUNS: dict[str, list[Event]] = {
    "text": [start(), *HELLO, done()],
    "nothing": [start(), done()],
    "unicode": [start(), Token(UNICODE), done()],
    "estimated": [start(), *HELLO, done(usage=ESTIMATE)],
    "queued": [Queued(2), Queued(1), start(), *HELLO, done()],
    "reasoning": [start(), Reasoning("Let me "), Reasoning("think."), *HELLO, done()],
    "reasoning-again": [start(), Reasoning("One."), Token("A"), Reasoning("Two."), Token("B"), done()],
    "reasoning-signed": [
        start("anthropic", "claude-haiku-4-5"),
        Reasoning("Let me "),
        Reasoning("think."),
        Reasoning("", signature=SIGNATURE),
        Reasoning("And more."),
        Reasoning("", signature=SIGNATURE + "Q"),
        *call(0, "weather", PARIS, '{"city":"Paris"}'),
        done("tool_calls"),
    ],
    "reasoning-kept-back": [start(), Reasoning("", signature=SIGNATURE), *HELLO, done()],
    "tool": [start(), *call(0, "weather", PARIS, '{"city"', ':"Paris"}'), done("tool_calls")],
    "tool-and-text": [start(), *HELLO, *call(0, "weather", PARIS, '{"city":"Paris"}'), done("tool_calls")],
    "tools-parallel": [
        start(),
        ToolCallDelta(0, "", "call_0", "weather"),
        ToolCallDelta(0, '{"city":'),
        ToolCallDelta(1, "", "call_1", "weather"),
        ToolCallDelta(1, '{"city":"Rome"}'),
        ToolCallDelta(0, '"Paris"}'),
        ToolCall("call_0", "weather", PARIS),
        ToolCall("call_1", "weather", ROME),
        done("tool_calls"),
    ],
    "tools-in-turn": [
        start(),
        *call(0, "weather", PARIS, '{"city":', '"Paris"}'),
        *call(1, "weather", ROME, '{"city":"Rome"}'),
        done("tool_calls"),
    ],
    "tool-whole": [start(), ToolCall("call_7", "weather", PARIS), done("tool_calls")],
    "tool-without-arguments": [start(), *call(0, "now", {}), done("tool_calls")],
    "tool-not-json": [start(), *call(0, "weather", '{"city"', '{"city"'), done("tool_calls")],
    "tool-cut": [start(), ToolCallDelta(0, '{"ci', "call_0", "weather"), done("length")],
    "tool-answered": [
        start("scripted", "tools"),
        Token("Let me look."),
        *call(0, "weather", PARIS, '{"city":"Paris"}'),
        ToolResult("call_0", "weather", {"sky": "clear"}),
        Token("It is clear."),
        done(model="tools"),
    ],
    "length": [start(), *HELLO, done("length")],
    "filtered": [start(), *HELLO, done("content_filter")],
    "agent": [
        start("langgraph", "agent", "thread-1"),
        Values((), {"messages": []}),
        *call(0, "weather", PARIS, '{"city"', ':"Paris"}', **AGENT),
        Updates((), {"model": {"messages": ["asks"]}}),
        ToolResult("call_0", "weather", "clear", node="tools"),
        Updates((), {"tools": {"messages": ["clear"]}}),
        Token("It is ", **AGENT),
        Token("clear.", **AGENT),
        Updates((), {"model": {"messages": ["says"]}}),
        done(model="agent"),
    ],
    "nodes": [
        start("langgraph", "parallel"),
        Token("A", node="one"),
        Token("B", node="two"),
        Token("C", node="one"),
        Token("D", **INNER),
        Reasoning("E", **INNER),
        Token("F", **INNER),
        done(model="parallel"),
    ],
    "modes": [
        start("langgraph", "telling", "thread-1"),
        Values((), {"step": 0}),
        Tasks((), {"id": "t1", "name": "tell", "input": {}, "triggers": ["start"]}),
        Custom((), {"progress": 0.5}),
        Updates(("within:1a2b",), {"tell": {"step": 1}}),
        Tasks((), {"id": "t1", "name": "tell", "result": {"step": 1}}),
        Values((), {"step": 1}),
        Values(("within:1a2b",), {"step": 9}),
        Checkpoints((), {"config": {}}),
        Debug((), {"type": "task"}),
        Events((), {"event": "on_chain_start"}),
        done(model="telling"),
    ],
    "interrupt": [
        start("langgraph", "asking", "thread-1"),
        Token("Before I send it: ", node="ask"),
        Values((), {"messages": []}),
        Interrupt("i1", {"question": "Send it?"}),
        done("interrupt", model="asking"),
    ],
    "moved-on-before": [start(), start("anthropic", "claude-haiku-4-5"), *HELLO, done(model="claude-haiku-4-5")],
    "reset": [
        start(),
        Token("Half an ans"),
        Reset("upstream_incomplete"),
        start("anthropic", "claude-haiku-4-5"),
        *HELLO,
        done(model="claude-haiku-4-5"),
    ],
    "reset-of-a-tool": [
        start(),
        ToolCallDelta(0, '{"ci', "call_0", "weather"),
        Reset("upstream_incomplete"),
        start("anthropic", "claude-haiku-4-5"),
        *HELLO,
        done(model="claude-haiku-4-5"),
    ],
    "error-at-once": [start(), error()],
    "error-in-line": [Queued(1), error("overloaded", "No place became free within 60 s.")],
    "error-late": [start(), *HELLO, error("upstream_incomplete", "The upstream ended without finishing its answer.")],
    "error-in-a-tool": [start(), ToolCallDelta(0, '{"ci', "call_0", "weather"), error("idle_timeout", "Silence.")],
    "cancelled-at-once": [start(), Cancelled(reason="requested", usage=Usage())],
    "cancelled-late": [start(), *HELLO, Cancelled(reason="requested", usage=ESTIMATE)],
    "disconnected": [start(), Reasoning("Let me"), Cancelled(reason="disconnected", usage=ESTIMATE)],
    "draining": [start(), *HELLO, Cancelled(reason="draining", usage=ESTIMATE)],
}


def log_of(events: Iterable[Event]) -> EventLog:
    log = EventLog(RUN)
    log.append([*events])
    return log


def folded(form: Folded, events: Iterable[Event], after: int = 0) -> bytes:
    """Return what a viewer who comes when all is over is told, from behind event `after`."""
    cursor, out = Cursor(log_of(events), after), b""
    while not cursor.ended:
        out += form.take(cursor)
    return out


def piecemeal(form: Folded, events: Sequence[Event]) -> list[bytes]:
    """Return what a viewer is told who takes each event as it comes, a piece for each."""
    log = EventLog(RUN)
    cursor, out = Cursor(log), []
    for event in events:
        log.append([event])
        out.append(form.take(cursor))
    return out


def check_golden(wire: str, name: str, told: bytes) -> None:
    """Hold a wire's bytes for a run against the file that they are to be."""
    path = GOLDEN / wire / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(told)
    assert told == path.read_bytes(), f"{path} says otherwise"


def every_frame(make: Callable[[], Encoder]) -> dict[str, bytes]:
    """Fold every run by a new encoder each, unmerged."""
    return {name: folded(Folded(make(), merges=False), events) for name, events in RUNS.items()}
