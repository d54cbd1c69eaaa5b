"""Anything as plain JSON: the states of graphs hold what their authors please."""

import math
from base64 import b64encode
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from enum import Enum
from itertools import islice
from types import MappingProxyType
from typing import Any

import msgspec

DEPTH = 100  # of what is in what: more is no state, but a mistake
MOST = 1_000_000  # values in all: what holds the same thing twice at each level has soon more than any machine
SO_ON = "(and so on)"


def plain(value: Any, names: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Return JSON's own types for any value, as a copy: what JSON cannot hold becomes text where it stands.

    Never raises. Of an exception only its type is told: its words may hold anything. A text that is one of `names` is
    told by the other one.
    """
    return _Copy(names).of(value)


class _Copy:
    """One copy being made. Types are asked, not values: what a value says of itself may be wrong, or raise."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._left = MOST
        self._path: list[int] = []  # what the value at hand is in

    def of(self, value: Any) -> Any:
        kind = type(value)
        self._left -= 1
        if value is None or kind is bool:
            return value
        if issubclass(kind, str):
            text = str.__str__(value)
            return self._names.get(text, text)
        try:
            if issubclass(kind, int):
                number = int.__index__(value)
                return number if -(2**63) <= number < 2**64 else str(number)
            if issubclass(kind, float):
                fraction = float.__float__(value)
                return fraction if math.isfinite(fraction) else str(fraction)
            return self._whole(value, kind)
        except Exception:  # code of any type's own: __str__, model_dump, __iter__
            return f"<{_name(kind)}>"

    def _whole(self, value: Any, kind: type[Any]) -> Any:
        if id(value) in self._path or len(self._path) == DEPTH or self._left <= 0:
            return SO_ON
        self._path.append(id(value))
        try:
            return self._opened(value, kind)
        finally:
            self._path.pop()

    def _opened(self, value: Any, kind: type[Any]) -> Any:
        if issubclass(kind, BaseException):
            return _name(kind)
        if issubclass(kind, type):
            return _name(value)
        if issubclass(kind, Enum):
            return self.of(value.value)
        if issubclass(kind, bytes | bytearray | memoryview):
            return b64encode(value).decode()
        if kind in (date, datetime, time, timedelta):
            return msgspec.to_builtins(value)
        if issubclass(kind, date | time):
            return value.isoformat()
        if issubclass(kind, Mapping):
            return {self._key(key): self.of(item) for key, item in value.items()}
        if issubclass(kind, Collection):
            return [self.of(item) for item in islice(value, self._left)]
        if hasattr(kind, "model_dump"):
            return self.of(value.model_dump())
        if is_dataclass(kind):
            return {field.name: self.of(getattr(value, field.name)) for field in fields(kind)}
        return str.__str__(str(value))

    def _key(self, key: Any) -> str:
        told = self.of(key)
        return told if isinstance(told, str) else str(told)


def _name(kind: type[Any]) -> str:
    return str(type.__dict__["__name__"].__get__(kind))
