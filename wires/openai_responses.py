"""OpenAI's Responses: `POST /v1/responses`, streaming or not, and `/v1/responses/{id}` to come back to one.

https://platform.openai.com/docs/api-reference/responses-streaming. Events are numbered, so none are merged, and who
comes back names the last it has seen. The first waits for the first content: what fails before is a status, which SDKs
know by class and try again, and whoever answers in the end is the `model` of all events. Reasoning is told as a
summary, the form of it that clients read (LangChain no other).

    event                          becomes
    token                          a message: output_item, content_part, output_text
    reasoning                      a reasoning item: output_item, reasoning_summary_part, reasoning_summary_text
    tool_call_delta, tool_call     a function call: output_item, function_call_arguments; not of a graph's own
    done                           response.completed; cut short or filtered, response.incomplete; a graph that waits
                                   for a person: an error
    error, cancelled, reset        error (told flat as its type has it, and nested as SDKs read it), response.failed
    all others                     nothing
"""

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from functools import partial
from typing import Any

from streaming.errors import Fault, RequestError
from streaming.events import (
    Cancelled,
    Done,
    Error,
    Event,
    Reasoning,
    Reset,
    Start,
    Terminal,
    Token,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from streaming.followed import Followed

from .chat import json_line
from .fold import Asked, Folded, Whole, Wire, no_answer, unsayable
from .openai import Calls, error, given, tell
from .openai_response import CALL, MESSAGE, REASONING, Item, Kind, Object, done, failed, response
from .openai_responses_request import read

ABOUT = "openai_responses"  # where, in what is kept with a run, stands what its response says of its request


def decode(body: bytes) -> Asked:
    """Read a request. Raises RequestError for what cannot be answered here."""
    chat, streams, about, verbatim = read(body)
    form = partial(_form, streams=streams)
    return Asked(chat, form, streams, api="openai_responses", verbatim=verbatim, about={ABOUT: about})


def _form(run: Followed, *, streams: bool) -> Folded | Whole:
    return Folded(_fold(run), holds=True, merges=False) if streams else Whole(run, _whole)


def again(run: Followed, starting_after: str | None) -> Folded:
    """Return the form of a viewer who comes back behind the event of that number. Raises RequestError if it is none."""
    if starting_after is not None and not (starting_after.isascii() and starting_after.isdigit()):
        text = "`starting_after` is the `sequence_number` of an event."
        raise RequestError("invalid_request", text, field="starting_after")
    seen = 0 if starting_after is None else int(starting_after[:18]) + 1
    return Folded(_fold(run), merges=False, skip=seen)


def snapshot(run: Followed) -> Object:
    """Return the response of a run, as it stands."""
    events = _fold(run)
    for event in run.log.answer():
        deque(events.feed(event), 0)
    if run.has_asked:
        return events.response
    return {**events.response, "status": "queued", "model": run.answer.model, "created_at": int(run.created)}


def _whole(run: Followed) -> Object:
    if fault := no_answer(run.terminal):
        raise fault
    return snapshot(run)


def _fold(run: Followed) -> "Events":
    return Events(run.id, run.about.get(ABOUT, {}))


class Events:
    """The fold into events. `about` is what the response says of its request."""

    def __init__(self, run_id: str, about: Mapping[str, Any] = {}) -> None:
        self.has_said = False
        self.is_over = False
        self._run_id = run_id
        self._about = about
        self._count = 0
        self._created, self._model = 0, ""
        self._items: list[Item] = []
        self._calls = Calls()
        self._called: list[Item] = []
        self._writing: Item | None = None  # a message, or reasoning
        self._ending: Object = {}

    @property
    def response(self) -> Object:
        """The response as it stands."""
        return response(self._run_id, self._created, self._model, self._items, self._about, self._ending)

    def feed(self, event: Event) -> Iterator[bytes]:
        if type(event) is Token:  # most are; isinstance() asks msgspec's metaclass
            yield from self._write(MESSAGE, event.text)
        elif isinstance(event, Reasoning):
            yield from self._write(REASONING, event.text)
        elif isinstance(event, ToolCallDelta | ToolCall):
            yield from self._call(event)
        elif isinstance(event, Start):
            self._created, self._model = event.created, event.model
        elif isinstance(event, Reset) and self.has_said:
            yield from self._fail(unsayable(event))
        elif isinstance(event, Terminal):
            yield from self._end(event)

    def _say(self, name: bytes, fields: bytes) -> bytes:
        self._count += 1
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (name, name, self._count - 1, fields)

    def _tell(self, name: bytes) -> bytes:
        return self._say(name, b'"response":%b' % json_line(self.response))

    def _begin(self) -> Iterator[bytes]:
        if not self._count:
            yield self._tell(b"response.created")
            yield self._tell(b"response.in_progress")

    def _write(self, kind: Kind, text: str) -> Iterator[bytes]:
        if not text:
            return
        if (item := self._writing) is None or item.kind is not kind:
            yield from self._close()
            item = self._writing = yield from self._open(kind)
        yield self._more(item, text)

    def _call(self, event: ToolCallDelta | ToolCall) -> Iterator[bytes]:
        if (said := self._calls.take(event)) is None:
            return
        if said.is_new:
            yield from self._close()
            call = {"call_id": str(event.id), "name": given(event.tool)}
            self._called.append((yield from self._open(CALL, call)))
        item = self._called[said.place]
        if said.arguments:
            yield self._more(item, said.arguments)
        if isinstance(event, ToolCall):
            yield from self._done(item)

    def _open(self, kind: Kind, call: Mapping[str, str] = {}) -> Generator[bytes, None, Item]:
        yield from self._begin()
        self.has_said = True
        item = Item(kind, self._run_id, len(self._items), call)
        self._items.append(item)
        yield self._say(b"response.output_item.added", b'%b,"item":%b' % (item.index, json_line(item.told())))
        if kind.part:
            yield self._say(kind.part + b".added", b'%b,"part":%b' % (item.here, json_line(item.part)))
        return item

    def _more(self, item: Item, text: str) -> bytes:
        item.texts.append(text)
        self._count += 1
        return item.delta % (self._count - 1, json_line(text))

    def _close(self) -> Iterator[bytes]:
        if self._writing:
            yield from self._done(self._writing)
            self._writing = None

    def _done(self, item: Item, status: str = "completed") -> Iterator[bytes]:
        item.status, kind = status, item.kind
        text = b'%b,"%b":%b%b' % (item.here, kind.field, json_line(item.text), kind.more)
        yield self._say(kind.text + b".done", text)
        if kind.part:
            yield self._say(kind.part + b".done", b'%b,"part":%b' % (item.here, json_line(item.part)))
        yield self._say(b"response.output_item.done", b'%b,"item":%b' % (item.index, json_line(item.told())))

    def _end(self, event: Terminal) -> Iterator[bytes]:
        assert isinstance(event, Done | Error | Cancelled)
        if fault := no_answer(event):
            yield from self._fail(fault, event.usage)
        elif isinstance(event, Done):
            yield from self._begin()
            self.has_said = True
            self._model, self._ending = event.model, done(event)
            for item in self._items:
                if item.is_open:
                    yield from self._done(item, self._ending["status"])
            yield self._tell(b"response.%b" % self._ending["status"].encode())

    def _fail(self, fault: Fault, counted: Usage | None = None) -> Iterator[bytes]:
        yield from self._begin()
        self.is_over = True
        for item in self._items:
            item.status = "incomplete" if item.is_open else item.status
        self._ending = failed(fault, counted)
        nested = error(fault)
        flat = {name: nested["error"][name] for name in ("code", "message", "param")}
        yield self._say(b"error", json_line(flat | nested)[1:-1])
        yield self._tell(b"response.failed")


WIRE = Wire(decode, tell, lambda run: {"X-Request-Id": run.id})
