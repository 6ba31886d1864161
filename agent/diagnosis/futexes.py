"""What a futex wait is: the same call is an idle pool thread, a queue, a join, a condition, and a deadlock.

What separates them is the kind of the word (from the locks collector), the Python frames, and who could still wake it.
"""

from __future__ import annotations

from stucktrace.diagnosis.graph import EXCLUSIVE_KINDS, FUTEX_CALLS, SHARED_SEMAPHORES
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait
from stucktrace.facts import Frame, Snapshot, ThreadFact

FUTEX_PRIVATE = 128
"""In the operation of a futex call: nobody outside of this process can wake it. Source: linux/futex.h."""

_OWNERLESS_KINDS = frozenset({"lock", "pymutex", "semaphore", "unknown"})
"""What a plain lock of Python looks like where its owner is written nowhere."""

_NOTIFIED = frozenset(
    {Purpose.CONDITION, Purpose.JOIN, Purpose.WORK, Purpose.SUBSCRIPTION, Purpose.SLEEP, Purpose.RETRY}
)
"""Waits that end by a notification: no age makes them stuck."""


def bare(frame: Frame) -> str:
    return frame.function.rpartition(".")[2]


def in_futex(thread: ThreadFact) -> bool:
    return thread.syscall is not None and thread.syscall.name in FUTEX_CALLS


def is_notified(wait: Wait) -> bool:
    """The frames say that the thread waits to be notified and not for a lock."""
    return wait.reading.purpose in _NOTIFIED


def acquires(wait: Wait) -> bool:
    """The thread acquires a mutual-exclusion lock: its frames say so, or they say nothing and the object is a lock.

    Not a semaphore of `threading`: it waits in a condition inside its own acquire. Nor a `SimpleQueue`, whose word
    looks like a lock's until the object itself is read.
    """
    if not in_futex(wait.thread):
        return False
    lock = wait.lock
    if lock is not None and lock.kind not in EXCLUSIVE_KINDS | _OWNERLESS_KINDS:
        return False
    if wait.reading.purpose is Purpose.LOCK:
        inner = wait.frames[: wait.reading.frame or 0]
        return not any(bare(frame) in ("wait", "wait_for") and "threading.py" in frame.file for frame in inner)
    certain = lock is not None and lock.kind in EXCLUSIVE_KINDS
    return wait.reading.purpose is Purpose.UNKNOWN and certain and bool(wait.frames)


def endless(thread: ThreadFact) -> bool:
    return thread.syscall is not None and thread.syscall.endless is True


def stays(wait: Wait) -> bool:
    """Asleep in a call that has no timeout."""
    return wait.thread.state in "SD" and endless(wait.thread)


def settled(thread: ThreadFact, at_least_s: float = 0.5) -> bool:
    """Asleep since before the collectors came, so that what was read of its lock belongs to this very wait."""
    return thread.slept_through is not False and (thread.blocked_s is None or thread.blocked_s >= at_least_s)


def waits_for_gil(wait: Wait) -> bool:
    """Waits on the GIL's own word; where no word could be read, wakes every few milliseconds for no other reason."""
    thread = wait.thread
    if not in_futex(thread):
        return False
    if wait.lock is not None:
        return wait.lock.kind == "gil"
    if is_notified(wait) or thread.syscall is None or thread.syscall.endless is not False:
        return False
    timeout_s = thread.syscall.timeout_s
    short = timeout_s is not None and timeout_s <= 0.02
    return thread.slept_through is not True and (short or (thread.blocked_s is not None and thread.blocked_s <= 0.02))


def alone(snapshot: Snapshot) -> bool:
    """The process has one living thread."""
    alive = (thread for thread in snapshot.threads if thread.state not in "ZX")
    return next(alive, None) is not None and next(alive, None) is None


def all_parked(snapshot: Snapshot) -> bool:
    """Every thread sleeps without a timeout in a futex of this process alone: only a signal can wake any of them."""
    alive = [thread for thread in snapshot.threads if thread.state not in "ZX"]
    return bool(alive) and all(_parked(snapshot, thread) for thread in alive)


def _parked(snapshot: Snapshot, thread: ThreadFact) -> bool:
    lock = snapshot.lock(thread.tid)
    private = lock is None or not (lock.shared or lock.kind in SHARED_SEMAPHORES)
    return in_futex(thread) and endless(thread) and thread.slept_through is not False and private


def for_good(snapshot: Snapshot) -> bool:
    """No code of this process can ever run again: all threads are parked, nothing from outside reaches their futexes,
    and no signal has a handler (but SIGINT, Ctrl-C)."""
    alive = [thread for thread in snapshot.threads if thread.state not in "ZX"]
    return all_parked(snapshot) and not snapshot.process.handles_signals and all(map(_private, alive))


def _private(thread: ThreadFact) -> bool:
    call = thread.syscall
    return call is not None and len(call.args) > 1 and bool(call.args[1] & FUTEX_PRIVATE) and settled(thread)


def is_mutex(wait: Wait) -> bool:
    """The lock is one that only ever excludes: it is a Condition's own, a queue's mutex, or a module's import lock.

    A plain lock can be meant as a signal, to be released by whoever comes.
    """
    lock = wait.lock
    if lock is None or not acquires(wait):
        return False
    innermost = next((frame for frame in wait.frames if not frame.native), None)
    if innermost is None:
        return False
    name, file = bare(innermost), innermost.file
    return (
        (name == "__enter__" and file.endswith("/threading.py"))
        or (name == "acquire" and file.startswith("<frozen importlib"))
        or (file.endswith("/queue.py") and lock.part_of.startswith("queue."))
    )
