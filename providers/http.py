"""The way to upstreams over HTTP: the SSE decoder, and the loop over a response.

From the request on the bytes are ours, because an SDK takes longer over one request, and over one token, than all the
rest of the relay. It knows no vendor.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import ModuleType
from typing import Any, Protocol
from urllib.request import getproxies, proxy_bypass

import httpx2
import msgspec
from msgspec.structs import replace

from streaming.errors import Fault, UpstreamError
from streaming.events import Finish, ToolCall
from streaming.request import Emit, ProviderSettings, RunRequest

from . import Client, Item, Translation, scrub, upstream_error
from .connection import CONNECT_TIMEOUT, Connection, Pool
from .endpoint import Endpoint, record

# After the terminator a well-behaved upstream closes the body at once; reading to its end keeps the connection.
DRAIN_TIMEOUT = 0.1
BOM = b"\xef\xbb\xbf"
CR = ord("\r")  # to look for a number takes a fifth of what looking for bytes does
MAX_EVENT_BYTES = 16 * 2**20
MAX_ERROR_BYTES = 2**16
# What a host or a proxy that is none raises, and a kind of proxy for which a package is missing.
UNUSABLE = (ValueError, httpx2.InvalidURL, ImportError)
# What a route that leads nowhere raises in the end: it is not waited for a second time.
SILENT = (TimeoutError, httpx2.TimeoutException)
MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
NOT_UNDERSTOOD = "The upstream sent something that could not be understood."


class SSEDecoder:
    """Take server-sent events apart (WHATWG HTML 9.2.6), whatever the splits; only `data` matters to us.

    An event without its blank line is incomplete and is dropped at the end, as the specification says.
    """

    def __init__(self) -> None:
        self._rest = b""  # of a line
        self._data: list[bytes] = []  # of an event
        self._size = 0  # of an event's lines so far
        self._start = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of each event completed by `chunk`. Raises UpstreamError where one has no end."""
        if self._start:
            chunk = self._rest + chunk
            if len(chunk) < len(BOM) and BOM.startswith(chunk):
                self._rest = chunk
                return []
            self._rest, self._start = b"", False
            chunk = chunk.removeprefix(BOM)
        if self._after_cr or CR in chunk:
            chunk = self._with_newlines(chunk)
        if self._rest:
            chunk = self._rest + chunk
        events, data, size = [], self._data, self._size
        lines = chunk.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            size += len(line) + 1
            if not line:
                if data:
                    events.append(data[0] if len(data) == 1 else b"\n".join(data))
                    data.clear()
                size = 0
            elif line.startswith(b"data: "):
                data.append(line[6:])
            elif line == b"data" or line.startswith(b"data:"):
                data.append(line[5:])
        self._size = size
        if size + len(self._rest) > MAX_EVENT_BYTES:
            raise UpstreamError("upstream_invalid", "The upstream sent an event without an end.")
        return events

    def _with_newlines(self, chunk: bytes) -> bytes:
        if not chunk:
            return chunk
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")  # the other half of a CRLF
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


class Answer(Protocol):
    """A response whose body has yet to be read. Whoever has it closes it."""

    status: int
    headers: dict[bytes, bytes]

    @property
    def whole(self) -> bool:
        """Whether all of it is here."""

    async def read(self) -> bytes:
        """Return what has come as soon as there is something; b"" at the end. Raises OSError or httpx2.HTTPError."""

    async def close(self) -> None: ...


class Upstreams:
    """See providers.Upstream. Made once a process; `close` it in the loop that used it."""

    def __init__(self) -> None:
        self._pool = Pool(httpx2.create_ssl_context)
        self._proxies = getproxies()
        self._clients: dict[str, httpx2.AsyncHTTPTransport] = {}

    async def close(self) -> None:
        self._pool.close()
        for client in self._clients.values():
            await client.aclose()

    def endpoint(
        self,
        sdk: ModuleType,
        client: Callable[..., Client],
        settings: ProviderSettings,
        call: Callable[[Client], object],
        **elsewhere: Any,
    ) -> Endpoint:
        return record(sdk, client, settings, call, elsewhere)

    async def follow(
        self,
        endpoint: Endpoint,
        body: dict[str, Any],
        translation: Translation,
        emit: Emit,
        request: RunRequest,
    ) -> None:
        if request.upstream_key:
            endpoint = endpoint.with_key(request.upstream_key)
        if further := [*request.trace, *request.passed]:
            endpoint = endpoint.with_headers(further)
        try:
            answer = await self._ask(endpoint, _encode(body))
        except (OSError, httpx2.HTTPError, *UNUSABLE) as exc:
            again = not isinstance(exc, (*SILENT, *UNUSABLE))
            raise UpstreamError("upstream_unavailable", "The upstream cannot be reached.", again=again) from exc
        try:
            await _check(answer, endpoint.secrets)
            telling = _Telling(translation, emit)
            await _pour(answer, telling.take)
            if not translation.over and not telling.fault and (batch := list(translation.eof())):
                telling.tell(batch)
            if telling.fault:
                telling.fault.text = scrub(telling.fault.text, endpoint.secrets)
                try:
                    raise telling.fault
                finally:
                    del telling  # which has the fault, whose traceback holds this frame, which would hold it
            if translation.over:
                await _drain(answer)
        except httpx2.DecodingError as exc:
            raise UpstreamError("upstream_invalid", NOT_UNDERSTOOD) from exc
        except (OSError, httpx2.HTTPError) as exc:
            raise UpstreamError("upstream_incomplete", "The upstream broke off before the answer was whole.") from exc
        finally:
            await answer.close()

    async def _ask(self, endpoint: Endpoint, body: bytes) -> Answer:
        origin, scheme = endpoint.origin, endpoint.url.scheme
        proxy = self._proxies.get(scheme) or self._proxies.get("all")
        if proxy is None or proxy_bypass(f"{origin.host}:{origin.port}"):
            request = b"%bContent-Length: %d\r\n\r\n%b" % (endpoint.head, len(body), body)
            return await self._pool.ask(origin, request)
        return await self._ask_through(proxy, endpoint, body)

    async def _ask_through(self, proxy: str, endpoint: Endpoint, body: bytes) -> Answer:
        if proxy not in self._clients:
            url = proxy if "://" in proxy else f"http://{proxy}"
            unlimited = httpx2.Limits(max_connections=None)
            self._clients[proxy] = httpx2.AsyncHTTPTransport(proxy=httpx2.Proxy(url), limits=unlimited)
        timeout = {"timeout": httpx2.Timeout(None, connect=CONNECT_TIMEOUT).as_dict()}
        request = httpx2.Request("POST", endpoint.url, headers=endpoint.headers, content=body, extensions=timeout)
        return _Proxied(await self._clients[proxy].handle_async_request(request))


def _encode(body: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:  # half of a surrogate pair has no UTF-8, but JSON can name it
        return json.dumps(body).encode()


class _Proxied:
    """An answer through a proxy, which httpx2 knows how to ask."""

    whole = False

    def __init__(self, response: httpx2.Response) -> None:
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        self.status = response.status_code
        self.headers = {name.lower(): value for name, value in response.headers.raw}
        self._stream = response.stream
        self._chunks = aiter(response.stream)

    async def read(self) -> bytes:
        return await anext(self._chunks, b"")

    async def close(self) -> None:
        await self._stream.aclose()


async def _check(answer: Answer, secrets: tuple[str, ...]) -> None:
    """Raise UpstreamError unless the answer is the stream that was asked for."""
    if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
        raise await _refusal(answer, secrets)
    if not answer.headers.get(b"content-type", b"").lower().startswith(b"text/event-stream"):
        raise UpstreamError("upstream_invalid", "The upstream answered with something that is not an event stream.")


async def _refusal(answer: Answer, secrets: tuple[str, ...]) -> UpstreamError:
    """Understand an error's body as far as it comes, and as far as it is JSON: its status tells, too."""
    text, error = b"", None
    read = _reader(answer)
    with suppress(OSError, httpx2.HTTPError):
        while len(text) < MAX_ERROR_BYTES and (chunk := await read()):
            text += chunk
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        body = msgspec.json.decode(text)
        error = body.get("error", body) if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    codes = [code for key in ("code", "type") if isinstance(code := error.get(key), str)]
    return upstream_error(
        *codes,
        status=answer.status,
        message=error.get("message"),
        secrets=secrets,
        retry_after=retry_after(answer.headers, time.time()),
        again=answer.headers.get(b"x-should-retry") != b"false",  # OpenAI's and Anthropic's own word
    )


def retry_after(headers: Mapping[bytes, bytes], now: float) -> float | None:
    """Return the seconds that an upstream wants to be left alone, if it says: a number, or a date (RFC 9110, 10.2.3).

    `retry-after-ms` is the vendors' own, in milliseconds. `now` is seconds of the Unix epoch.
    """
    for name, per_second in ((b"retry-after-ms", 1000.0), (b"retry-after", 1.0)):
        said = headers.get(name, b"").decode("latin-1")
        with suppress(ValueError):
            if (seconds := float(said) / per_second) >= 0:
                return seconds
        with suppress(ValueError, OverflowError):
            date = parsedate_to_datetime(said)
            return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)
    return None


def _reader(answer: Answer) -> Callable[[], Awaitable[bytes]]:
    """Return what reads the body: the answer itself, or httpx2, which knows how to decompress it."""
    if _is_plain(answer):
        return answer.read
    encoding = answer.headers[b"content-encoding"]
    chunks = httpx2.Response(
        answer.status, headers=[(b"content-encoding", encoding)], stream=_Stream(answer)
    ).aiter_bytes()
    return lambda: anext(chunks, b"")


def _is_plain(answer: Answer) -> bool:
    return answer.headers.get(b"content-encoding", b"identity").lower() == b"identity"


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._answer.read():
            yield chunk


async def _pour(answer: Answer, sink: Callable[[bytes], bool]) -> None:
    """Give `sink` what comes, as it comes, until that says that it has enough, or to the end."""
    if isinstance(answer, Connection) and _is_plain(answer):
        await answer.pour(sink)
        return
    read = _reader(answer)
    while (chunk := await read()) and not sink(chunk):
        pass


class _Telling:
    """The way of an answer's bytes to its run.

    One chunk that cannot be read is passed over, since the others may make a whole answer, and Finish tells of it; the
    second is a fault. So is a tool call behind the first: it may lack what would make it do something else.
    """

    def __init__(self, translation: Translation, emit: Emit) -> None:
        self.fault: Fault | None = None
        self._feed = SSEDecoder().feed
        self._translation = translation
        self._emit = emit
        self._gap: int | None = None  # where in the batch at hand a chunk was passed over; 0 in those behind it

    def take(self, chunk: bytes) -> bool:
        """Translate and emit a chunk, and what came whole before a fault in it; tell whether that is all."""
        translation = self._translation
        batch: list[Item] = []
        try:
            for data in self._feed(chunk):
                try:
                    batch += translation.feed(data)
                except MALFORMED as exc:
                    if self._gap is not None:
                        self._fail(exc)
                        break
                    self._gap = len(batch)
                if translation.over:
                    break
        except Fault as exc:
            self.fault = exc.with_traceback(None)
        if batch:
            self.tell(batch)
        return translation.over or self.fault is not None

    def tell(self, batch: list[Item]) -> None:
        if self._gap is not None:
            batch = [replace(item, skipped_chunks=1) if isinstance(item, Finish) else item for item in batch]
            calls = (
                place for place, item in enumerate(batch) if place >= (self._gap or 0) and isinstance(item, ToolCall)
            )
            if (call := next(calls, None)) is not None:
                self._fail(None)
                batch = batch[:call]
            self._gap = 0
        self._emit(batch)

    def _fail(self, why: Exception | None) -> None:
        self.fault = UpstreamError("upstream_invalid", NOT_UNDERSTOOD)
        # Without its traceback, which has this frame, which has us.
        self.fault.__cause__ = why and why.with_traceback(None)


async def _drain(answer: Answer) -> None:
    if answer.whole:
        return
    with suppress(OSError, httpx2.HTTPError):  # TimeoutError among them: the answer is whole, the connection is lost
        async with asyncio.timeout(DRAIN_TIMEOUT):
            while await answer.read():
                pass
