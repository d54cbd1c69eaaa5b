"""What is compared: Sidestream, the naive way and a raw proxy, each as a command and the paths of its two wires."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from processes import Process, free_port

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
NO_SETTINGS: dict[str, str] = {}
WIRES = ("openai", "anthropic")
NAMES = ("service", "naive", "raw")

NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; worker_rlimit_nofile {files};
events {{ worker_connections 16384; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream scripted {{ server 127.0.0.1:{upstream_port}; keepalive 2048; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://scripted; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 300s;
    }}
  }}
}}
"""


# An operator's graphs and chains, which block (graphs.py).
GRAPHS = {
    "SIDESTREAM_GRAPHS": ",".join(f"{name}=bench.graphs:{name}" for name in ("asleep", "asleep_wrongly", "computing")),
    "SIDESTREAM_CHAINS": "talking=bench.graphs:talking",
}


@dataclass(frozen=True)
class Place:
    """Where a relay runs: its port, the scripted upstream's, and a folder for what it writes."""

    port: int
    upstream_port: int
    folder: Path


@dataclass(frozen=True)
class Relay:
    name: str
    label: str
    paths: dict[str, str]
    command: Callable[[Place], list[str]]
    cwd: Path = ROOT
    starts_an_app: bool = True  # its time to the first byte is worth a row


def uvicorn(app: str) -> Callable[[Place], list[str]]:
    options = ["--no-access-log", "--log-level", "warning", "--backlog", "4096"]
    return lambda at: [sys.executable, "-m", "uvicorn", app, "--port", str(at.port), *options]


def nginx_command(at: Place) -> list[str]:
    configuration = at.folder / "nginx.conf"
    files = os.sysconf("SC_OPEN_MAX")
    configuration.write_text(NGINX.format(folder=at.folder, port=at.port, upstream_port=at.upstream_port, files=files))
    return [str(nginx()), "-e", "stderr", "-p", str(at.folder), "-c", str(configuration)]


def nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("/usr/sbin/nginx")  # Debian keeps it off a user's PATH


def pipe_command(at: Place) -> list[str]:
    return [sys.executable, str(BENCH / "pipe.py"), str(at.port), str(at.upstream_port)]


def raw_proxy() -> Relay:
    paths = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
    if nginx():
        return Relay("raw", "nginx, one process, unbuffered", paths, nginx_command, starts_an_app=False)
    return Relay("raw", "a byte pipe in Python, no nginx here", paths, pipe_command, starts_an_app=False)


def all_relays() -> list[Relay]:
    service_paths = {"openai": "/openai/stream", "anthropic": "/anthropic/stream"}
    naive_paths = {"openai": "/openai", "anthropic": "/anthropic"}
    return [
        Relay("service", "uvicorn service:app", service_paths, uvicorn("service:app")),
        Relay("naive", "SDK objects, dict events (naive.py)", naive_paths, uvicorn("naive:app"), cwd=BENCH),
        raw_proxy(),
    ]


def environment(upstream_port: int) -> dict[str, str]:
    """This environment without settings that would change what is measured, and with both providers configured."""
    ours = ("SIDESTREAM_", "OPENAI_", "ANTHROPIC_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours) and not k.lower().endswith("_proxy")}
    origin = f"http://127.0.0.1:{upstream_port}"
    openai = {"OPENAI_API_KEY": "sk-bench", "OPENAI_BASE_URL": f"{origin}/v1"}
    return kept | openai | {"ANTHROPIC_API_KEY": "sk-bench", "ANTHROPIC_BASE_URL": origin}


@dataclass
class Running:
    """A relay that has answered; `seconds_to_start` is how long that took."""

    relay: Relay
    port: int
    process: Process
    seconds_to_start: float = 0.0

    def __enter__(self) -> "Running":
        try:
            self.seconds_to_start = self.process.wait_for_first_byte(self.port)
        except BaseException:
            self.process.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.stop()


def start(relay: Relay, upstream_port: int, folder: Path, settings: dict[str, str] = NO_SETTINGS) -> Running:
    """Start a relay of its own; enter it to wait until it answers, leave it to stop it."""
    at = Place(free_port(), upstream_port, folder)
    log = folder / f"{relay.name}.log"
    return Running(relay, at.port, Process(relay.command(at), log, environment(upstream_port) | settings, relay.cwd))
