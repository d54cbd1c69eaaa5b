"""A caller's own key for the upstream: only where a setting allows it, to one provider, and seen by nobody else."""

import json

import pytest

from .client import get, post
from .conftest import Service, Start
from .recorded import ANTHROPIC, DIALECTS, OPENAI, Dialect, told
from .resource import refused
from .sockets import talk
from .upstream import ANTHROPIC_KEY, OPENAI_KEY, Exchange, Upstream, environ

pytest_plugins = ["tests.upstream"]

OWN = "a-caller's/own~key"
HEADER = {"X-Upstream-Key": OWN}
each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=[dialect.provider for dialect in DIALECTS])


@pytest.fixture(scope="module")
def lending(start_service: Start, upstream_server: Upstream) -> Service:
    aliases = {"both": ["openai/m", "anthropic/m"], "one": ["openai/m", "openai/n"]}
    return start_service(
        **environ(upstream_server), SIDESTREAM_ALLOW_UPSTREAM_KEYS="true", SIDESTREAM_MODELS=json.dumps(aliases)
    )


def credentials(exchange: Exchange) -> set[str]:
    headers = (exchange.headers.get("authorization", "").removeprefix("Bearer "), exchange.headers.get("x-api-key", ""))
    return {value for value in headers if value}


@each_dialect
def test_it_is_shown_in_the_place_of_ours_and_only_with_its_own_request(
    lending: Service, upstream: Upstream, dialect: Dialect
) -> None:
    ours = ANTHROPIC_KEY if dialect is ANTHROPIC else OPENAI_KEY
    for headers, key in ((HEADER, OWN), ({}, ours)):
        upstream.stream(*dialect.opening, dialect.token("Hi"), *dialect.ending)
        with post(lending.port, f"/{dialect.provider}/stream", headers, message="Hi") as client:
            assert told(client)[-1] == ("done", dialect.done(1))
        exchange = upstream.request()
        assert credentials(exchange) == {key}
        assert OWN not in json.dumps(exchange.body)


@each_dialect
def test_what_the_upstream_says_of_it_is_told_without_it(
    lending: Service, upstream: Upstream, dialect: Dialect
) -> None:
    upstream.refuse(400, dialect.error_body(f"The key {OWN} may not use this model."))
    with post(lending.port, f"/{dialect.provider}/stream", HEADER, message="Hi") as client:
        name, data = told(client)[-1]
        assert (name, data["code"]) == ("error", "upstream_rejected")
        assert OWN.encode() not in client.raw
    upstream.request()
    assert OWN not in lending.log


def test_a_key_that_fails_says_nothing_of_the_model_for_others(lending: Service, upstream: Upstream) -> None:
    for _ in range(6):
        upstream.refuse(429, OPENAI.error_body("Slow down."))
        with post(lending.port, "/chat/stream", HEADER, message="Hi", model="openai/broken-key") as client:
            told(client)
        upstream.request()
    with get(lending.port, "/readyz", verbose="") as client:
        assert "openai/broken-key" not in json.loads(client.read())["candidates"]


def test_it_may_come_with_any_request_that_begins_a_run(lending: Service, upstream: Upstream) -> None:
    answer = (*OPENAI.opening, OPENAI.token("Hi"), *OPENAI.ending)
    upstream.stream(*answer)
    with get(lending.port, "/one/stream", HEADER, message="Hi") as client:
        told(client)
    upstream.stream(*answer)
    with post(lending.port, "/runs", HEADER, message="Hi", model="openai/m") as client:
        assert client.head()[0] == 201
        assert credentials(upstream.request()) == credentials(upstream.request()) == {OWN}
    upstream.stream(*answer)
    with talk(lending.port, "model=openai/m", additional_headers=HEADER) as socket:
        assert socket.turn("Hi")[-1].name == "done"
    assert credentials(upstream.request()) == {OWN}


REFUSALS = {
    "of two providers": ({"model": "both"}, HEADER, "An upstream's key is for one provider; ask for models of one."),
    "of one that takes none": ({"model": "scripted/hello"}, HEADER, "scripted takes no key."),
    "no key": ({"model": "openai"}, {"X-Upstream-Key": ""}, "The key is no line of printable ASCII."),
    "two words": ({"model": "openai"}, {"X-Upstream-Key": "a b"}, "The key is no line of printable ASCII."),
    "other letters": ({"model": "openai"}, {"X-Upstream-Key": "caf\u00e9"}, "The key is no line of printable ASCII."),
    "a book": ({"model": "openai"}, {"X-Upstream-Key": "k" * 4097}, "The key is no line of printable ASCII."),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_where_it_cannot_be_used_nobody_is_asked(lending: Service, upstream: Upstream, case: str) -> None:
    fields, headers, text = REFUSALS[case]
    for path in ("/chat/stream", "/runs"):
        answer = refused(post(lending.port, path, headers, message="Hi", **fields))
        assert answer == (400, "invalid_request", text, "X-Upstream-Key")
    assert upstream.exchanges.empty()


def test_without_the_setting_it_is_refused_and_nobody_is_asked(relay: Service, upstream: Upstream) -> None:
    for answer in (
        post(relay.port, "/runs", HEADER, message="Hi"),
        get(relay.port, "/chat/stream", HEADER, message="Hi"),
    ):
        assert (*refused(answer)[:2], refused(answer)[3]) == (403, "forbidden", "X-Upstream-Key")
    assert upstream.exchanges.empty()
    assert OWN not in relay.log
