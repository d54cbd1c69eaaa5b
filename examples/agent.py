"""A LangChain agent with two tools, on the embedded model: no key, no network. Serve it with

    SIDESTREAM_GRAPHS=agent=examples.agent:graph

and say: What is 12 * 7? How much is 1234 + 4321? What is 144 divided by 12? What is the capital of France?
Send a postcard to Anna: see you on Sunday. Send Lisa a postcard: the food here is great. Before it sends one it asks a
person; "yes" is a yes. With a model of your own, give `create_agent` that, and leave out EXAMPLES and Embedded.
"""

import ast
import asyncio
import atexit
import operator
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import interrupt
from pydantic import SecretStr

from providers.local import ALIAS, Address, ModelServer
from streaming.request import ProviderSettings

Request = ModelRequest[Any]
Response = ModelResponse[Any]
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
SYSTEM = (
    "You are a helpful assistant with tools. Use calculate for numbers. Use send_postcard for postcards. "
    "Answer everything else yourself."
)

# llama.cpp's own parameters. To repeat is no fault here: arguments are the question's words, answers are the tool's.
ANYTHING = {"dry_multiplier": 0}
WORDS = {**ANYTHING, "logit_bias": [["<", False]]}  # what a call begins with


@tool
def calculate(expression: str) -> str:
    """Work out an arithmetic expression."""
    try:
        return f"The answer is {_value(ast.parse(expression, mode='eval').body):.12g}."
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return "That cannot be calculated."


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub()):
            return -_value(node.operand)
        case ast.BinOp() if apply := OPERATORS.get(type(node.op)):
            return float(apply(_value(node.left), _value(node.right)))
    raise ValueError("no arithmetic")


@tool
def send_postcard(to: str, text: str) -> str:
    """Send a postcard."""
    answer = interrupt({"question": f"Send this postcard to {to}?", "to": to, "text": text})
    return f"The postcard to {to} is {'sent' if answer in (True, 'yes') else 'not sent'}."  # here a real one would go


def _turn(question: str, answer: str, tool: str = "", **args: str) -> list[AnyMessage]:
    if not tool:
        return [HumanMessage(question), AIMessage(answer)]
    call = AIMessage("", tool_calls=[{"name": tool, "args": args, "id": question}])
    return [HumanMessage(question), call, ToolMessage(answer, tool_call_id=question), AIMessage(answer)]


CARD = "send_postcard"
BROTHER = {"to": "my brother", "text": "the sea is lovely"}
MARY = {"to": "Mary", "text": "I miss you"}
# So small a model does what it has seen done; what it is told hardly counts. The order was found by trying.
EXAMPLES = [
    *_turn("What is the capital of Italy?", "The capital of Italy is Rome."),
    *_turn("How much is 13 plus 29?", "The answer is 42.", "calculate", expression="13 + 29"),
    *_turn("Send a postcard to my brother: the sea is lovely.", "The postcard to my brother is sent.", CARD, **BROTHER),
    *_turn("Who painted the Mona Lisa?", "Leonardo da Vinci painted the Mona Lisa."),
    *_turn("What is 96 divided by 8?", "The answer is 12.", "calculate", expression="96 / 8"),
    *_turn("What do bees make?", "Bees make honey."),
    *_turn("Good evening!", "Good evening! How can I help you?"),
    *_turn("What is 48 * 27?", "The answer is 1296.", "calculate", expression="48 * 27"),
    *_turn("Send Mary a postcard: I miss you.", "The postcard to Mary is sent.", CARD, **MARY),
]


@cache
def _chat(address: Address) -> ChatOpenAI:
    return ChatOpenAI(
        model=ALIAS,
        base_url=address.base_url,
        api_key=SecretStr(address.api_key),
        temperature=0,
        max_completion_tokens=100,
        stream_usage=True,
        default_headers={"Connection": "close"},  # llama.cpp closes it behind a stream anyway
        extra_body=ANYTHING,
    )


class Embedded(AgentMiddleware[Any, Any, Any]):
    """Has the embedded model's server started by the first call, in a thread, and shows the model the examples."""

    def __init__(self) -> None:
        super().__init__()
        self._server = ModelServer(ProviderSettings())
        atexit.register(self._server.close)

    def _ready(self, request: Request) -> Request:
        ready = request.override(model=_chat(self._server.address()), messages=[*EXAMPLES, *request.messages])
        if isinstance(request.messages[-1], ToolMessage):
            return ready.override(tool_choice="none", model_settings={"extra_body": WORDS})  # one call for one question
        return ready

    def wrap_model_call(self, request: Request, handler: Callable[[Request], Response]) -> Response:
        return handler(self._ready(request))

    async def awrap_model_call(self, request: Request, handler: Callable[[Request], Awaitable[Response]]) -> Response:
        return await handler(await asyncio.to_thread(self._ready, request))


graph = create_agent(
    _chat(Address("http://127.0.0.1/v1", "none yet")),  # Embedded puts the one with the server's address in its place
    [calculate, send_postcard],
    system_prompt=SYSTEM,
    middleware=[Embedded()],
    checkpointer=InMemorySaver(),
).with_config(recursion_limit=10)
