"""The decoder of upstreams' server-sent events, held against the specification (WHATWG HTML, 9.2.5 and 9.2.6)."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from providers import http
from providers.http import SSEDecoder
from streaming.errors import UpstreamError


def decode(*chunks: bytes) -> list[bytes]:
    decoder = SSEDecoder()
    return [data for chunk in chunks for data in decoder.feed(chunk)]


def specified(stream: bytes) -> list[bytes]:
    """Interpret a whole stream in the specification's own order, as far as `data` goes."""
    *lines, _ = re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))  # the last one has no end: dropped
    events, buffer = [], b""
    for line in lines:
        if not line:  # dispatch
            if buffer:
                events.append(buffer.removesuffix(b"\n"))
            buffer = b""
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            buffer += value.removeprefix(b" ") + b"\n"
    return events


STREAMS = {
    "one event": (b"data: a\n\n", [b"a"]),
    "no space": (b"data:a\n\n", [b"a"]),
    "two spaces, one of them data": (b"data:  a\n\n", [b" a"]),
    "a tab is data": (b"data:\ta\n\n", [b"\ta"]),
    "several events": (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
    "lines of one event": (b"data: a\ndata: b\ndata:\ndata: c\n\n", [b"a\nb\n\nc"]),
    "empty data": (b"data:\n\n", [b""]),
    "a field without colon": (b"data\n\n", [b""]),
    "two fields without colon": (b"data\ndata\n\n", [b"\n"]),
    "colons in the data": (b"data: a: b:c\n\n", [b"a: b:c"]),
    "other fields": (b"event: x\nid: 1\nretry: 5\ndata: a\nfoo: bar\n\n", [b"a"]),
    "fields that only begin so": (b"data: a\ndatax: b\ndata : c\n data: d\n\n", [b"a"]),
    "field names are case-sensitive": (b"Data: a\n\n", []),
    "an event without data": (b"event: ping\nid: 1\n\ndata: a\n\n", [b"a"]),
    "comments": (b": hi\n\n:\n\n: data: x\ndata: a\n:data: y\n\n", [b"a"]),
    "blank lines": (b"\n\n\n\ndata: a\n\n\n\n\ndata: b\n\n\n", [b"a", b"b"]),
    "CRLF": (b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [b"a\nb", b"c"]),
    "CR": (b"data: a\rdata: b\r\rdata: c\r\r\n", [b"a\nb", b"c"]),
    "CR alone to the end": (b"data: a\r\r", [b"a"]),
    "CRLF, then CR alone": (b"data: a\r\n\r", [b"a"]),
    "all kinds of line ends": (b"data: a\ndata: b\rdata: c\r\n\ndata: d\r\n\rdata: e\n\r\n", [b"a\nb\nc", b"d", b"e"]),
    "a byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    "a second byte order mark": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [b"b"]),
    "a byte order mark later on": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
    "a byte order mark alone": (b"\xef\xbb\xbf", []),
    "no blank line at the end": (b"data: a\n\ndata: b\n", [b"a"]),
    "no line end at the end": (b"data: a\n\ndata: b", [b"a"]),
    "nothing": (b"", []),
    "line separators of Unicode": (
        "data: a\u2028b\u2029c\x85d\x0be\x0cf\n\n".encode(),
        ["a\u2028b\u2029c\x85d\x0be\x0cf".encode()],
    ),
    "NUL": (b"data: a\0b\n\n", [b"a\0b"]),
    "bytes that are no text": (b"data: \xff\xfe\n\n", [b"\xff\xfe"]),
}


@pytest.mark.parametrize(("stream", "events"), STREAMS.values(), ids=STREAMS)
def test_a_stream_means_what_the_specification_says(stream: bytes, events: list[bytes]) -> None:
    assert specified(stream) == events
    assert decode(stream) == events


@pytest.mark.parametrize(("stream", "events"), STREAMS.values(), ids=STREAMS)
def test_it_means_the_same_split_at_every_byte(stream: bytes, events: list[bytes]) -> None:
    assert decode(*(stream[i : i + 1] for i in range(len(stream)))) == events
    for cut in range(len(stream) + 1):
        assert decode(stream[:cut], stream[cut:]) == events
        assert decode(stream[:cut], b"", stream[cut:]) == events


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_an_event_is_there_as_soon_as_its_blank_line_is(end: bytes) -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a" + end) == []
    assert decoder.feed(end) == [b"a"]
    assert decoder.feed(b"data: b" + end + end + b"da") == [b"b"]
    assert decoder.feed(b"ta: c" + end + end) == [b"c"]


def test_a_character_split_in_its_middle_is_put_together() -> None:
    whole = "data: 世界 👍\n\n".encode()
    for cut in range(len(whole) + 1):
        assert decode(whole[:cut], whole[cut:]) == ["世界 👍".encode()]


def test_an_event_that_never_ends_is_refused_before_it_fills_the_memory() -> None:
    chunk = b"data: " + b"x" * (http.MAX_EVENT_BYTES // 4)
    decoder = SSEDecoder()
    for _ in range(3):
        assert decoder.feed(chunk) == []
    with pytest.raises(UpstreamError) as raised:
        decoder.feed(chunk)
    assert (raised.value.code, raised.value.text) == ("upstream_invalid", "The upstream sent an event without an end.")


@pytest.mark.parametrize("before", [b"", b"data: a\n\n"], ids=["nothing", "an event"])
@pytest.mark.parametrize("line", [b"data: xx\n", b"data\n", b": x\n", b"x"])
def test_an_event_without_an_end_may_be_so_long_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, before: bytes, line: bytes
) -> None:
    monkeypatch.setattr(http, "MAX_EVENT_BYTES", 45)
    decoder = SSEDecoder()
    assert decoder.feed(before + line * (45 // len(line))) == [b"a"][: len(before)]
    with pytest.raises(UpstreamError):
        decoder.feed(line)
    with pytest.raises(UpstreamError):
        SSEDecoder().feed(before + line * 46)


def test_many_events_are_no_long_event() -> None:
    event = b"data: " + b"x" * (http.MAX_EVENT_BYTES // 4) + b"\n\n"
    decoder = SSEDecoder()
    assert sum(len(decoder.feed(event)) for _ in range(8)) == 8


_bytes = st.lists(
    st.sampled_from(
        [
            b"data",
            b"data:",
            b"data: ",
            b"a",
            b" ",
            b":",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"\xef\xbb\xbf",
            b"\xef",
            b"\xe2\x80\xa8",
            b"event: x",
        ]
    )
).map(b"".join)


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    return [stream[start:end] for start, end in pairwise(places)]


@settings(deadline=None)  # another process may have the core
@given(_bytes, st.lists(st.integers(0, 60), max_size=8))
@example(b"data: a\r\n\r\n", [9])
def test_any_split_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    assert decode(*split(stream, cuts)) == decode(stream)


@settings(deadline=None)  # another process may have the core
@given(_bytes, st.lists(st.integers(0, 60), max_size=8))
def test_any_stream_that_ends_a_line_with_lf_means_what_the_specification_says(stream: bytes, cuts: list[int]) -> None:
    stream += b"\n"  # what a CR at the very end means has a test of its own above
    assert decode(*split(stream, cuts)) == specified(stream)


@settings(deadline=None)  # another process may have the core
@given(st.lists(st.binary(max_size=20)))
def test_bytes_that_are_no_stream_do_no_harm(chunks: list[bytes]) -> None:
    assert decode(*chunks, b"\n") == specified(b"".join(chunks) + b"\n")
