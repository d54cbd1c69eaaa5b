"""Anthropic's Messages stream: message_start, content blocks with their deltas, message_delta, message_stop.

https://docs.anthropic.com/en/api/messages-streaming. Unknown event and block types pass by, as it asks for. The
terminator is `message_stop`. The API demands `max_tokens`, and has no `seed` and no JSON mode without a schema. What it
thought in secret (`redacted_thinking`) passes by, too.
"""

from typing import Any

import anthropic
import msgspec
from msgspec import UNSET, Struct

from streaming.errors import RequestError
from streaming.events import Finish, FinishReason, Reasoning, Token, ToolCall, ToolCallDelta, Usage
from streaming.request import (
    Emit,
    Function,
    ImagePart,
    JSONObjectFormat,
    JSONSchemaFormat,
    Message,
    NamedTool,
    ProviderSettings,
    RunRequest,
    TextPart,
)

from . import Item, Upstream, arguments, upstream_error

MAX_TOKENS = 4096
REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


# Not for the garbage collector: what is decoded from JSON has no cycles.
class _OutputDetails(Struct, gc=False):
    thinking_tokens: int | None = None


class _Usage(Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None


class _Message(Struct, gc=False):
    model: str | None = None
    usage: _Usage | None = None


class _Block(Struct, gc=False):
    type: str = ""
    id: str = ""
    name: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    input: Any = None


class _Delta(Struct, gc=False):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    signature: str | None = None
    stop_reason: str | None = None


class _Error(Struct, gc=False):
    type: str | None = None
    message: str | None = None


class _Event(Struct, gc=False):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Event).decode


class _Call(Struct):
    index: int
    id: str
    tool: str
    args: Any
    parts: list[str]


class Translation:
    """Messages events -> events. A call's `index` is its place among the calls, not among all blocks."""

    def __init__(self) -> None:
        self.over = False
        self._calls: dict[int, _Call] = {}
        self._thoughts: set[int] = set()
        self._broken: list[ToolCall] = []
        self._reason: FinishReason = "stop"
        self._model: str | None = None
        self._usage = _Usage()

    def feed(self, data: bytes) -> list[Item]:
        event = _decode(data)
        kind = event.type
        if kind == "content_block_delta":
            return self._delta(event.index, event.delta or _Delta())
        if kind == "content_block_start":
            return self._open(event.index, event.content_block or _Block())
        if kind == "content_block_stop":
            call = self._calls.get(event.index)
            return self._whole(call) if call else []
        if kind == "message_start":
            return self._start(event.message or _Message())
        if kind == "message_delta":
            self._ending(event)
        elif kind == "message_stop":
            self.over = True
            broken = self._broken if self._reason != "length" else []
            return [*broken, Finish(self._reason, _usage(self._usage), self._model)]
        elif kind == "error":
            error = event.error or _Error()
            raise upstream_error(error.type, message=error.message)
        return []

    def eof(self) -> list[Item]:
        return []

    def _start(self, message: _Message) -> list[Item]:
        self._model = message.model
        if not message.usage:
            return []
        self._usage = message.usage
        # Its output_tokens are those of the opening alone: none are counted until message_delta tells the sum.
        return [msgspec.structs.replace(_usage(message.usage), output_tokens=0)]

    def _delta(self, index: int, delta: _Delta) -> list[Item]:
        if delta.text:
            return [Token(delta.text)]
        if delta.thinking:
            return [Reasoning(delta.thinking)]
        if delta.partial_json and (call := self._calls.get(index)):
            call.parts.append(delta.partial_json)
            return [ToolCallDelta(call.index, delta.partial_json)]
        if delta.signature and index in self._thoughts:
            return [Reasoning("", signature=delta.signature)]
        return []

    def _open(self, index: int, block: _Block) -> list[Item]:
        if block.type == "tool_use":
            call = self._calls[index] = _Call(len(self._calls), block.id, block.name, block.input or {}, [])
            return [ToolCallDelta(call.index, "", call.id, call.tool)]
        if block.type == "thinking":
            self._thoughts.add(index)
        opening, signature = _Delta(block.text, block.thinking), _Delta(signature=block.signature)
        return self._delta(index, opening) + self._delta(index, signature)

    def _whole(self, call: _Call) -> list[Item]:
        """Say the call with its arguments parsed; broken ones wait for the stop reason, which may explain them."""
        text = "".join(call.parts)
        args, is_json = arguments(text) if text else (call.args, True)
        whole = ToolCall(call.id, call.tool, args)
        if is_json:
            return [whole]
        self._broken.append(whole)
        return []

    def _ending(self, event: _Event) -> None:
        if event.delta and event.delta.stop_reason:
            self._reason = REASONS.get(event.delta.stop_reason, "stop")
        if event.usage:
            told = {name: value for name, value in msgspec.structs.asdict(event.usage).items() if value is not None}
            self._usage = msgspec.structs.replace(self._usage, **told)


def _usage(usage: _Usage) -> Usage:
    """Anthropic counts cached input apart; the shared vocabulary counts it in, as OpenAI does."""
    cached = usage.cache_read_input_tokens or 0
    total = (usage.input_tokens or 0) + cached + (usage.cache_creation_input_tokens or 0)
    thought = usage.output_tokens_details and usage.output_tokens_details.thinking_tokens
    return Usage(total, usage.output_tokens or 0, cached or UNSET, thought or UNSET)


def body(request: RunRequest, max_tokens: int = MAX_TOKENS) -> dict[str, Any]:
    """The request in the Messages API's words. Raises RequestError for what it lacks; `seed` is a hint."""
    if request.verbatim is not None:
        ours = {"model": request.model, "max_tokens": request.max_tokens or max_tokens, "stream": True}
        return {**request.verbatim, **ours, **(request.provider_options or {})}
    fields = {
        "system": _system(request),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop_sequences": request.stops,
        "tools": [_tool(tool.function) for tool in request.tools or ()] or None,
        "tool_choice": _tool_choice(request),
        "output_config": _output_config(request),
    }
    return {
        "model": request.model,
        "max_tokens": request.max_tokens or max_tokens,
        "messages": _messages(request.messages),
        "stream": True,
        **{name: value for name, value in fields.items() if value is not None},
        **(request.provider_options or {}),
    }


def _system(request: RunRequest) -> str | None:
    texts = [request.system or ""]
    texts += [_plain(m.content) for m in request.messages if m.role in ("system", "developer")]
    return "\n\n".join(text for text in texts if text) or None


def _messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Translate the turns; neighbours of one role become one, as the results of parallel calls must."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        role = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += _blocks(message)
        else:
            turns.append({"role": role, "content": _blocks(message)})
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": _content(message.content)}]
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.function.name, "input": _input(call.function.arguments)}
        for call in message.tool_calls or ()
    ]
    return _content(message.content) + calls


def _content(content: str | list[TextPart | ImagePart] | None) -> list[dict[str, Any]]:
    parts: list[TextPart | ImagePart] = [TextPart(content)] if isinstance(content, str) else content or []
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else _image(part.image_url.url)
        for part in parts
        if not isinstance(part, TextPart) or part.text  # the API refuses an empty one
    ]


def _image(url: str) -> dict[str, Any]:
    if url.startswith("data:"):
        head, _, data = url.removeprefix("data:").partition(",")
        return {"type": "image", "source": {"type": "base64", "media_type": head.partition(";")[0], "data": data}}
    return {"type": "image", "source": {"type": "url", "url": url}}


def _input(text: str) -> Any:
    args, is_json = arguments(text)
    if not is_json:
        raise RequestError("invalid_request", "A tool call's `arguments` are not JSON.", field="messages")
    return args


def _plain(content: str | list[TextPart | ImagePart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content if isinstance(part, TextPart))


def _tool(function: Function) -> dict[str, Any]:
    tool: dict[str, Any] = {
        "name": function.name,
        "input_schema": function.parameters or {"type": "object", "properties": {}},
    }
    if function.description:
        tool["description"] = function.description
    if function.strict:
        tool["strict"] = True
    return tool


def _tool_choice(request: RunRequest) -> dict[str, Any] | None:
    """The choice, in which it stands as well that calls shall come one by one."""
    choice = _choice(request)
    if request.parallel_tool_calls is not False or not request.tools or choice == {"type": "none"}:
        return choice
    return {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}


def _choice(request: RunRequest) -> dict[str, Any] | None:
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        return {"type": "tool", "name": choice.function.name}
    return {"type": "any" if choice == "required" else choice} if choice else None


def _output_config(request: RunRequest) -> dict[str, Any] | None:
    chosen = request.response_format
    if isinstance(chosen, JSONObjectFormat):
        raise RequestError("invalid_request", "Anthropic has no JSON mode without a schema.", field="response_format")
    if isinstance(chosen, JSONSchemaFormat):
        return {"format": {"type": "json_schema", "schema": chosen.json_schema.schema}}
    return None


class Anthropic:
    """The Messages API at `base_url`; without one, at Anthropic, as the SDK's own variables say.

    `options.max_tokens` is sent where a request names none (default 4096).
    """

    def __init__(self, settings: ProviderSettings, upstream: Upstream) -> None:
        self._upstream = upstream
        self._endpoint = upstream.endpoint(anthropic, anthropic.Anthropic, settings, _call)
        self._max_tokens = int(settings.options.get("max_tokens", MAX_TOKENS))

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        await self._upstream.follow(self._endpoint, body(request, self._max_tokens), Translation(), emit, request)


def _call(client: anthropic.Anthropic) -> object:
    return client.messages.create(model="", max_tokens=1, messages=[], stream=True)
