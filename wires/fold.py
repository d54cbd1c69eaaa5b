"""Wires of others, as folds over a run's log: events in, chunks out, all state (open parts, places) of events alone.

So any of them can be taken up again anywhere: fold from the first event, and leave out what the client has. A wire
whose clients count chunks never merges events, since then its chunks are the same each time.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from streaming.errors import Fault, RequestError, fault
from streaming.events import Done, Event, Reset, Terminal
from streaming.followed import Followed
from streaming.log import LOST_AT, Cursor, EventLog
from streaming.request import Headers, RunRequest, Takes

from .chat import ChatRequest, json_line
from .problem import status_headers
from .viewer import Form, Viewer, failure

COMMENT = b": ping\n\n"


class Encoder(Protocol):
    """One wire's fold over one run, in mid-stream.

    `has_said`: anything of the answer, not only how the run began. `is_over`: it has said its last word, though the run
    may go on, as it does with an answer that this wire cannot take back (`reset`).
    """

    has_said: bool
    is_over: bool

    def feed(self, event: Event, /) -> Iterable[bytes]:
        """Return the chunks that an event makes; with the terminal one, all that closes the stream."""


class Folded:
    """The form of an encoder, for one viewer. `skip` chunks at the beginning are left out: the client has them."""

    opening = b""
    farewell = None

    def __init__(
        self, encoder: Encoder, *, ping: bytes = COMMENT, holds: bool = False, merges: bool = True, skip: int = 0
    ) -> None:
        self.ping = ping
        self.holds = holds
        self._encoder = encoder
        self._merges = merges
        self._skip = skip

    @property
    def has_said(self) -> bool:
        return self._encoder.has_said

    def pass_over(self, log: EventLog, after: int) -> None:
        """Fold what comes up to event `after`, and say nothing of it."""
        for _, event in log.merged(0, after):
            for _ in self._encoder.feed(event):
                pass

    def take(self, cursor: Cursor) -> bytes:
        chunks: list[bytes] = []
        for seq, event in cursor.take() if self._merges else cursor.take_each():
            said = self._encoder.feed(event)
            chunks += self._unseen(seq, [*said]) if self._skip else said
            if self._encoder.is_over:
                cursor.stop()
                break
        return b"".join(chunks)

    def _unseen(self, seq: int, chunks: list[bytes]) -> list[bytes]:
        """Leave out what the client has: of the end of a run that is lost, nothing."""
        if seq == LOST_AT:
            return chunks
        left_out, self._skip = self._skip, max(self._skip - len(chunks), 0)
        return chunks[left_out:]


class Whole:
    """The form of a caller who wants no stream: it waits for the end of `run`, of which `tell` makes the answer.

    What the run fails by, or `tell` raises, is told by a status. `whatever`: `tell` makes an answer of any end.
    """

    opening = ping = b""
    farewell = None
    holds = True

    def __init__(self, run: Followed, tell: Callable[[Followed], Any], *, whatever: bool = False) -> None:
        self.has_said = False
        self._run = run
        self._tell = tell
        self._ending = Terminal if whatever else Done

    def take(self, cursor: Cursor) -> bytes:
        cursor.take()
        if self.has_said or not isinstance(self._run.terminal, self._ending):
            return b""
        answer = json_line(self._tell(self._run))
        self.has_said = True
        return answer


class Answer(Response):
    """Carries a viewer's run as one JSON document."""

    media_type = "application/json"

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._viewer.serve(self.raw_headers, scope, receive, send)


# What vendors' clients know by a status of their own; what an upstream refuses of a request is the request's fault.
STATUS = {"upstream_rejected": 400, "context_length": 400, "content_filtered": 400, "upstream_rate_limited": 429}


def status_of(failed: Fault) -> int:
    """Return the status that a vendor's client knows a fault by."""
    return STATUS.get(failed.code, failed.status)


def refusal(failed: Fault, body: Mapping[str, Any]) -> Response:
    """Answer a vendor's client with its own error object. What it had better not try again, it is told not to."""
    headers = status_headers(failed)
    if not failed.retryable:
        headers["X-Should-Retry"] = "false"  # both vendors' SDKs go by it before they go by the status
    return Response(json_line(body), status_of(failed), headers, "application/json")


def unsayable(event: Reset) -> Fault:
    """Return what a viewer is told where the answer is taken back, and its wire has no word for that."""
    return fault(event.reason, "The answer broke off, and another model begins anew; here that cannot be told.")


def no_answer(ending: Terminal | None) -> Fault | None:
    """Return why a run that is over has no whole answer for a vendor's client, if so."""
    if isinstance(ending, Done) and ending.finish_reason == "interrupt":
        return RequestError("interrupted", "The graph waits for a person; here that cannot be told.")
    return failure(ending)


class Asked(NamedTuple):
    """A request as its wire has read it: what to run, and how its run is to be told.

    `api`, `verbatim` and `passed`: the body and headers, in the words of that API, for an upstream that speaks it too.
    `about` is kept with the run, for whoever is to tell it again; under its `name` the owner's newest one can be found.
    `fit` makes of the request what each of those who are to be asked takes; a model does not say what it takes.
    """

    chat: ChatRequest
    form: Callable[[Followed], Form]
    streams: bool = True
    linger: float | None = None
    api: str = ""
    verbatim: dict[str, Any] | None = None
    passed: Headers = ()
    name: str = ""
    about: Mapping[str, Any] = {}
    fit: Callable[[RunRequest, Takes | None], RunRequest] = lambda request, takes: request


class Wire(NamedTuple):
    """What a wire is to its endpoint. `decode` raises RequestError; `tell` says a fault before the first byte.

    `passes` names the headers that an upstream of the same API gets with the body as it came. `takes_text`: a client of
    its posts JSON as plain text, which is what `fetch` makes of a string.
    """

    decode: Callable[[bytes], Asked]
    tell: Callable[[Fault], Response]
    headers: Callable[[Followed], dict[str, str]] = lambda run: {}
    passes: tuple[str, ...] = ()
    takes_text: bool = False
