"""AG-UI's wire by itself: its bytes for every kind of run, held against AG-UI's own models, and what requests mean."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from ag_ui.core import Event as AGUIEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda
from langchain_core.runnables.utils import AddableDict
from msgspec import UNSET
from pydantic import BaseModel, TypeAdapter

from streaming.errors import Fault, RequestError, fault
from streaming.events import (
    Cancelled,
    Event,
    Interrupt,
    Reasoning,
    Reset,
    Tasks,
    Token,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Updates,
    Values,
)
from streaming.request import Function, RunRequest, Takes, Tool
from wires import ag_ui
from wires.ag_ui import WIRE, Events
from wires.ag_ui_request import Given
from wires.fold import Folded

from .asgi import ask, ask_json, make_app, run
from .folds import ESTIMATE, INNER, RUN, RUNS, call, check_golden, done, error, folded, log_of, piecemeal, start

USER: dict[str, Any] = {"id": "u1", "role": "user", "content": "Hi"}
THOUGHT: dict[str, Any] = {"id": "r0", "role": "reasoning", "content": "Hm."}
GIVEN = Given("thread-1", "run-1", None, [USER], ["u1"], {}, [], [], False)
EVENT: TypeAdapter[Any] = TypeAdapter(AGUIEvent)


def encoder(given: Given = GIVEN) -> Events:
    return Events(RUN, given)


def bytes_of(events: Sequence[Event], given: Given = GIVEN) -> bytes:
    return folded(Folded(encoder(given), merges=False), events)


def parsed(stream: bytes) -> list[dict[str, Any]]:
    frames = stream.decode().split("\n\n")
    assert frames.pop() == ""
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def told(*events: Event, given: Given = GIVEN) -> list[dict[str, Any]]:
    """What a run of these events is, without how it begins; ids of messages without the run's."""
    pieces = piecemeal(Folded(encoder(given), merges=False), [start("langgraph", "graph"), *events])
    first, *rest = parsed(b"".join(pieces).replace(f"{RUN}-".encode(), b"#"))
    assert first["type"] == "RUN_STARTED"
    return rest


def kinds(frames: list[dict[str, Any]], *names: str) -> list[str]:
    """The types, with what they are about; of these names alone, if there are any."""
    about = ("messageId", "toolCallId", "stepName", "name")
    all_kinds = [" ".join([one["type"], *(str(one[key]) for key in about if key in one)]) for one in frames]
    return [kind for kind in all_kinds if not names or kind.startswith(names)]


# --- The bytes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run_has_its_bytes(name: str) -> None:
    check_golden("ag_ui", name, bytes_of(RUNS[name]))


@pytest.mark.parametrize("name", RUNS)
def test_agui_knows_every_event_and_all_its_fields(name: str) -> None:
    for frame in parsed(bytes_of(RUNS[name])):
        check_known(event := EVENT.validate_python(frame))
        assert json.loads(event.model_dump_json(by_alias=True)) == frame  # no null, nothing by another name


def check_known(value: Any) -> None:
    """Check that a model, and those within it, have no field that AG-UI does not know."""
    if isinstance(value, BaseModel):
        assert not value.model_extra, f"{value} has {value.model_extra}"
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            check_known(one)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_says_the_same_piecemeal_and_at_once(name: str) -> None:
    at_once = parsed(folded(Folded(encoder()), RUNS[name]))
    assert joined(parsed(b"".join(piecemeal(Folded(encoder()), RUNS[name])))) == joined(at_once)


def joined(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put deltas of one message or call together where they follow one another."""
    out: list[dict[str, Any]] = []
    for frame in frames:
        if out and "delta" in frame and out[-1] | {"delta": ""} == frame | {"delta": ""}:
            out[-1]["delta"] += frame["delta"]
        else:
            out.append({**frame})
    return out


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("after", range(4))
def test_a_stream_can_be_taken_up_behind_any_event(name: str, after: int) -> None:
    pieces = piecemeal(Folded(encoder(), merges=False), RUNS[name])
    form = Folded(encoder(), merges=False)
    form.pass_over(log_of(RUNS[name]), min(after, len(pieces)))
    assert folded(form, RUNS[name], min(after, len(pieces))) == b"".join(pieces[after:])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_begins_and_ends_as_every_run_and_leaves_nothing_open(name: str) -> None:
    check_order(parsed(bytes_of(RUNS[name])))


def check_order(frames: list[dict[str, Any]]) -> None:
    """Check what AG-UI demands of the order: one begin, one end, and each thing open between its own two."""
    first, last = frames[0], frames[-1]
    assert (first["type"], first["threadId"], first["runId"]) == ("RUN_STARTED", "thread-1", "run-1")
    assert last["type"] in ("RUN_FINISHED", "RUN_ERROR")
    assert [one["type"] for one in frames if one["type"].startswith("RUN_")] == ["RUN_STARTED", last["type"]]
    opened: set[tuple[str, str]] = set()
    for frame in frames[1:-1]:
        kind, _, act = frame["type"].rpartition("_")
        thing = kind, str(frame.get("messageId") or frame.get("toolCallId") or frame.get("stepName"))
        if act in ("START", "STARTED"):
            assert thing not in opened
            opened.add(thing)
        elif act in ("CONTENT", "ARGS", "END", "FINISHED"):
            assert thing in opened
            opened -= {thing} if act in ("END", "FINISHED") else set()
    assert not opened or last["type"] == "RUN_ERROR"


def any_run(seed: int) -> list[Event]:
    """A run of events in any order that has no sense but what each says of itself."""
    rng = random.Random(seed)
    places: list[dict[str, Any]] = [{}, {"node": "a"}, {"node": "b"}, INNER, {"node": "deep", "ns": ("a:1", "b:2")}]
    events: list[Event] = [start()]
    calls = 0
    for _ in range(rng.randrange(40)):
        where = rng.choice(places)
        ns = where.get("ns", ())
        kind = rng.randrange(9)
        if kind < 2:
            events.append(Token("t", **where))
        elif kind == 2:
            events.append(Reasoning("r", **where))
        elif kind == 3:
            events += call(calls, "weather", {}, "{", "}", **where)[: rng.choice([1, 2, 4])]
            calls += 1
        elif kind == 4:
            events.append(ToolResult(f"call_{rng.randrange(9)}", "weather", "clear", **where))
        elif kind == 5:
            events.append(Updates(ns, {rng.choice("ab"): {}, "__metadata__": {}}))
        elif kind == 6:
            task = {"id": str(rng.randrange(3)), "name": rng.choice("ab")}
            events.append(Tasks(ns, task | ({"input": {}} if rng.random() < 0.5 else {"result": {}})))
        elif kind == 7:
            events.append(Values(ns, {"a": 1}))
        elif rng.random() < 0.2:
            events += [Reset("upstream_incomplete"), start()]
    return [*events, rng.choice([done(), done("length"), done("interrupt"), error(), stopped()])]


def stopped() -> Cancelled:
    return Cancelled(reason="requested", usage=ESTIMATE)


@pytest.mark.parametrize("seed", range(200))
def test_whatever_a_run_says_is_in_order(seed: int) -> None:
    check_order(parsed(bytes_of(any_run(seed))))


# --- Messages, calls and what takes them back ------------------------------------------------------------------------


def test_a_message_is_of_one_node_and_ends_with_it() -> None:
    frames = told(Token("A", node="one"), Token("B", node="two"), Updates((), {"one": {}}), Token("C", node="two"))
    assert kinds(frames, "TEXT", "STEP") == [
        "STEP_STARTED one",
        "TEXT_MESSAGE_START #1",
        "TEXT_MESSAGE_CONTENT #1",
        "STEP_STARTED two",
        "TEXT_MESSAGE_START #2",
        "TEXT_MESSAGE_CONTENT #2",
        "TEXT_MESSAGE_END #1",
        "STEP_FINISHED one",
        "TEXT_MESSAGE_CONTENT #2",
    ]


def test_calls_are_of_the_message_before_them_and_text_behind_them_is_another() -> None:
    frames = told(Token("A"), *call(0, "x", {}, "{}"), *call(1, "x", {}, "{}"), Token("B"), done())
    assert [one["parentMessageId"] for one in frames if one["type"] == "TOOL_CALL_START"] == ["#1", "#1"]
    assert kinds(frames, "TEXT_MESSAGE_START") == ["TEXT_MESSAGE_START #1", "TEXT_MESSAGE_START #2"]


def test_calls_behind_a_result_are_of_another_message() -> None:
    frames = told(*call(0, "x", {}, "{}"), ToolResult("call_0", "x", 1), *call(1, "x", {}, "{}"), done())
    assert [one["parentMessageId"] for one in frames if one["type"] == "TOOL_CALL_START"] == ["#1", "#3"]
    assert frames[-1]["outcome"] == {"type": "success", "pendingToolCallIds": ["call_1"]}


@pytest.mark.parametrize(
    ("content", "text"),
    [("clear", "clear"), ({"sky": "clear"}, '{"sky":"clear"}'), ([1, None], "[1,null]"), (None, "null"), ("", "")],
)
def test_a_result_is_text_and_may_be_of_a_call_that_was_not_told(content: Any, text: str) -> None:
    frames = told(ToolResult("call_9", "x", content), done())
    assert frames[0] == {
        "type": "TOOL_CALL_RESULT",
        "messageId": "#1",
        "toolCallId": "call_9",
        "content": text,
        "role": "tool",
    }


def test_a_result_ends_its_call() -> None:
    frames = told(ToolCallDelta(0, "{}", "call_0", "x"), ToolResult("call_0", "x", 1), ToolCall("call_0", "x", {}))
    assert kinds(frames) == [
        "TOOL_CALL_START call_0",
        "TOOL_CALL_ARGS call_0",
        "TOOL_CALL_END call_0",
        "TOOL_CALL_RESULT #2 call_0",
    ]


def test_arguments_are_json_even_where_there_are_none() -> None:
    (args,) = [one for one in told(*call(0, "now", {})) if one["type"] == "TOOL_CALL_ARGS"]
    assert args["delta"] == "{}"


def test_a_signature_ends_what_was_thought() -> None:
    frames = told(Reasoning("A"), Reasoning("", signature="sig"), Reasoning("B"))
    assert kinds(frames, "REASONING_START", "REASONING_END") == [
        "REASONING_START #1",
        "REASONING_END #1",
        "REASONING_START #2",
    ]
    assert "sig" not in str(frames)


def test_what_is_taken_back_leaves_the_client_with_what_it_had() -> None:
    given = Given("thread-1", "run-1", None, [USER, THOUGHT], ["u1"], {}, [], [], False)
    frames = told(Reasoning("A"), Token("B"), Reset("idle_timeout"), start(), Token("C"), done(), given=given)
    (snapshot,) = [one for one in frames if one["type"] == "MESSAGES_SNAPSHOT"]
    assert snapshot["messages"] == [USER, THOUGHT, {"id": "#1", "role": "reasoning", "content": ""}]
    assert kinds(frames, "TEXT_MESSAGE_START") == ["TEXT_MESSAGE_START #2", "TEXT_MESSAGE_START #3"]


def test_a_call_that_is_taken_back_ends_where_nobody_takes_it_for_whole_and_its_id_may_come_again() -> None:
    opened = ToolCallDelta(0, '{"ci', "call_0", "weather")
    frames = told(opened, Reset("idle_timeout"), start(), *call(0, "weather", {}, "{}"), done())
    assert kinds(frames)[:5] == [
        "TOOL_CALL_START call_0",
        "TOOL_CALL_ARGS call_0",
        "MESSAGES_SNAPSHOT",
        "TOOL_CALL_END call_0",
        "TOOL_CALL_START call_0",
    ]
    assert frames[-1]["outcome"]["pendingToolCallIds"] == ["call_0"]


@pytest.mark.parametrize("ending", [done("length"), done("content_filter"), stopped(), error()])
def test_a_call_that_was_cut_off_is_never_told_as_a_whole_one(ending: Event) -> None:
    frames = told(ToolCallDelta(0, '{"ci', "call_0", "weather"), ending)
    assert frames[-1]["type"] == "RUN_ERROR"
    assert "TOOL_CALL_END" not in str(frames)


# --- Steps -----------------------------------------------------------------------------------------------------------

TELLS = Updates((), {"a": {}})


def task(name: str, number: int, end: str = "", ns: tuple[str, ...] = ()) -> Tasks:
    return Tasks(ns, {"id": f"t{number}", "name": name, **({end: {}} if end else {"input": {}})})


@pytest.mark.parametrize(
    ("events", "steps"),
    [
        ([TELLS], "+a -a"),
        ([Updates((), {"a": {}, "b": None})], "+a +b -a -b"),
        ([Token("x", node="a"), TELLS, Token("x", node="a"), done()], "+a -a +a -a"),
        ([Token("x", node="a"), Token("x", node="b"), done()], "+a +b -b -a"),
        ([Reasoning("x", node="a"), done()], "+a -a"),
        ([ToolResult("c", "t", 1, node="tools"), done()], "+tools -tools"),
        ([*call(0, "x", {}, node="a"), TELLS], "+a -a"),
        ([Token("x", **INNER), done()], "+within +within/writer -within/writer -within"),
        ([Token("x", **INNER), Updates((), {"within": {}})], "+within +within/writer -within/writer -within"),
        ([Token("x", **INNER), Updates(("within:1a2b",), {"writer": {}})], "+within +within/writer -within/writer"),
        ([Updates((), {"__metadata__": {}, "a": {}})], "+a -a"),
        ([Updates((), {"answer": "Hel"}), Updates((), "lo")], ""),
        ([Token("x"), done()], ""),
        ([task("a", 1), task("b", 2), task("a", 1, "result"), task("b", 2, "result")], "+a +b -a -b"),
        ([task("a", 1), task("a", 2), task("a", 1, "result"), task("a", 2, "error")], "+a -a"),
        ([task("a", 1), TELLS, task("a", 1, "result"), TELLS], "+a -a"),
        ([task("a", 1), done("interrupt")], "+a -a"),
        ([task("a", 9, "result")], ""),
        ([Tasks((), {"id": "t"}), Tasks((), None)], ""),
        ([Token("x", node="a/b"), Token("x", node="a"), Updates((), {"a": {}})], "+a_b +a -a"),
    ],
)
def test_a_step_is_a_node_from_its_first_sign_to_its_end(events: list[Event], steps: str) -> None:
    signs = {"STEP_STARTED": "+", "STEP_FINISHED": "-"}
    frames = [one for one in told(*events) if one["type"] in signs]
    assert " ".join(signs[one["type"]] + one["stepName"] for one in frames) == steps


def test_what_a_node_says_ends_before_its_step_does() -> None:
    frames = told(Token("x", node="a"), TELLS)
    assert kinds(frames, "TEXT_MESSAGE_END", "STEP_FINISHED") == ["TEXT_MESSAGE_END #1", "STEP_FINISHED a"]


# --- How a run ends --------------------------------------------------------------------------------------------------


def test_an_interrupt_has_what_the_graph_says_of_it() -> None:
    whole = {
        "reason": "tool_call",
        "message": "Shall I?",
        "toolCallId": "call_1",
        "responseSchema": {"type": "object"},
        "expiresAt": "2026-04-20T17:00:00Z",
        "other": None,
    }
    ids = ["0" * 32, "1" * 32, "2" * 32]
    values: list[Any] = [whole, "Shall I?", {"message": 5, "reason": None}]
    frames = told(*(Interrupt(*pair) for pair in zip(ids, values, strict=True)), done("interrupt"))
    raws = [{"metadata": {"langgraph": {"raw": value}}} for value in values]
    said = {name: value for name, value in whole.items() if name != "other"}
    plain = {"reason": "langgraph:interrupt"}
    assert frames[-1]["outcome"] == {
        "type": "interrupt",
        "interrupts": [
            {"id": ids[0], **said, **raws[0]},
            {"id": ids[1], **plain, "message": "Shall I?", **raws[1]},
            {"id": ids[2], **plain, **raws[2]},
        ],
    }
    check_known(EVENT.validate_python(frames[-1]))


def test_a_graph_that_was_to_stop_before_a_node_has_an_interrupt_too() -> None:
    outcome = told(done("interrupt"))[-1]["outcome"]
    assert outcome == {"type": "interrupt", "interrupts": [{"id": "breakpoint", "reason": "langgraph:breakpoint"}]}


def test_a_run_within_another_says_so() -> None:
    given = Given("thread-1", "run-2", "run-1", [], [], {}, [], [], False)
    assert parsed(bytes_of(RUNS["text"], given))[0]["parentRunId"] == "run-1"


# --- What a request means --------------------------------------------------------------------------------------------


def body(*messages: Any, **fields: Any) -> bytes:
    told = {"threadId": "thread-1", "runId": "run-1", "messages": list(messages) or [USER], **fields}
    return json.dumps(told).encode()


def asked(*messages: Any, takes: Takes | None = None, **fields: Any) -> RunRequest:
    """The request as whoever `takes` it gets it."""
    found = WIRE.decode(body(*messages, **fields))
    return found.fit(found.chat.to_run("model"), takes)


def plain(request: RunRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = msgspec.to_builtins(request.messages)
    return messages


def user(content: Any) -> dict[str, Any]:
    return {"id": "u", "role": "user", "content": content}


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}, "encryptedValue": "x"}
PIXEL = "data:image/png;base64,aGk="


@pytest.mark.parametrize(
    ("message", "native"),
    [
        (user("Hi"), {"role": "user", "content": "Hi"}),
        (user("Hi") | {"name": "Ann", "metadata": {"a": 1}}, {"role": "user", "content": "Hi", "name": "Ann"}),
        ({"id": "s", "role": "system", "content": "Be brief."}, {"role": "system", "content": "Be brief."}),
        ({"id": "d", "role": "developer", "content": "Be brief."}, {"role": "developer", "content": "Be brief."}),
        ({"id": "a", "role": "assistant", "content": "Hello"}, {"role": "assistant", "content": "Hello"}),
        (
            {"id": "a", "role": "assistant", "toolCalls": [CALL]},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
                ],
            },
        ),
        (
            {"id": "t", "role": "tool", "toolCallId": "c1", "content": "clear"},
            {"role": "tool", "content": "clear", "tool_call_id": "c1"},
        ),
        (
            {"id": "t", "role": "tool", "toolCallId": "c1", "content": "", "error": "It rained in."},
            {"role": "tool", "content": "It rained in.", "tool_call_id": "c1"},
        ),
        (
            user([{"type": "text", "text": "What is it?", "id": "p1"}]),
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
        ),
        (
            user([{"type": "image", "source": {"type": "url", "value": "https://a/b.png", "mimeType": "image/png"}}]),
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}]},
        ),
        (
            user([{"type": "image", "source": {"type": "data", "value": "aGk=", "mimeType": "image/png"}}]),
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]},
        ),
    ],
)
def test_a_message_becomes_a_native_one(message: dict[str, Any], native: dict[str, Any]) -> None:
    assert plain(asked(message)) == [native]


def test_thoughts_activities_and_answers_that_say_nothing_are_no_messages() -> None:
    activity = {"id": "x", "role": "activity", "activityType": "PLAN", "content": {"steps": []}}
    empty = {"id": "a", "role": "assistant", "content": ""}
    assert plain(asked(USER, THOUGHT, activity, empty)) == [{"role": "user", "content": "Hi"}]


TOOL = {"name": "weather", "description": "The weather.", "parameters": {"type": "object"}, "metadata": {}}
CONTEXT = [{"description": "The user's town", "value": "Paris"}, {"description": "Units", "value": "metric"}]


def test_a_model_gets_the_clients_tools_and_context() -> None:
    request = asked(tools=[TOOL, {"name": "now", "description": ""}], context=CONTEXT, state={"a": 1})
    function = Function("weather", "The weather.", {"type": "object"})
    assert request.tools == [Tool(function), Tool(Function("now", ""))]
    assert request.system == "The user's town:\nParis\n\nUnits:\nmetric"
    assert (request.thread_id, request.stream_mode, request.input) == (None, None, UNSET)


def test_context_stands_behind_the_systems_words() -> None:
    request = asked(context=CONTEXT[1:], forwardedProps={"system": "Be brief."})
    assert request.system == "Be brief.\n\nUnits:\nmetric"


def test_forwarded_props_may_hold_native_fields_beside_the_apps_own() -> None:
    props = {"model": "openai/gpt", "temperature": 0.5, "linger": 3, "nodeName": "x", "theme": None, "stop": ["."]}
    found = WIRE.decode(body(forwardedProps=props))
    assert (found.chat.model, found.chat.temperature, found.chat.linger) == ("openai/gpt", 0.5, 3)
    assert found.chat.stop == ["."]


GRAPH = Takes(True, {"messages", "mood", "been"}, {"messages", "been"}, keeps_threads=False)
KEEPS = GRAPH._replace(keeps_threads=True)
ANSWER: dict[str, Any] = {"id": "a1", "role": "assistant", "content": "Hello"}
AGAIN: dict[str, Any] = {"id": "u2", "role": "user", "content": "And?"}
SINCE = {"id": "t1", "role": "tool", "toolCallId": "c1", "content": "clear"}
ASKS = {"id": "a2", "role": "assistant", "toolCalls": [CALL]}


@pytest.mark.parametrize(
    ("messages", "ids"),
    [
        ([USER], ["u1"]),
        ([USER, ANSWER, AGAIN], ["u2"]),
        ([USER, AGAIN], ["u1", "u2"]),
        ([USER, ASKS, SINCE], ["t1"]),
        ([USER, ANSWER, AGAIN, ASKS, SINCE, THOUGHT], ["t1"]),
        ([USER, ANSWER], []),
    ],
)
def test_a_thread_gets_what_was_said_since_its_last_answer(messages: list[Any], ids: list[str]) -> None:
    request = asked(*messages, takes=KEEPS)
    assert (request.thread_id, list(request.news.ids), len(request.news.messages)) == ("thread-1", ids, len(ids))
    assert len(request.messages) == len(request.ids) > 0  # for a thread that knows nothing


def test_a_graph_without_threads_gets_the_whole_conversation() -> None:
    request = asked(USER, ANSWER, AGAIN, takes=GRAPH)
    assert (request.thread_id, request.ids) == (None, ("u1", "a1", "u2"))


@pytest.mark.parametrize(
    ("props", "modes"),
    [
        ({}, ["messages", "updates", "values", "custom"]),
        ({"stream_mode": "tasks"}, "tasks"),
        ({"events": True}, None),
    ],
)
def test_a_graph_tells_its_state_unless_something_else_is_asked_for(props: dict[str, Any], modes: Any) -> None:
    assert asked(forwardedProps=props, takes=GRAPH).stream_mode == modes


STATE = {"mood": "good", "been": ["a"], "messages": [{"type": "human"}], "other": 1, "ag-ui": {}}


@pytest.mark.parametrize(
    ("takes", "beside"),
    [(GRAPH, {"mood": "good", "been": ["a"]}), (KEEPS, {"mood": "good"})],
)
def test_a_graph_gets_the_state_that_its_input_has_and_a_thread_nothing_twice(
    takes: Takes, beside: dict[str, Any]
) -> None:
    assert asked(state=STATE, takes=takes).beside == beside


@pytest.mark.parametrize("state", [None, 5, "text", [1], {}])
def test_a_state_of_another_kind_is_none(state: Any) -> None:
    assert asked(state=state, takes=GRAPH).beside == {}


def test_a_graph_without_messages_gets_the_state_alone() -> None:
    request = asked(state=STATE, takes=Takes(True, {"mood"}))
    assert (request.messages, request.input) == ([], {"mood": "good"})


def test_a_state_may_stand_without_messages() -> None:
    found = WIRE.decode(json.dumps({"threadId": "t", "runId": "r", "messages": [], "state": STATE}).encode())
    request = found.fit(found.chat.to_run("model"), KEEPS)
    assert (request.messages, request.input, request.thread_id) == ([], {"mood": "good"}, "t")


def test_a_graph_gets_tools_and_context_where_its_state_has_a_place_for_them() -> None:
    takes = Takes(True, {"messages", "tools", "ag-ui", "copilotkit"}, {"messages"})
    tool = {"name": "weather", "description": "The weather.", "parameters": {"type": "object"}}
    request = asked(tools=[TOOL], context=CONTEXT, takes=takes)
    assert request.beside == {
        "tools": [tool],
        "ag-ui": {"tools": [tool], "context": CONTEXT},
        "copilotkit": {"actions": [tool], "context": CONTEXT},
    }
    assert (request.tools, request.system) == (None, None)
    assert asked(tools=[TOOL], context=CONTEXT, takes=GRAPH).beside == {}


def test_a_chain_gets_the_conversation_alone() -> None:
    request = asked(USER, ANSWER, AGAIN, tools=[TOOL], context=CONTEXT, state=STATE, takes=Takes(fields={"mood"}))
    assert len(request.messages) == 3
    assert (request.tools, request.system, request.beside, request.stream_mode) == (None, None, {}, None)


A, B = "a" * 32, "b" * 32
YES = {"interruptId": A, "status": "resolved", "payload": {"ok": True}}
NO = {"interruptId": B, "status": "cancelled"}


@pytest.mark.parametrize(
    ("fields", "resume"),
    [
        ({"resume": [YES]}, {A: {"ok": True}}),
        ({"resume": [YES, NO]}, {A: {"ok": True}, B: None}),
        ({"resume": [NO | {"payload": "yes"}]}, {B: None}),
        ({"forwardedProps": {"command": {"resume": "yes"}}}, "yes"),
        ({"forwardedProps": {"command": {"resume": "yes"}}, "resume": [YES]}, {A: {"ok": True}}),
    ],
)
def test_an_answer_to_an_interrupt_is_a_resume_of_the_thread(fields: dict[str, Any], resume: Any) -> None:
    request = asked(USER, ANSWER, takes=KEEPS, state=STATE, **fields)
    assert (request.resume, request.thread_id, request.messages) == (resume, "thread-1", [])
    assert request.input is UNSET


def test_a_graph_that_was_to_stop_goes_on() -> None:
    entry = {"interruptId": "breakpoint", "status": "resolved"}
    request = asked(USER, ANSWER, takes=KEEPS, resume=[entry])
    assert (request.input, request.resume, request.thread_id) == (None, UNSET, "thread-1")


def test_an_empty_resume_is_none() -> None:
    assert asked(takes=KEEPS, resume=[]).resume is UNSET


PART = "Content can be text and images (by URL or as data), not "


@pytest.mark.parametrize(
    ("asking", "field", "text"),
    [
        ({"resume": [{"interruptId": "i1", "status": "resolved"}]}, "resume", "There is no such interrupt."),
        ({"resume": [{"interruptId": "z" * 32, "status": "resolved"}]}, "resume", "There is no such interrupt."),
        ({"forwardedProps": {"temperature": 9}}, "temperature", "Expected `float` <= 2.0"),
        ({"threadId": 5}, "threadId", "Expected `str`, got `int`"),
        ({"threadId": "t" * 1001}, "threadId", "length <= 1000"),
        ({"resume": [{"interruptId": A, "status": "maybe"}]}, "resume", "Invalid enum value 'maybe'"),
        ({"tools": [{"description": "x"}]}, "tools", "missing required field `name`"),
        ({"tools": [{"name": "x", "parameters": 5}]}, "tools", "Expected `object | null`"),
        ({"context": [{"value": "x"}]}, "context", "missing required field `description`"),
        ({"messages": [{"id": "x", "role": "robot"}]}, "messages", "Invalid enum value 'robot'"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "messages", "missing required field `id`"),
        ({"messages": [user([{"type": "audio", "source": {}}])]}, "messages", PART + "'audio'"),
        ({"messages": [user([{"type": "image", "source": {"type": "file", "value": "x"}}])]}, "messages", "'image'"),
        ({"messages": [user({"a": 1})]}, "messages", "Content is text, or a list of parts."),
        ({"messages": [user("")]}, "messages", "has no content"),
        ({"messages": [SINCE | {"toolCallId": None}]}, "messages", "answers no call"),
        ({"messages": []}, "messages", "`messages` is empty"),
        ({"messages": 5}, "messages", "Expected `array`"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_by_name(asking: dict[str, Any], field: str, text: str) -> None:
    told = {"threadId": "t", "runId": "r", "messages": [USER], **asking}
    with pytest.raises(RequestError) as refused:
        WIRE.decode(json.dumps(told).encode()).chat.to_run("model")
    assert (refused.value.code, refused.value.field) == ("invalid_request", field)
    assert text in refused.value.text


@pytest.mark.parametrize("lacking", ["threadId", "runId", "messages"])
def test_a_request_has_ids_and_messages(lacking: str) -> None:
    told = {"threadId": "t", "runId": "r", "messages": [USER]}
    del told[lacking]
    with pytest.raises(RequestError, match=lacking):
        WIRE.decode(json.dumps(told).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["threadId", "runId", "messages", "state", "tools", "context", "forwardedProps", "resume", "parentRunId"]
ROLES = st.sampled_from(["developer", "system", "user", "assistant", "tool", "reasoning", "activity"])
MESSAGES = st.fixed_dictionaries(
    {"id": st.text(max_size=3), "role": ROLES},
    optional=dict.fromkeys(("content", "name", "toolCalls", "toolCallId", "error"), JSON),
)
INPUTS = st.fixed_dictionaries(
    {"threadId": st.just("t"), "runId": st.just("r"), "messages": st.lists(MESSAGES, max_size=3)},
    optional=dict.fromkeys(FIELDS[3:], JSON),
)


@settings(deadline=None, derandomize=True, database=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON) | INPUTS, st.sampled_from([None, GRAPH, KEEPS]))
def test_whatever_is_asked_is_understood_or_refused(told: dict[str, Any], takes: Takes | None) -> None:
    with suppress(RequestError):
        found = WIRE.decode(json.dumps(told).encode())
        assert isinstance(found.fit(found.chat.to_run("model"), takes), RunRequest)


# --- Over HTTP -------------------------------------------------------------------------------------------------------

ECHO = {"model": "scripted/echo"}


@pytest.mark.parametrize(
    ("path", "fields", "status", "code"),
    [
        ("/ag-ui", {"messages": 5}, 400, "invalid_request"),
        ("/ag-ui", {"forwardedProps": {"model": "nobody/x"}}, 404, "unknown_model"),
        ("/ag-ui/nobody", {}, 404, "unknown_model"),
        ("/ag-ui/scripted", {"forwardedProps": {"model": "openai/gpt"}}, 404, "unknown_model"),
        ("/ag-ui", {"forwardedProps": {**ECHO, "thread_id": "t"}}, 400, "invalid_request"),
        ("/ag-ui", {"forwardedProps": ECHO, "resume": [YES]}, 400, "invalid_request"),
    ],
)
def test_what_is_not_begun_is_a_status_and_an_error_of_agui(
    path: str, fields: dict[str, Any], status: int, code: str
) -> None:
    async def refused() -> None:
        app = await make_app()
        exchange = await ask_json(app, path, **{"threadId": "t", "runId": "r", "messages": [USER], **fields})
        assert (exchange.status, exchange.headers["content-type"]) == (status, "application/json")
        told = json.loads(exchange.body)
        assert (told["type"], told["code"]) == ("RUN_ERROR", code)
        assert told["message"]

    run(refused())


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b"5", b'"x"', b"\xff", b"null", b"[" * 10_000])
def test_rubbish_is_refused_in_aguis_words(rubbish: bytes) -> None:
    async def refused() -> None:
        headers = {"content-type": "application/json"}
        exchange = await ask(await make_app(), "POST", "/ag-ui", headers=headers, body=rubbish)
        assert (exchange.status, json.loads(exchange.body)["code"]) == (400, "invalid_request")

    run(refused())


@pytest.mark.parametrize("failed", [fault("rate_limited", "Slow."), fault("upstream_rejected", "No.")])
def test_a_fault_is_told_with_the_status_that_clients_know_it_by(failed: Fault) -> None:
    response = ag_ui.tell(failed)
    assert response.status_code == (429 if failed.code == "rate_limited" else 400)
    told = json.loads(bytes(response.body))
    assert told == {"type": "RUN_ERROR", "message": failed.text, "code": failed.code}


@pytest.mark.parametrize("path", ["/ag-ui/scripted", "/ag-ui"])
def test_the_path_may_name_who_is_asked(path: str) -> None:
    async def answered() -> None:
        model = "echo" if path == "/ag-ui/scripted" else "scripted/echo"
        told = {"threadId": "t", "runId": "r", "messages": [user("Hello")], "forwardedProps": {"model": model}}
        exchange = await ask_json(await make_app(), path, **told)
        assert (exchange.status, exchange.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        frames = parsed(exchange.body)
        assert (frames[0]["threadId"], frames[0]["runId"]) == ("t", "r")
        assert exchange.headers["content-location"] == f"/runs/{frames[0]['metadata']['run']}"
        assert "".join(one.get("delta", "") for one in frames) == "Hello"
        assert frames[-1]["result"]["model"] == "echo"

    run(answered())


def _growing(given: Iterator[Any]) -> Iterator[Any]:
    for text in given:
        yield AddableDict(answer=text)
        yield AddableDict(answer=" indeed.")


growing: Runnable[Any, Any] = RunnableGenerator(_growing)
louder: Runnable[Any, Any] = RunnableLambda(str.upper)
stating: Runnable[Any, Any] = RunnableLambda(lambda text: {"said": text})
CHAINS = ",".join(f"{name}=tests.test_ag_ui_wire:{name}" for name in ("growing", "louder", "stating"))


@pytest.mark.parametrize(
    ("chain", "kind", "told"),
    [
        ("louder", "TEXT_MESSAGE_CONTENT", [{"messageId": "#1", "delta": "HI"}]),
        ("stating", "STATE_SNAPSHOT", [{"snapshot": {"said": "Hi"}}]),
        (
            "growing",
            "RAW",
            [
                {"event": {"event": "updates", "ns": [], "data": {"answer": text}}, "source": "langchain"}
                for text in ("Hi", " indeed.")
            ],
        ),
    ],
)
def test_a_chain_answers_too_whatever_the_client_sends_beside(chain: str, kind: str, told: list[Any]) -> None:
    async def answered() -> None:
        app = await make_app(SIDESTREAM_CHAINS=CHAINS)
        beside = {"tools": [TOOL], "context": CONTEXT, "state": STATE}
        exchange = await ask_json(app, f"/ag-ui/{chain}", threadId="t", runId="r", messages=[USER], **beside)
        frames = parsed(re.sub(rb"[0-9a-f]{32}-", b"#", exchange.body))
        assert [one for one in frames if one["type"] == kind] == [{"type": kind} | one for one in told]
        assert "STEP_STARTED" not in str(frames)
        assert frames[-1]["outcome"] == {"type": "success"}

    run(answered())
