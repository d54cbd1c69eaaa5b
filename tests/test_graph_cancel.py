"""Whatever ends a graph's run ends the model call in its nodes; later nodes never run, and its thread can go on.

The proof is the upstream's own record of its client's going, and what the thread does when it goes on.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from websockets.sync.client import connect

from .client import Client, get, post
from .conftest import Service, Start, eventually
from .graphs import WORDS
from .recorded import OPENAI
from .resource import create, rest_of, status_of, stop
from .served_graphs import (
    USAGE,
    Gate,
    answer,
    been,
    done,
    go_on,
    held,
    is_waiting,
    start_graphs,
    state_of,
    told,
)
from .test_websocket import rest
from .upstream import HOLD, PAUSE, Head, Repeat, Step, Upstream

pytest_plugins = ["tests.upstream", "tests.served_graphs"]

# The graphs, and what is left for a thread to do after its model call was ended.
LEFT = {
    "keeping": ["speak", "note_async"],
    "keeping_within": ["inner/speak", "inner/note", "inner", "note_async"],
}
WHOLE = {
    "keeping": ["note", "speak", "note_async"],
    "keeping_within": ["note", *["note", "note_async", "speak", "note"], "note_async"],
}
PHASES: dict[str, tuple[Step, ...]] = {
    "before the headers": (HOLD,),
    "before a token": (Head(), *OPENAI.opening, HOLD),
    "in mid-stream": (Head(), *OPENAI.opening, Repeat(OPENAI.token(" and there"), every=0.001)),
    "silent after a token": (Head(), *OPENAI.opening, OPENAI.token("Here"), HOLD),
}
each_graph = pytest.mark.parametrize("graph", LEFT)
Way = Callable[[Service, str, str], AbstractContextManager[None]]


def ending(client: Client) -> tuple[str, str]:
    """Read to the end; return the last event's name and its reason or code."""
    name, data = told(client)[-1]
    return name, data.get("reason") or data.get("code") or data.get("finish_reason")


# Each begins a run, and ends it when it is left.


@contextmanager
def hanging_up(service: Service, graph: str, thread: str) -> Iterator[None]:
    with get(service.port, f"/{graph}/stream", message="Hi", thread_id=thread) as client:
        client.until("start")
        yield


@contextmanager
def resetting(service: Service, graph: str, thread: str) -> Iterator[None]:
    with post(service.port, f"/{graph}/stream", message="Hi", thread_id=thread) as client:
        client.until("start")
        yield
        client.hang_up(reset=True)


@contextmanager
def deleting(service: Service, graph: str, thread: str) -> Iterator[None]:
    with post(service.port, f"/{graph}/stream", message="Hi", thread_id=thread) as client:
        client.until("start")
        yield
        stop(service.port, client.head()[1]["content-location"])
        assert ending(client) == ("cancelled", "requested")


@contextmanager
def deleting_what_nobody_views(service: Service, graph: str, thread: str) -> Iterator[None]:
    created = create(service.port, message="Hi", thread_id=thread, model=f"langgraph/{graph}")
    yield
    stop(service.port, created["status_url"])
    assert status_of(service.port, created["status_url"])["ending"]["reason"] == "requested"


@contextmanager
def stopping_by_socket(service: Service, graph: str, thread: str) -> Iterator[None]:
    address = f"ws://127.0.0.1:{service.port}/ws/chat?model=langgraph/{graph}&thread_id={quote(thread)}"
    with connect(address, proxy=None, max_queue=None) as socket:
        socket.send("Hi")
        yield
        socket.send('{"type":"stop"}')
        name, data = rest(socket)[-1]
    assert (name, data["reason"]) == ("cancelled", "requested")


@contextmanager
def closing_the_socket(service: Service, graph: str, thread: str) -> Iterator[None]:
    address = f"ws://127.0.0.1:{service.port}/ws/chat?model=langgraph/{graph}"
    with connect(address, proxy=None, max_queue=None) as socket:
        socket.send(json.dumps({"message": "Hi", "thread_id": thread}))
        yield


WAYS: list[Way] = [
    hanging_up,
    resetting,
    deleting,
    deleting_what_nobody_views,
    stopping_by_socket,
    closing_the_socket,
]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@each_graph
def test_who_ends_a_run_ends_its_model_call_and_the_thread_goes_on_from_there(
    graphs: Service, upstream: Upstream, graph: str, way: Way, phase: str
) -> None:
    thread = f"{way.__name__}-{phase}"
    upstream.play(*PHASES[phase])
    with way(graphs, graph, thread):
        exchange = upstream.request()
        exchange.wait_for_pause()
    assert exchange.wait().ended == "aborted"
    goes_on(graphs, upstream, graph, thread)


def goes_on(service: Service, upstream: Upstream, graph: str, thread: str) -> None:
    """The thread goes on with the node that was cut off; each later one runs now, and had not before."""
    upstream.stream(*answer("Hello."))
    _, *events, ended = told(go_on(service, graph, thread))
    assert been(events) == LEFT[graph]
    assert ended == done(graph, 0, USAGE)
    assert [message["content"] for message in upstream.request().body["messages"]] == ["Hi"]
    assert upstream.exchanges.empty()
    assert state_of(service, graph, thread) == [{"messages": ["human: Hi", "ai: Hello."], "been": WHOLE[graph]}]


DEADLINES = {
    "first_token_timeout": "before the headers",
    "idle_timeout": "silent after a token",
    "run_timeout": "in mid-stream",
}


@pytest.mark.parametrize("deadline", DEADLINES)
def test_a_deadline_ends_the_model_call_as_well(graphs: Service, upstream: Upstream, deadline: str) -> None:
    for _ in LEFT:
        upstream.play(*PHASES[DEADLINES[deadline]])
    request = {"message": "Hi", "thread_id": deadline, "stream_mode": "messages", deadline: 1}
    viewers = [post(graphs.port, f"/{graph}/stream", **request) for graph in LEFT]
    exchanges = [upstream.request() for _ in viewers]
    assert [ending(viewer) for viewer in viewers] == [("error", deadline)] * 2
    assert [exchange.wait().ended for exchange in exchanges] == ["aborted"] * 2
    for graph in LEFT:
        goes_on(graphs, upstream, graph, deadline)


def test_the_calls_of_all_nodes_that_run_are_ended(graphs: Service, upstream: Upstream) -> None:
    for _ in range(2):
        upstream.play(*held(HOLD))
    with deleting(graphs, "keeping_both", "both"):
        exchanges = [upstream.request(), upstream.request()]
        for exchange in exchanges:
            exchange.wait_for_pause()
    assert [exchange.wait().ended for exchange in exchanges] == ["aborted"] * 2
    for _ in range(2):
        upstream.stream(*answer("Hello."))
    assert sorted(been(told(go_on(graphs, "keeping_both", "both")))) == ["speak", "speak_again"]


@pytest.mark.parametrize("modes", ["updates", "messages", "custom"])
@pytest.mark.parametrize("graph", ["keeping_threads", "keeping_blocking"])
def test_a_model_that_is_called_in_a_thread_ends_with_its_next_token(
    graphs: Service, upstream: Upstream, graph: str, modes: str
) -> None:
    """A synchronous node of an asynchronous graph, and of a graph that is synchronous as a whole."""
    upstream.play(*PHASES["in mid-stream"])
    with post(graphs.port, f"/{graph}/stream", message="Hi", thread_id=modes, stream_mode=modes) as client:
        exchange = upstream.request()
        exchange.wait_for_pause()
        stop(graphs.port, client.head()[1]["content-location"])
        assert ending(client) == ("cancelled", "requested")
    assert exchange.wait().ended == "aborted"
    upstream.stream(*answer("Hello."))
    later = "note_async" if graph == "keeping_threads" else "write"
    assert been(told(go_on(graphs, graph, modes))) == ["speak_blocking", later]
    (state,) = state_of(graphs, graph, modes)
    assert state == {"messages": ["human: Hi", "ai: Hello."], "been": ["note", "speak_blocking", later]}


def test_a_graph_that_lingers_finishes_without_its_viewer(graphs: Service, upstream: Upstream) -> None:
    upstream.play(*held(PAUSE))
    with post(graphs.port, "/keeping_within/stream", message="Hi", thread_id="linger", linger=60) as client:
        client.until("token")
        run = client.head()[1]["content-location"]
    exchange = upstream.request()
    eventually(lambda: status_of(graphs.port, run)["viewers"] == 0)
    exchange.release()
    assert exchange.wait().ended == "completed"
    ended = eventually(lambda: (status := status_of(graphs.port, run))["state"] != "running" and status)
    assert (ended["state"], ended["text"], ended["usage"]) == ("done", "Here I am.", USAGE)
    (state,) = state_of(graphs, "keeping_within", "linger")
    assert state["been"] == WHOLE["keeping_within"]


def test_a_viewer_that_comes_back_finds_all_that_the_graph_has_done(graphs: Service, upstream: Upstream) -> None:
    upstream.play(*held(PAUSE))
    with post(graphs.port, "/keeping/stream", message="Hi", linger=60) as client:
        last, run = client.until("token").id, client.head()[1]["content-location"]
    upstream.request().release()
    events = rest_of(get(graphs.port, f"{run}/events", {"Last-Event-ID": last}))
    assert [(event.name, event.data.get("token")) for event in events] == [
        ("token", " I am."),
        ("updates", None),
        ("updates", None),
        ("done", None),
    ]


# --- Code that resists -----------------------------------------------------------------------------------------------


def test_viewers_are_told_though_a_node_goes_on_whoever_cancels_it(
    graphs: Service, gate: Gate, second_gate: Gate
) -> None:
    """And the thread is busy until it has ended."""
    with post(graphs.port, "/resisting/stream", message="Hi", thread_id="resists", config=gate.config) as client:
        gate.wait()
        stop(graphs.port, client.head()[1]["content-location"])
        assert ending(client) == ("cancelled", "requested")
    with go_on(graphs, "resisting", "resists", config=second_gate.config) as client:
        client.until("start")
        told(post(graphs.port, "/parallel/stream", message="Hi"))  # others have their turns meanwhile
        assert (is_waiting(graphs, client), second_gate.is_awaited) == (True, False)
        gate.open()
        nodes = [next(iter(event.data["data"])) for event in client if event.name == "updates"]
    assert (nodes, second_gate.is_awaited) == (["resist", "note_async"], False)  # what it did in the end is kept
    (state,) = state_of(graphs, "resisting", "resists")
    assert state["been"] == ["note", "resist", "note_async"]


def test_a_node_that_fails_when_it_is_cancelled_is_cancelled_and_says_no_more(graphs: Service) -> None:
    with post(graphs.port, "/grumbling/stream", message="Hi", stream_mode="custom") as client:
        assert client.until("custom").data["data"] == "at work"
        stop(graphs.port, client.head()[1]["content-location"])
        assert [(event.name, event.data["reason"]) for event in client] == [("cancelled", "requested")]
    assert (WORDS in graphs.log, "never retrieved" in graphs.log) == (False, False)


# --- The end of the service ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_is_stopped_ends_its_graphs_whatever_they_do(
    start_service: Start, upstream: Upstream, tmp_path: Path, sign: signal.Signals
) -> None:
    """Nodes in threads, in the graph's own or in LangGraph's, do not hold up the end of the process."""
    blocking = ["sleeping", "sleeping_blocking", "resisting"]
    command = [sys.executable, "-c", "import command; command.main()"]
    service = start_graphs(start_service, upstream, *blocking, *LEFT, command=command)
    gates = [Gate(tmp_path, graph) for graph in blocking]
    for _ in LEFT:
        upstream.play(*held(HOLD))
    viewers = [post(service.port, f"/{graph}/stream", message="Hi") for graph in LEFT]
    exchanges = [upstream.request() for _ in LEFT]
    for graph, gate in zip(blocking, gates, strict=True):
        viewers.append(post(service.port, f"/{graph}/stream", message="Hi", config=gate.config))
        gate.wait()
    service.process.send_signal(sign)
    assert [ending(viewer) for viewer in viewers] == [("cancelled", "draining")] * 5
    assert [exchange.wait().ended for exchange in exchanges] == ["aborted"] * 2
    try:
        assert service.process.wait(10) in (0, -sign)  # uvicorn ends by the signal that ended it
    finally:
        for gate in gates:
            gate.open()
    assert "Traceback" not in service.log


def test_a_service_that_stops_begins_no_graph(start_service: Start, upstream: Upstream, tmp_path: Path) -> None:
    """And a node that holds up the graphs' own loop holds up neither the goodbye nor the end."""
    service, path = start_graphs(start_service, upstream, "sleeping_wrongly"), "/sleeping_wrongly/stream"
    with Gate(tmp_path) as gate, post(service.port, path, message="Hi", config=gate.config) as first:
        gate.wait()
        with post(service.port, path, message="Hi") as second:
            second.until("start")
            service.process.send_signal(signal.SIGTERM)
            assert [ending(client) for client in (first, second)] == [("cancelled", "draining")] * 2
        assert service.process.wait(10) in (0, -signal.SIGTERM)
