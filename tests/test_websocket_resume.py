"""A socket that is lost in mid-turn: a new one with `?resume=<event id>` goes on just there, and with new turns behind.

How the other wires resume is in test_resume.py; which ids lead where, in test_event_ids.py.
"""

import re
from itertools import count
from typing import Any

import pytest
from starlette.applications import Starlette
from websockets.exceptions import InvalidStatus

from .asgi import ask, make_app, run_ahead, service_of, time_passes
from .client import Event, get, text
from .conftest import Service
from .recorded import OPENAI, chat
from .resource import create, is_one_run, rest_of, said, status_of, stop
from .sockets import STOP, WAYS, HandSocket, How, RawSocket, talk
from .test_websocket_turns import BUSY, contents, listening, names, playing
from .upstream import END, HOLD, PAUSE, Head, Repeat, Upstream

pytest_plugins = ["tests.upstream", "tests.served_graphs", "tests.replicas"]
pytestmark = pytest.mark.replicated

# Of two kinds in turn, so that they are several events to who comes late, too.
TOLD = [("reasoning", "Hm."), ("token", "One"), ("reasoning", " So."), ("token", " two")]
CHUNKS = [OPENAI.token(words) if kind == "token" else chat({"reasoning_content": words}) for kind, words in TOLD]
EVENTS = len(TOLD) + 2
HELD = [Head(), *OPENAI.opening, *CHUNKS[:2], HOLD]


def is_whole(events: list[Event]) -> bool:
    """Tell whether these are the turn's events, each of them once and in its place, and its `done`."""
    start, *between, done = events
    run = start.data["run"]
    assert [event.id for event in events] == [f"{run}-{number}" for number in range(1, EVENTS + 1)]
    assert between == [Event(kind, f"{run}-{seq}", {kind: words}) for seq, (kind, words) in enumerate(TOLD, 2)]
    return (start.name, done.name, done.data["tokens"]) == ("start", "done", len(TOLD))


def play_turn(upstream: Upstream, pause_after: int) -> None:
    """Answer by the turn's events, with a pause once so many of them have been."""
    pause = max(pause_after - 1, 0)
    upstream.play(Head(), *OPENAI.opening, *CHUNKS[:pause], PAUSE, *CHUNKS[pause:], *OPENAI.ending, END)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("seen", range(1, EVENTS + 1))
def test_a_turn_goes_on_at_every_event_its_socket_was_lost_at(
    relay: Service, upstream: Upstream, seen: int, how: How
) -> None:
    """And the next message is asked with what the client sends along."""
    play_turn(upstream, seen)
    with talk(relay.port, "model=openai&linger=20") as socket:
        socket.say("Hi")
        exchange = upstream.request()
        if seen == EVENTS:
            exchange.release()
        before = [socket.next() for _ in range(seen)]
        socket.lose(how)
    upstream.stream(*OPENAI.opening, OPENAI.token("Next."), *OPENAI.ending)
    with talk(relay.port, f"model=openai&resume={before[-1].id}") as socket:
        exchange.release()
        after = socket.rest() if seen < EVENTS else []
        assert is_whole(before + after)
        assert exchange.wait().ended == "completed"
        history = [("user", "Hi"), ("assistant", text(before + after)), ("user", "And?")]
        resent = [{"role": role, "content": content} for role, content in history]
        start, *turn = socket.turn({"messages": resent})
        assert start.name == "start"
        assert text(turn) == "Next."
    assert upstream.request().body["messages"] == resent
    assert upstream.exchanges.empty()


TICKS = 60


@pytest.mark.parametrize("size", range(700, 900, 67))
def test_a_socket_that_is_cut_off_again_and_again_gets_it_all(relay: Service, upstream: Upstream, size: int) -> None:
    """At any byte: in a frame's head or its text."""
    ticks = [(OPENAI.token(f"{number} "), Repeat(b"", every=0.002, times=1)) for number in range(TICKS)]
    upstream.play(Head(), *OPENAI.opening, *(step for tick in ticks for step in tick), *OPENAI.ending, END)
    last = f"{create(relay.port, message='Hi')['id']}-0"
    whole: list[Event] = []
    for turn in count():
        with RawSocket(relay.port, f"resume={last}") as socket:
            while len(socket.raw) < size + turn % 7 and not re.search(rb'"done":true.*}}$', socket.raw):
                socket.take(len(socket.raw) + 1)
            socket.hang_up(reset=bool(turn % 2))
            whole += socket.events
        if whole and whole[-1].name == "done":
            break
        last = whole[-1].id if whole else last
        assert turn < TICKS
    assert is_one_run(whole)
    assert said(whole)["token"] == "".join(f"{number} " for number in range(TICKS))
    assert turn > 1
    upstream.request()
    assert upstream.exchanges.empty()


def test_every_event_is_a_place_to_go_on_from(relay: Service, upstream: Upstream) -> None:
    """Also those that who comes late gets as parts of a merged one."""
    words = [f"w{number} " for number in range(30)]
    upstream.stream(*OPENAI.opening, *map(OPENAI.token, words), *OPENAI.ending)
    created = create(relay.port, message="Hi")
    rest_of(get(relay.port, created["events_url"]))
    for seen in range(32):
        with talk(relay.port, f"resume={created['id']}-{seen}") as socket:
            events = socket.rest()
        assert names(events) == ["start"] * (seen == 0) + ["token"] * (seen <= 30) + ["done"], seen
        assert text(events) == "".join(words[max(seen - 1, 0) :])
        assert [event.id for event in events][-2:] == [f"{created['id']}-{number}" for number in (31, 32)][seen // 31 :]
    upstream.request()
    assert upstream.exchanges.empty()


@pytest.mark.one_process("viewers are counted where they are")
def test_a_run_that_was_posted_is_followed_from_its_beginning(relay: Service, upstream: Upstream) -> None:
    play_turn(upstream, 3)
    created = create(relay.port, message="Hi")
    with talk(relay.port, f"resume={created['id']}-0") as socket:
        events = [socket.next() for _ in range(3)]
        assert status_of(relay.port, created["status_url"])["viewers"] == 1
        upstream.request().release()
        assert is_whole(events + socket.rest())


def test_without_linger_a_lost_turn_is_over_and_tells_the_rest(relay: Service, upstream: Upstream) -> None:
    upstream.play(*HELD)
    with talk(relay.port) as socket:
        socket.say("Hi")
        before = [socket.next(), socket.next()]
        exchange = upstream.request()
        exchange.wait_for_pause()
        socket.lose("RST")
    assert exchange.wait().ended == "aborted"
    upstream.stream(*OPENAI.opening, OPENAI.token("Next."), *OPENAI.ending)
    with talk(relay.port, f"resume={before[-1].id}") as socket:
        token, ending = socket.rest()
        assert (token.name, token.data, token.id) == ("token", {"token": "One"}, f"{before[0].data['run']}-3")
        assert (ending.name, ending.data["reason"]) == ("cancelled", "disconnected")
        assert text(socket.turn("And?")) == "Next."


def test_a_resumed_turn_is_stopped_like_any_other(relay: Service, upstream: Upstream) -> None:
    upstream.play(*HELD)
    with talk(relay.port, "linger=20") as socket:
        socket.say("Hi")
        start = socket.next()
        socket.lose("FIN")
    with talk(relay.port, f"resume={start.id}") as socket:
        assert names([socket.next(), socket.next()]) == ["reasoning", "token"]
        exchange = upstream.request()
        assert not exchange.ended
        (ending,) = socket.turn(STOP)
        assert (ending.name, ending.data["reason"]) == ("cancelled", "requested")
        assert exchange.wait().ended == "aborted"


def test_what_is_asked_during_a_resumed_turn_is_refused_and_behind_it_is_not(
    relay: Service, upstream: Upstream
) -> None:
    play_turn(upstream, 1)
    upstream.stream(*OPENAI.opening, OPENAI.token("Next."), *OPENAI.ending)
    with talk(relay.port, "linger=20") as socket:
        socket.say("Hi")
        start = socket.next()
        socket.lose("close")
    with talk(relay.port, f"resume={start.id}&system=Short.") as socket:
        assert socket.turn("Too soon") == [Event("error", "", BUSY)]
        upstream.request().release()
        assert is_whole([start, *socket.rest()])
        assert text(socket.turn("And?")) == "Next."
    asked = upstream.request().body["messages"]
    assert contents(asked) == ["Short.", "And?"], "what was said on the lost socket died with it"


def test_who_comes_back_stops_neither_the_socket_that_stayed_nor_its_conversation(
    relay: Service, upstream: Upstream
) -> None:
    play_turn(upstream, 3)
    upstream.stream(*OPENAI.opening, OPENAI.token("Next."), *OPENAI.ending)
    with talk(relay.port) as stayed:
        stayed.say("Hi")
        first = [stayed.next() for _ in range(3)]
        with talk(relay.port, f"resume={first[0].id}") as second, talk(relay.port, f"resume={first[1].id}") as third:
            others = [second.next(), second.next()], [third.next()]
            with talk(relay.port, f"resume={first[2].id}"):
                pass  # who leaves is not the last
            upstream.request().release()
            assert is_whole(first + stayed.rest())
            assert is_whole(first[:1] + others[0] + second.rest())
            assert is_whole(first[:2] + others[1] + third.rest())
        assert text(stayed.turn("And?")) == "Next."
    assert contents(upstream.request().body["messages"]) == ["Hi", "One two", "And?"]


def test_a_run_that_is_stopped_elsewhere_ends_the_resumed_turn(relay: Service, upstream: Upstream) -> None:
    upstream.play(*HELD)
    created = create(relay.port, message="Hi")
    with talk(relay.port, f"resume={created['id']}-0") as socket:
        assert names([socket.next() for _ in range(3)]) == ["start", "reasoning", "token"]
        stop(relay.port, created["status_url"])
        (ending,) = socket.rest()
        assert (ending.name, ending.data["reason"]) == ("cancelled", "requested")


@pytest.mark.one_process("a graph's thread is remembered where it was")
def test_an_interrupt_that_was_lost_is_told_and_answered_on_a_new_socket(graphs: Service) -> None:
    query = "model=langgraph/asking&thread_id=lost"
    with talk(graphs.port, f"{query}&linger=20") as socket:
        socket.say("Well?")
        start = socket.next()
        socket.lose("RST")
    with talk(graphs.port, f"{query}&resume={start.id}") as socket:
        *_, interrupt, done = socket.rest()
        assert (interrupt.data["value"], done.data["finish_reason"]) == ({"question": "Shall I?"}, "interrupt")
        assert text(socket.turn({"resume": "yes"})) == "You said yes."


# --- over an app driven by hand: what is sent, and when -----------------------------------------------------------


async def finished(app: Starlette) -> str:
    """Have a run that is over; return its id."""
    exchange = await ask(app, "GET", "/stream?message=Hi")
    return exchange.headers["content-location"].removeprefix("/runs/")


def test_who_has_seen_it_all_gets_nothing_and_may_go_on() -> None:
    async def test() -> tuple[list[Any], list[Event]]:
        app = await listening()
        run = await finished(app)
        async with HandSocket(app, f"resume={run}-3") as socket:
            await time_passes(100)
            sent = [message["type"] for message in socket.sent]
            socket.say("Hi")
            await socket.until_turns(1)
            return sent, socket.events

    sent, events = run_ahead(test())
    assert sent == ["websocket.accept"]
    assert names(events) == ["start", "token", "done"]


def test_who_goes_on_with_a_run_that_is_over_may_ask_behind_its_end() -> None:
    async def test() -> list[Event]:
        app = await listening()
        run = await finished(app)
        async with HandSocket(app, f"resume={run}-1") as socket:
            await socket.until_turns(1)
            socket.say("Hi")
            await socket.until_turns(2)
            return socket.events

    assert names(run_ahead(test())) == ["token", "done", "start", "token", "done"]


async def lost(query: str, seconds: float) -> list[Event]:
    """Lose a socket at once, come back so much later, and return what each has got."""
    app = await make_app()
    async with HandSocket(app, query) as socket:
        socket.say("Hi")
        start = await socket.until("start")
    await time_passes(seconds)
    async with HandSocket(app, f"resume={start.id}") as socket:
        await time_passes(60)
        return [start, *socket.events]


TALKING = playing({"say": "word " * 30, "every": 1}, linger=5)


def test_who_is_back_in_time_stops_the_clock() -> None:
    events = run_ahead(lost(TALKING, 4.75))
    assert text(events) == "word " * 30
    assert events[-1].name == "done"


def test_who_is_back_too_late_gets_the_rest() -> None:
    events = run_ahead(lost(TALKING, 5.25))
    assert text(events) == "word" + " word" * 4
    assert (events[-1].name, events[-1].data["reason"]) == ("cancelled", "disconnected")


RUBBISH = ["x", "5", "{run}", "{run}-", "{run}--1", "{run}-01", "{run}-1.0", "{RUN}-1", " {run}-1", "{run}-1%0a", "-1"]
NOWHERE = [
    *((400, "invalid_request", rubbish) for rubbish in RUBBISH),
    (400, "invalid_request", "{run}-4"),
    (400, "invalid_request", "{run}-999999999999999"),
    (404, "not_found", "0" * 32 + "-1"),
    (404, "not_found", "0" * 32 + "-0"),
]


@pytest.mark.parametrize(("status", "code", "seen"), NOWHERE, ids=[seen for _, _, seen in NOWHERE])
def test_an_id_that_leads_nowhere_refuses_the_socket_and_starts_no_run(status: int, code: str, seen: str) -> None:
    async def test() -> tuple[tuple[int, Any] | None, int]:
        app = await listening()
        run = await finished(app)
        async with HandSocket(app, f"resume={seen.format(run=run, RUN=run.upper())}") as socket:
            return socket.refused_with, len(service_of(app).runs)

    refused, going_on = run_ahead(test())
    assert refused
    assert (refused[0], refused[1]["status"], refused[1]["code"], going_on) == (status, status, code, 0)


def test_a_run_that_is_no_longer_kept_refuses_the_socket() -> None:
    async def test() -> tuple[int, Any] | None:
        app = await listening(SIDESTREAM_KEEP="5")
        run = await finished(app)
        await time_passes(5.25)
        async with HandSocket(app, f"resume={run}-1") as socket:
            return socket.refused_with

    refused = run_ahead(test())
    assert refused
    assert (refused[0], refused[1]["code"]) == (404, "not_found")


def test_an_empty_id_is_none() -> None:
    async def test() -> list[Event]:
        async with HandSocket(await listening(), "resume=") as socket:
            socket.say("Hi")
            await socket.until_turns(1)
            return socket.events

    assert names(run_ahead(test())) == ["start", "token", "done"]


@pytest.mark.parametrize(("seen", "status"), [("rubbish", 400), ("0" * 32 + "-1", 404)])
def test_a_client_sees_why_it_was_refused(service: Service, seen: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as refused, talk(service.port, f"resume={seen}"):
        pass
    response = refused.value.response
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")


@pytest.mark.one_process("what a mirror does not have yet is waited for")
def test_a_refused_id_leaves_the_run_alone(relay: Service, upstream: Upstream) -> None:
    play_turn(upstream, 3)
    created = create(relay.port, message="Hi")
    with pytest.raises(InvalidStatus), talk(relay.port, f"resume={created['id']}-99"):
        pass
    with talk(relay.port, f"resume={created['id']}-0") as socket:
        upstream.request().release()
        assert is_whole(socket.rest())
