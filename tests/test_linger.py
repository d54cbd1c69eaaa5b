"""A run goes on for `linger` seconds without a viewer: who returns in time finds it going on, else it is cancelled.

Time is told by an hourglass, another run that nobody views: when the upstream sees that one go, its linger has passed.
"""

import time
from contextlib import suppress
from typing import Any

import pytest

from .client import Client, get, post
from .conftest import Service, Start, eventually
from .recorded import OPENAI
from .resource import WIRES, create, ended, events_in, is_one_run, rest_of, resume, said, status_of
from .test_slow_viewer import gone
from .upstream import END, HOLD, PAUSE, Exchange, Head, Step, Upstream, environ, warm

pytest_plugins = ["tests.upstream", "tests.replicas"]
pytestmark = pytest.mark.replicated

SHORT = 0.3
LONG = 60
GRAIN = 0.005  # by how much a timer may seem early: the loop reads its clock once a turn, in milliseconds
held: list[Step] = [Head(), *OPENAI.opening, OPENAI.token("One"), PAUSE, OPENAI.token(" two"), *OPENAI.ending, END]
each_asking = pytest.mark.parametrize("ask", [get, post], ids=["GET", "POST"])


def place(client: Client) -> str:
    client.read_on(lambda body: b"One" in body)
    return client.head()[1]["content-location"]


def left_alone(service: Service, url: str) -> None:
    """Return once the service has noticed that nobody views the run any more."""
    eventually(lambda: status_of(service.port, url)["viewers"] == 0)


def turn_the_hourglass(service: Service, upstream: Upstream, seconds: float = SHORT) -> None:
    """Return when at least so much time has passed for the service."""
    upstream.play(HOLD)
    create(service.port, message="Time?", linger=seconds)
    assert upstream.request().wait().ended == "aborted"


@each_asking
@pytest.mark.parametrize("path", ["/chat/stream", "/stream", "/openai/stream"])
def test_who_returns_in_time_finds_the_run_going_on(relay: Service, upstream: Upstream, path: str, ask: Any) -> None:
    upstream.play(*held)
    with ask(relay.port, path, message="Hi", linger=LONG) as client:
        url = place(client)
        seen = events_in(client)
    exchange = upstream.request()
    left_alone(relay, url)
    assert status_of(relay.port, url)["state"] == "running"
    with resume(relay.port, f"{url}/events", seen[-1].id) as client:
        assert client.head()[0] == 200
        exchange.release()
        (token, ending) = rest_of(client)
    assert (token.data, ending.name) == ({"token": " two"}, "done")
    assert exchange.wait().ended == "completed"
    assert upstream.exchanges.empty()


@each_asking
@pytest.mark.parametrize("asked", [{}, {"linger": 0}], ids=["by default", "as asked"])
def test_a_stream_does_not_linger_unless_it_asks(
    relay: Service, upstream: Upstream, ask: Any, asked: dict[str, int]
) -> None:
    upstream.play(*held)
    with ask(relay.port, message="Hi", **asked) as client:
        url = place(client)
    assert upstream.request().wait().ended == "aborted"
    assert eventually(lambda: status_of(relay.port, url)["ending"])["reason"] == "disconnected"


@each_asking
def test_when_nobody_returns_the_run_is_cancelled_not_before(relay: Service, upstream: Upstream, ask: Any) -> None:
    upstream.play(*held)
    client = ask(relay.port, message="Hi", linger=SHORT)
    url = place(client)
    last = events_in(client)[-1].id
    left = client.hang_up()
    exchange = upstream.request().wait()
    assert exchange.ended == "aborted"
    assert exchange.ended_at - left >= SHORT - GRAIN
    assert eventually(lambda: status_of(relay.port, url)["ending"])["reason"] == "disconnected"
    (ending,) = rest_of(resume(relay.port, f"{url}/events", last))
    assert (ending.name, ending.data["reason"]) == ("cancelled", "disconnected")


@pytest.fixture(scope="module")
def impatient(start_service: Start, upstream_server: Upstream) -> Service:
    """A service that waits for nobody for long."""
    settings = {"SIDESTREAM_LINGER": str(SHORT), "SIDESTREAM_SEND_TIMEOUT": "0.5", "SIDESTREAM_PING_INTERVAL": "0"}
    return warm(start_service(**environ(upstream_server), **settings), upstream_server)


def is_soon_cancelled(service: Service, upstream: Upstream, **asked: Any) -> None:
    upstream.play(*held)
    begun = time.monotonic()
    created = create(service.port, message="Hi", **asked)
    exchange = upstream.request().wait()
    assert exchange.ended == "aborted"
    assert exchange.ended_at - begun >= SHORT - GRAIN
    assert eventually(lambda: status_of(service.port, created["status_url"])["ending"])["reason"] == "disconnected"


def test_a_created_run_that_nobody_follows_is_cancelled_as_it_asked(relay: Service, upstream: Upstream) -> None:
    is_soon_cancelled(relay, upstream, linger=SHORT)


def test_a_created_run_that_nobody_follows_is_cancelled_as_is_set(impatient: Service, upstream: Upstream) -> None:
    is_soon_cancelled(impatient, upstream)


def test_whoever_returns_stops_the_clock(relay: Service, upstream: Upstream) -> None:
    linger = 0.7  # time enough to return, on a machine that is busy
    upstream.play(*held)
    created = create(relay.port, message="Hi", linger=linger)
    exchange = upstream.request()
    with get(relay.port, created["events_url"]) as client:
        client.until("token")
        turn_the_hourglass(relay, upstream, linger)
        assert not exchange.ended, "the clock of its creation was stopped by its first viewer"
    left_alone(relay, created["status_url"])
    with get(relay.port, created["events_url"]) as client:
        client.until("token")
        turn_the_hourglass(relay, upstream, linger)
        assert not exchange.ended, "so was that of its last one's leaving"
        left = client.hang_up()
    assert exchange.wait().ended_at - left >= linger - GRAIN, "and it begins anew"


def test_one_of_two_viewers_leaving_starts_no_clock(relay: Service, upstream: Upstream) -> None:
    upstream.play(*held)
    with get(relay.port, message="Hi", linger=SHORT) as first:
        url = place(first)
        exchange = upstream.request()
        with get(relay.port, f"{url}/events") as second:
            second.until("token")
            first.hang_up()
            eventually(lambda: status_of(relay.port, url)["viewers"] == 1)
            turn_the_hourglass(relay, upstream)
            assert not exchange.ended
    assert exchange.wait().ended == "aborted"


def test_who_looks_is_no_viewer(relay: Service, upstream: Upstream) -> None:
    upstream.play(*held)
    created = create(relay.port, message="Hi", linger=SHORT)
    exchange = upstream.request()
    while not exchange.ended:
        for method, url in [("GET", created["status_url"]), ("HEAD", created["events_url"])]:
            with Client(relay.port, method, url) as client:
                assert client.head()[0] == 200
    assert ended(relay, created["status_url"])["ending"]["reason"] == "disconnected"


def test_a_run_that_ends_while_nobody_views_it_is_there_for_who_returns(relay: Service, upstream: Upstream) -> None:
    upstream.play(*held)
    with post(relay.port, message="Hi", linger=LONG) as client:
        url = place(client)
        seen = events_in(client)
    left_alone(relay, url)
    exchange = upstream.request()
    exchange.release()
    eventually(lambda: status_of(relay.port, url)["state"] == "done")
    whole = seen + rest_of(resume(relay.port, f"{url}/events", seen[-1].id))
    assert is_one_run(whole)
    assert said(whole)["token"] == "One two"
    assert upstream.exchanges.empty()


FLOOD = [f"{number}".ljust(20_000, ".") for number in range(400)]


def stall(service: Service, exchange: Exchange, url: str, wire: dict[str, str]) -> Client:
    """View a run, take its beginning and then nothing more, and return once the service has hung up."""
    client = Client(service.port, "GET", url, headers=wire, receive_buffer=4096)
    client.read_on(lambda body: b"One" in body)
    exchange.release()
    eventually(lambda: gone(client.socket))
    with suppress(ConnectionError):
        client.read()  # what the kernel still has of it
    return client


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
def test_a_viewer_that_was_let_go_has_left_and_loses_nothing(
    impatient: Service, upstream: Upstream, wire: dict[str, str]
) -> None:
    more: list[Step] = [*map(OPENAI.token, FLOOD), PAUSE, OPENAI.token("end"), *OPENAI.ending, END]
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("One"), PAUSE, *more)
    created = create(impatient.port, message="Hi", linger=LONG)
    exchange = upstream.request()
    with stall(impatient, exchange, created["events_url"], wire) as client:
        seen = events_in(client)
    left_alone(impatient, created["status_url"])
    assert status_of(impatient.port, created["status_url"])["state"] == "running"
    with resume(impatient.port, created["events_url"], seen[-1].id, headers=wire) as client:
        assert client.head()[0] == 200
        exchange.release()
        whole = seen + rest_of(client)
    assert is_one_run(whole)
    assert said(whole)["token"] == "One" + "".join(FLOOD) + "end"
    assert exchange.wait().ended == "completed"
    assert upstream.exchanges.empty()


def test_a_run_that_lingers_does_not_hold_up_the_end_of_the_service(start_service: Start) -> None:
    service = start_service()
    create(service.port, message="Hi", model="scripted/silent", linger=LONG)
    with post(service.port, message="Hi", model="scripted/silent", linger=LONG) as client:
        client.until("start")
    service.stop()  # it would raise, long before the linger is over
    assert "Traceback" not in service.log
