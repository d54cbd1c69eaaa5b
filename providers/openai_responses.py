"""OpenAI's Responses stream: numbered, typed events, text and reasoning summaries and function calls.

https://platform.openai.com/docs/api-reference/responses-streaming. Only what a client of ours can be shown is read;
events of other types (audio, built-in tools, and those to come) pass by. The terminator is `response.completed`,
`response.incomplete` or `response.failed`. The API has no `stop` and no `seed`.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
import openai
from msgspec import UNSET, Struct

from streaming.errors import RequestError
from streaming.events import Finish, FinishReason, Reasoning, Token, ToolCall, ToolCallDelta, Usage
from streaming.request import (
    Emit,
    Function,
    ImagePart,
    JSONSchemaFormat,
    Message,
    NamedTool,
    ProviderSettings,
    RunRequest,
    TextFormat,
    TextPart,
)

from . import Item, Upstream, arguments, upstream_error


# Not for the garbage collector: what is decoded from JSON has no cycles.
class _Item(Struct, gc=False):
    type: str = ""
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    status: str | None = None


class _InputDetails(Struct, gc=False):
    cached_tokens: int | None = None


class _OutputDetails(Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(Struct, gc=False):
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Error(Struct, gc=False):
    code: str | None = None
    type: str | None = None
    message: str | None = None


class _Incomplete(Struct, gc=False):
    reason: str | None = None


class _Response(Struct, gc=False):
    model: str | None = None
    usage: _Usage | None = None
    error: _Error | None = None
    incomplete_details: _Incomplete | None = None


class _Event(Struct, gc=False):
    type: str = ""
    output_index: int = 0
    delta: Any = None  # text in the events that are read, anything in others
    item: _Item | None = None
    response: _Response | None = None
    code: str | None = None
    message: str | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Event).decode
_TEXT = {"response.output_text.delta", "response.refusal.delta"}
_REASONING = {"response.reasoning_summary_text.delta", "response.reasoning_text.delta"}


class Translation:
    """Responses events -> events. A function call's `index` is its place among the calls, not among all outputs."""

    def __init__(self) -> None:
        self.over = False
        self._calls: dict[int, int] = {}

    def feed(self, data: bytes) -> list[Item]:
        event = _decode(data)
        kind = event.type
        if kind in _TEXT:
            text = _text(event)
            return [Token(text)] if text else []
        if kind in _REASONING:
            text = _text(event)
            return [Reasoning(text)] if text else []
        if kind == "response.output_item.added" and event.item and event.item.type == "function_call":
            index = self._calls.setdefault(event.output_index, len(self._calls))
            return [ToolCallDelta(index, event.item.arguments or "", _id(event.item), event.item.name or "")]
        if kind == "response.function_call_arguments.delta":
            text = _text(event)
            return [ToolCallDelta(self._calls.get(event.output_index, 0), text)] if text else []
        if kind == "response.output_item.done" and event.item and event.item.type == "function_call":
            if event.item.status == "incomplete":  # of an answer that was cut short
                return []
            return [ToolCall(_id(event.item), event.item.name or "", arguments(event.item.arguments or "")[0])]
        if kind in ("response.completed", "response.incomplete"):
            self.over = True
            return [self._finish(event.response or _Response())]
        if kind in ("response.failed", "error"):
            error = event.error or (event.response and event.response.error) or _Error(event.code, None, event.message)
            raise upstream_error(error.code, error.type, message=error.message)
        return []

    def eof(self) -> list[Item]:
        return []

    def _finish(self, response: _Response) -> Finish:
        reason: FinishReason = "tool_calls" if self._calls else "stop"
        if response.incomplete_details:
            reason = "content_filter" if response.incomplete_details.reason == "content_filter" else "length"
        return Finish(reason, _usage(response.usage), response.model)


def _text(event: _Event) -> str:
    return msgspec.convert(event.delta, str)


def _id(item: _Item) -> str:
    return item.call_id or item.id or ""


def _usage(usage: _Usage | None) -> Usage | None:
    if usage is None:
        return None
    cached = usage.input_tokens_details and usage.input_tokens_details.cached_tokens
    thought = usage.output_tokens_details and usage.output_tokens_details.reasoning_tokens
    return Usage(usage.input_tokens, usage.output_tokens, cached or UNSET, thought or UNSET)


def body(request: RunRequest) -> dict[str, Any]:
    """The request in the Responses API's words. Raises RequestError for `stop`, which it lacks; `seed` is a hint."""
    if request.verbatim is not None:
        own = {"model": request.model, "stream": True, "store": False}
        return {**request.verbatim, **own, **(request.provider_options or {})}
    if request.stops:
        raise RequestError("invalid_request", "The Responses API knows no `stop`.", field="stop")
    fields = {
        "instructions": request.system,
        "max_output_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "tools": [_tool(tool.function) for tool in request.tools or ()] or None,
        "tool_choice": _tool_choice(request),
        "parallel_tool_calls": request.parallel_tool_calls if request.tools else None,
        "text": _format(request),
    }
    return {
        "model": request.model,
        "input": [item for message in request.messages for item in _input(message)],
        "stream": True,
        "store": False,
        **{name: value for name, value in fields.items() if value is not None},
        **(request.provider_options or {}),
    }


def _tool(function: Function) -> dict[str, Any]:
    """Both are required here, and `strict` would be taken for true where Chat Completions takes it for false."""
    needed = {"parameters": {"type": "object", "properties": {}}, "strict": False}
    return {"type": "function", **needed, **msgspec.to_builtins(function)}


def _tool_choice(request: RunRequest) -> Any:
    if isinstance(request.tool_choice, NamedTool):
        return {"type": "function", "name": request.tool_choice.function.name}
    return request.tool_choice


def _format(request: RunRequest) -> dict[str, Any] | None:
    chosen = request.response_format
    if chosen is None or isinstance(chosen, TextFormat):
        return None
    if isinstance(chosen, JSONSchemaFormat):
        return {"format": {"type": "json_schema", **msgspec.to_builtins(chosen.json_schema)}}
    return {"format": {"type": "json_object"}}


def _input(message: Message) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": _output(message)}
        return
    if message.content:
        yield {"role": message.role, "content": [_part(message.role, part) for part in _parts(message.content)]}
    for call in message.tool_calls or ():
        name, arguments = call.function.name, call.function.arguments
        yield {"type": "function_call", "call_id": call.id, "name": name, "arguments": arguments}


def _parts(content: str | list[TextPart | ImagePart]) -> list[TextPart | ImagePart]:
    return [TextPart(content)] if isinstance(content, str) else content


def _part(role: str, part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "output_text" if role == "assistant" else "input_text", "text": part.text}
    return {"type": "input_image", "image_url": part.image_url.url, "detail": part.image_url.detail or "auto"}


def _output(message: Message) -> str | list[dict[str, Any]]:
    """Return what a tool has answered: a text, or its parts where there are images in it."""
    parts = _parts(message.content or "")
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "".join(texts) if len(texts) == len(parts) else [_part(message.role, part) for part in parts]


class OpenAIResponses:
    """The Responses API at `base_url`; without one, at OpenAI, as the SDK's own variables say."""

    def __init__(self, settings: ProviderSettings, upstream: Upstream) -> None:
        self._upstream = upstream
        self._endpoint = upstream.endpoint(openai, openai.OpenAI, settings, _call, organization="", project="")

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        await self._upstream.follow(self._endpoint, body(request), Translation(), emit, request)


def _call(client: openai.OpenAI) -> object:
    return client.responses.create(model="", input=[], stream=True)
