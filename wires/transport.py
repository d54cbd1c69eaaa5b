"""What lies below a wire: the connection of a viewer that takes nothing.

Returning from the app would not do: the server would wait, for ever, to flush what the viewer does not take. ASGI has
no word for hanging up, so this reaches for the server's transport, where there is one (uvicorn's protocols).
"""

import asyncio
import logging

from starlette.types import Receive

# Where in a scope `send` is as it was outside of our middleware: the first message of a stream concerns that, and each
# later one saves its three wrappers.
SERVER_SEND = "sidestream.send"
GONE = (RuntimeError, OSError)  # what it raises where the connection is gone; uvloop's word for that is RuntimeError
logger = logging.getLogger("sidestream")


async def let_go(receive: Receive, run_id: str, seconds: float) -> None:
    """Hang up on the viewer whose `receive` this is, dropping what is buffered for it; it may come back and resume."""
    logger.warning("run %s: a viewer took nothing for %g s and was let go", run_id, seconds)
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
        await asyncio.sleep(0)  # the server hears of it a turn later, and would call our return before that an error
