"""The command `sidestream`: uvicorn with this service, and what it says of itself when it starts.

Its options stand for the settings of the same name, and so does `PORT` (of Cloud Run and its like) where there is no
SIDESTREAM_PORT. It ends with 0 when it is told to, by SIGTERM or Ctrl-C, also before it serves.
"""

import argparse
import asyncio
import ipaddress
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.loops.auto import auto_loop_factory
from uvicorn.supervisors import Multiprocess

from service import Service, app_of, create_service
from streaming.errors import SettingsError
from wires.access import Access
from wires.server import options as server_options

SIGNALS = (signal.SIGTERM, signal.SIGINT)
CALLED_OFF = {0, -signal.SIGTERM, -signal.SIGINT}  # how a worker ends well; by the signal where it had not begun


def main() -> None:
    for sign in SIGNALS:
        signal.signal(sign, _leave)  # until the server listens, and behind it
    options = _options()
    sys.path.insert(0, os.getcwd())  # where an operator's own providers are, as `python -m` has it
    service = _service(options)
    print("\n".join(said(service, options.workers)), flush=True)
    how = {"host": service.settings.host, "port": service.settings.port, **server_options(service.settings)}
    if options.workers > 1 or options.reload:  # each process makes an app of its own
        asyncio.run(service.providers.close())
    if options.reload:
        uvicorn.run("service:app", reload=True, **how)
    elif options.workers > 1:
        sys.exit(serve_with_workers(options.workers, how))
    else:
        uvicorn.run(app_of(service), **how)
    if any(not thread.name.startswith(("MainThread", "providers", "runnables")) for thread in threading.enumerate()):
        os._exit(0)  # a node that sleeps in a thread of LangGraph's own would hold up the end of the process


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sidestream", description="Stream LLM answers as named server-sent events.")
    parser.add_argument("--host", help="address to listen on (SIDESTREAM_HOST; default: 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on (SIDESTREAM_PORT, PORT; default: 8000)")
    parser.add_argument("--workers", type=_number, default=1, help="worker processes (default: %(default)s)")
    parser.add_argument("--reload", action="store_true", help="restart when the code changes")
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings (SIDESTREAM_CONFIG)")
    parser.add_argument("--version", action="store_true", help="say which this is, and end")
    options = parser.parse_args()
    if options.version:
        from wires.openapi import version  # here, since it takes a while

        print(f"Sidestream {version()}")
        sys.exit()
    return options


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("a number from 1 on")
    return int(text)


def _leave(sign: int, frame: FrameType | None) -> None:
    os._exit(0)


def _service(options: argparse.Namespace) -> Service:
    """Make the service of the environment and the options, which its workers find there too; or end, saying why not."""
    given = [("SIDESTREAM_CONFIG", "--config", options.config)]
    given += [("SIDESTREAM_HOST", "--host", options.host), ("SIDESTREAM_PORT", "--port", options.port)]
    if not os.environ.get("SIDESTREAM_PORT"):
        given.insert(0, ("SIDESTREAM_PORT", "PORT", os.environ.get("PORT")))
    named = {setting: name for setting, name, value in given if value}
    os.environ.update({setting: value for setting, _, value in given if value})
    try:
        return create_service(os.environ)
    except SettingsError as exc:
        problems = [problem.partition(":") for problem in exc.problems]
        sys.exit(str(SettingsError(*(named.get(setting, setting) + colon + why for setting, colon, why in problems))))


def said(service: Service, workers: int) -> Iterator[str]:
    """Yield what it says of itself, line by line."""
    host, port = service.settings.host, service.settings.port
    yield f"Sidestream   http://{f'[{host}]' if ':' in host else host}:{port}/"
    if workers > 1:
        yield from _of_workers(workers, shared=service.replication is not None)
    if service.replication:
        yield f"runs         shared with all who use the Redis at {service.replication.address}"
    yield f"providers    {', '.join(service.providers.names)}"
    if service.providers.runnables:
        yield f"graphs       {', '.join(service.providers.runnables)}"
    yield f"default      {service.providers.default_name}"
    yield f"access       {_who(service.access, host)}"


def _of_workers(number: int, *, shared: bool) -> Iterator[str]:
    if shared:
        yield f"workers      {number}, any of which serves any run"
    else:
        yield f"workers      {number}, each with its own runs. WARNING: a request lands on any of them, so this fails:"
        yield "             to come back to a stream; to follow, read or stop a run by its id or URL; Idempotency-Keys;"
        yield "             a chat's newest run. Set SIDESTREAM_REDIS_URL for them to share runs, or run one worker"


def _who(access: Access, host: str) -> str:
    """Tell who may use the service: the names of keys, never a key."""
    if not access.is_open:
        return "; ".join([f"keys of {', '.join(access.names)}"] * bool(access.names) + ["tokens"] * access.takes_tokens)
    if _is_loopback(host):
        return "whoever is on this machine; set SIDESTREAM_API_KEYS before others may reach it"
    return "WARNING: whoever reaches this address may use it, and spend your upstream keys; set SIDESTREAM_API_KEYS"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve_with_workers(number: int, how: dict[str, Any]) -> int:
    """Serve in several processes until a signal says to stop; return the exit code, 0 where all have ended well."""
    config = uvicorn.Config("service:app", workers=number, loop="command:worker_loop", **how)
    workers = Workers(config, [config.bind_socket()])
    workers.run()
    return 0 if {process.exitcode for process in workers.processes} <= CALLED_OFF else 1


class Workers(Multiprocess):
    """uvicorn's worker processes, who hear of a second signal too: uvicorn waits for them, and tells them nothing.

    The first is left to uvicorn, which acts on it in its loop and sends the workers SIGTERM. They hear of a further one
    by SIGINT: of two signals of a kind that come close together a process sees one.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._heard = 0
        self._told = False
        for sign in SIGNALS:
            signal.signal(sign, self._hear)

    def _hear(self, sign: int, frame: FrameType | None) -> None:
        self._heard += 1
        if self._heard == 1:
            self.signal_queue.append(sign)
        elif self._told:
            self._hurry()

    def terminate_all(self) -> None:
        super().terminate_all()
        self._told = True
        if self._heard > 1:
            self._hurry()

    def _hurry(self) -> None:
        for process in self.processes:
            if process.exitcode is None and process.pid:
                with suppress(ProcessLookupError):  # it ends just now
                    os.kill(process.pid, signal.SIGINT)


def worker_loop() -> asyncio.AbstractEventLoop:
    """Make the loop of a worker process, and the process ready for signals: this is what uvicorn calls first in it.

    It leaves its parent's group: a terminal sends Ctrl-C to all in that, and what the parent passes on would then be
    the second signal, which ends runs at once. And it ends with its parent, whatever that dies of.
    """
    for sign in SIGNALS:
        signal.signal(sign, _leave)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return auto_loop_factory()()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
