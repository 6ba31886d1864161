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
from dataclasses import dataclass, replace
from functools import cached_property

from stucktrace.collectors import memory
from stucktrace.collectors.cpython_objects import LOCK_TYPES, RLOCK_TYPE, Reader
from stucktrace.collectors.interpreter import Interpreter

DEADLINE_S = 0.25
_MAX_THREADS = 10_000
_MAX_FRAMES = 2_000
_MAX_DEPTH = 1 << 10
_STATE_BYTES = 256


@dataclass(frozen=True)
class _Offsets:
    """Where CPython keeps what is walked here, in bytes. From the headers of 3.8.18, 3.9.18, 3.10.13, 3.11.7, 3.12.1
    and 3.13.0; the same within a minor version."""

    interpreters: int
    threads: int
    frame: tuple[int, ...]
    """From the thread's state to its current frame: offsets to follow."""
    code: int
    previous: int
    instruction: int = 0
    values: int = 72
    local_count: int = 72
    """In the code object: how many slots of the frame are variables; the value stack begins behind them."""
    first_instruction: int = 0
    function_name: int = 32
    blocks: int = 0
    """Up to 3.10: the number of open blocks, and behind it the blocks."""


_EXCEPTION_TABLE = 40
_MAX_BLOCKS = 20
_BLOCK_BYTES = 12
_VALUE_STACK = 64
_KNOWN = {
    (3, 8): _Offsets(32, 8, (24,), 32, 24, function_name=64, blocks=112),
    (3, 9): _Offsets(32, 8, (24,), 32, 24, function_name=64, blocks=112),
    (3, 10): _Offsets(32, 8, (24,), 32, 24, blocks=104),
    (3, 11): _Offsets(40, 16, (56, 8), 32, 48, 56, local_count=76, first_instruction=184),
    (3, 12): _Offsets(40, 72, (56, 0), 0, 8, 56, first_instruction=192),
    (3, 13): _Offsets(632, 7344, (72,), 0, 8, 56, first_instruction=200),
}


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
    if found is None or found.runtime is None or found.free_threaded or found.minor not in _KNOWN:
        return NOTHING
    walk = _Walk(reader, _offsets(reader.pid, found), found.runtime[0], idents)
    locks: dict[int, tuple[int, ...]] = {}
    try:
        for state in walk.states():
            ns_tid = walk.owner(state)
            if ns_tid is None or time.monotonic() > walk.ends:
                return Held(locks, False)
            locks[ns_tid] = locks.get(ns_tid, ()) + tuple(walk.held(state))
    except ProcessLookupError:
        raise
    except (OSError, struct.error):
        # A frame that went while it was read: that thread runs, and what it holds changes.
        return Held(locks, False)
    return Held(locks, set(idents.values()) <= locks.keys())


def _offsets(pid: int, found: Interpreter) -> _Offsets:
    """From 3.13 on the runtime begins with a table of offsets, the truth about its own build."""
    assert found.minor is not None and found.runtime is not None
    known = _KNOWN[found.minor]
    if found.minor < (3, 13):
        return known
    table = memory.read(pid, found.runtime[0], 192)
    if table[:8] != b"xdebugpy":
        return known
    interpreters, threads, frame = (struct.unpack_from("<Q", table, position)[0] for position in (40, 72, 184))
    return replace(known, interpreters=interpreters, threads=threads, frame=(frame,))


class _Walk:
    def __init__(self, reader: Reader, offsets: _Offsets, runtime: int, idents: Mapping[int, int]) -> None:
        self.reader = reader
        self.pid = reader.pid
        self.offsets = offsets
        self.runtime = runtime
        self.idents = idents
        self.ends = time.monotonic() + DEADLINE_S
        self._codes: dict[int, tuple[int, bytes]] = {}

    def states(self) -> Iterator[int]:
        """The thread states of the main interpreter."""
        interpreter = self._word(self.runtime + self.offsets.interpreters)
        state = self._word(interpreter + self.offsets.threads)
        for _ in range(_MAX_THREADS):
            if not state:
                return
            yield state
            state = self._word(state + 8)

    def owner(self, state: int) -> int | None:
        """Whose state it is: it holds the thread's pthread address, and the tid beside it."""
        for word in struct.unpack(f"<{_STATE_BYTES // 8}Q", memory.read(self.pid, state, _STATE_BYTES)):
            if word in self.idents:
                return self.idents[word]
        return None

    def held(self, state: int) -> Iterator[int]:
        frame = state
        for offset in self.offsets.frame:
            frame = self._word(frame + offset)
        for _ in range(_MAX_FRAMES):
            if not frame or time.monotonic() > self.ends:
                return
            head = memory.read(self.pid, frame, 72)
            values = self._in_blocks(frame, head) if self.offsets.blocks else self._in_ranges(frame, head)
            yield from filter(None, map(self._lock_of, values))
            (frame,) = struct.unpack_from("<Q", head, self.offsets.previous)

    def _in_ranges(self, frame: int, head: bytes) -> tuple[int, ...]:
        """The values that are alive as the exception table says."""
        (code,) = struct.unpack_from("<Q", head, self.offsets.code)
        (instruction,) = struct.unpack_from("<Q", head, self.offsets.instruction)
        variables, table = self._code(code)
        depth = alive(table, (instruction - code - self.offsets.first_instruction) // 2) if table else 0
        return self._words(frame + self.offsets.values + 8 * variables, depth)

    def _in_blocks(self, frame: int, head: bytes) -> tuple[int, ...]:
        """The values below the innermost open block: its type, its handler and its level are three ints."""
        (count,) = struct.unpack("<i", memory.read(self.pid, frame + self.offsets.blocks, 4))
        if not 0 < count <= _MAX_BLOCKS:
            return ()
        innermost = frame + self.offsets.blocks + 8 + _BLOCK_BYTES * (count - 1)
        (level,) = struct.unpack("<i", memory.read(self.pid, innermost + 8, 4))
        (stack,) = struct.unpack_from("<Q", head, _VALUE_STACK)
        return self._words(stack, level) if 0 < level < _MAX_DEPTH else ()

    def _code(self, address: int) -> tuple[int, bytes]:
        """(number of variables, exception table) of a code object; (0, b"") for the interpreter's own shims."""
        if address not in self._codes:
            self._codes[address] = self._read_code(address)
        return self._codes[address]

    def _read_code(self, address: int) -> tuple[int, bytes]:
        if not address or self.reader.type_name(self._word(address + 8)) != "code":
            return 0, b""
        table = self._word(address + _EXCEPTION_TABLE)
        length = self._word(table + 16)
        (variables,) = struct.unpack("<I", memory.read(self.pid, address + self.offsets.local_count, 4))
        if not 0 <= length < 1 << 20 or variables > 1 << 16:
            return 0, b""
        return variables, memory.read(self.pid, table + 32, length) if length else b""

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

    def _words(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", memory.read(self.pid, address, 8 * count)) if count else ()

    def _word(self, address: int) -> int:
        word: int = struct.unpack("<Q", memory.read(self.pid, address, 8))[0]
        return word


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
