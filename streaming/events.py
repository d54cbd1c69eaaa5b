"""The vocabulary: everything a run can say, on one screen.

Frozen structs; `name` is the name a client sees (the SSE `event:` field), the struct's fields are its `data`, a
delta's `text` under the name of its kind.
An event does not know its id: that is its place in the event log (`<run_id>-<seq>`). A field that is UNSET is
left out of the JSON. Not here: how events travel (wires/) and what a vendor calls them (providers/).
"""

from typing import Any, ClassVar, Literal

from msgspec import UNSET, Struct, UnsetType, field

Outcome = Literal["done", "error", "cancelled"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "interrupt"]


class Usage(Struct, frozen=True):
    """Tokens in and out, as the upstream counted them; `estimated` where we had to (characters over four)."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | UnsetType = UNSET
    reasoning_tokens: int | UnsetType = UNSET
    estimated: bool | UnsetType = UNSET


class Finish(Struct, frozen=True):
    """A provider's last word: the answer is whole. The run makes `done` of it; clients never see this one.

    `skipped_chunks` were sent by the upstream and could not be read.
    """

    reason: FinishReason
    usage: Usage | None = None
    model: str | None = None
    skipped_chunks: int = 0


class Event(Struct, frozen=True):
    """What a client gets. Only deltas have `text`, and follow one another."""

    name: ClassVar[str]

    @property
    def text(self) -> str:
        return ""

    def follows(self, other: "Event") -> bool:
        """Whether it goes on where `other` left off, and differs from it in nothing but its text."""
        return False


class Delta(Event, frozen=True):
    """A fragment of content. One that `follows` another says with it the same as one delta of their joined text."""

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing: no content, then, and no sign of life."""
        return not self.text

    @property
    def weight(self) -> int:
        """Bytes of what an upstream may say at length beside the text."""
        return 0

    def joined(self, text: str) -> "Delta":
        """Return this delta with `text` in place of its own."""
        raise NotImplementedError

    def going_on(self, text: str) -> "Delta":
        """Return a delta of `text` that follows this one."""
        raise NotImplementedError


class Queued(Event, frozen=True):
    """The run waits for a place; told anew as it moves up. Nothing else may precede `start`."""

    name = "queued"
    position: int


class Start(Event, frozen=True):
    """Opens a run, and again where another candidate takes over.

    `thread_id` names the thread of a graph that keeps one: the next request may go on with it.
    """

    name = "start"
    run: str
    provider: str
    model: str
    created: int
    thread_id: str | UnsetType = UNSET


class Reset(Event, frozen=True):
    """What was said since the last `start` is void: another candidate begins anew. `reason` is an error's code."""

    name = "reset"
    reason: str


class Token(Delta, frozen=True):
    """A delta of the answer's text; `node` and `ns` tell where in a graph it is from."""

    name = "token"
    text: str = field(name="token")
    node: str | UnsetType = UNSET
    ns: tuple[str, ...] | UnsetType = UNSET

    def follows(self, other: Event) -> bool:
        return isinstance(other, Token) and self.node == other.node and self.ns == other.ns

    def joined(self, text: str) -> "Token":
        return Token(text, self.node, self.ns)

    going_on = joined


class Reasoning(Delta, frozen=True):
    """A delta of the model's thinking, where it shows it.

    With a `signature`, and no text, it closes what was thought: an upstream that signs (Anthropic's) wants both back.
    """

    name = "reasoning"
    text: str = field(name="reasoning")
    node: str | UnsetType = UNSET
    ns: tuple[str, ...] | UnsetType = UNSET
    signature: str | UnsetType = UNSET

    @property
    def is_empty(self) -> bool:
        return not self.text and self.signature is UNSET

    @property
    def weight(self) -> int:
        return 0 if self.signature is UNSET else len(self.signature)

    def follows(self, other: Event) -> bool:
        return (
            isinstance(other, Reasoning)
            and self.signature is UNSET
            and other.signature is UNSET  # what is signed is closed
            and self.node == other.node
            and self.ns == other.ns
        )

    def joined(self, text: str) -> "Reasoning":
        return Reasoning(text, self.node, self.ns, self.signature)

    def going_on(self, text: str) -> "Reasoning":
        return Reasoning(text, self.node, self.ns)


class ToolCallDelta(Delta, frozen=True):
    """A tool call as it streams: `id` and `tool` stand on the first delta of an `index`, a text on each."""

    name = "tool_call_delta"
    index: int
    text: str = field(default="", name="args_delta")
    id: str | UnsetType = UNSET
    tool: str | UnsetType = UNSET
    node: str | UnsetType = UNSET
    ns: tuple[str, ...] | UnsetType = UNSET

    @property
    def is_empty(self) -> bool:
        return not self.text and self.id is UNSET

    def follows(self, other: Event) -> bool:
        return (
            isinstance(other, ToolCallDelta)
            and self.id is UNSET  # one that names its call opens a new one
            and self.index == other.index
            and self.node == other.node
            and self.ns == other.ns
        )

    def joined(self, text: str) -> "ToolCallDelta":
        return ToolCallDelta(self.index, text, self.id, self.tool, self.node, self.ns)

    def going_on(self, text: str) -> "ToolCallDelta":
        return ToolCallDelta(self.index, text, node=self.node, ns=self.ns)


class ToolCall(Event, frozen=True):
    """A whole call. `args` is the parsed JSON; text that is not JSON stays the text the model wrote."""

    name = "tool_call"
    id: str
    tool: str
    args: Any
    node: str | UnsetType = UNSET
    ns: tuple[str, ...] | UnsetType = UNSET


class ToolResult(Event, frozen=True):
    """What a tool answered."""

    name = "tool_result"
    id: str
    tool: str
    content: Any
    node: str | UnsetType = UNSET
    ns: tuple[str, ...] | UnsetType = UNSET


class GraphEvent(Event, frozen=True):
    """What a graph or a chain tells of itself, in its own words: `data` is plain JSON.

    `ns` is the path of subgraphs it comes from, each `<node>:<task id>`; empty for the graph itself.
    """

    ns: tuple[str, ...]
    data: Any


class Values(GraphEvent, frozen=True):
    """The whole state after a step; of a chain, its output so far."""

    name = "values"


class Updates(GraphEvent, frozen=True):
    """What nodes have changed, by node; of a chain, what its output has grown by."""

    name = "updates"


class Custom(GraphEvent, frozen=True):
    """What a node wrote to its stream."""

    name = "custom"


class Tasks(GraphEvent, frozen=True):
    """A node begins (`input`), or has ended (`result`, `error`, `interrupts`); both name it and share an `id`."""

    name = "tasks"


class Checkpoints(GraphEvent, frozen=True):
    """A checkpoint was made."""

    name = "checkpoints"


class Debug(GraphEvent, frozen=True):
    """A step in all detail."""

    name = "debug"


class Events(GraphEvent, frozen=True):
    """One event of `astream_events`: a chain, model, tool or retriever begins, streams or ends."""

    name = "events"


class Interrupt(Event, frozen=True):
    """A graph waits for a person: it goes on with a request of the same `thread_id` that has a `resume`."""

    name = "interrupt"
    id: str
    value: Any


class Draining(Event, frozen=True):
    """This replica goes: reconnect in `retry_ms` milliseconds, and meet another. A connection's, not a run's: no id."""

    name = "draining"
    retry_ms: int


class Terminal(Event, frozen=True):
    """Ends a run; nothing follows it, and each run has exactly one."""

    name: ClassVar[Outcome]


class Done(Terminal, frozen=True, kw_only=True):
    """The answer is whole. `tokens` counts its content deltas; times are milliseconds from the run's start.

    `skipped_chunks` of the upstream's could not be read, so something may lack; left out where there are none.
    """

    name = "done"
    done: Literal[True] = True
    finish_reason: FinishReason
    model: str
    usage: Usage
    tokens: int
    ttft_ms: int | None
    latency_ms: int
    skipped_chunks: int | UnsetType = UNSET


class Error(Terminal, frozen=True, kw_only=True):
    """The run failed; `code` is stable (streaming/errors.py), `error` is for a person."""

    name = "error"
    done: Literal[True] = True
    error: str
    code: str
    retryable: bool
    usage: Usage


class Cancelled(Terminal, frozen=True, kw_only=True):
    """Somebody stopped the run before its end."""

    name = "cancelled"
    done: Literal[True] = True
    reason: Literal["disconnected", "requested", "draining"]
    usage: Usage


KINDS: dict[str, type[Event]] = {
    kind.name: kind for kind in vars().copy().values() if isinstance(kind, type) and hasattr(kind, "name")
}
