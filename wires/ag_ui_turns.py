"""What is open of an AG-UI stream: what its nodes say, and the tool calls."""

from collections.abc import Iterator
from typing import Any

from .chat import json_line


class Turn:
    """What a node says in one go: its message, of which the text may be open, and its open thoughts, by their ids."""

    __slots__ = ("message", "speaks", "step", "thoughts")

    def __init__(self, step: str) -> None:
        self.step = step
        self.message = self.thoughts = b""
        self.speaks = False

    def end_thoughts(self) -> Iterator[bytes]:
        if self.thoughts:
            for kind in (b"REASONING_MESSAGE_END", b"REASONING_END"):
                yield b'data: {"type":"%b","messageId":"%b"}\n\n' % (kind, self.thoughts)
            self.thoughts = b""

    def end_text(self) -> Iterator[bytes]:
        """End the text; tool calls may still be its message's."""
        if self.speaks:
            yield b'data: {"type":"TEXT_MESSAGE_END","messageId":"%b"}\n\n' % self.message
            self.speaks = False

    def end(self) -> Iterator[bytes]:
        yield from self.end_thoughts()
        yield from self.end_text()
        self.message = b""


class Call:
    """A tool call. `id` is encoded; `is_empty`: nothing was said of its arguments."""

    __slots__ = ("id", "is_answered", "is_empty", "is_open", "name", "turn")

    def __init__(self, call_id: str, turn: Turn) -> None:
        self.name = call_id
        self.id = json_line(call_id)
        self.turn = turn
        self.is_open = self.is_empty = True
        self.is_answered = False

    def args(self, text: str) -> bytes:
        self.is_empty = False
        return b'data: {"type":"TOOL_CALL_ARGS","toolCallId":%b,"delta":%b}\n\n' % (self.id, json_line(text))

    def end(self) -> bytes:
        self.is_open = False
        return b'data: {"type":"TOOL_CALL_END","toolCallId":%b}\n\n' % self.id


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json_line(value).decode()
