"""The event log: everything a run has said, numbered, in order, bounded, never trimmed.

A run appends; a viewer is a cursor: it takes what follows its position, or waits until something does. That is live
streaming, catching up and resuming alike; they differ only in how far behind the position is. So there is no queue
per viewer, and a slow viewer costs nothing and holds nobody up.

    seq       1       2       3        4           an event's number is its place, from 1
            start   token   "text"   done          the terminal event closes the log
    after=0 ^ takes all      ^ after=2 takes the rest of the token, done

A delta that goes on where the one before left off is kept as its bare text. So what is ready is joined by one
`str.join`, whether that is one token or 100,000, and a token takes half the memory of its struct.

It does not know what events mean, but that a Terminal is the last, and that a Reset makes void what was before it. And
where a run is lost, nobody knows how far it had come: its end is told by a number that none of its events can have had.
"""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from .events import Delta, Error, Event, Reset, Terminal

# What an event costs beside its text, by sys.getsizeof: the struct (72), its string's header (49), a slot in the list
# (8). Of a delta that is kept as bare text, which most of a long answer is, it is twice the cost.
EVENT_OVERHEAD = 128
# What a viewer far behind takes in one turn, in bytes as counted above: some 15,000 tokens, or 2 MB of longer deltas.
# To join, encode and send it holds up all others for a few ms.
TURN = 2 * 2**20
LOST_AT = 10**15 - 1  # the number of `run_lost`, and the highest that an event id takes
Numbered = tuple[int, Event]
Encode = Callable[[bytes, int, Event], bytes]


class EventLog:
    """The retained events of one run, whose id is `run_id`. Belongs to one event loop; not for threads."""

    # fmt: off
    __slots__ = (  # noqa: RUF023  # what others read, then our own
        "size", "deltas", "characters", "closed", "is_lost", "on_append", "_run_id", "_entries", "_heads", "_last",
        "_answer", "_loop", "_waiting", "_shared", "__weakref__",
    )
    # fmt: on

    def __init__(self, run_id: str = "") -> None:
        self.size = 0
        self.deltas = 0  # of the answer: since the last Reset
        self.characters = 0  # of their text
        self.closed = False
        self.is_lost = False  # whether that is how it ended
        self.on_append: Callable[[], object] | None = None  # called whenever something was
        self._run_id = run_id.encode()
        self._entries: list[Any] = []  # an Event, or the text of a delta that goes on
        self._heads: list[int] = []  # where an entry is an event; what follows until the next one goes on with its text
        self._last: Delta | None = None
        self._answer = 0  # where it begins
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._shared: dict[Encode, tuple[int, int, bytes]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, events: Sequence[Event]) -> bool:
        """Add events and wake whoever waits, once for all; deltas that say nothing are left out.

        Tells whether anything was added. Raises RuntimeError once closed.
        """
        if self.closed:
            raise RuntimeError("append to a closed event log")
        entries, last, before = self._entries, self._last, len(self._entries)
        for event in events:
            text = event.text
            if last is not None and event.follows(last):
                if not text:
                    continue
                entries.append(text)
            else:
                if not isinstance(event, Delta):
                    last = None
                    self.size += size_of(event)
                    if isinstance(event, Reset):
                        self.deltas = self.characters = 0
                        self._answer = len(entries) + 1
                elif event.is_empty:
                    continue
                else:
                    last = event
                    self.size += event.weight
                self._heads.append(len(entries))
                entries.append(event)
                if last is None:
                    continue
            self.deltas += 1
            self.characters += len(text)
            self.size += EVENT_OVERHEAD + (len(text) if text.isascii() else _utf8(text))
        self._last = last
        if len(entries) == before:
            return False
        if last is None and isinstance(entries[-1], Terminal):
            self.closed = True
            self.is_lost = isinstance(entries[-1], Error) and entries[-1].code == "run_lost"
            self._shared.clear()
        self.wake()
        if self.on_append is not None:
            self.on_append()
        return True

    def wake(self) -> None:
        """Let all who wait go on, whether or not anything has followed."""
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def merged(self, after: int, upto: int | None = None) -> list[Numbered]:
        """Return the events numbered `after + 1` to `upto` (else to the last), adjacent deltas joined.

        A joined delta has the number of its last part, so a client that names it has seen all of it.
        """
        entries, heads = self._entries, self._heads
        end = len(entries) if upto is None else upto
        found: list[Numbered] = []
        place = bisect_right(heads, after)
        while after < end:
            head = heads[place - 1]
            last = heads[place] if place < len(heads) and heads[place] < end else end
            event = entries[head]
            if after > head:
                event = event.going_on("".join(entries[after:last]))
            elif last > head + 1:
                event = event.joined(event.text + "".join(entries[head + 1 : last]))
            found.append((last, event))
            after, place = last, place + 1
        return self._as_told(found, end) if self.is_lost else found

    def encoded(self, after: int, upto: int, encode: Encode) -> bytes:
        """Return what `merged` does, encoded; viewers of an open run who are equally far share one encoding."""
        shared = self._shared.get(encode)
        if shared is not None and shared[0] == after and shared[1] == upto:
            return shared[2]
        run_id = self._run_id
        data = b"".join([encode(run_id, seq, event) for seq, event in self.merged(after, upto)])
        if not self.closed:
            self._shared[encode] = after, upto, data
        return data

    def each(self, after: int, upto: int) -> list[Numbered]:
        """Return the events numbered `after + 1` to `upto`, each as it was appended."""
        found = [*enumerate(self.read(after, upto), after + 1)]
        return self._as_told(found, upto) if self.is_lost else found

    def _as_told(self, found: list[Numbered], upto: int) -> list[Numbered]:
        """Give the end of a run that is lost, if that is there, its number."""
        if found and upto == len(self._entries):
            found[-1] = LOST_AT, found[-1][1]
        return found

    def read(self, after: int, upto: int | None = None) -> list[Event]:
        """Return the events numbered `after + 1` to `upto` (else to the last), each as it was appended."""
        found: list[Event] = []
        head: Any = self._entries[self._heads[bisect_right(self._heads, after) - 1]] if after < len(self) else None
        for entry in self._entries[after:upto]:
            if isinstance(entry, str):
                found.append(head.going_on(entry))
            else:
                found.append(entry)
                head = entry
        return found

    def entries(self, after: int, upto: int) -> list[Event | str]:
        """Return what is kept of the events numbered `after + 1` to `upto`: of a delta that goes on, its text alone."""
        return self._entries[after:upto]

    def extend(self, entries: Sequence[Event | str]) -> None:
        """Append what `entries` gave of another log that is as long as this one.

        Raises ValueError where a text goes on with nothing, or something with the end: the logs are not the same.
        """
        events: list[Event] = []
        last: Event | None = self._last
        for entry in entries:
            if isinstance(last, Terminal):
                raise ValueError("something behind the end")
            if not isinstance(entry, str):
                last = entry
            elif isinstance(last, Delta):
                entry = last.going_on(entry)
            else:
                raise ValueError("a text that goes on with nothing")
            events.append(entry)
        self.append(events)

    @property
    def last(self) -> int:
        """The number of the last event, 0 where there is none."""
        return LOST_AT if self.is_lost else len(self._entries)

    @property
    def answer_at(self) -> int:
        """The place behind which the answer is, as it stands: of the last Reset, or of nothing."""
        return self._answer

    def answer(self) -> list[Event]:
        """Return the events of the answer as it stands, merged: what was said since the last Reset."""
        return [event for _, event in self.merged(self._answer)]

    def text(self, kind: type[Delta]) -> str:
        """Return all text of one kind of delta, of the answer as it stands."""
        return "".join(event.text for event in self.answer() if isinstance(event, kind))

    def ended(self, after: int) -> bool:
        """Tell whether nothing will ever follow the position `after`."""
        return self.closed and after >= len(self._entries)

    async def wait(self, after: int) -> None:
        """Return once an event follows `after` or the log is closed. Cancelling it leaves nothing behind."""
        await Cursor(self, after).wait()


class Cursor:
    """A viewer of a log: the position `after` which it goes on. One waits at a time; nothing is to be closed."""

    __slots__ = ("_log", "_stopped", "_waiter", "after", "upto")

    def __init__(self, log: EventLog, after: int = 0) -> None:
        self.after = after
        self.upto: int | None = None  # the last event that it takes, where not all are its
        self._stopped = False
        self._log = log
        self._waiter: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing will ever follow."""
        return self._stopped or self._log.ended(self.after)

    def stop(self) -> None:
        """Want nothing more, though more may follow."""
        self._stopped = True

    def more(self) -> asyncio.Future[None] | None:
        """Return what is done once something follows, the log is closed or `wake` is called; None where that is so.

        Who stops waiting before calls `leave`. `wait` is all of this in one.
        """
        log = self._log
        if len(log._entries) > self.after or log.closed or self._stopped:
            return None
        if log._loop is None:  # asked once: Python 3.11 makes a system call of it
            log._loop = asyncio.get_running_loop()
        waiter = self._waiter = log._loop.create_future()
        log._waiting[waiter] = None
        return waiter

    def wake(self) -> None:
        """Let who waits go on, though nothing has followed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
            self.leave()

    def leave(self) -> None:
        if self._waiter is not None:
            self._log._waiting.pop(self._waiter, None)
            self._waiter = None

    async def wait(self) -> None:
        """Return once something follows, the log is closed or `wake` is called. Who is far behind takes turns."""
        if (more := self.more()) is None:
            if self.is_far_behind:
                await asyncio.sleep(0)
            return
        try:
            await more
        finally:
            self.leave()

    @property
    def is_behind(self) -> bool:
        """Whether anything is ready."""
        return self.after < (len(self._log) if self.upto is None else self.upto)

    @property
    def is_far_behind(self) -> bool:
        """Whether more is ready than can be taken at once."""
        return self._end_of_turn() < len(self._log._entries)

    def take(self) -> list[Numbered]:
        """Return what follows and is ready, merged, and move on behind it."""
        after, self.after = self.after, self._end_of_turn()
        return self._log.merged(after, self.after)

    def take_each(self) -> list[Numbered]:
        """Return what `take` does, but each event as it was appended."""
        after, self.after = self.after, self._end_of_turn()
        return self._log.each(after, self.after)

    def take_encoded(self, encode: Encode) -> bytes:
        """Return what `take` does, encoded: `encode` gets the run's id, an event's number and the event."""
        after = self.after
        upto = self.after = self._end_of_turn()
        return self._log.encoded(after, upto, encode) if upto > after else b""

    def _end_of_turn(self) -> int:
        """Return where what can be taken at once ends: all that is ready, but what would hold up the others."""
        log, end = self._log, len(self._log._entries) if self.upto is None else self.upto
        if self._stopped:
            return self.after
        if end - self.after > 1000 and end - self.after > (most := TURN * end // log.size):
            return self.after + max(most, 1)
        return end


async def follow(log: EventLog, after: int) -> AsyncIterator[list[Numbered]]:
    """Yield what follows `after`, numbered and merged, as soon as there is something, until the log is closed.

    What was appended while the caller was busy comes in one batch: who is slow gets fewer, larger events.
    """
    cursor = Cursor(log, after)
    while not cursor.ended:
        await cursor.wait()
        if batch := cursor.take():
            yield batch


def size_of(event: Event) -> int:
    """Bytes an event is counted as holding: its content as UTF-8 and a constant."""
    if isinstance(event, Delta):
        return EVENT_OVERHEAD + _utf8(event.text) + event.weight
    try:
        return EVENT_OVERHEAD + len(msgspec.json.encode(event, enc_hook=str))
    except UnicodeEncodeError:  # half of a surrogate pair, which an upstream can name in its JSON
        return EVENT_OVERHEAD + len(repr(event).encode("utf-8", "surrogatepass"))


def _utf8(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
