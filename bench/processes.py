"""The benchmark's processes: started, waited for, read (CPU, memory) and stopped, each by its own pid.

It does not know what is measured. Linux only: it reads /proc and the kernel's per-process CPU clocks.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

START_WITHIN = 30.0
STOP_WITHIN = 5.0


class ProcessError(Exception):
    """A process of the benchmark did not do what it is for."""


class Process:
    """A child in its own session, so that Ctrl-C reaches the benchmark alone, which then stops it."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path | None = None) -> None:
        self.log = log
        self.began = time.perf_counter()
        with log.open("wb") as out:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=cwd, start_new_session=True
            )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        pids = self.pids()
        self.popen.terminate()
        try:
            self.popen.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for pid in pids[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pids(self) -> list[int]:
        """Itself first, then its children and theirs."""
        found = [self.popen.pid] if self.popen.poll() is None else []
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return found

    def cpu_seconds(self) -> float:
        """User and system time so far: utime + stime of /proc/PID/stat, but in ns instead of ticks of 10 ms."""
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids())

    def rss_bytes(self) -> int:
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids())
        return pages * os.sysconf("SC_PAGE_SIZE")

    def wait_until_quiet(self) -> None:
        """Return when it uses less than a tenth of a core."""
        spent, now, until = -1.0, self.cpu_seconds(), time.monotonic() + START_WITHIN
        while now > spent + 0.02:
            if time.monotonic() > until:
                raise ProcessError(f"{self.popen.args!r} is still busy after {START_WITHIN} s")
            time.sleep(0.2)
            spent, now = now, self.cpu_seconds()

    def wait_for_first_byte(self, port: int, path: str = "/healthz") -> float:
        """Seconds from the start of the process to the first byte it answers."""
        while time.perf_counter() < self.began + START_WITHIN:
            if self.popen.poll() is not None:
                raise ProcessError(f"{self.popen.args!r} ended with {self.popen.returncode}: {self.last_words()}")
            if (head := ask(port, path)) is not None:
                seconds = time.perf_counter() - self.began
                if b" 200 " not in head:
                    raise ProcessError(f"GET {path}: {head!r}")
                return seconds
            time.sleep(0.001)
        raise ProcessError(f"{self.popen.args!r} did not answer within {START_WITHIN} s: {self.last_words()}")

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


def ask(port: int, path: str) -> bytes | None:
    """The first bytes of the answer to a GET; None while nobody listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=START_WITHIN) as s:
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return s.recv(4096)
    except ConnectionError:
        return None


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
