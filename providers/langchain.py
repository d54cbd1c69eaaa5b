"""LangChain: any Runnable, by name, as an answer; or, where `events` are asked for, as what goes on in it.

https://docs.langchain.com/oss/python/langchain. Text and messages are the usual events. A dict that is to be added to
those before it (LangChain's AddableDict) is `updates`; anything else is `values`, the output so far.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import (
    Runnable,
    RunnableAssign,
    RunnableBranch,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase, RunnableEachBase
from langchain_core.runnables.utils import AddableDict

from streaming.errors import RequestError
from streaming.events import Events, Token, Updates, Values
from streaming.request import Emit, ProviderSettings, RunRequest, Takes

from . import Item
from .plain import plain
from .runnables import (
    FOR_EVENTS,
    Intake,
    Translation,
    check,
    config_of,
    events_of,
    find,
    followed,
    tell,
)
from .worker import Worker

FOR_GRAPHS = ("resume", "thread_id", "stream_mode", "context")


class Output(Translation):
    """What a chain yields -> events."""

    def feed(self, part: Any) -> Iterator[Item]:
        if isinstance(part, str):
            yield Token(part)
        elif isinstance(part, BaseMessage):
            yield from self.messages.feed(part)
        else:
            yield (Updates if isinstance(part, AddableDict) else Values)((), plain(part))
        yield from self.tally.news()


class Inside(Translation):
    """The events of `astream_events`, as they are."""

    def feed(self, part: Any) -> Iterator[Item]:
        yield Events((), plain(part))
        yield from self.tally.news()


class _Chain:
    """A chain, and what it says of itself: whether it blocks, and what it takes."""

    def __init__(self, runnable: Runnable[Any, Any]) -> None:
        self.runnable = runnable
        self.blocks = blocks(runnable)
        self.input_of = Intake(runnable)

    def open(self, stream: Callable[..., Any], request: RunRequest, output: Output) -> Any:
        return stream(self.input_of(request), config_of(request, output.tally))


class Chains:
    """The configured chains. `settings.options` are their `module:attr` by name; raises SettingsError for bad ones."""

    def __init__(self, settings: ProviderSettings, worker: Worker) -> None:
        self._worker = worker
        self._chains = {
            name: _Chain(runnable) for name, runnable in find(settings.options, worker, Runnable, "a chain").items()
        }

    def takes(self, name: str) -> Takes:
        return Takes(fields={*self._chains[name].input_of.fields})

    def prepare(self, request: RunRequest) -> RunRequest:
        if foreign := request.given(FOR_GRAPHS):
            text = f"`{foreign[0]}` is for graphs; {request.model} is a chain."
            raise RequestError("invalid_request", text, field=foreign[0])
        check(request)
        if request.events and self._chains[request.model].blocks:
            text = f"`events` needs a chain that streams asynchronously, and {request.model} has another way."
            raise RequestError("invalid_request", text, field="events")
        return request

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        chain, what = self._chains[request.model], f"The chain {request.model!r}"
        if request.events:
            inside = Inside(what)
            asked = {name: getattr(request, name) for name in FOR_EVENTS}
            opened = partial(events_of, chain.runnable, chain.input_of, request, inside.tally, **asked)
            await tell(followed(self._worker, opened, inside), emit)
            return
        output = Output(what)
        stream = chain.runnable.stream if chain.blocks else chain.runnable.astream
        opened = partial(chain.open, stream, request, output)
        await tell(followed(self._worker, opened, output, blocks=chain.blocks), emit)


def blocks(chain: Runnable[Any, Any]) -> bool:
    """Tell whether `chain` streams only in a thread: LangChain's async way would wait for the whole of its output."""
    leaves = [*_leaves(chain)]
    return any(map(_only_blocks, leaves)) and not any(map(_never_blocks, leaves))


def _leaves(chain: Runnable[Any, Any]) -> Iterator[Runnable[Any, Any]]:
    parts = _parts(chain)
    for part in parts:
        yield from _leaves(part)
    if not parts:
        yield chain


def _parts(chain: Runnable[Any, Any]) -> list[Runnable[Any, Any]]:
    match chain:
        case RunnableSequence():
            return chain.steps
        case RunnableParallel():
            return [*chain.steps__.values()]
        case RunnableAssign():
            return [chain.mapper]
        case RunnableBindingBase() | RunnableEachBase():
            return [chain.bound]
        case RunnableWithFallbacks():
            return [*chain.runnables]
        case RunnableBranch():
            return [*(part for branch in chain.branches for part in branch), chain.default]
    return []


def _only_blocks(leaf: Runnable[Any, Any]) -> bool:
    if isinstance(leaf, RunnableGenerator):
        return not hasattr(leaf, "_atransform")
    if isinstance(leaf, RunnableLambda):
        return not hasattr(leaf, "afunc") and inspect.isgeneratorfunction(leaf.func)
    own = type(leaf)
    streams = own.stream is not Runnable.stream or own.transform is not Runnable.transform
    return streams and own.astream is Runnable.astream and own.atransform is Runnable.atransform


def _never_blocks(leaf: Runnable[Any, Any]) -> bool:
    if isinstance(leaf, RunnableGenerator):
        return not hasattr(leaf, "_transform")
    return isinstance(leaf, RunnableLambda) and not hasattr(leaf, "func")
