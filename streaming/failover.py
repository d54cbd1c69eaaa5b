"""Who else may answer: the candidates of a run, when one is asked again, and when the next one is.

    what went wrong                                        before any content of its    after it
    refused, reset, cut; HTTP 408, 409, 429, 5xx;          asked again, then the next   the next
      an error in place of content
    no first content in time, nothing to be understood     the next                     the next
    silence of `idle_timeout`                              -                            the next
    HTTP 400, 401, 403, 404, 413, 422, a content filter    the end, but for what `on` names: the next
    the run's own end (a deadline, a limit, who stops it)  the end                      the end

Nobody is asked again whose breaker has opened, as long as there is a next one.
Who takes over goes on where the other left off, if its answer begins with exactly what was already said; else that is
taken back by `reset`. Pure: no I/O, no clock. The run (run.py) asks, waits and tells.
"""

import random
from collections.abc import Awaitable, Callable, Collection, Sequence

from msgspec import Struct, field

from .breaker import Breaker
from .errors import AGAIN, ELSEWHERE, Fault
from .events import Delta, Event, Finish, Usage
from .request import Item, Provider, RunRequest

MAX_DELAY = 8.0  # seconds; as both vendors' SDKs have it


class Candidate(Struct, frozen=True, eq=False):
    """Who shall answer what. `load` may take as long as an import does; it is awaited in the run's task.

    One that `has_effects` (a chain or graph, whose tools do things) is asked once, and is nobody's to take over from
    once it has said something.
    """

    provider: str
    request: RunRequest
    load: Callable[[], Awaitable[Provider]]
    breaker: Breaker = field(default_factory=Breaker)
    has_effects: bool = False


class Retries(Struct, frozen=True):
    """How often a candidate that said nothing is asked again, and when; `delay` and `max_retry_after` are seconds."""

    most: int = 2
    delay: float = 0.5
    max_retry_after: float = 10.0

    def wait(self, tries: int, fault: Fault) -> float | None:
        """Return how long to wait before asking again after so many tries, None where that is of no use.

        Twice as long each time, between half and all of it at random, so that those who failed together do not come
        back together; at least as long as the upstream asks for.
        """
        asked_for = fault.retry_after or 0.0
        if tries > self.most or fault.code not in AGAIN or not fault.again or asked_for > self.max_retry_after:
            return None
        backoff: float = min(self.delay * 2.0 ** (tries - 1), MAX_DELAY)
        return max(asked_for, backoff * random.uniform(0.5, 1))  # noqa: S311 - to spread, not to keep a secret


class Failover(Struct, frozen=True):
    """The candidates of a run, the preferred first. `on` names faults that are the next one's turn beside the usual."""

    candidates: Sequence[Candidate]
    on: Collection[str] = ()
    retries: Retries = Retries(most=0)

    def passes_on(self, ending: Fault | Finish) -> bool:
        """Whether another may do better. What a content filter has stopped is a whole answer, unless `on` says else."""
        if isinstance(ending, Finish):
            return ending.reason == "content_filter" and "content_filtered" in self.on
        return ending.code in ELSEWHERE or ending.code in self.on


def preferred(candidates: Sequence[Candidate]) -> Candidate:
    """Return the first whose breaker does not turn away; where all do, the first."""
    return next((one for one in candidates if not one.breaker.turns_away), candidates[0])


class Continuation:
    """Holds back what another candidate says as long as it is what was `said` already: not empty, deltas joined.

    `differs` is None until that is known.
    """

    def __init__(self, said: Sequence[Event]) -> None:
        self.differs: bool | None = None
        self._said = said
        self._place = 0  # among what was said
        self._begun = False  # of a delta there
        self._offset = 0  # in its text
        self._held: list[Item] = []

    def feed(self, batch: Sequence[Item]) -> list[Item]:
        """Return what of a batch is to be passed on: of the same answer what is new, of another one all of it.

        Nothing, as long as that is not known; what its candidate says of its usage comes with the rest.
        """
        for place, item in enumerate(batch):
            new: Item | None = item
            if not isinstance(item, Usage) and not (isinstance(item, Delta) and item.is_empty):
                new = self._compare(item)
            if self.differs is None:
                self._held.append(item)
                continue
            held, self._held = self._held, []
            if not self.differs:
                held = [one for one in held if isinstance(one, Usage)]
            return [*held, *([new] if new else []), *batch[place + 1 :]]
        return []

    def _compare(self, item: Event | Finish) -> Item | None:
        """Hold an item against what was said; once `differs` is known, return what of it is new."""
        said = self._said[self._place]
        follows = isinstance(item, Delta) and item.follows(said)
        if self._begun and self._offset == len(said.text) and not follows:
            self._place, self._begun, self._offset = self._place + 1, False, 0
            said = self._said[self._place]
        is_last = self._place == len(self._said) - 1
        if isinstance(item, Delta) and (follows if self._begun else _is_alike(item, said)):
            left = said.text[self._offset :]
            if is_last and item.text.startswith(left):
                self.differs = False
                new = item.text[len(left) :]
                return item.going_on(new) if new else None
            if left.startswith(item.text):
                self._begun = True
                self._offset += len(item.text)
                return None
        elif item == said and not isinstance(item, Delta):
            self._place += 1
            self.differs = False if is_last else None
            return None
        self.differs = True
        return item


def _is_alike(one: Delta, other: Event) -> bool:
    return isinstance(other, Delta) and one.joined("") == other.joined("")
