"""Who may begin, who waits and who is turned away: on a clock that jumps, so every time is exact; and at random."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from streaming.admission import Capacity
from streaming.errors import Fault
from streaming.events import Cancelled, Error, Event, Finish, Queued, Start, Token, Usage
from streaming.failover import Candidate, Failover
from streaming.followed import CancelReason
from streaming.request import Emit, RunRequest
from streaming.run import Run
from streaming.runs import Runs

from .asgi import at_once, run_ahead, time_passes
from .test_run import LIMITS, REQUEST

ONE = Capacity(max_runs=1, max_queue=3)


class Speaker:
    """A provider that speaks when it is told to; it knows who has asked it."""

    def __init__(self) -> None:
        self.asked: list[Run] = []
        self.may_end: dict[str, asyncio.Event] = {}

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        name = request.model
        emit([Token(name)])
        await self.may_end.setdefault(name, asyncio.Event()).wait()
        emit([Finish("stop")])

    def end(self, name: str) -> None:
        self.may_end.setdefault(name, asyncio.Event()).set()


class House:
    """Runs of one process, each named, all of one provider."""

    def __init__(self, capacity: Capacity, **limits: float) -> None:
        self.runs = Runs(60, 2**20, capacity)
        self.speaker = Speaker()
        self.limits = replace(LIMITS, **limits)

    async def _load(self) -> Speaker:
        return self.speaker

    def ask(self, name: str, owner: str = "", key: str = "") -> Run:
        request = replace(REQUEST, model=name)
        candidate = Candidate("test", request, self._load)
        run = at_once(self.runs.create(Failover([candidate]), self.limits, owner=owner, key=key))
        assert isinstance(run, Run)
        self.runs.begin(run)
        return run

    def refusal(self, name: str, owner: str = "", key: str = "") -> tuple[str, int, str | None, str]:
        with pytest.raises(Fault) as caught:
            self.ask(name, owner, key)
        fault = caught.value
        return fault.code, fault.status, fault.limit, fault.headers["Retry-After"]

    async def end(self, *names: str) -> None:
        for name in names:
            self.speaker.end(name)
        await time_passes(0.001)


def told(run: Run) -> list[Event]:
    return [event for _, event in run.log.merged(0)]


def positions(run: Run) -> list[int]:
    return [event.position for event in told(run) if isinstance(event, Queued)]


def has_begun(run: Run) -> bool:
    return any(isinstance(event, Start) for event in told(run))


def test_with_a_place_free_a_run_begins_at_once_and_is_told_of_no_line() -> None:
    async def test() -> None:
        house = House(ONE)
        run = house.ask("a")
        assert isinstance(told(run)[0], Start), "in the same turn"
        await house.end("a")
        assert [event.name for event in told(run)] == ["start", "token", "done"]
        assert house.runs.admission.waiting == 0

    run_ahead(test())


def test_without_one_it_waits_and_begins_when_one_is_free_and_nobody_is_asked_before() -> None:
    async def test() -> None:
        house = House(ONE)
        house.ask("a")
        waiting = house.ask("b")
        assert (told(waiting), waiting.waits, house.runs.admission.waiting) == ([Queued(1)], True, 1)
        await time_passes(30)
        assert (told(waiting), waiting.waits) == ([Queued(1)], True)
        assert house.speaker.may_end.keys() == {"a"}
        await house.end("a")
        assert ([event.name for event in told(waiting)], waiting.waits) == (["queued", "start", "token"], False)
        await time_passes(5)
        await house.end("b")
        done = told(waiting)[-1]
        assert (done.name, waiting.ttft_ms, waiting.latency_ms) == ("done", 0, 5001), "from when it left the line"
        assert house.runs.admission.waiting == 0

    run_ahead(test())


def test_first_come_first_served_and_each_is_told_when_it_moves_up() -> None:
    async def test() -> None:
        house = House(ONE)
        _, *waiting = (house.ask(name) for name in "abcd")
        assert [positions(run) for run in waiting] == [[1], [2], [3]]
        await house.end("a")
        assert [has_begun(run) for run in waiting] == [True, False, False]
        await time_passes(1)
        assert [positions(run) for run in waiting] == [[1], [2, 1], [3, 2]]
        await house.end("b", "c")
        await time_passes(1)
        assert [positions(run) for run in waiting] == [[1], [2, 1], [3, 2]], "who has begun is told no more"
        assert [has_begun(run) for run in waiting] == [True, True, True]
        await house.end("d")

    run_ahead(test())


def test_who_has_all_that_an_owner_may_have_holds_up_nobody_else() -> None:
    async def test() -> None:
        house = House(Capacity(max_runs=3, max_runs_per_owner=2, max_queue=10))
        greedy = [house.ask(name, "greedy") for name in "abc"]
        other = house.ask("d", "other")
        late = house.ask("e", "third")
        assert [run.waits for run in (*greedy, other, late)] == [False, False, True, False, True]
        await house.end("d")
        assert [run.waits for run in (*greedy, late)] == [False, False, True, False]
        await house.end("a")
        assert [run.waits for run in greedy] == [False, False, False]
        await house.end("b", "c", "e")
        assert len(house.runs) == 0

    run_ahead(test())


def test_a_line_that_is_full_turns_away_and_says_whose_limit_it_is() -> None:
    async def test() -> None:
        house = House(Capacity(max_runs=2, max_runs_per_owner=1, max_queue=2, max_queue_per_owner=1))
        house.ask("a", "one")
        house.ask("b", "one")
        assert house.refusal("c", "one") == ("rate_limited", 429, "max_queue_per_owner", "5")
        house.ask("d", "two")
        house.ask("e", "two")
        assert house.refusal("f", "one") == ("rate_limited", 429, "max_queue_per_owner", "5")
        assert house.refusal("f", "three") == ("overloaded", 503, "max_runs", "5")
        without = House(Capacity(max_runs=5, max_runs_per_owner=1))
        without.ask("a", "one")
        assert without.refusal("b", "one") == ("rate_limited", 429, "max_runs_per_owner", "5")
        without.ask("b", "two")
        assert (len(house.runs), len(without.runs)) == (4, 2)
        await house.end(*"abde")
        await without.end(*"ab")
        assert len(house.runs) + len(without.runs) == 0

    run_ahead(test())


def test_the_key_of_a_request_that_was_turned_away_is_free_again() -> None:
    async def test() -> None:
        house = House(Capacity(max_runs=1))
        house.ask("a")
        assert house.refusal("b", key="k")[0] == "overloaded"
        await house.end("a")
        again = house.ask("b", key="k")
        assert has_begun(again)
        await house.end("b")

    run_ahead(test())


@pytest.mark.parametrize("reason", ["requested", "disconnected", "draining"])
def test_who_leaves_the_line_was_never_asked_for_and_has_used_nothing(reason: CancelReason) -> None:
    async def test() -> None:
        house = House(ONE, linger=10)
        with house.ask("a").viewing():
            waiting, behind = house.ask("b"), house.ask("c")
            with behind.viewing():
                with waiting.viewing():
                    await time_passes(20)
                assert (told(waiting), told(behind)) == ([Queued(1)], [Queued(2)])
                if reason == "disconnected":
                    await time_passes(10.1)
                else:
                    waiting.end(reason)
                await waiting.wait()
                assert told(waiting) == [Queued(1), Cancelled(reason=reason, usage=Usage())]
                await time_passes(1)
                assert (positions(behind), house.runs.admission.waiting) == ([2, 1], 1)
                assert house.speaker.may_end.keys() == {"a"}
        await house.runs.close()

    run_ahead(test())


def test_who_waits_too_long_is_told_that_it_may_try_again() -> None:
    async def test() -> None:
        house = House(ONE, queue_timeout=5)
        house.ask("a")
        waiting = house.ask("b")
        await time_passes(4.9)
        assert waiting.waits
        await waiting.wait()
        text = "No place became free within 5 s."
        assert told(waiting)[1:] == [Error(error=text, code="overloaded", retryable=True, usage=Usage())]
        await house.end("a")

    run_ahead(test())


def test_the_time_of_a_run_begins_when_it_leaves_the_line() -> None:
    async def test() -> None:
        house = House(ONE, run_timeout=10)
        first, waiting = house.ask("a"), house.ask("b")
        await first.wait()
        assert first.latency_ms == 10_000
        await time_passes(9.9)
        assert waiting.terminal is None
        await waiting.wait()
        assert (waiting.terminal and waiting.terminal.name, waiting.latency_ms) == ("error", 10_000)

    run_ahead(test())


def test_who_stops_takes_no_more_and_lets_those_go_on_who_have_begun() -> None:
    async def test() -> None:
        house = House(ONE)
        going_on, waiting = house.ask("a"), house.ask("b")
        house.runs.drain()
        await waiting.wait()
        assert told(waiting)[-1] == Cancelled(reason="draining", usage=Usage())
        with pytest.raises(Fault, match=r"The service is shutting down\."):
            house.ask("c")
        assert going_on.terminal is None
        await house.end("a")
        assert going_on.terminal
        assert going_on.terminal.name == "done"

    run_ahead(test())


def test_a_run_takes_no_more_viewers_than_it_may_have() -> None:
    async def test() -> None:
        house = House(Capacity(), max_viewers=2)
        run = house.ask("a")
        with run.viewing(), run.viewing():
            with pytest.raises(Fault) as caught, run.viewing():
                raise AssertionError("a third")
            assert (caught.value.code, caught.value.limit, run.viewers) == ("overloaded", "max_viewers", 2)
        with run.viewing():
            assert run.viewers == 1
        await house.end("a")

    run_ahead(test())


OWNERS = ("one", "two", "three")
ACTIONS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(OWNERS)),
    st.tuples(st.sampled_from(["end", "stop"]), st.integers(0, 20)),
    st.tuples(st.just("pass"), st.sampled_from([0.0, 1.0, 7.0])),
)


@settings(max_examples=200, deadline=None)
@given(
    capacity=st.builds(Capacity, *(st.integers(0, 3) for _ in range(4))),
    script=st.lists(ACTIONS, max_size=30),
)
def test_places_are_never_given_twice_nor_left_free(capacity: Capacity, script: Sequence[tuple[str, object]]) -> None:
    def is_right(runs: list[Run]) -> None:
        going_on = [run for run in runs if run.terminal is None and not run.waits]
        waiting = [run for run in runs if run.terminal is None and run.waits]
        of = {owner: sum(run.owner == owner for run in going_on) for owner in OWNERS}
        most, each = capacity.max_runs or 1000, capacity.max_runs_per_owner or 1000
        assert len(going_on) <= most
        assert max(of.values()) <= each
        assert len(waiting) <= capacity.max_queue
        assert len(going_on) == most or all(of[run.owner] == each for run in waiting), "a place is left free"

    async def test() -> None:
        house = House(capacity, queue_timeout=20)
        runs: list[Run] = []
        for number, (what, value) in enumerate(script):
            if what == "ask":
                with suppress(Fault):
                    runs.append(house.ask(str(number), str(value)))
            elif what == "pass":
                await time_passes(float(str(value)))
            elif runs:
                run = runs[int(str(value)) % len(runs)]
                house.speaker.end(run.answer.model) if what == "end" else run.end("requested")
            await time_passes(0.0001)
            is_right(runs)
        await house.runs.close()
        assert all(run.terminal for run in runs)
        assert [sum(event is run.terminal for event in told(run)) for run in runs] == [1] * len(runs)
        assert house.runs.admission._taken == {}
        assert house.runs.admission.waiting == house.runs.admission._total == 0

    run_ahead(test())
