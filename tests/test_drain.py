"""SIGTERM and SIGINT with streams open: each viewer gets its terminal event and a whole body, and the process ends."""

import json
import signal
import time

import pytest
from websockets.sync.client import connect

from .client import DEADLINE, Client
from .conftest import Start

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("sign", SIGNALS)
@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
@pytest.mark.parametrize("script", ["silent", "stall"])
def test_a_viewer_gets_its_end(start_service: Start, sign: int, accept: str, script: str) -> None:
    service = start_service()
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


@pytest.mark.parametrize("sign", SIGNALS)
def test_a_websocket_gets_its_end(start_service: Start, sign: int) -> None:
    service = start_service()
    with connect(f"ws://127.0.0.1:{service.port}/ws/chat?model=scripted/silent", proxy=None) as socket:
        socket.send("hi")
        assert json.loads(socket.recv(DEADLINE))["event"] == "start"
        service.process.send_signal(sign)
        assert json.loads(socket.recv(DEADLINE))["data"]["reason"] == "draining"
        service.stop()
    assert "Traceback" not in service.log


def test_two_workers_end_their_streams_too(start_service: Start) -> None:
    service = start_service("--workers", "2")
    with Client(service.port, "GET", "/chat/stream?message=hi&model=scripted/silent") as client:
        client.until("start")
        service.process.send_signal(signal.SIGTERM)
        assert client.until("cancelled").data["reason"] == "draining"
        assert service.stop() == 0
