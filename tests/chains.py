"""Chains for the tests, as a user would write them: each shows one thing. Their model is the upstream of the test.

Named by `tests.chains:<name>`. `OPENAI_BASE_URL` and `OPENAI_API_KEY` say where the model is.
"""

import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model="upstream", stream_usage=True, max_retries=0)
prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "Tell me of {topic}.")])
writer = prompt | model | StrOutputParser()
messages = prompt | model
parsed = prompt | model | JsonOutputParser()


def look_up(question: str) -> list[Document]:
    return [Document("The sky is blue.", metadata={"source": "sky.txt"})]


retrieving = RunnableParallel(context=RunnableLambda(look_up), question=RunnablePassthrough()).assign(
    answer=ChatPromptTemplate.from_template("{context} {question}") | model | StrOutputParser()
)


@RunnableLambda
def echo(text: str) -> str:
    return f"You said {text!r}."


@RunnableLambda
def failing(text: str) -> str:
    raise ValueError("the words of sk-secret-1234567890, which nobody shall read")


def _words(given: Iterator[Any]) -> Iterator[str]:
    for text in given:
        yield from str(text).split()


async def _words_async(given: AsyncIterator[Any]) -> AsyncIterator[str]:
    async for text in given:
        for word in str(text).split():
            yield word


words: Runnable[Any, str] = RunnableGenerator(_words)
words_async: Runnable[Any, str] = RunnableGenerator(_words_async)


class Slow(Runnable[Any, str]):
    """Yields words for ever, in a thread, since it has no other way; `SLOW` seconds apart."""

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> str:  # noqa: A002  # its name
        return "".join(self.stream(input, config))

    def stream(
        self,
        input: Any,  # noqa: A002  # its name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        while True:
            yield "word "
            time.sleep(float(os.environ.get("SLOW", "0.01")))


slow = Slow()
slow_in_sequence = RunnableLambda(lambda given: given) | Slow()


def _thinking(given: Iterator[Any]) -> Iterator[AIMessageChunk]:
    yield AIMessageChunk([{"type": "thinking", "thinking": "Hm.", "index": 0}], response_metadata=ANTHROPIC)
    yield AIMessageChunk([{"type": "text", "text": "Yes.", "index": 1}], response_metadata=ANTHROPIC)


ANTHROPIC = {"model_provider": "anthropic"}
thinking: Runnable[Any, AIMessageChunk] = RunnableGenerator(_thinking)
nothing = 5
