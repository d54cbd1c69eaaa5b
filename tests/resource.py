"""Runs as their clients see them: created, followed over either wire, cut off and resumed, looked at, stopped."""

import json
import re
from typing import Any, NamedTuple

from .client import Client, Event, delete, get, post
from .conftest import Service, eventually
from .recorded import TERMINAL

NDJSON = {"Accept": "application/x-ndjson"}
WIRES: dict[str, dict[str, str]] = {"SSE": {}, "NDJSON": NDJSON}
# How a client says what it has seen: an EventSource by its header, others by either parameter.
WAYS = ("Last-Event-ID", "last_event_id", "lastEventId")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def answer(client: Client) -> Answer:
    """Return a whole answer and hang up."""
    with client:
        body = b"" if client.head()[0] == 204 else client.read()
        return Answer(*client.head(), body)


def refused(client: Client) -> tuple[int, str, str, str | None]:
    """Return the status, code, detail and field of a problem document."""
    status, headers, body = answer(client)
    assert (headers["content-type"], headers["cache-control"]) == ("application/problem+json", "no-store")
    told = json.loads(body)
    assert told["status"] == status
    return status, told["code"], told["detail"], told.get("field")


def create(port: int, headers: dict[str, str] | None = None, **body: object) -> dict[str, Any]:
    """Start a run by POST /runs and return what it says of it."""
    status, _, text = answer(post(port, "/runs", headers, **body))
    assert status == 201, text
    created: dict[str, Any] = json.loads(text)
    return created


def status_of(port: int, path: str) -> dict[str, Any]:
    """Return how a run stands, by its status URL or its plain path."""
    status, headers, text = answer(get(port, path))
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "application/json", "no-store"), text
    told: dict[str, Any] = json.loads(text)
    return told


def ended(service: Service, path: str) -> dict[str, Any]:
    """Return how a run stands that is over. Another replica than the one that made it may hear of it a moment later."""

    def look() -> dict[str, Any] | None:
        told = status_of(service.port, path)
        assert told["ending"] or len(service.ports) > 1, told
        return told if told["ending"] else None

    return eventually(look) or {}


def stop(port: int, path: str) -> None:
    """Stop a run; return when the service says that it has."""
    status, headers, _ = answer(delete(port, path))
    assert (status, headers.keys() & {"content-type", "content-length", "transfer-encoding"}) == (204, set())


def resume(port: int, url: str, seen: str, *, way: str = WAYS[0], headers: dict[str, str] | None = None) -> Client:
    """Follow a run from behind the event `seen`, said one way or another; from its beginning where it is empty."""
    headers = dict(headers or {})
    if seen and way == "Last-Event-ID":
        headers[way] = seen
    elif seen:
        url += f"{'&' if '?' in url else '?'}{way}={seen}"
    return Client(port, "GET", url, headers=headers)


def dispatched(body: bytes) -> list[Event]:
    """Return what an EventSource dispatches of a stream that ends here, however (WHATWG HTML, 9.2.6)."""
    events: list[Event] = []
    name, last, data = "", "", list[str]()
    for line in re.split(r"\r\n|\r|\n", body.decode(errors="replace").removeprefix("\ufeff"))[:-1]:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "id" and "\0" not in value:
            last = value
        elif not line:
            if data:
                events.append(Event(name or "message", last, json.loads("\n".join(data))))
            name, data = "", []
    return events


def lines(body: bytes) -> list[Event]:
    """Return the whole lines of NDJSON that ends here, however."""
    whole = [json.loads(line) for line in body.split(b"\n")[:-1] if line]
    return [Event(line["event"], line["id"], line["data"]) for line in whole]


def events_in(client: Client) -> list[Event]:
    """Return the events that have come as yet, by either wire."""
    if b"\r\n\r\n" not in client.raw:
        return []
    parse = lines if "ndjson" in client.head()[1]["content-type"] else dispatched
    return parse(client.body)


def rest_of(client: Client) -> list[Event]:
    """Read to the end and return the events; none where there is nothing more to come (204)."""
    with client:
        if client.head()[0] == 204:
            return []
        assert client.head()[0] == 200, client.read()
        client.read()
        return events_in(client)


def said(events: list[Event]) -> dict[str, str]:
    """Return the text and the reasoning in these events."""
    return {
        kind: "".join(event.data[kind] for event in events if event.name == kind) for kind in ("token", "reasoning")
    }


def is_one_run(events: list[Event]) -> bool:
    """Tell whether these are the events of one run from its start to its one ending, none twice, in order."""
    names = [event.name for event in events]
    assert names[0] == "start", names
    assert [name in TERMINAL for name in names] == [False] * (len(names) - 1) + [True], names
    run = events[0].data["run"]
    numbers = [int(event.id.removeprefix(f"{run}-")) for event in events]
    assert numbers == sorted(set(numbers)), numbers
    return numbers[0] == 1
