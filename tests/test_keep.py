"""What is kept of runs that are over, for how long and how much of it; and what is not there any more."""

import pytest

from .client import delete, get, post
from .conftest import Service, Start, eventually
from .resource import WAYS, WIRES, answer, create, is_one_run, refused, rest_of, resume, said, status_of

NOT_FOUND = (404, "not_found", "There is no such run, or it was over and is no longer kept.", None)
KEPT = 6000  # bytes: two short runs, each with its overhead, but not three


def play(service: Service, message: str = "Hi") -> str:
    """Run it to its end, and return its id."""
    events = rest_of(post(service.port, message=message, model="scripted/echo"))
    assert is_one_run(events)
    assert said(events)["token"] == message
    return str(events[0].data["run"])


def is_kept(service: Service, run: str) -> bool:
    return answer(get(service.port, f"/runs/{run}")).status == 200


@pytest.fixture(scope="module")
def forgetful(start_service: Start) -> Service:
    return start_service(SIDESTREAM_KEEP="0")


def test_without_keep_a_run_is_gone_when_it_is_over(forgetful: Service) -> None:
    run, service = play(forgetful), forgetful
    for refusal in (get(service.port, f"/runs/{run}"), delete(service.port, f"/runs/{run}")):
        assert refused(refusal) == NOT_FOUND
    for wire in WIRES.values():
        for way in WAYS:
            for url in (f"/runs/{run}/events", "/chat/stream?message=Hi&model=scripted/echo", "/scripted/stream"):
                assert refused(resume(service.port, url, f"{run}-3", way=way, headers=wire)) == NOT_FOUND
    assert "Traceback" not in service.log


def test_without_keep_a_run_is_there_while_it_goes_on(forgetful: Service) -> None:
    created = create(forgetful.port, message="Hi", model="scripted/stall")
    with get(forgetful.port, created["events_url"]) as first:
        seen = first.until("token").id
        with resume(forgetful.port, created["events_url"], seen) as second:
            second.until("token")
            assert answer(delete(forgetful.port, created["status_url"])).status == 204
            for viewer in (first, second):
                assert rest_of(viewer)[-1].data["reason"] == "requested"
    assert refused(get(forgetful.port, created["status_url"])) == NOT_FOUND


def test_a_run_is_kept_for_its_time_and_then_forgotten(start_service: Start) -> None:
    service = start_service(SIDESTREAM_KEEP="1")
    run = play(service)
    last = status_of(service.port, f"/runs/{run}")["last_event_id"]
    assert rest_of(resume(service.port, "/chat/stream?message=Hi", last)) == []
    eventually(lambda: not is_kept(service, run))
    for url in (f"/runs/{run}/events", "/chat/stream?message=Hi"):
        assert refused(resume(service.port, url, last)) == NOT_FOUND


@pytest.fixture(scope="module")
def small(start_service: Start) -> Service:
    return start_service(SIDESTREAM_KEEP_BYTES=str(KEPT))


def test_the_oldest_go_first_when_the_space_is_full(small: Service) -> None:
    first, second = play(small), play(small)
    assert (is_kept(small, first), is_kept(small, second)) == (True, True)
    third = play(small)
    assert [is_kept(small, run) for run in (first, second, third)] == [False, True, True]
    assert said(rest_of(get(small.port, f"/runs/{second}/events")))["token"] == "Hi", "reading it makes it no younger"
    fourth = play(small)
    assert [is_kept(small, run) for run in (second, third, fourth)] == [False, True, True]


def test_the_oldest_is_the_first_that_was_over(small: Service) -> None:
    going_on = create(small.port, message="Hi", model="scripted/silent", linger=60)["id"]
    over = play(small), play(small)
    assert [is_kept(small, run) for run in (*over, going_on)] == [True] * 3, "what goes on takes no space of theirs"
    assert answer(delete(small.port, f"/runs/{going_on}")).status == 204
    assert [is_kept(small, run) for run in (*over, going_on)] == [False, True, True]


def test_a_run_larger_than_the_space_is_told_whole_and_not_kept(small: Service) -> None:
    run = play(small, "x" * KEPT)
    assert not is_kept(small, run)
    after = play(small)
    assert is_kept(small, after), "nor does it take the space of others for ever"
