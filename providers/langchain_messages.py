"""LangChain's messages as events, and ours as its; what its models report of usage and of why they stopped.

A message may be a chunk or whole; of whole ones that were streamed before, LangGraph itself says nothing again.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from uuid import UUID

import msgspec
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage, convert_to_messages
from langchain_core.messages.tool import ToolCallChunk
from langchain_core.outputs import LLMResult
from msgspec import UNSET, Struct, UnsetType

from streaming.events import Event, FinishReason, Reasoning, Token, ToolCall, ToolCallDelta, ToolResult, Usage
from streaming.request import RunRequest

from . import arguments
from .plain import plain


def conversation(request: RunRequest) -> list[BaseMessage]:
    """The messages in LangChain's words, the system's first."""
    messages = [{"content": "", **msgspec.to_builtins(message)} for message in request.messages]
    for message, message_id in zip(messages, request.ids, strict=False):  # which not every request has
        message["id"] = message_id
    if request.system is not None:
        messages.insert(0, {"role": "system", "content": request.system})
    return convert_to_messages(messages)


class _OpenCall(Struct):
    place: int  # among all calls of the run
    index: Any  # LangChain's own
    id: str
    tool: str
    parts: list[str]
    node: str | UnsetType
    ns: tuple[str, ...] | UnsetType


class Messages:
    """AI and tool messages -> events. One instance a run: the calls of all its messages are counted through."""

    def __init__(self) -> None:
        self._places = 0
        self._open: dict[str | None, list[_OpenCall]] = {}  # by message

    def feed(
        self, message: Any, node: str | UnsetType = UNSET, ns: tuple[str, ...] | UnsetType = UNSET
    ) -> Iterator[Event]:
        """Translate a message or a chunk of one; others than an AI's and a tool's say nothing."""
        if isinstance(message, ToolMessage):
            yield ToolResult(message.tool_call_id, message.name or "", plain(message.content), node, ns)
        elif isinstance(message, AIMessage):
            yield from _content(message, node, ns)
            if not isinstance(message, AIMessageChunk):
                yield from _whole(message, node, ns)
                return
            for chunk in message.tool_call_chunks:
                yield self._call(message.id, chunk, node, ns)
            if message.chunk_position == "last":
                yield from self._close(message.id)

    def end(self) -> Iterator[Event]:
        """Yield the calls that were never said to be whole: not every model names its last chunk."""
        for message_id in list(self._open):
            yield from self._close(message_id)

    def _call(
        self, message_id: str | None, chunk: ToolCallChunk, node: str | UnsetType, ns: tuple[str, ...] | UnsetType
    ) -> Event:
        """Add a fragment to its call: by its id where it has one, as several may share an index, else by that."""
        calls, call_id, args = self._open.setdefault(message_id, []), chunk.get("id"), chunk.get("args") or ""
        index = chunk.get("index")
        for call in reversed(calls):
            if (call.id == call_id) if call_id else (call.index == index):
                call.parts.append(args)
                return ToolCallDelta(call.place, args, node=node, ns=ns)
        place = self._places
        self._places += 1
        calls.append(_OpenCall(place, index, call_id or f"call_{place}", chunk.get("name") or "", [args], node, ns))
        return ToolCallDelta(place, args, calls[-1].id, calls[-1].tool, node, ns)

    def _close(self, message_id: str | None) -> Iterator[Event]:
        for call in self._open.pop(message_id, []):
            args, _ = arguments("".join(call.parts))
            yield ToolCall(call.id, call.tool, args, call.node, call.ns)


def _content(message: AIMessage, node: str | UnsetType, ns: tuple[str, ...] | UnsetType) -> Iterator[Event]:
    if isinstance(message.content, str):
        if reasoning := message.additional_kwargs.get("reasoning_content"):  # by custom, as in OpenAI's chunks
            yield Reasoning(reasoning, node, ns)
        if message.content:
            yield Token(message.content, node, ns)
        return
    for block in message.content_blocks:  # LangChain's common form of every vendor's parts
        if block["type"] == "text" and block.get("text"):
            yield Token(block["text"], node, ns)
        elif block["type"] == "reasoning" and block.get("reasoning"):
            yield Reasoning(block["reasoning"], node, ns)


def _whole(message: AIMessage, node: str | UnsetType, ns: tuple[str, ...] | UnsetType) -> Iterator[Event]:
    for call in message.tool_calls:
        yield ToolCall(call["id"] or "", call["name"], plain(call["args"]), node, ns)
    for broken in message.invalid_tool_calls:
        yield ToolCall(broken["id"] or "", broken["name"] or "", broken["args"], node, ns)


_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "MAX_TOKENS": "length",
    "max_output_tokens": "length",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    "SAFETY": "content_filter",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
}


class Stopped(Exception):
    """Whoever makes this has been stopped."""


# LangChain warns of whatever a callback raises; this is no fault.
logging.getLogger("langchain_core.callbacks.manager").addFilter(lambda record: "Stopped()" not in record.getMessage())


class Tally(BaseCallbackHandler):
    """Adds up what the models of a run report, wherever in it they are called, and why the last one stopped.

    Of a graph it also knows whether any node has begun or ended, and which one has raised what.

    Once it is `stopped`, it stops what it is told of: with a model's next token, or before the next node, model, tool.
    That reaches what runs in threads, which no cancellation does.
    """

    run_inline = True  # nothing in it waits
    raise_error = True
    ignore_retriever = ignore_agent = ignore_custom_event = True

    def __init__(self) -> None:
        self._seen: list[Mapping[str, Any]] = []  # models in several threads may append
        self._told = 0
        self.reason: FinishReason = "stop"
        self.stopped = False
        self.begun = self.ended = False  # a node has
        self._nodes: dict[UUID, str] = {}
        self._raised: list[tuple[BaseException, str]] = []  # the innermost first

    def stop(self) -> None:
        self.stopped = True

    def _go_on(self, *args: Any, **kwargs: Any) -> None:
        if self.stopped:
            raise Stopped

    on_chat_model_start = on_llm_start = on_llm_new_token = on_tool_start = _go_on

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, metadata: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self._go_on()
        node = (metadata or {}).get("langgraph_node")
        if node and node != "__start__":  # where a graph looks at its input
            self.begun = True
            self._nodes[run_id] = node

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self.ended = self.ended or run_id in self._nodes
        self._nodes.pop(run_id, None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        if node := self._nodes.pop(run_id, None):
            self._raised.append((error, node))

    def node_of(self, error: BaseException) -> str | None:
        """Return the name of the node that has raised it."""
        return next((node for raised, node in self._raised if raised is error), None)

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        for generation in (one for some in response.generations for one in some):
            message = getattr(generation, "message", None)
            if not isinstance(message, AIMessage):
                continue
            self.reason = _reason(message)
            if message.usage_metadata:
                self._seen.append(message.usage_metadata)

    def news(self) -> list[Usage]:
        """Return the usage so far where it has grown since it was last asked for."""
        if len(self._seen) == self._told:
            return []
        self._told = len(self._seen)
        return [self.usage] if self.usage else []

    @property
    def usage(self) -> Usage | None:
        if not self._seen:
            return None
        cached = _sum(one.get("input_token_details", {}).get("cache_read") for one in self._seen)
        thought = _sum(one.get("output_token_details", {}).get("reasoning") for one in self._seen)
        return Usage(
            _sum(one.get("input_tokens") for one in self._seen),
            _sum(one.get("output_tokens") for one in self._seen),
            cached or UNSET,
            thought or UNSET,
        )


def _reason(message: AIMessage) -> FinishReason:
    told = message.response_metadata
    cut = told.get("incomplete_details") or {}  # of OpenAI's Responses
    reason = told.get("finish_reason") or told.get("stop_reason") or cut.get("reason")
    return _REASONS.get(str(reason)) or ("tool_calls" if message.tool_calls else "stop")


def _sum(counts: Iterable[int | None]) -> int:
    return sum(count or 0 for count in counts)
