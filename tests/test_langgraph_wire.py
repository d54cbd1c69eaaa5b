"""LangGraph's wire as a fold: golden bytes, the messages it makes anew, resuming at each of its ids; and its requests.

Its frames are read as its SDK reads them, by the SDK's own decoder.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessageChunk
from langgraph_sdk.schema import StreamPart
from langgraph_sdk.sse import BytesLineDecoder, SSEDecoder
from msgspec import UNSET

from streaming.errors import RequestError
from streaming.events import (
    Custom,
    Event,
    Interrupt,
    Reset,
    Token,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Updates,
    Values,
)
from streaming.log import Cursor
from wires.fold import Asked
from wires.langgraph import Numbered, frame, tell
from wires.langgraph_request import decode
from wires.langgraph_runs import ID

from .access import CRON, KEYS, WEB
from .asgi import ask, ask_json, make_app, run, run_ahead
from .folds import AGENT, HELLO, INNER, PARIS, RUN, RUNS, call, check_golden, done, folded, log_of, piecemeal, start

EVERY = ["values", "updates", "messages-tuple", "custom", "tasks", "checkpoints", "debug", "events"]
# What was asked for in each of three ways: all there is; messages as they stand; what a state holds, and no more.
WAYS: dict[str, dict[str, Any]] = {
    "langgraph": {"modes": EVERY, "subgraphs": True},
    "langgraph-messages": {"modes": ["messages"], "subgraphs": False},
    "langgraph-values": {"modes": ["values"], "subgraphs": False},
}


def about(way: str = "langgraph", **other: Any) -> dict[str, Any]:
    return {"assistant": "agent", "thread": "thread-1", "metadata": {}, **WAYS[way], **other}


def form(way: str = "langgraph", skip: int = 0, **other: Any) -> Numbered:
    return Numbered(RUN, about(way, **other), skip=skip)


def parts(told: bytes) -> list[StreamPart]:
    """Read frames as the SDK does."""
    lines, decoder = BytesLineDecoder(), SSEDecoder()
    read = (decoder.decode(bytes(line)) for line in lines.decode(told))
    return [part for part in read if part]


def told(events: Iterable[Event], way: str = "langgraph", **other: Any) -> list[tuple[str, Any]]:
    return [(part.event, part.data) for part in parts(folded(form(way, **other), events))]


def joined(told: Sequence[StreamPart]) -> list[tuple[str, Any]]:
    """Return parts as it comes to: adjacent chunks of a message joined, and how it stood in between left out."""
    out: list[tuple[str, Any]] = []
    newest = {part.data[0]["id"]: place for place, part in enumerate(told) if part.event == "messages/partial"}
    for place, (event, data, *_) in enumerate(told):
        last = out[-1] if out else ("", None)
        if event == "messages/partial" and newest[data[0]["id"]] > place:
            continue
        if event.startswith("messages") and "/" not in event and last[0] == event and goes_on(last[1][0], data[0]):
            out[-1] = event, [added(last[1][0], data[0]), data[1]]
            continue
        out.append((event, data))
    return out


def goes_on(one: Any, other: Any) -> bool:
    """Tell whether two chunks are of one message and of one kind, as deltas that may be joined are."""
    shape = [(chunk["id"], bool(chunk["content"]), [*chunk["additional_kwargs"]]) for chunk in (one, other)]
    if shape[0] != shape[1] or other["type"] != "AIMessageChunk":
        return False
    calls = [[(c["index"]) for c in chunk["tool_call_chunks"]] for chunk in (one, other)]
    return calls[0] == calls[1] and not any(c["id"] for c in other["tool_call_chunks"])


def added(one: Any, other: Any) -> Any:
    whole = json.loads(json.dumps(one))
    whole["content"] += other["content"]
    for name, text in other["additional_kwargs"].items():
        whole["additional_kwargs"][name] += text
    for mine, more in zip(whole["tool_call_chunks"], other["tool_call_chunks"], strict=True):
        mine["args"] += more["args"]
    return whole


# --- Bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_told_in_these_bytes(way: str, name: str) -> None:
    check_golden(way, name, b"".join(piecemeal(form(way), RUNS[name])))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RUNS)
def test_who_comes_late_is_told_the_same(way: str, name: str) -> None:
    live = parts(b"".join(piecemeal(form(way), RUNS[name])))
    late = parts(folded(form(way), RUNS[name]))
    assert joined(late) == joined(live)
    assert late[-1].id == live[-1].id


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RUNS)
def test_who_was_cut_off_goes_on_behind_any_frame(way: str, name: str) -> None:
    live = parts(b"".join(piecemeal(form(way), RUNS[name])))
    assert len({part.id for part in live}) == len(live), "an id is of one frame"
    for seen, part in enumerate(live, 1):
        found = ID.fullmatch(part.id or "")
        assert found
        after, skip = int(found[2]), int(found[3] or 0)
        back = form(way, skip)
        back.pass_over(log_of(RUNS[name]), after)
        rest = parts(folded_from(back, RUNS[name], after))
        assert joined([*live[:seen], *rest]) == joined(live), part.id


def folded_from(form: Numbered, events: Iterable[Event], after: int) -> bytes:
    """As `folded`, but nothing comes behind what the viewer was told last."""
    cursor, out = Cursor(log_of(events), after), b""
    while not cursor.ended:
        out += form.take(cursor)
    return out


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_one_end_and_nothing_behind_it(name: str) -> None:
    names = [event for event, _ in told(RUNS[name])]
    assert names.index("end") == len(names) - 1
    failed = name.startswith(("error", "cancelled", "disconnected", "draining", "reset"))
    assert names[-2:-1] == ["error"] if failed else "error" not in names
    assert names[0] == ("error" if name == "error-in-line" else "metadata")


def test_each_event_becomes_what_the_table_says() -> None:
    for event, names in (
        (Token("Hi"), ["messages"]),
        (ToolCallDelta(0, "", "call_0", "now"), ["messages"]),
        (ToolResult("call_0", "now", "noon"), ["messages"]),
        (Values((), {}), ["values"]),
        (Custom(("within:1a2b", "deep:3c"), 1), ["custom|within:1a2b|deep:3c"]),
        (Interrupt("i1", None), ["updates", "values"]),
        (Reset("upstream_incomplete"), []),
        (done(), []),
    ):
        ending = [] if event.name == "done" else [done()]
        assert [name for name, _ in told([start(), event, *ending])] == ["metadata", *names, "end"], event


def test_subgraphs_are_told_where_they_were_asked_for() -> None:
    events = [start(), Updates(("within:1a2b",), {"a": 1}), Token("Hi", **INNER), Token("you", **AGENT), done()]
    assert [name for name, _ in told(events)] == [
        "metadata",
        "updates|within:1a2b",
        "messages|within:1a2b",
        "messages",
        "end",
    ]
    assert [name for name, _ in told(events, subgraphs=False)] == ["metadata", "messages", "end"]


def test_a_name_that_ends_a_line_ends_no_line_of_ours() -> None:
    assert (
        frame("updates", b"{}", ("a\nid: 1\r\ndata: 2\u2028b\ud800",))
        == b"event: updates|a id: 1 data: 2 b?\ndata: {}\n\n"
    )


# --- Messages --------------------------------------------------------------------------------------------------------


def chunks(events: Iterable[Event]) -> dict[str, AIMessageChunk]:
    """Put together the chunks of each message, as LangChain does."""
    whole: dict[str, AIMessageChunk] = {}
    for name, data in told([start(), *events, done()]):
        if name.startswith("messages") and data[0]["type"] == "AIMessageChunk":
            chunk = AIMessageChunk(**data[0])
            whole[data[0]["id"]] = whole[data[0]["id"]] + chunk if data[0]["id"] in whole else chunk
    return whole


def texts(*events: Event) -> list[str]:
    return [str(chunk.content) for chunk in chunks(events).values()]


def test_chunks_put_together_are_the_message() -> None:
    events = [*HELLO, *call(0, "weather", PARIS, '{"city"', ':"Paris"}'), *call(1, "now", {}, "{}")]
    (whole,) = chunks(events).values()
    assert whole.content == "Hello, world"
    assert whole.tool_calls == [
        {"name": "weather", "args": PARIS, "id": "call_0", "type": "tool_call"},
        {"name": "now", "args": {}, "id": "call_1", "type": "tool_call"},
    ]


def test_a_call_that_was_not_streamed_is_one_chunk() -> None:
    (whole,) = chunks([ToolCall("call_7", "weather", PARIS, **AGENT)]).values()
    assert whole.tool_calls == [{"name": "weather", "args": PARIS, "id": "call_7", "type": "tool_call"}]


def test_messages_as_they_stand_are_what_their_chunks_come_to() -> None:
    events = [start(), *HELLO, *call(0, "weather", PARIS, '{"city"', ':"Paris"}'), done()]
    _, *partial, (name, (message,)), _ = told(events, "langgraph-messages")
    assert [name for name, _ in partial] == ["messages/metadata", *["messages/partial"] * 2]
    (whole,) = chunks(events[1:-1]).values()
    assert name == "messages/complete"
    assert (message["content"], message["tool_calls"], message["id"]) == (whole.content, whole.tool_calls, whole.id)


def test_how_messages_stand_is_told_once_of_what_is_ready() -> None:
    """Else who comes late to nodes that speak at once would get each word with all words before it."""
    spoken = [says(f" {number}", node) for number in range(1000) for node in ("one", "two")]
    partial = [
        data[0]["content"] for name, data in told([start(), *spoken, done()], "langgraph-messages") if "partial" in name
    ]
    assert partial == ["".join(f" {number}" for number in range(1000))] * 2


def says(text: str, node: str = "model") -> Token:
    return Token(text, node=node)


MODEL_ENDS = Updates((), {"model": {"messages": []}})


def test_what_one_node_says_at_a_time_is_one_message() -> None:
    assert texts(says("A"), says("B")) == ["AB"]
    assert texts(says("A"), MODEL_ENDS, says("B")) == ["A", "B"]
    assert texts(says("A"), Updates((), {"other": None}), says("B")) == ["AB"]
    assert texts(says("A"), Updates(("within:1a2b",), {"model": None}), says("B")) == ["AB"]
    assert texts(says("A"), says("B", "other"), says("C")) == ["AC", "B"]
    assert texts(Token("A", **INNER), Token("B", **INNER | {"ns": ("within:9",)}), Token("C", **INNER)) == ["AC", "B"]


def test_behind_a_whole_call_a_node_begins_a_new_message() -> None:
    asks = call(0, "weather", PARIS, '{"city":"Paris"}', **AGENT)
    also = call(1, "weather", PARIS, '{"city":"Paris"}', **AGENT)
    assert texts(says("A"), *asks, says("B")) == ["A", "B"]
    assert len(chunks([*asks, *also])) == 2
    assert len(chunks([asks[0], also[0], asks[-1], also[-1]])) == 1, "calls of one message are whole together"
    assert texts(Token("A"), *call(0, "weather", PARIS, "{}"), Token("B")) == ["AB"], "a model's answer is one message"


def test_a_call_that_is_whole_only_after_its_message_is_told_once() -> None:
    *streamed, late = call(0, "weather", PARIS, '{"city":"Paris"}', **AGENT)
    whole = chunks([*streamed, MODEL_ENDS, late])
    assert [chunk.tool_calls[0]["args"] for chunk in whole.values()] == [PARIS]
    events = [start(), *streamed, MODEL_ENDS, late, done()]
    (complete,) = [data for name, data in told(events, "langgraph-messages") if name == "messages/complete"]
    assert complete[0]["tool_calls"][0]["args"] == PARIS


def test_a_call_that_was_cut_off_is_none_to_be_made() -> None:
    (complete,) = [data for name, data in told(RUNS["tool-cut"], "langgraph-messages") if name == "messages/complete"]
    assert (complete[0]["tool_calls"], complete[0]["invalid_tool_calls"][0]["args"]) == ([], '{"ci')


def test_behind_a_tools_answer_a_model_begins_a_new_message() -> None:
    assert texts(Token("A"), *call(0, "now", {}, "{}"), ToolResult("call_0", "now", "noon"), Token("B")) == ["A", "B"]


def test_ids_are_counted_through_and_name_the_run() -> None:
    ids = [data[0]["id"] for name, data in told(RUNS["tool-answered"]) if name == "messages"]
    assert [*dict.fromkeys(ids)] == [f"run-{RUN}-{n}" for n in (1, 2, 3)]


def test_a_message_says_where_it_is_from() -> None:
    events = [start(thread="thread-1"), Token("Hi", **INNER), done()]
    (_, metadata) = told(events, metadata={"my_tag": 1, "run_id": "mine"})[1][1]
    assert metadata == {
        "my_tag": 1,
        "run_id": "01234567-89ab-cdef-0123-456789abcdef",
        "graph_id": "agent",
        "assistant_id": "agent",
        "thread_id": "thread-1",
        "langgraph_node": "writer",
        "langgraph_checkpoint_ns": "within:1a2b",
    }


@pytest.mark.parametrize("content", ["noon", ["a", "b"], {"hour": 12}, 12, None], ids=repr)
def test_what_a_tool_answers_is_text_or_blocks(content: Any) -> None:
    (_, (message, _)) = told([start(), ToolResult("call_0", "now", content), done()])[1]
    assert message["content"] == (content if isinstance(content, str | list) else json.dumps(content).replace(" ", ""))
    assert (message["type"], message["tool_call_id"], message["name"]) == ("tool", "call_0", "now")


# --- Interrupts ------------------------------------------------------------------------------------------------------

FIRST, SECOND = {"value": "A?", "id": "i1"}, {"value": "B?", "id": "i2"}


def test_the_values_behind_an_interrupt_have_all_of_them() -> None:
    events = [
        Values((), {"n": 1}),
        Interrupt("i1", "A?"),
        Values((), {"n": 1}),
        Interrupt("i2", "B?"),
        Values((), {"n": 1}),
    ]
    assert told([start(), *events, done("interrupt")])[1:-1] == [
        ("values", {"n": 1}),
        ("updates", {"__interrupt__": [FIRST]}),
        ("values", {"n": 1, "__interrupt__": [FIRST]}),
        ("updates", {"__interrupt__": [SECOND]}),
        ("values", {"n": 1, "__interrupt__": [FIRST, SECOND]}),
    ]


def test_an_interrupt_that_no_values_follow_is_told_in_the_end() -> None:
    events = [start(), Values((), {"n": 1}), Interrupt("i1", "A?"), done("interrupt")]
    assert told(events, "langgraph-values")[1:-1] == [
        ("values", {"n": 1}),
        ("values", {"n": 1, "__interrupt__": [FIRST]}),
    ]


def test_a_graph_that_stops_where_it_was_compiled_to_asks_nothing() -> None:
    assert told([start(), Values((), [1]), done("interrupt")])[1:-1] == [
        ("values", [1]),
        ("updates", {"__interrupt__": []}),
        ("values", {"__interrupt__": []}),
    ]


# --- Requests --------------------------------------------------------------------------------------------------------


def asked(thread: str | None = "t", /, *, waits: bool = False, **body: Any) -> Asked:
    whole = {"assistant_id": "agent", **body}
    return decode(json.dumps(whole).encode(), thread, lambda run: form(), longest=300, waits=waits)


HI = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("body", "native"),
    [
        ({}, {"model": "langgraph/agent", "thread_id": "t", "input": None, "stream_mode": ["values"]}),
        ({"input": HI}, {"input": HI, "resume": UNSET, "messages": None}),
        ({"input": None, "command": {"resume": "yes"}}, {"input": UNSET, "resume": "yes"}),
        ({"command": {"resume": False, "goto": [], "update": None, "graph": None}}, {"resume": False}),
        ({"command": None}, {"input": None}),
        ({"command": {"resume": None}, "input": HI}, {"input": HI}),
        ({"stream_mode": "updates"}, {"stream_mode": ["updates"], "events": False}),
        ({"stream_mode": ["messages-tuple", "messages"]}, {"stream_mode": ["messages", "updates"]}),
        ({"stream_mode": ["updates", "messages", "updates"]}, {"stream_mode": ["updates", "messages"]}),
        ({"stream_mode": []}, {"stream_mode": ["values"]}),
        ({"stream_mode": "events"}, {"stream_mode": None, "events": True}),
        ({"context": {"name": "Ann"}}, {"context": {"name": "Ann"}}),
        ({"assistant_id": "langchain/chain"}, {"model": "langchain/chain", "stream_mode": None}),
    ],
    ids=str,
)
def test_a_request_becomes_a_native_one(body: dict[str, Any], native: dict[str, Any]) -> None:
    chat = asked(**body).chat
    assert {name: getattr(chat, name) for name in native} == native


@pytest.mark.parametrize(
    ("body", "config"),
    [
        ({"config": {}}, None),
        ({"config": {"tags": ["a"], "recursion_limit": 5}}, {"tags": ["a"], "recursion_limit": 5}),
        ({"config": {"configurable": {"thread_id": "t"}}}, None),
        ({"config": {"configurable": {"thread_id": "t", "my": 1}, "metadata": None}}, {"configurable": {"my": 1}}),
        ({"metadata": {"a": 1}, "config": {"metadata": {"a": 2, "b": 3}}}, {"metadata": {"a": 1, "b": 3}}),
        ({"checkpoint_id": "c1"}, {"configurable": {"checkpoint_id": "c1"}}),
        (
            {"checkpoint": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "c1", "checkpoint_map": None}},
            {"configurable": {"checkpoint_ns": "", "checkpoint_id": "c1"}},
        ),
    ],
    ids=str,
)
def test_a_config_is_langchains_and_the_thread_is_the_paths(body: dict[str, Any], config: Any) -> None:
    told = asked(**body).chat.config
    told_by_field = {name: getattr(told, name) for name in config} if told and config else told
    assert told_by_field == config


def test_what_is_harmless_is_passed_over() -> None:
    harmless = {
        "stream_resumable": True,
        "if_not_exists": "create",
        "durability": "sync",
        "checkpoint_during": True,
        "multitask_strategy": "enqueue",
        "on_completion": "keep",
        "interrupt_before": [],
        "interrupt_after": None,
        "webhook": None,
        "after_seconds": 0,
        "feedback_keys": [],
        "langsmith_tracer": {"project_name": "p"},
        "strict_resume": True,
        "a_field_to_come": 1,
    }
    assert asked(input=HI, **harmless).chat == asked(input=HI).chat


@pytest.mark.parametrize(("on_disconnect", "linger"), [(None, None), ("cancel", 0), ("continue", 300)])
def test_whether_a_run_goes_on_without_its_client_may_be_said(on_disconnect: str | None, linger: float | None) -> None:
    assert asked(on_disconnect=on_disconnect).linger == linger


def test_what_is_to_be_told_is_kept_with_the_run() -> None:
    assert asked(None, stream_mode=["messages-tuple"], stream_subgraphs=True, metadata={"a": 1}).about == {
        "assistant": "agent",
        "thread": None,
        "modes": ["messages-tuple"],
        "subgraphs": True,
        "metadata": {"a": 1},
    }


def test_who_waits_is_told_the_state_at_the_end_alone() -> None:
    wanted = asked(stream_mode="updates", waits=True)
    assert (wanted.streams, wanted.chat.stream_mode, wanted.about["modes"]) == (False, ["values"], ["values"])


def test_a_model_is_given_its_messages() -> None:
    said = [
        {"type": "human", "content": "Hi", "id": "1", "additional_kwargs": {}},
        {"type": "ai", "content": "", "tool_calls": [{"name": "now", "args": {"zone": "CET"}, "id": "c1"}]},
        {"role": "tool", "content": "noon", "tool_call_id": "c1"},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
    ]
    chat = asked(None, assistant_id="openai/gpt-4o-mini", input={"messages": said}, stream_mode="messages-tuple").chat
    assert chat.model == "openai/gpt-4o-mini"
    assert chat.messages
    assert [message.role for message in chat.messages] == ["user", "assistant", "tool", "user"]
    (asks,) = chat.messages[1].tool_calls or ()
    assert (asks.id, asks.function.name, asks.function.arguments) == ("c1", "now", '{"zone":"CET"}')


def model(**body: Any) -> dict[str, Any]:
    return {"assistant_id": "scripted/hello", "input": HI, "stream_mode": "messages", **body}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"multitask_strategy": "reject"}, "multitask_strategy"),
        ({"multitask_strategy": "interrupt"}, "multitask_strategy"),
        ({"multitask_strategy": "rollback"}, "multitask_strategy"),
        ({"command": {"update": {"a": 1}}}, "command"),
        ({"command": {"goto": "node"}}, "command"),
        ({"command": {"resume": 1}, "input": HI}, "command"),
        ({"stream_mode": ["events", "values"]}, "stream_mode"),
        ({"stream_mode": "tools"}, "stream_mode"),
        ({"interrupt_before": "*"}, "interrupt_before"),
        ({"interrupt_after": ["node"]}, "interrupt_after"),
        ({"metadata": {"note": "x" * 17_000}}, "metadata"),
        ({"webhook": "https://example.org"}, "webhook"),
        ({"after_seconds": 5}, "after_seconds"),
        ({"feedback_keys": ["score"]}, "feedback_keys"),
        ({"on_completion": "delete"}, "on_completion"),
        ({"on_disconnect": "explode"}, "on_disconnect"),
        ({"config": {"configurable": {"thread_id": "other"}}}, "config"),
        ({"checkpoint": {"thread_id": "other"}}, "config"),
        ({"config": {"callbacks": [1]}}, "config"),
        ({"config": {"configurable": 5}}, None),
        ({"assistant_id": None}, "assistant_id"),
        (model(input={}), "input"),
        (model(input="Hi"), "input"),
        (model(input={"messages": ["Hi"]}), "input"),
        (model(input={"messages": [{"role": "user", "content": "Hi", "tool_calls": 5}]}), "messages"),
        (model(input={"messages": [{"content": "Hi"}]}), "messages"),
        (model(stream_mode="values"), "stream_mode"),
        (model(config={"tags": ["a"]}), "config"),
        (model(context={"a": 1}), "context"),
        (model(command={"resume": 1}, input=None), "input"),
    ],
    ids=str,
)
def test_what_is_not_done_is_refused(body: dict[str, Any], field: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        asked(**body)
    assert (caught.value.code, caught.value.field) == ("invalid_request", field)
    assert tell(caught.value).status_code == 422


# --- Endpoints -------------------------------------------------------------------------------------------------------

LG = "/lg/runs/stream"


def refused(method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> tuple[int, str]:
    """Return the status and the detail of an answer in the server's shape."""

    async def exchange() -> Any:
        return await ask(await make_app(), method, path, headers={"content-type": content_type}, body=body)

    answer = run(exchange())
    told = json.loads(answer.body)
    assert {*told} == {"detail", "code"}
    assert answer.headers["content-type"] == "application/json"
    return answer.status, told["detail"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", LG, b"", 422),
        ("POST", LG, b"{", 422),
        ("POST", LG, b"[]", 422),
        ("POST", LG, b'{"assistant_id": "nobody"}', 404),
        ("POST", "/lg/threads/t/runs/stream", b'{"assistant_id": "nobody"}', 404),
        ("POST", "/lg/runs/wait", b'{"assistant_id": "nobody"}', 404),
        ("POST", "/lg/threads", b'{"supersteps": [{}]}', 422),
        ("POST", "/lg/threads", b'{"ttl": {"ttl": 5}}', 422),
        ("POST", "/lg/threads", b'{"thread_id": 5}', 422),
        ("GET", f"/lg/runs/{RUN}", b"", 404),
        ("GET", f"/lg/runs/{RUN}/stream", b"", 404),
        ("POST", f"/lg/threads/t/runs/{RUN}/cancel", b"", 404),
        ("GET", "/lg/threads/t/runs/no-run/stream", b"", 404),
        ("GET", "/lg/threads/t/state", b"", 404),
        ("POST", "/lg/threads/search", b"{}", 404),
        ("POST", "/lg/assistants/search", b"{}", 404),
        ("DELETE", "/lg/threads/t", b"", 404),
        ("GET", "/lg/", b"", 404),
    ],
)
def test_a_fault_is_told_in_the_servers_shape(method: str, path: str, body: bytes, status: int) -> None:
    assert refused(method, path, body)[0] == status


def test_a_body_that_is_no_json_is_refused_as_such() -> None:
    assert refused("POST", LG, b"a=1", "application/x-www-form-urlencoded")[0] == 415


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["input", "command", "stream_mode", "config", "context", "metadata", "checkpoint", "interrupt_before", "webhook"]
)


@settings(max_examples=150, deadline=None)
@given(
    assistant=JSON_VALUES | st.sampled_from(["a/b", "scripted/x"]),
    fields=st.dictionaries(FIELDS, JSON_VALUES, max_size=4),
)
def test_no_request_is_more_than_refused(assistant: Any, fields: dict[str, Any]) -> None:
    """Whatever it holds: nobody is called so here."""
    status, _ = refused("POST", LG, json.dumps({"assistant_id": assistant, **fields}).encode())
    assert status in (404, 422)


def test_to_create_a_thread_is_to_name_it() -> None:
    async def created(**body: Any) -> Any:
        answer = await ask_json(await make_app(), "/lg/threads", **body)
        assert answer.status == 200
        return json.loads(answer.body)

    async def both() -> tuple[Any, Any]:
        return await asyncio.gather(created(), created(thread_id="mine", metadata={"a": 1}, if_exists="do_nothing"))

    made, mine = run(both())
    assert len(made["thread_id"]) == 36
    assert (mine["thread_id"], mine["metadata"], mine["status"], mine["values"]) == ("mine", {"a": 1}, "idle", None)


# Whose runs they are


ASKED = {"assistant_id": "scripted/echo", "input": HI, "stream_mode": "messages-tuple"}


def asked_by(key: str, method: str, path: str, body: bytes = b"") -> Any:
    async def exchange() -> Any:
        headers = {"content-type": "application/json", "x-api-key": key}
        return await ask(await make_app(SIDESTREAM_API_KEYS=KEYS), method, path, headers=headers, body=body)

    return exchange()


def test_a_run_is_its_owners_alone() -> None:
    async def asked() -> None:
        ran = await asked_by(WEB, "POST", LG, json.dumps(ASKED).encode())
        assert ran.status == 200
        path = "/lg" + ran.headers["content-location"]
        for method, below in (("GET", ""), ("GET", "/stream"), ("POST", "/cancel")):
            status = {key: (await asked_by(key, method, path + below)).status for key in (WEB, CRON, "wrong")}
            assert status == {WEB: 202 if method == "POST" else 200, CRON: 404, "wrong": 401}, below
        assert (await asked_by("wrong", "POST", "/lg/threads", b"{}")).status == 401

    run_ahead(asked())


def test_who_has_seen_all_of_a_run_gets_an_empty_stream_and_who_asks_for_the_head_no_body() -> None:
    """The SDKs take any other answer for a failure, and come again."""

    async def asked() -> None:
        ran = await ask_json(await make_app(), LG, **ASKED)
        path, last = "/lg" + ran.headers["location"], parts(ran.body)[-1].id
        for method, seen in (("GET", last), ("HEAD", "")):
            answer = await ask(await make_app(), method, path, headers={"last-event-id": seen or ""})
            assert (answer.status, answer.body) == (200, b"")
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["location"] == ran.headers["location"]
        again = await ask(await make_app(), "GET", f"{path}?stream_mode=messages-tuple")
        assert again.headers["location"] == f"{ran.headers['location']}?stream_mode=messages-tuple"
        assert joined(parts(again.body)) == joined(parts(ran.body))

    run_ahead(asked())


def test_a_key_stands_for_what_was_asked_by_one_wire() -> None:
    """Its run is told as another's request never asked to be told, or not at all."""
    body = json.dumps({**ASKED, "model": "scripted/echo", "messages": HI["messages"], "stream": True}).encode()

    async def asked() -> None:
        headers = {"content-type": "application/json", "idempotency-key": "one"}
        for path, status in (("/v1/chat/completions", 200), (LG, 409), ("/v1/chat/completions", 200)):
            assert (await ask(await make_app(), "POST", path, headers=headers, body=body)).status == status, path

    run_ahead(asked())
