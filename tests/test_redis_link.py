"""The connection to Redis: each who calls gets its own replies, or Down, and never another's.

Against a real Redis, by every way that leads to one; and against a few lines that do what Redis does not do when asked:
stop in the midst of a reply, talk nonsense. Whatever comes of a URL, it never tells its password.
"""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import hiredis
import pytest

from streaming.redis_link import Down, Link, Refused, address

from .asgi import run
from .client import DEADLINE
from .redis_server import Redis
from .upstream import closed_port

SECRET = "hunter2 /:@?#%"
IN_URL = quote(SECRET, safe="")
Test = Callable[[Link], Coroutine[Any, Any, object]]


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """What was there before is not looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is logged by whomever, it is no secret; and asyncio has nothing to complain of."""
    caplog.set_level(logging.DEBUG)
    yield
    gc.collect()  # a task whose exception nobody took says so when it goes
    assert "hunter2" not in caplog.text
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@asynccontextmanager
async def linked(url: str) -> AsyncIterator[Link]:
    """A link, of which nothing is left behind."""
    before = asyncio.all_tasks()
    link = Link(url)
    yield link
    await link.close()
    assert asyncio.all_tasks() == before


def with_link(url: str, test: Test) -> None:
    async def main() -> None:
        async with linked(url) as link:
            await test(link)

    run(main())


async def down(asked: Awaitable[Any]) -> str:
    """Return why there is no reply."""
    with pytest.raises(Down) as raised:
        await asked
    told = str(raised.value)
    assert told
    assert "hunter2" not in f"{told} {raised.value!r} {raised.value.__cause__!r} {raised.value.__context__!r}"
    return told


# --- URLs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Redis]:
    with Redis(password=SECRET, tls=True) as server:
        yield server


@pytest.mark.parametrize("where", ["TCP", "a Unix socket", "TLS"])
def test_every_kind_of_url_leads_to_redis_with_its_password_and_number(where: str, guarded: Redis) -> None:
    """TLS is checked against the certificate that goes along."""
    url = {
        "TCP": f"redis://:{IN_URL}@127.0.0.1:{guarded.port}/3",
        "a Unix socket": f"{guarded.socket_url}?db=3",
        "TLS": f"{guarded.url.replace('?', '/3?')}",
    }[where]

    async def test(link: Link) -> None:
        assert await link.call(("SET", where, "ä"), ("GET", where)) == [b"OK", "ä".encode()]

    with_link(url, test)
    assert guarded.ask("EVAL", "redis.call('SELECT', 3) return redis.call('GET', ARGV[1])", 0, where) == "ä"
    assert guarded.ask("GET", where) is None


def test_a_user_is_told_from_a_password(guarded: Redis) -> None:
    guarded.ask("ACL", "SETUSER", "ann", "on", f">{SECRET}2", "+@all", "~*")
    at = f"127.0.0.1:{guarded.port}"

    async def test(link: Link) -> None:
        assert await link.call(("ACL", "WHOAMI")) == [b"ann"]

    with_link(f"redis://ann:{IN_URL}2@{at}", test)
    with_link(f"redis://{at}?username=ann&password={IN_URL}2", test)


@pytest.mark.parametrize("path", ["redis://:{}x@127.0.0.1:{}", "redis://ann:{}x@127.0.0.1:{}", "unix://:{}x@{}"])
def test_a_wrong_password_is_as_good_as_no_redis(path: str, guarded: Redis) -> None:
    where = guarded.socket_url.rpartition("@")[2] if path.startswith("unix") else guarded.port

    async def test(link: Link) -> None:
        for _ in range(2):
            assert "password" in await down(link.call(("PING",)))
        assert link.epoch == 0

    with_link(path.format(IN_URL, where), test)


def test_without_a_password_where_one_is_wanted_there_is_no_redis_either(guarded: Redis) -> None:
    async def test(link: Link) -> None:
        assert "Authentication required" in await down(link.call(("PING",)))

    with_link(f"redis://127.0.0.1:{guarded.port}", test)


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(guarded: Redis) -> None:
    async def test(link: Link) -> None:
        assert "certificate" in (await down(link.call(("PING",)))).lower()

    with_link(guarded.url.partition("?")[0], test)


def test_where_nobody_listens_there_is_no_redis() -> None:
    async def test(link: Link) -> None:
        for _ in range(2):
            assert "111" in await down(link.call(("PING",)))  # ECONNREFUSED

    with closed_port() as closed:
        with_link(f"redis://:{IN_URL}@127.0.0.1:{closed.getsockname()[1]}", test)
    with_link(f"unix://:{IN_URL}@/nonexistent/socket", lambda link: down(link.call(("PING",))))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "redis",
        "127.0.0.1:6379",
        "http://",
        "http://:hunter2@host:6379",
        "redis://host:notaport",
        "redis://host:99999",
        "redis://:hunter2@host:-1",
        "redis://:hunter2/x@host:6379",  # `/` is to be quoted: it is no port that stands before it
        "redis://:hunter2\u2100@host",  # which is normalised to a/c
        "redis://:hunter2@[::1",
        "redis://:hunter2@host?db=x",
        "redis://:hunter2@host/notanumber",
        "redis://:p%40hunter2@host:1/2?x=y",
        "redis://:hunter2@host?ssl_cert_reqs=none",  # of no TLS
        "rediss://:hunter2@host?ssl_cert_reqs=hunter2",
        "redis://:hunter2@host?max_connections=-1",
        "redis://:hunter2@host?parser_class=x",
        "unix://",
        "unix://:hunter2@",
    ],
)
def test_what_is_no_url_is_a_value_error_that_does_not_repeat_it(url: str) -> None:
    for make in (Link, address):
        with pytest.raises(ValueError, match=r"^Expected `redis://") as raised:
            make(url)
        assert "hunter2" not in f"{raised.value} {raised.value.__cause__}"
        assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("credential_provider", "AttributeError"),
        ("redis_connect_func", "TypeError"),
        ("encoding", "LookupError"),
    ],
)
def test_an_option_that_leads_nowhere_is_as_good_as_no_redis(option: str, told: str, redis: Redis) -> None:
    """What redis-py takes of who writes a program, it takes of a URL too, and fails with it."""

    async def test(link: Link) -> None:
        assert await down(link.call(("PING",))) == told

    with_link(f"{redis.url}?{option}=hunter2", test)


@pytest.mark.parametrize(
    ("url", "leads_to"),
    [
        ("redis://", "localhost:6379/0"),
        ("redis://host", "host:6379/0"),
        ("redis://host/", "host:6379/0"),
        ("redis://ann:hunter2@host:1/2", "host:1/2"),
        ("rediss://:hunter2@host:1?db=7", "host:1/7"),
        ("redis://:hunter2@[::1]:5/1?socket_keepalive=yes&client_name=x", "::1:5/1"),
        ("unix:///run/redis.sock", "/run/redis.sock/0"),
        ("unix://:hunter2@/run/redis%20.sock?db=3", "/run/redis .sock/3"),
    ],
)
def test_where_a_url_leads_is_told_without_its_secrets(url: str, leads_to: str) -> None:
    assert address(url) == leads_to
    Link(url)


# --- replies ----------------------------------------------------------------------------------------------------------


def test_many_callers_get_their_own_replies_in_order_by_one_connection(redis: Redis) -> None:
    """Of all lengths, and of more than is read or written at once."""
    long = "x" * 300_000

    async def ask(link: Link, number: int) -> None:
        for turn in range(4):
            words = [f"{number}.{turn}.{place}{long[: (number % 7 == turn) * 10**number]}" for place in range(3)]
            assert await link.call(*[("ECHO", word) for word in words]) == [word.encode() for word in words]
            await asyncio.sleep(0 if number % 2 else 0.001)

    async def test(link: Link) -> None:
        await asyncio.gather(*[ask(link, number) for number in range(200)])
        assert (link.epoch, link.calls) == (1, 200 * 4 * 3)
        name = ("CLIENT", "ID")
        assert len({(await link.call(name))[0] for _ in range(3)}) == 1

    with_link(redis.url, test)


def test_what_is_asked_meanwhile_goes_out_together(redis: Redis) -> None:
    """Which is what makes the many cheap: Redis is read once for all of them."""

    async def test(link: Link) -> None:
        await link.call(("PING",))
        before = reads(redis)
        await asyncio.gather(*[link.call(("PING",)) for _ in range(1000)])
        assert reads(redis) - before < 20

    with_link(redis.url, test)


def reads(redis: Redis) -> int:
    told = dict(line.split(":") for line in redis.ask("INFO", "stats").splitlines() if ":" in line)
    return int(told["total_reads_processed"])


def test_what_redis_refuses_is_a_reply_among_the_others(redis: Redis) -> None:
    async def test(link: Link) -> None:
        asked = [("SET", "text", "a"), ("XADD", "text", "*", "a", "b"), ("NONSENSE",), ("GET", "text"), ("GET", "none")]
        replies = await link.call(*asked)
        assert [reply.code if isinstance(reply, Refused) else reply for reply in replies] == [
            b"OK",
            "WRONGTYPE",
            "ERR",
            b"a",
            None,
        ]
        (nested,) = await link.call(("EVAL", "return {1, {'a', {}}, redis.error_reply('OOM no room')}", "0"))
        assert (nested[:2], nested[2].code, link.epoch) == ([1, [b"a", []]], "OOM", 1)

    with_link(redis.url, test)


def test_arguments_are_bytes_texts_and_numbers_as_they_are(redis: Redis) -> None:
    async def test(link: Link) -> None:
        for value in (b"\x00\r\n$5\r\n\xff", "ä\r\n\u2028👍", 2**63, -1, "", b""):
            expected = value if isinstance(value, bytes) else str(value).encode()
            assert await link.call(("SET", "a", value), ("GET", "a")) == [b"OK", expected]

    with_link(redis.url, test)


def test_who_asks_what_cannot_be_sent_fails_alone(redis: Redis) -> None:
    """As half of a character, which has no bytes: the others have their replies, by the same connection."""

    async def test(link: Link) -> None:
        others = [asyncio.ensure_future(link.call(("ECHO", str(number)))) for number in range(3)]
        with pytest.raises(UnicodeEncodeError):
            await link.call(("ECHO", "\ud83d"))
        assert await asyncio.gather(*others) == [[b"0"], [b"1"], [b"2"]]
        assert link.epoch == 1

    with_link(redis.url, test)


def test_who_is_cancelled_shifts_nobody_elses_replies(redis: Redis) -> None:
    """Before it is sent, while it is on its way, and both of these of every other caller."""

    async def test(link: Link) -> None:
        for turns in range(6):
            calls = [asyncio.ensure_future(link.call(("ECHO", f"{number}"), ("GET", "x"))) for number in range(20)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
            replies = await asyncio.gather(*calls[1::2])
            assert replies == [[f"{number}".encode(), None] for number in range(1, 20, 2)]
            assert all(call.cancelled() for call in calls[::2] if not (call.done() and not call.cancelled()))
        assert link.epoch == 1
        assert await link.call(("ECHO", "a")) == [b"a"]

    with_link(redis.url, test)


def test_a_call_by_nobody_is_asked_of_nobody(redis: Redis) -> None:
    """Whoever is cancelled before it is sent has asked for nothing."""

    async def test(link: Link) -> None:
        call = asyncio.ensure_future(link.call(("INCR", "asked")))
        await asyncio.sleep(0)
        call.cancel()
        assert await link.call(("GET", "asked")) == [None]

    with_link(redis.url, test)


# --- Redis away -------------------------------------------------------------------------------------------------------


def test_a_redis_that_stands_still_is_down_for_all_who_wait_and_its_late_replies_are_nobodys(redis: Redis) -> None:
    async def test(link: Link) -> None:
        await link.call(("PING",))
        redis.pause()
        try:
            first = asyncio.ensure_future(link.call(("ECHO", "old"), within=0.2))
            await asyncio.sleep(0)
            others = [asyncio.ensure_future(link.call(("ECHO", f"old {n}"), within=0.1)) for n in range(3)]
            for call in (first, *others):
                assert "Timeout" in await down(call)
        finally:
            redis.go_on()
        assert await link.call(("ECHO", "new")) == [b"new"]
        assert link.epoch > 1

    with_link(redis.url, test)


def test_a_redis_that_dies_is_down_for_all_who_wait_and_found_again_when_it_is_back() -> None:
    async def test(link: Link) -> None:
        assert await link.call(("PING",)) == [b"PONG"]
        waiting = asyncio.ensure_future(link.call(("BLPOP", "nothing", 0), within=10))
        await asyncio.sleep(0)
        behind = asyncio.ensure_future(link.call(("PING",)))
        await asyncio.to_thread(redis.kill)
        await down(waiting)
        await down(behind)
        await down(link.call(("PING",)))
        await asyncio.to_thread(redis.start)
        assert (await link.call(("PING",)), link.epoch) == ([b"PONG"], 2)

    with Redis() as redis:
        with_link(redis.url, test)


def test_a_reply_may_take_as_long_as_is_said(redis: Redis) -> None:
    async def test(link: Link) -> None:
        assert await link.call(("BLPOP", "nothing", "0.2"), within=5) == [None]
        await down(link.call(("BLPOP", "nothing", 5), within=0.05))

    with_link(redis.url, test)


def test_an_epoch_is_that_of_one_connection(redis: Redis) -> None:
    async def test(link: Link) -> None:
        assert link.epoch == 0
        await link.call(("PING",))
        assert await link.call(("PING",), epoch=1) == [b"PONG"]
        (me,) = await link.call(("CLIENT", "ID"))
        redis.ask("CLIENT", "KILL", "ID", me)
        stale = asyncio.ensure_future(link.call(("INCR", "stale"), epoch=1))
        await down(stale)
        fresh, old = await asyncio.gather(link.call(("GET", "stale")), down(link.call(("INCR", "stale"), epoch=1)))
        assert (fresh, link.epoch) == ([None], 2)
        assert "another" in old
        assert await link.call(("PING",), epoch=2) == [b"PONG"]
        await down(link.call(("PING",), epoch=3))

    with_link(redis.url, test)


# --- a Redis that is none ---------------------------------------------------------------------------------------------


class Speaker:
    """Answers each connection's greeting as Redis would; then `says` to each command what is next, as it is."""

    def __init__(self, *says: bytes | None) -> None:
        self.says = [*says]
        self.heard: list[Any] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader()
        try:
            while data := await reader.read(2**16):
                commands.feed(data)
                while (command := commands.gets()) is not False:
                    if command[0] == b"CLIENT":
                        writer.write(b"+OK\r\n")
                        continue
                    self.heard.append(command)
                    say = self.says.pop(0)
                    if say is None:
                        return
                    writer.write(say)
        finally:
            writer.close()


def with_speaker(*says: bytes | None, test: Callable[[Link, Speaker], Coroutine[Any, Any, object]]) -> None:
    """Each of what it says is said once; None closes the connection."""

    async def main() -> None:
        speaker = Speaker(*says)
        server = await asyncio.start_server(speaker.serve, "127.0.0.1", 0)
        async with server:
            before = asyncio.all_tasks()
            link = Link(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await test(link, speaker)
            await link.close()
            while asyncio.all_tasks() - before:  # the server sees how its connections end
                await asyncio.sleep(0.001)  # what is looked at tells nobody when it changes; `run` has the deadline
        assert speaker.says == []

    run(main())


NONSENSE = {
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a length that is none": b"$x\r\n",
    "a reply that is longer than it says": b"$1\r\nabc\r\n",
    "nothing but zeros": bytes(100),
    "more replies than commands": b"+OK\r\n+OK\r\n+OK\r\n",
}


@pytest.mark.parametrize("says", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_as_good_as_no_redis_and_the_next_connection_is_another(says: bytes) -> None:
    async def test(link: Link, speaker: Speaker) -> None:
        one, other = (asyncio.ensure_future(link.call(("GET", name), within=1)) for name in "ab")
        assert len([await down(call) for call in (one, other)]) == 2
        assert await link.call(("GET", "c"), within=1) == [b"3"]
        assert link.epoch == 2
        assert speaker.heard[-1] == [b"GET", b"c"]

    with_speaker(says, b"", b"$1\r\n3\r\n", test=test)


@pytest.mark.parametrize("part", [b"", b"$5\r\nab", b"*2\r\n$1\r\na\r\n", b"+O"])
def test_a_connection_that_closes_in_the_midst_of_a_reply_gives_none(part: bytes) -> None:
    async def test(link: Link, speaker: Speaker) -> None:
        call = asyncio.ensure_future(link.call(("GET", "a"), ("GET", "b"), within=5))
        behind = asyncio.ensure_future(link.call(("GET", "c"), within=5))
        assert await down(call) == await down(behind)
        assert await link.call(("GET", "d"), within=1) == [b"4"]

    with_speaker(b"$1\r\n1\r\n" + part, None, b"$1\r\n4\r\n", test=test)


def test_a_reply_comes_in_whatever_pieces() -> None:
    async def test(link: Link, speaker: Speaker) -> None:
        replies = await link.call(("A",), ("B",), ("C",), ("D",), within=1)
        assert [*replies[:2], str(replies[2]), replies[3]] == [b"hel\r\n", [1, None], "OOM full", b"OK"]

    with_speaker(b"$5\r\nhe", b"l\r\n\r\n*2\r\n:1\r", b"\n$-1\r\n-OOM full\r", b"\n+OK\r\n", test=test)


def test_a_stall_in_the_midst_of_a_reply_is_over_when_it_was_to_be() -> None:
    async def test(link: Link, speaker: Speaker) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await down(link.call(("GET", "a"), within=0.1))
        assert 0.09 < loop.time() - began < 1.5
        assert await link.call(("GET", "b")) == [b"2"]

    with_speaker(b"$10\r\nabc", b"$1\r\n2\r\n", test=test)


def test_a_server_that_takes_a_connection_and_no_more_is_no_redis() -> None:
    """It may stand still before it has greeted."""

    async def main() -> None:
        gone = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            gone.set()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        async with server, linked(f"redis://:{IN_URL}@127.0.0.1:{server.sockets[0].getsockname()[1]}") as link:
            await down(link.call(("PING",), within=0.1))
            assert link.epoch == 0
            await asyncio.wait_for(gone.wait(), DEADLINE)

    run(main())


# --- the end ----------------------------------------------------------------------------------------------------------


def test_closing_tells_who_waits_and_leaves_nothing(redis: Redis) -> None:
    async def main() -> None:
        clients, tasks = len(redis.ask("CLIENT", "LIST").splitlines()), asyncio.all_tasks()
        for turns in (0, 1, 2, 5, None):
            link = Link(redis.url)
            if turns is None:
                await link.call(("PING",))
            first = asyncio.ensure_future(link.call(("BLPOP", "nothing", 0), within=10))
            for _ in range(turns or 3):
                await asyncio.sleep(0)
            second = asyncio.ensure_future(link.call(("PING",)))
            await asyncio.sleep(0)
            await link.close()
            assert {await down(first), await down(second)} == {"closed"}
            await link.close()
            assert asyncio.all_tasks() == tasks
        while len(redis.ask("CLIENT", "LIST").splitlines()) > clients:
            await asyncio.sleep(0.01)  # the same

    run(main())


def test_a_link_that_is_closed_stays_so(redis: Redis) -> None:
    async def main() -> None:
        tasks = asyncio.all_tasks()
        link = Link(redis.url)
        await link.close()
        assert await down(link.call(("PING",))) == "closed"
        assert (link.epoch, asyncio.all_tasks()) == (0, tasks)

    run(main())


def test_a_link_that_was_never_used_needs_no_closing(redis: Redis) -> None:
    Link(redis.url)
    gc.collect()
