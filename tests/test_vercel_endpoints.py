"""The endpoints of the Vercel AI SDK's wire: what they answer with, and who may come back to which run.

The app is driven by hand, on a clock that jumps.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from streaming.events import Cancelled, Done, ToolResult

from .asgi import Exchange, ask, at_once, make_app, run_ahead, service_of, time_passes

App = Any
CHAT = "/ui/chat"
STREAM = "/ui/chat/chat-1/stream"
JSON = {"content-type": "application/json"}
MESSAGES = [{"id": "u", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}]
SLOW = {"say": "One two three", "every": 1}
KEYS = {"SIDESTREAM_API_KEYS": "ann:a-key-of-anns,bob:a-key-of-bobs"}


def body_of(*steps: dict[str, Any], **fields: Any) -> bytes:
    asked = {"id": "chat-1", "messages": MESSAGES, "trigger": "submit-message", "model": "scripted/custom"}
    return json.dumps({**asked, "provider_options": {"script": steps}, **fields}).encode()


def posted(app: App, *steps: dict[str, Any], headers: dict[str, str] | None = None, **fields: Any) -> Exchange:
    return Exchange(app, "POST", CHAT, headers={**JSON, **(headers or {})}, body=body_of(*steps, **fields))


def driven(test: Callable[[App], Awaitable[None]], **environ: str) -> None:
    async def drive() -> None:
        await test(await make_app(**environ))

    run_ahead(drive())


def deltas(body: bytes) -> list[str]:
    said = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]
    return [chunk["delta"] for chunk in said if chunk["type"] == "text-delta"]


def run_of(app: App, exchange: Exchange) -> Any:
    return at_once(service_of(app).runs.find(exchange.headers["x-workflow-run-id"], None))


def test_an_answer_says_what_it_is_and_which_run() -> None:
    async def test(app: App) -> None:
        async with posted(app, {"say": "Hello"}) as exchange:
            pass
        assert exchange.status == 200
        headers = exchange.headers
        run = headers["x-workflow-run-id"]
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert headers["content-location"] == f"/runs/{run}"
        assert f'"messageId":"{run}"'.encode() in exchange.body

    driven(test)


def test_a_stream_is_begun_at_once_and_kept_alive_by_comments() -> None:
    async def test(app: App) -> None:
        async with posted(app, {"wait": 40, "say": "Hello"}) as exchange:
            await exchange.until(b": ping")
            assert exchange.status == 200
        comments = [frame for frame in exchange.body.split(b"\n\n") if not frame.startswith(b"data: ")]
        assert {*comments} == {b": ping", b""}
        assert deltas(exchange.body) == ["Hello"]

    driven(test)


@pytest.mark.parametrize("kind", ["application/json", "text/plain;charset=UTF-8", "Text/Plain"])
def test_a_body_may_be_what_fetch_calls_it(kind: str) -> None:
    """WorkflowChatTransport names no type, so its JSON goes out as plain text."""

    async def test(app: App) -> None:
        async with posted(app, {"say": "Hello"}, headers={"content-type": kind}) as exchange:
            pass
        assert (exchange.status, deltas(exchange.body)) == (200, ["Hello"])

    driven(test)


REFUSED: dict[str, tuple[dict[str, str], bytes, int, str]] = {
    "json": (JSON, b"{", 400, "The body is not valid JSON."),
    "type": ({"content-type": "text/html"}, b"{}", 415, "Send the body as Content-Type: application/json."),
    "messages": (JSON, b"{}", 400, "Send `messages`."),
    "surrogate": (JSON, b'{"messages": [{"role": "user", "parts": [{"type": "\\ud800"}]}]}', 400, "The body is not"),
    "model": (JSON, body_of(model="scripted/none"), 404, "scripted has no 'none', but "),
    "other-page-without-a-preflight": (
        {"content-type": "text/plain", "origin": "https://evil.example"},
        body_of(),
        403,
        "Pages of other sites may not use",
    ),
    "other-page": ({**JSON, "origin": "https://evil.example"}, body_of(), 403, "Pages of other sites may not use"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_said_in_plain_words(name: str) -> None:
    headers, body, status, why = REFUSED[name]

    async def test(app: App) -> None:
        exchange = await ask(app, "POST", CHAT, headers=headers, body=body)
        assert exchange.status == status, exchange.body
        assert exchange.headers["content-type"] == "text/plain; charset=utf-8"
        assert exchange.headers["cache-control"] == "no-store"
        assert exchange.body.decode().startswith(why), exchange.body

    driven(test)


def test_a_page_of_an_allowed_origin_can_read_what_the_sdk_looks_for() -> None:
    async def test(app: App) -> None:
        async with posted(app, {"say": "Hello"}, headers={"origin": "https://app.example"}) as exchange:
            pass
        exposed = exchange.headers["access-control-expose-headers"].lower().split(", ")
        assert {"x-workflow-run-id", "x-vercel-ai-ui-message-stream", "x-workflow-stream-tail-index"} <= {*exposed}

    driven(test, SIDESTREAM_ALLOWED_ORIGINS="https://app.example")


# --- Who comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["chat", "run"])
def test_who_comes_back_gets_the_answer_from_its_beginning(by: str) -> None:
    async def test(app: App) -> None:
        async with posted(app, SLOW, linger=15) as first:
            await first.until(b" two")
            name = "chat-1" if by == "chat" else first.headers["x-workflow-run-id"]
            again = await ask(app, "GET", f"{CHAT}/{name}/stream")
        assert again.headers["x-workflow-run-id"] == first.headers["x-workflow-run-id"]
        assert again.headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert again.body == first.body
        over = await ask(app, "GET", f"{CHAT}/{name}/stream")
        assert (over.status, over.body) == (204, b"")

    driven(test)


@pytest.mark.parametrize("name", ["none", "0" * 32, "a%2Fb", ".."])
def test_of_a_chat_without_a_run_there_is_nothing_to_tell(name: str) -> None:
    async def test(app: App) -> None:
        for method in ("GET", "DELETE"):
            exchange = await ask(app, method, f"{CHAT}/{name}/stream")
            assert (exchange.status, exchange.body) == (204, b"")
        behind = await ask(app, "GET", f"{CHAT}/{name}/stream?startIndex=0")
        assert (behind.status, behind.headers["content-type"]) == (404, "text/plain; charset=utf-8")

    driven(test)


def test_a_chats_id_may_be_anything() -> None:
    async def test(app: App) -> None:
        async with posted(app, SLOW, id="a/b ü") as first:
            await first.until(b" two")
            again = await ask(app, "GET", f"{CHAT}/a%2Fb%20%C3%BC/stream")
        assert again.body == first.body

    driven(test)


def test_a_chat_is_its_newest_run() -> None:
    async def test(app: App) -> None:
        async with posted(app, {"say": "Old"}, {"wait": 9}), posted(app, {"say": "New"}, {"wait": 5}) as newest:
            await newest.until(b"New")
            assert deltas((await ask(app, "GET", STREAM)).body) == ["New"]
            assert (await ask(app, "GET", STREAM)).status == 204, "though an older one goes on"

    driven(test)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_chat_is_its_owners(method: str) -> None:
    async def test(app: App) -> None:
        ann, bob = ({"authorization": f"Bearer a-key-of-{who}"} for who in ("anns", "bobs"))
        async with posted(app, SLOW, headers=ann) as exchange:
            await exchange.until(b" two")
            run = run_of(app, exchange)
            for name in ("chat-1", run.id):
                foreign = await ask(app, method, f"{CHAT}/{name}/stream", headers=bob)
                assert (foreign.status, foreign.body) == (204, b"")
                assert (await ask(app, "GET", f"{CHAT}/{name}/stream?startIndex=0", headers=bob)).status == 404
            assert (await ask(app, method, STREAM)).status == 401
            assert run.terminal is None
        assert isinstance(run.terminal, Done)

    driven(test, **KEYS)


def test_a_chat_is_stopped_by_its_id() -> None:
    async def test(app: App) -> None:
        async with posted(app, SLOW, linger=15) as exchange:
            await exchange.until(b" two")
            assert (await ask(app, "DELETE", STREAM)).status == 204
            run = run_of(app, exchange)
            assert isinstance(run.terminal, Cancelled)
            assert run.terminal.reason == "requested"
        assert exchange.body.endswith(b'{"type":"abort"}\n\ndata: {"type":"finish"}\n\ndata: [DONE]\n\n')
        assert (await ask(app, "DELETE", STREAM)).status == 204

    driven(test)


@pytest.mark.parametrize(("asked", "ended"), [({}, True), ({"linger": 15}, False)], ids=["at-once", "lingering"])
def test_who_leaves_a_chat_stops_its_run_unless_it_is_to_linger(asked: dict[str, Any], ended: bool) -> None:
    async def test(app: App) -> None:
        async with posted(app, SLOW, **asked) as exchange:
            await exchange.until(b" two")
            run = run_of(app, exchange)
            exchange.disconnect()
        await time_passes(0.1)
        assert (run.terminal is not None) == ended
        await time_passes(30)
        assert isinstance(run.terminal, Cancelled if ended else Done)

    driven(test)


# --- startIndex ------------------------------------------------------------------------------------------------------


def frames(body: bytes) -> list[bytes]:
    return [frame for frame in body.split(b"\n\n") if frame]


@pytest.mark.parametrize("over", [False, True], ids=["going-on", "over"])
@pytest.mark.parametrize("by", ["chat", "run"])
def test_who_has_some_chunks_gets_the_others(by: str, over: bool) -> None:
    async def test(app: App) -> None:
        async with posted(app, SLOW) as first:
            await first.until(b" two")
            name = "chat-1" if by == "chat" else first.headers["x-workflow-run-id"]
            if over:
                await time_passes(9)
            rest = [await ask(app, "GET", f"{CHAT}/{name}/stream?startIndex={has}") for has in (0, 3, 10, 11, 99)]
        whole = frames(first.body)
        assert len(whole) == 11, "[DONE] among them"
        assert [frames(one.body) for one in rest] == [whole[has:] for has in (0, 3, 10, 11, 99)]
        assert "x-workflow-stream-tail-index" not in rest[0].headers

    driven(test)


@pytest.mark.parametrize(("wanted", "begins"), [(1, 9), (3, 7), (10, 0), (99, 0)])
def test_who_wants_the_last_chunks_is_told_which_they_are(wanted: int, begins: int) -> None:
    async def test(app: App) -> None:
        async with posted(app, SLOW) as first:
            pass
        last = await ask(app, "GET", f"{STREAM}?startIndex=-{wanted}")
        assert frames(last.body) == frames(first.body)[begins:]
        assert last.headers["x-workflow-stream-tail-index"] == "9"

    driven(test)


def test_the_last_chunks_of_a_run_that_goes_on_are_of_those_it_has_said() -> None:
    async def test(app: App) -> None:
        async with posted(app, SLOW) as first:
            await first.until(b" two")
            last = await ask(app, "GET", f"{STREAM}?startIndex=-1")
        assert last.headers["x-workflow-stream-tail-index"] == "4"
        assert frames(last.body) == frames(first.body)[4:]

    driven(test)


@pytest.mark.parametrize("index", ["", "x", "1.5", "-", "--1", "1" * 10, "%D9%A1", "+1"])
def test_an_index_that_is_none_is_refused(index: str) -> None:
    async def test(app: App) -> None:
        async with posted(app, {"say": "Hello"}):
            pass
        refused = await ask(app, "GET", f"{STREAM}?startIndex={index}")
        assert (refused.status, refused.body) == (400, b"`startIndex` is a number of chunks.")

    driven(test)


def test_a_message_that_is_continued_is_told_again_as_such() -> None:
    messages = [*MESSAGES, {"id": "a", "role": "assistant", "parts": [{"type": "text", "text": "Well,"}]}]

    async def test(app: App) -> None:
        async with posted(app, SLOW, messages=messages) as first:
            await first.until(b" two")
            again = await ask(app, "GET", STREAM)
        assert again.body == first.body
        assert b"messageId" not in first.body

    driven(test)


def test_a_page_that_is_opened_again_is_told_of_calls_it_no_longer_knows() -> None:
    """It builds the message anew, and would not know what is answered; who counts chunks has the message still."""
    part = {"type": "tool-weather", "toolCallId": "call_0", "state": "input-available", "input": {}}
    messages = [*MESSAGES, {"id": "a", "role": "assistant", "parts": [part]}]

    async def test(app: App) -> None:
        async with posted(app, {"say": "Well"}, {"wait": 9}, messages=messages) as first:
            await first.until(b"Well")
            run_of(app, first).log.append([ToolResult("call_0", "weather", "clear")])
            again = await ask(app, "GET", STREAM)
            behind = await ask(app, "GET", f"{STREAM}?startIndex=0")
        told = b'"type":"tool-input-available","toolCallId":"call_0"'
        assert (told in first.body, told in again.body) == (False, True)
        assert behind.body == first.body

    driven(test)
