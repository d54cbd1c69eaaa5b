"""Conversations on a graph's thread that knows nothing of them, or all: clients of other wires send all each time."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from .client import post
from .conftest import Service
from .served_graphs import answer
from .upstream import Upstream

pytest_plugins = ["tests.upstream", "tests.served_graphs"]

Said = list[tuple[str, str]]
FIRST: Said = [("user", "Hi"), ("assistant", "Hello."), ("user", "And?")]
NEXT: Said = [*FIRST, ("assistant", "More."), ("user", "Still?")]


def to_ag_ui(port: int, graph: str, thread: str, said: Said) -> bytes:
    messages = [{"id": f"{place}", "role": role, "content": text} for place, (role, text) in enumerate(said)]
    body: dict[str, Any] = {"threadId": thread, "runId": "r", "messages": messages}
    with post(port, f"/ag-ui/{graph}", **body) as client:
        return client.read()


def to_vercel(port: int, graph: str, thread: str, said: Said) -> bytes:
    messages = [{"role": role, "parts": [{"type": "text", "text": text}]} for role, text in said]
    with post(port, "/ui/chat", model=graph, thread_id=thread, messages=messages) as client:
        return client.read()


@pytest.mark.parametrize("send", [to_ag_ui, to_vercel])
@pytest.mark.parametrize("graph", ["remembering", "keeping_blocking"])
def test_a_thread_that_knows_nothing_is_told_all_and_one_that_knows_is_told_the_news(
    graphs: Service, upstream: Upstream, graph: str, send: Callable[..., bytes]
) -> None:
    thread = str(uuid.uuid4())
    for said, reply in ((FIRST, "More."), (NEXT, "No more.")):
        upstream.stream(*answer(reply))
        told = send(graphs.port, graph, thread, said)
        assert reply.encode() in told
        assert [(turn["role"], turn["content"]) for turn in upstream.request().body["messages"]] == said


def test_so_is_one_whose_events_are_asked_for(graphs: Service, upstream: Upstream) -> None:
    messages = [{"id": f"{place}", "role": role, "content": text} for place, (role, text) in enumerate(FIRST)]
    body: dict[str, Any] = {"threadId": str(uuid.uuid4()), "runId": "r", "messages": messages}
    upstream.stream(*answer("More."))
    with post(graphs.port, "/ag-ui/remembering", **body, forwardedProps={"events": True}) as client:
        assert b"on_chat_model_stream" in client.read()
    assert [(turn["role"], turn["content"]) for turn in upstream.request().body["messages"]] == FIRST


def test_an_answer_of_a_thread_is_not_made_anew(graphs: Service) -> None:
    messages = [{"role": role, "parts": [{"type": "text", "text": text}]} for role, text in FIRST]
    again = {"thread_id": "t", "trigger": "regenerate-message", "messages": messages}
    with post(graphs.port, "/ui/chat", model="remembering", **again) as client:
        assert client.head()[0] == 400
        assert client.read() == b"An answer of a thread is not made anew: the thread goes on from it."
