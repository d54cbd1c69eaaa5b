"""Whose pages may use the service: the rule as a table, and over HTTP, where a refusal must not start a run."""

import json
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.datastructures import Headers

from streaming.errors import RequestError
from streaming.events import Finish, Token
from streaming.request import Emit, ProviderSettings, RunRequest
from wires.origin import check_origin

from .asgi import Exchange, ask, make_app, run_ahead, time_passes

HOST = "chat.example:8000"
ALLOWED = ["https://app.example"]
REFUSAL = "Pages of other sites may not use this service (SIDESTREAM_ALLOWED_ORIGINS)."


class Counted:
    """A provider that counts its runs."""

    runs: ClassVar[int] = 0

    def __init__(self, settings: ProviderSettings, upstream: Any) -> None:
        pass

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        Counted.runs += 1
        emit([Token("Hi"), Finish("stop")])


OWN: dict[str, dict[str, str]] = {
    "a program": {},
    "its own page, by fetch metadata": {"sec-fetch-site": "same-origin"},
    "its own page, with its origin": {"sec-fetch-site": "same-origin", "origin": f"http://{HOST}"},
    "the address bar": {"sec-fetch-site": "none"},
    "its own page, in an older browser": {"origin": f"http://{HOST}"},
    "its own page, behind a proxy that ends TLS": {"origin": f"https://{HOST}"},
    "its own page, by its address alone": {"referer": f"http://{HOST}/?x=1"},
    "an allowed page": {"origin": "https://app.example"},
    "an allowed page, by fetch metadata": {"origin": "https://app.example", "sec-fetch-site": "cross-site"},
}
FOREIGN: dict[str, dict[str, str]] = {
    "another site's page": {"origin": "https://evil.example"},
    "another site's page, by fetch metadata": {"sec-fetch-site": "cross-site"},
    "another site's image tag": {"sec-fetch-site": "cross-site", "referer": "https://evil.example/"},
    "a sibling of the site": {"sec-fetch-site": "same-site", "origin": "http://other.example:8000"},
    "fetch metadata that nobody knows": {"sec-fetch-site": "to-come"},
    "empty fetch metadata": {"sec-fetch-site": ""},
    "an older browser's image tag": {"referer": "https://evil.example/"},
    "another port": {"origin": "http://chat.example:9000"},
    "no port": {"origin": "http://chat.example"},
    "another host with ours before it": {"origin": f"http://{HOST}.evil.example"},
    "another host with ours as its user": {"origin": f"http://{HOST}@evil.example"},
    "another host with ours as its path": {"referer": f"http://evil.example/{HOST}"},
    "a sandboxed page": {"origin": "null"},
    "a sandboxed page that came from ours": {"origin": "null", "referer": f"http://{HOST}/"},
    "an allowed site by another scheme": {"origin": "http://app.example"},
    "a host below an allowed one": {"origin": "https://x.app.example"},
    "an allowed site as referer only": {"referer": "https://app.example/"},
    "a foreign origin with fetch metadata": {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
    "our host without a scheme": {"origin": HOST},
    "no address at all": {"origin": "nonsense"},
    "an address that is broken": {"origin": "http://["},
    "a referer that is broken": {"referer": "http://[::1"},
}


@pytest.mark.parametrize("headers", OWN.values(), ids=OWN)
def test_its_own_pages_allowed_ones_and_programs_may(headers: dict[str, str]) -> None:
    check_origin(Headers({"host": HOST, **headers}), ALLOWED)


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_other_sites_pages_may_not(headers: dict[str, str]) -> None:
    with pytest.raises(RequestError) as raised:
        check_origin(Headers({"host": HOST, **headers}), ALLOWED)
    assert (raised.value.code, raised.value.text) == ("forbidden", REFUSAL)


def test_where_nobody_is_allowed_an_allowed_page_is_another_sites() -> None:
    with pytest.raises(RequestError):
        check_origin(Headers({"host": HOST, "origin": "https://app.example"}), [])


@settings(deadline=None)
@given(st.text("htps:/[]@.chat.example:8000", max_size=30))
def test_no_origin_but_its_own_is_let_in_whatever_it_looks_like(origin: str) -> None:
    try:
        check_origin(Headers({"host": HOST, "origin": origin}), ALLOWED)
    except RequestError:
        return
    assert origin in ("", *ALLOWED) or origin.partition("//")[2].partition("/")[0] == HOST


async def app() -> Starlette:
    providers = json.dumps({"counted": {"use": "tests.test_origin:Counted", "models": ["m"]}})
    return await make_app(SIDESTREAM_PROVIDERS=providers, SIDESTREAM_ALLOWED_ORIGINS="https://app.example")


REQUESTS = [
    ("GET", "/chat/stream?message=Hi"),
    ("HEAD", "/chat/stream?message=Hi"),
    ("GET", "/stream?message=Hi"),
    ("GET", "/chat/stream-meta?message=Hi"),
    ("GET", "/counted/stream?message=Hi"),
    ("POST", "/chat/stream"),
    ("POST", "/counted/stream"),
]


async def ask_as(app: Starlette, method: str, target: str, headers: dict[str, str]) -> Exchange:
    headers = {"host": HOST, "content-type": "application/json", **headers}
    return await ask(app, method, target, headers=headers, body=b'{"message":"Hi"}' if method == "POST" else b"")


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_a_refused_page_gets_a_problem_and_starts_no_run(headers: dict[str, str]) -> None:
    async def test() -> list[Exchange]:
        served = await app()
        exchanges = [await ask_as(served, method, target, headers) for method, target in REQUESTS]
        await time_passes(1)
        return exchanges

    before = Counted.runs
    exchanges = run_ahead(test())
    assert [exchange.status for exchange in exchanges] == [403] * len(REQUESTS)
    assert {exchange.headers["content-type"] for exchange in exchanges} == {"application/problem+json"}
    assert {exchange.body for exchange, (method, _) in zip(exchanges, REQUESTS, strict=True) if method != "HEAD"} == {
        json.dumps(
            {"type": "about:blank", "title": "Forbidden", "status": 403, "detail": REFUSAL, "code": "forbidden"},
            separators=(",", ":"),
        ).encode()
    }
    assert Counted.runs == before


@pytest.mark.parametrize("headers", OWN.values(), ids=OWN)
def test_an_own_page_is_served(headers: dict[str, str]) -> None:
    async def test() -> list[int]:
        served = await app()
        return [(await ask_as(served, method, target, headers)).status for method, target in REQUESTS]

    before = Counted.runs
    assert run_ahead(test()) == [200] * len(REQUESTS)
    assert Counted.runs - before >= len([method for method, _ in REQUESTS if method != "HEAD"])


def cors(exchange: Exchange) -> dict[str, str]:
    return {
        name: value for name, value in exchange.headers.items() if name.startswith("access-control") or name == "vary"
    }


def asked(method: str, target: str, headers: dict[str, str]) -> Exchange:
    async def test() -> Exchange:
        return await ask_as(await app(), method, target, headers)

    return run_ahead(test())


@pytest.mark.parametrize(
    ("method", "target"), [("GET", "/chat/stream?message=Hi"), ("POST", "/chat/stream"), ("GET", "/v1/models")]
)
def test_an_allowed_page_may_read_its_answer_and_send_its_cookies(method: str, target: str) -> None:
    exchange = asked(method, target, {"origin": "https://app.example"})
    assert (exchange.status, cors(exchange)) == (
        200,
        {
            "access-control-allow-origin": "https://app.example",
            "access-control-allow-credentials": "true",
            "access-control-expose-headers": "Location, Content-Location, Retry-After, RateLimit, RateLimit-Policy, "
            "X-Vercel-AI-UI-Message-Stream, X-Workflow-Run-Id, X-Workflow-Stream-Tail-Index",
            "vary": "Origin",
        },
    )


def test_an_allowed_page_may_read_a_problem_too() -> None:
    exchange = asked("GET", "/chat/stream", {"origin": "https://app.example"})
    assert exchange.status == 400
    assert cors(exchange)["access-control-allow-origin"] == "https://app.example"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_allowed_page_is_told_that_it_may_post_json(method: str) -> None:
    headers = {
        "origin": "https://app.example",
        "access-control-request-method": method,
        "access-control-request-headers": "content-type, last-event-id",
    }
    exchange = asked("OPTIONS", "/chat/stream", headers)
    told = cors(exchange)
    assert exchange.status == 200
    assert told["access-control-allow-origin"] == "https://app.example"
    assert told["access-control-allow-credentials"] == "true"
    assert method in told["access-control-allow-methods"].split(", ")
    assert {"content-type", "last-event-id"} <= set(told["access-control-allow-headers"].lower().split(", "))
    assert "Origin" in told["vary"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://app.example"])
def test_another_sites_page_is_told_nothing_that_lets_it_read(origin: str) -> None:
    preflight = {"origin": origin, "access-control-request-method": "POST"}
    for method, target, headers in [
        ("OPTIONS", "/chat/stream", preflight),
        ("GET", "/chat/stream?message=Hi", {"origin": origin}),
        ("GET", "/v1/models", {"origin": origin}),
    ]:
        assert "access-control-allow-origin" not in cors(asked(method, target, headers))


def test_without_allowed_origins_nothing_is_said_of_any() -> None:
    async def test() -> Exchange:
        return await ask(await make_app(), "GET", "/v1/models", headers={"origin": "https://app.example"})

    assert cors(run_ahead(test())) == {}
