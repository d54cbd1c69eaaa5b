"""The pure halves of the HTTP providers: the data of an upstream's events in, events out, nothing between.

Recorded streams of real upstreams are another file's; here each rule of a translation has its smallest case.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from providers import Item, Translation, anthropic, openai, openai_responses
from streaming.errors import UpstreamError
from streaming.events import Event, Finish, Reasoning, Token, ToolCall, ToolCallDelta, Usage

DONE = b"[DONE]"


def told(translation: Translation, *chunks: Any) -> list[Item]:
    """Feed chunks (objects as JSON, bytes as they are), then the end where no terminator came."""
    items: list[Item] = []
    for chunk in chunks:
        assert not translation.over, "fed after its terminator"
        items += translation.feed(chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode())
    return items if translation.over else [*items, *translation.eof()]


def fault_of(translation: Translation, *chunks: Any) -> tuple[str, str]:
    """Feed chunks of which the last tells of a failure; return the failure's code and text."""
    told(translation, *chunks[:-1])
    with pytest.raises(UpstreamError) as raised:
        told(translation, chunks[-1])
    return raised.value.code, raised.value.text


# OpenAI's Chat Completions


def chat(*chunks: Any) -> list[Item]:
    return told(openai.Translation(), *chunks)


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": "c", "model": "gpt", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def call(
    index: int | None, arguments: str | None = None, call_id: str | None = None, name: str | None = None
) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    fields = {"index": index, "id": call_id, "function": function or None}
    return {key: value for key, value in fields.items() if value is not None}


def calls(*fragments: dict[str, Any]) -> dict[str, Any]:
    return delta(tool_calls=list(fragments))


def test_chat_text_comes_as_tokens_and_ends_with_its_finish() -> None:
    assert chat(
        delta(role="assistant", content=""), delta(content="Hel"), delta(content="lo"), delta("stop"), DONE
    ) == [
        Token("Hel"),
        Token("lo"),
        Finish("stop", None, "gpt"),
    ]


def test_chat_ends_at_its_terminator_only() -> None:
    translation = openai.Translation()
    assert list(translation.feed(json.dumps(delta("stop")).encode())) == []
    assert not translation.over
    assert list(translation.feed(DONE)) == [Finish("stop", None, "gpt")]
    assert translation.over


def test_chat_that_closes_after_its_finish_reason_is_whole_without_a_terminator() -> None:
    assert chat(delta(content="Hi"), delta("stop")) == [Token("Hi"), Finish("stop", None, "gpt")]


def test_chat_that_closes_without_a_finish_reason_or_its_terminator_is_not_whole() -> None:
    assert chat(delta(content="Hi")) == [Token("Hi")]


def test_chat_without_a_finish_reason_is_whole_at_its_terminator() -> None:
    assert chat(delta(content="Hi"), DONE) == [Token("Hi"), Finish("stop", None, "gpt")]


def test_a_chat_call_without_a_finish_reason_is_whole_at_the_terminator_too() -> None:
    assert [one for one in chat(calls(call(0, "{}", "c1", "f")), DONE) if isinstance(one, ToolCall)] == [
        ToolCall("c1", "f", {})
    ]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_chat_reasoning_has_two_customary_names(field: str) -> None:
    assert chat(delta(**{field: "hm"}), delta(**{field: ""}), delta(**{field: None})) == [Reasoning("hm")]


def test_chat_reasoning_under_both_names_is_said_once() -> None:
    assert chat(delta(reasoning="hm", reasoning_content="hm")) == [Reasoning("hm")]


def test_chat_refusals_are_text() -> None:
    assert chat(delta(refusal="I cannot."), delta("stop"), DONE) == [Token("I cannot."), Finish("stop", None, "gpt")]


FINISHES = [
    ("stop", "stop"),
    ("length", "length"),
    ("tool_calls", "tool_calls"),
    ("function_call", "tool_calls"),
    ("content_filter", "content_filter"),
    ("eos", "stop"),
]


@pytest.mark.parametrize(("theirs", "ours"), FINISHES)
def test_chat_finish_reasons_become_ours(theirs: str, ours: Any) -> None:
    assert chat(delta(theirs), DONE) == [Finish(ours, None, "gpt")]


def test_chat_usage_comes_in_a_chunk_of_its_own() -> None:
    usage = {
        "prompt_tokens": 11,
        "completion_tokens": 5,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    ours = Usage(11, 5, 4, 2)
    nulls = {**delta(content="Hi"), "usage": None}
    assert chat(nulls, delta("stop"), {"choices": [], "usage": usage}, DONE) == [
        Token("Hi"),
        ours,
        Finish("stop", ours, "gpt"),
    ]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"prompt_tokens": 1, "completion_tokens": 2}, Usage(1, 2)),
        ({"prompt_tokens": 1}, Usage(1, 0)),
        ({}, Usage(0, 0)),
        (
            {
                "prompt_tokens": 1,
                "completion_tokens": 2,
                "prompt_tokens_details": None,
                "completion_tokens_details": {},
            },
            Usage(1, 2),
        ),
        ({"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 0}}, Usage(1, 2)),
    ],
)
def test_chat_usage_says_what_was_counted(theirs: dict[str, Any], ours: Usage) -> None:
    assert chat({"choices": [], "usage": theirs}) == [ours]


def test_chat_usage_on_every_chunk_counts_as_it_grows() -> None:
    growing = [{**delta(content="x"), "usage": {"prompt_tokens": 3, "completion_tokens": n}} for n in (1, 2)]
    assert chat(*growing, delta("stop"), DONE) == [
        Usage(3, 1),
        Token("x"),
        Usage(3, 2),
        Token("x"),
        Finish("stop", Usage(3, 2), "gpt"),
    ]


def test_a_chat_call_streams_its_arguments_and_is_whole_at_the_finish() -> None:
    assert chat(
        calls(call(0, "", "c1", "f")), calls(call(0, '{"a"')), calls(call(0, ":1}")), delta("tool_calls"), DONE
    ) == [
        ToolCallDelta(0, "", "c1", "f"),
        ToolCallDelta(0, '{"a"'),
        ToolCallDelta(0, ":1}"),
        ToolCall("c1", "f", {"a": 1}),
        Finish("tool_calls", None, "gpt"),
    ]


def test_parallel_chat_calls_may_interleave() -> None:
    assert chat(
        calls(call(0, "", "c1", "f"), call(1, '{"b"', "c2", "g")),
        calls(call(1, ":2}"), call(0, '{"a":')),
        calls(call(0, "1}")),
        delta("tool_calls"),
        DONE,
    ) == [
        ToolCallDelta(0, "", "c1", "f"),
        ToolCallDelta(1, '{"b"', "c2", "g"),
        ToolCallDelta(1, ":2}"),
        ToolCallDelta(0, '{"a":'),
        ToolCallDelta(0, "1}"),
        ToolCall("c1", "f", {"a": 1}),
        ToolCall("c2", "g", {"b": 2}),
        Finish("tool_calls", None, "gpt"),
    ]


def test_a_whole_chat_call_in_one_chunk_with_its_finish() -> None:
    assert chat(delta("tool_calls", tool_calls=[call(0, '{"a":1}', "c1", "f")]), DONE) == [
        ToolCallDelta(0, '{"a":1}', "c1", "f"),
        ToolCall("c1", "f", {"a": 1}),
        Finish("tool_calls", None, "gpt"),
    ]


def test_two_chat_calls_under_one_index_are_two_where_their_ids_say_so() -> None:
    """Gemini's and older Ollama's compatible endpoints send each parallel call whole, all under index 0 or none."""
    for index in (0, None):
        assert chat(
            calls(call(index, '{"a":1}', "c1", "f")), calls(call(index, '{"b":2}', "c2", "g")), delta("stop"), DONE
        ) == [
            ToolCallDelta(0, '{"a":1}', "c1", "f"),
            ToolCallDelta(1, '{"b":2}', "c2", "g"),
            ToolCall("c1", "f", {"a": 1}),
            ToolCall("c2", "g", {"b": 2}),
            Finish("stop", None, "gpt"),
        ]


def test_a_chat_call_that_repeats_its_id_on_every_fragment_is_one_call() -> None:
    assert chat(calls(call(0, '{"a"', "c1", "f")), calls(call(0, ":1}", "c1")), delta("tool_calls"), DONE) == [
        ToolCallDelta(0, '{"a"', "c1", "f"),
        ToolCallDelta(0, ":1}"),
        ToolCall("c1", "f", {"a": 1}),
        Finish("tool_calls", None, "gpt"),
    ]


def test_a_chat_call_without_arguments_or_id_is_whole_all_the_same() -> None:
    assert chat(calls(call(1, None, None, "f")), delta("tool_calls"), DONE) == [
        ToolCallDelta(0, "", "call_0", "f"),
        ToolCall("call_0", "f", {}),
        Finish("tool_calls", None, "gpt"),
    ]


def test_broken_chat_arguments_stay_the_text_the_model_wrote() -> None:
    assert chat(calls(call(0, '{"a":', "c1", "f")), delta("tool_calls"), DONE)[1:] == [
        ToolCall("c1", "f", '{"a":'),
        Finish("tool_calls", None, "gpt"),
    ]


def test_chat_arguments_cut_by_the_limit_are_no_call() -> None:
    whole, cut = call(0, '{"a":1}', "c1", "f"), call(1, '{"b":', "c2", "g")
    assert chat(calls(whole, cut), delta("length"), DONE)[2:] == [
        ToolCall("c1", "f", {"a": 1}),
        Finish("length", None, "gpt"),
    ]


def test_unknown_chat_fields_and_chunks_pass_by() -> None:
    assert chat(
        {"choices": []},
        {},
        {"choices": None, "prompt_filter_results": [{"x": 1}]},
        {
            "object": "chat.completion.chunk",
            "choices": [{"delta": {"content": "Hi", "audio": {"x": 1}}, "logprobs": {}}],
        },
        {"choices": [{"finish_reason": "stop"}], "service_tier": "default", "obfuscation": "x"},
        DONE,
    ) == [Token("Hi"), Finish("stop", None, None)]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (
            {"message": "Slow", "type": "requests", "code": "rate_limit_exceeded"},
            "upstream_rate_limited",
            "The upstream is rate limiting us.",
        ),
        ({"message": "Oops", "type": "server_error"}, "upstream_unavailable", "The upstream is unavailable."),
        ({"message": "Oops", "code": 502}, "upstream_unavailable", "The upstream is unavailable (HTTP 502)."),
        ({"message": "Slow", "code": 429}, "upstream_rate_limited", "The upstream is rate limiting us (HTTP 429)."),
        (
            {"message": "Too long", "type": "invalid_request_error", "code": None},
            "upstream_rejected",
            "The upstream rejected the request. It says: Too long",
        ),
        ("it broke", "upstream_unavailable", "The upstream is unavailable."),
        ({}, "upstream_unavailable", "The upstream is unavailable."),
    ],
)
def test_a_chat_error_in_mid_stream_is_a_fault(error: Any, code: str, text: str) -> None:
    assert fault_of(openai.Translation(), delta(content="Hi"), {"error": error}) == (code, text)


def test_a_chat_that_finishes_with_error_has_failed() -> None:
    assert fault_of(openai.Translation(), delta(content="Hi"), delta("error"))[0] == "upstream_unavailable"


# Anthropic's Messages


def messages(*chunks: Any) -> list[Item]:
    return told(anthropic.Translation(), *chunks)


def started(**usage: int) -> dict[str, Any]:
    message = {"id": "msg", "type": "message", "role": "assistant", "model": "claude", "content": [], "usage": usage}
    return {"type": "message_start", "message": message}


def opened(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **fields}}


def more(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def arguments(index: int, text: str) -> dict[str, Any]:
    return more(index, "input_json_delta", partial_json=text)


def closed(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def ending(reason: str | None, **usage: int | None) -> list[dict[str, Any]]:
    last = {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage}
    return [last, {"type": "message_stop"}]


ANSWER = [started(input_tokens=9, output_tokens=1), {"type": "ping"}]
OPENING = Usage(9, 0)


def test_messages_text_comes_as_tokens_and_ends_with_its_finish() -> None:
    assert messages(
        *ANSWER,
        opened(0, "text", text=""),
        more(0, "text_delta", text="Hel"),
        more(0, "text_delta", text=""),
        more(0, "text_delta", text="lo"),
        closed(0),
        *ending("end_turn", output_tokens=5),
    ) == [OPENING, Token("Hel"), Token("lo"), Finish("stop", Usage(9, 5), "claude")]


def test_messages_that_close_without_their_terminator_are_not_whole() -> None:
    last, _ = ending("end_turn", output_tokens=5)
    assert messages(*ANSWER, more(0, "text_delta", text="Hi"), last) == [OPENING, Token("Hi")]


def test_thinking_is_reasoning_and_closed_by_its_signature() -> None:
    assert messages(
        *ANSWER,
        opened(0, "thinking", thinking="H", signature=""),
        more(0, "thinking_delta", thinking="m"),
        more(0, "signature_delta", signature="EqQB"),
        closed(0),
        opened(1, "redacted_thinking", data="Eq"),
        closed(1),
        opened(2, "text", text="H"),
        more(2, "text_delta", text="i"),
        closed(2),
        *ending("end_turn", output_tokens=5),
    ) == [
        OPENING,
        Reasoning("H"),
        Reasoning("m"),
        Reasoning("", signature="EqQB"),
        Token("H"),
        Token("i"),
        Finish("stop", Usage(9, 5), "claude"),
    ]


def test_thoughts_may_be_kept_back_and_signed_all_the_same() -> None:
    """As of a `display` that is omitted; a signature in the opening, too, and none that is of no thinking."""
    assert messages(
        *ANSWER,
        opened(0, "thinking", thinking="", signature=""),
        more(0, "signature_delta", signature="EqQB"),
        closed(0),
        opened(1, "thinking", thinking="Hm", signature="EqQC"),
        closed(1),
        opened(2, "text", text="Hi"),
        more(2, "signature_delta", signature="EqQD"),
        closed(2),
        *ending("end_turn", output_tokens=5),
    )[1:-1] == [
        Reasoning("", signature="EqQB"),
        Reasoning("Hm"),
        Reasoning("", signature="EqQC"),
        Token("Hi"),
    ]


def test_a_messages_call_is_whole_when_its_block_closes() -> None:
    assert messages(
        *ANSWER,
        opened(1, "tool_use", id="t1", name="f", input={}),
        arguments(1, ""),
        arguments(1, '{"a"'),
        arguments(1, ":1}"),
        closed(1),
        *ending("tool_use", output_tokens=5),
    ) == [
        OPENING,
        ToolCallDelta(0, "", "t1", "f"),
        ToolCallDelta(0, '{"a"'),
        ToolCallDelta(0, ":1}"),
        ToolCall("t1", "f", {"a": 1}),
        Finish("tool_calls", Usage(9, 5), "claude"),
    ]


def test_the_index_of_a_messages_call_is_its_place_among_the_calls() -> None:
    assert messages(
        *ANSWER,
        opened(0, "text", text="Hi"),
        opened(2, "tool_use", id="t1", name="f", input={}),
        opened(5, "tool_use", id="t2", name="g", input={}),
        arguments(5, '{"b":'),
        arguments(2, '{"a":1}'),
        closed(2),
        arguments(5, "2}"),
        closed(5),
        *ending("tool_use"),
    )[1:] == [
        Token("Hi"),
        ToolCallDelta(0, "", "t1", "f"),
        ToolCallDelta(1, "", "t2", "g"),
        ToolCallDelta(1, '{"b":'),
        ToolCallDelta(0, '{"a":1}'),
        ToolCall("t1", "f", {"a": 1}),
        ToolCallDelta(1, "2}"),
        ToolCall("t2", "g", {"b": 2}),
        Finish("tool_calls", Usage(9, 1), "claude"),
    ]


@pytest.mark.parametrize(("given", "args"), [({}, {}), (None, {}), ({"a": 1}, {"a": 1})])
def test_a_messages_call_without_fragments_has_the_input_it_was_opened_with(given: Any, args: Any) -> None:
    whole = [opened(0, "tool_use", id="t1", name="f", input=given), closed(0)]
    assert messages(*ANSWER, *whole, *ending("tool_use"))[2] == ToolCall("t1", "f", args)


@pytest.mark.parametrize(("reason", "said"), [("tool_use", [ToolCall("t1", "f", '{"a":')]), ("max_tokens", [])])
def test_broken_messages_arguments_are_a_call_unless_the_limit_cut_them(reason: str, said: list[Event]) -> None:
    broken = [opened(0, "tool_use", id="t1", name="f", input={}), arguments(0, '{"a":'), closed(0)]
    items = messages(*ANSWER, *broken, *ending(reason))
    assert items[:3] == [OPENING, ToolCallDelta(0, "", "t1", "f"), ToolCallDelta(0, '{"a":')]
    assert items[3:] == [*said, Finish(anthropic.REASONS[reason], Usage(9, 1), "claude")]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("to_come", "stop"),
        (None, "stop"),
    ],
)
def test_messages_stop_reasons_become_ours(theirs: str | None, ours: Any) -> None:
    assert messages(*ANSWER, *ending(theirs))[-1] == Finish(ours, Usage(9, 1), "claude")


def test_messages_usage_counts_cached_input_in_and_the_last_count_wins() -> None:
    opening = started(input_tokens=10, output_tokens=3, cache_read_input_tokens=200, cache_creation_input_tokens=30)
    assert messages(opening, *ending("end_turn", output_tokens=50, input_tokens=None)) == [
        Usage(240, 0, 200),
        Finish("stop", Usage(240, 50, 200), "claude"),
    ]
    assert messages(opening, *ending("end_turn", output_tokens=50, input_tokens=12))[-1] == Finish(
        "stop", Usage(242, 50, 200), "claude"
    )


def test_unknown_messages_events_blocks_and_deltas_pass_by() -> None:
    assert messages(
        *ANSWER,
        {"type": "to_come", "index": 3, "delta": {"x": 1}},
        {},
        opened(0, "server_tool_use", id="s1", name="web_search", input={}),
        arguments(0, '{"query":"x"}'),
        closed(0),
        opened(1, "web_search_tool_result", tool_use_id="s1", content=[{"type": "web_search_result"}]),
        closed(1),
        more(2, "citations_delta", citation={"type": "char_location"}),
        {"type": "content_block_delta", "index": 2},
        {"type": "content_block_start", "index": 3},
        closed(7),
        *ending("end_turn", output_tokens=5),
    ) == [OPENING, Finish("stop", Usage(9, 5), "claude")]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        ({"type": "overloaded_error", "message": "Overloaded"}, "upstream_unavailable", "The upstream is unavailable."),
        ({"type": "rate_limit_error", "message": "Slow"}, "upstream_rate_limited", "The upstream is rate limiting us."),
        (
            {"type": "invalid_request_error", "message": "Too long"},
            "upstream_rejected",
            "The upstream rejected the request. It says: Too long",
        ),
        (None, "upstream_unavailable", "The upstream is unavailable."),
    ],
)
def test_a_messages_error_in_mid_stream_is_a_fault(error: Any, code: str, text: str) -> None:
    chunks = [*ANSWER, more(0, "text_delta", text="Hi"), {"type": "error", "error": error}]
    assert fault_of(anthropic.Translation(), *chunks) == (code, text)


# OpenAI's Responses


def responses(*chunks: Any) -> list[Item]:
    return told(openai_responses.Translation(), *chunks)


def output(kind: str, index: int, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "sequence_number": 1, "output_index": index, **fields}


def item(call_id: str, name: str, args: str = "", **fields: Any) -> dict[str, Any]:
    return {
        "item": {
            "type": "function_call",
            "id": f"fc_{call_id}",
            "call_id": call_id,
            "name": name,
            "arguments": args,
            **fields,
        }
    }


def completed(kind: str = "completed", **fields: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 16,
    }
    return {"type": f"response.{kind}", "response": {"model": "gpt", "usage": usage, **fields}}


COUNTED = Usage(11, 5, 4, 2)


def test_responses_text_comes_as_tokens_and_ends_with_its_finish() -> None:
    assert responses(
        {"type": "response.created", "response": {"model": "gpt", "usage": None}},
        output("output_item.added", 0, item={"type": "message", "id": "m", "status": "in_progress"}),
        output("content_part.added", 0, part={"type": "output_text", "text": ""}),
        output("output_text.delta", 0, delta="Hel"),
        output("output_text.delta", 0, delta=""),
        output("refusal.delta", 0, delta="lo"),
        output("output_text.done", 0, text="Hello"),
        output("output_item.done", 0, item={"type": "message", "id": "m", "status": "completed"}),
        completed(),
    ) == [Token("Hel"), Token("lo"), Finish("stop", COUNTED, "gpt")]


@pytest.mark.parametrize("kind", ["reasoning_summary_text.delta", "reasoning_text.delta"])
def test_responses_reasoning_and_its_summaries_are_reasoning(kind: str) -> None:
    assert responses(output(kind, 0, delta="hm"), output(kind, 0, delta="")) == [Reasoning("hm")]


def test_responses_calls_stream_and_are_whole_when_their_item_is_done() -> None:
    assert responses(
        output("output_item.added", 0, item={"type": "reasoning", "id": "r"}),
        output("output_item.added", 1, **item("c1", "f")),
        output("output_item.added", 4, **item("c2", "g")),
        output("function_call_arguments.delta", 4, delta='{"b":'),
        output("function_call_arguments.delta", 1, delta='{"a":1}'),
        output("function_call_arguments.delta", 1, delta=""),
        output("function_call_arguments.done", 1, arguments='{"a":1}'),
        output("output_item.done", 1, **item("c1", "f", '{"a":1}', status="completed")),
        output("function_call_arguments.delta", 4, delta="2}"),
        output("output_item.done", 4, **item("c2", "g", '{"b":2}', status="completed")),
        completed(),
    ) == [
        ToolCallDelta(0, "", "c1", "f"),
        ToolCallDelta(1, "", "c2", "g"),
        ToolCallDelta(1, '{"b":'),
        ToolCallDelta(0, '{"a":1}'),
        ToolCall("c1", "f", {"a": 1}),
        ToolCallDelta(1, "2}"),
        ToolCall("c2", "g", {"b": 2}),
        Finish("tool_calls", COUNTED, "gpt"),
    ]


@pytest.mark.parametrize(("args", "parsed"), [("", {}), ("{}", {}), ('{"a":', '{"a":')])
def test_responses_arguments_are_parsed_or_stay_the_text_the_model_wrote(args: str, parsed: Any) -> None:
    done = output("output_item.done", 0, **item("c1", "f", args, status="completed"))
    assert responses(done) == [ToolCall("c1", "f", parsed)]


def test_responses_calls_cut_by_the_limit_are_no_calls() -> None:
    assert responses(
        output("output_item.added", 0, **item("c1", "f")),
        output("function_call_arguments.delta", 0, delta='{"a":'),
        output("output_item.done", 0, **item("c1", "f", '{"a":', status="incomplete")),
        completed("incomplete", incomplete_details={"reason": "max_output_tokens"}),
    ) == [ToolCallDelta(0, "", "c1", "f"), ToolCallDelta(0, '{"a":'), Finish("length", COUNTED, "gpt")]


@pytest.mark.parametrize(("reason", "ours"), [("max_output_tokens", "length"), ("content_filter", "content_filter")])
def test_incomplete_responses_say_why(reason: str, ours: Any) -> None:
    assert responses(completed("incomplete", incomplete_details={"reason": reason})) == [Finish(ours, COUNTED, "gpt")]


def test_responses_that_close_without_their_terminator_are_not_whole() -> None:
    assert responses(output("output_text.delta", 0, delta="Hi")) == [Token("Hi")]


def test_responses_without_usage_say_none() -> None:
    assert responses({"type": "response.completed", "response": {"model": "gpt"}}) == [Finish("stop", None, "gpt")]
    assert responses({"type": "response.completed"}) == [Finish("stop", None, None)]


def test_unknown_responses_events_and_items_pass_by() -> None:
    assert responses(
        {},
        {"type": "response.to_come", "delta": {"x": 1}},
        output("audio.delta", 0, delta="UklG"),
        output("web_search_call.searching", 0),
        output("output_item.added", 0, item={"type": "web_search_call", "id": "w"}),
        output("output_item.done", 0, item={"type": "web_search_call", "id": "w", "status": "completed"}),
        output("output_item.added", 1),
        completed(),
    ) == [Finish("stop", COUNTED, "gpt")]


@pytest.mark.parametrize(
    ("event", "code", "text"),
    [
        (
            {"type": "response.failed", "response": {"error": {"code": "rate_limit_exceeded", "message": "Slow"}}},
            "upstream_rate_limited",
            "The upstream is rate limiting us.",
        ),
        (
            {"type": "response.failed", "response": {"error": {"code": "invalid_prompt", "message": "No"}}},
            "upstream_rejected",
            "The upstream rejected the request. It says: No",
        ),
        ({"type": "response.failed"}, "upstream_unavailable", "The upstream is unavailable."),
        (
            {"type": "error", "code": "rate_limit_exceeded", "message": "Slow", "param": None},
            "upstream_rate_limited",
            "The upstream is rate limiting us.",
        ),
        (
            {
                "type": "error",
                "error": {"type": "invalid_request_error", "code": "context_length_exceeded", "message": "Long"},
            },
            "context_length",
            "The conversation is longer than the model can take. It says: Long",
        ),
        ({"type": "error"}, "upstream_unavailable", "The upstream is unavailable."),
    ],
)
def test_a_responses_error_in_mid_stream_is_a_fault(event: Any, code: str, text: str) -> None:
    chunks = [output("output_text.delta", 0, delta="Hi"), event]
    assert fault_of(openai_responses.Translation(), *chunks) == (code, text)


# All three

MAKERS: dict[str, Callable[[], Translation]] = {
    "chat": openai.Translation,
    "messages": anthropic.Translation,
    "responses": openai_responses.Translation,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    "data", [b"", b"{", b"nope", b"[]", b"5", b"null", b'"text"', b'{"type":5,"choices":5}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_chunk_is_refused_as_malformed(make: Callable[[], Translation], data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        told(make(), data)


WRONG_TYPES: list[tuple[str, Any]] = [
    ("chat", delta(content=5)),
    ("chat", delta(content=["Hi"])),
    ("chat", delta(tool_calls={"index": 0})),
    ("chat", calls({"index": "0"})),
    ("chat", {"choices": [], "usage": {"prompt_tokens": "11"}}),
    ("messages", more(0, "text_delta", text=5)),
    ("messages", opened(0, "tool_use", id=5, name="f")),
    ("messages", started(input_tokens="11")),  # type: ignore[arg-type]  # what the test is about
    ("responses", output("output_text.delta", 0, delta=5)),
    ("responses", output("output_text.delta", 0, delta={"text": "Hi"})),
    ("responses", output("reasoning_text.delta", 0, delta=["hm"])),
    ("responses", output("function_call_arguments.delta", 0, delta={"a": 1})),
    ("responses", output("output_text.delta", "0", delta="Hi")),
]


@pytest.mark.parametrize(("name", "chunk"), WRONG_TYPES)
def test_a_chunk_with_content_of_a_wrong_type_is_refused_as_malformed(name: str, chunk: Any) -> None:
    with pytest.raises(msgspec.MsgspecError):
        told(MAKERS[name](), chunk)


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
DEEP_CALLS: dict[str, Iterable[Any]] = {
    "chat": [calls(call(0, DEEP, "c1", "f")), delta("tool_calls"), DONE],
    "messages": [*ANSWER, opened(0, "tool_use", id="c1", name="f"), arguments(0, DEEP), closed(0), *ending("tool_use")],
    "responses": [output("output_item.done", 0, **item("c1", "f", DEEP, status="completed")), completed()],
}


@pytest.mark.parametrize("name", MAKERS)
def test_arguments_nested_too_deeply_to_parse_stay_the_text_the_model_wrote(name: str) -> None:
    assert [one for one in told(MAKERS[name](), *DEEP_CALLS[name]) if isinstance(one, ToolCall)] == [
        ToolCall("c1", "f", DEEP)
    ]


def test_counts_of_zero_details_are_left_out() -> None:
    zero = {
        "input_tokens": 1,
        "output_tokens": 2,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    [finish] = responses(completed(usage=zero))
    assert finish == Finish("stop", Usage(1, 2, UNSET, UNSET), "gpt")
