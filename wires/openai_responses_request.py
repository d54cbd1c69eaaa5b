"""A request to OpenAI's Responses API, read: https://platform.openai.com/docs/api-reference/responses/create.

    item of `input`             becomes
    a message                   a message
    function_call               a call of the assistant's turn before it, or of one of its own
    function_call_output        a message of the tool
    reasoning                   nothing: it is of use to who has written it alone
    all others                  refused

So are built-in tools, and whatever wants a conversation to be kept: here are runs, and no conversations.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct

from streaming.errors import RequestError

from .chat import ChatRequest, Tools, Turns, beside
from .openai import call_asked, check, choice_asked, content, format_asked, function, one_by_one
from .openai import read as read_body
from .openai import verbatim as as_it_came

Object = dict[str, Any]
Text = Annotated[str, Meta(max_length=512)]
SILENT = ("assistant", "system", "developer")
KEPT = "`%s` needs what is not kept here: send the whole conversation as `input`."
BACKGROUND = 'No `background` here; `"sidestream": {"linger": <seconds>}` lets a response go on without its client.'


class _Named(Struct, frozen=True):
    name: Text
    type: Literal["function"] = "function"


class _Text(Struct, frozen=True):
    format: Object | None = None


class _Request(Struct, frozen=True):
    """What concerns us of a request; the rest is for an upstream of the same API."""

    model: str | list[str] | None = None
    input: str | Turns | None = None
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: Tools | None = None
    tool_choice: Literal["auto", "none", "required"] | _Named | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    metadata: Annotated[dict[Annotated[str, Meta(max_length=64)], Text], Meta(max_length=16)] | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    top_logprobs: int | None = None
    sidestream: Object | None = None

    @property
    def choice(self) -> Any:
        return (
            {"type": "function", "name": self.tool_choice.name}
            if isinstance(self.tool_choice, _Named)
            else self.tool_choice
        )

    @property
    def about(self) -> Object:
        """What its response says of it: nothing of the prompt."""
        told = {
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata,
            "parallel_tool_calls": self.parallel_tool_calls,
            "temperature": self.temperature,
            "tool_choice": self.choice,
            "top_p": self.top_p,
        }
        return {name: value for name, value in told.items() if value is not None}


class Read(NamedTuple):
    """A request that was read. `about` is what its response says of it, `verbatim` for an upstream of the same API."""

    chat: ChatRequest
    streams: bool
    about: Object
    verbatim: Object | None


def read(body: bytes) -> Read:
    """Read a request. Raises RequestError for what cannot be answered here."""
    told, request = read_body(body, _Request)
    check(
        ("previous_response_id", request.previous_response_id is None, KEPT % "previous_response_id"),
        ("conversation", request.conversation is None, KEPT % "conversation"),
        ("prompt", request.prompt is None, KEPT % "prompt"),
        ("background", not request.background, BACKGROUND),
        ("top_logprobs", not request.top_logprobs, "`top_logprobs` cannot be told here."),
        ("input", request.input is not None or bool(request.sidestream), "Send `input`."),
    )
    tools = [_tool(one) for one in request.tools or ()] or None
    chat = beside(
        request.sidestream or {},
        {
            "model": request.model,
            "messages": None if request.input is None else messages(request.input),
            "system": request.instructions or None,
            "max_tokens": request.max_output_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "tools": tools,
            "tool_choice": choice_asked(_choice(request.choice), tools),
            "parallel_tool_calls": one_by_one(request.parallel_tool_calls, tools),
            "response_format": _format(request.text and request.text.format),
        },
    )
    return Read(chat, bool(request.stream), request.about, _verbatim(told))


def messages(told: str | list[Object]) -> list[Object]:
    """Return the input as messages. Raises RequestError for what cannot be told in them."""
    if isinstance(told, str):
        return [{"role": "user", "content": told}]
    turns: list[Object] = []
    for item in told:
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        if kind == "message":
            said, role = content(item.get("content"), "input"), item.get("role")
            if said and role == "assistant" and turns and "tool_calls" in turns[-1]:  # whose outputs must follow it
                turns[-1]["content"] = _parts(turns[-1].get("content")) + _parts(said)
            elif said or role not in SILENT:
                turns.append({"role": role, "content": said})
        elif kind == "function_call":
            if not turns or turns[-1]["role"] != "assistant":
                turns.append({"role": "assistant"})
            turns[-1].setdefault("tool_calls", []).append(call_asked(item.get("call_id"), item))
        elif kind == "function_call_output":
            said = content(item.get("output"), "input")
            turns.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": said})
        elif kind != "reasoning":
            text = f"Input can be messages, function calls and their outputs, not {str(kind)[:50]!r}."
            raise RequestError("invalid_request", text, field="input")
    return turns


def _parts(said: Any) -> list[Any]:
    return said if isinstance(said, list) else [{"type": "text", "text": said}] if said else []


def _tool(told: Object) -> Object:
    kind = told.get("type")
    check(("tools", kind == "function", f"Tools can be functions only: there is no {str(kind)[:50]!r} here."))
    return function(told)


def _choice(told: Any) -> Any:
    return {"type": "function", "function": {"name": told["name"]}} if isinstance(told, dict) else told


def _format(told: Object | None) -> Any:
    """Return the form of the answer in the native words, which nest a schema."""
    if told is None or told.get("type") != "json_schema":
        return format_asked(told)
    schema = {name: told[name] for name in ("name", "description", "schema", "strict") if told.get(name) is not None}
    return {"type": "json_schema", "json_schema": schema}


def _verbatim(told: Mapping[str, Any]) -> Object | None:
    """Return the body for an upstream of the same API, which knows nothing of what we have told, nor by what ids."""
    body = as_it_came(told)
    if body is None or not isinstance(body.get("input"), list):
        return body
    known = [item for item in body["input"] if item.get("type") != "reasoning" or item.get("encrypted_content")]
    return body | {"input": [_nameless(item) for item in known]}


def _nameless(item: Object) -> Object:
    return item if item.get("type") == "reasoning" else {name: value for name, value in item.items() if name != "id"}
