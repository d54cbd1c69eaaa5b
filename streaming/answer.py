"""The answer to a run's request: its candidates are asked in turn, into its log, until one gives a whole one.

An **attempt** is one request to one candidate. It fails by a fault, by ending without a Finish, or by silence: no
content by `first_token_timeout`, or none for `idle_timeout` (an asyncio.timeout of its own that a clock sets off).
Then the same candidate is asked again, or it is the next one's turn: failover.py says which. What was said stays said
until another candidate says something else: then it is taken back by `reset`.

Not here: what a provider is, who watches, and how a run ends (run.py).
"""

import asyncio
import itertools
import logging
import traceback
from collections.abc import Sequence

from msgspec import UNSET
from msgspec.structs import replace

from .errors import Fault, RequestError, ServiceError, UpstreamError
from .events import Delta, Event, Finish, Reset, Start, Terminal, Token, Usage
from .failover import Candidate, Continuation, Failover, Retries, preferred
from .limits import Limits
from .log import EventLog
from .request import Headers, Item, RunRequest

logger = logging.getLogger("sidestream")

CHARACTERS_PER_TOKEN = 4


class Answer:
    """What the candidates say. `open` it, then `ask`, once each, in the run's task; `close` it when that is over.

    `provider` and `model` are those of the candidate whose words are in the log.
    """

    # fmt: off
    __slots__ = (  # noqa: RUF023  # what others read, then our own
        "provider", "model", "retries", "failovers", "resets", "first_content", "trace",
        "_run_id", "_created", "_log", "_limits", "_failover", "_left", "_candidate", "_again", "_opened", "_broke_by",
        "_clock", "_silence", "_silent", "_now", "_last_content", "_heard", "_finish", "_usage",
    )
    # fmt: on

    def __init__(self, failover: Failover, log: EventLog, limits: Limits, run_id: str, created: int) -> None:
        self._candidate: Candidate | None = failover.candidates[0]
        self.provider = self._candidate.provider
        self.model = self._candidate.request.model
        self.retries = self.failovers = self.resets = 0
        self.first_content: float | None = None  # when it came, by the loop's clock
        self.trace: Headers = ()  # what upstreams are told of the run's trace
        self._run_id = run_id
        self._created = created
        self._log = log
        self._limits = limits
        self._failover: Failover | None = failover
        self._left = list(failover.candidates)  # who was not asked yet
        self._again: Continuation | None = None  # where an answer was begun, and another candidate is asked
        self._broke_by = ""  # why the one that was begun was left
        self._opened = 0  # the place of the last `start`
        self._heard = False  # any content in this attempt
        self._silent: tuple[str, float] | None = None  # by which deadline, and its seconds
        self._finish: Finish | None = None
        self._usage: Usage | None = None

    def open(self) -> None:
        """Say who is asked first, before that is."""
        self._start(self._turn())

    @property
    def request(self) -> RunRequest | None:
        """What is asked of the candidate whose turn it is; None once that is over."""
        return self._candidate.request if self._candidate else None

    @property
    def is_open(self) -> bool:
        return self._opened > 0

    def _turn(self) -> Candidate:
        """Make it the turn of the next candidate."""
        candidate = self._candidate = preferred(self._left)
        self._left.remove(candidate)
        return candidate

    def _start(self, candidate: Candidate, *before: Event) -> None:
        """Say whose words follow."""
        self.provider, self.model = candidate.provider, candidate.request.model
        thread_id = candidate.request.thread_id
        start = Start(self._run_id, self.provider, self.model, self._created, UNSET if thread_id is None else thread_id)
        self._log.append([*before, start])
        self._opened = len(self._log)

    async def ask(self) -> Finish | Fault:
        """Ask the candidates in turn until one has given a whole answer; else return why the last one did not.

        Raises whatever comes out of an attempt while this is being cancelled.
        """
        failover, candidate = self._failover, self._candidate
        assert failover
        assert candidate
        ending = await self._try(candidate, failover.retries)
        while self._may_pass_on(ending, failover, candidate):
            stands = self.provider, self.model, self._usage
            candidate = self._turn()
            self.failovers += 1
            logger.warning("run %s: %s is asked instead", self._run_id, candidate.provider)
            if not self._has_said:
                self._start(candidate)
            else:
                self._broke_by = self._broke_by or (ending.code if isinstance(ending, Fault) else "content_filtered")
            other = await self._try(candidate, failover.retries)
            if isinstance(other, RequestError):
                # One that cannot take the request at all says nothing of why there is no answer.
                self.provider, self.model, self._usage = stands
            else:
                ending = other
        return ending

    def _may_pass_on(self, ending: Finish | Fault, failover: Failover, candidate: Candidate) -> bool:
        done = candidate.has_effects and self._heard
        return bool(self._left) and failover.passes_on(ending) and not done and not _is_being_cancelled()

    @property
    def _has_said(self) -> bool:
        """Whether there is anything that another candidate would have to go on with, or to take back."""
        return len(self._log) > self._opened

    async def _try(self, candidate: Candidate, retries: Retries) -> Finish | Fault:
        """Ask a candidate, and again where that may help; return its end."""
        for tries in itertools.count(1):
            try:
                with candidate.breaker.asking():
                    return await self._attempt(candidate)
            except Exception as exc:
                if _is_being_cancelled():
                    raise
                fault = fault_of(exc, self._run_id)
            # Of no use, too, where its breaker has opened and another can be asked at once.
            useless = self._heard or candidate.has_effects or (self._left and candidate.breaker.turns_away)
            wait = None if useless else retries.wait(tries, fault)
            if wait is None:
                break
            self.retries += 1
            logger.info("run %s: %s is asked again in %.1f s", self._run_id, candidate.provider, wait)
            await asyncio.sleep(wait)
        return fault

    async def _attempt(self, candidate: Candidate) -> Finish:
        """Ask a candidate once. Raises what it fails by; its connection is closed then."""
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._finish = self._silent = None
        self._heard = False
        self._last_content = self._now()
        silence = self._silence = asyncio.timeout(None)
        self._clock = loop.call_later(self._limits.first_token_timeout, self._check_silence)
        said = [event for _, event in self._log.merged(self._opened)]
        if said:
            self._again = Continuation(said)
        else:
            self._again = self._usage = None
        request = replace(candidate.request, trace=self.trace) if self.trace else candidate.request
        try:
            async with silence:
                provider = await candidate.load()
                await provider.stream(request, self._take_again if said else self._take)
        except Exception:
            if not self._silent:
                raise
        finally:
            self._clock.cancel()
            del self._silence, self._clock
        if self._finish:
            return self._finish
        if self._silent:
            raise _silence(*self._silent)
        raise UpstreamError("upstream_incomplete", "The upstream ended without finishing its answer.")

    def _take(self, batch: Sequence[Item]) -> None:
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
        if not self._log.append(events):
            return
        self._last_content = self._now()
        if not self._heard:
            self._hear()
        if self._log.size > self._limits.max_run_bytes:
            raise ServiceError("output_limit", f"The answer is larger than {self._limits.max_run_bytes} bytes.")

    def _take_again(self, batch: Sequence[Item]) -> None:
        """Take what another candidate says where an answer was begun: as long as it says the same, nobody is told."""
        if self._again is not None:
            assert self._candidate
            if any(isinstance(item, Event) and not (isinstance(item, Delta) and item.is_empty) for item in batch):
                self._last_content = self._now()
                if not self._heard:
                    self._hear()
            batch = self._again.feed(batch)
            if self._again.differs:
                self.resets += 1
                self._start(self._candidate, Reset(self._broke_by))
            if self._again.differs is not None:
                self.provider, self.model = self._candidate.provider, self._candidate.request.model
                self._again, self._broke_by, self._usage = None, "", None
        self._take(batch)

    def _hear(self) -> None:
        """Note the first content of an attempt: from now on another silence counts."""
        assert self._candidate
        self._heard = True
        if self.first_content is None:
            self.first_content = self._last_content
        self._candidate.breaker.heard()
        self._clock.cancel()
        self._check_silence()

    def _patience(self) -> tuple[str, float]:
        """Return which silence counts, and its seconds."""
        if self._heard:
            return "idle_timeout", self._limits.idle_timeout
        return "first_token_timeout", self._limits.first_token_timeout

    def _check_silence(self) -> None:
        """One clock an attempt that re-arms itself: a token costs no timer."""
        due = self._last_content + self._patience()[1]
        if self._now() < due:
            self._clock = asyncio.get_running_loop().call_at(due, self._check_silence)
        else:
            self._silent = self._patience()
            self._silence.reschedule(self._now())

    @property
    def silence(self) -> Fault | None:
        """What the last attempt is ending by, if that is silence and nobody is left to be asked."""
        return _silence(*self._silent) if self._silent and not self._left else None

    @property
    def usage(self) -> Usage:
        """What the upstream reported, else (or where it reported no output though there was some) an estimate."""
        reported = self._usage or Usage()
        if (
            self._candidate is None
            or not self._opened
            or reported.output_tokens
            or (self._usage and not self._log.characters)
        ):
            return reported
        asked = reported.input_tokens or _tokens(self._candidate.request.characters)
        return estimated(replace(reported, input_tokens=asked), self._log.characters)

    def close(self) -> None:
        """Let go of all but the answer: the prompt, and who was asked."""
        self._usage = self.usage
        self._candidate = self._failover = self._again = None
        self._left.clear()


def _silence(code: str, seconds: float) -> Fault:
    return ServiceError(code, f"The upstream sent nothing for {seconds:g} s.")


def _is_being_cancelled() -> bool:
    """Whether the run has its end, by whoever wants it or by its deadline, and only unwinds."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def fault_of(exc: Exception, run_id: str) -> Fault:
    """Return a fault, and log it; of what is none, where it happened and of what type.

    Not what it said: an exception's words may hold a prompt or a key. A fault comes without its frames, of which one
    has it, and would so be garbage that only a collector finds.
    """
    if isinstance(exc, Fault):
        logger.warning("run %s: %s%s", run_id, exc.code, _causes(exc))
        held: BaseException | None = exc
        while held is not None:
            held.__traceback__ = None
            held = held.__context__
        return exc
    where = "".join(traceback.format_tb(exc.__traceback__))
    logger.error("run %s: internal error: %s\n%s", run_id, type(exc).__name__, where)
    return ServiceError("internal", "Something went wrong in the service.")


def _causes(exc: BaseException) -> str:
    names = []
    while cause := exc.__cause__:
        names.append(type(cause).__name__)
        exc = cause
    return f" (from {' from '.join(names)})" if names else ""


def estimated(usage: Usage, characters: int) -> Usage:
    """Return a usage whose output, of so many characters, is estimated."""
    return replace(usage, output_tokens=_tokens(characters), estimated=True)


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)
