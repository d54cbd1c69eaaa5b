"""A raw client: an HTTP/1.1 request over a socket of its own, and the server-sent events that come back.

It hides nothing: what arrives is kept as bytes, each wait has a deadline, and it can hang up at any moment.
"""

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlencode

DEADLINE = 20.0


class Event(NamedTuple):
    name: str
    id: str
    data: Any


class Client:
    """One request. Use it in a `with`; leaving it hangs up."""

    def __init__(
        self,
        port: int,
        method: str,
        target: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        http: str = "1.1",
        receive_buffer: int = 0,
    ) -> None:
        self.raw = b""
        self._taken = 0
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE)
        lines = [f"{method} {target} HTTP/{http}", f"Host: 127.0.0.1:{port}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        try:
            self.socket.connect(("127.0.0.1", port))
            self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.hang_up()

    def hang_up(self, *, reset: bool = False) -> float:
        """Close the connection (by RST where `reset`); return the monotonic time of it."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        at = time.monotonic()
        self.socket.close()
        return at

    def send(self, data: bytes) -> None:
        """Send more of the request, as it is."""
        self.socket.sendall(data)

    def _more(self) -> bool:
        data = self.socket.recv(65536)
        self.raw += data
        return bool(data)

    def head(self) -> tuple[int, dict[str, str]]:
        """Return the status and the headers, names in lower case."""
        while b"\r\n\r\n" not in self.raw:
            if not self._more():
                raise ConnectionError(f"no response, only {self.raw!r}")
        first, *lines = self.raw.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split()[1]), headers

    @property
    def body(self) -> bytes:
        """The body as far as it has come, its chunks put together."""
        _, headers = self.head()  # first: it may read
        _, _, rest = self.raw.partition(b"\r\n\r\n")
        if "chunked" not in headers.get("transfer-encoding", ""):
            return rest
        whole = b""
        while b"\r\n" in rest:
            size, _, rest = rest.partition(b"\r\n")
            whole += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        return whole

    @property
    def whole(self) -> bool:
        """Whether the body came to its proper end, not to a cut."""
        length = self.head()[1].get("content-length")
        return self.raw.endswith(b"\r\n0\r\n\r\n") if length is None else len(self.body) == int(length)

    def read(self) -> bytes:
        """Return the whole body. Raises ConnectionError where it was cut."""
        self.head()
        while not self.whole:
            if not self._more():
                raise ConnectionError(f"cut after {self.body[-200:]!r}")
        return self.body

    def take(self, size: int) -> bytes:
        """Return just `size` bytes of the response, head and all, or fewer where it ends before; leave the rest."""
        while len(self.raw) < size and (data := self.socket.recv(size - len(self.raw))):
            self.raw += data
        return self.raw

    def read_on(self, enough: Callable[[bytes], bool]) -> bytes:
        """Read until the body is enough, and return it. Raises ConnectionError where it ends before."""
        while not enough(self.body):
            if not self._more():
                raise ConnectionError(f"ended after {self.body[-200:]!r}")
        return self.body

    def next(self) -> Event | None:
        """Return the next event, None at the end of the body."""
        while (found := self._parse()) is None:
            if self.whole or not self._more():
                return None
        return found

    def _parse(self) -> Event | None:
        self.head()
        while b"\n\n" in (rest := self.body[self._taken :]):
            block = rest.partition(b"\n\n")[0]
            self._taken += len(block) + 2
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
            if "data" in fields:
                return Event(fields["event"], fields.get("id", ""), json.loads(fields["data"]))
        return None

    def line(self) -> Any:
        """Return the next NDJSON line that is no ping."""
        while True:
            while b"\n" not in (rest := self.body[self._taken :]):
                if self.whole or not self._more():
                    raise ConnectionError(f"no further line after {self.body[-200:]!r}")
            found = rest.partition(b"\n")[0]
            self._taken += len(found) + 1
            if found:
                return json.loads(found)

    def __iter__(self) -> Iterator[Event]:
        while event := self.next():
            yield event

    def until(self, name: str) -> Event:
        """Return the next event of this name. Raises ConnectionError where the stream ends before."""
        for event in self:
            if event.name == name:
                return event
        raise ConnectionError(f"no {name} in {self.body[-300:]!r}")


def get(port: int, path: str = "/chat/stream", headers: dict[str, str] | None = None, **query: object) -> Client:
    """GET with the query's values."""
    return Client(port, "GET", path + ("?" + urlencode(query) if query else ""), headers=headers)


def post(port: int, path: str = "/chat/stream", headers: dict[str, str] | None = None, **body: object) -> Client:
    """POST the keyword arguments as a JSON object."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    return Client(port, "POST", path, headers=headers, body=json.dumps(body).encode())


def delete(port: int, path: str, headers: dict[str, str] | None = None) -> Client:
    return Client(port, "DELETE", path, headers=headers)


def text(events: list[Event]) -> str:
    """Return the answer's text."""
    return "".join(event.data["token"] for event in events if event.name == "token")
