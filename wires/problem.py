"""Errors before the first byte: `application/problem+json` (RFC 9457), with our `code` and the `field` it is about."""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streaming.errors import Fault, RequestError, ServiceError

from .chat import json_line
from .transport import GONE, SERVER_SEND

logger = logging.getLogger("sidestream")


Tell = Callable[[Fault], Response]
# Where in a scope stands how its wire tells faults, in place of `problem`.
TELLER = "sidestream.teller"


def told(scope: Scope, fault: Fault) -> Response:
    """Render a fault as the wire of a request does."""
    tell: Tell = scope.get(TELLER, problem)
    return tell(fault)


def status_headers(fault: Fault) -> dict[str, str]:
    """Return the headers that a fault comes with, on whatever wire."""
    headers = {"Cache-Control": "no-store", **fault.headers}
    if fault.status in (429, 503):
        headers.setdefault("Retry-After", "1")
    return headers


def problem(fault: Fault) -> Response:
    """Render a fault. One that passes says when to try again (RFC 9110, 10.2.3; RFC 6585, 4)."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": fault.title,
        "status": fault.status,
        "detail": fault.text,
        "code": fault.code,
    }
    if fault.field:
        body["field"] = fault.field
    return Response(json_line(body), fault.status, status_headers(fault), "application/problem+json")


async def _on_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    if exc.status_code == 405:
        allow = (exc.headers or {}).get("Allow", "")
        return told(request.scope, RequestError("method_not_allowed", f"Use {allow}.", headers={"Allow": allow}))
    return told(request.scope, RequestError("not_found", "There is nothing here."))


# Starlette's table of who answers what was raised.
PROBLEMS: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {HTTPException: _on_http_exception}
STARTS = {"http.response.start", "websocket.http.response.start"}
NOT_SNIFFED = (b"x-content-type-options", b"nosniff")  # a type is what we say it is (Fetch, 3.5)


class Problems:
    """Outermost middleware: what nobody caught becomes a problem, and a log entry that repeats no words of it.

    `teller` finds how the wire of a request tells faults, if it has a way of its own.
    """

    def __init__(self, app: ASGIApp, teller: Callable[[Scope], Tell | None]) -> None:
        self._app = app
        self._teller = teller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        # The latter where uvicorn, at its own end, has refused a handshake by itself that we were about to answer.
        gone = GONE if scope["type"] == "http" else (*GONE, AssertionError)

        async def watched(message: Message) -> None:
            nonlocal started
            if not started and message["type"] in STARTS:
                message = {**message, "headers": [*message["headers"], NOT_SNIFFED]}
            started = True
            try:
                await send(message)
            except gone as exc:
                raise ClientDisconnect from exc

        scope[SERVER_SEND] = send
        if tell := self._teller(scope):
            scope[TELLER] = tell
        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            return  # nobody is left to answer
        except asyncio.CancelledError:  # by a server that stops: a body has not come in time
            if started or scope["type"] != "http":
                raise
            with suppress(ClientDisconnect):
                stopping = ServiceError("shutting_down", "The service is shutting down.")
                await told(scope, stopping)(scope, receive, watched)
        except Exception as exc:
            where = "".join(traceback.format_tb(exc.__traceback__))
            logger.error("internal error: %s\n%s", type(exc).__name__, where)
            if started or scope["type"] != "http":
                return
            with suppress(ClientDisconnect):
                wrong = ServiceError("internal", "Something went wrong in the service.")
                await told(scope, wrong)(scope, receive, watched)
        finally:
            del scope[SERVER_SEND]  # which holds the server's request, which holds the scope
            scope.pop(TELLER, None)  # which may hold the scope, too
