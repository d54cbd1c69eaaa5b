"""The native request, as JSON and as a query string: what becomes of each field, and what is refused with which words.

Those of the fields that chains and graphs have; what they make of them is theirs. Over sockets, requests are refused
elsewhere.
"""

import json
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from streaming.errors import RequestError
from streaming.request import FOR_MODELS, FOR_RUNNABLES, Fallbacks, Message, Options, RunnableConfig
from wires.chat import ChatRequest, decode_body, decode_query

MODES = ["values", "updates", "messages", "custom", "tasks", "checkpoints", "debug"]
NOTHING: dict[str, Any] = {
    "input": UNSET,
    "resume": UNSET,
    "thread_id": None,
    "stream_mode": None,
    "config": None,
    "context": None,
    "events": False,
    "include_names": None,
    "include_types": None,
    "include_tags": None,
}


def body(**fields: Any) -> ChatRequest:
    return decode_body(json.dumps(fields).encode())


def query(text: str = "", **fields: str) -> ChatRequest:
    return decode_query(parse_qsl(text or urlencode(fields), keep_blank_values=True, strict_parsing=True))


def fields_of(request: Options) -> dict[str, Any]:
    return {name: getattr(request, name) for name in NOTHING}


def refused(ask: Any, *args: Any, **fields: Any) -> tuple[str, str | None]:
    """Return a refusal's text and field; of the fields themselves or of what they say together."""
    with pytest.raises(RequestError) as raised:
        ask(*args, **fields).to_run("m")
    assert raised.value.code == "invalid_request"
    return raised.value.text, raised.value.field


def test_what_is_for_runnables_and_what_for_models_are_all_options_and_share_none() -> None:
    assert list(FOR_RUNNABLES) == list(NOTHING)
    assert {*FOR_MODELS} | {*FOR_RUNNABLES} == {*Options.__struct_fields__}
    assert not {*FOR_MODELS} & {*FOR_RUNNABLES}


def test_a_request_that_says_nothing_of_them_has_given_none() -> None:
    for request in (body(message="Hi"), query(message="Hi")):
        assert fields_of(request) == NOTHING
        run = request.to_run("m")
        assert fields_of(run) == NOTHING
        assert run.given(Options.__struct_fields__) == []


FIELDS: list[tuple[str, Any, Any]] = [
    *(("input", value, value) for value in (None, False, 0, "", "text", [], {}, {"topic": ["cats", None]})),
    *(("resume", value, value) for value in (None, False, 0, "", "yes", {"approved": True})),
    ("thread_id", "a thread", "a thread"),
    *(("stream_mode", mode, mode) for mode in MODES),
    ("stream_mode", ["values"], ["values"]),
    ("stream_mode", MODES, MODES),
    ("stream_mode", ["values", "values"], ["values", "values"]),
    ("config", {}, RunnableConfig()),
    (
        "config",
        {
            "configurable": {"user": 5, "deep": {"a": [1]}},
            "tags": ["a"],
            "metadata": {"b": 1.5},
            "run_name": "it",
            "recursion_limit": 1,
            "max_concurrency": 1,
        },
        RunnableConfig({"user": 5, "deep": {"a": [1]}}, ["a"], {"b": 1.5}, "it", 1, 1),
    ),
    ("context", {}, {}),
    ("context", {"name": "Ann"}, {"name": "Ann"}),
    ("events", True, True),
    ("include_names", ["a", "b"], ["a", "b"]),
    ("include_types", [], []),
    ("include_tags", ["a,b"], ["a,b"]),
]
ALONE = ("input", "resume")


@pytest.mark.parametrize(("name", "value", "expected"), FIELDS)
def test_a_field_of_a_body_reaches_the_run(name: str, value: Any, expected: Any) -> None:
    message = {} if name in ALONE else {"message": "Hi"}
    run = body(**{name: value}, **message).to_run("m")
    assert fields_of(run) == {**NOTHING, name: expected}
    assert run.given(FOR_RUNNABLES) == [name]
    assert run.messages == ([] if name in ALONE else [Message("user", "Hi")])
    assert run.has_own_input == (name in ALONE)


QUERIES: list[tuple[str, str, Any]] = [
    ("input", "cats and dogs", "cats and dogs"),
    ("input", "", ""),
    ("input", "5", 5),
    ("input", '"5"', "5"),
    ("input", "null", None),
    ("input", "true", True),
    ("input", "True", "True"),
    ("input", '{"topic": "cats"}', {"topic": "cats"}),
    ("input", "[1, 2]", [1, 2]),
    ("input", "{topic}", "{topic}"),
    ("input", "[" * 5000, "[" * 5000),
    ("input", "NaN", "NaN"),
    ("input", "12 monkeys", "12 monkeys"),
    ("resume", "yes", "yes"),
    ("resume", "true", True),
    ("resume", "null", None),
    ("resume", '{"a": 1}', {"a": 1}),
    ("thread_id", "5", "5"),
    ("thread_id", "null", "null"),
    ("stream_mode", "values", ["values"]),
    ("stream_mode", "updates,messages", ["updates", "messages"]),
    ("config", '{"tags": ["a"], "recursion_limit": 5}', RunnableConfig(tags=["a"], recursion_limit=5)),
    ("context", '{"name": "Ann"}', {"name": "Ann"}),
    ("context", "null", None),
    ("events", "true", True),
    ("events", "1", True),
    ("events", "false", False),
    ("include_names", "a", ["a"]),
    ("include_types", "llm,tool", ["llm", "tool"]),
    ("include_tags", "a b,c", ["a b", "c"]),
]


@pytest.mark.parametrize(("name", "value", "expected"), QUERIES)
def test_a_field_of_a_query_reaches_the_run(name: str, value: str, expected: Any) -> None:
    message = {} if name in ALONE else {"message": "Hi"}
    assert fields_of(query(**{name: value}, **message).to_run("m")) == {**NOTHING, name: expected}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(json_values, st.sampled_from(ALONE))
def test_any_json_is_an_input_or_an_answer(value: Any, name: str) -> None:
    for request in (body(**{name: value}), query(**{name: json.dumps(value)})):
        assert getattr(request.to_run("m"), name) == value


@settings(deadline=None)
@given(st.text(), st.sampled_from(ALONE))
def test_any_text_of_a_query_is_an_input_or_an_answer(text: str, name: str) -> None:
    try:
        expected = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    except (ValueError, pytest.fail.Exception):
        expected = text
    assert getattr(query(**{name: text}).to_run("m"), name) == expected


MISSHAPEN: list[tuple[dict[str, Any], str, str | None]] = [
    ({"thread_id": ""}, "Bad request: Expected `str` of length >= 1 - at `$.thread_id`.", "thread_id"),
    ({"thread_id": "x" * 1001}, "Bad request: Expected `str` of length <= 1000 - at `$.thread_id`.", "thread_id"),
    ({"thread_id": 5}, "Bad request: Expected `str | null`, got `int` - at `$.thread_id`.", "thread_id"),
    ({"stream_mode": []}, "Bad request: Expected `array` of length >= 1 - at `$.stream_mode`.", "stream_mode"),
    ({"stream_mode": "tokens"}, "Bad request: Invalid enum value 'tokens' - at `$.stream_mode`.", "stream_mode"),
    ({"stream_mode": ["a"]}, "Bad request: Invalid enum value 'a' - at `$.stream_mode[0]`.", "stream_mode"),
    ({"stream_mode": 5}, "Bad request: Expected `str | array | null`, got `int` - at `$.stream_mode`.", "stream_mode"),
    ({"config": []}, "Bad request: Expected `object | null`, got `array` - at `$.config`.", "config"),
    (
        {"config": {"callbacks": []}},
        "Bad request: Object contains unknown field `callbacks` - at `$.config`.",
        "config",
    ),
    (
        {"config": {"configurable": []}},
        "Bad request: Expected `object`, got `array` - at `$.config.configurable`.",
        "config",
    ),
    ({"config": {"recursion_limit": 0}}, "Bad request: Expected `int` >= 1 - at `$.config.recursion_limit`.", "config"),
    ({"config": {"max_concurrency": 0}}, "Bad request: Expected `int` >= 1 - at `$.config.max_concurrency`.", "config"),
    ({"config": {"tags": [5]}}, "Bad request: Expected `str`, got `int` - at `$.config.tags[0]`.", "config"),
    ({"context": "Ann"}, "Bad request: Expected `object | null`, got `str` - at `$.context`.", "context"),
    ({"events": "true"}, "Bad request: Expected `bool`, got `str` - at `$.events`.", "events"),
    ({"events": None}, "Bad request: Expected `bool`, got `null` - at `$.events`.", "events"),
    (
        {"include_names": "a"},
        "Bad request: Expected `array | null`, got `str` - at `$.include_names`.",
        "include_names",
    ),
    (
        {"include_tags": ["a"] * 1001},
        "Bad request: Expected `array` of length <= 1000 - at `$.include_tags`.",
        "include_tags",
    ),
]


@pytest.mark.parametrize(("fields", "text", "field"), MISSHAPEN, ids=[str(fields)[:40] for fields, _, _ in MISSHAPEN])
def test_a_misshapen_field_of_a_body_is_named(fields: dict[str, Any], text: str, field: str | None) -> None:
    assert refused(body, message="Hi", **fields) == (text, field)


@pytest.mark.parametrize(
    ("fields", "text", "field"),
    [
        ({"config": "tags"}, "`config` is not valid JSON.", "config"),
        ({"config": ""}, "`config` is not valid JSON.", "config"),
        ({"context": "{"}, "`context` is not valid JSON.", "context"),
        ({"context": "[]"}, "Bad request: Expected `object | null`, got `array` - at `$.context`.", "context"),
        ({"stream_mode": ""}, "Bad request: Invalid enum value '' - at `$.stream_mode[0]`.", "stream_mode"),
        ({"stream_mode": "values,"}, "Bad request: Invalid enum value '' - at `$.stream_mode[1]`.", "stream_mode"),
        ({"thread_id": ""}, "Bad request: Expected `str` of length >= 1 - at `$.thread_id`.", "thread_id"),
        ({"events": "perhaps"}, "Bad request: Expected `bool`, got `str` - at `$.events`.", "events"),
    ],
)
def test_a_misshapen_field_of_a_query_is_named(fields: dict[str, str], text: str, field: str) -> None:
    assert refused(query, message="Hi", **fields) == (text, field)


def test_a_field_of_a_query_that_is_given_twice_is_refused() -> None:
    for name in NOTHING:
        assert refused(query, f"{name}=1&{name}=1") == (f"`{name}` is given twice.", name)


STANDS_ALONE = ("`input` or `resume` stands alone, without messages.", "input")


@pytest.mark.parametrize("own", [{"input": "x"}, {"input": None}, {"resume": "x"}, {"resume": None}])
@pytest.mark.parametrize(
    "beside",
    [
        {"message": "Hi"},
        {"message": ""},
        {"question": "Hi"},
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": []},
        {"system": "Be kind."},
        {"system_prompt": "Be kind."},
    ],
)
def test_an_input_or_an_answer_stands_alone(own: dict[str, Any], beside: dict[str, Any]) -> None:
    assert refused(body, **own, **beside) == STANDS_ALONE


@pytest.mark.parametrize("given_input", ["x", {}, 0, False, []])
def test_an_answer_comes_without_an_input(given_input: Any) -> None:
    assert refused(body, resume="yes", input=given_input) == STANDS_ALONE


def test_without_anything_of_its_own_a_request_needs_a_message() -> None:
    neither = ("Send `message` or `messages`.", "message")
    assert refused(body) == neither
    assert refused(body, thread_id="t", config={}, context={}, stream_mode="values") == neither
    assert refused(query, "thread_id=t") == neither


@pytest.mark.parametrize(
    ("fields", "characters"),
    [
        ({"input": "four"}, 4),
        ({"input": None}, 0),
        ({"input": {"a": "é"}}, len('{"a":"é"}'.encode())),
        ({"resume": "yes"}, 3),
        ({"resume": [1]}, 3),
        ({"resume": None}, 0),
        ({"message": "four", "system": "two"}, 7),
    ],
)
def test_the_characters_of_a_prompt_are_those_of_its_input(fields: dict[str, Any], characters: int) -> None:
    assert body(**fields).to_run("m").characters == characters


# Models

ON = ["upstream_auth", "upstream_rejected", "content_filtered", "context_length"]
MODELS: list[tuple[Any, Any]] = [
    (None, None),
    ("a/b", "a/b"),
    (["a/b", "c"], ["a/b", "c"]),
    ({"models": ["a"], "on": ON}, Fallbacks(["a"], ON)),
    ({"models": ["a", "a"]}, Fallbacks(["a", "a"])),
]


@pytest.mark.parametrize(("said", "model"), MODELS)
def test_a_model_is_a_name_or_several(said: Any, model: Any) -> None:
    assert body(message="Hi", model=said).model == model
    if said is not None:
        assert query(message="Hi", model=said if isinstance(said, str) else json.dumps(said)).model == model


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ([], "Bad request: Expected `array` of length >= 1 - at `$.model`."),
        (["m"] * 11, "Bad request: Expected `array` of length <= 10 - at `$.model`."),
        ([""], "Bad request: Expected `str` of length >= 1 - at `$.model[0]`."),
        ([["m"]], "Bad request: Expected `str`, got `array` - at `$.model[0]`."),
        (1, "Bad request: Expected `str | object | array | null`, got `int` - at `$.model`."),
        ({}, "Bad request: Object missing required field `models` - at `$.model`."),
        (
            {"models": ["m"], "on": ["idle_timeout"]},
            "Bad request: Invalid enum value 'idle_timeout' - at `$.model.on[0]`.",
        ),
        ({"models": ["m"], "off": []}, "Bad request: Object contains unknown field `off` - at `$.model`."),
    ],
)
def test_what_is_no_model_is_refused(said: Any, text: str) -> None:
    assert refused(body, message="Hi", model=said) == (text, "model")


def test_a_list_of_models_that_is_no_json_is_refused() -> None:
    assert refused(query, message="Hi", model='["a"') == ("`model` is not valid JSON.", "model")
