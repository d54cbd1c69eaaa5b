"""The URLs a run is created with: signed for that run until a time, and for nothing else."""

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import RequestError
from streaming.failover import Candidate, Failover
from streaming.limits import Limits
from streaming.request import Message, RunRequest
from streaming.run import Run
from wires.resource import Links, is_signed

from .client import Client, delete, get, post
from .conftest import Service, Start
from .resource import answer, create, refused, rest_of, resume, said, status_of

SECRET = "a-secret-of-the-tests"
LIMITS = Limits(run_timeout=600, first_token_timeout=120, idle_timeout=60, max_run_bytes=1000)
FORGED = (403, "forbidden", "The signature is not for this URL.", "signature")
KEEP = 60


async def nobody() -> Any:
    raise AssertionError("it is not to be asked")


def new_run(created: float | None = None) -> Run:
    run = Run(
        Failover([Candidate("openai", RunRequest(model="gpt", messages=[Message("user", "Hi")]), nobody)]), LIMITS
    )
    run.created = run.created if created is None else created
    return run


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def refusal(links: Links, run: Run, query: Mapping[str, str]) -> tuple[str, str | None]:
    with pytest.raises(RequestError) as caught:
        links.check(run.id, query)
    assert caught.value.status == 403
    assert SECRET not in caught.value.text
    return caught.value.text, caught.value.field


def test_a_url_says_until_when_it_is_good_and_is_good_until_then() -> None:
    links, run = Links(SECRET, KEEP), new_run(created=time.time() - 719.5)
    created = links.created(run, f"/runs/{run.id}")
    assert 0 <= created["expires"] - (run.created + 60 + 600 + KEEP) < 1
    for url in (created["events_url"], created["status_url"]):
        assert query_of(url).keys() == {"expires", "signature"}
        assert query_of(url)["expires"] == str(created["expires"])
        links.check(run.id, query_of(url))


def test_a_url_is_refused_when_its_time_is_over() -> None:
    links, run = Links(SECRET, KEEP), new_run(created=time.time() - 722)
    query = query_of(links.signed(run, "/runs/x"))
    assert refusal(links, run, query) == ("The signature has expired.", "expires")
    later = {**query, "expires": str(int(time.time()) + 1000)}
    assert refusal(links, run, later) == ("The signature is not for this URL.", "signature")


def test_a_url_is_known_for_a_signed_one_whether_rightly_or_not() -> None:
    assert not is_signed({"last_event_id": "x"})
    assert is_signed({"expires": ""})
    assert is_signed({"signature": ""})


def test_a_url_is_good_in_every_process_of_one_secret_and_in_no_other() -> None:
    run = new_run()
    query = query_of(Links(SECRET, KEEP).signed(run, "/runs/x"))
    Links(SECRET, 1).check(run.id, query)
    for other in (Links(SECRET + "2", KEEP), Links("", KEEP), Links(SECRET.upper(), KEEP)):
        assert refusal(other, run, query)[1] == "signature"
    Links("not \udcff UTF-8, as an environment may be", KEEP)
    own = Links("", KEEP)
    own.check(run.id, query_of(own.signed(run, "/runs/x")))
    assert refusal(Links("", KEEP), run, query_of(own.signed(run, "/runs/x")))[1] == "signature"


RUN = new_run()
GOOD = query_of(Links(SECRET, KEEP).signed(RUN, "/runs/x"))


@given(st.dictionaries(st.sampled_from(["expires", "signature"]), st.text(), min_size=1))
def test_no_other_query_passes(query: dict[str, str]) -> None:
    assert refusal(Links(SECRET, KEEP), RUN, query)[1] == "signature"
    assert query == GOOD or refusal(Links(SECRET, KEEP), RUN, {**GOOD, **query})[1] == "signature"


@given(st.integers(0, len(GOOD["signature"]) - 1), st.sampled_from("aZ0-_"))
def test_no_character_of_a_signature_can_be_another(place: int, character: str) -> None:
    signature = GOOD["signature"]
    changed = signature[:place] + character + signature[place + 1 :]
    if changed != signature and place < len(signature) - 1:  # of its last character not every bit counts
        assert refusal(Links(SECRET, KEEP), RUN, {**GOOD, "signature": changed})[1] == "signature"


def test_a_forged_url_does_nothing(service: Service) -> None:
    created, other = (create(service.port, message="Hi", model="scripted/stall", linger=60) for _ in range(2))
    good = query_of(created["events_url"])
    forged: list[dict[str, str]] = [
        {**good, "signature": good["signature"][:-1]},
        {**good, "signature": good["signature"][1:]},
        {**good, "signature": ""},
        {**good, "signature": good["signature"].swapcase()},
        {**good, "expires": str(int(good["expires"]) + 1)},
        {**good, "expires": "9" * 30},
        {**good, "expires": ""},
        {**good, "expires": good["expires"] + " "},
        {"signature": good["signature"]},
        {"expires": good["expires"]},
        {"signature": "\0"},
        {"expires": "\u0661", "signature": "\u00e9\u2028"},
        query_of(other["events_url"]),
    ]
    for query in forged:
        path = f"/runs/{created['id']}"
        for url in (f"{path}?{urlencode(query)}", f"{path}/events?{urlencode(query)}"):
            assert refused(get(service.port, url)) == FORGED, query
        assert refused(delete(service.port, f"{path}?{urlencode(query)}")) == FORGED
    assert status_of(service.port, created["status_url"])["state"] == "running"
    unknown = refused(get(service.port, f"/runs/{'0' * 32}?{urlencode(good)}"))
    assert unknown[:2] == (404, "not_found"), "as after a restart, when all signatures of the process before are wrong"
    for one in (created, other):
        assert answer(delete(service.port, one["status_url"])).status == 204


def test_one_signature_is_good_for_all_that_can_be_done_with_its_run(service: Service) -> None:
    created = create(service.port, message="Hi", model="scripted/stall", linger=60)
    query = urlsplit(created["events_url"]).query
    assert query == urlsplit(created["status_url"]).query
    with get(service.port, created["events_url"]) as client:
        last = client.until("token").id
    with resume(service.port, created["events_url"], last, way="lastEventId") as client:
        client.until("token")
    assert answer(delete(service.port, f"/runs/{created['id']}?{query}")).status == 204


def test_a_secret_that_is_too_short_stops_the_start_and_is_not_printed(start_service: Start) -> None:
    with pytest.raises(AssertionError, match="the service ended") as caught:
        start_service(SIDESTREAM_URL_SECRET="hunter2-hunter2")
    assert "SIDESTREAM_URL_SECRET" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_urls_are_below_the_path_the_service_is_mounted_at(start_service: Start) -> None:
    service = start_service("--root-path", "/side/car")
    status, headers, body = answer(post(service.port, "/runs", message="Hi", model="scripted/echo"))
    created = json.loads(body)
    assert (status, headers["location"]) == (201, f"/side/car/runs/{created['id']}")
    for url in (created["events_url"], created["status_url"]):
        assert url.startswith(f"/side/car/runs/{created['id']}")
        inside = url.removeprefix("/side/car")  # as a proxy strips it
        assert answer(get(service.port, inside)).status == 200
    inside = created["events_url"].removeprefix("/side/car")
    assert said(rest_of(get(service.port, inside)))["token"] == "Hi"
    with get(service.port, message="Hi", model="scripted/echo") as client:
        assert client.head()[1]["content-location"].startswith("/side/car/runs/")
        client.read()
    assert parse_qs(urlsplit(inside).query).keys() == {"expires", "signature"}


def test_a_signature_in_a_url_is_in_no_log(service: Service) -> None:
    created = create(service.port, message="Hi", model="scripted/echo")
    rest_of(get(service.port, created["events_url"]))
    with Client(service.port, "GET", "/no-such-place") as client:
        client.read()
    assert "/no-such-place" in service.log
    assert query_of(created["events_url"])["signature"] not in service.log
