"""Two hundred viewers of one run, some of whom leave and some take nothing: who stays gets it all, asked for once."""

from .client import Client
from .conftest import Service, eventually
from .recorded import OPENAI
from .resource import WIRES, create, is_one_run, rest_of, said, status_of
from .upstream import END, PAUSE, Head, Repeat, Upstream

pytest_plugins = ["tests.upstream"]

VIEWERS = 200
WORDS = [f"word{number} " for number in range(150)]
LAST = "x" * 400_000


def view(port: int, number: int, url: str) -> Client:
    return Client(
        port,
        "GET",
        url,
        headers=list(WIRES.values())[number % 2],
        receive_buffer=4096 if is_stalled(number) else 0,
    )


def is_leaving(number: int) -> bool:
    return number % 5 == 1


def is_stalled(number: int) -> bool:
    return number % 5 == 3


def test_two_hundred_viewers_of_one_run(relay: Service, upstream: Upstream) -> None:
    words = [(OPENAI.token(word), Repeat(b"", every=0.002, times=1)) for word in WORDS]
    steps = [step for word in words for step in word]
    upstream.play(Head(), *OPENAI.opening, PAUSE, *steps, PAUSE, OPENAI.token(LAST), *OPENAI.ending, END)
    created = create(relay.port, message="Hi")
    viewers = [view(relay.port, number, created["events_url"]) for number in range(VIEWERS)]
    for viewer in viewers:
        viewer.read_on(lambda body: b"start" in body)
    assert status_of(relay.port, created["status_url"])["viewers"] == VIEWERS
    exchange = upstream.request()
    exchange.release()
    for number, viewer in enumerate(viewers):
        if is_leaving(number):
            viewer.read_on(lambda body: b"word" in body)
            viewer.hang_up(reset=bool(number % 2))
    left = len([number for number in range(VIEWERS) if is_leaving(number)])
    eventually(lambda: status_of(relay.port, created["status_url"])["viewers"] == VIEWERS - left)
    exchange.release()
    staying = [viewer for number, viewer in enumerate(viewers) if not is_leaving(number) and not is_stalled(number)]
    stalled = [viewer for number, viewer in enumerate(viewers) if is_stalled(number)]
    for viewer in [*staying, *stalled]:  # who took nothing gets it in the end, too
        events = rest_of(viewer)
        assert is_one_run(events)
        assert said(events)["token"] == "".join(WORDS) + LAST
    assert exchange.wait().ended == "completed"
    eventually(lambda: status_of(relay.port, created["status_url"])["viewers"] == 0)
    assert upstream.exchanges.empty()
