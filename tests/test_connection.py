"""HTTP/1.1 to an upstream over real sockets: each test plays the upstream, byte by byte, on both event loops.

Whatever a test does: no callback of a loop failed, no task is left, and no socket is left open.
"""

import asyncio
import gc
import gzip
import json
import os
import re
import resource
import select
import socket
import ssl
import struct
import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx2
import pytest
import uvloop

from providers import connection as transport
from providers.connection import MAX_UNREAD, TURN, Connection, ConnectionBroken, Origin, Pool
from providers.http import Upstreams
from providers.openai import OpenAI
from streaming.errors import UpstreamError
from streaming.events import Finish, Token
from streaming.request import Message, ProviderSettings, RunRequest

from .client import DEADLINE
from .recorded import OPENAI as CHAT
from .test_upstreams import SELF_SIGNED
from .upstream import OPENAI_KEY

T = TypeVar("T")
Body = Callable[[Connection], Awaitable[bytes]]
Run = Callable[[Coroutine[Any, Any, T]], T]

REQUEST = b"POST / HTTP/1.1\r\nHost: upstream\r\nContent-Length: 2\r\n\r\nHi"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
# Each says "hello"; those that say themselves where they end, and whose connection may serve again.
FRAMED = {
    "length": HELLO,
    "chunks": CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
    "extensions": CHUNKED + b'3;a\r\nhel\r\n2;b=c;d="e"\r\nlo\r\n0;f\r\n\r\n',
    "trailers": CHUNKED + b"5\r\nhello\r\n0\r\nDigest: none\r\nX-Cost: 17\r\n\r\n",
    "spelt otherwise": OK + b"TRANSFER-ENCODING: Chunked\r\n\r\n05\r\nhello\r\n000\r\n\r\n",
    "padded": CHUNKED + b"5  \r\nhello\r\n0  \r\n\r\n",
    "Unix lines": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "empty header": OK + b"X-Empty:\r\nContent-Length: 5\r\n\r\nhello",
    "offers an upgrade": OK + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 5\r\n\r\nhello",
    "100 before": b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO,
    "103 before": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Hint: 1\r\n\r\n" * 2 + HELLO,
    "HTTP/1.0 that stays": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
}
UNFRAMED = {
    "HTTP/1.1": OK + b"Connection: close\r\n\r\nhello",
    "unsaid": OK + b"\r\nhello",
    "103 with a length": b"HTTP/1.1 103 Hm\r\nContent-Length: 0\r\n\r\n" + OK + b"\r\nhello",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
}
EMPTY = {
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "no length": OK + b"Content-Length: 0\r\n\r\n",
    "no chunk": CHUNKED + b"0\r\n\r\n",
}
GARBAGE = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "half a status": b"HTTP/1.1 2x0 OK\r\n\r\n",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "length and chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "agreed to be another": b"HTTP/1.1 101 Switch\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello",
}


def by_name(cases: dict[str, bytes]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("answer", cases.values(), ids=cases)


def sockets() -> set[str]:
    """The sockets this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {name for name in found if name.startswith("socket:")}


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run[Any]:
    """Runs a test on each loop, under a deadline, and sees to it that nothing is left of it."""

    def run(test: Coroutine[Any, Any, T]) -> T:
        async def alone() -> T:
            async with asyncio.timeout(DEADLINE):
                result = await test
                while asyncio.all_tasks() != {asyncio.current_task()}:  # a server's own task may take a turn to end
                    await asyncio.sleep(0)
                return result

        complaints: list[dict[str, Any]] = []
        before = sockets()
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
            result = runner.run(alone())
        assert complaints == []
        assert sockets() <= before
        return result

    return run


class Peer:
    """The upstream's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """Return the next request. Raises asyncio.IncompleteReadError where the connection was closed instead."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", head)
        return head + await self.reader.readexactly(int(length[1]) if length else 0)

    async def say(self, *data: bytes) -> None:
        """Send each of these in a write of its own, to be read as it comes."""
        for part in data:
            self.writer.write(part)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await self.writer.drain()

    async def closed(self) -> None:
        """Return once the other side has closed."""
        with suppress(ConnectionError):
            while await self.reader.read(2**16):
                pass

    def close(self, *, reset: bool = False) -> None:
        if reset:
            plug = self.writer.get_extra_info("socket")
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        self.writer.close()


class Upstream:
    """A listening socket, and the pool that asks there."""

    def __init__(self, pool: Pool, origin: Origin, came: asyncio.Queue[Peer]) -> None:
        self.pool = pool
        self.origin = origin
        self.accept = came.get
        self._came = came

    @property
    def url(self) -> str:
        host = f"[{self.origin.host}]" if ":" in self.origin.host else self.origin.host
        return f"http{'s' if self.origin.tls else ''}://{host}:{self.origin.port}/v1"

    def ask(self, request: bytes = REQUEST) -> asyncio.Task[Connection]:
        return asyncio.create_task(self.pool.ask(self.origin, request))

    async def exchange(self, *answer: bytes) -> tuple[Connection, Peer]:
        """Ask on a new connection; return when the answer's head is there."""
        asked, came = self.ask(), asyncio.create_task(self.accept())
        await asyncio.wait((asked, came), return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            came.cancel()
            await asked
        peer = await came
        assert await peer.request() == REQUEST
        await peer.say(*answer)
        return await asked, peer

    async def asks_anew(self) -> None:
        """The next request comes on a new connection."""
        connection, peer = await self.exchange(HELLO)
        assert await whole(connection) == b"hello"
        peer.close()

    async def asks_at(self, peer: Peer) -> None:
        """The next request comes on this connection again, and is answered well."""
        asked = self.ask()
        assert await peer.request() == REQUEST
        await peer.say(HELLO)
        assert await whole(await asked) == b"hello"
        assert self._came.empty()


@asynccontextmanager
async def upstream(
    host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, *, keep_alive: bool = True
) -> AsyncIterator[Upstream]:
    came: asyncio.Queue[Peer] = asyncio.Queue()
    peers: list[Peer] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(Peer(reader, writer))
        came.put_nowait(peers[-1])

    server = await asyncio.start_server(accept, host, 0, ssl=tls, backlog=2000)
    pool = Pool(httpx2.create_ssl_context)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Upstream(pool, Origin(tls is not None, "localhost" if tls else host, port, keep_alive), came)
    finally:
        pool.close()
        server.close()
        for peer in peers:
            peer.writer.transport.abort()
            with suppress(OSError):
                await peer.writer.wait_closed()


async def read(connection: Connection) -> bytes:
    """Read to the end. Raises ConnectionBroken where it is not the answer's end."""
    got = b""
    while data := await connection.read():
        got += data
    return got


async def poured(connection: Connection) -> bytes:
    """The same by the other way to have the body."""
    got = bytearray()
    await connection.pour(lambda data: bool(got.extend(data)))
    return bytes(got)


async def whole(connection: Connection, body: Body = poured) -> bytes:
    """Read to the end, and let go of the connection."""
    got = await body(connection)
    await connection.close()
    return got


by_both_ways = pytest.mark.parametrize("body", [read, poured])


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate of localhost, which is trusted."""
    pem = tmp_path / "localhost.pem"
    pem.write_text(SELF_SIGNED)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


@pytest.fixture(params=[False, True], ids=["TCP", "TLS"])
def tls(request: pytest.FixtureRequest, certificate: ssl.SSLContext) -> ssl.SSLContext | None:
    return certificate if request.param else None


# --- what an answer is ------------------------------------------------------------------------------------------------


@by_both_ways
@by_name(FRAMED)
def test_an_answer_says_the_same_wherever_it_is_split(run: Run[None], answer: bytes, body: Body) -> None:
    async def test() -> None:
        async with upstream() as server:
            connection, peer = await server.exchange(answer)
            assert (connection.status, await whole(connection, body)) == (200, b"hello")
            parts = [[answer[:at], answer[at:]] for at in range(1, len(answer))]
            for split in [*parts, [bytes([byte]) for byte in answer]]:
                asked = server.ask()
                assert await peer.request() == REQUEST
                await peer.say(*split)
                connection = await asked
                assert (connection.status, await whole(connection, body)) == (200, b"hello")
                assert connection.headers.keys().isdisjoint({b"x-hint", b"x-cost"})

    run(test())


@by_both_ways
@by_name(UNFRAMED)
def test_an_answer_that_ends_with_its_connection_is_whole(run: Run[None], answer: bytes, body: Body) -> None:
    async def test() -> None:
        async with upstream() as server:
            for at in range(1, len(answer)):
                asked = server.ask()
                peer = await server.accept()
                await peer.request()
                await peer.say(answer[:at], answer[at:])
                peer.close()
                assert await whole(await asked, body) == b"hello"

    run(test())


def test_an_answer_that_ends_with_its_connection_is_cut_by_a_reset(run: Run[None]) -> None:
    async def test() -> None:
        async with upstream() as server:
            connection, peer = await server.exchange(OK + b"\r\nhello")
            assert await connection.read() == b"hello"
            peer.close(reset=True)
            with pytest.raises(ConnectionBroken):
                await connection.read()
            await connection.close()

    run(test())


@by_name({name: answer for name, answer in FRAMED.items() if name != "empty header"})
@by_both_ways
def test_an_answer_cut_anywhere_is_broken(run: Run[None], answer: bytes, body: Body) -> None:
    async def test() -> None:
        async with upstream() as server:
            for at in range(len(answer)):
                asked = server.ask()
                peer = await server.accept()
                await peer.request()
                await peer.say(answer[:at])
                peer.close()
                with pytest.raises(ConnectionBroken):
                    await body(await asked)
                if asked.exception() is None:
                    await asked.result().close()
            await server.asks_anew()

    run(test())


@by_name(EMPTY)
def test_an_answer_without_a_body_is_whole_at_once(run: Run[None], answer: bytes) -> None:
    async def test() -> None:
        async with upstream() as server:
            connection, peer = await server.exchange(answer)
            assert await whole(connection) == b""
            await server.asks_at(peer)

    run(test())


def test_what_comes_together_is_read_together(run: Run[None]) -> None:
    async def test() -> None:
        async with upstream() as server:
            connection, peer = await server.exchange(CHUNKED + b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n")
            assert await connection.read() == b"abc"
            await peer.say(b"1\r\nd\r\n1\r\ne\r\n")
            assert await connection.read() == b"de"
            connection.abort()

    run(test())


def test_what_came_before_a_cut_is_read_before_it(run: Run[None]) -> None:
    async def test() -> None:
        async with upstream() as server:
            connection, peer = await server.exchange(CHUNKED + b"5\r\nhello\r\nno chunk\r\n")
            await peer.closed()
            assert await connection.read() == b"hello"
            with pytest.raises(ConnectionBroken):
                await connection.read()
            await connection.close()

    run(test())


@by_name(GARBAGE)
def test_what_is_no_http_is_broken_and_hung_up_on(run: Run[None], answer: bytes) -> None:
    async def test() -> None:
        async with upstream() as server:
            with pytest.raises(ConnectionBroken):
                await server.exchange(answer)
            await server.asks_anew()

    run(test())


def test_an_early_refusal_of_a_large_request_is_read(run: Run[None]) -> None:
    request = b"POST / HTTP/1.1\r\nContent-Length: 20000000\r\n\r\n" + b"x" * 20_000_000

    async def test() -> None:
        async with upstream() as server:
            for refusal in (b"Connection: close\r\nContent-Length: 5\r\n", b"Connection: close\r\n"):
                asked = server.ask(request)
                peer = await server.accept()
                await peer.reader.readuntil(b"\r\n\r\n")
                await peer.say(b"HTTP/1.1 413 Too Large\r\n" + refusal + b"\r\nhello")
                connection = await asked
                assert (connection.status, await connection.read()) == (413, b"hello")
                await connection.close()
                await peer.closed()

    run(test())


# --- a body that is poured --------------------------------------------------------------------------------------------


def test_what_has_come_is_poured_first_and_the_rest_as_it_comes(run: Run[None], tls: ssl.SSLContext | None) -> None:
    async def test() -> None:
        async with upstream(tls=tls) as server:
            connection, peer = await server.exchange(CHUNKED + b"1\r\na\r\n1\r\nb\r\n")
            came: asyncio.Queue[bytes] = asyncio.Queue()
            pouring = asyncio.create_task(connection.pour(lambda data: came.put_nowait(data) or False))
            assert await came.get() == b"ab"
            for data in (b"c", b"d"):
                await peer.say(b"1\r\n%b\r\n" % data)
                assert await came.get() == data
            await peer.say(b"0\r\n\r\n")
            await pouring
            await connection.close()
            await server.asks_at(peer)

    run(test())


def test_who_has_enough_is_poured_no_more(run: Run[None]) -> None:
    async def test() -> None:
        async with upstream() as server:
            for at in (1, 2, 3):  # what had come, what comes, and what comes with the end
                connection, peer = await server.exchange(CHUNKED + b"1\r\n1\r\n")
                got: list[bytes] = []

                def enough(data: bytes, at: int = at, got: list[bytes] = got) -> bool:
                    got.append(data)
                    return len(got) == at

                pouring = asyncio.create_task(connection.pour(enough))
                await asyncio.sleep(0)
                for said in (b"1\r\n2\r\n", b"1\r\n3\r\n0\r\n\r\n")[: at - 1]:
                    assert not pouring.done()
                    await peer.say(said)
                    while len(got) < 2:
                        await asyncio.sleep(0)
                await pouring
                assert b"".join(got) == b"123"[:at]
                if at < 3:
                    await peer.say(b"1\r\nx\r\n")
                    assert await connection.read() == b"x", "it is there for who reads on"
                await connection.close()

    run(test())


def test_what_a_sink_raises_is_raised_where_it_was_given(run: Run[None]) -> None:
    def refuses(data: bytes) -> bool:
        raise ValueError(data)

    async def test() -> None:
        async with upstream() as server:
            for first, then in ((b"1\r\na\r\n", b""), (b"", b"1\r\na\r\n")):
                connection, peer = await server.exchange(CHUNKED + first)
                pouring = asyncio.create_task(connection.pour(refuses))
                await peer.say(then)
                with pytest.raises(ValueError, match="a"):
                    await pouring
                await connection.close()
                await peer.closed()

    run(test())


def test_who_is_cancelled_is_poured_no_more(run: Run[None]) -> None:
    async def test() -> None:
        async with upstream() as server:
            connection, peer = await server.exchange(CHUNKED)
            got: list[bytes] = []
            pouring = asyncio.create_task(connection.pour(lambda data: bool(got.append(data))))
            await asyncio.sleep(0)
            pouring.cancel()
            connection.data_received(b"1\r\na\r\n")  # before it can know
            await asyncio.wait((pouring,))
            assert got == []
            assert await connection.read() == b"a"
            await connection.close()
            await peer.closed()

    run(test())


@pytest.mark.parametrize("size", [5, 2 * TURN, 2 * MAX_UNREAD])
def test_what_came_before_a_cut_is_poured_before_it(run: Run[None], tls: ssl.SSLContext | None, size: int) -> None:
    async def test() -> None:
        async with upstream(tls=tls) as server:
            connection, peer = await server.exchange(CHUNKED)
            got: list[bytes] = []
            pouring = asyncio.create_task(connection.pour(lambda data: bool(got.append(data))))
            await asyncio.sleep(0)
            connection.data_received(chunk(b"x" * size) + b"no chunk\r\n")  # all in one read
            with pytest.raises(ConnectionBroken):
                await pouring
            assert got == [b"x" * size]
            await connection.close()
            await peer.closed()

    run(test())


def flood(peer: Peer, size: int) -> None:
    """Send so many bytes, as fast as they are taken. Blocks."""
    plug = peer.writer.get_extra_info("socket").fileno()
    writable = select.poll()
    writable.register(plug, select.POLLOUT)
    while size:
        writable.poll(DEADLINE * 1000)
        size -= os.write(plug, b"x" * min(size, 2**18))


def test_others_have_their_turn_beside_a_flood(run: Run[None]) -> None:
    size = 64 * 2**20

    async def test() -> None:
        async with upstream() as server:
            connection, peer = await server.exchange(OK + b"Content-Length: %d\r\n\r\n" % size)
            turn, got = 0, Counter[int]()

            def sink(data: bytes) -> bool:
                got[turn] += len(data)
                return False

            pouring = asyncio.create_task(connection.pour(sink))
            thread = asyncio.create_task(asyncio.to_thread(flood, peer, size))
            while not pouring.done():
                turn += 1
                await asyncio.sleep(0)
            await thread
            assert sum(got.values()) == size
            assert max(got.values()) <= MAX_UNREAD
            await connection.close()

    run(test())


# --- a connection serves again, or not --------------------------------------------------------------------------------


@by_name(FRAMED)
def test_a_connection_is_used_again_after_a_whole_answer(run: Run[None], answer: bytes) -> None:
    async def test() -> None:
        async with upstream() as server:
            connection, peer = await server.exchange(answer)
            assert await whole(connection) == b"hello"
            for _ in range(3):
                await server.asks_at(peer)

    run(test())


@by_name(
    {
        "Connection: close": OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "more than the answer": HELLO + b"\r\n\r\nmore",
        "two answers": HELLO + b"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\nworld",
        "half an answer more": HELLO + b"HTTP/1.1 200 OK\r\nX-Of: some",
    }
)
def test_a_connection_is_closed_after_an_answer_that_is_its_last(run: Run[None], answer: bytes) -> None:
    async def test() -> None:
        async with upstream() as server:
            connection, peer = await server.exchange(answer)
            assert (connection.status, await whole(connection)) == (200, b"hello")
            await peer.closed()
            await server.asks_anew()

    run(test())


@by_name({"rest to come": CHUNKED + b"5\r\nhello\r\n", "head only": CHUNKED})
def test_a_connection_is_closed_with_an_answer_that_is_not_read_to_its_end(run: Run[None], answer: bytes) -> None:
    async def test() -> None:
        async with upstream() as server:
            connection, peer = await server.exchange(answer)
            await connection.close()
            await peer.closed()
            await server.asks_anew()

    run(test())


def test_a_connection_is_closed_with_an_answer_that_has_come_and_is_not_read(run: Run[None]) -> None:
    async def test() -> None:
        async with upstream() as server:
            asked = server.ask()
            peer = await server.accept()
            await peer.request()
            peer.writer.write(OK + b"Content-Length: %d\r\n\r\n" % (MAX_UNREAD + 1) + b"x" * (MAX_UNREAD + 1))
            connection = await asked
            while not connection.whole:
                await asyncio.sleep(0)
            await connection.close()
            await peer.closed()
            await server.asks_anew()

    run(test())


def test_a_connection_is_closed_whose_request_nobody_has_read_to_its_end(run: Run[None]) -> None:
    request = b"POST / HTTP/1.1\r\nContent-Length: 20000000\r\n\r\n" + b"x" * 20_000_000

    async def test() -> None:
        async with upstream() as server:
            asked = server.ask(request)
            peer = await server.accept()
            await peer.reader.readuntil(b"\r\n\r\n")
            await peer.say(HELLO.replace(b"200 OK", b"413 Too Large"))
            assert await whole(await asked) == b"hello"
            await server.asks_anew()
            await peer.closed()

    run(test())


def test_without_keep_alive_each_request_has_its_own_connection(run: Run[None]) -> None:
    async def test() -> None:
        async with upstream(keep_alive=False) as server:
            connection, peer = await server.exchange(HELLO)
            assert await whole(connection) == b"hello"
            await peer.closed()
            await server.asks_anew()

    run(test())


@by_name({"garbage": b"hm\r\n", "half an answer": b"HTTP/1.1 200 OK\r\nX-Of: some", "an answer": HELLO})
def test_a_connection_on_which_something_comes_unasked_is_closed(run: Run[None], answer: bytes) -> None:
    async def test() -> None:
        async with upstream() as server:
            connection, peer = await server.exchange(HELLO)
            assert await whole(connection) == b"hello"
            await peer.say(answer)
            await server.asks_anew()
            await peer.closed()

    run(test())


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
def test_a_connection_the_upstream_has_closed_is_not_used_again(
    run: Run[None], tls: ssl.SSLContext | None, reset: bool
) -> None:
    async def test() -> None:
        async with upstream(tls=tls) as server:
            connection, peer = await server.exchange(HELLO)
            assert await whole(connection) == b"hello"
            peer.close(reset=reset)  # in this turn of the loop nobody has seen it yet
            await server.asks_anew()
            await server.asks_anew()

    run(test())


def test_an_idle_connection_is_closed_in_the_end_and_one_in_use_is_not(
    run: Run[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        monkeypatch.setattr(transport, "KEEPALIVE", 0.1)
        async with upstream() as server:
            first, first_peer = await server.exchange(HELLO)
            second, second_peer = await server.exchange(HELLO)
            assert [await whole(first), await whole(second)] == [b"hello", b"hello"]
            asked = server.ask()
            await second_peer.request()
            await first_peer.closed()
            monkeypatch.setattr(transport, "KEEPALIVE", DEADLINE)
            await second_peer.say(HELLO)
            assert await whole(await asked) == b"hello"
            await server.asks_at(second_peer)

    run(test())


def test_the_connection_used_last_is_used_first(run: Run[None]) -> None:
    async def test() -> None:
        async with upstream() as server:
            opened = [await server.exchange(HELLO) for _ in range(3)]
            for at in (2, 0, 1):
                assert await whole(opened[at][0]) == b"hello"
            for at in (1, 0, 2):
                asked = server.ask()
                await opened[at][1].request()
                await opened[at][1].say(CHUNKED)
                await asked
            for connection, _ in opened:
                await connection.close()

    run(test())


def test_a_pool_that_is_closed_closes_what_is_idle(run: Run[None], tls: ssl.SSLContext | None) -> None:
    async def test() -> None:
        async with upstream(tls=tls) as server:
            idle = [await server.exchange(HELLO) for _ in range(2)]
            for connection, _ in idle:
                assert await whole(connection) == b"hello"
            server.pool.close()
            for _, peer in idle:
                await peer.closed()

    run(test())


def test_a_broken_connection_leaves_nothing_to_the_garbage_collector(run: Run[None]) -> None:
    async def answer(server: Upstream, cut: bytes) -> None:
        peer = await server.accept()
        await peer.request()
        await peer.say(cut)
        peer.close()

    async def test() -> None:
        async with upstream() as server:
            for cut in (CHUNKED, OK, b"", b"what?\r\n"):
                answered = asyncio.create_task(answer(server, cut))
                with suppress(ConnectionBroken):
                    connection = await server.pool.ask(server.origin, REQUEST)
                    await whole(connection)
                await answered

    gc.collect()
    gc.disable()
    try:
        run(test())
        assert not any(isinstance(found, Connection) for found in gc.get_objects())
    finally:
        gc.enable()


# --- flow -------------------------------------------------------------------------------------------------------------


def test_an_upstream_that_floods_is_stopped_until_it_is_read(run: Run[None], tls: ssl.SSLContext | None) -> None:
    flood = 16 * 2**20

    async def test() -> None:
        sent = 0

        async def pour(peer: Peer) -> None:
            nonlocal sent
            while sent < flood:
                peer.writer.write(b"x" * 2**16)
                await peer.writer.drain()
                sent += 2**16

        async with upstream(tls=tls) as server:
            connection, peer = await server.exchange(OK + b"Content-Length: %d\r\n\r\n" % flood)
            pouring = asyncio.create_task(pour(peer))
            waits = peer.writer.transport.get_write_buffer_size
            while not pouring.done() and (connection._transport.is_reading() or not waits()):
                await asyncio.sleep(0)
            assert sent < flood / 2, "its writes do not wait"
            first = await connection.read()
            assert MAX_UNREAD < len(first) <= 4 * MAX_UNREAD
            assert len(first) + len(await whole(connection)) == flood
            await pouring
            await server.asks_at(peer)

    run(test())


def test_what_came_before_the_end_is_not_lost_while_nobody_reads(run: Run[None], tls: ssl.SSLContext | None) -> None:
    size = MAX_UNREAD * 2

    async def test() -> None:
        async with upstream(tls=tls) as server:
            connection, peer = await server.exchange(OK + b"\r\n")
            peer.writer.write(b"x" * size)
            peer.close()
            while not peer.reader.at_eof() and connection._unread_bytes <= MAX_UNREAD:
                await asyncio.sleep(0)
            assert len(await whole(connection)) == size

    run(test())


def test_an_answer_without_a_bound_to_its_head_is_refused(run: Run[None]) -> None:
    async def test() -> None:
        async with upstream() as server:
            for start, more in (
                (OK + b"X: ", b"x" * 2**16),
                (OK, b"X: y\r\n" * 10_000),
                (b"", b"HTTP/1.1 103 A\r\n\r\n" * 4000),
            ):
                asked = server.ask()
                peer = await server.accept()
                await peer.request()
                await peer.say(start)
                for _ in range(160):  # 10 MB
                    if not asked.done():
                        with suppress(ConnectionError):
                            await peer.say(more)
                assert asked.done(), "10 MB of a head are too much"
                with pytest.raises(ConnectionBroken):
                    await asked
                await peer.closed()

    run(test())


def test_very_many_streams_are_open_at_once(run: Run[None]) -> None:
    many = 1500

    async def test() -> None:
        async with upstream() as server:
            asked = [server.ask() for _ in range(many)]
            peers = [await server.accept() for _ in range(many)]
            for peer in peers:
                await peer.request()
                peer.writer.write(CHUNKED + b"2\r\nhe\r\n")
            opened = await asyncio.gather(*asked)
            assert {await connection.read() for connection in opened} == {b"he"}
            for peer in peers:
                peer.writer.write(b"3\r\nllo\r\n0\r\n\r\n")
            assert {await whole(connection) for connection in opened} == {b"llo"}
            await server.asks_at(
                next(peer for peer in peers if peer.writer.get_extra_info("peername") == latest(opened))
            )

    def latest(opened: list[Connection]) -> Any:
        return opened[-1]._transport.get_extra_info("sockname")

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        run(test())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- cancelled --------------------------------------------------------------------------------------------------------


async def cancelled(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture
def deaf() -> Iterator[Origin]:
    """Where nobody answers a SYN: all places before `accept` are taken."""
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.connect(listener.getsockname())
        yield Origin(tls=False, host="127.0.0.1", port=listener.getsockname()[1])


def test_cancelled_while_connecting_leaves_nothing(run: Run[None], deaf: Origin) -> None:
    async def test() -> None:
        before = sockets()
        asked = asyncio.create_task(Pool(httpx2.create_ssl_context).ask(deaf, REQUEST))
        while sockets() == before:
            await asyncio.sleep(0)
        await cancelled(asked)
        assert sockets() == before

    run(test())


def test_a_connection_that_does_not_come_about_is_given_up(
    run: Run[None], deaf: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        before = sockets()
        with pytest.raises(TimeoutError):
            await Pool(httpx2.create_ssl_context).ask(deaf, REQUEST)
        assert sockets() == before

    monkeypatch.setattr(transport, "CONNECT_TIMEOUT", 0.05)
    run(test())


def test_cancelled_in_the_handshake_leaves_nothing(run: Run[None], certificate: ssl.SSLContext) -> None:
    async def test() -> None:
        async with upstream() as server:  # which speaks no TLS: nothing answers the hello
            origin = server.origin._replace(tls=True, host="localhost")
            asked = asyncio.create_task(server.pool.ask(origin, REQUEST))
            peer = await server.accept()
            assert await peer.reader.readexactly(1) == b"\x16"
            await cancelled(asked)
            await peer.closed()

    run(test())


def test_cancelled_at_any_turn_leaves_nothing_and_disturbs_no_other(run: Run[None], tls: ssl.SSLContext | None) -> None:
    async def test() -> None:
        async def one() -> None:
            connection = await server.pool.ask(server.origin, REQUEST)
            try:
                await poured(connection)
            finally:
                await connection.close()

        async def answer() -> None:
            while True:
                peer = await server.accept()
                with suppress(OSError, asyncio.IncompleteReadError):
                    await peer.request()
                    await peer.say(CHUNKED + b"5\r\nhello\r\n")
                    await peer.closed()

        async with upstream(tls=tls) as server:
            answering = asyncio.create_task(answer())
            for turns in range(100):
                asked = asyncio.create_task(one())
                for _ in range(turns):
                    await asyncio.sleep(0)
                await cancelled(asked)
            await cancelled(answering)

    run(test())


def test_cancelled_before_the_head_and_in_the_body_leaves_nothing(run: Run[None], tls: ssl.SSLContext | None) -> None:
    async def test() -> None:
        async with upstream(tls=tls) as server:
            asked = server.ask()
            peer = await server.accept()
            await peer.request()
            await peer.say(b"HTTP/1.1 2")
            await cancelled(asked)
            await peer.closed()
            connection, peer = await server.exchange(CHUNKED)
            reading = asyncio.create_task(connection.read())
            await asyncio.sleep(0)
            await cancelled(reading)
            await peer.say(b"5\r\nhello\r\n")
            assert await connection.read() == b"hello", "what comes after is not lost"
            await connection.close()
            await peer.closed()

    run(test())


def test_a_connection_lost_before_it_was_asked_is_broken(run: Run[None]) -> None:
    async def test() -> None:
        async with upstream() as server:
            connecting = asyncio.create_task(server.pool._connect(server.origin))
            peer = await server.accept()
            connection = await connecting
            await peer.say(b"SSH-2.0-OpenSSH_9.2\r\n")
            await peer.closed()
            with pytest.raises(ConnectionBroken):
                await connection.ask(REQUEST)
            connection.abort()

    run(test())


# --- where it leads ---------------------------------------------------------------------------------------------------


def test_a_certificate_is_trusted_that_the_environment_names(run: Run[None], certificate: ssl.SSLContext) -> None:
    async def test() -> None:
        async with upstream(tls=certificate) as server:
            connection, peer = await server.exchange(HELLO)
            assert await whole(connection) == b"hello"
            await server.asks_at(peer)

    run(test())


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"], ids=["another name", "nobody's"])
def test_a_certificate_that_proves_nothing_is_refused(
    run: Run[None], certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async def test() -> None:
        async with upstream(tls=certificate) as server:
            with pytest.raises(ssl.SSLCertVerificationError):
                await server.pool.ask(server.origin._replace(host=name), REQUEST)

    if name == "localhost":
        monkeypatch.delenv("SSL_CERT_FILE")
    run(test())


def test_an_upstream_is_asked_over_ipv6(run: Run[None]) -> None:
    async def test() -> None:
        async with upstream("::1") as server:
            asked = asyncio.create_task(say(server.url))
            peer = await server.accept()
            assert b"\r\nHost: [::1]:%d\r\n" % server.origin.port in await peer.request()
            await peer.say(answer())
            assert await asked == "Well"

    run(test())


Address = tuple[str, int] | tuple[str, int, int, int]


def names(monkeypatch: pytest.MonkeyPatch, *answers: list[Address]) -> list[str]:
    """Have upstream.invalid found so, the last way ever after, and return the list of the times it was looked up."""
    loop = asyncio.get_running_loop()
    look_up, looked_up = loop.getaddrinfo, list[str]()

    async def answer(host: str, *args: Any, **options: Any) -> list[tuple[Any, ...]]:
        if host != "upstream.invalid":
            return cast(list[tuple[Any, ...]], await look_up(host, *args, **options))
        looked_up.append(host)
        await asyncio.sleep(0)
        if not (addresses := answers[min(len(looked_up), len(answers)) - 1]):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        kind = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(socket.AF_INET if len(at) == 2 else socket.AF_INET6, *kind, at) for at in addresses]

    monkeypatch.setattr(loop, "getaddrinfo", answer)
    return looked_up


@pytest.mark.parametrize("how", ["refuses", "is deaf"])
def test_of_two_families_one_that_answers_is_enough(
    run: Run[None], deaf: Origin, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async def test() -> None:
        async with upstream("::1") as server:
            port = deaf.port if how == "is deaf" else 1
            names(monkeypatch, [("127.0.0.1", port), ("::1", server.origin.port, 0, 0)])
            server.origin = server.origin._replace(host="upstream.invalid")
            connection, _ = await server.exchange(HELLO)
            assert await whole(connection) == b"hello"

    run(test())


def test_a_name_is_looked_up_once_for_all_who_ask_at_a_time_and_for_those_who_stay(
    run: Run[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with upstream() as server:
            looked_up = names(monkeypatch, [("127.0.0.1", server.origin.port)])
            server.origin = server.origin._replace(host="upstream.invalid")
            first, *others = [server.ask() for _ in range(4)]
            while not looked_up:
                await asyncio.sleep(0)
            await cancelled(first)
            for _ in others:
                peer = await server.accept()
                await peer.request()
                await peer.say(HELLO)
            assert [await whole(await asked) for asked in others] == [b"hello"] * 3
            assert len(looked_up) == 1

    run(test())


def test_a_name_that_was_not_found_is_looked_up_again(run: Run[None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with upstream() as server:
            names(monkeypatch, [], [("127.0.0.1", server.origin.port)])
            server.origin = server.origin._replace(host="upstream.invalid")
            with pytest.raises(socket.gaierror):
                await server.exchange(HELLO)
            connection, _ = await server.exchange(HELLO)
            assert await whole(connection) == b"hello"

    run(test())


# --- what is sent -----------------------------------------------------------------------------------------------------


def provider(upstreams: Upstreams, url: str) -> OpenAI:
    return OpenAI(ProviderSettings(base_url=url, api_key=OPENAI_KEY), upstreams)


def prompt(text: str = "Hi") -> RunRequest:
    return RunRequest(model="m", messages=[Message("user", text)])


@asynccontextmanager
async def asking() -> AsyncIterator[Upstreams]:
    upstreams = Upstreams()
    try:
        yield upstreams
    finally:
        await upstreams.close()


class Listener:
    """Hears what a provider emits, a batch at a time, and stops it in the middle."""

    def __init__(self, asked: OpenAI) -> None:
        self._batches: asyncio.Queue[Any] = asyncio.Queue()
        self._answer = asyncio.create_task(asked.stream(prompt(), self._batches.put_nowait))

    async def next(self) -> Any:
        return await self._batches.get()

    async def close(self) -> None:
        self._answer.cancel()
        await asyncio.wait((self._answer,))


async def say(url: str, text: str = "Hi") -> str:
    """Ask the upstream at `url` in OpenAI's words, and return what it says."""
    async with asking() as upstreams:
        items: list[Any] = []
        await provider(upstreams, url).stream(prompt(text), items.extend)
    assert isinstance(items[-1], Finish)
    return "".join(item.text for item in items if isinstance(item, Token))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def answer() -> bytes:
    return STREAM + chunk(b"".join([*CHAT.opening, CHAT.token("Well"), *CHAT.ending])) + b"0\r\n\r\n"


def test_a_request_has_the_sdks_headers_each_once_and_the_key(run: Run[None]) -> None:
    async def test() -> None:
        async with upstream() as server:
            asked = asyncio.create_task(say(server.url))
            peer = await server.accept()
            head, _, sent = (await peer.request()).partition(b"\r\n\r\n")
            await peer.say(answer())
            assert await asked == "Well"
        first, *lines = head.decode("ascii").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        assert first == "POST /v1/chat/completions HTTP/1.1"
        assert len(headers) == len(lines)
        assert headers["host"] == f"127.0.0.1:{server.origin.port}"
        assert headers["authorization"] == f"bearer {OPENAI_KEY}"
        assert headers["content-type"] == headers["accept"] == "application/json"
        assert headers["content-length"] == str(len(sent))
        assert headers["connection"] == "keep-alive"
        assert headers["accept-encoding"] == "identity"
        assert headers["user-agent"].startswith("openai/")
        assert "transfer-encoding" not in headers
        assert head.count(OPENAI_KEY.encode()) == 1

    run(test())


@pytest.mark.parametrize("text", ["Grüße, 世界 \U0001f469\u200d\U0001f467", "half a pair: \ud800", "\x00\u2028"])
def test_any_text_is_sent_whole(run: Run[None], text: str) -> None:
    async def test() -> None:
        async with upstream() as server:
            asked = asyncio.create_task(say(server.url, text))
            peer = await server.accept()
            sent = json.loads((await peer.request()).partition(b"\r\n\r\n")[2])
            await peer.say(answer())
            assert await asked == "Well"
            assert sent["messages"] == [{"role": "user", "content": text}]
            assert await peer.reader.read(1) == b"", "nothing comes after it"

    run(test())


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_stream_is_read_as_it_comes(run: Run[None], encoding: str) -> None:
    press = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)

    def pressed(data: bytes) -> bytes:
        return chunk(press.compress(data) + press.flush(zlib.Z_SYNC_FLUSH))

    async def test() -> None:
        async with upstream() as server, asking() as upstreams:
            stream = Listener(provider(upstreams, server.url))
            peer = await server.accept()
            await peer.request()
            head = STREAM.replace(b"\r\n\r\n", b"\r\nContent-Encoding: %b\r\n\r\n" % encoding.encode())
            await peer.say(head + pressed(b"".join([*CHAT.opening, CHAT.token("one")])))
            assert Token("one") in await stream.next()
            await peer.say(pressed(CHAT.token("two")))
            assert await stream.next() == [Token("two")]
            await stream.close()
            await peer.closed()

    run(test())


@pytest.mark.parametrize("cut", [1, -12, -1], ids=["begun", "all but its check", "all but a byte"])
def test_a_compressed_stream_that_is_cut_is_incomplete(run: Run[None], cut: int) -> None:
    packed = gzip.compress(CHAT.token("one") * 3)[:cut]

    async def test() -> None:
        async with upstream() as server:
            asked = asyncio.create_task(say(server.url))
            peer = await server.accept()
            await peer.request()
            await peer.say(STREAM.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + chunk(packed))
            peer.close()
            with pytest.raises(UpstreamError) as failed:
                await asked
            assert failed.value.code == "upstream_incomplete"

    run(test())


# --- through a proxy --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


AUTHORIZATION = b"\r\nProxy-Authorization: Basic %b\r\n" % b64encode(b"me:p@ss/word")


def proxy(server: Upstream) -> str:
    return f"http://me:p%40ss%2Fword@127.0.0.1:{server.origin.port}"


async def two_tokens(peer: Peer, stream: Listener) -> None:
    """A stream is read as it comes, and closed in the middle."""
    await peer.say(STREAM + chunk(b"".join([*CHAT.opening, CHAT.token("one")])))
    assert Token("one") in await stream.next()
    await peer.say(chunk(CHAT.token("two")))
    assert await stream.next() == [Token("two")]
    await stream.close()
    await peer.closed()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_an_http_upstream_is_asked_through_a_proxy_by_its_whole_url(
    run: Run[None], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    async def test() -> None:
        async with upstream() as server:
            monkeypatch.setenv(variable, proxy(server))
            async with asking() as upstreams:
                stream = Listener(provider(upstreams, "http://upstream.invalid:8000/v1"))
                peer = await server.accept()
                head, _, sent = (await peer.request()).partition(b"\r\n\r\n")
                assert head.startswith(b"POST http://upstream.invalid:8000/v1/chat/completions HTTP/1.1\r\n")
                assert head.count(AUTHORIZATION) == 1
                assert head.lower().count(b"\r\nhost: upstream.invalid:8000\r\n") == 1
                assert head.lower().count(b"\r\nauthorization: bearer %b\r\n" % OPENAI_KEY.encode()) == 1
                assert json.loads(sent)["stream"] is True
                await two_tokens(peer, stream)

    run(test())


def test_an_https_upstream_is_asked_through_a_tunnel(
    run: Run[None], monkeypatch: pytest.MonkeyPatch, certificate: ssl.SSLContext
) -> None:
    async def test() -> None:
        async with upstream() as server:
            monkeypatch.setenv("HTTPS_PROXY", proxy(server))
            async with asking() as upstreams:
                stream = Listener(provider(upstreams, "https://localhost:8443/v1"))
                peer = await server.accept()
                head = await peer.request()
                assert head.startswith(b"CONNECT localhost:8443 HTTP/1.1\r\n")
                assert head.count(AUTHORIZATION) == 1
                assert OPENAI_KEY.encode() not in head, "the proxy has no business with it"
                peer.writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await peer.writer.start_tls(certificate)
                head, _, _ = (await peer.request()).partition(b"\r\n\r\n")
                assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
                assert AUTHORIZATION not in head
                assert OPENAI_KEY.encode() in head
                await two_tokens(peer, stream)

    run(test())


@pytest.mark.parametrize("exempt", ["127.0.0.1", "elsewhere.invalid, 127.0.0.1", "127.0.0.1:{port}", "*"])
def test_no_proxy_is_asked_for_whom_it_is_not(run: Run[None], monkeypatch: pytest.MonkeyPatch, exempt: str) -> None:
    async def test() -> None:
        async with upstream() as server, upstream() as other:
            monkeypatch.setenv("HTTP_PROXY", proxy(other))
            monkeypatch.setenv("NO_PROXY", exempt.format(port=server.origin.port))
            asked = asyncio.create_task(say(server.url))
            peer = await server.accept()
            assert (await peer.request()).startswith(b"POST /v1/")
            await peer.say(answer())
            assert await asked == "Well"

    run(test())


@pytest.mark.parametrize("scheme", ["http", "https"])
@by_name(
    {
        "407": b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        "502": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        "garbage": b"what?\r\n\r\n",
        "nothing": b"",
    }
)
def test_a_proxy_that_refuses_is_an_upstream_that_is_unavailable(
    run: Run[None], monkeypatch: pytest.MonkeyPatch, answer: bytes, scheme: str
) -> None:
    async def test() -> None:
        async with upstream() as server:
            monkeypatch.setenv(f"{scheme}_proxy", proxy(server))
            asked = asyncio.create_task(say(f"{scheme}://upstream.invalid/v1"))
            peer = await server.accept()
            await peer.request()
            await peer.say(answer)
            peer.close()
            with pytest.raises(UpstreamError) as failed:
                await asked
            assert failed.value.code == "upstream_unavailable"
            assert "word" not in str(failed.value)

    run(test())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:1", "socks5://127.0.0.1:1", "http://me:a/b@c:1"])
def test_a_proxy_that_is_not_there_is_an_upstream_that_is_unavailable(
    run: Run[None], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    async def test() -> None:
        with pytest.raises(UpstreamError) as failed:
            await say("http://upstream.invalid/v1")
        assert failed.value.code == "upstream_unavailable"

    monkeypatch.setenv("HTTP_PROXY", address)
    run(test())


def test_a_proxys_name_needs_no_scheme(run: Run[None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with upstream() as server:
            monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{server.origin.port}")
            asked = asyncio.create_task(say("http://upstream.invalid/v1"))
            peer = await server.accept()
            await peer.request()
            await peer.say(answer())
            assert await asked == "Well"

    run(test())
