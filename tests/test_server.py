"""The command's server, byte by byte: who is late, sends too much or is one too many is told so and let go.

And nobody else is, nor anything said in the middle of an answer. With uvloop, and with asyncio's own loop.
"""

import asyncio
import gc
import inspect
import json
import re
import resource
import socket
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from streaming.settings import Settings
from wires.server import FAREWELL, MAX_HEAD, Protocol, options

from .client import DEADLINE, get, post, text
from .conftest import Service, Start, eventually
from .metrics import refusals_in
from .sockets import UPGRADE, RawSocket, masked, talk
from .test_slow_viewer import gone

LATE = 0.25  # header_timeout of the service that is `hasty`, seconds
COMMANDS = {
    "uvloop": "import command; command.main()",
    "asyncio": "import sys; sys.modules['uvloop'] = None; import command; command.main()",
}
LEAN = {"SIDESTREAM_PROVIDERS": '{"local": {"enabled": false}}'}  # a second of CPU less to start
HELLO = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
ENDLESS = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Endless: "
SILENT = b"GET /chat/stream?message=hi&model=scripted/silent HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def start(start_service: Start, loop: str = "uvloop", **settings: str) -> Service:
    return start_service(command=[sys.executable, "-c", COMMANDS[loop]], **LEAN, **settings)


@pytest.fixture(scope="module", params=COMMANDS)
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(loop: str, start_service: Start) -> Service:
    return start(start_service, loop)


@pytest.fixture(scope="module")
def hasty(loop: str, start_service: Start) -> Service:
    return start(start_service, loop, SIDESTREAM_HEADER_TIMEOUT=str(LATE))


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Line:
    """A connection: what is sent goes out as it is, what comes is read answer by answer. Use it in a `with`."""

    def __init__(self, port: int, *sent: bytes) -> None:
        self.opened = time.monotonic()
        self.socket = socket.create_connection(("127.0.0.1", port), DEADLINE)
        self._file = self.socket.makefile("rb")
        for data in sent:
            self.send(data)

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def flood(self) -> None:
        """Send until nobody takes it any more, which raises ConnectionError."""
        while time.monotonic() - self.opened < DEADLINE:
            self.send(b"x" * 65536)

    def answer(self) -> Answer:
        """Return the next answer. Raises ConnectionError where none comes."""
        first, *lines = iter(self._file.readline, b"\r\n") if (begun := self._file.peek(1)) else [b""]
        if not begun:
            raise ConnectionError("no answer")
        pairs = (line.decode().strip().partition(": ") for line in lines)
        headers = {name.lower(): value for name, _, value in pairs}
        return Answer(int(first.split()[1]), headers, self._file.read(int(headers["content-length"])))

    def head(self) -> None:
        """Take the head of an answer."""
        while self._file.readline() != b"\r\n":
            pass

    def rest(self) -> bytes:
        """Return what still comes, up to the end of the connection."""
        return self._file.read()

    def dribble(self, data: bytes, every: float) -> None:
        """Send byte by byte, until the other side says something or hangs up."""
        self.socket.settimeout(every)
        for place in range(len(data)):
            try:
                self.send(data[place : place + 1])
                self.socket.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                continue
        self.socket.settimeout(DEADLINE)


def refused(line: Line, status: int, code: str) -> None:
    """Assert that this is the last answer on the connection."""
    answer = line.answer()
    told = json.loads(answer.body)
    assert (answer.status, told["status"], told["code"]) == (status, status, code)
    assert told["title"] == HTTPStatus(status).phrase
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "date" in answer.headers
    assert line.rest() == b""


def let_a_head_be_late(port: int) -> None:
    """Return when a connection that was opened just now has been late with its head."""
    with Line(port) as silent:
        assert silent.rest() == b""


def test_both_loops_are_tried(server: Service, loop: str) -> None:
    loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert ("uvloop/loop" in loaded) == (loop == "uvloop")


# --- Who is late -----------------------------------------------------------------------------------------------------

BEFORE = pytest.mark.parametrize("before", [b"", HELLO], ids=["first", "kept"])


def test_who_sends_nothing_is_hung_up_on_without_a_word(hasty: Service) -> None:
    with Line(hasty.port) as line:
        assert line.rest() == b""
        assert LATE * 0.9 < time.monotonic() - line.opened < DEADLINE / 2


@BEFORE
def test_a_head_that_comes_byte_by_byte_is_late(hasty: Service, before: bytes) -> None:
    with Line(hasty.port, before) as line:
        if before:
            assert line.answer().status == 200
        line.dribble(ENDLESS + b"x" * 1000, every=LATE / 20)
        refused(line, 408, "request_timeout")


UNREAD = b"POST /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n"
# What is sent and answered, if anything; what is sent then, and is the last; whether that was the head of a request.
UNFINISHED = {
    "a byte": (b"", b"G", True),
    "a byte of a further request": (HELLO, b"G", True),
    "a request, and a byte with it": (HELLO + b"G", b"E", True),
    "a blank line": (b"", b"\r\n", False),
    "a blank line behind a request": (HELLO, b"\r\n", False),
    "a body that nobody waits for": (UNREAD, b"x", False),
}


def test_whoever_stops_before_a_request_is_whole_is_hung_up_on(hasty: Service) -> None:
    lines = {name: Line(hasty.port, first) for name, (first, _, _) in UNFINISHED.items()}
    for name, (first, last, _) in UNFINISHED.items():
        if first:
            assert lines[name].answer().status in (200, 404), name
        lines[name].send(last)
    for name, (_, _, is_head) in UNFINISHED.items():
        with lines[name] as line:
            if is_head:
                refused(line, 408, "request_timeout")
            else:
                assert line.rest() == b"", name


def test_a_kept_connection_may_idle_for_longer_than_a_head_may_take(hasty: Service) -> None:
    with Line(hasty.port, HELLO) as line:
        assert line.answer().status == 200
        let_a_head_be_late(hasty.port)
        line.send(HELLO)
        assert line.answer().body == b"ok"


def test_a_kept_connection_that_idles_is_closed_by_the_keep_alive_timeout(start_service: Start) -> None:
    script = "import sys, uvicorn; uvicorn.run('service:app', port=int(sys.argv[2]), {})"
    how = "http='wires.server:Protocol', timeout_keep_alive=0.3"
    service = start_service(command=[sys.executable, "-c", script.format(how)], **LEAN)
    with Line(service.port, HELLO) as line:
        assert line.answer().status == 200
        begun = time.monotonic()
        assert line.rest() == b""
        assert 0.2 < time.monotonic() - begun < DEADLINE / 2  # the time for a head is 20 s there


def test_an_answer_may_take_longer_than_a_head(hasty: Service) -> None:
    script = [{"say": "one two "}, {"say": "three", "wait": 2 * LATE}]
    with post(hasty.port, message="hi", model="scripted/custom", provider_options={"script": script}) as client:
        assert text(list(client)) == "one two three"


@pytest.mark.parametrize("behind", [b"\r\n", b"GET /heal"], ids=["a blank line", "half a request"])
def test_what_comes_behind_a_request_does_not_disturb_its_answer(hasty: Service, behind: bytes) -> None:
    with Line(hasty.port, SILENT + behind) as line:
        let_a_head_be_late(hasty.port)
        line.socket.setblocking(False)
        came = line.socket.recv(65536)
        assert came.count(b"HTTP/1.1") == 1
        assert b"event: start" in came
        with pytest.raises(BlockingIOError):  # nothing more, and no end
            line.socket.recv(1)


def test_a_websocket_lives_on(hasty: Service) -> None:
    with talk(hasty.port, "model=scripted/echo") as opened:
        let_a_head_be_late(hasty.port)
        assert text(opened.turn("still here")) == "still here"


def test_a_websocket_on_a_kept_connection_lives_on(hasty: Service) -> None:
    lines = [f"{name}: {value}" for name, value in UPGRADE.items()]
    upgrade = "\r\n".join(["GET /ws/chat?model=scripted/echo HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""])
    with Line(hasty.port, HELLO) as line:
        assert line.answer().status == 200
        line.send(upgrade[:10].encode())
        line.send(upgrade[10:].encode())
        assert line.socket.recv(1000).startswith(b"HTTP/1.1 101")
        let_a_head_be_late(hasty.port)
        line.send(masked(b"still here"))
        came = b""
        while b'"event":"done"' not in came:
            data = line.socket.recv(65536)
            assert data, came
            came += data


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files(service: Service) -> int:
    return len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))


WORDS = "".join(f"word{number} " for number in range(70))


@pytest.mark.usefixtures("many_files")
def test_a_thousand_who_are_late_are_all_let_go_and_a_stream_goes_on(hasty: Service) -> None:
    script = [{"say": WORDS, "every": 0.01}, {"hang": True}]
    with post(hasty.port, message="hi", model="scripted/custom", provider_options={"script": script}) as stream:
        stream.until("start")
        before = open_files(hasty)
        late = [Line(hasty.port, ENDLESS if number % 2 else b"") for number in range(1000)]
        for number, line in enumerate(late):
            with line:
                if number % 2:
                    refused(line, 408, "request_timeout")
                else:
                    assert line.rest() == b""
        eventually(lambda: open_files(hasty) <= before)
        said = ""
        while said != WORDS:
            said += stream.until("token").data["token"]
            assert WORDS.startswith(said)


# --- Who sends too much ----------------------------------------------------------------------------------------------


def header(size: int) -> bytes:
    return b"X-Header: " + b"x" * (size - 12) + b"\r\n"


TOO_LARGE = {
    "one header, unfinished": ENDLESS + b"x" * MAX_HEAD,
    "many headers, unfinished": HELLO[:-2] + header(100) * (MAX_HEAD // 100 + 1),
    "a request line, unfinished": b"GET /" + b"x" * MAX_HEAD,
    "blank lines": b"\r\n" * MAX_HEAD,
    "one header": HELLO[:-2] + header(MAX_HEAD) + b"\r\n",
    "many headers": HELLO[:-2] + header(100) * (MAX_HEAD // 100 + 1) + b"\r\n",
    "a request line": b"GET /healthz?" + b"x" * MAX_HEAD + HELLO[12:],
    "with the next request": HELLO[:-2] + header(MAX_HEAD) + b"\r\n" + HELLO.replace(b"healthz", b"smuggled"),
    "more than is read at once": ENDLESS + b"x" * 2_000_000,
}


@BEFORE
@pytest.mark.parametrize("sent", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_head_that_is_too_large_is_refused_and_its_client_hears_of_it(
    server: Service, before: bytes, sent: bytes
) -> None:
    with Line(server.port, before) as line:
        if before:
            assert line.answer().status == 200
        line.send(sent)
        refused(line, 431, "too_large")


def test_a_head_nearly_too_large_is_served(server: Service) -> None:
    prompt = "x" * (MAX_HEAD - 2000)
    with get(server.port, message=prompt, model="scripted/echo") as client:
        assert text(list(client)) == prompt
    many = HELLO[:-2] + header(100) * (MAX_HEAD // 100 - 10) + b"\r\n"
    with Line(server.port, many, many) as line:
        assert [line.answer().body, line.answer().body] == [b"ok", b"ok"]


def echo(prompt: str) -> bytes:
    body = json.dumps({"message": prompt, "model": "scripted/echo"}).encode()
    head = f"POST /runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def chunked(data: bytes) -> bytes:
    head, _, body = data.partition(b"\r\n\r\n")
    head = b"\r\n".join(line for line in head.split(b"\r\n") if b"Length" not in line)
    chunks = [body[place : place + 1000] for place in range(0, len(body), 1000)]
    whole = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + whole + b"0\r\n\r\n"


LARGE = echo("x" * 1_000_000)


@pytest.mark.parametrize("sent", [LARGE, chunked(LARGE)], ids=["by its length", "chunked"])
def test_a_body_is_no_head_and_may_be_larger(server: Service, sent: bytes) -> None:
    with Line(server.port, sent) as line:
        assert line.answer().status == 201
        for place in range(0, len(sent), 100_000):
            line.send(sent[place : place + 100_000])
        assert line.answer().status == 201
        line.send(HELLO)
        assert line.answer().body == b"ok"


def test_requests_sent_at_once_are_answered_in_turn_however_many_bytes_they_are(server: Service) -> None:
    turns = [HELLO[:-2] + header(500) + b"\r\n", echo("x" * 500), chunked(echo("x" * 5000))]
    number = 3 * MAX_HEAD // sum(map(len, turns))
    with Line(server.port, b"".join(turns) * number + HELLO[:10]) as line:
        assert [line.answer().status for _ in range(3 * number)] == [200, 201, 201] * number
        line.send(HELLO[10:])
        assert line.answer().body == b"ok"


CHUNKS = chunked(echo("")).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
BESIDE = {
    "trailers": b"1\r\n{\r\n0\r\n" + header(100) * 5000,
    "a trailer": b"1\r\n{\r\n0\r\nX: " + b"x" * 500_000,
    "an extension of a chunk": b"1;" + b"x" * 500_000,
}


@pytest.mark.parametrize("sent", BESIDE.values(), ids=BESIDE)
def test_what_comes_beside_a_body_is_bounded(server: Service, sent: bytes) -> None:
    with Line(server.port, CHUNKS) as line, suppress(ConnectionError):
        line.send(sent)
        assert line.rest() == b""


BEHIND = {
    "no request": b"\0\r\n\r\n",
    "half a head, too large": ENDLESS + b"x" * MAX_HEAD * 2,
    "a head, too large": HELLO[:-2] + header(2 * MAX_HEAD) + b"\r\n",
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_an_answer_under_way_is_cut_rather_than_mixed_with_a_refusal(server: Service, behind: bytes) -> None:
    with Line(server.port, SILENT) as line:
        came = b""
        while b"event: start" not in came:
            came += line.socket.recv(1)
        with suppress(ConnectionError):
            line.send(behind)
            came += line.rest()
        assert came.count(b"HTTP/1.1") == 1
        assert not came.endswith(b"\r\n0\r\n\r\n")


def test_what_is_no_request_is_refused_as_a_problem(server: Service) -> None:
    with Line(server.port, b"EHLO mail.example\r\n") as line:
        refused(line, 400, "invalid_request")
        assert time.monotonic() - line.opened < FAREWELL  # it hangs up, and does not wait for us to


def test_who_goes_on_sending_behind_a_refusal_is_listened_to_for_a_moment_only(start_service: Start) -> None:
    with Line(start(start_service).port, b"EHLO mail.example\r\n") as line:
        refused(line, 400, "invalid_request")
        with pytest.raises(ConnectionError):
            line.flood()
        assert time.monotonic() - line.opened > FAREWELL * 0.9


def test_after_all_of_that_nothing_is_left_and_nothing_has_failed(server: Service) -> None:
    with Line(server.port, HELLO) as line:
        assert line.answer().body == b"ok"
    assert [word for word in ("Traceback", "ERROR", "smuggled") if word in server.log] == []


# --- Who is one too many ---------------------------------------------------------------------------------------------

FULL = pytest.mark.parametrize("how", ["the setting", "uvicorn's option"])


def start_small(start_service: Start, how: str) -> Service:
    """Start a service that may have three connections."""
    if how == "the setting":
        return start(start_service, SIDESTREAM_MAX_CONNECTIONS="3")
    return start_service("--http", "wires.server:Protocol", "--limit-concurrency", "3", **LEAN)


@FULL
def test_who_comes_when_all_places_are_taken_is_refused_and_who_was_there_is_served(
    start_service: Start, how: str
) -> None:
    service = start_small(start_service, how)
    ask = HELLO.replace(b"healthz", b"readyz")
    with Line(service.port, HELLO) as first, talk(service.port, "model=scripted/echo") as second:
        assert first.answer().status == 200
        assert text(second.turn("hi")) == "hi"
        third = Line(service.port, HELLO)
        assert third.answer().status == 200
        with Line(service.port, ask) as fourth:
            answer = fourth.answer()
            assert (answer.status, json.loads(answer.body)["code"]) == (503, "overloaded")
            assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
            assert answer.headers["content-type"] == "application/problem+json"
            assert fourth.rest() == b""
        with pytest.raises(InvalidStatus) as refusal:
            connect(f"ws://127.0.0.1:{service.port}/ws/chat", proxy=None)
        assert refusal.value.response.status_code == 503
        with Line(service.port, HELLO) as probe:  # which is told that it lives, and no more by this connection
            answer = probe.answer()
            assert (answer.body, answer.headers["connection"]) == (b"ok", "close")
            assert probe.rest() == b""
        first.send(ask)
        assert first.answer().status == 200
        assert text(second.turn("again")) == "again"
        with third:
            pass
        eventually(lambda: _is_served(service.port, ask))
    assert refusals(service)["overloaded", "max_connections"] == 2
    assert "Traceback" not in service.log


def refusals(service: Service) -> dict[tuple[str, str], float]:
    with get(service.port, "/metrics") as client:
        return refusals_in(client.read().decode())


def test_a_full_service_lives_below_a_path_too(start_service: Start) -> None:
    small = "--http", "wires.server:Protocol", "--limit-concurrency", "1", "--root-path", "/x"
    service = start_service(*small, **LEAN)
    with Line(service.port, HELLO) as first, Line(service.port, HELLO) as second:
        assert first.answer().body == b"ok"
        assert second.answer().body == b"ok"
        with Line(service.port, HELLO.replace(b"healthz", b"readyz")) as third:
            assert third.answer().status == 503


def _is_served(port: int, request: bytes) -> bool:
    with Line(port, request) as line:
        return line.answer().status == 200


def test_whoever_is_refused_by_the_server_is_counted(start_service: Start) -> None:
    service = start(start_service, SIDESTREAM_HEADER_TIMEOUT=str(LATE))
    for sent, status, code in (
        (HELLO[:-2], 408, "request_timeout"),
        (b"rubbish\r\n\r\n", 400, "invalid_request"),
        (ENDLESS + b"x" * MAX_HEAD, 431, "too_large"),
    ):
        with Line(service.port, sent) as line:
            refused(line, status, code)
    assert refusals(service) == {
        ("request_timeout", "header_timeout"): 1,
        ("invalid_request", ""): 1,
        ("too_large", ""): 1,
    }


# --- Upgrades ---

TURN = b'{"message": "hi", "model": "scripted/echo"}'
OFFERS = {
    "Java's client": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n",
    "curl --http2": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "of what nobody knows": b"Connection: upgrade\r\nUpgrade: something/1.0, else\r\n",
}


@pytest.mark.parametrize("pieces", [1, 2, 1000])
@pytest.mark.parametrize("body", ["of a length", "in chunks"])
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_who_offers_another_protocol_is_served_by_this_one(
    server: Service, offer: bytes, body: str, pieces: int
) -> None:
    """Of an offer that is not taken nothing is left but the request (RFC 9110, 7.8)."""
    length = b"Content-Length: %d\r\n\r\n%b" % (len(TURN), TURN)
    chunks = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(TURN), TURN)
    head = b"POST /runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    sent = head + offer + (length if body == "of a length" else chunks)
    size = -(-len(sent) // pieces)
    with Line(server.port) as line:
        for _ in range(2):
            for place in range(0, len(sent), size):
                line.send(sent[place : place + size])
            answer = line.answer()
            assert answer.status == 201, answer.body
        line.send(HELLO.replace(b"\r\n\r\n", b"\r\n" + offer + b"\r\n") + HELLO)
        assert [line.answer().status, line.answer().status] == [200, 200]


def test_what_the_parser_does_not_serve_ends_without_harm(server: Service) -> None:
    with Line(server.port, b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n") as line:
        assert line.answer().status in (400, 403, 404, 405)
    assert "Traceback" not in server.log


HANDSHAKE = b"GET /ws/chat HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\n" % b"".join(
    f"{name}: {value}\r\n".encode() for name, value in UPGRADE.items()
)
HANDSHAKES = {
    "a long header": (b"Cookie: " + b"x" * 9000 + b"\r\n\r\n", 431),
    "many headers": (b"".join(b"X-%d: 1\r\n" % number for number in range(200)) + b"\r\n", 431),
}


@pytest.mark.parametrize(("rest", "status"), HANDSHAKES.values(), ids=HANDSHAKES)
def test_a_handshake_that_the_library_does_not_take_is_answered_and_over(
    start_service: Start, rest: bytes, status: int
) -> None:
    service = start(start_service)
    with Line(service.port, HANDSHAKE[:-2] + rest) as line:
        assert line.answer().status == status
        assert line.rest() == b""
    with Line(service.port, HANDSHAKE[:-2] + b"Content-Length: 5\r\n\r\nhello") as line:
        line.rest()
    with Line(service.port, HANDSHAKE.replace(b"/ws/chat", b"/ws/chat?system=" + b"x" * 9000)) as line:
        assert line.answer().status == 414
        assert service.stop() == 0
    assert "Traceback" not in service.log


def test_a_websocket_that_is_refused_is_no_error_of_ours(start_service: Start) -> None:
    service = start(start_service, SIDESTREAM_API_KEYS="web:hunter2-hunter2")
    with Line(service.port, HANDSHAKE) as line:
        assert line.answer().status == 401
    with Line(service.port, HANDSHAKE[:-2] + b"X-API-Key: hunter2-hunter2\r\n\r\n") as line:
        line.head()
        line.send(masked(b"\xff\xfe"))  # no UTF-8
        assert b"\x03\xef" in line.rest()  # 1007
    assert service.stop() == 0
    assert "ERROR" not in service.log.replace("ERROR:    Invalid UTF-8 sequence received from client.", "")
    assert "Traceback" not in service.log


def test_pings_of_who_never_reads_are_not_answered_for_ever(start_service: Start) -> None:
    service = start(start_service)
    pings = (b"\x89\xfd" + bytes(4) + bytes(125)) * 500
    with reads_nothing(service.port, HANDSHAKE) as raw, pytest.raises(ConnectionError):
        raw.sendall(pings * 2000)  # 130 MB
    assert "Traceback" not in service.log


# --- Who reads nothing ---


def reads_nothing(port: int, sent: bytes) -> socket.socket:
    """Send requests, and take nothing of what is answered."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", port))
    raw.sendall(sent)
    return raw


DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def test_who_takes_nothing_of_any_answer_is_cut_off(start_service: Start, loop: str) -> None:
    service = start(start_service, loop, SIDESTREAM_SEND_TIMEOUT="0.2", SIDESTREAM_PING_INTERVAL="0")
    with reads_nothing(service.port, DOCUMENT * 100) as raw:  # more than the kernel takes
        eventually(lambda: gone(raw))
    with Line(service.port, HELLO) as line:
        assert line.answer().status == 200
    assert "Traceback" not in service.log


# --- What uvicorn is told --------------------------------------------------------------------------------------------


def test_an_idle_connection_is_kept_for_longer_than_proxies_keep_it() -> None:
    """nginx's keepalive_timeout of an upstream, the idle timeout of AWS's ALB: 60 s. Who closes first is not cut."""
    assert options(Settings())["timeout_keep_alive"] > 60


def test_it_does_not_say_what_it_runs_on(server: Service) -> None:
    with Line(server.port, HELLO) as line:
        assert set(line.answer().headers) == {"date", "content-type", "content-length", "x-content-type-options"}


def test_a_frame_that_is_too_large_is_refused_and_one_that_is_much_too_large_ends_the_socket(
    start_service: Start,
) -> None:
    service = start(start_service, SIDESTREAM_MAX_BODY_BYTES="1000")
    with talk(service.port, "model=scripted/echo") as opened:
        assert opened.turn("x" * 1001)[-1].data["code"] == "too_large"
        assert opened.turn("x" * 64_000)[-1].data["code"] == "too_large"
        opened.say("x" * 70_000)
        with pytest.raises(ConnectionClosedError) as closed:
            opened.next()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


def test_a_websocket_is_pinged_like_a_stream_and_let_go_where_it_takes_none(start_service: Start) -> None:
    patience = {"SIDESTREAM_PING_INTERVAL": "0.1", "SIDESTREAM_SEND_TIMEOUT": "0.4"}
    service = start(start_service, **patience)
    with RawSocket(service.port) as silent, talk(service.port, "model=scripted/echo") as opened:
        begun = time.monotonic()
        silent.read_to_end()
        assert time.monotonic() - begun < DEADLINE / 2
        assert [opcode for opcode, _ in silent.frames] == [9, 8]
        assert silent.closed_by == 1011
        assert text(opened.turn("still here")) == "still here"


# --- What uvicorn may change -----------------------------------------------------------------------------------------


class Nowhere(asyncio.Transport):
    """A transport to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def make(kind: type[HttpToolsProtocol] = Protocol) -> HttpToolsProtocol:
    config = Config(hello, http=kind, log_config=None)
    return kind(config, ServerState(), {})


def test_uvicorn_still_has_what_is_overridden_and_read() -> None:
    """Where this fails after an upgrade, read uvicorn's httptools_impl.py again, and mend wires/server.py."""

    async def test() -> None:
        overridden = {name for name in vars(Protocol) if not name.startswith("_")}
        assert {name for name in overridden if not callable(getattr(HttpToolsProtocol, name, None))} == set()
        uvicorns = make(HttpToolsProtocol)
        uvicorns.on_message_begin()
        read = set(re.findall(r"self\.([a-z]\w+)", inspect.getsource(Protocol)))
        assert {name for name in read if not hasattr(uvicorns, name)} == set()
        assert "method" not in uvicorns.scope
        assert uvicorns.cycle is None

    asyncio.run(test())


class Stuck(Nowhere):
    """A transport whose other side takes nothing: it closes only by force."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def abort(self) -> None:
        self.aborted.set()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_what_closes_and_is_not_taken_is_cut_off_however_little_it_is(version: str) -> None:
    """Too little for the transport to ask that no more be written: `close` alone would wait for ever."""

    async def test() -> None:
        config = Config(hello, http=Protocol, log_config=None)
        config.timeout_keep_alive = 0
        protocol, transport = Protocol(config, ServerState(), {}, send_timeout=0.01), Stuck()
        protocol.connection_made(transport)
        protocol.data_received(HELLO.replace(b"1.1", version.encode()))
        async with asyncio.timeout(DEADLINE):
            await transport.aborted.wait()
        assert transport.is_closed
        protocol.connection_lost(None)

    asyncio.run(test())


class Slow(Stuck):
    """Its other side takes something each time that one looks, and then no more."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [5, 4, 3, 3]

    def get_write_buffer_size(self) -> int:
        return self.sizes.pop(0)


def test_who_takes_an_answer_slowly_is_not_cut_off_before_taking_nothing() -> None:
    async def test() -> None:
        protocol, transport = Protocol(Config(hello, log_config=None), ServerState(), {}, send_timeout=0.01), Slow()
        protocol.connection_made(transport)
        protocol.pause_writing()
        async with asyncio.timeout(DEADLINE):
            await transport.aborted.wait()
        assert transport.sizes == []
        protocol.connection_lost(None)

    asyncio.run(test())


def test_what_came_is_not_kept_for_as_long_as_the_answer_takes() -> None:
    """It may be a quarter of a megabyte, of each open stream."""

    async def test() -> None:
        protocol = make()
        protocol.connection_made(Nowhere())
        data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + bytes(1000)
        before = sys.getrefcount(data)
        protocol.data_received(data)
        assert sys.getrefcount(data) == before
        protocol.connection_lost(None)

    asyncio.run(test())


def test_nothing_more_is_said_on_a_connection_that_closes() -> None:
    async def test() -> None:
        protocol, transport = make(), Nowhere()
        protocol.connection_made(transport)
        protocol.shutdown()
        protocol.data_received(b"EHLO mail.example\r\n")
        assert (transport.is_closed, transport.written) == (True, b"")

    asyncio.run(test())


LEFT = {"nothing": [b""], "half a head": [b"GET"], "a request": [HELLO], "half of the next": [HELLO, b"G", b"E"]}


@pytest.mark.parametrize("sent", LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("exc", [None, ConnectionResetError()], ids=["closed", "reset"])
def test_no_clock_holds_a_connection_that_is_lost(sent: list[bytes], exc: Exception | None) -> None:
    async def test() -> None:
        protocol, transport = make(), Nowhere()
        protocol.connection_made(transport)
        for data in sent:
            protocol.data_received(data)
            while protocol.tasks:
                await asyncio.wait(protocol.tasks)
                await asyncio.sleep(0)  # in which they are forgotten
        assert transport.written.startswith(b"HTTP/1.1 200") == (sent[0] == HELLO)
        protocol.connection_lost(exc)
        left = weakref.ref(protocol)
        del protocol, transport
        gc.collect()
        assert left() is None

    asyncio.run(test())
