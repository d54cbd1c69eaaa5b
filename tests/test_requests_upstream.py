"""What a request of ours becomes in each API's words, as the upstream received it: the whole body, nothing besides.

And with whose key: a named endpoint gets its own or none, never the vendor's.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from .client import post
from .conftest import Service, Start
from .recorded import ANTHROPIC, DIALECTS, OPENAI, OPENAI_RESPONSES, Dialect, told
from .upstream import ANTHROPIC_KEY, OPENAI_KEY, Exchange, Upstream, environ

pytest_plugins = ["tests.upstream"]

each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=[dialect.provider for dialect in DIALECTS])
CHAT, RESPONSES, MESSAGES = OPENAI.provider, OPENAI_RESPONSES.provider, ANTHROPIC.provider


def received(service: Service, upstream: Upstream, dialect: Dialect, name: str = "", **body: object) -> Exchange:
    """Return the upstream's request for this one of ours, which it answers."""
    upstream.stream(*dialect.opening, dialect.token("Well"), *dialect.ending)
    with post(service.port, f"/{name or dialect.provider}/stream", **body) as client:
        assert told(client)[-1] == ("done", dialect.done(1))
    return upstream.request()


BARE: dict[str, dict[str, Any]] = {
    CHAT: {"model": "gpt-4o-mini", "stream": True, "stream_options": {"include_usage": True}},
    RESPONSES: {"model": "gpt-4o-mini", "stream": True, "store": False},
    MESSAGES: {"model": "claude-haiku-4-5", "stream": True, "max_tokens": 4096},
}
HI: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    RESPONSES: {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]},
    MESSAGES: {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
}
TOOL = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
BARE_TOOL = {"name": "now"}
BARE_RESPONSES = {"parameters": {"type": "object", "properties": {}}, "strict": False}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
FORMAT = {"name": "count", "schema": SCHEMA, "strict": True, "description": "A count."}
PNG = "iVBORw0KGgo="

# What is asked beside `message: Hi`, and what stands in the upstream's request beside HI and BARE.
FIELDS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "nothing": ({}, {CHAT: {}, RESPONSES: {}, MESSAGES: {}}),
    "model": (
        {"model": "another-model"},
        {name: {"model": "another-model"} for name in BARE},
    ),
    "max_tokens": (
        {"max_tokens": 50},
        {CHAT: {"max_tokens": 50}, RESPONSES: {"max_output_tokens": 50}, MESSAGES: {"max_tokens": 50}},
    ),
    "temperature": ({"temperature": 0}, {name: {"temperature": 0} for name in BARE}),
    "top_p": ({"top_p": 0.9}, {name: {"top_p": 0.9} for name in BARE}),
    "stop": ({"stop": "END"}, {CHAT: {"stop": "END"}, MESSAGES: {"stop_sequences": ["END"]}}),
    "stops": ({"stop": ["a", "b"]}, {CHAT: {"stop": ["a", "b"]}, MESSAGES: {"stop_sequences": ["a", "b"]}}),
    "no stops": ({"stop": []}, {RESPONSES: {}}),
    "seed": ({"seed": 7}, {CHAT: {"seed": 7}, RESPONSES: {}, MESSAGES: {}}),  # a hint: left out where there is none
    "text format": (
        {"response_format": {"type": "text"}},
        {CHAT: {"response_format": {"type": "text"}}, RESPONSES: {}, MESSAGES: {}},
    ),
    "json_object": (
        {"response_format": {"type": "json_object"}},
        {CHAT: {"response_format": {"type": "json_object"}}, RESPONSES: {"text": {"format": {"type": "json_object"}}}},
    ),
    "json_schema": (
        {"response_format": {"type": "json_schema", "json_schema": FORMAT}},
        {
            CHAT: {"response_format": {"type": "json_schema", "json_schema": FORMAT}},
            RESPONSES: {"text": {"format": {"type": "json_schema", **FORMAT}}},
            MESSAGES: {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        },
    ),
    "tools": (
        {"tools": [{"type": "function", "function": TOOL}, {"function": {**BARE_TOOL, "strict": True}}]},
        {
            CHAT: {
                "tools": [
                    {"type": "function", "function": TOOL},
                    {"type": "function", "function": {**BARE_TOOL, "strict": True}},
                ]
            },
            RESPONSES: {
                "tools": [
                    {
                        "type": "function",
                        **TOOL,
                        "strict": False,
                    },  # which Responses takes for true where it is not said
                    {
                        "type": "function",
                        **BARE_TOOL,
                        "parameters": {"type": "object", "properties": {}},
                        "strict": True,
                    },
                ]
            },
            MESSAGES: {
                "tools": [
                    {
                        "name": "get_weather",
                        "description": "Weather of a city.",
                        "input_schema": TOOL["parameters"],
                    },
                    {"name": "now", "input_schema": {"type": "object", "properties": {}}, "strict": True},
                ]
            },
        },
    ),
    **{
        f"tool_choice {choice}": (
            {"tool_choice": choice},
            {
                CHAT: {"tool_choice": choice},
                RESPONSES: {"tool_choice": choice},
                MESSAGES: {"tool_choice": {"type": "any" if choice == "required" else choice}},
            },
        )
        for choice in ("auto", "none", "required")
    },
    "tool_choice by name": (
        {"tool_choice": {"type": "function", "function": {"name": "now"}}},
        {
            CHAT: {"tool_choice": {"type": "function", "function": {"name": "now"}}},
            RESPONSES: {"tool_choice": {"type": "function", "name": "now"}},
            MESSAGES: {"tool_choice": {"type": "tool", "name": "now"}},
        },
    ),
    "parallel_tool_calls": (
        {"tools": [{"type": "function", "function": BARE_TOOL}], "parallel_tool_calls": False},
        {
            CHAT: {"tools": [{"type": "function", "function": BARE_TOOL}], "parallel_tool_calls": False},
            RESPONSES: {"tools": [{"type": "function", **BARE_TOOL, **BARE_RESPONSES}], "parallel_tool_calls": False},
            MESSAGES: {
                "tools": [{"name": "now", "input_schema": {"type": "object", "properties": {}}}],
                "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            },
        },
    ),
    "parallel_tool_calls without tools": ({"parallel_tool_calls": False}, {CHAT: {}, RESPONSES: {}, MESSAGES: {}}),
    "provider_options": (
        {"provider_options": {"metadata": {"k": [1, None, "ü"]}, "service_tier": "auto"}},
        {name: {"metadata": {"k": [1, None, "ü"]}, "service_tier": "auto"} for name in BARE},
    ),
    "provider_options on top": (
        {"temperature": 1, "provider_options": {"temperature": 0.5, "model": "instead"}},
        {name: {"temperature": 0.5, "model": "instead"} for name in BARE},
    ),
}


@pytest.mark.parametrize(
    ("dialect", "asked", "sent"),
    [(d, asked, sent[d.provider]) for asked, sent in FIELDS.values() for d in DIALECTS if d.provider in sent],
    ids=[f"{name}-{d.provider}" for name, (_, sent) in FIELDS.items() for d in DIALECTS if d.provider in sent],
)
def test_a_field_becomes_the_upstreams_own(
    relay: Service, upstream: Upstream, dialect: Dialect, asked: dict[str, Any], sent: dict[str, Any]
) -> None:
    body = received(relay, upstream, dialect, message="Hi", **asked).body
    assert body == {**BARE[dialect.provider], **HI[dialect.provider], **sent}


LACKING = [
    (OPENAI_RESPONSES, {"stop": "END"}, "stop", "Responses API"),
    (OPENAI_RESPONSES, {"stop": ["a", "b"]}, "stop", "Responses API"),
    (ANTHROPIC, {"response_format": {"type": "json_object"}}, "response_format", "no JSON mode"),
]


@pytest.mark.parametrize(
    ("dialect", "asked", "field", "says"), LACKING, ids=[f"{d.provider}-{f}" for d, _, f, _ in LACKING]
)
def test_what_an_api_lacks_is_a_clear_error_and_asks_nobody(
    relay: Service, upstream: Upstream, dialect: Dialect, asked: dict[str, Any], field: str, says: str
) -> None:
    with post(relay.port, f"/{dialect.provider}/stream", message="Hi", **asked) as client:
        name, data = told(client)[-1]
    assert (name, data["code"], data["retryable"]) == ("error", "invalid_request", False)
    assert says in data["error"]
    received(relay, upstream, dialect, message="Hi")
    assert upstream.exchanges.empty()


# --- conversations ------------------------------------------------------------------------------------------------

CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
CALL_2 = {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}}
IMAGES = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


# `messages` and `system` as asked, and what the upstream's request says for them.
CONVERSATIONS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "turns": (
        {"messages": [user("Hi"), {"role": "assistant", "content": "Hello."}, user("So?")]},
        {
            CHAT: {"messages": [user("Hi"), {"role": "assistant", "content": "Hello."}, user("So?")]},
            RESPONSES: {
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                    {"role": "assistant", "content": [{"type": "output_text", "text": "Hello."}]},
                    {"role": "user", "content": [{"type": "input_text", "text": "So?"}]},
                ]
            },
            MESSAGES: {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
                    {"role": "user", "content": [{"type": "text", "text": "So?"}]},
                ]
            },
        },
    ),
    "system": (
        {"message": "Hi", "system": "Be brief."},
        {
            CHAT: {"messages": [{"role": "system", "content": "Be brief."}, user("Hi")]},
            RESPONSES: {"instructions": "Be brief.", **HI[RESPONSES]},
            MESSAGES: {"system": "Be brief.", **HI[MESSAGES]},
        },
    ),
    "system and developer among the messages": (
        {
            "system": "One.",
            "messages": [
                {"role": "system", "content": "Two."},
                {"role": "developer", "content": [{"type": "text", "text": "Three."}]},
                user("Hi"),
            ],
        },
        {
            CHAT: {
                "messages": [
                    {"role": "system", "content": "One."},
                    {"role": "system", "content": "Two."},
                    {"role": "developer", "content": [{"type": "text", "text": "Three."}]},
                    user("Hi"),
                ]
            },
            RESPONSES: {
                "instructions": "One.",
                "input": [
                    {"role": "system", "content": [{"type": "input_text", "text": "Two."}]},
                    {"role": "developer", "content": [{"type": "input_text", "text": "Three."}]},
                    *HI[RESPONSES]["input"],
                ],
            },
            MESSAGES: {"system": "One.\n\nTwo.\n\nThree.", **HI[MESSAGES]},
        },
    ),
    "images": (
        {"messages": [{"role": "user", "content": IMAGES}]},
        {
            CHAT: {"messages": [{"role": "user", "content": IMAGES}]},
            RESPONSES: {
                "input": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_text", "text": "What is this?"},
                            {"type": "input_image", "image_url": "https://example.org/cat.png", "detail": "auto"},
                            {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}", "detail": "low"},
                        ],
                    }
                ]
            },
            MESSAGES: {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "What is this?"},
                            {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}},
                            {
                                "type": "image",
                                "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                            },
                        ],
                    }
                ]
            },
        },
    ),
    "tool results": (
        {
            "messages": [
                user("Weather?"),
                {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL_2]},
                {"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"},
                {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "noon"}]},
                user("And?"),
            ]
        },
        {
            CHAT: {
                "messages": [
                    user("Weather?"),
                    {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL_2]},
                    {"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"},
                    {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "noon"}]},
                    user("And?"),
                ]
            },
            RESPONSES: {
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
                    {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
                    {
                        "type": "function_call",
                        "call_id": "call_1",
                        "name": "get_weather",
                        "arguments": '{"city": "Paris"}',
                    },
                    {"type": "function_call", "call_id": "call_2", "name": "now", "arguments": ""},
                    {"type": "function_call_output", "call_id": "call_1", "output": "21 degrees"},
                    {"type": "function_call_output", "call_id": "call_2", "output": "noon"},
                    {"role": "user", "content": [{"type": "input_text", "text": "And?"}]},
                ]
            },
            MESSAGES: {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "text", "text": "I look."},
                            {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Paris"}},
                            {"type": "tool_use", "id": "call_2", "name": "now", "input": {}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "call_1",
                                "content": [{"type": "text", "text": "21 degrees"}],
                            },
                            {
                                "type": "tool_result",
                                "tool_use_id": "call_2",
                                "content": [{"type": "text", "text": "noon"}],
                            },
                            {"type": "text", "text": "And?"},
                        ],
                    },
                ]
            },
        },
    ),
    "images of a tool": (
        {
            "messages": [
                user("Look!"),
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": IMAGES[:2]},
            ]
        },
        {
            CHAT: {
                "messages": [
                    user("Look!"),
                    {"role": "assistant", "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "call_1", "content": IMAGES[:2]},
                ]
            },
            RESPONSES: {
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "Look!"}]},
                    {
                        "type": "function_call",
                        "call_id": "call_1",
                        "name": "get_weather",
                        "arguments": '{"city": "Paris"}',
                    },
                    {
                        "type": "function_call_output",
                        "call_id": "call_1",
                        "output": [
                            {"type": "input_text", "text": "What is this?"},
                            {"type": "input_image", "image_url": "https://example.org/cat.png", "detail": "auto"},
                        ],
                    },
                ]
            },
            MESSAGES: {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Look!"}]},
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Paris"}}
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "call_1",
                                "content": [
                                    {"type": "text", "text": "What is this?"},
                                    {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}},
                                ],
                            }
                        ],
                    },
                ]
            },
        },
    ),
    # OpenAI's clients send `content: ""` with calls; Anthropic refuses a text block that is empty.
    "a call without words": (
        {
            "messages": [
                user("Now?"),
                {"role": "assistant", "content": "", "tool_calls": [CALL_2]},
                {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
            ]
        },
        {
            CHAT: {
                "messages": [
                    user("Now?"),
                    {"role": "assistant", "content": "", "tool_calls": [CALL_2]},
                    {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
                ]
            },
            RESPONSES: {
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "Now?"}]},
                    {"type": "function_call", "call_id": "call_2", "name": "now", "arguments": ""},
                    {"type": "function_call_output", "call_id": "call_2", "output": "noon"},
                ]
            },
            MESSAGES: {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Now?"}]},
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "call_2", "name": "now", "input": {}}],
                    },
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "call_2",
                                "content": [{"type": "text", "text": "noon"}],
                            }
                        ],
                    },
                ]
            },
        },
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@each_dialect
def test_a_conversation_becomes_the_upstreams_own(
    relay: Service, upstream: Upstream, dialect: Dialect, name: str
) -> None:
    asked, sent = CONVERSATIONS[name]
    body = received(relay, upstream, dialect, **asked).body
    assert body == {**BARE[dialect.provider], **sent[dialect.provider]}


@each_dialect
def test_a_tool_that_had_nothing_to_say_is_heard(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    result = {"role": "tool", "tool_call_id": "call_2", "content": ""}
    history = [user("Now?"), {"role": "assistant", "tool_calls": [CALL_2]}, result]
    assert "call_2" in str(received(relay, upstream, dialect, messages=history).body)


def test_arguments_in_the_history_that_are_no_json_are_a_clear_error(relay: Service, upstream: Upstream) -> None:
    broken = {"id": "call_1", "function": {"name": "now", "arguments": "{"}}
    history = [user("Now?"), {"role": "assistant", "tool_calls": [broken]}]
    with post(relay.port, "/anthropic/stream", messages=history) as client:
        name, data = told(client)[-1]
    assert (name, data["code"]) == ("error", "invalid_request")
    assert upstream.exchanges.empty()


@each_dialect
def test_the_text_arrives_as_it_was_sent(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    text = 'Grüße \u2028\x85 👩‍👧 \\ " \n\t\x00 ' + "x" * 200_000
    body = received(relay, upstream, dialect, message=text).body
    assert text in [*_strings(body)]


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    return [text for part in value for text in _strings(part)] if isinstance(value, list) else [value]


# --- whose endpoint, whose key ------------------------------------------------------------------------------------


def credentials(exchange: Exchange) -> str:
    """Return the one key a request came with."""
    bearer = exchange.headers.get("authorization", "")
    return bearer.removeprefix("Bearer ") or exchange.headers["x-api-key"]


@each_dialect
def test_the_vendor_gets_its_own_key_and_our_headers(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    exchange = received(relay, upstream, dialect, message="Hi")
    assert exchange.path == dialect.path
    assert credentials(exchange) == (ANTHROPIC_KEY if dialect is ANTHROPIC else OPENAI_KEY)
    assert exchange.headers["accept-encoding"] == "identity"
    assert "cookie" not in exchange.headers


@pytest.mark.parametrize("ends", ["\n", "\r\nX-Other: header"])
@each_dialect
def test_a_key_with_a_line_break_goes_nowhere(
    start_service: Start, upstream: Upstream, dialect: Dialect, ends: str
) -> None:
    vendor = "ANTHROPIC" if dialect is ANTHROPIC else "OPENAI"
    service = start_service(**{**environ(upstream), f"{vendor}_API_KEY": f"sk-mounted{ends}"})
    with post(service.port, f"/{dialect.provider}/stream", message="Hi") as client:
        name, data = told(client)[-1]
    assert (name, data["code"], "line break" in data["error"]) == ("error", "upstream_auth", True)
    assert upstream.exchanges.empty()
    assert "sk-mounted" not in service.log + str(client.body)


VENDORS_OWN = {
    "OPENAI_ORG_ID": "org-of-ours",
    "OPENAI_PROJECT_ID": "proj-of-ours",
    "ANTHROPIC_AUTH_TOKEN": "token-of-ours",
}
CUSTOM_HEADERS = {
    "OPENAI_CUSTOM_HEADERS": "X-Gateway-Key: for the vendor's gateway",
    "ANTHROPIC_CUSTOM_HEADERS": "X-Gateway-Key: for the vendor's gateway",
}


def tables(upstream: Upstream) -> dict[str, dict[str, Any]]:
    """Endpoints of third parties, all the scripted upstream, beside the vendors' own variables."""
    return {
        "mine": {"use": "openai", "base_url": f"{upstream.url}/v1", "api_key_env": "MY_KEY", "models": ["m1", "m2"]},
        "mine_responses": {"use": "openai_responses", "base_url": f"{upstream.url}/v1", "api_key": "written-down"},
        "mine_anthropic": {"use": "anthropic", "base_url": upstream.url, "api_key_env": "MY_KEY"},
        "open": {"use": "openai", "base_url": f"{upstream.url}/v1", "models": ["m1"]},
        "open_responses": {"use": "openai_responses", "base_url": f"{upstream.url}/v1"},
        "open_anthropic": {"use": "anthropic", "base_url": upstream.url, "options": {"max_tokens": 77}},
        "elsewhere": {"use": "anthropic", "api_key_env": "MY_KEY", "models": ["m1"]},
        "brief": {"use": "openai", "base_url": f"{upstream.url}/v1", "options": {"keep_alive": False}},
    }


def toml(endpoints: dict[str, dict[str, Any]]) -> str:
    """Write the tables; JSON's strings, numbers and lists are TOML's."""
    lines = []
    for name, table in endpoints.items():
        lines.append(f"[providers.{name}]")
        for field, value in table.items():
            if isinstance(value, dict):
                value = "{" + ", ".join(f"{key} = {json.dumps(one)}" for key, one in value.items()) + "}"
            else:
                value = json.dumps(value)
            lines.append(f"{field} = {value}")
    return "\n".join(lines)


@pytest.fixture(scope="module", params=["JSON", "TOML"])
def named(
    request: pytest.FixtureRequest,
    start_service: Start,
    upstream_server: Upstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> Service:
    """A service with endpoints of third parties, by the environment and by a file."""
    endpoints = tables(upstream_server)
    variables = {**environ(upstream_server), **VENDORS_OWN, **CUSTOM_HEADERS, "MY_KEY": "my-very-own"}
    if request.param == "JSON":
        return start_service(**variables, SIDESTREAM_PROVIDERS=json.dumps(endpoints))
    file: Path = tmp_path_factory.mktemp("settings") / "sidestream.toml"
    file.write_text(toml(endpoints))
    return start_service(**variables, SIDESTREAM_CONFIG=str(file))


@pytest.mark.parametrize(
    ("name", "dialect", "key"),
    [
        ("mine", OPENAI, "my-very-own"),
        ("mine_responses", OPENAI_RESPONSES, "written-down"),
        ("mine_anthropic", ANTHROPIC, "my-very-own"),
        ("open", OPENAI, "none"),
        ("open_responses", OPENAI_RESPONSES, "none"),
        ("open_anthropic", ANTHROPIC, "none"),
        ("elsewhere", ANTHROPIC, "my-very-own"),
        ("openai", OPENAI, OPENAI_KEY),
        ("anthropic", ANTHROPIC, ANTHROPIC_KEY),
    ],
)
def test_a_named_endpoint_gets_its_own_key_and_nothing_of_the_vendors(
    named: Service, upstream: Upstream, name: str, dialect: Dialect, key: str
) -> None:
    exchange = received(named, upstream, dialect, name, message="Hi", model="m1")
    assert credentials(exchange) == key
    assert exchange.body["model"] == "m1"
    if name not in ("openai", "anthropic"):
        for secret in (OPENAI_KEY, ANTHROPIC_KEY, *VENDORS_OWN.values()):
            assert secret not in str(exchange.headers)
    if dialect is ANTHROPIC:
        assert exchange.body["max_tokens"] == (77 if name == "open_anthropic" else 4096)


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("mine", OPENAI),
        ("open_responses", OPENAI_RESPONSES),
        ("mine_anthropic", ANTHROPIC),
        ("open_anthropic", ANTHROPIC),
    ],
)
def test_the_headers_meant_for_the_vendor_go_to_no_named_endpoint(
    named: Service, upstream: Upstream, name: str, dialect: Dialect
) -> None:
    headers = received(named, upstream, dialect, name, message="Hi", model="m1").headers
    assert "x-gateway-key" not in headers


@pytest.mark.parametrize("dialect", [OPENAI, ANTHROPIC], ids=["openai", "anthropic"])
def test_the_headers_meant_for_the_vendor_go_to_the_vendor(
    named: Service, upstream: Upstream, dialect: Dialect
) -> None:
    assert received(named, upstream, dialect, message="Hi").headers["x-gateway-key"] == "for the vendor's gateway"


def test_the_first_of_its_models_is_an_endpoints_default(named: Service, upstream: Upstream) -> None:
    for asked, got in (({}, "m1"), ({"model": "m2"}, "m2"), ({"model": "mine/m2"}, "m2"), ({"model": "m3"}, "m3")):
        assert received(named, upstream, OPENAI, "mine", message="Hi", **asked).body["model"] == got


def test_a_message_of_an_endpoint_without_a_key_is_passed_on_whole(named: Service, upstream: Upstream) -> None:
    upstream.refuse(400, OPENAI.error_body("tool_choice must be one of auto, none"))
    with post(named.port, "/open/stream", message="Hi") as client:
        assert told(client)[-1][1]["error"].endswith("It says: tool_choice must be one of auto, none")


def test_a_server_that_keeps_no_connection_is_asked_for_none(named: Service, upstream: Upstream) -> None:
    """llama.cpp says that it keeps a connection and closes it behind a stream: the next request would go nowhere."""
    exchanges = [received(named, upstream, OPENAI, "brief", message="Hi", model="m1") for _ in range(3)]
    assert [exchange.headers["connection"] for exchange in exchanges] == ["close"] * 3
    assert len({exchange.connection for exchange in exchanges}) == 3
