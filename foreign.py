"""The endpoints of the wires of others: one way in for all of them, and theirs to come back by where they have one.

What a wire's requests and bytes are like is told by the wire (wires/fold.py); what becomes of a request is intake.py's.
A wire is imported when it is first asked for: all of them take 33 ms, a tenth of a start, and most services are asked
by one.
"""

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from intake import Intake
from streaming.errors import Fault, RequestError
from streaming.followed import Followed
from streaming.metrics import Metrics
from streaming.settings import Settings
from wires.fold import Answer, Wire
from wires.host import path_below_root
from wires.problem import TELLER, Tell
from wires.resource import head_of, idempotency_key, json_response, path_of
from wires.sse import EventStream
from wires.viewer import Form, Viewer

Begin = Callable[[Request, Followed], None]
# Whose words are spoken below a path. At OpenAI's and Anthropic's common one it depends on who asks.
SPOKEN = {
    "/v1/messages": "anthropic",
    "/v1": "models",
    "/ui": "vercel",
    "/ag-ui": "ag_ui",
    "/lg": "langgraph",
    "/chat/completions": "openai",
    "/responses": "openai",  # where who has forgotten `/v1` asks
}
# What is more to be said where there is nothing.
HINTS = {
    "/v1/v1": " The base URL of Anthropic's clients has no `/v1`, that of OpenAI's has one.",
    "/chat/completions": " The base URL of OpenAI's clients ends in `/v1` here.",
    "/responses": " The base URL of OpenAI's clients ends in `/v1` here.",
    "/lg": " Of LangGraph's API there are runs that are streamed, and their threads.",
}


def wire_of(name: str) -> Any:
    """Return the module of a wire."""
    return importlib.import_module(f"wires.{name}")


def teller(scope: Scope) -> Tell | None:
    """Return how faults are told at a request's path, where that is not our own way."""
    if scope["type"] != "http":
        return None
    name = _below(SPOKEN, scope)
    return partial(_tell, name, scope) if name else None


def _below(named: Mapping[str, str], scope: Scope) -> str | None:
    """Return what stands for the first of the paths that a request is at or below."""
    path = path_below_root(scope)
    return next((name for below, name in named.items() if path == below or path.startswith(f"{below}/")), None)


def _tell(name: str, scope: Scope, fault: Fault) -> Response:
    if "endpoint" not in scope and fault.code == "not_found" and (hint := _below(HINTS, scope)):
        fault = RequestError("not_found", fault.text + hint)
    wire = wire_of(name)
    told: Response = wire.tell(fault, Headers(scope=scope)) if name == "models" else wire.tell(fault)
    return told


class Foreign:
    """What the endpoints share. `begin` starts the run of a request, unless it was."""

    def __init__(self, settings: Settings, intake: Intake, begin: Begin, metrics: Metrics) -> None:
        self._settings = settings
        self._intake = intake
        self._begin = begin
        self._metrics = metrics

    def routes(self) -> list[Route]:
        post = ["POST"]
        routes = [
            Route("/v1/chat/completions", self._runs("openai_chat"), methods=post),
            Route("/v1/responses", self._runs("openai_responses"), methods=post),
            Route("/v1/responses/{response_id}", self.response),
            Route("/v1/responses/{response_id}/cancel", self.response, methods=post),
            Route("/v1/messages", self._runs("anthropic"), methods=post),
            Route("/ui/chat", self._runs("vercel"), methods=post),
            Route("/ui/chat/{chat_id:path}/stream", self.ui_stream, methods=["GET", "DELETE"]),
            Route("/ag-ui", self._runs("ag_ui"), methods=post),
            Route("/ag-ui/{name:path}", self._runs("ag_ui"), methods=post),
            Route("/lg/threads", partial(self._langgraph, "create_thread"), methods=post),
        ]
        for runs in ("/lg/threads/{thread_id}/runs", "/lg/runs"):
            routes += [
                Route(f"{runs}/stream", partial(self._langgraph, "stream"), methods=post),
                Route(f"{runs}/wait", partial(self._langgraph, "wait"), methods=post),
                Route(f"{runs}/{{run_id}}", partial(self._langgraph, "run")),
                Route(f"{runs}/{{run_id}}/stream", partial(self._langgraph, "join")),
                Route(f"{runs}/{{run_id}}/cancel", partial(self._langgraph, "cancel"), methods=post),
            ]
        return routes

    def _runs(self, name: str) -> Any:
        async def run(request: Request) -> Response:
            return await self.run(wire_of(name).WIRE, request)

        return run

    @cached_property
    def _threads(self) -> Any:
        settings = self._settings
        return wire_of("langgraph_runs").Threads(self, settings.linger, settings.max_linger)

    async def _langgraph(self, name: str, request: Request) -> ASGIApp:
        response: ASGIApp = await getattr(self._threads, name)(request)
        return response

    async def run(self, wire: Wire, request: Request, *, linger: float = 0) -> Response:
        """Run a wire's request, and tell its run as it wants it."""
        caller = self._intake.caller(request)
        left = await self._intake.spend(caller, request)
        body = await self._intake.body(request, as_text=wire.takes_text)
        passed = [(name, value) for name, value in request.headers.raw if name.decode("latin-1") in wire.passes]
        asked = wire.decode(body)._replace(passed=passed)
        key = idempotency_key(request.headers)
        linger = linger if asked.linger is None else asked.linger
        name = request.path_params.get("name")
        run = await self._intake.run_asked(asked, caller, name, linger=linger, key=key, body=body)
        headers = {**wire.headers(run), **left}

        def tell(fault: Fault) -> Response:
            """Answer with what the run fails by before its first words: it was a run all the same."""
            response = wire.tell(fault)
            response.headers.update(headers)
            return response

        request.scope[TELLER] = tell
        return self.follow(request, run, asked.form(run), headers, streams=asked.streams)

    async def ui_stream(self, request: Request) -> Response:
        """Tell a Vercel chat's newest run, or a run by its id, to who comes back to it; or stop it (by DELETE)."""
        vercel = wire_of("vercel")
        run = await self._chats_run(request.path_params["chat_id"], self._intake.caller(request).owner)
        start_index = request.query_params.get("startIndex")
        if request.method == "DELETE" and run:
            run.end("requested")
            await run.wait()
        elif start_index is not None:
            if run is None:
                raise RequestError("not_found", "There is no such run, or it was over and is no longer kept.")
            return self.follow(request, run, *vercel.behind(run, start_index), resumes=True)
        elif run and not run.log.closed:
            # An answer that was taken back is none to who has nothing of it.
            after, replay = run.log.answer_at, vercel.replay(run)
            return self.follow(request, run, replay, vercel.headers(run), after=after, resumes=True)
        return Response(status_code=204, headers={"Cache-Control": "no-store"})

    async def _chats_run(self, name: str, owner: str) -> Followed | None:
        runs = self._intake.runs
        if run := await runs.latest(wire_of("vercel").name_of(name), owner):
            return run
        with suppress(RequestError):
            return await runs.find(name, owner)
        return None

    async def response(self, request: Request) -> Response:
        """Tell a response of OpenAI's API as it stands; with `?stream=true` as events, by POST once it is stopped."""
        responses = wire_of("openai_responses")
        run = await self.find(request, request.path_params["response_id"].removeprefix("resp_"))
        if request.method == "POST":
            run.end("requested")
            await run.wait()
        elif request.method == "GET" and request.query_params.get("stream") == "true":
            after = request.query_params.get("starting_after")
            form = responses.again(run, after)
            return self.follow(request, run, form, responses.WIRE.headers(run), resumes=after is not None)
        return json_response(responses.snapshot(run), 200, **responses.WIRE.headers(run))

    async def find(self, request: Request, run_id: str) -> Followed:
        """Return a run of the caller's. Raises RequestError not_found."""
        return await self._intake.runs.find(run_id, self._intake.caller(request).owner)

    async def body(self, request: Request) -> bytes:
        """Return the body of a request that starts no run."""
        self._intake.caller(request)
        return await self._intake.body(request)

    def follow(
        self,
        request: Request,
        run: Followed,
        form: Form,
        headers: Mapping[str, str],
        *,
        after: int = 0,
        streams: bool = True,
        resumes: bool = False,
    ) -> Response:
        """Tell a run in a form, from behind event `after`. `resumes`: its client was there before."""
        self._metrics.resumes += resumes
        viewer = Viewer(
            run,
            partial(self._begin, request, run),
            form,
            after=after,
            ping_interval=self._settings.ping_interval if streams else 0,
            send_timeout=self._settings.send_timeout,
            on_refusal=self._metrics.refused,
        )
        response: Response = EventStream(viewer) if streams else Answer(viewer)
        response.headers.update({"Content-Location": path_of(request.scope, run), **headers})
        return head_of(response) if request.method == "HEAD" else response
