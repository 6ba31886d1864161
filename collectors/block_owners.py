"""The owner of a `threading.Lock`, by elimination: the one thread that is inside a `with` block of it.

`with_blocks.py` says which blocks are open. A thread inside `Condition.wait` gave its lock back for the time of the
wait, so it is no candidate; two candidates are none. Every reading is made twice, for what a running thread holds
changes. In a forked child a lock that nobody here holds, and that one of the parent's other threads holds at the very
same address, was inherited locked. `acquire()` without `with` leaves no trace, so "nobody" proves nothing by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from stucktrace.collectors import pthread, pyspy, regions, with_blocks
from stucktrace.collectors.cpython_objects import LockObject, Reader
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.lock_owners import Owners
from stucktrace.collectors.with_blocks import Held
from stucktrace.errors import CollectorError
from stucktrace.facts import LockOwner, PythonFact, ThreadFact

_PARENT_DEADLINE_S = 0.5


class BlockOwners:
    """Answers for one process at one instant; reads nothing until it is asked."""

    def __init__(self, reader: Reader, found: Interpreter | None, owners: Owners, python: PythonFact | None) -> None:
        self._reader = reader
        self._interpreter = found
        self._owners = owners
        self._python = python

    def owner(self, held: LockObject, waiter: ThreadFact) -> LockOwner | None:
        """None: not known."""
        here = self._holders(held)
        if here is None or len(here) > 1:
            return None
        if here:
            return self._owners.by_ns_tid(here[0], waiter, shared=False)
        return self._inherited(held)

    def settle(self, owner: LockOwner, held: LockObject, waiter: ThreadFact) -> LockOwner:
        """An RLock's owner that may be a thread here or one of the parent's: whichever is inside a block of it."""
        here = self._holders(held)
        if here is None:
            return owner
        if owner.ns_tid is not None and owner.ns_tid in here:
            return self._owners.by_ns_tid(owner.ns_tid, waiter, shared=False)
        return (self._inherited(held) or owner) if not here else owner

    def _holders(self, held: LockObject) -> tuple[int, ...] | None:
        """ns_tids of the threads inside a block of this lock; None where that could not be read for certain."""
        return _agreed(self._here, held, self._waiting)

    @cached_property
    def _here(self) -> tuple[Held, ...]:
        return tuple(with_blocks.read(self._reader, self._interpreter, self._owners.idents) for _ in range(2))

    @cached_property
    def _waiting(self) -> frozenset[int]:
        threads = self._python.threads if self._python is not None else ()
        tids = {thread.tid for thread in threads if _in_wait((frame.function, frame.file) for frame in thread.frames)}
        return frozenset(ns_tid for ns_tid, thread in self._owners.ns_tids.items() if thread.tid in tids)

    def _inherited(self, held: LockObject) -> LockOwner | None:
        if self._owners.parent is None or self._parents is None:
            return None
        readings, waiting = self._parents
        there = _agreed(readings, held, waiting)
        # What the forking thread holds there, it may have taken since.
        if there is None or len(there) != 1 or there[0] == self._owners.forking_thread:
            return None
        name = self._owners.parent.threads.get(there[0], "")
        return LockOwner("absent", ns_tid=there[0], pid=self._owners.pid, name=name, parent_thread=True)

    @cached_property
    def _parents(self) -> tuple[tuple[Held, ...], frozenset[int]] | None:
        """The parent's open blocks, read twice, and its threads inside `Condition.wait`."""
        parent, offset = self._owners.parent, self._owners.offset
        if parent is None or offset is None or self._interpreter is None:
            return None
        try:
            dump = pyspy.dump(parent.pid, deadline_s=_PARENT_DEADLINE_S)
            idents = pthread.tids(parent.pid, [thread["thread_id"] for thread in dump.threads], offset)
            reader = Reader(parent.pid, regions.read(parent.pid), self._reader.layout)
            readings = tuple(with_blocks.read(reader, self._interpreter, idents) for _ in range(2))
        except (CollectorError, OSError, KeyError, TypeError):
            return None
        waiting = (
            thread["thread_id"]
            for thread in dump.threads
            if _in_wait((frame["name"], frame["filename"]) for frame in thread["frames"])
        )
        return readings, frozenset(idents[ident] for ident in waiting if ident in idents)


def _agreed(readings: Sequence[Held], held: LockObject, waiting: frozenset[int]) -> tuple[int, ...] | None:
    if not all(reading.complete for reading in readings):
        return None
    answers = {reading.holders(held.address) for reading in readings}
    return tuple(ns_tid for ns_tid in answers.pop() if ns_tid not in waiting) if len(answers) == 1 else None


def _in_wait(frames: Iterable[tuple[str, str]]) -> bool:
    return any(name.rpartition(".")[2] == "wait" and file.endswith("/threading.py") for name, file in frames)
