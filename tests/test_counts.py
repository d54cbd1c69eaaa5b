"""What a stream costs in counts, which no noise of a machine moves: they must not creep.

The service serves in this process; its client and its upstream are bare sockets, so what is counted is its own.
"""

import asyncio
import gc
import os
import re
import socket
import sys
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn

from service import create_app

from .asgi import run, service_of
from .recorded import DIALECTS, Dialect

STREAMS = 40
# The server's task of the request, the one that sends, and the run's.
TASKS = 3
# Blocks of memory: the connections of both sides, the request, the run, its log, its viewer, and the three tasks.
BLOCKS = 400
MOST = 100_000  # bytes that a run may hold
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Stream:
    """One stream from a client's socket through the service to an upstream's socket."""

    def __init__(self, client: socket.socket, upstream: socket.socket) -> None:
        self.client = client
        self.upstream = upstream

    def close(self) -> None:
        self.client.close()
        self.upstream.close()

    async def read(self, until: bytes) -> bytes:
        """Read what the client gets, to where it ends so."""
        got = b""
        while not got.endswith(until):
            try:
                got += self.client.recv(65536)
            except BlockingIOError:
                await asyncio.sleep(0)
        return got


class Bench:
    """A service, and the listening socket that it takes for its upstream."""

    def __init__(self, port: int, listener: socket.socket) -> None:
        self._port = port
        self._listener = listener
        self._tasks = 0

    async def rest(self) -> None:
        """Return when there are no more tasks than without a stream."""
        while self._tasks and len(asyncio.all_tasks()) > self._tasks:
            await asyncio.sleep(0)
        self._tasks = len(asyncio.all_tasks())

    async def open(self, dialect: Dialect) -> Stream:
        """Open a stream, and bring its first token through."""
        body = b'{"message":"Hi"}'
        client = socket.create_connection(("127.0.0.1", self._port))
        client.sendall(
            b"POST /%b/stream HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (dialect.provider.encode(), len(body), body)
        )
        client.setblocking(False)
        while True:
            try:
                upstream, _ = self._listener.accept()
                break
            except BlockingIOError:
                await asyncio.sleep(0)
        upstream.sendall(HEAD + b"".join(map(chunk, dialect.opening)) + chunk(dialect.token("One")))
        stream = Stream(client, upstream)
        await stream.read(until=b'data: {"token":"One"}\n\n\r\n')
        return stream


@asynccontextmanager
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # The SDKs read their own variables.
        monkeypatch.setenv("SIDESTREAM_MAX_RUN_BYTES", str(MOST))
        monkeypatch.setenv("OPENAI_API_KEY", "sk-counts")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{origin}/v1")
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-counts")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", origin)
        app = create_app(os.environ)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        for dialect in DIALECTS:  # what the SDKs take is another matter
            await service_of(app).providers.load(dialect.provider)
        service = Bench(server.servers[0].sockets[0].getsockname()[1], listener)
        await service.rest()
        yield service
        server.should_exit = True
        await serving


each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=[dialect.provider for dialect in DIALECTS])


@each_dialect
def test_an_open_stream_is_three_tasks_and_few_blocks_of_memory(
    dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> tuple[float, float]:
        async with bench(monkeypatch) as service:
            streams = [await service.open(dialect) for _ in range(3)]  # what is made once
            gc.collect()
            tasks, blocks = len(asyncio.all_tasks()), sys.getallocatedblocks()
            streams += [await service.open(dialect) for _ in range(STREAMS)]
            gc.collect()
            grown = len(asyncio.all_tasks()) - tasks, sys.getallocatedblocks() - blocks
            for stream in streams:
                stream.close()
            return grown

    tasks, blocks = run(test())
    assert tasks == TASKS * STREAMS
    assert blocks <= BLOCKS * STREAMS, blocks / STREAMS


@each_dialect
@pytest.mark.parametrize("end", ["whole", "cut", "no JSON", "too large"])
def test_a_stream_leaves_nothing_to_the_garbage_collector(
    dialect: Dialect, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Else its walks would have to be long and often, and each halts all streams. asyncio's own sockets are a cycle."""

    async def test() -> list[object]:
        async with bench(monkeypatch) as service:
            for count in (2, 2):
                gc.collect()
                gc.set_debug(gc.DEBUG_SAVEALL)
                gc.garbage.clear()
                for _ in range(count):
                    stream = await service.open(dialect)
                    said = {"no JSON": [b"data: {\n\n"], "too large": [dialect.token("x" * MOST)]}.get(
                        end, dialect.ending
                    )
                    if end != "cut":
                        stream.upstream.sendall(b"".join(map(chunk, said)) + b"0\r\n\r\n")
                        await stream.read(until=b"\r\n0\r\n\r\n")
                    stream.close()
                    await service.rest()
            gc.collect()
            return [one for one in gc.garbage if isinstance(one, Exception | types.FrameType | types.FunctionType)]

    try:
        left = run(test())
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert left == []


@each_dialect
def test_tokens_that_are_ready_together_leave_in_one_write(dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> bytes:
        async with bench(monkeypatch) as service:
            stream = await service.open(dialect)
            stream.upstream.sendall(chunk(b"".join(dialect.token(f" {number}") for number in range(100))))
            got = await stream.read(until=b' 99"}\n\n\r\n')
            stream.close()
            return got

    text = " ".join(map(str, range(100)))
    assert re.fullmatch(
        rb'[0-9a-f]+\r\nevent: token\nid: \w+-102\ndata: {"token":" %b"}\n\n\r\n' % text.encode(), run(test())
    )
