"""Replicas in one process that share a real Redis: what one of them begins, the others find, follow, and can stop.

Their clocks are quicker than in service, so that nobody waits. What processes do when they die or are cut off is
another module's matter.
"""

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from service import create_service
from streaming import claims, forever, leases, mirrors, publisher, replication, wishes
from streaming.admission import Capacity
from streaming.entries import FENCE, HEAD
from streaming.errors import Fault, ServiceError, SettingsError
from streaming.events import Cancelled, Error, Event, Token
from streaming.failover import Candidate, Failover
from streaming.followed import Followed
from streaming.log import follow
from streaming.mirror import Mirror
from streaming.publisher import run_key
from streaming.replication import Replication
from streaming.run import Run
from streaming.runs import Runs

from .asgi import run
from .client import DEADLINE
from .conftest import FOREIGN, ROOT
from .redis_server import Redis
from .test_publisher import until, words
from .test_run import LIMITS, REQUEST, Plays
from .upstream import closed_port

KEEP = 30.0
BEAT = 0.05
UNAVAILABLE = ("unavailable", "A run of another replica cannot be reached just now.")
NOT_FOUND = ("not_found", "There is no such run, or it was over and is no longer kept.")


@pytest.fixture(scope="module")
def shared() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture
def redis(shared: Redis) -> Iterator[Redis]:
    shared.ask("FLUSHALL")
    yield shared
    shared.ask("CONFIG", "SET", "maxmemory", 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replication, "BEAT", BEAT)
    monkeypatch.setattr(leases, "LEASE", 1.0)
    for module in (publisher, mirrors):
        monkeypatch.setattr(module, "RETRY", 0.02)
    monkeypatch.setattr(forever, "PAUSE", 0.02)


class Replica:
    """A replica, and the runs it has."""

    def __init__(self, url: str, keep: float = KEEP, capacity: Capacity | None = None) -> None:
        self.replication = Replication(url, keep)
        self.secrets: list[bytes] = []
        self.replication.on_secret = self.secrets.append
        self.runs = Runs(keep, 2**20, capacity, elsewhere=self.replication)

    @property
    def id(self) -> str:
        return self.replication.id

    async def create(self, linger: float = LIMITS.linger, max_viewers: int = 10, **asked: Any) -> Followed:
        async def load() -> Any:
            return Plays(1000.0)

        limits = replace(LIMITS, max_run_bytes=2**30, linger=linger, max_viewers=max_viewers)
        return await self.runs.create(Failover([Candidate("test", REQUEST, load)]), limits, **asked)

    async def begin(self, **asked: Any) -> Run:
        """Begin a run that says what it is made to say."""
        made = await self.create(**asked)
        assert isinstance(made, Run)
        self.runs.begin(made)
        return made

    async def find(self, made: Followed, owner: str | None = None) -> Mirror:
        found = await self.runs.find(made.id, owner)
        assert isinstance(found, Mirror)
        return found

    async def close(self) -> None:
        await self.runs.close()
        await self.replication.close()


@asynccontextmanager
async def replicas(url: str, number: int = 2, **options: Any) -> AsyncIterator[list[Replica]]:
    """Replicas that have found Redis."""
    started = [Replica(url, **options) for _ in range(number)]
    for replica in started:
        replica.replication.start()
    await until(lambda: all(replica.replication.is_up for replica in started))
    yield started
    for replica in started:
        await replica.close()


def shares(redis: Redis, test: Callable[..., Coroutine[Any, Any, object]], number: int = 2, **options: Any) -> None:
    """Test with so many replicas, of which nothing is left behind."""

    async def main() -> None:
        before = asyncio.all_tasks()
        async with replicas(redis.url, number, **options) as started:
            await test(*started)
        await until(lambda: asyncio.all_tasks() == before)

    run(main())


async def refused(asked: Coroutine[Any, Any, object]) -> tuple[str, str]:
    with pytest.raises(Fault) as raised:
        await asked
    return raised.value.code, raised.value.text


async def over(made: Run) -> None:
    made.end("requested")
    await made.wait()


async def same(mirror: Mirror, made: Run) -> None:
    """Return once a mirror has all that was said; what it has is that."""
    await until(lambda: len(mirror.log) == len(made.log))
    assert mirror.log.read(0) == made.log.read(0)
    assert mirror.terminal == made.terminal


# --- finding ----------------------------------------------------------------------------------------------------------


def test_what_one_begins_the_other_finds_and_follows_to_its_end(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin(owner="ann", about={"x": "\u2028"})
        made.log.append(words(3))
        mirror = await b.find(made, "ann")
        heard: list[Event] = []

        async def follow_it() -> None:
            with mirror.viewing():
                async for batch in follow(mirror.log, 0):
                    heard.extend(event for _, event in batch)

        following = asyncio.ensure_future(follow_it())
        for word in words(20):
            made.log.append([word])
            await asyncio.sleep(0.001)
        await same(mirror, made)
        await over(made)
        await following
        await same(mirror, made)
        assert "".join(event.text for event in heard) == made.log.text(Token)
        assert heard[-1] == made.terminal
        assert (mirror.owner, mirror.about, mirror.replica, mirror.answer.usage) == (
            "ann",
            {"x": "\u2028"},
            a.id,
            made.answer.usage,
        )

    shares(redis, test)


def test_a_run_is_found_while_it_goes_on_and_when_it_is_over_and_its_owner_does_not_look_elsewhere(
    redis: Redis,
) -> None:
    async def test(a: Replica, b: Replica, c: Replica) -> None:
        made = await a.begin()
        assert await a.runs.find(made.id, None) is made
        first = await b.find(made)
        await over(made)
        await same(first, made)
        await same(await c.find(made), made)
        assert await b.find(made) is first

    shares(redis, test, 3)


def test_who_has_just_heard_of_a_run_finds_it(redis: Redis) -> None:
    """Its owner may not have sent it yet."""

    async def test(a: Replica, b: Replica) -> None:
        for _ in range(20):
            made = await a.begin()
            assert (await b.find(made)).id == made.id

    shares(redis, test)


def test_who_has_begun_a_run_may_wait_until_others_can_find_it(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(a: Replica, b: Replica) -> None:
        for _ in range(20):
            made = await a.begin()
            await a.runs.settle(made)
            assert redis.ask("EXISTS", run_key(made.id)) == 1
        await b.runs.settle(await b.find(made))  # where it was begun is not here
        monkeypatch.setattr(replication, "SOON", 0.1)
        monkeypatch.setattr(replication, "FLUSH", 0.1)
        redis.pause()
        try:
            await a.runs.settle(await a.begin())  # if it could be soon
        finally:
            redis.go_on()

    shares(redis, test)


def test_a_run_of_another_owner_is_not_found(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin(owner="ann")
        for owner in ("bob", ""):
            assert await refused(b.runs.find(made.id, owner)) == NOT_FOUND
        for known in ("ann", None):
            assert await b.find(made, known)

    shares(redis, test)


def test_a_run_that_nobody_has_is_not_found(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        assert await b.replication.find("0" * 32) is None
        assert await refused(b.runs.find("f" * 32, None)) == NOT_FOUND

    shares(redis, test)


MALFORMED = [
    "",
    "0" * 31,
    "0" * 33,
    "0" * 31 + "G",
    "A" * 32,
    "0" * 32 + "\n",
    "٣" * 32,
    "\ud83d" * 32,
    "*",
    "x" * 10**5,
]


def test_what_cannot_be_an_id_is_not_found_and_nobody_is_asked(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        for _ in range(2):
            before = b.replication.mirrors._bulk.calls
            for run_id in MALFORMED:
                assert await b.replication.find(run_id) is None
                assert await refused(b.runs.find(run_id, None)) == NOT_FOUND
            assert b.replication.mirrors._bulk.calls == before
            await b.replication._link.close()  # nor where Redis is away
            await until(lambda: not b.replication.is_up)

    shares(redis, test)


def test_those_who_look_for_a_run_at_once_find_one_mirror(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        looking = [asyncio.ensure_future(b.find(made)) for _ in range(20)]
        await asyncio.sleep(0)
        looking[0].cancel()  # who began to look, and left
        found = await asyncio.gather(*looking[1:])
        assert [*b.replication.mirrors.all] == [found[0]]
        assert len(set(found)) == 1
        assert looking[0].cancelled()

    shares(redis, test)


def test_a_search_that_fails_after_all_have_left_bothers_nobody(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    async def test(a: Replica, b: Replica) -> None:
        looking = asyncio.ensure_future(b.replication.find("0" * 32))
        await until(lambda: b.replication.mirrors._finding)
        looking.cancel()
        await b.replication.mirrors._bulk.close()
        await until(lambda: not b.replication.mirrors._finding)

    shares(redis, test)
    assert "never retrieved" not in caplog.text


def test_a_long_run_is_caught_up_with_while_it_goes_on(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "ENTRY", 3000)
    monkeypatch.setattr(mirrors, "AT_ONCE", 20_000)

    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        made.log.append(words(5000))
        await a.replication.publisher.flush()
        assert redis.ask("XLEN", run_key(made.id)) > 200
        looking = asyncio.ensure_future(b.find(made))
        for word in words(200):
            made.log.append([word])
            await asyncio.sleep(0)
        mirror = await looking
        assert len(mirror.log) > 5000  # all that was there when it was looked for
        await same(mirror, made)
        made.log.append([Token("!")])
        await same(mirror, made)

    shares(redis, test)


def test_what_is_said_is_heard_elsewhere_at_once(redis: Redis) -> None:
    """Also where the reader was waiting for other things when the run was found."""

    async def test(a: Replica, b: Replica) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(3):
            made = await a.begin()
            mirror = await b.find(made)
            for word in words(5):
                made.log.append([word])
                said = loop.time()
                await same(mirror, made)
                assert loop.time() - said < mirrors.BLOCK / 2

    shares(redis, test)


def test_a_run_that_waits_in_line_is_found_there(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        first, second, third = [await a.begin() for _ in range(3)]
        mirror = await b.find(third)
        await until(lambda: mirror.position)
        assert (mirror.waits, mirror.position, mirror.has_asked) == (True, 2, False)
        await over(second)
        await until(lambda: mirror.position == 1)
        await over(first)
        await until(lambda: mirror.has_asked)
        assert (mirror.waits, mirror.position, mirror.answer.provider) == (False, 0, "test")
        await same(mirror, third)

    shares(redis, test, capacity=Capacity(1, 0, 10, 0))


# --- what is in Redis and is none of ours -----------------------------------------------------------------------------


def put_nothing(redis: Redis, made: Run) -> None:
    redis.ask("XDEL", run_key(made.id), HEAD)


def put_another(redis: Redis, made: Run) -> None:
    redis.ask("RENAME", run_key(made.id), run_key("1" * 32))
    redis.ask("COPY", run_key("1" * 32), run_key("2" * 32))


def put_rubbish(redis: Redis, made: Run) -> None:
    redis.ask("DEL", run_key(made.id))
    redis.ask("XADD", run_key(made.id), HEAD, "head", '{"replica": 5}')


def put_what_it_likes(redis: Redis, made: Run) -> None:
    redis.ask("DEL", run_key(made.id))
    redis.ask("XADD", run_key(made.id), "*", "sensor", "17")


def put_elsewhere(redis: Redis, made: Run) -> None:
    """The head stands where some event would."""
    (_, head), *_ = redis.ask("XRANGE", run_key(made.id), "-", "+")
    redis.ask("DEL", run_key(made.id))
    redis.ask("XADD", run_key(made.id), "7-0", *head)


@pytest.mark.parametrize("spoil", [put_nothing, put_another, put_rubbish, put_what_it_likes, put_elsewhere])
def test_a_stream_that_does_not_begin_as_a_run_is_none(spoil: Callable[[Redis, Run], None], redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        await a.replication.publisher.flush()
        spoil(redis, made)
        for run_id in (made.id, "1" * 32, "2" * 32):
            if redis.ask("EXISTS", run_key(run_id)):
                assert await refused(b.runs.find(run_id, None)) == NOT_FOUND
        await same(await b.find(other := await a.begin()), other)

    shares(redis, test)


def test_a_key_that_is_no_stream_is_a_run_that_cannot_be_reached(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        redis.ask("SET", run_key("0" * 32), "something else")
        assert await refused(b.runs.find("0" * 32, None)) == UNAVAILABLE

    shares(redis, test)


RUBBISH: dict[str, list[Any]] = {
    "fields of another": ["sensor", "17"],
    "no number": ["after", "x", "events", "[]"],
    "no JSON": ["after", 0, "events", "["],
    "no list": ["after", 0, "events", "17"],
    "no kind": ["after", 0, "events", '[["nobody",{}]]'],
    "no event": ["after", 0, "events", '[["token",[]]]'],
    "depths": ["after", 0, "events", "[" * 5000],
    "bytes": ["after", 0, "events", b"\xff\x00"],
    "nothing": ["after", 0, "events", "[]"],
    "a gap": ["after", 500, "events", '["a"]'],
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_in_a_stream_ends_its_mirror_and_nobody_elses(
    rubbish: list[Any], redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Who follows it there is told so, who looks for it later finds nothing, and at its owner nobody notices."""

    async def test(a: Replica, b: Replica, c: Replica) -> None:
        spoiled, other = await a.begin(), await a.begin()
        mirror, others = await b.find(spoiled), await b.find(other)
        await same(mirror, spoiled)
        with mirror.viewing():
            redis.ask("XADD", run_key(spoiled.id), "400-0", *rubbish)
            await until(lambda: mirror.log.closed)
            assert isinstance(mirror.terminal, Error)
            assert mirror.terminal.code == "run_lost"
        assert await refused(c.runs.find(spoiled.id)) == NOT_FOUND
        other.log.append(words(3))
        spoiled.log.append([Token("a")])
        await same(others, other)
        await over(other)
        await same(others, other)
        assert not spoiled.log.closed

    shares(redis, test, 3)
    assert caplog.text.count("cannot be read") == 1
    assert "internal error" not in caplog.text


def test_rubbish_in_the_midst_of_a_long_stream_is_read_once(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "ENTRY", 1000)

    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        made.log.append(words(200))
        await a.replication.publisher.flush()
        assert redis.ask("XLEN", run_key(made.id)) > mirrors.FIRST
        for place in range(401, 450):
            redis.ask("XADD", run_key(made.id), f"{place}-0", "sensor", "18")
        before = b.replication.mirrors._bulk.calls
        assert await refused(b.runs.find(made.id)) == NOT_FOUND
        assert b.replication.mirrors._bulk.calls - before < 10

    shares(redis, test)


def test_a_key_that_becomes_somebody_elses_holds_up_no_other_mirror(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        spoiled, other = await a.begin(), await a.begin()
        mirror, others = await b.find(spoiled), await b.find(other)
        await same(mirror, spoiled)
        await same(others, other)
        redis.ask("SET", run_key(spoiled.id), "something else")
        other.log.append(words(3))
        await same(others, other)
        redis.ask("DEL", run_key(spoiled.id))
        spoiled.log.append(words(3))
        await same(await b.find(spoiled), spoiled)

    shares(redis, test)


def test_what_a_replica_is_told_may_be_rubbish(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        inbox = f"sidestream:to:{a.id}"
        wish = {"run": made.id, "replica": "r", "viewing": True, "linger": 1.0}
        for told in (
            "x",
            b"\xff",
            "[" * 5000,
            "17",
            "{}",
            json.dumps({**wish, "linger": "x"}),
            json.dumps({**wish, "stop": "now"}),
        ):
            redis.ask("XADD", inbox, "*", "told", told)
        redis.ask("XADD", inbox, "*", "sensor", 17, "b", "c")
        redis.ask("XADD", inbox, "*", "told", json.dumps({**wish, "run": "0" * 32, "stop": "requested"}))
        redis.ask("XADD", inbox, "*", "told", json.dumps(wish))
        await until(lambda: made.viewers == 1)
        assert (made.limits.linger, made.log.closed) == (LIMITS.linger, False)
        await same(await b.find(made), made)

    shares(redis, test)
    assert "internal error" not in caplog.text


# --- mirrors ----------------------------------------------------------------------------------------------------------


def test_a_mirror_that_nobody_follows_is_let_go_and_found_anew(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(a: Replica, b: Replica) -> None:
        followed, idle = await a.begin(), await a.begin()
        mirror, other = await b.find(followed), await b.find(idle)
        await same(other, idle)
        with mirror.viewing():
            monkeypatch.setattr(mirrors, "IDLE", 0.0)
            await until(lambda: list(b.replication.mirrors.all) == [mirror])
            monkeypatch.setattr(mirrors, "IDLE", 10.0)
            followed.log.append(words(3))
            await same(mirror, followed)
        again = await b.find(idle)
        assert again is not other
        idle.log.append(words(3))
        await same(again, idle)
        monkeypatch.setattr(mirrors, "IDLE", 0.0)
        await until(lambda: not list(b.replication.mirrors.all))

    shares(redis, test)


def test_a_mirror_that_is_asked_for_is_not_idle(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        mirror = await b.find(made)
        assert mirror.idle_since is not None
        first = mirror.idle_since
        b.replication.mirrors.drop_idle(first + mirrors.IDLE)
        assert await b.find(made) is mirror
        assert mirror.idle_since > first
        b.replication.mirrors.drop_idle(mirror.idle_since + mirrors.IDLE + 0.1)
        assert await b.find(made) is not mirror

    shares(redis, test)


def test_a_mirror_that_is_found_anew_is_the_one_that_is_read(redis: Redis) -> None:
    """Though it is let go while Redis stands still, and the reader waits for more of the old one."""

    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        old = await b.find(made)
        await same(old, made)
        redis.pause()
        try:
            b.replication.mirrors.drop(old)
            looking = asyncio.ensure_future(b.find(made))
            made.log.append(words(3))
            await asyncio.wait([looking], timeout=0.1)
        finally:
            redis.go_on()
        new = await looking
        for word in words(5):
            made.log.append([word])
            await asyncio.sleep(0.001)
        await same(new, made)
        assert list(b.replication.mirrors.all) == [new]
        assert len(old.log) < len(made.log)

    shares(redis, test)


def test_no_more_follow_a_mirror_than_may_follow_a_run(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin(max_viewers=1)
        mirror = await b.find(made)
        with mirror.viewing():
            with pytest.raises(ServiceError, match="1 viewers"), mirror.viewing():
                pass
            await until(lambda: made.viewers == 1)
        with mirror.viewing():
            pass

    shares(redis, test)


# --- what owners are told ---------------------------------------------------------------------------------------------


def test_who_follows_elsewhere_keeps_a_run_and_whoever_leaves_last_lets_it_go(redis: Redis) -> None:
    async def test(a: Replica, b: Replica, c: Replica) -> None:
        made = await a.begin(linger=0.6)
        one, other = await b.find(made), await c.find(made)
        loop = asyncio.get_running_loop()
        with one.viewing():
            with one.viewing(), other.viewing():
                await until(lambda: made.viewers == 2)  # replicas, that is
                then = loop.time() + 0.8
                await until(lambda: loop.time() > then)
            await until(lambda: made.viewers == 1)
            assert not made.log.closed
        await until(lambda: made.viewers == 0)
        await until(lambda: made.log.closed)
        assert made.terminal == Cancelled(reason="disconnected", usage=made.answer.usage)
        await same(one, made)

    shares(redis, test, 3)


def test_a_run_is_stopped_from_elsewhere_and_its_end_is_waited_for(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        mirror = await b.find(made)
        mirror.end("requested")
        await mirror.wait()
        assert made.terminal == mirror.terminal == Cancelled(reason="requested", usage=made.answer.usage)

    shares(redis, test)


def test_a_run_lingers_for_as_long_as_is_wanted_elsewhere(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin(linger=5.0)
        mirror = await b.find(made)
        mirror.linger_for(4.0)
        mirror.linger_for(70.0)
        await until(lambda: made.limits.linger == 70.0)
        with mirror.viewing():
            await until(lambda: made.viewers)

    shares(redis, test)


def test_who_asks_again_elsewhere_under_a_key_starts_the_linger_clock_anew(redis: Redis) -> None:
    """As at the owner: it will come to follow the run, and has as much time for that as who asked first."""

    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin(linger=1.0, key="k", asked=b"1")
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(2):
            assert (await b.create(linger=1.0, key="k", asked=b"1")).id == made.id
            asked = loop.time()
            await until(lambda asked=asked: loop.time() > asked + 0.6)
        assert loop.time() > began + 1.2
        assert not made.log.closed

    shares(redis, test)


def test_an_owner_is_told_once_and_not_with_every_beat(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        mirror = await b.find(made)
        with mirror.viewing():
            await until(lambda: made.viewers == 1)
            told = redis.ask("XLEN", inbox_of(a))
            loop = asyncio.get_running_loop()
            then = loop.time() + 6 * BEAT
            await until(lambda: loop.time() > then)
            assert redis.ask("XLEN", inbox_of(a)) == told

    shares(redis, test)


def inbox_of(replica: Replica) -> str:
    return f"sidestream:to:{replica.id}"


def test_a_run_that_has_as_many_viewers_as_it_may_have_hears_what_others_want(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin(max_viewers=1)
        mirror = await b.find(made)
        with made.viewing(), mirror.viewing():
            mirror.linger_for(5000.0)
            await until(lambda: made.limits.linger == 5000.0)
            assert made.viewers == 1
            mirror.end("requested")
            await mirror.wait()

    shares(redis, test)
    assert "internal error" not in caplog.text


def test_a_lease_that_is_gone_for_a_moment_is_no_death(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        mirror = await b.find(made)
        for place in range(6):
            await asyncio.sleep(BEAT * place / 6)  # wherever that is between two beats
            redis.ask("DEL", f"sidestream:replica:{a.id}")
            await until(lambda: redis.ask("EXISTS", f"sidestream:replica:{a.id}"))
            await until(lambda: not b.replication.leases._gone)  # it has looked since
        made.log.append(words(3))
        await same(mirror, made)
        assert b.replication.lost == 0

    shares(redis, test)


def test_the_viewers_of_a_replica_that_has_gone_are_gone(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        async with replicas(redis.url, 1) as (c,):
            mirror = await c.find(made)
            viewing = mirror.viewing()
            viewing.__enter__()
            await until(lambda: made.viewers == 1)
        await until(lambda: made.viewers == 0)
        viewing.__exit__(None, None, None)
        assert not made.log.closed

    shares(redis, test)


def test_a_run_whose_owner_has_gone_is_lost_for_all_alike(redis: Redis) -> None:
    async def test(b: Replica, c: Replica) -> None:
        a = Replica(redis.url)
        a.replication.start()
        await until(lambda: a.replication.is_up)
        made = await a.begin()
        made.log.append(words(3))
        mirrors_of = [await b.find(made), await c.find(made)]
        for mirror in mirrors_of:
            await same(mirror, made)
        for task in a.replication._tasks:  # it stands still, as a process does that is stopped
            task.cancel()
        redis.ask("DEL", f"sidestream:replica:{a.id}")
        for mirror in mirrors_of:
            await until(lambda mirror=mirror: mirror.log.closed)
            assert isinstance(mirror.terminal, Error)
            assert (mirror.terminal.code, mirror.terminal.retryable) == ("run_lost", True)
            assert mirror.log.read(0) == [*made.log.read(0), mirror.terminal]
        assert mirrors_of[0].terminal == mirrors_of[1].terminal
        made.log.append(words(3))  # it goes on for those who follow it there
        await until(lambda: a.replication.publisher.runs == [])
        assert redis.ask("XREVRANGE", run_key(made.id), "+", "-", "COUNT", 1)[0][0] == f"{FENCE}-0"
        assert not made.log.closed
        await a.close()

    shares(redis, test)


# --- keys and names ---------------------------------------------------------------------------------------------------


def test_a_key_that_two_claim_at_once_is_one_of_theirs(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        for number in range(3):
            runs = await asyncio.gather(
                *[one.create(key=f"k{number}", asked=b"1") for one in (a, b) for _ in range(3)], return_exceptions=True
            )
            made = [one for one in runs if isinstance(one, Run)]
            assert len({one.id for one in made}) == 1
            theirs = [one for one in runs if not isinstance(one, Run)]
            # Its run is not begun yet, and may never be: whoever asks at the other replica is to come again.
            assert all(isinstance(one, ServiceError) and one.code == "unavailable" for one in theirs)

    shares(redis, test)


def test_a_key_stands_for_its_run_at_all_replicas(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin(owner="ann", key="k", asked=b"1")
        assert (await b.create(owner="ann", key="k", asked=b"1")).id == made.id
        assert await b.runs.knows("ann", "k")
        assert not await b.runs.knows("bob", "k")
        assert (await refused(b.create(owner="ann", key="k", asked=b"2")))[0] == "conflict"
        assert isinstance(await b.create(owner="bob", key="k", asked=b"2"), Run)
        assert isinstance(await b.create(owner="an", key="nk", asked=b"2"), Run)
        await over(made)
        assert (await b.create(owner="ann", key="k", asked=b"1")).id == made.id
        assert "ann" not in "".join(key for key in redis.ask("KEYS", "*"))

    shares(redis, test)


def test_a_claim_lasts_until_its_run_begins_then_as_long_as_that(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.create(key="k", asked=b"1")
        (key,) = redis.ask("KEYS", "sidestream:key:*")
        assert 0 < redis.ask("PTTL", key) <= 1000 * claims.CLAIM
        assert isinstance(made, Run)
        a.runs.begin(made)
        await a.replication.publisher.flush()
        longest = a.replication.publisher.longest(made)
        assert longest - 5000 < redis.ask("PTTL", key) <= longest
        await over(made)
        await a.replication.publisher.flush()
        assert 1000 * KEEP - 5000 < redis.ask("PTTL", key) <= 1000 * KEEP

    shares(redis, test)


def test_a_key_whose_run_is_refused_is_free_again(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.create(key="k", asked=b"1")
        a.runs.drain()
        assert isinstance(made, Run)
        with pytest.raises(ServiceError, match="shutting down"):
            a.runs.begin(made)
        again = await a.create(key="k", asked=b"2")  # at once, by the same replica: with another body
        assert isinstance(again, Run)
        a.replication.release(again)
        await until(lambda: not redis.ask("KEYS", "sidestream:key:*"))
        assert isinstance(await b.create(key="k", asked=b"3"), Run)

    shares(redis, test)


def test_a_key_is_let_go_by_whoever_holds_it_alone(redis: Redis) -> None:
    """It may have run out meanwhile, and stand for another's run."""

    async def test(a: Replica, b: Replica) -> None:
        made = await a.create(key="k", asked=b"1")
        (key,) = redis.ask("KEYS", "sidestream:key:*")
        redis.ask("SET", key, f"{'0' * 32}:31")
        assert isinstance(made, Run)
        a.replication.release(made)
        a.replication.release(made)
        await until(lambda: not a.replication.claims._releases)
        assert redis.ask("GET", key) == f"{'0' * 32}:31"

    shares(redis, test)


def test_a_claim_that_is_cancelled_leaves_the_key_to_others(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        for turns in range(5):
            claiming = asyncio.ensure_future(a.create(key=f"k{turns}", asked=b"1"))
            for _ in range(turns):
                await asyncio.sleep(0)
            claiming.cancel()
            await asyncio.wait([claiming])
        async with asyncio.timeout(claims.CLAIM / 2):
            await until(lambda: not redis.ask("KEYS", "sidestream:key:*"))
        assert isinstance(await b.create(key="k3", asked=b"2"), Run)

    shares(redis, test)


@pytest.mark.parametrize("value", ["", "x", "x:y", f"{'0' * 32}:xyz", b"\xff", f"{'0' * 32}:31:32", f"{'0' * 32}:"])
def test_what_a_key_holds_may_be_rubbish(value: Any, redis: Redis) -> None:
    """It is nothing then, or a run that cannot be found: no bug of whoever asks."""

    async def test(a: Replica, b: Replica) -> None:
        await a.create(owner="ann", key="k", asked=b"1")
        (key,) = redis.ask("KEYS", "sidestream:key:*")
        redis.ask("SET", key, value)
        told = ""
        try:
            made = await b.create(owner="ann", key="k", asked=b"1")
        except Fault as fault:
            told = fault.code
        else:
            assert isinstance(made, Run)
        assert told in ("", "conflict", "unavailable")
        await b.runs.knows("ann", "other")

    shares(redis, test)


def test_the_newest_run_of_a_name_is_found_at_all_replicas(redis: Redis) -> None:
    async def test(a: Replica, b: Replica, c: Replica) -> None:
        assert await c.runs.latest("chat", "ann") is None
        made: list[Run] = []
        for replica in (a, b, a, b):
            made.append(await replica.begin(owner="ann", name="chat"))
            await replica.replication.publisher.flush()
            for one in (a, b, c):
                found = await one.runs.latest("chat", "ann")
                assert found is not None
                assert found.id == made[-1].id
        assert await c.runs.latest("chat", "bob") is None
        assert await c.runs.latest("", "ann") is None

    shares(redis, test, 3)


# --- Redis away -------------------------------------------------------------------------------------------------------


def test_without_redis_nobody_is_held_up_and_nothing_of_others_is_known() -> None:
    async def main() -> None:
        with closed_port() as closed:
            one = Replica(f"redis://:hunter2@127.0.0.1:{closed.getsockname()[1]}")
            one.replication.start()
            made = await one.begin(key="k", asked=b"1", name="chat")
            await one.runs.settle(made)
            assert await one.runs.find(made.id) is made
            assert await one.create(key="k", asked=b"1") is made
            assert await refused(one.runs.find("0" * 32)) == UNAVAILABLE
            assert await one.replication.holder("", "other") is None
            assert await refused(one.replication.newest("", "chat")) == UNAVAILABLE
            assert await one.runs.latest("chat", "") is made
            await until(lambda: "111" in one.replication.reach().why)
            reach = one.replication.reach()
            assert (reach.redis, reach.behind_events, reach.mirrors) == ("down", 1, 0)
            loop = asyncio.get_running_loop()
            began = loop.time()
            await one.close()
            assert loop.time() - began < 1

    run(main())


def test_a_replica_tells_how_far_it_reaches(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        made.log.append(words(9))
        await a.replication.publisher.flush()
        mirror = await b.find(made)
        with mirror.viewing(), mirror.viewing():
            reach = b.replication.reach()
            assert (reach.redis, reach.why, reach.mirrors, reach.mirror_viewers) == ("up", "", 1, 2)
            assert (reach.sent_events, reach.lost_runs) == (0, 0)
            assert reach.commands > 0
        reach = a.replication.reach()
        assert (reach.behind_events, reach.behind_seconds, reach.sent_events, reach.mirrors) == (0, 0.0, 10, 0)
        assert 1 <= reach.sent_entries <= 2
        redis.ask("CONFIG", "SET", "maxmemory", 1)
        made.log.append(words(1))
        await until(lambda: a.replication.reach().redis == "full")
        loop = asyncio.get_running_loop()
        then = loop.time() + 4 * BEAT
        await until(lambda: a.replication.reach().redis != "full" or loop.time() > then)
        assert (a.replication.reach().redis, a.replication.reach().behind_events) == ("full", 1)
        redis.ask("CONFIG", "SET", "maxmemory", 0)
        await until(lambda: a.replication.reach().redis == "up" and not a.replication.reach().behind_events)

    shares(redis, test)


def test_a_wrong_password_is_told_and_no_secret_with_it(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        one = Replica(server.url.replace("hunter2", "hunter3"))
        one.replication.start()
        await until(lambda: "password" in one.replication.reach().why)
        loop = asyncio.get_running_loop()
        then = loop.time() + 6 * BEAT
        await until(lambda: loop.time() > then)
        assert await refused(one.runs.find("0" * 32)) == UNAVAILABLE
        for text in (one.replication.reach().why, one.replication.address, repr(one.replication.reach())):
            assert "hunter" not in text
        await one.close()

    caplog.set_level(logging.DEBUG)
    with Redis(password="hunter2") as server:
        run(main())
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1  # however often it was tried
    assert re.match(r"redis does not answer \(.*password.*\): runs go on", told[0])
    assert "hunter" not in caplog.text


def test_a_redis_that_refuses_is_as_good_as_none_and_its_word_is_told(redis: Redis) -> None:
    redis.ask("ACL", "SETUSER", "ann", "on", ">hunter2", "+@all", "-set", "~*")

    async def main() -> None:
        one = Replica(f"redis://ann:hunter2@127.0.0.1:{redis.port}")
        one.replication.start()
        await until(lambda: "NOPERM" in one.replication.reach().why)
        assert one.replication.reach().redis == "down"
        await one.close()

    run(main())


def test_what_redis_has_lost_is_found_there_again_though_nobody_says_a_word(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made, ended = await a.begin(key="k", asked=b"1", name="chat"), await a.begin()
        await over(ended)
        await a.replication.publisher.flush()
        redis.ask("FLUSHALL")
        await until(lambda: len(redis.ask("KEYS", "sidestream:run:*")) == 2)
        await same(await b.find(made), made)
        await same(await b.find(ended), ended)
        assert await b.replication.holder("", "k") == made.id
        assert await b.replication.newest("", "chat") == made.id
        assert (await refused(b.create(key="k", asked=b"2")))[0] == "conflict"

    shares(redis, test)


def test_all_replicas_share_a_secret_also_with_a_redis_that_has_lost_it(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        (secret,) = {*a.secrets, *b.secrets}
        assert len(secret) == 64
        redis.ask("FLUSHALL")
        redis.ask("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: redis.ask("GET", "sidestream:secret"))
        assert redis.ask("GET", "sidestream:secret") == secret.decode()
        async with replicas(redis.url, 1) as (c,):
            assert set(c.secrets) == {secret}

    shares(redis, test)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_the_end_of_a_replica_ends_its_runs_for_all_who_follow_them(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However soon before that it was said."""
    monkeypatch.setattr(publisher, "SHORTEST", 0.5)
    monkeypatch.setattr(publisher, "LONGEST", 0.5)

    async def test(b: Replica) -> None:
        async with replicas(redis.url, 1) as (a,):
            made = await a.begin()
            await a.replication.publisher.flush()
            mirror = await b.find(made)
        assert made.terminal == Cancelled(reason="draining", usage=made.answer.usage)
        await same(mirror, made)
        assert redis.ask("KEYS", "sidestream:replica:*") == [f"sidestream:replica:{b.id}"]

    shares(redis, test, 1)


@pytest.mark.parametrize("number", [0, 1], ids=["no runs", "a run"])
def test_a_replica_ends_also_when_redis_has_just_died(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not know of it yet: all the same it ends, and soon."""
    monkeypatch.setattr(replication, "BEAT", 100.0)
    monkeypatch.setattr(replication, "FLUSH", 0.2)

    async def test(a: Replica) -> None:
        runs = [await a.begin() for _ in range(number)]
        await a.replication.publisher.flush()
        await asyncio.to_thread(own.kill)
        await a.close()
        assert all(made.terminal for made in runs)

    with Redis() as own:
        shares(own, test, 1)


def test_a_replica_ends_also_when_redis_stands_still(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replication, "FLUSH", 0.1)

    async def test(a: Replica) -> None:
        await a.begin()
        await a.replication.publisher.flush()
        redis.pause()
        try:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await a.close()
            assert loop.time() - began < 2
        finally:
            redis.go_on()

    shares(redis, test, 1)


def test_a_replica_that_never_started_can_be_closed(redis: Redis) -> None:
    run(Replica(redis.url).close())


def test_those_who_follow_a_mirror_are_let_go_when_their_replica_ends(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        mirror = await b.find(made)
        with mirror.viewing():
            waiting = asyncio.ensure_future(b.replication.wait())
            b.runs.end()
            assert isinstance(mirror.terminal, Cancelled)
            assert (mirror.terminal.reason, made.log.closed) == ("draining", False)
        await waiting
        assert not (await b.find(made)).log.closed  # as it is

    shares(redis, test)


# --- bugs -------------------------------------------------------------------------------------------------------------


def test_whatever_goes_wrong_the_work_goes_on_and_its_words_are_not_logged(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In each of the tasks that last: by what it calls, which fails as nobody has foreseen, once or more."""
    words_of = "hun" + "ter2"
    failed: list[str] = []

    def fails(where: str) -> Callable[..., Any]:
        def fail(*args: object) -> Any:
            failed.append(where)
            raise ArithmeticError(words_of)

        return fail

    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        mirror = await b.find(made)
        await same(mirror, made)
        places: list[tuple[Any, str]] = [
            (b.replication.mirrors, "drop_idle"),  # by who beats
            (a.replication.wishes, "_find"),  # by who hears
            (publisher, "encode_batch"),  # by who sends
            (mirrors, "decode_batch"),  # by who reads
            (wishes, "inbox"),  # by who tells
        ]
        for thing, name in places:
            with monkeypatch.context() as patch:
                patch.setattr(thing, name, fails(name))
                with mirror.viewing():
                    made.log.append([Token(name)])
                    await until(lambda name=name: name in failed)
            made.log.append([Token("!")])
            await same(mirror, made)
            with mirror.viewing():
                await until(lambda: made.viewers == 1)
            await until(lambda: made.viewers == 0)

    shares(redis, test)
    assert {record.levelname for record in caplog.records if "ArithmeticError" in record.getMessage()} == {"ERROR"}
    assert words_of not in caplog.text


def test_a_run_that_is_over_and_forgotten_before_redis_is_back_is_lost_to_those_elsewhere() -> None:
    """Its owner lives, and has nothing more to tell."""

    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        mirror = await b.find(made)
        with mirror.viewing():
            await same(mirror, made)
            own.kill()
            await until(lambda: not a.replication.is_up)
            await over(made)
            await until(lambda: not a.replication.publisher.runs)
            own.start()
            await until(lambda: mirror.log.closed)
            assert isinstance(mirror.terminal, Error)
            assert mirror.terminal.code == "run_lost"

    with Redis(keeps=True) as own:
        shares(own, test, keep=0.0)


def test_who_followed_a_mirror_that_was_dropped_and_leaves_has_left(redis: Redis) -> None:
    async def test(a: Replica, b: Replica) -> None:
        made = await a.begin()
        mirror = await b.find(made)
        await same(mirror, made)
        with mirror.viewing():
            await until(lambda: made.viewers == 1)
            redis.ask("XADD", run_key(made.id), "400-0", "sensor", "17")
            await until(lambda: mirror.log.closed)
            calls = b.replication._link.calls
            await until(lambda: b.replication._link.calls > calls + 10)  # and beats go on
        await until(lambda: made.viewers == 0)

    shares(redis, test)


# --- settings ---------------------------------------------------------------------------------------------------------


def python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    line = [sys.executable, "-c", code]
    return subprocess.run(line, cwd=ROOT, env={**clean, **environ}, capture_output=True, text=True, timeout=DEADLINE)


def test_who_does_not_replicate_imports_nothing_of_it() -> None:
    code = """if True:
        import asyncio, sys, service
        app = service.create_app()
        async def main():
            async with app.router.lifespan_context(app):
                pass
        asyncio.run(main())
        print([name for name in sys.modules if "redis" in name or "replication" in name or "mirrors" in name])
    """
    ended = python(code)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("[]\n", "", 0)


@pytest.mark.parametrize("lacking", ["redis", "hiredis"])
def test_without_the_packages_it_is_a_bad_setting_named_with_the_others(lacking: str) -> None:
    code = f"import sys; sys.modules[{lacking!r}] = None; import service; service.app"
    ended = python(code, SIDESTREAM_REDIS_URL="redis://:hunter2@host", SIDESTREAM_RETRY_MS="x")
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        1,
        "",
        "Bad settings:\n"
        "  SIDESTREAM_RETRY_MS: Expected `int`, got `str`\n"
        "  redis_url: it needs the extra: sidestream[redis]\n",
    )


@pytest.mark.parametrize("url", ["http://:hunter2@host", "redis://:hunter2/x@host:1", "redis://:hunter2@host?x=y"])
def test_a_url_that_is_none_is_a_bad_setting_named_with_the_others_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        create_service({"SIDESTREAM_REDIS_URL": url, "SIDESTREAM_RETRY_MS": "x"})
    first, second = raised.value.problems
    assert first == "SIDESTREAM_RETRY_MS: Expected `int`, got `str`"
    assert second.startswith("SIDESTREAM_REDIS_URL: Expected `redis://")
    assert "hunter2" not in str(raised.value)
