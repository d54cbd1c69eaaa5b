"""What runs are found by on all replicas, beside their ids: an idempotency key, and a name of which one is the newest.

Both are their owner's (the caller's), and stand in Redis as a hash. A key is claimed before its run begins, for `CLAIM`
seconds, and then holds as long as the run is of use. Where Redis is away a key is claimed on this replica alone: rather
two answers than none.
"""

import asyncio
import hashlib
from contextlib import suppress
from functools import partial

from .mirror import unavailable
from .redis_link import Command, Down, Link, Refused
from .run import Run

CLAIM = 10.0


class Claims:
    """The claims of this replica."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._claims: dict[str, str] = {}  # what keys were claimed with, by the run
        self._releases: dict[str, asyncio.Task[None]] = {}  # of keys whose runs were refused

    async def claim(self, run: Run, asked: bytes, *, is_up: bool) -> tuple[str, bytes] | None:
        """Claim a run's key: None where it stands for it now, else for what run it does, and what digest."""
        key, claimed = _hashed("key", run.owner, run.key), f"{run.id}:{asked.hex()}"
        if release := self._releases.get(key):
            await asyncio.wait([release])
        self._claims[run.id] = claimed
        if not is_up:
            return None
        try:
            done, holds = await self._link.call(("SET", key, claimed, "PX", round(1000 * CLAIM), "NX"), ("GET", key))
        except Down:
            return None
        except asyncio.CancelledError:
            self.release(run)
            raise
        if done is None and (held := _held(holds)):
            del self._claims[run.id]
            return held
        return None

    def release(self, run: Run) -> None:
        """Let go of a claimed key whose run was refused."""
        if claimed := self._claims.pop(run.id, None):
            key = _hashed("key", run.owner, run.key)
            release = asyncio.get_running_loop().create_task(self._release(key, claimed.encode()), name="release")
            self._releases[key] = release
            release.add_done_callback(partial(self._released, key))

    def _released(self, key: str, release: "asyncio.Task[None]") -> None:
        if self._releases.get(key) is release:
            del self._releases[key]

    async def _release(self, key: str, claimed: bytes) -> None:
        with suppress(Down):
            if await self._get(key) == claimed:
                await self._link.call(("DEL", key))

    def of(self, run: Run, longest: int, kept: int) -> tuple[list[Command], list[Command]]:
        """Return what goes to Redis with the beginning of a run, and what with its end: for how long it is found."""
        before: list[Command] = []
        behind_end: list[Command] = []
        if claimed := self._claims.pop(run.id, None):
            key = _hashed("key", run.owner, run.key)
            before = [("SET", key, claimed, "PX", longest, "NX"), ("PEXPIRE", key, longest)]
            behind_end = [("PEXPIRE", key, kept)]
        if run.name:
            name = _hashed("name", run.owner, run.name)
            newest = ("ZADD", name, str(run.created), run.id), ("ZREMRANGEBYRANK", name, 0, -2)  # whenever it is sent
            before += [*newest, ("PEXPIRE", name, longest)]
        return before, behind_end

    async def holder(self, owner: str, key: str) -> str | None:
        """Return the id of the run that a key stands for, if that is to be had."""
        with suppress(Down):
            if held := _held(await self._get(_hashed("key", owner, key))):
                return held[0]
        return None

    async def newest(self, owner: str, name: str) -> str | None:
        """Return the id of the newest run of a name. Raises ServiceError unavailable."""
        try:
            (holds,) = await self._link.call(("ZREVRANGE", _hashed("name", owner, name), 0, 0))
        except Down:
            raise unavailable() from None
        if isinstance(holds, Refused):
            raise unavailable()
        return holds[0].decode(errors="replace") if holds else None

    async def _get(self, key: str) -> bytes | Refused | None:
        (value,) = await self._link.call(("GET", key))
        found: bytes | Refused | None = value
        return found


def _held(value: object) -> tuple[str, bytes] | None:
    """Return what a key holds: a run's id and the digest it is for. None where that is nothing, or none of ours."""
    if isinstance(value, bytes):
        with suppress(ValueError):
            run_id, _, digest = value.decode().partition(":")
            return run_id, bytes.fromhex(digest)
    return None


def _hashed(kind: str, owner: str, name: str) -> str:
    """Return where a run is found by an owner's key or name, which are nobody else's to read."""
    return f"sidestream:{kind}:{hashlib.sha256(f'{len(owner)}:{owner}{name}'.encode()).hexdigest()}"
