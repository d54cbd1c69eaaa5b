"""Where a provider's requests go: what the vendor's SDK says of it, asked once.

Address, key, version, the headers and variables of each vendor: an SDK knows them all, and says the same with each
request of a provider. So it makes one, which is recorded instead of sent; the bodies of the others are a provider's.
"""

import os
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import ModuleType
from typing import Any, NamedTuple

import httpx2

from streaming.errors import UpstreamError
from streaming.request import Headers, ProviderSettings

from . import Client
from .connection import Origin

# What a connection says for itself, each time anew, and what an SDK that traces itself says of the one recorded call.
OWN_HEADERS = (b"content-length", b"transfer-encoding", b"connection", b"traceparent", b"tracestate", b"baggage")
KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")


class Endpoint(NamedTuple):
    """Where a provider's requests go, with which headers, and what of these nobody may see."""

    url: httpx2.URL
    headers: list[tuple[bytes, bytes]]
    origin: Origin
    head: bytes  # all of a request but its length and its body
    secrets: tuple[str, ...]

    def with_key(self, key: str) -> "Endpoint":
        """Return the same with another key in the place of ours."""
        headers = [(name, _with_key(name, value, key.encode())) for name, value in self.headers]
        line = self.head.partition(b"\r\n")[0]
        return self._replace(headers=headers, head=_head(line, headers), secrets=(key,))

    def with_headers(self, headers: Headers) -> "Endpoint":
        """Return the same with further headers."""
        return self._replace(headers=[*self.headers, *headers], head=self.head + _lines(headers))


def _with_key(name: bytes, value: bytes, key: bytes) -> bytes:
    if name.lower() not in KEY_HEADERS:
        return value
    return b"Bearer " + key if value.startswith(b"Bearer ") else key


def _head(line: bytes, headers: Headers) -> bytes:
    return line + b"\r\n" + _lines(headers)


def _lines(headers: Headers) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def record(
    sdk: ModuleType,
    client: Callable[..., Client],
    settings: ProviderSettings,
    call: Callable[[Client], object],
    elsewhere: Mapping[str, Any],
) -> Endpoint:
    """Let an SDK's client make a call, and return where it went. See providers.Upstream."""
    recorder = _Recorder()
    headers = {"Accept-Encoding": "identity", "Connection": "keep-alive"}
    ours = {"http_client": httpx2.Client(transport=recorder, headers=headers), "max_retries": 0}
    if settings.base_url is None:
        call(client(api_key=settings.api_key, **ours))
    else:
        lines = os.environ.get(f"{sdk.__name__.upper()}_CUSTOM_HEADERS", "").splitlines()
        without = {line.partition(":")[0].strip(): sdk.Omit() for line in lines if ":" in line}
        key = settings.api_key or "none"
        call(client(api_key=key, base_url=settings.base_url, default_headers=without, **elsewhere, **ours))
    return _endpoint(recorder.request, keep=settings.options.get("keep_alive") is not False)


class _Recorder(httpx2.BaseTransport):
    """Stands in for the network, and remembers what an SDK sends there."""

    request: httpx2.Request

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.request = request
        return httpx2.Response(HTTPStatus.OK, headers={"Content-Type": "text/event-stream"})


def _endpoint(request: httpx2.Request, *, keep: bool) -> Endpoint:
    headers = [(name, value) for name, value in request.headers.raw if name.lower() not in OWN_HEADERS]
    if any(re.search(rb"[\r\n\0]", text) for header in headers for text in header):
        raise UpstreamError("upstream_auth", "The upstream's key, or a header that is set for it, holds a line break.")
    headers.append((b"Connection", b"keep-alive" if keep else b"close"))
    url = request.url
    port = url.port or (443 if url.scheme == "https" else 80)
    keys = [value.removeprefix(b"Bearer ").decode("latin-1") for name, value in headers if name.lower() in KEY_HEADERS]
    return Endpoint(
        url=url,
        headers=headers,
        origin=Origin(url.scheme == "https", url.raw_host.decode(), port, keep),
        head=_head(b"%b %b HTTP/1.1" % (request.method.encode(), url.raw_path), headers),
        secrets=tuple(keys),
    )
