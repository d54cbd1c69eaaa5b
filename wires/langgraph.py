"""LangGraph's own: what its SDKs and its server say to each other of a run that is streamed.

https://docs.langchain.com/langgraph-platform/streaming, and the SDKs' own sources. Events are named by the modes that
were asked for; a subgraph's, where those were asked for too, `<mode>|<namespace>`. Who comes back names the last `id`:
`<run>-<event>`, and where an event makes several frames, in all but the last of them `<run>-<the event before>.<n>`.

    event                                     becomes
    start                                     metadata: {run_id, thread_id, attempt}
    values, updates, custom, tasks,           themselves, where their mode was asked for
      checkpoints, debug, events
    token, reasoning, tool_*                  messages...: see langgraph_messages.py
    interrupt                                 updates: {__interrupt__}; the values behind it have all of them, too
    done                                      end: {run_id, status}
    error, cancelled                          error: {error, message}; end
    reset                                     error: {error, message}; end: what was sent cannot be taken back
    queued                                    nothing
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any
from urllib.parse import quote
from uuid import UUID

from msgspec import UNSET, UnsetType
from starlette.responses import Response

from streaming.errors import Fault
from streaming.events import (
    Done,
    Event,
    GraphEvent,
    Interrupt,
    Reasoning,
    Reset,
    Start,
    Terminal,
    Token,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Updates,
    Values,
)
from streaming.followed import Followed
from streaming.log import LOST_AT, Cursor, EventLog

from .chat import json_line
from .fold import Folded, Whole, Wire, status_of, unsayable
from .langgraph_messages import Messages
from .langgraph_request import MESSAGES, decode
from .problem import status_headers
from .viewer import failure

WAITING, FAILED = "__interrupt__", "__error__"
SAID = (Token, Reasoning, ToolCallDelta)
LATE = {"first_token_timeout", "idle_timeout", "run_timeout"}
REFUSED = {"invalid_request", "invalid_input"}


def named(run_id: str) -> str:
    """Return a run's id as LangGraph's clients know it, a UUID."""
    return str(UUID(run_id))


def frame(name: str, data: bytes, ns: tuple[str, ...] | UnsetType = UNSET) -> bytes:
    """Return a frame, yet without its id."""
    return b"event: %b\ndata: %b\n\n" % (_event(name, ns), data)


@lru_cache
def _event(name: str, ns: tuple[str, ...] | UnsetType) -> bytes:
    whole = "|".join((name, *(ns or ())))
    return " ".join(whole.splitlines()).encode(errors="replace")  # a node's name may hold what ends a line


class Frames:
    """The fold into frames. `about` is what the run's request asked to be told (langgraph_request.py)."""

    def __init__(self, run_id: str, about: Mapping[str, Any], modes: Sequence[str] = ()) -> None:
        """`modes`, of those that the run was asked for, are to be told; all of them where none are named."""
        asked = about["modes"]
        self.has_said = self.is_over = False
        self._id = named(run_id)
        self._modes = {mode for mode in asked if not modes or mode in modes}
        self._subgraphs = about["subgraphs"]
        names = {"run_id": self._id, "graph_id": about["assistant"], "assistant_id": about["assistant"]}
        self._metadata = {**about["metadata"], **names}
        self._messages: Messages | None = None
        if self._modes & MESSAGES:
            self._messages = Messages(run_id, self._metadata, frame, tuples="messages-tuple" in self._modes)
        self._has_begun = False
        self._state: Any = None
        self._interrupts: list[dict[str, Any]] | None = None  # none where it waits for nobody
        self._untold = False

    def feed(self, event: Event, *, is_passed: bool = False) -> Iterator[bytes]:
        """`is_passed`: its node says more that is ready, so its message as it stood then is of no use."""
        if self.is_over:
            return
        if type(event) is Token or isinstance(event, Token | Reasoning | ToolCallDelta | ToolCall | ToolResult):
            if self._messages and self._wants(event.ns):
                self.has_said = True
                yield from self._messages.feed(event, is_passed=is_passed)
        elif isinstance(event, GraphEvent):
            if self._wants(event.ns):
                yield from self._of_graph(event)
        elif isinstance(event, Interrupt):
            yield from self._asks({"value": event.value, "id": event.id})
        elif isinstance(event, Start):
            yield from self._begin(event)
        elif isinstance(event, Reset) and self.has_said:
            yield from self._fail(unsayable(event), "error")
        elif isinstance(event, Terminal):
            yield from self._end(event)

    def _wants(self, ns: Any) -> bool:
        return self._subgraphs or not ns

    def _begin(self, event: Start) -> Iterator[bytes]:
        """Tell of the first attempt; another, before anything was said, is none to the client."""
        if not self._has_begun:
            self._has_begun = True
            thread = {} if event.thread_id is UNSET else {"thread_id": event.thread_id}
            self._metadata |= thread
            yield frame("metadata", json_line({"run_id": self._id, **thread, "attempt": 1}))

    def _of_graph(self, event: GraphEvent) -> Iterator[bytes]:
        if self._messages and isinstance(event, Updates):
            yield from self._messages.ended(event)
        if event.name in self._modes:
            self.has_said = True
            if isinstance(event, Values) and not event.ns:
                self._state = event.data
                yield from self._values()
            else:
                yield frame(event.name, json_line(event.data), event.ns)

    def _values(self) -> Iterator[bytes]:
        """Tell the state, and what waits for a person in it."""
        state, self._untold = self._state, False
        if self._interrupts is not None:
            state = {**(state if isinstance(state, dict) else {}), WAITING: self._interrupts}
        yield frame("values", json_line(state))

    def _asks(self, *interrupts: dict[str, Any]) -> Iterator[bytes]:
        self._interrupts = [*(self._interrupts or ()), *interrupts]
        self._untold = self.has_said = True
        if "updates" in self._modes:
            yield frame("updates", json_line({WAITING: interrupts}))

    def _end(self, event: Terminal) -> Iterator[bytes]:
        if not isinstance(event, Done):
            failed = failure(event)
            assert failed
            yield from self._fail(failed, status_of_run(event))
            return
        if (
            event.finish_reason == "interrupt" and not self._interrupts
        ):  # it was compiled to stop before or after a node
            yield from self._asks()
        if self._untold and "values" in self._modes:
            yield from self._values()
        if self._messages:
            yield from self._messages.end()
        yield self._last(status_of_run(event))

    def _fail(self, failed: Fault, status: str) -> Iterator[bytes]:
        yield frame("error", json_line({"error": failed.code, "message": failed.text}))
        yield self._last(status)

    def _last(self, status: str) -> bytes:
        self.is_over = True
        return frame("end", json_line({"run_id": self._id, "status": status}))


def status_of_run(ending: Terminal | None, *, waits: bool = False) -> str:
    """Return how a run stands, in LangGraph's words. That its graph waits for a person is its thread's business."""
    if ending is None:
        return "pending" if waits else "running"
    if isinstance(ending, Done):
        return "success"
    if getattr(ending, "code", "") in LATE:
        return "timeout"
    return "error" if ending.name == "error" else "interrupted"


class Numbered(Folded):
    """The form of a run's frames, each with its id. `skip` frames of the first event are left out."""

    def __init__(self, run_id: str, about: Mapping[str, Any], modes: Sequence[str] = (), skip: int = 0) -> None:
        self._frames = Frames(run_id, about, modes)
        self._run_id = run_id.encode()
        self._left_out = skip
        super().__init__(self._frames)

    def pass_over(self, log: EventLog, after: int) -> None:
        for _ in self._fold(log.merged(0, after)):
            pass

    def _fold(self, events: Sequence[tuple[int, Event]]) -> Iterator[tuple[int, list[bytes]]]:
        """Yield the frames of each event. How a message stands is told once of what is ready: else n deltas of nodes
        that speak at once would be n times the message."""
        last: dict[Any, int] = {}
        for seq, event in events:
            if isinstance(event, SAID):
                last[event.ns, event.node] = seq
            elif isinstance(event, Reset | Terminal):
                break
        for seq, event in events:
            is_passed = isinstance(event, SAID) and last.get((event.ns, event.node), 0) > seq
            yield seq, [*self._frames.feed(event, is_passed=is_passed)]

    def take(self, cursor: Cursor) -> bytes:
        before, out = cursor.after, list[bytes]()
        for seq, frames in self._fold(cursor.take()):
            for number, told in enumerate(frames, 1):
                place = b"%d" % seq if number == len(frames) else b"%d.%d" % (before, number)
                out.append(b"id: %b-%b\n%b" % (self._run_id, place, told))
            if self._left_out:
                del out[: self._left_out if seq != LOST_AT else 0]
                self._left_out = 0
            if self._frames.is_over:
                cursor.stop()
                break
            before = seq
        return b"".join(out)


def state(run: Followed) -> Any:
    """Return the state of a graph at its end, and what waits for a person in it; or what it has failed by.

    The latter is an answer like others: its SDKs raise it, unless they are told not to (`raise_error=False`).
    """
    if failed := failure(run.terminal):
        return {FAILED: {"error": failed.code, "message": failed.text}}
    told, interrupts = None, []
    for event in run.log.answer():
        if isinstance(event, Values) and not event.ns:
            told = event.data
        elif isinstance(event, Interrupt):
            interrupts.append({"value": event.value, "id": event.id})
    if not interrupts:
        return told
    return {**(told if isinstance(told, dict) else {}), WAITING: interrupts}


def path_of(run: Followed) -> str:
    """Return where a run is, below the API's own address: its SDKs put that before it."""
    thread = run.about["thread"]
    below = "" if thread is None else f"/threads/{quote(thread, safe='')}"
    return f"{below}/runs/{named(run.id)}"


def tell(fault: Fault) -> Response:
    """Say a fault before the first byte, as LangGraph's server does; what is wrong with a request is a 422 there."""
    status = 422 if fault.code in REFUSED else status_of(fault)
    body = json_line({"detail": fault.text, "code": fault.code})
    return Response(body, status, status_headers(fault), "application/json")


def streaming(thread_id: str | None, longest: float) -> Wire:
    """Return the wire of requests whose run is streamed. A run may go on for `longest` without a viewer, if asked to.

    Both headers are the SDKs': one names the run, by the other they come back.
    """
    read = partial(decode, thread_id=thread_id, form=lambda run: Numbered(run.id, run.about), longest=longest)
    return Wire(read, tell, lambda run: {"Content-Location": path_of(run), "Location": f"{path_of(run)}/stream"})


def waiting(thread_id: str | None, longest: float) -> Wire:
    """Return the wire of requests that wait for the state at the end."""
    read = partial(
        decode, thread_id=thread_id, form=lambda run: Whole(run, state, whatever=True), longest=longest, waits=True
    )
    return Wire(read, tell, lambda run: {"Content-Location": path_of(run)})
