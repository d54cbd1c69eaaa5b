"""LangGraph's own SDKs when a run is stopped, left, joined again, or its connection cut: what its upstream sees of it.

And what is built on them: LangGraph's RemoteGraph, and what is behind `useStream`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.pregel.remote import RemoteException, RemoteGraph
from langgraph.types import Command
from langgraph_sdk import get_client
from langgraph_sdk.errors import NotFoundError, UnprocessableEntityError
from langgraph_sdk.schema import StreamPart

from .asgi import run as run_async
from .client import DEADLINE
from .conftest import ROOT, Service, Start, eventually
from .graphs import State
from .node import BIN, NPM, Node, told
from .proxy import Cut, How, Proxy
from .served_graphs import answer, held
from .test_langgraph_clients import CLIENTS, HI, JS, asked_of, said, seen, sent, sync_client, thread, url
from .upstream import HOLD, PAUSE, Upstream

pytest_plugins = ["tests.upstream", "tests.proxy", "tests.served_graphs", "tests.replicas"]
# An SDK whose stream breaks off leaves its socket to the collector, which may come in any test.
pytestmark = [pytest.mark.usefixtures("leftovers"), pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]

TUPLES = {"input": HI, "stream_mode": "messages-tuple"}
KINDS = pytest.mark.parametrize("kind", ["async", "sync", "node"])

# --- Stops -----------------------------------------------------------------------------------------------------------


def until_the_first_word(parts: Iterator[StreamPart]) -> list[StreamPart]:
    """Take parts up to the first chunk of a message."""
    taken: list[StreamPart] = []
    while not taken or taken[-1].event != "messages":
        taken.append(next(parts))
    return taken


def cancelled_in_python(service: Service, on: str) -> list[StreamPart]:
    with sync_client(service) as client:
        stream = client.runs.stream(on, "remembering", **TUPLES)
        parts = until_the_first_word(stream)
        assert client.runs.get(on, parts[0].data["run_id"])["status"] == "running"
        client.runs.cancel(on, parts[0].data["run_id"], wait=True)
        return [*parts, *stream]


def cancelled_in_async_python(service: Service, on: str) -> list[StreamPart]:
    async def follow() -> list[StreamPart]:
        parts: list[StreamPart] = []
        async with get_client(url=url(service), api_key=None) as client:
            async for part in client.runs.stream(on, "remembering", **TUPLES):
                parts.append(part)
                if part.event == "messages":
                    await client.runs.cancel(on, parts[0].data["run_id"])
        return parts

    return run_async(follow())


CANCEL = """
let run;
for await (const { id, event, data } of client.runs.stream(asked.thread, asked.graph, asked.payload)) {
  tell("part", event, data, id);
  if (event === "metadata") run = data.run_id;
  if (event === "messages") await client.runs.cancel(asked.thread, run, true);
}
"""


def cancelled_in_node(service: Service, on: str) -> list[StreamPart]:
    return seen(told(JS + CANCEL, url(service), asked_of(on, "remembering", **TUPLES))).parts


CANCELS = {"sync": cancelled_in_python, "async": cancelled_in_async_python, "node": cancelled_in_node}


@pytest.mark.replicated
@pytest.mark.parametrize("cancel", CANCELS.values(), ids=CANCELS)
def test_a_cancel_reaches_the_upstream(cancel: Any, graphs: Service, upstream: Upstream) -> None:
    on = thread()
    upstream.play(*held(HOLD))
    parts = cancel(graphs, on)
    assert upstream.request().wait().ended == "aborted"
    assert [part.event for part in parts] == ["metadata", "messages", "error", "end"]
    assert (parts[2].data["error"], parts[3].data["status"]) == ("cancelled", "interrupted")
    with sync_client(graphs) as client:
        # Another replica hears of it a moment later.
        assert eventually(lambda: client.runs.get(on, parts[0].data["run_id"])["status"] == "interrupted")
    upstream.stream(*answer("Yes?"))
    assert said(CLIENTS["sync"](url(graphs), on, "remembering", **TUPLES).of("messages")) == {"speak": "Yes?"}
    upstream.request()


def test_what_was_kept_stays_kept(graphs: Service, upstream: Upstream) -> None:
    on = thread()
    upstream.stream(*answer("Yes?"))
    ran = CLIENTS["sync"](url(graphs), on, "remembering", **TUPLES)
    upstream.request()
    with sync_client(graphs) as client, pytest.raises(UnprocessableEntityError, match="interrupt"):
        client.runs.cancel(on, ran.parts[0].data["run_id"], action="rollback")


LEAVE = """
const leaving = new AbortController(), signal = leaving.signal;
try {
  for await (const { event, data } of client.runs.stream(asked.thread, asked.graph, { ...asked.payload, signal })) {
    if (event === "metadata") tell(data.run_id);
    if (event === "messages") leaving.abort();
  }
} catch (error) { if (error.name !== "AbortError") throw error; }
"""


def left(kind: str, service: Service, on: str, **asked: Any) -> str:
    """Begin a run, hang up with its first word, and return its id."""
    if kind == "node":
        ((run,),) = told(JS + LEAVE, url(service), asked_of(on, "remembering", **asked))
        return str(run)
    if kind == "sync":
        with sync_client(service) as client:
            stream: Any = client.runs.stream(on, "remembering", **asked)
            parts = until_the_first_word(stream)
            stream.close()
            return str(parts[0].data["run_id"])

    async def leave() -> str:
        async with get_client(url=url(service), api_key=None) as client:
            stream: Any = client.runs.stream(on, "remembering", **asked)
            parts = [await anext(stream), await anext(stream)]
            await stream.aclose()
            return str(parts[0].data["run_id"])

    return run_async(leave())


@KINDS
def test_who_wants_a_run_to_end_with_the_connection_hangs_up_on_the_upstream(
    kind: str, graphs: Service, upstream: Upstream
) -> None:
    upstream.play(*held(HOLD))
    left(kind, graphs, thread(), **TUPLES, on_disconnect="cancel")
    assert upstream.request().wait().ended == "aborted"


# --- Joins -----------------------------------------------------------------------------------------------------------

JOIN = JS + "await follow(client.runs.joinStream(asked.thread, asked.graph, asked.payload));"


def joined(kind: str, service: Service, on: str, run: str, **asked: Any) -> list[StreamPart]:
    if kind == "node":
        return seen(told(JOIN, url(service), asked_of(on, run, **asked))).parts
    if kind == "sync":
        with sync_client(service) as client:
            return [*client.runs.join_stream(on, run, **asked)]

    async def follow() -> list[StreamPart]:
        async with get_client(url=url(service), api_key=None) as client:
            return [part async for part in client.runs.join_stream(on, run, **asked)]

    return run_async(follow())


@pytest.mark.replicated
@KINDS
def test_who_left_comes_back_for_the_rest(kind: str, graphs: Service, upstream: Upstream) -> None:
    """A run goes on for a while without anybody, unless it was asked not to."""
    on = thread()
    upstream.play(*held(PAUSE))
    with sync_client(graphs) as client:
        stream = client.runs.stream(on, "remembering", **TUPLES)
        parts = until_the_first_word(stream)
        stream.close()
    run = parts[0].data["run_id"]
    upstream.request().release()
    rest = joined(kind, graphs, on, run, last_event_id=parts[-1].id)
    assert said([part.data for part in [*parts, *rest] if part.event == "messages"]) == {"speak": "Here I am."}
    assert [part.event for part in rest] == ["messages", "end"]
    assert parts[-1].data[1] == rest[0].data[1], "it knows what came before"
    assert parts[-1].data[0]["id"] == rest[0].data[0]["id"]
    assert len({part.id for part in (*parts, *rest)}) == len(parts) + len(rest)
    whole = joined(kind, graphs, on, run)
    assert [part.event for part in whole] == ["metadata", "messages", "end"]
    assert joined(kind, graphs, on, run, last_event_id="-1") == whole
    assert joined(kind, graphs, on, run, last_event_id=rest[-1].id) == []


def test_who_joins_may_choose_among_the_modes(graphs: Service) -> None:
    on = thread()
    ran = CLIENTS["sync"](url(graphs), on, "asking", input=HI, stream_mode=["values", "updates"])
    run = ran.parts[0].data["run_id"]
    for modes, names in (
        (["updates"], ["metadata", "updates", "end"]),
        ("values", ["metadata", "values", "values", "end"]),
        ("custom", ["metadata", "end"]),
    ):
        assert [part.event for part in joined("async", graphs, on, run, stream_mode=modes)] == names


@pytest.mark.replicated
def test_who_joins_may_take_the_run_with_them(graphs: Service, upstream: Upstream) -> None:
    on = thread()
    upstream.play(*held(HOLD))
    run = left("sync", graphs, on, **TUPLES, on_disconnect="continue")
    exchange = upstream.request()
    with sync_client(graphs) as client:
        stream: Any = client.runs.join_stream(on, run, cancel_on_disconnect=True)
        until_the_first_word(stream)
        assert not exchange.ended
        stream.close()
    assert exchange.wait().ended == "aborted"


def test_a_run_is_found_on_its_thread_alone(graphs: Service) -> None:
    on = thread()
    run = CLIENTS["sync"](url(graphs), on, "asking", input=HI).parts[0].data["run_id"]
    with sync_client(graphs) as client:
        told = client.runs.get(on, run)
        names = ("run_id", "thread_id", "assistant_id", "status")
        assert [told[name] for name in names] == [run, on, "asking", "success"]
        assert client.runs.get(on, run.replace("-", "")) == told
        for read in (client.runs.get, client.runs.cancel, lambda *ids: [*client.runs.join_stream(*ids)]):
            with pytest.raises(NotFoundError):
                read(thread(), run)
            with pytest.raises(NotFoundError):
                read(on, thread())
    with pytest.raises(UnprocessableEntityError):
        joined("sync", graphs, on, run, last_event_id="5")


# --- Connections that are cut ----------------------------------------------------------------------------------------


# Python's says that what was sent in the meantime is lost where it has seen no id; here it is not.
@pytest.mark.replicated
@pytest.mark.filterwarnings("ignore:Reconnecting without a Last-Event-ID")
@pytest.mark.parametrize(
    ("client", "how", "at", "on"),
    [
        ("async", "RST", 300, True),  # within the first word
        ("sync", "FIN", 100, True),  # within the first frame: no id was seen
        ("sync", "RST", 300, False),
        ("node", "RST", 100, True),
        ("node", "FIN", 300, False),
    ],
)
def test_a_client_that_is_cut_off_comes_back_by_itself_and_misses_nothing(
    client: str, how: How, at: int, on: bool, graphs: Service, upstream: Upstream
) -> None:
    """Below a prefix, which the service does not know of: the SDKs put the API's own address before a `Location`."""
    upstream.play(*held(PAUSE))
    with Proxy(graphs, "/side") as proxy, ThreadPoolExecutor(1) as pool:
        proxy.do("POST", Cut(at, how))
        where = f"{proxy.url}side/lg"
        running = pool.submit(CLIENTS[client], where, thread() if on else None, "remembering", **TUPLES)
        exchange = upstream.request()
        assert eventually(lambda: proxy.seen("GET"))
        exchange.release()
        ran = running.result(DEADLINE)
        rest = proxy.records[1:]
    assert [*dict.fromkeys(ran.names)] == ["metadata", "messages", "end"]
    assert said(ran.of("messages")) == {"speak": "Here I am."}
    assert len({part.id for part in ran.parts}) == len(ran.parts)
    run = ran.of("metadata")[0]["run_id"]
    assert [record.partition(f"/runs/{run}/")[2] for record in rest] == ["stream after 1" if at == 300 else "stream"]
    assert exchange.wait().ended == "completed"


# --- What is built on them -------------------------------------------------------------------------------------------


@contextmanager
def remote(service: Service, graph: str) -> Iterator[RemoteGraph]:
    with sync_client(service) as client:
        yield RemoteGraph(graph, client=get_client(url=url(service), api_key=None), sync_client=client)


def test_a_remote_graph_streams_like_one_that_is_not(graphs: Service, upstream: Upstream) -> None:
    with remote(graphs, "within") as graph:
        upstream.stream(*answer("Hello", " there"))
        parts = [*graph.stream(HI, stream_mode=["messages", "updates"], subgraphs=True)]
        told = {mode: data for _, mode, data in parts}
        assert [*told["updates"]] == ["note_async"]
        assert "".join(data[0]["content"] for _, mode, data in parts if mode == "messages") == "Hello there"
        upstream.stream(*answer("Hello"))
        assert [message["content"] for message in graph.invoke(HI)["messages"]] == ["Hi", "Hello"]
        upstream.refuse(500, {})
        with pytest.raises(RemoteException, match="graph_failed"):
            graph.invoke(HI)
    for _ in range(3):
        upstream.request()


def test_a_remote_graph_remembers_and_waits_for_a_person(graphs: Service) -> None:
    config: Any = {"configurable": {"thread_id": thread()}}
    with remote(graphs, "asking") as graph:
        asks = graph.invoke(HI, config)
        assert [one["value"] for one in asks["__interrupt__"]] == [{"question": "Shall I?"}]
        goes_on = graph.invoke(Command(resume="yes"), config)
        assert [message["content"] for message in goes_on["messages"]] == ["Hi", "You said yes."]


def test_a_remote_graph_is_a_node_of_another(graphs: Service) -> None:
    """What it asks is asked by the one around it. (To answer it through that, LangGraph would have to say what.)"""
    with remote(graphs, "asking") as inner:
        builder = StateGraph(State).add_node("inner", inner).add_edge(START, "inner")
        graph = builder.compile(checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": thread()}}
        parts = [*graph.stream(HI, config, stream_mode=["updates", "values"], subgraphs=True)]
        asks = [data["__interrupt__"][0].value for ns, mode, data in parts if (ns, mode) == ((), "updates")]
        assert asks == [{"question": "Shall I?"}]
        assert ("inner", "values") in [(ns[0].partition(":")[0], mode) for ns, mode, _ in parts if ns]


CHAT = """
import { StreamOrchestrator } from "@langchain/langgraph-sdk/ui";
const chat = new StreamOrchestrator({ onError: (error) => tell("error", error.message) }, {
  getClient: () => client, getAssistantId: () => asked.graph, getMessagesKey: () => "messages",
});
chat.trackStreamMode("messages-tuple");
const texts = () => chat.messages.map(({ content }) => content);
const human = (content) => ({ messages: [{ type: "human", content }] });
"""


def test_a_chat_of_use_stream_grows_word_by_word(graphs: Service, upstream: Upstream) -> None:
    upstream.play(*held(PAUSE))
    upstream.stream(*answer("Fine."))
    script = """
    let waits = true;
    chat.subscribe(() => { if (waits && texts()[1] === "Here") { waits = false; tell("grown"); } });
    await chat.submit(human("Hi"));
    tell(texts(), chat.isLoading);
    await chat.submit(human("How are you?"));
    tell(texts(), chat.isLoading);
    """
    with Node(JS + CHAT + script, url(graphs), asked_of(None, "remembering")) as node:
        assert node.next() == ["grown"]
        first = upstream.request()
        first.release()
        assert node.next() == [["Hi", "Here I am."], False]
        assert node.next() == [["Hi", "Here I am.", "How are you?", "Fine."], False]
    assert [sent(first), sent(upstream.request())] == [["Hi"], ["Hi", "Here I am.", "How are you?"]]


def test_a_chat_of_use_stream_shows_a_question_and_sends_the_answer(graphs: Service) -> None:
    script = """
    await chat.submit(human("Hi"));
    tell(chat.interrupt.value, chat.interrupts.length, texts());
    await chat.submit(null, { command: { resume: "yes" } });
    tell(chat.interrupt ?? null, chat.interrupts.length, texts());
    """
    assert told(JS + CHAT + script, url(graphs), asked_of(None, "asking")) == [
        [{"question": "Shall I?"}, 1, ["Hi"]],
        [None, 0, ["Hi", "You said yes."]],
    ]


def test_a_chat_of_use_stream_that_is_stopped_stops_the_upstream(graphs: Service, upstream: Upstream) -> None:
    upstream.play(*held(HOLD))
    script = """
    const running = chat.submit(human("Hi"));
    await new Promise((go) => chat.subscribe(() => texts().includes("Here") && go()));
    await chat.stop();
    await running;
    tell(texts(), chat.isLoading);
    """
    assert told(JS + CHAT + script, url(graphs), asked_of(None, "remembering"))[-1] == [["Hi", "Here"], False]
    assert upstream.request().wait().ended == "aborted"


# The samples


@pytest.fixture(scope="module")
def sample_agent(start_service: Start) -> Service:
    return start_service(SIDESTREAM_GRAPHS="agent=examples.agent:graph")


@pytest.mark.parametrize("name", ["langgraph_client.py", "langgraph_client.mjs"])
def test_the_sample_asks_the_sample_agent_and_answers_its_question(sample_agent: Service, name: str) -> None:
    path = ROOT / "examples" / name
    environ = {**os.environ, "SIDESTREAM_URL": f"http://127.0.0.1:{sample_agent.port}"}
    command = [sys.executable, path]
    if path.suffix == ".mjs":
        command = [BIN / "node", "--input-type=module", "-e", path.read_text(encoding="utf-8")]
    done = subprocess.run(command, cwd=NPM, env=environ, capture_output=True, text=True, timeout=3 * DEADLINE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Send this postcard to Anna? yes\nThe postcard to Anna is sent.\n"
