"""LangGraph: compiled graphs, by name. Their stream modes are events of the same names; `messages` are the usual ones.

https://docs.langchain.com/oss/python/langgraph/streaming. Subgraphs are always included, with their namespace.
`updates` are followed even where nobody asked for them: they tell who waits for a person.

A graph with a checkpointer keeps threads. One run of a process at a time goes on with a thread; the next waits until it
has ended, also where it was stopped and is still busy with that.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import aclosing, closing
from copy import deepcopy
from functools import partial
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from langgraph.channels import BinaryOperatorAggregate
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.errors import EmptyInputError, GraphRecursionError, InvalidUpdateError
from langgraph.pregel import Pregel
from langgraph.types import Command
from msgspec import UNSET
from msgspec.structs import replace

from streaming.errors import Fault, RequestError, UpstreamError
from streaming.events import (
    Checkpoints,
    Custom,
    Debug,
    Events,
    FinishReason,
    GraphEvent,
    Interrupt,
    Tasks,
    Updates,
    Values,
)
from streaming.request import Emit, ProviderSettings, RunRequest, Takes

from . import Item
from .plain import plain
from .runnables import (
    FOR_EVENTS,
    Intake,
    Places,
    Translation,
    check,
    config_of,
    events_of,
    find,
    followed,
    raised_by,
    raised_in,
    tell,
    thread_of,
)
from .worker import Batch, Worker

DEFAULT = ["messages", "updates"]
WAITING = "__interrupt__"
EVENTS: dict[str, type[GraphEvent]] = {
    "values": Values,
    "updates": Updates,
    "custom": Custom,
    "tasks": Tasks,
    "checkpoints": Checkpoints,
    "debug": Debug,
}
# Where LangGraph looks at what it is given, and what it raises where it does not like that, before any node begins.
LIBRARIES = ("langgraph.", "langchain_core.", "pydantic")
LOOKING: Places = {("langgraph.pregel._loop", "_first")}
REFUSING = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    EmptyInputError,
    InvalidUpdateError,
)


class _OfGraph(Translation):
    """What a graph streams; `titles` are those of the schemas that it holds its input against."""

    def __init__(self, what: str, titles: Collection[str], request: RunRequest) -> None:
        super().__init__(what)
        self._request = request
        kept, thread = request.kept_as, request.thread_id
        self._threads = {kept: thread} if kept and thread else {}  # told as its owner calls it, not as it is kept
        self._titles = titles
        self._asked: set[str] = set()
        self._waits = False

    def interrupts(self, interrupts: Iterable[Any], *, outermost: bool) -> Iterator[Item]:
        self._waits = self._waits or outermost
        for one in interrupts:
            if one.id not in self._asked:  # each graph around the one that waits says so too
                self._asked.add(one.id)
                yield Interrupt(one.id, plain(one.value))

    @property
    def reason(self) -> FinishReason:
        if self._waits:
            return "interrupt"
        return "stop" if self.tally.reason == "tool_calls" else self.tally.reason

    def refuses(self, exc: Exception) -> bool:
        by_schema = getattr(exc, "title", None) in self._titles and not self.tally.ended
        if by_schema or raised_in(exc, LOOKING):
            return True
        return isinstance(exc, REFUSING) and not self.tally.begun and raised_by(exc, LIBRARIES)

    def failed_where(self, exc: Exception) -> str:
        node = self.tally.node_of(exc)
        return f"The node {node!r}" if node else self.what

    def fault(self, exc: Exception) -> Fault:
        if isinstance(exc, GraphRecursionError):
            return UpstreamError("graph_failed", f"{self.what} took more steps than its recursion limit allows.")
        return super().fault(exc)


class Parts(_OfGraph):
    """`{type, ns, data}` of its stream modes -> events."""

    def __init__(self, what: str, titles: Collection[str], request: RunRequest, modes: Sequence[str]) -> None:
        super().__init__(what, titles, request)
        self.modes = modes

    def feed(self, part: Any) -> Iterator[Item]:
        mode, ns, data = part["type"], tuple(part["ns"]), part["data"]
        if mode == "messages":
            message, metadata = data
            yield from self.messages.feed(message, metadata.get("langgraph_node", UNSET), ns or UNSET)
        elif mode == "updates" and WAITING in data:
            yield from self.interrupts(data[WAITING], outermost=not ns)
            changed = {name: change for name, change in data.items() if name != WAITING}
            if changed and mode in self.modes:
                yield Updates(ns, plain(changed))
        elif mode in self.modes:
            yield EVENTS[mode](ns, _without_words(plain(data, self._threads)))
        yield from self.tally.news()


def _without_words(data: Any) -> Any:
    """Leave of the errors in a checkpoint, which savers keep as text, their types: their words may hold anything."""
    checkpoint = data.get("payload", data) if isinstance(data, dict) else data
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("tasks"), list):
        for task in checkpoint["tasks"]:
            if isinstance(task, dict) and isinstance(task.get("error"), str):
                task["error"] = task["error"].partition("(")[0]
    return data


class Inside(_OfGraph):
    """`astream_events` -> those events that were asked for. The graph's own tell of interrupts."""

    def feed(self, part: Any) -> Iterator[Item]:
        chunk = part["data"].get("chunk")
        if not part["parent_ids"] and isinstance(chunk, dict) and WAITING in chunk:
            yield from self.interrupts(chunk[WAITING], outermost=True)
        if self._wants(part):
            yield Events((), plain(part, self._threads))
        yield from self.tally.news()

    def _wants(self, part: Any) -> bool:
        """As LangChain's own choice, which would keep the graph's own events from us."""
        names, types, tags = (getattr(self._request, name) for name in FOR_EVENTS)
        if names is types is tags is None:
            return True
        kind = part["event"].removeprefix("on_").rpartition("_")[0]
        return part["name"] in (names or ()) or kind in (types or ()) or not {*part["tags"]}.isdisjoint(tags or ())


class _Graph:
    """A graph, and what it says of itself. `blocks`: its checkpointer is synchronous, so all of it must be."""

    def __init__(self, name: str, pregel: Pregel[Any, Any, Any, Any], *, blocks: bool) -> None:
        self.what = f"The graph {name!r}"
        self.pregel = pregel
        self.blocks = blocks
        self.intake = Intake(pregel)
        self.keeps_threads = isinstance(pregel.checkpointer, BaseCheckpointSaver)
        self.turns: WeakValueDictionary[str | None, asyncio.Lock] = WeakValueDictionary()
        adding = {name for name, channel in pregel.channels.items() if isinstance(channel, BinaryOperatorAggregate)}
        self.takes = Takes(True, {*self.intake.fields}, adding, self.keeps_threads)

    def check(self, request: RunRequest) -> None:
        """Raise RequestError where the graph cannot do what is asked of it."""
        check(request)
        if not self.keeps_threads and (foreign := request.given(("thread_id", "resume"))):
            _refuse(foreign[0], f"`{foreign[0]}` needs a checkpointer, and {_lower(self.what)} has none.")
        if request.resume is None:  # which LangGraph takes for none at all
            _refuse("resume", "`resume` is the answer to an interrupt, and null is none.")
        if request.thread_id is None and (request.resume is not UNSET or request.input is None):
            _refuse("thread_id", "Name the thread that shall go on: `thread_id`.")
        if self.blocks and request.events:
            _refuse("events", f"`events` needs an asynchronous checkpointer, and {_lower(self.what)} has another.")
        if not request.has_own_input and self.intake.fields and "messages" not in self.intake.fields:
            names = ", ".join(f"`{name}`" for name in self.intake.fields)
            _refuse("input", f"{self.what} takes no messages. Send its own `input`, an object with {names}.")

    def input_of(self, request: RunRequest) -> Any:
        return self.intake(request) if request.resume is UNSET else Command(resume=deepcopy(request.resume))

    def stream(self, worker: Worker, request: RunRequest, ended: Callable[[], object]) -> AsyncGenerator[Batch]:
        if request.events:
            inside = Inside(self.what, self.intake.titles, request)
            context = deepcopy(request.context)
            events = partial(events_of, self.pregel, self.input_of, tally=inside.tally, context=context)
            return followed(worker, partial(self._opened, events, request), inside, ended)
        modes = [request.stream_mode] if isinstance(request.stream_mode, str) else request.stream_mode or DEFAULT
        parts = Parts(self.what, self.intake.titles, request, modes)
        stream = self.pregel.stream if self.blocks else self.pregel.astream
        opened = partial(self._opened, partial(self._open, stream, parts), request)
        return followed(worker, opened, parts, ended, blocks=self.blocks)

    def _opened(self, open_: Callable[[RunRequest], Any], request: RunRequest) -> Any:
        """Open the stream of a request, whose messages may be known to its thread already."""
        if not request.since:
            return open_(request)
        return self._after_looking(open_, request) if self.blocks else self._after_alooking(open_, request)

    async def _after_alooking(self, open_: Callable[[RunRequest], Any], request: RunRequest) -> AsyncIterator[Any]:
        known = await self._saver.aget_tuple(thread_of(request))
        async with aclosing(open_(request.news if known else request)) as stream:
            async for part in stream:
                yield part

    def _after_looking(self, open_: Callable[[RunRequest], Any], request: RunRequest) -> Iterator[Any]:
        known = self._saver.get_tuple(thread_of(request))
        with closing(open_(request.news if known else request)) as stream:
            yield from stream

    @property
    def _saver(self) -> BaseCheckpointSaver[Any]:
        assert isinstance(self.pregel.checkpointer, BaseCheckpointSaver)
        return self.pregel.checkpointer

    def _open(self, stream: Callable[..., Any], parts: Parts, request: RunRequest) -> Any:
        return stream(
            self.input_of(request),
            config_of(request, parts.tally),
            context=deepcopy(request.context),
            stream_mode=[*dict.fromkeys([*parts.modes, "updates"])],
            subgraphs=True,
            version="v2",
        )


def _refuse(field: str, text: str) -> NoReturn:
    raise RequestError("invalid_request", text, field=field)


def _lower(what: str) -> str:
    return what[:1].lower() + what[1:]


class Graphs:
    """The configured graphs. `settings.options` are their `module:attr` by name; raises SettingsError for bad ones."""

    def __init__(self, settings: ProviderSettings, worker: Worker) -> None:
        self._worker = worker
        found = find(settings.options, worker, Pregel, "a compiled graph")
        self._graphs = {name: _Graph(name, graph, blocks=worker.call(_blocks(graph))) for name, graph in found.items()}

    def takes(self, name: str) -> Takes:
        return self._graphs[name].takes

    def prepare(self, request: RunRequest) -> RunRequest:
        """Check what is asked of the graph, and name the thread where it keeps some and the request names none."""
        graph = self._graphs[request.model]
        graph.check(request)
        if graph.keeps_threads and request.thread_id is None:
            return replace(request, thread_id=str(uuid.uuid4()))
        return request

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        graph = self._graphs[request.model]
        turn = asyncio.Lock()
        if graph.keeps_threads:
            turn = graph.turns.setdefault(request.kept_as, turn)
        await turn.acquire()
        try:
            stream = graph.stream(self._worker, request, turn.release)
        except Exception:
            turn.release()
            raise
        await tell(stream, emit)


async def _blocks(graph: Pregel[Any, Any, Any, Any]) -> bool:
    """Ask the checkpointer for nothing in particular: a synchronous one says that it cannot be asked so."""
    if not isinstance(graph.checkpointer, BaseCheckpointSaver):
        return False
    try:
        await graph.checkpointer.aget_tuple({"configurable": {"thread_id": "", "checkpoint_ns": ""}})
    except NotImplementedError:
        return True
    except Exception:  # a database that is away will be back, or else each run says so
        return False
    return False
