"""What OpenAI's and Anthropic's APIs send, and all the ways they fail, through a real service.

Whatever happens, a run ends in exactly one terminal event (`told` sees to that), what came before is delivered, and the
service goes on to serve.
"""

import gzip
import json
import ssl
import tempfile
import zlib
from collections.abc import Iterator

import pytest

from .client import Client, get, post
from .conftest import Service, Start, free_port
from .recorded import (
    ANTHROPIC,
    DIALECTS,
    DONE,
    OPENAI,
    RECORDINGS,
    Dialect,
    Recording,
    Told,
    asked,
    call,
    called,
    chat,
    joined,
    sse,
    told,
)
from .upstream import (
    ANTHROPIC_KEY,
    END,
    EVENT_STREAM,
    FIN,
    HOLD,
    OPENAI_KEY,
    PAUSE,
    RST,
    Act,
    Head,
    Raw,
    Repeat,
    Step,
    Upstream,
    environ,
)

pytest_plugins = ["tests.upstream"]

each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=[dialect.provider for dialect in DIALECTS])
PROMPT = "a prompt that is nobody's business"
REJECTED, UNAVAILABLE, AUTH = ("upstream_rejected", False), ("upstream_unavailable", True), ("upstream_auth", False)
INCOMPLETE, INVALID = ("upstream_incomplete", True), ("upstream_invalid", True)
STATUSES = {
    400: REJECTED,
    401: AUTH,
    403: AUTH,
    404: REJECTED,
    408: UNAVAILABLE,
    409: UNAVAILABLE,
    413: REJECTED,
    422: REJECTED,
    429: ("upstream_rate_limited", True),
    500: UNAVAILABLE,
    503: UNAVAILABLE,
    529: UNAVAILABLE,
}
# The opening of Anthropic's stream says what was read, those of the others say nothing: four characters a token.
READ = {"openai": 1, "openai_responses": 1, "anthropic": 25}


def ask(service: Service, provider: str, **body: object) -> Client:
    """Ask for what ends before long, whatever happens."""
    return post(service.port, f"/{provider}/stream", **{"message": "Hi", "run_timeout": 15, "idle_timeout": 3, **body})


def start(dialect: Dialect) -> tuple[str, object]:
    return "start", {"provider": dialect.provider, "model": dialect.model}


def failed(events: Told) -> tuple[str, bool]:
    """Return how it failed."""
    name, data = events[-1]
    assert name == "error", events
    assert data.keys() == {"done", "error", "code", "retryable", "usage"}
    assert data["error"]
    return data["code"], data["retryable"]


def serves(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    """The next request on the same service is answered, by one request to the upstream."""
    upstream.stream(*dialect.opening, dialect.token("Well"), *dialect.ending)
    with ask(relay, dialect.provider) as client:
        assert told(client) == [start(dialect), ("token", {"token": "Well"}), ("done", dialect.done(1))]


def fails(relay: Service, upstream: Upstream, dialect: Dialect, expected: tuple[str, bool], *before: str) -> str:
    """A request fails as expected, after these tokens; what it used is said; the next one succeeds."""
    with ask(relay, dialect.provider) as client:
        events = told(client)
    assert failed(events) == expected
    assert events[:-1] == [start(dialect), *joined([("token", {"token": text}) for text in before])]
    assert events[-1][1]["usage"] == used(dialect, "".join(before), opened=bool(before))
    serves(relay, upstream, dialect)
    return events[-1][1]["error"]


def used(dialect: Dialect, text: str, *, opened: bool) -> dict[str, object]:
    """What is said to be used by an answer that broke off after `text`: an estimate, and marked as one."""
    read = dialect.input_told if opened and dialect.input_told else 1
    return {"input_tokens": read, "output_tokens": -(-len(text) // 4), "estimated": True}


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recording", RECORDINGS, ids=str)
def test_a_recorded_stream_becomes_these_events(relay: Service, upstream: Upstream, recording: Recording) -> None:
    upstream.stream(*recording.chunks)
    with ask(relay, recording.provider) as client:
        opened, *events, done = told(client)
    assert opened == start(next(d for d in DIALECTS if d.provider == recording.provider))
    assert events == recording.told
    assert done == ("done", recording.done)


@each_dialect
def test_each_token_is_passed_on_before_the_next_is_sent(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    upstream.play(
        Head(), *dialect.opening, dialect.token("one"), PAUSE, dialect.token("two"), PAUSE, *dialect.ending, END
    )
    with ask(relay, dialect.provider) as client:
        exchange = upstream.request()
        for text in ("one", "two"):
            assert client.until("token").data == {"token": text}
            exchange.release()
        assert client.until("done").data["tokens"] == 2


@each_dialect
def test_a_get_of_an_eventsource_and_ndjson_say_the_same(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    for _ in range(3):
        upstream.stream(*dialect.opening, dialect.token("Well"), *dialect.ending)
    with (
        get(relay.port, model=f"{dialect.provider}/{dialect.model}", message="Hi") as by_get,
        ask(relay, dialect.provider) as by_post,
        post(relay.port, f"/{dialect.provider}/stream", {"Accept": "application/x-ndjson"}, message="Hi") as by_line,
    ):
        lines = [json.loads(line) for line in by_line.read().splitlines() if line]
        assert told(by_get) == told(by_post)
    assert [line["event"] for line in lines] == ["start", "token", "done"]
    assert lines[-1]["data"]["usage"] == dialect.usage


@each_dialect
def test_line_separators_and_astral_characters_pass_whole(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    text = 'a\u2028b\u2029c\x85d\x00e \U0001f469\u200d\U0001f467 \\ " \r\n\t \ufeff f'
    upstream.stream(*dialect.opening, dialect.token(text), *dialect.ending)
    with ask(relay, dialect.provider) as client:
        assert told(client)[1] == ("token", {"token": text})
        assert len(client.body.decode().splitlines()) == len(client.body.split(b"\n")) - 1


@each_dialect
def test_a_connection_is_used_again_after_a_finished_stream(
    relay: Service, upstream: Upstream, dialect: Dialect
) -> None:
    serves(relay, upstream, dialect)
    opened = len(upstream.connections)
    for _ in range(4):
        serves(relay, upstream, dialect)
    assert len(upstream.connections) == opened


@each_dialect
def test_a_body_that_ends_a_little_after_its_terminator_keeps_its_connection(
    relay: Service, upstream: Upstream, dialect: Dialect
) -> None:
    late = Repeat(b": almost there\n\n", every=0.01, times=1)
    endings: list[str] = []
    while "completed" not in endings and len(endings) < 5:  # a hundredth of a second may take longer
        upstream.play(Head(), *dialect.opening, dialect.token("Well"), *dialect.ending, late, END)
        with ask(relay, dialect.provider) as client:
            assert told(client)[-1] == ("done", dialect.done(1))
        endings.append(upstream.request().wait().ended)
    assert endings[-1] == "completed"


@each_dialect
def test_a_body_that_stays_open_after_its_terminator_delays_nothing_for_long(
    relay: Service, upstream: Upstream, dialect: Dialect
) -> None:
    upstream.play(Head(), *dialect.opening, dialect.token("Well"), *dialect.ending, HOLD)
    with ask(relay, dialect.provider) as client:
        assert told(client)[-1] == ("done", dialect.done(1))
    assert upstream.request().wait().ended == "aborted"
    serves(relay, upstream, dialect)


# --- how it travels ---------------------------------------------------------------------------------------------------


def crlf(stream: bytes) -> bytes:
    return stream.replace(b"\n", b"\r\n")


def bare(stream: bytes) -> bytes:
    """No space after the colon, carriage returns alone, a byte order mark, fields nobody knows."""
    return (
        b"\xef\xbb\xbf"
        + stream.replace(b": ", b":", 1).replace(b"\n\n", b"\nretry: 10\nid\n\n").replace(b"\n", b"\r")
        + b"\n"
    )


def per_byte(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


@pytest.mark.parametrize("form", [crlf, bare], ids=lambda form: form.__name__)
@pytest.mark.parametrize("split", [lambda stream: [stream], per_byte], ids=["whole", "per-byte"])
@each_dialect
def test_any_line_ends_and_any_splits_say_the_same(
    relay: Service, upstream: Upstream, dialect: Dialect, form, split
) -> None:
    opening = () if dialect is OPENAI else dialect.opening  # content at once, so that the first event counts
    stream = form(b"".join([*opening, dialect.token("Grüße"), dialect.token(", 世界"), *dialect.ending]))
    upstream.stream(*split(stream))
    with ask(relay, dialect.provider) as client:
        assert told(client) == [start(dialect), ("token", {"token": "Grüße, 世界"}), ("done", dialect.done(2))]


@each_dialect
def test_a_body_that_ends_with_its_connection_is_as_good(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    head = Head(headers={"Content-Type": "text/event-stream", "Connection": "close"})
    upstream.play(head, *dialect.opening, dialect.token("Well"), *dialect.ending, FIN)
    with ask(relay, dialect.provider) as client:
        assert told(client) == [start(dialect), ("token", {"token": "Well"}), ("done", dialect.done(1))]
    upstream.play(head, *dialect.opening, dialect.token("One"), FIN)
    fails(relay, upstream, dialect, INCOMPLETE, "One")


@each_dialect
def test_a_compressed_body_is_read_as_it_comes(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    press = zlib.compressobj(wbits=31)

    def pressed(data: bytes) -> bytes:
        return press.compress(data) + press.flush(zlib.Z_SYNC_FLUSH)

    first, rest = pressed(b"".join([*dialect.opening, dialect.token("Well")])), pressed(b"".join(dialect.ending))
    upstream.play(Head(headers={**EVENT_STREAM, "Content-Encoding": "gzip"}), first, PAUSE, rest, press.flush(), END)
    with ask(relay, dialect.provider) as client:
        assert client.until("token").data == {"token": "Well"}
        upstream.request().release()
        assert client.until("done").data["usage"] == dialect.usage
    serves(relay, upstream, dialect)


@each_dialect
def test_a_compressed_body_that_is_broken_is_an_error(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    good = gzip.compress(b"".join([*dialect.opening, dialect.token("Well"), *dialect.ending]))
    upstream.play(Head(headers={**EVENT_STREAM, "Content-Encoding": "gzip"}), b"\x00" + good, END)
    fails(relay, upstream, dialect, INVALID)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", STATUSES)
@each_dialect
def test_a_status_is_an_error_of_its_own(relay: Service, upstream: Upstream, dialect: Dialect, status: int) -> None:
    upstream.refuse(status, dialect.error_body("The upstream's own words.", "some_error"))
    text = fails(relay, upstream, dialect, STATUSES[status])
    assert f"HTTP {status}" in text
    assert ("own words" in text) == (STATUSES[status] == REJECTED), "only what the caller can mend is passed on"


@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [
        ("invalid_request_error", "context_length_exceeded", "context_length"),
        ("invalid_request_error", "content_filter", "content_filtered"),
        ("invalid_request_error", "content_policy_violation", "content_filtered"),
        ("invalid_request_error", "some_code_to_come", "upstream_rejected"),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS[:2], ids=["openai", "openai_responses"])
def test_a_code_in_a_400_says_more_than_the_status(
    relay: Service, upstream: Upstream, dialect: Dialect, kind: str, code: str, expected: str
) -> None:
    upstream.refuse(400, dialect.error_body("Why.", kind, code))
    assert fails(relay, upstream, dialect, (expected, False)).endswith("It says: Why.")


BODIES = {
    "html": b"<html><h1>Bad Gateway</h1></html>",
    "empty": b"",
    "a string": b'{"error": "model not found"}',
    "a list": b"[]",
    "null": b"null",
    "numbers": b'{"error": {"message": 1, "type": 2, "code": 3}}',
    "invalid UTF-8": b'{"error": {"message": "\xff\xfe"}}',
    "not what it says": b"\x1f\x8b",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@each_dialect
def test_an_error_with_a_body_of_any_kind_is_told_by_its_status(
    relay: Service, upstream: Upstream, dialect: Dialect, body: bytes
) -> None:
    upstream.play(Head(503, {"Content-Type": "application/json", "Content-Length": str(len(body))}), body)
    fails(relay, upstream, dialect, UNAVAILABLE)


@each_dialect
def test_an_error_whose_body_is_cut_off_is_told_by_its_status(
    relay: Service, upstream: Upstream, dialect: Dialect
) -> None:
    upstream.play(Head(401, {"Content-Type": "application/json", "Content-Length": "100"}), b'{"error"', FIN)
    fails(relay, upstream, dialect, AUTH)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@each_dialect
def test_a_redirect_is_not_followed_with_the_key(
    relay: Service, upstream: Upstream, dialect: Dialect, status: int
) -> None:
    with Upstream() as elsewhere:
        upstream.refuse(status, {}, Location=f"{elsewhere.url}{dialect.path}")
        fails(relay, upstream, dialect, REJECTED)
        assert elsewhere.exchanges.empty()
        assert elsewhere.connections == []


@pytest.mark.parametrize("content_type", ["application/json", "text/html", "text/plain", ""])
@each_dialect
def test_what_is_no_event_stream_is_an_error(
    relay: Service, upstream: Upstream, dialect: Dialect, content_type: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    stream = [*dialect.opening, dialect.token("Well"), *dialect.ending]
    upstream.play(Head(200, {**headers, "Transfer-Encoding": "chunked"}), *stream, END)
    fails(relay, upstream, dialect, INVALID)


# A throw-away certificate for localhost, valid to 2124, that no one has signed but itself.
SELF_SIGNED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg7mbrc2BH8lWoz98h
IRgACTyF8t45msR9L4Rame8HWf+hRANCAATxoLVv3A4rYp4SWBp6wADb2V9FR2RF
cUEwomc0R1+MJRNSd+SFqq1TLhBvVbCw/xOtY54hYWj982qkbsjiCf7h
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBlTCCATugAwIBAgIUOYqQWyIxCNvK43kYSXeCyV/UI1EwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTExNTQzNloYDzIxMjUwNjE1
MTE1NDM2WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATxoLVv3A4rYp4SWBp6wADb2V9FR2RFcUEwomc0R1+MJRNSd+SFqq1T
LhBvVbCw/xOtY54hYWj982qkbsjiCf7ho2kwZzAdBgNVHQ4EFgQUUliogqbmrAKX
RkFRv5H2B7NFBS8wHwYDVR0jBBgwFoAUUliogqbmrAKXRkFRv5H2B7NFBS8wDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID
SAAwRQIhAPAhhCd4MwCeZ3O0T+4J2qPmOJf35q6JAJbPPzNyzB1MAiAGjMWUgvr6
DJ5el5f8ebMRwgZivBvtGJSNSJwFbbtyMQ==
-----END CERTIFICATE-----
"""


@pytest.fixture(scope="module")
def self_signed() -> Iterator[Upstream]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as pem:
        pem.write(SELF_SIGNED)
        pem.flush()
        context.load_cert_chain(pem.name)
    with Upstream(context) as server:
        yield server


@pytest.fixture(scope="module")
def broken(start_service: Start, upstream_server: Upstream, self_signed: Upstream) -> Service:
    """A service whose endpoints cannot be reached, each in its own way, as `<kind>-<way>`."""
    ways = {
        "refused": f"http://127.0.0.1:{free_port()}",
        "nameless": "http://upstream.invalid",
        "tls-to-plain": upstream_server.url.replace("http:", "https:"),
        "plain-to-tls": self_signed.url,
        "self-signed": self_signed.url.replace("http://127.0.0.1", "https://localhost"),
    }
    endpoints = {
        f"{dialect.provider}-{way}": {
            "use": dialect.provider,
            "base_url": url + ("" if dialect is ANTHROPIC else "/v1"),
            "api_key": OPENAI_KEY,
        }
        for dialect in DIALECTS
        for way, url in ways.items()
    }
    return start_service(SIDESTREAM_PROVIDERS=json.dumps(endpoints), **environ(upstream_server))


@pytest.mark.parametrize("way", ["refused", "nameless", "tls-to-plain", "plain-to-tls", "self-signed"])
@each_dialect
def test_an_upstream_that_cannot_be_reached_is_unavailable(
    broken: Service, upstream: Upstream, self_signed: Upstream, dialect: Dialect, way: str
) -> None:
    with ask(broken, f"{dialect.provider}-{way}", model="m") as client:
        events = told(client)
    assert failed(events) == UNAVAILABLE
    assert [name for name, _ in events] == ["start", "error"]
    assert self_signed.exchanges.empty(), "nothing is sent to whom is not trusted"
    serves(broken, upstream, dialect)


# --- broken off -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [FIN, RST], ids=["FIN", "RST"])
@each_dialect
def test_cut_before_the_headers_is_unavailable(relay: Service, upstream: Upstream, dialect: Dialect, cut: Act) -> None:
    upstream.play(cut)
    fails(relay, upstream, dialect, UNAVAILABLE)


@pytest.mark.parametrize("cut", [FIN, RST], ids=["FIN", "RST"])
@each_dialect
def test_cut_within_the_headers_is_unavailable(relay: Service, upstream: Upstream, dialect: Dialect, cut: Act) -> None:
    upstream.play(Raw(b"HTTP/1.1 200 OK\r\nContent-Ty"), cut)
    fails(relay, upstream, dialect, UNAVAILABLE)


@each_dialect
def test_an_answer_that_is_no_http_is_unavailable(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    upstream.play(Raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), FIN)
    fails(relay, upstream, dialect, UNAVAILABLE)


@pytest.mark.parametrize("cut", [END, FIN, RST], ids=["END", "FIN", "RST"])
@pytest.mark.parametrize("opened", [True, False], ids=["opened", "empty"])
@each_dialect
def test_cut_before_the_first_token_is_incomplete(
    relay: Service, upstream: Upstream, dialect: Dialect, opened: bool, cut: Act
) -> None:
    upstream.play(Head(), *(dialect.opening if opened else ()), cut)
    with ask(relay, dialect.provider) as client:
        events = told(client)
    assert failed(events) == INCOMPLETE
    assert [name for name, _ in events] == ["start", "error"]
    serves(relay, upstream, dialect)


CUTS = {"END": (END,), "FIN": (FIN,), "RST": (RST,), "garbage": (Raw(b"this is no chunk's size\r\n"), HOLD)}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@each_dialect
def test_cut_in_the_middle_is_incomplete(
    relay: Service, upstream: Upstream, dialect: Dialect, cut: tuple[Step, ...]
) -> None:
    upstream.play(Head(), *dialect.opening, dialect.token("One"), dialect.token(" two"), PAUSE, *cut)
    with ask(relay, dialect.provider) as client:
        text = client.until("token").data["token"]
        while text != "One two":
            text += client.until("token").data["token"]
        upstream.request().release()
        last = client.next()
        assert client.next() is None
        assert client.whole
    assert last is not None
    assert (last.name, last.data["code"], last.data["retryable"]) == ("error", *INCOMPLETE)
    assert last.data["usage"] == used(dialect, "One two", opened=True)
    serves(relay, upstream, dialect)


@pytest.mark.parametrize("cut", [END, FIN], ids=["END", "FIN"])
@each_dialect
def test_cut_within_an_event_is_incomplete(relay: Service, upstream: Upstream, dialect: Dialect, cut: Act) -> None:
    upstream.play(Head(), *dialect.opening, dialect.token("One"), dialect.token("lost")[:-2], cut)
    fails(relay, upstream, dialect, INCOMPLETE, "One")


@each_dialect
def test_all_but_the_terminator_is_incomplete(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    whole = [*dialect.opening, dialect.token("One"), *dialect.ending]
    upstream.stream(*whole[: -dialect.terminator])
    with ask(relay, dialect.provider) as client:
        events = told(client)
    assert failed(events) == INCOMPLETE
    assert events[1:-1] == [("token", {"token": "One"})]
    serves(relay, upstream, dialect)


def test_chat_without_done_but_with_a_finish_reason_is_whole(relay: Service, upstream: Upstream) -> None:
    upstream.stream(*OPENAI.opening, OPENAI.token("One"), *OPENAI.ending[:-1])
    with ask(relay, "openai") as client:
        assert told(client) == [start(OPENAI), ("token", {"token": "One"}), ("done", OPENAI.done(1))]


def test_chat_with_done_but_without_a_finish_reason_is_whole(relay: Service, upstream: Upstream) -> None:
    usage = {"input_tokens": 1, "output_tokens": 1, "estimated": True}
    upstream.stream(*OPENAI.opening, OPENAI.token("One"), DONE)
    with ask(relay, "openai") as client:
        assert told(client) == [start(OPENAI), ("token", {"token": "One"}), ("done", OPENAI.done(1, usage=usage))]


def test_chat_with_done_but_without_a_finish_reason_loses_no_tool_call(relay: Service, upstream: Upstream) -> None:
    upstream.stream(*OPENAI.opening, call(0, "", "call_1", "now"), call(0, '{"day":1}'), DONE)
    with ask(relay, "openai") as client:
        events = told(client)
    assert events[1:-1] == [asked(0, "call_1", "now", '{"day":1}'), called("call_1", "now", {"day": 1})]
    assert events[-1][0] == "done"


def test_chat_whose_upstream_failed_behind_its_back_is_unavailable(relay: Service, upstream: Upstream) -> None:
    upstream.stream(*OPENAI.opening, OPENAI.token("One"), chat({"content": ""}, "error"), DONE)  # OpenRouter's
    fails(relay, upstream, OPENAI, UNAVAILABLE, "One")


@each_dialect
def test_a_terminator_without_the_end_of_the_body_is_whole(
    relay: Service, upstream: Upstream, dialect: Dialect
) -> None:
    upstream.play(Head(), *dialect.opening, dialect.token("One"), *dialect.ending, FIN)
    with ask(relay, dialect.provider) as client:
        assert told(client)[-1] == ("done", dialect.done(1))
    serves(relay, upstream, dialect)


@each_dialect
def test_what_follows_the_terminator_is_ignored(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    after = (dialect.token("more"), *dialect.ending, sse("{broken"))
    upstream.stream(b"".join([*dialect.opening, dialect.token("One"), *dialect.ending, *after]))
    with ask(relay, dialect.provider) as client:
        assert told(client) == [start(dialect), ("token", {"token": "One"}), ("done", dialect.done(1))]


MALFORMED = {
    "no JSON": sse("{broken"),
    "cut JSON": sse('{"choices":[{"delta":{"content":"x"}'),
    "a list": sse("[]"),
    "a number": sse("17"),
    "nothing": sse(""),
    "invalid UTF-8": b'data: {"type": "\xff\xfe", "model": "\xff\xfe"}\n\n',
    "too deep": sse('{"choices":' + "[" * 5000),
    "HTML": sse("<html>"),
}


@pytest.mark.parametrize("chunk", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("together", [True, False], ids=["one-write", "own-write"])
@each_dialect
def test_two_malformed_chunks_are_invalid(
    relay: Service, upstream: Upstream, dialect: Dialect, chunk: bytes, together: bool
) -> None:
    stream = [*dialect.opening, chunk, dialect.token("One"), chunk, dialect.token("two")]
    upstream.play(Head(), *([b"".join(stream)] if together else stream), HOLD)
    fails(relay, upstream, dialect, INVALID, "One")
    assert upstream.request().wait().ended == "aborted"


@pytest.mark.parametrize("chunk", MALFORMED.values(), ids=MALFORMED)
@each_dialect
def test_one_malformed_chunk_is_passed_over_and_told_of(
    relay: Service, upstream: Upstream, dialect: Dialect, chunk: bytes
) -> None:
    upstream.stream(*dialect.opening, dialect.token("One"), chunk, dialect.token(" two"), *dialect.ending)
    with ask(relay, dialect.provider) as client:
        done = dialect.done(2, skipped_chunks=1)
        assert told(client) == [start(dialect), ("token", {"token": "One two"}), ("done", done)]
    serves(relay, upstream, dialect)


@each_dialect
def test_one_malformed_chunk_makes_no_whole_answer_of_a_cut_one(
    relay: Service, upstream: Upstream, dialect: Dialect
) -> None:
    upstream.stream(*dialect.opening, dialect.token("One"), MALFORMED["no JSON"])
    fails(relay, upstream, dialect, INCOMPLETE, "One")


CALLING = [one for one in RECORDINGS if any(name == "tool_call" for name, _ in one.told)]


@pytest.mark.parametrize("recording", CALLING, ids=str)
def test_no_tool_is_called_where_a_chunk_of_the_call_may_lack(
    relay: Service, upstream: Upstream, recording: Recording
) -> None:
    first, *rest = recording.chunks
    upstream.stream(first, MALFORMED["no JSON"], *rest)
    with ask(relay, recording.provider) as client:
        events = told(client)
    assert failed(events) == INVALID
    assert "tool_call" not in [name for name, _ in events]


@each_dialect
def test_a_text_that_is_no_string_is_malformed(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    upstream.play(Head(), *dialect.opening, dialect.token("One"), dialect.misshapen, dialect.misshapen, HOLD)
    fails(relay, upstream, dialect, INVALID, "One")


@each_dialect
def test_an_event_without_an_end_is_invalid(relay: Service, upstream: Upstream, dialect: Dialect) -> None:
    upstream.play(Head(), *dialect.opening, dialect.token("One"), b"data: ", Repeat(b"x" * 2**20, 0), HOLD)
    fails(relay, upstream, dialect, INVALID, "One")
    assert upstream.request().wait().ended == "aborted"


IN_BAND = [(dialect, code) for dialect in DIALECTS for code in dialect.errors]


@pytest.mark.parametrize(("dialect", "code"), IN_BAND, ids=[f"{dialect.provider}-{code}" for dialect, code in IN_BAND])
def test_an_error_in_mid_stream_is_the_end(relay: Service, upstream: Upstream, dialect: Dialect, code: str) -> None:
    retryable = code in ("upstream_unavailable", "upstream_rate_limited")
    upstream.play(Head(), *dialect.opening, dialect.token("One"), dialect.errors[code], *dialect.ending, HOLD)
    fails(relay, upstream, dialect, (code, retryable), "One")


@pytest.mark.parametrize(("dialect", "code"), IN_BAND, ids=[f"{dialect.provider}-{code}" for dialect, code in IN_BAND])
def test_an_error_instead_of_an_answer_is_the_end(
    relay: Service, upstream: Upstream, dialect: Dialect, code: str
) -> None:
    upstream.stream(dialect.errors[code])
    fails(relay, upstream, dialect, (code, code in ("upstream_unavailable", "upstream_rate_limited")))


# --- what must not be said --------------------------------------------------------------------------------------------


def echo(dialect: Dialect) -> str:
    key = ANTHROPIC_KEY if dialect is ANTHROPIC else OPENAI_KEY
    return f"Bad key {key} (sk-proj-{'abc123' * 8}) in: {PROMPT}"


def kept_quiet(relay: Service, client: Client, *, prompt: bool) -> None:
    """Neither key nor prompt is in the log, no key reaches the client; it may read its own prompt again."""
    for text in (relay.log, client.raw.decode()):
        for key in (OPENAI_KEY, ANTHROPIC_KEY, "abc123abc123"):
            assert key not in text
    assert PROMPT not in relay.log
    assert (PROMPT in client.raw.decode()) == prompt


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500])
@each_dialect
def test_an_error_that_echoes_the_key_and_the_prompt_tells_them_to_nobody(
    relay: Service, upstream: Upstream, dialect: Dialect, status: int
) -> None:
    upstream.refuse(status, dialect.error_body(echo(dialect), "some_error"), **{"X-Echo": echo(dialect)})
    with ask(relay, dialect.provider, message=PROMPT) as client:
        assert failed(told(client)) == STATUSES[status]
        kept_quiet(relay, client, prompt=STATUSES[status] == REJECTED)


@each_dialect
def test_an_error_in_mid_stream_that_echoes_the_key_tells_it_to_nobody(
    relay: Service, upstream: Upstream, dialect: Dialect
) -> None:
    code = next(code for code in dialect.errors if code in ("upstream_rejected", "context_length"))
    message = next(text for text in ("Too long.", "messages: too many") if text.encode() in dialect.errors[code])
    upstream.stream(*dialect.opening, dialect.errors[code].replace(message.encode(), echo(dialect).encode()))
    with ask(relay, dialect.provider, message=PROMPT) as client:
        assert failed(told(client))[0] == code
        kept_quiet(relay, client, prompt=True)


@each_dialect
def test_a_malformed_chunk_that_echoes_the_key_tells_it_to_nobody(
    relay: Service, upstream: Upstream, dialect: Dialect
) -> None:
    broken = [sse(echo(dialect)), sse({"type": echo(dialect), "choices": echo(dialect)}), sse(echo(dialect))]
    upstream.stream(*dialect.opening, *broken)
    with ask(relay, dialect.provider, message=PROMPT) as client:
        failed(told(client))
        kept_quiet(relay, client, prompt=False)
