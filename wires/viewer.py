"""A viewer over HTTP: it follows a run, and is let go when it hangs up or takes nothing.

Two tasks: the request's own sends, another waits for the end of the connection. One clock that re-arms itself sees to
pings and to viewers who take nothing, so an event costs no timer. What is ready goes out in one piece, and viewers who
are equally far share its encoding. What the bytes look like is the wires' business (sse.py, ndjson.py).
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

from starlette.types import Receive, Scope, Send

from streaming.errors import Fault, RequestError, ServiceError, fault
from streaming.events import Cancelled, Error, Terminal
from streaming.followed import Followed
from streaming.log import Cursor, Encode

from .problem import told
from .transport import GONE, SERVER_SEND, OnRefusal, let_go


class Form(Protocol):
    """A wire's form of a stream: what it opens with, what it makes of events, and what it sends when all is quiet."""

    @property
    def opening(self) -> bytes: ...

    @property
    def ping(self) -> bytes: ...

    @property
    def holds(self) -> bool:
        """Whether the response waits for the first words, or a ping: what fails before is told by a status."""

    @property
    def has_said(self) -> bool:
        """Whether anything of the answer was said."""

    @property
    def farewell(self) -> Callable[[], bytes] | None:
        """Makes what sends a viewer to another replica; None where its clients know of none."""

    def take(self, cursor: Cursor) -> bytes:
        """Encode what is ready, if it says anything, and move the cursor on."""


class EachEvent(NamedTuple):
    """A form in which each event is told by itself: viewers who are equally far share its encoding."""

    encode: Encode
    opening: bytes
    ping: bytes
    farewell: Callable[[], bytes] | None = None

    @property
    def holds(self) -> bool:
        return False

    @property
    def has_said(self) -> bool:
        return True

    def take(self, cursor: Cursor) -> bytes:
        return cursor.take_encoded(self.encode)


def failure(ending: Terminal | None) -> Fault | None:
    """Return what a run has failed by, if it has; to who waits for an answer, to be stopped is to fail."""
    if isinstance(ending, Error):
        return fault(ending.code, ending.error)
    if isinstance(ending, Cancelled) and ending.reason == "draining":
        return ServiceError("shutting_down", "The service is shutting down.")
    if isinstance(ending, Cancelled):
        return RequestError("cancelled", "The run was stopped.")
    return None


class Viewer:
    """Follows `run` from what comes after event `after`. `begin` is called once it counts as a viewer of the run.

    It gets a ping when nothing was sent for `ping_interval` seconds (0: never), and is let go where it takes nothing
    for `send_timeout` seconds, of which `on_refusal` is told.
    """

    __slots__ = (
        *("_run", "_begin", "_form", "_cursor", "_ping_interval", "_send_timeout", "_on_refusal"),
        *("_now", "_call_at", "_clock", "_task", "_since", "_sending", "_stalled"),
    )

    def __init__(
        self,
        run: Followed,
        begin: Callable[[], object],
        form: Form,
        *,
        after: int,
        ping_interval: float,
        send_timeout: float,
        on_refusal: OnRefusal = lambda fault: None,
    ) -> None:
        self._run = run
        self._begin = begin
        self._form = form
        self._cursor = Cursor(run.log, after)
        self._ping_interval = ping_interval
        self._send_timeout = send_timeout
        self._on_refusal = on_refusal
        self._since = 0.0  # when what is being sent was begun, or the last was sent
        self._sending = False
        self._stalled = False

    async def serve(self, headers: list[tuple[bytes, bytes]], scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, to its end or the viewer's."""
        loop = asyncio.get_running_loop()
        self._now, self._call_at = loop.time, loop.call_at
        self._since, self._sending = self._now(), not self._form.holds
        with self._run.viewing():
            self._begin()
            # A task of its own: to resume it is not to go through all that has called us.
            self._task = loop.create_task(self._tell(headers, scope, receive, send))
            self._tick()
            try:
                await self._watch(receive)
            finally:
                self._clock.cancel()
                self._task.cancel()
                if not self._task.done():
                    await asyncio.wait([self._task])
        task = self._task
        del self._task  # whose exception holds its frames, which hold us
        if self._stalled:
            await let_go(receive, self._run.id, self._send_timeout, self._on_refusal)
        elif not task.cancelled():
            task.result()

    async def _tell(self, headers: list[tuple[bytes, bytes]], scope: Scope, receive: Receive, send: Send) -> None:
        form = self._form
        self._heed_cut()
        try:
            piece = await self._first_words() if form.holds else form.opening + form.take(self._cursor)
        except Fault as failed:  # of the run, which is no refusal of the request
            await told(scope, failed)(scope, receive, send)
        else:
            await self._send(piece, headers, send, scope.get(SERVER_SEND, send))

    async def _send(self, piece: bytes, headers: list[tuple[bytes, bytes]], send: Send, server_send: Send) -> None:
        run, cursor, form, now = self._run, self._cursor, self._form, self._now
        self._since, self._sending = now(), True
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._sending = False
        take, leaves = form.take, False
        try:
            while True:
                if piece:
                    self._since, self._sending = now(), True
                    try:
                        await server_send({"type": "http.response.body", "body": piece, "more_body": True})
                    except GONE:
                        return
                    self._sending = False
                if leaves:
                    break
                if run.cut is not None:
                    self._heed_cut()
                if form.farewell and self._is_handed_over:
                    piece, leaves = form.farewell(), True
                    continue
                if (more := cursor.more()) is not None:
                    await more
                elif cursor.is_far_behind:
                    await asyncio.sleep(0)
                if run.cut is not None:
                    self._heed_cut()
                after = cursor.after
                piece = take(cursor)
                if not piece and cursor.after == after:  # else it moved on over what this form has no words for
                    if cursor.ended:
                        break
                    piece = b"" if form.farewell and self._is_handed_over else form.ping
        finally:
            cursor.leave()
        self._since, self._sending = self._now(), True
        await send({"type": "http.response.body", "body": b"", "more_body": False})  # waits until the rest was taken

    def _heed_cut(self) -> None:
        """Take nothing of what is true here alone, where the viewer gets the rest from another replica."""
        if self._form.farewell:
            self._cursor.upto = self._run.cut

    @property
    def _is_handed_over(self) -> bool:
        """Whether it has all that is ready, and what is still to come it gets from another replica."""
        return self._run.hands_over and not self._cursor.is_behind and not self._cursor.ended

    async def _first_words(self) -> bytes:
        """Return what there is to say first, or a ping where that takes long. Raises what the run failed by before."""
        cursor, form, woken = self._cursor, self._form, False
        try:
            while True:
                after = cursor.after
                piece = form.take(cursor)
                if piece or (cursor.after == after and (cursor.ended or woken)):
                    break
                if (more := cursor.more()) is not None:
                    await more
                    woken = True
                else:
                    await asyncio.sleep(0)
        finally:
            cursor.leave()
        if not form.has_said and (failed := failure(self._run.terminal)):
            raise failed
        return piece or form.ping

    async def _watch(self, receive: Receive) -> None:
        """Return when the viewer has gone, or the response is at its end."""
        try:
            async with asyncio.timeout(None) as watching:

                def over(task: object) -> None:
                    with suppress(RuntimeError):  # the server has told us before
                        watching.reschedule(0)

                self._task.add_done_callback(over)
                while (await receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return

    def _tick(self) -> None:
        """Ping, let go, or come back when one of them may be due."""
        now, ping = self._now(), self._ping_interval or math.inf
        wait = self._send_timeout if self._sending else ping
        if now >= self._since + wait:
            if self._sending:
                self._stalled = True
                self._task.cancel()
            self._since = now
            self._cursor.wake()
        self._clock = self._call_at(min(self._since + wait, now + ping, now + self._send_timeout), self._tick)
