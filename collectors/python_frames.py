"""The Python frames of another process, walked in its memory: thread states, their frames, and the frames' code.

py-spy names the frames; this gives what it does not: where each frame lies, the words on its value stack, and the
addresses of its variables. Nothing is stopped, so a frame can go while it is read: callers read twice, and every read
is bounded. CPython 3.8 to 3.13 with the GIL; a free-threaded build and other versions have no walk.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from stucktrace.collectors import memory
from stucktrace.collectors.cpython_objects import Reader
from stucktrace.collectors.interpreter import Interpreter

MAX_FRAMES = 2_000
_MAX_THREADS = 10_000
_MAX_VARIABLES = 1 << 16
_MAX_TABLE_BYTES = 1 << 20
_STATE_BYTES = 256
_HEAD_BYTES = 72
_CODE_BYTES = 136
_EXCEPTION_TABLE = 40
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class Offsets:
    """Where CPython keeps what is walked here, in bytes. From the headers of 3.8.18, 3.9.18, 3.10.13, 3.11.7, 3.12.1
    and 3.13.0; the same within a minor version."""

    interpreters: int
    threads: int
    frame: tuple[int, ...]
    """From the thread's state to its current frame: offsets to follow."""
    code: int
    previous: int
    instruction: int = 0
    variables: int = 72
    """In the frame: its variables, and from 3.11 on the value stack behind them."""
    local_count: int = 72
    """In the code object, from 3.11 on: how many variables, cells and free ones included."""
    first_instruction: int = 0
    function_name: int = 32
    next_interpreter: int = 0
    blocks: int = 0
    """Up to 3.10: the number of open blocks, and behind it the blocks."""


_KNOWN = {
    (3, 8): Offsets(32, 8, (24,), 32, 24, variables=360, function_name=64, blocks=112),
    (3, 9): Offsets(32, 8, (24,), 32, 24, variables=360, function_name=64, blocks=112),
    (3, 10): Offsets(32, 8, (24,), 32, 24, variables=352, blocks=104),
    (3, 11): Offsets(40, 16, (56, 8), 32, 48, 56, local_count=76, first_instruction=184),
    (3, 12): Offsets(40, 72, (56, 0), 0, 8, 56, first_instruction=192),
    (3, 13): Offsets(632, 7344, (72,), 0, 8, 56, first_instruction=200, next_interpreter=7264),
}


@dataclass(frozen=True)
class Frame:
    """One frame as it lies in the target's memory."""

    address: int
    head: bytes
    code: int


@dataclass(frozen=True)
class Code:
    """A code object."""

    variables: int
    """How many slots its frames have for variables, cells and free ones included."""
    table: int
    """Address of the exception table (3.11 and later), a bytes object."""
    function: int
    """Address of its name, a str."""
    file: int
    names: tuple[int, ...]
    """Addresses of the tuples that hold the variables' names, in the order of the slots."""


class _Page:
    """Reads a page at a time: from 3.11 on a thread's frames lie close together."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._start, self._data = 0, b""

    def read(self, address: int, length: int) -> bytes:
        if not self._start <= address <= self._start + len(self._data) - length:
            self._start = address & -_PAGE_BYTES
            size = _PAGE_BYTES if address + length <= self._start + _PAGE_BYTES else 2 * _PAGE_BYTES
            self._data = memory.read_some(self._pid, self._start, size)
        place = address - self._start
        data = self._data[place : place + length]
        return data if len(data) == length else memory.read(self._pid, address, length)


class Walk:
    """The frames of one process, as far as they are read before `ends` (CLOCK_MONOTONIC)."""

    def __init__(self, reader: Reader, offsets: Offsets, runtime: int, ends: float) -> None:
        self.reader = reader
        self.pid = reader.pid
        self.offsets = offsets
        self.ends = ends
        self._runtime = runtime
        self._codes: dict[int, Code | None] = {}
        self._tables: dict[int, bytes] = {}

    def states(self) -> Iterator[int]:
        """The thread states of all interpreters; a thread has one in each that it ran in."""
        interpreter = self.word(self._runtime + self.offsets.interpreters)
        state = self.word(interpreter + self.offsets.threads)
        for _ in range(_MAX_THREADS):
            while not state:
                interpreter = self.word(interpreter + self.offsets.next_interpreter)
                if not interpreter:
                    return
                state = self.word(interpreter + self.offsets.threads)
            yield state
            state = self.word(state + 8)

    def owner(self, state: int, idents: Mapping[int, int]) -> int | None:
        """Whose state it is, of `idents` (pthread address -> tid): it holds the thread's pthread address."""
        for word in struct.unpack(f"<{_STATE_BYTES // 8}Q", memory.read(self.pid, state, _STATE_BYTES)):
            if word in idents:
                return idents[word]
        return None

    def frames(self, state: int) -> Iterator[Frame]:
        """Innermost first."""
        page, frame = _Page(self.pid), state
        for offset in self.offsets.frame:
            frame = self.word(frame + offset)
        for _ in range(MAX_FRAMES):
            if not frame or time.monotonic() > self.ends:
                return
            head = page.read(frame, _HEAD_BYTES)
            (code,) = struct.unpack_from("<Q", head, self.offsets.code)
            yield Frame(frame, head, code)
            (frame,) = struct.unpack_from("<Q", head, self.offsets.previous)

    def code(self, address: int) -> Code | None:
        """None for the interpreter's own shims."""
        if address not in self._codes:
            self._codes[address] = self._read_code(address)
        return self._codes[address]

    def _read_code(self, address: int) -> Code | None:
        if not address:
            return None
        head = memory.read(self.pid, address, _CODE_BYTES)
        if self.reader.type_name(struct.unpack_from("<Q", head, 8)[0]) != "code":
            return None
        if self.offsets.blocks:
            file, function = struct.unpack_from("<2Q", head, 104)
            plain, free, cells = struct.unpack_from("<3Q", head, 72)
            names = (plain, cells, free)
            variables, table = sum(self.word(each + 16) for each in names), 0
        else:
            file, function = struct.unpack_from("<2Q", head, 112)
            names = struct.unpack_from("<Q", head, 96)
            (variables,) = struct.unpack_from("<I", head, self.offsets.local_count)
            (table,) = struct.unpack_from("<Q", head, _EXCEPTION_TABLE)
        return Code(variables, table, function, file, names) if 0 <= variables <= _MAX_VARIABLES else None

    def table(self, code: Code) -> bytes:
        """The exception table, b"" where there is none."""
        if code.table not in self._tables:
            length = self.word(code.table + 16) if code.table else 0
            plausible = 0 < length < _MAX_TABLE_BYTES
            self._tables[code.table] = memory.read(self.pid, code.table + 32, length) if plausible else b""
        return self._tables[code.table]

    def slots(self, frame: Frame) -> range:
        """Where a frame's variables lie."""
        code = self.code(frame.code)
        start = frame.address + self.offsets.variables
        return range(start, start + 8 * (code.variables if code is not None else 0), 8)

    def words(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", memory.read(self.pid, address, 8 * count)) if count else ()

    def word(self, address: int) -> int:
        word: int = struct.unpack("<Q", memory.read(self.pid, address, 8))[0]
        return word


def walk(reader: Reader, found: Interpreter | None, deadline_s: float) -> Walk | None:
    """None for a version whose frames are not known. Raises OSError."""
    if found is None or found.runtime is None or found.free_threaded or found.minor not in _KNOWN:
        return None
    offsets = _offsets(reader.pid, found.minor, found.runtime[0])
    return Walk(reader, offsets, found.runtime[0], time.monotonic() + deadline_s)


def _offsets(pid: int, minor: tuple[int, int], runtime: int) -> Offsets:
    """From 3.13 on the runtime begins with a table of offsets, the truth about its own build."""
    known = _KNOWN[minor]
    if minor < (3, 13):
        return known
    table = memory.read(pid, runtime, 192)
    if table[:8] != b"xdebugpy":
        return known
    interpreters, following, threads, frame = (
        struct.unpack_from("<Q", table, position)[0] for position in (40, 64, 72, 184)
    )
    return replace(known, interpreters=interpreters, next_interpreter=following, threads=threads, frame=(frame,))
