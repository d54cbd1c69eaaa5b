"""Where chains and graphs run: a loop and a pool in threads of their own, and the channel their items come by.

All that comes over is in order and whole, whoever is faster; nobody gets far ahead of who reads; whoever is not read
any more ends; whatever the work does, the worker serves the next. Driven by hand, in an event loop of the test's own.
"""

import asyncio
import gc
import os
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.runnables.config import run_in_executor

from providers import worker as worker_module
from providers.pool import BrokenOff
from providers.worker import MOST, Channel, Left, Worker
from streaming.errors import UpstreamError

from .asgi import run
from .client import DEADLINE
from .conftest import eventually

T = TypeVar("T")
Kind = str
Batch = list[Any]
BOTH = pytest.mark.parametrize("kind", ["async", "blocking"])


def on_worker(test: Callable[[Worker], Coroutine[Any, Any, T]], threads: int = 4) -> T:
    """Run a test with a worker of its own, closed in the end."""

    async def whole() -> T:
        worker = Worker(threads)
        try:
            return await test(worker)
        finally:
            await worker.close()

    return run(whole())


def stream_of(worker: Worker, kind: Kind, make: Callable[[], Iterator[Batch]], **options: Any) -> AsyncGenerator[Batch]:
    """Stream what `make` makes, as async work or as work that blocks."""
    if kind == "blocking":
        return worker.stream_blocking(make, **options)

    async def make_async() -> AsyncGenerator[Batch]:
        for batch in make():
            await asyncio.sleep(0)
            yield batch

    return worker.stream(make_async, **options)


def of(*batches: Batch) -> Callable[[], Generator[Batch]]:
    """Make just these."""

    def make() -> Generator[Batch]:
        yield from batches

    return make


async def items_of(stream: AsyncGenerator[Batch]) -> Batch:
    async with aclosing(stream) as batches:
        return [item async for batch in batches for item in batch]


async def read_into(got: Batch, stream: AsyncGenerator[Batch]) -> None:
    """Read a stream to its end, however it ends."""
    async for batch in stream:
        got += batch


async def over_there(worker: Worker, coroutine: Coroutine[Any, Any, T]) -> T:
    """Await something in the worker's loop, without holding up this one."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, worker._running()))


async def come_about(look: Callable[[], Any]) -> None:
    """Return once `look` finds something."""
    async with asyncio.timeout(DEADLINE):
        while not look():
            await asyncio.sleep(0.001)  # what is looked at tells nobody when it changes


class Record:
    """What becomes of a piece of work: `begun`, `closed` (its generator), `ended` (told to the reader's loop)."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.thread = threading.get_ident()

    def ended(self) -> None:
        assert threading.get_ident() == self.thread
        self.told.append("ended")

    def endless(self) -> Generator[Batch]:
        self.told.append("begun")
        try:
            number = 0
            while True:
                yield [number]
                number += 1
        finally:
            self.told.append("closed")


# --- What comes over -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared() -> Iterator[Worker]:
    """One worker for many readers' loops."""
    worker = Worker(4)
    yield worker
    run(worker.close())


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["async", "blocking"]),
    sizes=st.lists(st.one_of(st.integers(0, 3), st.sampled_from([MOST - 1, MOST, MOST + 1, 400])), max_size=12),
    pauses=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    spins=st.lists(st.sampled_from([0, 0, 1, 3]), min_size=1, max_size=4),
)
def test_all_comes_over_in_order_whoever_is_faster_and_nobody_gets_far_ahead(
    shared: Worker, kind: Kind, sizes: list[int], pauses: list[int], spins: list[int]
) -> None:
    made = 0

    def make() -> Iterator[Batch]:
        nonlocal made
        for place, size in enumerate(sizes):
            for _ in range(spins[place % len(spins)]):
                os.sched_yield()
            batch: Batch = [*range(made, made + size)]
            made += size
            yield batch

    async def test() -> None:
        got: Batch = []
        async with aclosing(stream_of(shared, kind, make)) as batches:
            place = 0
            async for batch in batches:
                assert batch
                got += batch
                assert made - len(got) < MOST + max(sizes)
                for _ in range(pauses[place % len(pauses)]):
                    await asyncio.sleep(0)
                place += 1
        assert got == [*range(sum(sizes))]

    run(test())


@BOTH
def test_who_makes_waits_once_enough_is_waiting_to_be_taken(kind: Kind) -> None:
    async def test(worker: Worker) -> None:
        made = 0

        def make() -> Iterator[Batch]:
            nonlocal made
            for made in range(1, 10 * MOST + 1):
                yield [made]

        def at_least(count: int) -> bool:
            return made >= count

        async with aclosing(stream_of(worker, kind, make)) as batches:
            taken = len(await anext(batches))
            for _ in range(8):
                most = taken + MOST
                await come_about(partial(at_least, most))
                for _ in range(5):  # time enough to make more
                    await over_there(worker, asyncio.sleep(0))
                    await asyncio.to_thread(os.sched_yield)
                assert made == most
                taken += len(await anext(batches))

    on_worker(test)


@BOTH
def test_what_is_made_is_there_before_more_is_made(kind: Kind) -> None:
    """Each item is taken while its maker waits for a sign of that."""
    signs = [threading.Event() for _ in range(20)]

    async def make_async() -> AsyncGenerator[Batch]:
        for number, sign in enumerate(signs):
            yield [number]
            await asyncio.to_thread(sign.wait, DEADLINE)

    def make() -> Generator[Batch]:
        for number, sign in enumerate(signs):
            yield [number]
            assert sign.wait(DEADLINE)

    async def test(worker: Worker) -> Batch:
        got: Batch = []
        stream = worker.stream(make_async) if kind == "async" else worker.stream_blocking(make)
        async with aclosing(stream) as batches:
            async for batch in batches:
                got += batch
                signs[len(got) - 1].set()
        return got

    assert on_worker(test) == [*range(20)]


@BOTH
@pytest.mark.parametrize("before", [0, 1, MOST, 3 * MOST])
def test_what_was_made_before_a_failure_comes_first_then_that_very_failure(kind: Kind, before: int) -> None:
    fault = UpstreamError("graph_failed", "It failed.")

    def make() -> Iterator[Batch]:
        for number in range(before):
            yield [number]
        raise fault

    async def test(worker: Worker) -> None:
        got: Batch = []
        with pytest.raises(UpstreamError) as raised:
            await read_into(got, stream_of(worker, kind, make))
        assert raised.value is fault
        assert got == [*range(before)]
        assert await items_of(stream_of(worker, kind, of([1]))) == [1]

    on_worker(test)


@BOTH
def test_a_failure_waits_until_all_that_was_made_before_it_is_taken(kind: Kind) -> None:
    over = asyncio.Event()

    def make() -> Iterator[Batch]:
        yield [1]
        yield [2]
        raise UpstreamError("graph_failed", "It failed.")

    async def test(worker: Worker) -> Batch:
        stream = stream_of(worker, kind, make, ended=over.set)
        got = list(await anext(stream))
        await over.wait()
        with pytest.raises(UpstreamError):
            await read_into(got, stream)
        return got

    assert on_worker(test) == [1, 2]


class Panic(BaseException):
    """As extension modules raise it."""


@BOTH
@pytest.mark.parametrize("raises", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Panic])
def test_what_is_no_mere_failure_ends_one_stream_and_nothing_else(kind: Kind, raises: type[BaseException]) -> None:
    """With one thread in the pool, which must survive each."""

    def make() -> Iterator[Batch]:
        yield ["before"]
        raise raises

    async def test(worker: Worker) -> None:
        beside = stream_of(worker, "async", Record().endless)
        first = await anext(beside)
        record = Record()
        for _ in range(3):
            got: Batch = []
            try:
                async with asyncio.timeout(DEADLINE / 4):
                    await read_into(got, stream_of(worker, kind, make, ended=record.ended))
            except BrokenOff as exc:
                assert exc.code == "graph_failed"  # noqa: PT017  # a cancellation ends it without
            else:
                assert raises in (asyncio.CancelledError, GeneratorExit)
            assert got == ["before"]
        await come_about(lambda: record.told == ["ended"] * 3)
        assert (await anext(beside))[0] == first[-1] + 1
        await beside.aclose()
        assert await items_of(stream_of(worker, kind, of(["after"]))) == ["after"]

    on_worker(test, threads=1)


def test_the_loop_survives_an_exit_in_a_task_of_nobody() -> None:
    async def leave() -> None:
        sys.exit("a tool of the command line")

    async def make() -> AsyncGenerator[Batch]:
        leaving = asyncio.ensure_future(leave())
        await asyncio.wait((leaving,))
        leaving.exception()
        yield ["still here"]

    async def test(worker: Worker) -> Batch:
        return await items_of(worker.stream(make))

    assert on_worker(test) == ["still here"]


def test_of_a_task_that_fails_and_that_nobody_asks_no_word_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """As where one branch of a RunnableParallel has failed before another does."""

    async def fail() -> None:
        raise ValueError("the words of sk-secret-1234567890")

    async def make() -> AsyncGenerator[Batch]:
        await asyncio.wait((asyncio.ensure_future(fail()),))
        gc.collect()
        yield [1]

    async def test(worker: Worker) -> Batch:
        return await items_of(worker.stream(make))

    assert on_worker(test) == [1]
    assert "secret" not in caplog.text


def test_work_that_is_cancelled_while_it_waits_for_room_loses_nothing_of_what_it_made() -> None:
    """As by an asyncio.timeout of its own that is over by then."""
    over = asyncio.Event()

    async def make() -> AsyncGenerator[Batch]:
        yield [0]
        task = asyncio.current_task()
        assert task
        asyncio.get_running_loop().call_soon(task.cancel)
        yield [*range(1, MOST + 1)]
        raise AssertionError("it goes on")

    async def test(worker: Worker) -> Batch:
        async with aclosing(worker.stream(make, over.set)) as batches:
            got = list(await anext(batches))
            await over.wait()
            async for batch in batches:
                got += batch
        return got

    assert on_worker(test) == [*range(MOST + 1)]


# --- Who is not read any more ----------------------------------------------------------------------------------------


@BOTH
def test_work_that_nobody_reads_any_more_ends_and_says_so_once(kind: Kind) -> None:
    async def test(worker: Worker) -> None:
        record = Record()
        stream = stream_of(worker, kind, record.endless, ended=record.ended)
        await anext(stream)
        await stream.aclose()
        await come_about(lambda: "ended" in record.told)
        await stream.aclose()
        await over_there(worker, asyncio.sleep(0))
        assert record.told == ["begun", "closed", "ended"]

    on_worker(test)


@BOTH
def test_a_reader_that_is_cancelled_leaves_as_one_that_closes(kind: Kind) -> None:
    async def test(worker: Worker) -> None:
        record = Record()
        reading = asyncio.ensure_future(items_of(stream_of(worker, kind, record.endless, ended=record.ended)))
        await come_about(lambda: record.told)
        reading.cancel()
        await asyncio.wait((reading,))
        await come_about(lambda: "ended" in record.told)
        assert (reading.cancelled(), record.told) == (True, ["begun", "closed", "ended"])

    on_worker(test)


def test_async_work_is_cancelled_where_it_waits_and_has_closed_when_its_reader_is_told() -> None:
    told: list[str] = []

    async def make() -> AsyncGenerator[Batch]:
        yield ["begun"]
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("cancelled")
            await asyncio.sleep(0)
            told.append("closed")
            raise

    async def test(worker: Worker) -> None:
        stream = worker.stream(make, lambda: told.append("ended"), lambda: told.append("stop"))
        await anext(stream)
        await stream.aclose()
        assert told == ["stop", "cancelled", "closed", "ended"]

    on_worker(test)


def test_async_work_that_resists_holds_its_reader_up_for_a_while_and_says_when_it_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "CLOSE_TIMEOUT", 0.05)
    told: list[str] = []

    async def test(worker: Worker) -> None:
        gate = threading.Event()

        async def make() -> AsyncGenerator[Batch]:
            yield ["begun"]
            waiting = asyncio.ensure_future(asyncio.to_thread(gate.wait, DEADLINE))
            while not waiting.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.shield(waiting)
            told.append("at last")

        stream = worker.stream(make, lambda: told.append("ended"))
        await anext(stream)
        await stream.aclose()
        assert told == []
        assert await items_of(stream_of(worker, "async", of([1]))) == [1]
        gate.set()
        await come_about(lambda: "ended" in told)
        assert told == ["at last", "ended"]

    on_worker(test)


def test_blocking_work_ends_at_the_next_thing_it_makes_and_its_reader_does_not_wait_for_that() -> None:
    told: list[str] = []

    async def test(worker: Worker) -> None:
        gate = threading.Event()

        def make() -> Generator[Batch]:
            try:
                yield ["begun"]
                assert gate.wait(DEADLINE)
                told.append("goes on")
                yield ["nobody sees this"]
                told.append("never")
            finally:
                told.append("closed")

        stream = worker.stream_blocking(make, lambda: told.append("ended"), lambda: told.append("stop"))
        await anext(stream)
        await stream.aclose()
        assert told == ["stop"]
        gate.set()
        await come_about(lambda: "ended" in told)
        assert told == ["stop", "goes on", "closed", "ended"]

    on_worker(test)


@BOTH
def test_work_that_waits_for_room_ends_when_its_reader_leaves(kind: Kind) -> None:
    async def test(worker: Worker) -> None:
        record = Record()
        made = 0

        def make() -> Iterator[Batch]:
            nonlocal made
            for batch in record.endless():
                made += 1
                yield batch

        stream = stream_of(worker, kind, make, ended=record.ended)
        taken = len(await anext(stream))
        await come_about(lambda: made == taken + MOST)
        await stream.aclose()
        await come_about(lambda: "ended" in record.told)

    on_worker(test)


def test_async_work_that_is_left_before_its_first_step_never_begins() -> None:
    async def test(worker: Worker) -> None:
        record, gate = Record(), threading.Event()
        worker._running().call_soon_threadsafe(gate.wait, DEADLINE)
        reading = asyncio.ensure_future(items_of(stream_of(worker, "async", record.endless, ended=record.ended)))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.sleep(0)
        assert record.told == []
        gate.set()
        await asyncio.wait((reading,))
        await come_about(lambda: record.told)
        assert (reading.cancelled(), record.told) == (True, ["ended"])

    on_worker(test)


def test_blocking_work_that_is_left_in_the_queue_never_begins_and_has_ended_at_once() -> None:
    async def test(worker: Worker) -> None:
        record, gate = Record(), threading.Event()
        busy = worker._pool.submit(gate.wait, DEADLINE)
        reading = asyncio.ensure_future(items_of(stream_of(worker, "blocking", record.endless, ended=record.ended)))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait((reading,))
        await come_about(lambda: record.told)
        assert not busy.done()
        gate.set()
        assert await items_of(stream_of(worker, "blocking", of([1]))) == [1]
        assert record.told == ["ended"]

    on_worker(test, threads=1)


@BOTH
def test_a_stream_that_was_never_read_never_begins(kind: Kind) -> None:
    async def test(worker: Worker) -> None:
        record = Record()
        await stream_of(worker, kind, record.endless, ended=record.ended).aclose()
        await over_there(worker, asyncio.sleep(0))
        assert record.told == []

    on_worker(test)


# --- The channel alone -----------------------------------------------------------------------------------------------


def test_nothing_can_be_put_once_the_reader_has_left() -> None:
    async def test() -> None:
        channel = Channel()
        assert channel.put([1]) is None
        channel.leave()
        channel.leave()
        with pytest.raises(Left):
            channel.put([2])

    run(test())


def test_room_is_promised_from_the_item_on_that_fills_it_and_given_by_taking_or_leaving() -> None:
    async def test(leaves: bool) -> None:
        channel = Channel()
        assert channel.put([0] * (MOST - 1)) is None
        room = channel.put([0])
        assert room
        assert not room.done()
        if leaves:
            channel.leave()
        else:
            assert len(await channel.take()) == MOST
        assert room.done()

    run(test(leaves=False))
    run(test(leaves=True))


def test_a_channel_whose_reader_is_gone_with_its_loop_is_closed_without_a_word() -> None:
    """At the end of a process work may outlive who asked for it."""

    async def make_channel() -> Channel:
        return Channel()

    async def fail() -> None:
        raise ValueError("nobody hears it")

    channel = asyncio.run(make_channel())
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        work = loop.create_task(fail())
        work.add_done_callback(channel.close)
        loop.run_until_complete(asyncio.wait((work,)))


# --- The loop and the pool -------------------------------------------------------------------------------------------


def test_no_more_threads_are_at_work_than_there_may_be_and_so_many_are() -> None:
    most = 3

    async def test(worker: Worker) -> int:
        together, lock = threading.Barrier(most), threading.Lock()
        active = peak = 0

        def count(by: int) -> None:
            nonlocal active, peak
            with lock:
                active += by
                peak = max(peak, active)

        def work() -> None:
            count(1)
            together.wait(DEADLINE)
            count(-1)

        def make() -> Generator[Batch]:
            work()
            yield [1]

        async def make_async() -> AsyncGenerator[Batch]:
            await run_in_executor(None, work)  # as LangChain calls what is synchronous
            yield [1]

        streams = [worker.stream_blocking(make) for _ in range(2 * most)]
        streams += [worker.stream(make_async) for _ in range(2 * most)]
        got = await asyncio.gather(*(items_of(stream) for stream in streams))
        assert got == [[1]] * 4 * most
        return peak

    assert on_worker(test, threads=most) == most


def test_what_langchain_does_not_call_does_not_wait_for_what_blocks() -> None:
    """Looking up a host, for one: else no model could be called meanwhile."""

    async def make() -> AsyncGenerator[Batch]:
        found = await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
        yield [found[0][4][0], await asyncio.to_thread(lambda: 1)]

    async def test(worker: Worker) -> None:
        gate = threading.Event()
        busy = [worker._pool.submit(gate.wait, DEADLINE) for _ in range(3)]
        assert await items_of(worker.stream(make)) == ["127.0.0.1", 1]
        assert not any(one.done() for one in busy)
        gate.set()

    on_worker(test, threads=1)


def test_threads_are_started_as_they_are_needed_and_used_again() -> None:
    async def test(worker: Worker) -> None:
        for _ in range(20):
            await items_of(stream_of(worker, "blocking", of([1])))
            await come_about(lambda: worker._pool._idle._value == worker._pool._started)
        assert worker._pool._started == 1

    on_worker(test)


def test_async_work_of_many_streams_shares_one_thread_that_is_none_of_the_services() -> None:
    async def make() -> AsyncGenerator[Batch]:
        yield [threading.get_ident()]

    async def test(worker: Worker) -> set[Any]:
        got = await asyncio.gather(*(items_of(worker.stream(make)) for _ in range(10)))
        return {thread for items in got for thread in items}

    threads = on_worker(test)
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


SEEN: ContextVar[str] = ContextVar("seen", default="nothing")


@BOTH
def test_what_work_sets_in_its_context_other_work_does_not_see(kind: Kind) -> None:
    """With one thread, used again and again."""

    def make() -> Iterator[Batch]:
        yield [SEEN.get()]
        SEEN.set("somebody's")

    async def test(worker: Worker) -> list[Batch]:
        return [await items_of(stream_of(worker, kind, make)) for _ in range(3)]

    assert on_worker(test, threads=1) == [["nothing"]] * 3


def test_two_workers_do_not_hold_each_other_up() -> None:
    async def test(blocked: Worker) -> None:
        gate, free = threading.Event(), Worker(1)
        blocked._running().call_soon_threadsafe(gate.wait, DEADLINE)
        busy = blocked._pool.submit(gate.wait, DEADLINE)
        waiting = [asyncio.ensure_future(items_of(stream_of(blocked, kind, of([1])))) for kind in KINDS]
        for kind in KINDS:
            assert await items_of(stream_of(free, kind, of([2]))) == [2]
        await free.close()
        assert not busy.done()
        assert not any(one.done() for one in waiting)
        gate.set()
        assert await asyncio.gather(*waiting) == [[1], [1]]

    on_worker(test, threads=1)


KINDS = ("async", "blocking")


def test_a_call_returns_what_it_returns_and_raises_what_it_raises() -> None:
    async def answer() -> int:
        return 42

    async def fail() -> None:
        raise ValueError("no")

    async def test(worker: Worker) -> None:
        assert await asyncio.to_thread(worker.call, answer()) == 42
        with pytest.raises(ValueError, match="no"):
            await asyncio.to_thread(worker.call, fail())

    on_worker(test)


# --- The end ---------------------------------------------------------------------------------------------------------


def test_contexts_are_left_at_the_end_the_last_first_in_the_loop_they_were_entered_in() -> None:
    told: list[Any] = []

    @asynccontextmanager
    async def opened(name: str) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        yield name
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is loop
        told.append(name)

    async def test(worker: Worker) -> None:
        for name in ("first", "second"):
            assert await over_there(worker, worker.enter(opened(name))) == name
        assert told == []

    on_worker(test)
    assert told == ["second", "first"]


def test_a_context_that_does_not_close_is_named_and_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def opened(name: str) -> AsyncIterator[str]:
        try:
            yield name
        finally:
            told.append(name)
        if name == "second":
            raise ValueError("the words of sk-secret-1234567890")

    async def test(worker: Worker) -> None:
        for name in ("first", "second"):
            await over_there(worker, worker.enter(opened(name)))

    on_worker(test)
    gc.collect()
    assert told == ["second", "first"]
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("raises", [ValueError, SystemExit, asyncio.CancelledError, Panic])
def test_a_context_that_cannot_be_entered_says_so_at_once(raises: type[BaseException]) -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        raise raises
        yield

    async def test(worker: Worker) -> None:
        entering = asyncio.ensure_future(over_there(worker, worker.enter(opened())))
        await asyncio.wait((entering,), timeout=DEADLINE / 4)
        assert entering.done()
        assert entering.cancelled() or entering.exception()
        assert await items_of(stream_of(worker, "async", of([1]))) == [1]

    on_worker(test)


def test_closing_ends_async_work_and_its_readers_get_what_it_had_made() -> None:
    async def test() -> None:
        worker, record = Worker(2), Record()
        made = 0

        def make() -> Iterator[Batch]:
            nonlocal made
            for batch in record.endless():
                made += 1
                yield batch

        async with aclosing(stream_of(worker, "async", make, ended=record.ended)) as stream:
            got = list(await anext(stream))
            await come_about(lambda: made >= len(got) + MOST)
            await worker.close()
            async for batch in stream:
                got += batch
        assert got == [*range(len(got))]
        assert len(got) >= MOST
        assert record.told == ["begun", "closed", "ended"]

    run(test())


def test_closing_waits_for_no_thread_of_the_pool() -> None:
    told: list[str] = []

    async def test() -> None:
        worker, gate = Worker(1), threading.Event()

        def make() -> Generator[Batch]:
            yield ["begun"]
            assert gate.wait(DEADLINE)
            yield ["after"]

        stream = worker.stream_blocking(make, lambda: told.append("ended"))
        assert await anext(stream) == ["begun"]
        await worker.close()
        gate.set()
        assert await items_of(stream) == ["after"]
        await come_about(lambda: told)

    run(test())
    assert told == ["ended"]


def test_closing_ends_the_thread_of_the_loop() -> None:
    async def which() -> threading.Thread:
        return threading.current_thread()

    async def test() -> None:
        worker = Worker(1)
        thread = await over_there(worker, which())
        assert thread.is_alive()
        await worker.close()
        await come_about(lambda: not thread.is_alive())

    run(test())


def test_a_worker_that_nobody_needed_has_no_thread_and_closes_at_once() -> None:
    before = threading.enumerate()

    async def test() -> None:
        worker = Worker(4)
        assert threading.enumerate() == before
        await worker.close()

    run(test())


def channels() -> list[Channel]:
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is Channel]


def test_nothing_is_left_of_many_streams() -> None:
    """No task and no unfinished wait in either loop, and no channel."""

    def failing() -> Iterator[Batch]:
        yield [1]
        raise UpstreamError("graph_failed", "It failed.")

    async def one(worker: Worker, number: int) -> None:
        kind = KINDS[number % 2]
        if number % 3 == 0:
            await items_of(stream_of(worker, kind, of(*[[1]] * 300)))
        elif number % 3 == 1:
            stream = stream_of(worker, kind, Record().endless)
            await anext(stream)
            await stream.aclose()
        else:
            with pytest.raises(UpstreamError):
                await items_of(stream_of(worker, kind, failing))

    async def tasks_there() -> int:
        return len(asyncio.all_tasks())

    async def test(worker: Worker) -> None:
        before = asyncio.all_tasks()  # this one, and on Python 3.11 the deadline's
        for _ in range(10):
            await asyncio.gather(*(one(worker, number) for number in range(30)))
        assert asyncio.all_tasks() == before
        assert await over_there(worker, tasks_there()) == 1
        assert not worker._pool._calls.qsize()

    on_worker(test)
    eventually(lambda: not channels())  # a thread of the pool lets go of its last one when it waits for the next
