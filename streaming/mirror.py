"""A run that another replica makes, as it is followed here: its log is filled by what its stream in Redis holds.

Those who follow it here are cursors of that log, as of any other. What they want of the run (that it goes on, for how
long it lingers, that it stops) is told to the replica that makes it, its owner; how it stands is what that tells.
Not here: how the stream is read (mirrors.py), and how an owner hears (replication.py).
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from msgspec.structs import replace

from .answer import estimated
from .entries import FENCE, Batch, Head, Standing, lost
from .errors import ServiceError
from .events import Queued, Terminal, Usage
from .followed import CancelReason, Followed

# How long who waits for another replica's run waits at most, seconds: by then it has ended, or is given up for lost.
PATIENCE = 12.0


def unavailable() -> ServiceError:
    return ServiceError("unavailable", "A run of another replica cannot be reached just now.")


class Mirror(Followed):
    """A run of another replica. `tell` is called whenever what its viewers want of it has changed."""

    __slots__ = ("_position", "_standing", "_stood_at", "alone", "asked", "idle_since", "replica", "stop", "tell")

    def __init__(self, head: Head, tell: Callable[["Mirror"], object]) -> None:
        super().__init__(head.id, head.owner, head.key, head.name, head.about, head.created, head.limits)
        self.replica = head.replica
        self.tell = tell
        self.stop: CancelReason | None = None
        self.asked = 0.0  # when it was last told how long it is to linger
        self.idle_since: float | None = time.monotonic()  # when its last viewer left
        self.alone = asyncio.Event()  # whether it has
        self.alone.set()
        self._standing = Standing("", "", Usage())
        self._stood_at = time.monotonic()
        self._position = 0

    def take(self, batch: Batch, seq: int = FENCE) -> None:
        """Append what of a batch, whose last event is `seq`, the log does not have.

        Raises ValueError, and changes nothing, where it cannot be of this run: at a gap, say.
        """
        log = self.log
        if log.closed:
            return
        entries = batch.entries
        last = entries[-1] if entries else None
        if seq == FENCE:
            if not isinstance(last, Terminal):
                raise ValueError("a fence that is no end")
        elif batch.after > len(log):
            raise ValueError("a gap in a stream")
        elif batch.after + len(entries) != seq:  # by which nobody would get on
            raise ValueError("a batch in another's place")
        else:
            entries = entries[len(log) - batch.after :]
        log.extend(entries)
        if batch.told:
            self._standing, self._stood_at = batch.told, time.monotonic()
        if entries:
            self._position = last.position if isinstance(last, Queued) else 0
            if isinstance(last, Terminal):
                self.terminal = last

    def lost(self) -> Batch:
        """Return how the run ends where its owner ends it no more."""
        return lost(len(self.log), self.answer.usage)

    @property
    def answer(self) -> Standing:
        stands = self._standing
        if stands.usage.estimated is True and not self.log.closed:
            return replace(stands, usage=estimated(stands.usage, self.log.characters))
        return stands

    @property
    def started(self) -> bool:
        return True

    @property
    def waits(self) -> bool:
        return self._position > 0

    @property
    def position(self) -> int:
        return self._position

    @property
    def has_asked(self) -> bool:
        return self._standing.has_asked

    @property
    def ttft_ms(self) -> int | None:
        return self._standing.ttft_ms

    @property
    def latency_ms(self) -> int:
        if self.log.closed:
            return self._standing.latency_ms
        return self._standing.latency_ms + round(1000 * (time.monotonic() - self._stood_at))

    def end(self, reason: CancelReason) -> None:
        if not self.log.closed and self.stop is None:
            self.stop = reason
            self.tell(self)

    def linger_for(self, seconds: float) -> None:
        if seconds > self.limits.linger:
            self.limits = replace(self.limits, linger=seconds)
        self.asked = time.monotonic()
        self.tell(self)

    async def wait(self) -> None:
        """Return when the run has ended. Raises ServiceError unavailable where nothing is heard of that."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not self.log.closed:
                    await self.log.wait(len(self.log))
        if not self.log.closed:
            raise unavailable()

    async def reach(self, seq: int) -> None:
        """Return once the log has event `seq`, or will surely not have it.

        Raises ServiceError unavailable where viewers are to look for another replica.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while len(self.log) < seq and not self.log.closed:
                    if self.hands_over:
                        raise unavailable()
                    await self.log.wait(len(self.log))
        if self.cut is not None and seq > self.cut:
            raise unavailable()

    def touch(self) -> None:
        """Be of use, though nobody follows it yet. One that is over is found anew, for as long as it is kept."""
        if self.idle_since is not None and not self.log.closed:
            self.idle_since = time.monotonic()

    def _came(self) -> None:
        self.idle_since = None
        self.alone.clear()
        if self.viewers == 1:
            self.tell(self)

    def _left(self) -> None:
        if not self.viewers:
            self.idle_since = time.monotonic()
            self.alone.set()
            self.tell(self)
