"""What happens to the watched processes over time: from lifecycle events, ends, looks and samples to incidents.

The loop feeds it and asks what is due; what an incident means is decided in diagnosis/incidents.py. Times that go in
are CLOCK_MONOTONIC, times that come out CLOCK_REALTIME.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from stucktrace.alerts import KILLED, Member
from stucktrace.collectors import heartbeat, procfs
from stucktrace.collectors.cgroups import read_paths
from stucktrace.collectors.command_line import without_userinfo
from stucktrace.collectors.containers import from_paths
from stucktrace.diagnosis.incidents import diagnose
from stucktrace.errors import CannotInspect
from stucktrace.facts import Container, ProcessFact, Snapshot
from stucktrace.incidents import Incident, WorkerAborted, code_of
from stucktrace.inspection import Inspection
from stucktrace.node.tracker import Ended, Tracked

LOOKS_KEPT = 128
"""Last looks at gunicorn workers: who hangs is looked at before its master ends it."""
MOST_THREADS_KEPT = 256
QUIET_TIMEOUTS, QUIET_AT_LEAST_S = 2.0, 60.0
"""How long no worker may be aborted before the alert is over."""

Key = tuple[int, int]
"""(pid, start time)."""


@dataclass(frozen=True)
class Occurrence:
    """An incident that has begun, for an alert."""

    member: Member
    since: float
    snapshot: Snapshot
    """The last look at the process; the process alone where there was none."""
    incident: Incident

    def diagnosed(self) -> Inspection:
        """What it means, for a report."""
        began = time.perf_counter()
        diagnosis = diagnose(self.snapshot, self.incident)
        timings_ms = {**self.snapshot.timings_ms, "total": (time.perf_counter() - began) * 1000}
        return Inspection(diagnosis, self.snapshot, timings_ms=timings_ms)


@dataclass(frozen=True)
class Over:
    """An incident that has ended."""

    member: Member
    how: str
    """RECOVERED, KILLED or EXITED."""


@dataclass(frozen=True)
class _Known:
    """What is remembered of a process for the time when it is gone."""

    command: str
    argv: tuple[str, ...]
    ns_pid: int
    uid: int
    container: Container | None


@dataclass
class _Open:
    how: str
    until: float | None
    """When it is over by itself, CLOCK_MONOTONIC."""


class LifeEvent(Protocol):
    """As collectors.lifecycle tells it."""

    @property
    def kind(self) -> str: ...
    @property
    def time_s(self) -> float: ...
    @property
    def pid(self) -> int: ...
    @property
    def parent(self) -> int: ...
    @property
    def status(self) -> int | None: ...
    @property
    def sender(self) -> int: ...


def realtime(at: float) -> float:
    """CLOCK_REALTIME of a moment of CLOCK_MONOTONIC."""
    return at + time.time() - time.monotonic()


class Incidents:
    """`hooks`: the kernel's lifecycle events are there, so that a signal or a kill is inferred from nothing else."""

    def __init__(self, *, hooks: bool, to_realtime: Callable[[float], float] = realtime) -> None:
        self._hooks = hooks
        self._realtime = to_realtime
        self._looks: OrderedDict[Key, Snapshot] = OrderedDict()
        self._known: dict[Key, _Known] = {}
        self._open: dict[Member, _Open] = {}
        self._due: list[Occurrence] = []
        self._over: list[Over] = []

    def event(self, event: LifeEvent, processes: Mapping[int, Tracked]) -> None:
        """A lifecycle event. Feed all of them before the ends that pidfds tell of."""
        if event.kind == "abort":
            process = processes.get(event.pid)
            if process is not None and process.worker.kind == "gunicorn-worker" and event.sender == process.ppid:
                self._aborted(process, event.time_s, heartbeat.last_notify_s(event.pid, process.ppid), seen=True)

    def ended(self, ended: Ended, timed_out: bool, now: float) -> None:
        """A watched process has ended. `timed_out`: when its heartbeat was overdue."""
        process = ended.process
        key = process.pid, process.start_time
        if timed_out and not self._hooks and process.worker.kind == "gunicorn-worker":
            self._aborted(process, now, None, seen=False)
        self._looks.pop(key, None)
        self._known.pop(key, None)

    def examined(self, process: Tracked, snapshot: Snapshot, now: float) -> None:
        """The latest look at a process that is stuck or whose heartbeat is overdue."""
        key = process.pid, process.start_time
        if process.worker.kind != "gunicorn-worker" or len(snapshot.threads) > MOST_THREADS_KEPT:
            return
        self._looks[key] = snapshot
        self._looks.move_to_end(key)
        while len(self._looks) > LOOKS_KEPT:
            self._looks.popitem(last=False)

    def due(self, now: float) -> list[Occurrence]:
        """What has begun since the last call."""
        found, self._due = self._due, []
        return found

    def over(self, now: float) -> list[Over]:
        """What has ended since the last call."""
        for member, opened in list(self._open.items()):
            if opened.until is not None and now >= opened.until:
                del self._open[member]
                self._over.append(Over(member, opened.how))
        found, self._over = self._over, []
        return found

    def _aborted(self, process: Tracked, at: float, heartbeat_age_s: float | None, *, seen: bool) -> None:
        timeout_s = process.worker.timeout_s
        incident = WorkerAborted(
            process.ppid,
            self._realtime(at),
            timeout_s,
            heartbeat_age_s,
            self._application(process),
            seen,
        )
        quiet_s = max(QUIET_AT_LEAST_S, QUIET_TIMEOUTS * (timeout_s or 0.0))
        self._begin(process, incident, at - (heartbeat_age_s or timeout_s or 0.0), KILLED, at + quiet_s)

    def _begin(
        self, process: Tracked, incident: Incident, since: float, how: str = "", until: float | None = None
    ) -> None:
        member = Member(process.pid, process.start_time, process.pod, code_of(incident))
        if member not in self._open:
            self._open[member] = _Open(how, until)
            snapshot = self._looks.get((process.pid, process.start_time)) or self._without_look(process)
            self._due.append(Occurrence(member, self._realtime(since), snapshot, incident))

    def _remember(self, process: Tracked) -> _Known:
        key = process.pid, process.start_time
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _read_known(process.pid)
        return known

    def _application(self, process: Tracked) -> str:
        """The command line of the master, which tells one application from another."""
        return without_userinfo(" ".join(self._remember(process).argv))

    def _without_look(self, process: Tracked) -> Snapshot:
        known = self._remember(process)
        fact = ProcessFact(
            process.pid,
            known.ns_pid or process.pid,
            process.ppid,
            process.start_time,
            known.command,
            known.argv,
            "X",
            uid=known.uid,
            is_python=True,
            worker=replace(process.worker, last_notify_s=None, seconds_to_kill=None),
            container=known.container,
        )
        return Snapshot(time.time(), fact)


def _read_known(pid: int) -> _Known:
    try:
        status = procfs.read_status(pid)
        return _Known(
            status.get("Name", ""),
            procfs.read_argv(pid),
            procfs.last_number(status.get("NSpid", ""), pid),
            procfs.first_number(status.get("Uid", "")),
            from_paths(read_paths(pid)),
        )
    except CannotInspect:
        return _Known("", (), 0, 0, None)
