"""What a client has seen of a run, and whether that may be so. Pure: no I/O, no clock.

A history takes every event as it comes, over all connections of a client, and complains at once of what no stream may
do. `agrees` holds it against all that the run has said, and `is_right` that against what its upstreams were playing.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from answers import KEY
from chaos import FAULTS, Attempt

TERMINAL = {"done", "error", "cancelled"}
TIMEOUTS = {"first_token_timeout", "idle_timeout"}  # which a busy machine may cause as well


class Event(NamedTuple):
    name: str
    id: str
    data: dict[str, Any]


class History:
    """One client's view of one run. `answers` are the texts told, of which each `reset` makes the last one void."""

    def __init__(self) -> None:
        self.run = ""
        self.last = 0
        self.answers = [""]
        self.starts: list[tuple[str, str]] = []
        self.ending: Event | None = None
        self.complaints: list[str] = []
        self._resetting = False

    @property
    def text(self) -> str:
        return self.answers[-1]

    @property
    def last_id(self) -> str:
        return f"{self.run}-{self.last}"

    def take(self, event: Event) -> None:
        run, _, number = event.id.rpartition("-")
        if not self.run:
            self.run = run
            if event.name != "start" or number != "1":
                self._complain(f"begins with {event.name} {event.id}")
        if run != self.run:
            self._complain(f"{event.name} of another run: {event.id}")
        if int(number) <= self.last:
            self._complain(f"{event.name} {number} behind {self.last}")
        if self.ending:
            self._complain(f"{event.name} {number} behind the terminal {self.ending.name}")
        if self._resetting and event.name != "start":
            self._complain(f"{event.name} {number} behind a reset, where a start is due")
        if KEY in str(event.data):
            self._complain(f"{event.name} {number} holds a key")
        self.last = int(number)
        self._fold(event)

    def _fold(self, event: Event) -> None:
        if event.name == "token":
            self.answers[-1] += event.data["token"]
        elif event.name == "start":
            if self.text:
                self._complain(f"start {event.id} behind content, without a reset")
            if event.data["run"] != self.run:
                self._complain(f"start {event.id} names {event.data['run']}")
            self.starts.append((event.data["provider"], event.data["model"]))
        elif event.name == "reset":
            if not self.text:
                self._complain(f"reset {event.id} of nothing")
            if event.data["reason"] not in _CODES:
                self._complain(f"reset {event.id} for {event.data['reason']}")
            self.answers.append("")
        elif event.name in TERMINAL:
            self.ending = event
            if event.data.get("done") is not True or "usage" not in event.data:
                self._complain(f"{event.name} {event.id} lacks done or usage: {event.data}")
        else:
            self._complain(f"{event.name} {event.id}, which no model here says")
        self._resetting = event.name == "reset"

    def _complain(self, what: str) -> None:
        self.complaints.append(what)


_CODES = {code for fault in FAULTS.values() for code in fault.codes.split()}


def agrees(seen: History, whole: History) -> Iterator[str]:
    """Complain where what a client has seen is not how the run begins; with its ending it is to be all of it."""
    if not seen.run:
        return
    where = f"a client has seen up to {seen.last_id}"
    count = len(seen.answers)
    if seen.answers[:-1] != whole.answers[: count - 1]:
        yield f"{where}; what was reset is not what the run has said: {_told(seen)}, not {_told(whole)}"
    elif len(whole.answers) < count or not whole.answers[count - 1].startswith(seen.text):
        yield f"{where}; its text is not how the run's begins: {_told(seen)}, not {_told(whole)}"
    if seen.starts != whole.starts[: len(seen.starts)]:
        yield f"{where}; its starts are not the run's: {seen.starts}, not {whole.starts}"
    if seen.ending:
        if seen.ending != whole.ending:
            yield f"{where}; its end {seen.ending} is not the run's: {whole.ending}"
        if seen.answers != whole.answers or seen.starts != whole.starts:
            yield f"{where} and the end; it lacks something: {_told(seen)}, not {_told(whole)}"


def is_right(
    whole: History, status: dict[str, Any], attempts: Sequence[Attempt], asked: Collection[tuple[str, str]]
) -> Iterator[str]:
    """Complain where all that a run has said is not what its upstreams played, or is not how GET tells it."""
    if whole.ending is None:
        yield f"no terminal event; the last is {whole.last_id}"
        return
    name, data = whole.ending.name, whole.ending.data
    told = (status["state"], status["text"], status["last_event_id"], status["resets"], status["ending"])
    seen = (name, whole.text, whole.last_id, len(whole.answers) - 1, data)
    if told != seen:
        yield f"its status differs from its events: {_short(told)}, not {_short(seen)}"
    if foreign := [start for start in whole.starts if start not in asked]:
        yield f"start names {foreign}, who was not asked for"
    if len(attempts) > 1 + status["retries"] + status["failovers"]:
        yield f"{len(attempts)} requests, but {status['retries']} retries and {status['failovers']} failovers"
    for answer in whole.answers:
        if answer and not any(one.text.startswith(answer) for one in attempts):
            yield f"no upstream has said {_short(answer)}; they said {[_short(one.text) for one in attempts]}"
    who = status["provider"], status["model"]
    if whole.text and not any((one.provider, one.model) == who and one.text.startswith(whole.text) for one in attempts):
        yield f"its status names {who}, who has not said {_short(whole.text)}"
    if name == "done":
        yield from _whole(whole, status, attempts)
    elif name == "error":
        yield from _failed(status, attempts)


def _whole(whole: History, status: dict[str, Any], attempts: Sequence[Attempt]) -> Iterator[str]:
    assert whole.ending
    data = whole.ending.data
    found = [one for one in attempts if one.whole and one.text == whole.text and one.model == data["model"]]
    if not found:
        played = [(one.model, one.fault, one.whole, _short(one.text)) for one in attempts]
        yield f"done by {data['model']} with {_short(whole.text)}, which is no whole answer of its: {played}"
    elif data.get("skipped_chunks", 0) not in {one.skipped for one in found}:
        yield f"done tells {data.get('skipped_chunks', 0)} skipped chunks, of {[one.skipped for one in found]}"
    elif data["usage"]["output_tokens"] not in {one.words for one in found} or "estimated" in data["usage"]:
        yield f"done tells the usage {data['usage']}, of {[one.words for one in found]}"
    elif not status["failovers"] and data["tokens"] not in {one.tokens for one in found}:
        yield f"done tells {data['tokens']} tokens, of {[one.tokens for one in found]}"


def _failed(status: dict[str, Any], attempts: Sequence[Attempt]) -> Iterator[str]:
    code = status["ending"]["code"]
    if code in TIMEOUTS:
        return
    if code not in _CODES:
        yield f"error {code}"
    elif len(attempts) == 1 + status["retries"] + status["failovers"]:
        last = attempts[-1].fault
        if code not in (FAULTS[last].codes if last in FAULTS else "").split():
            yield f"error {code}, though the last attempt's fault was: {last}"


def _short(told: object) -> str:
    text = str(told)
    return repr(text if len(text) < 300 else f"{text[:140]} ... {text[-140:]}")


def _told(history: History) -> str:
    return _short(" RESET ".join(history.answers))
