"""Upstreams, one file each: a pure translation `chunk -> events`, and the short I/O loop around it.

A provider is made from its settings and the shared way to HTTP upstreams, and imports nothing of ours but this
file and streaming.events, streaming.errors, streaming.request. They are found by name in registry.py.
"""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import Any, Protocol, TypeVar

import msgspec

from streaming.events import Event, Finish, Usage
from streaming.request import ProviderSettings

Client = TypeVar("Client")
Item = Event | Usage | Finish


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


class Upstream(Protocol):
    """The process's one HTTP client, and the loop that follows a streamed response (providers/http.py)."""

    def connect(
        self, sdk: ModuleType, client: Callable[..., Client], settings: ProviderSettings, **elsewhere: Any
    ) -> Client:
        """Make an SDK's client over the shared connections. Without `base_url`, the SDK's own variables count.

        A third party at a `base_url` gets neither the vendor's key, nor the headers that <SDK>_CUSTOM_HEADERS adds,
        nor what `elsewhere` overrides for it.
        """

    def follow(
        self,
        opening: AbstractAsyncContextManager[Any],
        translation: Translation,
        sdk: ModuleType,
        secrets: tuple[str, ...] = (),
    ) -> AsyncGenerator[list[Item]]:
        """Send the request `opening` stands for and yield what arrives, a network read at a time.

        Every failure comes out as an UpstreamError. The connection is closed when the generator is; it is reused
        where the response was read to its end.
        """
