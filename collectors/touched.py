"""Which parts of a process's memory were ever used, so that a search leaves out what was only reserved: most of a
thread's stack, say.

Source: /proc/PID/pagemap, one word a page: bit 63 says that it is in memory, bit 62 that it is swapped out. Who may
read a process's memory may read that. Where it cannot be read, everything counts as used.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator

from stucktrace.collectors.procfs import PAGE_BYTES
from stucktrace.collectors.regions import Region

_USED = 0b11 << 62
_CHUNK_BYTES = 4 << 20


def ranges(pid: int, areas: Iterable[Region]) -> Iterator[tuple[int, int]]:
    """(start, length) of what was used, at most 4 MB at a time."""
    try:
        file = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        file = -1
    try:
        for area in areas:
            for start in range(area.start, area.end, _CHUNK_BYTES):
                count = (min(start + _CHUNK_BYTES, area.end) - start) // PAGE_BYTES
                pages = _pages(file, start, count)
                if pages is None:
                    yield start, count * PAGE_BYTES
                else:
                    yield from _runs(start, pages)
    finally:
        if file >= 0:
            os.close(file)


def _pages(file: int, start: int, count: int) -> tuple[int, ...] | None:
    try:
        data = os.pread(file, 8 * count, start // PAGE_BYTES * 8) if file >= 0 else b""
    except OSError:
        return None
    return struct.unpack(f"<{count}Q", data) if len(data) == 8 * count else None


def _runs(start: int, pages: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    began: int | None = None
    for number, page in enumerate((*pages, 0)):
        if page & _USED and began is None:
            began = number
        elif not page & _USED and began is not None:
            yield start + began * PAGE_BYTES, (number - began) * PAGE_BYTES
            began = None
