"""An ASGI app driven by hand: one exchange whose `receive` and `send` are the test's own, so nothing stands between.

`run` runs a test's coroutine under a deadline. `run_ahead` runs it on a clock that jumps to whatever is due next
instead of waiting: a script of a minute takes a millisecond, and every time in it is exact. Where nothing is due and
nothing happens it fails, so a wait that would never end is a failure too.
"""

import asyncio
import json
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.types import ASGIApp, Message

from service import Service, create_app

from .client import DEADLINE

T = TypeVar("T")


def run(test: Coroutine[Any, Any, T]) -> T:
    """Run in real time, under a deadline."""
    return asyncio.run(asyncio.wait_for(test, DEADLINE))


def run_ahead(test: Coroutine[Any, Any, T]) -> T:
    """Run on the jumping clock. What a thread does in the meantime takes no time of it: load providers beforehand."""
    with asyncio.Runner(loop_factory=_AheadLoop) as runner:
        return runner.run(test)


async def time_passes(seconds: float) -> None:
    """Let the jumping clock go on, which takes no time at all."""
    assert isinstance(asyncio.get_running_loop(), _AheadLoop)
    await asyncio.sleep(seconds)


def at_once(asked: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine does that never waits."""
    try:
        asked.send(None)
    except StopIteration as returned:
        value: T = returned.value
        return value
    asked.close()
    raise AssertionError("it waits")


class _AheadSelector(selectors.DefaultSelector):
    """Where asyncio would sleep until a timer is due, it is due."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(DEADLINE if timeout is None else 0)
        if timeout is None and not ready:
            raise AssertionError("nothing is due, and nothing happens")
        if not ready:
            self.now += max(timeout or 0, 0)
        return ready


class _AheadLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._ahead = _AheadSelector()
        super().__init__(self._ahead)

    def time(self) -> float:
        return self._ahead.now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for the threads as long as they take: their time is real, and a timeout would be over at once."""
        await super().shutdown_default_executor()


class Exchange:
    """One HTTP request to an app; `async with` begins it, and leaves it only when the app has returned."""

    def __init__(
        self, app: ASGIApp, method: str, target: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        path, _, query = target.partition("?")
        self.sent: list[Message] = []
        self._app = app
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self._grown = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (name.lower().encode(), value.encode()) for name, value in {"host": "test", **(headers or {})}.items()
            ],
            "server": ("test", 80),
            "client": ("127.0.0.1", 50000),
        }

    async def __aenter__(self) -> "Exchange":
        self.task = asyncio.ensure_future(self._app(self._scope, self._incoming.get, self._send))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.go_on()
        if exc[0] is not None:
            self.task.cancel()
            await asyncio.wait((self.task,))
        else:
            await self.task

    async def _send(self, message: Message) -> None:
        await self._open.wait()
        self.sent.append(message)
        self._grown.set()

    def hold(self) -> None:
        """Take nothing more, as a client that does not read."""
        self._open.clear()

    def go_on(self) -> None:
        self._open.set()

    def disconnect(self) -> None:
        """Tell the app that the client left."""
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def until(self, part: bytes) -> None:
        """Return once `part` stands in the body."""
        while part not in self.body:
            if self.task.done():
                raise AssertionError(f"no {part!r} in {self.body!r}")
            self._grown.clear()
            await asyncio.wait(
                (self.task, grown := asyncio.ensure_future(self._grown.wait())), return_when="FIRST_COMPLETED"
            )
            grown.cancel()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def bodies(self) -> list[bytes]:
        """The body as it was sent, a piece a message."""
        return [message["body"] for message in self.sent[1:] if message["body"]]

    @property
    def body(self) -> bytes:
        return b"".join(self.bodies)

    @property
    def is_whole(self) -> bool:
        """Whether the app sent the end of the body."""
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)


async def ask(app: ASGIApp, method: str, target: str, **options: Any) -> Exchange:
    """Make a request and return it with its whole answer."""
    async with Exchange(app, method, target, **options) as exchange:
        pass
    return exchange


async def ask_json(app: ASGIApp, target: str, **body: object) -> Exchange:
    """POST the keyword arguments as a JSON object."""
    headers = {"content-type": "application/json"}
    return await ask(app, "POST", target, headers=headers, body=json.dumps(body).encode())


_APPS: dict[str, Starlette] = {}


async def make_app(**environ: str) -> Starlette:
    """Return the app with these settings and no others, its providers loaded: made once, as it outlives its loop."""
    key = json.dumps(environ, sort_keys=True)
    if key not in _APPS:
        app = _APPS[key] = create_app(environ)
        for name in set(service_of(app).providers.names) - {"local"}:
            await service_of(app).providers.load(name)
    return _APPS[key]


def service_of(app: Starlette) -> Service:
    """Return the service behind an app's routes."""
    return next(route.endpoint.__self__ for route in app.routes if route.path == "/chat/stream")
