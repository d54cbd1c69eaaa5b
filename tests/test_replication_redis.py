"""What becomes of viewers when Redis dies, stands still, is full, or loses what it held.

Who follows a run at the replica that makes it notices nothing. Who follows it at another goes on where it was once
Redis is back; where that takes long it is told `draining`, and finds the run at its owner. Nobody is told that a run is
lost whose owner lives. Each scene has a Redis and replicas of its own; they are played side by side: they mostly wait.
"""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from .client import delete, get, post
from .conftest import Service, eventually
from .followers import Follower, check, paced, play
from .redis_server import Redis
from .replicas import reach, starting_replicas
from .resource import answer, create, refused, stop

ENVIRON = {"SIDESTREAM_MODEL": "scripted/hello", "SIDESTREAM_RETRY_MS": "300", "SIDESTREAM_LINGER": "60"}
KEY, OTHER = {"Idempotency-Key": "a"}, {"Idempotency-Key": "b"}
COUNTS = paced(1500, 0.04)  # for longer than any scene
ECHO = {"message": "Hello", "model": "scripted/echo"}
STALLS = {"message": "Hi", "model": "scripted/stall"}  # after a few words
MESSAGES = [{"id": "u", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}]
CHAT = {"id": "chat", "messages": MESSAGES, "model": "scripted/stall"}
UNNOTICED = 1.5  # how long a stream may rest that rests 40 ms, on a machine that has other things to do, seconds


@contextmanager
def replicas(number: int, redis: Redis) -> Iterator[list[Service]]:
    with starting_replicas() as start:
        services = [*start(number=number, redis=redis, **ENVIRON).services]
        yield services
        for service in services:
            assert "Traceback" not in service.log
            assert "has died" not in service.log


def is_well(service: Service) -> bool:
    """Whether Redis answers it, and has what it said."""
    told = reach(service)
    return bool(told["redis"] == "up" and told["behind_seconds"] < 0.5)


def are_well(*services: Service) -> None:
    eventually(lambda: all(map(is_well, services)))


def found_again(redis: Redis) -> None:
    """Return once both have noticed that it was started anew: each asks for the secret, if nothing else."""
    eventually(lambda: redis.calls().get("get", 0) >= 2)


def begun_anew(port: int, headers: dict[str, str], run: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether who asks for a run again, by its key, gets another one."""
    return bool(create(port, headers, **asked)["id"] != run["id"])


def whole(port: int, run: dict[str, Any]) -> str:
    with Follower([port], run["events_url"]) as follower:
        return follower.rest().text


def says(body: bytes) -> bool:
    return b"These" in body


def unreachable(port: int, run: dict[str, Any]) -> None:
    """Assert that who asks for a run is to come again: a stream by `draining`, all else by a status."""
    with Follower([port], run["events_url"], come_back=False) as turned_away:
        turned_away.rest()
    assert (turned_away.statuses, len(turned_away.drained), turned_away.events) == ([200], 1, [])
    for ask in (get, delete):
        assert refused(ask(port, run["status_url"]))[:2] == (503, "unavailable")


def end(port: int, run: dict[str, Any], owner: Follower, *others: Follower) -> None:
    """Stop a run by `port`; all who followed it have all of it, and who did at its owner was never kept waiting."""
    stop(port, run["status_url"])
    for follower in (owner, *others):
        check(follower.rest(), "cancelled")
        assert follower.text == owner.text
    assert (owner.statuses, owner.drained, owner.cuts) == ([200], [], [])
    assert owner.longest_pause < UNNOTICED


def dies(*, keeps: bool) -> None:
    with Redis(keeps=keeps) as redis, replicas(2, redis) as (a, b), ExitStack() as stack:

        def follow(run: dict[str, Any], *services: Service) -> Follower:
            return stack.enter_context(Follower([service.port for service in services], run["events_url"]))

        counts, unseen = create(a.port, KEY, **COUNTS), create(a.port, **STALLS)
        # The other has such runs alone as say nothing by then.
        echo, stalls = create(b.port, OTHER, **ECHO), create(b.port, **STALLS)
        assert whole(b.port, echo) == "Hello"
        stack.enter_context(post(b.port, "/ui/chat", **CHAT)).read_on(says)
        owner, there = follow(counts, a), follow(counts, b)
        for follower in (owner, there):
            follower.has(10)
        are_well(a, b)

        redis.kill()
        redis.start()
        there.has(10)
        found_again(redis)
        are_well(a, b)
        assert (there.statuses, there.drained) == ([200], []), "it was soon back"
        # All that was there is there again: what is over, what says nothing now, keys, names, and what signs URLs.
        eventually(lambda: redis.ask("EXISTS", *(f"sidestream:run:{run['id']}" for run in (echo, stalls))) == 2)
        assert whole(a.port, echo) == "Hello"
        assert not begun_anew(a.port, OTHER, echo, ECHO)
        assert not begun_anew(b.port, KEY, counts, COUNTS)
        stack.enter_context(get(a.port, "/ui/chat/chat/stream")).read_on(says)
        quiet, late = follow(stalls, a), follow(counts, b)
        quiet.until(lambda follower: follower.said)
        late.has(10)

        redis.kill()
        died = time.monotonic()
        for follower in (late, there):
            follower.until(lambda follower: follower.drained)
            assert 4.5 < follower.drained[0] - died < 10
        unreachable(b.port, unseen)
        assert begun_anew(b.port, {"Idempotency-Key": "c"}, echo, ECHO), "it works by itself meanwhile"
        wanders = follow(counts, b, a)
        wanders.has(100)
        assert len(wanders.statuses) == 2
        redis.start()
        found_again(redis)
        are_well(a, b)
        for follower in (late, there):
            follower.has(10)
        assert whole(a.port, echo) == "Hello"
        end(b.port, counts, owner, there, late, wanders)
        stop(a.port, stalls["status_url"])
        assert quiet.rest().endings[0].event.data["reason"] == "requested"


def a_redis_that_dies_comes_back_empty() -> None:
    dies(keeps=False)


def a_redis_that_dies_comes_back_with_all_it_had() -> None:
    dies(keeps=True)


def a_redis_stands_still_for_ten_seconds() -> None:
    with Redis() as redis, replicas(2, redis) as (a, b):
        counts = create(a.port, **COUNTS)
        url = counts["events_url"]
        with (
            Follower([a.port], url) as owner,
            Follower([b.port], url) as stays,
            Follower([b.port, b.port, a.port], url) as wanders,
        ):
            for follower in (owner, stays, wanders):
                follower.has(10)
            redis.pause()
            paused = time.monotonic()
            eventually(lambda: reach(b)["redis"] == "down")
            wanders.until(lambda follower: len(follower.statuses) == 3)
            told = reach(a)
            assert (told["redis"], told["why"]) == ("down", "TimeoutError")
            assert 4 < told["behind_seconds"] <= time.monotonic() - paused + 0.5
            assert told["behind_events"] > 50
            eventually(lambda: time.monotonic() > paused + 10)
            redis.go_on()
            stays.has(10)
            are_well(a, b)
            assert (reach(a)["lost_runs"], reach(b)["lost_runs"], reach(a)["why"]) == (0, 0, "")
            end(b.port, counts, owner, stays, wanders)


def a_redis_is_full_for_a_while() -> None:
    with Redis() as redis, replicas(2, redis) as (a, b):
        counts = create(a.port, **COUNTS)
        url = counts["events_url"]
        with Follower([a.port], url) as owner, Follower([b.port], url) as there:
            for follower in (owner, there):
                follower.has(10)
            redis.ask("CONFIG", "SET", "maxmemory", 1)
            full = time.monotonic()
            eventually(lambda: [reach(one)["redis"] for one in (a, b)] == ["full", "full"])
            assert b"\nsidestream_redis_up 0.0\n" in answer(get(a.port, "/metrics")).body
            begun = create(a.port, **COUNTS)
            unreachable(b.port, begun)
            with Follower([b.port], begun["events_url"]) as comes_again, Follower([a.port], begun["events_url"]) as its:
                # What a lease holds for is over by then, and no new one can be had.
                redis.ask("DEL", *redis.ask("KEYS", "sidestream:replica:*"))
                eventually(lambda: time.monotonic() > full + 8)
                told = reach(a)
                assert (told["redis"], told["why"]) == ("full", "OOM")
                assert told["behind_seconds"] > 7
                redis.ask("CONFIG", "SET", "maxmemory", 0)
                for follower in (there, comes_again):
                    follower.has(10)
                are_well(a, b)
                end(b.port, begun, its, comes_again)
            assert 4.5 < there.drained[0] - full < 8, "its owner would have it"
            end(b.port, counts, owner, there)


def a_large_run_fills_redis() -> None:
    words = " ".join(f"{number:06}" * 2000 for number in range(300))
    script = [{"say": words, "every": 0.01}]
    with Redis() as redis, replicas(2, redis) as (a, b):
        used = int(redis.ask("INFO", "memory").partition("used_memory:")[2].split()[0])
        redis.ask("CONFIG", "SET", "maxmemory", used + 2**20)
        large = create(a.port, message="Hi", model="scripted/custom", provider_options={"script": script})
        counts = create(a.port, **COUNTS)
        with (
            Follower([a.port], large["events_url"]) as owner,
            Follower([b.port], large["events_url"]) as there,
            Follower([a.port], counts["events_url"]) as counting,
        ):
            check(owner.rest(), "done", text=words)
            assert owner.longest_pause < UNNOTICED
            told = reach(a)
            assert (told["redis"], told["why"]) == ("full", "OOM")
            redis.ask("CONFIG", "SET", "maxmemory", 0)
            check(there.rest(), "done", text=words)
            are_well(a, b)
            with Follower([b.port], counts["events_url"]) as late:
                late.has(1)
                end(b.port, counts, counting, late)


def a_redis_loses_what_it_held() -> None:
    with Redis() as redis, replicas(3, redis) as (a, b, c), ExitStack() as stack:
        counts, stalls = create(a.port, KEY, **COUNTS), create(a.port, **STALLS)
        echo = create(b.port, OTHER, **ECHO)
        assert whole(a.port, echo) == "Hello"
        are_well(a, b)
        url, stream = counts["events_url"], f"sidestream:run:{counts['id']}"
        owner, there = (stack.enter_context(Follower([one.port], url)) for one in (a, b))
        for follower in (owner, there):
            follower.has(10)
        redis.ask("DEL", stream)
        there.has(10)
        late = stack.enter_context(Follower([c.port], url))  # which has nothing of it but what is there again
        late.has(10)
        secret = redis.ask("GET", "sidestream:secret")
        redis.ask("FLUSHALL")
        there.has(10)
        eventually(lambda: redis.ask("GET", "sidestream:secret") == secret)
        eventually(lambda: redis.ask("EXISTS", stream, *(f"sidestream:run:{run['id']}" for run in (stalls, echo))) == 3)
        (d,) = stack.enter_context(replicas(1, redis))
        later = stack.enter_context(Follower([d.port], url))
        later.has(10)
        assert whole(d.port, echo) == "Hello"
        assert not begun_anew(d.port, OTHER, echo, ECHO)
        assert not begun_anew(b.port, KEY, counts, COUNTS)
        assert (there.statuses, there.drained) == ([200], [])
        end(d.port, counts, owner, there, late, later)


def a_redis_comes_back_empty_while_an_owner_hangs() -> None:
    """Its lease is gone then, and it does not renew it yet."""
    with Redis() as redis, replicas(2, redis) as (a, b):
        counts = create(a.port, **COUNTS)
        with Follower([b.port], counts["events_url"]) as there, Follower([a.port], counts["events_url"]) as owner:
            there.has(10)
            are_well(a, b)
            a.process.send_signal(signal.SIGSTOP)
            hangs = time.monotonic()
            redis.kill()
            redis.start()
            eventually(lambda: time.monotonic() > hangs + 2)
            a.process.send_signal(signal.SIGCONT)
            there.has(10)
            owner.has(10)
            stop(b.port, counts["status_url"])
            for follower in (there, owner):
                check(follower.rest(), "cancelled")
                assert follower.statuses == [200]


SCENES = [
    a_redis_that_dies_comes_back_empty,
    a_redis_that_dies_comes_back_with_all_it_had,
    a_redis_stands_still_for_ten_seconds,
    a_redis_is_full_for_a_while,
    a_redis_comes_back_empty_while_an_owner_hangs,
    a_large_run_fills_redis,
    a_redis_loses_what_it_held,
]


@pytest.fixture(scope="module")
def played() -> "dict[str, Future[None]]":
    return play(*SCENES)


@pytest.mark.parametrize("scene", [scene.__name__ for scene in SCENES])
def test_no_viewer_loses_anything_where(scene: str, played: "dict[str, Future[None]]") -> None:
    played[scene].result()
