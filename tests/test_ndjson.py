"""NDJSON as line readers get it, `curl -N` and httpx: line by line, each whole, to be left at any time.

How a run is cut off and resumed over it is in test_resume.py, its very bytes are in test_sse_wire.py.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from .client import Client, get
from .conftest import Service, eventually
from .line_readers import READERS, Reader
from .recorded import OPENAI, call, chat, chat_end, chat_usage
from .resource import NDJSON, create, lines, status_of
from .sockets import RawSocket
from .test_disconnect import PHASES, Phase, before_headers, before_tokens, slow_viewer
from .upstream import END, PAUSE, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.replicas"]

each_reader = pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
WORDS = ["one", " two", " three"]


def play_word_by_word(upstream: Upstream) -> None:
    """Play an answer whose head, words and end each wait to be released."""
    words = [step for word in WORDS for step in (PAUSE, OPENAI.token(word))]
    upstream.play(PAUSE, Head(), *OPENAI.opening, *words, PAUSE, *OPENAI.ending, END)


def arrive_one_by_one(told: Iterator[str], upstream: Upstream) -> None:
    """Each event is there before the upstream says the next thing, `start` before it says anything."""
    assert json.loads(next(told))["event"] == "start"
    exchange = upstream.request()
    exchange.release()
    for word in WORDS:
        exchange.release()
        assert json.loads(next(told))["data"] == {"token": word}
    exchange.release()
    assert json.loads(next(told))["event"] == "done"
    assert exchange.wait().ended == "completed"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/stream?message=Hi", None),
        ("/stream", {"message": "Hi"}),
        ("/chat/stream?message=Hi", None),
        ("/chat/stream-meta", {"message": "Hi"}),
        ("/openai/stream", {"message": "Hi"}),
    ],
)
@each_reader
def test_lines_arrive_one_by_one(relay: Service, upstream: Upstream, reader: Reader, path: str, body: object) -> None:
    play_word_by_word(upstream)
    with reader(relay.port, path, body) as told:
        arrive_one_by_one(told, upstream)
        assert list(told) == []


@pytest.mark.replicated
@each_reader
def test_a_run_is_followed_line_by_line(relay: Service, upstream: Upstream, reader: Reader) -> None:
    play_word_by_word(upstream)
    url = create(relay.port, message="Hi")["events_url"]
    with reader(relay.port, url) as told:
        arrive_one_by_one(told, upstream)
        assert list(told) == []


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase is not slow_viewer], ids=lambda p: p.__name__)
@each_reader
def test_a_reader_that_ends_closes_the_upstream(
    relay: Service, upstream: Upstream, reader: Reader, phase: Phase
) -> None:
    upstream.play(*phase(OPENAI))
    with reader(relay.port, "/stream?message=Hi") as told:
        awaited = "start" if phase in (before_headers, before_tokens) else "token"
        while json.loads(next(told))["event"] != awaited:
            pass
        exchange = upstream.request()
        exchange.wait_for_pause()
        assert not exchange.ended
    assert exchange.wait().ended == "aborted"


@pytest.mark.parametrize("path", ["/stream", "/chat/stream", "/openai/stream", "/runs"])
def test_no_stream_is_compressed_or_cached(relay: Service, upstream: Upstream, path: str) -> None:
    """Who asks for what is compressed gets it as it is: to compress is to hold back."""
    upstream.stream(*OPENAI.opening, OPENAI.token("Well" * 1000), *OPENAI.ending)
    accept = {"Accept-Encoding": "gzip, deflate, br, zstd", **NDJSON}
    if path == "/runs":
        client = get(relay.port, create(relay.port, message="Hi")["events_url"], accept)
    else:
        client = get(relay.port, path, accept, message="Hi")
    with client:
        status, headers = client.head()
        body = client.read()
    assert [event.name for event in lines(body)] == ["start", "token", "done"]
    for differing in ("date", "content-location"):
        del headers[differing]
    assert (status, headers) == (
        200,
        {
            "server": "uvicorn",
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            "content-type": "application/x-ndjson",
            "x-content-type-options": "nosniff",
            "transfer-encoding": "chunked",
        },
    )


@pytest.mark.parametrize(
    ("accept", "path", "is_ndjson"),
    [
        (None, "/chat/stream", False),
        ("*/*", "/chat/stream", False),
        ("application/json", "/chat/stream", False),
        ("text/event-stream", "/chat/stream", False),
        ("application/x-ndjson", "/chat/stream", True),
        ("application/x-ndjson, text/event-stream;q=0.5", "/chat/stream", True),
        ("application/json, application/x-ndjson;q=0.9, */*;q=0.1", "/chat/stream", True),
        ("text/event-stream", "/stream", True),
        (None, "/stream", True),
    ],
)
def test_who_accepts_ndjson_gets_it(service: Service, accept: str | None, path: str, is_ndjson: bool) -> None:
    headers = {} if accept is None else {"Accept": accept}
    with get(service.port, path, headers, message="Hi", model="scripted/custom", **SCRIPT) as client:
        kind = client.head()[1]["content-type"].partition(";")[0]
        assert kind == ("application/x-ndjson" if is_ndjson else "text/event-stream")


SCRIPT = {"provider_options": '{"script": [{"say": "Hi"}]}'}
# All that str.splitlines and httpx's iter_lines take for the end of a line.
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def test_httpx_keeps_each_line_whole_whatever_is_in_it(relay: Service, upstream: Upstream) -> None:
    text = "".join(f"{end}{number}" for number, end in enumerate(LINE_ENDS))
    arguments = json.dumps({text: [text]}, ensure_ascii=False)
    upstream.stream(
        *OPENAI.opening,
        chat({"reasoning_content": text}),
        OPENAI.token(text),
        call(0, arguments, f"call{text}", f"tool{text}"),
        *chat_end("tool_calls", chat_usage(1, 1)),
    )
    with READERS["httpx"](relay.port, "/stream", {"message": "Hi"}) as told:
        events = [json.loads(line) for line in told]
    assert [(event["event"], event["data"]) for event in events[1:-1]] == [
        ("reasoning", {"reasoning": text}),
        ("token", {"token": text}),
        ("tool_call_delta", {"index": 0, "args_delta": arguments, "id": f"call{text}", "tool": f"tool{text}"}),
        ("tool_call", {"id": f"call{text}", "tool": f"tool{text}", "args": {text: [text]}}),
    ]


@pytest.mark.replicated
def test_httpx_goes_on_where_it_was(relay: Service, upstream: Upstream) -> None:
    """As a program does it that keeps the last id it has seen."""
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("One"), PAUSE, OPENAI.token(" two"), *OPENAI.ending, END)
    url = f"http://127.0.0.1:{relay.port}/stream?message=Hi&linger=20"
    with httpx.Client(trust_env=False) as client:
        with client.stream("GET", url) as response:
            told = response.iter_lines()
            seen = [json.loads(next(told)) for _ in range(2)]
        with client.stream("GET", url, headers={"Last-Event-ID": seen[-1]["id"]}) as response:
            upstream.request().release()
            whole = seen + [json.loads(line) for line in response.iter_lines()]
        assert client.get(url, headers={"Last-Event-ID": whole[-1]["id"]}).status_code == 204
    assert [event["event"] for event in whole] == ["start", "token", "token", "done"]
    assert [event["data"]["token"] for event in whole[1:3]] == ["One", " two"]


VIEWERS = 24
SIZE = 10_000_000  # within `max_run_bytes`


def resident(service: Service) -> int:
    """Return the bytes of memory that the service holds."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


@pytest.mark.parametrize("wire", ["NDJSON", "WebSocket"])
def test_viewers_that_take_nothing_hold_back_little(relay: Service, upstream: Upstream, wire: str) -> None:
    """An answer of 10 MB is there once, as its run's own; not as often as there are viewers."""
    upstream.play(Head(), *OPENAI.opening, PAUSE, *[OPENAI.token("x" * 1000)] * (SIZE // 1000), *OPENAI.ending, END)
    created = create(relay.port, message="Hi")

    def view() -> Client:
        if wire == "WebSocket":
            return RawSocket(relay.port, f"resume={created['id']}-0", receive_buffer=4096)
        return Client(relay.port, "GET", created["events_url"], headers=NDJSON, receive_buffer=4096)

    with ExitStack() as open_, READERS["httpx"](relay.port, created["events_url"]) as told:
        for _ in range(VIEWERS):
            open_.enter_context(view())
        eventually(lambda: status_of(relay.port, created["status_url"])["viewers"] == VIEWERS + 1)
        before = resident(relay)
        upstream.request().release()
        assert '"event":"done"' in list(told)[-1]
        assert resident(relay) - before < VIEWERS * SIZE / 3
        assert status_of(relay.port, created["status_url"])["viewers"] >= VIEWERS, "they are viewers still"
