"""What lies below a wire: the connection of a viewer that takes nothing.

Returning from the app would not do: the server would wait, for ever, to flush what the viewer does not take. ASGI has
no word for hanging up, so this reaches for the server's transport, where there is one (uvicorn's protocols).
"""

import asyncio
import logging
from collections.abc import Callable

from starlette.types import Receive

from streaming.errors import Fault, RequestError

# Where in a scope `send` is as it was outside of our middleware: the first message of a stream concerns that, and each
# later one saves its three wrappers.
SERVER_SEND = "sidestream.send"
GONE = (RuntimeError, OSError)  # what it raises where the connection is gone; uvloop's word for that is RuntimeError
OnRefusal = Callable[[Fault], object]  # counts them
logger = logging.getLogger("sidestream")


async def let_go(receive: Receive, run_id: str, seconds: float, on_refusal: OnRefusal) -> None:
    """Hang up on the viewer whose `receive` this is, dropping what is buffered for it; it may come back and resume."""
    on_refusal(stalled())
    logger.warning("run %s: a viewer took nothing for %g s and was let go", run_id, seconds)
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
        await asyncio.sleep(0)  # the server hears of it a turn later, and would call our return before that an error


def stalled() -> Fault:
    """What is counted of who takes nothing; nobody is told it, since nothing more is taken."""
    return RequestError("request_timeout", "Nothing was taken of what is sent.", limit="send_timeout")
