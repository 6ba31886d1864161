"""Locks that processes share (multiprocessing, billiard): `orphaned-lock`, `deadlock` across processes, `lock-held`.

Who holds such a lock is read in the memory of each process that has it (collectors/semlocks.py). The wait's purpose
does not matter here: whoever waits for a task takes its turn at the queue's lock, and is idle as long as the one before
it lives. A semaphore has no holder, and is never told of.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import evidence, graph, remedies
from stucktrace.diagnosis.futexes import alone, settled, stays
from stucktrace.diagnosis.lock_words import since, title, waiters
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Evidence, Finding, Later, Now
from stucktrace.diagnosis.waits import Wait, waits
from stucktrace.diagnosis.words import count, listing, process
from stucktrace.facts import LockFact, LockOwner, OwnerElsewhere, Snapshot

SOURCE = "process_vm_readv"
_KILLED = Later(
    "do not kill single workers of a pool or readers of a queue (SIGKILL, the OOM killer); limit a task's time inside "
    "the worker, or use a pool that gives each worker a pipe of its own (concurrent.futures, billiard)",
    "the semaphore in shared memory stays taken when its holder is killed, and nobody else may release it",
)


def process_lock(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """Says `orphaned-lock` where nobody holds the taken lock: releasing is the holder's own business in a `with` block.

    And `deadlock` for a circle of owners, every owner and every wait read twice, or for the only thread of the only
    process in its own lock; `lock-held` where the owner's process is stopped.
    """
    told: set[int] = set()
    for wait in waits(snapshot):
        lock = wait.lock
        if lock is None or lock.kind not in graph.PROCESS_LOCKS or not lock.stable or not stays(wait):
            continue
        if lock.owner is None or lock.address in told:
            continue
        for finding in _findings(snapshot, budgets, wait, lock, lock.owner):
            told.add(lock.address)
            yield finding
    for address in dict.fromkeys(lock.address for lock in snapshot.child_locks):
        yield _of_children(snapshot, [lock for lock in snapshot.child_locks if lock.address == address])


def _of_children(snapshot: Snapshot, locks: list[LockFact]) -> Finding:
    """The parent of those who wait: it goes on, but what it hands them is never done."""
    lock, pids = locks[0], [lock.waiter_tid for lock in locks]
    waiting = f"{count(len(pids), 'child', 'children')} ({listing([process(pid) for pid in pids])})"
    assumes = lock.owner.assumes if lock.owner else ""
    assumed = f", provided that {assumes}" if assumes else ""
    return Finding(
        "orphaned-lock",
        LIKELY if assumes else PROVEN,
        f"{waiting} {'waits' if len(pids) == 1 else 'wait'} for {title(lock)}, held by a process that is gone: it "
        f"ended without releasing it, and they never get it{assumed}",
        evidence=(_taken_line(lock),),
        now=remedies.restart(snapshot),
        later=(_KILLED,),
        lock=lock.address,
        chain=(waiting, title(lock), "a process that is gone"),
    )


def _taken_line(lock: LockFact) -> Evidence:
    text = f"{title(lock)} in {lock.mapping} is taken, and each process that shares it was read: none holds it"
    return Evidence(SOURCE, "owner", None, text)


def _findings(snapshot: Snapshot, budgets: Budgets, wait: Wait, lock: LockFact, owner: LockOwner) -> Iterator[Finding]:
    if owner.state == "absent":
        yield _orphaned(snapshot, wait, lock, owner)
    elif owner.state == "self":
        yield _with_itself(snapshot, wait, lock)
    elif owner.state == "alive" and any(step.tid == wait.tid for step in lock.beyond):
        yield _circle(snapshot, wait, lock)
    elif owner.state == "alive" and lock.beyond and wait.age_s is not None and wait.age_s >= budgets.owed_s:
        stopped = next((step for step in lock.beyond if step.state in "Tt"), None)
        if stopped is not None:
            yield _stopped(snapshot, wait, lock, stopped)


def _orphaned(snapshot: Snapshot, wait: Wait, lock: LockFact, owner: LockOwner) -> Finding:
    name = evidence.who(snapshot, wait.tid)
    assumed = f", provided that {owner.assumes}" if owner.assumes else ""
    return Finding(
        "orphaned-lock",
        PROVEN if not owner.assumes and settled(wait.thread) else LIKELY,
        f"{name} {since(wait)} {title(lock)}, held by a process that is gone: it ended without releasing it, and "
        f"nobody can any more{assumed}",
        evidence=(
            _taken_line(lock),
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            *evidence.frame_line(wait.frames, wait.reading.frame),
        ),
        now=_restart_family(snapshot),
        later=(_KILLED,),
        tid=wait.tid,
        lock=lock.address,
        chain=(name, evidence.call_text(wait.thread), title(lock), "a process that is gone"),
        frame=wait.reading.frame,
        explains=waiters(snapshot, {lock.address}, {wait.tid}),
    )


def _restart_family(snapshot: Snapshot) -> tuple[Now, ...]:
    """Whoever is started anew by the same parent inherits the same lock."""
    parent = snapshot.parent
    if parent is None or not parent.same_program:
        return remedies.restart(snapshot)
    return (
        Now(
            f"restart the parent, pid {parent.pid}, with all its children",
            "a child that is started anew gets the same lock, and waits for it too",
            "what its children have in their hands",
        ),
    )


def _with_itself(snapshot: Snapshot, wait: Wait, lock: LockFact) -> Finding:
    name = evidence.who(snapshot, wait.tid)
    # Any thread may release a Lock, and so may a handler.
    free = (lock.owner is None or not lock.owner.assumes) and alone(snapshot) and not snapshot.process.handles_signals
    return Finding(
        "deadlock",
        PROVEN if free and settled(wait.thread) else LIKELY,
        f"{name} {since(wait)} {title(lock)}, which it holds itself",
        evidence=(
            _owner_line(snapshot, lock),
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            *evidence.frame_line(wait.frames, wait.reading.frame),
        ),
        now=remedies.restart(snapshot),
        later=(
            Later("acquire the lock once in a call chain, or use an RLock", "a Lock does not let its owner in again"),
        ),
        tid=wait.tid,
        lock=lock.address,
        chain=(name, evidence.call_text(wait.thread), title(lock), f"held by {name}"),
        frame=wait.reading.frame,
        explains=waiters(snapshot, {lock.address}, {wait.tid}),
    )


def _circle(snapshot: Snapshot, wait: Wait, lock: LockFact) -> Finding:
    name = evidence.who(snapshot, wait.tid)
    members = lock.beyond[: next(index for index, step in enumerate(lock.beyond) if step.tid == wait.tid)]
    assumed = dict.fromkeys(
        filter(None, (lock.owner.assumes if lock.owner else "", *(each.assumes for each in members)))
    )
    provided = f", provided that {' and '.join(assumed)}" if assumed else ""
    others = " and ".join(_step(step) for step in members)
    chain = [name, f"{title(lock)}, held by"]
    for step in members:
        chain += [_step(step), f"the {step.kind.replace('-', ' ')} at {step.lock or 0:#x} of that process, held by"]
    return Finding(
        "deadlock",
        PROVEN if settled(wait.thread) and not assumed else LIKELY,
        f"{name} {since(wait)} {title(lock)}, and waits in a circle with {others}: each holds the lock that the one "
        f"before it waits for{provided}",
        evidence=(
            _owner_line(snapshot, lock),
            *(
                Evidence(
                    SOURCE,
                    "owner",
                    step.tid,
                    f"{_step(step)} waits for the {step.kind.replace('-', ' ')} at {step.lock or 0:#x} (its own "
                    "address), without a timeout",
                )
                for step in members
            ),
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            *evidence.frame_line(wait.frames, wait.reading.frame),
        ),
        now=remedies.restart(snapshot),
        later=(Later("take these locks in the same order in every process", "a circle needs two orders"),),
        tid=wait.tid,
        lock=lock.address,
        chain=(*chain, name),
        frame=wait.reading.frame,
        explains=waiters(snapshot, {lock.address}, {wait.tid}),
    )


def _stopped(snapshot: Snapshot, wait: Wait, lock: LockFact, stopped: OwnerElsewhere) -> Finding:
    name = evidence.who(snapshot, wait.tid)
    behind = f"; behind it, {_step(stopped)} is stopped"
    state = " is stopped" if stopped is lock.beyond[0] else behind
    return Finding(
        "lock-held",
        LIKELY,
        f"{name} {since(wait)} {title(lock)}; its holder {_step(lock.beyond[0])}{state}",
        evidence=(
            _owner_line(snapshot, lock),
            Evidence("/proc/PID/stat", "state", stopped.state, f"{_step(stopped)} is stopped"),
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            *evidence.frame_line(wait.frames, wait.reading.frame),
        ),
        now=(Now(f"kill -CONT {stopped.pid}", "somebody may have stopped it on purpose", "nothing"),),
        tid=wait.tid,
        lock=lock.address,
        chain=(name, evidence.call_text(wait.thread), title(lock), f"held by {_step(lock.beyond[0])}"),
        frame=wait.reading.frame,
        explains=waiters(snapshot, {lock.address}, {wait.tid}),
    )


def _step(step: OwnerElsewhere) -> str:
    thread = f", thread {step.tid}" if step.tid != step.pid else ""
    return process(step.pid, step.command) + thread


def _owner_line(snapshot: Snapshot, lock: LockFact) -> Evidence:
    return Evidence(SOURCE, "owner", lock.owner.tid if lock.owner else None, holder(snapshot, lock))


def holder(snapshot: Snapshot, lock: LockFact) -> str:
    """ "the process lock at 0x7f.. is held by python (pid 12)"."""
    owner = lock.owner
    if owner is None or owner.tid is None:
        return f"{title(lock)}: its holder is not known"
    if owner.pid == snapshot.process.pid:
        return f"{title(lock)} is held by {evidence.who(snapshot, owner.tid)}"
    step = next(iter(lock.beyond), None)
    return f"{title(lock)} is held by {_step(step) if step else process(owner.pid or 0, owner.name)}"
