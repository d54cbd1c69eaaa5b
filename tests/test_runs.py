"""A run as a resource, over real sockets: created by one request, followed, looked at and stopped by others."""

import json
import time
from typing import Any

import pytest

from .client import Client, delete, get, post
from .conftest import Service, Start, eventually
from .recorded import DIALECTS, OPENAI, Dialect, told
from .resource import (
    NDJSON,
    WIRES,
    answer,
    create,
    dispatched,
    ended,
    events_in,
    is_one_run,
    refused,
    rest_of,
    said,
    status_of,
    stop,
)
from .test_bad_input import BODIES
from .upstream import END, HOLD, PAUSE, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.replicas"]
pytestmark = pytest.mark.replicated

each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=[dialect.provider for dialect in DIALECTS])
UNKNOWN = "0123456789abcdef" * 2
ENDED = {"done": "echo", "error": "late-error", "cancelled": "stall"}


@each_dialect
def test_a_created_run_is_told_of_and_followed_over_either_wire(
    relay: Service, upstream: Upstream, dialect: Dialect
) -> None:
    upstream.stream(*dialect.opening, dialect.token("Hel"), dialect.token("lo"), *dialect.ending)
    before = int(time.time())
    status, headers, body = answer(post(relay.port, "/runs", message="Hi", model=dialect.provider))
    created = json.loads(body)
    assert (status, headers["content-type"], headers["cache-control"]) == (201, "application/json", "no-store")
    assert headers["location"] == f"/runs/{created['id']}"
    assert created.keys() == {"id", "events_url", "status_url", "expires"}
    assert created["events_url"].startswith(f"/runs/{created['id']}/events?expires={created['expires']}&signature=")
    assert created["status_url"].startswith(f"/runs/{created['id']}?expires={created['expires']}&signature=")
    assert before <= created["expires"] - 60 - 600 - 60 <= time.time() + 2, "queue_timeout, run_timeout and keep"
    with get(relay.port, created["events_url"]) as client:
        assert told(client)[-2:] == [("token", {"token": "Hello"}), ("done", dialect.done(2))]
    for url in (created["events_url"], f"/runs/{created['id']}/events"):
        for headers in WIRES.values():
            with get(relay.port, url, headers) as client:
                client.read()
                events = events_in(client)
            assert is_one_run(events)
            assert events[0].data["run"] == created["id"]
            assert said(events)["token"] == "Hello"
    upstream.request()
    assert upstream.exchanges.empty()


@pytest.mark.one_process("viewers are counted where they are")
def test_a_run_says_how_it_stands_while_it_goes_on_and_once_it_is_done(relay: Service, upstream: Upstream) -> None:
    words = [OPENAI.token(word) for word in ("Hé, ", "you")]
    upstream.play(Head(), *OPENAI.opening, *words, PAUSE, OPENAI.token("!\u2028"), *OPENAI.ending, END)
    created = create(relay.port, message="Hi there", model="openai/gpt-4o-mini")
    with get(relay.port, created["events_url"]) as client:
        client.read_on(lambda body: said(dispatched(body))["token"] == "Hé, you")
        now = status_of(relay.port, created["status_url"])
        times = now.pop("ttft_ms"), now.pop("latency_ms")
        assert 0 <= times[0] <= times[1] < 20_000
        assert abs(now.pop("created") - time.time()) < 20
        assert now == {
            "id": created["id"],
            "state": "running",
            "position": 0,
            "provider": "openai",
            "model": "gpt-4o-mini",
            "text": "Hé, you",
            "last_event_id": f"{created['id']}-3",
            "tokens": 2,
            "usage": {"input_tokens": 2, "output_tokens": 2, "estimated": True},
            "viewers": 1,
            "retries": 0,
            "failovers": 0,
            "resets": 0,
            "ending": None,
        }
        upstream.request().release()
        events = rest_of(client)
    eventually(lambda: status_of(relay.port, created["status_url"])["viewers"] == 0)
    then = status_of(relay.port, created["status_url"])
    assert (then["state"], then["text"], then["tokens"], then["usage"]) == ("done", "Hé, you!\u2028", 3, OPENAI.usage)
    assert then["ending"] == events[-1].data
    assert then["last_event_id"] == events[-1].id
    assert (then["ttft_ms"], then["latency_ms"]) == (times[0], events[-1].data["latency_ms"])


def test_a_run_nobody_has_answered_yet_says_so(relay: Service, upstream: Upstream) -> None:
    upstream.play(HOLD)
    created = create(relay.port, message="Hi")
    now = status_of(relay.port, created["status_url"])
    assert (now["state"], now["text"], now["tokens"], now["ttft_ms"], now["viewers"]) == ("running", "", 0, None, 0)
    assert now["last_event_id"] == f"{created['id']}-1"
    stop(relay.port, created["status_url"])
    assert upstream.request().wait().ended == "aborted"


@pytest.mark.parametrize("ending", ENDED)
def test_a_run_that_is_over_says_how_it_ended(service: Service, ending: str) -> None:
    created = create(service.port, message="Hi", model=f"scripted/{ENDED[ending]}")
    with get(service.port, created["events_url"]) as client:
        client.until("token")
        if ending == "cancelled":
            stop(service.port, created["status_url"])
        last = client.until(ending)
        whole = dispatched(client.read())
    now = ended(service, created["status_url"])
    assert (now["state"], now["ending"], now["last_event_id"]) == (ending, last.data, last.id)
    assert (now["text"], now["usage"]) == (said(whole)["token"], last.data["usage"])


@pytest.mark.parametrize("path", ["/chat/stream", "/chat/stream-meta", "/stream", "/scripted/stream"])
@pytest.mark.parametrize("ask", [get, post], ids=["GET", "POST"])
@pytest.mark.parametrize("ending", ENDED)
def test_a_stream_says_where_its_run_is(service: Service, path: str, ask: Any, ending: str) -> None:
    with ask(service.port, path, message="Hi", model=f"scripted/{ENDED[ending]}") as client:
        client.read_on(lambda body: b"start" in body)
        place = client.head()[1]["content-location"]
        client.read_on(lambda body: b'"token":' in body)
        if ending == "cancelled":
            stop(service.port, place)
        client.read()
        events = events_in(client)
    assert place == f"/runs/{events[0].data['run']}"
    assert ended(service, place)["ending"] == events[-1].data
    assert events[-1].name == ending
    with get(service.port, f"{place}/events", NDJSON) as client:
        assert said(rest_of(client)) == said(events)
        assert client.head()[1]["content-location"] == place


@pytest.mark.one_process("it is refused before anything is looked up")
@pytest.mark.parametrize("sent", [sent for sent, _ in BODIES.values()], ids=BODIES)
def test_a_bad_body_is_told_what_a_stream_would_be(service: Service, sent: bytes) -> None:
    json_type = {"Content-Type": "application/json"}
    here, there = (
        refused(Client(service.port, "POST", path, headers=json_type, body=sent)) for path in ("/runs", "/chat/stream")
    )
    assert here == there


def test_a_body_of_another_type_or_too_large_is_refused(start_service: Start) -> None:
    small = start_service(SIDESTREAM_MAX_BODY_BYTES="100")
    body = b'{"message": "Hi"}'
    status, code, *_ = refused(Client(small.port, "POST", "/runs", headers={"Content-Type": "text/plain"}, body=body))
    assert (status, code) == (415, "unsupported_media_type")
    status, code, *_ = refused(post(small.port, "/runs", message="x" * 100))
    assert (status, code) == (413, "too_large")


METHODS = {"/runs": {"POST"}, "/runs/{id}": {"GET", "HEAD", "DELETE"}, "/runs/{id}/events": {"GET", "HEAD"}}
EVERY = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


@pytest.mark.one_process("it is refused before anything is looked up")
@pytest.mark.parametrize(
    ("method", "path"), [(method, path) for path, allowed in METHODS.items() for method in sorted(EVERY - allowed)]
)
def test_another_method_is_told_which_to_use(service: Service, method: str, path: str) -> None:
    run = create(service.port, message="Hi", model="scripted/stall")["id"]
    with Client(service.port, method, path.format(id=run)) as client:
        status, headers = client.head()
        assert (status, set(headers["allow"].split(", "))) == (405, METHODS[path])
        assert method == "HEAD" or json.loads(client.read())["code"] == "method_not_allowed"
    assert status_of(service.port, f"/runs/{run}")["state"] == "running"
    stop(service.port, f"/runs/{run}")


NOT_FOUND = (404, "not_found", "There is no such run, or it was over and is no longer kept.", None)


@pytest.mark.parametrize("run", [UNKNOWN, UNKNOWN.upper(), "x", "%00", "%ff", "a%0ab", "stream", "1" * 10_000])
def test_a_run_nobody_knows_is_not_found(service: Service, run: str) -> None:
    for method, path in [("GET", f"/runs/{run}"), ("DELETE", f"/runs/{run}"), ("GET", f"/runs/{run}/events")]:
        assert refused(Client(service.port, method, path)) == NOT_FOUND


def test_a_head_tells_without_being_a_viewer(relay: Service, upstream: Upstream) -> None:
    upstream.play(HOLD)
    created = create(relay.port, message="Hi")
    upstream.request().wait_for_pause()
    for url, media_type in [
        (created["events_url"], "text/event-stream; charset=utf-8"),
        (created["status_url"], "application/json"),
    ]:
        with Client(relay.port, "HEAD", url, headers={"Connection": "close"}) as client:
            status, headers = client.head()
            assert (status, headers["content-type"], headers["cache-control"]) == (200, media_type, "no-store")
            with pytest.raises(ConnectionError):
                client.read_on(lambda body: False)
            assert client.raw.endswith(b"\r\n\r\n"), "a head and no body"
    assert status_of(relay.port, created["status_url"])["viewers"] == 0
    stop(relay.port, created["status_url"])
    assert refused_head(relay, f"/runs/{UNKNOWN}/events") == 404
    assert refused_head(relay, created["events_url"] + "0") == 403


def refused_head(service: Service, url: str) -> int:
    with Client(service.port, "HEAD", url) as client:
        return client.head()[0]


@pytest.mark.one_process("it is refused before anything is looked up")
@pytest.mark.parametrize("way", ["Last-Event-ID", "last_event_id", "lastEventId"])
def test_a_run_is_not_created_from_an_event(relay: Service, upstream: Upstream, way: str) -> None:
    text = "A request with an event id starts no run; follow one at /runs/<id>/events."
    for event_id, detail in [(f"{UNKNOWN}-1", text), ("x", "That is no event id of ours.")]:
        headers, query = ({way: event_id}, "") if way == "Last-Event-ID" else ({}, f"?{way}={event_id}")
        expected = (400, "invalid_request", detail, "last_event_id")
        assert refused(post(relay.port, f"/runs{query}", headers, message="Hi")) == expected
    assert upstream.exchanges.empty()


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {"Referer": "https://evil.example/"}],
    ids=lambda headers: next(iter(headers)),
)
def test_a_page_of_another_site_may_do_nothing_with_a_run(
    relay: Service, upstream: Upstream, headers: dict[str, str]
) -> None:
    upstream.play(HOLD)
    created = create(relay.port, message="Hi")
    for client in (
        post(relay.port, "/runs", headers, message="Hi"),
        get(relay.port, created["status_url"], headers),
        get(relay.port, created["events_url"], headers),
        get(relay.port, created["events_url"], {**headers, "Last-Event-ID": f"{created['id']}-1"}),
        delete(relay.port, created["status_url"], headers),
    ):
        status, code, *_ = refused(client)
        assert (status, code) == (403, "forbidden")
    assert status_of(relay.port, created["status_url"])["state"] == "running"
    upstream.request()
    assert upstream.exchanges.empty()
    stop(relay.port, created["status_url"])
