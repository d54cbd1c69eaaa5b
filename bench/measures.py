"""What is measured of a running relay, one function a measure; each returns its numbers by key (report.py names them).

Every measure also checks the text: a stream that differs, breaks or hangs raises `Fault`. What only the service has,
runs that many follow or come back to, is in runs.py.
"""

import time
from dataclasses import dataclass, replace

from client import SETTLE, Client, Load
from relays import WIRES

LATEST_FIRST_TOKEN = 1000.0  # ms: past it a stream does not count as served
APART_MS = 3  # between the openings of thousands of streams: twice the goal for what a stream may cost
Numbers = dict[str, float]


@dataclass(frozen=True)
class Pace:
    """A paced load: streams of so many tokens at 50/s, opened over `ramp_ms`, each silent for `wait_ms` at first."""

    streams: int
    tokens: int
    ramp_ms: int = 500
    wait_ms: int = 0

    @property
    def label(self) -> str:
        return f"{self.streams} x 50/s"

    @property
    def load(self) -> Load:
        model = f"n{self.tokens}-i20-f{self.wait_ms}"
        return Load(self.tokens, self.streams, ramp_ms=self.ramp_ms, model=model)


@dataclass(frozen=True)
class Crowd:
    """Viewers of one run: so many that read, and so many that read as well or, in turn, never do."""

    readers: int
    stalled: int
    tokens: int

    @property
    def all(self) -> int:
        return self.readers + self.stalled


@dataclass(frozen=True)
class Scale:
    repeats: int
    light: Pace  # the naive way keeps up with it on most machines
    heavy: Pace  # 5,000 tokens a second
    reference: Pace  # the naive way is saturated by it: streams open before any token flows, or it would open none
    burst_streams: int
    burst_tokens: int
    short_streams: int
    idle_streams: int
    widths: tuple[int, ...]  # past the 1000 connections at which an SDK's default pool hangs silently
    crowd: Crowd
    resumes: int
    blocking: tuple[str, ...]  # what blocks beside the streams: see runs.py

    def within(self, streams: int) -> "Scale":
        """The same on a machine that lets a relay hold no more than so many streams."""
        return replace(self, widths=tuple(min(width, streams) for width in self.widths))


NORMAL = Scale(
    repeats=3,
    light=Pace(30, 100),
    heavy=Pace(100, 120, ramp_ms=1000),
    reference=Pace(200, 150, ramp_ms=1500, wait_ms=2000),
    burst_streams=16,
    burst_tokens=2000,
    short_streams=400,
    idle_streams=500,
    widths=(2000, 10_000),
    crowd=Crowd(900, 100, 30),
    resumes=9,
    blocking=("asleep", "talking", "computing"),
)
QUICK = replace(
    NORMAL,
    repeats=1,
    heavy=Pace(100, 100),
    reference=Pace(200, 100, ramp_ms=1000, wait_ms=2000),
    burst_tokens=500,
    short_streams=100,
    idle_streams=200,
    widths=(2000,),
    crowd=Crowd(900, 100, 20),
    resumes=5,
    blocking=(),
)


def warm(client: Client) -> None:
    """Let the relay import and connect what it needs; both wires, so that every process holds the same."""
    for wire in WIRES:
        replace(client, wire=wire).play(Load(20, concurrent=4, streams=8, model="n20-i0"))
    time.sleep(SETTLE)


def first_token(client: Client) -> Numbers:
    """The delay of the first token when nothing else goes on."""
    return {"first_ms": client.play(Load(1, streams=40, model="n1-i0"))["first_ms"]["p50"]}


def paced(client: Client, name: str, pace: Pace) -> Numbers:
    """CPU per token, alone while all streams flow and with its share of the request, and how late tokens come."""
    process = client.relay.process
    before = process.cpu_seconds()
    counts = client.play(pace.load)
    time.sleep(SETTLE)
    found = {
        f"{name}_whole_cpu_us": (process.cpu_seconds() - before) * 1e6 / counts["tokens"],
        f"{name}_age_p50_ms": counts["age_us"]["p50"] / 1e3,
        f"{name}_age_p99_ms": counts["age_us"]["p99"] / 1e3,
        f"{name}_first_p99_ms": counts["first_ms"]["p99"] - pace.wait_ms,
    }
    steady = counts["steady"]
    if steady["tokens"]:  # else it was so far behind that its first streams ended before its last ones began
        found[f"{name}_cpu_us"] = steady["cpu_us"] / steady["tokens"]
        found[f"{name}_busy"] = steady["cpu_us"] / 1e4 / steady["wall_s"]
    return found


def burst(client: Client, streams: int, tokens: int) -> Numbers:
    """CPU per token, and tokens a second, as fast as the relay goes."""
    process = client.relay.process
    before = process.cpu_seconds()
    counts = client.play(Load(tokens, concurrent=streams, model=f"n{tokens}-i0"))
    time.sleep(SETTLE)
    spent = process.cpu_seconds() - before
    return {"burst_cpu_us": spent * 1e6 / counts["tokens"], "burst_rate": counts["tokens"] / counts["wall_s"]}


def short(client: Client, streams: int) -> Numbers:
    """CPU per stream of one token: what a request costs."""
    process = client.relay.process
    before = process.cpu_seconds()
    client.play(Load(1, concurrent=16, streams=streams, model="n1-i0"))
    time.sleep(SETTLE)
    return {"short_cpu_ms": (process.cpu_seconds() - before) * 1e3 / streams}


def silent(streams: int, apart_ms: int) -> Load:
    """Streams that fall silent after their first token, and never end."""
    return Load(1, streams, ramp_ms=streams * apart_ms, model="n2-i20-f0-z1")


def idle(client: Client, streams: int) -> Numbers:
    """Memory per open, silent stream."""
    before = client.relay.process.rss_bytes()
    held, _ = client.hold(silent(streams, 1))
    return {"idle_kb": (held - before) / 1024 / streams}


def wide(client: Client, widths: tuple[int, ...]) -> Numbers:
    """Thousands of streams open in one process: their first tokens, their memory. None may be refused or broken."""
    process, found = client.relay.process, {}
    before = process.rss_bytes()
    for name, width in zip(("wide", "widest"), widths, strict=False):
        held, counts = client.hold(silent(width, APART_MS))
        process.wait_until_quiet()
        found[f"{name}_kb"] = (held - before) / 1024 / width
        found |= {f"{name}_first_{part}_ms": counts["first_ms"][part] for part in ("p50", "p99", "max")}
    return found


def open_streams(found: Numbers, widths: tuple[int, ...]) -> Numbers:
    """The most streams that one process held open with every first token in time."""
    served = [0, *(width for name, width in zip(("wide", "widest"), widths, strict=False) if in_time(found, name))]
    return {"open_streams": max(served)}


def in_time(found: Numbers, name: str) -> bool:
    return found[f"{name}_first_max_ms"] < LATEST_FIRST_TOKEN
