"""A viewer that goes takes its upstream request with it, at once, in every phase, however it goes.

The proof is the upstream's own record: when its socket saw the end. Machines are noisy, so a phase has a few tries to
be prompt; it needs one.
"""

from collections.abc import Callable

import pytest

from .client import Client, get, post
from .conftest import Service, eventually
from .recorded import DIALECTS, Dialect
from .resource import status_of
from .upstream import END, HOLD, PAUSE, Exchange, Head, Repeat, Step, Upstream

pytest_plugins = ["tests.upstream"]

PROMPT = 0.05
TRIES = 5
NDJSON = {"Accept": "application/x-ndjson"}
# More than the sockets between the service and a viewer of a small buffer take, less than `max_run_bytes`.
FLOOD = [" flood" * 10_000] * 100

each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=[dialect.provider for dialect in DIALECTS])
# With bytes unread the kernel makes a reset of a close, too: what a browser's tab does in mid-stream.
each_way = pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
each_wire = pytest.mark.parametrize("wire", [{}, NDJSON], ids=["SSE", "NDJSON"])


def before_headers(dialect: Dialect) -> list[Step]:
    return [HOLD]


def before_tokens(dialect: Dialect) -> list[Step]:
    return [Head(), *dialect.opening, HOLD]


def mid_stream(dialect: Dialect) -> list[Step]:
    return [Head(), *dialect.opening, dialect.token("Here"), Repeat(dialect.token(" and there"), every=0.001)]


def silent_after_tokens(dialect: Dialect) -> list[Step]:
    return [Head(), *dialect.opening, dialect.token("Here"), HOLD]


def slow_viewer(dialect: Dialect) -> list[Step]:
    more = Repeat(dialect.token(" more"), every=0.001)
    return [Head(), *dialect.opening, dialect.token("Here"), *map(dialect.token, FLOOD), more]


Phase = Callable[[Dialect], list[Step]]
PHASES: list[Phase] = [before_headers, before_tokens, mid_stream, silent_after_tokens, slow_viewer]


def arrive(relay: Service, upstream: Upstream, dialect: Dialect, wire: dict[str, str], phase: Phase) -> Client:
    """Ask, and return once the run is in this phase and its viewer has seen all there is to see in it."""
    upstream.play(*phase(dialect))
    headers = {"Content-Type": "application/json", **wire}
    body = b'{"message": "Hi"}'
    client = Client(
        relay.port,
        "POST",
        f"/{dialect.provider}/stream",
        headers=headers,
        body=body,
        receive_buffer=4096 if phase is slow_viewer else 0,
    )
    awaited = b"start" if phase in (before_headers, before_tokens) else b"Here"
    client.read_on(lambda body: awaited in body)
    return client


def catch_up(relay: Service) -> None:
    """Let the service's loop go round until it has read what it was flooded with."""
    for _ in range(30):
        with get(relay.port, "/healthz") as client:
            client.read()


def delay(exchange: Exchange, hung_up: float) -> float:
    """Return how long after the viewer's going the upstream saw it."""
    assert exchange.wait().ended == "aborted"
    return exchange.ended_at - hung_up


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
@each_wire
@each_way
@each_dialect
def test_hanging_up_closes_the_upstream_at_once(
    relay: Service, upstream: Upstream, dialect: Dialect, reset: bool, wire: dict[str, str], phase: Phase
) -> None:
    delays: list[float] = []
    while not delays or (delays[-1] >= PROMPT and len(delays) < TRIES):
        client = arrive(relay, upstream, dialect, wire, phase)
        exchange = upstream.request()
        exchange.wait_for_pause()
        if phase is slow_viewer:
            catch_up(relay)
        delays.append(delay(exchange, client.hang_up(reset=reset)))
    assert min(delays) < PROMPT, delays
    asks_once_more(relay, upstream, dialect)


def asks_once_more(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    """The service serves on, and its next request is the very next the upstream sees: there was none in between."""
    upstream.stream(*dialect.opening, dialect.token("Well"), *dialect.ending)
    with post(relay.port, f"/{dialect.provider}/stream", message="Again?") as client:
        assert client.until("done").data["usage"] == dialect.usage
    assert "Again?" in str(upstream.request().body)
    assert upstream.exchanges.empty()


@each_dialect
def test_a_page_that_is_loaded_again_has_one_upstream_request_at_a_time(
    relay: Service, upstream: Upstream, dialect: Dialect
) -> None:
    model = f"{dialect.provider}/{dialect.model}"
    for _ in range(3):
        upstream.play(*silent_after_tokens(dialect))
    page = get(relay.port, message="Hi", model=model)
    for _ in range(2):
        page.until("token")
        exchange = upstream.request()
        reloaded = get(relay.port, message="Hi", model=model)  # the new page asks while the old one goes
        page.hang_up()
        assert exchange.wait().ended == "aborted"
        page = reloaded
    page.until("token")
    page.hang_up()
    assert upstream.request().wait().ended == "aborted"
    asks_once_more(relay, upstream, dialect)


@each_dialect
def test_an_eventsource_that_comes_back_does_not_ask_again(
    relay: Service, upstream: Upstream, dialect: Dialect
) -> None:
    query = {"message": "Hi", "model": f"{dialect.provider}/{dialect.model}"}
    upstream.play(*silent_after_tokens(dialect))
    with get(relay.port, **query) as client:
        last = client.until("token").id
    assert upstream.request().wait().ended == "aborted"
    with get(relay.port, headers={"Last-Event-ID": last}, **query) as client:
        (ending,) = client
    assert (ending.name, ending.data["reason"]) == ("cancelled", "disconnected")
    with get(relay.port, headers={"Last-Event-ID": ending.id}, **query) as client:
        assert client.head()[0] == 204
    asks_once_more(relay, upstream, dialect)


@each_dialect
def test_one_viewer_going_leaves_the_others_alone(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    upstream.play(Head(), *dialect.opening, dialect.token("One"), PAUSE, dialect.token(" two"), *dialect.ending, END)
    upstream.play(*silent_after_tokens(dialect))
    with post(relay.port, f"/{dialect.provider}/stream", message="Hi") as staying:
        staying.until("token")
        kept = upstream.request()
        with post(relay.port, f"/{dialect.provider}/stream", message="Hi") as going:
            going.until("token")
        assert upstream.request().wait().ended == "aborted"
        assert not kept.ended
        kept.release()
        assert staying.until("done").data["tokens"] == 2
    assert kept.wait().ended == "completed"


@pytest.mark.parametrize("path", ["/chat/stream", "/{}/stream", "/stream"])
@each_dialect
def test_a_head_never_asks_the_upstream(relay: Service, upstream: Upstream, dialect: Dialect, path: str) -> None:
    target = f"{path.format(dialect.provider)}?message=Hi&model={dialect.provider}/{dialect.model}"
    with Client(relay.port, "HEAD", target, headers={"Connection": "close"}) as client:
        assert client.head()[0] == 200
        with pytest.raises(ConnectionError):
            client.read_on(lambda body: False)
        assert client.raw.endswith(b"\r\n\r\n"), "a head and no body"
    asks_once_more(relay, upstream, dialect)


BAD = {
    "no message": {},
    "no content": {"message": " "},
    "unknown field": {"message": "Hi", "temprature": 1},
    "wrong type": {"message": "Hi", "max_tokens": "many"},
    "both": {"message": "Hi", "messages": [{"role": "user", "content": "Hi"}]},
    "too long a wait": {"message": "Hi", "idle_timeout": 1e5},
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
@each_dialect
def test_a_bad_request_never_asks_the_upstream(
    relay: Service, upstream: Upstream, dialect: Dialect, body: dict[str, object]
) -> None:
    with post(relay.port, f"/{dialect.provider}/stream", **body) as client:
        assert client.head()[0] == 400
        client.read()
    asks_once_more(relay, upstream, dialect)


@pytest.mark.parametrize("path", ["/chat/stream", "/stream"])
def test_who_leaves_a_provider_that_is_never_silent_is_noticed(service: Service, path: str) -> None:
    """A task that has something to send at every turn of the loop must hear of it, too."""
    with get(service.port, path, message="Hi", model="scripted/flood") as client:
        run = client.head()[1]["content-location"]
        client.read_on(lambda body: len(body) > 1000)
    eventually(lambda: status_of(service.port, run)["state"] != "running")
    assert status_of(service.port, run)["ending"]["reason"] == "disconnected"
