"""OpenAI's Chat Completions stream, and all that speak it: Ollama, vLLM, OpenRouter, llama.cpp, ...

https://platform.openai.com/docs/api-reference/chat-streaming. Reasoning is `reasoning_content` by custom (DeepSeek,
vLLM, llama.cpp), `reasoning` at OpenRouter and newer vLLM. The stream ends with `[DONE]`; some servers leave it out
after a finish reason, which is as good an end.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
import openai
from msgspec import UNSET, Struct

from streaming.events import Finish, FinishReason, Reasoning, Token, ToolCall, ToolCallDelta, Usage
from streaming.request import Emit, ProviderSettings, RunRequest

from . import Item, Upstream, arguments, upstream_error

REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


# Not for the garbage collector: what is decoded from JSON has no cycles.
class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(Struct, gc=False):
    cached_tokens: int | None = None


class _CompletionDetails(Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Error(Struct, gc=False):
    message: Any = None
    type: Any = None
    code: Any = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    model: str | None = None
    error: _Error | str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class _Open(Struct):
    """A call being written: its place among the calls, and its arguments so far."""

    place: int
    id: str
    tool: str
    parts: list[str]


class Calls:
    """The tool calls of one answer, put together from their fragments."""

    def __init__(self) -> None:
        self._calls: list[_Open] = []
        self._at: dict[int, _Open] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, delta: _Call) -> ToolCallDelta:
        """Take a fragment. Some servers give every call the index 0: then another id opens another call."""
        function = delta.function or _Function()
        args = function.arguments or ""
        index = delta.index or 0
        call = self._at.get(index)
        if call and (not delta.id or delta.id == call.id):
            call.parts.append(args)
            return ToolCallDelta(call.place, args)
        place = len(self._calls)
        call = self._at[index] = _Open(place, delta.id or f"call_{place}", function.name or "", [args])
        self._calls.append(call)
        return ToolCallDelta(place, args, call.id, call.tool)

    def whole(self, *, cut: bool) -> Iterator[ToolCall]:
        """Yield each call with its arguments parsed. Of an answer that was `cut` short the broken ones are left out."""
        for call in self._calls:
            args, is_json = arguments("".join(call.parts))
            if is_json or not cut:
                yield ToolCall(call.id, call.tool, args)


class Translation:
    """chat.completion.chunk -> events."""

    def __init__(self) -> None:
        self.over = False
        self._calls = Calls()
        self._reason: FinishReason | None = None
        self._usage: Usage | None = None
        self._model: str | None = None

    def feed(self, data: bytes) -> list[Item]:
        if data == b"[DONE]":
            self.over = True
            if not self._reason:  # not every server names one
                return [*self._finish("tool_calls" if self._calls else "stop"), *self.eof()]
            return self.eof()
        chunk = _decode(data)
        if chunk.error is not None:
            error = chunk.error if isinstance(chunk.error, _Error) else _Error(chunk.error)
            status = error.code if isinstance(error.code, int) else None  # OpenRouter's codes are HTTP's
            raise upstream_error(_text(error.code), _text(error.type), status=status, message=error.message)
        self._model = chunk.model or self._model
        items: list[Item] = []
        if chunk.usage is not None:
            self._usage = _usage(chunk.usage)
            items.append(self._usage)
        for choice in chunk.choices or ():
            if (delta := choice.delta) is not None:
                if delta.content:
                    items.append(Token(delta.content))
                if text := delta.reasoning_content or delta.reasoning:
                    items.append(Reasoning(text))
                if delta.refusal:
                    items.append(Token(delta.refusal))
                if delta.tool_calls:
                    items += map(self._calls.add, delta.tool_calls)
            if choice.finish_reason:
                items += self._finish(choice.finish_reason)
        return items

    def eof(self) -> list[Item]:
        return [Finish(self._reason, self._usage, self._model)] if self._reason else []

    def _finish(self, reason: str) -> list[ToolCall]:
        if reason == "error":  # OpenRouter's way to say that its upstream failed
            raise upstream_error(reason)
        self._reason = REASONS.get(reason, "stop")
        calls, self._calls = self._calls, Calls()
        return list(calls.whole(cut=self._reason == "length"))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _usage(usage: _Usage) -> Usage:
    cached = usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens
    thought = usage.completion_tokens_details and usage.completion_tokens_details.reasoning_tokens
    return Usage(usage.prompt_tokens or 0, usage.completion_tokens or 0, cached or UNSET, thought or UNSET)


def body(request: RunRequest, limit: str = "max_tokens") -> dict[str, Any]:
    """The request in Chat Completions' words; `provider_options` are put on top as they are."""
    messages = [msgspec.to_builtins(message) for message in request.messages]
    if request.system is not None:
        messages.insert(0, {"role": "system", "content": request.system})
    fields = {
        limit: request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop": request.stop,
        "seed": request.seed,
        "tools": request.tools,
        "tool_choice": request.tool_choice,
        "parallel_tool_calls": request.parallel_tool_calls if request.tools else None,  # else the API refuses it
        "response_format": request.response_format,
    }
    if request.verbatim is not None:
        return _verbatim(request.verbatim, request, limit)
    return {
        "model": request.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: msgspec.to_builtins(value) for name, value in fields.items() if value is not None},
        **(request.provider_options or {}),
    }


def _verbatim(body: dict[str, Any], request: RunRequest, limit: str) -> dict[str, Any]:
    """What came in these words goes on in them: all of it but what we ask for, and the limit by the name known here."""
    told = {name: value for name, value in body.items() if name not in ("max_tokens", "max_completion_tokens")}
    if request.max_tokens is not None:
        told[limit] = request.max_tokens
    options = {**(body.get("stream_options") or {}), "include_usage": True}
    own = {"model": request.model, "stream": True, "stream_options": options}
    return {**told, **own, **(request.provider_options or {})}


class OpenAI:
    """Chat Completions at `base_url`; without one, at OpenAI, as the SDK's own variables say."""

    def __init__(self, settings: ProviderSettings, upstream: Upstream) -> None:
        self._upstream = upstream
        self._endpoint = upstream.endpoint(openai, openai.OpenAI, settings, _call, organization="", project="")
        # OpenAI's newer models refuse `max_tokens`; most others know nothing else.
        self._limit = "max_completion_tokens" if self._endpoint.origin.host.endswith("openai.com") else "max_tokens"

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        await self._upstream.follow(self._endpoint, body(request, self._limit), Translation(), emit, request)


def _call(client: openai.OpenAI) -> object:
    return client.chat.completions.create(model="", messages=[], stream=True)
