"""A run as those see it who follow it, tell how it stands, or stop it.

It may be made here (run.py) or by another replica; which of the two, nobody of them knows. All of it is in its log,
from the first event on, and it counts who watches. Not here: how a run is made, and how it ends.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal, Protocol

import msgspec

from .errors import ServiceError
from .events import Terminal, Usage
from .limits import Limits
from .log import EventLog

CancelReason = Literal["disconnected", "requested", "draining"]
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Told(Protocol):
    """Who answers, and what is told of that."""

    @property
    def provider(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def usage(self) -> Usage: ...

    @property
    def retries(self) -> int: ...

    @property
    def failovers(self) -> int: ...

    @property
    def resets(self) -> int: ...


class Followed(ABC):
    """A run, by its log and its end.

    `owner` is who may find it, and `key` how it was asked for (runs.py). `about` is what its wire keeps with it, to
    tell it again; JSON, and not for us to read. `created` is in seconds of the Unix epoch.
    """

    # fmt: off
    __slots__ = (  # noqa: RUF023  # in the order of their use; a service keeps thousands of runs
        "id", "owner", "key", "name", "about", "created", "limits", "log", "terminal", "viewers", "hands_over",
        "cut",
    )
    # fmt: on

    def __init__(
        self,
        run_id: str,
        owner: str,
        key: str,
        name: str,
        about: Mapping[str, Any] | None,
        created: float,
        limits: Limits,
    ) -> None:
        self.id = run_id
        self.owner = owner
        self.key = key
        self.name = name
        self.about = about or NOTHING
        self.created = created
        self.limits = limits
        self.log = EventLog(run_id)
        self.terminal: Terminal | None = None
        self.viewers = 0
        self.hands_over = False  # whether viewers are sent to another replica
        self.cut: int | None = None  # the last event that is true elsewhere, too, where it was ended here alone

    @property
    def about_size(self) -> int:
        """Bytes that `about` is counted as holding."""
        return len(msgspec.json.encode(self.about)) if self.about else 0

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """Count as a viewer. Once nobody has for `linger` seconds, nobody wants the rest: the run is cancelled.

        Raises ServiceError overloaded where there are `max_viewers`.
        """
        if self.viewers >= self.limits.max_viewers:
            text = f"This run has {self.viewers} viewers; more cannot follow it."
            raise ServiceError("overloaded", text, limit="max_viewers")
        self.viewers += 1
        self._came()
        try:
            yield
        finally:
            self.viewers -= 1
            self._left()

    def hand_over(self, hands_over: bool = True) -> None:
        """Send viewers to another replica, once they have what is ready, each by its own wire; or no longer."""
        if hands_over != self.hands_over:
            self.hands_over = hands_over
            self.log.wake()

    @abstractmethod
    def _came(self) -> None:
        """Take note that there is one viewer more."""

    @abstractmethod
    def _left(self) -> None:
        """Take note that there is one less."""

    @property
    @abstractmethod
    def answer(self) -> Told:
        """Who answers."""

    @property
    @abstractmethod
    def started(self) -> bool:
        """Whether it was begun; it may be over."""

    @property
    @abstractmethod
    def waits(self) -> bool:
        """Whether it waits in line; nobody was asked yet."""

    @property
    @abstractmethod
    def position(self) -> int:
        """Its place in the line, from 1; 0 once it is out of it."""

    @property
    @abstractmethod
    def has_asked(self) -> bool:
        """Whether it has left the line, or never stood in it."""

    @property
    @abstractmethod
    def ttft_ms(self) -> int | None:
        """Milliseconds from the start to the first content, None while there is none."""

    @property
    @abstractmethod
    def latency_ms(self) -> int:
        """Milliseconds from the start to the end, or to now while the run goes on."""

    @abstractmethod
    def end(self, reason: CancelReason) -> None:
        """Stop the run for `reason`, unless it is ending already."""

    @abstractmethod
    def linger_for(self, seconds: float) -> None:
        """Go on for as long without a viewer, or longer where it did already: counted anew from now."""

    @abstractmethod
    async def wait(self) -> None:
        """Return when the run has ended and its upstream is closed; at once where it was never started.

        Raises ServiceError unavailable where it is another replica's, which is not heard of.
        """

    @abstractmethod
    async def reach(self, seq: int) -> None:
        """Return once the log has event `seq`, or will surely not have it."""
