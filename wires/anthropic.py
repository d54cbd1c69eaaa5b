"""Anthropic's Messages: `POST /v1/messages`, streaming or not.

https://platform.claude.com/docs/en/build-with-claude/streaming. The first event waits for the first content, so that
what fails before is a status, as Anthropic's is.

    event                          becomes
    token, reasoning               deltas of a text or thinking block; a `signature` closes it by a signature_delta
    tool_call_delta, tool_call     a tool_use block; a graph's own calls, which it answers itself, are left out
    done                           message_delta with stop_reason and usage, message_stop; a graph that waits: an error
    error, cancelled               error
    reset                          error: what was sent cannot be taken back
    all others                     nothing

One block is open at a time, as at Anthropic. Its SDKs find blocks by index and would bear more, but LangChain's client
takes a call for over once another block begins. So what is said while a call is being written waits for its end.
A call's input goes out as it is written. If that turns out to be no JSON object, which is all that an input can be, the
answer fails: the SDKs' accumulators would raise, or guess. Of a call that came whole it is {"INVALID_JSON": text}.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET, Struct
from starlette.responses import Response

from streaming.errors import Fault, UpstreamError
from streaming.events import Done, Event, Reasoning, Reset, Start, Terminal, Token, ToolCall, ToolCallDelta
from streaming.followed import Followed

from .anthropic_message import input_of, message, stop, usage, whole
from .anthropic_request import read, verbatim
from .chat import decoded, json_line
from .fold import Asked, Folded, Whole, Wire, no_answer, refusal, status_of, unsayable

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
STOPPED = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
NO_INPUT = "What the model wrote for a tool is no JSON object."
OVERLOADED = 529  # Anthropic's own: its SDKs have an exception for it
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


_decode = msgspec.json.Decoder(dict[str, Any]).decode


def decode(body: bytes) -> Asked:
    """Read a request. Raises RequestError for what cannot be answered here."""
    told = decoded(_decode, body)
    request = read(told)
    form = partial(_form, streams=bool(request.stream))
    return Asked(request.to_chat(), form, bool(request.stream), api="anthropic", verbatim=verbatim(told))


def _form(run: Followed, *, streams: bool) -> Folded | Whole:
    return Folded(Events(run.id), ping=PING, holds=True) if streams else Whole(run, whole)


class _Call(Struct):
    """A call that is being written: the block that is open."""

    index: int
    id: str
    has_input: bool = False

    def goes_on_with(self, event: Event) -> bool:
        if isinstance(event, ToolCall):
            return event.id == self.id
        return isinstance(event, ToolCallDelta) and event.id is UNSET and event.index == self.index


class Events:
    """The fold into events."""

    def __init__(self, run_id: str) -> None:
        self.has_said = False
        self.is_over = False
        self._run_id = run_id
        self._block = -1  # the last one's index
        self._kind = ""  # of the block that is open
        self._call: _Call | None = None
        self._waiting: list[Event] = []  # for the end of the call

    def feed(self, event: Event) -> Iterator[bytes]:
        if type(event) is Token and not self._call:  # most are; isinstance() asks msgspec's metaclass
            if self._kind != "text":
                yield from self._open("text", b'"text":""')
            yield self._delta(b'"text_delta","text":%b' % json_line(event.text))
        elif isinstance(event, Terminal):
            yield from self._end(event)
        elif isinstance(event, Start):
            self._model = event.model
        elif isinstance(event, Reset):
            if self.has_said:
                yield from self._fail(unsayable(event))
        elif self._call and not self._call.goes_on_with(event):
            self._waiting.append(event)
        elif isinstance(event, Reasoning):
            yield from self._think(event)
        elif isinstance(event, ToolCallDelta | ToolCall) and event.node is UNSET:
            yield from self._write(event)

    def _think(self, event: Reasoning) -> Iterator[bytes]:
        if self._kind != "thinking":
            yield from self._open("thinking", b'"thinking":"","signature":""')
        if event.text:
            yield self._delta(b'"thinking_delta","thinking":%b' % json_line(event.text))
        if event.signature:
            yield self._delta(b'"signature_delta","signature":%b' % json_line(event.signature))
            yield from self._close()

    def _write(self, event: ToolCallDelta | ToolCall) -> Iterator[bytes]:
        if not self._call:
            if event.id is UNSET:
                return
            self._call = _Call(event.index if isinstance(event, ToolCallDelta) else -1, event.id)
            named = json_line(event.id), json_line(event.tool or "")
            yield from self._open("tool_use", b'"id":%b,"name":%b,"input":{}' % named)
        if isinstance(event, ToolCall):
            yield from self._whole(self._call, event.args)
        elif event.text:
            self._call.has_input = True
            yield self._input(event.text)

    def _whole(self, call: _Call, args: Any) -> Iterator[bytes]:
        if call.has_input and not isinstance(args, dict):
            yield from self._fail(UpstreamError("upstream_invalid", NO_INPUT))
            return
        if not call.has_input:
            yield self._input(json_line(input_of(args)).decode())
        yield from self._finish()

    def _finish(self) -> Iterator[bytes]:
        """Close a call's block, and say what has waited for that."""
        yield from self._close()
        self._call = None
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            if self.is_over:  # one of them was a call that fails
                return
            yield from self.feed(event)

    def _input(self, text: str) -> bytes:
        return self._delta(b'"input_json_delta","partial_json":%b' % json_line(text))

    def _begin(self) -> Iterator[bytes]:
        if not self.has_said:
            self.has_said = True
            yield _event("message_start", b'"message":%b' % json_line(message(self._run_id, self._model)))

    def _open(self, kind: str, fields: bytes) -> Iterator[bytes]:
        """Open a block in place of the one that is open."""
        yield from self._begin()
        yield from self._close()
        self._kind = kind
        self._block += 1
        block = b'"index":%d,"content_block":{"type":"%b",%b}' % (self._block, kind.encode(), fields)
        yield _event("content_block_start", block)
        # What is the same in each of its deltas.
        self._head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":'
        self._head %= self._block

    def _delta(self, delta: bytes) -> bytes:
        return b"%b%b}}\n\n" % (self._head, delta)

    def _close(self) -> Iterator[bytes]:
        if self._kind:
            self._kind = ""
            yield _event("content_block_stop", b'"index":%d' % self._block)

    def _end(self, event: Terminal) -> Iterator[bytes]:
        if failed := no_answer(event):
            yield from self._fail(failed)
            return
        assert isinstance(event, Done)
        while self._call and not self.is_over:  # it was cut, and there may be another among what has waited
            yield from self._finish()
        if self.is_over:
            return
        yield from self._begin()
        yield from self._close()
        ending = b'"delta":%b,"usage":%b' % (json_line(stop(event.finish_reason)), json_line(usage(event.usage)))
        yield _event("message_delta", ending)
        yield STOPPED

    def _fail(self, fault: Fault) -> Iterator[bytes]:
        self.is_over = True
        yield b"event: error\ndata: %b\n\n" % json_line(error(fault, self._run_id))


def _event(name: str, fields: bytes) -> bytes:
    kind = name.encode()
    return b'event: %b\ndata: {"type":"%b",%b}\n\n' % (kind, kind, fields)


def status(fault: Fault) -> int:
    """Return the status that Anthropic's clients know a fault by."""
    return OVERLOADED if fault.code == "overloaded" else status_of(fault)


def error(fault: Fault, request_id: str | None = None) -> dict[str, Any]:
    """Return the error object of a fault."""
    known = status(fault)
    kind = KINDS.get(known, "invalid_request_error" if known < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": fault.text}, "request_id": request_id}


def tell(fault: Fault) -> Response:
    """Answer a request with the fault it fails by."""
    response = refusal(fault, error(fault))
    response.status_code = status(fault)
    return response


WIRE = Wire(decode, tell, lambda run: {"request-id": run.id}, passes=("anthropic-beta",))
