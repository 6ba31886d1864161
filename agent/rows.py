"""A row of `stucktrace ps`: a process, what its main thread is in, its work in hand and its verdict. Pure.

From a glance (threads, sockets and fds) or from a whole inspection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stucktrace.diagnosis.model import HEALTHY, STUCK
from stucktrace.diagnosis.waits import POLL_CALLS, RECEIVE_CALLS, Wait, waits
from stucktrace.facts import MASTERS, ProcessFact, Snapshot, ThreadFact, WorkerFact, WorkFact

if TYPE_CHECKING:
    from stucktrace.inspection import Inspection

_POOL = "/concurrent/futures/thread.py"

Place = tuple[str, str]
"""(function, file) of a frame."""


@dataclass(frozen=True)
class Inside:
    """What a thread is inside."""

    tid: int
    thread: str
    state: str
    """The kernel's letter."""
    call: str
    """Name of the system call; "" on the CPU, or where it could not be read."""
    fd: int | None
    on: str
    """The peer's address, or what it waits on: "listening", "pipe", "lock", a path ...; "" where that is not known."""
    since_s: float | None
    """For how long, over any number of short polls where that is known."""


@dataclass(frozen=True)
class Verdict:
    verdict_class: str
    code: str
    confidence: str
    summary: str
    tid: int | None = None


IDLE = Verdict(HEALTHY, "idle", "likely", "stands in the wait that is its role's own between two requests or tasks")


@dataclass(frozen=True)
class Row:
    """One process."""

    process: ProcessFact
    master: int | None = None
    """The pid of its master, when that is in the table."""
    threads: int = 0
    inside: Inside | None = None
    """Its main thread; of a stuck process the thread that the verdict is about. None where nothing could be read."""
    work: tuple[WorkFact, ...] = ()
    """What its threads serve, the longest first."""
    verdict: Verdict | None = None
    because: str = ""
    """Why there is no verdict."""

    @property
    def pid(self) -> int:
        return self.process.pid


def inspected(answer: Inspection) -> Row:
    snapshot, finding = answer.snapshot, answer.diagnosis.verdict
    about = finding.tid if finding.verdict_class == STUCK and finding.tid is not None else snapshot.process.pid
    return Row(
        snapshot.process,
        threads=len(snapshot.threads),
        inside=inside(snapshot, about) or inside(snapshot, snapshot.process.pid),
        work=tuple(sorted(snapshot.work, key=lambda work: -(work.age_s or 0.0))),
        verdict=Verdict(finding.verdict_class, finding.code, finding.confidence, finding.summary, finding.tid),
    )


def inside(snapshot: Snapshot, tid: int) -> Inside | None:
    """What this thread is inside; None when there is no such thread."""
    thread = snapshot.thread(tid)
    if thread is None:
        return None
    wait = next((wait for wait in waits(snapshot) if wait.tid == tid), None)
    name = (python.name if (python := snapshot.python_thread(tid)) else "") or thread.name
    if wait is None or thread.state == "R":
        return Inside(tid, name, thread.state, "", None, "", None)
    return Inside(tid, name, thread.state, wait.call, wait.fd, _on(snapshot, wait, thread), wait.age_s)


def _on(snapshot: Snapshot, wait: Wait, thread: ThreadFact) -> str:
    if wait.socket is not None and wait.socket.state != "LISTEN":
        return wait.socket.remote or wait.socket.protocol
    if any(_listens(snapshot, fd) for fd in wait.fds):
        return "listening"
    if wait.pipe is not None:
        return "pipe"
    if wait.call.startswith("futex"):
        return wait.lock.kind if wait.lock is not None and wait.lock.kind != "unknown" else "lock"
    link = snapshot.fds.get(wait.fd, "") if wait.fd is not None else ""
    if link.startswith("/"):
        return link
    return link.partition(":")[0] if link.startswith(("pipe:", "socket:")) else ""


def ordered(rows: Collection[Row]) -> tuple[Row, ...]:
    """The masters by pid, each with its workers behind it; then all others."""
    there = {row.pid: row.process for row in rows}

    def place(row: Row) -> tuple[bool, int, bool, int]:
        head = row.master or row.pid
        return there[head].worker.kind not in MASTERS, head, row.master is not None, row.pid

    return tuple(sorted((replace(row, master=_master(row.process, there)) for row in rows), key=place))


def _master(process: ProcessFact, there: Mapping[int, ProcessFact]) -> int | None:
    above = there.get(process.ppid)
    is_child = above is not None and above.worker.kind in MASTERS and process.worker.kind not in MASTERS
    return process.ppid if is_child else None


def at_rest(
    snapshot: Snapshot, held_by_parent: Collection[str], innermost: Callable[[], Sequence[Place] | None] = lambda: None
) -> bool:
    """A worker stands in its role's own idle wait, and nothing else in it could hang.

    The only thread of a sync worker of gunicorn waits for a connection on a listening socket, its heartbeat in time; so
    does the main one of a threaded worker, all others of which wait for work in their pool (`innermost`: the innermost
    Python frame of each thread, asked for only then). The only thread of a child of Celery's pool reads from a pipe
    that its main process holds too (`held_by_parent`: what that one's fds link to).
    """
    process, thread = snapshot.process, snapshot.main_thread
    others = [one for one in snapshot.threads if one is not thread]
    if thread is None or thread.state != "S" or thread.syscall is None or process.frozen:
        return False
    wait = next((wait for wait in waits(snapshot) if wait.tid == thread.tid), None)
    call, fds = thread.syscall, wait.fds if wait is not None else ()
    if process.worker.kind == "gunicorn-worker":
        accepts = call.name in POLL_CALLS or call.name.startswith("accept")
        # In the loop of any other class requests wait side by side, and the kernel shows only the loop.
        if process.worker.worker_class not in ("sync", "gthread") or not accepts or not _beats(process.worker):
            return False
        if not any(_listens(snapshot, fd) for fd in fds):
            return False
        return not others or (all(map(_parked, others)) and _in_the_pool(innermost(), len(others)))
    if process.worker.kind == "celery-child" and not others and call.name in RECEIVE_CALLS | POLL_CALLS:
        links = [snapshot.fds.get(fd, "") for fd in fds]
        return bool(links) and all(link.startswith("pipe:") and link in held_by_parent for link in links)
    return False


def _parked(thread: ThreadFact) -> bool:
    call = thread.syscall
    return thread.state == "S" and call is not None and call.name == "futex" and call.endless is True


def _in_the_pool(innermost: Sequence[Place] | None, threads: int) -> bool:
    """All but the main thread stand where a ThreadPoolExecutor takes its next piece of work."""
    if innermost is None or len(innermost) != threads + 1:
        return False
    return sum(function == "_worker" and file.endswith(_POOL) for function, file in innermost) == threads


def _beats(worker: WorkerFact) -> bool:
    """An idle worker's next heartbeat comes after half of its timeout."""
    return not worker.timeout_s or worker.last_notify_s is None or worker.last_notify_s < worker.timeout_s / 2 + 1.0


def _listens(snapshot: Snapshot, fd: int) -> bool:
    socket = snapshot.socket(fd)
    return socket is not None and socket.state == "LISTEN"


def doing(snapshot: Snapshot) -> tuple[object, ...] | None:
    """The same as long as every thread is in the same call on the same thing; None where one runs."""
    if any(thread.state == "R" or thread.syscall is None for thread in snapshot.threads):
        return None
    return tuple(
        (thread.tid, thread.state, thread.syscall.name, thread.syscall.args[:1])
        for thread in snapshot.threads
        if thread.syscall is not None
    )
