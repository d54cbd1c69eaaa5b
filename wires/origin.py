"""Whose pages may use this service: its own, and those of the sites it allows. Programs that are no browsers may.

A browser says where a request comes from: Fetch Metadata (`Sec-Fetch-Site`) where it can, `Origin` on every request of
another origin that scripts can read or that may change something, and mostly `Referer`. A page of another site could
otherwise spend our upstream's money with an image tag.
"""

from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from streaming.errors import RequestError

EXPOSED = ["Location", "Content-Location", "Retry-After", "RateLimit", "RateLimit-Policy"]
# What the Vercel AI SDK looks for in an answer (vercel.py).
EXPOSED += ["X-Vercel-AI-UI-Message-Stream", "X-Workflow-Run-Id", "X-Workflow-Stream-Tail-Index"]


def cors(allowed: Collection[str]) -> list[Middleware]:
    """Let the pages of these origins read our answers, and send cookies (Fetch, 3.3); nothing where there are none."""
    if not allowed:
        return []
    how: dict[str, Any] = {
        "allow_credentials": True,
        "allow_methods": ["*"],
        "allow_headers": ["*"],
        "expose_headers": EXPOSED,
    }
    return [Middleware(CORSMiddleware, allow_origins=allowed, **how)]


def check_origin(headers: Headers, allowed: Collection[str]) -> None:
    """Raise RequestError forbidden where another site's page makes the browser ask."""
    origin = headers.get("origin")
    if origin is not None and origin in allowed:
        return
    site = headers.get("sec-fetch-site")
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        said = origin or headers.get("referer")
        own = said is None or _host(said) == headers.get("host", "")
    if not own:
        raise RequestError("forbidden", "Pages of other sites may not use this service (SIDESTREAM_ALLOWED_ORIGINS).")


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).netloc or None
    except ValueError:
        return None
