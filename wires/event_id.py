"""An event's public id, `<run>-<number>`, and where a client that comes back says how far it was.

The id names its run, so a plain EventSource that reconnects to the URL that started its run finds that run again. By
header (an EventSource's own) or by parameter (for who cannot send headers); the header wins, as a page's URL may still
hold an older one. It does not know whether there is such a run.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from streaming.errors import RequestError
from streaming.followed import Followed
from streaming.log import LOST_AT

PARAMETERS = ("last_event_id", "lastEventId")
ID = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,14})")


class EventId(NamedTuple):
    """Event `seq` of a run, counted from 1 (but LOST_AT is the end of one that is lost); 0 is before the first."""

    run: str
    seq: int


def last_event_id(headers: Mapping[str, str], query: Mapping[str, str]) -> EventId | None:
    """Return the last event a client has seen, if it says. Raises RequestError where that is no event id.

    An empty one says nothing: an EventSource that has seen no id has an empty one (WHATWG HTML, 9.2.2).
    """
    said = next(filter(None, [headers.get("last-event-id"), *map(query.get, PARAMETERS)]), None)
    return None if said is None else event_id(said, "last_event_id")


def event_id(text: str, field: str) -> EventId:
    """Parse an event id. Raises RequestError about `field` where it is none."""
    found = ID.fullmatch(text)
    if not found:
        raise RequestError("invalid_request", "That is no event id of ours.", field=field)
    return EventId(found[1], int(found[2]))


async def reached(run: Followed, seen: EventId | None) -> int:
    """Return `position` once the run's log has come so far here, or surely will not."""
    if seen and seen.run == run.id:
        await run.reach(seen.seq)
    return position(run, seen)


def position(run: Followed, seen: EventId | None, field: str = "last_event_id") -> int:
    """Return the place in the run's log after which a client goes on. Raises RequestError where it cannot be there."""
    if seen is None:
        return 0
    if seen.run != run.id:
        raise RequestError("invalid_request", "That event is another run's.", field=field)
    if run.log.is_lost:  # it may have seen more of it, which died with its replica: that it is lost is still to be told
        return len(run.log) if seen.seq == LOST_AT else min(seen.seq, len(run.log) - 1)
    if seen.seq > len(run.log):
        raise RequestError("invalid_request", "The run has not come so far.", field=field)
    return seen.seq
