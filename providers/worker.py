"""Where chains and graphs run: a thread with an event loop of its own, and a bounded pool for what blocks.

They are the operator's code, and much of it blocks: a node that sleeps, a tool that reads a file, a checkpointer that
waits for its database, in async functions too. Here it holds up its like, never the service's loop. What they make
comes over through a channel: bounded, in order, nothing lost. It knows nothing of what runs in it.
"""

import asyncio
import logging
import re
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, aclosing, closing, suppress
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar
from weakref import WeakSet

from . import Item
from .pool import BrokenOff, Executor, Pool

logger = logging.getLogger("sidestream")
Value = TypeVar("Value")
Batch = list[Item]
MOST = 256  # items that wait to be taken; then who makes them waits
LIBRARIES = re.compile(r"[/\\](langchain_core|langgraph)[/\\]")
CLOSE_TIMEOUT = 1.0  # what is cancelled has so long, in seconds, to close its connections before its viewers are told


# The tasks that LangChain and LangGraph have made in the course of one stream. Others' may be meant to outlive it.
_spawned: ContextVar[WeakSet[asyncio.Task[Any]] | None] = ContextVar("spawned", default=None)


def _task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    task = asyncio.Task(coro, loop=loop, **options)
    code = getattr(coro, "cr_code", None)
    if (spawned := _spawned.get()) is not None and code and LIBRARIES.search(code.co_filename):
        spawned.add(task)
    return task


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody has caught, by its type: its words may hold a prompt or a key."""
    logger.error("in chains and graphs: %s (%s)", context.get("message"), type(context.get("exception")).__name__)


def _nothing() -> None:
    """For who wants no call."""


class Left(Exception):
    """Nobody takes what is made: whoever makes it can stop."""


class Channel:
    """From one thread to the loop in which the channel was made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._ready = asyncio.Event()
        self._items: Batch = []
        self._room: Future[None] | None = None
        self._left = False
        self.over: asyncio.Future[Exception | None] = self._loop.create_future()

    def put(self, items: Batch) -> Future[None] | None:
        """Add items; where that fills it, return what is done once there is room. Raises Left."""
        with self._lock:
            if self._left:
                raise Left
            if not self._items:
                self._loop.call_soon_threadsafe(self._ready.set)
            self._items += items
            self._room = Future() if len(self._items) >= MOST else None
            return self._room

    def close(self, work: "Future[None] | asyncio.Future[None]") -> None:
        """Say that nothing follows, since `work` is done. The loop may be gone by then."""
        raised = None if work.cancelled() else work.exception()
        fault = raised if raised is None or isinstance(raised, Exception) else BrokenOff(raised)
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._close, fault)

    def _close(self, fault: Exception | None) -> None:
        self.over.set_result(fault)
        self._ready.set()

    async def take(self) -> Batch:
        """Return all there is, as soon as there is something; empty once it is closed. Raises what it was closed by."""
        while not self.over.done():
            await self._ready.wait()
            self._ready.clear()
            if items := self._empty():
                return items
        items, fault = self._empty(), self.over.result()
        if fault and not items:
            raise fault
        return items

    def leave(self) -> None:
        """Take no more. Idempotent."""
        self._left = True
        self._empty()

    def _empty(self) -> Batch:
        with self._lock:
            items, self._items = self._items, []
            room, self._room = self._room, None
        if room and room.set_running_or_notify_cancel():
            room.set_result(None)
        return items


class Worker:
    """The thread, its loop and the pool; started with the first that needs them. `close` it in the end."""

    def __init__(self, threads: int) -> None:
        self._pool = Pool(threads)
        self._executor = Executor(self._pool, Pool(threads))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._streaming: set[asyncio.Task[None]] = set()
        self._held: list[tuple[asyncio.Event, asyncio.Task[None]]] = []

    def call(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """Run it over there and return what it returns. Blocks: not for a loop that serves."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._running()).result()

    async def enter(self, context: AbstractAsyncContextManager[Value]) -> Value:
        """Enter a context for as long as the worker is open. To be awaited over there."""
        entered: asyncio.Future[Value] = asyncio.get_running_loop().create_future()
        leave = asyncio.Event()
        self._held.append((leave, asyncio.create_task(_hold(context, entered, leave))))
        return await entered

    async def stream(
        self,
        make: Callable[[], AsyncGenerator[Batch]],
        ended: Callable[[], object] = _nothing,
        stop: Callable[[], object] = _nothing,
    ) -> AsyncGenerator[Batch]:
        """Yield what `make` makes over there, in a task of its own; closing this calls `stop` and cancels the task.

        `ended` is called, here, once it has ended: code that resists its cancellation may put that off.
        """
        loop, channel = self._running(), Channel()
        channel.over.add_done_callback(lambda over: ended())
        tasks: list[asyncio.Task[None]] = []
        spawned: WeakSet[asyncio.Task[Any]] = WeakSet()

        def start() -> None:
            _spawned.set(spawned)
            tasks.append(loop.create_task(_pump(channel, make)))
            self._streaming.add(tasks[0])
            tasks[0].add_done_callback(self._streaming.discard)
            tasks[0].add_done_callback(clear)
            tasks[0].add_done_callback(channel.close)  # one that is cancelled before its first step too

        def clear(task: asyncio.Task[None]) -> None:
            """Cancel what it has left behind where it did not end well: LangChain's parallel chains forget theirs."""
            if task.cancelled() or task.exception():
                for left in [left for left in spawned if not left.done()]:
                    left.cancel()

        loop.call_soon_threadsafe(start)
        try:
            while batch := await channel.take():
                yield batch
        finally:
            channel.leave()
            stop()
            with suppress(RuntimeError):  # the worker is closed, and its tasks with it
                loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            await asyncio.wait((channel.over,), timeout=CLOSE_TIMEOUT)

    async def stream_blocking(
        self,
        make: Callable[[], Generator[Batch]],
        ended: Callable[[], object] = _nothing,
        stop: Callable[[], object] = _nothing,
    ) -> AsyncGenerator[Batch]:
        """Yield what `make` makes in a thread of the pool; closing this calls `stop`.

        The thread ends with the next thing it makes, and `ended` is called, here, once it has.
        """
        channel = Channel()
        channel.over.add_done_callback(lambda over: ended())
        work = self._pool.submit(copy_context().run, _pump_blocking, channel, make)
        work.add_done_callback(channel.close)
        try:
            while batch := await channel.take():
                yield batch
        finally:
            channel.leave()
            stop()
            work.cancel()  # if it has not begun

    async def close(self) -> None:
        """Cancel what runs, close what is open, end the thread. Threads of the pool that sleep are left to it."""
        if self._loop:
            finishing = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._finish(), self._loop))
            await asyncio.wait((finishing,), timeout=2 * CLOSE_TIMEOUT)
            self._loop.call_soon_threadsafe(self._loop.stop)

    async def _finish(self) -> None:
        for task in self._streaming:
            task.cancel()
        if self._streaming:
            await asyncio.wait(self._streaming, timeout=CLOSE_TIMEOUT)
        for leave, task in reversed(self._held):
            leave.set()
            await asyncio.wait((task,), timeout=CLOSE_TIMEOUT)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop.set_task_factory(_task)
                self._loop.set_exception_handler(_complain)
                self._loop.set_default_executor(self._executor)
                threading.Thread(target=_run, args=(self._loop,), name="runnables", daemon=True).start()
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    stopped = False
    while not stopped:
        with suppress(SystemExit, KeyboardInterrupt):  # somebody's sys.exit(): a task passes it on to its loop
            loop.run_forever()
            stopped = True
    loop.close()


async def _hold(
    context: AbstractAsyncContextManager[Value], entered: asyncio.Future[Value], leave: asyncio.Event
) -> None:
    """Enter and leave in one task: a task group that is open in the context wants that."""
    try:
        async with context as value:
            entered.set_result(value)
            await leave.wait()
    except Exception as exc:
        if entered.done():
            logger.error("what a factory opened does not close: %s", type(exc).__name__)
        else:
            entered.set_exception(exc)
    finally:
        if not entered.done():
            entered.set_exception(BrokenOff(sys.exception() or asyncio.CancelledError()))


async def _pump(channel: Channel, make: Callable[[], AsyncGenerator[Batch]]) -> None:
    async with aclosing(make()) as batches:
        async for batch in batches:
            if room := channel.put(batch):
                await asyncio.wrap_future(room)


def _pump_blocking(channel: Channel, make: Callable[[], Generator[Batch]]) -> None:
    with closing(make()) as batches:
        for batch in batches:
            if room := channel.put(batch):
                room.result()
