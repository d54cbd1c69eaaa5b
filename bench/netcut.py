"""A replica whose network is cut: `python -m bench.netcut [--seconds 10 70]`, from the root of the project, as root.

    the machine's own network: Redis, two replicas, their viewers
        veth pair, whose link is taken down for so long, and up again
    a network namespace: a replica, whose viewers are in there with it

What each viewer saw is said, and the exit code is 1 where anything was lost, or came twice, or ended otherwise than the
README has it. The tests do the same by a relay that passes on nothing (tests/test_replication_faults.py), which takes
no right; here it is the kernel that drops what is sent. Without the right to make a namespace it says so, and ends with
2. Linux only.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tests.conftest import Service, eventually
from tests.followers import Follower, check, paced, posted
from tests.redis_server import Redis
from tests.replicas import reach, starting_replicas
from tests.resource import create, status_of, stop

CLONE_NEWNET = 0x40000000
HERE, THERE = "10.199.77.1", "10.199.77.2"
ENVIRON = {"SIDESTREAM_MODEL": "scripted/hello", "SIDESTREAM_RETRY_MS": "300", "SIDESTREAM_LINGER": "300"}
KEY = {"Idempotency-Key": "a"}
COUNTS = paced(50_000, 0.04)
# By then a run is given up by others, and so are those who follow others' and cannot go elsewhere, seconds.
LOST, GIVEN_UP = 8.0, 65.0
KEPT = 60.0  # `keep`


class NotAllowed(Exception):
    """This machine lets us make no network namespace."""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotAllowed(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Namespace:
    """A network namespace that a pair of interfaces leads to. Use it in a `with`."""

    def __init__(self) -> None:
        self._name = f"sidestream-{os.getpid()}"
        self._link = f"ss{os.getpid()}"
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> "Namespace":
        try:
            ip("netns", "add", self._name)
        except FileNotFoundError:
            raise NotAllowed("there is no `ip` (iproute2)") from None
        try:
            ip("link", "add", self._link, "type", "veth", "peer", "name", "out", "netns", self._name)
            ip("addr", "add", f"{HERE}/30", "dev", self._link)
            ip("link", "set", self._link, "up")
            ip("-n", self._name, "addr", "add", f"{THERE}/30", "dev", "out")
            for device in ("out", "lo"):
                ip("-n", self._name, "link", "set", device, "up")
        except NotAllowed:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        ip("netns", "del", self._name)  # and what leads there

    def link(self, state: str) -> float:
        ip("link", "set", self._link, state)
        return time.monotonic()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Do in there what this thread does, what it starts with it: threads and processes stay."""
        with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{self._name}") as there:
            self._enter(there.fileno())
            try:
                yield
            finally:
                self._enter(before.fileno())

    def _enter(self, fd: int) -> None:
        if self._libc.setns(fd, CLONE_NEWNET):
            raise NotAllowed(f"setns: {os.strerror(ctypes.get_errno())}")


def cut(seconds: float, say: Callable[[str], None]) -> None:
    """Take the link down for so long. Raises AssertionError where a viewer did not get what it should have."""
    with ExitStack() as stack:
        enter = stack.enter_context
        space = enter(Namespace())
        redis = enter(Redis("--bind", "127.0.0.1", HERE, "--protected-mode", "no"))
        start = enter(starting_replicas())
        a, c = start(redis=redis, **ENVIRON).services
        with space.inside():
            url = f"redis://{HERE}:{redis.port}"
            (alone,) = start(number=1, redis=redis, **ENVIRON, SIDESTREAM_REDIS_URL=url).services
            its = create(alone.port, **COUNTS)
        others = create(a.port, KEY, **COUNTS)

        def follow(run: dict[str, str], *services: Service) -> Follower:
            return enter(Follower([service.port for service in services], run["events_url"]))

        there, others_owner, elsewhere = follow(its, a), follow(others, a), follow(others, c)
        with space.inside():
            owner, comes_back = follow(its, alone), follow(others, alone)
            cannot_go = enter(posted(alone.port, KEY, **COUNTS))
        for viewer in (owner, there, others_owner, elsewhere, comes_back, cannot_go):
            viewer.has(20)

        down = space.link("down")
        time.sleep(seconds)
        with space.inside():
            told = reach(alone)
        say(f"what it says of Redis then             {told['redis']}, {told['why'] or 'no fault yet'}")
        lost = bool(there.endings)
        up = space.link("up")
        with space.inside():
            eventually(lambda: reach(alone)["redis"] == "up")
            say(f"it has found Redis again after         {time.monotonic() - up:6.2f} s")
            mark = len(comes_back.said)
            comes_back.has(20)
            say(f"who follows another's run there goes on{comes_back.said[mark].at - up:6.2f} s after")
        state = status_of(a.port, its["status_url"])["state"]
        stop(a.port, others["status_url"])
        with space.inside():
            stop(alone.port, its["status_url"])

        say(f"   and was told `draining`             {'yes' if comes_back.drained else 'no'}")
        if lost:
            say(f"its own runs are lost elsewhere after  {there.endings[0].at - down:6.2f} s")
        if (gave_up := cannot_go.rest().endings[0]).event.name == "error":
            say(f"who came by POST is given up after     {gave_up.at - down:6.2f} s")
        pauses = max(viewer.longest_pause for viewer in (owner, others_owner, elsewhere))
        say(f"longest pause of who is with an owner  {pauses:6.2f} s")
        assert lost == (seconds > LOST), "that a run is lost is told too early, or too late"
        assert (gave_up.event.name == "error") == (seconds > GIVEN_UP)
        if seconds < KEPT:  # else that it was lost is forgotten, and it is there again
            assert state == ("error" if lost else "running"), state
        check(there.rest(), "error" if lost else "cancelled")
        check(cannot_go, gave_up.event.name)
        for viewer in (owner, others_owner, elsewhere, comes_back):
            check(viewer.rest(), "cancelled")
        assert comes_back.text == others_owner.text == elsewhere.text, "something is lacking"
        assert pauses < 1, "they were to notice nothing"
        assert "Traceback" not in a.log + c.log + alone.log


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 10.0, 70.0], help="how long the link is down")
    for seconds in parser.parse_args().seconds:
        print(f"The link is down for {seconds:g} s", flush=True)
        try:
            cut(seconds, lambda line: print(f"  {line}", flush=True))
        except NotAllowed as exc:
            print(f"This takes the right to make network namespaces: {exc}", file=sys.stderr)
            return 2
        except AssertionError as exc:
            print(f"  WRONG: {exc!r}", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
