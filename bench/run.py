"""Sidestream's benchmark: `make bench`, or `python bench/run.py [--quick] [--relays service,naive,raw]`.

A scripted upstream, then each relay by turns in a process of its own, on both wires; see README.md. The exit code is
not 0 if any stream's text differed from what was sent, or a stream broke or hung.
"""

import argparse
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import measures
import report
from measures import Fault, Numbers, Scale
from processes import Process, ProcessError, free_port
from relays import BENCH, GRAPHS, NAMES, WIRES, Relay, all_relays, environment, start

OPEN_FILES = 8192


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def give_up(why: str) -> NoReturn:
    say(f"bench: {why}")
    raise SystemExit(2)


def raise_open_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        give_up(f"needs a limit of {OPEN_FILES} open files, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))


def compile_tools(folder: Path) -> None:
    for tool in ("upstream", "load"):
        subprocess.run(["cc", "-O2", "-o", str(folder / tool), str(BENCH / f"{tool}.c")], check=True)


class Bench:
    """One run of the benchmark: where its tools are, what it found and what went wrong."""

    def __init__(self, folder: Path, upstream_port: int, scale: Scale) -> None:
        self.folder = folder
        self.load = folder / "load"
        self.upstream_port = upstream_port
        self.scale = scale
        self.samples: report.Samples = {}
        self.faults: list[str] = []

    def run(self, relays: list[Relay]) -> None:
        for repeat in range(self.scale.repeats):
            for wire in WIRES:
                for relay in relays[repeat % len(relays) :] + relays[: repeat % len(relays)]:
                    self.sample(repeat, wire, relay)

    def sample(self, repeat: int, wire: str, relay: Relay) -> None:
        """Everything of one relay on one wire, once."""
        began = time.perf_counter()
        found: Numbers = {}
        try:
            for numbers in self.measured(repeat, wire, relay):
                found |= numbers
        except (Fault, ProcessError) as e:
            self.faults.append(f"{relay.name}, {wire}: {e}")
            say(f"FAULT {self.faults[-1]}")
        self.samples.setdefault((wire, relay.name), []).append(found)
        say(f"{repeat + 1}/{self.scale.repeats} {wire} {relay.name}: {time.perf_counter() - began:.1f} s")

    def measured(self, repeat: int, wire: str, relay: Relay) -> Iterator[Numbers]:
        """Memory in a process that has done nothing else, then the rest in another."""
        load, scale = self.load, self.scale
        with start(relay, self.upstream_port, self.folder) as fresh:
            if relay.starts_an_app:
                yield {"start_ms": fresh.seconds_to_start * 1e3}
            measures.warm(load, fresh)
            yield {"rss_mb": fresh.process.rss_bytes() / 2**20}
            yield measures.idle(load, fresh, wire, scale.idle_streams)
            # once, and not for the naive way, which hangs there: its SDKs' pools end at 1000 connections
            if repeat == 0 and relay.name == "service":
                yield measures.wide(load, fresh, wire, scale.wide_streams)
        if repeat == 0 and relay.name == "service":  # the others have no runs to share
            with start(relay, self.upstream_port, self.folder) as shared:
                measures.warm(load, shared)
                yield measures.crowd(load, shared, wire, scale.crowd)
        if wire == "openai" and relay.name == "service":  # and no graphs
            for name in measures.BLOCKING:
                with start(relay, self.upstream_port, self.folder, GRAPHS) as blocked:
                    measures.warm(load, blocked)
                    yield measures.beside(load, blocked, wire, scale.heavy, name)
        with start(relay, self.upstream_port, self.folder) as busy:
            measures.warm(load, busy)
            yield measures.first_token(load, busy, wire)
            yield measures.paced(load, busy, wire, "light", scale.light)
            yield measures.paced(load, busy, wire, "heavy", scale.heavy)
            yield measures.burst(load, busy, wire, scale.burst_streams, scale.burst_tokens)
            yield measures.short(load, busy, wire, scale.short_streams)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare Sidestream with the naive way and a raw proxy.")
    parser.add_argument("--quick", action="store_true", help="one repeat of a smaller load, under 90 s")
    parser.add_argument("--repeats", type=int, help="how often everything is measured (3; 1 with --quick)")
    parser.add_argument("--relays", default=",".join(NAMES), help="which to compare (%(default)s)")
    chosen = parser.parse_args()
    if unknown := set(chosen.relays.split(",")) - set(NAMES):
        parser.error(f"no such relay: {', '.join(sorted(unknown))}")
    return chosen


def main() -> int:
    chosen = options()
    scale = measures.QUICK if chosen.quick else measures.NORMAL
    scale = replace(scale, repeats=chosen.repeats or scale.repeats)
    relays = [relay for relay in all_relays() if relay.name in chosen.relays.split(",")]
    if not shutil.which("cc"):
        give_up("needs a C compiler (cc) for its upstream and its load client")
    raise_open_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    about, others = report.machine(), report.Bystanders()
    print("\n".join(report.header(about, relays)), flush=True)
    with tempfile.TemporaryDirectory(prefix="sidestream-bench-") as name:
        folder, port = Path(name), free_port()
        compile_tools(folder)
        with Process([str(folder / "upstream"), str(port)], folder / "upstream.log", environment(port)) as upstream:
            upstream.wait_for_first_byte(port)
            bench = Bench(folder, port, scale)
            bench.run(relays)
    print("\n".join(report.table(bench.samples, relays, scale)))
    about["others_percent"] = others.percent()
    print(f"\nother processes used {about['others_percent']} % of the machine meanwhile")
    report.write(BENCH / "results.json", about, scale, relays, bench.samples, bench.faults)
    print("\n".join(bench.faults or ["every stream's text was as it was sent"]))
    return 1 if bench.faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
