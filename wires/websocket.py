"""WebSocket: many turns over one socket. Frames out are `{"event", "id", "data"}`, one event each.

In comes text: an object is a request (the native one) or `{"type": "stop"}`, anything else is the user's message. The
conversation is kept and sent on with each message, and dies with the socket; `messages` replaces it. With a
`thread_id` none is kept: the graph's thread is the memory. One turn at a time: what is asked during one is refused with
an `error` that ends nothing and has no id. `?resume=<event id>` goes on with the turn of a socket that was lost.
uvicorn sends the pings.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

import msgspec
from msgspec.structs import replace
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocket, WebSocketDisconnect

from streaming.errors import Fault, RequestError
from streaming.events import Cancelled, Done, Terminal, Token
from streaming.followed import Followed
from streaming.log import follow
from streaming.request import Message

from .chat import ChatRequest, decode_body, decode_query, json_line
from .event_id import EventId, event_id, position
from .ndjson import line
from .transport import OnRefusal, let_go

RESUME = "resume"
_BLANK = ChatRequest()


class _Turn(NamedTuple):
    """A run, the place in its log after which the client goes on, and the conversation that it answers, to be kept."""

    run: Followed
    after: int
    conversation: list[Message] | None


def lost_at(query: Mapping[str, str]) -> EventId | None:
    """Return the event that the client saw last on a socket it lost. Raises RequestError where that is no event id."""
    return event_id(query[RESUME], RESUME) if query.get(RESUME) else None


class Conversation:
    """One socket: the turns so far and the one that is going on. `new_run` makes the run of a request, not started.

    `lost` is the run of the turn to go on with, and what the client has seen of it.
    """

    def __init__(
        self,
        socket: WebSocket,
        new_run: Callable[[ChatRequest], Awaitable[Followed]],
        start: Callable[[Followed], None],
        *,
        send_timeout: float,
        max_bytes: int,
        on_refusal: OnRefusal = lambda fault: None,
        lost: tuple[Followed, EventId] | None = None,
    ) -> None:
        self._socket = socket
        self._new_run = new_run
        self._start = start
        self._send_timeout = send_timeout
        self._max_bytes = max_bytes
        self._on_refusal = on_refusal
        self._defaults = decode_query([pair for pair in socket.query_params.multi_items() if pair[0] != RESUME])
        if self._defaults.given(("input",)) or any(
            getattr(self._defaults, name) for name in ("message", "question", "messages")
        ):
            raise RequestError("invalid_request", "Send messages as frames, not as parameters.", field="message")
        self._history: list[Message] = []
        self._turn = _Turn(lost[0], position(*lost, RESUME), None) if lost else None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def serve(self) -> None:
        """Accept the socket and serve it until it closes; a turn that is going on has lost its viewer then."""
        await self._socket.accept()
        if self._turn:
            self._play_next(self._turn)
        try:
            while (frame := await self._socket.receive())["type"] == "websocket.receive":
                if self._closing:
                    continue
                try:
                    if turn := await self._take(frame.get("text")):
                        self._play_next(turn)
                except Fault as fault:
                    async with asyncio.timeout(self._send_timeout):
                        await self._refuse(fault)
        except TimeoutError:
            await let_go(self._socket._receive, "(none)", self._send_timeout, self._on_refusal)
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Close the socket with 1012, "Service Restart" (IANA's registry), behind the end of the turn that goes on."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._closing = True
        if self._tasks:  # what was said meanwhile is being refused
            await asyncio.wait(self._tasks)
        try:
            async with asyncio.timeout(self._send_timeout):
                await self._socket.close(1012)
        except TimeoutError:
            await let_go(self._socket._receive, "(none)", self._send_timeout, self._on_refusal)
        except (ClientDisconnect, RuntimeError, WebSocketDisconnect):
            return  # it is closed

    async def _take(self, text: str | None) -> _Turn | None:
        """Take a frame: stop the turn, or make the next one."""
        if text is not None and len(text.encode()) > self._max_bytes:
            raise RequestError(
                "too_large", f"The frame is larger than {self._max_bytes} bytes.", limit="max_body_bytes"
            )
        if text is None:
            raise RequestError("invalid_request", "Send text frames, not binary ones.")
        request = _object(text)
        if request and request.get("type") == "stop":
            if self._turn:
                self._turn.run.end("requested")
            return None
        if self._turn:
            raise RequestError("invalid_request", "A turn is going on: wait for its end, or stop it.")
        self._turn = await self._next(decode_body(text.encode()) if request is not None else ChatRequest(message=text))
        return self._turn

    async def _next(self, chat: ChatRequest) -> _Turn:
        given = {
            name: value
            for name in chat.__struct_fields__
            if (value := getattr(chat, name)) is not getattr(_BLANK, name)
        }
        if chat.has_own_input or given.keys() & {"system", "system_prompt"}:  # not the parameters' then
            given = {"system": chat.system, "system_prompt": chat.system_prompt, **given}
        whole = replace(self._defaults, **given)
        conversation = chat.conversation()
        if chat.has_own_input:
            return _Turn(await self._new_run(whole), 0, None)
        if chat.messages is None and whole.thread_id is None:
            conversation = [*self._history, *conversation]
        if len(msgspec.json.encode(conversation)) > self._max_bytes:
            text = f"The conversation is larger than {self._max_bytes} bytes."
            raise RequestError("too_large", text, limit="max_body_bytes")
        run = await self._new_run(replace(whole, message=None, question=None, messages=conversation))
        return _Turn(run, 0, conversation if whole.thread_id is None else None)

    def _play_next(self, turn: _Turn) -> None:
        """Play a turn, once the frames of those before it are on their way."""
        task = asyncio.create_task(self._play(turn, set(self._tasks)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _play(self, turn: _Turn, before: set[asyncio.Task[None]]) -> None:
        run_id = turn.run.id.encode()
        try:
            with turn.run.viewing():
                self._start(turn.run)
                if before:
                    await asyncio.wait(before)
                async for batch in follow(turn.run.log, turn.after):
                    if isinstance(batch[-1][1], Terminal):
                        self._end(turn)
                    for seq, event in batch:
                        async with asyncio.timeout(self._send_timeout):
                            await self._socket.send_text(line(run_id, seq, event)[:-1].decode())
        except TimeoutError:
            # A close frame would wait behind the rest.
            await let_go(self._socket._receive, turn.run.id, self._send_timeout, self._on_refusal)
        except (ClientDisconnect, WebSocketDisconnect):
            return  # it is told by `receive` as well
        except Fault as fault:  # the service is stopping, or full
            with suppress(TimeoutError, ClientDisconnect, WebSocketDisconnect):  # `receive` tells it as well
                async with asyncio.timeout(self._send_timeout):
                    await self._refuse(fault)
        finally:
            if self._turn is turn:
                self._turn = None

    def _end(self, turn: _Turn) -> None:
        """Keep the answer, whole or stopped by its reader; a turn that failed is as if it had not been.

        Before its last frame goes out: who has that may send the next message.
        """
        self._turn = None
        answer = turn.run.log.text(Token)
        answer = answer.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # pairs that came in two tokens
        if turn.conversation is not None and isinstance(turn.run.terminal, Done | Cancelled) and answer:
            self._history = [*turn.conversation, Message("assistant", answer)]

    async def _refuse(self, fault: Fault) -> None:
        self._on_refusal(fault)
        told = {"error": fault.text, "code": fault.code, "retryable": fault.retryable}
        await self._socket.send_text(json_line({"event": "error", "data": told}).decode())


def _object(text: str) -> dict[str, object] | None:
    try:
        value = msgspec.json.decode(text)
    except RecursionError:
        raise RequestError("invalid_request", "The frame nests too deeply.") from None
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, dict) else None
