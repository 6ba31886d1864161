"""A connection that was opened before the fork and that several workers hold. Pure.

Two processes that write on one connection mix their data, and each reads answers meant for the other. That a worker
holds it does not prove that it uses it (a pool may have been given up after the fork), so without two at once inside a
call on it this is a warning. Celery's main process keeps its own broker connections, and a child that it starts later
inherits them without knowing: those are not meant. A listening socket is shared on purpose.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from stucktrace.diagnosis.words import count, listing
from stucktrace.facts import MASTERS, WORKERS, SocketFact
from stucktrace.facts.audited import Audited
from stucktrace.facts.settings import ERROR, OK, WARN, Check

_CELERY = ("celery-main", "celery-child")
_FIX = {
    "gunicorn": "open it after the fork: in post_fork(), or at the first request; without --preload each worker has "
    "its own. SQLAlchemy: engine.dispose(close=False) in post_fork()",
    "celery": "open it in the child: in a handler of worker_process_init, or when a task first needs it",
}


def checks(family: Sequence[Audited]) -> Iterator[Check]:
    """`inherited-connection`, `listening-socket`: a connection from before the fork is held by several workers.

    Two processes that write on one connection mix their data, and each reads answers that were meant for the other.

    Error: two of its holders are inside a call on it now.

    Warn: several workers hold it, or a gunicorn master keeps it for its only worker's successor. That they use it
    is not proven: a pool may have been given up after the fork.

    Later: open it after the fork: gunicorn in `post_fork()` or at the first request (SQLAlchemy:
    `engine.dispose(close=False)` there), Celery in a handler of `worker_process_init`.

    Not: a listening socket, which workers share as they should; the broker connections of Celery's main process,
    which a child that is started later inherits and leaves alone.

    Wrong: a connection that every worker replaced after the fork while its old socket is still open.

    Try: `gunicorn --preload` with an application that connects at import, then `stucktrace audit MASTER`.
    """
    if not any(member.process.worker.kind in WORKERS for member in family):
        return
    by_inode: defaultdict[int, list[tuple[Audited, SocketFact]]] = defaultdict(list)
    for member in family:
        for socket in member.sockets:
            by_inode[socket.inode].append((member, socket))
    listening = [held for held in by_inode.values() if held[0][1].state == "LISTEN"]
    shared = [found for held in by_inode.values() if (found := _shared(family, held)) is not None]
    yield from shared
    if not shared:
        yield Check("inherited-connection", OK, "no connection from before the fork is shared by workers")
    for held in listening:
        workers = [member for member, _ in held if member.process.worker.kind in WORKERS]
        if len(workers) > 1:
            socket = held[0][1]
            yield Check("listening-socket", OK, f"{count(len(workers), 'worker')} share {socket.local}, as they should")


def _shared(family: Sequence[Audited], held: Sequence[tuple[Audited, SocketFact]]) -> Check | None:
    first = held[0][1]
    if first.state in ("LISTEN", "CLOSE", "TIME_WAIT", "") or first.direction == "in":
        return None
    if any(member.process.worker.kind in _CELERY for member, _ in held) and not _from_the_start(family, held):
        return None
    known = {member.process.pid for member in family}
    holders = {member.process.pid for member, _ in held} | {
        pid for _, socket in held for pid in socket.shared_with if pid in known
    }
    workers = sorted(
        member.process.pid
        for member in family
        if member.process.pid in holders and member.process.worker.kind in WORKERS
    )
    only = family[0].process
    siblings = sorted(set(first.shared_with) & family[0].siblings)
    alone = len(family) == 1 and only.worker.kind in WORKERS
    masters = [pid for pid in holders - set(workers) if any(_is_master(member, pid) for member in family)]
    if alone and only.worker.kind == "gunicorn-worker":
        masters = [pid for pid in first.shared_with if pid == only.ppid]
    # A gunicorn master keeps it for its only worker's successor, which goes on where that one stopped. Celery's main
    # process has connections of its own that a child which replaces another inherits, and leaves alone.
    all_workers = sum(member.process.worker.kind in WORKERS for member in family) + len(family[0].siblings)
    kept = only.worker.kind.startswith("gunicorn-") and bool(masters) and len(workers) == all_workers == 1
    if len(workers) < 2 and not kept and not (alone and siblings):
        return None
    others = [*sorted(masters), *workers, *(siblings if alone else ())]
    using = sorted({pid for _, socket in held for pid in socket.used_by} & set(others))
    program = family[0].process.worker.kind.partition("-")[0]
    return Check(
        "inherited-connection",
        ERROR if len(using) > 1 else WARN,
        f"the connection to {first.remote} was opened before the fork, and is one and the same in "
        f"{listing(map(str, others))}",
        evidence=(
            f"socket inode {first.inode}",
            *((f"{listing(map(str, using))} are inside a call on it now",) if len(using) > 1 else ()),
        ),
        fix=_FIX.get(program, "open it after the fork"),
    )


def _from_the_start(family: Sequence[Audited], held: Sequence[tuple[Audited, SocketFact]]) -> bool:
    """A Celery child has it that was started before the main process connected to the broker for itself, which is what
    its event loop watches: one that was started later has all that the main process had by then."""
    if any(first.inode in member.polled for member, first in held):
        return False
    polled = frozenset(inode for member in family for inode in member.polled)
    connected = {each.inode for member in family for each in member.sockets if each.state == "ESTABLISHED"}
    if family[0].process.worker.kind == "celery-main" and not polled & connected:
        return False
    children = [member for member, _ in held if member.process.worker.kind == "celery-child"]
    return any(member.polled and not polled & {each.inode for each in member.sockets} for member in children)


def _is_master(member: Audited, pid: int) -> bool:
    return member.process.pid == pid and member.process.worker.kind in MASTERS
