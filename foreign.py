"""The endpoints of the wires of others: one way in for all of them, and theirs to come back by where they have one.

What a wire's requests and bytes are like is told by the wire (wires/fold.py); what becomes of a request is intake.py's.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from intake import Intake
from streaming.errors import Fault
from streaming.run import Run
from streaming.settings import Settings
from wires.fold import Answer, Wire
from wires.problem import TELLER
from wires.resource import idempotency_key, path_of
from wires.sse import EventStream
from wires.viewer import Form, Viewer

Begin = Callable[[Request, Run], None]
Endpoint = Callable[[Request], Awaitable[Response]]


def speaking(wire: Wire, endpoint: Endpoint) -> Endpoint:
    """Return the endpoint, whose faults are told as `wire` tells them."""

    async def spoken(request: Request) -> Response:
        request.scope[TELLER] = wire.tell
        return await endpoint(request)

    spoken.__doc__ = endpoint.__doc__
    return spoken


class Foreign:
    """What the endpoints share. `begin` starts the run of a request, unless it was."""

    def __init__(self, settings: Settings, intake: Intake, begin: Begin, on_refusal: Callable[[Fault], object]) -> None:
        self._settings = settings
        self._intake = intake
        self._begin = begin
        self._on_refusal = on_refusal

    def runs(self, wire: Wire, *, linger: float = 0) -> Endpoint:
        """Return the endpoint that runs a wire's requests, and tells each run as they want it."""
        return speaking(wire, partial(self._run, wire, linger))

    async def _run(self, wire: Wire, linger: float, request: Request) -> Response:
        caller = self._intake.caller(request)
        left = self._intake.spend(caller, request)
        body = await self._intake.body(request)
        asked = wire.decode(body)
        key = idempotency_key(request.headers)
        linger = linger if asked.linger is None else asked.linger
        run = self._intake.run_asked(asked, caller, linger=linger, key=key, body=body)
        form = asked.form(run)
        return self.follow(request, run, form, {**wire.headers(run), **left}, streams=asked.streams)

    def follow(
        self,
        request: Request,
        run: Run,
        form: Form,
        headers: Mapping[str, str],
        *,
        after: int = 0,
        streams: bool = True,
    ) -> Response:
        """Tell a run in a form, from behind event `after`."""
        viewer = Viewer(
            run,
            partial(self._begin, request, run),
            form,
            after=after,
            ping_interval=self._settings.ping_interval if streams else 0,
            send_timeout=self._settings.send_timeout,
            on_refusal=self._on_refusal,
        )
        response: Response = EventStream(viewer) if streams else Answer(viewer)
        response.headers.update({"Content-Location": path_of(request.scope, run), **headers})
        return response
