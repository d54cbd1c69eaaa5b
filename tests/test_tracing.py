"""Traces: the span of each kind of run as a collector gets it, whose child it is, and what an upstream learns of it."""

import asyncio
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan

from providers.endpoint import record
from service import create_service
from streaming.conventions import asked, prompted
from streaming.errors import ServiceError, SettingsError
from streaming.failover import Candidate, Failover
from streaming.limits import Limits
from streaming.request import (
    FunctionCall,
    ImagePart,
    ImageURL,
    Message,
    MessageToolCall,
    ProviderSettings,
    RunRequest,
    TextPart,
)
from streaming.run import Run
from streaming.tracing import CLOSE_TIMEOUT, Tracing

from .client import DEADLINE, Client, Event, get, post
from .conftest import FOREIGN, ROOT, Service, Start, eventually
from .recorded import ANTHROPIC, DIALECTS, OPENAI, Dialect
from .resource import create, status_of, stop
from .sockets import talk
from .upstream import FIN, Head, Upstream, environ

pytest_plugins = ["tests.upstream"]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"  # as W3C's own examples
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
ALIASES = {"either": ["openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"]}
NO_TROUBLE = {"sidestream.retries": 0, "sidestream.failovers": 0, "sidestream.resets": 0}
SECRETS = ("xyzzy", "plugh", "swordfish")  # what is asked, how, and what an upstream says of it
# A chain tells the span it runs in: one function that blocks, and one that does not.
CHAINS = """
from langchain_core.runnables import RunnableLambda
from opentelemetry import trace

def here(_):
    return format(trace.get_current_span().get_span_context().span_id, "016x")

async def there(said):
    return said + " " + here(said)

chain = RunnableLambda(here) | RunnableLambda(there)
"""
# What opentelemetry-instrument makes of an app: a provider for all, and a span around each request.
INSTRUMENTED = """
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

class Broken(SpanProcessor):
    def on_end(self, span):
        if span.name.startswith("chat"):
            raise KeyError("swordfish")

provider = TracerProvider(resource=Resource.create({"service.name": "theirs"}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
provider.add_span_processor(Broken())
trace.set_tracer_provider(provider)

from service import app as inner

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await inner(scope, receive, send)
    with trace.get_tracer("theirs").start_as_current_span("server"):
        await inner(scope, receive, send)
"""


class Span(NamedTuple):
    """A span as it was sent. `seconds` are the times of its events, from its beginning."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    state: str
    attributes: dict[str, Any]
    events: list[str]
    seconds: list[float]
    lasted: float
    began: float
    status: tuple[int, str]
    resource: dict[str, Any]


def plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [plain(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: plain(pair.value) for pair in pairs}


def span_of(sent: SentSpan, resource: dict[str, Any]) -> Span:
    began = sent.start_time_unix_nano
    return Span(
        sent.name,
        sent.kind,
        sent.trace_id.hex(),
        sent.span_id.hex(),
        sent.parent_span_id.hex(),
        sent.trace_state,
        attributes(sent.attributes),
        [event.name for event in sent.events],
        [(event.time_unix_nano - began) / 1e9 for event in sent.events],
        (sent.end_time_unix_nano - began) / 1e9,
        began / 1e9,
        (sent.status.code, sent.status.message),
        resource,
    )


class Collector:
    """Receives OTLP over HTTP, in threads of the tests. It is an HTTP proxy, too, and answers what was `proxied`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.raw = b""
        self.proxied: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    collector.take(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
                    self.answer(b"", "application/x-protobuf")
                else:
                    collector.proxied.append({name.lower(): value for name, value in self.headers.items()})
                    self.answer(b"".join([*OPENAI.opening, OPENAI.token("Hi"), *OPENAI.ending]), "text/event-stream")

            def answer(self, body: bytes, media_type: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Collector":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="collector").start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, body: bytes) -> None:
        self.raw += body
        for whole in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = attributes(whole.resource.attributes)
            self.spans += [span_of(span, resource) for scope in whole.scope_spans for span in scope.spans]

    def all_of(self, run: str) -> list[Span]:
        return [span for span in self.spans if span.attributes.get("sidestream.run_id") == run]

    def span(self, run: str) -> Span:
        """Return the span of a run as soon as it has come."""
        [span] = eventually(lambda: self.all_of(run))
        return span


def tracing_to(url: str, **more: str) -> dict[str, str]:
    """Return what makes a service send its spans there; without the embedded model, which takes time to start."""
    return {
        "SIDESTREAM_TRACING": "true",
        "SIDESTREAM_PROVIDERS": '{"local": {"enabled": false}}',
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_BSP_SCHEDULE_DELAY": "20",
        **more,
    }


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as one:
        yield one


@pytest.fixture(scope="module")
def traced(
    start_service: Start,
    upstream_server: Upstream,
    collector: Collector,
    tmp_path_factory: pytest.TempPathFactory,
) -> Service:
    """Traces its runs, of which one goes on at a time."""
    folder = tmp_path_factory.mktemp("chains")
    (folder / "spanning.py").write_text(CHAINS)
    return start_service(
        **environ(upstream_server),
        **tracing_to(collector.url),
        SIDESTREAM_MODELS=json.dumps(ALIASES),
        SIDESTREAM_MAX_RUNS="1",
        SIDESTREAM_GRAPHS="asking=tests.graphs:asking",
        SIDESTREAM_CHAINS="spanning=spanning:chain",
        PYTHONPATH=str(folder),
    )


def run_of(client: Client) -> str:
    """Read a run to its end and return its id."""
    with client:
        return ended(list(client))


def ended(events: list[Event]) -> str:
    assert events[-1].data["done"] is True, events
    return events[-1].id.partition("-")[0]


def told(span: Span, *apart: str) -> dict[str, Any]:
    """Return a span's attributes without the times, which must be there, and those `apart`."""
    left = dict(span.attributes)
    for name in ("sidestream.run_id", *apart):
        assert left.pop(name) is not None
    return left


TIMES = ("gen_ai.response.time_to_first_chunk", "sidestream.queued_ms")


def script(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"provider_options": {"script": steps}}


# --- what a span tells ------------------------------------------------------------------------------------------------


def test_the_span_of_a_whole_answer_tells_what_was_asked_and_what_came_of_it(
    traced: Service, collector: Collector
) -> None:
    before = time.time()
    sampling = {"max_tokens": 50, "temperature": 0.5, "top_p": 0.9, "stop": ["END"], "seed": 7}
    fields = {**sampling, "response_format": {"type": "json_object"}, **script({"think": "Two"}, {"wait": 0.05})}
    span = collector.span(run_of(post(traced.port, model="scripted/custom", message="Hi", system="Think.", **fields)))
    assert told(span, "gen_ai.response.time_to_first_chunk") == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "custom",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.stop_sequences": ["END"],
        "gen_ai.request.seed": 7,
        "gen_ai.output.type": "json",
        "gen_ai.response.model": "custom",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 1,
        "sidestream.usage_estimated": True,
        "sidestream.outcome": "done",
        "sidestream.reason": "stop",
        **NO_TROUBLE,
    }
    assert (span.name, span.kind, span.status) == ("chat custom", SentSpan.SPAN_KIND_CLIENT, (0, ""))
    assert (span.parent, span.resource["service.name"]) == ("", "sidestream")
    assert span.events == ["first_token"]
    assert 0 <= span.seconds[0] < span.lasted - 0.04
    assert before < span.began < span.began + span.lasted < time.time()


@pytest.mark.parametrize("dialect", DIALECTS, ids=[dialect.provider for dialect in DIALECTS])
def test_a_run_belongs_to_its_clients_trace_and_its_upstream_to_the_runs(
    traced: Service, upstream: Upstream, collector: Collector, dialect: Dialect
) -> None:
    upstream.stream(*dialect.opening, dialect.token("Hi"), *dialect.ending)
    headers = {"traceparent": TRACEPARENT, "tracestate": "congo=t61rcWkgMzE, rojo=00f067aa0ba902b7", "baggage": "a=b"}
    span = collector.span(run_of(post(traced.port, f"/{dialect.provider}/stream", headers, message="Hi")))
    assert (span.trace, span.parent, span.state) == (TRACE, PARENT, "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7")
    sent = upstream.request().headers
    assert sent["traceparent"] == f"00-{TRACE}-{span.id}-01"
    assert sent["tracestate"] == span.state
    assert "baggage" not in sent
    usage = {"input": dialect.usage["input_tokens"], "output": dialect.usage["output_tokens"]}
    more = {"cache_read.input": "cached_tokens", "reasoning.output": "reasoning_tokens"}
    usage |= {name: dialect.usage[field] for name, field in more.items() if field in dialect.usage}
    assert told(span, "gen_ai.response.time_to_first_chunk") == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic" if dialect is ANTHROPIC else "openai",
        "gen_ai.request.model": dialect.model,
        "gen_ai.request.stream": True,
        "gen_ai.response.model": dialect.answers_as,
        "gen_ai.response.finish_reasons": ["stop"],
        **{f"gen_ai.usage.{name}_tokens": number for name, number in usage.items()},
        "sidestream.outcome": "done",
        "sidestream.reason": "stop",
        **NO_TROUBLE,
    }
    assert span.name == f"chat {dialect.model}"


def test_the_span_of_a_failure_tells_its_code_and_no_word_of_the_upstreams(
    traced: Service, upstream: Upstream, collector: Collector
) -> None:
    upstream.refuse(400, OPENAI.error_body("swordfish is no prompt."))
    with post(traced.port, "/openai/stream", message="Hi", max_tokens=5) as client:
        events = list(client)
    assert "swordfish" in events[-1].data["error"]
    span = collector.span(ended(events))
    assert told(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.response.finish_reasons": ["error"],
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 0,
        "sidestream.usage_estimated": True,
        "error.type": "upstream_rejected",
        "sidestream.outcome": "error",
        "sidestream.reason": "upstream_rejected",
        **NO_TROUBLE,
    }
    assert (span.status, span.events) == ((SentSpan().status.STATUS_CODE_ERROR, "upstream_rejected"), [])


def test_a_run_that_waits_in_line_tells_so_and_one_that_is_stopped_is_no_error(
    traced: Service, collector: Collector
) -> None:
    first = create(traced.port, model="scripted/silent", message="Hi")["id"]
    with post(traced.port, model="scripted/echo", message="Hi") as waiting:
        left = create(traced.port, model="scripted/echo", message="Hi")["id"]
        stop(traced.port, f"/runs/{left}")
        waiting.until("queued")
        since = age(traced, first)
        eventually(lambda: age(traced, first) > since + 20)
        stop(traced.port, f"/runs/{first}")
        second = ended(list(waiting))
    stopped, waited, gone = (collector.span(run) for run in (first, second, left))
    ours = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "scripted", "gen_ai.request.stream": True}
    cancelled = {"sidestream.outcome": "cancelled", "sidestream.reason": "requested", **NO_TROUBLE}
    usage = {"gen_ai.usage.input_tokens": 1, "gen_ai.usage.output_tokens": 0, "sidestream.usage_estimated": True}
    assert told(stopped) == {**ours, "gen_ai.request.model": "silent", **usage, **cancelled}
    assert (stopped.status, stopped.events) == ((0, ""), [])
    assert told(gone, "sidestream.queued_ms") == {**ours, "gen_ai.request.model": "echo", **cancelled}
    assert (gone.status, gone.events, gone.seconds) == ((0, ""), ["queued"], [0.0])
    assert waited.events == ["queued", "first_token"]
    in_line = waited.attributes["sidestream.queued_ms"] / 1000
    assert 0.02 <= in_line < waited.lasted
    assert waited.seconds[1] == pytest.approx(
        in_line + waited.attributes["gen_ai.response.time_to_first_chunk"], abs=0.01
    )


def age(service: Service, run: str) -> int:
    """Return for how many milliseconds a run goes on."""
    return int(status_of(service.port, f"/runs/{run}")["latency_ms"])


def test_a_run_that_another_model_takes_over_is_one_span_that_tells_who_answered(
    traced: Service, upstream: Upstream, collector: Collector
) -> None:
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Well"), FIN)
    upstream.stream(*ANTHROPIC.opening, ANTHROPIC.token("Hi"), *ANTHROPIC.ending)
    span = collector.span(run_of(post(traced.port, "/either/stream", message="Hi")))
    who = {"gen_ai.provider.name": "anthropic", "gen_ai.request.model": "claude-haiku-4-5"}
    trouble = {**NO_TROUBLE, "sidestream.failovers": 1, "sidestream.resets": 1}
    assert span.attributes.items() >= {**who, **trouble, "gen_ai.response.model": ANTHROPIC.answers_as}.items()
    assert (span.name, span.status, span.events) == ("chat claude-haiku-4-5", (0, ""), ["first_token"])
    sent = [upstream.request() for _ in range(2)]
    assert [exchange.path for exchange in sent] == [OPENAI.path, ANTHROPIC.path]
    assert [exchange.headers["traceparent"].split("-")[1:3] for exchange in sent] == [[span.trace, span.id]] * 2


def test_a_name_that_nobody_has_configured_is_no_spans_and_what_otlp_cannot_say_is_left_out(
    traced: Service, upstream: Upstream, collector: Collector
) -> None:
    upstream.stream(*OPENAI.opening, OPENAI.token("Hi"), *OPENAI.ending)
    name = "x" * 200
    span = collector.span(run_of(post(traced.port, "/openai/stream", message="Hi", model=name)))
    assert (span.name, span.attributes["gen_ai.request.model"]) == ("chat other", "x" * 100)
    assert upstream.request().body["model"] == name
    fields = {"seed": 2**63, "stop": ["END", "y" * 5000]}
    span = collector.span(run_of(post(traced.port, message="Hi", model="scripted/echo", **fields)))
    assert span.attributes["gen_ai.request.stop_sequences"] == ["END", "y" * 100]
    assert "gen_ai.request.seed" not in span.attributes
    assert "Failed to encode" not in traced.log


def test_a_graph_has_a_span_with_its_thread_and_what_it_does_is_in_it(traced: Service, collector: Collector) -> None:
    with post(traced.port, "/asking/stream", message="Hi", thread_id="t1") as client:
        events = list(client)
    span = collector.span(ended(events))
    assert (span.name, span.attributes["gen_ai.conversation.id"]) == ("chat asking", "t1")
    assert span.attributes["gen_ai.response.finish_reasons"] == ["interrupt"]
    with post(traced.port, "/spanning/stream", {"traceparent": TRACEPARENT}, message="Hi") as client:
        events = list(client)
    span = collector.span(ended(events))
    assert "".join(event.data["token"] for event in events if event.name == "token") == f"{span.id} {span.id}"
    assert (span.name, span.trace, span.parent) == ("chat spanning", TRACE, PARENT)


def test_asking_again_and_coming_back_make_no_second_span(traced: Service, collector: Collector) -> None:
    once = {"Idempotency-Key": "tracing"}
    for headers in (once, {**once, "traceparent": TRACEPARENT}):
        run = create(traced.port, headers, model="scripted/silent", message="Hi")["id"]
    stop(traced.port, f"/runs/{run}")
    for _ in range(2):
        with get(traced.port, f"/runs/{run}/events", {"traceparent": TRACEPARENT}) as client:
            assert client.until("cancelled")
    assert collector.span(run).parent == ""
    # Spans are sent in the order of their ends: by now a second one would have come.
    collector.span(run_of(post(traced.port, model="scripted/echo", message="Hi")))
    assert len(collector.all_of(run)) == 1


def test_the_turns_of_a_socket_belong_to_the_trace_of_its_handshake(traced: Service, collector: Collector) -> None:
    with talk(traced.port, "model=scripted/echo", additional_headers={"traceparent": TRACEPARENT}) as talking:
        spans = [collector.span(ended(talking.turn("Hi"))) for _ in range(2)]
    assert [(span.trace, span.parent) for span in spans] == [(TRACE, PARENT)] * 2
    assert spans[0].id != spans[1].id


# --- whose child it is ------------------------------------------------------------------------------------------------


def test_a_trace_that_is_not_sampled_is_not_sent_and_its_upstream_learns_that(
    traced: Service, upstream: Upstream, collector: Collector
) -> None:
    upstream.stream(*OPENAI.opening, OPENAI.token("Hi"), *OPENAI.ending)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    run = run_of(post(traced.port, "/openai/stream", headers, message="Hi"))
    version, trace, span, flags = upstream.request().headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "00")
    assert span != PARENT
    collector.span(run_of(post(traced.port, model="scripted/echo", message="Hi")))
    assert collector.all_of(run) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": ""},
        {"traceparent": "00"},
        {"traceparent": TRACEPARENT[:-1]},
        {"traceparent": TRACEPARENT + "-01"},
        {"traceparent": TRACEPARENT.upper()},
        {"traceparent": f"ff-{TRACE}-{PARENT}-01"},
        {"traceparent": f"00-{'0' * 32}-{PARENT}-01"},
        {"traceparent": f"00-{TRACE}-{'0' * 16}-01"},
        {"traceparent": TRACEPARENT, "Traceparent": TRACEPARENT},
        {"traceparent": "x" * 5000},
        {"tracestate": "congo=t61rcWkgMzE"},
    ],
    ids=str,
)
def test_what_is_no_traceparent_is_as_if_there_were_none(
    traced: Service, collector: Collector, headers: dict[str, str]
) -> None:
    span = collector.span(run_of(post(traced.port, "/chat/stream", headers, model="scripted/echo", message="Hi")))
    assert (span.parent, span.state) == ("", "")
    assert span.trace != TRACE


@pytest.mark.parametrize("state", ["a=b\tX-Evil: 1", "a=\xe9", "a=b=c", "=", "a=b,,c=d", "A=b", "a=" + "x" * 9000])
def test_a_tracestate_that_is_none_goes_nowhere(
    traced: Service, upstream: Upstream, collector: Collector, state: str
) -> None:
    upstream.stream(*OPENAI.opening, OPENAI.token("Hi"), *OPENAI.ending)
    lines = f"Traceparent: {TRACEPARENT}\r\nTracestate: {state}\r\nContent-Type: application/json\r\n"
    body = b'{"message": "Hi"}'
    head = f"POST /openai/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    with by_hand(traced.port, head.encode("latin-1") + body) as client:
        span = collector.span(ended(list(client)))
    assert span.trace == TRACE
    sent = upstream.request().headers
    assert sent["traceparent"] == f"00-{TRACE}-{span.id}-01"
    assert "x-evil" not in sent
    assert sent.get("tracestate", "") == span.state
    assert span.state in ("", "a=b,c=d")


@contextmanager
def by_hand(port: int, request: bytes) -> Iterator[Client]:
    """Send these very bytes."""
    with get(port, "/healthz") as client:
        client.read()
        client.raw = b""
        client.send(request)
        yield client


def a_run(model: str = "m", **fields: Any) -> Run:
    request = RunRequest(model=model, messages=[Message("user", "Hi")], **fields)
    limits = Limits(run_timeout=1, first_token_timeout=1, idle_timeout=1, max_run_bytes=1000, linger=1)

    async def nobody() -> Any:
        raise AssertionError("nobody is asked")

    return Run(Failover([Candidate("openai", request, nobody)]), limits)


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> Tracing:
    """One that sends nothing."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    return Tracing()


NAMES = st.sampled_from(["traceparent", "tracestate"])
VALUES = st.text(st.characters(max_codepoint=255), max_size=50) | st.sampled_from(
    [TRACEPARENT, "a=b", "a=b\r\nX-Evil: 1", "a=b\n", "a=b,c=d", "a=\0"]
)


def test_whatever_comes_in_only_a_trace_goes_out(tracing: Tracing) -> None:
    @settings(deadline=None)  # another process may have the core
    @given(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    def test(headers: list[tuple[str, str]]) -> None:
        async def ask() -> list[tuple[bytes, bytes]]:
            run = a_run()
            with tracing.beginning(run, [("traceparent", TRACEPARENT), *headers][len(headers) % 2 :]):
                pass
            return list(run.answer.trace)

        for name, value in asyncio.run(ask()):
            assert name in (b"traceparent", b"tracestate")
            assert value.decode("ascii").isprintable()

    test()


def test_half_of_a_surrogate_pair_is_told_as_what_utf_8_has_for_it() -> None:
    said = asked(a_run("\ud800", thread_id="a\udfff", stop=["\ud800", "b"]))
    names = "gen_ai.request.model", "gen_ai.conversation.id", "gen_ai.request.stop_sequences"
    assert [said[name] for name in names] == ["?", "a?", ["?", "b"]]


def test_each_of_two_requests_of_a_connection_belongs_to_its_own_trace(traced: Service, upstream: Upstream) -> None:
    """A server may begin the second in the context of the first, as uvicorn does when they come together."""
    traces = ["1" * 32, "2" * 32]
    head = "GET /openai/stream?message=Hi HTTP/1.1\r\nHost: 127.0.0.1"
    asked = "".join(f"{head}\r\ntraceparent: 00-{trace}-{PARENT}-01\r\n\r\n" for trace in traces)
    upstream.stream(*OPENAI.opening, *OPENAI.ending)
    upstream.stream(*OPENAI.opening, *OPENAI.ending)
    with by_hand(traced.port, asked.encode()):
        told = [upstream.request().headers["traceparent"].split("-")[1] for _ in traces]
    assert told == traces


def test_a_run_for_which_there_is_no_place_leaves_no_span_behind(tracing: Tracing) -> None:
    def refuse(run: Run) -> None:
        with tracing.beginning(run, ()):
            assert len(tracing._open) == 1
            raise ServiceError("overloaded", "There is no place.")

    async def ask() -> None:
        with pytest.raises(ServiceError):
            refuse(a_run())

    asyncio.run(ask())
    assert tracing._open == {}


# --- what is said in it -----------------------------------------------------------------------------------------------


def test_no_prompt_no_answer_and_no_key_is_sent_unless_it_shall_be(
    traced: Service, upstream: Upstream, collector: Collector
) -> None:
    upstream.stream(*OPENAI.opening, OPENAI.token("swordfish"), *OPENAI.ending)
    run = run_of(post(traced.port, "/openai/stream", message="xyzzy", system="plugh"))
    body = json.dumps(upstream.request().body)
    assert ("xyzzy" in body, "plugh" in body) == (True, True)
    span = collector.span(run)
    assert not [name for name in span.attributes if "messages" in name or "instructions" in name]
    words = [*SECRETS, environ(upstream)["OPENAI_API_KEY"], environ(upstream)["ANTHROPIC_API_KEY"]]
    assert [word for word in words if word.encode() in collector.raw or word in traced.log] == []


@pytest.fixture(scope="module")
def telling(start_service: Start, collector: Collector) -> Service:
    """Tells prompts, by another name, and asks its upstream through a proxy."""
    return start_service(
        **tracing_to(collector.url),
        SIDESTREAM_TRACE_PROMPTS="true",
        SIDESTREAM_MAX_RETRIES="0",
        OTEL_SERVICE_NAME="mine",
        OPENAI_API_KEY="none",
        OPENAI_BASE_URL="http://upstream.invalid/v1",
        HTTP_PROXY=collector.url,
        NO_PROXY="127.0.0.1",
    )


def words(client: Client, collector: Collector) -> dict[str, Any]:
    """Return what the span of a run says word by word."""
    found = collector.span(run_of(client)).attributes.items()
    return {
        name.removeprefix("gen_ai."): json.loads(text)
        for name, text in found
        if name.endswith(("messages", "instructions"))
    }


def test_prompts_and_answers_are_sent_where_they_shall_be(telling: Service, collector: Collector) -> None:
    call = {"tool": "look", "args": {"at": "it"}, "result": "Fine."}
    steps = script({"think": "Hm."}, {"say": "Let me look."}, {"call": call}, {"say": "xyzzy"})
    said = words(post(telling.port, model="scripted/custom", message="Hi", system="plugh", **steps), collector)
    assert said == {
        "system_instructions": [{"type": "text", "content": "plugh"}],
        "input.messages": [{"role": "user", "parts": [{"type": "text", "content": "Hi"}]}],
        "output.messages": [
            {
                "role": "assistant",
                "parts": [
                    {"type": "reasoning", "content": "Hm."},
                    {"type": "text", "content": "Let me look."},
                    {"type": "tool_call", "id": "call_1", "name": "look", "arguments": {"at": "it"}},
                    {"type": "tool_call_response", "id": "call_1", "response": "Fine."},
                    {"type": "text", "content": "xyzzy"},
                ],
                "finish_reason": "stop",
            }
        ],
    }


def test_an_answer_that_was_taken_back_is_not_sent_and_one_that_broke_off_is(
    telling: Service, collector: Collector
) -> None:
    cut = script({"say": "No"}, {"cut": True})
    for model, answer, reason in (("scripted/echo", "Hi", "stop"), ("scripted/custom", "No", "error")):
        said = words(post(telling.port, model=["scripted/custom", model], message="Hi", **cut), collector)
        parts = [{"type": "text", "content": answer}]
        assert said["output.messages"] == [{"role": "assistant", "parts": parts, "finish_reason": reason}]


def test_a_prompt_is_told_in_the_conventions_form() -> None:
    data, web = ImageURL("data:image/png;base64,iVBORw0KGgo="), ImageURL("https://example.com/a.png")
    call = MessageToolCall("c1", FunctionCall("look", '{"at": "it"}'))
    messages = [
        Message("user", [TextPart("See"), ImagePart(data), ImagePart(web)]),
        Message("assistant", None, tool_calls=[call]),
        Message("tool", "Fine.", tool_call_id="c1"),
    ]
    said = prompted(RunRequest(model="m", messages=messages))
    assert {name: json.loads(value) for name, value in said.items()} == {
        "gen_ai.input.messages": [
            {
                "role": "user",
                "parts": [
                    {"type": "text", "content": "See"},
                    {"type": "blob", "modality": "image", "content": ""},
                    {"type": "uri", "modality": "image", "uri": "https://example.com/a.png"},
                ],
            },
            {
                "role": "assistant",
                "parts": [{"type": "tool_call", "id": "c1", "name": "look", "arguments": '{"at": "it"}'}],
            },
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "Fine."}]},
        ]
    }


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"input": "xyzzy"}, "xyzzy"),
        ({"input": "\ud800"}, "\ud800"),
        ({"input": {"a": 2**70}}, f'{{"a":{2**70}}}'),
        ({"resume": 1}, "1"),
    ],
)
def test_what_a_chain_or_a_graph_is_given_is_its_prompt(fields: dict[str, Any], text: str) -> None:
    said = prompted(RunRequest(model="m", messages=[], **fields))
    assert json.loads(said["gen_ai.input.messages"]) == [{"role": "user", "parts": [{"type": "text", "content": text}]}]


# --- where it goes, and with what -------------------------------------------------------------------------------------


def vendor(name: str, upstream: Upstream) -> dict[str, str]:
    """Return what makes `upstream` this one of the vendors: to import all their SDKs takes longer."""
    return {variable: value for variable, value in environ(upstream).items() if variable.startswith(name)}


def test_without_tracing_no_upstream_is_told_of_a_trace(start_service: Start, upstream: Upstream) -> None:
    tracing = {**tracing_to("http://127.0.0.1:1"), "SIDESTREAM_TRACING": "false"}
    service = start_service(**vendor("OPENAI", upstream), **tracing)
    upstream.stream(*OPENAI.opening, OPENAI.token("Hi"), *OPENAI.ending)
    run_of(post(service.port, "/openai/stream", {"traceparent": TRACEPARENT, "tracestate": "a=b"}, message="Hi"))
    assert upstream.request().headers.keys() & {"traceparent", "tracestate", "baggage"} == set()


def test_what_an_sdk_says_of_its_own_trace_goes_to_no_upstream() -> None:
    """It would be that of the one call that is recorded, with each request."""
    own = dict.fromkeys(("traceparent", "tracestate", "baggage"), "a=b")
    client = partial(openai.OpenAI, default_headers={**own, "X-Other": "1"})

    def call(made: openai.OpenAI) -> object:
        return made.chat.completions.create(model="m", messages=[], stream=True)

    recorded = record(openai, client, ProviderSettings(api_key="none"), call, {})
    names = {name.decode().lower() for name, _ in recorded.headers}
    assert ("x-other" in names, names & own.keys()) == (True, set())


def test_an_upstream_behind_a_proxy_learns_of_it_too(telling: Service, collector: Collector) -> None:
    headers = {"traceparent": TRACEPARENT}
    span = collector.span(run_of(post(telling.port, "/openai/stream", headers, message="Hi")))
    [sent] = collector.proxied
    assert (sent["host"], sent["traceparent"]) == ("upstream.invalid", f"00-{TRACE}-{span.id}-01")
    assert span.resource["service.name"] == "mine"


def test_the_tracer_provider_of_the_process_is_used_where_there_is_one(
    start_service: Start, upstream: Upstream, collector: Collector, tmp_path: Path
) -> None:
    """And so is its span of the request. What is broken in it harms no run, and an SDK's own trace goes nowhere."""
    (tmp_path / "instrumented.py").write_text(INSTRUMENTED)
    service = start_service(
        **vendor("ANTHROPIC", upstream),
        **tracing_to(collector.url),
        PYTHONPATH=str(tmp_path),
        command=[sys.executable, "-m", "uvicorn", "instrumented:app"],
    )
    upstream.stream(*ANTHROPIC.opening, ANTHROPIC.token("Hi"), *ANTHROPIC.ending)
    run = run_of(post(service.port, "/anthropic/stream", {"traceparent": TRACEPARENT}, message="Hi"))
    sent = upstream.request().headers
    assert status_of(service.port, f"/runs/{run}")["state"] == "done"
    assert service.stop() == 0
    span = collector.span(run)
    servers = {span.id: span for span in collector.spans if span.name == "server"}
    assert span.resource["service.name"] == "theirs"
    assert servers[span.parent].trace == span.trace != TRACE
    assert sent["traceparent"].split("-")[1:3] == [span.trace, span.id]
    assert f"run {run}: its span is lost: KeyError\n" in service.log
    assert "swordfish" not in service.log


def test_what_was_not_sent_yet_is_sent_at_the_end(start_service: Start, collector: Collector) -> None:
    service = start_service(**tracing_to(collector.url, OTEL_BSP_SCHEDULE_DELAY="60000"))
    run = run_of(post(service.port, model="scripted/echo", message="Hi"))
    cut = create(service.port, model="scripted/silent", message="Hi")["id"]
    assert collector.all_of(run) == []
    assert service.stop() == 0
    [done], [draining] = collector.all_of(run), collector.all_of(cut)
    assert (done.attributes["sidestream.outcome"], draining.attributes["sidestream.reason"]) == ("done", "draining")


def test_a_collector_that_never_answers_does_not_hold_up_the_end(start_service: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        ways = [None, [sys.executable, "-c", "import command; command.main()"]]
        services = [start_service(command=way, **tracing_to(endpoint)) for way in ways]
        for service in services:
            run_of(post(service.port, model="scripted/echo", message="Hi"))
        began = time.monotonic()
        for service in services:
            service.process.terminate()
        codes = [service.process.wait(DEADLINE) for service in services]
        took = time.monotonic() - began
    assert codes == [0, 0]
    assert CLOSE_TIMEOUT <= took < 6
    assert ["leaving it behind" in service.log for service in services] == [False] * 2


def test_without_the_packages_it_is_a_bad_setting_named_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "streaming.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError) as raised:
        create_service({"SIDESTREAM_TRACING": "true", "SIDESTREAM_RETRY_MS": "x"})
    assert raised.value.problems == (
        "SIDESTREAM_RETRY_MS: Expected `int`, got `str`",
        "tracing: it needs the extra: sidestream[otel]",
    )


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("OTEL_TRACES_EXPORTER", "nonsense", "no package has an exporter nonsense"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke", "no package has an exporter smoke"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "few", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be"),
    ],
)
def test_a_variable_that_is_no_good_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"tracing: {problem}"):
        create_service({"SIDESTREAM_TRACING": "true"})


def test_who_does_not_trace_imports_nothing_of_it() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    code = "import sys, service; service.create_app(); print([m for m in sys.modules if 'opentelemetry' in m])"
    line = [sys.executable, "-c", code]
    ended = subprocess.run(line, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=DEADLINE)
    assert (ended.stdout, ended.stderr) == ("[]\n", "")
