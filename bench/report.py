"""What was found: medians and spreads of the samples, the goals and whether they are met; as in results.json.

It neither measures nor draws.
"""

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from measures import Numbers, Scale
from relays import BENCH, Relay

Samples = dict[tuple[str, str], list[Numbers]]  # (wire, relay) -> one a repeat
Results = dict[str, Any]  # as in results.json
SHOWN = BENCH / "results.json"  # of the last full run
VERDICTS = ("missed", "reached", "aim reached")


@dataclass(frozen=True)
class Goal:
    """What a number of the service is to be, at least and at best. A fraction is of what the naive way takes."""

    title: str
    key: str
    unit: str
    least: float | Fraction
    aim: float | Fraction
    more_is_better: bool = False

    @property
    def is_ratio(self) -> bool:
        return isinstance(self.least, Fraction)


GOALS = (
    Goal("CPU per token, 200 x 50/s", "reference_cpu_us", "us", Fraction(1, 5), Fraction(1, 9)),
    Goal("CPU per token, 30 x 50/s", "light_cpu_us", "us", Fraction(1, 5), Fraction(1, 9)),
    Goal("CPU per token, burst", "burst_cpu_us", "us", Fraction(1, 20), 3),
    Goal("CPU per one-token stream, all included", "short_cpu_ms", "ms", 1.5, 0.7),
    Goal("process start to first byte, both keys set", "start_ms", "ms", 350, 200),
    Goal("memory per open idle stream", "idle_kb", "KB", 75, 35),
    Goal("open streams in one process, first tokens under 1 s", "open_streams", "", 2_000, 10_000, more_is_better=True),
    Goal("added delay per token at 5,000 tokens/s, p99", "heavy_added_p99_ms", "ms", 5, 2),
    Goal("resume of a run of 100,000 tokens", "resume_ms", "ms", 20, 5),
    Goal("one run, 1,000 viewers: CPU per delivered token", "all_cpu_us", "us", 15, 5),
)


class Verdict(NamedTuple):
    """How a goal is met on the wire where it is met worst; `level` is an index of VERDICTS."""

    level: int
    found: float
    naive: float | None


def number(x: float) -> str:
    if x >= 1e4:
        return f"{x / 1e3:.0f}k"
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}"


def with_added_delay(samples: Samples) -> Samples:
    """Each repeat with what its relay adds to the age that tokens have through the raw proxy in the same repeat."""
    found = {}
    for (wire, relay), repeats in samples.items():
        raw = samples.get((wire, "raw"), []) if relay != "raw" else []
        floors = raw + [{}] * (len(repeats) - len(raw))
        found[wire, relay] = [one | added(one, floor) for one, floor in zip(repeats, floors, strict=True)]
    return found


def added(numbers: Numbers, raw: Numbers) -> Numbers:
    ages = [key for key in numbers if "_age_" in key and key in raw]
    return {key.replace("_age_", "_added_"): numbers[key] - raw[key] for key in ages}


def summary(samples: Samples) -> dict[str, dict[str, dict[str, Numbers]]]:
    """wire -> relay -> key -> median, min and max."""
    found: dict[str, dict[str, dict[str, Numbers]]] = {}
    for (wire, relay), repeats in with_added_delay(samples).items():
        by_key: dict[str, list[float]] = {}
        for numbers in repeats:
            for key, value in numbers.items():
                by_key.setdefault(key, []).append(value)
        found.setdefault(wire, {})[relay] = {
            key: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for key, values in by_key.items()
        }
    return found


def results(about: dict[str, Any], scale: Scale, relays: list[Relay], samples: Samples, faults: list[str]) -> Results:
    return {
        "machine": about,
        "scale": asdict(scale),
        "relays": {relay.name: relay.label for relay in relays},
        "results": summary(samples),
        "faults": faults,
    }


def write(path: Path, found: Results) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n")


def median(found: Results, wire: str, relay: str, key: str) -> float | None:
    numbers = found["results"].get(wire, {}).get(relay, {}).get(key)
    return numbers and float(numbers["median"])


def compared(found: Results, wire: str, key: str) -> tuple[float | None, float | None]:
    """The service's number and the naive way's; those of whole streams where it never got all of them to flow."""
    whole = key.replace("_cpu_us", "_whole_cpu_us")
    if median(found, wire, "naive", key) is None and median(found, wire, "naive", whole):
        key = whole
    return median(found, wire, "service", key), median(found, wire, "naive", key)


def verdict(goal: Goal, found: Results) -> Verdict | None:
    """How a goal is met; None where it, or what it is compared with, was not measured."""
    verdicts = []
    for wire in found["results"]:
        ours, naive = compared(found, wire, goal.key)
        if ours is not None and (naive is not None or not goal.is_ratio):
            reached = [is_met(goal, ours, bound, naive or 0, found) for bound in (goal.least, goal.aim)]
            verdicts.append(Verdict(sum(reached), ours, naive))
    return min(verdicts, key=lambda one: (one.level, -one.found), default=None)


def is_met(goal: Goal, ours: float, bound: float | Fraction, naive: float, found: Results) -> bool:
    if goal.more_is_better:  # but no more than the machine allows
        return ours >= min(bound, float(found["machine"]["open_streams_possible"]))
    return ours <= (bound * naive if isinstance(bound, Fraction) else bound)


def goals(found: Results) -> Iterator[str]:
    yield f"{'goals: the worse wire, in the median':52}{'found':>24}{'at least':>12}{'aim':>12}"
    for goal in GOALS:
        least, aim = (told(limit, goal.unit) for limit in (goal.least, goal.aim))
        if one := verdict(goal, found):
            share = f", 1/{one.naive / one.found:.1f}" if one.naive and goal.is_ratio else ""
            found_is = f"{number(one.found)} {goal.unit}" if goal.unit else f"{one.found:,.0f}"
            cells, word = found_is + share, VERDICTS[one.level]
        else:
            cells, word = "-", "not measured"
        yield f"{goal.title:52}{cells:>24}{least:>12}{aim:>12}   {word}"


def told(limit: float | Fraction, unit: str) -> str:
    if isinstance(limit, Fraction):
        return f"{limit} naive"
    return f"{limit:g} {unit}" if unit else f"{limit:,.0f}"
