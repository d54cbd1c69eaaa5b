"""The command `sidestream`: uvicorn with this service, and what it says of itself when it starts."""

import argparse
import asyncio
import os
import sys
import threading
from typing import Any

import uvicorn

from service import app_of, create_service
from streaming.errors import SettingsError


def main() -> None:
    parser = argparse.ArgumentParser(prog="sidestream", description="Stream LLM answers as named server-sent events.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (default: %(default)s)")
    parser.add_argument("--reload", action="store_true", help="restart when the code changes")
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings (SIDESTREAM_CONFIG)")
    options = parser.parse_args()
    sys.path.insert(0, os.getcwd())  # where an operator's own providers are, as `python -m` has it
    if options.config:
        os.environ["SIDESTREAM_CONFIG"] = options.config
    try:
        service = create_service(os.environ)
    except SettingsError as exc:
        sys.exit(str(exc))
    print(f"Sidestream   http://{options.host}:{options.port}/")
    if options.workers > 1:
        print("workers      each has runs of its own: a client that comes back may meet one that does not know its run")
    print(f"providers    {', '.join(service.providers.names)}")
    if service.providers.runnables:
        print(f"graphs       {', '.join(service.providers.runnables)}")
    print(f"default      {service.providers.default}", flush=True)
    target: Any = app_of(service)
    if options.workers > 1 or options.reload:  # each process makes its own
        asyncio.run(service.providers.close())
        target = "service:app"
    uvicorn.run(target, host=options.host, port=options.port, workers=options.workers, reload=options.reload)
    if any(not thread.name.startswith(("MainThread", "providers", "runnables")) for thread in threading.enumerate()):
        os._exit(0)  # a node that sleeps in a thread of LangGraph's own would hold up the end of the process


if __name__ == "__main__":
    main()
