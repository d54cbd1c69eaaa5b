"""A run that several candidates may answer: who is asked when, what a viewer is told of it, and what is left behind.

Each candidate does its steps, others each time it is asked, and the clock jumps (tests/asgi.py).
"""

import asyncio
import gc
import types
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from streaming.answer import Answer
from streaming.breaker import Breaker, BreakerPolicy
from streaming.errors import Fault, ServiceError, UpstreamError
from streaming.events import Cancelled, Delta, Event, Finish, Reasoning, Reset, Start, Terminal, Token, ToolCall, Usage
from streaming.failover import Candidate, Continuation, Failover, Item, Retries
from streaming.followed import CancelReason
from streaming.limits import Limits
from streaming.request import Emit, RunRequest
from streaming.run import Run

from .asgi import run_ahead, time_passes
from .test_failover import d, fault, t
from .test_run import LIMITS, NOTHING, REQUEST, Plays, Step, clocks, failed, finished

Attempts = list[list[Step]]  # of one candidate: what it does each time that it is asked
Counts = tuple[int, int, int]  # retries, failovers, resets
A, B, C = (Start(run="", provider=name, model=f"model-{name}", created=0) for name in "abc")
HE, HEL, STOP = t("He"), t("Hel"), [Finish("stop")]
FILTERED, FILTER = [Finish("content_filter")], Finish("content_filter", Usage(7))
HELLO: list[Step] = [t("Hell"), [*t("o"), *STOP]]
GOOD_DAY = t("Good", " day")
OTHER: list[Step] = [*([one] for one in GOOD_DAY), STOP]


def fails(code: str, **more: Any) -> Callable[[], None]:
    """A step that raises a fault of its own, which nobody else holds."""

    def fail() -> None:
        raise fault(code, **more)

    return fail


def breaks() -> None:
    raise KeyError("x")


DOWN, BUSY, CUT = (fails(f"upstream_{what}") for what in ("unavailable", "rate_limited", "incomplete"))
WAIT = {seconds: fails("upstream_rate_limited", retry_after=seconds) for seconds in (3, 4, 9, 10.5)}
GARBLED, REJECTED, UNFIT = fails("upstream_invalid"), fails("upstream_rejected"), fails("invalid_request")


class Answers:
    """A provider that takes so long to load, and when it was asked."""

    def __init__(self, attempts: Attempts, loads: float = 0.0) -> None:
        self.attempts = attempts
        self.loads = loads
        self.asked: list[float] = []
        self.closed = 0

    async def load(self) -> "Answers":
        await time_passes(self.loads)
        return self

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        self.asked.append(asyncio.get_running_loop().time())
        try:
            await self.play(emit)
        finally:
            self.closed += 1

    async def play(self, emit: Emit) -> None:
        await Plays(*self.attempts[len(self.asked) - 1]).stream(REQUEST, emit)


class Stubborn(Answers):
    """Will not be cancelled: goes on with its second attempt's steps in the midst of the first's."""

    async def play(self, emit: Emit) -> None:
        with suppress(asyncio.CancelledError):
            await super().play(emit)
        await Plays(*self.attempts[1]).stream(REQUEST, emit)


class Told(NamedTuple):
    events: list[Event]
    counts: Counts
    asked: list[list[float]]  # when, a candidate each
    run: Run


def play(
    *plays: Attempts | Answers,
    on: Sequence[str] = (),
    effects: str = "",
    breakers: dict[str, Breaker] | None = None,
    limits: Limits = LIMITS,
    request: RunRequest = REQUEST,
    ends: tuple[float, CancelReason] | None = None,
) -> Told:
    """Run candidates that are called a, b, c, and see to it that it ends once and for all."""

    async def test() -> Told:
        providers = [one if isinstance(one, Answers) else Answers(one) for one in plays]
        candidates = [
            Candidate(name, replace(request, model=f"model-{name}"), one.load, breaker, has_effects=name in effects)
            for name, one in zip("abc", providers, strict=False)
            for breaker in [(breakers or {}).get(name) or Breaker()]
        ]
        run, ended = Run(Failover(candidates, on, Retries(most=2, delay=0)), limits), []
        run.start(on_end=ended.append)
        if ends:
            await time_passes(ends[0])
            run.end(ends[1])
        await run.wait()
        await asyncio.sleep(0)
        assert (ended, len(asyncio.all_tasks()), clocks()) == ([run], 1, 0)
        assert [one.closed for one in providers] == [len(one.asked) for one in providers]
        events = [replace(one, run="", created=0) if isinstance(one, Start) else one for one in run.log.read(0)]
        assert [isinstance(event, Terminal) for event in events] == [False] * (len(events) - 1) + [True]
        counts = run.answer.retries, run.answer.failovers, run.answer.resets
        return Told(events, counts, [one.asked for one in providers], run)

    return run_ahead(test())


def stands(events: Sequence[Item]) -> list[str]:
    """The deltas' texts, of the answer as it stands."""
    last = max((place for place, event in enumerate(events) if isinstance(event, Reset)), default=-1)
    return [event.text for event in events[last + 1 :] if isinstance(event, Delta)]


def whole(model: str, *events: Item, **other: Any) -> list[Item]:
    """All that is told of an answer that this one ended well."""
    texts, ttft_ms = stands(events), 0 if any(isinstance(event, Delta) for event in events) else None
    plain = {"ttft_ms": ttft_ms, "model": f"model-{model}", "tokens": len(texts)}
    return [A, *events, finished("".join(texts), **{**plain, **other})]


def broken(code: str, *events: Item, text: str = "", usage: Usage | None = None) -> list[Item]:
    """All that is told of an answer that failed."""
    usage = usage or Usage(3, -(-len("".join(stands(events))) // 4), estimated=True)
    return [A, *events, failed(code, text or f"It is {code}.", usage, retryable=fault(code).retryable)]


BUG = "Something went wrong in the service."
OPENING, CALL, HM = [d("", "c1")], ToolCall("c1", "f", {}), Reasoning("hm")
ANEW, THIRD = [B, *GOOD_DAY], [C, *GOOD_DAY]
SO, XXX, YYY, LARGE = t("So"), t("x" * 6000), t("y" * 6000), "The answer is larger than 10000 bytes."
VOID, INVALID, IDLE = Reset("upstream_incomplete"), Reset("upstream_invalid"), Reset("idle_timeout")
# What each does each time; what is told; how often one was asked again, passed on, taken back.
ROWS: dict[str, tuple[Sequence[Attempts], list[Item], Counts]] = {
    # before any content: asked again, then the next
    "unavailable": ([[[DOWN], HELLO]], whole("a", *t("Hell", "o")), (1, 0, 0)),
    "cut behind its end, no end": ([[[STOP, CUT], [], [STOP]]], whole("a"), (2, 0, 0)),
    "usage and an empty delta": ([[[[Usage(9, 9), *t("")], BUSY], [STOP]]], whole("a"), (1, 0, 0)),
    "the next": ([[[DOWN], [CUT], [BUSY]], [HELLO]], whole("b", B, *t("Hell", "o")), (2, 1, 0)),
    "both asked again": ([[[DOWN]] * 3, [[BUSY], [BUSY], [STOP]]], whole("b", B), (4, 1, 0)),
    "of no use": ([[[fails("upstream_unavailable", again=False)]], [[STOP]]], whole("b", B), (0, 1, 0)),
    "a bug": ([[[breaks]], [[STOP]]], whole("b", B), (0, 1, 0)),
    "silence": ([[[1000.0]], [[STOP]]], whole("b", B, latency_ms=120_000), (0, 1, 0)),
    "the last fault": ([[[GARBLED]], [[breaks]]], broken("internal", B, text=BUG), (0, 1, 0)),
    # the end
    "rejected": ([[[REJECTED]], []], broken("upstream_rejected"), (0, 0, 0)),
    "rejected by the second": ([[[GARBLED]], [[REJECTED]], []], broken("upstream_rejected", B), (0, 1, 0)),
    "filtered": ([[[HEL, FILTERED]], []], whole("a", *HEL, finish_reason="content_filter"), (0, 0, 0)),
    "unfit": ([[[UNFIT]], []], broken("invalid_request"), (0, 0, 0)),
    # a fallback that cannot take the request
    "unfit second": ([[[GARBLED]], [[UNFIT]]], broken("upstream_invalid", B), (0, 1, 0)),
    "unfit, then the third": ([[[GARBLED]], [[UNFIT]], [[STOP]]], whole("c", B, C), (0, 2, 0)),
    "unfit after content": ([[[HEL, GARBLED]], [[UNFIT]]], broken("upstream_invalid", *HEL), (0, 1, 0)),
    "unfit, then anew": ([[[HEL, CUT]], [[UNFIT]], [OTHER]], whole("c", *HEL, VOID, *THIRD), (0, 2, 1)),
    # after content: the next at once
    "goes on": ([[[HEL, CUT]], [HELLO]], whole("b", *HEL, *t("l", "o")), (0, 1, 0)),
    "no more to say": ([[[HEL, CUT]], [[HEL, STOP]]], whole("b", *HEL), (0, 1, 0)),
    "anew": ([[[HEL, DOWN]], [OTHER]], whole("b", *HEL, Reset("upstream_unavailable"), *ANEW), (0, 1, 1)),
    "shorter": ([[[HEL]], [[HE, STOP]]], whole("b", *HEL, VOID, B, *HE), (0, 1, 1)),
    "empty": ([[[HEL, BUSY]], [[STOP]]], whole("b", *HEL, Reset("upstream_rate_limited"), B), (0, 1, 1)),
    "garbled": ([[[HEL, GARBLED]], [OTHER]], whole("b", *HEL, INVALID, *ANEW), (0, 1, 1)),
    "a late bug": ([[[HEL, breaks]], [OTHER]], whole("b", *HEL, Reset("internal"), *ANEW), (0, 1, 1)),
    "late silence": ([[[HEL, 1000.0]], [OTHER]], whole("b", *HEL, IDLE, *ANEW, latency_ms=60_000), (0, 1, 1)),
    "reasoning": ([[[[HM], CUT]], [[[Reasoning("h")], [Reasoning("m"), *STOP]]]], whole("b", HM), (0, 1, 0)),
    "a call": ([[[OPENING, CUT]], [[OPENING, [CALL, *STOP]]]], whole("b", *OPENING, CALL), (0, 1, 0)),
    "nobody left": ([[[HEL, CUT]], [[DOWN]] * 3], broken("upstream_unavailable", *HEL), (2, 1, 0)),
    # one that fails while it is held back, or before
    "held, then on": ([[[HEL, CUT]], [[HE, DOWN]], [HELLO]], whole("c", *HEL, *t("l", "o")), (0, 2, 0)),
    "held, then anew": ([[[HEL, CUT]], [[HE, DOWN]], [OTHER]], whole("c", *HEL, VOID, *THIRD), (0, 2, 1)),
    "held, nobody left": ([[[HEL, CUT]], [[HE, GARBLED]]], broken("upstream_invalid", *HEL), (0, 1, 0)),
    "asked again to go on": ([[[HEL, CUT]], [[DOWN], HELLO]], whole("b", *HEL, *t("l", "o")), (1, 1, 0)),
    "on and on": ([[[HE, CUT]], [[HEL, CUT]], [[t("Help"), STOP]]], whole("c", *HE, *t("l", "p")), (0, 2, 0)),
    "on, then anew": ([[[HE, CUT]], [[HEL, GARBLED]], [OTHER]], whole("c", *HE, *t("l"), INVALID, *THIRD), (0, 2, 1)),
    "twice": ([[[HEL, CUT]], [[SO, GARBLED]], [OTHER]], whole("c", *HEL, VOID, B, *SO, INVALID, *THIRD), (0, 2, 2)),
    "too large": (
        [[[XXX, CUT]], [[YYY, STOP]], []],
        broken("output_limit", *XXX, VOID, B, *YYY, text=LARGE),
        (0, 1, 1),
    ),
    "anew, then on": ([[[HEL, CUT]], [[t("Good"), CUT]], [OTHER]], whole("c", *HEL, VOID, *ANEW), (0, 2, 1)),
}


@pytest.mark.parametrize(("plays", "events", "counts"), ROWS.values(), ids=ROWS)
def test_what_is_told_where_several_may_answer(plays: Sequence[Attempts], events: list[Item], counts: Counts) -> None:
    told = play(*plays)
    assert (told.events, told.counts) == (events, counts)
    assert [len(asked) for asked in told.asked] == [len(attempts) for attempts in plays]


def test_nothing_is_left_of_it_but_what_was_told() -> None:
    """Nor to the garbage collector: its walks halt all streams. asyncio's own cycles are none of ours."""
    kinds = (Exception, types.FrameType, types.FunctionType, Run, Answer, Continuation, Failover, Answers)
    runs, prompts = [], []
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for plays, _, _ in ROWS.values():
            request = replace(REQUEST, provider_options={"prompt": (prompt := {"large"})})
            prompts.append(weakref.ref(prompt))
            runs.append(play(*plays, request=request).run)
        del prompt, request
        gc.collect()
        left = [repr(one) for one in gc.garbage if isinstance(one, kinds)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert (left, [prompt() for prompt in prompts]) == ([], [None] * len(runs))


@pytest.mark.parametrize(
    ("then", "who", "text", "usage"),
    [
        # goes on, begins anew, is held back
        ([[Usage(5)], [*t("Help"), Finish("stop", None, "b-1")]], "b", "Help", Usage(5, 1, estimated=True)),
        ([[*t("Good"), Finish("stop", Usage(7, 8), "b-1")]], "b", "Good", Usage(7, 8)),
        ([[*t("Good"), Finish("stop", None, "b-1")]], "b", "Good", Usage(3, 1, estimated=True)),
        ([[Usage(99, 0), *HE], GARBLED], "a", "Hel", Usage(11, 5)),
    ],
)
def test_who_answered_is_told_and_what_that_one_said_and_counted(
    then: list[Step], who: str, text: str, usage: Usage
) -> None:
    run = play([[[Usage(11, 5)], HEL, GARBLED]], [then]).run
    assert (run.answer.provider, run.answer.model, run.log.text(Token)) == (who, f"model-{who}", text)
    done = finished(text, model="b-1", tokens=run.log.deltas, usage=usage)
    assert run.terminal == (done if who == "b" else broken("upstream_invalid", usage=usage)[-1])
    assert run.answer.usage == usage


@pytest.mark.parametrize("code", sorted({**UpstreamError.codes, **ServiceError.codes}))
def test_what_a_request_names_is_the_next_ones_turn(code: str) -> None:
    assert play([[fails(code, again=False)]], [[STOP]], on=[code]).events == whole("b", B)
    assert play([[HEL, fails(code)]], [OTHER], on=[code]).events == whole("b", *HEL, Reset(code), *ANEW)


@pytest.mark.parametrize(
    ("plays", "events"),
    [
        ([[[FILTERED]], [OTHER]], whole("b", *ANEW)),
        ([[[HEL, FILTERED]], [OTHER]], whole("b", *HEL, Reset("content_filtered"), *ANEW)),
        ([[[HEL, FILTERED]], [HELLO]], whole("b", *HEL, *t("l", "o"))),
        # Where no other can take the request it stands as it was.
        ([[[[FILTER]]], [[UNFIT]]], whole("a", B, usage=Usage(7), finish_reason="content_filter")),
    ],
)
def test_what_a_filter_stopped_is_the_next_ones_turn_where_the_request_says_so(
    plays: Sequence[Attempts], events: list[Item]
) -> None:
    assert play(*plays, on=["content_filtered"]).events == events


@pytest.mark.parametrize(
    ("effects", "plays", "events", "counts"),
    [
        ("a", [[[DOWN]], [[STOP]]], whole("b", B), (0, 1, 0)),  # asked once
        ("a", [[[[Usage(1, 1)], CUT]], [[STOP]]], whole("b", B), (0, 1, 0)),
        ("a", [[[1000.0]], [[STOP]]], whole("b", B, latency_ms=120_000), (0, 1, 0)),
        ("a", [[[HEL, DOWN]], []], broken("upstream_unavailable", *HEL), (0, 0, 0)),
        ("a", [[[OPENING, GARBLED]], []], broken("upstream_invalid", *OPENING), (0, 0, 0)),
        ("b", [[[HEL, CUT]], [[HE, DOWN]], []], broken("upstream_unavailable", *HEL), (0, 1, 0)),  # held back
        ("b", [[[OPENING, HE, CUT]], [[OPENING, GARBLED]], []], broken("upstream_invalid", *OPENING, *HE), (0, 1, 0)),
    ],
)
def test_what_has_effects_is_asked_once_and_left_only_before_it_said_anything(
    effects: str, plays: Sequence[Attempts], events: list[Item], counts: Counts
) -> None:
    told = play(*plays, effects=effects)
    assert (told.events, told.counts) == (events, counts)


@pytest.mark.parametrize(
    ("plays", "asked"),
    [
        ([[[1000.0]], [[100.0, HEL, 1000.0]], [[119.0, HEL, 59.0, STOP]]], [[0], [120], [280]]),
        ([[[HEL, CUT]], [[t("H"), 59.0, t("e"), 1000.0]], [[119.0, HEL, STOP]]], [[0], [0], [119]]),  # held back
        ([[[OPENING, t("x"), CUT]], [[OPENING, 1000.0]], [[STOP]]], [[0], [0], [60]]),
        ([[[HEL, CUT]], [[[*t(""), Usage(1)], 1000.0]], [[STOP]]], [[0], [0], [120]]),
        ([[[WAIT[3]], [WAIT[4]], [STOP]]], [[0, 3, 7]]),
        ([[[WAIT[10.5]]], [[STOP]]], [[0], [0]]),
    ],
)
def test_each_is_asked_when_it_is_its_turn(plays: Sequence[Attempts], asked: list[list[float]]) -> None:
    told = play(*plays)
    assert (told.asked, told.events[-1].name) == (asked, "done")


@pytest.mark.parametrize(
    ("plays", "events"),
    [
        ([[[100.0, DOWN]] * 3, [[90.0, DOWN]] * 3, []], [B]),
        ([[[100.0, DOWN]] * 3, [[100.0, HEL, CUT]], [[119.0, t("H"), 59.0, HEL]]], [B, *HEL]),
        ([[[119.0, WAIT[9]]] * 3, [[119.0, GARBLED]], [[10.0, STOP]]], [B, C]),
    ],
)
def test_a_run_has_its_time_for_all_its_candidates(plays: Sequence[Attempts], events: list[Item]) -> None:
    told = play(*plays, limits=replace(LIMITS, run_timeout=500))
    assert told.events == broken("run_timeout", *events, text="The run took longer than 500 s.")


PHASES: dict[str, tuple[Sequence[Attempts | Answers], list[Item], list[int]]] = {
    "waits to ask again": ([[[WAIT[9]]], []], [], [1, 0]),
    "loads": ([[[GARBLED]], Answers([], 1000)], [B], [1, 0]),
    "loads, to go on": ([[[HEL, CUT]], Answers([], 1000)], HEL, [1, 0]),
    "before content": ([[[GARBLED]], [[1000.0]], []], [B], [1, 1, 0]),
    "before content, to go on": ([[[HEL, CUT]], [[1000.0]], []], HEL, [1, 1, 0]),
    "held back": ([[[HEL, CUT]], [[HE, 1000.0]], []], HEL, [1, 1, 0]),
    "gone on": ([[[HEL, CUT]], [[t("Hell"), 1000.0]], []], t("Hel", "l"), [1, 1, 0]),
    "anew": ([[[HEL, CUT]], [[GOOD_DAY, 1000.0]], []], [*HEL, VOID, *ANEW], [1, 1, 0]),
}


@pytest.mark.parametrize("reason", ["requested", "disconnected", "draining"])
@pytest.mark.parametrize(("plays", "events", "asked"), PHASES.values(), ids=PHASES)
def test_a_run_can_be_ended_at_any_time(
    plays: Sequence[Attempts | Answers], events: list[Item], asked: list[int], reason: CancelReason
) -> None:
    told = play(*plays, ends=(1, reason))
    usage = Usage(3, -(-len("".join(stands(events))) // 4), estimated=True)
    assert told.events == [A, *events, Cancelled(reason=reason, usage=usage)]
    assert [len(one) for one in told.asked] == asked


@pytest.mark.parametrize("words", [[], [DOWN], [breaks], [STOP], [FILTERED]])
def test_nobody_is_asked_after_the_end_though_one_will_not_be_cancelled(words: list[Step]) -> None:
    told = play(Stubborn([[1000.0], words]), [], ends=(1, "requested"), on=["content_filtered"])
    assert (told.events, told.asked) == ([A, Cancelled(reason="requested", usage=NOTHING)], [[0], []])
    limits = replace(LIMITS, run_timeout=50)
    told = play(Stubborn([[HEL, 1000.0], words]), [], limits=limits, on=["content_filtered"])
    assert (told.events[:-1], told.asked) == ([A, *HEL], [[0], []])
    if words not in ([STOP], [FILTERED]):  # else it is whole after all
        text = "The run took longer than 50 s."
        assert told.events == broken("run_timeout", *HEL, text=text)


@pytest.mark.parametrize("words", [[], [DOWN], [breaks]])
def test_one_that_will_not_be_cancelled_for_its_silence_is_left_all_the_same(words: list[Step]) -> None:
    told = play(Stubborn([[HEL, 1000.0], words]), [OTHER])
    assert told.events == whole("b", *HEL, IDLE, *ANEW, latency_ms=60_000)


def a_breaker(state: str) -> Breaker:
    breaker = Breaker(BreakerPolicy(least=1, pause=1000 if state == "open" else 0))
    if state != "closed":
        with suppress(Fault), breaker.asking():
            DOWN()
    return breaker


@pytest.mark.parametrize(
    ("states", "answers"),
    [("open closed", "b"), ("half_open closed", "a"), ("open open closed", "c"), ("open", "a"), ("open open", "a")],
)
def test_an_open_one_is_passed_over_where_another_can_be_asked(states: str, answers: str) -> None:
    breakers = dict(zip("abc", map(a_breaker, states.split()), strict=False))
    told = play(*[[[STOP]]] * len(breakers), breakers=breakers)
    assert told.events == [{"a": A, "b": B, "c": C}[answers], *whole(answers)[1:]]
    assert (breakers[answers].state, told.counts) == ("closed", (0, 0, 0))


def test_an_open_one_is_asked_behind_the_others_and_again_where_there_is_none() -> None:
    told = play([[STOP]], [[GARBLED]], breakers={"a": a_breaker("open")})
    assert (told.events, told.counts) == ([B, A, *whole("a")[1:]], (0, 1, 0))
    for others, counts in ([], (1, 0, 0)), ([[[STOP]]], (0, 1, 0)):  # one that opens meanwhile
        assert play([[DOWN], [STOP]], *others, breakers={"a": Breaker(BreakerPolicy(least=1))}).counts == counts


@pytest.mark.parametrize(
    ("attempts", "counted"),
    [
        ([[DOWN], HELLO], (2, 1)),
        ([[HEL, CUT]], (1, 1)),
        ([[1000.0]], (1, 1)),
        ([[HEL, 1000.0]], (1, 1)),
        ([[REJECTED]], (0, 0)),
        ([[t("x" * 20_000)]], (0, 0)),  # the limit is ours
        ([[50.0, HEL] * 13], (0, 0)),  # the run's time is over
    ],
)
def test_each_attempt_counts_with_its_candidates_breaker(attempts: Attempts, counted: tuple[int, int]) -> None:
    play(attempts, breakers={"a": (breaker := Breaker())})
    assert breaker.attempts == counted


@pytest.mark.parametrize("held", [False, True])
def test_content_closes_a_breaker_before_the_answer_is_whole(held: bool) -> None:
    breaker, states = a_breaker("half_open"), []
    look = lambda: states.append(breaker.state)  # noqa: E731
    play(*([[HEL, CUT]] for _ in range(held)), [[look, HE, look, STOP]], breakers={"b" if held else "a": breaker})
    assert states == ["half_open", "closed"]
