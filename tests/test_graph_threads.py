"""Threads: what a graph with a checkpointer remembers, how it waits for a person, and whose turn it is.

Kept in memory, in SQLite by LangGraph's asynchronous saver, and in SQLite by its synchronous one.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from .client import Client, Event, get, post
from .conftest import Service, Start
from .recorded import Told
from .resource import create, refused, stop
from .served_graphs import (
    USAGE,
    answer,
    been,
    counted,
    done,
    go_on,
    held,
    joined,
    of,
    start,
    start_graphs,
    state_of,
    told,
    updates,
)
from .test_websocket import turn
from .upstream import PAUSE, Exchange, Upstream

pytest_plugins = ["tests.upstream", "tests.served_graphs"]


def said_to(exchange: Exchange) -> list[str]:
    """What the upstream was sent: the contents of all messages."""
    return [message["content"] for message in exchange.body["messages"]]


def thread_of(client: Client) -> str:
    """Return the thread that `start` names, and read on to the end."""
    with client:
        thread = client.until("start").data["thread_id"]
        client.until("done")
    return str(thread)


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_a_thread_remembers_from_request_to_request(graphs: Service, upstream: Upstream) -> None:
    for words in ("Hello.", "Fine."):
        upstream.stream(*answer(words))
    for message, words in (("Hi", "Hello."), ("How are you?", "Fine.")):
        with post(graphs.port, "/remembering/stream", message=message, thread_id="memory") as client:
            assert told(client) == [
                start("remembering", thread_id="memory"),
                ("token", {"token": words, "node": "speak"}),
                *updates({"speak": {"messages": [f"ai: {words}"], "been": ["speak"]}}),
                done("remembering", 1, USAGE),
            ]
    assert said_to(upstream.request()) == ["Hi"]
    assert said_to(upstream.request()) == ["Hi", "Hello.", "How are you?"]


def test_a_request_that_names_no_thread_gets_one_to_go_on_with(graphs: Service, upstream: Upstream) -> None:
    for words in ("One.", "Two.", "Three."):
        upstream.stream(*answer(words))
    first = thread_of(post(graphs.port, "/remembering/stream", message="First"))
    second = thread_of(get(graphs.port, "/remembering/stream", message="Second"))
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", first)
    assert first != second
    assert thread_of(get(graphs.port, "/remembering/stream", message="And?", thread_id=first)) == first
    assert [said_to(upstream.request()) for _ in range(3)] == [["First"], ["Second"], ["First", "One.", "And?"]]


def test_a_graph_without_a_checkpointer_names_no_thread(graphs: Service) -> None:
    with post(graphs.port, "/writing/stream", message="Hi") as client:
        assert client.until("start").data.keys() == {"run", "provider", "model", "created"}


@pytest.mark.parametrize("thread", ["a/b:c|d", "größer 🧵", "x" * 1000, "' OR 1=1 --", "__pregel"], ids=range(5))
def test_any_text_names_a_thread(graphs: Service, upstream: Upstream, thread: str) -> None:
    for _ in range(2):
        upstream.stream(*answer("Yes."))
        assert thread_of(post(graphs.port, "/remembering/stream", message="Hi", thread_id=thread)) == thread
    upstream.request()
    assert said_to(upstream.request()) == ["Hi", "Yes.", "Hi"]


def test_a_thread_is_its_graphs_own(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Yes."))
    told(post(graphs.port, "/remembering/stream", message="Hi", thread_id="shared"))
    told(post(graphs.port, "/asking/stream", message="Ho", thread_id="shared"))
    assert state_of(graphs, "remembering", "shared") == [{"messages": ["human: Hi", "ai: Yes."], "been": ["speak"]}]


def test_a_run_that_is_created_has_a_thread_too(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Yes."))
    created = create(graphs.port, message="Hi", model="langgraph/remembering", thread_id="created")
    assert thread_of(get(graphs.port, created["events_url"])) == "created"
    assert thread_of(get(graphs.port, created["events_url"])) == "created", "and no second run is started"
    assert said_to(upstream.request()) == ["Hi"]


def test_a_socket_with_a_thread_sends_no_history_of_its_own(graphs: Service, upstream: Upstream) -> None:
    for words in ("Hello.", "Fine."):
        upstream.stream(*answer(words))
    address = f"ws://127.0.0.1:{graphs.port}/ws/chat?model=langgraph/remembering&thread_id=socket"
    with connect(address, proxy=None) as socket:
        turn(socket, "Hi")
        turn(socket, "How are you?")
    assert [said_to(upstream.request()) for _ in range(2)] == [["Hi"], ["Hi", "Hello.", "How are you?"]]


# --- Interrupts ------------------------------------------------------------------------------------------------------

QUESTION = ("interrupt", {"id": "*", "value": {"question": "Shall I?"}})


def said(answer: Any) -> Told:
    return [
        ("token", {"token": f"You said {answer}.", "node": "ask"}),
        *updates({"ask": {"messages": [f"ai: You said {answer}."], "been": ["ask"]}}),
    ]


def ask(service: Service, graph: str, thread: str) -> Told:
    return told(post(service.port, f"/{graph}/stream", message="Hi", thread_id=thread))


ANSWERS = ["yes", "", True, False, 0, 1.5, [], ["a"], {"sure": {"very": True}}]


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_a_graph_waits_for_a_person_and_goes_on_with_the_answer(graphs: Service, answer: Any) -> None:
    thread = f"answered {answer!r}"
    begun = start("asking", thread_id=thread)
    assert ask(graphs, "asking", thread) == [begun, QUESTION, done("asking", 0, counted(1, 0), "interrupt")]
    _, *events, _ = told(post(graphs.port, "/asking/stream", resume=answer, thread_id=thread))
    assert events == [*said(answer), *updates({"note": {"been": ["note"]}})]


@pytest.mark.parametrize(
    ("answer", "heard"), [("yes", "yes"), ("a, b", "a, b"), ('{"sure":true}', {"sure": True}), ("7", 7), ('"7"', "7")]
)
def test_an_answer_may_come_by_a_query(graphs: Service, answer: str, heard: Any) -> None:
    thread = f"by query {answer}"
    ask(graphs, "asking", thread)
    _, *events, _ = told(get(graphs.port, "/asking/stream", resume=answer, thread_id=thread))
    assert events == [*said(heard), *updates({"note": {"been": ["note"]}})]


def test_an_answer_may_come_over_a_socket(graphs: Service) -> None:
    with connect(f"ws://127.0.0.1:{graphs.port}/ws/chat?model=langgraph/asking&thread_id=asked", proxy=None) as socket:
        assert turn(socket, "Hi")[-1][1]["finish_reason"] == "interrupt"
        events = turn(socket, {"resume": "yes"})
    assert joined([Event(name, "", data) for name, data in events])[1:-1] == [
        *said("yes"),
        *updates({"note": {"been": ["note"]}}),
    ]


@pytest.mark.parametrize("modes", ["values", "messages", "tasks", ["custom", "debug"]], ids=str)
def test_a_question_is_told_in_every_mode(graphs: Service, modes: Any) -> None:
    events = told(post(graphs.port, "/asking/stream", message="Hi", stream_mode=modes))
    assert [data for name, data in events if name == "interrupt"] == [QUESTION[1]]
    assert events[-1][1]["finish_reason"] == "interrupt"


def test_a_question_from_a_subgraph_is_told_once_and_answered_there(graphs: Service) -> None:
    begun = start("asking_within", thread_id="within")
    unanswered = done("asking_within", 0, counted(1, 0), "interrupt")
    assert ask(graphs, "asking_within", "within") == [begun, QUESTION, unanswered]
    _, *events, ended = told(post(graphs.port, "/asking_within/stream", resume="yes", thread_id="within"))
    assert been(events) == ["inner/ask", "inner/note", "inner", "note_async"]
    assert ("token", {"token": "You said yes.", "node": "ask", "ns": ["inner:*"]}) in events
    assert ended[1]["finish_reason"] == "stop"


def questions(client: Client) -> dict[str, str]:
    """The ids of the questions that are asked."""
    with client:
        return {event.data["value"]["question"]: event.data["id"] for event in client if event.name == "interrupt"}


def test_several_questions_at_once_are_answered_by_their_ids(graphs: Service) -> None:
    asked = questions(post(graphs.port, "/asking_both/stream", message="Hi", thread_id="several"))
    assert asked.keys() == {"Shall I?", "Shall I, too?"}
    both = {asked["Shall I?"]: "yes", asked["Shall I, too?"]: "no"}
    events = told(post(graphs.port, "/asking_both/stream", resume=both, thread_id="several"))
    assert sorted(data["token"] for data in of("token", events)) == ["You said no, too.", "You said yes."]
    assert events[-1][1]["finish_reason"] == "stop"


def test_of_several_questions_those_stay_that_are_not_answered(graphs: Service) -> None:
    asked = questions(post(graphs.port, "/asking_both/stream", message="Hi", thread_id="one by one"))
    answers = {asked["Shall I?"]: "yes"}
    with post(graphs.port, "/asking_both/stream", resume=answers, thread_id="one by one") as client:
        assert questions(client) == {"Shall I, too?": asked["Shall I, too?"]}
    events = told(post(graphs.port, "/asking_both/stream", resume="no", thread_id="one by one"))
    assert of("token", events)[-1]["token"] == "You said no, too."
    assert events[-1][1]["finish_reason"] == "stop"


def refusal(client: Client) -> tuple[str, str]:
    name, data = told(client)[-1]
    return name, data.get("code", data.get("finish_reason"))


def test_one_answer_to_several_questions_is_refused_and_changes_nothing(graphs: Service) -> None:
    asked = questions(post(graphs.port, "/asking_both/stream", message="Hi", thread_id="ambiguous"))
    client = post(graphs.port, "/asking_both/stream", resume="yes", thread_id="ambiguous")
    assert refusal(client) == ("error", "invalid_input")
    assert questions(go_on(graphs, "asking_both", "ambiguous")) == asked


def test_null_is_no_answer(graphs: Service) -> None:
    """LangGraph takes a resume of None for none at all."""
    ask(graphs, "asking", "null")
    text = "`resume` is the answer to an interrupt, and null is none."
    client = post(graphs.port, "/asking/stream", resume=None, thread_id="null")
    assert refused(client) == (400, "invalid_request", text, "resume")
    assert been(told(post(graphs.port, "/asking/stream", resume="yes", thread_id="null"))) == ["ask", "note"]


def test_an_answer_that_nobody_waits_for_does_nothing(graphs: Service) -> None:
    ask(graphs, "asking", "twice")
    for expected in (["ask", "note"], []):
        assert been(told(post(graphs.port, "/asking/stream", resume="yes", thread_id="twice"))) == expected


def test_a_graph_that_stops_before_a_node_goes_on_without_an_input(graphs: Service) -> None:
    begun, *events, ended = ask(graphs, "asking_nothing", "before")
    assert (begun, ended) == (
        start("asking_nothing", thread_id="before"),
        done("asking_nothing", 0, counted(1, 0), "interrupt"),
    )
    assert been(events) == ["note"]
    _, *events, ended = told(go_on(graphs, "asking_nothing", "before"))
    assert (been(events), ended[1]["finish_reason"]) == (["note_async"], "stop")


def test_a_thread_goes_on_from_its_last_checkpoint_after_a_failure(graphs: Service, upstream: Upstream) -> None:
    upstream.refuse(500, {"error": {"message": "no"}})
    with post(graphs.port, "/keeping/stream", message="Hi", thread_id="failed") as client:
        events = told(client)
    assert (been(events), events[-1][1]["code"]) == (["note"], "graph_failed")
    upstream.stream(*answer("Hello."))
    with get(graphs.port, "/keeping/stream", input="null", thread_id="failed") as client:
        assert been(told(client)) == ["speak", "note_async"]
    whole = {"messages": ["human: Hi", "ai: Hello."], "been": ["note", "speak", "note_async"]}
    assert state_of(graphs, "keeping", "failed") == [whole]


def test_a_thread_that_never_began_cannot_go_on(graphs: Service) -> None:
    assert refusal(go_on(graphs, "asking", "never begun")) == ("error", "invalid_input")


# --- Turns -----------------------------------------------------------------------------------------------------------


def first_turn(service: Service, upstream: Upstream, thread: str) -> tuple[Client, Exchange]:
    """Begin a run on the thread, and return once its model has said a word; it waits there."""
    upstream.play(*held(PAUSE))
    client = post(service.port, "/remembering/stream", message="First", thread_id=thread, stream_mode="messages")
    assert client.until("token").data["token"] == "Here"
    return client, upstream.request()


def test_a_second_request_on_a_thread_waits_for_the_first_and_sees_what_it_said(
    graphs: Service, upstream: Upstream
) -> None:
    first, exchange = first_turn(graphs, upstream, "busy")
    with first, post(graphs.port, "/remembering/stream", message="Second", thread_id="busy") as second:
        assert second.until("start").data["thread_id"] == "busy"
        upstream.stream(*answer("Elsewhere."))  # for whoever asks next: that must be another thread
        told(post(graphs.port, "/remembering/stream", message="Other", thread_id="idle"))
        assert said_to(upstream.request()) == ["Other"]
        assert not exchange.ended
        upstream.stream(*answer("Yes?"))
        exchange.release()
        assert first.until("done").data["usage"] == USAGE
        assert second.until("token").data == {"token": "Yes?", "node": "speak"}
        assert second.until("done").data["usage"] == USAGE
    assert said_to(upstream.request()) == ["First", "Here I am.", "Second"]


def test_turns_are_taken_in_the_order_of_asking(graphs: Service, upstream: Upstream) -> None:
    first, exchange = first_turn(graphs, upstream, "queue")
    waiting = []
    for number in range(5):
        upstream.stream(*answer(f"No. {number}."))
        client = post(graphs.port, "/remembering/stream", message=f"Asked {number}", thread_id="queue")
        client.until("start")
        waiting.append(client)
    exchange.release()
    for client in [first, *waiting]:
        with client:
            client.until("done")
    expected = ["First", "Here I am."]
    for number in range(5):
        expected += [f"Asked {number}"]
        assert said_to(upstream.request()) == expected
        expected += [f"No. {number}."]


def test_who_leaves_or_is_stopped_while_waiting_leaves_the_turn_to_the_next(
    graphs: Service, upstream: Upstream
) -> None:
    first, exchange = first_turn(graphs, upstream, "left")
    leaving, stopped, last = (
        post(graphs.port, "/remembering/stream", message=message, thread_id="left")
        for message in ("Leaving", "Stopped", "Last")
    )
    for client in (leaving, stopped, last):
        client.until("start")
    leaving.hang_up()
    stop(graphs.port, stopped.head()[1]["content-location"])
    assert [event.name for event in stopped] == ["cancelled"]
    upstream.stream(*answer("Yes?"))
    exchange.release()
    for client in (first, last):
        with client:
            client.until("done")
    stopped.hang_up()
    assert said_to(upstream.request()) == ["First", "Here I am.", "Last"]


def test_a_failed_turn_lets_the_next_begin(graphs: Service, upstream: Upstream) -> None:
    for _ in range(2):
        upstream.refuse(500, {"error": {"message": "no"}})
        client = post(graphs.port, "/remembering/stream", message="Hi", thread_id="failing")
        assert refusal(client) == ("error", "graph_failed")
    assert [said_to(upstream.request()) for _ in range(2)] == [["Hi"], ["Hi", "Hi"]]


# --- SQLite, and what comes of threads when the service starts anew --------------------------------------------------

STORED = {"stored": "speak", "stored_blocking": "speak_blocking"}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("threads") / "threads.db"


@pytest.fixture(scope="module")
def services(start_service: Start, upstream_server: Upstream, database: Path) -> Iterator[Service]:
    """A service that is started when it is asked for, and anew each time that it was stopped."""

    def begin() -> Iterator[Service]:
        while True:
            service = start_graphs(start_service, upstream_server, *STORED, "grouped", GRAPHS_DATABASE=str(database))
            while service.process.poll() is None:
                yield service

    return begin()


@pytest.mark.parametrize("graph", STORED)
def test_threads_in_sqlite_remember_and_wait_like_others(
    services: Iterator[Service], upstream: Upstream, graph: str
) -> None:
    service, node = next(services), STORED[graph]
    upstream.stream(*answer("Hello", " there"))
    with post(service.port, f"/{graph}/stream", message="Hi", thread_id="short") as client:
        assert told(client) == [
            start(graph, thread_id="short"),
            ("token", {"token": "Hello there", "node": node}),
            *updates({node: {"messages": ["ai: Hello there"], "been": [node]}}),
            QUESTION,
            done(graph, 2, USAGE, "interrupt"),
        ]
    _, *events, _ = told(post(service.port, f"/{graph}/stream", resume="yes", thread_id="short"))
    assert events == [*said("yes"), *updates({"note": {"been": ["note"]}})]
    upstream.stream(*answer("Again."))
    told(post(service.port, f"/{graph}/stream", message="And?", thread_id="short"))
    assert said_to(upstream.request()) == ["Hi"]
    assert said_to(upstream.request()) == ["Hi", "Hello there", "You said yes.", "And?"]


@pytest.mark.parametrize("graph", STORED)
def test_two_requests_on_one_thread_in_sqlite_take_turns(
    services: Iterator[Service], upstream: Upstream, graph: str
) -> None:
    service, path = next(services), f"/{graph}/stream"
    upstream.play(*held(PAUSE))
    upstream.stream(*answer("Yes?"))
    with (
        post(service.port, path, message="First", thread_id="busy") as first,
        post(service.port, path, message="Second", thread_id="busy") as second,
    ):
        exchange = upstream.request()
        for client in (first, second):
            client.until("start")
        exchange.release()
        endings = [client.until("done").data["finish_reason"] for client in (first, second)]
    assert endings == ["interrupt", "interrupt"]
    one, other = said_to(exchange), said_to(upstream.request())
    assert other == [*one, "Here I am.", ({"First", "Second"} - {*one}).pop()]


def test_threads_in_sqlite_outlive_the_service_which_closes_them_in_the_end(
    services: Iterator[Service], upstream: Upstream, database: Path
) -> None:
    for graph in STORED:
        upstream.stream(*answer("Hello."))
        told(post(next(services).port, f"/{graph}/stream", message="Hi", thread_id="long"))
    closed, left, opened = (database.with_suffix(suffix) for suffix in (".closed", ".left", ".opened"))
    assert (closed.exists(), opened.read_text()) == (False, "once\n")
    next(services).stop()
    assert (closed.exists(), opened.read_text()) == (True, "once\n")
    anew = next(services)
    for graph in STORED:
        _, *events, _ = told(post(anew.port, f"/{graph}/stream", resume="yes", thread_id="long"))
        assert events == [*said("yes"), *updates({"note": {"been": ["note"]}})]
        (state,) = state_of(anew, graph, "long")
        assert state["messages"] == ["human: Hi", "ai: Hello.", "ai: You said yes."]
    assert left.exists(), "what one factory has opened is closed in the task that opened it"
