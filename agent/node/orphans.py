"""Workers whose master ended while they go on.

Only a master that was watched itself counts: a worker whose parent is the first process of its container from the
beginning, or that of a master that made itself a daemon, has lost nobody. gunicorn's workers notice by themselves when
they next look, so they get the time for that; what ends meanwhile is no orphan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from stucktrace.collectors import procfs
from stucktrace.collectors.usage import Sample
from stucktrace.errors import CannotInspect
from stucktrace.incidents import OrphanedWorker
from stucktrace.node.remembered import Remembered
from stucktrace.node.tracker import Tracked

GRACE_S = 10.0
MASTERS = {"gunicorn-master": ("gunicorn-worker",), "celery-main": ("celery-child", "celery-beat")}
MASTER_AT_LEAST_S = 5.0
"""A younger master may have been about to become a daemon."""
LOOK_WITHIN_S = 15.0


@dataclass
class _Left:
    master: int
    since: float
    told_from: float
    asked: float | None = None
    looked: bool = False
    told: bool = False


class Orphans:
    """Times are CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._left: dict[Tracked, _Left] = {}

    def ended(self, process: Tracked, processes: Mapping[int, Tracked], now: float) -> None:
        """A watched process has ended, `processes` are those that have not."""
        self._left.pop(process, None)
        age_s = procfs.age_s(process.start_time)
        if process.worker.kind not in MASTERS or age_s < MASTER_AT_LEAST_S:
            return
        for worker in processes.values():
            if worker.ppid == process.pid and worker.worker.kind in MASTERS[process.worker.kind]:
                self._left[worker] = _Left(process.pid, now, now + grace_s(worker))

    def unseen(self, now: float) -> set[int]:
        """Those that nobody has looked at since."""
        return {worker.pid for worker, left in self._left.items() if left.asked is not None and not left.looked}

    def examined(self, worker: Tracked) -> None:
        left = self._left.get(worker)
        if left is not None and left.asked is not None:
            left.looked = True

    def found(
        self,
        now: float,
        processes: Mapping[int, Tracked],
        sample: Callable[[Tracked], Sample | None],
        remembered: Remembered,
        realtime: Callable[[float], float],
    ) -> Iterator[tuple[Tracked, OrphanedWorker]]:
        """Those that still go on when they should not; a look at them is waited for a little."""
        for worker, left in list(self._left.items()):
            last = sample(worker)
            if processes.get(worker.pid) != worker:
                del self._left[worker]
            elif left.told or now < left.told_from or last is None or last.ending or last.ppid == left.master:
                continue
            elif left.asked is None:
                left.asked = now
            elif left.looked or now - left.asked > LOOK_WITHIN_S:
                left.told = True
                application = remembered.application(worker)
                incident = OrphanedWorker(
                    left.master, realtime(left.since), last.ppid, _command(last.ppid), application
                )
                yield worker, incident


def grace_s(worker: Tracked) -> float:
    """gunicorn's workers look at their parent at least every half timeout."""
    timeout_s = worker.worker.timeout_s or 0.0
    return GRACE_S + (timeout_s / 2 if worker.worker.kind == "gunicorn-worker" else 0.0)


def _command(pid: int) -> str:
    with suppress(CannotInspect):
        return procfs.read_stat(pid).command
    return ""
