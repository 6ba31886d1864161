"""The chain of a verdict on locks, one step a line: thread -> lock -> holder -> what the holder waits for -> the root.

Read from the snapshot alone, along the owners of locks, until it comes to a thread that waits for no lock, to a holder
that is not here, or back to a thread that it has passed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from stucktrace.diagnosis import evidence, file_locks, graph
from stucktrace.diagnosis.futexes import is_notified
from stucktrace.diagnosis.lock_words import acquires_in, by_tid, held_in, place_of, title, waiters
from stucktrace.diagnosis.waits import Wait
from stucktrace.diagnosis.words import age, count, listing, process
from stucktrace.facts import LockFact, LockOwner, Snapshot

CLOSED = ": the circle is closed"
LONGEST = 16
"""Steps; of a longer chain the middle is left out."""


def of(snapshot: Snapshot, tid: int, *ends: str) -> tuple[str, ...]:
    """The chain from this thread on. `ends`: what is to stand at its end, for a holder that is not a thread here."""
    steps = [*_steps(snapshot, tid, ends)]
    if len(steps) <= LONGEST:
        return tuple(steps)
    left_out = len(steps) - LONGEST
    return (*steps[: LONGEST - 5], f"... {count(left_out + 1, 'step')} more ...", *steps[-4:])


def _steps(snapshot: Snapshot, tid: int, ends: tuple[str, ...]) -> Iterator[str]:
    known, passed = by_tid(snapshot), dict[int, None]()
    members = _members(snapshot, tid)
    yield evidence.who(snapshot, tid) + acquires_in(known.get(tid))
    shown = acquires_in(known.get(tid))
    links = graph.links(snapshot)
    while True:
        passed[tid] = None
        wait, lock = known.get(tid), links.get(tid) or snapshot.lock(tid)
        ends_a_thread = lock is not None and lock.kind in graph.ENDS
        if lock is None or (not ends_a_thread and not _takes(lock, wait)):
            yield from _beyond(snapshot, wait)
            yield from ends
            return
        owner = lock.owner
        if ends_a_thread and owner is not None and owner.tid is not None:
            closed = owner.tid in passed
            yield _end(snapshot, lock, wait, owner.tid, " again" if closed else "") + (CLOSED if closed else "")
            if closed or snapshot.thread(owner.tid) is None:
                return
            shown, tid = "", owner.tid
            continue
        yield _lock(snapshot, lock, wait, members, place=acquires_in(wait) != shown)
        if owner is None or owner.tid is None or (owner.tid not in passed and snapshot.thread(owner.tid) is None):
            yield from ends or (_elsewhere(owner),)
            return
        if owner.tid in passed:
            again = "itself" if owner.tid == tid else f"{evidence.who(snapshot, owner.tid)} again"
            place = place_of(snapshot, owner)
            yield f"held by {again}{', which took it' if place else ''}{place}{CLOSED}"
            return
        yield f"held by {evidence.who(snapshot, owner.tid)}{held_in(snapshot, owner)}"
        shown, tid = held_in(snapshot, owner), owner.tid


def _takes(lock: LockFact, wait: Wait | None) -> bool:
    return lock.kind in graph.EXCLUSIVE_KINDS and (wait is None or not is_notified(wait))


def _end(snapshot: Snapshot, lock: LockFact, wait: Wait | None, tid: int, again: str) -> str:
    since = f", for {age(wait.age_s)}" if wait is not None and wait.age_s is not None else ""
    what = "for the end of" if lock.kind == "join" else "for the result that is worked on by"
    return f"waits{acquires_in(wait)} {what} {evidence.who(snapshot, tid)}{again}{since}"


def _members(snapshot: Snapshot, tid: int) -> frozenset[int]:
    """The threads of the chain, who are not told again among a lock's other waiters."""
    found, links = {tid}, graph.links(snapshot)
    while tid in links:
        owner = links[tid].owner
        if owner is None or owner.tid is None or owner.tid in found:
            break
        found.add(owner.tid)
        tid = owner.tid
    return frozenset(found)


def _lock(snapshot: Snapshot, lock: LockFact, wait: Wait | None, members: Collection[int], *, place: bool) -> str:
    text = f"waits{acquires_in(wait)} for {title(lock)}" if place else title(lock)
    if wait is not None and wait.age_s is not None:
        text += f", for {age(wait.age_s)}"
    return text + crowd(snapshot, lock, members)


def crowd(snapshot: Snapshot, lock: LockFact, members: Collection[int]) -> str:
    """ " (and 6 more threads: reader-1, ...)": who waits for this lock and is not told otherwise."""
    others = waiters(snapshot, {lock.address}, members)
    if not others:
        return ""
    names = listing([evidence.name_of(snapshot, tid) for tid in others])
    return f" (so {'do' if len(others) > 1 else 'does'} {count(len(others), 'more thread')}: {names})"


def _elsewhere(owner: LockOwner | None) -> str:
    if owner is None or (owner.tid is None and owner.ns_tid is None):
        return "nothing names its holder"
    return f"held by thread {owner.tid or owner.ns_tid}" + (f" of pid {owner.pid}" if owner.pid else "")


def _beyond(snapshot: Snapshot, wait: Wait | None) -> Iterator[str]:
    """What a thread waits for that waits for no lock."""
    if wait is None:
        yield "computes"
        return
    since = f", for {age(wait.age_s)}" if wait.age_s is not None else ""
    yield f"{wait.reading.reason or evidence.call_text(wait.thread)}{acquires_in(wait)}{since}"
    if wait.socket is not None:
        holder = wait.socket.peer.pids if wait.socket.peer else ()
        yield f"{wait.socket.protocol} {wait.socket.local or '?'} -> {wait.socket.remote or '?'}" + (
            f" (pid {holder[0]})" if holder else ""
        )
    file = next((each for each in snapshot.file_locks if each.waiter_tid == wait.tid), None)
    if file is not None and wait.thread.syscall and wait.thread.syscall.name in graph.FILE_LOCK_CALLS:
        yield f"{file.path}, held by {file_locks.holders(file)}"
    child = graph.waited_child(wait.thread)
    relative = next((relative for relative in snapshot.children if relative.pid == child), None)
    if relative is not None:
        yield f"child {process(relative.pid, relative.command)}, state {relative.state}"
    elif wait.pipe is not None:
        others = wait.pipe.readers if wait.sends else wait.pipe.writers
        ends = (
            f"whose other end is held by {listing([f'pid {pid}' for pid in others])}" if others else "with no other end"
        )
        yield f"pipe {wait.pipe.path or wait.pipe.inode}, {ends}"
