"""Anything as plain JSON: what graphs and chains hold, as their authors please, and whatever its own code does.

Of any value at all: it never raises, what comes of it is of JSON's own types and no others, it is the same again
behind a wire, and nothing of the original is in it.
"""

import enum
import json
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel, ConfigDict, PrivateAttr, SecretStr

from providers.plain import DEPTH, MOST, plain
from wires.chat import json_line

SO_ON = "(and so on)"


class Color(enum.Enum):
    RED = "red"
    BOTH = ("red", ("green", 2))


class Word(enum.StrEnum):
    YES = "yes"


class Number(enum.IntEnum):
    ONE = 1


Pair = namedtuple("Pair", "left right")  # as people write them


@dataclass
class Point:
    x: int
    there: Any = None
    hidden: str = field(default="shown", repr=False)


@dataclass(frozen=True, slots=True)
class Slim:
    x: Any


@dataclass(slots=True)
class Forgetful:
    x: int
    y: int = field(init=False)


class Person(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str
    born: date | None = None
    key: SecretStr = SecretStr("sesame")
    _own: str = PrivateAttr("nobody's business")


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Count(int):
    def __str__(self) -> str:
        return "something else"


class Ratio(float):
    def __repr__(self) -> str:
        return "something else"


class Row(dict[str, Any]):
    pass


class Named:
    def __str__(self) -> str:
        return "a name"


class Stamp(datetime):
    """As pandas and pendulum have them."""


def generator() -> Iterator[int]:
    raise AssertionError("it was begun")
    yield 1


VALUES: dict[str, tuple[Any, Any]] = {
    "nothing": (None, None),
    "true": (True, True),
    "a text": ("é\u2028\0", "é\u2028\0"),
    "half a character": ("a\ud83d", "a\ud83d"),
    "a text of a class": (Text("a"), "a"),
    "a word of an enum": (Word.YES, "yes"),
    "zero": (0, 0),
    "minus zero": (-0.0, 0.0),
    "the least number": (-(2**63), -(2**63)),
    "less than that": (-(2**63) - 1, "-9223372036854775809"),
    "the largest number": (2**64 - 1, 2**64 - 1),
    "more than that": (2**64, "18446744073709551616"),
    "a number of a class": (Count(5), 5),
    "a large number of a class": (Count(2**64), "18446744073709551616"),
    "a number of an enum": (Number.ONE, 1),
    "a fraction": (0.5, 0.5),
    "a fraction of a class": (Ratio(0.5), 0.5),
    "no number": (float("nan"), "nan"),
    "infinity": (-float("inf"), "-inf"),
    "a complex number": (1j, "1j"),
    "decimals": ([Decimal("1.50"), Fraction(1, 3)], ["1.50", "1/3"]),
    "bytes": ([b"\0\xff", bytearray(b"a")], ["AP8=", "YQ=="]),
    "times": (
        [date(2026, 1, 2), time(3, 4), datetime(2026, 1, 2, 3, 4, tzinfo=UTC), timedelta(hours=1)],
        ["2026-01-02", "03:04:00", "2026-01-02T03:04:00Z", "PT3600S"],
    ),
    "a time of a class": (Stamp(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
    "an id": (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "a path": (PurePosixPath("/a/b"), "/a/b"),
    "a member": (Color.RED, "red"),
    "a member that holds more": (Color.BOTH, ["red", ["green", 2]]),
    "a tuple": ((1, (2,)), [1, [2]]),
    "a named tuple": (Pair(1, Pair(2, 3)), [1, [2, 3]]),
    "sets": ([{1}, frozenset({"a"})], [[1], ["a"]]),
    "mappings": (
        [OrderedDict(a=1), defaultdict(list, b=[2]), UserDict(c=3), Row(d=4), MappingProxyType({})],
        [{"a": 1}, {"b": [2]}, {"c": 3}, {"d": 4}, {}],
    ),
    "keys that are no text": (
        {1: "a", None: "b", 1.5: "c", (1, (2,)): "d", Word.YES: "e", Color.RED: "f", b"\0": "g", Text("t"): "h"},
        {"1": "a", "None": "b", "1.5": "c", "[1, [2]]": "d", "yes": "e", "red": "f", "AA==": "g", "t": "h"},
    ),
    "keys that become one": ({1: "a", "1": "b"}, {"1": "b"}),
    "a dataclass": (
        Point(1, Point(2)),
        {"x": 1, "there": {"x": 2, "there": None, "hidden": "shown"}, "hidden": "shown"},
    ),
    "a dataclass with slots": (Slim(Slim(1)), {"x": {"x": 1}}),
    "a pydantic model": (
        Person(name="Ann", born=date(2000, 1, 2), age=5, of=Named()),
        {"name": "Ann", "born": "2000-01-02", "key": "**********", "age": 5, "of": "a name"},
    ),
    "a document": (
        Document("text", metadata={"n": 1}),
        {"id": None, "metadata": {"n": 1}, "page_content": "text", "type": "Document"},
    ),
    "an exception": (ValueError("sk-secret-1234567890"), "ValueError"),
    "exceptions": (ExceptionGroup("secret", [ValueError("secret")]), "ExceptionGroup"),
    "a class": (Named, "Named"),
    "a class of dataclasses": (Point, "Point"),
    "a class of models": (Person, "Person"),
    "anything else": (Named(), "a name"),
}


@pytest.mark.parametrize(("value", "expected"), VALUES.values(), ids=VALUES)
def test_a_value_as_json(value: Any, expected: Any) -> None:
    told = plain(value)
    assert told == expected
    assert is_plain(told)
    assert behind_the_wire(told) == told


def test_a_message_is_told_whole() -> None:
    call = {"name": "f", "args": {"a": (1, 2)}, "id": "c1"}
    told = plain({"messages": (HumanMessage("hi", id="1"), AIMessage("", id="2", tool_calls=[call]))})
    human, answer = told["messages"]
    assert (human["type"], human["content"], human["id"]) == ("human", "hi", "1")
    assert answer["tool_calls"] == [{**call, "args": {"a": [1, 2]}, "type": "tool_call"}]


def test_a_generator_is_not_begun() -> None:
    assert plain([generator()])[0].startswith("<generator object")


def test_of_exceptions_in_a_container_nothing_but_the_type_is_told() -> None:
    secret = ValueError("sk-secret-1234567890")
    for holder in ([secret], {"e": (secret,)}, Point(1, secret), Slim([secret]), deque([secret]), {secret: 1}):
        assert "secret" not in str(plain(holder))


def test_a_ring_is_told_once_around() -> None:
    ring: list[Any] = []
    ring.append(ring)
    assert plain(ring) == [SO_ON]
    table: dict[str, Any] = {"a": 1}
    table["itself"] = [table]
    assert plain(table) == {"a": 1, "itself": [SO_ON]}
    point = Point(1)
    point.there = point
    assert plain(point) == {"x": 1, "there": SO_ON, "hidden": "shown"}


def test_what_is_shared_is_no_ring() -> None:
    shared = {"a": [1]}
    told = plain([shared, (shared, shared)])
    assert told == [{"a": [1]}, [{"a": [1]}, {"a": [1]}]]
    told[0]["a"].append(2)
    assert told[1] == [{"a": [1]}, {"a": [1]}]


@pytest.mark.parametrize(
    "hold", [lambda inner: [inner], lambda inner: {"a": inner}, Slim, lambda inner: Point(1, inner)]
)
def test_what_has_no_bottom_is_told_as_deep_as_anybody_looks(hold: Callable[[Any], Any]) -> None:
    value: Any = "bottom"
    for _ in range(10 * DEPTH):
        value = hold(value)
    told = plain(value)
    assert behind_the_wire(told) == told
    levels = 0
    while told != SO_ON:
        told = told[0] if isinstance(told, list) else told.get("a", told.get("there", told.get("x")))
        levels += 1
    assert levels == DEPTH


# --- Code of any type's own, which does what it likes ----------------------------------------------------------------


def does(**methods: Any) -> type:
    """Make a class of these methods; each that is an exception is raised by it."""

    def raiser(exc: Exception) -> Callable[..., Any]:
        def method(*args: Any, **kwargs: Any) -> Any:
            raise exc

        return method

    made = {name: raiser(act) if isinstance(act, Exception) else act for name, act in methods.items()}
    return type("Hostile", (made.pop("of", object),), made)


class Endless:
    """Has every attribute, and each is like it."""

    def __getattr__(self, name: str) -> "Endless":
        return Endless()

    def __call__(self, *args: Any, **kwargs: Any) -> "Endless":
        return Endless()


class Nameless(type):
    @property
    def __name__(cls) -> Any:  # type: ignore[override]  # what the test is about
        return object()


class NamelessThing(metaclass=Nameless):
    def __str__(self) -> str:
        raise RuntimeError("no text either")


class Lawless(Mapping[Any, Any]):
    """A mapping that holds none of its promises."""

    def __getitem__(self, key: Any) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[Any]:
        return iter(["a", "b"])

    def __len__(self) -> int:
        return -1


BOOM = RuntimeError("boom")
HOSTILE: dict[str, Callable[[], Any]] = {
    "no text": lambda: does(__str__=BOOM)(),
    "a text that is none": lambda: does(__str__=lambda self: 5)(),
    "a text of a class": lambda: does(__str__=lambda self: Text("a"))(),
    "no class": lambda: does(__class__=property(does(__call__=BOOM)()))(),
    "the class of a text": lambda: does(__class__=property(lambda self: str))(),
    "the class of a number": lambda: does(__class__=property(lambda self: int))(),
    "the class of a fraction": lambda: does(__class__=property(lambda self: float))(),
    "the class of a list": lambda: does(__class__=property(lambda self: list))(),
    "the class of a mapping": lambda: does(__class__=property(lambda self: dict))(),
    "the class of a class": lambda: does(__class__=property(lambda self: type))(),
    "the class of an enum": lambda: does(__class__=property(lambda self: enum.Enum))(),
    "the class of a moment": lambda: does(__class__=property(lambda self: datetime))(),
    "no attributes": lambda: does(__getattr__=BOOM)(),
    "no attributes at all": lambda: does(__getattribute__=BOOM)(),
    "every attribute": Endless,
    "a dump that raises": lambda: does(model_dump=BOOM)(),
    "a dump that is itself": lambda: does(model_dump=lambda self: self)(),
    "a dump that holds itself": lambda: does(model_dump=lambda self: {"a": [self]})(),
    "a dump that never ends": lambda: does(model_dump=lambda self: [type(self)()])(),
    "a dump that is no method": lambda: does(model_dump=5)(),
    "a list that is not read": lambda: does(of=list, __iter__=BOOM)([1]),
    "a table that is not read": lambda: does(of=dict, items=BOOM)(a=1),
    "a table of something else": lambda: does(of=dict, items=lambda self: [1, 2])(a=1),
    "a mapping that lies": Lawless,
    "a key without a text": lambda: {does(__str__=BOOM, __hash__=lambda self: 1)(): 1},
    "a number that is not compared": lambda: does(of=int, __le__=BOOM, __ge__=BOOM, __lt__=BOOM, __gt__=BOOM)(5),
    "a number that is none": lambda: does(of=int, __int__=BOOM, __index__=BOOM)(2**70),
    "a fraction that is not subtracted": lambda: does(of=float, __sub__=BOOM)(0.5),
    "a fraction that is none": lambda: does(of=float, __float__=BOOM)(0.5),
    "a number of ten thousand digits": lambda: 10**10_000,
    "a member of those": lambda: enum.Enum("Large", {"A": 10**10_000}).A,  # type: ignore[attr-defined]  # made by its text
    "a key of those": lambda: {10**10_000: 1},
    "no name": NamelessThing,
    "a class without a name": lambda: NamelessThing,
    "a dataclass that lacks a field": lambda: Forgetful(1),
    "a stream that is closed": lambda: open("/dev/null").close(),
    "a moment before all": lambda: datetime.min.replace(tzinfo=UTC),
    "a view of bytes": lambda: memoryview(b"a"),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_whatever_a_values_own_code_does_it_is_told(make: Callable[[], Any]) -> None:
    """Beside others, which are none the worse for it."""
    for told in (plain(make()), plain({"one": [1], "of": [make()], "many": "x"})):
        assert is_plain(told)
        assert behind_the_wire(told) == told
    assert (told["one"], told["many"], len(told["of"])) == ([1], "x", 1)


# --- Of any value at all ---------------------------------------------------------------------------------------------

# Keys of which several become one as text.
KEYS = [0, "0", None, "None", True, "True", (1,), "é\ud800"]
HOLDERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "dict": lambda inner: dict(zip(KEYS, inner, strict=False)),
    "mapping": lambda inner: UserDict(zip(KEYS, inner, strict=False)),
    "slim": Slim,
    "point": lambda inner: Point(1, inner),
    "pair": lambda inner: Pair(1, inner),
    "person": lambda inner: Person(name="Ann", other=inner),
    "shared": lambda inner: [inner, (inner, inner)],
    "ring": lambda inner: ringed(inner),
}


def ringed(inner: list[Any]) -> list[Any]:
    ring: list[Any] = [inner]
    ring.append({"ring": ring})
    return ring


# Recipes, since a hostile value could not be shown when a test fails: a leaf, or the name of a holder and its parts.
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(exclude_categories=()), max_size=5),
    st.binary(max_size=5),
    st.decimals(),
    st.datetimes(),
    st.timedeltas(),
    st.sampled_from([*Color, *Word, *Number, Named]),
)
recipes = st.recursive(
    leaves.map(lambda leaf: ("leaf", leaf)) | st.sampled_from([*HOSTILE]).map(lambda name: ("hostile", name)),
    lambda inner: st.tuples(st.sampled_from([*HOLDERS]), st.lists(inner, max_size=4)),
    max_leaves=20,
)


def made(recipe: tuple[str, Any]) -> Any:
    kind, parts = recipe
    if kind == "leaf":
        return parts
    if kind == "hostile":
        return HOSTILE[parts]()
    return HOLDERS[kind]([made(part) for part in parts])


@settings(deadline=None)
@given(recipes)
def test_any_value_becomes_json_and_stays_the_same_behind_a_wire(recipe: tuple[str, Any]) -> None:
    told = plain(made(recipe))
    assert is_plain(told)
    assert behind_the_wire(told) == told


@settings(deadline=None)
@given(recipes)
def test_what_is_done_to_a_value_later_changes_nothing(recipe: tuple[str, Any]) -> None:
    value = made(recipe)
    told = plain(value)
    before = json_line({"told": told})
    wreck(value, set())
    assert json_line({"told": told}) == before


def is_plain(told: Any) -> bool:
    """Tell whether it is of JSON's types and of no class derived from them."""
    if type(told) is dict:
        return all(type(key) is str and is_plain(item) for key, item in told.items())
    if type(told) is list:
        return all(map(is_plain, told))
    return told is None or type(told) in (bool, int, float, str)


def behind_the_wire(told: Any) -> Any:
    """Return what a client reads; by the readers of others, and by a strict one where there is no half a character."""
    line = json_line({"told": told})
    assert line.isascii() or line.decode().splitlines() == [line.decode()]
    read = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    if b"\\ud" not in line:
        assert msgspec.json.decode(line) == read
    return read["told"]


def wreck(value: Any, seen: set[int]) -> None:
    """Change all that can be changed in it."""
    if id(value) in seen:
        return
    seen.add(id(value))
    inner: list[Any] = []
    if type(value) in (list, dict, UserDict):
        inner = list(value.values() if isinstance(value, dict | UserDict) else value)
        value.clear()
    elif type(value) in (tuple, Pair):
        inner = list(value)
    elif type(value) is Slim:
        inner = [value.x]
    elif type(value) is Point:
        inner = [value.x, value.there]
        value.x = value.there = "changed"  # type: ignore[assignment]  # any value will do
    elif type(value) is Person:
        inner = list((value.model_extra or {}).values())
        value.name = "changed"
    for one in inner:
        wreck(one, seen)


def test_what_has_no_end_to_speak_of_is_told_as_far_as_anybody_reads() -> None:
    assert len(plain(range(10**12))) <= MOST
