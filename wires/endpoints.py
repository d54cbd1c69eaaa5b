"""What a reader of the API is told of each endpoint beyond what its route and the structs say: words, and its answers.

Keyed by method and path as the routes have them; a path that is not here is described by its handler's docstring.
Schemas, headers and parameters are named, and made in openapi.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .event_id import PARAMETERS
from .ndjson import MEDIA_TYPE as NDJSON

JSON, TEXT, SSE = "application/json", "text/plain", "text/event-stream"
Object = dict[str, Any]


class Endpoint(NamedTuple):
    """`parameters` are names, `codes` those of the errors it can answer with beside what every path can.

    `body` is the schema of the request that it takes as JSON. `fields`: takes it as parameters. `is_foreign`: it speaks
    another's words, in which its errors are told as well.
    """

    summary: str
    text: str
    answers: Mapping[str, Object]
    codes: Sequence[str] = ()
    parameters: Sequence[str] = ()
    body: Object | None = None
    fields: bool = False
    tag: str = "Operations"
    is_foreign: bool = False
    example: Object | None = None


def ref(name: str, section: str = "schemas") -> Object:
    return {"$ref": f"#/components/{section}/{name}"}


def answer(text: str, content: Mapping[str, Object], headers: Sequence[str] = ()) -> Object:
    told: Object = {"description": text, "content": dict(content)}
    if headers:
        told["headers"] = {name: ref(name, "headers") for name in headers}
    return told


def of_json(schema: str) -> dict[str, Object]:
    return {JSON: {"schema": ref(schema)}}


_LINES = {NDJSON: {"itemSchema": ref("EventLine")}}
_EITHER = {SSE: {"itemSchema": ref("ServerSentEvent")}, **_LINES}
_WORD = {TEXT: {"schema": {"type": "string"}}}
_LEFT = ("RateLimit", "RateLimit-Policy")
_SEEN = {"204": {"description": "All was seen, nothing more comes. It stops an EventSource."}}
_COMES = "The events of the run, as they come; at last one of `done`, `error` and `cancelled`."
STREAM = {"200": answer(_COMES, _EITHER, ("Content-Location", *_LEFT)), **_SEEN}
LINES = {"200": answer(_COMES, _LINES, ("Content-Location", *_LEFT)), **_SEEN}
# What a client can do with a run that it has created.
_LINKS = {
    name: {"operationId": operation, "parameters": {"run_id": "$response.body#/id"}}
    for name, operation in (("events", "get_runs_run_id_events"), ("status", "get_runs_run_id"))
}
CREATED = answer("It has begun.", of_json("RunCreated"), ("Location", *_LEFT)) | {"links": _LINKS}

REQUEST = ref("ChatRequest")
QUESTION = "What is the capital of France?"
EXAMPLE = {"message": QUESTION}
_LINGERS = {"properties": {"linger": {"exclusiveMinimum": 0}}}  # else there is no time for a first viewer
BEGIN = (
    *("unauthorized", "invalid_request", "unknown_model", "too_large"),
    *("rate_limited", "overloaded", "shutting_down", "unavailable"),
)
POSTED = ("request_timeout", "conflict", "unsupported_media_type")
FOLLOW = ("unauthorized", "invalid_request", "not_found", "overloaded", "unavailable")
RESUMING = PARAMETERS[0]  # the other is for old polyfills, and in a generated client would have the same name
_RESUME = ("Last-Event-ID", RESUMING)
_SIGNED = ("run_id", "expires", "signature")

_BY_URL = "For an `EventSource`: every field is a parameter. The run ends with its last viewer, or `linger` later."
_BY_BODY = "`Content-Location` names the run, as `start` does. The run ends with its last viewer, or `linger` later."
_AGAIN = " With the id of an event it starts nothing, but goes on behind that event, of whatever run that is."
_FIXED = " The provider, the graph, the chain or the alias is fixed by the path."
_AS_LINES = " Always NDJSON; without a `model` the default graph's, if there is one."


def _pair(path: str, summary: str, more: str, answers: Mapping[str, Object], *names: str) -> dict[str, Endpoint]:
    """Describe a path by which a request is run and followed at once."""
    codes = (*BEGIN, "not_found")
    own = ("X-Upstream-Key", *_RESUME, *names)
    by_url = Endpoint(f"{summary}, by URL", _BY_URL + _AGAIN + more, answers, codes, own, fields=True, tag="Chat")
    post = ("Idempotency-Key", *own)
    text = _BY_BODY + _AGAIN + more
    by_body = Endpoint(summary, text, answers, (*codes, *POSTED), post, REQUEST, tag="Chat", example=EXAMPLE)
    return {f"GET {path}": by_url, f"POST {path}": by_body}


ENDPOINTS = {
    **_pair("/chat/stream", "Run and follow", "", STREAM),
    **_pair("/{name}/stream", "Run and follow one of a name", _FIXED, STREAM, "name"),
    **_pair("/stream", "Run and follow as lines", _AS_LINES, LINES),
    **_pair("/chat/stream-meta", "Run and follow, by another path", " The same as `/chat/stream`.", STREAM),
    "POST /runs": Endpoint(
        "Start a run",
        "It is followed by other requests, of any number of viewers. Without one it goes on for `linger` seconds.",
        {"201": CREATED},
        (*BEGIN, *POSTED),
        ("Idempotency-Key", "X-Upstream-Key"),
        {"allOf": [REQUEST, _LINGERS]},
        tag="Runs",
        example=EXAMPLE,
    ),
    "GET /runs/{run_id}": Endpoint(
        "How a run stands",
        "While it goes on, and for a while after its end.",
        {"200": answer("How it stands just now.", of_json("RunStatus"))},
        ("unauthorized", "not_found", "unavailable"),
        _SIGNED,
        tag="Runs",
    ),
    "DELETE /runs/{run_id}": Endpoint(
        "Stop a run",
        "Its viewers get `cancelled`. The same twice is the same as once.",
        {"204": {"description": "It has ended, and its upstream is closed."}},
        ("unauthorized", "not_found", "unavailable"),
        _SIGNED,
        tag="Runs",
    ),
    "GET /runs/{run_id}/events": Endpoint(
        "Follow a run",
        "From its beginning, or from behind the event whose id is given.",
        {"200": answer(_COMES, _EITHER, ("Content-Location",)), **_SEEN},
        FOLLOW,
        (*_SIGNED, *_RESUME),
        tag="Runs",
    ),
    "GET /healthz": Endpoint("Whether it is alive", "", {"200": answer("It is: `ok`.", _WORD)}),
    "GET /readyz": Endpoint(
        "Whether it begins runs",
        "With `?verbose` it tells as JSON how the models fare, and wants a key where others do.",
        {
            "200": answer("It does: `ready`.", _WORD | of_json("Readiness")),
            "503": answer("It is stopping: `draining`.", _WORD | of_json("Readiness")),
        },
        ("unauthorized",),
        ("verbose",),
    ),
    "GET /metrics": Endpoint(
        "Its counters",
        "For Prometheus.",
        {"200": answer("In Prometheus' text format.", _WORD)},
        ("unauthorized",),
    ),
    "GET /openapi.json": Endpoint(
        "This document",
        "Needs no key.",
        {"200": answer("OpenAPI of that version.", {JSON: {"schema": {"type": "object"}}})},
        ("invalid_request",),
        ("version",),
    ),
    "GET /docs": Endpoint("This document, to be read", "", {"200": answer("A page.", {"text/html": {}})}),
}

DESCRIPTION = """\
Streams any LLM as named server-sent events, which a browser's own `EventSource` can follow.

A **run** is one generation. It is begun and followed by one request (`/chat/stream`), or begun by one (`POST /runs`) \
and followed by others. Each event has an `id`, `<run>-<number>`; a client that comes back with the last one it saw \
goes on behind it: no text is lost, none is sent twice. Exactly one event is the last: `done`, `error` or `cancelled`. \
What goes wrong before the first byte is a status and a problem document, what goes wrong after it an `error` event.

Any stream is NDJSON for `Accept: application/x-ndjson`. Pings are comments, in NDJSON empty lines. \
Where there is GET, there is HEAD.

`/ws/chat` is a WebSocket, for which OpenAPI has no words: a frame in is a message, a request as JSON, or \
`{"type": "stop"}`; each frame out is an event, as a line of NDJSON has it. `?resume=<event id>` goes on with a turn \
that was lost.
"""

FIELDS = {
    "message": "What the user says. Or `messages`.",
    "question": "The same as `message`.",
    "messages": "The conversation, as OpenAI has it.",
    "model": "`provider/model`, a provider, a model, or an alias; several are asked in turn. Else the default.",
    "system": "Instructions.",
    "system_prompt": "The same as `system`.",
    "max_tokens": "How long the answer may be.",
    "temperature": "How free the choice of words is.",
    "top_p": "From how much of the likeliest they are chosen.",
    "stop": "Where this would come, the answer ends.",
    "seed": "A hint, for the same answer to the same request.",
    "tools": "What the model may call, as OpenAI has it.",
    "tool_choice": "Whether it calls, or what.",
    "parallel_tool_calls": "Whether it may call several at once.",
    "response_format": "Text, or JSON of a schema.",
    "provider_options": "Put into the upstream's request as it is.",
    "run_timeout": "How long the run may take, seconds.",
    "first_token_timeout": "How long the first content may take, seconds.",
    "idle_timeout": "How long it may be silent between contents, seconds.",
    "linger": "How long the run goes on without a viewer, seconds.",
    "input": "Of chains and graphs: their own input, in place of messages. `null` lets a thread go on.",
    "resume": "Of graphs: the answer to an `interrupt` of the thread.",
    "thread_id": "Of graphs: the thread to go on with.",
    "stream_mode": "Of graphs: what they tell.",
    "config": "Of chains and graphs: LangChain's `config`.",
    "context": "Of graphs: what nodes find in `runtime.context`.",
    "events": "Of chains and graphs: what goes on in them, in place of their answer.",
    "include_names": "Of `events`: only those of these names.",
    "include_types": "Of `events`: only those of these types.",
    "include_tags": "Of `events`: only those of these tags.",
}
