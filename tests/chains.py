"""Chains for the tests, as a user would write them: each shows one thing. Their model is the upstream of the test.

Named by `tests.chains:<name>`. `OPENAI_BASE_URL` and `OPENAI_API_KEY` say where the model is. One that waits does so at
the gate that its input names (a FIFO), until the test opens it; one that ends makes the file that its input names.
"""

import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

# --- Prompt, model, parser -------------------------------------------------------------------------------------------

model = ChatOpenAI(model="upstream", stream_usage=True, max_retries=0)
responder = ChatOpenAI(model="upstream", use_responses_api=True, max_retries=0)
prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "Tell me of {topic}.")])
writer = prompt | model | StrOutputParser()
messages = prompt | model
parsed = prompt | model | JsonOutputParser()
several = ChatPromptTemplate.from_template("Compare {one} with {other}.") | model
conversing = ChatPromptTemplate.from_messages([("system", "Be kind."), MessagesPlaceholder("messages")]) | model
both = RunnableParallel(one=writer, other=writer)


def look_up(question: str) -> list[Document]:
    return [Document("The sky is blue.", metadata={"source": "sky.txt"})]


retrieving = RunnableParallel(context=RunnableLambda(look_up), question=RunnablePassthrough()).assign(
    answer=ChatPromptTemplate.from_template("{context} {question}") | model | StrOutputParser()
)


class Shelf(BaseRetriever):
    """Finds the same whatever it is asked for."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return look_up(query)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


working = RunnableParallel(
    found=Shelf(name="shelf", tags=["books"]),
    sum=RunnableLambda(lambda given: {"a": 2, "b": 3}) | add.with_config(tags=["sums"]),
)


# --- Functions -------------------------------------------------------------------------------------------------------


@RunnableLambda
def echo(text: str) -> str:
    return f"You said {text!r}."


@RunnableLambda
def telling(given: Any, config: RunnableConfig) -> dict[str, Any]:
    """What of a request's config has come so far."""
    configurable = {name: value for name, value in config["configurable"].items() if name.startswith("my_")}
    metadata = {name: value for name, value in config["metadata"].items() if name in ("user", "secret")}
    return {"given": given, "tags": config["tags"], "metadata": metadata, "configurable": configurable}


@RunnableLambda
def changing(given: dict[str, Any]) -> str:
    """Make itself at home in what it was given, as many do."""
    given["documents"] = look_up("")
    given["itself"] = given
    return "done"


@RunnableLambda
def failing(text: str) -> str:
    raise ValueError(f"it was about {text}")


@RunnableLambda
async def failing_async(text: str) -> str:
    raise LookupError(f"it was about {text}")


failing_both = RunnableParallel(one=failing_async, other=failing_async, third=failing)


@RunnableLambda
def leaving(text: str) -> str:
    sys.exit("a tool of the command line")


@RunnableLambda
async def leaving_async(text: str) -> str:
    sys.exit("a tool of the command line")


class Panic(BaseException):
    """As extension modules raise it."""


@RunnableLambda
def panicking(text: str) -> str:
    raise Panic(f"it was about {text}")


# --- What streams of its own -----------------------------------------------------------------------------------------


def _words(given: Iterator[Any]) -> Iterator[str]:
    for text in given:
        yield from (f"{word} " for word in str(getattr(text, "content", text)).split())


async def _words_async(given: AsyncIterator[Any]) -> AsyncIterator[str]:
    async for text in given:
        for word in str(text).split():
            yield f"{word} "


words: Runnable[Any, str] = RunnableGenerator(_words)
words_async: Runnable[Any, str] = RunnableGenerator(_words_async)
words_of_model = prompt | model | words


def _failing_words(given: Iterator[Any]) -> Iterator[str]:
    for text in given:
        yield "Here "
        raise ValueError(f"it was about {text}")


async def _failing_words_async(given: AsyncIterator[Any]) -> AsyncIterator[str]:
    async for text in given:
        yield "Here "
        raise ValueError(f"it was about {text}")


def _panicking_words(given: Iterator[Any]) -> Iterator[str]:
    for text in given:
        yield "Here "
        raise Panic(f"it was about {text}")


failing_words: Runnable[Any, str] = RunnableGenerator(_failing_words)
failing_words_async: Runnable[Any, str] = RunnableGenerator(_failing_words_async)
panicking_words: Runnable[Any, str] = RunnableGenerator(_panicking_words)


class Blocking(Runnable[Any, str]):
    """Has no way to stream but the synchronous one."""

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> str:  # noqa: A002  # its name
        return "".join(self.stream(input, config))


class Slow(Blocking):
    """Yields words for ever."""

    def stream(
        self,
        input: Any,  # noqa: A002  # its name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        try:
            while True:
                yield "word "
                time.sleep(0.01)  # its pace: a chain that is slow is what it is about, and nobody waits for this
        finally:
            if isinstance(input, dict):
                Path(input["ended"]).touch()


class Waiting(Blocking):
    """Waits at the gate between two words."""

    def stream(
        self,
        input: Any,  # noqa: A002  # its name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        try:
            yield "one "
            with open(input["gate"], "rb") as gate:
                gate.read()
            yield "two "
            Path(input["further"]).touch()
        finally:
            Path(input["ended"]).touch()


slow = Slow()
slow_in_sequence = RunnableLambda(lambda given: given) | Slow()
waiting = Waiting()

ANTHROPIC = {"model_provider": "anthropic"}


def _thinking(given: Iterator[Any]) -> Iterator[AIMessageChunk]:
    yield AIMessageChunk([{"type": "thinking", "thinking": "Hm.", "index": 0}], response_metadata=ANTHROPIC)
    yield AIMessageChunk([{"type": "text", "text": "Yes.", "index": 1}], response_metadata=ANTHROPIC)


def _tools(given: Iterator[Any]) -> Iterator[Any]:
    yield AIMessage("Let me look.", tool_calls=[{"name": "add", "args": {"a": 2, "b": 3}, "id": "call_1"}])
    yield ToolMessage("5", tool_call_id="call_1", name="add")


def _anything(given: Iterator[Any]) -> Iterator[Any]:
    yield {"a": {1}, "exception": ValueError("sk-secret-1234567890"), "large": 2**70}
    yield None
    yield [b"\0"]
    yield "text\u2028"


thinking: Runnable[Any, AIMessageChunk] = RunnableGenerator(_thinking)
tools: Runnable[Any, Any] = RunnableGenerator(_tools)
anything: Runnable[Any, Any] = RunnableGenerator(_anything)

# --- What is no chain ------------------------------------------------------------------------------------------------

nothing = 5
