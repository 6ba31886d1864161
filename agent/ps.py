"""The rows of `stucktrace ps`: the node's workers, what each one's main thread is in and since when, and a verdict.

A glance first, at all of them in one pass over the kernel. It is enough for a worker that stands in its role's own idle
wait, which the kernel alone shows. Only the others are inspected as `stucktrace pid` does, which costs some 20 ms of
CPU time each.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stucktrace.diagnosis.model import HEALTHY, STUCK
from stucktrace.diagnosis.waits import POLL_CALLS, RECEIVE_CALLS, Wait, waits
from stucktrace.errors import CannotInspect, CollectorError, NoSuchProcess, StucktraceError
from stucktrace.facts import ProcessFact, Seen, Snapshot, ThreadFact, WorkerFact, WorkFact
from stucktrace.run import Earlier, Options

if TYPE_CHECKING:
    from stucktrace.collectors.kernel import Opened
    from stucktrace.inspection import Inspection

WORKERS = frozenset({"gunicorn-master", "gunicorn-worker", "celery-main", "celery-child", "celery-beat"})
MASTERS = ("gunicorn-master", "celery-main")
OF_A_KIND = frozenset({"gunicorn-worker", "celery-child"})
"""All of one master have the same class and limits: they are read once."""


@dataclass(frozen=True)
class Selection:
    """Which processes are shown beside gunicorn's and Celery's."""

    match: re.Pattern[str] | None = None
    """Python processes whose command line it is found in."""
    everything: bool = False
    """Every Python process."""


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


class Table:
    """Looks at the node, again and again when wanted: stacks of threads that have not run since are not read anew."""

    def __init__(self, selection: Selection, options: Options, opened: Callable[[], Opened], *, verdicts: bool) -> None:
        self._selection = selection
        self._options = replace(options, children=False, siblings=False)
        self._opened = opened
        self._verdicts = verdicts
        self._stacks: dict[int, tuple[int, Earlier]] = {}
        """pid -> (start time, its stacks)."""
        self.blind: tuple[str, str] | None = None
        """Where of no process it could be read what it is inside: why, and the remedy."""

    def look(self) -> Iterator[tuple[Row, ...]]:
        """All rows, at first without the verdicts that take their time; the last ones are complete."""
        from stucktrace.inspection import inspect_each

        rows, unsettled = self._glance()
        yield ordered(rows.values())
        if not self._verdicts or not unsettled:
            return
        known = {pid: stacks for pid, (start, stacks) in self._stacks.items() if _same(rows.get(pid), start)}
        self._stacks = {}
        for pid, answer in inspect_each(unsettled, self._options, self._opened, known):
            if isinstance(answer, NoSuchProcess):
                del rows[pid]
            elif isinstance(answer, StucktraceError):
                rows[pid] = replace(rows[pid], because=answer.message)
            else:
                rows[pid] = _inspected(answer)
                if answer.snapshot.python is not None:
                    stacks = Earlier(answer.snapshot.process, answer.snapshot.threads, answer.snapshot.python)
                    self._stacks[pid] = answer.snapshot.process.start_time, stacks
        yield ordered(rows.values())

    def _glance(self) -> tuple[dict[int, Row], list[int]]:
        """Every row, and the pids whose wait is not explained by the kernel alone."""
        from stucktrace.collectors import openfiles, sockets, threads

        processes = {process.pid: process for process in find(self._selection)}
        kernel = self._opened().kernel
        seen = threads.look(tuple(processes), kernel)
        files = {}
        for pid in processes:
            with suppress(CollectorError):
                files[pid] = openfiles.read_fds(pid)
        sockets_of = sockets.collect(tuple(files), files, kernel)
        rows, unsettled = {}, []
        for pid, process in processes.items():
            if not seen.facts.get(pid):
                continue
            snapshot = Snapshot(
                time.time(),
                replace(process, fd_count=len(files[pid].links) if pid in files else None),
                threads=seen.facts[pid],
                sockets=sockets_of.get(pid, ()),
                fds=files[pid].links if pid in files else {},
                seen=Seen("core" if kernel else "none"),
            )
            row = Row(snapshot.process, threads=len(snapshot.threads), inside=inside(snapshot, pid))
            above = files.get(process.ppid)
            if at_rest(snapshot, above.links.values() if above else ()):
                row = replace(row, verdict=IDLE)
            else:
                unsettled.append(pid)
            rows[pid] = row
        readable = any(row.inside and (row.inside.call or row.inside.state == "R") for row in rows.values())
        lacks = next(iter((*seen.missing, *self._opened().missing)), None)
        self.blind = (f"{lacks.what}: {lacks.because}", lacks.remedy) if rows and lacks and not readable else None
        return rows, unsettled


def _same(row: Row | None, start_time: int) -> bool:
    return row is not None and row.process.start_time == start_time


def find(selection: Selection) -> Iterator[ProcessFact]:
    """The processes to show, with what costs little: of the workers of one master the limits are read once."""
    from stucktrace.collectors import candidates, cgroups, containers, heartbeat, procfs, workers
    from stucktrace.collectors.process import read_process

    known: dict[tuple[int, str], WorkerFact] = {}
    for pid in procfs.all_pids():
        with suppress(CannotInspect):
            argv = procfs.read_argv(pid)
            if not argv or pid == os.getpid():
                continue
            stat = procfs.read_stat(pid)
            maybe_python = "py" in procfs.read_link(pid, "exe").rpartition("/")[2]
            kind = workers.kind_of(workers.Start(pid, stat.ppid, argv), is_python=maybe_python)
            if stat.ending or not (kind in WORKERS or (_wanted(selection, argv) and candidates.is_python(pid))):
                continue
            worker = known.get((stat.ppid, kind))
            if worker is None:
                process = read_process(pid)
                if kind in OF_A_KIND:
                    known[stat.ppid, kind] = process.worker
                yield process
                continue
            if kind == "gunicorn-worker":
                worker = replace(worker, last_notify_s=heartbeat.last_notify_s(pid, stat.ppid))
            paths = cgroups.read_paths(pid)
            yield ProcessFact(
                pid,
                pid,
                stat.ppid,
                stat.start_time,
                stat.command,
                argv,
                stat.state,
                age_s=stat.age_s,
                rss_bytes=stat.rss_bytes,
                is_python=True,
                worker=worker,
                container=containers.read_container(pid, paths),
                frozen=cgroups.frozen(pid, paths),
            )


def _wanted(selection: Selection, argv: tuple[str, ...]) -> bool:
    return selection.everything or (selection.match is not None and selection.match.search(" ".join(argv)) is not None)


def at_rest(snapshot: Snapshot, held_by_parent: Collection[str]) -> bool:
    """A worker of one thread stands in its role's own idle wait. Nothing else in it could hang.

    A sync worker of gunicorn waits for a connection on a listening socket, its heartbeat in time; a child of Celery's
    pool reads from a pipe that its main process holds too (`held_by_parent`: what that one's fds link to).
    """
    process, (thread, *more) = snapshot.process, snapshot.threads
    call = thread.syscall
    if more or thread.state != "S" or call is None or process.frozen:
        return False
    fds = call.fds or ((call.fd,) if call.fd is not None else ())
    if process.worker.kind == "gunicorn-worker":
        accepts = call.name in POLL_CALLS or call.name.startswith("accept")
        return accepts and _beats(process.worker) and any(_listens(snapshot, fd) for fd in fds)
    if process.worker.kind == "celery-child" and call.name in RECEIVE_CALLS | POLL_CALLS:
        links = [snapshot.fds.get(fd, "") for fd in fds]
        return bool(links) and all(link.startswith("pipe:") and link in held_by_parent for link in links)
    return False


def _beats(worker: WorkerFact) -> bool:
    """An idle worker's next heartbeat comes after half of its timeout."""
    return not worker.timeout_s or worker.last_notify_s is None or worker.last_notify_s < worker.timeout_s / 2 + 1.0


def _listens(snapshot: Snapshot, fd: int) -> bool:
    socket = snapshot.socket(fd)
    return socket is not None and socket.state == "LISTEN"


def _inspected(answer: Inspection) -> Row:
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
