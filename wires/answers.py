"""The shapes of what is answered as JSON, for who describes them (openapi.py) and who makes them.

A run's own events are not here: those are streaming/events.py.
"""

from typing import Literal, NotRequired, TypedDict

from streaming.breaker import State
from streaming.elsewhere import Reach
from streaming.events import Event, Outcome, Usage


class RunCreated(TypedDict):
    """Where a run is to be found. Its URLs are signed: until `expires` (seconds of the Unix epoch) they need no key."""

    id: str
    events_url: str
    status_url: str
    expires: int


class RunStatus(TypedDict):
    """How a run stands: its text so far, and its last event's data as `ending` once it is over.

    `position` is its place in line, 0 once it has begun. `ttft_ms` is the time to its first token.
    """

    id: str
    state: Literal["queued", "running"] | Outcome
    position: int
    provider: str
    model: str
    created: int
    text: str
    last_event_id: str
    tokens: int
    ttft_ms: int | None
    latency_ms: int
    usage: Usage
    viewers: int
    retries: int
    failovers: int
    resets: int
    ending: Event | None


class ListedModel(TypedDict):
    """A model, as OpenAI lists one. Of an alias the owner is `sidestream`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    """What can be asked for, the default first."""

    object: Literal["list"]
    data: list[ListedModel]


class Fares(TypedDict):
    """How a model fares: whether its breaker lets it be asked, and what that has counted."""

    breaker: State
    attempts: int
    failures: int


class Readiness(TypedDict):
    """Whether runs are begun, how many go on and wait in line, and how each model fares that was asked.

    `replication` is there where replicas share their runs.
    """

    status: Literal["ready", "draining"]
    runs: int
    queued: int
    candidates: dict[str, Fares]
    replication: NotRequired[Reach]


class Problem(TypedDict):
    """Why a request is refused (RFC 9457), before the first byte of an answer. `field` is what it is about."""

    type: Literal["about:blank"]
    title: str
    status: int
    detail: str
    code: str
    field: NotRequired[str]
