"""The command with several processes that share their runs: whichever a connection meets, it serves any run."""

import json
from collections.abc import Iterator

import pytest

from .client import delete, get, post, text
from .conftest import Service, Start, eventually
from .redis_server import Redis
from .replicas import reach
from .test_workers import COMMAND, LEAN, workers

pytest_plugins = ("tests.replicas",)
NUMBER = 3


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture(scope="module")
def sharing(start_service: Start, redis: Redis) -> Iterator[Service]:
    options = {"SIDESTREAM_REDIS_URL": redis.url, "SIDESTREAM_PUBLIC_METRICS": "true", **LEAN}
    service = start_service("--workers", str(NUMBER), command=COMMAND, **options)
    eventually(lambda: service.log.count("redis answers") == NUMBER)
    yield service
    assert service.stop() == 0, service.log


def test_the_start_says_that_workers_share_their_runs_and_where(sharing: Service) -> None:
    (address,) = {line.rpartition("/")[0] for line in sharing.log.splitlines() if line.startswith("runs ")}
    assert address.startswith("runs         shared with all who use the Redis at 127.0.0.1:")
    assert f"workers      {NUMBER}, any of which serves any run\n" in sharing.log


def test_without_redis_the_start_says_what_will_not_work(start_service: Start) -> None:
    log = start_service("--workers", "2", command=COMMAND, **LEAN).log
    said = log.partition("WARNING: ")[2].partition("providers ")[0]
    assert " ".join(said.split()) == (
        "a request lands on any of them, so this fails: to come back to a stream; to follow, read or stop a run by its"
        " id or URL; Idempotency-Keys; a chat's newest run. Set SIDESTREAM_REDIS_URL for them to share runs, or run"
        " one worker"
    )


def test_one_worker_has_nothing_to_say_of_workers(start_service: Start) -> None:
    assert "worker" not in start_service(command=COMMAND, **LEAN).log


def test_a_run_that_was_made_can_be_found_by_all_once_that_is_told(sharing: Service, redis: Redis) -> None:
    for _ in range(20):
        with post(sharing.port, "/runs", message="hi", model="scripted/hello") as client:
            assert redis.ask("EXISTS", f"sidestream:run:{json.loads(client.read())['id']}") == 1


def test_a_run_is_followed_read_and_stopped_by_whichever_worker_is_met(sharing: Service) -> None:
    with post(sharing.port, "/runs", message="hi", model="scripted/silent") as client:
        made = json.loads(client.read())
    viewers = [get(sharing.port, made["events_url"]) for _ in range(20)]
    for viewer in viewers:
        viewer.until("start")
    seen = set()
    for _ in range(60):  # until all have been met; each request is a connection of its own
        told = reach(sharing)
        seen.add((told["mirrors"], told["mirror_viewers"]))
        with get(sharing.port, made["status_url"]) as client:
            assert json.loads(client.read())["state"] == "running"
    assert max(viewers for _, viewers in seen) > 0, "all were served by the worker that has the run"
    with delete(sharing.port, f"/runs/{made['id']}") as client:
        assert client.head()[0] == 204
    endings = [viewer.until("cancelled") for viewer in viewers]
    assert len({(ending.id, json.dumps(ending.data)) for ending in endings}) == 1
    for viewer in viewers:
        assert viewer.next() is None
        viewer.hang_up()


def test_a_stream_goes_on_with_whichever_worker_is_met(sharing: Service) -> None:
    words = " ".join(f"w{number}" for number in range(40))
    for _ in range(5):
        events, seen = [], ""
        while not events or events[-1].name != "done":
            again = {"Last-Event-ID": seen} if seen else {}
            with get(sharing.port, message=words, model="scripted/echo", linger=10, headers=again) as client:
                for _ in range(4):
                    if (event := client.next()) is None:
                        break
                    events.append(event)
            seen = events[-1].id
        assert text(events) == words
        places = [int(event.id.rpartition("-")[2]) for event in events]
        assert places == sorted(set(places))
    assert len(workers(sharing)) == NUMBER


def test_a_key_stands_for_one_run_whichever_worker_is_met(sharing: Service) -> None:
    answers = []
    for _ in range(10):
        headers = {"Idempotency-Key": "one of many", "Content-Type": "application/json"}
        with post(sharing.port, "/runs", headers, message="hi", model="scripted/echo") as client:
            assert client.head()[0] == 201
            answers.append(json.loads(client.read())["id"])
    assert len(set(answers)) == 1
