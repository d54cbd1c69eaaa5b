"""The schemas and parameters of the OpenAPI document, read off the structs; what those cannot say is put in.

A field of the request is a parameter of the query as well: lists by commas, objects as JSON (chat.py decodes them).
"""

import inspect
from typing import Any

import msgspec
from msgspec import UNSET

from streaming import events
from streaming.errors import RequestError, ServiceError, UpstreamError
from streaming.settings import Settings

from . import answers, chat
from .access import UPSTREAM_KEY
from .chat import ChatRequest
from .endpoints import EXAMPLE, FIELDS, JSON, RESUMING, Object, ref
from .event_id import ID
from .resource import IDEMPOTENCY_KEY

VERSIONS = ("3.2", "3.1")  # of OpenAPI, the newest first
ANSWERS = (answers.RunCreated, answers.RunStatus, answers.ModelList, answers.Readiness, answers.Problem)
CODES = RequestError.codes | UpstreamError.codes | ServiceError.codes
RUN_ID = ID.pattern[1:].partition(")")[0]
_NAMES = ChatRequest.__struct_encode_fields__
REQUEST = [*filter(_NAMES.__contains__, FIELDS), *(name for name in _NAMES if name not in FIELDS)]  # as readers want it
TERMINAL = [ref(kind.__name__) for kind in events.KINDS.values() if issubclass(kind, events.Terminal)]


def schemas(settings: Settings) -> dict[str, Object]:
    """Describe the request, the events and the answers; what msgspec cannot say of them is put in."""
    _, told = msgspec.json.schema_components(
        [ChatRequest, *events.KINDS.values(), *ANSWERS], ref_template="#/components/schemas/{name}"
    )
    sent: list[type[msgspec.Struct]] = [*events.KINDS.values(), events.Usage]
    for kind in sent:
        _as_sent(told[kind.__name__], kind)
    for schema in told.values():
        if "description" in schema:  # a docstring, indented as it stands in the code
            schema["description"] = inspect.cleandoc(schema["description"])
        _tell_types(schema)
    _tell_fields(told["ChatRequest"], settings)
    for name, code in (("Error", "code"), ("Reset", "reason"), ("Problem", "code")):
        told[name]["properties"][code] = ref("ErrorCode")
    told["RunStatus"]["properties"]["ending"] = {"anyOf": [*TERMINAL, {"type": "null"}]}
    told["RunStatus"]["properties"]["id"] = told["RunCreated"]["properties"]["id"] = _string(f"^{RUN_ID}$")
    del told["Event"]
    return {
        **told,
        "ErrorCode": {"type": "string", "enum": list(CODES), "description": "What went wrong, for a program."},
        "EventId": _string(f"^{ID.pattern}$", "`<run>-<number>`: an event's place in its run."),
        "ServerSentEvent": {"oneOf": [_item(name, _as_text(kind)) for name, kind in events.KINDS.items()]},
        "EventLine": {"oneOf": [_item(name, ref(kind.__name__)) for name, kind in events.KINDS.items()]},
    }


def _as_sent(schema: Object, kind: type[msgspec.Struct]) -> None:
    """Say which fields are always there: of what we send all, but those that are left out where they are unset."""
    fields = msgspec.structs.fields(kind)
    schema["required"] = [field.encode_name for field in fields if field.default is not UNSET]
    for described in schema["properties"].values():
        described.pop("default", None)


def _tell_types(part: Any) -> None:
    """Say the type of what is one of some values, and of a single one that it is constant: generators go by these."""
    if isinstance(part, list):
        for one in part:
            _tell_types(one)
    elif isinstance(part, dict):
        match part.get("enum"):
            case [True]:
                del part["enum"]
                part |= {"type": "boolean", "const": True}
            case [str(), *_]:
                part["type"] = "string"
        _tell_types(list(part.values()))


def _tell_fields(request: Object, settings: Settings) -> None:
    """Put words to the request's fields, in the order of the words, and how long is the longest here."""
    properties = request["properties"]
    for name in REQUEST:
        properties[name] = properties.pop(name) | {"description": FIELDS.get(name, "")}
    for name in ("run_timeout", "first_token_timeout", "idle_timeout", "linger"):
        number = properties[name]["anyOf"][0]
        number["maximum"] = settings.max_linger if name == "linger" else getattr(settings, name)


def _string(pattern: str, text: str = "") -> Object:
    return {"type": "string", "pattern": pattern, **({"description": text} if text else {})}


def _as_text(kind: type[events.Event]) -> Object:
    return {"type": "string", "contentMediaType": JSON, "contentSchema": ref(kind.__name__)}


def _item(name: str, data: Object) -> Object:
    properties = {"event": {"const": name}, "id": ref("EventId"), "data": data}
    return {"type": "object", "properties": properties, "required": list(properties)}


# Parameters


def parameter(name: str, place: str, schema: Object, text: str = "") -> Object:
    told = {"name": name, "in": place, "required": place == "path", "schema": schema}
    return told | ({"description": text} if text else {})


def field(name: str, schema: Object) -> Object:
    """Describe a field of the request as a parameter of the query: lists by commas, objects as JSON."""
    branches = [one for one in schema.get("anyOf", [schema]) if one != {"type": "null"}]
    told = {"name": name, "in": "query", "description": schema["description"]}
    if name in EXAMPLE:
        told["example"] = EXAMPLE[name]
    if name in chat.JSON_PARAMETERS:
        return told | {"content": {JSON: {"schema": _any_of(branches)}}}
    if name in chat.LISTS:
        (array,) = [one for one in branches if one.get("type") == "array"]
        return told | {"style": "form", "explode": False, "schema": array}
    if name in chat.JSON_OR_TEXT:
        return told | {"schema": as_json({})}
    if name in chat.PERHAPS_JSON:
        branches = [one if _is_text(one) else as_json(one) | {"pattern": r"^[\[{]"} for one in branches]
    return told | {"schema": _any_of(branches)}


def _is_text(schema: Object) -> bool:
    return "enum" in schema or schema.get("type") == "string"


def as_json(schema: Object) -> Object:
    return {"type": "string", "contentMediaType": JSON, "contentSchema": schema}


def _any_of(branches: list[Object]) -> Object:
    return branches[0] if len(branches) == 1 else {"anyOf": branches}


_SEEN = _string(f"^({ID.pattern})?$")
_SEEN_TEXT = "The id of the last event that was seen: go on behind it."
PARAMETERS = [
    parameter("Last-Event-ID", "header", _SEEN, _SEEN_TEXT + " An EventSource sends it itself."),
    parameter(RESUMING, "query", _SEEN, _SEEN_TEXT + " The header counts before it."),
    parameter(
        "Idempotency-Key",
        "header",
        {"type": "string", "pattern": f"^{IDEMPOTENCY_KEY}$"},
        "The same request sent again under its key finds the run of the first.",
    ),
    parameter(
        "X-Upstream-Key",
        "header",
        {"type": "string", "pattern": f"^{UPSTREAM_KEY}$"},
        "A key of the caller's own for the provider.",
    ),
    parameter("run_id", "path", _string(f"^{RUN_ID}$"), "The run's id."),
    *(
        parameter(name, "path", {"type": "string"}, text)
        for name, text in (
            ("response_id", "`resp_<run>`."),
            ("model", "Its name; it may have slashes."),
            ("chat_id", "The chat's id, or its run's."),
            ("thread_id", "The thread's id."),
        )
    ),
    parameter("expires", "query", {"type": "string"}, "Of a signed URL: until when it counts."),
    parameter("signature", "query", {"type": "string"}, "Of a signed URL."),
    parameter("verbose", "query", {"type": "string"}, "Tell of the models, whatever its value."),
    parameter(
        "version",
        "query",
        {"type": "string", "enum": [*VERSIONS], "default": VERSIONS[0]},
        "Of OpenAPI. As 3.1 it tells the same, but of streams and of JSON in a query no more than that they are text.",
    ),
]
