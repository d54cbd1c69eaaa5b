"""The endpoints of the wires of others: one way in for all of them, and theirs to come back by where they have one.

What a wire's requests and bytes are like is told by the wire (wires/fold.py); what becomes of a request is intake.py's.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from intake import Intake
from streaming.errors import Fault, RequestError
from streaming.run import Run
from streaming.settings import Settings
from wires import openai_responses, vercel
from wires.fold import Answer, Wire
from wires.problem import TELLER
from wires.resource import idempotency_key, json_response, path_of
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
        body = await self._intake.body(request, as_text=wire.takes_text)
        asked = wire.decode(body)
        key = idempotency_key(request.headers)
        linger = linger if asked.linger is None else asked.linger
        name = request.path_params.get("name")
        run = self._intake.run_asked(asked, caller, name, linger=linger, key=key, body=body)
        form = asked.form(run)
        headers = {**wire.headers(run), **left}

        def tell(fault: Fault) -> Response:
            """Answer with what the run fails by before its first words: it was a run all the same."""
            response = wire.tell(fault)
            response.headers.update(headers)
            return response

        request.scope[TELLER] = tell
        return self.follow(request, run, form, headers, streams=asked.streams)

    async def ui_stream(self, request: Request) -> Response:
        """Tell a Vercel chat's newest run, or a run by its id, to who comes back to it; or stop it (by DELETE)."""
        run = self._chats_run(request.path_params["chat_id"], self._intake.caller(request).owner)
        start_index = request.query_params.get("startIndex")
        if request.method == "DELETE" and run:
            run.end("requested")
            await run.wait()
        elif start_index is not None:
            if run is None:
                raise RequestError("not_found", "There is no such run, or it was over and is no longer kept.")
            return self.follow(request, run, *vercel.behind(run, start_index))
        elif run and not run.log.closed:
            return self.follow(request, run, vercel.replay(run), vercel.headers(run))
        return Response(status_code=204, headers={"Cache-Control": "no-store"})

    def _chats_run(self, name: str, owner: str) -> Run | None:
        runs = self._intake.runs
        if run := runs.latest(vercel.name_of(name), owner):
            return run
        with suppress(RequestError):
            return runs.find(name, owner)
        return None

    async def response(self, request: Request) -> Response:
        """Tell a response of OpenAI's API as it stands; with `?stream=true` as events, by POST once it is stopped."""
        run = self.find(request, request.path_params["response_id"].removeprefix("resp_"))
        if request.method == "POST":
            run.end("requested")
            await run.wait()
        elif request.method == "GET" and request.query_params.get("stream") == "true":
            form = openai_responses.again(run, request.query_params.get("starting_after"))
            return self.follow(request, run, form, openai_responses.WIRE.headers(run))
        return json_response(openai_responses.snapshot(run), 200, **openai_responses.WIRE.headers(run))

    def find(self, request: Request, run_id: str) -> Run:
        """Return a run of the caller's. Raises RequestError not_found."""
        return self._intake.runs.find(run_id, self._intake.caller(request).owner)

    async def body(self, request: Request) -> bytes:
        """Return the body of a request that starts no run."""
        self._intake.caller(request)
        return await self._intake.body(request)

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
