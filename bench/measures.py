"""What is measured of a running relay, one function a measure; each returns its numbers by key (report.py names them).

Every measure also checks the text: a stream that differs, breaks or hangs raises `Fault`.
"""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relays import WIRES, Running

LOAD_SECONDS = 60
SETTLE = 0.3  # what a relay still does after the last byte belongs to the stream
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
class Scale:
    repeats: int
    light: Pace  # the naive way keeps up with it on most machines
    heavy: Pace  # the naive way is saturated by it on most machines
    burst_streams: int
    burst_tokens: int
    short_streams: int
    idle_streams: int
    wide_streams: int  # past the 1000 connections at which an SDK's default pool hangs silently


NORMAL = Scale(3, Pace(30, 100), Pace(100, 150, ramp_ms=1000), 16, 2000, 400, 500, 1200)
QUICK = Scale(1, Pace(30, 75), Pace(100, 80), 16, 500, 100, 200, 1200)


@dataclass(frozen=True)
class Script:
    """One use of the load client: what the upstream plays (see upstream.c) and how it is asked for."""

    model: str
    tokens: int
    concurrent: int
    streams: int = 0
    ramp_ms: int = 0

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
    return checked(done.returncode, done.stdout, done.stderr, script)


def checked(code: int, out: str, err: str, script: Script) -> dict[str, Any]:
    if code:
        raise Fault(f"{script.model} x {max(script.streams, script.concurrent)}: {err.strip()}; {out.strip()}")
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
    return taken, checked(client.returncode, out, err, script)


def idle(load: Path, relay: Running, wire: str, streams: int) -> Numbers:
    """Memory per open, silent stream."""
    taken, _ = held_open(load, relay, wire, streams, apart_ms=1)
    return {"idle_kb": taken / 1024 / streams}


def wide(load: Path, relay: Running, wire: str, streams: int) -> Numbers:
    """Whether stream 1001 and those after it get their first token at all, at a pace that most machines keep."""
    _, counts = held_open(load, relay, wire, streams, apart_ms=4)
    return {"wide_first_p99_ms": counts["first_ms"]["p99"]}
