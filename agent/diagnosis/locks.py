"""Locks that cannot be had: `deadlock`, `orphaned-lock`, `lock-held`.

Known owners come from the locks collector: the owner field of a pthread mutex, of an RLock.
Who waits in a condition, an event, a queue or a join waits for a notification, has no owner, and never counts here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stucktrace.diagnosis import evidence, graph, remedies
from stucktrace.diagnosis.futexes import acquires, all_parked, alone, is_notified, settled
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Evidence, Finding, Later
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait, waits
from stucktrace.diagnosis.words import age, count, listing
from stucktrace.facts import LockFact, LockOwner, Snapshot

_SELF_EXCLUSIVE = graph.EXCLUSIVE_KINDS - {"rlock"}
"""Kinds on which a thread can wait for itself; an RLock lets its owner in again."""


def by_tid(snapshot: Snapshot) -> Mapping[int, Wait]:
    return {wait.thread.tid: wait for wait in waits(snapshot)}


def deadlock(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """A lock that cannot be released: its owner waits for it, or owners wait for each other in a circle.

    `proven`: nobody else may release a mutex or RLock, and no wait of the circle has a timeout. `likely` where a member
    was awake between the two looks, so that the owners may have been read at different instants.
    """
    known = by_tid(snapshot)
    for lock in snapshot.locks:
        wait = known.get(lock.waiter_tid)
        if wait is not None and _waits_for_itself(lock) and _for_ever(wait):
            yield _self_deadlock(snapshot, lock, wait)
    for circle in graph.cycles(snapshot):
        here = [known[lock.waiter_tid] for lock in circle if lock.waiter_tid in known]
        if here and all(lock.stable for lock in circle) and all(_for_ever(wait) for wait in here):
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
        if wait is None or joiner is None or joiner is wait or joiner.tid in told or not _for_ever(wait):
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
    waiting = _waiters(snapshot, {lock.address}, {lock.waiter_tid})
    return Finding(
        "deadlock",
        confidence,
        f"{name} {_waits(wait)} {title(lock)}; its holder {holder} waits for that thread to end, for "
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


def _waits_for_itself(lock: LockFact) -> bool:
    owner = lock.owner
    if lock.kind not in _SELF_EXCLUSIVE or owner is None or not lock.stable:
        return False
    return owner.state == "self" or (owner.state == "alive" and owner.tid == lock.waiter_tid)


def _for_ever(wait: Wait) -> bool:
    """Asleep in a wait that has no timeout and is not one for a notification."""
    call = wait.thread.syscall
    return wait.thread.state in "SD" and call is not None and call.endless is not False and not is_notified(wait)


def _self_deadlock(snapshot: Snapshot, lock: LockFact, wait: Wait) -> Finding:
    name = evidence.who(snapshot, lock.waiter_tid)
    confidence = LIKELY if wait.thread.slept_through is False else PROVEN
    return Finding(
        "deadlock",
        confidence,
        f"{name} {_waits(wait)} {title(lock)}, which it holds itself: nobody can release it",
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
        explains=_waiters(snapshot, {lock.address}, {lock.waiter_tid}),
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
            *_waiters(snapshot, {lock.address for lock in circle}, {lock.waiter_tid for lock in circle}),
        ),
    )


def orphaned_lock(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """A lock whose owner does not exist here: it was a thread of the parent when the process forked, or it ended.

    `proven` with an owner that was read: a mutex or RLock can be released by its owner alone. `likely` without one:
    every thread of the process is parked without a timeout and one of them acquires a lock, so nobody runs who could
    release it; a signal handler that releases a lock is the one thing left (never for conditions, events, queues or
    semaphores). In a forked child with one thread that is `orphaned-lock`, else `deadlock`.
    """
    seen: set[int] = set()
    parked = all_parked(snapshot)
    left = bool(graph.cycles(snapshot)) or any(_waits_for_itself(lock) or _is_orphaned(lock) for lock in snapshot.locks)
    for wait in waits(snapshot):
        lock = wait.lock
        if lock is not None and lock.address in seen and lock.kind in graph.EXCLUSIVE_KINDS:
            continue
        if lock is not None and _is_orphaned(lock) and _for_ever(wait):
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
    story = _inherited_from(snapshot, owner) if inherited else "which ended without releasing it"
    thread = _lost(owner)
    # An owner in a shared lock can live in a PID namespace that is not ours to see.
    confidence = LIKELY if lock.shared or not settled(wait.thread, 0.0) else PROVEN
    return Finding(
        "orphaned-lock",
        confidence,
        f"{name} {_waits(wait)} {title(lock)}, held by {thread}, {story}: nobody here can release it",
        evidence=(
            owner_line(snapshot, lock),
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            *evidence.frame_line(wait.frames, wait.reading.frame),
        ),
        now=remedies.restart(snapshot),
        later=(_after_fork(),)
        if inherited
        else (Later("release the lock in a `finally`, or use `with`", "its thread ended while it held it"),),
        tid=lock.waiter_tid,
        lock=lock.address,
        chain=(name, evidence.call_text(wait.thread), title(lock), f"{thread}, which does not exist in this process"),
        frame=wait.reading.frame,
        explains=_waiters(snapshot, {lock.address}, {lock.waiter_tid}),
    )


def _lost(owner: LockOwner) -> str:
    """Its number too: a thread's name in the kernel is often the program's."""
    number = owner.ns_tid or owner.tid
    if owner.name:
        return f"thread {owner.name}" + (f" (tid {number})" if number else "")
    return f"thread {number}" if number else "a thread"


def _inherited_from(snapshot: Snapshot, owner: LockOwner) -> str:
    parent = snapshot.parent
    which = f"its parent, pid {parent.pid}" if parent else "its parent"
    return f"a thread of {which}, which the fork did not copy"


def _after_fork() -> Later:
    return Later(
        "do not fork while other threads run: start threads after the fork (post_fork, worker_process_init), or "
        "start "
        "children with spawn or forkserver; re-create such locks with os.register_at_fork",
        "fork copies the locks as they are, and only the thread that calls it",
    )


def _nobody_can_release(snapshot: Snapshot, wait: Wait, budgets: Budgets) -> bool:
    lock = wait.lock
    if lock is None or lock.shared or (lock.owner is not None and lock.owner.state != "unknown"):
        return False
    old_enough = wait.age_s is not None and wait.age_s >= budgets.owed_s
    return old_enough and (acquires(wait) or _inside_c(snapshot, wait, lock))


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
    return Finding(
        "orphaned-lock" if forked else "deadlock",
        LIKELY,
        f"{name} {_waits(wait)} {title(lock)}, without a timeout, and nobody is left to release it: {nobody}; "
        f"most likely {story}",
        evidence=(
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            Evidence(evidence.thread_source(snapshot), "threads", threads, lonely),
            *evidence.frame_line(wait.frames, wait.reading.frame),
            Evidence("futex", "kind", lock.kind, f"{title(lock)} keeps no owner that could name its holder"),
        ),
        now=remedies.restart(snapshot),
        later=(
            _after_fork()
            if forked
            else Later(
                "take locks in one order, and give acquire a timeout",
                "a lock that nobody releases is waited for without end",
            ),
        ),
        tid=wait.thread.tid,
        lock=lock.address,
        chain=(name, evidence.call_text(wait.thread), title(lock), "no thread here that could release it"),
        frame=wait.reading.frame,
        explains=tuple(thread.tid for thread in snapshot.threads if thread.tid != wait.thread.tid),
    )


def lock_held(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """A lock whose owner lives and does not move: why the owner does not is the owner's own finding, or its own wait.

    It takes the budget of a request, on both sides: the waiter's age, and the age of the owner's present sleep. An
    owner that works or was awake lately will come round to release it, so there the wait is `waiting`.
    """
    known = by_tid(snapshot)
    limit_s = budgets.request_s(snapshot.process.worker.timeout_s)
    circles = {lock.waiter_tid for circle in graph.cycles(snapshot) for lock in circle}
    told: set[int] = {lock.address for lock, _, _ in joined_waiters(snapshot)}
    for wait in sorted(waits(snapshot), key=lambda wait: -(wait.age_s or 0.0)):
        lock = wait.lock
        if (
            lock is None
            or not graph.owned(lock)
            or lock.waiter_tid in circles
            or not lock.stable
            or not _for_ever(wait)
        ):
            continue
        owner = lock.owner
        if owner is None or owner.state != "alive" or owner.tid is None or owner.tid == lock.waiter_tid:
            continue
        if wait.age_s is None or wait.age_s < budgets.owed_s or lock.address in told:
            continue
        holder = known.get(owner.tid)
        story = _other_process(snapshot, owner) if holder is None else _why_not(snapshot, holder, limit_s)
        if story and (wait.age_s >= limit_s or owner.tid in circles):
            told.add(lock.address)
            yield _held(snapshot, wait, lock, holder, story)


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
    name, holding = evidence.who(snapshot, lock.waiter_tid), evidence.who(snapshot, owner.tid)
    lines = [owner_line(snapshot, lock), evidence.call_line(snapshot, wait.thread, wait.age_s)]
    if holder is not None:
        lines.append(evidence.call_line(snapshot, holder.thread, holder.age_s))
        lines.extend(evidence.frame_line(holder.frames, holder.reading.frame))
    waiting = _waiters(snapshot, {lock.address}, {lock.waiter_tid})
    others = f" (and {count(len(waiting), 'other thread')})" if waiting else ""
    return Finding(
        "lock-held",
        LIKELY,
        f"{name}{others} {_waits(wait)} {title(lock)}; its holder {holding} {story}",
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
        chain=(name, title(lock), f"held by {holding}", *((evidence.call_text(holder.thread),) if holder else ())),
        frame=wait.reading.frame,
        explains=waiting,
    )


def title(lock: LockFact) -> str:
    """ "the pthread mutex 0x55..", with its name in the code where one is known."""
    kind = {"lock": "lock", "rlock": "RLock", "pymutex": "lock", "unknown": "lock"}.get(
        lock.kind, lock.kind.replace("-", " ")
    )
    named = f" {lock.path}" if lock.path else ""
    return f"the {kind}{named} at {lock.address:#x}"


def owner_line(snapshot: Snapshot, lock: LockFact) -> Evidence:
    """Whom the lock's own memory names."""
    owner = lock.owner
    tid = owner.tid if owner else None
    words = {"self": "the waiter itself", "alive": "alive", "absent": "not a thread of this process"}
    state = words.get(owner.state, "not known") if owner else "not known"
    named = f" ({owner.name})" if owner and owner.name else ""
    shown = tid if tid is not None else (owner.ns_tid if owner else None)
    text = f"{title(lock)} in {lock.mapping}: owner {shown if shown is not None else 'unreadable'}{named}, {state}"
    if owner and owner.parent_thread:
        text += "; it is a thread of the parent"
    if lock.count:
        text += f"; held {count(lock.count, 'time')}"
    return Evidence("process_vm_readv", "owner", shown, text + (f"; {lock.note}" if lock.note else ""))


def _waits(wait: Wait) -> str:
    return f"has waited {age(wait.age_s)} for" if wait.age_s is not None else "waits for"


def _waiters(snapshot: Snapshot, addresses: set[int], without: set[int]) -> tuple[int, ...]:
    """Everybody else who waits for these locks."""
    return tuple(
        lock.waiter_tid for lock in snapshot.locks if lock.address in addresses and lock.waiter_tid not in without
    )
