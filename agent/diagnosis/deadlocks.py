"""`deadlock`: an owner that waits for its own lock, or for whoever waits for it: over locks in a circle, or in a join.

Known owners come from the locks collector. Who waits in a condition, an event, a queue or a join waits for a
notification, has no owner, and never counts here.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import evidence, graph, remedies
from stucktrace.diagnosis.futexes import settled
from stucktrace.diagnosis.lock_words import by_tid, for_ever, owner_line, since, title, waiters
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Finding, Later
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait
from stucktrace.diagnosis.words import age, listing
from stucktrace.facts import LockFact, Snapshot

_SELF_EXCLUSIVE = graph.EXCLUSIVE_KINDS - {"rlock"}
"""Kinds on which a thread can wait for itself; an RLock lets its owner in again."""


def deadlock(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """A lock that cannot be released: its owner waits for it, or owners wait for each other in a circle.

    `proven`: nobody else may release a mutex or RLock, and no wait of the circle has a timeout. `likely` where a member
    was awake between the two looks, so that the owners may have been read at different instants.
    """
    known = by_tid(snapshot)
    for lock in snapshot.locks:
        wait = known.get(lock.waiter_tid)
        if wait is not None and waits_for_itself(lock) and for_ever(wait):
            yield _self_deadlock(snapshot, lock, wait)
    for circle in graph.cycles(snapshot):
        here = [known[lock.waiter_tid] for lock in circle if lock.waiter_tid in known]
        if here and all(lock.stable for lock in circle) and all(for_ever(wait) for wait in here):
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
        call = joiner.thread.syscall
        if joiner.thread.state not in "SD" or call is None or call.endless is not True or joiner.tid in held:
            continue
        ends = joiner.lock.owner.tid if joiner.lock and joiner.lock.kind == "join" and joiner.lock.owner else None
        if ends == wait.tid:
            told.add(joiner.tid)
            yield lock, joiner, PROVEN if settled(joiner.thread) and settled(wait.thread) else LIKELY
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
    return Finding(
        "deadlock",
        confidence,
        f"{name} {since(wait)} {title(lock)}; its holder {holder} waits for that thread to end, for "
        f"{age(joiner.age_s)}: neither can go on",
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
        chain=(name, f"{title(lock)}, held by", holder, "waits for the end of", name),
        frame=wait.reading.frame,
        explains=(joiner.tid, *waiting),
    )


def waits_for_itself(lock: LockFact) -> bool:
    owner = lock.owner
    if lock.kind not in _SELF_EXCLUSIVE or owner is None or not lock.stable:
        return False
    return owner.state == "self" or (owner.state == "alive" and owner.tid == lock.waiter_tid)


def _self_deadlock(snapshot: Snapshot, lock: LockFact, wait: Wait) -> Finding:
    name = evidence.who(snapshot, lock.waiter_tid)
    confidence = LIKELY if wait.thread.slept_through is False else PROVEN
    return Finding(
        "deadlock",
        confidence,
        f"{name} {since(wait)} {title(lock)}, which it holds itself: nobody can release it",
        evidence=(
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            owner_line(snapshot, lock),
            *evidence.frame_line(wait.frames, wait.reading.frame),
        ),
        now=remedies.restart(snapshot),
        later=(
            Later(
                "acquire the lock once in a call chain, or make it recursive (RLock, PTHREAD_MUTEX_RECURSIVE)",
                "a plain mutex does not let its owner in a second time",
            ),
        ),
        tid=lock.waiter_tid,
        lock=lock.address,
        chain=(name, evidence.call_text(wait.thread), title(lock), f"held by {name}"),
        frame=wait.reading.frame,
        explains=waiters(snapshot, {lock.address}, {lock.waiter_tid}),
    )


def _circle(snapshot: Snapshot, circle: tuple[LockFact, ...], here: list[Wait]) -> Finding:
    first = min(here, key=lambda wait: wait.thread.tid)
    start = next(index for index, lock in enumerate(circle) if lock.waiter_tid == first.thread.tid)
    circle = circle[start:] + circle[:start]
    confidence = PROVEN if all(settled(wait.thread) for wait in here) else LIKELY
    steps = [f"{evidence.who(snapshot, lock.waiter_tid)} for {title(lock)}" for lock in circle]
    waits_s = [wait.age_s for wait in here if wait.age_s is not None]
    since = f", for {age(min(waits_s))}" if waits_s else ""
    names = listing([evidence.who(snapshot, lock.waiter_tid) for lock in circle])
    chain: list[str] = []
    for lock in circle:
        chain += [evidence.who(snapshot, lock.waiter_tid), f"{title(lock)}, held by"]
    return Finding(
        "deadlock",
        confidence,
        f"{names} wait for each other's locks in a circle{since}: {', '.join(steps)}; each lock is held by the next",
        evidence=(
            *(line for lock in circle for line in (owner_line(snapshot, lock),)),
            *(evidence.call_line(snapshot, wait.thread, wait.age_s) for wait in here),
            *evidence.frame_line(first.frames, first.reading.frame),
        ),
        now=remedies.restart(snapshot),
        later=(Later("take these locks in the same order everywhere", "a circle needs two orders"),),
        tid=first.thread.tid,
        lock=circle[0].address,
        chain=(*chain, evidence.who(snapshot, circle[0].waiter_tid)),
        frame=first.reading.frame,
        explains=(
            *(lock.waiter_tid for lock in circle[1:]),
            *waiters(snapshot, {lock.address for lock in circle}, {lock.waiter_tid for lock in circle}),
        ),
    )
