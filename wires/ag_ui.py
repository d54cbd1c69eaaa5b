"""AG-UI 1.0: `POST /ag-ui`, and `POST /ag-ui/{name}` where the path names the model.

https://docs.ag-ui.com/spec/1.0/events/lifecycle; the order its clients demand is in `verifyEvents` of @ag-ui/client.
Data-only events, all of it in band; what cannot be begun is told by a status. The request is ag_ui_request.py's.

    event                          becomes
    start                          RUN_STARTED, the first time
    queued, custom                 CUSTOM of that name
    token                          TEXT_MESSAGE_START, _CONTENT, _END; a message for each node that speaks
    reasoning                      REASONING_START, REASONING_MESSAGE_START, _CONTENT, _END, REASONING_END
    tool_call_delta, tool_call     TOOL_CALL_START, _ARGS, _END; a graph's own calls, too
    tool_result                    TOOL_CALL_RESULT
    values                         STATE_SNAPSHOT; a subgraph's: RAW
    updates, tasks                 STEP_STARTED, STEP_FINISHED (ag_ui_steps.py), and RAW
    checkpoints, debug, events     RAW
    interrupt                      an interrupt in the outcome of RUN_FINISHED
    reset                          MESSAGES_SNAPSHOT of what the client had; its thoughts, which it keeps, are emptied
    done                           RUN_FINISHED; cut short within a tool call: RUN_ERROR
    cancelled                      RUN_FINISHED, its outcome `cancelled`; within a tool call, or draining: RUN_ERROR
    error                          RUN_ERROR
"""

from collections.abc import Iterator
from typing import Any

from msgspec import UNSET
from starlette.responses import Response

from streaming.errors import Fault, fault
from streaming.events import (
    Cancelled,
    Custom,
    Done,
    Event,
    GraphEvent,
    Interrupt,
    Queued,
    Reasoning,
    Reset,
    Start,
    Token,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Values,
)
from streaming.followed import Followed

from .ag_ui_ending import Ending, interrupt, outcome, usage
from .ag_ui_request import Given, asked
from .ag_ui_steps import Namespace, Node, Steps, is_in, name_of, said
from .ag_ui_turns import Call, Turn, text_of
from .chat import json_line
from .fold import Asked, Folded, Wire, refusal
from .viewer import failure

PROTOCOL = "1.0"
CUT_SHORT = "The answer was cut short within a tool call."


def decode(body: bytes) -> Asked:
    """Read a RunAgentInput. Raises RequestError for what cannot be answered here."""
    return asked(body, _form)


def _form(given: Given, run: Followed) -> Folded:
    return Folded(Events(run.id, given))


class Events:
    """The fold into AG-UI's events. Ids of messages are the run's, counted through."""

    def __init__(self, run_id: str, given: Given) -> None:
        self.has_said = True
        self.is_over = False
        self._is_open = False
        self._run = run_id
        self._given = given
        self._start: Start | None = None
        self._count = 0
        self._turns: dict[tuple[Node, Namespace], Turn] = {}
        self._steps = Steps()
        self._thoughts: list[str] = []
        self._interrupts: list[dict[str, Any]] = []
        self._forget_calls()

    def _forget_calls(self) -> None:
        self._calls: dict[str, Call] = {}
        self._by_index: dict[tuple[int, Node, Namespace], Call] = {}

    def feed(self, event: Event) -> Iterator[bytes]:
        if not self._is_open:
            self._is_open = True
            yield self._open()
        if type(event) is Token:  # most are; isinstance() asks msgspec's metaclass
            yield from self._say(event)
        elif isinstance(event, Reasoning):
            yield from self._think(event)
        elif isinstance(event, ToolCallDelta):
            yield from self._call_on(event)
        elif isinstance(event, ToolCall):
            yield from self._call_whole(event)
        elif isinstance(event, ToolResult):
            yield from self._answer(event)
        elif isinstance(event, GraphEvent):
            yield from self._tell(event)
        elif isinstance(event, Start):
            self._start = event
        elif isinstance(event, Queued):
            yield said("CUSTOM", name="queued", value={"position": event.position})
        elif isinstance(event, Interrupt):
            self._interrupts.append(interrupt(event))
        elif isinstance(event, Reset):
            yield from self._take_back()
        elif isinstance(event, Ending):
            yield from self._end(event)

    def _open(self) -> bytes:
        return said(
            "RUN_STARTED",
            threadId=self._given.thread,
            runId=self._given.run,
            parentRunId=self._given.parent,
            protocolVersion=PROTOCOL,
            metadata={"run": self._run},
        )

    def _next_id(self) -> bytes:
        self._count += 1
        return b"%b-%d" % (self._run.encode(), self._count)

    def _turn(self, node: Node, ns: Namespace) -> Iterator[bytes]:
        """Begin a turn of a node's, and the steps that it is in."""
        step = name_of(node, ns)
        self._turns[node, ns] = Turn(step)
        yield from self._steps.begin(step)

    def _say(self, event: Token) -> Iterator[bytes]:
        if (where := (event.node, event.ns)) not in self._turns:
            yield from self._turn(*where)
        turn = self._turns[where]
        if not turn.speaks:
            yield from turn.end_thoughts()
            turn.message, turn.speaks = self._next_id(), True
            yield b'data: {"type":"TEXT_MESSAGE_START","messageId":"%b","role":"assistant"}\n\n' % turn.message
        delta = json_line(event.text)
        yield b'data: {"type":"TEXT_MESSAGE_CONTENT","messageId":"%b","delta":%b}\n\n' % (turn.message, delta)

    def _think(self, event: Reasoning) -> Iterator[bytes]:
        if (where := (event.node, event.ns)) not in self._turns:
            yield from self._turn(*where)
        turn = self._turns[where]
        if not event.text:  # a signature, for which no request has a place: it closes what was thought
            yield from turn.end_thoughts()
            return
        if not turn.thoughts:
            yield from turn.end()
            turn.thoughts = span = self._next_id()
            self._thoughts.append(span.decode())
            yield b'data: {"type":"REASONING_START","messageId":"%b"}\n\n' % span
            yield b'data: {"type":"REASONING_MESSAGE_START","messageId":"%b","role":"reasoning"}\n\n' % span
        delta = json_line(event.text)
        yield b'data: {"type":"REASONING_MESSAGE_CONTENT","messageId":"%b","delta":%b}\n\n' % (turn.thoughts, delta)

    def _call_on(self, event: ToolCallDelta) -> Iterator[bytes]:
        place = event.index, event.node, event.ns
        if event.id is not UNSET:
            yield from self._begin_call(event.id, event.tool, event.node, event.ns)
            self._by_index[place] = self._calls[event.id]
        call = self._by_index[place]
        if event.text and call.is_open:
            yield call.args(event.text)

    def _begin_call(self, call_id: str, tool: Node, node: Node, ns: Namespace) -> Iterator[bytes]:
        """Begin a call, in the message of what was said before it: calls side by side are of one message."""
        if (node, ns) not in self._turns:
            yield from self._turn(node, ns)
        turn = self._turns[node, ns]
        yield from turn.end_thoughts()
        yield from turn.end_text()
        turn.message = turn.message or self._next_id()
        self._calls[call_id] = call = Call(call_id, turn)
        name = json_line("" if tool is UNSET else tool)
        yield b'data: {"type":"TOOL_CALL_START","toolCallId":%b,"toolCallName":%b,"parentMessageId":"%b"}\n\n' % (
            call.id,
            name,
            turn.message,
        )

    def _call_whole(self, event: ToolCall) -> Iterator[bytes]:
        """End a call. Of one that was not streamed, and of one without arguments, they are told: they must be JSON."""
        if event.id not in self._calls:
            yield from self._begin_call(event.id, event.tool, event.node, event.ns)
        call = self._calls[event.id]
        if call.is_open:
            if call.is_empty:
                yield call.args(text_of(event.args))
            yield call.end()

    def _answer(self, event: ToolResult) -> Iterator[bytes]:
        yield from self._steps.begin(name_of(event.node, event.ns))
        if call := self._calls.get(event.id):
            if call.is_open:
                yield call.end()
            call.is_answered = True
            if not call.turn.speaks:
                call.turn.message = b""  # what comes behind the result is no part of what has asked for it
        yield said(
            "TOOL_CALL_RESULT",
            messageId=self._next_id().decode(),
            toolCallId=event.id,
            content=text_of(event.content),
            role="tool",
        )

    def _tell(self, event: GraphEvent) -> Iterator[bytes]:
        if isinstance(event, Custom):
            yield b'data: {"type":"CUSTOM","name":"custom","value":%b}\n\n' % json_line(event.data)
            return
        if isinstance(event, Values) and not event.ns:
            yield b'data: {"type":"STATE_SNAPSHOT","snapshot":%b}\n\n' % json_line(event.data)
            return
        yield from self._steps.begun_by(event)
        source = self._start.provider if self._start else None
        yield said("RAW", event={"event": event.name, "ns": event.ns, "data": event.data}, source=source)
        for step in self._steps.ended_by(event):
            yield from self._leave(step)
            yield from self._steps.end(step)

    def _leave(self, step: str = "") -> Iterator[bytes]:
        """End what the nodes of a step say, or all nodes."""
        for where, turn in [*self._turns.items()]:
            if not step or is_in(turn.step, step):
                yield from turn.end()
                del self._turns[where]

    def _take_back(self) -> Iterator[bytes]:
        """Give the client the messages back that it had. Calls end behind that, so that none is taken for whole."""
        yield from self._leave()
        if self._count:
            voided = [{"id": span, "role": "reasoning", "content": ""} for span in self._thoughts]
            yield said("MESSAGES_SNAPSHOT", messages=[*self._given.messages, *voided])
        yield from self._end_calls()
        self._forget_calls()

    def _end_calls(self) -> Iterator[bytes]:
        for call in self._calls.values():
            if call.is_open:
                yield call.end()

    def _end(self, event: Ending) -> Iterator[bytes]:
        """Say the last word. A failure leaves open what it has broken off, as a call that is no call must be."""
        is_cut = any(call.is_open for call in self._calls.values())
        if isinstance(event, Done):
            is_short = is_cut and event.finish_reason in ("length", "content_filter")
            failed = fault("upstream_incomplete", CUT_SHORT) if is_short else None
        else:
            is_stopped = isinstance(event, Cancelled) and event.reason != "draining" and not is_cut
            failed = None if is_stopped else failure(event)
        if failed:
            yield said("RUN_ERROR", message=failed.text, code=failed.code, **usage(event, self._start))
            return
        yield from self._leave()
        yield from self._end_calls()
        yield from self._steps.end()
        ids = {"threadId": self._given.thread, "runId": self._given.run}
        told = outcome(event, self._run, self._interrupts, self._calls.values())
        yield said("RUN_FINISHED", **ids, **told, **usage(event, self._start))


def tell(failed: Fault) -> Response:
    """Answer what was not begun. The client makes an Error of it, and shows the body in that."""
    body = {"type": "RUN_ERROR", "message": failed.text, "code": failed.code}
    return refusal(failed, body | ({"field": failed.field} if failed.field else {}))


WIRE = Wire(decode, tell)
