"""The endpoints of LangGraph's SDKs below `/lg`: threads, and runs to stream, to wait for, to come back to, to cancel.

A thread is what a graph's checkpointer keeps: there is none to be made before its first run, so to create one is to
name it. Runs are found by LangGraph's form of their ids, a UUID, or by our own.
"""

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from streaming.errors import RequestError
from streaming.followed import Followed

from .chat import decoded
from .event_id import EventId, reached
from .fold import Wire
from .langgraph import Numbered, named, path_of, status_of_run, streaming, waiting
from .resource import json_response
from .viewer import Form

ID = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,14})(?:\.([1-9][0-9]?))?")
BEGINNING = ("", "-1")  # as SDKs say it
YES = ("1", "true", "True")
Endpoint = Callable[[Request], Awaitable[ASGIApp]]


class Way(Protocol):
    """The way in, which all wires of others share."""

    async def run(self, wire: Wire, request: Request, *, linger: float) -> Response:
        """Run a wire's request."""

    def follow(
        self, request: Request, run: Followed, form: Form, headers: Mapping[str, str], *, after: int, resumes: bool
    ) -> Response:
        """Tell a run in a form, from behind event `after`. `resumes`: its client was there before."""

    async def find(self, request: Request, run_id: str) -> Followed:
        """Return a run of the caller's. Raises RequestError not_found."""

    async def body(self, request: Request) -> bytes:
        """Return the body of a request, whose caller may ask for runs."""


class _Thread(Struct, frozen=True):
    thread_id: str | None = None
    metadata: dict[str, Any] | None = None
    supersteps: list[Any] | None = None
    ttl: Any = None


_decode = msgspec.json.Decoder(_Thread).decode


class Tied:
    """A response that its run does not outlive."""

    def __init__(self, response: Response, run: Followed) -> None:
        self._response = response
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            self._run.end("disconnected")


class Threads:
    """`linger`: for how long a run goes on without a viewer; `longest`: for how long where that was asked for."""

    def __init__(self, way: Way, linger: float, longest: float) -> None:
        self._way = way
        self._linger = linger
        self._longest = longest

    async def create_thread(self, request: Request) -> Response:
        """Name a thread; its graph's checkpointer makes it with its first run."""
        asked = decoded(_decode, await self._way.body(request))
        if asked.supersteps:
            raise RequestError("invalid_request", "A thread begins with its first run.", field="supersteps")
        if asked.ttl is not None:
            text = "How long a thread is kept is its graph's checkpointer's business."
            raise RequestError("invalid_request", text, field="ttl")
        now = _time(datetime.now(UTC).timestamp())
        return json_response(
            {
                "thread_id": asked.thread_id or str(uuid.uuid4()),
                "created_at": now,
                "updated_at": now,
                "metadata": asked.metadata or {},
                "status": "idle",
                "config": {},
                "values": None,
                "interrupts": {},
            }
        )

    async def stream(self, request: Request) -> Response:
        """Run a graph and stream it. Who is cut off comes back where `Location` says."""
        wire = streaming(request.path_params.get("thread_id"), self._longest)
        return await self._way.run(wire, request, linger=self._linger)

    async def wait(self, request: Request) -> Response:
        """Run a graph and return its state at the end."""
        wire = waiting(request.path_params.get("thread_id"), self._longest)
        return await self._way.run(wire, request, linger=0)

    async def join(self, request: Request) -> ASGIApp:
        """Stream a run from its beginning, or from behind `Last-Event-ID`; nothing where all was seen."""
        run, query = await self._find(request), request.query_params
        after, skip = await _seen(request.headers.get("last-event-id", ""), run)
        form = Numbered(run.id, run.about, [mode for mode in query.getlist("stream_mode") if mode], skip)
        form.pass_over(run.log, after)
        back = f"{path_of(run)}/stream" + (f"?{request.url.query}" if request.url.query else "")
        headers = {"Content-Location": path_of(run), "Location": back}
        response = self._way.follow(request, run, form, headers, after=after, resumes=after + skip > 0)
        ends = request.method == "GET" and query.get("cancel_on_disconnect") in YES
        return Tied(response, run) if ends else response

    async def run(self, request: Request) -> Response:
        """Tell how a run stands."""
        run = await self._find(request)
        return json_response(
            {
                "run_id": named(run.id),
                "thread_id": run.about["thread"],
                "assistant_id": run.about["assistant"],
                "created_at": _time(run.created),
                "updated_at": _time(run.created + run.latency_ms / 1000),
                "status": status_of_run(run.terminal, waits=run.waits),
                "metadata": run.about["metadata"],
                "multitask_strategy": "enqueue",
            }
        )

    async def cancel(self, request: Request) -> Response:
        """Stop a run; with `wait=1`, return when its upstream is closed."""
        run, query = await self._find(request), request.query_params
        if query.get("action", "interrupt") != "interrupt":
            text = "`action` can be `interrupt` only: what a run has kept stays kept."
            raise RequestError("invalid_request", text, field="action")
        run.end("requested")
        if query.get("wait") not in YES:
            return Response(status_code=202)
        await run.wait()
        return Response(status_code=204)

    async def _find(self, request: Request) -> Followed:
        """Return the run of a path, which must be its thread's."""
        run = await self._way.find(request, request.path_params["run_id"].replace("-", ""))
        if "modes" not in run.about or run.about["thread"] != request.path_params.get("thread_id"):
            raise RequestError("not_found", "There is no such run on this thread.")
        return run


async def _seen(text: str, run: Followed) -> tuple[int, int]:
    """Return the last event that a client has seen all frames of, and how many it has of the next one."""
    if text in BEGINNING:
        return 0, 0
    found = ID.fullmatch(text)
    if not found:
        raise RequestError("invalid_request", "That is no event id of ours.", field="last_event_id")
    return await reached(run, EventId(found[1], int(found[2]))), int(found[3] or 0)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
