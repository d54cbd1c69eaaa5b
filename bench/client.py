"""The load client (load.c) as a function: a load in, its counts out, a `Fault` where a text was not as it was sent.

It knows nothing of what is measured by it.
"""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relays import Running

LOAD_SECONDS = 60
SETTLE = 0.3  # what a relay still does after the last byte belongs to the stream
Counts = dict[str, Any]


class Fault(Exception):
    """A stream's text differed, or it was refused, cut or never ended."""


@dataclass(frozen=True)
class Load:
    """So many streams of so many tokens, so many at a time, the first ones spread over `ramp_ms`.

    `model` is the upstream's script (see upstream.c), asked for by POST on the relay's wire; with a `path` streams are
    followed by GET instead, after the event `last_event_id` if there is one.
    """

    tokens: int
    concurrent: int = 1
    streams: int = 0
    ramp_ms: int = 0
    model: str = ""
    path: str = ""
    last_event_id: str = ""

    def __str__(self) -> str:
        return f"{self.model or self.path} x {max(self.streams, self.concurrent)}"

    def command(self, tool: Path, relay: Running, wire: str) -> list[str]:
        body = json.dumps({"model": self.model, "message": "x"}) if self.model else ""
        asked = ["-p", str(relay.port), "-u", self.path or relay.relay.paths[wire], "-b", body]
        asked += ["-l", self.last_event_id] if self.last_event_id else []
        load = ["-e", str(self.tokens), "-c", str(self.concurrent), "-n", str(self.streams), "-r", str(self.ramp_ms)]
        watched = [option for pid in relay.process.pids() for option in ("-w", str(pid))]
        return [str(tool), *asked, *load, "-t", str(LOAD_SECONDS), *watched]


@dataclass(frozen=True)
class Client:
    """The load client against one relay, on one wire."""

    tool: Path
    relay: Running
    wire: str

    def play(self, load: Load, *options: str) -> Counts:
        """Play a load to its end."""
        command = [*load.command(self.tool, self.relay, self.wire), *options]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LOAD_SECONDS + 20, start_new_session=True
        )
        return checked(done.returncode, done.stdout, done.stderr, load)

    def hold(self, load: Load) -> tuple[int, Counts]:
        """Hold streams open that fall silent; the relay's resident memory meanwhile, in bytes, and the counts."""
        command, pipe = [*load.command(self.tool, self.relay, self.wire), "-o"], subprocess.PIPE
        with subprocess.Popen(command, text=True, start_new_session=True, stdin=pipe, stdout=pipe, stderr=pipe) as tool:
            assert tool.stdout is not None
            try:
                out = tool.stdout.readline()
                time.sleep(SETTLE)
                taken = self.relay.process.rss_bytes()
                _, err = tool.communicate("", timeout=LOAD_SECONDS)
            finally:
                tool.kill()
        return taken, checked(tool.returncode, out, err, load)


def checked(code: int, out: str, err: str, load: Load) -> Counts:
    if code:
        raise Fault(f"{load}: {err.strip()}; {out.strip()}")
    counts: Counts = json.loads(out)
    return counts
