"""How often a Python function has been called, where CPython counts that for its own ends.

CPython 3.8 to 3.10 count the first 1024 calls of a code object (`co_opcache_flag`, to decide whether a cache is worth
it), 3.11 the first 8 (`co_warmup`, from -8 up to 0). Later versions keep no such count. Offsets are those of code.h,
the same within a minor version. A process that was forked has its parent's counts.
"""

from __future__ import annotations

import struct

from stucktrace.collectors import memory

_COUNT = 168
_MOST = 1024
_WARMUP = 52
_WARM = 8


def calls(pid: int, minor: tuple[int, int], code: int) -> int | None:
    """None where it is not counted, or was called too often for that. Raises OSError."""
    if (3, 8) <= minor <= (3, 10):
        (count,) = struct.unpack("<i", memory.read(pid, code + _COUNT, 4))
        return count if 0 <= count < _MOST else None
    if minor == (3, 11):
        (left,) = struct.unpack("<h", memory.read(pid, code + _WARMUP, 2))
        return left + _WARM if -_WARM <= left < 0 else None
    return None
