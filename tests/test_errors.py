"""Faults: the codes clients rely on, how a vendor's error becomes one of ours, and what of its words is passed on."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers import scrub, upstream_error
from streaming.errors import Fault, RequestError, ServiceError, SettingsError, UpstreamError
from wires.problem import problem

# code -> whose fault, HTTP status, whether trying again may help, title
CODES: dict[str, tuple[type[Fault], int, bool, str]] = {
    "invalid_request": (RequestError, 400, False, "Bad Request"),
    "invalid_input": (RequestError, 400, False, "Bad Request"),
    "unauthorized": (RequestError, 401, False, "Unauthorized"),
    "forbidden": (RequestError, 403, False, "Forbidden"),
    "not_found": (RequestError, 404, False, "Not Found"),
    "unknown_model": (RequestError, 404, False, "Not Found"),
    "method_not_allowed": (RequestError, 405, False, "Method Not Allowed"),
    "not_acceptable": (RequestError, 406, False, "Not Acceptable"),
    "request_timeout": (RequestError, 408, True, "Request Timeout"),
    "conflict": (RequestError, 409, False, "Conflict"),
    "cancelled": (RequestError, 409, False, "Conflict"),
    "interrupted": (RequestError, 409, False, "Conflict"),
    "too_large": (RequestError, 413, False, "Request Entity Too Large"),
    "unsupported_media_type": (RequestError, 415, False, "Unsupported Media Type"),
    "rate_limited": (RequestError, 429, True, "Too Many Requests"),
    "upstream_auth": (UpstreamError, 502, False, "Bad Gateway"),
    "upstream_rejected": (UpstreamError, 502, False, "Bad Gateway"),
    "upstream_rate_limited": (UpstreamError, 503, True, "Service Unavailable"),
    "upstream_unavailable": (UpstreamError, 502, True, "Bad Gateway"),
    "upstream_incomplete": (UpstreamError, 502, True, "Bad Gateway"),
    "upstream_invalid": (UpstreamError, 502, True, "Bad Gateway"),
    "content_filtered": (UpstreamError, 502, False, "Bad Gateway"),
    "context_length": (UpstreamError, 502, False, "Bad Gateway"),
    "graph_failed": (UpstreamError, 502, False, "Bad Gateway"),
    "first_token_timeout": (ServiceError, 504, True, "Gateway Timeout"),
    "idle_timeout": (ServiceError, 504, True, "Gateway Timeout"),
    "run_timeout": (ServiceError, 504, True, "Gateway Timeout"),
    "output_limit": (ServiceError, 500, False, "Internal Server Error"),
    "internal": (ServiceError, 500, False, "Internal Server Error"),
    "overloaded": (ServiceError, 503, True, "Service Unavailable"),
    "shutting_down": (ServiceError, 503, True, "Service Unavailable"),
    "unavailable": (ServiceError, 503, True, "Service Unavailable"),
    "run_lost": (ServiceError, 502, True, "Bad Gateway"),
}


@pytest.mark.parametrize(("code", "row"), CODES.items(), ids=CODES)
def test_a_code_has_one_owner_a_status_and_says_whether_to_retry(
    code: str, row: tuple[type[Fault], int, bool, str]
) -> None:
    kind, *said = row
    fault = kind(code, "So it is.")
    title = "Content Too Large" if fault.title == "Content Too Large" else row[3]  # as Python 3.13 calls it
    assert [fault.status, fault.retryable, fault.title] == [*said[:2], title]
    assert (str(fault), fault.text, fault.code, fault.field, fault.headers) == (
        "So it is.",
        "So it is.",
        code,
        None,
        {},
    )


def test_there_are_no_codes_but_these() -> None:
    kinds = (RequestError, UpstreamError, ServiceError)
    assert sorted(code for kind in kinds for code in kind.codes) == sorted(CODES)


def test_a_code_that_nobody_knows_cannot_be_raised() -> None:
    with pytest.raises(KeyError, match="oops"):
        ServiceError("oops", "x")


def test_bad_settings_are_told_together() -> None:
    error = SettingsError("a: too small", "b: no such setting")
    assert str(error) == "Bad settings:\n  a: too small\n  b: no such setting"
    assert error.problems == ("a: too small", "b: no such setting")


BY_STATUS = {
    300: "upstream_rejected",
    400: "upstream_rejected",
    401: "upstream_auth",
    402: "upstream_rejected",
    403: "upstream_auth",
    404: "upstream_rejected",
    408: "upstream_unavailable",
    409: "upstream_unavailable",
    413: "upstream_rejected",
    422: "upstream_rejected",
    429: "upstream_rate_limited",
    500: "upstream_unavailable",
    503: "upstream_unavailable",
    529: "upstream_unavailable",
}


@pytest.mark.parametrize(("status", "code"), BY_STATUS.items())
def test_a_status_says_what_went_wrong(status: int, code: str) -> None:
    fault = upstream_error(status=status)
    assert fault.code == code
    assert fault.text.endswith(f" (HTTP {status}).")


BY_CODE = {
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
    "overloaded_error": "upstream_unavailable",
    "api_error": "upstream_unavailable",
    "server_error": "upstream_unavailable",
    "never heard of": "upstream_unavailable",
}


@pytest.mark.parametrize(("vendor", "code"), BY_CODE.items(), ids=BY_CODE)
def test_a_vendors_code_says_what_went_wrong_in_mid_stream(vendor: str, code: str) -> None:
    assert upstream_error(vendor).code == code


@pytest.mark.parametrize(
    ("codes", "status", "code"),
    [
        ((), None, "upstream_unavailable"),
        ((None, "rate_limit_error"), None, "upstream_rate_limited"),
        (("context_length_exceeded", "invalid_request_error"), None, "context_length"),
        (("unknown", "invalid_request_error"), None, "upstream_rejected"),
        (("context_length_exceeded", "invalid_request_error"), 400, "context_length"),
        (("content_filter", None), 400, "content_filtered"),
        (("invalid_api_key",), 400, "upstream_auth"),
        (("unknown",), 400, "upstream_rejected"),
        (("invalid_request_error",), 401, "upstream_auth"),
        (("context_length_exceeded",), 503, "upstream_unavailable"),
        (("invalid_request_error",), 429, "upstream_rate_limited"),
    ],
)
def test_a_telling_status_wins_and_the_first_known_code_explains_a_rejection(
    codes: tuple[str | None, ...], status: int | None, code: str
) -> None:
    assert upstream_error(*codes, status=status).code == code


@pytest.mark.parametrize(
    ("codes", "status", "text"),
    [
        ((), 400, "The upstream rejected the request (HTTP 400). It says: `n` must be 1"),
        (("invalid_prompt",), None, "The upstream rejected the request. It says: `n` must be 1"),
        (
            ("context_length_exceeded",),
            400,
            "The conversation is longer than the model can take (HTTP 400). It says: `n` must be 1",
        ),
        (("content_filter",), 400, "The upstream's content filter stopped this (HTTP 400). It says: `n` must be 1"),
        ((), 401, "The upstream refused our credentials (HTTP 401)."),
        ((), 429, "The upstream is rate limiting us (HTTP 429)."),
        ((), 500, "The upstream is unavailable (HTTP 500)."),
        (("rate_limit_error",), None, "The upstream is rate limiting us."),
        ((), None, "The upstream is unavailable."),
    ],
)
def test_a_vendors_words_are_passed_on_only_where_the_caller_can_mend_it(
    codes: tuple[str, ...], status: int | None, text: str
) -> None:
    assert upstream_error(*codes, status=status, message="`n` must\nbe 1").text == text


@pytest.mark.parametrize("message", [None, "", 5, ["x"], {"x": 1}])
def test_what_is_no_message_is_not_passed_on(message: object) -> None:
    assert upstream_error(status=400, message=message).text == "The upstream rejected the request (HTTP 400)."


def test_a_vendors_words_are_scrubbed_of_our_secrets() -> None:
    fault = upstream_error(status=400, message="the key hunter2 is odd", secrets=("hunter2", ""))
    assert fault.text == "The upstream rejected the request (HTTP 400). It says: the key [redacted] is odd"


SECRETS = [
    "sk-abcdefghijklmnopqrstuvwxyz0123456789",
    "sk-proj-Ab_12-cdEF34_ghIJ-56",
    "sk-ant-api03-Ab_12-cdEF34",
    "sk-abc123********************wxyz",
    "pk_live_51H8abcdef",
    "api_key=abcdef123",
    "api-key: abcdef123",
    "apikey=abcdef123",
    "token=abcdef123",
    "secret: abcdef123",
    "Bearer abc.def-123",
    "bearer   abc",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9abcdef",
    "x" * 40,
]
AROUND = ["{}", "Incorrect key provided: {}.", "({})", '"{}"', "a\n{}\tb", "key='{}',", "[{}]"]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("secret", SECRETS)
def test_whatever_looks_like_a_key_is_taken_out(secret: str, around: str) -> None:
    scrubbed = scrub(around.format(secret))
    assert "[redacted]" in scrubbed
    left = scrubbed.replace("[redacted]", "")
    assert not [part for part in (secret[i : i + 6] for i in range(len(secret) - 5)) if part in left]


@pytest.mark.parametrize(
    "message",
    [
        "`max_tokens` must be at most 4096, got 5000.",
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
        "Unknown parameter: 'foo'. See https://example.com/docs/errors.",
        "Invalid value for 'messages[0].role': expected one of 'system', 'user', got 'bot'.",
        "The key is missing; the token count is too high; keep it a secret.",
        "tâches: 世界 👍",
    ],
)
def test_words_that_are_no_keys_pass_unharmed(message: str) -> None:
    assert scrub(message) == message


def test_our_own_secrets_are_taken_out_wherever_they_stand() -> None:
    assert scrub("hunter2 xhunter2x", ("hunter2",)) == "[redacted] x[redacted]x"


@settings(deadline=None)  # another process may have the core
@given(st.text(), st.text("abc", min_size=8, max_size=12), st.text())
def test_no_text_around_it_lets_a_known_secret_through(before: str, secret: str, after: str) -> None:
    assert secret not in scrub(before + secret + after, (secret,))


@settings(deadline=None)  # another process may have the core
@given(st.text())
def test_a_scrubbed_text_is_one_short_line(message: str) -> None:
    scrubbed = scrub(message)
    assert len(scrubbed) <= 300
    assert scrubbed.splitlines() in ([], [scrubbed])


def test_a_long_message_is_scrubbed_before_it_is_cut() -> None:
    assert scrub("a " * 148 + "sk-abcdefghijkl") == ("a " * 148 + "[redacted]")[:300]


@pytest.mark.parametrize(("code", "row"), CODES.items(), ids=CODES)
def test_a_fault_is_a_problem_document_before_the_first_byte(
    code: str, row: tuple[type[Fault], int, bool, str]
) -> None:
    fault = row[0](code, "So \u2028 it is.", field="model")
    response = problem(fault)
    assert response.status_code == row[1]
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert bytes(response.body).decode() == (
        f'{{"type":"about:blank","title":"{fault.title}","status":{row[1]},"detail":"So \\u2028 it is.",'
        f'"code":"{code}","field":"model"}}'
    )


def test_a_problem_that_may_pass_says_when_to_try_again() -> None:
    assert "retry-after" in problem(UpstreamError("upstream_rate_limited", "Slow down.")).headers
