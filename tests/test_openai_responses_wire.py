"""OpenAI's Responses: a run in its words, byte for byte and as both its SDKs read them; and requests as read."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from providers.openai_responses import Translation
from streaming.errors import RequestError, UpstreamError
from streaming.events import Done, Event, Finish, Reasoning, Start, ToolCall
from streaming.request import RunRequest
from streaming.run import Run
from wires.chat import ChatRequest, decode_body
from wires.fold import Folded, Whole
from wires.openai_responses import ABOUT, WIRE, Events, again, decode, snapshot

from .asgi import ask, make_app, run
from .folds import HELLO, PARIS, RUN, RUNS, call, check_golden, done, folded, log_of, piecemeal, start
from .node import told as told_by_node

ANSWERED = {
    name: events
    for name, events in RUNS.items()
    if isinstance(events[-1], Done) and name not in ("interrupt", "reset", "reset-of-a-tool")
}
UNSAYABLE = [name for name in RUNS if name not in ANSWERED]
CUT = {"length", "filtered", "tool-cut"}
each_run = pytest.mark.parametrize("name", RUNS)
each_answer = pytest.mark.parametrize("name", ANSWERED)
TYPED: Any = TypeAdapter(ResponseStreamEvent)
TERMINAL = ["response.completed", "response.incomplete", "response.failed"]


def form(**options: Any) -> Folded:
    return Folded(Events(RUN), merges=False, **options)


def told(bytes_: bytes) -> list[Any]:
    """The data of each event, which its name is of as well."""
    frames = bytes_.decode().split("\n\n")
    assert frames.pop() == ""
    out = []
    for frame in frames:
        name, data = frame.split("\n")
        out.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {out[-1]['type']}"
    return out


def events_of(name: str) -> list[Any]:
    return told(folded(form(), RUNS[name]))


def of(events: list[Event], about: Any = None) -> Run:
    """A run as far as it has come, of which this is the log."""
    run = Run.__new__(Run)
    run.id, run.log, run.about = RUN, log_of(events), {ABOUT: about or {}}
    run.terminal = events[-1] if run.log.closed else None
    run.answer = type("Answer", (), {"is_open": any(isinstance(one, Start) for one in events), "model": "m"})()
    run.created = 1_795_261_842.9
    return run


# What is told


@each_run
def test_a_run_is_told_in_these_bytes(name: str) -> None:
    check_golden("openai_responses", name, folded(form(), RUNS[name]))


@each_run
def test_it_is_the_same_however_it_comes(name: str) -> None:
    assert b"".join(piecemeal(form(), RUNS[name])) == folded(form(), RUNS[name])


@each_run
def test_events_are_counted_through_and_one_ends_them(name: str) -> None:
    events = events_of(name)
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event["type"] in TERMINAL for event in events] == [False] * (len(events) - 1) + [True]
    assert {event["response"]["id"] for event in events if "response" in event} == {f"resp_{RUN}"}


@each_run
def test_who_comes_back_gets_the_rest_from_wherever_he_was(name: str) -> None:
    frames = [frame + b"\n\n" for frame in folded(form(), RUNS[name]).split(b"\n\n")[:-1]]
    for seen in range(len(frames) + 2):
        assert folded(again(of(RUNS[name]), str(seen)), RUNS[name]) == b"".join(frames[seen + 1 :])
    assert folded(again(of(RUNS[name]), None), RUNS[name]) == b"".join(frames)


@each_run
def test_every_event_is_of_the_sdks_type(name: str) -> None:
    for event in events_of(name):
        typed = TYPED.validate_python(event)
        assert typed.type == event["type"]
        lifecycle = event["type"] in ("response.created", "response.in_progress", "response.completed")
        assert type(typed).__name__ != "BaseModel"
        if lifecycle:
            Response.model_validate(event["response"], strict=True)


@each_answer
def test_what_is_begun_is_done_and_the_end_repeats_it(name: str) -> None:
    events = events_of(name)
    for begun, ended in (("output_item.added", "output_item.done"), ("part.added", "part.done")):
        places = [[e["output_index"] for e in events if e["type"].endswith(kind)] for kind in (begun, ended)]
        assert sorted(places[0]) == sorted(places[1])
    output = {e["output_index"]: e["item"] for e in events if e["type"] == "response.output_item.done"}
    assert events[-1]["response"]["output"] == [output[index] for index in sorted(output)]
    assert events[-1]["type"] == ("response.incomplete" if name in CUT else "response.completed")


@each_answer
def test_the_whole_answer_is_what_the_stream_ends_with(name: str) -> None:
    asked = Whole(of(ANSWERED[name]), decode(body()).form(of(ANSWERED[name]))._tell)
    assert json.loads(folded(asked, ANSWERED[name])) == events_of(name)[-1]["response"]
    assert snapshot(of(ANSWERED[name])) == events_of(name)[-1]["response"]


@each_answer
def test_the_sdk_puts_it_together(name: str) -> None:
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events_of(name):
        state.handle_event(TYPED.validate_python(event))
    if name not in CUT:
        assert state._completed_response.output_text == "".join(
            event.text for event in ANSWERED[name] if event.name == "token"
        )


def test_the_sdk_for_javascript_puts_it_together_too(tmp_path: Path) -> None:
    script = """
    import { readFileSync } from 'node:fs';
    import { ResponseStream } from 'openai/lib/responses/ResponseStream';
    for (const [name, events] of Object.entries(JSON.parse(readFileSync(process.argv[1], 'utf8')))) {
      const lines = new Blob(events.map((event) => JSON.stringify(event) + '\\n')).stream();
      const stream = ResponseStream.fromReadableStream(lines);
      const seen = [];
      stream.on('event', (event) => seen.push(event.type));
      tell(name, await stream.finalResponse(), seen.length);
    }
    """
    path = tmp_path / "events.json"
    path.write_text(json.dumps({name: events_of(name) for name in ANSWERED}))
    finals = told_by_node(script, str(path))
    assert [name for name, *_ in finals] == [*ANSWERED]
    for name, final, count in finals:
        response = dict(events_of(name)[-1]["response"])
        texts = [part["text"] for item in response["output"] for part in item.get("content", ())]
        assert final.pop("output_text") == "".join(texts)
        for item in final["output"]:
            for one in (item, *item.get("content", ())):
                one.pop("parsed", None)
                one.pop("parsed_arguments", None)
        final.pop("output_parsed", None)
        assert (final, count) == (response, len(events_of(name)))


@each_answer
def test_our_own_reader_of_this_api_hears_what_the_run_has_said(name: str) -> None:
    translation, items = Translation(), []
    for frame in folded(form(), ANSWERED[name]).split(b"\n\n")[:-1]:
        items += translation.feed(frame.partition(b"data: ")[2])
    for kind in ("token", "reasoning"):
        text = "".join(event.text for event in ANSWERED[name] if event.name == kind)
        assert "".join(item.text for item in items if isinstance(item, Event) and item.name == kind) == text
    calls = [event for event in ANSWERED[name] if isinstance(event, ToolCall) and not event.node]
    assert [item for item in items if isinstance(item, ToolCall)] == calls
    assert isinstance(items[-1], Finish)


@pytest.mark.parametrize("name", UNSAYABLE)
def test_what_is_no_answer_is_an_error_and_then_a_response_that_failed(name: str) -> None:
    *before, failed, last = events_of(name)
    assert (failed["type"], last["type"]) == ("error", "response.failed")
    assert not [event for event in before if event["type"] == "error"]
    assert {**failed["error"], "type": ""} == {key: failed[key] for key in ("code", "message", "param")} | {"type": ""}
    is_stopped = failed["code"] == "cancelled"
    assert (last["response"]["status"], last["response"]["error"] is None) == (
        ("cancelled", True) if is_stopped else ("failed", False)
    )
    assert "in_progress" not in {item.get("status") for item in last["response"]["output"]}
    with pytest.raises(UpstreamError):
        Translation().feed(json.dumps(failed).encode())


def test_what_failed_says_so_in_codes_that_strict_clients_know() -> None:
    known = Response.model_fields["error"].annotation
    for name in UNSAYABLE:
        TypeAdapter(known).validate_python(events_of(name)[-1]["response"]["error"])


def test_a_graphs_own_calls_are_not_the_clients_to_make() -> None:
    assert b"function_call" not in folded(form(), RUNS["agent"])


def test_calls_of_one_index_that_have_ids_of_their_own_are_two() -> None:
    events = [start(), *call(0, "weather", PARIS, '{"city":"Paris"}'), *call(0, "weather", PARIS, '{"city":"Paris"}')]
    output = told(folded(form(), [*events, done("tool_calls")]))[-1]["response"]["output"]
    assert [item["arguments"] for item in output] == ['{"city":"Paris"}'] * 2


def test_a_signature_is_nothing_to_say() -> None:
    signed = [start(), Reasoning("Let me think."), Reasoning("", signature="AAAA"), *HELLO, done()]
    plain = [start(), Reasoning("Let me think."), *HELLO, done()]
    assert folded(form(), signed) == folded(form(), plain)


# How a response stands


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], "queued"),
        (RUNS["queued"][:2], "queued"),
        ([start()], "in_progress"),
        (RUNS["text"][:-1], "in_progress"),
        (RUNS["text"], "completed"),
        (RUNS["length"], "incomplete"),
        (RUNS["error-late"], "failed"),
        (RUNS["interrupt"], "failed"),
        (RUNS["draining"], "failed"),
        (RUNS["cancelled-late"], "cancelled"),
        (RUNS["disconnected"], "cancelled"),
        (RUNS["reset"], "completed"),  # of the answer that stands
    ],
)
def test_a_response_stands_as_its_run_does(events: list[Event], status: str) -> None:
    response = snapshot(of(events))
    assert (response["status"], response["created_at"]) == (status, 1_795_261_842)
    Response.model_validate(response)
    assert (response["error"] is None) == (status != "failed")


def test_a_response_says_of_its_request_what_was_not_the_prompt() -> None:
    asked = {"temperature": 0.5, "metadata": {"a": "b"}, "tool_choice": {"type": "function", "name": "weather"}}
    asked |= {"instructions": "A secret.", "tools": [{"type": "function", "name": "weather"}], "input": "Hi"}
    about = decode(json.dumps(asked).encode()).about
    response = snapshot(of(RUNS["text"], about[ABOUT]))
    assert {name: response[name] for name in ("temperature", "metadata", "tool_choice", "top_p")} == {
        "temperature": 0.5,
        "metadata": {"a": "b"},
        "tool_choice": {"type": "function", "name": "weather"},
        "top_p": None,
    }
    assert "secret" not in json.dumps(about)


@pytest.mark.parametrize("seen", ["", "-1", "x", "1.5", "٣"])
def test_who_comes_back_names_a_number(seen: str) -> None:
    with pytest.raises(RequestError, match="sequence_number"):
        again(of(RUNS["text"]), seen)
    assert folded(again(of(RUNS["text"]), "9" * 5000), RUNS["text"]) == b""


# What is asked

WEATHER = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}, "strict": True}
HI = {"role": "user", "content": "Hi"}
IMAGE = "data:image/png;base64,AAAA"
SCHEMA = {"name": "city", "schema": {"type": "object"}, "strict": True}
CALLED = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "Sunny."}
ASKED = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}
SAID = {
    "type": "message",
    "id": "msg_1",
    "status": "completed",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Let me look.", "annotations": []}],
}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": "Hi", **fields}).encode()


def native(messages: Any = (HI,), **fields: Any) -> ChatRequest:
    return decode_body(json.dumps({"model": "m", "messages": messages, **fields}).encode())


TRANSLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a text": ({}, {}),
    "a message": ({"input": [HI]}, {}),
    "a message of that type": ({"input": [{**HI, "type": "message", "x_new": 1}]}, {}),
    "instructions": ({"instructions": "Be brief."}, {"system": "Be brief."}),
    "instructions that say nothing": (
        {"instructions": "", "input": [{"role": "developer", "content": ""}, HI]},
        {},
    ),
    "sampling": (
        {"temperature": 0.5, "top_p": 0.9, "max_output_tokens": 9},
        {"temperature": 0.5, "top_p": 0.9, "max_tokens": 9},
    ),
    "fields that are null": (
        dict.fromkeys(
            ("temperature", "tools", "tool_choice", "text", "metadata", "previous_response_id", "sidestream")
        ),
        {},
    ),
    "what nobody here knows": (
        {"store": True, "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low"}, "x_new": 1},
        {},
    ),
    "tools": (
        {"tools": [{"type": "function", **WEATHER, "x_new": 1}], "tool_choice": "required"},
        {"tools": [{"function": WEATHER}], "tool_choice": "required"},
    ),
    "one tool to call": (
        {"tools": [{"type": "function", **WEATHER}], "tool_choice": {"type": "function", "name": "weather"}},
        {"tools": [{"function": WEATHER}], "tool_choice": {"function": {"name": "weather"}}},
    ),
    "no tools to choose from": ({"tools": [], "tool_choice": "auto"}, {}),
    "text": ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {}),
    "JSON": ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
    "a schema": (
        {"text": {"format": {"type": "json_schema", **SCHEMA}}},
        {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
    ),
    "parts": (
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "Look"},
                        {"type": "input_image", "image_url": IMAGE, "detail": "high"},
                        {"type": "input_image", "image_url": IMAGE, "detail": "original", "file_id": None},
                    ],
                }
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Look"},
                        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "high"}},
                        {"type": "image_url", "image_url": {"url": IMAGE}},
                    ],
                }
            ]
        },
    ),
    "a round of tools, as a response has it": (
        {
            "input": [
                HI,
                THOUGHT,
                SAID,
                CALLED,
                {**CALLED, "call_id": "call_2"},
                OUTPUT,
                {**OUTPUT, "call_id": "call_2"},
            ]
        },
        {
            "messages": [
                HI,
                {"role": "assistant", "content": "Let me look.", "tool_calls": [ASKED, {**ASKED, "id": "call_2"}]},
                {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
                {"role": "tool", "tool_call_id": "call_2", "content": "Sunny."},
            ]
        },
    ),
    "rounds in turn": (
        {"input": [HI, CALLED, OUTPUT, CALLED, {**OUTPUT, "output": [{"type": "input_text", "text": ""}]}]},
        {
            "messages": [
                HI,
                {"role": "assistant", "tool_calls": [ASKED]},
                {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
                {"role": "assistant", "tool_calls": [ASKED]},
                {"role": "tool", "tool_call_id": "call_1", "content": ""},
            ]
        },
    ),
    "words between calls, whose outputs come behind them all": (
        {"input": [HI, SAID, CALLED, SAID, {**CALLED, "call_id": "call_2"}, OUTPUT, {**OUTPUT, "call_id": "call_2"}]},
        {
            "messages": [
                HI,
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "Let me look."}] * 2,
                    "tool_calls": [ASKED, {**ASKED, "id": "call_2"}],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
                {"role": "tool", "tool_call_id": "call_2", "content": "Sunny."},
            ]
        },
    ),
    "a refusal": (
        {"input": [HI, {**SAID, "content": [{"type": "refusal", "refusal": "No."}]}, HI]},
        {"messages": [HI, {"role": "assistant", "content": "No."}, HI]},
    ),
    "our own words beside it": (
        {"temperature": 1, "sidestream": {"temperature": 0.5, "linger": 3}},
        {"temperature": 0.5, "linger": 3},
    ),
}


@pytest.mark.parametrize(("asked", "meant"), TRANSLATIONS.values(), ids=TRANSLATIONS)
def test_a_request_is_read(asked: dict[str, Any], meant: dict[str, Any]) -> None:
    assert decode(body(**asked)).chat == native(**meant)


def test_an_upstream_of_this_api_gets_the_body_but_not_what_we_have_told() -> None:
    told = {"model": "m", "stream": True, "x_new": 1, "store": True}
    own = {**THOUGHT, "encrypted_content": "AAAA"}
    asked = decode(body(**told, input=[HI, THOUGHT, own, SAID, CALLED, OUTPUT], sidestream={"linger": 1}))
    nameless = [{name: value for name, value in item.items() if name != "id"} for item in (SAID, CALLED)]
    assert asked.verbatim == {**told, "input": [HI, own, *nameless, OUTPUT]}
    assert (asked.api, asked.streams) == ("openai_responses", True)
    assert decode(body()).verbatim == {"model": "m", "input": "Hi"}
    assert decode(body(sidestream={"system": "Be brief."})).verbatim is None


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": [HI] * 10_001}, "input", "length <= 10000"),
    ({"input": None}, "input", "Send `input`"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation"),
    ({"conversation": "conv_1"}, "conversation", "send the whole conversation"),
    ({"prompt": {"id": "p"}}, "prompt", "send the whole conversation"),
    ({"background": True}, "background", "linger"),
    ({"top_logprobs": 5}, "top_logprobs", "cannot be told"),
    ({"tools": [{"type": "web_search"}]}, "tools", "no 'web_search' here"),
    ({"tools": [{"type": "mcp", "server_url": "https://x"}]}, "tools", "no 'mcp' here"),
    ({"tools": [{}]}, "tools", "no 'None' here"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", "Invalid enum value"),
    ({"tool_choice": {"type": "allowed_tools", "name": "x"}}, "tool_choice.type", "Invalid enum value"),
    ({"input": [{"id": "msg_1"}]}, "input", "not 'item_reference'"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input", "not 'item_reference'"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input", "not 'web_search_call'"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input", "not 'input_file'"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input", "not 'input_image'"),
    ({"input": 5}, "input", "Expected"),
    ({"metadata": {"a": "b" * 513}}, "metadata[...]", "length <= 512"),
    ({"metadata": {str(number): "" for number in range(17)}}, "metadata", "length <= 16"),
    ({"text": {"format": {"type": "grammar"}}}, "response_format", "Invalid value"),
    ({"sidestream": {"input": "Hi", "messages": []}}, "sidestream", "is an object of"),
]


@pytest.mark.parametrize(("asked", "field", "text"), REFUSED)
def test_what_cannot_be_answered_is_refused_by_its_name(asked: dict[str, Any], field: str, text: str) -> None:
    with pytest.raises(RequestError) as refused:
        decode(body(**asked))
    assert (refused.value.field, refused.value.status) == (field, 400)
    assert text in refused.value.text


_words = st.text(max_size=5) | st.sampled_from(
    ["user", "message", "function_call", "function_call_output", "input_text"]
)
_plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _words
_keys = _words | st.sampled_from(["role", "content", "type", "call_id", "name", "arguments", "output", "id", "format"])
JSON = st.recursive(_plain, lambda one: st.lists(one, max_size=3) | st.dictionaries(_keys, one, max_size=4))
_fields = ("input", "tools", "tool_choice", "text", "instructions", "metadata", "sidestream", "stream", "background")


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(_fields), JSON))
def test_rubbish_is_refused_and_does_no_harm(asked: dict[str, Any]) -> None:
    with suppress(RequestError):
        assert isinstance(decode(body(**asked)).chat.to_run("m"), RunRequest)


@pytest.mark.parametrize(
    ("method", "target", "status", "code", "rubbish"),
    [
        *[("POST", "", 400, "invalid_request", text) for text in (b"", b"{", b"[]", b"7", b"\xff", b"{}", b"[" * 9999)],
        ("POST", "", 404, "model_not_found", b'{"model":"no-such","input":"Hi"}'),
        ("GET", f"/resp_{RUN}", 404, "not_found", b""),
        ("GET", f"/resp_{RUN}?stream=true&starting_after=3", 404, "not_found", b""),
        ("GET", "/resp_", 404, "not_found", b""),
        ("POST", f"/resp_{RUN}/cancel", 404, "not_found", b""),
    ],
)
def test_what_is_no_request_is_told_so_in_openais_words(
    method: str, target: str, status: int, code: str, rubbish: bytes
) -> None:
    async def asked() -> Any:
        headers = {"content-type": "application/json"}
        return await ask(await make_app(), method, f"/v1/responses{target}", headers=headers, body=rubbish)

    exchange = run(asked())
    assert (exchange.status, exchange.headers["content-type"]) == (status, "application/json")
    failed = json.loads(exchange.body)["error"]
    assert (failed["type"], failed["code"]) == ("invalid_request_error", code)


def test_a_run_is_named_to_who_may_have_to_ask_after_it() -> None:
    assert WIRE.headers(of(RUNS["text"])) == {"X-Request-Id": RUN}
