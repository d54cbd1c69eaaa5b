"""How often one may ask: on a clock of its own, and the headers that tell of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import RequestError
from wires.quota import SWEEP, Quota


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def left(quota: Quota, owner: str = "me") -> str:
    return quota.spend(owner)["RateLimit"]


def refusal(quota: Quota, owner: str = "me") -> dict[str, str]:
    with pytest.raises(RequestError) as caught:
        quota.spend(owner)
    assert (caught.value.code, caught.value.limit, caught.value.status) == ("rate_limited", "rate_limit", 429)
    return caught.value.headers


def test_without_a_limit_nothing_is_said_or_kept() -> None:
    quota = Quota(0)
    assert [quota.spend("me") for _ in range(100)] == [{}] * 100
    assert quota._whole == {}


def test_all_of_it_at_once_and_then_as_it_is_refilled() -> None:
    quota = Quota(3, clock := Clock())
    assert quota.spend("me") == {"RateLimit-Policy": '"requests";q=3;w=60', "RateLimit": '"requests";r=2;t=20'}
    assert [left(quota), left(quota)] == ['"requests";r=1;t=40', '"requests";r=0;t=60']
    for _ in range(3):  # to be refused costs nothing
        assert refusal(quota) == {
            "RateLimit-Policy": '"requests";q=3;w=60',
            "RateLimit": '"requests";r=0;t=60',
            "Retry-After": "20",
        }
    clock.time += 19
    assert refusal(quota)["Retry-After"] == "1"
    clock.time += 1
    assert left(quota) == '"requests";r=0;t=60'
    assert refusal(quota)["Retry-After"] == "20"
    clock.time += 1000
    assert left(quota) == '"requests";r=2;t=20'


def test_each_owner_has_its_own() -> None:
    quota = Quota(1, Clock())
    left(quota, "a")
    refusal(quota, "a")
    left(quota, "b")


def test_who_has_asked_long_ago_is_forgotten() -> None:
    quota = Quota(1, clock := Clock())
    for number in range(SWEEP):
        quota.spend(str(number))
    clock.time += 60
    quota.spend("one more")
    assert quota._whole.keys() == {"one more"}


@given(st.integers(1, 50), st.lists(st.floats(0, 30), min_size=1, max_size=200))
def test_no_minute_sees_more_than_two_quotas_and_who_waits_as_told_is_let_in(
    requests: int, pauses: list[float]
) -> None:
    quota, granted = Quota(requests, clock := Clock()), []
    for pause in pauses:
        clock.time += pause
        try:
            quota.spend("me")
            granted.append(clock.time)
        except RequestError as fault:
            clock.time += int(fault.headers["Retry-After"])
            quota.spend("me")
            granted.append(clock.time)
    for begin in granted:
        # A whole quota, and what is refilled meanwhile.
        assert sum(begin <= time < begin + 60 for time in granted) <= 2 * requests
