"""The shape of the house: who may import whom, read off the code as text. Imports inside functions count too."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .conftest import ROOT

PACKAGES = ("providers", "streaming", "wires")
# What of ours a package may import beside itself. service.py puts the house together and may import anything.
ALLOWED = {
    "streaming": (),
    "wires": ("streaming",),
    "providers": ("streaming.events", "streaming.errors", "streaming.request"),
}
# What providers share, beside the package itself; not providers.
SHARED = {
    "providers.connection",
    "providers.endpoint",
    "providers.langchain_messages",
    "providers.plain",
    "providers.pool",
    "providers.runnables",
    "providers.worker",
}
# Who owns a dependency: nobody else imports it.
OWNERS = {
    "aiohappyeyeballs": {"providers.connection"},
    "anthropic": {"providers.anthropic"},
    "httptools": {"providers.connection", "wires.server"},
    "httpx2": {"providers.endpoint", "providers.http"},
    "hiredis": {"streaming.redis_link"},
    "itsdangerous": {"wires.resource"},
    "langchain_core": {"providers.langchain", "providers.langchain_messages", "providers.runnables"},
    "langgraph": {"providers.langgraph"},
    "openai": {"providers.openai", "providers.openai_responses"},
    "opentelemetry": {"streaming.tracing"},
    "prometheus_client": {"wires.operations"},
    "redis": {"streaming.redis_link"},
    "sse_starlette": {"wires.sse"},
    "jwt": {"wires.tokens"},
    "uvicorn": {"command", "wires.server", "wires.socket_server"},
    "xllamacpp": {"providers.local"},
}


WIRES = {name for name, owners in OWNERS.items() if any(owner.startswith("wires.") for owner in owners)}
WIRES |= {"msgspec", "starlette"}


class Import(NamedTuple):
    importer: str
    target: str
    line: int

    @property
    def package(self) -> str:
        return self.importer.partition(".")[0]

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def modules() -> dict[str, ast.Module]:
    paths = [
        ROOT / "service.py",
        ROOT / "foreign.py",
        ROOT / "intake.py",
        ROOT / "command.py",
        *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))),
    ]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return {name: ast.parse(path.read_text(encoding="utf-8")) for path, name in names.items()}


MODULES = modules()


def imports_of(name: str, tree: ast.Module) -> Iterator[Import]:
    """Yield each module that is imported, at whatever depth; `from a import b` names a.b where that is a module."""
    is_package = name in PACKAGES
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(name, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield Import(name, whole if whole in MODULES else base, node.lineno)


IMPORTS = [found for name, tree in MODULES.items() for found in imports_of(name, tree)]
OURS = [found for found in IMPORTS if found.top in (*PACKAGES, "service", "foreign", "intake")]


def wrong(found: list[Import]) -> list[str]:
    return [str(one) for one in found]


def is_under(target: str, parents: tuple[str, ...]) -> bool:
    return any(target == parent or target.startswith(f"{parent}.") for parent in parents)


def test_the_house_is_read_whole() -> None:
    """The other tests here would pass over an empty house."""
    assert {"service", "streaming.run", "providers.openai", "wires.sse", "providers", "streaming", "wires"} <= set(
        MODULES
    )
    assert Import("streaming.log", "streaming.events", 1)._replace(line=0) in [one._replace(line=0) for one in OURS]
    assert Import("providers.local", "xllamacpp", 0) in [one._replace(line=0) for one in IMPORTS]  # inside a function


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_the_right_way(package: str) -> None:
    foreign = [one for one in OURS if one.package == package and one.top != package]
    assert wrong([one for one in foreign if not is_under(one.target, ALLOWED[package])]) == []


def test_a_provider_imports_no_other_provider() -> None:
    """They share the `providers` package itself and a few modules; registry.py finds them by name."""
    among = [one for one in OURS if one.package == "providers" and one.top == "providers"]
    assert wrong([one for one in among if one.target not in {"providers", *SHARED}]) == []
    assert {one.target for one in among} == {"providers", *SHARED}


def test_the_service_is_imported_by_its_command_alone_and_the_intake_by_the_service() -> None:
    assert {one.importer for one in OURS if one.top == "service"} == {"command"}
    assert {one.importer for one in OURS if one.top == "intake"} == {"service", "foreign"}
    assert {one.importer for one in OURS if one.top == "foreign"} == {"service"}


@pytest.mark.parametrize("dependency", OWNERS)
def test_only_the_module_that_owns_a_dependency_imports_it(dependency: str) -> None:
    assert {one.importer for one in IMPORTS if one.top == dependency} == OWNERS[dependency]


@pytest.mark.parametrize(
    ("package", "foreign"),
    [
        ("streaming", {"hiredis", "msgspec", "opentelemetry", "redis"}),
        ("wires", WIRES),
        (
            "providers",
            {"msgspec", *OWNERS}
            - {"itsdangerous", "jwt", "opentelemetry", "prometheus_client", "sse_starlette", "uvicorn"}
            - {"hiredis", "redis"},
        ),
        ("service", {"starlette"}),
        ("foreign", {"starlette"}),
        ("intake", {"msgspec", "starlette"}),
        ("command", {"uvicorn"}),
    ],
)
def test_a_package_knows_no_foreign_library_but_its_own(package: str, foreign: set[str]) -> None:
    ours = {*PACKAGES, "service", "foreign", "intake"}
    used = {one.top for one in IMPORTS if one.package == package} - {*ours, *sys.stdlib_module_names}
    assert used == foreign


def test_the_service_imports_no_sdk_with_it() -> None:
    """A cold start pays only for what is configured."""
    reached, new = set(), {"service"}
    while new:
        reached |= new
        new = {one.target for one in OURS if one.importer in new} - reached
    sdks = {"openai", "anthropic", "httpx2", "xllamacpp", "langchain_core", "langgraph"}
    assert wrong([one for one in IMPORTS if one.importer in reached and one.top in sdks]) == []


def test_nothing_imports_itself_in_a_ring() -> None:
    arrows = {name: {one.target for one in OURS if one.importer == name and one.target != name} for name in MODULES}
    while leaves := [name for name, targets in arrows.items() if not targets & set(arrows)]:
        for name in leaves:
            del arrows[name]
    assert arrows == {}


def test_every_module_opens_with_a_docstring() -> None:
    assert [name for name, tree in MODULES.items() if not ast.get_docstring(tree)] == []


def test_every_test_module_opens_with_a_docstring() -> None:
    tests = sorted((ROOT / "tests").glob("*.py"))
    silent = [path.name for path in tests if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.name)
def test_no_test_is_skipped_or_mocked(path: Path) -> None:
    words = r"mark\.skip|pytest\.skip\(|importorskip|mark\.xfail|unittest\.mock|mocker\b"
    if path.name != Path(__file__).name:
        assert re.findall(words, path.read_text(encoding="utf-8")) == []
