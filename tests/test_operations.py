"""What who runs the service can ask: whether it is ready, how the models fare, its counters; and aliases over HTTP."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .client import get, post, text
from .conftest import Service, Start, eventually
from .resource import refused, stop
from .sockets import talk

ALIASES = {"rescued": ["scripted/cut", "scripted/hello"], "lost": ["scripted/error", "scripted/late-error"]}
HELLO = "Hello! I am the scripted provider. I say the same few words to everybody, at a pleasant pace, and need no key."


@pytest.fixture(scope="module")
def served(start_service: Start) -> Service:
    return start_service(SIDESTREAM_MODELS=json.dumps(ALIASES), SIDESTREAM_BREAKER_ATTEMPTS="1000")


def metrics(service: Service) -> dict[str, float]:
    """Return all there is, a value under its name and its labels' values, but how the process fares."""
    with get(service.port, "/metrics") as client:
        assert client.head()[1]["content-type"].startswith("text/plain")
        families = text_string_to_metric_families(client.read().decode())
        return {
            ":".join([sample.name.removeprefix("sidestream_"), *sample.labels.values()]): sample.value
            for family in families
            for sample in family.samples
            if not sample.name.startswith("process_")
        }


COUNTERS = ("retries", "failovers", "resets", "skipped_chunks")


def counters(service: Service) -> dict[str, float]:
    """Return what was tried, and the breakers' states."""
    counted = (*(f"{name}_total" for name in COUNTERS), "breaker_state")
    return {name: value for name, value in metrics(service).items() if name.partition(":")[0] in counted}


def candidates(service: Service) -> dict[str, object]:
    with get(service.port, "/readyz", verbose="") as client:
        assert (client.head()[0], client.head()[1]["cache-control"]) == (200, "no-store")
        told = json.loads(client.read())
    assert told.keys() == {"status", "runs", "queued", "candidates"}
    assert told["status"] == "ready"
    return dict(told["candidates"])


def test_an_alias_is_a_model_with_a_path_of_its_own(served: Service) -> None:
    with get(served.port, "/v1/models") as client:
        models = json.loads(client.read())["data"]
    assert [(model["id"], model["owned_by"]) for model in models[-2:]] == [
        ("rescued", "sidestream"),
        ("lost", "sidestream"),
    ]
    for client in (
        post(served.port, "/rescued/stream", message="Hi"),
        post(served.port, "/chat/stream", message="Hi", model="rescued"),
        get(served.port, "/chat/stream", message="Hi", model='["scripted/cut", "scripted/hello"]'),
    ):
        with client:
            events = list(client)
        after = [event.name for event in events].index("reset")
        assert [event.data for event in events if event.name == "reset"] == [{"reason": "upstream_incomplete"}]
        assert [(e.name, e.data["model"]) for e in events if e.name == "start"] == [
            ("start", "cut"),
            ("start", "hello"),
        ]
        assert text(events[after:]) == HELLO
        assert (events[-1].name, events[-1].data["model"]) == ("done", "hello")


def test_a_run_tells_of_whom_it_was_answered_after_all(served: Service) -> None:
    with post(served.port, "/runs", message="Hi", model="rescued") as client:
        run = json.loads(client.read())
    with get(served.port, run["events_url"]) as client:
        client.until("done")
    with get(served.port, run["status_url"]) as client:
        status = json.loads(client.read())
    assert (status["model"], status["text"], status["state"]) == ("hello", HELLO, "done")
    assert (status["retries"], status["failovers"], status["resets"]) == (0, 1, 1)


def test_a_viewer_who_comes_back_after_a_reset_gets_it(served: Service) -> None:
    with post(served.port, "/runs", message="Hi", model="rescued") as client:
        run = json.loads(client.read())
    with get(served.port, run["events_url"]) as client:
        first = client.until("token")
        client.until("done")
    with get(served.port, run["events_url"], {"Last-Event-ID": first.id}) as client:
        events = list(client)
    names = [event.name for event in events]
    assert text(events[names.index("start") :]) == HELLO
    assert names.index("reset") + 1 == names.index("start")


def test_what_was_tried_is_counted_and_a_breaker_tells_its_state(start_service: Start) -> None:
    service = start_service(
        SIDESTREAM_MODELS=json.dumps(ALIASES), SIDESTREAM_RETRY_DELAY="0.01", SIDESTREAM_BREAKER_ATTEMPTS="6"
    )
    nothing = {"retries_total": 0, "failovers_total": 0, "resets_total": 0, "skipped_chunks_total": 0}
    assert (counters(service), candidates(service)) == (nothing, {})
    for _ in range(2):
        with post(service.port, "/lost/stream", message="Hi") as client:
            assert client.until("error").data["code"] == "upstream_rate_limited"
    assert candidates(service) == {
        "scripted/error": {"breaker": "open", "attempts": 6, "failures": 6},
        "scripted/late-error": {"breaker": "closed", "attempts": 2, "failures": 2},
    }
    states = {"error": "open", "late-error": "closed"}
    assert eventually(lambda: counters(service)) == {
        **nothing,
        "retries_total": 4,
        "failovers_total": 2,
        **{
            f"breaker_state:scripted/{model}:{state}": float(states[model] == state)
            for model in states
            for state in ("closed", "open", "half_open")
        },
    }
    with post(service.port, "/lost/stream", message="Hi") as client:
        first = client.until("start")
    assert first.data["model"] == "late-error", "who fails is asked last"


def test_a_model_of_any_name_breaks_nothing_for_who_looks(start_service: Start) -> None:
    """A client may ask a provider for any model, and it is remembered by its name when it fails: not for Prometheus."""
    nowhere = {"use": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key": "none"}
    service = start_service(SIDESTREAM_PROVIDERS=json.dumps({"down": nowhere}), SIDESTREAM_MAX_RETRIES="0")
    names = ("é\u2028", 'a"b\\c\nd', "x" * 195)
    for name in names:
        with post(service.port, "/chat/stream", message="Hi", model=f"down/{name}") as client:
            assert client.until("error").data["code"] == "upstream_unavailable"
    assert candidates(service).keys() == {f"down/{name}" for name in names}
    assert not any("breaker_state" in name for name in counters(service))
    with post(service.port, "/chat/stream", message="Hi", model="x" * 201) as client:
        assert refused(client)[::3] == (400, "model")


def test_the_models_of_an_alias_are_known_by_name(start_service: Start) -> None:
    nowhere = {"use": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key": "none"}
    service = start_service(
        SIDESTREAM_PROVIDERS=json.dumps({"down": nowhere}),
        SIDESTREAM_MODELS='{"mine": ["down/big", "down/small"]}',
        SIDESTREAM_MAX_RETRIES="0",
    )
    with post(service.port, "/mine/stream", message="Hi") as client:
        list(client)
    assert "breaker_state:down/small:closed" in metrics(service)
    measured = "gen_ai_client_operation_duration_seconds_count:upstream_unavailable:chat:down:small"
    assert measured in metrics(service)


def test_readiness_is_a_word_for_who_only_asks_whether(served: Service) -> None:
    with get(served.port, "/readyz") as client:
        assert (client.head()[0], client.read()) == (200, b"ready")


def test_runs_are_counted_by_how_they_ended_and_measured_by_who_answered(start_service: Start) -> None:
    service = start_service(SIDESTREAM_MAX_RETRIES="0", SIDESTREAM_MAX_RUNS="1", SIDESTREAM_MODEL="scripted/hello")
    with get(service.port, message="hi", model="scripted/silent", linger="60") as client:
        run = client.until("start").data["run"]
        with get(service.port, message="hi") as queued:
            queued.until("queued")
            during = metrics(service)
            assert [during[name] for name in ("open_runs", "queued_runs", "kept_runs", "viewers")] == [1, 1, 0, 2]
        eventually(lambda: metrics(service)["queued_runs"] == 0)  # it has left the line before there is a place
        stop(service.port, f"/runs/{run}")
        client.until("cancelled")
    for model in ("hello", "length", "error", "late-error", "cut"):
        with get(service.port, message="hi", model=f"scripted/{model}") as client:
            first, *_ = list(client)
    with get(service.port, message="hi", last_event_id=first.id) as client:
        list(client)
    with talk(service.port, f"resume={first.id}") as socket:
        socket.until("error")
    after = metrics(service)
    assert {name: value for name, value in after.items() if name.startswith("runs_total")} == {
        "runs_total:cancelled:disconnected": 1,
        "runs_total:cancelled:requested": 1,
        "runs_total:done:length": 1,
        "runs_total:done:stop": 1,
        "runs_total:error:upstream_incomplete": 1,
        "runs_total:error:upstream_rate_limited": 1,
        "runs_total:error:upstream_unavailable": 1,
    }
    assert [after[name] for name in ("open_runs", "queued_runs", "kept_runs", "viewers")] == [0, 0, 7, 0]
    assert (after["resumes_total"], after["queue_seconds_count"]) == (2, 1)
    assert after["log_bytes"] > 1000
    durations = {
        name.split(":", 1)[1]: value
        for name, value in after.items()
        if name.startswith("gen_ai_client_operation_duration_seconds_count")
    }
    assert durations == {
        ":chat:scripted:hello": 1,
        ":chat:scripted:length": 1,
        ":chat:scripted:silent": 1,
        "upstream_incomplete:chat:scripted:cut": 1,
        "upstream_rate_limited:chat:scripted:late-error": 1,
        "upstream_unavailable:chat:scripted:error": 1,
    }
    chat = "chat:scripted:hello"
    assert after[f"gen_ai_server_time_to_first_token_seconds_count:{chat}"] == 1
    assert after[f"gen_ai_server_time_to_first_token_seconds_bucket:{chat}:0.1"] == 0, "it waits for 0.2 s"
    assert after[f"gen_ai_server_time_to_first_token_seconds_bucket:{chat}:10"] == 1
    assert after[f"gen_ai_server_time_per_output_token_seconds_count:{chat}"] == 1
    assert after[f"gen_ai_client_token_usage_sum:{chat}:input"] == 1
    assert after[f"gen_ai_client_token_usage_sum:{chat}:output"] == 28
    assert eventually(lambda: metrics(service)["event_loop_delay_seconds_count"]) >= 1


def test_a_model_that_nobody_has_configured_has_no_label(start_service: Start) -> None:
    nowhere = {"use": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key": "none", "models": ["known"]}
    service = start_service(SIDESTREAM_PROVIDERS=json.dumps({"down": nowhere}), SIDESTREAM_MAX_RETRIES="0")
    for name in ("known", "a", "b\n"):
        with post(service.port, "/chat/stream", message="Hi", model=f"down/{name}") as client:
            client.until("error")
    of_models = {name for name in metrics(service) if name.startswith("gen_ai_client_operation_duration_seconds_count")}
    assert len(of_models) == 2
    assert any("other" in name for name in of_models)
