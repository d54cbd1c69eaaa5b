"""The benchmark without a run: what it makes of its numbers, and that the README shows those of the last full run."""

import json
import sys
from fractions import Fraction
from importlib import import_module
from typing import Any
from xml.etree import ElementTree

import pytest

from .conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))
flamegraph, measures, plot, report, table = map(import_module, ("flamegraph", "measures", "plot", "report", "table"))
sys.path.remove(str(ROOT / "bench"))

README = (ROOT / "README.md").read_text()
SHOWN = json.loads(report.SHOWN.read_text())


def found(**by_relay: dict[str, float]) -> dict[str, Any]:
    """Make results in which both wires found the same, in every repeat."""
    numbers = {
        relay: {key: {"median": value, "min": value, "max": value} for key, value in by_key.items()}
        for relay, by_key in by_relay.items()
    }
    return SHOWN | {
        "machine": SHOWN["machine"] | {"open_streams_possible": 10_000},
        "results": {"openai": numbers, "anthropic": numbers},
    }


def goal(least: float | Fraction, aim: float | Fraction, key: str = "x_ms", more_is_better: bool = False) -> Any:
    return report.Goal("title", key, "ms", least, aim, more_is_better)


@pytest.mark.parametrize(("ours", "word"), [(5.1, "missed"), (5.0, "reached"), (2.0, "aim reached")])
def test_a_goal_is_a_bound_that_may_be_touched(ours: float, word: str) -> None:
    verdict = report.verdict(goal(5, 2), found(service={"x_ms": ours}))
    assert report.VERDICTS[verdict.level] == word


@pytest.mark.parametrize(("ours", "word"), [(51, "missed"), (50, "reached"), (4, "reached"), (3, "aim reached")])
def test_a_goal_may_be_a_share_of_the_naive_way(ours: float, word: str) -> None:
    numbers = found(service={"x_ms": ours}, naive={"x_ms": 500})
    assert report.VERDICTS[report.verdict(goal(Fraction(1, 10), 3), numbers).level] == word


@pytest.mark.parametrize(("possible", "word"), [(10_000, "reached"), (9_900, "aim reached")])
def test_no_more_streams_are_asked_for_than_the_machine_allows(possible: int, word: str) -> None:
    numbers = found(service={"open_streams": 9_900})
    numbers["machine"]["open_streams_possible"] = possible
    verdict = report.verdict(goal(2_000, 10_000, "open_streams", more_is_better=True), numbers)
    assert report.VERDICTS[verdict.level] == word


def test_a_goal_is_judged_on_the_wire_where_it_is_met_worst() -> None:
    numbers = found(service={"x_ms": 1})
    numbers["results"]["anthropic"] = found(service={"x_ms": 9})["results"]["anthropic"]
    assert report.verdict(goal(5, 2), numbers) == report.Verdict(0, 9, None)


def test_what_was_not_measured_is_no_verdict() -> None:
    assert report.verdict(goal(5, 2), found(service={})) is None
    assert report.verdict(goal(Fraction(1, 5), 1), found(service={"x_ms": 1})) is None


def test_whole_streams_are_compared_where_the_naive_way_never_got_all_to_flow() -> None:
    numbers = found(service={"x_cpu_us": 30, "x_whole_cpu_us": 40}, naive={"x_whole_cpu_us": 400})
    assert report.verdict(goal(Fraction(1, 5), Fraction(1, 9), "x_cpu_us"), numbers) == (2, 40, 400)


def test_every_goal_is_told_with_what_was_found_and_the_verdict() -> None:
    numbers = found(service={"light_cpu_us": 3, "open_streams": 2_000}, naive={"light_cpu_us": 24})
    told = {line[:52].strip(): line[52:].split("  ") for line in report.goals(numbers)}
    cells = {title: [cell.strip() for cell in cells if cell] for title, cells in told.items()}
    assert list(cells)[1:] == [goal.title for goal in report.GOALS]
    assert cells["CPU per token, 30 x 50/s"] == ["3.00 us, 1/8.0", "1/5 naive", "1/9 naive", "reached"]
    assert cells[report.GOALS[6].title] == ["2,000", "2,000", "10,000", "reached"]
    assert cells["memory per open idle stream"] == ["-", "75 KB", "35 KB", "not measured"]


def test_added_delay_is_the_age_less_that_through_the_raw_proxy_in_the_same_repeat() -> None:
    ages = {"service": [5.0, 9.0, 4.0], "raw": [1.0, 2.0, 3.0]}
    samples = {("openai", relay): [{"heavy_age_p99_ms": age} for age in of] for relay, of in ages.items()}
    by_relay = report.summary(samples)["openai"]
    assert by_relay["service"]["heavy_added_p99_ms"] == {"median": 4.0, "min": 1.0, "max": 7.0}
    assert "heavy_added_p99_ms" not in by_relay["raw"]


def test_as_many_streams_count_as_open_as_had_their_first_tokens_in_time() -> None:
    late = {"wide_first_max_ms": 999.0, "widest_first_max_ms": 1000.0}
    assert measures.open_streams(late, (2_000, 9_900)) == {"open_streams": 2_000}
    assert measures.open_streams(dict.fromkeys(late, 10.0), (2_000, 9_900)) == {"open_streams": 9_900}
    assert measures.open_streams(dict.fromkeys(late, 9e9), (2_000,)) == {"open_streams": 0}


def test_own_time_is_that_of_the_innermost_function() -> None:
    samples, own, whole = flamegraph.times("main;loop;send 3\nmain;loop 1\nmain;loop;loop 2")
    assert (samples, own, whole) == (6, {"send": 3, "loop": 3}, {"main": 6, "loop": 6, "send": 3})


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_picture_is_well_formed_and_tells_every_number() -> None:
    values = {key: 1.5 + index for index, (key, _, _) in enumerate(plot.PANELS)}
    numbers = found(
        service=values, naive={k: 4 * v for k, v in values.items()}, raw={k: v / 2 for k, v in values.items()}
    )
    told = texts(plot.svg(numbers))
    for key, title, unit in plot.PANELS:
        assert set(title.split(", ")) < set(told)
        for share in (1, 4, 0.5):
            assert f"{report.number(values[key] * share)} {unit}" in told
    assert told.count(f"4.0{plot.TIMES} less") == len(plot.PANELS)


def test_what_is_shown_is_of_a_run_without_a_fault_on_both_wires_and_of_all_relays() -> None:
    assert SHOWN["faults"] == []
    assert set(SHOWN["results"]) == {"openai", "anthropic"}
    assert all(set(by_relay) == {"service", "naive", "raw"} for by_relay in SHOWN["results"].values())
    assert None not in [report.verdict(goal, SHOWN) for goal in report.GOALS]


def test_the_picture_is_that_of_the_results() -> None:
    assert plot.PICTURE.read_text() == plot.svg(SHOWN)


def test_the_readme_shows_the_picture_and_the_numbers_of_the_results() -> None:
    assert "](bench/results.svg)" in README
    assert "\n".join(table.markdown(SHOWN)) in README
