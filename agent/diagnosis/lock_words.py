"""Locks in words, and what every rule asks about a wait for one: whose, in which frame, how long, who else waits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from stucktrace.diagnosis import evidence
from stucktrace.diagnosis.futexes import is_notified
from stucktrace.diagnosis.model import Evidence
from stucktrace.diagnosis.waits import Wait, waits
from stucktrace.diagnosis.words import a, age, count, listing
from stucktrace.facts import Frame, LockFact, LockOwner, Snapshot

_PASSED = ("/threading.py", "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
"""Files whose frames acquire a lock on behalf of their caller."""
_IMPORT = "_ModuleLock"
"""What the locks collector calls importlib's lock of one module: "_ModuleLock('json')"."""


def by_tid(snapshot: Snapshot) -> Mapping[int, Wait]:
    return {wait.thread.tid: wait for wait in waits(snapshot)}


def for_ever(wait: Wait) -> bool:
    """Asleep in a wait that has no timeout and is not one for a notification."""
    call = wait.thread.syscall
    return wait.thread.state in "SD" and call is not None and call.endless is not False and not is_notified(wait)


def acquiring(wait: Wait) -> int | None:
    """Index of the frame that takes the lock: the innermost one that is not the lock's own code."""
    start = wait.reading.frame or 0
    for index, frame in enumerate(wait.frames):
        if index >= start and not frame.native and not frame.file.endswith(_PASSED):
            return index
    return wait.reading.frame


def acquires_in(wait: Wait | None) -> str:
    """ " in on_signal (app.py:12)", or nothing where no stack was read."""
    index = acquiring(wait) if wait is not None else None
    frame = wait.frames[index] if wait is not None and index is not None and index < len(wait.frames) else None
    return f" in {evidence.where(frame)}" if frame else ""


def holding(snapshot: Snapshot, owner: LockOwner) -> Frame | None:
    """The `with` statement or `acquire()` that took the lock, else the owner's frame that holds it; None: not known."""
    frames = snapshot.frames(owner.tid) if owner.tid is not None else ()
    known = owner.frame is not None and 0 <= owner.frame < len(frames) and not frames[owner.frame].native
    return owner.taken or (frames[owner.frame] if known and owner.frame is not None else None)


def held_in(snapshot: Snapshot, owner: LockOwner | None) -> str:
    """ ", taken in load (app.py:12)" by its `with` statement, " in load (app.py:14)" by the frame that holds it."""
    place = place_of(snapshot, owner)
    return f", taken{place}" if owner and owner.taken else place


def place_of(snapshot: Snapshot, owner: LockOwner | None) -> str:
    """ " in load (app.py:12)": where its owner took it or holds it; nothing where that is not known."""
    frame = holding(snapshot, owner) if owner else None
    return f" in {evidence.where(frame)}" if frame else ""


def sure(lock: LockFact) -> bool:
    """Its owner is known from memory alone, with nothing taken for granted."""
    return lock.stable and lock.owner is not None and lock.owner.state != "unknown" and not lock.owner.assumes


def named(lock: LockFact) -> str:
    """ "the lock self._lock"; the address only where the code gives it no name."""
    text = title(lock)
    return text.rpartition(" at ")[0] if lock.path else text


def title(lock: LockFact) -> str:
    """ "the pthread mutex at 0x55..", with its name in the code where one is known."""
    if lock.path.startswith(_IMPORT):
        return f"the import lock of module {lock.path[len(_IMPORT) :].strip('()')} at {lock.address:#x}"
    kind = {"lock": "lock", "rlock": "RLock", "pymutex": "lock", "unknown": "lock"}.get(
        lock.kind, lock.kind.replace("-", " ")
    )
    named = f" {lock.path}" if lock.path else ""
    told = lock.path.partition(".")[0] == lock.part_of.rpartition(".")[2]
    inside = f" of {a(lock.part_of.removeprefix('__main__.'))}" if lock.part_of and not told else ""
    return f"the {kind}{named}{inside} at {lock.address:#x}"


def owner_line(snapshot: Snapshot, lock: LockFact) -> Evidence:
    """Whom the lock's own memory, or a frame of its holder, names."""
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
    if lock.note:
        text += f"; {lock.note}"
    if place := place_of(snapshot, owner):
        text += f"; {'taken' if owner and owner.taken else 'held'}{place}"
    if owner and owner.assumes:
        text += f"; assuming that {owner.assumes}"
    return Evidence("process_vm_readv", "owner", shown, text)


def assuming(locks: Iterable[LockFact]) -> str:
    """What a verdict on these locks takes for granted: ", assuming that ..." or nothing."""
    assumed = dict.fromkeys(lock.owner.assumes for lock in locks if lock.owner and lock.owner.assumes)
    return f", assuming that {listing(assumed)}" if assumed else ""


def since(wait: Wait, several: bool = False) -> str:
    if wait.age_s is None:
        return "wait for" if several else "waits for"
    return f"{'have' if several else 'has'} waited {age(wait.age_s)} for"


def waiters(snapshot: Snapshot, addresses: Collection[int], without: Collection[int]) -> tuple[int, ...]:
    """Everybody else who waits for these locks."""
    return tuple(
        lock.waiter_tid for lock in snapshot.locks if lock.address in addresses and lock.waiter_tid not in without
    )
