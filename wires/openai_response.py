"""A response of OpenAI's Responses API, as an object: its output items, its usage, and how it ended.

https://platform.openai.com/docs/api-reference/responses/object. What it says of its request is little: a run
keeps no prompt, neither instructions nor tools.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import UNSET

from streaming.errors import Fault
from streaming.events import Done, Usage

Object = dict[str, Any]
# What a response says of its request where that has not said it.
UNSAID: Object = {
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": None,
    "tool_choice": "auto",
    "top_p": None,
}
CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}
# The codes of a response's error are few, and strict clients know no others.
FAILED_BY = {
    "rate_limited": "rate_limit_exceeded",
    "upstream_rate_limited": "rate_limit_exceeded",
    "context_length": "context_length_exceeded",
    "content_filtered": "invalid_prompt",
    "upstream_rejected": "invalid_prompt",
}


class Kind(NamedTuple):
    """A kind of output item: its ids' prefix, and what the events of its text, and of that as a part, are called.

    `at` is where in an item its text is, `more` what stands beside that.
    """

    name: str
    prefix: str
    field: bytes
    text: bytes
    part: bytes = b""
    at: bytes = b""
    more: bytes = b""


MESSAGE = Kind(
    *("message", "msg", b"text", b"response.output_text", b"response.content_part"),
    at=b',"content_index":0',
    more=b',"logprobs":[]',
)
REASONING = Kind(
    *("reasoning", "rs", b"text", b"response.reasoning_summary_text", b"response.reasoning_summary_part"),
    at=b',"summary_index":0',
)
CALL = Kind("function_call", "fc", b"arguments", b"response.function_call_arguments")


class Item:
    """An output item while it is written. `delta` is the event of more text, but for its number and that."""

    def __init__(self, kind: Kind, run_id: str, index: int, call: Mapping[str, str]) -> None:
        self.kind = kind
        self.status = "in_progress"
        self.texts: list[str] = []
        self._id = f"{kind.prefix}_{run_id}_{index}"
        self._call = call
        self.index = b'"output_index":%d' % index
        self.here = b'"item_id":"%b",%b%b' % (self._id.encode(), self.index, kind.at)
        self.delta = b'event: %b.delta\ndata: {"type":"%b.delta","sequence_number":%%d,%b,"delta":%%b%b}\n\n' % (
            *(kind.text, kind.text),
            *(self.here, kind.more),
        )

    @property
    def is_open(self) -> bool:
        return self.status == "in_progress"

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def part(self) -> Object:
        """Its text, as a part of it."""
        if self.kind is REASONING:
            return {"type": "summary_text", "text": self.text}
        return {"type": "output_text", "annotations": [], "logprobs": [], "text": self.text}

    def told(self) -> Object:
        item: Object = {"id": self._id, "type": self.kind.name}
        parts = [self.part] if self.texts else []
        if self.kind is REASONING:
            return {**item, "summary": parts}
        item["status"] = self.status
        if self.kind is CALL:
            return {**item, **self._call, "arguments": self.text}
        return {**item, "role": "assistant", "content": parts}


def response(
    run_id: str, created: int, model: str, items: Sequence[Item], about: Mapping[str, Any], ending: Mapping[str, Any]
) -> Object:
    """Return a response: `about` is what it says of its request, `ending` how it has ended."""
    return {
        "id": f"resp_{run_id}",
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": model,
        "output": [item.told() for item in items],
        "previous_response_id": None,
        "tools": [],
        "usage": None,
        **UNSAID,
        **about,
        **ending,
    }


def done(event: Done) -> Object:
    """Return how a response has ended that is whole, or cut short."""
    if reason := CUT.get(event.finish_reason):
        return {"status": "incomplete", "incomplete_details": {"reason": reason}, "usage": usage(event.usage)}
    return {"status": "completed", "usage": usage(event.usage)}


def failed(fault: Fault, counted: Usage | None) -> Object:
    """Return how a response has ended that is not, and what it has used, where that is known."""
    used = counted and usage(counted)
    if fault.code == "cancelled":
        return {"status": "cancelled", "usage": used}
    error = {"code": FAILED_BY.get(fault.code, "server_error"), "message": fault.text}
    return {"status": "failed", "error": error, "usage": used}


def usage(counted: Usage) -> Object:
    """Return the usage as this API has it; of an estimate it says so."""
    cached, reasoning = counted.cached_tokens, counted.reasoning_tokens
    told: Object = {
        "input_tokens": counted.input_tokens,
        "input_tokens_details": {"cached_tokens": 0 if cached is UNSET else cached, "cache_write_tokens": 0},
        "output_tokens": counted.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0 if reasoning is UNSET else reasoning},
        "total_tokens": counted.input_tokens + counted.output_tokens,
    }
    return told | ({"estimated": True} if counted.estimated is True else {})
