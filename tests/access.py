"""Who asks, as a test says it: keys, tokens made by hand so that they can be forged, and requests at any address."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, ClassVar

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import create_app
from streaming.events import Finish, Token
from streaming.request import Emit, ProviderSettings, RunRequest

from .asgi import service_of

WEB, WEB_NEXT, CRON = "hunter2-web-4f1c", "hunter2-web-9a77", "hunter2-cron-03be"
KEYS = f"web:{WEB},web:{WEB_NEXT},cron:{CRON}"  # a key of `web` that is being replaced, and another's
SECRET = "hunter2-" * 8
COOKIE = "session"
DAY = 86_400
PROVIDERS = json.dumps({"counted": {"use": "tests.access:Counted", "models": ["m", "held"]}})


class Counted:
    """A provider that counts its runs; the answer of its model `held` never ends."""

    runs: ClassVar[int] = 0

    def __init__(self, settings: ProviderSettings, upstream: Any) -> None:
        pass

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        Counted.runs += 1
        emit([Token("Hi")])
        if request.model == "held":
            await asyncio.Event().wait()
        emit([Finish("stop")])


@asynccontextmanager
async def serving(**environ: str) -> AsyncIterator[Starlette]:
    """An app of its own with the counted provider; its runs end with it."""
    app = create_app({"SIDESTREAM_PROVIDERS": PROVIDERS, "SIDESTREAM_MODEL": "counted/m", **environ})
    service = service_of(app)
    await service.providers.load("counted")
    try:
        yield app
    finally:
        await service.runs.close()
        await service.providers.close()


def placed(app: ASGIApp, *headers: tuple[str, str], **scope: Any) -> ASGIApp:
    """The app as it is reached with these headers beside the others, and this in its scope."""

    async def reached(given: Scope, receive: Receive, send: Send) -> None:
        added = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
        await app({**given, "headers": [*given["headers"], *added], **scope}, receive, send)

    return reached


def unread(app: ASGIApp, read: list[Message]) -> ASGIApp:
    """The app, and in `read` what it takes of the request's body."""

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def receiving() -> Message:
            read.append(await receive())
            return read[-1]

        await app(scope, receiving, send)

    return watched


def bearer(shown: str) -> dict[str, str]:
    return {"authorization": f"Bearer {shown}"}


# Tokens


def claims(**changes: object) -> dict[str, object]:
    """Claims that count, with these changes; None leaves one out."""
    whole = {"sub": "ann", "exp": int(time.time()) + DAY, **changes}
    return {name: value for name, value in whole.items() if value is not None}


def part(value: object) -> str:
    """One part of a token: bytes as they are, anything else as JSON."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def made(header: object, payload: object, sign: Callable[[bytes], bytes]) -> str:
    """A token put together by hand, whatever is in it."""
    head = f"{part(header)}.{part(payload)}"
    return f"{head}.{part(sign(head.encode()))}"


def by_secret(secret: str | bytes = SECRET, digest: str = "sha256") -> Callable[[bytes], bytes]:
    """Sign as HS256 (or by another digest) does."""
    key = secret if isinstance(secret, bytes) else secret.encode()
    return lambda message: hmac.new(key, message, getattr(hashlib, digest)).digest()


def token(payload: object = None, **header: object) -> str:
    """A token signed with the secret."""
    return made({"alg": "HS256", "typ": "JWT", **header}, claims() if payload is None else payload, by_secret())


@cache
def private_keys() -> dict[str, Any]:
    """A key of each kind that an issuer may have, by its algorithm."""
    return {
        "RS256": rsa.generate_private_key(65537, 2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }


@cache
def stranger() -> Any:
    """A key that no issuer has."""
    return ec.generate_private_key(ec.SECP256R1())


def by_key(algorithm: str, key: Any = None) -> Callable[[bytes], bytes]:
    """Sign with the issuer's key of this kind, or with another."""
    signs = jwt.PyJWS().get_algorithm_by_name(algorithm)
    return lambda message: signs.sign(message, key or private_keys()[algorithm])


def issued(algorithm: str, payload: object = None, kid: str | None = None) -> str:
    """A token of the issuer's, which names its key by the algorithm."""
    header = {"alg": algorithm, "kid": kid or algorithm}
    return made(header, claims() if payload is None else payload, by_key(algorithm))


def jwk(algorithm: str, **changes: object) -> dict[str, object]:
    """The public half of the issuer's key of this kind (RFC 7517); None leaves a member out."""
    kinds: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    public = private_keys()[algorithm].public_key()
    whole = {**kinds[algorithm].to_jwk(public, as_dict=True), "kid": algorithm, **changes}
    return {name: value for name, value in whole.items() if value is not None}


def jwks(*keys: dict[str, object]) -> str:
    """A set of keys as a file has it; without any named, all of the issuer's."""
    return json.dumps({"keys": keys or [jwk(algorithm) for algorithm in private_keys()]})
