"""Locks that children wait for and whose holder died: a pool is dead then, and its parent does not know.

Source: /proc/PID/task/PID/syscall of each child, and semlocks.py for the first one that waits for each lock.
"""

from __future__ import annotations

from collections.abc import Sequence

from stucktrace.collectors import cpython_objects, interpreter, regions, sharers
from stucktrace.collectors.cpython_objects import Layout
from stucktrace.collectors.semlocks import SemLocks, awaited
from stucktrace.errors import CannotInspect
from stucktrace.facts import LockFact, ProcessFact, Relative

_MOST_CHILDREN = 128
_MOST_LOCKS = 4


def collect(process: ProcessFact, relatives: Sequence[Relative]) -> tuple[LockFact, ...]:
    """One fact a child that waits without a timeout for a lock that nobody holds, by its main thread."""
    children = [relative.pid for relative in relatives if relative.relation == "child"][:_MOST_CHILDREN]
    waiting: dict[tuple[int, tuple[str, int]], list[int]] = {}
    for pid in children:
        address = awaited(cpython_objects.call_fields(pid, pid) or ())
        file = _file(pid, address) if address else None
        if file is not None:
            waiting.setdefault((address, file), []).append(pid)
    found: list[LockFact] = []
    # The children of a fork have it at the same address.
    for (address, _), pids in list(waiting.items())[:_MOST_LOCKS]:
        fact = _dead(pids[0], address, [process.pid, *children])
        found += [
            LockFact(address, fact.kind, pid, fact.mapping, shared=True, owner=fact.owner) for pid in pids if fact
        ]
    return tuple(found)


def _dead(pid: int, address: int, family: Sequence[int]) -> LockFact | None:
    try:
        mapped = regions.read(pid)
        python = interpreter.find(pid, mapped)
    except OSError:
        return None
    if python is None:
        return None
    lock = SemLocks(pid, Layout.of(python.free_threaded), python, family).find(pid, address)
    if lock is None or lock.owner is None or lock.owner.state != "absent":
        return None
    return LockFact(address, lock.kind, pid, mapped.describe(address), shared=True, owner=lock.owner)


def _file(pid: int, address: int) -> tuple[str, int] | None:
    """What is mapped there, by device and inode: of two children that forked apart it may be another lock's."""
    try:
        shared = sharers.of(pid, address)
    except CannotInspect:
        return None
    return shared.file if shared is not None else None
