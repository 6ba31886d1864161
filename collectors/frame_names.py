"""The function, file and line of frames that `python_frames.py` walked, for stacks that py-spy does not show.

As py-spy names them: a function with its class from CPython 3.11 on (`co_qualname`), the file in the target's own view.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from stucktrace.collectors import code_lines, memory, python_frames
from stucktrace.collectors.python_frames import Walk
from stucktrace.collectors.python_values import Values
from stucktrace.facts import Frame

_LONGEST_NAME = 200
_LONGEST_FILE = 1_000
_MAX_TABLE_BYTES = 1 << 20
_BYTES_HEAD = 32


_LAST_INSTRUCTION = {(3, 8): (104, 1), (3, 9): (104, 1), (3, 10): (96, 2)}
"""`f_lasti`: its offset in the frame, and how many bytes it counts by. From the headers of 3.8.18, 3.9.18, 3.10.13."""


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
        if self._minor in _LAST_INSTRUCTION:
            place, unit = _LAST_INSTRUCTION[self._minor]
            data = memory.read(self._walk.pid, frame.address + place, 4)
            return unit * int(struct.unpack("<i", data)[0])
        (instruction,) = struct.unpack_from("<Q", frame.head, self._walk.offsets.instruction)
        return int(instruction) - frame.code - self._walk.offsets.first_instruction

    def _code(self, address: int) -> _Code | None:
        if address not in self._codes:
            self._codes[address] = self._read(address)
        return self._codes[address]

    def _read(self, address: int) -> _Code | None:
        code = self._walk.code(address)
        if code is None:
            return None
        function = self._values.text(code.qualified or code.function, _LONGEST_NAME)
        file, length = self._values.text(code.file, _LONGEST_FILE), self._walk.word(code.lines + 16)
        if function is None or file is None or not 0 <= length <= _MAX_TABLE_BYTES:
            return None
        lines = memory.read(self._walk.pid, code.lines + _BYTES_HEAD, length)
        return _Code(function, file, code.first_line, lines)
