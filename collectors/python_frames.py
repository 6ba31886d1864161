"""The Python frames of another process, walked in its memory: thread states, their frames, and the frames' code.

py-spy names the frames; this gives what it does not: where each frame lies, the words on its value stack, and the
addresses of its variables. Nothing is stopped, so a frame can go while it is read: callers read twice, and every read
is bounded. CPython 3.8 to 3.14 with the GIL; a free-threaded build and other versions have no walk.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stucktrace.collectors import frame_offsets, memory
from stucktrace.collectors.cpython_objects import Reader
from stucktrace.collectors.frame_offsets import Offsets
from stucktrace.collectors.interpreter import Interpreter

MAX_FRAMES = 2_000
_MAX_THREADS = 10_000
_MAX_VARIABLES = 1 << 16
_MAX_TABLE_BYTES = 1 << 20
_STATE_BYTES = 256
_CODE_BYTES = 144
_EXCEPTION_TABLE = 40
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class Frame:
    """One frame as it lies in the target's memory."""

    address: int
    head: bytes
    code: int

    def word(self, offset: int) -> int:
        word: int = struct.unpack_from("<Q", self.head, offset)[0]
        return word


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
    used: int = 0
    """Address of the tuple of the names that it uses: attributes, globals."""
    qualified: int = 0
    """Address of its qualified name, a str (3.11 and later)."""
    first_line: int = 0
    lines: int = 0
    """Address of the table of line numbers, a bytes object."""


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
        interpreter, state = self.word(self._runtime + self.offsets.interpreters), 0
        for step in range(_MAX_THREADS):
            if state:
                yield state
                state = self.word(state + 8)
                continue
            if step:
                interpreter = self.word(interpreter + self.offsets.next_interpreter)
            if not interpreter:
                return
            state = self.word(interpreter + self.offsets.threads)

    def owner(self, state: int, idents: Mapping[int, int]) -> int | None:
        """Whose state it is, of `idents` (pthread address -> tid): it holds the thread's pthread address."""
        for word in struct.unpack(f"<{_STATE_BYTES // 8}Q", memory.read(self.pid, state, _STATE_BYTES)):
            if word in idents:
                return idents[word]
        return None

    def frames(self, state: int) -> Iterator[Frame]:
        """Innermost first."""
        frame = state
        for offset in self.offsets.frame:
            frame = self.word(frame + offset)
        yield from self.chain(frame)

    def chain(self, frame: int) -> Iterator[Frame]:
        """The frame at an address and those that called it: any thread's, or of one that is switched out."""
        page = _Page(self.pid)
        for _ in range(MAX_FRAMES):
            if not frame or time.monotonic() > self.ends:
                return
            found = self._frame(frame, page.read(frame, frame_offsets.HEAD_BYTES))
            yield found
            frame = found.word(self.offsets.previous)

    def frame(self, address: int) -> Frame:
        """The frame at an address: one that is on no stack, of a suspended generator, or once more the same."""
        return self._frame(address, memory.read(self.pid, address, frame_offsets.HEAD_BYTES))

    def _frame(self, address: int, head: bytes) -> Frame:
        return Frame(address, head, object_of(struct.unpack_from("<Q", head, self.offsets.code)[0]))

    def runs_python(self, frame: Frame) -> bool:
        """False for the interpreter's own shims between Python and C."""
        if self.offsets.owner and frame.head[self.offsets.owner] >= frame_offsets.SHIM:
            return False
        return self.code(frame.code) is not None

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
        (used,) = struct.unpack_from("<Q", head, self.offsets.code_names)
        (line,) = struct.unpack_from("<I", head, self.offsets.first_line)
        qualified = 0
        if self.offsets.blocks:
            file, function, lines = struct.unpack_from("<3Q", head, 104)
            plain, free, cells = struct.unpack_from("<3Q", head, 72)
            names = (plain, cells, free)
            variables, table = sum(self.word(each + 16) for each in names), 0
        else:
            file, function, qualified, lines = struct.unpack_from("<4Q", head, 112)
            names = struct.unpack_from("<Q", head, 96)
            (variables,) = struct.unpack_from("<I", head, self.offsets.local_count)
            (table,) = struct.unpack_from("<Q", head, _EXCEPTION_TABLE)
        if not 0 <= variables <= _MAX_VARIABLES:
            return None
        return Code(variables, table, function, file, names, used, qualified, line, lines)

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

    def objects(self, address: int, count: int) -> tuple[int, ...]:
        """What variables or values of the stack refer to; 0 for nothing."""
        return tuple(map(object_of, self.words(address, count)))

    def words(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", memory.read(self.pid, address, 8 * count)) if count else ()

    def word(self, address: int) -> int:
        word: int = struct.unpack("<Q", memory.read(self.pid, address, 8))[0]
        return word


def object_of(word: int) -> int:
    """The object that a word of a frame refers to: 3.14 keeps a tag in the lowest two bits, 3 for a plain number."""
    return 0 if word & 3 == 3 else word & ~3


def walk(reader: Reader, found: Interpreter | None, deadline_s: float) -> Walk | None:
    """None for a version whose frames are not known. Raises OSError."""
    if found is None or found.runtime is None or found.free_threaded or found.minor not in frame_offsets.KNOWN:
        return None
    offsets = frame_offsets.of(reader.pid, found.minor, found.runtime[0])
    return Walk(reader, offsets, found.runtime[0], time.monotonic() + deadline_s)
