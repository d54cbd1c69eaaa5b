"""Anthropic's own SDKs (Python, JavaScript) and LangChain's client of its API, unmodified, against real services."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import Message
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from pydantic import BaseModel

from .client import DEADLINE
from .conftest import ROOT, Service, Start, eventually
from .node import BIN, NPM, told
from .recorded import (
    ANTHROPIC,
    OPENAI,
    SIGNATURE,
    block,
    call,
    chat_end,
    chat_usage,
    claude_end,
    message_start,
    text_block,
    tool_block,
)
from .resource import status_of
from .served_graphs import answer
from .upstream import END, HOLD, PAUSE, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.served_graphs"]
# An SDK whose stream breaks off leaves its socket to the collector, which may come in any test.
pytestmark = [pytest.mark.usefixtures("leftovers"), pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
HI: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "Tell the weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALLS = [("call_1", {"city": "Paris"}), ("call_2", {"city": "Rome"})]
# Two calls at once, as OpenAI streams them, their pieces mixed.
ASKS = (
    OPENAI.opening[0],
    OPENAI.token("Let me look."),
    call(0, '{"city":', "call_1", "get_weather"),
    call(1, '{"city":"Rome"', "call_2", "get_weather"),
    call(0, '"Paris"}'),
    call(1, "}"),
    *chat_end("tool_calls", chat_usage(20, 15)),
)
THOUGHT = {"type": "thinking", "thinking": "Two and two.", "signature": SIGNATURE}
# A thought and a call, as Anthropic streams them.
THINKS = (
    message_start(cache_read_input_tokens=100),
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Two and"},
        {"type": "thinking_delta", "thinking": " two."},
        {"type": "signature_delta", "signature": SIGNATURE},
    ),
    *text_block(1, "Let me", " look."),
    *tool_block(2, "toolu_1", "get_weather", '{"city":', '"Paris"}'),
    *claude_end("tool_use", 41, cache_read_input_tokens=100),
)
SAID = {"type": "text", "text": "Let me look."}
USED = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


def client_of(service: Service, key: str = "none") -> Anthropic:
    return Anthropic(base_url=url_of(service), api_key=key, max_retries=0, timeout=DEADLINE)


def url_of(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}"


def scripted(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"sidestream": {"provider_options": {"script": steps}}}


def plain(message: Message) -> list[dict[str, Any]]:
    """Return a message's content without what an SDK adds."""
    kept = ("type", "text", "thinking", "signature", "id", "name", "input")
    return [{name: value for name, value in one.to_dict().items() if name in kept} for one in message.content]


# Anthropic's SDK for Python


def test_the_model_answers_anthropics_sdk_in_each_of_its_ways(service: Service) -> None:
    asked: Any = {"model": "local", "max_tokens": 30, "messages": QUESTION, "extra_body": {"temperature": 0}}
    client = client_of(service)
    kinds = []
    with client.messages.create(stream=True, **asked) as events:
        for event in events:
            if not kinds or kinds[-1] != event.type:
                kinds.append(event.type)
    assert kinds == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    with client.messages.stream(**asked) as stream:
        pieces = list(stream.text_stream)
        streamed = stream.get_final_message()
    whole = client.messages.create(**asked)
    for message in (streamed, whole):
        assert "Paris" in message.content[0].text
        assert (message.type, message.role, message.stop_reason) == ("message", "assistant", "end_turn")
        assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 10
        assert 0 < message.usage.output_tokens <= 30
    assert len(pieces) > 1
    assert "".join(pieces) == streamed.content[0].text
    assert f"msg_{stream.request_id}" == streamed.id
    assert whole.id == f"msg_{whole._request_id}"
    assert status_of(service.port, f"/runs/{stream.request_id}")["state"] == "done"


def test_an_answer_that_is_cut_short_says_so(service: Service) -> None:
    asked: Any = {"model": "scripted/length", "max_tokens": 10, "messages": HI}
    assert client_of(service).messages.create(**asked).stop_reason == "max_tokens"
    with client_of(service).messages.stream(**{**asked, "model": "scripted/filtered"}) as stream:
        message = stream.get_final_message()
    assert (message.stop_reason, message.stop_details and message.stop_details.type) == ("refusal", "refusal")


@pytest.mark.parametrize("stream", [True, False])
def test_an_openai_model_asks_for_tools_and_gets_their_results(
    relay: Service, upstream: Upstream, stream: bool
) -> None:
    client, asked = client_of(relay), {"model": "openai/gpt-4o-mini", "max_tokens": 100, "tools": [WEATHER]}
    messages = list(QUESTION)
    upstream.stream(*ASKS)
    message = said(client, stream, messages=messages, **asked)
    assert plain(message) == [
        {"type": "text", "text": "Let me look."},
        *({"type": "tool_use", "id": one, "name": "get_weather", "input": args} for one, args in CALLS),
    ]
    assert (message.stop_reason, message.usage.output_tokens) == ("tool_use", 15)
    results = [
        {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "Sunny."}]},
        {"type": "tool_result", "tool_use_id": "call_2", "content": "No such city.", "is_error": True},
    ]
    messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    upstream.stream(*answer("Sunny", " in Paris."))
    message = said(client, stream, messages=messages, **asked)
    assert (plain(message), message.stop_reason) == ([{"type": "text", "text": "Sunny in Paris."}], "end_turn")
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (8, 6)
    first, second = upstream.request().body, upstream.request().body
    function = {"name": "get_weather", "description": WEATHER["description"], "parameters": WEATHER["input_schema"]}
    assert first["tools"] == [{"type": "function", "function": function}]
    assert second["messages"] == [
        {"role": "user", "content": "What is the capital of France?"},
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {
                    "id": f"call_{n}",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": f'{{"city":"{city}"}}'},
                }
                for n, city in ((1, "Paris"), (2, "Rome"))
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
        {"role": "tool", "tool_call_id": "call_2", "content": "Error: No such city."},
    ]


def said(client: Anthropic, stream: bool, **asked: Any) -> Message:
    if not stream:
        return client.messages.create(**asked)
    with client.messages.stream(**asked) as streaming:
        return streaming.get_final_message()


@pytest.mark.parametrize("stream", [True, False])
def test_an_anthropic_model_gets_its_thoughts_back_as_it_has_signed_them(
    relay: Service, upstream: Upstream, stream: bool
) -> None:
    client = client_of(relay)
    asked = {"model": "anthropic/claude-haiku-4-5", "max_tokens": 2048, "tools": [WEATHER], "thinking": THINKING}
    upstream.stream(*THINKS)
    message = said(client, stream, messages=QUESTION, metadata={"user_id": "u"}, **asked)
    assert plain(message) == [THOUGHT, SAID, USED]
    assert (message.stop_reason, message.usage.input_tokens) == ("tool_use", 25)
    assert message.usage.cache_read_input_tokens == 100
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny."}
    messages = [*QUESTION, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    upstream.stream(*ANTHROPIC.opening, ANTHROPIC.token("Sunny."), *ANTHROPIC.ending)
    assert plain(said(client, stream, messages=messages, **asked)) == [{"type": "text", "text": "Sunny."}]
    first, second = upstream.request().body, upstream.request().body
    assert first == {
        **asked,
        "model": "claude-haiku-4-5",
        "messages": QUESTION,
        "metadata": {"user_id": "u"},
        "stream": True,
    }
    thought, text, used = second["messages"][1]["content"]
    assert thought == THOUGHT
    assert (text["text"], {name: used[name] for name in USED}) == ("Let me look.", USED)
    assert second["messages"][2] == {"role": "user", "content": [result]}


def test_what_is_beta_reaches_anthropic_and_nobody_else(relay: Service, upstream: Upstream) -> None:
    """By its header: it stands nowhere else."""
    client, asked = client_of(relay), {"max_tokens": 9, "messages": HI}
    for model, beta in (("anthropic", "context-1m-2025-08-07"), ("openai", None)):
        upstream.stream(*(ANTHROPIC if beta else OPENAI).opening, *(ANTHROPIC if beta else OPENAI).ending)
        client.beta.messages.create(model=model, betas=["context-1m-2025-08-07"], **asked)
        assert upstream.request().headers.get("anthropic-beta") == beta


def test_input_comes_as_it_is_written(relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), *ASKS[:3], PAUSE, *ASKS[3:], END)
    asked: Any = {"model": "openai/gpt-4o-mini", "max_tokens": 9, "messages": HI, "tools": [WEATHER]}
    with client_of(relay).messages.stream(**asked) as stream:
        pieces = (event.partial_json for event in stream if event.type == "input_json")
        first = next(pieces)
        upstream.request().release()
        whole = first + "".join(pieces)
        assert [one.get("input") for one in plain(stream.get_final_message())][1:] == [args for _, args in CALLS]
    assert (first, whole) == ('{"city":', '{"city":"Paris"}{"city":"Rome"}')


def test_arguments_that_are_no_object_fail_a_stream_and_reach_the_tool_as_they_are_of_a_whole_answer(
    relay: Service, upstream: Upstream
) -> None:
    asked: Any = {"model": "openai/gpt-4o-mini", "max_tokens": 9, "messages": HI}
    for args in ("5", "[1]"):  # what the SDK would take
        upstream.stream(OPENAI.opening[0], call(0, args, "call_1", "get_weather"), *ASKS[-3:])
        with pytest.raises(anthropic.APIStatusError, match="no JSON object"):
            said(client_of(relay), True, **asked)
        upstream.stream(OPENAI.opening[0], call(0, args, "call_1", "get_weather"), *ASKS[-3:])
        assert plain(said(client_of(relay), False, **asked))[0]["input"] == {"INVALID_JSON": args}


@pytest.fixture(scope="module")
def keyed(start_service: Start) -> Service:
    """A service that wants a key, and runs one run at once."""
    return start_service(
        SIDESTREAM_API_KEYS="anna:sesame-1003",
        SIDESTREAM_MAX_RUNS="1",
        SIDESTREAM_MAX_QUEUE="0",
        SIDESTREAM_MAX_RETRIES="0",
    )


FAILURES: list[tuple[type[anthropic.APIStatusError], str, dict[str, Any]]] = [
    (anthropic.BadRequestError, "invalid_request_error", {"messages": []}),
    (anthropic.BadRequestError, "invalid_request_error", {"extra_body": scripted({"fail": "upstream_rejected"})}),
    (anthropic.NotFoundError, "not_found_error", {"model": "nobody/knows"}),
    (anthropic.RateLimitError, "rate_limit_error", {"extra_body": scripted({"fail": "upstream_rate_limited"})}),
    (anthropic.InternalServerError, "api_error", {"extra_body": scripted({"fail": "upstream_unavailable"})}),
    (anthropic.InternalServerError, "api_error", {"extra_body": scripted({"cut": True})}),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("kind", "told", "asked"), FAILURES)
def test_what_fails_before_the_first_word_is_the_sdks_own_exception(
    keyed: Service, kind: type[anthropic.APIStatusError], told: str, asked: dict[str, Any], stream: bool
) -> None:
    with pytest.raises(kind) as raised:
        said(client_of(keyed, "sesame-1003"), stream, **{**CUSTOM, **asked})
    assert (type(raised.value), raised.value.type) == (kind, told)
    is_a_run = "extra_body" in asked
    assert (raised.value.request_id is not None) == is_a_run


PING = 'event: ping\ndata: {"type": "ping"}'
CUSTOM: dict[str, Any] = {"model": "scripted/custom", "max_tokens": 9, "messages": HI}


@pytest.mark.parametrize("bearer", [False, True])
def test_a_key_is_shown_in_either_of_anthropics_ways(keyed: Service, bearer: bool) -> None:
    def client(key: str) -> Anthropic:
        shown: Any = {"api_key": None, "auth_token": key} if bearer else {"api_key": key}
        return Anthropic(base_url=url_of(keyed), max_retries=0, timeout=DEADLINE, **shown)

    asked: Any = {**CUSTOM, "extra_body": scripted({"say": "Hello"})}
    assert plain(client("sesame-1003").messages.create(**asked)) == [{"type": "text", "text": "Hello"}]
    with pytest.raises(anthropic.AuthenticationError) as raised:
        client("wrong").messages.create(**asked)
    assert raised.value.type == "authentication_error"


def test_who_comes_when_all_places_are_taken_is_told_that_it_is_overloaded(keyed: Service) -> None:
    client = client_of(keyed, "sesame-1003")
    with client.messages.create(stream=True, **CUSTOM, extra_body=scripted({"say": "Hello"}, {"hang": True})) as events:
        assert next(iter(events)).type == "message_start"
        with pytest.raises(anthropic.OverloadedError) as raised:
            client.messages.create(**CUSTOM, extra_body=scripted({"say": "Hello"}))
    assert (raised.value.status_code, raised.value.type) == (529, "overloaded_error")
    eventually(lambda: _is_free(client))


def _is_free(client: Anthropic) -> bool:
    try:
        client.messages.create(**CUSTOM, extra_body=scripted({"say": "Hello"}))
    except anthropic.OverloadedError:
        return False
    return True


@pytest.mark.parametrize(
    ("fails", "told"),
    [({"fail": "upstream_rate_limited"}, "rate_limit_error"), ({"cut": True}, "api_error")],
)
def test_what_fails_after_the_first_word_is_told_in_band(service: Service, fails: dict[str, Any], told: str) -> None:
    words = []
    stream = client_of(service).messages.stream(**CUSTOM, extra_body=scripted({"say": "Half an"}, fails))
    with pytest.raises(anthropic.APIStatusError) as raised, stream as streaming:
        words += streaming.text_stream
    assert "".join(words) == "Half an"
    assert (raised.value.status_code, raised.value.type) == (200, told)
    assert raised.value.request_id


@pytest.fixture(scope="module")
def pinging(start_service: Start) -> Service:
    return start_service(SIDESTREAM_PING_INTERVAL="0.05")


def test_pings_keep_a_silent_stream_alive_before_the_message_and_in_it(pinging: Service) -> None:
    client = client_of(pinging)
    script = scripted({"wait": 0.2, "say": "Hello"}, {"wait": 0.2, "say": " you"})
    with client.messages.with_streaming_response.create(**CUSTOM, stream=True, extra_body=script) as raw:
        events = [part for part in raw.text().split("\n\n") if part]
    first = events.index(next(part for part in events if "message_start" in part))
    assert events[:first]
    assert {*events[:first]} == {PING}
    assert PING in events[first:]
    with client.messages.stream(**CUSTOM, extra_body=script) as stream:
        assert stream.get_final_text() == "Hello you"


def test_what_fails_after_a_ping_is_told_in_band_though_nothing_was_said(pinging: Service) -> None:
    with pytest.raises(anthropic.APIStatusError) as raised:
        said(client_of(pinging), True, **CUSTOM, extra_body=scripted({"wait": 0.2, "fail": "upstream_rejected"}))
    assert (raised.value.status_code, raised.value.type) == (200, "invalid_request_error")


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_who_leaves_ends_the_upstream(relay: Service, upstream: Upstream, provider: str) -> None:
    dialect = {"openai": OPENAI, "anthropic": ANTHROPIC}[provider]
    upstream.play(Head(), *dialect.opening, dialect.token("Here"), HOLD)
    asked: Any = {"model": f"{provider}/{dialect.model}", "max_tokens": 9, "messages": HI}
    with client_of(relay).messages.stream(**asked) as stream:
        assert next(iter(stream.text_stream)) == "Here"
    assert upstream.request().wait().ended == "aborted"


def test_who_leaves_before_the_first_word_ends_the_upstream_too(relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), OPENAI.opening[0], HOLD)
    client = Anthropic(base_url=url_of(relay), api_key="none", max_retries=0, timeout=1)
    with client, pytest.raises(anthropic.APITimeoutError):
        client.messages.create(model="openai/gpt-4o-mini", max_tokens=9, messages=HI)
    assert upstream.request().wait().ended == "aborted"


def test_a_graph_answers_and_does_its_tools_itself(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(
        OPENAI.opening[0],
        call(0, '{"city":"Paris"}', "call_1", "weather"),
        *chat_end("tool_calls", chat_usage(9, 9)),
    )
    upstream.stream(*answer("Sunny in ", "Paris."))
    with client_of(graphs).messages.stream(model="langgraph/agent", max_tokens=100, messages=QUESTION) as stream:
        message = stream.get_final_message()
    assert (plain(message), message.stop_reason) == ([{"type": "text", "text": "Sunny in Paris."}], "end_turn")
    assert message.model == "agent"


def test_a_graph_that_waits_for_a_person_is_an_error(graphs: Service) -> None:
    asked: Any = {"model": "langgraph/asking", "max_tokens": 9, "messages": HI}
    asked["extra_body"] = {"sidestream": {"thread_id": "asked-by-anthropics"}}
    with pytest.raises(anthropic.ConflictError, match="waits for a person"):
        client_of(graphs).messages.create(**asked)


def test_a_graphs_model_stops_with_who_leaves(graphs: Service, upstream: Upstream) -> None:
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Here"), HOLD)
    with client_of(graphs).messages.stream(model="langgraph/speaking", max_tokens=9, messages=HI) as stream:
        assert next(iter(stream.text_stream)) == "Here"
    assert upstream.request().wait().ended == "aborted"


def test_tokens_are_not_counted_before_they_are_read(service: Service) -> None:
    """Nothing here knows an upstream's tokens, so there is no such endpoint."""
    with pytest.raises(anthropic.NotFoundError):
        client_of(service).messages.count_tokens(model="local", messages=HI)


# Anthropic's SDK for JavaScript

JS = """
import Anthropic from "@anthropic-ai/sdk";
const [, url] = process.argv;
const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const HI = [{ role: "user", content: "Hi" }];
const custom = (...script) =>
  ({ model: "scripted/custom", max_tokens: 9, messages: HI, sidestream: { provider_options: { script } } });
"""


def test_the_model_answers_anthropics_sdk_in_javascript(service: Service) -> None:
    script = """
      const question = [{ role: "user", content: "What is the capital of France?" }];
      const asked = { model: "local", max_tokens: 30, temperature: 0, messages: question };
      const kinds = new Set();
      for await (const event of await client.messages.create({ ...asked, stream: true })) kinds.add(event.type);
      tell([...kinds]);
      let text = "";
      const stream = client.messages.stream(asked).on("text", (delta) => text += delta);
      const message = await stream.finalMessage();
      tell(message.content[0].text === text, message.stop_reason, message.usage.output_tokens > 0, text);
      tell(message.id === `msg_${stream.request_id}`);
      const whole = await client.messages.create(asked);
      const { input_tokens, cache_read_input_tokens } = whole.usage;
      tell(whole.content[0].text, whole.stop_reason, input_tokens + (cache_read_input_tokens ?? 0) > 10);
    """
    kinds, streamed, is_named, whole = told(JS + script, url_of(service))
    assert kinds == [
        [
            *("message_start", "content_block_start", "content_block_delta", "content_block_stop"),
            *("message_delta", "message_stop"),
        ]
    ]
    assert (streamed[:3], is_named, whole[1:]) == ([True, "end_turn", True], [True], ["end_turn", True])
    assert "Paris" in streamed[3]
    assert "Paris" in whole[0]


def test_an_anthropic_model_gets_its_thoughts_back_from_javascript(relay: Service, upstream: Upstream) -> None:
    script = """
      const asked = { model: "anthropic/claude-haiku-4-5", max_tokens: 2048, tools: [JSON.parse(process.argv[2])] };
      for (const streams of [true, false]) {
        const say = (messages) => streams
          ? client.messages.stream({ ...asked, messages }).finalMessage()
          : client.messages.create({ ...asked, messages });
        const message = await say(HI);
        tell(message.content, message.stop_reason, message.usage.input_tokens);
        const result = { type: "tool_result", tool_use_id: "toolu_1", content: "Sunny." };
        const turns = [{ role: "assistant", content: message.content }, { role: "user", content: [result] }];
        tell((await say([...HI, ...turns])).content);
      }
    """
    for _ in range(2):
        upstream.stream(*THINKS)
        upstream.stream(*ANTHROPIC.opening, ANTHROPIC.token("Sunny."), *ANTHROPIC.ending)
    found = told(JS + script, url_of(relay), json.dumps(WEATHER))
    assert found == [[[THOUGHT, SAID, USED], "tool_use", 25], [[{"type": "text", "text": "Sunny."}]]] * 2
    for _ in range(2):
        upstream.request()
        assert upstream.request().body["messages"][1] == {"role": "assistant", "content": [THOUGHT, SAID, USED]}


def test_tools_of_an_openai_model_go_round_in_javascript(relay: Service, upstream: Upstream) -> None:
    """By the SDK's own runner, which calls the tools and goes on."""
    script = """
      import { betaTool } from "@anthropic-ai/sdk/helpers/beta/json-schema";
      const { name, description, input_schema: inputSchema } = JSON.parse(process.argv[2]);
      const run = ({ city }) => city === "Rome" ? Promise.reject(new Error("No such city.")) : `Sunny in ${city}.`;
      const tools = [betaTool({ name, description, inputSchema, run })];
      const asked = { model: "openai/gpt-4o-mini", max_tokens: 100, messages: HI, tools, stream: true };
      const message = await client.beta.messages.toolRunner(asked).runUntilDone();
      tell(message.content.map(({ text }) => text), message.stop_reason);
    """
    upstream.stream(*ASKS)
    upstream.stream(*answer("Sunny", " in Paris."))
    assert told(JS + script, url_of(relay), json.dumps(WEATHER)) == [[["Sunny in Paris."], "end_turn"]]
    upstream.request()
    results = [message for message in upstream.request().body["messages"] if message["role"] == "tool"]
    assert [(one["tool_call_id"], one["content"]) for one in results] == [
        ("call_1", "Sunny in Paris."),
        ("call_2", "Error: Error: No such city."),
    ]


def test_failures_are_the_exceptions_of_the_sdk_in_javascript(service: Service) -> None:
    script = """
      const failed = async (asked) => {
        for (const ask of [() => client.messages.create(asked), () => client.messages.stream(asked).finalMessage()])
          await ask().catch((error) => tell(error.constructor.name, error.status ?? null, error.type));
      };
      await failed({ ...custom(), messages: [] });
      await failed({ ...custom(), model: "nobody/knows" });
      await failed(custom({ fail: "upstream_auth" }));
      let text = "";
      const stream = client.messages.stream(custom({ say: "Half an" }, { fail: "upstream_rate_limited" }));
      stream.on("text", (delta) => text += delta);
      await stream.finalMessage().catch((error) => tell(text, error.constructor.name, error.type, !!error.requestID));
    """
    assert told(JS + script, url_of(service)) == [
        *[["BadRequestError", 400, "invalid_request_error"]] * 2,
        *[["NotFoundError", 404, "not_found_error"]] * 2,
        *[["InternalServerError", 502, "api_error"]] * 2,
        ["Half an", "APIError", "rate_limit_error", True],
    ]


def test_who_aborts_in_javascript_ends_the_upstream(relay: Service, upstream: Upstream) -> None:
    script = """
      const stream = client.messages.stream({ model: "openai/gpt-4o-mini", max_tokens: 9, messages: HI });
      stream.on("text", (text) => { tell(text); stream.abort(); });
      await stream.finalMessage().catch((error) => tell(error.constructor.name));
    """
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Here"), HOLD)
    assert told(JS + script, url_of(relay)) == [["Here"], ["APIUserAbortError"]]
    assert upstream.request().wait().ended == "aborted"


# LangChain's client


def langchain(service: Service, model: str, **options: Any) -> ChatAnthropic:
    options = {"max_tokens": 2048, "timeout": DEADLINE, "max_retries": 0, **options}
    return ChatAnthropic(model_name=model, base_url=url_of(service), api_key="none", **options)


def gathered(chunks: Any) -> AIMessageChunk:
    whole, *rest = chunks
    for chunk in rest:
        whole += chunk
    return whole


def test_the_model_answers_langchains_client(service: Service) -> None:
    model = langchain(service, "local", max_tokens=30, temperature=0)
    chunks = list(model.stream(QUESTION))
    message, whole = gathered(chunks), model.invoke(QUESTION)
    assert len(chunks) > 3
    assert "Paris" in message.text
    assert "Paris" in whole.text
    for one in (message, whole):
        assert one.response_metadata["stop_reason"] == "end_turn"
        assert one.usage_metadata
        assert one.usage_metadata["input_tokens"] > 10


@pytest.mark.parametrize("stream", [True, False])
def test_langchains_client_goes_round_with_the_tools_of_an_openai_model(
    relay: Service, upstream: Upstream, stream: bool
) -> None:
    model = langchain(relay, "openai/gpt-4o-mini").bind_tools([WEATHER])
    ask: Callable[[Any], AIMessage] = (lambda said: gathered(model.stream(said))) if stream else model.invoke
    history: list[Any] = [HumanMessage("How is it?")]
    upstream.stream(*ASKS)
    message = ask(history)
    assert [(one["id"], one["args"]) for one in message.tool_calls] == CALLS
    assert message.text == "Let me look."
    history += [message, *(ToolMessage("Sunny.", tool_call_id=one["id"]) for one in message.tool_calls)]
    upstream.stream(*answer("Sunny."))
    assert ask(history).text == "Sunny."
    upstream.request()
    asked = upstream.request().body["messages"]
    assert [message["role"] for message in asked] == ["user", "assistant", "tool", "tool"]
    assert [one["function"]["arguments"] for one in asked[1]["tool_calls"]] == ['{"city":"Paris"}', '{"city":"Rome"}']


@pytest.mark.parametrize("stream", [True, False])
def test_langchains_client_sends_signed_thoughts_back(relay: Service, upstream: Upstream, stream: bool) -> None:
    model = langchain(relay, "anthropic/claude-haiku-4-5", thinking=THINKING).bind_tools([WEATHER])
    ask: Callable[[Any], AIMessage] = (lambda said: gathered(model.stream(said))) if stream else model.invoke
    upstream.stream(*THINKS)
    message = ask([HumanMessage("How is it?")])
    assert message.usage_metadata
    assert message.usage_metadata["input_tokens"] == 125  # LangChain counts what was cached in, too
    upstream.stream(*ANTHROPIC.opening, ANTHROPIC.token("Sunny."), *ANTHROPIC.ending)
    assert ask([HumanMessage("How is it?"), message, ToolMessage("Sunny.", tool_call_id="toolu_1")]).text == "Sunny."
    upstream.request()
    assert upstream.request().body["messages"][1]["content"] == [THOUGHT, SAID, USED]


class Capital(BaseModel):
    """A country's capital."""

    city: str


def test_langchains_client_gets_an_answer_of_a_schema(relay: Service, upstream: Upstream) -> None:
    upstream.stream(*answer('{"city":', '"Paris"}'))
    model = langchain(relay, "openai/gpt-4o-mini").with_structured_output(Capital, method="json_schema")
    assert model.invoke("The capital of France?") == Capital(city="Paris")
    wanted = upstream.request().body["response_format"]
    assert (wanted["type"], wanted["json_schema"]["schema"]["required"]) == ("json_schema", ["city"])


def test_langchains_client_raises_what_anthropics_does_and_leaves_as_it_does(
    service: Service, relay: Service, upstream: Upstream
) -> None:
    with pytest.raises(anthropic.NotFoundError):
        langchain(service, "nobody/knows").invoke("Hi")
    with pytest.raises(anthropic.APIStatusError) as raised:
        list(langchain(service, "scripted/late-error").stream("Hi"))
    assert raised.value.type == "rate_limit_error"
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Here"), HOLD)
    stream = langchain(relay, "openai/gpt-4o-mini").stream("Hi")
    while next(stream).text != "Here":
        pass
    stream.close()
    assert upstream.request().wait().ended == "aborted"


# The samples


@pytest.mark.parametrize("name", ["anthropic_client.py", "anthropic_client.mjs"])
def test_the_sample_asks_the_model(service: Service, name: str) -> None:
    path, environ = ROOT / "examples" / name, {**os.environ, "SIDESTREAM_URL": url_of(service)}
    command = [sys.executable, path]
    if path.suffix == ".mjs":
        command = [BIN / "node", "--input-type=module", "-e", path.read_text(encoding="utf-8")]
    done = subprocess.run(command, cwd=NPM, env=environ, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, "")
    text, _, last = done.stdout.rstrip("\n").rpartition("\n")
    assert "Paris" in text
    assert last.startswith("[end_turn: ")
