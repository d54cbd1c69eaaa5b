"""The service as it is, with two routes more, for what nothing else tells: what it holds, and when a run was over."""

import asyncio
import ctypes
import gc
import os
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service import app_of, create_service
from streaming.run import Run

# What there is one of, or more, for each run, viewer or attempt.
OURS = {"Run", "EventLog", "Cursor", "Viewer", "Failover", "Candidate", "Continuation", "Connection", "_Telling"}

REMEMBERED = 60.0

_service = create_service(os.environ)


# When runs have ended, by their ids; as long as somebody may ask.
_ended: dict[str, float] = {}
_on_end = _service.runs._on_end


def _note(run: Run) -> None:
    now = time.monotonic()
    while _ended and (oldest := next(iter(_ended))) and _ended[oldest] < now - REMEMBERED:
        del _ended[oldest]
    _ended[run.id] = now
    _on_end(run)


_service.runs._on_end = _note


async def _since(request: Request) -> Response:
    """Tell for how many seconds a run is over; null where that is not known."""
    ended = _ended.get(request.path_params["run_id"])
    return JSONResponse(ended and time.monotonic() - ended)


async def _held(request: Request) -> Response:
    """Count tasks, open files and runs; with `?collect`, after the garbage is collected, what is left of ours, too."""
    held: dict[str, Any] = {
        "warm": gc.get_freeze_count() > 0,  # the last step of its start
        "tasks": len(asyncio.all_tasks()),
        "files": len(os.listdir("/proc/self/fd")),
        "active": len(_service.runs),
        "kept": len(_service.runs._runs),
        "keys": len(_service.runs._keys),
        "probes": sum(breaker._probe is not None for breaker in _service.breakers._known.values()),
    }
    if "collect" in request.query_params:
        held["garbage"] = gc.collect()
        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)  # what is free is no leak, but would be counted
        objects = gc.get_objects()
        held["objects"] = len(objects)
        held["left"] = dict(Counter(name for one in objects if (name := type(one).__name__) in OURS))
    return JSONResponse(held)


app = app_of(_service)
app.router.routes[:0] = [Route("/soak", _held), Route("/soak/{run_id}", _since)]
