"""What is counted, in plain numbers: nothing here is on a token's way, and nobody has to read it.

The names and buckets of what is measured of models are OpenTelemetry's (semantic conventions for generative AI); how
all of it is told is another's business (wires/operations.py).
"""

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from .errors import Fault
from .events import Done, Error
from .logs import reason_of
from .run import Run

DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKENS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
NEXT_TOKENS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
USAGES = tuple(4.0**power for power in range(14))
DELAYS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
LOOK_INTERVAL = 0.5  # how often the loop is asked whether it is late, seconds
OTHER = "other"  # a model's label where any may be asked for: a client's words are no label


class Histogram:
    """How often values were how large: `counts` of those up to each of `bounds`, and of those above."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Who(NamedTuple):
    """Who answered, as a label: a provider, and one of its models that the settings know."""

    provider: str
    model: str


def label_of(run: Run, models: Collection[str]) -> str:
    """Return the name of a run's model where it is one of `models`."""
    return run.answer.model if f"{run.answer.provider}/{run.answer.model}" in models else OTHER


class Metrics:
    """The counters of this process. `models` are those that have labels of their own, as `provider/model`."""

    def __init__(self, models: Collection[str] = ()) -> None:
        self.models = frozenset(models)
        self.retries = 0
        self.failovers = 0
        self.resets = 0
        self.resumes = 0
        self.skipped_chunks = 0
        self.runs: Counter[tuple[str, str]] = Counter()  # by outcome and reason
        self.refusals: Counter[tuple[str, str]] = Counter()  # by code and by the setting that was the limit, if any
        self.durations: dict[tuple[Who, str], Histogram] = {}  # by the error's code, too, if there was one
        self.first_tokens: dict[Who, Histogram] = {}
        self.next_tokens: dict[Who, Histogram] = {}
        self.usages: dict[tuple[Who, str], Histogram] = {}  # by the kind of token
        self.waits = Histogram(DURATIONS)
        self.loop_delays = Histogram(DELAYS)

    def refused(self, fault: Fault) -> None:
        """Count a request that was refused before its first byte, or a frame of a socket."""
        self.refusals[fault.code, fault.limit or ""] += 1

    def run_ended(self, run: Run) -> None:
        self.retries += run.answer.retries
        self.failovers += run.answer.failovers
        self.resets += run.answer.resets
        terminal = run.terminal
        assert terminal
        self.runs[terminal.name, reason_of(run)] += 1
        if isinstance(terminal, Done):
            self.skipped_chunks += terminal.skipped_chunks or 0
        if run.queued_ms is not None:
            self.waits.observe(run.queued_ms / 1000)
        if run.has_asked:
            who = Who(run.answer.provider, label_of(run, self.models))
            self._measure(run, who, terminal.code if isinstance(terminal, Error) else "")

    def _measure(self, run: Run, who: Who, error: str) -> None:
        usage, first, whole = run.answer.usage, run.ttft_ms, run.latency_ms
        _of(self.durations, (who, error), DURATIONS).observe(whole / 1000)
        if first is not None:
            _of(self.first_tokens, who, FIRST_TOKENS).observe(first / 1000)
            if usage.output_tokens > 1:
                _of(self.next_tokens, who, NEXT_TOKENS).observe((whole - first) / 1000 / (usage.output_tokens - 1))
        for kind, tokens in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            _of(self.usages, (who, kind), USAGES).observe(tokens)

    def watch_loop(self) -> Callable[[], None]:
        """Measure, from now on, how late the running loop is; return what stops it."""
        loop = asyncio.get_running_loop()
        clock: asyncio.TimerHandle

        def look(due: float) -> None:
            nonlocal clock
            self.loop_delays.observe(max(0.0, loop.time() - due))
            due = loop.time() + LOOK_INTERVAL
            clock = loop.call_at(due, look, due)

        look(loop.time())
        return lambda: clock.cancel()


def _of(histograms: dict[Any, Histogram], labels: Any, bounds: Sequence[float]) -> Histogram:
    if labels not in histograms:
        histograms[labels] = Histogram(bounds)
    return histograms[labels]
