"""The machine under the benchmark: what it is, how many files it lets a process open, what others use of it meanwhile.

Linux only: it reads /proc.
"""

import os
import platform
import re
import resource
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from relays import ROOT, nginx

LIBRARIES = (
    *("starlette", "sse-starlette", "uvicorn", "uvloop", "httptools", "msgspec"),
    *("openai", "anthropic", "httpx2", "pydantic", "langchain-core", "langgraph"),
)
SPARE_FILES = 200
OPEN_FILES = 20_000 + SPARE_FILES  # for 10,000 streams: a relay holds two ends of each


def about() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "cpu": cpu_model(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "nginx": nginx_version(),
        "libraries": {name: found for name in LIBRARIES if (found := version_of(name))},
        "commit": commit(),
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


def nginx_version() -> str | None:
    if not (command := nginx()):
        return None
    told = subprocess.run([command, "-v"], capture_output=True, text=True).stderr
    found = re.search(r"nginx/(\S+)", told)
    return found and found[1]


def commit() -> str | None:
    """What is measured; `-dirty` where files differ from it other than the shown results."""
    if not shutil.which("git"):
        return None
    others = [":!bench/results.*"]
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    if head.returncode:
        return None
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", *others], cwd=ROOT).returncode
    return head.stdout.strip() + ("-dirty" if changed else "")


def raise_open_file_limit() -> int:
    """Let this process and those it starts open OPEN_FILES, or as many as is allowed; return how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
        except (ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return hard
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))
    return OPEN_FILES


def streams_within(files: int) -> int:
    """How many streams a relay may hold with so many open files, in hundreds."""
    return (files - SPARE_FILES) // 2 // 100 * 100


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
