"""What a run is asked to do, and the protocol of whoever does it. One shape, whatever wire it came by.

Messages are in the field's common form (that of OpenAI's chat completions); each provider translates them to its own.
"""

from collections.abc import Callable, Sequence, Set
from typing import Annotated, Any, Literal, NamedTuple, Protocol
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Meta, Struct
from msgspec.structs import replace

from .events import Event, Finish, Usage

WEEK = 7 * 24 * 3600
Headers = Sequence[tuple[bytes, bytes]]
Seconds = Annotated[float, Meta(gt=0, le=WEEK)]


class TextPart(Struct, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    text: str


class ImageURL(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where an image is: `https://...`, or the image itself as `data:image/png;base64,...`."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Struct, frozen=True, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    image_url: ImageURL


class FunctionCall(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    arguments: str


class MessageToolCall(Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One turn of the conversation. A `tool` message answers the call named by `tool_call_id`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart | ImagePart], Meta(max_length=1000)] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None


class Function(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, frozen=True, forbid_unknown_fields=True):
    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class NamedTool(Struct, frozen=True, forbid_unknown_fields=True):
    function: NamedFunction
    type: Literal["function"] = "function"


class JSONSchema(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextFormat(Struct, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Plain text, the default."""


class JSONObjectFormat(Struct, frozen=True, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class JSONSchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """A JSON object of this schema."""

    json_schema: JSONSchema


class Sampling(Struct, frozen=True, kw_only=True):
    """How to generate; None leaves it to the upstream."""

    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=100)] | None = None
    seed: int | None = None
    tools: Annotated[list[Tool], Meta(max_length=1000)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JSONObjectFormat | JSONSchemaFormat | None = None
    provider_options: dict[str, Any] | None = None

    @property
    def stops(self) -> list[str] | None:
        return [self.stop] if isinstance(self.stop, str) else self.stop


StreamMode = Literal["values", "updates", "messages", "custom", "tasks", "checkpoints", "debug"]
Names = Annotated[list[str], Meta(max_length=1000)]


class RunnableConfig(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """LangChain's `config`, as far as a request may say it. `configurable` are the runnable's own settings."""

    configurable: dict[str, Any] = {}
    tags: Names = []
    metadata: dict[str, Any] = {}
    run_name: str | None = None
    recursion_limit: Annotated[int, Meta(ge=1)] | None = None
    max_concurrency: Annotated[int, Meta(ge=1)] | None = None


class Options(Sampling, frozen=True, kw_only=True):
    """All of a request but the conversation: how a model generates, and what only a chain or graph understands.

    `input` is the runnable's own, in place of messages; None lets a graph's thread go on from its last checkpoint.
    `resume` answers an interrupt of the thread.
    """

    input: Any = UNSET
    resume: Any = UNSET
    thread_id: Annotated[str, Meta(min_length=1, max_length=1000)] | None = None
    stream_mode: StreamMode | Annotated[list[StreamMode], Meta(min_length=1)] | None = None
    config: RunnableConfig | None = None
    context: dict[str, Any] | None = None
    events: bool = False
    include_names: Names | None = None
    include_types: Names | None = None
    include_tags: Names | None = None

    def given(self, names: Sequence[str]) -> list[str]:
        """Return those of `names` that the request says something about."""
        return [name for name in names if getattr(self, name) is not getattr(_NOTHING, name)]

    @property
    def has_own_input(self) -> bool:
        return self.input is not UNSET or self.resume is not UNSET


_NOTHING = Options()
FOR_MODELS = Sampling.__struct_fields__
FOR_RUNNABLES = tuple(name for name in Options.__struct_fields__ if name not in FOR_MODELS)


class RunRequest(Options, frozen=True, kw_only=True):
    """A request to a provider. `model` is the upstream's own name of it; `system` precedes the messages.

    Without messages it has an `input` or a `resume`. `upstream_key` is the caller's own, to be shown in place of ours,
    and `owner` whoever that is. `trace` are the headers by which an upstream learns of the run's trace, if it has one.
    `verbatim` is the body as the client sent it, where that is in the upstream's own words, with the headers that were
    `passed` beside it. For a graph: `ids` of the messages, by which its thread knows them again; `since` which of them
    on they are new to a thread that knows anything; and what of its input is `beside` them.
    """

    model: str
    messages: list[Message]
    system: str | None = None
    upstream_key: str | None = None
    owner: str = ""
    trace: Headers = ()
    verbatim: dict[str, Any] | None = None
    passed: Headers = ()
    ids: tuple[str, ...] = ()
    since: int = 0
    beside: dict[str, Any] = {}

    @property
    def kept_as(self) -> str | None:
        """What its thread is called where that is kept: each owner has threads of its own."""
        if self.thread_id is None or not self.owner:
            return self.thread_id
        return f"{quote(self.owner, safe=':')}/{self.thread_id}"

    @property
    def news(self) -> "RunRequest":
        """The same for a thread that knows the messages up to `since`."""
        return replace(self, messages=self.messages[self.since :], ids=self.ids[self.since :], since=0)

    @property
    def characters(self) -> int:
        """Characters of text in the prompt: what an estimate of its tokens is made from."""
        own = self.resume if self.input is UNSET else self.input
        told = 0 if own in (UNSET, None) else len(own if isinstance(own, str) else msgspec.json.encode(own))
        return told + len(self.system or "") + sum(map(_characters, self.messages))


def _characters(message: Message) -> int:
    calls = sum(len(call.function.arguments) for call in message.tool_calls or ())
    if message.content is None or isinstance(message.content, str):
        return calls + len(message.content or "")
    return calls + sum(len(part.text) for part in message.content if isinstance(part, TextPart))


class Takes(NamedTuple):
    """What a chain or graph takes: the fields of its input, and which of them add to what was there."""

    is_graph: bool = False
    fields: Set[str] = frozenset()
    adding: Set[str] = frozenset()
    keeps_threads: bool = False


class ProviderSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """One `[providers.<name>]` table: a built-in under its own name, or one more under a name of the operator's.

    `use` names a built-in kind or a `module:attr`. Without `base_url` and `api_key` (or `api_key_env`, the variable
    that holds it) the vendor SDK's own variables count. The first of `models` is the provider's default; any other
    model may be asked for all the same. `options` are the provider's own.
    """

    use: str | None = None
    base_url: str | None = None
    api_key: str | None = None
    api_key_env: str | None = None
    models: list[str] = []
    enabled: bool = True
    options: dict[str, Any] = {}


MAX_CANDIDATES = 10
LONGEST_NAME = 200  # of a model, as it is asked for, characters: what was asked of late is kept by name
ModelName = Annotated[str, Meta(max_length=LONGEST_NAME)]
ModelNames = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=LONGEST_NAME)]], Meta(min_length=1, max_length=MAX_CANDIDATES)
]


class Fallbacks(Struct, frozen=True, forbid_unknown_fields=True):
    """Models to ask one after the other until one answers.

    Refusals of the request are not the next one's turn, but for those that `on` names.
    """

    models: ModelNames
    on: list[Literal["upstream_auth", "upstream_rejected", "content_filtered", "context_length"]] = []


Item = Event | Usage | Finish  # what a provider says
Emit = Callable[[Sequence[Item]], None]


class Provider(Protocol):
    """An upstream. One instance serves all runs of a process.

    `stream` hands what has arrived to `emit`, in batches: events, `Usage` whenever the upstream reports it (the last
    one counts), and at last one `Finish`. To return without it says that the answer broke off. Faults are raised as
    streaming.errors; cancellation closes the upstream's connection and is let through, as is what `emit` raises.

    One that is made before it is asked for may have a `prepare(request)`, called before a run begins: it returns the
    request, filled up where need be, or raises RequestError. A chain's or graph's has a `takes(model)`, too.
    """

    async def stream(self, request: RunRequest, emit: Emit, /) -> None: ...
