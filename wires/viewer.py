"""A viewer over HTTP: it follows a run, and is let go when it hangs up or takes nothing.

Two tasks: the request's own sends, another waits for the end of the connection. One clock that re-arms itself sees to
pings and to viewers who take nothing, so an event costs no timer. What is ready goes out in one piece, and viewers who
are equally far share its encoding. What the bytes look like is the wires' business (sse.py, ndjson.py).
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import NamedTuple

from starlette.types import Receive, Send

from streaming.log import Cursor, Encode
from streaming.run import Run

from .transport import let_go


class Form(NamedTuple):
    """A wire's form of a stream: how it encodes an event, what it opens with, and what it sends when all is quiet."""

    encode: Encode
    opening: bytes
    ping: bytes


class Viewer:
    """Follows `run` from what comes after event `after`. `begin` is called once it counts as a viewer of the run.

    It gets a ping when nothing was sent for `ping_interval` seconds (0: never), and is let go where it takes nothing
    for `send_timeout` seconds.
    """

    def __init__(
        self, run: Run, begin: Callable[[], object], *, after: int, ping_interval: float, send_timeout: float
    ) -> None:
        self._run = run
        self._begin = begin
        self._cursor = Cursor(run.log, after)
        self._ping_interval = ping_interval
        self._send_timeout = send_timeout
        self._sending = False
        self._since = 0.0  # when what is being sent was, or the last was sent
        self._stalled = False

    async def pieces(self, form: Form) -> AsyncGenerator[bytes]:
        """Yield what is ready in one piece each, until nothing will follow; pings are pieces too."""
        cursor, encode = self._cursor, form.encode
        yield form.opening + await cursor.encoded(encode)
        while not cursor.ended:
            yield await cursor.encoded(encode) or form.ping

    async def serve(
        self, pieces: AsyncGenerator[bytes], headers: list[tuple[bytes, bytes]], receive: Receive, send: Send
    ) -> None:
        """Send the response, to its end or the viewer's. Closes `pieces`."""
        loop = asyncio.get_running_loop()
        self._now, self._call_at = loop.time, loop.call_at
        self._since, self._sending = self._now(), True
        with self._run.viewing():
            self._begin()
            try:
                async with asyncio.timeout(None) as self._end, aclosing(pieces):
                    self._tick()
                    watching = loop.create_task(self._watch(receive))
                    try:
                        await self._send(pieces, headers, send)
                    finally:
                        watching.cancel()
                        self._clock.cancel()
            except TimeoutError:
                if self._stalled:
                    let_go(receive, self._run.id, self._send_timeout)

    async def _send(self, pieces: AsyncGenerator[bytes], headers: list[tuple[bytes, bytes]], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._sending = False
        async for piece in pieces:
            self._since, self._sending = self._now(), True
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self._sending = False
        self._since, self._sending = self._now(), True
        await send({"type": "http.response.body", "body": b"", "more_body": False})  # waits until the rest was taken

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._end.reschedule(0)

    def _tick(self) -> None:
        """Ping, let go, or come back when one of them may be due."""
        now, ping = self._now(), self._ping_interval or math.inf
        wait = self._send_timeout if self._sending else ping
        if now >= self._since + wait:
            if self._sending:
                self._stalled = True
                self._end.reschedule(0)
            self._since = now
            self._cursor.wake()
        self._clock = self._call_at(min(self._since + wait, now + ping, now + self._send_timeout), self._tick)
