"""Many turns over one WebSocket, with the `websockets` library as the client.

What may come between them is in test_websocket_turns.py, sockets that are lost are in test_websocket_resume.py.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from wires.problem import Problems

from .asgi import make_app, run, service_of
from .client import DEADLINE
from .conftest import Service, Start
from .recorded import chat
from .upstream import END, HOLD, Head, Upstream

pytest_plugins = ["tests.upstream"]


@pytest.fixture
def socket(service: Service) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{service.port}/ws/chat?model=scripted/echo", proxy=None) as client:
        yield client


def turn(socket: ClientConnection, frame: Any) -> list[tuple[str, Any]]:
    """Send a frame and return the events up to the end of the turn (or a refusal)."""
    socket.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))
    return rest(socket)


def rest(socket: ClientConnection) -> list[tuple[str, Any]]:
    events = []
    while True:
        event = json.loads(socket.recv(DEADLINE))
        events.append((event["event"], event["data"]))
        if event["event"] in ("done", "error", "cancelled"):
            return events


def said(events: list[tuple[str, Any]]) -> str:
    return "".join(data["token"] for name, data in events if name == "token")


@pytest.mark.parametrize("frame", ["hi there", "42", '"quoted"', "[1]", "{not json", "null"])
def test_what_is_no_object_is_a_message(socket: ClientConnection, frame: str) -> None:
    events = turn(socket, frame)
    assert [events[0][0], events[-1][0]] == ["start", "done"]
    assert said(events) == frame


def test_an_object_is_a_request(socket: ClientConnection) -> None:
    assert said(turn(socket, {"message": "hi"})) == "hi"
    assert turn(socket, {"question": "hi", "model": "scripted/hello"})[0][1]["model"] == "hello"


def test_the_history_is_sent_on(relay: Service, upstream: Upstream) -> None:
    for answer in ("Rome.", "Paris.", "Fresh."):
        upstream.stream(chat({"content": answer}), chat({}, "stop"), b"data: [DONE]\n\n")
    with connect(f"ws://127.0.0.1:{relay.port}/ws/chat?model=openai&system=Short.", proxy=None) as socket:
        assert said(turn(socket, "Italy?")) == "Rome."
        assert said(turn(socket, {"message": "France?"})) == "Paris."
        assert said(turn(socket, {"messages": [{"role": "user", "content": "Anew."}]})) == "Fresh."
    system = {"role": "system", "content": "Short."}
    italy, rome = {"role": "user", "content": "Italy?"}, {"role": "assistant", "content": "Rome."}
    assert upstream.request().body["messages"] == [system, italy]
    assert upstream.request().body["messages"] == [system, italy, rome, {"role": "user", "content": "France?"}]
    assert upstream.request().body["messages"] == [system, {"role": "user", "content": "Anew."}]


def test_a_stop_that_comes_with_its_message_stops_it(socket: ClientConnection) -> None:
    with socket.protocol_mutex:
        socket.protocol.send_text(b'{"message": "hi", "model": "scripted/silent"}')
        socket.protocol.send_text(b'{"type": "stop"}')
        socket.send_data()  # both in one write, so that the second is there before the first has begun
    assert [(name, data.get("reason")) for name, data in rest(socket)] == [("start", None), ("cancelled", "requested")]


def test_stop_ends_the_turn_and_the_upstream_and_the_next_turn_works(relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "A long"}), HOLD)
    upstream.stream(chat({"content": "Next."}), chat({}, "stop"), b"data: [DONE]\n\n")
    with connect(f"ws://127.0.0.1:{relay.port}/ws/chat", proxy=None) as socket:
        socket.send("Tell me a story")
        assert [json.loads(socket.recv(DEADLINE))["event"] for _ in range(2)] == ["start", "token"]
        socket.send('{"type":"stop"}')
        ((name, data),) = rest(socket)
        assert (name, data["reason"]) == ("cancelled", "requested")
        assert upstream.request().wait().ended == "aborted"
        assert said(turn(socket, "And now?")) == "Next."
    assert [message["content"] for message in upstream.request().body["messages"]] == [
        "Tell me a story",
        "A long",
        "And now?",
    ]


def test_a_failed_turn_is_forgotten(socket: ClientConnection) -> None:
    assert turn(socket, {"message": "one", "model": "scripted/cut"})[-1][0] == "error"
    assert said(turn(socket, "two")) == "two"


def test_another_sites_page_cannot_open_one(service: Service) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{service.port}/ws/chat", origin=Origin("https://evil.example"), proxy=None)
    assert refused.value.response.status_code == 403
    assert json.loads(refused.value.response.body)["code"] == "forbidden"


def test_bad_parameters_refuse_the_handshake(service: Service) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{service.port}/ws/chat?temperature=hot", proxy=None)
    assert refused.value.response.status_code == 400
    assert json.loads(refused.value.response.body)["field"] == "temperature"


def test_a_conversation_larger_than_a_body_may_be_is_refused(start_service: Start) -> None:
    service = start_service(SIDESTREAM_MAX_BODY_BYTES="2000")
    with connect(f"ws://127.0.0.1:{service.port}/ws/chat?model=scripted/echo", proxy=None) as socket:
        ((name, data),) = turn(socket, "x" * 2001)
        assert (name, data["code"]) == ("error", "too_large")
        assert said(turn(socket, "y" * 700)) == "y" * 700
        assert turn(socket, "z" * 700)[-1][1]["code"] == "too_large"
        assert said(turn(socket, {"messages": [{"role": "user", "content": "Anew."}]})) == "Anew."


def test_a_failed_turn_that_replaced_the_conversation_leaves_the_old_one(relay: Service, upstream: Upstream) -> None:
    upstream.stream(chat({"content": "Rome."}), chat({}, "stop"), b"data: [DONE]\n\n")
    upstream.play(Head(), END)
    upstream.stream(chat({"content": "Paris."}), chat({}, "stop"), b"data: [DONE]\n\n")
    with connect(f"ws://127.0.0.1:{relay.port}/ws/chat", proxy=None) as socket:
        assert said(turn(socket, "Italy?")) == "Rome."
        assert turn(socket, {"messages": [{"role": "user", "content": "Anew."}]})[-1][0] == "error"
        assert said(turn(socket, "France?")) == "Paris."
    asked = [upstream.request().body["messages"] for _ in range(3)]
    assert [message["content"] for message in asked[2]] == ["Italy?", "Rome.", "France?"]


def test_a_turn_begun_while_the_service_stops_is_refused_in_words() -> None:
    async def test() -> list[Message]:
        app, incoming, sent = await make_app(SIDESTREAM_IDLE_TIMEOUT="56"), asyncio.Queue[Message](), list[Message]()
        service_of(app).runs.end()
        refused = asyncio.Event()

        async def send(message: Message) -> None:
            sent.append(message)
            if message["type"] == "websocket.send":
                refused.set()

        scope = {"type": "websocket", "path": "/ws/chat", "query_string": b"", "headers": [(b"host", b"test")]}
        for message in ({"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hi"}):
            incoming.put_nowait(message)
        serving = asyncio.ensure_future(app(scope, incoming.get, send))
        await refused.wait()
        incoming.put_nowait({"type": "websocket.disconnect"})
        await serving
        return sent

    accepted, refusal = run(test())
    assert accepted["type"] == "websocket.accept"
    assert json.loads(refusal["text"])["data"]["code"] == "shutting_down"


def test_a_handshake_that_the_server_has_refused_by_itself_meanwhile_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """uvicorn does so at its own end; what websockets then says of our answer is an AssertionError."""

    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.http.response.start", "status": 503, "headers": []})

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        raise AssertionError

    asyncio.run(Problems(answers, lambda scope: None)({"type": "websocket"}, receive, send))
    assert not caplog.records
