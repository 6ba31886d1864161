"""The Python frames of another process, walked in its memory: thread states, their frames, and the frames' code.

py-spy names the frames; this gives what it does not: where each frame lies, the words on its value stack, and the
addresses of its variables. Nothing is stopped, so a frame can go while it is read: callers read twice, and every read
is bounded. CPython 3.8 to 3.14 with the GIL; a free-threaded build and other versions have no walk.
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
_HEAD_BYTES = 80
_CODE_BYTES = 136
_EXCEPTION_TABLE = 40
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class Offsets:
    """Where CPython keeps what is walked here, in bytes. From the headers of 3.8.18, 3.9.18, 3.10.13, 3.11.7, 3.12.1,
    3.13.0 and 3.14.10; the same within a minor version."""

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
    globals: int = 24
    owner: int = 0
    """From 3.11 on a byte of the frame: below `_SHIM` for one that runs Python code."""
    code_names: int = 32
    """In the code object: the names that it uses, a tuple."""
    first_line: int = 68
    generator: int = 72
    """In a generator object: its frame, up to 3.10 a pointer to it."""


_KNOWN = {
    (3, 8): Offsets(
        32,
        8,
        (24,),
        32,
        24,
        variables=360,
        function_name=64,
        blocks=112,
        globals=48,
        code_names=64,
        first_line=40,
        generator=16,
    ),
    (3, 9): Offsets(
        32,
        8,
        (24,),
        32,
        24,
        variables=360,
        function_name=64,
        blocks=112,
        globals=48,
        code_names=64,
        first_line=40,
        generator=16,
    ),
    (3, 10): Offsets(
        32, 8, (24,), 32, 24, variables=352, blocks=104, globals=48, code_names=64, first_line=40, generator=16
    ),
    (3, 11): Offsets(
        40,
        16,
        (56, 8),
        32,
        48,
        56,
        local_count=76,
        first_instruction=184,
        globals=8,
        owner=69,
        first_line=72,
        generator=80,
    ),
    (3, 12): Offsets(40, 72, (56, 0), 0, 8, 56, first_instruction=192, owner=70),
    (3, 13): Offsets(632, 7344, (72,), 0, 8, 56, first_instruction=200, next_interpreter=7264, owner=70),
    (3, 14): Offsets(808, 7344, (72,), 0, 8, 56, variables=80, first_instruction=208, next_interpreter=7272, owner=74),
}
_SHIM = 3
_TABLES = {(3, 13): (184, 232, 344), (3, 14): (208, 256, 384)}
"""Where `_Py_DebugOffsets` says: the thread's current frame; the frame's fields; where a code object's code begins."""


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
            found = self._frame(frame, page.read(frame, _HEAD_BYTES))
            yield found
            frame = found.word(self.offsets.previous)

    def frame(self, address: int) -> Frame:
        """The frame at an address: one that is on no stack, of a suspended generator, or once more the same."""
        return self._frame(address, memory.read(self.pid, address, _HEAD_BYTES))

    def _frame(self, address: int, head: bytes) -> Frame:
        return Frame(address, head, object_of(struct.unpack_from("<Q", head, self.offsets.code)[0]))

    def runs_python(self, frame: Frame) -> bool:
        """False for the interpreter's own shims between Python and C."""
        if self.offsets.owner and frame.head[self.offsets.owner] >= _SHIM:
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
            file, function = struct.unpack_from("<2Q", head, 104)
            plain, free, cells = struct.unpack_from("<3Q", head, 72)
            names = (plain, cells, free)
            variables, table = sum(self.word(each + 16) for each in names), 0
        else:
            file, function, qualified = struct.unpack_from("<3Q", head, 112)
            names = struct.unpack_from("<Q", head, 96)
            (variables,) = struct.unpack_from("<I", head, self.offsets.local_count)
            (table,) = struct.unpack_from("<Q", head, _EXCEPTION_TABLE)
        if not 0 <= variables <= _MAX_VARIABLES:
            return None
        return Code(variables, table, function, file, names, used, qualified, line)

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
    if found is None or found.runtime is None or found.free_threaded or found.minor not in _KNOWN:
        return None
    offsets = _offsets(reader.pid, found.minor, found.runtime[0])
    return Walk(reader, offsets, found.runtime[0], time.monotonic() + deadline_s)


def _offsets(pid: int, minor: tuple[int, int], runtime: int) -> Offsets:
    """From 3.13 on the runtime begins with a table of offsets, the truth about its own build."""
    known = _KNOWN[minor]
    if minor not in _TABLES:
        return known
    table = memory.read(pid, runtime, 400)
    if table[:8] != b"xdebugpy":
        return known

    def told(position: int) -> int:
        offset: int = struct.unpack_from("<Q", table, position)[0]
        return offset

    current, frame, first = _TABLES[minor]
    return replace(
        known,
        interpreters=told(40),
        next_interpreter=told(64),
        threads=told(72),
        frame=(told(current),),
        previous=told(frame),
        code=told(frame + 8),
        instruction=told(frame + 16),
        variables=told(frame + 24),
        owner=told(frame + 32),
        first_instruction=told(first),
    )
