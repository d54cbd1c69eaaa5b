"""AG-UI's request, `RunAgentInput` (https://docs.ag-ui.com/spec/1.0/basic/run-input), as the native one.

A client sends the whole conversation, its state and its tools each time. What of it counts depends on who answers:

    of the request              a model                a graph that keeps threads      another graph        a chain
    messages                    all                    in the thread `threadId`: if    all                  all
                                                       it knows any, those after
                                                       the last answer
    state                       -                      the fields that replace         all fields           -
    tools                       tools                  the input's `tools`, `ag-ui`, `copilotkit`           -
    context                     behind the `system`    the input's `ag-ui`, `copilotkit`                    -
    resume                      refused                `resume`, by id; what was       refused              refused
                                                       `cancelled` is answered by null

A graph's input has a field or has not; what it has not is left out. One that takes no messages gets the state alone.
`forwardedProps` may hold native fields (`model`, `system`, `stream_mode`, ...), and CopilotKit's `command.resume`; the
rest of it is the app's own. Graphs tell messages, updates, values and what is custom, unless `stream_mode` or `events`
is asked for.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from streaming.errors import RequestError
from streaming.followed import Followed
from streaming.request import Function, Message, RunRequest, StreamMode, Takes, Tool

from .chat import OWN, beside, decoded
from .fold import Asked
from .viewer import Form

MODES: list[StreamMode] = ["messages", "updates", "values", "custom"]
BREAKPOINT = "breakpoint"  # the id of an interrupt that is none of LangGraph's: the graph was to stop before a node
LANGGRAPHS = re.compile("[0-9a-f]{32}")  # an id of LangGraph's, which takes any other for an answer of that name
SAID = ("developer", "system", "user", "assistant", "tool")
Id = Annotated[str, Meta(max_length=1000)]


class _Function(Struct, frozen=True):
    name: str
    arguments: str


class _Call(Struct, frozen=True):
    id: str
    function: _Function


class _Message(Struct, frozen=True, rename="camel"):
    id: str
    role: Literal["developer", "system", "user", "assistant", "tool", "reasoning", "activity"]
    content: str | list[dict[str, Any]] | dict[str, Any] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    error: str | None = None


class _Tool(Struct, frozen=True):
    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None


class _Context(Struct, frozen=True):
    description: str
    value: str


class _Resume(Struct, frozen=True, rename="camel"):
    interrupt_id: str
    status: Literal["resolved", "cancelled"]
    payload: Any = None


class _Input(Struct, frozen=True, rename="camel"):
    thread_id: Id
    run_id: Id
    messages: list[dict[str, Any]]
    parent_run_id: Id | None = None
    state: Any = None
    tools: list[_Tool] | None = None
    context: list[_Context] | None = None
    forwarded_props: Any = None
    resume: list[_Resume] | None = None


class Given(Struct, frozen=True):
    """What of a request its answer, or whoever gives it, may need. `messages` are as the client has them.

    `ids` are those of the native messages. `goes_on`: it has no messages to say, but an input or an answer.
    """

    thread: str
    run: str
    parent: str | None
    messages: list[dict[str, Any]]
    ids: list[str]
    state: dict[str, Any]
    tools: list[_Tool]
    context: list[_Context]
    goes_on: bool


_decode = msgspec.json.Decoder(_Input).decode


def asked(body: bytes, form: Callable[[Given, Followed], Form]) -> Asked:
    """Read a request. Raises RequestError for what cannot be answered here."""
    told = decoded(_decode, body)
    messages = list(map(_message, told.messages))
    turns = [turn for message in messages for turn in _turns(message)]
    state = told.state if isinstance(told.state, dict) else {}
    props = told.forwarded_props if isinstance(told.forwarded_props, dict) else {}
    own = {name: props[name] for name in OWN if name in props} | _input(told, props)
    goes_on = bool(own.keys() & {"input", "resume"})
    if not (turns or goes_on) and state:
        own["input"] = state
    chat = beside(own, {"messages": [turn for _, turn in turns]})
    given = Given(
        told.thread_id,
        told.run_id,
        told.parent_run_id,
        [{name: value for name, value in message.items() if value is not None} for message in told.messages],
        [one for one, _ in turns],
        state,
        told.tools or [],
        told.context or [],
        goes_on,
    )
    return Asked(chat, partial(form, given), fit=partial(fit, given))


def _message(told: Mapping[str, Any]) -> _Message:
    try:
        return msgspec.convert(told, _Message)
    except msgspec.ValidationError as exc:
        raise RequestError("invalid_request", f"Bad message: {exc}.", field="messages") from None


def _input(told: _Input, props: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the graph goes on with, if it is to: what it waits for, or nothing, where it was only to stop."""
    if told.resume:
        answers = {one.interrupt_id: one.payload if one.status == "resolved" else None for one in told.resume}
        if BREAKPOINT in answers:
            return {"input": None}
        if not all(map(LANGGRAPHS.fullmatch, answers)):
            raise RequestError("invalid_request", "There is no such interrupt.", field="resume")
        return {"resume": answers}
    command = props.get("command")
    return {"resume": command["resume"]} if isinstance(command, dict) and command.get("resume") is not None else {}


def _turns(message: _Message) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the message and its id, if it is one to a model: thoughts and activities are the client's own."""
    if message.role not in SAID:
        return
    turn: dict[str, Any] = {"role": message.role}
    if message.content is not None:
        turn["content"] = _content(message.content)
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.role == "tool":
        turn["tool_call_id"] = message.tool_call_id
        turn["content"] = turn.get("content") or message.error or ""
    if message.role != "assistant" or message.content or message.tool_calls:
        yield message.id, turn


def _call(call: _Call) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments or "{}"}
    return {"id": call.id, "type": "function", "function": function}


def _content(content: Any) -> str | list[dict[str, Any]]:
    if isinstance(content, dict):
        raise RequestError("invalid_request", "Content is text, or a list of parts.", field="messages")
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: Any) -> dict[str, Any]:
    match part:
        case {"type": "text", "text": text}:
            return {"type": "text", "text": text}
        case {"type": "image", "source": {"type": "url", "value": url}}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": "image", "source": {"type": "data", "value": str(data), "mimeType": str(kind)}}:
            return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
    text = f"Content can be text and images (by URL or as data), not {str(part.get('type'))[:50]!r}."
    raise RequestError("invalid_request", text, field="messages")


def fit(given: Given, request: RunRequest, takes: Takes | None) -> RunRequest:
    """Return the request as whoever is to answer takes it: a model, unless it says what it `takes`."""
    if takes is None:
        return _for_model(given, request)
    return _for_graph(given, request, takes) if takes.is_graph else request


def _for_model(given: Given, request: RunRequest) -> RunRequest:
    """Return it with the client's tools, and its context behind the system's words."""
    told = [f"{one.description}:\n{one.value}" for one in given.context]
    system = "\n\n".join([*filter(None, [request.system]), *told]) or None
    tools = [Tool(Function(one.name, one.description, one.parameters)) for one in given.tools]
    return replace(request, system=system, tools=[*(request.tools or []), *tools] or None)


def _for_graph(given: Given, request: RunRequest, takes: Takes) -> RunRequest:
    """Return it with what of it the graph's input has, and in its thread."""
    if request.stream_mode is None and not request.events:
        request = replace(request, stream_mode=MODES)
    if takes.keeps_threads and request.thread_id is None:
        request = replace(request, thread_id=given.thread or None)
    if given.goes_on:
        return request
    told = _beside(given, takes)
    if request.has_own_input or (told and "messages" not in takes.fields):
        return replace(request, messages=[], input=told)
    first = _unsaid(request.messages) if takes.keeps_threads else 0
    return replace(request, ids=tuple(given.ids), since=first, beside=told)


def _unsaid(messages: Sequence[Message]) -> int:
    """Return the place of the first message behind the last answer: those before it, the thread has."""
    answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
    return answers[-1] + 1 if answers else 0


def _beside(given: Given, takes: Takes) -> dict[str, Any]:
    """Return what goes into a graph's input beside the messages.

    To a field that adds, what the thread has of it would be added again.
    """
    fields = takes.fields - {"messages"} - (takes.adding if takes.keeps_threads else set())
    tools, context = msgspec.to_builtins(given.tools), msgspec.to_builtins(given.context)
    told = {"ag-ui": {"tools": tools, "context": context}, "copilotkit": {"actions": tools, "context": context}}
    if tools:
        told["tools"] = tools
    own = {name: value for name, value in given.state.items() if name in fields}
    return own | {name: value for name, value in told.items() if name in takes.fields}
