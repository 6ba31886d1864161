"""The line of the `with` statement that opened a block, for a block that `with_blocks.py` found open.

Source: from CPython 3.11 on the block's handler, which the exception table names, has the line of its `with`; up to
3.10 the frame's own stack of blocks names the handler, and the one SETUP_WITH that leads there is the `with`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from stucktrace.collectors import exception_table, memory
from stucktrace.collectors.frame_names import Names
from stucktrace.collectors.python_frames import Frame
from stucktrace.collectors.python_stacks import Stacks
from stucktrace.facts import Frame as Shown

_EXTENDED, _SETUP = 144, (143, 154)
"""EXTENDED_ARG; SETUP_WITH and SETUP_ASYNC_WITH: the same numbers in 3.8, 3.9 and 3.10 (Include/opcode.h)."""
_BYTECODE = 48
_MAX_CODE_BYTES = 1 << 20
_BLOCK_BYTES, _MAX_BLOCKS = 12, 20


def taken(stacks: Stacks, frame: Frame, depth: int) -> Shown | None:
    """Where the frame entered the block that ends with value number `depth` of its stack; None where it is not told.

    Raises OSError.
    """
    old = bool(stacks.walk.offsets.blocks)
    address = _set_up(stacks, frame, depth) if old else _handler(stacks, frame, depth)
    return Names(stacks.walk, stacks.values, stacks.minor).at(frame, address) if address is not None else None


def _handler(stacks: Stacks, frame: Frame, depth: int) -> int | None:
    walk = stacks.walk
    code = walk.code(frame.code)
    if code is None:
        return None
    instruction = (frame.word(walk.offsets.instruction) - frame.code - walk.offsets.first_instruction) // 2
    target = exception_table.ends_at(walk.table(code), instruction, depth)
    return 2 * target if target is not None else None


def _set_up(stacks: Stacks, frame: Frame, depth: int) -> int | None:
    walk = stacks.walk
    place = frame.address + walk.offsets.blocks
    (count,) = struct.unpack("<i", memory.read(walk.pid, place, 4))
    if not 0 < count <= _MAX_BLOCKS:
        return None
    blocks = struct.iter_unpack("<3i", memory.read(walk.pid, place + 8, _BLOCK_BYTES * count))
    handlers = [handler for _, handler, level in blocks if level == depth]
    bytecode = walk.word(frame.code + _BYTECODE)
    length = walk.word(bytecode + 16)
    if not handlers or not 0 < length <= _MAX_CODE_BYTES:
        return None
    unit = 2 if stacks.minor >= (3, 10) else 1
    found = dict(leading(memory.read(walk.pid, bytecode + 32, length), unit))
    return found.get(handlers[0] * unit)


def leading(bytecode: bytes, unit: int) -> Iterator[tuple[int, int]]:
    """(handler, instruction) of each SETUP_WITH, both in bytes. `unit`: in how many bytes it counts its jump."""
    argument = 0
    for place in range(0, len(bytecode) - 1, 2):
        operation, argument = bytecode[place], argument << 8 | bytecode[place + 1]
        if operation in _SETUP:
            yield place + 2 + argument * unit, place
        if operation != _EXTENDED:
            argument = 0
