"""LangGraph's own SDKs, as they are installed, against a real service: Python's, with and without async, and Node's.

Beside them what is built on them: LangGraph's RemoteGraph, and what is behind `useStream`.
"""

import json
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from langchain_core.messages import AIMessageChunk
from langgraph_sdk import get_client, get_sync_client
from langgraph_sdk.client import SyncLangGraphClient
from langgraph_sdk.errors import NotFoundError, UnprocessableEntityError
from langgraph_sdk.schema import StreamPart

from .asgi import run as run_async
from .conftest import Service
from .node import told
from .recorded import OPENAI
from .served_graphs import RANDOM, answer, shortened
from .test_langgraph import EVERYTHING, MODES, TWO_CALLS
from .upstream import Exchange, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.proxy", "tests.served_graphs"]
# An SDK whose stream breaks off leaves its socket to the collector, which may come in any test.
pytestmark = [pytest.mark.usefixtures("leftovers"), pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]

HI = {"messages": [{"role": "user", "content": "Hi"}]}


class Seen(NamedTuple):
    """What a client has seen of a run: the run that it was told of, and what was streamed."""

    run: dict[str, Any] | None
    parts: list[StreamPart]

    @property
    def names(self) -> list[str]:
        return [part.event for part in self.parts]

    def of(self, name: str) -> list[Any]:
        return [part.data for part in self.parts if part.event == name]


def in_python(url: str, thread: str | None, graph: str, **asked: Any) -> Seen:
    created: list[Any] = []
    with get_sync_client(url=url, api_key=None) as client:
        parts = list(client.runs.stream(thread, graph, on_run_created=created.append, **asked))
    return Seen(created[0] if created else None, parts)


def in_async_python(url: str, thread: str | None, graph: str, **asked: Any) -> Seen:
    created: list[Any] = []

    async def follow() -> list[StreamPart]:
        async with get_client(url=url, api_key=None) as client:
            stream = client.runs.stream(thread, graph, on_run_created=created.append, **asked)
            return [part async for part in stream]

    parts = run_async(follow())
    return Seen(created[0] if created else None, parts)


JS = """
import { Client } from "@langchain/langgraph-sdk";
const [, apiUrl, json] = process.argv, asked = JSON.parse(json);
const client = new Client({ apiUrl, apiKey: null, callerOptions: { maxRetries: 0 } });
const follow = async (stream) => { for await (const { id, event, data } of stream) tell("part", event, data, id); };
"""
STREAM = """
const onRunCreated = (run) => tell("run", run);
await follow(client.runs.stream(asked.thread, asked.graph, { ...asked.payload, onRunCreated }));
"""


def camel(name: str) -> str:
    return re.sub("_(.)", lambda found: found[1].upper(), name)


def asked_of(thread: str | None, graph: str, **asked: Any) -> str:
    payload = {camel(name): value for name, value in asked.items()}
    return json.dumps({"thread": thread, "graph": graph, "payload": payload})


def seen(lines: list[Any]) -> Seen:
    run = next((run for kind, run, *_ in lines if kind == "run"), None)
    return Seen(run, [StreamPart(*rest) for kind, *rest in lines if kind == "part"])


def in_node(url: str, thread: str | None, graph: str, **asked: Any) -> Seen:
    return seen(told(JS + STREAM, url, asked_of(thread, graph, **asked)))


CLIENTS: dict[str, Callable[..., Seen]] = {"async": in_async_python, "sync": in_python, "node": in_node}
each_client = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)


def url(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}/lg"


def sync_client(service: Service) -> SyncLangGraphClient:
    return get_sync_client(url=url(service), api_key=None)


def thread() -> str:
    return str(uuid.uuid4())


def said(messages: Sequence[Any]) -> dict[str, str]:
    """The text of each message that was streamed, by its node."""
    texts: dict[str, str] = {}
    for chunk, metadata in messages:
        texts[metadata["langgraph_node"]] = texts.get(metadata["langgraph_node"], "") + chunk["content"]
    return texts


def sent(exchange: Exchange) -> list[str]:
    return [message["content"] for message in exchange.body["messages"]]


# --- Runs ------------------------------------------------------------------------------------------------------------


@each_client
def test_a_run_of_no_thread_is_streamed(client: Any, graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello", " there"))
    ran = client(url(graphs), None, "speaking", input=HI, stream_mode="messages-tuple")
    (begun,) = ran.of("metadata")
    assert ran.run == {"run_id": begun["run_id"]} or ran.run == {"run_id": begun["run_id"], "thread_id": None}
    assert said(ran.of("messages")) == {"speak": "Hello there"}
    assert ran.parts[-1].data == {"run_id": begun["run_id"], "status": "success"}
    assert [*dict.fromkeys(ran.names)] == ["metadata", "messages", "end"]
    assert sent(upstream.request()) == ["Hi"]


@each_client
def test_a_thread_remembers(client: Any, graphs: Service, upstream: Upstream) -> None:
    with sync_client(graphs) as creates:
        on = creates.threads.create(metadata={"a": 1})["thread_id"]
    for words, message in (("Hello.", "Hi"), ("Fine.", "How are you?")):
        upstream.stream(*answer(words))
        ran = client(url(graphs), on, "remembering", input={"messages": [{"role": "user", "content": message}]})
        assert ran.run == {"run_id": ran.of("metadata")[0]["run_id"], "thread_id": on}
        assert ran.of("metadata")[0]["thread_id"] == on
    assert [message["content"] for message in ran.of("values")[-1]["messages"]] == [
        "Hi",
        "Hello.",
        "How are you?",
        "Fine.",
    ]
    assert [sent(upstream.request()) for _ in range(2)] == [["Hi"], ["Hi", "Hello.", "How are you?"]]


def plain(value: Any) -> Any:
    return shortened(json.loads(RANDOM.sub("*", json.dumps(value))))


OWN = [mode for mode in MODES if mode != "messages"]


def check_modes(ran: Seen, asked: Sequence[str]) -> None:
    expected = [(name, data) for name, data in EVERYTHING if name in asked]
    assert [(part.event, plain(part.data)) for part in ran.parts if part.event in OWN] == expected


@pytest.mark.parametrize("mode", OWN)
def test_each_mode_is_told_under_its_name(mode: str, graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello", " there"))
    ran = in_python(url(graphs), None, "telling", input=HI, stream_mode=mode)
    assert {*ran.names} == {"metadata", mode, "end"}
    check_modes(ran, [mode])
    upstream.request()


@each_client
def test_all_modes_are_told_in_the_order_of_things(client: Any, graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello", " there"))
    ran = client(url(graphs), None, "telling", input=HI, stream_mode=[*OWN, "messages-tuple"])
    check_modes(ran, OWN)
    assert said(ran.of("messages")) == {"speak": "Hello there"}
    upstream.request()


@each_client
def test_messages_are_told_as_they_stand(client: Any, graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello", " there"))
    ran = client(url(graphs), None, "speaking", input=HI, stream_mode=["messages"])
    assert [*dict.fromkeys(ran.names)] == [
        "metadata",
        "messages/metadata",
        "messages/partial",
        "messages/complete",
        "end",
    ]
    ((message,),) = ran.of("messages/complete")
    assert (message["type"], message["content"]) == ("ai", "Hello there")
    assert ran.of("messages/metadata")[0][message["id"]]["metadata"]["langgraph_node"] == "speak"
    upstream.request()


def test_what_goes_on_inside_is_told(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello"))
    ran = in_python(url(graphs), None, "speaking", input=HI, stream_mode="events")
    names = [event["event"] for event in ran.of("events")]
    assert (names[0], names[-1]) == ("on_chain_start", "on_chain_end")
    assert "on_chat_model_stream" in names
    upstream.request()


@each_client
def test_subgraphs_are_told_with_where_they_are(client: Any, graphs: Service, upstream: Upstream) -> None:
    for subgraphs in (True, False):
        upstream.stream(*answer("Hello", " there"))
        modes = ["updates", "messages-tuple"]
        ran = client(url(graphs), None, "within", input=HI, stream_mode=modes, stream_subgraphs=subgraphs)
        inner = [part for part in ran.parts if "|inner:" in part.event]
        assert bool(inner) == subgraphs
        assert [[*data] for data in ran.of("updates")] == [["inner"], ["note_async"]]
        upstream.request()
        if subgraphs:
            assert [*dict.fromkeys(part.event.partition("|")[0] for part in inner)] == ["messages", "updates"]
            assert said([part.data for part in inner if part.event.startswith("messages")]) == {"speak": "Hello there"}


@each_client
def test_an_agent_calls_its_tools_and_says_what_came_of_it(client: Any, graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*TWO_CALLS)
    upstream.stream(*answer("It is", " sunny."))
    ran = client(url(graphs), None, "agent", input=HI, stream_mode="messages-tuple")
    messages: dict[str, Any] = {}
    for chunk, _ in ran.of("messages"):
        if chunk["type"] == "AIMessageChunk":
            whole = AIMessageChunk(**chunk)
            messages[chunk["id"]] = messages[chunk["id"]] + whole if chunk["id"] in messages else whole
        else:
            messages[chunk["id"]] = chunk
    calls, *answers, last = messages.values()
    assert [(call["id"], call["name"], call["args"]) for call in calls.tool_calls] == [
        ("call_Ab1", "weather", {"city": "Paris"}),
        ("call_Cd2", "hour", {"zone": "CET", "day": 1}),
    ]
    assert {one["tool_call_id"]: one["content"] for one in answers} == {
        "call_Ab1": "Sunny in Paris.",
        "call_Cd2": '{"zone": "CET", "day": 1, "hour": 12}',
    }
    assert (last.content, last.tool_calls) == ("It is sunny.", [])
    for _ in range(2):
        upstream.request()


@each_client
def test_an_interrupt_is_told_and_answered(client: Any, graphs: Service) -> None:
    on, modes = thread(), ["values", "updates"]
    asks = client(url(graphs), on, "asking", input=HI, stream_mode=modes)
    (question,) = asks.of("updates")[-1]["__interrupt__"]
    assert question["value"] == {"question": "Shall I?"}
    assert asks.of("values")[-1]["__interrupt__"] == [question]
    assert [message["content"] for message in asks.of("values")[-1]["messages"]] == ["Hi"]
    goes_on = client(url(graphs), on, "asking", command={"resume": "yes"}, stream_mode=modes)
    assert [[*data] for data in goes_on.of("updates")] == [["ask"], ["note"]]
    assert goes_on.of("values")[-1]["messages"][-1]["content"] == "You said yes."
    assert "__interrupt__" not in goes_on.of("values")[-1]


@each_client
def test_a_breakpoint_asks_nothing_and_is_passed_without_an_input(client: Any, graphs: Service) -> None:
    on = thread()
    stops = client(url(graphs), on, "asking_nothing", input=HI, stream_mode=["updates", "values"])
    assert stops.of("updates")[-1] == {"__interrupt__": []}
    goes_on = client(url(graphs), on, "asking_nothing", input=None, stream_mode="updates")
    assert goes_on.of("updates") == [{"note_async": {"been": ["note_async"]}}]


@each_client
def test_a_config_a_context_and_metadata_come_to_the_graph(client: Any, graphs: Service) -> None:
    config = {"configurable": {"my_name": "Ann"}, "tags": ["seen"]}
    ran = client(url(graphs), None, "configured", input=HI, config=config, metadata={"my_tag": 1}, stream_mode="custom")
    assert ran.of("custom") == [{"tags": ["seen"], "metadata": {"my_tag": 1}, "configurable": {"my_name": "Ann"}}]
    greeted = client(url(graphs), None, "greeting", input=HI, context={"name": "Ann"})
    assert greeted.of("values")[-1]["messages"][-1]["content"] == "Hello, Ann."


def test_a_thread_may_go_on_from_an_earlier_checkpoint(graphs: Service) -> None:
    on = thread()
    first = in_python(url(graphs), on, "asking_nothing", input=HI, stream_mode="checkpoints")
    in_python(url(graphs), on, "asking_nothing", input=None)
    at = first.of("checkpoints")[-1]["config"]["configurable"]
    again = in_python(url(graphs), on, "asking_nothing", input=None, checkpoint=at, stream_mode="updates")
    assert again.of("updates") == [{"note_async": {"been": ["note_async"]}}]
    over = in_python(url(graphs), on, "asking_nothing", input=None, stream_mode="updates")
    assert over.of("updates") == []


def test_parts_of_version_2_are_typed(graphs: Service) -> None:
    with sync_client(graphs) as client:
        parts = list(client.runs.stream(None, "asking_within", input=HI, stream_subgraphs=True, version="v2"))
    assert [(part["type"], len(part["ns"])) for part in parts] == [
        ("metadata", 0),
        ("values", 0),
        ("values", 1),
        ("values", 1),
        ("values", 0),
    ]
    assert [one["value"] for one in parts[-1]["interrupts"]] == [{"question": "Shall I?"}]


@each_client
def test_a_model_answers_too(client: Any, graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello", " there"))
    ran = client(url(graphs), None, "openai/gpt-4o-mini", input=HI, stream_mode="messages-tuple")
    assert "".join(chunk["content"] for chunk, _ in ran.of("messages")) == "Hello there"
    upstream.request()


WAIT = JS + "tell(await client.runs.wait(asked.thread, asked.graph, asked.payload));"


def test_who_waits_gets_the_state_at_the_end(graphs: Service) -> None:
    on = thread()
    with sync_client(graphs) as client:
        waits = client.runs.wait(on, "asking", input=HI)
        assert isinstance(waits, dict)
        assert [one["value"] for one in waits["__interrupt__"]] == [{"question": "Shall I?"}]
        state = client.runs.wait(on, "asking", command={"resume": "no"})
        assert isinstance(state, dict)
        assert [message["content"] for message in state["messages"]] == ["Hi", "You said no."]
    ((state,),) = told(WAIT, url(graphs), asked_of(None, "writing", input=HI))
    assert state["been"] == ["write"]


WAIT_FOR_NOTHING = JS + "await client.runs.wait(null, 'failing', asked.payload).catch((error) => tell(error.message));"


def test_who_waits_for_what_fails_is_told_as_the_sdks_raise_it(graphs: Service) -> None:
    with sync_client(graphs) as client:
        with pytest.raises(Exception, match=r"^graph_failed: The node 'fail' failed"):
            client.runs.wait(None, "failing", input=HI)
        kept = client.runs.wait(None, "failing", input=HI, raise_error=False)
    assert isinstance(kept, dict)
    assert kept["__error__"]["error"] == "graph_failed"
    ((text,),) = told(WAIT_FOR_NOTHING, url(graphs), asked_of(None, "failing", input=HI))
    assert text.startswith("graph_failed: The node 'fail' failed")


# --- Errors ----------------------------------------------------------------------------------------------------------

ERRORS = """
for (const [graph, payload] of [["nobody", {}], ["speaking", { webhook: "https://example.org" }]]) {
  try { await follow(client.runs.stream(null, graph, payload)); } catch (error) { tell(error.status, error.message); }
}
"""


def test_what_is_wrong_with_a_request_is_told_by_a_status(graphs: Service) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        in_python(url(graphs), None, "nobody", input=HI)
    with pytest.raises(UnprocessableEntityError, match="webhooks") as caught:
        in_async_python(url(graphs), None, "speaking", input=HI, webhook="https://example.org")
    assert caught.value.code == "invalid_request"
    with pytest.raises(UnprocessableEntityError, match="checkpointer"):
        in_python(url(graphs), thread(), "speaking", input=HI)
    (first, _), (second, text) = told(JS + ERRORS, url(graphs), "{}")
    assert (first, second) == (404, 422)
    assert "webhooks" in text


@each_client
def test_an_error_before_the_first_token_is_told(client: Any, graphs: Service, upstream: Upstream) -> None:
    upstream.refuse(500, {"error": {"message": "no"}})
    ran = client(url(graphs), None, "speaking", input=HI, stream_mode="messages-tuple")
    assert ran.names == ["metadata", "error", "end"]
    (error,) = ran.of("error")
    assert error["error"] == "graph_failed"
    assert "speak" in error["message"]
    assert ran.parts[-1].data["status"] == "error"
    upstream.request()


@each_client
def test_an_error_behind_the_first_token_is_told(client: Any, graphs: Service, upstream: Upstream) -> None:
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Here"), b"data: {\n\n")
    ran = client(url(graphs), None, "speaking", input=HI, stream_mode="messages-tuple")
    assert said(ran.of("messages")) == {"speak": "Here"}
    assert ran.names[-2:] == ["error", "end"]
    assert ran.of("error")[0]["error"] == "graph_failed"
    upstream.request()
