"""A graph's nodes as AG-UI's steps, by the paths of their nodes: `node`, and in a subgraph `subgraph/node`.

A step begins with the first that is told of its node, and those around it with it; it ends with the node's `updates`,
and those within it end, too. A node that says nothing begins and ends at once. Where `tasks` are told, these begin and
end steps instead. A node that runs several times at once is one step: by `tasks` until the last has ended, else until
the first has, and again from what another says. All that are open end with the run.
"""

from collections.abc import Iterator
from typing import Any

from msgspec import UNSET, UnsetType

from streaming.events import GraphEvent, Tasks, Updates

from .chat import json_line

Node = str | UnsetType
Namespace = tuple[str, ...] | UnsetType


def said(kind: str, **fields: Any) -> bytes:
    """Encode an event; a field that is None is none."""
    told = {"type": kind} | {name: value for name, value in fields.items() if value is not None}
    return b"data: %b\n\n" % json_line(told)


class Steps:
    """The steps that are open."""

    def __init__(self) -> None:
        self._open: dict[str, set[str]] = {}  # with the tasks that are theirs
        self._by_tasks = False

    def begin(self, step: str) -> Iterator[bytes]:
        """Begin a step, and those around it, unless they are open."""
        names = step.split("/") if step else []
        for depth in range(1, len(names) + 1):
            if (name := "/".join(names[:depth])) not in self._open:
                self._open[name] = set()
                yield said("STEP_STARTED", stepName=name)

    def end(self, step: str = "") -> Iterator[bytes]:
        """End a step and all within it, or all there are; the last begun first."""
        for name in reversed([name for name in self._open if not step or is_in(name, step)]):
            del self._open[name]
            yield said("STEP_FINISHED", stepName=name)

    def begun_by(self, event: GraphEvent) -> Iterator[bytes]:
        """Begin what an event says has begun, or has been."""
        if task := _task(event):
            self._by_tasks = True
            if "input" in task:
                step = name_of(task["name"], event.ns)
                yield from self.begin(step)
                self._open[step].add(str(task.get("id")))
        for node in self._nodes(event):
            yield from self.begin(name_of(node, event.ns))

    def ended_by(self, event: GraphEvent) -> list[str]:
        """Return the steps that have ended with an event."""
        task = _task(event)
        if task and "input" not in task:
            step = name_of(task["name"], event.ns)
            tasks = self._open.get(step, set())
            tasks.discard(str(task.get("id")))
            return [] if tasks else [step]
        return [name_of(node, event.ns) for node in self._nodes(event)]

    def _nodes(self, event: GraphEvent) -> list[str]:
        """Return the nodes that have ended with `updates`: text is a chain's output, `__metadata__` is no node."""
        if self._by_tasks or not isinstance(event, Updates) or not isinstance(event.data, dict):
            return []
        return [n for n, change in event.data.items() if not n.startswith("__") and not isinstance(change, str)]


def _task(event: GraphEvent) -> dict[str, Any]:
    """Return what `tasks` tell of a node, if it is named."""
    is_task = isinstance(event, Tasks) and isinstance(event.data, dict) and isinstance(event.data.get("name"), str)
    return event.data if is_task else {}


def name_of(node: Node, ns: Namespace) -> str:
    """Return the name of a node's step; "" of none. A part of the namespace is `<node>:<task id>`."""
    if node is UNSET:
        return ""
    path = [part.partition(":")[0] for part in ns] if ns is not UNSET else []
    return "/".join(part.replace("/", "_") for part in (*path, node))


def is_in(step: str, outer: str) -> bool:
    return step == outer or step.startswith(f"{outer}/")
