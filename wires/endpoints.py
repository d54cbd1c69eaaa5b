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


def ref(name: str, section: str = "schemas") -> Object:
    return {"$ref": f"#/components/{section}/{name}"}


def answer(text: str, content: Mapping[str, Object], headers: Sequence[str] = ()) -> Object:
    told: Object = {"description": text, "content": dict(content)}
    if headers:
        told["headers"] = {name: ref(name, "headers") for name in headers}
    return told


def _json(schema: str) -> dict[str, Object]:
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
CREATED = answer("It has begun.", _json("RunCreated"), ("Location", *_LEFT)) | {"links": _LINKS}

REQUEST = ref("ChatRequest")
_LINGERS = {"properties": {"linger": {"exclusiveMinimum": 0}}}  # else there is no time for a first viewer
BEGIN = (
    *("unauthorized", "invalid_request", "unknown_model", "too_large"),
    *("rate_limited", "overloaded", "shutting_down"),
)
POSTED = ("request_timeout", "conflict", "unsupported_media_type")
FOLLOW = ("unauthorized", "invalid_request", "not_found", "overloaded")
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
    by_body = Endpoint(summary, _BY_BODY + _AGAIN + more, answers, (*codes, *POSTED), post, REQUEST, tag="Chat")
    return {f"GET {path}": by_url, f"POST {path}": by_body}


_EVENTS = {
    "200": answer(
        "Its events, as they come; or one object, where no stream was asked for.",
        {SSE: {"schema": {"type": "string"}}, JSON: {}},
    )
}
_OBJECT = {"200": answer("As that API has it.", {JSON: {}})}
OPENAI = "https://platform.openai.com/docs/api-reference"


def _foreign(
    summary: str, text: str, answers: Mapping[str, Object] = _EVENTS, *names: str, posts: bool = True
) -> Endpoint:
    """Describe a path that speaks the words of another API, in which its errors are told as well."""
    body: Object | None = {"type": "object"} if posts else None
    told = {**answers, "default": {"description": "An error, in the words of that API."}}
    return Endpoint(summary, text, told, ("unauthorized",), names, body, tag="Other wires", is_foreign=True)


def _of_langgraph(runs: str, *names: str) -> dict[str, Endpoint]:
    """Describe the runs of LangGraph's API below a path."""
    run = (*names, "run_id")
    gone = {"202": {"description": "It is being stopped."}, "204": {"description": "It has ended."}}
    return {
        f"POST {runs}/stream": _foreign(
            "Run and follow, as LangGraph's SDKs do", "`assistant_id` names it.", _EVENTS, *names
        ),
        f"POST {runs}/wait": _foreign(
            "Run and wait, as LangGraph's SDKs do", "For the state at the end.", _OBJECT, *names
        ),
        f"GET {runs}/{{run_id}}": _foreign("How a run stands", "", _OBJECT, *run, posts=False),
        f"GET {runs}/{{run_id}}/stream": _foreign(
            "Follow a run", "From its beginning, or behind `Last-Event-ID`.", _EVENTS, *run, posts=False
        ),
        f"POST {runs}/{{run_id}}/cancel": _foreign("Stop a run", "", gone, *run, posts=False),
    }


FOREIGN = {
    "POST /v1/chat/completions": _foreign("OpenAI's Chat Completions", f"{OPENAI}/chat"),
    "POST /v1/responses": _foreign("OpenAI's Responses", f"{OPENAI}/responses"),
    "GET /v1/responses/{response_id}": _foreign(
        "A response, or its events",
        "With `stream=true` from behind `starting_after`.",
        _EVENTS,
        "response_id",
        posts=False,
    ),
    "POST /v1/responses/{response_id}/cancel": _foreign("Stop a response", "", _OBJECT, "response_id", posts=False),
    "POST /v1/messages": _foreign("Anthropic's Messages", "https://platform.claude.com/docs/en/api/messages"),
    "GET /v1/models": _foreign(
        "What can be asked for",
        "The models that are known of, the default first, and the aliases; others of a provider may be asked for, too. "
        "As OpenAI lists them; as Anthropic does where `anthropic-version` is sent.",
        {"200": answer("As OpenAI lists them.", _json("ModelList"))},
        posts=False,
    ),
    "GET /v1/models/{model}": _foreign("A model", "By any name that can be asked for.", _OBJECT, "model", posts=False),
    "POST /ui/chat": _foreign("The Vercel AI SDK's chat", "https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol"),
    "GET /ui/chat/{chat_id}/stream": _foreign(
        "Take a chat's answer up again",
        "By the chat's id or the run's: from its beginning, or with `startIndex` behind so many chunks.",
        {**_EVENTS, "204": {"description": "There is none, or it is over."}},
        "chat_id",
        posts=False,
    ),
    "DELETE /ui/chat/{chat_id}/stream": _foreign(
        "Stop a chat's answer", "", {"204": {"description": "None goes on."}}, "chat_id", posts=False
    ),
    "POST /ag-ui": _foreign("AG-UI", "https://docs.ag-ui.com"),
    "POST /ag-ui/{name}": _foreign("AG-UI, with one of a name", "As `/{name}/stream`.", _EVENTS, "name"),
    "POST /lg/threads": _foreign("Name a thread", "Its graph's checkpointer makes it with its first run.", _OBJECT),
    **_of_langgraph("/lg/threads/{thread_id}/runs", "thread_id"),
    **_of_langgraph("/lg/runs"),
}

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
    ),
    "GET /runs/{run_id}": Endpoint(
        "How a run stands",
        "While it goes on, and for a while after its end.",
        {"200": answer("How it stands just now.", _json("RunStatus"))},
        ("unauthorized", "not_found"),
        _SIGNED,
        tag="Runs",
    ),
    "DELETE /runs/{run_id}": Endpoint(
        "Stop a run",
        "Its viewers get `cancelled`. The same twice is the same as once.",
        {"204": {"description": "It has ended, and its upstream is closed."}},
        ("unauthorized", "not_found"),
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
    **FOREIGN,
    "GET /healthz": Endpoint("Whether it is alive", "", {"200": answer("It is: `ok`.", _WORD)}),
    "GET /readyz": Endpoint(
        "Whether it begins runs",
        "With `?verbose` it tells as JSON how the models fare, and wants a key where others do.",
        {
            "200": answer("It does: `ready`.", _WORD | _json("Readiness")),
            "503": answer("It is stopping: `draining`.", _WORD | _json("Readiness")),
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
