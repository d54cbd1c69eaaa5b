"""By which names the service is reached: the table, over loopback and not, and what a real server makes of a head."""

import json
import logging
import socket
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from streaming.errors import Fault
from wires.host import Hosts

from .access import KEYS, WEB, placed, serving
from .asgi import Exchange, ask, run, run_ahead
from .client import DEADLINE
from .conftest import Service, Start
from .sockets import UPGRADE, HandSocket

LOOPBACK, LAN = ("127.0.0.1", 8000), ("192.0.2.7", 8000)
NAMES = ["app.example", "*.Wild.example", "[2001:db8::1]", "192.0.2.7"]


refused: list[Fault] = []


def hosts(*allowed: str, is_open: bool = True) -> ASGIApp:
    return Hosts(PlainTextResponse("served"), allowed, refused.append, is_open=is_open)


def served(app: ASGIApp, *said: str, path: str = "/", **scope: Any) -> bool:
    """Whether it serves a request with these Host headers."""

    async def test() -> Exchange:
        headers = [(b"host", host.encode("latin-1")) for host in said]
        given = {"server": LOOPBACK, "headers": headers, **scope}

        async def reached(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, **given}, receive, send)

        return await ask(reached, "GET", path)

    refused.clear()
    exchange = run(test())
    assert (exchange.status, exchange.body == b"served", len(refused)) in ((200, True, 0), (403, False, 1))
    if exchange.status == 403:
        assert exchange.headers["content-type"] == "application/problem+json"
        assert json.loads(exchange.body)["code"] == "forbidden"
    return exchange.status == 200


LOCAL = [
    *("localhost", "localhost:8000", "LocalHost:8000", "localhost.", "localhost.:8000", "localhost:"),
    *("app.localhost", "a.b.LOCALHOST:1", "app.localhost.", "my-laptop", "my_laptop:80", "db"),
    *("127.0.0.1", "127.0.0.1:8000", "127.0.0.1:", "127.8.9.10", "192.0.2.7", "0.0.0.0", "10.0.0.1:65535"),
    *("[::1]", "[::1]:8000", "[::ffff:127.0.0.1]:1", "[2001:DB8::1]", "[fe80::1%25eth0]"),
    "",
]
FOREIGN = [
    *("evil.example", "evil.example:8000", "EVIL.EXAMPLE", "evil.example.", "evil.example..", "evil.example.:80"),
    *("evil.example:", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1.nip.io", "x-localhost.example"),
    *("notlocalhost.example", "localhost.example", "evil.localhost.example", "evil.xlocalhost", "local.host"),
    *("localhost@evil.example", "evil.example@localhost", "evil.example@x.localhost", "user:pass@localhost"),
    *("evil.example#.localhost", "evil.example/.localhost", "evil.example?.localhost", "evil.example\\.localhost"),
    *("evil.example, localhost", "localhost, evil.example", "localhost evil.example", "evil.example\tlocalhost"),
    *("evil.example:80:80", "localhost:80:80", "localhost:8o", "localhost:-1", "http://localhost", "//localhost"),
    *("[::1", "::1", "[::1]x", "[::1].evil.example", "[evil.example]", "[]", "[::1]:[::1]"),
    *("127.1", "0x7f.0.0.1", "127.0.0.256", "1.2.3.4.5", "127.0.0.1%00.evil.example", "..", "%2e"),
    *("l\u00f6calhost", "\u00e9vil", "localhost\0", "\0", "*", "*.localhost"),
]


@pytest.mark.parametrize("host", LOCAL)
def test_over_loopback_a_name_that_is_local_counts(host: str) -> None:
    assert served(hosts(), host)


@pytest.mark.parametrize("host", FOREIGN)
def test_over_loopback_a_name_that_a_site_may_have_does_not(host: str) -> None:
    assert not served(hosts(), host)


@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.0.53", "::1", "::ffff:127.0.0.1"])
def test_loopback_has_many_addresses(server: str) -> None:
    assert served(hosts(), "localhost", server=(server, 8000))
    assert not served(hosts(), "evil.example", server=(server, 8000))


@pytest.mark.parametrize(
    "server", [LAN, ("2001:db8::1", 80), ("::ffff:192.0.2.7", 80), ("/run/sidestream", None), None]
)
def test_on_another_address_any_name_counts(server: Any) -> None:
    assert served(hosts(), "evil.example", server=server)


def test_where_a_key_is_needed_any_name_counts() -> None:
    assert served(hosts(is_open=False), "evil.example")


def test_a_client_that_names_no_host_is_no_browser() -> None:
    """HTTP/1.0 has no Host."""
    assert served(hosts())
    assert not served(hosts("app.example"))


LISTED = [
    *("app.example", "APP.example", "app.example:8000", "app.example.", "app.example.:80", "app.example:"),
    *("a.wild.example", "a.b.WILD.example:80", "[2001:db8::1]", "[2001:DB8::1]:80", "192.0.2.7:8000"),
]
UNLISTED = [
    *("example", "xapp.example", "x.app.example", "app.example.evil.example", "evil.example", "wild.example"),
    *("xwild.example", "app.example@evil.example", "evil.example@a.wild.example", "evil.example/.wild.example"),
    *("localhost", "127.0.0.1", "127.0.0.1:8000", "[::1]", "", "2001:db8::1", "[2001:db8::2]", "192.0.2.70"),
    *("app.example..", "app.example:80:80", "app.example\0", "app.example, x.example", ".", "*", "*.wild.example"),
]


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "with keys"])
@pytest.mark.parametrize("server", [LOOPBACK, LAN], ids=["loopback", "elsewhere"])
def test_with_a_list_the_names_on_it_count_whatever_the_way(is_open: bool, server: tuple[str, int]) -> None:
    app = hosts(*NAMES, is_open=is_open)
    assert [host for host in LISTED if not served(app, host, server=server)] == []
    assert [host for host in UNLISTED if served(app, host, server=server)] == []


@pytest.mark.parametrize("host", [*LISTED, *UNLISTED, *LOCAL, *FOREIGN])
def test_a_star_is_any_name(host: str) -> None:
    assert served(hosts("*"), host)


@pytest.mark.parametrize(
    ("app", "good"), [(hosts(), "localhost"), (hosts("app.example"), "app.example")], ids=["local", "listed"]
)
def test_where_several_hosts_are_named_each_has_to_count(app: ASGIApp, good: str) -> None:
    assert served(app, good, good)
    assert not served(app, good, "evil.example")
    assert not served(app, "evil.example", good)


PROBES = ["/healthz", "/readyz"]


@pytest.mark.parametrize("app", [hosts(), hosts("app.example"), hosts("app.example", is_open=False)])
def test_probes_come_by_any_name(app: ASGIApp) -> None:
    for path in PROBES:
        for host in ("evil.example", "10.1.2.3:8000", "app.example", ""):
            assert served(app, host, path=path)
        assert served(app, "evil.example", path=f"/side/car{path}", root_path="/side/car")
        assert served(app, "evil.example", "evil.example", path=path)
    for path in ("/", "/healthz/", "/healthzz", "//healthz", "/x/healthz", "/HEALTHZ", "/runs", "/readyz?verbose"):
        assert not served(app, "evil.example", path=path)


def test_that_anybody_may_use_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    app = hosts()
    for server in (LOOPBACK, LAN, LAN, ("192.0.2.8", 80), LOOPBACK):
        served(app, "app.example", server=server)
    told = [(record.levelno, record.getMessage()) for record in caplog.records]
    text = "whoever reaches 192.0.2.7 may use this service, without a key (SIDESTREAM_API_KEYS)"
    assert told == [(logging.WARNING, text)]


@pytest.mark.parametrize(
    ("is_open", "server"),
    [(True, LOOPBACK), (True, ("::ffff:127.0.0.1", 80)), (True, ("/run/sidestream", None)), (True, None), (False, LAN)],
)
def test_that_is_not_told_of_what_no_other_machine_reaches_or_where_a_key_is_needed(
    is_open: bool, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    served(hosts(is_open=is_open), "localhost", server=server)
    assert caplog.records == []


# The whole service


@pytest.mark.parametrize(
    ("environ", "server", "host", "refused"),
    [
        ({}, LOOPBACK, "evil.example", 403),
        ({}, LOOPBACK, "localhost:8000", None),
        ({}, LAN, "evil.example", None),
        ({"SIDESTREAM_API_KEYS": KEYS}, LOOPBACK, "evil.example", None),
        ({"SIDESTREAM_API_KEYS": KEYS, "SIDESTREAM_ALLOWED_HOSTS": "app.example"}, LAN, "evil.example", 403),
        ({"SIDESTREAM_API_KEYS": KEYS, "SIDESTREAM_ALLOWED_HOSTS": "app.example"}, LAN, "app.example", None),
    ],
)
def test_a_name_counts_for_a_socket_as_it_does_for_a_request(
    environ: dict[str, str], server: tuple[str, int], host: str, refused: int | None
) -> None:
    async def test() -> tuple[int | None, int]:
        async with serving(**environ) as app:
            reached = placed(app, ("x-api-key", WEB), server=server)
            async with HandSocket(reached, headers={"host": host}) as socket:
                denied = socket.refused_with
            exchange = await ask(reached, "GET", "/v1/models", headers={"host": host})
        assert denied is None or denied[1]["code"] == "forbidden"
        return denied and denied[0], exchange.status

    assert run_ahead(test()) == (refused, refused or 200)


def status_of(port: int, *lines: str) -> int:
    """Send a head as it is and return the status of the answer."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        return int(connection.recv(4096).split()[1])


def handshake(host: str) -> Iterable[str]:
    return "GET /ws/chat HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in UPGRADE.items())


def test_a_real_server_passes_on_what_the_head_says(service: Service) -> None:
    port = service.port
    get = "GET /v1/models HTTP/1.1"
    assert status_of(port, get, f"Host: 127.0.0.1:{port}") == 200
    assert status_of(port, get, "Host: evil.example") == 403
    assert status_of(port, get, "Host: EVIL.example.:80") == 403
    assert status_of(port, get, "Host: localhost", "Host: evil.example") == 403
    assert status_of(port, get, "Host: evil.example", "Host: localhost") == 403
    assert status_of(port, "GET http://localhost/v1/models HTTP/1.1", "Host: evil.example") == 403
    assert status_of(port, "GET /v1/models HTTP/1.0") == 200
    assert status_of(port, "GET /healthz HTTP/1.1", "Host: evil.example") == 200
    assert status_of(port, "GET /readyz?verbose HTTP/1.1", "Host: evil.example") == 403
    assert status_of(port, *handshake("localhost")) == 101
    assert status_of(port, *handshake("evil.example")) == 403


def test_a_probe_comes_by_any_name_below_a_path_too(start_service: Start) -> None:
    port = start_service("--root-path", "/side/car", SIDESTREAM_ALLOWED_HOSTS="127.0.0.1,app.example").port
    assert status_of(port, "GET /healthz HTTP/1.1", "Host: 10.1.2.3") == 200
    assert status_of(port, "GET /v1/models HTTP/1.1", "Host: 10.1.2.3") == 403
    assert status_of(port, "GET /v1/models HTTP/1.1", "Host: app.example") == 200
