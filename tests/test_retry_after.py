"""How long an upstream wants to be left alone, read off its headers (RFC 9110, 10.2.3 and 5.6.7)."""

import math
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from providers.http import retry_after

NOW = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the specification's own example


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({b"retry-after": b"0"}, 0.0),
        ({b"retry-after": b"-5"}, None),
        ({b"retry-after": b"inf"}, math.inf),
        ({b"retry-after": b"Sun, 06 Nov 1994 08:49:47 GMT"}, 10.0),
        ({b"retry-after": b"Sunday, 06-Nov-94 08:49:47 GMT"}, 10.0),
        ({b"retry-after": b"Sun, 06 Nov 1994 09:49:47 +0100"}, 10.0),
        ({b"retry-after": b"Sat, 05 Nov 1994 08:49:37 GMT"}, 0.0),  # it is over
        ({b"retry-after": b"Sun, 06 Nov 1994 25:61:61 GMT"}, None),
        ({b"retry-after": b"Sun, 06 Nov 99999999999 08:49:47 GMT"}, None),
        ({b"retry-after-ms": b"250"}, 0.25),
        ({b"retry-after-ms": b"250", b"retry-after": b"9"}, 0.25),  # the vendors' own is the finer one
        ({b"retry-after-ms": b"-250", b"retry-after": b"9"}, 9.0),
        ({b"retry-after-ms": b"soon", b"retry-after": b"Sun, 06 Nov 1994 08:49:47 GMT"}, 10.0),
    ],
)
def test_what_an_upstream_asks_for_is_read(headers: dict[bytes, bytes], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


@pytest.mark.parametrize("date", ["Sun, 06 Nov 1994 08:49:47 GMT", "Sun Nov  6 08:49:47 1994"])
def test_a_date_is_greenwichs_wherever_the_service_runs(monkeypatch: pytest.MonkeyPatch, date: str) -> None:
    with monkeypatch.context() as west:
        west.setenv("TZ", "UTC+11")
        time.tzset()
        seconds = retry_after({b"retry-after": date.encode()}, NOW)
    time.tzset()
    assert seconds == 10


_words = "Sun , 06 Nov 1994 94 08:49:47 24:00:60 12. 12: GMT -0000 +9999 AM - 99999999999999999999 1e999 _ \xa0 \xb2"


@given(st.one_of(st.binary(max_size=40), st.lists(st.sampled_from(_words.split(" "))).map(" ".join)))
@example("Sun, 06 Nov 0001 00:00:00 +2359")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
@settings(deadline=None)  # another process may have the core
def test_whatever_stands_there_it_is_seconds_or_nothing(said: bytes | str) -> None:
    value = said if isinstance(said, bytes) else said.encode("latin-1")
    for name in (b"retry-after", b"retry-after-ms"):
        seconds = retry_after({name: value}, NOW)
        assert seconds is None or seconds >= 0
