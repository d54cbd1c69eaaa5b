"""uvicorn's WebSocket protocol with what it lacks: the end of a handshake that is refused, and a bound of what is owed.

Like server.py it overrides what uvicorn does not promise; tests/test_server.py notices when that changes.
"""

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_OWED = 64 * 1024  # what may wait for a client only because it asked for it, by pings, bytes


class SocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket."""

    _owed = 0  # what it made us write while it did not read, bytes

    def data_received(self, data: bytes) -> None:
        """Take what came, and hang up on who floods us with pings without ever reading what they are answered."""
        before = self.transport.get_write_buffer_size()
        super().data_received(data)
        if not self.handshake_initiated:
            self._refuse()
            return
        owed = self.transport.get_write_buffer_size() - before
        self._owed = self._owed + owed if before else owed
        if self._owed > MAX_OWED:
            self.transport.abort()

    def _refuse(self) -> None:
        """Send what the library says of a head that it does not take: uvicorn would neither do so nor hang up."""
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.handshake_complete = self.close_sent = True
        self.transport.close()
