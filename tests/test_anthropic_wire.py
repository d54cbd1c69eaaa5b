"""Anthropic's Messages wire, without a network: its bytes for every run, what its SDK makes of them, and its requests.

That the stream can be ended is proved by the accumulator of Anthropic's own SDK, and each event by its types.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import httpx2
import msgspec
import pytest
from anthropic import Anthropic, APIStatusError, Stream, not_given
from anthropic.lib.streaming import MessageStream
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from pydantic import TypeAdapter

from providers.anthropic import body as body_of
from streaming.errors import RequestError, ServiceError, UpstreamError, fault
from streaming.events import Done, Event, Reasoning, Token, ToolCall, ToolCallDelta, Usage
from wires.anthropic import Events, decode, error, tell
from wires.anthropic_message import input_of, usage, whole
from wires.fold import Folded

from .asgi import Exchange, ask, make_app, run
from .folds import PARIS, ROME, RUN, RUNS, SIGNATURE, call, check_golden, done, folded, log_of, piecemeal, start

CLIENT = Anthropic(api_key="none", base_url="http://127.0.0.1:9")
# What this wire has an answer to beside what all have.
OWN: dict[str, list[Event]] = {
    "tool-in-words": [start(), *call(0, "weather", "Paris, please", "Paris, ", "please"), done("tool_calls")],
    "tool-of-a-list": [start(), ToolCall("call_0", "weather", ["Paris"]), done("tool_calls")],
    "tools-of-one-id": [
        start(),
        ToolCallDelta(0, '{"city":"Paris"}', "", "weather"),
        ToolCallDelta(1, '{"city":"Rome"}', "", "weather"),
        ToolCall("", "weather", PARIS),
        ToolCall("", "weather", ROME),
        done("tool_calls"),
    ],
    "tools-and-text-at-once": [
        start(),
        ToolCallDelta(0, '{"city":', "call_0", "weather"),
        Token("Mean"),
        ToolCallDelta(1, '{"city":"Rome"', "call_1", "weather"),
        Token("while."),
        ToolCallDelta(0, '"Paris"}'),
        ToolCall("call_0", "weather", PARIS),
        done("length"),
    ],
}
ALL = {**RUNS, **OWN}
WHOLE = {name: events for name, events in ALL.items() if isinstance(ending := events[-1], Done)}
WHOLE = {name: events for name, events in WHOLE.items() if events[-1].finish_reason != "interrupt"}
BROKEN = ("tool-in-words", "tool-not-json")  # what was written for a tool is no object
CUT = ("tool-cut", "tools-and-text-at-once")  # and the SDK makes of it what it can
STREAMED = [name for name in WHOLE if not name.startswith("reset") and name not in BROKEN]


def encoded(events: Sequence[Event]) -> bytes:
    return folded(Folded(Events(RUN)), events)


def told(data: bytes) -> list[dict[str, Any]]:
    """Return the events, each of which has its name twice."""
    events = []
    for block in data.decode().split("\n\n")[:-1]:
        name, text = block.split("\n")
        events.append(json.loads(text.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


TEXTS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def joined(data: bytes) -> list[dict[str, Any]]:
    """Return the events, adjacent deltas of one block joined."""
    out: list[dict[str, Any]] = []
    for event in told(data):
        text = TEXTS.get(event.get("delta", {}).get("type"))
        if text and out[-1].get("delta", {}).get("type") == event["delta"]["type"]:
            out[-1]["delta"][text] += event["delta"][text]
        else:
            out.append(event)
    return out


def accumulated(data: bytes) -> Message:
    """Return what Anthropic's SDK makes of a stream."""
    asked = httpx2.Request("POST", "http://127.0.0.1:9")
    response = httpx2.Response(200, content=data, headers={"content-type": "text/event-stream"}, request=asked)
    raw = Stream(cast_to=RawMessageStreamEvent, response=response, client=CLIENT)
    return MessageStream(raw, output_format=not_given).get_final_message()


def plain(message: Message) -> dict[str, Any]:
    known = message.to_dict(mode="json")
    for block in known["content"]:
        block.pop("parsed_output", None)
    return known


def whole_of(events: Sequence[Event]) -> Any:
    return whole(SimpleNamespace(id=RUN, terminal=events[-1], log=log_of(events)))


# What it says


@pytest.mark.parametrize("name", ALL)
def test_a_runs_bytes_are_these(name: str) -> None:
    check_golden("anthropic", name, encoded(ALL[name]))


@pytest.mark.parametrize("name", ALL)
def test_what_comes_piecemeal_says_the_same_as_what_comes_at_once(name: str) -> None:
    pieces = b"".join(piecemeal(Folded(Events(RUN)), ALL[name]))
    assert joined(pieces) == joined(encoded(ALL[name]))
    each = folded(Folded(Events(RUN), merges=False), ALL[name])
    assert pieces == each


@pytest.mark.parametrize("name", ALL)
def test_each_event_is_of_the_sdks_types_and_one_block_is_open_at_a_time(name: str) -> None:
    check_shape(told(encoded(ALL[name])))


def check_shape(events: list[dict[str, Any]]) -> None:
    """Hold a stream against the SDK's types, and against the order of the API."""
    known: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    opened, is_open = -1, False
    for event in events:
        if event["type"] == "error":
            continue
        assert known.validate_python(event).to_dict(mode="json") == event
        if event["type"] == "content_block_start":
            assert not is_open
            opened, is_open = opened + 1, True
        if event["type"].startswith("content_block"):
            assert (event["index"], is_open) == (opened, True)
        if event["type"] == "content_block_stop":
            is_open = False
    names = [event["type"] for event in events if not event["type"].startswith("content_block")]
    assert names in (
        ["message_start", "message_delta", "message_stop"],
        ["message_start", "error"],
        ["error"],
    )


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_answer_is_this(name: str) -> None:
    check_golden("anthropic", f"whole-{name}", json.dumps(whole_of(WHOLE[name]), indent=1, ensure_ascii=False).encode())


@pytest.mark.parametrize("name", [name for name in STREAMED if name not in CUT])
def test_the_sdk_makes_of_a_stream_what_who_wants_none_is_told(name: str) -> None:
    answer = whole_of(WHOLE[name])
    streamed = {**answer, "model": _asked(name)}
    streamed["usage"] = {field: value for field, value in answer["usage"].items() if field != "estimated"}
    assert plain(accumulated(encoded(WHOLE[name]))) == streamed  # what it does not know of usage, it leaves out


def _asked(name: str) -> str:
    """The model of a stream is known before who answers as what."""
    return next(event.model for event in reversed(WHOLE[name]) if event.name == "start")


@pytest.mark.parametrize("name", CUT)
def test_of_a_call_that_was_cut_the_sdk_makes_what_it_can(name: str) -> None:
    message = accumulated(encoded(WHOLE[name]))
    assert message.stop_reason == "max_tokens"
    assert [block.type for block in message.content].count("tool_use") > 0


@pytest.mark.parametrize("name", BROKEN)
def test_an_answer_whose_input_is_no_object_fails(name: str) -> None:
    assert told(encoded(WHOLE[name]))[-1]["type"] == "error"


def test_an_answer_that_was_taken_back_is_not_in_the_whole_one() -> None:
    assert whole_of(RUNS["reset"])["content"] == [{"type": "text", "text": "Hello, world"}]


def test_a_graph_that_waits_for_a_person_is_an_error_to_who_wants_no_stream() -> None:
    with pytest.raises(RequestError, match=r"^The graph waits for a person; here that cannot be told\.$"):
        whole_of(RUNS["interrupt"])


@pytest.mark.parametrize("ends", ["its own end", "the end of all"])
def test_nothing_follows_an_error_whatever_has_waited_for_the_end_of_a_call(ends: str) -> None:
    fails = [ToolCallDelta(1, "[1]", "b", "g"), ToolCall("b", "g", [1])]
    whole = [ToolCall("a", "f", {})] if ends == "its own end" else []
    events = [start(), ToolCallDelta(0, "{", "a", "f"), *fails, Token("x"), *whole, done("tool_calls")]
    names = [event["type"] for event in told(encoded(events))]
    assert names[-2:] == ["content_block_delta", "error"]
    assert "message_delta" not in names


_ids = st.sampled_from(["call_0", "call_1", ""])
_args = st.sampled_from([{}, PARIS, "Paris", ["Paris"], 5, None])
_parts = st.sampled_from(["", '{"city":', '"Paris"}', "Paris"])
_said = st.one_of(
    st.builds(Token, st.sampled_from("abc")),
    st.builds(Reasoning, st.sampled_from("abc")),
    st.builds(Reasoning, st.just(""), signature=st.sampled_from(["s", "t"])),
    st.builds(ToolCallDelta, st.integers(0, 1), _parts, _ids, st.just("weather")),
    st.builds(ToolCallDelta, st.integers(0, 1), _parts),
    st.builds(ToolCall, _ids, st.just("weather"), _args),
    st.builds(ToolCall, _ids, st.just("weather"), _args, st.just("tools")),
)


@settings(deadline=None)  # another process may have the core
@given(st.lists(_said, max_size=12))
def test_whatever_is_said_makes_a_stream_that_the_sdk_can_end(events: list[Event]) -> None:
    data = encoded([start(), *events, done()])
    check_shape(told(data))
    try:
        accumulated(data)
    except APIStatusError:
        assert told(data)[-1]["type"] == "error"
    except ValueError as exc:  # what was written is no JSON, which it finds before it is told
        if "Unable to parse tool parameter JSON" not in str(exc):
            raise


_whole_calls = st.lists(
    st.one_of(
        st.builds(Token, st.sampled_from("abc")).map(lambda event: [event]),
        st.builds(Reasoning, st.sampled_from("abc")).map(lambda event: [event]),
        st.just([Reasoning("", signature="s")]),
        st.tuples(st.integers(0, 2), _args).map(
            lambda pair: [
                ToolCallDelta(pair[0], "", f"call_{pair[0]}", "weather"),
                ToolCall(f"call_{pair[0]}", "weather", pair[1]),
            ]
        ),
    ),
    max_size=8,
)


@settings(deadline=None)
@given(_whole_calls)
def test_a_stream_and_a_whole_answer_say_the_same(said: list[list[Event]]) -> None:
    events = [start(), *(event for some in said for event in some), done(model="gpt-4o-mini")]
    assert plain(accumulated(encoded(events))) == whole_of(events)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"a": 1}, {"a": 1}),
        ("", {}),
        ('{"a":1}', {"a": 1}),
        ('{"a', {"INVALID_JSON": '{"a'}),
        ("5", {"INVALID_JSON": "5"}),
        ([1], {"INVALID_JSON": "[1]"}),
        (None, {"INVALID_JSON": "null"}),
        ("[" * 100_000, {"INVALID_JSON": "[" * 100_000}),
    ],
)
def test_a_calls_input_is_an_object_whatever_the_model_wrote(args: Any, told: Any) -> None:
    assert input_of(args) == told


@pytest.mark.parametrize(
    ("counted", "told"),
    [
        (Usage(14, 8), {"input_tokens": 14, "output_tokens": 8}),
        (Usage(14, 8, cached_tokens=6), {"input_tokens": 8, "cache_read_input_tokens": 6, "output_tokens": 8}),
        (Usage(6, 8, cached_tokens=6), {"input_tokens": 0, "cache_read_input_tokens": 6, "output_tokens": 8}),
        (
            Usage(1, 8, reasoning_tokens=2),
            {"input_tokens": 1, "output_tokens": 8, "output_tokens_details": {"thinking_tokens": 2}},
        ),
        (Usage(3, 4, estimated=True), {"input_tokens": 3, "output_tokens": 4, "estimated": True}),
    ],
)
def test_cached_input_is_counted_apart(counted: Usage, told: dict[str, Any]) -> None:
    assert usage(counted) == told


# Errors


ERRORS = {
    "invalid_request": (400, "invalid_request_error"),
    "invalid_input": (400, "invalid_request_error"),
    "unauthorized": (401, "authentication_error"),
    "forbidden": (403, "permission_error"),
    "not_found": (404, "not_found_error"),
    "unknown_model": (404, "not_found_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "not_acceptable": (406, "invalid_request_error"),
    "request_timeout": (408, "timeout_error"),
    "conflict": (409, "invalid_request_error"),
    "cancelled": (409, "invalid_request_error"),
    "interrupted": (409, "invalid_request_error"),
    "too_large": (413, "request_too_large"),
    "unsupported_media_type": (415, "invalid_request_error"),
    "rate_limited": (429, "rate_limit_error"),
    "upstream_auth": (502, "api_error"),
    "upstream_rejected": (400, "invalid_request_error"),
    "upstream_rate_limited": (429, "rate_limit_error"),
    "upstream_unavailable": (502, "api_error"),
    "upstream_incomplete": (502, "api_error"),
    "upstream_invalid": (502, "api_error"),
    "content_filtered": (400, "invalid_request_error"),
    "context_length": (400, "invalid_request_error"),
    "graph_failed": (502, "api_error"),
    "first_token_timeout": (504, "timeout_error"),
    "idle_timeout": (504, "timeout_error"),
    "run_timeout": (504, "timeout_error"),
    "output_limit": (500, "api_error"),
    "overloaded": (529, "overloaded_error"),
    "shutting_down": (503, "overloaded_error"),
    "unavailable": (503, "overloaded_error"),
    "run_lost": (502, "api_error"),
    "internal": (500, "api_error"),
}


@pytest.mark.parametrize("code", [*RequestError.codes, *UpstreamError.codes, *ServiceError.codes])
def test_a_fault_is_known_by_its_status_and_its_type(code: str) -> None:
    failed = fault(code, "So it is.")
    response = tell(failed)
    assert (response.status_code, error(failed)["error"]["type"]) == ERRORS[code]
    assert json.loads(response.body) == {
        "type": "error",
        "error": {"type": ERRORS[code][1], "message": "So it is."},
        "request_id": None,
    }
    assert response.headers.get("x-should-retry") == (None if failed.retryable else "false")
    assert ("retry-after" in response.headers) == (failed.status in (429, 503))


# Requests


def asked(**fields: Any) -> dict[str, Any]:
    """What becomes of a request in our words, without what was not said."""
    chat = decode(json.dumps({"messages": [{"role": "user", "content": "Hi"}], **fields}).encode()).chat
    known = msgspec.to_builtins(chat)
    return {name: value for name, value in known.items() if value is not None and (name, value) != ("events", False)}


def turns(*messages: Any) -> Any:
    return asked(messages=messages)["messages"]


PNG = {"type": "base64", "media_type": "image/png", "data": "aGk="}
USE = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}
CALLED = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}


@pytest.mark.parametrize(
    ("messages", "ours"),
    [
        ([("user", "Hi")], [("user", "Hi")]),
        ([("user", [{"type": "text", "text": "Hi"}])], [("user", "Hi")]),
        (
            [("user", [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}])],
            [("user", "Hi")],
        ),
        (
            [("user", [{"type": "text", "text": "A"}, {"type": "text", "text": ""}, {"type": "text", "text": "B"}])],
            [("user", [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}])],
        ),
        (
            [("user", [{"type": "image", "source": PNG}, {"type": "text", "text": "What?"}])],
            [
                (
                    "user",
                    [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                        {"type": "text", "text": "What?"},
                    ],
                )
            ],
        ),
        (
            [("user", [{"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}}])],
            [("user", [{"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}])],
        ),
        ([("user", "Hi"), ("assistant", "Ho"), ("user", "Hi")], [("user", "Hi"), ("assistant", "Ho"), ("user", "Hi")]),
        ([("user", "Hi"), ("system", "Be brief.")], [("user", "Hi"), ("system", "Be brief.")]),
        ([("user", "Hi"), ("assistant", ""), ("assistant", [])], [("user", "Hi")]),
        (
            [
                ("user", "Hi"),
                (
                    "assistant",
                    [
                        {"type": "thinking", "thinking": "Hm.", "signature": SIGNATURE},
                        {"type": "redacted_thinking", "data": "Eq"},
                    ],
                ),
            ],
            [("user", "Hi")],
        ),
    ],
)
def test_messages_are_the_same_in_our_words(messages: Any, ours: Any) -> None:
    told = turns(*({"role": role, "content": content} for role, content in messages))
    assert told == [{"role": role, "content": content} for role, content in ours]


@pytest.mark.parametrize(
    ("result", "ours"),
    [
        ({}, ""),
        ({"content": "clear"}, "clear"),
        ({"content": [{"type": "text", "text": "clear"}]}, "clear"),
        ({"content": [{"type": "text", "text": ""}]}, []),
        (
            {"content": [{"type": "text", "text": "clear"}, {"type": "image", "source": PNG}]},
            [
                {"type": "text", "text": "clear"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
            ],
        ),
        ({"content": "no such city", "is_error": True}, "Error: no such city"),
        ({"content": "clear", "is_error": False}, "clear"),
        ({"is_error": True}, "Error: "),
        (
            {"content": [{"type": "text", "text": "no such city"}], "is_error": True},
            [{"type": "text", "text": "Error:"}, {"type": "text", "text": "no such city"}],
        ),
    ],
)
def test_a_call_and_its_result_are_an_assistants_and_a_tools(result: dict[str, Any], ours: Any) -> None:
    told = turns(
        {"role": "user", "content": "How is it?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": SIGNATURE},
                {"type": "text", "text": "Let me look."},
                USE,
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t1", **result}, {"type": "text", "text": "Well?"}],
        },
    )
    assert told == [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [CALLED]},
        {"role": "tool", "content": ours, "tool_call_id": "t1"},
        {"role": "user", "content": "Well?"},
    ]


def test_a_call_without_words_and_results_in_a_row() -> None:
    calls = [USE, {**USE, "id": "t2"}]
    results = [{"type": "tool_result", "tool_use_id": one, "content": one} for one in ("t1", "t2")]
    told = turns(
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": calls}, {"role": "user", "content": results}
    )
    assert told[1:] == [
        {"role": "assistant", "tool_calls": [CALLED, {**CALLED, "id": "t2"}]},
        {"role": "tool", "content": "t1", "tool_call_id": "t1"},
        {"role": "tool", "content": "t2", "tool_call_id": "t2"},
    ]


SCHEMA = {"type": "object"}
WEATHER = {"name": "weather", "description": "Tell the weather.", "input_schema": {"type": "object"}}
FUNCTION = {
    "type": "function",
    "function": {"name": "weather", "description": "Tell the weather.", "parameters": {"type": "object"}},
}


@pytest.mark.parametrize(
    ("fields", "ours"),
    [
        ({"model": "claude-haiku-4-5"}, {"model": "claude-haiku-4-5"}),
        ({"model": ["openai/a", "anthropic/b"]}, {"model": ["openai/a", "anthropic/b"]}),
        ({"system": "Be brief."}, {"system": "Be brief."}),
        (
            {"system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]},
            {"system": "Be brief.\n\nBe kind."},
        ),
        ({"max_tokens": 100, "temperature": 0.5, "top_p": 0.9}, {"max_tokens": 100, "temperature": 0.5, "top_p": 0.9}),
        ({"stop_sequences": ["END"]}, {"stop": ["END"]}),
        ({"stop_sequences": []}, {}),
        (
            {"tools": [{**WEATHER, "cache_control": {"type": "ephemeral"}, "eager_input_streaming": True}]},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "weather",
                            "description": "Tell the weather.",
                            "parameters": {"type": "object"},
                        },
                    }
                ]
            },
        ),
        (
            {"tools": [{"type": "custom", "name": "now", "input_schema": {}, "strict": True}]},
            {"tools": [{"type": "function", "function": {"name": "now", "parameters": {}, "strict": True}}]},
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            {"tools": [FUNCTION], "tool_choice": "auto", "parallel_tool_calls": False},
        ),
        ({"tool_choice": {"type": "auto"}}, {}),  # there is nothing to choose
        ({"tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "none"}}, {}),
        (
            {"tool_choice": {"type": "tool", "name": "weather"}},
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
        ),
        ({"output_config": {"effort": "low"}}, {}),
        (
            {"metadata": {"user_id": "u"}, "thinking": {"type": "adaptive"}, "top_k": 5, "service_tier": "auto"},
            {},
        ),
        ({"sidestream": {"thread_id": "t", "linger": 5}}, {"thread_id": "t", "linger": 5.0}),
        ({"max_tokens": 5, "sidestream": {"max_tokens": 7}}, {"max_tokens": 7}),
    ],
)
def test_a_field_becomes_ours(fields: dict[str, Any], ours: dict[str, Any]) -> None:
    known = asked(**fields)
    assert known.pop("messages") == [{"role": "user", "content": "Hi"}]
    assert known == ours


def test_an_input_of_a_graphs_own_stands_in_place_of_messages() -> None:
    for messages in ([{"role": "user", "content": "Hi"}], None):
        known = asked(messages=messages, sidestream={"input": {"topic": "sun"}})
        assert (known["input"], known.get("messages")) == ({"topic": "sun"}, None)


def test_an_upstream_of_the_same_api_gets_the_body_as_it_came() -> None:
    body = {
        "model": "claude-haiku-4-5",
        "max_tokens": 100,
        "stream": True,
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "Hm.", "signature": SIGNATURE}, USE],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "is_error": True}]},
        ],
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "metadata": {"user_id": "u"},
        "field_to_come": 1,
    }
    request = decode(json.dumps({**body, "sidestream": {"linger": 5}}).encode())
    assert (request.api, request.streams, request.verbatim) == ("anthropic", True, body)
    assert decode(json.dumps({**body, "stream": False}).encode()).streams is False


@pytest.mark.parametrize("asked", [{}, {"max_tokens": None}])
def test_an_upstream_of_the_same_api_gets_the_max_tokens_that_it_demands(asked: dict[str, Any]) -> None:
    request = decode(json.dumps({"messages": [HI], **asked}).encode())
    run = replace(request.chat.to_run("m"), verbatim=request.verbatim)
    assert body_of(run) == {"model": "m", "messages": [HI], "max_tokens": 4096, "stream": True}


def test_thoughts_that_another_upstream_has_not_signed_are_not_shown_to_this_one() -> None:
    thoughts = [{"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "thinking", "thinking": "Hm."}]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [*thoughts, {"type": "text", "text": "Ho"}]},
    ]
    request = decode(json.dumps({"messages": messages}).encode())
    assert request.verbatim == {
        "messages": [messages[0], {"role": "assistant", "content": [{"type": "text", "text": "Ho"}]}]
    }


def test_a_message_of_nothing_but_such_thoughts_is_not_shown_either() -> None:
    thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": ""}]}
    request = decode(json.dumps({"messages": [HI, thought, HI]}).encode())
    assert request.verbatim == {"messages": [HI, HI]}
    assert [message.content for message in request.chat.messages or ()] == ["Hi", "Hi"]


def test_what_our_own_words_say_beside_a_body_is_said_to_the_same_api_too() -> None:
    """So the body does not go as it came."""
    request = decode(json.dumps({"messages": [], "sidestream": {"temperature": 0}}).encode())
    assert (request.verbatim, request.chat.temperature) == (None, 0)


HI = {"role": "user", "content": "Hi"}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "Send `messages`.", "messages"),
    ({"messages": []}, "empty", "messages"),
    ({"messages": "Hi"}, "Expected `array", "messages"),
    ({"messages": [1]}, "Expected `object", "messages"),
    ({"messages": [{}]}, "role", "messages"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "role", "messages"),
    ({"messages": [{"role": "user"}]}, "no content", "messages"),
    ({"messages": [{"role": "user", "content": ""}]}, "no content", "messages"),
    ({"messages": [{"role": "user", "content": []}]}, "no content", "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "content", "messages"),
    ({"messages": [{"role": "tool", "content": "clear"}]}, "answers no call", "messages"),
    ({"messages": [{"role": "user", "content": [5]}]}, "Content can be", "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "content", "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "document", "source": PNG}]}]}, "document", "messages"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]},
        "Content can be",
        "messages",
    ),
    (
        {"messages": [HI, {"role": "assistant", "content": [{"type": "server_tool_use", "id": "s"}]}]},
        "server_tool_use",
        "messages",
    ),
    ({"messages": [HI, {"role": "assistant", "content": [{"type": "tool_use"}]}]}, "tool_use", "messages"),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": 5}]}]},
        "a text or a list",
        "messages",
    ),
    ({"messages": [HI], "system": 5}, "system", "system"),
    ({"messages": [HI], "system": [{"type": "image"}]}, "text blocks", "system"),
    ({"messages": [HI], "max_tokens": 0}, "max_tokens", "max_tokens"),
    ({"messages": [HI], "max_tokens": "many"}, "max_tokens", "max_tokens"),
    ({"messages": [HI], "temperature": 3}, "temperature", "temperature"),
    ({"messages": [HI], "tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search", "tools"),
    ({"messages": [HI], "tools": [{"input_schema": {}}]}, "name", "tools"),
    ({"messages": [HI], "tools": [{"name": "f", "input_schema": []}]}, "parameters", "tools"),
    ({"messages": [HI], "tool_choice": {"type": "some"}}, "tool_choice", "tool_choice"),
    ({"messages": [HI], "tool_choice": "auto"}, "tool_choice", "tool_choice"),
    ({"messages": [HI], "output_config": {"format": {"type": "text"}}}, "json_schema", "output_config"),
    ({"messages": [HI], "mcp_servers": [{"url": "https://a.example"}]}, "MCP", "mcp_servers"),
    ({"messages": [HI], "container": "c"}, "Containers", "container"),
    ({"messages": [HI], "stream": "yes"}, "stream", "stream"),
    ({"messages": [HI], "sidestream": {"message": "Ho"}}, "sidestream", "sidestream"),
    ({"messages": [HI], "sidestream": 5}, "sidestream", "sidestream"),
]


@pytest.mark.parametrize(("body", "text", "field"), REFUSED)
def test_what_cannot_be_answered_is_refused_with_its_reason(body: dict[str, Any], text: str, field: str) -> None:
    with pytest.raises(RequestError) as raised:
        decode(json.dumps(body).encode()).chat.to_run("m")
    assert text in raised.value.text
    assert (raised.value.code, raised.value.field) == ("invalid_request", field)


def post(body: bytes, path: str = "/v1/messages", **headers: str) -> Exchange:
    async def test() -> Exchange:
        told = {"content-type": "application/json", **headers}
        return await ask(await make_app(), "POST", path, headers=told, body=body)

    return run(test())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b'"Hi"',
        b"{",
        b"\xff",
        b'{"messages":' + b"[" * 5000,
        *(json.dumps({"model": "scripted/echo", **body}).encode() for body, _, _ in REFUSED),
    ],
)
def test_rubbish_is_refused_as_anthropic_does(body: bytes) -> None:
    exchange = post(body)
    refused = json.loads(exchange.body)
    assert (exchange.status, exchange.headers["content-type"]) == (400, "application/json")
    assert refused == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": refused["error"]["message"]},
        "request_id": None,
    }


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "id"]), inner),
    max_leaves=6,
)
_kinds = ["text", "image", "tool_use", "tool_result", "thinking", "document"]
_fields = ["text", "source", "id", "name", "input", "tool_use_id", "content", "is_error"]
_others = ["system", "tools", "tool_choice", "output_config", "stop_sequences", "sidestream", "stream"]
_block = st.fixed_dictionaries(
    {"type": st.sampled_from(_kinds)},
    optional=dict.fromkeys(_fields, _json),
)
_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": st.lists(_block | _json, max_size=3)}
)
_body = st.fixed_dictionaries(
    {"messages": st.lists(_message | _json, max_size=3) | _json},
    optional=dict.fromkeys(_others, _json),
)


@settings(deadline=None, max_examples=300)
@given(_body)
def test_whatever_is_asked_is_understood_or_refused(body: Any) -> None:
    with suppress(RequestError):
        decode(json.dumps(body).encode()).chat.to_run("m")


@pytest.mark.parametrize("depth", range(850, 1000, 10))
def test_input_of_any_depth_is_understood_or_refused(depth: int) -> None:
    deep = b'{"type":"tool_use","id":"t","name":"f","input":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
    body = b'{"model":"scripted/echo","messages":[{"role":"assistant","content":[' + deep + b"]}]}"
    assert post(body).status in (200, 400)


def test_other_faults_of_the_way_are_told_as_anthropic_does() -> None:
    wrong_type = post(b"{}", **{"content-type": "text/plain"})
    unknown = post(json.dumps({"model": "scripted/nobody-knows", "messages": [HI]}).encode())
    assert (wrong_type.status, json.loads(wrong_type.body)["error"]["type"]) == (415, "invalid_request_error")
    assert json.loads(unknown.body)["type"] == "error"
