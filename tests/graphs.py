"""Graphs for the tests, as a user would write them: each shows one thing. Their model is the upstream of the test.

Named by `tests.graphs:<name>`. `OPENAI_BASE_URL` and `OPENAI_API_KEY` say where the model is. A node that waits does so
at the gate that the request names (`config.configurable.gate`, a FIFO), until the test opens it.
"""

import asyncio
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from operator import add
from pathlib import Path
from typing import Annotated, Any, TypedDict

import anyio
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import tool
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


def model(**options: Any) -> BaseChatModel:
    """A model that always streams: the upstream knows no other way."""
    return ChatOpenAI(model="upstream", streaming=True, stream_usage=True, max_retries=0, **options)


class State(MessagesState):
    """Messages, and the names of the nodes that have been."""

    been: Annotated[list[str], add]


def chain_of(*nodes: Any, **compiled: Any) -> Graph:
    """A graph of `nodes`, functions or (name, node) pairs, one after the other."""
    builder = StateGraph(State)
    builder.add_sequence(nodes)
    builder.add_edge(START, nodes[0][0] if isinstance(nodes[0], tuple) else nodes[0].__name__)
    return builder.compile(**compiled)


def side_by_side(*nodes: Any, **compiled: Any) -> Graph:
    """A graph of `nodes` that all begin at once."""
    builder = StateGraph(State)
    for node in nodes:
        builder.add_node(node)
        builder.add_edge(START, node.__name__)
    return builder.compile(**compiled)


def synchronous_saver() -> SqliteSaver:
    return SqliteSaver(sqlite3.connect(":memory:", check_same_thread=False))


# --- Nodes -----------------------------------------------------------------------------------------------------------


async def speak(state: State) -> dict[str, Any]:
    return {"messages": [await model().ainvoke(state["messages"])], "been": ["speak"]}


def speak_blocking(state: State) -> dict[str, Any]:
    return {"messages": [model().invoke(state["messages"])], "been": ["speak_blocking"]}


async def speak_again(state: State) -> dict[str, Any]:
    return {"messages": [await model().ainvoke(state["messages"])], "been": ["speak_again"]}


async def think(state: State) -> dict[str, Any]:
    """By the Responses API, which shows a summary of the model's reasoning."""
    reasoner = model(use_responses_api=True, reasoning={"summary": "auto"})
    return {"messages": [await reasoner.ainvoke(state["messages"])], "been": ["think"]}


def note(state: State) -> dict[str, Any]:
    return {"been": ["note"]}


async def note_async(state: State) -> dict[str, Any]:
    return {"been": ["note_async"]}


def ask(state: State) -> dict[str, Any]:
    answer = interrupt({"question": "Shall I?"})
    return {"messages": [AIMessage(f"You said {answer}.")], "been": ["ask"]}


async def ask_async(state: State) -> dict[str, Any]:
    answer = interrupt({"question": "Shall I, too?"})
    return {"messages": [AIMessage(f"You said {answer}, too.")], "been": ["ask_async"]}


WORDS = "the words of sk-secret-1234567890, which nobody shall read"


def fail(state: State) -> dict[str, Any]:
    raise ValueError(WORDS)


async def fail_async(state: State) -> dict[str, Any]:
    raise LookupError(WORDS)


def leave(state: State) -> dict[str, Any]:
    sys.exit("a tool of the command line")


async def leave_async(state: State) -> dict[str, Any]:
    sys.exit("a tool of the command line")


def break_off(state: State) -> dict[str, Any]:
    """What comes of a wait for something that was cancelled: an exception that is no Exception."""
    waited: asyncio.Future[None] = asyncio.new_event_loop().create_future()
    waited.cancel()
    waited.result()
    return {"been": ["break_off"]}


def write(state: State) -> dict[str, Any]:
    writer = get_stream_writer()
    for n in range(3):
        writer({"progress": n})
    return {"been": ["write"]}


def write_nothings(state: State) -> dict[str, Any]:
    writer = get_stream_writer()
    for nothing in (0, "", None, False, [], {}):
        writer(nothing)
    return {"been": ["write_nothings"]}


def write_much(state: State, config: RunnableConfig) -> dict[str, Any]:
    writer = get_stream_writer()
    for n in range(config["configurable"]["count"]):
        writer(n + 1)
    return {"been": ["write_much"]}


def tell_config(state: State, config: RunnableConfig) -> dict[str, Any]:
    """What of a request's config has come so far."""
    told: dict[str, Any] = {"tags": [tag for tag in config.get("tags") or [] if ":" not in tag]}
    told["metadata"] = {name: value for name, value in config["metadata"].items() if name.startswith("my_")}
    told["configurable"] = {name: value for name, value in config["configurable"].items() if name.startswith("my_")}
    get_stream_writer()(told)
    return {"been": ["tell_config"]}


def wait_at_gate(config: RunnableConfig) -> None:
    """Block this thread until a test has come to the gate and opens it."""
    with open(config["configurable"]["gate"], "rb") as gate:
        gate.read()


def sleep(state: State, config: RunnableConfig) -> dict[str, Any]:
    wait_at_gate(config)
    return {"been": ["sleep"]}


async def sleep_wrongly(state: State, config: RunnableConfig) -> dict[str, Any]:
    wait_at_gate(config)  # in an async function: it holds up its whole loop
    return {"been": ["sleep_wrongly"]}


async def resist(state: State, config: RunnableConfig) -> dict[str, Any]:
    """Go on, whoever cancels it."""
    waiting = asyncio.ensure_future(asyncio.to_thread(wait_at_gate, config))
    while not waiting.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(waiting)
    return {"been": ["resist"]}


async def grumble(state: State) -> dict[str, Any]:
    """Fail when it is cancelled."""
    get_stream_writer()("at work")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ValueError(WORDS) from None
    return {"been": ["grumble"]}


# --- Graphs of them --------------------------------------------------------------------------------------------------

speaking = chain_of(speak, note)
speaking_blocking = chain_of(speak_blocking, note)
speaking_twice = chain_of(speak, speak_again)
thinking = chain_of(think, note)
telling = chain_of(speak, write, checkpointer=InMemorySaver())
within = chain_of(("inner", chain_of(speak, note)), note_async)
asking = chain_of(ask, note, checkpointer=InMemorySaver())
asking_within = chain_of(("inner", chain_of(ask, note)), note_async, checkpointer=InMemorySaver())
asking_both = side_by_side(ask, ask_async, checkpointer=InMemorySaver())
asking_nothing = chain_of(note, note_async, interrupt_before=["note_async"], checkpointer=InMemorySaver())
failing = chain_of(note, fail)
failing_first = chain_of(fail)
failing_within = chain_of(note, ("inner", chain_of(note_async, fail)))
failing_both = side_by_side(fail, fail_async)
failing_blocking = chain_of(note, fail, checkpointer=synchronous_saver())
leaving = chain_of(note, leave)
leaving_async = chain_of(note, leave_async)
breaking = chain_of(note, break_off)
noting = chain_of(note_async)
writing = chain_of(write)
writing_nothings = chain_of(write_nothings)
writing_much = chain_of(write_much)
writing_much_blocking = chain_of(write_much, checkpointer=synchronous_saver())
configured = chain_of(("inner", chain_of(tell_config)), tell_config)
remembering = chain_of(speak, checkpointer=InMemorySaver())
keeping = chain_of(note, speak, note_async, checkpointer=InMemorySaver())
keeping_within = chain_of(note, ("inner", chain_of(note_async, speak, note)), note_async, checkpointer=InMemorySaver())
keeping_threads = chain_of(note, speak_blocking, note_async, checkpointer=InMemorySaver())
keeping_blocking = chain_of(note, speak_blocking, write, checkpointer=synchronous_saver())
keeping_both = side_by_side(speak, speak_again, checkpointer=InMemorySaver())
sleeping = chain_of(note_async, sleep, note, checkpointer=InMemorySaver())
sleeping_wrongly = chain_of(note_async, sleep_wrongly, note, checkpointer=InMemorySaver())
sleeping_blocking = chain_of(note, sleep, write, checkpointer=synchronous_saver())
resisting = chain_of(note, resist, note_async, checkpointer=InMemorySaver())
grumbling = chain_of(grumble, note)
not_compiled = StateGraph(State)
no_graph = 5
chain = RunnableLambda(str)
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


speaking_both = side_by_side(speak, speak_blocking)


@tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"Sunny in {city}."


@tool
async def hour(zone: str, day: int) -> dict[str, Any]:
    """Tell the time in a zone."""
    return {"zone": zone, "day": day, "hour": 12}


def agent() -> Graph:
    """LangChain's own: a model and its tools in turns."""
    return create_agent(model(), [weather, hour])


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
    with Path(path).with_suffix(".opened").open("a") as made:
        made.write("once\n")
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        yield chain_of(speak, ask, note, checkpointer=saver)
    Path(path).with_suffix(".closed").touch()


def stored_blocking() -> Graph:
    """The same with LangGraph's synchronous saver: the whole graph runs in a thread."""
    saver = SqliteSaver(sqlite3.connect(os.environ["GRAPHS_DATABASE"] + "-blocking", check_same_thread=False))
    return chain_of(speak_blocking, ask, note, checkpointer=saver)


@asynccontextmanager
async def grouped() -> AsyncIterator[Graph]:
    """A context that must be left in the task that has entered it, as those of MCP's clients must."""
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        yield chain_of(note_async)
        group.cancel_scope.cancel()
    Path(os.environ["GRAPHS_DATABASE"]).with_suffix(".left").touch()


def raising() -> Graph:
    raise RuntimeError("no database")


# --- States of other kinds -------------------------------------------------------------------------------------------


def lose_the_way(state: State) -> str:
    raise ValueError(WORDS)


failing_on_the_way = StateGraph(State).add_node(note).add_conditional_edges(START, lose_the_way, ["note"]).compile()
failing_kept = chain_of(note, fail, checkpointer=InMemorySaver())


class Strict(BaseModel):
    count: int


class Strange:
    def __str__(self) -> str:
        return "a strange thing"


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("it has no name")


class Undecided:
    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")

    def __str__(self) -> str:
        return "an undecided thing"


@dataclass
class Point:
    x: int
    there: Any


def count(state: Strict) -> dict[str, Any]:
    return {"count": state.count + 1}


def count_wrongly(state: Strict) -> dict[str, Any]:
    return {"count": "several"}


strict_later = StateGraph(Strict).add_sequence([count_wrongly, count]).add_edge(START, "count_wrongly").compile()
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
    get_stream_writer()(Undecided())
    return {"thing": things}


strangest = StateGraph(Anything).add_node(strange).add_edge(START, "strange").compile()
