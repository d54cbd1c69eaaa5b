"""Replicas that share their runs through Redis: any of them can serve any run. This puts together what each has of it.

    who makes a run, its owner             who else follows it
    publisher.py ── run:<id> ────────────▶ mirrors.py     what is said, from the first event on
    wishes.py ◀──── to:<replica> ───────── wishes.py      somebody follows it, or nobody; it is to stop, to linger
    leases.py ───── replica:<id> ────────▶ leases.py      the owner lives
    claims.py ───── key:<...>, name:<...>  claims.py      what a run is found by, beside its id

Of all that nothing is in the way of who is served by the owner: its viewers read its memory, and notice nothing where
Redis is away. What the others do then is in the README's table. Whoever finds an owner dead ends its runs for all, by a
terminal event behind a fence (entries.py).
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from .claims import Claims
from .elsewhere import Reach
from .entries import FENCE, Batch, encode_batch
from .events import Cancelled
from .followed import Followed
from .forever import forever
from .leases import BEAT, Leases
from .mirror import unavailable
from .mirrors import RUN_ID, Mirrors, inbox
from .publisher import Publisher, run_key
from .redis_link import Down, Link, address
from .run import Run
from .wishes import Wishes

SECRET = "sidestream:secret"  # noqa: S105  # where it is, not what
HAND_OVER = 5.0  # how long Redis may be away until who follows a mirror is sent to look for the owner, seconds
GIVE_UP = 60.0  # and until who cannot be sent is told that the run is lost
HAND_OVER_LINGER = 15.0  # how long a run goes on for viewers who were sent elsewhere, seconds
SOON = 1.0  # how long who has begun a run waits at most until others can find it, seconds
FLUSH = 2.0  # how long they are kept until all is in Redis, seconds
logger = logging.getLogger("sidestream")


class Replication:
    """A replica among others. Belongs to one event loop; `start` it there, and close it.

    `url` as redis-py has them; runs that are over are kept for `keep` seconds. `on_secret` is called with what all
    replicas share. Raises ValueError where the URL is none.
    """

    def __init__(self, url: str, keep: float) -> None:
        self.id = secrets.token_hex(8)
        self.address = address(url)
        self._links = [Link(url) for _ in range(4)]
        self._link, publishing, reading, bulk = self._links
        self.publisher = Publisher(publishing, self.id, keep, lambda run: self.wishes.forget(run.id))
        self.wishes = Wishes(self._link, self.id, self.publisher.find)
        self.leases = Leases(self._link, self.id, self._others, self._up, self._lapsed)
        here = inbox(self.id)
        self.mirrors = Mirrors(reading, bulk, here, self.wishes.hear, self.wishes.changed, lambda: self.leases.is_blind)
        self.claims = Claims(self._link)
        self.on_secret: Callable[[bytes], object] = lambda secret: None
        self._secret = secrets.token_hex(32).encode()
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_looked = asyncio.Event()
        self.lost = 0  # runs that were given up for lost here
        self.has_handed_over = False

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = {loop.create_task(forever(turn)) for turn in (self._beat, self.wishes.tell)}
        self.publisher.start()
        self.mirrors.start()

    async def looked(self) -> None:
        """Return once Redis has answered or has not: who serves before that does not know what others have signed."""
        await self._has_looked.wait()

    async def close(self) -> None:
        """Let Redis have the ends of all runs, if it can have them soon."""
        for task in self._tasks:  # before the lease is given up, which would be renewed
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        with suppress(TimeoutError, Down):
            async with asyncio.timeout(FLUSH if self.is_up else 0):
                await self.publisher.flush()
                await self.leases.give_up()
        await asyncio.gather(self.publisher.close(), self.mirrors.close())
        await asyncio.gather(*(link.close() for link in self._links))

    @property
    def is_up(self) -> bool:
        """Whether Redis answers."""
        return self.leases.is_up

    @property
    def _is_full(self) -> bool:
        """Whether it answers, but takes nothing."""
        return self.leases.is_full or bool(self.publisher.refusal)

    # What is asked by who looks for runs (elsewhere.py).

    def reach(self) -> Reach:
        behind_events, behind_seconds = self.publisher.lag()
        followed = [mirror for mirror in self.mirrors.all if not mirror.log.closed]
        return Reach(
            redis="down" if not self.is_up else "full" if self._is_full else "up",
            why=self.leases.why_down or self.publisher.refusal,
            behind_events=behind_events,
            behind_seconds=round(behind_seconds, 3),
            mirrors=len(followed),
            mirror_viewers=sum(mirror.viewers for mirror in self.mirrors.all),
            sent_events=self.publisher.sent,
            sent_entries=self.publisher.entries,
            commands=sum(link.calls for link in self._links),
            lost_runs=self.lost,
        )

    def begun(self, run: Run) -> None:
        self.publisher.begun(run, *self.claims.of(run, self.publisher.longest(run), self.publisher.kept))

    def forgotten(self, run: Run) -> None:
        self.publisher.forgotten(run)
        self.wishes.forget(run.id)

    async def settle(self, run: Run) -> None:
        if self.is_up and not self._is_full:
            with suppress(TimeoutError):
                async with asyncio.timeout(SOON):
                    await self.publisher.flush(run)

    async def find(self, run_id: str) -> Followed | None:
        if not self.is_up and not self.mirrors.get(run_id) and RUN_ID.fullmatch(run_id):
            raise unavailable()
        return await self.mirrors.find(run_id)

    async def claim(self, run: Run, asked: bytes) -> tuple[str, bytes] | None:
        return await self.claims.claim(run, asked, is_up=self.is_up)

    def release(self, run: Run) -> None:
        self.claims.release(run)

    async def holder(self, owner: str, key: str) -> str | None:
        return await self.claims.holder(owner, key) if self.is_up else None

    async def newest(self, owner: str, name: str) -> str | None:
        if not self.is_up:
            raise unavailable()
        return await self.claims.newest(owner, name)

    # Who lives.

    async def _beat(self) -> None:
        try:
            await self.leases.look()
        finally:
            self._has_looked.set()
        self.mirrors.drop_idle(time.monotonic())
        self._send_away()
        if self.leases.seconds_down > GIVE_UP:
            for mirror in [mirror for mirror in self.mirrors.all if not mirror.log.closed]:
                mirror.take(mirror.lost())
                self.mirrors.drop(mirror)  # who comes anew may find that it goes on
        self.wishes.tell_again(self.mirrors.all)
        await asyncio.sleep(BEAT)

    def _send_away(self) -> None:
        """See to it that viewers are sent to other replicas where those serve them better, and nowhere else."""
        self.mirrors.hands_over = self.has_handed_over or self.leases.seconds_away > HAND_OVER
        for mirror in self.mirrors.all:
            mirror.hand_over(self.mirrors.hands_over)
        for run in self.publisher.runs if self.has_handed_over else ():
            run.hand_over(not self.leases.seconds_away)

    def _others(self) -> Iterable[str]:
        """Return the replicas with whom we share a run."""
        return {mirror.replica for mirror in self.mirrors.all if not mirror.log.closed} | self.wishes.followers

    async def _up(self) -> None:
        """Come to terms with a Redis that may have lost all that it had. Raises Down."""
        _, secret = await self._link.call(("SET", SECRET, self._secret, "NX"), ("GET", SECRET))
        if isinstance(secret, bytes):
            self._secret = secret
            self.on_secret(secret)
        self.publisher.look_again()
        self.wishes.tell_again(self.mirrors.all, all_of_it=True)

    async def _lapsed(self, replica: str) -> None:
        """End the runs of a replica that has died, and do without its viewers. Raises Down."""
        self.wishes.drop(replica)
        for mirror in [one for one in self.mirrors.all if one.replica == replica and not one.log.closed]:
            logger.warning("run %s: the replica that made it has died", mirror.id)
            self.lost += 1
            # It stays as long as its owner may still come back with it: it would begin anew where there is no fence.
            lost = "XADD", run_key(mirror.id), "NOMKSTREAM", f"{FENCE}-0", *encode_batch(mirror.lost())
            (reply,) = await self._link.call(lost)
            if not isinstance(reply, bytes) and "equal or smaller" not in str(reply):
                mirror.take(mirror.lost())  # there is nothing to be read any more, or no room

    # The end of this replica.

    async def hand_over(self) -> None:
        """Send viewers to other replicas, once those have all that was said; not where Redis does not take it soon.

        Who cannot be sent may stay.
        """
        if not self.is_up or self.leases.is_full:
            return
        try:
            async with asyncio.timeout(FLUSH):
                await self.publisher.flush()
                await self._link.call(("PING",))  # where there was nothing to send, who knows whether it answers
        except (TimeoutError, Down):
            logger.warning("redis lacks what was said: viewers stay")
            return
        self.has_handed_over = True
        for run in self.publisher.runs:
            run.linger_for(HAND_OVER_LINGER)
        self._send_away()

    async def wait(self) -> None:
        """Return when nobody follows a mirror."""
        while followed := next((mirror for mirror in self.mirrors.all if mirror.viewers), None):
            await followed.alone.wait()

    def end(self) -> None:
        """Let go of those who still follow a mirror: its run goes on, but not this replica."""
        for mirror in [*self.mirrors.all]:
            mirror.cut = len(mirror.log)
            mirror.take(Batch(len(mirror.log), [Cancelled(reason="draining", usage=mirror.answer.usage)]))
            self.mirrors.drop(mirror)  # that it has ended is true of nobody who asks now
