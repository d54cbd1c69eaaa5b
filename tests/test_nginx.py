"""nginx in front, configured as a beginner would: default buffering, HTTP/1.0 to the service."""

import shutil
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from .client import Client, get, post
from .conftest import Service, free_port, wait_for_port

CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{service}; }} }}
}}
"""


@pytest.fixture(scope="module")
def nginx(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """nginx in front of the service; its port."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    folder: Path = tmp_path_factory.mktemp("nginx")
    port = free_port()
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, port=port, service=service.port))
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"])
    wait_for_port(port, process)
    yield port
    process.terminate()
    process.wait(10)


def hanging(client: Client) -> list[str]:
    """Read up to the last token of a run that goes on without end; what arrived did so by itself, not at the end."""
    names = []
    for event in client:
        names.append(event.name)
        if event.name == "token" and event.data["token"].endswith("three"):
            return names
    raise ConnectionError(f"it ended: {client.body!r}")


SCRIPT = [{"say": "one"}, {"say": " two"}, {"say": " three"}, {"hang": True}]


@pytest.mark.parametrize("http", ["1.0", "1.1"])
def test_events_arrive_one_by_one_through_default_buffering(nginx: int, http: str) -> None:
    query = "message=hi&model=scripted/stall&idle_timeout=30"
    with Client(nginx, "GET", f"/chat/stream?{query}", http=http) as client:
        status, headers = client.head()
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-store"
        names = [event.name for event in islice(client, 9)]  # all there is before it falls silent
    assert names == ["start"] + ["token"] * 8


def test_posted_runs_stream_through_it_too(nginx: int) -> None:
    with post(nginx, message="hi", model="scripted/custom", provider_options={"script": SCRIPT}) as client:
        assert hanging(client)[0] == "start"


def test_a_whole_answer_comes_to_its_end(nginx: int) -> None:
    with get(nginx, message="hi", model="scripted/unicode") as client:
        through = [event.data for event in client if event.name == "token"]
    assert "".join(data["token"] for data in through).startswith("Grüße, 世界!")
    assert "\u2028" in "".join(data["token"] for data in through)


def test_ndjson_arrives_line_by_line(nginx: int) -> None:
    headers = {"Accept": "application/x-ndjson"}
    with get(nginx, headers=headers, message="hi", model="scripted/stall") as client:
        assert client.head()[1]["content-type"] == "application/x-ndjson"
        assert client.line()["event"] == "start"
        assert client.line()["data"] == {"token": "These"}
