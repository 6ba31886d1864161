"""How many of a stuck process's siblings wait in the same wait: the same call, under the same frame, on the same peer.

One stuck worker of eight is an accident; eight of eight is a broker. Looked at from cheap to dear: one pass over the
siblings' threads, then the stacks and sockets of those inside the same call only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stucktrace.diagnosis.model import Finding
from stucktrace.errors import CollectorError, StucktraceError
from stucktrace.facts import Frame, PythonFact, Snapshot, SocketFact, ThreadFact

if TYPE_CHECKING:
    from stucktrace.collectors.kernel import Kernel

MOST = 16
"""Siblings looked at; the count is of these."""


@dataclass(frozen=True)
class Siblings:
    """How many siblings wait in the same wait, of how many that were looked at."""

    same_wait: int
    total: int


@dataclass(frozen=True)
class SameWait:
    """What makes two waits the same."""

    call: str
    frame: tuple[str, str, int] | None
    """Function, file and line; None where no Python stack was read."""
    remote: str
    """The peer's address; "" for a wait on no socket."""


def wait_of(snapshot: Snapshot, finding: Finding) -> SameWait | None:
    """The wait that the verdict is about; None when it is not about one thread's wait."""
    thread = snapshot.thread(finding.tid) if finding.tid is not None else None
    if thread is None or thread.syscall is None:
        return None
    frames = snapshot.frames(thread.tid)
    index = finding.frame if finding.frame is not None and finding.frame < len(frames) else 0
    socket = snapshot.socket(finding.fd if finding.fd is not None else thread.syscall.fd)
    return SameWait(
        thread.syscall.name, _place(frames[index]) if frames else None, socket.remote if socket is not None else ""
    )


def is_in(
    wait: SameWait, threads: Collection[ThreadFact], python: PythonFact | None, remotes: Mapping[int, str]
) -> bool:
    """Whether one of these threads is in that wait. `remotes`: fd -> the peer's address."""
    stacks = {thread.tid: thread.frames for thread in python.threads} if python else {}
    for thread in threads:
        if thread.syscall is None or thread.syscall.name != wait.call:
            continue
        if wait.frame is not None and wait.frame not in map(_place, stacks.get(thread.tid, ())):
            continue
        fds = {thread.syscall.fd, *thread.syscall.fds}
        if not wait.remote or any(fd in fds and remote == wait.remote for fd, remote in remotes.items()):
            return True
    return False


def count(snapshot: Snapshot, finding: Finding, kernel: Kernel | None) -> Siblings | None:
    """Looks at the target's siblings of the same kind; None when it has none, or the verdict is about no wait."""
    process = snapshot.process
    pids = [
        relative.pid
        for relative in snapshot.relatives
        if relative.relation == "sibling"
        and relative.alive
        and (relative.kind, relative.command) == (process.worker.kind, process.command)
    ][:MOST]
    wait = wait_of(snapshot, finding)
    if wait is None or not pids:
        return None
    from stucktrace.collectors import threads

    threads_of = threads.collect(pids, kernel)
    same = sum(
        _in_same_wait(pid, wait, threads_of[pid], kernel)
        for pid in threads_of
        if any(thread.syscall and thread.syscall.name == wait.call for thread in threads_of[pid])
    )
    return Siblings(same, len(threads_of))


def _in_same_wait(pid: int, wait: SameWait, seen: tuple[ThreadFact, ...], kernel: Kernel | None) -> bool:
    from stucktrace.collectors import openfiles, python, sockets
    from stucktrace.collectors.process import read_process

    try:
        stacks = None
        if wait.frame is not None:
            stacks = python.collect(read_process(pid), seen, native=False, show_locals=False)
        facts: tuple[SocketFact, ...] = ()
        if wait.remote:
            facts = sockets.collect((pid,), {pid: openfiles.read_fds(pid)}, kernel).get(pid, ())
    except (CollectorError, StucktraceError):
        return False
    return is_in(wait, seen, stacks, {fd: fact.remote for fact in facts for fd in fact.fds})


def _place(frame: Frame) -> tuple[str, str, int]:
    return frame.function, frame.file, frame.line
