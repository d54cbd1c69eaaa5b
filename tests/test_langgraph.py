"""LangGraph's graphs over HTTP: what they stream in each of their modes, what they are given, and how they fail.

Real graphs (tests/graphs.py) in a real service; the models in their nodes speak to the scripted upstream.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from websockets.sync.client import connect

from .client import Client, Event, get, post
from .conftest import FOREIGN, ROOT, Service
from .graphs import WORDS
from .recorded import (
    OPENAI,
    RESPONSES_RECORDINGS,
    ROLE,
    Told,
    asked,
    call,
    called,
    chat_end,
    chat_usage,
)
from .resource import NDJSON, create, refused, status_of
from .served_graphs import (
    NAMES,
    TWICE,
    USAGE,
    answer,
    been,
    counted,
    done,
    held,
    joined,
    of,
    start,
    told,
    updates,
)
from .test_websocket import turn
from .upstream import END, OPENAI_KEY, PAUSE, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.served_graphs"]


def run(service: Service, graph: str, **body: object) -> Told:
    """Run a graph and return what it told."""
    return told(post(service.port, f"/{graph}/stream", **body))


SPOKEN = {"messages": ["ai: Hello there"], "been": ["speak"]}
SPEAKING: Told = [
    start("speaking"),
    ("token", {"token": "Hello there", "node": "speak"}),
    *updates({"speak": SPOKEN}, {"note": {"been": ["note"]}}),
    done("speaking", 2, USAGE),
]

# --- What they stream ------------------------------------------------------------------------------------------------


def test_tokens_and_updates_are_streamed_where_nothing_else_is_asked_for(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello", " there"))
    assert run(graphs, "speaking", message="Hi", system="Be brief.") == SPEAKING
    assert upstream.request().body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_tokens_arrive_as_they_are_made(graphs: Service, upstream: Upstream) -> None:
    upstream.play(*held(PAUSE))
    with post(graphs.port, "/speaking/stream", message="Hi") as client:
        assert client.until("token").data == {"token": "Here", "node": "speak"}
        upstream.request().release()
        assert client.until("token").data == {"token": " I am.", "node": "speak"}


def test_a_message_in_the_state_is_told_whole(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello"))
    with post(graphs.port, "/speaking/stream", message="Hi", stream_mode="updates") as client:
        (message,) = client.until("updates").data["data"]["speak"]["messages"]
    assert message.pop("id").startswith("lc_run--")
    assert message == {
        "type": "ai",
        "content": "Hello",
        "name": None,
        "additional_kwargs": {},
        "response_metadata": {
            "finish_reason": "stop",
            "model_name": OPENAI.answers_as,
            "model_provider": "openai",
            "service_tier": "default",
            "system_fingerprint": "fp_51db84afab",
        },
        "tool_calls": [],
        "invalid_tool_calls": [],
        "usage_metadata": {
            "input_tokens": 14,
            "output_tokens": 8,
            "total_tokens": 22,
            "input_token_details": {"audio": 0, "cache_read": 6},
            "output_token_details": {"audio": 0, "reasoning": 0},
        },
    }


NONE: dict[str, Any] = {"messages": [], "been": []}
ASKED = {"messages": ["human: Hi"], "been": []}
ANSWERED = {"messages": ["human: Hi", "ai: Hello there"], "been": ["speak"]}
WRITTEN = {**ANSWERED, "been": ["speak", "write"]}


def begins(node: str, state: Any) -> dict[str, Any]:
    return {"id": "*", "name": node, "input": state, "triggers": [f"branch:to:{node}"]}


def ends(node: str, change: Any) -> dict[str, Any]:
    return {"id": "*", "name": node, "error": None, "result": change, "interrupts": []}


def checkpoint(step: int, state: Any, following: str | None) -> dict[str, Any]:
    at = {"configurable": {"thread_id": "*", "checkpoint_ns": "", "checkpoint_id": "*"}}
    return {
        "config": at,
        "parent_config": at if step >= 0 else None,
        "values": state,
        "metadata": {"source": "loop" if step >= 0 else "input", "step": step, "parents": {}},
        "next": [following] if following else [],
        "tasks": [{"id": "*", "name": following, "interrupts": [], "state": None}] if following else [],
    }


def in_detail(step: int, kind: str, payload: Any) -> tuple[str, Any]:
    return "debug", {"step": step, "timestamp": "*", "type": kind, "payload": payload}


EVERYTHING: Told = [
    ("checkpoints", checkpoint(-1, NONE, "__start__")),
    in_detail(-1, "checkpoint", checkpoint(-1, NONE, "__start__")),
    ("values", ASKED),
    ("checkpoints", checkpoint(0, ASKED, "speak")),
    in_detail(0, "checkpoint", checkpoint(0, ASKED, "speak")),
    ("tasks", begins("speak", ASKED)),
    in_detail(1, "task", begins("speak", ASKED)),
    ("token", "Hello there"),
    ("updates", {"speak": SPOKEN}),
    ("tasks", ends("speak", SPOKEN)),
    in_detail(1, "task_result", ends("speak", SPOKEN)),
    ("values", ANSWERED),
    ("checkpoints", checkpoint(1, ANSWERED, "write")),
    in_detail(1, "checkpoint", checkpoint(1, ANSWERED, "write")),
    ("tasks", begins("write", ANSWERED)),
    in_detail(2, "task", begins("write", ANSWERED)),
    *[("custom", {"progress": n}) for n in range(3)],
    ("updates", {"write": {"been": ["write"]}}),
    ("tasks", ends("write", {"been": ["write"]})),
    in_detail(2, "task_result", ends("write", {"been": ["write"]})),
    ("values", WRITTEN),
    ("checkpoints", checkpoint(2, WRITTEN, None)),
    in_detail(2, "checkpoint", checkpoint(2, WRITTEN, None)),
]
MODES = ["values", "updates", "messages", "custom", "tasks", "checkpoints", "debug"]


@pytest.mark.parametrize("modes", [*MODES, MODES, MODES[::-1], ["custom", "updates", "custom"], ["tasks"]], ids=str)
def test_each_mode_tells_its_part_and_several_tell_theirs_in_the_order_of_things(
    graphs: Service, upstream: Upstream, modes: str | list[str]
) -> None:
    upstream.stream(*answer("Hello", " there"))
    asked_for = [modes] if isinstance(modes, str) else modes
    has_tokens = "messages" in asked_for
    parts: Told = [(name, {"ns": [], "data": data}) for name, data in EVERYTHING if name in asked_for]
    if has_tokens:
        place = [name for name, _ in EVERYTHING if name in (*asked_for, "token")].index("token")
        parts.insert(place, ("token", {"token": "Hello there", "node": "speak"}))
    assert run(graphs, "telling", message="Hi", stream_mode=modes) == [
        start("telling", thread_id="*"),
        *parts,
        done("telling", 2 if has_tokens else 0, USAGE),
    ]


def test_reasoning_is_streamed_as_reasoning(graphs: Service, upstream: Upstream) -> None:
    (recording,) = (one for one in RESPONSES_RECORDINGS if one.name == "reasoning")
    upstream.stream(*recording.chunks)
    assert run(graphs, "thinking", message="Hi", stream_mode="messages") == [
        start("thinking"),
        ("reasoning", {"reasoning": "**Adding** two and two.", "node": "think"}),
        ("token", {"token": "Four.", "node": "think"}),
        done("thinking", 4, recording.done["usage"]),
    ]
    assert upstream.request().path == "/v1/responses"


def test_what_happens_in_a_subgraph_says_where(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello", " there"))
    inside = ["inner:*"]
    whole = {"messages": ["human: Hi", "ai: Hello there"], "been": ["speak", "note"]}
    assert run(graphs, "within", message="Hi") == [
        start("within"),
        ("token", {"token": "Hello there", "node": "speak", "ns": inside}),
        *updates({"speak": SPOKEN}, {"note": {"been": ["note"]}}, ns=inside),
        *updates({"inner": whole}, {"note_async": {"been": ["note_async"]}}),
        done("within", 2, USAGE),
    ]


def test_nodes_of_one_step_run_side_by_side(graphs: Service, upstream: Upstream) -> None:
    """One of them synchronous: both models are asked before either has answered."""
    for _ in range(2):
        upstream.play(*held(PAUSE))
    with post(graphs.port, "/speaking_both/stream", message="Hi") as client:
        first, second = upstream.request(), upstream.request()
        first.release()
        second.release()
        begun, *events, ended = told(client)
    assert (begun, ended) == (start("speaking_both"), done("speaking_both", 4, TWICE))
    for node in ("speak", "speak_blocking"):
        assert "".join(one["token"] for one in of("token", events) if one["node"] == node) == "Here I am."
    change = {"messages": ["ai: Here I am."]}
    assert sorted(of("updates", events), key=str) == [
        {node: {**change, "been": [node]}} for node in ("speak", "speak_blocking")
    ]


def test_sync_and_async_nodes_meet_in_the_next_step(graphs: Service) -> None:
    _, *events, ended = run(graphs, "parallel", message="Hi", stream_mode=["updates", "custom"])
    assert sorted(been(events)[:2]) == ["note", "note_async"]
    assert (been(events)[2:], of("custom", events)) == (["write"], [{"progress": n} for n in range(3)])
    assert ended == done("parallel", 0, counted(1, 0))


def test_usage_is_the_sum_of_all_model_calls_and_grows_with_them(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("One."))
    upstream.play(*held(PAUSE))
    with post(graphs.port, "/speaking_twice/stream", message="Hi", stream_mode="messages") as client:
        client.read_on(lambda body: b"Here" in body)
        assert status_of(graphs.port, client.head()[1]["content-location"])["usage"] == USAGE
        upstream.request()
        upstream.request().release()
        assert told(client)[1:] == [
            ("token", {"token": "One.", "node": "speak"}),
            ("token", {"token": "Here I am.", "node": "speak_again"}),
            done("speaking_twice", 3, TWICE),
        ]


def test_an_answer_that_was_cut_short_says_so(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(ROLE, OPENAI.token("Once"), *chat_end("length", chat_usage(14, 1)))
    usage = {"input_tokens": 14, "output_tokens": 1}
    assert run(graphs, "speaking", message="Hi")[-1] == done("speaking", 1, usage, "length")


TWO_CALLS = (
    ROLE,
    call(0, "", "call_Ab1", "weather"),
    *(call(0, part) for part in ('{"ci', 'ty":"', "Paris", '"}')),
    call(1, "", "call_Cd2", "hour"),
    *(call(1, part) for part in ('{"zone":', '"CET","day":1}')),
    *chat_end("tool_calls", chat_usage(88, 41)),
)


def test_an_agent_calls_its_tools_and_then_answers(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*TWO_CALLS)
    upstream.stream(*answer("It is", " sunny."))
    events = run(graphs, "agent", message="What is the weather?", stream_mode="messages")
    in_model, in_tools = {"node": "model"}, {"node": "tools"}
    sunny = {"id": "call_Ab1", "tool": "weather", "content": "Sunny in Paris.", **in_tools}
    noon = {"id": "call_Cd2", "tool": "hour", "content": '{"zone": "CET", "day": 1, "hour": 12}', **in_tools}
    assert events[5:7] in (
        [("tool_result", one), ("tool_result", other)] for one, other in [(sunny, noon), (noon, sunny)]
    )
    assert [*events[:5], *events[7:]] == [
        start("agent"),
        *(
            (name, {**data, **in_model})
            for name, data in (
                asked(0, "call_Ab1", "weather", '{"city":"Paris"}'),
                asked(1, "call_Cd2", "hour", '{"zone":"CET","day":1}'),
                called("call_Ab1", "weather", {"city": "Paris"}),
                called("call_Cd2", "hour", {"zone": "CET", "day": 1}),
            )
        ),
        ("token", {"token": "It is sunny.", **in_model}),
        done("agent", 10, {"input_tokens": 102, "output_tokens": 49, "cached_tokens": 6}),
    ]
    first, second = upstream.request().body, upstream.request().body
    assert [tool["function"]["name"] for tool in first["tools"]] == ["weather", "hour"]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool", "tool"]


def test_an_agents_tool_calls_stream_as_they_are_written(graphs: Service, upstream: Upstream) -> None:
    upstream.play(Head(), *TWO_CALLS[:3], PAUSE, *TWO_CALLS[3:], END)
    upstream.stream(*answer("It is."))
    with post(graphs.port, "/agent/stream", message="Hi", stream_mode="messages") as client:
        client.read_on(lambda body: b'{\\"ci' in body)
        assert b"tool_call\n" not in client.body
        upstream.request().release()
        assert "tool_call" in [name for name, _ in told(client)]


def test_a_conversation_with_tools_is_taken_as_it_was_told(graphs: Service, upstream: Upstream) -> None:
    """An assistant's message that is nothing but a call has a content of null."""
    function = {"name": "weather", "arguments": '{"city":"Paris"}'}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": function}]},
        {"role": "tool", "content": "Sunny.", "tool_call_id": "a"},
        {"role": "assistant", "content": "It is sunny."},
        {"role": "user", "content": [{"type": "text", "text": "Thanks."}]},
    ]
    upstream.stream(*answer("Hello", " there"))
    assert run(graphs, "speaking", messages=messages) == SPEAKING
    sent = upstream.request().body["messages"]
    assert [message["role"] for message in sent] == [message["role"] for message in messages]
    (sent_call,) = sent[1]["tool_calls"]
    assert (sent_call["id"], json.loads(sent_call["function"]["arguments"])) == ("a", {"city": "Paris"})


def test_what_a_node_writes_is_told_even_if_it_is_nothing(graphs: Service) -> None:
    events = run(graphs, "writing_nothings", message="Hi", stream_mode="custom")
    assert of("custom", events) == [0, "", None, False, [], {}]


def test_a_state_that_json_cannot_hold_is_told_as_far_as_it_goes(graphs: Service) -> None:
    things = {
        "object": "a strange thing",
        "broken": "<Broken>",
        "dataclass": {"x": 1, "there": "a strange thing"},
        "model": {"count": 2},
        "set": ["one"],
        "bytes": "AP8=",
        "decimal": "1.50",
        "not a number": "nan",
        "large": str(2**70),
        "ring": ["(and so on)"],
        "type": "Strange",
        "exception": "ValueError",
        "[1, 2]": "a key that is no text",
        "message": "ai: hi",
    }
    events = run(graphs, "strangest", input={"thing": None}, stream_mode=["updates", "values", "tasks"])
    assert of("updates", events) == [{"strange": {"thing": things}}]
    assert of("values", events) == [{"thing": None}, {"thing": things}]
    assert of("tasks", events)[1]["result"] == {"thing": things}


def test_a_thing_that_is_neither_true_nor_false_is_told(graphs: Service) -> None:
    events = run(graphs, "strangest", input={"thing": None}, stream_mode="custom")
    assert events[1:] == [("custom", {"ns": [], "data": "an undecided thing"}), done("strangest", 0, counted(4, 0))]


# --- Where they are asked --------------------------------------------------------------------------------------------

LANGGRAPH = {"model": "langgraph/speaking"}
WAYS = {
    "its own path": lambda port: post(port, "/speaking/stream", message="Hi"),
    "its own path and name": lambda port: post(port, "/speaking/stream", message="Hi", model="speaking"),
    "the first of all": lambda port: post(port, "/langgraph/stream", message="Hi"),
    "by model": lambda port: post(port, "/langgraph/stream", message="Hi", model="speaking"),
    "by its whole name": lambda port: post(port, "/langgraph/stream", message="Hi", **LANGGRAPH),
    "chat": lambda port: post(port, message="Hi", **LANGGRAPH),
    "chat, by its name alone": lambda port: post(port, question="Hi", model="speaking"),
    "the default graph": lambda port: post(port, "/stream", question="Hi"),
    "NDJSON": lambda port: post(port, "/speaking/stream", NDJSON, message="Hi"),
    "an EventSource": lambda port: get(port, "/speaking/stream", message="Hi"),
    "an EventSource on chat": lambda port: get(port, message="Hi", **LANGGRAPH),
    "an EventSource with modes": lambda port: get(
        port, "/langgraph/stream", messages='[{"role":"user","content":"Hi"}]', stream_mode="messages,updates"
    ),
    "its own input": lambda port: post(
        port, "/speaking/stream", input={"messages": [{"role": "user", "content": "Hi"}]}
    ),
    "an input in a query": lambda port: get(port, "/speaking/stream", input='{"messages":[["user","Hi"]]}'),
    "a run": lambda port: get(port, create(port, message="Hi", **LANGGRAPH)["events_url"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_graph_is_asked_in_any_way_a_model_is(graphs: Service, upstream: Upstream, way: str) -> None:
    upstream.stream(*answer("Hello", " there"))
    assert told(WAYS[way](graphs.port)) == SPEAKING
    assert upstream.request().body["messages"] == [{"role": "user", "content": "Hi"}]


def test_a_graph_is_asked_over_a_websocket(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello", " there"))
    with connect(f"ws://127.0.0.1:{graphs.port}/ws/chat?model=langgraph/speaking", proxy=None) as socket:
        events = turn(socket, "Hi")
    assert joined([Event(name, "", data) for name, data in events]) == SPEAKING


def test_what_can_be_asked_for_is_listed(graphs: Service) -> None:
    with get(graphs.port, "/v1/models") as client:
        listed = [model["id"] for model in json.loads(client.read())["data"]]
    assert [name for name in listed if name.startswith("langgraph/")] == [f"langgraph/{name}" for name in NAMES]


def test_a_graph_that_failed_or_ended_can_be_followed_again(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello", " there"))
    with post(graphs.port, "/speaking/stream", message="Hi") as client:
        events = list(client)
        run_path = client.head()[1]["content-location"]
    middle = next(event for event in events if event.name == "updates")
    with get(graphs.port, f"{run_path}/events", {"Last-Event-ID": middle.id}) as client:
        assert list(client) == events[events.index(middle) + 1 :]


# --- What they are given ---------------------------------------------------------------------------------------------


def test_an_input_of_its_own_is_given_as_it_is(graphs: Service) -> None:
    counting = [start("strict"), *updates({"count": {"count": 42}}), done("strict", 0, counted(3, 0))]
    assert run(graphs, "strict", input={"count": 41}) == counting
    assert told(get(graphs.port, "/strict/stream", input='{"count":41}')) == counting


CONFIG = {"tags": ["mine"], "metadata": {"my_user": 7}, "configurable": {"my_voice": "low"}, "run_name": "ours"}
CONFIGURED = {"tags": ["mine"], "metadata": {"my_user": 7}, "configurable": {"my_voice": "low"}}


def test_config_reaches_every_node(graphs: Service) -> None:
    expected = [
        start("configured"),
        ("custom", {"ns": ["inner:*"], "data": CONFIGURED}),
        ("custom", {"ns": [], "data": CONFIGURED}),
        done("configured", 0, counted(1, 0)),
    ]
    assert run(graphs, "configured", message="Hi", stream_mode="custom", config=CONFIG) == expected
    query = {"message": "Hi", "stream_mode": "custom", "config": json.dumps(CONFIG)}
    assert told(get(graphs.port, "/configured/stream", **query)) == expected


def test_context_reaches_every_node(graphs: Service) -> None:
    hello = ("token", {"token": "Hello, Ada.", "node": "greet"})
    assert hello in run(graphs, "greeting", message="Hi", context={"name": "Ada"})
    assert hello in told(get(graphs.port, "/greeting/stream", message="Hi", context='{"name":"Ada"}'))


def test_a_graph_takes_no_more_steps_than_it_may(graphs: Service) -> None:
    assert run(graphs, "endless", message="Hi", config={"recursion_limit": 3}) == [
        start("endless"),
        *updates(*[{"note": {"been": ["note"]}}] * 3),
        failed("The graph 'endless' took more steps than its recursion limit allows."),
    ]


def test_a_graph_can_run_one_node_at_a_time(graphs: Service) -> None:
    assert len(been(run(graphs, "parallel", message="Hi", config={"max_concurrency": 1}))) == 3


# --- What goes on in them, by astream_events -------------------------------------------------------------------------


def test_events_tell_what_goes_on_inside(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello", " there"))
    events = run(graphs, "speaking", message="Hi", events=True, include_types=["chat_model"])
    assert {name for name, _ in events[1:-1]} == {"events"}
    inside = of("events", events)
    names = [one["event"] for one in inside]
    assert (names[0], set(names[1:-1]), names[-1]) == (
        "on_chat_model_start",
        {"on_chat_model_stream"},
        "on_chat_model_end",
    )
    assert {one["metadata"]["langgraph_node"] for one in inside} == {"speak"}
    assert events[-1] == done("speaking", 0, USAGE)


def test_events_of_a_graph_have_its_context(graphs: Service) -> None:
    events = run(graphs, "greeting", message="Hi", context={"name": "Ada"}, events=True, include_names=["greet"])
    assert [(one["event"], one["name"]) for one in of("events", events)] == [
        ("on_chain_start", "greet"),
        ("on_chain_stream", "greet"),
        ("on_chain_end", "greet"),
    ]


@pytest.mark.parametrize("graph", ["asking", "asking_within"])
@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"include_names": ["ask"]},
        {"include_types": ["tool"]},
        {"include_tags": ["none"]},
        {"include_names": ["ask"], "config": {"run_name": "ours"}},
    ],
    ids=str,
)
def test_events_of_a_graph_that_waits_for_a_person_end_so(graphs: Service, graph: str, wanted: dict[str, Any]) -> None:
    """Whichever of them are asked for: those are told, and no others."""
    events = run(graphs, graph, message="Hi", events=True, **wanted)
    assert of("interrupt", events) == [{"id": "*", "value": {"question": "Shall I?"}}]
    assert events[-1][1]["finish_reason"] == "interrupt"
    inside = of("events", events)
    if "include_names" in wanted:
        assert {one["name"] for one in inside} == {"ask"}
    else:
        assert bool(inside) == (not wanted)


# --- How they fail ---------------------------------------------------------------------------------------------------


def failed(text: str, code: str = "graph_failed", usage: dict[str, Any] | None = None) -> tuple[str, Any]:
    told = {"done": True, "error": text, "code": code, "retryable": False}
    return "error", {**told, "usage": usage or counted(1, 0)}


FAILURES = {
    "failing": "The node 'fail' failed: ValueError.",
    "failing_first": "The node 'fail' failed: ValueError.",
    "failing_within": "The node 'fail' failed: ValueError.",
    "failing_blocking": "The node 'fail' failed: ValueError.",
    "leaving": "The node 'leave' failed: SystemExit.",
    "leaving_async": "It broke off: SystemExit.",
    "breaking": "The node 'break_off' failed: CancelledError.",
    "greeting": "The node 'greet' failed: TypeError.",
}


def tells_no_words(service: Service, client: Client) -> Told:
    """Nobody learns the words of an exception: neither who asked nor who reads the log."""
    events = told(client)
    for text in (client.raw.decode(), service.log):
        assert WORDS not in text
        assert "secret" not in text
        assert "nobody shall read" not in text
    assert "Traceback" not in client.raw.decode()
    assert ".py" not in client.raw.decode()
    return events


@pytest.mark.parametrize("graph", FAILURES)
def test_a_node_that_fails_ends_the_run_by_its_name_and_not_its_words(graphs: Service, graph: str) -> None:
    events = tells_no_words(graphs, post(graphs.port, f"/{graph}/stream", message="Hi"))
    assert events[-1] == failed(FAILURES[graph])


def test_of_nodes_that_fail_side_by_side_one_is_told(graphs: Service) -> None:
    events = tells_no_words(graphs, post(graphs.port, "/failing_both/stream", message="Hi"))
    errors = ("The node 'fail' failed: ValueError.", "The node 'fail_async' failed: LookupError.")
    assert events[1:] in [[failed(error)] for error in errors]


@pytest.mark.parametrize("modes", [["messages"], ["values"], ["tasks"], MODES], ids=str)
def test_a_failure_is_told_in_every_mode(graphs: Service, modes: list[str]) -> None:
    events = tells_no_words(graphs, post(graphs.port, "/failing/stream", message="Hi", stream_mode=modes))
    assert events[-1] == failed("The node 'fail' failed: ValueError.")
    if "tasks" in modes:
        assert of("tasks", events)[-1] == {**ends("fail", {}), "error": "ValueError"}


@pytest.mark.parametrize("tags", [["langsmith:hidden"], ["langsmith:nostream"]], ids=str)
def test_no_tag_brings_out_the_words_of_a_failure(graphs: Service, tags: list[str]) -> None:
    """LangGraph does not tell of the tasks of hidden nodes: that one has begun must be known otherwise."""
    client = post(graphs.port, "/failing/stream", message="Hi", config={"tags": tags})
    name, data = tells_no_words(graphs, client)[-1]
    assert (name, data["code"]) == ("error", "graph_failed")


def test_an_edge_that_fails_before_any_node_is_no_refusal_of_the_input(graphs: Service) -> None:
    name, data = tells_no_words(graphs, post(graphs.port, "/failing_on_the_way/stream", message="Hi"))[-1]
    assert (name, data["code"]) == ("error", "graph_failed")


@pytest.mark.parametrize("mode", ["checkpoints", "debug", "tasks", "values"])
def test_a_checkpoint_tells_no_words_of_a_failure(graphs: Service, mode: str) -> None:
    """Savers keep an error as text, and a thread that goes on begins by telling of it."""
    tells_no_words(graphs, post(graphs.port, "/failing_kept/stream", message="Hi", thread_id=mode, stream_mode=mode))
    again = post(graphs.port, "/failing_kept/stream", input=None, thread_id=mode, stream_mode=mode)
    assert tells_no_words(graphs, again)[-1][1]["code"] == "graph_failed"


def test_a_state_that_a_node_has_spoiled_is_no_input_that_was_refused(graphs: Service) -> None:
    name, data = run(graphs, "strict_later", input={"count": 1})[-1]
    assert (name, data["code"]) == ("error", "graph_failed")


def test_events_of_a_graph_that_fails_end_so(graphs: Service) -> None:
    client = post(graphs.port, "/failing/stream", message="Hi", events=True, include_types=["tool"])
    assert tells_no_words(graphs, client) == [start("failing"), failed("The node 'fail' failed: ValueError.")]


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (429, "The upstream is rate limiting us (HTTP 429)"),
        (401, "The upstream refused our credentials (HTTP 401)"),
        (500, "The upstream is unavailable (HTTP 500)"),
    ],
)
def test_a_model_that_refuses_is_told_by_its_node(graphs: Service, upstream: Upstream, status: int, why: str) -> None:
    upstream.refuse(status, {"error": {"message": WORDS, "type": "x", "code": None, "param": None}})
    events = tells_no_words(graphs, post(graphs.port, "/speaking/stream", message="Hi"))
    assert events == [start("speaking"), failed(f"The node 'speak' failed: {why}.")]


def test_what_was_told_before_a_failure_stays_and_is_paid_for(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("One."))
    upstream.refuse(500, {"error": {"message": "no"}})
    assert run(graphs, "speaking_twice", message="Hi", stream_mode="messages")[1:] == [
        ("token", {"token": "One.", "node": "speak"}),
        failed("The node 'speak_again' failed: The upstream is unavailable (HTTP 500).", usage=USAGE),
    ]


REFUSED: dict[str, tuple[str, Any, str]] = {
    "text": ("strict", "forty", "Expected dict, got forty"),
    "a list": ("strict", [1], "Expected dict, got [1]"),
    "of another type": (
        "strict",
        {"count": "x"},
        "count: Input should be a valid integer, unable to parse string as an integer",
    ),
    "without a field": ("strict", {"cuont": 1}, "count: Field required"),
    "no message": ("speaking", {"messages": [{"role": "king", "content": "Hi"}]}, ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_input_that_a_graph_does_not_take_is_refused_in_its_words(graphs: Service, case: str) -> None:
    graph, given, words = REFUSED[case]
    begun, (name, data) = run(graphs, graph, input=given)
    assert begun == start(graph)
    assert (name, data["code"], data["retryable"]) == ("error", "invalid_input", False)
    assert data["error"].startswith(f"The input was refused: {words}")
    assert "troubleshooting" not in data["error"].lower()


def test_events_of_an_input_that_is_not_taken_are_refused_as_well(graphs: Service) -> None:
    name, data = run(graphs, "strict", input="forty", events=True)[-1]
    assert (name, data["code"], data["error"]) == (
        "error",
        "invalid_input",
        "The input was refused: Expected dict, got forty",
    )


ALONE = "`input` or `resume` stands alone, without messages."
NO_CHECKPOINTER = "needs a checkpointer, and the graph 'speaking' has none."
FOR_MODELS = "is for models; a chain or graph has `config` and `context`."
BAD: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "thread_id": ("speaking", {"message": "Hi", "thread_id": "t"}, f"`thread_id` {NO_CHECKPOINTER}", "thread_id"),
    "resume": ("speaking", {"resume": "yes"}, f"`resume` {NO_CHECKPOINTER}", "resume"),
    "resume what": ("asking", {"resume": "yes"}, "Name the thread that shall go on: `thread_id`.", "thread_id"),
    "go on what": ("asking", {"input": None}, "Name the thread that shall go on: `thread_id`.", "thread_id"),
    "input and message": ("strict", {"input": {"count": 1}, "message": "Hi"}, ALONE, "input"),
    "resume and input": ("asking", {"resume": 1, "input": {}, "thread_id": "t"}, ALONE, "input"),
    "nothing": ("speaking", {}, "Send `message` or `messages`.", "message"),
    "a message": (
        "strict",
        {"message": "Hi"},
        "The graph 'strict' takes no messages. Send its own `input`, an object with `count`.",
        "input",
    ),
    "temperature": ("speaking", {"message": "Hi", "temperature": 0}, f"`temperature` {FOR_MODELS}", "temperature"),
    "tools": ("speaking", {"message": "Hi", "tools": []}, f"`tools` {FOR_MODELS}", "tools"),
    "provider_options": (
        "speaking",
        {"message": "Hi", "provider_options": {}},
        f"`provider_options` {FOR_MODELS}",
        "provider_options",
    ),
    "a mode": (
        "speaking",
        {"message": "Hi", "stream_mode": "everything"},
        "Bad request: Invalid enum value 'everything' - at `$.stream_mode`.",
        "stream_mode",
    ),
    "no mode": (
        "speaking",
        {"message": "Hi", "stream_mode": []},
        "Bad request: Expected `array` of length >= 1 - at `$.stream_mode`.",
        "stream_mode",
    ),
    "events and modes": (
        "speaking",
        {"message": "Hi", "events": True, "stream_mode": "values"},
        "Ask for `events` or a `stream_mode`, not both.",
        "events",
    ),
    "names of no events": (
        "speaking",
        {"message": "Hi", "include_names": ["x"]},
        "`include_names` chooses among `events`; ask for these.",
        "include_names",
    ),
    "an inner setting": (
        "speaking",
        {"message": "Hi", "config": {"configurable": {"__pregel_read": 1}}},
        "`config.configurable` cannot set '__pregel_read'.",
        "config",
    ),
    "a thread in config": (
        "asking",
        {"message": "Hi", "config": {"configurable": {"thread_id": "t"}}},
        "Send `thread_id` beside `config`, not in it.",
        "config",
    ),
    "an unknown setting": (
        "speaking",
        {"message": "Hi", "config": {"callbacks": []}},
        "Bad request: Object contains unknown field `callbacks` - at `$.config`.",
        "config",
    ),
    "no steps": (
        "speaking",
        {"message": "Hi", "config": {"recursion_limit": 0}},
        "Bad request: Expected `int` >= 1 - at `$.config.recursion_limit`.",
        "config",
    ),
    "a context": (
        "greeting",
        {"message": "Hi", "context": "Ada"},
        "Bad request: Expected `object | null`, got `str` - at `$.context`.",
        "context",
    ),
    "events of a synchronous graph": (
        "sleeping_blocking",
        {"message": "Hi", "events": True},
        "`events` needs an asynchronous checkpointer, and the graph 'sleeping_blocking' has another.",
        "events",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_request_that_means_nothing_is_refused(graphs: Service, case: str) -> None:
    graph, body, text, field = BAD[case]
    assert refused(post(graphs.port, f"/{graph}/stream", **body)) == (400, "invalid_request", text, field)


@pytest.mark.parametrize("field", ["input", "resume", "thread_id", "stream_mode", "config", "context", "events"])
def test_what_is_for_graphs_is_refused_by_models(graphs: Service, field: str) -> None:
    values = {"stream_mode": "values", "config": {}, "context": {}, "events": True}
    body = {field: values.get(field, "x"), **({} if field in ("input", "resume") else {"message": "Hi"})}
    text = f"`{field}` is for chains and graphs; scripted is neither."
    assert refused(post(graphs.port, "/scripted/stream", **body)) == (400, "invalid_request", text, field)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("config", "{", "`config` is not valid JSON."),
        ("context", "Ada", "`context` is not valid JSON."),
        ("stream_mode", "values,", "Bad request: Invalid enum value '' - at `$.stream_mode[1]`."),
    ],
)
def test_a_parameter_that_cannot_be_read_is_refused(graphs: Service, name: str, value: str, text: str) -> None:
    client = get(graphs.port, "/speaking/stream", message="Hi", **{name: value})
    assert refused(client) == (400, "invalid_request", text, name)


@pytest.mark.parametrize(
    ("path", "model", "text"),
    [
        ("/nobody/stream", None, "There is no provider 'nobody'. Ready: "),
        ("/langgraph/stream", "nobody", "langgraph has no 'nobody', but speaking, speaking_blocking, "),
        ("/chat/stream", "langgraph/nobody", "langgraph has no 'nobody', but speaking, speaking_blocking, "),
        ("/chat/stream", "nobody", "There is no model 'nobody'. Ready: "),
        ("/speaking/stream", "within", "This path is langgraph/speaking's; ask for 'within' elsewhere."),
        ("/chat/stream", "speaking/within", "speaking is a model: ask for langgraph/speaking."),
    ],
)
def test_a_graph_that_is_not_known_is_told_with_those_that_are(
    graphs: Service, path: str, model: str | None, text: str
) -> None:
    status, code, detail, field = refused(post(graphs.port, path, message="Hi", **({"model": model} if model else {})))
    assert (status, code, field) == (404, "unknown_model", "model")
    assert detail.startswith(text)
    if "Ready" in text:
        assert detail.endswith(f"{', '.join(NAMES)}.")


# --- How they are found ----------------------------------------------------------------------------------------------

BAD_TARGETS = {
    "nowhere": ("no_such_module:graph", "cannot import no_such_module:graph: ModuleNotFoundError: No module named"),
    "nothing": ("tests.graphs:no_such_graph", "cannot import tests.graphs:no_such_graph: AttributeError: module"),
    "uncompiled": (
        "tests.graphs:not_compiled",
        "tests.graphs:not_compiled is a graph that is not compiled, not a compiled graph",
    ),
    "number": ("tests.graphs:no_graph", "tests.graphs:no_graph is a int, not a compiled graph"),
    "raising": ("tests.graphs:raising", "tests.graphs:raising fails: RuntimeError: no database"),
    "chain": ("tests.graphs:chain", "tests.graphs:chain is a RunnableLambda, not a compiled graph"),
    "openai": ("tests.graphs:speaking", "not a name for a path, or taken"),
    "scripted": ("tests.graphs:speaking", "not a name for a path, or taken"),
    "chat": ("tests.graphs:speaking", "not a name for a path, or taken"),
    "runs": ("tests.graphs:speaking", "not a name for a path, or taken"),
    "a/b": ("tests.graphs:speaking", "not a name for a path, or taken"),
}


def refusal_to_start(**environ: str) -> list[str]:
    """Start the command with these settings, which it refuses; return what it says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    command = [sys.executable, "-c", "import command; command.main()"]
    ended = subprocess.run(
        command, cwd=ROOT, env={**clean, **environ}, capture_output=True, text=True, timeout=20, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    heading, *problems = ended.stderr.rstrip("\n").split("\n")
    assert heading == "Bad settings:"
    return [problem.strip() for problem in problems]


def test_bad_graphs_stop_the_start_with_one_message_that_names_them_all() -> None:
    targets = {name: target for name, (target, _) in BAD_TARGETS.items()}
    problems = refusal_to_start(SIDESTREAM_GRAPHS=json.dumps(targets), OPENAI_API_KEY=OPENAI_KEY, SIDESTREAM_KEEP="-1")
    assert problems[0].startswith("SIDESTREAM_KEEP: ")
    assert len(problems) == 1 + len(BAD_TARGETS), problems
    for name, (_, words) in BAD_TARGETS.items():
        assert any(problem.startswith(f"langgraph: {name}: {words}") for problem in problems), (name, problems)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("agent", "SIDESTREAM_GRAPHS: Expected `name=module:attr`, got `agent`"),
        ("agent=module", "SIDESTREAM_GRAPHS: agent: Expected `module:attr`, got `module`"),
    ],
)
def test_a_setting_of_graphs_that_says_nothing_stops_the_start(setting: str, problem: str) -> None:
    (told,) = refusal_to_start(SIDESTREAM_GRAPHS=setting)
    assert told.startswith(problem)


@pytest.mark.parametrize(
    ("graph", "names"),
    [
        ("failing", ["start", "updates", "error"]),
        ("failing_first", ["start", "start", "token", "done"]),
    ],
)
def test_a_graph_that_has_told_of_a_step_is_left_for_no_other_and_one_that_has_not_is(
    graphs: Service, graph: str, names: list[str]
) -> None:
    """Its tools may have done things. It is asked once in any case."""
    with post(graphs.port, "/chat/stream", message="Hi", model=[f"langgraph/{graph}", "scripted/echo"]) as client:
        events = told(client)
        status = status_of(graphs.port, client.head()[1]["content-location"])
    assert [name for name, _ in events] == names
    assert (status["retries"], status["failovers"]) == (0, names.count("start") - 1)
