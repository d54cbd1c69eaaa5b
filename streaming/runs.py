"""The runs of a process: who may begin one, find one, or ask for one a second time, and how long each is kept.

    create ──▶ begin ──▶ (waits in line) ──▶ goes on ──▶ over, kept for `keep` seconds ──▶ forgotten
       a key is reserved │ can be found by its id and, by its owner, with its key

Who waits, and who is turned away, is admission.py's business, what becomes of one run that of run.py.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .admission import Admission, Capacity
from .errors import Fault, RequestError, ServiceError
from .failover import Failover
from .limits import Limits
from .run import Run

# What a run that is kept holds beside its events: 2.0 KB by tracemalloc, over 2,000 of them.
RUN_OVERHEAD = 2048


class Runs:
    """The runs of this process: those that go on, and those that are over and kept for whoever comes back.

    A run that is over is kept for `keep` seconds, and all of them in at most `keep_bytes`; the oldest go first.
    `on_end` is called with each that has ended, `on_quiet` whenever it was the last of those that go on.
    """

    def __init__(
        self,
        keep: float,
        keep_bytes: int,
        capacity: Capacity | None = None,
        on_quiet: Callable[[], object] = lambda: None,
        on_end: Callable[[Run], object] = lambda run: None,
    ) -> None:
        self.admission = Admission(capacity or Capacity())
        self._on_quiet = on_quiet
        self._on_end = on_end
        self._keep = keep
        self._keep_bytes = keep_bytes
        self._runs: dict[str, Run] = {}
        self._active: set[Run] = set()
        self._kept: deque[tuple[float, Run]] = deque()  # until when, the oldest first
        self._kept_bytes = 0
        self._keys: dict[tuple[str, str], tuple[Run, bytes]] = {}
        self._named: dict[tuple[str, str], Run] = {}
        self._clock: asyncio.TimerHandle | None = None
        self.draining = False

    def __len__(self) -> int:
        """How many go on, or wait in line."""
        return len(self._active)

    @property
    def all(self) -> Collection[Run]:
        """Those that go on, and those that are kept."""
        return self._runs.values()

    def create(
        self,
        failover: Failover,
        limits: Limits,
        *,
        owner: str = "",
        key: str = "",
        asked: bytes = b"",
        name: str = "",
        about: Mapping[str, Any] | None = None,
    ) -> Run:
        """Return the run of a request, for whoever follows it to begin.

        An idempotency `key` is its owner's, and is reserved here, before anything is asked of an upstream: while its
        run is kept it stands for that run. Raises RequestError conflict where `asked` (any digest of the request)
        is not what it first stood for. The run lingers for as long as any of those who asked wants.
        `name` is what the owner's newest run of it is found by, once it is begun (`latest`); `about` is kept with it.
        """
        if key and (known := self._keys.get((owner, key))):
            run, first = known
            if asked != first:
                text = "This Idempotency-Key stands for another request: its run was asked for with another body."
                raise RequestError("conflict", text, field="Idempotency-Key")
            run.linger_for(limits.linger)
            return run
        run = Run(failover, limits, owner, key, name, about)
        if key:
            self._keys[owner, key] = run, asked
        return run

    def knows(self, owner: str, key: str) -> bool:
        """Whether an idempotency key stands for a run already."""
        return (owner, key) in self._keys

    def begin(self, run: Run) -> None:
        """Start a run, unless it was, at once or when its place is free.

        Raises Fault where there is no place in the line either; ServiceError shutting_down once `drain` was called.
        """
        if run.started:
            return
        try:
            if self.draining:
                raise ServiceError("shutting_down", "The service is shutting down.")
            place = self.admission.admit(run)
        except Fault:
            self._keys.pop((run.owner, run.key), None)
            raise
        self._runs[run.id] = run
        if run.name:
            self._named[run.owner, run.name] = run
        self._active.add(run)
        run.start(on_end=self._retire, place=place)

    def find(self, run_id: str, owner: str | None = "") -> Run:
        """Return a run that goes on or is kept; without an owner, whosever it is.

        Raises RequestError not_found, for another owner's run too.
        """
        run = self._runs.get(run_id)
        if run is None or owner not in (None, run.owner):
            raise RequestError("not_found", "There is no such run, or it was over and is no longer kept.")
        return run

    def latest(self, name: str, owner: str) -> Run | None:
        """Return the owner's newest run of this name, if it goes on or is kept."""
        return self._named.get((owner, name))

    def _retire(self, run: Run) -> None:
        self._active.discard(run)
        self.admission.leave(run)
        self._on_end(run)
        if not self._active:
            self._on_quiet()
        if _weight(run) > self._keep_bytes:  # it would drive out all others, and then go itself
            self._forget(run)
            return
        self._kept.append((asyncio.get_running_loop().time() + self._keep, run))
        self._kept_bytes += _weight(run)
        self._sweep()

    def _sweep(self) -> None:
        """Forget what was kept for long enough or no longer fits, and come back when the next is due."""
        loop = asyncio.get_running_loop()
        if self._clock:
            self._clock.cancel()
        while self._kept and (self._kept[0][0] <= loop.time() or self._kept_bytes > self._keep_bytes):
            _, run = self._kept.popleft()
            self._kept_bytes -= _weight(run)
            self._forget(run)
        if self._kept:
            self._clock = loop.call_at(self._kept[0][0], self._sweep)

    def _forget(self, run: Run) -> None:
        del self._runs[run.id]
        self._keys.pop((run.owner, run.key), None)
        if self._named.get((run.owner, run.name)) is run:
            del self._named[run.owner, run.name]

    def drain(self) -> None:
        """Begin no more runs, and end those that wait in line; those that go on may."""
        self.draining = True
        for run in self._active:
            if run.waits:
                run.end("draining")

    def end(self) -> None:
        """Begin no more runs, and end those that go on; their viewers get the terminal event."""
        self.draining = True
        for run in self._active:
            run.end("draining")

    async def wait(self) -> None:
        """Return when no run goes on, and their upstreams are closed."""
        while self._active:
            await next(iter(self._active)).wait()

    async def close(self) -> None:
        """End every run; return when their upstreams are closed."""
        self.end()
        await self.wait()
        if self._clock:
            self._clock.cancel()


def _weight(run: Run) -> int:
    return run.log.size + run.about_size + RUN_OVERHEAD
