"""NDJSON: one `{"event", "id", "data"}` a line, for readers that have no EventSource.

Pings are empty lines, which NDJSON readers pass over: proxies cut silent responses as they cut silent SSE.
"""

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from streaming.events import Draining, Event

from .chat import json_line
from .viewer import EachEvent, Viewer

MEDIA_TYPE = "application/x-ndjson"


def line(run_id: bytes, seq: int, event: Event) -> bytes:
    """Encode one event as one line."""
    return b'{"event":"%b","id":"%b-%d","data":%b}\n' % (event.name.encode(), run_id, seq, json_line(event))


def farewell(event: Draining) -> bytes:
    """Encode what sends a reader elsewhere."""
    return b'{"event":"draining","data":%b}\n' % json_line(event)


FORM = EachEvent(line, opening=b"", ping=b"\n")


class LineStream(Response):
    """Carries a viewer's run as NDJSON."""

    media_type = MEDIA_TYPE

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._viewer.serve(self.raw_headers, scope, receive, send)
