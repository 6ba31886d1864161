"""Masters whose workers end as soon as they are started: from forks, execs and ends to a restart storm. Pure.

Workers that are replaced on purpose are no storm: after so many requests or tasks, by a reload, by the autoscaler, or
because somebody asked them to end. Nor is a burst of failures that is over at once.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from stucktrace.incidents import Start

WINDOW_S = 60.0
SHORT_S = 10.0
"""A worker that lived longer got to work."""
AT_LEAST = 5
GENERATIONS = 2
"""Each of the master's workers has failed so many times on average."""
SUSTAINED_S = 5.0
"""Between the first and the last of these ends."""
FRESH_S = 15.0
CALM_S = 60.0
"""Without another such end the storm is over."""
KEPT = 256
SHOWN = 20
RECYCLED = 0x9B
"""With this status a child of billiard's pool ends that has served its number of tasks, or has grown too large."""
_ASKED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})


@dataclass
class _Child:
    pid: int
    began: float
    ended: float | None = None
    status: int | None = None


class Storms:
    """What is remembered of each master's children. Times are CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._children: dict[int, deque[_Child]] = {}
        self._of: dict[int, int] = {}
        """Living child -> its master."""

    def forked(self, master: int, pid: int, at: float) -> None:
        """A master's new child, which may be a worker."""
        self._children.setdefault(master, deque(maxlen=KEPT)).append(_Child(pid, at))
        self._of[pid] = master

    def executed(self, pid: int) -> None:
        """It runs another program: it is no worker."""
        children = self._children.get(self._of.pop(pid, 0))
        child = _living(children, pid)
        if children is not None and child is not None:
            children.remove(child)

    def ended(self, pid: int, at: float, status: int | None) -> int | None:
        """A process has ended. The master whose child it was."""
        master = self._of.pop(pid, None)
        child = _living(self._children.get(master or 0), pid)
        if child is not None:
            child.ended, child.status = at, status
        return master

    def forget(self, master: int) -> None:
        """The master has ended."""
        for child in self._children.pop(master, ()):
            self._of.pop(child.pid, None)

    def masters(self) -> list[int]:
        return list(self._children)

    def recycled(self, master: int, now: float) -> bool:
        """It replaces children of billiard's pool quickly: whether on purpose depends on why."""
        return _storm(self._children.get(master, ()), 1, now, lambda status: status == RECYCLED << 8)

    def storm(
        self, master: int, workers: int, now: float, *, recycling_counts: bool, realtime: Callable[[float], float]
    ) -> tuple[Start, ...] | None:
        """The latest starts of a master with so many workers, when they are a storm."""
        children = self._children.get(master, ())
        if not _storm(children, workers, now, lambda status: failed(status, recycling_counts)):
            return None
        latest = list(children)[-SHOWN:]
        return tuple(
            Start(
                child.pid,
                realtime(child.began),
                child.ended - child.began if child.ended is not None else None,
                child.status,
            )
            for child in latest
        )

    def calm(self, master: int, now: float) -> bool:
        """No worker has ended early for a while."""
        ends = [c.ended for c in self._children.get(master, ()) if c.ended is not None and c.ended - c.began < SHORT_S]
        return not ends or now - max(ends) > CALM_S


def failed(status: int | None, recycling_counts: bool) -> bool:
    """Whether a worker with this status did not end on purpose. What is not known counts as purpose."""
    if status is None or status & 0x7F in _ASKED:
        return False
    return recycling_counts if status == RECYCLED << 8 else status != 0


def _storm(children: Collection[_Child], workers: int, now: float, counts: Callable[[int | None], bool]) -> bool:
    ends = sorted(
        child.ended
        for child in children
        if child.ended is not None
        and child.ended - child.began < SHORT_S
        and now - child.ended < WINDOW_S
        and counts(child.status)
    )
    if len(ends) < max(AT_LEAST, GENERATIONS * workers):
        return False
    return ends[-1] - ends[0] >= SUSTAINED_S and now - ends[-1] < FRESH_S


def _living(children: deque[_Child] | None, pid: int) -> _Child | None:
    return next((child for child in reversed(children or ()) if child.pid == pid and child.ended is None), None)
