"""Who is examined, and when: the memory between two examinations of a process.

A process is a suspect when one of its threads has been in one wait for longer than its threshold, when its heartbeat is
overdue, or when an event points at it (a retransmission, an evicted flow). One that was found healthy is left alone for
a growing time; one in an alert is examined until it is well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from stucktrace.collectors.inflight import Waiting
from stucktrace.diagnosis.model import PROVEN, Budgets, Finding
from stucktrace.facts import Snapshot
from stucktrace.inspection import Inspection
from stucktrace.node.glances import Glances
from stucktrace.node.tracker import Heartbeats, Tracked

AGAIN_S, AGAIN_AT_MOST_S = 2.0, 15.0
"""How soon a process in an alert is examined again: at first, and later."""
SPARING_S = 60.0
"""The same when the agent costs too much."""
HEALTHY_TWICE = 2
"""Examinations in a row that end an alert: a retry looks healthy for a moment."""
MUTED_S, IDLE_MUTED_S, MUTED_AT_MOST_S = 15.0, 60.0, 600.0
"""How long a healthy wait is left alone: at first, at first when it is idle, and later."""
REST_AT_MOST_S = 30.0
"""Between two examinations of a process with ever new healthy waits."""
HINT_AFTER_S, HINTS_AT_MOST_S = 0.05, 15.0
"""How soon an event leads to an examination, and how far apart those of one process get."""
PAST_S = 0.05
"""After the moment when a budget is spent."""
EARLY = 0.5
"""Share of a request's budget before which what rests on patience is told only when it is proven."""
PATIENCE = frozenset(
    {
        "blocked-loop",
        "dns-unanswered",
        "gil-held",
        "lock-held",
        "peer-not-reading",
        "peer-silent",
        "pipe-stuck",
        "self-call",
        "slow-client",
    }
)
"""Verdicts that rest on how long something has lasted: a busy peer may well answer a little later."""


def may_pass(verdict: Finding) -> bool:
    """It is told only when it has lasted: also a stop, which somebody may end in a moment (a debugger, a snapshot)."""
    return verdict.code == "stopped" or (verdict.code in PATIENCE and verdict.confidence != PROVEN)


@dataclass
class _Case:
    """What is remembered of a process."""

    not_before: float = 0.0
    """No examination for a mere wait before this time."""
    again: float | None = None
    """When it is examined whatever it does."""
    examined: int = 0
    """Times in the present alert, or healthy ones in a row."""
    healthy: int = 0
    last: float = 0.0
    due: float = 0.0
    since: float | None = None
    """When the wait began that is likely stuck, CLOCK_REALTIME."""
    hints: int = 0
    hinted: float = 0.0
    waiting: tuple[Waiting, ...] = ()
    muted: dict[int, tuple[int, int]] = field(default_factory=dict)
    """tid -> (the wait's begin, how often it was muted)."""


@dataclass(frozen=True)
class Wanted:
    """A process to examine."""

    pid: int
    budgets: Budgets
    spare_s: float
    """How long the examination may wait: the less, the sooner it is done."""
    due: float
    """Since when it is wanted, CLOCK_MONOTONIC."""


class Suspects:
    def __init__(self, glances: Glances, heartbeats: Heartbeats) -> None:
        self._glances = glances
        self._heartbeats = heartbeats
        self._cases: defaultdict[int, _Case] = defaultdict(_Case)
        self.sparing = False
        """The agent costs too much: who is in an alert is examined rarely."""

    def ended(self, pid: int) -> None:
        self._cases.pop(pid, None)

    def hint(self, pid: int, now: float) -> None:
        """Something happened to this process that is worth a look; again and again it is worth fewer."""
        case = self._cases[pid]
        if now - case.hinted > 4 * HINTS_AT_MOST_S:
            case.hints = 0
        if case.again is not None and case.again <= now + HINT_AFTER_S:
            return
        at = max(now + HINT_AFTER_S, case.hinted + min(HINTS_AT_MOST_S, 2.0 ** (case.hints - 1)))
        if case.again is None or at < case.again:
            case.again, case.hinted = at, at
            case.hints += 1

    def waits(self, pid: int) -> tuple[Waiting, ...]:
        """Its threads that had waited for too long when it was chosen."""
        return self._cases[pid].waiting if pid in self._cases else ()

    def wanted(
        self, now: float, processes: Mapping[int, Tracked], busy: Collection[int], *, look: bool
    ) -> list[Wanted]:
        """Whom to examine now, the most urgent first. `look`: glance at all processes too, if it is time to."""
        found: dict[int, Wanted] = {}
        for pid, age_s in self._heartbeats.overdue(processes).items():
            case, process = self._cases[pid], processes[pid]
            if (case.again if case.again is not None else 0.0) <= now and pid not in busy:
                left_s = (process.worker.timeout_s or 0.0) - age_s
                due = max(now - age_s + (process.thresholds.heartbeat_s or 0.0), case.again or 0.0)
                budgets = process.thresholds.heartbeat_budgets or process.thresholds.budgets
                found[pid] = Wanted(pid, budgets, left_s, due)
        for pid, case in self._cases.items():
            if pid in processes and case.again is not None and case.again <= now and pid not in busy:
                found.setdefault(pid, Wanted(pid, self._budgets(processes[pid]), REST_AT_MOST_S, case.again))
        if look and self._glances.due(now):
            for pid, threads in self._glances.look().items():
                if pid not in processes or pid in busy:
                    continue
                case, process = self._cases[pid], processes[pid]
                case.waiting = threads
                # What hangs in the main thread keeps the heartbeat from being made.
                guarded = any(thread.tid == pid for thread in threads)
                budgets = self._budgets(process) if guarded else process.thresholds.budgets
                longest_s = max(thread.wait_s for thread in threads)
                patience_s = budgets.patience_s(main=guarded)
                left_s = patience_s - longest_s
                urgent = left_s <= 0 or any(thread.on_lock for thread in threads)
                if case.again is None and (urgent or case.not_before <= now):
                    crossed_s = patience_s if left_s <= 0 else process.thresholds.look_s
                    due = max(now - longest_s + crossed_s, case.last)
                    found.setdefault(pid, Wanted(pid, budgets, max(0.0, left_s), due))
        for wanted in found.values():
            self._cases[wanted.pid].due = wanted.due
        return sorted(found.values(), key=lambda wanted: wanted.spare_s)

    def due(self, pid: int) -> float:
        """Since when its last examination was wanted, CLOCK_MONOTONIC."""
        return self._cases[pid].due

    def _budgets(self, process: Tracked) -> Budgets:
        found = process.thresholds
        return found.heartbeat_budgets or found.budgets if self._heartbeats.known(process) else found.budgets

    def failed(self, pid: int, now: float, *, alerted: bool) -> None:
        """It could not be examined."""
        case = self._cases[pid]
        case.again = now + AGAIN_AT_MOST_S if alerted else None
        case.not_before = now + REST_AT_MOST_S

    def too_early(self, pid: int, since: float, at: float, patience_s: float, now: float) -> bool:
        """It is stuck, likely, in a wait that began at `since` (both CLOCK_REALTIME): is that too short to tell yet?

        It is looked at again when it is not.
        """
        case = self._cases[pid]
        case.since = since = min(since, since if case.since is None else case.since)
        left_s = EARLY * patience_s - (at - since)
        if left_s <= 0:
            return False
        case.again = now + left_s + PAST_S
        return True

    def stuck(self, pid: int, now: float, *, alerted: bool) -> None:
        """It is stuck: it is examined until it is well."""
        case = self._cases[pid]
        case.healthy = 0
        case.examined = case.examined + 1 if alerted else 0
        again_s = SPARING_S if self.sparing else min(AGAIN_AT_MOST_S, AGAIN_S * 2 ** max(0, case.examined - 4))
        case.again = now + again_s

    def well(self, pid: int, now: float, *, healthy: bool) -> bool:
        """It is in an alert and was not found stuck. True: it has recovered."""
        case = self._cases[pid]
        case.healthy += healthy
        case.again = now + AGAIN_S
        return case.healthy >= HEALTHY_TWICE

    def rest(self, process: Tracked, inspection: Inspection, budgets: Budgets, now: float) -> None:
        """Leaves a process that is healthy by these budgets alone for a while."""
        case = self._cases[process.pid]
        case.examined = case.examined + 1 if now - case.last < 2 * REST_AT_MOST_S else 0
        case.healthy, case.last, case.again, case.since = 0, now, None, None
        case.not_before = now + min(REST_AT_MOST_S, 2.0 ** min(case.examined, 10))
        overdue_s = self._heartbeats.overdue({process.pid: process}).get(process.pid)
        if overdue_s is not None:
            case.again = now + self._until_overdue(process, overdue_s)
        verdict = inspection.diagnosis.verdict
        muted = {}
        for thread in case.waiting:
            since_ns, times = case.muted.get(thread.tid, (0, 0))
            times = times + 1 if since_ns == thread.since_ns else 0
            first_s = IDLE_MUTED_S if verdict.code == "idle" else MUTED_S
            seconds = min(MUTED_AT_MOST_S, first_s * 2 ** min(times, 10))
            budget_s = budgets.patience_s(main=thread.tid == process.pid)
            if verdict.code != "idle" and thread.wait_s < budget_s:
                seconds = min(seconds, budget_s - thread.wait_s + PAST_S)
            parked = verdict.code == "idle" and not _on_a_connection(inspection.snapshot, thread.tid)
            muted[thread.tid] = thread.since_ns, times
            self._glances.mute(thread, seconds, this_sleep=parked)
        case.muted, case.waiting = muted, ()

    def _until_overdue(self, process: Tracked, overdue_s: float) -> float:
        """Its master loses patience soon, or it computes for long: look in time, but not all the time."""
        timeout_s, budgets = process.worker.timeout_s or 0.0, process.thresholds.heartbeat_budgets
        until_s = (budgets.patience_s(main=True) if budgets else 0.0) - overdue_s
        return until_s + PAST_S if until_s > 0 else min(REST_AT_MOST_S, max(0.5, timeout_s / 16))


def _on_a_connection(snapshot: Snapshot, tid: int) -> bool:
    """The thread sleeps on a socket whose peer may vanish without waking it."""
    thread = snapshot.thread(tid)
    if thread is None or thread.syscall is None:
        return True
    call = thread.syscall
    fds = {*call.fds, *([call.fd] if call.fd is not None else [])}
    for fd in tuple(fds):
        epoll = snapshot.epoll(fd)
        fds.update(watch.fd for watch in epoll.watches) if epoll else None
    found = (snapshot.socket(fd) for fd in fds)
    return any(fact is not None and fact.remote and fact.state != "LISTEN" for fact in found)
