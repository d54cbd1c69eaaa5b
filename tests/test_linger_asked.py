"""How long a run may be asked to linger; what cannot be is told so, and starts nothing."""

import pytest

from .client import Client, get, post
from .conftest import Service, Start
from .resource import create, refused, stop
from .upstream import Upstream

pytest_plugins = ["tests.upstream"]

JSON = {"Content-Type": "application/json"}
TOO_LONG = (400, "invalid_request", "`linger` can be at most 300 seconds here.", "linger")
NEGATIVE = (400, "invalid_request", "Bad request: Expected `float` >= 0.0 - at `$.linger`.", "linger")
NO_TIME = (400, "invalid_request", "`linger` of 0 leaves no time for a first viewer.", "linger")
NO_JSON = (400, "invalid_request", "The body is not valid JSON.", None)


def of_type(name: str) -> tuple[int, str, str, str]:
    return 400, "invalid_request", f"Bad request: Expected `float | null`, got `{name}` - at `$.linger`.", "linger"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("300.001", TOO_LONG),
        ("1e300", TOO_LONG),
        ("-1", NEGATIVE),
        ("-1e-9", NEGATIVE),
        ("NaN", NO_JSON),
        ("Infinity", NO_JSON),
        ('"5"', of_type("str")),
        ("true", of_type("bool")),
        ("[5]", of_type("array")),
    ],
)
@pytest.mark.parametrize("path", ["/runs", "/chat/stream", "/openai/stream"])
def test_a_linger_that_cannot_be_is_told_so(
    relay: Service, upstream: Upstream, path: str, value: str, expected: tuple[int, str, str, str | None]
) -> None:
    body = f'{{"message": "Hi", "linger": {value}}}'.encode()
    assert refused(Client(relay.port, "POST", path, headers=JSON, body=body)) == expected
    assert upstream.exchanges.empty()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("301", TOO_LONG),
        ("inf", TOO_LONG),
        ("-1", NEGATIVE),
        ("nan", NEGATIVE),
        ("-inf", NEGATIVE),
        ("soon", of_type("str")),
        ("", of_type("str")),
    ],
)
def test_a_linger_in_a_query_that_cannot_be_is_told_so(
    relay: Service, upstream: Upstream, value: str, expected: tuple[int, str, str, str | None]
) -> None:
    assert refused(get(relay.port, message="Hi", linger=value)) == expected
    assert upstream.exchanges.empty()


@pytest.mark.parametrize("value", [0, 0.0, -0.0])
def test_a_created_run_needs_time_for_its_first_viewer(relay: Service, upstream: Upstream, value: float) -> None:
    assert refused(post(relay.port, "/runs", message="Hi", linger=value)) == NO_TIME
    assert upstream.exchanges.empty()


def test_the_longest_linger_is_as_set(start_service: Start) -> None:
    service = start_service(SIDESTREAM_MAX_LINGER="2", SIDESTREAM_LINGER="1")
    told = "`linger` can be at most 2 seconds here."
    for client in (
        post(service.port, "/runs", message="Hi", linger=2.5),
        get(service.port, message="Hi", linger=2.5),
    ):
        assert refused(client)[2] == told
    created = create(service.port, message="Hi", model="scripted/silent", linger=2)
    stop(service.port, created["status_url"])
