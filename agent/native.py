"""Native stacks for one process: of all threads when the user asks (`--native`), else of those that a lock verdict is
about.

They are unwound while the threads sleep, which stops nothing. Only for `--native`, and only for threads where that
cannot be done (one that runs, code without unwind tables), py-spy is asked, which stops the target for that time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from stucktrace.diagnosis.model import STUCK, Diagnosis
from stucktrace.facts import LockFact, Missing, NativeStack, Snapshot
from stucktrace.facts.native import NO_TABLE

if TYPE_CHECKING:
    from stucktrace.run import Run

NATIVE_KINDS = frozenset({"pthread-mutex", "robust-mutex", "pi-mutex", "rwlock", "barrier", "semaphore", "unknown"})
"""Locks that C code takes: which code that is, the native stack tells."""
_MOST_THREADS = 16
"""Read of their own accord."""


def wanted(snapshot: Snapshot, diagnosis: Diagnosis) -> tuple[int, ...]:
    """The threads whose native stacks a finding on a native lock needs: those in it, and the lock's holder."""
    tids: dict[int | None, None] = {}
    for finding in diagnosis.findings:
        if finding.verdict_class != STUCK or finding.lock is None:
            continue
        part = (finding.tid, *finding.explains)
        locks = [lock for lock in snapshot.locks if lock.waiter_tid in part or lock.address == finding.lock]
        if any(lock.kind in NATIVE_KINDS or _twice(lock) for lock in locks if lock.address == finding.lock):
            owners = (lock.owner.tid for lock in locks if lock.owner)
            tids.update(dict.fromkeys((finding.tid, *owners, *(lock.waiter_tid for lock in locks))))
    return tuple(tid for tid in tids if tid is not None and snapshot.thread(tid))[:_MOST_THREADS]


def _twice(lock: LockFact) -> bool:
    """Taken twice in one Python stack: whether a signal handler did that, C frames between the two places tell."""
    return lock.owner is not None and lock.owner.state == "self" and lock.owner.frame is not None


def deepen(run: Run, snapshot: Snapshot, tids: Collection[int]) -> Snapshot:
    """The snapshot with the native stacks of these threads, as far as they can be read."""
    if not tids:
        return snapshot
    from stucktrace.collectors import native_stacks

    pid = snapshot.process.pid
    collected = run.collect("native", None, partial(native_stacks.collect, snapshot, tids, run.kernel), pid)
    stacks: tuple[NativeStack, ...] = collected.stacks if collected else ()
    source, pause_s = (collected.source, 0.0) if collected and stacks else ("", None)
    left = set(tids) - {stack.tid for stack in stacks if not stack.ended.startswith(NO_TABLE)}
    # py-spy knows threads with Python frames alone.
    if run.options.native and any(snapshot.frames(tid) for tid in left):
        from stucktrace.collectors import native_pyspy

        stopped = run.collect("native", None, partial(native_pyspy.collect, snapshot, left), pid)
        if stopped is not None:
            best = {stack.tid: stack for stack in stacks}
            best |= {s.tid: s for s in stopped.stacks if s.tid not in best or len(s.frames) > len(best[s.tid].frames)}
            stacks = tuple(best.values())
            source, pause_s = " and ".join(filter(None, (source, native_pyspy.SOURCE))), stopped.pause_s
    elif left - {stack.tid for stack in stacks} and collected is not None:
        missing = Missing(
            "native stacks",
            f"{len(tids) - len(stacks)} of {len(tids)} threads ran meanwhile",
            "" if run.options.native else "--native, which may stop the process for a moment",
        )
        run.miss(missing, pid)
    hooks = {**snapshot.seen.hooks, "native": source} if source else snapshot.seen.hooks
    seen = replace(snapshot.seen, hooks=hooks, missing=_missing(run, pid, snapshot))
    return replace(snapshot, native=stacks, native_pause_s=pause_s, seen=seen)


def _missing(run: Run, pid: int, snapshot: Snapshot) -> tuple[Missing, ...]:
    return tuple(dict.fromkeys((*snapshot.seen.missing, *run.missing.get(pid, ()))))


def explained(run: Run, snapshot: Snapshot, diagnosis: Diagnosis) -> tuple[Snapshot, Diagnosis]:
    """With the native stacks that were asked for or that the verdict needs, and what they tell of it."""
    tids = tuple(thread.tid for thread in snapshot.threads) if run.options.native else wanted(snapshot, diagnosis)
    snapshot = deepen(run, snapshot, tids)
    if not snapshot.native:
        return snapshot, diagnosis
    from stucktrace.diagnosis import with_native_stacks

    return snapshot, with_native_stacks(snapshot, diagnosis)
