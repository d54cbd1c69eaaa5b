"""What this replica's runs say, on its way to Redis: whoever follows a run elsewhere reads it there.

One task sends what has been said since it last did, of all runs in one piece, then rests a few times as long as that
took: one run's token is on its way at once, a thousand runs' go together. Nobody waits for it. How far Redis has come
is a place in the run's log, so to fall behind takes no memory. What stands in Redis is looked up when the connection is
made anew; what it has lost (it was restarted, or has evicted something) is sent again from the log.

A run whose stream is fenced (entries.py) was given up for lost by the others: it goes on for those who follow it here.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .entries import FENCE, HEAD, Batch, Head, Standing, encode, encode_batch, lost, seq_of
from .events import Usage
from .forever import forever
from .redis_link import Command, Down, Link, Refused
from .run import Run

REST = 4  # times what it took
SHORTEST, LONGEST = 0.002, 0.05  # rest, seconds
RETRY = 0.5  # rest while Redis is away or takes nothing, seconds
ENTRY = 2**18  # most of one entry, and of all that is sent at once, bytes as a log counts them
PIECE = 2**22
SLACK = 60.0  # how much longer a run is kept in Redis than it may take, seconds: until it is over, and that is told
UNSENT = 10_000
LEAST = 10.0  # what its followers elsewhere have at least to read its end, seconds
logger = logging.getLogger("sidestream")


def run_key(run_id: str) -> str:
    return f"sidestream:run:{run_id}"


class Copy:
    """A run's copy in Redis, as far as we know: whether it is there, and how many events it has.

    `before` are commands that come with its head, `behind_end` such that come with its end: what it is found by.
    """

    __slots__ = ("before", "behind_end", "is_forgotten", "is_there", "key", "run", "sent", "since", "stood")

    def __init__(self, run: Run, before: Sequence[Command], behind_end: Sequence[Command]) -> None:
        self.run = run
        self.key = run_key(run.id)
        self.before = before
        self.behind_end = behind_end
        self.sent = 0
        self.is_there = False
        self.is_forgotten = False
        self.stood: Any = None  # how the answer stood when that was last told
        self.since = 0.0  # when it fell behind

    @property
    def behind(self) -> int:
        """How many events it lacks."""
        return len(self.run.log) - self.sent

    def part(self) -> tuple[int, Batch]:
        """Return the number of the last event that is sent next, and what is sent."""
        log, upto = self.run.log, len(self.run.log)
        if self.behind > 1 and (most := ENTRY * upto // log.size) < self.behind:
            upto = self.sent + max(most, 1)
        answer = self.run.answer
        counts = answer.retries, answer.failovers, answer.resets
        stands = answer.provider, answer.model, *counts, answer.first_content, self.run.has_asked, self.run.terminal
        told = None
        if stands != self.stood or not self.sent:
            self.stood = stands
            told = standing(self.run)
        return upto, Batch(self.sent, log.entries(self.sent, upto), told)


def standing(run: Run) -> Standing:
    answer = run.answer
    counts = answer.retries, answer.failovers, answer.resets
    return Standing(answer.provider, answer.model, answer.usage, *counts, run.ttft_ms, run.latency_ms, run.has_asked)


class Publisher:
    """Sends the runs of `replica`, kept for `keep` seconds once they are over. `start` it in a running loop; close it.

    `on_fenced` is called with each run that was given up for lost. `sent` counts events, `entries` what they went in.
    """

    def __init__(self, link: Link, replica: str, keep: float, on_fenced: Callable[[Run], object]) -> None:
        self._link = link
        self._replica = replica
        self._keep = keep
        self._on_fenced = on_fenced
        self._epoch: int | None = None  # of the connection by which was looked up what stands in Redis
        self._is_away = False
        self._unsent: deque[str] = deque(maxlen=UNSENT)  # runs whose end was forgotten before Redis could have it
        self._copies: dict[str, Copy] = {}
        self._behind: dict[Copy, None] = {}
        self._wake: asyncio.Future[None] | None = None
        self._flushed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.refusal = ""  # why Redis takes nothing, by its code
        self.sent = self.entries = 0

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(forever(self._work), name="publisher")

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def runs(self) -> list[Run]:
        """Whose copies are seen to."""
        return [copy.run for copy in self._copies.values()]

    def find(self, run_id: str) -> Run | None:
        copy = self._copies.get(run_id)
        return copy.run if copy else None

    def lag(self) -> tuple[int, float]:
        """Return how many events Redis lacks, and for how many seconds it has lacked the oldest."""
        if not self._behind:
            return 0, 0.0
        now = time.monotonic()
        return sum(copy.behind for copy in self._behind), now - min(copy.since for copy in self._behind)

    def begun(self, run: Run, before: Sequence[Command] = (), behind_end: Sequence[Command] = ()) -> None:
        """Send a run, from now on until it is over, and with it commands that go before and behind it."""
        copy = self._copies[run.id] = Copy(run, before, behind_end)

        def grown() -> None:
            if copy not in self._behind:
                self._fell_behind(copy)

        run.log.on_append = grown
        if len(run.log):
            grown()

    def forgotten(self, run: Run) -> None:
        """Let go of a run that is over, once it is sent; at once where Redis is away."""
        if copy := self._copies.get(run.id):
            copy.is_forgotten = True
            if copy not in self._behind:
                self._drop(copy)
            elif self._is_away:
                self._give_up(copy)

    async def flush(self, only: Run | None = None) -> None:
        """Return once Redis has what had been said by now, of all runs or of one."""
        marks = {copy: len(copy.run.log) for copy in self._behind if only in (None, copy.run)}
        while any(copy in self._behind and copy.sent < mark for copy, mark in marks.items()):
            self._flushed.clear()
            await self._flushed.wait()

    def look_again(self) -> None:
        """Look up once more what stands in Redis, which may have lost it: of runs that say nothing now, too."""
        self._epoch = None
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _give_up(self, copy: Copy) -> None:
        """Let go of a run that is over, but not sent: who follows it elsewhere is to hear at least that it is lost."""
        if copy.is_there:
            self._unsent.append(copy.key)
        self._drop(copy)

    def _drop(self, copy: Copy) -> None:
        copy.run.log.on_append = None
        self._behind.pop(copy, None)
        self._copies.pop(copy.run.id, None)

    def _fell_behind(self, copy: Copy) -> None:
        copy.since = time.monotonic()
        self._behind[copy] = None
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _work(self) -> None:
        """Send what is lacking, once something is, and rest."""
        loop = asyncio.get_running_loop()
        if not self._behind and self._epoch is not None:
            self._wake = loop.create_future()
            await self._wake
        began = loop.time()
        try:
            if self._epoch is None:
                await self._look_up()
            has_moved = bool(self._behind) and await self._send()
        except Down:
            self._epoch, self._is_away = None, True
            for copy in [copy for copy in self._behind if copy.is_forgotten]:
                self._give_up(copy)
            has_moved = False
        self._flushed.set()
        rest = min(max(REST * (loop.time() - began), SHORTEST), LONGEST)
        is_stuck = self._epoch is None or (self._behind and not has_moved)
        await asyncio.sleep(RETRY if is_stuck else rest)

    async def _look_up(self) -> None:
        """Find out what stands in Redis of each run. Raises Down."""
        await self._link.call(("PING",))
        epoch = self._link.epoch
        copies = list(self._copies.values())
        for first in range(0, len(copies), 100):
            await self._check(copies[first : first + 100], epoch)
        for key in [*self._unsent]:
            fence: Command = ("XADD", key, f"{FENCE}-0", *encode_batch(lost(0, Usage())))
            await self._link.call(fence, ("PEXPIRE", key, self.kept), epoch=epoch)
            self._unsent.popleft()
        self._epoch, self._is_away = epoch, False

    async def _check(self, copies: Sequence[Copy], epoch: int | None) -> None:
        commands: list[Command] = [("XREVRANGE", copy.key, "+", "-", "COUNT", 1) for copy in copies]
        replies = await self._link.call(*commands, epoch=epoch)
        for copy, reply in zip(copies, replies, strict=True):
            if isinstance(reply, Refused):
                if reply.code != "WRONGTYPE":
                    raise Down(str(reply))
                reply = None  # somebody else's key: this run alone is refused, when it is sent
            last = seq_of(reply[0][0]) if reply else 0
            copy.is_there, copy.sent, copy.stood = bool(reply), min(last, len(copy.run.log)), None
            if last == FENCE:
                logger.warning("run %s: other replicas gave it up for lost; it goes on here", copy.run.id)
                self._drop(copy)
                self._on_fenced(copy.run)
            elif (not reply or copy.behind) and copy not in self._behind:
                self._fell_behind(copy)

    async def _send(self) -> bool:
        """Send a piece of what is lacking; tell whether Redis took any. Raises Down."""
        made: list[tuple[Copy, int, int, int]] = []
        commands: list[Command] = []
        size = 0
        for copy in self._behind:
            upto, batch = copy.part()
            size += copy.run.log.size * (upto - copy.sent) // max(upto, 1)
            before = len(commands)
            commands += self._head(copy)
            made.append((copy, upto, before, len(commands)))
            commands.append(("XADD", copy.key, "NOMKSTREAM", f"{upto}-0", *encode_batch(batch)))
            if copy.run.log.closed and upto == len(copy.run.log):
                commands += self._tail(copy)
            if size > PIECE:
                break
        replies = await self._link.call(*commands, epoch=self._epoch)
        self.refusal = ""
        unclear = []
        has_moved = False
        for copy, upto, first, place in made:
            reply = replies[place]
            if isinstance(reply, Refused):
                copy.stood = None  # how it stands was not told either
                if "equal or smaller" in str(reply):  # it stands there already, or the stream is fenced
                    unclear.append(copy)
                else:
                    self.refusal = reply.code
            elif reply is None:  # there is no stream (any more)
                copy.is_there, copy.sent = False, 0
                if place > first and isinstance(replies[first], Refused):
                    self.refusal = replies[first].code
            else:
                has_moved = True
                self.entries += 1
                self.sent += upto - copy.sent
                copy.is_there, copy.sent = True, upto
                self._moved(copy)
        if unclear:
            await self._check(unclear, self._epoch)
            for copy in unclear:
                self._moved(copy)
        return has_moved or bool(unclear)

    def _moved(self, copy: Copy) -> None:
        """Take it off the list, or to its end."""
        self._behind.pop(copy, None)
        if copy.behind and copy.run.id in self._copies:
            self._fell_behind(copy)
        elif copy.is_forgotten:
            self._drop(copy)

    def _head(self, copy: Copy) -> Iterable[Command]:
        if copy.is_there:
            return
        run = copy.run
        about = dict(run.about)
        head = Head(self._replica, run.id, run.owner, run.key, run.name, about, run.created, run.limits)
        yield "XADD", copy.key, HEAD, "head", encode(head)
        yield "PEXPIRE", copy.key, self.longest(run)
        yield from copy.before

    def longest(self, run: Run) -> int:
        """Return how long a run and what it is found by may be of use, in milliseconds."""
        return round(1000 * (run.limits.queue_timeout + run.limits.run_timeout + self._keep + SLACK))

    @property
    def kept(self) -> int:
        """How long a run that is over is of use, in milliseconds."""
        return round(1000 * max(self._keep, LEAST))

    def _tail(self, copy: Copy) -> Iterable[Command]:
        yield "PEXPIRE", copy.key, self.kept
        yield from copy.behind_end
