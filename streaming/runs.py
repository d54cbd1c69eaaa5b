"""A run: one generation, in its own task, apart from any request.

It reads a provider's batches and appends them to its event log; viewers come and go and only read. Whoever wants
to end a run calls `end`: the first reason is recorded, the task is cancelled, and the task's done-callback alone
appends the one terminal event, so a task cancelled before its first step still ends properly.

    what happens                                    recorded                        terminal event
    the provider's Finish                           by the task, as its last step   done
    a fault of the upstream or of ours              by the task, as its last step   error/<its code>
    the log passes `max_run_bytes`                  by the task                     error/output_limit
    `run_timeout` (an asyncio.timeout)              by the task                     error/run_timeout
    no content by `first_token_timeout`, or none    by the clock                    error/first_token_timeout,
      for `idle_timeout`                                                              error/idle_timeout
    the last viewer leaves                          by the viewer                   cancelled/disconnected
    the process stops                               by `Runs.drain`                 cancelled/draining

When two happen at once, the first recorded wins. Not here: retries and what a provider or a wire is.
"""

import asyncio
import logging
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from .errors import Fault, ServiceError, UpstreamError
from .events import Cancelled, Delta, Done, Error, Event, Finish, Start, Terminal, Usage
from .log import EventLog
from .request import Provider, RunRequest

logger = logging.getLogger("sidestream")

CancelReason = Literal["disconnected", "requested", "draining"]
CHARACTERS_PER_TOKEN = 4


class Limits(Struct, frozen=True):
    """When a run is over. Seconds, and bytes as `streaming.log.size_of` counts them."""

    run_timeout: float
    first_token_timeout: float
    idle_timeout: float
    max_run_bytes: int


class Candidate(NamedTuple):
    """Who shall answer what. `load` may take as long as an import does; it is awaited in the run's task."""

    provider: str
    request: RunRequest
    load: Callable[[], Awaitable[Provider]]


class Run:
    """One generation. `start` it once, inside a running loop; it ends by itself or by `end`."""

    def __init__(self, candidate: Candidate, limits: Limits) -> None:
        self.id = secrets.token_hex(16)
        self.log = EventLog()
        self._candidate = candidate
        self._limits = limits
        self._task: asyncio.Task[None] | None = None
        self._viewers = 0
        self._ending: Finish | Fault | CancelReason | None = None
        self._finish: Finish | None = None
        self._usage: Usage | None = None
        self._deltas = 0
        self._characters = 0
        self._first_content: float | None = None

    @property
    def request(self) -> RunRequest:
        return self._candidate.request

    def start(self, *, on_end: Callable[["Run"], object] = lambda run: None) -> None:
        """Log `start` and begin to ask the provider. `on_end` is called once, after the terminal event."""
        loop = asyncio.get_running_loop()
        provider, request, _ = self._candidate
        self._on_end = on_end
        self._now = loop.time
        self._began = self._last_content = self._now()
        self.log.append([Start(run=self.id, provider=provider, model=request.model, created=int(time.time()))])
        self._clock = loop.call_later(self._limits.first_token_timeout, self._check_silence)
        self._task = loop.create_task(self._generate(), name=f"run {self.id}")
        self._task.add_done_callback(self._close)

    def end(self, reason: Fault | CancelReason) -> None:
        """Stop the run for `reason`, unless it is ending already. The upstream's socket closes as the task unwinds."""
        if self._task and self._ending is None and not self.log.closed:
            self._ending = reason
            self._task.cancel()

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """Count as a viewer. When the last one leaves, nobody wants the rest: the run is cancelled."""
        self._viewers += 1
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers:
                self.end("disconnected")

    async def wait(self) -> None:
        """Return when the run has ended and its upstream is closed; at once where it was never started."""
        if self._task:
            await asyncio.wait([self._task])

    async def _generate(self) -> None:
        try:
            ending: Finish | Fault = await self._ask()
        except Exception as exc:
            if self._ending is not None:
                return  # that it comes to pieces while it is being cancelled concerns nobody
            ending = _fault(self.id, exc)
        self._ending = self._ending or ending

    async def _ask(self) -> Finish:
        deadline = asyncio.timeout(self._limits.run_timeout)
        try:
            async with deadline:
                provider = await self._candidate.load()
                async with aclosing(provider.stream(self._candidate.request)) as batches:
                    async for batch in batches:
                        self._take(batch)
        except TimeoutError as exc:
            if not deadline.expired():
                raise
            raise ServiceError("run_timeout", f"The run took longer than {self._limits.run_timeout:g} s.") from exc
        if self._finish is None:
            raise UpstreamError("upstream_incomplete", "The upstream ended without finishing its answer.")
        return self._finish

    def _take(self, batch: Sequence[Event | Usage | Finish]) -> None:
        events: list[Event] = []
        for item in batch:
            if isinstance(item, Delta):
                if not item.is_empty:
                    events.append(item)
                    self._deltas += 1
                    self._characters += len(item.text)
            elif isinstance(item, Terminal):
                raise TypeError("a provider ends with Finish or an exception; terminal events are the run's")
            elif isinstance(item, Event):
                events.append(item)
            elif isinstance(item, Usage):
                self._usage = item
            else:
                self._finish = item
                self._usage = item.usage or self._usage
        if events:
            self._content(events)

    def _content(self, events: list[Event]) -> None:
        self._last_content = self._now()
        if self._first_content is None:
            self._first_content = self._last_content
            self._clock.cancel()
            self._check_silence()
        self.log.append(events)
        if self.log.size > self._limits.max_run_bytes:
            raise ServiceError("output_limit", f"The answer is larger than {self._limits.max_run_bytes} bytes.")

    def _check_silence(self) -> None:
        """One clock a run that re-arms itself: a token costs no timer."""
        if self._first_content is None:
            code, wait = "first_token_timeout", self._limits.first_token_timeout
        else:
            code, wait = "idle_timeout", self._limits.idle_timeout
        due = self._last_content + wait
        if self._now() < due:
            self._clock = asyncio.get_running_loop().call_at(due, self._check_silence)
        else:
            self.end(ServiceError(code, f"The upstream sent nothing for {wait:g} s."))

    def _close(self, task: asyncio.Task[None]) -> None:
        self._clock.cancel()
        # Without a reason it was nobody of ours who cancelled it: the loop is closing.
        self.log.append([self._terminal(self._ending or "draining")])
        self._on_end(self)

    def _terminal(self, ending: Finish | Fault | CancelReason) -> Terminal:
        if isinstance(ending, Finish):
            return Done(
                finish_reason=ending.reason,
                model=ending.model or self._candidate.request.model,
                usage=self.usage,
                tokens=self._deltas,
                ttft_ms=None if self._first_content is None else _milliseconds(self._began, self._first_content),
                latency_ms=_milliseconds(self._began, self._now()),
            )
        if isinstance(ending, Fault):
            return Error(error=ending.text, code=ending.code, retryable=ending.retryable, usage=self.usage)
        return Cancelled(reason=ending, usage=self.usage)

    @property
    def usage(self) -> Usage:
        """What the upstream reported, else (or where it reported no output though there was some) an estimate."""
        reported = self._usage or Usage()
        if reported.output_tokens or (self._usage and not self._characters):
            return reported
        return replace(
            reported,
            input_tokens=reported.input_tokens or _tokens(self._candidate.request.characters),
            output_tokens=_tokens(self._characters),
            estimated=True,
        )


class Runs:
    """The runs of this process that have not ended."""

    def __init__(self) -> None:
        self._active: set[Run] = set()
        self._draining = False

    def __len__(self) -> int:
        return len(self._active)

    def start(self, run: Run) -> None:
        """Start a run. Raises ServiceError shutting_down once `drain` was called."""
        if self._draining:
            raise ServiceError("shutting_down", "The service is shutting down.")
        self._active.add(run)
        run.start(on_end=self._active.discard)

    def drain(self) -> None:
        """Begin no more runs and end those that go on; their viewers get the terminal event."""
        self._draining = True
        for run in list(self._active):
            run.end("draining")

    async def close(self) -> None:
        """End every run; return when their upstreams are closed."""
        self.drain()
        for run in list(self._active):
            await run.wait()


def _fault(run_id: str, exc: Exception) -> Fault:
    if isinstance(exc, Fault):
        logger.warning("run %s: %s%s", run_id, exc.code, _causes(exc))
        return exc
    # Where it happened and of what type, not what it said: an exception's words may hold a prompt or a key.
    where = "".join(traceback.format_tb(exc.__traceback__))
    logger.error("run %s: internal error: %s\n%s", run_id, type(exc).__name__, where)
    return ServiceError("internal", "Something went wrong in the service.")


def _causes(exc: BaseException) -> str:
    names = []
    while cause := exc.__cause__:
        names.append(type(cause).__name__)
        exc = cause
    return f" (from {' from '.join(names)})" if names else ""


def _milliseconds(begin: float, end: float) -> int:
    return round((end - begin) * 1000)


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)
