"""The ASGI app: routes, lifespan, wiring. `uvicorn service:app`, or the command `sidestream` (command.py).

A request comes in by a wire and becomes a run (intake.py), the run streams a provider's events into its log, the wire
carries them out. Here they are put together; what each does is in wires/, providers/ and streaming/.
"""

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from foreign import Foreign, teller, wire_of
from intake import Intake
from providers.registry import Providers
from streaming.breaker import Breakers
from streaming.drain import Drain
from streaming.errors import Fault, RequestError, ServiceError, SettingsError
from streaming.events import Draining
from streaming.followed import Followed
from streaming.garbage import Collector
from streaming.logs import log_run, set_up
from streaming.metrics import Metrics
from streaming.run import Run
from streaming.runs import Runs
from streaming.settings import Settings, load
from wires import ndjson as lines
from wires.access import Access, Caller, Subject
from wires.chat import ChatRequest, decode_query
from wires.event_id import EventId, last_event_id, reached
from wires.host import Hosts
from wires.operations import metrics, ready
from wires.origin import cors
from wires.page import file
from wires.problem import PROBLEMS, Problems, problem, told
from wires.resource import head_of, json_response, path_of, status
from wires.sse import EventStream
from wires.sse import farewell as sse_farewell
from wires.sse import form as event_form
from wires.viewer import EachEvent, Viewer
from wires.websocket import Conversation, lost_at

if TYPE_CHECKING:
    from streaming.replication import Replication
    from streaming.tracing import Tracing

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]  # a module, or none
# How long, in seconds, a thread that computes (a graph, the import of an SDK) keeps the others waiting each time. With
# Python's 5 ms the tokens of a hundred streams beside one such thread came 136 ms late in the median, with this 72 ms.
SWITCH_INTERVAL = 0.0005


class Service:
    """The endpoints, and what they share."""

    def __init__(
        self,
        settings: Settings,
        providers: Providers,
        access: Access,
        tracing: "Tracing | None" = None,
        replication: "Replication | None" = None,
    ) -> None:
        self.settings = settings
        self.providers = providers
        self.access = access
        self.garbage = Collector(is_quiet=lambda: not len(self.runs))
        self.metrics = Metrics(providers.named)
        self.tracing = tracing
        if tracing:
            tracing.models = self.metrics.models
        self.breakers = Breakers(settings.breaker)
        self.runs = Runs(settings.keep, settings.keep_bytes, settings.capacity, self.garbage.look, self._run_ended)
        self.runs.elsewhere = self.replication = replication
        self.intake = Intake(settings, providers, access, self.breakers, self.runs)
        if replication:
            replication.on_secret = self.intake.links.accept
        self.foreign = Foreign(settings, self.intake, self._begin, self.metrics)
        self.forms = lines.FORM, event_form(settings.retry_ms)
        # Those of clients who come back by themselves, or know how to.
        self.leaving_forms = tuple(
            form._replace(farewell=partial(self._farewell, tell))
            for form, tell in zip(self.forms, (lines.farewell, sse_farewell), strict=True)
        )
        self.conversations: set[Conversation] = set()
        self.drain = Drain(self.runs, settings.drain_timeout, self._leave)
        self.started = int(time.time())

    def _run_ended(self, run: Run) -> None:
        self.metrics.run_ended(run)
        if self.tracing:
            self.tracing.run_ended(run)
        log_run(run)

    def _begin(self, request: HTTPConnection, run: Followed) -> None:
        """Start the run of a request, unless it was; in a span of its own where runs are traced."""
        if self.tracing and isinstance(run, Run) and not run.started:
            with self.tracing.beginning(run, request.headers.items()):
                self.runs.begin(run)
        else:
            self.runs.begin(run)

    async def chat(self, request: Request, *, default: str | None = None, ndjson: bool = False) -> Response:
        """Run and follow in one request, by POST or (for an EventSource) by GET; with an event id, follow only.

        `default` is the model of a request that names none, in place of the service's.
        """
        caller = self.intake.caller(request)
        provider = request.path_params.get("name")
        if provider is not None:
            self.providers.check(provider)
        if seen := last_event_id(request.headers, request.query_params):
            return await self._follow(request, self.runs.find(seen.run, caller.owner), seen, ndjson=ndjson)
        left = await self.intake.spend(caller, request)
        if request.method == "POST":
            run = await self.intake.posted(request, caller, provider, default, linger=0)
        else:
            run = await self.intake.run_of(decode_query(request.query_params.multi_items()), caller, provider, default)
        response = self._viewed(request, run, 0, ndjson=ndjson)
        response.headers.update(left)
        return response

    async def create_run(self, request: Request) -> Response:
        """Start a run that is followed by other requests, which may come and go."""
        caller = self.intake.caller(request)
        if last_event_id(request.headers, request.query_params):
            text = "A request with an event id starts no run; follow one at /runs/<id>/events."
            raise RequestError("invalid_request", text, field="last_event_id")
        left = await self.intake.spend(caller, request)
        run = await self.intake.posted(request, caller, linger=self.settings.linger)
        self._begin(request, run)
        await self.runs.settle(run)  # whoever is told of it may ask any replica
        path = path_of(request.scope, run)
        return json_response(self.intake.links.created(run, path), 201, Location=path, **left)

    async def run(self, request: Request) -> Response:
        """Tell how a run stands, or (by DELETE) stop it: then return when its upstream is closed."""
        run = await self.intake.find(request)
        if request.method != "DELETE":
            return json_response(status(run))
        run.end("requested")
        await run.wait()
        return Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """Follow a run from its beginning, or from where the client was."""
        seen = last_event_id(request.headers, request.query_params)
        return await self._follow(request, self.intake.find(request), seen)

    async def _follow(
        self, request: Request, finding: Awaitable[Followed], seen: EventId | None, *, ndjson: bool = False
    ) -> Response:
        """Follow a run from where the client was: it gets what it has not seen, and 204 once it has seen all.

        Where another replica has it, and cannot be reached, the client is to come again: to an EventSource a status
        would be the end.
        """
        try:
            run = await finding
            after = await reached(run, seen)
        except ServiceError as fault:
            if fault.code != "unavailable" or request.method != "GET":
                raise
            return self._come_again(self._form(request, ndjson=ndjson))
        self.metrics.resumes += after > 0
        if run.log.ended(after):
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        return self._viewed(request, run, after, ndjson=ndjson)

    def _come_again(self, form: EachEvent) -> Response:
        """Send a client to another replica at once."""
        assert form.farewell
        media_type = lines.MEDIA_TYPE if form.encode is lines.line else "text/event-stream"
        return Response(form.opening + form.farewell(), 200, {"Cache-Control": "no-store"}, media_type)

    def _form(self, request: Request, *, ndjson: bool) -> EachEvent:
        """Return in what form events are told; who asks by GET can come back for the rest, to another replica."""
        forms = self.leaving_forms if request.method == "GET" else self.forms
        return forms[not (ndjson or lines.MEDIA_TYPE in request.headers.get("accept", "").lower())]

    def _farewell(self, tell: Callable[[Draining], bytes]) -> bytes:
        """Send a viewer to another replica: soon, but not all at once."""
        return tell(Draining(round(min(self.settings.retry_ms, 1000) * random.uniform(0.3, 1))))  # noqa: S311  # no secret

    def _viewed(self, request: Request, run: Followed, after: int, *, ndjson: bool) -> Response:
        form = self._form(request, ndjson=ndjson)
        viewer = Viewer(
            run,
            partial(self._begin, request, run),
            form,
            after=after,
            ping_interval=self.settings.ping_interval,
            send_timeout=self.settings.send_timeout,
            on_refusal=self.metrics.refused,
        )
        response: Response = lines.LineStream(viewer) if form.encode is lines.line else EventStream(viewer)
        if request.method == "HEAD":
            return head_of(response)
        response.headers["Content-Location"] = path_of(request.scope, run)
        return response

    async def websocket(self, socket: WebSocket) -> None:
        """Many turns over one socket."""
        try:
            caller = self.intake.caller(socket)
            lost = await self._lost(socket, caller)
            conversation = Conversation(
                socket,
                partial(self._next_turn, socket, caller),
                partial(self._begin, socket),
                send_timeout=self.settings.send_timeout,
                max_bytes=self.settings.max_body_bytes,
                lost=lost,
                on_refusal=self.metrics.refused,
            )
        except Fault as fault:
            await socket.send_denial_response(self._refusal(fault))
            return
        self.metrics.resumes += lost is not None
        self.conversations.add(conversation)
        try:
            await conversation.serve()
        finally:
            self.conversations.discard(conversation)

    async def _lost(self, socket: WebSocket, caller: Caller) -> tuple[Followed, EventId] | None:
        """Return the run of the turn to go on with, if the client says, and what it has seen of it."""
        if not (seen := lost_at(socket.query_params)):
            return None
        run = await self.runs.find(seen.run, caller.owner)
        if run.hands_over and not run.log.closed:  # a socket cannot be sent elsewhere later: it would stay
            raise ServiceError("unavailable", "This replica goes, or has lost the run; another has it.")
        await run.reach(seen.seq)
        return run, seen

    async def _next_turn(self, socket: WebSocket, caller: Caller, chat: ChatRequest) -> Followed:
        self.access.owner(socket)  # whose key may be no more
        await self.intake.spend(caller)
        return await self.intake.run_of(chat, caller)

    async def _leave(self) -> None:
        """Send away who can go on elsewhere, and close sockets."""
        await asyncio.gather(self._close_conversations(), *([self.replication.hand_over()] if self.replication else []))

    async def _close_conversations(self) -> None:
        await asyncio.gather(*(conversation.close() for conversation in self.conversations))

    async def refuse(self, request: Request, exc: Exception) -> Response:
        """Answer what was raised before the first byte."""
        assert isinstance(exc, Fault)
        self.metrics.refused(exc)
        return told(request.scope, exc)

    def _refusal(self, fault: Fault) -> Response:
        self.metrics.refused(fault)
        return problem(fault)

    async def models(self, request: Request) -> Response:
        """What can be asked for, the default first."""
        self.access.owner(request)
        known = [(str(model), model.provider) for model in self.providers.catalogue()]
        known += [(alias, "sidestream") for alias in self.providers.aliases]
        known.sort(key=lambda one: one[0] != self.providers.default_name)  # which may be an alias
        return JSONResponse(wire_of("models").listed(known, self.started, request.headers))

    async def model(self, request: Request) -> Response:
        """A model, by any name that can be asked for."""
        self.access.owner(request)
        name = request.path_params["model"]
        if not name:
            raise RequestError("unknown_model", "Name a model.")
        owner = "sidestream" if name in self.providers.aliases else self.providers.resolve(name).provider
        return JSONResponse(wire_of("models").one((name, owner), self.started, request.headers))

    async def readyz(self, request: Request) -> Response:
        """Whether runs are begun; with `?verbose` how the models fare."""
        if verbose := "verbose" in request.query_params:
            self._check_operator(request)
        return ready(self.runs, self.breakers, verbose=verbose)

    async def prometheus(self, request: Request) -> Response:
        self._check_operator(request)
        return metrics(self.metrics, self.runs, self.breakers)

    def _check_operator(self, request: Request) -> None:
        if not self.settings.public_metrics:
            self.access.owner(request)

    async def openapi(self, request: Request) -> Response:
        """All of this, told to machines."""
        document: Response = self.document.response(request)
        return document

    @cached_property
    def document(self) -> Any:
        from wires.openapi import Document  # here, since most never ask: to import it takes 15 ms

        known = self.providers
        return Document(self.settings, [*known.names, *known.runnables, *known.aliases], is_open=self.access.is_open)

    async def file(self, request: Request, name: str) -> Response:
        """A file of web/: the page, the browser client."""
        return file(name)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[dict[str, Any]]:
        """Import the SDKs beside the first requests, not before them; close everything at the end."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        _raise_open_files()
        warming = asyncio.create_task(self._warm())
        self.drain.on_signals()
        if self.replication:
            self.replication.start()
            await self.replication.looked()
        stop_watching = self.metrics.watch_loop()
        try:
            yield {"on_refusal": self.metrics.refused}  # for the server, which refuses some by itself (wires/server.py)
        finally:
            stop_watching()
            warming.cancel()
            await asyncio.wait((warming,))
            await self.runs.close()
            if self.replication:
                await self.replication.close()
            # Together, since the process ends soon, whoever is not done by then (streaming/drain.py).
            await asyncio.gather(self.providers.close(), *([self.tracing.close()] if self.tracing else []))
            self.garbage.close()

    async def _warm(self) -> None:
        await self.providers.warm()
        self.garbage.settle()


def _raise_open_files() -> None:
    """Allow as many open files as may be: a stream takes two, and the usual 1,024 would be no more than 500 streams."""
    if resource is not None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # where the system itself has a lower bound (macOS)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def create_app(environ: Mapping[str, str] = os.environ) -> Starlette:
    """Make the app from the settings. Raises SettingsError with every bad value."""
    return app_of(create_service(environ))


def app_of(service: Service) -> Starlette:
    chat = service.chat
    get_and_post = ["GET", "POST"]
    routes = [
        Route("/", partial(service.file, name="index.html")),
        Route("/graph.js", partial(service.file, name="graph.js")),
        Route("/sidestream.js", partial(service.file, name="sidestream.js")),
        Route("/sidestream.d.ts", partial(service.file, name="sidestream.d.ts")),
        Route("/openapi.json", service.openapi),
        Route("/docs", partial(service.file, name="docs.html")),
        Route("/healthz", lambda request: PlainTextResponse("ok")),
        Route("/readyz", service.readyz),
        Route("/metrics", service.prometheus),
        Route("/v1/models", service.models),
        Route("/v1/models/{model:path}", service.model),
        Route("/chat/stream", chat, methods=get_and_post),
        Route("/chat/stream-meta", chat, methods=get_and_post),
        Route("/stream", partial(chat, default=service.providers.graph, ndjson=True), methods=get_and_post),
        Route("/runs", service.create_run, methods=["POST"]),
        Route("/runs/{run_id}", service.run, methods=["GET", "DELETE"]),
        Route("/runs/{run_id}/events", service.events),
        WebSocketRoute("/ws/chat", service.websocket),
        *service.foreign.routes(),
        Route("/{name}/stream", chat, methods=get_and_post),
    ]
    settings = service.settings
    hosts = Middleware(Hosts, settings.allowed_hosts, service.metrics.refused, is_open=service.access.is_open)
    middleware = [Middleware(Problems, teller), hosts, *cors(settings.allowed_origins)]
    set_up(settings.log_format)
    faults = {**PROBLEMS, Fault: service.refuse}
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=faults, lifespan=service.lifespan)
    app.router.redirect_slashes = False  # to an address that would be made of the Host header
    return app


def create_service(environ: Mapping[str, str]) -> Service:
    """Read the settings, find the providers and who may use them. Raises SettingsError with every bad value of all."""
    settings, problems = load(environ)
    rest = [partial(make, settings) for make in (_access, _tracing, _replication)]
    makes = partial(_providers, settings, environ), *rest
    return Service(settings, *_all(*makes, problems=problems))


def _all(*makes: Callable[[], Any], problems: Sequence[str] = ()) -> list[Any]:
    """Make all of them. Raises SettingsError with the problems of each."""
    made, found = [], [*problems]
    for make in makes:
        try:
            made.append(make())
        except SettingsError as exc:
            found += exc.problems
    if found:
        raise SettingsError(*found)
    return made


def _providers(settings: Settings, environ: Mapping[str, str]) -> Providers:
    return Providers(settings.tables, environ, settings.model, settings.threads, settings.models)


def _access(settings: Settings) -> Access:
    keys = partial(Access, settings.api_keys, settings.api_keys_file, settings.jwt_cookie)
    access: Access
    access, access.subject = _all(keys, partial(_subject, settings))
    return access


def _subject(settings: Settings) -> Subject | None:
    if not (settings.jwt_secret or settings.jwt_keys_file):
        return None
    try:
        from wires.tokens import Tokens  # here, since most do without
    except ImportError:
        raise SettingsError("jwt_secret, jwt_keys_file: they need the extra: sidestream[jwt]") from None
    return Tokens(settings.jwt_secret, settings.jwt_keys_file, settings.jwt_audience, settings.jwt_issuer).subject


def _tracing(settings: Settings) -> "Tracing | None":
    if not settings.tracing:
        return None
    try:
        from streaming.tracing import Tracing  # here, since most do without
    except ImportError:
        raise SettingsError("tracing: it needs the extra: sidestream[otel]") from None
    return Tracing(prompts=settings.trace_prompts)


def _replication(settings: Settings) -> "Replication | None":
    if not settings.redis_url:
        return None
    try:
        from streaming.replication import Replication  # here, since most do without
    except ImportError:
        raise SettingsError("redis_url: it needs the extra: sidestream[redis]") from None
    try:
        return Replication(settings.redis_url, settings.keep)
    except ValueError as exc:
        raise SettingsError(f"SIDESTREAM_REDIS_URL: {exc}") from None


def __getattr__(name: str) -> Any:
    """Make `app` when a server asks for it, so that the command can read its options first."""
    if name != "app":
        raise AttributeError(name)
    try:
        app = globals()["app"] = create_app()
    except SettingsError as exc:
        raise SystemExit(str(exc)) from None
    return app
