"""The least a relay in Python can do: pipe raw bytes to the upstream and back, for where nginx is not installed.

python bench/pipe.py PORT UPSTREAM_PORT
"""

import asyncio
import contextlib
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import cast

run = import_module("uvloop" if find_spec("uvloop") else "asyncio").run


class End(asyncio.Protocol):
    """One end of a pipe; what it reads goes to its peer, and a full peer stops the reading."""

    transport: asyncio.Transport
    peer: "End"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.peer.transport.write(data)

    def pause_writing(self) -> None:
        self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if hasattr(self, "peer"):
            self.peer.transport.close()


class ClientEnd(End):
    """The end that a client opened: what it says before the upstream is connected waits.

    (Pausing the reading here would not do: uvloop starts to read after `connection_made`.)
    """

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.connecting = asyncio.ensure_future(self.connect())

    def data_received(self, data: bytes) -> None:
        if hasattr(self, "peer"):
            super().data_received(data)
        else:
            self.early += data

    async def connect(self) -> None:
        try:
            _, upstream = await asyncio.get_running_loop().create_connection(End, "127.0.0.1", self.upstream_port)
        except OSError:
            self.transport.close()
            return
        self.peer, upstream.peer = upstream, self
        if self.transport.is_closing():
            upstream.transport.close()
        else:
            upstream.transport.write(self.early)


async def main(port: int, upstream_port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ClientEnd(upstream_port), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        run(main(int(sys.argv[1]), int(sys.argv[2])))
