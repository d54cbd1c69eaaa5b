"""The service told to machines: its OpenAPI document, made of the app's routes, the structs and endpoints.py.

OpenAPI 3.2, since it is the first with a word for the items of a stream (`itemSchema`). As 3.1, for generators of
clients that can read no more, it is the same with less said of streams and of JSON in a query.
It is public, so where a key is needed it names no models: those are told by /v1/models.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from streaming.errors import RequestError
from streaming.settings import Settings

from .chat import json_line
from .endpoints import DESCRIPTION, JSON, Endpoint, Object, answer, ref
from .endpoints import ENDPOINTS as OUR_OWN
from .foreign_endpoints import FOREIGN
from .page import MEDIA_TYPES
from .schemas import CODES, PARAMETERS, REQUEST, RUN_ID, VERSIONS, as_json, field, parameter, schemas

PROBLEM = "application/problem+json"
ENDPOINTS = OUR_OWN | FOREIGN
TOO_LONG = 431  # of a URL, by the command's server (server.py)
TAGS = ("Chat", "Runs", "Other wires", "Operations", "Files")
EVERYWHERE = ("forbidden", "overloaded", "internal")  # another host, another site; all connections taken; a bug


class Document:
    """The document of one app; made when it is first asked for, in each version, for all paths the app is mounted at.

    `names` are what `/{name}/stream` may be asked for. `is_open`: nobody needs a key.
    """

    def __init__(self, settings: Settings, names: Sequence[str], *, is_open: bool) -> None:
        self._settings = settings
        self._names = names
        self._is_open = is_open
        self._made: dict[str, Object] = {}

    def response(self, request: Request) -> Response:
        """Answer in the version that is asked for. Raises RequestError where that is none of ours."""
        version = request.query_params.get("version", VERSIONS[0])
        if version not in VERSIONS:
            raise RequestError("invalid_request", f"`version` can be {' or '.join(VERSIONS)}.", field="version")
        if version not in self._made:
            told = self.make(request.app.routes)
            self._made[version] = told if version == VERSIONS[0] else _as_3_1(told)
        here = {"servers": [{"url": request.scope.get("root_path") or "/"}]}
        return Response(json_line(self._made[version] | here), headers={"Cache-Control": "no-cache"}, media_type=JSON)

    def make(self, routes: Iterable[BaseRoute]) -> Object:
        """Describe these routes, in the newest version."""
        paths: dict[str, Object] = {}
        for route in routes:
            if isinstance(route, Route) and route.include_in_schema:
                told = {method.lower(): self._operation(method, route) for method in _methods(route)}
                paths.setdefault(path_of(route), {}).update(told)
        described = schemas(self._settings)
        return {
            "openapi": "3.2.0",
            "info": {
                "title": "Sidestream",
                "version": version(),
                "description": DESCRIPTION,
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": "/"}],
            "tags": [{"name": name} for name in TAGS],
            "paths": paths,
            "components": {
                "schemas": described,
                "parameters": dict(self._parameters(described["ChatRequest"])),
                "headers": HEADERS,
                "responses": _problems(),
                **({} if self._is_open else {"securitySchemes": dict(self._schemes())}),
            },
        }

    def _operation(self, method: str, route: Route) -> Object:
        path = path_of(route)
        endpoint = ENDPOINTS.get(f"{method} {path}") or _undescribed(route)
        codes = {*endpoint.codes, *EVERYWHERE} - ({"unauthorized"} if self._lets_all(route) else set())
        operation: Object = {
            "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
            "tags": [endpoint.tag],
            "summary": endpoint.summary,
            "description": endpoint.text,
            "parameters": [ref(name, "parameters") for name in self._names_of(endpoint)],
            "responses": endpoint.answers if endpoint.is_foreign else _with_problems(endpoint, codes),
        }
        if endpoint.body:
            content = {JSON: {"schema": endpoint.body, "example": endpoint.example}}
            operation["requestBody"] = {"required": True, "content": content}
        if "unauthorized" in codes:
            operation["security"] = list(self._security(endpoint))
        return operation

    def _security(self, endpoint: Endpoint) -> Iterator[Object]:
        """Yield the ways in, of which any will do."""
        if "verbose" in endpoint.parameters:  # without it no key is needed
            yield {}
        for name, _ in self._schemes():
            if name != "signed" or "signature" in endpoint.parameters:
                yield {name: []}

    def _lets_all(self, route: Route) -> bool:
        return self._is_open or (self._settings.public_metrics and route.path in ("/metrics", "/readyz"))

    def _names_of(self, endpoint: Endpoint) -> Iterator[str]:
        if endpoint.fields:
            yield from (f"ChatRequest.{name}" for name in REQUEST)
        for name in endpoint.parameters:
            if name != "X-Upstream-Key" or self._settings.allow_upstream_keys:
                yield name

    def _schemes(self) -> Iterator[tuple[str, Object]]:
        yield "bearer", {"type": "http", "scheme": "bearer", "description": "An API key, or a JSON Web Token."}
        yield "key", {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        if cookie := self._settings.jwt_cookie:
            yield "cookie", {"type": "apiKey", "in": "cookie", "name": cookie, "description": "A JSON Web Token."}
        text = "Of the URLs that `POST /runs` has answered with, together with their `expires`."
        yield "signed", {"type": "apiKey", "in": "query", "name": "signature", "description": text}

    def _parameters(self, request: Object) -> Iterator[tuple[str, Object]]:
        for name, schema in request["properties"].items():
            yield f"ChatRequest.{name}", field(name, schema)
        name = {"type": "string", "description": "One of a provider, a graph, a chain or an alias."}
        for one in (*PARAMETERS, parameter("name", "path", name | ({"enum": self._names} if self._is_open else {}))):
            if one["name"] != "X-Upstream-Key" or self._settings.allow_upstream_keys:
                yield one["name"], one


def path_of(route: Route) -> str:
    """Return its path as OpenAPI has it: what a parameter may hold is told elsewhere."""
    return re.sub(r":\w+}", "}", route.path)


def _methods(route: Route) -> list[str]:
    return sorted((route.methods or set()) - {"HEAD"})


def _undescribed(route: Route) -> Endpoint:
    """Describe a route by its own words; a file's by its name."""
    endpoint = route.endpoint
    name = endpoint.keywords.get("name") if isinstance(endpoint, partial) else None
    if name is None:
        return Endpoint((endpoint.__doc__ or route.name).partition("\n")[0], "", {"200": {"description": "Done."}})
    content = {MEDIA_TYPES["." + name.rpartition(".")[2]]: {"schema": {"type": "string"}}}
    return Endpoint(f"The file {name}", "", {"200": answer("The file.", content)}, tag="Files")


def version() -> str:
    """Return our own version, 0 where we are not installed."""
    from importlib import metadata  # here, since it takes as long as all of this

    try:
        return metadata.version("sidestream")
    except metadata.PackageNotFoundError:
        return "0"


def _header(text: str, schema: Object, *, always: bool = False) -> Object:
    return {"description": text, "required": always, "schema": {"type": "string"} | schema}


HEADERS = {
    "Location": _header("The path of the run.", {"pattern": f"/runs/{RUN_ID}$"}, always=True),
    "Content-Location": _header("The path of the run.", {"pattern": f"/runs/{RUN_ID}$"}, always=True),
    "Retry-After": _header("When to try again, seconds.", {"pattern": "^[0-9]+$"}, always=True),
    "RateLimit": _header("What is left of the quota, where there is one.", {}),
    "RateLimit-Policy": _header("The quota.", {}),
    "WWW-Authenticate": _header("How a key is shown.", {}, always=True),
}
HEADERS_OF = {401: ["WWW-Authenticate"], 429: ["Retry-After", "RateLimit", "RateLimit-Policy"], 503: ["Retry-After"]}


def _problems() -> dict[str, Object]:
    """Describe the problem of each status, by the codes that have it."""
    told = {code for endpoint in ENDPOINTS.values() for code in endpoint.codes} | set(EVERYWHERE)
    by_status: dict[int, list[str]] = {TOO_LONG: ["too_large"]}
    for code, (status, _) in CODES.items():
        if code in told:
            by_status.setdefault(status, []).append(code)
    return {f"Problem{status}": _problem(status, codes) for status, codes in sorted(by_status.items())}


def _problem(status: int, codes: list[str]) -> Object:
    text = f"{HTTPStatus(status).phrase}: {_named(codes)}"
    return answer(text, {PROBLEM: {"schema": ref("Problem")}}, HEADERS_OF.get(status, ()))


def _with_problems(endpoint: Endpoint, codes: Iterable[str]) -> Object:
    """Add the problems of these codes to its answers; where one of those has the same status, both are told."""
    by_status = {TOO_LONG: {"too_large"}} if endpoint.fields else {}
    for code in codes:
        by_status.setdefault(CODES[code][0], set()).add(code)
    told = {f"{status}": _told_by(by_status[status], f"Problem{status}") for status in sorted(by_status)}
    for status, known in endpoint.answers.items():
        if status in told:
            known = known | {"content": known["content"] | {PROBLEM: {"schema": ref("Problem")}}}
        told[status] = known
    return dict(sorted(told.items()))


def _told_by(codes: Iterable[str], response: str) -> Object:
    """Refer to a problem, with the codes that it can have here."""
    return ref(response, "responses") | {"description": _named(codes)}


def _named(codes: Iterable[str]) -> str:
    return ", ".join(f"`{code}`" for code in sorted(codes))


# As 3.1

STREAMED = {
    "ServerSentEvent": "Server-sent events, each a `ServerSentEvent`; comments are pings.",
    "EventLine": "Lines of JSON, each an `EventLine`; empty ones are pings.",
}


def _as_3_1(told: Object) -> Object:
    """Tell what 3.1 has no words for as text; and so JSON in a query, for which few generators have any."""
    parameters = {name: _with_schema(one) for name, one in told["components"]["parameters"].items()}
    components = told["components"] | {"parameters": parameters}
    return told | {"openapi": "3.1.1", "paths": _as_text(told["paths"]), "components": components}


def _as_text(part: Any) -> Any:
    """Copy a part of the paths, each stream in it as text."""
    if not isinstance(part, dict):
        return part
    if "itemSchema" in part:
        items = part["itemSchema"]["$ref"].rpartition("/")[2]
        return {"schema": {"type": "string", "description": STREAMED[items]}}
    return {name: _as_text(one) for name, one in part.items()}


def _with_schema(told: Object) -> Object:
    if "content" not in told:
        return told
    schema = as_json(told["content"][JSON]["schema"]) | {"description": "JSON, written as text."}
    return {name: one for name, one in told.items() if name != "content"} | {"schema": schema}
