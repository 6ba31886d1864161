"""Which processes the agent watches, and how each of them ends.

Every second /proc is listed and what is new is classified by its command line; what was no worker is asked again now
and then, for a shell may become one by exec. Each watched process is held by a pidfd: it tells of the end at once,
keeps the pid from being mistaken for its successor, and since Linux 6.15 says how it ended.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from stucktrace.alerts import EXITED, KILLED
from stucktrace.collectors import candidates, cgroups, containers, heartbeat, procfs, workers
from stucktrace.collectors.process import read_process
from stucktrace.errors import StucktraceError
from stucktrace.facts import ROLES, WORKERS, Container, WorkerFact
from stucktrace.node.figures import Durations
from stucktrace.node.thresholds import Thresholds, thresholds

SCAN_EVERY_S = 1.0
ASK_AGAIN_S = 30.0
"""Within this time every process that is not watched is classified anew."""
YOUNG_S = 5.0
"""A process this young may not have begun its own program yet: it is asked at every scan."""
# include/uapi/linux/pidfd.h: struct pidfd_info is 64 bytes at first, exit_code the last of them.
_PIDFD_GET_INFO = 0xC000FF0B | 64 << 16
_PIDFD_INFO_EXIT = 1 << 3
_REAPED_WITHIN_S = 2.0


@dataclass(frozen=True)
class Tracked:
    """A watched process. The same one as long as pid and start time are: other settings change the rest."""

    pid: int
    ppid: int = field(compare=False)
    start_time: int
    worker: WorkerFact = field(compare=False)
    thresholds: Thresholds = field(compare=False)
    container: Container | None = field(compare=False)
    pidfd: int = field(compare=False)

    @property
    def pod(self) -> str | None:
        """Its uid."""
        return (self.container.pod or None) if self.container else None


@dataclass(frozen=True)
class Ended:
    """A watched process that is gone."""

    process: Tracked
    how: str
    """KILLED or EXITED."""
    status: int | None = None
    """As wait(2) tells it; None: nobody could say."""


class Tracker:
    def __init__(self, match: re.Pattern[str] | None, stuck_after_s: float | None) -> None:
        self._match = match
        self._stuck_after_s = stuck_after_s
        self.processes: dict[int, Tracked] = {}
        self._others: dict[int, float] = {}
        """pid -> when it is classified again."""
        self._ends = select.epoll()
        self._ending: dict[int, float] = {}
        """pid of an ended process whose status is not there yet -> when it is waited for no longer."""
        self._limits: dict[tuple[int, str], WorkerFact] = {}
        """(parent, kind) -> what is common to all of a master's children."""

        self.took = Durations()
        """Scans so far."""
        self.replaced = 0
        """Workers that came after others of the same master had ended."""
        self._vacant: Counter[int] = Counter()
        """Master -> its children that ended and were not replaced yet."""

    def apply(self, match: re.Pattern[str] | None, stuck_after_s: float | None) -> None:
        """Other settings: everything is asked again at the next scan; what is watched stays watched."""
        self._match, self._stuck_after_s = match, stuck_after_s
        self._others.clear()
        for pid, process in self.processes.items():
            self.processes[pid] = replace(process, thresholds=thresholds(process.worker, stuck_after_s))

    def scan(self) -> None:
        """Lists /proc and takes in what is new."""
        began = now = time.monotonic()
        there = set(procfs.all_pids())
        self._others = {pid: again for pid, again in self._others.items() if pid in there}
        self._limits = {key: fact for key, fact in self._limits.items() if key[0] in there}
        for pid in sorted(there - self.processes.keys()):
            if self._others.get(pid, 0.0) <= now:
                self.consider(pid)
        self._vacant = Counter({pid: count for pid, count in self._vacant.items() if count and pid in there})
        self.took = self.took.plus(time.monotonic() - began)

    def consider(self, pid: int) -> None:
        """Takes a process in if it is to be watched."""
        if pid in self.processes or pid in (0, os.getpid()):
            return
        found = None
        with suppress(StucktraceError):
            found = self._classify(pid)
        if found is not None:
            self.processes[pid] = found
            self._others.pop(pid, None)
            if self._vacant[found.ppid] > 0:
                self._vacant[found.ppid] -= 1
                self.replaced += 1
        else:
            self._others[pid] = time.monotonic() + self._ask_again_s(pid)

    def _ask_again_s(self, pid: int) -> float:
        try:
            young = procfs.read_stat(pid).age_s < YOUNG_S
        except StucktraceError:
            young = True
        # Spread over the scans, so that no single one reads all command lines.
        return 0.0 if young else ASK_AGAIN_S / 2 + pid % int(ASK_AGAIN_S / 2)

    def _classify(self, pid: int) -> Tracked | None:
        seen = workers.glance(pid)
        if seen is None or (seen.kind not in ROLES and not self._matches(pid, seen.argv)):
            return None
        stat, kind = seen.stat, seen.kind
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            # It has ended meanwhile, or there are no descriptors left.
            return None
        try:
            worker = self._worker(pid, stat.ppid, kind)
            container = containers.read_container(pid, cgroups.read_paths(pid))
            if procfs.read_stat(pid).start_time != stat.start_time:
                raise ProcessLookupError
            self._ends.register(pidfd, select.EPOLLIN)
        except (OSError, StucktraceError):
            os.close(pidfd)
            return None
        found = thresholds(worker, self._stuck_after_s)
        return Tracked(pid, stat.ppid, stat.start_time, worker, found, container, pidfd)

    def _matches(self, pid: int, argv: tuple[str, ...]) -> bool:
        return self._match is not None and self._match.search(" ".join(argv)) is not None and candidates.is_python(pid)

    def _worker(self, pid: int, ppid: int, kind: str) -> WorkerFact:
        known = self._limits.get((ppid, kind))
        if known is None:
            known = read_process(pid).worker
            if known.kind in WORKERS:
                self._limits[ppid, kind] = replace(known, last_notify_s=None, seconds_to_kill=None)
        return known

    def ended(self) -> Iterator[Ended]:
        """Those that ended since the last call."""
        gone = {fd for fd, _ in self._ends.poll(0)}
        for process in [process for process in self.processes.values() if process.pidfd in gone]:
            now = time.monotonic()
            status = _status(process)
            if status is None and now < self._ending.setdefault(process.pid, now + _REAPED_WITHIN_S):
                continue
            self._ending.pop(process.pid, None)
            del self.processes[process.pid]
            self._vacant[process.ppid] += process.worker.kind in WORKERS
            os.close(process.pidfd)
            yield Ended(process, KILLED if status is not None and status & 0x7F else EXITED, status)


def _status(process: Tracked) -> int | None:
    """As wait(2) tells it; None while nobody can say yet: it is not reaped, and its stat hides the status."""
    try:
        text = procfs.read(process.pid, "stat").decode(errors="surrogateescape")
        fields = text.rpartition(")")[2].split()
        if int(fields[19]) == process.start_time and fields[0] in "ZX":
            return int(fields[49])
    except (StucktraceError, ValueError, IndexError):
        pass
    info = bytearray(struct.pack("Q56x", _PIDFD_INFO_EXIT))
    try:
        fcntl.ioctl(process.pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    mask, status = struct.unpack("Q52xi", info)
    return status if mask & _PIDFD_INFO_EXIT else None


class Heartbeats:
    """Age of the heartbeats of gunicorn's workers: read only when one could be overdue."""

    def __init__(self) -> None:
        self._not_before: dict[tuple[int, int], float] = {}
        """(pid, start time) -> when it can be overdue; of those whose heartbeat could be read."""
        self._overdue: dict[tuple[int, int], float] = {}
        """The last heartbeat of those that were overdue when last looked at, CLOCK_MONOTONIC."""

    def forget(self, process: Tracked) -> bool:
        """It has ended. True: when its master's patience had."""
        key = process.pid, process.start_time
        self._not_before.pop(key, None)
        last = self._overdue.pop(key, None)
        return last is not None and time.monotonic() - last >= (process.worker.timeout_s or 0.0)

    def overdue(self, processes: Mapping[int, Tracked]) -> dict[int, float]:
        """The workers whose heartbeat is older than their threshold, with its age."""
        found = {}
        for process in processes.values():
            limit_s, now = process.thresholds.heartbeat_s, time.monotonic()
            key = process.pid, process.start_time
            if limit_s is None or self._not_before.get(key, 0.0) > now:
                continue
            age_s = heartbeat.last_notify_s(process.pid, process.ppid)
            if age_s is None:
                # Not made yet; or closed by a worker on its way out, whose last heartbeat still counts.
                continue
            self._overdue.pop(key, None)
            self._not_before[key] = now + max(0.0, limit_s - age_s)
            if age_s >= limit_s:
                found[process.pid] = age_s
                self._overdue[key] = now - age_s
        return found

    def known(self, process: Tracked) -> bool:
        """Its heartbeat can be read, so that its main thread needs no other look."""
        return (process.pid, process.start_time) in self._not_before
