"""The runs of other replicas that are followed here: how each is found in Redis, and one reader for all of them.

    find ──▶ head, and what there is ──▶ caught up ──▶ read with all others, by one blocking XREAD
             (XRANGE, on a connection              │   (which reads what this replica is told, too)
              of its own)                          └─▶ closed: nothing more to read

Where the reader has come to in a stream is the length of the mirror's own log, so after a break it just reads on. After
each read it rests a few times as long as what came took, or as naming them all does: a thousand runs that stream at
once come in few reads.
A mirror nobody follows is dropped after a while. Not here: whether an owner lives, and what it is told.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from .entries import HEAD, Entry, Head, decode_batch, decode_head, seq_of
from .forever import forever
from .mirror import Mirror, unavailable
from .publisher import LONGEST, REST, RETRY, SHORTEST, run_key
from .redis_link import Command, Down, Link, Refused

EACH = 2e-5  # rest for each run that is read, seconds: each is named in every read, whatever comes
BLOCK = 4.0  # how long a read waits for something to read, seconds
# Who has just heard of a run may ask for it before its owner has sent it: how long it is looked for, seconds.
LOOKS = (0.0, 0.02, 0.05, 0.1, 0.3, 0.5)
AT_ONCE = 2**19  # of a stream that is caught up with, bytes: some ms to read
FIRST = 16  # entries, while it is not known how large they are
TURN = 0.005  # how long what was read may hold up all else, seconds
IDLE = 10.0  # how long a mirror is kept without a viewer, seconds
HELD = 60.0  # how long a replica that does not read may be told something until that is of no use, seconds
RUN_ID = re.compile(r"[0-9a-f]{32}")
UNREADABLE = (ValueError, LookupError, TypeError, RecursionError, msgspec.MsgspecError)
logger = logging.getLogger("sidestream")


class Mirrors:
    """The mirrors of this replica. `start` it in a running loop, and close it.

    `here` is the stream by which this replica is told something, `hear` takes what that is. `tell` is called with a
    mirror whose viewers want something of its owner. `is_blind`: whether what is not found may be there all the same.
    """

    def __init__(
        self,
        tail: Link,
        bulk: Link,
        here: str,
        hear: Callable[[bytes], object],
        tell: Callable[[Mirror], object],
        is_blind: Callable[[], bool],
    ) -> None:
        self._tail = tail
        self._bulk = bulk
        self._inbox = here
        self._hear = hear
        self._tell = tell
        self._is_blind = is_blind
        self._heard = b"0"  # of what it was told
        self._mirrors: dict[str, Mirror] = {}
        self._finding: dict[str, asyncio.Task[Mirror | None]] = {}
        self._read_on: dict[bytes, Mirror] = {}  # those that are caught up, by their keys
        self._tasks: set[asyncio.Task[None]] = set()
        self.hands_over = False

    def start(self) -> None:
        self._spawn(forever(self._read))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        tasks = [*self._tasks, *self._finding.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def get(self, run_id: str) -> Mirror | None:
        return self._mirrors.get(run_id)

    @property
    def all(self) -> Iterable[Mirror]:
        return self._mirrors.values()

    async def find(self, run_id: str) -> Mirror | None:
        """Return the mirror of a run, the one there is or a new one, which has all that Redis has of it.

        Raises ServiceError unavailable.
        """
        if mirror := self._mirrors.get(run_id):
            mirror.touch()
            return mirror
        if not RUN_ID.fullmatch(run_id):
            return None
        if run_id not in self._finding:
            task = self._finding[run_id] = asyncio.get_running_loop().create_task(self._find(run_id))
            task.add_done_callback(partial(self._searched, run_id))
        try:
            return await asyncio.shield(self._finding[run_id])
        except Down:
            raise unavailable() from None

    def _searched(self, run_id: str, task: "asyncio.Task[Mirror | None]") -> None:
        del self._finding[run_id]
        if not task.cancelled():
            task.exception()  # who looked for it may have left, then nobody takes it

    async def _find(self, run_id: str) -> Mirror | None:
        key = run_key(run_id)
        for pause in LOOKS:
            await asyncio.sleep(pause)
            (entries,) = await self._bulk.call(("XRANGE", key, "-", "+", "COUNT", FIRST))
            if isinstance(entries, Refused):
                raise Down(str(entries))
            if entries:
                break
        else:
            if self._is_blind():
                raise Down("not all that there is may be found")
            return None
        head = _head(entries[0])
        if head is None or head.id != run_id:
            return None
        mirror = Mirror(head, self._tell)
        if not _take(mirror, entries[1:]) or not await self._catch_up(mirror, key):
            return None
        mirror.hand_over(self.hands_over)
        self._mirrors[run_id] = mirror
        if not mirror.log.closed:
            self._read_on[key.encode()] = mirror
            await self.look()
        return mirror

    async def _catch_up(self, mirror: Mirror, key: str) -> bool:
        """Read what there is of a run; tell whether it could be read. Raises Down."""
        count = FIRST
        while not mirror.log.closed:
            (entries,) = await self._bulk.call(("XRANGE", key, _behind(mirror), "+", "COUNT", count))
            if isinstance(entries, Refused):
                raise Down(str(entries))
            if not _take(mirror, entries):
                return False
            if len(entries) < count:
                break
            size = sum(len(part) for entry in entries for part in entry[1]) // count
            count = max(min(AT_ONCE // max(size, 1), 4096), 1)
        return True

    async def look(self) -> None:
        """Have the reader look anew at what is to be read: it may be waiting for less."""
        try:
            await self._bulk.call(*told(self._inbox, b""))
        except Down:
            return  # it is not waiting either

    async def _read(self) -> None:
        """Wait until there is something to read, take it, and rest."""
        loop = asyncio.get_running_loop()
        mirrors = list(self._read_on.items())
        keys: list[bytes | str] = [self._inbox, *(key for key, _ in mirrors)]
        places: list[bytes | str] = [self._heard, *(_behind(mirror, exclusive="") for _, mirror in mirrors)]
        command: Command = ("XREAD", "COUNT", 10, "BLOCK", round(1000 * BLOCK), "STREAMS", *keys, *places)
        try:
            (streams,) = await self._tail.call(command, within=BLOCK + 2)
        except Down:
            streams = Refused()
        if isinstance(streams, Refused):
            if streams.code == "WRONGTYPE":
                await self._drop_foreign(mirrors)
            await asyncio.sleep(RETRY)
            return
        began = since = loop.time()
        for key, entries in streams or ():
            if mirror := self._read_on.get(key):
                self._take(mirror, entries)
            elif key == self._inbox.encode():
                self._heard = entries[-1][0]
                for _, fields in entries:
                    self._hear(fields[1])
            if loop.time() - since > TURN:
                await asyncio.sleep(0)
                since = loop.time()
        await asyncio.sleep(min(max(REST * (loop.time() - began), EACH * len(mirrors), SHORTEST), LONGEST))

    async def _drop_foreign(self, mirrors: Iterable[tuple[bytes, Mirror]]) -> None:
        """Let go of those whose keys somebody else has taken: with them none of the others could be read."""
        with suppress(Down):
            kinds = await self._bulk.call(*[("TYPE", key) for key, _ in mirrors])
            for (_, mirror), kind in zip(mirrors, kinds, strict=True):
                if kind not in (b"stream", b"none"):
                    self._drop_unreadable(mirror)

    def _take(self, mirror: Mirror, entries: Iterable[Entry]) -> None:
        if not _take(mirror, entries):
            self._drop_unreadable(mirror)
        elif mirror.log.closed:
            self._read_on.pop(run_key(mirror.id).encode(), None)

    def _drop_unreadable(self, mirror: Mirror) -> None:
        logger.warning("run %s: its stream in Redis cannot be read", mirror.id)
        mirror.take(mirror.lost())
        self.drop(mirror)

    def drop(self, mirror: Mirror) -> None:
        """Let go of a mirror. Whoever follows it is sent to look for another."""
        self._read_on.pop(run_key(mirror.id).encode(), None)
        self._mirrors.pop(mirror.id, None)
        mirror.hand_over()

    def drop_idle(self, now: float) -> None:
        """Let go of those that nobody has followed for a while."""
        for mirror in [*self._mirrors.values()]:
            if mirror.idle_since is not None and now - mirror.idle_since > IDLE:
                self.drop(mirror)


def inbox(replica: str) -> str:
    """Return the key of the stream by which a replica is told something."""
    return f"sidestream:to:{replica}"


def told(where: str, what: bytes) -> Iterable[Command]:
    """Yield the commands by which something is told to who reads there."""
    yield "XADD", where, "MAXLEN", "~", 10_000, "*", "told", what
    yield "PEXPIRE", where, round(1000 * HELD)


def _behind(mirror: Mirror, exclusive: str = "(") -> str:
    """Return where to read on: behind all that the mirror has, and the head."""
    return f"{exclusive}{len(mirror.log)}-0" if len(mirror.log) else f"{exclusive}{HEAD}"


def _head(entry: Entry) -> Head | None:
    """Read the head of a stream; None where it has lost it, or is none of ours."""
    entry_id, fields = entry
    try:
        return decode_head(fields) if entry_id == HEAD.encode() else None
    except UNREADABLE:
        return None


def _take(mirror: Mirror, entries: Iterable[Entry]) -> bool:
    """Give a mirror what was read of its stream; tell whether it could be read."""
    try:
        for entry_id, fields in entries:
            mirror.take(decode_batch(fields), seq_of(entry_id))
    except UNREADABLE:
        return False
    return True
