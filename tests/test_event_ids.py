"""The id a client comes back with: which run it finds, what it is told where it finds none. It never starts one."""

import json
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from .client import Client, delete, get, post
from .conftest import Service, Start, eventually
from .recorded import OPENAI
from .resource import (
    NDJSON,
    WAYS,
    WIRES,
    answer,
    create,
    is_one_run,
    lines,
    refused,
    rest_of,
    resume,
    said,
    status_of,
    stop,
)
from .upstream import END, HOLD, PAUSE, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.replicas"]
pytestmark = pytest.mark.replicated

each_way = pytest.mark.parametrize("way", WAYS)
MALFORMED = (400, "invalid_request", "That is no event id of ours.", "last_event_id")
OTHERS = (400, "invalid_request", "That event is another run's.", "last_event_id")
FUTURE = (400, "invalid_request", "The run has not come so far.", "last_event_id")
NOT_FOUND = (404, "not_found", "There is no such run, or it was over and is no longer kept.", None)
UNKNOWN = "0123456789abcdef" * 2


@pytest.fixture
def held(relay: Service, upstream: Upstream) -> Iterator[dict[str, Any]]:
    """A run with three events so far, held; nothing a test does with it may ask the upstream for more."""
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("One"), OPENAI.token(" two"), PAUSE, *OPENAI.ending, END)
    created = create(relay.port, message="Hi")
    eventually(lambda: status_of(relay.port, created["status_url"])["tokens"] == 2)
    exchange = upstream.request()
    yield created
    exchange.release()
    assert exchange.wait().ended == "completed"
    assert upstream.exchanges.empty()


def told(relay: Service, url: str, way: str, event_id: str) -> tuple[int, str, str, str | None]:
    if way == "Last-Event-ID":
        return refused(Client(relay.port, "GET", url, headers={way: event_id}))
    return refused(Client(relay.port, "GET", f"{url}{'&' if '?' in url else '?'}{way}={quote(event_id)}"))


BAD_IDS = {
    "a word": "x",
    "a dash": "-",
    "a run": "{run}",
    "no number": "{run}-",
    "no run": "-1",
    "a negative number": "{run}--1",
    "a sum": "{run}-+1",
    "a fraction": "{run}-1.0",
    "a power": "{run}-1e0",
    "another base": "{run}-0x1",
    "a leading zero": "{run}-01",
    "grouped digits": "{run}-1_0",
    "a list": "{run}-1,{run}-2",
    "a space within": "{run} -1",
    "a digit lacking": "{cut}-1",
    "a digit more": "{run}0-1",
    "upper case": "{upper}-1",
    "no hexadecimal": "{run}g-1",
    "dashes as a UUID has them": "01234567-89ab-cdef-0123-456789abcdef-1",
    "a number past all bounds": "{run}-" + "9" * 16,
    "a number past all reason": "{run}-" + "9" * 20_000,
    "digits of another script": "{run}-\u0661",
    "wide digits": "{run}-\uff11",
    "a raised digit": "{run}-\u00b2",
    "a letter that is no ASCII": "{run}-1\u00e9",
}
NO_HEADERS = {  # a header cannot hold these, or is stripped of them
    "a NUL": "{run}-1\0",
    "a line end": "{run}-1\n",
    "a space before": " {run}-1",
    "a space behind": "{run}-1 ",
    "half a character": "{run}-1\ufffd",
}
ALL_BAD = [(name, way) for name in BAD_IDS for way in WAYS] + [(name, way) for name in NO_HEADERS for way in WAYS[1:]]


@pytest.mark.one_process("it is refused before anything is looked up")
@pytest.mark.parametrize(("name", "way"), ALL_BAD, ids=[f"{name}-{way}" for name, way in ALL_BAD])
def test_what_is_no_id_is_refused(relay: Service, held: dict[str, Any], name: str, way: str) -> None:
    run = held["id"]
    event_id = {**BAD_IDS, **NO_HEADERS}[name].format(run=run, cut=run[1:], upper=run[:-1].upper() + "F")
    for url in (held["events_url"], f"/runs/{run}/events", "/chat/stream?message=Hi", "/stream?message=Hi"):
        assert told(relay, url, way, event_id) == MALFORMED


@pytest.mark.one_process("what a mirror does not have yet is waited for")
@each_way
def test_an_id_that_leads_nowhere_is_told_why(relay: Service, held: dict[str, Any], way: str) -> None:
    other = create(relay.port, message="Hi", model="scripted/echo")["id"]
    run, url, stream = held["id"], held["events_url"], "/chat/stream?message=Hi"
    for event_id, here, there in [
        (f"{run}-4", FUTURE, FUTURE),
        (f"{run}-{10**15 - 1}", FUTURE, FUTURE),
        (f"{other}-1", OTHERS, None),
        (f"{UNKNOWN}-1", OTHERS, NOT_FOUND),
        (f"{UNKNOWN}-0", OTHERS, NOT_FOUND),
    ]:
        assert told(relay, url, way, event_id) == here
        assert there is None or told(relay, stream, way, event_id) == there
    assert told(relay, f"/runs/{UNKNOWN}/events", way, f"{UNKNOWN}-1") == NOT_FOUND


def test_an_empty_id_is_none(relay: Service, held: dict[str, Any]) -> None:
    """An EventSource that has seen no id has an empty one."""
    for way in WAYS:
        headers, query = ({way: ""}, "") if way == WAYS[0] else ({}, f"&{way}=")
        with get(relay.port, held["events_url"] + query, headers) as client:
            assert client.until("start").id == f"{held['id']}-1"
    with get(relay.port, held["events_url"] + f"&last_event_id=&lastEventId={held['id']}-2", {WAYS[0]: ""}) as client:
        assert client.next() == ("token", f"{held['id']}-3", {"token": " two"})


@pytest.mark.parametrize("older", ["{run}-1", "x", f"{UNKNOWN}-1", "{run}-999", ""])
def test_the_header_is_newer_than_the_url(relay: Service, held: dict[str, Any], older: str) -> None:
    """A page's URL holds the id it was made with for ever, an EventSource's header holds the last."""
    older = older.format(run=held["id"])
    for url in (held["events_url"], "/chat/stream?message=Hi"):
        for name in WAYS[1:]:
            with resume(relay.port, f"{url}&{name}={older}", f"{held['id']}-2") as client:
                assert client.next() == ("token", f"{held['id']}-3", {"token": " two"})
            assert told(relay, f"{url}&{name}={held['id']}-1", WAYS[0], "x") == MALFORMED
    with get(relay.port, f"{held['events_url']}&lastEventId=x&last_event_id={held['id']}-2") as client:
        assert client.next() == ("token", f"{held['id']}-3", {"token": " two"})


@each_way
@pytest.mark.parametrize("path", ["/chat/stream", "/chat/stream-meta", "/stream", "/openai/stream", "/scripted/stream"])
def test_every_streaming_endpoint_goes_on_by_an_id(relay: Service, held: dict[str, Any], path: str, way: str) -> None:
    """Whatever else the request says, its body included."""
    headers, query = ({way: f"{held['id']}-2"}, "") if way == WAYS[0] else ({}, f"&{way}={held['id']}-2")
    target = f"{path}?message=Hi&model=scripted/echo{query}"
    for method, body in [("GET", b""), ("POST", b'{"message": "Hi"}'), ("POST", b"no JSON")]:
        for wire in WIRES.values():
            with Client(relay.port, method, target, headers={**headers, **wire}, body=body) as client:
                if wire or path == "/stream":
                    assert client.line() == {"event": "token", "id": f"{held['id']}-3", "data": {"token": " two"}}
                else:
                    assert client.next() == ("token", f"{held['id']}-3", {"token": " two"})
                assert client.head()[1]["content-location"] == f"/runs/{held['id']}"


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
def test_a_run_that_is_over_tells_the_rest_and_then_that_there_is_none(
    relay: Service, upstream: Upstream, wire: dict[str, str]
) -> None:
    upstream.stream(*OPENAI.opening, OPENAI.token("One"), OPENAI.token(" two"), *OPENAI.ending)
    created = create(relay.port, message="Hi")
    whole = rest_of(get(relay.port, created["events_url"], wire))
    for url in (created["events_url"], f"/runs/{created['id']}/events", "/chat/stream?message=Hi"):
        for way in WAYS:
            rest = rest_of(resume(relay.port, url, f"{created['id']}-2", way=way, headers=wire))
            assert [(event.name, event.id) for event in rest] == [
                ("token", f"{created['id']}-3"),
                ("done", f"{created['id']}-4"),
            ]
            assert said(rest)["token"] == " two"
            assert rest[-1] == whole[-1]
            for _ in range(2):
                status, headers, body = answer(resume(relay.port, url, rest[-1].id, way=way, headers=wire))
                assert (status, body, headers["cache-control"]) == (204, b"", "no-store")
                assert headers.keys().isdisjoint({"content-type", "content-length", "transfer-encoding"})
            assert told(relay, url, way, f"{created['id']}-5") == FUTURE
    upstream.request()
    assert upstream.exchanges.empty()


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
def test_a_run_cut_off_by_a_fault_tells_it_to_who_comes_back(service: Service, wire: dict[str, str]) -> None:
    created = create(service.port, message="Hi", model="scripted/late-error")
    whole = rest_of(get(service.port, created["events_url"], wire))
    assert is_one_run(whole)
    (ending,) = rest_of(resume(service.port, created["events_url"], whole[-2].id, headers=wire))
    assert ending == whole[-1]
    assert ending.data["code"] == "upstream_rate_limited"
    assert rest_of(resume(service.port, created["events_url"], ending.id)) == []


SLOW_TO_LEAVE = """
import asyncio
import os
from pathlib import Path
from streaming.events import Token

class Slow:
    def __init__(self, settings, upstream):
        self.folder = Path(settings.options["folder"])

    async def stream(self, request, emit):
        try:
            emit([Token("Here")])
            await asyncio.Event().wait()
        finally:
            gate, opened = os.open(self.folder / "gate", os.O_RDONLY | os.O_NONBLOCK), asyncio.Event()
            asyncio.get_running_loop().add_reader(gate, opened.set)
            (self.folder / "leaving").touch()
            await opened.wait()
            asyncio.get_running_loop().remove_reader(gate)
            os.close(gate)
"""


def test_who_comes_back_while_a_run_is_being_stopped_gets_its_ending(start_service: Start, tmp_path: Path) -> None:
    """Between the moment it is told to end and the moment its upstream is closed."""
    (tmp_path / "slow_to_leave.py").write_text(SLOW_TO_LEAVE)
    os.mkfifo(tmp_path / "gate")
    table = {"slow": {"use": "slow_to_leave:Slow", "models": ["x"], "options": {"folder": str(tmp_path)}}}
    service = start_service(PYTHONPATH=str(tmp_path), SIDESTREAM_PROVIDERS=json.dumps(table))
    created = create(service.port, message="Hi", model="slow/x")
    with get(service.port, created["events_url"]) as viewer:
        last = viewer.until("token").id
        stopping = [delete(service.port, created["status_url"]) for _ in range(2)]
        eventually((tmp_path / "leaving").exists)
        assert status_of(service.port, created["status_url"])["state"] == "running"
        back = [resume(service.port, created["events_url"], last, headers=wire) for wire in WIRES.values()]
        assert {client.head()[0] for client in back} == {200}
        assert select.select([client.socket for client in stopping], [], [], 0)[0] == [], "not before it is closed"
        (tmp_path / "gate").write_text("open")
        for client in [*back, viewer]:
            ending = rest_of(client)[-1]
            assert (ending.name, ending.data["reason"]) == ("cancelled", "requested")
        assert [answer(client).status for client in stopping] == [204, 204]
    assert status_of(service.port, created["status_url"])["state"] == "cancelled"
    assert rest_of(resume(service.port, created["events_url"], ending.id)) == []
    stop(service.port, created["status_url"])


def test_an_id_of_a_post_is_found_by_a_get_and_the_other_way_round(relay: Service, upstream: Upstream) -> None:
    for ask, other in [(get, post), (post, get)]:
        upstream.play(Head(), *OPENAI.opening, OPENAI.token("One"), OPENAI.token(" two"), HOLD)
        with ask(relay.port, message="Hi") as first:
            first.read_on(lambda body: b"two" in body)
            last = f"{first.head()[1]['content-location'].removeprefix('/runs/')}-2"
            with other(relay.port, "/stream", {"Last-Event-ID": last, **NDJSON}, message="Ho") as second:
                second.read_on(lambda body: b"\n" in body)
                assert said(lines(second.body))["token"] == " two"
        assert upstream.request().wait().ended == "aborted"
    assert upstream.exchanges.empty()
