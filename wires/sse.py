"""Server-sent events: named, with ids, for a browser's own EventSource (WHATWG HTML, section 9.2).

sse-starlette's response owns pings, the send timeout and the watch for a disconnect. It gets whole frames as bytes,
all that are ready in one piece, so nothing is encoded twice and one wake-up is one write.
"""

import logging
from collections.abc import AsyncIterator, Callable

from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from streaming.events import Event
from streaming.log import follow
from streaming.runs import Run

from .chat import json_line

logger = logging.getLogger("sidestream")


def frame(run_id: bytes, seq: int, event: Event) -> bytes:
    """Encode one event; its id names its run, so that a reconnecting EventSource finds it again."""
    return b"event: %b\nid: %b-%d\ndata: %b\n\n" % (event.name.encode(), run_id, seq, json_line(event))


async def frames(run: Run, after: int, retry_ms: int) -> AsyncIterator[bytes]:
    run_id = run.id.encode()
    yield b"retry: %d\n\n" % retry_ms
    async for batch in follow(run.log, after):
        yield b"".join([frame(run_id, seq, event) for seq, event in batch])


class EventStream(EventSourceResponse):
    """Follows a run as server-sent events. `begin` is called once the viewer counts, before the first byte."""

    def __init__(
        self, run: Run, begin: Callable[[], None], *, retry_ms: int, ping_interval: float, send_timeout: float
    ) -> None:
        super().__init__(
            frames(run, 0, retry_ms),
            ping=ping_interval,
            ping_message_factory=lambda: b": ping\n\n",  # type: ignore[arg-type, return-value]  # bytes pass as they are
            sep="\n",  # its default, CRLF, hides every event from clients that split at two newlines
            send_timeout=send_timeout,
        )
        self._run = run
        self._begin = begin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._run.viewing():
            self._begin()
            try:
                await super().__call__(scope, receive, send)
            except SendTimeoutError:
                logger.info("run %s: a viewer took nothing for %g s and was let go", self._run.id, self.send_timeout)
