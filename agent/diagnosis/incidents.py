"""What an incident means: the verdict on things that happen over time, from the incident and a snapshot. Pure.

One small function per incident, its proof in its docstring. The snapshot is the last look at the process it happened
to; where there was none it holds the process alone.
"""

from __future__ import annotations

from dataclasses import replace

from stucktrace.diagnosis import diagnose as diagnose_look
from stucktrace.diagnosis import evidence, incident_celery, incident_resources, incident_workers, vocabulary
from stucktrace.diagnosis.loops import bare
from stucktrace.diagnosis.model import LIKELY, PROVEN, STUCK, Budgets, Diagnosis, Evidence, Finding, Later, Now
from stucktrace.diagnosis.words import age
from stucktrace.facts import Snapshot
from stucktrace.incidents import (
    BeatStopped,
    BeatTwice,
    ConntrackPressure,
    Growth,
    Incident,
    LoopStalled,
    OomKilled,
    OrphanedWorker,
    RestartStorm,
    WorkerAborted,
)

SHARE = 0.6
"""Of gunicorn's timeout: a wait that was as old as this at the last look outlasted it."""
CLOCKS_S = 0.5
"""Between the times of a look and of the heartbeat."""


def diagnose(snapshot: Snapshot, incident: Incident) -> Diagnosis:
    """The verdict on an incident; what the last look says by itself follows it."""
    if isinstance(incident, WorkerAborted):
        return worker_timeout(snapshot, incident)
    finding = _finding(snapshot, incident)
    if not snapshot.threads:
        return Diagnosis(finding, (finding,))
    look = diagnose_look(snapshot, Budgets())
    return replace(look, verdict=finding, findings=(finding, *look.findings))


def _finding(snapshot: Snapshot, incident: Incident) -> Finding:
    """By the kind of incident."""
    if isinstance(incident, RestartStorm):
        return incident_workers.restart_storm(snapshot, incident)
    if isinstance(incident, OrphanedWorker):
        return incident_workers.orphaned_worker(snapshot, incident)
    if isinstance(incident, OomKilled):
        return incident_resources.oom_killed(snapshot, incident)
    if isinstance(incident, Growth):
        return incident_resources.growth(snapshot, incident)
    if isinstance(incident, ConntrackPressure):
        return incident_resources.conntrack_pressure(snapshot, incident)
    if isinstance(incident, BeatStopped):
        return incident_celery.beat_stopped(snapshot, incident)
    if isinstance(incident, BeatTwice):
        return incident_celery.beat_twice(snapshot, incident)
    assert isinstance(incident, LoopStalled)
    return incident_celery.loop_stalled(snapshot, incident)


def worker_timeout(snapshot: Snapshot, incident: WorkerAborted) -> Diagnosis:
    """`worker-timeout`: gunicorn's master sent SIGABRT to a worker.

    The worker's main loop had not reported to its master for longer than `--timeout`, and the master ended it. The
    alert carries what it hung in, from the last look before.

    Proven: the signal was seen, from the worker's own master, which sends SIGABRT for this reason only.

    Likely: the signal was not seen (no BPF), and the worker ended just when its timeout was over.

    Now: nothing for this worker, for its master starts a new one; `stucktrace pid MASTER` looks at the others.

    Later: what the wait it hung in asks for; without a look before the end, a longer `--timeout` if requests may
    take that long.

    Not: a SIGABRT by hand; a reload; `--max-requests`.

    Wrong: what it hung in is told only from a look after its last heartbeat; without one the alert says that nobody
    had looked.

    Try: `gunicorn --timeout 5` with a view that sleeps, `stucktrace agent` beside it, and a request.
    """
    pid, master = snapshot.process.pid, incident.master
    waited = f"no heartbeat for {age(incident.heartbeat_age_s)}" if incident.heartbeat_age_s is not None else ""
    limit = f"timeout {age(incident.timeout_s)}" if incident.timeout_s else ""
    why = f"{waited} ({limit})" if waited and limit else waited or limit or "its heartbeat was too old"
    done = (
        f"gunicorn's master (pid {master}) ended worker {pid} with SIGABRT: {why}"
        if incident.seen
        else f"gunicorn's worker {pid} ended after its timeout: {why}"
    )
    lines = [
        Evidence("signal_generate", "sender", master, f"pid {master}, its master, sent SIGABRT", time=incident.time)
        if incident.seen
        else Evidence("pidfd", "ended", True, "it ended when its heartbeat was overdue", time=incident.time)
    ]
    if incident.heartbeat_age_s is not None:
        text = f"its heartbeat file was last touched {age(incident.heartbeat_age_s)} before"
        lines.append(Evidence("/proc/PID/fd", "heartbeat", incident.heartbeat_age_s, text, "s", incident.time))
    finding = Finding(
        "worker-timeout",
        PROVEN if incident.seen else LIKELY,
        f"{done}; nobody had looked at what it hung in",
        evidence=tuple(lines),
        now=(
            Now(
                f"nothing for this worker: its master starts a new one; stucktrace pid {master} looks at the others",
                "",
                "the request that it had in its hands",
            ),
        ),
        chain=(f"worker {pid}", "no heartbeat", f"SIGABRT from master {master}"),
        subject=incident.application,
    )
    look = _last_look(snapshot, incident)
    if look is None:
        later = Later(
            "raise --timeout if the application's requests may take that long",
            "the master ends every worker whose main loop does not turn within it",
        )
        return Diagnosis(replace(finding, later=(later,)), (replace(finding, later=(later,)),))
    cause = next(
        (found for found in look.findings if found.verdict_class == STUCK and found.tid == pid), look.findings[0]
    )
    tid = cause.tid if cause.tid is not None else pid
    stuck = cause.verdict_class == STUCK
    frame = cause.frame if stuck and cause.frame is not None else _own_frame(snapshot, tid)
    seen_s = max(0.0, incident.time - snapshot.time)
    before = f"{age(seen_s)} before" if seen_s >= 1 else "just before"
    said = cause.summary if stuck or frame is None else _stood(snapshot, tid, frame)
    lines.append(Evidence("stucktrace", "look", seen_s, f"{before}: {said}", "s", time=snapshot.time))
    finding = replace(
        finding,
        summary=f"{done}; {before}, {said}",
        evidence=(*lines, *(evidence.frame_line(snapshot.frames(tid), frame)), *cause.evidence),
        later=cause.later,
        known_issues=cause.known_issues,
        tid=tid,
        fd=cause.fd,
        lock=cause.lock,
        chain=(*cause.chain, f"SIGABRT from master {master}"),
        frame=frame,
        explains=cause.explains,
    )
    return replace(look, verdict=finding, findings=(finding, *look.findings))


def _last_look(snapshot: Snapshot, incident: WorkerAborted) -> Diagnosis | None:
    """What was seen of the worker after its last heartbeat."""
    if not snapshot.threads:
        return None
    silent_s = incident.heartbeat_age_s if incident.heartbeat_age_s is not None else incident.timeout_s or 0.0
    if snapshot.time < incident.time - silent_s - CLOCKS_S:
        return None
    if not incident.timeout_s:
        return diagnose_look(snapshot, Budgets())
    spent_s = SHARE * incident.timeout_s
    return diagnose_look(snapshot, Budgets(min(Budgets.owed_s, spent_s), guarded_s=spent_s))


def _stood(snapshot: Snapshot, tid: int, frame: int) -> str:
    """Where a thread was that waits for nothing that could be judged: its master has judged it since."""
    inner, own = snapshot.frames(tid)[0], snapshot.frames(tid)[frame]
    where = "its main thread" if tid == snapshot.process.pid else f"thread {tid}"
    inside = f"{bare(inner)}, called from " if frame else ""
    return f"{where} stood in {inside}{bare(own)} ({own.file.rpartition('/')[2]}:{own.line})"


def _own_frame(snapshot: Snapshot, tid: int) -> int | None:
    """The innermost frame of the application's own code, else the innermost one."""
    frames = snapshot.frames(tid)
    own = vocabulary.own_frame(frames)
    return frames.index(own) if own is not None else 0 if frames else None
