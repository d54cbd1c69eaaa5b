"""What a span tells of a run, by name: the semantic conventions for generative AI (OpenTelemetry; in development).

https://github.com/open-telemetry/semantic-conventions-genai. What they have no word for has that of our log's line,
behind `sidestream.`. Nothing here holds a key, nor what an upstream said of a fault; prompts and answers are apart.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET

from .events import Done, Error, Event, Reasoning, Reset, Token, ToolCall, ToolResult
from .logs import reason_of
from .request import ImagePart, Message, RunRequest, TextFormat, TextPart
from .run import Run

MAX_NAME = 100  # characters of what clients and upstreams call as they like
PROVIDERS = {"openai_responses": "openai"}  # where the conventions' name is not ours
Attributes = dict[str, Any]
Pairs = Iterator[tuple[str, Any]]


def asked(run: Run) -> Attributes:
    """Say what is known of a run that begins, which is what a sampler sees."""
    return _fit(_asked(run))


def told(run: Run) -> Attributes:
    """Say what has become of a run."""
    return _fit(_told(run))


def prompted(request: RunRequest) -> Attributes:
    """Say what was asked, word by word."""
    return _fit(_prompt(request))


def answered(run: Run) -> Attributes:
    """Say what was answered, word by word."""
    parts: list[dict[str, Any]] = []
    for _, event in run.log.merged(0):
        if isinstance(event, Reset):
            parts.clear()
        parts += _parts(event)
    reason = run.terminal.finish_reason if isinstance(run.terminal, Done) else "error"
    return {"gen_ai.output.messages": _json([{"role": "assistant", "parts": parts, "finish_reason": reason}])}


def _who(run: Run) -> Pairs:
    yield "gen_ai.provider.name", PROVIDERS.get(run.answer.provider, run.answer.provider)
    yield "gen_ai.request.model", run.answer.model[:MAX_NAME]


def _asked(run: Run) -> Pairs:
    yield "gen_ai.operation.name", "chat"
    yield "gen_ai.request.stream", True
    yield "sidestream.run_id", run.id
    yield from _who(run)
    if request := run.answer.request:
        yield "gen_ai.conversation.id", request.thread_id
        yield "gen_ai.request.max_tokens", request.max_tokens
        yield "gen_ai.request.temperature", request.temperature
        yield "gen_ai.request.top_p", request.top_p
        yield "gen_ai.request.stop_sequences", request.stops and [text[:MAX_NAME] for text in request.stops]
        yield "gen_ai.request.seed", request.seed
        if form := request.response_format:
            yield "gen_ai.output.type", "text" if isinstance(form, TextFormat) else "json"


def _told(run: Run) -> Pairs:
    terminal, answer = run.terminal, run.answer
    yield from _who(run)
    if isinstance(terminal, Done):
        yield "gen_ai.response.model", terminal.model[:MAX_NAME]
        yield "gen_ai.response.finish_reasons", [terminal.finish_reason]
    elif isinstance(terminal, Error):
        yield "error.type", terminal.code
        yield "gen_ai.response.finish_reasons", ["error"]
    if run.has_asked:
        yield "gen_ai.usage.input_tokens", answer.usage.input_tokens
        yield "gen_ai.usage.output_tokens", answer.usage.output_tokens
        yield "gen_ai.usage.cache_read.input_tokens", answer.usage.cached_tokens
        yield "gen_ai.usage.reasoning.output_tokens", answer.usage.reasoning_tokens
        yield "sidestream.usage_estimated", answer.usage.estimated
    yield "gen_ai.response.time_to_first_chunk", None if run.ttft_ms is None else run.ttft_ms / 1000
    yield "sidestream.outcome", terminal.name if terminal else None
    yield "sidestream.reason", reason_of(run)
    yield "sidestream.queued_ms", run.queued_ms
    yield "sidestream.retries", answer.retries
    yield "sidestream.failovers", answer.failovers
    yield "sidestream.resets", answer.resets


def _fit(pairs: Iterable[tuple[str, Any]]) -> Attributes:
    """Leave out what is not known, and what OTLP cannot say: integers of more than 64 bits, halves of surrogates."""
    return {name: _clean(value) for name, value in pairs if value not in (None, UNSET) and _is_short(value)}


def _is_short(value: Any) -> bool:
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _clean(value: Any) -> Any:
    if isinstance(value, list):
        return [_clean(one) for one in value]
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _prompt(request: RunRequest) -> Pairs:
    if request.system is not None:
        yield "gen_ai.system_instructions", _json([_said("text", request.system)])
    messages = [_message(message) for message in request.messages]
    if request.has_own_input:
        own = request.resume if request.input is UNSET else request.input
        messages = [{"role": "user", "parts": [_said("text", own if isinstance(own, str) else _json(own))]}]
    yield "gen_ai.input.messages", _json(messages)


def _message(message: Message) -> dict[str, Any]:
    content = [TextPart(message.content)] if isinstance(message.content, str) else message.content or []
    parts = [_part(part) for part in content]
    if message.role == "tool":
        text = "".join(part.text for part in content if isinstance(part, TextPart))
        parts = [{"type": "tool_call_response", "id": message.tool_call_id, "response": text}]
    parts += [_call(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    return {"role": message.role, "parts": parts}


def _part(part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return _said("text", part.text)
    if part.image_url.url.startswith("data:"):
        return {"type": "blob", "modality": "image", "content": ""}  # its bytes are left out: they may be megabytes
    return {"type": "uri", "modality": "image", "uri": part.image_url.url}


def _parts(event: Event) -> Iterator[dict[str, Any]]:
    if isinstance(event, Token):
        yield _said("text", event.text)
    elif isinstance(event, Reasoning) and event.text:
        yield _said("reasoning", event.text)
    elif isinstance(event, ToolCall):
        yield _call(event.id, event.tool, event.args)
    elif isinstance(event, ToolResult):
        yield {"type": "tool_call_response", "id": event.id, "response": event.content}


def _said(kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "content": text}


def _call(call_id: str, tool: str, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_call", "id": call_id, "name": tool, "arguments": arguments}


def _json(value: Any) -> str:
    try:
        return msgspec.json.encode(value, enc_hook=str).decode()
    except UnicodeEncodeError:  # half of a surrogate pair has no UTF-8, but JSON can name it
        return json.dumps(value, default=str)
