"""Streams in the full shapes of the real APIs, each with the events a client gets of it.

A `Dialect` says the same things in each API's words: the parts a test builds its own streams from. `RECORDINGS` are
whole answers. Not captured but written, after the APIs' references and the types in their SDKs (openai 3.54,
anthropic 2.12), which accept every chunk but pings and errors, for which they have no type.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .client import Client, Event

Told = list[tuple[str, Any]]
TERMINAL = {"done", "error", "cancelled"}


def told(client: Client) -> Told:
    """Read a run to its end and return its events, adjacent deltas joined; check what holds for each and every run."""
    status, headers = client.head()
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/event-stream"), client.body
    events = list(client)
    assert client.whole, f"the stream was cut: {client.body[-200:]!r}"
    names = [event.name for event in events]
    assert names[0] == "start", names
    assert [name in TERMINAL for name in names] == [False] * (len(names) - 1) + [True], names
    run = events[0].data["run"]
    numbers = [int(event.id.removeprefix(f"{run}-")) for event in events]
    assert numbers[0] == 1
    assert numbers == sorted(set(numbers)), numbers
    return joined([_timeless(event) for event in events])


def _timeless(event: Event) -> tuple[str, Any]:
    """Leave out what differs from run to run; say that it is there."""
    data = dict(event.data)
    if event.name == "start":
        assert len(data.pop("run")) == 32
        assert data.pop("created") > 1_700_000_000
    if event.name == "done":
        first, last = data.pop("ttft_ms"), data.pop("latency_ms")
        assert (first is None) == (not data["tokens"])
        assert 0 <= (first or 0) <= last
    return event.name, data


def joined(events: Told) -> Told:
    """Join adjacent deltas of one kind, as a client is free to and the service may."""
    out: Told = []
    for name, data in events:
        text = {"token": "token", "reasoning": "reasoning", "tool_call_delta": "args_delta"}.get(name)
        opens_or_closes = data.keys() & {"id", "signature"} or (out and "signature" in out[-1][1])
        if text and out and out[-1][0] == name and not opens_or_closes and out[-1][1].get("index") == data.get("index"):
            out[-1][1][text] += data[text]
        else:
            out.append((name, dict(data)))
    return out


def sse(data: Any, name: str = "") -> bytes:
    """Write one server-sent event as these APIs do."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n".encode() if name else f"data: {text}\n\n".encode()


def asked(index: int, call_id: str, tool: str, arguments: str) -> tuple[str, Any]:
    """The fragments of a tool call, joined."""
    return "tool_call_delta", {"index": index, "args_delta": arguments, "id": call_id, "tool": tool}


def called(call_id: str, tool: str, arguments: dict[str, Any]) -> tuple[str, Any]:
    return "tool_call", {"id": call_id, "tool": tool, "args": arguments}


class Recording(NamedTuple):
    """What an upstream sent, one event a chunk, and what a client gets: `told`, then `done`."""

    name: str
    provider: str
    chunks: tuple[bytes, ...]
    told: Told
    done: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.provider}-{self.name}"


@dataclass(frozen=True)
class Dialect:
    """One API's words. `opening` precedes all content, `ending` makes the answer whole; `nothings` hold no content."""

    provider: str
    path: str
    model: str
    answers_as: str
    opening: Sequence[bytes]
    ending: Sequence[bytes]
    nothings: Sequence[bytes]
    terminator: int  # how many of `ending`, from its end, are the terminator
    usage: dict[str, int]
    misshapen: bytes  # valid JSON of a wrong type where the text should be
    input_told: int = 0  # what the opening already says of the input
    errors: dict[str, bytes] = field(default_factory=dict)  # in mid-stream, by the code they become

    def token(self, text: str) -> bytes:
        raise NotImplementedError

    def error_body(self, message: str, kind: str = "invalid_request_error", code: str | None = None) -> Any:
        """The JSON body of an HTTP error."""
        raise NotImplementedError

    def done(self, tokens: int, **other: Any) -> dict[str, Any]:
        """The data of `done` after `ending`."""
        whole = {"finish_reason": "stop", "model": self.answers_as, "usage": self.usage}
        return {"done": True, **whole, "tokens": tokens, **other}


# --- OpenAI Chat Completions -----------------------------------------------------------------------------------------

GPT = "gpt-4o-mini-2024-07-18"


def chat(delta: Any = None, finish_reason: str | None = None, **other: Any) -> bytes:
    """A chat.completion.chunk. Without a delta it has no choices."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return sse(
        {
            "id": "chatcmpl-CkT8s0V5dFQkqT1pYb9nEwR2mJ7uL",
            "object": "chat.completion.chunk",
            "created": 1763712000,
            "model": GPT,
            "service_tier": "default",
            "system_fingerprint": "fp_51db84afab",
            "choices": [] if delta is None else [choice],
            "usage": None,
            "obfuscation": "q8ZrT",
            **other,
        }
    )


def chat_usage(prompt: int, completion: int, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def call(index: int, arguments: str, call_id: str | None = None, name: str | None = None) -> bytes:
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    fragment = {"index": index, "id": call_id, "type": "function"} if name else {"index": index}
    return chat({"tool_calls": [{**fragment, "function": function}]})


ROLE = chat({"role": "assistant", "content": "", "refusal": None})
DONE = sse("[DONE]")
CONTENT_FILTER = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}


def chat_end(reason: str, usage: dict[str, Any]) -> tuple[bytes, ...]:
    return chat({}, reason), chat(usage=usage), DONE


class Chat(Dialect):
    def token(self, text: str) -> bytes:
        return chat({"content": text})

    def error_body(self, message: str, kind: str = "invalid_request_error", code: str | None = None) -> Any:
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def chat_error(message: str, kind: str, code: str | None) -> bytes:
    return sse({"error": {"message": message, "type": kind, "param": None, "code": code}})


OPENAI = Chat(
    provider="openai",
    path="/v1/chat/completions",
    model="gpt-4o-mini",
    answers_as=GPT,
    opening=[ROLE],
    ending=chat_end("stop", chat_usage(14, 8, cached=6)),
    nothings=[ROLE, chat({"content": ""}), chat({}), chat(), b": OPENROUTER PROCESSING\n\n"],
    terminator=3,
    usage={"input_tokens": 14, "output_tokens": 8, "cached_tokens": 6},
    misshapen=chat({"content": {"text": "no"}}),
    errors={
        "upstream_unavailable": chat_error("The server had an error. Sorry!", "server_error", None),
        "upstream_rate_limited": chat_error("Rate limit reached.", "tokens", "rate_limit_exceeded"),
        "context_length": chat_error("Too long.", "invalid_request_error", "context_length_exceeded"),
        "content_filtered": chat_error("Filtered.", "invalid_request_error", "content_filter"),
    },
)

CHAT_RECORDINGS = [
    Recording(
        "text",
        "openai",
        (ROLE, *(chat({"content": t}) for t in ("The", " capital", " is", " Paris", ".")), *OPENAI.ending),
        [("token", {"token": "The capital is Paris."})],
        OPENAI.done(5),
    ),
    Recording(
        "reasoning_content",  # DeepSeek's, vLLM's and llama.cpp's custom
        "openai",
        (
            chat({"role": "assistant", "content": None, "reasoning_content": ""}),
            chat({"content": None, "reasoning_content": "Two and"}),
            chat({"content": None, "reasoning_content": " two."}),
            chat({"content": "Four", "reasoning_content": None}),
            chat({"content": ".", "reasoning_content": None}),
            *chat_end("stop", chat_usage(20, 31, reasoning=24)),
        ),
        [("reasoning", {"reasoning": "Two and two."}), ("token", {"token": "Four."})],
        OPENAI.done(4, usage={"input_tokens": 20, "output_tokens": 31, "reasoning_tokens": 24}),
    ),
    Recording(
        "reasoning",  # OpenRouter's
        "openai",
        (
            b": OPENROUTER PROCESSING\n\n",
            chat({"role": "assistant", "content": "", "reasoning": "Hm.", "reasoning_details": [{"text": "Hm."}]}),
            chat({"role": "assistant", "content": "Yes", "reasoning": None}),
            *chat_end("stop", chat_usage(9, 5)),
        ),
        [("reasoning", {"reasoning": "Hm."}), ("token", {"token": "Yes"})],
        OPENAI.done(2, usage={"input_tokens": 9, "output_tokens": 5}),
    ),
    Recording(
        "tools",
        "openai",
        (
            chat({"role": "assistant", "content": None, "refusal": None}),
            call(0, "", "call_Ab1", "get_weather"),
            *(call(0, part) for part in ('{"ci', 'ty":"', "Paris", '"}')),
            call(1, "", "call_Cd2", "get_time"),
            *(call(1, part) for part in ('{"zone":', '"CET","day":1}')),
            *chat_end("tool_calls", chat_usage(88, 41)),
        ),
        [
            asked(0, "call_Ab1", "get_weather", '{"city":"Paris"}'),
            asked(1, "call_Cd2", "get_time", '{"zone":"CET","day":1}'),
            called("call_Ab1", "get_weather", {"city": "Paris"}),
            called("call_Cd2", "get_time", {"zone": "CET", "day": 1}),
        ],
        OPENAI.done(8, finish_reason="tool_calls", usage={"input_tokens": 88, "output_tokens": 41}),
    ),
    Recording(
        "length-in-a-call",
        "openai",
        (
            ROLE,
            chat({"content": "Let me look."}),
            call(0, "", "call_Ab1", "get_weather"),
            call(0, '{"city":"Pa'),
            *chat_end("length", chat_usage(88, 16)),
        ),
        [
            ("token", {"token": "Let me look."}),
            asked(0, "call_Ab1", "get_weather", '{"city":"Pa'),
        ],
        OPENAI.done(3, finish_reason="length", usage={"input_tokens": 88, "output_tokens": 16}),
    ),
    Recording(
        "refusal",
        "openai",
        (
            ROLE,
            chat({"refusal": "I'm sorry,"}),
            chat({"refusal": " I can't help with that."}),
            *chat_end("stop", chat_usage(14, 9)),
        ),
        [("token", {"token": "I'm sorry, I can't help with that."})],
        OPENAI.done(2, usage={"input_tokens": 14, "output_tokens": 9}),
    ),
    Recording(
        "filtered",  # as Azure sends it
        "openai",
        (
            chat(prompt_filter_results=[{"prompt_index": 0, "content_filter_results": CONTENT_FILTER}]),
            ROLE,
            chat({"content": "It begins"}),
            *chat_end("content_filter", chat_usage(14, 2)),
        ),
        [("token", {"token": "It begins"})],
        OPENAI.done(1, finish_reason="content_filter", usage={"input_tokens": 14, "output_tokens": 2}),
    ),
    Recording(
        "no-usage",  # of a server that knows no stream_options
        "openai",
        (ROLE, chat({"content": "Twelve chars"}), chat({}, "stop"), DONE),
        [("token", {"token": "Twelve chars"})],
        OPENAI.done(1, usage={"input_tokens": 1, "output_tokens": 3, "estimated": True}),
    ),
    Recording(
        "empty",
        "openai",
        (ROLE, *chat_end("stop", chat_usage(5, 0))),
        [],
        OPENAI.done(0, usage={"input_tokens": 5, "output_tokens": 0}),
    ),
]

# --- OpenAI Responses ------------------------------------------------------------------------------------------------

RESPONSE = {
    "id": "resp_68af4030592c81938ec0a5fbab4a3e9f05438e46b5f69a3b",
    "object": "response",
    "created_at": 1763712000,
    "status": "in_progress",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "model": GPT,
    "output": [],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "auto",
    "store": False,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": None,
    "user": None,
    "metadata": {},
}


def event(kind: str, number: int = 0, **fields: Any) -> bytes:
    """A typed, numbered event; numbers are cosmetic to all but the eye."""
    return sse({"type": kind, "sequence_number": number, **fields}, kind)


def response(kind: str, **fields: Any) -> bytes:
    """An event that carries the response as it stands."""
    status = kind.rpartition(".")[2].replace("created", "in_progress")
    return event(kind, response={**RESPONSE, "status": status, **fields})


def response_usage(read: int, written: int, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": read + written,
    }


def message(index: int, *deltas: bytes, text: str, status: str = "completed") -> tuple[bytes, ...]:
    """A message of one text part, from `added` to `done`."""
    item = {"id": "msg_68af4033a2b8", "type": "message", "status": "in_progress", "content": [], "role": "assistant"}
    place = {"item_id": item["id"], "output_index": index, "content_index": 0}
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
    return (
        event("response.output_item.added", output_index=index, item=item),
        event("response.content_part.added", **place, part=part),
        *deltas,
        event("response.output_text.done", **place, text=text, logprobs=[]),
        event("response.content_part.done", **place, part={**part, "text": text}),
        event(
            "response.output_item.done",
            output_index=index,
            item={**item, "status": status, "content": [{**part, "text": text}]},
        ),
    )


def text_delta(text: Any, index: int = 0) -> bytes:
    place = {"item_id": "msg_68af4033a2b8", "output_index": index, "content_index": 0}
    return event("response.output_text.delta", **place, delta=text, logprobs=[], obfuscation="aVx0")


def function_call(index: int, name: str, call_id: str, *parts: str, status: str = "completed") -> tuple[bytes, ...]:
    """A function call, from `added` to `done`."""
    item = {
        "id": f"fc_{index}68af40",
        "type": "function_call",
        "status": "in_progress",
        "arguments": "",
        "call_id": call_id,
        "name": name,
    }
    place, whole = {"item_id": item["id"], "output_index": index}, "".join(parts)
    return (
        event("response.output_item.added", output_index=index, item=item),
        *(event("response.function_call_arguments.delta", **place, delta=part, obfuscation="k") for part in parts),
        event("response.function_call_arguments.done", **place, arguments=whole),
        event("response.output_item.done", output_index=index, item={**item, "status": status, "arguments": whole}),
    )


RESPONSE_OPENING = (response("response.created"), response("response.in_progress"))
RESPONSE_MESSAGE = message(0, text="")[:2]
SUMMARY = {"item_id": "rs_68af4030", "output_index": 0, "summary_index": 0}
THOUGHT = {"id": "rs_68af4030", "type": "reasoning", "summary": []}


class Responses(Dialect):
    def token(self, text: str) -> bytes:
        return text_delta(text)

    def error_body(self, message: str, kind: str = "invalid_request_error", code: str | None = None) -> Any:
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def response_failed(message: str, code: str) -> bytes:
    return response("response.failed", error={"code": code, "message": message})


OPENAI_RESPONSES = Responses(
    provider="openai_responses",
    path="/v1/responses",
    model="gpt-4o-mini",
    answers_as=GPT,
    opening=[*RESPONSE_OPENING, *RESPONSE_MESSAGE],
    ending=[*message(0, text="...")[2:], response("response.completed", usage=response_usage(14, 8, cached=6))],
    nothings=[
        RESPONSE_OPENING[1],
        RESPONSE_MESSAGE[1],
        text_delta(""),
        event("response.web_search_call.searching", output_index=0, item_id="ws_1"),
        b": keepalive\n\n",
    ],
    terminator=1,
    usage={"input_tokens": 14, "output_tokens": 8, "cached_tokens": 6},
    misshapen=text_delta(5),
    errors={
        "upstream_unavailable": response_failed("The server had an error. Sorry!", "server_error"),
        "upstream_rate_limited": event("error", code="rate_limit_exceeded", message="Slow down.", param=None),
        "context_length": sse(
            {
                "type": "error",
                "sequence_number": 3,
                "error": {
                    "type": "invalid_request_error",
                    "code": "context_length_exceeded",
                    "message": "Too long.",
                    "param": "input",
                },
            },
            "error",
        ),
        "upstream_rejected": response_failed("The prompt is not allowed.", "invalid_prompt"),
    },
)


def responses_recording(name: str, items: Sequence[bytes], told: Told, last: bytes, done: dict[str, Any]) -> Recording:
    return Recording(name, "openai_responses", (*RESPONSE_OPENING, *items, last), told, done)


RESPONSES_RECORDINGS = [
    responses_recording(
        "text",
        message(0, *map(text_delta, ("The", " capital", " is", " Paris", ".")), text="The capital is Paris."),
        [("token", {"token": "The capital is Paris."})],
        response("response.completed", usage=response_usage(14, 8, cached=6)),
        OPENAI_RESPONSES.done(5),
    ),
    responses_recording(
        "reasoning",
        (
            event("response.output_item.added", output_index=0, item=THOUGHT),
            event("response.reasoning_summary_part.added", **SUMMARY, part={"type": "summary_text", "text": ""}),
            event("response.reasoning_summary_text.delta", **SUMMARY, delta="**Adding** two", obfuscation="Zs"),
            event("response.reasoning_summary_text.delta", **SUMMARY, delta=" and two.", obfuscation="p"),
            event("response.reasoning_summary_text.done", **SUMMARY, text="**Adding** two and two."),
            event(
                "response.reasoning_summary_part.done",
                **SUMMARY,
                part={"type": "summary_text", "text": "**Adding** two and two."},
            ),
            event("response.output_item.done", output_index=0, item=THOUGHT),
            *message(1, text_delta("Four", 1), text_delta(".", 1), text="Four."),
        ),
        [("reasoning", {"reasoning": "**Adding** two and two."}), ("token", {"token": "Four."})],
        response("response.completed", usage=response_usage(20, 31, cached=4, reasoning=24)),
        OPENAI_RESPONSES.done(
            4, usage={"input_tokens": 20, "output_tokens": 31, "cached_tokens": 4, "reasoning_tokens": 24}
        ),
    ),
    responses_recording(
        "tools",
        (
            event("response.output_item.added", output_index=0, item=THOUGHT),
            event("response.output_item.done", output_index=0, item=THOUGHT),
            *function_call(1, "get_weather", "call_Ab1", '{"ci', 'ty":"', "Paris", '"}'),
            *function_call(2, "get_time", "call_Cd2", '{"zone":', '"CET","day":1}'),
        ),
        [
            asked(0, "call_Ab1", "get_weather", '{"city":"Paris"}'),
            called("call_Ab1", "get_weather", {"city": "Paris"}),
            asked(1, "call_Cd2", "get_time", '{"zone":"CET","day":1}'),
            called("call_Cd2", "get_time", {"zone": "CET", "day": 1}),
        ],
        response("response.completed", usage=response_usage(88, 41)),
        OPENAI_RESPONSES.done(8, finish_reason="tool_calls", usage={"input_tokens": 88, "output_tokens": 41}),
    ),
    responses_recording(
        "length-in-a-call",
        (
            *message(0, text_delta("Let me look."), text="Let me look."),
            *function_call(1, "get_weather", "call_Ab1", '{"city":"Pa', status="incomplete"),
        ),
        [
            ("token", {"token": "Let me look."}),
            asked(0, "call_Ab1", "get_weather", '{"city":"Pa'),
        ],
        response(
            "response.incomplete",
            incomplete_details={"reason": "max_output_tokens"},
            usage=response_usage(88, 16),
        ),
        OPENAI_RESPONSES.done(3, finish_reason="length", usage={"input_tokens": 88, "output_tokens": 16}),
    ),
    responses_recording(
        "refusal",
        (
            *RESPONSE_MESSAGE,
            event("response.refusal.delta", output_index=0, content_index=0, item_id="msg_1", delta="I'm sorry,"),
            event("response.refusal.delta", output_index=0, content_index=0, item_id="msg_1", delta=" I can't."),
            event(
                "response.refusal.done", output_index=0, content_index=0, item_id="msg_1", refusal="I'm sorry, I can't."
            ),
        ),
        [("token", {"token": "I'm sorry, I can't."})],
        response("response.completed", usage=response_usage(14, 9)),
        OPENAI_RESPONSES.done(2, usage={"input_tokens": 14, "output_tokens": 9}),
    ),
    responses_recording(
        "filtered",
        message(0, text_delta("It begins"), text="It begins", status="incomplete"),
        [("token", {"token": "It begins"})],
        response("response.incomplete", incomplete_details={"reason": "content_filter"}, usage=response_usage(14, 2)),
        OPENAI_RESPONSES.done(1, finish_reason="content_filter", usage={"input_tokens": 14, "output_tokens": 2}),
    ),
]

# --- Anthropic Messages ----------------------------------------------------------------------------------------------

CLAUDE = "claude-haiku-4-5-20251001"


def claude(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)


def message_start(**usage: int) -> bytes:
    told = {
        "input_tokens": 25,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 1,
        "service_tier": "standard",
        "inference_geo": "not_available",
        **usage,
    }
    return claude(
        "message_start",
        message={
            "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
            "type": "message",
            "role": "assistant",
            "model": CLAUDE,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": told,
        },
    )


def block(index: int, opened: dict[str, Any], *deltas: dict[str, Any]) -> tuple[bytes, ...]:
    """A content block, from start to stop."""
    return (
        claude("content_block_start", index=index, content_block=opened),
        *(claude("content_block_delta", index=index, delta=delta) for delta in deltas),
        claude("content_block_stop", index=index),
    )


def text_block(index: int, *texts: str) -> tuple[bytes, ...]:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": text} for text in texts))


def tool_block(index: int, call_id: str, name: str, *parts: str) -> tuple[bytes, ...]:
    opened = {"type": "tool_use", "id": call_id, "name": name, "input": {}, "caller": {"type": "direct"}}
    return block(index, opened, *({"type": "input_json_delta", "partial_json": part} for part in parts))


def claude_end(reason: str, written: int, details: Any = None, **usage: Any) -> tuple[bytes, ...]:
    told = {"input_tokens": 25, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return (
        claude(
            "message_delta",
            delta={"stop_reason": reason, "stop_sequence": None, "stop_details": details},
            usage={**told, "output_tokens": written, **usage},
        ),
        claude("message_stop"),
    )


SIGNATURE = "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds"
PING = claude("ping")
TEXT_OPEN = claude("content_block_start", index=0, content_block={"type": "text", "text": ""})
TEXT_STOP = claude("content_block_stop", index=0)


class Messages(Dialect):
    def token(self, text: str) -> bytes:
        return claude("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def error_body(self, message: str, kind: str = "invalid_request_error", code: str | None = None) -> Any:
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011CSHoEeqs5C35K2UUq"}


def claude_error(kind: str, message: str) -> bytes:
    return claude("error", error={"type": kind, "message": message}, request_id="req_011CSHoEeqs5C35K2UUq")


ANTHROPIC = Messages(
    provider="anthropic",
    path="/v1/messages",
    model="claude-haiku-4-5",
    answers_as=CLAUDE,
    opening=[message_start(), TEXT_OPEN, PING],
    ending=[TEXT_STOP, *claude_end("end_turn", 8)],
    nothings=[
        PING,
        claude("content_block_delta", index=0, delta={"type": "text_delta", "text": ""}),
        claude("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "EqQBCgIYAhIM"}),
        claude("a_type_to_come", index=0),
        b": keepalive\n\n",
    ],
    terminator=1,
    usage={"input_tokens": 25, "output_tokens": 8},
    misshapen=claude("content_block_delta", index=0, delta={"type": "text_delta", "text": 5}),
    input_told=25,
    errors={
        "upstream_unavailable": claude_error("overloaded_error", "Overloaded"),
        "upstream_rate_limited": claude_error("rate_limit_error", "Slow down."),
        "upstream_auth": claude_error("authentication_error", "invalid bearer token"),
        "upstream_rejected": claude_error("invalid_request_error", "messages: too many"),
    },
)


def claude_recording(name: str, chunks: Sequence[bytes], told: Told, done: dict[str, Any]) -> Recording:
    return Recording(name, "anthropic", tuple(chunks), told, done)


CLAUDE_RECORDINGS = [
    claude_recording(
        "text",
        (message_start(), TEXT_OPEN, PING, *map(ANTHROPIC.token, ("The", " capital", " is Paris.")), *ANTHROPIC.ending),
        [("token", {"token": "The capital is Paris."})],
        ANTHROPIC.done(3),
    ),
    claude_recording(
        "cached",  # what is read from the cache and written to it counts as input, as it does at OpenAI
        (
            message_start(cache_read_input_tokens=100, cache_creation_input_tokens=50),
            *text_block(0, "Hi."),
            *claude_end("end_turn", 4, cache_read_input_tokens=100, cache_creation_input_tokens=50),
        ),
        [("token", {"token": "Hi."})],
        ANTHROPIC.done(1, usage={"input_tokens": 175, "output_tokens": 4, "cached_tokens": 100}),
    ),
    claude_recording(
        "reasoning",
        (
            message_start(),
            *block(
                0,
                {"type": "thinking", "thinking": "", "signature": ""},
                {"type": "thinking_delta", "thinking": "Two and"},
                {"type": "thinking_delta", "thinking": " two."},
                {"type": "signature_delta", "signature": SIGNATURE},
            ),
            *block(1, {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIwxtE3"}),
            *text_block(2, "Four", "."),
            *claude_end("end_turn", 31, output_tokens_details={"thinking_tokens": 24}),
        ),
        [
            ("reasoning", {"reasoning": "Two and two."}),
            ("reasoning", {"reasoning": "", "signature": SIGNATURE}),
            ("token", {"token": "Four."}),
        ],
        ANTHROPIC.done(5, usage={"input_tokens": 25, "output_tokens": 31, "reasoning_tokens": 24}),
    ),
    claude_recording(
        "tools",
        (
            message_start(),
            *text_block(0, "Let me look."),
            *tool_block(1, "toolu_Ab1", "get_weather", "", '{"ci', 'ty":"', "Paris", '"}'),
            *tool_block(2, "toolu_Cd2", "get_time", "", '{"zone":', '"CET","day":1}'),
            *tool_block(3, "toolu_Ef3", "now"),
            *claude_end("tool_use", 41),
        ),
        [
            ("token", {"token": "Let me look."}),
            asked(0, "toolu_Ab1", "get_weather", '{"city":"Paris"}'),
            called("toolu_Ab1", "get_weather", {"city": "Paris"}),
            asked(1, "toolu_Cd2", "get_time", '{"zone":"CET","day":1}'),
            called("toolu_Cd2", "get_time", {"zone": "CET", "day": 1}),
            asked(2, "toolu_Ef3", "now", ""),
            called("toolu_Ef3", "now", {}),
        ],
        ANTHROPIC.done(10, finish_reason="tool_calls", usage={"input_tokens": 25, "output_tokens": 41}),
    ),
    claude_recording(
        "length-in-a-call",
        (
            message_start(),
            *text_block(0, "Let me look."),
            *tool_block(1, "toolu_Ab1", "get_weather", "", '{"city":"Pa'),
            *claude_end("max_tokens", 16),
        ),
        [
            ("token", {"token": "Let me look."}),
            asked(0, "toolu_Ab1", "get_weather", '{"city":"Pa'),
        ],
        ANTHROPIC.done(3, finish_reason="length", usage={"input_tokens": 25, "output_tokens": 16}),
    ),
    claude_recording(
        "refusal",
        (
            message_start(),
            *text_block(0, "It begins"),
            *claude_end("refusal", 2, {"type": "refusal", "category": "cyber", "explanation": None}),
        ),
        [("token", {"token": "It begins"})],
        ANTHROPIC.done(1, finish_reason="content_filter", usage={"input_tokens": 25, "output_tokens": 2}),
    ),
    claude_recording(
        "server-tool",  # a search of Anthropic's own: no call of ours
        (
            message_start(),
            *block(
                0,
                {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
                {"type": "input_json_delta", "partial_json": '{"query":"x"}'},
            ),
            *block(1, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}),
            *text_block(2, "Found."),
            *claude_end("end_turn", 12, server_tool_use={"web_search_requests": 1, "web_fetch_requests": 0}),
        ),
        [("token", {"token": "Found."})],
        ANTHROPIC.done(1, usage={"input_tokens": 25, "output_tokens": 12}),
    ),
]

DIALECTS: list[Dialect] = [OPENAI, OPENAI_RESPONSES, ANTHROPIC]
RECORDINGS = CHAT_RECORDINGS + RESPONSES_RECORDINGS + CLAUDE_RECORDINGS
