"""A run as a resource: its URLs, signed for who can send no header; its status; and its creation under a key.

A signature says that whoever shows it may follow, read and stop this run until it expires, and nothing else. It
expires when the run is surely over and forgotten, so a link never dies before what it leads to.
"""

import hashlib
import math
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from itsdangerous import Signer
from starlette.responses import Response

from streaming.errors import RequestError
from streaming.events import Token
from streaming.followed import Followed

from .answers import RunCreated, RunStatus
from .chat import json_line

IDEMPOTENCY_KEY = "[!-~]([ -~]{0,253}[!-~])?"  # in a header


class Links:
    """The URLs of runs, signed with `secret` (without one, with a random one that this process alone knows)."""

    def __init__(self, secret: str, keep: float) -> None:
        self._is_given = bool(secret)
        self._keys = [secret.encode("utf-8", "surrogateescape") or secrets.token_bytes(32)]
        self._keep = keep
        self._renew()

    def accept(self, key: bytes) -> None:
        """Sign with a key that other replicas have, too, from now on; unless there is one of the settings."""
        if not self._is_given and key not in self._keys:
            self._keys.append(key)
            self._renew()

    def _renew(self) -> None:
        self._signer = Signer(self._keys, salt="run", key_derivation="hmac", digest_method=hashlib.sha256)

    def expires(self, run: Followed) -> int:
        """Return when the run is over and forgotten at the latest, in seconds of the Unix epoch."""
        return math.ceil(run.created + run.limits.queue_timeout + run.limits.run_timeout + self._keep)

    def signed(self, run: Followed, path: str) -> str:
        """Return a path below the run's with a signature for the run."""
        expires = self.expires(run)
        return f"{path}?expires={expires}&signature={self._signature(run.id, str(expires))}"

    def check(self, run_id: str, query: Mapping[str, str]) -> None:
        """Raise RequestError forbidden where a URL that `is_signed` is not, or no longer, signed for this run."""
        expires, signature = query.get("expires"), query.get("signature")
        if not self._signer.verify_signature(f"{run_id}:{expires}".encode(), signature or ""):
            raise RequestError("forbidden", "The signature is not for this URL.", field="signature")
        assert expires is not None
        if int(expires) < time.time():
            raise RequestError("forbidden", "The signature has expired.", field="expires")

    def _signature(self, run_id: str, expires: str) -> str:
        return self._signer.get_signature(f"{run_id}:{expires}").decode()

    def created(self, run: Followed, path: str) -> RunCreated:
        """Say where to find a run, which is at `path`."""
        return {
            "id": run.id,
            "events_url": self.signed(run, f"{path}/events"),
            "status_url": self.signed(run, path),
            "expires": self.expires(run),
        }


def is_signed(query: Mapping[str, str]) -> bool:
    """Whether a URL is signed, rightly or not."""
    return "expires" in query or "signature" in query


def json_response(value: Mapping[str, Any], status_code: int = 200, **headers: str) -> Response:
    """Answer with what is so just now."""
    return Response(json_line(value), status_code, {"Cache-Control": "no-store", **headers}, "application/json")


def head_of(response: Response) -> Response:
    """Answer a HEAD with the headers of `response`, without what it would do."""
    head = Response()
    head.raw_headers = response.raw_headers
    return head


def path_of(scope: Mapping[str, Any], run: Followed) -> str:
    """Return the path of a run as the caller of this service knows it."""
    return f"{quote(scope.get('root_path', '').rstrip('/'))}/runs/{run.id}"


def status(run: Followed) -> RunStatus:
    """Say how a run stands: its text so far, and its terminal event's data as `ending` once it is over."""
    return {
        "id": run.id,
        "state": run.terminal.name if run.terminal else "queued" if run.waits else "running",
        "position": run.position,
        "provider": run.answer.provider,
        "model": run.answer.model,
        "created": int(run.created),
        "text": run.log.text(Token),
        "last_event_id": f"{run.id}-{run.log.last}",
        "tokens": run.log.deltas,
        "ttft_ms": run.ttft_ms,
        "latency_ms": run.latency_ms,
        "usage": run.answer.usage,
        "viewers": run.viewers,
        "retries": run.answer.retries,
        "failovers": run.answer.failovers,
        "resets": run.answer.resets,
        "ending": run.terminal,
    }


def idempotency_key(headers: Mapping[str, str]) -> str:
    """Return the Idempotency-Key, empty without one. Raises RequestError where it is empty, too long or not ASCII."""
    key = headers.get("idempotency-key")
    if key is None:
        return ""
    if not re.fullmatch(IDEMPOTENCY_KEY, key):
        text = "An Idempotency-Key is 1 to 255 printable ASCII characters."
        raise RequestError("invalid_request", text, field="Idempotency-Key")
    return key


def digest(model: str, body: bytes) -> bytes:
    """Return what tells one request from another: the body as it was sent, and who is asked by it."""
    return hashlib.sha256(model.encode() + b"\0" + body).digest()
