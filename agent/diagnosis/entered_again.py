"""A lock that a thread took twice in one stack: which two frames did it, and how the thread came to the second.

A finaliser has a name; a signal handler and a weakref's callback look like calls from whatever line they interrupted,
and only the C frames between the two places tell them.
"""

from __future__ import annotations

from dataclasses import replace

from stucktrace.diagnosis import chains, evidence, graph, remedies
from stucktrace.diagnosis.futexes import all_parked, bare
from stucktrace.diagnosis.lock_words import (
    acquires_in,
    acquiring,
    assuming,
    by_tid,
    holding,
    named,
    owner_line,
    since,
    sure,
    waiters,
)
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Finding, Later
from stucktrace.diagnosis.waits import Wait
from stucktrace.facts import Frame, LockFact, Snapshot

_SELF_EXCLUSIVE = graph.EXCLUSIVE_KINDS - {"rlock"}
"""Kinds on which a thread can wait for itself; an RLock lets its owner in again."""


def waits_for_itself(lock: LockFact) -> bool:
    owner = lock.owner
    if lock.kind not in _SELF_EXCLUSIVE or owner is None or not lock.stable:
        return False
    return owner.state == "self" or (owner.state == "alive" and owner.tid == lock.waiter_tid)


def is_a_signal(snapshot: Snapshot, budgets: Budgets, wait: Wait) -> bool:
    """A plain lock that was taken by hand may be one that another thread, or a handler, releases to say "go on".

    Nobody is left to do so where all threads are parked and no signal has a handler. Else the wait may last as long as
    any other for a result; a main thread that has handlers may park in it for ever.
    """
    if wait.lock is None or wait.lock.owner is None or wait.lock.owner.how != "acquire":
        return False
    if snapshot.process.handles_signals and wait.tid == snapshot.process.pid:
        return True
    if all_parked(snapshot) and not snapshot.process.handles_signals:
        return False
    return wait.age_s is None or wait.age_s < budgets.request_s(snapshot.process.worker.timeout_s)


def self_deadlock(snapshot: Snapshot, lock: LockFact, wait: Wait) -> Finding:
    name, owner, frames = evidence.who(snapshot, lock.waiter_tid), lock.owner, wait.frames
    assert owner is not None
    confidence = LIKELY if wait.thread.slept_through is False or not sure(lock) else PROVEN
    inner, taken = acquiring(wait), holding(snapshot, replace(owner, tid=lock.waiter_tid))
    between = frames[inner or 0 : owner.frame or 0] if taken else ()
    held = f"took itself in {evidence.where(taken)}" if taken else "holds itself"
    story = _entered(between, _native_between(snapshot, wait.tid, inner or 0, owner.frame or 0))
    return Finding(
        "deadlock",
        confidence,
        f"{name} {since(wait)} {named(lock)}{acquires_in(wait)}, which it {held}"
        f"{story}: nobody else can release it{assuming([lock])}",
        evidence=(
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            owner_line(snapshot, lock),
            *evidence.frame_line(frames, inner),
        ),
        now=remedies.restart(snapshot),
        later=_apart(snapshot, lock, between, story),
        tid=lock.waiter_tid,
        lock=lock.address,
        chain=chains.of(snapshot, lock.waiter_tid),
        frame=inner,
        explains=waiters(snapshot, {lock.address}, {lock.waiter_tid}),
    )


def _native_between(snapshot: Snapshot, tid: int, inner: int, outer: int) -> tuple[str, ...]:
    """The C functions that stand between two Python frames of this thread, where its native stack was read."""
    stack = snapshot.native_stack(tid)
    if stack is None:
        return ()
    return tuple(
        frame.function for frame, inside in zip(stack.frames, stack.inside, strict=False) if inner < inside <= outer
    )


def _entered(between: tuple[Frame, ...], native: tuple[str, ...]) -> str:
    """How the thread came to take it again, from the frames between the two places; "" where it simply called on.

    A handler of a signal has no frame of its own: it looks like a call from whatever line it interrupted. The native
    stack tells it, and any weakref callback.
    """
    for frame in between:
        if bare(frame) == "__del__":
            return f"; {evidence.where(frame)} ran in the middle of that, as an object was finalised"
        if frame.file.endswith("/weakref.py") and bare(frame) in ("__call__", "_cb"):
            return "; a weakref's callback ran in the middle of that"
    for function in native:
        if "CheckSignals" in function:
            return "; a signal handler ran in the middle of that"
        if function in ("PyObject_ClearWeakRefs", "handle_weakrefs"):
            return "; a weakref's callback ran in the middle of that"
    return ""


def retold(snapshot: Snapshot, finding: Finding) -> Finding:
    """A lock taken twice in one stack, told again with what the native stack says of how that came."""
    wait = by_tid(snapshot).get(finding.tid or 0)
    lock = wait.lock if wait is not None else None
    if finding.code != "deadlock" or wait is None or lock is None or not waits_for_itself(lock):
        return finding
    told = self_deadlock(snapshot, lock, wait)
    return replace(finding, summary=told.summary, later=told.later)


def _apart(snapshot: Snapshot, lock: LockFact, between: tuple[Frame, ...], story: str) -> tuple[Later, ...]:
    advice: list[Later] = []
    if "finalised" in story or "weakref" in story:
        advice.append(
            Later(
                "take no lock in __del__ or in a weakref's callback: hand the work over by queue.SimpleQueue.put, "
                "which may be entered again, and do it elsewhere",
                "the collector runs them in any thread, at any line, also inside the lock",
            )
        )
    elif "signal" in story or (snapshot.process.handles_signals and lock.waiter_tid == snapshot.process.pid):
        which = f"if {bare(between[0])} runs as a signal handler: " if between and "signal" not in story else ""
        advice.append(
            Later(
                f"{which}take no lock in a signal handler: set a flag there, or put to a queue.SimpleQueue, or wake "
                "the main loop by signal.set_wakeup_fd",
                "Python runs handlers in the main thread, between any two lines of it, also inside the lock",
            )
        )
    advice.append(
        Later(
            "acquire the lock once in a call chain, or make it recursive (RLock, PTHREAD_MUTEX_RECURSIVE)",
            "a plain mutex does not let its owner in a second time",
        )
    )
    return tuple(advice)
