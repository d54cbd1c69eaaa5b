"""What is counted, in plain numbers: nothing here is on a token's way, and nobody has to read it."""

from collections import Counter

from .errors import Fault
from .events import Done
from .run import Run


class Metrics:
    """The counters of this process. How they are told is another's business (wires/operations.py)."""

    def __init__(self) -> None:
        self.retries = 0
        self.failovers = 0
        self.resets = 0
        self.skipped_chunks = 0
        self.refusals: Counter[tuple[str, str]] = Counter()  # by code and by the setting that was the limit, if any

    def refused(self, fault: Fault) -> None:
        """Count a request that was refused before its first byte, or a frame of a socket."""
        self.refusals[fault.code, fault.limit or ""] += 1

    def run_ended(self, run: Run) -> None:
        self.retries += run.answer.retries
        self.failovers += run.answer.failovers
        self.resets += run.answer.resets
        if isinstance(run.terminal, Done):
            self.skipped_chunks += run.terminal.skipped_chunks or 0
