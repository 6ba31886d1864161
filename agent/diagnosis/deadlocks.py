"""`deadlock`: an owner that waits for its own lock, or for whoever waits for it: over locks in a circle, or in a join.

Known owners come from the locks collector. Who waits in a condition, an event, a queue or a join waits for a
notification, has no owner, and never counts here.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import chains, evidence, graph, remedies
from stucktrace.diagnosis.entered_again import is_a_signal, self_deadlock, waits_for_itself
from stucktrace.diagnosis.futexes import settled, stays
from stucktrace.diagnosis.lock_words import (
    acquires_in,
    acquiring,
    assuming,
    by_tid,
    for_ever,
    held_in,
    named,
    owner_line,
    since,
    sure,
    waiters,
)
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Finding, Later
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait
from stucktrace.diagnosis.words import age, listing
from stucktrace.facts import LockFact, Snapshot

_MEMBERS_TOLD = 4


def deadlock(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`deadlock`: a thread waits for a lock that cannot be released: its own, or one of a circle.

    Two or more threads wait for each other's locks in a circle, or one waits for a lock that it holds itself, or a
    thread joins one that waits for a lock of the joiner. None of them ever goes on.

    Proven: every owner was read from memory and read the same twice, no wait of the circle has a timeout, nothing
    is taken for granted about who holds what, and the threads slept between the two readings. Across processes: the
    owners of locks of multiprocessing, or of flock(2), in a circle of single threads. Without a readable owner:
    every thread of the process is parked without a timeout in locks of its own, one is a mutex, and no signal has a
    handler.

    Likely: a member was awake between the readings; a lock was taken by `acquire()` without `with`, so that its
    holder rests on what the summary says is assumed; whom a join is for is not readable (before CPython 3.13).

    Now: restart the process; the report has the command.

    Later: for a circle, take the locks in one order everywhere; for a lock taken twice, an RLock, or no lock in
    `__del__`, in a weakref's callback and in a signal handler; join threads only after releasing what they take.

    Not: a wait in a condition, an event, a queue, a semaphore or a join without locks: it has no owner and waits
    for a notification. A wait with a timeout. An RLock that its owner enters again. A plain lock used as a signal,
    which another thread or a handler may release.

    Wrong: none is known where it is proven.

    Try: a lock taken twice:

        python3 -c "import threading
        lock = threading.Lock()
        with lock:
            with lock:
                pass" &
        sleep 2; stucktrace pid $!
    """
    known = by_tid(snapshot)
    for lock in snapshot.locks:
        wait = known.get(lock.waiter_tid)
        if wait is not None and waits_for_itself(lock) and for_ever(wait) and not is_a_signal(snapshot, budgets, wait):
            yield self_deadlock(snapshot, lock, wait)
    for circle in graph.cycles(snapshot):
        here = [known[lock.waiter_tid] for lock in circle if lock.waiter_tid in known]
        if len(here) < len(circle) or not all(lock.stable for lock in circle) or not all(map(_stays, circle, here)):
            continue
        if _has_a_lock(circle) and not (len(circle) == 2 and any(lock.kind == "join" for lock in circle)):
            yield _circle(snapshot, circle, here)
    for lock, joiner, confidence in joined_waiters(snapshot):
        yield _joined_waiter(snapshot, known[lock.waiter_tid], lock, joiner, confidence)


def joined_waiters(snapshot: Snapshot) -> Iterator[tuple[LockFact, Wait, str]]:
    """Locks whose owner joins the thread that waits for the lock: (lock, the owner's wait, confidence).

    Whom a join is for can be read from 3.13 on: `proven`. Before, it is known where every thread but the owner waits
    for a lock of the owner, whichever of them is meant: `likely`.
    """
    known = by_tid(snapshot)
    held = {lock.waiter_tid: lock for lock in snapshot.locks if graph.owned(lock) and lock.stable}
    told: set[int] = set()
    for lock in held.values():
        wait, joiner = known.get(lock.waiter_tid), known.get((lock.owner and lock.owner.tid) or 0)
        if wait is None or joiner is None or joiner is wait or joiner.tid in told or not for_ever(wait):
            continue
        if not stays(joiner) or joiner.tid in held:
            continue
        ends = joiner.lock.owner.tid if joiner.lock and joiner.lock.kind == "join" and joiner.lock.owner else None
        if ends == wait.tid:
            told.add(joiner.tid)
            certain = settled(joiner.thread) and settled(wait.thread) and sure(lock)
            yield lock, joiner, PROVEN if certain else LIKELY
        elif ends is None and _joins_a_thread(joiner):
            others = {thread.tid for thread in snapshot.threads if thread.state not in "ZX"} - {joiner.tid}
            if all((other := held.get(tid)) and other.owner and other.owner.tid == joiner.tid for tid in others):
                told.add(joiner.tid)
                yield lock, joiner, LIKELY


def _joins_a_thread(wait: Wait) -> bool:
    frame = wait.frame
    return (
        wait.reading.purpose is Purpose.JOIN
        and frame is not None
        and frame.file.endswith("threading.py")
        and frame.function.rpartition(".")[2] in ("join", "_wait_for_tstate_lock", "_shutdown")
    )


def _joined_waiter(snapshot: Snapshot, wait: Wait, lock: LockFact, joiner: Wait, confidence: str) -> Finding:
    name, holder = evidence.who(snapshot, wait.tid), evidence.who(snapshot, joiner.tid)
    waiting = waiters(snapshot, {lock.address}, {lock.waiter_tid})
    told = joiner.lock is not None and joiner.lock.kind == "join"
    return Finding(
        "deadlock",
        confidence,
        f"{name} {since(wait)} {named(lock)}{acquires_in(wait)}; its holder {holder} waits for that thread to end"
        f"{acquires_in(joiner)}, for {age(joiner.age_s)}: neither can go on{assuming([lock])}",
        evidence=(
            owner_line(snapshot, lock),
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            evidence.call_line(snapshot, joiner.thread, joiner.age_s),
            *evidence.frame_line(joiner.frames, joiner.reading.frame),
        ),
        now=remedies.restart(snapshot),
        later=(
            Later(
                "join threads only after releasing every lock that they take, and give the join a timeout",
                "a thread that needs the lock cannot end before it gets it",
            ),
        ),
        tid=wait.tid,
        lock=lock.address,
        chain=chains.of(snapshot, wait.tid, *(() if told else (f"which is {name}, most likely",))),
        frame=acquiring(wait),
        explains=(joiner.tid, *waiting),
    )


def _stays(lock: LockFact, wait: Wait) -> bool:
    """It sleeps until the lock is released, or until the thread that it waits for has ended or done its task."""
    return stays(wait) if lock.kind in graph.ENDS else for_ever(wait)


def _has_a_lock(circle: tuple[LockFact, ...]) -> bool:
    return any(lock.kind not in graph.ENDS for lock in circle)


def _circle(snapshot: Snapshot, circle: tuple[LockFact, ...], here: list[Wait]) -> Finding:
    # A thread that waits for a lock tells more than one that waits for another's end.
    kinds = {lock.waiter_tid: lock.kind for lock in circle}
    first = min(here, key=lambda wait: (kinds[wait.tid] in graph.ENDS, wait.tid))
    start = next(index for index, lock in enumerate(circle) if lock.waiter_tid == first.thread.tid)
    circle = circle[start:] + circle[:start]
    known = {wait.tid: wait for wait in here}
    confidence = PROVEN if all(settled(wait.thread) for wait in here) and all(map(sure, circle)) else LIKELY
    pairs = zip(circle, [*circle[1:], circle[0]], strict=True)
    steps = [_member(snapshot, lock, known[lock.waiter_tid], known[after.waiter_tid]) for lock, after in pairs]
    waits_s = [wait.age_s for wait in here if wait.age_s is not None]
    since_s = f", for {age(min(waits_s))}" if waits_s else ""
    names = listing([evidence.name_of(snapshot, lock.waiter_tid) for lock in circle])
    locks = "" if any(lock.kind in graph.ENDS for lock in circle) else "'s locks"
    told = steps if len(steps) <= _MEMBERS_TOLD else [*steps[:_MEMBERS_TOLD], f"and {len(steps) - _MEMBERS_TOLD} more"]
    return Finding(
        "deadlock",
        confidence,
        f"{names} wait for each other{locks} in a circle{since_s}: {'; '.join(told)}{assuming(circle)}",
        evidence=(
            *(owner_line(snapshot, lock) for lock in circle if lock.kind not in graph.ENDS),
            *(evidence.call_line(snapshot, wait.thread, wait.age_s) for wait in here),
            *evidence.frame_line(first.frames, acquiring(first)),
        ),
        now=remedies.restart(snapshot),
        later=(_one_order(circle),),
        tid=first.thread.tid,
        lock=circle[0].address,
        chain=chains.of(snapshot, first.tid),
        frame=acquiring(first),
        explains=(
            *(lock.waiter_tid for lock in circle[1:]),
            *waiters(snapshot, {lock.address for lock in circle}, {lock.waiter_tid for lock in circle}),
        ),
    )


def _one_order(circle: tuple[LockFact, ...]) -> Later:
    if any(lock.kind in graph.ENDS for lock in circle):
        return Later(
            "do not wait for a thread or a result while holding a lock that its work takes, or give the wait a timeout",
            "that work cannot end before it gets the lock",
        )
    return Later("take these locks in the same order everywhere", "a circle needs two orders")


def _member(snapshot: Snapshot, lock: LockFact, wait: Wait, following: Wait) -> str:
    """One member of a circle: what it waits for and where, and where the next one took that."""
    owner = lock.owner
    assert owner is not None
    name, next_one = evidence.who(snapshot, lock.waiter_tid), evidence.name_of(snapshot, owner.tid or 0)
    if lock.kind in graph.ENDS:
        return f"{name}{acquires_in(wait)} for the {'end' if lock.kind == 'join' else 'result'} of {next_one}"
    where = held_in(snapshot, owner)
    # Where it waits stands there next.
    where = "" if where == acquires_in(following) else where
    return f"{name}{acquires_in(wait)} for {named(lock)}, held by {next_one}{where}"
