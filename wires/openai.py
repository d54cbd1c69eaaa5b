"""What OpenAI's two wires share: parts of their requests, tool calls counted through, usage and errors.

https://platform.openai.com/docs/api-reference. Fields that are unknown here are passed over; an upstream of the same
API gets them, as it gets all of the body.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from streaming.errors import Fault, RequestError
from streaming.events import ToolCall, ToolCallDelta
from streaming.request import Sampling

from .chat import decoded, json_line
from .fold import refusal, status_of

CODES = {
    "unknown_model": "model_not_found",
    "unauthorized": "invalid_api_key",
    "rate_limited": "rate_limit_exceeded",
    "upstream_rate_limited": "rate_limit_exceeded",
    "context_length": "context_length_exceeded",
    "content_filtered": "content_filter",
}
DETAILS = ("auto", "low", "high")
# What of our own words beside a request goes into the upstream's: it is said in them, then.
SAYS = {*Sampling.__struct_fields__, "system"} - {"provider_options"}

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def read(body: bytes, kind: type[Any]) -> tuple[dict[str, Any], Any]:
    """Return a request as it was told, and what of it concerns us. Raises RequestError where it is none."""
    told = decoded(_decode, body)
    return told, convert(told, kind)


def convert(told: Any, kind: Any) -> Any:
    """Read a part of a request. Raises RequestError that names what is wrong and where."""
    try:
        return msgspec.convert(told, kind)
    except msgspec.ValidationError as exc:
        raise _invalid(exc) from None


def _invalid(exc: msgspec.ValidationError) -> RequestError:
    found = str(exc).partition("`$.")[2].partition("`")[0]
    return RequestError("invalid_request", f"Bad request: {exc}.", field=found or None)


def one_by_one(parallel: bool | None, tools: Any) -> bool | None:
    """Return the native `parallel_tool_calls`: what is not asked for is as it always is."""
    return False if parallel is False and tools else None


def check(*rules: tuple[str, bool, str]) -> None:
    """Raise RequestError for the first (field, whether that holds, what is said otherwise) that does not hold."""
    for field, holds, text in rules:
        if not holds:
            raise RequestError("invalid_request", text, field=field)


def verbatim(told: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the body for an upstream of the same API; None where our own words beside it say what it does not."""
    own = told.get("sidestream") or {}
    return None if SAYS & own.keys() else {name: value for name, value in told.items() if name != "sidestream"}


def content(told: Any, field: str) -> Any:
    """Return a message's content in the native form: its text, or its parts where it has several."""
    if not isinstance(told, list):
        return told
    parts = [_part(part, field) for part in told]
    return parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts


def _part(part: Any, field: str) -> dict[str, Any]:
    match part:
        case {"type": "text" | "input_text" | "output_text", "text": text} | {"type": "refusal", "refusal": text}:
            return {"type": "text", "text": text}
        case {"type": "image_url", "image_url": {"url": url, **rest}}:
            return _image(url, rest.get("detail"))
        case {"type": "input_image", "image_url": str(url), **rest}:
            return _image(url, rest.get("detail"))
    kind = part.get("type") if isinstance(part, dict) else part
    raise RequestError("invalid_request", f"Content can be text and images, not {str(kind)[:50]!r}.", field=field)


def _image(url: Any, detail: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": detail if detail in DETAILS else None}}


def function(told: Any) -> dict[str, Any]:
    """Return a function that may be called, with what is known of it alone."""
    told = told if isinstance(told, dict) else {}
    known = {name: told[name] for name in ("name", "description", "parameters", "strict") if told.get(name) is not None}
    return {"type": "function", "function": known}


def call_asked(call_id: Any, told: Any) -> dict[str, Any]:
    """Return a call that an assistant has made, as the native request has it."""
    told = told if isinstance(told, dict) else {}
    function = {"name": told.get("name"), "arguments": told.get("arguments")}
    return {"id": call_id, "type": "function", "function": function}


def choice_asked(told: Any, tools: Any) -> Any:
    """Return how tools are to be chosen; without any there is nothing to choose, and nothing to be said of it."""
    return None if not tools and told in ("auto", "none") else told


def format_asked(told: Any) -> Any:
    """Return the form that the answer is to have, None where that is text."""
    return None if told == {"type": "text"} else told


class Said(NamedTuple):
    """Which call an event is of, whether that is new, and what it adds to the call's arguments."""

    place: int
    is_new: bool
    arguments: str


class Calls:
    """The calls that a client is told of, counted through. Those of a graph's nodes the graph answers itself."""

    def __init__(self) -> None:
        self._count = 0
        self._at: dict[int, int] = {}  # by the index of their deltas
        self._begun: dict[str, list[int]] = {}  # and not whole yet, by their ids
        self._silent: set[int] = set()  # without arguments so far

    def take(self, event: ToolCallDelta | ToolCall) -> Said | None:
        """Return what an event says of a call; None where it is not for the client."""
        if event.node is not UNSET:
            return None
        if isinstance(event, ToolCall):
            if not (begun := self._begun.get(event.id)):
                return Said(self._next(), True, arguments(event))
            place = begun.pop(0)
            return Said(place, False, arguments(event) if place in self._silent else "")
        is_new = event.id is not UNSET
        if is_new:
            place = self._at[event.index] = self._next()
            self._begun.setdefault(str(event.id), []).append(place)
            self._silent.add(place)
        elif (known := self._at.get(event.index)) is not None:
            place = known
        else:
            return None  # of a call that nobody has begun
        if event.text:
            self._silent.discard(place)
        return Said(place, is_new, event.text)

    def _next(self) -> int:
        self._count += 1
        return self._count - 1


def arguments(call: ToolCall) -> str:
    """Return a whole call's arguments as text."""
    return call.args if isinstance(call.args, str) else json_line(call.args).decode()


def call_of(event: ToolCall) -> dict[str, Any]:
    """Return a whole call as Chat Completions has it."""
    return {"id": event.id, "type": "function", "function": {"name": event.tool, "arguments": arguments(event)}}


def given(text: str | UnsetType) -> str:
    return "" if text is UNSET else text


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
    """Say a fault before the first byte."""
    return refusal(fault, error(fault))
