"""Wires as folds, whatever the wire: what a viewer is told who comes late, comes back, or waits for the first words.

The wire is OpenAI's, or a toy's; the app is driven by hand on a jumping clock.
"""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from streaming.events import Cancelled, Event, Reset, Terminal, Token, Values
from streaming.followed import Followed
from streaming.log import Cursor, EventLog
from streaming.run import Run
from wires.access import Caller
from wires.chat import ChatRequest
from wires.fold import Asked, Folded, Whole
from wires.openai_chat import Chunks

from .asgi import Exchange, ask, ask_json, make_app, run_ahead, service_of, time_passes
from .folds import HELLO, RUN, RUNS, done, folded, log_of, piecemeal, start

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
# Models are asked in the order of the request, however they fared in other tests.
CALM = {"SIDESTREAM_BREAKER_ATTEMPTS": "100000"}
DONE = b"data: [DONE]\n\n"


class Names:
    """Says each event's name twice, in a chunk each."""

    has_said = True
    is_over = False

    def feed(self, event: Event) -> Iterable[bytes]:
        yield event.name.encode()
        yield b"%b." % event.name.encode()


class Once(Names):
    """Has said its last word with the first Token."""

    def feed(self, event: Event) -> Iterable[bytes]:
        yield event.text.encode()
        self.is_over = isinstance(event, Token)


def body_of(*steps: dict[str, Any], **fields: Any) -> bytes:
    own = {"provider_options": {"script": steps}, **fields.pop("sidestream", {})}
    asked = {"model": "scripted/custom", "messages": [{"role": "user", "content": "Hi"}], "stream": True, **fields}
    return json.dumps({**asked, "sidestream": own}).encode()


def posted(*steps: dict[str, Any], app: Any, **fields: Any) -> Exchange:
    return Exchange(app, "POST", CHAT, headers=JSON, body=body_of(*steps, **fields))


def after(*steps: dict[str, Any], environ: dict[str, str] | None = None, **fields: Any) -> Exchange:
    """What comes of a request whose model does this, once all is over."""

    async def asked() -> Exchange:
        async with posted(*steps, app=await make_app(**CALM, **(environ or {})), **fields) as exchange:
            pass
        return exchange

    return run_ahead(asked())


# A fold and its cursor


@pytest.mark.parametrize("skip", range(9))
def test_chunks_that_the_client_has_are_left_out(skip: int) -> None:
    events = [start(), *HELLO, done()]
    whole = [chunk for event in events for chunk in Names().feed(event)]
    assert folded(Folded(Names(), merges=False, skip=skip), events) == b"".join(whole[skip:])
    assert b"".join(piecemeal(Folded(Names(), merges=False, skip=skip), events)) == b"".join(whole[skip:])


@pytest.mark.parametrize("seq", range(6))
def test_what_is_passed_over_is_folded_and_not_told(seq: int) -> None:
    events = [start(), *HELLO, done()]
    form = Folded(Names(), merges=False)
    form.pass_over(log_of(events), seq)
    told = b"".join(chunk for event in events[seq:] for chunk in Names().feed(event))
    assert folded(form, events, seq) == told


def test_a_fold_merges_unless_its_chunks_are_counted() -> None:
    events = [start(), *HELLO, done()]
    assert folded(Folded(Names()), events).count(b"token.") == 1
    assert folded(Folded(Names(), merges=False), events).count(b"token.") == 3


def test_who_has_said_the_last_word_is_over_though_the_run_goes_on() -> None:
    log, form = EventLog(RUN), Folded(Once(), merges=False)
    cursor = Cursor(log)
    log.append([*HELLO])
    assert not cursor.ended
    assert form.take(cursor) == b"Hel"
    assert cursor.ended
    assert cursor.more() is None
    log.append([*HELLO])
    assert form.take(cursor) == b""


# The first words


def test_the_head_waits_for_the_first_words() -> None:
    async def asked() -> Exchange:
        app = await make_app(**CALM)
        async with posted({"wait": 10, "say": "Hello you"}, app=app) as exchange:
            await time_passes(9)
            assert exchange.sent == []
            await exchange.until(b"Hello")
            assert exchange.status == 200
        return exchange

    assert run_ahead(asked()).body.endswith(DONE)


@pytest.mark.parametrize(
    ("code", "status", "retry"),
    [
        ("upstream_unavailable", 502, None),
        ("upstream_rate_limited", 429, None),
        ("upstream_rejected", 400, "false"),
        ("context_length", 400, "false"),
        ("upstream_auth", 502, "false"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_fails_before_the_first_words_is_a_status(code: str, status: int, retry: str | None, stream: bool) -> None:
    exchange = after({"fail": code}, environ={"SIDESTREAM_MAX_RETRIES": "0"}, stream=stream)
    assert (exchange.status, exchange.headers["content-type"]) == (status, "application/json")
    assert exchange.headers.get("x-should-retry") == retry
    assert ("retry-after" in exchange.headers) == (status == 429)
    assert list(json.loads(exchange.body)) == ["error"]


def test_who_waits_long_gets_a_ping_and_then_all_in_band() -> None:
    exchange = after({"wait": 40, "fail": "upstream_rejected"})
    ping, again, failed, end = exchange.body.split(b"\n\n")[:4]
    assert (exchange.status, ping, again, end) == (200, b": ping", b": ping", b"data: [DONE]")
    assert json.loads(failed.removeprefix(b"data: "))["error"]["code"] == "upstream_rejected"


def test_what_a_wire_has_no_words_for_is_neither_words_nor_a_ping() -> None:
    assert folded_openai(RUNS["modes"][:-1]) == b""
    assert folded_openai(RUNS["modes"]).count(b"data:") == 3  # the role, the finish reason, [DONE]


def test_what_comes_between_without_words_is_no_silence() -> None:
    exchange = after({"call": {"tool": "weather", "result": "clear"}}, {"say": "It is clear."})
    assert exchange.body.endswith(DONE)
    assert b"ping" not in exchange.body


def test_who_comes_when_it_has_failed_in_mid_answer_is_told_all_of_it() -> None:
    async def asked() -> list[Exchange]:
        app, told = await make_app(**CALM), []
        for _ in range(2):
            body, headers = body_of({"say": "Hello"}, {"cut": True}), {**JSON, "idempotency-key": "once"}
            async with Exchange(app, "POST", CHAT, headers=headers, body=body) as exchange:
                pass
            told.append(exchange)
        return told

    first, second = run_ahead(asked())
    assert first.body == second.body
    assert (second.status, second.body.count(b"Hello"), second.body.count(b'"error"')) == (200, 1, 1)


def folded_openai(events: list[Event]) -> bytes:
    log = EventLog(RUN)
    log.append(events)
    cursor = Cursor(log)
    return Folded(Chunks(RUN, wants_usage=False)).take(cursor)


def test_a_run_that_failed_is_no_request_that_was_refused() -> None:
    async def asked() -> dict[tuple[str, str], float]:
        app = await make_app(**CALM)
        before = dict(service_of(app).metrics.refusals)
        async with posted({"fail": "upstream_auth"}, app=app):
            pass
        assert dict(service_of(app).metrics.refusals) == before
        async with posted(app=app, n=2) as refused:
            pass
        assert refused.status == 400
        return {key: count - before.get(key, 0) for key, count in service_of(app).metrics.refusals.items()}

    assert {key: count for key, count in run_ahead(asked()).items() if count} == {("invalid_request", ""): 1}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("seconds", [0.0, 3.0, 20.0])
def test_who_leaves_while_nothing_was_said_ends_the_run(stream: bool, seconds: float) -> None:
    async def asked() -> Terminal | None:
        app = await make_app(**CALM)
        async with posted({"hang": True}, app=app, stream=stream) as exchange:
            await time_passes(seconds)
            (run,) = [run for run in service_of(app).runs.all if not run.terminal]
            exchange.disconnect()
        await run.wait()
        return run.terminal

    ending = run_ahead(asked())
    assert isinstance(ending, Cancelled)
    assert ending.reason == "disconnected"


def test_a_run_that_is_stopped_before_it_said_anything_is_no_answer() -> None:
    async def asked() -> Exchange:
        app = await make_app(**CALM)
        async with posted({"hang": True}, app=app) as exchange:
            await time_passes(1)
            (run,) = [run for run in service_of(app).runs.all if not run.terminal]
            assert (await ask(app, "DELETE", f"/runs/{run.id}")).status == 204
        return exchange

    exchange = run_ahead(asked())
    assert (exchange.status, json.loads(exchange.body)["error"]["code"]) == (409, "cancelled")
    assert exchange.headers["x-should-retry"] == "false"


# The whole answer at once


def test_the_whole_answer_comes_once_without_pings() -> None:
    exchange = after({"say": "One two", "every": 40}, stream=False)
    assert (exchange.status, exchange.headers["content-type"]) == (200, "application/json")
    assert json.loads(exchange.body)["choices"][0]["message"]["content"] == "One two"
    assert len(exchange.bodies) == 1


def test_half_an_answer_is_none() -> None:
    exchange = after({"say": "One two", "every": 20}, {"cut": True}, stream=False)
    assert (exchange.status, json.loads(exchange.body)["error"]["code"]) == (502, "upstream_incomplete")


def test_of_an_answer_that_was_taken_back_nothing_is_left() -> None:
    exchange = after({"say": "One"}, {"cut": True}, stream=False, model=["scripted/custom", "scripted/length"])
    choice = json.loads(exchange.body)["choices"][0]
    assert choice["message"]["content"] == "This answer was cut short by its limit of"
    assert (choice["finish_reason"], json.loads(exchange.body)["model"]) == ("length", "length")


def test_the_whole_is_told_once_the_run_is_done_and_never_of_one_that_failed() -> None:
    for events, told in ((RUNS["text"], b'{"told":true}'), (RUNS["error-late"], b"")):
        run = of(events)
        form, cursor = Whole(run, lambda run: {"told": True}), Cursor(run.log)
        assert form.take(cursor) == told
        assert form.take(cursor) == b""


def of(events: list[Event]) -> Run:
    """A run that is over, of which this is the log."""
    run = Run.__new__(Run)
    run.id, run.log = RUN, log_of(events)
    run.terminal = events[-1] if isinstance(events[-1], Terminal) else None
    return run


# What cannot be taken back


def test_reset_ends_the_viewer_whose_wire_has_no_word_for_it_and_no_other() -> None:
    async def asked() -> tuple[Exchange, Exchange]:
        app = await make_app(**CALM)
        steps = {"say": "One two", "every": 1}, {"wait": 2, "cut": True}
        async with posted(*steps, app=app, model=["scripted/custom", "scripted/hello"]) as foreign:
            await foreign.until(b"One")
            async with Exchange(app, "GET", foreign.headers["content-location"] + "/events") as native:
                await foreign.until(DONE)
        return foreign, native

    foreign, native = run_ahead(asked())
    *_, failed, end, _ = foreign.body.split(b"\n\n")
    assert (json.loads(failed.removeprefix(b"data: "))["error"]["code"], end) == ("upstream_incomplete", DONE.strip())
    assert [native.body.count(b"event: %b" % name) for name in (b"reset", b"start", b"done")] == [1, 2, 1]


def test_with_nobody_else_that_is_the_end_of_the_run() -> None:
    async def asked() -> Run:
        app = await make_app(**CALM)
        steps = {"say": "One two", "every": 1}, {"cut": True}
        async with posted(*steps, app=app, model=["scripted/custom", "scripted/stall"]) as exchange:
            await exchange.until(b"One")
            (run,) = [run for run in service_of(app).runs.all if not run.terminal]
        await run.wait()
        return run

    assert isinstance(run_ahead(asked()).terminal, Cancelled)


def test_a_reset_of_what_was_not_told_is_none() -> None:
    events = [start(), Values((), {}), Reset("graph_failed"), *RUNS["text"]]
    assert folded_openai(events) == folded_openai(RUNS["text"])


# A run by its name


def test_the_newest_run_of_a_name_is_found_as_long_as_it_is_kept() -> None:
    async def asked() -> None:
        app = await make_app(SIDESTREAM_KEEP="60")
        runs = service_of(app).runs
        first, second = [await create(app, "chat") for _ in range(2)]
        assert await runs.latest("chat", "") is None  # it is not begun
        for run in (first, second):
            runs.begin(run)
            assert await runs.latest("chat", "") is run
            await run.wait()
            await time_passes(20)
        assert await runs.latest("chat", "somebody") is None
        await time_passes(39)
        assert await runs.latest("chat", "") is second
        await time_passes(2)
        assert await runs.latest("chat", "") is None

    run_ahead(asked())


async def create(app: Any, name: str) -> Followed:
    asked = Asked(ChatRequest(message="Hi", model="scripted/echo"), lambda run: Folded(Names()), name=name)
    return await service_of(app).intake.run_asked(asked, Caller(), linger=5)


def test_a_bound_is_a_bound_on_every_wire() -> None:
    exchange = after({"say": "Hi"}, temperature=9)
    assert (exchange.status, json.loads(exchange.body)["error"]["param"]) == (400, "temperature")


def test_an_error_tells_no_more_than_it_should() -> None:
    exchange = after({"fail": "upstream_unavailable"}, environ={"SIDESTREAM_MAX_RETRIES": "0"})
    assert exchange.headers["cache-control"] == "no-store"
    assert set(json.loads(exchange.body)["error"]) == {"message", "type", "param", "code"}


def test_a_run_of_another_wire_is_one_like_all_others() -> None:
    async def asked() -> None:
        app = await make_app(**CALM)
        exchange = await ask_json(app, CHAT, model="scripted/echo", messages=[{"role": "user", "content": "Hi"}])
        told = await ask(app, "GET", exchange.headers["content-location"])
        assert (json.loads(told.body)["text"], json.loads(told.body)["state"]) == ("Hi", "done")

    run_ahead(asked())
