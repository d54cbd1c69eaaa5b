"""Requests of LangGraph's SDK, as far as they ask for a run: what is run, on which thread, and which modes are told.

https://docs.langchain.com/langgraph-platform/server-api-ref, and the SDKs' own sources. An `assistant_id` is a graph's
name; one with a slash is a model's or a chain's, as everywhere. What would change the result and is not done here is
refused, with what can be done instead; what would not, is passed over.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from streaming.errors import RequestError
from streaming.followed import Followed

from .chat import beside, decoded, invalid, json_line
from .fold import Asked
from .viewer import Form

Mode = Literal["values", "updates", "messages", "messages-tuple", "custom", "tasks", "checkpoints", "debug", "events"]
Names = Literal["*"] | list[str] | None
GRAPHS, CHAINS = "langgraph/", "langchain/"
MESSAGES = {"messages", "messages-tuple"}
LONGEST = 16_384  # bytes of metadata, as JSON: they come with every word of a message, and are kept with the run
ROLES = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant"}


class _Request(Struct, frozen=True):
    """What concerns us of a request. Not here: how its thread is kept, which is the graph's checkpointer's business."""

    assistant_id: str
    input: Any = None
    command: dict[str, Any] | None = None
    stream_mode: Mode | list[Mode] | None = None
    stream_subgraphs: bool | None = None
    config: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    checkpoint_id: str | None = None
    on_disconnect: Literal["cancel", "continue"] | None = None
    on_completion: Literal["delete", "keep"] | None = None
    multitask_strategy: Literal["enqueue", "reject", "interrupt", "rollback"] | None = None
    interrupt_before: Names = None
    interrupt_after: Names = None
    webhook: str | None = None
    after_seconds: float | None = None
    feedback_keys: list[str] | None = None

    @property
    def modes(self) -> list[str]:
        told = [self.stream_mode] if isinstance(self.stream_mode, str) else self.stream_mode
        return [*dict.fromkeys(told or ["values"])]

    @property
    def model(self) -> str:
        return self.assistant_id if "/" in self.assistant_id else f"langgraph/{self.assistant_id}"


_decode = msgspec.json.Decoder(dict[str, Any]).decode
Kind = TypeVar("Kind")


def _read(told: Any, kind: type[Kind]) -> Kind:
    try:
        return msgspec.convert(told, kind)
    except msgspec.ValidationError as exc:
        raise invalid(str(exc)) from None


def decode(
    body: bytes, thread_id: str | None, form: Callable[[Followed], Form], *, longest: float, waits: bool = False
) -> Asked:
    """Read a request for a run of a thread, or of none. Raises RequestError for what is not done here.

    `longest` is for how long a run may go on without a viewer. Who `waits` is told the state at the end alone.
    """
    request = _read(decoded(_decode, body), _Request)
    for field, holds, text in _refusals(request):
        if not holds:
            raise RequestError("invalid_request", text, field=field)
    modes = ["values"] if waits else request.modes
    fields: dict[str, Any] = {"model": request.model, "thread_id": thread_id}
    own: dict[str, Any] = {}
    if request.model.startswith((GRAPHS, CHAINS)):
        own = _input(request)
        fields |= {"config": _config(request, thread_id), "context": request.context}
        if modes == ["events"]:
            fields["events"] = True
        elif request.model.startswith(GRAPHS):
            fields["stream_mode"] = [*_native(modes)]
    else:
        fields["messages"] = [*_messages(request, modes)]
    linger = {"cancel": 0.0, "continue": longest, None: None}[request.on_disconnect]
    about = {
        "assistant": request.assistant_id,
        "thread": thread_id,
        "modes": modes,
        "subgraphs": bool(request.stream_subgraphs),
        "metadata": request.metadata or {},
    }
    return Asked(beside(own, fields), form, not waits, linger, about=about)


def _refusals(request: _Request) -> Iterator[tuple[str, bool, str]]:
    command = request.command or {}
    turns = "`multitask_strategy` can be `enqueue`: the runs of a thread take turns."
    yield "multitask_strategy", request.multitask_strategy in (None, "enqueue"), turns
    other = any(command.get(name) for name in ("update", "goto", "graph"))  # which some clients send empty
    yield "command", not other, "`command` can be `resume` only."
    yield "command", request.input is None or command.get("resume") is None, "Send `input` or a `command`."
    alone = "events" not in request.modes or request.modes == ["events"]
    yield "stream_mode", alone, "The mode `events` stands alone."
    for name in ("interrupt_before", "interrupt_after"):
        yield name, not getattr(request, name), f"`{name}` is said where the graph is compiled."
    is_short = len(json_line(request.metadata or {})) <= LONGEST
    yield "metadata", is_short, f"`metadata` come with every message; {LONGEST} bytes at most may be sent."
    yield "webhook", not request.webhook, "There are no webhooks here."
    yield "after_seconds", not request.after_seconds, "Runs begin at once."
    yield "feedback_keys", not request.feedback_keys, "There are no feedback URLs here."
    kept = "What a graph keeps of a run stays with its checkpointer."
    yield "on_completion", request.on_completion != "delete", kept


def _native(modes: Sequence[str]) -> Iterator[str]:
    """Yield the modes that a graph is asked for; beside its messages, what tells when their nodes have ended."""
    asked = dict.fromkeys("messages" if mode in MESSAGES else mode for mode in modes)
    yield from asked
    if "messages" in asked and "updates" not in asked:
        yield "updates"


def _input(request: _Request) -> dict[str, Any]:
    """Return what a graph is given: an answer it waits for, or an input; none lets its thread go on."""
    resume = (request.command or {}).get("resume")
    return {"input": request.input} if resume is None else {"resume": resume}


def _config(request: _Request, thread_id: str | None) -> dict[str, Any] | None:
    config = {name: value for name, value in (request.config or {}).items() if value is not None}
    configurable = _read(config.get("configurable", {}), dict[str, Any]) | (request.checkpoint or {})
    if request.checkpoint_id is not None:
        configurable["checkpoint_id"] = request.checkpoint_id
    if configurable.pop("thread_id", thread_id) != thread_id:
        raise RequestError("invalid_request", "Name the thread in the path: /threads/<id>/runs/...", field="config")
    configurable = {name: value for name, value in configurable.items() if value is not None}
    if configurable:
        config["configurable"] = configurable
    else:
        config.pop("configurable", None)
    if request.metadata:
        config["metadata"] = _read(config.get("metadata", {}), dict[str, Any]) | request.metadata
    return config or None


def _messages(request: _Request, modes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the conversation of a request to a model, which understands nothing else."""
    told = request.input.get("messages") if isinstance(request.input, dict) else None
    if not isinstance(told, list) or not all(isinstance(one, dict) for one in told):
        raise RequestError(
            "invalid_request", "The `input` of a model is `{messages: [{role, content}]}`.", field="input"
        )
    if not MESSAGES & {*modes}:
        text = "A model has no state, only messages: stream them, with `stream_mode` `messages-tuple` or `messages`."
        raise RequestError("invalid_request", text, field="stream_mode")
    for name in ("config", "context", "command"):
        if getattr(request, name):
            raise RequestError("invalid_request", f"`{name}` is for graphs; {request.model} is a model.", field=name)
    for one in told:
        role = one.get("role") or one.get("type")
        kept = {"role": ROLES.get(role, role) if isinstance(role, str) else role}
        kept |= {name: one[name] for name in ("content", "name", "tool_call_id") if one.get(name)}
        if calls := one.get("tool_calls"):
            kept["tool_calls"] = [_call(call) for call in calls] if isinstance(calls, list) else calls
        yield kept


def _call(call: Any) -> Any:
    """Return a call in the common form; one that is in it already stays."""
    if not isinstance(call, Mapping) or "function" in call:
        return call
    function = {"name": call.get("name"), "arguments": json_line(call.get("args") or {}).decode()}
    return {"id": call.get("id"), "type": "function", "function": function}
