"""A run of another replica as those see it who follow it here: what it tells of itself, and what is told to its owner.

How its events come here is test_entries.py's and test_replication.py's matter.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from streaming.entries import FENCE, LOST, Batch, Head, Standing
from streaming.errors import ServiceError
from streaming.events import Cancelled, Error, Event, Queued, Start, Token, Usage
from streaming.limits import Limits
from streaming.mirror import PATIENCE, Mirror
from streaming.publisher import standing
from wires.resource import status

from .asgi import at_once, run, run_ahead, time_passes
from .test_run import STOP, Plays, run_of

LIMITS = Limits(600.0, 120.0, 60.0, 10_000, linger=3.0, max_viewers=2)
HEAD = Head("them", "0" * 32, "ann", "k", "chat", {"a": 1}, 1000.5, LIMITS)
START = Start("0" * 32, "test", "m", 1000)
END = Cancelled(reason="requested", usage=Usage(1, 2))
ESTIMATE = Usage(3, 0, estimated=True)
STANDS = Standing("test", "m", ESTIMATE, has_asked=True)


class Watched:
    """A mirror, and all that was told of it: whether somebody follows it, its linger, why it is to stop."""

    def __init__(self, head: Head = HEAD) -> None:
        self.told: list[tuple[bool, float, str | None]] = []
        self.mirror = Mirror(head, self._tell)

    def _tell(self, mirror: Mirror) -> None:
        self.told.append((mirror.viewers > 0, mirror.limits.linger, mirror.stop))

    def says(self, *events: Event, told: Standing | None = None) -> None:
        after = len(self.mirror.log)
        self.mirror.take(Batch(after, events, told), after + len(events))


def mirror(*events: Event, told: Standing | None = STANDS) -> Mirror:
    watched = Watched()
    watched.says(*events, told=told)
    return watched.mirror


def unavailable(asked: Callable[[], Any]) -> str:
    with pytest.raises(ServiceError) as raised:
        asked()
    assert raised.value.text == "A run of another replica cannot be reached just now."
    return raised.value.code


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


# --- what it tells ----------------------------------------------------------------------------------------------------


def test_a_mirror_is_what_its_head_says() -> None:
    one = mirror()
    assert (one.id, one.owner, one.key, one.name, one.about) == ("0" * 32, "ann", "k", "chat", {"a": 1})
    assert (one.created, one.limits, one.replica, one.about_size) == (1000.5, LIMITS, "them", len('{"a":1}'))
    assert (one.started, one.viewers, one.hands_over) == (True, 0, False)


def test_before_anything_is_told_nothing_is_known() -> None:
    one = mirror(told=None)
    answer = one.answer
    assert (answer.provider, answer.model, answer.usage) == ("", "", Usage())
    assert (one.has_asked, one.ttft_ms, one.waits, one.position, one.terminal) == (False, None, False, 0, None)
    assert 0 <= one.latency_ms < 1000


def test_it_stands_as_was_told_last() -> None:
    told = Standing("other", "n", Usage(5, 6, 1, 2), 1, 2, 3, ttft_ms=7, latency_ms=8000, has_asked=True)
    watched = Watched()
    watched.says(START, told=STANDS)
    watched.says(Token("a"), told=told)
    watched.says(Token("b"))
    assert watched.mirror.answer == told
    assert (watched.mirror.ttft_ms, watched.mirror.has_asked) == (7, True)
    assert 8000 <= watched.mirror.latency_ms < 9000


def test_its_latency_goes_on_until_its_end() -> None:
    watched = Watched()
    watched.says(START, told=replace(STANDS, latency_ms=10))
    first, began = watched.mirror.latency_ms, time.monotonic()
    while time.monotonic() < began + 0.02:
        pass
    assert watched.mirror.latency_ms >= first + 20
    watched.says(END, told=replace(STANDS, latency_ms=11))
    assert watched.mirror.latency_ms == 11


def test_an_estimate_grows_with_what_is_said_and_is_what_was_told_at_the_end() -> None:
    watched = Watched()
    watched.says(START, told=STANDS)
    watched.says(Token("four"), Token("five!"))
    assert watched.mirror.answer.usage == Usage(3, 3, estimated=True)
    watched.says(END, told=replace(STANDS, usage=Usage(3, 9, estimated=True)))
    assert watched.mirror.answer.usage == Usage(3, 9, estimated=True)


def test_what_an_upstream_has_counted_is_no_estimate() -> None:
    assert mirror(START, Token("four"), told=replace(STANDS, usage=Usage(3, 1))).answer.usage == Usage(3, 1)


def test_it_waits_in_line_for_as_long_as_it_says_so() -> None:
    watched, seen = Watched(), []
    for events in ([Queued(3)], [Queued(2), Queued(1)], [], [START], [Token("a")]):
        watched.says(*events)
        seen.append((watched.mirror.waits, watched.mirror.position))
    assert seen == [(True, 3), (True, 1), (True, 1), (False, 0), (False, 0)]


def test_who_ends_in_line_waits_no_longer() -> None:
    one = mirror(Queued(1), END)
    assert (one.waits, one.terminal, one.log.closed) == (False, END, True)


def test_the_first_end_is_the_only_one() -> None:
    watched = Watched()
    watched.says(START, END)
    watched.mirror.take(watched.mirror.lost())
    watched.mirror.take(Batch(0, [START, Token("a")], replace(STANDS, model="other")), 2)
    assert watched.mirror.log.read(0) == [START, END]
    assert (watched.mirror.terminal, watched.mirror.answer.model) == (END, "")


def test_a_run_that_is_lost_ends_so_wherever_it_stood() -> None:
    one = mirror(START, Token("four"))
    lost = one.lost()
    one.take(lost, FENCE)
    error = Error(error=LOST, code="run_lost", retryable=True, usage=Usage(3, 1, estimated=True))
    assert (lost.after, one.log.read(2), one.terminal) == (2, [error], error)


def test_its_status_is_that_of_the_run() -> None:
    """From its beginning to its end, as its owner would tell it."""

    async def test() -> None:
        made = run_of(Plays(2.0, [Token("Hello"), Usage(7, 1)], 3.0, [Token(" world")], STOP))
        made.start()
        watched = Watched(Head("them", made.id, "", "", "", {}, made.created, made.limits))
        for seconds in (0.0, 2.0, 3.0):
            await time_passes(seconds)
            await settle()
            log, after = made.log, len(watched.mirror.log)
            watched.mirror.take(Batch(after, log.entries(after, len(log)), standing(made)), len(log))
            theirs, ours = status(watched.mirror), status(made)
            assert abs(theirs["latency_ms"] - ours["latency_ms"]) < 1000  # it goes on by another clock
            assert {**theirs, "latency_ms": 0} == {**ours, "latency_ms": 0}
        assert (watched.mirror.terminal, watched.mirror.latency_ms) == (made.terminal, 5000)

    run_ahead(test())


# --- what is told to its owner ----------------------------------------------------------------------------------------


def test_its_owner_is_told_when_the_first_comes_and_when_the_last_has_left() -> None:
    watched = Watched()
    with watched.mirror.viewing():
        with watched.mirror.viewing():
            assert watched.told == [(True, 3.0, None)]
        assert watched.told == [(True, 3.0, None)]
    assert watched.told == [(True, 3.0, None), (False, 3.0, None)]


def test_more_than_may_follow_it_are_refused_and_told_to_nobody() -> None:
    watched = Watched()
    with watched.mirror.viewing(), watched.mirror.viewing():
        watched.told.clear()
        with pytest.raises(ServiceError, match="2 viewers"), watched.mirror.viewing():
            pass
        assert (watched.mirror.viewers, watched.told) == (2, [])
    assert watched.told == [(False, 3.0, None)]


def test_it_is_stopped_once_for_the_first_reason_and_not_after_its_end() -> None:
    watched = Watched()
    watched.mirror.end("requested")
    watched.mirror.end("draining")
    assert watched.told == [(False, 3.0, "requested")]
    assert not watched.mirror.log.closed  # its owner ends it
    watched.says(START, END)
    over = Watched()
    over.says(END)
    over.mirror.end("requested")
    assert over.told == []


def test_it_lingers_for_the_longest_that_anybody_wants_and_each_is_told() -> None:
    watched = Watched()
    for seconds in (5.0, 4.0, 6.0):
        watched.mirror.linger_for(seconds)
    assert watched.told == [(False, 5.0, None), (False, 5.0, None), (False, 6.0, None)]
    assert watched.mirror.limits == replace(LIMITS, linger=6.0)


def test_when_it_was_asked_to_linger_is_kept_as_each_time_counts_anew() -> None:
    one = mirror()
    assert one.asked == 0
    one.linger_for(1.0)
    first = one.asked
    one.linger_for(1.0)
    assert 0 < first < one.asked


def test_it_is_idle_from_when_it_was_made_or_its_last_viewer_left_or_it_was_asked_for() -> None:
    one = mirror()
    made = one.idle_since
    assert made is not None
    one.touch()
    assert one.idle_since is not None
    assert one.idle_since >= made
    with one.viewing():
        one.touch()
        assert (one.idle_since, one.alone.is_set()) == (None, False)
    assert one.idle_since is not None
    assert one.alone.is_set()


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_who_waits_for_its_end_has_it_at_once_when_it_comes() -> None:
    async def test() -> None:
        watched = Watched()
        waiting = asyncio.ensure_future(watched.mirror.wait())
        watched.says(START)
        await settle()
        assert not waiting.done()
        watched.says(END)
        await waiting
        await watched.mirror.wait()

    run(test())


def test_who_waits_for_an_end_that_does_not_come_is_told_so() -> None:
    """What becomes of the run is not known: it may be stopped, or not."""

    async def test() -> float:
        one = mirror(START)
        with pytest.raises(ServiceError) as raised:
            await one.wait()
        assert raised.value.code == "unavailable"
        return asyncio.get_running_loop().time()

    assert run_ahead(test()) == PATIENCE


def test_an_event_is_waited_for_until_it_is_there_or_the_run_is_over() -> None:
    async def test() -> None:
        watched = Watched()
        watched.says(START)
        await watched.mirror.reach(1)
        second, third = (asyncio.ensure_future(watched.mirror.reach(seq)) for seq in (2, 9))
        await settle()
        watched.says(Token("a"))
        await settle()
        assert (second.done(), third.done()) == (True, False)
        watched.says(END)
        await third

    run(test())


def test_an_event_that_never_comes_is_not_waited_for_for_ever() -> None:
    async def test() -> float:
        await mirror(START).reach(2)
        return asyncio.get_running_loop().time()

    assert run_ahead(test()) == PATIENCE


def test_who_waits_for_an_event_is_sent_elsewhere_with_the_others() -> None:
    async def test() -> None:
        one = mirror(START)
        waiting = asyncio.ensure_future(one.reach(2))
        await settle()
        one.hand_over()
        with pytest.raises(ServiceError) as raised:
            await waiting
        assert raised.value.code == "unavailable"
        assert unavailable(lambda: at_once(one.reach(2))) == "unavailable"
        await one.reach(1)  # which is here

    run(test())


def test_waiting_leaves_nothing_behind() -> None:
    async def test() -> None:
        one = mirror(START)
        for wait in (one.wait(), one.reach(5)):
            waiting = asyncio.ensure_future(wait)
            await time_passes(1)
            waiting.cancel()
            await asyncio.wait((waiting,))
            assert (waiting.cancelled(), one.log._waiting) == (True, {})

    run_ahead(test())
