"""What all endpoints of other wires have in common: in whose words they tell a fault, and what they cost a start."""

import json
import subprocess
import sys
from typing import Any

import pytest

from .access import KEYS, WEB, bearer, serving
from .asgi import Exchange, ask, make_app, run, service_of
from .conftest import ROOT

ANTHROPIC = {"anthropic-version": "2023-06-01"}
JSON = {"content-type": "application/json"}


def words_of(exchange: Exchange) -> str:
    """Whose words a fault is told in."""
    if exchange.headers["content-type"].startswith("text/plain"):
        return "vercel"
    told = json.loads(exchange.body)
    if exchange.headers["content-type"] == "application/problem+json":
        return "ours"
    if told.get("type") == "error":
        return "anthropic"
    if told.get("type") == "RUN_ERROR":
        return "ag_ui"
    return "openai" if "error" in told else "langgraph"


PATHS = [
    ("/v1/chat/completions", {}, "openai"),
    ("/v1/responses", {}, "openai"),
    ("/v1/embeddings", {}, "openai"),
    ("/v1/models", {}, "openai"),
    ("/v1/models", ANTHROPIC, "anthropic"),
    ("/v1/messages/batches", {}, "anthropic"),
    ("/v1/complete", ANTHROPIC, "anthropic"),
    ("/chat/completions", {}, "openai"),
    ("/responses", {}, "openai"),
    ("/v1/messages", {}, "anthropic"),
    ("/ui/chat", {}, "vercel"),
    ("/ui/nothing", {}, "vercel"),
    ("/ag-ui", {}, "ag_ui"),
    ("/ag-ui/local", {}, "ag_ui"),
    ("/lg/runs/stream", {}, "langgraph"),
    ("/lg/assistants/search", {}, "langgraph"),
    ("/ag-ui-of-mine", {}, "ours"),
    ("/v1x", {}, "ours"),
    ("/chat/stream", {}, "ours"),
    ("/runs", {}, "ours"),
]


@pytest.mark.parametrize(("path", "headers", "words"), PATHS)
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_whatever_is_wrong_is_told_in_the_words_of_the_path(
    method: str, path: str, headers: dict[str, str], words: str
) -> None:
    """There is no such path, or no such method, or the body is none."""
    exchange = run(asking(method, path, headers))
    assert exchange.status in (400, 404, 405, 415, 422)
    assert words_of(exchange) == words
    assert ("allow" in exchange.headers) == (exchange.status == 405)


async def asking(method: str, path: str, headers: dict[str, str]) -> Exchange:
    return await ask(await make_app(), method, path, headers={**JSON, **headers})


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "ends in `/v1`"),
        ("/responses", "ends in `/v1`"),
        ("/v1/v1/messages", "has no `/v1`"),
        ("/v1/v1/chat/completions", "has one"),
        ("/lg", "runs that are streamed"),
        ("/lg/assistants/search", "runs that are streamed"),
    ],
)
def test_who_has_missed_the_path_is_told_how_it_is_to_be(path: str, hint: str) -> None:
    exchange = run(asking("POST", path, {}))
    assert exchange.status == 404
    assert hint in exchange.body.decode()


def test_a_run_that_is_not_there_is_no_path_that_is_not_there() -> None:
    exchange = run(asking("POST", f"/lg/runs/{'0' * 32}/cancel", {}))
    assert exchange.status == 404
    assert "streamed" not in exchange.body.decode()


@pytest.mark.parametrize("name", ["scripted/echo", "scripted%2Fecho", "echo", "scripted"])
def test_ag_ui_takes_the_name_of_a_model_in_its_path(name: str) -> None:
    body = {"threadId": "1", "runId": "1", "messages": [{"id": "1", "role": "user", "content": "Parrot"}]}

    async def asked() -> Exchange:
        return await ask(await make_app(), "POST", f"/ag-ui/{name}", headers=JSON, body=json.dumps(body).encode())

    exchange = run(asked())
    assert (exchange.status, b"RUN_FINISHED" in exchange.body) == (200, True)
    assert (b"Parrot" in exchange.body) == (name != "scripted")


@pytest.mark.parametrize(("path", "headers", "words"), PATHS[:16])
def test_another_host_is_refused_in_these_words_too(path: str, headers: dict[str, str], words: str) -> None:
    async def elsewhere() -> Exchange:
        app = await make_app(SIDESTREAM_ALLOWED_HOSTS="app.example")
        return await ask(app, "POST", path, headers={**JSON, **headers, "host": "evil.example"})

    exchange = run(elsewhere())
    assert (exchange.status, words_of(exchange)) == (403, words)


def test_below_a_path_of_its_own_the_words_are_the_same() -> None:
    async def mounted() -> Exchange:
        from starlette.applications import Starlette
        from starlette.routing import Mount

        outer = Starlette(routes=[Mount("/sidecar", app=await make_app())])
        return await ask(outer, "POST", "/sidecar/v1/messages", headers=JSON, body=b"{}")

    exchange = run(mounted())
    assert (exchange.status, words_of(exchange)) == (400, "anthropic")


def test_a_key_is_shown_as_each_vendors_client_shows_it() -> None:
    async def shown() -> list[int]:
        async with serving(SIDESTREAM_API_KEYS=KEYS) as app:
            bodies = b'{"model":"nobody","messages":[{"role":"user","content":"Hi"}]}'
            ways = ({}, bearer(WEB), {"x-api-key": WEB})
            asked = [await ask(app, "POST", "/v1/messages", headers={**JSON, **way}, body=bodies) for way in ways]
            return [exchange.status for exchange in asked]

    assert run(shown()) == [401, 404, 404]


def test_a_wire_is_imported_when_it_is_first_asked_for() -> None:
    code = """
import asyncio, json, sys
from service import create_app
from tests.asgi import ask
app = create_app({})
wires = lambda: sorted(name for name in sys.modules if name.startswith(tuple(f"wires.{one}" for one in
    ("ag_ui", "anthropic", "langgraph", "models", "openai_", "vercel"))))
print(wires())
asyncio.run(ask(app, "POST", "/ui/chat", headers={"content-type": "application/json"}, body=b"{}"))
print(wires())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['wires.vercel', 'wires.vercel_request']"]


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/v1/responses/resp_{id}?stream=true&starting_after=3", {}),
        ("/ui/chat/{id}/stream?startIndex=2", {}),
        ("/lg/runs/{lg}/stream", {"last-event-id": "{lg}-2"}),
    ],
)
def test_who_comes_back_is_counted(target: str, headers: dict[str, str]) -> None:
    async def resumed() -> int:
        app = await make_app()
        body = {"assistant_id": "scripted/echo", "stream_mode": "messages-tuple"}
        asked = json.dumps({**body, "input": {"messages": [{"role": "user", "content": "Hi"}]}}).encode()
        begun = await ask(app, "POST", "/lg/runs/stream", headers=JSON, body=asked)
        assert begun.status == 200
        run_id = begun.headers["content-location"].rpartition("/")[2].replace("-", "")
        before = service_of(app).metrics.resumes
        placed = {name: value.replace("{lg}", run_id) for name, value in headers.items()}
        back = await ask(app, "GET", target.replace("{id}", run_id).replace("{lg}", run_id), headers=placed)
        assert back.status == 200
        return service_of(app).metrics.resumes - before

    assert run(resumed()) == 1


@pytest.mark.parametrize(
    "target",
    ["/ui/chat/{id}/stream", "/lg/runs/{id}/stream?cancel_on_disconnect=1"],
)
def test_a_head_follows_nothing_and_ends_nothing(target: str) -> None:
    async def asked() -> tuple[Exchange, Any]:
        app = await make_app()
        body = {"assistant_id": "scripted/silent", "stream_mode": "messages-tuple"}
        request = json.dumps({**body, "input": {"messages": [{"role": "user", "content": "Hi"}]}}).encode()
        async with Exchange(app, "POST", "/lg/runs/stream", headers=JSON, body=request) as begun:
            await begun.until(b"metadata")
            (goes_on,) = [one for one in service_of(app).runs.all if not one.terminal]
            head = await ask(app, "HEAD", target.replace("{id}", goes_on.id))
            ended, viewers = goes_on.terminal, goes_on.viewers
            goes_on.end("requested")
        return head, (ended, viewers)

    head, told = run(asked())
    assert (head.status, head.body, told) == (200, b"", (None, 1))


def test_who_opens_a_chat_anew_is_told_the_answer_that_stands_alone() -> None:
    """What was taken back is none to who has nothing of it."""

    async def asked() -> tuple[bytes, bytes]:
        app = await make_app(SIDESTREAM_BREAKER_ATTEMPTS="100000")
        script = [{"say": "Void words"}, {"cut": True}]
        own = {"model": ["scripted/custom", "scripted/stall"], "provider_options": {"script": script}, "linger": 60}
        chat = {"id": "c", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Hi"}]}], **own}
        async with Exchange(app, "POST", "/ui/chat", headers=JSON, body=json.dumps(chat).encode()) as first:
            await first.until(b"[DONE]")
        (goes_on,) = [one for one in service_of(app).runs.all if not one.terminal]
        async with Exchange(app, "GET", "/ui/chat/c/stream") as again:
            await again.until(b"These")
            goes_on.end("requested")
        return first.body, again.body

    first, again = run(asked())
    assert (b"Void" in first, b'"error"' in first) == (True, True)
    assert (b"Void" in again, b'"error"' in again, again.count(b'"type":"start"')) == (False, False, 1)
