"""The command `sidestream`, as a person starts it: what it prints, what it refuses, how it ends."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

from .client import get, text
from .conftest import ROOT, Start

COMMAND = [sys.executable, "-c", "import command; command.main()"]


def test_it_prints_where_the_page_is_and_what_is_ready(start_service: Start) -> None:
    service = start_service(command=COMMAND)
    first = service.log.splitlines()[:3]
    assert first == [
        f"Sidestream   http://127.0.0.1:{service.port}/",
        "providers    local, scripted",
        "default      local/smollm2",
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


def test_bad_settings_stop_it_with_one_message_that_names_them_all(tmp_path: Path) -> None:
    config = tmp_path / "sidestream.toml"
    config.write_text('run_timeout = "soon"\n[providers.mine]\nuse = "nowhere:Provider"\n')
    environ = {"SIDESTREAM_PING_INTERVAL": "-1", "SIDESTREAM_PIGN": "1", "PATH": ""}
    ended = subprocess.run(
        [*COMMAND, "--config", str(config)],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == (
        "Bad settings:\n"
        f"  {config}: run_timeout: Expected `float`, got `str`\n"
        "  SIDESTREAM_PIGN: no such setting\n"
        "  SIDESTREAM_PING_INTERVAL: Expected `float` >= 0.0\n"
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


def test_ctrl_c_ends_it_even_with_a_stream_open(start_service: Start) -> None:
    service = start_service(command=COMMAND)
    with get(service.port, message="hi", model="scripted/silent") as client:
        client.until("start")
        service.stop(signal.SIGINT)
    assert service.log.count("Traceback") == 0
