"""The tables: one of all that was measured, to read at the end of a run, and the README's, in Markdown.

`python bench/table.py` prints the latter from results.json.
"""

import json
from collections.abc import Iterator
from typing import Any

from measures import Numbers, Pace, Scale
from relays import WIRES, Relay
from report import SHOWN, Results, median, number

SATURATED = 90  # % of a core
# What the README shows, and the picture the first of it: key, title, unit.
HEADLINES = (
    ("reference_cpu_us", "CPU per token, 200 streams at 50 tokens/s", "us"),
    ("light_cpu_us", "CPU per token, 30 streams at 50 tokens/s", "us"),
    ("burst_cpu_us", "CPU per token, burst of 16 x 2,000", "us"),
    ("short_cpu_ms", "CPU per one-token stream, all included", "ms"),
    ("idle_kb", "memory per open stream, idle", "KB"),
    ("start_ms", "process start to first byte, both keys set", "ms"),
    ("heavy_added_p99_ms", "added delay per token at 5,000 tokens/s, p99", "ms"),
    ("open_streams", "open streams in one process, first tokens under 1 s", ""),
    ("resume_ms", "resume of a run of 100,000 tokens", "ms"),
    ("all_cpu_us", "one run, 1,000 viewers: CPU per delivered token", "us"),
)


def paced_rows(name: str, pace: Pace) -> Iterator[tuple[str, str]]:
    yield f"{name}_cpu_us", f"CPU per token, {pace.label}, us"
    yield f"{name}_whole_cpu_us", "  with its share of the request, us"
    yield f"{name}_busy", "  load of one core, %"
    for part in ("p50", "p99"):
        yield f"{name}_age_{part}_ms", f"  age of a token, {part} ms"
        yield f"{name}_added_{part}_ms", f"  added delay, {part} ms"
    yield f"{name}_first_p99_ms", "  first token, p99 ms"


def wide_rows(name: str, width: int) -> Iterator[tuple[str, str]]:
    yield f"{name}_first_p50_ms", f"{width:,} streams open: first token, p50 ms"
    yield f"{name}_first_p99_ms", "  p99 ms"
    yield f"{name}_first_max_ms", "  the last of all, ms"
    yield f"{name}_kb", "  memory per stream, KB"


def blocked_rows(name: str, title: str) -> Iterator[tuple[str, str]]:
    yield f"{name}_age_p50_ms", f"beside {title}: age of a token, p50 ms"
    yield f"{name}_age_p99_ms", "  p99 ms"


def rows(scale: Scale) -> list[tuple[str, str]]:
    """(key, title) in the order of the table."""
    return [
        *paced_rows("light", scale.light),
        *paced_rows("heavy", scale.heavy),
        *paced_rows("reference", scale.reference),
        ("burst_cpu_us", f"CPU per token, burst of {scale.burst_streams} x {scale.burst_tokens:,}, us"),
        ("burst_rate", "  tokens a second"),
        ("short_cpu_ms", "CPU per one-token stream, ms"),
        ("first_ms", "first token, quiet, p50 ms"),
        ("idle_kb", f"memory per idle stream, of {scale.idle_streams}, KB"),
        *(row for name, width in zip(("wide", "widest"), scale.widths, strict=False) for row in wide_rows(name, width)),
        ("resume_ms", "resume of 100,000 tokens, p50 ms"),
        ("resume_max_ms", "  the slowest, ms"),
        ("resume_half_ms", "  of their second half, p50 ms"),
        ("resume_100_ms", "  100 at once, until the last has all, ms"),
        ("all_cpu_us", f"one run, {scale.crowd.all:,} viewers: CPU per delivered token, us"),
        ("all_age_p99_ms", "  age of a token, p99 ms"),
        ("some_cpu_us", f"{scale.crowd.stalled} of them take nothing: CPU per delivered token, us"),
        ("some_age_p99_ms", "  age of a token, p99 ms"),
        ("viewer_kb", "  memory per viewer, KB"),
        ("stalled_kb", "  memory per viewer who takes nothing of 2 MB, KB"),
        *blocked_rows("asleep", "graphs that sleep"),
        *blocked_rows("talking", "a chain that talks from a thread"),
        *blocked_rows("computing", "a graph that computes"),
        ("start_ms", "process start to first byte of /healthz, ms"),
        ("rss_mb", "memory when warm, MB"),
    ]


def header(about: dict[str, Any], relays: list[Relay]) -> Iterator[str]:
    machine = f"{about['cores']} cores, {about['cpu']}, {about['memory_gb']} GB, Linux {about['kernel']}"
    yield f"{machine}, load {about['load_before']} before"
    yield f"commit {about['commit']}, Python {about['python']}, nginx {about['nginx']}"
    yield ", ".join(f"{name} {of}" for name, of in about["libraries"].items())
    for relay in relays:
        yield f"{relay.name:8} {relay.label}"


def cell(found: Numbers | None) -> str:
    if not found:
        return "-"
    middle, low, high = (number(found[k]) for k in ("median", "min", "max"))
    return middle if low == high else f"{middle} ({low}-{high})"


def ratio(ours: float | None, naive: float | None) -> str:
    return f"{ours / naive:.2f}" if ours and naive else "-"


def table(found: Results, scale: Scale) -> Iterator[str]:
    names = list(found["relays"])
    for wire in (w for w in WIRES if w in found["results"]):
        yield f"\n{wire:56}" + "".join(f"{name:>22}" for name in names) + f"{'service : naive':>18}"
        for key, title in rows(scale):
            by_relay = {name: found["results"][wire].get(name, {}).get(key) for name in names}
            if any(by_relay.values()):
                cells = "".join(f"{cell(by_relay[name]):>22}" for name in names)
                share = ratio(median(found, wire, "service", key), median(found, wire, "naive", key))
                yield f"{title:56}{cells}{share:>18}"
        for relay in names:
            yield from (
                f"{relay} is saturated at {getattr(scale, name).label}: tokens wait, and come in lumps, cheaper each"
                for name in ("light", "heavy", "reference")
                if is_saturated(found, wire, relay, f"{name}_cpu_us")
            )


def footer(found: Results) -> Iterator[str]:
    about = found["machine"]
    yield f"{about['seconds'] // 60}:{about['seconds'] % 60:02} minutes, {found['scale']['repeats']} repeats"
    again = ": too much, measure again" if about["others_percent"] > 10 else ""
    yield f"other processes used {about['others_percent']} % of the machine meanwhile{again}"
    yield f"open files allow {about['open_streams_possible']:,} streams in one process"
    yield from found["faults"] or ["every stream's text was as it was sent"]


def is_saturated(found: Results, wire: str, relay: str, key: str) -> bool:
    """Tell whether a relay took all of a core for what `key` measures."""
    name, is_cpu, _ = key.partition("_cpu_us")
    return bool(is_cpu) and (median(found, wire, relay, f"{name}_busy") or 0) > SATURATED


def markdown(found: Results) -> Iterator[str]:
    yield "| | Sidestream | the naive way | ratio | nginx, bytes through |"
    yield "|---|---|---|---|---|"
    for key, title, unit in HEADLINES:
        ours, naive, raw = (both(found, relay, key, unit) for relay in ("service", "naive", "raw"))
        pairs = [(median(found, wire, "service", key), median(found, wire, "naive", key)) for wire in WIRES]
        shares = " and ".join(ratio(*pair) for pair in pairs if all(pair))
        yield f"| {title} | {ours} | {naive} | {shares} | {raw} |"


def both(found: Results, relay: str, key: str, unit: str) -> str:
    """The medians of both wires, OpenAI's first."""
    medians = [value for wire in WIRES if (value := median(found, wire, relay, key)) is not None]
    told = " and ".join(number(value) if unit else f"{value:,.0f}" for value in medians)
    mark = ", saturated" if any(is_saturated(found, wire, relay, key) for wire in WIRES) else ""
    return f"{told} {unit}{mark}".strip() if medians else ""


if __name__ == "__main__":
    print("\n".join(markdown(json.loads(SHOWN.read_text()))))
