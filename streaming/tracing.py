"""Traces: one span a run, in OpenTelemetry's words for generative AI (semantic conventions, status: development).

    the client's `traceparent` ──▶ the run's span ──▶ `traceparent` of each request to an upstream

A span begins and ends with its run, and all that it tells is read off the run at its end: nothing here is on a token's
way. The SDK's own thread sends it, as the variables OTEL_* say: by OTLP over HTTP, unless they say otherwise. It tells
neither prompts nor answers unless it shall, and never a key or what an upstream said of a fault.

Imported only where the setting `tracing` is on, since it needs packages of its own.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from opentelemetry import context, trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .conventions import answered, asked, prompted, told
from .errors import SettingsError
from .events import Error
from .metrics import label_of
from .run import Run

logger = logging.getLogger("sidestream")

CLOSE_TIMEOUT = 2.0  # how long the end of the process waits for what is not sent yet, seconds
EXPORTERS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
# W3C Trace Context alone: what else a client may send along (baggage) is no business of an upstream's.
PROPAGATOR = TraceContextTextMapPropagator()


class _Open(NamedTuple):
    """The span of a run that goes on, and when it began: in nanoseconds of the Unix epoch, and by the loop's clock."""

    span: Span
    began: int
    now: float

    def at(self, now: float) -> int:
        return self.began + int((now - self.now) * 1e9)


class Tracing:
    """The spans of this process. `close` it in the loop that used it. Raises SettingsError where OTEL_* are no good.

    A tracer provider that the process has already (from opentelemetry-instrument, say) is used, else one is made.
    `models` are those that a span's name may have, as `provider/model`.
    """

    def __init__(self, *, prompts: bool = False) -> None:
        known = trace.get_tracer_provider()
        self._is_ours = not isinstance(known, TracerProvider)
        self._provider = known if isinstance(known, TracerProvider) else _provider()
        self._tracer = self._provider.get_tracer("sidestream")
        self._prompts = prompts
        self._open: dict[str, _Open] = {}
        self.models: Collection[str] = ()

    @contextmanager
    def beginning(self, run: Run, headers: Iterable[tuple[str, str]]) -> Iterator[None]:
        """Begin the span of a run that is begun in here: what its task does belongs to the span, too.

        Its parent is the span that is open here (some other instrumentation's), or else the one that the `headers` of
        the request name. Nothing is left behind in the request's task, whose context a server may give to the next.
        """
        began, parent = time.time_ns(), _parent(headers)
        span = self._tracer.start_span(self._name(run), parent, SpanKind.CLIENT, asked(run), start_time=began)
        inside = trace.set_span_in_context(span, parent)
        carrier: dict[str, str] = {}
        PROPAGATOR.inject(carrier, inside)
        run.answer.trace = [(name.encode(), value.encode()) for name, value in carrier.items()]
        if span.is_recording():
            self._open[run.id] = _Open(span, began, asyncio.get_running_loop().time())
            if self._prompts and run.answer.request:
                span.set_attributes(prompted(run.answer.request))
        token = context.attach(inside)
        try:
            yield
        except Exception:
            self._open.pop(run.id, None)  # there was no place for it: it never began
            raise
        finally:
            context.detach(token)

    def run_ended(self, run: Run) -> None:
        """Tell of a run that has ended, and end its span."""
        if opened := self._open.pop(run.id, None):
            try:
                self._end(run, opened)
            except Exception as exc:  # whatever an operator's span processor raises: the run takes no harm of it
                logger.error("run %s: its span is lost: %s", run.id, type(exc).__name__)

    def _end(self, run: Run, opened: _Open) -> None:
        span = opened.span
        span.update_name(self._name(run))
        span.set_attributes(told(run))
        if self._prompts and run.has_asked:
            span.set_attributes(answered(run))
        if run.queued_ms is not None:
            span.add_event("queued", timestamp=opened.began)
        if run.answer.first_content is not None:
            span.add_event("first_token", timestamp=opened.at(run.answer.first_content))
        if isinstance(run.terminal, Error):
            span.set_status(Status(StatusCode.ERROR, run.terminal.code))
        span.end(opened.at(asyncio.get_running_loop().time()))

    def _name(self, run: Run) -> str:
        return f"chat {label_of(run, self.models)}"

    async def close(self) -> None:
        """Send what is not sent yet; return once that is done, or after CLOSE_TIMEOUT."""
        loop = asyncio.get_running_loop()
        sent = loop.create_future()

        def send() -> None:
            try:
                (self._provider.shutdown if self._is_ours else self._provider.force_flush)()
            finally:
                with suppress(RuntimeError):  # the loop is gone
                    loop.call_soon_threadsafe(sent.set_result, None)

        # In a thread that nobody waits for at last: the SDK would wait for a collector that hangs, 30 s.
        threading.Thread(target=send, name="tracing", daemon=True).start()
        if not (await asyncio.wait((sent,), timeout=CLOSE_TIMEOUT))[0]:
            logger.warning("tracing: not all spans could be sent within %g s", CLOSE_TIMEOUT)


def _parent(headers: Iterable[tuple[str, str]]) -> context.Context:
    here = context.get_current()
    if trace.get_current_span(here).get_span_context().is_valid:
        return here
    carrier: dict[str, str] = {}
    for name, value in headers:
        if name in PROPAGATOR.fields:
            carrier[name] = f"{carrier[name]},{value}" if name in carrier else value
    return PROPAGATOR.extract(carrier, here)


def _provider() -> TracerProvider:
    try:
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "sidestream"}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for exporter in [make() for make in map(_exporter, _exporter_names())]:
            provider.add_span_processor(BatchSpanProcessor(exporter))
    except Exception as exc:  # whatever the SDK, or an exporter, makes of a variable
        raise SettingsError(f"tracing: {exc}") from exc
    return provider


def _exporter_names() -> list[str]:
    names = (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")
    return [name for part in names if (name := part.strip()) and name != "none"]


def _exporter(name: str) -> Any:
    """Return what makes the exporter of a name; packages tell it by an entry point."""
    if name == "otlp":
        general = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or general
        name = EXPORTERS.get(protocol, protocol)
    if not (found := [*entry_points(group="opentelemetry_traces_exporter", name=name)]):
        raise ValueError(f"no package has an exporter {name} (OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_PROTOCOL)")
    return found[0].load()
