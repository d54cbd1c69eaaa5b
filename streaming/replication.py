"""Replicas that share their runs through Redis: any of them can serve any run. This is what each has of the others.

    who makes a run, its owner          who else follows it
    publisher.py ── run:<id> ─────────▶ mirrors.py        what is said, from the first event on
    _hear ◀──────── to:<replica> ────── _tell             somebody follows it, or nobody; it is to stop, to linger
    _beat ───────── replica:<id> ─────▶ _beat             the owner lives: a lease that is renewed
                    key:<...>, name:<...>                 what a run is found by, beside its id

Of all that nothing is in the way of who is served by the owner: its viewers read its memory, and notice nothing where
Redis is away. What the others do then is in the README's table.

A lease is one of a replica, not of a run, and is judged by who looks: an owner whose lease was gone each time of
`LAPSED` looks has died, and Redis not answering is no look. Its followers' lapse likewise. Whoever finds an owner
dead ends its runs for all, by a terminal event behind a fence (entries.py).
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import msgspec
from msgspec import Struct

from .entries import FENCE, Batch, encode_batch
from .errors import Fault
from .events import Cancelled
from .followed import CancelReason, Followed
from .forever import forever
from .mirror import Mirror, unavailable
from .mirrors import RUN_ID, Mirrors, told
from .publisher import Publisher, run_key
from .redis_link import Command, Down, Link, Refused, address
from .run import Run
from .runs import Reach

BEAT = 1.0  # how often a lease is renewed, and others' are looked at, seconds
LEASE = 3.0  # how long it holds
LAPSED = 3  # in how many looks, one after the other, it must be gone
CLAIM = 10.0  # how long a key is claimed for a run that does not begin, seconds
SETTLE = 5.0  # how long Redis must have answered until what is not there is known not to be, seconds
HAND_OVER = 5.0  # how long Redis may be away until who follows a mirror is sent to look for the owner, seconds
GIVE_UP = 60.0  # and until who cannot be sent is told that the run is lost
HAND_OVER_LINGER = 15.0  # how long a run goes on for viewers who were sent elsewhere, seconds
FLUSH = 2.0  # how long they are kept until all is in Redis, seconds
logger = logging.getLogger("sidestream")


class Wish(Struct, frozen=True):
    """What a replica tells a run's owner: all that its viewers want, anew whenever that changes."""

    run: str
    replica: str
    viewing: bool
    linger: float
    stop: CancelReason | None = None


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
        self.on_secret: Callable[[bytes], object] = lambda secret: None
        self._secret = secrets.token_hex(32).encode()
        self.publisher = Publisher(publishing, self.id, keep, lambda run: self._forget(run.id))
        inbox = _inbox(self.id)
        self.mirrors = Mirrors(reading, bulk, inbox, self._hear, self._mirror_changed, lambda: self._is_blind)
        self._claims: dict[str, str] = {}  # what keys were claimed with, by the run
        self._views: dict[str, dict[str, ExitStack]] = {}  # by run and by the replica whose viewers they are
        self._told: dict[Mirror, Wish] = {}
        self._gone: dict[str, int] = {}  # for how many looks a replica's lease was
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed: dict[Mirror, None] = {}
        self._has_changed = asyncio.Event()
        self._epoch = 0
        self._up_since: float | None = None
        self._down_since = time.monotonic()
        self._is_full = False
        self.why_down = "not connected yet"
        self.lost = 0  # runs that were given up for lost here
        self.is_draining = False

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = {loop.create_task(forever(turn)) for turn in (self._beat, self._tell)}
        self.publisher.start()
        self.mirrors.start()

    async def close(self) -> None:
        """Let Redis have the ends of all runs, if it can have them soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH if self.is_up else 0):
                await self.publisher.flush()
                await self._link.call(("DEL", _lease(self.id)))
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.gather(self.publisher.close(), self.mirrors.close())
        await asyncio.gather(*(link.close() for link in self._links))

    @property
    def is_up(self) -> bool:
        """Whether Redis answers."""
        return self._up_since is not None

    @property
    def _is_blind(self) -> bool:
        """Whether there may be runs that are not found in Redis: it is full, or it was away a moment ago."""
        return self._is_full or self._up_since is None or time.monotonic() < self._up_since + SETTLE

    # What is asked by who looks for runs (runs.py).

    def reach(self) -> Reach:
        behind_events, behind_seconds = self.publisher.lag()
        followed = [mirror for mirror in self.mirrors.all if not mirror.log.closed]
        is_full = self._is_full or bool(self.publisher.refusal)
        return Reach(
            redis="down" if not self.is_up else "full" if is_full else "up",
            why=self.why_down or self.publisher.refusal,
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
        before: list[Command] = []
        behind_end: list[Command] = []
        longest = self.publisher.longest(run)
        if claimed := self._claims.pop(run.id, None):
            key = _hashed("key", run.owner, run.key)
            before = [("SET", key, claimed, "PX", longest, "NX"), ("PEXPIRE", key, longest)]
            behind_end = [("PEXPIRE", key, self.publisher.kept)]
        if run.name:
            before.append(("SET", _hashed("name", run.owner, run.name), run.id, "PX", longest))
        self.publisher.begun(run, before, behind_end)

    def forgotten(self, run: Run) -> None:
        self.publisher.forgotten(run)
        self._forget(run.id)

    async def find(self, run_id: str) -> Followed | None:
        if not self.is_up and not self.mirrors.get(run_id) and RUN_ID.fullmatch(run_id):
            raise unavailable()
        return await self.mirrors.find(run_id)

    async def claim(self, run: Run, asked: bytes) -> tuple[str, bytes] | None:
        """Claim a run's key. Where Redis is away it is claimed here alone: better two answers than none."""
        key, claimed = _hashed("key", run.owner, run.key), f"{run.id}:{asked.hex()}"
        if not self.is_up:
            self._claims[run.id] = claimed
            return None
        try:
            done, holds = await self._link.call(("SET", key, claimed, "PX", round(1000 * CLAIM), "NX"), ("GET", key))
        except Down:
            done, holds = None, None
        except asyncio.CancelledError:
            self._claims[run.id] = claimed
            self.release(run)
            raise
        if done is None and isinstance(holds, bytes):
            run_id, _, digest = holds.decode().partition(":")
            return run_id, bytes.fromhex(digest)
        self._claims[run.id] = claimed
        return None

    def release(self, run: Run) -> None:
        if claimed := self._claims.pop(run.id, None):
            self._spawn_release(_hashed("key", run.owner, run.key), claimed.encode())

    async def holder(self, owner: str, key: str) -> str | None:
        with suppress(Down):
            if self.is_up and isinstance(holds := await self._get(_hashed("key", owner, key)), bytes):
                return holds.decode().partition(":")[0]
        return None

    async def newest(self, owner: str, name: str) -> str | None:
        try:
            holds = await self._get(_hashed("name", owner, name)) if self.is_up else Refused()
        except Down:
            holds = Refused()
        if isinstance(holds, Refused):
            raise unavailable()
        return holds.decode() if holds else None

    async def _get(self, key: str) -> bytes | Refused | None:
        (value,) = await self._link.call(("GET", key))
        found: bytes | Refused | None = value
        return found

    def _spawn_release(self, key: str, claimed: bytes) -> None:
        async def release() -> None:
            with suppress(Down):
                if await self._get(key) == claimed:
                    await self._link.call(("DEL", key))

        task = asyncio.get_running_loop().create_task(release())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # What the owners of mirrored runs are told, and what is told us of ours.

    def _mirror_changed(self, mirror: Mirror) -> None:
        self._changed[mirror] = None
        self._has_changed.set()

    async def _tell(self) -> None:
        """Tell owners what has changed of what is wanted of their runs; with the next beat what did not get through."""
        await self._has_changed.wait()
        self._has_changed.clear()
        changed, self._changed = self._changed, {}
        commands: list[Command] = []
        wishes: list[tuple[Mirror, Wish]] = []
        for mirror in changed:
            wish = Wish(mirror.id, self.id, mirror.viewers > 0, mirror.limits.linger, mirror.stop)
            before = self._told.get(mirror)
            if wish != before and not (mirror.log.closed and before is None):
                commands += told(_inbox(mirror.replica), msgspec.json.encode(wish))
                wishes.append((mirror, wish))
        if not commands:
            return
        with suppress(Down):
            replies = await self._link.call(*commands)
            for (mirror, wish), reply in zip(wishes, replies[::2], strict=True):
                if not isinstance(reply, Refused):
                    self._told[mirror] = wish

    def _hear(self, told: bytes) -> None:
        """Take note of what another replica wants of a run of ours."""
        try:
            wish = msgspec.json.decode(told, type=Wish) if told else None
        except msgspec.DecodeError:
            return
        run = self.publisher.find(wish.run) if wish else None
        if wish is None or run is None:
            return
        views = self._views.setdefault(run.id, {})
        if wish.viewing and wish.replica not in views:
            with suppress(Fault):  # it has as many viewers as it may have; one more or less keeps it no longer
                views[wish.replica] = stack = ExitStack()
                stack.enter_context(run.viewing())
        if wish.linger > run.limits.linger:
            run.linger_for(wish.linger)
        if wish.stop:
            run.end(wish.stop)
        if not wish.viewing and (left := views.pop(wish.replica, None)):
            left.close()

    def _forget(self, run_id: str) -> None:
        for view in self._views.pop(run_id, {}).values():
            view.close()

    # Who lives.

    async def _beat(self) -> None:
        try:
            await self._look()
        except Down as exc:
            self._down(exc)
        self.mirrors.drop_idle(time.monotonic())
        self._told = {mirror: wish for mirror, wish in self._told.items() if self.mirrors.get(mirror.id) is mirror}
        for mirror in self.mirrors.all:
            self._mirror_changed(mirror)
        await asyncio.sleep(BEAT)

    async def _look(self) -> None:
        """Renew our lease and look at those of all with whom we share a run. Raises Down."""
        others = sorted(
            {mirror.replica for mirror in self.mirrors.all if not mirror.log.closed}
            | {replica for views in self._views.values() for replica in views}
        )
        milliseconds = round(1000 * LEASE)
        ours = _lease(self.id)
        was_held, renewed, *held = await self._link.call(
            ("EXISTS", ours),
            ("SET", ours, "", "PX", milliseconds),
            *[("EXISTS", _lease(other)) for other in others],
        )
        if isinstance(renewed, Refused):
            await self._renew_otherwise(renewed, milliseconds)
        else:
            self._is_full = False
        if self._up_since is None or self._epoch != self._link.epoch or was_held == 0:
            await self._up()
            return  # what was away a moment ago, or is emptied, may have lost what it had: they are to come back first
        self._gone = {
            other: self._gone.get(other, 0) + 1 for other, holds in zip(others, held, strict=True) if holds == 0
        }
        for other in [other for other, looks in self._gone.items() if looks >= LAPSED]:
            await self._lapsed(other)

    async def _renew_otherwise(self, refused: Refused, milliseconds: int) -> None:
        """Renew our lease in a Redis that is full: it takes nothing, but what takes no room. Raises Down."""
        if refused.code != "OOM":
            raise Down(str(refused))
        self._is_full = True
        await self._link.call(("PEXPIRE", _lease(self.id), milliseconds))

    async def _up(self) -> None:
        """Take note that Redis answers (again): it may have lost all that it had."""
        now = time.monotonic()
        if self._up_since is None:
            logger.info("redis answers%s", f" again, after {now - self._down_since:.1f} s" if self._epoch else "")
        _, secret = await self._link.call(("SET", SECRET, self._secret, "NX"), ("GET", SECRET))
        if isinstance(secret, bytes):
            self._secret = secret
            self.on_secret(secret)
        self._up_since, self._epoch, self.why_down = now if self._epoch else 0.0, self._link.epoch, ""
        self._gone.clear()
        self._told.clear()
        self.publisher.look_again()
        self.mirrors.hands_over = self.is_draining
        for mirror in self.mirrors.all:
            mirror.hands_over = self.is_draining

    def _down(self, why: Down) -> None:
        now = time.monotonic()
        if self.why_down != str(why):
            logger.warning("redis does not answer (%s): runs go on, but other replicas' cannot be reached", why)
        self.why_down = str(why)
        if self._up_since is not None:
            self._up_since, self._down_since = None, now
        self._gone.clear()
        if now - self._down_since > HAND_OVER:
            for mirror in [mirror for mirror in self.mirrors.all if not mirror.hands_over]:
                mirror.hand_over()
        if now - self._down_since > GIVE_UP:
            for mirror in self.mirrors.all:
                mirror.take(mirror.lost())

    async def _lapsed(self, replica: str) -> None:
        """End the runs of a replica that has died, and do without its viewers. Raises Down."""
        del self._gone[replica]
        for views in self._views.values():
            if left := views.pop(replica, None):
                left.close()
        for mirror in [one for one in self.mirrors.all if one.replica == replica and not one.log.closed]:
            logger.warning("run %s: the replica that made it has died", mirror.id)
            self.lost += 1
            key, lost = run_key(mirror.id), encode_batch(mirror.lost())
            ended = ("XADD", key, "NOMKSTREAM", f"{FENCE}-0", *lost), ("PEXPIRE", key, self.publisher.kept)
            reply, _ = await self._link.call(*ended)
            if not isinstance(reply, bytes) and "equal or smaller" not in str(reply):
                mirror.take(mirror.lost())  # there is nothing to be read any more, or no room

    # The end of this replica.

    async def hand_over(self) -> None:
        """Send viewers to other replicas, once those have all that was said; not where Redis does not take it soon.

        Who cannot be sent may stay.
        """
        self.is_draining = True
        if not self.is_up:
            return
        try:
            async with asyncio.timeout(FLUSH):
                await self.publisher.flush()
        except TimeoutError:
            logger.warning("redis lacks what was said: viewers stay")
            return
        self.mirrors.hands_over = True
        for run in self.publisher.runs:
            run.linger_for(HAND_OVER_LINGER)
            run.hand_over()
        for mirror in self.mirrors.all:
            mirror.hand_over()

    async def wait(self) -> None:
        """Return when nobody follows a mirror."""
        while followed := next((mirror for mirror in self.mirrors.all if mirror.viewers), None):
            await followed.alone.wait()

    def end(self) -> None:
        """Let go of those who still follow a mirror: its run goes on, but not this replica."""
        for mirror in [*self.mirrors.all]:
            mirror.take(Batch(len(mirror.log), [Cancelled(reason="draining", usage=mirror.answer.usage)]))
            self.mirrors.drop(mirror)  # that it has ended is true of nobody who asks now


SECRET = "sidestream:secret"  # noqa: S105  # where it is, not what


def _inbox(replica: str) -> str:
    return f"sidestream:to:{replica}"


def _lease(replica: str) -> str:
    return f"sidestream:replica:{replica}"


def _hashed(kind: str, owner: str, name: str) -> str:
    """Return where a run is found by an owner's key or name, which are nobody else's to read."""
    return f"sidestream:{kind}:{hashlib.sha256(f'{len(owner)}:{owner}{name}'.encode()).hexdigest()}"
