"""Who may begin: so many runs at once, of the process and of each owner; the others wait in line, and so many at most.

    a place is free ──▶ begins
    none is         ──▶ waits, and is told its position ──▶ a place is free ──▶ begins
    the line is full ──▶ refused: 429 where its owner has all that it may have, else 503

First come, first served, but that an owner who has all its places holds up nobody behind it.
"""

import asyncio

from msgspec import Struct

from .errors import Fault, RequestError, ServiceError
from .run import Run

TELL_INTERVAL = 1.0  # how often who waits is told that it has moved up, seconds
RETRY_AFTER = {"Retry-After": "5"}


class Capacity(Struct, frozen=True):
    """How many may go on and wait, of all and of one owner. 0 is any number, but that of `max_queue` is none."""

    max_runs: int = 0
    max_runs_per_owner: int = 0
    max_queue: int = 0
    max_queue_per_owner: int = 0


class Admission:
    """The places of a process, and the line before them. Belongs to one event loop."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._total = 0
        self._taken: dict[str, int] = {}  # by owner
        self._waiting: dict[Run, asyncio.Future[None]] = {}
        self._clock: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def admit(self, run: Run) -> asyncio.Future[None] | None:
        """Give a place, or one in the line: what is done once there is a place. Raises Fault where neither is free.

        Whoever is admitted calls `leave` once, whatever became of it.
        """
        if self._has_room and not self._has_all(run.owner):
            self._take(run.owner)
            return None
        self._check_line(run.owner)
        place = self._waiting[run] = asyncio.get_running_loop().create_future()
        run.tell_position(len(self._waiting))
        if not self._clock:
            self._tell_later()
        return place

    def leave(self, run: Run) -> None:
        """Give back a place, in the line or at last, and let those go on who can now."""
        if self._waiting.pop(run, None) is None:
            self._give_back(run.owner)
        while self._has_room and (first := next(filter(self._can_go_on, self._waiting), None)):
            self._take(first.owner)
            self._waiting.pop(first).set_result(None)

    def _take(self, owner: str) -> None:
        self._total += 1
        self._taken[owner] = self._taken.get(owner, 0) + 1

    def _give_back(self, owner: str) -> None:
        self._total -= 1
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]

    def _can_go_on(self, run: Run) -> bool:
        return not self._waiting[run].done() and not self._has_all(run.owner)

    @property
    def _has_room(self) -> bool:
        most = self._capacity.max_runs
        return not most or self._total < most

    def _has_all(self, owner: str) -> bool:
        most = self._capacity.max_runs_per_owner
        return bool(most) and self._taken.get(owner, 0) >= most

    def _check_line(self, owner: str) -> None:
        most = self._capacity.max_queue_per_owner
        if most and sum(run.owner == owner for run in self._waiting) >= most:
            raise _too_many("max_queue_per_owner", f"You have {most} runs waiting; more cannot.")
        if len(self._waiting) < self._capacity.max_queue:
            return
        if self._has_all(owner):
            most = self._capacity.max_runs_per_owner
            raise _too_many("max_runs_per_owner", f"You have {most} runs going on; more cannot.")
        text = "The service has as many runs as it can take."
        raise ServiceError("overloaded", text, headers=RETRY_AFTER, limit="max_runs")

    def _tell_later(self) -> None:
        self._clock = asyncio.get_running_loop().call_later(TELL_INTERVAL, self._tell)

    def _tell(self) -> None:
        self._clock = None
        for position, run in enumerate(self._waiting, 1):
            run.tell_position(position)
        if self._waiting:
            self._tell_later()


def _too_many(limit: str, text: str) -> Fault:
    return RequestError("rate_limited", text, headers=RETRY_AFTER, limit=limit)
