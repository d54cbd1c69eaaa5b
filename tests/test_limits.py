"""Each limit over HTTP and over a WebSocket: what who meets it is told, and that it is counted."""

import json
from typing import Any

import pytest

from .asgi import Exchange, ask, ask_json, make_app, run, run_ahead, service_of, time_passes
from .client import Client, get
from .conftest import Start
from .metrics import refusals_in
from .resource import status_of
from .sockets import HandSocket
from .upstream import HOLD, Upstream, environ

pytest_plugins = ["tests.upstream"]

HANG = "/chat/stream?message=hi&model=scripted/silent"


async def refusals(app: Any) -> dict[tuple[str, str], float]:
    return refusals_in((await ask(app, "GET", "/metrics")).body.decode())


def problem(exchange: Exchange) -> tuple[int, str, str | None]:
    assert exchange.headers["content-type"] == "application/problem+json"
    return exchange.status, json.loads(exchange.body)["code"], exchange.headers.get("retry-after")


def counted(before: dict[tuple[str, str], float], after: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    return {what: now - before.get(what, 0) for what, now in after.items() if now != before.get(what, 0)}


def test_a_line_that_is_full_is_503_and_a_place_in_it_is_a_stream_with_pings() -> None:
    async def test() -> None:
        app = await make_app(SIDESTREAM_MAX_RUNS="1", SIDESTREAM_MAX_QUEUE="1", SIDESTREAM_PING_INTERVAL="5")
        before = await refusals(app)
        async with Exchange(app, "GET", HANG) as first, Exchange(app, "GET", HANG) as second:
            await first.until(b"start")
            await second.until(b"queued")
            assert (second.status, second.body.count(b"event: ")) == (200, 1)
            assert b'data: {"position":1}' in second.body
            for target in ("/chat/stream?message=hi&model=scripted/hello", "/stream?message=hi&model=scripted/hello"):
                assert problem(await ask(app, "GET", target)) == (503, "overloaded", "5")
            created = await ask_json(app, "/runs", message="hi")
            assert problem(created) == (503, "overloaded", "5")
            await time_passes(12)
            assert second.body.count(b": ping") == 2
            first.disconnect()
            await second.until(b"start")
            second.disconnect()
        assert counted(before, await refusals(app)) == {("overloaded", "max_runs"): 3}

    run_ahead(test())


def test_the_upstream_is_not_called_before_a_place_is_free(start_service: Start, upstream: Upstream) -> None:
    service = start_service(**environ(upstream), SIDESTREAM_MAX_RUNS="1")
    upstream.play(HOLD)
    with get(service.port, "/openai/stream", message="one") as first:
        first.until("start")
        upstream.request()
        with get(service.port, "/openai/stream", message="two") as second:
            second.until("queued")
            status = status_of(service.port, second.head()[1]["content-location"])
            assert (status["state"], status["position"]) == ("queued", 1)
            assert upstream.exchanges.empty()
            upstream.play(HOLD)
            first.hang_up()
            second.until("start")
            assert "two" in json.dumps(upstream.request().body)


def test_who_gives_up_waiting_is_not_waited_for(start_service: Start) -> None:
    service = start_service(SIDESTREAM_MAX_RUNS="1")
    with get(service.port, HANG) as first:
        first.until("start")
        with get(service.port, HANG) as second:
            second.until("queued")
        with get(service.port, "/chat/stream", message="hi", model="scripted/hello", linger="5") as third:
            event = third.until("queued")
            assert event.data["position"] in (1, 2)
            first.hang_up()
            assert third.until("done").data["finish_reason"] == "stop"


def test_a_turn_of_a_socket_waits_and_is_refused_like_any_other_run() -> None:
    async def test() -> None:
        app = await make_app(SIDESTREAM_MAX_RUNS="1", SIDESTREAM_MAX_QUEUE="1", SIDESTREAM_MODEL="scripted/silent")
        before = await refusals(app)
        async with Exchange(app, "GET", HANG) as stream:
            await stream.until(b"start")
            async with HandSocket(app) as one, HandSocket(app) as two:
                one.say("hi")
                assert (await one.until("queued")).data == {"position": 1}
                two.say("hi")
                refused = await two.until("error")
                assert (refused.id, refused.data["code"], refused.data["retryable"]) == ("", "overloaded", True)
                one.say({"type": "stop"})
                assert (await one.until("cancelled")).data["reason"] == "requested"
            stream.disconnect()
        assert counted(before, await refusals(app)) == {("overloaded", "max_runs"): 1}

    run_ahead(test())


KEYS = {"SIDESTREAM_API_KEYS": "one:key-1,two:key-2"}


def test_an_owner_with_all_its_runs_is_429_and_others_are_served() -> None:
    async def test() -> None:
        app = await make_app(
            **KEYS, SIDESTREAM_MAX_RUNS_PER_OWNER="1", SIDESTREAM_MAX_QUEUE="0", SIDESTREAM_PUBLIC_METRICS="1"
        )
        before = await refusals(app)
        one, two = {"x-api-key": "key-1"}, {"x-api-key": "key-2"}
        async with Exchange(app, "GET", HANG, headers=one) as first:
            await first.until(b"start")
            assert problem(await ask(app, "GET", HANG, headers=one)) == (429, "rate_limited", "5")
            async with Exchange(app, "GET", HANG, headers=two) as second:
                await second.until(b"start")
                second.disconnect()
            first.disconnect()
        assert counted(before, await refusals(app)) == {("rate_limited", "max_runs_per_owner"): 1}

    run_ahead(test())


def test_who_asks_too_often_is_429_and_each_answer_tells_what_is_left() -> None:
    async def test() -> None:
        app = await make_app(**KEYS, SIDESTREAM_RATE_LIMIT="3", SIDESTREAM_PUBLIC_METRICS="1")
        before = await refusals(app)
        one, two = {"x-api-key": "key-1"}, {"x-api-key": "key-2"}
        target = "/chat/stream?message=hi&model=scripted/hello"
        first = await ask(app, "GET", target, headers=one)
        posted = await ask(
            app, "POST", "/runs", headers={**one, "content-type": "application/json"}, body=b'{"message":"hi"}'
        )
        assert [answer.headers["ratelimit"][:14] for answer in (first, posted)] == ['"requests";r=2', '"requests";r=1']
        assert (first.status, posted.status) == (200, 201)
        async with HandSocket(app, headers=one) as socket:
            socket.say("hi")
            await socket.until("start")
            socket.say({"type": "stop"})
            await socket.until_turns(1)
            socket.say("again")
            assert (await socket.until("error")).data["code"] == "rate_limited"
        refused = await ask(app, "GET", target, headers=one)
        assert (problem(refused)[:2], refused.headers["ratelimit"][:14]) == ((429, "rate_limited"), '"requests";r=0')
        assert refused.headers["ratelimit-policy"] == '"requests";q=3;w=60'
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert (await ask(app, "GET", target, headers=two)).status == 200
        run_id = json.loads(posted.body)["id"]
        assert (await ask(app, "GET", f"/runs/{run_id}", headers=one)).status == 200, "to look is free"
        assert counted(before, await refusals(app)) == {("rate_limited", "rate_limit"): 2}
        await service_of(app).runs.wait()

    run(test())


def test_the_same_request_again_costs_nothing_and_a_bad_one_what_any_does() -> None:
    async def test() -> None:
        app = await make_app(SIDESTREAM_RATE_LIMIT="2")
        again = {"content-type": "application/json", "idempotency-key": "k"}
        body = b'{"message":"hi","model":"scripted/hello","linger":60}'
        posted = [await ask(app, "POST", "/runs", headers=again, body=body) for _ in range(5)]
        assert [answer.status for answer in posted] == [201] * 5
        assert ["ratelimit" in answer.headers for answer in posted] == [True, *[False] * 4]
        target = "/chat/stream?message=hi&model=scripted/hello"
        assert [(await ask(app, "HEAD", target)).status for _ in range(3)] == [200] * 3
        assert (await ask(app, "GET", "/chat/stream?temperature=x")).status == 400
        assert problem(await ask(app, "GET", target, headers=again))[:2] == (429, "rate_limited"), "a GET has no key"
        await service_of(app).runs.wait()

    run(test())


@pytest.mark.parametrize(
    ("settings", "body", "limit"),
    [
        ({"MAX_MESSAGES": "2"}, {"messages": [{"role": "user", "content": "a"}] * 3}, "max_messages"),
        ({"MAX_BODY_BYTES": "100"}, {"message": "a" * 100}, "max_body_bytes"),
    ],
)
def test_what_is_too_large_is_413(settings: dict[str, str], body: dict[str, object], limit: str) -> None:
    async def test() -> None:
        app = await make_app(**{f"SIDESTREAM_{name}": value for name, value in settings.items()})
        before = await refusals(app)
        for target in ("/chat/stream", "/runs"):
            assert problem(await ask_json(app, target, **body)) == (413, "too_large", None)
        async with HandSocket(app) as socket:
            socket.say(body)
            assert (await socket.until("error")).data["code"] == "too_large"
        assert counted(before, await refusals(app)) == {("too_large", limit): 3}

    run_ahead(test())


def test_a_conversation_that_grows_past_its_messages_is_refused_and_stays() -> None:
    async def test() -> None:
        app = await make_app(SIDESTREAM_MAX_MESSAGES="2", SIDESTREAM_MODEL="scripted/echo")
        async with HandSocket(app) as socket:
            socket.say("one")
            await socket.until_turns(1)
            socket.say("two")
            assert (await socket.until("error")).data["code"] == "too_large"
            socket.say({"messages": [{"role": "user", "content": "three"}]})
            await socket.until_turns(2)
            assert "".join(event.data["token"] for event in socket.events if event.name == "token") == "onethree"

    run_ahead(test())


def test_a_run_with_all_its_viewers_is_503() -> None:
    async def test() -> None:
        app = await make_app(SIDESTREAM_MAX_VIEWERS="1", SIDESTREAM_MODEL="scripted/silent")
        before = await refusals(app)
        created = json.loads((await ask_json(app, "/runs", message="hi")).body)
        async with Exchange(app, "GET", created["events_url"]) as viewer:
            await viewer.until(b"start")
            assert problem(await ask(app, "GET", created["events_url"])) == (503, "overloaded", "1")
            async with HandSocket(app, f"resume={created['id']}-0") as socket:
                assert (await socket.until("error")).data["code"] == "overloaded"
            assert status_in(await ask(app, "GET", created["status_url"])) == ("running", 1)
            viewer.disconnect()
        assert counted(before, await refusals(app)) == {("overloaded", "max_viewers"): 2}
        await ask(app, "DELETE", created["status_url"])

    run_ahead(test())


def status_in(exchange: Exchange) -> tuple[str, int]:
    status = json.loads(exchange.body)
    return status["state"], status["viewers"]


def test_a_body_that_does_not_come_is_408_and_the_connection_is_closed(start_service: Start) -> None:
    service = start_service(SIDESTREAM_BODY_TIMEOUT="0.2")
    headers = {"Content-Type": "application/json", "Content-Length": "100"}
    with Client(service.port, "POST", "/chat/stream", headers=headers) as client:
        client.send(b'{"mess')
        client.read()
        status, told = client.head()
        assert (status, told["connection"], told["content-type"]) == (408, "close", "application/problem+json")
        assert json.loads(client.body)["code"] == "request_timeout"


def test_a_run_that_says_too_much_is_cut() -> None:
    async def test() -> None:
        app = await make_app(SIDESTREAM_MAX_RUN_BYTES="3000", SIDESTREAM_MODEL="scripted/flood")
        answer = await ask(app, "GET", "/chat/stream?message=hi")
        assert b'"code":"output_limit"' in answer.body

    run(test())
