"""LangGraph: compiled graphs, by name. Their stream modes are events of the same names; `messages` are the usual ones.

https://docs.langchain.com/oss/python/langgraph/streaming. Subgraphs are always included, with their namespace. `tasks`
and `updates` are followed even where nobody asked for them: they tell which node fails, and who waits for a person.

A graph with a checkpointer keeps threads. One run at a time goes on with a thread; the next waits until it has ended,
also where it was stopped and is still busy with that.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.errors import EmptyInputError, GraphRecursionError, InvalidUpdateError
from langgraph.pregel import Pregel
from langgraph.types import Command
from msgspec import UNSET
from msgspec.structs import replace

from streaming.errors import Fault, RequestError, SettingsError, UpstreamError
from streaming.events import (
    Checkpoints,
    Custom,
    Debug,
    FinishReason,
    GraphEvent,
    Interrupt,
    Tasks,
    Updates,
    Values,
)
from streaming.request import ProviderSettings, RunRequest

from . import Item
from .plain import plain
from .runnables import (
    Inside,
    Intake,
    Translation,
    check,
    config_of,
    events_of,
    failure,
    find,
    followed,
    refusal,
)
from .worker import Batch, Worker

DEFAULT = ["messages", "updates"]
EVENTS: dict[str, type[GraphEvent]] = {
    "values": Values,
    "updates": Updates,
    "custom": Custom,
    "tasks": Tasks,
    "checkpoints": Checkpoints,
    "debug": Debug,
}
# What LangGraph raises, before any node begins, where it does not like its input.
REFUSING = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    EmptyInputError,
    InvalidUpdateError,
)


class Parts(Translation):
    """What a graph streams (`{type, ns, data}`) -> events."""

    def __init__(self, what: str, modes: Sequence[str], titles: Collection[str] = ()) -> None:
        super().__init__(what)
        self.modes = modes
        self._titles = titles
        self._begun = False
        self._failed: list[tuple[Any, str]] = []  # what nodes have raised, the innermost first
        self._asked: set[str] = set()
        self._waits = False

    def feed(self, part: Any) -> Iterator[Item]:
        mode, ns, data = part["type"], tuple(part["ns"]), part["data"]
        if mode == "messages":
            message, metadata = data
            yield from self.messages.feed(message, metadata.get("langgraph_node", UNSET), ns or UNSET)
        elif mode == "updates":
            data = {name: change for name, change in data.items() if name != "__interrupt__"}
            yield from self._interrupts(part["data"].get("__interrupt__"), ns)
        elif mode == "tasks":
            self._task(data)
        if mode in self.modes and mode != "messages" and data:
            yield EVENTS[mode](ns, plain(data))
        yield from self.tally.news()

    def _interrupts(self, interrupts: Any, ns: tuple[str, ...]) -> Iterator[Item]:
        if interrupts is None:
            return
        self._waits = self._waits or not ns
        for one in interrupts:
            if one.id not in self._asked:  # each graph around the one that waits says so too
                self._asked.add(one.id)
                yield Interrupt(one.id, plain(one.value))

    def _task(self, task: dict[str, Any]) -> None:
        self._begun = True
        if task.get("error") is not None:
            self._failed.append((task["error"], task["name"]))

    @property
    def reason(self) -> FinishReason:
        if self._waits:
            return "interrupt"
        return "stop" if self.tally.reason == "tool_calls" else self.tally.reason

    def fault(self, exc: Exception) -> Fault:
        if isinstance(exc, GraphRecursionError):
            return UpstreamError("graph_failed", f"{self.what} took more steps than its recursion limit allows.")
        if getattr(exc, "title", None) in self._titles or not self._begun:
            return refusal(exc) if isinstance(exc, REFUSING) else failure(self.what, exc)
        node = next((name for error, name in self._failed if error is exc), None)
        return failure(f"The node {node!r}" if node else self.what, exc)


class _Graph:
    """A graph, and what it says of itself. `blocks`: its checkpointer is synchronous, so all of it must be."""

    def __init__(self, name: str, pregel: Pregel[Any, Any, Any, Any], *, blocks: bool) -> None:
        self.what = f"The graph {name!r}"
        self.pregel = pregel
        self.blocks = blocks
        self.intake = Intake(pregel)
        self.keeps_threads = isinstance(pregel.checkpointer, BaseCheckpointSaver)
        self.turns: WeakValueDictionary[str | None, asyncio.Lock] = WeakValueDictionary()

    def check(self, request: RunRequest) -> None:
        """Raise RequestError where the graph cannot do what is asked of it."""
        check(request)
        if not self.keeps_threads and (foreign := request.given(("thread_id", "resume"))):
            _refuse(foreign[0], f"`{foreign[0]}` needs a checkpointer, and {_lower(self.what)} has none.")
        if request.thread_id is None and (request.resume is not UNSET or request.input is None):
            _refuse("thread_id", "Name the thread that shall go on: `thread_id`.")
        if self.blocks and request.events:
            _refuse("events", f"`events` needs an asynchronous checkpointer, and {_lower(self.what)} has another.")
        if not request.has_own_input and self.intake.fields and "messages" not in self.intake.fields:
            names = ", ".join(f"`{name}`" for name in self.intake.fields)
            _refuse("input", f"{self.what} takes no messages. Send its own `input`, an object with {names}.")

    def input_of(self, request: RunRequest) -> Any:
        return self.intake(request) if request.resume is UNSET else Command(resume=request.resume)

    def stream(self, worker: Worker, request: RunRequest, ended: Callable[[], object]) -> AsyncGenerator[Batch]:
        if request.events:
            inside = Inside(self.what)
            return followed(
                worker, partial(events_of, self.pregel, self.input_of, request, inside.tally), inside, ended
            )
        modes = [request.stream_mode] if isinstance(request.stream_mode, str) else request.stream_mode or DEFAULT
        parts = Parts(self.what, modes, self.intake.titles)
        stream = self.pregel.stream if self.blocks else self.pregel.astream
        return followed(worker, partial(self._open, stream, request, parts), parts, ended, blocks=self.blocks)

    def _open(self, stream: Callable[..., Any], request: RunRequest, parts: Parts) -> Any:
        return stream(
            self.input_of(request),
            config_of(request, parts.tally),
            context=request.context,
            stream_mode=[*dict.fromkeys([*parts.modes, "tasks", "updates"])],
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
        found = find(settings.options, worker)
        if problems := [f"{name}: it is no graph" for name, graph in found.items() if not isinstance(graph, Pregel)]:
            raise SettingsError(*problems)
        self._graphs = {name: _Graph(name, graph, blocks=worker.call(_blocks(graph))) for name, graph in found.items()}

    def prepare(self, request: RunRequest) -> RunRequest:
        """Check what is asked of the graph, and name the thread where it keeps some and the request names none."""
        graph = self._graphs[request.model]
        graph.check(request)
        if graph.keeps_threads and request.thread_id is None:
            return replace(request, thread_id=str(uuid.uuid4()))
        return request

    async def stream(self, request: RunRequest) -> AsyncGenerator[Batch]:
        graph = self._graphs[request.model]
        turn = asyncio.Lock()
        if graph.keeps_threads:
            turn = graph.turns.setdefault(request.thread_id, turn)
        await turn.acquire()
        async with aclosing(graph.stream(self._worker, request, turn.release)) as batches:
            async for batch in batches:
                yield batch


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
