"""What happens to the watched processes over time: from lifecycle events, ends, looks and samples to incidents.

The loop feeds it and asks what is due; what an incident means is decided in diagnosis/incidents.py. Times that go in
are CLOCK_MONOTONIC, times that come out CLOCK_REALTIME.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stucktrace.alerts import KILLED, RECOVERED, Member
from stucktrace.collectors import cgroup_memory, heartbeat
from stucktrace.collectors.lifecycle import LifeEvent
from stucktrace.diagnosis.model import STUCK
from stucktrace.facts import ConntrackFact, Snapshot
from stucktrace.incidents import ConntrackPressure, Incident, OomKilled, WorkerAborted, code_of
from stucktrace.inspection import Inspection
from stucktrace.node import conntrack_pressure
from stucktrace.node.beats import Beats
from stucktrace.node.consumption import Consumption
from stucktrace.node.master_storms import MasterStorms
from stucktrace.node.orphans import Orphans
from stucktrace.node.remembered import Remembered
from stucktrace.node.stalls import Stalls
from stucktrace.node.tracker import Ended, Tracked

SAMPLE_EVERY_S = 10.0
STORMS_EVERY_S = 2.0
QUIET_TIMEOUTS, QUIET_AT_LEAST_S = 2.0, 60.0
"""How long no worker may be aborted, or killed for its memory, before the alert is over."""
GROWTH_OVER_S = 1800.0
"""Without a steady growth, the alert is over."""
MOST_AT_ONCE = 16
CLOCKS_S = 1.0
"""Between the time of a look and that of an incident's begin."""
BEATS = "celery-beat"


@dataclass(frozen=True)
class Occurrence:
    """An incident that has begun, for an alert."""

    member: Member
    since: float
    snapshot: Snapshot
    """The last look at the process; the process alone where there was none."""
    incident: Incident


@dataclass(frozen=True)
class Over:
    """An incident that has ended."""

    member: Member
    how: str
    """RECOVERED, KILLED or EXITED."""


@dataclass
class _Open:
    until: float | None = None
    """When it is over by itself, by `how`; None: something else tells."""
    how: str = RECOVERED


def realtime(at: float) -> float:
    """CLOCK_REALTIME of a moment of CLOCK_MONOTONIC."""
    return at + time.time() - time.monotonic()


def _by_its_master(event: LifeEvent, process: Tracked) -> bool:
    """Anybody may send a SIGABRT; a gunicorn master does for one reason only. 0 is whoever cannot be seen from here."""
    return process.worker.kind == "gunicorn-worker" and event.sender == process.ppid != 0


@dataclass
class Incidents:
    """Feed it all events before the ends of the same tick.

    `hooks`: the kernel's lifecycle events are there, so that a signal or a kill is inferred from nothing else.
    """

    hooks: bool
    realtime: Callable[[float], float] = realtime
    _remembered: Remembered = field(default_factory=Remembered)
    _storms: MasterStorms = field(default_factory=MasterStorms)
    _orphans: Orphans = field(default_factory=Orphans)
    _beats: Beats = field(default_factory=Beats)
    _stalls: Stalls = field(default_factory=Stalls)
    _tables: dict[int, tuple[ConntrackFact, float]] = field(default_factory=dict)
    _open: dict[Member, _Open] = field(default_factory=dict)
    _due: list[Occurrence] = field(default_factory=list)
    _over: list[Over] = field(default_factory=list)
    _processes: Mapping[int, Tracked] = field(default_factory=dict)
    _next_sample: float = 0.0
    _next_storms: float = 0.0

    def __post_init__(self) -> None:
        self._consumption = Consumption(count_kills=not self.hooks)

    def event(self, event: LifeEvent, processes: Mapping[int, Tracked]) -> None:
        """A lifecycle event."""
        self._processes = processes
        process = processes.get(event.pid)
        if event.kind == "fork":
            self._storms.forked(processes.get(event.parent), event.pid, event.time_s)
        elif event.kind == "exec":
            self._storms.executed(event.pid)
        elif event.kind == "exit":
            self._storms.ended(event.pid, event.time_s, event.status)
        elif event.kind == "oom" and process is not None:
            self._killed_for_memory(process, event.time_s, seen=True)
        elif event.kind == "abort" and process is not None and _by_its_master(event, process):
            self._aborted(process, event.time_s, heartbeat.last_notify_s(event.pid, process.ppid), seen=True)

    def ended(self, ended: Ended, timed_out: bool, now: float) -> None:
        """A watched process has ended. `timed_out`: when its heartbeat was overdue."""
        process = ended.process
        if not self.hooks:
            self._infer(ended, timed_out, now)
        self._orphans.ended(process, self._processes, now)
        self._storms.master_ended(process)
        self._stalls.forget(process)
        self._remembered.forget(process)
        for member, opened in list(self._open.items()):
            if (member.pid, member.start_time) == (process.pid, process.start_time) and opened.how != KILLED:
                self._close(member, ended.how)

    def _infer(self, ended: Ended, timed_out: bool, now: float) -> None:
        process = ended.process
        if timed_out and process.worker.kind == "gunicorn-worker":
            self._aborted(process, now, None, seen=False)
        elif ended.status is not None and ended.status & 0x7F == signal.SIGKILL:
            before, memory = (
                self._consumption.oom_kills(process),
                cgroup_memory.read(self._remembered.cgroups_of(process)),
            )
            if before is not None and memory is not None and (memory.oom_kills or 0) > before:
                self._killed_for_memory(process, now, seen=False)
        self._storms.child_ended(self._processes.get(process.ppid), process, now, ended.status)

    def examined(self, process: Tracked, inspection: Inspection, now: float) -> None:
        """Every answer of an examination."""
        snapshot, verdict = inspection.snapshot, inspection.diagnosis.verdict
        self._remembered.examined(process, snapshot)
        self._orphans.examined(process)
        if verdict.verdict_class == STUCK:
            self._stalls.forget(process)
            return
        if process.worker.kind == BEATS and (stopped := self._beats.stopped(process.pid, snapshot, now)) is not None:
            self._begin(process, stopped, now - stopped.asleep_s)
        if (stalled := self._stalls.examined(process, snapshot, now)) is not None:
            self._begin(process, stalled, now - stalled.seconds)
        elif self._stalls.turns(process):
            member = Member(process.pid, process.start_time, process.pod, "blocked-loop")
            if member in self._open:
                self._close(member, RECOVERED)

    def sample(self, now: float, processes: Mapping[int, Tracked]) -> None:
        """Call it every tick."""
        self._processes = processes
        if now >= self._next_storms:
            self._next_storms = now + STORMS_EVERY_S
            self._remembered.learn(processes)
            self._look_for_storms(now)
        if now < self._next_sample:
            return
        self._next_sample = now + SAMPLE_EVERY_S
        self._consumption.sample(now, processes)
        self._look_for_growth(now)
        self._look_at_beats(now)
        for process, orphaned in self._orphans.found(
            now, processes, self._consumption.last, self._remembered, self.realtime
        ):
            self._begin(process, orphaned, now - (self.realtime(now) - orphaned.since))

    def conntrack(self, process: Tracked, table: ConntrackFact, now: float) -> None:
        """A reading of the conntrack table that this process lives with, every few seconds, one process a table."""
        before, at = self._tables.get(table.netns, (table, now))
        self._tables[table.netns] = table, now
        opened = next((m for m in self._open if m.incident == "conntrack-pressure" and m.pid == process.pid), None)
        if conntrack_pressure.presses(before, table):
            self._begin(process, ConntrackPressure(before, table, now - at), now)
        elif opened is not None and conntrack_pressure.eased(before, table):
            self._close(opened, RECOVERED)

    def busy(self, now: float) -> set[int]:
        """Who is worth a look though nothing hangs: a core for itself, a beat overdue, a worker without its master."""
        wanted = self._consumption.busy(now) | set(self._beats.overdue(now))
        return wanted | self._orphans.unseen(now) | self._stalls.wanted(now)

    def due(self) -> list[Occurrence]:
        """What has begun, a few at a time: each one is diagnosed, and a hundred workers may be aborted at once."""
        found, self._due = self._due[:MOST_AT_ONCE], self._due[MOST_AT_ONCE:]
        return found

    def over(self, now: float) -> list[Over]:
        """What has ended since the last call."""
        for member, opened in list(self._open.items()):
            if opened.until is not None and now >= opened.until:
                self._close(member, opened.how)
        found, self._over = self._over, []
        return found

    def _aborted(self, process: Tracked, at: float, heartbeat_age_s: float | None, *, seen: bool) -> None:
        timeout_s, application = process.worker.timeout_s, self._remembered.application(process)
        incident = WorkerAborted(process.ppid, self.realtime(at), timeout_s, heartbeat_age_s, application, seen)
        quiet_s = max(QUIET_AT_LEAST_S, QUIET_TIMEOUTS * (timeout_s or 0.0))
        self._begin(process, incident, at - (heartbeat_age_s or timeout_s or 0.0), at + quiet_s, KILLED)

    def _killed_for_memory(self, process: Tracked, at: float, *, seen: bool) -> None:
        last = self._consumption.last(process)
        memory = cgroup_memory.read(self._remembered.cgroups_of(process))
        incident = OomKilled(
            self.realtime(at),
            last.rss_bytes if last is not None else None,
            memory.limit_bytes if memory is not None else None,
            memory.usage_bytes if memory is not None else None,
            memory.path if memory is not None else "",
            seen,
            self._remembered.application(process),
        )
        self._begin(process, incident, at, at + QUIET_AT_LEAST_S, KILLED)

    def _look_for_storms(self, now: float) -> None:
        for master, storm in self._storms.found(now, self._processes, self._remembered, self.realtime):
            self._begin(master, storm, now - storm.window_s)
        for member in [member for member in self._open if member.incident == "restart-storm"]:
            if self._storms.calm(member.pid, now):
                self._close(member, RECOVERED)

    def _look_for_growth(self, now: float) -> None:
        for process, grown in self._consumption.growths(self.realtime(0.0)):
            since = now - (grown.samples[-1][0] - grown.samples[0][0])
            self._begin(process, grown, since, now + GROWTH_OVER_S)

    def _look_at_beats(self, now: float) -> None:
        beats = [process for process in self._processes.values() if process.worker.kind == BEATS]
        self._beats.sample(now, beats)
        twice = self._beats.twice(now)
        for process, incident in twice.items():
            self._begin(process, incident, now - incident.together_s)
        for member in list(self._open):
            younger = {(process.pid, process.start_time) for process in twice}
            gone = member.incident == "beat-twice" and (member.pid, member.start_time) not in younger
            if gone or (member.incident == "beat-stopped" and self._beats.ticks(member.pid, now)):
                self._close(member, RECOVERED)

    def _begin(
        self, process: Tracked, incident: Incident, since: float, until: float | None = None, how: str = RECOVERED
    ) -> None:
        member = Member(process.pid, process.start_time, process.pod, code_of(incident))
        opened = self._open.get(member)
        if opened is not None:
            opened.until = until
            return
        self._open[member] = _Open(until, how)
        began = self.realtime(since)
        snapshot = self._remembered.snapshot(process, self._consumption.last(process), began - CLOCKS_S)
        self._due.append(Occurrence(member, began, snapshot, incident))

    def _close(self, member: Member, how: str) -> None:
        del self._open[member]
        self._over.append(Over(member, how))
