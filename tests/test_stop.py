"""DELETE stops a run in every phase: its upstream is closed at once, and whoever views it is told so, once.

The proof is the upstream's own record: when its socket saw the end. Machines are noisy, so a phase has a few tries to
be prompt; it needs one.
"""

import socket
import threading
import time
from typing import Any

import pytest

from .client import Client, delete, get, post
from .conftest import Service, eventually
from .recorded import DIALECTS, OPENAI, Dialect
from .resource import (
    WIRES,
    answer,
    create,
    ended,
    events_in,
    is_one_run,
    refused,
    rest_of,
    resume,
    said,
    status_of,
    stop,
)
from .test_disconnect import PHASES, PROMPT, TRIES, Phase, before_headers, before_tokens, catch_up, slow_viewer
from .upstream import END, HOLD, PAUSE, Exchange, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.replicas"]
pytestmark = pytest.mark.replicated

each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=[dialect.provider for dialect in DIALECTS])
each_phase = pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)


def arrive(relay: Service, upstream: Upstream, dialect: Dialect, phase: Phase) -> tuple[dict[str, Any], Exchange]:
    """Create a run, and return once it is in this phase."""
    upstream.play(*phase(dialect))
    created = create(relay.port, message="Hi", model=dialect.provider)
    exchange = upstream.request()
    exchange.wait_for_pause()
    if phase not in (before_headers, before_tokens):
        eventually(lambda: status_of(relay.port, created["status_url"])["tokens"])
    return created, exchange


def watch(relay: Service, created: dict[str, Any], phase: Phase, wire: dict[str, str]) -> Client:
    """View the run, and return once the viewer has seen all there is to see in this phase."""
    size = 4096 if phase is slow_viewer else 0
    client = Client(relay.port, "GET", created["events_url"], headers=wire, receive_buffer=size)
    awaited = b"start" if phase in (before_headers, before_tokens) else b"Here"
    client.read_on(lambda body: awaited in body)
    return client


def told_of_the_stop(client: Client, text: str) -> None:
    """The stream is whole and ends properly, with one terminal event that says so."""
    with client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)  # a slow one makes haste now
        client.read()
        events = events_in(client)
    assert is_one_run(events)
    assert (events[-1].name, events[-1].data["reason"]) == ("cancelled", "requested")
    assert said(events)["token"] == text


def delay(relay: Service, created: dict[str, Any], exchange: Exchange) -> float:
    """Stop the run; return how long after that the upstream saw its client go."""
    asked = time.monotonic()
    stop(relay.port, created["status_url"])
    assert exchange.wait().ended == "aborted"
    return exchange.ended_at - asked


@each_phase
@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
@each_dialect
def test_a_stopped_run_closes_its_upstream_at_once_and_tells_its_viewer(
    relay: Service, upstream: Upstream, dialect: Dialect, wire: dict[str, str], phase: Phase
) -> None:
    delays: list[float] = []
    while not delays or (delays[-1] >= PROMPT and len(delays) < TRIES):
        created, exchange = arrive(relay, upstream, dialect, phase)
        viewer = watch(relay, created, phase, wire)
        if phase is slow_viewer:
            catch_up(relay)
        delays.append(delay(relay, created, exchange))
        told_of_the_stop(viewer, ended(relay, created["status_url"])["text"])
    assert min(delays) < PROMPT, delays


@each_phase
@each_dialect
def test_a_run_that_nobody_views_is_stopped_as_well(
    relay: Service, upstream: Upstream, dialect: Dialect, phase: Phase
) -> None:
    delays: list[float] = []
    while not delays or (delays[-1] >= PROMPT and len(delays) < TRIES):
        created, exchange = arrive(relay, upstream, dialect, phase)
        if phase is slow_viewer:
            catch_up(relay)
        delays.append(delay(relay, created, exchange))
        stopped = ended(relay, created["status_url"])
        assert (stopped["state"], stopped["ending"]["reason"]) == ("cancelled", "requested")
    assert min(delays) < PROMPT, delays


@pytest.mark.parametrize("path", ["/chat/stream", "/stream", "/openai/stream"])
def test_a_run_of_a_stream_is_stopped_where_the_stream_says_it_is(
    relay: Service, upstream: Upstream, path: str
) -> None:
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Here"), HOLD)
    with post(relay.port, path, message="Hi") as client:
        client.read_on(lambda body: b"Here" in body)
        stop(relay.port, client.head()[1]["content-location"])
        events = rest_of(client)
    assert upstream.request().wait().ended == "aborted"
    assert (events[-1].name, events[-1].data["reason"]) == ("cancelled", "requested")


def test_all_viewers_are_told_of_one_ending_and_so_is_who_comes_later(relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Here"), HOLD)
    created = create(relay.port, message="Hi")
    viewers = [get(relay.port, created["events_url"], list(WIRES.values())[number % 2]) for number in range(6)]
    for viewer in viewers:
        viewer.read_on(lambda body: b"Here" in body)
    stop(relay.port, created["status_url"])
    endings = [rest_of(viewer)[-1] for viewer in [*viewers, get(relay.port, created["events_url"])]]
    assert {(ending.name, ending.data["reason"]) for ending in endings} == {("cancelled", "requested")}
    assert len({ending.id for ending in endings}) == 1
    assert rest_of(resume(relay.port, created["events_url"], endings[0].id)) == []
    assert upstream.request().wait().ended == "aborted"


def test_stopping_is_the_same_twice_or_at_once_or_by_another(relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Here"), HOLD)
    created = create(relay.port, message="Hi")
    upstream.request().wait_for_pause()
    together, statuses = threading.Barrier(8), list[int]()

    def stop_it() -> None:
        together.wait()
        statuses.append(answer(delete(relay.port, created["status_url"])).status)

    threads = [threading.Thread(target=stop_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [204] * 8
    ending = ended(relay, created["status_url"])["ending"]
    assert ending["reason"] == "requested"
    stop(relay.port, created["status_url"])
    assert ended(relay, created["status_url"])["ending"] == ending


def test_a_run_that_was_over_stays_what_it_was(relay: Service, upstream: Upstream) -> None:
    upstream.stream(*OPENAI.opening, OPENAI.token("Hello"), *OPENAI.ending)
    created = create(relay.port, message="Hi")
    with get(relay.port, created["events_url"]) as client:
        client.until("done")
    before = ended(relay, created["status_url"])
    stop(relay.port, created["status_url"])
    after = ended(relay, created["status_url"])
    assert after["state"] == "done"
    assert {**after, "viewers": 0} == {**before, "viewers": 0}
    assert upstream.request().wait().ended == "completed"


def test_who_asks_for_a_stop_and_leaves_at_once_has_asked(relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Here"), HOLD)
    created = create(relay.port, message="Hi")
    exchange = upstream.request()
    exchange.wait_for_pause()
    delete(relay.port, created["status_url"]).hang_up(reset=True)
    assert exchange.wait().ended == "aborted"
    eventually(lambda: status_of(relay.port, created["status_url"])["state"] == "cancelled")
    assert ended(relay, created["status_url"])["ending"]["reason"] == "requested"


def test_a_refused_stop_stops_nothing(relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Here"), PAUSE, *OPENAI.ending, END)
    created = create(relay.port, message="Hi")
    with get(relay.port, created["events_url"]) as client:
        client.until("token")
        for path in (created["status_url"] + "0", f"/runs/{created['id']}?signature=x", f"/runs/{created['id']}0"):
            assert refused(delete(relay.port, path))[0] in (403, 404)
        upstream.request().release()
        assert client.until("done").data["tokens"] == 1
