"""The chaos soak: `make soak`, or `python bench/soak.py [--minutes 3] [--concurrent 300] [--seed 1]`.

The service in a process of its own, an upstream that misbehaves (chaos.py) and hundreds of clients at once who come,
go and come back (visits.py). After each round it waits until all is quiet, and says what was left behind. The exit code
is 1 where anything was found wrong; README.md says what is looked at.
"""

import argparse
import asyncio
import json
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from answers import KEY, MARK
from chaos import Chaos
from processes import Process, free_port
from relays import ROOT, environment
from streams import Client, Cut
from visits import Visits

SHOWN = 40  # complaints of a kind; the others are counted
GROWTH = 1.10  # of the resident memory, from the first round to the last
MORE_OBJECTS = 500  # that the garbage collector knows of: a round's are thousands
QUIET_WITHIN = 25.0  # seconds: the longest run, then `keep`, then what keeps connections (KEEPALIVE)
COUNTERS = ("retries", "failovers", "resets", "skipped_chunks")
FORBIDDEN = {
    "a traceback": "Traceback",
    "an internal error": "internal error",
    "a task's unread exception": "never retrieved",
    "a task that was destroyed": "was destroyed but",
    "a coroutine that never ran": "never awaited",
    "a prompt": MARK,
    "a key": re.escape(KEY),
    "an error": r"\bERROR\b",
}


@dataclass
class Found:
    """What was found wrong."""

    complaints: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, complaint: str) -> None:
        self.count += 1
        if self.count <= SHOWN:
            self.complaints.append(complaint)
            print(f"WRONG  {complaint}", flush=True)


class Held(NamedTuple):
    """What the service holds when all is quiet. `left` are the objects that there is one of for each run or viewer."""

    rss: int
    tasks: int
    files: int
    active: int
    kept: int
    keys: int
    probes: int
    objects: int
    left: dict[str, int]

    def __str__(self) -> str:
        return f"{self.tasks} tasks, {self.files} files, {self.objects} objects, RSS {self.rss / 1e6:.1f} MB"


def left_behind(before: Held, after: Held) -> Iterator[str]:
    """Complain of tasks, files and runs that are there still."""
    if after.active or after.kept or after.keys or after.probes:
        yield f"{after.active} runs go on, {after.kept} are kept, {after.keys} keys; breakers wait for {after.probes}"
    for what, was, now in (("tasks", before.tasks, after.tasks), ("open files", before.files, after.files)):
        if now > was:
            yield f"{now} {what}, before it were {was}"
    if left := {name: count for name, count in after.left.items() if count > before.left.get(name, 0)}:
        yield f"objects are left: {left}, before it were {before.left}"


def grown(first: Held, last: Held) -> Iterator[str]:
    """Complain where memory, or the count of objects, has grown from the first round to the last."""
    if last.rss > first.rss * GROWTH:
        yield f"memory has grown from {first.rss / 1e6:.1f} to {last.rss / 1e6:.1f} MB"
    if last.objects > first.objects + MORE_OBJECTS:
        yield f"there are {last.objects} objects, and were {first.objects} after the first round"


def in_log(log: str) -> Iterator[str]:
    """Complain of what must not be in a log."""
    for what, pattern in FORBIDDEN.items():
        if lines := [line for line in log.splitlines() if re.search(pattern, line)]:
            yield f"the log holds {what}, {len(lines)} times: {lines[0][:300]!r}"


def counters(text: str) -> dict[str, int]:
    """Read the service's /metrics."""
    found = {name: re.search(rf"^sidestream_{name}_total (\S+)$", text, re.M) for name in COUNTERS}
    return {name: int(float(match[1])) for name, match in found.items() if match}


class Soak:
    """One soak of a service that runs at `port` in `process`."""

    def __init__(self, options: argparse.Namespace, chaos: Chaos, process: Process, port: int) -> None:
        self.found = Found()
        self.rounds: list[Held] = []
        self._options = options
        self._chaos = chaos
        self._process = process
        self._port = port
        self._visits = Visits(port, chaos, options.keep, options.seed, self.found.add)
        self._began = time.monotonic()
        self._number = 0
        self._under_way = 0

    async def run(self) -> None:
        options = self._options
        before = await self._settled(None)
        ticking = asyncio.create_task(self._tick())
        try:
            for number in range(1, options.rounds + 1):
                await self._round(60 * options.minutes / options.rounds)
                held = await self._settled(before)
                self.rounds.append(held)
                self._say(f"round {number} of {options.rounds}: quiet; {held}")
                for complaint in [*left_behind(before, held), *self._upstream()]:
                    self.found.add(f"after round {number}: {complaint}")
        finally:
            ticking.cancel()
            await asyncio.wait([ticking])
        for complaint in grown(self.rounds[0], self.rounds[-1]):
            self.found.add(complaint)

    async def _round(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as clients:
            for place in range(self._options.concurrent):
                clients.create_task(self._visit(until, place / self._options.concurrent * min(1, seconds / 4)))

    async def _visit(self, until: float, after: float) -> None:
        await asyncio.sleep(after)
        while time.monotonic() < until and self._process.popen.poll() is None:
            self._number += 1
            self._under_way += 1
            try:
                await self._visits.one(self._number)
            finally:
                self._under_way -= 1

    async def _settled(self, before: Held | None) -> Held:
        """Return what is held when all is quiet and as it was before, or should be."""
        until = time.monotonic() + QUIET_WITHIN
        while True:
            told = json.loads(await self._get("/soak"))
            is_quiet = told["warm"] and not (told["active"] or told["kept"] or self._chaos.open)
            is_late = time.monotonic() > until
            if is_quiet or is_late:
                told = json.loads(await self._get("/soak?collect"))
                held = Held(self._process.rss_bytes(), **{name: told[name] for name in Held._fields[1:]})
                if is_late or not before or not any(left_behind(before, held)):
                    return held
            await asyncio.sleep(0.25)

    def _upstream(self) -> Iterator[str]:
        if self._chaos.open:
            flying = [f"{one.label} {one.provider}/{one.model} ({one.fault})" for one in self._chaos.in_flight()]
            yield f"{self._chaos.open} connections to the upstream are open, with these requests in flight: {flying}"
        yield from self._chaos.complaints
        self._chaos.complaints.clear()

    async def _get(self, path: str) -> str:
        client = await Client.ask(self._port, "GET", path, {}, b"")
        try:
            await client.head()
            return (await client.read()).decode()
        finally:
            client.leave(reset=False)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            try:
                self._say(await self._now())
            except (OSError, Cut) as exc:
                self.found.add(f"/metrics: {exc!r}")

    async def _now(self) -> str:
        ended = Counter(kind.partition(",")[0] for kind in self._visits.endings.elements())
        told = counters(await self._get("/metrics"))
        now = {"clients": self._under_way, "runs": json.loads(await self._get("/soak"))["active"]}
        numbers = {"visits": self._number, **now, **ended, **told}
        return "  ".join(f"{name} {count}" for name, count in numbers.items()) + (
            f"  RSS {self._process.rss_bytes() / 1e6:.1f} MB  WRONG {self.found.count}"
        )

    def _say(self, line: str) -> None:
        print(f"{time.monotonic() - self._began:5.0f} s  {line}", flush=True)

    async def summary(self) -> str:
        sections: dict[str, Mapping[str, float]] = {
            "visits": self._visits.ways,
            "endings": self._visits.endings,
            "attempts": self._chaos.faults,
            "counted by the service": counters(await self._get("/metrics")),
            "RSS after each round, MB": {str(n): round(held.rss / 1e6, 1) for n, held in enumerate(self.rounds, 1)},
        }
        wall = time.monotonic() - self._began
        sections["CPU, % of one core"] = {
            "the service": round(100 * self._process.cpu_seconds() / wall),
            "its clients and its upstream": round(100 * time.process_time() / wall),
        }
        lines = []
        for title, counted in sections.items():
            lines += ["", title]
            lines += [f"  {name:<36}{count:>10}" for name, count in sorted(counted.items())]
        return "\n".join(lines)


def settings(options: argparse.Namespace, upstream_port: int) -> dict[str, str]:
    """Short ones, so that much happens in a minute."""
    ours = {
        "RETRY_DELAY": 0.05,
        "FIRST_TOKEN_TIMEOUT": options.patience,
        "IDLE_TIMEOUT": options.patience,
        "BREAKER_PAUSE": 1,
        "KEEP": options.keep,
        "SEND_TIMEOUT": 5,
        "PING_INTERVAL": 0.3,
    }
    return environment(upstream_port) | {
        "OPENAI_API_KEY": KEY,
        "ANTHROPIC_API_KEY": KEY,
        **{f"SIDESTREAM_{name}": str(value) for name, value in ours.items()},
    }


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Hundreds of clients come and go; their upstream misbehaves.")
    parser.add_argument("--minutes", type=float, default=3, help="of load, over all rounds (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="after each it is looked what is left (%(default)s)")
    parser.add_argument("--concurrent", type=int, default=300, help="clients at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn at random (%(default)s)")
    parser.add_argument("--patience", type=float, default=1.0, help="timeouts of the service, seconds (%(default)s)")
    parser.add_argument("--keep", type=float, default=5.0, help="how long it keeps runs, seconds (%(default)s)")
    return parser.parse_args(given)


async def soak(options: argparse.Namespace, log: Path) -> Found:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "bench.watched:app", "--port", str(port), "--backlog", "4096"]
    async with Chaos(options.seed, 3 * options.patience) as chaos:
        with Process(command, log, settings(options, chaos.port), ROOT) as process:
            process.wait_for_first_byte(port)
            one = Soak(options, chaos, process, port)
            await one.run()
            print(await one.summary())
    return one.found


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # which undoes all that was started
    with tempfile.TemporaryDirectory(prefix="sidestream-soak-") as folder:
        log = Path(folder) / "service.log"
        found = asyncio.run(soak(options, log))
        for complaint in in_log(log.read_text(errors="replace")):
            found.add(complaint)
    print(f"\n{found.count or 'nothing'} found wrong")
    return 1 if found.count else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
