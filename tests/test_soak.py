"""The chaos soak (bench/soak.py): a small one is run, and what judges a big one is shown things that are wrong."""

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from .conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))
answers, chaos, history, soak = map(import_module, ("answers", "chaos", "history", "soak"))
sys.path.remove(str(ROOT / "bench"))

RUN = "0" * 32
PROMPT = answers.prompt_of("v1", 4)
FIRST, SECOND = (["openai", "a0"], answers.words("a0", PROMPT)), (["anthropic", "b3"], answers.words("b3", PROMPT))
USAGE = {"input_tokens": len(PROMPT), "output_tokens": 4}
Events = list[tuple[str, dict[str, Any]]]


def start(who: list[str]) -> tuple[str, dict[str, Any]]:
    return "start", {"run": RUN, "provider": who[0], "model": who[1]}


def tokens(words: list[str]) -> Events:
    return [("token", {"token": word}) for word in words]


def done(model: str) -> tuple[str, dict[str, Any]]:
    return "done", {"done": True, "model": model, "usage": USAGE, "tokens": 4}


# The first one is cut behind its second word, and the second one answers.
EVENTS: Events = [
    start(FIRST[0]),
    *tokens(FIRST[1][:2]),
    ("reset", {"reason": "upstream_incomplete"}),
    start(SECOND[0]),
    *tokens(SECOND[1]),
    done("b3"),
]
ATTEMPTS = [
    chaos.Attempt("v1", *FIRST[0], fault="cut", text="".join(FIRST[1][:2]), words=4, in_flight=False),
    chaos.Attempt("v1", *SECOND[0], text="".join(SECOND[1]), whole=True, words=4, tokens=4, in_flight=False),
]
ASKED = [tuple(FIRST[0]), tuple(SECOND[0])]


def seen(events: Events, numbers: list[int] | None = None) -> Any:
    found = history.History()
    for number, (name, data) in zip(numbers or range(1, len(events) + 1), events, strict=True):
        found.take(history.Event(name, f"{RUN}-{number}", data))
    return found


def status(whole: Any, **other: Any) -> dict[str, Any]:
    """What GET /runs/{id} tells of such a run."""
    return {
        "state": whole.ending.name,
        "text": whole.text,
        "last_event_id": whole.last_id,
        "resets": len(whole.answers) - 1,
        "ending": whole.ending.data,
        "provider": SECOND[0][0],
        "model": SECOND[0][1],
        "retries": 0,
        "failovers": 1,
        **other,
    }


def judged(events: Events, numbers: list[int] | None = None, client: Any = None, **told: Any) -> list[str]:
    whole = seen(events, numbers)
    right = history.is_right(whole, status(whole, **told) if whole.ending else {}, ATTEMPTS, ASKED)
    return [*whole.complaints, *(client.complaints if client else ()), *history.agrees(client or whole, whole), *right]


def without(*places: int) -> Events:
    return [event for place, event in enumerate(EVENTS) if place not in places]


def test_nothing_is_wrong_with_what_is_right() -> None:
    assert judged(EVENTS) == []
    for count in range(len(EVENTS)):
        assert judged(EVENTS, client=seen(EVENTS[:count])) == []


@pytest.mark.parametrize(
    ("events", "complaint"),
    [
        ([*EVENTS, done("b3")], "done 11 behind the terminal done"),
        ([*EVENTS, ("token", {"token": "x"})], "token 11 behind the terminal done"),
        (EVENTS[:-1], "no terminal event"),
        (without(0), "begins with token"),
        (without(3), "behind content, without a reset"),
        (without(4), "behind a reset, where a start is due"),
        (without(3, 4), "no upstream has said"),
        (without(1), "no upstream has said"),
        (without(6), "which is no whole answer"),
        ([*EVENTS[:6], EVENTS[5], *EVENTS[6:]], "no upstream has said"),
        ([*EVENTS[:-1], done("a0")], "done by a0"),
        ([*EVENTS[:-1], ("done", {**done("b3")[1], "skipped_chunks": 1})], "tells 1 skipped chunks"),
        ([*EVENTS[:-1], ("done", {**done("b3")[1], "usage": {"output_tokens": 5}})], "tells the usage"),
        ([*EVENTS[:-1], ("error", {**done("b3")[1], "code": "internal"})], "error internal"),
        (
            [*EVENTS[:-1], ("error", {**done("b3")[1], "code": "upstream_invalid"})],
            "the last attempt's fault was: well",
        ),
        ([*EVENTS[:1], ("token", {"token": answers.KEY}), *EVENTS[1:]], "holds a key"),
        ([*EVENTS[:4], start(["openai", "d7"]), *EVENTS[5:]], "who was not asked for"),
    ],
)
def test_a_run_that_says_what_it_must_not_is_complained_of(events: Events, complaint: str) -> None:
    assert complaint in "; ".join(judged(events))


def test_an_id_that_does_not_rise_is_complained_of() -> None:
    assert "token 2 behind 2" in judged(EVENTS, [1, 2, 2, *range(4, 11)])


@pytest.mark.parametrize(
    ("client", "complaint"),
    [
        ([*EVENTS[:6], *EVENTS[7:8]], "its text is not how the run's begins"),  # a gap
        ([*EVENTS[:6], *EVENTS[5:6]], "its text is not how the run's begins"),  # twice
        ([*EVENTS[:2], *EVENTS[3:6]], "what was reset is not what the run has said"),
        ([*EVENTS[:-2], EVENTS[-1]], "it lacks something"),
        ([*EVENTS[:-1], ("cancelled", done("b3")[1])], "is not the run's"),
    ],
)
def test_a_client_that_was_told_something_else_is_complained_of(client: Events, complaint: str) -> None:
    assert complaint in "; ".join(judged(EVENTS, client=seen(client)))


@pytest.mark.parametrize(
    "told", [{"state": "error"}, {"text": ""}, {"resets": 0}, {"last_event_id": f"{RUN}-9"}, {"ending": None}]
)
def test_a_status_that_differs_is_complained_of(told: dict[str, Any]) -> None:
    assert "its status differs" in "; ".join(judged(EVENTS, **told))


def test_a_status_of_another_candidate_or_with_too_few_requests_is_complained_of() -> None:
    assert "its status names" in "; ".join(judged(EVENTS, provider="openai"))
    assert "2 requests, but 0 retries" in "; ".join(judged(EVENTS, failovers=0))


def test_a_wrong_count_of_tokens_is_complained_of() -> None:
    """Where one candidate has answered: another may go on with other deltas."""
    events = [*EVENTS[:-1], ("done", {**done("b3")[1], "tokens": 5})]
    assert judged(events) == []
    assert "tells 5 tokens" in "; ".join(judged(events, failovers=0, retries=1))


QUIET = soak.Held(rss=100, tasks=3, files=9, active=0, kept=0, keys=0, probes=0, objects=2000, left={"Connection": 1})


@pytest.mark.parametrize(
    "left",
    [
        {"tasks": 4},
        {"files": 10},
        {"active": 1},
        {"kept": 1},
        {"keys": 1},
        {"probes": 1},
        {"left": {"Connection": 2}},
        {"left": {"Run": 1}},
    ],
)
def test_what_is_left_behind_is_complained_of(left: dict[str, Any]) -> None:
    assert list(soak.left_behind(QUIET, QUIET)) == []
    assert len(list(soak.left_behind(QUIET, QUIET._replace(**left)))) == 1


@pytest.mark.parametrize("last", [{"rss": 111}, {"objects": 3000}])
def test_growth_is_complained_of(last: dict[str, Any]) -> None:
    assert list(soak.grown(QUIET, QUIET._replace(rss=110))) == []
    assert len(list(soak.grown(QUIET, QUIET._replace(**last)))) == 1


@pytest.mark.parametrize(
    "line", ["Traceback (most recent call last):", "ERROR: x", f"GET /?message={PROMPT}", f"Bearer {answers.KEY}"]
)
def test_a_log_that_tells_too_much_is_complained_of(line: str) -> None:
    assert list(soak.in_log("INFO: all is well")) == []
    assert len(list(soak.in_log(f"INFO: all is well\n{line}"))) == 1


@pytest.mark.parametrize("model", ["a0", "b3", "c2", "d3"])
def test_a_prompt_has_one_answer_a_voice(model: str) -> None:
    say: Callable[[str], str] = lambda model: "".join(answers.words(model, answers.prompt_of("v7", 20, 9)))  # noqa: E731
    assert say(model) == say(f"{model[0]}5")
    assert say("a0").startswith(say(model)) == (model[0] in "ad")


def test_a_small_soak_finds_nothing_wrong() -> None:
    small = ["--minutes", "0.02", "--rounds", "1", "--concurrent", "20", "--patience", "0.4", "--keep", "2"]
    command = [sys.executable, "bench/soak.py", *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("nothing found wrong\n")
