"""Chromium's own WebSocket: turns with a history, a stop, pages of other sites, a socket that is lost."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page

from .client import get
from .conftest import Service, Start, eventually
from .proxy import How, Proxy
from .recorded import chat
from .upstream import END, HOLD, PAUSE, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.proxy", "tests.browser"]

STOP = [chat({}, "stop"), b"data: [DONE]\n\n", END]
OPEN = """url => new Promise((resolve) => {
  window.told = [];
  window.socket = new WebSocket(url);
  socket.addEventListener("message", ({ data }) => told.push(JSON.parse(data)));
  for (const end of ["open", "close"]) socket.addEventListener(end, () => resolve(end));
})"""
SAID = 'told.map(({ event, data }) => event === "token" ? data.token : "").join("")'


class Passage(Proxy):
    """Passes on what comes, as it comes: a socket is neither one request nor one response."""

    async def _answer(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        answers, service = await asyncio.open_connection("127.0.0.1", self._service.port)
        ways = [asyncio.ensure_future(_pass_on(*way)) for way in ((reader, service), (answers, client))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            service.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@pytest.fixture
def passage(relay: Service) -> Iterator[Passage]:
    with Passage(relay) as passage:
        yield passage


def opened(tab: Page, port: int, query: str = "model=openai") -> str:
    """Open a socket and return what comes first: "open", or "close" where it is refused."""
    found: str = tab.evaluate(OPEN, f"ws://127.0.0.1:{port}/ws/chat?{query}")
    return found


def visit(tab: Page, port: int) -> None:
    """Open a page that does nothing itself."""
    tab.goto(f"http://127.0.0.1:{port}/healthz")


def send(tab: Page, frame: str) -> None:
    tab.evaluate("frame => socket.send(frame)", frame)


def says(tab: Page, text: str) -> None:
    tab.wait_for_function(f"text => {SAID} === text", arg=text)


def ended(tab: Page, times: int = 1) -> list[str]:
    """Return the names of all events once so many turns have ended."""
    ends = 'told.filter(({ event }) => ["done", "error", "cancelled"].includes(event)).length'
    tab.wait_for_function(f"times => {ends} === times", arg=times)
    names: list[str] = tab.evaluate("told.map(({ event }) => event)")
    return names


def status(service: Service, run: str) -> Any:
    with get(service.port, f"/runs/{run}") as client:
        return json.loads(client.read())


def test_many_turns_are_one_conversation(tab: Page, relay: Service, upstream: Upstream) -> None:
    countries = {"Italy?": "Rome.", "France?": "Paris.", "Spain?": "Madrid.", "Greece?": "Athens.", "Peru?": "Lima."}
    visit(tab, relay.port)
    assert opened(tab, relay.port) == "open"
    history: list[Any] = []
    for turn, (country, capital) in enumerate(countries.items(), 1):
        upstream.stream(chat({"content": capital}), *STOP[:-1])
        send(tab, country)
        assert ended(tab, turn) == ["start", "token", "done"] * turn
        history.append({"role": "user", "content": country})
        assert upstream.request().body["messages"] == history
        history.append({"role": "assistant", "content": capital})
    says(tab, "".join(countries.values()))
    runs = tab.evaluate('told.filter(({ event }) => event === "start").map(({ data }) => data.run)')
    ids = tab.evaluate("told.map(({ id }) => id)")
    assert ids == [f"{run}-{number}" for run in runs for number in (1, 2, 3)]


def test_a_stop_ends_the_turn_and_not_the_conversation(tab: Page, relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "A long"}), HOLD)
    upstream.stream(chat({"content": " story."}), *STOP[:-1])
    visit(tab, relay.port)
    opened(tab, relay.port)
    send(tab, "Tell me a story")
    says(tab, "A long")
    send(tab, '{"type": "stop"}')
    assert ended(tab) == ["start", "token", "cancelled"]
    assert tab.evaluate("told.at(-1).data.reason") == "requested"
    assert upstream.request().wait().ended == "aborted"
    send(tab, "Go on")
    assert ended(tab, 2) == ["start", "token", "cancelled", "start", "token", "done"]
    asked = [message["content"] for message in upstream.request().body["messages"]]
    assert asked == ["Tell me a story", "A long", "Go on"]


def test_a_page_that_goes_away_ends_its_turn(tab: Page, relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "A long"}), HOLD)
    visit(tab, relay.port)
    opened(tab, relay.port)
    send(tab, "Tell me a story")
    says(tab, "A long")
    tab.goto("about:blank")
    assert upstream.request().wait().ended == "aborted"


def test_a_page_of_another_origin_cannot_open_one(tab: Page, service: Service, relay: Service) -> None:
    visit(tab, service.port)
    assert opened(tab, relay.port) == "close"
    assert opened(tab, service.port) == "open"


def test_a_page_of_an_origin_that_is_allowed_can(tab: Page, service: Service, start_service: Start) -> None:
    allowing = start_service(SIDESTREAM_ALLOWED_ORIGINS=f"http://127.0.0.1:{service.port}")
    visit(tab, service.port)
    assert opened(tab, allowing.port, "model=scripted/echo") == "open"
    send(tab, "hello")
    says(tab, "hello")


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_socket_that_is_lost_is_come_back_to(
    tab: Page, relay: Service, passage: Passage, upstream: Upstream, how: How
) -> None:
    one, two, three = (chat({"content": word}) for word in ("One", " two", " three"))
    upstream.play(Head(), one, PAUSE, two, PAUSE, three, *STOP)
    visit(tab, passage.port)
    opened(tab, passage.port, "model=openai&linger=10")
    send(tab, "Count")
    says(tab, "One")
    exchange = upstream.request()
    passage.cut(how)
    tab.wait_for_function("socket.readyState === WebSocket.CLOSED")
    exchange.release()
    tab.evaluate("window.before = told")
    run, seen = tab.evaluate("[before[0].data.run, before.at(-1).id]")
    eventually(lambda: status(relay, run)["text"] == "One two")
    assert opened(tab, passage.port, f"model=openai&linger=10&resume={seen}") == "open"
    says(tab, " two")
    exchange.release()
    assert ended(tab) == ["token", "token", "done"]
    assert tab.evaluate("[...before, ...told].map(({ id }) => id)") == [f"{run}-{n}" for n in (1, 2, 3, 4, 5)]
    says(tab, " two three")
    assert exchange.wait().ended == "completed"
    upstream.stream(chat({"content": "Hi."}), *STOP[:-1])
    send(tab, "Hi")
    assert ended(tab, 2) == ["token", "token", "done", "start", "token", "done"]
    upstream.request()


def test_an_event_that_leads_nowhere_refuses_the_socket(tab: Page, service: Service) -> None:
    visit(tab, service.port)
    assert opened(tab, service.port, f"resume={'0' * 32}-1") == "close"
    assert opened(tab, service.port, "resume=no-id") == "close"
