"""Every way an upstream may fail, in each API's words, and what is to come of it: data, and the playing of it.

`FAULTS` has a name and a function for each: of a dialect it makes what the upstream plays (tests/upstream.py), and
says what a client is told of it (`Met`). A fault is met in several ways, each in a `Lane` of its own:

    alone   nobody else may answer
    same    another upstream, of another API, gives the same answer, its text cut elsewhere
    other   it gives another answer: asked for where the first had begun to say something
    on      the same, where the fault is one that the next is asked for only if `on` names it

Not here: the table in the README (test_fault_matrix.py).
"""

import json
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, NamedTuple

from .client import Client, get, post
from .conftest import Service
from .recorded import (
    ANTHROPIC,
    DIALECTS,
    DONE,
    OPENAI,
    Dialect,
    Told,
    chat,
    chat_usage,
    claude_end,
    message,
    response,
    response_usage,
    sse,
    told,
)
from .resource import dispatched, status_of
from .upstream import END, EVENT_STREAM, FIN, HOLD, PAUSE, RST, Head, Raw, Repeat, Step, Upstream

Script = Sequence[Step]
TEXTS = ("One", " two", " three")  # of the answer; a fault in its middle comes after the second
WHOLE, BEGUN = "".join(TEXTS), "".join(TEXTS[:2])
SAME, OTHER = ("One tw", "o three"), ("Uno", " due")  # of another upstream
ENDED = "The upstream ended without finishing its answer."
BAD_JSON = sse('{"broken')
UNKNOWN = sse({"type": "a.type_to_come", "object": "a.thing.to.come", "choices": None}, "a.type_to_come")
MEGABYTE = 2**20
MAX_RUN_BYTES = 4 * MEGABYTE
# Seconds of silence, where that is the fault. The next candidate has as long to speak, on a machine that may be busy.
SILENCE = 1.5
PATIENCE = {"first_token_timeout": 15, "idle_timeout": 15}  # where it is not: longer than anything here takes
SETTINGS = {
    "SIDESTREAM_RETRY_DELAY": "0.05",
    "SIDESTREAM_MAX_RUN_BYTES": str(MAX_RUN_BYTES),
    "SIDESTREAM_BREAKER_ATTEMPTS": "1000000",  # a row leaves nothing to the next
}
WORDS = {
    "upstream_auth": "The upstream refused our credentials.",
    "upstream_rejected": "The upstream rejected the request.",
    "upstream_rate_limited": "The upstream is rate limiting us.",
    "upstream_unavailable": "The upstream is unavailable.",
    "upstream_incomplete": "The upstream broke off before the answer was whole.",
    "upstream_invalid": "The upstream sent something that could not be understood.",
    "content_filtered": "The upstream's content filter stopped this.",
    "context_length": "The conversation is longer than the model can take.",
    "output_limit": f"The answer is larger than {MAX_RUN_BYTES} bytes.",
    "first_token_timeout": f"The upstream sent nothing for {SILENCE} s.",
    "idle_timeout": f"The upstream sent nothing for {SILENCE} s.",
}
# What the next candidate is asked for only if `on` names it, and what nobody else is asked for at all.
ON = {"upstream_auth", "upstream_rejected", "content_filtered", "context_length"}
NEVER = {"output_limit"}


@dataclass(frozen=True, kw_only=True)
class Met:
    """A fault in a dialect's words, and what comes of it: `code`, or an answer that is whole where there is none.

    `scripts` are played to one request after the other; none where nobody listens. `said` is told of the answer, in
    `tokens` deltas; `opened`, the upstream said as much as what it has read. It takes `least` seconds, from
    when this is made.
    """

    scripts: Sequence[Script] = ()
    said: str = ""
    tokens: int = len(TEXTS)
    code: str = ""
    why: str = ""
    done: Mapping[str, Any] = field(default_factory=dict)
    opened: bool = False
    ended: str = "completed"
    limits: Mapping[str, float] = field(default_factory=lambda: PATIENCE)
    least: float = 0.0
    begun: float = field(default_factory=time.time)

    @property
    def retries(self) -> int:
        return len(self.scripts) - 1 if self.scripts else 2

    @property
    def filtered(self) -> bool:
        return "finish_reason" in self.done

    @property
    def third(self) -> str:
        """In which way it is met beside `alone` and `same`, if in any."""
        if self.filtered or self.code in ON:
            return "on"
        return "other" if self.said and self.is_passed_on("other") else ""

    def is_passed_on(self, way: str) -> bool:
        if self.filtered or self.code in ON:
            return way == "on"
        return way != "alone" and self.code not in {"", *NEVER}


# --- the faults -------------------------------------------------------------------------------------------------------


def tokens(d: Dialect, texts: Sequence[str] = TEXTS) -> list[bytes]:
    return [d.token(text) for text in texts]


def last(*chunks: bytes) -> Raw:
    """The last chunks and the end of the body in one write, so that nothing is left to chance between them."""
    whole = b"".join(chunks)
    return Raw(b"%x\r\n%b\r\n0\r\n\r\n" % (len(whole), whole))


def well(d: Dialect, texts: Sequence[str] = TEXTS) -> Script:
    return Head(), *d.opening, *tokens(d, texts), last(*d.ending)


def begun(d: Dialect, *rest: Step) -> Script:
    """An answer's beginning, and what becomes of it."""
    return Head(), *d.opening, *tokens(d, TEXTS[:2]), *rest


def status(code: int, body: bytes = b"{}", **headers: str) -> Script:
    kind = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return Head(code, {**kind, **{name.replace("_", "-"): value for name, value in headers.items()}}), body


def refused(d: Dialect, http: int, code: str, message: str = "", vendor_code: str | None = None) -> Met:
    """It is refused for good; the reason is passed on where the caller can mend it."""
    why = f"{WORDS[code][:-1]} (HTTP {http})." + (f" It says: {message}" if message else "")
    return Met(
        scripts=[status(http, json.dumps(d.error_body(message or "No.", code=vendor_code)).encode())],
        code=code,
        why=why,
    )


def always(script: Script, code: str, **other: Any) -> Met:
    return Met(scripts=[script] * 3, code=code, **other)


def once(d: Dialect, script: Script, least: float = 0.0) -> Met:
    return Met(scripts=[script, well(d)], said=WHOLE, least=least)


def whole(*script: Step, said: str = WHOLE, **other: Any) -> Met:
    return Met(scripts=[script], said=said, **other)


def broken(d: Dialect, *rest: Step, code: str = "upstream_incomplete", ended: str = "completed", **other: Any) -> Met:
    """It goes wrong after two tokens."""
    return Met(**{"scripts": [begun(d, *rest)], "said": BEGUN, "code": code, "ended": ended, "opened": True, **other})


def limited_until(d: Dialect) -> Met:
    date = int(time.time()) + 2  # a date has whole seconds: it is between one and two away
    return once(d, status(429, Retry_After=formatdate(date, usegmt=True)), date - time.time())


def per_byte(d: Dialect) -> Script:
    stream = b"".join([*d.opening, *tokens(d), *d.ending])
    return Head(), *(stream[i : i + 1] for i in range(len(stream) - 1)), last(stream[-1:])


def pressed(d: Dialect) -> Script:
    press = zlib.compressobj(wbits=31)
    chunks = [press.compress(c) + press.flush(zlib.Z_SYNC_FLUSH) for c in (*d.opening, *tokens(d))]
    return (
        Head(headers={**EVENT_STREAM, "Content-Encoding": "gzip"}),
        *chunks,
        last(*map(press.compress, d.ending), press.flush()),
    )


def too_long(d: Dialect) -> Met:
    if d is ANTHROPIC:  # which has no code for it, only words
        return refused(d, 400, "upstream_rejected", "prompt is too long: 9 > 8")
    return refused(d, 400, "context_length", "Too long.", "context_length_exceeded")


def filtered(d: Dialect) -> Met:
    if d is ANTHROPIC:
        return refused(d, 400, "upstream_rejected", "Output blocked.")
    return refused(d, 400, "content_filtered", "Filtered.", "content_filter")


def filtered_in_the_middle(d: Dialect) -> Met:
    endings = {
        "openai": [chat({}, "content_filter"), chat(usage=chat_usage(14, 8, cached=6)), DONE],
        "openai_responses": [
            *message(0, text="...", status="incomplete")[2:],
            response(
                "response.incomplete",
                incomplete_details={"reason": "content_filter"},
                usage=response_usage(14, 8, cached=6),
            ),
        ],
        "anthropic": claude_end("refusal", 8),
    }
    ending = last(*endings[d.provider])
    return whole(*begun(d, ending), said=BEGUN, tokens=2, done={"finish_reason": "content_filter"})


def without_done(d: Dialect) -> Met:
    """All but the last event. At OpenAI's chat that says nothing which the finish reason has not said."""
    script = (Head(), *d.opening, *tokens(d), *d.ending[:-1], END)
    return whole(*script, code="" if d is OPENAI else "upstream_incomplete", why=ENDED, opened=True)


def silent(code: str, *script: Step, **other: Any) -> Met:
    return Met(scripts=[script], code=code, ended="aborted", limits={**PATIENCE, code: SILENCE}, least=SILENCE, **other)


FAULTS: dict[str, Callable[[Dialect], Met]] = {
    "429 once, `Retry-After: 1`": lambda d: once(d, status(429, Retry_After="1"), 1.0),
    "429 once, `Retry-After` a date": limited_until,
    "429, `Retry-After: 60`": lambda d: Met(
        scripts=[status(429, Retry_After="60")],
        code="upstream_rate_limited",
        why="The upstream is rate limiting us (HTTP 429).",
    ),
    "429 once, without": lambda d: once(d, status(429)),
    "429 always, without": lambda d: always(
        status(429), "upstream_rate_limited", why="The upstream is rate limiting us (HTTP 429)."
    ),
    "500 once": lambda d: once(d, status(500)),
    "503 always": lambda d: always(status(503), "upstream_unavailable", why="The upstream is unavailable (HTTP 503)."),
    "connection refused": lambda d: Met(code="upstream_unavailable", why="The upstream cannot be reached."),
    "reset before the headers": lambda d: always((RST,), "upstream_unavailable", why="The upstream cannot be reached."),
    "accepted, and silent": lambda d: silent("first_token_timeout", HOLD),
    "headers, then nothing": lambda d: silent("first_token_timeout", Head(), HOLD),
    "first token late, but in time": lambda d: whole(
        Head(), *d.opening, Repeat(b"", 0.5, 1), *tokens(d), last(*d.ending), least=0.5
    ),
    "cut before the first token": lambda d: always((Head(), *d.opening, FIN), "upstream_incomplete", opened=True),
    "cut after 2 tokens, the body ended": lambda d: broken(d, END, why=ENDED),
    "cut after 2 tokens, FIN": lambda d: broken(d, FIN),
    "cut after 2 tokens, RST": lambda d: broken(d, PAUSE, RST),  # which overtakes what was not read yet
    "stall after 2 tokens": lambda d: silent("idle_timeout", *begun(d, HOLD), said=BEGUN, opened=True),
    "malformed JSON, once": lambda d: whole(
        *begun(d, BAD_JSON, d.token(TEXTS[2]), last(*d.ending)), done={"skipped_chunks": 1}
    ),
    "malformed JSON, twice": lambda d: broken(
        d, BAD_JSON, BAD_JSON, d.token(TEXTS[2]), HOLD, code="upstream_invalid", ended="aborted"
    ),
    "invalid UTF-8, once": lambda d: whole(
        *begun(d, d.token("@@").replace(b"@@", b"\xff\xfe"), d.token(TEXTS[2]), last(*d.ending)),
        done={"skipped_chunks": 1},
    ),
    "an unknown event type": lambda d: whole(*begun(d, UNKNOWN, d.token(TEXTS[2]), last(*d.ending))),
    "no terminator": lambda d: Met(
        scripts=[(Head(), *d.opening, *tokens(d), *d.ending[: -d.terminator], END)],
        said=WHOLE,
        code="upstream_incomplete",
        why=ENDED,
        opened=True,
    ),
    "all but the last event (`[DONE]`)": without_done,
    "an error object before the first token": lambda d: always(
        (Head(), *d.opening, d.errors["upstream_unavailable"], HOLD),
        "upstream_unavailable",
        opened=True,
        ended="aborted",
    ),
    "an error object after 2 tokens": lambda d: broken(
        d, d.errors["upstream_unavailable"], HOLD, code="upstream_unavailable", ended="aborted"
    ),
    "401": lambda d: refused(d, 401, "upstream_auth"),
    "400, the context is too long": too_long,
    "400, the content filter": filtered,
    "content filter after 2 tokens": filtered_in_the_middle,
    "a redirect": lambda d: Met(
        scripts=[status(302, Location=d.path)],
        code="upstream_rejected",
        why="The upstream rejected the request (HTTP 302).",
    ),
    "a wrong content type": lambda d: Met(
        scripts=[(Head(200, {**EVENT_STREAM, "Content-Type": "text/html"}), b"<html>", HOLD)],
        code="upstream_invalid",
        why="The upstream answered with something that is not an event stream.",
        ended="aborted",
    ),
    "slow, but below the limit": lambda d: whole(
        # In all longer than the limit, each wait far below it.
        *(Head(), *d.opening, Repeat(d.token(" drip"), 0.25, 7), last(*d.ending)),
        said=" drip" * 7,
        tokens=7,
        limits={**PATIENCE, "idle_timeout": SILENCE},
        least=7 * 0.25,
    ),
    "an answer of 100 MB": lambda d: Met(
        scripts=[(Head(), *d.opening, Repeat(d.token("x" * MEGABYTE), 0, 100))],
        said="x" * MAX_RUN_BYTES,
        code="output_limit",
        opened=True,
        ended="aborted",
    ),
    "a token of 1 MB": lambda d: whole(*well(d, ["One", "x" * MEGABYTE]), said="One" + "x" * MEGABYTE, tokens=2),
    "split at each byte": lambda d: whole(*per_byte(d)),
    "compressed (gzip)": lambda d: whole(*pressed(d)),
}


# --- playing them -----------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What a fault looked like: to the client, to who asks for the run, to the upstreams; and what came `after`."""

    events: Told
    text: str
    retries: int
    failovers: int
    resets: int
    first: list[str]
    second: list[str]
    after: Told
    complaints: list[str]


class Answer:
    """A response that was read to its end: taken apart once, since it may have megabytes."""

    def __init__(self, client: Client) -> None:
        self.head = client.head
        pieces, left = [client.raw], 2 * MAX_RUN_BYTES
        while piece := client.socket.recv(2**18):
            pieces.append(piece)
            left -= len(piece)
            assert left > 0, "more than any answer may have"
        client.raw = b"".join(pieces)
        self.body, self.whole = client.body, client.whole

    def __iter__(self):
        return iter(dispatched(self.body))


def events_of(client: Client) -> Told:
    return told(Answer(client))


class Lane:
    """A dialect and a way to meet its faults: two upstreams and their names in the service, shared with no other."""

    def __init__(self, dialect: Dialect, way: str, closed: int) -> None:
        self.dialect, self.way = dialect, way
        self.other = DIALECTS[DIALECTS.index(dialect) - 1]
        self.first, self.second = Upstream(), Upstream()
        self.name = f"{dialect.provider}-{way}"
        self.providers = {
            self.name: endpoint(dialect, self.first.port),
            f"{self.name}-refused": endpoint(dialect, closed),
            f"{self.name}-second": endpoint(self.other, self.second.port),
        }

    def meet(self, service: Service, met: Met, way: str) -> tuple[Seen, float]:
        """Play a fault; tell what was seen of it and of the next request, and how many seconds the fault took."""
        self.forget()
        for script in met.scripts:
            self.first.play(*script)
        if met.is_passed_on(way):
            self.second.play(*well(self.other, SAME if way == "same" else OTHER))
        name = self.name if met.scripts else f"{self.name}-refused"
        exchanges = []
        with self.ask(service, self.model(name, met, way), **met.limits) as client:
            if met.scripts and PAUSE in met.scripts[0]:
                exchanges.append(self.first.request())
                client.read_on(lambda body: met.said.split()[-1].encode() in body)
                exchanges[0].release()
            events = events_of(client)
            took = time.time() - met.begun
            run = status_of(service.port, client.head()[1]["content-location"])
        first = [one.wait().ended for one in (*exchanges, *requests(self.first))]
        second = [one.wait().ended for one in requests(self.second)]
        complaints = self.first.complaints + self.second.complaints
        complaints += ["a request that was scripted never came"] * bool(self.first.scripts or self.second.scripts)
        self.forget()
        self.first.play(*well(self.dialect))
        with self.ask(service, f"{self.name}/m") as client:
            after = events_of(client)
        asked = len(requests(self.first)), len(requests(self.second))
        complaints += [f"the next request was {asked} requests to them"] * (asked != (1, 0))
        return Seen(
            events, run["text"], run["retries"], run["failovers"], run["resets"], first, second, after, complaints
        ), took

    def forget(self) -> None:
        """Let nothing of a fault that was met in another way than it should be come into what follows."""
        for upstream in (self.first, self.second):
            requests(upstream)
            upstream.scripts.clear()
            upstream.complaints.clear()

    def model(self, name: str, met: Met, way: str) -> object:
        models = [f"{name}/m", f"{self.name}-second/m"]
        if way == "on":
            return {"models": models, "on": [met.code or "content_filtered"]}
        return models[0] if way == "alone" else models

    def ask(self, service: Service, model: object, **limits: float) -> Client:
        # It is read to the end of the connection.
        return post(service.port, "/chat/stream", {"Connection": "close"}, message="Hi", model=model, **limits)

    def expected(self, met: Met, way: str) -> Seen:
        """Say what is to be seen."""
        d, passed = self.dialect, met.is_passed_on(way)
        name = self.name if met.scripts else f"{self.name}-refused"
        text = WHOLE if way == "same" else "".join(OTHER)
        anew = [start(f"{self.name}-second"), token(text), ("done", self.other.done(2))]
        if not passed:
            text = met.said
            events = [*([token(met.said)] if met.said else []), ending(d, met)]
        elif not met.said:
            events = anew
        elif way == "same":
            events = [token(WHOLE), ("done", self.other.done(len(TEXTS)))]
        else:
            events = [token(met.said), ("reset", {"reason": met.code or "content_filtered"}), *anew]
        return Seen(
            events=[start(name), *events],
            text=text,
            retries=met.retries,
            failovers=int(passed),
            resets=int(passed and bool(met.said) and way != "same"),
            first=[met.ended] * len(met.scripts),
            second=["completed"] * passed,
            after=[start(self.name), token(WHOLE), ("done", d.done(len(TEXTS)))],
            complaints=[],
        )


def endpoint(d: Dialect, port: int) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}" + ("" if d is ANTHROPIC else "/v1")
    return {"use": d.provider, "base_url": url, "api_key": "a-key-of-no-use"}


def requests(upstream: Upstream) -> list[Any]:
    """Take the requests that came since."""
    return [upstream.exchanges.get() for _ in range(upstream.exchanges.qsize())]


def start(provider: str) -> tuple[str, Any]:
    return "start", {"provider": provider, "model": "m"}


def token(text: str) -> tuple[str, Any]:
    return "token", {"token": text}


def ending(d: Dialect, met: Met) -> tuple[str, Any]:
    """The last event of who is asked alone."""
    if not met.code:
        return "done", d.done(met.tokens, **met.done)
    usage: dict[str, Any] = {
        "input_tokens": (met.opened and d.input_told) or 1,
        "output_tokens": -(-len(met.said) // 4),
    }
    if met.said or not (met.opened and d.input_told):  # else it has told all: what it has read, and that it wrote none
        usage["estimated"] = True
    text = met.why or WORDS[met.code]
    return "error", {"done": True, "error": text, "code": met.code, "retryable": met.code in RETRYABLE, "usage": usage}


RETRYABLE = WORDS.keys() - ON - NEVER


# --- flapping ---------------------------------------------------------------------------------------------------------

DOWN = 20.0  # seconds
PAUSE_OF_BREAKER = 5.0
OFTEN = 0.25  # seconds between requests: a client that keeps asking
FLAPPING_SETTINGS = {"SIDESTREAM_RETRY_DELAY": "0.05", "SIDESTREAM_BREAKER_PAUSE": f"{PAUSE_OF_BREAKER:g}"}


class Flapped(NamedTuple):
    """What was told of it: each run while the port was closed, and what followed; `back` seconds after it was open."""

    while_down: list[tuple[Told, int]]  # and how often it was asked again
    breaker_down: str
    while_away: list[Told]  # it is well, and not asked yet
    back: float
    well: Told
    breaker_well: str
    first: list[str]


class Flapping:
    """An upstream of which the port is closed for a time, and then open; alone, or with another to answer for it."""

    def __init__(self, dialect: Dialect, way: str) -> None:
        self.dialect, self.way = dialect, way
        self.name = f"{dialect.provider}-{way}"
        self.first, self.second = Upstream(), Upstream()
        self.providers = {
            self.name: endpoint(dialect, self.first.port),
            f"{self.name}-second": endpoint(dialect, self.second.port),
        }

    def play(self, service: Service, over: threading.Event) -> Flapped:
        """Ask again and again, for as long as it is down and until it serves again."""
        with self.second:
            ends = time.monotonic() + DOWN
            down = []
            while time.monotonic() < ends and not over.wait(OFTEN):
                down.append(self.ask(service))
            breaker_down = self.breaker(service)
            with self.first:
                return self.recover(service, down, breaker_down, over)

    def recover(self, service: Service, down: Any, breaker_down: str, over: threading.Event) -> Flapped:
        opened, away = time.monotonic(), list[Told]()
        self.first.play(*well(self.dialect))
        while not over.wait(OFTEN):
            asked = time.monotonic() - opened
            events, _ = self.ask(service)
            if events[0] == start(self.name) or asked > PAUSE_OF_BREAKER:
                break
            away.append(events)
        ended = [one.wait().ended for one in requests(self.first)]
        return Flapped(down, breaker_down, away, asked, events, self.breaker(service), ended)

    def ask(self, service: Service) -> tuple[Told, int]:
        if not self.second.scripts:
            self.second.play(*well(self.dialect))
        model = f"{self.name}/m" if self.way == "alone" else [f"{self.name}/m", f"{self.name}-second/m"]
        with post(service.port, "/chat/stream", {"Connection": "close"}, message="Hi", model=model) as client:
            events = events_of(client)
            return events, status_of(service.port, client.head()[1]["content-location"])["retries"]

    def breaker(self, service: Service) -> str:
        with get(service.port, "/readyz?verbose") as client:
            known = json.loads(client.read())["candidates"]
        return known.get(f"{self.name}/m", {"breaker": "closed"})["breaker"]
