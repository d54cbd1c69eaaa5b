"""A run: whatever happens, and whatever happens at once, it says exactly one terminal event and names the first reason.

The providers are a few lines each and the clock jumps (tests/asgi.py), so every time is exact.
"""

import asyncio
import gc
import logging
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from streaming.errors import Fault, RequestError, ServiceError, UpstreamError
from streaming.events import (
    Cancelled,
    Done,
    Error,
    Event,
    Finish,
    Reasoning,
    Start,
    Terminal,
    Token,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from streaming.failover import Candidate, Failover
from streaming.followed import CancelReason
from streaming.limits import Limits
from streaming.log import size_of
from streaming.request import Emit, FunctionCall, ImagePart, ImageURL, Message, MessageToolCall, RunRequest, TextPart
from streaming.run import Run
from streaming.runs import Runs

from .asgi import run_ahead, time_passes

LIMITS = Limits(run_timeout=600, first_token_timeout=120, idle_timeout=60, max_run_bytes=10_000, linger=1000)
REQUEST = RunRequest(model="m", messages=[Message("user", "x" * 10)])  # three tokens, by the estimate
NOTHING = Usage(3, 0, estimated=True)
START = Start(run="", provider="test", model="m", created=0)
Step = float | BaseException | Callable[[], object] | Sequence[Event | Usage | Finish]


class Plays:
    """A provider that does its steps in turn: wait seconds, raise, call, or yield a batch."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
        self.is_closed = False

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        try:
            for step in self.steps:
                if isinstance(step, int | float):
                    await asyncio.sleep(step)
                elif isinstance(step, BaseException):
                    raise step
                elif callable(step):
                    step()
                else:
                    emit(step)
        finally:
            self.is_closed = True


def run_of(provider: Any, limits: Limits = LIMITS, request: RunRequest = REQUEST) -> Run:
    async def load() -> Any:
        return provider

    return Run(Failover([Candidate("test", request, load)]), limits)


def heard(run: Run) -> list[Event]:
    """Return all events, without what differs from run to run."""
    first, *others = run.log.read(0)
    assert isinstance(first, Start)
    assert (first.run, abs(first.created - time.time()) < 60) == (run.id, True)
    return [replace(first, run="", created=0), *others]


def play(*steps: Step, limits: Limits = LIMITS, request: RunRequest = REQUEST) -> list[Event]:
    """Run a provider that does `steps` and return what a viewer hears."""

    async def test() -> list[Event]:
        run = run_of(provider := Plays(*steps), limits, request)
        run.start()
        await run.wait()
        assert provider.is_closed
        return heard(run)

    return run_ahead(test())


def failed(code: str, text: str, usage: Usage = NOTHING, *, retryable: bool = True) -> Error:
    return Error(error=text, code=code, retryable=retryable, usage=usage)


def finished(text: str = "", ttft_ms: int | None = 0, latency_ms: int = 0, **fields: Any) -> Done:
    usage = Usage(3, -(-len(text) // 4), estimated=True)
    plain: dict[str, Any] = {"finish_reason": "stop", "model": "m", "usage": usage, "tokens": 1}
    return Done(ttft_ms=ttft_ms, latency_ms=latency_ms, **{**plain, **fields})


HELLO = [Token("Hello")]
SAID = Usage(3, 2, estimated=True)
STOP = [Finish("stop")]
FAULT = UpstreamError("upstream_rate_limited", "Slow down.")


def faulty() -> None:
    """A step that raises a fault of its own, which nobody else holds."""
    raise UpstreamError("upstream_rate_limited", "Slow down.")


# The rows of the table in streaming/run.py that a run reaches by itself; the others need somebody who ends it.
ROWS: dict[str, tuple[list[Step], list[Event]]] = {
    "finish": ([HELLO, STOP], [Token("Hello"), finished("Hello")]),
    "finish, with the last words": ([[*HELLO, *STOP]], [Token("Hello"), finished("Hello")]),
    "fault before content": ([FAULT], [failed("upstream_rate_limited", "Slow down.")]),
    "fault after content": ([HELLO, FAULT], [Token("Hello"), failed("upstream_rate_limited", "Slow down.", SAID)]),
    "the caller's fault, found by the provider": (
        [RequestError("invalid_request", "No `stop` here.", field="stop")],
        [failed("invalid_request", "No `stop` here.", retryable=False)],
    ),
    "no finish": (
        [HELLO],
        [
            Token("Hello"),
            failed("upstream_incomplete", "The upstream ended without finishing its answer.", SAID),
        ],
    ),
    "nothing at all": ([], [failed("upstream_incomplete", "The upstream ended without finishing its answer.")]),
    "a bug": (
        [HELLO, KeyError("x")],
        [Token("Hello"), failed("internal", "Something went wrong in the service.", SAID, retryable=False)],
    ),
    "a timeout of the provider's own": (
        [TimeoutError("x")],
        [failed("internal", "Something went wrong in the service.", retryable=False)],
    ),
    "no content in time": (
        [121.0, HELLO, STOP],
        [failed("first_token_timeout", "The upstream sent nothing for 120 s.")],
    ),
    "silence after content": (
        [100.0, HELLO, 61.0, STOP],
        [Token("Hello"), failed("idle_timeout", "The upstream sent nothing for 60 s.", SAID)],
    ),
    "too long": (
        [*([50.0, [Token("x")]] * 13), STOP],
        [*[Token("x")] * 11, failed("run_timeout", "The run took longer than 600 s.", Usage(3, 3, estimated=True))],
    ),
    "too large": (
        [[Token("x" * 5000)], [Token("y" * 5000)], STOP],
        [
            Token("x" * 5000),
            Token("y" * 5000),
            failed(
                "output_limit",
                "The answer is larger than 10000 bytes.",
                Usage(3, 2500, estimated=True),
                retryable=False,
            ),
        ],
    ),
}


@pytest.mark.parametrize(("steps", "events"), ROWS.values(), ids=ROWS)
def test_a_run_says_what_happened_and_one_terminal_event(steps: list[Step], events: list[Event]) -> None:
    assert play(*steps) == [START, *events]


@pytest.mark.parametrize("code", sorted({**UpstreamError.codes, **ServiceError.codes}))
def test_every_fault_becomes_an_error_event_of_its_code(code: str) -> None:
    kind = UpstreamError if code in UpstreamError.codes else ServiceError
    retryable = kind.codes[code][1]
    assert play(kind(code, "So it is.")) == [START, failed(code, "So it is.", retryable=retryable)]


def test_start_is_said_before_the_provider_is_even_loaded() -> None:
    async def test() -> list[Event]:
        run = run_of(Plays(STOP))
        run.start()
        before = heard(run)
        await run.wait()
        return before

    assert run_ahead(test()) == [START]


def test_a_provider_that_cannot_be_loaded_ends_the_run() -> None:
    async def load() -> Any:
        raise UpstreamError("upstream_unavailable", "It did not start.")

    async def test() -> list[Event]:
        run = Run(Failover([Candidate("test", REQUEST, load)]), LIMITS)
        run.start()
        await run.wait()
        return heard(run)

    assert run_ahead(test()) == [START, failed("upstream_unavailable", "It did not start.")]


def test_silence_is_noticed_when_it_is_due() -> None:
    async def test(*steps: Step) -> float:
        run = run_of(Plays(*steps, 1000.0))
        run.start()
        await run.wait()
        return asyncio.get_running_loop().time()

    assert run_ahead(test()) == 120
    assert run_ahead(test(1.0, HELLO)) == 61
    assert run_ahead(test(1.0, HELLO, 59.0, HELLO)) == 120


def test_deadlines_begin_with_the_run_though_its_provider_loads_for_long() -> None:
    async def load() -> Any:
        await time_passes(119)
        return Plays(2, HELLO, STOP)

    async def test() -> list[Event]:
        run = Run(Failover([Candidate("test", REQUEST, load)]), LIMITS)
        run.start()
        await run.wait()
        return heard(run)

    assert run_ahead(test()) == [START, failed("first_token_timeout", "The upstream sent nothing for 120 s.")]


def test_content_just_in_time_meets_its_deadlines() -> None:
    assert play(119.9, HELLO, 59.9, [Reasoning("hm")], 59.9, STOP) == [
        START,
        Token("Hello"),
        Reasoning("hm"),
        finished("Hellohm", 119_900, 239_700, tokens=2),
    ]


EMPTY = {"nothing": [], "usage": [Usage(1, 1)], "empty token": [Token("")], "empty reasoning": [Reasoning("")]}


@pytest.mark.parametrize("batch", EMPTY.values(), ids=EMPTY)
def test_what_is_no_content_does_not_count_as_the_first_token(batch: list[Event | Usage]) -> None:
    terminal = play(*([50.0, batch] * 3), STOP)[-1]
    assert isinstance(terminal, Error)
    assert terminal.code == "first_token_timeout"


@pytest.mark.parametrize("batch", EMPTY.values(), ids=EMPTY)
def test_what_is_no_content_does_not_break_the_silence(batch: list[Event | Usage]) -> None:
    terminal = play(HELLO, *([50.0, batch] * 3), STOP)[-1]
    assert isinstance(terminal, Error)
    assert terminal.code == "idle_timeout"


@pytest.mark.parametrize("reason", ["disconnected", "requested", "draining"])
def test_a_run_that_is_ended_says_the_reason(reason: CancelReason) -> None:
    async def test() -> tuple[list[Event], bool]:
        run = run_of(provider := Plays(HELLO, 1000.0))
        run.start()
        await run.log.wait(1)
        run.end(reason)
        await run.wait()
        return heard(run), provider.is_closed

    assert run_ahead(test()) == ([START, Token("Hello"), Cancelled(reason=reason, usage=SAID)], True)


def test_a_run_cancelled_before_its_first_step_ends_properly() -> None:
    async def test() -> tuple[list[Event], bool]:
        run = run_of(provider := Plays(HELLO, STOP))
        run.start()
        run.end("requested")
        await run.wait()
        return heard(run), provider.is_closed

    assert run_ahead(test()) == ([START, Cancelled(reason="requested", usage=NOTHING)], False)


def test_the_first_of_two_who_end_a_run_is_the_reason() -> None:
    async def test() -> list[Event]:
        run = run_of(Plays(1000.0))
        run.start()
        await time_passes(1)
        run.end("requested")
        run.end("disconnected")
        run.end(ServiceError("internal", "x"))
        await run.wait()
        run.end("draining")
        await asyncio.sleep(0)
        run.end("disconnected")
        return heard(run)

    assert run_ahead(test()) == [START, Cancelled(reason="requested", usage=NOTHING)]


def test_who_ends_a_run_before_its_provider_finished_is_the_reason() -> None:
    """The provider's last words come while it is being cancelled."""

    class Stubborn:
        async def stream(self, request: RunRequest, emit: Emit) -> None:
            try:
                await time_passes(1000)
            except asyncio.CancelledError:
                emit([Token("x"), *STOP])

    async def test() -> list[Event]:
        run = run_of(Stubborn())
        run.start()
        await time_passes(1)
        run.end("requested")
        await run.wait()
        return heard(run)

    assert run_ahead(test())[-1] == Cancelled(reason="requested", usage=Usage(3, 1, estimated=True))


@pytest.mark.parametrize(
    ("last", "terminal"),
    [(STOP, finished(ttft_ms=None, tokens=0)), (FAULT, failed("upstream_rate_limited", "Slow down."))],
    ids=["finish", "fault"],
)
def test_who_ends_a_run_after_its_last_step_comes_too_late(last: Step, terminal: Terminal) -> None:
    """The last viewer may leave between the end of the task and the turn in which its end is told."""

    async def test() -> list[Event]:
        loop = asyncio.get_running_loop()
        run = run_of(Plays(lambda: loop.call_soon(run.end, "disconnected"), last))
        run.start()
        await run.wait()
        return heard(run)

    assert run_ahead(test()) == [START, terminal]


def test_a_run_that_has_ended_stays_as_it_is() -> None:
    async def test() -> list[Event]:
        run = run_of(Plays(STOP))
        run.start()
        await run.wait()
        run.end("requested")
        await time_passes(1000)
        return heard(run)

    assert run_ahead(test()) == [START, finished(ttft_ms=None, tokens=0)]


def test_the_fault_a_cancelled_provider_raises_on_its_way_out_is_not_the_reason() -> None:
    class Untidy:
        async def stream(self, request: RunRequest, emit: Emit) -> None:
            try:
                await time_passes(1000)
            finally:
                raise UpstreamError("upstream_incomplete", "Broken off.")

    async def test() -> list[Event]:
        run = run_of(Untidy())
        run.start()
        await time_passes(1)
        run.end("disconnected")
        await run.wait()
        return heard(run)

    assert run_ahead(test()) == [START, Cancelled(reason="disconnected", usage=NOTHING)]


def test_the_last_viewer_who_leaves_ends_the_run() -> None:
    async def test() -> tuple[list[int], list[Event]]:
        run = run_of(Plays(HELLO, 1000.0), replace(LIMITS, linger=0.0))
        lengths = []
        with run.viewing():
            run.start()
            with run.viewing():
                await run.log.wait(1)
            await time_passes(10)
            lengths.append(len(run.log))  # one viewer is left
        await run.wait()
        return lengths, heard(run)

    assert run_ahead(test()) == ([2], [START, Token("Hello"), Cancelled(reason="disconnected", usage=SAID)])


def test_a_viewer_who_has_seen_the_end_changes_nothing_by_leaving() -> None:
    async def test() -> list[Event]:
        run = run_of(Plays(HELLO, STOP))
        with run.viewing():
            run.start()
            while not run.log.closed:
                await run.log.wait(len(run.log))
        return heard(run)

    assert run_ahead(test()) == [START, Token("Hello"), finished("Hello")]


def test_the_task_of_a_closing_loop_says_that_it_drains() -> None:
    async def test() -> Run:
        run = run_of(Plays(1000.0))
        run.start()
        await time_passes(1)
        return run  # and the loop closes: it cancels what is left

    assert heard(run_ahead(test())) == [START, Cancelled(reason="draining", usage=NOTHING)]


def test_a_provider_may_not_end_a_run_itself_nor_keep_it_from_ending() -> None:
    """A terminal event is no provider's to say. A run that one said it for must still be over, and forgotten."""

    async def test() -> tuple[list[Event], int]:
        runs = Runs(keep=60, keep_bytes=2**20)
        run = run_of(Plays([Token("x"), finished()], STOP))
        runs.begin(run)
        await run.wait()
        return [event for event in heard(run) if isinstance(event, Terminal)], len(runs)

    terminals, left = run_ahead(test())
    assert (len(terminals), left) == (1, 0)


def test_the_runs_of_a_process_are_those_that_have_not_ended() -> None:
    async def test() -> list[int]:
        runs, counts = Runs(keep=60, keep_bytes=2**20), []
        short, long = run_of(Plays(5, STOP)), run_of(Plays(50, HELLO, STOP))
        counts.append(len(runs))
        runs.begin(short)
        runs.begin(long)
        for _ in range(3):
            counts.append(len(runs))
            await time_passes(10 if len(runs) > 1 else 50)
        return counts

    assert run_ahead(test()) == [0, 2, 1, 0]


class SlowToClose(Plays):
    """Says nothing, and takes five seconds to close, as a connection may."""

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        try:
            await time_passes(1000)
        finally:
            await time_passes(5)
            self.is_closed = True


def test_closing_ends_every_run_and_returns_when_their_upstreams_are_closed() -> None:
    async def test() -> tuple[list[bool], list[list[Event]]]:
        runs, providers = Runs(keep=60, keep_bytes=2**20), [SlowToClose(), SlowToClose()]
        started = [run_of(provider) for provider in providers]
        for run in started:
            runs.begin(run)
        await time_passes(1)
        await runs.close()
        return [provider.is_closed for provider in providers], [heard(run) for run in started]

    draining = Cancelled(reason="draining", usage=NOTHING)
    assert run_ahead(test()) == ([True, True], [[START, draining], [START, draining]])


def test_every_run_has_an_id_of_its_own() -> None:
    ids = {run_of(Plays()).id for _ in range(100)}
    assert len(ids) == 100
    assert {len(run_id) for run_id in ids} == {32}
    assert set().union(*ids) <= set("0123456789abcdef")


def test_the_end_is_told_once_and_after_the_terminal_event() -> None:
    async def test() -> list[tuple[bool, bool]]:
        told = []
        run = run_of(Plays(HELLO, STOP))
        run.start(on_end=lambda ended: told.append((ended is run, ended.log.closed)))
        await run.wait()
        run.end("requested")
        await asyncio.sleep(0)
        return told

    assert run_ahead(test()) == [(True, True)]


def test_deltas_of_every_kind_are_counted_and_whole_calls_are_not() -> None:
    call = [
        ToolCallDelta(0, '{"a', "i", "f"),
        ToolCallDelta(0, '":1}'),
        ToolCall("i", "f", {"a": 1}),
        ToolResult("i", "f", 2),
    ]
    assert play(1.5, [Reasoning("hm")], 0.25, [Token("Hel"), Token("lo")], call, [Finish("tool_calls")]) == [
        START,
        Reasoning("hm"),
        Token("Hel"),
        Token("lo"),
        *call,
        finished("hmHello" + '{"a":1}', 1500, 1750, tokens=5, finish_reason="tool_calls"),
    ]


def test_without_content_there_is_no_time_to_the_first_token() -> None:
    assert play(0.5, STOP) == [START, finished(ttft_ms=None, latency_ms=500, tokens=0)]


def test_what_the_upstream_counted_is_what_is_said() -> None:
    counted = Usage(11, 5, cached_tokens=4, reasoning_tokens=2)
    assert play(HELLO, [Usage(11, 0)], [counted], STOP) == [START, Token("Hello"), finished(usage=counted)]
    assert play(HELLO, [Usage(1, 1)], [Finish("stop", counted)]) == [START, Token("Hello"), finished(usage=counted)]


def test_usage_reported_after_the_finish_counts() -> None:
    assert play(HELLO, STOP, [Usage(11, 5)]) == [START, Token("Hello"), finished(usage=Usage(11, 5))]


def test_what_the_upstream_did_not_count_is_estimated_and_says_so() -> None:
    opening = Usage(11, 0, cached_tokens=4)
    estimated = Usage(11, 2, cached_tokens=4, estimated=True)
    assert play([opening], HELLO, FAULT)[-1] == failed("upstream_rate_limited", "Slow down.", estimated)
    assert play([opening], FAULT)[-1] == failed("upstream_rate_limited", "Slow down.", opening)


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        (REQUEST, 3),
        (RunRequest(model="m", system="y" * 6, messages=[Message("user", "x" * 10)]), 4),
        (
            RunRequest(
                model="m", messages=[Message("user", "é" * 4), Message("assistant", "x"), Message("user", "y" * 4)]
            ),
            3,
        ),
        (
            RunRequest(
                model="m",
                messages=[
                    Message("user", [TextPart("x" * 4), ImagePart(ImageURL("data:image/png;base64," + "A" * 99))])
                ],
            ),
            1,
        ),
        (
            RunRequest(
                model="m",
                messages=[Message("assistant", tool_calls=[MessageToolCall("i", FunctionCall("f", '{"a":1}x'))])],
            ),
            2,
        ),
    ],
)
def test_the_prompt_is_estimated_from_its_text(request_: RunRequest, tokens: int) -> None:
    assert play(STOP, request=request_)[-1] == finished(ttft_ms=None, tokens=0, usage=Usage(tokens, 0, estimated=True))


def test_the_model_that_answered_is_named_where_the_upstream_tells() -> None:
    assert play([Finish("length", Usage(1, 1), "m-2026-11-01")])[-1] == finished(
        ttft_ms=None, tokens=0, finish_reason="length", model="m-2026-11-01", usage=Usage(1, 1)
    )


def test_an_answer_of_just_the_limit_passes() -> None:
    just = size_of(replace(START, run="0" * 32, created=1_800_000_000)) + 2 * size_of(Token("Hello"))
    too_large = failed(
        "output_limit", f"The answer is larger than {just - 1} bytes.", Usage(3, 3, estimated=True), retryable=False
    )
    words = [START, Token("Hello"), Token("Hello")]
    assert play(HELLO, HELLO, STOP, limits=replace(LIMITS, max_run_bytes=just)) == [
        *words,
        finished("HelloHello", tokens=2),
    ]
    assert play(HELLO, HELLO, STOP, limits=replace(LIMITS, max_run_bytes=just - 1)) == [*words, too_large]


@pytest.mark.parametrize("prompt", ["sk-abcdefghijklmnop", "the secret of the prompt"])
@pytest.mark.parametrize("where", [Exception, ValueError, UpstreamError], ids=["any", "bug", "cause"])
def test_the_words_of_an_exception_reach_neither_the_client_nor_the_log(
    prompt: str, where: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    fault: Exception = where(prompt) if where is not UpstreamError else UpstreamError("upstream_invalid", "It is odd.")
    if isinstance(fault, Fault):
        fault.__cause__ = ValueError(prompt)
    with caplog.at_level(logging.DEBUG):
        events = play(HELLO, fault)
        gc.collect()  # a task whose exception nobody retrieved would be logged now
    assert isinstance(events[-1], Error)
    assert prompt not in repr(events)
    assert prompt not in caplog.text
    assert {record.name for record in caplog.records if record.levelno > logging.DEBUG} == {"sidestream"}


def test_what_a_cancelled_provider_says_on_its_way_out_reaches_no_log(caplog: pytest.LogCaptureFixture) -> None:
    class Untidy:
        async def stream(self, request: RunRequest, emit: Emit) -> None:
            try:
                await time_passes(1000)
            finally:
                raise ValueError("the secret of the prompt")

    async def test() -> None:
        run = run_of(Untidy())
        run.start()
        await time_passes(1)
        run.end("disconnected")
        await run.wait()

    run_ahead(test())
    gc.collect()  # a task whose exception nobody retrieved would be logged now
    assert caplog.records == []


def test_the_log_names_the_run_the_code_and_the_types_that_caused_it(caplog: pytest.LogCaptureFixture) -> None:
    fault = UpstreamError("upstream_incomplete", "Broken off.")
    fault.__cause__ = ConnectionResetError("x")
    fault.__cause__.__cause__ = OSError("y")
    play(fault)
    [record] = caplog.records
    run_id = record.getMessage().split()[1].rstrip(":")
    assert record.getMessage() == (f"run {run_id}: upstream_incomplete (from ConnectionResetError from OSError)")
    assert record.levelname == "WARNING"


def test_the_log_says_where_a_bug_is(caplog: pytest.LogCaptureFixture) -> None:
    play(KeyError("x"))
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "internal error: KeyError\n" in record.getMessage()
    assert "tests/test_run.py" in record.getMessage()


def test_an_ended_run_is_soon_forgotten_by_the_loop() -> None:
    """Its clock must not hold it, and with it its whole log, until a deadline of minutes."""

    async def test() -> int:
        run = run_of(Plays(HELLO, STOP))
        run.start()
        await run.wait()
        return len(asyncio.all_tasks()) + clocks()

    assert run_ahead(test()) == 1


# Linger

LINGER = replace(LIMITS, linger=15.0)


def clocks() -> int:
    """How many timers the loop has running."""
    loop: Any = asyncio.get_running_loop()
    return sum(not timer.cancelled() for timer in loop._scheduled)


async def ended_at(run: Run) -> float:
    await run.wait()
    return asyncio.get_running_loop().time()


def cancelled(text: str = "") -> Cancelled:
    return Cancelled(reason="disconnected", usage=Usage(3, -(-len(text) // 4), estimated=True))


@pytest.mark.parametrize("linger", [0.25, 15.0, 59.75])
def test_a_run_that_nobody_comes_to_view_ends_when_its_linger_is_over(linger: float) -> None:
    async def test() -> tuple[float, list[Event], bool]:
        run = run_of(provider := Plays(1000.0), replace(LIMITS, linger=linger))
        run.start()
        return await ended_at(run), heard(run), provider.is_closed

    assert run_ahead(test()) == (linger, [START, cancelled()], True)


def test_what_the_upstream_says_meanwhile_does_not_make_a_run_linger_longer() -> None:
    async def test() -> tuple[float, Event]:
        run = run_of(Plays(*[2.0, HELLO] * 50), LINGER)
        run.start()
        return await ended_at(run), heard(run)[-1]

    assert run_ahead(test()) == (15, cancelled("Hello" * 7))


def test_a_viewer_in_the_last_moment_stops_the_clock() -> None:
    async def test() -> tuple[list[Event], int]:
        run = run_of(Plays(50.0, HELLO, STOP), LINGER)
        run.start()
        await time_passes(14.75)
        with run.viewing():
            before = clocks()
            await run.wait()
        return heard(run), before

    # The clocks that run while it is viewed: that of silence, the deadline's, and the upstream's own.
    assert run_ahead(test()) == ([START, Token("Hello"), finished("Hello", 50_000, 50_000)], 3)


def test_the_clock_starts_anew_each_time_the_last_viewer_leaves() -> None:
    async def test() -> tuple[float, list[Event]]:
        run = run_of(Plays(*[5.0, HELLO] * 50), LINGER)
        run.start()
        for _ in range(3):
            await time_passes(14)
            with run.viewing():
                await time_passes(1)
        return await ended_at(run), heard(run)[-1:]  # three times fifteen, and fifteen more

    assert run_ahead(test()) == (60, [cancelled("Hello" * 11)])


def test_the_clock_waits_for_the_last_of_several_viewers() -> None:
    async def view(run: Run, since: float, until: float) -> None:
        await time_passes(since)
        with run.viewing():
            await time_passes(until - since)

    async def test() -> float:
        run = run_of(Plays(*[5.0, HELLO] * 50), LINGER)
        run.start()
        viewers = [(1, 20), (3, 42), (4, 40), (41, 41.5)]
        await asyncio.gather(*[view(run, *times) for times in viewers])
        assert run.viewers == 0
        return await ended_at(run)

    assert run_ahead(test()) == 42 + 15


def test_a_viewer_that_fails_or_is_cancelled_has_left() -> None:
    async def fail(run: Run) -> None:
        with run.viewing():
            await time_passes(1)
            raise ValueError

    async def test() -> tuple[float, int]:
        run = run_of(Plays(1000.0), LINGER)
        run.start()
        failing, waiting = asyncio.create_task(fail(run)), asyncio.create_task(fail(run))
        await time_passes(0.5)
        waiting.cancel()
        await asyncio.gather(failing, waiting, return_exceptions=True)
        return await ended_at(run), run.viewers

    assert run_ahead(test()) == (1 + 15, 0)


def test_a_run_that_does_not_linger_ends_at_once_without_a_viewer() -> None:
    async def test() -> tuple[float, list[Event], bool]:
        run = run_of(provider := Plays(HELLO, STOP), replace(LIMITS, linger=0.0))
        run.start()
        return await ended_at(run), heard(run), provider.is_closed

    assert run_ahead(test()) == (0, [START, cancelled()], False)


def test_a_run_that_does_not_linger_ends_when_its_last_viewer_leaves() -> None:
    async def test() -> tuple[float, list[Event]]:
        run = run_of(Plays(HELLO, 1000.0), replace(LIMITS, linger=0.0))
        with run.viewing():
            run.start()
            await time_passes(7)
        with run.viewing():  # too late: it is ending, and says so to all
            return await ended_at(run), heard(run)

    assert run_ahead(test()) == (7, [START, Token("Hello"), cancelled("Hello")])


@pytest.mark.parametrize("steps", [[STOP], [5.0, HELLO, STOP], [5.0, FAULT]], ids=["at once", "done", "a fault"])
def test_a_run_that_is_over_lingers_no_more(steps: list[Step]) -> None:
    async def test() -> tuple[list[Event], list[Event], list[int]]:
        run, running = run_of(Plays(*steps), LINGER), []
        run.start()
        await run.wait()
        running.append(clocks())
        before = heard(run)
        for _ in range(2):
            with run.viewing():
                await time_passes(1)
            running.append(clocks())
        await time_passes(100)
        return before, heard(run), running

    before, after, running = run_ahead(test())
    assert (before, running) == (after, [0, 0, 0])


def test_who_comes_while_a_run_is_being_cancelled_hears_its_end_and_leaves_no_clock() -> None:
    async def test() -> tuple[list[int], float, list[Event], int]:
        run = run_of(SlowToClose(), LINGER)
        run.start()
        lengths = []
        for _ in range(2):
            await time_passes(16 if not lengths else 0)  # its linger was over at 15; it takes until 20 to close
            with run.viewing():
                lengths.append(len(run.log))
                await time_passes(1)
        return lengths, await ended_at(run), heard(run), clocks()

    assert run_ahead(test()) == ([1, 1], 20, [START, cancelled()], 0)


def test_a_silence_is_told_though_its_upstream_closes_only_when_the_runs_time_is_over() -> None:
    async def test() -> list[Event]:
        run = run_of(SlowToClose(), replace(LIMITS, first_token_timeout=10, run_timeout=12))
        run.start()
        await run.wait()
        return heard(run)

    assert run_ahead(test()) == [START, failed("first_token_timeout", "The upstream sent nothing for 10 s.")]


def test_a_viewer_before_the_start_is_one_and_its_leaving_ends_nothing_that_has_not_begun() -> None:
    async def test() -> tuple[int, float]:
        run = run_of(Plays(1000.0), LINGER)
        with run.viewing():
            pass
        await time_passes(10)
        before = clocks()
        run.start()
        return before, await ended_at(run)

    assert run_ahead(test()) == (0, 10 + 15)


# What is kept


class Prompt:
    """Something large in a request, which tells when it is gone."""


# What is played, and who ends it when.
ENDINGS: dict[str, tuple[Sequence[Step], tuple[float, CancelReason] | None]] = {
    "done": ([HELLO, STOP], None),
    "no finish": ([HELLO], None),
    "a fault": ([HELLO, faulty], None),
    "a bug": ([HELLO, lambda: {}["x"]], None),
    "silence": ([1000.0], None),
    "silence after content": ([HELLO, 1000.0], None),
    "too long": ([*[50.0, HELLO] * 13], None),
    "too large": ([[Token("x" * 20_000)]], None),
    "stopped": ([HELLO, 1000.0], (1, "requested")),
    "stopped before its first step": ([HELLO, 1000.0], (0, "requested")),
    "left": ([HELLO, 1000.0], (1, "disconnected")),
    "drained": ([HELLO, 1000.0], (1, "draining")),
}


@pytest.mark.parametrize(("steps", "ends"), ENDINGS.values(), ids=ENDINGS)
def test_a_run_that_is_over_does_not_hold_its_prompt(
    steps: Sequence[Step], ends: tuple[float, CancelReason] | None
) -> None:
    """Its answer is kept; a prompt may be a hundred times as large, and the bytes that are kept do not count it."""

    def begin() -> tuple[Run, weakref.ref[Prompt]]:
        prompt = Prompt()
        run = run_of(Plays(*steps), request=replace(REQUEST, provider_options={"prompt": prompt}))
        run.start()
        return run, weakref.ref(prompt)

    async def test() -> tuple[bool, bool]:
        run, prompt = begin()
        if ends:
            seconds, reason = ends
            if seconds:
                await time_passes(seconds)
            run.end(reason)
        before = prompt() is not None
        await run.wait()
        gc.collect()
        return before, prompt() is not None

    assert run_ahead(test()) == (True, False)


@pytest.mark.parametrize("steps", [[HELLO, STOP], [HELLO, faulty], [[Usage(11, 0)], HELLO], [[Usage(11, 5)], STOP]])
def test_the_usage_of_a_run_that_is_over_is_what_its_end_says(steps: Sequence[Step]) -> None:
    async def test() -> tuple[Usage, Usage, Usage]:
        run = run_of(Plays(1.0, *steps))
        run.start()
        before = run.answer.usage
        await run.wait()
        assert isinstance(run.terminal, Done | Error)
        return before, run.terminal.usage, run.answer.usage

    before, at_the_end, after = run_ahead(test())
    assert before == NOTHING
    assert at_the_end == after != before


HALF = "\ud83d"


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([UpstreamError("upstream_rejected", f"It says: {HALF}")], "error"),
        ([[Finish("stop", None, f"m{HALF}")]], "done"),
        ([[ToolCall("i", "f", {"a": HALF})], STOP], "done"),
        ([[ToolResult("i", "f", HALF)], STOP], "done"),
        ([[Token(HALF)], STOP], "done"),
    ],
    ids=["a fault", "a model's name", "a call", "a result", "a token"],
)
def test_half_a_character_of_the_upstreams_keeps_no_run_from_its_end(steps: list[Step], name: str) -> None:
    """JSON can name what UTF-8 cannot: half of a surrogate pair."""

    async def test() -> None:
        told: list[Run] = []
        run = run_of(Plays(*steps))
        run.start(on_end=told.append)
        await run.wait()
        assert (told, run.log.closed) == ([run], True)
        assert [event.name for event in heard(run) if isinstance(event, Terminal)] == [name]
        assert run.log.size == sum(map(size_of, run.log.read(0)))

    run_ahead(test())
