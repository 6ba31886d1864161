"""Picks the verdict: the finding that is the root cause. The others explain or add.

- A finding that only passes a wait on (the loop is blocked, the lock is held, the GIL is held) gives way to the finding
  on the thread or call that it waits for.
- A root goes before another by confidence, then severity, then how many waits it accounts for.
- A `possible` finding of the class stuck is never the verdict: a false alarm is worse than a miss.
- Advice never is the verdict either: a healthy process that could be configured better stays healthy.
- With nothing stuck, the process is what `healthy.verdict` says: idle, working, waiting, or inconclusive.
"""

from __future__ import annotations

from collections.abc import Iterable

from stucktrace.diagnosis import graph, healthy
from stucktrace.diagnosis.model import CONFIDENCES, POSSIBLE, SEVERITIES, STUCK, Budgets, Finding
from stucktrace.facts import Snapshot

CONSEQUENCES = frozenset({"blocked-loop", "lock-held", "gil-held", "spinning", "pool-starved"})
"""Codes that say what a wait does to others; why it does not end is another finding's word, where there is one."""

WHOLE_PROCESS = frozenset({"stopped"})
"""Codes that make every other wait of the process a consequence."""

_CLASS_ORDER = {STUCK: 0, "unknown": 1, "advice": 2, "healthy": 3}


def order(snapshot: Snapshot, budgets: Budgets, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings without doubles, the verdict first; `healthy.verdict` is added where none is stuck."""
    kept = _distinct(findings)
    stuck = [finding for finding in kept if finding.verdict_class == STUCK and finding.confidence != POSSIBLE]
    rest = [finding for finding in kept if finding not in stuck]
    if not stuck:
        verdict = healthy.verdict(snapshot, budgets, kept)
        return (verdict, *sorted((finding for finding in rest if finding != verdict), key=_rank))
    whole = [finding for finding in stuck if finding.code in WHOLE_PROCESS]
    roots = whole or [finding for finding in stuck if not _explained(snapshot, finding, stuck)]
    roots = roots or stuck
    first = min(roots, key=_rank)
    followers = sorted((finding for finding in stuck if finding is not first), key=_rank)
    return (first, *followers, *sorted(rest, key=_rank))


def _rank(finding: Finding) -> tuple[int, int, int, int]:
    return (
        _CLASS_ORDER[finding.verdict_class],
        CONFIDENCES.index(finding.confidence) if finding.confidence in CONFIDENCES else len(CONFIDENCES),
        SEVERITIES.index(finding.severity) if finding.severity in SEVERITIES else len(SEVERITIES),
        -len(finding.explains),
    )


def _distinct(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for one (code, thread, fd, lock): the surest."""
    best: dict[tuple[object, ...], Finding] = {}
    for finding in findings:
        key: tuple[object, ...] = (finding.code, finding.tid, finding.fd, finding.lock)
        if finding.tid is None and finding.fd is None and finding.lock is None:
            key = (*key, finding.summary)
        if key not in best or _rank(finding) < _rank(best[key]):
            best[key] = finding
    return list(best.values())


def _explained(snapshot: Snapshot, finding: Finding, stuck: list[Finding]) -> bool:
    """Another finding says why the wait that this one passes on does not end."""
    if finding.code not in CONSEQUENCES:
        return False
    causes = [other for other in stuck if other.code not in CONSEQUENCES]
    tids = {finding.tid, *_owners(snapshot, finding), *_holders(snapshot, finding)} - {None}
    if any(other.tid in tids or tids & set(other.explains) for other in causes):
        return True
    if finding.code == "lock-held":
        owners = _owners(snapshot, finding)
        return any(other.tid in owners for other in stuck if other is not finding and other.code != "lock-held")
    return False


def _holders(snapshot: Snapshot, finding: Finding) -> set[int | None]:
    """Who has the connections of the pool that the finding's thread waits for."""
    if finding.code != "pool-starved":
        return set()
    return {
        member.tid
        for pool in snapshot.pools
        if pool.kind == "connections" and any(each.tid == finding.tid for each in pool.awaited)
        for member in pool.members
    }


def _owners(snapshot: Snapshot, finding: Finding) -> set[int]:
    """The owners along the chain of locks, ends and results that the finding's thread waits for."""
    found: set[int] = set()
    tid, links = finding.tid, graph.links(snapshot)
    while tid is not None:
        lock = links.get(tid)
        tid = lock.owner.tid if lock and lock.owner else None
        if tid in found:
            break
        if tid is not None:
            found.add(tid)
    return found
