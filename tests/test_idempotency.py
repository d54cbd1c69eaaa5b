"""An Idempotency-Key: however often and from wherever a request comes, it is one run and one upstream request."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from .client import Client, get, post, text
from .conftest import Service, Start, eventually
from .recorded import OPENAI
from .resource import answer, create, dispatched, is_one_run, refused, rest_of, said, status_of, stop
from .upstream import END, HOLD, PAUSE, Head, Step, Upstream

pytest_plugins = ["tests.upstream", "tests.replicas"]
pytestmark = pytest.mark.replicated

Value = TypeVar("Value")
CONFLICT = (
    409,
    "conflict",
    "This Idempotency-Key stands for another request: its run was asked for with another body.",
    "Idempotency-Key",
)
MALFORMED = (400, "invalid_request", "An Idempotency-Key is 1 to 255 printable ASCII characters.", "Idempotency-Key")
CROWD = 24
held: list[Step] = [Head(), *OPENAI.opening, OPENAI.token("One"), PAUSE, OPENAI.token(" two"), *OPENAI.ending, END]


@pytest.fixture
def key(request: pytest.FixtureRequest) -> dict[str, str]:
    """A key of the test's own, for the service is shared."""
    return {"Idempotency-Key": request.node.name}


def at_once(act: Callable[[int], Value]) -> list[Value]:
    """Do it from many threads at the same moment."""
    together, results = threading.Barrier(CROWD), list[Value]()

    def do(number: int) -> None:
        together.wait()
        results.append(act(number))

    threads = [threading.Thread(target=do, args=(number,)) for number in range(CROWD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == CROWD
    return results


def test_many_posts_at_once_are_one_run_and_all_get_all_of_it(
    relay: Service, upstream: Upstream, key: dict[str, str]
) -> None:
    upstream.play(*held)
    clients = at_once(lambda number: post(relay.port, headers=key, message="Hi"))
    for client in clients:
        client.read_on(lambda body: b"One" in body)
    upstream.request().release()
    told = [rest_of(client) for client in clients]
    assert all(is_one_run(events) for events in told)
    assert {said(events)["token"] for events in told} == {"One two"}
    assert len({events[0].data["run"] for events in told}) == 1
    assert upstream.exchanges.empty()


def test_many_created_at_once_are_one_run(relay: Service, upstream: Upstream, key: dict[str, str]) -> None:
    upstream.play(*held)
    created = at_once(lambda number: create(relay.port, key, message="Hi"))
    assert [one for one in created if one != created[0]] == []
    upstream.request().release()
    assert said(rest_of(get(relay.port, created[0]["events_url"])))["token"] == "One two"
    assert upstream.exchanges.empty()


def test_many_of_each_endpoint_at_once_are_one_run(relay: Service, upstream: Upstream, key: dict[str, str]) -> None:
    upstream.play(*held)
    paths = ["/runs", "/chat/stream", "/chat/stream-meta", "/openai/stream"]
    clients = at_once(lambda number: post(relay.port, paths[number % 4], key, message="Hi", linger=20))
    places = [
        headers.get("location") or headers.get("content-location")
        for headers in (client.head()[1] for client in clients)
    ]
    assert len(set(places)) == 1
    upstream.request().release()
    for client in clients:
        assert client.head()[0] == 201 or said(rest_of(client))["token"] == "One two"
        client.hang_up()
    assert upstream.exchanges.empty()


def test_what_was_asked_before_is_told_again_while_it_is_kept(
    relay: Service, upstream: Upstream, key: dict[str, str]
) -> None:
    upstream.stream(*OPENAI.opening, OPENAI.token("Hello"), *OPENAI.ending)
    first = rest_of(post(relay.port, headers=key, message="Hi"))
    assert first[-1].name == "done"
    assert rest_of(post(relay.port, headers=key, message="Hi")) == first
    created = create(relay.port, key, message="Hi")
    assert created["id"] == first[0].data["run"]
    assert status_of(relay.port, created["status_url"])["text"] == "Hello"
    upstream.request()
    assert upstream.exchanges.empty()


def test_a_key_is_free_again_when_its_run_is_dropped(start_service: Start, key: dict[str, str]) -> None:
    service = start_service(SIDESTREAM_KEEP_BYTES="0")
    runs = []
    for message in ("Hi", "Hi", "Ho"):
        with post(service.port, headers=key, message=message, model="scripted/echo") as client:
            events = list(client)
        assert text(events) == message
        runs.append(events[0].data["run"])
    assert len(set(runs)) == 3


def test_a_key_is_free_again_when_its_time_is_over(start_service: Start, key: dict[str, str]) -> None:
    service = start_service(SIDESTREAM_KEEP="0.3")
    asked = {"message": "Hi", "model": "scripted/echo"}
    first = rest_of(post(service.port, headers=key, **asked))[0]
    eventually(lambda: rest_of(post(service.port, headers=key, **asked))[0] != first)


def test_another_request_under_the_same_key_is_a_conflict(
    relay: Service, upstream: Upstream, key: dict[str, str]
) -> None:
    upstream.play(*held)
    with post(relay.port, headers=key, message="Hi") as client:
        client.read_on(lambda body: b"One" in body)
        others: list[tuple[str, dict[str, Any]]] = [
            ("/chat/stream", {"message": "Ho"}),
            ("/chat/stream", {"message": "Hi", "seed": 1}),
            ("/chat/stream", {"message": "Hi", "model": "anthropic"}),
            ("/anthropic/stream", {"message": "Hi"}),
            ("/scripted/stream", {"message": "Hi"}),
            ("/runs", {"message": "Hi", "linger": 5}),
            ("/stream", {"message": "Ho"}),
        ]
        for path, body in others:
            assert refused(post(relay.port, path, key, **body)) == CONFLICT, (path, body)
        upstream.request().release()
        assert [event.name for event in rest_of(client)] == ["start", "token", "token", "done"]
    assert refused(post(relay.port, headers=key, message="Ho")) == CONFLICT, "after its end as well"
    assert upstream.exchanges.empty()


def test_keys_are_told_apart_by_case_and_by_every_character(service: Service) -> None:
    keys = ["a", "A", "aa", "a a", "a-" + "x" * 253, "a-" + "x" * 252 + "y", '"a"', "~!@#$%^&*()_+{}|:<>?"]
    asked = {"message": "Hi", "model": "scripted/echo"}
    runs = [create(service.port, {"Idempotency-Key": key}, **asked)["id"] for key in keys]
    assert len(set(runs)) == len(keys)
    assert [create(service.port, {"Idempotency-Key": key}, **asked)["id"] for key in keys] == runs


@pytest.mark.one_process("it is refused before anything is looked up")
@pytest.mark.parametrize(
    "key", ["", " ", "\t", "a\tb", "é", "\u2028", "x" * 256, "x" * 5000], ids=lambda key: repr(key)[:9]
)
@pytest.mark.parametrize("path", ["/runs", "/chat/stream", "/stream", "/openai/stream"])
def test_what_is_no_key_is_refused(relay: Service, upstream: Upstream, path: str, key: str) -> None:
    assert refused(post(relay.port, path, {"Idempotency-Key": key}, message="Hi")) == MALFORMED
    assert upstream.exchanges.empty()


@pytest.mark.parametrize("path", ["/runs", "/chat/stream"])
def test_a_refused_request_reserves_no_key(relay: Service, upstream: Upstream, key: dict[str, str], path: str) -> None:
    json_type = {"Content-Type": "application/json", **key}
    bad: list[dict[str, Any]] = [
        {},
        {"message": ""},
        {"message": "Hi", "model": "nobody/x"},
        {"message": "Hi", "linger": 301},
    ]
    for body in bad:
        assert refused(post(relay.port, path, key, **body))[0] in (400, 404)
    for refusal in (
        Client(relay.port, "POST", path, headers=json_type, body=b"{"),
        Client(relay.port, "POST", path, headers={**key, "Content-Type": "text/plain"}, body=b"{}"),
        post(relay.port, path, {**key, "Sec-Fetch-Site": "cross-site"}, message="Hi"),
        post(relay.port, path, {**key, "Last-Event-ID": "x"}, message="Hi"),
    ):
        assert refused(refusal)[0] in (400, 403, 415)
    with Client(relay.port, "POST", path, headers={**json_type, "Content-Length": "100"}) as client:
        client.send(b'{"message": "Hi"')  # and it leaves in mid-body
    upstream.stream(*OPENAI.opening, OPENAI.token("Hello"), *OPENAI.ending)
    created = create(relay.port, key, message="Hi, at last")
    assert said(rest_of(get(relay.port, created["events_url"])))["token"] == "Hello"
    upstream.request()
    assert upstream.exchanges.empty()


def test_the_first_to_ask_may_leave_while_a_second_follows(
    relay: Service, upstream: Upstream, key: dict[str, str]
) -> None:
    upstream.play(*held)
    with post(relay.port, headers=key, message="Hi") as first:
        first.read_on(lambda body: b"One" in body)
        second = post(relay.port, headers=key, message="Hi")
        second.read_on(lambda body: b"One" in body)
        place = second.head()[1]["content-location"]
        eventually(lambda: status_of(relay.port, place)["viewers"] == 2)  # where it is made, whoever follows where
    eventually(lambda: status_of(relay.port, place)["viewers"] == 1)
    exchange = upstream.request()
    assert not exchange.ended
    exchange.release()
    assert said(rest_of(second))["token"] == "One two"
    assert exchange.wait().ended == "completed"
    assert upstream.exchanges.empty()


@pytest.mark.one_process("that it is to linger its maker hears a moment later")
def test_the_run_lingers_as_the_most_patient_of_them_asked(
    relay: Service, upstream: Upstream, key: dict[str, str]
) -> None:
    """Who created a run to be followed later finds it, though a stream that does not linger was the first to ask."""
    upstream.play(*held)
    with post(relay.port, headers=key, message="Hi") as stream:
        stream.read_on(lambda body: b"One" in body)
        created = create(relay.port, key, message="Hi")
    eventually(lambda: status_of(relay.port, created["status_url"])["viewers"] == 0)
    upstream.request().release()
    assert said(rest_of(get(relay.port, created["events_url"])))["token"] == "One two"
    assert upstream.exchanges.empty()


def test_who_asks_again_with_an_event_id_goes_on_from_there(
    relay: Service, upstream: Upstream, key: dict[str, str]
) -> None:
    """What a client does whose POST was cut off: the id says which run, and the key is not asked."""
    upstream.play(*held)
    with post(relay.port, headers=key, message="Hi", linger=20) as first:
        last = dispatched(first.read_on(lambda body: b"One" in body))[-1].id
    upstream.request().release()
    rest = rest_of(post(relay.port, headers={**key, "Last-Event-ID": last}, message="Hi", linger=20))
    assert said(rest)["token"] == " two"
    assert upstream.exchanges.empty()


def test_a_run_that_was_stopped_is_not_asked_for_anew_by_its_key(
    relay: Service, upstream: Upstream, key: dict[str, str]
) -> None:
    upstream.play(HOLD)
    created = create(relay.port, key, message="Hi")
    upstream.request().wait_for_pause()
    stop(relay.port, created["status_url"])
    assert create(relay.port, key, message="Hi") == created
    assert rest_of(post(relay.port, headers=key, message="Hi"))[-1].data["reason"] == "requested"
    assert upstream.exchanges.empty()


def test_a_key_on_a_get_says_nothing(service: Service, key: dict[str, str]) -> None:
    """A GET may be repeated as it is; it has no body to compare."""
    runs = set()
    for headers in (key, key, {"Idempotency-Key": "é"}):
        status, told, _ = answer(get(service.port, headers=headers, message="Hi", model="scripted/echo"))
        assert status == 200
        runs.add(told["content-location"])
    assert len(runs) == 3
