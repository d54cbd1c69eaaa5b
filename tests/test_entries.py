"""What stands of a run in Redis: whatever a run says comes out of there as it went in, however it was cut.

A log's entries are cut into batches, go through the bytes and are taken by a mirror: the log it has then is the same in
all that anybody sees of it. And what is none of ours is told from that, whatever it is.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from streaming.entries import (
    FENCE,
    HEAD,
    Batch,
    Head,
    Standing,
    decode_batch,
    decode_head,
    encode,
    encode_batch,
    seq_of,
)
from streaming.events import (
    KINDS,
    Cancelled,
    Done,
    Draining,
    Error,
    Event,
    Finish,
    GraphEvent,
    Interrupt,
    Queued,
    Reasoning,
    Reset,
    Start,
    Token,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from streaming.limits import Limits
from streaming.log import EventLog
from streaming.mirror import Mirror
from streaming.mirrors import UNREADABLE

from .folds import RUNS

LIMITS = Limits(600.0, 120.0, 60.0, 10_000)
HEADER = Head("r1", "0" * 32, "ann", "k", "chat", {"metadata": {}}, 1.5, LIMITS)
LATE = Standing("test", "m", Usage(1, 2), 1, 2, 3, ttft_ms=4, latency_ms=5, has_asked=True)
NAN = float("nan")

# --- what a run may say -----------------------------------------------------------------------------------------------

# Halves of a character, which an upstream can name in its JSON; and what JSON, lines and numbers have made wrong.
PIECES = ["a", "Grüße", "\n", "\r\n", "\x00", "\x85", "\u2028", "\u2029", '"', "\\", "👍", "\ud83d", "\udc4d", "]", ""]
texts = st.lists(st.sampled_from(PIECES), max_size=4).map("".join).map(lambda text: joined(text))
names = st.sampled_from(["c1", "c2", "\u2028", "\udc4d", ""])
numbers = st.sampled_from([0, -1, 2**53 + 1, 2**64, -(2**70), 10**400, 0.1, -0.0, 1e300, 5e-324, NAN, float("inf")])
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
data = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
paths = st.lists(names, max_size=2).map(tuple)
where: dict[str, Any] = {"node": st.sampled_from([UNSET, UNSET, "agent", "\ud83d"]), "ns": st.just(UNSET) | paths}
counts = st.integers(0, 2**64)
usages = st.builds(
    Usage, counts, counts, st.just(UNSET) | counts, st.just(UNSET) | counts, st.sampled_from([UNSET, True])
)
reasons: Any = st.sampled_from(["disconnected", "requested", "draining"])
deltas = st.one_of(
    st.builds(Token, texts, **where),
    st.builds(Reasoning, texts, **where),
    st.builds(Reasoning, st.just(""), signature=texts, **where),
    st.builds(ToolCallDelta, st.integers(0, 1), texts, **where),
    st.builds(ToolCallDelta, st.integers(0, 1), texts, names, names, **where),
)
others = st.one_of(
    st.builds(Queued, st.integers(1, 3)),
    st.builds(Start, names, names, texts, counts, st.just(UNSET) | names),
    st.builds(Reset, names),
    st.builds(ToolCall, names, names, data | st.just('{"not": JSON'), **where),
    st.builds(ToolResult, names, names, data, **where),
    st.builds(Interrupt, names, data),
    *(st.builds(kind, paths, data) for kind in KINDS.values() if issubclass(kind, GraphEvent)),
)
ends = st.one_of(
    st.builds(
        Done,
        finish_reason=st.sampled_from(["stop", "length", "tool_calls", "content_filter", "interrupt"]),
        model=texts,
        usage=usages,
        tokens=counts,
        ttft_ms=st.none() | counts,
        latency_ms=counts,
        skipped_chunks=st.just(UNSET) | counts,
    ),
    st.builds(Error, error=texts, code=names, retryable=st.booleans(), usage=usages),
    st.builds(Cancelled, reason=reasons, usage=usages),
)
# Mostly deltas of one place, which go on one with the other.
said = st.lists(st.one_of(st.builds(Token, texts), deltas, deltas, others), max_size=20)
answers = st.builds(lambda events, end: [*events, *end], said, st.lists(ends, max_size=1))
cuts = st.lists(st.integers(0, 25), max_size=6)


def joined(text: str) -> str:
    """A text as JSON has it: halves of a character that come together are one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def log_of(events: Sequence[Event]) -> EventLog:
    log = EventLog()
    log.append(events)
    return log


def batch_of(log: EventLog, after: int, upto: int) -> tuple[Batch, int]:
    """What a mirror reads of a log's events `after + 1` to `upto`: made, sent, and told by Redis as bytes."""
    sent = encode_batch(Batch(after, log.entries(after, upto)))
    fields = [one if isinstance(one, bytes) else str(one).encode() for one in sent]
    return decode_batch(fields), seq_of(b"%d-0" % upto)


def mirror() -> Mirror:
    return Mirror(HEADER, lambda mirror: None)


def mirrored(log: EventLog, *parts: tuple[int, int]) -> Mirror:
    taking = mirror()
    for after, upto in parts:
        taking.take(*batch_of(log, after, upto))
    return taking


def as_told(event: Event) -> bytes:
    """An event as clients are told it: no number is not one there, and a tuple is a list."""
    return encode([event.name, event])


def seen(log: EventLog) -> list[Any]:
    """All that can be seen of a log."""
    everywhere = range(len(log) + 1)
    return [
        len(log),
        [as_told(event) for event in log.read(0)],
        [[(seq, as_told(event)) for seq, event in log.merged(after)] for after in everywhere],
        [[as_told(event) for event in log.answer()]],
        [log.size, log.deltas, log.characters, log.answer_at, log.closed],
        [log.text(Token), log.text(Reasoning), log.text(ToolCallDelta)],
        [log.ended(after) for after in everywhere],
        [encode(one) if isinstance(one, str) else as_told(one) for one in log.entries(0, len(log))],
    ]


@settings(max_examples=150, deadline=None)
@given(answers, cuts)
@example([Token("Hel"), Token("\ud83d"), Token("\udc4d"), ToolResult("c1", "f", {"n": [NAN]})], [1, 2])
@example([ToolCallDelta(0, "", "c1", "f"), ToolCallDelta(0, "{"), ToolCallDelta(1, "{"), ToolCallDelta(1, "}")], [2, 3])
@example([Reasoning("a"), Reasoning("", signature="s"), Reasoning("b"), Reasoning("c")], [1, 2, 3])
@example([Token("a"), Reset("idle_timeout"), Token("b"), Token("c")], [3])
def test_a_log_is_the_same_at_a_mirror_however_its_entries_were_cut(events: list[Event], cuts: list[int]) -> None:
    log = log_of(events)
    places = sorted({0, len(log), *(cut for cut in cuts if cut <= len(log))})
    taking = mirrored(log, *pairwise(places))
    assert seen(taking.log) == seen(log)
    assert (taking.terminal is not None) == log.closed


@pytest.mark.parametrize("events", RUNS.values(), ids=RUNS)
def test_every_kind_of_run_comes_through_event_by_event_and_at_once(events: list[Event]) -> None:
    log = log_of(events)
    steps = list(pairwise(range(len(log) + 1)))
    for parts in ([(0, len(log))], steps):
        taking = mirrored(log, *parts)
        assert taking.log.read(0) == events
        assert seen(taking.log) == seen(log)
        assert taking.terminal == events[-1]


def test_every_kind_of_event_is_among_what_was_tried() -> None:
    """All that can stand in a log: what is a connection's, or a provider's alone, does not."""
    tried = {type(event) for events in RUNS.values() for event in events}
    assert tried == set(KINDS.values()) - {Draining}
    assert not issubclass(Finish, Event)


@settings(max_examples=80, deadline=None)
@given(answers, st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), max_size=8))
def test_what_overlaps_or_comes_again_changes_nothing(events: list[Event], parts: list[tuple[int, int]]) -> None:
    """Whoever sends what stands there already, or reads what he has, does no harm."""
    log, taking = log_of(events), mirror()
    for one, other in parts:
        after, upto = min(one, other, len(taking.log)), min(max(one, other), len(log))
        assume(after < upto)
        before = max(len(taking.log), upto)
        for _ in range(2):
            taking.take(*batch_of(log, after, upto))
            assert len(taking.log) == before
    taking.take(*batch_of(log, 0, len(log)))
    assert seen(taking.log) == seen(log)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.integers(1, 3))
def test_a_gap_is_refused_and_leaves_what_there_is(has: int, gap: int) -> None:
    log = log_of([Start("r", "p", "m", 0), *[Token(word) for word in "abcdef"]])
    taking = mirrored(log, (0, has))
    with pytest.raises(ValueError, match="a gap in a stream"):
        taking.take(*batch_of(log, has + gap, len(log)))
    assert taking.log.read(0) == log.read(0, has)
    taking.take(*batch_of(log, has, len(log)))
    assert seen(taking.log) == seen(log)


def test_the_end_behind_the_fence_is_taken_wherever_the_log_is_and_nothing_after_it() -> None:
    log = log_of([Start("r", "p", "m", 0), Token("a"), Token("b"), Token("c")])
    lost = Error(error="Lost.", code="run_lost", retryable=True, usage=Usage())
    for has, after in ((0, 4), (2, 4), (4, 2)):
        taking = mirrored(log, *([(0, has)] if has else []))
        taking.take(Batch(after, [lost]), FENCE)
        assert (taking.log.read(0), taking.terminal) == ([*log.read(0, has), lost], lost)
        taking.take(*batch_of(log, 0, len(log)))
        assert len(taking.log) == has + 1


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_what_stands_in_redis_is_json_to_be_read_by_people() -> None:
    log = log_of([Start("r", "p", "m", 7), Token("Hel"), Token("lo")])
    assert encode_batch(Batch(0, log.entries(0, 3), LATE)) == [
        "after",
        0,
        "events",
        b'[["start",{"run":"r","provider":"p","model":"m","created":7}],["token",{"token":"Hel"}],"lo"]',
        "told",
        b'{"provider":"test","model":"m","usage":{"input_tokens":1,"output_tokens":2},"retries":1,"failovers":2,'
        b'"resets":3,"ttft_ms":4,"latency_ms":5,"has_asked":true}',
    ]
    assert encode_batch(Batch(2, log.entries(2, 3))) == ["after", 2, "events", b'["lo"]']
    assert (seq_of(HEAD.encode()), seq_of(b"17-0"), seq_of(b"%d-0" % FENCE)) == (0, 17, FENCE)


@settings(max_examples=50, deadline=None)
@given(texts, names, data, usages, st.sampled_from([None, 3]))
def test_heads_and_standings_come_out_as_they_went_in(
    owner: str, name: str, about: Any, usage: Usage, ttft: int | None
) -> None:
    head = Head("r1", "0" * 32, owner, name, name, {"metadata": about, name: 1}, 1.25, LIMITS)
    assert encode(decode_head([b"head", encode(head)])) == encode(head)
    told = Standing(name, owner, usage, ttft_ms=ttft)
    assume("\ud83d" not in owner and "\udc4d" not in owner + name)  # no name of a model that a setting can hold
    fields: list[Any] = encode_batch(Batch(3, [], told))
    assert decode_batch([b"after", b"3", b"events", b"[]", b"told", fields[-1]]) == Batch(3, [], told)


# --- what is none of ours ---------------------------------------------------------------------------------------------

rubbish = st.one_of(
    st.binary(max_size=20),
    data.map(lambda value: json.dumps(value).encode()),
    st.lists(st.one_of(texts, data, st.tuples(st.sampled_from([*KINDS, "nobody", 1, None]), data)), max_size=3).map(
        lambda value: json.dumps(value).encode()
    ),
    st.sampled_from([b"", b"[" * 3_000, b'{"a":' * 3_000, b'[["token",' + b"[" * 3_000, b"1e999", b"9" * 5000]),
)
fields_of = st.sampled_from([b"after", b"events", b"told", b"head", b"x"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(fields_of, st.just(b"0") | rubbish), max_size=4, unique_by=lambda pair: pair[0]), rubbish)
@example([(b"after", b"0")], b"1")
@example([(b"after", b"0")], b'[["nobody", {}]]')
@example([(b"after", b"0")], b'[["token"]]')
@example([(b"after", b"0")], b'[[["token"], {}]]')
@example([(b"after", b"0")], b"[[]]")
@example([(b"after", b"0")], b"[1]")
@example([(b"after", b"0")], b'[["token", {"token": "\\ud83d"}], ["token", {"token": 1}]]')
@example([(b"after", b"0")], b'[["custom", {"ns": [], "data": ' + b"[" * 3_000)
def test_what_is_none_of_ours_is_told_by_the_exceptions_that_are_waited_for(
    pairs: list[tuple[bytes, bytes]], events: bytes
) -> None:
    fields = [part for pair in [(b"events", events), *pairs] for part in pair]
    for decode in (decode_batch, decode_head):
        try:
            found = decode(fields)
        except UNREADABLE:
            continue
        assert isinstance(found, Batch | Head)


@pytest.mark.parametrize("odd", [[b"after"], [b"events", b"[]", b"after"], []])
def test_fields_that_are_no_pairs_are_none_of_ours(odd: list[bytes]) -> None:
    for decode in (decode_batch, decode_head):
        with pytest.raises(UNREADABLE):
            decode(odd)


@pytest.mark.parametrize(
    ("after", "seq", "events"),
    [
        (0, 5, "[]"),  # by which nobody gets on
        (0, 5, '[["token",{"token":"a"}]]'),
        (2, 1, '[["token",{"token":"a"}]]'),
        (0, FENCE, '[["token",{"token":"a"}]]'),  # no end
        (0, FENCE, "[]"),
        (0, 2, '[["cancelled",{"reason":"requested","usage":{}}],["token",{"token":"a"}]]'),  # behind the end
        (0, 1, '["a text that goes on with nothing"]'),
        (0, 2, '[["queued",{"position":1}],"a text that goes on with nothing"]'),
    ],
)
def test_a_batch_that_says_what_cannot_be_is_refused_and_changes_nothing(after: int, seq: int, events: str) -> None:
    taking = mirror()
    with pytest.raises(UNREADABLE):
        taking.take(decode_batch([b"after", b"%d" % after, b"events", events.encode()]), seq)
    assert (len(taking.log), taking.log.size, taking.terminal, taking.waits) == (0, 0, None, False)


def test_unreadable_is_what_msgspec_raises_too() -> None:
    assert issubclass(msgspec.DecodeError, UNREADABLE)
    assert issubclass(msgspec.ValidationError, UNREADABLE)
