"""How a run has ended, in AG-UI's words: the outcome, what the graph waits for, and the usage."""

from collections.abc import Iterable
from typing import Any

from msgspec import UNSET

from streaming.events import Cancelled, Done, Error, Interrupt, Start

from .ag_ui_request import BREAKPOINT
from .ag_ui_turns import Call

Ending = Done | Error | Cancelled


def outcome(event: Ending, run_id: str, interrupts: list[dict[str, Any]], calls: Iterable[Call]) -> dict[str, Any]:
    """Return how a run has ended that did not fail; an answer comes with what it is."""
    if not isinstance(event, Done):
        return {"outcome": {"type": "cancelled"}}
    if event.finish_reason == "interrupt":
        waits = interrupts or [{"id": BREAKPOINT, "reason": "langgraph:breakpoint"}]
        return {"outcome": {"type": "interrupt", "interrupts": waits}}
    result = {"run": run_id, "model": event.model, "finishReason": event.finish_reason}
    pending = [call.name for call in calls if not call.is_answered]
    return {"result": result, "outcome": {"type": "success"} | ({"pendingToolCallIds": pending} if pending else {})}


def usage(event: Ending, start: Start | None) -> dict[str, Any]:
    """Return the usage, of the one who was asked last, if anybody was; of an estimate the event's metadata say so."""
    if not start:
        return {}
    counted, model = event.usage, event.model if isinstance(event, Done) else start.model
    told: dict[str, Any] = {
        "provider": start.provider,
        "model": model,
        "inputTokens": counted.input_tokens,
        "outputTokens": counted.output_tokens,
        "totalTokens": counted.input_tokens + counted.output_tokens,
    }
    if counted.reasoning_tokens is not UNSET:
        told["reasoningTokens"] = counted.reasoning_tokens
    if counted.cached_tokens is not UNSET:
        told["cachedInputTokens"] = counted.cached_tokens
    return {"usage": [told]} | ({"metadata": {"estimated": True}} if counted.estimated is True else {})


def interrupt(event: Interrupt) -> dict[str, Any]:
    """Return an interrupt as AG-UI has it; what of its fields the graph's value has, it has from there."""
    value = event.value
    told = value if isinstance(value, dict) else {"message": value} if isinstance(value, str) else {}
    kinds: dict[str, type[Any]] = {"message": str, "toolCallId": str, "responseSchema": dict, "expiresAt": str}
    known = {name: told[name] for name, kind in kinds.items() if isinstance(told.get(name), kind)}
    reason = told.get("reason")
    reason = reason if isinstance(reason, str) else "langgraph:interrupt"
    return {"id": event.id, "reason": reason, **known, "metadata": {"langgraph": {"raw": value}}}
