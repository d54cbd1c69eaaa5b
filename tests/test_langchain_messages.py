"""LangChain's messages as events, on the chunks that its packages for OpenAI and Anthropic make of a stream.

Those of langchain-openai are written down from what it makes of OpenAI's streams, those of langchain-anthropic from its
documented shapes. Whether the first are still so is seen where chains run against the upstream.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    ToolMessageChunk,
)
from langchain_core.outputs import ChatGeneration, Generation, LLMResult
from msgspec import UNSET

from providers.langchain_messages import Messages, Stopped, Tally, conversation
from streaming.events import Event, Reasoning, Token, ToolCall, ToolCallDelta, ToolResult, Usage
from streaming.request import (
    FunctionCall,
    ImagePart,
    ImageURL,
    Message,
    MessageToolCall,
    RunRequest,
    TextPart,
)
from wires.chat import json_line

OPENAI = {"model_provider": "openai"}
ANTHROPIC = {"model_provider": "anthropic"}
ONE, TWO = "lc_run--01a1ff4c-7f5f", "lc_run--01a1ff4c-8125"  # as LangChain names messages


def part(index: int | None, args: str | None = None, call_id: str | None = None, name: str | None = None) -> Any:
    return {"name": name, "args": args, "id": call_id, "index": index, "type": "tool_call_chunk"}


def openai(content: str = "", *parts: Any, message: str | None = ONE, **other: Any) -> AIMessageChunk:
    return AIMessageChunk(content, tool_call_chunks=parts, response_metadata=OPENAI, id=message, **other)


def anthropic(*blocks: Any, calls: Iterable[Any] = (), message: str = ONE, **other: Any) -> AIMessageChunk:
    return AIMessageChunk(list(blocks), tool_call_chunks=list(calls), response_metadata=ANTHROPIC, id=message, **other)


def used(index: int, call_id: str, name: str) -> AIMessageChunk:
    """The beginning of a tool call in Anthropic's stream."""
    block = {"id": call_id, "input": {}, "name": name, "type": "tool_use", "index": index}
    return anthropic(block, calls=[part(index, "", call_id, name)])


def typed(index: int, text: str) -> AIMessageChunk:
    """A piece of the arguments of one."""
    block = {"partial_json": text, "type": "input_json_delta", "index": index}
    return anthropic(block, calls=[part(index, text)])


def last(message: str | None = ONE) -> AIMessageChunk:
    """What LangChain itself adds behind every model's stream."""
    return AIMessageChunk("", id=message, chunk_position="last")


def told(*messages: BaseMessage) -> list[Event]:
    """Feed messages and say that nothing follows."""
    translation = Messages()
    return [*(event for message in messages for event in translation.feed(message)), *translation.end()]


SEQUENCES: dict[str, tuple[list[BaseMessage], list[Event]]] = {
    "text": (
        [openai(""), openai("The"), openai(" sky."), AIMessageChunk("", response_metadata=OPENAI, id=ONE), last()],
        [Token("The"), Token(" sky.")],
    ),
    "reasoning by custom": (
        [openai("", additional_kwargs={"reasoning_content": "Hm."}), openai("Yes."), last()],
        [Reasoning("Hm."), Token("Yes.")],
    ),
    "reasoning and text in one": (
        [openai("Yes.", additional_kwargs={"reasoning_content": "Hm."})],
        [Reasoning("Hm."), Token("Yes.")],
    ),
    "parallel calls": (
        [
            openai(""),
            openai("", part(0, "", "call_1", "weather")),
            openai("", part(0, '{"ci')),
            openai("", part(0, 'ty":"Paris"}')),
            openai("", part(1, "", "call_2", "hour")),
            openai("", part(1, '{"zone":"CET"}')),
            AIMessageChunk("", response_metadata={"finish_reason": "tool_calls", **OPENAI}, id=ONE),
            last(),
        ],
        [
            ToolCallDelta(0, "", "call_1", "weather"),
            ToolCallDelta(0, '{"ci'),
            ToolCallDelta(0, 'ty":"Paris"}'),
            ToolCallDelta(1, "", "call_2", "hour"),
            ToolCallDelta(1, '{"zone":"CET"}'),
            ToolCall("call_1", "weather", {"city": "Paris"}),
            ToolCall("call_2", "hour", {"zone": "CET"}),
        ],
    ),
    "parallel calls in one chunk, in turns": (
        [
            openai("", part(0, "{", "call_1", "weather"), part(1, "{", "call_2", "hour")),
            openai("", part(1, '"b":2}'), part(0, '"a":1}')),
            last(),
        ],
        [
            ToolCallDelta(0, "{", "call_1", "weather"),
            ToolCallDelta(1, "{", "call_2", "hour"),
            ToolCallDelta(1, '"b":2}'),
            ToolCallDelta(0, '"a":1}'),
            ToolCall("call_1", "weather", {"a": 1}),
            ToolCall("call_2", "hour", {"b": 2}),
        ],
    ),
    "Anthropic's thinking, text and calls": (
        [
            anthropic(),
            anthropic({"type": "thinking", "thinking": "Two", "index": 0}),
            anthropic({"type": "thinking", "thinking": " and two.", "index": 0}),
            anthropic({"type": "thinking", "thinking": "", "signature": "EqQBCg==", "index": 0}),
            anthropic({"type": "text", "text": "", "index": 1}),
            anthropic({"type": "text", "text": "Four.", "index": 1}),
            used(2, "toolu_1", "weather"),
            typed(2, ""),
            typed(2, '{"city":'),
            typed(2, '"Paris"}'),
            used(3, "toolu_2", "hour"),
            typed(3, "{}"),
            AIMessageChunk([], response_metadata={"stop_reason": "tool_use", **ANTHROPIC}, id=ONE),
            last(),
        ],
        [
            Reasoning("Two"),
            Reasoning(" and two."),
            Token("Four."),
            ToolCallDelta(0, "", "toolu_1", "weather"),
            ToolCallDelta(0, ""),
            ToolCallDelta(0, '{"city":'),
            ToolCallDelta(0, '"Paris"}'),
            ToolCallDelta(1, "", "toolu_2", "hour"),
            ToolCallDelta(1, "{}"),
            ToolCall("toolu_1", "weather", {"city": "Paris"}),
            ToolCall("toolu_2", "hour", {}),
        ],
    ),
    "what Anthropic thinks and does not show, and does itself": (
        [
            anthropic({"type": "redacted_thinking", "data": "EmwKAhgB", "index": 0}),
            anthropic({"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {}, "index": 1}),
            anthropic({"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": [], "index": 2}),
            anthropic({"type": "text", "text": "", "citations": [{"type": "char_location"}], "index": 3}),
            anthropic({"type": "something new", "index": 4}),
            anthropic({"type": "text", "text": "It is.", "index": 5}),
        ],
        [Token("It is.")],
    ),
    "a summary of the Responses API": (
        [
            AIMessageChunk([], response_metadata=OPENAI, id="resp_1"),
            AIMessageChunk(
                [{"type": "reasoning", "summary": [{"index": 0, "type": "summary_text", "text": "Hm."}], "index": 0}],
                response_metadata=OPENAI,
                id=ONE,
            ),
            AIMessageChunk([{"type": "text", "text": "Yes.", "index": 1}], response_metadata=OPENAI, id=ONE),
            AIMessageChunk(
                [{"type": "function_call", "name": "hour", "arguments": "", "call_id": "call_1", "index": 2}],
                tool_call_chunks=[part(2, "", "call_1", "hour")],
                response_metadata=OPENAI,
                id=ONE,
            ),
            AIMessageChunk(
                [{"type": "function_call", "arguments": "{}", "index": 2}],
                tool_call_chunks=[part(2, "{}")],
                response_metadata=OPENAI,
                id=ONE,
            ),
            last(),
        ],
        [
            Reasoning("Hm."),
            Token("Yes."),
            ToolCallDelta(0, "", "call_1", "hour"),
            ToolCallDelta(0, "{}"),
            ToolCall("call_1", "hour", {}),
        ],
    ),
    "LangChain's own content blocks": (
        [
            AIMessageChunk(
                [block],
                tool_call_chunks=[block] if block["type"] == "tool_call_chunk" else [],
                response_metadata={**OPENAI, "output_version": "v1"},
                id=ONE,
            )
            for block in (
                {"type": "reasoning", "reasoning": "Hm.", "index": 0},
                {"type": "text", "text": "Yes.", "index": 1},
                part(2, "{", "call_1", "hour"),
                part(2, "}"),
            )
        ]
        + [last()],
        [
            Reasoning("Hm."),
            Token("Yes."),
            ToolCallDelta(0, "{", "call_1", "hour"),
            ToolCallDelta(0, "}"),
            ToolCall("call_1", "hour", {}),
        ],
    ),
    "a list of texts": ([AIMessageChunk(["a", {"type": "text", "text": "b"}], id=ONE)], [Token("a"), Token("b")]),
    "two models at once": (
        [
            openai("", part(0, "", "call_1", "weather")),
            openai("", part(0, "", "call_2", "hour"), message=TWO),
            openai("", part(0, '{"a":1}')),
            openai("", part(0, '{"b":2}'), message=TWO),
            last(TWO),
            openai("", part(1, "{}", "call_3", "weather")),
            last(),
        ],
        [
            ToolCallDelta(0, "", "call_1", "weather"),
            ToolCallDelta(1, "", "call_2", "hour"),
            ToolCallDelta(0, '{"a":1}'),
            ToolCallDelta(1, '{"b":2}'),
            ToolCall("call_2", "hour", {"b": 2}),
            ToolCallDelta(2, "{}", "call_3", "weather"),
            ToolCall("call_1", "weather", {"a": 1}),
            ToolCall("call_3", "weather", {}),
        ],
    ),
    "the next message counts on": (
        [
            openai("", part(0, "{}", "call_1", "weather"), chunk_position="last"),
            ToolMessage("Sunny.", tool_call_id="call_1", name="weather"),
            openai("", part(0, "{}", "call_2", "hour"), message=TWO, chunk_position="last"),
        ],
        [
            ToolCallDelta(0, "{}", "call_1", "weather"),
            ToolCall("call_1", "weather", {}),
            ToolResult("call_1", "weather", "Sunny."),
            ToolCallDelta(1, "{}", "call_2", "hour"),
            ToolCall("call_2", "hour", {}),
        ],
    ),
    "calls that nobody says are whole": (
        [openai("", part(0, '{"a":', "call_1", "f")), openai("", part(0, "1}"))],
        [ToolCallDelta(0, '{"a":', "call_1", "f"), ToolCallDelta(0, "1}"), ToolCall("call_1", "f", {"a": 1})],
    ),
    "chunks without the name of a message": (
        [openai("", part(0, "{", "call_1", "f"), message=None), openai("", part(0, "}"), message=None)],
        [ToolCallDelta(0, "{", "call_1", "f"), ToolCallDelta(0, "}"), ToolCall("call_1", "f", {})],
    ),
    "calls without an index, each at once": (
        [openai("", part(None, '{"a":1}', "call_1", "f"), part(None, "{}", "call_2", "g")), last()],
        [
            ToolCallDelta(0, '{"a":1}', "call_1", "f"),
            ToolCallDelta(1, "{}", "call_2", "g"),
            ToolCall("call_1", "f", {"a": 1}),
            ToolCall("call_2", "g", {}),
        ],
    ),
    "another call under the same index": (
        [openai("", part(0, "{}", "call_1", "f")), openai("", part(0, "{", "call_2", "g")), openai("", part(0, "}"))],
        [
            ToolCallDelta(0, "{}", "call_1", "f"),
            ToolCallDelta(1, "{", "call_2", "g"),
            ToolCallDelta(1, "}"),
            ToolCall("call_1", "f", {}),
            ToolCall("call_2", "g", {}),
        ],
    ),
    "calls in turns under one index, each piece by its id": (
        [
            openai("", part(None, "{", "call_1", "f")),
            openai("", part(None, "[", "call_2", "g")),
            openai("", part(None, "}", "call_1", "f")),
            openai("", part(None, "]", "call_2", "g")),
        ],
        [
            ToolCallDelta(0, "{", "call_1", "f"),
            ToolCallDelta(1, "[", "call_2", "g"),
            ToolCallDelta(0, "}"),
            ToolCallDelta(1, "]"),
            ToolCall("call_1", "f", {}),
            ToolCall("call_2", "g", []),
        ],
    ),
    "an id on every piece": (
        [openai("", part(0, "{", "call_1", "f")), openai("", part(0, "}", "call_1", "f"))],
        [ToolCallDelta(0, "{", "call_1", "f"), ToolCallDelta(0, "}"), ToolCall("call_1", "f", {})],
    ),
    "a call without an id": (
        [openai("", part(0, "{}", None, "f"))],
        [ToolCallDelta(0, "{}", "call_0", "f"), ToolCall("call_0", "f", {})],
    ),
    "a call without arguments": (
        [openai("", part(0, None, "call_1", "f"))],
        [ToolCallDelta(0, "", "call_1", "f"), ToolCall("call_1", "f", {})],
    ),
    "arguments that are no JSON": (
        [openai("", part(0, '{"city":"Pa', "call_1", "f")), last()],
        [ToolCallDelta(0, '{"city":"Pa', "call_1", "f"), ToolCall("call_1", "f", '{"city":"Pa')],
    ),
    "arguments without a bottom": (
        [openai("", part(0, "[" * 5000, "call_1", "f"))],
        [ToolCallDelta(0, "[" * 5000, "call_1", "f"), ToolCall("call_1", "f", "[" * 5000)],
    ),
    "a whole message": (
        [AIMessage("Here.", tool_calls=[{"name": "f", "args": {"a": [1]}, "id": "call_1"}], id=ONE)],
        [Token("Here."), ToolCall("call_1", "f", {"a": [1]})],
    ),
    "a whole message with calls that failed to parse": (
        [
            AIMessage(
                "",
                tool_calls=[{"name": "f", "args": {}, "id": None}],
                invalid_tool_calls=[
                    {"name": "g", "args": '{"x', "id": "call_2", "error": "no JSON"},
                    {"name": None, "args": None, "id": None, "error": None},
                ],
            )
        ],
        [ToolCall("", "f", {}), ToolCall("call_2", "g", '{"x'), ToolCall("", "", None)],
    ),
    "a whole message of blocks": (
        [
            AIMessage(
                content_blocks=[
                    {"type": "reasoning", "reasoning": "Hm."},
                    {"type": "text", "text": "Yes."},
                    {"type": "tool_call", "id": "call_1", "name": "f", "args": {"a": 1}},
                ]
            )
        ],
        [Reasoning("Hm."), Token("Yes."), ToolCall("call_1", "f", {"a": 1})],
    ),
    "a whole message of Anthropic's": (
        [
            AIMessage(
                [
                    {"type": "thinking", "thinking": "Hm.", "signature": "EqQ="},
                    {"type": "text", "text": "Yes."},
                    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
                ],
                tool_calls=[{"name": "f", "args": {"a": 1}, "id": "toolu_1"}],
                response_metadata=ANTHROPIC,
            )
        ],
        [Reasoning("Hm."), Token("Yes."), ToolCall("toolu_1", "f", {"a": 1})],
    ),
    "what tools answer": (
        [
            ToolMessage("4", tool_call_id="call_1", name="f"),
            ToolMessage([{"type": "text", "text": "4"}, "5"], tool_call_id="call_2"),
            ToolMessage("no", tool_call_id="call_3", name="f", status="error", artifact=object()),
            ToolMessageChunk("6", tool_call_id="call_4", name="f"),
        ],
        [
            ToolResult("call_1", "f", "4"),
            ToolResult("call_2", "", [{"type": "text", "text": "4"}, "5"]),
            ToolResult("call_3", "f", "no"),
            ToolResult("call_4", "f", "6"),
        ],
    ),
    "what others say": ([HumanMessage("a"), SystemMessage("b"), RemoveMessage(id="1")], []),
    "what says nothing": ([AIMessage(""), openai(""), last(), anthropic({"type": "text", "text": ""})], []),
}


@pytest.mark.parametrize(("messages", "events"), SEQUENCES.values(), ids=SEQUENCES)
def test_messages_become_events(messages: list[BaseMessage], events: list[Event]) -> None:
    assert told(*messages) == events
    assert all(json_line(event) for event in events)


def test_what_a_node_says_is_told_with_it_its_calls_too_however_they_end() -> None:
    translation, ns = Messages(), ("inner:1",)
    events = [
        *translation.feed(openai("Hi.", part(0, "{", "call_1", "f")), "agent", ns),
        *translation.feed(ToolMessage("4", tool_call_id="call_0"), "tools", ns),
        *translation.feed(openai("", part(0, "{}", "call_2", "g"), message=TWO, chunk_position="last"), "other"),
        *translation.end(),
    ]
    assert events == [
        Token("Hi.", "agent", ns),
        ToolCallDelta(0, "{", "call_1", "f", "agent", ns),
        ToolResult("call_0", "", "4", "tools", ns),
        ToolCallDelta(1, "{}", "call_2", "g", "other"),
        ToolCall("call_2", "g", {}, "other"),
        ToolCall("call_1", "f", "{", "agent", ns),
    ]


def test_each_run_counts_its_own_calls() -> None:
    whole = [openai("", part(0, "{}", "call_1", "f"))]
    assert told(*whole) == told(*whole)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([ONE, TWO]), st.integers(0, 3), st.text("{}[]1", max_size=3)), max_size=30))
def test_however_calls_are_mixed_each_gets_its_own_pieces(pieces: list[tuple[str, int, str]]) -> None:
    """What a client puts together from the deltas is what the whole call says."""
    begun: set[tuple[str, int]] = set()
    messages = []
    for message, index, args in pieces:
        named = (f"{message}/{index}", "f") if (message, index) not in begun else ()
        begun.add((message, index))
        messages.append(openai("", part(index, args, *named), message=message))
    events = told(*messages)
    deltas = [event for event in events if isinstance(event, ToolCallDelta)]
    calls = [event for event in events if isinstance(event, ToolCall)]
    ids = {event.index: event.id for event in deltas if event.id is not UNSET}
    texts = {ids[index]: "".join(event.text for event in deltas if event.index == index) for index in ids}
    assert texts == {
        f"{message}/{index}": "".join(args for *where, args in pieces if where == [message, index])
        for message, index in begun
    }
    assert {call.id for call in calls} == set(texts)
    assert len(calls) == len(texts)
    again = told(*(openai("", part(0, texts[call.id], call.id, "f"), message=call.id) for call in calls))
    assert [event for event in again if isinstance(event, ToolCall)] == calls


# --- What a request says, in LangChain's words -----------------------------------------------------------------------


def request(*messages: Message, system: str | None = None) -> RunRequest:
    return RunRequest(model="m", messages=list(messages), system=system)


def said(messages: list[BaseMessage]) -> Iterator[tuple[str, Any]]:
    for message in messages:
        yield message.type, message.content


def test_a_conversation_keeps_its_roles_and_order_the_system_first() -> None:
    image = ImagePart(ImageURL("https://a.example/cat.png"))
    asked = request(
        Message("system", "Be kind."),
        Message("user", [TextPart("What is this?"), image], name="ann"),
        Message("assistant", "A cat."),
        Message("developer", "Be brief."),
        Message("user", "Thanks."),
        system="Be honest.",
    )
    messages = conversation(asked)
    assert list(said(messages)) == [
        ("system", "Be honest."),
        ("system", "Be kind."),
        (
            "human",
            [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "https://a.example/cat.png"}},
            ],
        ),
        ("ai", "A cat."),
        ("system", "Be brief."),
        ("human", "Thanks."),
    ]
    assert messages[2].name == "ann"


@pytest.mark.parametrize("content", [None, "", "Let me look."])
def test_tool_calls_and_their_answers_are_part_of_a_conversation(content: str | None) -> None:
    """Also where the assistant said nothing beside the call, as is usual."""
    call = MessageToolCall("call_1", FunctionCall("weather", '{"city": "Paris"}'))
    asked = request(
        Message("user", "Is it sunny?"),
        Message("assistant", content, tool_calls=[call]),
        Message("tool", "Sunny.", tool_call_id="call_1"),
    )
    human, answer, result = conversation(asked)
    assert isinstance(answer, AIMessage)
    assert (answer.content, answer.tool_calls) == (
        content or "",
        [{"name": "weather", "args": {"city": "Paris"}, "id": "call_1", "type": "tool_call"}],
    )
    assert isinstance(result, ToolMessage)
    assert (human.content, result.content, result.tool_call_id) == ("Is it sunny?", "Sunny.", "call_1")


# --- What models report ----------------------------------------------------------------------------------------------


def ended(tally: Tally, message: AIMessage | None = None, **metadata: Any) -> Tally:
    """Say that a model has ended, with this message or with one of this metadata."""
    message = message or AIMessage("", response_metadata=metadata)
    tally.on_llm_end(LLMResult(generations=[[ChatGeneration(message=message)]]))
    return tally


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "stop"),
        ({"finish_reason": "stop"}, "stop"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": "tool_calls"}, "tool_calls"),
        ({"finish_reason": "content_filter"}, "content_filter"),
        ({"stop_reason": "end_turn"}, "stop"),
        ({"stop_reason": "max_tokens"}, "length"),
        ({"stop_reason": "tool_use"}, "tool_calls"),
        ({"stop_reason": "refusal"}, "content_filter"),
        ({"finish_reason": "MAX_TOKENS"}, "length"),
        ({"finish_reason": "SAFETY"}, "content_filter"),
        ({"finish_reason": "something new"}, "stop"),
        ({"finish_reason": None, "stop_reason": "max_tokens"}, "length"),
        ({"status": "completed"}, "stop"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "content_filter"),
    ],
)
def test_why_a_model_stopped_is_told_in_our_words(metadata: dict[str, Any], reason: str) -> None:
    assert ended(Tally(), **metadata).reason == reason


def test_a_model_that_calls_tools_and_gives_no_reason_has_stopped_for_these() -> None:
    """As OpenAI's Responses API, which says `completed`."""
    call = {"name": "f", "args": {}, "id": "call_1"}
    assert ended(Tally(), AIMessage("", tool_calls=[call], response_metadata={"status": "completed"})).reason == (
        "tool_calls"
    )


def test_the_last_model_of_a_run_says_why_it_stopped() -> None:
    tally = ended(ended(Tally(), finish_reason="tool_calls"), finish_reason="length")
    assert tally.reason == "length"
    assert ended(tally, finish_reason="stop").reason == "stop"


def metered(read: int, written: int, **details: Any) -> AIMessage:
    usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written, **details}
    return AIMessage("", usage_metadata=usage)


def test_what_models_report_is_added_up_and_news_are_told_once() -> None:
    tally = Tally()
    assert (tally.news(), tally.usage) == ([], None)
    ended(tally, metered(10, 2))
    assert tally.news() == [Usage(10, 2)]
    assert tally.news() == []
    ended(tally)  # reports nothing
    assert tally.news() == []
    details = {"input_token_details": {"cache_read": 4, "audio": 1}, "output_token_details": {"reasoning": 3}}
    ended(tally, metered(5, 7, **details))
    ended(tally, metered(1, 1, **details))
    assert tally.news() == [Usage(16, 10, 8, 6)]
    assert tally.usage == Usage(16, 10, 8, 6)


def test_a_model_that_is_no_chat_model_reports_nothing() -> None:
    tally = Tally()
    tally.on_llm_end(LLMResult(generations=[[Generation(text="a")], []], llm_output={"token_usage": {}}))
    assert (tally.usage, tally.reason) == (None, "stop")


def test_a_run_that_was_stopped_stops_its_models_and_tools() -> None:
    tally = Tally()
    begin = [tally.on_chat_model_start, tally.on_llm_start, tally.on_llm_new_token, tally.on_tool_start]
    for call in begin:
        call({}, "x", run_id=None)
    tally.stop()
    for call in begin:
        with pytest.raises(Stopped):
            call({}, "x", run_id=None)
