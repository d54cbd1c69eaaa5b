"""Sidestream's benchmark: `make bench`, or `python bench/run.py [--quick] [--relays service,naive,raw]`.

A scripted upstream, then each relay by turns in a process of its own, on both wires; see README.md. The exit code is
not 0 if any stream's text differed from what was sent, or a stream broke or hung.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import machine
import measures
import plot
import report
import runs
import table
from client import Client, Fault
from measures import Numbers, Scale
from processes import Process, ProcessError, free_port
from relays import BENCH, GRAPHS, NAMES, NO_SETTINGS, WIRES, Relay, all_relays, environment, start

QUICK = BENCH / "results-quick.json"  # of all that is not a full run
FEWEST = 2_000  # open streams, below which the machine is not one to measure on


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def give_up(why: str) -> NoReturn:
    say(f"bench: {why}")
    raise SystemExit(2)


def compile_tools(folder: Path) -> None:
    if not shutil.which("cc"):
        give_up("needs a C compiler (cc) for its upstream and its load client")
    for tool in ("upstream", "load"):
        subprocess.run(["cc", "-O2", "-o", str(folder / tool), str(BENCH / f"{tool}.c")], check=True)


@contextmanager
def tools() -> Iterator[tuple[Path, int]]:
    """The folder of the compiled tools, and the port at which the scripted upstream answers meanwhile."""
    with tempfile.TemporaryDirectory(prefix="sidestream-bench-") as name:
        folder, port = Path(name), free_port()
        compile_tools(folder)
        with Process([str(folder / "upstream"), str(port)], folder / "upstream.log", environment(port)) as upstream:
            upstream.wait_for_first_byte(port)
            yield folder, port


class Bench:
    """One run of the benchmark: where its tools are, what it found and what went wrong."""

    def __init__(self, folder: Path, upstream_port: int, scale: Scale) -> None:
        self.folder = folder
        self.upstream_port = upstream_port
        self.scale = scale
        self.samples: report.Samples = {}
        self.faults: list[str] = []

    def run(self, relays: list[Relay]) -> None:
        for repeat in range(self.scale.repeats):
            for wire in WIRES:
                for relay in relays[repeat % len(relays) :] + relays[: repeat % len(relays)]:
                    self.sample(relay, wire, repeat)

    def sample(self, relay: Relay, wire: str, repeat: int) -> None:
        """Everything of one relay on one wire, once."""
        began = time.perf_counter()
        found: Numbers = {}
        try:
            for numbers in self.measured(relay, wire, repeat):
                found |= numbers
        except (Fault, ProcessError) as e:
            self.faults.append(f"{relay.name}, {wire}: {e}")
            say(f"FAULT {self.faults[-1]}")
        self.samples.setdefault((wire, relay.name), []).append(found)
        say(f"{repeat + 1}/{self.scale.repeats} {wire} {relay.name}: {time.perf_counter() - began:.1f} s")

    @contextmanager
    def client_of(self, relay: Relay, wire: str, settings: dict[str, str] = NO_SETTINGS) -> Iterator[Client]:
        """A client of a fresh process of the relay, warm."""
        with start(relay, self.upstream_port, self.folder, settings) as running:
            client = Client(self.folder / "load", running, wire)
            measures.warm(client)
            yield client

    def measured(self, relay: Relay, wire: str, repeat: int) -> Iterator[Numbers]:
        """Memory in a process that has done nothing else, then the rest in others; what takes long only once."""
        scale, is_service, is_first = self.scale, relay.name == "service", repeat == 0
        with self.client_of(relay, wire) as client:
            if relay.starts_an_app:
                yield {"start_ms": client.relay.seconds_to_start * 1e3}
            yield {"rss_mb": client.relay.process.rss_bytes() / 2**20}
            yield measures.idle(client, scale.idle_streams)
        with self.client_of(relay, wire) as client:
            yield measures.first_token(client)
            yield measures.paced(client, "light", scale.light)
            if is_first or relay.name != "naive":  # which is saturated by these, and takes its time
                yield measures.paced(client, "heavy", scale.heavy)
            if is_first or is_service:
                yield measures.paced(client, "reference", scale.reference)
            yield measures.burst(client, scale.burst_streams, scale.burst_tokens)
            yield measures.short(client, scale.short_streams)
            if is_service:
                yield runs.viewers(client, scale.crowd)
                yield runs.resume(client, scale.resumes)
        if is_service and is_first:
            yield from self.measured_once(relay, wire)

    def measured_once(self, relay: Relay, wire: str) -> Iterator[Numbers]:
        """What only the service can do: the SDKs' pools end at 1000 connections, and the others have no runs."""
        scale, is_first = self.scale, wire == WIRES[0]
        widths = scale.widths if is_first else scale.widths[:1]
        with self.client_of(relay, wire) as wide:
            yield (found := measures.wide(wide, widths))
        if is_first:
            yield measures.open_streams(found, widths)
            with self.client_of(relay, wire) as shared:
                yield runs.stalled(shared, scale.crowd)
            for name in scale.blocking:
                with self.client_of(relay, wire, GRAPHS) as blocked:
                    yield runs.beside(blocked, scale.heavy, name)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare Sidestream with the naive way and a raw proxy.")
    parser.add_argument("--quick", action="store_true", help="one repeat of fewer and smaller loads, 3 minutes")
    parser.add_argument("--repeats", type=int, help="how often everything is measured (3; 1 with --quick)")
    parser.add_argument("--relays", default=",".join(NAMES), help="which to compare (%(default)s)")
    chosen = parser.parse_args()
    if unknown := set(chosen.relays.split(",")) - set(NAMES):
        parser.error(f"no such relay: {', '.join(sorted(unknown))}")
    return chosen


def main() -> int:
    chosen = options()
    scale = measures.QUICK if chosen.quick else measures.NORMAL
    possible = machine.streams_within(machine.raise_open_file_limit())
    if possible < FEWEST:
        give_up(f"needs a limit of open files that lets a process hold {FEWEST:,} streams, here it is {possible:,}")
    scale = replace(scale.within(possible), repeats=chosen.repeats or scale.repeats)
    relays = [relay for relay in all_relays() if relay.name in chosen.relays.split(",")]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    about, others, began = machine.about(), machine.Bystanders(), time.monotonic()
    print("\n".join(table.header(about, relays)), flush=True)
    with tools() as (folder, port):
        bench = Bench(folder, port, scale)
        bench.run(relays)
    about |= {
        "open_streams_possible": possible,
        "others_percent": others.percent(),
        "seconds": round(time.monotonic() - began),
    }
    found = report.results(about, scale, relays, bench.samples, bench.faults)
    is_full = not chosen.quick and len(relays) == len(NAMES) and scale.repeats >= measures.NORMAL.repeats
    print("\n".join([*table.table(found, scale), "", *report.goals(found), "", *table.footer(found)]))
    report.write(report.SHOWN if is_full else QUICK, found)
    if is_full:
        plot.draw()
    return 1 if bench.faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
