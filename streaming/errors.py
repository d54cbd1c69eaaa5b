"""What can go wrong, and whose fault it is.

    Fault                   carries a stable `code`, an HTTP `status`, `retryable`, and a text for a person
    ├── RequestError        the caller's: the request cannot be served as it stands
    ├── UpstreamError       the upstream's: it refused, failed, or broke off
    └── ServiceError        ours: limits, deadlines, bugs

Before the first byte a fault is an HTTP status with `application/problem+json`; after it the same object is the
run's terminal `error` event. Its text is written here or scrubbed by `scrub`: no key, no prompt, no stack trace.
The cause is chained (`raise ... from`) and its type is logged; its message is not.
"""

import re
from http import HTTPStatus
from typing import ClassVar


class Fault(Exception):
    """Anything that ends a request or a run before its answer is whole."""

    codes: ClassVar[dict[str, tuple[int, bool]]] = {}

    def __init__(
        self, code: str, text: str, *, field: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.field = field
        self.headers = headers or {}
        self.status, self.retryable = self.codes[code]

    @property
    def title(self) -> str:
        return HTTPStatus(self.status).phrase


class RequestError(Fault):
    codes: ClassVar = {
        "invalid_request": (400, False),
        "invalid_input": (400, False),
        "unauthorized": (401, False),
        "forbidden": (403, False),
        "not_found": (404, False),
        "unknown_model": (404, False),
        "method_not_allowed": (405, False),
        "not_acceptable": (406, False),
        "too_large": (413, False),
        "unsupported_media_type": (415, False),
    }


class UpstreamError(Fault):
    codes: ClassVar = {
        "upstream_auth": (502, False),
        "upstream_rejected": (502, False),
        "upstream_rate_limited": (503, True),
        "upstream_unavailable": (502, True),
        "upstream_incomplete": (502, True),
        "upstream_invalid": (502, True),
        "content_filtered": (502, False),
        "context_length": (502, False),
    }


class ServiceError(Fault):
    codes: ClassVar = {
        "first_token_timeout": (504, True),
        "idle_timeout": (504, True),
        "run_timeout": (504, True),
        "output_limit": (500, False),
        "internal": (500, False),
    }


class SettingsError(Exception):
    """The settings cannot be used; `problems` names every bad value."""

    def __init__(self, *problems: str) -> None:
        super().__init__("Bad settings:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = problems


# What vendors call their errors, in a body or in mid-stream. Never the words of a message.
_BY_VENDOR_CODE = {
    "context_length_exceeded": "context_length",
    "content_filter": "content_filtered",
    "content_policy_violation": "content_filtered",
    "invalid_api_key": "upstream_auth",
    "authentication_error": "upstream_auth",
    "permission_error": "upstream_auth",
    "rate_limit_exceeded": "upstream_rate_limited",
    "rate_limit_error": "upstream_rate_limited",
    "insufficient_quota": "upstream_rate_limited",
    "invalid_request_error": "upstream_rejected",
    "invalid_prompt": "upstream_rejected",
    "not_found_error": "upstream_rejected",
    "request_too_large": "upstream_rejected",
}
_TEXTS = {
    "upstream_auth": "The upstream refused our credentials.",
    "upstream_rejected": "The upstream rejected the request.",
    "upstream_rate_limited": "The upstream is rate limiting us.",
    "upstream_unavailable": "The upstream is unavailable.",
    "upstream_incomplete": "The upstream broke off before the answer was whole.",
    "upstream_invalid": "The upstream sent something that could not be understood.",
    "content_filtered": "The upstream's content filter stopped this.",
    "context_length": "The conversation is longer than the model can take.",
}
_TELLS_WHY = {"upstream_rejected", "context_length", "content_filtered"}


def upstream_error(
    *codes: str | None, status: int | None = None, message: object = None, secrets: tuple[str, ...] = ()
) -> UpstreamError:
    """Map a vendor's error to ours: a telling HTTP status, else the first of `codes` that is known, else unavailable.

    The vendor's message is passed on, scrubbed of `secrets`, only where the caller can mend what it complains of.
    """
    code = _by_status(status)
    if status is None or code == "upstream_rejected":  # a 401 may call itself an invalid_request_error
        code = next((_BY_VENDOR_CODE[c] for c in codes if c in _BY_VENDOR_CODE), code)
    text = _TEXTS[code] if status is None else f"{_TEXTS[code][:-1]} (HTTP {status})."
    if code in _TELLS_WHY and isinstance(message, str) and message:
        text = f"{text} It says: {scrub(message, secrets)}"
    return UpstreamError(code, text)


def _by_status(status: int | None) -> str:
    if status in (401, 403):
        return "upstream_auth"
    if status == 429:
        return "upstream_rate_limited"
    if status is not None and status < 500 and status not in (408, 409):
        return "upstream_rejected"
    return "upstream_unavailable"


_KEY_LIKE = re.compile(
    r"(?i)\b(?:bearer\s+\S+|(?:sk|pk|rk|api[-_]?key|key|token|secret)(?:[-_=]|:\s*)[^\s\"',;]{6,})|[\w+/=-]{40,}"
)


def scrub(message: str, secrets: tuple[str, ...] = ()) -> str:
    """Return a foreign text fit for a client: one line, at most 300 characters, nothing in it that may be a key."""
    for secret in secrets:
        if len(secret) > 5:  # shorter ones are stand-ins for none
            message = message.replace(secret, "[redacted]")
    message = _KEY_LIKE.sub("[redacted]", message)
    return " ".join(message.split())[:300]
