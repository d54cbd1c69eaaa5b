"""Requests that cannot be served, over a real socket: each is told what is wrong, as a whole problem document.

They arrive as clients, browsers and the curious send them; none may start a run or be answered by a stack trace.
"""

import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from .client import Client, Event, get, post, text
from .conftest import Service, Start
from .resource import Answer, answer

JSON = {"Content-Type": "application/json"}
TITLES = {
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Request Entity Too Large",
    415: "Unsupported Media Type",
}


def told(client: Client) -> dict[str, Any]:
    return document_of(answer(client))


def document_of(refusal: Answer) -> dict[str, Any]:
    """Return what a refusal says, once all that every one must have was seen in it."""
    status, headers, body = refusal
    document: dict[str, Any] = json.loads(body)
    assert headers["content-type"] == "application/problem+json"
    assert headers["cache-control"] == "no-store"
    assert (document.pop("type"), document.pop("status")) == ("about:blank", status)
    assert document.pop("title") in (TITLES[status], "Content Too Large")  # as Python 3.13 calls a 413
    return {"status": status, **document}


def problem(status: int, code: str, detail: str, field: str | None = None) -> dict[str, Any]:
    return {"status": status, "code": code, "detail": detail, **({"field": field} if field else {})}


def bad(detail: str, field: str | None = None) -> dict[str, Any]:
    return problem(400, "invalid_request", detail, field)


def echoed(message: str) -> bytes:
    return json.dumps({"message": message, "model": "scripted/echo"}).encode()


NOT_JSON = bad("The body is not valid JSON.")
NEITHER = bad("Send `message` or `messages`.", "message")
BOTH = bad("Send either `message` or `messages`, not both.", "message")
TURN = {"role": "user", "content": "Hi"}

BODIES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "empty": (b"", bad("The body is empty; send a JSON object.")),
    "blank": (b" \n ", bad("The body is empty; send a JSON object.")),
    "not JSON": (b"message=Hi", NOT_JSON),
    "cut": (b'{"message": "Hi"', NOT_JSON),
    "more than one": (b'{"message": "Hi"}{}', NOT_JSON),
    "not UTF-8": (b'{"message": "\xff"}', NOT_JSON),
    "UTF-16": ('{"message": "Hi"}'.encode("utf-16"), NOT_JSON),
    "half a character": (b'{"message": "\\ud83d"}', NOT_JSON),
    "NaN": (b'{"message": "Hi", "temperature": NaN}', NOT_JSON),
    "a number past all bounds": (
        b'{"message": "Hi", "temperature": 1e999}',
        bad("Bad request: Number out of range - at `$.temperature`.", "temperature"),
    ),
    "brackets without end": (b"[" * 100_000, bad("Bad request: Expected `object`, got `array`.")),
    "objects without end": (b'{"message": "Hi", "provider_options": ' + b'{"a":' * 100_000, NOT_JSON),
    "nested too deeply": (
        b'{"message": "Hi", "provider_options": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        NOT_JSON,
    ),
    "an array": (b'["Hi"]', bad("Bad request: Expected `object`, got `array`.")),
    "a string": (b'"Hi"', bad("Bad request: Expected `object`, got `str`.")),
    "null": (b"null", bad("Bad request: Expected `object`, got `null`.")),
    "an unknown field": (
        b'{"message": "Hi", "massage": 1}',
        bad("Bad request: Object contains unknown field `massage`.", "massage"),
    ),
    "a message of a wrong type": (
        b'{"message": 5}',
        bad("Bad request: Expected `str | null`, got `int` - at `$.message`.", "message"),
    ),
    "a model of a wrong type": (
        b'{"message": "Hi", "model": 5}',
        bad("Bad request: Expected `str | object | array | null`, got `int` - at `$.model`.", "model"),
    ),
    "a limit of a wrong type": (
        b'{"message": "Hi", "max_tokens": "5"}',
        bad("Bad request: Expected `int | null`, got `str` - at `$.max_tokens`.", "max_tokens"),
    ),
    "a limit of nothing": (
        b'{"message": "Hi", "max_tokens": 0}',
        bad("Bad request: Expected `int` >= 1 - at `$.max_tokens`.", "max_tokens"),
    ),
    "too hot": (
        b'{"message": "Hi", "temperature": 2.1}',
        bad("Bad request: Expected `float` <= 2.0 - at `$.temperature`.", "temperature"),
    ),
    "an unknown role": (
        b'{"messages": [{"role": "bot", "content": "Hi"}]}',
        bad("Bad request: Invalid enum value 'bot' - at `$.messages[0].role`.", "messages"),
    ),
    "no role": (
        b'{"messages": [{"content": "Hi"}]}',
        bad("Bad request: Object missing required field `role` - at `$.messages[0]`.", "messages"),
    ),
    "an unknown part": (
        b'{"messages": [{"role": "user", "content": [{"type": "audio"}]}]}',
        bad("Bad request: Invalid value 'audio' - at `$.messages[0].content[0].type`.", "messages"),
    ),
    "neither message nor messages": (b'{"model": "scripted/hello"}', NEITHER),
    "both": (b'{"message": "Hi", "messages": [{"role": "user", "content": "Hi"}]}', BOTH),
    "both, by the other name": (b'{"question": "Hi", "messages": [{"role": "user", "content": "Hi"}]}', BOTH),
    "message and question": (
        b'{"message": "Hi", "question": "Hi"}',
        bad("`message` and `question` are the same; send one of them.", "question"),
    ),
    "two system prompts": (
        b'{"message": "Hi", "system": "a", "system_prompt": "a"}',
        bad("`system` and `system_prompt` are the same; send one of them.", "system_prompt"),
    ),
    "an empty message": (b'{"message": ""}', bad("`message` is empty.", "message")),
    "a blank message": (b'{"message": " \\n\\t"}', bad("`message` is empty.", "message")),
    "no messages": (b'{"messages": []}', bad("`messages` is empty.", "messages")),
    "a turn without content": (
        b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant"}]}',
        bad("`messages[1]` has no content.", "messages"),
    ),
    "a tool's answer to nothing": (
        b'{"messages": [{"role": "tool", "content": "4"}]}',
        bad("`messages[0]` answers no call.", "messages"),
    ),
    "a longer deadline than is allowed": (
        b'{"message": "Hi", "model": "scripted/hello", "run_timeout": 601}',
        bad("`run_timeout` can be at most 600 seconds here.", "run_timeout"),
    ),
    "an unknown provider": (
        b'{"message": "Hi", "model": "nobody/x"}',
        problem(404, "unknown_model", "There is no provider 'nobody'. Ready: {ready}.", "model"),
    ),
    "an unknown model": (
        b'{"message": "Hi", "model": "nothing"}',
        problem(404, "unknown_model", "There is no model 'nothing'. Ready: {ready}.", "model"),
    ),
    "an unknown script": (
        b'{"message": "Hi", "model": "scripted/nothing"}',
        problem(404, "unknown_model", "scripted has no 'nothing', but {scripts}.", "model"),
    ),
    "an input and a message": (
        b'{"input": "Hi", "message": "Hi"}',
        bad("`input` or `resume` stands alone, without messages.", "input"),
    ),
    "an input and an answer": (
        b'{"input": "Hi", "resume": "yes"}',
        bad("`input` or `resume` stands alone, without messages.", "input"),
    ),
    "an input of its own for a model": (
        b'{"input": {"topic": "cats"}, "model": "scripted/hello"}',
        bad("`input` is for chains and graphs; scripted is neither.", "input"),
    ),
    "an answer for a model": (
        b'{"resume": true, "thread_id": "t", "model": "scripted/hello"}',
        bad("`resume` is for chains and graphs; scripted is neither.", "resume"),
    ),
    "a thread of a model": (
        b'{"message": "Hi", "thread_id": "t", "model": "scripted/hello"}',
        bad("`thread_id` is for chains and graphs; scripted is neither.", "thread_id"),
    ),
    "events of a model": (
        b'{"message": "Hi", "events": true, "model": "scripted/hello"}',
        bad("`events` is for chains and graphs; scripted is neither.", "events"),
    ),
    "an unknown mode": (
        b'{"message": "Hi", "stream_mode": ["values", "tokens"]}',
        bad("Bad request: Invalid enum value 'tokens' - at `$.stream_mode[1]`.", "stream_mode"),
    ),
    "what no request may say of a config": (
        b'{"message": "Hi", "config": {"callbacks": []}}',
        bad("Bad request: Object contains unknown field `callbacks` - at `$.config`.", "config"),
    ),
    "a model of several lines": (
        b'{"message": "Hi", "model": "a\\nevent: done\\u0000\\u2028"}',
        problem(404, "unknown_model", "There is no model 'a\\nevent: done\\x00\\u2028'. Ready: {ready}.", "model"),
    ),
}


def models_of(service: Service) -> list[str]:
    return [model["id"] for model in json.loads(answer(get(service.port, "/v1/models")).body)["data"]]


def filled(expected: dict[str, Any], service: Service) -> dict[str, Any]:
    """Fill in what depends on what is installed."""
    known = [model.partition("/") for model in models_of(service)]
    ready = ", ".join(dict.fromkeys(provider for provider, _, _ in known))
    scripts = ", ".join(model for provider, _, model in known if provider == "scripted")
    return {**expected, "detail": expected["detail"].replace("{ready}", ready).replace("{scripts}", scripts)}


@pytest.mark.parametrize(("sent", "expected"), BODIES.values(), ids=BODIES)
def test_a_body_that_cannot_be_served_is_told_why(service: Service, sent: bytes, expected: dict[str, Any]) -> None:
    assert told(Client(service.port, "POST", "/chat/stream", headers=JSON, body=sent)) == filled(expected, service)


QUERIES: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("", NEITHER),
    "an empty message": ("message=", bad("`message` is empty.", "message")),
    "both": ("message=Hi&messages=" + quote(json.dumps([TURN])), BOTH),
    "a key twice": ("message=Hi&message=Ho", bad("`message` is given twice.", "message")),
    "another key twice": ("message=Hi&model=a&model=a", bad("`model` is given twice.", "model")),
    "an unknown key": ("message=Hi&massage=1", bad("Bad request: Object contains unknown field `massage`.", "massage")),
    "messages that are no JSON": ("messages=Hi", bad("`messages` is not valid JSON.", "messages")),
    "messages of a wrong type": (
        "messages=5",
        bad("Bad request: Expected `array | null`, got `int` - at `$.messages`.", "messages"),
    ),
    "messages nested without end": ("messages=" + "[" * 5000, bad("`messages` is not valid JSON.", "messages")),
    "NaN": (
        "message=Hi&temperature=NaN",
        bad("Bad request: Expected `float` >= 0.0 - at `$.temperature`.", "temperature"),
    ),
    "infinity": (
        "message=Hi&run_timeout=inf",
        bad("Bad request: Expected `float` <= 604800.0 - at `$.run_timeout`.", "run_timeout"),
    ),
    "a word for a number": (
        "message=Hi&max_tokens=many",
        bad("Bad request: Expected `int | null`, got `str` - at `$.max_tokens`.", "max_tokens"),
    ),
    "an input of its own for a model": (
        "input=cats&model=scripted/hello",
        bad("`input` is for chains and graphs; scripted is neither.", "input"),
    ),
    "a config that is no JSON": ("message=Hi&config=tags", bad("`config` is not valid JSON.", "config")),
    "an unknown mode": (
        "message=Hi&stream_mode=values,tokens",
        bad("Bad request: Invalid enum value 'tokens' - at `$.stream_mode[1]`.", "stream_mode"),
    ),
    "a model of several lines": (
        "message=Hi&model=" + quote("a\r\nx: y\0"),
        problem(404, "unknown_model", "There is no model 'a\\r\\nx: y\\x00'. Ready: {ready}.", "model"),
    ),
    "bytes that are no text": (
        "message=Hi&model=%ff%fe",
        problem(404, "unknown_model", "There is no model '\ufffd\ufffd'. Ready: {ready}.", "model"),
    ),
    "half a character": (
        "message=Hi&model=%ed%a0%80",
        problem(404, "unknown_model", "There is no model '\ufffd\ufffd\ufffd'. Ready: {ready}.", "model"),
    ),
}


@pytest.mark.parametrize(("sent", "expected"), QUERIES.values(), ids=QUERIES)
@pytest.mark.parametrize("path", ["/chat/stream", "/stream", "/chat/stream-meta"])
def test_a_query_that_cannot_be_served_is_told_why(
    service: Service, path: str, sent: str, expected: dict[str, Any]
) -> None:
    assert told(Client(service.port, "GET", f"{path}?{sent}")) == filled(expected, service)


def test_bytes_that_are_no_text_in_a_message_are_marked_and_served(service: Service) -> None:
    with Client(service.port, "GET", "/chat/stream?model=scripted/echo&message=a%ff") as client:
        assert text(list(client)) == "a\ufffd"


@pytest.mark.parametrize("path", ["/nobody/stream", "/ws/stream", "/%0a/stream"])
def test_a_path_of_an_unknown_provider_is_told_so(service: Service, path: str) -> None:
    name = {"/nobody/stream": "'nobody'", "/ws/stream": "'ws'", "/%0a/stream": "'\\n'"}[path]
    expected = problem(404, "unknown_model", f"There is no provider {name}. Ready: local, scripted.", "model")
    assert told(post(service.port, path, message="Hi")) == expected
    assert told(get(service.port, path, message="Hi")) == expected


@pytest.mark.parametrize("path", ["/nowhere", "/chat", "/chat/stream/x", "/a/b/stream", "//", "/%00", "/.."])
def test_there_is_nothing_elsewhere(service: Service, path: str) -> None:
    assert told(get(service.port, path)) == problem(404, "not_found", "There is nothing here.")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/chat/stream", {"GET", "HEAD", "POST"}),
        ("DELETE", "/stream", {"GET", "HEAD", "POST"}),
        ("OPTIONS", "/chat/stream", {"GET", "HEAD", "POST"}),
        ("PATCH", "/scripted/stream", {"GET", "HEAD", "POST"}),
        ("POST", "/readyz", {"GET", "HEAD"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("POST", "/", {"GET", "HEAD"}),
    ],
)
def test_another_method_is_told_which_to_use(service: Service, method: str, path: str, allowed: set[str]) -> None:
    _, headers, _ = refusal = answer(Client(service.port, method, path))
    assert set(headers["allow"].split(", ")) == allowed
    assert document_of(refusal) == problem(405, "method_not_allowed", f"Use {headers['allow']}.")


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "",
        "json",
    ],
)
def test_a_body_of_another_type_is_refused(service: Service, content_type: str | None) -> None:
    """A page of another site can send these without asking; JSON it cannot."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    sent = Client(service.port, "POST", "/chat/stream", headers=headers, body=echoed("Hi"))
    assert told(sent) == problem(415, "unsupported_media_type", "Send the body as Content-Type: application/json.")


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"]
)
def test_json_by_any_of_its_names_is_served(service: Service, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    with Client(service.port, "POST", "/chat/stream", headers=headers, body=echoed("Hi")) as client:
        assert text(list(client)) == "Hi"


@pytest.fixture(scope="module")
def small(start_service: Start) -> Service:
    """A service that takes bodies of a hundred bytes."""
    return start_service(SIDESTREAM_MAX_BODY_BYTES="100")


TOO_LARGE = problem(413, "too_large", "The body is larger than 100 bytes.")


def test_a_body_declared_too_large_is_refused_before_it_is_sent(small: Service) -> None:
    headers = {**JSON, "Content-Length": "101"}
    assert told(Client(small.port, "POST", "/chat/stream", headers=headers)) == TOO_LARGE


def test_a_body_that_grows_too_large_in_chunks_is_refused_before_its_end(small: Service) -> None:
    client = Client(small.port, "POST", "/chat/stream", headers={**JSON, "Transfer-Encoding": "chunked"})
    for _ in range(3):
        client.send(b"28\r\n" + b"x" * 40 + b"\r\n")
    assert told(client) == TOO_LARGE


def test_a_body_of_just_the_limit_is_served(small: Service) -> None:
    for size in (100, 101):
        sent = echoed("x" * (size - len(echoed(""))))
        assert len(sent) == size
        status, _, _ = answer(Client(small.port, "POST", "/chat/stream", headers=JSON, body=sent))
        assert status == (200 if size == 100 else 413)


def test_a_chunked_body_within_the_limit_is_served(small: Service) -> None:
    sent = echoed("Hi")
    with Client(small.port, "POST", "/chat/stream", headers={**JSON, "Transfer-Encoding": "chunked"}) as client:
        for cut in (sent[:10], sent[10:]):
            client.send(b"%x\r\n%b\r\n" % (len(cut), cut))
        client.send(b"0\r\n\r\n")
        assert text(list(client)) == "Hi"


RUN = "0123456789abcdef" * 2
BAD_IDS = [
    "x",
    "-",
    RUN,
    f"{RUN}-",
    f"{RUN}-x",
    f"{RUN}--1",
    f"{RUN}-1.5",
    f"{RUN[1:]}-1",
    f"{RUN}0-1",
    f"{RUN.upper()}-1",
    f"{RUN}-1 OR 1",
    "1" * 5000,
]


@pytest.mark.parametrize("event_id", BAD_IDS, ids=lambda value: value[:40])
def test_an_id_that_is_none_of_ours_is_refused(service: Service, event_id: str) -> None:
    expected = bad("That is no event id of ours.", "last_event_id")
    target = "/chat/stream?message=Hi&model=scripted/echo"
    assert told(Client(service.port, "GET", target, headers={"Last-Event-ID": event_id})) == expected
    for name in ("last_event_id", "lastEventId"):
        assert told(Client(service.port, "GET", f"{target}&" + urlencode({name: event_id}))) == expected


def test_the_last_id_of_a_run_stops_an_event_source(service: Service) -> None:
    with get(service.port, message="Hi", model="scripted/echo") as client:
        events: list[Event] = list(client)
    target = "/chat/stream?message=Hi&model=scripted/echo"
    assert [event.name for event in events] == ["start", "token", "done"]
    last = events[-1].id
    assert is_stopped(Client(service.port, "GET", target, headers={"Last-Event-ID": last}))
    for name in ("last_event_id", "lastEventId"):
        assert is_stopped(Client(service.port, "GET", f"{target}&{name}={last}"))


def is_stopped(client: Client) -> bool:
    """Tell whether an EventSource would not come back: 204, and as HTTP wants of it no word of a body."""
    with client:
        status, headers = client.head()
    return (status, headers.keys() & {"content-type", "content-length", "transfer-encoding"}) == (204, set())


def test_nothing_of_all_this_was_an_error_of_the_services_own(service: Service, small: Service) -> None:
    """Runs last in its module, and reads what the services have logged by then."""
    for log in (service.log, small.log):
        assert "internal error" not in log
        assert "Traceback" not in log
