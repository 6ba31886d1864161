"""Incidents of masters and their workers: `restart-storm`, `orphaned-worker`. Pure."""

from __future__ import annotations

import signal
from collections import Counter
from statistics import median

from stucktrace.diagnosis.model import LIKELY, PROVEN, Evidence, Finding, Later, Now
from stucktrace.diagnosis.words import age, count, listing, process, size
from stucktrace.facts import Snapshot
from stucktrace.incidents import OrphanedWorker, RestartStorm

_ROLES = {"gunicorn-master": "gunicorn's master", "celery-main": "Celery's main process"}
_RECYCLED = 0x9B


def restart_storm(snapshot: Snapshot, incident: RestartStorm) -> Finding:
    """`restart-storm`: a master's workers end as soon as they are started, again and again.

    gunicorn and Celery start a new worker for each that ends. One that fails at once (an import error, a crash, a
    memory limit below what a fresh child needs) is started again without end.

    Proven: always: each start and end was seen. Within a minute at least five workers, and twice as many as the
    master has, failed before they were 10 s old, for 5 s and more.

    Now: `kill -TERM` the master while it is mended.

    Later: find what ends them: the master's log around these times, dmesg for crashes; for Celery's own limit, a
    higher `--max-memory-per-child`.

    Not: a reload, `--max-requests`, `--max-tasks-per-child`, the autoscaler, workers that were asked to end by a
    signal, a burst that is over at once.

    Wrong: none is known.

    Try: `gunicorn -w 2 --worker-class sync` with an application that calls `os._exit(1)` in `post_worker_init`, and
    `stucktrace agent` beside it.
    """
    pid, starts = snapshot.process.pid, incident.starts
    ended = [start for start in starts if start.lived_s is not None]
    lives = [start.lived_s for start in ended if start.lived_s is not None]
    how = Counter(status_text(start.status) for start in ended)
    lived = f"live {age(median(lives))} each" if lives else "end"
    said = listing(f"{text} ({number})" if number > 1 else text for text, number in how.most_common())
    summary = (
        f"{_ROLES.get(incident.kind, 'the master')} (pid {pid}) starts worker after worker: "
        f"{count(len(starts), 'start')} in {age(incident.window_s)}, they {lived} and end by {said}"
    )
    lines = [
        Evidence(
            "lifecycle",
            "start",
            start.pid,
            f"pid {start.pid} "
            + (f"lived {age(start.lived_s)}: {status_text(start.status)}" if start.lived_s is not None else "is alive"),
            time=start.time,
        )
        for start in starts[-8:]
    ]
    if incident.memory_limit:
        summary += f"; each is larger than {incident.memory_limit} (in kB) from its first task on"
        lines.append(
            Evidence(
                "billiard", "max_memory_per_child", incident.memory_limit, f"the pool runs with {incident.memory_limit}"
            )
        )
        later = Later(
            "raise --max-memory-per-child (worker_max_memory_per_child, in kB) well above what a fresh child needs",
            f"a child that is above it is replaced after each task; the main process itself has "
            f"{size(snapshot.process.rss_bytes)}",
        )
    elif incident.kind == "celery-main":
        later = Later(
            "find what ends the children: the worker's log around these times, dmesg for crashes",
            "each start costs a fork, and the tasks in their hands are lost or delivered again",
        )
    else:
        later = Later(
            "find what ends the workers: gunicorn's log around these times, dmesg for crashes",
            "gunicorn starts a new worker at once, whatever ended the last one",
        )
    return Finding(
        "restart-storm",
        PROVEN,
        summary,
        evidence=tuple(lines),
        now=(
            Now(
                f"stop it while that is mended: kill -TERM {pid}",
                "the whole worker ends" if incident.kind == "celery-main" else "the whole server ends",
                "what its workers have in their hands",
            ),
        ),
        later=(later,),
        chain=(f"master {pid}", count(len(starts), "start"), f"in {age(incident.window_s)}"),
        subject=incident.application,
    )


def status_text(status: int | None) -> str:
    """ "SIGSEGV", "exit status 1"."""
    if status is None:
        return "an unknown status"
    number = status & 0x7F
    if number:
        try:
            return signal.Signals(number).name
        except ValueError:
            return f"signal {number}"
    code = status >> 8 & 0xFF
    return f"exit status {code}" + (" (the pool replaces it)" if code == _RECYCLED else "")


def orphaned_worker(snapshot: Snapshot, incident: OrphanedWorker) -> Finding:
    """`orphaned-worker`: a worker goes on though its master is gone.

    A Celery child waits for tasks that nobody can send, or works on one whose result nobody reads. A gunicorn
    worker still accepts requests, and nobody ends it when it hangs.

    Proven: the master was watched and ended, the worker has another parent now, and has had the time to notice; of
    Celery's processes.

    Likely: of a gunicorn worker: one in a long request ends after it.

    Now: `kill -TERM` the worker, then SIGKILL; what it has in its hands is lost, or delivered again with acks_late.

    Later: end a master by SIGTERM, and let the supervisor end the whole process group or cgroup: a master that is
    killed by SIGKILL cannot end its workers.

    Not: a worker whose parent was the first process of its container from the beginning; that of a master that made
    itself a daemon.

    Wrong: none is known where it is proven.

    Try: `kill -KILL` a Celery main process while `stucktrace agent` runs.
    """
    fact = snapshot.process
    pid, kind = fact.pid, fact.worker.kind
    now_under = process(incident.parent, incident.parent_command)
    since_s = max(0.0, snapshot.time - incident.since)
    what = {
        "gunicorn-worker": "it still accepts requests, and nobody ends it when it hangs",
        "celery-child": "no task can reach it, and nobody reads its results",
        "celery-beat": "it goes on sending the schedule, beside the beat of a worker that is started anew",
    }.get(kind, "nobody looks after it")
    names = {"gunicorn-worker": "gunicorn's worker", "celery-child": "the child of a Celery pool"}
    loses = {
        "gunicorn-worker": "the requests in its hands",
        "celery-child": "the task in its hands (delivered again with acks_late)",
        "celery-beat": "nothing that was sent",
    }
    return Finding(
        "orphaned-worker",
        LIKELY if kind == "gunicorn-worker" else PROVEN,
        f"{names.get(kind, 'Celery beat')} {pid} has outlived its master (pid {incident.master}) by "
        f"{age(since_s)}: {what}",
        evidence=(
            Evidence(
                "lifecycle",
                "master ended",
                incident.master,
                f"its master, pid {incident.master}, ended {age(since_s)} before",
                time=incident.since,
            ),
            Evidence("/proc/PID/stat", "ppid", incident.parent, f"its parent is {now_under} now"),
        ),
        now=(Now(f"kill -TERM {pid}; kill -KILL {pid} if it stays", "", loses.get(kind, "what it has in its hands")),),
        later=(
            Later(
                "end a master by SIGTERM, and give it the time that its workers need; let the supervisor end the whole "
                "process group or cgroup",
                "a master that is killed by SIGKILL cannot end its workers",
            ),
        ),
        chain=(f"worker {pid}", f"master {incident.master}", "gone"),
        subject=incident.application,
    )
