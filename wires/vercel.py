"""The Vercel AI SDK's UI message stream: `POST /ui/chat`, and `GET /ui/chat/{id}/stream` to take it up again.

https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol. Data-only events and `[DONE]`; what is sent is what `ai` 5, 6 and 7
all take. A client counts chunks (`startIndex`), so an event makes the same ones each time. What fails is told in band,
and `finish` ends every stream: to its clients a stream without is an answer.

    event                        becomes
    start                        nothing by itself: `start`, `start-step` come with the first that is not transient
    token, reasoning             text-*, reasoning-*: a part for each node that speaks
    tool_call_delta, tool_call   tool-input-start, -delta, -available (-error where it is not JSON); the calls of a
                                 graph, which it answers itself, are `providerExecuted`
    tool_result                  tool-output-available, and a new step before what follows
    values ... events            data-<name> {ns, data}; the newest `values` replaces the one before
    interrupt, queued            data-interrupt {id, value}; data-queued {position}, transient
    done                         finish-step, message-metadata, finish
    cancelled                    the same with `abort` where somebody asked for it, else an error
    error                        the same with `data-error` (transient: code, retryable) and `error`
    reset                        an error: what was sent cannot be taken back; nothing where nothing was
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec import UNSET, UnsetType
from msgspec.structs import replace
from starlette.responses import Response

from streaming.errors import Fault, RequestError
from streaming.events import (
    Cancelled,
    Done,
    Error,
    Event,
    GraphEvent,
    Interrupt,
    Queued,
    Reasoning,
    Reset,
    Start,
    Terminal,
    Token,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Updates,
    Usage,
    Values,
)
from streaming.followed import Followed
from streaming.request import RunRequest, Takes

from .chat import json_line
from .fold import Asked, Folded, Wire, status_of, unsayable
from .problem import status_headers
from .vercel_request import CONTINUED, read
from .viewer import failure

DONE = b"data: [DONE]\n\n"
FINISH = b'data: {"type":"finish"}\n\n'
ABORT = b'data: {"type":"abort"}\n\n'
START_STEP = b'data: {"type":"start-step"}\n\n'
FINISH_STEP = b'data: {"type":"finish-step"}\n\n'
EXECUTED = b',"providerExecuted":true'
NOT_JSON = b"The arguments are not JSON."
NOTHING: Mapping[str, Any] = MappingProxyType({})
REASONS = {"tool_calls": "tool-calls", "content_filter": "content-filter"}

Source = tuple[str | UnsetType, tuple[str, ...] | UnsetType]  # a node, and the namespace it is in


class _Part(NamedTuple):
    """A part that is open; `delta` is its next chunk up to the text."""

    kind: bytes
    delta: bytes
    end: bytes


class Chunks:
    """The fold into chunks. `continued` is what the request has said of the message that is continued, if one is."""

    def __init__(self, continued: Mapping[str, Any] | None) -> None:
        self.has_said = False
        self.is_over = False
        self._goes_on = continued is not None
        self._told: set[str] = {*(continued or NOTHING).get("calls", ())}
        self._known: dict[str, Any] = {}
        self._parts: dict[Source, _Part] = {}
        self._count = 0
        self._calls: dict[tuple[str | UnsetType, tuple[str, ...] | UnsetType, int], bytes] = {}
        self._streamed: set[str] = set()
        self._has_answered = False

    def feed(self, event: Event) -> Iterator[bytes]:
        if isinstance(event, Token):
            yield from self._say(b"text", event)
        elif isinstance(event, Reasoning):
            yield from self._say(b"reasoning", event) if event.text else self._close((event.node, event.ns))
        elif isinstance(event, ToolCallDelta):
            yield from self._call_delta(event)
        elif isinstance(event, ToolCall):
            yield from self._call(event)
        elif isinstance(event, ToolResult):
            yield from self._result(event)
        elif isinstance(event, GraphEvent | Interrupt):
            yield from self._show(event)
        elif isinstance(event, Queued):
            yield b'data: {"type":"data-queued","data":%b,"transient":true}\n\n' % json_line(event)
        elif isinstance(event, Start):
            self._know(event)
        elif isinstance(event, Reset) and self.has_said:
            self.is_over = True
            yield from self._fail(unsayable(event))
        elif isinstance(event, Terminal):
            yield from self._end(event)

    def _know(self, event: Start) -> None:
        self._known = {"run": event.run, "provider": event.provider, "model": event.model}
        if event.thread_id is not UNSET:
            self._known["thread_id"] = event.thread_id

    def _begin(self) -> Iterator[bytes]:
        """Begin the message, unless it was. One that is continued keeps its id: a new one would make it another."""
        if not self.has_said:
            self.has_said = True
            name = b"" if self._goes_on else b'"messageId":"%b",' % self._known["run"].encode()
            yield b'data: {"type":"start",%b"messageMetadata":%b}\n\n' % (name, json_line(self._known))
            yield START_STEP

    def _step(self) -> Iterator[bytes]:
        """Begin a new step where tools have answered, for what the model makes of that."""
        yield from self._begin()
        if self._has_answered:
            self._has_answered = False
            yield from self._close()
            yield FINISH_STEP
            yield START_STEP

    def _say(self, kind: bytes, event: Token | Reasoning) -> Iterator[bytes]:
        source = (event.node, event.ns)
        part = self._parts.get(source)
        if part is None or part.kind is not kind:
            yield from self._close(source)
            yield from self._step()
            name = b"%d" % self._count
            self._count += 1
            part = self._parts[source] = _Part(
                kind,
                b'data: {"type":"%b-delta","id":"%b","delta":' % (kind, name),
                b'data: {"type":"%b-end","id":"%b"}\n\n' % (kind, name),
            )
            yield b'data: {"type":"%b-start","id":"%b"%b}\n\n' % (kind, name, _metadata(*source))
        yield part.delta + json_line(event.text) + b"}\n\n"

    def _close(self, source: Source | None = None) -> Iterator[bytes]:
        """End the part that is open of a source, or all."""
        for one in [*self._parts] if source is None else [source]:
            if part := self._parts.pop(one, None):
                yield part.end

    def _call_delta(self, event: ToolCallDelta) -> Iterator[bytes]:
        place = (event.node, event.ns, event.index)
        if event.id is not UNSET:
            yield from self._next(event)
            self._calls[place] = call = json_line(event.id)
            self._streamed.add(event.id)
            tool = "" if event.tool is UNSET else event.tool
            yield b'data: {"type":"tool-input-start","toolCallId":%b,"toolName":%b%b}\n\n' % (
                call,
                json_line(tool),
                _own(event),
            )
        if event.text:
            head = b'data: {"type":"tool-input-delta","toolCallId":%b,"inputTextDelta":' % self._calls[place]
            yield head + json_line(event.text) + b"}\n\n"

    def _call(self, event: ToolCall) -> Iterator[bytes]:
        if event.id not in self._streamed:
            yield from self._next(event)
        self._told.add(event.id)
        yield _input(event.id, event.tool, event.args, _own(event) + _metadata(event.node, event.ns))

    def _next(self, event: ToolCallDelta | ToolCall) -> Iterator[bytes]:
        yield from self._close((event.node, event.ns))
        yield from self._step()

    def _result(self, event: ToolResult) -> Iterator[bytes]:
        """Tell what came of a call; of one that was not told here the client must know first."""
        yield from self._begin()
        if event.id not in self._told:
            self._told.add(event.id)
            yield _input(event.id, event.tool or "tool", {}, EXECUTED + _metadata(event.node, event.ns))
        self._has_answered = True
        output = json_line(event.id), json_line(event.content), EXECUTED
        yield b'data: {"type":"tool-output-available","toolCallId":%b,"output":%b%b}\n\n' % output

    def _show(self, event: GraphEvent | Interrupt) -> Iterator[bytes]:
        yield from self._begin()
        name = b""
        if isinstance(event, Updates) and isinstance(event.data, dict):  # these nodes have said all
            for node in event.data:
                yield from self._close((node, event.ns or UNSET))
        if isinstance(event, Values):
            name = b',"id":%b' % json_line("/".join(["values", *event.ns]))
        elif isinstance(event, Interrupt):
            name = b',"id":%b' % json_line(event.id)
        yield b'data: {"type":"data-%b"%b,"data":%b}\n\n' % (event.name.encode(), name, json_line(event))

    def _end(self, event: Terminal) -> Iterator[bytes]:
        if isinstance(event, Done):
            yield from self._begin()
            yield from self._finish(_of_done(event))
        elif isinstance(event, Cancelled) and event.reason == "requested":
            yield from self._finish({"finishReason": "cancelled", "usage": _usage(event.usage)})
            yield ABORT
        else:
            assert isinstance(event, Error | Cancelled)
            failed = failure(event)
            assert failed
            yield from self._fail(failed, {"usage": _usage(event.usage)})
            return
        yield FINISH
        yield DONE

    def _finish(self, known: Mapping[str, Any]) -> Iterator[bytes]:
        """Close what is open of the message, and say what is known of it; where nothing was said there is none."""
        if self.has_said:
            yield from self._close()
            yield FINISH_STEP
            yield b'data: {"type":"message-metadata","messageMetadata":%b}\n\n' % json_line({**self._known, **known})

    def _fail(self, failed: Fault, known: Mapping[str, Any] = NOTHING) -> Iterator[bytes]:
        yield from self._finish({"finishReason": "error", **known})
        told = {"code": failed.code, "error": failed.text, "retryable": failed.retryable}
        yield b'data: {"type":"data-error","data":%b,"transient":true}\n\n' % json_line(told)
        yield b'data: {"type":"error","errorText":%b}\n\n' % json_line(failed.text)
        yield FINISH
        yield DONE


def _own(event: ToolCallDelta | ToolCall) -> bytes:
    """Return what keeps a client from executing a call that a graph's node makes: that graph answers it."""
    return b"" if event.node is UNSET else EXECUTED


def _metadata(node: str | UnsetType, ns: tuple[str, ...] | UnsetType) -> bytes:
    """Tell which node of a graph a part is from."""
    if node is UNSET:
        return b""
    where = {"node": node} if ns is UNSET else {"node": node, "ns": ns}
    return b',"providerMetadata":{"sidestream":%b}' % json_line(where)


def _input(call_id: str, tool: str, args: Any, more: bytes) -> bytes:
    head = b'"toolCallId":%b,"toolName":%b,"input":%b%b' % (json_line(call_id), json_line(tool), json_line(args), more)
    if isinstance(args, str):
        return b'data: {"type":"tool-input-error",%b,"errorText":"%b"}\n\n' % (head, NOT_JSON)
    return b'data: {"type":"tool-input-available",%b}\n\n' % head


def _of_done(event: Done) -> dict[str, Any]:
    """Return what is known of an answer that is whole."""
    known: dict[str, Any] = {
        "model": event.model,
        "finishReason": REASONS.get(event.finish_reason, event.finish_reason),
        "usage": _usage(event.usage),
        "ttft_ms": event.ttft_ms,
        "latency_ms": event.latency_ms,
    }
    return known if event.skipped_chunks is UNSET else {**known, "skipped_chunks": event.skipped_chunks}


def _usage(counted: Usage) -> dict[str, Any]:
    """Return the usage as the SDK has it; of an estimate it says so."""
    told: dict[str, Any] = {
        "inputTokens": counted.input_tokens,
        "outputTokens": counted.output_tokens,
        "totalTokens": counted.input_tokens + counted.output_tokens,
    }
    if counted.cached_tokens is not UNSET:
        told["cachedInputTokens"] = counted.cached_tokens
    if counted.reasoning_tokens is not UNSET:
        told["reasoningTokens"] = counted.reasoning_tokens
    return told | ({"estimated": True} if counted.estimated is True else {})


def name_of(chat_id: str) -> str:
    """Return what the runs of a chat are called."""
    return f"ui:{chat_id}" if chat_id else ""


def decode(body: bytes) -> Asked:
    """Read a request. Raises RequestError for what cannot be answered here."""
    said = read(body)
    return Asked(said.chat, form, name=name_of(said.chat_id), about=said.about, fit=partial(_fit, said.since))


def _fit(since: int, request: RunRequest, takes: Takes | None) -> RunRequest:
    """Say to a graph that keeps threads from where on the messages are new to one."""
    return replace(request, since=since) if takes and takes.keeps_threads else request


def form(run: Followed, skip: int = 0) -> Folded:
    """Tell a run, but for its first `skip` chunks."""
    return Folded(Chunks(run.about.get(CONTINUED)), merges=False, skip=skip)


def replay(run: Followed) -> Folded:
    """Tell a run from its beginning to a client who comes back, and builds the message anew: it knows of no calls."""
    return Folded(Chunks(None if run.about.get(CONTINUED) is None else NOTHING), merges=False)


def behind(run: Followed, start_index: str) -> tuple[Folded, dict[str, str]]:
    """Tell a run from behind the chunks that a client has; less than 0: so many of the last ones. With its headers.

    Raises RequestError where that is no number.
    """
    if not re.fullmatch("-?[0-9]{1,9}", start_index):
        raise RequestError("invalid_request", "`startIndex` is a number of chunks.", field="startIndex")
    if (skip := int(start_index)) >= 0:
        return form(run, skip), headers(run)
    told = _count(run)
    return form(run, max(told + skip, 0)), {**headers(run), "X-Workflow-Stream-Tail-Index": str(told - 1)}


def _count(run: Followed) -> int:
    """Return how many chunks there are of what a run has said so far; clients do not count `[DONE]`."""
    chunks = Chunks(run.about.get(CONTINUED))
    return sum(chunk != DONE for event in run.log.read(0) if not chunks.is_over for chunk in chunks.feed(event))


def headers(run: Followed) -> dict[str, str]:
    """Return what tells the SDK what this is, and its WorkflowChatTransport where to take it up again."""
    return {"X-Vercel-AI-UI-Message-Stream": "v1", "X-Workflow-Run-Id": run.id}


def tell(failed: Fault) -> Response:
    """Say what is wrong in plain words: the SDK shows the whole body as the error's message."""
    text = failed.text.encode("utf-8", "replace")
    return Response(text, status_of(failed), status_headers(failed), "text/plain; charset=utf-8")


WIRE = Wire(decode, tell, headers, takes_text=True)
