"""LangChain's messages, made anew of deltas: as chunks (mode `messages-tuple`), or as they stand (mode `messages`).

Of a graph's messages the log has the words, and which node they are from, but not where one ends. One is over when its
node has ended (`updates`), when one of its calls is answered, and when its node says more behind a whole call. Ids are
the run's and a number, so they are the same each time; those in the state are LangChain's own.

    event               messages-tuple                  messages
    token, reasoning    messages: [chunk, metadata]     messages/metadata with the first, messages/partial
    tool_call_delta     the same, `tool_call_chunks`    the same, `tool_calls`
    tool_call           nothing, but where none of it   the same, with its arguments
                        was streamed
    tool_result         messages: [tool, metadata]      messages/metadata, messages/complete
    the message's end   nothing                         messages/complete
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from streaming.events import Reasoning, Token, ToolCall, ToolCallDelta, ToolResult, Updates

from .chat import json_line

Said = Token | Reasoning | ToolCallDelta | ToolCall
Frame = Callable[..., bytes]
_REST = b'"response_metadata":{},"type":"AIMessageChunk","name":null,"id":%b,"tool_calls":[],"invalid_tool_calls":[],'
_CALLS = b'"usage_metadata":null,"tool_call_chunks":['


class _Call(Struct):
    """A call as far as it has come; `args` are what it is to be called with, once that is known."""

    place: int
    id: str
    tool: str
    text: str = ""
    args: Any = None
    is_whole: bool = False

    @property
    def is_broken(self) -> bool:
        return self.is_whole and not isinstance(self.args, dict)

    def end(self) -> None:
        """Have it whole, as its text has it: no model says more of it."""
        if not self.is_whole:
            self.args = _arguments(self.text)
            self.is_whole = True

    def told(self) -> dict[str, Any]:
        if self.is_broken:
            text = self.args if isinstance(self.args, str) else json_line(self.args).decode()
            return {"name": self.tool, "args": text, "id": self.id, "error": None, "type": "invalid_tool_call"}
        return {"name": self.tool, "args": self.args or {}, "id": self.id, "type": "tool_call"}


def _arguments(text: str) -> Any:
    try:
        return msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return text


class _Message:
    """An AI's message in the making. `metadata` tells where it is from."""

    def __init__(self, message_id: str, metadata: Mapping[str, Any]) -> None:
        self.id = message_id
        self.metadata = metadata
        self.calls: dict[str, _Call] = {}
        self.rest = _REST % json_line(message_id) + _CALLS
        self.tail = b"]},%b]" % json_line(metadata)
        self._places: dict[int, _Call] = {}
        self._text = self._thoughts = ""

    @property
    def is_whole(self) -> bool:
        return any(call.is_whole for call in self.calls.values())

    def chunk(self, event: Said) -> bytes:
        """Return `[chunk, metadata]` of what is new in an event; nothing where that was said."""
        if type(event) is Token:
            return self._chunk(event.text)
        if isinstance(event, Reasoning):
            return self._chunk("", b'{"reasoning_content":%b}' % json_line(event.text))
        if isinstance(event, ToolCall):
            is_new = event.id not in self.calls
            call = self._whole(event)
            args = event.args if isinstance(event.args, str) else json_line(event.args).decode()
            return self._call(call, args, names=True) if is_new else b""
        assert isinstance(event, ToolCallDelta)
        call = self._of(event)
        return self._call(call, event.text, names=event.id is not UNSET)

    def _chunk(self, text: str, kwargs: bytes = b"{}", call: bytes = b"") -> bytes:
        content = b'[{"content":%b,"additional_kwargs":%b,' % (json_line(text), kwargs)
        return content + self.rest + call + self.tail

    def _call(self, call: _Call, text: str, *, names: bool) -> bytes:
        named = b'"name":%b' % (json_line(call.tool) if names else b"null")
        told = b'"id":%b,"index":%d' % (json_line(call.id) if names else b"null", call.place)
        return self._chunk("", call=b'{%b,"args":%b,%b,"type":"tool_call_chunk"}' % (named, json_line(text), told))

    def add(self, event: Said) -> None:
        """Take in an event, for `whole`."""
        if isinstance(event, Token):
            self._text += event.text
        elif isinstance(event, Reasoning):
            self._thoughts += event.text
        elif isinstance(event, ToolCall):
            self._whole(event)
        else:
            self._of(event).text += event.text

    def _of(self, event: ToolCallDelta) -> _Call:
        if event.index not in self._places or event.id is not UNSET:
            call = _Call(len(self.calls), event.id or "", event.tool or "")
            self._places[event.index] = self.calls[call.id] = call
        return self._places[event.index]

    def _whole(self, event: ToolCall) -> _Call:
        call = self.calls.setdefault(event.id, _Call(len(self.calls), event.id, event.tool))
        call.args, call.is_whole = event.args, True
        return call

    def whole(self) -> dict[str, Any]:
        """Return the message as it stands."""
        calls = sorted(self.calls.values(), key=lambda call: call.place)
        return {
            "content": self._text,
            "additional_kwargs": {"reasoning_content": self._thoughts} if self._thoughts else {},
            "response_metadata": {},
            "type": "ai",
            "name": None,
            "id": self.id,
            "tool_calls": [call.told() for call in calls if not call.is_broken],
            "invalid_tool_calls": [call.told() for call in calls if call.is_broken],
            "usage_metadata": None,
        }


class Messages:
    """The messages of a run, counted through; `about` is what the metadata of each of them begins with.

    `frame` makes a frame of an event's name, its data and its namespace.
    """

    def __init__(self, run_id: str, about: Mapping[str, Any], frame: Frame, *, tuples: bool) -> None:
        self._run_id = run_id
        self._about = about
        self._frame = frame
        self._tuples = tuples
        self._count = 0
        self._open: dict[tuple[Any, Any], _Message] = {}  # by namespace and node
        self._unfinished: set[str] = set()  # calls that were streamed, and not whole when their message ended

    def feed(self, event: Said | ToolResult, *, is_passed: bool = False) -> Iterator[bytes]:
        """`is_passed`: its node says more at once, so how its message stands now need not be told."""
        if type(event) is Token:  # most are; isinstance() asks msgspec's metaclass
            yield from self._said(event, is_passed=is_passed)
        elif isinstance(event, ToolResult):
            yield from self._answered(event)
        elif isinstance(event, ToolCall) and event.id in self._unfinished:
            self._unfinished.discard(event.id)  # it is told late: some models name no last chunk
        elif not isinstance(event, Reasoning) or event.text:  # else it is a signature
            yield from self._said(event, is_passed=is_passed)

    def _said(self, event: Said, *, is_passed: bool) -> Iterator[bytes]:
        where = event.ns, event.node
        message = self._open.get(where)
        if message and message.is_whole and event.node is not UNSET and not isinstance(event, ToolCall):
            yield from self._close(where)
            message = None
        if message is None:
            message = self._open[where] = _Message(self._next_id(), self._metadata(event))
            yield from self._opening(message.id, message.metadata)
        if self._tuples:
            if chunk := message.chunk(event):
                yield self._frame("messages", chunk, event.ns)
        else:
            message.add(event)
            if not is_passed:
                yield self._frame("messages/partial", b"[%b]" % json_line(message.whole()))

    def ended(self, event: Updates) -> Iterator[bytes]:
        """Close the messages of the nodes that have ended."""
        for node in event.data if isinstance(event.data, dict) else ():
            yield from self._close((event.ns or UNSET, node))

    def end(self) -> Iterator[bytes]:
        for where in [*self._open]:
            yield from self._close(where)

    def _answered(self, event: ToolResult) -> Iterator[bytes]:
        for where in [where for where, message in self._open.items() if event.id in message.calls]:
            yield from self._close(where)
        tool_id = self._next_id()
        told: dict[str, Any] = {
            "content": event.content if isinstance(event.content, str | list) else json_line(event.content).decode(),
            "additional_kwargs": {},
            "response_metadata": {},
            "type": "tool",
            "name": event.tool,
            "id": tool_id,
            "tool_call_id": event.id,
            "artifact": None,
            "status": "success",
        }
        metadata = self._metadata(event)
        yield from self._opening(tool_id, metadata)
        if self._tuples:
            yield self._frame("messages", b"[%b,%b]" % (json_line(told), json_line(metadata)), event.ns)
        else:
            yield self._frame("messages/complete", b"[%b]" % json_line(told))

    def _opening(self, message_id: str, metadata: Mapping[str, Any]) -> Iterator[bytes]:
        if not self._tuples:
            yield self._frame("messages/metadata", json_line({message_id: {"metadata": metadata}}))

    def _close(self, where: tuple[Any, Any]) -> Iterator[bytes]:
        message = self._open.pop(where, None)
        if message is None:
            return
        self._unfinished |= {call.id for call in message.calls.values() if not call.is_whole}
        if not self._tuples:
            for call in message.calls.values():
                call.end()
            yield self._frame("messages/complete", b"[%b]" % json_line(message.whole()))

    def _next_id(self) -> str:
        self._count += 1
        return f"run-{self._run_id}-{self._count}"

    def _metadata(self, event: Said | ToolResult) -> dict[str, Any]:
        told = {**self._about}
        if event.node is not UNSET:
            told["langgraph_node"] = event.node
        if event.ns is not UNSET:
            told["langgraph_checkpoint_ns"] = "|".join(event.ns)
        return told
