"""For who runs the service: whether it is ready, how its candidates fare, and its counters as Prometheus reads them."""

from collections.abc import Iterator
from typing import Any, get_args

from starlette.responses import PlainTextResponse, Response

from streaming.breaker import Breakers, State
from streaming.metrics import Metrics

from .resource import json_response


def ready(draining: bool, breakers: Breakers, *, verbose: bool) -> Response:
    """Say whether runs are begun: 200, or 503. `verbose` says as well whom the breakers turn away.

    An open breaker is no reason not to be ready: the next candidate is asked, or the same one all the same.
    """
    status_code = 503 if draining else 200
    said = "draining" if draining else "ready"
    if not verbose:
        return PlainTextResponse(said, status_code, {"Cache-Control": "no-store"})
    candidates = {}
    for name, breaker in breakers.told().items():
        attempts, failures = breaker.attempts
        candidates[name] = {"breaker": breaker.state, "attempts": attempts, "failures": failures}
    return json_response({"status": said, "candidates": candidates}, status_code)


def metrics(counted: Metrics, breakers: Breakers) -> Response:
    """Tell the counters in Prometheus' text format."""
    # Here, since most never ask: to import it takes 15 ms, and a start 230.
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector

    class Counted(Collector):
        def collect(self) -> Iterator[Any]:
            for name, text, value in (
                ("retries", "Requests to a model that was asked before, in the same run.", counted.retries),
                ("failovers", "Times that another model was asked in the place of one that failed.", counted.failovers),
                ("resets", "Answers that were taken back, since another model began anew.", counted.resets),
                ("skipped_chunks", "Chunks of whole answers that could not be read.", counted.skipped_chunks),
            ):
                yield CounterMetricFamily(f"sidestream_{name}", text, value=value)
            refusals = CounterMetricFamily(
                "sidestream_refusals", "Requests that were refused, by code and by limit.", labels=["code", "limit"]
            )
            for labels, value in sorted(counted.refusals.items()):
                refusals.add_metric(labels, value)
            yield refusals
            states = GaugeMetricFamily(
                "sidestream_breaker_state",
                "Whether a model is asked: 1 for the state it is in.",
                labels=["model", "state"],
            )
            for name, breaker in breakers.told().items():
                for state in get_args(State):
                    states.add_metric([name, state], float(breaker.state == state))
            yield states

    registry = CollectorRegistry()
    registry.register(Counted())
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"})
