"""The end of a process that is told to stop: its runs may end first, for a while, and nobody is left without an end.

    first signal   no new runs; who waits in line is ended; who goes on may, for `drain_timeout`, and is ended then;
                   then the server is told: it closes what is open, for `GRACE` at most
    second signal  those who go on are ended at once, and so on

The server hears of the signal last: it would close WebSockets at once, and wait for open streams before it tells us.
It knows it from its own flag, not from its handler, which would have the process end by the signal in place of 0.
What hangs (a provider that does not let go, a thread) is left behind: the process ends all the same.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

from .runs import Runs

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE = 2.0  # what the server has to close connections, and we have to close upstreams, seconds
logger = logging.getLogger("sidestream")


class Drain:
    """Ends `runs` within `seconds` of a signal. `hang_up` closes what is no stream, each behind what it is saying."""

    def __init__(self, runs: Runs, seconds: float, hang_up: Callable[[], Awaitable[object]]) -> None:
        self._runs = runs
        self._seconds = seconds
        self._hang_up = hang_up
        self._task: asyncio.Task[None] | None = None
        self._at_once = asyncio.Event()

    def on_signals(self) -> None:
        """Listen to signals in the server's place, in a running loop; not in a thread, where they are another's."""
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for sign in SIGNALS:
                signal.signal(sign, self._before(signal.getsignal(sign), loop))

    def _before(self, handler: Any, loop: asyncio.AbstractEventLoop) -> Callable[[int, FrameType | None], None]:
        def handle(sign: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._hear, lambda: _stop(handler, sign, frame))

        return handle

    def _hear(self, stop: Callable[[], None]) -> None:
        if self._task:
            self._at_once.set()
        else:
            self._task = asyncio.get_running_loop().create_task(self._drain(stop))

    async def _drain(self, stop: Callable[[], None]) -> None:
        self._runs.drain()
        if going_on := len(self._runs):
            logger.info("draining: %d runs go on, for %g s at most", going_on, self._seconds)
        hanging_up = asyncio.ensure_future(self._hang_up())
        waiting = [asyncio.ensure_future(one) for one in (self._runs.wait(), self._at_once.wait())]
        await asyncio.wait(waiting, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        self._runs.end()
        await asyncio.wait((hanging_up,), timeout=GRACE)
        stop()


def _stop(handler: Any, sign: int, frame: FrameType | None) -> None:
    """Let the server stop, and the process end with it or a little later."""
    server: Any = getattr(handler, "__self__", None)
    if hasattr(server, "should_exit"):  # uvicorn's
        server.should_exit = True
        server.config.timeout_graceful_shutdown = server.config.timeout_graceful_shutdown or GRACE
        _leave_behind(2 * GRACE)
    elif callable(handler):
        handler(sign, frame)


def _leave_behind(seconds: float) -> None:
    def leave() -> None:
        logger.warning("what is open does not close; leaving it behind")
        os._exit(0)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
