"""Whatever an upstream sends, in whatever splits: it does no harm, and it means the same however it was split."""

import asyncio
import json
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from operator import getitem
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import convert, to_builtins
from msgspec.structs import replace

from providers import Item, anthropic, openai, openai_responses
from providers.connection import Connection, ConnectionBroken
from providers.http import SSEDecoder, _Telling
from streaming.events import Event, Finish, Terminal, Token, ToolCall

from .recorded import DIALECTS, RECORDINGS, Dialect, sse
from .test_failover import folded
from .test_sse_decoder import specified

PROVIDERS: dict[str, Any] = {"openai": openai, "openai_responses": openai_responses, "anthropic": anthropic}
SPOKEN = {name: [one.chunks for one in RECORDINGS if one.provider == name] for name in PROVIDERS}
BAD = b"data: {\n\n"
fuzz = settings(deadline=None, max_examples=200)  # another process may have the core
each_provider = pytest.mark.parametrize("provider", PROVIDERS)
Split = tuple[bytes, list[bytes]]  # a stream, and its parts


@st.composite
def _split(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> Split:
    stream = draw(streams)
    cuts = draw(st.lists(st.integers(0, len(stream)), max_size=12))
    places = sorted({0, *cuts, len(stream)})  # each once: a read is never empty
    return stream, [stream[start:end] for start, end in pairwise(places)]


_words = st.text(max_size=5)
_plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _words)
_json = st.recursive(_plain, lambda one: st.lists(one, max_size=3) | st.dictionaries(_words, one, max_size=3))
_told = st.one_of(_json, st.sampled_from(["error", "tool_use", "function_call", "content_filter", "{", -1, 10**30]))
_odd = st.sampled_from([b"[DONE]", b"{}", b"{", b"1e999", b'"\\ud83d"', b'"\xed\xa0\xbd"', b'{"x":' + b"[" * 5000])
_events = _odd.map(lambda data: b"data: " + data + b"\n\n")
_ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
_bits = st.sampled_from([b"data", b"data: ", b"\xef\xbb\xbf", b": hi\n"])
_junk = st.one_of(st.binary(max_size=30), _ends, _bits, _events, _json.map(lambda value: sse(json.dumps(value))))


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where something stands in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place] * bool(place) + [found for key, one in inner for found in _places(one, (*place, key))]


@st.composite
def _changed(draw: st.DrawFn, chunk: bytes) -> list[bytes]:
    """An event with something else at some place of its JSON."""
    try:
        value = json.loads(chunk.partition(b"data: ")[2])
        *path, last = draw(st.sampled_from(_places(value) or [(0,)]))
    except (ValueError, RecursionError):
        return [chunk]
    inner = reduce(getitem, path, value)
    if isinstance(inner, dict) or (isinstance(inner, list) and inner):
        inner[last] = draw(_told)
    return [sse(json.dumps(value))]


def _instead(provider: str, chunk: bytes) -> st.SearchStrategy[list[bytes]]:
    """An event dropped, doubled, cut, added to, exchanged, or changed."""
    others = st.sampled_from(SPOKEN[provider]).flatmap(st.sampled_from)
    cut = st.integers(0, len(chunk)).map(lambda end: [chunk[:end]])
    added = _junk.map(lambda junk: [junk, chunk])
    return st.one_of(st.just([b""]), st.just([chunk] * 2), cut, added, others.map(lambda one: [one]), _changed(chunk))


@st.composite
def _spoiled(draw: st.DrawFn, provider: str) -> bytes:
    """What a provider sends, but for some of its events, and of its bytes."""
    chunks = list(draw(st.sampled_from(SPOKEN[provider])))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(chunks) - 1))
        chunks[at : at + 1] = draw(_instead(provider, chunks[at]))
    stream = bytearray(b"".join(chunks))
    for _ in range(draw(st.integers(0, 2)) if stream else 0):
        stream[draw(st.integers(0, len(stream) - 1))] = draw(st.integers(0, 255))
    return bytes(stream)


def _streams(provider: str) -> st.SearchStrategy[Split]:
    return _split(st.one_of(_spoiled(provider), st.lists(_junk, max_size=5).map(b"".join)))


@fuzz
@given(st.sampled_from(list(PROVIDERS)).flatmap(_streams), _ends)
@example((b"", [b"data: a\r", b"\ndata: b\n\n", b"\xef\xbb\xbfdata: c\n\n"]), b"\n")
def test_a_stream_is_taken_apart_as_the_specification_says(stream: Split, end: bytes) -> None:
    decoder = SSEDecoder()
    parts = [part.replace(b"\n", end) for part in stream[1]]
    assert [data for part in [*parts, b"\n"] for data in decoder.feed(part)] == specified(b"".join(parts) + b"\n")


def told(provider: str, parts: Sequence[bytes]) -> tuple[list[Item], str | None]:
    """Return what a run is told, and the fault's code, as `Upstreams.follow` has it."""
    items: list[Item] = []
    translation = PROVIDERS[provider].Translation()
    telling = _Telling(translation, items.extend)
    enough = any(telling.take(part) for part in parts)
    assert enough == (translation.over or telling.fault is not None)
    if not enough and (batch := list(translation.eof())):
        telling.tell(batch)
    return items, telling.fault and telling.fault.code


@each_provider
def test_what_is_told_is_what_a_run_can_take_and_the_same_for_any_split(provider: str) -> None:
    @fuzz
    @given(_streams(provider))
    def check(stream: Split) -> None:
        whole, parts = stream
        items, code = told(provider, parts)
        others = [item for item in items if not isinstance(item, Event)]
        assert not any(isinstance(item, Terminal) for item in items)
        assert [convert(to_builtins(item), type(item)) for item in items] == items
        ends = [item for item in items if isinstance(item, Finish)]
        assert (ends == items[-1:] and code is None) if ends else True
        assert {end.skipped_chunks for end in ends} <= {0, 1}
        at_once, code_at_once = told(provider, [whole])
        assert (folded(*at_once), code_at_once) == (folded(*items), code)
        assert [item for item in at_once if not isinstance(item, Event)] == others

    check()


@each_provider
@pytest.mark.parametrize("data", [b"{", b'{"x":' + b"[" * 5000, b'{"error":"\xff"}', b"5"], ids=lambda data: data[:9])
def test_one_that_cannot_be_read_is_passed_over_and_the_second_is_the_end(provider: str, data: bytes) -> None:
    bad, text = b"data: " + data + b"\n\n", SPOKEN[provider][0]
    (*items, finish), _ = told(provider, text)
    for place in (0, 1, 5):
        before, behind = text[:place], text[place:]
        once = told(provider, [*before, bad, *behind])
        assert once == ([*items, replace(cast(Finish, finish), skipped_chunks=1)], None)
        for twice in ([bad, bad], [bad * 2]):
            assert told(provider, [*before, *twice, *behind]) == (told(provider, before)[0], "upstream_invalid")


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.provider)
def test_an_error_of_the_upstreams_is_the_end_behind_what_came_before_it(dialect: Dialect) -> None:
    for code, error in dialect.errors.items():
        parts = [*dialect.opening, dialect.token("Hi"), error, dialect.token("!"), *dialect.ending]
        for split in (parts, [b"".join(parts)]):
            items, told_code = told(dialect.provider, split)
            assert (folded(*items), told_code) == ([Token("Hi")], code)


@each_provider
def test_a_call_behind_what_was_passed_over_is_not_told_and_one_before_it_is(provider: str) -> None:
    first, *others, last = next(one.chunks for one in RECORDINGS if (one.provider, one.name) == (provider, "tools"))
    items, code = told(provider, [first, BAD, *others, last])
    assert (code, [item for item in items if isinstance(item, ToolCall | Finish)]) == ("upstream_invalid", [])
    *items, finish = told(provider, [first, *others, last])[0]
    expected = [*items, replace(cast(Finish, finish), skipped_chunks=1)], None
    parts = [first, *others, BAD, last]
    assert told(provider, parts) == told(provider, [b"".join(parts)]) == expected


class Socket(asyncio.Transport):
    """The transport of a connection, without a network."""

    closed = False

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: Any) -> None: ...

    def abort(self) -> None:
        self.closed = True


OK = b"HTTP/1.1 200 OK\r\n"
HEADS = [OK + b"Transfer-Encoding: chunked\r\n\r\n", OK + b"Content-Length: 7\r\n\r\n", OK + b"\r\n"]
_chunks = st.sampled_from([b"5\r\nhello\r\n", b"0\r\n\r\n", b"\r\n", b"2;x=y\r\nab\r\n", b"f" * 17 + b"\r\n", *HEADS])
_bodies = st.lists(st.one_of(_chunks, st.binary(max_size=10)), max_size=6).map(b"".join)


async def received(parts: Sequence[bytes]) -> tuple[bytes, str]:
    """Return the body of an answer that comes in these parts, and whether it is whole or broken."""
    connection, socket, body = Connection(None), Socket(), b""
    connection.connection_made(socket)
    asking = asyncio.create_task(connection.ask(b""))
    await asyncio.sleep(0)
    for part in parts:
        if not socket.closed:
            connection.data_received(part)
    connection.connection_lost(None)
    try:
        await asking
        while data := await connection.read():
            body += data
    except ConnectionBroken:
        return body, "broken"
    return body, "whole"


@fuzz
@given(st.sampled_from(HEADS), _split(_bodies))
def test_any_body_ends_whole_or_broken_however_it_was_split(head: bytes, body: Split) -> None:
    whole, parts = body
    with asyncio.Runner() as runner:
        assert runner.run(received([head, *parts])) == runner.run(received([head + whole]))
