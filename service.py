"""The ASGI app: routes, lifespan, wiring. `uvicorn service:app`, or the command `sidestream`.

A request comes in by a wire, a run streams a provider's events into its log, the wire carries them out. Here they are
put together; what each does is in wires/, providers/ and streaming/.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from providers.registry import Model, Providers
from streaming.breaker import Breakers
from streaming.errors import Fault, RequestError, SettingsError
from streaming.failover import Candidate, Failover
from streaming.garbage import Collector
from streaming.limits import Limits
from streaming.logs import keep_prompts_out
from streaming.metrics import Metrics
from streaming.run import Run
from streaming.runs import Runs
from streaming.settings import Settings, load
from wires import ndjson as lines
from wires.chat import ChatRequest, decode_body, decode_query
from wires.event_id import EventId, last_event_id, position
from wires.operations import metrics, ready
from wires.origin import check_origin
from wires.problem import PROBLEMS, Problems, problem
from wires.resource import Links, digest, idempotency_key, json_response, path_of, status
from wires.sse import EventStream
from wires.sse import form as event_form
from wires.viewer import Viewer
from wires.websocket import Conversation, lost_at

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]  # a module, or none
# How long, in seconds, a thread that computes (a graph, the import of an SDK) keeps the others waiting each time. With
# Python's 5 ms the tokens of a hundred streams beside one such thread came 136 ms late in the median, with this 72 ms.
SWITCH_INTERVAL = 0.0005
WEB = Path(__file__).parent / "web"
MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".ts": "text/plain"}


class Service:
    """The endpoints, and what they share."""

    def __init__(self, settings: Settings, providers: Providers) -> None:
        self.settings = settings
        self.providers = providers
        self.garbage = Collector(is_quiet=lambda: not len(self.runs))
        self.metrics = Metrics()
        self.breakers = Breakers(settings.breaker)
        self.runs = Runs(settings.keep, settings.keep_bytes, self.garbage.look, self.metrics.run_ended)
        self.links = Links(settings.url_secret, settings.keep)
        self.longest = Limits(
            settings.run_timeout,
            settings.first_token_timeout,
            settings.idle_timeout,
            settings.max_run_bytes,
            settings.max_linger,
        )
        self.event_form = event_form(settings.retry_ms)
        self.conversations: set[Conversation] = set()
        self._drained: Future[None] | None = None
        self.started = int(time.time())

    async def chat(self, request: Request, *, default: str | None = None, ndjson: bool = False) -> Response:
        """Run and follow in one request, by POST or (for an EventSource) by GET; with an event id, follow only.

        `default` is the model of a request that names none, in place of the service's.
        """
        provider = request.path_params.get("name")
        if provider is not None:
            self.providers.check(provider)
        check_origin(request.headers, self.settings.allowed_origins)
        if seen := last_event_id(request.headers, request.query_params):
            return self._follow(request, self.runs.find(seen.run), seen, ndjson=ndjson)
        if request.method == "POST":
            run = await self._posted(request, provider, default, linger=0)
        else:
            run = self._new_run(decode_query(request.query_params.multi_items()), provider, default)
        return self._follow(request, run, None, ndjson=ndjson)

    async def create_run(self, request: Request) -> Response:
        """Start a run that is followed by other requests, which may come and go."""
        check_origin(request.headers, self.settings.allowed_origins)
        if last_event_id(request.headers, request.query_params):
            text = "A request with an event id starts no run; follow one at /runs/<id>/events."
            raise RequestError("invalid_request", text, field="last_event_id")
        run = await self._posted(request, linger=self.settings.linger)
        self.runs.begin(run)
        path = path_of(request.scope, run)
        return json_response(self.links.created(run, path), 201, Location=path)

    async def run(self, request: Request) -> Response:
        """Tell how a run stands, or (by DELETE) stop it: then return when its upstream is closed."""
        run = self._find(request)
        if request.method != "DELETE":
            return json_response(status(run))
        run.end("requested")
        await run.wait()
        return Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """Follow a run from its beginning, or from where the client was."""
        seen = last_event_id(request.headers, request.query_params)
        return self._follow(request, self._find(request), seen)

    def _find(self, request: Request) -> Run:
        check_origin(request.headers, self.settings.allowed_origins)
        run = self.runs.find(request.path_params["run_id"])
        self.links.check(run.id, request.query_params)
        return run

    async def _posted(
        self, request: Request, provider: str | None = None, default: str | None = None, *, linger: float
    ) -> Run:
        """Make the run of a POST, or find that of its Idempotency-Key."""
        key = idempotency_key(request.headers)
        body = await self._body(request)
        return self._new_run(decode_body(body), provider, default, linger=linger, key=key, body=body)

    def _new_run(
        self,
        chat: ChatRequest,
        provider: str | None = None,
        default: str | None = None,
        *,
        linger: float = 0,
        key: str = "",
        body: bytes = b"",
    ) -> Run:
        """Make the run of a request; whoever follows it begins it."""
        choice = self.providers.choose(chat.model or default, provider)
        candidates = [self._candidate(model, chat) for model in choice.models]
        failover = Failover(candidates, choice.on, self.settings.retries)
        limits = chat.limits(self.longest, linger)
        return self.runs.create(failover, limits, key=key, asked=digest(str(choice), body))

    def _candidate(self, model: Model, chat: ChatRequest) -> Candidate:
        return Candidate(
            model.provider,
            self.providers.prepare(model.provider, chat.to_run(model.model)),
            partial(self.providers.load, model.provider),
            self.breakers.of(str(model)),
            self.providers.has_effects(model.provider),
        )

    def _follow(self, request: Request, run: Run, seen: EventId | None, *, ndjson: bool = False) -> Response:
        """Follow a run from where the client was: it gets what it has not seen, and 204 once it has seen all."""
        after = position(run, seen)
        if run.log.ended(after):
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        ndjson = ndjson or lines.MEDIA_TYPE in request.headers.get("accept", "").lower()
        viewer = Viewer(
            run,
            partial(self.runs.begin, run),
            lines.FORM if ndjson else self.event_form,
            after=after,
            ping_interval=self.settings.ping_interval,
            send_timeout=self.settings.send_timeout,
        )
        response: Response = lines.LineStream(viewer) if ndjson else EventStream(viewer)
        if request.method == "HEAD":
            return _head(response)
        response.headers["Content-Location"] = path_of(request.scope, run)
        return response

    async def websocket(self, socket: WebSocket) -> None:
        """Many turns over one socket."""
        try:
            check_origin(socket.headers, self.settings.allowed_origins)
            seen = lost_at(socket.query_params)
            conversation = Conversation(
                socket,
                self._new_run,
                self.runs.begin,
                send_timeout=self.settings.send_timeout,
                max_bytes=self.settings.max_body_bytes,
                lost=(self.runs.find(seen.run), seen) if seen else None,
            )
        except Fault as fault:
            await socket.send_denial_response(problem(fault))
            return
        self.conversations.add(conversation)
        try:
            await conversation.serve()
        finally:
            self.conversations.discard(conversation)

    async def _body(self, request: Request) -> bytes:
        """Read a JSON body. Raises RequestError where it says to be something else or grows too large."""
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json" and not content_type.endswith("+json"):
            raise RequestError("unsupported_media_type", "Send the body as Content-Type: application/json.")
        most, body = self.settings.max_body_bytes, bytearray()
        too_large = RequestError("too_large", f"The body is larger than {most} bytes.")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > most:
            raise too_large
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large
        return bytes(body)

    async def models(self, request: Request) -> Response:
        """What can be asked for, the default first."""
        known = [(str(model), model.provider) for model in self.providers.catalogue()]
        known += [(alias, "sidestream") for alias in self.providers.aliases]
        data = [{"id": name, "object": "model", "created": self.started, "owned_by": owner} for name, owner in known]
        return JSONResponse({"object": "list", "data": data})

    async def readyz(self, request: Request) -> Response:
        """Whether runs are begun; with `?verbose` how the models fare."""
        return ready(self.runs.draining, self.breakers, verbose="verbose" in request.query_params)

    async def prometheus(self, request: Request) -> Response:
        return metrics(self.metrics, self.breakers)

    async def file(self, request: Request, name: str) -> Response:
        """A file of web/: the page, the browser client."""
        content, media_type = (WEB / name).read_bytes(), MEDIA_TYPES[Path(name).suffix]
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Import the SDKs beside the first requests, not before them; close everything at the end."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        _raise_open_files()
        warming = asyncio.create_task(self._warm())
        self._drain_on_signals(asyncio.get_running_loop())
        try:
            yield
        finally:
            warming.cancel()
            await asyncio.wait((warming,))
            await self.runs.close()
            await self.providers.close()
            self.garbage.close()

    def _drain_on_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the runs at the signal that ends the process, so that each viewer gets its terminal event.

        The server hears of it afterwards: it would wait for open streams before it tells us (the end of the lifespan),
        and close WebSockets at once.
        """
        if threading.current_thread() is not threading.main_thread():
            return  # signals are another's business there
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, self._before(signal.getsignal(sign), loop))

    def _before(self, handler: Any, loop: asyncio.AbstractEventLoop) -> Callable[[int, FrameType | None], None]:
        """Return a handler that drains before it calls `handler`; a second signal is passed on at once."""

        def pass_on(sign: int, frame: FrameType | None) -> None:
            if callable(handler):
                handler(sign, frame)

        async def drain(sign: int, frame: FrameType | None) -> None:
            try:
                await self._drain()
            finally:
                pass_on(sign, frame)

        def handle(sign: int, frame: FrameType | None) -> None:
            if self._drained:
                pass_on(sign, frame)
            else:
                self._drained = asyncio.run_coroutine_threadsafe(drain(sign, frame), loop)

        return handle

    async def _drain(self) -> None:
        """Begin no more runs, end those that go on, and return when each WebSocket has the end of its turn."""
        self.runs.drain()
        await asyncio.gather(*(conversation.close() for conversation in self.conversations))

    async def _warm(self) -> None:
        await self.providers.warm()
        self.garbage.settle()


def _raise_open_files() -> None:
    """Allow as many open files as may be: a stream takes two, and the usual 1,024 would be no more than 500 streams."""
    if resource is not None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # where the system itself has a lower bound (macOS)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _head(response: Response) -> Response:
    """Answer a HEAD with the headers of `response`, without what it would do."""
    head = Response()
    head.raw_headers = response.raw_headers
    return head


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
        Route("/healthz", lambda request: PlainTextResponse("ok")),
        Route("/readyz", service.readyz),
        Route("/metrics", service.prometheus),
        Route("/v1/models", service.models),
        Route("/chat/stream", chat, methods=get_and_post),
        Route("/chat/stream-meta", chat, methods=get_and_post),
        Route("/stream", partial(chat, default=service.providers.graph, ndjson=True), methods=get_and_post),
        Route("/runs", service.create_run, methods=["POST"]),
        Route("/runs/{run_id}", service.run, methods=["GET", "DELETE"]),
        Route("/runs/{run_id}/events", service.events),
        WebSocketRoute("/ws/chat", service.websocket),
        Route("/{name}/stream", chat, methods=get_and_post),
    ]
    middleware = [Middleware(Problems)]
    if origins := service.settings.allowed_origins:
        allowed: dict[str, Any] = {
            "allow_origins": origins,
            "allow_credentials": True,
            "allow_methods": ["*"],
            "allow_headers": ["*"],
        }
        middleware.append(
            Middleware(CORSMiddleware, **allowed, expose_headers=["Location", "Content-Location", "Retry-After"])
        )
    keep_prompts_out()
    return Starlette(routes=routes, middleware=middleware, exception_handlers=PROBLEMS, lifespan=service.lifespan)


def create_service(environ: Mapping[str, str]) -> Service:
    """Read the settings and find the providers. Raises SettingsError with every bad value of both."""
    settings, problems = load(environ)
    try:
        providers = Providers(settings.tables, environ, settings.model, settings.threads, settings.models)
    except SettingsError as exc:
        raise SettingsError(*problems, *exc.problems) from exc
    if problems:
        raise SettingsError(*problems)
    return Service(settings, providers)


def __getattr__(name: str) -> Any:
    """Make `app` when a server asks for it, so that the command can read its options first."""
    if name != "app":
        raise AttributeError(name)
    try:
        app = globals()["app"] = create_app()
    except SettingsError as exc:
        raise SystemExit(str(exc)) from None
    return app


def main() -> None:
    """The command `sidestream`."""
    import argparse  # here, since a server that imports the app starts without it

    parser = argparse.ArgumentParser(prog="sidestream", description="Stream LLM answers as named server-sent events.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (default: %(default)s)")
    parser.add_argument("--reload", action="store_true", help="restart when the code changes")
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings (SIDESTREAM_CONFIG)")
    options = parser.parse_args()
    sys.path.insert(0, os.getcwd())  # where an operator's own providers are, as `python -m` has it
    if options.config:
        os.environ["SIDESTREAM_CONFIG"] = options.config
    try:
        service = create_service(os.environ)
    except SettingsError as exc:
        sys.exit(str(exc))
    print(f"Sidestream   http://{options.host}:{options.port}/")
    if options.workers > 1:
        print("workers      each has runs of its own: a client that comes back may meet one that does not know its run")
    print(f"providers    {', '.join(service.providers.names)}")
    if service.providers.runnables:
        print(f"graphs       {', '.join(service.providers.runnables)}")
    print(f"default      {service.providers.default}", flush=True)
    target: Any = app_of(service)
    if options.workers > 1 or options.reload:  # each process makes its own
        asyncio.run(service.providers.close())
        target = "service:app"
    uvicorn.run(target, host=options.host, port=options.port, workers=options.workers, reload=options.reload)
    if any(not thread.name.startswith(("MainThread", "providers", "runnables")) for thread in threading.enumerate()):
        os._exit(0)  # a node that sleeps in a thread of LangGraph's own would hold up the end of the process


if __name__ == "__main__":
    main()
