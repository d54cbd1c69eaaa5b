"""Three replicas behind a real nginx that takes turns, and viewers who are cut off at random, again and again.

Whichever replica a viewer comes back to: what it was told, put together, is what its run has said, with no gap, nothing
twice and one end. So it is too while replicas are told to stop and others come in their place.

What happens by chance follows from a seed, which a failure tells; with `CHAOS=<seed>` the same chances are taken again.
"""

import json
import os
import random
import secrets
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlencode

import pytest

from .client import DEADLINE, Client, Event, get, post
from .conftest import Service, eventually
from .recorded import TERMINAL
from .redis_server import Redis
from .replicas import Nginx, Replicas, StartReplicas, reach
from .resource import NDJSON, WAYS, answer, create, dispatched, is_one_run, refused, resume, status_of, stop
from .sockets import UPGRADE, RawSocket

pytest_plugins = ["tests.replicas"]

KEY = "open-sesame/2002"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}
SETTINGS = {
    "SIDESTREAM_API_KEYS": f"chaos:{KEY}",  # so that it matters that all know what each has signed
    "SIDESTREAM_DRAIN_TIMEOUT": "20",  # longer than any run here takes
    "SIDESTREAM_MODEL": "scripted/custom",
}
RUNS, AT_ONCE = 16, 15
MOST_CUTS = 20  # of a viewer
EVERY = 0.008  # between two words, seconds
# Of a replica that goes; of nginx, whose connection to it was just closed; of uvicorn, to a WebSocket while it stops.
NOT_NOW = {503, 502, 500}
TRIES = 200  # in a row, each at another replica
Wire = Literal["SSE", "NDJSON", "WebSocket"]
WIRES: list[Wire] = ["SSE", "NDJSON", "WebSocket"]


def new_seed() -> str:
    return os.environ.get("CHAOS") or str(secrets.randbelow(2**32))


@contextmanager
def telling(seed: str, chaos: "Chaos") -> Iterator[None]:
    """Tell with a failure by what seed it came about, and what had happened."""
    try:
        yield
    except BaseException as exc:
        exc.add_note(f"CHAOS={seed}; {dict(chaos.counts)}")
        raise


@pytest.fixture(scope="module")
def replicas(start_replicas: StartReplicas) -> Iterator[Replicas]:
    replicas = start_replicas(number=3, balance=Nginx, **SETTINGS)
    yield replicas
    replicas.stop()  # those that came later, too


# --- what a run says --------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """An event of a run: of a delta its text, of which no other has the same."""

    name: str
    text: str = ""


FIELDS = {"token": "token", "reasoning": "reasoning", "tool_call_delta": "args_delta"}


def script_of(chance: random.Random) -> tuple[list[dict[str, Any]], list[Part]]:
    """Return a script that speaks, thinks and calls a tool by turns, and the events that come of it."""
    steps: list[dict[str, Any]] = []
    parts = [Part("start")]
    for number in range(chance.randrange(10, 25)):
        kind = ("say", "think", "say", "call")[number % 4]
        if kind == "call":
            args = {"number": number}
            text = json.dumps(args, separators=(",", ":"))
            steps.append({"call": {"tool": "look", "args": args, "id": f"call_{number}", "result": number}})
            parts += [Part("tool_call_delta", text[:8]), Part("tool_call_delta", text[8:])]
            parts += [Part("tool_call"), Part("tool_result")]
        else:
            words = [f" {kind}{number}.{place}" for place in range(chance.randrange(1, 30))]
            steps.append({kind: "".join(words), "every": EVERY})
            parts += [Part({"say": "token", "think": "reasoning"}[kind], word) for word in words]
    return steps, [*parts, Part("done")]


def check(events: list[Event], parts: list[Part]) -> None:
    """Fail unless these are the run's events from the first to the last, adjacent deltas joined or not."""
    assert is_one_run(events)
    after = 0
    for event in events:
        upto = int(event.id.rpartition("-")[2])
        names, text = {part.name for part in parts[after:upto]}, "".join(part.text for part in parts[after:upto])
        assert names == {event.name}, (event, parts[after:upto])
        assert event.data.get(FIELDS.get(event.name), "") == text, (event, parts[after:upto])
        after = upto
    assert after == len(parts)


# --- who follows it ---------------------------------------------------------------------------------------------------


class Chaos:
    """What happens to all viewers, counted. `port` is the balancer's."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


class Line(RawSocket):
    """A WebSocket that shows a key, and may be refused."""

    def __init__(self, port: int, query: str) -> None:
        Client.__init__(self, port, "GET", f"/ws/chat?{query}", headers={**UPGRADE, **WITH_KEY})


def status_in(client: Client) -> int:
    """Return the status, 0 where the head has not come whole."""
    return client.head()[0] if b"\r\n\r\n" in client.raw else 0


def is_over(client: Client) -> bool:
    """Tell whether nothing more is to come: the body is whole, or the turn."""
    status = status_in(client)
    if status == 101 and isinstance(client, Line):
        return client.raw.endswith(b"}") and any(event.name in TERMINAL for event in client.events[-1:])
    return status > 0 and client.whole


def came(client: Client) -> list[Event]:
    """Return the events that have come whole."""
    if isinstance(client, Line):
        return client.events
    if "ndjson" not in client.head()[1]["content-type"]:
        return dispatched(client.body)
    told = [json.loads(line) for line in client.body.split(b"\n")[:-1] if line]
    return [Event(one["event"], one.get("id", ""), one["data"]) for one in told]


class Viewer:
    """One who follows the run at `url` from behind the event `seen`, and comes back there until it has the end."""

    def __init__(self, chaos: Chaos, chance: random.Random, wire: Wire, url: str, seen: str) -> None:
        self._chaos = chaos
        self._chance = chance
        self._wire = wire
        self._url = url
        self._seen = seen
        self._cuts = chance.randint(1, MOST_CUTS)
        chaos.note(f"viewers by {wire}")

    def follow(self, client: Client | None = None) -> list[Event]:
        """Return all events. `client` is a connection that there is already."""
        events: list[Event] = []
        vain = 0
        while not events or events[-1].name not in TERMINAL:
            with client or self._open() as client:
                is_cut = self._read(client)
            new, end = self._taken(client)
            assert is_cut or end != "cut", f"the service has cut it: {client.raw!r}"
            events += new
            self._seen = events[-1].id if events else self._seen
            self._chaos.note(end)
            vain = 0 if end == "cut" else vain + 1
            assert vain < TRIES, f"nobody has the run: {client.raw!r}"
            client = None
        return events

    def _open(self) -> Client:
        if self._wire == "WebSocket":
            return Line(self._chaos.port, f"resume={self._seen}")
        headers = {**(NDJSON if self._wire == "NDJSON" else {}), **({} if "signature=" in self._url else WITH_KEY)}
        way, url = self._chance.choice(WAYS), self._url
        if self._seen and way == "Last-Event-ID":
            headers[way] = self._seen
        elif self._seen:
            url += f"&{way}={self._seen}"
        return Client(self._chaos.port, "GET", url, headers=headers)

    def _read(self, client: Client) -> bool:
        """Read up to some byte and hang up there, or to the end; tell whether that was before the end."""
        size = len(client.raw) + self._chance.randrange(1, self._chance.choice((400, 1000, 2500)))
        while not is_over(client):
            left = size - len(client.raw) if self._cuts else 4096
            if not left:
                self._cuts -= 1
                client.hang_up(reset=self._chance.random() < 0.5)
                return True
            if not (data := client.socket.recv(left)):
                break
            client.raw += data
        return False

    def _taken(self, client: Client) -> tuple[list[Event], str]:
        """Return the events of a connection that has ended, and why it has."""
        status = status_in(client)
        if status in NOT_NOW:
            return [], f"refused with {status}"
        assert status in (0, 101, 200), client.body
        events = came(client) if status else []
        if events and events[-1].name == "draining":
            assert 0 < events[-1].data["retry_ms"] <= 1000
            return events[:-1], f"sent away by {self._wire}"
        return events, "whole" if events and events[-1].name in TERMINAL else "cut"


def view_run(chaos: Chaos, seed: str) -> None:
    """Start a run in one way or the other and follow it over each wire; every viewer is to have all of it."""
    chance = random.Random(seed)
    script, parts = script_of(chance)
    asked = {"message": "Hi", "provider_options": {"script": script}, "linger": 20}
    if chance.random() < 0.5:
        run, url, first = *post_run(chaos, asked, key=seed), None
    else:
        run, url, first = get_run(chaos, asked)
    wires = [chance.choice(("SSE", "NDJSON")) if first is None else "SSE", *WIRES]
    viewers = [
        Viewer(chaos, random.Random(f"{seed} {number}"), wire, url, f"{run}-0" if number else "")
        for number, wire in enumerate(wires)
    ]
    with ThreadPoolExecutor(len(viewers)) as pool:
        for following in [pool.submit(one.follow, None if number else first) for number, one in enumerate(viewers)]:
            check(following.result(), parts)
    check_over(chaos, run, parts)


def post_run(chaos: Chaos, asked: dict[str, Any], key: str) -> tuple[str, str]:
    """Start a run by POST; return its id and its signed URL. Who is refused asks again, and pays once."""
    headers = {**WITH_KEY, "Content-Type": "application/json", "Idempotency-Key": key}
    told = asked_again(chaos, "POST", "/runs", headers, json.dumps(asked).encode())
    return told["id"], told["events_url"]


def get_run(chaos: Chaos, asked: dict[str, Any]) -> tuple[str, str, Client]:
    """Start a run as an EventSource does; return its id, the URL, and the connection once it has the first event."""
    query = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in asked.items()}
    url = f"/chat/stream?{urlencode(query)}"
    for _ in range(TRIES):
        client = Client(chaos.port, "GET", url, headers=WITH_KEY)
        if client.head()[0] == 200:
            client.read_on(lambda body: b"\n\n" in body.partition(b"data:")[2])
            return came(client)[0].data["run"], url, client
        client.hang_up()
        assert client.head()[0] in NOT_NOW, client.raw
        chaos.note("asked again")
    raise AssertionError("nobody starts a run")


def asked_again(chaos: Chaos, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> Any:
    """Return the JSON that is answered, or the status without any. Who is refused or sent away asks again."""
    for _ in range(TRIES):
        status, told, text = answer(Client(chaos.port, method, target, headers=headers, body=body))
        if status not in NOT_NOW and not told.get("content-type", "").startswith("text/event-stream"):
            assert status < 300, text
            return json.loads(text) if text else status
        chaos.note("asked again")
    raise AssertionError("nobody answers")


def check_over(chaos: Chaos, run: str, parts: list[Part]) -> None:
    """Fail unless the run's status says all that was said, and there is nothing to follow any more."""
    last, text = f"{run}-{len(parts)}", "".join(part.text for part in parts if part.name == "token")

    def ended() -> Any:  # of which another replica than the run's may hear a moment later than a viewer
        told = asked_again(chaos, "GET", f"/runs/{run}", WITH_KEY)
        return told if told["ending"] else None

    told = eventually(ended)
    assert (told["state"], told["text"], told["last_event_id"]) == ("done", text, last)
    assert asked_again(chaos, "GET", f"/runs/{run}/events?last_event_id={last}", WITH_KEY) == 204


# --- the tests --------------------------------------------------------------------------------------------------------


def test_who_is_cut_off_at_random_has_all_of_it_in_the_end(replicas: Replicas) -> None:
    seed, chaos = new_seed(), Chaos(replicas.port)
    with telling(seed, chaos), ThreadPoolExecutor(AT_ONCE) as pool:
        for viewing in [pool.submit(view_run, chaos, f"{seed} {number}") for number in range(RUNS)]:
            viewing.result()
    follows = [service.log.count('"GET ') + service.log.count('"WebSocket ') for service in replicas.services]
    assert chaos.counts["cut"] >= 300
    assert min(follows) > chaos.counts["cut"] // 6, "all replicas have a part in it"
    check_well(replicas)


def test_and_while_replicas_go_and_others_come(replicas: Replicas, tmp_path: Path) -> None:
    """First one of them, then both others at once."""
    seed, chaos, numbers = new_seed(), Chaos(replicas.port), count()
    rolled = threading.Event()

    def view_runs() -> None:
        while not rolled.is_set():
            view_run(chaos, f"{seed} {next(numbers)}")

    first, *others = random.Random(seed).sample(range(3), 3)
    with telling(seed, chaos), ThreadPoolExecutor(AT_ONCE + 3) as pool:
        viewing = [pool.submit(view_runs) for _ in range(AT_ONCE)]
        try:
            for going in ([first], others):
                list(pool.map(partial(replace, replicas, SETTINGS, tmp_path), going))
        finally:
            rolled.set()
        for one in viewing:
            one.result()
    assert chaos.counts["cut"] >= 300
    assert chaos.counts["sent away by SSE"] >= 10
    assert chaos.counts["sent away by NDJSON"] >= 10
    check_well(replicas)


def replace(replicas: Replicas, settings: dict[str, str], folder: Path, number: int) -> None:
    """Tell a replica to stop; once it has, start another one like it in its place."""
    old = replicas.services[number]
    assert old.stop() == 0
    assert "ERROR" not in old.log, old.log
    environ = {**settings, "SIDESTREAM_REDIS_URL": replicas.redis.url, "SIDESTREAM_PUBLIC_METRICS": "true"}
    command = [sys.executable, "-m", "uvicorn", "service:app", "--port", str(old.port)]
    new = replicas.services[number] = Service(environ, command, old.port, folder / f"{number}.log")
    eventually(lambda: reach(new.wait())["redis"] == "up")


def check_well(replicas: Replicas) -> None:
    """Fail unless nobody complains, has lost a run, or follows one still."""
    for service in replicas.services:
        assert "ERROR" not in service.log, service.log
        eventually(lambda service=service: reach(service)["mirror_viewers"] == 0)
        told = reach(service)
        assert (told["redis"], told["behind_events"], told["lost_runs"]) == ("up", 0, 0)


# --- what chance has found --------------------------------------------------------------------------------------------


def sent_away(port: int, url: str, seen: str) -> bool:
    """Tell whether who follows a run there is sent elsewhere, and told nothing else."""
    with resume(port, url, seen) as client:
        client.read()
        return [event.name for event in came(client)] == ["draining"]


def test_a_replica_that_goes_takes_no_socket_that_was_lost_elsewhere(start_replicas: StartReplicas) -> None:
    """It could not send it away, and would wait for it as long as it may."""
    replicas = start_replicas(SIDESTREAM_DRAIN_TIMEOUT="20")
    owner, other = replicas.services
    created = create(owner.port, message="Hi", model="scripted/stall")
    with post(other.port, message="Hi", model="scripted/silent") as staying:
        staying_run = staying.until("start").data["run"]
        other.process.terminate()
        eventually(lambda: status_of(owner.port, created["status_url"])["tokens"] == 8)
        eventually(lambda: sent_away(other.port, created["events_url"], f"{created['id']}-9"))
        resumed = f"/ws/chat?resume={created['id']}-0"
        with Client(other.port, "GET", resumed, headers=UPGRADE) as line:
            assert (line.head()[0], json.loads(line.read())["code"]) == (503, "unavailable")
        with RawSocket(owner.port, f"resume={created['id']}-0") as line:
            eventually(lambda: line.take(len(line.raw) + 1) and line.events)
        stop(other.port, f"/runs/{staying_run}")
    stop(owner.port, f"/runs/{created['id']}")
    assert other.process.wait(DEADLINE) == 0


def test_a_replica_whose_time_is_up_says_of_no_other_replicas_run_that_it_has_ended(
    start_replicas: StartReplicas,
) -> None:
    """It ends them for those it cannot send elsewhere. All others are sent, also who asks for one while it closes."""
    replicas = start_replicas(SIDESTREAM_DRAIN_TIMEOUT="1")
    owner, other = replicas.services
    words = [f" {number}" + "x" * 3000 for number in range(4000)]  # more than is taken at once, or is between
    options = {"script": [{"say": "".join(words)}, {"hang": True}]}
    created = create(owner.port, message="Hi", model="scripted/custom", provider_options=options)
    eventually(lambda: status_of(owner.port, created["status_url"])["tokens"] == len(words))
    # Ended there for who stays, and asked for then: it is small, so that to fetch it anew takes none of those 2 s.
    short = create(owner.port, message="Hi", model="scripted/stall")
    eventually(lambda: status_of(owner.port, short["status_url"])["tokens"] == 8)
    last = f"{short['id']}-9"
    with (
        RawSocket(other.port, f"resume={created['id']}-0", receive_buffer=4096),  # which takes none of it, so that
        post(other.port, headers={"Last-Event-ID": last}) as staying,  # there are 2 s between their end and its own
        Client(other.port, "GET", created["events_url"], receive_buffer=2**16) as slow,
    ):
        for client in (staying, slow):
            assert client.head()[0] == 200
        other.process.terminate()
        assert staying.until("cancelled").data["reason"] == "draining"
        assert status_of(other.port, short["status_url"])["state"] == "running"
        assert sent_away(other.port, short["events_url"], last)
        assert other.process.poll() is None
        slow.raw += b"".join(iter(lambda: slow.socket.recv(2**20), b""))
        names = [event.name for event in came(slow)]
        assert names == ["start", *["token"] * (len(names) - 2), "draining"]
    for run in (created, short):
        stop(owner.port, run["status_url"])


def test_nor_where_it_could_not_send_anybody_elsewhere_before(start_replicas: StartReplicas, redis: Redis) -> None:
    """As it waits for Redis; and as for a moment, at each end of a replica, it does not know yet that it may."""
    owner, other = start_replicas(redis=redis, SIDESTREAM_DRAIN_TIMEOUT="0").services
    created = create(owner.port, message="Hi", model="scripted/stall")
    eventually(lambda: status_of(owner.port, created["status_url"])["tokens"] == 8)
    seen = [f"{created['id']}-{number}" for number in (0, 9, 10)]  # the last of them is still to come
    with ExitStack() as stack:
        first, second, ahead = [stack.enter_context(resume(other.port, created["events_url"], after)) for after in seen]
        first.until("token")
        assert second.head()[0] == 200
        redis.pause()
        other.process.terminate()
        for client in (first, second, ahead):
            client.read()
            assert [event.name for event in came(client)][-1] == "draining"
            assert "cancelled" not in [event.name for event in came(client)]
    redis.go_on()
    stop(owner.port, created["status_url"])


def test_a_replica_that_has_not_met_redis_yet_refuses_nothing_that_others_have_signed(
    start_replicas: StartReplicas, redis: Redis
) -> None:
    """It cannot know of it: so it sends elsewhere whom a refusal would stop for good."""
    (owner,) = start_replicas(number=1, redis=redis, **SETTINGS).services
    created = create(owner.port, WITH_KEY, message="Hi", model="scripted/stall")
    redis.pause()
    (other,) = start_replicas(number=1, redis=redis, waits=False, **SETTINGS).services
    assert sent_away(other.port, created["events_url"], "")
    redis.go_on()
    eventually(lambda: reach(other)["redis"] == "up")
    with get(other.port, created["events_url"]) as client:
        assert client.until("token").data["token"].startswith("These")
    forged = created["events_url"].replace("signature=", "signature=A")
    assert refused(get(other.port, forged))[:2] == (403, "forbidden")
    stop(owner.port, created["status_url"])
