"""The samples for real: the agent on the embedded model, streamed by LangGraph itself and by a service."""

import json
import subprocess
import sys
from typing import Any
from uuid import uuid4

import pytest
from langchain.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.types import Command

from examples.agent import calculate, graph

from .asgi import run
from .client import get, text
from .conftest import ROOT, Start
from .test_local import model_servers

MULTIPLY = "What is 12 * 7?"
POSTCARD = "Send a postcard to Anna: see you on Sunday."
Parts = list[Any]  # (mode, what is streamed in it)


def question(message: str) -> Any:
    return {"messages": [{"role": "user", "content": message}]}


def thread() -> RunnableConfig:
    return {"configurable": {"thread_id": uuid4().hex}}


def streamed(asked: Any, config: RunnableConfig) -> Parts:
    return list(graph.stream(asked, config, stream_mode=["messages", "updates"]))


def astreamed(asked: Any, config: RunnableConfig) -> Parts:
    async def follow() -> Parts:
        return [part async for part in graph.astream(asked, config, stream_mode=["messages", "updates"])]

    return run(follow())


def chunks(parts: Parts) -> list[AIMessageChunk]:
    return [part[0] for mode, part in parts if mode == "messages" and isinstance(part[0], AIMessageChunk)]


def tokens(parts: Parts) -> list[str]:
    return [chunk.text for chunk in chunks(parts) if chunk.text]


def arguments(parts: Parts) -> list[str]:
    return [call["args"] for chunk in chunks(parts) for call in chunk.tool_call_chunks if call["args"]]


def calls(parts: Parts) -> list[tuple[str, dict[str, Any]]]:
    messages = [part["model"]["messages"][-1] for mode, part in parts if mode == "updates" and "model" in part]
    return [(call["name"], call["args"]) for message in messages for call in message.tool_calls]


def results(parts: Parts) -> list[str]:
    return [part[0].text for mode, part in parts if mode == "messages" and isinstance(part[0], ToolMessage)]


def asked_of_a_person(parts: Parts) -> list[Any]:
    return [one.value for mode, part in parts if mode == "updates" for one in part.get("__interrupt__", ())]


@pytest.fixture(scope="module")
def warm() -> None:
    """Have the model read the examples once: that takes it the longest, and it keeps them."""
    graph.invoke(question("Hello!"), thread())


def test_importing_the_agent_starts_no_model_server() -> None:
    code = "import examples.agent; print('imported', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "imported\n"
        assert model_servers(process.pid) == []
        process.communicate("\n")


@pytest.mark.usefixtures("warm")
def test_the_agent_streams_a_tool_call_its_result_and_a_sentence() -> None:
    parts = astreamed(question(MULTIPLY), thread())
    assert len(arguments(parts)) > 3
    assert json.loads("".join(arguments(parts))) == {"expression": "12 * 7"}
    assert calls(parts) == [("calculate", {"expression": "12 * 7"})]
    assert results(parts) == ["The answer is 84."]
    assert len(tokens(parts)) > 3
    assert "".join(tokens(parts)) == "The answer is 84."


@pytest.mark.usefixtures("warm")
def test_a_postcard_waits_for_a_person_and_is_sent_after_a_yes() -> None:
    config = thread()
    before = astreamed(question(POSTCARD), config)
    ((tool, card),) = calls(before)
    assert tool == "send_postcard"
    assert card["to"] == "Anna"
    assert "see you on sunday" in card["text"].lower()
    assert asked_of_a_person(before) == [{"question": "Send this postcard to Anna?", **card}]
    assert results(before) == []
    after = astreamed(Command(resume="yes"), config)
    assert results(after) == ["The postcard to Anna is sent."]
    assert "".join(tokens(after)) == "The postcard to Anna is sent."
    assert len(tokens(after)) > 3
    assert calls(after) == []


@pytest.mark.usefixtures("warm")
def test_a_postcard_is_not_sent_after_anything_else() -> None:
    config = thread()
    assert asked_of_a_person(streamed(question(POSTCARD), config))
    after = streamed(Command(resume="Rather not."), config)
    assert results(after) == ["The postcard to Anna is not sent."]
    assert "not sent" in "".join(tokens(after))


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("message", "answer"),
    [("How much is 1234 + 4321?", "The answer is 5555."), ("What is 144 divided by 12?", "The answer is 12.")],
)
def test_the_agent_calculates_without_an_event_loop_too(message: str, answer: str) -> None:
    parts = streamed(question(message), thread())
    assert [tool for tool, _ in calls(parts)] == ["calculate"]
    assert results(parts) == [answer]
    assert "".join(tokens(parts)) == answer


@pytest.mark.usefixtures("warm")
def test_what_needs_no_tool_is_just_answered() -> None:
    parts = streamed(question("What is the capital of France?"), thread())
    assert calls(parts) == []
    assert "Paris" in "".join(tokens(parts))


@pytest.mark.usefixtures("warm")
def test_the_agent_remembers_a_thread() -> None:
    config = thread()
    streamed(question(MULTIPLY), config)
    assert calls(streamed(question("And 12 * 8?"), config)) == [("calculate", {"expression": "12 * 8"})]


@pytest.mark.usefixtures("warm")
def test_one_question_gets_one_call_however_used_to_more_the_model_is() -> None:
    again: list[Any] = [HumanMessage("Send Bob a postcard: all is well.")]
    for number in range(4):
        call = {"name": "send_postcard", "args": {"to": "Bob", "text": "All is well"}, "id": f"{number}"}
        again += [AIMessage("", tool_calls=[call]), ToolMessage("The postcard is sent.", tool_call_id=f"{number}")]
    parts = streamed({"messages": again}, thread())
    assert calls(parts) == []
    assert "".join(tokens(parts))
    assert "<" not in "".join(tokens(parts))


@pytest.mark.parametrize(
    ("expression", "answer"),
    [("2 + 3 * 4", "14"), ("(2 + 3) * -4", "-20"), ("1 / 3", "0.333333333333"), ("1234567 * 1000", "1234567000")],
)
def test_the_calculator_knows_its_rules(expression: str, answer: str) -> None:
    assert calculate.invoke({"expression": expression}) == f"The answer is {answer}."


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "1 +",
        "1 / 0",
        "9 ** 9 ** 9",
        "__import__('os')",
        "x",
        "'a' * 9",
        "1" * 400,
        "(" * 500,
        "-" * 5000 + "1",
        "\0",
    ],
)
def test_the_calculator_refuses_all_else(expression: str) -> None:
    assert calculate.invoke({"expression": expression}) == "That cannot be calculated."


def test_a_service_serves_the_agent(start_service: Start) -> None:
    service = start_service(SIDESTREAM_GRAPHS="agent=examples.agent:graph")
    with get(service.port, "/agent/stream", message=MULTIPLY) as client:
        events = list(client)
    names = [event.name for event in events if event.name in ("tool_call", "tool_result", "interrupt", "done")]
    assert names == ["tool_call", "tool_result", "done"]
    assert sum(event.name == "tool_call_delta" for event in events) > 3
    assert text(events) == "The answer is 84."
    (server,) = model_servers(service.process.pid)
    service.stop()
    assert server not in model_servers(service.process.pid)


def test_what_make_run_names_serves_the_agent(start_service: Start) -> None:
    config = "examples/sidestream.toml"
    assert f"config={config}" in (ROOT / "Makefile").read_text()
    service = start_service(SIDESTREAM_CONFIG=config)
    with get(service.port, "/v1/models") as client:
        assert b'"langgraph/agent"' in client.read()
