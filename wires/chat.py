"""The native request, as JSON or as a query string, and the native form of an event's data: one line of JSON."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta
from msgspec.structs import replace

from streaming.errors import RequestError
from streaming.limits import Limits
from streaming.request import Fallbacks, Message, ModelName, ModelNames, Options, RunRequest, Seconds

from .event_id import PARAMETERS

# Of another wire's request, before anything is made of them: as many as there may be in ours.
Turns = Annotated[list[dict[str, Any]], Meta(max_length=10_000)]
Tools = Annotated[list[dict[str, Any]], Meta(max_length=1000)]

JSON_PARAMETERS = {"messages", "tools", "response_format", "provider_options", "config", "context"}
PERHAPS_JSON = {"model", "stop", "tool_choice"}
JSON_OR_TEXT = {"input", "resume"}
Decoded = TypeVar("Decoded")
LISTS = {"stream_mode", "include_names", "include_types", "include_tags"}


class ChatRequest(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client sends. One of `message`, `question` (the same by another name), `messages`, `input`, `resume`."""

    message: str | None = None
    question: str | None = None
    messages: Annotated[list[Message], Meta(max_length=10_000)] | None = None  # as of settings' max_messages at most
    model: ModelName | ModelNames | Fallbacks | None = None
    system: str | None = None
    system_prompt: str | None = None
    run_timeout: Seconds | None = None
    first_token_timeout: Seconds | None = None
    idle_timeout: Seconds | None = None
    linger: Annotated[float, Meta(ge=0)] | None = None

    def check_size(self, most: int) -> None:
        """Raise RequestError too_large where there are more than so many messages."""
        if self.messages and len(self.messages) > most:
            text = f"There are {len(self.messages)} messages; {most} at most may be sent."
            raise RequestError("too_large", text, field="messages", limit="max_messages")

    def to_run(self, model: str, upstream_key: str | None = None, owner: str = "") -> RunRequest:
        """Return the request to a provider, with the caller's own key for it, and who that is.

        Raises RequestError where the conversation is none.
        """
        options = {name: getattr(self, name) for name in Options.__struct_fields__}
        system = _either("system", self.system, "system_prompt", self.system_prompt)
        messages = self.conversation()
        return RunRequest(
            model=model, messages=messages, system=system, upstream_key=upstream_key, owner=owner, **options
        )

    def limits(self, longest: Limits, linger: float) -> Limits:
        """Return the limits of this request: what it asks for, up to `longest`; `linger` where it does not say."""
        own = {"linger": linger}
        for name in ("run_timeout", "first_token_timeout", "idle_timeout", "linger"):
            asked, most = getattr(self, name), getattr(longest, name)
            if asked is None:
                continue
            if asked > most:
                raise RequestError("invalid_request", f"`{name}` can be at most {most:g} seconds here.", field=name)
            own[name] = asked
        if linger and not own["linger"]:
            raise RequestError("invalid_request", "`linger` of 0 leaves no time for a first viewer.", field="linger")
        return replace(longest, **own)

    def conversation(self) -> list[Message]:
        """Return the messages; none where there is an input of the runnable's own.

        Raises RequestError where there is nothing else either, or a message that says nothing.
        """
        message = _either("message", self.message, "question", self.question)
        if self.has_own_input:
            said = (
                message,
                self.messages,
                self.system,
                self.system_prompt,
                None if self.resume is UNSET else self.input,
            )
            _check(
                all(one in (None, UNSET) for one in said),
                "input",
                "`input` or `resume` stands alone, without messages.",
            )
            return []
        if (message is None) == (self.messages is None):
            which = "either `message` or `messages`, not both" if message is not None else "`message` or `messages`"
            raise RequestError("invalid_request", f"Send {which}.", field="message")
        if message is not None:
            _check(bool(message.strip()), "message", "`message` is empty.")
            return [Message("user", message)]
        assert self.messages is not None
        _check(bool(self.messages), "messages", "`messages` is empty.")
        for place, turn in enumerate(self.messages):
            says = turn.content or turn.tool_calls or (turn.role == "tool" and turn.content is not None)
            _check(bool(says), "messages", f"`messages[{place}]` has no content.")
            _check(turn.role != "tool" or bool(turn.tool_call_id), "messages", f"`messages[{place}]` answers no call.")
        return self.messages


# What of it may stand beside a request of another wire, which has no words for it.
OWN = [
    name
    for name in ChatRequest.__struct_encode_fields__
    if name not in ("message", "question", "messages", "system_prompt")
]


def _either(name: str, value: str | None, other: str, other_value: str | None) -> str | None:
    if value is not None and other_value is not None:
        raise RequestError("invalid_request", f"`{name}` and `{other}` are the same; send one of them.", field=other)
    return other_value if value is None else value


def _check(holds: bool, field: str, text: str) -> None:
    if not holds:
        raise RequestError("invalid_request", text, field=field)


_decode = msgspec.json.Decoder(ChatRequest).decode


def decode_body(body: bytes) -> ChatRequest:
    """Decode a native body. Raises RequestError that names what is wrong and where."""
    return decoded(_decode, body)


def decode_query(pairs: Iterable[tuple[str, str]]) -> ChatRequest:
    """Decode a query string's pairs; lists and objects are JSON in them. Raises RequestError as decode_body does."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in PARAMETERS:
            continue
        if name in fields:
            raise RequestError("invalid_request", f"`{name}` is given twice.", field=name)
        fields[name] = _parameter(name, value)
    try:
        return msgspec.convert(fields, ChatRequest, strict=False)
    except msgspec.ValidationError as exc:
        raise invalid(str(exc)) from None


def _parameter(name: str, value: str) -> Any:
    if name in LISTS:
        return value.split(",")
    may_be_text = name in JSON_OR_TEXT
    if not (may_be_text or name in JSON_PARAMETERS or (name in PERHAPS_JSON and value.startswith(("[", "{")))):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        if may_be_text:
            return value
        raise RequestError("invalid_request", f"`{name}` is not valid JSON.", field=name) from None


def beside(own: Mapping[str, Any], fields: Mapping[str, Any]) -> ChatRequest:
    """Return the request of another wire: its `fields`, as plain JSON, and what it says beside them in our own words.

    What both say is said in our words; a field that is None is none. Raises RequestError where anything is wrong.
    """
    if not isinstance(own, Mapping) or any(name not in OWN for name in own):
        raise RequestError("invalid_request", f"`sidestream` is an object of {', '.join(OWN)}.", field="sidestream")
    told = {name: value for name, value in fields.items() if value is not None} | dict(own)
    if "input" in own or "resume" in own:
        told.pop("messages", None)
        told.pop("system", None)
    try:
        return msgspec.convert(told, ChatRequest)
    except msgspec.ValidationError as exc:
        raise invalid(str(exc)) from None


def decoded(decode: Callable[[bytes], Decoded], body: bytes) -> Decoded:
    """Decode a JSON body. Raises RequestError that names what is wrong and where."""
    body = body.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, which JSON readers may ignore (RFC 8259, 8.1)
    if not body.strip():
        raise RequestError("invalid_request", "The body is empty; send a JSON object.")
    try:
        return decode(body)
    except msgspec.ValidationError as exc:
        raise invalid(str(exc)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RequestError("invalid_request", "The body is not valid JSON.") from None


def invalid(text: str) -> RequestError:
    """Name the field a validation error is about, from msgspec's path (`$.messages[0].role`) or its own words."""
    found = re.search(r"at `\$\.(\w+)", text) or re.search(r"field `(\w+)`", text)
    field = found[1] if found else None
    return RequestError("invalid_request", f"Bad request: {text}.", field=field)


# Line ends to more readers than JSON knows of: clients that split lines as Unicode does would cut the text there.
_LINE_ENDS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))
_encode = msgspec.json.Encoder(enc_hook=str).encode


def json_line(value: Any) -> bytes:
    """Encode as JSON that no reader takes for more than one line."""
    try:
        line = _encode(value)
    except UnicodeEncodeError:  # half of a surrogate pair has no UTF-8, but JSON can name it
        return json.dumps(msgspec.to_builtins(value, enc_hook=str), separators=(",", ":")).encode()
    if not line.isascii():
        for raw, escaped in _LINE_ENDS:
            line = line.replace(raw, escaped)
    return line
