"""Three deadlines, by setting and by request: the whole run, the first content, the silence between contents.

Only content resets the last two. Whichever fires, the run ends in its own code and the upstream's socket is closed.
"""

import re
import time
from collections.abc import Sequence

import pytest

from .client import get, post
from .conftest import Service, Start
from .recorded import DIALECTS, Dialect, told
from .upstream import END, HOLD, PAUSE, Head, Repeat, Step, Upstream, environ, warm

pytest_plugins = ["tests.upstream"]

each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=[dialect.provider for dialect in DIALECTS])
each_nothing = pytest.mark.parametrize(
    ("dialect", "nothing"),
    [(dialect, nothing) for dialect in DIALECTS for nothing in dialect.nothings],
    ids=[f"{dialect.provider}-{number}" for dialect in DIALECTS for number in range(len(dialect.nothings))],
)
NAMES = ("run_timeout", "first_token_timeout", "idle_timeout")
SHORT = 0.2


@pytest.fixture(scope="module")
def hasty(start_service: Start, upstream_server: Upstream) -> Service:
    """A service whose settings are short, and which pings all the time."""
    service = start_service(
        SIDESTREAM_RUN_TIMEOUT="1",
        SIDESTREAM_FIRST_TOKEN_TIMEOUT="0.5",
        SIDESTREAM_IDLE_TIMEOUT="0.3",
        SIDESTREAM_PING_INTERVAL="0.02",
        **environ(upstream_server),
    )
    return warm(service, upstream_server)


@pytest.fixture(scope="module")
def pinging(start_service: Start, upstream_server: Upstream) -> Service:
    """A service that pings all the time, and is in no hurry."""
    return warm(start_service(SIDESTREAM_PING_INTERVAL="0.02", **environ(upstream_server)), upstream_server)


def times_out(
    service: Service,
    upstream: Upstream,
    dialect: Dialect,
    steps: Sequence[Step],
    code: str,
    after: float,
    **body: float,
) -> str:
    """A run that meets these steps ends in `code`, not earlier than `after` seconds; return the text it said before."""
    upstream.play(*steps)
    asked = time.monotonic()
    with post(service.port, f"/{dialect.provider}/stream", message="Hi", **body) as client:
        events = told(client)
    assert time.monotonic() - asked >= after
    name, data = events[-1]
    assert (name, data.pop("code"), data.pop("retryable")) == ("error", code, True)
    assert f"{after:g} s" in data.pop("error")
    text = "".join(data["token"] for name, data in events if name == "token")
    read = dialect.input_told if dialect.input_told and len(steps) > 2 else 1
    usage = {"input_tokens": read, "output_tokens": -(-len(text) // 4)}
    if text or not dialect.input_told or len(steps) < 3:
        usage["estimated"] = True
    assert data == {"done": True, "usage": usage}
    exchange = upstream.request().wait()
    assert exchange.ended == "aborted"
    assert exchange.ended_at - asked >= after
    return text


def ticking(dialect: Dialect) -> list[Step]:
    """A stream that takes ten seconds and is never silent for long."""
    return [Head(), *dialect.opening, Repeat(dialect.token("x"), every=0.02, times=500), *dialect.ending, END]


# --- by request field ---------------------------------------------------------------------------------------------


@each_dialect
def test_a_run_that_takes_too_long_is_ended(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    text = times_out(relay, upstream, dialect, ticking(dialect), "run_timeout", SHORT, run_timeout=SHORT)
    assert set(text) == {"x"}


@pytest.mark.parametrize("opened", [False, True], ids=["before-headers", "opened"])
@each_dialect
def test_no_first_token_in_time_ends_a_run(relay: Service, upstream: Upstream, dialect: Dialect, opened: bool) -> None:
    steps = [Head(), *dialect.opening, HOLD] if opened else [HOLD]
    times_out(relay, upstream, dialect, steps, "first_token_timeout", SHORT, first_token_timeout=SHORT)


@each_dialect
def test_silence_between_tokens_ends_a_run(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    steps = [Head(), *dialect.opening, dialect.token("One"), HOLD]
    assert times_out(relay, upstream, dialect, steps, "idle_timeout", SHORT, idle_timeout=SHORT) == "One"


@each_nothing
def test_what_is_no_content_is_no_first_token(
    relay: Service, upstream: Upstream, dialect: Dialect, nothing: bytes
) -> None:
    steps = [Head(), *dialect.opening, Repeat(nothing, every=0.02)]
    deadlines = {"first_token_timeout": SHORT, "run_timeout": 5}
    times_out(relay, upstream, dialect, steps, "first_token_timeout", SHORT, **deadlines)


@each_nothing
def test_what_is_no_content_does_not_break_a_silence(
    relay: Service, upstream: Upstream, dialect: Dialect, nothing: bytes
) -> None:
    steps = [Head(), *dialect.opening, dialect.token("One"), Repeat(nothing, every=0.02)]
    deadlines = {"idle_timeout": SHORT, "run_timeout": 5}
    assert times_out(relay, upstream, dialect, steps, "idle_timeout", SHORT, **deadlines) == "One"


@each_dialect
def test_content_resets_the_silence_each_time(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    # Twice the deadline, each token within a tenth of it.
    upstream.play(Head(), *dialect.opening, Repeat(dialect.token("x"), 0.06, times=20), *dialect.ending, END)
    body = {"idle_timeout": 0.6, "first_token_timeout": 0.6}
    with post(relay.port, f"/{dialect.provider}/stream", message="Hi", **body) as client:
        assert told(client)[-2:] == [("token", {"token": "x" * 20}), ("done", dialect.done(20))]


@each_dialect
def test_the_deadline_that_is_first_wins(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    deadlines = {"run_timeout": 2 * SHORT, "first_token_timeout": SHORT}
    times_out(relay, upstream, dialect, [HOLD], "first_token_timeout", SHORT, **deadlines)
    deadlines = {"run_timeout": SHORT, "first_token_timeout": 2 * SHORT}
    times_out(relay, upstream, dialect, [HOLD], "run_timeout", SHORT, **deadlines)


# --- by setting ---------------------------------------------------------------------------------------------------


@each_dialect
def test_the_settings_hold_for_a_request_that_names_none(hasty: Service, upstream: Upstream, dialect: Dialect) -> None:
    times_out(hasty, upstream, dialect, [HOLD], "first_token_timeout", 0.5)
    quiet = [Head(), *dialect.opening, dialect.token("One"), HOLD]
    assert times_out(hasty, upstream, dialect, quiet, "idle_timeout", 0.3) == "One"
    times_out(hasty, upstream, dialect, ticking(dialect), "run_timeout", 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_request_may_ask_for_less_and_for_as_much_but_not_for_more(
    hasty: Service, upstream: Upstream, name: str
) -> None:
    most = dict(zip(NAMES, (1, 0.5, 0.3), strict=True))[name]
    for client in (
        post(hasty.port, "/openai/stream", message="Hi", **{name: most + 0.01}),
        get(hasty.port, message="Hi", model="openai", **{name: most + 0.01}),
    ):
        with client:
            assert client.head()[0] == 400
            problem = client.read()
            assert b'"code":"invalid_request"' in problem
            assert f'"field":"{name}"'.encode() in problem
            assert f"at most {most:g} seconds".encode() in problem
    upstream.stream(*DIALECTS[0].opening, DIALECTS[0].token("Well"), *DIALECTS[0].ending)
    with post(hasty.port, "/openai/stream", message="Hi", **{name: most}) as client:
        assert told(client)[-1] == ("done", DIALECTS[0].done(1))
    upstream.request()
    assert upstream.exchanges.empty(), "a request that is refused asks nobody"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, -1, "soon", 1e9, True])
def test_a_deadline_that_is_none_is_refused(relay: Service, upstream: Upstream, name: str, value: object) -> None:
    with post(relay.port, "/openai/stream", message="Hi", **{name: value}) as client:
        assert client.head()[0] == 400
        assert f'"field":"{name}"'.encode() in client.read()


def test_null_is_as_good_as_no_deadline(relay: Service, upstream: Upstream) -> None:
    upstream.stream(*DIALECTS[0].opening, *DIALECTS[0].ending)
    with post(relay.port, "/openai/stream", message="Hi", **dict.fromkeys(NAMES)) as client:
        assert told(client)[-1][0] == "done"


# --- pings --------------------------------------------------------------------------------------------------------

BLOCK = re.compile(rb"retry: 3000|: ping|event: \w+\nid: [0-9a-f]{32}-\d+\ndata: \{[^\n]+\}")


@each_dialect
def test_pings_come_before_the_headers_and_before_the_first_token(
    pinging: Service, upstream: Upstream, dialect: Dialect
) -> None:
    upstream.play(PAUSE, Head(), *dialect.opening, PAUSE, dialect.token("One"), *dialect.ending, END)
    with post(pinging.port, f"/{dialect.provider}/stream", message="Hi") as client:
        exchange = upstream.request()
        for pings in (2, 5):
            client.read_on(lambda body: body.count(b": ping\n\n") >= pings)  # noqa: B023
            exchange.release()
        assert client.until("done").data["tokens"] == 1
        assert b"token" not in client.body.split(b": ping\n\n")[4]


@each_dialect
def test_pings_never_come_within_an_event(pinging: Service, upstream: Upstream, dialect: Dialect) -> None:
    large = dialect.token("word " * 40_000)
    upstream.play(Head(), *dialect.opening, *[large, PAUSE] * 8, *dialect.ending, END)
    with post(pinging.port, f"/{dialect.provider}/stream", message="Hi") as client:
        exchange = upstream.request()
        for tokens in range(1, 9):
            client.read_on(lambda body: len(body.split(b"event: token")) > tokens)  # noqa: B023 - called at once
            client.read_on(lambda body: b": ping" in body.rpartition(b"event: token")[2])
            exchange.release()
        blocks = client.read().split(b"\n\n")
    assert blocks.pop() == b""
    assert [block for block in blocks if not BLOCK.fullmatch(block)] == []
    assert b'"tokens":8' in [block for block in blocks if block != b": ping"][-1]


@each_dialect
def test_ndjson_is_kept_alive_by_empty_lines(hasty: Service, upstream: Upstream, dialect: Dialect) -> None:
    upstream.play(PAUSE, Head(), *dialect.opening, PAUSE, dialect.token("One"), *dialect.ending, END)
    accept = {"Accept": "application/x-ndjson"}
    with post(hasty.port, f"/{dialect.provider}/stream", accept, message="Hi") as client:
        exchange = upstream.request()
        for pings in (2, 4):
            client.read_on(lambda body: body.count(b"\n") >= 1 + pings)  # noqa: B023 - `start`, and they
            exchange.release()
        lines = client.read().split(b"\n")
    assert [line[:10] for line in lines if line] == [b'{"event":"'] * 3
