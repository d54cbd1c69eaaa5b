"""The embedded model for real: llama.cpp's server in its child process, through the service and through both SDKs."""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from providers.local import Address, ModelServer
from streaming.errors import UpstreamError
from streaming.request import ProviderSettings

from .client import Client, get, post, text
from .conftest import Service, Start, eventually

QUESTION = "What is the capital of France?"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "Get the weather of a city.", "parameters": CITY}
TOOLS = [{"type": "function", "function": WEATHER}]
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}


def children(pid: int) -> list[int]:
    """Return the processes below `pid`, however deep."""
    below: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            below += [int(stat.parent.name), *children(int(stat.parent.name))]
    return below


def model_servers(pid: int) -> list[int]:
    return [child for child in children(pid) if "providers.local" in _command(child)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    return "providers.local" in _command(pid)


@pytest.fixture(scope="module")
def model() -> Iterator[Address]:
    server = ModelServer(ProviderSettings())
    yield server.address()
    server.close()


def test_the_capital_of_france_is_paris(service: Service) -> None:
    with get(service.port, message=QUESTION) as client:
        events = list(client)
    assert [events[0].name, events[-1].name] == ["start", "done"]
    assert {event.name for event in events[1:-1]} == {"token"}
    assert events[0].data["provider"] == "local"
    assert "Paris" in text(events)
    done = events[-1].data
    assert done["finish_reason"] == "stop"
    assert done["model"] == "smollm2"
    assert done["tokens"] >= 5
    assert done["usage"]["output_tokens"] >= 5
    assert "estimated" not in done["usage"]


def test_the_conversation_so_far_counts(service: Service) -> None:
    turns = [
        {"role": "user", "content": "What is the capital of Italy?"},
        {"role": "assistant", "content": "The capital of Italy is Rome."},
        {"role": "user", "content": "And the capital of France?"},
    ]
    with post(service.port, messages=turns, max_tokens=20) as client:
        assert "Paris" in text(list(client))


def test_max_tokens_ends_with_length(service: Service) -> None:
    with post(service.port, message="Tell me a long story.", max_tokens=5) as client:
        events = list(client)
    assert events[-1].data["finish_reason"] == "length"
    assert events[-1].data["usage"]["output_tokens"] == 5


def test_a_schema_shapes_the_answer(service: Service) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    shape = {"type": "json_schema", "json_schema": {"name": "capital", "schema": schema}}
    with post(service.port, message=QUESTION, response_format=shape, max_tokens=60) as client:
        assert json.loads(text(list(client))) == {"city": "Paris"}


def test_both_sdks_stream_from_the_model_server(model: Address) -> None:
    chat = openai.OpenAI(api_key=model.api_key, base_url=model.base_url)
    with chat.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": QUESTION}], stream=True
    ) as chunks:
        assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    claude = anthropic.Anthropic(api_key=model.api_key, base_url=model.base_url.removesuffix("/v1"))
    with claude.messages.stream(
        model="smollm2", max_tokens=50, messages=[{"role": "user", "content": QUESTION}]
    ) as stream:
        assert "Paris" in "".join(stream.text_stream)
    chat.close()
    claude.close()


def prompt(model: Address, **request: object) -> str:
    """Return what llama.cpp makes of a request for the model to go on from."""
    port = int(model.base_url.removesuffix("/v1").rpartition(":")[2])
    headers = {"Authorization": f"Bearer {model.api_key}", "Content-Type": "application/json"}
    with Client(port, "POST", "/apply-template", headers=headers, body=json.dumps(request).encode()) as client:
        return str(json.loads(client.read())["prompt"])


TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "{{ 1 }} <b>"},
]
TALKED = (
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
    "<|im_start|>user\n{{ 1 }} <b><|im_end|>\n<|im_start|>assistant\n"
)


def test_without_tools_the_prompt_is_the_plain_talk(model: Address) -> None:
    default = "<|im_start|>system\nYou are a helpful assistant. Answer briefly and correctly.<|im_end|>\n"
    assert prompt(model, messages=TALK) == default + TALKED
    assert prompt(model, messages=TALK, tools=[]) == default + TALKED
    told = [{"role": "system", "content": "Be rude."}, *TALK]
    assert prompt(model, messages=told) == "<|im_start|>system\nBe rude.<|im_end|>\n" + TALKED


def test_with_tools_the_prompt_has_them_an_example_and_the_calls_so_far(model: Address) -> None:
    system = {"role": "system", "content": "Be rude."}
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "1", "content": "It rains."}
    assert prompt(model, messages=[system, *TALK, call, result], tools=TOOLS) == (
        f"<|im_start|>system\nBe rude.\n<tools>\n{json.dumps(WEATHER)}\n</tools><|im_end|>\n"
        "<|im_start|>user\nWhat is the time in Oslo?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>{"name": "time", "arguments": {"city": "Oslo"}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\n12:00<|im_end|>\n<|im_start|>assistant\nIt is 12:00 in Oslo.<|im_end|>\n"
        f'{TALKED}<tool_call>{{"name": "get_weather", "arguments": {{"city": "Paris"}}}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\nIt rains.<|im_end|>\n<|im_start|>assistant\n"
    )
    untold = prompt(model, messages=TALK, tools=TOOLS)
    assert untold.startswith("<|im_start|>system\nYou are a helpful assistant. Answer briefly and correctly.\n<tools>")
    assert untold.endswith(TALKED)


def test_tools_are_called(service: Service) -> None:
    with post(service.port, message="What is the weather in Paris?", tools=TOOLS) as client:
        events = list(client)
    deltas = [event.data for event in events if event.name == "tool_call_delta"]
    assert len(deltas) > 3
    assert json.loads("".join(delta["args_delta"] for delta in deltas)) == {"city": "Paris"}
    (call,) = [event.data for event in events if event.name == "tool_call"]
    assert call == {"id": deltas[0]["id"], "tool": "get_weather", "args": {"city": "Paris"}}
    assert text(events) == ""
    assert events[-1].data["finish_reason"] == "tool_calls"


def test_what_a_tool_answered_is_put_into_words(service: Service) -> None:
    turns = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "It is raining in Paris."},
    ]
    with post(service.port, messages=turns, tools=TOOLS, max_tokens=40) as client:
        events = list(client)
    assert "raining" in text(events)
    assert events[-1].data["finish_reason"] == "stop"


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_the_vendors_own_variables_lead_to_a_real_model(start_service: Start, model: Address, provider: str) -> None:
    root = model.base_url.removesuffix("/v1")
    service = start_service(
        OPENAI_API_KEY=model.api_key,
        OPENAI_BASE_URL=model.base_url,
        ANTHROPIC_API_KEY=model.api_key,
        ANTHROPIC_BASE_URL=root,
    )
    with post(service.port, f"/{provider}/stream", message=QUESTION, model="smollm2") as client:
        events = list(client)
    assert "Paris" in text(events)
    assert events[0].data["provider"] == provider
    assert events[-1].data["finish_reason"] == "stop"
    assert events[-1].data["usage"]["input_tokens"] > 10
    assert not model_servers(service.process.pid), "a service with keys needs no model of its own"


def test_a_stop_frees_the_model_for_the_next_question(service: Service) -> None:
    for _ in range(6):  # more than there are slots
        client = post(service.port, message="Count from one to a thousand, in words.", max_tokens=1000)
        client.until("token")
        client.hang_up()
    with get(service.port, message=QUESTION) as client:
        assert "Paris" in text(list(client))


def test_the_model_ends_with_the_service(start_service: Start) -> None:
    service = start_service()
    with get(service.port, message=QUESTION) as client:
        client.until("done")
    (server,) = model_servers(service.process.pid)
    service.stop()
    assert not alive(server)


def test_not_even_kill_9_leaves_an_orphan(start_service: Start) -> None:
    service = start_service()
    with get(service.port, message=QUESTION) as client:
        client.until("done")
    (server,) = model_servers(service.process.pid)
    service.stop(signal.SIGKILL)
    eventually(lambda: not alive(server))


def test_threads_that_ask_at_once_get_one_model_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where there is no server yet
    others = set(model_servers(os.getpid()))
    server = ModelServer(ProviderSettings())
    with ThreadPoolExecutor(8) as threads:
        addresses = set(threads.map(lambda _: server.address(), range(8)))
    started = set(model_servers(os.getpid())) - others
    server.close()
    assert len(addresses) == 1
    assert len(started) == 1


def test_one_model_server_serves_all_workers_and_is_started_anew_when_its_owner_dies(start_service: Start) -> None:
    command = [sys.executable, "-c", "import command; command.main()"]
    service = start_service("--workers", "2", command=command)

    def workers() -> list[int]:
        return [pid for pid in children(service.process.pid) if "spawn_main" in _command(pid)]

    eventually(lambda: len(workers()) == 2)
    for _ in range(8):
        with get(service.port, message=QUESTION) as client:
            assert "Paris" in text(list(client))
    (server,) = model_servers(service.process.pid)
    (owner,) = [pid for pid in workers() if server in children(pid)]
    os.kill(owner, signal.SIGKILL)
    eventually(lambda: not alive(server))
    with get(service.port, message=QUESTION) as client:
        assert "Paris" in text(list(client))
    assert len(model_servers(service.process.pid)) == 1
    service.stop()
    assert not model_servers(service.process.pid)


def test_without_a_place_for_temporary_files_it_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the root is read-only and nothing is mounted at /tmp."""

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(UpstreamError, match=r"there is no folder for temporary files\."):
        ModelServer(ProviderSettings())
