"""A TCP proxy before a service, in a thread of the tests: it does to connections what networks do to them.

Each connection carries one request, which is recorded and passed on, and what comes back is passed back until either
side closes; so the service sees the end of what its client sees the end of. `do` names requests, by how their records
begin, that are treated otherwise, one for each treatment and in their order:

    PASS               no otherwise than others
    Cut(after, how)    the connection is closed after that many bytes of the response's body, in order or by a reset
    Refuse(status)     it is answered here
    LOSE               it is passed on; its response is read whole and not passed back, the connection is reset

`cut` closes the connections that are open. What is not below `prefix` is not found; the service never sees the prefix.
(PYTEST_DONT_REWRITE: as for tests.upstream.)
"""

import asyncio
import re
import socket
import struct
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum, auto
from typing import Literal, NamedTuple

import pytest

from .client import DEADLINE
from .conftest import Service, Start
from .upstream import Upstream, environ, warm

How = Literal["FIN", "RST"]


class Cut(NamedTuple):
    after: int
    how: How = "FIN"


class Refuse(NamedTuple):
    status: int
    headers: str = ""


class Act(Enum):
    PASS = auto()
    LOSE = auto()


PASS, LOSE = Act
Treatment = Cut | Refuse | Act


class Proxy:
    """Use it in a `with`. A request's record is its method, its path with `*` for a run, and `after <number>`."""

    def __init__(self, service: Service, prefix: str = "") -> None:
        self.port = 0
        self.records: list[str] = []
        self._service = service
        self._prefix = prefix
        self._treatments: defaultdict[str, deque[Treatment]] = defaultdict(deque)
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._listens = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy")

    def __enter__(self) -> "Proxy":
        self._thread.start()
        assert self._listens.wait(DEADLINE)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def do(self, begin: str, *treatments: Treatment) -> None:
        """Treat the next requests whose records begin so."""
        self._treatments[begin].extend(treatments)

    def cut(self, how: How) -> None:
        """Close the connections that are open; return when the service's side is closed, too."""
        asyncio.run_coroutine_threadsafe(self._cut(how), self._loop).result(DEADLINE)

    def seen(self, begin: str) -> list[str]:
        """Return the records that begin so."""
        return [record for record in self.records if record.startswith(begin)]

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listens.set()
        await self._stop.wait()
        server.close()
        await self._cut("FIN")

    async def _cut(self, how: How) -> None:
        tasks = dict(self._open)
        for task, client in tasks.items():
            _close(client, how)
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _connected(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._open[task] = client
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._answer(reader, client)
        finally:
            del self._open[task]
            client.close()

    async def _answer(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?im)^content-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        treatment = self._treatment(head.decode("latin-1"))
        if isinstance(treatment, Refuse):
            end = "Content-Length: 0\r\nConnection: close\r\n\r\n"
            client.write(f"HTTP/1.1 {treatment.status} -\r\n{treatment.headers}{end}".encode())
            return
        answers, service = await asyncio.open_connection("127.0.0.1", self._service.port)
        try:
            head = re.sub(rb"(?im)^connection:.*\r\n", b"", head).replace(self._prefix.encode(), b"", 1)
            service.write(head[:-2] + b"Connection: close\r\n\r\n" + body)
            passing = asyncio.ensure_future(_pass_back(answers, client, treatment))
            going = asyncio.ensure_future(reader.read(1))
            await asyncio.wait((passing, going), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for side in (passing, going):
                side.cancel()
            await asyncio.gather(passing, going, return_exceptions=True)
            service.close()

    def _treatment(self, head: str) -> Treatment:
        method, target = head.split()[:2]
        path = re.sub("[0-9a-f]{32}", "*", target.partition("?")[0])
        after = re.search(r"(?im)^last-event-id: *\w+-(\d+)", head) or re.search(r"last_event_id=\w+-(\d+)", target)
        record = f"{method} {path}" + (f" after {after[1]}" if after else "")
        if path != "/favicon.ico":  # a browser's own idea
            self.records.append(record)
        for begin, treatments in self._treatments.items():
            if treatments and record.startswith(begin):
                return treatments.popleft()
        return PASS if path.startswith(self._prefix) else Refuse(404)


async def _pass_back(answers: asyncio.StreamReader, client: asyncio.StreamWriter, treatment: Treatment) -> None:
    head = await answers.readuntil(b"\r\n\r\n")
    if treatment is LOSE:
        await answers.read()
        return _close(client, "RST")
    client.write(head)
    left = treatment.after if isinstance(treatment, Cut) else None
    while data := await answers.read(65536):
        client.write(data[:left])
        await client.drain()
        if left is not None and (left := left - len(data)) <= 0:
            assert isinstance(treatment, Cut)
            return _close(client, treatment.how)
    return None


def _close(client: asyncio.StreamWriter, how: How) -> None:
    if how == "RST":
        linger = struct.pack("ii", 1, 0)
        client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        client.transport.abort()
    else:
        client.close()


@pytest.fixture(scope="session")
def nimble(start_lasting: Start, upstream_server: Upstream) -> Service:
    """A relay whose EventSources reconnect at once."""
    return warm(start_lasting(**environ(upstream_server), SIDESTREAM_RETRY_MS="50"), upstream_server)


@pytest.fixture
def proxy(nimble: Service) -> Iterator[Proxy]:
    """A proxy before it."""
    with Proxy(nimble) as proxy:
        yield proxy
