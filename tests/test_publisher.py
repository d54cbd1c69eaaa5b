"""How a replica's runs get to Redis, a real one: all of it, in few entries, whatever Redis does meanwhile.

What a test says is appended to a run's log by hand; what Redis then holds is read as a mirror reads it, which takes no
gap and no event twice.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import pytest
from msgspec.structs import replace

from streaming import forever
from streaming import publisher as module
from streaming.entries import FENCE, HEAD, Batch, Entry, decode_batch, decode_head, encode_batch, seq_of
from streaming.events import Cancelled, Done, Error, Event, Start, Token, Usage
from streaming.mirror import Mirror
from streaming.publisher import LEAST, SLACK, Publisher, run_key
from streaming.redis_link import Command, Link
from streaming.run import Run

from .asgi import run
from .client import DEADLINE
from .redis_server import Redis
from .test_run import LIMITS, STOP, Plays, run_of

KEEP = 30.0
Value = TypeVar("Value")


@pytest.fixture(scope="module")
def shared() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY", 0.05)
    monkeypatch.setattr(forever, "PAUSE", 0.05)


@pytest.fixture
def redis(shared: Redis) -> Iterator[Redis]:
    shared.ask("FLUSHALL")
    yield shared
    shared.ask("CONFIG", "SET", "maxmemory", 0)


async def until(look: Callable[[], Value]) -> Value:
    """Return what `look` finds as soon as it finds something."""
    async with asyncio.timeout(DEADLINE):
        while not (found := look()):
            await asyncio.sleep(0.005)  # what is looked at tells nobody when it changes
    return found


class Sending(NamedTuple):
    publisher: Publisher
    link: Link
    fenced: list[Run]

    async def run(self, *, before: Sequence[Command] = (), behind_end: Sequence[Command] = (), **limits: float) -> Run:
        """Begin a run that says what it is made to say, and send it; return once Redis has its first event."""
        made = begun(**limits)
        self.publisher.begun(made, before, behind_end)
        await self.publisher.flush()
        return made


def begun(**limits: Any) -> Run:
    made = run_of(Plays(1000.0), replace(LIMITS, max_run_bytes=2**30, **limits))
    made.start()
    return made


@asynccontextmanager
async def sending(url: str, keep: float = KEEP) -> AsyncIterator[Sending]:
    """A publisher, of which nothing is left behind."""
    before = asyncio.all_tasks()
    link, fenced = Link(url), list[Run]()
    publisher = Publisher(link, "us", keep, fenced.append)
    publisher.start()
    yield Sending(publisher, link, fenced)
    for made in publisher.runs:
        await over(made)
    await publisher.close()
    await link.close()
    await until(lambda: asyncio.all_tasks() == before)


async def over(made: Run) -> None:
    made.end("requested")
    await made.wait()


async def said(sending: Sending, made: Run, *events: Event) -> None:
    made.log.append(events)
    await sending.publisher.flush()


def words(number: int) -> list[Event]:
    return [Token(f"{place} ") for place in range(number)]


def entries(redis: Redis, made: Run) -> list[Entry]:
    told = redis.ask("XRANGE", run_key(made.id), "-", "+")
    return [(entry_id.encode(), [field.encode() for field in fields]) for entry_id, fields in told]


def mirrored(redis: Redis, made: Run) -> Mirror:
    """Read all that Redis has of a run."""
    (head_id, fields), *batches = entries(redis, made)
    assert head_id == HEAD.encode()
    mirror = Mirror(decode_head(fields), lambda mirror: None)
    for entry_id, batch in batches:
        mirror.take(decode_batch(batch), seq_of(entry_id))
    return mirror


def is_there(redis: Redis, made: Run) -> bool:
    """Whether Redis has all that was said."""
    return bool(redis.ask("EXISTS", run_key(made.id))) and len(mirrored(redis, made).log) == len(made.log)


def check(redis: Redis, made: Run) -> None:
    """What Redis holds is the run: from its first event to its last, its head and how it stands."""
    mirror = mirrored(redis, made)
    assert mirror.log.read(0) == made.log.read(0)
    assert (mirror.terminal, mirror.replica) == (made.terminal, "us")
    told = mirror.answer
    assert (told.provider, told.model, mirror.has_asked) == (made.answer.provider, made.answer.model, made.has_asked)
    assert mirror.ttft_ms == made.ttft_ms
    if made.terminal:
        assert (told.usage, mirror.latency_ms) == (made.answer.usage, made.latency_ms)


def sends(redis: Redis, test: Callable[[Sending], Any], keep: float = KEEP) -> None:
    async def main() -> None:
        async with sending(redis.url, keep) as one:
            await test(one)

    run(main())


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_a_run_stands_in_redis_as_it_goes_on_and_when_it_is_over(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        made = await one.run()
        check(redis, made)
        for events in ([Token("Hel"), Token("lo")], [Token(" wor")], [Token("ld")]):
            await said(one, made, *events)
            check(redis, made)
        await over(made)
        await one.publisher.flush()
        check(redis, made)

    sends(redis, test)


def test_a_run_that_a_provider_makes_stands_in_redis_with_its_end(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        made = run_of(Plays([Token("Hello"), Usage(7, 1)], 0.01, [Token(" world")], STOP))
        made.start()
        one.publisher.begun(made)
        await made.wait()
        await one.publisher.flush()
        assert isinstance(made.terminal, Done)
        check(redis, made)

    sends(redis, test)


def test_what_a_run_is_stands_in_its_head(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        made = begun()
        made.owner, made.key, made.name, made.about = "ann", "k\u2028", "chat", {"metadata": {"\ud83d": [1, None]}}
        one.publisher.begun(made)
        await one.publisher.flush()
        mirror = mirrored(redis, made)
        assert (mirror.id, mirror.owner, mirror.key, mirror.name) == (made.id, "ann", "k\u2028", "chat")
        assert (mirror.about, mirror.created, mirror.limits) == (made.about, made.created, made.limits)

    sends(redis, test)


def test_what_is_said_at_once_goes_in_one_entry_and_one_command(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        made = await one.run()
        before, entries_before = redis.calls()["xadd"], one.publisher.entries
        for word in words(500):
            made.log.append([word])
        await one.publisher.flush()
        assert (redis.calls()["xadd"] - before, one.publisher.entries - entries_before) == (1, 1)
        assert one.publisher.sent == 501
        check(redis, made)

    sends(redis, test)


def test_what_many_runs_say_goes_in_one_piece(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        runs = [await one.run() for _ in range(50)]
        reads = redis_reads(redis)
        for made in runs:
            made.log.append([Token("a")])
        await one.publisher.flush()
        assert redis_reads(redis) - reads <= 3  # one of them is who asks for that
        for made in runs:
            check(redis, made)

    sends(redis, test)


def redis_reads(redis: Redis) -> int:
    told = dict(line.split(":") for line in redis.ask("INFO", "stats").splitlines() if ":" in line)
    return int(told["total_reads_processed"])


def test_a_quick_run_makes_few_entries_and_a_slow_one_is_sent_at_once(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        made = await one.run()
        for word in words(1000):
            made.log.append([word])
            await asyncio.sleep(0)
        await one.publisher.flush()
        assert one.publisher.entries < 200
        check(redis, made)
        before = one.publisher.entries
        for word in words(5):
            await said(one, made, word)
        assert one.publisher.entries - before == 5

    sends(redis, test)


def test_nothing_is_ever_trimmed_nor_deleted(redis: Redis) -> None:
    """Redis keeps the commands it was sent, where it is told that all are slow."""

    async def test(one: Sending) -> None:
        redis.ask("CONFIG", "SET", "slowlog-log-slower-than", 0)
        redis.ask("SLOWLOG", "RESET")
        made = await one.run(before=[("SET", "found", "a")])
        for word in words(30):
            await said(one, made, word)
        await over(made)
        await one.publisher.flush()
        sent = [words[:4] for _, _, _, words, *_ in redis.ask("SLOWLOG", "GET", 100) if words[0] != "SLOWLOG"]
        redis.ask("CONFIG", "SET", "slowlog-log-slower-than", -1)
        key = run_key(made.id)
        added = [["XADD", key, "NOMKSTREAM", f"{number}-0"] for number in range(1, 33)]
        begin = [["XADD", key, HEAD, "head"], ["PEXPIRE", key, str(one.publisher.longest(made))], ["SET", "found", "a"]]
        assert [words for words in sent[::-1] if words[0] in ("XADD", "PEXPIRE", "SET")] == [
            *begin,
            *added,
            ["PEXPIRE", key, str(one.publisher.kept)],
        ]
        assert {words[0] for words in sent} <= {"XADD", "PEXPIRE", "SET", "PING", "CLIENT", "CONFIG", "XREVRANGE"}
        check(redis, made)

    sends(redis, test)


def test_much_goes_in_pieces_and_nobody_waits_until_another_is_through(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENTRY", 20_000)
    monkeypatch.setattr(module, "PIECE", 60_000)

    async def test(one: Sending) -> None:
        large, small = await one.run(), await one.run()
        large.log.append([Token("x" * 900) for _ in range(1000)])
        small.log.append([Token("a")])
        await until(lambda: is_there(redis, small))
        assert not is_there(redis, large)
        await one.publisher.flush()
        sizes = [len(fields[3]) for _, fields in entries(redis, large)[1:]]
        assert max(sizes) <= 20_000
        assert len(sizes) < 60
        check(redis, large)
        large.log.append([Token("y" * 50_000), Token("z")])
        await one.publisher.flush()
        check(redis, large)

    sends(redis, test)


def test_no_more_goes_at_once_than_holds_up_nobody(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRY", 20_000)
    monkeypatch.setattr(module, "PIECE", 30_000)
    sizes: list[int] = []

    class Measured(Link):
        async def call(self, *commands: Command, **options: Any) -> list[Any]:
            sizes.append(sum(len(str(word)) for command in commands for word in command))
            return await super().call(*commands, **options)

    async def test(one: Sending) -> None:
        one.publisher._link = Measured(redis.url)
        runs = [await one.run() for _ in range(10)]
        for made in runs:
            made.log.append([Token("x" * 900) for _ in range(100)])
        await one.publisher.flush()
        assert 20_000 < max(sizes) < 60_000
        for made in runs:
            check(redis, made)
        await one.publisher._link.close()
        one.publisher._link = one.link

    sends(redis, test)


def test_what_a_run_is_found_by_comes_with_its_head_and_goes_with_its_end(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        made = await one.run(before=[("SET", "found", "a")], behind_end=[("DEL", "found")])
        assert redis.ask("GET", "found") == "a"
        await said(one, made, Token("a"))
        assert redis.ask("GET", "found") == "a"
        await over(made)
        await one.publisher.flush()
        assert redis.ask("GET", "found") is None

    sends(redis, test)


# --- for how long -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "kept"), [(KEEP, KEEP), (0.0, LEAST)])
def test_a_run_is_kept_for_as_long_as_it_may_take_and_then_as_long_as_runs_are_kept(
    keep: float, kept: float, redis: Redis
) -> None:
    async def test(one: Sending) -> None:
        made = await one.run(run_timeout=100, queue_timeout=10)
        assert 0 <= 110 + keep + SLACK - seconds(made) < 5
        redis.ask("PERSIST", run_key(made.id))
        await said(one, made, Token("a"))
        assert seconds(made) < 0  # set with the head alone: it costs a command
        await over(made)
        await one.publisher.flush()
        assert 0 <= kept - seconds(made) < 5

    def seconds(made: Run) -> float:
        return float(redis.ask("PTTL", run_key(made.id))) / 1000

    sends(redis, test, keep)


# --- what Redis loses, and does not take ------------------------------------------------------------------------------


def test_what_redis_has_lost_is_sent_again_with_the_next_word(redis: Redis) -> None:
    """The stream was evicted, or somebody has deleted it: no stream without its beginning stands in its place."""

    async def test(one: Sending) -> None:
        made = await one.run(before=[("SET", "found", "a")])
        await said(one, made, *words(20))
        for command in (("DEL", run_key(made.id), "found"), ("FLUSHALL",)):
            redis.ask(*command)
            made.log.append([Token("a")])
            await until(lambda: is_there(redis, made))
            check(redis, made)
            assert redis.ask("GET", "found") == "a"
            assert redis.ask("PTTL", run_key(made.id)) > 0
            await one.publisher.flush()

    sends(redis, test)


def test_what_redis_has_lost_of_a_silent_run_is_sent_when_it_is_looked_for(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        silent, ended = await one.run(), await one.run()
        await over(ended)
        await one.publisher.flush()
        redis.ask("FLUSHALL")
        one.publisher.look_again()
        await until(lambda: is_there(redis, silent) and is_there(redis, ended))
        check(redis, silent)
        check(redis, ended)
        assert redis.ask("PTTL", run_key(ended.id)) <= 1000 * KEEP

    sends(redis, test)


def test_more_runs_than_are_looked_up_at_once_are_all_found_again(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        runs = [begun() for _ in range(230)]
        for made in runs:
            one.publisher.begun(made)
        await one.publisher.flush()
        redis.ask("FLUSHALL")
        one.publisher.look_again()
        await until(lambda: redis.ask("DBSIZE") == 230)
        await one.publisher.flush()
        for made in runs[::50]:
            check(redis, made)

    sends(redis, test)


def test_a_connection_that_breaks_costs_no_event_and_doubles_none(redis: Redis) -> None:
    """It breaks in the midst of all: what had got through by then, nobody knows until it is looked up."""

    async def test(one: Sending) -> None:
        runs = [await one.run() for _ in range(5)]
        for number in range(4):
            for word in words(60):
                for made in runs:
                    made.log.append([word])
                await asyncio.sleep(0)
            redis.ask("CLIENT", "KILL", "TYPE", "normal")
            await until(lambda before=number + 1: one.link.epoch > before)
        await one.publisher.flush()
        for made in runs:
            check(redis, made)

    sends(redis, test)


def test_a_redis_that_comes_back_empty_has_all_of_it_soon_again() -> None:
    async def test(one: Sending) -> None:
        going_on, silent, ended = [await one.run() for _ in range(3)]
        await over(ended)
        await one.publisher.flush()
        await asyncio.to_thread(own.kill)
        going_on.log.append(words(100))
        await until(lambda: one.publisher._epoch is None)
        await asyncio.to_thread(own.start)
        await until(lambda: all(is_there(own, made) for made in (going_on, silent, ended)))
        for made in (going_on, silent, ended):
            check(own, made)

    with Redis() as own:
        sends(own, test)


def test_a_full_redis_is_told_by_its_code_and_gets_the_rest_when_there_is_room(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        made = await one.run()
        redis.ask("CONFIG", "SET", "maxmemory", 1)
        begun_while_full = begun()
        one.publisher.begun(begun_while_full)
        made.log.append([Token("a")])
        await until(lambda: one.publisher.refusal == "OOM")
        assert one.publisher.lag()[0] == 2
        await over(made)
        refused = one.link.calls
        await until(lambda: one.link.calls > refused + 10)  # its end, too
        redis.ask("CONFIG", "SET", "maxmemory", 0)
        await one.publisher.flush()
        assert one.publisher.refusal == ""
        for each in (made, begun_while_full):
            check(redis, each)

    sends(redis, test)


def test_a_redis_that_takes_nothing_or_is_away_is_not_asked_all_the_time(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        made = await one.run()
        redis.ask("CONFIG", "SET", "maxmemory", 1)
        made.log.append([Token("a")])
        await until(lambda: one.publisher.refusal)
        before, loop = one.link.calls, asyncio.get_running_loop()
        then = loop.time() + 0.5
        await until(lambda: loop.time() > then)
        assert 0 < one.link.calls - before < 30  # ten times, and they are few each
        redis.ask("CONFIG", "SET", "maxmemory", 0)
        await one.publisher.flush()

    sends(redis, test)


def test_a_key_that_is_somebody_elses_keeps_nobody_but_its_own_run_from_redis(redis: Redis) -> None:
    """Another program has written there what is no stream; and then the connection is made anew."""

    async def test(one: Sending) -> None:
        theirs, ours = await one.run(), await one.run()
        redis.ask("SET", run_key(theirs.id), "something else")
        theirs.log.append([Token("a")])
        await until(lambda: one.publisher.refusal == "WRONGTYPE")
        ours.log.append([Token("b")])
        await until(lambda: is_there(redis, ours))
        redis.ask("CLIENT", "KILL", "TYPE", "normal")
        ours.log.append([Token("c")])
        await until(lambda: is_there(redis, ours))
        redis.ask("DEL", run_key(theirs.id))
        await until(lambda: is_there(redis, theirs))
        await one.publisher.flush()
        assert one.publisher.refusal == ""
        check(redis, theirs)

    sends(redis, test)


# --- the fence --------------------------------------------------------------------------------------------------------

LOST = Error(error="Lost.", code="run_lost", retryable=True, usage=Usage())


def fence(redis: Redis, made: Run) -> None:
    lost = encode_batch(Batch(len(made.log), [LOST]))
    redis.ask("XADD", run_key(made.id), "NOMKSTREAM", f"{FENCE}-0", *lost)


@pytest.mark.parametrize("found", ["with the next word", "when it is looked for"])
def test_a_run_that_was_given_up_goes_on_here_and_no_longer_in_redis(
    found: str, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(one: Sending) -> None:
        given_up, other = await one.run(), await one.run()
        fence(redis, given_up)
        before = entries(redis, given_up)
        if found == "with the next word":
            given_up.log.append([Token("a")])
        else:
            one.publisher.look_again()
        await until(lambda: one.fenced == [given_up])
        assert one.publisher.runs == [other]
        given_up.log.append([Token("b")])
        await said(one, other, Token("c"))
        assert one.publisher.lag() == (0, 0.0)
        await over(given_up)
        one.publisher.forgotten(given_up)
        await said(one, other, Token("d"))
        assert entries(redis, given_up) == before
        assert isinstance(given_up.terminal, Cancelled)
        check(redis, other)

    sends(redis, test)
    assert caplog.text.count("gave it up for lost") == 1


# --- how far it is behind ---------------------------------------------------------------------------------------------


def test_how_much_redis_lacks_is_told_and_for_how_long(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        made, other = await one.run(), await one.run()
        assert one.publisher.lag() == (0, 0.0)
        redis.pause()
        try:
            made.log.append(words(3))
            await asyncio.sleep(0)
            first = one.publisher.lag()
            other.log.append(words(4))
            loop = asyncio.get_running_loop()
            until_then = loop.time() + 0.05
            await until(lambda: loop.time() > until_then)
            second = one.publisher.lag()
        finally:
            redis.go_on()
        assert (first[0], second[0]) == (3, 7)
        assert first[1] < 0.05 < second[1] < DEADLINE
        await one.publisher.flush()
        assert one.publisher.lag() == (0, 0.0)

    sends(redis, test)


def test_a_flush_is_over_when_redis_has_what_was_said_before_it(redis: Redis) -> None:
    """Not only once there is silence: a run may go on for ever."""

    async def test(one: Sending) -> None:
        made = await one.run()
        stops = False

        async def talk() -> None:
            while not stops:
                made.log.append([Token("a")])
                await asyncio.sleep(0)

        talking = asyncio.ensure_future(talk())
        await until(lambda: len(made.log) > 10)
        has = len(made.log)
        await one.publisher.flush()
        assert len(mirrored(redis, made).log) >= has
        stops = True
        await talking
        await one.publisher.flush()
        check(redis, made)

    sends(redis, test)


def test_a_flush_goes_on_for_as_long_as_redis_takes_nothing(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        made = await one.run()
        redis.pause()
        try:
            made.log.append([Token("a")])
            flushing = asyncio.ensure_future(one.publisher.flush())
            done, _ = await asyncio.wait([flushing], timeout=0.2)
            assert not done
        finally:
            redis.go_on()
        await flushing
        check(redis, made)

    sends(redis, test)


def test_with_nothing_to_send_a_flush_is_over_at_once(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        await one.publisher.flush()
        made = await one.run()
        await over(made)
        await one.publisher.flush()
        await one.publisher.flush()

    sends(redis, test)


# --- runs that are forgotten ------------------------------------------------------------------------------------------


def test_a_run_that_is_forgotten_when_it_is_sent_is_let_go(redis: Redis) -> None:
    async def test(one: Sending) -> None:
        made = await one.run()
        await over(made)
        await one.publisher.flush()
        assert one.publisher.find(made.id) is made
        one.publisher.forgotten(made)
        assert (one.publisher.find(made.id), one.publisher.runs, made.log.on_append) == (None, [], None)
        check(redis, made)
        one.publisher.forgotten(made)

    sends(redis, test)


def test_a_run_that_is_forgotten_before_it_was_sent_is_sent_first(redis: Redis) -> None:
    """As where none is kept: it is over, forgotten, and then sent, all in one moment."""

    async def test(one: Sending) -> None:
        made = await one.run()
        await over(made)
        one.publisher.forgotten(made)
        assert one.publisher.find(made.id) is made
        await one.publisher.flush()
        assert one.publisher.runs == []
        check(redis, made)
        quick = begun()
        one.publisher.begun(quick)
        await over(quick)
        one.publisher.forgotten(quick)
        await one.publisher.flush()
        assert one.publisher.runs == []
        check(redis, quick)

    sends(redis, test)


def test_what_is_forgotten_while_redis_is_away_takes_no_room() -> None:
    async def test(one: Sending) -> None:
        first, second = await one.run(), await one.run()
        await asyncio.to_thread(own.kill)
        await over(first)
        one.publisher.forgotten(first)  # which is found out by trying to send it
        await until(lambda: one.publisher.runs == [second])
        await over(second)
        one.publisher.forgotten(second)
        assert one.publisher.runs == []
        assert one.publisher.lag() == (0, 0.0)

    with Redis() as own:
        sends(own, test)


# --- bugs -------------------------------------------------------------------------------------------------------------


def test_what_goes_wrong_with_one_run_is_logged_by_its_type_and_ends_nothing_else(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        def fails(made: Run) -> None:
            raise KeyError(made.id)

        link = Link(redis.url)
        publisher = Publisher(link, "us", KEEP, fails)
        publisher.start()
        one = Sending(publisher, link, [])
        given_up, other = await one.run(), await one.run()
        fence(redis, given_up)
        given_up.log.append([Token("a")])
        await until(lambda: "KeyError" in caplog.text)
        other.log.append([Token("b")])
        await until(lambda: is_there(redis, other))
        await over(given_up)
        await over(other)
        await publisher.flush()
        check(redis, other)
        await publisher.close()
        await link.close()

    caplog.set_level(logging.DEBUG)
    run(main())
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert told.startswith("internal error: KeyError\n")
    assert told.rstrip().endswith("raise KeyError(made.id)")


def test_numbers_of_entries_are_those_of_their_last_events(redis: Redis) -> None:
    """By which whoever reads on knows where he is."""

    async def test(one: Sending) -> None:
        made = await one.run()
        for number in (1, 5, 2):
            await said(one, made, *words(number))
        (_, *batches) = entries(redis, made)
        places = [0, *(seq_of(entry_id) for entry_id, _ in batches)]
        assert places == [0, 1, 2, 7, 9]
        assert [decode_batch(fields).after for _, fields in batches] == places[:-1]
        assert all(
            len(decode_batch(fields).entries) == upto - after
            for (after, upto), (_, fields) in zip(pairwise(places), batches, strict=True)
        )
        assert isinstance(mirrored(redis, made).log.read(0)[0], Start)

    sends(redis, test)
