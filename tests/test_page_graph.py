"""The chat page with graphs, in a real Chromium: nodes at work, questions to a person, threads that remember."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from .conftest import Service, eventually
from .recorded import call, chat
from .test_page import ask, idle
from .upstream import END, HOLD, PAUSE, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.browser", "tests.served_graphs"]

STOP = [chat({}, "stop"), b"data: [DONE]\n\n", END]
MODES = ["messages", "updates", "tasks", "custom"]
# The timeline as lists: "<node> <state>", or that and the steps in it; "in parallel" and those that are.
STEPS = """root => {
  const read = (list) => [...list.children].map((step) => {
    const inner = step.querySelector(":scope > ol"), { state } = step.dataset;
    const title = state ? `${step.querySelector("b").textContent} ${state}` : step.firstChild.textContent;
    return inner ? [title, read(inner)] : title;
  });
  return read(root.querySelector("ol"));
}"""


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    """A fresh page; what it writes to the console as an error fails the test, too."""
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield tab
    assert complaints == []


@pytest.fixture
def posted(page: Page) -> list[Any]:
    """The requests that the page makes."""
    bodies: list[Any] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
    return bodies


def steps(page: Page) -> Any:
    """Return the last timeline."""
    return page.get_by_test_id("graph").last.evaluate(STEPS)


def told(page: Page, node: str) -> Locator:
    """What is told of the last node of that name, beside its name."""
    named = page.get_by_test_id("node").filter(has=page.get_by_text(node, exact=True))
    return named.last.locator(".told").first


def question(page: Page) -> Locator:
    return page.get_by_test_id("interrupt").last


def said(request: Any) -> list[str]:
    return [message["content"] for message in request.body["messages"]]


# Nodes


def test_nodes_appear_as_they_begin_and_a_subgraphs_in_theirs(page: Page, graphs: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), PAUSE, chat({"content": " two"}), *STOP)
    ask(page, graphs, "Count", "langgraph/keeping_within")
    expect(page.get_by_test_id("answer")).to_have_text("One")
    assert steps(page) == ["note done", ["inner running", ["note_async done", "speak running"]]]
    # It counts; "1.0 s" may still be 950 ms, which are told as such in the end.
    expect(told(page, "speak")).to_have_text(re.compile(r"^running (?!1\.0)[1-9]\d*\.\d s$"))
    upstream.request().release()
    idle(page)
    expect(page.get_by_test_id("answer")).to_have_text("One two")
    assert steps(page) == [
        "note done",
        ["inner done", ["note_async done", "speak done", "note done"]],
        "note_async done",
    ]
    expect(told(page, "speak")).to_have_text(re.compile(r"^done [1-9]\d*\.\d s$"))


def test_nodes_that_work_at_once_are_together_and_each_ones_words_stay_together(
    page: Page, graphs: Service, upstream: Upstream
) -> None:
    for _ in range(2):
        upstream.play(Head(), chat({"content": "Left"}), PAUSE, chat({"content": " right"}), PAUSE, *STOP)
    ask(page, graphs, "March", "langgraph/speaking_both")
    expect(page.get_by_test_id("answer")).to_have_text(["Left", "Left"])
    assert steps(page) == [["in parallel", ["speak running", "speak_blocking running"]]]
    exchanges = [upstream.request() for _ in range(2)]
    exchanges[0].release()
    expect(page.get_by_test_id("answer").filter(has_text="Left right")).to_have_count(1)
    exchanges[1].release()
    expect(page.get_by_test_id("answer")).to_have_text(["Left right", "Left right"])
    assert page.locator(".several [data-from]").evaluate_all(
        "texts => texts.map((text) => text.dataset.from).sort()"
    ) == [
        "speak",
        "speak_blocking",
    ]
    for exchange in exchanges:
        exchange.release()
    idle(page)
    assert steps(page) == [["in parallel", ["speak done", "speak_blocking done"]]]


def test_what_follows_parallel_nodes_is_below_them(page: Page, graphs: Service) -> None:
    ask(page, graphs, "Hi", "langgraph/parallel")
    idle(page)
    assert steps(page) == [["in parallel", ["note done", "note_async done"]], "write done"]
    expect(page.get_by_text("The graph sent no text.")).to_be_visible()


def test_a_node_that_fails_is_shown_failed_with_those_around_it(page: Page, graphs: Service) -> None:
    ask(page, graphs, "Hi", "langgraph/failing_within")
    expect(page.get_by_test_id("error")).to_contain_text("The node 'fail' failed: ValueError.")
    expect(page.get_by_test_id("error")).to_contain_text("graph_failed")
    assert steps(page) == ["note done", ["inner failed", ["note_async done", "fail failed"]]]
    expect(told(page, "fail")).to_have_text("failed: ValueError")


def test_nodes_at_work_are_stopped_with_the_run(page: Page, graphs: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "A long"}), HOLD)
    ask(page, graphs, "Tell me a story", "langgraph/within")
    expect(page.get_by_test_id("answer")).to_have_text("A long")
    page.keyboard.press("Escape")
    assert steps(page) == [["inner stopped", ["speak stopped"]]]
    assert upstream.request().wait().ended == "aborted"


def test_the_inspector_shows_what_a_graph_tells(page: Page, graphs: Service) -> None:
    ask(page, graphs, "Hi", "langgraph/writing")
    idle(page)
    page.get_by_test_id("inspector-toggle").click()
    names = page.get_by_test_id("event-row").evaluate_all("rows => rows.map(row => row.dataset.event)")
    assert names == ["start", "tasks", "custom", "custom", "custom", "updates", "tasks", "done"]
    expect(page.get_by_test_id("event-row").nth(2)).to_contain_text('{"ns":[],"data":{"progress":0}}')


def test_of_very_many_steps_the_last_are_shown(page: Page, graphs: Service) -> None:
    limit = {"config": {"recursion_limit": 150}}
    page.route("**/runs", lambda route: route.continue_(post_data={**route.request.post_data_json, **limit}))
    ask(page, graphs, "Hi", "langgraph/endless")
    expect(page.get_by_test_id("error")).to_contain_text("recursion limit")
    expect(page.get_by_test_id("node")).to_have_count(100)
    assert steps(page) == ["50 earlier", *["note done"] * 100]
    expect(page.get_by_test_id("graph")).to_contain_text("150 steps")


# Reloads


def test_a_reload_among_nodes_at_work_shows_them_as_they_are(page: Page, graphs: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), PAUSE, chat({"content": " two"}), *STOP)
    ask(page, graphs, "Count", "langgraph/keeping_within")
    expect(page.get_by_test_id("answer")).to_have_text("One")
    before = steps(page)
    page.reload()
    expect(page.get_by_test_id("answer")).to_have_text("One")
    assert steps(page) == before
    expect(told(page, "speak")).to_have_text(re.compile(r"^running [1-9]\d*\.\d s$"))
    upstream.request().release()
    idle(page)
    assert steps(page) == [
        "note done",
        ["inner done", ["note_async done", "speak done", "note done"]],
        "note_async done",
    ]
    shown = page.locator("#log").inner_text()
    page.reload()
    idle(page)
    assert page.locator("#log").inner_text() == shown


def test_what_was_not_seen_happening_has_no_time(page: Page, graphs: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), PAUSE, *STOP)
    ask(page, graphs, "Count", "langgraph/keeping_within")
    expect(told(page, "speak")).to_have_text(re.compile(r"^running [1-9]\d*\.\d s$"))
    page.goto("about:blank")
    ended = graphs.log.count("model=keeping_within ")
    upstream.request().release()
    eventually(lambda: graphs.log.count("model=keeping_within ") > ended)  # the graph's last steps, too
    page.go_back()
    idle(page)
    assert steps(page)[1] == ["inner done", ["note_async done", "speak done", "note done"]]
    expect(told(page, "speak")).to_have_text("done")
    expect(told(page, "inner")).to_have_text("done")
    expect(page.get_by_test_id("graph").locator("summary")).to_have_text("Graph6 steps")


def test_what_began_unseen_has_no_time_either(tab: Page, graphs: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), PAUSE, *STOP)
    tab.route("**/events*", lambda route: route.abort())
    ask(tab, graphs, "Count", "langgraph/keeping_within")
    exchange = upstream.request()
    exchange.wait_for_pause()
    expect(tab.get_by_test_id("stats")).to_have_text("connection broken, reconnecting…")
    tab.unroute_all()
    tab.reload()
    expect(tab.get_by_test_id("answer")).to_have_text("One")
    assert steps(tab) == ["note done", ["inner running", ["note_async done", "speak running"]]]
    expect(told(tab, "speak")).to_have_text("running")
    exchange.release()
    idle(tab)
    expect(told(tab, "speak")).to_have_text("done")
    expect(tab.get_by_test_id("graph").locator("summary")).to_have_text("Graph6 steps")


# Questions


@pytest.mark.parametrize(
    ("typed", "sent", "understood"),
    [
        ("yes, do", "yes, do", "yes, do"),
        ('{"yes": [1]}', {"yes": [1]}, "{'yes': [1]}"),
        ("42", 42, "42"),
        ('{"yes', '{"yes', '{"yes'),
    ],
)
def test_an_answer_goes_to_the_thread_that_asked(
    page: Page, graphs: Service, posted: list[Any], typed: str, sent: Any, understood: str
) -> None:
    ask(page, graphs, "Hi", "langgraph/asking_within")
    idle(page)
    assert steps(page) == [["inner waiting", ["ask waiting"]]]
    expect(told(page, "ask")).to_have_text("waits for you")
    expect(question(page)).to_contain_text("Shall I?")
    box = question(page).get_by_role("textbox")
    expect(box).to_be_focused()
    box.fill(typed)
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("answer")).to_have_text(f"You said {understood}.")
    idle(page)
    assert steps(page) == [["inner done", ["ask done", "note done"]], "note_async done"]
    expect(page.locator(".question")).to_have_text(["Hi", typed])
    expect(box).to_be_hidden()
    first, second = posted
    assert first == {"message": "Hi", "model": "langgraph/asking_within", "stream_mode": MODES}
    assert second.pop("thread_id")
    assert second == {"resume": sent, "model": "langgraph/asking_within", "stream_mode": MODES}


def test_a_question_outlives_a_reload_and_yes_or_no_is_a_click(page: Page, graphs: Service) -> None:
    ask(page, graphs, "Hi", "langgraph/asking")
    idle(page)
    before = page.locator("#log").inner_text()
    page.reload()
    expect(question(page)).to_contain_text("Shall I?")
    assert page.locator("#log").inner_text() == before
    page.get_by_role("button", name="No", exact=True).click()
    expect(page.get_by_test_id("answer")).to_have_text("You said False.")
    idle(page)
    after = page.locator("#log").inner_text()
    page.reload()
    idle(page)
    assert page.locator("#log").inner_text() == after
    expect(question(page)).to_contain_text("Shall I?")
    expect(page.get_by_role("button", name="No", exact=True)).to_be_hidden()


def test_several_questions_are_answered_together(page: Page, graphs: Service, posted: list[Any]) -> None:
    ask(page, graphs, "Hi", "langgraph/asking_both")
    idle(page)
    assert steps(page) == [["in parallel", ["ask waiting", "ask_async waiting"]]]
    question(page).get_by_label("Shall I?").fill("yes")
    page.keyboard.press("Enter")
    expect(question(page).get_by_label("Shall I, too?")).to_be_focused()  # it is still to be answered
    assert len(posted) == 1
    page.keyboard.type("no")
    question(page).get_by_test_id("answer-interrupt").click()
    idle(page)
    assert sorted(page.get_by_test_id("answer").all_inner_texts()) == ["You said no, too.", "You said yes."]
    assert sorted(posted[1]["resume"].values()) == ["no", "yes"]


def test_a_graph_that_pauses_without_a_question_goes_on_at_a_click(
    page: Page, graphs: Service, posted: list[Any]
) -> None:
    ask(page, graphs, "Hi", "langgraph/asking_nothing")
    idle(page)
    assert steps(page) == ["note done"]
    page.get_by_role("button", name="Go on").click()
    idle(page)
    assert steps(page) == ["note_async done"]
    assert posted[1]["input"] is None


def test_who_says_something_else_has_not_answered(page: Page, graphs: Service, posted: list[Any]) -> None:
    ask(page, graphs, "Hi", "langgraph/asking")
    idle(page)
    ask(page, graphs, "Something else")
    expect(page.get_by_test_id("interrupt")).to_have_count(2)
    idle(page)
    expect(page.get_by_role("button", name="Yes")).to_have_count(1)
    page.get_by_role("button", name="Yes").click()
    expect(page.get_by_test_id("answer")).to_have_text("You said True.")
    idle(page)
    threads = [body.get("thread_id") for body in posted]
    assert threads[0] is None
    assert threads[1] == threads[2]
    assert posted[1]["message"] == "Something else"


# Threads


def test_a_thread_is_the_memory_and_another_model_is_told_all(
    page: Page, graphs: Service, upstream: Upstream, posted: list[Any]
) -> None:
    for answer in ("Rome.", "Paris.", "Berlin."):
        upstream.stream(chat({"content": answer}), *STOP[:-1])
    ask(page, graphs, "Capital of Italy?", "langgraph/remembering")
    idle(page)
    page.reload()
    expect(page.get_by_test_id("model")).to_be_enabled()
    ask(page, graphs, "Of France?")
    idle(page)
    ask(page, graphs, "Of Germany?", "langgraph/speaking")
    idle(page)
    assert [said(upstream.request()) for _ in range(3)] == [
        ["Capital of Italy?"],
        ["Capital of Italy?", "Rome.", "Of France?"],
        ["Capital of Italy?", "Rome.", "Of France?", "Paris.", "Of Germany?"],
    ]
    assert posted[1].pop("thread_id")
    assert posted[1] == {"message": "Of France?", "model": "langgraph/remembering", "stream_mode": MODES}
    assert "thread_id" not in posted[2]
    expect(page.get_by_test_id("answer")).to_have_text(["Rome.", "Paris.", "Berlin."])


def test_a_thread_is_given_a_system_prompt_once_and_another_one_again(
    page: Page, graphs: Service, upstream: Upstream, posted: list[Any]
) -> None:
    for prompt in ("Be brief.", "Be brief.", "Be kind."):
        upstream.stream(chat({"content": "Yes."}), *STOP[:-1])
        if not posted:
            page.goto(f"http://127.0.0.1:{graphs.port}/")
            page.get_by_role("button", name="System prompt").click()
        page.get_by_role("textbox", name="System prompt").fill(prompt)
        ask(page, graphs, "Hi", "langgraph/remembering")
        idle(page)
    assert [body.get("system") for body in posted] == ["Be brief.", None, "Be kind."]
    assert said([upstream.request() for _ in range(3)][1]) == ["Be brief.", "Hi", "Yes.", "Hi"]


def test_a_retry_goes_on_where_the_thread_failed(
    page: Page, graphs: Service, upstream: Upstream, posted: list[Any]
) -> None:
    upstream.refuse(500, {})
    upstream.stream(chat({"content": "Rome."}), *STOP[:-1])
    ask(page, graphs, "Capital of Italy?", "langgraph/keeping")
    expect(page.get_by_test_id("error")).to_contain_text("The node 'speak' failed")
    assert steps(page) == ["note done", "speak failed"]
    page.get_by_test_id("retry").click()
    expect(page.get_by_test_id("answer")).to_have_text("Rome.")
    idle(page)
    assert steps(page) == ["speak done", "note_async done"]
    assert [said(upstream.request()) for _ in range(2)] == [["Capital of Italy?"]] * 2
    assert posted[1]["input"] is None


# The sample


def test_the_sample_agent_is_one_click_away(page: Page, graphs: Service, upstream: Upstream) -> None:
    weather = [call(0, "", "call_1", "weather"), call(0, '{"city": "Paris"}')]
    upstream.stream(*weather, chat({}, "tool_calls"), b"data: [DONE]\n\n")
    upstream.stream(chat({"content": "It is sunny."}), *STOP[:-1])
    page.goto(f"http://127.0.0.1:{graphs.port}/")
    page.get_by_role("region", name="Try the sample agent").get_by_role("button").first.click()
    expect(page.get_by_test_id("answer")).to_have_text("It is sunny.")
    idle(page)
    assert steps(page) == ["model done", "tools done", "model done"]
    expect(page.locator(".tool")).to_have_text(re.compile(r"weather.*\"Paris\".*Sunny in Paris\."))
    expect(page.get_by_test_id("model")).to_have_value("langgraph/agent")
    assert said(upstream.request()) == ["What is 12 * 7?"]
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_role("heading", name="Try the sample agent")).to_be_visible()


def test_without_an_agent_none_is_offered(page: Page, service: Service) -> None:
    page.goto(f"http://127.0.0.1:{service.port}/")
    expect(page.get_by_test_id("model")).to_be_enabled()
    expect(page.get_by_role("heading", name="Try the sample agent")).to_be_hidden()


def test_a_graph_fits_a_small_phone(chromium: Browser, graphs: Service) -> None:
    context: Any = chromium.new_context(viewport={"width": 320, "height": 568})
    page = context.new_page()
    ask(page, graphs, "Hi", "langgraph/asking_within")
    idle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.get_by_test_id("graph").evaluate("graph => graph.scrollWidth - graph.clientWidth") == 0
    expect(page.get_by_role("button", name="Yes")).to_be_in_viewport()
    context.close()
