"""Turns over a WebSocket, whatever comes between: frames out of turn or broken, slow readers, sockets that close.

By the `websockets` library, by hand where the very bytes matter, and over an app driven by hand where the moment does.
"""

import asyncio
import json
import signal
from typing import Any, ClassVar
from urllib.parse import urlencode

import pytest
from langchain_core.runnables import RunnableLambda
from starlette.applications import Starlette
from starlette.types import Message
from websockets.exceptions import ConnectionClosed

from streaming.events import Finish, Token
from streaming.request import Emit, ProviderSettings, RunRequest

from .asgi import ask, make_app, run, run_ahead, service_of, time_passes
from .client import DEADLINE, Event, text
from .conftest import Service, Start
from .recorded import OPENAI
from .sockets import STOP, WAYS, HandSocket, How, RawSocket, event_of, masked, talk
from .test_disconnect import PHASES, Phase, before_headers, before_tokens, catch_up, slow_viewer
from .test_origin import FOREIGN, HOST, OWN, REFUSAL
from .upstream import HOLD, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.served_graphs"]

BUSY = {
    "error": "A turn is going on: wait for its end, or stop it.",
    "code": "invalid_request",
    "retryable": False,
}
WORDS = ["one", " two", " three"]


def playing(*steps: dict[str, Any], **more: object) -> str:
    """Return the parameters that make each message play these steps."""
    return urlencode({"model": "scripted/custom", "provider_options": json.dumps({"script": steps}), **more})


SAYING = playing({"say": "".join(WORDS)})
SAYING_ONE = playing({"say": "One"})


class Listening:
    """A provider that keeps what it is asked, and says the number of it."""

    asked: ClassVar[list[RunRequest]] = []

    def __init__(self, settings: ProviderSettings, upstream: Any) -> None:
        pass

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        self.asked.append(request)
        emit([Token(f"Answer {len(self.asked)}."), Finish("stop")])


async def listening(**environ: str) -> Starlette:
    """Return an app whose default model is that provider, which has been asked nothing yet."""
    Listening.asked.clear()
    table = {"listening": {"use": "tests.test_websocket_turns:Listening", "models": ["m"]}}
    return await make_app(SIDESTREAM_PROVIDERS=json.dumps(table), SIDESTREAM_MODEL="listening/m", **environ)


def contents(messages: Any) -> list[Any]:
    return [message["content"] if isinstance(message, dict) else message.content for message in messages]


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


# --- one turn after the other -------------------------------------------------------------------------------------


def test_each_of_many_turns_is_asked_with_all_that_was_said_before(relay: Service, upstream: Upstream) -> None:
    history: list[dict[str, str]] = []
    with talk(relay.port, "model=openai") as socket:
        for number in range(30):
            question, answer = f"Question {number}?", f"Answer {number}."
            upstream.stream(*OPENAI.opening, OPENAI.token(answer), *OPENAI.ending)
            assert text(socket.turn(question)) == answer
            history.append({"role": "user", "content": question})
            assert upstream.request().body["messages"] == history
            history.append({"role": "assistant", "content": answer})


def test_a_message_at_the_very_end_of_a_turn_is_never_refused(service: Service) -> None:
    with talk(service.port, SAYING) as socket:
        for _ in range(200):
            events = socket.turn("Next")
            assert [events[0].name, events[-1].name] == ["start", "done"]
            assert text(events) == "".join(WORDS)


class Eager(HandSocket):
    """Says the next thing while `done` is being sent to it, and takes its time to take that."""

    async def _send(self, message: Message) -> None:
        await super()._send(message)
        if message["type"] == "websocket.send" and event_of(message["text"]).name == "done":
            self.say("Next")
            for _ in range(20):
                await asyncio.sleep(0)


def test_nor_while_the_last_event_of_the_turn_before_is_being_sent() -> None:
    async def test() -> list[Event]:
        async with Eager(await make_app(), SAYING_ONE) as socket:
            socket.say("First")
            await socket.until_turns(200)
            return socket.events

    events = run_ahead(test())
    assert names(events)[: 200 * 3] == ["start", "token", "done"] * 200
    runs = [event.id.partition("-")[0] for event in events[: 200 * 3]]
    assert [runs[turn : turn + 3] for turn in range(0, 600, 3)] == [[run] * 3 for run in dict.fromkeys(runs)]


def test_frames_of_two_turns_never_mix_however_slow_the_reader_is() -> None:
    """The second turn is over before the first event of the first has been taken, and a third is asked for then."""

    async def test() -> list[Event]:
        async with HandSocket(await make_app(), SAYING) as socket:
            socket.hold()
            socket.say("One")
            await time_passes(1)
            socket.go_on(1)
            await socket.until("start")
            socket.say("Two", "Three")
            await time_passes(1)
            assert names(socket.events) == ["start"]
            for _ in range(6):
                socket.go_on(1)
                await time_passes(1)
            return socket.events

    events = run_ahead(test())
    refusals = [event for event in events if not event.id]
    assert [event.data for event in refusals] == [BUSY]
    turns = [event for event in events if event.id]
    assert names(turns) == ["start", "token", "done"] * 2
    assert [turn.id.partition("-")[0] for turn in turns] == [turns[0].data["run"]] * 3 + [turns[3].data["run"]] * 3


def test_sockets_at_once_have_each_its_own_conversation() -> None:
    async def converse(app: Starlette, name: str) -> None:
        async with HandSocket(app) as socket:
            for turn in range(1, 4):
                socket.say(f"{name} {turn}")
                await socket.until_turns(turn)

    async def test() -> None:
        app = await listening()
        await asyncio.gather(*(converse(app, f"Socket {number}") for number in range(20)))

    run(test())
    for number in range(20):
        mine = [asked for asked in Listening.asked if f"Socket {number} 1" in contents(asked.messages)]
        assert [len(asked.messages) for asked in mine] == [1, 3, 5]
        assert contents(mine[-1].messages)[::2] == [f"Socket {number} {turn}" for turn in (1, 2, 3)]


def test_a_message_in_fragments_is_one_message(service: Service) -> None:
    with talk(service.port, "model=scripted/echo") as socket:
        socket.connection.send(["in ", "three ", "parts"])
        assert text(socket.rest()) == "in three parts"


# --- readers that are slow ----------------------------------------------------------------------------------------


def test_a_slow_reader_gets_the_same_text_in_fewer_frames_with_the_ids_of_the_last_parts() -> None:
    async def test() -> list[Event]:
        query = playing({"say": "one two three four", "every": 1})
        async with HandSocket(await make_app(), query) as socket:
            socket.say("Hi")
            await socket.until("token")
            socket.hold()
            await time_passes(30)
            socket.go_on()
            await socket.until("done")
            return socket.events

    start, *tokens, done = run_ahead(test())
    run_id = start.data["run"]
    assert tokens == [
        Event("token", f"{run_id}-2", {"token": "one"}),
        Event("token", f"{run_id}-3", {"token": " two"}),
        Event("token", f"{run_id}-5", {"token": " three four"}),
    ]
    assert (done.name, done.id, done.data["tokens"]) == ("done", f"{run_id}-6", 4)


def test_a_reader_that_takes_nothing_is_let_go_after_the_send_timeout_not_before() -> None:
    async def test() -> tuple[list[bool], Any]:
        app = await make_app(SIDESTREAM_SEND_TIMEOUT="5")
        hung_up = []
        async with HandSocket(app, playing({"say": "word " * 100, "every": 1})) as socket:
            socket.say("Hi")
            start = await socket.until("start")
            socket.hold()
            for _ in range(3):  # one frame in nearly five seconds is not nothing
                await time_passes(4.5)
                socket.go_on(1)
            for _ in range(2):
                await time_passes(4.25)
                hung_up.append(socket.hung_up)
        return hung_up, (await service_of(app).runs.find(start.data["run"])).terminal

    hung_up, ending = run_ahead(test())
    assert hung_up == [False, True]
    assert (ending.name, ending.reason) == ("cancelled", "disconnected")


# --- stops, and messages out of turn ------------------------------------------------------------------------------


def test_what_is_asked_during_a_turn_is_refused_each_time_and_the_turn_goes_on(
    relay: Service, upstream: Upstream
) -> None:
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Long"), HOLD)
    with talk(relay.port, "model=openai") as socket:
        socket.say("Tell me a story")
        assert names([socket.next(), socket.next()]) == ["start", "token"]
        for frame in ("Two", {"message": "Three"}, {"mesage": "Four"}, "{}", {"type": "go"}):
            assert socket.turn(frame) == [Event("error", "", BUSY)]
        (binary,) = socket.turn(b"Five")
        assert (binary.id, binary.data["code"]) == ("", "invalid_request")
        assert not upstream.request().ended
        assert names(socket.turn(STOP)) == ["cancelled"]


def test_what_is_asked_while_a_turn_is_being_made_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> list[Event]:
        app = await make_app()
        runs = service_of(app).runs
        create = runs.create

        async def create_slowly(*args: Any, **more: Any) -> Any:
            await time_passes(5)
            return await create(*args, **more)

        monkeypatch.setattr(runs, "create", create_slowly)
        async with HandSocket(app, "model=scripted/silent") as socket:
            socket.say("One", "Two", STOP)
            await socket.until_turns(1)
            return socket.events

    refused, *turn = sorted(run_ahead(test()), key=lambda event: event.id)
    assert (refused, names(turn)) == (Event("error", "", BUSY), ["start", "cancelled"])


def test_to_stop_where_nothing_goes_on_does_nothing(service: Service) -> None:
    with talk(service.port, SAYING) as socket:
        for _ in range(3):
            socket.say(STOP)
        assert text(socket.turn("Hi")) == "".join(WORDS)
        socket.say(STOP)
        assert text(socket.turn("Hi")) == "".join(WORDS)


def test_to_stop_twice_is_to_stop_once(service: Service) -> None:
    with talk(service.port, "model=scripted/silent") as socket:
        for _ in range(3):
            socket.say("Hi")
            assert socket.next().name == "start"
            for _ in range(3):
                socket.say(STOP)
            (ending,) = socket.rest()
            assert (ending.name, ending.data["reason"]) == ("cancelled", "requested")


def test_a_message_right_behind_a_stop_is_refused_and_the_one_behind_cancelled_is_not() -> None:
    async def test() -> list[Event]:
        async with HandSocket(await make_app(), "model=scripted/silent") as socket:
            socket.say("One")
            await socket.until("start")
            socket.say(STOP, "Too soon")
            await socket.until("cancelled")
            socket.say("Two")
            await socket.until("start", 2)
            return socket.events

    events = run_ahead(test())
    assert names(events) == ["start", "error", "cancelled", "start"]
    assert events[1] == Event("error", "", BUSY)


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase is not slow_viewer], ids=lambda p: p.__name__)
def test_a_stop_closes_the_upstream_in_every_phase(relay: Service, upstream: Upstream, phase: Phase) -> None:
    upstream.play(*phase(OPENAI))
    with talk(relay.port, "model=openai") as socket:
        socket.say("Hi")
        socket.until("start" if phase in (before_headers, before_tokens) else "token")
        exchange = upstream.request()
        exchange.wait_for_pause()
        socket.say(STOP)
        assert socket.until("cancelled").data["reason"] == "requested"
        assert exchange.wait().ended == "aborted"


# --- frames that are no good --------------------------------------------------------------------------------------

BAD: dict[str, tuple[object, str]] = {
    "binary": (b"\x00", "invalid_request"),
    "no bytes": (b"", "invalid_request"),
    "no text": ("", "invalid_request"),
    "blanks": (" \n", "invalid_request"),
    "an empty message": ({"message": ""}, "invalid_request"),
    "an object of nothing": ({}, "invalid_request"),
    "an unknown field": ({"message": "x", "temprature": 1}, "invalid_request"),
    "an unknown type": ({"type": "go"}, "invalid_request"),
    "a type beside a message": ({"type": "message", "message": "x"}, "invalid_request"),
    "a message of another type": ({"message": 5}, "invalid_request"),
    "no messages": ({"messages": []}, "invalid_request"),
    "messages of another type": ({"messages": "x"}, "invalid_request"),
    "a role that is none": ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_request"),
    "two messages": ({"message": "x", "question": "y"}, "invalid_request"),
    "a message and messages": ({"message": "x", "messages": [{"role": "user", "content": "x"}]}, "invalid_request"),
    "a number out of range": ({"message": "x", "temperature": 9}, "invalid_request"),
    "too long a wait": ({"message": "x", "idle_timeout": 1e6}, "invalid_request"),
    "what is for graphs": ({"message": "x", "model": "scripted", "thread_id": "t"}, "invalid_request"),
    "an input": ({"input": 1, "model": "scripted"}, "invalid_request"),
    "an answer to nothing": ({"resume": 1, "model": "scripted"}, "invalid_request"),
    "a model that is none": ({"message": "x", "model": "scripted/none"}, "unknown_model"),
    "a provider that is none": ({"message": "x", "model": "nobody/x"}, "unknown_model"),
    "many messages": ({"messages": [{"role": "user", "content": "x"}] * 10_001}, "invalid_request"),
}


def test_a_frame_that_is_no_good_gets_an_error_and_costs_nothing_else() -> None:
    """Not the conversation either."""

    async def test() -> list[Event]:
        async with HandSocket(await listening()) as socket:
            socket.say("First")
            await socket.until_turns(1)
            for number, (frame, _) in enumerate(BAD.values(), 1):
                socket.say(frame)
                await socket.until("error", number)
            socket.say("Second")
            await socket.until_turns(2)
            return socket.events

    events = run_ahead(test())
    refusals = [event for event in events if event.name == "error"]
    told = {name: event.data["code"] for name, event in zip(BAD, refusals, strict=True)}
    assert told == {name: code for name, (_, code) in BAD.items()}
    assert {(event.id, *event.data) for event in refusals} == {("", "error", "code", "retryable")}
    assert names([event for event in events if event.id]) == ["start", "token", "done"] * 2
    assert contents(Listening.asked[-1].messages) == ["First", "Answer 1.", "Second"]


@pytest.mark.parametrize("frame", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_json_of_any_depth_ends_in_some_way_and_the_socket_lives(service: Service, frame: str) -> None:
    with talk(service.port, SAYING) as socket:
        assert socket.turn(frame)[-1].name in ("done", "error")
        assert text(socket.turn("Hi")) == "".join(WORDS)


def test_a_conversation_is_measured_in_bytes() -> None:
    async def test() -> list[Event]:
        async with HandSocket(await listening(SIDESTREAM_MAX_BODY_BYTES="2000")) as socket:
            socket.say("é" * 700)
            await socket.until_turns(1)
            socket.say("é" * 400)  # fewer characters than 2000, all in all
            await socket.until("error")
            socket.say("é" * 100)
            await socket.until_turns(2)
            return socket.events

    events = run_ahead(test())
    assert names(events) == ["start", "token", "done", "error", "start", "token", "done"]
    assert events[3].data["code"] == "too_large"
    assert contents(Listening.asked[-1].messages) == ["é" * 700, "Answer 1.", "é" * 100]


# --- how sockets close --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase is not slow_viewer], ids=lambda p: p.__name__)
def test_a_socket_that_closes_closes_the_upstream(relay: Service, upstream: Upstream, phase: Phase, how: How) -> None:
    upstream.play(*phase(OPENAI))
    with talk(relay.port, "model=openai") as socket:
        socket.say("Hi")
        socket.until("start" if phase in (before_headers, before_tokens) else "token")
        exchange = upstream.request()
        exchange.wait_for_pause()
        assert not exchange.ended
        socket.lose(how)
        assert exchange.wait().ended == "aborted"


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
def test_a_slow_readers_socket_that_closes_closes_the_upstream(relay: Service, upstream: Upstream, reset: bool) -> None:
    upstream.play(*slow_viewer(OPENAI))
    with RawSocket(relay.port, "model=openai", receive_buffer=4096) as socket:
        socket.say("Hi")
        exchange = upstream.request()
        exchange.wait_for_pause()
        catch_up(relay)
        assert not exchange.ended
        socket.hang_up(reset=reset)
        assert exchange.wait().ended == "aborted"


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
def test_who_closes_is_answered_in_kind(relay: Service, upstream: Upstream, code: int) -> None:
    """As RFC 6455, 5.5.1 and 7.4 have it; whatever the reason is, the turn is over."""
    upstream.play(HOLD)
    with talk(relay.port, "model=openai") as socket:
        socket.say("Hi")
        socket.until("start")
        exchange = upstream.request()
        socket.connection.close(code, "that will do")
        assert socket.connection.close_code == code
        assert exchange.wait().ended == "aborted"


BROKEN: dict[str, tuple[bytes, int | None]] = {
    "text that is not UTF-8": (masked(b"\xff\xfe"), 1007),
    "half of a character": (masked(b"\xf0\x9f"), 1007),
    "a frame that announces too much": (masked(b"")[:1] + bytes([0x80 | 127]) + (17 << 20).to_bytes(8, "big"), 1009),
    "an opcode that is none": (masked(b"", opcode=3), 1002),
    "a reserved bit": (bytes([0xC1]) + masked(b"x")[1:], 1002),
    "no mask": (bytes([0x81, 1]) + b"x", 1002),
    "a close without a code": (masked(b"", opcode=8), None),
    "a close with half a code": (masked(b"\x03", opcode=8), 1002),
    "a close with a code that none may send": (masked((1006).to_bytes(2, "big"), opcode=8), 1002),
}


@pytest.mark.parametrize(("broken", "code"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_websocket_closes_it_by_its_code_and_the_upstream_too(
    relay: Service, upstream: Upstream, broken: bytes, code: int | None
) -> None:
    """The transport decides on these (RFC 6455, 7.4.1)."""
    upstream.play(HOLD)
    with RawSocket(relay.port, "model=openai") as socket:
        socket.say("Hi")
        exchange = upstream.request()
        socket.send(broken)
        socket.read_to_end()
        assert [opcode for opcode, _ in socket.frames] == [1, 8]
        assert socket.closed_by == (code or 0)
        assert exchange.wait().ended == "aborted"


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_frame_larger_than_the_transport_takes_closes_the_socket(service: Service, compression: str | None) -> None:
    """Also where it is small until it is unpacked. Who is still sending may see a reset, and not why."""
    with talk(service.port, SAYING, compression=compression) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            socket.turn("x" * (17 << 20))
        assert socket.connection.close_code in ((1009,) if compression else (1009, 1006)), closed.value


def test_a_service_that_stops_says_so_to_every_socket(start_service: Start) -> None:
    """1012, "Service Restart" (IANA's registry of close codes), behind the end of a turn that went on."""
    service = start_service()
    with talk(service.port, SAYING) as idle, talk(service.port, "model=scripted/silent") as busy:
        assert text(idle.turn("Hi")) == "".join(WORDS)
        busy.say("Hi")
        assert busy.next().name == "start"
        service.process.send_signal(signal.SIGTERM)
        ending = busy.next()
        assert (ending.name, ending.data["reason"]) == ("cancelled", "draining")
        for socket in (idle, busy):
            with pytest.raises(ConnectionClosed):
                socket.next()
            assert socket.connection.close_code == 1012
        service.process.wait(DEADLINE)
    assert "Traceback" not in service.log
    assert "ERROR" not in service.log


class SlowToClose:
    """A provider whose upstream takes its time to close: longer than the server waits between looks at its signals."""

    def __init__(self, settings: ProviderSettings, upstream: Any) -> None:
        pass

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        emit([Token("One")])
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.5)  # that it takes long is what is tried


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_stops_waits_for_the_end_of_a_turn_before_it_closes_the_socket(
    start_service: Start, sign: int
) -> None:
    table = {"slow": {"use": "tests.test_websocket_turns:SlowToClose", "models": ["m"]}}
    service = start_service(SIDESTREAM_PROVIDERS=json.dumps(table))
    with talk(service.port, "model=slow/m") as socket:
        socket.say("Hi")
        assert [socket.next().name for _ in range(2)] == ["start", "token"]
        service.process.send_signal(sign)
        assert socket.next().name == "cancelled"
        with pytest.raises(ConnectionClosed):
            socket.next()
        assert socket.connection.close_code == 1012
        service.process.wait(DEADLINE)
    assert "Traceback" not in service.log


# --- who may open one, and with what ------------------------------------------------------------------------------


async def open_with(query: str = "", **headers: str) -> tuple[int, Any] | None:
    app = await listening(SIDESTREAM_ALLOWED_ORIGINS="https://app.example")
    async with HandSocket(app, query, {"host": HOST, **headers}) as socket:
        if not socket.refused_with:
            socket.say("Hi")
            await socket.until("done")
        return socket.refused_with


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_other_sites_pages_may_not_open_one(headers: dict[str, str]) -> None:
    refused = run_ahead(open_with(**headers))
    assert refused
    status, problem = refused
    assert (status, problem["code"], problem["detail"]) == (403, "forbidden", REFUSAL)


@pytest.mark.parametrize("headers", OWN.values(), ids=OWN)
def test_its_own_pages_allowed_ones_and_programs_may_open_one(headers: dict[str, str]) -> None:
    assert run_ahead(open_with(**headers)) is None


@pytest.mark.parametrize(
    ("query", "code", "field"),
    [
        ("message=Hi", "invalid_request", "message"),
        ("question=Hi", "invalid_request", "message"),
        ('messages=[{"role":"user","content":"Hi"}]', "invalid_request", "message"),
        ("input=5", "invalid_request", "message"),
        ("input=null", "invalid_request", "message"),
        ("messages=nonsense", "invalid_request", "messages"),
        ("nonsense=1", "invalid_request", "nonsense"),
        ("max_tokens=many", "invalid_request", "max_tokens"),
        ("system=a&system=b", "invalid_request", "system"),
    ],
)
def test_parameters_that_are_no_good_refuse_the_socket(query: str, code: str, field: str) -> None:
    refused = run_ahead(open_with(query))
    assert refused
    status, problem = refused
    assert (status, problem["code"], problem["field"]) == (400, code, field)


def test_parameters_count_for_every_turn_but_where_a_frame_says_otherwise(relay: Service, upstream: Upstream) -> None:
    query = "model=openai/gpt-x&system=Short.&temperature=0.5&max_tokens=7&stop=END&seed=3"
    for _ in range(3):
        upstream.stream(*OPENAI.opening, OPENAI.token("Well"), *OPENAI.ending)
    with talk(relay.port, query) as socket:
        for frame in ("One", {"message": "Two", "temperature": 1, "model": "openai/gpt-y", "system": "Long."}, "Three"):
            assert socket.turn(frame)[-1].name == "done"
    asked = [upstream.request().body for _ in range(3)]
    given = [[body.get(name) for name in ("model", "temperature", "max_tokens", "stop")] for body in asked]
    assert given == [["gpt-x", 0.5, 7, "END"], ["gpt-y", 1, 7, "END"], ["gpt-x", 0.5, 7, "END"]]
    assert [body["messages"][0]["content"] for body in asked] == ["Short.", "Long.", "Short."]


def test_a_model_that_is_none_is_refused_turn_by_turn(service: Service) -> None:
    with talk(service.port, "model=nobody/x") as socket:
        assert [socket.turn("Hi")[-1].data["code"] for _ in range(2)] == ["unknown_model"] * 2
        assert text(socket.turn({"message": "Hi", "model": "scripted/echo"})) == "Hi"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_who_asks_for_it_without_a_handshake_finds_nothing(method: str) -> None:
    async def test() -> tuple[int, Any]:
        exchange = await ask(await make_app(), method, "/ws/chat?model=scripted/echo")
        return exchange.status, json.loads(exchange.body)["code"]

    assert run_ahead(test()) == (404, "not_found")


# --- chains and graphs --------------------------------------------------------------------------------------------


@RunnableLambda
def louder(said: str) -> str:
    return said.upper()


def test_a_chain_takes_turns() -> None:
    async def test() -> list[Event]:
        app = await make_app(SIDESTREAM_CHAINS="louder=tests.test_websocket_turns:louder")
        async with HandSocket(app, "model=langchain/louder") as socket:
            for number, frame in enumerate(("Hi", "you", {"input": "there"}), 1):
                socket.say(frame)
                await socket.until_turns(number)
            return socket.events

    events = run(test())
    assert names(events) == ["start", "token", "done"] * 3
    assert [event.data["token"] for event in events[1::3]] == ["HI", "YOU", "THERE"]


def test_a_thread_is_the_memory_where_there_is_one(graphs: Service, upstream: Upstream) -> None:
    """Nothing is sent on, and nothing is in the memory twice; another socket goes on with it."""
    for answer in ("Rome.", "Paris.", "Madrid."):
        upstream.stream(*OPENAI.opening, OPENAI.token(answer), *OPENAI.ending)
    query = "model=langgraph/remembering&thread_id=capitals"
    with talk(graphs.port, query) as socket:
        start, *events = socket.turn("Italy?")
        assert (start.data["thread_id"], text(events)) == ("capitals", "Rome.")
        assert text(socket.turn({"message": "France?"})) == "Paris."
    with talk(graphs.port, query) as socket:
        assert text(socket.turn("Spain?")) == "Madrid."
    asked = [contents(upstream.request().body["messages"]) for _ in range(3)]
    assert asked == [
        ["Italy?"],
        ["Italy?", "Rome.", "France?"],
        ["Italy?", "Rome.", "France?", "Paris.", "Spain?"],
    ]


def test_without_a_thread_the_conversation_is_sent_on_to_a_new_one(graphs: Service, upstream: Upstream) -> None:
    for answer in ("Rome.", "Paris."):
        upstream.stream(*OPENAI.opening, OPENAI.token(answer), *OPENAI.ending)
    with talk(graphs.port, "model=langgraph/remembering") as socket:
        threads = {socket.turn(question)[0].data["thread_id"] for question in ("Italy?", "France?")}
    assert len(threads) == 2
    assert contents(upstream.request().body["messages"]) == ["Italy?"]
    assert contents(upstream.request().body["messages"]) == ["Italy?", "Rome.", "France?"]


def test_a_thread_of_one_frame_leaves_the_conversation_alone(graphs: Service, upstream: Upstream) -> None:
    for answer in ("Rome.", "Athens.", "Paris."):
        upstream.stream(*OPENAI.opening, OPENAI.token(answer), *OPENAI.ending)
    with talk(graphs.port, "model=langgraph/remembering") as socket:
        for frame in ("Italy?", {"message": "Greece?", "thread_id": "apart"}, "France?"):
            assert socket.turn(frame)[-1].name == "done"
    asked = [contents(upstream.request().body["messages"]) for _ in range(3)]
    assert asked == [["Italy?"], ["Greece?"], ["Italy?", "Rome.", "France?"]]


@pytest.mark.parametrize("answer", ["yes", {"really": True}, False, ["a", 1], ""], ids=json.dumps)
def test_an_interrupt_is_answered_on_the_same_socket(graphs: Service, answer: object) -> None:
    thread = f"asked-{json.dumps(answer)}"
    with talk(graphs.port, urlencode({"model": "langgraph/asking", "thread_id": thread})) as socket:
        start, *_, interrupt, done = socket.turn("Well?")
        assert (interrupt.name, interrupt.data["value"]) == ("interrupt", {"question": "Shall I?"})
        assert done.data["finish_reason"] == "interrupt"
        answered = socket.turn({"resume": answer})
        assert answered[0].data["thread_id"] == start.data["thread_id"] == thread
        assert (text(answered), answered[-1].data["finish_reason"]) == (f"You said {answer}.", "stop")
        assert socket.turn("And now?")[-1].data["finish_reason"] == "interrupt"


def test_an_interrupt_is_answered_by_the_thread_that_the_graph_has_named(graphs: Service) -> None:
    with talk(graphs.port, "model=langgraph/asking") as socket:
        start, *_ = socket.turn("Well?")
        assert socket.turn({"resume": "yes"})[-1].data["code"] == "invalid_request"
        assert text(socket.turn({"resume": "yes", "thread_id": start.data["thread_id"]})) == "You said yes."


def test_a_graphs_own_input_is_no_part_of_the_conversation(graphs: Service, upstream: Upstream) -> None:
    for answer in ("Rome.", "Oslo.", "Paris."):
        upstream.stream(*OPENAI.opening, OPENAI.token(answer), *OPENAI.ending)
    with talk(graphs.port, "model=langgraph/speaking") as socket:
        own = {"input": {"messages": [{"role": "user", "content": "Norway?"}]}}
        for frame in ("Italy?", own, "France?"):
            assert socket.turn(frame)[-1].name == "done"
    asked = [contents(upstream.request().body["messages"]) for _ in range(3)]
    assert asked == [["Italy?"], ["Norway?"], ["Italy?", "Rome.", "France?"]]


def test_a_turn_of_a_graph_that_fails_is_forgotten(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*OPENAI.opening, OPENAI.token("Rome."), *OPENAI.ending)
    with talk(graphs.port, "model=langgraph/speaking") as socket:
        failed = socket.turn({"message": "Fail", "model": "langgraph/failing"})
        assert (failed[-1].name, failed[-1].data["code"]) == ("error", "graph_failed")
        assert text(socket.turn("Italy?")) == "Rome."
    assert contents(upstream.request().body["messages"]) == ["Italy?"]
