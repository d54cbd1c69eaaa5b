"""A viewer that takes nothing: after `send_timeout` it is let go, and its upstream is ended."""

import json
import socket
from pathlib import Path

import pytest

from .client import Client, get
from .conftest import Service, Start, eventually
from .metrics import refusals_in
from .recorded import chat
from .upstream import Head, Repeat, Upstream, environ, upstream, upstream_server

__all__ = ["upstream", "upstream_server"]  # fixtures

FLOOD = chat({"content": "x" * 4000})


@pytest.fixture(scope="module")
def impatient(start_service: Start, upstream_server: Upstream) -> Service:
    return start_service(**environ(upstream_server), SIDESTREAM_SEND_TIMEOUT="0.5", SIDESTREAM_PING_INTERVAL="0")


@pytest.fixture
def flood(upstream: Upstream) -> Upstream:
    upstream.play(Head(), Repeat(FLOOD, 0))
    return upstream


def gone(viewer: socket.socket) -> bool:
    """Tell whether the service has closed its end, though the viewer has not taken what was sent (Linux)."""
    here, there = (f"0100007F:{port:04X}" for port in (viewer.getsockname()[1], viewer.getpeername()[1]))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return not any(row[1:4] == [there, here, "01"] for row in rows)  # 01: established


def counted(service: Service, before: float = 0) -> float:
    """Return how many more than `before` were let go."""
    with get(service.port, "/metrics") as client:
        return refusals_in(client.read().decode()).get(("request_timeout", "send_timeout"), 0) - before


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
def test_a_stalled_viewer_is_let_go_and_the_upstream_ended(impatient: Service, flood: Upstream, accept: str) -> None:
    before = counted(impatient)
    with Client(
        impatient.port, "GET", "/chat/stream?message=hi", headers={"Accept": accept}, receive_buffer=4096
    ) as client:
        assert flood.request().wait().ended == "aborted"
        eventually(lambda: gone(client.socket))
        assert counted(impatient, before) == 1
    assert "Traceback" not in impatient.log
    assert "ERROR" not in impatient.log


def test_a_stalled_websocket_is_let_go_and_the_upstream_ended(impatient: Service, flood: Upstream) -> None:
    before = counted(impatient)
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
    head = f"GET /ws/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n\r\n"
    text = json.dumps({"message": "hi"}).encode()
    frame = bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text  # RFC 6455, 5.2, with a mask of zeros
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", impatient.port))
        raw.sendall(head.encode())
        assert b"101" in raw.recv(64)
        raw.sendall(frame)
        assert flood.request().wait().ended == "aborted"
        eventually(lambda: gone(raw))
        assert counted(impatient, before) == 1
    assert "Traceback" not in impatient.log
    assert "ERROR" not in impatient.log
