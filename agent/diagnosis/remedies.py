"""What to do about a process that is stuck, by its role: the command, its risk, what is lost or delivered again."""

from __future__ import annotations

from stucktrace.diagnosis.model import Now
from stucktrace.facts import Snapshot


def restart(snapshot: Snapshot) -> tuple[Now, ...]:
    """End the process so that its supervisor starts a new one. SIGKILL where a handler in Python could never run."""
    process = snapshot.process
    kind, pid, container = process.worker.kind, process.pid, process.container is not None
    if kind == "gunicorn-worker":
        return (
            Now(f"kill -KILL {pid}", "the master starts a new worker at once", "the requests in this worker's hands"),
        )
    if kind == "celery-child":
        loses = "its task (delivered again with acks_late and task_reject_on_worker_lost, else marked as failed)"
        return (Now(f"kill -KILL {pid}", "the main process starts a new child", loses),)
    if kind == "celery-main":
        loses = "running tasks; messages that are not acknowledged are delivered again"
        return (
            Now(
                f"kill -QUIT {pid}; kill -KILL {pid} if it stays",
                "a cold shutdown of the whole worker: something has to start it again",
                loses,
            ),
        )
    if kind == "celery-beat":
        return (Now(f"kill -KILL {pid}", "no schedule runs until it is started again", "nothing that was sent"),)
    if kind == "gunicorn-master":
        return (
            Now(
                f"kill -TERM {pid}; kill -KILL {pid} if it stays",
                "the whole server ends, its workers too",
                "open requests",
            ),
        )
    risk = (
        "its container ends with it if it is its first process"
        if container and process.ns_pid == 1
        else "something has to start it again"
    )
    return (Now(f"kill -TERM {pid}; kill -KILL {pid} if it stays", risk, "what it has in its hands"),)
