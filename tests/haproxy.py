"""A real HAProxy, Debian's, with deploy/haproxy.cfg."""

import shutil
from pathlib import Path

FILE = "haproxy.cfg"
WARNING = "[WARNING]"  # begins what it has to say of the file
SENDS_AGAIN: tuple[str, ...] = ()  # where a connection that it has kept closes before a byte of the answer


def changes(folder: Path, port: int, service: int) -> dict[str, str]:
    """What of the file is another here: where it listens, and where the service does."""
    return {"bind :80\n": f"bind 127.0.0.1:{port}\n", "127.0.0.1:8000": f"127.0.0.1:{service}"}


def command(config: Path) -> list[str]:
    return [shutil.which("haproxy") or "/usr/sbin/haproxy", "-f", str(config)]


def environ(folder: Path) -> dict[str, str]:
    return {}
