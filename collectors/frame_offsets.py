"""Where CPython keeps its thread states, frames and code objects: tables up to 3.12, the runtime's own from 3.13 on."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from stucktrace.collectors import memory


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
    """From 3.11 on a byte of the frame: below `SHIM` for one that runs Python code."""
    code_names: int = 32
    """In the code object: the names that it uses, a tuple."""
    first_line: int = 68
    generator: int = 72
    """In a generator object: its frame, up to 3.10 a pointer to it."""


_OLD = Offsets(
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
)
KNOWN = {
    (3, 8): _OLD,
    (3, 9): _OLD,
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
SHIM = 3
HEAD_BYTES = 80
"""No field of a frame but its variables lies further in."""
_TABLES = {(3, 13): (184, 232, 344), (3, 14): (208, 256, 384)}
"""Where `_Py_DebugOffsets` says: the thread's current frame; the frame's fields; where a code object's code begins."""


def of(pid: int, minor: tuple[int, int], runtime: int) -> Offsets:
    """From 3.13 on the runtime begins with a table of offsets, the truth about its own build."""
    known = KNOWN[minor]
    if minor not in _TABLES:
        return known
    table = memory.read(pid, runtime, 400)
    if table[:8] != b"xdebugpy":
        return known

    def told(position: int) -> int:
        offset: int = struct.unpack_from("<Q", table, position)[0]
        return offset

    current, frame, first = _TABLES[minor]
    found = replace(
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
    words = found.previous, found.code, found.instruction
    return found if max(words) + 8 <= HEAD_BYTES and found.owner < HEAD_BYTES else known
