"""A file that may be replaced while the service runs, as mounted secrets are."""

import logging
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from streaming.errors import SettingsError

LOOK_INTERVAL = 1.0  # how old what we know of the file may be, seconds
logger = logging.getLogger("sidestream")
T = TypeVar("T")


class Mounted(Generic[T]):
    """What `parse` makes of a file's text: of its present one, or of the last that could be read.

    `parse` raises ValueError, whose text may name no secret. Making this raises SettingsError where it does.
    """

    def __init__(self, setting: str, path: str, parse: Callable[[str], T]) -> None:
        self._path = Path(path)
        self._parse = parse
        self._looked = time.monotonic()
        try:
            self._read()
        except OSError as exc:  # the path is left out: it may be no path, but the secret itself
            raise SettingsError(f"{setting}: {_why(exc)}") from exc
        except ValueError as exc:
            raise SettingsError(f"{setting} {path}: {_why(exc)}") from exc

    def _read(self) -> None:
        state = self._path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("not a file")  # to read of a pipe is to wait for who writes
        self._value = self._parse(self._path.read_text(encoding="utf-8"))
        self._stamp = (state.st_mtime_ns, state.st_ino, state.st_size)

    @property
    def value(self) -> T:
        if time.monotonic() >= self._looked + LOOK_INTERVAL:
            self._looked = time.monotonic()
            try:
                state = self._path.stat()
                if (state.st_mtime_ns, state.st_ino, state.st_size) != self._stamp:
                    self._read()
                    logger.info("%s was read anew", self._path)
            except (OSError, ValueError) as exc:
                logger.error("%s: %s; going on with what it was", self._path, _why(exc))
        return self._value


def _why(exc: Exception) -> str:
    if isinstance(exc, UnicodeDecodeError):  # whose own text quotes the file
        return "not UTF-8"
    return str(exc.strerror if isinstance(exc, OSError) else exc)
