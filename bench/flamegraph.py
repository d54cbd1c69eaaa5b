"""Where the service's time goes: `make bench-profile`, or `python bench/flamegraph.py [paced|burst|short|viewers]`.

The service plays a load again and again while py-spy samples it twice: for profile.svg, a flame graph, and for a table
of the functions by their own time. Native code counts too, so that what runs in C is not its caller's. A sampled
process stands still for each sample: shares of the time are right, its speed is not.
"""

import argparse
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import machine
import measures
import runs
from client import Client
from measures import NORMAL, Pace
from relays import BENCH, WIRES, all_relays, start
from run import give_up, say, tools

PICTURE = BENCH / "profile.svg"
SECONDS, RATE = 8, 200  # of each recording; samples a second
SHOWN = 30  # functions
LOADS: dict[str, Callable[[Client], object]] = {
    "paced": lambda client: measures.paced(client, "paced", Pace(200, 50 * (2 * SECONDS + 6), 1000)),
    "burst": lambda client: measures.burst(client, NORMAL.burst_streams, NORMAL.burst_tokens),
    "short": lambda client: measures.short(client, NORMAL.short_streams),
    "viewers": lambda client: runs.viewers(client, NORMAL.crowd),
}
REFUSED = (
    "py-spy has to look into another process: run as root, or set kernel.yama.ptrace_scope to 0; "
    "a container needs the capability SYS_PTRACE"
)


def record(pid: int, kind: str, path: Path) -> None:
    """Sample who holds the interpreter's lock in a process: the event loop, not the threads that wait for work."""
    command = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if not command:
        give_up("needs py-spy: pip install -e '.[bench]'")
    how = ["--pid", str(pid), "--format", kind, "--output", str(path), "--duration", str(SECONDS), "--rate", str(RATE)]
    done = subprocess.run([command, "record", "--gil", "--native", "--function", *how], capture_output=True, text=True)
    if done.returncode:
        give_up(f"{done.stderr.strip()}\n{REFUSED}")


def play(load: Callable[[Client], object], client: Client, over: threading.Event) -> None:
    while not over.is_set():
        load(client)


def times(collapsed: str) -> tuple[int, Counter[str], Counter[str]]:
    """Samples in all, of each function itself, and of it with all it calls; each stack is `outer;...;inner COUNT`."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
    return own.total(), own, whole


def table(collapsed: str) -> Iterator[str]:
    samples, own, whole = times(collapsed)
    yield f"{'own':>6} {'with calls':>11}   of {samples} samples"
    for frame, count in own.most_common(SHOWN):
        yield f"{count / samples:6.1%} {whole[frame] / samples:11.1%}   {frame}"


def main() -> int:
    parser = argparse.ArgumentParser(description="A flame graph of the service under a load.")
    parser.add_argument("load", nargs="?", default="paced", choices=LOADS)
    parser.add_argument("--wire", default=WIRES[0], choices=WIRES)
    chosen = parser.parse_args()
    machine.raise_open_file_limit()
    with tools() as (folder, port), start(all_relays()[0], port, folder) as service:
        client, over = Client(folder / "load", service, chosen.wire), threading.Event()
        measures.warm(client)
        player = threading.Thread(target=play, args=(LOADS[chosen.load], client, over))
        player.start()
        try:
            time.sleep(2)  # until all streams are open
            for kind, path in (("flamegraph", PICTURE), ("raw", folder / "stacks.txt")):
                say(f"sampling {SECONDS} s for {path.name}")
                record(service.process.popen.pid, kind, path)
        finally:
            over.set()
            player.join()
        print("\n".join(table((folder / "stacks.txt").read_text())))
    print(f"wrote {PICTURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
