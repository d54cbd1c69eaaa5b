"""The native wires as golden bytes: server-sent events and NDJSON, over an app driven by hand on a jumping clock.

What a browser, a line reader and an older client of the same paths rely on stands here letter by letter.
"""

import asyncio
import json
import logging
import re
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from streaming.events import Cancelled, Finish, Token, ToolCall, Usage
from streaming.request import Emit, ProviderSettings, RunRequest
from wires.chat import json_line
from wires.ndjson import line
from wires.sse import frame

from .asgi import Exchange, ask, ask_json, make_app, run_ahead, service_of, time_passes

RUN = "0" * 32
EVENTS = {"accept": "text/event-stream"}


class Mirror:
    """A provider that says what it is asked, and keeps count of it."""

    asked: ClassVar[list[RunRequest]] = []

    def __init__(self, settings: ProviderSettings, upstream: Any) -> None:
        pass

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        self.asked.append(request)
        emit([Token(msgspec.json.encode(request).decode()), Finish("stop", Usage(1, 1))])


class Surrogate(Mirror):
    """A provider that passes half a character on, as Python's own json lets it."""

    async def stream(self, request: RunRequest, emit: Emit) -> None:
        emit([Token(json.loads('"\\ud83d"')), Finish("stop")])


PROVIDERS = {name.lower(): {"use": f"tests.test_sse_wire:{name}", "models": ["m"]} for name in ("Mirror", "Surrogate")}


async def app_with(**environ: str) -> Starlette:
    return await make_app(SIDESTREAM_PROVIDERS=json.dumps(PROVIDERS), **environ)


def script(*steps: dict[str, Any], path: str = "/chat/stream") -> str:
    """Return the target that plays the steps."""
    options = json.dumps({"script": steps})
    return f"{path}?" + urlencode({"message": "Hi!", "model": "scripted/custom", "provider_options": options})


def plain(exchange: Exchange) -> str:
    """Return the body with what differs from run to run made equal: the run's id and the second it began."""
    [run_id] = set(re.findall("[0-9a-f]{32}", exchange.body.decode()))
    return re.sub(r'"created":\d{10}\b', '"created":0', exchange.body.decode().replace(run_id, RUN))


def without_run(exchange: Exchange) -> dict[str, str]:
    """Return the headers but the one that names the run, which must be right."""
    headers = dict(exchange.headers)
    assert re.fullmatch("/runs/[0-9a-f]{32}", headers.pop("content-location"))
    return headers


def get(target: str, headers: dict[str, str] | None = None, **environ: str) -> Exchange:
    async def test() -> Exchange:
        return await ask(await app_with(**environ), "GET", target, headers=headers)

    return run_ahead(test())


def post(target: str, **body: object) -> Exchange:
    async def test() -> Exchange:
        return await ask_json(await app_with(), target, **body)

    return run_ahead(test())


def mirrored(exchange: Exchange) -> dict[str, Any]:
    """Return the request as the provider got it, without who asks; of what other wires add there is nothing."""
    _, token, rest = exchange.body.decode().partition('{"token":')
    asked, _ = json.JSONDecoder().raw_decode(token + rest)
    told = {name: value for name, value in json.loads(asked["token"]).items() if value not in (None, False)}
    assert [told.pop(name) for name in ("passed", "ids", "beside")] == [[], [], {}]
    return {name: value for name, value in told.items() if name not in ("owner", "trace")}


ALL_KINDS = script(
    {"wait": 0.5, "think": "Hm."},
    {"wait": 0.25, "say": "Hi\nthere", "every": 0.25},
    {"call": {"tool": "sky", "args": {"city": "Paris"}, "result": "blue"}},
    {"finish": "tool_calls"},
)

SSE = """\
retry: 3000

event: start
id: 00000000000000000000000000000000-1
data: {"run":"00000000000000000000000000000000","provider":"scripted","model":"custom","created":0}

event: reasoning
id: 00000000000000000000000000000000-2
data: {"reasoning":"Hm."}

event: token
id: 00000000000000000000000000000000-3
data: {"token":"Hi\\nthere"}

event: tool_call_delta
id: 00000000000000000000000000000000-4
data: {"index":0,"args_delta":"{\\"city\\":","id":"call_1","tool":"sky"}

event: tool_call_delta
id: 00000000000000000000000000000000-5
data: {"index":0,"args_delta":"\\"Paris\\"}"}

event: tool_call
id: 00000000000000000000000000000000-6
data: {"id":"call_1","tool":"sky","args":{"city":"Paris"}}

event: tool_result
id: 00000000000000000000000000000000-7
data: {"id":"call_1","tool":"sky","content":"blue"}

event: done
id: 00000000000000000000000000000000-8
data: {"done":true,"finish_reason":"tool_calls","model":"custom","usage":{"input_tokens":1,"output_tokens":7,\
"estimated":true},"tokens":4,"ttft_ms":500,"latency_ms":1000}

"""


def test_a_whole_stream_of_server_sent_events() -> None:
    exchange = get(ALL_KINDS, EVENTS)
    assert plain(exchange) == SSE
    assert exchange.is_whole


def test_the_headers_of_a_stream_keep_caches_and_proxies_from_holding_it() -> None:
    exchange = get("/chat/stream?message=hi&model=scripted/hello")
    assert (exchange.status, without_run(exchange)) == (
        200,
        {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            "x-content-type-options": "nosniff",
            "connection": "keep-alive",
        },
    )


@pytest.mark.parametrize(
    ("target", "headers"),
    [(ALL_KINDS, {"accept": "application/x-ndjson"}), (ALL_KINDS.replace("/chat/stream", "/stream"), {})],
    ids=["by accept", "by path"],
)
def test_a_whole_stream_of_lines(target: str, headers: dict[str, str]) -> None:
    """The same events as JSON lines, one for one."""
    exchange = get(target, headers)
    expected = []
    for block in SSE.strip().split("\n\n")[1:]:
        name, event_id, data = (field.partition(": ")[2] for field in block.split("\n"))
        expected.append(f'{{"event":"{name}","id":"{event_id}","data":{data}}}\n')
    assert plain(exchange) == "".join(expected)
    assert exchange.is_whole
    assert without_run(exchange) == {
        "content-type": "application/x-ndjson",
        "cache-control": "no-store",
        "x-accel-buffering": "no",
        "x-content-type-options": "nosniff",
    }


FAILED = """\
event: error
id: 00000000000000000000000000000000-3
data: {"done":true,"error":"The script says that the upstream fails here.","code":"upstream_rate_limited",\
"retryable":true,"usage":{"input_tokens":1,"output_tokens":1,"estimated":true}}

"""


def test_a_stream_that_fails_ends_with_error_and_is_whole() -> None:
    exchange = get(script({"say": "Hi"}, {"fail": "upstream_rate_limited"}))
    assert plain(exchange).endswith('data: {"token":"Hi"}\n\n' + FAILED)
    assert (exchange.status, exchange.is_whole) == (200, True)


CANCELLED = """\
event: cancelled
id: 00000000000000000000000000000000-3
data: {"done":true,"reason":"draining","usage":{"input_tokens":1,"output_tokens":1,"estimated":true}}

"""


def test_a_stream_that_is_cancelled_by_the_service_ends_with_cancelled_and_is_whole() -> None:
    async def test() -> Exchange:
        app = await app_with(SIDESTREAM_IDLE_TIMEOUT="59")  # one of its own: it will not serve again
        async with Exchange(app, "GET", script({"say": "Hi"}, {"hang": True})) as exchange:
            await exchange.until(b"Hi")
            await service_of(app).runs.close()
        return exchange

    exchange = run_ahead(test())
    assert plain(exchange).endswith('data: {"token":"Hi"}\n\n' + CANCELLED)
    assert exchange.is_whole


@pytest.mark.parametrize("path", ["/chat/stream", "/stream"])
def test_who_comes_while_the_service_stops_is_sent_elsewhere(path: str) -> None:
    async def test() -> Exchange:
        app = await app_with(SIDESTREAM_IDLE_TIMEOUT="58" if path == "/stream" else "57")
        await service_of(app).runs.close()
        return await ask(app, "GET", f"{path}?message=hi&model=mirror")

    exchange = run_ahead(test())
    assert (exchange.status, exchange.headers["retry-after"]) == (503, "1")
    assert json.loads(exchange.body)["code"] == "shutting_down"


def test_each_event_leaves_as_soon_as_it_is_there_and_in_one_piece() -> None:
    exchange = get(script({"wait": 1, "say": "one two", "every": 1}))
    names = [re.findall(rb"^event: (\w+)$", piece, re.MULTILINE) for piece in exchange.bodies]
    assert names == [[b"start"], [b"token"], [b"token"], [b"done"]]
    assert exchange.bodies[0].startswith(b"retry: 3000\n\nevent: start\n")
    assert all(piece.endswith(b"\n\n") for piece in exchange.bodies)


def test_a_slow_viewer_gets_the_same_text_in_fewer_events_and_ids_of_the_last_parts() -> None:
    async def test() -> Exchange:
        app = await app_with()
        async with Exchange(app, "GET", script({"say": "one two three four", "every": 1})) as exchange:
            await exchange.until(b"one")
            exchange.hold()
            await time_passes(30)
            exchange.go_on()
        return exchange

    ids_and_tokens = re.findall(r'id: \w+-(\d+)\ndata: {"token":"([^"]*)"}', run_ahead(test()).body.decode())
    assert ids_and_tokens == [("2", "one"), ("3", " two"), ("5", " three four")]


def test_the_time_to_reconnect_is_a_setting() -> None:
    assert get(script(), SIDESTREAM_RETRY_MS="50").body.startswith(b"retry: 50\n\nevent: start\n")


def test_pings_are_comments_while_the_upstream_is_silent() -> None:
    exchange = get(script({"wait": 2.5, "say": "Hi", "every": 0.25}), SIDESTREAM_PING_INTERVAL="1")
    start, ping, again, token, done = exchange.bodies
    assert (ping, again) == (b": ping\n\n", b": ping\n\n")
    assert [re.findall(rb"event: (\w+)", piece) for piece in (start, token, done)] == [
        [b"start"],
        [b"token"],
        [b"done"],
    ]


def test_pings_of_lines_are_empty_lines() -> None:
    exchange = get(script({"wait": 2.5, "say": "Hi"}, path="/stream"), SIDESTREAM_PING_INTERVAL="1")
    names = [json.loads(text)["event"] if text else "" for text in exchange.body.decode().split("\n")]
    assert names == ["start", "", "", "token", "done", ""]


def test_there_is_no_ping_while_there_is_something_to_say() -> None:
    exchange = get(script({"say": "one two three four", "every": 0.9}), SIDESTREAM_PING_INTERVAL="1")
    assert (exchange.body.count(b"event: token"), b": ping" in exchange.body) == (4, False)


@pytest.mark.parametrize("path", ["/chat/stream", "/stream"])
def test_pings_can_be_switched_off(path: str) -> None:
    exchange = get(script({"wait": 100, "say": "Hi"}, path=path), SIDESTREAM_PING_INTERVAL="0")
    assert (b": ping" in exchange.body, b"\n\n\n" in exchange.body, b"Hi" in exchange.body) == (False, False, True)
    assert path == "/chat/stream" or b"\n\n" not in exchange.body


@pytest.mark.parametrize("path", ["/chat/stream", "/stream"])
def test_a_token_that_comes_at_the_very_moment_of_a_ping_is_not_lost(path: str) -> None:
    exchange = get(script(*[{"wait": 1, "say": "Hi"}] * 4, path=path), SIDESTREAM_PING_INTERVAL="1")
    assert exchange.is_whole
    assert re.findall(rb'"(token|finish_reason)":"([^"]*)"', exchange.body) == [
        *[(b"token", b"Hi")] * 4,
        (b"finish_reason", b"stop"),
    ]


def test_a_client_that_reads_nothing_but_data_lines_works() -> None:
    """It decodes what follows `data: `, prints `token` where there is one, and stops at `done`."""
    printed, lines = "", iter(get("/chat/stream?message=hi&model=scripted/tools").body.decode().split("\n"))
    for text in lines:
        if text.startswith("data: "):
            data = json.loads(text[6:])
            printed += data.get("token", "")
            if data.get("done"):
                break
    assert printed == "Let me look at the weather.It is 21 degrees in Paris, under a clear sky."
    assert list(lines) == ["", ""]  # nothing but the blank line of the last event


def test_text_of_any_language_comes_through_on_one_line() -> None:
    said = 'Grüße, 世界! 👍\u2028\u2029\x85\r\n\t\0"\\'
    body = get(script({"say": said})).body
    assert b"".join(re.findall(rb"^data: (\{\"token.*)$", body, re.MULTILINE)) == (
        '{"token":"Grüße,"}{"token":" 世界!"}{"token":" 👍\\u2028\\u2029\\u0085\\r\\n\\t\\u0000\\"\\\\"}'.encode()
    )


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\n", "\r"])
def test_no_line_end_of_any_reader_leaves_as_it_is(end: str) -> None:
    encoded = json_line(Token(f"a{end}b"))
    assert (json.loads(encoded), len(encoded.decode().splitlines())) == ({"token": f"a{end}b"}, 1)


def test_half_a_character_from_a_provider_does_not_cut_the_stream() -> None:
    """JSON can name one, Python's own reader lets it in, and the log counts it: then a viewer must get an end."""
    exchange = get("/chat/stream?message=hi&model=surrogate")
    assert exchange.is_whole
    assert re.findall(rb"^event: (\w+)$", exchange.body, re.MULTILINE)[-1] in (b"done", b"error")


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_one_line_to_every_reader(text: str) -> None:
    encoded = json_line(Token(text))
    assert encoded.decode().splitlines() == [encoded.decode()]
    assert json.loads(encoded) == {"token": text}


def test_an_event_is_framed_the_same_wherever_it_comes_from() -> None:
    run_id, cancelled = b"ab12", Cancelled(reason="requested", usage=Usage(1, 0))
    data = b'{"done":true,"reason":"requested","usage":{"input_tokens":1,"output_tokens":0}}'
    assert frame(run_id, 7, cancelled) == b"event: cancelled\nid: ab12-7\ndata: " + data + b"\n\n"
    assert line(run_id, 7, cancelled) == b'{"event":"cancelled","id":"ab12-7","data":' + data + b"}\n"


def test_what_json_does_not_know_goes_as_its_text() -> None:
    assert json_line(ToolCall("i", "f", {"path": ValueError("x")})) == b'{"id":"i","tool":"f","args":{"path":"x"}}'


@pytest.mark.parametrize("depth", [10, 400, 900, *range(960, 1000, 4)])
def test_arguments_of_any_depth_end_in_a_terminal_event_or_are_refused(depth: int) -> None:
    """What could be read may be too deep to be written again: that too is an end, not a cut."""
    steps = '{"script":[{"call":{"tool":"f","args":' + '{"a":' * depth + "1" + "}" * depth + "}}]}"
    exchange = get("/chat/stream?message=x&model=scripted/custom&provider_options=" + quote(steps))
    names = re.findall(rb"^event: (\w+)$", exchange.body, re.MULTILINE)
    assert (exchange.status, exchange.is_whole) == (200 if names else 400, True)
    assert not names or names[-1] in (b"done", b"error")


# Requests that start nothing


@pytest.mark.parametrize(
    "target", ["/chat/stream?message=hi&model=mirror", "/stream?message=hi&model=mirror", "/mirror/stream?message=hi"]
)
def test_head_answers_with_the_headers_of_a_stream_and_starts_nothing(target: str) -> None:
    async def test() -> tuple[Exchange, int]:
        app, before = await app_with(), len(Mirror.asked)
        async with Exchange(app, "HEAD", target) as exchange:
            exchange.hold()  # a socket that takes nothing at first: time enough for a run to reach its provider
            await time_passes(1)
        return exchange, len(Mirror.asked) - before

    exchange, runs = run_ahead(test())
    assert (exchange.status, exchange.body, exchange.is_whole, runs) == (200, b"", True, 0)
    assert exchange.headers == without_run(get(target))


IDS = [
    ("/chat/stream?message=hi&model=mirror", {"last-event-id": f"{RUN}-7"}),
    ("/chat/stream?message=hi&model=mirror", {"Last-Event-ID": f"{RUN}-123456789012345"}),
    (f"/chat/stream?message=hi&model=mirror&last_event_id={RUN}-1", {}),
    (f"/mirror/stream?message=hi&lastEventId={RUN}-1", {}),
    (f"/stream?lastEventId={RUN}-1", {}),
]


@pytest.mark.parametrize(("target", "headers"), IDS)
def test_a_stream_that_comes_back_for_a_run_that_is_not_kept_starts_nothing(
    target: str, headers: dict[str, str]
) -> None:
    before = len(Mirror.asked)
    exchange = get(target, headers)
    assert (exchange.status, json.loads(exchange.body)["code"], len(Mirror.asked) - before) == (404, "not_found", 0)


def test_a_post_that_comes_back_starts_nothing_either() -> None:
    """Clients that speak server-sent events over fetch send POST again, with the id, after a drop."""

    async def test() -> tuple[Exchange, int]:
        app, before = await app_with(), len(Mirror.asked)
        headers = {"content-type": "application/json", "last-event-id": f"{RUN}-7"}
        body = b'{"message":"hi","model":"mirror"}'
        exchange = await ask(app, "POST", "/chat/stream", headers=headers, body=body)
        return exchange, len(Mirror.asked) - before

    exchange, runs = run_ahead(test())
    assert (exchange.status, runs) == (404, 0)


# Who leaves


@pytest.mark.parametrize("path", ["/chat/stream", "/stream"])
@pytest.mark.parametrize("steps", [[{"hang": True}], [{"say": "Hi"}, {"hang": True}]], ids=["silent", "mid-stream"])
def test_a_client_that_disconnects_ends_its_run(path: str, steps: list[dict[str, Any]]) -> None:
    async def test() -> tuple[list[int], float]:
        app = await app_with()
        runs, counts = service_of(app).runs, []
        async with Exchange(app, "GET", script(*steps, path=path)) as exchange:
            await exchange.until(b"Hi" if len(steps) > 1 else b"start")
            counts.append(len(runs))
            exchange.disconnect()
            await asyncio.wait((exchange.task,))
            waited = asyncio.get_running_loop().time()
            await time_passes(1)
            counts.append(len(runs))
        return counts, waited

    assert run_ahead(test()) == ([1, 0], 0)


@pytest.mark.parametrize("path", ["/chat/stream", "/stream"])
def test_a_client_that_takes_nothing_is_let_go_and_its_run_ends(path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sidestream")

    async def test() -> list[int]:
        app = await app_with(SIDESTREAM_SEND_TIMEOUT="5", SIDESTREAM_PING_INTERVAL="0")
        runs, counts = service_of(app).runs, []
        async with Exchange(app, "GET", script({"say": "one two", "every": 1}, {"hang": True}, path=path)) as exchange:
            await exchange.until(b"one")
            exchange.hold()
            for seconds in (4.5, 3):
                await time_passes(seconds)
                counts.append(len(runs))
        return counts

    assert run_ahead(test()) == [1, 0]
    [record] = [record for record in caplog.records if record.levelno > logging.INFO]
    assert re.fullmatch(r"run \w{32}: a viewer took nothing for 5 s and was let go", record.getMessage())


@pytest.mark.parametrize("path", ["/chat/stream", "/stream"])
def test_a_client_that_takes_all_there_is_may_wait_for_as_long_as_it_takes(path: str) -> None:
    steps = [{"wait": 1, "say": "Hi"}, {"wait": 50, "say": "there"}]
    exchange = get(script(*steps, path=path), SIDESTREAM_SEND_TIMEOUT="5", SIDESTREAM_PING_INTERVAL="0")
    assert (b'"token":"there"' in exchange.body, exchange.is_whole) == (True, True)


def test_no_run_is_left_when_a_stream_is_over() -> None:
    async def test() -> int:
        app = await app_with()
        for target in ("/chat/stream", "/stream"):
            await ask(app, "GET", target + "?message=hi&model=scripted/cut")
        return len(service_of(app).runs)

    assert run_ahead(test()) == 0


# Paths and names of the same things elsewhere

HI = {"model": "m", "messages": [{"role": "user", "content": "Hi!"}]}


@pytest.mark.parametrize("path", ["/chat/stream", "/chat/stream-meta", "/stream", "/mirror/stream"])
@pytest.mark.parametrize("name", ["message", "question"])
def test_every_path_takes_a_message_by_either_of_its_names(path: str, name: str) -> None:
    model = {} if path == "/mirror/stream" else {"model": "mirror/m"}
    assert mirrored(get(f"{path}?" + urlencode({name: "Hi!", **model}))) == HI
    assert mirrored(post(path, **{name: "Hi!"}, **model)) == HI


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_prompt_has_either_of_its_names(name: str) -> None:
    asked = {**HI, "system": "Be brief."}
    assert mirrored(get("/mirror/stream?" + urlencode({"message": "Hi!", name: "Be brief."}))) == asked
    assert mirrored(post("/mirror/stream", **{"message": "Hi!", name: "Be brief."})) == asked


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/chat/stream", "text/event-stream; charset=utf-8"),
        ("/chat/stream-meta", "text/event-stream; charset=utf-8"),
        ("/mirror/stream", "text/event-stream; charset=utf-8"),
        ("/stream", "application/x-ndjson"),
    ],
)
def test_each_path_has_its_transport(path: str, content_type: str) -> None:
    assert get(f"{path}?message=hi").headers["content-type"] == content_type
    assert post(path, message="hi").headers["content-type"] == content_type


def test_a_whole_conversation_and_every_option_reach_the_provider() -> None:
    body: dict[str, Any] = {
        "model": "m",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Hi"},
                    {"type": "image_url", "image_url": {"url": "https://x/i.png"}},
                ],
            },
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "4", "tool_call_id": "c"},
        ],
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 1.0,
        "stop": ["a", "b"],
        "seed": 7,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_object"},
        "provider_options": {"logprobs": True},
    }
    asked = mirrored(post("/mirror/stream", **body, run_timeout=5))
    assert asked == body


def test_a_query_carries_lists_and_objects_as_json() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    query = {"messages": json.dumps(messages), "max_tokens": "5", "temperature": "0.5", "stop": "END", "seed": "7"}
    assert mirrored(get("/mirror/stream?" + urlencode({**query, "response_format": '{"type":"json_object"}'}))) == {
        "model": "m",
        "messages": messages,
        "max_tokens": 5,
        "temperature": 0.5,
        "stop": "END",
        "seed": 7,
        "response_format": {"type": "json_object"},
    }


def test_words_that_look_like_json_are_a_message_all_the_same() -> None:
    for words in ("null", "5", "true", '{"a": 1}', " x "):
        assert mirrored(get("/mirror/stream?" + urlencode({"message": words})))["messages"][0]["content"] == words


def test_a_request_may_shorten_its_deadlines() -> None:
    exchange = get(script({"hang": True}) + "&first_token_timeout=1.5")
    assert b'"code":"first_token_timeout"' in exchange.body
    assert b"The upstream sent nothing for 1.5 s." in exchange.body
