"""What stands of a run in Redis, as bytes: its head, then batches of its events; JSON, to be read by people too.

    entry id    fields
    0-1         head <Head>
    <last>-0    after <first - 1>, events [...], and told <Standing> where that has changed
    FENCE       after ..., events [<the terminal run_lost>]

An entry's id is the number of its last event, so an entry that is sent twice is refused, one that overlaps another does
no harm, and where somebody has come to is where he reads on. FENCE is behind all that an owner may still send.

Of events, a delta that goes on is its bare text, as the event log has it, all others are [name, data].
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from .events import KINDS, Error, Event, Usage
from .limits import Limits

HEAD = "0-1"
FENCE = 2**62
LOST = "The replica that made this run has died, or cannot be reached."
Entry = Sequence[Any]  # an entry's id and its fields, as Redis tells it


class Head(Struct, frozen=True):
    """What a run is, and which replica makes it."""

    replica: str
    id: str
    owner: str
    key: str
    name: str
    about: Mapping[str, Any]
    created: float
    limits: Limits


class Standing(Struct, frozen=True):
    """How a run's answer stands, beside its events: what its status says. Times are milliseconds."""

    provider: str
    model: str
    usage: Usage
    retries: int = 0
    failovers: int = 0
    resets: int = 0
    ttft_ms: int | None = None
    latency_ms: int = 0
    has_asked: bool = False


class Batch(Struct, frozen=True):
    """The events numbered `after + 1` and on."""

    after: int
    entries: Sequence[Event | str]
    told: Standing | None = None


def lost(after: int, usage: Usage) -> Batch:
    """Return how a run ends whose owner ends it no more."""
    return Batch(after, [Error(error=LOST, code="run_lost", retryable=True, usage=usage)])


_encode = msgspec.json.Encoder(enc_hook=str).encode
_head = msgspec.json.Decoder(Head).decode
_told = msgspec.json.Decoder(Standing).decode
_entries = msgspec.json.Decoder(list[str | tuple[str, msgspec.Raw]]).decode
_events = {kind.name: msgspec.json.Decoder(kind) for kind in KINDS.values()}


def encode(value: Any) -> bytes:
    """Encode as JSON; half of a surrogate pair, which has no UTF-8, as JSON can name it."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value, enc_hook=str)).encode()


def encode_batch(batch: Batch) -> list[bytes | str | int]:
    """Return the fields of a batch's entry."""
    events = [entry if isinstance(entry, str) else (entry.name, entry) for entry in batch.entries]
    fields: list[bytes | str | int] = ["after", batch.after, "events", encode(events)]
    return [*fields, "told", encode(batch.told)] if batch.told else fields


def decode_head(fields: Sequence[bytes]) -> Head:
    text = _fields(fields)[b"head"]
    try:
        return _head(text)
    except msgspec.DecodeError:
        return msgspec.convert(json.loads(text), Head)


def decode_batch(fields: Sequence[bytes]) -> Batch:
    """Read a batch's entry. Raises what is UNREADABLE (mirrors.py) where it is none of ours."""
    found = _fields(fields)
    told = found.get(b"told")
    return Batch(int(found[b"after"]), _decoded(found[b"events"]), None if told is None else _told(told))


def _decoded(text: bytes) -> list[Event | str]:
    try:
        return [entry if isinstance(entry, str) else _events[entry[0]].decode(entry[1]) for entry in _entries(text)]
    except msgspec.DecodeError:  # what msgspec does not read: half of a surrogate pair
        parts = json.loads(text)
        return [part if isinstance(part, str) else msgspec.convert(part[1], KINDS[part[0]]) for part in parts]


def _fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def seq_of(entry_id: bytes) -> int:
    """Return the number of an entry's last event; 0 of the head."""
    return int(entry_id.partition(b"-")[0])
