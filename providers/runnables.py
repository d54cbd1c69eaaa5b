"""What chains and graphs have in common: how they are found, what they are given, how their stream is followed.

Not a provider: langchain.py and langgraph.py are.
"""

import asyncio
import inspect
import logging
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from copy import deepcopy
from functools import partial
from typing import Any, cast, get_type_hints

import msgspec
from langchain_core.runnables import Runnable, RunnableConfig
from msgspec import UNSET

from streaming.errors import Fault, RequestError, SettingsError, UpstreamError
from streaming.events import Finish, FinishReason
from streaming.request import Emit, RunRequest

from . import Item, load_target, scrub, upstream_error
from .langchain_messages import Messages, Tally, conversation
from .pool import BrokenOff
from .worker import Batch, Worker

logger = logging.getLogger("sidestream")
FRAMES = 30  # of a traceback that are logged, the innermost
Places = set[tuple[Any, str | None]]


def find(targets: Mapping[str, str], worker: Worker, wanted: type[Any], what: str) -> dict[str, Any]:
    """Return what is `wanted`, by name. Raises SettingsError that names each one that cannot be had."""
    found, problems = {}, []
    for name, target in targets.items():
        try:
            found[name] = worker.call(_made(load_target(target), worker))
            if not isinstance(found[name], wanted):
                problems.append(f"{name}: {target} is {_kind(found[name])}, not {what}")
        except SettingsError as exc:
            problems += [f"{name}: {problem}" for problem in exc.problems]
        except (BrokenOff, SystemExit) as exc:
            problems.append(f"{name}: {target} fails: {getattr(exc, 'why', 'SystemExit')}")
        except Exception as exc:  # whatever a factory does
            problems.append(f"{name}: {target} fails: {type(exc).__name__}: {exc}")
    if problems:
        raise SettingsError(*problems)
    return found


async def _made(target: Any, worker: Worker) -> Any:
    """Call a factory: a function, sync or async, or one that returns a context, which is left at the end."""
    if isinstance(target, Runnable) or not callable(target):
        return target
    made = await asyncio.to_thread(target)
    if inspect.isawaitable(made):
        made = await made
    return await worker.enter(made) if isinstance(made, AbstractAsyncContextManager) else made


def _kind(value: Any) -> str:
    return "a graph that is not compiled" if hasattr(value, "compile") else f"a {type(value).__name__}"


class Intake:
    """What a runnable is given: the request's `input`, else its conversation as the runnable says that it takes it."""

    def __init__(self, runnable: Runnable[Any, Any]) -> None:
        try:
            schema = runnable.get_input_jsonschema()
        except Exception:  # not every type has one; before Python 3.12, none of `typing.TypedDict`
            schema = {"properties": _annotated(runnable)}
        self.fields = list(schema.get("properties", {}))
        self.titles = {title} if (title := schema.get("title")) else set()
        self._takes_text = schema.get("type") == "string"

    def __call__(self, request: RunRequest) -> Any:
        if request.input is not UNSET:
            return deepcopy(request.input)  # it may be changed, and the run looks at its own again
        messages = conversation(request)
        if "messages" in self.fields:
            return {**deepcopy(request.beside), "messages": messages}
        # A single one as its text: any prompt and any model takes that.
        is_text = len(messages) == 1 and all(block["type"] == "text" for block in messages[0].content_blocks)
        return messages[-1].text if self._takes_text or is_text else messages


def _annotated(runnable: Runnable[Any, Any]) -> Mapping[str, Any]:
    """Return the fields of a graph's input by the names that its class has for them, if it is a graph with one."""
    schema = getattr(getattr(runnable, "builder", None), "input_schema", None)
    try:
        return get_type_hints(schema)
    except (TypeError, NameError):  # it is no class, or names what is not there
        return {}


class Translation:
    """What a runnable streams -> events. One instance a run; `what` names the runnable to people."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.tally = Tally()
        self.messages = Messages()

    def feed(self, part: Any) -> Iterator[Item]:
        """Translate one thing that was streamed."""
        raise NotImplementedError

    def end(self) -> Iterator[Item]:
        """Say what is left to say when the runnable has ended well."""
        yield from self.messages.end()
        yield Finish(self.reason, self.tally.usage)

    @property
    def reason(self) -> FinishReason:
        return self.tally.reason

    def fault(self, exc: Exception) -> Fault:
        """Translate what the runnable has raised: the input was refused, or it failed."""
        if self.tally.stopped:  # it comes to pieces, and nobody is there
            return UpstreamError("graph_failed", f"{self.what} was stopped.")
        if isinstance(exc, Fault) and not isinstance(exc, BrokenOff):
            return exc
        return refusal(exc) if self.refuses(exc) else failure(self.failed_where(exc), exc)

    def refuses(self, exc: Exception) -> bool:
        """Tell whether `exc` says that the input is wrong."""
        return raised_in(exc, LOOKING)

    def failed_where(self, exc: Exception) -> str:
        """Name what has raised `exc`."""
        return self.what


def events_of(
    runnable: Runnable[Any, Any],
    input_of: Callable[[RunRequest], Any],
    request: RunRequest,
    tally: Tally,
    **options: Any,
) -> AsyncIterator[Any]:
    """Open the stream of what goes on in a runnable."""
    return runnable.astream_events(input_of(request), config_of(request, tally), version="v2", **options)


def followed(
    worker: Worker,
    open_: Callable[[], Any],
    translation: Translation,
    ended: Callable[[], object] = lambda: None,
    *,
    blocks: bool = False,
) -> AsyncGenerator[Batch]:
    """Follow what `open_` opens, where it can block; see Worker.stream."""
    if blocks:
        made = partial(translated_blocking, open_, translation)
        return worker.stream_blocking(made, ended, translation.tally.stop)
    return worker.stream(partial(translated, open_, translation), ended, translation.tally.stop)


async def tell(stream: AsyncGenerator[Batch], emit: Emit) -> None:
    """Emit what is followed; it is closed with this."""
    async with aclosing(stream) as batches:
        async for batch in batches:
            emit(batch)


async def translated(open_: Callable[[], AsyncIterator[Any]], translation: Translation) -> AsyncGenerator[Batch]:
    """Follow a stream; it is closed with this, in the same task."""
    source: Any = None
    try:
        source = open_()
        async for part in source:
            if batch := [*translation.feed(part)]:
                yield batch
    except Exception as exc:
        raise translation.fault(exc) from exc
    finally:
        if hasattr(source, "aclose"):
            await source.aclose()
    yield [*translation.end()]


def translated_blocking(open_: Callable[[], Iterator[Any]], translation: Translation) -> Generator[Batch]:
    """The same for a stream that blocks."""
    source: Any = None
    try:
        source = open_()
        for part in source:
            if batch := [*translation.feed(part)]:
                yield batch
    except Exception as exc:
        raise translation.fault(exc) from exc
    finally:
        if hasattr(source, "close"):
            source.close()
    yield [*translation.end()]


def thread_of(request: RunRequest) -> RunnableConfig:
    """Where a checkpointer keeps the request's thread."""
    return {"configurable": {"thread_id": request.kept_as, "checkpoint_ns": ""}}


def config_of(request: RunRequest, tally: Tally) -> RunnableConfig:
    """The request's `config`, in LangChain's words, with the tally among its callbacks."""
    config: dict[str, Any] = msgspec.to_builtins(request.config) if request.config else {}
    configurable = {**config.get("configurable", {})}
    if request.kept_as is not None:
        configurable["thread_id"] = request.kept_as
    return cast(RunnableConfig, {**config, "configurable": configurable, "callbacks": [tally]})


FOR_EVENTS = ("include_names", "include_types", "include_tags")


def check(request: RunRequest) -> None:
    """Raise RequestError where the request says what means nothing, or reaches for what is LangGraph's own."""
    if not request.events and (alone := request.given(FOR_EVENTS)):
        raise RequestError("invalid_request", f"`{alone[0]}` chooses among `events`; ask for these.", field=alone[0])
    if request.events and request.stream_mode:
        raise RequestError("invalid_request", "Ask for `events` or a `stream_mode`, not both.", field="events")
    configurable = request.config.configurable if request.config else {}
    if own := next((name for name in configurable if name.startswith("__")), None):
        raise RequestError("invalid_request", f"`config.configurable` cannot set {own[:100]!r}.", field="config")
    if "thread_id" in configurable:
        raise RequestError("invalid_request", "Send `thread_id` beside `config`, not in it.", field="config")


# Where LangChain looks at an input: what is raised there says what is wrong with that.
LOOKING: Places = {
    ("langchain_core.prompts.base", None),
    ("langchain_core.prompts.chat", None),
    ("langchain_core.messages.utils", None),
    ("langchain_core.language_models.chat_models", "_convert_input"),
    ("langchain_core.language_models.llms", "_convert_input"),
}


def raised_by(exc: Exception, modules: tuple[str, ...]) -> bool:
    """Tell whether `exc` was raised in one of the `modules`, named by how they begin; its words are theirs then."""
    *_, (frame, _) = traceback.walk_tb(exc.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith(modules)


def raised_in(exc: Exception, places: Places) -> bool:
    """Tell whether `exc` was raised in one of the `places`: a module, or a function of one."""
    *_, (frame, _) = traceback.walk_tb(exc.__traceback__)
    module, function = frame.f_globals.get("__name__"), frame.f_code.co_name
    return (module, None) in places or (module, function) in places


def refusal(exc: Exception) -> RequestError:
    """An input that was refused, in the refusing one's own words; of pydantic's without the value."""
    errors = getattr(exc, "errors", None)
    if callable(errors):
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in errors())
    else:
        told = str(exc.args[0] if exc.args else type(exc).__name__).partition("\nFor troubleshooting")[0]
    return RequestError("invalid_input", f"The input was refused: {scrub(told)}")


def failure(what: str, exc: Exception) -> UpstreamError:
    """`what` has raised: tell its type, or what its own upstream answered; its words may hold a prompt or a key."""
    status = getattr(exc, "status_code", None)  # as both vendors' SDKs have it
    why = exc.why if isinstance(exc, BrokenOff) else type(exc).__name__
    if isinstance(status, int):
        why = upstream_error(status=status).text[:-1]
    where = "".join(traceback.format_tb(exc.__traceback__, limit=-FRAMES))
    logger.warning("%s failed: %s\n%s", what, type(exc).__name__, where)
    return UpstreamError("graph_failed", f"{what} failed: {why}.")
