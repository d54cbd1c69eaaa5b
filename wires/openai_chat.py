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

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from msgspec import UNSET, Struct

from streaming.errors import Fault
from streaming.events import (
    Done,
    Event,
    Reasoning,
    Reset,
    Start,
    Terminal,
    Token,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from streaming.followed import Followed

from .chat import Tools, Turns, beside, json_line
from .fold import Asked, Folded, Whole, Wire, no_answer, unsayable
from .openai import (
    Calls,
    call_asked,
    call_of,
    check,
    choice_asked,
    content,
    error,
    format_asked,
    function,
    given,
    one_by_one,
    read,
    tell,
    verbatim,
)

DONE = b"data: [DONE]\n\n"


class _StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


class _Request(Struct, frozen=True):
    """What concerns us of a request; the rest is for an upstream of the same API."""

    model: str | list[str] | None = None
    messages: Turns | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    tools: Tools | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: Any = None
    functions: Any = None
    logprobs: bool | None = None
    modalities: list[str] | None = None
    sidestream: dict[str, Any] | None = None


def decode(body: bytes) -> Asked:
    """Read a request. Raises RequestError for what cannot be answered here."""
    told, request = read(body, _Request)
    check(
        ("n", request.n in (None, 1), "`n` can be 1 only: a run is one generation."),
        ("functions", not request.functions, "`functions` is no more; send `tools`."),
        ("logprobs", not request.logprobs, "`logprobs` cannot be told here."),
        ("modalities", request.modalities in (None, ["text"]), "Answers are text only."),
        ("messages", request.messages is not None or bool(request.sidestream), "Send `messages`."),
    )
    tools = [_tool(one) for one in request.tools or ()] or None
    limit = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    chat = beside(
        request.sidestream or {},
        {
            "model": request.model,
            "messages": None if request.messages is None else [*messages(request.messages)],
            "max_tokens": limit,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop": request.stop,
            "seed": request.seed,
            "tools": tools,
            "tool_choice": choice_asked(request.tool_choice, tools),
            "parallel_tool_calls": one_by_one(request.parallel_tool_calls, tools),
            "response_format": format_asked(request.response_format),
        },
    )
    wants_usage = bool(request.stream_options and request.stream_options.include_usage)
    form = partial(_form, streams=bool(request.stream), wants_usage=wants_usage)
    return Asked(chat, form, bool(request.stream), api="openai", verbatim=verbatim(told))


def messages(told: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the messages with what we know of them alone, but those of no user or tool that say nothing."""
    for message in told:
        kept = {name: message[name] for name in ("role", "name", "tool_call_id") if message.get(name) is not None}
        words = message.get("content")
        if (said := content(words or message.get("refusal") or words, "messages")) is not None:
            kept["content"] = said
        if calls := message.get("tool_calls"):
            kept["tool_calls"] = [_call(call) for call in calls] if isinstance(calls, list) else calls
        if said or calls or kept.get("role") not in ("assistant", "system", "developer"):
            yield kept


def _call(told: Any) -> dict[str, Any]:
    told = told if isinstance(told, dict) else {}
    _check_kind(told, "messages")
    return call_asked(told.get("id"), told.get("function"))


def _tool(told: Mapping[str, Any]) -> dict[str, Any]:
    _check_kind(told, "tools")
    return function(told.get("function"))


def _check_kind(told: Mapping[str, Any], field: str) -> None:
    check((field, told.get("type", "function") == "function", "Tools can be functions only."))


def _form(run: Followed, *, streams: bool, wants_usage: bool) -> Folded | Whole:
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
        if type(event) is Token:  # most are; isinstance() asks msgspec's metaclass
            yield from self._say(b'"content":%b' % json_line(event.text))
        elif isinstance(event, Reasoning):
            if event.text:  # else it is a signature
                yield from self._say(b'"reasoning_content":%b' % json_line(event.text))
        elif isinstance(event, ToolCallDelta | ToolCall):
            yield from self._call(event)
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

    def _call(self, event: ToolCallDelta | ToolCall) -> Iterator[bytes]:
        """Say what is new of a call: of one that was streamed, nothing once it is whole."""
        said = self._calls.take(event)
        if said is None or not (said.is_new or said.arguments):
            return
        told: dict[str, Any] = {"index": said.place}
        function = {"arguments": said.arguments}
        if said.is_new:
            told |= {"id": event.id, "type": "function"}
            function = {"name": given(event.tool), **function}
        told["function"] = function
        yield from self._say(b'"tool_calls":[%b]' % json_line(told), content=b"null")

    def _end(self, event: Terminal) -> Iterator[bytes]:
        if failed := no_answer(event):
            yield from self._fail(failed)
            return
        assert isinstance(event, Done)
        yield from self._say(b"")
        yield self._choice(b"", json_line(event.finish_reason))  # in the same words
        if self._wants_usage:
            yield self._head + b'],"usage":%b}\n\n' % json_line(usage(event.usage))
        yield DONE

    def _fail(self, fault: Fault) -> Iterator[bytes]:
        self.is_over = True
        yield b"data: %b\n\n" % json_line(error(fault))
        yield DONE


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


def whole(run: Followed) -> dict[str, Any]:
    """Return the answer of a run that is done, as one object. Raises RequestError where its graph waits."""
    if failed := no_answer(run.terminal):
        raise failed
    assert isinstance(run.terminal, Done)
    calls = [call_of(event) for event in run.log.answer() if isinstance(event, ToolCall) and event.node is UNSET]
    text, thoughts = run.log.text(Token), run.log.text(Reasoning)
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    if thoughts:
        message["reasoning_content"] = thoughts
    if calls:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": run.terminal.finish_reason}
    return {
        "id": f"chatcmpl-{run.id}",
        "object": "chat.completion",
        "created": int(run.created),
        "model": run.terminal.model,
        "choices": [choice],
        "usage": usage(run.terminal.usage),
        "system_fingerprint": None,
    }


WIRE = Wire(decode, tell, lambda run: {"X-Request-Id": run.id})
