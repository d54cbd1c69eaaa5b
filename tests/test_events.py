"""The vocabulary: what each event looks like as JSON, which ones end a run, and how deltas are merged."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from streaming.events import (
    Cancelled,
    Checkpoints,
    Custom,
    Debug,
    Delta,
    Done,
    Draining,
    Error,
    Event,
    Events,
    Interrupt,
    Queued,
    Reasoning,
    Reset,
    Start,
    Tasks,
    Terminal,
    Token,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Updates,
    Usage,
    Values,
)
from streaming.log import EventLog, Numbered

USAGE = Usage(7, 3)
SHAPES: list[tuple[Event, str, str]] = [
    (
        Start(run="ab12", provider="openai", model="gpt", created=1_700_000_000),
        "start",
        '{"run":"ab12","provider":"openai","model":"gpt","created":1700000000}',
    ),
    (
        Start(run="ab12", provider="langgraph", model="agent", created=1_700_000_000, thread_id="t1"),
        "start",
        '{"run":"ab12","provider":"langgraph","model":"agent","created":1700000000,"thread_id":"t1"}',
    ),
    (Queued(3), "queued", '{"position":3}'),
    (Reset("idle_timeout"), "reset", '{"reason":"idle_timeout"}'),
    (Token(" Paris"), "token", '{"token":" Paris"}'),
    (Token("x", node="agent", ns=("a", "b")), "token", '{"token":"x","node":"agent","ns":["a","b"]}'),
    (Reasoning("hm"), "reasoning", '{"reasoning":"hm"}'),
    (Reasoning("hm", node="agent", ns=()), "reasoning", '{"reasoning":"hm","node":"agent","ns":[]}'),
    (Reasoning("", signature="EqQB"), "reasoning", '{"reasoning":"","signature":"EqQB"}'),
    (ToolCallDelta(0, '{"a'), "tool_call_delta", '{"index":0,"args_delta":"{\\"a"}'),
    (
        ToolCallDelta(1, "", "call_1", "f", "agent", ("a",)),
        "tool_call_delta",
        '{"index":1,"args_delta":"","id":"call_1","tool":"f","node":"agent","ns":["a"]}',
    ),
    (ToolCall("call_1", "f", {"a": [1, None]}), "tool_call", '{"id":"call_1","tool":"f","args":{"a":[1,null]}}'),
    (ToolCall("call_1", "f", '{"a'), "tool_call", '{"id":"call_1","tool":"f","args":"{\\"a"}'),
    (
        ToolResult("call_1", "f", {"sky": "clear"}, node="tools"),
        "tool_result",
        '{"id":"call_1","tool":"f","content":{"sky":"clear"},"node":"tools"}',
    ),
    (Values((), {"n": 1}), "values", '{"ns":[],"data":{"n":1}}'),
    (Updates(("sub:1",), {"node": None}), "updates", '{"ns":["sub:1"],"data":{"node":null}}'),
    (Custom((), "half done"), "custom", '{"ns":[],"data":"half done"}'),
    (Tasks((), {"name": "node"}), "tasks", '{"ns":[],"data":{"name":"node"}}'),
    (Checkpoints((), {"next": []}), "checkpoints", '{"ns":[],"data":{"next":[]}}'),
    (Debug((), {"step": 1}), "debug", '{"ns":[],"data":{"step":1}}'),
    (Events((), {"event": "on_chain_start"}), "events", '{"ns":[],"data":{"event":"on_chain_start"}}'),
    (Interrupt("i1", {"question": "?"}), "interrupt", '{"id":"i1","value":{"question":"?"}}'),
    (Draining(300), "draining", '{"retry_ms":300}'),
    (
        Done(finish_reason="stop", model="gpt", usage=USAGE, tokens=3, ttft_ms=12, latency_ms=40),
        "done",
        '{"done":true,"finish_reason":"stop","model":"gpt","usage":{"input_tokens":7,"output_tokens":3},'
        '"tokens":3,"ttft_ms":12,"latency_ms":40}',
    ),
    (
        Done(finish_reason="stop", model="m", usage=USAGE, tokens=3, ttft_ms=12, latency_ms=40, skipped_chunks=1),
        "done",
        '{"done":true,"finish_reason":"stop","model":"m","usage":{"input_tokens":7,"output_tokens":3},'
        '"tokens":3,"ttft_ms":12,"latency_ms":40,"skipped_chunks":1}',
    ),
    (
        Done(finish_reason="length", model="gpt", usage=Usage(1, 0, 1, 0, True), tokens=0, ttft_ms=None, latency_ms=1),
        "done",
        '{"done":true,"finish_reason":"length","model":"gpt","usage":{"input_tokens":1,"output_tokens":0,'
        '"cached_tokens":1,"reasoning_tokens":0,"estimated":true},"tokens":0,"ttft_ms":null,"latency_ms":1}',
    ),
    (
        Error(error="It broke.", code="upstream_incomplete", retryable=True, usage=USAGE),
        "error",
        '{"done":true,"error":"It broke.","code":"upstream_incomplete","retryable":true,'
        '"usage":{"input_tokens":7,"output_tokens":3}}',
    ),
    (
        Cancelled(reason="disconnected", usage=USAGE),
        "cancelled",
        '{"done":true,"reason":"disconnected","usage":{"input_tokens":7,"output_tokens":3}}',
    ),
]


@pytest.mark.parametrize(("event", "name", "data"), SHAPES, ids=lambda value: value if isinstance(value, str) else "")
def test_an_event_has_the_name_and_the_data_clients_know(event: Event, name: str, data: str) -> None:
    assert (event.name, msgspec.json.encode(event).decode()) == (name, data)


def test_every_event_of_the_vocabulary_has_its_shape_pinned_above() -> None:
    def leaves(kind: type[Event]) -> Iterator[type[Event]]:
        below = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
        yield from below or [kind]

    ours = {kind for kind in leaves(Event) if kind.__module__ == "streaming.events"}
    assert ours == {type(event) for event, _, _ in SHAPES}


def test_done_error_and_cancelled_and_no_others_end_a_run() -> None:
    assert {event.name for event, _, _ in SHAPES if isinstance(event, Terminal)} == {"done", "error", "cancelled"}


def test_every_terminal_event_says_done_so_that_a_reader_of_data_alone_can_stop() -> None:
    said = {event.name: msgspec.to_builtins(event).get("done") for event, _, _ in SHAPES}
    assert {name for name, done in said.items() if done is True} == {"done", "error", "cancelled"}


def test_an_event_cannot_be_changed_once_it_is_said() -> None:
    with pytest.raises(AttributeError, match="immutable type: 'Token'"):
        Token("a").text = "b"  # type: ignore[misc]  # what the test is about


def test_adjacent_deltas_become_one_with_the_number_of_the_last() -> None:
    assert merge([Token("a"), Token("b"), Token("c")], 4) == [(7, Token("abc"))]


def test_a_lone_delta_passes_as_the_object_it_is() -> None:
    token = Token("a")
    [(seq, merged)] = merge([token], 0)
    assert (seq, merged is token) == (1, True)


def test_nothing_merges_to_nothing() -> None:
    assert merge([], 9) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Token("a"), Reasoning("a")),
        (Token("a"), Token("a", node="agent")),
        (Token("a", node="agent"), Token("a", node="tools")),
        (Token("a", ns=()), Token("a")),
        (Token("a", ns=("x",)), Token("a", ns=("x", "y"))),
        (Reasoning("a"), Reasoning("a", node="agent")),
        (Reasoning("a", ns=("x",)), Reasoning("a", ns=("y",))),
        (Reasoning("a"), Reasoning("", signature="s")),
        (Reasoning("", signature="s"), Reasoning("", signature="t")),
        (ToolCallDelta(0, "a"), Token("a")),
        (ToolCallDelta(0, "a"), ToolCallDelta(1, "a")),
        (ToolCallDelta(0, "a"), ToolCallDelta(0, "a", node="agent")),
        (ToolCallDelta(0, "a", ns=("x",)), ToolCallDelta(0, "a", ns=("y",))),
        (ToolCallDelta(0, "a", "call_1", "f"), ToolCallDelta(0, "a", "call_2", "f")),
    ],
)
def test_deltas_of_another_kind_index_node_or_namespace_stay_apart(one: Delta, other: Delta) -> None:
    assert merge([one, other, one], 0) == [(1, one), (2, other), (3, one)]


@pytest.mark.parametrize("between", [event for event, _, _ in SHAPES if not isinstance(event, Delta)])
def test_deltas_are_never_merged_across_another_event(between: Event) -> None:
    assert merge([Token("a"), Token("b"), between, Token("c")], 0) == [(2, Token("ab")), (3, between), (4, Token("c"))]


def test_a_tool_call_keeps_its_name_and_id_when_its_arguments_are_joined() -> None:
    opening, more = (
        ToolCallDelta(2, '{"a', "call_1", "f", "agent", ("x",)),
        ToolCallDelta(2, '":1}', UNSET, UNSET, "agent", ("x",)),
    )
    assert merge([opening, more], 0) == [(2, ToolCallDelta(2, '{"a":1}', "call_1", "f", "agent", ("x",)))]


def test_a_token_keeps_its_node_and_namespace_when_it_is_joined() -> None:
    assert merge([Token("a", "agent", ("x",)), Token("b", "agent", ("x",))], 0) == [(2, Token("ab", "agent", ("x",)))]
    assert merge([Reasoning("a", "agent", ("x",)), Reasoning("b", "agent", ("x",))], 0) == [
        (2, Reasoning("ab", "agent", ("x",)))
    ]


_text = st.text("abé", max_size=3)
_node = st.sampled_from([UNSET, "agent"])
_ns = st.sampled_from([UNSET, ("x",)])
_events = st.lists(
    st.one_of(
        st.builds(Token, _text, _node, _ns),
        st.builds(Reasoning, _text, _node, _ns, st.sampled_from([UNSET, UNSET, "s", "t"])),
        st.builds(ToolCallDelta, st.integers(0, 1), _text, st.just(UNSET), st.just(UNSET), _node, _ns),
        st.builds(ToolCallDelta, st.integers(0, 1), _text, st.sampled_from(["call_1", "call_2"]), st.just("f")),
        st.just(ToolCall("call_1", "f", {})),
    ),
    max_size=12,
).map(lambda events: [event for event in events if not (isinstance(event, Delta) and event.is_empty)])


def merge(events: Sequence[Event], after: int = 0) -> list[Numbered]:
    """What a log makes of events that follow `after` others."""
    log = EventLog()
    log.append([*[Interrupt("i", None)] * after, *events])
    return log.merged(after)


def kin(delta: Delta) -> tuple[Any, ...]:
    """What deltas share that say the same apart or joined."""
    return type(delta), getattr(delta, "index", None), delta.node, delta.ns  # type: ignore[attr-defined]  # each kind has both


def said(events: Iterable[Event]) -> list[Any]:
    """Spell events out: what they say, whatever the deltas it came in."""
    spelled: list[Any] = []
    for event in events:
        if not isinstance(event, Delta):
            spelled.append(event)
            continue
        if isinstance(event, ToolCallDelta) and event.id is not UNSET:
            spelled.append((kin(event), "opens", event.id, event.tool))
        spelled += [(kin(event), character) for character in event.text]
        if isinstance(event, Reasoning) and event.signature is not UNSET:
            spelled.append((kin(event), "closes", event.signature))
    return spelled


@settings(deadline=None)  # another process may have the core
@given(_events, st.lists(st.integers(0, 12)))
def test_any_batching_of_the_same_events_says_the_same(events: list[Event], cuts: list[int]) -> None:
    places = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    log = EventLog()
    log.append(events)
    merged = [pair for start, end in pairwise(places) for pair in log.merged(start, end)]
    assert said(event for _, event in merged) == said(events)
    assert all(said(log.read(place)) == said(events[place:]) for place in places)
    for place, (seq, _) in enumerate(merged, 1):  # whoever names `seq` has seen all up to it
        assert said(event for _, event in merged[:place]) == said(events[:seq])
    assert [seq for seq, _ in merged][-1:] == [len(events)][: len(merged)]


@settings(deadline=None)  # another process may have the core
@given(_events)
def test_nothing_that_could_be_merged_stays_apart(events: list[Event]) -> None:
    for (_, one), (_, other) in pairwise(merge(events, 0)):
        opens = isinstance(other, ToolCallDelta) and other.id is not UNSET
        closes = any(isinstance(event, Reasoning) and event.signature is not UNSET for event in (one, other))
        are_kin = isinstance(one, Delta) and isinstance(other, Delta) and kin(one) == kin(other)
        assert opens or closes or not are_kin


@settings(deadline=None)  # another process may have the core
@given(_events, st.integers(0, 10**6))
def test_numbers_ascend_from_where_the_reader_was(events: list[Event], after: int) -> None:
    numbers = [seq for seq, _ in merge(events, after)]
    assert numbers == sorted(set(numbers))
    assert all(after < seq <= after + len(events) for seq in numbers)
