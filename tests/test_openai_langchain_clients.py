"""LangChain's `ChatOpenAI` against a real service, by Chat Completions and by the Responses API."""

from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from .client import DEADLINE
from .conftest import Service
from .recorded import OPENAI, OPENAI_RESPONSES, RESPONSE_OPENING, chat_end, chat_usage, function_call, response
from .recorded import call as call_chunk
from .served_graphs import answer
from .upstream import HOLD, Head, Upstream

pytest_plugins = ["tests.upstream"]
# An SDK whose stream breaks off leaves its socket to the collector, which may come in any test.
pytestmark = [pytest.mark.usefixtures("leftovers"), pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]

PARTS = ('{"city":', '"Paris"}')
each_api = pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])


class City(BaseModel):
    """Where."""

    city: str


@tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"Sunny in {city}."


def model(service: Service, name: str = "local/smollm2", *steps: dict[str, Any], **options: Any) -> ChatOpenAI:
    own = {"extra_body": {"sidestream": {"provider_options": {"script": steps}}}} if steps else {}
    options = {"timeout": DEADLINE, "max_retries": 0, **own, **options}
    return ChatOpenAI(model=name, base_url=f"http://127.0.0.1:{service.port}/v1", api_key=SecretStr("none"), **options)


def streamed(chunks: Iterator[Any]) -> AIMessageChunk:
    together: AIMessageChunk = reduce(add, chunks)
    return together


@each_api
def test_a_real_models_words_come_one_by_one_and_are_the_same_at_once(relay: Service, responses: bool) -> None:
    asked = model(relay, use_responses_api=responses, temperature=0, max_tokens=12, stream_usage=True)
    chunks = list(asked.stream("Say hello."))
    whole, together = asked.invoke("Say hello."), streamed(iter(chunks))
    assert len([chunk for chunk in chunks if chunk.text]) > 3
    assert together.text == whole.text
    assert together.usage_metadata
    assert whole.usage_metadata
    assert together.usage_metadata["total_tokens"] == whole.usage_metadata["total_tokens"] > 12


@each_api
def test_tools_go_round(relay: Service, upstream: Upstream, responses: bool) -> None:
    if responses:
        calls = [part for place in (0, 1) for part in function_call(place, "weather", f"call_{place}", *PARTS)]
        upstream.stream(*RESPONSE_OPENING, *calls, response("response.completed"))
        upstream.stream(*OPENAI_RESPONSES.opening, OPENAI_RESPONSES.token("It is sunny."), *OPENAI_RESPONSES.ending)
    else:
        chunks = [
            part
            for place in (0, 1)
            for part in (
                call_chunk(place, "", f"call_{place}", "weather"),
                *(call_chunk(place, part) for part in PARTS),
            )
        ]
        upstream.stream(*chunks, *chat_end("tool_calls", chat_usage(14, 8)))
        upstream.stream(*answer("It is sunny."))
    name = "openai_responses/gpt-4o-mini" if responses else "openai/gpt-4o-mini"
    asked = model(relay, name, use_responses_api=responses).bind_tools([weather])
    question = HumanMessage("How is the weather in Paris?")
    said = streamed(asked.stream([question]))
    assert [(call["id"], call["name"], call["args"]) for call in said.tool_calls] == [
        (f"call_{place}", "weather", {"city": "Paris"}) for place in (0, 1)
    ]
    told = [ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]) for call in said.tool_calls]
    assert asked.invoke([question, said, *told]).text == "It is sunny."
    first, second = upstream.request().body, upstream.request().body
    assert len(first["tools"]) == 1
    if responses:
        kinds = [item["type"] if "type" in item else item["role"] for item in second["input"]]
        assert kinds == ["message", *["function_call"] * 2, *["function_call_output"] * 2]
    else:
        assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool", "tool"]


@each_api
def test_an_answer_of_a_schema_is_parsed(relay: Service, responses: bool) -> None:
    asked = model(relay, "scripted/custom", {"say": '{"city": "Paris"}'}, use_responses_api=responses)
    assert asked.with_structured_output(City).invoke("Where?") == City(city="Paris")


def test_a_summary_of_the_reasoning_is_shown(relay: Service) -> None:
    steps = {"think": "Let me think."}, {"say": "Hello, you."}
    asked = model(relay, "scripted/custom", *steps, use_responses_api=True, output_version="responses/v1")
    said = streamed(asked.stream("Hi"))
    (thought, text) = said.content_blocks
    assert thought["type"] == "reasoning"
    assert (thought["reasoning"], said.text) == ("Let me think.", "Hello, you.")
    assert asked.invoke("Hi").content_blocks[0]["reasoning"] == "Let me think."
    assert text["type"] == "text"


@each_api
def test_what_fails_is_an_error_before_and_after_the_first_word(relay: Service, responses: bool) -> None:
    early = model(relay, "scripted/custom", {"fail": "upstream_rate_limited"}, use_responses_api=responses)
    with pytest.raises(openai.RateLimitError):
        early.invoke("Hi")
    late = model(relay, "scripted/custom", {"say": "Here"}, {"fail": "upstream_rejected"}, use_responses_api=responses)
    stream = late.stream("Hi")
    assert next(stream) is not None
    with pytest.raises(openai.APIError) as failed:
        list(stream)
    assert failed.value.code == "upstream_rejected"


@each_api
def test_who_stops_reading_stops_the_upstream(relay: Service, upstream: Upstream, responses: bool) -> None:
    dialect: Any = OPENAI_RESPONSES if responses else OPENAI
    upstream.play(Head(), *dialect.opening, dialect.token("Here"), HOLD)
    stream: Any = model(relay, f"{dialect.provider}/gpt-4o-mini", use_responses_api=responses).stream("Hi")
    while not next(stream).text:
        pass
    stream.close()
    assert upstream.request().wait().ended == "aborted"
