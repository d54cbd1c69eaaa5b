"""Cut off at any byte, a client that comes back gets what it has not seen: nothing lost, nothing twice, nothing asked.

A client takes just so many bytes, is cut off (in order and by a reset in turn), and has seen what an EventSource would
have dispatched by then, or the lines that are whole. It says so by the header or either parameter, in turn.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from .client import Client, Event, get
from .conftest import Service
from .recorded import OPENAI, chat
from .resource import WAYS, WIRES, create, dispatched, events_in, is_one_run, lines, rest_of, resume, said, status_of
from .upstream import END, PAUSE, Head, Repeat, Step, Upstream

pytest_plugins = ["tests.upstream", "tests.replicas"]
pytestmark = pytest.mark.replicated

each_wire = pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
CLOSE = {"Connection": "close"}  # behind the last byte, so that a client may take more than there is
TOGETHER = 100  # cuts of one live run


def think(text: str) -> bytes:
    return chat({"reasoning_content": text})


# Of two kinds in turn, so that they are several events to who comes late, too.
BEGUN = [
    think("Grü"),
    think("ße? "),
    OPENAI.token("世"),
    OPENAI.token("界! 👩‍👩‍👧"),
    think("\u2028\x85"),
    OPENAI.token("a\u2029\n\n"),
]
REST = [OPENAI.token("id: 1\r\nb"), think(" 🤔"), OPENAI.token('"\\ \0\U0001f600'), OPENAI.token("data: ")]
BEGUN_SAYS = {"token": "世界! 👩‍👩‍👧a\u2029\n\n", "reasoning": "Grüße? \u2028\x85"}
SAYS = {
    "token": BEGUN_SAYS["token"] + 'id: 1\r\nb"\\ \0\U0001f600data: ',
    "reasoning": BEGUN_SAYS["reasoning"] + " 🤔",
}


def cut(port: int, url: str, wire: dict[str, str], offset: int, *, way: str = WAYS[0], seen: str = "") -> list[Event]:
    """Follow from behind `seen`, take `offset` bytes of the response, hang up, and return the events in them."""
    with resume(port, url, seen, way=way, headers=wire | CLOSE) as client:
        client.take(offset)
        client.hang_up(reset=bool(offset % 2))
        return events_in(client)


def last_of(events: list[Event]) -> str:
    return events[-1].id if events else ""


def offsets(client: Client) -> range:
    """Every byte of the response, from the last of its head to its last."""
    return range(client.raw.index(b"\r\n\r\n") + 4, len(client.raw) + 1)


@each_wire
def test_a_run_that_is_kept_is_resumed_from_every_byte(
    relay: Service, upstream: Upstream, wire: dict[str, str]
) -> None:
    upstream.stream(*OPENAI.opening, *BEGUN, *REST, *OPENAI.ending)
    url = create(relay.port, message="Hi")["events_url"]
    rest_of(get(relay.port, url))
    with get(relay.port, url, wire | CLOSE) as client:
        client.read()
        whole = events_in(client)
    assert said(whole) == SAYS
    for offset in [0, 1, *offsets(client)]:
        seen = cut(relay.port, url, wire, offset)
        assert seen == whole[: len(seen)]
        rest = rest_of(resume(relay.port, url, last_of(seen), way=WAYS[offset % 3], headers=wire))
        assert seen + rest == whole, offset
    assert seen == whole, "the last of the cuts came behind all of it"
    upstream.request()
    assert upstream.exchanges.empty()


@pytest.fixture
def begun(relay: Service, upstream: Upstream) -> Iterator[Any]:
    """Start runs that are held in the middle of their answer."""

    def begin() -> tuple[str, Any]:
        upstream.play(Head(), *OPENAI.opening, *BEGUN, PAUSE, *REST, *OPENAI.ending, END)
        created = create(relay.port, message="Hi")
        with get(relay.port, created["events_url"]) as client:
            client.read_on(lambda body: said(dispatched(body)) == BEGUN_SAYS)
        return created["events_url"], upstream.request()

    yield begin
    assert upstream.exchanges.empty(), "nobody who came back asked the upstream anything"


@each_wire
def test_a_run_that_goes_on_is_resumed_from_every_byte(relay: Service, begun: Any, wire: dict[str, str]) -> None:
    url, exchange = begun()
    parse = lines if wire else dispatched
    with get(relay.port, url, wire | CLOSE) as client:
        client.read_on(lambda body: said(parse(body)) == BEGUN_SAYS)
    left = list(offsets(client))
    while left:
        here, left = left[:TOGETHER], left[TOGETHER:]
        seen = [cut(relay.port, url, wire, offset) for offset in here]
        back = [
            resume(relay.port, url, last_of(events), way=WAYS[offset % 3], headers=wire)
            for offset, events in zip(here, seen, strict=True)
        ]
        assert {client.head()[0] for client in back} == {200}
        exchange.release()
        for events, client in zip(seen, back, strict=True):
            whole = events + rest_of(client)
            assert said(whole) == SAYS
            assert is_one_run(whole)
            assert whole[-1].name == "done"
        assert exchange.wait().ended == "completed"
        if left:
            url, exchange = begun()


@pytest.mark.parametrize("path", ["/chat/stream", "/stream", "/openai/stream"])
@pytest.mark.parametrize("part", [0.4, 0.7, 0.85, 1.0])
def test_a_stream_that_lingers_is_resumed_at_its_own_url(
    relay: Service, upstream: Upstream, path: str, part: float
) -> None:
    """As an EventSource does it, which knows no other URL."""
    upstream.play(Head(), *OPENAI.opening, *BEGUN, PAUSE, *REST, *OPENAI.ending, END)
    target, parse = f"{path}?message=Hi&linger=20", lines if path == "/stream" else dispatched
    with Client(relay.port, "GET", target) as client:
        body = client.read_on(lambda body: said(parse(body)) == BEGUN_SAYS)
    seen = parse(body[: int(len(body) * part)])
    with resume(relay.port, target, last_of(seen)) as client:
        assert client.head()[0] == 200
        upstream.request().release()
        whole = seen + rest_of(client)
    assert said(whole) == SAYS
    assert is_one_run(whole)
    assert upstream.exchanges.empty()


TICKS = 100


def ticking() -> list[Step]:
    ticks = [(OPENAI.token(f"{number} "), Repeat(b"", every=0.002, times=1)) for number in range(TICKS)]
    return [Head(), *OPENAI.opening, *(step for tick in ticks for step in tick), *OPENAI.ending, END]


@each_wire
@pytest.mark.parametrize("size", range(1000, 1300, 59))
def test_a_client_that_is_cut_off_again_and_again_gets_it_all(
    relay: Service, upstream: Upstream, wire: dict[str, str], size: int
) -> None:
    upstream.play(*ticking())
    url = create(relay.port, message="Hi")["events_url"]
    whole: list[Event] = []
    for turn in count():
        more = cut(relay.port, url, wire, size + turn % 7, way=WAYS[turn % 3], seen=last_of(whole))
        whole += more
        if whole and whole[-1].name == "done":
            break
        assert turn < TICKS
    assert is_one_run(whole)
    assert said(whole)["token"] == "".join(f"{number} " for number in range(TICKS))
    assert turn > 1
    upstream.request()
    assert upstream.exchanges.empty()


@each_wire
def test_every_event_is_a_place_to_go_on_from(relay: Service, upstream: Upstream, wire: dict[str, str]) -> None:
    """Also those that who comes late gets as parts of a merged one."""
    words = [f"w{number} " for number in range(50)]
    upstream.stream(*OPENAI.opening, *map(OPENAI.token, words), *OPENAI.ending)
    created = create(relay.port, message="Hi")
    run, url = created["id"], created["events_url"]
    rest_of(get(relay.port, url))
    for seen in range(51):
        rest = rest_of(resume(relay.port, url, f"{run}-{seen}", headers=wire))
        names = [event.name for event in rest]
        assert names == ["start"] * (seen == 0) + ["token"] + ["done"], "what is far behind comes in one event"
        assert said(rest)["token"] == "".join(words[max(seen - 1, 0) :])
        assert [event.id for event in rest[-2:]] == [f"{run}-51", f"{run}-52"]
    (ending,) = rest_of(resume(relay.port, url, f"{run}-51", headers=wire))
    assert ending.name == "done"
    assert status_of(relay.port, created["status_url"])["last_event_id"] == ending.id == f"{run}-52"
    upstream.request()
    assert upstream.exchanges.empty()
