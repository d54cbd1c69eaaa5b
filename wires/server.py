"""uvicorn's HTTP server with the limits that it has not, and what is set of those it has.

A connection that nobody serves has a clock, always: uvicorn's own (`timeout_keep_alive`) while it idles between two
requests, ours while the head of one is to come, or the rest of a body that nobody waits for, and while its client takes
nothing of what is sent. Else whoever sends nothing, or a byte a minute, or reads nothing would be here for ever.

What it refuses itself is told to `on_refusal`, where the app's lifespan has put that into its state (ASGI, lifespan).

It overrides methods and reads attributes that uvicorn names without an underscore but does not promise:
tests/test_server.py is what notices when they change.
"""

import asyncio
import sys
from functools import partial
from typing import Any, cast

import httptools
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.config import LOGGING_CONFIG
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from streaming.errors import Fault, RequestError, ServiceError
from streaming.logs import Format, JSONLines
from streaming.settings import Settings

from .host import path_below_root
from .problem import NOT_SNIFFED, problem
from .socket_server import SocketProtocol
from .transport import OnRefusal, stalled

HEADER_TIMEOUT, SEND_TIMEOUT = 20.0, 60.0  # seconds; the defaults of the settings
MAX_HEAD = 64 * 1024  # of a request line and its headers; what a browser sends is a few KB, a prompt in a URL is more
FAREWELL = 1.0  # for how long we listen behind a last answer, seconds
ALIVE = "/healthz"  # which a full service answers too: it must not be taken for a dead one, and be killed


def options(settings: Settings) -> dict[str, Any]:
    """Return how uvicorn is to serve: each limit that it has, on purpose."""
    return {
        "http": partial(Protocol, header_timeout=settings.header_timeout, send_timeout=settings.send_timeout),
        "limit_concurrency": settings.max_connections or None,  # counted by Protocol, which says how
        "h11_max_incomplete_event_size": MAX_HEAD,  # uvicorn's name for it; httptools itself has no limit
        # Who waits to be accepted while the loop is busy; the system may allow fewer (net.core.somaxconn).
        "backlog": 2048,
        # Longer than a proxy keeps an idle connection to us (nginx, AWS's ALB: 60 s). Were it shorter, we would close
        # some in the very moment in which the proxy sends its next request there, which is a 502 to its client.
        "timeout_keep_alive": 75,
        # Above what we refuse ourselves with an `error` frame: past this uvicorn closes the socket, with 1009.
        "ws_max_size": settings.max_body_bytes + 64 * 1024,
        # As for a stream: a ping in silence, and who does not take it (its pong stays away) is gone.
        "ws_ping_interval": settings.ping_interval or None,
        "ws_ping_timeout": settings.send_timeout,
        # The drain ends what is open, and sets this when it is done (streaming/drain.py).
        "timeout_graceful_shutdown": None,
        # What we run on is nobody's business; the date is wanted of an origin server (RFC 9110, 6.6.1).
        "server_header": False,
        "date_header": True,
        # The client's address in the log, where a proxy on this machine tells it (others: FORWARDED_ALLOW_IPS). Nothing
        # is decided by it.
        "proxy_headers": True,
        "access_log": True,  # without query strings, which hold prompts (streaming/logs.py)
        "log_config": _log_config(settings.log_format),
    }


def _log_config(form: Format) -> dict[str, Any]:
    """Return what uvicorn configures logging by; it does so after all that we could have done."""
    if form == "text":
        return LOGGING_CONFIG
    return {**LOGGING_CONFIG, "formatters": {name: {"()": JSONLines} for name in LOGGING_CONFIG["formatters"]}}


class Protocol(HttpToolsProtocol):
    """One connection. `header_timeout`: how long a request's head may take, seconds.

    Who takes nothing for twice `send_timeout` (seconds) is cut off; a viewer's own clock (viewer.py) comes before that.

    Of uvicorn's settings it knows two by a meaning of its own. `limit_concurrency` is how many may be connected, with
    WebSockets: who comes then is answered 503, who was there is served. (uvicorn refuses both, and no WebSocket.)
    `h11_max_incomplete_event_size` is how large a head may be.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        header_timeout: float = HEADER_TIMEOUT,
        send_timeout: float = SEND_TIMEOUT,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limit_concurrency = None  # uvicorn's way
        if self.ws_protocol_class is WebSocketsSansIOProtocol:
            self.ws_protocol_class = SocketProtocol
        self._header_timeout = header_timeout
        self._on_refusal: OnRefusal = app_state.get("on_refusal", lambda fault: None)
        self._send_timeout = send_timeout
        self._max_head = config.h11_max_incomplete_event_size or MAX_HEAD
        self._size = 0  # what came since a head was complete, or a piece of a body, bytes
        self._clock: asyncio.TimerHandle | None = None
        self._reader_clock: asyncio.TimerHandle | None = None
        self._is_one_too_many = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        limit = self.config.limit_concurrency
        if limit and len(self.connections) > limit:
            self._is_one_too_many = True
            self.app = partial(_turn_away, self._on_refusal)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self._stop_reader_clock()
        if self.timeout_keep_alive_task is not None:  # uvicorn's own, which it forgets after a reset
            self.timeout_keep_alive_task.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came. Of two requests in one read the second's head counts from the next read on."""
        self._size += len(data)
        self._data = data
        super().data_received(data)
        self._data = b""
        if self._size > self._max_head:
            self._refuse(_too_large(self._max_head))
        elif self._clock is None and self.cycle is not None and self.cycle.response_complete:
            self._start_clock()

    @property
    def _declines(self) -> bool:
        """Whether a request may do without the upgrade that it offers, of which we have none: `h2c`, above all.

        CONNECT is the parser's own kind of upgrade, with nothing to do instead.
        """
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT" and not self._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Serve it without (RFC 9110, 7.8): uvicorn would, but for the body, which its parser leaves to the upgrade."""
        if self._declines:
            rest = self._data[cast("httptools.HttpParserUpgrade", sys.exception()).args[0] :]
            lines = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1"]
            lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self._size = 0
            self.data_received(b"\r\n".join([*lines, b"", rest]))

    def on_message_complete(self) -> None:
        if not self._declines:
            super().on_message_complete()

    def on_headers_complete(self) -> None:
        if self._declines:
            return
        self._stop_clock()
        if self._size > self._max_head and self._head_size() > self._max_head:
            self._refuse(_too_large(self._max_head))
            raise ValueError("the head is too large")  # which ends the parsing
        self._size = 0
        super().on_headers_complete()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        self._size = 0
        super().on_body(body)

    def handle_websocket_upgrade(self) -> None:
        if self._is_one_too_many:
            self._refuse(_overloaded())
            return
        self._stop_reader_clock()
        super().handle_websocket_upgrade()
        self.cycle = None  # type: ignore[assignment]  # of a request before: the connection is served now

    def send_400_response(self, msg: str) -> None:
        self._refuse(RequestError("invalid_request", msg))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        self._stop_reader_clock()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # which waits until all is taken
            self._wait_for_reader()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._wait_for_reader()

    def _wait_for_reader(self, left: int | None = None) -> None:
        """Cut off who takes nothing: of whom as much is `left` to take as there was the last time."""
        self._stop_reader_clock()
        size = self.transport.get_write_buffer_size()
        if left is not None and size >= left:
            self._on_refusal(stalled())
            self.transport.abort()
        elif size:
            self._reader_clock = self.loop.call_later(2 * self._send_timeout, self._wait_for_reader, size)

    def _stop_reader_clock(self) -> None:
        if self._reader_clock is not None:
            self._reader_clock.cancel()
            self._reader_clock = None

    def _start_clock(self) -> None:
        self._clock = self.loop.call_later(self._header_timeout, self._be_late)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _be_late(self) -> None:
        self._clock = None
        if self.scope is not None and "method" not in self.scope:  # uvicorn's scope has it once the head is complete
            text = f"The head of the request did not come within {self._header_timeout:g} s."
            self._refuse(RequestError("request_timeout", text, limit="header_timeout"))
        else:
            self.transport.close()

    def _refuse(self, fault: Fault) -> None:
        """Answer in place of the app, and hang up; without a word where another answer is under way."""
        transport = self.transport
        if transport.is_closing() or transport.get_protocol() is not self:  # it was refused
            return
        if self.cycle is not None and not self.cycle.response_complete:
            transport.abort()
            return
        self._stop_clock()
        self._on_refusal(fault)
        transport.write(_last_answer(fault, self.server_state.default_headers))
        transport.set_protocol(_Farewell(self))
        if transport.can_write_eof():
            transport.write_eof()
        self._clock = self.loop.call_later(FAREWELL, transport.abort)


class _Farewell(asyncio.Protocol):
    """Takes what a client still sends behind our last answer; a reset would take that from it (RFC 9112, 9.6)."""

    def __init__(self, of: Protocol) -> None:
        self._of = of

    def connection_lost(self, exc: Exception | None) -> None:
        self._of.connection_lost(exc)


class _HeadTooLarge(RequestError):
    codes = {"too_large": (431, False)}  # noqa: RUF012  # as of every fault


def _too_large(most: int) -> Fault:
    return _HeadTooLarge("too_large", f"The head of the request is larger than {most} bytes.")


def _overloaded() -> Fault:
    text = "The service has as many connections as it may have."
    return ServiceError("overloaded", text, headers={"Connection": "close"}, limit="max_connections")


async def _turn_away(on_refusal: OnRefusal, scope: Scope, receive: Receive, send: Send) -> None:
    answer: Response = PlainTextResponse("ok", headers={"Connection": "close"})
    if path_below_root(scope) != ALIVE:
        fault = _overloaded()
        on_refusal(fault)
        answer = problem(fault)
    await answer(scope, receive, send)


def _last_answer(fault: Fault, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    """Render a fault as all that is still said on a connection."""
    fault.headers.setdefault("Connection", "close")
    answer = problem(fault)
    head = [*default_headers, *answer.raw_headers, NOT_SNIFFED]
    lines = [f"HTTP/1.1 {fault.status} {fault.title}".encode(), *(name + b": " + value for name, value in head)]
    return b"\r\n".join([*lines, b"", bytes(answer.body)])
