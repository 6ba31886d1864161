"""Who waits behind a fault: the threads that wait for a lock whose holder has a finding of its own.

A lock whose holder waits for a silent server is the server's fault; the finding on the holder then says whom it blocks,
and its chain begins with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from stucktrace.diagnosis import chains, evidence, graph
from stucktrace.diagnosis.lock_words import assuming, by_tid, holding, named, owner_line
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
    """Who waits for a lock that this thread holds; None where nobody does, or where it was awake between two looks."""
    thread = snapshot.thread(tid)
    waiting = _held(snapshot)
    mine = waiting.get(tid, ())
    if thread is None or not mine or thread.slept_through is False:
        return None
    known, tids = by_tid(snapshot), dict[int, None]()
    left = [*mine]
    while left:
        waiter = left.pop(0).waiter_tid
        if waiter not in tids and waiter != tid:
            tids[waiter] = None
            left.extend(waiting.get(waiter, ()))
    ages_s = [wait.age_s for other in tids if (wait := known.get(other)) is not None and wait.age_s is not None]
    return Crowd(mine, tuple(tids), max(ages_s, default=None))


def _held(snapshot: Snapshot) -> Mapping[int, tuple[LockFact, ...]]:
    """Holder's tid -> the waits for its locks."""
    held: dict[int, tuple[LockFact, ...]] = {}
    for lock in snapshot.locks:
        owner = lock.owner
        if graph.owned(lock) and lock.stable and owner is not None and owner.tid is not None and owner.state == "alive":
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

    first = max(behind.locks, key=age_of)
    longest = f", the longest for {age(behind.longest_s)}" if behind.longest_s is not None else ""
    several = len(behind.tids) > 1
    owner = first.owner
    taken = holding(snapshot, owner) if owner else None
    where = f", taken in {evidence.where(taken)}" if taken else ""
    holds = "most likely holds" if owner and owner.assumes else "holds"
    wait = known.get(first.waiter_tid)
    lines = [owner_line(snapshot, first)]
    if wait is not None:
        lines.append(evidence.call_line(snapshot, wait.thread, wait.age_s))
    steps = chains.of(snapshot, first.waiter_tid)[:2]
    holder = f"held by {finding.chain[0]}{where}" if finding.chain else f"held by {evidence.who(snapshot, finding.tid)}"
    return replace(
        finding,
        summary=f"{finding.summary}; it {holds} {named(first)}{where}, for which "
        f"{count(len(behind.tids), 'thread')} wait{'' if several else 's'}{longest}{assuming([first])}",
        evidence=(*finding.evidence, *lines),
        explains=tuple(dict.fromkeys([*finding.explains, *behind.tids])),
        chain=(*steps, holder, *finding.chain[1:]),
    )
