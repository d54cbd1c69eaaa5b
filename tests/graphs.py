"""Graphs for the tests, as a user would write them: each shows one thing. Their model is the upstream of the test.

Named by `tests.graphs:<name>`. `OPENAI_BASE_URL` and `OPENAI_API_KEY` say where the model is.
"""

import asyncio
import os
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from operator import add
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from pydantic import BaseModel

Graph = CompiledStateGraph[Any, Any, Any, Any]


def model() -> BaseChatModel:
    return ChatOpenAI(model="upstream", stream_usage=True, max_retries=0)


class State(MessagesState):
    """Messages, and the names of the nodes that have been."""

    been: Annotated[list[str], add]


def chain_of(*nodes: Any, **compiled: Any) -> Graph:
    """A graph of `nodes`, functions or (name, node) pairs, one after the other."""
    builder = StateGraph(State)
    builder.add_sequence(nodes)
    builder.add_edge(START, nodes[0][0] if isinstance(nodes[0], tuple) else nodes[0].__name__)
    return builder.compile(**compiled)


async def speak(state: State) -> dict[str, Any]:
    return {"messages": [await model().ainvoke(state["messages"])], "been": ["speak"]}


def speak_blocking(state: State) -> dict[str, Any]:
    return {"messages": [model().invoke(state["messages"])], "been": ["speak_blocking"]}


def note(state: State) -> dict[str, Any]:
    return {"been": ["note"]}


async def note_async(state: State) -> dict[str, Any]:
    return {"been": ["note_async"]}


def ask(state: State) -> dict[str, Any]:
    answer = interrupt({"question": "Shall I?"})
    return {"messages": [AIMessage(f"You said {answer}.")], "been": ["ask"]}


def fail(state: State) -> dict[str, Any]:
    raise ValueError("the words of sk-secret-1234567890, which nobody shall read")


def leave(state: State) -> dict[str, Any]:
    sys.exit("a tool of the command line")


async def leave_async(state: State) -> dict[str, Any]:
    sys.exit("a tool of the command line")


def write(state: State) -> dict[str, Any]:
    writer = get_stream_writer()
    for n in range(3):
        writer({"progress": n})
    return {"been": ["write"]}


speaking = chain_of(speak, note)
speaking_blocking = chain_of(speak_blocking, note)
within = chain_of(("inner", chain_of(speak, note)), note_async)
asking = chain_of(ask, note, checkpointer=InMemorySaver())
asking_within = chain_of(("inner", chain_of(ask, note)), note_async, checkpointer=InMemorySaver())
failing = chain_of(note, fail)
failing_within = chain_of(note, ("inner", chain_of(note_async, fail)))
leaving = chain_of(note, leave)
leaving_async = chain_of(note, leave_async)
writing = chain_of(write)
remembering = chain_of(speak, checkpointer=InMemorySaver())
not_compiled = StateGraph(State)
endless = StateGraph(State).add_node(note).add_edge(START, "note").add_edge("note", "note").compile()


def parallel() -> Graph:
    """Two nodes at once, one of them synchronous, then a third."""
    builder = StateGraph(State)
    for node in (note, note_async, write):
        builder.add_node(node)
    builder.add_edge(START, "note")
    builder.add_edge(START, "note_async")
    builder.add_edge(["note", "note_async"], "write")
    return builder.compile()


class Settings(TypedDict):
    name: str


def greet(state: State, runtime: Runtime[Settings]) -> dict[str, Any]:
    return {"messages": [AIMessage(f"Hello, {runtime.context['name']}.")]}


async def greeting() -> Graph:
    """A factory that is awaited; the graph reads its context."""
    await asyncio.sleep(0)
    builder = StateGraph(State, context_schema=Settings)
    builder.add_node(greet)
    builder.add_edge(START, "greet")
    return builder.compile()


@asynccontextmanager
async def stored() -> AsyncIterator[Graph]:
    """A factory that is a context: it keeps its threads in SQLite, asynchronously, and closes the file in the end."""
    path = os.environ["GRAPHS_DATABASE"]
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        yield chain_of(speak, note, checkpointer=saver)
    Path(path).with_suffix(".closed").touch()


def stored_blocking() -> Graph:
    """The same with LangGraph's synchronous saver: the whole graph runs in a thread."""
    saver = SqliteSaver(sqlite3.connect(os.environ["GRAPHS_DATABASE"], check_same_thread=False))
    return chain_of(speak_blocking, ask, note, checkpointer=saver)


GATE = threading.Event()  # what sleeping nodes wait for, so that a test need not


def sleep(state: State) -> dict[str, Any]:
    GATE.wait(float(os.environ.get("GRAPHS_SLEEP", "3600")))
    return {"been": ["sleep"]}


async def sleep_wrongly(state: State) -> dict[str, Any]:
    time.sleep(float(os.environ.get("GRAPHS_SLEEP", "3600")))  # in an async function: it holds up its whole loop
    return {"been": ["sleep_wrongly"]}


sleeping = chain_of(note_async, sleep, note)
sleeping_wrongly = chain_of(note_async, sleep_wrongly, note)


class Strict(BaseModel):
    count: int


class Strange:
    def __str__(self) -> str:
        return "a strange thing"


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("it has no name")


@dataclass
class Point:
    x: int
    there: Any


def count(state: Strict) -> dict[str, Any]:
    return {"count": state.count + 1}


strict = StateGraph(Strict).add_node(count).add_edge(START, "count").compile()


class Anything(TypedDict):
    thing: Any


def strange(state: Anything) -> dict[str, Any]:
    ring: list[Any] = []
    ring.append(ring)
    things = {
        "object": Strange(),
        "broken": Broken(),
        "dataclass": Point(1, Strange()),
        "model": Strict(count=2),
        "set": {"one"},
        "bytes": b"\x00\xff",
        "decimal": Decimal("1.50"),
        "not a number": float("nan"),
        "large": 2**70,
        "ring": ring,
        "type": Strange,
        "exception": ValueError("sk-secret-1234567890"),
        (1, 2): "a key that is no text",
        "message": AIMessage("hi", id="1"),
    }
    return {"thing": things}


strangest = StateGraph(Anything).add_node(strange).add_edge(START, "strange").compile()
