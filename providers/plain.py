"""Anything as plain JSON: the states of graphs hold what their authors please."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from enum import Enum
from typing import Any

import msgspec

DEPTH = 100  # of what is in what: more is no state, but a mistake


def plain(value: Any, path: tuple[int, ...] = ()) -> Any:
    """Return JSON's own types for any value, as a copy: what JSON cannot hold becomes text where it stands.

    Never raises. Of an exception only its type is told: its words may hold anything. `path` is what it is in.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else str(int(value))
    if isinstance(value, float):
        return float(value) if value - value == 0 else str(float(value))  # NaN and the infinities are no JSON
    if id(value) in path or len(path) == DEPTH:
        return "(and so on)"
    try:
        return _opened(value, (*path, id(value)))
    except Exception:  # code of any type's own: __str__, model_dump, __iter__
        return f"<{type(value).__name__}>"


def _opened(value: Any, path: tuple[int, ...]) -> Any:
    if isinstance(value, Mapping):
        return {key if type(key) is str else str(plain(key)): plain(item, path) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, path) for item in value]
    if isinstance(value, BaseException):
        return type(value).__name__
    if isinstance(value, bytes | bytearray | date | time | timedelta):
        return msgspec.to_builtins(value)
    if isinstance(value, Enum):
        return plain(value.value, path)
    if isinstance(value, type):
        return value.__name__
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(), path)
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name), path) for field in fields(value)}
    return str(value)
