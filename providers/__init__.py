"""Upstreams, one file each: a pure translation `chunk -> events`, and the short I/O loop around it.

A provider is made from its settings and the shared way to HTTP upstreams, and imports nothing of ours but this
file and streaming.events, streaming.errors, streaming.request. They are found by name in registry.py.
"""

import importlib
import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Protocol, TypeVar

import msgspec

from streaming.errors import SettingsError, UpstreamError
from streaming.request import Emit, ProviderSettings, RunRequest
from streaming.request import Item as Item

Client = TypeVar("Client")


class Translation(Protocol):
    """Turns one upstream's chunks into events. Pure: no I/O, no clock. One instance a stream."""

    def feed(self, data: bytes) -> Iterable[Item]:
        """Translate the data of one server-sent event. Raises UpstreamError, or msgspec's errors where malformed."""

    @property
    def over(self) -> bool:
        """Whether the upstream's own terminator was seen: nothing of interest follows."""

    def eof(self) -> Iterable[Item]:
        """Say what is left to say when the upstream closed without `over`."""


def arguments(text: str) -> tuple[Any, bool]:
    """Parse a tool call's arguments, and tell whether they are JSON; what is not stays the text the model wrote."""
    try:
        return msgspec.json.decode(text) if text else {}, True
    except (msgspec.DecodeError, RecursionError):
        return text, False


def load_target(target: str) -> Any:
    """Import what `module:attr` names. Raises SettingsError that says why it cannot be had."""
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as exc:  # whatever a module does on import
        raise SettingsError(f"cannot import {target}: {type(exc).__name__}: {exc}") from exc


class Upstream(Protocol):
    """The process's way to upstreams over HTTP (providers/http.py)."""

    def endpoint(
        self,
        sdk: ModuleType,
        client: Callable[..., Client],
        settings: ProviderSettings,
        call: Callable[[Client], object],
        **elsewhere: Any,
    ) -> Any:
        """Return where `call` goes and with which headers, as the SDK's `client` has it.

        Without `base_url`, the SDK's own variables count. A third party at a `base_url` gets neither the vendor's key,
        nor the headers that <SDK>_CUSTOM_HEADERS adds, nor what `elsewhere` overrides for it.
        """

    async def follow(
        self, endpoint: Any, body: dict[str, Any], translation: Translation, emit: Emit, request: RunRequest
    ) -> None:
        """Send a body and emit what arrives, a network read at a time; with the caller's own key and the trace's
        headers, where the request has them.

        Every failure comes out as an UpstreamError. The connection is closed with this; it is reused where the
        response was read to its end.
        """


# What vendors call their errors, in a body or in mid-stream. Never the words of a message.
_BY_VENDOR_CODE = {
    "context_length_exceeded": "context_length",
    "content_filter": "content_filtered",
    "content_policy_violation": "content_filtered",
    "invalid_api_key": "upstream_auth",
    "authentication_error": "upstream_auth",
    "permission_error": "upstream_auth",
    "rate_limit_exceeded": "upstream_rate_limited",
    "rate_limit_error": "upstream_rate_limited",
    "insufficient_quota": "upstream_rate_limited",
    "invalid_request_error": "upstream_rejected",
    "invalid_prompt": "upstream_rejected",
    "not_found_error": "upstream_rejected",
    "request_too_large": "upstream_rejected",
}
_FOR_LONG = {"insufficient_quota"}  # a 429 that no wait of ours will mend
_TEXTS = {
    "upstream_auth": "The upstream refused our credentials.",
    "upstream_rejected": "The upstream rejected the request.",
    "upstream_rate_limited": "The upstream is rate limiting us.",
    "upstream_unavailable": "The upstream is unavailable.",
    "upstream_incomplete": "The upstream broke off before the answer was whole.",
    "upstream_invalid": "The upstream sent something that could not be understood.",
    "content_filtered": "The upstream's content filter stopped this.",
    "context_length": "The conversation is longer than the model can take.",
}
_TELLS_WHY = {"upstream_rejected", "context_length", "content_filtered"}


def upstream_error(
    *codes: str | None,
    status: int | None = None,
    message: object = None,
    secrets: tuple[str, ...] = (),
    retry_after: float | None = None,
    again: bool = True,
) -> UpstreamError:
    """Map a vendor's error to ours: a telling HTTP status, else the first of `codes` that is known, else unavailable.

    The vendor's message is passed on, scrubbed of `secrets`, only where the caller can mend what it complains of.
    """
    code = _by_status(status)
    if status is None or code == "upstream_rejected":  # a 401 may call itself an invalid_request_error
        code = next((_BY_VENDOR_CODE[c] for c in codes if c in _BY_VENDOR_CODE), code)
    text = _TEXTS[code] if status is None else f"{_TEXTS[code][:-1]} (HTTP {status})."
    if code in _TELLS_WHY and isinstance(message, str) and message:
        text = f"{text} It says: {scrub(message, secrets)}"
    return UpstreamError(code, text, retry_after=retry_after, again=again and not _FOR_LONG.intersection(codes))


def _by_status(status: int | None) -> str:
    if status in (401, 403):
        return "upstream_auth"
    if status == 429:
        return "upstream_rate_limited"
    if status is not None and status < 500 and status not in (407, 408, 409):
        return "upstream_rejected"
    return "upstream_unavailable"


_KEY_LIKE = re.compile(
    r"(?i)\b(?:bearer\s+\S+|(?:sk|pk|rk|api[-_]?key|key|token|secret)(?:[-_=]|:\s*)[^\s\"',;]{6,})|[\w+/=-]{40,}"
)


def scrub(message: str, secrets: tuple[str, ...] = ()) -> str:
    """Return a foreign text fit for a client: one line, at most 300 characters, nothing in it that may be a key."""
    for secret in secrets:
        if len(secret) > 5:  # shorter ones are stand-ins for none
            message = message.replace(secret, "[redacted]")
    message = _KEY_LIKE.sub("[redacted]", message)
    return " ".join(message.split())[:300]
