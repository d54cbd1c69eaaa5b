"""Several services that share a Redis, behind what gives each connection to another of them; and tests run over these.

A module (or test) marked `replicated` is run against one process and against two replicas: there every request goes to
the other than the one before, so that who follows a run is mostly not where it is made. Such a module names this one in
its `pytest_plugins`. What of it is a process' own is marked `one_process`, which says why (both marks: conftest.py).

Not marked are those about what each process does by itself: limits, counters and metrics, memory and slow viewers
(test_many_viewers, test_corners), what it keeps (test_keep), draining, what viewers of their own request's run see
(test_disconnect), and threads, which a graph's checkpointer in memory has in one process alone (test_graph_*).
(PYTEST_DONT_REWRITE: as for tests.upstream.)
"""

import json
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from . import nginx
from .client import DEADLINE, get
from .conftest import ROOT, Service, eventually, free_port, once, starting, wait_for_port
from .redis_server import Redis
from .turns import Turns


class Balancer(Protocol):
    port: int


class Replicas:
    """Stands for a Service where a test wants one: its port is the balancer's."""

    def __init__(self, services: Sequence[Service], balancer: Balancer, redis: Redis) -> None:
        self.services = services
        self.balancer = balancer
        self.redis = redis
        self.port = balancer.port

    @property
    def ports(self) -> list[int]:
        return [service.port for service in self.services]

    @property
    def processes(self) -> "list[subprocess.Popen[bytes]]":
        return [service.process for service in self.services]

    @property
    def log(self) -> str:
        return "".join(service.log for service in self.services)

    def stop(self, sign: int = signal.SIGTERM) -> list[int]:
        """Stop them all at once and return their exit codes."""
        with ThreadPoolExecutor(len(self.services)) as pool:
            return [*pool.map(lambda service: service.stop(sign), self.services)]


class Nginx:
    """A real nginx by deploy/nginx.conf: round robin, but for whom it cannot connect to. Use it in a `with`."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory()
        config = (ROOT / "deploy" / nginx.FILE).read_text()
        folder = Path(self._folder.name)
        changes = {
            **nginx.changes(folder, self.port, ports[0]),
            "server 127.0.0.1:8000;": " ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in ports),
            "proxy_next_upstream off;": "proxy_next_upstream error;",
            "worker_processes auto;": "worker_processes 1;",  # each has turns of its own
        }
        del changes["127.0.0.1:8000;"]
        for old, new in changes.items():
            assert config.count(old) == 1, old
            config = config.replace(old, new)
        self._config = folder / nginx.FILE
        self._config.write_text(config)

    def __enter__(self) -> "Nginx":
        self._process = subprocess.Popen(nginx.command(self._config))
        wait_for_port(self.port, self._process)
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE)
        self._folder.cleanup()


def reach(service: Service) -> dict[str, Any]:
    """Return what a service says of Redis, and of the runs of others that are followed there."""
    with get(service.port, "/readyz?verbose") as client:
        told: dict[str, Any] = json.loads(client.read())["replication"]
    return told


# As many connections as requests: else an SDK would ask the same replica all the time.
Alternating = partial(Turns, each="request")
# No embedded model, whose start is a second's work; and anybody may ask them for their `reach`.
LEAN = {"SIDESTREAM_PROVIDERS": '{"local": {"enabled": false}}', "SIDESTREAM_PUBLIC_METRICS": "true"}
Balance = Callable[[Sequence[int]], AbstractContextManager[Balancer]]
StartReplicas = Callable[..., Replicas]


@contextmanager
def starting_replicas() -> Iterator[StartReplicas]:
    """Start replicas: `start(SIDESTREAM_X=...)`, with a Redis of their own unless one is given; all end with this.

    Each has found Redis when `start` returns, unless it `waits` for no such thing.
    """
    with ExitStack() as stack, starting() as start:

        def start_replicas(
            *options: str,
            number: int = 2,
            redis: Redis | None = None,
            balance: Balance = Alternating,
            waits: bool = True,
            command: list[str] | None = None,
            **environ: str,
        ) -> Replicas:
            shared = redis or stack.enter_context(Redis())
            environ = {"SIDESTREAM_REDIS_URL": shared.url, **LEAN, **environ}
            services = [start(*options, command=command, **environ) for _ in range(number)]
            if waits:
                eventually(lambda: all(reach(service)["redis"] == "up" for service in services))
            balancer = stack.enter_context(balance([service.port for service in services]))
            return Replicas(services, balancer, shared)

        yield start_replicas


@pytest.fixture
def redis() -> Iterator[Redis]:
    """A Redis of the test's own."""
    with Redis() as server:
        yield server


@pytest.fixture(scope="module")
def start_replicas() -> Iterator[StartReplicas]:
    """Start replicas, which are stopped at the end of the module."""
    with starting_replicas() as start:
        yield start


@pytest.fixture(scope="session")
def two_replicas() -> Iterator[StartReplicas]:
    """What `start_lasting` is where a test is run over two replicas."""
    with starting_replicas() as start:
        yield once(start)
