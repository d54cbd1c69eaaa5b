"""The garbage collector, which must halt no stream: what it walks, and when."""

import gc
from collections.abc import Iterator

import pytest

from streaming.garbage import QUIET, SELDOM, Collector

from .asgi import run_ahead, time_passes


@pytest.fixture
def full_walks() -> Iterator[list[int]]:
    """A list that grows with each walk over everything, whoever asked for it."""
    walks: list[int] = []

    def walked(phase: str, info: dict[str, int]) -> None:
        if (phase, info["generation"]) == ("start", 2):
            walks.append(info["generation"])

    thresholds = gc.get_threshold()
    gc.freeze()  # what other tests have left
    gc.collect()
    gc.set_threshold(700, 10, 10)  # Python's own
    gc.callbacks.append(walked)
    yield walks
    gc.callbacks.remove(walked)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.mark.parametrize("settled", [False, True])
def test_all_is_not_walked_because_it_has_grown(full_walks: list[int], settled: bool) -> None:
    if settled:
        Collector(is_quiet=lambda: False).settle()
    streams = [[number] for number in range(500_000)]
    assert (len(full_walks) > 0) == (not settled), len(streams)


def test_all_is_walked_once_it_is_quiet_and_seldom(full_walks: list[int]) -> None:
    async def test() -> list[int]:
        collector, counts = Collector(is_quiet=lambda: True), []
        for seconds in (0, SELDOM / 2, SELDOM):
            await time_passes(seconds)
            collector.look()
            collector.look()
            await time_passes(QUIET)
            counts.append(len(full_walks))
        return counts

    gc.disable()
    try:
        assert run_ahead(test()) == [1, 1, 2]
    finally:
        gc.enable()


def test_nothing_is_walked_where_a_run_has_begun_in_the_meantime(full_walks: list[int]) -> None:
    async def test() -> None:
        quiet = [True]
        collector = Collector(is_quiet=lambda: quiet[0])
        collector.look()
        quiet[0] = False
        await time_passes(QUIET * 2)
        collector.look()
        await time_passes(QUIET * 2)

    gc.disable()
    try:
        run_ahead(test())
    finally:
        gc.enable()
    assert full_walks == []
