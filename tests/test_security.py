"""What an attacker would try that is no other file's: words that want to be lines, headers or paths of their own.

Keys, owners and hosts: test_access.py, test_tokens.py, test_host.py. Signatures: test_links.py. Origins and CORS:
test_origin.py. Bad JSON: test_bad_input.py. What upstreams say: test_upstreams.py. The page: test_page_policy.py.
"""

import json
import re
from urllib.parse import quote

import pytest

from .client import Client, get, post
from .conftest import ROOT, Service, Start
from .resource import answer, create
from .test_graph_owners import GRAPHS

LINES = {
    "LF": "a\n\nevent: forged\ndata: {}\n\n",
    "CRLF": "a\r\nX-Forged: 1\r\n\r\nforged",
    "CR": "a\r\rdata: forged\r\r",
    "NUL": "a\0forged",
    "NEL": "a\u0085data: forged\u0085",
    "LS": "a\u2028data: forged\u2028",
    "PS": "a\u2029data: forged\u2029",
    "an escape": "a\x1b[2Jforged",
}
each_line = pytest.mark.parametrize("line", LINES.values(), ids=LINES)
# All that an answer of ours may have, but those of a WebSocket's handshake.
HEADERS = {
    *("date", "server", "content-type", "content-length", "transfer-encoding", "connection", "cache-control"),
    *("x-accel-buffering", "x-content-type-options", "content-location", "location", "retry-after", "allow"),
}


@pytest.fixture(scope="module")
def naive(start_service: Start) -> Service:
    """One that takes any word for a model, and any for a thread."""
    nowhere = {"use": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key": "none"}
    return start_service(
        SIDESTREAM_PROVIDERS=json.dumps({"down": nowhere}), SIDESTREAM_MAX_RETRIES="0", SIDESTREAM_GRAPHS=GRAPHS
    )


def is_in_order(client: Client) -> str:
    """Read an answer, and see to it that it has the headers and the lines that it should; return its body."""
    status, headers, body = answer(client)
    assert status < 500
    assert headers.keys() <= HEADERS, headers
    if headers.get("content-type", "").startswith("text/event-stream"):
        lines = body.decode().splitlines()
        kinds = (r"retry: \d+", r"event: \w+", r"id: [0-9a-f]{32}-\d+", r"data: \{.*\}", r": ping", "")
        assert [line for line in lines if not any(re.fullmatch(kind, line) for kind in kinds)] == []
        assert "event: forged" not in lines
    return body.decode()


@each_line
def test_a_word_that_comes_back_in_an_event_stays_in_its_line(naive: Service, line: str) -> None:
    body = is_in_order(post(naive.port, "/chat/stream", message="Hi", model=f"down/{line}"))
    [started] = [json.loads(data[6:]) for data in body.splitlines() if data.startswith('data: {"run"')]
    assert started["model"] == line
    body = is_in_order(post(naive.port, "/asking/stream", message=line, thread_id=line, stream_mode=["values"]))
    [started] = [json.loads(data[6:]) for data in body.splitlines() if data.startswith('data: {"run"')]
    assert started["thread_id"] == line
    assert "Traceback" not in naive.log


@each_line
def test_a_word_in_an_address_makes_no_header(naive: Service, line: str) -> None:
    word = quote(line)
    for target in (
        f"/{word}/stream?message=Hi",
        f"/runs/{word}",
        f"/runs/{word}/events?last_event_id={word}",
        f"/chat/stream?message=Hi&model={word}",
        f"/chat/stream?message=Hi&last_event_id={word}",
        f"/chat/stream?message=Hi&{word}={word}",
        f"/runs/{word}?expires={word}&signature={word}",
    ):
        body = is_in_order(Client(naive.port, "GET", target))
        assert json.loads(body)["status"] in (400, 404)


def test_nor_does_one_in_a_header_of_the_request(naive: Service) -> None:
    word = "a\u00e9\x01forged".encode("latin-1").decode("latin-1")
    for name in ("Idempotency-Key", "Last-Event-ID", "Accept", "Origin", "Referer", "X-Forwarded-For", "X-API-Key"):
        with post(naive.port, "/runs", {name: word}, message="Hi", model="scripted/hello") as client:
            assert client.head()[1].keys() <= HEADERS


def test_two_requests_in_one_are_two_or_none(naive: Service) -> None:
    """Request smuggling: a body that two servers would measure differently is no request (RFC 9112, 6.3)."""
    for headers in (
        {"Content-Length": "5", "Transfer-Encoding": "chunked"},
        {"Content-Length": "5, 6"},
        {"Transfer-Encoding": "chunked, identity"},
    ):
        with Client(naive.port, "POST", "/runs", headers={"Content-Type": "application/json", **headers}) as client:
            client.send(b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: forged\r\n\r\n")
            assert client.head()[0] == 400, headers


@pytest.mark.parametrize(
    "path",
    [
        "/../service.py",
        "/%2e%2e/service.py",
        "/..%2fservice.py",
        "/sidestream.js/../../service.py",
        "/sidestream.js%00.html",
        "/web/../service.py",
        "//service.py",
        "/%5c..%5cservice.py",
        "/runs/..%2f..%2fservice.py",
        "/..%2f/stream?message=Hi",
        "/etc/passwd",
    ],
)
def test_no_path_leads_out_of_what_is_served(naive: Service, path: str) -> None:
    status, headers, body = answer(Client(naive.port, "GET", path))
    assert (status, headers["content-type"]) == (404, "application/problem+json")
    assert (ROOT / "service.py").read_bytes()[:60] not in body


def test_of_a_name_that_is_given_twice_the_last_counts_and_no_other_is_seen(naive: Service) -> None:
    """As most readers of JSON have it (RFC 8259, 4); what we have checked is what is used."""
    body = b'{"message": "one", "message": "two", "model": "scripted/cut", "model": "scripted/echo"}'
    with Client(naive.port, "POST", "/chat/stream", headers={"Content-Type": "application/json"}, body=body) as client:
        assert [event.data["token"] for event in client if event.name == "token"] == ["two"]


def test_a_run_is_found_by_its_whole_id_only(naive: Service) -> None:
    run = create(naive.port, message="Hi", model="scripted/hello")["id"]
    for near in (run[:-1], run + "0", run.upper(), f"{run}%00", f"{run}/", f"./{run}", f"{run}%20"):
        with get(naive.port, f"/runs/{near}") as client:
            assert client.head()[0] == 404, near
