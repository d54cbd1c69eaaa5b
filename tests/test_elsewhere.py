"""Runs where there are other replicas: whose run a key or a name stands for, what is asked of them, and what is not.

The others are a few lines here, which forgive nothing. How replicas really tell each other is no matter of `Runs`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from starlette.applications import Starlette

from streaming.admission import Capacity
from streaming.elsewhere import Reach
from streaming.errors import Fault, ServiceError
from streaming.events import Done, Error, Start, Token, Usage
from streaming.failover import Candidate, Failover
from streaming.followed import CancelReason, Followed
from streaming.limits import Limits
from streaming.log import LOST_AT
from streaming.run import Run
from streaming.runs import Runs

from .asgi import Exchange, ask, at_once, make_app, run_ahead, service_of, time_passes
from .sockets import HandSocket
from .test_keeping import KEEP, NOT_FOUND
from .test_run import HELLO, LIMITS, REQUEST, STOP, Plays, Step

DOWN = ServiceError("unavailable", "The others cannot be reached just now.")
UNREACHED = ("unavailable", "The run of this Idempotency-Key cannot be reached just now.")
CONFLICT = ("conflict", "This Idempotency-Key stands for another request: its run was asked for with another body.")
ID = "0123456789abcdef" * 2
THREAD = {"thread": None, "assistant": "a", "metadata": {}, "modes": ["messages-tuple"], "subgraphs": False}
LOST = Error(error="Lost.", code="run_lost", retryable=True, usage=Usage())
DONE = Done(finish_reason="stop", model="m", usage=Usage(1, 2), tokens=2, ttft_ms=1, latency_ms=2)


class Theirs(Followed):
    """A run of another replica, which was begun at second 1000. `comes` is called when it is waited for."""

    answer = SimpleNamespace(provider="test", model="m", usage=Usage(1, 2), retries=0, failovers=0, resets=0)
    started = has_asked = True
    waits = False
    position, ttft_ms, latency_ms = 0, 1, 2

    def __init__(
        self, owner: str = "", created: float = 1000.0, about: Any = None, comes: Callable[[], object] = lambda: None
    ) -> None:
        super().__init__(ID, owner, "", "", about, created, LIMITS)
        self.lingers: list[float] = []
        self.waited_for: list[int] = []
        self._comes = comes
        self.log.append([Start(ID, "test", "m", 1000), Token("One")])

    def _came(self) -> None:
        pass

    def _left(self) -> None:
        pass

    def end(self, reason: CancelReason) -> None:
        raise AssertionError(f"nobody here stops it: {reason}")

    def linger_for(self, seconds: float) -> None:
        self.lingers.append(seconds)

    async def wait(self) -> None:
        raise AssertionError("nobody here waits for its end")

    async def reach(self, seq: int) -> None:
        self.waited_for.append(seq)
        await time_passes(1)
        self._comes()


class Others:
    """What the other replicas have, put there by hand or claimed: once it is `open`, and failing first by `faults`."""

    def __init__(self, *runs: Followed, down: bool = False) -> None:
        self.runs = {run.id: run for run in runs}
        self.keys: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.names: dict[tuple[str, str], str] = {}
        self.told: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.open = asyncio.Event()
        self.open.set()
        self.down = down

    def _ask(self, what: str, about: str) -> None:
        self.told.append((what, about))
        if self.down:
            raise DOWN

    def begun(self, run: Run) -> None:
        assert run.started
        self.told.append(("begun", run.id))

    def forgotten(self, run: Run) -> None:
        assert run.terminal
        self.told.append(("forgotten", run.id))

    async def settle(self, run: Run) -> None:
        assert ("begun", run.id) in self.told

    async def find(self, run_id: str) -> Followed | None:
        self._ask("find", run_id)
        return self.runs.get(run_id)

    async def claim(self, run: Run, asked: bytes) -> tuple[str, bytes] | None:
        assert run.key
        assert not run.started
        self.told.append(("claim", run.key))
        await self.open.wait()
        if self.faults:
            raise self.faults.pop()
        held = self.keys.setdefault((run.owner, run.key), (run.id, asked))
        return None if held[0] == run.id else held

    def release(self, run: Run) -> None:
        assert self.keys.pop((run.owner, run.key))[0] == run.id
        self.told.append(("release", run.key))

    async def holder(self, owner: str, key: str) -> str | None:
        assert key
        self._ask("holder", key)
        held = self.keys.get((owner, key))
        return held and held[0]

    async def newest(self, owner: str, name: str) -> str | None:
        assert name
        self._ask("newest", name)
        return self.names.get((owner, name))

    def reach(self) -> Reach:
        raise AssertionError("nobody asks")

    def end(self) -> None:
        self.told.append(("end", ""))

    async def wait(self) -> None:
        self.told.append(("wait", ""))


def replica(others: Others, capacity: Capacity | None = None) -> Runs:
    return Runs(KEEP, 2**20, capacity, elsewhere=others)


async def created(runs: Runs, *steps: Step, limits: Limits = LIMITS, **asked: Any) -> Followed:
    async def load() -> Any:
        return Plays(*steps)

    return await runs.create(Failover([Candidate("test", REQUEST, load)]), limits, **asked)


async def begun(runs: Runs, *steps: Step, **asked: Any) -> Followed:
    run = await created(runs, *steps, **asked)
    runs.begin(run)
    return run


async def refusal(asked: Coroutine[Any, Any, object]) -> tuple[str, str]:
    with pytest.raises(Fault) as raised:
        await asked
    return raised.value.code, raised.value.text


# Keys


def test_requests_of_one_key_at_once_are_one_claim_and_one_run() -> None:
    async def test() -> None:
        runs = replica(others := Others())
        others.open.clear()
        first, second, foreign = (
            asyncio.ensure_future(begun(runs, STOP, key="k", asked=b"1", owner=owner)) for owner in ("", "", "ann")
        )
        third = asyncio.ensure_future(created(runs, key="k", asked=b"2"))
        await time_passes(1)
        assert others.told == [("claim", "k"), ("claim", "k")], "one for each owner"
        others.open.set()
        assert await first is await second is not await foreign
        assert await refusal(third) == CONFLICT
        assert [what for what, _ in others.told] == ["claim", "claim", "begun", "begun"]
        await runs.close()

    run_ahead(test())


def test_a_key_that_is_known_here_is_asked_for_nowhere_else() -> None:
    async def test() -> None:
        runs = replica(others := Others())
        run = await begun(runs, STOP, key="k", asked=b"1")
        others.told.clear()
        assert at_once(created(runs, key="k", asked=b"1")) is run
        assert await refusal(created(runs, key="k", asked=b"2")) == CONFLICT
        assert at_once(runs.knows("", "k"))
        assert at_once(created(runs)) is not run, "without a key nothing is claimed"
        assert not at_once(runs.knows("", ""))
        assert others.told == []
        await runs.close()

    run_ahead(test())


def test_a_key_that_stands_for_a_run_elsewhere_brings_that_run_which_lingers_anew() -> None:
    async def test() -> None:
        runs = replica(others := Others(theirs := Theirs("ann")))
        others.keys["ann", "k"] = ID, b"1"
        asked = {"owner": "ann", "key": "k", "limits": replace(LIMITS, linger=7.0)}
        for _ in range(2):
            assert await begun(runs, asked=b"1", **asked) is theirs
        assert await refusal(created(runs, asked=b"2", **asked)) == CONFLICT
        assert (theirs.lingers, len(runs), len(runs.all)) == ([7.0, 7.0], 0, 0)
        assert await runs.knows("ann", "k")
        assert not await runs.knows("bob", "k")

    run_ahead(test())


@pytest.mark.parametrize("there", [[], [Theirs("bob")]], ids=["nowhere", "anothers"])
def test_a_key_whose_run_is_not_to_be_found_cannot_be_served_just_now(there: list[Followed]) -> None:
    async def test() -> None:
        runs = replica(others := Others(*there))
        others.keys["", "k"] = ID, b"1"
        assert await refusal(created(runs, key="k", asked=b"1")) == UNREACHED
        assert await refusal(created(runs, key="k", asked=b"2")) == CONFLICT, "that is known all the same"
        del others.keys["", "k"]
        await begun(runs, STOP, key="k", asked=b"2")
        assert others.told[-2:] == [("claim", "k"), ("begun", next(iter(runs.all)).id)]
        await runs.close()

    run_ahead(test())


def test_who_waits_for_a_claim_that_fails_claims_the_key() -> None:
    async def test() -> None:
        runs = replica(others := Others())
        others.faults.append(DOWN)
        others.open.clear()
        first, second = (asyncio.ensure_future(created(runs, key="k", asked=b"1")) for _ in range(2))
        await time_passes(1)
        others.open.set()
        assert await refusal(first) == (DOWN.code, DOWN.text)
        assert (await second).key == "k"
        assert others.told == [("claim", "k")] * 2

    run_ahead(test())


def test_a_claim_that_is_cancelled_leaves_the_key_to_who_waits_for_it() -> None:
    async def test() -> None:
        runs = replica(others := Others())
        others.open.clear()
        first, second, third = (asyncio.ensure_future(created(runs, key="k", asked=b"1")) for _ in range(3))
        await time_passes(1)
        first.cancel()
        await time_passes(1)
        assert others.told == [("claim", "k")] * 2
        third.cancel()  # who only waits takes nothing from the others
        await time_passes(1)
        others.open.set()
        run = await second
        assert at_once(created(runs, key="k", asked=b"1")) is run
        assert (first.cancelled(), third.cancelled(), len(others.told)) == (True, True, 2)

    run_ahead(test())


def test_the_key_of_a_run_that_is_turned_away_is_let_go_of_once() -> None:
    async def test() -> None:
        runs = replica(others := Others(), Capacity(max_runs=1))
        first = await begun(runs, 5.0, STOP)
        refused = await created(runs, key="k", asked=b"1")
        for keyless in (refused, refused, await created(runs)):
            with pytest.raises(ServiceError, match="runs"):
                runs.begin(keyless)
        await first.wait()
        second = await begun(runs, STOP, key="k", asked=b"2")
        assert others.told == [
            ("begun", first.id),
            ("claim", "k"),
            ("release", "k"),
            ("claim", "k"),
            ("begun", second.id),
        ]
        await runs.close()

    run_ahead(test())


# Runs that are begun, found and forgotten


def test_the_others_are_told_of_a_run_that_can_be_found_and_when_it_no_longer_can() -> None:
    async def test() -> None:
        runs = Runs(KEEP, 2**20)
        runs.elsewhere = others = Others()
        run = await created(runs, HELLO, STOP)
        assert others.told == []
        runs.begin(run)
        runs.begin(run)
        assert at_once(runs.find(run.id)) is run
        await run.wait()
        await time_passes(KEEP - 0.5)
        assert others.told == [("begun", run.id)]
        await time_passes(1)
        assert others.told == [("begun", run.id), ("forgotten", run.id)]

    run_ahead(test())


def test_a_run_that_is_not_here_is_looked_for_elsewhere_and_is_its_owners_there_too() -> None:
    async def test() -> None:
        runs = replica(others := Others(theirs := Theirs("ann")))
        assert await runs.find(ID, "ann") is await runs.find(ID, None) is theirs
        for run_id, owner in ((ID, "bob"), (ID, ""), ("0" * 32, "ann"), ("0" * 32, None)):
            assert await refusal(runs.find(run_id, owner)) == NOT_FOUND
        others.down = True
        assert await refusal(runs.find(ID, "ann")) == (DOWN.code, DOWN.text)
        runs.elsewhere = None
        assert await refusal(runs.find(ID, "ann")) == NOT_FOUND

    run_ahead(test())


def test_a_run_of_another_replica_was_begun_there() -> None:
    async def test() -> None:
        runs = replica(others := Others(theirs := Theirs()))
        runs.drain()
        runs.begin(theirs)
        assert (len(runs), len(runs.all), others.told) == (0, 0, [])

    run_ahead(test())


def test_who_stops_lets_go_of_who_follows_the_runs_of_others_and_waits_for_that() -> None:
    async def test() -> None:
        runs = replica(others := Others())
        run = await begun(runs, 5.0, STOP)
        runs.drain()
        waiting = asyncio.ensure_future(runs.wait())
        await time_passes(1)
        assert others.told == [("begun", run.id)]
        runs.end()
        await waiting
        assert others.told == [("begun", run.id), ("end", ""), ("wait", "")]
        await runs.close()

    run_ahead(test())


# Runs by their name


def test_the_newest_run_of_a_name_is_the_newest_of_all_replicas() -> None:
    async def test() -> None:
        runs = replica(others := Others())
        assert await runs.latest("chat", "ann") is None
        run = await begun(runs, STOP, name="chat", owner="ann")
        newer, older = Theirs("ann", run.created + 1), Theirs("ann", run.created - 1)
        others.names["ann", "chat"] = ID
        for there, latest in (([newer], newer), ([older], run), ([], run), ([Theirs("bob", run.created + 1)], run)):
            others.runs = {one.id: one for one in there}
            assert await runs.latest("chat", "ann") is latest
        others.runs = {ID: newer}
        assert await runs.latest("chat", "bob") is None
        others.names["ann", "chat"] = run.id
        assert await runs.latest("chat", "ann") is run
        await run.wait()
        await time_passes(KEEP + 1)
        assert await runs.latest("chat", "ann") is None
        others.names["ann", "chat"] = ID
        assert await runs.latest("chat", "ann") is newer

    run_ahead(test())


def test_with_no_word_of_the_others_the_newest_run_is_the_newest_here() -> None:
    async def test() -> None:
        runs = replica(others := Others(down=True))
        run = await begun(runs, STOP, name="chat")
        assert await runs.latest("chat", "") is run
        assert await refusal(runs.latest("chat", "ann")) == (DOWN.code, DOWN.text)
        others.told.clear()
        assert at_once(runs.latest("", "")) is None
        assert others.told == []
        await runs.close()

    run_ahead(test())


# By the service


@asynccontextmanager
async def serving(others: Others, **environ: str) -> AsyncIterator[Starlette]:
    app = await make_app(SIDESTREAM_KEEP="61", **environ)
    service_of(app).runs.elsewhere = others
    yield app
    service_of(app).runs.elsewhere = None


def ends(run: Followed) -> None:
    run.log.append([Token(" two"), DONE])
    run.terminal = DONE


def told(exchange: Exchange) -> tuple[int, list[str]]:
    return exchange.status, [line[4:] for line in exchange.body.decode().splitlines() if line.startswith("id: ")]


@pytest.mark.parametrize("target", [f"/runs/{ID}/events", "/chat/stream"])
def test_who_has_seen_more_of_a_run_than_is_here_yet_waits_for_that(target: str) -> None:
    async def test() -> None:
        theirs = Theirs(comes=lambda: ends(theirs))
        async with serving(Others(theirs)) as app:
            for seen, answer in ((3, (200, [f"{ID}-4"])), (4, (204, [])), (2, (200, [f"{ID}-3", f"{ID}-4"]))):
                exchange = await ask(app, "GET", target, headers={"last-event-id": f"{ID}-{seen}"})
                assert told(exchange) == answer
                theirs._comes = lambda: None
            gone = await ask(app, "GET", target, headers={"last-event-id": f"{ID}-5"})
            assert (gone.status, json.loads(gone.body)["detail"]) == (400, "The run has not come so far.")
        assert theirs.waited_for == [3, 4, 2, 5]

    run_ahead(test())


@pytest.mark.parametrize(
    ("target", "seen", "says"),
    [
        *(("/runs/{}/events", seen, '"code":"run_lost"') for seen in ("2", "3", "4", "5000")),
        *(("/lg/runs/{}/stream", seen, "event: error") for seen in ("2", "2.1", "3", "5000")),
        *((f"/ui/chat/{{}}/stream?startIndex={seen}", "", '"type":"error"') for seen in (3, 4, 5000)),
        *(
            (f"/v1/responses/resp_{{}}?stream=true&starting_after={seen}", "", "event: response.failed")
            for seen in (4, 5, 5000)
        ),
    ],
)
def test_who_has_seen_more_of_a_run_than_there_was_when_it_was_lost_is_told_so(
    target: str, seen: str, says: str
) -> None:
    async def test() -> None:
        theirs = Theirs(about=THREAD)
        theirs.log.append([LOST])
        theirs.terminal = LOST
        async with serving(Others(theirs)) as app:
            headers = {"last-event-id": f"{ID}-{seen}"} if seen else {}
            exchange = await ask(app, "GET", target.format(ID), headers=headers)
            assert (exchange.status, exchange.body.decode().count(says)) == (200, 1), exchange.body
            if told(exchange)[1]:
                assert told(exchange)[1][-1] == f"{ID}-{LOST_AT}"
                has_all = await ask(app, "GET", target.format(ID), headers={"last-event-id": f"{ID}-{LOST_AT}"})
                assert told(has_all)[1] == []

    run_ahead(test())


def test_nobody_waits_for_an_event_of_another_run() -> None:
    async def test() -> None:
        theirs = Theirs()
        async with serving(Others(theirs)) as app:
            exchange = await ask(app, "GET", f"/runs/{ID}/events", headers={"last-event-id": f"{'0' * 32}-9"})
        assert (exchange.status, json.loads(exchange.body)["detail"]) == (400, "That event is another run's.")
        assert theirs.waited_for == []

    run_ahead(test())


def test_a_turn_that_was_lost_is_waited_for_too() -> None:
    async def test() -> None:
        theirs = Theirs(comes=lambda: ends(theirs))
        async with serving(Others(theirs)) as app, HandSocket(app, f"resume={ID}-3") as socket:
            assert (await socket.until("done")).id == f"{ID}-4"
        assert theirs.waited_for == [3]

    run_ahead(test())


def test_so_is_a_run_of_a_thread() -> None:
    async def test() -> None:
        theirs = Theirs(about=THREAD, comes=lambda: ends(theirs))
        async with serving(Others(theirs)) as app:
            exchange = await ask(app, "GET", f"/lg/runs/{ID}/stream", headers={"last-event-id": f"{ID}-4"})
            assert (exchange.status, theirs.waited_for) == (200, [4])

    run_ahead(test())


def test_who_asks_again_at_another_replica_gets_the_same_run_and_pays_nothing() -> None:
    async def test() -> None:
        first, again = Others(), Others(theirs := Theirs())
        headers = {"content-type": "application/json", "idempotency-key": "k"}
        body = b'{"message":"Hi","model":"scripted/echo"}'
        async with serving(first, SIDESTREAM_RATE_LIMIT="1") as app:
            made = await ask(app, "POST", "/runs", headers=headers, body=body)
            assert made.status == 201
        again.keys["", "k"] = ID, first.keys["", "k"][1]
        service_of(app).runs._keys.clear()  # as if it were another's
        async with serving(again, SIDESTREAM_RATE_LIMIT="1") as app:
            same = await ask(app, "POST", "/runs", headers=headers, body=body)
            other = await ask(app, "POST", "/runs", headers=headers, body=body.replace(b"Hi", b"Ho"))
            keyless = await ask(app, "POST", "/runs", headers={"content-type": "application/json"}, body=body)
        assert (same.status, json.loads(same.body)["id"], "ratelimit" in same.headers) == (201, ID, False)
        assert (other.status, json.loads(other.body)["code"], keyless.status) == (409, "conflict", 429)
        assert len(theirs.lingers) == 1
        await service_of(app).runs.wait()

    run_ahead(test())
