"""The agent's loop: who is there, who waits for too long, what the examination says, and which alerts follow.

Everything slow happens beside it (examiner.py); who is examined, and when, is decided in suspects.py.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from stucktrace import report
from stucktrace.alerts import KILLED, RECOVERED, Alerts, Member, Observed
from stucktrace.collectors.conntrack_flows import Flows
from stucktrace.collectors.inflight import Limit
from stucktrace.collectors.kernel import open_kernel
from stucktrace.diagnosis.model import POSSIBLE, STUCK, UNKNOWN, Budgets
from stucktrace.errors import CannotInspect
from stucktrace.inspection import Inspection
from stucktrace.node.complaints import Complaints
from stucktrace.node.examiner import MOST_AT_ONCE, Examined, Examiner
from stucktrace.node.glances import Glances
from stucktrace.node.suspects import Suspects
from stucktrace.node.tracker import SCAN_EVERY_S, Heartbeats, Tracked, Tracker
from stucktrace.output import OutputFailed, complain
from stucktrace.settings import Settings
from stucktrace.sinks import stream

LOCK = "\0stucktrace.agent"
"""An abstract UNIX socket: it vanishes with its process, however that ends. One a network namespace."""
LONGEST_PAUSE_S = 0.25
DRAIN_S = 3.0


class Agent:
    def __init__(self, settings: Settings, reload: Callable[[], Settings]) -> None:
        """`reload`: reads the settings again. InvalidSettings."""
        self._lock = _only_one()
        self._settings = settings
        self._reload = reload
        self._as_json = settings.json or not os.isatty(1)
        self._interval_s = settings.interval_s
        self._complaints = Complaints()
        opened = open_kernel(settings.engine)
        for missing in opened.missing:
            complain(f"{missing.what}: {missing.because}", missing.remedy)
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._tracker = Tracker(settings.match, settings.stuck_after_s)
        self._heartbeats = Heartbeats()
        self._glances = Glances(opened.kernel, settings.interval_s, self._complaints.say)
        self._suspects = Suspects(self._glances, self._heartbeats)
        self._flows = Flows(self._wake)
        self._examiner = Examiner(settings.engine, self._wake, self._flows)
        self._alerts = Alerts(settings.node or report.host()["node"])
        self._next_scan = 0.0
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
            if poll.poll(max(0.01, min(self._interval_s, LONGEST_PAUSE_S) - spent_s) * 1000):
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
            self._complaints.failed(what, error)

    def _tick(self) -> None:
        now = time.monotonic()
        for ended in self._tracker.ended():
            # gunicorn's SIGABRT becomes an exit when Python still handles it.
            timed_out = self._heartbeats.forget(ended.process)
            self._suspects.ended(ended.process.pid)
            self._examiner.forget(ended.process.pid)
            self._alerts.left(_member(ended.process), KILLED if timed_out else ended.how)
        if now >= self._next_scan:
            self._next_scan = now + SCAN_EVERY_S
            self._look_for_processes()
        for answer in self._examiner.answers():
            self._take(answer)
        self._hear_of_flows(now)
        self._examine(now)
        for event in self._alerts.tick(time.time()):
            stream.deliver(event, as_json=self._as_json)

    def _look_for_processes(self) -> None:
        self._tracker.scan()
        self._glances.watch(
            {
                pid: Limit(process.thresholds.look_s, self._heartbeats.known(process))
                for pid, process in self._tracker.processes.items()
            }
        )
        self._flows.watch(self._tracker.processes)

    def _hear_of_flows(self, now: float) -> None:
        """Who lost a conntrack entry of a connection that lives."""
        for lost in self._flows.news():
            for pid in lost.pids:
                self._suspects.hint(pid, now)
        for missing in self._flows.unsaid():
            complain(f"{missing.what}: {missing.because}", missing.remedy)

    def _examine(self, now: float) -> None:
        """Gives the suspects to the examiner, the most urgent first."""
        free = self._examiner.free
        batches: defaultdict[Budgets, list[int]] = defaultdict(list)
        for wanted in self._suspects.wanted(now, self._tracker.processes, self._examiner.busy, look=free > 0):
            batches[wanted.budgets].append(wanted.pid)
        for budgets, pids in batches.items():
            for first in range(0, len(pids), MOST_AT_ONCE):
                if self._examiner.free:
                    self._examiner.submit(tuple(pids[first : first + MOST_AT_ONCE]), budgets)

    def _take(self, answer: Examined) -> None:
        """What an examination says becomes an observation, or rest."""
        process, now = self._tracker.processes.get(answer.pid), time.monotonic()
        if process is None:
            return
        member, inspection = _member(process), answer.inspection
        alerted = member in self._alerts.members()
        if inspection is None or inspection.snapshot.process.start_time != process.start_time:
            if answer.error and not answer.gone:
                self._complaints.say(f"process {answer.pid}: {answer.error}")
            self._suspects.failed(answer.pid, now, alerted=alerted)
            return
        verdict = inspection.diagnosis.verdict
        if verdict.verdict_class == STUCK and verdict.confidence != POSSIBLE and answer.report is not None:
            self._suspects.stuck(answer.pid, now, alerted=alerted)
            self._alerts.observe(Observed(member, self._since(inspection), answer.report))
            return
        if alerted:
            if not self._suspects.well(answer.pid, now, healthy=verdict.verdict_class not in (STUCK, UNKNOWN)):
                return
            self._alerts.left(member, RECOVERED)
        self._suspects.rest(process, inspection, now)

    def _since(self, inspection: Inspection) -> float:
        """When the wait of the verdict's thread began, CLOCK_REALTIME."""
        snapshot, tid = inspection.snapshot, inspection.diagnosis.verdict.tid
        thread = snapshot.thread(tid) if tid is not None else None
        ages = [waiting.wait_s for waiting in self._suspects.waits(snapshot.process.pid) if waiting.tid == tid]
        if thread is not None and thread.blocked_s is not None:
            ages.append(thread.blocked_s)
        return snapshot.time - max(ages, default=0.0)


def _member(process: Tracked) -> Member:
    return Member(process.pid, process.start_time, process.pod)


def _only_one() -> socket.socket:
    """Holds the node's one place for an agent. CannotInspect when it is taken."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(LOCK)
    except OSError:
        lock.close()
        raise CannotInspect("another agent watches this node already", "one is enough; end it first") from None
    return lock
