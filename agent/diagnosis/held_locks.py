"""`lock-held`: a lock whose owner lives and does not move; the owner's own wait is the reason."""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import behind, chains, evidence, graph, remedies
from stucktrace.diagnosis.deadlocks import joined_waiters
from stucktrace.diagnosis.futexes import bare
from stucktrace.diagnosis.lock_words import (
    acquires_in,
    acquiring,
    assuming,
    by_tid,
    for_ever,
    holding,
    named,
    owner_line,
    since,
    waiters,
)
from stucktrace.diagnosis.model import LIKELY, Budgets, Finding, Later
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import ACCEPT_CALLS, Wait, waits
from stucktrace.diagnosis.words import age, count
from stucktrace.facts import LockFact, LockOwner, Snapshot


def lock_held(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`lock-held`: the lock's holder is alive, and stuck itself.

    A thread waits for a lock whose owner sleeps in something else. The owner's own wait is the reason; where that
    has a finding of its own, that one is the verdict, and its chain begins with who waits for the lock.

    Likely: always. The owner was read, it has slept in one call for longer than a request may take
    (`--stuck-after`, else the worker's timeout, else 30 s), and the wait for the lock is as old; or the owner is
    itself in a deadlock. Or the holder of the lock, or of a file's lock, belongs to a process that is stopped (5
    s).

    Now: restart the process; continue a holder that is stopped.

    Later: do not wait for others while holding the lock, or give that wait a timeout.

    Not: an owner that works or was awake lately: it comes round to release it, so that is `waiting`. Workers that
    take turns at a lock to accept or to read a queue. A leader's file lock, however old: standing by for it is a
    design.

    Wrong: an owner whose one call takes longer than the budget and then goes on.

    Try: a holder that sleeps:

        python3 -c "import threading, time
        lock = threading.Lock()
        def hold():
            with lock:
                time.sleep(60)
        threading.Thread(target=hold).start(); time.sleep(0.2)
        with lock:
            pass" &
        sleep 7; stucktrace pid $! --stuck-after 5
    """
    known = by_tid(snapshot)
    limit_s = budgets.request_s(snapshot.process.worker.timeout_s)
    circles = {lock.waiter_tid for circle in graph.cycles(snapshot) for lock in circle}
    told: set[int] = {lock.address for lock, _, _ in joined_waiters(snapshot)}
    for wait in sorted(waits(snapshot), key=lambda wait: -(wait.age_s or 0.0)):
        lock = wait.lock
        if lock is None or not graph.owned(lock) or lock.waiter_tid in circles or not lock.stable or not for_ever(wait):
            continue
        owner = lock.owner
        if owner is None or owner.state != "alive" or owner.tid is None or owner.tid == lock.waiter_tid:
            continue
        if wait.age_s is None or wait.age_s < budgets.owed_s or lock.address in told:
            continue
        holder = known.get(owner.tid)
        if holder is not None and _takes_turns(snapshot, lock, holder):
            continue
        story = _other_process(snapshot, owner) if holder is None else _why_not(snapshot, holder, limit_s)
        if story and (wait.age_s >= limit_s or owner.tid in circles):
            told.add(lock.address)
            yield _held(snapshot, wait, lock, holder, story)


def _takes_turns(snapshot: Snapshot, lock: LockFact, holder: Wait) -> bool:
    """The owner waits for work, and all who wait for the lock want the same: one at a time accepts, or reads a queue.

    Whoever wants the lock elsewhere may be the one who would bring the work.
    """
    own = holder.lock.note if holder.lock is not None else ""
    if holder.call in ACCEPT_CALLS:
        return True
    if holder.reading.purpose not in (Purpose.WORK, Purpose.SUBSCRIPTION) and not own.startswith("of a "):
        return False
    taken, known = holding(snapshot, lock.owner) if lock.owner else None, by_tid(snapshot)
    if taken is None:
        return False
    for other in snapshot.locks:
        wait = known.get(other.waiter_tid) if other.address == lock.address else None
        index = acquiring(wait) if wait is not None else None
        if wait is None or index is None:
            continue
        frame = wait.frames[index]
        if (frame.file, bare(frame)) != (taken.file, bare(taken)):
            return False
    return True


def _why_not(snapshot: Snapshot, holder: Wait, limit_s: float) -> str:
    """Why the owner will not release it soon; "" when it may."""
    asleep = holder.thread.state in "SDTt" and holder.thread.slept_through is not False and not holder.polls
    if not asleep or holder.age_s is None or holder.age_s < limit_s:
        return ""
    reason = holder.reading.reason or f"sits in {evidence.call_text(holder.thread)}"
    return f"{reason} for {age(holder.age_s)}"


def _other_process(snapshot: Snapshot, owner: LockOwner) -> str:
    relative = next((relative for relative in snapshot.relatives if relative.pid == owner.pid), None)
    if relative is not None and relative.state in "Tt":
        return f"belongs to pid {relative.pid}, which is stopped"
    return ""


def _held(snapshot: Snapshot, wait: Wait, lock: LockFact, holder: Wait | None, story: str) -> Finding:
    owner = lock.owner
    assert owner is not None
    name, holding_one = evidence.who(snapshot, lock.waiter_tid), evidence.who(snapshot, owner.tid)
    lines = [owner_line(snapshot, lock), evidence.call_line(snapshot, wait.thread, wait.age_s)]
    if holder is not None:
        lines.append(evidence.call_line(snapshot, holder.thread, holder.age_s))
        lines.extend(evidence.frame_line(holder.frames, holder.reading.frame))
    waiting = waiters(snapshot, {lock.address}, {lock.waiter_tid, owner.tid or 0})
    others = f" and {count(len(waiting), 'other thread')}" if waiting else ""
    taken = holding(snapshot, owner)
    where = f", which {'took' if owner.taken else 'holds'} it in {evidence.where(taken)}," if taken else ""
    return Finding(
        "lock-held",
        LIKELY,
        f"{name}{others} {since(wait, bool(waiting))} {named(lock)}{acquires_in(wait)}; its holder "
        f"{holding_one}{where} {story}{assuming([lock])}",
        evidence=tuple(lines),
        now=remedies.restart(snapshot),
        later=(
            Later(
                "do not wait for others while holding the lock, or give that wait a timeout",
                "every waiter of the lock inherits the wait",
            ),
        ),
        tid=lock.waiter_tid,
        lock=lock.address,
        chain=chains.of(snapshot, lock.waiter_tid),
        frame=acquiring(wait),
        explains=tuple(dict.fromkeys([*waiting, *_further(snapshot, owner.tid, {wait.tid})])),
    )


def _further(snapshot: Snapshot, holder: int | None, without: set[int]) -> tuple[int, ...]:
    """Who waits for locks of those that wait."""
    crowd = behind.crowd(snapshot, holder) if holder is not None else None
    return tuple(tid for tid in crowd.tids if tid not in without) if crowd is not None else ()
