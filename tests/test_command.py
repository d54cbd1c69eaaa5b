"""The command `sidestream`, as a person starts it: what it prints, what it refuses, how it ends."""

import asyncio
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest

import command
import service as app

from .client import get, text
from .conftest import ROOT, Service, Start, eventually, free_port

COMMAND = [sys.executable, "-c", "import command; command.main()"]
LEAN = {"SIDESTREAM_PROVIDERS": '{"local": {"enabled": false}}'}  # a second of CPU less for each process


def test_it_prints_where_the_page_is_and_what_is_ready(start_service: Start) -> None:
    service = start_service(command=COMMAND)
    first = service.log.splitlines()[:4]
    assert first == [
        f"Sidestream   http://127.0.0.1:{service.port}/",
        "providers    local, scripted",
        "default      local/smollm2",
        "access       whoever is on this machine; set SIDESTREAM_API_KEYS before others may reach it",
    ]


def test_keys_make_their_providers_ready_and_the_first_the_default(start_service: Start) -> None:
    service = start_service(command=COMMAND, OPENAI_API_KEY="sk-test", ANTHROPIC_API_KEY="sk-ant-test")
    assert "providers    openai, openai_responses, anthropic, local, scripted\n" in service.log
    assert "default      openai/gpt-4o-mini\n" in service.log
    assert "sk-" not in service.log


def test_a_config_file_adds_providers_and_settings(start_service: Start, tmp_path: Path) -> None:
    config = tmp_path / "sidestream.toml"
    config.write_text(
        'model = "ollama/llama3.2"\nretry_ms = 50\n'
        '[providers.ollama]\nuse = "openai"\nbase_url = "http://127.0.0.1:9/v1"\nmodels = ["llama3.2"]\n'
    )
    service = start_service("--config", str(config), command=COMMAND)
    assert "providers    ollama, local, scripted\n" in service.log
    assert "default      ollama/llama3.2\n" in service.log
    with get(service.port, message="hi", model="scripted/unicode") as client:
        assert client.read().startswith(b"retry: 50\n\n")


def test_a_default_that_is_an_alias_is_told_by_its_name(start_service: Start) -> None:
    models = {"SIDESTREAM_MODELS": '{"quick": ["scripted/cut", "scripted/hello"]}', "SIDESTREAM_MODEL": "quick"}
    service = start_service(command=COMMAND, **LEAN, **models)
    assert "default      quick\n" in service.log
    with get(service.port, "/v1/models") as client:
        names = [model["id"] for model in json.loads(client.read())["data"]]
    assert names[0] == "quick"
    assert len(names) == len(set(names))
    with get(service.port, message="hi", model=names[0]) as client:
        assert client.until("done").data["model"] == "hello"


def test_it_tells_its_version_and_ends() -> None:
    ended = subprocess.run([*COMMAND, "--version"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"Sidestream {metadata.version('sidestream')}\n", "")


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_a_number_of_workers_that_is_none_is_refused(number: str) -> None:
    ended = subprocess.run(
        [*COMMAND, "--workers", number], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )
    assert ended.returncode == 2
    assert "--workers: a number from 1 on" in ended.stderr


def refused(*options: str, **environ: str) -> str:
    """Return what it says when it does not start."""
    ended = subprocess.run(
        [*COMMAND, *options], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=20, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    return ended.stderr


def test_bad_settings_stop_it_with_one_message_that_names_them_all(tmp_path: Path) -> None:
    config = tmp_path / "sidestream.toml"
    config.write_text('run_timeout = "soon"\n[providers.mine]\nuse = "nowhere:Provider"\n')
    environ = {"SIDESTREAM_PING_INTERVAL": "-1", "SIDESTREAM_PIGN": "1", "PORT": "http", "PATH": ""}
    assert refused("--config", str(config), **environ) == (
        "Bad settings:\n"
        f"  {config}: run_timeout: Expected `float`, got `str`\n"
        "  SIDESTREAM_PIGN: no such setting\n"
        "  SIDESTREAM_PING_INTERVAL: Expected `float` >= 0.0\n"
        "  PORT: Expected `int`, got `str`\n"
        "  providers.mine: cannot import nowhere:Provider: ModuleNotFoundError: No module named 'nowhere'\n"
    )


def test_two_workers_answer_on_one_port(start_service: Start) -> None:
    service = start_service("--workers", "2", command=COMMAND)
    for _ in range(4):
        with get(service.port, message="hi", model="scripted/echo") as client:
            assert text(list(client)) == "hi"


def test_it_allows_itself_all_the_open_files_that_it_may_have(start_service: Start) -> None:
    command = ["sh", "-c", 'ulimit -Sn 256; exec "$0" -m uvicorn service:app "$@"', sys.executable]
    service = start_service(command=command)
    soft, hard = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard > 256


def test_a_bad_option_is_named_as_it_was_given() -> None:
    bad = refused("--port", "99999", SIDESTREAM_PORT="http", PORT="http", SIDESTREAM_KEEP="soon")
    assert bad == ("Bad settings:\n  SIDESTREAM_KEEP: Expected `float`, got `str`\n  --port: Expected `int` <= 65535\n")


# Where the port is told that a test has chosen ($2); what is told beside it does not count.
PORTS = {
    "PORT": 'PORT="$2"',
    "the setting": 'SIDESTREAM_PORT="$2" PORT=1',
    "the setting is empty": 'SIDESTREAM_PORT= PORT="$2"',
    "a file has another": 'PORT="$2" SIDESTREAM_CONFIG="$CONFIG"',
}


@pytest.mark.parametrize("told", PORTS.values(), ids=PORTS)
def test_the_port_is_told_by_the_environment(start_service: Start, told: str, tmp_path: Path) -> None:
    config = tmp_path / "sidestream.toml"
    config.write_text("port = 1\n")
    script = f'{told} exec "$0" -c "import command; command.main()"'
    service = start_service(command=["sh", "-c", script, sys.executable], CONFIG=str(config), **LEAN)
    assert service.log.startswith(f"Sidestream   http://127.0.0.1:{service.port}/\n")


@pytest.mark.parametrize("told", [{"PORT": "1"}, {"SIDESTREAM_PORT": "http", "SIDESTREAM_HOST": "nowhere.invalid"}])
def test_an_option_counts_before_the_environment_in_each_process(start_service: Start, told: dict[str, str]) -> None:
    service = start_service("--host", "127.0.0.1", "--workers", "2", command=COMMAND, **told, **LEAN)
    assert service.log.startswith(f"Sidestream   http://127.0.0.1:{service.port}/\n")


@contextmanager
def made(**environ: str) -> Iterator[app.Service]:
    service = app.create_service({f"SIDESTREAM_{name}": value for name, value in environ.items()})
    yield service
    asyncio.run(service.providers.close())


def said(**environ: str) -> list[str]:
    with made(**environ) as service:
        return list(command.said(service, 1))


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/"),
        ("::1", "http://[::1]:8000/"),
        ("chat.example", "http://chat.example:8000/"),
    ],
)
def test_an_address_is_said_as_a_url_has_it(host: str, url: str) -> None:
    assert said(HOST=host)[0] == f"Sidestream   {url}"


HERE = "access       whoever is on this machine; set SIDESTREAM_API_KEYS before others may reach it"
THERE = (
    "access       WARNING: whoever reaches this address may use it, and spend your upstream keys;"
    " set SIDESTREAM_API_KEYS"
)
KEYS = "web:sesame-one,cron:sesame-two"


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        *(({"HOST": host}, HERE) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")),
        *(({"HOST": host}, THERE) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example")),
        ({"HOST": "0.0.0.0", "API_KEYS": KEYS}, "access       keys of cron, web"),
        ({"HOST": "0.0.0.0", "JWT_SECRET": "s" * 32}, "access       tokens"),
        ({"API_KEYS": KEYS, "JWT_SECRET": "s" * 32}, "access       keys of cron, web; tokens"),
    ],
)
def test_it_says_who_may_use_it(environ: dict[str, str], line: str) -> None:
    lines = said(**environ)
    assert lines[-1] == line
    assert not any("sesame" in line for line in lines)


def test_keys_of_a_file_are_said_too(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("mobile:sesame-three\nweb:sesame-four\n")
    assert said(API_KEYS=KEYS, API_KEYS_FILE=str(keys))[-1] == "access       keys of cron, mobile, web"


def test_a_prompt_is_not_in_its_log(start_service: Start) -> None:
    service = start_service(command=COMMAND, **LEAN)
    with get(service.port, message="my-cat-is-called-Tom", model="scripted/echo") as client:
        assert text(list(client)) == "my-cat-is-called-Tom"
    eventually(lambda: '"GET /chat/stream HTTP/1.1" 200' in service.log)
    assert "Tom" not in service.log


SIGNALS = pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])


@SIGNALS
def test_a_signal_ends_it_even_with_a_stream_open(start_service: Start, sign: int) -> None:
    service = start_service(command=COMMAND)
    with get(service.port, message="hi", model="scripted/silent") as client:
        client.until("start")
        assert service.stop(sign) == 0
    assert service.log.count("Traceback") == 0


@SIGNALS
@pytest.mark.parametrize("options", [[], ["--workers", "2"], ["--reload"]], ids=["one", "workers", "reload"])
def test_a_signal_ends_it_before_it_serves(sign: int, options: list[str], tmp_path: Path) -> None:
    port = free_port()
    service = Service(LEAN, [*COMMAND, "--port", str(port), *options], port, tmp_path / "log")
    eventually(lambda: "access" in service.log)
    assert service.stop(sign) == 0
    assert service.log.count("Traceback") == 0
