"""What those want who follow a run elsewhere than where it is made, and how its owner hears of it.

A replica tells an owner all that its viewers want of a run (that somebody follows it, or nobody; for how long it
lingers; that it stops), anew whenever that changes, until it has got through. So what is told twice, or late, does no
harm. To its owner the viewers of another replica are one viewer, as long as that replica lives.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress

import msgspec
from msgspec import Struct

from .errors import Fault
from .followed import CancelReason
from .mirror import Mirror
from .mirrors import inbox, told
from .redis_link import Command, Down, Link, Refused
from .run import Run


class Wish(Struct, frozen=True):
    """All that the viewers of `replica` want of a run."""

    run: str
    replica: str
    viewing: bool
    linger: float
    asked: float = 0.0  # when it was last asked for that, by its clock: 0 where it never was
    stop: CancelReason | None = None


class Wishes:
    """Those of this replica's viewers, for others to `hear`, and those of others for ours. `find` finds a run of ours.

    `tell` is one turn of what goes on for ever.
    """

    def __init__(self, link: Link, replica: str, find: Callable[[str], Run | None]) -> None:
        self._link = link
        self._replica = replica
        self._find = find
        self._views: dict[str, dict[str, ExitStack]] = {}  # by run and by the replica whose viewers they are
        self._asked: dict[str, dict[str, float]] = {}  # likewise, when that was last asked how long it may linger
        self._told: dict[Mirror, Wish] = {}
        self._changed: dict[Mirror, None] = {}
        self._has_changed = asyncio.Event()

    @property
    def followers(self) -> set[str]:
        """The replicas where a run of ours is followed."""
        return {replica for views in self._views.values() for replica in views}

    def changed(self, mirror: Mirror) -> None:
        """Take note that something else may be wanted of a run, or that it may not have been told."""
        self._changed[mirror] = None
        self._has_changed.set()

    async def tell(self) -> None:
        """Tell owners what has changed of what is wanted of their runs."""
        await self._has_changed.wait()
        self._has_changed.clear()
        changed, self._changed = self._changed, {}
        commands: list[Command] = []
        wishes: list[tuple[Mirror, Wish]] = []
        for mirror in changed:
            wish = Wish(mirror.id, self._replica, mirror.viewers > 0, mirror.limits.linger, mirror.asked, mirror.stop)
            before = self._told.get(mirror)
            if wish != before and not (mirror.log.closed and before is None):
                commands += told(inbox(mirror.replica), msgspec.json.encode(wish))
                wishes.append((mirror, wish))
        if not commands:
            return
        with suppress(Down):
            replies = await self._link.call(*commands)
            for (mirror, wish), reply in zip(wishes, replies[::2], strict=True):
                if not isinstance(reply, Refused):
                    self._told[mirror] = wish

    def tell_again(self, mirrors: Iterable[Mirror], *, all_of_it: bool = False) -> None:
        """Tell what did not get through of what is wanted of these; or all of it.

        Of others it is to get through that they are followed no more.
        """
        kept, known = {*mirrors}, {} if all_of_it else self._told
        self._told = {mirror: wish for mirror, wish in known.items() if wish.viewing or mirror in kept}
        for mirror in kept | {*self._told}:
            self.changed(mirror)

    def hear(self, text: bytes) -> None:
        """Take note of what another replica wants of a run of ours."""
        try:
            wish = msgspec.json.decode(text, type=Wish) if text else None
        except msgspec.DecodeError:
            return
        run = self._find(wish.run) if wish else None
        if wish is None or run is None:
            return
        views = self._views.setdefault(run.id, {})
        if wish.viewing and wish.replica not in views:
            with suppress(Fault):  # it has as many viewers as it may have; one more or less keeps it no longer
                views[wish.replica] = stack = ExitStack()
                stack.enter_context(run.viewing())
        asked = self._asked.setdefault(run.id, {})
        if wish.asked and wish.asked != asked.get(wish.replica):
            asked[wish.replica] = wish.asked
            run.linger_for(wish.linger)
        if wish.stop:
            run.end(wish.stop)
        if not wish.viewing and (left := views.pop(wish.replica, None)):
            left.close()

    def drop(self, replica: str) -> None:
        """Do without the viewers of a replica that has died."""
        for views in self._views.values():
            if left := views.pop(replica, None):
                left.close()

    def forget(self, run_id: str) -> None:
        """Do without all that was wanted of a run of ours."""
        self._asked.pop(run_id, None)
        for view in self._views.pop(run_id, {}).values():
            view.close()
