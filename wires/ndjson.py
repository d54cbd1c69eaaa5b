"""NDJSON: one `{"event", "id", "data"}` a line, for readers that have no EventSource.

Pings are empty lines, which NDJSON readers pass over: proxies cut silent responses as they cut silent SSE. The watch
for a disconnect is our own, since Starlette's streaming response has none on newer ASGI servers.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from streaming.events import Event, merge
from streaming.run import Run

from .chat import json_line
from .transport import let_go

MEDIA_TYPE = "application/x-ndjson"


def line(run_id: bytes, seq: int, event: Event) -> bytes:
    """Encode one event as one line."""
    return b'{"event":"%b","id":"%b-%d","data":%b}\n' % (event.name.encode(), run_id, seq, json_line(event))


class LineStream(Response):
    """Follows a run as NDJSON, from what comes after event `after`.

    `begin` is called once the viewer counts, before the first byte.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self, run: Run, begin: Callable[[], None], *, after: int, ping_interval: float, send_timeout: float
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._run = run
        self._begin = begin
        self._after = after
        self._ping_interval = ping_interval
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._run.viewing():
            self._begin()
            sending = asyncio.create_task(self._send(send))
            leaving = asyncio.create_task(_disconnect(receive))
            try:
                await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (sending, leaving):
                    task.cancel()
                await asyncio.wait((sending, leaving))
        if sending.cancelled() or not (exc := sending.exception()):
            return
        if not isinstance(exc, TimeoutError):
            raise exc
        let_go(receive, self._run.id, self._send_timeout)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        log, run_id, after = self._run.log, self._run.id.encode(), self._after
        while not log.ended(after):
            events: list[Event] = []
            with suppress(TimeoutError):  # time for a ping
                async with asyncio.timeout(self._ping_interval or None):
                    events = await log.next(after)
            body = b"".join([line(run_id, seq, event) for seq, event in merge(events, after)]) if events else b"\n"
            after += len(events)
            async with asyncio.timeout(self._send_timeout):
                await send({"type": "http.response.body", "body": body, "more_body": True})
        async with asyncio.timeout(self._send_timeout):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
