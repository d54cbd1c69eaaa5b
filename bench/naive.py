"""The naive way, for comparison: Starlette and sse-starlette as their documents show, a dict event per SDK object."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

Event = dict[str, str]
Source = Callable[[dict[str, Any]], AsyncIterator[Event]]

openai, claude = AsyncOpenAI(), AsyncAnthropic()


def event(name: str, **data: Any) -> Event:
    return {"event": name, "data": json.dumps(data)}


async def chat(body: dict[str, Any]) -> AsyncIterator[Event]:
    try:
        async with asyncio.timeout(300):
            stream = await openai.chat.completions.create(
                model=body["model"], messages=[{"role": "user", "content": body["message"]}], stream=True
            )
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield event("token", token=chunk.choices[0].delta.content)
            yield event("done", done=True)
    except Exception as e:
        yield event("error", error=str(e))


async def message(body: dict[str, Any]) -> AsyncIterator[Event]:
    try:
        async with (
            asyncio.timeout(300),
            claude.messages.stream(
                model=body["model"], max_tokens=500, messages=[{"role": "user", "content": body["message"]}]
            ) as stream,
        ):
            async for text in stream.text_stream:
                yield event("token", token=text)
        yield event("done", done=True)
    except Exception as e:
        yield event("error", error=str(e))


def endpoint(source: Source) -> Callable[[Request], Awaitable[EventSourceResponse]]:
    async def answer(request: Request) -> EventSourceResponse:
        return EventSourceResponse(source(await request.json()))

    return answer


async def healthz(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


app = Starlette(
    routes=[
        Route("/openai", endpoint(chat), methods=["POST"]),
        Route("/anthropic", endpoint(message), methods=["POST"]),
        Route("/healthz", healthz),
    ]
)
