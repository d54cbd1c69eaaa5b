"""A strict, scripted LLM upstream: an HTTP/1.1 server in a thread of the tests, which plays what a test tells it to.

Each request is answered by the next script in line, a list of steps:

    Head(status, headers)   the status line and the headers, of a chunked event stream unless they say otherwise
    b"..."                  one chunk of the body, in one write to the socket
    Raw(b"...")             these very bytes, in one write
    Repeat(b"...", every)   this chunk again and again, until the client goes or `times` are over
    PAUSE                   nothing more until the test calls `release()`
    HOLD                    nothing more until the client goes
    END                     the terminating chunk: a clean end, after which the connection may serve again
    FIN, RST                the connection is closed as it stands, in order or by a reset

Of each request it keeps what was asked and when and how its client went. It complains of whatever the real API would
refuse, and of requests that nobody scripted; the fixture `upstream` makes each complaint a failed test.

A test module takes the fixtures by `pytest_plugins = ["tests.upstream"]`, so that all share one upstream and service.
(PYTEST_DONT_REWRITE: it has imported this module by then, too late for pytest to rewrite its asserts.)
"""

import asyncio
import json
import queue
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import pytest

from .client import DEADLINE, post
from .conftest import Service, Start

# Of no shape that a filter for keys would know.
OPENAI_KEY = "open-sesame/1001"
ANTHROPIC_KEY = "simsim-open/1002"
EVENT_STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "Transfer-Encoding": "chunked"}


class Head(NamedTuple):
    status: int = 200
    headers: Mapping[str, str] = EVENT_STREAM


class Raw(NamedTuple):
    data: bytes


class Repeat(NamedTuple):
    chunk: bytes
    every: float
    times: int = 1_000_000


class Act(Enum):
    PAUSE = auto()
    HOLD = auto()
    END = auto()
    FIN = auto()
    RST = auto()


PAUSE, HOLD, END, FIN, RST = Act
Step = Head | Raw | Repeat | Act | bytes


class API(NamedTuple):
    """What an API demands of a body, and all that it knows (the parameters in the vendors' SDKs)."""

    required: frozenset[str]
    known: frozenset[str]


def _api(required: str, optional: str) -> API:
    return API(frozenset(required.split()), frozenset(required.split() + optional.split()))


APIS = {
    "/v1/chat/completions": _api(
        "model messages stream",
        """audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens metadata
        modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options
        prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop store
        stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options""",
    ),
    "/v1/responses": _api(
        "model input stream",
        """background conversation include instructions max_output_tokens max_tool_calls metadata moderation
        parallel_tool_calls previous_response_id prompt prompt_cache_key prompt_cache_options prompt_cache_retention
        reasoning safety_identifier service_tier store stream_options temperature text tool_choice tools top_logprobs
        top_p truncation user""",
    ),
    "/v1/messages": _api(
        "model messages max_tokens stream",
        """cache_control container inference_geo metadata output_config service_tier speed stop_sequences system
        temperature thinking tool_choice tools top_k top_p""",
    ),
}


@dataclass
class Exchange:
    """One request and what became of it: `completed`, the script was played, or `aborted`, the client went before."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    connection: int
    ended: str = ""
    ended_at: float = 0.0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop, repr=False)
    _gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0), repr=False)
    _over: threading.Event = field(default_factory=threading.Event, repr=False)
    _waits: threading.Event = field(default_factory=threading.Event, repr=False)

    def release(self) -> None:
        """Let the script go on after a PAUSE; ahead of it, too."""
        self._loop.call_soon_threadsafe(self._gate.release)

    def wait_for_pause(self) -> None:
        """Return once all up to a PAUSE, HOLD or Repeat is written to the socket."""
        assert self._waits.wait(DEADLINE), f"the script does not come so far: {self}"

    def wait(self) -> "Exchange":
        """Return once it has ended."""
        assert self._over.wait(DEADLINE), f"the client does not go: {self}"
        return self

    def end(self, how: str) -> None:
        self.ended, self.ended_at = how, time.monotonic()
        self._over.set()


class Upstream:
    """Use it in a `with`. Requests are answered in the order of `play`, on as many connections as the client likes.

    `at` is a bound socket to listen on: until the `with` its port is closed, and nobody else can have it.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, at: socket.socket | None = None) -> None:
        self._at = at or closed_port()
        self.port = self._at.getsockname()[1]
        self.complaints: list[str] = []
        self.scripts: deque[tuple[Step, ...]] = deque()
        self.exchanges: queue.SimpleQueue[Exchange] = queue.SimpleQueue()
        self.connections: list[_Connection] = []
        self._tls = tls
        self._listens = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="upstream")

    def __enter__(self) -> "Upstream":
        self._thread.start()
        assert self._listens.wait(DEADLINE)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """How many connections there are to it."""
        return sum(not connection._transport.is_closing() for connection in self.connections)

    def play(self, *steps: Step) -> None:
        """Answer the next request that has no answer yet by these steps."""
        self.scripts.append(steps)

    def stream(self, *chunks: bytes) -> None:
        """Answer it by an event stream that ends well."""
        self.play(Head(), *chunks, END)

    def refuse(self, status: int, body: object, **headers: str) -> None:
        """Answer it by a status and a JSON body."""
        text = json.dumps(body).encode()
        self.play(Head(status, {"Content-Type": "application/json", "Content-Length": str(len(text)), **headers}), text)

    def request(self) -> Exchange:
        """Return the next request that came in, as soon as it has."""
        try:
            return self.exchanges.get(timeout=DEADLINE)
        except queue.Empty:
            raise AssertionError("no request came") from None

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_server(lambda: _Connection(self), sock=self._at, ssl=self._tls)
        self._listens.set()
        await self._stop.wait()
        server.close()
        for connection in self.connections:
            connection.close()


def closed_port() -> socket.socket:
    """Return a socket that is bound and does not listen: whoever connects to its port is refused."""
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    return closed


class _Connection(asyncio.Protocol):
    """One client's connection. All of it happens in the upstream's loop, so nothing is seen late or twice."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._received = b""
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._chunked = True
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        transport.set_write_buffer_limits(0)  # writable is when the kernel has all of it
        self._upstream.connections.append(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._exchange:
            self._complain("two requests pipelined")
        elif self._received[:1] == b"\x16":  # TLS: what a plain server does of it
            self._transport.close()
        elif request := self._parse():
            self._begin(*request)

    def eof_received(self) -> None:
        self._gone()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()

    def close(self) -> None:
        self._gone()
        self._transport.abort()

    def _gone(self) -> None:
        if self._exchange:
            assert self._task
            self._exchange.end("aborted")
            self._exchange = None
            self._task.cancel()

    def _parse(self) -> tuple[str, str, dict[str, str], bytes] | None:
        head, blank, rest = self._received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if not blank or len(rest) < length:
            return None
        self._received = rest[length:]
        method, path, _ = first.split()
        return method, path, headers, rest[:length]

    def _begin(self, method: str, path: str, headers: dict[str, str], text: bytes) -> None:
        try:
            body = json.loads(text)
        except ValueError:
            body = None
        for complaint in _complaints(method, path, headers, body):
            self._complain(f"{method} {path}: {complaint}")
        exchange = Exchange(method, path, headers, body, self._upstream.connections.index(self))
        if self._upstream.scripts:
            script = self._upstream.scripts.popleft()
        else:
            self._complain(f"{method} {path}: a request that nobody scripted")
            script = (Head(500, {"Content-Length": "0"}),)
        self._exchange = exchange
        self._task = asyncio.create_task(self._play(exchange, script))
        self._task.add_done_callback(self._played)
        self._upstream.exchanges.put(exchange)

    async def _play(self, exchange: Exchange, script: tuple[Step, ...]) -> None:
        for step in script:
            await self._writable.wait()
            await asyncio.sleep(0)  # let the loop see whether the client goes
            if isinstance(step, Head):
                self._chunked = step.headers.get("Transfer-Encoding") == "chunked"
                lines = [f"HTTP/1.1 {step.status} -", *(f"{name}: {value}" for name, value in step.headers.items())]
                self._transport.write("\r\n".join(lines).encode() + b"\r\n\r\n")
            elif isinstance(step, Raw):
                self._transport.write(step.data)
            elif isinstance(step, bytes):
                self._write(step)
            elif isinstance(step, Repeat):
                await self._repeat(exchange, step)
            else:
                await self._act(exchange, step)
        exchange.end("completed")
        self._exchange = None

    def _played(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()):
            self._complain(f"the script cannot be played: {exc!r}")

    async def _repeat(self, exchange: Exchange, step: Repeat) -> None:
        exchange._waits.set()
        for _ in range(step.times):
            await self._writable.wait()
            self._write(step.chunk)
            await asyncio.sleep(step.every)

    def _write(self, chunk: bytes) -> None:
        if chunk:  # an empty one would be the terminating one
            self._transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk)

    async def _act(self, exchange: Exchange, act: Act) -> None:
        if act in (PAUSE, HOLD):
            exchange._waits.set()
            await (exchange._gate.acquire() if act is PAUSE else asyncio.Event().wait())
        elif act is END:
            self._transport.write(b"0\r\n\r\n")
        elif act is FIN:
            self._transport.close()
        elif act is RST:
            linger = self._transport.get_extra_info("socket")
            linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def _complain(self, complaint: str) -> None:
        self._upstream.complaints.append(complaint)


def _complaints(method: str, path: str, headers: Mapping[str, str], body: Any) -> Iterator[str]:
    """Name what the API at `path` would refuse. Anthropic takes its key in either header, but not in both."""
    if method != "POST" or path not in APIS:
        yield "no such endpoint"
        return
    bearer, key = headers.get("authorization", ""), headers.get("x-api-key", "")
    if path == "/v1/messages":
        if bool(bearer.removeprefix("Bearer ")) == bool(key):
            yield "one of Authorization and x-api-key is needed"
        if not headers.get("anthropic-version"):
            yield "no anthropic-version"
    elif not bearer.startswith("Bearer ") or not bearer.removeprefix("Bearer "):
        yield "no Authorization: Bearer"
    if headers.get("content-type") != "application/json" or not isinstance(body, dict):
        yield "the body is no JSON object"
        return
    if lacking := APIS[path].required - body.keys():
        yield f"the body lacks {sorted(lacking)}"
    if unknown := body.keys() - APIS[path].known:
        yield f"the body has unknown fields {sorted(unknown)}"
    if body.get("stream") is not True:
        yield "`stream` is not true"


@pytest.fixture(scope="session")
def upstream_server() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture
def upstream(upstream_server: Upstream) -> Iterator[Upstream]:
    """The upstream of `relay`, with no script and no memory. What it complains of fails the test."""
    upstream_server.scripts.clear()
    upstream_server.exchanges = queue.SimpleQueue()
    upstream_server.complaints.clear()
    yield upstream_server
    assert not upstream_server.complaints, upstream_server.complaints
    assert not upstream_server.scripts, "a request that was scripted never came"


@pytest.fixture(scope="session")
def relay(start_lasting: Start, upstream_server: Upstream) -> Service:
    """A service whose OpenAI and Anthropic are the scripted upstream."""
    return warm(start_lasting(**environ(upstream_server)), upstream_server)


def environ(upstream: Upstream) -> dict[str, str]:
    """The vendors' own variables that make `upstream` both of them."""
    return {
        "SIDESTREAM_MAX_RETRIES": "0",  # what is scripted once is asked once
        "OPENAI_API_KEY": OPENAI_KEY,
        "OPENAI_BASE_URL": f"{upstream.url}/v1",
        "ANTHROPIC_API_KEY": ANTHROPIC_KEY,
        "ANTHROPIC_BASE_URL": upstream.url,
    }


@cache
def warm(service: Service, upstream: Upstream) -> Service:
    """Return once the service has imported the SDKs, however short its deadlines: the upstream was asked by each."""
    for port, provider in product(service.ports, ("openai", "openai_responses", "anthropic")):
        code = ""
        while code != "upstream_unavailable":
            upstream.refuse(503, {})
            with post(port, f"/{provider}/stream", message="Are you there?") as client:
                code = client.until("error").data["code"]
    return service
