"""Chromium's EventSource and connections that break: no text is lost, none comes twice, and the model is asked once.

The upstream's script says when there is more to say, the proxy when a connection breaks; its records say who came back.
"""

import json
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page

from .client import get, post
from .conftest import Service, Start
from .proxy import PASS, Cut, How, Proxy, Refuse
from .recorded import chat
from .upstream import END, HOLD, PAUSE, RST, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.proxy", "tests.browser"]

STOP = [chat({}, "stop"), b"data: [DONE]\n\n", END]
QUERY = {"message": "Count", "model": "openai/gpt-4o-mini"}
CLOSED = 2
each_way = pytest.mark.parametrize("how", ["FIN", "RST"])

FOLLOW = """url => {
  window.source = new EventSource(url);
  window.told = [];
  for (const name of ["start", "token", "done", "error", "cancelled"])
    source.addEventListener(name, ({ type, data }) => told.push([type, data ? JSON.parse(data) : null]));
}"""
TEXT = 'told.map(([name, data]) => name === "token" ? data.token : "").join("")'

STREAM = """async ([request, module, withCredentials]) => {
  const { stream } = await import(module);
  window.connection = [];
  window.answer = stream(request, { withCredentials, onConnection: (state) => connection.push(state) });
  window.told = [];
  window.ending = (async () => {
    try {
      for await (const { event, data } of answer) told.push([event, data]);
      return answer.result;
    } catch ({ name, code, retryable, message, usage }) {
      return { name, code, retryable, message, usage };
    }
  })();
}"""


def count(upstream: Upstream) -> None:
    """Let the upstream say One, two and three, each when it is told to, and end well."""
    upstream.play(
        Head(), chat({"content": "One"}), PAUSE, chat({"content": " two"}), PAUSE, chat({"content": " three"}), *STOP
    )


def visit(tab: Page, proxy: Proxy) -> None:
    """Open a page of the service's that does nothing itself."""
    tab.goto(f"{proxy.url}healthz")
    proxy.records.clear()


def sees(tab: Page, text: str) -> None:
    tab.wait_for_function(f"text => {TEXT} === text", arg=text)


def is_cut(tab: Page, times: int) -> None:
    """Return once the browser has told the page of so many broken connections."""
    tab.wait_for_function('times => told.filter(([n, data]) => n === "error" && !data).length >= times', arg=times)


def is_closed(tab: Page) -> None:
    tab.wait_for_function(f"source.readyState === {CLOSED}")


def names(tab: Page) -> list[str]:
    """Return the events' names, without the browser's own errors."""
    found: list[str] = tab.evaluate("told.filter(([name, data]) => data).map(([name]) => name)")
    return found


def events_url(service: Service) -> str:
    with post(service.port, "/runs", **QUERY) as client:
        url: str = json.loads(client.read())["events_url"]
        return url


@each_way
@pytest.mark.parametrize("where", ["/chat/stream", "/runs/*/events"])
def test_an_eventsource_goes_on_where_it_was(
    tab: Page, nimble: Service, proxy: Proxy, upstream: Upstream, how: How, where: str
) -> None:
    count(upstream)
    visit(tab, proxy)
    tab.evaluate(FOLLOW, f"{where}?{urlencode(QUERY)}&linger=10" if where == "/chat/stream" else events_url(nimble))
    exchange = upstream.request()
    sees(tab, "One")
    proxy.cut(how)
    exchange.release()
    sees(tab, "One two")
    proxy.cut(how)
    exchange.release()
    is_closed(tab)  # by the 204: the page does not close it
    sees(tab, "One two three")
    assert names(tab) == ["start", "token", "token", "token", "done"]
    assert proxy.records == [f"GET {where}", f"GET {where} after 2", f"GET {where} after 3", f"GET {where} after 5"]
    assert exchange.wait().ended == "completed"
    assert upstream.exchanges.empty()


@each_way
def test_without_linger_an_eventsource_gets_what_is_left_and_stops(
    tab: Page, proxy: Proxy, upstream: Upstream, how: How
) -> None:
    upstream.play(Head(), chat({"content": "One"}), HOLD)
    visit(tab, proxy)
    tab.evaluate(FOLLOW, f"/chat/stream?{urlencode(QUERY)}")
    exchange = upstream.request()
    sees(tab, "One")
    proxy.cut(how)
    is_closed(tab)
    assert exchange.wait().ended == "aborted"
    assert names(tab) == ["start", "token", "cancelled"]
    assert tab.evaluate("told.find(([name]) => name === 'cancelled')[1].reason") == "disconnected"
    assert proxy.records == ["GET /chat/stream", "GET /chat/stream after 2", "GET /chat/stream after 3"]
    assert upstream.exchanges.empty()


def test_an_error_that_is_told_has_data_and_a_broken_connection_has_none(
    tab: Page, proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Head(), chat({"content": "One"}), PAUSE, RST)
    visit(tab, proxy)
    tab.evaluate(FOLLOW, f"/chat/stream?{urlencode(QUERY)}&linger=10")
    sees(tab, "One")
    proxy.cut("RST")
    is_cut(tab, 1)
    upstream.request().release()
    is_closed(tab)
    errors = tab.evaluate("told.filter(([name]) => name === 'error').map(([, data]) => data?.code ?? 'connection')")
    assert errors == ["connection", "upstream_incomplete", "connection", "connection"]  # the end; the 204


# sidestream.js


def ask(tab: Page, proxy: Proxy, **request: object) -> None:
    visit(tab, proxy)
    tab.evaluate(STREAM, [{**QUERY, **request}, "/sidestream.js", False])
    assert proxy.records.pop(0) == "GET /sidestream.js"


def ending(tab: Page) -> Any:
    """Return the result, or why there is none."""
    return tab.evaluate("ending")


@each_way
def test_the_client_has_the_text_right_however_often_it_is_cut_off(tab: Page, proxy: Proxy, how: How) -> None:
    text = " ".join(map(str, range(500)))
    proxy.do("GET /runs/*/events", *[Cut(700, how)] * 100)  # after seven events, and in the middle of one
    script = [{"say": text, "every": 0.003}]
    ask(tab, proxy, model="scripted/custom", provider_options={"script": script})
    result = ending(tab)
    assert result["text"] == text
    assert tab.evaluate(TEXT) == text
    assert (result["event"], result["data"]["tokens"]) == ("done", 500)
    assert names(tab).count("start") == names(tab).count("done") == 1
    assert proxy.seen("POST") == ["POST /runs"]
    assert len(proxy.seen("GET /runs/*/events after")) >= 10
    assert proxy.seen("GET /runs/*/events") == proxy.records[1:], "the browser's own reconnects do"


def test_the_client_outlasts_a_proxy_that_answers_in_the_services_place(
    tab: Page, proxy: Proxy, upstream: Upstream
) -> None:
    """At a 502 an EventSource gives up for good."""
    count(upstream)
    ask(tab, proxy)
    exchange = upstream.request()
    sees(tab, "One")
    proxy.do("GET /runs/*", Refuse(502), Refuse(503), PASS, Refuse(502))
    proxy.cut("FIN")
    exchange.release()
    sees(tab, "One two")
    assert tab.evaluate("connection") == ["open", "lost", "open"]
    exchange.release()
    assert ending(tab)["text"] == "One two three"
    events, status = "GET /runs/*/events", "GET /runs/*"
    again = f"{events} after 2"
    #                                      502    503     passes  502    passes
    assert proxy.records == ["POST /runs", events, again, status, status, again, status, again]
    assert upstream.exchanges.empty()


def test_the_client_says_at_once_why_there_is_no_more(tab: Page, proxy: Proxy, upstream: Upstream) -> None:
    count(upstream)
    ask(tab, proxy)
    sees(tab, "One")
    proxy.do("GET /runs/*", Refuse(502), Refuse(410))
    proxy.cut("RST")
    assert ending(tab) == {
        "name": "StreamError",
        "code": "unexpected_response",
        "retryable": False,
        "message": "The service answered 410.",
        "usage": None,
    }
    assert tab.evaluate(TEXT) == "One"


def test_the_client_tells_a_failed_answer_from_a_broken_connection(tab: Page, proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), PAUSE, chat({"content": " two"}), RST)
    ask(tab, proxy)
    sees(tab, "One")
    proxy.cut("FIN")
    upstream.request().release()
    error = ending(tab)
    assert (error["name"], error["code"], error["retryable"]) == ("StreamError", "upstream_incomplete", True)
    assert error["usage"]["output_tokens"] > 0
    assert names(tab) == ["start", "token", "token", "error"]
    assert tab.evaluate("connection") == ["open", "lost", "open"]


def test_an_answer_that_is_stopped_ends_at_the_upstream(tab: Page, proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), HOLD)
    ask(tab, proxy)
    exchange = upstream.request()
    sees(tab, "One")
    tab.evaluate("answer.stop()")
    assert exchange.wait().ended == "aborted"
    assert ending(tab)["name"] == "AbortError"
    assert proxy.records == ["POST /runs", "GET /runs/*/events", "DELETE /runs/*"]
    assert upstream.exchanges.empty()


def test_a_page_of_another_origin_that_may_uses_the_client_like_the_services_own(
    tab: Page, proxy: Proxy, start_service: Start
) -> None:
    visit(tab, proxy)
    service = start_service(SIDESTREAM_ALLOWED_ORIGINS=proxy.url.rstrip("/"))
    module = f"http://127.0.0.1:{service.port}/sidestream.js"
    tab.evaluate(STREAM, [{"message": "hello", "model": "scripted/echo"}, module, True])
    assert ending(tab)["text"] == "hello"
    tab.evaluate(STREAM, [{"message": "hello", "model": "scripted/silent"}, module, True])
    tab.evaluate("answer.stop()")
    with get(service.port, f"/runs/{tab.evaluate('answer.run')['id']}") as client:
        assert json.loads(client.read())["ending"]["reason"] == "requested"
