"""A pass over all memory of a process that holds Python objects: its heap and its anonymous mappings.

For one-shot commands that the user asks to be thorough; what is looked at all the time finds its objects from frames.
What was swapped out, or never touched, stays so (/proc/PID/pagemap); whoever concludes from what was not found is told
of what was not looked at.
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
_PRESENT, _SWAPPED = 1 << 63, 1 << 62
"""Of an entry of /proc/PID/pagemap (admin-guide/mm/pagemap.rst)."""
OVERLAP_BYTES = 64
"""The longest thing that is searched for: one that lies across the end of a chunk stands whole in the next."""


def chunks(pid: int, mapped: Regions) -> Iterator[tuple[int, bytes | None]]:
    """(address, what stands there; None: something from there on is not looked at). Raises OSError where the process or
    the permission is gone."""
    left = MOST_BYTES
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for region in mapped.anonymous_writable():
            for start in range(region.start, region.end, _CHUNK_BYTES - OVERLAP_BYTES):
                end = min(start + _CHUNK_BYTES, region.end)
                pages = _pages(pagemap, start, end)
                if any(page & _SWAPPED and not page & _PRESENT for page in pages):
                    yield start, None
                for address, length in _present(pages, start, end):
                    left -= length
                    if left < 0:
                        yield address, None
                        return
                    yield address, memory.read_some(pid, address, length)


def _pages(pagemap: FileIO, start: int, end: int) -> array[int]:
    """The entries of the pages between two addresses."""
    first = start // _PAGE_BYTES
    pagemap.seek(8 * first)
    return array("Q", pagemap.read(8 * (-(-end // _PAGE_BYTES) - first)))


def _present(pages: array[int], start: int, end: int) -> Iterator[tuple[int, int]]:
    """(address, length) of what is in memory between two addresses: to read the rest would bring it in from swap."""
    first = start // _PAGE_BYTES
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
        for place in memory.places_of(data, kind) if data is not None else ():
            if place >= 8:
                found[start + place - 8] = None
        if time.thread_time() > ends:
            break
    return list(found)
