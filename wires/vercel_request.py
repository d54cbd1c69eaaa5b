"""A request of the Vercel AI SDK's chats: UI messages, as parts by steps, become messages in the field's common form.

https://ai-sdk.dev/docs/ai-sdk-ui/transport. As the SDK's own `convertToModelMessages`, but that what was said after a
tool has answered is said after it.

    part                           becomes
    text                           text
    file                           an image, of a data: or http(s): URL, in a user's message; others cannot be told
    tool-<name>, dynamic-tool      a call and, once it has one, its answer; an error and a refusal are answers
    step-start                     a new turn of the assistant's
    reasoning, data-*, source-*    nothing, as do calls that broke off and messages of the assistant's that say nothing
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from streaming.errors import RequestError

from .chat import OWN, ChatRequest, beside, decoded, invalid, json_line

Part = dict[str, Any]
IGNORED = {"reasoning", "reasoning-file", "custom"}
DENIED = "The call was refused."
CONTINUED = "continued_ui_message"  # where in what is kept about a run it says so; runs of other wires do not


class _Message(Struct, frozen=True):
    role: Literal["system", "user", "assistant"]
    parts: list[Part]


class _Request(Struct, frozen=True):
    id: Annotated[str, Meta(max_length=1000)] | None = None
    messages: list[_Message] | None = None


class Said(NamedTuple):
    """What a request says: what to run, in which chat, and of the message that the answer goes on with, if it does.

    A graph's thread that knows anything knows the messages before the place `since`.
    """

    chat: ChatRequest
    chat_id: str
    about: dict[str, Any]
    since: int


_decode = msgspec.json.Decoder(dict[str, Any]).decode


def read(body: bytes) -> Said:
    """Read a request. Raises RequestError for what cannot be answered here."""
    told = decoded(_decode, body)
    try:
        request = msgspec.convert(told, _Request)
    except msgspec.ValidationError as exc:
        raise invalid(str(exc)) from None
    own = {name: told[name] for name in OWN if name in told}
    turns = [*messages(request.messages or ())]
    since = 0 if own.get("thread_id") is None else _since_the_answer(turns)
    if since and told.get("trigger") == "regenerate-message":
        why = "An answer of a thread is not made anew: the thread goes on from it."
        raise RequestError("invalid_request", why, field="trigger")
    if since == len(turns) and "input" not in own and "resume" not in own:
        why = (
            "Nothing is said after the last answer, which the thread knows." if request.messages else "Send `messages`."
        )
        raise RequestError("invalid_request", why, field="messages")
    return Said(beside(own, {"messages": turns}), request.id or "", _about(request.messages or ()), since)


def _about(told: Sequence[_Message]) -> dict[str, Any]:
    """Return what is to be known of the assistant's message where it is the last: the client goes on with it."""
    if not told or told[-1].role != "assistant":
        return {}
    return {CONTINUED: {"calls": [part["toolCallId"] for part in told[-1].parts if _is_call(part)]}}


def _since_the_answer(turns: list[dict[str, Any]]) -> int:
    """Return the place of what a thread does not know yet: what came after its last answer."""
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    return answers[-1] + 1 if answers else 0


def messages(told: Iterable[_Message]) -> Iterator[dict[str, Any]]:
    """Yield the messages in the common form."""
    for message in told:
        if message.role == "assistant":
            yield from _answer(message.parts)
        else:
            yield {"role": message.role, "content": _content(message.parts)}


def _content(parts: Iterable[Part]) -> str | list[dict[str, Any]]:
    """Return the content of a message that is not the assistant's; a single text as such."""
    content = [one for part in parts if (one := _text_or_image(part))]
    return content[0]["text"] if len(content) == 1 and "text" in content[0] else content


def _text_or_image(part: Part) -> dict[str, Any] | None:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text} if text else None
        case {"type": "file", "mediaType": str(kind), "url": str(url)} if _is_image(kind, url):
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": "file"}:
            raise _wrong("Files can be images only, as data:image/... or https:// URLs", part.get("mediaType"))
    if _is_ignored(part):
        return None
    raise _wrong("There is no such part, or not in this message", part.get("type"))


def _is_image(kind: str, url: str) -> bool:
    return kind.startswith("image/") and url.startswith(("data:image/", "https://", "http://"))


def _is_ignored(part: Part) -> bool:
    kind = part.get("type")
    return isinstance(kind, str) and (kind in IGNORED or kind.startswith(("data-", "source-")))


def _wrong(why: str, what: Any) -> RequestError:
    return RequestError("invalid_request", f"{why}: {str(what)[:50]!r}.", field="messages")


class _Turn:
    """One of the assistant's turns: what it says, what it calls, and what came of that."""

    def __init__(self) -> None:
        self.text = ""
        self.calls: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []

    def told(self) -> Iterator[dict[str, Any]]:
        if self.text or self.calls:
            calls = {"tool_calls": self.calls} if self.calls else {}
            yield {"role": "assistant", "content": self.text or None, **calls}
        yield from self.answers


def _answer(parts: Iterable[Part]) -> Iterator[dict[str, Any]]:
    turn = _Turn()
    for part in parts:
        kind = part.get("type")
        if kind in ("step-start", "steering-message") or (kind == "text" and turn.answers):
            yield from turn.told()
            turn = _Turn()
        if kind == "text" and isinstance(text := part.get("text"), str):
            turn.text += text
        elif _is_call(part):
            _add_call(turn, part)
        elif kind == "steering-message" and isinstance(said := part.get("parts"), list):
            yield {"role": "user", "content": _content(_parts(said))}
        elif kind != "step-start" and not _is_ignored(part):
            raise _wrong("There is no such part, or not in the assistant's message", kind)
    yield from turn.told()


def _parts(told: list[Any]) -> list[Part]:
    for part in told:
        if not isinstance(part, dict):
            raise _wrong("A part is an object, not", part)
    return told


def _is_call(part: Part) -> bool:
    kind = part.get("type")
    return isinstance(kind, str) and (kind == "dynamic-tool" or kind.startswith("tool-"))


def _add_call(turn: _Turn, part: Part) -> None:
    kind, state, call_id = part["type"], part.get("state"), part.get("toolCallId")
    name = part.get("toolName") if kind == "dynamic-tool" else kind.removeprefix("tool-")
    if not (isinstance(call_id, str) and call_id and isinstance(name, str) and name):
        raise _wrong("A tool's part has a `toolCallId` and a name", kind)
    if state == "input-streaming":  # it broke off
        return
    args = _arguments(part)
    turn.calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": args}})
    if (answer := _output(part, state)) is not None:
        turn.answers.append({"role": "tool", "tool_call_id": call_id, "content": answer})


def _arguments(part: Part) -> str:
    """Return the arguments as text; of what was no JSON, the text that the model wrote."""
    args = part.get("input")
    if args is None:
        args = part.get("rawInput")
    if part.get("state") == "output-error" and isinstance(args, str):
        return args
    return json_line({} if args is None else args).decode()


def _output(part: Part, state: Any) -> str | None:
    match state:
        case "output-available":
            output = part.get("output")
            return output if isinstance(output, str) else json_line(output).decode()
        case "output-error":
            return str(part.get("errorText") or "")
        case "output-denied":
            return _reason(part)
        case "approval-responded" if _approval(part).get("approved") is False:
            return _reason(part)
        case "input-available" | "approval-requested" | "approval-responded":
            return None
    raise _wrong("A tool's part has no such state", state)


def _approval(part: Part) -> Mapping[str, Any]:
    approval = part.get("approval")
    return approval if isinstance(approval, dict) else {}


def _reason(part: Part) -> str:
    return str(_approval(part).get("reason") or DENIED)
