"""OpenAI's Chat Completions: `POST /v1/chat/completions`, streaming or not.

https://platform.openai.com/docs/api-reference/chat. Data-only events and `[DONE]`; reasoning is `reasoning_content`, by
custom. The first chunk waits for the first content, so that what fails before is a status, as OpenAI's is.

    event                          becomes
    token, reasoning               delta.content, delta.reasoning_content
    tool_call_delta, tool_call     delta.tool_calls; a graph's own calls, which it answers itself, are left out
    done                           finish_reason, usage if asked for, [DONE]; a graph that waits for a person: an error
    error, cancelled               an error object, [DONE]
    reset                          an error object, [DONE]: what was sent cannot be taken back
    all others                     nothing
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.responses import Response

from streaming.errors import Fault, RequestError
from streaming.events import (
    Done,
    Event,
    FinishReason,
    Reasoning,
    Reset,
    Start,
    Terminal,
    Token,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from streaming.run import Run

from .chat import beside, decoded, json_line
from .fold import WAITS, Asked, Folded, Whole, Wire, refusal, status_of, unsayable
from .viewer import failure

CODES = {
    "unknown_model": "model_not_found",
    "unauthorized": "invalid_api_key",
    "rate_limited": "rate_limit_exceeded",
    "upstream_rate_limited": "rate_limit_exceeded",
    "context_length": "context_length_exceeded",
    "content_filtered": "content_filter",
}
DONE = b"data: [DONE]\n\n"
REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}


class _StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


class _Request(Struct, frozen=True):
    """What concerns us of a request; the rest is for an upstream of the same API."""

    model: str | list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    response_format: Any = None
    functions: Any = None
    logprobs: bool | None = None
    modalities: list[str] | None = None
    sidestream: dict[str, Any] = {}


_decode = msgspec.json.Decoder(dict[str, Any]).decode


def decode(body: bytes) -> Asked:
    """Read a request. Raises RequestError for what cannot be answered here."""
    told = decoded(_decode, body)
    request = convert(told, _Request)
    for name, holds, text in (
        ("n", request.n in (None, 1), "`n` can be 1 only: a run is one generation."),
        ("functions", not request.functions, "`functions` is no more; send `tools`."),
        ("logprobs", not request.logprobs, "`logprobs` cannot be told here."),
        ("modalities", request.modalities in (None, ["text"]), "Answers are text only."),
        ("messages", request.messages is not None or bool(request.sidestream), "Send `messages`."),
    ):
        if not holds:
            raise RequestError("invalid_request", text, field=name)
    chat = beside(
        request.sidestream,
        {
            "model": request.model,
            "messages": [*messages(request.messages or [])],
            "max_tokens": request.max_completion_tokens or request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop": request.stop,
            "seed": request.seed,
            "tools": [tool(one) for one in request.tools or ()] or None,
            "tool_choice": request.tool_choice,
            "response_format": request.response_format,
        },
    )
    wants_usage = bool(request.stream_options and request.stream_options.include_usage)
    form = partial(_form, streams=bool(request.stream), wants_usage=wants_usage)
    verbatim = {name: value for name, value in told.items() if name != "sidestream"}
    return Asked(chat, form, bool(request.stream), api="openai", verbatim=verbatim)


def convert(told: Any, kind: type[Any]) -> Any:
    """Read a part of a request. Raises RequestError that names what is wrong and where."""
    try:
        return msgspec.convert(told, kind)
    except msgspec.ValidationError as exc:
        raise RequestError("invalid_request", f"Bad request: {exc}.") from None


def messages(told: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the messages with what we know of them alone; an assistant's that says nothing says nothing."""
    for message in told:
        kept = {name: message[name] for name in ("role", "name", "tool_call_id") if message.get(name) is not None}
        if (content := _content(message.get("content"))) is not None:
            kept["content"] = content
        if calls := message.get("tool_calls"):
            kept["tool_calls"] = calls
        if kept.get("role") != "assistant" or kept.get("content") or calls:
            yield kept


def _content(content: Any) -> Any:
    return [_part(part) for part in content] if isinstance(content, list) else content


def _part(part: Any) -> Any:
    match part:
        case {"type": "text", "text": text} | {"type": "refusal", "refusal": text}:
            return {"type": "text", "text": text}
        case {"type": "image_url", "image_url": {"url": url, **rest}}:
            return {"type": "image_url", "image_url": {"url": url, "detail": rest.get("detail")}}
    kind = part.get("type") if isinstance(part, dict) else None
    raise RequestError("invalid_request", f"Content can be text and images, not {str(kind)[:50]!r}.", field="messages")


def tool(told: Mapping[str, Any]) -> dict[str, Any]:
    if told.get("type") != "function":
        raise RequestError("invalid_request", "Tools can be functions only.", field="tools")
    return {"type": "function", "function": told.get("function")}


def _form(run: Run, *, streams: bool, wants_usage: bool) -> Folded | Whole:
    return Folded(Chunks(run.id, wants_usage=wants_usage), holds=True) if streams else Whole(run, whole)


class Chunks:
    """The fold into chunks."""

    def __init__(self, run_id: str, *, wants_usage: bool) -> None:
        self.has_said = False
        self.is_over = False
        self._run_id = run_id.encode()
        self._wants_usage = wants_usage
        self._calls = Calls()

    def feed(self, event: Event) -> Iterator[bytes]:
        if isinstance(event, Token):
            yield from self._say(b'"content":%b' % json_line(event.text))
        elif isinstance(event, Reasoning):
            yield from self._say(b'"reasoning_content":%b' % json_line(event.text))
        elif isinstance(event, ToolCallDelta | ToolCall):
            if call := self._calls.add(event):
                yield from self._say(b'"tool_calls":[%b]' % json_line(call), content=b"null")
        elif isinstance(event, Start):
            self._open(event)
        elif isinstance(event, Reset) and self.has_said:
            yield from self._fail(unsayable(event))
        elif isinstance(event, Terminal):
            yield from self._end(event)

    def _open(self, event: Start) -> None:
        """Note what is the same in each chunk; nothing is said yet."""
        self._head = b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":%d,"model":%b' % (
            self._run_id,
            event.created,
            json_line(event.model),
        )
        self._head += b',"system_fingerprint":null,"choices":['
        self._tail = b'],"usage":null}\n\n' if self._wants_usage else b"]}\n\n"

    def _choice(self, delta: bytes, reason: bytes = b"null") -> bytes:
        choice = b'{"index":0,"delta":{%b},"logprobs":null,"finish_reason":%b}' % (delta, reason)
        return self._head + choice + self._tail

    def _say(self, delta: bytes, content: bytes = b'""') -> Iterator[bytes]:
        if not self.has_said:
            self.has_said = True
            yield self._choice(b'"role":"assistant","content":%b,"refusal":null' % content)
        if delta:
            yield self._choice(delta)

    def _end(self, event: Terminal) -> Iterator[bytes]:
        if not isinstance(event, Done):
            failed = failure(event)
            assert failed
            yield from self._fail(failed)
        elif event.finish_reason == "interrupt":
            yield from self._fail(RequestError("interrupted", WAITS))
        else:
            yield from self._say(b"")
            yield self._choice(b"", b'"%b"' % REASONS[event.finish_reason].encode())
            if self._wants_usage:
                yield self._head + b'],"usage":%b}\n\n' % json_line(usage(event.usage))
            yield DONE

    def _fail(self, fault: Fault) -> Iterator[bytes]:
        self.is_over = True
        yield b"data: %b\n\n" % json_line(error(fault))
        yield DONE


class Calls:
    """The tool calls that a client is told of, counted through. Those of a graph's nodes it answers itself."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._ids: set[str] = set()

    def add(self, event: ToolCallDelta | ToolCall) -> dict[str, Any] | None:
        """Return what is new of a call: of one that was streamed, nothing once it is whole."""
        if event.node is not UNSET:
            return None
        if isinstance(event, ToolCall):
            if event.id in self._ids:
                return None
            place = self._open(-len(self._ids) - 1, event.id)
            return {"index": place, **call_of(event)}
        if event.id is UNSET:
            return {"index": self._places[event.index], "function": {"arguments": event.text}}
        function = {"name": given(event.tool), "arguments": event.text}
        return {"index": self._open(event.index, event.id), "id": event.id, "type": "function", "function": function}

    def _open(self, index: int, call_id: str) -> int:
        self._ids.add(call_id)
        return self._places.setdefault(index, len(self._places))


def given(text: str | UnsetType) -> str:
    return "" if text is UNSET else text


def call_of(event: ToolCall) -> dict[str, Any]:
    """Return a whole call as OpenAI has it: its arguments as text."""
    args = event.args if isinstance(event.args, str) else json_line(event.args).decode()
    return {"id": event.id, "type": "function", "function": {"name": event.tool, "arguments": args}}


def usage(counted: Usage) -> dict[str, Any]:
    """Return the usage as OpenAI has it; of an estimate it says so."""
    told: dict[str, Any] = {
        "prompt_tokens": counted.input_tokens,
        "completion_tokens": counted.output_tokens,
        "total_tokens": counted.input_tokens + counted.output_tokens,
    }
    if counted.cached_tokens is not UNSET:
        told["prompt_tokens_details"] = {"cached_tokens": counted.cached_tokens}
    if counted.reasoning_tokens is not UNSET:
        told["completion_tokens_details"] = {"reasoning_tokens": counted.reasoning_tokens}
    return told | ({"estimated": True} if counted.estimated is True else {})


def whole(run: Run) -> dict[str, Any]:
    """Return the answer of a run that is done, as one object. Raises RequestError where its graph waits."""
    assert isinstance(run.terminal, Done)
    if run.terminal.finish_reason == "interrupt":
        raise RequestError("interrupted", WAITS)
    said = run.log.answer()
    text, thoughts = of_kind(said, Token), of_kind(said, Reasoning)
    calls = [call_of(event) for event in said if isinstance(event, ToolCall) and event.node is UNSET]
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    if thoughts:
        message["reasoning_content"] = thoughts
    if calls:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": REASONS[run.terminal.finish_reason]}
    return {
        "id": f"chatcmpl-{run.id}",
        "object": "chat.completion",
        "created": int(run.created),
        "model": run.terminal.model,
        "choices": [choice],
        "usage": usage(run.terminal.usage),
        "system_fingerprint": None,
    }


def of_kind(said: Iterable[Event], kind: type[Token] | type[Reasoning]) -> str:
    return "".join(event.text for event in said if isinstance(event, kind))


def error(fault: Fault) -> dict[str, Any]:
    """Return the error object of a fault."""
    kind: Literal["invalid_request_error", "rate_limit_error", "server_error"] = "server_error"
    if fault.code in ("rate_limited", "upstream_rate_limited"):
        kind = "rate_limit_error"
    elif status_of(fault) < 500:
        kind = "invalid_request_error"
    code = CODES.get(fault.code, fault.code)
    return {"error": {"message": fault.text, "type": kind, "param": fault.field, "code": code}}


def tell(fault: Fault) -> Response:
    return refusal(fault, error(fault))


WIRE = Wire(decode, tell, lambda run: {"X-Request-Id": run.id})
