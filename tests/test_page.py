"""The chat page in a real Chromium: what a person does with it and sees of it."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from .conftest import Service
from .recorded import chat
from .upstream import END, HOLD, Head, Upstream, relay, upstream, upstream_server

__all__ = ["relay", "upstream", "upstream_server"]  # fixtures

# A sandbox needs rights that containers lack; the rest keeps Chromium from calling home.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A fresh page; what its script complains of fails the test."""
    context = chromium.new_context(viewport={"width": 1000, "height": 700})
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert complaints == []


def ask(page: Page, service: Service, question: str, model: str | None = None) -> None:
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


def test_the_inspector_shows_every_event_as_it_came(page: Page, service: Service) -> None:
    ask(page, service, "hello there", "scripted/echo")
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


@pytest.mark.parametrize("how", ["button", "Escape", "reload"])
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
        page.reload()
    assert exchange.wait().ended == "aborted"
    assert exchange.ended_at - begun < 5
    if how != "reload":
        idle(page)
        expect(page.get_by_test_id("answer")).to_have_text("A long story")


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


def test_it_fits_a_small_phone(chromium: Browser, service: Service) -> None:
    context: Any = chromium.new_context(viewport={"width": 320, "height": 568})
    page = context.new_page()
    ask(page, service, "a-very-long-word-" * 20, "scripted/echo")
    idle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    expect(page.get_by_test_id("send")).to_be_in_viewport()
    context.close()
