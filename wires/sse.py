"""Server-sent events: named, with ids, for a browser's own EventSource (WHATWG HTML, section 9.2).

sse-starlette's response has the headers and the place in the app; of its five tasks a stream, ours needs one more than
the request's own (viewer.py).
"""

from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from streaming.events import Draining, Event

from .chat import json_line
from .viewer import EachEvent, Viewer


def frame(run_id: bytes, seq: int, event: Event) -> bytes:
    """Encode one event; its id names its run, so that a reconnecting EventSource finds it again."""
    return b"event: %b\nid: %b-%d\ndata: %b\n\n" % (event.name.encode(), run_id, seq, json_line(event))


def form(retry_ms: int) -> EachEvent:
    """Return the form of a stream whose EventSource waits so long to reconnect."""
    return EachEvent(frame, opening=b"retry: %d\n\n" % retry_ms, ping=b": ping\n\n")


def farewell(event: Draining) -> bytes:
    """Encode what sends an EventSource elsewhere: by its `retry` it reconnects as soon as it is to."""
    return b"retry: %d\nevent: draining\ndata: %b\n\n" % (event.retry_ms, json_line(event))


class EventStream(EventSourceResponse):
    """Carries a viewer's run as server-sent events."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(content=iter(()))  # the viewer has it
        self._viewer = viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._viewer.serve(self.raw_headers, scope, receive, send)
