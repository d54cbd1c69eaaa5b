"""Which replicas live, and whether Redis answers: each renews a lease there, and looks at those it shares a run with.

A lease is one of a replica, not of a run, and is judged by who looks: one that was gone in `LAPSED` looks, one after
the other, is a dead replica's. A Redis that does not answer is no look, and where it may have lost what it had, all
have time to come back first.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from .redis_link import Down, Link, Refused

BEAT = 1.0  # how often a lease is renewed, and others' are looked at, seconds
LEASE = 3.0  # how long it holds
LAPSED = 3
SETTLE = 5.0  # how long Redis must have answered until what is not there is known not to be, seconds
logger = logging.getLogger("sidestream")


class Leases:
    """The lease of `replica`, and those of the `others` it has to do with; somebody is to `look` at each beat.

    `on_up` is called whenever Redis answers and may have lost what it had, `on_lapsed` with a replica that has died.
    """

    def __init__(
        self,
        link: Link,
        replica: str,
        others: Callable[[], Iterable[str]],
        on_up: Callable[[], Awaitable[object]],
        on_lapsed: Callable[[str], Awaitable[object]],
    ) -> None:
        self._link = link
        self._replica = replica
        self._others = others
        self._on_up = on_up
        self._on_lapsed = on_lapsed
        self._gone: dict[str, int] = {}  # for how many looks a replica's lease was
        self._epoch = 0
        self._up_since: float | None = None
        self._down_since = time.monotonic()
        self._full_since: float | None = None
        self.why_down = "not connected yet"

    @property
    def is_up(self) -> bool:
        """Whether Redis answers."""
        return self._up_since is not None

    @property
    def is_blind(self) -> bool:
        """Whether there may be runs that are not found in Redis: it is full, or it was away a moment ago."""
        return self.is_full or self._up_since is None or time.monotonic() < self._up_since + SETTLE

    @property
    def is_full(self) -> bool:
        """Whether Redis answers, but takes nothing."""
        return self._full_since is not None

    @property
    def seconds_away(self) -> float:
        """For how long it has not answered, or taken nothing; 0 where all is well."""
        return self.seconds_down or (0.0 if self._full_since is None else time.monotonic() - self._full_since)

    @property
    def seconds_down(self) -> float:
        """For how long Redis has not answered; 0 where it does."""
        return 0.0 if self.is_up else time.monotonic() - self._down_since

    async def look(self) -> None:
        """Renew our lease and look at others'."""
        try:
            await self._look()
        except Down as exc:
            self._down(str(exc))

    async def give_up(self) -> None:
        """Let others know at once that this replica is no more. Raises Down."""
        await self._link.call(("DEL", _lease(self._replica)))

    async def _look(self) -> None:
        others = sorted(set(self._others()))
        ours, milliseconds = _lease(self._replica), round(1000 * LEASE)
        was_held, renewed, *held = await self._link.call(
            ("EXISTS", ours),
            ("SET", ours, "", "PX", milliseconds),
            *[("EXISTS", _lease(other)) for other in others],
        )
        if isinstance(renewed, Refused):
            await self._renew_otherwise(renewed, milliseconds)
        elif self._full_since is not None:
            self._full_since = None
            logger.info("redis takes again what it is sent")
        if not self.is_up or self._epoch != self._link.epoch or was_held == 0:
            await self._up()
            return
        looks = {other: self._gone.get(other, 0) + 1 for other, holds in zip(others, held, strict=True) if holds == 0}
        self._gone = looks
        for other in [other for other, number in looks.items() if number >= LAPSED]:
            del looks[other]
            await self._on_lapsed(other)

    async def _renew_otherwise(self, refused: Refused, milliseconds: int) -> None:
        """Renew our lease in a Redis that is full: it takes nothing, but what takes no room. Raises Down."""
        if refused.code != "OOM":
            raise Down(str(refused))
        if self._full_since is None:
            self._full_since = time.monotonic()
            logger.warning("redis is full: runs go on, but other replicas do not hear of it")
        await self._link.call(("PEXPIRE", _lease(self._replica), milliseconds))

    async def _up(self) -> None:
        now = time.monotonic()
        if not self.is_up:
            logger.info("redis answers%s", f" again, after {self.seconds_down:.1f} s" if self._epoch else "")
        await self._on_up()
        self._up_since, self._epoch, self.why_down = now if self._epoch else 0.0, self._link.epoch, ""
        self._gone.clear()

    def _down(self, why: str) -> None:
        if self.why_down != why:
            logger.warning("redis does not answer (%s): runs go on, but other replicas' cannot be reached", why)
        self.why_down = why
        if self.is_up:
            self._up_since, self._down_since = None, time.monotonic()
        self._gone.clear()


def _lease(replica: str) -> str:
    return f"sidestream:replica:{replica}"
