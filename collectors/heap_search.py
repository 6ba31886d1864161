"""A pass over all memory of a process that holds Python objects: its heap and its anonymous mappings.

For one-shot commands that the user asks to be thorough; what is looked at all the time finds its objects from frames.
What was swapped out, or never touched, stays so (/proc/PID/pagemap).
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from io import FileIO

from stucktrace.collectors import memory
from stucktrace.collectors.regions import Regions

MOST_BYTES = 1 << 30
_CHUNK_BYTES = 4 << 20
_PAGE_BYTES = 4096
_PRESENT = 1 << 63
"""Of an entry of /proc/PID/pagemap (admin-guide/mm/pagemap.rst)."""
OVERLAP_BYTES = 64
"""The longest thing that is searched for: one that lies across the end of a chunk stands whole in the next."""


def chunks(pid: int, mapped: Regions) -> Iterator[tuple[int, bytes]]:
    """(address, what stands there). Raises OSError where the process or the permission is gone."""
    left = MOST_BYTES
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for region in mapped.anonymous_writable():
            for start in range(region.start, region.end, _CHUNK_BYTES - OVERLAP_BYTES):
                for address, length in _present(pagemap, start, min(start + _CHUNK_BYTES, region.end)):
                    left -= length
                    if left < 0:
                        return
                    yield address, memory.read_some(pid, address, length)


def _present(pagemap: FileIO, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(address, length) of what is in memory between two addresses: to read the rest would bring it in from swap."""
    first = start // _PAGE_BYTES
    pagemap.seek(8 * first)
    pages = array("Q", pagemap.read(8 * (-(-end // _PAGE_BYTES) - first)))
    begin = None
    for place, page in enumerate((*pages, 0)):
        if page & _PRESENT:
            begin = place if begin is None else begin
        elif begin is not None:
            low, high = max(start, (first + begin) * _PAGE_BYTES), min(end, (first + place) * _PAGE_BYTES)
            yield low, high - low
            begin = None


def instances(pid: int, mapped: Regions, kind: int, most_s: float) -> list[int]:
    """Where an object of this very class may stand; gone ones are among them. `most_s` of processor time."""
    found: dict[int, None] = {}
    ends = time.thread_time() + most_s
    for start, data in chunks(pid, mapped):
        for place in memory.places_of(data, kind):
            if place >= 8:
                found[start + place - 8] = None
        if time.thread_time() > ends:
            break
    return list(found)
