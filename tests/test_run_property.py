"""Runs in all weathers: random scripts of upstreams, viewers and clocks against the real app, judged by a model.

A script is a list of steps. A step does one thing, and then the loop takes a few turns or all it wants, so that what
comes next falls into the midst of what was begun. No time passes but in `Pass`, and it jumps: all times are exact. What
the model knows, it knows from the script and from what the app sends: not from a run's own count of its viewers.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, to_builtins
from msgspec.structs import replace
from starlette.applications import Starlette

from streaming.errors import RequestError, UpstreamError
from streaming.events import (
    Cancelled,
    Delta,
    Done,
    Error,
    Event,
    Finish,
    Reasoning,
    Start,
    Terminal,
    Token,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from streaming.log import size_of
from streaming.request import Emit, RunRequest
from streaming.run import Run
from streaming.runs import RUN_OVERHEAD, Runs

from .asgi import Exchange, at_once, make_app, run_ahead, service_of, time_passes

Batch = list[Event | Usage]
NEVER = float("inf")
LONGEST = {"first_token_timeout": 12.0, "idle_timeout": 10.0, "max_linger": 16.0}
LINGER = 5.0  # of POST /runs that asks for none
SEND_TIMEOUT = 10.0
ALL = 60  # turns in which whatever can happen at one time has happened


class Play:
    """What one upstream is told to do, and what it did. It takes `closing` seconds to close where it is cut off."""

    def __init__(self, closing: float) -> None:
        self.closing = closing
        self.feed: asyncio.Queue[Sequence[Event | Usage | Finish] | Exception | None] = asyncio.Queue()
        self.fed: list[Event] = []
        self.said: list[Event] = []
        self.told_to_end = (NEVER, "")
        self.content: list[float] = []
        self.cut: float | None = None
        self.opened = self.closed = 0

    def say(self, batch: Batch) -> None:
        if self.told_to_end[0] == NEVER:
            self.fed += content_of(batch)
            self.feed.put_nowait(batch)

    def end(self, how: str) -> None:
        if self.told_to_end[0] == NEVER:
            if how == "done":
                self.feed.put_nowait([Finish("stop")])
            self.feed.put_nowait(None if how in ("done", "upstream_incomplete") else UpstreamError(how, "So it is."))
            self.told_to_end = (now(), how)


class Puppet:
    """The provider: a request's message names its play."""

    plays: ClassVar[dict[str, Play]] = {}

    def __init__(self, settings: object, upstream: object) -> None:
        pass

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        play = self.plays[str(request.messages[0].content)]
        play.opened += 1
        try:
            while (step := await play.feed.get()) is not None:
                if isinstance(step, Exception):
                    raise step
                if content := content_of(step):
                    play.content.append(now())
                    play.said += content
                emit(step)
        except asyncio.CancelledError:
            play.cut = now()
            await asyncio.sleep(play.closing)
            raise
        finally:
            play.closed += 1


class Watched(Runs):
    """The real thing, and when it began and ended which run."""

    def __init__(self, keep: float, keep_bytes: int) -> None:
        super().__init__(keep, keep_bytes)
        self.begun: dict[str, tuple[float, Run]] = {}
        self.over: dict[Run, float] = {}

    def begin(self, run: Run) -> None:
        fresh = not run.started and run.answer._candidate
        super().begin(run)
        if fresh:
            self.begun[str(fresh.request.messages[0].content)] = now(), run

    def _retire(self, run: Run) -> None:
        assert run not in self.over
        self.over[run] = now()
        super()._retire(run)


def now() -> float:
    return asyncio.get_running_loop().time()


def content_of(batch: Sequence[Event | Usage | Finish]) -> list[Event]:
    events = [event for event in batch if isinstance(event, Event)]
    return [event for event in events if not (isinstance(event, Delta) and event.is_empty)]


# What is heard


def units(text: str) -> list[bytes]:
    """A text's UTF-16 units: halves of a character that come apart are one again where they are joined."""
    raw = text.encode("utf-16-le", "surrogatepass")
    return [raw[place : place + 2] for place in range(0, len(raw), 2)]


def atoms(name: str, data: dict[str, Any]) -> list[Any]:
    """What an event says in smallest parts, so that deltas say the same however they are cut or joined."""
    data = dict(data)
    field = {"token": "token", "reasoning": "reasoning", "tool_call_delta": "args_delta"}.get(name)
    if field is None:
        return [(name, json.dumps(data))]
    text = data.pop(field)
    opening = [(name, data.pop("id"), data.pop("tool"), data["index"])] if "id" in data else []
    return opening + [(name, json.dumps(data), unit) for unit in units(text)]


def atoms_of(events: Sequence[Event]) -> list[Any]:
    return [atom for event in events for atom in atoms(event.name, as_json(event))]


def as_json(event: Event) -> dict[str, Any]:
    fields: dict[str, Any] = to_builtins(event)
    return fields


class Heard(NamedTuple):
    id: str
    name: str
    data: dict[str, Any]


def events_in(body: bytes, *, ndjson: bool) -> Iterator[Heard]:
    """The events that stand whole in the beginning of a body."""
    *whole, _ = body.split(b"\n" if ndjson else b"\n\n")
    for piece in filter(None, whole):
        if ndjson:
            value = json.loads(piece)
            yield Heard(value["id"], value["event"], value["data"])
        elif piece.startswith(b"event: "):
            fields = dict(line.split(": ", 1) for line in piece.decode().split("\n"))
            yield Heard(fields["id"], fields["event"], json.loads(fields["data"]))
        else:
            assert piece == b": ping" or piece.startswith(b"retry: ")


class Connection:
    """One exchange with the app, and from when to when it lasted."""

    def __init__(self, app: Starlette, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> None:
        self.exchange = Exchange(app, method, target, headers=headers, body=body)
        self.since, self.until = now(), NEVER
        self.ndjson = target.startswith("/stream") or "accept" in headers
        self.number = ""  # of the play it follows

    async def begin(self) -> "Connection":
        await self.exchange.__aenter__()
        self.exchange.task.add_done_callback(self._over)
        return self

    def _over(self, task: object) -> None:
        self.until = now()

    @property
    def status(self) -> int | None:
        return self.exchange.status if self.exchange.sent else None

    @property
    def is_viewer(self) -> bool:
        return self.status in (None, 200)


class Reader:
    """Who follows a run over any number of connections, each from the last event that it has whole."""

    def __init__(self, number: str, connection: Connection) -> None:
        self.number = number
        self.heard: list[Heard] = []
        self.connection: Connection | None = connection

    def take(self, run: Run, share: float = 1.0) -> None:
        """Receive a share of what was sent, and nothing after that."""
        assert self.connection
        body = self.connection.exchange.body
        body = body[: round(len(body) * share)]
        if self.connection.status == 200:
            self.heard += events_in(body, ndjson=self.connection.ndjson)
        self.connection = None
        self.check(run)

    def check(self, run: Run) -> None:
        """What it heard is what the log says up to there: no gap, nothing twice, in order."""
        seqs = [int(heard.id.removeprefix(f"{run.id}-")) for heard in self.heard]
        assert seqs == sorted(set(seqs))
        upto = seqs[-1] if seqs else 0
        assert [atom for heard in self.heard for atom in atoms(heard.name, heard.data)] == atoms_of(
            run.log.read(0)[:upto]
        )

    @property
    def place(self) -> int:
        return int(self.heard[-1].id.partition("-")[2]) if self.heard else 0


# The script


class Create(NamedTuple):
    by: str
    linger: float | None
    closing: float


class Keyed(NamedTuple):
    """Ask under a key: with the body that it stands for, or another."""

    by: str
    key: str
    same: bool


class Say(NamedTuple):
    which: int
    batch: Batch


class End(NamedTuple):
    which: int
    how: str


class Stop(NamedTuple):
    which: int


class Arrive(NamedTuple):
    which: int
    ndjson: bool


class Cut(NamedTuple):
    """A reader receives this share of what was sent, and its connection breaks."""

    which: int
    share: float


class Resume(NamedTuple):
    which: int
    how: str


class Hold(NamedTuple):
    """A reader takes nothing more, or goes on taking."""

    which: int
    on: bool


class Wrong(NamedTuple):
    which: int
    what: str


class Ask(NamedTuple):
    which: int


class Drain(NamedTuple):
    pass


class Pass(NamedTuple):
    seconds: float


Op = Create | Keyed | Say | End | Stop | Arrive | Cut | Resume | Hold | Wrong | Ask | Drain | Pass


class Conditions(NamedTuple):
    """Of a script: what the settings are, and how it ends."""

    keep: float = 12
    keep_bytes: int = 2**20
    ping: float = 0
    run_timeout: float = 24
    max_run_bytes: int = 2**20
    ending: str = "wait"


class World:
    """The app, the runs, the readers, and the model of what must come of them."""

    def __init__(self, app: Starlette, conditions: Conditions) -> None:
        self.app = app
        service = service_of(app)
        service.settings = service.intake.settings = replace(
            service.settings,
            linger=LINGER,
            ping_interval=conditions.ping,
            send_timeout=SEND_TIMEOUT,
            run_timeout=conditions.run_timeout,
            max_run_bytes=conditions.max_run_bytes,
            **LONGEST,
        )
        self.limits = service.settings.limits
        self.runs = service.runs = service.intake.runs = Watched(conditions.keep, conditions.keep_bytes)
        self.conditions = conditions
        self.plays = Puppet.plays
        self.plays.clear()
        self.lingers: dict[str, float] = {}
        self.readers: list[Reader] = []
        self.connections: list[Connection] = []
        self.stops: list[tuple[float, str]] = []
        self.drained = NEVER
        self.keys: dict[str, tuple[str, bytes]] = {}
        self.asked: list[tuple[str, float]] = []  # under a key, and when: the linger clock begins anew
        self.answers: list[tuple[int, set[int]]] = []

    # What a step does

    async def do(self, op: Op) -> None:
        match op:
            case Create(by, linger, closing):
                await self._create(by, linger, closing)
            case Keyed(by, key, same):
                await self._ask_under_a_key(by, key, same=same)
            case Say(which, batch):
                for number in self._pick(which):
                    self.plays[number].say(batch)
            case End(which, how):
                for number in self._pick(which):
                    self.plays[number].end(how)
            case Stop(which):
                for number in self._pick(which):
                    self.stops.append((now(), number))
                    await self._connect("DELETE", f"/runs/{self.run(number).id}")
            case Pass(seconds):
                await time_passes(seconds)
            case Drain():
                self.drained = min(self.drained, now())
                self.runs.end()
            case Ask(which):
                for number in self._pick(which):
                    await self._status(number)
            case _:
                await self._do_as_a_viewer(op)

    async def _do_as_a_viewer(self, op: Op) -> None:
        match op:
            case Arrive(which, ndjson):
                for number in self._pick(which):
                    accept = {"accept": "application/x-ndjson"} if ndjson else {}
                    await self._follow(None, number, f"/runs/{self.run(number).id}/events", accept)
            case Cut(which, share):
                for reader in self._pick_reader(which, connected=True):
                    assert reader.connection
                    reader.connection.exchange.disconnect()
                    reader.take(self.run(reader.number), share)
            case Resume(which, how):
                for reader in self._pick_reader(which, connected=False):
                    await self._resume(reader, how)
            case Hold(which, on):
                for reader in self._pick_reader(which, connected=True):
                    assert reader.connection
                    if reader.connection.exchange.sent:  # a server takes the head of an answer at all times
                        (reader.connection.exchange.hold if on else reader.connection.exchange.go_on)()
            case Wrong(which, what):
                for number in self._pick(which):
                    await self._be_refused(number, what)

    def _pick(self, which: int) -> list[str]:
        begun = list(self.runs.begun)
        return [begun[which % len(begun)]] if begun else []

    def _pick_reader(self, which: int, *, connected: bool) -> list[Reader]:
        fitting = self._following(connected=connected)
        return [fitting[which % len(fitting)]] if fitting else []

    def _following(self, *, connected: bool) -> list[Reader]:
        """The readers of runs that were begun, with a connection or without."""
        return [
            reader
            for reader in self.readers
            if reader.number in self.runs.begun and (reader.connection is not None) == connected
        ]

    def run(self, number: str) -> Run:
        return self.runs.begun[number][1]

    async def _connect(self, method: str, target: str, number: str = "", **more: Any) -> Connection:
        connection = await Connection(self.app, method, target, **{"headers": {}, **more}).begin()
        connection.number = number
        self.connections.append(connection)
        return connection

    async def _answered(self, connection: Connection) -> Connection:
        await settle()
        assert connection.exchange.task.done()
        return connection

    async def _create(self, by: str, linger: float | None, closing: float) -> None:
        if by == "/runs" and linger == 0:
            linger = None
        number = str(len(self.plays))
        self.plays[number] = Play(closing)
        self.lingers[number] = (LINGER if by == "/runs" else 0.0) if linger is None else linger
        if by.startswith("GET "):
            asked = f"{by[4:]}?message={number}" + ("" if linger is None else f"&linger={linger}")
            connection = await self._connect("GET", asked, number)
        else:
            connection = await self._post(by, number, body_of(number, linger))
        if by != "/runs":
            self.readers.append(Reader(number, connection))

    async def _post(self, path: str, number: str, body: bytes, **headers: str) -> Connection:
        headers["content-type"] = "application/json"
        return await self._connect("POST", path, "" if path == "/runs" else number, headers=headers, body=body)

    async def _ask_under_a_key(self, by: str, key: str, *, same: bool) -> None:
        await settle()
        stands_for = self.keys.get(key)
        if stands_for and self.run(stands_for[0]) not in self.findable():
            stands_for = None
        if stands_for and same:
            number, body = stands_for
        else:
            number = str(len(self.plays))
            self.plays[number], body = Play(0), body_of(number, 2.0)
            self.lingers[number] = 2.0
        connection = await self._post(by, number, body, **{"idempotency-key": key})
        await settle()
        if stands_for and not same:
            assert (connection.status, json.loads(connection.exchange.body)["code"]) == (409, "conflict")
        elif not stands_for and self.drained < NEVER:
            assert (connection.status, json.loads(connection.exchange.body)["code"]) == (503, "shutting_down")
        else:
            assert connection.status == (201 if by == "/runs" else 200)
            where = connection.exchange.headers["location" if by == "/runs" else "content-location"]
            assert where == f"/runs/{self.run(number).id}"
            self.keys[key] = (number, body)
            self.asked.append((number, now()))
            if by != "/runs":
                self.readers.append(Reader(number, connection))

    async def _follow(
        self, reader: Reader | None, number: str, target: str, headers: dict[str, str], seen: int = 0
    ) -> None:
        """Connect; by the time it is answered, a run may have been forgotten."""
        before = self._answer(number, seen)
        connection = await self._connect("GET", target, number, headers=headers)
        if reader:
            reader.connection = connection
        else:
            self.readers.append(Reader(number, connection))

        def answered(task: object) -> None:
            if connection.status:
                self.answers.append((connection.status, {before, self._answer(number, seen)}))

        connection.exchange.task.add_done_callback(answered)

    def _answer(self, number: str, seen: int) -> int:
        run = self.run(number)
        if run not in self.findable():
            return 404
        return 204 if run.terminal and seen == len(run.log) else 200

    async def _resume(self, reader: Reader, how: str) -> None:
        seen = f"{self.run(reader.number).id}-{reader.place}"
        by, _, path = how.partition(" ")
        path = path.replace("<id>", self.run(reader.number).id)
        headers = {"last-event-id": seen} if by in ("header", "both") else {}
        older = f"{self.run(reader.number).id}-0" if by == "both" else seen
        target = path if by == "header" else f"{path}?{'lastEventId' if by == 'both' else 'last_event_id'}={older}"
        await self._follow(reader, reader.number, target, headers, reader.place)

    async def _be_refused(self, number: str, what: str) -> None:
        await settle()
        run, other = self.run(number), next((self.run(one) for one in self.runs.begun if one != number), None)
        here = 400 if run in self.findable() else 404
        said, status = {
            "future": (f"{run.id}-{len(run.log) + 1}", here),
            "other": (f"{other.id if other else '0' * 32}-1", here),
            "malformed": (f"{run.id}-01", 400),
        }[what]
        connection = await self._connect("GET", f"/runs/{run.id}/events", headers={"last-event-id": said})
        await self._answered(connection)
        assert connection.status == status
        assert connection.exchange.headers["content-type"] == "application/problem+json"

    async def _status(self, number: str) -> None:
        await settle()
        run = self.run(number)
        connection = await self._answered(await self._connect("GET", f"/runs/{run.id}"))
        assert connection.status == (200 if run in self.findable() else 404)
        if connection.status == 200:
            told, events = json.loads(connection.exchange.body), run.log.read(0)
            text = "".join(event.text for event in events if isinstance(event, Token))
            assert units(told["text"]) == units(text)
            assert (told["viewers"], told["last_event_id"]) == (self.viewers(number), f"{run.id}-{len(events)}")
            assert told["state"] == (run.terminal.name if run.terminal else "running")
            assert told["ending"] == (as_json(run.terminal) if run.terminal else None)

    # What must hold

    def viewers(self, number: str) -> int:
        return sum(one.number == number and one.until == NEVER and one.status == 200 for one in self.connections)

    def findable(self) -> list[Run]:
        """The runs that go on, and those that are kept: for so long, the youngest that fit."""
        kept: list[tuple[float, Run]] = []
        for run, ended in self.runs.over.items():
            if weight(run) > self.conditions.keep_bytes:
                continue
            kept = [*(one for one in kept if one[0] > ended), (ended + self.conditions.keep, run)]
            while sum(weight(run) for _, run in kept) > self.conditions.keep_bytes:
                kept.pop(0)
        going_on = [run for _, run in self.runs.begun.values() if run not in self.runs.over]
        return [run for until, run in kept if until > now()] + going_on

    def check(self) -> None:
        """What holds whenever all has happened that can."""
        findable = self.findable()
        assert [answer for answer in self.answers if answer[0] not in answer[1]] == []
        found = [run for _, run in self.runs.begun.values() if self._finds(run)]
        assert set(found) == set(findable)
        assert sum(weight(run) for run in found if run in self.runs.over) <= self.conditions.keep_bytes
        for number, (_, run) in self.runs.begun.items():
            assert run.viewers == self.viewers(number)
            due, reasons = self.expected(number)
            assert (run.terminal is not None) == (run in self.runs.over)
            if run.terminal:
                self._check_ended(number, run, due, reasons)
            else:
                play = self.plays[number]
                assert now() < (due if play.cut is None else play.cut + play.closing)
                assert run.log.read(1) == play.said
                assert play.said == play.fed or play.cut is not None
        for reader in self.readers:
            if reader.connection and reader.number in self.runs.begun:
                self._check_reader(reader, reader.connection)

    def _check_reader(self, reader: Reader, connection: Connection) -> None:
        """What it has been sent is in order, and a body that was not cut off tells all."""
        run, copy = self.run(reader.number), Reader(reader.number, connection)
        copy.heard = list(reader.heard)
        copy.take(run)
        if connection.status == 200 and connection.exchange.is_whole:
            assert run.terminal
            assert copy.place == len(run.log)

    def _finds(self, run: Run) -> bool:
        with pytest.raises(RequestError) as of_others:
            at_once(self.runs.find(run.id, "somebody else"))
        try:
            return at_once(self.runs.find(run.id)) is run
        except RequestError as unknown:
            told = (unknown.code, unknown.text)
        assert told == (of_others.value.code, of_others.value.text)
        return False

    def _check_ended(self, number: str, run: Run, due: float, reasons: set[str]) -> None:
        play, (first, *middle, last) = self.plays[number], run.log.read(0)
        assert isinstance(first, Start)
        assert isinstance(last, Terminal)
        assert not any(isinstance(event, Start | Terminal) for event in middle)
        assert middle == play.said == play.fed[: len(middle)]
        assert play.said == play.fed or not isinstance(last, Done)
        assert play.opened == play.closed <= 1
        ended = self.runs.over[run] if play.cut is None else play.cut
        assert (ended, reason_of(last)) in [(due, reason) for reason in reasons] + self._perhaps(number, due)

    def expected(self, number: str) -> tuple[float, set[str]]:
        """When a run must end, and why: by the first of all there is to end it, or any of those that come at once."""
        play, (began, run), linger = self.plays[number], self.runs.begun[number], self.lingers[number]
        patience = [
            (began + self.limits.first_token_timeout, "first_token_timeout"),
            *[(at + self.limits.idle_timeout, "idle_timeout") for at in play.content],
        ]
        causes = [
            (began + self.limits.run_timeout, "run_timeout"),
            next(over for over, spoke in zip(patience, [*play.content, NEVER], strict=True) if spoke > over[0]),
            (self.drained, "draining"),
            *[(at, "requested") for at, stopped in self.stops if stopped == number],
            play.told_to_end,
            *[(since + linger, "disconnected") for since, until in self._gaps(number) if until - since > linger],
        ]
        content = [event for event in run.log.read(0) if not isinstance(event, Terminal)]
        if sum(map(size_of, content)) > self.limits.max_run_bytes:
            causes.append((play.content[-1], "output_limit"))
        first = min(at for at, _ in causes)
        return first, {reason for at, reason in causes if at == first}

    def _perhaps(self, number: str, due: float) -> list[tuple[float, str]]:
        """Where somebody comes at the very moment at which the linger clock runs out, either may be first."""
        linger = self.lingers[number]
        ends = [since + linger for since, until in self._gaps(number) if until - since == linger]
        return [(end, "disconnected") for end in ends if end <= due]

    def _gaps(self, number: str) -> Iterator[tuple[float, float]]:
        """From when to when nobody viewed a run."""
        alone = self.runs.begun[number][0]
        viewers = [(one.since, one.until) for one in self.connections if one.number == number and one.is_viewer]
        moments = [(at, at) for asked, at in self.asked if asked == number]
        for place, (since, until) in enumerate(sorted(viewers + moments)):
            if since > alone or (place and since == alone):
                yield alone, since
            alone = max(alone, until)
        yield alone, NEVER

    # How it ends

    async def finish(self) -> None:
        """Bring every run to its end and every reader to the end of its run, then forget them all."""
        for connection in self.connections:
            connection.exchange.go_on()
        if self.conditions.ending == "close":
            self.drained = min(self.drained, now())
            await self.runs.close()
        else:
            if self.conditions.ending == "leave":
                for _ in self._following(connected=True):
                    await self.do(Cut(0, 1.0))
            await self._all_over()
        await settle()
        self.check()
        await self._read_on()
        if self.conditions.ending != "close":
            await time_passes(self.conditions.keep)
            await settle()
            assert not [run for _, run in self.runs.begun.values() if self._finds(run)]

    async def _all_over(self) -> None:
        while len(self.runs):
            await time_passes(0.5)
            await settle()

    async def _read_on(self) -> None:
        """Let every reader of a run that is still there come back for what it has not got."""
        for reader in self._following(connected=True):
            reader.take(self.run(reader.number))
        for reader in self._following(connected=False):
            run = self.run(reader.number)
            if run in self.findable():
                status = 204 if reader.place == len(run.log) else 200
                await self._resume(reader, "header /chat/stream")
                assert reader.connection
                assert (await self._answered(reader.connection)).status == status
                reader.take(run)
                assert reader.place == len(run.log)


def reason_of(terminal: Terminal) -> str:
    """Return what a run ended by: done, an error's code, or who stopped it."""
    if isinstance(terminal, Error):
        return terminal.code
    return terminal.reason if isinstance(terminal, Cancelled) else "done"


def weight(run: Run) -> int:
    return sum(map(size_of, run.log.read(0))) + RUN_OVERHEAD


def body_of(number: str, linger: float | None) -> bytes:
    return json.dumps({"message": number} | ({} if linger is None else {"linger": linger})).encode()


async def settle() -> None:
    for _ in range(ALL):
        await asyncio.sleep(0)


async def pending() -> list[object]:
    """Tasks and timers that are left; sse-starlette's watcher, one a loop, is nobody's of ours."""
    for task in asyncio.all_tasks():
        if "_shutdown_watcher" in repr(task.get_coro()):
            task.cancel()
            await asyncio.wait((task,))
    loop: Any = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return [*tasks, *(timer for timer in loop._scheduled if not timer.cancelled())]


async def play_out(conditions: Conditions, script: list[tuple[Op, int]]) -> World:
    providers = json.dumps({"puppet": {"use": f"{__name__}:Puppet", "models": ["m"]}})
    settings = {"SIDESTREAM_MODEL": "puppet/m", "SIDESTREAM_MAX_RETRIES": "0"}  # the model knows of none
    world = World(await make_app(SIDESTREAM_PROVIDERS=providers, **settings), conditions)
    await time_passes(1)
    for op, turns in script:
        await world.do(op)
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns == ALL:
            world.check()
    await settle()
    world.check()
    await world.finish()
    assert await pending() == []
    return world


PIECES = ["a", "b", " ", "\n", "\r", "\n\ndata: x\n\n", "é", "\x85", "\u2028", '"', "👍", "\ud83d", "\udc4d", ""]
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
nodes: Any = st.sampled_from([UNSET, UNSET, "agent"])
deltas = st.one_of(
    st.builds(Token, texts, nodes),
    st.builds(Reasoning, texts, nodes),
    st.builds(ToolCallDelta, st.integers(0, 1), texts),
    st.builds(ToolCallDelta, st.integers(0, 1), texts, st.sampled_from(["c1", "c2"]), st.just("f")),
)
others = st.one_of(
    st.builds(ToolCall, st.just("c1"), st.just("f"), st.sampled_from([{"a": ["é\u2028"]}, "not JSON"])),
    st.builds(ToolResult, st.just("c1"), st.just("f"), st.just({"b": None})),
    st.builds(Usage, st.integers(0, 5), st.integers(0, 5)),
)
batches = st.lists(st.one_of(deltas, deltas, others), min_size=1, max_size=6)
which = st.integers(0, 3)
ways = st.sampled_from(["/runs", "/runs", "/chat/stream", "GET /chat/stream", "GET /stream", "GET /puppet/stream"])
resumes = [
    "header /runs/<id>/events",
    "query /runs/<id>/events",
    "both /chat/stream",
    "query /stream",
    "header /puppet/stream",
]
says = st.builds(Say, which, batches)
arrivals = st.builds(Arrive, which, st.booleans())
cuts = st.builds(Cut, which, st.floats(0, 1))
returns = st.builds(Resume, which, st.sampled_from(resumes))
passes = st.builds(Pass, st.sampled_from([0.25, 1.0, 1.75, 2.0, 4.75, 5.0, 8.0, 12.0]))
creations = st.builds(Create, ways, st.sampled_from([None, 2.0, 5.0, 16.0, 0.0]), st.sampled_from([0.0, 0.0, 2.0]))
keyed = st.builds(
    Keyed, st.sampled_from(["/runs", "/chat/stream"]), st.sampled_from("kl"), st.sampled_from([True, True, False])
)
often = st.one_of(says, says, says, arrivals, cuts, returns, passes)
ops = st.one_of(
    often,
    often,
    often,
    often,
    often,
    often,
    creations,
    keyed,
    st.builds(End, which, st.sampled_from(["done", "done", "upstream_incomplete", "upstream_unavailable"])),
    st.builds(Stop, which),
    st.builds(Hold, which, st.booleans()),
    st.builds(Wrong, which, st.sampled_from(["future", "other", "malformed"])),
    st.builds(Ask, which),
    st.sampled_from([Pass(0.25)] * 5 + [Drain()]),
)
turns = st.sampled_from([ALL, ALL, 0, 1, 2, 3, 5, 8])
scripts = st.builds(
    lambda first, rest: [first, *rest],
    st.tuples(creations, turns),
    st.lists(st.tuples(ops, turns), min_size=8, max_size=50),
)
conditions = st.builds(
    Conditions,
    st.sampled_from([0.0, 12.0, 12.0]),
    st.sampled_from([2**20, 2**20, 8000, 3000, 0]),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([24.0, 13.0, 6.0]),
    st.sampled_from([2**20, 2**20, 700]),
    st.sampled_from(["wait", "leave", "close"]),
)


REFUSED = [(Drain(), ALL), (Create("/chat/stream", 2.0, 0.0), ALL)]
RETURNS_IN_TIME = [
    (Create("GET /stream", 5.0, 0.0), ALL),
    (Say(0, [Token("a"), Token("b")]), ALL),
    (Cut(0, 0.5), ALL),
    (Pass(4.75), 0),
    (Resume(0, "query /stream"), 0),
    (Pass(2.0), ALL),
    (End(0, "done"), ALL),
]
COMES_AS_IT_ENDS = [
    (Create("/runs", None, 2.0), ALL),
    (Say(0, [Token("a")]), 0),
    (Stop(0), 3),
    (Arrive(0, True), 0),
    (Pass(1.0), ALL),
    (Arrive(0, False), 0),
    (Cut(0, 1.0), ALL),
]


@settings(max_examples=300, deadline=None, derandomize=True, print_blob=True)
@example(Conditions(ending="close"), REFUSED)
@example(Conditions(), RETURNS_IN_TIME)
@example(Conditions(keep=0), COMES_AS_IT_ENDS)
@given(conditions, scripts)
def test_runs_and_viewers_do_as_the_model_says_whatever_comes_between(
    conditions: Conditions, script: list[tuple[Op, int]]
) -> None:
    world = run_ahead(play_out(conditions, script))
    for run in world.runs.over:
        event(reason_of(run.terminal) if run.terminal else "")
