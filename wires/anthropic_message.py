"""Anthropic's Message, whole: the answer to who wants no stream, and the frame of one that is streamed."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import UNSET

from streaming.events import Done, Event, FinishReason, Reasoning, Token, ToolCall, ToolCallDelta, Usage
from streaming.followed import Followed

from .chat import json_line
from .fold import no_answer

STOPS: dict[FinishReason, str] = {
    "stop": "end_turn",  # as is what a stop sequence has ended: upstreams do not all tell which
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
Block = dict[str, Any]


def message(
    run_id: str,
    model: str,
    content: Sequence[Block] = (),
    reason: FinishReason | None = None,
    counted: Usage = Usage(),  # noqa: B008  # frozen
) -> dict[str, Any]:
    head = {"id": f"msg_{run_id}", "type": "message", "role": "assistant", "model": model, "content": content}
    return {**head, **stop(reason), "usage": usage(counted)}


def whole(run: Followed) -> dict[str, Any]:
    """Return the answer of a run that is done. Raises RequestError where its graph waits."""
    if failed := no_answer(run.terminal):
        raise failed
    done = run.terminal
    assert isinstance(done, Done)
    return message(run.id, done.model, blocks(run.log.answer()), done.finish_reason, done.usage)


def blocks(said: Iterable[Event]) -> list[Block]:
    """Return what was said as content blocks, in the order of their beginnings."""
    found: list[Block] = [{"type": ""}]
    written: dict[int, Block] = {}  # calls, by the index of their deltas
    begun: dict[str, list[Block]] = {}  # by their ids, which are not always unlike
    for event in said:
        last = found[-1]
        if isinstance(event, Token):
            if last["type"] != "text":
                found.append(last := {"type": "text", "text": ""})
            last["text"] += event.text
        elif isinstance(event, Reasoning):
            if last["type"] != "thinking" or last["signature"]:
                found.append(last := {"type": "thinking", "thinking": "", "signature": ""})
            last["thinking"] += event.text
            last["signature"] = event.signature or ""
        elif isinstance(event, ToolCallDelta | ToolCall) and event.node is UNSET:
            if isinstance(event, ToolCall) and begun.get(event.id):
                begun[event.id].pop(0)["input"] = event.args
                continue
            if event.id is not UNSET:
                found.append({"type": "tool_use", "id": event.id, "name": event.tool or "", "input": ""})
            if isinstance(event, ToolCall):
                found[-1]["input"] = event.args
                continue
            if event.id is not UNSET:
                written[event.index] = found[-1]
                begun.setdefault(event.id, []).append(found[-1])
            if event.index in written:
                written[event.index]["input"] += event.text
    return [block | {"input": input_of(block["input"])} if "input" in block else block for block in found[1:]]


def input_of(args: Any) -> dict[str, Any]:
    """Return a call's arguments, parsed or as text, as the object that they must be.

    What is none is told as Anthropic's docs have it (fine-grained tool streaming).
    """
    parsed = args
    if isinstance(args, str):
        with suppress(msgspec.DecodeError, RecursionError):
            parsed = msgspec.json.decode(args) if args else {}
    if isinstance(parsed, dict):
        return parsed
    return {"INVALID_JSON": args if isinstance(args, str) else json_line(args).decode()}


def stop(reason: FinishReason | None) -> dict[str, Any]:
    """Return why an answer has ended; None: it has not."""
    refusal = {"type": "refusal", "category": None, "explanation": None} if reason == "content_filter" else None
    return {"stop_reason": reason and STOPS[reason], "stop_sequence": None, "stop_details": refusal}


def usage(counted: Usage) -> dict[str, Any]:
    """Return the usage: Anthropic counts cached input apart. Of an estimate it says so."""
    cached = counted.cached_tokens or 0
    told: dict[str, Any] = {"input_tokens": max(counted.input_tokens - cached, 0)}
    if counted.cached_tokens is not UNSET:
        told["cache_read_input_tokens"] = cached
    told["output_tokens"] = counted.output_tokens
    if counted.reasoning_tokens is not UNSET:
        told["output_tokens_details"] = {"thinking_tokens": counted.reasoning_tokens}
    return told | ({"estimated": True} if counted.estimated is True else {})
