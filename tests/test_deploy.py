"""The proxies of deploy/, real ones with these very files, each in front of the service: what a stream wants of them.

What arrives one by one is proved by an upstream that says the next thing only when the client has got the last.
"""

import json
import os
import socketserver
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import NamedTuple

import pytest

from . import caddy, haproxy, nginx
from .client import DEADLINE, Client, get, post, text
from .conftest import ROOT, Service, Start, eventually, free_port, wait_for_port
from .recorded import OPENAI
from .resource import NDJSON, WIRES, events_in, is_one_run, rest_of, resume, said
from .sockets import talk
from .test_disconnect import PHASES, Phase, before_headers, before_tokens, catch_up, slow_viewer
from .test_linger import held
from .test_ndjson import arrive_one_by_one, play_word_by_word
from .upstream import Upstream

pytest_plugins = ["tests.upstream"]

PROXIES = {"nginx": nginx, "Caddy": caddy, "HAProxy": haproxy}
PROMPT = 0.1
TRIES = 5
# What a proxy that hears of a client's going from a ping that it cannot send any more would take at least.
LATE = 5.0


class Proxy(NamedTuple):
    """Where it listens, and what it has printed."""

    kind: ModuleType
    port: int
    log: Path


def write_config(kind: ModuleType, folder: Path, port: int, service: int) -> Path:
    """Write the file of deploy/ with what has to be another here; each of that stands there once."""
    config = (ROOT / "deploy" / kind.FILE).read_text()
    for old, new in kind.changes(folder, port, service).items():
        assert config.count(old) == 1, old
        config = config.replace(old, new)
    written = folder / str(kind.FILE)
    written.write_text(config)
    return written


@contextmanager
def proxy_before(kind: ModuleType, service: int, folder: Path) -> Iterator[Proxy]:
    folder.mkdir()
    port, log = free_port(), folder / "log"
    config = write_config(kind, folder, port, service)
    with log.open("ab") as out:
        environ = {**os.environ, **kind.environ(folder)}
        process = subprocess.Popen(kind.command(config), env=environ, stdout=out, stderr=out)
    try:
        wait_for_port(port, process)
        yield Proxy(kind, port, log)
    finally:
        process.terminate()
        process.wait(DEADLINE)


each_proxy = pytest.fixture(scope="module", params=PROXIES.values(), ids=PROXIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new folder each time."""
    parent = tmp_path_factory.mktemp("proxies")
    return (parent / str(number) for number in count())


@each_proxy
def proxy(request: pytest.FixtureRequest, relay: Service, folders: Iterator[Path]) -> Iterator[Proxy]:
    """One before `relay`."""
    with proxy_before(request.param, relay.port, next(folders)) as before:
        yield before


@each_proxy
def recorded(request: pytest.FixtureRequest, folders: Iterator[Path]) -> Iterator[tuple[Proxy, "Recorder"]]:
    """One before a service that writes down what it is asked."""
    with Recorder() as recorder, proxy_before(request.param, recorder.port, next(folders)) as before:
        yield before, recorder


class Recorder(socketserver.ThreadingTCPServer):
    """A service that keeps what it is asked: the number of the connection and the head. It answers, or hangs up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Recording)
        self.port = self.server_address[1]
        self.asked: list[tuple[int, str]] = []
        self.hangs_up = False
        Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        super().__exit__(*exc)

    def begin(self, *, hangs_up: bool = False) -> None:
        self.asked, self.hangs_up = [], hangs_up


class _Recording(socketserver.StreamRequestHandler):
    server: Recorder

    def handle(self) -> None:
        while first := self.rfile.readline():
            head = [first, *iter(self.rfile.readline, b"\r\n")]
            self.server.asked.append((self.client_address[1], b"".join(head).decode().lower()))
            if self.server.hangs_up:
                return
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def each_of(client: Client) -> Iterator[str]:
    """Return the events of a stream, as lines."""
    if "ndjson" in client.head()[1]["content-type"]:
        return (json.dumps(client.line()) for _ in count())
    return (json.dumps({"event": event.name, "data": event.data}) for event in client)


@pytest.mark.parametrize("kind", PROXIES.values(), ids=PROXIES)
def test_it_finds_nothing_to_warn_of(kind: ModuleType, folders: Iterator[Path]) -> None:
    with proxy_before(kind, 8000, next(folders)) as proxy:
        assert kind.WARNING not in proxy.log.read_text()


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
@pytest.mark.parametrize("ask", [get, post], ids=["GET", "POST"])
def test_events_arrive_one_by_one(
    proxy: Proxy, upstream: Upstream, ask: Callable[..., Client], wire: dict[str, str]
) -> None:
    play_word_by_word(upstream)
    with ask(proxy.port, headers=wire, message="Hi") as client:
        assert client.head()[0] == 200
        arrive_one_by_one(each_of(client), upstream)
        client.read()


def test_frames_arrive_one_by_one(proxy: Proxy, upstream: Upstream) -> None:
    play_word_by_word(upstream)
    with talk(proxy.port) as socket:
        socket.say("Hi")
        arrive_one_by_one(map(str, socket.connection), upstream)


def test_the_first_event_is_there_at_once(proxy: Proxy) -> None:
    """It would be less than a segment, which some wait to fill. Machines are noisy: one try has to be prompt."""
    delays: list[float] = []
    while not delays or (delays[-1] >= PROMPT and len(delays) < TRIES):
        begun = time.monotonic()
        with get(proxy.port, message="Hi", model="scripted/silent") as client:
            client.until("start")
            delays.append(time.monotonic() - begun)
    assert min(delays) < PROMPT, delays


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
def test_a_stream_that_was_cut_goes_on_behind_the_last_event_id(
    proxy: Proxy, upstream: Upstream, wire: dict[str, str]
) -> None:
    upstream.play(*held)
    url = "/chat/stream?message=Hi&linger=60"
    with Client(proxy.port, "GET", url, headers=wire) as client:
        client.read_on(lambda body: b"One" in body)
        seen = events_in(client)
    with resume(proxy.port, url, seen[-1].id, headers=wire) as client:
        assert client.head()[0] == 200
        upstream.request().release()
        whole = seen + rest_of(client)
    assert is_one_run(whole)
    assert said(whole)["token"] == "One two"
    assert upstream.exchanges.empty()


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_hanging_up_on_it_closes_the_upstream(proxy: Proxy, relay: Service, upstream: Upstream, phase: Phase) -> None:
    upstream.play(*phase(OPENAI))
    client = Client(proxy.port, "GET", "/chat/stream?message=Hi", receive_buffer=4096 if phase is slow_viewer else 0)
    with client:
        awaited = b"start" if phase in (before_headers, before_tokens) else b"Here"
        client.read_on(lambda body: awaited in body)
        exchange = upstream.request()
        exchange.wait_for_pause()
        if phase is slow_viewer:
            catch_up(relay)
        assert not exchange.ended
        left = client.hang_up()
    assert exchange.wait().ended == "aborted"
    assert exchange.ended_at - left < LATE


def test_a_websocket_has_its_turns(proxy: Proxy, upstream: Upstream) -> None:
    """A browser's, which says the name of its page's site: the service has to know that it is its own."""
    for answer in ("Rome.", "Paris."):
        upstream.stream(*OPENAI.opening, OPENAI.token(answer), *OPENAI.ending)
    with talk(proxy.port, origin=f"http://127.0.0.1:{proxy.port}") as socket:
        assert [text(socket.turn(question)) for question in ("Italy?", "France?")] == ["Rome.", "Paris."]
    upstream.request()
    assert [message["content"] for message in upstream.request().body["messages"]] == ["Italy?", "Rome.", "France?"]


@pytest.mark.parametrize("way", ["close", "FIN", "RST"])
def test_a_websocket_that_is_gone_closes_the_upstream(proxy: Proxy, upstream: Upstream, way: str) -> None:
    upstream.play(*before_tokens(OPENAI))
    with talk(proxy.port) as socket:
        socket.say("Hi")
        socket.until("start")
        exchange = upstream.request()
        exchange.wait_for_pause()
        left = time.monotonic()
        socket.lose(way)
    assert exchange.wait().ended == "aborted"
    assert exchange.ended_at - left < LATE


def test_a_message_with_pictures_passes(proxy: Proxy) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 15 * 2**20}}
    message = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}
    with post(proxy.port, messages=[message], model="scripted/echo") as client:
        assert text(list(client)) == "What is this?"


def test_a_long_question_fits_into_a_url(proxy: Proxy) -> None:
    question = "why?" * 10_000
    with get(proxy.port, message=question, model="scripted/echo") as client:
        assert client.head()[0] == 200
        assert text(list(client)) == question


def test_its_log_says_what_was_asked_and_no_prompt(proxy: Proxy) -> None:
    for query in ("message=open-sesame", "message=open-sesame&temperature=hot"):
        with Client(proxy.port, "GET", f"/chat/stream?model=scripted/echo&{query}") as client:
            client.read()
    log = eventually(lambda: (log := proxy.log.read_text()).count("/chat/stream") >= 2 and log)
    assert "sesame" not in log


@each_proxy
def before_pings(request: pytest.FixtureRequest, pinging: Service, folders: Iterator[Path]) -> Iterator[Proxy]:
    with proxy_before(request.param, pinging.port, next(folders)) as before:
        yield before


@pytest.fixture(scope="module")
def pinging(start_service: Start) -> Service:
    return start_service(SIDESTREAM_PING_INTERVAL="0.1")


@pytest.mark.parametrize(("wire", "pings"), [({}, b": ping\n\n" * 2), (NDJSON, b"}\n\n\n")], ids=["SSE", "NDJSON"])
def test_pings_cross_it_while_nothing_is_said(before_pings: Proxy, wire: dict[str, str], pings: bytes) -> None:
    with get(before_pings.port, headers=wire, message="Hi", model="scripted/silent") as client:
        client.read_on(lambda body: body.endswith(pings))


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_fails_is_not_asked_again(recorded: tuple[Proxy, Recorder], method: str) -> None:
    """Each request might begin a run, and be paid for."""
    proxy, recorder = recorded
    recorder.begin(hangs_up=True)
    with Client(proxy.port, method, "/runs", headers={"Content-Length": "0"}) as client:
        assert client.head()[0] == 502
    assert len(recorder.asked) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_fails_over_a_kept_connection_is_not_asked_again(recorded: tuple[Proxy, Recorder], method: str) -> None:
    proxy, recorder = recorded
    recorder.begin()
    with Client(proxy.port, method, "/runs", headers={"Content-Length": "0"}) as client:
        client.read()
        recorder.begin(hangs_up=True)
        ask_again(client, method, proxy.port)
        with suppress(ConnectionError):  # one of them just closes, too
            assert client.head()[0] == 502
    assert len(recorder.asked) == 1 + (method in proxy.kind.SENDS_AGAIN)


def ask_again(client: Client, method: str, port: int) -> None:
    """Send one more request over the client's connection, whose response is read as the first one's was."""
    client.raw = b""
    client.send(f"{method} /runs HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n\r\n".encode())


def test_the_service_is_told_who_asks_for_what(recorded: tuple[Proxy, Recorder]) -> None:
    """By the name, with the port, that the client said; who it is says the proxy, not the client."""
    proxy, recorder = recorded
    recorder.begin()
    forged = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "gopher", "X-Forwarded-Host": "evil.example"}
    with Client(proxy.port, "GET", "/readyz", headers=forged) as client:
        assert client.read() == b"ok"
    ((_, head),) = recorder.asked
    first, *lines = head.splitlines()
    assert first == "get /readyz http/1.1"
    name = f"127.0.0.1:{proxy.port}"
    told = {"host": name, "x-forwarded-host": name, "x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "http"}
    assert sorted(line for line in lines if line.partition(":")[0] in told) == sorted(
        f"{a}: {b}" for a, b in told.items()
    )


def test_its_connection_to_the_service_is_kept(recorded: tuple[Proxy, Recorder]) -> None:
    proxy, recorder = recorded
    recorder.begin()
    with Client(proxy.port, "GET", "/readyz") as client:
        client.read()
        ask_again(client, "GET", proxy.port)
        client.read()
    first, second = (connection for connection, _ in recorder.asked)
    assert first == second
