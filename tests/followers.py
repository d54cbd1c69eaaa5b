"""Viewers that come back, each in a thread of its own: what a browser's EventSource does, and when each event came.

One that is told `draining`, or loses its connection, goes to the next replica with the id of the last event it saw.
What it gets in all must be one run, as if there had been one connection.
(PYTEST_DONT_REWRITE: as for tests.upstream.)
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

from streaming.log import LOST_AT

from .client import DEADLINE, Client, Event
from .conftest import eventually
from .recorded import TERMINAL

RECONNECT = 0.2  # where nothing else was said, seconds
AT_ONCE = 3  # scenes


class Said(NamedTuple):
    """An event, the bytes it came in, when that was, and at which connection."""

    event: Event
    block: bytes
    at: float
    connection: int


class Follower:
    """Follows `target` at the first of `ports`, and from there on at the next each time. Use it in a `with`.

    It ends by a terminal event, by a status other than 200, or where it is not to `come_back`. `statuses` are those of
    its connections.
    """

    def __init__(
        self,
        ports: Sequence[int],
        target: str,
        *,
        seen: str = "",
        come_back: bool = True,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.said: list[Said] = []
        self.statuses: list[int] = []
        self.drained: list[float] = []  # when it was told so
        self.cuts: list[float] = []
        self.seen = seen
        self.failure: BaseException | None = None
        self._ports = ports
        self._target = target
        self._body = body
        self._headers = headers or {}
        self._come_back = come_back
        self._left = False
        self._client: Client | None = None
        self._wait = RECONNECT
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()

    def leave(self) -> float:
        """Hang up for good; return when."""
        self._left, at = True, time.monotonic()
        if client := self._client:
            with suppress(OSError):
                client.socket.shutdown(2)  # wakes who reads
        self._thread.join(DEADLINE)
        return at

    # What it got.

    @property
    def events(self) -> list[Event]:
        return [one.event for one in self.said]

    @property
    def text(self) -> str:
        return "".join(event.data["token"] for event in self.events if event.name == "token")

    @property
    def endings(self) -> list[Said]:
        return [one for one in self.said if one.event.name in TERMINAL]

    @property
    def longest_pause(self) -> float:
        """The longest time between two events, seconds."""
        return max((after.at - before.at for before, after in pairwise(self.said)), default=0.0)

    def until(self, holds: Callable[["Follower"], Any]) -> "Follower":
        """Return once that holds of it. Raises AssertionError where it ended before."""

        def look() -> bool:
            if self.failure:
                raise self.failure
            if holds(self):
                return True
            assert self._thread.is_alive(), f"it ended: {self.statuses} {self.events[-3:]}"
            return False

        eventually(look)
        return self

    def has(self, number: int) -> "Follower":
        """Return once it has so many events more than now."""
        mark = len(self.said) + number
        return self.until(lambda follower: len(follower.said) >= mark)

    def rest(self) -> "Follower":
        """Return once it has come to its end."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), f"it goes on: {self.events[-1:]}"
        if self.failure:
            raise self.failure
        return self

    # How it gets it.

    def _follow(self) -> None:
        turn = 0
        try:
            while not self._left:
                self._connect(self._ports[turn % len(self._ports)])
                if self.endings or not self._come_back or (self.statuses and self.statuses[-1] != 200):
                    return
                turn += 1
                time.sleep(self._wait)  # as an EventSource does
        except BaseException as exc:
            self.failure = exc

    def _connect(self, port: int) -> None:
        headers = {**self._headers, **({"Last-Event-ID": self.seen} if self.seen else {})}
        method = "POST" if self._body else "GET"
        try:
            with Client(port, method, self._target, headers=headers, body=self._body) as self._client:
                self.statuses.append(self._client.head()[0])
                for block in _blocks(pieces(self._client)):
                    self._take(block)
        except (ConnectionError, OSError):
            self.cuts.append(time.monotonic())

    def _take(self, block: bytes) -> None:
        at = time.monotonic()
        fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
        if "retry" in fields:
            self._wait = int(fields["retry"]) / 1000
        if "data" not in fields:
            return
        if fields["event"] == "draining":
            self.drained.append(at)
            return
        event = Event(fields["event"], fields["id"], json.loads(fields["data"]))
        self.said.append(Said(event, block, at, len(self.statuses)))
        self.seen = event.id


def posted(port: int, headers: dict[str, str] | None = None, target: str = "/chat/stream", **asked: object) -> Follower:
    """Follow by a POST: of that nobody knows how to come back."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    return Follower([port], target, come_back=False, body=json.dumps(asked).encode(), headers=headers)


def pieces(client: Client) -> Iterator[bytes]:
    """Yield the body as it comes. Raises ConnectionError where it is cut."""
    _, headers = client.head()
    rest = client.raw.partition(b"\r\n\r\n")[2]

    def more() -> bytes:
        data = client.socket.recv(65536)
        if not data:
            raise ConnectionResetError("cut")
        return data

    if (length := headers.get("content-length")) is not None or client.head()[0] == 204:
        while len(rest) < int(length or 0):
            rest += more()
        yield rest
        return
    while True:
        while not (found := re.match(rb"([0-9a-f]+)\r\n", rest)) or len(rest) < found.end() + int(found[1], 16) + 2:
            rest += more()
        size, start = int(found[1], 16), found.end()
        if not size:
            return
        yield rest[start : start + size]
        rest = rest[start + size + 2 :]


def _blocks(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what stands between blank lines."""
    rest = b""
    for part in parts:
        *whole, rest = (rest + part).split(b"\n\n")
        yield from whole


def numbers(count: int) -> str:
    """Return a text in which nothing can be lacking, and nothing be twice, without being seen."""
    return " ".join(map(str, range(1, count + 1)))


def paced(count: int, every: float) -> dict[str, Any]:
    """Return the request of a run that says so many numbers, each `every` seconds."""
    script = [{"say": numbers(count), "every": every}]
    return {"message": "Count", "model": "scripted/custom", "provider_options": {"script": script}}


def check(follower: Follower, ending: str, *, text: str | None = None) -> None:
    """Assert that it got all of one run, in order, and one end of this name; its text, or some numbers from 1 on."""
    events = follower.events
    names = [event.name for event in events]
    assert names[0] == "start", names[:3]
    assert [name for name in names if name in TERMINAL] == [names[-1]] == [ending], names[-3:]
    ids = [int(event.id.rpartition("-")[2]) for event in events]
    assert ids == sorted(set(ids)), ids
    words = follower.text.count(" ") + bool(follower.text)
    assert follower.text == (numbers(words) if text is None else text), "a gap, or something twice"
    is_lost = events[-1].data.get("code") == "run_lost"
    assert ids[-1] == (LOST_AT if is_lost else words + 2), (ids[-1], words)


def play(*scenes: Callable[[], None]) -> dict[str, "Future[None]"]:
    """Play scenes side by side, some at a time, the longest first: what they mostly do is wait."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return {scene.__name__: pool.submit(scene) for scene in scenes}
