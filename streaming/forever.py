"""Work that goes on as long as the service does, turn by turn: what goes wrong in one turn ends none of the others."""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import NoReturn

PAUSE = 0.5  # after a turn that went wrong, seconds
logger = logging.getLogger("sidestream")


async def forever(turn: Callable[[], Awaitable[object]]) -> NoReturn:
    """Take turns until it is cancelled. An exception is logged by its type and place: its words may hold anything."""
    while True:
        try:
            await turn()
        except Exception as exc:
            where = "".join(traceback.format_tb(exc.__traceback__))
            logger.error("internal error: %s\n%s", type(exc).__name__, where)
            await asyncio.sleep(PAUSE)
