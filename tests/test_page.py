"""The chat page in a real Chromium: what a person does with it and sees of it."""

import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from .client import DEADLINE, get
from .conftest import Service, Start
from .proxy import Proxy, Refuse
from .recorded import chat
from .upstream import END, HOLD, PAUSE, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.proxy", "tests.browser"]

STOP = [chat({}, "stop"), b"data: [DONE]\n\n", END]


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    """A fresh page; what it writes to the console as an error fails the test, too."""
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield tab
    assert complaints == []


def ask(page: Page, service: Service | Proxy, question: str, model: str | None = None) -> None:
    if page.url == "about:blank":
        page.goto(f"http://127.0.0.1:{service.port}/")
        expect(page.get_by_test_id("model")).to_be_enabled()
    if model:
        page.get_by_test_id("model").select_option(model)
    page.get_by_test_id("message").fill(question)
    page.keyboard.press("Enter")


def idle(page: Page) -> None:
    expect(page.locator("body")).to_have_attribute("data-state", "idle", timeout=20_000)


def test_a_question_is_asked_and_paris_is_read(page: Page, service: Service) -> None:
    ask(page, service, "What is the capital of France?")
    expect(page.get_by_test_id("answer")).to_contain_text("Paris", timeout=20_000)
    idle(page)
    expect(page.get_by_test_id("stats")).to_contain_text("tokens/s")
    expect(page.get_by_test_id("stats")).to_contain_text("first token")


def test_the_inspector_shows_every_event_as_it_came(page: Page, relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), PAUSE, chat({"content": " two"}), *STOP)
    ask(page, relay, "Count", "openai/gpt-4o-mini")
    expect(page.get_by_test_id("answer")).to_have_text("One")
    upstream.request().release()
    idle(page)
    page.get_by_test_id("inspector-toggle").click()
    names = page.get_by_test_id("event-row").evaluate_all("rows => rows.map(row => row.dataset.event)")
    assert names == ["start", "token", "token", "done"]


def test_a_second_question_brings_the_first_along(page: Page, relay: Service, upstream: Upstream) -> None:
    for answer in ("Rome.", "Paris."):
        upstream.stream(chat({"content": answer}), chat({}, "stop"), b"data: [DONE]\n\n")
    ask(page, relay, "Capital of Italy?", "openai/gpt-4o-mini")
    expect(page.get_by_test_id("answer").first).to_have_text("Rome.")
    idle(page)
    ask(page, relay, "Of France?")
    expect(page.get_by_test_id("answer").last).to_have_text("Paris.")
    idle(page)
    assert upstream.request().body["messages"] == [{"role": "user", "content": "Capital of Italy?"}]
    assert upstream.request().body["messages"] == [
        {"role": "user", "content": "Capital of Italy?"},
        {"role": "assistant", "content": "Rome."},
        {"role": "user", "content": "Of France?"},
    ]


@pytest.mark.parametrize("how", ["button", "Escape", "new chat"])
def test_the_upstream_ends_when_the_person_stops(page: Page, relay: Service, upstream: Upstream, how: str) -> None:
    upstream.play(Head(), chat({"content": "A long"}), chat({"content": " story"}), HOLD)
    ask(page, relay, "Tell me a story", "openai/gpt-4o-mini")
    expect(page.get_by_test_id("answer")).to_have_text("A long story")
    exchange = upstream.request()
    begun = time.monotonic()
    if how == "button":
        page.get_by_test_id("stop").click()
    elif how == "Escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="New chat").click()
    assert exchange.wait().ended == "aborted"
    assert exchange.ended_at - begun < 5
    idle(page)
    if how == "new chat":
        expect(page.get_by_test_id("answer")).to_have_count(0)
    else:
        expect(page.get_by_test_id("answer")).to_have_text("A long story")
        expect(page.get_by_text("stopped", exact=True)).to_be_visible()


# An answer that is taken back


def test_an_answer_that_is_taken_back_goes_and_the_other_one_stands(page: Page, start_service: Start) -> None:
    service = start_service(SIDESTREAM_MODELS='{"rescued": ["scripted/cut", "scripted/hello"]}')
    ask(page, service, "Hi", "rescued")
    expect(page.get_by_test_id("answer")).to_contain_text("need no key.")
    idle(page)
    expect(page.get_by_test_id("answer")).not_to_contain_text("breaks in the middle")
    expect(page.get_by_text("The model that answered first broke off")).to_be_visible()
    expect(page.get_by_role("heading", name="scripted/hello")).to_be_visible()
    page.reload()
    expect(page.get_by_test_id("answer")).to_contain_text("need no key.")
    expect(page.get_by_test_id("answer")).not_to_contain_text("breaks in the middle")


def test_an_answer_that_may_lack_something_says_so(page: Page, relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), b"data: {broken\n\n", chat({"content": " three"}), *STOP)
    ask(page, relay, "Count", "openai/gpt-4o-mini")
    expect(page.get_by_test_id("answer")).to_have_text("One three")
    expect(page.get_by_text("so something may lack")).to_be_visible()


# Reloads


def test_a_reload_in_mid_answer_goes_on_where_it_was(page: Page, relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), PAUSE, chat({"content": " two"}), PAUSE, *STOP)
    ask(page, relay, "Count", "openai/gpt-4o-mini")
    exchange = upstream.request()
    expect(page.get_by_test_id("answer")).to_have_text("One")
    page.reload()
    expect(page.get_by_test_id("answer")).to_have_text("One")
    expect(page.get_by_test_id("stop")).to_be_visible()
    exchange.release()
    expect(page.get_by_test_id("answer")).to_have_text("One two")
    page.reload()
    exchange.release()
    idle(page)
    expect(page.get_by_test_id("answer")).to_have_text("One two")
    expect(page.get_by_text("Count", exact=True)).to_have_count(1)
    expect(page.get_by_test_id("stats")).to_contain_text("tokens/s")
    assert exchange.wait().ended == "completed"
    assert upstream.exchanges.empty()


def test_a_reload_that_misses_the_end_shows_the_answer_whole(page: Page, relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), PAUSE, chat({"content": " two"}), *STOP)
    ask(page, relay, "Count", "openai/gpt-4o-mini")
    exchange = upstream.request()
    expect(page.get_by_test_id("answer")).to_have_text("One")
    page.goto("about:blank")
    exchange.release()
    assert exchange.wait().ended == "completed"
    page.go_back()
    idle(page)
    expect(page.get_by_test_id("answer")).to_have_text("One two")
    assert upstream.exchanges.empty()


def test_a_conversation_outlives_a_reload_and_goes_on(page: Page, relay: Service, upstream: Upstream) -> None:
    for answer in ("Rome.", "**Paris.**", "Berlin."):
        upstream.stream(chat({"content": answer}), *STOP[:-1])
    ask(page, relay, "Capital of Italy?", "openai/gpt-4o-mini")
    idle(page)
    ask(page, relay, "Of France?")
    idle(page)
    before = page.locator("#log").inner_text()
    page.reload()
    expect(page.get_by_test_id("answer")).to_have_text(["Rome.", "Paris."])
    assert page.locator("#log").inner_text() == before
    expect(page.get_by_test_id("model")).to_be_enabled()
    ask(page, relay, "Of Germany?")
    expect(page.get_by_test_id("answer").last).to_have_text("Berlin.")
    idle(page)
    *_, last = [upstream.request() for _ in range(3)]
    said = [message["content"] for message in last.body["messages"]]
    assert said == ["Capital of Italy?", "Rome.", "Of France?", "**Paris.**", "Of Germany?"]


@pytest.mark.parametrize("model", ["tools", "reasoning", "length", "late-error", "error"])
def test_all_of_an_answer_outlives_a_reload(page: Page, service: Service, model: str) -> None:
    ask(page, service, "Show me", f"scripted/{model}")
    idle(page)
    before = page.locator("#log").inner_text()
    page.reload()
    idle(page)
    expect(page.get_by_text("Show me", exact=True)).to_be_visible()
    assert page.locator("#log").inner_text() == before


def test_a_stopped_answer_stays_stopped(page: Page, relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), HOLD)
    ask(page, relay, "Count", "openai/gpt-4o-mini")
    expect(page.get_by_test_id("answer")).to_have_text("One")
    page.keyboard.press("Escape")
    page.reload()
    expect(page.get_by_test_id("answer")).to_have_text("One")
    expect(page.get_by_text("stopped", exact=True)).to_be_visible()
    expect(page.get_by_test_id("retry")).to_be_visible()
    assert upstream.request().wait().ended == "aborted"


def test_a_new_chat_is_new_after_a_reload_too(page: Page, service: Service) -> None:
    ask(page, service, "hello", "scripted/echo")
    idle(page)
    page.get_by_role("button", name="New chat").click()
    page.reload()
    expect(page.get_by_role("heading", name="Answers, event by event")).to_be_visible()
    expect(page.get_by_test_id("answer")).to_have_count(0)


def test_a_reload_before_the_service_has_answered_asks_for_the_same_run(
    tab: Page, nimble: Service, proxy: Proxy, upstream: Upstream
) -> None:
    """The run is created, but its page is left before it hears of that."""
    upstream.stream(chat({"content": "Once."}), *STOP[:-1])
    tab.route("**/runs", lambda route: (route.fetch(), route.abort()))
    ask(tab, proxy, "Count", "openai/gpt-4o-mini")
    expect(tab.get_by_test_id("stats")).to_have_text("the service cannot be reached, trying again…")
    tab.unroute_all()
    tab.reload()
    idle(tab)
    expect(tab.get_by_test_id("answer")).to_have_text("Once.")
    assert upstream.request().wait().ended == "completed"
    assert upstream.exchanges.empty()


def test_an_answer_that_is_no_longer_kept_is_shown_as_far_as_it_came(
    tab: Page, relay: Service, upstream: Upstream
) -> None:
    upstream.play(Head(), chat({"content": "One"}), HOLD)
    upstream.stream(chat({"content": "Again."}), *STOP[:-1])
    ask(tab, relay, "Count", "openai/gpt-4o-mini")
    expect(tab.get_by_test_id("answer")).to_have_text("One")
    tab.route("**/runs/**", lambda route: route.fulfill(status=404, json={"code": "not_found", "detail": "Gone."}))
    tab.reload()
    expect(tab.get_by_test_id("error")).to_contain_text("no longer kept")
    expect(tab.get_by_test_id("answer")).to_have_text("One")
    tab.unroute_all()
    tab.get_by_test_id("retry").click()
    expect(tab.get_by_test_id("answer")).to_have_text("Again.")
    idle(tab)


def test_a_page_that_goes_without_a_goodbye_is_remembered_too(page: Page, relay: Service, upstream: Upstream) -> None:
    """As one that crashes does: there is no event in which it could store anything."""
    page.add_init_script(
        "for (const name of ['pagehide', 'visibilitychange'])"
        "  addEventListener(name, (event) => event.stopImmediatePropagation(), true)"
    )
    posted: list[str] = []
    page.on("request", lambda request: posted.append(request.url) if request.method == "POST" else None)
    upstream.play(Head(), chat({"content": "One"}), PAUSE, *STOP)
    ask(page, relay, "Count", "openai/gpt-4o-mini")
    expect(page.get_by_test_id("answer")).to_have_text("One")
    page.reload()
    expect(page.get_by_test_id("answer")).to_have_text("One")
    assert len(posted) == 1
    upstream.request().release()
    expect(page.get_by_test_id("send")).to_be_visible()
    before = page.locator("#log").inner_text()
    page.route("**/runs/**", lambda route: route.fulfill(status=404))
    page.reload()
    assert page.locator("#log").inner_text() == before
    page.get_by_role("button", name="New chat").click()
    page.reload()
    expect(page.get_by_test_id("answer")).to_have_count(0)


FORBIDDEN = (
    "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('', 'SecurityError'); } })"
)
FULL = "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }"
STALE = 'sessionStorage.setItem(\'sidestream.turns\', \'[{"question": "Hm", "answer": "Of another version"}]\')'
GARBLED = "sessionStorage.setItem('sidestream.turns', '[{')"


@pytest.mark.parametrize("trouble", [FORBIDDEN, FULL, STALE, GARBLED])
def test_the_page_works_without_its_memory(page: Page, service: Service, trouble: str) -> None:
    page.add_init_script(trouble)
    ask(page, service, "hello", "scripted/echo")
    idle(page)
    expect(page.get_by_test_id("answer")).to_have_text("hello")
    page.reload()
    expect(page.get_by_test_id("answer")).to_have_count(0)


# Failures


def test_a_refusal_is_shown_for_what_it_is(tab: Page, service: Service) -> None:
    tab.goto(f"http://127.0.0.1:{service.port}/")
    tab.get_by_test_id("model").evaluate("select => select.add(new Option('nobody/nothing'))")
    ask(tab, service, "hello", "nobody/nothing")
    card = tab.get_by_test_id("error")
    expect(card).to_contain_text("There is no such model")
    expect(card).to_contain_text("unknown_model")
    expect(card).to_contain_text("nobody")


def test_a_broken_connection_is_said_and_mended(tab: Page, proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), PAUSE, chat({"content": " two"}), *STOP)
    ask(tab, proxy, "Count", "openai/gpt-4o-mini")
    expect(tab.get_by_test_id("answer")).to_have_text("One")
    proxy.do("GET /runs/*", *[Refuse(502)] * 3)
    proxy.cut("RST")
    expect(tab.get_by_test_id("stats")).to_have_text("connection broken, reconnecting…")
    upstream.request().release()
    expect(tab.get_by_test_id("answer")).to_have_text("One two")
    idle(tab)


def test_the_curl_command_asks_for_the_same(page: Page, relay: Service, upstream: Upstream) -> None:
    for _ in range(2):
        upstream.stream(chat({"content": "It's so."}), *STOP[:-1])
    ask(page, relay, "What's it?", "openai/gpt-4o-mini")
    idle(page)
    page.get_by_test_id("inspector-toggle").click()
    command = page.locator("#curl pre").inner_text()
    out = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=DEADLINE, check=True).stdout
    assert 'data: {"token":"It\'s so."}' in out
    asked = [upstream.request().body for _ in range(2)]
    assert asked[0] == asked[1]


def test_a_failure_is_shown_with_what_came_and_can_be_tried_again(
    page: Page, relay: Service, upstream: Upstream
) -> None:
    upstream.play(Head(), chat({"content": "Half an"}), END)
    upstream.stream(chat({"content": "Whole."}), chat({}, "stop"), b"data: [DONE]\n\n")
    ask(page, relay, "Go on", "openai/gpt-4o-mini")
    expect(page.get_by_test_id("error")).to_contain_text("upstream_incomplete")
    expect(page.get_by_test_id("answer")).to_have_text("Half an")
    page.get_by_test_id("retry").click()
    expect(page.get_by_test_id("answer").last).to_have_text("Whole.")
    idle(page)


def test_the_answer_is_text_and_no_markup(page: Page, service: Service) -> None:
    ask(page, service, "<img src=x onerror=alert(1)> <b>bold</b>", "scripted/echo")
    idle(page)
    expect(page.get_by_test_id("answer")).to_contain_text("<img src=x onerror=alert(1)> <b>bold</b>")
    assert page.locator("[data-testid=answer] img, [data-testid=answer] b").count() == 0


def test_tool_calls_and_reasoning_are_shown(page: Page, service: Service) -> None:
    ask(page, service, "weather?", "scripted/tools")
    idle(page)
    expect(page.get_by_text("get_weather").first).to_be_visible()
    expect(page.get_by_test_id("answer").last).to_contain_text("21 degrees in Paris")
    ask(page, service, "think", "scripted/reasoning")
    idle(page)
    expect(page.locator("body")).to_contain_text("The user asked something")


def test_it_works_under_a_prefix_that_a_proxy_takes_off(page: Page, service: Service) -> None:
    with Proxy(service, prefix="/a/prefix") as proxy:
        page.goto(f"{proxy.url}a/prefix/")
        ask(page, proxy, "hello", "scripted/echo")
        idle(page)
        expect(page.get_by_test_id("answer")).to_have_text("hello")
        assert proxy.seen("POST") == ["POST /a/prefix/runs"]


def test_it_fits_a_small_phone(chromium: Browser, service: Service) -> None:
    context: Any = chromium.new_context(viewport={"width": 320, "height": 568})
    page = context.new_page()
    ask(page, service, "a-very-long-word-" * 20, "scripted/echo")
    idle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    expect(page.get_by_test_id("send")).to_be_in_viewport()
    context.close()


def test_a_service_that_wants_a_key_gets_it_from_the_person(tab: Page, start_service: Start) -> None:
    service = start_service(SIDESTREAM_API_KEYS="page:open-sesame", SIDESTREAM_MODEL="scripted/echo")
    tab.goto(f"http://127.0.0.1:{service.port}/")
    key, use = tab.get_by_label("API key"), tab.get_by_role("button", name="Use it")
    expect(key).to_be_visible()
    key.fill("another")
    use.click()
    expect(tab.get_by_text("That key does not count.")).to_be_visible()
    key.fill("open-sesame")
    use.click()
    expect(key).to_be_hidden()
    ask(tab, service, "Hello there", "scripted/echo")
    expect(tab.get_by_test_id("answer")).to_have_text("Hello there")
    tab.reload()
    expect(tab.get_by_test_id("model")).to_be_enabled()
    expect(key).to_be_hidden()
    assert "open-sesame" not in service.log


def test_a_run_that_waits_says_where_in_the_line(page: Page, start_service: Start) -> None:
    service = start_service(SIDESTREAM_MAX_RUNS="1", SIDESTREAM_MODEL="scripted/hello")
    with get(service.port, message="hi", model="scripted/silent") as first:
        first.until("start")
        ask(page, service, "Hello")
        expect(page.get_by_text("waiting for a place, number 1 in line").first).to_be_attached()
    expect(page.get_by_test_id("answer")).to_contain_text("I am the scripted provider")
    idle(page)
