"""What can go wrong, and whose fault it is.

    Fault                   carries a stable `code`, an HTTP `status`, `retryable`, and a text for a person
    ├── RequestError        the caller's: the request cannot be served as it stands
    ├── UpstreamError       the upstream's: it refused, failed, or broke off
    └── ServiceError        ours: limits, deadlines, bugs

Before the first byte a fault is an HTTP status with `application/problem+json`; after it the same object is the
run's terminal `error` event. Its text is ours, or scrubbed (providers/): no key, no prompt, no stack trace.
The cause is chained (`raise ... from`) and its type is logged; its message is not.
"""

from http import HTTPStatus
from typing import ClassVar


class Fault(Exception):
    """Anything that ends a request or a run before its answer is whole."""

    codes: ClassVar[dict[str, tuple[int, bool]]] = {}

    def __init__(
        self,
        code: str,
        text: str,
        *,
        field: str | None = None,
        headers: dict[str, str] | None = None,
        retry_after: float | None = None,
        again: bool = True,
        limit: str | None = None,
    ) -> None:
        """`retry_after`: for how many seconds an upstream wants to be left alone. `again`: asking it again may help.

        `limit`: the setting that bounds what was too much.
        """
        super().__init__(text)
        self.code = code
        self.text = text
        self.field = field
        self.headers = headers or {}
        self.retry_after = retry_after
        self.again = again
        self.limit = limit
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
        "request_timeout": (408, True),
        "conflict": (409, False),
        "cancelled": (409, False),
        "interrupted": (409, False),
        "too_large": (413, False),
        "unsupported_media_type": (415, False),
        "rate_limited": (429, True),
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
        "graph_failed": (502, False),
    }


class ServiceError(Fault):
    codes: ClassVar = {
        "first_token_timeout": (504, True),
        "idle_timeout": (504, True),
        "run_timeout": (504, True),
        "output_limit": (500, False),
        "overloaded": (503, True),
        "shutting_down": (503, True),
        "unavailable": (503, True),  # another replica's run cannot be reached just now
        "run_lost": (502, True),  # the replica that made the run has died
        "internal": (500, False),
    }


def fault(code: str, text: str) -> Fault:
    """Return the fault of a code: whose it is, the code tells."""
    return next(kind for kind in (RequestError, UpstreamError, ServiceError) if code in kind.codes)(code, text)


# What may pass: the same upstream is asked again where it has said nothing yet.
AGAIN = {"upstream_rate_limited", "upstream_unavailable", "upstream_incomplete"}
# What another upstream may do better, whatever the request is.
ELSEWHERE = AGAIN | {"upstream_invalid", "graph_failed", "first_token_timeout", "idle_timeout", "internal"}


class SettingsError(Exception):
    """The settings cannot be used; `problems` names every bad value."""

    def __init__(self, *problems: str) -> None:
        super().__init__("Bad settings:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = problems
