"""What blocks in a graph holds up neither the service's loop nor other graphs; what it makes comes over whole.

Proved by the order of things, not by clocks: a node waits at a gate that the test opens only after all else is done.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from .client import Client, post
from .conftest import Service, Start, eventually
from .recorded import OPENAI
from .resource import create, rest_of, status_of, stop
from .served_graphs import (
    USAGE,
    Gate,
    answer,
    been,
    counted,
    done,
    go_on,
    is_waiting,
    of,
    start_graphs,
    state_of,
    told,
)
from .upstream import Upstream

pytest_plugins = ["tests.upstream", "tests.served_graphs"]

# Graphs with a node that blocks, and the nodes of each: in a thread of the pool; in an async function, so that it
# holds up the graphs' own loop; in a graph that is synchronous as a whole.
BLOCKING = {
    "sleeping": ["note_async", "sleep", "note"],
    "sleeping_wrongly": ["note_async", "sleep_wrongly", "note"],
    "sleeping_blocking": ["note", "sleep", "write"],
}


def told_by_script(service: Service) -> bool:
    """Whether another stream runs from its beginning to its end: many words, each in a turn of the loop of its own."""
    script = [{"say": "word " * 500, "every": 0.001}]
    events = told(post(service.port, message="Hi", model="scripted/custom", provider_options={"script": script}))
    return (events[1], events[-1][0]) == (("token", {"token": "word " * 500}), "done")


def write_much(service: Service, graph: str, count: int, **body: object) -> Client:
    config = {"configurable": {"count": count}}
    return post(service.port, f"/{graph}/stream", message="Hi", stream_mode="custom", config=config, **body)


def is_whole(client: Client, graph: str) -> bool:
    return told(client)[-1] == done(graph, 0, counted(1, 0))


@pytest.mark.parametrize("graph", BLOCKING)
def test_while_a_node_blocks_others_begin_stream_and_end(
    graphs: Service, upstream: Upstream, gate: Gate, graph: str
) -> None:
    with post(graphs.port, f"/{graph}/stream", message="Hi", thread_id="blocks", config=gate.config) as blocked:
        gate.wait()
        assert told_by_script(graphs)
        upstream.stream(*answer("Hello."))
        assert told(post(graphs.port, message="Hi", model="openai/gpt-4o-mini"))[-1] == ("done", OPENAI.done(1))
        assert is_whole(write_much(graphs, "writing_much_blocking", 1000), "writing_much_blocking")
        upstream.stream(*answer("Hello."))
        assert been(told(post(graphs.port, "/keeping_blocking/stream", message="Hi")))[-1] == "write"
        if graph != "sleeping_wrongly":  # which holds up its like
            assert is_whole(write_much(graphs, "writing_much", 1000), "writing_much")
            upstream.stream(*answer("Hello."))
            assert been(told(post(graphs.port, "/speaking_blocking/stream", message="Hi")))[-1] == "note"
        run = blocked.head()[1]["content-location"]
        assert status_of(graphs.port, run)["state"] == "running"
        gate.open()
        assert been(told(blocked)) == BLOCKING[graph]


def test_what_was_asked_of_a_loop_that_is_held_up_is_answered_in_the_end(
    graphs: Service, upstream: Upstream, gate: Gate
) -> None:
    with (
        post(graphs.port, "/sleeping_wrongly/stream", message="Hi", config=gate.config) as blocked,
        post(graphs.port, "/remembering/stream", message="Hi") as waiting,
    ):
        gate.wait()
        waiting.until("start")
        assert told_by_script(graphs)
        upstream.stream(*answer("Hello."))
        gate.open()
        assert waiting.until("done").data["usage"] == USAGE
        blocked.until("done")


def test_as_many_nodes_block_as_there_are_threads_and_the_rest_have_their_turns(
    graphs: Service, tmp_path: Path
) -> None:
    threads, more = 32, 4
    gates = [Gate(tmp_path, str(number)) for number in range(threads + more)]
    viewers = []
    for gate in gates:
        viewers.append(post(graphs.port, "/sleeping/stream", message="Hi", config=gate.config))
        viewers[-1].until("updates")
    for gate in gates[:threads]:
        gate.wait()
    assert told_by_script(graphs)
    assert not any(gate.is_awaited for gate in gates[threads:])
    for gate in gates:
        gate.wait()
        gate.open()
    assert [been(told(viewer))[-2:] for viewer in viewers] == [["sleep", "note"]] * len(gates)


# --- Stopped while it blocks -----------------------------------------------------------------------------------------

MODES = [["messages", "updates"], ["updates"], ["custom"], ["messages"], ["values"], ["tasks"], ["debug"]]


@pytest.mark.parametrize("modes", MODES, ids=str)
def test_a_stopped_synchronous_graph_runs_no_later_node_and_its_thread_is_busy_until_then(
    graphs: Service, gate: Gate, modes: list[str]
) -> None:
    """Whatever is asked for, and be it that nothing would be told before the next node begins."""
    graph, thread = "sleeping_blocking", f"stopped {modes}"
    body = {"message": "Hi", "thread_id": thread, "stream_mode": modes, "config": gate.config}
    with post(graphs.port, f"/{graph}/stream", **body) as stopped:
        gate.wait()
        stop(graphs.port, stopped.head()[1]["content-location"])
        assert told(stopped)[-1][1]["reason"] == "requested"
    with go_on(graphs, graph, thread, stream_mode=["values", "updates", "custom"]) as following:
        following.until("start")
        assert is_whole(write_much(graphs, "writing_much_blocking", 1), "writing_much_blocking")
        assert is_waiting(graphs, following)
        gate.open()
        events = told(following)
    values = of("values", events)
    assert "write" not in values[0]["been"]
    assert values[-1]["been"] == BLOCKING[graph], "each node has been once"
    assert of("custom", events) == [{"progress": n} for n in range(3)], "the later one here, and not before"


def test_a_stopped_graph_with_a_synchronous_node_runs_no_later_node(
    graphs: Service, gate: Gate, second_gate: Gate
) -> None:
    with post(graphs.port, "/sleeping/stream", message="Hi", thread_id="stopped", config=gate.config) as stopped:
        gate.wait()
        stop(graphs.port, stopped.head()[1]["content-location"])
        assert told(stopped)[-1][1]["reason"] == "requested"
    gate.open()
    with go_on(graphs, "sleeping", "stopped", config=second_gate.config) as following:
        second_gate.wait()
        second_gate.open()
        assert been(told(following)) == ["sleep", "note"]
    (state,) = state_of(graphs, "sleeping", "stopped")
    assert state["been"] == BLOCKING["sleeping"]


def test_a_graph_whose_viewer_left_while_it_blocks_runs_no_later_node(graphs: Service, gate: Gate) -> None:
    with post(graphs.port, "/sleeping_blocking/stream", message="Hi", thread_id="left", config=gate.config) as leaving:
        gate.wait()
        run = leaving.head()[1]["content-location"]
    with go_on(graphs, "sleeping_blocking", "left", stream_mode="values") as following:
        following.until("start")
        assert eventually(lambda: status_of(graphs.port, run)["ending"])["reason"] == "disconnected"
        gate.open()
        before, *_, after = of("values", told(following))
    assert ("write" in before["been"], after["been"]) == (False, BLOCKING["sleeping_blocking"])


# --- With one thread -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(start_service: Start, upstream_server: Upstream) -> Service:
    """A service whose graphs have a single thread for what blocks."""
    names = (
        "noting",
        "remembering",
        "sleeping",
        "sleeping_blocking",
        "writing_much",
        "writing_much_blocking",
        "breaking",
    )
    return start_graphs(start_service, upstream_server, *names, SIDESTREAM_THREADS="1")


@pytest.mark.parametrize("graph", ["sleeping", "sleeping_blocking"])
def test_what_finds_no_thread_waits_for_one_and_holds_up_nobody(
    narrow: Service, gate: Gate, second_gate: Gate, graph: str
) -> None:
    path = f"/{graph}/stream"
    with (
        post(narrow.port, path, message="Hi", config=gate.config) as first,
        post(narrow.port, path, message="Hi", config=second_gate.config) as second,
    ):
        gate.wait()
        second.until("start")
        assert told_by_script(narrow)
        assert been(told(post(narrow.port, "/noting/stream", message="Hi"))) == ["note_async"]
        assert not second_gate.is_awaited
        gate.open()
        second_gate.wait()
        second_gate.open()
        assert [been(told(viewer)) for viewer in (first, second)] == [BLOCKING[graph]] * 2


@pytest.mark.parametrize("graph", ["sleeping", "sleeping_blocking"])
def test_a_model_that_is_called_asynchronously_needs_no_thread(
    narrow: Service, upstream: Upstream, gate: Gate, graph: str
) -> None:
    """Its SDK needs one, and whoever looks up the name of a host: not one of those that wait for somebody's code."""
    with post(narrow.port, f"/{graph}/stream", message="Hi", config=gate.config) as blocked:
        gate.wait()
        upstream.stream(*answer("Hello."))
        body = {"message": "Hi", "stream_mode": "messages", "first_token_timeout": 3}
        assert ("token", {"token": "Hello.", "node": "speak"}) in told(post(narrow.port, "/remembering/stream", **body))
        gate.open()
        assert been(told(blocked)) == BLOCKING[graph]


def test_what_is_stopped_while_it_waits_for_a_thread_never_runs(narrow: Service, gate: Gate, second_gate: Gate) -> None:
    with (
        post(narrow.port, "/sleeping_blocking/stream", message="Hi", config=gate.config) as first,
        post(
            narrow.port, "/sleeping_blocking/stream", message="Hi", thread_id="never", config=second_gate.config
        ) as second,
    ):
        gate.wait()
        second.until("start")
        stop(narrow.port, second.head()[1]["content-location"])
        assert [(event.name, event.data["reason"]) for event in second] == [("cancelled", "requested")]
        gate.open()
        assert been(told(first)) == BLOCKING["sleeping_blocking"]
    name, data = told(go_on(narrow, "sleeping_blocking", "never"))[-1]
    assert (name, data["code"], second_gate.is_awaited) == ("error", "invalid_input", False)


def test_a_node_that_breaks_off_takes_no_thread_with_it(narrow: Service) -> None:
    """A CancelledError in a thread is no Exception; the thread must outlive that as well."""
    told(post(narrow.port, "/breaking/stream", message="Hi", idle_timeout=2))
    assert is_whole(write_much(narrow, "writing_much", 1, first_token_timeout=2), "writing_much")


# --- What they make comes over whole ---------------------------------------------------------------------------------

MANY = 20_000
each_writer = pytest.mark.parametrize("graph", ["writing_much", "writing_much_blocking"])


def numbers(client: Client) -> list[Any]:
    """What was written, after checking that the run ended well."""
    events = rest_of(client)
    assert events[-1].name == "done", events[-1]
    return [event.data["data"] for event in events if event.name == "custom"]


@each_writer
def test_a_viewer_that_reads_slowly_gets_all_in_order(graphs: Service, graph: str) -> None:
    config = {"configurable": {"count": MANY}}
    body = {"message": "Hi", "stream_mode": "custom", "config": config}
    headers = {"Content-Type": "application/json"}
    with Client(
        graphs.port, "POST", f"/{graph}/stream", headers=headers, body=json.dumps(body).encode(), receive_buffer=4096
    ) as client:
        run = client.head()[1]["content-location"]
        for _ in range(20):
            client.take(len(client.raw) + 1000)
            status_of(graphs.port, run)  # meanwhile, others have their turns
        assert numbers(client) == [*range(1, MANY + 1)]


@each_writer
def test_a_viewer_that_comes_late_gets_all_in_order(graphs: Service, graph: str) -> None:
    body = {"stream_mode": "custom", "config": {"configurable": {"count": MANY}}}
    created = create(graphs.port, message="Hi", model=f"langgraph/{graph}", linger=60, **body)
    early = Client(graphs.port, "GET", created["events_url"])
    assert numbers(early) == [*range(1, MANY + 1)]
    late = Client(graphs.port, "GET", created["events_url"])
    assert numbers(late) == [*range(1, MANY + 1)]


@each_writer
def test_many_that_write_at_once_get_their_own(graphs: Service, graph: str) -> None:
    counts = [100 * number for number in range(1, 9)]
    viewers = [write_much(graphs, graph, count) for count in counts]
    assert [numbers(viewer) for viewer in viewers] == [[*range(1, count + 1)] for count in counts]
