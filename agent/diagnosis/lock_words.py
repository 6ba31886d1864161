"""Locks in words, and what every rule asks about the wait for one: whose, for how long, and who else waits."""

from __future__ import annotations

from collections.abc import Mapping

from stucktrace.diagnosis.futexes import is_notified
from stucktrace.diagnosis.model import Evidence
from stucktrace.diagnosis.waits import Wait, waits
from stucktrace.diagnosis.words import age, count
from stucktrace.facts import LockFact, Snapshot


def by_tid(snapshot: Snapshot) -> Mapping[int, Wait]:
    return {wait.thread.tid: wait for wait in waits(snapshot)}


def for_ever(wait: Wait) -> bool:
    """Asleep in a wait that has no timeout and is not one for a notification."""
    call = wait.thread.syscall
    return wait.thread.state in "SD" and call is not None and call.endless is not False and not is_notified(wait)


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


def since(wait: Wait) -> str:
    return f"has waited {age(wait.age_s)} for" if wait.age_s is not None else "waits for"


def waiters(snapshot: Snapshot, addresses: set[int], without: set[int]) -> tuple[int, ...]:
    """Everybody else who waits for these locks."""
    return tuple(
        lock.waiter_tid for lock in snapshot.locks if lock.address in addresses and lock.waiter_tid not in without
    )
