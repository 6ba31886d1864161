"""Which masters are in a restart storm: what they start and what ends, and why a pool replaces its children.

Children of a Celery pool end with one status whether they have served their number of tasks, which somebody asked for,
or have grown too large. The options tell which it is, else the pool's own settings in a child's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from stucktrace.collectors import command_line, pool_limits, procfs
from stucktrace.facts import MASTERS, WORKERS
from stucktrace.incidents import RestartStorm
from stucktrace.node.remembered import Remembered
from stucktrace.node.storms import WINDOW_S, Storms
from stucktrace.node.tracker import Tracked

FEW_TASKS = 10.0
"""A child that is to serve no more than so many tasks is short-lived on purpose."""


class MasterStorms:
    """Times are CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._storms = Storms()
        self._limits: dict[Tracked, str] = {}
        """A main process that replaces its children quickly -> the size that they may have; "": it is not for that."""

    def forked(self, master: Tracked | None, pid: int, at: float) -> None:
        if master is not None and master.worker.kind in MASTERS:
            self._storms.forked(master.pid, pid, at)

    def executed(self, pid: int) -> None:
        self._storms.executed(pid)

    def ended(self, pid: int, at: float, status: int | None) -> None:
        self._storms.ended(pid, at, status)

    def child_ended(self, master: Tracked | None, child: Tracked, now: float, status: int | None) -> None:
        """Without the kernel's events: a watched worker has ended."""
        if master is not None and child.worker.kind in WORKERS:
            self.forked(master, child.pid, now - procfs.age_s(child.start_time))
            self.ended(child.pid, now, status)

    def master_ended(self, master: Tracked) -> None:
        self._storms.forget(master.pid)
        self._limits.pop(master, None)

    def calm(self, master: int, now: float) -> bool:
        return self._storms.calm(master, now)

    def found(
        self,
        now: float,
        processes: Mapping[int, Tracked],
        remembered: Remembered,
        realtime: Callable[[float], float],
    ) -> Iterator[tuple[Tracked, RestartStorm]]:
        for pid in self._storms.masters():
            master = processes.get(pid)
            if master is None:
                continue
            children = [child for child in processes.values() if child.ppid == pid and child.worker.kind in WORKERS]
            limit = ""
            if self._storms.recycled(pid, now):
                if master not in self._limits:
                    self._limits[master] = memory_limit(remembered.argv(master), [child.pid for child in children])
                limit = self._limits[master]
            workers = max(1, int(master.worker.concurrency or len(children)))
            starts = self._storms.storm(pid, workers, now, recycling_counts=bool(limit), realtime=realtime)
            if starts is not None:
                application = remembered.application(master)
                window_s = min(WINDOW_S, realtime(now) - starts[0].time)
                yield master, RestartStorm(master.worker.kind, starts, window_s, limit, application)


def memory_limit(argv: tuple[str, ...], children: list[int]) -> str:
    """The size at which Celery replaces a child, as far as that is what it does; "" where it counts tasks."""
    arguments = command_line.read(argv).arguments
    tasks = command_line.number(command_line.option(arguments, "--max-tasks-per-child"))
    if tasks is not None and tasks <= FEW_TASKS:
        return ""
    size = command_line.option(arguments, "--max-memory-per-child")
    if size is not None:
        return f"--max-memory-per-child={size}"
    for child in children[:8]:
        limits = pool_limits.read(child)
        if limits is not None:
            few = limits.tasks is not None and limits.tasks <= FEW_TASKS
            return "" if few or not limits.memory_kb else f"worker_max_memory_per_child={limits.memory_kb}"
    return ""
