"""What the service prints: enough to see what happened, and never a prompt, an answer or a key."""

import json
import sys
from urllib.parse import quote

import pytest
from websockets.sync.client import connect

from .client import DEADLINE, Client, get, post
from .conftest import Service, Start

LEAN = {"SIDESTREAM_PROVIDERS": '{"local": {"enabled": false}}'}
PROMPT = "my-dog-is-called-Rex"
CUT = {"model": "scripted/custom", "provider_options": '{"script":[{"say":"Hi"},{"cut":true}]}'}
LEVELS = {
    "by default": [],
    "in full": ["--log-level", "debug"],
    "in full, by the other parser": ["--log-level", "debug", "--http", "h11"],
    "in more than full": ["--log-level", "trace"],
}


EVERYTHING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(name)s %(levelname)s %(message)s"}},
    "handlers": {"all": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"level": "DEBUG", "handlers": ["all"]},
}


@pytest.fixture(scope="module", params=[*LEVELS, "all libraries in full"])
def logging_service(
    request: pytest.FixtureRequest, start_service: Start, tmp_path_factory: pytest.TempPathFactory
) -> Service:
    config = tmp_path_factory.mktemp("logging") / "config.json"
    config.write_text(json.dumps(EVERYTHING))
    options = LEVELS.get(request.param, ["--log-config", str(config)])
    return start_service(*options, OPENAI_BASE_URL="http://127.0.0.1:1/v1", OPENAI_API_KEY="sk-hunter2-hunter2")


def log_after(service: Service, *clients: Client) -> str:
    """Read each answer to its end, then one more of which the log must tell; return the log up to there."""
    for client in clients:
        with client:
            client.read()
    with get(service.port, "/last") as client:
        client.read()
    assert '"GET /last HTTP/1.1" 404' in service.log
    return service.log


def test_a_prompt_in_a_query_is_in_no_log(logging_service: Service) -> None:
    port = logging_service.port
    log = log_after(
        logging_service,
        get(port, message=PROMPT, model="scripted/echo"),
        get(port, "/stream", question=PROMPT, model="scripted/echo"),
        get(port, "/scripted/stream", message=PROMPT, system=PROMPT, model="echo"),
        get(
            port, "/chat/stream-meta", messages=json.dumps([{"role": "user", "content": PROMPT}]), model="scripted/echo"
        ),
        get(port, message=PROMPT, **CUT),
        get(port, message=PROMPT, model="openai/gpt"),
        get(port, message=PROMPT, model="nobody/x"),
        get(port, message=PROMPT, max_tokens="x"),
        get(port, "/nowhere", message=PROMPT),
        get(port, "//nowhere", message=PROMPT),
        Client(port, "PUT", f"/chat/stream?message={PROMPT}"),
        Client(port, "GET", f"/chat/stream?message={PROMPT}", headers={"Origin": "https://evil.example"}),
    )
    assert PROMPT not in log
    assert '"GET /chat/stream HTTP/1.1" 200' in log
    assert '"PUT /chat/stream HTTP/1.1" 405' in log


def test_a_prompt_in_a_body_is_in_no_log(logging_service: Service) -> None:
    port = logging_service.port
    script = [{"say": PROMPT}, {"fail": "upstream_invalid"}]
    log = log_after(
        logging_service,
        post(port, message=PROMPT, model="scripted/echo"),
        post(port, message=PROMPT, system=PROMPT, model="openai/gpt"),
        post(port, message="x", model="scripted/custom", provider_options={"script": script}),
        post(port, message="x", model="scripted/custom", provider_options={"script": PROMPT}),
        post(port, message="x", model=PROMPT),
        post(port, message=PROMPT, unknown=PROMPT),
        Client(port, "POST", "/chat/stream", headers={"Content-Type": "application/json"}, body=PROMPT.encode()),
    )
    assert PROMPT not in log
    assert '"POST /chat/stream HTTP/1.1" 200' in log


def test_a_prompt_in_an_absolute_address_is_in_no_log(logging_service: Service) -> None:
    """As a client sends it that takes the service for its proxy."""
    port, prompt = logging_service.port, "my-cat-is-called-Tom"
    client = Client(port, "GET", f"http://127.0.0.1:{port}/chat/stream?model=scripted/echo&message={prompt}")
    assert prompt not in log_after(logging_service, client)


def test_what_is_said_over_a_websocket_is_in_no_log(logging_service: Service) -> None:
    address, prompt = f"ws://127.0.0.1:{logging_service.port}/ws/chat", "my-fish-is-called-Moby"
    with connect(f"{address}?model=scripted/echo&system={prompt}", proxy=None) as socket:
        socket.send(prompt)
        while json.loads(socket.recv(DEADLINE))["event"] != "done":
            pass
    assert prompt not in log_after(logging_service)


def test_a_prompt_whose_letters_are_escaped_is_in_no_log(logging_service: Service) -> None:
    escaped = "".join(f"%{ord(letter):02x}" for letter in PROMPT)
    client = Client(logging_service.port, "GET", f"/chat/stream?model=scripted/echo&message={escaped}")
    log = log_after(logging_service, client).lower()
    assert (escaped in log, quote(escaped).lower() in log, PROMPT.lower() in log) == (False, False, False)


def test_a_key_is_in_no_log(logging_service: Service) -> None:
    log = log_after(logging_service, post(logging_service.port, message="Hi", model="openai/gpt"))
    assert "hunter2" not in log


def test_a_run_that_fails_is_logged_by_its_id_and_code(service: Service) -> None:
    with get(service.port, message="Hi", **CUT) as client:
        started, *_ = list(client)
    run_id = started.data["run"]
    assert f"run {run_id}: upstream_incomplete\n" in log_after(service)


def told(service: Service, run: str) -> dict[str, str]:
    """Return what the one line of a run that has ended says, but its times."""
    [line] = [line for line in service.log.splitlines() if f"run ended: run={run} " in line]
    fields = dict(part.split("=", 1) for part in line.partition("run ended: ")[2].split(" "))
    assert all(fields.pop(name).isdecimal() for name in ("ttft_ms", "latency_ms"))
    return fields


def test_a_run_is_one_line_that_says_how_it_went(service: Service) -> None:
    with get(service.port, message=PROMPT, model="scripted/echo") as client:
        started, *_ = list(client)
    log_after(service)
    assert told(service, started.data["run"]) == {
        "run": started.data["run"],
        "provider": "scripted",
        "model": "echo",
        "outcome": "done",
        "reason": "stop",
        "tokens": "1",
        "input_tokens": "5",
        "output_tokens": "5",
        "retries": "0",
        "failovers": "0",
        "resets": "0",
    }


def test_lines_may_be_json_with_the_servers_own_among_them(start_service: Start) -> None:
    service = start_service(SIDESTREAM_LOG_FORMAT="json", SIDESTREAM_API_KEYS="web:hunter2-hunter2")
    key = {"X-API-Key": "hunter2-hunter2"}
    with get(service.port, "/chat/stream", key, message=PROMPT, model="scripted/echo") as client:
        started, *_ = list(client)
    with get(service.port, "/chat/stream", key, message=PROMPT, **CUT) as client:
        list(client)
    with get(service.port, "/last") as client:
        client.read()
    assert PROMPT not in service.log
    assert "hunter2" not in service.log
    lines = [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    assert {"uvicorn.access", "sidestream"} <= {line["logger"] for line in lines}
    done, cut = (line for line in lines if line.get("event") == "run_ended")
    assert (done["run"], done["owner"], done["reason"]) == (started.data["run"], "key:web", "stop")
    assert (cut["outcome"], cut["reason"], cut["level"]) == ("error", "upstream_incomplete", "info")
    assert [type(done[name]) for name in ("ttft_ms", "latency_ms", "queued_ms", "tokens")] == [
        int,
        int,
        type(None),
        int,
    ]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_command_says_nothing_but_json_behind_its_first_words(start_service: Start, workers: str) -> None:
    command = [sys.executable, "-c", "import command; command.main()"]
    service = start_service("--workers", workers, command=command, SIDESTREAM_LOG_FORMAT="json", **LEAN)
    with get(service.port, "/chat/stream", message=PROMPT, model="scripted/echo") as client:
        list(client)
    assert service.stop() == 0
    words, lines = service.log.split("whoever is on this machine", 1)
    assert "{" not in words
    told = [json.loads(line) for line in lines.splitlines()[1:]]
    assert {"uvicorn.error", "uvicorn.access", "sidestream"} == {line["logger"] for line in told}
    assert PROMPT not in service.log


def test_nothing_that_a_client_says_makes_a_line_of_its_own(start_service: Start) -> None:
    nowhere = {"use": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key": "none"}
    service = start_service(SIDESTREAM_PROVIDERS=json.dumps({"down": nowhere}), SIDESTREAM_MAX_RETRIES="0")
    for name in ("a\nrun ended: run=forged", "b\r\nforged", "c\u2028forged", "d forged\u0085forged", "e" * 190):
        with post(service.port, "/chat/stream", message="Hi", model=f"down/{name}") as client:
            list(client)
    log = log_after(service)
    ended = [line for line in log.splitlines() if "run ended" in line]
    assert len(ended) == 5
    assert all(line.startswith("INFO:     run ended: run=") for line in ended)
    assert not any(line.startswith(("run ended", "forged")) for line in log.splitlines())
    assert "e" * 101 not in log
