"""The runs of a process: begun once, found by whom they belong to, kept when they are over, and then forgotten.

On the jumping clock: what is kept for a minute is kept for a minute to the last moment, and the test takes none.
"""

import asyncio
import gc
import logging
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from streaming.errors import RequestError, ServiceError
from streaming.events import Cancelled, Done, Token
from streaming.failover import Candidate, Failover
from streaming.followed import Followed
from streaming.limits import Limits
from streaming.log import follow, size_of
from streaming.request import Message, RunRequest
from streaming.run import Run
from streaming.runs import RUN_OVERHEAD, Runs

from .asgi import at_once, run_ahead, time_passes
from .test_run import HELLO, LIMITS, NOTHING, REQUEST, STOP, Plays, Step, faulty

KEEP = 60.0
NOT_FOUND = ("not_found", "There is no such run, or it was over and is no longer kept.")


def new_runs(keep: float = KEEP, keep_bytes: int = 2**20) -> Runs:
    return Runs(keep, keep_bytes)


def created(runs: Runs, limits: Limits = LIMITS, **asked: Any) -> Followed:
    return at_once(runs.create(Failover([Candidate("test", REQUEST, Plays)]), limits, **asked))


def begun(runs: Runs, *steps: Step, request: RunRequest = REQUEST, **asked: Any) -> Run:
    """Begin a run whose provider does `steps`."""

    async def load() -> Any:
        return Plays(*steps)

    run = at_once(runs.create(Failover([Candidate("test", request, load)]), LIMITS, **asked))
    assert isinstance(run, Run)
    runs.begin(run)
    return run


async def over(runs: Runs, *words: str, **asked: Any) -> Run:
    """Begin a run, and return it when it is over."""
    run = begun(runs, *[[Token(word)] for word in words], STOP, **asked)
    await run.wait()
    return run


def weight(run: Run) -> int:
    return sum(map(size_of, run.log.read(0))) + RUN_OVERHEAD


def refusal(ask: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises((RequestError, ServiceError)) as raised:
        ask()
    return raised.value.code, raised.value.text


def found(runs: Runs, *asked_for: Run) -> list[bool]:
    """Which of these can be found; of the others all is said in the same words."""

    def is_found(run: Run) -> bool:
        try:
            return at_once(runs.find(run.id, run.owner)) is run
        except RequestError as unknown:
            told = (unknown.code, unknown.text)
        assert told == NOT_FOUND
        return False

    return [is_found(run) for run in asked_for]


def unknown(runs: Runs, run_id: str, owner: str = "") -> tuple[str, str]:
    return refusal(lambda: at_once(runs.find(run_id, owner)))


def timers() -> int:
    """How many clocks the loop has running."""
    loop: Any = asyncio.get_running_loop()
    return sum(not timer.cancelled() for timer in loop._scheduled)


def test_a_run_that_is_over_is_kept_for_its_time_from_its_end() -> None:
    async def test() -> list[list[bool]]:
        runs = new_runs()
        run = begun(runs, 20.0, HELLO, STOP)
        seen = [found(runs, run)]
        for seconds in (19, 2, 58.75, 0.25):  # over at 20, looked for at 19, 21, 79.75, 80
            await time_passes(seconds)
            seen.append(found(runs, run))
        return seen

    assert run_ahead(test()) == [[True], [True], [True], [True], [False]]


def test_each_is_forgotten_at_its_own_time_by_one_clock() -> None:
    async def test() -> tuple[list[list[bool]], list[int]]:
        runs, kept, seen, clocks = new_runs(), [], [], []
        for _ in range(3):
            kept.append(await over(runs))
            await time_passes(10)
            clocks.append(timers())
        await time_passes(20)  # at 50; they were over at 0, 10 and 20
        for _ in range(4):
            seen.append(found(runs, *kept))
            clocks.append(timers())
            await time_passes(10)
        return seen, clocks

    left = [[True, True, True], [False, True, True], [False, False, True], [False, False, False]]
    assert run_ahead(test()) == (left, [1, 1, 1, 1, 1, 1, 0])


def test_a_hundred_runs_that_are_kept_share_one_clock() -> None:
    async def test() -> tuple[int, int, bool]:
        runs = new_runs()
        kept = [begun(runs, float(seconds), STOP) for seconds in range(100)]
        await asyncio.gather(*[run.wait() for run in kept])
        clocks = timers()
        await time_passes(KEEP)
        return clocks, timers(), any(found(runs, *kept))

    assert run_ahead(test()) == (1, 0, False)


def test_without_keep_a_run_is_forgotten_at_once_and_its_viewers_get_its_end() -> None:
    async def test() -> tuple[list[bool], list[bool], int, list[str]]:
        runs = new_runs(keep=0)
        run = begun(runs, HELLO, 5.0, STOP)
        before, heard = found(runs, run), []
        with run.viewing():
            async for batch in follow(run.log, 0):
                heard += [event.name for _, event in batch]
                await time_passes(3)
        return before, found(runs, run), timers(), heard

    assert run_ahead(test()) == ([True], [False], 0, ["start", "token", "done"])


def test_the_oldest_go_first_where_not_all_fit() -> None:
    async def test() -> list[list[bool]]:
        sizes = [weight(await over(new_runs(), word)) for word in ("a", "bb", "c" * 100)]
        runs, kept, seen = new_runs(keep_bytes=sum(sizes[1:])), [], []
        for word in ("a", "bb", "c" * 100):
            kept.append(await over(runs, word))
            await time_passes(1)
            seen.append(found(runs, *kept))
        return seen

    assert run_ahead(test()) == [[True], [True, True], [False, True, True]]


def test_one_byte_less_holds_one_run_less() -> None:
    async def test() -> list[bool]:
        runs = new_runs(keep_bytes=2 * weight(await over(new_runs(), "a")) - 1)
        return found(runs, await over(runs, "a"), await over(runs, "b"))

    assert run_ahead(test()) == [False, True]


def test_room_is_given_back_by_whoever_is_forgotten() -> None:
    async def test() -> list[list[bool]]:
        runs = new_runs(keep_bytes=2 * weight(await over(new_runs(), "a")))
        seen = []
        for _ in range(3):
            kept = [await over(runs, "a"), await over(runs, "b")]
            seen.append(found(runs, *kept))
            await time_passes(KEEP)
        return seen

    assert run_ahead(test()) == [[True, True]] * 3


def test_a_run_that_goes_on_takes_no_room_from_those_that_are_over() -> None:
    async def test() -> list[bool]:
        runs = new_runs(keep_bytes=weight(await over(new_runs(), "a")))
        going_on = begun(runs, [Token("x" * 9000)], 100.0)
        kept = await over(runs, "a")
        seen = found(runs, going_on, kept)
        await runs.close()
        return seen

    assert run_ahead(test()) == [True, True]


def test_without_room_nothing_is_kept() -> None:
    async def test() -> tuple[list[bool], int]:
        runs = new_runs(keep_bytes=0)
        return found(runs, await over(runs)), timers()

    assert run_ahead(test()) == ([False], 0)


def test_the_oldest_is_the_first_that_was_over_not_the_first_that_began() -> None:
    async def test() -> list[bool]:
        runs = new_runs(keep_bytes=weight(await over(new_runs(), "a")) + 100)  # one, whatever its times are
        long, short = begun(runs, 10.0, [Token("a")], STOP), begun(runs, [Token("a")], STOP)
        await long.wait()
        return found(runs, long, short)

    assert run_ahead(test()) == [True, False]


def test_a_run_is_its_owners_and_to_others_as_if_there_were_none() -> None:
    async def test() -> list[tuple[str, str]]:
        runs, refused = new_runs(), []
        for steps in ([100.0], [STOP]):
            run = begun(runs, *steps, owner="ann")
            await time_passes(1)
            assert at_once(runs.find(run.id, "ann")) is run
            refused += [unknown(runs, run.id, owner) for owner in ("bob", "", "ann ")]
        own = await over(runs)
        refused.append(unknown(runs, own.id, "ann"))
        refused.append(unknown(runs, "0" * 32, "ann"))
        await runs.close()
        return refused

    assert run_ahead(test()) == [NOT_FOUND] * 8


def test_a_run_that_was_only_created_cannot_be_found() -> None:
    runs = new_runs()
    run = created(runs)
    assert (found(runs, run), len(runs)) == ([False], 0)


def test_a_run_is_begun_once() -> None:
    async def test() -> list[int]:
        runs, asked = new_runs(), []
        run = begun(runs, lambda: asked.append(1), 5.0, STOP)
        for _ in range(2):
            runs.begin(run)
            await time_passes(10)  # the second time, it is over
        return [len(asked), len(run.log), len(runs)]

    assert run_ahead(test()) == [1, 2, 0]


# Keys


def test_a_key_stands_for_its_run_while_that_goes_on_or_is_kept() -> None:
    async def test() -> list[bool]:
        runs, same = new_runs(), []
        first = begun(runs, 5.0, STOP, key="k", asked=b"1")
        for seconds in (0, 5, KEEP - 0.25, 0.25):
            await time_passes(seconds)
            again = created(runs, key="k", asked=b"1")
            same.append(again is first)
        return same

    assert run_ahead(test()) == [True, True, True, False]


def test_a_key_is_free_again_when_its_run_had_to_make_room() -> None:
    async def test() -> tuple[bool, bool]:
        runs = new_runs(keep_bytes=weight(await over(new_runs(), "a")))
        first = await over(runs, "a", key="k", asked=b"1")
        await over(runs, "b", key="l", asked=b"1")
        second = await over(runs, "c", key="k", asked=b"2")
        return second is first, (await over(runs, "d", key="k", asked=b"2")) is second

    assert run_ahead(test()) == (False, True)


def test_another_request_under_a_key_is_a_conflict_and_changes_nothing() -> None:
    async def test() -> None:
        runs = new_runs()
        first = await over(runs, key="k", asked=b"1")
        for _ in range(2):
            with pytest.raises(RequestError) as raised:
                begun(runs, STOP, key="k", asked=b"2")
            told = (raised.value.status, raised.value.code, raised.value.field)
            assert told == (409, "conflict", "Idempotency-Key")
            assert begun(runs, STOP, key="k", asked=b"1") is first
        assert len(runs) == 0

    run_ahead(test())


def test_a_key_is_its_owners() -> None:
    async def test() -> list[bool]:
        runs = new_runs()
        ann, bob, nobody = [await over(runs, owner=owner, key="k", asked=b"1") for owner in ("ann", "bob", "")]
        other = await over(runs, owner="ann", key="l", asked=b"1")
        again = [await over(runs, owner=owner, key="k", asked=b"1") for owner in ("ann", "bob", "")]
        return [len({ann, bob, nobody, other}) == 4, again == [ann, bob, nobody]]

    assert run_ahead(test()) == [True, True]


def test_without_a_key_every_request_is_its_own() -> None:
    async def test() -> int:
        runs = new_runs()
        return len({await over(runs, asked=b"1") for _ in range(3)})

    assert run_ahead(test()) == 3


def test_a_key_is_reserved_before_its_run_begins() -> None:
    runs = new_runs()
    first, second = (created(runs, key="k", asked=b"1") for _ in range(2))
    assert first is second
    with pytest.raises(RequestError, match="stands for another request"):
        created(runs, key="k", asked=b"2")


# The end of the process


def test_draining_ends_what_goes_on_keeps_what_is_over_and_begins_nothing() -> None:
    async def test() -> None:
        runs = new_runs()
        kept, going_on = await over(runs, key="k", asked=b"1"), begun(runs, 100.0)
        await time_passes(1)
        runs.end()
        assert refusal(lambda: begun(runs, STOP)) == ("shutting_down", "The service is shutting down.")
        await going_on.wait()
        assert going_on.terminal == Cancelled(reason="draining", usage=NOTHING)
        assert (found(runs, kept, going_on), len(runs)) == ([True, True], 0)
        assert begun(runs, STOP, key="k", asked=b"1") is kept  # what it stands for was begun before
        runs.end()
        assert isinstance(kept.terminal, Done)

    run_ahead(test())


def test_a_run_that_is_refused_while_draining_leaves_nothing_behind() -> None:
    """It has had a viewer, who left when it was refused."""

    async def test() -> tuple[list[bool], int, bool]:
        runs = new_runs()
        runs.end()
        run = created(runs, replace(LIMITS, linger=300), key="k", asked=b"1")

        def view() -> None:
            with run.viewing():
                runs.begin(run)

        assert refusal(view)[0] == "shutting_down"
        again = created(runs, key="k", asked=b"2")
        return found(runs, run), timers(), again is run

    assert run_ahead(test()) == ([False], 0, False)


def test_closing_waits_for_upstreams_and_leaves_no_clock() -> None:
    async def test() -> tuple[list[str], int, int]:
        runs = new_runs()
        kept = [await over(runs), begun(runs, HELLO, 100.0), begun(runs, 100.0)]
        await time_passes(1)
        with kept[1].viewing():
            await runs.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        return [run.terminal.name for run in kept if run.terminal], timers(), len(tasks)

    assert run_ahead(test()) == (["done", "cancelled", "cancelled"], 0, 0)


def test_closing_an_idle_service_is_closing() -> None:
    run_ahead(new_runs().close())


def test_who_asks_again_under_a_key_starts_the_linger_clock_anew() -> None:
    """It will come to follow the run, and has as much time for that as who asked first."""

    async def test() -> list[str]:
        runs, found = new_runs(), []
        candidate = Failover([Candidate("test", REQUEST, partial(load, Plays(1000.0)))])
        limits = replace(LIMITS, linger=3.0)
        run = at_once(runs.create(candidate, limits, key="k"))
        runs.begin(run)
        await time_passes(2.8)
        assert at_once(runs.create(candidate, limits, key="k")) is run
        for seconds in (2.9, 0.2):
            await time_passes(seconds)
            found.append(run.terminal.reason if isinstance(run.terminal, Cancelled) else "")
        return found

    async def load(provider: Any) -> Any:
        return provider

    assert run_ahead(test()) == ["", "disconnected"]


# What it costs

ENDINGS: dict[str, Sequence[Step]] = {
    "done": [HELLO, STOP],
    "a fault": [HELLO, faulty],
    "stopped": [HELLO, 100.0],
    "stopped before its first word": [100.0],
}


@pytest.mark.parametrize("steps", ENDINGS.values(), ids=ENDINGS)
def test_what_is_kept_of_a_run_is_what_is_counted_for_it(
    steps: Sequence[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `keep_bytes` would bound nothing: a prompt or an exception's frames may be of any size."""
    monkeypatch.setattr(logging.getLogger("sidestream"), "disabled", True)  # pytest keeps what is logged

    async def keep(runs: Runs, number: int) -> int:
        """Keep so many runs, and return what is counted for them."""
        counted = 0
        for _ in range(number):
            request = replace(REQUEST, messages=[Message("user", "".join(["x"] * 2000))])
            run = begun(runs, *steps, request=request)
            await time_passes(1)
            run.end("requested")
            await run.wait()
            counted += weight(run)
        return counted

    async def test() -> float:
        runs = new_runs(keep=10**6, keep_bytes=2**30)
        await keep(runs, 20)
        gc.collect()
        tracemalloc.start()
        try:
            counted = await keep(runs, 500)
            gc.collect()
            return tracemalloc.get_traced_memory()[0] / counted
        finally:
            tracemalloc.stop()
            await runs.close()

    assert 1 / 1.5 < run_ahead(test()) < 1.5


def test_what_a_wire_keeps_with_a_run_is_counted_too() -> None:
    """It is of a request, and may be as large as one."""

    async def test() -> str:
        runs = new_runs(keep_bytes=4 * RUN_OVERHEAD)
        run = await over(runs, "a", about={"metadata": {"note": "x" * 4 * RUN_OVERHEAD}})
        return unknown(runs, run.id)[0]

    assert run_ahead(test()) == "not_found"


def test_a_run_that_does_not_fit_drives_out_no_other() -> None:
    async def test() -> tuple[bool, str]:
        runs = new_runs(keep_bytes=3 * RUN_OVERHEAD)
        small = await over(runs, "small")
        large = await over(runs, "large" * RUN_OVERHEAD)
        return at_once(runs.find(small.id)) is small, unknown(runs, large.id)[0]

    assert run_ahead(test()) == (True, "not_found")
