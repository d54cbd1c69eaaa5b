"""SIGTERM and SIGINT with streams open: each viewer gets its terminal event and a whole body, and the process ends.

Services of tests end their runs at once (tests/conftest.py); here some may take their time.
"""

import asyncio
import json
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from streaming.events import Token
from streaming.request import Emit, ProviderSettings, RunRequest

from . import nginx
from .client import DEADLINE, Client, get, post
from .conftest import Start, eventually
from .recorded import OPENAI
from .resource import refused
from .sockets import talk
from .test_deploy import proxy_before
from .upstream import END, PAUSE, Exchange, Head, Upstream, environ

pytest_plugins = ["tests.upstream"]

SIGNALS = [signal.SIGTERM, signal.SIGINT]
SCRIPTED = {
    "SIDESTREAM_MODEL": "scripted/hello"
}  # the embedded model, which takes its time to begin and to end, is not needed


@pytest.mark.parametrize("sign", SIGNALS)
@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
@pytest.mark.parametrize("script", ["silent", "stall"])
def test_a_viewer_gets_its_end(start_service: Start, sign: int, accept: str, script: str) -> None:
    service = start_service(**SCRIPTED)
    with Client(
        service.port, "GET", f"/chat/stream?message=hi&model=scripted/{script}", headers={"Accept": accept}
    ) as client:
        client.read_on(lambda body: b"start" in body)
        begun = time.monotonic()
        service.process.send_signal(sign)
        last = client.read().strip().split(b"\n")[-1]
        service.stop()
        assert time.monotonic() - begun < 5
    data = json.loads(last.removeprefix(b"data: "))
    data = data.get("data", data)
    assert (data["done"], data["reason"]) == (True, "draining")
    assert "Traceback" not in service.log
    assert "ERROR" not in service.log


def test_who_has_not_sent_all_of_a_request_is_told_so(start_service: Start) -> None:
    service = start_service(**SCRIPTED)
    head = "POST /chat/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
    with socket.create_connection(("127.0.0.1", service.port), DEADLINE) as raw, raw.makefile("rb") as answer:
        raw.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert answer.readline() == b"HTTP/1.1 100 Continue\r\n", "it reads the body now"
        service.process.send_signal(signal.SIGTERM)
        told = answer.read()
        assert b"HTTP/1.1 503 " in told
        assert b'"shutting_down"' in told
        assert service.process.wait(DEADLINE) == 0
    assert "Traceback" not in service.log


def test_who_leaves_a_turn_meanwhile_is_no_fault(start_service: Start) -> None:
    service = start_service(**LONG)
    with talk(service.port, "model=scripted/silent") as stays, talk(service.port, "model=scripted/silent") as leaves:
        for client in (stays, leaves):
            client.say("Hi")
            assert client.next().name == "start"
        service.process.send_signal(signal.SIGTERM)
        eventually(lambda: ready(service.port) == 503)
        leaves.connection.socket.close()
        eventually(lambda: "reason=disconnected" in service.log)
        service.process.send_signal(signal.SIGTERM)
        assert stays.next().data["reason"] == "draining"
        assert service.process.wait(DEADLINE) == 0
    assert "Traceback" not in service.log
    assert "never retrieved" not in service.log


def test_a_second_signal_that_finds_it_late_costs_no_websocket_its_end(start_service: Start) -> None:
    """The server looks ten times a second whether it shall stop: here it does so in the turn of the second signal."""
    service = start_service(**LONG)
    with talk(service.port, "model=scripted/silent") as client:
        client.say("Hi")
        assert client.next().name == "start"
        service.process.send_signal(signal.SIGTERM)
        eventually(lambda: ready(service.port) == 503)
        service.process.send_signal(signal.SIGSTOP)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)  # what makes it late
        service.process.send_signal(signal.SIGCONT)
        assert client.next().data["reason"] == "draining"
        assert service.process.wait(DEADLINE) == 0


@pytest.mark.parametrize("sign", SIGNALS)
def test_a_websocket_gets_its_end(start_service: Start, sign: int) -> None:
    service = start_service(**SCRIPTED)
    with connect(f"ws://127.0.0.1:{service.port}/ws/chat?model=scripted/silent", proxy=None) as turn:
        turn.send("hi")
        assert json.loads(turn.recv(DEADLINE))["event"] == "start"
        service.process.send_signal(sign)
        assert json.loads(turn.recv(DEADLINE))["data"]["reason"] == "draining"
        service.stop()
    assert "Traceback" not in service.log


def test_two_workers_end_their_streams_too(start_service: Start) -> None:
    service = start_service("--workers", "2", **SCRIPTED)
    with Client(service.port, "GET", "/chat/stream?message=hi&model=scripted/silent") as client:
        client.until("start")
        service.process.send_signal(signal.SIGTERM)
        assert client.until("cancelled").data["reason"] == "draining"
        assert service.stop() == 0


LONG = {"SIDESTREAM_DRAIN_TIMEOUT": "60", **SCRIPTED}


def begin(upstream: Upstream, port: int) -> tuple[Client, Exchange]:
    """Begin a run that waits for the test's word before its last; return who follows it and what the upstream has."""
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("One"), PAUSE, OPENAI.token(" two"), *OPENAI.ending, END)
    client = get(port, "/openai/stream", message="Hi")
    client.until("token")
    return client, upstream.request()


def ready(port: int) -> int:
    with get(port, "/readyz") as client:
        return client.head()[0]


@pytest.mark.parametrize("sign", SIGNALS)
def test_runs_may_end_while_no_others_begin(start_service: Start, upstream: Upstream, sign: int) -> None:
    service = start_service(**environ(upstream), **LONG, SIDESTREAM_MAX_RUNS="2")
    follower, exchange = begin(upstream, service.port)
    with (
        follower as client,
        talk(service.port) as idle,
        talk(service.port, "model=scripted/silent") as talking,
    ):
        talking.say("Hi")
        assert talking.next().name == "start"
        with get(service.port, "/chat/stream", message="hi") as queued:
            queued.until("queued")
            service.process.send_signal(sign)
            assert queued.until("cancelled").data["reason"] == "draining", "nobody was asked yet"
        assert ready(service.port) == 503, "who asks a second time finds it so at once"
        for answer in (post(service.port, "/runs", message="hi"), get(service.port, message="hi")):
            assert refused(answer)[:2] == (503, "shutting_down")
            assert answer.head()[1]["retry-after"] == "1"
        with pytest.raises(ConnectionClosed):
            idle.next()
        talking.say({"type": "stop"})
        assert talking.next().data["reason"] == "requested"
        with pytest.raises(ConnectionClosed):
            talking.next()
        assert (idle.connection.close_code, talking.connection.close_code) == (1012, 1012)
        assert service.process.poll() is None
        exchange.release()
        assert client.until("done").data["finish_reason"] == "stop"
        assert client.next() is None
        assert service.process.wait(DEADLINE) == 0
    assert "Traceback" not in service.log


def test_what_has_not_ended_in_time_is_ended(start_service: Start, upstream: Upstream) -> None:
    service = start_service(**environ(upstream), SIDESTREAM_DRAIN_TIMEOUT="0.5")
    follower, exchange = begin(upstream, service.port)
    with follower as client:
        begun = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert client.until("cancelled").data["reason"] == "draining"
        assert time.monotonic() - begun >= 0.5
        assert client.next() is None
        assert exchange.wait().ended == "aborted"
        assert service.process.wait(DEADLINE) == 0


@pytest.mark.parametrize("signs", [SIGNALS, SIGNALS[::-1], SIGNALS[:1] * 2, SIGNALS[1:] * 2], ids=str)
def test_a_second_signal_ends_it_at_once(start_service: Start, signs: list[int]) -> None:
    service = start_service(**LONG)
    with get(service.port, "/chat/stream", message="hi", model="scripted/silent") as client:
        client.until("start")
        service.process.send_signal(signs[0])
        eventually(lambda: ready(service.port) == 503)
        begun = time.monotonic()
        service.process.send_signal(signs[1])
        assert client.until("cancelled").data["reason"] == "draining"
        assert client.next() is None
        assert service.process.wait(DEADLINE) == 0
        assert time.monotonic() - begun < 5
    assert "Traceback" not in service.log


class NeverCloses:
    """A provider that does not let go."""

    def __init__(self, settings: ProviderSettings, upstream: Any) -> None:
        pass

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        emit([Token("One")])
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()


@pytest.mark.parametrize("signals", [1, 2])
def test_a_provider_that_does_not_let_go_holds_nobody_up(start_service: Start, signals: int) -> None:
    table = {"mine": {"use": "tests.test_drain:NeverCloses", "models": ["m"]}}
    service = start_service(SIDESTREAM_PROVIDERS=json.dumps(table), **SCRIPTED)
    with get(service.port, "/mine/stream", message="hi") as client:
        client.until("token")
        for _ in range(signals):
            service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(DEADLINE) == 0
    assert "what is open does not close" in service.log


def test_nor_does_a_client_that_takes_nothing(start_service: Start) -> None:
    service = start_service(**SCRIPTED)
    with Client(service.port, "GET", "/chat/stream?message=hi&model=scripted/flood", receive_buffer=4096) as client:
        client.take(1000)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(DEADLINE) == 0


def test_behind_nginx_a_stream_comes_to_its_end_too(start_service: Start, upstream: Upstream, tmp_path: Path) -> None:
    service = start_service(**environ(upstream), **LONG)
    with proxy_before(nginx, service.port, tmp_path / "nginx") as proxy:
        follower, exchange = begin(upstream, proxy.port)
        with follower as client:
            service.process.send_signal(signal.SIGTERM)
            eventually(lambda: ready(proxy.port) == 503)
            exchange.release()
            assert client.until("done").data["finish_reason"] == "stop"
            assert client.next() is None
        assert service.process.wait(DEADLINE) == 0
