"""What chains and graphs have in common, without a service: found by name, given their input, followed to their end.

Runnables of LangChain's own classes, none of which needs a model; named as operators do, `tests.test_runnables:...`.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from typing import Any, TypedDict

import msgspec
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableConfig,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.runnables.utils import AddableDict
from langgraph.graph import MessagesState, StateGraph
from pydantic import BaseModel, ValidationError

from providers import Item
from providers.langchain import Chains, Inside, Output, blocks
from providers.langchain_messages import Tally
from providers.runnables import (
    Intake,
    check,
    config_of,
    failure,
    find,
    refusal,
    translated,
    translated_blocking,
)
from providers.worker import Worker
from streaming.errors import Fault, RequestError, SettingsError, UpstreamError
from streaming.events import Events, Finish, Token, ToolCall, ToolCallDelta, ToolResult, Updates, Usage, Values
from streaming.request import Message, ProviderSettings, RunRequest, TextPart
from streaming.request import RunnableConfig as Config

from .asgi import run

Made = list[tuple[str, Any]]


# --- Found by name ---------------------------------------------------------------------------------------------------

echo = RunnableLambda(lambda text: f"You said {text!r}.")
number = 5
graph = StateGraph(MessagesState)
made: Made = []  # by factories: what they are called, and their thread


def note(name: str) -> Runnable[Any, Any]:
    made.append((name, threading.get_ident()))
    return echo


def function() -> Runnable[Any, Any]:
    return note("function")


async def coroutine() -> Runnable[Any, Any]:
    await asyncio.sleep(0)
    return note("coroutine")


@asynccontextmanager
async def context() -> AsyncIterator[Runnable[Any, Any]]:
    loop = asyncio.get_running_loop()
    yield note("context")
    assert asyncio.get_running_loop() is loop
    made.append(("left", threading.get_ident()))


def runner() -> Runnable[Any, Any]:
    """A function that has async things to do, and knows no better."""
    return asyncio.run(coroutine())


class Loud(RunnableLambda[Any, Any]):
    """A class is a factory as well."""

    def __init__(self) -> None:
        super().__init__(lambda text: note("class").invoke(text))
        note("class")


class Odd:
    def __call__(self) -> Runnable[Any, Any]:
        return note("callable")


odd = Odd()


@contextmanager
def synchronous() -> Iterator[Runnable[Any, Any]]:
    yield echo


def demanding(what: str) -> Runnable[Any, Any]:
    return echo


def raising() -> Runnable[Any, Any]:
    raise ConnectionError("no database")


async def raising_later() -> Runnable[Any, Any]:
    raise ConnectionError("no database either")


@asynccontextmanager
async def raising_within() -> AsyncIterator[Runnable[Any, Any]]:
    raise ConnectionError("no pool")
    yield echo


def leaving() -> Runnable[Any, Any]:
    raise SystemExit("a tool of the command line")


async def leaving_later() -> Runnable[Any, Any]:
    raise SystemExit("a tool of the command line")


def none() -> None:
    return None


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(2)
    yield worker
    run(worker.close())


def found(worker: Worker, **targets: str) -> dict[str, Any]:
    named = {name: f"tests.test_runnables:{target}" for name, target in targets.items()}
    return find(named, worker, Runnable, "a chain")


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("function", "function"),
        ("coroutine", "coroutine"),
        ("context", "context"),
        ("odd", "callable"),
        ("runner", "coroutine"),
    ],
)
def test_a_factory_is_called_once_and_not_in_the_thread_that_serves(worker: Worker, target: str, what: str) -> None:
    made.clear()
    assert found(worker, it=target) == {"it": echo}
    [(name, thread)] = made
    assert name == what
    assert thread != threading.get_ident()


def test_a_class_is_a_factory_and_a_runnable_is_none(worker: Worker) -> None:
    """A RunnableLambda can be called, and is a Runnable all the same."""
    runnables = found(worker, a="echo", b="Loud")
    assert runnables["a"] is echo
    assert isinstance(runnables["b"], Loud)


def test_a_context_is_left_when_the_worker_closes() -> None:
    async def test() -> None:
        worker = Worker(1)
        made.clear()
        await asyncio.to_thread(found, worker, it="context")
        assert [name for name, _ in made] == ["context"]
        await worker.close()
        (_, entered), (last, left) = made
        assert (last, left) == ("left", entered)

    run(test())


BAD = {
    "nowhere": "cannot import tests.test_runnables:nowhere: AttributeError: module 'tests.test_runnables' has no "
    "attribute 'nowhere'",
    "number": "tests.test_runnables:number is a int, not a chain",
    "none": "tests.test_runnables:none is a NoneType, not a chain",
    "graph": "tests.test_runnables:graph is a graph that is not compiled, not a chain",
    "synchronous": "tests.test_runnables:synchronous is a _GeneratorContextManager, not a chain",
    "demanding": "tests.test_runnables:demanding fails: TypeError: demanding() missing 1 required positional argument: "
    "'what'",
    "raising": "tests.test_runnables:raising fails: ConnectionError: no database",
    "raising_later": "tests.test_runnables:raising_later fails: ConnectionError: no database either",
    "raising_within": "tests.test_runnables:raising_within fails: ConnectionError: no pool",
    "leaving": "tests.test_runnables:leaving fails: SystemExit",
    "leaving_later": "tests.test_runnables:leaving_later fails: SystemExit",
}


@pytest.mark.parametrize(("target", "problem"), BAD.items(), ids=BAD)
def test_what_cannot_be_had_is_named_with_why(worker: Worker, target: str, problem: str) -> None:
    with pytest.raises(SettingsError) as raised:
        found(worker, it=target)
    assert raised.value.problems == (f"it: {problem}",)


def test_all_that_cannot_be_had_are_named_together(worker: Worker) -> None:
    targets = {"a": "number", "b": "echo", "c": "raising", "d": "graph"}
    with pytest.raises(SettingsError) as raised:
        found(worker, **targets)
    assert raised.value.problems == tuple(f"{name}: {BAD[targets[name]]}" for name in "acd")


def test_a_module_that_ends_the_process_on_import_is_named_as_well(
    worker: Worker, tmp_path: Any, monkeypatch: Any
) -> None:
    (tmp_path / "leaves_on_import.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError) as raised:
        find({"it": "leaves_on_import:x"}, worker, Runnable, "a chain")
    assert raised.value.problems == ("it: cannot import leaves_on_import:x: SystemExit: 0",)


# --- Given its input -------------------------------------------------------------------------------------------------


def takes_text(text: str) -> str:
    return text


def takes_table(table: dict[str, Any]) -> Any:
    return table


class Question(BaseModel):
    messages: list[Any]
    depth: int = 1


def takes_question(question: Question) -> Any:
    return question


ASKED = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye")]
LAST = [HumanMessage("Hi"), AIMessage("Hello"), HumanMessage("Bye")]
BY_MESSAGES = {
    "a prompt of messages": ChatPromptTemplate.from_messages([("system", "Be kind."), MessagesPlaceholder("messages")]),
    "a function of a model": RunnableLambda(takes_question),
}
BY_TEXT = {
    "a prompt": ChatPromptTemplate.from_template("Tell me of {topic}."),
    "a prompt for completion": PromptTemplate.from_template("Tell me of {topic}."),
    "a chain": ChatPromptTemplate.from_template("{topic}") | StrOutputParser(),
    "a lambda": RunnableLambda(lambda given: given),
    "a function of a table": RunnableLambda(takes_table),
    "a passthrough": RunnablePassthrough(),
    "a parallel": RunnableParallel(a=RunnableLambda(takes_text)),
}


@pytest.mark.parametrize("runnable", BY_MESSAGES.values(), ids=BY_MESSAGES)
def test_who_names_messages_gets_them_under_that_name(runnable: Runnable[Any, Any]) -> None:
    intake = Intake(runnable)
    assert intake(RunRequest(model="m", messages=ASKED)) == {"messages": LAST}
    assert intake(RunRequest(model="m", messages=ASKED[:1])) == {"messages": LAST[:1]}


@pytest.mark.parametrize("runnable", BY_TEXT.values(), ids=BY_TEXT)
def test_others_get_a_single_message_as_its_text(runnable: Runnable[Any, Any]) -> None:
    given = Intake(runnable)(RunRequest(model="m", messages=ASKED[:1]))
    assert given == "Hi"
    assert type(given) is not HumanMessage


def test_a_single_message_of_several_parts_of_text_is_their_text() -> None:
    parts = [TextPart("a"), TextPart("b")]
    assert Intake(echo)(RunRequest(model="m", messages=[Message("user", parts)])) == "ab"


def test_others_get_a_longer_conversation_as_messages() -> None:
    assert Intake(echo)(RunRequest(model="m", messages=ASKED)) == LAST
    [system, human] = Intake(echo)(RunRequest(model="m", messages=ASKED[:1], system="Be kind."))
    assert (system.type, system.content, human) == ("system", "Be kind.", HumanMessage("Hi"))


def test_who_takes_nothing_but_text_gets_the_last_message() -> None:
    intake = Intake(RunnableLambda(takes_text))
    assert intake(RunRequest(model="m", messages=ASKED)) == "Bye"


IMAGE = {"type": "image_url", "image_url": {"url": "https://a.example/cat.png"}}


def test_a_single_message_with_an_image_is_no_text() -> None:
    message = msgspec.convert({"role": "user", "content": [{"type": "text", "text": "Who?"}, IMAGE]}, Message)
    [given] = Intake(echo)(RunRequest(model="m", messages=[message]))
    assert (given.type, given.content) == ("human", [{"type": "text", "text": "Who?"}, IMAGE])


@pytest.mark.parametrize("own", [None, 0, "", {}, [], {"topic": "cats"}, "text"])
@pytest.mark.parametrize("runnable", [*BY_MESSAGES.values(), *BY_TEXT.values()])
def test_an_input_of_its_own_is_given_as_it_is(runnable: Runnable[Any, Any], own: Any) -> None:
    assert Intake(runnable)(RunRequest(model="m", messages=[], input=own)) == own


class Shapeless(RunnableLambda[Any, Any]):
    def get_input_jsonschema(self, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        raise NotImplementedError("it has no JSON schema")


class Unschemed(TypedDict):
    """pydantic makes no schema of such a field, nor of any of these before Python 3.12."""

    messages: list[Any]
    client: threading.Thread


def test_a_graphs_fields_are_known_where_they_have_no_json_schema() -> None:
    graph = StateGraph(Unschemed).add_node("node", lambda state: {}).add_edge("__start__", "node").compile()
    intake = Intake(graph)
    assert (intake.fields, intake(RunRequest(model="m", messages=ASKED[:1]))) == (
        ["messages", "client"],
        {"messages": LAST[:1]},
    )


def test_who_cannot_say_what_it_takes_gets_what_others_get() -> None:
    assert Intake(Shapeless(takes_text))(RunRequest(model="m", messages=ASKED[:1])) == "Hi"


def request(**fields: Any) -> RunRequest:
    return RunRequest(model="m", messages=ASKED[:1], **fields)


def test_what_a_request_says_of_its_config_is_handed_on_and_no_more() -> None:
    tally = Tally()
    assert config_of(request(), tally) == {"configurable": {}, "callbacks": [tally]}
    config = Config(
        configurable={"temperature": 0},
        tags=["a"],
        metadata={"user": 5},
        run_name="it",
        recursion_limit=7,
        max_concurrency=2,
    )
    assert config_of(request(config=config, thread_id="t1"), tally) == {
        "configurable": {"temperature": 0, "thread_id": "t1"},
        "tags": ["a"],
        "metadata": {"user": 5},
        "run_name": "it",
        "recursion_limit": 7,
        "max_concurrency": 2,
        "callbacks": [tally],
    }
    assert config.configurable == {"temperature": 0}


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({"include_names": ["a"]}, "include_names", "`include_names` chooses among `events`; ask for these."),
        ({"include_types": []}, "include_types", "`include_types` chooses among `events`; ask for these."),
        ({"include_tags": ["a"]}, "include_tags", "`include_tags` chooses among `events`; ask for these."),
        ({"events": True, "stream_mode": "values"}, "events", "Ask for `events` or a `stream_mode`, not both."),
        ({"config": Config({"__pregel_send": 1})}, "config", "`config.configurable` cannot set '__pregel_send'."),
        ({"config": Config({"thread_id": "t"})}, "config", "Send `thread_id` beside `config`, not in it."),
    ],
)
def test_what_means_nothing_or_reaches_too_far_is_refused(fields: dict[str, Any], field: str, text: str) -> None:
    with pytest.raises(RequestError) as raised:
        check(request(**fields))
    assert (raised.value.code, raised.value.field, raised.value.text) == ("invalid_request", field, text)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"events": True},
        {"events": True, "include_names": ["a"], "include_types": ["llm"], "include_tags": []},
        {"stream_mode": ["values"]},
        {"config": Config({"_one": 1, "a__b": 2})},
    ],
)
def test_all_else_is_let_through(fields: dict[str, Any]) -> None:
    check(request(**fields))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"resume": None}, "resume"),
        ({"thread_id": "t"}, "thread_id"),
        ({"stream_mode": "values"}, "stream_mode"),
        ({"context": {}}, "context"),
    ],
)
def test_a_chain_is_asked_for_nothing_of_a_graph(worker: Worker, fields: dict[str, Any], field: str) -> None:
    chains = Chains(ProviderSettings(options={"m": "tests.test_runnables:echo"}), worker)
    with pytest.raises(RequestError) as raised:
        chains.prepare(request(**fields))
    assert (raised.value.field, raised.value.text) == (field, f"`{field}` is for graphs; m is a chain.")


# --- Followed --------------------------------------------------------------------------------------------------------


def items(runnable: Runnable[Any, Any], given: Any = "x") -> list[Item]:
    """Follow a runnable as async work, or as work that blocks where it does."""
    output = Output("The chain 'it'")
    if blocks(runnable):
        with closing(translated_blocking(lambda: runnable.stream(given), output)) as batches:
            return [item for batch in batches for item in batch]

    async def follow() -> list[Item]:
        async with aclosing(translated(lambda: runnable.astream(given), output)) as batches:
            return [item async for batch in batches for item in batch]

    return run(follow())


def yields(*parts: Any) -> list[Runnable[Any, Any]]:
    """Runnables that stream `parts`: one that is asynchronous, one that blocks."""

    def make(given: Iterator[Any]) -> Iterator[Any]:
        for _ in given:
            yield from parts

    async def make_async(given: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for _ in given:
            for one in parts:
                yield one

    return [RunnableGenerator(make_async), RunnableGenerator(make)]


CALL = {"name": "f", "args": {}, "id": "call_1"}
PARTS: list[tuple[list[Any], list[Item]]] = [
    ([], []),
    (["a", "", "b"], [Token("a"), Token(""), Token("b")]),
    ([AIMessage("a").text], [Token("a")]),
    ([AIMessageChunk("a"), AIMessage("b", tool_calls=[CALL])], [Token("a"), Token("b"), ToolCall("call_1", "f", {})]),
    ([HumanMessage("a")], []),
    (
        [AIMessageChunk("", tool_call_chunks=[{"name": "f", "args": "{}", "id": "call_1", "index": 0}])],
        [ToolCallDelta(0, "{}", "call_1", "f"), ToolCall("call_1", "f", {})],
    ),
    ([AddableDict(a=1), AddableDict(b=(2,))], [Updates((), {"a": 1}), Updates((), {"b": [2]})]),
    ([{"a": 1}, {"a": 1, "b": {2}}], [Values((), {"a": 1}), Values((), {"a": 1, "b": [2]})]),
    ([None, 0, [], b"a"], [Values((), None), Values((), 0), Values((), []), Values((), "YQ==")]),
]


@pytest.mark.parametrize(("parts", "told"), PARTS)
def test_what_a_chain_yields_becomes_events(parts: list[Any], told: list[Item]) -> None:
    for runnable in yields(*parts):
        assert items(runnable) == [*told, Finish("stop")]


def test_what_goes_on_in_a_runnable_is_told_as_it_is() -> None:
    [runnable, _] = yields("a", "b")

    async def follow() -> list[Item]:
        opened = translated(lambda: runnable.astream_events("x", version="v2"), Inside("The chain 'it'"))
        async with aclosing(opened) as batches:
            return [item async for batch in batches for item in batch]

    *told, finish = run(follow())
    assert finish == Finish("stop")
    assert all(isinstance(one, Events) for one in told)
    assert [(one.ns, one.data["event"], one.data["data"]) for one in told] == [
        ((), "on_chain_start", {"input": "x"}),
        ((), "on_chain_stream", {"chunk": "a"}),
        ((), "on_chain_stream", {"chunk": "b"}),
        ((), "on_chain_end", {"output": "ab"}),
    ]


WORDS = "the words of sk-secret-1234567890"


class Answered(Exception):
    """As the vendors' SDKs raise what their API answers."""

    def __init__(self, status_code: Any) -> None:
        super().__init__(WORDS)
        self.status_code = status_code


FAILURES: list[tuple[Exception, str]] = [
    (ValueError(WORDS), "ValueError"),
    (KeyError(WORDS), "KeyError"),
    (ExceptionGroup(WORDS, [ValueError(WORDS)]), "ExceptionGroup"),
    (Answered(400), "The upstream rejected the request (HTTP 400)"),
    (Answered(401), "The upstream refused our credentials (HTTP 401)"),
    (Answered(403), "The upstream refused our credentials (HTTP 403)"),
    (Answered(404), "The upstream rejected the request (HTTP 404)"),
    (Answered(408), "The upstream is unavailable (HTTP 408)"),
    (Answered(429), "The upstream is rate limiting us (HTTP 429)"),
    (Answered(500), "The upstream is unavailable (HTTP 500)"),
    (Answered("500"), "Answered"),
    (Answered(None), "Answered"),
]


@pytest.mark.parametrize(("raised", "why"), FAILURES, ids=[why for _, why in FAILURES])
def test_a_chain_that_raises_has_failed_and_nobody_reads_the_words(
    caplog: pytest.LogCaptureFixture, raised: Exception, why: str
) -> None:

    def raiser(text: str) -> str:
        raise raised

    def raiser_later(text: str) -> Iterator[str]:
        yield "one"
        raise raised

    for runnable in (RunnableLambda(raiser), RunnableLambda(raiser_later), ASYNC | RunnableLambda(raiser)):
        with pytest.raises(UpstreamError) as fault:
            items(runnable)
        assert (fault.value.code, fault.value.text) == ("graph_failed", f"The chain 'it' failed: {why}.")
        assert fault.value.__cause__ is raised
    assert "The chain 'it' failed: " + type(raised).__name__ in caplog.text
    assert "secret" not in caplog.text


REFUSED: dict[str, tuple[Runnable[Any, Any], Any, str]] = {
    "a variable is missing": (
        BY_TEXT["a prompt"],
        {"subject": "cats"},
        "Input to ChatPromptTemplate is missing variables {'topic'}. Expected: ['topic'] Received: ['subject']",
    ),
    "no table for several variables": (
        ChatPromptTemplate.from_template("{a} {b}"),
        "cats",
        "Expected mapping type as input to ChatPromptTemplate. Received <class 'str'>.",
    ),
    "no messages": (
        BY_MESSAGES["a prompt of messages"],
        {"messages": "cats"},
        "variable messages should be a list of base messages, got cats of type <class 'str'>",
    ),
    "no roles": (
        BY_MESSAGES["a prompt of messages"],
        {"messages": [{"text": "cats"}]},
        "Message dict must contain 'role' and 'content' keys, got {'text': 'cats'}",
    ),
    "an unknown role": (
        BY_MESSAGES["a prompt of messages"],
        {"messages": [["bot", "cats"]]},
        "Unexpected message type: 'bot'. Use one of 'human', 'user', 'ai', 'assistant', ",
    ),
}


@pytest.mark.parametrize(("runnable", "given", "text"), REFUSED.values(), ids=REFUSED)
def test_an_input_that_langchain_refuses_is_refused_in_its_words(
    runnable: Runnable[Any, Any], given: Any, text: str
) -> None:
    with pytest.raises(RequestError) as raised:
        items(runnable, given)
    assert raised.value.code == "invalid_input"
    assert raised.value.text.startswith(f"The input was refused: {text}")
    assert "troubleshooting" not in raised.value.text


def test_a_model_of_pydantics_refuses_without_the_value() -> None:
    with pytest.raises(ValidationError) as raised:
        Question(messages=WORDS, depth="deep")
    told = refusal(raised.value)
    assert (told.code, told.text) == (
        "invalid_input",
        "The input was refused: messages: Input should be a valid list; depth: Input should be a valid integer, unable "
        "to parse string as an integer",
    )


def test_a_refusal_is_one_line_of_bounded_length_without_what_may_be_a_key() -> None:
    told = refusal(ValueError("got api_key=1234567890abcdef\nand " + "very " * 200))
    assert told.text.startswith("The input was refused: got [redacted] and very very")
    assert len(told.text) < 350
    assert refusal(ValueError()).text == "The input was refused: ValueError"


def test_a_failure_of_its_own_words_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert failure("The node 'x'", ValueError(WORDS)).text == "The node 'x' failed: ValueError."
    assert "secret" not in caplog.text


def test_a_fault_of_ours_is_passed_on_as_it_is() -> None:
    async def test(fault: Fault) -> None:
        async def open_() -> AsyncIterator[Any]:
            yield "a"
            raise fault

        with pytest.raises(Fault) as raised:
            async for _ in translated(open_, Output("it")):
                pass
        assert raised.value is fault

    run(test(UpstreamError("upstream_auth", "The upstream refused our credentials.")))
    run(test(RequestError("invalid_input", "no")))


def test_what_who_was_stopped_raises_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """It comes to pieces, and nobody is there."""

    async def test() -> None:
        output = Output("The chain 'it'")

        async def open_() -> AsyncIterator[Any]:
            yield "a"
            raise ValueError(WORDS)

        batches = translated(open_, output)
        assert await anext(batches) == [Token("a")]
        output.tally.stop()
        with pytest.raises(UpstreamError, match=r"The chain 'it' was stopped\."):
            await anext(batches)

    run(test())
    assert caplog.text == ""


class Source:
    """A stream of a runnable, and who closes it."""

    def __init__(self) -> None:
        self.closed: list[Any] = []

    def endless(self) -> Iterator[str]:
        try:
            while True:
                yield "word"
        finally:
            self.closed.append(threading.get_ident())

    async def endless_async(self) -> AsyncIterator[str]:
        try:
            while True:
                yield "word"
        finally:
            await asyncio.sleep(0)
            self.closed.append(asyncio.current_task())


def test_the_stream_of_a_runnable_is_closed_with_who_follows_it_in_the_same_task() -> None:
    source = Source()

    async def test() -> None:
        async with aclosing(translated(source.endless_async, Output("it"))) as batches:
            assert await anext(batches) == [Token("word")]
        assert source.closed == [asyncio.current_task()]

    run(test())
    source.closed.clear()
    kept = source.endless()  # else it would be closed as nobody holds it any more
    with closing(translated_blocking(lambda: kept, Output("it"))) as batches:
        assert next(batches) == [Token("word")]
    assert source.closed == [threading.get_ident()]


def test_a_stream_that_cannot_be_closed_or_opened_is_none_the_worse() -> None:
    def refuses() -> Any:
        raise ValueError(WORDS)

    assert [*translated_blocking(lambda: iter(["a"]), Output("it"))] == [[Token("a")], [Finish("stop")]]
    for follow in (lambda: [*translated_blocking(refuses, Output("it"))], lambda: run(drained(refuses))):
        with pytest.raises(UpstreamError, match=r"it failed: ValueError\."):
            follow()


async def drained(open_: Callable[[], Any]) -> None:
    async for _ in translated(open_, Output("it")):
        pass


def test_news_of_usage_come_behind_what_was_said_and_the_sum_with_the_end() -> None:
    output = Output("it")

    def open_() -> Iterator[str]:
        yield "a"
        output.tally._seen.append({"input_tokens": 3, "output_tokens": 1})
        yield "b"
        yield "c"
        output.tally._seen.append({"input_tokens": 1, "output_tokens": 1})

    assert [*translated_blocking(open_, output)] == [
        [Token("a")],
        [Token("b"), Usage(3, 1)],
        [Token("c")],
        [Finish("stop", Usage(4, 2))],
    ]


def test_tool_results_of_a_chain_are_told() -> None:
    for runnable in yields(ToolMessage("4", tool_call_id="c", name="f")):
        assert items(runnable) == [ToolResult("c", "f", "4"), Finish("stop")]


# --- Where a chain runs ----------------------------------------------------------------------------------------------


class OnlyStreams(Runnable[Any, str]):
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> str:  # noqa: A002  # its name
        return "".join(self.stream(input))

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[str]:  # noqa: A002
        yield from ("one ", "two ")


class Both(OnlyStreams):
    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[str]:  # noqa: A002
        yield "async"


class OnlyInvokes(Runnable[Any, str]):
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> str:  # noqa: A002  # its name
        return "whole"


def generator(given: str) -> Iterator[str]:
    yield from ("one ", "two ")


async def async_generator(given: str) -> AsyncIterator[str]:
    yield "async"


async def async_function(given: str) -> str:
    return "async"


ASYNC, BLOCKING = yields("one ", "two ")
ONLY = OnlyStreams()
IN_A_THREAD: dict[str, Runnable[Any, Any]] = {
    "a class that only streams": ONLY,
    "a generator of chunks": BLOCKING,
    "a lambda that is a generator": RunnableLambda(generator),
    "a step of a sequence": echo | ONLY,
    "the first of a sequence": ONLY | echo,
    "a sequence in a sequence": echo | (echo | ONLY),
    "bound": ONLY.with_config(tags=["a"]),
    "bound twice": ONLY.with_config(tags=["a"]).with_retry(),
    "a branch of a parallel": RunnableParallel(a=echo, b=ONLY),
    "beside what is assigned": RunnablePassthrough.assign(a=BLOCKING),
    "with a fallback": ONLY.with_fallbacks([echo]),
    "the fallback": echo.with_fallbacks([BLOCKING]),
    "one of several ways": RunnableBranch((lambda given: True, ONLY), echo),
    "for each of many": BLOCKING.map(),
}
IN_THE_LOOP: dict[str, Runnable[Any, Any]] = {
    "a function": echo,
    "an async function": RunnableLambda(async_function),
    "an async generator": RunnableLambda(async_generator),
    "a generator of chunks": ASYNC,
    "a class that can do both": Both(),
    "a class that does neither": OnlyInvokes(),
    "a prompt": BY_TEXT["a prompt"],
    "a sequence": echo | ASYNC,
    "a parallel": RunnableParallel(a=echo, b=ASYNC),
    "with what cannot but be async": ONLY | ASYNC,
}


@pytest.mark.parametrize("chain", IN_A_THREAD.values(), ids=IN_A_THREAD)
def test_a_chain_that_streams_only_synchronously_runs_in_a_thread(chain: Runnable[Any, Any]) -> None:
    assert blocks(chain)


@pytest.mark.parametrize("chain", IN_THE_LOOP.values(), ids=IN_THE_LOOP)
def test_any_other_chain_runs_in_the_loop(chain: Runnable[Any, Any]) -> None:
    assert not blocks(chain)


@pytest.mark.parametrize("name", ["a class that only streams", "a generator of chunks", "a step of a sequence"])
def test_in_a_thread_it_streams_word_by_word(name: str) -> None:
    assert items(IN_A_THREAD[name]) == [Token("one "), Token("two "), Finish("stop")]


def test_messages_in_a_dict_are_told_as_what_they_are_in() -> None:
    [update] = Output("it").feed(AddableDict(answer=AIMessage("a", id="1")))
    assert isinstance(update, Updates)
    assert (update.data["answer"]["type"], update.data["answer"]["content"]) == ("ai", "a")
