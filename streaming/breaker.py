"""A circuit breaker for each candidate: one that keeps failing is not asked while another can be.

    closed ──(too many of the last attempts failed)──▶ open ──(`pause` is over)──▶ half_open
      ▲                                                 ▲                             │ one attempt at a time
      └───────────────(content comes)───────────────────┼─────────────────────────────┤
                                                        └──────────(it fails)─────────┘

What it says is advice: where every candidate's is open they are asked all the same, since a run that may come to
nothing is better than one that surely does. It does not know what is asked, nor who decides (run.py).
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from msgspec import Struct

from .errors import ELSEWHERE, Fault

State = Literal["closed", "open", "half_open"]
MAX_KNOWN = 1000  # a client may name any model; whom nobody asked for the longest is forgotten first


class BreakerPolicy(Struct, frozen=True):
    """Open where of at least `least` attempts within `window` seconds a `share` has failed, for `pause` seconds.

    The window goes on by halves: what it counts is up to half as old again.
    """

    share: float = 0.5
    least: int = 5
    window: float = 30.0
    pause: float = 10.0


class Breaker:
    """One candidate's. Every attempt is made within `asking`; `heard` is called at its first content."""

    __slots__ = ("_before", "_counts", "_now", "_opened", "_policy", "_probe", "_since")

    def __init__(self, policy: BreakerPolicy | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy or BreakerPolicy()
        self._now = now
        self._close()

    def _close(self) -> None:
        self._opened: float | None = None
        self._probe: object | None = None  # the attempt that tries whether it may close
        # The window in two halves, [attempts, failures] each: no more to keep, however many there are.
        self._counts, self._before = [0, 0], [0, 0]
        self._since = self._now()

    @property
    def state(self) -> State:
        if self._opened is None:
            return "closed"
        return "open" if self._now() < self._opened + self._policy.pause else "half_open"

    @property
    def turns_away(self) -> bool:
        """Whether to ask another, if there is one: it is open, or somebody is trying whether it may close."""
        state = self.state
        return state == "open" or (state == "half_open" and self._probe is not None)

    @property
    def attempts(self) -> tuple[int, int]:
        """How many there were in the window, and how many of them failed."""
        self._roll()
        return self._counts[0] + self._before[0], self._counts[1] + self._before[1]

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Count what becomes of an attempt. One that is cancelled says nothing of the candidate.

        Nor does a refusal of the request, but that it is there.
        """
        mine = object()
        if self._opened is not None:
            self._probe = self._probe or mine
        try:
            yield
        except Exception as exc:
            if isinstance(exc, Fault) and exc.code not in ELSEWHERE:
                self.heard()
            else:
                self._count(failed=True)
            raise
        else:
            self._count(failed=False)
        finally:
            if self._probe is mine:
                self._probe = None

    def heard(self) -> None:
        """It answers: what was open is closed."""
        if self._opened is not None:
            self._close()

    def _count(self, *, failed: bool) -> None:
        if self._opened is not None:
            if not failed:
                self._close()
            elif self.state == "half_open":  # not for what was begun before: it says nothing new
                self._opened = self._now()
            return
        self._roll()
        self._counts[0] += 1
        self._counts[1] += failed
        attempts, failures = self.attempts
        if failed and attempts >= self._policy.least and failures >= attempts * self._policy.share:
            self._opened = self._now()

    def _roll(self) -> None:
        half, now = self._policy.window / 2, self._now()
        if now >= self._since + half:
            self._before = self._counts if now < self._since + 2 * half else [0, 0]
            self._counts, self._since = [0, 0], now


class Breakers:
    """The breakers of this process, by candidate."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._known: OrderedDict[str, Breaker] = OrderedDict()

    def of(self, candidate: str) -> Breaker:
        """Return a candidate's, made on first need."""
        breaker = self._known.pop(candidate, None) or Breaker(self._policy)
        self._known[candidate] = breaker
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return breaker

    def told(self) -> dict[str, Breaker]:
        """Return those that have something to tell: they are not closed, or were asked of late."""
        return {name: one for name, one in self._known.items() if one.state != "closed" or one.attempts[0]}
