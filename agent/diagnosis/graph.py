"""Who waits for whom, from what each thread is inside: the edges of the report, and cycles among lock owners.

Sources: system call arguments, LockFact.owner, SocketFact.peer, PipeFact holders, FileLockFact holders. A thread waits
for one thing at a time here; poll sets with several fds and epoll sets have no single one, so they have no edge.
Nodes are "thread:TID", "lock:0xADDRESS", "file:PATH", "socket:INODE", "pipe:INODE", "peer:ADDRESS", "process:PID", and
"absent:TID" for a holder that is no thread of this process, lost over fork or ended ("absent:" where it has no number),
"pool:0xADDRESS", and "lock:PID/0xADDRESS" for a lock as another process has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from stucktrace.diagnosis.model import Edge
from stucktrace.facts import FileLockFact, LockFact, LockOwner, PipeFact, Snapshot, SocketFact, ThreadFact

FUTEX_CALLS = frozenset({"futex", "futex_wait", "futex_waitv"})
SLEEP_CALLS = frozenset({"clock_nanosleep", "nanosleep", "pause"})
CHILD_CALLS = frozenset({"wait4", "waitid", "waitpid"})
FILE_LOCK_CALLS = frozenset({"flock", "fcntl", "fcntl64"})

EXCLUSIVE_KINDS = frozenset({"pthread-mutex", "robust-mutex", "pi-mutex", "rwlock", "lock", "rlock", "pymutex"})
"""Kinds whose owner is the one thread that has to release it. Whoever waits for a condition, a semaphore or a join
waits for no owner: a word beside such a futex can read like one (an idle multiprocessing child shows "owner 128")."""

PROCESS_LOCKS = frozenset({"process-lock", "process-rlock"})
"""Of multiprocessing and billiard: held by a thread of any process; `process_locks` has their rules."""
SHARED_SEMAPHORES = PROCESS_LOCKS | {"process-semaphore", "shared-semaphore"}


def waits_for(snapshot: Snapshot) -> Mapping[int, tuple[str, str]]:
    """tid -> (kind, ref) for the report: socket and pipe by inode, lock by address or path, child by pid."""
    return {thread.tid: _waits_for(snapshot, thread) for thread in snapshot.threads}


def _waits_for(snapshot: Snapshot, thread: ThreadFact) -> tuple[str, str]:
    target = _target(snapshot, thread)
    if isinstance(target, LockFact):
        return "lock", hex(target.address)
    if isinstance(target, FileLockFact):
        return "lock", target.path
    if isinstance(target, SocketFact):
        return "socket", str(target.inode)
    if isinstance(target, PipeFact):
        return "pipe", str(target.inode)
    call = thread.syscall
    if call is None:
        return "none", ""
    if call.name in FUTEX_CALLS and call.args:
        return "lock", hex(call.args[0])
    if call.name in CHILD_CALLS:
        child = waited_child(thread)
        return "child", "" if child is None else str(child)
    return ("timer", "") if call.name in SLEEP_CALLS else ("none", "")


def waited_child(thread: ThreadFact) -> int | None:
    """The one child that a wait4 or waitid is for, in the target's own pid words; None: any child, or no such call."""
    call = thread.syscall
    if call is None or call.name not in CHILD_CALLS or not call.args:
        return None
    argument = call.args[1] if call.name == "waitid" and len(call.args) > 1 else call.args[0]
    if call.name == "waitid" and call.args[0] != 1:  # P_PID
        return None
    pid = argument & 0xFFFF_FFFF
    return pid if 0 < pid < 0x8000_0000 else None


def _target(snapshot: Snapshot, thread: ThreadFact) -> LockFact | FileLockFact | SocketFact | PipeFact | None:
    call = thread.syscall
    if call is None:
        return None
    if call.name in FUTEX_CALLS:
        return snapshot.lock(thread.tid)
    if call.name in FILE_LOCK_CALLS:
        return next((wait for wait in snapshot.file_locks if wait.waiter_tid == thread.tid), None)
    return snapshot.socket(call.fd) or snapshot.pipe(call.fd)


def edges(snapshot: Snapshot) -> tuple[Edge, ...]:
    """Every wait that has a name, and behind it who would end it."""
    found: dict[Edge, None] = {}
    pooled = {each.tid for pool in snapshot.pools for each in pool.awaited}
    for thread in snapshot.threads:
        # Who waits for a result sleeps in a lock of its own, which nobody holds.
        for edge in _pool_edges(snapshot, thread.tid) if thread.tid in pooled else _edges(snapshot, thread):
            found[edge] = None
    return tuple(found)


def _pool_edges(snapshot: Snapshot, tid: int) -> Iterator[Edge]:
    for pool in snapshot.pools:
        node, connections = f"pool:{pool.address:#x}", pool.kind == "connections"
        for each in pool.awaited:
            if each.tid != tid:
                continue
            what = "a connection" if connections else f"a result, {each.state}"
            yield Edge(f"thread:{tid}", node, f"waits for {what}")
            for member in pool.members:
                if each.runs_on is not None and member.tid != each.runs_on:
                    continue
                here = member.tid is not None and snapshot.thread(member.tid) is not None
                target = f"thread:{member.tid}" if here else f"process:{member.pid}"
                yield Edge(node, target, "has a connection" if connections else "runs it" if each.runs_on else "member")


def _edges(snapshot: Snapshot, thread: ThreadFact) -> Iterator[Edge]:
    node, target = f"thread:{thread.tid}", _target(snapshot, thread)
    call = thread.syscall.name if thread.syscall else ""
    if isinstance(target, LockFact):
        lock = f"lock:{target.address:#x}"
        yield Edge(node, lock, call)
        if (holder := holder_node(snapshot, target)) is not None:
            yield Edge(lock, holder, _relation(snapshot, target))
        for step, after in pairwise(target.beyond):
            theirs = f"lock:{step.pid}/{step.lock or 0:#x}"
            yield Edge(f"process:{step.pid}", theirs, "futex")
            here = snapshot.thread(after.tid) is not None
            yield Edge(theirs, f"thread:{after.tid}" if here else f"process:{after.pid}", "held by")
    elif isinstance(target, FileLockFact):
        file = f"file:{target.path}"
        yield Edge(node, file, call)
        for pid in target.holders:
            yield Edge(file, f"process:{pid}", "held by")
    elif isinstance(target, SocketFact):
        socket = f"socket:{target.inode}"
        yield Edge(node, socket, call)
        if target.peer and target.peer.pids:
            for pid in target.peer.pids:
                yield Edge(socket, f"process:{pid}", "peer")
        elif target.remote:
            yield Edge(socket, f"peer:{target.remote}", target.state)
    elif isinstance(target, PipeFact):
        pipe = f"pipe:{target.inode}"
        yield Edge(node, pipe, call)
        writing = thread.syscall is not None and thread.syscall.waits_to == "write"
        for pid in target.readers if writing else target.writers:
            yield Edge(pipe, f"process:{pid}", "reader" if writing else "writer")
    elif (child := waited_child(thread)) is not None:
        yield Edge(node, f"process:{child}", call)
    elif call in FUTEX_CALLS and thread.syscall and thread.syscall.args:
        yield Edge(node, f"lock:{thread.syscall.args[0]:#x}", call)


def holder_node(snapshot: Snapshot, lock: LockFact) -> str | None:
    """Who is behind this lock; None: nobody is named."""
    owner = lock.owner
    if owner is None:
        return None
    if owner.state == "self":
        return f"thread:{lock.waiter_tid}"
    if owner.state == "absent":
        return f"absent:{owner.ns_tid or owner.tid or ''}"
    elsewhere = owner.pid not in (None, snapshot.process.pid) and snapshot.thread(owner.tid or 0) is None
    if elsewhere:
        return f"process:{owner.pid}"
    return None if owner.tid is None else f"thread:{owner.tid}"


def _relation(snapshot: Snapshot, lock: LockFact) -> str:
    """What the thread behind a futex is to it."""
    if lock.kind == "join":
        return "until it ends"
    owner = lock.owner
    if owner is None or lock.kind not in EXCLUSIVE_KINDS | PROCESS_LOCKS:
        return "held by" if owner else ""
    assumed = ", most likely" if owner.assumes else ""
    by = f" thread {owner.tid}" if (holder_node(snapshot, lock) or "").startswith("process:") and owner.tid else ""
    return f"held by{by}, {owner.state}{assumed}"


def owned(lock: LockFact) -> bool:
    """Its kind has one owner, and the owner was read as a thread."""
    return lock.kind in EXCLUSIVE_KINDS and lock.owner is not None and lock.owner.tid is not None


ENDS = frozenset({"join", "result"})
"""Kinds of what is no lock: the end of a thread, the result of a task that a thread works on."""


def links(snapshot: Snapshot) -> Mapping[int, LockFact]:
    """tid -> the lock that it waits for and whose owner is known, or the thread whose end or result it waits for.

    A result is told as a lock of the thread that works on it: it gives way when that one has done with it.
    """
    cached = snapshot.__dict__.get("_links")
    if cached is None:
        cached = {
            each.tid: LockFact(each.result, "result", each.tid, "", owner=LockOwner("alive", each.runs_on))
            for pool in snapshot.pools
            for each in pool.awaited
            if pool.kind == "threads" and each.state == "running" and each.of == 1 and each.runs_on is not None
        }
        cached |= {lock.waiter_tid: lock for lock in snapshot.locks if owned(lock) or _joins(lock)}
        snapshot.__dict__["_links"] = cached
    return dict(cached)


def _joins(lock: LockFact) -> bool:
    return lock.kind == "join" and lock.owner is not None and lock.owner.tid is not None


def cycles(snapshot: Snapshot) -> tuple[tuple[LockFact, ...], ...]:
    """Circles of two or more threads, each of which waits for a lock of the next one, or for its end or result."""
    waiting = links(snapshot)
    found: list[tuple[LockFact, ...]] = []
    done: set[int] = set()
    for start in waiting:
        path: dict[int, None] = {}
        tid = start
        while tid in waiting and tid not in done and tid not in path:
            path[tid] = None
            owner = waiting[tid].owner
            assert owner is not None and owner.tid is not None
            tid = owner.tid
        if tid in path:
            members = list(path)
            circle = members[members.index(tid) :]
            if len(circle) > 1:
                found.append(tuple(waiting[member] for member in circle))
        done.update(path)
    return tuple(found)
