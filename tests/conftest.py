"""A real service in a process of its own, on a free port, with the environment a test gives it and no other."""

import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

import pytest

from .client import DEADLINE, get

ROOT = Path(__file__).resolve().parent.parent
# What the tests marked `replicated` are run over: the fixtures that `start_lasting` stands for.
KINDS = ["one_process", "two_replicas"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "replicated: is run over one process, and over two replicas (tests/replicas.py)")
    config.addinivalue_line("markers", "one_process(why): is not, though its module is")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    replicated, alone = map(metafunc.definition.get_closest_marker, ("replicated", "one_process"))
    if replicated and not alone and "start_lasting" in metafunc.fixturenames:
        metafunc.parametrize("start_lasting", KINDS, indirect=True, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two tests with one name only one would be run where modules are run side by side."""
    if twice := [name for name, number in Counter(item.nodeid for item in items).items() if number > 1]:
        raise pytest.UsageError(f"more than one test is called {twice[0]}")


class Service:
    """`uvicorn service:app` (or another command) running; `log` is all it has printed."""

    def __init__(self, environ: dict[str, str], command: list[str], port: int, log: Path) -> None:
        self.port = port
        self._log = log
        clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN) and name != "PORT"}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**clean, **AT_ONCE, **environ}, stdout=out, stderr=subprocess.STDOUT
            )

    @property
    def ports(self) -> list[int]:
        """Of all that it stands for: of itself (replicas.py has others)."""
        return [self.port]

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self) -> "Service":
        """Return once it answers. Raises AssertionError where it ended instead."""
        deadline = time.monotonic() + DEADLINE
        while True:
            assert self.process.poll() is None, f"the service ended: {self.log}"
            assert time.monotonic() < deadline, f"the service does not answer: {self.log}"
            with suppress(OSError), get(self.port, "/healthz") as client:
                client.read()
                return self
            time.sleep(0.02)  # nothing to wait on: the port opens when it opens

    def stop(self, sign: int = signal.SIGTERM) -> int:
        """Stop it and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


AT_ONCE = {"SIDESTREAM_DRAIN_TIMEOUT": "0"}  # most tests want no more of a service that they stop
# What a developer's shell may hold and a test must not see.
FOREIGN = ("SIDESTREAM_", "OPENAI_", "ANTHROPIC_", "OTEL_")
Start = Callable[..., Service]
Value = TypeVar("Value")


# Below those that a system gives out by itself (from 32768, or 49152): it might give one of these to any client that
# connects before the service that it is meant for listens. Each of the processes that run tests has some of its own.
EACH = 750
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16
PORTS = cycle(20_000 + WORKER * EACH + (os.getpid() + number) % EACH for number in range(EACH))


def free_port() -> int:
    """Return a port on which nothing listens, another one each time."""
    for port in islice(PORTS, EACH):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def eventually(look: Callable[[], Value]) -> Value:
    """Return what `look` finds as soon as it finds something."""
    deadline = time.monotonic() + DEADLINE
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)  # what is looked at tells nobody when it changes
    return found


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return once something listens on `port`. Raises AssertionError where the process ended instead."""
    deadline = time.monotonic() + DEADLINE
    while True:
        assert process.poll() is None, "the process ended"
        assert time.monotonic() < deadline, "nothing listens"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), DEADLINE):
            return
        time.sleep(0.02)  # nothing to wait on: the port opens when it opens


@contextmanager
def starting() -> Iterator[Start]:
    """Start services: `start(SIDESTREAM_X=...)`; all are stopped with this, together."""
    started: list[Service] = []
    with tempfile.TemporaryDirectory() as folder:

        def start(*options: str, command: list[str] | None = None, **environ: str) -> Service:
            port = free_port()
            uvicorn = [sys.executable, "-m", "uvicorn", "service:app"]
            line = [*(command or uvicorn), "--port", str(port), *options]
            service = Service(environ, line, port, Path(folder) / f"{len(started)}.log")
            started.append(service)
            return service.wait()

        try:
            yield start
        finally:
            for service in started:
                if service.process.poll() is None:
                    service.process.send_signal(signal.SIGTERM)
            for service in started:
                with suppress(subprocess.TimeoutExpired):
                    service.stop()


@pytest.fixture(scope="module")
def start_service() -> Iterator[Start]:
    """Start services, which are stopped at the end of the module."""
    with starting() as start:
        yield start


@pytest.fixture(scope="module")
def leftovers() -> Iterator[None]:
    """What the SDKs of a module leave open goes with it, not in a test of another."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def once(start: Callable[..., Value]) -> Callable[..., Value]:
    """Start nothing twice: what is asked for again is what was started."""
    started: dict[object, Value] = {}

    def start_once(*options: str, **environ: str) -> Value:
        asked = options, frozenset(environ.items())
        if asked not in started:
            started[asked] = start(*options, **environ)
        return started[asked]

    return start_once


@pytest.fixture(scope="session")
def one_process() -> Iterator[Start]:
    with starting() as start:
        yield once(start)


@pytest.fixture(scope="session")
def start_lasting(request: pytest.FixtureRequest) -> Start:
    """The same for those that several modules share; they are of the kind that a test is run over."""
    start: Start = request.getfixturevalue(getattr(request, "param", "one_process"))
    return start


@pytest.fixture(scope="session")
def service(start_lasting: Start) -> Service:
    """A service without any key: the scripted provider, and the embedded model where it is installed."""
    return start_lasting()
