"""The event log: everything a run has said, numbered, in order, bounded, never trimmed.

A run appends; a viewer is a position: `read(after)` what follows it, `wait(after)` until something does. One loop
over these two is live streaming, catching up and resuming; they differ only in how far behind the position is.
So there is no queue per viewer, and a slow viewer costs nothing and holds nobody up.

    seq      1      2       3       4            an event's number is its place, from 1
           start  token   token   done           the terminal event closes the log
    after=0 ^ reads all      ^ after=2 reads token, done

It does not know what events mean, but that a Terminal is the last.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import msgspec

from .events import Delta, Event, Terminal, merge

# What an event costs beside its text, measured with sys.getsizeof: the struct, its string's header, the list's slot.
EVENT_OVERHEAD = 128
# What a viewer far behind takes in one turn, in bytes as counted above: some 15,000 tokens, or 2 MB of longer deltas.
# To merge, encode and send it holds up all others for about 10 ms.
TURN = 2 * 2**20


class EventLog:
    """The retained events of one run. Belongs to one event loop; not for threads."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._waiting: list[asyncio.Future[None]] = []
        self.size = 0
        self.closed = False

    def __len__(self) -> int:
        return len(self._events)

    def append(self, events: Sequence[Event]) -> None:
        """Add events and wake whoever waits; one call is one wake-up. Raises RuntimeError once closed."""
        if self.closed:
            raise RuntimeError("append to a closed event log")
        if not events:
            return
        self.size += sum(map(size_of, events))
        self._events.extend(events)
        self.closed = isinstance(events[-1], Terminal)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def read(self, after: int) -> list[Event]:
        """Return the events numbered `after + 1` and on; empty if there are none yet."""
        return self._events[after:]

    async def next(self, after: int) -> list[Event]:
        """Return what follows `after` as soon as there is something: all of it, but what would hold up the others.

        Who is so far behind takes turns with them. Empty once the log is closed and was read to its end.
        """
        behind = len(self._events) - after
        if behind > 1000 and behind > (most := TURN * len(self._events) // self.size):
            await asyncio.sleep(0)
            return self._events[after : after + max(most, 1)]
        await self.wait(after)
        return self._events[after:]

    def ended(self, after: int) -> bool:
        """Tell whether nothing will ever follow the position `after`."""
        return self.closed and after >= len(self._events)

    async def wait(self, after: int) -> None:
        """Return once an event follows `after` or the log is closed. Cancelling it leaves nothing behind."""
        if len(self._events) > after or self.closed:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        finally:
            if waiter.cancelled():
                with suppress(ValueError):  # an append that came in between has taken it
                    self._waiting.remove(waiter)


async def follow(log: EventLog, after: int) -> AsyncIterator[list[tuple[int, Event]]]:
    """Yield what follows `after`, numbered and merged, as soon as there is something, until the log is closed.

    What was appended while the caller was busy comes in one batch: who is slow gets fewer, larger events.
    """
    while events := await log.next(after):
        yield merge(events, after)
        after += len(events)


def size_of(event: Event) -> int:
    """Bytes an event is counted as holding: its content as UTF-8 and a constant."""
    if isinstance(event, Delta):
        text = event.text
        return EVENT_OVERHEAD + (len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")))
    try:
        return EVENT_OVERHEAD + len(msgspec.json.encode(event, enc_hook=str))
    except UnicodeEncodeError:  # half of a surrogate pair, which an upstream can name in its JSON
        return EVENT_OVERHEAD + len(repr(event).encode("utf-8", "surrogatepass"))
