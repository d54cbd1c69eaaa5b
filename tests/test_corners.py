"""What streams and sockets do in the corners: halves of characters, viewers who take nothing, frames of any size."""

import asyncio
import gc
import json
from typing import Any

import pytest

from .asgi import make_app, run_ahead, time_passes
from .client import Client, Event, get, text
from .conftest import Service, Start, eventually
from .recorded import OPENAI
from .resource import NDJSON, create, rest_of
from .sockets import HandSocket, talk
from .test_slow_viewer import gone
from .test_websocket_turns import Listening, contents, listening, names, playing
from .upstream import Upstream

pytest_plugins = ["tests.upstream", "tests.served_graphs"]

SURROGATE = json.dumps({"surrogate": {"use": "tests.test_sse_wire:Surrogate", "models": ["m"]}})


def test_half_a_character_in_an_answer_does_not_end_the_conversation() -> None:
    async def test() -> list[Event]:
        async with HandSocket(await make_app(SIDESTREAM_PROVIDERS=SURROGATE), "model=surrogate/m") as socket:
            for number in (1, 2):
                socket.say("Hi")
                await socket.until_turns(number)
            return socket.events

    assert names(run_ahead(test())) == ["start", "token", "done"] * 2


def test_an_emoji_in_two_tokens_is_one_in_the_history(graphs: Service, upstream: Upstream) -> None:
    half = [OPENAI.token("").replace(b'"content":""', b'"content":"%b"' % part) for part in (rb"\ud83d", rb"\ude00")]
    upstream.stream(*OPENAI.opening, *half, *OPENAI.ending)
    upstream.stream(*OPENAI.opening, OPENAI.token("Fine"), *OPENAI.ending)
    with talk(graphs.port, "model=langgraph/speaking") as socket:
        socket.turn("Smile")
        assert text(socket.turn("Again")) == "Fine"
    upstream.request()
    assert contents(upstream.request().body["messages"]) == ["Smile", "\U0001f600", "Again"]


def test_who_does_not_take_its_refusals_is_let_go() -> None:
    async def test() -> bool:
        async with HandSocket(await make_app(SIDESTREAM_SEND_TIMEOUT="5")) as socket:
            socket.hold()
            socket.say(b"binary")
            await time_passes(10)
            return socket.hung_up

    assert run_ahead(test())


class Gone(HandSocket):
    """One whose connection is gone, which the service hears of as it sends (uvicorn after a ping nobody answered)."""

    async def _send(self, message: Any) -> None:
        if message["type"] == "websocket.send":
            raise OSError
        await super()._send(message)


def test_a_viewer_that_left_is_no_fault() -> None:
    async def test() -> list[object]:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        async with Gone(await make_app(), "model=scripted/silent") as socket:
            socket.say("Hi")
            await time_passes(1)
            gc.collect()
        return complaints

    assert run_ahead(test()) == []


def test_a_deep_object_is_no_message(service: Service) -> None:
    with talk(service.port, playing({"say": "Hi"})) as socket:
        (refusal,) = socket.turn('{"message": "x", "provider_options": ' + '{"a":' * 50_000 + "1" + "}" * 50_001)
        assert (refusal.id, refusal.data["code"]) == ("", "invalid_request")


def test_a_system_prompt_for_every_turn_does_not_keep_interrupts_from_being_answered(graphs: Service) -> None:
    with talk(graphs.port, "model=langgraph/asking&thread_id=with-system&system=Short.") as socket:
        assert socket.turn("Well?")[-1].data["finish_reason"] == "interrupt"
        assert text(socket.turn({"resume": "yes"})) == "You said yes."


def test_a_frame_may_name_its_system_prompt_either_way() -> None:
    async def test() -> list[Event]:
        async with HandSocket(await listening(), "system=Short.") as socket:
            socket.say({"message": "Hi", "system_prompt": "Long."})
            await socket.until_turns(1)
            return socket.events

    assert run_ahead(test())[-1].name == "done"
    assert Listening.asked[-1].system == "Long."


def test_a_refusal_names_the_parameter_that_is_wrong() -> None:
    async def test() -> object:
        app = await listening()
        async with HandSocket(app) as socket:
            socket.say("Hi")
            start = await socket.until("start")
            await socket.until_turns(1)
        async with HandSocket(app, f"resume={start.data['run']}-99") as socket:
            return socket.refused_with[1]["field"]

    assert run_ahead(test()) == "resume"


def test_a_frame_of_input_is_measured_in_bytes_too() -> None:
    async def test() -> list[Event]:
        async with HandSocket(await listening(SIDESTREAM_MAX_BODY_BYTES="2000")) as socket:
            socket.say('{"input": "' + "é" * 1500 + '"}')
            await socket.until_turns(0)
            await time_passes(1)
            return socket.events

    assert names(run_ahead(test())) == ["error"]


def test_an_interrupt_can_be_answered_by_null(graphs: Service) -> None:
    with talk(graphs.port, "model=langgraph/asking&thread_id=null") as socket:
        socket.turn("Well?")
        assert socket.turn({"resume": None})[-1].data.get("code") != "graph_failed"


def test_media_types_have_no_case(service: Service) -> None:
    with get(service.port, headers={"Accept": "Application/X-NDJSON"}, message="Hi", model="scripted/echo") as client:
        assert client.head()[1]["content-type"] == "application/x-ndjson"


@pytest.mark.parametrize("headers", [{}, NDJSON], ids=["SSE", "NDJSON"])
def test_who_takes_nothing_of_the_last_that_comes_is_let_go(start_service: Start, headers: dict[str, str]) -> None:
    service = start_service(SIDESTREAM_SEND_TIMEOUT="0.5")
    script = {"script": [{"say": "a" * 6_000_000}]}
    created = create(service.port, message="x", model="scripted/custom", provider_options=script)
    rest_of(get(service.port, created["events_url"]))
    with Client(service.port, "GET", created["events_url"], headers=headers, receive_buffer=4096) as client:
        eventually(lambda: gone(client.socket))
