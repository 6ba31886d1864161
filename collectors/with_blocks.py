"""Which thread holds a `threading.Lock`, which itself remembers nobody: read from the open `with` blocks of each
thread.

A `with lock:` keeps the bound `__exit__` of its lock, or of the Condition around it, on the frame's value stack until
it ends (CPython 3.8 to 3.13). How much of the value stack is alive, the code's exception table tells: inside the block
its entry covers the frame's instruction, and its depth counts the `__exit__`; while the lock is still being acquired,
it does not. Up to 3.10 the frame's own stack of blocks tells the same: the block is pushed when the lock was had. So a
lock found there is held, with two exceptions that the caller has to know: inside `Condition.wait` it was given back for
the time of the wait, and code can release it by hand inside the block. `lock.acquire()` without `with` leaves no trace.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from stucktrace.collectors import memory, python_frames
from stucktrace.collectors.cpython_objects import LOCK_TYPES, RLOCK_TYPE, Reader
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.python_frames import Frame, Walk

DEADLINE_S = 0.25
_MAX_DEPTH = 1 << 10
_MAX_BLOCKS = 20
_BLOCK_BYTES = 12
_VALUE_STACK = 64


@dataclass(frozen=True)
class Held:
    """Lock objects (addresses) that each thread holds by open `with` blocks: tid in the target's own view -> locks."""

    locks: Mapping[int, tuple[int, ...]]
    complete: bool
    """Every thread with a Python state was read to the end."""

    @cached_property
    def _holders(self) -> Mapping[int, tuple[int, ...]]:
        holders: dict[int, tuple[int, ...]] = {}
        for ns_tid, locks in self.locks.items():
            for lock in set(locks):
                holders[lock] = (*holders.get(lock, ()), ns_tid)
        return holders

    def holders(self, lock: int) -> tuple[int, ...]:
        return self._holders.get(lock, ())


NOTHING = Held({}, False)


def read(reader: Reader, found: Interpreter | None, idents: Mapping[int, int]) -> Held:
    """`idents`: pthread address -> the target's own tid. Answers NOTHING for a version whose frames are not known."""
    locks: dict[int, tuple[int, ...]] = {}
    try:
        walk = python_frames.walk(reader, found, DEADLINE_S)
        if walk is None:
            return NOTHING
        blocks = _Blocks(walk)
        for state in walk.states():
            ns_tid = walk.owner(state, idents)
            if ns_tid is None or time.monotonic() > walk.ends:
                return Held(locks, False)
            locks[ns_tid] = locks.get(ns_tid, ()) + tuple(blocks.held(state))
    except ProcessLookupError:
        raise
    except (OSError, struct.error):
        # A frame that went while it was read: that thread runs, and what it holds changes.
        return Held(locks, False)
    return Held(locks, set(idents.values()) <= locks.keys())


class _Blocks:
    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.reader = walk.reader
        self.pid = walk.pid
        self.offsets = walk.offsets
        self._words, self._word = walk.words, walk.word

    def held(self, state: int) -> Iterator[int]:
        for frame in self.walk.frames(state):
            values = self._in_blocks(frame) if self.offsets.blocks else self._in_ranges(frame)
            yield from filter(None, map(self._lock_of, values))

    def _in_ranges(self, frame: Frame) -> tuple[int, ...]:
        """The values that are alive as the exception table says."""
        code = self.walk.code(frame.code)
        table = self.walk.table(code) if code is not None else b""
        if code is None or not table:
            return ()
        (instruction,) = struct.unpack_from("<Q", frame.head, self.offsets.instruction)
        depth = alive(table, (instruction - frame.code - self.offsets.first_instruction) // 2)
        return self._words(frame.address + self.offsets.variables + 8 * code.variables, depth)

    def _in_blocks(self, frame: Frame) -> tuple[int, ...]:
        """The values below the innermost open block: its type, its handler and its level are three ints."""
        (count,) = struct.unpack("<i", memory.read(self.pid, frame.address + self.offsets.blocks, 4))
        if not 0 < count <= _MAX_BLOCKS:
            return ()
        innermost = frame.address + self.offsets.blocks + 8 + _BLOCK_BYTES * (count - 1)
        (level,) = struct.unpack("<i", memory.read(self.pid, innermost + 8, 4))
        (stack,) = struct.unpack_from("<Q", frame.head, _VALUE_STACK)
        return self._words(stack, level) if 0 < level < _MAX_DEPTH else ()

    def _lock_of(self, value: int) -> int | None:
        """The lock whose bound `__exit__`, or that of the Condition around it, this value of the stack is."""
        if not value or value % 8 or self.reader.regions.find(value) is None:
            return None
        type_address, method, bound = struct.unpack("<3Q", memory.read(self.pid, value + 8, 24))
        kind = self.reader.type_name(type_address)
        if kind == "method" and bound and self.reader.class_name(bound) == "Condition":
            return self._lock_in(bound) if self._is_exit(method) else None
        if kind != "builtin_function_or_method" or not bound:
            return None
        name = memory.read_some(self.pid, self._word(method), 9)
        return bound if name == b"__exit__\0" and self._is_lock(bound) else None

    def _is_exit(self, function: int) -> bool:
        """A Python function named `__exit__`: its name is a string whose text begins at 48, from 3.12 on at 40."""
        text = memory.read_some(self.pid, self._word(function + self.offsets.function_name) + 40, 17)
        return text[:9] == b"__exit__\0" or text[8:] == b"__exit__\0"

    def _lock_in(self, condition: int) -> int | None:
        """The lock of a `threading.Condition`: the first attribute that its `__init__` sets.

        The values of the attributes lie where the word four words before the object points to (3.11), three words
        before less one (3.12), or behind the object's head and a word (3.13). Up to 3.10 they are those of its dict.
        """
        if self.offsets.blocks:
            first = self._word(self._word(self._word(condition + 16) + 40))
            return first if self._is_lock(first) else None
        before = struct.unpack("<2Q", memory.read(self.pid, condition - 32, 16))
        for values in (before[0], before[1] + 1, condition + 24):
            if values > 0 and values % 8 == 0 and self.reader.regions.find(values) is not None:
                first = self._word(values)
                if self._is_lock(first):
                    return first
        return None

    def _is_lock(self, address: int) -> bool:
        return self.reader.class_name(address) in (*LOCK_TYPES, RLOCK_TYPE)


def alive(table: bytes, instruction: int) -> int:
    """How many values of the stack are alive at an instruction, as the exception table says; 0 outside all its ranges.

    An entry is four numbers of six bits a byte, most significant first (0x40: more follows, 0x80: an entry begins):
    start, length and target in instructions, and twice the depth plus a flag.
    """
    position = 0

    def number() -> int:
        nonlocal position
        value = table[position] & 0x3F
        while table[position] & 0x40:
            position += 1
            value = value << 6 | table[position] & 0x3F
        position += 1
        return value

    try:
        while position < len(table):
            start, length, _, depth = number(), number(), number(), number()
            if start <= instruction < start + length:
                return min(depth >> 1, _MAX_DEPTH)
    except IndexError:
        pass
    return 0
