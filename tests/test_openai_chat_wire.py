"""OpenAI's Chat Completions: a run in its words, byte for byte and as its SDK reads them; and requests as read."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from providers.openai import Translation
from streaming.errors import RequestError
from streaming.events import Done, Event, Finish, Reasoning, Token, ToolCall
from streaming.request import RunRequest
from streaming.run import Run
from wires.chat import ChatRequest, decode_body
from wires.fold import Folded
from wires.openai_chat import Chunks, decode, whole

from .asgi import ask, make_app, run
from .folds import PARIS, RUN, RUNS, call, check_golden, done, folded, log_of, piecemeal, start

WHOLE = {name: events for name, events in RUNS.items() if isinstance(events[-1], Done) and "reset" not in name}
ANSWERED = {name: events for name, events in WHOLE.items() if name != "interrupt"}
UNSAYABLE = [name for name in RUNS if name not in ANSWERED]
each_run = pytest.mark.parametrize("name", RUNS)
each_answer = pytest.mark.parametrize("name", ANSWERED)


def form(*, wants_usage: bool = True) -> Folded:
    return Folded(Chunks(RUN, wants_usage=wants_usage), holds=True)


def told(bytes_: bytes) -> list[Any]:
    """The data of each event, parsed but for `[DONE]`."""
    frames = bytes_.decode().split("\n\n")
    assert frames.pop() == ""
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames), frames
    data = [frame.removeprefix("data: ") for frame in frames]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def chunks(name: str) -> list[Any]:
    return [one for one in told(folded(form(), RUNS[name])) if one != "[DONE]"]


def joined(data: list[Any]) -> list[Any]:
    """Join adjacent deltas of one kind, as their readers do."""
    out: list[Any] = []
    for one in data:
        kind, text, rest = _delta(one)
        if out and kind != "" and kind == out[-1][0] and rest is None:
            out[-1][1] += text
        else:
            out.append([kind, text, rest])
    return out


def _delta(one: Any) -> tuple[Any, str, Any]:
    """Of what kind a chunk is, its text, and what else there is to it."""
    delta = one["choices"][0]["delta"] if isinstance(one, dict) and one.get("choices") else {}
    for kind in ("content", "reasoning_content"):
        if list(delta) == [kind]:
            return kind, delta[kind], None
    if list(delta) == ["tool_calls"]:
        (call,) = delta["tool_calls"]
        return call["index"], call["function"].pop("arguments"), one if "id" in call else None
    return "", "", one


def of(events: list[Event]) -> Run:
    """A run that is over, of which this is the log."""
    run = Run.__new__(Run)
    run.id, run.log, run.created = RUN, log_of(events), 1_795_261_842.9
    run.terminal = events[-1]  # as each run of these ends
    return run


# What is told


@each_run
def test_a_run_is_told_in_these_bytes(name: str) -> None:
    check_golden("openai_chat", name, folded(form(), RUNS[name]))


@each_run
def test_it_says_the_same_however_it_comes(name: str) -> None:
    pieces = b"".join(piecemeal(form(), RUNS[name]))
    assert joined(told(pieces)) == joined(told(folded(form(), RUNS[name])))


@each_run
def test_every_chunk_is_of_the_sdks_type(name: str) -> None:
    for chunk in chunks(name):
        if "error" not in chunk:
            ChatCompletionChunk.model_validate(chunk, strict=True)


@each_run
def test_usage_is_told_last_and_to_those_alone_who_ask(name: str) -> None:
    with_usage, without = (told(folded(form(wants_usage=wants), RUNS[name])) for wants in (True, False))
    assert not any("usage" in chunk for chunk in without[:-1])
    plain = [
        {key: value for key, value in one.items() if key != "usage"} for one in with_usage[:-1] if "choices" in one
    ]
    if name in ANSWERED:
        *before, last = with_usage[:-1]
        assert (last["choices"], before[-1]["choices"][0]["finish_reason"] is None) == ([], False)
        assert [chunk["usage"] for chunk in before] == [None] * len(before)
        assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]
        plain.pop()
    assert plain == [one for one in without[:-1] if "choices" in one]


@each_answer
def test_the_sdk_puts_it_together_as_the_whole_answer_has_it(name: str) -> None:
    state: Any = ChatCompletionStreamState()
    for chunk in chunks(name):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    put, at_once = state.current_completion_snapshot, ChatCompletion.model_validate(whole(of(ANSWERED[name])))
    message, other = put.choices[0].message, at_once.choices[0].message
    assert (message.content or "") == (other.content or "")
    assert getattr(message, "reasoning_content", "") == getattr(other, "reasoning_content", "")
    assert put.choices[0].finish_reason == at_once.choices[0].finish_reason
    assert (put.usage, put.id, put.created) == (at_once.usage, at_once.id, at_once.created)
    calls = [(one.id, one.function.name, one.function.arguments) for one in message.tool_calls or ()]
    known = [(one.id, one.function.name, one.function.arguments) for one in other.tool_calls or ()]
    assert calls == known or name == "tool-cut"  # of which a whole answer has nothing to say


@each_answer
def test_our_own_reader_of_this_api_hears_what_the_run_has_said(name: str) -> None:
    translation, items = Translation(), []
    for data in folded(form(), ANSWERED[name]).split(b"\n\n")[:-1]:
        items += translation.feed(data.removeprefix(b"data: "))
    text = "".join(event.text for event in ANSWERED[name] if event.name == "token")
    assert "".join(item.text for item in items if isinstance(item, Event) and item.name == "token") == text
    calls = [event for event in ANSWERED[name] if isinstance(event, ToolCall) and not event.node]
    assert [item for item in items if isinstance(item, ToolCall)] == calls
    finish, ending = items[-1], ANSWERED[name][-1]
    assert isinstance(finish, Finish)
    assert isinstance(ending, Done)
    assert (finish.reason, translation.over) == (ending.finish_reason, True)


@pytest.mark.parametrize("name", UNSAYABLE)
def test_what_is_no_answer_ends_by_one_error(name: str) -> None:
    *before, failed, end = told(folded(form(), RUNS[name]))
    assert (list(failed), sorted(failed["error"])) == (["error"], ["code", "message", "param", "type"])
    assert end == "[DONE]"
    assert not any("error" in one for one in before)
    assert not any(choice["finish_reason"] for one in before for choice in one["choices"])


def test_a_graphs_own_calls_are_not_the_clients_to_make() -> None:
    assert b"tool_calls" not in folded(form(), RUNS["agent"])
    assert "tool_calls" not in whole(of(RUNS["agent"]))["choices"][0]["message"]


def test_calls_of_one_index_that_have_ids_of_their_own_are_two() -> None:
    twice = [start(), *call(0, "weather", PARIS, '{"city":"Paris"}'), *call(0, "weather", PARIS, '{"city":"Paris"}')]
    data = told(folded(form(), [*twice, done("tool_calls")]))
    places = [
        part["index"]
        for one in data[:-1]
        for choice in one["choices"]
        for part in choice["delta"].get("tool_calls", ())
    ]
    assert sorted({*places}) == [0, 1]


def test_a_signature_is_nothing_to_say() -> None:
    thought = [start(), Reasoning("Let me think."), Token("So.")]
    signed = [*thought[:2], Reasoning("", signature="AAAA"), thought[2]]
    assert folded(form(), [*signed, done()]) == folded(form(), [*thought, done()])


def test_a_graph_that_waits_is_no_whole_answer() -> None:
    with pytest.raises(RequestError, match="waits for a person"):
        whole(of(RUNS["interrupt"]))


# What is asked

HI = {"role": "user", "content": "Hi"}
WEATHER = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}, "strict": True}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": {"type": "object"}}}
ASKED = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
IMAGE = "data:image/png;base64,AAAA"


def read(messages: Any = (HI,), **fields: Any) -> ChatRequest:
    return decode(json.dumps({"model": "m", "messages": messages, **fields}).encode()).chat


def native(messages: Any = (HI,), **fields: Any) -> ChatRequest:
    return decode_body(json.dumps({"model": "m", "messages": messages, **fields}).encode())


TRANSLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing but messages": ({}, {}),
    "models to ask in turn": ({"model": ["a", "b"]}, {"model": ["a", "b"]}),
    "sampling": (
        {"temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["."], "n": 1},
        {"temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["."]},
    ),
    "the limit by either name": ({"max_tokens": 9}, {"max_tokens": 9}),
    "the limit by its new name": ({"max_tokens": 9, "max_completion_tokens": 8}, {"max_tokens": 8}),
    "fields that are null": (
        dict.fromkeys(("temperature", "stop", "seed", "tools", "tool_choice", "response_format", "n", "sidestream")),
        {},
    ),
    "what nobody here knows": (
        {"user": "u", "metadata": {"a": "b"}, "parallel_tool_calls": False, "x_new": 1, "store": True},
        {},
    ),
    "tools": (
        {"tools": [{"type": "function", "function": {**WEATHER, "x_new": 1}}], "tool_choice": "required"},
        {"tools": [{"function": WEATHER}], "tool_choice": "required"},
    ),
    "one tool to call": (
        {
            "tools": [{"type": "function", "function": WEATHER}],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
        {"tools": [{"function": WEATHER}], "tool_choice": {"function": {"name": "weather"}}},
    ),
    "no tools to choose from": ({"tools": [], "tool_choice": "auto"}, {}),
    "a schema": ({"response_format": SCHEMA}, {"response_format": SCHEMA}),
    "JSON": ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
    "text, which is what one gets": ({"response_format": {"type": "text"}}, {}),
    "instructions": (
        {"messages": [{"role": "developer", "content": "Be brief."}, HI]},
        {"messages": [{"role": "developer", "content": "Be brief."}, HI]},
    ),
    "instructions that say nothing": ({"messages": [{"role": "system", "content": ""}, HI]}, {}),
    "parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "name": "ada",
                    "content": [
                        {"type": "text", "text": "Look", "x_new": 1},
                        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
                        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "original"}},
                    ],
                }
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "name": "ada",
                    "content": [
                        {"type": "text", "text": "Look"},
                        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
                        {"type": "image_url", "image_url": {"url": IMAGE}},
                    ],
                }
            ]
        },
    ),
    "one part of text": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, {}),
    "a round of tools, as an SDK dumps its own messages": (
        {
            "messages": [
                HI,
                {
                    "role": "assistant",
                    "content": None,
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "reasoning_content": "I had better look.",
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "index": 0,
                            "type": "function",
                            "function": {"name": "weather", "arguments": "{}", "parsed_arguments": {}},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": ""},
            ]
        },
        {
            "messages": [
                HI,
                {"role": "assistant", "tool_calls": [ASKED]},
                {"role": "tool", "tool_call_id": "call_1", "content": ""},
            ]
        },
    ),
    "a refusal, and a turn that says nothing": (
        {
            "messages": [
                HI,
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
                {"role": "assistant", "content": None},
                HI,
                {"role": "assistant", "content": None, "refusal": "No!"},
                {"role": "assistant", "content": "Well.", "refusal": None},
            ]
        },
        {
            "messages": [
                HI,
                {"role": "assistant", "content": "No."},
                HI,
                {"role": "assistant", "content": "No!"},
                {"role": "assistant", "content": "Well."},
            ]
        },
    ),
    "our own words beside it": (
        {"temperature": 1, "sidestream": {"temperature": 0.5, "linger": 3, "system": "Be brief."}},
        {"temperature": 0.5, "linger": 3, "system": "Be brief."},
    ),
}


@pytest.mark.parametrize(("asked", "meant"), TRANSLATIONS.values(), ids=TRANSLATIONS)
def test_a_request_is_read(asked: dict[str, Any], meant: dict[str, Any]) -> None:
    assert read(**asked) == native(**meant)


def test_a_request_of_a_graphs_own_input_needs_no_messages() -> None:
    asked = {"model": "g", "sidestream": {"input": {"x": 1}}}
    assert decode(json.dumps(asked).encode()).chat.input == {"x": 1}
    assert read(sidestream={"resume": "yes", "thread_id": "t"}).messages is None


def test_an_upstream_of_this_api_gets_the_body_as_it_came() -> None:
    body = {"model": "m", "messages": [HI], "x_new": {"a": [1]}, "stream": True, "tools": [{"type": "function"}]}
    body["tools"] = [{"type": "function", "function": {"name": "weather", "x_new": 1}}]
    asked = decode(json.dumps({**body, "sidestream": {"linger": 2}}).encode())
    assert (asked.api, asked.verbatim, asked.streams) == ("openai", body, True)


@pytest.mark.parametrize("own", [{"system": "Be brief."}, {"temperature": 0}, {"tools": []}])
def test_but_not_where_our_own_words_say_what_it_does_not(own: dict[str, Any]) -> None:
    assert decode(json.dumps({"model": "m", "messages": [HI], "sidestream": own}).encode()).verbatim is None


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"n": 2}, "n", "one generation"),
    ({"functions": [WEATHER]}, "functions", "send `tools`"),
    ({"logprobs": True}, "logprobs", "cannot be told"),
    ({"modalities": ["text", "audio"]}, "modalities", "text only"),
    ({"messages": None}, "messages", "Send `messages`"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools", "functions only"),
    ({"tools": [{"type": "web_search"}]}, "tools", "functions only"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages", "not 'input_audio'"),
    ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages", "not 'Hi'"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"type": "custom"}]}]}, "messages", "functions only"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages", "Invalid enum value"),
    ({"messages": {"role": "user"}}, "messages", "Expected `array | null`"),
    ({"temperature": "hot"}, "temperature", "Expected `float | null`"),
    ({"temperature": 3}, "temperature", "<= 2"),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage", "Expected `bool | null`"),
    ({"response_format": {"type": "grammar"}}, "response_format", "Invalid value"),
    ({"sidestream": {"messages": []}}, "sidestream", "is an object of"),
    ({"sidestream": 1}, "sidestream", "Expected `object | null`"),
]


@pytest.mark.parametrize(("asked", "field", "text"), REFUSED)
def test_what_cannot_be_answered_is_refused_by_its_name(asked: dict[str, Any], field: str, text: str) -> None:
    with pytest.raises(RequestError, match=text.replace("|", r"\|").replace("[", r"\[")) as refused:
        read(**asked)
    assert (refused.value.field, refused.value.status) == (field, 400)


_words = st.text(max_size=5) | st.sampled_from(["user", "text", "function", "tool", "assistant", "image_url"])
_plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _words
_keys = _words | st.sampled_from(["role", "content", "type", "tool_calls", "function", "id", "name", "text", "url"])
JSON = st.recursive(_plain, lambda one: st.lists(one, max_size=3) | st.dictionaries(_keys, one, max_size=4))
_fields = ("messages", "tools", "tool_choice", "response_format", "stop", "stream_options", "sidestream", "n", "seed")


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(_fields), JSON))
def test_rubbish_is_refused_and_does_no_harm(asked: dict[str, Any]) -> None:
    with suppress(RequestError):
        assert isinstance(read(**asked).to_run("m"), RunRequest)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff", b"{}", b'{"messages":[]}', b"[" * 9999]
)
def test_what_is_no_request_is_told_so_in_openais_words(body: bytes) -> None:
    async def asked() -> Any:
        return await ask(await make_app(), "POST", "/v1/chat/completions", headers=HEADERS, body=body)

    exchange = run(asked())
    assert (exchange.status, exchange.headers["content-type"]) == (400, "application/json")
    failed = json.loads(exchange.body)
    assert (list(failed), failed["error"]["type"]) == (["error"], "invalid_request_error")
    assert sorted(failed["error"]) == ["code", "message", "param", "type"]


HEADERS = {"content-type": "application/json"}
