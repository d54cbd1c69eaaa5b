"""An operator's code that blocks, for the benchmark: what it does to the streams of others."""

import time
from collections.abc import Iterator
from typing import Any

from langchain_core.runnables import RunnableGenerator
from langgraph.graph import START, MessagesState, StateGraph

NIGHT = 30.0  # seconds: longer than any measure


def sleep(state: MessagesState) -> dict[str, Any]:
    time.sleep(NIGHT)
    return {}


async def sleep_wrongly(state: MessagesState) -> dict[str, Any]:
    time.sleep(NIGHT)  # noqa: ASYNC251  # the fault that is measured: it holds up the graphs' loop
    return {}


def compute(state: MessagesState) -> dict[str, Any]:
    end = time.monotonic() + NIGHT
    while time.monotonic() < end:
        pass
    return {}


def _words(given: Iterator[Any]) -> Iterator[str]:
    while True:
        yield "word "
        time.sleep(0.001)


asleep = StateGraph(MessagesState).add_node(sleep).add_edge(START, "sleep").compile()
asleep_wrongly = StateGraph(MessagesState).add_node(sleep_wrongly).add_edge(START, "sleep_wrongly").compile()
computing = StateGraph(MessagesState).add_node(compute).add_edge(START, "compute").compile()
talking: RunnableGenerator[Any, str] = RunnableGenerator(_words)
