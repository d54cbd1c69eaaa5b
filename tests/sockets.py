"""WebSockets as their clients see them: the `websockets` library's, raw ones, and one to an app driven by hand."""

import asyncio
import json
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal

from starlette.types import ASGIApp, Message
from websockets.sync.client import ClientConnection, connect

from .client import DEADLINE, Client, Event
from .recorded import TERMINAL

STOP = {"type": "stop"}
How = Literal["close", "FIN", "RST"]
WAYS: tuple[How, ...] = ("close", "FIN", "RST")


def event_of(frame: str | bytes) -> Event:
    """Read a frame. A refusal is an `error` without an id; of nothing else it may be lacking."""
    told = json.loads(frame)
    assert list(told) in (["event", "id", "data"], ["event", "data"]), told
    assert "id" in told or told["event"] == "error", told
    return Event(told["event"], told.get("id", ""), told["data"])


def text_of(frame: object) -> str:
    return frame if isinstance(frame, str) else json.dumps(frame)


class Socket:
    """One conversation, over `connection`."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def say(self, frame: object) -> None:
        """Send a frame: bytes and text as they are, anything else as JSON."""
        self.connection.send(frame if isinstance(frame, bytes) else text_of(frame))

    def next(self) -> Event:
        return event_of(self.connection.recv(DEADLINE))

    def rest(self) -> list[Event]:
        """Return what comes, up to the end of the turn or a refusal."""
        events = [self.next()]
        while events[-1].name not in TERMINAL:
            events.append(self.next())
        return events

    def turn(self, frame: object) -> list[Event]:
        """Send a frame, and return what comes of it."""
        self.say(frame)
        return self.rest()

    def until(self, name: str) -> Event:
        while (event := self.next()).name != name:
            pass
        return event

    def lose(self, how: How) -> None:
        """Close the socket, or lose its connection, in order or by a reset."""
        if how == "close":
            self.connection.close()
            return
        if how == "RST":
            self.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.connection.socket.shutdown(socket.SHUT_RD if how == "RST" else socket.SHUT_RDWR)
        self.connection.recv_events_thread.join(DEADLINE)  # it closes the connection that has ended for it


@contextmanager
def talk(port: int, query: str = "", **options: Any) -> Iterator[Socket]:
    """Open a socket, and close it. Unread frames do not hold up its closing."""
    address = f"ws://127.0.0.1:{port}/ws/chat?{query}"
    with connect(address, proxy=None, max_queue=None, max_size=None, **options) as connection:
        yield Socket(connection)


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",  # RFC 6455, 1.3
    "Sec-WebSocket-Version": "13",
}


def masked(payload: bytes, opcode: int = 1) -> bytes:
    """Return a client's frame, with a mask of zeros (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


class RawSocket(Client):
    """One that takes just so many bytes, and answers no ping. Use it in a `with`."""

    def __init__(self, port: int, query: str = "", *, receive_buffer: int = 0) -> None:
        super().__init__(port, "GET", f"/ws/chat?{query}", headers=UPGRADE, receive_buffer=receive_buffer)
        while b"\r\n\r\n" not in self.raw:
            assert len(self.take(len(self.raw) + 1)) < 2000, self.raw
        assert self.head()[0] == 101, self.raw

    def say(self, frame: object) -> None:
        self.send(masked(text_of(frame).encode()))

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        """The frames that have come whole, each its opcode and what it holds."""
        found, rest = [], self.raw.partition(b"\r\n\r\n")[2]
        while len(rest) >= 2:
            size, start = rest[1], 2
            if size > 125:
                start = 4 if size == 126 else 10
                size = int.from_bytes(rest[2:start], "big")
            if len(rest) < start + size:
                break
            found.append((rest[0] & 15, rest[start : start + size]))
            rest = rest[start + size :]
        return found

    @property
    def events(self) -> list[Event]:
        return [event_of(data) for opcode, data in self.frames if opcode == 1]

    @property
    def closed_by(self) -> int | None:
        """The code the service closes the socket with, once it has."""
        return next((int.from_bytes(data[:2], "big") for opcode, data in self.frames if opcode == 8), None)

    def read_to_end(self) -> None:
        with suppress(ConnectionResetError):
            while self._more():
                pass


class HandSocket:
    """A socket to an app, whose `receive` and `send` are the test's own; `async with` opens it, and closes it.

    As a server's it has a `transport`, by which the app may hang up.
    """

    def __init__(self, app: ASGIApp, query: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.sent: list[Message] = []
        self.transport = self
        self.hung_up = False
        self._app = app
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._incoming.put_nowait({"type": "websocket.connect"})
        self._grown = asyncio.Condition()
        self._open = asyncio.Event()
        self._open.set()
        self._room: int | None = None
        self._scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": "/ws/chat",
            "raw_path": b"/ws/chat",
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (name.lower().encode(), value.encode()) for name, value in {"host": "test", **(headers or {})}.items()
            ],
            "server": ("test", 80),
            "client": ("127.0.0.1", 50000),
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
        }

    async def __aenter__(self) -> "HandSocket":
        self.task = asyncio.ensure_future(self._app(self._scope, self._receive, self._send))
        await self._until(lambda: bool(self.sent))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.go_on()
        self.close()
        if exc[0] is not None:
            self.task.cancel()
            await asyncio.wait((self.task,))
        else:
            await self.task

    async def _receive(self) -> Message:
        return await self._incoming.get()

    async def _send(self, message: Message) -> None:
        await self._open.wait()
        self.sent.append(message)
        if self._room is not None and (left := self._room - 1) >= 0:
            self._room = left
            if not left:
                self.hold()
        async with self._grown:
            self._grown.notify_all()

    def abort(self) -> None:
        """Drop the connection: what the service does to its transport."""
        self.hung_up = True
        self.close(1006)

    def hold(self) -> None:
        """Take nothing more, as a client that does not read."""
        self._open.clear()

    def go_on(self, frames: int | None = None) -> None:
        """Take what comes; only so many frames, where that is said."""
        self._room = frames
        self._open.set()

    def say(self, *frames: object) -> None:
        """Send frames: bytes and text as they are, anything else as JSON."""
        for frame in frames:
            held = {"bytes": frame} if isinstance(frame, bytes) else {"text": text_of(frame)}
            self._incoming.put_nowait({"type": "websocket.receive", **held})

    def close(self, code: int = 1000) -> None:
        self._incoming.put_nowait({"type": "websocket.disconnect", "code": code})

    async def _until(self, holds: Any) -> None:
        async def wait() -> None:
            async with self._grown:
                await self._grown.wait_for(holds)

        await asyncio.wait((self.task, waiting := asyncio.ensure_future(wait())), return_when="FIRST_COMPLETED")
        if waiting.done():
            return waiting.result()
        waiting.cancel()
        raise AssertionError(f"it does not come: {self.sent}")

    async def until(self, name: str, times: int = 1) -> Event:
        """Return the last event of this name once there are so many."""
        await self._until(lambda: [event.name for event in self.events].count(name) >= times)
        return [event for event in self.events if event.name == name][times - 1]

    async def until_turns(self, number: int) -> None:
        """Return once so many turns have ended."""
        await self._until(lambda: sum(event.name in TERMINAL and event.id != "" for event in self.events) >= number)

    @property
    def events(self) -> list[Event]:
        return [event_of(message["text"]) for message in self.sent if message["type"] == "websocket.send"]

    @property
    def refused_with(self) -> tuple[int, Any] | None:
        """The status and the problem that the handshake was refused with; None where it was accepted."""
        if self.sent[0]["type"] == "websocket.accept":
            return None
        body = b"".join(message["body"] for message in self.sent[1:])
        return self.sent[0]["status"], json.loads(body)
