"""The owner of a `threading.Lock`, by elimination: the one thread that is inside a `with` block of it.

`with_blocks.py` says which blocks are open. A thread inside `Condition.wait` gave that condition's lock back for the
time of the wait, so it is no candidate; two candidates are none. Every reading is made twice, for what a running thread
holds changes. In a forked child a lock that nobody here holds, and that one of the parent's other threads holds at the
very same address, was inherited locked. `acquire()` without `with` leaves no trace, so "nobody" proves nothing by
itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from stucktrace.collectors import pthread, pyspy, python_frames, regions, usage, with_blocks, with_lines
from stucktrace.collectors.cpython_objects import LockObject, Reader
from stucktrace.collectors.hand_acquires import Acquired, HandAcquires
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.lock_names import LockNames
from stucktrace.collectors.lock_owners import Owners
from stucktrace.collectors.lock_ways import Ways
from stucktrace.collectors.python_stacks import Stacks
from stucktrace.collectors.with_blocks import Block, Held
from stucktrace.errors import CollectorError
from stucktrace.facts import Frame, LockOwner, PythonFact, ThreadFact

_PARENT_DEADLINE_S = 0.5


class BlockOwners:
    """Answers for one process at one instant; reads nothing until it is asked."""

    def __init__(self, reader: Reader, found: Interpreter | None, owners: Owners, python: PythonFact | None) -> None:
        self._reader = reader
        self._interpreter = found
        self._owners = owners
        self._shown: Mapping[int, tuple[Frame, ...]] = (
            {thread.tid: thread.frames for thread in python.threads} if python is not None else {}
        )

    def owner(self, held: LockObject, waiter: ThreadFact, waiting: frozenset[int]) -> LockOwner | None:
        """None: not known. `waiting`: the ns_tids of all threads that wait for this lock."""
        if self._is_notification(waiter, held):
            return None
        here = self._holders(held)
        if here is None:
            return None
        by_hand = self._by_hand(held, waiting)
        if len({ns_tid for ns_tid, _ in here} | {each.ns_tid for each in by_hand}) > 1:
            return None
        if here:
            return self._in_block(*here[0], held, waiter)
        if by_hand:
            first = by_hand[-1]
            owner = self._owners.by_ns_tid(first.ns_tid, waiter, shared=False)
            frame = self._frame(owner, first.place)
            return replace(owner, how="acquire", assumes=first.assumes, frame=frame, taken=first.taken)
        return self._inherited(held)

    def _is_notification(self, waiter: ThreadFact, held: LockObject) -> bool:
        try:
            return self._names is not None and self._names.is_notification(waiter.ns_tid, held)
        except ProcessLookupError:
            raise
        except (OSError, struct.error):
            return False

    def _in_block(self, ns_tid: int, block: Block, held: LockObject, waiter: ThreadFact) -> LockOwner | None:
        doubt = self._doubt(ns_tid, block, held)
        if doubt is None:
            return None
        owner = self._owners.by_ns_tid(ns_tid, waiter, shared=False)
        assumes = block.assumes or (f"{doubt} has not released it by hand" if doubt else "")
        how = "context manager" if block.assumes else "with block"
        return self._at(replace(owner, how=how, assumes=assumes), block)

    def _doubt(self, ns_tid: int, block: Block, held: LockObject) -> str | None:
        """As `HandAcquires.gives_back`; None too where that cannot be read any more."""
        try:
            return self._hands.gives_back(self._within(ns_tid, block), held.address) if self._hands is not None else ""
        except ProcessLookupError:
            raise
        except (OSError, struct.error):
            return None

    def _within(self, ns_tid: int, block: Block) -> tuple[python_frames.Frame, ...]:
        """The frames that run, or are suspended, inside of a block."""
        stacks, held = self._reading
        running = stacks.frames.get(ns_tid, ())[: block.place + 1] if stacks is not None else ()
        suspended = held.suspended.get(ns_tid, ())
        return (*running, *(frame for place, frame in suspended if place <= block.place))

    def _by_hand(self, held: LockObject, waiting: frozenset[int]) -> tuple[Acquired, ...]:
        try:
            found = self._hands.holders(held.address, waiting) if self._hands is not None else None
        except ProcessLookupError:
            raise
        except (OSError, struct.error):
            found = None
        return found or ()

    @cached_property
    def _hands(self) -> HandAcquires | None:
        if self._ways is None or not self._ways.stacks.complete:
            return None
        tids = self._owners.ns_tids
        shown = {ns_tid: self._shown.get(thread.tid, ()) for ns_tid, thread in tids.items()}

        def still(ns_tid: int) -> bool:
            thread = tids.get(ns_tid)
            return thread is not None and usage.has_run(self._owners.pid, thread) is False

        return HandAcquires(self._ways, shown, still)

    def placed(self, owner: LockOwner, held: LockObject) -> LockOwner:
        """An owner that the lock names itself, with the frame whose block of it is open."""
        mine = [
            block for ns_tid, block in self._holders(held) or () if ns_tid == owner.ns_tid and owner.tid is not None
        ]
        return self._at(owner, mine[0]) if mine else owner

    def settle(self, owner: LockOwner, held: LockObject, waiter: ThreadFact) -> LockOwner:
        """An RLock's owner that may be a thread here or one of the parent's: whichever is inside a block of it."""
        here = self._holders(held)
        if here is None:
            return owner
        if owner.ns_tid is not None and owner.ns_tid in [ns_tid for ns_tid, _ in here]:
            return replace(self._owners.by_ns_tid(owner.ns_tid, waiter, shared=False), how=owner.how)
        inherited = self._inherited(held) if not here else None
        return replace(inherited, how=owner.how) if inherited is not None else owner

    def named(self, ns_tid: int, held: LockObject, source: str) -> tuple[str, str]:
        """As `LockNames.named`, for a thread that waits."""
        try:
            return self._names.named(ns_tid, held, source) if self._names is not None else (source, "")
        except ProcessLookupError:
            raise
        except (OSError, struct.error):
            return source, ""

    @cached_property
    def _names(self) -> LockNames | None:
        return LockNames(self._ways) if self._ways is not None else None

    @cached_property
    def _ways(self) -> Ways | None:
        return Ways(self._first) if self._first is not None else None

    def _at(self, owner: LockOwner, block: Block) -> LockOwner:
        return replace(owner, frame=self._frame(owner, block.place), taken=_taken(self._first, block))

    def _frame(self, owner: LockOwner, place: int) -> int | None:
        stacks, shown = self._first, self._shown.get(owner.tid or 0, ())
        if stacks is None or owner.ns_tid is None:
            return None
        try:
            return stacks.index(owner.ns_tid, place, shown)
        except ProcessLookupError:
            raise
        except (OSError, struct.error):
            return None

    def _holders(self, held: LockObject) -> tuple[tuple[int, Block], ...] | None:
        """The threads inside a block of this lock, by ns_tid; None where that could not be read for certain."""
        return _agreed(self._here, held)

    @property
    def _first(self) -> Stacks | None:
        return self._reading[0]

    @cached_property
    def _reading(self) -> tuple[Stacks | None, Held]:
        return with_blocks.look(self._reader, self._interpreter, self._owners.idents)

    @cached_property
    def _here(self) -> tuple[Held, ...]:
        """Read twice."""
        again = with_blocks.look(self._reader, self._interpreter, self._owners.idents)
        return self._reading[1], again[1]

    def _inherited(self, held: LockObject) -> LockOwner | None:
        if self._owners.parent is None or self._parents is None:
            return None
        there = _agreed(self._parents[1], held)
        # What the forking thread holds there, it may have taken since.
        if there is None or len(there) != 1 or there[0][0] == self._owners.forking_thread:
            return None
        ((ns_tid, block),) = there
        name = self._owners.parent.threads.get(ns_tid, "")
        return LockOwner(
            "absent",
            ns_tid=ns_tid,
            pid=self._owners.pid,
            name=name,
            parent_thread=True,
            how="context manager" if block.assumes else "with block",
            assumes=block.assumes,
            taken=_taken(self._parents[0], block),
        )

    @cached_property
    def _parents(self) -> tuple[Stacks | None, tuple[Held, ...]] | None:
        """The parent's frames, and its open blocks, read twice."""
        parent, offset = self._owners.parent, self._owners.offset
        if parent is None or offset is None or self._interpreter is None:
            return None
        try:
            dump = pyspy.dump(parent.pid, deadline_s=_PARENT_DEADLINE_S)
            idents = pthread.tids(parent.pid, [thread["thread_id"] for thread in dump.threads], offset)
            reader = Reader(parent.pid, regions.read(parent.pid), self._reader.layout)
            readings = [with_blocks.look(reader, self._interpreter, idents) for _ in range(2)]
            return readings[0][0], tuple(held for _, held in readings)
        except (CollectorError, OSError, KeyError, TypeError):
            return None


def _taken(stacks: Stacks | None, block: Block) -> Frame | None:
    """The `with` statement that opened this block."""
    if stacks is None or block.frame is None:
        return None
    try:
        return with_lines.taken(stacks, block.frame, block.depth)
    except (OSError, struct.error):
        # A parent that has ended is none of the target's faults.
        return None


def _agreed(readings: Sequence[Held], held: LockObject) -> tuple[tuple[int, Block], ...] | None:
    if not all(reading.complete for reading in readings):
        return None
    answers = {reading.holders(held.address) for reading in readings}
    return answers.pop() if len(answers) == 1 else None
