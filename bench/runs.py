"""What is measured of runs that more than one request follows, and of the service beside what blocks it.

Only the service has them. As in measures.py a function returns its numbers by key and raises `Fault` for a wrong text.
"""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from client import LOAD_SECONDS, SETTLE, Client, Counts, Fault, Load
from measures import Crowd, Numbers, Pace

LONG_ANSWER = 100_000  # tokens: 2 MB of text, and nearly what a run may hold
SEEN = 50_000  # the event after which a client comes back to it; the first event is no token
# What blocks beside the streams that are measured: see graphs.py.
BLOCKING = {
    "asleep": ["langgraph/asleep"] * 4 + ["langgraph/asleep_wrongly"],
    "talking": ["langchain/talking"],
    "computing": ["langgraph/computing"],
}


def ask(client: Client, method: str, path: str, body: Any = None) -> Any:
    """One request and its answer, both JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", client.relay.port, timeout=LOAD_SECONDS)
    connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse().read()
    connection.close()
    return json.loads(answer or "null")


def new_run(client: Client, model: str, **options: float) -> str:
    """Start a run and return the path of its events."""
    return str(ask(client, "POST", "/runs", {"model": model, "message": "x", **options})["events_url"])


def stop_run(client: Client, events_path: str) -> None:
    """Stop a run, which must not have ended by itself."""
    path = events_path.replace("/events", "")
    status = ask(client, "GET", path)
    if status["state"] != "running":
        raise Fault(f"a run that was to block all the time has ended: {status['ending']}")
    ask(client, "DELETE", path)


def resume(client: Client, times: int) -> Numbers:
    """How long a client that comes back to a long answer waits for the last byte: of all of it, of its second half."""
    path = new_run(client, f"{client.wire}/n{LONG_ANSWER}-i0-f0", linger=LOAD_SECONDS)
    client.play(Load(LONG_ANSWER, path=path))
    seen, rest = f"{path.split('/')[2]}-{SEEN}", LONG_ANSWER + 1 - SEEN
    whole = client.play(Load(LONG_ANSWER, streams=times, path=path), "-k")
    half = client.play(Load(rest, streams=times, path=path, last_event_id=seen), "-k")
    together = client.play(Load(LONG_ANSWER, 100, path=path), "-k")
    return {
        "resume_ms": whole["last_ms"]["p50"],
        "resume_max_ms": whole["last_ms"]["max"],
        "resume_half_ms": half["last_ms"]["p50"],
        "resume_100_ms": together["last_ms"]["max"],
    }


def follow(client: Client, crowd: Crowd, stalled: int) -> tuple[Counts, float]:
    """Let viewers follow one run at 10 tokens/s, some of whom read nothing; the readers' counts, memory in bytes."""
    before = client.relay.process.rss_bytes()
    readers = crowd.all - stalled
    path = new_run(client, f"{client.wire}/n{crowd.tokens}-i100-f2000")
    with stalled_viewers(client, path, stalled):
        counts = client.play(Load(crowd.tokens, readers, ramp_ms=min(readers, 1000), path=path))
        return counts, client.relay.process.rss_bytes() - before


def viewers(client: Client, crowd: Crowd) -> Numbers:
    """One run, many viewers: what a delivered token costs, and how late it comes."""
    counts, _ = follow(client, crowd, stalled=0)
    return {
        "all_cpu_us": counts["steady"]["cpu_us"] / counts["steady"]["tokens"],
        "all_age_p99_ms": counts["age_us"]["p99"] / 1e3,
    }


def stalled(client: Client, crowd: Crowd) -> Numbers:
    """The same while some take nothing, and the memory; then that of such, on an answer that fills every buffer."""
    counts, taken = follow(client, crowd, crowd.stalled)
    read_by_all, read_by_one = (long_answer(client, stalled) for stalled in (0, crowd.stalled))
    return {
        "some_cpu_us": counts["steady"]["cpu_us"] / counts["steady"]["tokens"],
        "some_age_p99_ms": counts["age_us"]["p99"] / 1e3,
        "viewer_kb": taken / 1024 / crowd.all,
        "stalled_kb": max(0, read_by_one - read_by_all) / 1024 / crowd.stalled,
    }


def long_answer(client: Client, stalled: int) -> int:
    """The memory, in bytes, of a long answer that one viewer reads and so many do not."""
    path = new_run(client, f"{client.wire}/n{LONG_ANSWER}-i0-f500")
    before = client.relay.process.rss_bytes()
    with stalled_viewers(client, path, stalled):
        client.play(Load(LONG_ANSWER, path=path))
        time.sleep(SETTLE)
        return client.relay.process.rss_bytes() - before


@contextmanager
def stalled_viewers(client: Client, path: str, count: int) -> Iterator[None]:
    """Ask for a stream so many times and read nothing of it; the least that a socket may hold makes that felt soon."""
    with ExitStack() as stack:
        for _ in range(count):
            viewer = stack.enter_context(socket.socket())
            viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            viewer.connect(("127.0.0.1", client.relay.port))
            viewer.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        yield


def beside(client: Client, pace: Pace, name: str) -> Numbers:
    """How late tokens come while an operator's graphs or chains block (BLOCKING); in a process of its own each."""
    paths = [new_run(client, model, linger=LOAD_SECONDS) for model in BLOCKING[name]]
    time.sleep(SETTLE)  # what the first run of a graph imports is not what is measured
    counts = client.play(pace.load)
    for path in paths:
        stop_run(client, path)
    return {f"{name}_age_p50_ms": counts["age_us"]["p50"] / 1e3, f"{name}_age_p99_ms": counts["age_us"]["p99"] / 1e3}
