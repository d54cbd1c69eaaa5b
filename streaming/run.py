"""A run: one generation, in its own task, apart from any request.

It reads a provider's batches and appends them to its event log; viewers come and go and only read. Whoever wants
to end a run calls `end`: the first reason is recorded, the task is cancelled, and the task's done-callback alone
appends the one terminal event, so a task cancelled before its first step still ends properly.

    what happens                                    recorded                        terminal event
    the provider's Finish                           by the task, as its last step   done
    a fault of the upstream or of ours, and nobody  by the task, as its last step   error/<its code>
      else who could answer (answer.py)
    the log passes `max_run_bytes`                  by the task                     error/output_limit
    `run_timeout` (an asyncio.timeout)              by the task                     error/run_timeout
    no place is free for `queue_timeout`            by the task                     error/overloaded
    nobody views it for `linger`, counted from its  by the linger clock (by the     cancelled/disconnected
      start and from each time the last one left      viewer, where linger is 0)
    somebody asks for it                            by who was asked                cancelled/requested
    the process stops                               by `Runs.end`                   cancelled/draining

When two happen at once, the first recorded wins. A viewer that comes in time stops the linger clock, and one that
comes while the run ends gets its ending like all others.
Not here: who is asked, how often, and what of it is said (answer.py).
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from .answer import Answer, fault_of
from .errors import Fault, ServiceError
from .events import Cancelled, Done, Error, Finish, Queued, Terminal
from .failover import Failover
from .followed import CancelReason, Followed
from .limits import Limits


class Run(Followed):
    """One generation. `start` it once, inside a running loop; it ends by itself or by `end`.

    Its id carries 128 random bits: nobody finds it by guessing.
    """

    # fmt: off
    __slots__ = (  # noqa: RUF023  # in the order of their use
        "answer", "position", "_task", "_alone", "_deadline", "_on_end", "_now", "_asked", "_began", "_ended",
        "_ending",
    )
    # fmt: on
    answer: Answer
    position: int

    def __init__(
        self,
        failover: Failover,
        limits: Limits,
        owner: str = "",
        key: str = "",
        name: str = "",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(secrets.token_hex(16), owner, key, name, about, time.time(), limits)
        self.answer = Answer(failover, self.log, limits, self.id, int(self.created))
        self.position = 0
        self._task: asyncio.Task[None] | None = None
        self._alone: asyncio.TimerHandle | None = None
        self._ending: Finish | Fault | CancelReason | None = None
        self._asked: float | None = None
        self._began = 0.0
        self._ended: float | None = None

    def start(
        self, *, on_end: Callable[["Run"], object] = lambda run: None, place: asyncio.Future[None] | None = None
    ) -> None:
        """Log `start` and begin to ask: at once, or when `place` is done.

        `on_end` is called once, after the terminal event.
        """
        loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._now = loop.time
        self._began = self._now()
        if place is None:
            self._open()
        else:
            self._asked = self._began
            self._deadline = asyncio.timeout(None)
        self._task = loop.create_task(self._generate(place), name=f"run {self.id}")
        self._task.add_done_callback(self._close)
        if self._ending is not None:
            self._task.cancel()
        self._linger()

    def _open(self) -> None:
        self.position = 0
        self._began = self._now()
        self._deadline = asyncio.timeout(self.limits.run_timeout)
        self.answer.open()

    @property
    def started(self) -> bool:
        return self._task is not None

    @property
    def waits(self) -> bool:
        """Whether it waits in line; nobody was asked yet."""
        return self.position > 0

    def tell_position(self, position: int) -> None:
        """Log its place in the line, where that has changed."""
        if position != self.position:
            self.position = position
            self.log.append([Queued(position)])

    def end(self, reason: Fault | CancelReason) -> None:
        """Stop the run for `reason`, unless it is ending already. The upstream's socket closes as the task unwinds.

        A run that has not started ends when it does, and asks nobody.
        """
        if self._ending is not None or self.log.closed or (self._task and self._deadline.expired()):
            return
        self._ending = reason
        if self._task:
            self._task.cancel()

    def _came(self) -> None:
        if self._alone:
            self._alone.cancel()

    def _left(self) -> None:
        self._linger()

    def linger_for(self, seconds: float) -> None:
        """Go on for as long without a viewer, or longer where it did already: counted anew from now."""
        self.limits = replace(self.limits, linger=max(seconds, self.limits.linger))
        self._linger()

    def _linger(self) -> None:
        if self._alone:
            self._alone.cancel()
        if self.viewers or self.log.closed or not self.started:
            return
        if self.limits.linger:
            self._alone = asyncio.get_running_loop().call_later(self.limits.linger, self.end, "disconnected")
        else:
            self.end("disconnected")

    async def wait(self) -> None:
        """Return when the run has ended and its upstream is closed; at once where it was never started."""
        if self._task:
            await asyncio.wait([self._task])

    async def reach(self, seq: int) -> None:
        """Return at once: what there is of a run that is made here, is here."""

    async def _generate(self, place: asyncio.Future[None] | None) -> None:
        try:
            if place is not None:
                await self._wait_for(place)
            async with self._deadline:
                ending = await self.answer.ask()
        except Exception as exc:
            if self._ending is not None:
                return  # that it comes to pieces while it is being cancelled concerns nobody
            ending = fault_of(self._late() if self._deadline.expired() else exc, self.id)
        self._ending = self._ending or ending

    async def _wait_for(self, place: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(self.limits.queue_timeout):
                await place
        except TimeoutError:
            text = f"No place became free within {self.limits.queue_timeout:g} s."
            raise ServiceError("overloaded", text, limit="queue_timeout") from None
        self._open()

    def _late(self) -> Fault:
        """What a run that is over its time ends by, whatever its provider makes of that; a silence was there first."""
        late = ServiceError("run_timeout", f"The run took longer than {self.limits.run_timeout:g} s.")
        return self.answer.silence or late

    def _close(self, task: asyncio.Task[None]) -> None:
        if self._alone:
            self._alone.cancel()
        self._ended = self._now()
        self.position = 0
        # Without a reason it was nobody of ours who cancelled it: the loop is closing.
        self.terminal = self._terminal(self._ending or "draining")
        # What is kept of a run is its answer: not its prompt, nor the frames of what ended it, which hold that too.
        self.answer.close()
        self._ending = None
        if task.cancelled():
            with suppress(asyncio.CancelledError):
                task.exception()  # the task lets go of its own
        self.log.append([self.terminal])
        self._on_end(self)

    def _terminal(self, ending: Finish | Fault | CancelReason) -> Terminal:
        usage = self.answer.usage
        if isinstance(ending, Finish):
            return Done(
                finish_reason=ending.reason,
                model=ending.model or self.answer.model,
                usage=usage,
                tokens=self.log.deltas,
                ttft_ms=self.ttft_ms,
                latency_ms=self.latency_ms,
                skipped_chunks=ending.skipped_chunks or UNSET,
            )
        if isinstance(ending, Fault):
            return Error(error=ending.text, code=ending.code, retryable=ending.retryable, usage=usage)
        return Cancelled(reason=ending, usage=usage)

    @property
    def has_asked(self) -> bool:
        """Whether it has left the line, or never stood in it."""
        return self.answer.is_open

    @property
    def queued_ms(self) -> int | None:
        """Milliseconds in the line, None where it never stood in it."""
        if self._asked is None:
            return None
        until = self._began if self.has_asked else self._now() if self._ended is None else self._ended
        return _milliseconds(self._asked, until)

    @property
    def ttft_ms(self) -> int | None:
        """Milliseconds from the start to the first content, None while there is none."""
        first = self.answer.first_content
        return None if first is None else _milliseconds(self._began, first)

    @property
    def latency_ms(self) -> int:
        """Milliseconds from the start to the end, or to now while the run goes on."""
        if not self.started:
            return 0
        return _milliseconds(self._began, self._now() if self._ended is None else self._ended)


def _milliseconds(begin: float, end: float) -> int:
    return round((end - begin) * 1000)
