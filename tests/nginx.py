"""A real nginx: before `relay`, for modules that name this one in their `pytest_plugins`; or with deploy/nginx.conf.

(PYTEST_DONT_REWRITE: as for tests.upstream.)
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .conftest import Service, free_port, wait_for_port

PROGRAM = shutil.which("nginx") or "/usr/sbin/nginx"
# As a beginner would write it: default buffering, HTTP/1.0 to the service, and for WebSockets what nginx's manual says
# (https://nginx.org/en/docs/http/websocket.html). The second server compresses, and does not pass on by what name its
# clients call it.
CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
    server {{
        listen 127.0.0.1:{ports.plain};
        location / {{ proxy_pass http://127.0.0.1:{service}; }}
        location /ws/ {{
            proxy_pass http://127.0.0.1:{service};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Host $http_host;
        }}
    }}
    server {{
        listen 127.0.0.1:{ports.compressing};
        gzip on; gzip_types application/x-ndjson text/event-stream; gzip_min_length 0;
        location / {{
            proxy_pass http://127.0.0.1:{service};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
}}
"""


class Ports(NamedTuple):
    """Where nginx listens."""

    plain: int
    compressing: int


@pytest.fixture(scope="session")
def nginx(relay: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    """nginx in front of `relay`; its ports."""
    folder: Path = tmp_path_factory.mktemp("nginx")
    ports = Ports(free_port(), free_port())
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, ports=ports, service=relay.port))
    process = subprocess.Popen([PROGRAM, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"])
    wait_for_port(ports.plain, process)
    yield ports
    process.terminate()
    process.wait(10)


FILE = "nginx.conf"
WARNING = "[warn]"  # begins what it has to say of the file
SENDS_AGAIN: tuple[str, ...] = ()  # where a connection that it has kept closes before a byte of the answer


def changes(folder: Path, port: int, service: int) -> dict[str, str]:
    """What of the file is another here: where it listens, where the service does, and where it writes."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    return {
        "listen 80;": f"listen 127.0.0.1:{port};",
        "127.0.0.1:8000;": f"127.0.0.1:{service};",
        "\nhttp {": f"\nhttp {{ {temporary}",
        "/var/log/nginx/access.log": "/dev/stdout",
    }


def command(config: Path) -> list[str]:
    """Where root runs it its workers are root's, too: the folders of tests are no other's."""
    user = "" if os.geteuid() else "user root;"
    main = f"daemon off; pid {config.parent}/pid; {user}"
    return [PROGRAM, "-e", "stderr", "-c", str(config), "-g", main]


def environ(folder: Path) -> dict[str, str]:
    return {}
