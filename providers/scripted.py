"""A provider without an upstream: it plays a script, so that a front end can be tried against every case without a key.

`scripted/<name>` plays one of those below; `scripted/custom` plays `provider_options.script`, a list of steps, each
an object of the fields of `Step`. Waits are seconds.
"""

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from streaming.errors import RequestError, UpstreamError
from streaming.events import (
    Event,
    Finish,
    FinishReason,
    Reasoning,
    Token,
    ToolCall,
    ToolCallDelta,
    ToolResult,
)
from streaming.request import Emit, Message, ProviderSettings, RunRequest, TextPart

from . import Upstream


class Call(Struct, frozen=True, forbid_unknown_fields=True):
    tool: str
    args: dict[str, Any] = {}
    id: str = "call_1"
    result: Any = None


class Step(Struct, frozen=True, forbid_unknown_fields=True):
    """One step: wait, then do what is named; `say` and `think` go out word by word, `every` seconds apart."""

    wait: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    say: str | None = None
    think: str | None = None
    every: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    call: Call | None = None
    fail: str | None = None
    cut: bool = False
    hang: bool = False
    finish: FinishReason | None = None


HELLO = "Hello! I am the scripted provider. I say the same few words to everybody, at a pleasant pace, and need no key."
MARKDOWN = """Here is **some** formatted text with `inline code`:

```python
def greet(name: str) -> str:
    return f"Hello, {name}!"
```

- one thing
- and another
"""
WEATHER = Call("get_weather", {"city": "Paris", "unit": "celsius"}, result={"temperature": 21, "sky": "clear"})
SCRIPTS: dict[str, list[Step]] = {
    "hello": [Step(wait=0.2, say=HELLO, every=0.04)],
    "slow": [Step(wait=3, say=HELLO, every=0.5)],
    "long": [Step(say=" ".join(f"word {n}," for n in range(1, 2001)), every=0.005)],
    "markdown": [Step(wait=0.2, say=MARKDOWN, every=0.03)],
    "unicode": [
        Step(say='Grüße, 世界! 👩‍👩‍👧‍👦 line\u2028separator, next\u0085line,\nnewline and a \\ "quote".', every=0.05)
    ],
    "reasoning": [Step(think="The user asked something. I shall say hello.", every=0.05), Step(say=HELLO, every=0.03)],
    "tools": [
        Step(say="Let me look at the weather.", every=0.05),
        Step(wait=0.3, call=WEATHER),
        Step(wait=0.5, say="It is 21 degrees in Paris, under a clear sky.", every=0.05),
    ],
    "length": [Step(say="This answer was cut short by its limit of", every=0.05), Step(finish="length")],
    "filtered": [Step(say="This answer was stopped by", every=0.05), Step(finish="content_filter")],
    "silent": [Step(hang=True)],
    "stall": [Step(say="These are the last words before a long", every=0.05), Step(hang=True)],
    "cut": [Step(say="The connection breaks in the middle of this", every=0.05), Step(cut=True)],
    "error": [Step(wait=0.3, fail="upstream_unavailable")],
    "late-error": [Step(say="This goes well until it does", every=0.05), Step(fail="upstream_rate_limited")],
    "flood": [Step(say="flood " * 1_000_000)],
}


class Scripted:
    """Plays scripts. Nothing to configure."""

    def __init__(self, settings: ProviderSettings, upstream: Upstream) -> None:
        pass

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        reason: FinishReason = "stop"
        for step in _script(request):
            await asyncio.sleep(step.wait)
            for events in _events(step):
                emit(events)
                await asyncio.sleep(step.every)
            if step.fail:
                raise _fault(step.fail)
            if step.cut:
                return
            if step.hang:
                await asyncio.Event().wait()
            reason = step.finish or reason
        emit([Finish(reason)])


def _script(request: RunRequest) -> list[Step]:
    if request.model == "echo":
        return [Step(say=_said(request.messages[-1]), every=0.01)]
    if request.model != "custom":
        return SCRIPTS[request.model]
    script = (request.provider_options or {}).get("script")
    if script is None:
        text = "scripted/custom plays what `provider_options.script` says: a list of steps."
        raise RequestError("invalid_request", text, field="provider_options")
    try:
        steps: list[Step] = msgspec.convert(script, Annotated[list[Step], Meta(max_length=10_000)])
        return steps
    except msgspec.ValidationError as exc:
        raise RequestError("invalid_request", f"provider_options.script: {exc}", field="provider_options") from exc


def _events(step: Step) -> Iterator[list[Event]]:
    if step.think:
        for word in _words(step.think):
            yield [Reasoning(word)]
    if step.say:
        for word in _words(step.say):
            yield [Token(word)]
    if step.call:
        call, text = step.call, msgspec.json.encode(step.call.args).decode()
        yield [ToolCallDelta(0, text[:8], call.id, call.tool)]
        if text[8:]:
            yield [ToolCallDelta(0, text[8:])]
        yield [ToolCall(call.id, call.tool, call.args)]
        if call.result is not None:
            yield [ToolResult(call.id, call.tool, call.result)]


def _words(text: str) -> Iterator[str]:
    """Cut before each space, so that the words put together are the text."""
    start = 0
    while start < len(text):
        end = text.find(" ", start + 1)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end


def _fault(code: str) -> UpstreamError:
    known = code if code in UpstreamError.codes else "upstream_unavailable"
    return UpstreamError(known, "The script says that the upstream fails here.")


def _said(message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or "(nothing)"
    return "".join(part.text for part in message.content if isinstance(part, TextPart)) or "(no text)"
