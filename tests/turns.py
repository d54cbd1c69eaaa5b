"""A TCP relay before replicas, in a thread of the tests: each connection goes to the next of them, in turn.

What one side does the other side sees at once: bytes as they are, an end in order, a reset. What is between them is
little, so that who takes nothing holds up who sends. A replica that is not there is passed over.
"""

import asyncio
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

from .client import DEADLINE

How = Literal["FIN", "RST"]
BUFFER = 2**16  # of a socket, bytes; by themselves they grow to megabytes


class Turns:
    """Use it in a `with`. `taken` are the replicas that the connections went to, by their places in `ports`.

    Where each *request* shall go to the next, clients that keep connections are made to connect anew: in front of HTTP
    alone. With `tls` clients speak TLS, and the replicas do not.
    """

    def __init__(
        self,
        ports: Sequence[int],
        *,
        each: Literal["connection", "request"] = "connection",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._at = socket.socket()
        self._at.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)  # those it accepts have it from here
        self._at.bind(("127.0.0.1", 0))
        self.port: int = self._at.getsockname()[1]
        self.taken: list[int] = []
        self._ports = ports
        self._turn = 0
        self._change = _alone if each == "request" else bytes
        self._tls = tls
        self._open: list[tuple[int, _Side, _Side]] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="turns")

    def __enter__(self) -> "Turns":
        self._thread.start()
        assert self._listens.wait(DEADLINE)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE)

    def next(self, replica: int) -> None:
        """Say whose turn it is."""
        self._turn = replica

    def cut(self, how: How, replica: int | None = None) -> None:
        """Close the connections that are open, all or those to one; return when both their sides are closed."""
        asyncio.run_coroutine_threadsafe(self._cut(how, replica), self._loop).result(DEADLINE)

    def hold(self) -> None:
        """Pass on nothing from now on, as a network that is gone: who connects, sends or goes sees nothing amiss."""
        self._loop.call_soon_threadsafe(self._hold)

    def _hold(self) -> None:
        self._passes.clear()
        for _, *both in self._open:
            for side in both:
                side.hold()

    def go_on(self) -> None:
        """Pass on again, first what was held back."""
        self._loop.call_soon_threadsafe(self._go_on)

    def _go_on(self) -> None:
        self._passes.set()
        for _, *both in self._open:
            for side in both:
                side.go_on()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._passes = asyncio.Event()
        self._passes.set()
        server = await self._loop.create_server(lambda: _Side(self._came), sock=self._at, ssl=self._tls, backlog=1000)
        self._listens.set()
        await self._stop.wait()
        server.close()
        await self._cut("FIN", None)

    async def _cut(self, how: How, replica: int | None) -> None:
        sides = [side for number, *both in self._open for side in both if replica in (None, number)]
        for side in sides:
            side.close(how)
        await asyncio.gather(*(side.lost.wait() for side in sides))

    def _came(self, client: "_Side") -> None:
        task = self._loop.create_task(self._lead(client))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _lead(self, client: "_Side") -> None:
        try:
            number, replica = await self._connect()
        except OSError:
            client.close("RST")
            return
        await self._passes.wait()
        pair = number, client, replica
        self._open.append(pair)
        client.pass_to(replica, self._change)
        replica.pass_to(client, bytes)
        await asyncio.gather(client.lost.wait(), replica.lost.wait())
        self._open.remove(pair)

    async def _connect(self) -> "tuple[int, _Side]":
        for _ in self._ports:
            number, self._turn = self._turn, (self._turn + 1) % len(self._ports)
            with suppress(ConnectionRefusedError):
                connection = await self._connected(self._ports[number])
                self.taken.append(number)
                _, side = await self._loop.create_connection(_Side, sock=connection)
                return number, side
        raise ConnectionRefusedError

    async def _connected(self, port: int) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        connection.setblocking(False)
        try:
            await self._loop.sock_connect(connection, ("127.0.0.1", port))
        except OSError:
            connection.close()
            raise
        return connection


class _Side(asyncio.Protocol):
    """One side's connection. It is not read until there is the other."""

    def __init__(self, came: "Callable[[_Side], object]" = bool) -> None:
        self.lost = asyncio.Event()
        self._came = came
        self._other: _Side | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        transport.pause_reading()
        transport.set_write_buffer_limits(1)  # by 0 TLS would stand still from the start
        self._came(self)

    def hold(self) -> None:
        self._transport.pause_reading()

    def go_on(self) -> None:
        self._transport.resume_reading()

    def pass_to(self, other: "_Side", change: Callable[[bytes], bytes]) -> None:
        """Begin to read, and pass on what comes; the first of it is changed."""
        self._other, self._change = other, change
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        assert self._other
        self._other._transport.write(self._change(data))
        self._change = bytes

    def pause_writing(self) -> None:
        assert self._other
        self._other._transport.pause_reading()

    def resume_writing(self) -> None:
        assert self._other
        self._other._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        if self._other:
            self._other.close("RST" if exc else "FIN")

    def close(self, how: How) -> None:
        if how == "FIN":
            self._transport.close()
        elif not self._transport.is_closing():
            linger = self._transport.get_extra_info("socket")
            linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()


def _alone(request: bytes) -> bytes:
    """Ask the replica to close the connection behind its answer, unless it is to become a WebSocket."""
    head, blank, body = request.partition(b"\r\n\r\n")
    if not blank or re.search(rb"(?i)\r\nupgrade:", head):
        return request
    return re.sub(rb"(?i)\r\nconnection:[^\r\n]*", b"", head) + b"\r\nConnection: close" + blank + body
