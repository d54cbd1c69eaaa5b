"""A request of Anthropic's Messages API, in our words.

https://platform.claude.com/docs/en/api/messages. A body that goes to an upstream of the same API goes as it came;
these are the words for all others:

    system, text, image (base64, url)     the same
    tool_use, tool_result                 a call, a `tool` message; one of an `is_error` begins with "Error:"
    thinking, redacted_thinking           nothing: what was thought is for who has thought it
    tools, tool_choice, stop_sequences    tools, tool_choice, stop
    output_config.format                  response_format
    all else of content, tools of Anthropic's own servers, mcp_servers, container    refused
    all else (metadata, thinking, top_k, cache_control, ...)                         nothing
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from streaming.errors import RequestError
from streaming.request import Sampling

from .chat import ChatRequest, Tools, Turns, beside, invalid, json_line
from .openai import choice_asked

Block = Mapping[str, Any]
# What of our own words beside a request goes into the upstream's: it is said in them, then.
SAYS = {*Sampling.__struct_fields__, "system"} - {"provider_options"}


class Request(Struct, frozen=True):
    """What concerns us of a request."""

    model: str | list[str] | None = None
    messages: Turns | None = None
    system: str | list[dict[str, Any]] | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop_sequences: list[str] | None = None
    tools: Tools | None = None
    tool_choice: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    mcp_servers: Any = None
    container: Any = None
    sidestream: dict[str, Any] = {}

    def to_chat(self) -> ChatRequest:
        """Return it in our words. Raises RequestError for what cannot be answered here."""
        for name, holds, text in (
            ("messages", self.messages is not None or bool(self.sidestream), "Send `messages`."),
            ("mcp_servers", not self.mcp_servers, "MCP servers are asked by Anthropic's API alone."),
            ("container", not self.container, "Containers are Anthropic's own."),
        ):
            if not holds:
                raise RequestError("invalid_request", text, field=name)
        return beside(
            self.sidestream,
            {
                "model": self.model,
                "system": _system(self.system),
                "messages": [turn for message in self.messages or () for turn in turns(message)],
                "max_tokens": self.max_tokens,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "stop": self.stop_sequences or None,
                "tools": [tool(one) for one in self.tools or ()] or None,
                "tool_choice": choice_asked(self.tool_choice and _choice(self.tool_choice), self.tools),
                "parallel_tool_calls": False if self.tools and _is_one_by_one(self.tool_choice) else None,
                "response_format": self.output_config and _format(self.output_config.get("format")),
            },
        )


def _is_one_by_one(choice: Block | None) -> bool:
    return choice is not None and choice.get("disable_parallel_tool_use") is True


def read(told: Mapping[str, Any]) -> Request:
    """Read a body. Raises RequestError that names what is wrong and where."""
    try:
        return msgspec.convert(told, Request)
    except msgspec.ValidationError as exc:
        raise invalid(str(exc)) from None


def verbatim(told: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the body for an upstream of the same API; None where our own words beside it say what it does not.

    Thoughts without a signature are left out, and a message of nothing else: they are another upstream's, and this
    one would refuse them.
    """
    if SAYS & (told.get("sidestream") or {}).keys():
        return None
    kept = {name: value for name, value in told.items() if name != "sidestream"}
    if isinstance(messages := kept.get("messages"), list):
        kept["messages"] = [signed for message in messages for signed in _signed(message)]
    return kept


def _signed(message: Any) -> Iterator[Any]:
    if not (isinstance(message, dict) and isinstance(content := message.get("content"), list)):
        yield message
    elif (blocks := [block for block in content if not _is_unsigned(block)]) or not content:
        yield message | {"content": blocks}


def _is_unsigned(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "thinking" and not block.get("signature")


def turns(message: Block) -> Iterator[dict[str, Any]]:
    """Yield what a message is in our words: each result of a tool is a message of its own.

    An assistant's that says nothing to us is none.
    """
    role, content = message.get("role"), message.get("content")
    if not isinstance(content, list):
        if content or role != "assistant":
            yield {"role": role, "content": content}
        return
    parts: list[Block] = []
    calls, results = [], 0
    for block in content:
        match block:
            case {"type": "thinking" | "redacted_thinking"}:
                pass
            case {"type": "tool_use", "id": call_id, "name": name, "input": args}:
                function = {"name": name, "arguments": json_line(args).decode()}
                calls.append({"id": call_id, "type": "function", "function": function})
            case {"type": "tool_result", "tool_use_id": call_id}:
                if parts:
                    yield {"role": role, "content": _plain(parts)}
                    parts = []
                yield {"role": "tool", "tool_call_id": call_id, "content": _result(block)}
                results += 1
            case _:
                parts += _parts(block)
    if calls:
        yield {"role": role, "tool_calls": calls, **({"content": _plain(parts)} if parts else {})}
    elif parts or not (results or role == "assistant"):
        yield {"role": role, "content": _plain(parts)}


def _parts(block: Any) -> Iterator[Block]:
    """Yield the part of content that a block is; an empty text is none."""
    match block:
        case {"type": "text", "text": text}:
            if text:
                yield {"type": "text", "text": text}
        case {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}:
            yield {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
        case {"type": "image", "source": {"type": "url", "url": url}}:
            yield {"type": "image_url", "image_url": {"url": url}}
        case _:
            kind = block.get("type") if isinstance(block, dict) else None
            text = f"Content can be text, images, tool_use and tool_result, each whole, not {str(kind)[:50]!r}."
            raise RequestError("invalid_request", text, field="messages")


def _plain(parts: list[Block]) -> Any:
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _result(block: Block) -> Any:
    content = block.get("content") or ""
    failed = block.get("is_error") is True
    if isinstance(content, str):
        return f"Error: {content}" if failed else content
    if not isinstance(content, list):
        raise RequestError(
            "invalid_request", "A tool_result's `content` is a text or a list of blocks.", field="messages"
        )
    parts = [part for one in content for part in _parts(one)]
    return [{"type": "text", "text": "Error:"}, *parts] if failed else _plain(parts)


def _system(told: str | list[dict[str, Any]] | None) -> str | None:
    if told is None or isinstance(told, str):
        return told
    texts = [block.get("text") for block in told]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError("invalid_request", "`system` is a text, or a list of text blocks.", field="system")
    return "\n\n".join(map(str, texts))


def tool(told: Block) -> dict[str, Any]:
    if told.get("type") not in (None, "custom"):
        text = f"Tools can be your own only, not {str(told['type'])[:50]!r}: those of servers are Anthropic's."
        raise RequestError("invalid_request", text, field="tools")
    function = {"parameters": told.get("input_schema")}
    function |= {name: told.get(name) for name in ("name", "description", "strict")}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _choice(told: Block) -> Any:
    match told:
        case {"type": "auto" | "none" as kind}:
            return kind
        case {"type": "any"}:
            return "required"
        case {"type": "tool", "name": name}:
            return {"type": "function", "function": {"name": name}}
    text = "`tool_choice` is an object whose `type` is auto, any, none, or tool with a `name`."
    raise RequestError("invalid_request", text, field="tool_choice")


def _format(told: Any) -> Any:
    """Return the format of an answer; what Anthropic's has no name for has one here, which OpenAI demands."""
    match told:
        case None:
            return None
        case {"type": "json_schema", "schema": schema}:
            return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    text = "`output_config.format` is an object with the `type` json_schema and a `schema`."
    raise RequestError("invalid_request", text, field="output_config")
