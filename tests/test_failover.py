"""Who else may answer: when one is asked again, when the next one is, and what of its answer is news. All pure."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace

from streaming.breaker import Breaker, BreakerPolicy
from streaming.errors import Fault, RequestError, ServiceError, UpstreamError
from streaming.events import Delta, Event, Finish, Reasoning, Token, ToolCall, ToolCallDelta, Updates, Usage, Values
from streaming.failover import Candidate, Continuation, Failover, Item, Retries, preferred
from streaming.log import EventLog
from streaming.request import RunRequest

KINDS = (RequestError, UpstreamError, ServiceError)
CODES = sorted(code for kind in KINDS for code in kind.codes)
# What the house has promised; not read off streaming/errors.py, which is held against it.
AGAIN = {"upstream_unavailable", "upstream_rate_limited", "upstream_incomplete"}
ELSEWHERE = {*AGAIN, "upstream_invalid", "graph_failed", "first_token_timeout", "idle_timeout", "internal"}


def fault(code: str = "upstream_unavailable", **more: Any) -> Fault:
    return next(kind for kind in KINDS if code in kind.codes)(code, f"It is {code}.", **more)


def waits(retries: Retries, tries: int, **more: Any) -> tuple[float, float]:
    """Return the least and the greatest of many waits: some of a thousand come near to both ends."""
    drawn = [retries.wait(tries, fault(**more)) or 0.0 for _ in range(1000)]
    return min(drawn), max(drawn)


@pytest.mark.parametrize(("tries", "whole"), [(1, 0.5), (2, 1), (3, 2), (4, 4), (5, 8), (6, 8), (60, 8), (1000, 8)])
def test_each_wait_is_twice_as_long_to_a_bound_and_between_half_and_all_of_it(tries: int, whole: float) -> None:
    least, greatest = waits(Retries(most=1000), tries)
    assert whole / 2 <= least < whole * 0.55
    assert whole * 0.95 < greatest <= whole


@pytest.mark.parametrize("most", [0, 1, 2, 5])
def test_it_is_asked_again_so_often_and_no_more(most: int) -> None:
    asked = [Retries(most, delay=0).wait(tries, fault()) for tries in range(1, 9)]
    assert asked == [0] * most + [None] * (8 - most)


@pytest.mark.parametrize("code", CODES)
def test_only_what_may_pass_is_asked_again(code: str) -> None:
    assert (Retries().wait(1, fault(code)) is not None) == (code in AGAIN)
    assert Retries().wait(1, fault(code, again=False)) is None


@pytest.mark.parametrize(
    ("asked_for", "least", "greatest"),
    [(0.0, 0.25, 0.5), (0.4, 0.4, 0.5), (3.0, 3, 3), (10.0, 10, 10)],
)
def test_what_the_upstream_asks_for_is_the_least_wait(asked_for: float, least: float, greatest: float) -> None:
    shortest, longest = waits(Retries(), 1, retry_after=asked_for)
    assert least <= shortest <= least * 1.1
    assert greatest * 0.95 <= longest <= greatest


@pytest.mark.parametrize("asked_for", [10.001, 3600.0, float("inf")])
def test_one_that_asks_for_longer_than_that_is_not_waited_for(asked_for: float) -> None:
    assert Retries().wait(1, fault(retry_after=asked_for)) is None
    assert Retries(max_retry_after=asked_for).wait(1, fault(retry_after=asked_for)) == asked_for


@pytest.mark.parametrize("code", CODES)
def test_a_fault_is_the_next_ones_turn_where_that_may_do_better_or_the_request_says_so(code: str) -> None:
    assert Failover([]).passes_on(fault(code)) == (code in ELSEWHERE)
    assert Failover([], on=[code]).passes_on(fault(code))
    assert Failover([], on=set(CODES) - {code}).passes_on(fault(code)) == (code in ELSEWHERE)


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "interrupt"])
def test_a_whole_answer_is_the_end_unless_a_filter_stopped_it_and_the_request_says_so(reason: Any) -> None:
    assert not Failover([], on=set(CODES) - {"content_filtered"}).passes_on(Finish(reason))
    assert Failover([], on=["content_filtered"]).passes_on(Finish(reason)) == (reason == "content_filter")


@pytest.mark.parametrize(
    ("states", "chosen"),
    [
        ("open closed closed", 1),
        ("open open closed", 2),
        ("open open", 0),
        ("half_open closed", 0),
        ("tried closed", 1),
        ("tried open", 0),
        ("open tried half_open", 2),
    ],
)
def test_the_first_that_is_not_turned_away_is_preferred_and_else_the_first(states: str, chosen: int) -> None:
    async def load() -> Any:
        raise AssertionError("nobody is asked here")

    candidates, trying = [], ExitStack()
    for place, state in enumerate(states.split()):
        breaker = Breaker(BreakerPolicy(least=1, pause=1000 if state == "open" else 0))
        candidates.append(Candidate(str(place), RunRequest(model="m", messages=[]), load, breaker))
        if state != "closed":
            with suppress(Fault), breaker.asking():
                raise fault()
        if state == "tried":
            trying.enter_context(breaker.asking())
    with trying:
        assert preferred(candidates) is candidates[chosen]


def folded(*items: Item) -> list[Event]:
    """Join what follows one another, as a log does."""
    log = EventLog()
    log.append([item for item in items if isinstance(item, Event)])
    return [event for _, event in log.merged(0)]


def fed(said: Sequence[Item], *batches: Sequence[Item]) -> tuple[bool | None, list[list[Item]]]:
    """Feed batches as a run does: once it is known whether the answer differs, all is passed on as it is."""
    continuation = Continuation(folded(*said))
    passed = [batch if continuation.differs is not None else continuation.feed(batch) for batch in batches]
    return continuation.differs, [list(batch) for batch in passed]


def t(*texts: str) -> list[Item]:
    return [Token(text) for text in texts]


def d(text: str, call_id: Any = UNSET, index: int = 0) -> ToolCallDelta:
    return ToolCallDelta(index, text, call_id, UNSET if call_id is UNSET else "f")


Case = tuple[list[Item], list[list[Item]], bool | None, list[list[Item]]]
CALL = ToolCall("c1", "f", {"a": 1})
STOP = Finish("stop", Usage(3, 4))
ASKED: list[Item] = [d("{}", "c1")]
STEP = Updates(("sub:1",), {"n": 1})
ONE, TWO = Token("Hi", "one"), Token("Hi", "two")
HM, HI = Reasoning("hm"), Token("Hi")
SIGNED, SIGNED_ELSE = Reasoning("", signature="s"), Reasoning("", signature="t")
CASES: dict[str, Case] = {  # what was said; what comes; whether it differs; what is passed on
    "the same": (t("Hello"), [t("Hello")], False, [[]]),
    "the same, and its end": (t("Hello"), [[*t("Hello"), STOP]], False, [[STOP]]),
    "the same, then its end": (t("Hello"), [t("Hello"), [STOP]], False, [[], [STOP]]),
    "goes on": (t("Hel"), [t("Hello"), t("!")], False, [t("lo"), t("!")]),
    "other splits": (t("He", "llo"), [t("H"), t("ell", "o wor"), t("ld")], False, [[], t(" wor"), t("ld")]),
    "the next delta": (t("Hi"), [[*t("Hi", "!"), STOP]], False, [[*t("!"), STOP]]),
    "not so far": (t("Hello"), [t("Hel"), t("l"), []], None, [[], [], []]),
    "other": (t("Hello"), [t("Good"), [STOP]], True, [t("Good"), [STOP]]),
    "other at last": (t("Hello"), [t("He"), t("l", "p", "!"), [STOP]], True, [[], t("He", "l", "p", "!"), [STOP]]),
    "shorter": (t("Hello"), [t("Hel"), [STOP]], True, [[], [*t("Hel"), STOP]]),
    "reasoning, then text": ([HM, *t("Hel")], [[Reasoning("h")], [Reasoning("m"), *t("Hell")]], False, [[], t("l")]),
    "longer reasoning": ([HM, HI], [[HM], [Reasoning("m")], [HI]], True, [[], [HM, Reasoning("m")], [HI]]),
    "shorter reasoning": ([Reasoning("hmm"), HI], [[HM, HI]], True, [[HM, HI]]),
    "signed reasoning": ([HM, SIGNED, HI], [[HM], [SIGNED], [HI, STOP]], False, [[], [], [STOP]]),
    "reasoning that is signed at last": ([HM, SIGNED], [[HM], [SIGNED], [HI]], False, [[], [], [HI]]),
    "reasoning that is signed otherwise": ([HM, SIGNED], [[HM], [SIGNED_ELSE]], True, [[], [HM, SIGNED_ELSE]]),
    "reasoning that is not signed": ([HM, SIGNED], [[HM], [HI]], True, [[], [HM, HI]]),
    "another node": ([ONE], [[TWO]], True, [[TWO]]),
    "another node later": ([ONE], [[Token("H", "one"), TWO]], True, [[Token("H", "one"), TWO]]),
    "a node goes on": ([ONE], [[Token("Hi!", "one")]], False, [[Token("!", "one")]]),
    "one node, then another": ([ONE, TWO], [[ONE], [TWO, STOP]], False, [[], [STOP]]),
    "a call goes on": ([d('{"a', "c1")], [[d("", "c1")], [d('{"a":')], [d("1}")]], False, [[], [d('":')], [d("1}")]]),
    "a call goes on in its opening": ([d("{", "c1")], [[d("{}", "c1")]], False, [[d("}")]]),
    "a call only opened": ([d("", "c1")], [[d("{}", "c1")]], False, [[d("{}")]]),
    "a call of another id": ([d("{}", "c1")], [[d("{}", "c2")]], True, [[d("{}", "c2")]]),
    "two calls": ([*ASKED, d("{", "c2", 1)], [ASKED, [d("{}", "c2", 1)]], False, [[], [d("}", index=1)]]),
    "a call opened twice": ([d("{", "c1")], [[d("", "c1")], [d("{", "c1")]], True, [[], [d("", "c1"), d("{", "c1")]]),
    "a whole call": ([d("{}", "c1"), CALL], [[d("{}", "c1")], [CALL, STOP]], False, [[], [STOP]]),
    "other arguments": ([CALL], [[replace(CALL, args={})]], True, [[replace(CALL, args={})]]),
    "a graph's step": ([STEP, HI], [[STEP], [HI, STOP]], False, [[], [STOP]]),
    "another kind of step": ([STEP], [[Values(STEP.ns, STEP.data)]], True, [[Values(STEP.ns, STEP.data)]]),
    "a step where text was": ([HI, STEP], [[*t("H"), STEP]], True, [[*t("H"), STEP]]),
    "empty deltas": (t("Hello"), [t(""), [*t("Hel", ""), Reasoning(""), d("")], t("lo!")], False, [[], [], t("!")]),
    "usage": (t("Hi"), [[Usage(3)], [*t("H"), Usage(4)], t("i.")], False, [[], [], [Usage(3), Usage(4), *t(".")]]),
    "usage within": (t("Hi"), [[Usage(3), *t("Hi!"), Usage(4)]], False, [[Usage(3), *t("!"), Usage(4)]]),
    "usage of another": (
        t("Hi"),
        [[*t("H"), Usage(3)], [*t("a"), STOP]],
        True,
        [[], [*t("H"), Usage(3), *t("a"), STOP]],
    ),
}


@pytest.mark.parametrize(("said", "batches", "differs", "passed"), CASES.values(), ids=CASES)
def test_what_was_said_is_held_back_and_what_is_new_is_passed_on(
    said: list[Item], batches: list[list[Item]], differs: bool | None, passed: list[list[Item]]
) -> None:
    assert fed(said, *batches) == (differs, passed)


def begins(said: list[Event], answer: list[Event]) -> bool:
    """Whether an answer begins with what was said: the last of it may have been cut."""
    *whole, last = said
    there = answer[len(whole)] if len(answer) > len(whole) else None
    if whole != answer[: len(whole)] or not isinstance(last, Delta) or not isinstance(there, Delta):
        return answer[: len(said)] == said
    return there.joined("") == last.joined("") and there.text.startswith(last.text)


_texts = st.text("ab", min_size=1, max_size=4)
_answers = st.lists(
    st.one_of(
        st.builds(Token, _texts, st.sampled_from([UNSET, "n"])),
        st.builds(Reasoning, _texts),
        st.sampled_from([SIGNED, SIGNED_ELSE]),
        st.builds(d, st.text("ab", max_size=3), st.sampled_from(["c1", "c2"]), st.integers(0, 1)),
        st.sampled_from([CALL, STEP]),
    ),
    min_size=1,
    max_size=5,
).map(lambda events: folded(*events))


@st.composite
def _turns(draw: st.DrawFn) -> tuple[list[Event], list[list[Item]]]:
    """What was said, its last delta cut perhaps; and the whole of the same answer, or of any, in any splits."""
    answer = draw(_answers)
    *said, last = answer[: draw(st.integers(1, len(answer)))]
    said += folded(last.joined(last.text[: draw(st.integers(0, 4))]) if isinstance(last, Delta) else last)
    items: list[Item] = []
    for event in answer if draw(st.booleans()) else draw(_answers):
        if isinstance(event, Delta):
            cuts = [0, *sorted(draw(st.lists(st.integers(0, len(event.text)), max_size=2))), len(event.text)]
            first, *others = (event.text[start:end] for start, end in pairwise(cuts))
            items += [event.joined(first), *map(event.going_on, others)]
        else:
            items.append(event)
        items += draw(st.lists(st.sampled_from([Usage(1, 1), Token(""), Reasoning("")]), max_size=1))
    items.append(STOP)
    ends = [0, *sorted(draw(st.lists(st.integers(0, len(items)), max_size=4))), len(items)]
    return said or answer, [items[start:end] for start, end in pairwise(ends)]


@settings(deadline=None, max_examples=300)  # another process may have the core
@given(_turns())
@example(([Token("ab")], [t("a"), [*t("b"), STOP]]))
@example(([d("", "c1")], [[d("", "c1")], [d("a"), STOP]]))
def test_a_client_has_the_whole_answer_in_the_end_and_nothing_twice(
    turns: tuple[list[Event], list[list[Item]]],
) -> None:
    said, batches = turns
    answer = folded(*(item for batch in batches for item in batch))
    differs, passed = fed(said, *batches)
    items = [item for batch in passed for item in batch]
    assert differs == (not begins(said, answer))
    assert (folded(*items) if differs else folded(*said, *items)) == answer
    assert [one for one in items if isinstance(one, Finish)] == [STOP] == items[-1:]
    assert items.count(Usage(1, 1)) == sum(batch.count(Usage(1, 1)) for batch in batches)
