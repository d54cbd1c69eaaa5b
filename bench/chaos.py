"""The soak's upstream, which misbehaves: it speaks three APIs, on one port.

What becomes of an attempt is drawn from the seed, the prompt's label, the model and how many attempts there were, so
the same seed makes the same faults, however the requests are interleaved. Each attempt is kept until `forget`, for
whoever judges what a client has got of it. What an answer says is not decided here (answers.py).
"""

import asyncio
import json
import random
import socket
import struct
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from answers import DIALECTS, KEY, Dialect, sse, words

FLOOD = 500  # words from which on there is no pause between them
IDLE = 2.0  # seconds an idle connection is kept, at most


class Fault(NamedTuple):
    """One way to answer: how often, of a hundred faults, and the codes of an error that it may come to."""

    weight: int
    codes: str


BROKEN = "upstream_incomplete"
# A reset may overtake what was sent before it: then there was no answer at all.
RESET = "upstream_incomplete upstream_unavailable"
SILENT = "first_token_timeout"
FAULTS = {
    "429": Fault(6, "upstream_rate_limited"),
    "429 now": Fault(4, "upstream_rate_limited"),
    "429 soon": Fault(4, "upstream_rate_limited"),
    "429 late": Fault(4, "upstream_rate_limited"),
    "500": Fault(6, "upstream_unavailable"),
    "503": Fault(5, "upstream_unavailable"),
    "503 not again": Fault(2, "upstream_unavailable"),
    "400": Fault(3, "upstream_rejected"),
    "reset": Fault(7, "upstream_unavailable"),
    "silent": Fault(3, SILENT),
    "headers": Fault(3, SILENT),
    "stall": Fault(6, f"{SILENT} idle_timeout"),
    "cut": Fault(8, BROKEN),
    "cut by FIN": Fault(7, BROKEN),
    "cut by RST": Fault(7, RESET),
    "no terminator": Fault(3, BROKEN),
    "malformed twice": Fault(6, "upstream_invalid"),
    "error": Fault(6, "upstream_unavailable"),
    "garbage": Fault(6, RESET),
    "wrong type": Fault(4, "upstream_invalid"),
}
STATUSES = {
    "429": (429, ""),
    "429 now": (429, "Retry-After: 0\r\n"),
    "429 soon": (429, "retry-after-ms: 150\r\n"),
    "429 late": (429, "Retry-After: 60\r\n"),
    "500": (500, ""),
    "503": (503, "Retry-After: 0\r\n"),
    "503 not again": (503, "x-should-retry: false\r\n"),
    "400": (400, ""),
}


@dataclass
class Attempt:
    """One request, and what it is answered: `text`, of which a client may have a prefix, and all if it is `whole`."""

    label: str
    provider: str
    model: str
    fault: str = "well"
    text: str = ""
    whole: bool = False
    skipped: int = 0
    words: int = 0  # it counts in its usage
    tokens: int = 0  # in its text
    in_flight: bool = True


class Gone(Exception):
    """The client has hung up."""


class Chaos:
    """The upstream. `badness` is the share of attempts that go wrong; of the models of odd numbers it is half.

    An answer takes `longest` seconds on average, where it takes its time.
    """

    def __init__(self, seed: int, longest: float, badness: float = 0.7) -> None:
        self.seed = seed
        self.longest = longest
        self.badness = badness
        self.port = 0
        self.open = 0  # connections
        self.requests = 0
        self.faults: Counter[str] = Counter()
        self.complaints: list[str] = []
        self._attempts: dict[str, list[Attempt]] = {}
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> "Chaos":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for writer in self._serving.values():
            writer.transport.abort()
        await asyncio.gather(*self._serving)

    def attempts(self, label: str) -> list[Attempt]:
        return self._attempts.get(label, [])

    def forget(self, label: str) -> None:
        self._attempts.pop(label, None)

    def in_flight(self) -> list[Attempt]:
        return [one for attempts in self._attempts.values() for one in attempts if one.in_flight]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._serving[task] = writer
        self.open += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError, Gone):
            pass
        except Exception as exc:  # a fault of this upstream's own, or a request that no API would take
            self.complaints.append(f"upstream: {exc!r}")
        finally:
            self.open -= 1
            del self._serving[task]
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; tell whether the connection may serve again."""
        impatience = random.Random(f"{self.seed}/{self.requests}").uniform(0, 5 * IDLE)
        async with asyncio.timeout(impatience if impatience < IDLE else None):
            first = await reader.readline()
        if not first:
            return False
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        dialect = DIALECTS[first.split()[1].decode()]
        attempt = self._begin(dialect, body["model"], prompt := dialect.prompt(body))
        rng = random.Random(f"{self.seed}/{attempt.label}/{attempt.model}/{len(self.attempts(attempt.label))}")
        try:
            self._draw(attempt, rng)
            answering = _Answering(reader, writer, dialect, attempt, prompt, rng, self.longest)
            return await answering.play(attempt.fault)
        finally:
            attempt.in_flight = False

    def _begin(self, dialect: Dialect, model: str, prompt: str) -> Attempt:
        attempt = Attempt(prompt.split()[1], dialect.provider, model)
        self._attempts.setdefault(attempt.label, []).append(attempt)
        self.requests += 1
        return attempt

    def _draw(self, attempt: Attempt, rng: random.Random) -> None:
        """Draw what becomes of an attempt."""
        share = self.badness * (0.5 if int(attempt.model[1:]) % 2 else 1.0)
        if rng.random() < share:
            attempt.fault = rng.choices([*FAULTS], [fault.weight for fault in FAULTS.values()])[0]
        elif rng.random() < 0.1:
            attempt.fault = rng.choice(["malformed", "late"])
        self.faults[attempt.fault] += 1


class _Answering:
    """The answer to one request."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        dialect: Dialect,
        attempt: Attempt,
        prompt: str,
        rng: random.Random,
        longest: float,
    ) -> None:
        self._longest = longest
        self._reader = reader
        self._writer = writer
        self._dialect = dialect
        self._attempt = attempt
        self._prompt = prompt
        self._rng = rng
        self._gzip = zlib.compressobj(wbits=31) if rng.random() < 0.08 else None
        # Else the answer ends with its connection.
        self._framed = rng.random() > 0.05 or attempt.fault == "garbage"

    async def play(self, fault: str) -> bool:
        if fault in STATUSES:
            return self._refuse(*STATUSES[fault])
        if fault == "reset":
            return self._reset()
        if fault == "silent":
            return await self._hold()
        if fault == "wrong type":
            self._writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\noops")
            return True
        if fault == "late":
            await asyncio.sleep(self._rng.uniform(0.05, 0.4))
        said, left = self._planned(fault)
        self._head()
        await self._send(said)
        return await self._end(fault, left)

    def _planned(self, fault: str) -> tuple[list[bytes], list[bytes]]:
        """Return what is sent before the fault, and what would follow; note what text the first of them is."""
        attempt, dialect, rng = self._attempt, self._dialect, self._rng
        deltas = words(attempt.model, self._prompt)
        attempt.words = len(deltas)
        read = len(self._prompt)
        opening, ending = dialect.opening(attempt.model, read), dialect.ending(attempt.model, read, len(deltas))
        content = list(map(dialect.token, deltas))
        bad = [sse("{oops"), dialect.token({"no": "text"})]
        if fault == "malformed":  # in the place of a chunk, or between two
            place = rng.randrange(len(content))
            content[place : place + rng.randrange(2)] = [rng.choice(bad)]
            attempt.skipped = 1
            if len(content) == len(deltas):
                del deltas[place]
        elif fault == "malformed twice":
            for place in sorted(rng.sample(range(len(content) + 1), 2), reverse=True):
                content.insert(place, rng.choice(bad))
            attempt.text = "".join(deltas[: place_of_second(content, bad)])
            return [*opening, *content, *ending], []
        if fault in ("well", "late", "malformed"):
            attempt.text, attempt.tokens, attempt.whole = "".join(deltas), len(deltas), True
            return [*opening, *content, *ending], []
        if fault == "no terminator":
            attempt.text, attempt.tokens, attempt.whole = "".join(deltas), len(deltas), dialect.whole_without_terminator
            return [*opening, *content, *ending[:-1]], []
        place = 0 if rng.random() < 0.25 or fault == "headers" else rng.randrange(len(content) + 1)
        attempt.text = "".join(deltas[:place])
        opening = [] if fault == "headers" or (place == 0 and rng.random() < 0.5) else opening
        return [*opening, *content[:place]], content[place:] or ending

    async def _end(self, fault: str, left: list[bytes]) -> bool:
        if fault in ("stall", "headers"):
            return await self._hold()
        if fault == "error":
            await self._send([self._dialect.error(f"{KEY} {self._prompt}")])
        if fault == "garbage":
            self._writer.write(b"zz\r\n" + left[0])
            return await self._hold()
        if fault == "cut by RST":
            return self._reset()
        if fault == "cut by FIN" or not self._framed:
            return False
        if self._gzip:
            self._frame(self._gzip.flush())
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()
        return True

    def _refuse(self, status: int, headers: str) -> bool:
        text = json.dumps({"error": {"message": f"{KEY} says {self._prompt}", "type": "server_error"}}).encode()
        head = f"HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n{headers}\r\n"
        self._writer.write(head.encode() + text)
        return True

    def _reset(self) -> bool:
        with suppress(OSError):  # it has gone before
            sock = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        return False

    async def _hold(self) -> bool:
        """Say nothing more until the client goes."""
        await self._writer.drain()
        if await self._reader.read(1):
            raise ValueError("a request behind one that has no answer yet")
        return False

    def _head(self) -> None:
        framing = "Transfer-Encoding: chunked" if self._framed else "Connection: close"
        coding = "Content-Encoding: gzip\r\n" if self._gzip else ""
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n{coding}{framing}\r\n\r\n"
        self._writer.write(head.encode())

    async def _send(self, chunks: list[bytes]) -> None:
        """Send in one of several manners: at once, chunk by chunk with or without pauses, or split anywhere."""
        if len(chunks) > FLOOD:
            manner, pause = self._rng.choice(["at once", "split"]), 0.0
        else:
            manner = self._rng.choice(["at once", "split", "steady", "steady", "drip"])
            pause = min({"steady": 0.03, "drip": 0.15}.get(manner, 0.0), self._longest / max(len(chunks), 1))
        whole = b"".join(chunks)
        for piece in {"at once": [whole], "split": self._split(whole)}.get(manner, chunks):
            if self._reader.at_eof():
                raise Gone
            if piece:
                self._write(piece)
            await self._writer.drain()
            await asyncio.sleep(self._rng.uniform(0, 2 * pause))

    def _split(self, whole: bytes) -> list[bytes]:
        places = sorted(self._rng.randrange(len(whole) + 1) for _ in range(min(len(whole), 20)))
        return [whole[begin:end] for begin, end in pairwise([0, *places, len(whole)])]

    def _write(self, piece: bytes) -> None:
        if self._gzip:
            piece = self._gzip.compress(piece) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
        self._frame(piece)

    def _frame(self, piece: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._framed else piece)


def place_of_second(content: list[bytes], bad: list[bytes]) -> int:
    """Return how many good chunks are before the second bad one."""
    first, second = [place for place, chunk in enumerate(content) if chunk in bad][:2]
    assert first < second
    return second - 1
