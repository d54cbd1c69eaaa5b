"""The ASGI app: routes, lifespan, wiring. `uvicorn service:app`, or the command `sidestream`.

A request comes in by a wire, a run streams a provider's events into its log, the wire carries them out. Here they are
put together; what each does is in wires/, providers/ and streaming/.
"""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from providers.registry import Providers
from streaming.errors import Fault, RequestError, SettingsError
from streaming.runs import Candidate, Limits, Run, Runs
from streaming.settings import Settings, load
from wires.chat import EVENT_ID_PARAMETERS, ChatRequest, decode_body, decode_query
from wires.ndjson import MEDIA_TYPE as NDJSON
from wires.ndjson import LineStream
from wires.origin import check_origin
from wires.problem import Problems, problem
from wires.sse import EventStream
from wires.websocket import Conversation

PAGE = Path(__file__).parent / "web" / "index.html"
logger = logging.getLogger("sidestream")


class Service:
    """The endpoints, and what they share."""

    def __init__(self, settings: Settings, providers: Providers) -> None:
        self.settings = settings
        self.providers = providers
        self.runs = Runs()
        self.limits = Limits(
            settings.run_timeout, settings.first_token_timeout, settings.idle_timeout, settings.max_run_bytes
        )
        self.started = int(time.time())

    async def chat(self, request: Request, *, ndjson: bool = False) -> Response:
        """Run and follow in one request, by POST or (for an EventSource) by GET."""
        provider = request.path_params.get("name")
        if provider is not None and provider not in self.providers.names:
            raise RequestError("unknown_model", f"There is no provider {provider[:100]!r}.", field="model")
        check_origin(request.headers, self.settings.allowed_origins)
        if ended := _reconnect(request):
            return ended
        if request.method == "POST":
            chat = decode_body(await self._body(request))
        else:
            chat = decode_query(request.query_params.multi_items())
        run = self._run(chat, provider)
        response = self._follow(run, ndjson=ndjson or NDJSON in request.headers.get("accept", ""))
        return _head(response) if request.method == "HEAD" else response

    def _run(self, chat: ChatRequest, provider: str | None = None) -> Run:
        """Make the run of a request; whoever follows it starts it."""
        model = self.providers.resolve(chat.model, provider)
        candidate = Candidate(model.provider, chat.to_run(model.model), partial(self.providers.load, model.provider))
        return Run(candidate, chat.limits(self.limits))

    def _follow(self, run: Run, *, ndjson: bool) -> Response:
        begin = partial(self.runs.start, run)
        ping, send = self.settings.ping_interval, self.settings.send_timeout
        if ndjson:
            return LineStream(run, begin, ping_interval=ping, send_timeout=send)
        return EventStream(run, begin, retry_ms=self.settings.retry_ms, ping_interval=ping, send_timeout=send)

    async def websocket(self, socket: WebSocket) -> None:
        """Many turns over one socket."""
        try:
            check_origin(socket.headers, self.settings.allowed_origins)
            conversation = Conversation(
                socket,
                self._run,
                self.runs.start,
                send_timeout=self.settings.send_timeout,
                max_bytes=self.settings.max_body_bytes,
            )
        except Fault as fault:
            await socket.send_denial_response(problem(fault))
            return
        await conversation.serve()

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
        data = [
            {"id": str(model), "object": "model", "created": self.started, "owned_by": model.provider}
            for model in self.providers.catalogue()
        ]
        return JSONResponse({"object": "list", "data": data})

    async def page(self, request: Request) -> Response:
        return Response(PAGE.read_bytes(), media_type="text/html", headers={"Cache-Control": "no-cache"})

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Import the SDKs beside the first requests, not before them; close everything at the end."""
        warming = asyncio.create_task(self._warm())
        self._drain_on_signals(asyncio.get_running_loop())
        try:
            yield
        finally:
            warming.cancel()
            await asyncio.wait((warming,))
            await self.runs.close()
            await self.providers.close()

    def _drain_on_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the runs at the signal that ends the process, so that each viewer gets its terminal event.

        The server would wait for open streams before it tells us (the end of the lifespan).
        """
        if threading.current_thread() is not threading.main_thread():
            return  # signals are another's business there
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, _before(signal.getsignal(sign), partial(loop.call_soon_threadsafe, self.runs.drain)))

    async def _warm(self) -> None:
        await self.providers.warm()
        # The SDKs' several 100,000 objects are here to stay; walking them would halt every stream for 0.1 s and more.
        gc.freeze()


def _before(handler: Any, act: Callable[[], object]) -> Callable[[int, FrameType | None], None]:
    def handle(sign: int, frame: FrameType | None) -> None:
        act()
        if callable(handler):
            handler(sign, frame)

    return handle


def _head(response: Response) -> Response:
    """Answer a HEAD with the headers of `response`, without what it would do."""
    head = Response()
    head.raw_headers = response.raw_headers
    return head


def _reconnect(request: Request) -> Response | None:
    """Answer a request that carries an event id: it never starts a run.

    A run ends with the request that started it, so when its EventSource comes back it is over; 204 stops it.
    """
    names = [request.headers.get("last-event-id"), *map(request.query_params.get, EVENT_ID_PARAMETERS)]
    event_id = next((name for name in names if name), None)
    if event_id is None:
        return None
    run_id, _, seq = event_id.rpartition("-")
    if len(run_id) != 32 or not (seq.isascii() and seq.isdecimal()) or set(run_id) - set("0123456789abcdef"):
        raise RequestError("invalid_request", "That is no event id of ours.", field="last_event_id")
    return Response(status_code=204)


async def _on_fault(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, Fault)
    return problem(exc)


async def _on_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    if exc.status_code == 405:
        allow = (exc.headers or {}).get("Allow", "")
        return problem(RequestError("method_not_allowed", f"Use {allow}.", headers={"Allow": allow}))
    return problem(RequestError("not_found", "There is nothing here."))


class _NoPrompts(logging.Filter):
    """Keep prompts out of what uvicorn logs: query strings, and the WebSocket library's frames (at DEBUG)."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in record.args)
        return record.levelno > logging.DEBUG or "websockets" not in record.pathname


def create_app(environ: Mapping[str, str] = os.environ) -> Starlette:
    """Make the app from the settings. Raises SettingsError with every bad value."""
    service = create_service(environ)
    chat = service.chat
    get_and_post = ["GET", "POST"]
    routes = [
        Route("/", service.page),
        Route("/healthz", lambda request: PlainTextResponse("ok")),
        Route("/v1/models", service.models),
        Route("/chat/stream", chat, methods=get_and_post),
        Route("/chat/stream-meta", chat, methods=get_and_post),
        Route("/stream", partial(chat, ndjson=True), methods=get_and_post),
        WebSocketRoute("/ws/chat", service.websocket),
        Route("/{name}/stream", chat, methods=get_and_post),
    ]
    middleware = [Middleware(Problems)]
    if origins := service.settings.allowed_origins:
        middleware.append(
            Middleware(
                CORSMiddleware, allow_origins=origins, allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
            )
        )
    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        Fault: _on_fault,
        HTTPException: _on_http_exception,
    }
    _keep_prompts_out_of_logs()
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=service.lifespan)


def create_service(environ: Mapping[str, str]) -> Service:
    """Read the settings and find the providers. Raises SettingsError with every bad value of both."""
    settings, problems = load(environ)
    try:
        providers = Providers(settings.providers, environ, settings.model)
    except SettingsError as exc:
        raise SettingsError(*problems, *exc.problems) from exc
    if problems:
        raise SettingsError(*problems)
    return Service(settings, providers)


def _keep_prompts_out_of_logs() -> None:
    for name in ("uvicorn.access", "uvicorn.error"):
        if not any(isinstance(known, _NoPrompts) for known in logging.getLogger(name).filters):
            logging.getLogger(name).addFilter(_NoPrompts())
    for name in ("sse_starlette", "openai", "anthropic", "httpx2", "httpcore2"):  # they log bodies when at DEBUG
        logging.getLogger(name).setLevel(logging.WARNING)


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
    print(f"providers    {', '.join(service.providers.names)}")
    print(f"default      {service.providers.default}", flush=True)
    uvicorn.run("service:app", host=options.host, port=options.port, workers=options.workers, reload=options.reload)


if __name__ == "__main__":
    main()
