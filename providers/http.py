"""The way to upstreams over HTTP: one aiohttp-backed client a process, the SSE decoder, and the loop over a response.

The vendors' SDKs make the request (auth, headers, bodies) through this client; from the response on the bytes are
ours, because building an SDK object for each token costs more than all the rest of the relay. It knows no vendor.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from types import ModuleType
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
import msgspec
from yarl import URL

from streaming.errors import Fault, UpstreamError
from streaming.request import ProviderSettings

from . import Client, Item, Translation, scrub, upstream_error

CONNECT_TIMEOUT = 10.0
# After the terminator a well-behaved upstream closes the body at once; reading to its end keeps the connection.
DRAIN_TIMEOUT = 0.1
# Shorter than what servers close idle connections after (uvicorn, and so vLLM, Node, llama.cpp: 5 s; vendors: more), so
# that no request goes into a connection that is being closed.
KEEPALIVE = 4.0
BOM = b"\xef\xbb\xbf"
MAX_EVENT_BYTES = 16 * 2**20


class SSEDecoder:
    """Take server-sent events apart (WHATWG HTML 9.2.6), whatever the splits; only `data` matters to us.

    An event without its blank line is incomplete and is dropped at the end, as the specification says.
    """

    def __init__(self) -> None:
        self._rest = b""
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
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")  # the other half of a CRLF
        self._after_cr = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        whole, blank, self._rest = (self._rest + chunk).rpartition(b"\n\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise UpstreamError("upstream_invalid", "The upstream sent an event without an end.")
        return [data for event in whole.split(b"\n\n") if (data := _data(event)) is not None] if blank else []


def _data(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line == b"data" or line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


class Upstreams:
    """See providers.Upstream. Made once a process; `close` it in the loop that used it."""

    def __init__(self) -> None:
        self._transport = _Transport()
        self.client = httpx2.AsyncClient(
            transport=self._transport,
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT),
            headers={"Accept-Encoding": "identity"},
            follow_redirects=False,  # an API key goes nowhere but where it was meant to
        )

    async def close(self) -> None:
        await self.client.aclose()

    def connect(
        self, sdk: ModuleType, client: Callable[..., Client], settings: ProviderSettings, **elsewhere: Any
    ) -> Client:
        ours = {"http_client": self.client, "max_retries": 0}
        if settings.base_url is None:
            return client(api_key=settings.api_key, **ours)
        lines = os.environ.get(f"{sdk.__name__.upper()}_CUSTOM_HEADERS", "").splitlines()
        headers = {line.partition(":")[0].strip(): sdk.Omit() for line in lines if ":" in line}
        if settings.options.get("keep_alive") is False:
            headers["Connection"] = "close"
        key = settings.api_key or "none"
        return client(api_key=key, base_url=settings.base_url, default_headers=headers, **elsewhere, **ours)

    async def follow(
        self,
        opening: AbstractAsyncContextManager[Any],
        translation: Translation,
        sdk: ModuleType,
        secrets: tuple[str, ...] = (),
    ) -> AsyncGenerator[list[Item]]:
        try:
            async with opening as response:
                _check_content_type(response.headers.get("content-type", ""))
                chunks = _body(response.http_response)
                decoder = SSEDecoder()
                async for chunk in chunks:
                    batch, fault = _translate(decoder, translation, chunk)
                    if batch:
                        yield batch
                    if fault:
                        fault.text = scrub(fault.text, secrets)
                        raise fault
                    if translation.over:
                        await _drain(chunks)
                        return
                if batch := list(translation.eof()):
                    yield batch
        except Fault:
            raise
        except Exception as exc:
            raise _fault(exc, sdk, secrets) from exc


def _translate(decoder: SSEDecoder, translation: Translation, chunk: bytes) -> tuple[list[Item], Fault | None]:
    """Translate a chunk; what came whole before a fault in the same chunk is kept."""
    batch: list[Item] = []
    try:
        for data in decoder.feed(chunk):
            batch.extend(translation.feed(data))
            if translation.over:
                break
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        fault = UpstreamError("upstream_invalid", "The upstream sent something that could not be understood.")
        fault.__cause__ = exc
        return batch, fault
    except Fault as exc:
        return batch, exc
    return batch, None


def _check_content_type(content_type: str) -> None:
    if not content_type.lower().startswith("text/event-stream"):
        raise UpstreamError("upstream_invalid", "The upstream answered with something that is not an event stream.")


def _body(response: httpx2.Response) -> AsyncIterator[bytes]:
    """Iterate the body as it arrives; past httpx2's own layers of iterators where there is nothing to decompress."""
    if "content-encoding" in response.headers or not isinstance(response.stream, httpx2.AsyncByteStream):
        return response.aiter_bytes()
    return aiter(response.stream)


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT):
            async for _ in chunks:
                pass
    except (TimeoutError, httpx2.HTTPError):
        return  # the answer is whole; only the connection is lost


def _fault(exc: Exception, sdk: ModuleType, secrets: tuple[str, ...]) -> Exception:
    """Translate what the SDK or the client raised. Both SDKs are made by one generator and name their errors alike."""
    if isinstance(exc, sdk.APIStatusError):
        body = exc.body if isinstance(exc.body, dict) else {}
        error = body["error"] if isinstance(body.get("error"), dict) else body
        codes = [code for key in ("code", "type") if isinstance(code := error.get(key), str)]
        return upstream_error(*codes, status=exc.status_code, message=error.get("message"), secrets=secrets)
    if isinstance(exc, sdk.APIConnectionError):
        return UpstreamError("upstream_unavailable", "The upstream cannot be reached.")
    if isinstance(exc, httpx2.DecodingError):
        return UpstreamError("upstream_invalid", "The upstream sent something that could not be understood.")
    if isinstance(exc, httpx2.HTTPError):
        return UpstreamError("upstream_incomplete", "The upstream broke off before the answer was whole.")
    return exc


class _Transport(httpx2.AsyncBaseTransport):
    """httpx2's interface over an aiohttp session: half the CPU a chunk, and no slower with thousands open."""

    def __init__(self) -> None:
        self._ssl: ssl.SSLContext = httpx2.create_ssl_context()
        self._proxies = getproxies()
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        session = self._session(brief=request.headers["connection"] == "close")
        try:
            response = await session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw],
                data=await request.aread(),
                allow_redirects=False,
                proxy=self._proxy(request.url),
            )
        except TimeoutError as exc:
            raise httpx2.ConnectTimeout(type(exc).__name__, request=request) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise httpx2.ConnectError(type(exc).__name__, request=request) from exc
        return httpx2.Response(
            response.status, headers=response.raw_headers, stream=_Body(request, response), request=request
        )

    async def aclose(self) -> None:
        for session in self._sessions.values():
            await session.close()

    def _session(self, *, brief: bool) -> aiohttp.ClientSession:
        """The session whose pool keeps connections, or the one for servers that do not.

        Neither has a limit (aiohttp's is 100 connections): past one, a stream would wait without a word.
        """
        if brief not in self._sessions:
            keeping = {"force_close": True} if brief else {"keepalive_timeout": KEEPALIVE}
            self._sessions[brief] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl, **keeping),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._sessions[brief]

    def _proxy(self, url: httpx2.URL) -> str | None:
        proxy = self._proxies.get(url.scheme) or self._proxies.get("all")
        return None if proxy is None or proxy_bypass(url.host) else proxy


class _Body(httpx2.AsyncByteStream):
    """A response's body as it arrives, all that is ready in one piece."""

    def __init__(self, request: httpx2.Request, response: aiohttp.ClientResponse) -> None:
        self._request = request
        self._response = response
        protocol = response.connection and response.connection.protocol  # None where all is here already
        self._closed = protocol.closed if protocol is not None else None
        if self._closed:
            self._closed.add_done_callback(self._lost)

    def _lost(self, closed: object) -> None:
        """Tell who reads that the connection is gone: aiohttp forgets to where the chunks' framing is broken."""
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the connection was lost"))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._response.content
        try:
            while chunk := await content.readany():
                yield chunk
        except (aiohttp.ClientError, OSError) as exc:
            if self._response.status >= HTTPStatus.BAD_REQUEST:
                return  # of an error's body what came will do: its status tells
            raise httpx2.ReadError(type(exc).__name__, request=self._request) from exc

    async def aclose(self) -> None:
        if self._closed:
            self._closed.remove_done_callback(self._lost)
        self._response.close()  # a connection whose response was read to its end is back in the pool already
