"""OpenAI's own SDK for Python against a real service, unmodified but for its base URL: both APIs, and the models."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from .asgi import run
from .client import DEADLINE, post
from .conftest import ROOT, Service, Start, eventually
from .node import BIN, NPM
from .recorded import OPENAI, OPENAI_RESPONSES, RESPONSE_OPENING, chat_end, chat_usage, function_call, response
from .recorded import call as call_chunk
from .served_graphs import answer, held
from .upstream import END, HOLD, PAUSE, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.served_graphs", "tests.replicas"]
# An SDK whose stream breaks off leaves its socket to the collector, which may come in any test.
pytestmark = [pytest.mark.usefixtures("leftovers"), pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]

SEED: Any = {"seed": 1, "temperature": 0, "max_tokens": 12}
HI: Any = [{"role": "user", "content": "Say hello."}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
FLAT: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS}
ASKS = (call_chunk(0, "", "call_1", "weather"), call_chunk(0, '{"city":'), call_chunk(0, '"Paris"}'))
ASKED = (*ASKS, *chat_end("tool_calls", chat_usage(14, 8)))
KEY = "0123456789abcdef0123456789abcdef"
CLASSES = {
    "upstream_rejected": openai.BadRequestError,
    "context_length": openai.BadRequestError,
    "upstream_rate_limited": openai.RateLimitError,
    "upstream_unavailable": openai.InternalServerError,
    "upstream_auth": openai.InternalServerError,
}


def of(service: Service, **options: Any) -> OpenAI:
    options = {"api_key": "none", "max_retries": 0, "timeout": DEADLINE, **options}
    return OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", **options)


def claude(service: Service, key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=f"http://127.0.0.1:{service.port}", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def sdk(relay: Service) -> Iterator[OpenAI]:
    with of(relay) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(start_service: Start) -> Service:
    """A service that wants a key, and has an alias."""
    return start_service(SIDESTREAM_API_KEYS=f"web:{KEY}", SIDESTREAM_MODELS='{"fast": ["scripted/hello"]}')


def script(*steps: dict[str, Any], **own: Any) -> Any:
    """A request of what the scripted provider shall do."""
    return {"model": "scripted/custom", "extra_body": {"sidestream": {"provider_options": {"script": steps}, **own}}}


# Chat Completions


def test_a_real_models_words_come_one_by_one_and_are_the_same_at_once(sdk: OpenAI) -> None:
    asked: Any = {"model": "local/smollm2", "messages": HI, **SEED}
    chunks = list(sdk.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    whole = sdk.chat.completions.create(**asked)
    assert len(said) > 3
    assert "".join(said) == whole.choices[0].message.content
    assert {chunk.id for chunk in chunks} == {chunks[0].id} != {whole.id}
    assert chunks[-1].choices == []
    assert chunks[-1].usage
    assert whole.usage
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens > whole.usage.completion_tokens > 3
    assert whole._request_id == whole.id.removeprefix("chatcmpl-")


def test_the_stream_helper_tells_what_it_has_put_together(sdk: OpenAI) -> None:
    asked: Any = {"messages": HI, **script({"think": "Let me think."}, {"say": "Hello, you."})}
    with sdk.chat.completions.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    deltas = [event for event in events if event.type == "content.delta"]
    assert [event.delta for event in deltas] == ["", "Hello,", " you."]
    assert deltas[-1].snapshot == final.choices[0].message.content == "Hello, you."
    assert final.choices[0].message.reasoning_content == "Let me think."  # by custom
    assert events[-1].type == "content.done"


class City(BaseModel):
    city: str


def test_an_answer_of_a_schema_is_parsed(sdk: OpenAI) -> None:
    asked: Any = {"messages": HI, **script({"say": '{"city": "Paris"}'})}
    parsed = sdk.chat.completions.parse(**asked, response_format=City)
    assert parsed.choices[0].message.parsed == City(city="Paris")
    asked = {"input": "Where?", **script({"say": '{"city": "Paris"}'})}
    with sdk.responses.stream(**asked, text_format=City) as stream:
        assert stream.get_final_response().output_parsed == City(city="Paris")


def test_tools_go_round_and_the_upstream_sees_what_the_client_has_said(sdk: OpenAI, upstream: Upstream) -> None:
    upstream.stream(*ASKED)
    asked: Any = {"model": "openai/gpt-4o-mini", "tools": [WEATHER], "parallel_tool_calls": False}
    with sdk.chat.completions.stream(messages=HI, **asked) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.delta" in kinds
    (called,) = message.tool_calls or ()
    assert (called.id, called.function.name, called.function.arguments) == ("call_1", "weather", '{"city":"Paris"}')
    first = upstream.request()
    assert (first.body["tools"], first.body["parallel_tool_calls"]) == ([WEATHER], False)
    upstream.stream(*answer("It is sunny."))
    answered = {"role": "tool", "tool_call_id": called.id, "content": "Sunny."}
    final = sdk.chat.completions.create(messages=[*HI, message.to_dict(), answered], **asked)
    assert final.choices[0].message.content == "It is sunny."
    assert upstream.request().body["messages"][2] == answered


def test_parallel_calls_keep_apart(sdk: OpenAI) -> None:
    steps = [{"call": {"id": f"call_{n}", "tool": "weather", "args": {"city": city}}} for n, city in enumerate("AB")]
    asked: Any = {"messages": HI, **script(*steps, {"finish": "tool_calls"})}
    with sdk.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    whole = sdk.chat.completions.create(**asked).choices[0]
    for choice in (streamed, whole):
        calls: Any = choice.message.tool_calls
        assert [(call.id, json.loads(call.function.arguments)) for call in calls] == [
            ("call_0", {"city": "A"}),
            ("call_1", {"city": "B"}),
        ]
        assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize(("code", "kind"), CLASSES.items())
def test_what_fails_before_the_first_word_is_an_error_of_its_class(
    sdk: OpenAI, api: str, code: str, kind: type[openai.APIStatusError], stream: bool
) -> None:
    with pytest.raises(kind) as failed:
        create(sdk, api, stream=stream, **script({"fail": code}))
    codes = {"upstream_rate_limited": "rate_limit_exceeded", "context_length": "context_length_exceeded"}
    assert failed.value.code == codes.get(code, code)
    assert len(failed.value.request_id or "") == 32


def create(sdk: OpenAI, api: str, **asked: Any) -> Any:
    if api == "chat":
        return sdk.chat.completions.create(messages=HI, **asked)
    return sdk.responses.create(input="Say hello.", **asked)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_what_cannot_be_asked_is_an_error_of_its_class(sdk: OpenAI, api: str) -> None:
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-none'") as unknown:
        create(sdk, api, model="gpt-none")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        create(sdk, api, model="scripted/hello", temperature=3)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")


def test_keys_are_asked_for_in_openais_words(guarded: Service) -> None:
    with of(guarded) as stranger, of(guarded, api_key=KEY) as known:
        for api in ("chat", "responses"):
            with pytest.raises(openai.AuthenticationError) as refused:
                create(stranger, api, model="scripted/echo")
            assert refused.value.code == "invalid_api_key"
            create(known, api, model="scripted/echo")
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        assert "scripted/echo" in [model.id for model in known.models.list()]
    with claude(guarded, "none") as other, pytest.raises(anthropic.AuthenticationError, match="does not count"):
        other.models.list()


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_what_fails_later_is_an_error_too_after_the_words_that_came(sdk: OpenAI, api: str) -> None:
    stream = create(sdk, api, stream=True, **script({"say": "Here I am"}, {"fail": "upstream_rate_limited"}))
    seen: list[str] = []
    with pytest.raises(openai.APIError) as failed:
        seen.extend(event.to_json() for event in stream)
    assert [word in "".join(seen) for word in ("Here", " I", " am")] == [True] * 3
    assert type(failed.value) is openai.APIError
    assert (failed.value.code, failed.value.type) == ("rate_limit_exceeded", "rate_limit_error")


@pytest.mark.parametrize(
    ("api", "model", "dialect"),
    [
        ("chat", "openai/gpt-4o-mini", OPENAI),
        ("responses", "openai/gpt-4o-mini", OPENAI),
        ("responses", "openai_responses/gpt-4o-mini", OPENAI_RESPONSES),
    ],
)
def test_who_stops_reading_stops_the_upstream(
    sdk: OpenAI, upstream: Upstream, api: str, model: str, dialect: Any
) -> None:
    upstream.play(Head(), *dialect.opening, dialect.token("Here"), HOLD)
    with create(sdk, api, model=model, stream=True) as stream:
        while not getattr(event := next(stream), "delta", "") and not getattr(event, "choices", ""):
            pass
    assert upstream.request().wait().ended == "aborted"


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_who_waits_no_longer_for_a_whole_answer_stops_the_upstream(
    relay: Service, upstream: Upstream, api: str
) -> None:
    async def asked() -> None:
        async with AsyncOpenAI(base_url=f"http://127.0.0.1:{relay.port}/v1", api_key="none") as sdk:
            made = create(sdk, api, model="openai/gpt-4o-mini")
            task = asyncio.ensure_future(made)
            exchange = await asyncio.to_thread(upstream.request)
            await asyncio.to_thread(exchange.wait_for_pause)
            task.cancel()
            assert (await asyncio.to_thread(exchange.wait)).ended == "aborted"

    upstream.play(*held(HOLD))
    run(asked())


# Responses


def test_a_response_is_put_together_from_its_events(sdk: OpenAI) -> None:
    call = {"call": {"tool": "weather", "args": {"city": "Paris"}}}
    asked: Any = {"input": "Say hello.", **script({"think": "Let me think."}, {"say": "Hello, you."}, call)}
    with sdk.responses.stream(**asked, temperature=0.5, metadata={"a": "b"}, tools=[FLAT]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == [*range(len(events))]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [event.delta for event in deltas] == ["Hello,", " you."]
    assert deltas[-1].snapshot == final.output_text == "Hello, you."
    thought, said, called = final.output
    assert thought.type == "reasoning"
    assert [part.text for part in thought.summary] == ["Let me think."]
    assert said.type == "message"
    assert called.type == "function_call"
    assert (called.call_id, called.name, called.arguments) == ("call_1", "weather", '{"city":"Paris"}')
    assert called.parsed_arguments == {"city": "Paris"} or called.parsed_arguments is None
    assert (final.status, final.temperature, final.metadata) == ("completed", 0.5, {"a": "b"})
    whole = sdk.responses.create(**asked)
    assert (whole.output_text, len(whole.output), whole._request_id) == (
        "Hello, you.",
        3,
        whole.id.removeprefix("resp_"),
    )


def test_a_real_model_answers_by_the_responses_api(sdk: OpenAI) -> None:
    asked: Any = {"model": "local/smollm2", "instructions": "Be brief.", "input": "Say hello.", "temperature": 0}
    stream = sdk.responses.create(**asked, max_output_tokens=12, stream=True)
    said = [event.delta for event in stream if event.type == "response.output_text.delta"]
    whole = sdk.responses.create(**asked, max_output_tokens=12)
    assert len(said) > 3
    assert "".join(said) == whole.output_text
    assert whole.usage
    assert whole.usage.output_tokens <= 12


def test_an_answer_cut_short_is_incomplete(sdk: OpenAI) -> None:
    assert sdk.responses.create(model="scripted/length", input="Hi").incomplete_details.reason == "max_output_tokens"
    *_, last = sdk.responses.create(model="scripted/filtered", input="Hi", stream=True)
    assert (last.type, last.response.incomplete_details.reason) == ("response.incomplete", "content_filter")


def test_tools_go_round_by_the_responses_api_too(sdk: OpenAI, upstream: Upstream) -> None:
    parts = ('{"city":', '"Paris"}')
    ending = response("response.completed")
    upstream.stream(*RESPONSE_OPENING, *function_call(0, "weather", "call_1", *parts), ending)
    asked: Any = {"model": "openai_responses/gpt-4o-mini", "tools": [FLAT], "reasoning": {"effort": "low"}}
    with sdk.responses.stream(input=HI, **asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        output = [*stream.get_final_response().output]
    assert deltas == [*parts]
    first = upstream.request().body
    assert (first["tools"], first["reasoning"], first["store"]) == ([FLAT], {"effort": "low"}, False)
    upstream.stream(*OPENAI_RESPONSES.opening, OPENAI_RESPONSES.token("It is sunny."), *OPENAI_RESPONSES.ending)
    answered = {"type": "function_call_output", "call_id": "call_1", "output": "Sunny."}
    items = [*HI, *(item.to_dict() for item in output), answered]
    assert sdk.responses.create(input=items, **asked).output_text == "It is sunny."
    known = upstream.request().body["input"]
    assert [item.get("type", "message") for item in known] == ["message", "function_call", "function_call_output"]
    upstream.stream(*answer("It is sunny."))
    assert sdk.responses.create(input=items, **{**asked, "model": "openai/gpt-4o-mini"}).output_text == "It is sunny."
    asked_by_chat = upstream.request().body["messages"]
    assert [message["role"] for message in asked_by_chat] == ["user", "assistant", "tool"]


@pytest.mark.replicated
def test_who_comes_back_gets_what_he_has_not_seen(sdk: OpenAI, upstream: Upstream) -> None:
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Here"), PAUSE, OPENAI.token(" I am."), *OPENAI.ending, END)
    asked: Any = {"model": "openai/gpt-4o-mini", "input": "Hi", "extra_body": {"sidestream": {"linger": 30}}}
    seen: list[Any] = []
    with sdk.responses.create(**asked, stream=True) as stream:
        for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
    response_id = seen[0].response.id
    assert sdk.responses.retrieve(response_id).status == "in_progress"
    rest = sdk.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number)
    upstream.request().release()
    seen += rest
    assert [event.sequence_number for event in seen] == [*range(len(seen))]
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == "Here I am."
    assert seen[-1].type == "response.completed"
    # Another replica hears of the end a moment later.
    assert eventually(lambda: sdk.responses.retrieve(response_id).output_text == "Here I am.")
    with sdk.responses.stream(response_id=response_id, starting_after=5) as again:
        assert next(event.sequence_number for event in again) == 6
        assert again.get_final_response().output_text == "Here I am."
    assert [*sdk.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number)] == []


@pytest.mark.replicated
def test_a_response_is_stopped_by_its_id(sdk: OpenAI, upstream: Upstream) -> None:
    upstream.play(*held(HOLD))
    stream = sdk.responses.create(model="openai/gpt-4o-mini", input="Hi", stream=True)
    response_id = next(stream).response.id
    assert sdk.responses.cancel(response_id).status == "cancelled"
    assert upstream.request().wait().ended == "aborted"
    with pytest.raises(openai.APIError, match="stopped") as stopped:
        list(stream)
    assert stopped.value.code == "cancelled"
    assert sdk.responses.cancel(response_id).status == sdk.responses.retrieve(response_id).status == "cancelled"


@pytest.mark.replicated
def test_a_response_that_failed_says_so_to_who_asks_later(sdk: OpenAI) -> None:
    stream = sdk.responses.create(input="Hi", stream=True, **script({"say": "Here"}, {"fail": "upstream_rate_limited"}))
    response_id = next(stream).response.id
    with pytest.raises(openai.APIError):
        list(stream)
    # Another replica hears of it a moment later.
    response = eventually(lambda: (told := sdk.responses.retrieve(response_id)).status != "in_progress" and told)
    assert (response.status, response.error and response.error.code) == ("failed", "rate_limit_exceeded")
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(response_id[:-1] + "x")


@pytest.mark.replicated
def test_a_run_of_any_wire_can_be_told_as_a_response(relay: Service, sdk: OpenAI) -> None:
    with post(relay.port, "/runs", message="Hello, you", model="scripted/echo") as client:
        run_id = json.loads(client.read())["id"]
    events = list(sdk.responses.retrieve(f"resp_{run_id}", stream=True))
    assert events[-1].response.output_text == "Hello, you"
    assert sdk.responses.retrieve(f"resp_{run_id}").output_text == "Hello, you"


def test_conversations_are_not_kept(sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="send the whole conversation") as refused:
        sdk.responses.create(model="scripted/echo", input="Hi", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"


# Graphs


def test_a_graph_answers_and_calls_its_tools_itself(graphs: Service, upstream: Upstream) -> None:
    with of(graphs) as sdk:
        for api in ("chat", "responses"):
            upstream.stream(*ASKED)
            upstream.stream(*answer("It is sunny in Paris."))
            events = list(create(sdk, api, model="langgraph/agent", stream=True, temperature=0.5))
            if api == "chat":
                assert not any(choice.delta.tool_calls for event in events for choice in event.choices)
                text = "".join(choice.delta.content or "" for event in events for choice in event.choices)
            else:
                assert {item.type for item in events[-1].response.output} == {"message"}
                text = events[-1].response.output_text
            assert text == "It is sunny in Paris."


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_graph_that_waits_for_a_person_is_an_error(graphs: Service, api: str, stream: bool) -> None:
    own = {"extra_body": {"sidestream": {"thread_id": f"{api}-{stream}"}}}
    with of(graphs) as sdk, pytest.raises(openai.APIError, match="waits for a person") as waits:
        list(create(sdk, api, model="langgraph/asking", stream=stream, **own))
    assert waits.value.code == "interrupted"


# Models


def test_models_are_listed_and_found_by_both_vendors_clients(graphs: Service, guarded: Service) -> None:
    with of(guarded, api_key=KEY) as sdk, claude(guarded, KEY) as other:
        names = [model.id for model in sdk.models.list()]
        assert {"scripted/hello", "fast", "local/smollm2"} <= {*names}
        assert [model.id for model in other.models.list(limit=5)] == names
        for name, owner in (("scripted/hello", "scripted"), ("fast", "sidestream"), ("local/another", "local")):
            found, same = sdk.models.retrieve(name), other.models.retrieve(name)
            assert (found.id, found.owned_by, found.object) == (name, owner, "model")
            assert (same.id, same.type, same.display_name, same.lifecycle) == (name, "model", name, "active")
            assert int(same.created_at.timestamp()) == found.created
        with pytest.raises(openai.NotFoundError) as unknown:
            sdk.models.retrieve("no/such")
        assert unknown.value.code == "model_not_found"
        with pytest.raises(anthropic.NotFoundError, match="There is no provider 'no'"):
            other.models.retrieve("no/such")
    with of(graphs) as sdk:
        assert sdk.models.retrieve("langgraph/agent").id in [model.id for model in sdk.models.list()]


# The examples


@pytest.mark.parametrize("name", ["openai_client.py", "openai_client.mjs", "openai_resume.py"])
def test_the_examples_do_what_they_show(relay: Service, name: str) -> None:
    path = ROOT / "examples" / name
    if path.suffix == ".py":
        command: list[Any] = [sys.executable, path]
    else:  # from where it finds the package
        command = [BIN / "node", "--input-type=module", "--eval", path.read_text()]
    environ = {"SIDESTREAM_URL": f"http://127.0.0.1:{relay.port}", "PATH": os.environ["PATH"]}
    shown = subprocess.run(command, env=environ, cwd=NPM, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert shown.stderr == ""
    said, *more = shown.stdout.splitlines()
    if name == "openai_resume.py":
        assert (said, more) == ("The |  capital of France is Paris.", ["[completed]"])
    else:
        assert said == "The capital of France is Paris."
        assert more[0] == said
        assert re.fullmatch(r"\[completed: \d+ tokens in, 8 out\]", more[1])
