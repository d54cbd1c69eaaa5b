"""What a process asks of other replicas and tells them, where there are any: the seam between it and Redis.

`Runs` (runs.py) knows no more of them than this; replication.py does it, by Redis.
"""

from typing import Literal, Protocol

from msgspec import Struct

from .followed import Followed
from .run import Run


class Reach(Struct, frozen=True):
    """How far this replica reaches others: whether Redis answers (`full`: but takes nothing), else why it does not.

    Redis lacks `behind_events` of our runs, the oldest for `behind_seconds`. `mirrors` are runs of others that are
    followed here, by `mirror_viewers`. The rest is counted from the start: what of ours was sent, in how many entries,
    by how many commands in all, and others' runs that were given up for lost here.
    """

    redis: Literal["up", "full", "down"]
    why: str
    behind_events: int
    behind_seconds: float
    mirrors: int
    mirror_viewers: int
    sent_events: int
    sent_entries: int
    commands: int
    lost_runs: int


class Elsewhere(Protocol):
    """What other replicas have: where there are any.

    Whoever asks may be told ServiceError unavailable. An id is asked for as a client has said it, whatever it is.
    """

    def reach(self) -> Reach:
        """Tell how far this replica reaches others."""

    def begun(self, run: Run) -> None:
        """Take note of a run that can be found here."""

    def forgotten(self, run: Run) -> None:
        """Take note that it cannot any longer."""

    async def settle(self, run: Run) -> None:
        """Return once others can find a run that was begun here, or cannot be expected to."""

    async def find(self, run_id: str) -> Followed | None:
        """Return the run of another replica, whosever it is."""

    async def claim(self, run: Run, asked: bytes) -> tuple[str, bytes] | None:
        """Let the key of a run stand for it, and for `asked`: None where it does, else what run and digest it is for.

        Cancelled in between, it leaves the key to others.
        """

    def release(self, run: Run) -> None:
        """Let go of a claimed key, whose run was refused."""

    async def holder(self, owner: str, key: str) -> str | None:
        """Return the id of the run that a key stands for."""

    async def newest(self, owner: str, name: str) -> str | None:
        """Return the id of the owner's newest run of a name."""

    def end(self) -> None:
        """Let go of those who follow another replica's run here: this one goes."""

    async def wait(self) -> None:
        """Return when nobody follows another replica's run here."""
