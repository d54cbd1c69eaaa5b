"""A run: one generation, in its own task, apart from any request.

It reads a provider's batches and appends them to its event log; viewers come and go and only read. Whoever wants
to end a run calls `end`: the first reason is recorded, the task is cancelled, and the task's done-callback alone
appends the one terminal event, so a task cancelled before its first step still ends properly.

    what happens                                    recorded                        terminal event
    the provider's Finish                           by the task, as its last step   done
    a fault of the upstream or of ours              by the task, as its last step   error/<its code>
    the log passes `max_run_bytes`                  by the task                     error/output_limit
    `run_timeout` (an asyncio.timeout)              by the task                     error/run_timeout
    no content by `first_token_timeout`, or none    by the silence clock            error/first_token_timeout,
      for `idle_timeout`                                                              error/idle_timeout
    nobody views it for `linger`, counted from its  by the linger clock (by the     cancelled/disconnected
      start and from each time the last one left      viewer, where linger is 0)
    somebody asks for it                            by who was asked                cancelled/requested
    the process stops                               by `Runs.drain`                 cancelled/draining

When two happen at once, the first recorded wins. A viewer that comes in time stops the linger clock, and one that
comes while the run ends gets its ending like all others. Not here: retries and what a provider or a wire is.
"""

import asyncio
import logging
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal, NamedTuple

from msgspec import UNSET, Struct
from msgspec.structs import replace

from .errors import Fault, ServiceError, UpstreamError
from .events import Cancelled, Done, Error, Event, Finish, Start, Terminal, Token, Usage
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
    linger: float = 0.0


class Candidate(NamedTuple):
    """Who shall answer what. `load` may take as long as an import does; it is awaited in the run's task."""

    provider: str
    request: RunRequest
    load: Callable[[], Awaitable[Provider]]


class Run:
    """One generation. `start` it once, inside a running loop; it ends by itself or by `end`.

    Its id carries 128 random bits: nobody finds it by guessing. `owner` is who may, and `key` how it was asked for
    (streaming/runs.py).
    """

    # fmt: off
    __slots__ = (  # noqa: RUF023  # in the order of their use; a service keeps thousands of runs
        "id", "owner", "key", "provider", "model", "created", "limits", "log", "terminal", "viewers",
        "_candidate", "_task", "_alone", "_clock", "_deadline", "_on_end", "_now", "_began", "_last_content",
        "_first_content", "_ended", "_ending", "_finish", "_usage",
    )
    # fmt: on

    def __init__(self, candidate: Candidate, limits: Limits, owner: str = "", key: str = "") -> None:
        self.id = secrets.token_hex(16)
        self.owner = owner
        self.key = key
        self.provider = candidate.provider
        self.model = candidate.request.model
        self.created = time.time()
        self.limits = limits
        self.log = EventLog(self.id)
        self.terminal: Terminal | None = None
        self.viewers = 0
        self._candidate: Candidate | None = candidate
        self._task: asyncio.Task[None] | None = None
        self._alone: asyncio.TimerHandle | None = None
        self._ending: Finish | Fault | CancelReason | None = None
        self._finish: Finish | None = None
        self._usage: Usage | None = None
        self._began = 0.0
        self._first_content: float | None = None
        self._ended: float | None = None

    def start(self, *, on_end: Callable[["Run"], object] = lambda run: None) -> None:
        """Log `start` and begin to ask the provider. `on_end` is called once, after the terminal event."""
        assert self._candidate
        loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._now = loop.time
        self._began = self._last_content = self._now()
        self.log.append([self._start(self._candidate.request.thread_id)])
        self._clock = loop.call_later(self.limits.first_token_timeout, self._check_silence)
        self._deadline = asyncio.timeout(self.limits.run_timeout)
        self._task = loop.create_task(self._generate(self._candidate), name=f"run {self.id}")
        self._task.add_done_callback(self._close)
        if self._ending is not None:
            self._task.cancel()
        self._linger()

    def _start(self, thread_id: str | None) -> Start:
        return Start(self.id, self.provider, self.model, int(self.created), UNSET if thread_id is None else thread_id)

    @property
    def started(self) -> bool:
        return self._task is not None

    def end(self, reason: Fault | CancelReason) -> None:
        """Stop the run for `reason`, unless it is ending already. The upstream's socket closes as the task unwinds.

        A run that has not started ends when it does, and asks nobody.
        """
        if self._ending is not None or self.log.closed or (self._task and self._deadline.expired()):
            return
        self._ending = reason
        if self._task:
            self._task.cancel()

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """Count as a viewer. Once nobody has for `linger` seconds, nobody wants the rest: the run is cancelled."""
        self.viewers += 1
        if self._alone:
            self._alone.cancel()
        try:
            yield
        finally:
            self.viewers -= 1
            self._linger()

    def linger_for(self, seconds: float) -> None:
        """Go on for as long without a viewer, or longer where it did already: counted anew from now."""
        self.limits = replace(self.limits, linger=max(seconds, self.limits.linger))
        with self.viewing():
            pass

    def _linger(self) -> None:
        if self.viewers or self.log.closed or not self.started:
            return
        if self.limits.linger:
            self._alone = asyncio.get_running_loop().call_later(self.limits.linger, self.end, "disconnected")
        else:
            self.end("disconnected")

    async def wait(self) -> None:
        """Return when the run has ended and its upstream is closed; at once where it was never started."""
        if self._task:
            await asyncio.wait([self._task])

    async def _generate(self, candidate: Candidate) -> None:
        try:
            finish = await self._ask(candidate)
            self._ending = self._ending or finish
        except Exception as exc:
            if self._ending is None:  # else that it comes to pieces while it is being cancelled concerns nobody
                self._ending = _fault(self.id, exc)

    async def _ask(self, candidate: Candidate) -> Finish:
        try:
            async with self._deadline:
                provider = await candidate.load()
                await provider.stream(candidate.request, self._take)
        except TimeoutError as exc:
            if not self._deadline.expired():
                raise
            raise ServiceError("run_timeout", f"The run took longer than {self.limits.run_timeout:g} s.") from exc
        if self._finish is None:
            raise UpstreamError("upstream_incomplete", "The upstream ended without finishing its answer.")
        return self._finish

    def _take(self, batch: Sequence[Event | Usage | Finish]) -> None:
        events: list[Event] = []
        for item in batch:
            if type(item) is Token:  # most are; isinstance() asks msgspec's metaclass, which takes longer than the rest
                events.append(item)
            elif isinstance(item, Event):
                if isinstance(item, Terminal):
                    raise TypeError("a provider ends with Finish or an exception; terminal events are the run's")
                events.append(item)
            elif isinstance(item, Usage):
                self._usage = item
            else:
                self._finish = item
                self._usage = item.usage or self._usage
        if not self.log.append(events):
            return
        self._last_content = self._now()
        if self._first_content is None:
            self._first_content = self._last_content
            self._clock.cancel()
            self._check_silence()
        if self.log.size > self.limits.max_run_bytes:
            raise ServiceError("output_limit", f"The answer is larger than {self.limits.max_run_bytes} bytes.")

    def _check_silence(self) -> None:
        """One clock a run that re-arms itself: a token costs no timer."""
        if self._first_content is None:
            code, wait = "first_token_timeout", self.limits.first_token_timeout
        else:
            code, wait = "idle_timeout", self.limits.idle_timeout
        due = self._last_content + wait
        if self._now() < due:
            self._clock = asyncio.get_running_loop().call_at(due, self._check_silence)
        else:
            self.end(ServiceError(code, f"The upstream sent nothing for {wait:g} s."))

    def _close(self, task: asyncio.Task[None]) -> None:
        self._clock.cancel()
        if self._alone:
            self._alone.cancel()
        self._ended = self._now()
        # Without a reason it was nobody of ours who cancelled it: the loop is closing.
        self.terminal = self._terminal(self._ending or "draining")
        # What is kept of a run is its answer: not its prompt, nor the frames of what ended it, which hold that too.
        self._usage, self._candidate, self._ending = self.usage, None, None
        if task.cancelled():
            with suppress(asyncio.CancelledError):
                task.exception()  # the task lets go of its own
        self.log.append([self.terminal])
        self._on_end(self)

    def _terminal(self, ending: Finish | Fault | CancelReason) -> Terminal:
        if isinstance(ending, Finish):
            return Done(
                finish_reason=ending.reason,
                model=ending.model or self.model,
                usage=self.usage,
                tokens=self.tokens,
                ttft_ms=self.ttft_ms,
                latency_ms=self.latency_ms,
            )
        if isinstance(ending, Fault):
            return Error(error=ending.text, code=ending.code, retryable=ending.retryable, usage=self.usage)
        return Cancelled(reason=ending, usage=self.usage)

    @property
    def tokens(self) -> int:
        """How many content deltas there were."""
        return self.log.deltas

    @property
    def ttft_ms(self) -> int | None:
        """Milliseconds from the start to the first content, None while there is none."""
        return None if self._first_content is None else _milliseconds(self._began, self._first_content)

    @property
    def latency_ms(self) -> int:
        """Milliseconds from the start to the end, or to now while the run goes on."""
        if not self.started:
            return 0
        return _milliseconds(self._began, self._now() if self._ended is None else self._ended)

    @property
    def usage(self) -> Usage:
        """What the upstream reported, else (or where it reported no output though there was some) an estimate."""
        reported = self._usage or Usage()
        if self._candidate is None or reported.output_tokens or (self._usage and not self.log.characters):
            return reported
        return replace(
            reported,
            input_tokens=reported.input_tokens or _tokens(self._candidate.request.characters),
            output_tokens=_tokens(self.log.characters),
            estimated=True,
        )


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
