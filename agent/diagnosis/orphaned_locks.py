"""`orphaned-lock`: a lock whose holder does not exist here, lost over fork or ended; and locks that nobody is left to
release."""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import chains, evidence, graph, remedies
from stucktrace.diagnosis.entered_again import waits_for_itself
from stucktrace.diagnosis.futexes import acquires, all_parked, alone, for_good, is_mutex, settled
from stucktrace.diagnosis.lock_words import (
    acquires_in,
    acquiring,
    assuming,
    for_ever,
    named,
    owner_line,
    since,
    sure,
    title,
    waiters,
)
from stucktrace.diagnosis.loop_locks import suspended_holder
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Evidence, Finding, Later
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait, waits
from stucktrace.facts import LockFact, LockOwner, Snapshot


def orphaned_lock(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`orphaned-lock`: the lock's holder does not exist here: lost over fork, or died.

    fork copies locks as they are, and only the thread that calls it. A lock that another thread held at that moment
    is taken in the child for ever. The same is left of a thread, or of a process that shares a lock, that ends
    while it holds it.

    Proven: the owner that the lock's memory names is no thread of this process, both readings agree, and the wait
    has no timeout. Of a lock that processes share: it is taken, and the objects of all processes that have it say
    that none holds it. Without an owner, in a forked child of one thread: the lock is a mutex, its futex is
    private, and no signal has a handler.

    Likely: without an owner, in a forked child whose only thread acquires the lock: nobody is left to release it.
    Of a process pool: all its workers wait for their queue's lock, and none of them is inside. Where something has
    to be assumed, the summary says what.

    Now: restart the process. Of a lock that processes share, the parent with all its children: one that is started
    anew gets the same lock.

    Later: start threads after the fork (`post_fork`, `worker_process_init`), use spawn or forkserver, re-create
    such locks with `os.register_at_fork`; release in `finally` or use `with`; do not kill single workers of a pool.

    Not: a condition, event, queue or semaphore, which has no holder; a plain lock in which the main thread of a
    program with signal handlers parks; a wait with a timeout.

    Wrong: an idle program may park for ever in a plain lock of its own; that is why such a case without an owner is
    `likely`.

    Try: a fork while another thread holds the lock:

        python3 -c "import os, threading, time
        lock = threading.RLock()
        threading.Thread(target=lambda: lock.acquire() and time.sleep(60)).start()
        time.sleep(0.5)
        if os.fork() == 0:
            with lock:
                pass" &
        sleep 3; stucktrace pid $(pgrep -P $!)
    """
    seen: set[int] = set()
    parked = all_parked(snapshot)
    left = bool(graph.cycles(snapshot)) or any(waits_for_itself(lock) or _is_orphaned(lock) for lock in snapshot.locks)
    for wait in waits(snapshot):
        lock = wait.lock
        if lock is not None and lock.address in seen and lock.kind in graph.EXCLUSIVE_KINDS:
            continue
        if lock is not None and _is_orphaned(lock) and for_ever(wait):
            seen.add(lock.address)
            yield _orphaned(snapshot, wait, lock)
        elif parked and not left and _nobody_can_release(snapshot, wait, budgets):
            left = True
            yield _left_behind(snapshot, wait)


def _is_orphaned(lock: LockFact) -> bool:
    owner = lock.owner
    return lock.kind in graph.EXCLUSIVE_KINDS and lock.stable and owner is not None and owner.state == "absent"


def _orphaned(snapshot: Snapshot, wait: Wait, lock: LockFact) -> Finding:
    owner = lock.owner
    assert owner is not None
    name = evidence.who(snapshot, lock.waiter_tid)
    inherited = owner.parent_thread
    story = inherited_from(snapshot, owner) if inherited else "which ended without releasing it"
    thread = lost(owner)
    confidence = LIKELY if not settled(wait.thread, 0.0) or not sure(lock) else PROVEN
    return Finding(
        "orphaned-lock",
        confidence,
        f"{name} {since(wait)} {named(lock)}{acquires_in(wait)}, held by {thread}, {story}: nobody here can release it"
        f"{assuming([lock])}",
        evidence=(
            owner_line(snapshot, lock),
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            *evidence.frame_line(wait.frames, acquiring(wait)),
        ),
        now=remedies.restart(snapshot),
        later=(after_fork(),)
        if inherited
        else (Later("release the lock in a `finally`, or use `with`", "its thread ended while it held it"),),
        tid=lock.waiter_tid,
        lock=lock.address,
        chain=chains.of(snapshot, lock.waiter_tid, f"held by {thread}, which does not exist in this process"),
        frame=acquiring(wait),
        explains=waiters(snapshot, {lock.address}, {lock.waiter_tid}),
    )


def lost(owner: LockOwner) -> str:
    """Its number too: a thread's name in the kernel is often the program's."""
    number = owner.ns_tid or owner.tid
    if owner.name:
        return f"thread {owner.name}" + (f" (tid {number})" if number else "")
    return f"thread {number}" if number else "a thread"


def inherited_from(snapshot: Snapshot, owner: LockOwner) -> str:
    parent = snapshot.parent
    which = f"its parent, pid {parent.pid}" if parent else "its parent"
    return f"a thread of {which}, which the fork did not copy"


def after_fork() -> Later:
    return Later(
        "do not fork while other threads run: start threads after the fork (post_fork, worker_process_init), or "
        "start children with spawn or forkserver; re-create such locks with os.register_at_fork",
        "fork copies the locks as they are, and only the thread that calls it",
    )


def _nobody_can_release(snapshot: Snapshot, wait: Wait, budgets: Budgets) -> bool:
    lock = wait.lock
    if lock is None or lock.shared or (lock.owner is not None and lock.owner.state != "unknown"):
        return False
    if suspended_holder(snapshot, wait) is not None or _may_be_parked(snapshot, wait):
        return False
    old_enough = wait.age_s is not None and wait.age_s >= budgets.owed_s
    # musl writes no owner into a plain mutex.
    mutex = lock.kind == "pthread-mutex" and lock.owner is None
    return old_enough and (mutex or acquires(wait) or _inside_c(snapshot, wait, lock))


def _may_be_parked(snapshot: Snapshot, wait: Wait) -> bool:
    """The main thread sleeps in a plain lock until a signal's handler releases it. A forked child has its parent's
    handlers, and its parent's locks."""
    return (
        wait.tid == snapshot.process.pid
        and snapshot.process.handles_signals
        and snapshot.process.is_python
        and not (snapshot.parent is not None and snapshot.parent.same_program)
        and not is_mutex(wait)
    )


def _inside_c(snapshot: Snapshot, wait: Wait, lock: LockFact) -> bool:
    """The one thread of a forked child, in a lock that C code takes without a frame (a file's buffer, a library's own).

    Nobody but a signal handler can post a private futex there: where handlers are, it is not told. A `SimpleQueue` is
    made for that, and is no lock.
    """
    return (
        lock.kind in ("semaphore", "lock", "pymutex")
        and not lock.note.startswith("of a ")
        and wait.reading.purpose is Purpose.UNKNOWN
        and bool(wait.frames)
        and alone(snapshot)
        and not snapshot.process.handles_signals
        and snapshot.parent is not None
        and snapshot.parent.same_program
    )


def _left_behind(snapshot: Snapshot, wait: Wait) -> Finding:
    """A lock without an owner field, and no thread that could run to release it."""
    lock, name, parent = wait.lock, evidence.who(snapshot, wait.thread.tid), snapshot.parent
    assert lock is not None
    forked = alone(snapshot) and snapshot.process.is_python and parent is not None and parent.same_program
    threads = sum(thread.state not in "ZX" for thread in snapshot.threads)
    if threads == 1:
        nobody, story = "it is the only thread here", "it was taken before and never released"
        if forked and parent:
            story = f"a thread of the parent (pid {parent.pid}) held it when this process was forked"
        lonely = "the process has one thread, the one that waits"
    else:
        nobody, story = "every thread here is parked without a timeout", "they wait for each other's locks"
        lonely = f"all {threads} threads sleep in futexes of this process, none with a timeout"
    proven = is_mutex(wait) and for_good(snapshot)
    if proven:
        lonely += ", its futex is private, and no signal has a handler: nothing here can ever run again"
    return Finding(
        "orphaned-lock" if forked else "deadlock",
        PROVEN if proven else LIKELY,
        f"{name} {since(wait)} {named(lock)}{acquires_in(wait)}, without a timeout, and nobody is left to "
        f"release it: {nobody}; most likely {story}",
        evidence=(
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            Evidence(evidence.thread_source(snapshot), "threads", threads, lonely),
            *evidence.frame_line(wait.frames, acquiring(wait)),
            Evidence("futex", "kind", lock.kind, f"{title(lock)} keeps no owner that could name its holder"),
        ),
        now=remedies.restart(snapshot),
        later=(
            after_fork()
            if forked
            else Later(
                "take locks in one order, and give acquire a timeout",
                "a lock that nobody releases is waited for without end",
            ),
        ),
        tid=wait.thread.tid,
        lock=lock.address,
        chain=chains.of(snapshot, lock.waiter_tid, "held by nobody: no thread here could release it"),
        frame=acquiring(wait),
        explains=tuple(thread.tid for thread in snapshot.threads if thread.tid != wait.thread.tid),
    )
