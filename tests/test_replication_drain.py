"""A replica that is told to stop, among others: who can come back goes to another, at once and without loss; who cannot
stays until the answer is whole, or `drain_timeout` is over. Its runs go on meanwhile, and are followed by the others.

Each scene has a Redis and replicas of its own, and they are played side by side: they mostly wait.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import pytest

from .client import DEADLINE, Client, get, post
from .conftest import Service, eventually
from .followers import Follower, check, paced, play, posted
from .recorded import OPENAI
from .redis_server import Redis
from .replicas import reach, starting_replicas
from .resource import NDJSON, create, refused, status_of
from .sockets import talk
from .upstream import END, PAUSE, Exchange, Head, Upstream, environ

ENVIRON = {"SIDESTREAM_MODEL": "scripted/hello", "SIDESTREAM_RETRY_MS": "300", "SIDESTREAM_DRAIN_TIMEOUT": "30"}
COUNTS = paced(125, 0.04)
ALL = COUNTS["provider_options"]["script"][0]["say"]
Viewer = TypeVar("Viewer")
SOON = 3.0  # on a machine that has other things to do, seconds


@contextmanager
def replicas(number: int, *, redis: Redis | None = None, **more: str) -> Iterator[list[Service]]:
    with starting_replicas() as start:
        services = start(number=number, redis=redis, **{**ENVIRON, **more}).services
        yield [*services]
        for service in services:
            assert "Traceback" not in service.log


def go(service: Service) -> float:
    """Tell it to stop; return when."""
    service.process.send_signal(signal.SIGTERM)
    return time.monotonic()


def gone(service: Service) -> None:
    assert service.process.wait(DEADLINE) == 0


def an_owner_goes() -> None:
    """Those who can come back have all that was said before they go; its runs go on for them, however they linger."""
    with ExitStack() as stack:
        enter = stack.enter_context
        upstream = enter(Upstream())
        a, b = enter(replicas(2, **environ(upstream)))
        exchanges: list[Exchange] = []

        def answered(ask: Callable[[], Viewer]) -> Viewer:
            """Answer what is asked by one word, and the rest when all are let go on."""
            upstream.play(
                Head(), *OPENAI.opening, OPENAI.token("One"), PAUSE, OPENAI.token(" two"), *OPENAI.ending, END
            )
            viewer = ask()
            exchanges.append(upstream.request())
            return viewer

        counts = create(a.port, linger=1, **COUNTS)
        url = counts["events_url"]
        moves, there = enter(Follower([a.port, b.port], url)), enter(Follower([b.port], url))
        lines = enter(Client(a.port, "GET", url, headers=NDJSON))
        # Of these, no run lingers: it goes on as long as it is followed.
        source = answered(lambda: enter(Follower([a.port, b.port], "/chat/stream?message=Hi&model=openai")))
        posts = answered(lambda: enter(posted(a.port, message="Hi", model="openai")))
        chat = {"model": "openai", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
        foreign = answered(lambda: enter(post(a.port, "/v1/chat/completions", **chat)))
        talks = enter(talk(a.port, "model=openai"))
        answered(lambda: talks.say("Hi"))

        assert [talks.next().name for _ in range(2)] == ["start", "token"]
        foreign.read_on(lambda data: b"One" in data)
        for follower in (posts, source):
            follower.until(lambda follower: follower.text == "One")
        for follower in (moves, there):
            follower.has(5)
        went = go(a)
        for follower in (moves, source):
            follower.until(lambda follower: len(follower.statuses) == 2)
            assert follower.drained[0] - went < SOON
        told = [json.loads(line) for line in lines.read().splitlines() if line]
        assert told[-1]["event"] == "draining"
        assert 0 < told[-1]["data"]["retry_ms"] <= 300
        assert refused(get(a.port, message="Hi"))[:2] == (503, "shutting_down")
        assert [exchange.ended for exchange in exchanges] == [""] * 4
        for exchange in exchanges:
            exchange.release()
        assert [event.name for event in talks.rest()] == ["token", "done"]
        assert foreign.read().endswith(b"data: [DONE]\n\n")
        assert b" two" in foreign.body
        assert [exchange.wait().ended for exchange in exchanges] == ["completed"] * 4
        for follower, text, statuses in (
            (posts, "One two", [200]),
            (source, "One two", [200, 200]),
            (moves, ALL, [200, 200]),
            (there, ALL, [200]),
        ):
            check(follower.rest(), "done", text=text)
            assert follower.statuses == statuses
            assert len(follower.drained) == len(statuses) - 1
        assert max(follower.longest_pause for follower in (moves, there)) < SOON
        gone(a)
        assert status_of(b.port, counts["status_url"])["state"] == "done"
        check(enter(Follower([b.port], url)).rest(), "done", text=ALL)
        assert not upstream.complaints, upstream.complaints


def a_replica_goes_where_others_runs_are_followed() -> None:
    """Those who cannot come back follow them there to the end, or until its time is over."""
    key = {"Idempotency-Key": "a"}
    chat = {"id": "chat", "messages": [{"id": "u", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}]}
    as_chat = {name: value for name, value in COUNTS.items() if name != "message"}
    with ExitStack() as stack:
        enter = stack.enter_context
        redis = enter(Redis())
        a, b = enter(replicas(2, redis=redis))
        (hurries,) = enter(replicas(1, redis=redis, SIDESTREAM_DRAIN_TIMEOUT="1"))
        counts = create(a.port, key, **COUNTS)
        url = counts["events_url"]
        owner, moves = enter(Follower([a.port], url)), enter(Follower([b.port, a.port], url))
        posts, cut = enter(posted(b.port, key, **COUNTS)), enter(posted(hurries.port, key, **COUNTS))
        talks = enter(talk(b.port, f"resume={counts['id']}-0"))
        enter(post(a.port, "/ui/chat", **chat, **as_chat)).read_on(lambda data: b" 3" in data)
        foreign = enter(get(b.port, "/ui/chat/chat/stream"))
        foreign.read_on(lambda data: b" 3" in data)
        for follower in (owner, moves, posts, cut):
            follower.has(5)

        went = max(go(b), go(hurries))
        moves.until(lambda follower: len(follower.statuses) == 2)
        assert moves.drained[0] - went < SOON
        check(cut.rest(), "cancelled")
        assert cut.endings[0].event.data["reason"] == "draining"
        assert 0.9 < cut.endings[0].at - went < 1 + SOON
        gone(hurries)
        assert b.process.poll() is None
        for follower, statuses in ((owner, [200]), (moves, [200, 200]), (posts, [200])):
            check(follower.rest(), "done", text=ALL)
            assert follower.statuses == statuses
        assert talks.rest()[-1].name == "done"
        assert foreign.read().endswith(b"data: [DONE]\n\n")
        gone(b)


def an_owner_goes_while_redis_is_away() -> None:
    """Nobody can be sent elsewhere then: all stay until the end, as they do without other replicas."""
    with Redis() as redis, replicas(2, redis=redis) as (stands_still, dies):
        runs = [create(service.port, **COUNTS) for service in (stands_still, dies)]
        with (
            Follower([stands_still.port], runs[0]["events_url"]) as one,
            Follower([dies.port], runs[1]["events_url"]) as other,
        ):
            for follower in (one, other):
                follower.has(5)
            redis.pause()  # of which nobody has noticed anything yet
            go(stands_still)
            eventually(lambda: "redis lacks what was said: viewers stay" in stands_still.log)
            redis.kill()
            eventually(lambda: reach(dies)["redis"] == "down")
            go(dies)
            for follower, service in ((one, stands_still), (other, dies)):
                check(follower.rest(), "done", text=ALL)
                assert (follower.statuses, follower.drained) == ([200], [])
                assert follower.longest_pause < SOON
                gone(service)


def an_owner_is_told_twice() -> None:
    with replicas(2) as (a, b):
        counts = create(a.port, **COUNTS)
        with (
            Follower([a.port, b.port], counts["events_url"]) as moves,
            Follower([b.port], counts["events_url"]) as there,
        ):
            for follower in (moves, there):
                follower.has(5)
            go(a)
            moves.until(lambda follower: len(follower.statuses) == 2)
            moves.has(5)
            went = go(a)
            for follower in (moves, there):
                check(follower.rest(), "cancelled")
                assert follower.endings[0].event.data["reason"] == "draining"
                assert follower.endings[0].at - went < SOON
            assert moves.endings[0].block == there.endings[0].block
            gone(a)


SCENES = [
    an_owner_goes,
    a_replica_goes_where_others_runs_are_followed,
    an_owner_goes_while_redis_is_away,
    an_owner_is_told_twice,
]


@pytest.fixture(scope="module")
def played() -> "dict[str, Future[None]]":
    return play(*SCENES)


@pytest.mark.parametrize("scene", [scene.__name__ for scene in SCENES])
def test_every_viewer_gets_one_end_where(scene: str, played: "dict[str, Future[None]]") -> None:
    played[scene].result()
