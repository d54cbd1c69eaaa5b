"""A run as a resource, without a network: how it stands, how long its URLs are good, what makes two requests one.

That a URL is signed for its run and nothing else is for test_links.py to show.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from streaming.admission import Capacity
from streaming.errors import RequestError
from streaming.events import Cancelled, Reasoning, Token, ToolCall, ToolCallDelta, Usage
from streaming.followed import CancelReason
from streaming.request import Emit, RunRequest
from streaming.run import Run
from streaming.runs import Runs
from wires.chat import json_line
from wires.resource import Links, digest, idempotency_key, status

from .asgi import run_ahead, time_passes
from .test_run import FAULT, HELLO, LIMITS, STOP, Plays, Step, failed, finished, run_of

KEEP = 60.0
ESTIMATED = Usage(3, 2, estimated=True)


def told(run: Run, **differing: Any) -> None:
    """Check all that a run says of itself against how a run stands that has not said a word."""
    plain = {
        "id": run.id,
        "state": "running",
        "position": 0,
        "provider": "test",
        "model": "m",
        "created": int(run.created),
        "text": "",
        "last_event_id": f"{run.id}-1",
        "tokens": 0,
        "ttft_ms": None,
        "latency_ms": 0,
        "usage": Usage(3, 0, estimated=True),
        "viewers": 0,
        "retries": 0,
        "failovers": 0,
        "resets": 0,
        "ending": None,
    }
    assert set(differing) <= set(plain)
    assert status(run) == {**plain, **differing}


def test_a_run_that_has_not_begun_stands_before_its_first_event() -> None:
    run = run_of(Plays())
    told(run, last_event_id=f"{run.id}-0", usage=Usage())


def test_a_run_tells_how_it_stands_at_any_moment() -> None:
    async def test() -> None:
        run = run_of(Plays(1.0, HELLO, 2.0, [Token(", you")], 1.0, STOP))
        with run.viewing():
            run.start()
            told(run, viewers=1)
            await time_passes(0.25)
            told(run, latency_ms=250, viewers=1)
            await time_passes(1.25)
        so_far = {"text": "Hello", "last_event_id": f"{run.id}-2", "tokens": 1, "ttft_ms": 1000, "usage": ESTIMATED}
        told(run, **so_far, latency_ms=1500)
        with run.viewing(), run.viewing():
            told(run, **so_far, latency_ms=1500, viewers=2)
        await run.wait()
        usage = Usage(3, 3, estimated=True)
        ending = finished("Hello, you", ttft_ms=1000, latency_ms=4000, tokens=2)
        over = {"text": "Hello, you", "last_event_id": f"{run.id}-4", "tokens": 2, "ttft_ms": 1000, "usage": usage}
        for _ in range(2):
            told(run, **over, state="done", latency_ms=4000, ending=ending)
            await time_passes(5)  # and it stays so

    run_ahead(test())


@pytest.mark.parametrize("reason", ["disconnected", "requested", "draining"])
def test_a_run_that_was_stopped_is_running_until_its_upstream_is_closed(reason: CancelReason) -> None:
    class Slow(Plays):
        async def stream(self, request: RunRequest, emit: Emit) -> None:
            try:
                await super().stream(request, emit)
            finally:
                await time_passes(3)

    async def test() -> None:
        run = run_of(Slow(HELLO, 1000.0))
        run.start()
        await time_passes(2)
        run.end(reason)
        await time_passes(1)
        so_far = {"text": "Hello", "tokens": 1, "ttft_ms": 0, "usage": ESTIMATED}
        told(run, **so_far, last_event_id=f"{run.id}-2", latency_ms=3000)
        await run.wait()
        ending = Cancelled(reason=reason, usage=ESTIMATED)
        told(run, **so_far, state="cancelled", last_event_id=f"{run.id}-3", latency_ms=5000, ending=ending)

    run_ahead(test())


def stands_after(*steps: Step) -> dict[str, Any]:
    async def test() -> dict[str, Any]:
        run = run_of(Plays(*steps))
        run.start()
        await run.wait()
        return status(run)

    return run_ahead(test())


def test_a_run_that_failed_says_with_what() -> None:
    stands = stands_after(1.0, HELLO, FAULT)
    assert (stands["state"], stands["text"], stands["usage"]) == ("error", "Hello", ESTIMATED)
    assert stands["ending"] == failed("upstream_rate_limited", "Slow down.", ESTIMATED)


def test_its_text_is_what_was_answered_and_nothing_else() -> None:
    call = [ToolCallDelta(0, "{}", "i", "f"), ToolCall("i", "f", {})]
    stands = stands_after([Reasoning("hm")], HELLO, call, [Token(" again", node="agent")], STOP)
    assert stands["text"] == "Hello again"
    assert stands["last_event_id"].endswith("-7")


def test_usage_that_the_upstream_counted_is_told_as_it_comes() -> None:
    async def test() -> list[Usage]:
        run = run_of(Plays([Usage(11, 0)], 1.0, HELLO, [Usage(11, 5)], 1.0, STOP))
        run.start()
        seen = []
        for _ in range(3):
            await time_passes(0.75)
            seen.append(status(run)["usage"])
        return seen

    assert run_ahead(test()) == [Usage(11, 0), Usage(11, 5), Usage(11, 5)]


@pytest.mark.parametrize("text", ["", "é\u2028\x85\n", "\ud83d", '"'])
def test_how_it_stands_is_one_line_of_json_whatever_was_said(text: str) -> None:
    stands = stands_after([Token(text)], [Token("x")], STOP)
    line = json_line(stands)
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line)["text"] == text + "x"
    assert json.loads(line)["ending"]["done"] is True


# How long a URL is good


def test_a_url_is_good_for_as_long_as_there_can_be_anything_behind_it() -> None:
    """The longest there is: a run that waits in line, talks until its time is over, and is then kept."""

    async def test() -> None:
        runs, links = Runs(KEEP, 2**20, Capacity(max_runs=1, max_queue=1)), Links("", KEEP)
        before, run = run_of(Plays(100.0), replace(LIMITS, run_timeout=59.5)), run_of(Plays(*[50.0, HELLO] * 13))
        runs.begin(before)
        runs.begin(run)
        good_for = links.expires(run) - run.created
        await run.wait()
        await time_passes(KEEP - 0.5)
        assert await runs.find(run.id) is run
        assert asyncio.get_running_loop().time() <= good_for
        await time_passes(0.5)
        with pytest.raises(RequestError):
            await runs.find(run.id)
        # To the half of a second that it did not wait, and the one that a link's time is rounded up to.
        assert asyncio.get_running_loop().time() <= good_for < asyncio.get_running_loop().time() + 1.5

    run_ahead(test())


@pytest.mark.parametrize("run_timeout", [0.5, 20.0, 600.0])
@pytest.mark.parametrize("keep", [0.0, 0.5, 60.0])
def test_a_url_is_good_until_the_end_of_a_second_of_the_clock_on_the_wall(run_timeout: float, keep: float) -> None:
    run = run_of(Plays(), replace(LIMITS, run_timeout=run_timeout, queue_timeout=10.0))
    for created in (1_800_000_000.0, 1_800_000_000.25):
        run.created = created
        good_for = Links("", keep).expires(run) - created
        assert 10 + run_timeout + keep <= good_for < 10 + run_timeout + keep + 1


def test_what_is_told_of_a_new_run_is_one_expiry_and_two_urls_below_its_path() -> None:
    run, links = run_of(Plays()), Links("", KEEP)
    created = links.created(run, f"/below/runs/{run.id}")
    assert list(created) == ["id", "events_url", "status_url", "expires"]
    assert (created["id"], created["expires"]) == (run.id, links.expires(run))
    (path, query), (status_path, status_query) = (created[name].split("?") for name in ("events_url", "status_url"))
    assert (path, status_path) == (f"/below/runs/{run.id}/events", f"/below/runs/{run.id}")
    assert query == status_query
    assert query.startswith(f"expires={created['expires']}&signature=")
    assert json.loads(json_line(created)) == created


# An Idempotency-Key and what it stands for

PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))


def key_of(text: str) -> str | None:
    """Return the key, None where it is refused."""
    try:
        return idempotency_key({"idempotency-key": text})
    except RequestError as refused:
        told = (refused.status, refused.code, refused.text, refused.field)
    text = "An Idempotency-Key is 1 to 255 printable ASCII characters."
    assert told == (400, "invalid_request", text, "Idempotency-Key")
    return None


def is_key(text: str) -> bool:
    return 1 <= len(text) <= 255 and set(text) <= set(PRINTABLE) and text == text.strip(" ")


@given(st.one_of(st.text(st.characters()), st.text(PRINTABLE, min_size=200, max_size=300), st.text(PRINTABLE)))
@example("")
@example(" ")
@example("a b")
@example("a\n")
@example("x" * 255)
@example("x" * 256)
@example("\x7f")
@example("é")
def test_a_key_is_taken_as_it_stands_or_refused(text: str) -> None:
    assert key_of(text) == (text if is_key(text) else None)


@pytest.mark.parametrize("headers", [{}, {"Idempotency_Key": "x"}, {"idempotency": "x"}])
def test_without_a_key_there_is_none(headers: Mapping[str, str]) -> None:
    assert idempotency_key(headers) == ""


models = st.text("ab/é", max_size=4)
bodies = st.binary(max_size=4) | st.sampled_from([b"{}", b"{} ", b"\0{}", b"a\0{}"])
asked = st.tuples(models, bodies)


@given(asked, asked)
@example(("a", b"b{}"), ("ab", b"{}"))
def test_two_requests_are_one_only_if_body_and_model_are_the_same_to_the_byte(
    one: tuple[str, bytes], other: tuple[str, bytes]
) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)
    assert digest(*one) == digest(*one)


def test_what_a_request_is_known_by_does_not_hold_it() -> None:
    assert len(digest("m", b"x" * 10**6)) == len(digest("m", b"")) == 32
