"""The OpenAPI document against the service that it describes, and the page to read it with in a real Chromium."""

import gc
import json
import os
import re
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from playwright.sync_api import Page, expect
from starlette.applications import Starlette
from starlette.routing import Mount, Route, WebSocketRoute

from service import create_app
from streaming import events
from streaming.errors import RequestError, ServiceError, UpstreamError
from streaming.settings import Settings
from wires.chat import ChatRequest, decode_body, decode_query
from wires.endpoints import FIELDS
from wires.openapi import ENDPOINTS, Document, path_of

from .access import CRON, KEYS, SECRET, serving
from .asgi import Exchange, ask, ask_json, run
from .client import DEADLINE
from .conftest import Service, Start

pytest_plugins = ["tests.browser"]

Object = dict[str, Any]
KEYED = {"SIDESTREAM_API_KEYS": KEYS}
JSON_TYPE = {"content-type": "application/json"}


def document(target: str = "/openapi.json", **environ: str) -> Object:
    """The document as it is served, with these settings."""
    host = environ.get("SIDESTREAM_ALLOWED_HOSTS", "test")
    exchange = run(ask(create_app(environ), "GET", target, headers={"host": host}))
    assert (exchange.status, exchange.headers["content-type"]) == (200, "application/json")
    assert exchange.headers["cache-control"] == "no-cache"
    told: Object = json.loads(exchange.body)
    return told


def operations(told: Object) -> dict[str, Object]:
    """Each operation, by its method and path."""
    return {f"{method.upper()} {path}": of for path, item in told["paths"].items() for method, of in item.items()}


def walked(value: object) -> Iterator[Object]:
    """Yield every object in a document."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from walked(one)


def resolved(told: Object, reference: str) -> Any:
    found: Any = told
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


SETTINGS: dict[str, dict[str, str]] = {
    "none": {},
    "keys": KEYED,
    "tokens in a cookie": {"SIDESTREAM_JWT_SECRET": SECRET, "SIDESTREAM_JWT_COOKIE": "session"},
    "keys for upstreams, quotas": {"SIDESTREAM_ALLOW_UPSTREAM_KEYS": "true", "SIDESTREAM_RATE_LIMIT": "5"},
    "public metrics": {**KEYED, "SIDESTREAM_PUBLIC_METRICS": "true"},
    "an alias": {"SIDESTREAM_MODELS": '{"fast": ["scripted/echo"]}'},
}
each_setting = pytest.mark.parametrize("environ", SETTINGS.values(), ids=SETTINGS)
OLDER = "/openapi.json?version=3.1"
each_version = pytest.mark.parametrize("target", ["/openapi.json", OLDER], ids=["3.2", "3.1"])


@each_version
@each_setting
def test_the_document_is_valid(environ: dict[str, str], target: str) -> None:
    schemathesis.openapi.from_dict(document(target, **environ)).validate()


@each_setting
def test_every_reference_in_it_leads_somewhere_and_every_part_is_referred_to(environ: dict[str, str]) -> None:
    told = document(**environ)
    references = {one["$ref"] for one in walked(told) if "$ref" in one}
    assert all(resolved(told, reference) for reference in references)
    links = {link["operationId"] for one in walked(told) for link in one.get("links", {}).values()}
    assert links <= {operation["operationId"] for operation in operations(told).values()}
    unused = {
        f"{section}/{name}"
        for section, parts in told["components"].items()
        for name in parts
        if section != "securitySchemes" and f"#/components/{section}/{name}" not in references
    }
    assert unused <= {"responses/Problem401", "parameters/X-Upstream-Key"}


# As 3.1, for generators of clients


def test_it_is_of_the_version_that_is_asked_for_and_else_of_the_newest() -> None:
    targets = ["/openapi.json", "/openapi.json?version=3.2", OLDER]
    assert [document(target)["openapi"] for target in targets] == ["3.2.0", "3.2.0", "3.1.1"]
    assert document(targets[0]) == document(targets[1])


@pytest.mark.parametrize("version", ["", "3", "3.0", "3.1.1", "3.2.0", "4"])
def test_another_version_is_a_problem(version: str) -> None:
    exchange = run(ask(create_app({}), "GET", f"/openapi.json?version={version}"))
    refused = json.loads(exchange.body)
    assert (exchange.status, refused["code"], refused["field"]) == (400, "invalid_request", "version")
    exactly(document(), "Problem").validate(refused)


def test_as_3_1_it_tells_all_else_alike() -> None:
    """What it has no words for, or generators none, is text: the items of a stream, JSON in a query."""

    def as_told(told: Object) -> Object:
        streams = [one for one in walked(told["paths"]) if "itemSchema" in one]
        assert {one.pop("itemSchema")["$ref"].rpartition("/")[2] for one in streams} == {"ServerSentEvent", "EventLine"}
        for one in streams:
            one["schema"] = {"type": "string"}
        for parameter in told["components"]["parameters"].values():
            if "content" in parameter:
                schema = parameter.pop("content")["application/json"]["schema"]
                text = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
                parameter["schema"] = {**text, "description": "JSON, written as text."}
        return {**told, "openapi": "3.1.1"}

    def worded(told: Object) -> Object:
        for one in walked(told["paths"]):
            for media_type, name in (("text/event-stream", "ServerSentEvent"), ("application/x-ndjson", "EventLine")):
                if "description" in one.get(media_type, {}).get("schema", {}):  # else it is another API's
                    assert f"`{name}`" in one[media_type]["schema"].pop("description")
        return told

    assert worded(document(OLDER)) == as_told(document())


def test_in_3_1_every_parameter_has_a_schema_and_a_name_of_its_own_in_code() -> None:
    told = document(OLDER)
    for operation in operations(told).values():
        listed = [resolved(told, one["$ref"]) for one in operation["parameters"]]
        assert all("schema" in one for one in listed)
        as_code = [(one["in"], re.sub(r"[\W_]", "", one["name"]).lower()) for one in listed]
        assert len(set(as_code)) == len(as_code)


def test_every_enumeration_and_constant_says_its_type_and_every_problem_is_the_one() -> None:
    told = document()
    single = [one for one in walked(told["components"]) if "enum" in one or one.get("const") is True]
    assert len(single) > 20
    assert [one for one in single if "type" not in one] == []
    for response in told["components"]["responses"].values():
        assert response["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}


def test_every_route_is_in_it_with_its_methods_and_nothing_else() -> None:
    app = create_app({})
    routes = [route for route in app.routes if not isinstance(route, WebSocketRoute)]
    assert all(isinstance(route, Route) for route in routes)
    told = [(method, path_of(route)) for route in routes if route.include_in_schema for method in route.methods or ()]
    expected = {f"{method} {path}" for method, path in told if method != "HEAD"}
    assert set(operations(document())) == expected
    assert len({operation["operationId"] for operation in operations(document()).values()}) == len(expected)


def test_every_route_but_those_of_files_has_words_and_no_words_are_of_a_route_that_is_gone() -> None:
    told = operations(document())
    assert set(ENDPOINTS) == {name for name, operation in told.items() if operation["tags"] != ["Files"]}
    assert [name for name, operation in told.items() if not operation["summary"]] == []
    files = {path.name for path in Path("web").iterdir()} - {"docs.html"}
    assert {operation["summary"].removeprefix("The file ") for operation in told.values()} & files == files


def test_a_route_that_nobody_has_described_is_told_by_its_own_words() -> None:
    async def teapot(request: object) -> None:
        """Make tea.

        Not coffee.
        """

    made = Document(Settings(), [], is_open=True).make([Route("/tea/{cup}", teapot, methods=["POST"])])
    assert operations(made)["POST /tea/{cup}"]["summary"] == "Make tea."


def test_every_field_of_a_request_is_a_parameter_of_its_url_and_in_its_body_with_words() -> None:
    told = document()
    properties = told["components"]["schemas"]["ChatRequest"]["properties"]
    assert set(properties) == set(ChatRequest.__struct_fields__) == set(FIELDS)
    assert list(properties) == list(FIELDS)
    assert {name: field["description"] for name, field in properties.items()} == FIELDS
    for path in ("/chat/stream", "/stream", "/chat/stream-meta", "/{name}/stream"):
        listed = [resolved(told, one["$ref"]) for one in told["paths"][path]["get"]["parameters"]]
        assert {one["name"] for one in listed if one["in"] == "query"} == {*FIELDS, "last_event_id"}
        body = told["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": "#/components/schemas/ChatRequest"}


TURN = {"role": "user", "content": "Hi"}
VALUES: Object = {
    "stream_mode": ["values", "updates"],
    "include_names": ["a", "b"],
    "messages": [TURN],
    "model": ["a/b", "c/d"],
    "stop": ["a", "b"],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_object"},
    "input": {"topic": ["cats"]},
    "config": {"tags": ["a"]},
    "temperature": 0.5,
    "events": True,
    "thread_id": "t 1",
}


@pytest.mark.parametrize("name", VALUES)
def test_a_field_written_into_a_url_as_it_is_told_is_read_as_in_a_body(name: str) -> None:
    told, value = document()["components"]["parameters"][f"ChatRequest.{name}"], VALUES[name]
    branches = [] if "content" in told else told["schema"].get("anyOf", [told["schema"]])
    if "content" in told or (not isinstance(value, str) and any("contentMediaType" in one for one in branches)):
        written = json.dumps(value)
    else:
        assert isinstance(value, list) == (told.get("explode") is False)
        written = ",".join(value) if isinstance(value, list) else str(value).lower()
    assert decode_query([(name, written)]) == decode_body(json.dumps({name: value}).encode())


def test_how_long_is_the_longest_is_as_it_is_set() -> None:
    limits = {"RUN_TIMEOUT": "50", "FIRST_TOKEN_TIMEOUT": "40", "IDLE_TIMEOUT": "30", "MAX_LINGER": "20"}
    told = document(**{f"SIDESTREAM_{name}": value for name, value in limits.items()})["components"]
    names = {"run_timeout": 50, "first_token_timeout": 40, "idle_timeout": 30, "linger": 20}
    for name, most in names.items():
        assert told["parameters"][f"ChatRequest.{name}"]["schema"]["maximum"] == most
        assert told["schemas"]["ChatRequest"]["properties"][name]["anyOf"][0]["maximum"] == most


def test_the_codes_of_errors_are_all_of_them_and_a_status_has_those_that_have_it() -> None:
    told = document()
    codes = RequestError.codes | UpstreamError.codes | ServiceError.codes
    assert told["components"]["schemas"]["ErrorCode"]["enum"] == list(codes)
    reference = {"$ref": "#/components/schemas/ErrorCode"}
    for name, field in (("Problem", "code"), ("Error", "code"), ("Reset", "reason")):
        assert told["components"]["schemas"][name]["properties"][field] == reference
    for name, response in told["components"]["responses"].items():
        status = int(name.removeprefix("Problem"))
        of_it = re.findall(r"`(\w+)`", response["description"])
        assert {codes[code][0] for code in of_it} == {413 if status == 431 else status}


def test_an_operation_tells_the_codes_that_it_has_of_a_status() -> None:
    told = operations(document())
    assert told["GET /runs/{run_id}"]["responses"]["404"]["description"] == "`not_found`"
    assert told["POST /runs"]["responses"]["404"]["description"] == "`unknown_model`"
    assert told["POST /chat/stream"]["responses"]["404"]["description"] == "`not_found`, `unknown_model`"


# What an event has only at times.
PERHAPS = {
    "start": {"thread_id"},
    "reasoning": {"signature"},
    "tool_call_delta": {"id", "tool"},
    "done": {"skipped_chunks"},
}


def test_every_event_is_an_item_of_a_stream_in_both_wires() -> None:
    told = document()["components"]["schemas"]
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and hasattr(kind, "name")]
    as_text = {"type": "string", "contentMediaType": "application/json"}
    for wire in ("ServerSentEvent", "EventLine"):
        items = {item["properties"]["event"]["const"]: item for item in told[wire]["oneOf"]}
        assert list(items) == [kind.name for kind in kinds]
        for kind in kinds:
            reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
            data = {**as_text, "contentSchema": reference} if wire == "ServerSentEvent" else reference
            assert items[kind.name]["properties"]["data"] == data
            assert set(told[kind.__name__]["properties"]) == set(kind.__struct_encode_fields__)
            assert told[kind.__name__]["description"]
            in_a_graph = {"node", "ns"} if "node" in kind.__struct_fields__ else set()
            optional = in_a_graph | PERHAPS.get(kind.name, set())
            assert set(told[kind.__name__]["properties"]) - set(told[kind.__name__]["required"]) == optional


# What is answered, held against it


def exactly(told: Object, name: str) -> jsonschema_rs.Validator:
    """A validator of one schema, for which fields that are not told of are wrong."""
    closed = json.loads(json.dumps(told["components"]))
    for one in walked(closed):
        if one.get("type") == "object" and "properties" in one:
            one["additionalProperties"] = False
    return jsonschema_rs.validator_for({"$ref": f"#/components/schemas/{name}", "components": closed})


def test_answers_are_as_they_are_told() -> None:
    async def test() -> dict[str, Any]:
        async with serving() as app:
            refusal = await ask_json(app, "/runs", message="")
            created = await ask_json(app, "/runs", message="Hi")
            held = await ask_json(app, "/runs", message="Hi", model="counted/held")
            going = await ask(app, "GET", f"/runs/{json.loads(held.body)['id']}")
            path = f"/runs/{json.loads(created.body)['id']}"
            await ask(app, "GET", f"{path}/events")
            over = await ask(app, "GET", path)
            ready, models = await ask(app, "GET", "/readyz?verbose"), await ask(app, "GET", "/v1/models")
            assert json.loads(going.body)["ending"] is None
            assert json.loads(over.body)["ending"]["done"]
            assert json.loads(ready.body)["candidates"]
            given = {"Problem": [refusal], "RunCreated": [created], "RunStatus": [going, over]}
            return {**given, "Readiness": [ready], "ModelList": [models]}

    told = document()
    for name, exchanges in run(test()).items():
        for exchange in exchanges:
            exactly(told, name).validate(json.loads(exchange.body))


HI, HO = b'{"message":"Hi","model":"counted/held"}', b'{"message":"Ho"}'
KEY = {**JSON_TYPE, "idempotency-key": "k"}
UNKNOWN = f"last_event_id={'0' * 32}-1"
# What has to be set, what is asked (the last of it is refused), by what operation, with what status and code.
REFUSALS: dict[str, tuple[dict[str, str], list[tuple[str, dict[str, str], bytes]], str, int, str]] = {
    "another body": ({}, [("/runs", KEY, HI), ("/runs", KEY, HO)], "POST /runs", 409, "conflict"),
    "no such event": ({}, [(f"/stream?{UNKNOWN}", {}, b"")], "GET /stream", 404, "not_found"),
    "no such model": ({}, [("/runs", JSON_TYPE, b'{"message":"Hi","model":"x"}')], "POST /runs", 404, "unknown_model"),
    "no such name": ({}, [("/x/stream?message=Hi", {}, b"")], "GET /{name}/stream", 404, "unknown_model"),
    "too much": ({"MAX_BODY_BYTES": "9"}, [("/runs", JSON_TYPE, HI)], "POST /runs", 413, "too_large"),
    "too often": (
        {"RATE_LIMIT": "1"},
        [("/runs", JSON_TYPE, HI), ("/chat/stream?message=Hi", {}, b"")],
        "GET /chat/stream",
        429,
        "rate_limited",
    ),
    "too many": (
        {"MAX_RUNS": "1", "MAX_QUEUE": "0"},
        [("/runs", JSON_TYPE, HI), ("/stream", JSON_TYPE, HO)],
        "POST /stream",
        503,
        "overloaded",
    ),
    "no key": ({"API_KEYS": KEYS}, [("/metrics", {}, b"")], "GET /metrics", 401, "unauthorized"),
    "another's key": ({}, [("/runs", {**JSON_TYPE, "x-upstream-key": "k"}, HI)], "POST /runs", 403, "forbidden"),
    "another site": ({}, [("/chat/stream", {"origin": "https://x"}, b"")], "GET /chat/stream", 403, "forbidden"),
    "no such version": ({}, [("/openapi.json?version=4", {}, b"")], "GET /openapi.json", 400, "invalid_request"),
    "another host": ({"ALLOWED_HOSTS": "app.example"}, [("/docs", {}, b"")], "GET /docs", 403, "forbidden"),
}


@pytest.mark.parametrize(("environ", "asked", "name", "status", "code"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_are_told_with_their_codes_and_headers(
    environ: dict[str, str], asked: list[tuple[str, dict[str, str], bytes]], name: str, status: int, code: str
) -> None:
    async def test() -> Exchange:
        async with serving(**environ) as app:
            for target, headers, body in asked:
                exchange = await ask(app, "POST" if body else "GET", target, headers=headers, body=body)
            return exchange

    environ = {f"SIDESTREAM_{setting}": value for setting, value in environ.items()}
    exchange = run(test())
    told = document(**environ)
    answer = operations(told)[name]["responses"][str(status)]
    assert (exchange.status, json.loads(exchange.body)["code"]) == (status, code)
    assert f"`{code}`" in answer["description"]
    assert json.loads(exchange.body)["status"] == status
    exactly(told, "Problem").validate(json.loads(exchange.body))
    headers = resolved(told, answer["$ref"]).get("headers", {})
    always = {header.lower() for header in headers if resolved(told, headers[header]["$ref"])["required"]}
    assert always <= exchange.headers.keys()


def test_that_a_created_run_cannot_do_without_lingering_is_told() -> None:
    told = document()

    def takes(path: str, body: Object) -> bool:
        schema = told["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        return bool(jsonschema_rs.validator_for({**schema, "components": told["components"]}).is_valid(body))

    assert [takes("/runs", {"message": "Hi", "linger": linger}) for linger in (0, 1, None)] == [False, True, True]
    assert takes("/chat/stream", {"message": "Hi", "linger": 0})


SCRIPT = [
    {"think": "Hm. ", "call": {"tool": "look", "args": {"a": 1, "b": [2, 3]}, "id": "1", "result": {"c": None}}},
    {"say": "There it is."},
]
CUT = [{"say": "A"}, {"cut": True}]
ASKED: dict[str, Object] = {
    "done": {"model": "scripted/custom", "provider_options": {"script": SCRIPT}},
    "error": {"model": "scripted/custom", "provider_options": {"script": [{"fail": "upstream_rejected"}]}},
    "reset": {
        "model": ["scripted/custom", "scripted/echo"],
        "provider_options": {"script": CUT},
    },
    "cancelled": {"model": "scripted/echo"},
}


def blocks(body: bytes) -> list[dict[str, str]]:
    """The fields of each server-sent event that has data."""
    found = [dict(line.split(": ", 1) for line in block.split("\n")) for block in body.decode().strip().split("\n\n")]
    return [fields for fields in found if "data" in fields]


@pytest.mark.parametrize("ending", ASKED)
def test_events_are_as_they_are_told(ending: str) -> None:
    async def test() -> tuple[bytes, bytes]:
        app = create_app({"SIDESTREAM_MODEL": "scripted/echo"})
        created = await ask_json(app, "/runs", message="Hi", **ASKED[ending])
        path = f"/runs/{json.loads(created.body)['id']}"
        if ending == "cancelled":
            assert (await ask(app, "DELETE", path)).status == 204
        sse = await ask(app, "GET", f"{path}/events")
        lines = await ask(app, "GET", f"{path}/events", headers={"accept": "application/x-ndjson"})
        return sse.body, lines.body

    sse, lines = run(test())
    told = document()
    names = []
    for fields in blocks(sse):
        exactly(told, "ServerSentEvent").validate(fields)
        kind = next(kind for kind in vars(events).values() if getattr(kind, "name", None) == fields["event"])
        exactly(told, kind.__name__).validate(json.loads(fields["data"]))
        names.append(fields["event"])
    assert ending in names
    for line in filter(None, lines.decode().split("\n")):
        exactly(told, "EventLine").validate(json.loads(line))


# Who may


PLACES = {"{run_id}": "0" * 32, "{name}": "counted"}


def test_a_key_is_wanted_where_it_is_told_that_it_is_and_nowhere_else() -> None:
    async def test() -> dict[str, int]:
        statuses = {}
        async with serving(**KEYED) as app:
            for name in operations(told):
                method, _, path = name.partition(" ")
                path = re.sub(r"{\w+}", lambda found: PLACES.get(found[0], "any"), path)
                exchange = await ask(app, method, path, headers=JSON_TYPE, body=b"{}")
                statuses[name] = exchange.status
        return statuses

    told = document(**KEYED)
    wanting = {name for name, operation in operations(told).items() if {} not in operation.get("security", [{}])}
    assert {name for name, status in run(test()).items() if status == 401} == wanting
    assert {name for name, operation in operations(told).items() if "401" in operation["responses"]} - wanting == {
        "GET /readyz"
    }


def test_the_examples_of_other_wires_are_served() -> None:
    """But for graphs, of which there are none here; the model is a scripted one."""

    async def test() -> dict[str, int]:
        statuses, app = {}, create_app({})
        for name, operation in operations(told).items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            if operation["tags"] == ["Other wires"] and body is not None and "assistant_id" not in body:
                text = json.dumps(body).replace('"local"', '"scripted/echo"')
                path = name.partition(" ")[2].replace("{name}", "scripted")
                statuses[name] = (await ask(app, "POST", path, headers=JSON_TYPE, body=text.encode())).status
        return statuses

    told = document()
    statuses = run(test())
    assert len(statuses) == 7
    assert set(statuses.values()) == {200}


def test_who_may_is_told_only_where_not_everybody_may() -> None:
    assert "securitySchemes" not in document()["components"]
    assert [name for name, operation in operations(document()).items() if "security" in operation] == []
    told = document(**SETTINGS["tokens in a cookie"])
    assert told["components"]["securitySchemes"]["cookie"]["name"] == "session"
    signed = {name for name, operation in operations(told).items() if {"signed": []} in operation.get("security", [])}
    assert signed == {"GET /runs/{run_id}", "DELETE /runs/{run_id}", "GET /runs/{run_id}/events"}
    public = operations(document(**SETTINGS["public metrics"]))
    assert "security" not in public["GET /metrics"]


def test_it_needs_no_key_and_names_no_model_where_those_need_one() -> None:
    alias = {"SIDESTREAM_MODELS": '{"hunter2-fast": ["scripted/echo"]}'}
    assert "hunter2-fast" in document(**alias)["components"]["parameters"]["name"]["schema"]["enum"]
    told = document(**alias, **KEYED)
    assert "enum" not in told["components"]["parameters"]["name"]["schema"]
    assert "hunter2" not in json.dumps(told)


def test_a_key_for_the_upstream_is_a_parameter_where_it_is_allowed() -> None:
    reference = {"$ref": "#/components/parameters/X-Upstream-Key"}
    allowed = document(SIDESTREAM_ALLOW_UPSTREAM_KEYS="true")
    assert [reference in operations(one)["POST /runs"]["parameters"] for one in (document(), allowed)] == [False, True]


def test_its_server_is_where_the_app_is_mounted() -> None:
    async def test() -> list[str]:
        inner = create_app({})
        app = Starlette(routes=[Mount("/llm", app=inner), Mount("/", app=inner)])
        answers = [await ask(app, "GET", f"{path}/openapi.json") for path in ("/llm", "", "/llm")]
        return [json.loads(exchange.body)["servers"][0]["url"] for exchange in answers]

    assert run(test()) == ["/llm", "/", "/llm"]


def test_one_is_kept_however_many_paths_the_app_is_mounted_at() -> None:
    async def test() -> tuple[int, int]:
        app = Starlette(routes=[Mount("/t/{tenant}", app=create_app({}))])

        async def asked(tenants: range) -> int:
            for tenant in tenants:
                exchange = await ask(app, "GET", f"/t/{tenant}/openapi.json")
                assert json.loads(exchange.body)["servers"] == [{"url": f"/t/{tenant}"}]
            gc.collect()
            return len(exchange.body)

        size = await asked(range(2))
        tracemalloc.start()
        try:
            await asked(range(2, 12))
            return size, tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    size, grown = run(test())
    assert grown < size


# The page, in a browser; last, since while it is open no other event loop can run here


@pytest.fixture
def complaints(tab: Page) -> list[str]:
    """What the page's console says is an error or a warning."""
    told: list[str] = []
    tab.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
    return told


def opened(tab: Page, port: int, path: str = "/docs") -> Page:
    tab.goto(f"http://127.0.0.1:{port}{path}")
    expect(tab.locator("#RunStatus")).to_be_attached()
    return tab


def test_the_page_shows_every_operation_event_and_schema_and_complains_of_nothing(
    tab: Page, service: Service, complaints: list[str]
) -> None:
    opened(tab, service.port)
    told = tab.evaluate("fetch('openapi.json').then((answer) => answer.json())")
    shown = tab.locator("section.told h3").all_text_contents()
    assert {text for text in shown if " " not in text} >= {
        item["properties"]["event"]["const"] for item in told["components"]["schemas"]["EventLine"]["oneOf"]
    }
    for name, operation in operations(told).items():
        method, _, path = name.partition(" ")
        assert f"{method}{path}{operation['summary']}" in shown
    assert len(shown) == len(operations(told)) + len(told["components"]["schemas"])
    links = tab.locator("main a").evaluate_all("(all) => all.map((one) => one.getAttribute('href').slice(1))")
    assert set(links) <= set(tab.locator("section").evaluate_all("(all) => all.map((one) => one.id)"))
    assert len(links) > 50
    assert complaints == []


def test_a_request_is_tried_on_the_page_and_its_events_come(tab: Page, service: Service, complaints: list[str]) -> None:
    told = opened(tab, service.port).locator("#get_readyz")
    told.get_by_role("button", name="Try it").click()
    expect(told.locator(".got pre")).to_contain_text("200 text/plain; charset=utf-8")
    expect(told.locator(".got pre")).to_contain_text("ready")
    assert complaints == []


def test_the_page_shows_a_command_that_does_what_it_says(tab: Page, start_service: Start) -> None:
    service = start_service(SIDESTREAM_MODEL="scripted/echo", **KEYED)
    command = opened(tab, service.port).locator("#post_runs .example pre").text_content()
    assert command is not None
    environ = {"PATH": os.environ["PATH"], "KEY": CRON}
    done = subprocess.run(["sh", "-c", command], env=environ, capture_output=True, check=True, timeout=DEADLINE)
    assert set(json.loads(done.stdout)) == {"id", "events_url", "status_url", "expires"}
    assert tab.locator("#get_chat_stream").get_by_role("button", name="Try it").count() == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_as_wide_as_its_window(tab: Page, service: Service, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 800})
    opened(tab, service.port)
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
