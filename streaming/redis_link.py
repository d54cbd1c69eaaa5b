"""A connection to Redis: commands out in one piece, their replies back in order; made anew when it is next needed.

redis-py connects (its URLs, TLS, passwords), hiredis packs and reads. What redis-py does for each reply takes 8 us, as
much as all else that a token costs; here a reply takes 1 us. It knows no command; what is asked is for those who call.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hiredis import HiredisError, ProtocolError, Reader, pack_command
from redis.asyncio.connection import Connection, ConnectionPool, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

TIMEOUT = 2.0  # how long a reply may take, seconds; Redis itself answers within a millisecond
READ = 2**16
# What waits for how long is seen to here; RESP 2, whatever redis-py's default is.
OPTIONS: dict[str, Any] = {"protocol": 2, "socket_timeout": None, "socket_connect_timeout": None}
NO_URL = (
    "Expected `redis://[[user]:password@]host[:port][/number]`, `rediss://` the same or `unix://[:password@]/path`;"
    " what is special in a password is to be quoted (`@` as %40, `/` as %2F)"
)
Argument = bytes | str | int
Command = tuple[Argument, ...]
_pack: Callable[[Any], bytes] = pack_command


class Down(Exception):
    """Redis cannot be reached or does not answer in time; what was asked of it may have been done, or not."""


class Refused(Exception):
    """Redis' answer to a command that it did not carry out: given back among the replies, not raised."""

    @property
    def code(self) -> str:
        """Its first word: `OOM`, `READONLY`, `ERR`."""
        return str(self).partition(" ")[0]


class _Asked(NamedTuple):
    data: bytes
    number: int  # of commands
    within: float
    epoch: int | None
    done: asyncio.Future[list[Any]]


class Link:
    """One connection. Any number may call at once: what is asked in the meantime goes out together. Close it.

    `epoch` counts how often it was made. `calls` counts commands.
    """

    def __init__(self, url: str) -> None:
        """Take redis-py's URLs. Raises ValueError where it is none."""
        self._pool = _pool(url)
        self._connection: Any = None
        self._reader: Any = None
        self._waiting: list[_Asked] = []
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self.epoch = 0
        self.calls = 0

    async def call(self, *commands: Command, within: float = TIMEOUT, epoch: int | None = None) -> list[Any]:
        """Send commands, in one piece; return their replies, of which some may be Refused.

        Raises Down where there are none within so many seconds, where the connection is not, or no longer, that of
        `epoch`, or once it is closed.
        """
        if self._is_closed:
            raise Down("closed")
        loop = asyncio.get_running_loop()
        asked = _Asked(b"".join(map(_pack, commands)), len(commands), within, epoch, loop.create_future())
        self._waiting.append(asked)
        if self._task is None:
            self._task = loop.create_task(self._send(), name="redis")
        return await asked.done

    async def _send(self) -> None:
        """Send what is waiting, until nothing is."""
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                try:
                    async with asyncio.timeout(max(one.within for one in waiting)):
                        if self._has_broken:
                            self._drop()
                        if self._connection is None:
                            await self._connect()
                        going = [one for one in waiting if one.epoch in (None, self.epoch) and not one.done.done()]
                        replies = await self._exchange(going)
                except Exception as exc:  # of what redis-py may raise, there is no list
                    self._drop()
                    text = str(exc) if isinstance(exc, RedisError | HiredisError) else ""
                    _fail(waiting, Down(text or type(exc).__name__))
                except BaseException:
                    self._drop()
                    _fail(waiting, Down("closed"))
                    raise
                else:
                    place = 0
                    for one in going:
                        if not one.done.done():
                            one.done.set_result(replies[place : place + one.number])
                        place += one.number
                    _fail(waiting, Down("the connection is another"))
        finally:
            self._task = None

    async def _connect(self) -> None:
        connection = self._pool.make_connection()
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection, self._reader = connection, Reader(replyError=Refused)
        self.epoch += 1

    async def _exchange(self, going: Sequence[_Asked]) -> list[Any]:
        # By names with an underscore, as there are no others by which to have what redis-py has connected.
        read, write = self._connection._reader, self._connection._writer
        write.write(b"".join([one.data for one in going]))
        number = sum(one.number for one in going)
        self.calls += number
        replies: list[Any] = []
        while len(replies) < number:
            data = await read.read(READ)
            if not data:
                raise ConnectionResetError
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                replies.append(reply)
        if len(replies) > number:
            raise ProtocolError("more replies than commands")
        return replies

    @property
    def _has_broken(self) -> bool:
        """Whether the connection was closed while nothing was asked."""
        reader = self._connection and self._connection._reader
        return bool(reader and (reader.at_eof() or reader.exception()))

    def _drop(self) -> None:
        """Close the connection at once: what is still to come on it is no answer to what is asked next."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            if writer := connection._writer:
                writer.transport.abort()
            connection._reader = connection._writer = None

    async def close(self) -> None:
        self._is_closed = True
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        _fail(self._waiting, Down("closed"))
        self._drop()


def _pool(url: str) -> Any:
    """Return what makes connections. Raises ValueError, which repeats nothing of the URL: there is a password in it."""
    try:
        found: dict[str, Any] = dict(parse_url(url))
        kind = found.pop("connection_class", Connection)
        is_path = kind is UnixDomainSocketConnection
        if "path" not in found if is_path else "db" not in found and urlsplit(url).path.strip("/"):
            raise ValueError
        pool: Any = ConnectionPool(connection_class=kind, **{**found, **OPTIONS, "retry": Retry(NoBackoff(), 0)})
        pool.make_connection()  # it knows the options; nothing is connected by that
    except (ValueError, TypeError, RedisError):
        raise ValueError(NO_URL) from None
    return pool


def _fail(waiting: Sequence[_Asked], why: Down) -> None:
    for one in waiting:
        if not one.done.done():
            one.done.set_exception(why)


def address(url: str) -> str:
    """Return where a URL leads, without user and password. Raises ValueError where it is none."""
    found = _pool(url).connection_kwargs
    path = found.get("path")
    return f"{path or '{}:{}'.format(found.get('host', 'localhost'), found.get('port', 6379))}/{found.get('db', 0)}"
