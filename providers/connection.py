"""HTTP/1.1 to an upstream: a connection, and the pool that keeps it between answers.

A stream's way is short: what the socket has is parsed (httptools) where it arrives, and poured on in the same turn of
the loop, all at once. A general client has more to offer and takes as long over a token as all the rest of the relay;
what it is needed for, proxies and compression, is left to it (http.py). It knows nothing of what is asked or answered.
"""

import asyncio
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import httptools
from aiohappyeyeballs import AddrInfoType, start_connection

CONNECT_TIMEOUT = 10.0
# Shorter than what servers close idle connections after (uvicorn, and so vLLM, Node, llama.cpp: 5 s; vendors: more), so
# that no request goes into a connection that is being closed.
KEEPALIVE = 4.0
# A reader so far behind stops the socket: the upstream waits then.
MAX_UNREAD = 256 * 2**10
# More than this in one read is a flood: what else there is to do has its turn before the next.
TURN = 64 * 2**10
MAX_HEAD = 2**18  # bytes; no server sends a tenth of it
# A name is looked up once for all who ask for it at a time, and for so long, in seconds, after it was found.
KEEP_ADDRESSES = 10.0
# After one family of addresses the other gets its chance, and the first to answer wins (RFC 8305, 8).
HAPPY_EYEBALLS_DELAY = 0.25


class ConnectionBroken(OSError):
    """The other side hung up, or speaks no HTTP."""


class Origin(NamedTuple):
    """Where connections lead. One without `keep_alive` gets a new one for each request."""

    tls: bool
    host: str
    port: int
    keep_alive: bool = True


class Connection(asyncio.Protocol):
    """One connection, with one answer at a time: `ask`, `pour` or `read` to the end, `close`.

    `status` and `headers` are those of the answer, names in lower case. Nothing is taken for an answer that was not
    asked for: a connection on which more comes than that is broken, lest one asker get what is another's.
    """

    # fmt: off
    __slots__ = (  # noqa: RUF023  # what others read, then our own
        "status", "headers", "whole", "expiry", "_park", "_loop", "_transport", "_parser", "_unread", "_unread_bytes",
        "_waiter", "_sink", "_head_bytes", "_headed", "_framed", "_keeps", "_broken",
    )
    # fmt: on

    def __init__(self, park: Callable[["Connection"], object] | None) -> None:
        self._park = park
        self._parser = httptools.HttpResponseParser(self)
        # As lenient as other clients are: for padded sizes of chunks, and lines that end as Unix has it.
        self._parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True, lenient_optional_cr_before_lf=True)
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None
        self._broken: str | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self._reset()
        self.whole = True

    def _reset(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.whole = False  # the answer has come to its end
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._head_bytes = 0
        self._headed = False
        self._framed = False  # says where it ends; else it does by the end of the connection
        self._keeps = False

    @property
    def is_stale(self) -> bool:
        """Whether an idle connection has ended, or is about to: what it has to say unasked is nothing else."""
        if self._broken is not None or self._transport.is_closing():
            return True
        if not hasattr(select, "poll"):
            return False  # Windows
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    async def ask(self, request: bytes) -> None:
        """Send a request; return when the answer's headers are here. Raises OSError."""
        if self._broken is not None or self._transport.is_closing():
            raise ConnectionBroken(self._broken or "the connection was lost")
        self._reset()
        self._transport.write(request)
        while not self._headed:
            await self._more()

    async def read(self) -> bytes:
        """Return what has come of the answer's body, as soon as there is something; b"" at its end. Raises OSError."""
        while not self._unread:
            if self.whole:
                return b""
            await self._more()
        return self._taken()

    def _taken(self) -> bytes:
        data = self._unread[0] if len(self._unread) == 1 else b"".join(self._unread)
        self._unread.clear()
        if self._unread_bytes > MAX_UNREAD:
            self._transport.resume_reading()
        self._unread_bytes = 0
        return data

    async def pour(self, sink: Callable[[bytes], bool]) -> None:
        """Give `sink` what has come of the body, and more as it comes, at once, until that says that it has enough.

        Returns then, or at the end of the body. Raises what `sink` raises, and OSError.
        """
        if self._unread and sink(self._taken()):
            return
        self._sink = sink
        try:
            while self._sink is not None and not self.whole:
                await self._more()
        finally:
            self._sink = self._waiter = None

    async def close(self) -> None:
        """Let go of the answer: a connection may serve again where all of it was sent and read, else it is cut."""
        done = self.whole and not self._unread and self._broken is None
        if done and self._keeps and self._park and not self._transport.get_write_buffer_size():
            self._park(self)
        else:
            self.abort()

    def abort(self, why: str = "closed by us") -> None:
        self._broken = self._broken or why
        self._transport.abort()

    def _more(self) -> asyncio.Future[None]:
        """Return what is done when more has come. Raises ConnectionBroken where no more will."""
        if self._broken is not None:
            raise ConnectionBroken(self._broken)
        self._waiter = self._loop.create_future()
        return self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self.abort(type(exc).__name__)
        if not self._headed:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self.abort("an answer's head without an end")
        if self._sink is None:
            self._wake()
        elif self._waiter is not None and not self._waiter.done():
            self._pour(self._sink)

    def _pour(self, sink: Callable[[bytes], bool]) -> None:
        if self._unread:
            if self._unread_bytes > TURN:  # there may be more of it at once, and others have waited
                self._transport.pause_reading()
                self._loop.call_soon(self._go_on)
            try:
                if sink(self._taken()):
                    self._sink = None
            except Exception as exc:
                assert self._waiter
                self._waiter.set_exception(exc)
                return
        if self._sink is None or self.whole or self._broken is not None:
            self._wake()

    def _go_on(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._headed and not self._framed and exc is None and self._broken is None:
            self.whole = True
        self._broken = self._broken or "the connection was lost"
        del self._parser  # it holds us, as we hold it
        self._wake()

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.whole:
            raise ConnectionBroken("an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._headed:
            return  # a trailer
        name = name.lower()
        self.headers[name] = value
        if name == b"content-length" or (name == b"transfer-encoding" and value.lower().endswith(b"chunked")):
            self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # informational: the answer is still to come
            self.headers.clear()
            self._framed = False
            return
        self.status, self._headed = status, True

    def on_body(self, data: bytes) -> None:
        if self._unread_bytes <= MAX_UNREAD < self._unread_bytes + len(data):
            self._transport.pause_reading()
        self._unread.append(data)
        self._unread_bytes += len(data)

    def on_message_complete(self) -> None:
        if self._headed:
            self.whole = True
            self._keeps = self._parser.should_keep_alive()


class Pool:
    """The connections of a process, of which any number may be open: past a limit a stream would wait without a word.

    `tls` makes the context for those that need one, once. Belongs to one event loop.
    """

    def __init__(self, tls: Callable[[], ssl.SSLContext]) -> None:
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[Origin, dict[Connection, None]] = {}
        self._addresses: dict[tuple[str, int], asyncio.Future[Any]] = {}

    async def ask(self, origin: Origin, request: bytes) -> Connection:
        """Send a request; return when the answer's headers are here. Whoever asks closes it. Raises OSError."""
        connection = self._take(origin) or await self._connect(origin)
        try:
            await connection.ask(request)
        except BaseException:
            connection.abort()
            raise
        return connection

    def close(self) -> None:
        for idle in self._idle.values():
            for connection in list(idle):
                connection.abort()

    def _take(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection, _ = idle.popitem()  # the one used last: the others may expire
            assert connection.expiry
            connection.expiry.cancel()
            if not connection.is_stale:
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: Origin) -> Connection:
        loop = asyncio.get_running_loop()
        tls = None
        if origin.tls:
            tls = self._tls = self._tls or self._make_tls()

        def park(connection: Connection) -> None:
            idle = self._idle.setdefault(origin, {})
            idle[connection] = None
            connection.expiry = loop.call_later(KEEPALIVE, self._expire, idle, connection)

        async with asyncio.timeout(CONNECT_TIMEOUT):
            addresses = await self._look_up(origin.host, origin.port)
            try:
                plug = await start_connection(addresses, happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY, interleave=1)
            except (OSError, RuntimeError) as exc:  # uvloop's word for a connection that is gone is RuntimeError
                self._addresses.pop((origin.host, origin.port), None)
                raise ConnectionBroken("there is no way there") from exc
            _, connection = await loop.create_connection(  # which owns the socket now
                lambda: Connection(park if origin.keep_alive else None),
                sock=plug,
                ssl=tls,
                server_hostname=origin.host if tls else None,
            )
        return connection

    async def _look_up(self, host: str, port: int) -> list[AddrInfoType]:
        found = self._addresses.get((host, port))
        if found is None:
            loop = asyncio.get_running_loop()
            found = asyncio.ensure_future(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            self._addresses[host, port] = found

            def forget(found: asyncio.Future[Any]) -> None:
                failed = found.cancelled() or found.exception() is not None
                loop.call_later(0 if failed else KEEP_ADDRESSES, self._addresses.pop, (host, port), None)

            found.add_done_callback(forget)
        return cast(list[AddrInfoType], await asyncio.shield(found))

    def _expire(self, idle: dict[Connection, None], connection: Connection) -> None:
        idle.pop(connection, None)
        connection.abort()
