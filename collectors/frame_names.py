"""The function, file and line of frames that `python_frames.py` walked, for stacks that py-spy does not show.

As py-spy names them: a function with its class from CPython 3.11 on (`co_qualname`), the file in the target's own view.
Offsets in the code object: from the headers of 3.8.18, 3.9.18, 3.10.13, 3.11.7, 3.12.1, 3.13.0 and 3.14.0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from stucktrace.collectors import code_lines, memory, python_frames
from stucktrace.collectors.python_frames import Walk
from stucktrace.collectors.python_values import Values
from stucktrace.facts import Frame

_CODE_BYTES = 144
_LONGEST_NAME = 200
_LONGEST_FILE = 1_000
_MAX_TABLE_BYTES = 1 << 20
_BYTES_HEAD = 32


@dataclass(frozen=True)
class _Offsets:
    file: int
    function: int
    table: int
    first_line: int
    last_instruction: int = 0
    """Up to 3.10: in the frame, the number of the instruction it is at."""
    instruction_bytes: int = 2


_OLD = _Offsets(104, 112, 120, 40, last_instruction=104, instruction_bytes=1)
_KNOWN = {
    (3, 8): _OLD,
    (3, 9): _OLD,
    (3, 10): _Offsets(104, 112, 120, 40, last_instruction=96),
    (3, 11): _Offsets(112, 128, 136, 72),
    (3, 12): _Offsets(112, 128, 136, 68),
    (3, 13): _Offsets(112, 128, 136, 68),
    (3, 14): _Offsets(112, 128, 136, 68),
}


@dataclass(frozen=True)
class _Code:
    function: str
    file: str
    first_line: int
    table: bytes


class Names:
    """Names the frames of one process; remembers its code objects."""

    def __init__(self, walk: Walk, values: Values, minor: tuple[int, int]) -> None:
        self._walk = walk
        self._values = values
        self._minor = minor
        self._offsets = _KNOWN[minor]
        self._codes: dict[int, _Code | None] = {}
        self._named: dict[tuple[int, int], Frame] = {}

    def frame(self, frame: python_frames.Frame) -> Frame | None:
        """None for the interpreter's own shims. Raises OSError."""
        return self.at(frame, self._address(frame)) if self._code(frame.code) is not None else None

    def at(self, frame: python_frames.Frame, address: int) -> Frame | None:
        """As `frame`, with the line of another instruction of its code: bytes from the first one."""
        code = self._code(frame.code)
        if code is None:
            return None
        if (frame.code, address) not in self._named:
            line = code_lines.line(self._minor, code.table, code.first_line, address)
            self._named[frame.code, address] = Frame(
                code.function, code.file, code.first_line if line is None else line
            )
        return self._named[frame.code, address]

    def _address(self, frame: python_frames.Frame) -> int:
        """Of the frame's instruction, in bytes from the code's first."""
        offsets = self._offsets
        if offsets.last_instruction:
            data = memory.read(self._walk.pid, frame.address + offsets.last_instruction, 4)
            return offsets.instruction_bytes * int(struct.unpack("<i", data)[0])
        (instruction,) = struct.unpack_from("<Q", frame.head, self._walk.offsets.instruction)
        return int(instruction) - frame.code - self._walk.offsets.first_instruction

    def _code(self, address: int) -> _Code | None:
        if address not in self._codes:
            self._codes[address] = self._read(address)
        return self._codes[address]

    def _read(self, address: int) -> _Code | None:
        if self._walk.code(address) is None:
            return None
        head, offsets = memory.read(self._walk.pid, address, _CODE_BYTES), self._offsets
        file, function, table = (
            struct.unpack_from("<Q", head, offset)[0] for offset in (offsets.file, offsets.function, offsets.table)
        )
        texts = self._values.text(function, _LONGEST_NAME), self._values.text(file, _LONGEST_FILE)
        length = self._walk.word(table + 16)
        if texts[0] is None or texts[1] is None or not 0 <= length <= _MAX_TABLE_BYTES:
            return None
        lines = memory.read(self._walk.pid, table + _BYTES_HEAD, length)
        return _Code(texts[0], texts[1], struct.unpack_from("<i", head, offsets.first_line)[0], lines)
