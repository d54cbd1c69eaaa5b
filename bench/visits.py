"""The soak's clients: each makes a run, follows it in some way of its own, and sees what became of it.

Which way is drawn from the seed and the visit's number. It does not judge what was said (history.py), but statuses,
streams that are cut or hang, and upstreams that are not let go.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from answers import MODELS, PROVIDERS, prompt_of
from chaos import Attempt, Chaos
from history import History, agrees, is_right
from streams import Client, Cut, Headers

PATIENCE = 40.0  # seconds for a visit; more than the longest chain of timeouts takes
SETTLE = 1.5  # seconds after the end of a run, within which its upstream must see the end of its connection


class Wrong(Exception):
    """The service did what it must not."""


class Forgotten(Exception):
    """The run was over for longer than runs are kept: a busy machine looks too late."""


BAD: list[tuple[str, str, bytes, int]] = [
    ("POST", "/chat/stream", b"{", 400),
    ("POST", "/chat/stream", b'{"message": ""}', 400),
    ("POST", "/chat/stream", b'{"message": "x", "model": "nobody/a0"}', 404),
    ("POST", "/chat/stream", b'{"message": "x", "model": []}', 400),
    ("POST", "/runs", b'{"message": "x", "linger": 0}', 400),
    ("POST", "/runs", b'{"message": "x", "idle_timeout": 9999}', 400),
    ("GET", "/chat/stream?message=x&message=y", b"", 400),
    ("GET", f"/runs/{'0' * 32}", b"", 404),
    ("GET", f"/runs/{'0' * 32}/events", b"", 404),
    ("GET", f"/chat/stream?last_event_id={'0' * 32}-7", b"", 404),
    ("GET", "/chat/stream?last_event_id=nonsense", b"", 400),
    ("PUT", "/runs", b"{}", 405),
    ("GET", "/readyz?verbose", b"", 200),
    ("GET", "/metrics", b"", 200),
    ("GET", "/v1/models", b"", 200),
]


class Visits:
    """What all clients share: where the service is, what its upstream plays, and what was found."""

    def __init__(self, port: int, chaos: Chaos, keep: float, seed: int, complain: Callable[[str], object]) -> None:
        self.port = port
        self.keep = keep
        self.chaos = chaos
        self.seed = seed
        self.complain = complain
        self.endings: Counter[str] = Counter()
        self.ways: Counter[str] = Counter()

    async def one(self, number: int) -> None:
        """Make one visit and complain of what was wrong with it."""
        visit = Visit(self, number)
        try:
            async with asyncio.timeout(PATIENCE):
                await visit.make()
        except Exception as exc:
            for one in exc.exceptions if isinstance(exc, ExceptionGroup) else [exc]:
                if isinstance(one, Forgotten):
                    self.endings["seen too late, forgotten"] += 1
                else:
                    visit.complain_of_all(_told(one))
        finally:
            visit.close()
            self.chaos.forget(visit.label)


def _told(exc: Exception) -> str:
    if isinstance(exc, Wrong):
        return str(exc)
    if isinstance(exc, Cut):
        return "the connection was cut"
    if isinstance(exc, TimeoutError):
        return f"hangs for {PATIENCE:g} s"
    return f"what came cannot be understood: {exc!r}"


class Visit:
    """One client, or several of one run."""

    def __init__(self, shared: Visits, number: int) -> None:
        self.label = f"v{number}"
        self._shared = shared
        self._rng = rng = random.Random(f"{shared.seed}/visit/{number}")
        self._run = ""
        self._way = ""
        self._left = self._stopped = False
        self._histories: list[History] = []
        self._clients: list[Client] = []
        self._slow_until = 0.0
        self._whole: History | None = None
        self._status: dict[str, Any] = {}
        count = rng.choice([1, 3, 8, 20, 20, 40, 40, 80])
        if rng.random() < 0.02:
            count = 3000
        self._prompt = prompt_of(self.label, count, rng.choice([0] * 30 + [5_000, 200_000]))
        self._asked = self._candidates()
        names = [f"{provider}/{model}" for provider, model in self._asked]
        self._body: dict[str, Any] = {"message": self._prompt, "model": names if len(names) > 1 else names[0]}
        if rng.random() < 0.2:
            self._body["model"] = {"models": names, "on": ["upstream_rejected", "upstream_auth"]}

    def _candidates(self) -> list[tuple[str, str]]:
        """Draw one to three; half of the time their answers begin alike."""
        rng = self._rng
        voices = rng.choice(["aaa", "acd", "dac", "ccc", "bda", "abc", "dbb", "aba"])
        found = dict.fromkeys(
            (rng.choice(PROVIDERS), rng.choice([model for model in MODELS if model[0] == voice]))
            for voice in voices[: rng.choice([1, 2, 2, 3, 3])]
        )
        return list(found)

    def complain(self, what: str) -> None:
        who = f"run {self._run}" if self._run else "no run"
        self._shared.complain(f"{who} ({self.label}, {self._way}): {what}")

    def complain_of_all(self, what: str) -> None:
        """Complain of what ended the visit, and of what was seen before."""
        for complaint in [what, *(said for history in self._histories for said in history.complaints)]:
            self.complain(complaint)

    def close(self) -> None:
        for client in self._clients:
            client.leave(reset=False)

    async def make(self) -> None:
        ways = {
            self._read: 25,
            self._hang_up: 20,
            self._resume: 20,
            self._many: 12,
            self._stop: 10,
            self._abandon: 4,
            self._ask_twice: 4,
            self._ask_badly: 5,
        }
        way = self._rng.choices(list(ways), list(ways.values()))[0]
        self._way = way.__name__.strip("_").replace("_", " ")
        self._shared.ways[self._way] += 1
        await way()
        if self._run:
            await self._audit()
        else:
            await asyncio.sleep(0.2)  # what was asked last may reach the upstream behind its client's end
        await self._landed([one for one in self._attempts if one.in_flight])

    # The ways.

    async def _read(self) -> None:
        """From the beginning to the end, fast or slowly."""
        await self._follow(await self._begin(), History())

    async def _hang_up(self) -> None:
        """At any phase; some come back by their key."""
        rng = self._rng
        headers = {"Idempotency-Key": f"key of {self.label}"} if rng.random() < 0.3 else {}
        client = await self._begin(headers)
        self._left = True
        phase = rng.choice(["request", "wait", "head", "events", "events"])
        try:
            if phase == "wait":
                await asyncio.sleep(rng.uniform(0, 1.5))
            elif phase != "request":
                await self._follow(client, History(), most=0 if phase == "head" else rng.randrange(30))
        finally:
            client.leave(reset=rng.random() < 0.5)
        if headers:
            await self._follow(await self._begin(headers), History())

    async def _resume(self) -> None:
        """Lost and found again, some times."""
        self._body["linger"] = 6.0
        await self._with_resumes(History(), await self._begin())

    async def _many(self) -> None:
        """Several viewers of one run: some stay, some leave, some come back."""
        self._body["linger"] = 6.0
        await self._create()
        async with asyncio.TaskGroup() as viewers:
            for _ in range(self._rng.randint(2, 5)):
                viewers.create_task(self._view())

    async def _view(self) -> None:
        rng = self._rng
        await asyncio.sleep(rng.choice([0, rng.uniform(0, 0.5)]))
        client = await self._ask("GET", f"/runs/{self._run}/events", self._accept())
        way = rng.random()
        if way < 0.4:
            await self._follow(client, History())
        elif way < 0.7:
            await self._with_resumes(History(), client)
        else:
            try:
                self._left = True
                await self._follow(client, History(), most=rng.randrange(20))
            finally:
                client.leave(reset=rng.random() < 0.5)

    async def _stop(self) -> None:
        """By DELETE, while somebody follows."""
        rng = self._rng
        self._stopped = True
        history = History()
        if rng.random() < 0.5:
            await self._create()
            client = await self._ask("GET", f"/runs/{self._run}/events", self._accept())
        else:
            client = await self._begin()
            await self._head(client)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._follow(client, history))
            await asyncio.sleep(rng.choice([0, rng.uniform(0, 1)]))
            for _ in range(rng.choice([1, 1, 2])):
                status, _ = await self._fetch("DELETE", f"/runs/{self._run}")
                if status != 204:
                    await self._check_kept()
                    raise Wrong(f"DELETE answers {status}")
            await self._landed([one for one in self._attempts if one.in_flight])

    async def _abandon(self) -> None:
        """A run that nobody ever follows."""
        self._body["linger"] = self._rng.uniform(0.05, 1)
        self._left = True
        await self._create()

    async def _ask_twice(self) -> None:
        """At once, with one key: there is one run."""
        headers = {"Idempotency-Key": f"key of {self.label}"}
        clients = [await self._begin(headers) for _ in range(2)]
        async with asyncio.TaskGroup() as both:
            for client in clients:
                both.create_task(self._follow(client, History(), fast=True))

    async def _ask_badly(self) -> None:
        for _ in range(3):
            method, path, body, wanted = self._rng.choice(BAD)
            status, said = await self._fetch(method, path, body)
            if status != wanted or (status >= 400 and b'"code"' not in said):
                raise Wrong(f"{method} {path} {body!r} answers {status} {said!r}")
        headers = {"Content-Type": "application/json"}
        client = await Client.ask(self._shared.port, "POST", "/chat/stream", headers, b'{"message', lacking=50)
        client.leave(reset=self._rng.random() < 0.5)

    # Their steps.

    @property
    def _attempts(self) -> list[Attempt]:
        return self._shared.chaos.attempts(self.label)

    def _accept(self) -> Headers:
        return {"Accept": "application/x-ndjson"} if self._rng.random() < 0.3 else {}

    async def _ask(self, method: str, path: str, headers: Headers, body: bytes = b"") -> Client:
        slow = self._rng.random() < 0.15
        client = await Client.ask(self._shared.port, method, path, headers, body, slow=slow)
        self._clients.append(client)
        if slow:
            client.pace = self._slowly()
        return client

    def _slowly(self) -> Callable[[], tuple[int, float]]:
        """Read a few bytes at a time, or nothing for a while; then as it comes, since a run is not kept for long."""
        rng, loop = self._rng, asyncio.get_running_loop()
        self._slow_until = until = self._slow_until or loop.time() + rng.uniform(0.5, 2.5)
        nothing_until = until - rng.uniform(0.2, 1) if rng.random() < 0.5 else 0.0

        def pace() -> tuple[int, float]:
            now = loop.time()
            if now < nothing_until:
                return 65536, nothing_until - now
            return (rng.randint(1, 400), 0.005) if now < until else (65536, 0.0)

        return pace

    async def _begin(self, headers: Headers | None = None) -> Client:
        """Ask for a stream: by POST, or by GET as an EventSource does."""
        headers = {**self._accept(), **(headers or {})}
        if not headers and self._rng.random() < 0.2:
            query = {name: value if isinstance(value, str) else json.dumps(value) for name, value in self._body.items()}
            return await self._ask("GET", f"/chat/stream?{urlencode(query)}", headers)
        headers["Content-Type"] = "application/json"
        return await self._ask("POST", "/chat/stream", headers, json.dumps(self._body).encode())

    async def _create(self) -> None:
        body = json.dumps(self._body).encode()
        status, said = await self._fetch("POST", "/runs", body)
        if status != 201:
            raise Wrong(f"POST /runs answers {status} {said!r}")
        self._run = json.loads(said)["id"]

    async def _fetch(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"} if body else {}
        client = await Client.ask(self._shared.port, method, path, headers, body)
        try:
            return await client.head(), await client.read()
        finally:
            client.leave(reset=False)

    async def _head(self, client: Client, wanted: int = 200) -> None:
        status = client.status or await client.head()
        if status != wanted:
            await self._check_kept()
            raise Wrong(f"answered {status} {(await client.read())!r}, not {wanted}")
        run = client.headers.get("content-location", "").rpartition("/")[2]
        if run and self._run and run != self._run:
            await self._check_kept()
            raise Wrong(f"another run than {self._run}: {run}")
        self._run = self._run or run

    async def _follow(self, client: Client, history: History, *, most: int | None = None, fast: bool = False) -> None:
        """Take `most` events, or all of them, and then leave in order."""
        if history not in self._histories:
            self._histories.append(history)
        if fast:
            client.pace = lambda: (65536, 0.0)
        await self._head(client)
        taken = 0
        if most == 0:
            return
        async for event in client.events():
            history.take(event)
            taken += 1
            if taken == most:
                return
        if not history.ending:
            raise Wrong(f"the stream ended behind {history.last_id} without a terminal event")
        client.leave(reset=False)
        await self._read_again()

    async def _with_resumes(self, history: History, client: Client) -> None:
        """Follow to the end, over several connections."""
        rng = self._rng
        for _ in range(rng.randint(1, 4)):
            try:
                await self._follow(client, history, most=rng.choice([0, 1, 2, 5, 10, 20, 50]))
            finally:
                client.leave(reset=rng.random() < 0.5)
            await asyncio.sleep(rng.choice([0, 0, rng.uniform(0, 0.6)]))
            client = await self._come_back(history)
            if history.ending:
                await self._head(client, 204)
                client.leave(reset=False)
                return
        await self._follow(client, history)

    async def _come_back(self, history: History) -> Client:
        """Ask for what follows, by one of the ways there are."""
        way, headers = self._rng.randrange(4), self._accept()
        if history.last and way < 3:
            seen = f"?{urlencode({'last_event_id': history.last_id})}" if way == 0 else ""
            if way:
                headers["Last-Event-ID"] = history.last_id
            if way == 2:
                # A POST with an event id is looked at no further.
                return await self._ask(self._rng.choice(["GET", "POST"]), "/chat/stream", headers)
            return await self._ask("GET", f"/runs/{self._run}/events{seen}", headers)
        headers["Last-Event-ID"] = f"{self._run}-{history.last}"
        return await self._ask("GET", f"/runs/{self._run}/events", headers)

    # What became of it.

    async def _read_again(self) -> None:
        """Get all of a run that is over, once, as long as it is kept."""
        if self._whole:
            return
        whole = self._whole = History()
        self._status = await self._get_status()
        client = await Client.ask(self._shared.port, "GET", f"/runs/{self._run}/events", {}, b"")
        self._clients.append(client)
        await self._head(client)
        async for event in client.events():
            whole.take(event)

    async def _audit(self) -> None:
        """Hold all that was seen of a run against all that there is, once it is over."""
        loop = asyncio.get_running_loop()
        alone = loop.time() + (SETTLE if self._left and "linger" not in self._body else PATIENCE)
        while not self._whole:
            if (await self._get_status())["state"] != "running":
                await self._read_again()
            elif loop.time() > alone:
                raise Wrong("it goes on, though its last viewer has left")
            else:
                await asyncio.sleep(0.2)
        whole, status = self._whole, self._status
        for history in [whole, *self._histories]:
            for complaint in [*history.complaints, *agrees(history, whole)]:
                self.complain(complaint)
        for complaint in is_right(whole, status, self._attempts, self._asked):
            self.complain(complaint)
        self._count(status)

    async def _check_kept(self) -> None:
        """Raise Forgotten where the run is over for so long that it is not kept any more."""
        _, said = await self._fetch("GET", f"/soak/{self._run or '-'}")
        if (json.loads(said) or 0.0) > self._shared.keep:
            raise Forgotten

    async def _get_status(self) -> dict[str, Any]:
        code, said = await self._fetch("GET", f"/runs/{self._run}")
        if code != 200:
            await self._check_kept()
            raise Wrong(f"GET answers {code} {said!r}")
        found: dict[str, Any] = json.loads(said)
        return found

    def _count(self, status: dict[str, Any]) -> None:
        kind = status["state"]
        if kind == "cancelled":
            kind += f", {(reason := status['ending']['reason'])}"
            if not (self._stopped if reason == "requested" else self._left and reason == "disconnected"):
                self.complain(f"{kind}, but nobody did so")
        elif kind == "error":
            kind += f", {status['ending']['code']}"
        self._shared.endings[kind] += 1

    async def _landed(self, flying: list[Attempt]) -> None:
        """Complain unless the upstream sees the end of its connections."""
        until = asyncio.get_running_loop().time() + SETTLE
        while any(one.in_flight for one in flying):
            if asyncio.get_running_loop().time() > until:
                left = [f"{one.provider}/{one.model} ({one.fault})" for one in flying if one.in_flight]
                self.complain(f"it is over, but not for its upstream: {left}")
                return
            await asyncio.sleep(0.02)
