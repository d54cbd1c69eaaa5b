"""NDJSON as those read it for whom it is made: `curl -N` and httpx's `iter_lines`, real ones, line by line.

Each is a context that yields the lines; to leave it is to hang up. A wait that is too long ends the lines, or raises.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import httpx

from .client import DEADLINE

Lines = Iterator[str]
ACCEPT = {"Accept": "application/x-ndjson"}
JSON = {"Content-Type": "application/json"}


@contextmanager
def curl(port: int, target: str, body: object = None, *, options: tuple[str, ...] = ("--http1.1",)) -> Iterator[Lines]:
    """Ask by GET, or POST the body."""
    command = ["curl", "-sS", "-N", "--max-time", str(DEADLINE), *options, f"http://127.0.0.1:{port}{target}"]
    headers = ACCEPT
    if body is not None:
        headers = ACCEPT | JSON
        command += ["--data-binary", json.dumps(body)]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            yield (line.decode().removesuffix("\n") for line in process.stdout)
        finally:
            process.terminate()


@contextmanager
def by_httpx(port: int, target: str, body: object = None) -> Iterator[Lines]:
    """Ask by GET, or POST the body."""
    method, url = ("GET" if body is None else "POST"), f"http://127.0.0.1:{port}{target}"
    with (
        httpx.Client(timeout=DEADLINE, trust_env=False) as client,
        client.stream(method, url, json=body, headers=ACCEPT) as response,
    ):
        assert response.status_code == 200, response.read()
        yield response.iter_lines()


Reader = Callable[..., AbstractContextManager[Lines]]
READERS: dict[str, Reader] = {
    "curl": curl,
    "curl over HTTP 1.0": partial(curl, options=("--http1.0",)),
    "curl that can unzip": partial(curl, options=("--http1.1", "--compressed")),
    "httpx": by_httpx,
}
