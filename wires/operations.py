"""For who runs the service: whether it is ready, how its candidates fare, and its counters as Prometheus reads them.

What is told of models has OpenTelemetry's names (semantic conventions for generative AI), in Prometheus' spelling.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar, get_args

from starlette.responses import PlainTextResponse, Response

from streaming.breaker import Breakers, State
from streaming.metrics import Histogram, Metrics
from streaming.runs import Runs

from .answers import Fares
from .resource import json_response

T = TypeVar("T")
# A metric's name and description, the names of its labels, and what there is of it by their values.
Family = tuple[str, str, list[str], Mapping[Any, T]]
OF_MODELS = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"]


def ready(runs: Runs, breakers: Breakers, *, verbose: bool) -> Response:
    """Say whether runs are begun: 200, or 503. `verbose` says as well how many go on, and whom the breakers turn away.

    An open breaker is no reason not to be ready: the next candidate is asked, or the same one all the same. Nor is a
    line of runs that wait.
    """
    status_code = 503 if runs.draining else 200
    said = "draining" if runs.draining else "ready"
    if not verbose:
        return PlainTextResponse(said, status_code, {"Cache-Control": "no-store"})
    candidates: dict[str, Fares] = {}
    for name, breaker in breakers.told().items():
        attempts, failures = breaker.attempts
        candidates[name] = Fares(breaker=breaker.state, attempts=attempts, failures=failures)
    waiting = runs.admission.waiting
    told: dict[str, Any] = {"status": said, "runs": len(runs) - waiting, "queued": waiting, "candidates": candidates}
    if runs.elsewhere:
        told["replication"] = runs.elsewhere.reach()
    return json_response(told, status_code)


def metrics(counted: Metrics, runs: Runs, breakers: Breakers) -> Response:
    """Tell the counters in Prometheus' text format."""
    # Here, since most never ask: to import it takes 15 ms, and a start 230.
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    told: Any = _Told(counted, runs, breakers)  # has all that is asked of a registry here
    return Response(generate_latest(told), media_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"})


class _Told(NamedTuple):
    counted: Metrics
    runs: Runs
    breakers: Breakers

    def collect(self) -> Iterator[Any]:
        from prometheus_client import ProcessCollector
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for name, text, labels, numbers in (*_counters(self.counted), *_replicated(self.runs)):
            counter = CounterMetricFamily(name, text, labels=labels)
            for values, number in sorted(numbers.items()):
                counter.add_metric(values, number)
            yield counter
        for name, text, labels, numbers in (*_gauges(self.counted, self.runs, self.breakers), *_reaching(self.runs)):
            gauge = GaugeMetricFamily(name, text, labels=labels)
            for values, number in numbers.items():
                gauge.add_metric(values, number)
            yield gauge
        for name, text, labels, measured in _histograms(self.counted):
            histogram = HistogramMetricFamily(name, text, labels=labels)
            for values, one in sorted(measured.items()):
                histogram.add_metric(values, _buckets(one), one.sum)
            yield histogram
        yield from ProcessCollector(registry=None).collect()


def _counters(counted: Metrics) -> Iterator[Family[float]]:
    ended, refused = "Runs that have ended, by how and why.", "Requests that were refused, by code and by limit."
    yield "sidestream_runs", ended, ["outcome", "reason"], counted.runs
    yield "sidestream_refusals", refused, ["code", "limit"], counted.refusals
    for name, text, number in (
        ("resumes", "Streams that went on where their client was.", counted.resumes),
        ("retries", "Requests to a model that was asked before, in the same run.", counted.retries),
        ("failovers", "Times that another model was asked in the place of one that failed.", counted.failovers),
        ("resets", "Answers that were taken back, since another model began anew.", counted.resets),
        ("skipped_chunks", "Chunks of whole answers that could not be read.", counted.skipped_chunks),
    ):
        yield f"sidestream_{name}", text, [], {(): number}


def _replicated(runs: Runs) -> Iterator[Family[float]]:
    if not runs.elsewhere:
        return
    reach = runs.elsewhere.reach()
    for name, text, number in (
        ("replicated_events", "Events of this replica's runs that Redis has.", reach.sent_events),
        ("replicated_entries", "Entries of streams in Redis that they went in.", reach.sent_entries),
        ("redis_commands", "Commands to Redis.", reach.commands),
        ("lost_runs", "Runs of other replicas that were given up for lost here.", reach.lost_runs),
    ):
        yield f"sidestream_{name}", text, [], {(): number}


def _reaching(runs: Runs) -> Iterator[Family[float]]:
    if not runs.elsewhere:
        return
    reach = runs.elsewhere.reach()
    for name, text, number in (
        ("redis_up", "Whether Redis answers, and takes what it is sent.", reach.redis == "up"),
        ("replication_behind_events", "Events of this replica's runs that Redis lacks.", reach.behind_events),
        ("replication_behind_seconds", "For how long it has lacked the oldest of them.", reach.behind_seconds),
        ("mirrors", "Runs of other replicas that go on and are followed here.", reach.mirrors),
        ("mirror_viewers", "Their viewers.", reach.mirror_viewers),
    ):
        yield f"sidestream_{name}", text, [], {(): float(number)}


def _gauges(counted: Metrics, runs: Runs, breakers: Breakers) -> Iterator[Family[float]]:
    waiting = runs.admission.waiting
    for name, text, number in (
        ("open_runs", "Runs that go on.", len(runs) - waiting),
        ("queued_runs", "Runs that wait in line.", waiting),
        ("kept_runs", "Runs that are over and kept.", len(runs.all) - len(runs)),
        ("viewers", "Viewers of all runs.", sum(run.viewers for run in runs.all)),
        ("log_bytes", "What the event logs of all runs hold.", sum(run.log.size for run in runs.all)),
    ):
        yield f"sidestream_{name}", text, [], {(): number}
    states = {
        (name, state): float(breaker.state == state)
        for name, breaker in breakers.told().items()
        if name in counted.models
        for state in get_args(State)
    }
    yield "sidestream_breaker_state", "Whether a model is asked: 1 for the state it is in.", ["model", "state"], states


def _histograms(counted: Metrics) -> Iterator[Family[Histogram]]:
    delay = "How late the event loop was, looked at twice a second."
    yield "sidestream_queue_seconds", "How long runs stood in line.", [], {(): counted.waits}
    yield "sidestream_event_loop_delay_seconds", delay, [], {(): counted.loop_delays}
    yield (
        "gen_ai_client_operation_duration_seconds",
        "How long runs took, from when they left the line.",
        [*OF_MODELS, "error_type"],
        {("chat", *who, error): one for (who, error), one in counted.durations.items()},
    )
    yield (
        "gen_ai_server_time_to_first_token_seconds",
        "How long it took to the first content.",
        OF_MODELS,
        {("chat", *who): one for who, one in counted.first_tokens.items()},
    )
    yield (
        "gen_ai_server_time_per_output_token_seconds",
        "How long each further token took, on the average of a run.",
        OF_MODELS,
        {("chat", *who): one for who, one in counted.next_tokens.items()},
    )
    yield (
        "gen_ai_client_token_usage",
        "Tokens of a run.",
        [*OF_MODELS, "gen_ai_token_type"],
        {("chat", *who, kind): one for (who, kind), one in counted.usages.items()},
    )


def _buckets(of: Histogram) -> list[tuple[str, float]]:
    bounds = [*(f"{bound:g}" for bound in of.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(of.counts)), strict=True))
