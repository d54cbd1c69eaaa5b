"""nginx in front, configured as a beginner would: default buffering, HTTP/1.0 to the service; and one that compresses.

What arrives one by one is proved by an upstream that says the next thing only when the client has got the last.
"""

from itertools import islice

import pytest
from websockets.exceptions import InvalidStatus

from .client import Client, get, post, text
from .conftest import Service
from .line_readers import READERS, Reader
from .nginx import Ports
from .recorded import OPENAI
from .resource import WIRES
from .sockets import STOP, Socket, talk
from .test_disconnect import PHASES, Phase, before_headers, before_tokens, catch_up, slow_viewer
from .test_ndjson import arrive_one_by_one, play_word_by_word
from .upstream import END, PAUSE, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.nginx"]


def hanging(client: Client) -> list[str]:
    """Read up to the last token of a run that goes on without end; what arrived did so by itself, not at the end."""
    names = []
    for event in client:
        names.append(event.name)
        if event.name == "token" and event.data["token"].endswith("three"):
            return names
    raise ConnectionError(f"it ended: {client.body!r}")


SCRIPT = [{"say": "one"}, {"say": " two"}, {"say": " three"}, {"hang": True}]


@pytest.mark.parametrize("http", ["1.0", "1.1"])
def test_events_arrive_one_by_one_through_default_buffering(nginx: Ports, http: str) -> None:
    query = "message=hi&model=scripted/stall&idle_timeout=30"
    with Client(nginx.plain, "GET", f"/chat/stream?{query}", http=http) as client:
        status, headers = client.head()
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-store"
        names = [event.name for event in islice(client, 9)]  # all there is before it falls silent
    assert names == ["start"] + ["token"] * 8


def test_posted_runs_stream_through_it_too(nginx: Ports) -> None:
    with post(nginx.plain, message="hi", model="scripted/custom", provider_options={"script": SCRIPT}) as client:
        assert hanging(client)[0] == "start"


def test_a_whole_answer_comes_to_its_end(nginx: Ports) -> None:
    with get(nginx.plain, message="hi", model="scripted/unicode") as client:
        through = text(list(client))
    assert through.startswith("Grüße, 世界!")
    assert "\u2028" in through


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("which", Ports._fields)
def test_lines_arrive_one_by_one(nginx: Ports, upstream: Upstream, which: str, reader: Reader) -> None:
    play_word_by_word(upstream)
    with reader(getattr(nginx, which), "/stream", {"message": "Hi"}) as lines:
        arrive_one_by_one(lines, upstream)
        assert list(lines) == []


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
def test_the_one_that_compresses_does_so(nginx: Ports, wire: dict[str, str]) -> None:
    headers = {"Accept-Encoding": "gzip", **wire}
    with get(nginx.compressing, headers=headers, message="hi", model="scripted/echo") as client:
        assert client.head()[1]["content-encoding"] == "gzip"


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_hanging_up_on_it_closes_the_upstream(
    nginx: Ports, relay: Service, upstream: Upstream, wire: dict[str, str], phase: Phase
) -> None:
    upstream.play(*phase(OPENAI))
    target, headers = "/chat/stream?message=Hi", {"Connection": "close", **wire}
    buffer = 4096 if phase is slow_viewer else 0
    with Client(nginx.plain, "GET", target, headers=headers, receive_buffer=buffer) as client:
        awaited = b"start" if phase in (before_headers, before_tokens) else b"Here"
        client.read_on(lambda body: awaited in body)
        exchange = upstream.request()
        exchange.wait_for_pause()
        if phase is slow_viewer:
            catch_up(relay)
        assert not exchange.ended
    assert exchange.wait().ended == "aborted"


def says(socket: Socket, message: str) -> str:
    return text(socket.turn(message))


def test_a_websocket_passes_through_it(nginx: Ports, upstream: Upstream) -> None:
    for answer in ("Rome.", "Paris."):
        upstream.stream(*OPENAI.opening, OPENAI.token(answer), *OPENAI.ending)
    with talk(nginx.plain) as socket:
        assert [says(socket, question) for question in ("Italy?", "France?")] == ["Rome.", "Paris."]
    upstream.request()
    asked = upstream.request().body["messages"]
    assert [message["content"] for message in asked] == ["Italy?", "Rome.", "France?"]


@pytest.mark.parametrize("which", Ports._fields)
def test_frames_arrive_one_by_one(nginx: Ports, upstream: Upstream, which: str) -> None:
    play_word_by_word(upstream)
    with talk(getattr(nginx, which)) as socket:
        socket.say("Hi")
        arrive_one_by_one(map(str, socket.connection), upstream)


@pytest.mark.parametrize("way", ["a stop", "a close"])
@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase is not slow_viewer], ids=lambda p: p.__name__)
def test_a_websocket_that_stops_or_closes_behind_it_closes_the_upstream(
    nginx: Ports, upstream: Upstream, phase: Phase, way: str
) -> None:
    upstream.play(*phase(OPENAI))
    with talk(nginx.plain) as socket:
        socket.say("Hi")
        socket.until("start" if phase in (before_headers, before_tokens) else "token")
        exchange = upstream.request()
        exchange.wait_for_pause()
        if way == "a stop":
            socket.say(STOP)
            assert socket.until("cancelled").data["reason"] == "requested"
    assert exchange.wait().ended == "aborted"


def test_a_page_behind_it_may_open_a_websocket_where_it_passes_on_its_name(nginx: Ports) -> None:
    """Browsers say nothing but `Origin` on a WebSocket's handshake: to know its own page a service must know its name.

    With fetch metadata, which they send along with all else, it need not.
    """
    with talk(nginx.plain, "model=scripted/echo", origin=f"http://127.0.0.1:{nginx.plain}") as socket:
        assert socket.turn("Hi")[-1].name == "done"
    with (
        pytest.raises(InvalidStatus) as refused,
        talk(nginx.compressing, origin=f"http://127.0.0.1:{nginx.compressing}"),
    ):
        pass
    assert refused.value.response.status_code == 403
    headers = {"Origin": f"http://127.0.0.1:{nginx.compressing}", "Sec-Fetch-Site": "same-origin"}
    with post(nginx.compressing, headers=headers, message="Hi", model="scripted/echo") as client:
        assert client.head()[0] == 200


def test_a_socket_that_is_lost_behind_it_is_come_back_to(nginx: Ports, upstream: Upstream) -> None:
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("One"), PAUSE, OPENAI.token(" two"), *OPENAI.ending, END)
    with talk(nginx.plain, "linger=20") as socket:
        socket.say("Hi")
        seen = [socket.next(), socket.next()]
        socket.lose("FIN")
    with talk(nginx.plain, f"resume={seen[-1].id}") as socket:
        upstream.request().release()
        whole = seen + socket.rest()
    assert [event.name for event in whole] == ["start", "token", "token", "done"]
    assert text(whole) == "One two"
