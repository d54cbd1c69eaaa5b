"""The files of web/, the chat page among them, and what the page may do: nothing but what we have put into it."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import Response

WEB = Path(__file__).parent.parent / "web"
MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".ts": "text/plain"}
INLINE = re.compile(r"<(script|style)\b[^>]*>(.*?)</\1>", re.DOTALL)
PAGE = {
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
}


def file(name: str) -> Response:
    """Return a file of web/; a page comes with a policy (CSP level 3) that lets its own scripts and styles run."""
    path = WEB / name
    content, headers = path.read_bytes(), {"Cache-Control": "no-cache"}
    if path.suffix == ".html":
        headers |= {**PAGE, "Content-Security-Policy": _policy(content.decode())}
    return Response(content, media_type=MEDIA_TYPES[path.suffix], headers=headers)


def _policy(page: str) -> str:
    allowed = {"script": ["'self'"], "style": []}
    for kind, content in INLINE.findall(page):
        if content:  # else it is a file's
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            allowed[kind].append(f"'sha256-{digest}'")
    rules = [
        "default-src 'none'",
        *(f"{kind}-src {' '.join(sources)}" for kind, sources in allowed.items()),
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return "; ".join(rules)
