"""The report's part on locks: what they are, who holds them and how that is known, who waits for them."""

from __future__ import annotations

from typing import Any

from stucktrace.facts import Frame, LockFact, LockOwner, Snapshot

Json = dict[str, Any]


def build(snapshot: Snapshot) -> list[Json]:
    """One entry an address, with all its waiters in this process."""
    by_address: dict[int, list[LockFact]] = {}
    for lock in snapshot.locks:
        by_address.setdefault(lock.address, []).append(lock)
    return [_lock(snapshot, waits) for waits in by_address.values()]


def _lock(snapshot: Snapshot, waits: list[LockFact]) -> Json:
    lock = next((wait for wait in waits if wait.owner), waits[0])
    return {
        "address": hex(lock.address),
        "kind": lock.kind,
        "mapping": lock.mapping,
        "path": lock.path or None,
        "part_of": lock.part_of or None,
        "owners": [_owner(snapshot, lock.owner)] if lock.owner else [],
        "waiters": [{"pid": snapshot.process.pid, "tid": wait.waiter_tid} for wait in waits],
    }


def _owner(snapshot: Snapshot, owner: LockOwner) -> Json:
    frames = snapshot.frames(owner.tid) if owner.tid is not None else ()
    holding = frames[owner.frame] if owner.frame is not None and owner.frame < len(frames) else None
    return {
        "pid": owner.pid,
        "tid": owner.tid,
        "name": owner.name or None,
        "state": owner.state,
        "how": owner.how or None,
        "assumes": owner.assumes or None,
        "frame": _frame(holding),
        "taken": _frame(owner.taken),
    }


def _frame(frame: Frame | None) -> Json | None:
    return {"function": frame.function, "file": frame.file, "line": frame.line} if frame else None
