"""A real nginx before `relay`, for test modules that name this one in their `pytest_plugins`.

(PYTEST_DONT_REWRITE: as for tests.upstream.)
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .conftest import Service, free_port, wait_for_port

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
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    folder: Path = tmp_path_factory.mktemp("nginx")
    ports = Ports(free_port(), free_port())
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, ports=ports, service=relay.port))
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"])
    wait_for_port(ports.plain, process)
    yield ports
    process.terminate()
    process.wait(10)
