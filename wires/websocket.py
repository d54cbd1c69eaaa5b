"""WebSocket: many turns over one socket. Frames out are `{"event", "id", "data"}`, one event each.

In comes text: an object is a request (the native one) or `{"type": "stop"}`, anything else is the user's message. The
conversation is kept and sent on with each message, and dies with the socket; `messages` replaces it. One turn at a
time: what is asked during one is refused with an `error` that ends nothing and has no id. uvicorn sends the pings.
"""

import asyncio
from collections.abc import Callable

import msgspec
from msgspec.structs import asdict, replace
from starlette.websockets import WebSocket

from streaming.errors import Fault, RequestError
from streaming.events import Cancelled, Done, Token
from streaming.log import follow
from streaming.request import Message
from streaming.run import Run

from .chat import ChatRequest, decode_body, decode_query, json_line
from .ndjson import line
from .transport import let_go


class Conversation:
    """One socket: the turns so far and the one that is going on. `new_run` makes the run of a request, not started."""

    def __init__(
        self,
        socket: WebSocket,
        new_run: Callable[[ChatRequest], Run],
        start: Callable[[Run], None],
        *,
        send_timeout: float,
        max_bytes: int,
    ) -> None:
        self._socket = socket
        self._new_run = new_run
        self._start = start
        self._send_timeout = send_timeout
        self._max_bytes = max_bytes
        self._defaults = decode_query(socket.query_params.multi_items())
        if self._defaults.message or self._defaults.question or self._defaults.messages:
            raise RequestError("invalid_request", "Send messages as frames, not as parameters.", field="message")
        self._history: list[Message] = []
        self._run: Run | None = None

    async def serve(self) -> None:
        """Accept the socket and serve it until it closes; a turn that is going on has lost its viewer then."""
        await self._socket.accept()
        turn: asyncio.Task[None] | None = None
        try:
            while (frame := await self._socket.receive())["type"] == "websocket.receive":
                try:
                    if asked := self._take(frame.get("text")):
                        turn = asyncio.create_task(self._turn(*asked))
                except Fault as fault:
                    await self._refuse(fault)
        finally:
            if turn:
                turn.cancel()
                await asyncio.wait((turn,))

    def _take(self, text: str | None) -> tuple[Run, list[Message]] | None:
        """Take a frame: stop the turn, or return the run of a new one and the conversation it answers."""
        if text is not None and len(text) > self._max_bytes:
            raise RequestError("too_large", f"The frame is larger than {self._max_bytes} bytes.")
        if text is None:
            raise RequestError("invalid_request", "Send text frames, not binary ones.")
        request = _object(text)
        if request and request.get("type") == "stop":
            if self._run:
                self._run.end("requested")
            return None
        if self._run:
            raise RequestError("invalid_request", "A turn is going on: wait for its end, or stop it.")
        chat = decode_body(text.encode()) if request is not None else ChatRequest(message=text)
        conversation = chat.conversation()
        if chat.messages is None:
            conversation = [*self._history, *conversation]
        given = {name: value for name, value in asdict(chat).items() if value is not None}
        whole = replace(self._defaults, **given)
        if len(msgspec.json.encode(conversation)) > self._max_bytes:
            raise RequestError("too_large", f"The conversation is larger than {self._max_bytes} bytes.")
        self._run = self._new_run(replace(whole, message=None, question=None, messages=conversation))
        return self._run, conversation

    async def _turn(self, run: Run, conversation: list[Message]) -> None:
        run_id = run.id.encode()
        try:
            with run.viewing():
                self._start(run)
                async for batch in follow(run.log, 0):
                    for seq, event in batch:
                        async with asyncio.timeout(self._send_timeout):
                            await self._socket.send_text(line(run_id, seq, event)[:-1].decode())
                self._remember(run, conversation)
        except TimeoutError:
            let_go(self._socket._receive, run.id, self._send_timeout)  # a close frame would wait behind the rest
        except Fault as fault:  # the service is stopping
            await self._refuse(fault)
        finally:
            self._run = None

    def _remember(self, run: Run, conversation: list[Message]) -> None:
        """Keep the answer, whole or stopped by its reader; a turn that failed is as if it had not been."""
        events = run.log.read(0)
        answer = "".join(event.token for event in events if isinstance(event, Token))
        if isinstance(events[-1], Done | Cancelled) and answer:
            self._history = [*conversation, Message("assistant", answer)]

    async def _refuse(self, fault: Fault) -> None:
        told = {"error": fault.text, "code": fault.code, "retryable": fault.retryable}
        await self._socket.send_text(json_line({"event": "error", "data": told}).decode())


def _object(text: str) -> dict[str, object] | None:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
