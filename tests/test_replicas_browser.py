"""A real Chromium whose pages follow runs through a real nginx, which takes turns among three replicas.

By EventSource and by sidestream.js they are cut off at random, and sent elsewhere by replicas that go. What a page has
heard is what the run has said, with no gap, nothing twice and one end. (Chances as in test_replicas_chaos.py.)
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page

from .client import Event, post
from .conftest import Service
from .proxy import PASS, Cut, How, Proxy, Refuse
from .replicas import Nginx, Replicas, StartReplicas
from .test_replicas_chaos import Chaos, Part, check, new_seed, replace, script_of, telling

pytest_plugins = ["tests.replicas", "tests.browser"]

MODEL = "scripted/custom"
SETTINGS = {"SIDESTREAM_DRAIN_TIMEOUT": "20", "SIDESTREAM_RETRY_MS": "50"}
TABS = 4
CUTS = 150  # of each of two kinds of requests
HOWS: tuple[How, ...] = ("FIN", "RST")

# `heard[n]` is all that the n-th source of a page was told: events, each with its id, and how its connection fares.
# `sources[n].over` is when it hears no more.
LISTEN = """(url) => {
  window.heard ??= [];
  window.sources ??= [];
  const list = [], source = new EventSource(url), at = () => performance.now();
  const names = ["start", "token", "reasoning", "tool_call_delta", "tool_call", "tool_result", "draining", "done",
                 "cancelled", "error"];
  for (const name of names) source.addEventListener(name, ({ type, lastEventId, data }) =>
    list.push(data ? [type, lastEventId, JSON.parse(data), at()] : ["lost", "", null, at()]));
  source.addEventListener("open", () => list.push(["open", "", null, at()]));
  heard.push(list);
  sources.push({ over: new Promise((resolve) =>
    source.addEventListener("error", () => source.readyState === EventSource.CLOSED && resolve())) });
}"""
STREAM = """async ([request, times]) => {
  window.heard ??= [];
  window.sources ??= [];
  const { stream, follow } = await import("/sidestream.js"), at = () => performance.now();
  const hear = (begin) => {
    const list = [];
    const answer = begin({
      onEvent: ({ event, id, data }) => list.push([event, id, data, at()]),
      onConnection: (state) => list.push([state, "", null, at()]),
    });
    heard.push(list);
    sources.push({ over: answer.result.then(({ text }) => text) });
    return answer;
  };
  const run = await hear((options) => stream(request, options)).run;
  for (let more = 1; more < times; more++) hear((options) => follow(run, options));
}"""


@pytest.fixture(scope="module")
def replicas(start_replicas: StartReplicas) -> Iterator[Replicas]:
    replicas = start_replicas(number=3, balance=Nginx, **SETTINGS)
    yield replicas
    replicas.stop()  # those that came later, too


def listen(tab: Page, script: list[dict[str, Any]]) -> None:
    """Have a page start a run by an EventSource of its own, and follow it."""
    options = json.dumps({"script": script})
    tab.evaluate(
        LISTEN,
        "/chat/stream?" + urlencode({"message": "Hi", "model": MODEL, "provider_options": options, "linger": 30}),
    )


def stream(tab: Page, script: list[dict[str, Any]], times: int = 1) -> None:
    """Have a page start a run by sidestream.js, and follow it so many times."""
    tab.evaluate(STREAM, [{"message": "Hi", "model": MODEL, "provider_options": {"script": script}}, times])


def over(tab: Page, number: int) -> Any:
    """Return once a source hears no more: what it was resolved with. Fails where it goes on for a minute."""
    late = "new Promise((_, reject) => setTimeout(() => reject(new Error('it goes on')), 60000))"
    return tab.evaluate(f"number => Promise.race([sources[number].over, {late}])", number)


def heard(tab: Page, number: int) -> list[tuple[Event, float]]:
    """Return all that a source was told, and when, in milliseconds."""
    return [(Event(*told), at) for *told, at in tab.evaluate("number => heard[number]", number)]


def events(tab: Page, number: int) -> list[Event]:
    """Return the run's events."""
    return [event for event, _ in heard(tab, number) if event.data is not None and event.name != "draining"]


def words(number: int, every: float = 0.02) -> tuple[list[dict[str, Any]], list[Part]]:
    """Return a script of so many words, and the events that come of it."""
    said = [f" word{place}" for place in range(number)]
    return [{"say": "".join(said), "every": every}], [
        Part("start"),
        *(Part("token", one) for one in said),
        Part("done"),
    ]


def test_pages_that_are_cut_off_at_random_have_all_of_it_in_the_end(
    chromium: Browser, replicas: Replicas, tmp_path: Path
) -> None:
    """And meanwhile one of the replicas goes, and another one comes."""
    seed = new_seed()
    chance, chaos = random.Random(seed), Chaos(replicas.port)
    with telling(seed, chaos), Proxy(replicas) as proxy:
        for begin in ("GET /chat/stream after", "GET /runs/*/events"):
            proxy.do(begin, *[Cut(chance.randrange(1, 800), chance.choice(HOWS)) for _ in range(CUTS)])
        proxy.do("GET /chat/stream", *[Cut(chance.randrange(500, 1200)) for _ in range(TABS)])  # behind the first id
        tabs: list[tuple[Page, list[list[Part]]]] = []
        for _ in range(TABS):
            tab = chromium.new_context().new_page()  # a browser has six connections to a host, each context its own
            tab.goto(f"{proxy.url}healthz")
            (script, parts), (other_script, other) = script_of(chance), script_of(chance)
            listen(tab, script)
            stream(tab, other_script, times=2)
            tabs.append((tab, [parts, other, other]))
        replace(replicas, SETTINGS, tmp_path, chance.randrange(3))
        for tab, runs in tabs:
            for number, parts in enumerate(runs):
                over(tab, number)
                check(events(tab, number), parts)
                chaos.counts["sent away"] += [event.name for event, _ in heard(tab, number)].count("draining")
            tab.context.close()
        back = [record for record in proxy.records if " after " in record]
        chaos.counts["cut"] = len(back) - chaos.counts["sent away"] - TABS  # each EventSource has come for its 204
    assert chaos.counts["cut"] >= 100


def served_by(replicas: Replicas, request: str) -> Service:
    """Return the replica that has answered the latest of such requests."""
    (service,) = [service for service in replicas.services if request in service.log]
    return service


def test_a_page_that_is_sent_elsewhere_hears_of_it_and_comes_back_as_soon_as_it_is_to(
    tab: Page, start_replicas: StartReplicas
) -> None:
    replicas = start_replicas(number=3, balance=Nginx, SIDESTREAM_DRAIN_TIMEOUT="20", SIDESTREAM_RETRY_MS="20000")
    script, parts = words(150)
    tab.goto(f"http://127.0.0.1:{replicas.port}/healthz")
    listen(tab, script)
    stream(tab, script)
    tab.wait_for_function("heard.length === 2 && heard.every((list) => list.some(([name]) => name === 'token'))")
    going = {served_by(replicas, '"GET /chat/stream'), served_by(replicas, "/events HTTP")}
    for service in going:
        service.process.terminate()
    tab.wait_for_function("heard.every((list) => list.some(([name]) => name === 'done'))")
    for number in range(2):
        check(events(tab, number), parts)
        told = heard(tab, number)
        sent_away = [place for place, (event, _) in enumerate(told) if event.name == "draining"]
        assert sent_away
        for place in sent_away:
            (event, at), (lost, _), (opened, later) = told[place : place + 3]
            assert event.id == [before.id for before, _ in told[:place] if before.id][-1]
            assert (lost.name, opened.name) == ("lost", "open")
            assert 300 <= event.data["retry_ms"] <= 1000
            assert event.data["retry_ms"] - 20 <= later - at < event.data["retry_ms"] + 5000
    assert [service.process.wait(20) for service in going] == [0] * len(going)


def test_a_page_that_is_sent_elsewhere_before_it_heard_an_id_knows_where_it_was(
    tab: Page, start_replicas: StartReplicas
) -> None:
    """A new EventSource that is sent away at once has no last id of its own."""
    replicas = start_replicas(number=1, SIDESTREAM_DRAIN_TIMEOUT="20", SIDESTREAM_RETRY_MS="50")
    script = [{"say": "One"}, {"wait": 2, "say": " two"}]
    (replica,) = replicas.services
    with Proxy(replicas) as proxy, post(replica.port, message="Hi", model="scripted/silent") as staying:
        staying.until("start")  # while somebody stays so does the replica, wherever the page is when its run ends
        tab.goto(f"{proxy.url}healthz")
        stream(tab, script)
        tab.wait_for_function("heard[0].some(([name]) => name === 'token')")
        proxy.do("GET /runs/*/events", *[Refuse(502), PASS] * 2)  # an EventSource gives up, sidestream.js makes another
        replica.process.terminate()
        assert over(tab, 0) == "One two"
    drainings = [event.id for event, _ in heard(tab, 0) if event.name == "draining"]
    check(told := events(tab, 0), [Part("start"), Part("token", "One"), Part("token", " two"), Part("done")])
    assert set(drainings) == {told[1].id}
    assert set(proxy.seen("GET /runs/*/events")[1:]) == {"GET /runs/*/events after 2"}
