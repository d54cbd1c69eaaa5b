"""The soak's HTTP, by hand: a library hides when exactly a connection ends, and how."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

from history import Event

Headers = dict[str, str]


class Cut(Exception):
    """The connection ended before the answer did, or the answer in the midst of an event."""


class Client:
    """One request, and its answer as it comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.status = 0
        self.headers: Headers = {}
        self.whole = False
        self.pace: Callable[[], tuple[int, float]] = lambda: (65536, 0.0)  # the most to read next, after how long
        self._reader = reader
        self._writer = writer
        self._raw = b""
        self._body = b""
        self._left: int | None = None  # of a body or a chunk

    @classmethod
    async def ask(
        cls, port: int, method: str, path: str, headers: Headers, body: bytes, *, slow: bool = False, lacking: int = 0
    ) -> "Client":
        """Send a request, of whose body so many bytes are `lacking`."""
        sock = socket.socket()
        sock.setblocking(False)
        if slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        client = cls(*await asyncio.open_connection(sock=sock, limit=1024 if slow else 2**16))
        lines = [f"{method} {path} HTTP/1.1", "Host: soak", *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join([*lines, f"Content-Length: {len(body) + lacking}", "", ""])
        client._writer.write(head.encode() + body)
        return client

    def leave(self, *, reset: bool) -> None:
        """Hang up, in order or by a reset."""
        if reset and (sock := self._writer.get_extra_info("socket")) is not None:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
        elif self._writer.can_write_eof():
            with suppress(OSError):
                self._writer.write_eof()  # a FIN, before the reset that what is unread makes of an end
        self._writer.close()

    async def head(self) -> int:
        with _cuts():
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
        self._chunked = self.headers.get("transfer-encoding") == "chunked"
        if not self._chunked:
            self._left = int(self.headers.get("content-length", 0))
            self.whole = not self._left
        return self.status

    async def read(self) -> bytes:
        """Return all of the body."""
        while not self.whole:
            await self._more()
        return self._body

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events as they come, to the end of the body. Raises Cut where there is none."""
        lines = "ndjson" in self.headers["content-type"]
        end = b"\n" if lines else b"\n\n"
        while True:
            *blocks, self._body = self._body.split(end)
            for block in blocks:
                if event := (_line if lines else _block)(block):
                    yield event
            if self.whole:
                if self._body:
                    raise Cut
                return
            await self._more()

    async def _more(self) -> None:
        most, wait = self.pace()
        if wait:
            await asyncio.sleep(wait)
        with _cuts():
            data = await self._reader.read(most)
        if not data:
            raise Cut
        if not self._chunked:
            self._body += data
            self.whole = len(self._body) >= (self._left or 0)
            return
        self._raw += data
        while self._raw and not self.whole:
            if self._left is None:
                size, end, rest = self._raw.partition(b"\r\n")
                if not end:
                    return
                self._raw, self._left = rest, int(size, 16)
            if not self._left:
                self.whole = True
            elif len(self._raw) < self._left + 2:
                return
            else:
                self._body += self._raw[: self._left]
                self._raw, self._left = self._raw[self._left + 2 :], None


@contextmanager
def _cuts() -> Iterator[None]:
    """Raise what a connection that ends too soon raises, as one."""
    try:
        yield
    except TimeoutError:
        raise
    except (OSError, asyncio.IncompleteReadError) as exc:
        raise Cut from exc


def _block(block: bytes) -> Event | None:
    fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if line and not line.startswith(":"))
    if "data" not in fields:
        return None
    return Event(fields["event"], fields["id"], json.loads(fields["data"]))


def _line(line: bytes) -> Event | None:
    if not line:
        return None
    told = json.loads(line)
    return Event(told["event"], told["id"], told["data"])
