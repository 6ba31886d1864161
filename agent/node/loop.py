"""The agent's loop: who is there, who waits for too long, what the examination says, and which alerts follow.

Everything slow happens beside it (examiner.py). A process is a suspect when one of its threads has been in one wait for
longer than its threshold, or when its heartbeat is overdue; what was found healthy is left alone for a growing time.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from stucktrace import report
from stucktrace.alerts import KILLED, RECOVERED, Alerts, Member, Observed
from stucktrace.collectors import inflight
from stucktrace.collectors.inflight import Limit, Waiting
from stucktrace.collectors.kernel import open_kernel
from stucktrace.collectors.libbpf import BpfError
from stucktrace.diagnosis.model import POSSIBLE, STUCK, UNKNOWN, Budgets
from stucktrace.errors import CannotInspect
from stucktrace.facts import Snapshot
from stucktrace.inspection import Inspection
from stucktrace.node.examiner import MOST_AT_ONCE, Examined, Examiner
from stucktrace.node.tracker import SCAN_EVERY_S, Heartbeats, Tracked, Tracker
from stucktrace.output import OutputFailed, complain
from stucktrace.sinks import stream

LOCK = "\0stucktrace.agent"
"""An abstract UNIX socket: it vanishes with its process, however that ends. One a network namespace."""
PROC_INTERVAL_S = 2.0
"""The shortest time between two looks without BPF."""
AGAIN_S, AGAIN_AT_MOST_S = 2.0, 15.0
"""How soon a process in an alert is examined again: at first, and later."""
HEALTHY_TWICE = 2
"""Examinations in a row that end an alert: a retry looks healthy for a moment."""
MUTED_S, IDLE_MUTED_S, MUTED_AT_MOST_S = 15.0, 60.0, 600.0
"""How long a healthy wait is left alone: at first, at first when it is idle, and later."""
REST_AT_MOST_S = 30.0
"""Between two examinations of a process with ever new healthy waits."""
DRAIN_S = 3.0
COMPLAIN_EVERY_S = 60.0


@dataclass
class _Case:
    """What the loop remembers of a process between examinations."""

    not_before: float = 0.0
    """No examination for a mere wait before this time."""
    again: float | None = None
    """When it is examined whatever it does."""
    examined: int = 0
    """Times in the present alert, or healthy ones in a row."""
    healthy: int = 0
    last: float = 0.0
    waiting: tuple[Waiting, ...] = ()
    muted: dict[int, tuple[int, int]] = field(default_factory=dict)
    """tid -> (the wait's begin, how often it was muted)."""


class Agent:
    def __init__(
        self, match: re.Pattern[str] | None, interval_s: float, stuck_after_s: float | None, engine: str, as_json: bool
    ) -> None:
        self._lock = _only_one()
        self._as_json = as_json
        opened = open_kernel(engine)
        self._scan: inflight.Scan = inflight.ProcScan()
        self._interval_s = max(interval_s, PROC_INTERVAL_S)
        if opened.kernel is not None:
            self._scan = inflight.KernelScan(opened.kernel)
            self._interval_s = interval_s
        for missing in opened.missing:
            complain(f"{missing.what}: {missing.because}", missing.remedy)
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._tracker = Tracker(match, stuck_after_s)
        self._heartbeats = Heartbeats()
        self._examiner = Examiner(engine, self._wake)
        self._alerts = Alerts(report.host()["node"])
        self._cases: defaultdict[int, _Case] = defaultdict(_Case)
        self._next_scan = self._next_look = 0.0
        self._complained: dict[str, float] = {}
        self._stopping = False

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    def run(self) -> None:
        """Until SIGTERM or SIGINT. OutputFailed when stdout is broken."""
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        # A reader that left is an error to tell, not a signal to die of.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        self._guarded("looking for processes", self._look_for_processes)
        complain(f"watching {len(self._tracker.processes)} processes", "")
        while not self._stopping:
            began = time.monotonic()
            self._guarded("the loop", self._tick)
            spent_s = time.monotonic() - began
            if poll.poll(max(0.01, min(self._interval_s, 0.25) - spent_s) * 1000):
                with suppress(BlockingIOError):
                    os.read(self._woken, 4096)

    def _stop(self, *_: Any) -> None:
        self._stopping = True
        # The loop may stand in a write that nobody reads.
        last = threading.Timer(DRAIN_S, os._exit, (0,))
        last.daemon = True
        last.start()

    def _guarded(self, what: str, function: Callable[[], None]) -> None:
        try:
            function()
        except OutputFailed:
            raise
        except Exception as error:
            if os.environ.get("STUCKTRACE_DEBUG"):
                import traceback

                traceback.print_exc()
            self._complain(f"{what}: {type(error).__name__}: {error}")

    def _complain(self, message: str) -> None:
        """Each message once a minute at most."""
        now = time.monotonic()
        self._complained = {text: at for text, at in self._complained.items() if now - at < COMPLAIN_EVERY_S}
        if message not in self._complained:
            self._complained[message] = now
            complain(message, "")

    def _tick(self) -> None:
        now = time.monotonic()
        for ended in self._tracker.ended():
            # gunicorn's SIGABRT becomes an exit when Python still handles it.
            timed_out = self._heartbeats.forget(ended.process)
            self._cases.pop(ended.process.pid, None)
            self._alerts.left(_member(ended.process), KILLED if timed_out else ended.how)
        if now >= self._next_scan:
            self._next_scan = now + SCAN_EVERY_S
            self._look_for_processes()
        for answer in self._examiner.answers():
            self._take(answer)
        self._examine(now)
        for event in self._alerts.tick(time.time()):
            stream.deliver(event, as_json=self._as_json)

    def _look_for_processes(self) -> None:
        self._tracker.scan()
        processes = self._tracker.processes
        limits = {
            pid: Limit(process.thresholds.look_s, self._heartbeats.known(process)) for pid, process in processes.items()
        }
        try:
            self._scan.watch(limits)
        except BpfError as error:
            self._without_bpf(error)
            self._scan.watch(limits)

    def _without_bpf(self, error: BpfError) -> None:
        self._complain(f"BPF: {error}; going on with /proc")
        self._scan, self._interval_s = inflight.ProcScan(), max(self._interval_s, PROC_INTERVAL_S)

    def _examine(self, now: float) -> None:
        """Finds the suspects and gives them to the examiner: first those whose time runs out."""
        processes, busy = self._tracker.processes, self._examiner.busy
        wanted: dict[int, Budgets] = {}
        for pid in self._heartbeats.overdue(processes):
            case, found = self._cases[pid], processes[pid].thresholds
            if (case.again if case.again is not None else 0.0) <= now and pid not in busy:
                wanted[pid] = found.heartbeat_budgets or found.budgets
        for pid, case in self._cases.items():
            if pid in processes and case.again is not None and case.again <= now and pid not in busy:
                wanted.setdefault(pid, self._budgets(processes[pid]))
        if now >= self._next_look and self._examiner.free:
            began = time.monotonic()
            waiting: defaultdict[int, list[Waiting]] = defaultdict(list)
            try:
                for thread in self._scan.look():
                    waiting[thread.pid].append(thread)
            except BpfError as error:
                self._without_bpf(error)
            # Where a look is dear there are fewer of them.
            self._next_look = began + max(self._interval_s, 20 * (time.monotonic() - began))
            for pid, threads in waiting.items():
                if pid in processes and pid not in busy:
                    case = self._cases[pid]
                    case.waiting = tuple(threads)
                    if case.again is None and case.not_before <= now:
                        wanted.setdefault(pid, processes[pid].thresholds.budgets)
        batches: defaultdict[Budgets, list[int]] = defaultdict(list)
        for pid, budgets in wanted.items():
            batches[budgets].append(pid)
        for budgets, pids in batches.items():
            for first in range(0, len(pids), MOST_AT_ONCE):
                if self._examiner.free:
                    self._examiner.submit(tuple(pids[first : first + MOST_AT_ONCE]), budgets)

    def _budgets(self, process: Tracked) -> Budgets:
        found = process.thresholds
        return found.heartbeat_budgets or found.budgets if self._heartbeats.known(process) else found.budgets

    def _take(self, answer: Examined) -> None:
        """What an examination says becomes an observation, or rest."""
        process, case, now = self._tracker.processes.get(answer.pid), self._cases[answer.pid], time.monotonic()
        if process is None:
            del self._cases[answer.pid]
            return
        member = _member(process)
        alerted = member in self._alerts.members()
        inspection = answer.inspection
        if inspection is None or inspection.snapshot.process.start_time != process.start_time:
            if answer.error and not answer.gone:
                self._complain(f"process {answer.pid}: {answer.error}")
            case.again = now + AGAIN_AT_MOST_S if alerted else None
            case.not_before = now + REST_AT_MOST_S
            return
        verdict = inspection.diagnosis.verdict
        if verdict.verdict_class == STUCK and verdict.confidence != POSSIBLE and answer.report is not None:
            case.healthy = 0
            case.examined = case.examined + 1 if alerted else 0
            case.again = now + min(AGAIN_AT_MOST_S, AGAIN_S * 2 ** max(0, case.examined - 4))
            self._alerts.observe(Observed(member, _since(inspection, case), answer.report))
            return
        if alerted:
            case.healthy += verdict.verdict_class not in (STUCK, UNKNOWN)
            case.again = now + AGAIN_S
            if case.healthy < HEALTHY_TWICE:
                return
            self._alerts.left(member, RECOVERED)
        self._rest(process, case, inspection, now)

    def _rest(self, process: Tracked, case: _Case, inspection: Inspection, now: float) -> None:
        """Leaves a healthy process alone for a while."""
        case.examined = case.examined + 1 if now - case.last < 2 * REST_AT_MOST_S else 0
        case.healthy, case.last, case.again = 0, now, None
        case.not_before = now + min(REST_AT_MOST_S, 2.0 ** min(case.examined, 10))
        if self._heartbeats.known(process) and process.pid in self._heartbeats.overdue({process.pid: process}):
            # Its master loses patience soon, or it computes for long: look in time, but not all the time.
            case.again = now + min(30.0, max(0.5, (process.worker.timeout_s or 0.0) / 16))
        verdict, budget_s = inspection.diagnosis.verdict, process.thresholds.budgets.stuck_after_s
        muted = {}
        for thread in case.waiting:
            since_ns, times = case.muted.get(thread.tid, (0, 0))
            times = times + 1 if since_ns == thread.since_ns else 0
            first_s = IDLE_MUTED_S if verdict.code == "idle" else MUTED_S
            seconds = min(MUTED_AT_MOST_S, first_s * 2 ** min(times, 10))
            if verdict.code != "idle" and thread.wait_s < budget_s:
                seconds = min(seconds, max(AGAIN_S, budget_s - thread.wait_s + 0.5))
            parked = verdict.code == "idle" and not _on_a_connection(inspection.snapshot, thread.tid)
            muted[thread.tid] = thread.since_ns, times
            self._scan.mute(thread, seconds, this_sleep=parked)
        case.muted, case.waiting = muted, ()


def _member(process: Tracked) -> Member:
    return Member(process.pid, process.start_time, process.pod)


def _since(inspection: Inspection, case: _Case) -> float:
    """When the wait of the verdict's thread began, CLOCK_REALTIME."""
    snapshot, tid = inspection.snapshot, inspection.diagnosis.verdict.tid
    thread = snapshot.thread(tid) if tid is not None else None
    ages = [waiting.wait_s for waiting in case.waiting if waiting.tid == tid]
    if thread is not None and thread.blocked_s is not None:
        ages.append(thread.blocked_s)
    return snapshot.time - max(ages, default=0.0)


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


def _only_one() -> socket.socket:
    """Holds the node's one place for an agent. CannotInspect when it is taken."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(LOCK)
    except OSError:
        lock.close()
        raise CannotInspect("another agent watches this node already", "one is enough; end it first") from None
    return lock
