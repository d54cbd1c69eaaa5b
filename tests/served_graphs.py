"""A service whose graphs are those of tests/graphs.py, their model the scripted upstream; and gates to hold nodes at.

(PYTEST_DONT_REWRITE: as for tests.upstream.)
"""

import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .client import Client, Event, get, post
from .conftest import Service, Start, eventually
from .recorded import OPENAI, Told
from .resource import is_one_run, rest_of, status_of
from .upstream import END, OPENAI_KEY, Head, Step, Upstream

# `speaking` is the first, so it is the default of /langgraph/stream and /stream.
NAMES = (
    *("speaking", "speaking_blocking", "speaking_twice", "speaking_both", "thinking", "telling", "within", "agent"),
    *("asking", "asking_within", "asking_both", "asking_nothing"),
    *("failing", "failing_first", "failing_within", "failing_both", "failing_blocking"),
    *("leaving", "leaving_async", "breaking", "grumbling", "resisting"),
    *("parallel", "writing", "writing_nothings", "writing_much", "writing_much_blocking", "configured", "greeting"),
    *("failing_on_the_way", "failing_kept", "strict_later"),
    *("endless", "strict", "strangest", "remembering", "keeping", "keeping_within"),
    *("keeping_threads", "keeping_blocking", "keeping_both"),
    *("sleeping", "sleeping_wrongly", "sleeping_blocking"),
)
TEXT = {"token": "token", "reasoning": "reasoning", "tool_call_delta": "args_delta"}
RANDOM = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\b[0-9a-f]{32}\b|20[0-9-]{8}T[0-9:.]{15}\+00:00")


def start_graphs(start_service: Start, upstream: Upstream, *names: str, **options: Any) -> Service:
    """Start a service with these graphs."""
    targets = ",".join(f"{name}=tests.graphs:{name}" for name in names)
    openai = {"OPENAI_API_KEY": OPENAI_KEY, "OPENAI_BASE_URL": f"{upstream.url}/v1"}
    return start_service(SIDESTREAM_GRAPHS=targets, **openai, **options)


@pytest.fixture(scope="session")
def graphs(start_lasting: Start, upstream_server: Upstream) -> Service:
    """A service with all the graphs that need nothing else."""
    return start_graphs(start_lasting, upstream_server, *NAMES)


def answer(*parts: str) -> tuple[bytes, ...]:
    """What the upstream streams to say so: 14 tokens in, of which 6 were cached, and 8 out."""
    return (*OPENAI.opening, *map(OPENAI.token, parts), *OPENAI.ending)


def held(*steps: Step) -> tuple[Step, ...]:
    """A script that says a word, then does this, and then ends its answer well."""
    return (Head(), *OPENAI.opening, OPENAI.token("Here"), *steps, OPENAI.token(" I am."), *OPENAI.ending, END)


USAGE = {"input_tokens": 14, "output_tokens": 8, "cached_tokens": 6}
TWICE = {name: 2 * count for name, count in USAGE.items()}


def told(client: Client) -> Told:
    """Read a run to its end and return its events, adjacent deltas of one kind and node joined.

    Left out is what differs from run to run; of ids and times there stays a `*`. Messages are shortened to
    `<type>: <content>`.
    """
    events = rest_of(client)
    assert is_one_run(events), events
    return joined(events)


def joined(events: list[Event]) -> Told:
    out: Told = []
    for event in events:
        data = known(event)
        text = TEXT.get(event.name)
        if text and out and out[-1][0] == event.name and "id" not in data:
            before = {name: value for name, value in out[-1][1].items() if name not in (text, "id", "tool")}
            if before == {name: value for name, value in data.items() if name != text}:
                out[-1][1][text] += data[text]
                continue
        out.append((event.name, data))
    return out


def known(event: Event) -> Any:
    data = json.loads(RANDOM.sub("*", json.dumps(event.data)))
    if event.name == "start":
        del data["run"], data["created"]
    if event.name == "done":
        del data["ttft_ms"], data["latency_ms"]
    return shortened(data)


def shortened(value: Any) -> Any:
    if isinstance(value, dict):
        if "additional_kwargs" in value:
            return f"{value['type']}: {value['content']}"
        return {name: shortened(item) for name, item in value.items()}
    return [shortened(item) for item in value] if isinstance(value, list) else value


def start(graph: str, **other: Any) -> tuple[str, Any]:
    return "start", {"provider": "langgraph", "model": graph, **other}


def done(graph: str, tokens: int, usage: dict[str, Any], finish_reason: str = "stop") -> tuple[str, Any]:
    whole = {"done": True, "finish_reason": finish_reason, "model": graph}
    return "done", {**whole, "usage": usage, "tokens": tokens}


def counted(read: int, written: int) -> dict[str, Any]:
    """The usage of a graph without a model."""
    return {"input_tokens": read, "output_tokens": written, "estimated": True}


def updates(*changes: Any, ns: list[str] | None = None) -> Told:
    return [("updates", {"ns": ns or [], "data": change}) for change in changes]


def of(name: str, events: Told) -> list[Any]:
    """The data of all events of this name; of a graph's own, without the namespace."""
    return [data["data"] if "ns" in data and "data" in data else data for known, data in events if known == name]


def been(events: Told) -> list[str]:
    """The nodes that have ended, in their order, `<subgraph>/<node>` where they are in one."""
    changes = [
        ([part.partition(":")[0] for part in data["ns"]], node)
        for name, data in events
        if name == "updates"
        for node in data["data"]
        if node != "__metadata__"  # which says that it has ended before: nothing more than its change is made
    ]
    return ["/".join([*path, node]) for path, node in changes]


def state_of(service: Service, graph: str, thread: str) -> Any:
    """The state of a thread that has nothing left to do."""
    with get(service.port, f"/{graph}/stream", input="null", thread_id=thread, stream_mode="values") as client:
        return of("values", told(client))


def go_on(service: Service, graph: str, thread: str, **body: object) -> Client:
    """Go on with a thread from its last checkpoint."""
    modes = body.pop("stream_mode", "updates")
    return post(service.port, f"/{graph}/stream", input=None, thread_id=thread, stream_mode=modes, **body)


def is_waiting(service: Service, client: Client) -> bool:
    """Whether nothing has happened in a run but that it was begun."""
    status = status_of(service.port, client.head()[1]["content-location"])
    return bool((status["state"], status["last_event_id"]) == ("running", f"{status['id']}-1"))


class Gate:
    """Where a node waits. Use it in a `with`; leaving it opens it."""

    def __init__(self, folder: Path, name: str = "gate") -> None:
        self._path = folder / name
        self._held: int | None = None
        os.mkfifo(self._path)

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._held is not None or self.is_awaited:
            self.open()

    @property
    def config(self) -> dict[str, Any]:
        """The `config` of a request whose node shall wait here."""
        return {"configurable": {"gate": str(self._path)}}

    @property
    def is_awaited(self) -> bool:
        """Whether a node has come."""
        if self._held is None:
            try:
                self._held = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as exc:
                if exc.errno != errno.ENXIO:
                    raise
        return self._held is not None

    def wait(self) -> None:
        """Return once a node has come; it stays."""
        assert eventually(lambda: self.is_awaited)

    def open(self) -> None:
        """Let the node go on."""
        assert self._held is not None
        os.close(self._held)
        self._held = None


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


@pytest.fixture
def second_gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path, "second") as gate:
        yield gate
