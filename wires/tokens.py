"""JSON Web Tokens (RFC 7519) of an issuer that the operator trusts: whoever shows one is its subject.

PyJWT checks the signature and the claims; which algorithms count is said by the key, never by the token.
"""

import json
from collections.abc import Mapping
from typing import Any

import jwt

from .mounted import Mounted

HMAC = ["HS256", "HS384", "HS512"]
LONGEST = 16 * 2**10  # characters; one of a million would halt all streams for 0.2 s, whether it counts or not
Keys = Mapping[str | None, Any]


class Tokens:
    """Accepts tokens signed with `secret` or with a key of the JWKS file `keys_file` (RFC 7517).

    They must have an `exp` that is to come, a `sub`, and where those are given this `audience` and `issuer`.
    Raises SettingsError where the file cannot be read.
    """

    def __init__(self, secret: str = "", keys_file: str = "", audience: str = "", issuer: str = "") -> None:
        self._secret = secret.encode("utf-8", "surrogateescape")
        self._keys = Mounted("jwt_keys_file", keys_file, _keys) if keys_file else None
        self._expected: Any = {"audience": audience or None, "issuer": issuer or None}

    def subject(self, token: str) -> str | None:
        """Return whose token it is; None where it does not count."""
        if len(token) > LONGEST:
            return None
        try:
            key, algorithms = self._key(jwt.get_unverified_header(token))
            options: Any = {"require": ["exp", "sub"]}
            claims = jwt.decode(token, key, algorithms=algorithms, options=options, **self._expected)
            subject: str = claims["sub"]
            subject.encode()  # half of a surrogate pair names nobody
        except (jwt.PyJWTError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
            return None  # the latter are PyJWT's own for claims of a type that it does not expect
        return subject or None

    def _key(self, header: dict[str, Any]) -> tuple[Any, list[str]]:
        """Return the key that a token's header names, and its algorithms. Raises KeyError where there is none."""
        if self._secret and header.get("alg") in HMAC:
            return self._secret, HMAC
        keys: Keys = self._keys.value if self._keys else {}
        named = header.get("kid")
        key = next(iter(keys.values())) if named is None and len(keys) == 1 else keys[named]
        return key, [key.algorithm_name]


def _keys(text: str) -> Keys:
    try:
        found = jwt.PyJWKSet.from_dict(json.loads(text)).keys
        keys = {key.key_id: key for key in found}
    except (jwt.PyJWTError, AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        raise ValueError("not a JWKS with a key that can be used") from None
    if len(keys) < len(found):
        raise ValueError("two of its keys have the same `kid`, or none")
    return keys
