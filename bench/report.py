"""The report: what the machine is, medians and spreads, a table to read and results.json to compare.

It does not measure.
"""

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from measures import Numbers, Scale
from relays import ROOT, WIRES, Relay

LIBRARIES = (
    *("starlette", "sse-starlette", "uvicorn", "uvloop", "httptools", "msgspec"),
    *("openai", "anthropic", "aiohttp", "httpx2", "pydantic", "langchain-core", "langgraph"),
)
Samples = dict[tuple[str, str], list[Numbers]]  # (wire, relay) -> one a repeat


def rows(scale: Scale) -> list[tuple[str, str]]:
    """(key, title) in the order of the table."""
    paces = [("light", scale.light.label), ("heavy", scale.heavy.label)]
    paced = [
        row
        for name, pace in paces
        for row in (
            (f"{name}_cpu_us", f"CPU per token, {pace}, us"),
            (f"{name}_whole_cpu_us", "  with its share of the request, us"),
            (f"{name}_busy", "  load of one core, %"),
            (f"{name}_age_p50_ms", "  age of a token, p50 ms"),
            (f"{name}_age_p99_ms", "  age of a token, p99 ms"),
            (f"{name}_first_p99_ms", "  first token, p99 ms"),
        )
    ]
    return [
        *paced,
        ("burst_cpu_us", f"CPU per token, burst of {scale.burst_streams} x {scale.burst_tokens}, us"),
        ("burst_rate", "  tokens a second"),
        ("short_cpu_ms", "CPU per one-token stream, ms"),
        ("first_ms", "first token, quiet, p50 ms"),
        ("idle_kb", f"memory per idle stream, of {scale.idle_streams}, KB"),
        ("wide_first_p99_ms", f"first token, {scale.wide_streams} streams open, p99 ms"),
        ("all_cpu_us", f"one run, {scale.crowd.readers + scale.crowd.stalled} viewers: CPU per delivered token, us"),
        ("all_age_p99_ms", "  age of a token, p99 ms"),
        ("viewer_kb", "  memory per viewer, KB"),
        ("some_cpu_us", f"{scale.crowd.stalled} of them take nothing: CPU per delivered token, us"),
        ("some_age_p99_ms", "  age of a token, p99 ms"),
        ("stalled_kb", "  memory per viewer who takes nothing of 2 MB"),
        ("asleep_age_p50_ms", f"{scale.heavy.label} beside graphs that sleep: age of a token, p50 ms"),
        ("asleep_age_p99_ms", "  p99 ms"),
        ("talking_age_p50_ms", "beside a chain that talks from a thread: age of a token, p50 ms"),
        ("talking_age_p99_ms", "  p99 ms"),
        ("computing_age_p50_ms", "beside a graph that computes in a thread: age of a token, p50 ms"),
        ("computing_age_p99_ms", "  p99 ms"),
        ("start_ms", "start to first byte of /healthz, ms"),
        ("rss_mb", "memory when warm, MB"),
    ]


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "cpu": cpu_model(),
        "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := version_of(name))},
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    if not shutil.which("git"):
        return None
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip() or None


class Bystanders:
    """How much of the machine others used since this was made: what they take, the benchmark's timings lose."""

    def __init__(self) -> None:
        self._began, self._busy, self._ours = time.monotonic(), busy_seconds(), our_seconds()

    def percent(self) -> float:
        """Asked when every process of ours has ended, since only then the kernel counts it as ours."""
        others = (busy_seconds() - self._busy) - (our_seconds() - self._ours)
        whole = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return round(max(0.0, 100 * others / whole), 1)


def busy_seconds() -> float:
    """CPU time of the whole machine: user, nice, system, irq, softirq and steal of /proc/stat."""
    fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def our_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def summary(samples: Samples) -> dict[str, dict[str, dict[str, Numbers]]]:
    """wire -> relay -> key -> median, min and max."""
    found: dict[str, dict[str, dict[str, Numbers]]] = {}
    for (wire, relay), repeats in samples.items():
        by_key: dict[str, list[float]] = {}
        for numbers in repeats:
            for key, value in numbers.items():
                by_key.setdefault(key, []).append(value)
        found.setdefault(wire, {})[relay] = {
            key: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for key, values in by_key.items()
        }
    return found


def number(x: float) -> str:
    if x >= 1e4:
        return f"{x / 1e3:.0f}k"
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}"


def cell(found: Numbers | None) -> str:
    if not found:
        return "-"
    middle, low, high = (number(found[k]) for k in ("median", "min", "max"))
    return middle if low == high else f"{middle} ({low}-{high})"


def ratio(ours: Numbers | None, naive: Numbers | None) -> str:
    return f"{ours['median'] / naive['median']:.2f}" if ours and naive and naive["median"] else "-"


def table(samples: Samples, relays: list[Relay], scale: Scale) -> Iterator[str]:
    found = summary(samples)
    names = [relay.name for relay in relays]
    for wire in (w for w in WIRES if w in found):
        yield f"\n{wire:56}" + "".join(f"{name:>22}" for name in names) + f"{'service : naive':>18}"
        for key, title in rows(scale):
            by_relay = {name: found[wire].get(name, {}).get(key) for name in names}
            if any(by_relay.values()):
                cells = "".join(f"{cell(by_relay[name]):>22}" for name in names)
                yield f"{title:56}{cells}{ratio(by_relay.get('service'), by_relay.get('naive')):>18}"


def header(about: dict[str, Any], relays: list[Relay]) -> Iterator[str]:
    yield f"{about['cores']} cores, {about['cpu']}, Linux {about['kernel']}, load {about['load_before']} before"
    yield f"Python {about['python']}, " + ", ".join(f"{k} {v}" for k, v in about["libraries"].items())
    for relay in relays:
        yield f"{relay.name:8} {relay.label}"


def write(
    path: Path, about: dict[str, Any], scale: Scale, relays: list[Relay], samples: Samples, faults: list[str]
) -> None:
    whole = {
        "commit": commit(),
        "machine": about,
        "scale": asdict(scale),
        "relays": {relay.name: relay.label for relay in relays},
        "results": summary(samples),
        "faults": faults,
    }
    path.write_text(json.dumps(whole, indent=1) + "\n")
