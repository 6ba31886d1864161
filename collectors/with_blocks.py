"""Which locks each thread holds by open `with` blocks, and in which frame: a `threading.Lock` itself remembers nobody.

A `with` keeps what ends it on the frame's value stack: up to CPython 3.13 the bound `__exit__`, from 3.14 on the
function and the object. How much of the value stack is alive, the code's exception table tells: inside the block its
entry covers the frame's instruction, and its depth counts the `__exit__`; while the lock is still being acquired, it
does not. Up to 3.10 the frame's own stack of blocks tells the same: the block is pushed when the lock was had. So a
lock found there is held, with two exceptions: inside `Condition.wait` it was given back for the time of the wait
(`Held.returned`), and code can release it by hand inside the block. `lock.acquire()` without `with` leaves no trace.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stucktrace.collectors import exception_table, memory, python_stacks
from stucktrace.collectors.context_managers import Exit, Managers
from stucktrace.collectors.cpython_objects import Reader
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.python_frames import Frame
from stucktrace.collectors.python_stacks import Stacks

_MAX_DEPTH = 1 << 10
_MAX_BLOCKS = 20
_BLOCK_BYTES = 12
_VALUE_STACK = 64
_READINGS = 3


@dataclass(frozen=True)
class Block:
    """One lock (the object's address) that an open `with` block holds."""

    lock: int
    place: int
    """Index of its frame in the thread's stack, innermost 0."""
    assumes: str = ""
    """For a lock that is held by way of another context manager."""
    frame: Frame | None = field(default=None, compare=False)
    depth: int = 0
    """How many values of its frame's stack are alive at the block's beginning."""


@dataclass(frozen=True)
class Held:
    """What each thread holds by open `with` blocks, by its tid in the target's own view."""

    blocks: Mapping[int, tuple[Block, ...]]
    returned: Mapping[int, frozenset[int]]
    """Locks that a thread gave back for the time of a `Condition.wait`, or of a with block that does so."""
    complete: bool
    suspended: Mapping[int, tuple[tuple[int, Frame], ...]] = field(default_factory=dict)
    """The generators of contextlib whose blocks are open, each with the place of the frame that opened it."""

    def holders(self, lock: int) -> tuple[tuple[int, Block], ...]:
        """Who holds it, each with the block that was entered first and takes the least for granted."""
        found: list[tuple[int, Block]] = []
        for ns_tid, blocks in self.blocks.items():
            mine = [block for block in blocks if block.lock == lock]
            if mine and lock not in self.returned.get(ns_tid, ()):
                found.append((ns_tid, min(mine, key=lambda block: (bool(block.assumes), -block.place))))
        return tuple(found)


NOTHING = Held({}, {}, False)


def look(reader: Reader, found: Interpreter | None, idents: Mapping[int, int]) -> tuple[Stacks | None, Held]:
    """The frames of all threads and what they hold. `idents`: pthread address -> the target's own tid.

    What a thread holds is read twice right after each other, while it is in the same frames. Answers NOTHING for a
    version whose frames are not known.
    """
    seen: dict[tuple[int, int], _Scan] = {}

    def examine(stacks: Stacks) -> Callable[[int, int, tuple[Frame, ...]], python_stacks.Examined]:
        reading = _Reading(stacks)

        def examined(ns_tid: int, outside: int, frames: tuple[Frame, ...]) -> python_stacks.Examined:
            scan = seen[ns_tid, outside] = reading.scan(frames)
            return [(len(frames) - block.place, block.lock, block.assumes, block.depth) for block in scan.blocks]

        return examined

    stacks = python_stacks.read(reader, found, idents, examine)
    if stacks is None:
        return None, NOTHING
    blocks: dict[int, tuple[Block, ...]] = {}
    returned: dict[int, frozenset[int]] = {}
    suspended: dict[int, tuple[tuple[int, Frame], ...]] = {}
    for (ns_tid, outside), scan in seen.items():
        moved = tuple(replace(block, place=block.place + outside) for block in scan.blocks)
        blocks[ns_tid] = blocks.get(ns_tid, ()) + moved
        returned[ns_tid] = returned.get(ns_tid, frozenset()) | scan.returned
        within = tuple((place + outside, frame) for place, frame in scan.suspended)
        suspended[ns_tid] = suspended.get(ns_tid, ()) + within
    return stacks, Held(blocks, returned, stacks.complete, suspended)


def read(stacks: Stacks) -> Held:
    """What frames hold that were read before, of whoever they are."""
    reading = _Reading(stacks)
    try:
        scans = {each: reading.scan(frames) for each, frames in stacks.frames.items()}
    except ProcessLookupError:
        raise
    except (OSError, struct.error):
        return NOTHING
    return Held(
        {each: scan.blocks for each, scan in scans.items()},
        {each: scan.returned for each, scan in scans.items()},
        stacks.complete,
        {each: scan.suspended for each, scan in scans.items()},
    )


@dataclass(frozen=True)
class _Scan:
    """What one thread's frames tell."""

    blocks: tuple[Block, ...]
    returned: frozenset[int] = frozenset()
    suspended: tuple[tuple[int, Frame], ...] = ()


def exits(stacks: Stacks, frame: Frame) -> list[Exit]:
    """What ends each open `with` block of a frame; raises OSError where the frame moves on meanwhile."""
    reading = _Reading(stacks)
    return [ends for ends, _ in reading.open(frame)]


class _Reading:
    def __init__(self, stacks: Stacks) -> None:
        self._stacks = stacks
        self._walk = stacks.walk
        self._offsets = stacks.walk.offsets
        self._managers = Managers(stacks, self.blocks)

    def scan(self, frames: Sequence[Frame]) -> _Scan:
        blocks: list[Block] = []
        suspended: list[tuple[int, Frame]] = []
        self._managers.given_up.clear()
        for place, frame in enumerate(frames):
            self._managers.generators.clear()
            blocks += (replace(block, place=place) for block in self.blocks(frame))
            suspended += ((place, generator) for generator in self._managers.generators)
        if not blocks:
            return _Scan(())
        returned = {lock for frame in frames for lock in self.returned(frame)} | self._managers.given_up
        return _Scan(tuple(blocks), frozenset(returned), tuple(suspended))

    def blocks(self, frame: Frame) -> Iterator[Block]:
        for ends, depth in self._exits(self._values(frame)):
            for lock, assumes in self._managers.locks(ends):
                yield Block(lock, 0, assumes, frame, depth)

    def open(self, frame: Frame) -> Iterator[tuple[Exit, int]]:
        return self._exits(self._values(frame))

    def returned(self, frame: Frame) -> Iterator[int]:
        """The lock of the condition that this frame waits for."""
        condition = self._stacks.notified_by(frame)
        lock = self._managers.lock_in(condition) if condition else None
        if lock:
            yield lock

    def _values(self, frame: Frame) -> tuple[int, ...]:
        """The values of the stack that are alive in open blocks; raises OSError where the frame moves on meanwhile."""
        alive = self._in_blocks if self._offsets.blocks else self._in_ranges
        for _ in range(_READINGS):
            start, depth = alive(frame)
            if not depth:
                return ()
            values = self._walk.objects(start, depth)
            again = self._walk.frame(frame.address)
            if again.code == frame.code and alive(again) == (start, depth):
                return values
            frame = again
        raise OSError("the frame does not stand still")

    def _in_ranges(self, frame: Frame) -> tuple[int, int]:
        """(address, count) of the values that are alive as the exception table says."""
        code = self._walk.code(frame.code)
        table = self._walk.table(code) if code is not None else b""
        if code is None or not table:
            return 0, 0
        instruction = frame.word(self._offsets.instruction)
        depth = exception_table.alive(table, (instruction - frame.code - self._offsets.first_instruction) // 2)
        return frame.address + self._offsets.variables + 8 * code.variables, depth

    def _in_blocks(self, frame: Frame) -> tuple[int, int]:
        """The values below the innermost open block: its type, its handler and its level are three ints."""
        pid = self._walk.pid
        (count,) = struct.unpack("<i", memory.read(pid, frame.address + self._offsets.blocks, 4))
        if not 0 < count <= _MAX_BLOCKS:
            return 0, 0
        innermost = frame.address + self._offsets.blocks + 8 + _BLOCK_BYTES * (count - 1)
        (level,) = struct.unpack("<i", memory.read(pid, innermost + 8, 4))
        return frame.word(_VALUE_STACK), level if 0 < level < _MAX_DEPTH else 0

    def _exits(self, values: tuple[int, ...]) -> Iterator[tuple[Exit, int]]:
        """Those that end a `with` block: bound methods, or from 3.14 on a function and its object behind it. Each with
        how many values there are up to it."""
        for place, (value, following) in enumerate(zip(values, (*values, 0)[1:], strict=True), 1):
            bound = self._managers.bound(value)
            ends = bound or self._managers.unbound(value, following)
            if ends is not None and ends.name in ("__exit__", "__aexit__"):
                yield ends, place if bound else place + 1
