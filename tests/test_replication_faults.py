"""What becomes of viewers when a replica dies, or is cut off from Redis; how a run is stopped, and lingers, from afar.

Each scene has a Redis and replicas of its own, and they are played side by side: they mostly wait.
"""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Barrier
from typing import Any

import pytest

from .client import Client, get, post
from .conftest import Service, eventually
from .followers import Follower, Said, check, paced, play, posted
from .recorded import OPENAI
from .redis_server import Redis
from .replicas import reach, starting_replicas
from .resource import NDJSON, answer, create, events_in, refused, rest_of, status_of, stop
from .sockets import STOP, talk
from .turns import Turns
from .upstream import END, HOLD, PAUSE, Head, Upstream, environ

ENVIRON = {"SIDESTREAM_MODEL": "scripted/hello", "SIDESTREAM_RETRY_MS": "300", "SIDESTREAM_LINGER": "60"}
COUNTS = paced(1500, 0.04)  # for longer than any scene
KEY = {"Idempotency-Key": "a"}
LOST = 8.0  # how long it takes at most until a run is given up, seconds
LAPSES = 3.0  # and at least: as long as a lease holds
UNNOTICED = 1.5  # how long a stream may rest that rests 40 ms, on a machine that has other things to do, seconds


@contextmanager
def replicas(
    number: int, *, redis: Redis | None = None, command: list[str] | None = None, **more: str
) -> Iterator[list[Service]]:
    with starting_replicas() as start:
        services = start(number=number, redis=redis, command=command, **{**ENVIRON, **more}).services
        yield [*services]
        for service in services:
            assert "Traceback" not in service.log


def lost(follower: Follower) -> Said:
    """Return the one end it got: that the run is lost."""
    (ending,) = follower.endings
    assert ending is follower.said[-1]
    assert (ending.event.name, ending.event.data["code"]) == ("error", "run_lost")
    assert ending.event.data["retryable"]
    return ending


def standing(port: int, run: dict[str, Any]) -> tuple[str, str]:
    """Return how a run stands, and by what it ended."""
    told = status_of(port, run["status_url"])
    ending = told["ending"] or {}
    return told["state"], ending.get("code") or ending.get("reason") or ""


# --- who dies ---------------------------------------------------------------------------------------------------------


def a_replica_dies_with_its_runs_and_its_viewers() -> None:
    """Its runs are lost for all, at the same event; a run that only its viewers wanted lingers, and ends."""
    with Redis() as redis, replicas(3, redis=redis) as (dies, b, c):
        counts, later = create(dies.port, **COUNTS), create(dies.port, **COUNTS)
        wanted = create(b.port, linger=1, **COUNTS)
        url = counts["events_url"]
        with (
            Follower([dies.port, b.port], url) as owners,
            Follower([b.port], url) as second,
            Follower([c.port], url) as third,
            Follower([dies.port, c.port], wanted["events_url"], come_back=False) as leaves,
            Client(b.port, "GET", url, headers=NDJSON) as lines,
            talk(c.port, f"resume={counts['id']}-0") as talks,
        ):
            for follower in (owners, second, third, leaves):
                follower.has(10)
            # What the owner says from here on is seen by its own viewers alone.
            redis.pause()
            owners.has(10)
            dies.process.kill()
            dead = time.monotonic()
            redis.go_on()
            endings = [lost(follower.rest()) for follower in (owners, second, third)]
            assert {ending.block for ending in endings} == {endings[0].block}
            assert all(LAPSES <= ending.at - dead < LOST for ending in endings)
            for follower in (second, third):
                check(follower, "error")
                assert (follower.statuses, follower.text) == ([200], second.text)
            assert owners.text.startswith(second.text)
            assert len(owners.text) > len(second.text), "it had seen more than reached Redis"
            assert owners.statuses == [200, 200]
            lines.read()
            assert events_in(lines)[-1] == talks.rest()[-1] == endings[0].event
            # Who comes later, to whom nobody had told anything of it.
            with Follower([c.port], later["events_url"]) as late:
                lost(late.rest())
            reached = int(late.events[-2].id.rpartition("-")[2])
            for seen, told in (
                (late.seen, []),
                *((f"{later['id']}-{number}", [late.said[-1].block]) for number in (reached, reached + 1, 5000)),
            ):
                with Follower([b.port], later["events_url"], seen=seen) as again:
                    assert [one.block for one in again.rest().said] == told
                    assert again.statuses == [200 if told else 204]
            assert standing(b.port, counts) == standing(c.port, later) == ("error", "run_lost")
            stop(b.port, counts["status_url"])  # which it has
            eventually(lambda: standing(b.port, wanted) == ("cancelled", "disconnected"))
            assert LAPSES + 1 <= time.monotonic() - dead < LOST + 1 + 1
        assert reach(b)["lost_runs"] + reach(c)["lost_runs"] >= 2


# --- who is cut off ---------------------------------------------------------------------------------------------------


# It waits 60 s otherwise until it gives up who cannot be sent elsewhere.
IMPATIENT = "import sys, uvicorn; from streaming import replication as one; one.GIVE_UP = 7.0"
START = "sys.argv.insert(1, 'service:app'); uvicorn.main()"


def a_replica_is_cut_off_from_redis() -> None:
    """Its own viewers notice nothing, those of its runs elsewhere lose them, those of its mirrors go elsewhere."""
    with ExitStack() as stack:
        enter = stack.enter_context
        redis = enter(Redis())
        cable = enter(Turns([redis.port]))
        a, c = enter(replicas(2, redis=redis))
        way = {"SIDESTREAM_REDIS_URL": f"redis://127.0.0.1:{cable.port}"}
        (cut,) = enter(replicas(1, redis=redis, command=[sys.executable, "-c", f"{IMPATIENT}; {START}"], **way))

        def follow(run: dict[str, Any], *services: Service) -> Follower:
            return enter(Follower([service.port for service in services], run["events_url"]))

        its, others = create(cut.port, **COUNTS), create(a.port, KEY, **COUNTS)
        owner, there = follow(its, cut), follow(its, a)
        others_owner, elsewhere = follow(others, a), follow(others, c)
        goes, comes_back, cannot_go = (
            follow(others, cut, c),
            follow(others, cut),
            enter(posted(cut.port, KEY, **COUNTS)),
        )
        for follower in (owner, there, others_owner, elsewhere, goes, comes_back, cannot_go):
            follower.has(10)

        cable.hold()
        held = time.monotonic()
        check(there.rest(), "error")
        assert LAPSES <= lost(there).at - held < LOST
        assert lost(follow(its, c).rest()).block == lost(there).block
        goes.until(lambda follower: len(follower.statuses) == 2)
        assert 4.5 < goes.drained[0] - held < 15
        goes.has(10)
        lost(cannot_go.rest())
        check(cannot_go, "error")
        assert reach(cut)["redis"] == "down"
        owner.has(10)

        cable.go_on()
        eventually(lambda: reach(cut)["redis"] == "up")
        eventually(lambda: "gave it up for lost" in cut.log)
        owner.has(20)
        assert standing(cut.port, its) == ("running", "")
        assert standing(a.port, its) == ("error", "run_lost"), "that is not taken back"
        again = follow(its, a).rest()
        assert (again.text, lost(again).block) == (there.text, lost(there).block)
        anew = create(cut.port, **COUNTS)
        well = follow(anew, a).has(5)
        stop(a.port, anew["status_url"])
        check(well.rest(), "cancelled")

        for run in (its, others):
            stop(cut.port, run["status_url"])
        for follower in (owner, others_owner, elsewhere, goes, comes_back):
            check(follower.rest(), "cancelled")
        for follower in (owner, others_owner, elsewhere):
            assert (follower.statuses, follower.drained) == ([200], [])
            assert follower.longest_pause < UNNOTICED
        assert goes.text == comes_back.text == others_owner.text
        assert others_owner.text.startswith(cannot_go.text)
        assert reach(a)["lost_runs"] == 1


# --- what is wanted of a run from afar --------------------------------------------------------------------------------


def a_run_is_stopped_and_lingers_by_those_elsewhere() -> None:
    with Upstream() as upstream, replicas(2, **environ(upstream)) as (a, b):
        # Stopped there, it is stopped at the upstream.
        delays = []
        for way in ("DELETE", "DELETE", "frame", "DELETE"):
            upstream.play(Head(), *OPENAI.opening, OPENAI.token("One"), HOLD)
            run = create(a.port, message="Hi", model="openai")
            exchange = upstream.request()
            with Follower([b.port], run["events_url"]) as there:
                there.until(lambda follower: follower.text == "One")
                with talk(b.port, f"resume={there.seen}") as talks:
                    asked = time.monotonic()
                    if way == "frame":
                        talks.say(STOP)
                    else:
                        stop(b.port, run["status_url"])
                    delays.append(exchange.wait().ended_at - asked)
                    assert talks.rest()[-1].data["reason"] == "requested"
                assert exchange.ended == "aborted"
                assert there.rest().endings[0].event.data["reason"] == "requested"
        assert max(delays) < 1, delays
        # Who follows it there keeps it, and who leaves there is the last to leave.
        run = create(a.port, linger=0.5, **COUNTS)
        with Follower([b.port], run["events_url"]) as there:
            there.has(1)
            there.until(lambda follower: follower.said[-1].at > follower.said[0].at + 1.5)
            assert standing(a.port, run) == ("running", "")
            left = there.leave()
        eventually(lambda: standing(a.port, run) == ("cancelled", "disconnected"))
        assert 0.5 <= time.monotonic() - left < 2
        # So it is with one that does not linger at all.
        upstream.play(Head(), *OPENAI.opening, OPENAI.token("One"), HOLD)
        with get(a.port, "/openai/stream", message="Hi") as begins:
            run_id = begins.until("start").data["run"]
            exchange = upstream.request()
            with Follower([b.port], f"/runs/{run_id}/events") as there:
                there.until(lambda follower: follower.text == "One")
                eventually(lambda: status_of(a.port, f"/runs/{run_id}")["viewers"] == 2)
                begins.hang_up()
                eventually(lambda: status_of(a.port, f"/runs/{run_id}")["viewers"] == 1)
                assert exchange.ended == ""
                left = there.leave()
        assert exchange.wait().ended_at - left < 1
        assert not upstream.complaints, upstream.complaints


# --- keys, names, URLs ------------------------------------------------------------------------------------------------

KEYS = {"SIDESTREAM_API_KEYS": "ann:a-key-of-anns,bob:a-key-of-bobs"}
ANN, BOB = ({"Authorization": f"Bearer a-key-of-{who}"} for who in ("anns", "bobs"))
MESSAGES = [{"id": "u", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}]


def a_key_a_name_and_a_url_are_everywhere_the_same() -> None:
    with Upstream() as upstream, replicas(2, **environ(upstream), **KEYS) as (a, b):
        together = Barrier(2)

        def ask(service: Service, number: int) -> list[Said]:
            headers = {**ANN, "Idempotency-Key": f"key {number}"}
            together.wait()
            with posted(service.port, headers, message="Hi", model="openai") as follower:
                return follower.rest().said

        with ThreadPoolExecutor(2) as pool:
            for number in range(20):
                upstream.play(Head(), *OPENAI.opening, OPENAI.token("One"), OPENAI.token(" two"), *OPENAI.ending, END)
                one, other = [pool.submit(ask, service, number) for service in (a, b)]
                texts = ["".join(said.event.data.get("token", "") for said in each.result()) for each in (one, other)]
                assert texts == ["One two"] * 2
                assert one.result()[-1].block == other.result()[-1].block
                assert one.result()[-1].event.name == "done"
                upstream.request()
        assert upstream.exchanges.empty()
        for service in (a, b):
            again = {**ANN, "Idempotency-Key": "key 1"}
            assert refused(post(service.port, "/chat/stream", again, message="Ho", model="openai"))[:2] == (
                409,
                "conflict",
            )

        # A URL is signed by one, and read by the other; it is for one run alone.
        runs = [create(service.port, ANN, message="Hi", model="scripted/echo") for service in (a, b)]
        for service, run, other in ((a, runs[1], runs[0]), (b, runs[0], runs[1])):
            assert [event.name for event in rest_of(get(service.port, run["events_url"]))][-1] == "done"
            wrong = run["events_url"].replace(run["id"], other["id"])
            assert refused(get(service.port, wrong))[:2] == (403, "forbidden")
            assert refused(get(service.port, f"/runs/{run['id']}", BOB))[:2] == (404, "not_found")
            assert refused(get(service.port, f"/runs/{run['id']}"))[:2] == (401, "unauthorized")

        # A chat's newest run, wherever it was made.
        for service, other in ((a, b), (b, a), (a, b)):
            upstream.play(Head(), *OPENAI.opening, OPENAI.token(f"By {service.port}."), PAUSE, *OPENAI.ending, END)
            with post(service.port, "/ui/chat", ANN, id="chat", messages=MESSAGES, model="openai") as chat:
                chat.read_on(lambda body: b"By " in body)
                exchange = upstream.request()
                eventually(lambda service=service: not reach(service)["behind_events"])  # else it may be the one before
                with get(other.port, "/ui/chat/chat/stream", ANN) as comes_back:
                    comes_back.read_on(lambda body, port=service.port: f"By {port}.".encode() in body)
                    assert answer(get(other.port, "/ui/chat/chat/stream", BOB)).status == 204
                    exchange.release()
                    comes_back.read()
                    assert comes_back.body.endswith(b"data: [DONE]\n\n")
        assert not upstream.complaints, upstream.complaints


SCENES = [
    a_replica_is_cut_off_from_redis,
    a_replica_dies_with_its_runs_and_its_viewers,
    a_run_is_stopped_and_lingers_by_those_elsewhere,
    a_key_a_name_and_a_url_are_everywhere_the_same,
]


@pytest.fixture(scope="module")
def played() -> "dict[str, Future[None]]":
    return play(*SCENES)


@pytest.mark.parametrize("scene", [scene.__name__ for scene in SCENES])
def test_all_is_as_it_should_be_where(scene: str, played: "dict[str, Future[None]]") -> None:
    played[scene].result()
