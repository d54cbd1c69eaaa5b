"""Who asks: whoever shows an API key or a JSON Web Token. Without any set, everybody, and all runs are nobody's.

A key is shown as `Authorization: Bearer KEY` (RFC 6750) or `X-API-Key: KEY`, a token as `Authorization: Bearer TOKEN`
or in a cookie, which an EventSource and a WebSocket of a page can send too. The URLs of a run are signed for who can
show neither (resource.py).
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec
from starlette.requests import HTTPConnection

from streaming.errors import RequestError
from streaming.settings import check_keys

from .mounted import Mounted

Digests = Mapping[bytes, str]
Subject = Callable[[str], str | None]  # of a token, if it counts
UPSTREAM_KEY = "[!-~]{1,4096}"  # in a header


class Caller(NamedTuple):
    """Whose request it is, and the key it has brought for the upstream."""

    owner: str = ""
    upstream_key: str | None = None


class Access:
    """`keys` are those of the settings, each `name:KEY`, `keys_file` holds more of them, one a line.

    A key with the same name is the same owner's: so one can be replaced by another. Where tokens count, `subject` tells
    whose one is; they may come in a `cookie`, too. Raises SettingsError where the file cannot be read.
    """

    def __init__(self, keys: Collection[str] = (), keys_file: str = "", cookie: str = "") -> None:
        self.subject: Subject | None = None
        self._keys = _digests(keys)
        self._file = Mounted("api_keys_file", keys_file, _parse) if keys_file else None
        self._cookie = cookie

    @property
    def is_open(self) -> bool:
        """Whether nobody needs a key."""
        return not (self._keys or self._file or self.subject)

    @property
    def names(self) -> list[str]:
        """Whose keys count."""
        return sorted({*self._keys.values(), *(self._file.value.values() if self._file else ())})

    @property
    def takes_tokens(self) -> bool:
        return self.subject is not None

    def owner(self, request: HTTPConnection) -> str:
        """Return whose request it is, nobody's ("") where access is open. Raises RequestError unauthorized."""
        if self.is_open:
            return ""
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        bearer = bearer.strip() if scheme.lower() == "bearer" else ""
        shown = [bearer, request.headers.get("x-api-key", "")]
        if (name := next(filter(None, map(self._name, shown)), None)) is not None:
            return f"key:{name}"
        token = bearer or (request.cookies.get(self._cookie, "") if self._cookie else "")
        if self.subject and token and (subject := self.subject(token)):
            return f"sub:{subject}"
        text = (
            "The key or token does not count." if any((*shown, token)) else "Show a key: `Authorization: Bearer <key>`."
        )
        raise RequestError("unauthorized", text, headers={"WWW-Authenticate": 'Bearer realm="sidestream"'})

    def _name(self, key: str) -> str | None:
        """Return the name of a key; it takes as long for one that is nearly right as for any other."""
        shown, found = _digest(key), None
        for digests in (self._keys, self._file.value if self._file else {}):
            for digest, name in digests.items():
                if hmac.compare_digest(digest, shown):
                    found = name
        return found


def upstream_key(headers: Mapping[str, str], *, allowed: bool) -> str | None:
    """Return the key that the caller has brought for the upstream, if any. Raises RequestError where it may not."""
    key = headers.get("x-upstream-key")
    if key is None:
        return None
    if not allowed:
        text = "This service takes no keys for its upstreams (SIDESTREAM_ALLOW_UPSTREAM_KEYS)."
        raise RequestError("forbidden", text, field="X-Upstream-Key")
    if not re.fullmatch(UPSTREAM_KEY, key):
        raise RequestError("invalid_request", "The key is no line of printable ASCII.", field="X-Upstream-Key")
    return key


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _digests(keys: Iterable[str]) -> Digests:
    return {_digest(key): name for name, _, key in (pair.partition(":") for pair in keys)}


def _parse(text: str) -> Digests:
    """Read a file of keys; empty lines and those that begin with `#` say nothing."""
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    try:
        check_keys(keys)
    except msgspec.ValidationError as exc:
        raise ValueError(str(exc)) from None
    if not keys:
        raise ValueError("there is no key in it")
    return _digests(keys)
