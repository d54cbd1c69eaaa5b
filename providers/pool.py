"""Threads for code that blocks: a bounded pool of daemons, and the loop's executor that hands calls to it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

from streaming.errors import UpstreamError


class BrokenOff(UpstreamError):
    """What runs here ended by what is no mere failure: sys.exit(), a cancellation of its own."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("graph_failed", f"It broke off: {type(cause).__name__}.")
        self.why = type(cause).__name__


class Pool:
    """Bounded, of daemon threads: one that sleeps in somebody's code does not hold up the process's end."""

    def __init__(self, threads: int) -> None:
        self._most = threads
        self._started = 0
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._starting = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.put((future, partial(fn, *args, **kwargs)))
        with self._starting:
            if not self._idle.acquire(blocking=False) and self._started < self._most:
                self._started += 1
                threading.Thread(target=self._serve, name=f"runnables {self._started}", daemon=True).start()
        return future

    def _serve(self) -> None:
        while True:
            _fulfil(*self._calls.get())
            self._idle.release()


class Executor(ThreadPoolExecutor):
    """The loop's default, which must be one of these: what LangChain calls in a thread goes to `pool`, all else beside.

    Among that are the looking up of hosts and what an SDK does before each request: were they to wait behind nodes
    that sleep, no model could be called meanwhile.
    """

    def __init__(self, pool: Pool, beside: Pool) -> None:
        super().__init__(1)  # whose one thread is never started
        self._pools = pool, beside

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        called = fn.args[0] if isinstance(fn, partial) and fn.args else fn
        somebodys = getattr(called, "__module__", None) == "langchain_core.runnables.config"
        return self._pools[0 if somebodys else 1].submit(fn, *args, **kwargs)


def _fulfil(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as exc:  # as in any pool: whatever it is, it ends the call and not the thread
        future.set_exception(exc if isinstance(exc, Exception) else BrokenOff(exc))
