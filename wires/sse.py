"""Server-sent events: named, with ids, for a browser's own EventSource (WHATWG HTML, section 9.2).

sse-starlette's response owns pings and the watch for a disconnect. It gets whole frames as bytes,
all that are ready in one piece, so nothing is encoded twice and one wake-up is one write.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from streaming.events import Event
from streaming.log import follow
from streaming.run import Run

from .chat import json_line
from .transport import let_go

# At a signal the service ends its runs, and so its streams, with a terminal event; this would cut them before.
AppStatus.enable_automatic_graceful_drain = False


def frame(run_id: bytes, seq: int, event: Event) -> bytes:
    """Encode one event; its id names its run, so that a reconnecting EventSource finds it again."""
    return b"event: %b\nid: %b-%d\ndata: %b\n\n" % (event.name.encode(), run_id, seq, json_line(event))


async def frames(
    run: Run, after: int, retry_ms: int, over: Callable[[], object] = lambda: None
) -> AsyncIterator[bytes]:
    """Yield what is ready in one piece each; `over` is called when nothing follows."""
    run_id = run.id.encode()
    yield b"retry: %d\n\n" % retry_ms
    async for batch in follow(run.log, after):
        yield b"".join([frame(run_id, seq, event) for seq, event in batch])
    over()


class EventStream(EventSourceResponse):
    """Follows a run as server-sent events, from what comes after event `after`.

    `begin` is called once the viewer counts, before the first byte.

    A viewer that takes nothing for `send_timeout` seconds is let go. Of this sse-starlette would make a cancel scope a
    message, an eighth of a token's whole cost; one clock a viewer that re-arms itself does as well.
    """

    def __init__(
        self,
        run: Run,
        begin: Callable[[], None],
        *,
        after: int,
        retry_ms: int,
        ping_interval: float,
        send_timeout: float,
    ) -> None:
        super().__init__(
            frames(run, after, retry_ms, self._end),
            ping=ping_interval,
            ping_message_factory=lambda: b": ping\n\n",  # type: ignore[arg-type, return-value]  # bytes pass as they are
            sep="\n",  # its default, CRLF, hides every event from clients that split at two newlines
        )
        self._run = run
        self._begin = begin
        self._longest_send = send_timeout
        self._sending_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._now = asyncio.get_running_loop().time
        with self._run.viewing():
            self._begin()
            try:
                async with asyncio.timeout(None) as self._deadline:
                    self._check_send()
                    await super().__call__(scope, receive, send)
            except TimeoutError:
                let_go(receive, self._run.id, self._longest_send)
            finally:
                self._clock.cancel()

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        if not self.active:  # a task that always has something ready is never reached by anyio's cancellation
            raise ClientDisconnect
        self._sending_since = self._sending_since or self._now()  # a ping may wait behind an event
        await send(message)
        self._sending_since = None

    def _end(self) -> None:
        """Watch the end of the body as well, which sse-starlette sends by itself."""
        self._sending_since = self._now()

    def _check_send(self) -> None:
        due = (self._sending_since or self._now()) + self._longest_send
        if due > self._now():
            self._clock = asyncio.get_running_loop().call_at(due, self._check_send)
        else:
            self._deadline.reschedule(self._now())
