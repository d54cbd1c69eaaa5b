"""The fault matrix: what each fault of an upstream looks like, and the README's table of it.

`make matrix` writes that table from what the run has seen; else it is compared with that. Times are told, not compared.
"""

import json
import os
import re
import statistics
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from .conftest import ROOT, Service, Start, eventually
from .fault_matrix import (
    DIALECTS,
    DOWN,
    FAULTS,
    FLAPPING_SETTINGS,
    PAUSE_OF_BREAKER,
    SETTINGS,
    WHOLE,
    Flapped,
    Flapping,
    Lane,
    Met,
    Seen,
    ending,
    start,
    token,
)
from .recorded import Dialect, Told
from .upstream import closed_port

README = ROOT / "README.md"
BEGIN, END = "<!-- fault matrix: written by `make matrix` -->\n", "<!-- /fault matrix -->"
HEAD = ("the fault", "alone", "in a chain", "requests the upstream saw", "took, seconds")
SHORT = {"openai": "chat", "openai_responses": "Responses", "anthropic": "Anthropic"}
FLAPPING = f"connection refused for {DOWN:g} s, then well"
# Five attempts of two runs open the breaker, and then one is let through each time it half opens.
MOST_ASKED = 2 + int(DOWN / PAUSE_OF_BREAKER)
# Played before all rows, so that the service has made its providers: that is not to be part of a deadline.
WARMING = ("connection refused", "cut after 2 tokens, FIN")


class Row(NamedTuple):
    fault: str
    alone: str
    chain: str
    saw: str
    took: str

    def __str__(self) -> str:
        return f"| {' | '.join(self)} |"


def shown(seen: Seen) -> str:
    """Say in a cell what a client was told behind the first `start`."""
    retries = f", after {seen.retries} {'retry' if seen.retries == 1 else 'retries'}" if seen.retries else ""
    return ", ".join(named(name, data) for name, data in seen.events[1:]) + retries


def named(name: str, data: dict[str, Any]) -> str:
    notes = []
    if name == "error":
        name = f"error` `{data['code']}"
    if name == "done" and data["finish_reason"] != "stop":
        notes.append(f"`{data['finish_reason']}`")
    if "skipped_chunks" in data:
        notes.append(f"`skipped_chunks: {data['skipped_chunks']}`")
    return f"`{name}`" + (f" ({', '.join(notes)})" if notes else "")


def agreed(cells: dict[str, str]) -> str:
    """Say once what most dialects have in common, and then which differ, and how."""
    common = Counter(cells.values()).most_common(1)[0][0]
    return "; ".join([common, *(f"{SHORT[name]}: {cell}" for name, cell in cells.items() if cell != common)])


def chain(ways: dict[str, Seen]) -> str:
    alone, same = shown(ways["alone"]), shown(ways["same"])
    cell = "the same" if same == alone else same
    if "on" in ways:
        cell += f"; with `on`: {shown(ways['on'])}"
    if "other" in ways:
        cell += f"; another text: {shown(ways['other'])}"
    return cell


def saw(ways: dict[str, Seen]) -> str:
    """What the first upstream saw, which does not depend on the second."""
    (ended,) = {tuple(seen.first) for seen in ways.values()}
    return ", ".join(f"{count} {how}" for how, count in Counter(ended).items()) or "none"


def seconds(took: list[float]) -> str:
    middle = statistics.median(took)
    return f"{middle:.1f}" if middle >= 0.1 else "< 0.1"


class Played(NamedTuple):
    """A fault in a lane, the way it was met there, and what was seen."""

    lane: Lane
    met: Met
    way: str
    seen: Seen
    took: float


def row(fault: str, played: list[Played]) -> Row:
    seen: dict[str, dict[str, Seen]] = {}
    for one in played:
        seen.setdefault(one.lane.dialect.provider, {})[one.way] = one.seen
    return Row(
        fault,
        agreed({name: shown(ways["alone"]) for name, ways in seen.items()}),
        agreed({name: chain(ways) for name, ways in seen.items()}),
        agreed({name: saw(ways) for name, ways in seen.items()}),
        seconds([one.took for one in played]),
    )


class Matrix:
    """A service, and a lane for each dialect and each way to meet a fault."""

    def __init__(self, lanes: list[Lane], service: Service, threads: ThreadPoolExecutor) -> None:
        self.lanes, self.service, self._threads = lanes, service, threads

    def play(self, fault: str) -> list[Played]:
        """Play a fault in all lanes at once."""
        playing = []
        for lane in self.lanes:
            met = FAULTS[fault](lane.dialect)
            way = met.third if lane.way == "third" else lane.way
            if way:
                playing.append((lane, met, way, self._threads.submit(lane.meet, self.service, met, way)))
        wait([future for *_, future in playing])  # of a row that fails nothing goes on in the next
        return [Played(lane, met, way, *future.result()) for lane, met, way, future in playing]


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    """What was seen as yet."""
    return {}


@pytest.fixture(scope="module")
def matrix(start_service: Start) -> Iterator[Matrix]:
    with ExitStack() as stack:
        closed = stack.enter_context(closed_port()).getsockname()[1]
        lanes = [Lane(dialect, way, closed) for dialect in DIALECTS for way in ("alone", "same", "third")]
        for lane in lanes:
            stack.enter_context(lane.first)
            stack.enter_context(lane.second)
        providers = {name: one for lane in lanes for name, one in lane.providers.items()}
        service = start_service(SIDESTREAM_PROVIDERS=json.dumps(providers), **SETTINGS)
        matrix = Matrix(lanes, service, stack.enter_context(ThreadPoolExecutor(len(lanes))))
        for fault in WARMING:
            matrix.play(fault)
        yield matrix


@pytest.fixture(scope="module", autouse=True)
def flapping(request: pytest.FixtureRequest, start_service: Start) -> Iterator[dict[str, Future[Flapped]]]:
    """Begun ahead of all rows, where it is among them: it takes longer than all of them together."""
    if not any(
        item.name == test_an_upstream_that_was_down_serves_again_by_itself.__name__ for item in request.session.items
    ):
        yield {}
        return
    over = threading.Event()
    flaps = [Flapping(dialect, way) for dialect in DIALECTS for way in ("alone", "chain")]
    providers = {name: one for flap in flaps for name, one in flap.providers.items()}
    service = start_service(SIDESTREAM_PROVIDERS=json.dumps(providers), **FLAPPING_SETTINGS)
    with ThreadPoolExecutor(len(flaps)) as threads:
        yield {flap.name: threads.submit(flap.play, service, over) for flap in flaps}
        over.set()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_and_leaves_nothing_behind(matrix: Matrix, rows: dict[str, Row], fault: str) -> None:
    played = matrix.play(fault)
    for one in played:
        assert one.seen == one.lane.expected(one.met, one.way), f"{one.lane.name}, met {one.way}"
        assert one.took >= one.met.least, f"{one.lane.name}, met {one.way}"
    rows[fault] = row(fault, played)


def test_an_upstream_that_was_down_serves_again_by_itself(
    flapping: dict[str, Future[Flapped]], rows: dict[str, Row]
) -> None:
    flapped = {name: future.result() for name, future in flapping.items()}
    for dialect in DIALECTS:
        is_alone(dialect, f"{dialect.provider}-alone", flapped[f"{dialect.provider}-alone"])
        is_in_a_chain(dialect, f"{dialect.provider}-chain", flapped[f"{dialect.provider}-chain"])
    chains = [flapped[f"{dialect.provider}-chain"] for dialect in DIALECTS]
    runs, asked = max(len(c.while_down) for c in chains), max(len(asked_of(c)) for c in chains)
    rows[FLAPPING] = Row(
        FLAPPING,
        "`error` `upstream_unavailable`, after 2 retries; once it is well, `token`, `done`",
        f"at most {MOST_ASKED} runs ask it: `start`, `token`, `done`; all others `token`, `done`",
        "none; once it is well, 1 completed",
        f"{DOWN:g}, asked by {asked} of {runs} runs, and serves {max(c.back for c in chains):.0f} after",
    )


def asked_of(flapped: Flapped) -> list[tuple[Told, int]]:
    """The runs, while it was down, that asked it and were answered by another."""
    return [run for run in flapped.while_down if [name for name, _ in run[0]].count("start") > 1]


def is_alone(dialect: Dialect, name: str, flapped: Flapped) -> None:
    unavailable = [start(name), ending(dialect, FAULTS["connection refused"](dialect))]
    assert flapped.while_down == [(unavailable, 2)] * len(flapped.while_down)
    assert len(flapped.while_down) > 2
    assert flapped.breaker_down in ("open", "half_open"), "it says so, and is asked all the same"
    assert flapped.while_away == []
    assert_well(dialect, name, flapped)


def is_in_a_chain(dialect: Dialect, name: str, flapped: Flapped) -> None:
    turned_to, passed_over = [start(name), *answer(dialect, f"{name}-second")], answer(dialect, f"{name}-second")
    asked = asked_of(flapped)
    assert flapped.while_down[:2] == asked[:2], "five attempts open the breaker"
    assert [retries for _, retries in asked] == [2, 1, *[0] * (len(asked) - 2)], "and it is tried once each time"
    assert [run for run, _ in asked] == [turned_to] * len(asked)
    assert [run for run in flapped.while_down if run not in asked] == [(passed_over, 0)] * (
        len(flapped.while_down) - len(asked)
    )
    assert len(asked) <= MOST_ASKED
    assert flapped.breaker_down in ("open", "half_open")
    assert flapped.while_away == [passed_over] * len(flapped.while_away)
    assert_well(dialect, name, flapped)


def assert_well(dialect: Dialect, name: str, flapped: Flapped) -> None:
    assert (flapped.well, flapped.breaker_well, flapped.first) == (answer(dialect, name), "closed", ["completed"])


def answer(dialect: Dialect, name: str) -> Told:
    return [start(name), token(WHOLE), ("done", dialect.done(3))]


def test_nothing_is_left_open(matrix: Matrix) -> None:
    """What is kept between answers goes after some seconds (providers/connection.py)."""
    eventually(lambda: not any(upstream.open for lane in matrix.lanes for upstream in (lane.first, lane.second)))
    assert not re.findall(r".*(?:Traceback|internal error|never retrieved).*", matrix.service.log)


def test_the_table_in_the_readme_is_what_was_seen(rows: dict[str, Row]) -> None:
    if rows.keys() != {*FAULTS, FLAPPING}:
        return  # not all were to be played
    table = [str(Row(*HEAD)), str(Row(*["---"] * len(HEAD))), *(str(rows[fault]) for fault in (*FAULTS, FLAPPING))]
    before, begin, rest = README.read_text().partition(BEGIN)
    written, end, after = rest.partition(END)
    if os.environ.get("MATRIX") == "write":
        assert end
        README.write_text("".join([before, begin, "\n".join(table), "\n", end, after]))
    else:
        assert [timeless(line) for line in written.splitlines()] == [timeless(line) for line in table], "make matrix"


def timeless(line: str) -> str:
    return line.rstrip(" |").rpartition(" | ")[0]
