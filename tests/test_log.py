"""The event log: numbered, closed by its terminal event, and read by viewers who are nothing but positions in it.

All of that is so of a log that is appended to, and of one that a mirror has: what another has, brought by its entries.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.entries import Batch, Head, decode_batch, encode_batch, seq_of
from streaming.events import Cancelled, Event, Reasoning, Reset, Start, Token, ToolCall, ToolCallDelta, Usage
from streaming.limits import Limits
from streaming.log import EVENT_OVERHEAD, EventLog, follow, size_of
from streaming.mirror import Mirror

from .asgi import run

END = Cancelled(reason="requested", usage=Usage())
Batches = list[list[tuple[int, Event]]]


NewLog = Callable[[], EventLog]


class Mirrored(EventLog):
    """The log of a mirror: what is appended is said elsewhere, and comes here through the bytes of its entries."""

    def __init__(self) -> None:
        super().__init__()
        self._said = EventLog()
        self._mirror = Mirror(Head("", "", "", "", "", {}, 0, Limits(0, 0, 0, 0)), lambda mirror: None)
        self._mirror.log = self
        self._takes = False

    def append(self, events: Sequence[Event]) -> bool:
        if self._takes:
            return super().append(events)
        after = len(self._said)
        if not self._said.append(events):
            return False
        upto = len(self._said)
        sent = encode_batch(Batch(after, self._said.entries(after, upto)))
        fields = [field if isinstance(field, bytes) else str(field).encode() for field in sent]
        self._takes = True
        self._mirror.take(decode_batch(fields), seq_of(b"%d-0" % upto))
        self._takes = False
        return True


@pytest.fixture(scope="module", params=[EventLog, Mirrored], ids=["appended", "mirrored"])
def new_log(request: pytest.FixtureRequest) -> NewLog:
    made: NewLog = request.param
    return made


def log_of(new_log: NewLog, *events: Event) -> EventLog:
    log = new_log()
    log.append(events)
    return log


async def settle() -> None:
    """Let every task go as far as it can: the longest chain here is a wake-up and the cancellation it meets."""
    for _ in range(5):
        await asyncio.sleep(0)


async def collect(batches: AsyncIterator[list[tuple[int, Event]]]) -> Batches:
    return [batch async for batch in batches]


def test_a_position_reads_what_follows_it(new_log: NewLog) -> None:
    log = log_of(new_log, Token("a"), Token("b"), END)
    assert [log.read(after) for after in range(5)] == [
        [Token("a"), Token("b"), END],
        [Token("b"), END],
        [END],
        [],
        [],
    ]


def test_what_was_read_is_the_readers_own(new_log: NewLog) -> None:
    log = log_of(new_log, Token("a"))
    log.read(0).clear()
    assert log.read(0) == [Token("a")]


def test_length_is_the_number_of_the_last_event(new_log: NewLog) -> None:
    log = log_of(new_log, Token("a"), Token("b"))
    log.append([Token("c")])
    assert len(log) == 3


def test_the_terminal_event_closes_the_log(new_log: NewLog) -> None:
    log = log_of(new_log, Token("a"))
    assert not log.closed
    log.append([Token("b"), END])
    assert log.closed
    with pytest.raises(RuntimeError, match="append to a closed event log"):
        log.append([Token("c")])
    assert log.read(0) == [Token("a"), Token("b"), END]


def test_only_a_position_past_the_terminal_event_has_ended(new_log: NewLog) -> None:
    log = log_of(new_log, Token("a"))
    assert [log.ended(after) for after in range(3)] == [False, False, False]
    log.append([END])
    assert [log.ended(after) for after in range(4)] == [False, False, True, True]


def test_an_event_counts_its_text_in_utf8_and_a_constant() -> None:
    assert [size_of(event) - EVENT_OVERHEAD for event in (Token("abc"), Reasoning("é"), ToolCallDelta(0, "👍"))] == [
        3,
        2,
        4,
    ]
    assert size_of(Token("\ud800")) - EVENT_OVERHEAD == 3  # half a character, as a sloppy upstream may send it
    assert size_of(ToolCall("i", "f", {"a": 1})) - EVENT_OVERHEAD == len('{"id":"i","tool":"f","args":{"a":1}}')
    assert size_of(Reasoning("", signature="EqQB")) - EVENT_OVERHEAD == 4  # it may be kilobytes


def test_the_size_of_a_log_is_that_of_its_events(new_log: NewLog) -> None:
    log = new_log()
    assert log.size == 0
    log.append([Token("abc"), Token("é")])
    log.append([Reasoning("", signature="EqQB"), Reasoning("hm"), END])
    more = size_of(Reasoning("", signature="EqQB")) + size_of(Reasoning("hm"))
    assert log.size == size_of(Token("abc")) + size_of(Token("é")) + more + size_of(END)


def test_a_reset_voids_what_was_counted_and_said_before_it_and_keeps_it_in_the_log(new_log: NewLog) -> None:
    log = log_of(new_log, Token("a"), Reasoning("hm"), Token("bc"))
    assert (log.deltas, log.characters, log.text(Token), log.text(Reasoning)) == (3, 5, "abc", "hm")
    size = log.size
    log.append([Reset("idle_timeout"), Start(run="r", provider="p", model="m", created=0), Token("d")])
    assert (log.deltas, log.characters, log.text(Token), log.text(Reasoning)) == (1, 1, "d", "")
    assert log.size > size
    log.append([Token("e"), END])
    assert [event for _, event in log.merged(2)] == [
        Token("bc"),
        Reset("idle_timeout"),
        Start(run="r", provider="p", model="m", created=0),
        Token("de"),
        END,
    ]


def test_a_signature_closes_what_was_thought_and_is_never_lost(new_log: NewLog) -> None:
    said = [Reasoning("h"), Reasoning("m"), Reasoning("", signature="EqQB"), Reasoning("More"), Reasoning("."), END]
    log = log_of(new_log, *said)
    assert log.read(0) == said
    assert [[event for _, event in log.merged(after)] for after in range(5)] == [
        [Reasoning("hm"), Reasoning("", signature="EqQB"), Reasoning("More."), END],
        [Reasoning("m"), Reasoning("", signature="EqQB"), Reasoning("More."), END],
        [Reasoning("", signature="EqQB"), Reasoning("More."), END],
        [Reasoning("More."), END],
        [Reasoning("."), END],
    ]


def test_waiting_for_what_is_there_returns_at_once(new_log: NewLog) -> None:
    async def test() -> None:
        log = log_of(new_log, Token("a"))
        await log.wait(0)
        log.append([END])
        await log.wait(2)  # nothing follows, nothing ever will

    run(test())


def test_each_who_waits_is_woken_by_what_it_waits_for(new_log: NewLog) -> None:
    async def test() -> None:
        log = new_log()
        waiting = [asyncio.ensure_future(log.wait(0)) for _ in range(3)]
        await settle()
        assert not any(task.done() for task in waiting)
        log.append([Token("a")])
        await asyncio.gather(*waiting)

    run(test())


def test_appending_nothing_wakes_nobody(new_log: NewLog) -> None:
    async def test() -> None:
        log = new_log()
        waiting = asyncio.ensure_future(log.wait(0))
        await settle()
        log.append([])
        await settle()
        assert not waiting.done()
        log.append([Token("a")])
        await waiting

    run(test())


def test_a_cancelled_waiter_leaves_nothing_behind(new_log: NewLog) -> None:
    async def test() -> None:
        log = new_log()
        staying, leaving = (asyncio.ensure_future(log.wait(0)) for _ in range(2))
        await settle()
        leaving.cancel()
        await asyncio.wait((leaving,))
        assert leaving.cancelled()
        assert len(log._waiting) == 1
        log.append([Token("a")])
        await staying
        assert not log._waiting

    run(test())


def test_a_waiter_cancelled_just_before_an_event_comes_is_cancelled_and_no_more(new_log: NewLog) -> None:
    """A ping's clock and a token may be due in one turn of the loop: the token finds a waiter that is leaving."""

    async def test() -> None:
        log = new_log()
        waiting = asyncio.ensure_future(log.wait(0))
        await settle()
        waiting.cancel()
        log.append([Token("a")])
        with suppress(asyncio.CancelledError):
            await waiting
        assert waiting.cancelled()

    run(test())


def test_a_waiter_cancelled_just_after_an_event_came_is_cancelled_and_no_more(new_log: NewLog) -> None:
    async def test() -> None:
        log = new_log()
        waiting = asyncio.ensure_future(log.wait(0))
        await settle()
        log.append([Token("a")])
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        assert (waiting.cancelled(), log._waiting) == (True, {})

    run(test())


def test_a_follower_gets_everything_to_the_terminal_event_and_then_ends(new_log: NewLog) -> None:
    async def test() -> Batches:
        log = new_log()
        following = asyncio.ensure_future(collect(follow(log, 0)))
        for event in (Token("a"), Token("b"), ToolCall("i", "f", {}), END):
            await settle()
            log.append([event])
        return await following

    assert run(test()) == [[(1, Token("a"))], [(2, Token("b"))], [(3, ToolCall("i", "f", {}))], [(4, END)]]


def test_following_a_log_that_is_closed_ends_after_what_is_left(new_log: NewLog) -> None:
    log = log_of(new_log, Token("a"), Token("b"), Reasoning("c"), END)
    assert [run(collect(follow(log, after))) for after in range(5)] == [
        [[(2, Token("ab")), (3, Reasoning("c")), (4, END)]],
        [[(2, Token("b")), (3, Reasoning("c")), (4, END)]],
        [[(3, Reasoning("c")), (4, END)]],
        [[(4, END)]],
        [],
    ]


def test_what_was_appended_while_a_follower_was_busy_comes_as_one_merged_batch(new_log: NewLog) -> None:
    async def test() -> Batches:
        log = new_log()
        log.append([Token("a")])
        batches: Batches = []
        async for batch in follow(log, 0):
            batches.append(batch)
            if len(batches) == 1:  # busy: it has not asked for more yet
                log.append([Token("b")])
                log.append([Token("c"), Reasoning("d")])
                await settle()
                log.append([Reasoning("e"), END])
        return batches

    assert run(test()) == [[(1, Token("a"))], [(3, Token("bc")), (5, Reasoning("de")), (6, END)]]


def test_a_follower_that_is_cancelled_while_it_waits_leaves_nothing_behind(new_log: NewLog) -> None:
    async def test() -> None:
        log = new_log()
        following = asyncio.ensure_future(collect(follow(log, 0)))
        await settle()
        following.cancel()
        await asyncio.wait((following,))
        assert (following.cancelled(), log._waiting) == (True, {})

    run(test())


def test_a_follower_that_is_closed_holds_up_nobody(new_log: NewLog) -> None:
    async def test() -> None:
        log = log_of(new_log, Token("a"))
        async with aclosing(follow(log, 0)) as batches:
            assert await anext(batches) == [(1, Token("a"))]
        log.append([END])

    run(test())


@settings(deadline=None)  # another process may have the core
@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), max_size=6), st.integers(0, 5), st.integers(0, 3)
)
def test_viewers_at_different_positions_get_the_same_text(
    new_log: NewLog, batches: list[list[str]], late: int, slow: int
) -> None:
    """One is there from the start, one comes `late`, one takes `slow` turns of the loop over each batch."""

    async def text(log: EventLog, turns: int = 0) -> str:
        parts = []
        async for batch in follow(log, 0):
            parts += [event.text for _, event in batch if isinstance(event, Token)]
            for _ in range(turns):
                await asyncio.sleep(0)
        return "".join(parts)

    async def test() -> tuple[str, ...]:
        log = log_of(new_log, Start(run="r", provider="p", model="m", created=0))
        viewers = [asyncio.ensure_future(text(log)), asyncio.ensure_future(text(log, slow))]
        for place, batch in enumerate(batches):
            if place == late:
                viewers.append(asyncio.ensure_future(text(log)))
            log.append([Token(part) for part in batch])
            await asyncio.sleep(0)
        log.append([END])
        return tuple(await asyncio.gather(*viewers, text(log)))

    assert set(run(test())) == {"".join(part for batch in batches for part in batch)}


def test_a_viewer_far_behind_takes_turns_with_the_others(new_log: NewLog) -> None:
    """It gets the whole of a long answer in a few events, and each time the others come first."""

    async def test() -> tuple[str, int, list[int]]:
        log, turns, after = new_log(), 0, []
        log.append([Token(f"{number} ") for number in range(100_000)])
        log.append([END])

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.ensure_future(others())
        text = ""
        async for batch in follow(log, 0):
            after.append(turns)
            text += "".join(event.text for _, event in batch if isinstance(event, Token))
        other.cancel()
        return text, len(after), after

    text, batches, turns = run(test())
    assert text == "".join(f"{number} " for number in range(100_000))
    assert 5 < batches < 20
    assert turns[:-1] == sorted(set(turns[:-1]))
