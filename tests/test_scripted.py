"""The scripted provider: what each script says, event by event and to the millisecond, on a clock that jumps."""

import asyncio
import re
from typing import Any

import pytest

from providers.scripted import HELLO, MARKDOWN, SCRIPTS, Scripted
from streaming.errors import RequestError, UpstreamError
from streaming.events import (
    Cancelled,
    Done,
    Error,
    Event,
    Finish,
    Reasoning,
    Token,
    ToolCall,
    ToolCallDelta,
    ToolResult,
)
from streaming.failover import Candidate, Failover
from streaming.limits import Limits
from streaming.request import ImagePart, ImageURL, Message, ProviderSettings, RunRequest, TextPart
from streaming.run import Run

from .asgi import run_ahead, time_passes

LIMITS = Limits(run_timeout=600, first_token_timeout=120, idle_timeout=60, max_run_bytes=2**24, linger=1000)
SCRIPTED = Scripted(ProviderSettings(), None)  # type: ignore[arg-type]  # it never asks an upstream


def request(script: str, *steps: Any, said: str | list[TextPart | ImagePart] | None = "Hi!") -> RunRequest:
    options = {"script": list(steps)} if steps else None
    return RunRequest(model=script, messages=[Message("user", said)], provider_options=options)


def play(asked: RunRequest, limits: Limits = LIMITS) -> list[Event]:
    """Return what a run of it says after its start."""

    async def load() -> Scripted:
        return SCRIPTED

    async def test() -> list[Event]:
        run = Run(Failover([Candidate("scripted", asked, load)]), limits)
        run.start()
        await run.wait()
        return run.log.read(1)

    return run_ahead(test())


def words(text: str) -> list[Token]:
    return [Token(word) for word in re.findall(r"^[^ ]+| [^ ]*", text)]


def outcome(event: Event) -> tuple[object, ...]:
    """Return what tells one ending from another."""
    if isinstance(event, Done):
        return event.finish_reason, event.tokens, event.ttft_ms, event.latency_ms
    assert isinstance(event, Error | Cancelled)
    return (event.code, event.retryable) if isinstance(event, Error) else (event.reason,)


UNICODE = 'Grüße, 世界! 👩‍👩‍👧‍👦 line\u2028separator, next\u0085line,\nnewline and a \\ "quote".'
THOUGHT = "The user asked something. I shall say hello."
ARGS = {"city": "Paris", "unit": "celsius"}
CALL = [
    ToolCallDelta(0, '{"city":', "call_1", "get_weather"),
    ToolCallDelta(0, '"Paris","unit":"celsius"}'),
    ToolCall("call_1", "get_weather", ARGS),
    ToolResult("call_1", "get_weather", {"temperature": 21, "sky": "clear"}),
]
SAID: dict[str, tuple[list[Event], tuple[object, ...]]] = {
    "hello": ([*words(HELLO)], ("stop", 22, 200, 1080)),
    "slow": ([*words(HELLO)], ("stop", 22, 3000, 14_000)),
    "long": ([*words(" ".join(f"word {n}," for n in range(1, 2001)))], ("stop", 4000, 0, 20_000)),
    "markdown": ([*words(MARKDOWN)], ("stop", 22, 200, 860)),
    "unicode": ([*words(UNICODE)], ("stop", 9, 0, 450)),
    "reasoning": (
        [*[Reasoning(word.text) for word in words(THOUGHT)], *words(HELLO)],
        ("stop", 30, 0, 1060),
    ),
    "tools": (
        [*words("Let me look at the weather."), *CALL, *words("It is 21 degrees in Paris, under a clear sky.")],
        ("stop", 18, 0, 1600),
    ),
    "length": ([*words("This answer was cut short by its limit of")], ("length", 9, 0, 450)),
    "filtered": ([*words("This answer was stopped by")], ("content_filter", 5, 0, 250)),
    "silent": ([], ("first_token_timeout", True)),
    "stall": ([*words("These are the last words before a long")], ("idle_timeout", True)),
    "cut": ([*words("The connection breaks in the middle of this")], ("upstream_incomplete", True)),
    "error": ([], ("upstream_unavailable", True)),
    "late-error": ([*words("This goes well until it does")], ("upstream_rate_limited", True)),
    "echo": ([*words("Hi!")], ("stop", 1, 0, 10)),
}


@pytest.mark.parametrize("script", SAID)
def test_a_script_says_its_events_in_its_time(script: str) -> None:
    *events, terminal = play(request(script))
    assert (events, outcome(terminal)) == SAID[script]


def test_every_script_has_its_events_pinned_above() -> None:
    assert sorted(SAID) == sorted({*SCRIPTS, "echo"} - {"flood"})


def test_a_flood_is_stopped_by_the_limit() -> None:
    """It would be six million characters: as much as is asked for and more."""
    *events, terminal = play(request("flood"), Limits(600, 120, 60, 100_000, linger=1000))
    assert events == [Token("flood"), *[Token(" flood")] * (len(events) - 1)]
    assert outcome(terminal) == ("output_limit", False)
    assert 500 < len(events) < 1000


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("one  two", "one  two"),
        (" ", " "),
        (None, "(nothing)"),
        ([TextPart("a b"), ImagePart(ImageURL("https://x/i.png")), TextPart("c")], "a bc"),
        ([ImagePart(ImageURL("https://x/i.png"))], "(no text)"),
    ],
)
def test_echo_says_the_last_message_whole(said: str | list[TextPart | ImagePart] | None, answer: str) -> None:
    *events, terminal = play(request("echo", said=said))
    assert "".join(event.text for event in events if isinstance(event, Token)) == answer
    assert outcome(terminal)[0] == "stop"


def test_a_custom_script_does_its_steps_in_turn() -> None:
    asked = request(
        "custom",
        {"wait": 1, "think": "a b", "every": 0.5},
        {"say": "c d", "every": 0.25},
        {"call": {"tool": "f", "args": {"x": [1]}, "id": "i", "result": False}},
        {"call": {"tool": "g"}},
        {"finish": "interrupt"},
        {"wait": 2, "say": "e"},
    )
    *events, terminal = play(asked)
    assert events == [
        Reasoning("a"),
        Reasoning(" b"),
        Token("c"),
        Token(" d"),
        ToolCallDelta(0, '{"x":[1]', "i", "f"),
        ToolCallDelta(0, "}"),
        ToolCall("i", "f", {"x": [1]}),
        ToolResult("i", "f", False),
        ToolCallDelta(0, "{}", "call_1", "g"),
        ToolCall("call_1", "g", {}),
        Token("e"),
    ]
    assert outcome(terminal) == ("interrupt", 8, 1000, 4500)


def test_one_step_may_do_several_things() -> None:
    step = {"think": "a", "say": "b", "call": {"tool": "f"}, "finish": "length"}
    *events, terminal = play(request("custom", step))
    assert [event.name for event in events] == ["reasoning", "token", "tool_call_delta", "tool_call"]
    assert outcome(terminal)[0] == "length"


@pytest.mark.parametrize("code", sorted(UpstreamError.codes))
def test_a_step_fails_as_it_says(code: str) -> None:
    assert outcome(play(request("custom", {"fail": code}))[-1]) == (code, UpstreamError.codes[code][1])


def test_a_step_that_fails_in_a_way_nobody_knows_is_unavailable() -> None:
    assert outcome(play(request("custom", {"fail": "oops"}))[-1]) == ("upstream_unavailable", True)


def test_an_empty_script_is_an_empty_answer() -> None:
    asked = RunRequest(model="custom", messages=[Message("user", "Hi!")], provider_options={"script": []})
    assert outcome(play(asked)[-1]) == ("stop", 0, None, 0)


BAD = [
    (None, "scripted/custom plays what `provider_options.script` says: a list of steps."),
    ({}, "scripted/custom plays what `provider_options.script` says: a list of steps."),
    ({"script": None}, "scripted/custom plays what `provider_options.script` says: a list of steps."),
    ({"script": "Hi"}, "provider_options.script: Expected `array`, got `str`"),
    ({"script": [{"shout": "Hi"}]}, "provider_options.script: Object contains unknown field `shout` - at `$[0]`"),
    ({"script": [{}, {"say": 5}]}, "provider_options.script: Expected `str | null`, got `int` - at `$[1].say`"),
    ({"script": [{"wait": -1}]}, "provider_options.script: Expected `float` >= 0.0 - at `$[0].wait`"),
    ({"script": [{"every": 3601}]}, "provider_options.script: Expected `float` <= 3600.0 - at `$[0].every`"),
    ({"script": [{"finish": "enough"}]}, "provider_options.script: Invalid enum value 'enough' - at `$[0].finish`"),
    ({"script": [{"call": {}}]}, "provider_options.script: Object missing required field `tool` - at `$[0].call`"),
]


@pytest.mark.parametrize(("options", "text"), BAD)
def test_a_bad_custom_script_is_the_callers_fault_and_says_where(options: dict[str, Any] | None, text: str) -> None:
    asked = RunRequest(model="custom", messages=[Message("user", "Hi!")], provider_options=options)
    [terminal] = play(asked)
    assert isinstance(terminal, Error)
    assert (terminal.code, terminal.error, terminal.retryable) == ("invalid_request", text, False)

    async def test() -> None:
        with pytest.raises(RequestError) as raised:
            await SCRIPTED.stream(asked, [].extend)
        assert raised.value.field == "provider_options"

    run_ahead(test())


@pytest.mark.parametrize("script", ["silent", "slow"])
def test_a_cancelled_script_stops_where_it_is(script: str) -> None:
    async def test() -> tuple[bool, float]:
        playing = asyncio.create_task(SCRIPTED.stream(request(script), [].extend))
        await time_passes(1)
        playing.cancel()
        await asyncio.wait((playing,))
        return playing.cancelled(), asyncio.get_running_loop().time()

    assert run_ahead(test()) == (True, 1)


def test_the_provider_itself_ends_with_one_finish() -> None:
    async def test() -> list[Any]:
        told: list[Any] = []
        await SCRIPTED.stream(request("length"), told.extend)
        return told

    *events, finish = run_ahead(test())
    assert (events, finish) == (SAID["length"][0], Finish("length"))
