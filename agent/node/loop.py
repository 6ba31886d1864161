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
from functools import partial
from typing import Any

from stucktrace import report
from stucktrace.alerts import KILLED, RECOVERED, Member
from stucktrace.collectors.bpf_stats import Runs
from stucktrace.collectors.inflight import Limit
from stucktrace.collectors.kernel import open_kernel
from stucktrace.diagnosis import incidents
from stucktrace.diagnosis.model import POSSIBLE, STUCK, UNKNOWN, Budgets
from stucktrace.diagnosis.network_outage import find_outage
from stucktrace.errors import CannotInspect, InvalidSettings
from stucktrace.inspection import Inspection
from stucktrace.node import pod_names
from stucktrace.node.complaints import Complaints
from stucktrace.node.desk import Desk
from stucktrace.node.examiner import MOST_AT_ONCE, Examined, Examiner
from stucktrace.node.exposure import Exposure
from stucktrace.node.gauge import gather
from stucktrace.node.glances import Glances
from stucktrace.node.incidents import Incidents, Occurrence
from stucktrace.node.outlets import deliver_to
from stucktrace.node.recorder import Recorder
from stucktrace.node.self_watch import INTERVAL_FACTOR, NORMAL, RARE_REPEATS, SAID, SelfWatch
from stucktrace.node.signs import Signs
from stucktrace.node.suspects import Suspects, may_pass
from stucktrace.node.tracker import SCAN_EVERY_S, Ended, Heartbeats, Tracked, Tracker
from stucktrace.output import complain
from stucktrace.settings import Settings, reloaded

LOCK = "\0stucktrace.agent"
"""An abstract UNIX socket: it vanishes with its process, however that ends. One a network namespace."""
SHORTEST_TURN_S, LONGEST_TURN_S = 0.02, 0.25
RECORDED_MINUTES = 5.0
GAUGE_EVERY_S = 1.0
NAMES_S = 2.0
"""How long the names of pods are waited for before it begins."""
DRAIN_S, LAST_S = 2.5, 4.5
"""After SIGTERM: how long the sinks may take, and when the process ends whatever it does."""


class Agent:
    def __init__(self, settings: Settings, reload: Callable[[], Settings]) -> None:
        """`reload`: reads the settings again. InvalidSettings."""
        self._lock = _only_one()
        self._settings = settings
        self._reload = reload
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
        self._recorder = Recorder(
            RECORDED_MINUTES, settings.journal, settings.journal_bytes, settings.journal_age_s, self._complaints.say
        )
        self._delivery = deliver_to(settings, self._complaints.say)
        node = settings.node or report.host()["node"]
        self._names = pod_names.asked(settings, node, self._complaints.say)
        self._desk = Desk(node, self._recorder, self._delivery.put, self._names)
        self._signs = Signs(opened.kernel, self._wake, self._complaints.say, self._desk.note)
        self._examiner = Examiner(settings.engine, self._signs.flows, self._wake)
        self._incidents = Incidents(hooks=self._signs.sees_ends)
        self._kernel = opened.kernel
        self._exposure = Exposure(settings, self._complaints.say)
        self._started_s = time.time()
        self._watch = SelfWatch(time.monotonic())
        self._runs = Runs()
        self._shedding = NORMAL
        self._next_scan = self._next_gauge = 0.0
        self._stopping = self._reloading = False

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    def run(self) -> None:
        """Until SIGTERM or SIGINT. OutputFailed when stdout is broken."""
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._hang_up)
        # A reader that left is an error to tell, not a signal to die of.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        poll = select.poll()
        for fd in (self._woken, *self._signs.fds):
            poll.register(fd, select.POLLIN)
        self._guarded("looking for processes", self._look_for_processes)
        self._names.wait(NAMES_S)
        complain(f"watching {len(self._tracker.processes)} processes", "")
        while not self._stopping:
            began = time.monotonic()
            self._turn()
            # Events may come by the thousand: they are taken together.
            time.sleep(max(0.0, SHORTEST_TURN_S - (time.monotonic() - began)))
            spent_s = time.monotonic() - began
            if poll.poll(max(0.0, min(self._interval_s, LONGEST_TURN_S) - spent_s) * 1000):
                with suppress(BlockingIOError):
                    os.read(self._woken, 4096)
        self._exposure.close(DRAIN_S / 5)
        self._delivery.drain(DRAIN_S)
        self._recorder.close(DRAIN_S / 3)
        if self._delivery.failed:
            raise self._delivery.failed

    def _stop(self, *_: Any) -> None:
        self._stopping = True
        # The loop may stand in something that never ends.
        last = threading.Timer(LAST_S, os._exit, (0,))
        last.daemon = True
        last.start()

    def _hang_up(self, *_: Any) -> None:
        self._reloading = True

    def _guarded(self, what: str, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:
            self._complaints.failed(what, error)

    def _turn(self) -> None:
        """One turn of the loop. A step that fails costs the others nothing."""
        now = time.monotonic()
        self._guarded("following processes", lambda: self._follow_life(now))
        if now >= self._next_scan:
            self._next_scan = now + SCAN_EVERY_S
            self._guarded("looking for processes", self._look_for_processes)
        self._guarded("events of connections", lambda: self._follow_connections(now))
        for answer in self._examiner.answers():
            self._guarded(f"the answer about process {answer.pid}", partial(self._take, answer))
        self._guarded("choosing whom to examine", lambda: self._examine(now))
        self._guarded("incidents", lambda: self._follow_incidents(now))
        self._guarded("telling alerts", self._desk.tick)
        if now >= self._next_gauge:
            self._next_gauge = now + GAUGE_EVERY_S
            self._guarded("looking at itself", lambda: self._look_at_itself(now))
        if self._delivery.failed:
            self._stopping = True
        if self._reloading:
            self._reloading = False
            self._guarded("reading the settings", self._read_settings)

    def _read_settings(self) -> None:
        """After SIGHUP. Settings with a mistake change nothing."""
        try:
            settings = self._reload()
        except InvalidSettings as error:
            for problem in error.problems:
                self._complaints.tell(problem, "the settings stay as they were")
            return
        self._settings, waiting = reloaded(self._settings, settings)
        self._tracker.apply(settings.match, settings.stuck_after_s)
        self._recorder.apply(settings.journal_bytes, settings.journal_age_s)
        self._interval_s = settings.interval_s
        self._glances.interval_s = settings.interval_s * INTERVAL_FACTOR[self._shedding]
        if waiting:
            self._complaints.tell(f"{', '.join(waiting)}: as before", "start the agent anew to change them")
        self._complaints.tell("settings read again", "")

    def _look_at_itself(self, now: float) -> None:
        """Does less where the agent itself costs too much, and shows what it does."""
        usage = self._watch.look(now, self._settings)
        if usage.level != self._shedding:
            self._shedding = usage.level
            self._complaints.tell(SAID[usage.level])
            self._glances.interval_s = self._settings.interval_s * INTERVAL_FACTOR[usage.level]
            self._suspects.sparing = usage.level >= RARE_REPEATS
        if self._examiner.hangs:
            # Without new figures /healthz says so.
            self._complaints.say("every examination hangs in the kernel", "see dmesg, and start the agent anew")
        elif self._exposure.wanted:
            self._exposure.figures = gather(
                self._settings,
                usage,
                started_s=self._started_s,
                kernel=self._kernel,
                runs=self._runs,
                tracker=self._tracker,
                glances=self._glances,
                examiner=self._examiner,
                desk=self._desk,
                delivery=self._delivery,
                signs=self._signs,
            )

    def _follow_life(self, now: float) -> None:
        """Who came and who went."""
        for event in self._signs.life():
            self._incidents.event(event, self._tracker.processes)
            if event.kind in ("exec", "fork"):
                self._tracker.consider(event.pid)
        for ended in self._tracker.ended():
            self._forget(ended, now)

    def _follow_connections(self, now: float) -> None:
        """Whose connections are in trouble."""
        for pid in self._signs.suspects(self._tracker.processes.keys(), now):
            if pid in self._tracker.processes:
                self._suspects.hint(pid, now)

    def _forget(self, ended: Ended, now: float) -> None:
        # gunicorn's SIGABRT becomes an exit when Python still handles it.
        timed_out = self._heartbeats.forget(ended.process)
        self._incidents.ended(ended, timed_out, now)
        self._suspects.ended(ended.process.pid)
        self._examiner.forget(ended.process.pid)
        self._desk.left(_member(ended.process), KILLED if timed_out else ended.how)

    def _follow_incidents(self, now: float) -> None:
        """What happened to processes becomes alerts too."""
        processes = self._tracker.processes
        self._incidents.sample(now, processes)
        for pid, table in self._signs.flows.readings():
            if pid in processes:
                self._incidents.conntrack(processes[pid], table, now)
        for pid in self._incidents.busy(now):
            if pid in processes:
                self._suspects.hint(pid, now)
        for occurrence in self._incidents.due():
            self._guarded("an incident", partial(self._happened, occurrence))
        for over in self._incidents.over(now):
            self._desk.left(over.member, over.how)

    def _happened(self, occurrence: Occurrence) -> None:
        began = time.monotonic()
        diagnosis = incidents.diagnose(occurrence.snapshot, occurrence.incident)
        spent_ms = {"total": (time.monotonic() - began) * 1000}
        inspection = Inspection(diagnosis, occurrence.snapshot, timings_ms=spent_ms)
        self._desk.happened(occurrence.member, occurrence.since, occurrence.incident, inspection)

    def _look_for_processes(self) -> None:
        self._tracker.scan()
        self._names.want(process.container for process in self._tracker.processes.values())
        self._signs.watch(self._tracker.processes.keys())
        self._glances.watch(
            {
                pid: Limit(process.thresholds.look_s, self._heartbeats.known(process))
                for pid, process in self._tracker.processes.items()
            }
        )

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
        alerted = member in self._desk.alerts
        if inspection is None or inspection.snapshot.process.start_time != process.start_time:
            if answer.error and not answer.gone:
                self._complaints.say(f"process {answer.pid}: {answer.error}")
            self._suspects.failed(answer.pid, now, alerted=alerted)
            return
        self._incidents.examined(process, inspection, now)
        verdict = inspection.diagnosis.verdict
        if verdict.verdict_class == STUCK and verdict.confidence != POSSIBLE:
            since, at = self._since(inspection, answer.budgets), inspection.snapshot.time
            patience_s = answer.budgets.patience_s(main=verdict.tid in (None, answer.pid))
            unsure = not alerted and may_pass(verdict)
            if unsure and self._suspects.too_early(answer.pid, since, at, patience_s, now):
                return
            self._suspects.stuck(answer.pid, now, alerted=alerted)
            due = self._suspects.due(answer.pid)
            self._desk.stuck(member, since, due, inspection, answer.budgets)
            return
        if alerted:
            if not self._suspects.well(answer.pid, now, healthy=verdict.verdict_class not in (STUCK, UNKNOWN)):
                return
            self._desk.left(member, RECOVERED)
        self._suspects.rest(process, inspection, answer.budgets, now)

    def _since(self, inspection: Inspection, budgets: Budgets) -> float:
        """When the wait of the verdict's thread began, or the outage of its connection, CLOCK_REALTIME."""
        snapshot, verdict = inspection.snapshot, inspection.diagnosis.verdict
        tid = verdict.tid
        thread = snapshot.thread(tid) if tid is not None else None
        ages = [waiting.wait_s for waiting in self._suspects.waits(snapshot.process.pid) if waiting.tid == tid]
        if thread is not None and thread.blocked_s is not None:
            ages.append(thread.blocked_s)
        connection = snapshot.socket(verdict.fd) if verdict.fd is not None and verdict.code == "half-open" else None
        # A loop at rest wakes now and then.
        outage = find_outage(snapshot, connection, budgets) if connection is not None else None
        if outage is not None:
            ages.append(outage.since_s)
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
