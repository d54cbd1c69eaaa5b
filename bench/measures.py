"""What is measured of a running relay, one function a measure; each returns its numbers by key (report.py names them).

Every measure also checks the text: a stream that differs, breaks or hangs raises `Fault`.
"""

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relays import WIRES, Running

LOAD_SECONDS = 60
SETTLE = 0.3  # what a relay still does after the last byte belongs to the stream
LONG_ANSWER = 100_000  # tokens: 2 MB of text, and nearly what a run may hold
# What blocks beside the streams that are measured: see graphs.py.
BLOCKING = {
    "asleep": ["langgraph/asleep"] * 4 + ["langgraph/asleep_wrongly"],
    "talking": ["langchain/talking"],
    "computing": ["langgraph/computing"],
}
Numbers = dict[str, float]


class Fault(Exception):
    """A stream's text differed, or it was refused, cut or never ended."""


@dataclass(frozen=True)
class Pace:
    """A paced load: so many streams of so many tokens, `interval_ms` apart."""

    streams: int
    tokens: int
    interval_ms: int = 20
    ramp_ms: int = 500

    @property
    def label(self) -> str:
        return f"{self.streams} x {1000 // self.interval_ms}/s"


@dataclass(frozen=True)
class Crowd:
    """Viewers of one run: so many that read, and so many that read as well or, in turn, never do."""

    readers: int
    stalled: int
    tokens: int
    interval_ms: int = 100


@dataclass(frozen=True)
class Scale:
    repeats: int
    light: Pace  # the naive way keeps up with it on most machines
    heavy: Pace  # the naive way is saturated by it on most machines
    burst_streams: int
    burst_tokens: int
    short_streams: int
    idle_streams: int
    wide_streams: int  # past the 1000 connections at which an SDK's default pool hangs silently
    crowd: Crowd


NORMAL = Scale(3, Pace(30, 100), Pace(100, 150, ramp_ms=1000), 16, 2000, 400, 500, 1200, Crowd(900, 100, 60))
QUICK = Scale(1, Pace(30, 75), Pace(100, 80), 16, 500, 100, 200, 1200, Crowd(900, 100, 30))


@dataclass(frozen=True)
class Script:
    """One use of the load client: what the upstream plays (see upstream.c) and how it is asked for."""

    model: str
    tokens: int
    concurrent: int
    streams: int = 0
    ramp_ms: int = 0

    def __str__(self) -> str:
        return f"{self.model} x {max(self.streams, self.concurrent)}"

    def command(self, load: Path, relay: Running, wire: str) -> list[str]:
        body = json.dumps({"model": self.model, "message": "x"})
        of_relay = ["-p", str(relay.port), "-u", relay.relay.paths[wire], "-b", body]
        of_script = ["-e", str(self.tokens), "-c", str(self.concurrent), "-n", str(self.streams)]
        watched = [option for pid in relay.process.pids() for option in ("-w", str(pid))]
        return [str(load), *of_relay, *of_script, "-r", str(self.ramp_ms), "-t", str(LOAD_SECONDS), *watched]


def play(load: Path, relay: Running, wire: str, script: Script) -> dict[str, Any]:
    """Run a script to its end."""
    command = script.command(load, relay, wire)
    done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_SECONDS + 20, start_new_session=True)
    return checked(done.returncode, done.stdout, done.stderr, str(script))


def checked(code: int, out: str, err: str, what: str) -> dict[str, Any]:
    if code:
        raise Fault(f"{what}: {err.strip()}; {out.strip()}")
    counts: dict[str, Any] = json.loads(out)
    return counts


def warm(load: Path, relay: Running) -> None:
    """Let the relay import and connect what it needs; both wires, so that every process holds the same."""
    for wire in WIRES:
        play(load, relay, wire, Script("n20-i0", 20, concurrent=4, streams=8))
    time.sleep(SETTLE)


def first_token(load: Path, relay: Running, wire: str) -> Numbers:
    """The delay of the first token when nothing else goes on."""
    counts = play(load, relay, wire, Script("n1-i0", 1, concurrent=1, streams=40))
    return {"first_ms": counts["first_ms"]["p50"]}


def paced(load: Path, relay: Running, wire: str, name: str, pace: Pace) -> Numbers:
    """CPU per token, alone while all streams flow and with its share of the request, and how late tokens come."""
    model = f"n{pace.tokens}-i{pace.interval_ms}-f0"
    before = relay.process.cpu_seconds()
    counts = play(load, relay, wire, Script(model, pace.tokens, pace.streams, ramp_ms=pace.ramp_ms))
    time.sleep(SETTLE)
    found = {
        f"{name}_whole_cpu_us": (relay.process.cpu_seconds() - before) * 1e6 / counts["tokens"],
        f"{name}_age_p50_ms": counts["age_us"]["p50"] / 1e3,
        f"{name}_age_p99_ms": counts["age_us"]["p99"] / 1e3,
        f"{name}_first_p99_ms": counts["first_ms"]["p99"],
    }
    steady = counts["steady"]
    if steady["tokens"]:  # else it was so far behind that its first streams ended before its last ones began
        found[f"{name}_cpu_us"] = steady["cpu_us"] / steady["tokens"]
        found[f"{name}_busy"] = steady["cpu_us"] / 1e4 / steady["wall_s"]
    return found


def burst(load: Path, relay: Running, wire: str, streams: int, tokens: int) -> Numbers:
    """CPU per token, and tokens a second, as fast as the relay goes."""
    before = relay.process.cpu_seconds()
    counts = play(load, relay, wire, Script(f"n{tokens}-i0", tokens, concurrent=streams))
    time.sleep(SETTLE)
    spent = relay.process.cpu_seconds() - before
    return {"burst_cpu_us": spent * 1e6 / counts["tokens"], "burst_rate": counts["tokens"] / counts["wall_s"]}


def short(load: Path, relay: Running, wire: str, streams: int) -> Numbers:
    """CPU per stream of one token: what a request costs."""
    before = relay.process.cpu_seconds()
    play(load, relay, wire, Script("n1-i0", 1, concurrent=16, streams=streams))
    time.sleep(SETTLE)
    return {"short_cpu_ms": (relay.process.cpu_seconds() - before) * 1e3 / streams}


def held_open(load: Path, relay: Running, wire: str, streams: int, apart_ms: int) -> tuple[int, dict[str, Any]]:
    """Open so many streams, silent after their first token; the memory they take, in bytes, and the load's counts."""
    before = relay.process.rss_bytes()
    script = Script("n2-i20-f0-z1", 1, concurrent=streams, ramp_ms=streams * apart_ms)
    command, pipe = [*script.command(load, relay, wire), "-o"], subprocess.PIPE
    with subprocess.Popen(command, text=True, start_new_session=True, stdin=pipe, stdout=pipe, stderr=pipe) as client:
        assert client.stdout is not None
        try:
            out = client.stdout.readline()
            time.sleep(SETTLE)
            taken = relay.process.rss_bytes() - before
            _, err = client.communicate("", timeout=LOAD_SECONDS)
        finally:
            client.kill()
    return taken, checked(client.returncode, out, err, str(script))


def idle(load: Path, relay: Running, wire: str, streams: int) -> Numbers:
    """Memory per open, silent stream."""
    taken, _ = held_open(load, relay, wire, streams, apart_ms=1)
    return {"idle_kb": taken / 1024 / streams}


def wide(load: Path, relay: Running, wire: str, streams: int) -> Numbers:
    """Whether stream 1001 and those after it get their first token at all, at a pace that most machines keep."""
    _, counts = held_open(load, relay, wire, streams, apart_ms=4)
    return {"wide_first_p99_ms": counts["first_ms"]["p99"]}


def beside(load: Path, relay: Running, wire: str, pace: Pace, name: str) -> Numbers:
    """How late tokens come while an operator's graphs or chains block (BLOCKING); in a process of its own each."""
    runs = [new_run(relay, model, linger=LOAD_SECONDS) for model in BLOCKING[name]]
    time.sleep(SETTLE)  # what the first run of a graph imports is not what is measured
    model = f"n{pace.tokens}-i{pace.interval_ms}-f0"
    counts = play(load, relay, wire, Script(model, pace.tokens, pace.streams, ramp_ms=pace.ramp_ms))
    for path in runs:
        stop_run(relay, path)
    return {f"{name}_age_p50_ms": counts["age_us"]["p50"] / 1e3, f"{name}_age_p99_ms": counts["age_us"]["p99"] / 1e3}


def crowd(load: Path, relay: Running, wire: str, crowd: Crowd) -> Numbers:
    """One run, many viewers: what a delivered token costs, how late it comes, the memory.

    First all of them read, then some take nothing, then these do so on an answer that fills every buffer.
    """
    pace = f"n{crowd.tokens}-i{crowd.interval_ms}-f2000"
    found: Numbers = {}
    for name, readers, stalled in (
        ("all", crowd.readers + crowd.stalled, 0),
        ("some", crowd.readers, crowd.stalled),
    ):
        before = relay.process.rss_bytes()
        port, path = relay.port, new_run(relay, f"{wire}/{pace}")
        with stalled_viewers(port, path, stalled):
            counts = follow_run(load, relay, path, crowd.tokens, readers)
            if not stalled:
                found["viewer_kb"] = (relay.process.rss_bytes() - before) / 1024 / readers
        found[f"{name}_cpu_us"] = counts["steady"]["cpu_us"] / counts["steady"]["tokens"]
        found[f"{name}_age_p99_ms"] = counts["age_us"]["p99"] / 1e3
    return found | {"stalled_kb": stalled_kb(load, relay, wire, crowd.stalled)}


def stalled_kb(load: Path, relay: Running, wire: str, stalled: int) -> float:
    """Memory that a viewer takes who reads nothing of a long answer, beside one who reads all of it."""
    taken = []
    for viewers in (0, stalled):
        path = new_run(relay, f"{wire}/n{LONG_ANSWER}-i0-f500")
        before = relay.process.rss_bytes()
        with stalled_viewers(relay.port, path, viewers):
            follow_run(load, relay, path, LONG_ANSWER, 1)
            time.sleep(SETTLE)
            taken.append(relay.process.rss_bytes() - before)
    return (taken[1] - taken[0]) / 1024 / stalled


def new_run(relay: Running, model: str, **options: float) -> str:
    """Start a run and return the path of its events."""
    body = json.dumps({"model": model, "message": "x", **options})
    created = json.loads(ask(relay, "POST", "/runs", body, {"Content-Type": "application/json"}))
    return str(created["events_url"])


def stop_run(relay: Running, events_path: str) -> None:
    """Stop a run, which must not have ended by itself."""
    path, _, query = events_path.partition("/events")
    status = json.loads(ask(relay, "GET", f"{path}{query}"))
    if status["state"] != "running":
        raise Fault(f"a run that was to block all the time has ended: {status['ending']}")
    ask(relay, "DELETE", f"{path}{query}")


def ask(
    relay: Running, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=LOAD_SECONDS)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse().read()
    connection.close()
    return answer


def follow_run(load: Path, relay: Running, path: str, tokens: int, viewers: int) -> dict[str, Any]:
    watched = [option for pid in relay.process.pids() for option in ("-w", str(pid))]
    command = [str(load), "-p", str(relay.port), "-u", path, "-e", str(tokens), "-c", str(viewers), *watched]
    command += ["-r", str(min(viewers, 1000)), "-t", str(LOAD_SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_SECONDS + 20, start_new_session=True)
    return checked(done.returncode, done.stdout, done.stderr, f"{viewers} viewers of {tokens} tokens")


@contextmanager
def stalled_viewers(port: int, path: str, count: int) -> Iterator[None]:
    """Ask for a stream so many times and read nothing of it; the least that a socket may hold makes that felt soon."""
    with ExitStack() as stack:
        for _ in range(count):
            viewer = stack.enter_context(socket.socket())
            viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            viewer.connect(("127.0.0.1", port))
            viewer.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        yield
