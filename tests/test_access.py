"""Who may do what: what needs a key and what none, whose a run is on each way to it, and that no key is repeated."""

import hmac
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Match

from service import create_service
from streaming.errors import RequestError, SettingsError
from wires.access import Access

from .access import (
    COOKIE,
    CRON,
    KEYS,
    SECRET,
    WEB,
    WEB_NEXT,
    Counted,
    bearer,
    claims,
    jwks,
    placed,
    serving,
    token,
    unread,
)
from .asgi import Exchange, ask, run_ahead, service_of
from .client import Client, get, post
from .conftest import Service, Start, eventually
from .sockets import UPGRADE, HandSocket, talk

BOTH = {"SIDESTREAM_API_KEYS": KEYS, "SIDESTREAM_JWT_SECRET": SECRET, "SIDESTREAM_JWT_COOKIE": COOKIE}
UNKNOWN = "0" * 32
JSON = {"content-type": "application/json"}
BODY = b'{"message":"Hi"}'


async def send(app: Any, method: str, target: str, headers: dict[str, str] | None = None) -> Exchange:
    body = BODY if method == "POST" else b""
    return await ask(app, method, target, headers={**JSON, **(headers or {})}, body=body)


async def begin(app: Any, shown: str, **body: object) -> dict[str, Any]:
    """Start a run by POST /runs as whoever shows this, and return what is said of it."""
    raw = json.dumps({"message": "Hi", **body}).encode()
    exchange = await ask(app, "POST", "/runs", headers={**JSON, **bearer(shown)}, body=raw)
    assert exchange.status == 201, exchange.body
    created: dict[str, Any] = json.loads(exchange.body)
    return created


# What needs a key

GUARDED = [
    ("GET", "/chat/stream?message=Hi"),
    ("HEAD", "/chat/stream?message=Hi"),
    ("POST", "/chat/stream"),
    ("GET", "/chat/stream-meta?message=Hi"),
    ("POST", "/chat/stream-meta"),
    ("GET", "/stream?message=Hi"),
    ("POST", "/stream"),
    ("GET", "/counted/stream?message=Hi"),
    ("POST", "/counted/stream"),
    ("POST", "/runs"),
    ("GET", "/runs/{id}"),
    ("HEAD", "/runs/{id}"),
    ("DELETE", "/runs/{id}"),
    ("GET", "/runs/{id}/events"),
    ("GET", f"/metrics?key={WEB}&api_key={WEB}&access_token={WEB}&X-API-Key={WEB}"),
    ("GET", "/metrics"),
    ("GET", "/readyz?verbose"),
    ("GET", "/readyz?verbose=0"),
    # What would be refused, or told, if it were looked at.
    ("GET", "/chat/stream"),
    ("GET", "/chat/stream?message=Hi&model=nobody/x"),
    ("GET", "/chat/stream?message=Hi&last_event_id=nonsense"),
    ("GET", "/chat/stream?message=Hi&last_event_id={id}-1"),
    ("GET", "/nowhere/stream?message=Hi"),
    ("POST", "/runs?last_event_id={id}-1"),
    ("GET", f"/runs/{UNKNOWN}"),
    ("DELETE", f"/runs/{UNKNOWN}"),
    ("GET", f"/runs/{UNKNOWN}/events"),
    ("GET", "/runs/{id}/events?last_event_id={id}-99"),
]
# What is told in the words of others.
FOREIGN = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/held"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/resp_{id}"),
    ("GET", "/v1/responses/resp_{id}?stream=true"),
    ("POST", "/v1/responses/resp_{id}/cancel"),
    ("POST", "/v1/messages"),
    ("POST", "/ui/chat"),
    ("GET", "/ui/chat/{id}/stream"),
    ("DELETE", "/ui/chat/{id}/stream"),
    ("POST", "/ag-ui"),
    ("POST", "/ag-ui/held"),
    ("POST", "/lg/threads"),
    ("POST", "/lg/runs/stream"),
    ("POST", "/lg/runs/wait"),
    ("GET", "/lg/runs/{id}"),
    ("GET", "/lg/runs/{id}/stream"),
    ("POST", "/lg/runs/{id}/cancel"),
    ("POST", "/lg/threads/t/runs/stream"),
    ("POST", "/lg/threads/t/runs/wait"),
    ("GET", "/lg/threads/t/runs/{id}"),
    ("GET", "/lg/threads/t/runs/{id}/stream"),
    ("POST", "/lg/threads/t/runs/{id}/cancel"),
]
FREE = ["/", "/docs", "/openapi.json", "/graph.js", "/sidestream.js", "/sidestream.d.ts", "/healthz", "/readyz"]
SHOW = "Show a key: `Authorization: Bearer <key>`."
WRONG = "The key or token does not count."
DENIED: dict[str, tuple[str, dict[str, str]]] = {
    "nothing": (SHOW, {}),
    "an empty key": (SHOW, {"x-api-key": ""}),
    "an empty bearer": (SHOW, bearer(" ")),
    "a key in the address of a page": (SHOW, {"referer": f"http://test/?key={WEB}"}),
    "a key as a password": (SHOW, {"authorization": "Basic d2ViOmh1bnRlcjItd2ViLTRmMWM="}),
    "a key without a scheme": (SHOW, {"authorization": WEB}),
    "another scheme": (SHOW, {"authorization": f"Token {WEB}"}),
    "a scheme without a space": (SHOW, {"authorization": f"Bearer{WEB}"}),
    "a key for a proxy": (SHOW, {"proxy-authorization": f"Bearer {WEB}"}),
    "a key in a cookie": (WRONG, {"cookie": f"{COOKIE}={WEB}"}),
    "a wrong key": (WRONG, bearer("hunter2-wrong")),
    "a wrong key, the other way": (WRONG, {"x-api-key": "hunter2-wrong"}),
    "a key and its name": (WRONG, bearer(f"web:{WEB}")),
    "the name": (WRONG, bearer("web")),
    "all keys": (WRONG, bearer(KEYS)),
    "two keys": (WRONG, bearer(f"{WEB} {CRON}")),
    "a key in capital letters": (WRONG, bearer(WEB.upper())),
    "a key without its end": (WRONG, bearer(WEB[:-1])),
    "a key with more at its end": (WRONG, bearer(WEB + "0")),
    "a key in quotes": (WRONG, {"x-api-key": f'"{WEB}"'}),
    "a key and NUL": (WRONG, {"x-api-key": f"{WEB}\0"}),
    "no ASCII": (WRONG, {"x-api-key": "\u00e9\u00ff"}),
    "a megabyte": (WRONG, bearer("A" * 2**20)),
    "a token of nobody": (WRONG, bearer(token(claims(sub="")))),
}


def unauthorized(detail: str) -> tuple[int, dict[str, str], bytes]:
    told = {"type": "about:blank", "title": "Unauthorized", "status": 401, "detail": detail, "code": "unauthorized"}
    body = json.dumps(told, separators=(",", ":")).encode()
    headers = {
        "cache-control": "no-store",
        "www-authenticate": 'Bearer realm="sidestream"',
        "content-length": str(len(body)),
        "content-type": "application/problem+json",
        "x-content-type-options": "nosniff",
    }
    return 401, headers, body


@pytest.mark.parametrize(("detail", "headers"), DENIED.values(), ids=DENIED)
def test_who_shows_no_key_that_counts_gets_nothing_and_begins_nothing(detail: str, headers: dict[str, str]) -> None:
    async def test() -> tuple[list[Any], list[Any], int]:
        read: list[Any] = []
        async with serving(**BOTH) as app:
            run = (await begin(app, WEB, model="held", linger=60))["id"]
            before = Counted.runs
            guarded = placed(unread(app, read), *headers.items())
            exchanges = [await send(guarded, method, target.replace("{id}", run)) for method, target in GUARDED]
            others = [await send(guarded, method, target.replace("{id}", run)) for method, target in FOREIGN]
            async with HandSocket(guarded) as socket:
                assert socket.refused_with is not None
                status, told = socket.refused_with
            exists = await send(app, "GET", f"/runs/{run}", bearer(WEB))
            assert json.loads(exists.body)["state"] == "running"
            assert (status, told["code"], told["detail"]) == (401, "unauthorized", detail)
            for one in others:
                assert one.status == 401
                assert detail in one.body.decode().replace("\\", "")
                assert one.headers["www-authenticate"] == 'Bearer realm="sidestream"'
            return [(one.status, one.headers, one.body) for one in exchanges], read, Counted.runs - before

    answers, read, begun = run_ahead(test())
    assert answers == [unauthorized(detail)] * len(GUARDED)
    assert [message for message in read if message["type"] == "http.request"] == []
    assert begun == 0


ALLOWED: dict[str, tuple[str, dict[str, str]]] = {
    "as a bearer": ("key:web", bearer(WEB)),
    "as a bearer, in small letters": ("key:web", {"authorization": f"bearer {WEB}"}),
    "as a bearer, in capital letters": ("key:web", {"authorization": f"BEARER {WEB}"}),
    "as a bearer, with spaces": ("key:web", {"authorization": f"Bearer   {WEB} "}),
    "as a header of its own": ("key:web", {"x-api-key": WEB}),
    "twice": ("key:web", {**bearer(WEB), "x-api-key": WEB}),
    "the key that comes after it": ("key:web", bearer(WEB_NEXT)),
    "another's": ("key:cron", bearer(CRON)),
    "one that counts behind one that does not": ("key:cron", {**bearer("x"), "x-api-key": CRON}),
    "a token": ("sub:ann", bearer(token())),
    "a token of the same name": ("sub:web", bearer(token(claims(sub="web")))),
    "a token of a name like an owner's": ("sub:key:web", bearer(token(claims(sub="key:web")))),
    "a token in its cookie": ("sub:ann", {"cookie": f"{COOKIE}={token()}"}),
    "a key before a token": ("key:cron", {"x-api-key": CRON, "cookie": f"{COOKIE}={token()}"}),
}


@pytest.mark.parametrize(("owner", "headers"), ALLOWED.values(), ids=ALLOWED)
def test_who_shows_a_key_or_token_that_counts_is_its_owner(owner: str, headers: dict[str, str]) -> None:
    async def test() -> tuple[str, list[int]]:
        async with serving(**BOTH) as app:
            shown = placed(app, *headers.items())
            created = json.loads((await send(shown, "POST", "/runs")).body)
            run = await service_of(app).runs.find(created["id"], None)
            targets = [(method, target.replace("{id}", run.id)) for method, target in [*GUARDED, *FOREIGN]]
            async with HandSocket(shown) as socket:
                assert socket.refused_with is None
            return run.owner, [(await send(shown, method, target)).status for method, target in targets]

    found, statuses = run_ahead(test())
    assert found == owner
    assert 401 not in statuses


def test_every_route_is_known_here_for_one_that_needs_a_key_or_none() -> None:
    async def test() -> list[str]:
        async with serving(**BOTH) as app:
            known = [*GUARDED, *FOREIGN, *(("GET", path) for path in FREE)]
            scopes = [{"type": "http", "method": method, "path": to.partition("?")[0]} for method, to in known]
            scopes.append({"type": "websocket", "path": "/ws/chat"})
            return [
                route.path  # type: ignore[attr-defined]  # each of ours has one
                for route in app.routes
                if not any(route.matches(scope)[0] == Match.FULL for scope in scopes)
            ]

    assert run_ahead(test()) == []


def asked_of(environ: dict[str, str], method: str, target: str, **headers: str) -> int:
    async def test() -> int:
        async with serving(**environ) as app:
            said = {name.replace("_", "-"): value for name, value in headers.items()}
            return (await send(app, method, target, said)).status

    return run_ahead(test())


@pytest.mark.parametrize("path", FREE)
def test_the_page_and_the_probes_need_no_key(path: str) -> None:
    assert asked_of(BOTH, "GET", path) == 200
    assert asked_of(BOTH, "GET", path, x_api_key="hunter2-wrong") == 200


@pytest.mark.parametrize("target", ["/nowhere", "/runs/x/y", "/v1", "/.env"])
def test_what_is_not_there_is_told_to_everybody(target: str) -> None:
    assert asked_of(BOTH, "GET", target) == 404


def test_a_preflight_needs_no_key_and_what_follows_it_does() -> None:
    sites = {**BOTH, "SIDESTREAM_ALLOWED_ORIGINS": "https://app.example"}
    page = {"origin": "https://app.example"}
    wish = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
    for path in ("/chat/stream", "/runs", f"/runs/{UNKNOWN}", "/v1/models"):
        assert asked_of(sites, "OPTIONS", path, **page, **wish) == 200
    assert asked_of(sites, "POST", "/chat/stream", **page) == 401
    assert asked_of(sites, "POST", "/chat/stream", **page, authorization=f"Bearer {WEB}") == 200


@pytest.mark.parametrize("target", ["/metrics", "/readyz?verbose"])
def test_who_watches_the_service_may_be_let_in_without_a_key(target: str) -> None:
    public = {**BOTH, "SIDESTREAM_PUBLIC_METRICS": "true"}
    assert [asked_of(environ, "GET", target) for environ in ({}, BOTH, public)] == [200, 401, 200]
    assert asked_of(public, "GET", "/v1/models") == 401
    assert asked_of(public, "POST", "/runs") == 401


@pytest.mark.parametrize("setting", ["API_KEYS", "API_KEYS_FILE", "JWT_SECRET", "JWT_KEYS_FILE"])
def test_one_way_of_access_is_enough_to_close_the_service(setting: str, tmp_path: Path) -> None:
    path = tmp_path / setting
    path.write_text(f"cron:{CRON}\n" if setting == "API_KEYS_FILE" else jwks())
    environ = {f"SIDESTREAM_{setting}": {"API_KEYS": KEYS, "JWT_SECRET": SECRET}.get(setting, str(path))}
    assert asked_of(environ, "POST", "/runs") == 401
    assert asked_of({}, "POST", "/runs") == 201
    assert asked_of({}, "POST", "/runs", x_api_key="hunter2-wrong") == 201


# Whose a run is

WAYS: list[tuple[str, str, dict[str, str]]] = [
    ("GET", "/runs/{id}", {}),
    ("GET", "/runs/{id}/events", {}),
    ("GET", "/runs/{id}/events", {"last-event-id": "{id}-1"}),
    ("GET", "/runs/{id}/events", {"last-event-id": "{id}-99"}),
    ("GET", "/runs/{id}/events?last_event_id={id}-1", {}),
    ("GET", "/chat/stream?message=Hi", {"last-event-id": "{id}-1"}),
    ("GET", "/chat/stream?message=Hi&last_event_id={id}-1", {}),
    ("GET", "/chat/stream?message=Hi&lastEventId={id}-99", {}),
    ("GET", "/counted/stream?message=Hi&last_event_id={id}-1", {}),
    ("GET", "/stream?message=Hi", {"last-event-id": "{id}-1"}),
    ("POST", "/chat/stream", {"last-event-id": "{id}-1"}),
    ("HEAD", "/chat/stream?message=Hi", {"last-event-id": "{id}-1"}),
    ("DELETE", "/runs/{id}", {}),
]
STRANGERS = {
    "another key": CRON,
    "a token": token(),
    "a token of the key's name": token(claims(sub="web")),
    "a token of the owner's name": token(claims(sub="key:web")),
}


async def answer_about(app: Starlette, shown: str, run: str, way: tuple[str, str, dict[str, str]]) -> Any:
    method, target, headers = way
    headers = {**{name: value.replace("{id}", run) for name, value in headers.items()}, **bearer(shown)}
    exchange = await send(app, method, target.replace("{id}", run), headers)
    return exchange.status, exchange.headers, exchange.body


@pytest.mark.parametrize("shown", STRANGERS.values(), ids=STRANGERS)
def test_anothers_run_is_told_from_none_on_no_way_to_it(shown: str) -> None:
    async def test() -> None:
        async with serving(**BOTH) as app:
            run = (await begin(app, WEB, model="held", linger=60))["id"]
            for way in WAYS:
                found = await answer_about(app, shown, run, way)
                assert found[0] == 404, way
                assert found == await answer_about(app, shown, UNKNOWN, way), way
                assert json.loads(found[2])["code"] == "not_found"
            refusals = []
            for one in (run, UNKNOWN):
                for seq in (1, 99):
                    async with HandSocket(app, f"resume={one}-{seq}", bearer(shown)) as socket:
                        refusals.append(socket.refused_with)
            assert refusals == [refusals[0]] * 4
            assert refusals[0] is not None
            assert refusals[0][0] == 404
            status, _, body = await answer_about(app, WEB, run, WAYS[0])
            assert (status, json.loads(body)["state"]) == (200, "running")

    run_ahead(test())


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join([*way[:2], *way[2]]))
def test_ones_own_run_is_found_on_each_way_also_with_the_key_that_came_after(way: Any) -> None:
    async def test() -> list[int]:
        async with serving(**BOTH) as app:
            run = (await begin(app, WEB, linger=60))["id"]
            await service_of(app).runs.wait()
            async with HandSocket(app, f"resume={run}-1", bearer(WEB_NEXT)) as socket:
                await socket.until("done")
            return [(await answer_about(app, shown, run, way))[0] for shown in (WEB, WEB_NEXT)]

    ahead_of_its_end = "-99" in str(way)
    assert run_ahead(test()) == [400 if ahead_of_its_end else 204 if way[0] == "DELETE" else 200] * 2


def test_a_run_that_two_ask_for_under_the_same_key_is_two() -> None:
    async def test() -> tuple[list[str], int]:
        async with serving(**BOTH) as app:
            before = Counted.runs
            ids = []
            for shown in (WEB, CRON, WEB_NEXT, token(), token(claims(sub="web")), CRON):
                headers = {**bearer(shown), "idempotency-key": "the-same"}
                ids.append(json.loads((await send(app, "POST", "/runs", headers)).body)["id"])
            await service_of(app).runs.wait()
            return ids, Counted.runs - before

    (web, cron, web_next, ann, web_sub, cron_again), begun = run_ahead(test())
    assert web == web_next
    assert cron == cron_again
    assert len({web, cron, ann, web_sub}) == begun == 4


def test_a_conflict_tells_nothing_of_anothers_idempotency_key() -> None:
    async def test() -> list[int]:
        async with serving(**BOTH) as app:
            key = {"idempotency-key": "the-same"}
            first = await send(app, "POST", "/runs", {**bearer(WEB), **key})
            bodies = [
                await ask(app, "POST", "/runs", headers={**JSON, **bearer(shown), **key}, body=b'{"message":"Ho"}')
                for shown in (CRON, WEB)
            ]
            return [exchange.status for exchange in (first, *bodies)]

    assert run_ahead(test()) == [201, 201, 409]


# Signed URLs


def with_links(test: Callable[[Starlette, dict[str, Any], str], Awaitable[None]]) -> None:
    """Run the test with a run of `web` that goes on, and the signature of its URLs."""

    async def scenario() -> None:
        async with serving(**BOTH) as app:
            created = await begin(app, WEB, model="held", linger=60)
            await test(app, created, urlsplit(created["events_url"]).query)

    run_ahead(scenario())


def test_a_signed_url_leads_whoever_has_it_to_its_run() -> None:
    async def test(app: Starlette, created: dict[str, Any], query: str) -> None:
        for headers in ({}, bearer(CRON), bearer("hunter2-wrong")):
            async with Exchange(app, "GET", created["events_url"], headers=headers) as exchange:
                await exchange.until(b'{"token":"Hi"}')
                exchange.disconnect()
            assert (await send(app, "GET", created["status_url"], headers)).status == 200
        assert (await send(app, "DELETE", created["status_url"])).status == 204
        ended = json.loads((await send(app, "GET", created["status_url"])).body)
        assert ended["ending"]["reason"] == "requested"

    with_links(test)


def test_a_signed_url_leads_nowhere_else() -> None:
    async def test(app: Starlette, created: dict[str, Any], query: str) -> None:
        other = (await begin(app, CRON, model="held", linger=60))["id"]
        for method, target in GUARDED:
            if target.startswith("/runs/"):
                continue  # they are the run's own
            mark = "&" if "?" in target else "?"
            target = f"{target.replace('{id}', created['id'])}{mark}{query}"
            assert (await send(app, method, target)).status == 401, target
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
            for headers in ({}, bearer(CRON)):
                assert (await send(app, method, f"/runs/{other}{path}?{query}", headers)).status == 403
        resumed = f"/chat/stream?message=Hi&last_event_id={created['id']}-1&{query}"
        assert (await send(app, "GET", resumed)).status == 401
        for said in (query, f"resume={created['id']}-1&{query}"):
            async with HandSocket(app, said) as socket:
                assert socket.refused_with is not None
                assert socket.refused_with[0] == 401

    with_links(test)


def test_half_a_signature_is_none_even_for_the_owner() -> None:
    async def test(app: Starlette, created: dict[str, Any], query: str) -> None:
        parts = {name: values[0] for name, values in parse_qs(query).items()}
        for said in (f"expires={parts['expires']}", f"signature={parts['signature']}", "signature=", "expires="):
            for headers in ({}, bearer(CRON), bearer(WEB)):
                assert (await send(app, "GET", f"/runs/{created['id']}?{said}", headers)).status == 403

    with_links(test)


# How keys are compared


def connection(shown: str) -> HTTPConnection:
    raw = [(b"x-api-key", shown.encode("utf-8", "surrogatepass"))]
    return HTTPConnection({"type": "http", "headers": raw})


@given(st.text() | st.text("hunter2-web4f1c:", min_size=10) | st.integers(0, len(WEB) - 1).map(lambda size: WEB[:size]))
def test_no_other_key_counts(shown: str) -> None:
    access = Access(KEYS.split(","))
    with pytest.raises(RequestError):
        access.owner(connection(shown))


@pytest.mark.parametrize("shown", [WEB, WEB_NEXT, CRON, "hunter2-file", "x", "hunter2-web-4f1", "A" * 10_000])
def test_each_key_is_compared_by_its_digest_whatever_is_shown(
    shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time it takes tells neither where a key stands nor how much of it was right: that is not measured here."""
    (tmp_path / "keys").write_text("file:hunter2-file\n")
    access = Access(KEYS.split(","), str(tmp_path / "keys"))
    compared: list[tuple[Any, Any]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    access._name(shown)
    assert len({known for known, _ in compared}) == len(compared) == 4
    assert {len(one) for pair in compared for one in pair} == {32}
    assert len({said for _, said in compared}) == 1


# Where keys may be read


BAD: dict[str, dict[str, str]] = {
    "no name": {"API_KEYS": "hunter2"},
    "a space": {"API_KEYS": "web:hunter2 hunter2"},
    "no ASCII": {"API_KEYS": "web:hunter2\u00e9"},
    "one of many": {"API_KEYS": "web:abc,hunter2,cron:def"},
    "one key twice": {"API_KEYS": "web:hunter2,cron:hunter2"},
    "a key for a name": {"API_KEYS": "hunter2 hunter2:web"},
    "another setting's name": {"API_KEY": "web:hunter2"},
    "a key for a file": {"API_KEYS_FILE": "web:hunter2"},
    "a long key for a file": {"API_KEYS_FILE": "web:" + "hunter2" * 500},
    "a short secret": {"JWT_SECRET": "hunter2"},
    "a secret for a file": {"JWT_KEYS_FILE": '{"keys":[{"kty":"oct","k":"hunter2"}]}'},
    "a secret for a cookie": {"JWT_COOKIE": "hunter2; Secure"},
    "a short secret for URLs": {"URL_SECRET": "hunter2"},
}
BAD_FILES = {
    "no name": b"hunter2\n",
    "a space": b"web:abc\ncron:hunter2 hunter2\n",
    "a comment behind it": b"web:hunter2 # the page's\n",
    "one key twice": b"web:hunter2\ncron:hunter2\n",
    "nothing but comments": b"# web:hunter2\n\n",
    "no UTF-8": b"web:hunter2\xff\n",
    "UTF-16": "web:hunter2\n".encode("utf-16"),
    "no text": b"web:hunter2\0\n",
}


def why_not(environ: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        create_service(environ)
    return str(caught.value)


@pytest.mark.parametrize("settings", BAD.values(), ids=BAD)
def test_a_bad_setting_is_told_without_its_key(settings: dict[str, str]) -> None:
    told = why_not({f"SIDESTREAM_{name}": value for name, value in settings.items()})
    assert all(name.lower() in told.lower() for name in settings)
    assert "hunter2" not in told


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_of_keys_is_told_without_its_keys(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    told = why_not({"SIDESTREAM_API_KEYS_FILE": str(path)})
    assert f"api_keys_file {path}: " in told
    assert "hunter2" not in told


def test_a_bad_config_file_is_told_without_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "sidestream.toml"
    path.write_text('api_keys = ["web:hunter2 x", "hunter2", 7]\njwt_secret = "hunter2"\nurl_secret = ["hunter2"]\n')
    told = why_not({"SIDESTREAM_CONFIG": str(path)})
    assert [name in told for name in ("api_keys", "jwt_secret", "url_secret")] == [True] * 3
    assert "hunter2" not in told
    path.write_text('api_keys = ["web:hunter2"\nurl_secret = hunter2')
    assert "hunter2" not in why_not({"SIDESTREAM_CONFIG": str(path)})


EVERYTHING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"all": {"class": "logging.StreamHandler"}},
    "root": {"level": "DEBUG", "handlers": ["all"]},
}
RIGHT, LATE = token(), token(claims(sub="hunter2-bob", exp=1))
SHOWN = {
    "the key": {"X-API-Key": WEB},
    "the key as a bearer": {"Authorization": f"Bearer {WEB}"},
    "the key of the file": {"X-API-Key": "hunter2-file"},
    "a token": bearer(RIGHT),
    "a token in its cookie": {"Cookie": f"{COOKIE}={RIGHT}"},
    "a wrong key": {"X-API-Key": "hunter2-wrong"},
    "a wrong token": bearer(LATE),
    "a wrong cookie": {"Cookie": f"{COOKIE}={LATE}"},
    "a password": {"Authorization": "Basic aHVudGVyMjpodW50ZXIy"},
    "a key for the upstream": {"X-API-Key": WEB, "X-Upstream-Key": "hunter2-upstream"},
}
PARTS = ["hunter2", "aHVudGVyMj", *RIGHT.split("."), *LATE.split(".")]


@pytest.fixture(scope="module")
def loud(start_service: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Service, Path]:
    """A service that logs all that any library has to say, and its file of keys."""
    folder = tmp_path_factory.mktemp("loud")
    (folder / "logging.json").write_text(json.dumps(EVERYTHING))
    (folder / "keys").write_text("file:hunter2-file\n")
    environ = {**BOTH, "SIDESTREAM_API_KEYS_FILE": str(folder / "keys")}
    return start_service("--log-config", str(folder / "logging.json"), **environ), folder / "keys"


def everything_of(client: Client) -> bytes:
    with client:
        client.head()
        if "content-length" in client.head()[1] or client.head()[0] == 200:
            client.read()
        return client.raw


def test_no_key_stands_in_an_answer_or_in_the_log_whatever_is_asked(loud: tuple[Service, Path]) -> None:
    service, keys_file = loud
    said = []
    for headers in SHOWN.values():
        for method, target in [*GUARDED, *FOREIGN]:
            if method == "GET":
                target = target.replace("Hi", "Hi&model=scripted/echo").replace("{id}", UNKNOWN)
                said.append(everything_of(Client(service.port, method, target, headers=headers)))
        said.append(everything_of(post(service.port, "/runs", headers, message="Hi", model="scripted/echo")))
        said.append(everything_of(post(service.port, "/chat/stream", headers, message="Hi", model="scripted/custom")))
        upgrade = {**UPGRADE, **headers, "Origin": "https://evil.example"}
        said.append(everything_of(Client(service.port, "GET", "/ws/chat", headers=upgrade)))
    with talk(service.port, "model=scripted/echo", additional_headers={"X-API-Key": WEB}) as socket:
        assert socket.turn("Hi")[-1].name == "done"
    statuses = {int(one.split()[1]) for one in said}
    assert {200, 201, 400, 401, 403, 404} <= statuses
    keys_file.write_text("file:hunter2-next hunter2\n")
    eventually(lambda: everything_of(get(service.port, "/v1/models")) and "going on with what it was" in service.log)
    raw = b"".join(said).decode()
    assert '"GET /v1/models HTTP/1.1" 200' in service.log
    assert '"GET /v1/models HTTP/1.1" 401' in service.log
    assert [part for part in PARTS if part in raw or part in service.log] == []


def test_a_start_that_fails_repeats_no_key(start_service: Start) -> None:
    """Neither in what it says of the settings, nor in a traceback."""
    with pytest.raises(AssertionError, match="the service ended") as caught:
        start_service(
            SIDESTREAM_API_KEYS="hunter2", SIDESTREAM_API_KEYS_FILE="hunter2", SIDESTREAM_JWT_SECRET="hunter2"
        )
    told = str(caught.value)
    assert told.count("SIDESTREAM_API_KEYS:") == told.count("api_keys_file:") == told.count("JWT_SECRET:") == 1
    assert "hunter2" not in told
    assert "Traceback" not in told
