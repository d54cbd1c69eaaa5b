"""A breaker, arrow by arrow of the drawing in streaming/breaker.py, on a clock that the test turns."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming import breaker as breakers
from streaming.breaker import Breaker, BreakerPolicy, Breakers, State
from streaming.errors import RequestError, UpstreamError

POLICY = BreakerPolicy(share=0.5, least=4, window=30, pause=10)
FAULT = UpstreamError("upstream_unavailable", "Out of order.")
OUTCOMES: dict[str, BaseException | None] = {
    "ok": None,
    "fails": FAULT,
    "breaks": KeyError("x"),
    "rejects": UpstreamError("upstream_rejected", "No."),
    "unfit": RequestError("invalid_request", "No."),
    "cancelled": asyncio.CancelledError(),
}


class Clock:
    """Seconds that pass when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def ask(breaker: Breaker, outcome: str, *, heard: bool = False) -> None:
    """Make an attempt that ends so, after its first content perhaps."""
    with suppress(Exception, asyncio.CancelledError), breaker.asking():
        if heard:
            breaker.heard()
        if (exc := OUTCOMES[outcome]) is not None:
            raise exc


def play(script: str, policy: BreakerPolicy = POLICY) -> tuple[Breaker, Clock]:
    """Make attempts, and let seconds pass between: `fails*4 10 heard+ok`."""
    breaker = Breaker(policy, clock := Clock())
    for step in script.split():
        outcome, _, times = step.partition("*")
        if outcome.replace(".", "").isdigit():
            clock.now += float(outcome)
            continue
        for _ in range(int(times or 1)):
            ask(breaker, outcome.removeprefix("heard+"), heard=outcome.startswith("heard+"))
    return breaker, clock


@pytest.mark.parametrize(
    ("script", "state", "attempts"),
    [
        # closed
        ("", "closed", (0, 0)),
        ("fails*3", "closed", (3, 3)),  # too few to judge by
        ("ok*3 fails*2", "closed", (5, 2)),  # below the share
        ("fails*3 ok", "closed", (4, 3)),  # an answer opens nothing
        ("rejects*4 unfit*4", "closed", (0, 0)),  # the caller's fault says nothing
        ("fails*3 rejects*9 fails", "open", (4, 4)),  # and makes nothing better
        ("fails*3 cancelled*9", "closed", (3, 3)),  # which says nothing
        ("heard+ok fails*2 heard+fails", "open", (4, 3)),  # content of a closed one forgets nothing
        # closed -> open
        ("fails*4", "open", (4, 4)),
        ("breaks*4", "open", (4, 4)),
        ("ok*2 fails*2", "open", (4, 2)),  # just the share
        ("fails*3 ok fails", "open", (5, 4)),
        # the window, half by half
        ("fails*3 29.9 fails", "open", (4, 4)),
        ("fails*3 30 fails", "closed", (1, 1)),
        ("fails*2 15 ok 15 fails", "closed", (2, 1)),
        # open -> half_open
        ("fails*4 9.9", "open", (4, 4)),
        ("fails*4 10", "half_open", (4, 4)),
        # open, and asked all the same
        ("fails*4 6 fails 6", "half_open", (4, 4)),  # which is no news
        ("fails*4 ok", "closed", (0, 0)),
        ("fails*4 heard+cancelled", "closed", (0, 0)),
        # half_open -> closed
        ("fails*4 10 ok", "closed", (0, 0)),
        ("fails*4 10 rejects", "closed", (0, 0)),
        ("fails*4 10 heard+ok", "closed", (1, 0)),
        ("fails*4 10 heard+fails", "closed", (1, 1)),
        # half_open -> open
        ("fails*4 10 fails", "open", (4, 4)),
        # half_open it stays
        ("fails*4 10 cancelled*3", "half_open", (4, 4)),
    ],
)
def test_what_becomes_of_attempts_opens_and_closes_it(script: str, state: State, attempts: tuple[int, int]) -> None:
    breaker, _ = play(script)
    assert (breaker.state, breaker.turns_away, breaker.attempts) == (state, state == "open", attempts)


@settings(deadline=None)  # another process may have the core
@given(st.lists(st.tuples(st.floats(0, 40), st.booleans()), max_size=20))
def test_all_of_the_last_half_window_counts_and_nothing_older_than_three(steps: list[tuple[float, bool]]) -> None:
    breaker, made = Breaker(BreakerPolicy(least=1000), clock := Clock()), []
    for seconds, fails in steps:
        clock.now += seconds
        ask(breaker, "fails" if fails else "ok")
        made.append((clock.now, fails))
        late, old = ([failed for at, failed in made if clock.now - at < age] for age in (15, 45))
        attempts, failures = breaker.attempts
        assert len(late) <= attempts <= len(old)
        assert sum(late) <= failures <= sum(old)


def test_only_one_at_a_time_tries_whether_it_may_close() -> None:
    breaker, _ = play("fails*4 10")
    with suppress(asyncio.CancelledError), breaker.asking():
        assert (breaker.state, breaker.turns_away) == ("half_open", True)
        ask(breaker, "cancelled")  # where all are turned away
        assert breaker.turns_away
        raise asyncio.CancelledError
    assert (breaker.state, breaker.turns_away) == ("half_open", False)
    ask(breaker, "fails")
    assert breaker.state == "open"


def test_one_that_has_spoken_tries_nothing_any_more_though_it_goes_on() -> None:
    """An answer may take minutes; meanwhile the breaker may open again, and its pause pass."""
    breaker, clock = play("fails*4 10")
    with breaker.asking():
        breaker.heard()
        assert (breaker.state, breaker.turns_away, breaker.attempts) == ("closed", False, (0, 0))
        for _ in range(4):
            ask(breaker, "fails")
        clock.now += 10
        assert (breaker.state, breaker.turns_away) == ("half_open", False)


# all of a process


def test_each_candidate_has_a_breaker_of_its_own() -> None:
    known = Breakers(POLICY)
    one, other = known.of("a/m"), known.of("b/m")
    for _ in range(4):
        ask(one, "fails")
    assert known.of("a/m") is one
    assert (one.state, other.state) == ("open", "closed")


def test_whom_nobody_asked_for_the_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakers, "MAX_KNOWN", 3)
    known = Breakers(POLICY)
    made = {name: known.of(name) for name in "abcad"}
    assert [known.of(name) is made[name] for name in "cdab"] == [True, True, True, False]


def test_those_are_told_of_that_are_not_closed_or_were_asked_of_late() -> None:
    known = Breakers(BreakerPolicy(least=1, pause=0))
    half_open, asked, _ = (known.of(name) for name in ("half open", "asked", "silent"))
    half_open._now = clock = Clock()
    ask(half_open, "fails")
    clock.now = 1e12  # it was long ago
    ask(asked, "ok")
    assert known.told() == {"half open": half_open, "asked": asked}
    assert [(one.state, one.attempts) for one in (half_open, asked)] == [("half_open", (0, 0)), ("closed", (1, 0))]
