"""What replication costs: `make bench-replicas`, or `python bench/replication.py [--quick]`.

Runs are made at one replica and followed there, at another, or at both; the same without a Redis. Each load is played
in each of these ways in turn, in some rounds, so that a slow minute of the machine hits all alike; shown are medians.
Prints tables and an estimate made of them, and writes replication.json, unless any token of any stream was lost or
altered, or a stream was refused, broke or hung: then the exit code is not 0.
"""

import argparse
import json
import math
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import machine
from client import Counts, Fault
from processes import ProcessError
from relays import BENCH
from replicas import Group, Load, compile_follow, group, redis_version
from report import number
from run import say, tools

SHOWN = BENCH / "replication.json"
ROUNDS = 3


class Numbers(dict[str, float]):
    """Numbers by key; what a machine was too busy to have measured is none."""

    def __missing__(self, key: str) -> float:
        return math.nan


Found = dict[str, dict[str, Numbers]]  # load -> way -> the medians


class Way(NamedTuple):
    """How runs are followed: whether their replica has a Redis, and by how many viewers here and at the other."""

    replicated: bool
    here: int
    there: int


OFF, ON, BOTH, THERE = Way(False, 1, 0), Way(True, 1, 0), Way(True, 1, 1), Way(True, 0, 1)
WAYS = {"off": OFF, "on": ON, "both": BOTH, "there": THERE}
CROWD = 1000
PAUSE = 3.0  # seconds of nothing
USUAL = ("off", "on", "both")
LOADS = {
    "one": (Load(1, 75, 20), USUAL),
    "light": (Load(30, 100, 20, ramp_ms=300), USUAL),
    "heavy": (Load(300, 100, 20, ramp_ms=1000), (*USUAL, "there")),
    "wide": (Load(1000, 42, 100, ramp_ms=2000, wait_ms=700), (*USUAL, "there")),
    "burst": (Load(16, 2000, 0), USUAL),
    "short": (Load(200, 1, 0, ramp_ms=600, wait_ms=0), (*USUAL, "there")),
}
PACED = ("one", "light", "heavy", "wide")
CROWDED = Load(1, 25, 100, wait_ms=1500)  # by a crowd of viewers, here or there
STOPS = 50
BUSY = Load(300, 500, 20, ramp_ms=1000)  # beside which they are stopped
HELD = {"runs": Load(CROWD, 1, 20, ramp_ms=2000, silent=True), "viewers": Load(1, 1, 20, silent=True)}
KEPT = {"paced": Load(1, 500, 10), "burst": Load(4, 500, 0)}


# What is measured.


def numbers(load: Load, counts: Counts) -> Numbers:
    """What one play of a load has found, by token that was made or, where it says so, by run."""
    here, there, seconds = counts["here"], counts["there"], counts["window_s"]
    found = Numbers({f"{name}_run_us": counts[f"{name}_cpu_us"] / load.runs for name in counts["cpu_us"]})
    if seconds:  # else the machine was so busy that the first streams ended before the last ones began
        made = here["tokens"] / load.here if load.here else there["tokens"] / load.there
        found["rate"] = made / seconds
        for name, spent in counts["cpu_us"].items():
            found[f"{name}_us"], found[f"{name}_busy"] = spent / made, spent / 1e4 / seconds
    for name, delays in (("here", here["age_us"]), ("there", there["age_us"]), ("behind", counts["behind_us"])):
        if delays["n"]:
            found |= {f"{name}_{part}_ms": delays[part] / 1e3 for part in ("p50", "p99")}
    for name, place in (("here", here), ("there", there)):
        if place["tokens"]:
            found[f"{name}_bytes"] = place["bytes"] / place["tokens"]
    if counts.get("sent_entries"):
        tokens = load.runs * load.tokens
        found["entries"] = counts["sent_entries"] / counts["sent_events"]
        found |= {name: counts[f"redis_{name}"] / tokens for name in ("commands", "xadd", "xread", "in", "out")}
    return found


class Bench:
    """One run of the benchmark: where its tools are, what it found and what went wrong."""

    def __init__(self, folder: Path, upstream_port: int) -> None:
        self.folder = folder
        self.upstream_port = upstream_port
        self.samples: dict[tuple[str, str], list[Numbers]] = {}
        self.faults: list[str] = []

    def rounds(self, rounds: int) -> None:
        with self.group(replicated=False) as alone, self.group(replicated=True) as shared:
            self.sample("idle", "on", lambda: idle(shared))
            self.sample("stops", "idle", lambda: stops(shared))
            self.sample("stops", "busy", lambda: busy_stops(shared))
            for turn in range(rounds):
                began = time.perf_counter()
                for name, (load, ways) in LOADS.items():
                    for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                        self.play(name, way, load, alone, shared, WAYS[way])
                self.play("crowd", "on", CROWDED, alone, shared, Way(True, CROWD, 0))
                self.play("crowd", "there", CROWDED, alone, shared, Way(True, 0, CROWD))
                say(f"round {turn + 1}/{rounds}: {time.perf_counter() - began:.0f} s")

    def play(self, name: str, way: str, load: Load, alone: Group, shared: Group, how: Way) -> None:
        load = load.viewed(how.here, how.there)
        at = shared if how.replicated else alone
        self.sample(name, way, lambda: numbers(load, at.play(load)))

    def sample(self, name: str, way: str, measure: Any) -> None:
        try:
            self.samples.setdefault((name, way), []).append(measure())
        except (Fault, ProcessError) as e:
            self.faults.append(f"{name}, {way}: {e}")
            say(f"FAULT {self.faults[-1]}")

    def memory(self) -> None:
        """What is held open, in processes that have done nothing else; and what is kept, in Redis."""
        for name, load in HELD.items():
            viewers = 1 if load.runs > 1 else CROWD
            for way, viewed in (("on", load.viewed(viewers, 0)), ("there", load.viewed(0, viewers))):
                with self.group(replicated=True) as shared:
                    self.sample(f"held {name}", way, lambda shared=shared, viewed=viewed: held(shared, viewed))
        with self.group(replicated=True) as shared:
            for name, load in KEPT.items():
                self.sample(f"kept {name}", "on", lambda load=load: kept(shared, load.viewed(1, 0)))

    def group(self, *, replicated: bool) -> Any:
        return group(self.folder, self.upstream_port, replicated=replicated)


def idle(shared: Group) -> Numbers:
    """What a second of nothing costs."""
    counts = shared.pause(PAUSE)
    keys = {"commands": "redis_commands", "redis_us": "redis_cpu_us", "owner_us": "owner_cpu_us"}
    return Numbers({name: counts[key] / PAUSE for name, key in keys.items()})


def stops(shared: Group) -> Numbers:
    """Until who stops a run by a replica that does not make it is answered."""
    took = sorted(shared.stops(STOPS))
    return Numbers(p50_ms=statistics.median(took), p99_ms=took[round(0.99 * (STOPS - 1))])


def busy_stops(shared: Group) -> Numbers:
    with ThreadPoolExecutor(1) as pool:
        playing = pool.submit(shared.play, BUSY.viewed(1, 1))
        time.sleep((BUSY.ramp_ms + BUSY.wait_ms) / 1000)
        found = stops(shared)
        if playing.done():
            raise ProcessError("the load was over before the last run was stopped")
        playing.result()
    return found


def held(shared: Group, load: Load) -> Numbers:
    """KB that each process has grown by, of a run or, where there is one of many viewers, of a viewer."""
    base = {f"{name}_mb": one.process.rss_bytes() / 2**20 for name, one in shared.named()}
    return Numbers(base | {name: grown / 1024 / CROWD for name, grown in shared.hold(load).items()})


def kept(shared: Group, load: Load) -> Numbers:
    """Entries and bytes that a run which is over takes in Redis, in the mean of those of a load."""
    assert shared.redis
    before = shared.redis.streams()
    shared.play(load)
    entries, sizes = zip(*(of for key, of in shared.redis.streams().items() if key not in before), strict=True)
    return Numbers(entries=statistics.mean(entries), bytes=statistics.mean(sizes))


def medians(samples: dict[tuple[str, str], list[Numbers]]) -> Found:
    found: Found = {}
    for (name, way), rounds in samples.items():
        keys = {key for one in rounds for key in one}
        of_way = {key: statistics.median(one[key] for one in rounds if key in one) for key in sorted(keys)}
        found.setdefault(name, {})[way] = Numbers(of_way)
    return found


# What comes of it: a service of a million streams, on paper.


@dataclass(frozen=True)
class Plan:
    """What is to be served, and what of a core may be busy."""

    streams: int = 1_000_000
    rate: float = 50.0  # tokens a second, each
    elsewhere: float = 0.5  # share of viewers at another replica than their run's
    answer: int = 500  # tokens
    keep: float = 60.0  # seconds that a run is kept which is over
    kept_mb: float = 64.0  # of these a replica holds no more
    token_bytes: float = 150.0  # of a token in a log, as a log counts them
    busy: float = 0.6  # of a replica's core, and of Redis'

    @property
    def tokens(self) -> float:
        """In a second, of all."""
        return self.streams * self.rate

    @property
    def begun(self) -> float:
        """Runs in a second."""
        return self.tokens / self.answer

    def mean(self, here: float, there: float) -> float:
        """Of those who follow a run where it is made, and the others."""
        return (1 - self.elsewhere) * here + self.elsewhere * there


def estimate(found: Found, plan: Plan) -> Numbers:
    """What a plan takes, of what was measured: a token at the load of the plan's pace, a run at the shortest ones."""
    (on, there), (run, run_there) = ([found[name][way] for way in ("on", "there")] for name in ("heavy", "short"))
    of_token = plan.mean(on["owner_us"], there["owner_us"] + there["mirror_us"])
    of_run = plan.mean(run["owner_run_us"], run_there["owner_run_us"] + run_there["mirror_run_us"])
    of_entry = 1 / plan.mean(on["entries"], there["entries"])
    redis_token = plan.mean(on["redis_us"], there["redis_us"])
    redis_run = plan.mean(run["redis_run_us"], run_there["redis_run_us"])
    replicas = (plan.tokens * of_token + plan.begun * of_run) / 1e6 / plan.busy
    shards = (plan.tokens * redis_token + plan.begun * redis_run) / 1e6 / plan.busy
    return Numbers(
        {
            "tokens_per_second": plan.tokens,
            "runs_per_second": plan.begun,
            "token_us": of_token,
            "run_us": of_run,
            "replicas": replicas,
            "streams_per_replica": plan.streams / replicas,
            "tokens_per_entry": of_entry,
            "entries_per_second": plan.tokens / of_entry,
            "redis_entry_us": redis_token * of_entry,
            "redis_run_us": redis_run,
            "shards": shards,
            "streams_per_shard": plan.streams / shards,
            "replicas_per_shard": replicas / shards,
            "redis_in_gb_s": plan.tokens * plan.mean(on["in"], there["in"]) / 1e9,
            "redis_out_gb_s": plan.tokens * plan.mean(on["out"], there["out"]) / 1e9,
            "clients_gb_s": plan.tokens * plan.mean(on["here_bytes"], there["there_bytes"]) / 1e9,
            "replicas_gb": replicas_gb(found, plan, replicas),
            "redis_gb": redis_gb(found, plan, of_entry),
        }
    )


def replicas_gb(found: Found, plan: Plan, replicas: float) -> float:
    """Memory of all replicas: their own, of open streams with half of their answers, and of what is kept."""
    here, there = found["held runs"]["on"], found["held runs"]["there"]
    stream_kb = plan.mean(here["owner"], there["owner"] + there["mirror"])
    text_kb = plan.mean(1, 2) * plan.answer / 2 * plan.token_bytes / 1024
    kept_mb = min(plan.kept_mb, plan.begun * plan.keep * plan.answer * plan.token_bytes / 2**20 / replicas)
    return (plan.streams * (stream_kb + text_kb) / 1024 + replicas * (here["owner_mb"] + kept_mb)) / 1024


def redis_gb(found: Found, plan: Plan, of_entry: float) -> float:
    """Memory of all Redis: half of what is open, and what is kept, by the entries that an answer takes."""
    many, few = found["kept paced"]["on"], found["kept burst"]["on"]
    of_one = max(0.0, (many["bytes"] - few["bytes"]) / (many["entries"] - few["entries"]))
    answer = few["bytes"] + of_one * (plan.answer / of_entry - few["entries"])
    return answer * (plan.streams / 2 + plan.begun * plan.keep) / 2**30


# How it is told.

STREAMED = (*PACED, "burst")
# Of a table: title, way and key of each column.
CPU = (
    *(("tokens/s", "off", "rate"), ("owner off", "off", "owner_us"), ("on", "on", "owner_us")),
    *(("mirrored", "both", "owner_us"), ("mirror", "both", "mirror_us")),
    *(("Redis on", "on", "redis_us"), ("mirrored", "both", "redis_us")),
    *(("owner, %", "both", "owner_busy"), ("mirror, %", "both", "mirror_busy")),
)
DELAYS = (
    *(("off p50", "off", "here_p50_ms"), ("p99", "off", "here_p99_ms")),
    *(("on p50", "on", "here_p50_ms"), ("p99", "on", "here_p99_ms")),
    *(("mirror p50", "both", "there_p50_ms"), ("p99", "both", "there_p99_ms")),
    *(("behind p50", "both", "behind_p50_ms"), ("p99", "both", "behind_p99_ms")),
)
WIRE = (
    *(("entries on", "on", "entries"), ("mirrored", "both", "entries")),
    *(("commands on", "on", "commands"), ("mirrored", "both", "commands")),
    *(("bytes in on", "on", "in"), ("mirrored", "both", "in"), ("out on", "on", "out"), ("mirrored", "both", "out")),
)
RUNS = (
    *(("owner off", "off", "owner_run_us"), ("on", "on", "owner_run_us"), ("mirrored", "there", "owner_run_us")),
    *(("mirror", "there", "mirror_run_us"), ("Redis on", "on", "redis_run_us")),
    ("mirrored", "there", "redis_run_us"),
)


def told(numbers: Numbers | None, key: str, share: float = 1.0) -> str:
    return number(numbers[key] * share) if numbers and key in numbers else "-"


def rows(found: Found, names: Sequence[str], columns: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    yield f"{'':20}" + "".join(f"{title:>12}" for title, _, _ in columns)
    for name in names:
        ways = found.get(name, {})
        yield f"{LOADS[name][0]!s:20}" + "".join(f"{told(ways.get(way), key):>12}" for _, way, key in columns)


def tables(found: Found) -> Iterator[str]:
    yield "\nCPU per token, us: without Redis, with it, and with a viewer at another replica too; how busy they are"
    yield from rows(found, STREAMED, CPU)
    yield "\nage of a token at a viewer, ms; behind: how much later the mirror's viewer has it than the owner's"
    yield from rows(found, STREAMED, DELAYS)
    yield "\nper token, to and from Redis"
    yield from rows(found, STREAMED, WIRE)
    yield "\nCPU per run of one token, us: made by one request and followed by another, to the owner or elsewhere"
    yield from rows(found, ["short"], RUNS)
    yield f"\n{f'{CROWD:,} viewers':40}{'at the owner':>16}{'at a mirror':>16}"
    yield from viewed(found)
    yield ""
    yield stopped(found)
    yield from of_redis(found)


def viewed(found: Found) -> Iterator[str]:
    """Those who follow runs where they are made, beside those who do elsewhere."""
    kinds = (("of one run", "crowd", CROWD, "viewers"), ("of a run each", "wide", 1, "runs"))
    for title, load, viewers, name in kinds:
        loads, memories = (found[of] for of in (load, f"held {name}"))
        for process in ("owner", "mirror", "redis"):
            values = [told(loads[way], f"{process}_us", 1 / viewers) for way in ("on", "there")]
            yield row(f"{title}: CPU per token, {process}, us", values)
        for part in ("p50", "p99"):
            ages = told(loads["on"], f"here_{part}_ms"), told(loads["there"], f"there_{part}_ms")
            yield row(f"{title}: age of a token, {part} ms", ages)
        for process in ("owner", "mirror", "redis"):
            values = [told(memories[way], process) for way in ("on", "there")]
            yield row(f"{title}: memory of each, {process}, KB", values)


def stopped(found: Found) -> str:
    idle, busy = (
        f"p50 {number(numbers['p50_ms'])} ms, p99 {number(numbers['p99_ms'])} ms" for numbers in found["stops"].values()
    )
    return f"a run is stopped by the other replica, until that is answered: {idle}; beside {BUSY}: {busy}"


def row(title: str, values: Sequence[str]) -> str:
    return f"{title:40}" + "".join(f"{value:>16}" for value in values)


def of_redis(found: Found) -> Iterator[str]:
    idle = found["idle"]["on"]
    spent = f"{number(idle['redis_us'])} us of Redis, {number(idle['owner_us'])} us of each replica"
    yield f"two replicas with nothing to do, in a second: {number(idle['commands'])} commands, {spent}"
    for name, load in KEPT.items():
        one = found[f"kept {name}"]["on"]
        size = f"{one['entries']:.0f} entries, {one['bytes'] / 1024:.1f} KB"
        yield f"a run of {load.tokens} tokens that is over, in Redis: {size} ({load})"


# What is told of an estimate: title, key, and of what it is made.
ESTIMATED = (
    ("replicas, one core each", "replicas", "{token_us} us a token, and {run_us} us each of {runs_per_second} runs/s"),
    ("  streams of each", "streams_per_replica", ""),
    ("Redis, one core each", "shards", "{redis_entry_us} us an entry, and {redis_run_us} us a run"),
    ("  entries a second, of all", "entries_per_second", "of {tokens_per_entry} tokens each"),
    ("  streams of each: a cell", "streams_per_shard", "with {replicas_per_shard} replicas"),
    ("into Redis, GB/s", "redis_in_gb_s", ""),
    ("out of Redis, GB/s", "redis_out_gb_s", ""),
    ("to clients, GB/s", "clients_gb_s", ""),
    ("memory of replicas, GB", "replicas_gb", ""),
    ("memory of Redis, GB", "redis_gb", ""),
)
ASSUMED = """\
Assumed: cores are as these, and {busy:g} % busy at most. A token, an entry and a byte cost what they did at 300 streams
of that pace, a run what it did with one token. Answers have {plan.answer} tokens of the bench's text and are kept for
{plan.keep:g} s, by a replica within {plan.kept_mb:g} MB. Of an open one there is half, and it has one viewer.
Its limits: replicas find each other's runs by the one Redis that they share, and each reads of it all that it mirrors.
What is more than one Redis takes is another cell, and a balancer that sends all that is a user's to one of them."""


def paper(found: Found, plan: Plan) -> Iterator[str]:
    numbers = estimate(found, plan)
    of = {name: f"{value:,.0f}" if value >= 1000 else number(value) for name, value in numbers.items()}
    share = f"{100 * plan.elsewhere:g} % of viewers at another replica than their run's"
    yield f"\nOn paper: {plan.streams:,} streams at {plan.rate:g} tokens/s, {share}"
    for title, key, note in ESTIMATED:
        yield f"  {title:28}{of[key]:>12}  {note.format(**of)}".rstrip()
    yield ASSUMED.format(plan=plan, busy=100 * plan.busy)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what replication costs.")
    parser.add_argument("--quick", action="store_true", help="one round, which is not written down")
    return parser.parse_args()


def header(about: dict[str, Any]) -> Iterator[str]:
    yield f"{about['cores']} cores, {about['cpu']}, {about['memory_gb']} GB, Linux {about['kernel']}"
    yield f"commit {about['commit']}, Python {about['python']}, Redis {about['redis']}, {about['seconds']} s"
    again = ": too much, measure again" if about["others_percent"] > 10 else ""
    yield f"load {about['load_before']} before; other processes used {about['others_percent']} % of the machine{again}"


def write(about: dict[str, Any], found: Found) -> None:
    loads = {name: {"label": str(load)} | asdict(load) for name, (load, _) in LOADS.items()}
    plan = Plan()
    whole = {"machine": about, "loads": loads, "medians": found}
    whole |= {"plan": asdict(plan), "estimate": estimate(found, plan)}
    SHOWN.write_text(json.dumps(whole, indent=1) + "\n")


def main() -> int:
    chosen, about = options(), machine.about() | {"redis": redis_version()}
    machine.raise_open_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    others, began = machine.Bystanders(), time.monotonic()
    with tools() as (folder, port):
        compile_follow(folder)
        bench = Bench(folder, port)
        bench.rounds(1 if chosen.quick else ROUNDS)
        bench.memory()
    about |= {"others_percent": others.percent(), "seconds": round(time.monotonic() - began)}
    found = medians(bench.samples)
    print("\n".join([*header(about), *tables(found), *paper(found, Plan()), "", *bench.faults]))
    if not chosen.quick and not bench.faults:
        write(about, found)
    return 1 if bench.faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
