"""Who waits behind a fault: the threads that wait for a lock whose holder has a finding of its own.

A lock whose holder waits for a silent server is the server's fault; the finding on the holder then says whom it blocks,
and its chain begins with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from stucktrace.diagnosis import chains, evidence, graph
from stucktrace.diagnosis.lock_words import assuming, by_tid, held_in, named, owner_line
from stucktrace.diagnosis.model import POSSIBLE, STUCK, Finding
from stucktrace.diagnosis.words import age, count
from stucktrace.facts import LockFact, Snapshot

_LOCKS = frozenset({"deadlock", "orphaned-lock", "lock-held"})
"""Codes that speak of the lock themselves."""


@dataclass(frozen=True)
class Crowd:
    """Everybody who waits for locks of one thread."""

    locks: tuple[LockFact, ...]
    """Each waiter's, of the thread's own locks alone."""
    tids: tuple[int, ...]
    """The waiters, and those who wait for a lock of one of them, and so on."""
    longest_s: float | None


def crowd(snapshot: Snapshot, tid: int) -> Crowd | None:
    """Who waits for a lock that this thread holds, or for its end, holding a lock; None where nobody does, or where the
    thread was awake between two looks."""
    thread = snapshot.thread(tid)
    waiting = _held(snapshot)
    mine = waiting.get(tid, ())
    if thread is None or not mine or thread.slept_through is False:
        return None
    known, tids, locks = by_tid(snapshot), dict[int, None](), False
    left = [*mine]
    while left:
        lock = left.pop(0)
        if lock.waiter_tid not in tids and lock.waiter_tid != tid:
            tids[lock.waiter_tid] = None
            locks = locks or lock.kind not in graph.ENDS
            left.extend(waiting.get(lock.waiter_tid, ()))
    if not locks:
        # A main thread that joins its workers says nothing.
        return None
    ages_s = [wait.age_s for other in tids if (wait := known.get(other)) is not None and wait.age_s is not None]
    return Crowd(mine, tuple(tids), max(ages_s, default=None))


def _held(snapshot: Snapshot) -> Mapping[int, tuple[LockFact, ...]]:
    """tid -> the waits for its locks, for its end, for its result."""
    held: dict[int, tuple[LockFact, ...]] = {}
    for lock in graph.links(snapshot).values():
        owner = lock.owner
        if lock.stable and owner is not None and owner.tid is not None and owner.state == "alive":
            held[owner.tid] = (*held.get(owner.tid, ()), lock)
    return held


def attach(snapshot: Snapshot, findings: Iterable[Finding]) -> list[Finding]:
    """The findings, those about a thread with the locks that it holds meanwhile and who waits for them."""
    return [_attached(snapshot, finding) for finding in findings]


def _attached(snapshot: Snapshot, finding: Finding) -> Finding:
    if finding.verdict_class != STUCK or finding.confidence == POSSIBLE or finding.code in _LOCKS:
        return finding
    behind = crowd(snapshot, finding.tid) if finding.tid is not None else None
    if behind is None or finding.tid is None:
        return finding
    known = by_tid(snapshot)

    def age_of(lock: LockFact) -> float:
        wait = known.get(lock.waiter_tid)
        return wait.age_s or 0.0 if wait is not None else 0.0

    first = max(behind.locks, key=lambda lock: (lock.kind not in graph.ENDS, age_of(lock)))
    wait = known.get(first.waiter_tid)
    lines = [] if first.kind in graph.ENDS else [owner_line(snapshot, first)]
    if wait is not None:
        lines.append(evidence.call_line(snapshot, wait.thread, wait.age_s))
    return replace(
        finding,
        summary=f"{finding.summary}; {_blocks(snapshot, first, behind)}",
        evidence=(*finding.evidence, *lines),
        explains=tuple(dict.fromkeys([*finding.explains, *behind.tids])),
        chain=_chain(snapshot, finding, first),
    )


def _blocks(snapshot: Snapshot, first: LockFact, behind: Crowd) -> str:
    """ "it holds the lock Cache.lock, taken in refresh (cache.py:12), for which 3 threads wait"."""
    longest = f", the longest for {age(behind.longest_s)}" if behind.longest_s is not None else ""
    wait = f"{count(len(behind.tids), 'thread')} wait{'' if len(behind.tids) > 1 else 's'}{longest}"
    if first.kind in graph.ENDS:
        return f"for its {'end' if first.kind == 'join' else 'result'}, and in locks behind that, {wait}"
    holds = "most likely holds" if first.owner and first.owner.assumes else "holds"
    return f"it {holds} {named(first)}{held_in(snapshot, first.owner)}, for which {wait}{assuming([first])}"


def _chain(snapshot: Snapshot, finding: Finding, first: LockFact) -> tuple[str, ...]:
    """From the waiter on; the finding's own chain follows its thread."""
    steps = chains.of(snapshot, first.waiter_tid)[:2]
    if first.kind in graph.ENDS:
        return (*steps, *finding.chain[1:])
    thread = finding.chain[0] if finding.chain else evidence.who(snapshot, finding.tid)
    return (*steps, f"held by {thread}{held_in(snapshot, first.owner)}", *finding.chain[1:])
