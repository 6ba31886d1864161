"""greenlet's C++ objects in the target's memory: found without a list of them, and read for those switched out.

Nobody keeps a list. From greenlet 2.0 on each greenlet has a C++ object, which begins with the address of its class's
table of functions: that word is searched in the memory that holds objects, within `SCAN_BYTES` and `SCAN_S`, and what
is found is one if it leads to a Python object that leads back to it. Further in are the state of its C stack, whose
start tells that it runs or is switched out and whose thread's it is, and its topmost Python frame. Sources:
TGreenlet.hpp, TPythonState.cpp and TUserGreenlet.cpp of greenlet 2.0.2, 3.0.3, 3.1.1, 3.2.4 and 3.5.6.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stucktrace.collectors import interpreter, memory
from stucktrace.collectors.cpython_objects import Reader
from stucktrace.collectors.hubs import GREENLET
from stucktrace.collectors.regions import Region, Regions

SCAN_BYTES = 96 << 20
SCAN_S = 0.15
"""Of the tool's own CPU time: on a busy machine the same work takes longer."""
LONGEST_S = 1.0
MOST = 2_000
_CHUNK_BYTES = 4 << 20
_TABLES = ("_ZTVN8greenlet12UserGreenletE", "_ZTVN8greenlet12MainGreenletE")
_TABLE_HEAD = 16
"""A pointer to a table of functions points behind its first two words."""
_OBJECT_BYTES = 256
_PIMPL = 32
"""In the Python object, behind its head, its weak references and its dict."""
_SAMPLE = 4
_FRAME_OF = 24
"""In a Python frame object, from 3.11 on: the frame itself."""
_MAIN_STACK = (1 << 64) - 1


@dataclass(frozen=True)
class Suspended:
    """One reading of a greenlet that is switched out."""

    address: int
    """Of the Python object."""
    stack_start: int
    main: bool
    """The thread's own greenlet."""
    top: int
    """Its innermost frame."""


def tables(pid: int, mapped: Regions) -> tuple[int, ...]:
    """What the C++ objects begin with; () for a release that is not known. Raises OSError."""
    paths = {region.path for region in mapped.regions if region.path.rpartition("/")[2].startswith(GREENLET)}
    symbols = (interpreter.symbol(pid, mapped, path, name) for path in paths for name in _TABLES)
    return tuple(symbol[0] + _TABLE_HEAD for symbol in symbols if symbol is not None)


class Objects:
    """The greenlets of one process. `stacks`: where the mappings begin that hold the threads' C stacks."""

    def __init__(self, reader: Reader, minor: tuple[int, int], stacks: Collection[int]) -> None:
        self._pid = reader.pid
        self._reader = reader
        self._mapped = reader.regions
        self._minor = minor
        self._stacks = stacks
        # Behind the table: from 3.1 on the Python object's address; an exception's state, of two values less from
        # CPython 3.11 on; two words of arguments; the C stack's five; the context; the top frame.
        self._stack_at = 8 + (24 if minor >= (3, 11) else 40) + 16

    def find(self, begin: Sequence[int]) -> tuple[tuple[int, ...], bool]:
        """Where words lie that are one of `begin`, and whether all memory was searched."""
        ends, enough, found = time.monotonic() + LONGEST_S, time.thread_time() + SCAN_S, list[int]()
        left = SCAN_BYTES
        for region in self._searched():
            for start in range(region.start, region.end, _CHUNK_BYTES):
                length = min(_CHUNK_BYTES, region.end - start)
                left -= length
                if left < 0 or len(found) > MOST or time.thread_time() > enough or time.monotonic() > ends:
                    return tuple(found), False
                try:
                    data = memory.read_some(self._pid, start, length)
                except (ProcessLookupError, PermissionError):
                    raise
                except OSError:
                    continue
                for word in begin:
                    found += [start + place for place in memory.places_of(data, word)]
        return tuple(found), True

    def _searched(self) -> Iterator[Region]:
        """CPython's arenas, the smallest first, and the heap; no stack of a thread."""
        regions = [region for region in self._mapped.anonymous_writable() if region.start not in self._stacks]
        return iter(sorted(regions, key=lambda region: (region.path == "[heap]", region.size)))

    def suspended(self, places: Sequence[int]) -> dict[int, Suspended]:
        """Of the C++ objects at these places, those that are greenlets, begun and switched out."""
        objects = memory.read_each(self._pid, places, _OBJECT_BYTES)
        words = {
            place: struct.unpack(f"<{_OBJECT_BYTES // 8}Q", data)
            for place, data in zip(places, objects, strict=True)
            if len(data) == _OBJECT_BYTES
        }
        owners = self._owners(words)
        found = {}
        for place, (index, address) in owners.items():
            stack = (self._stack_at + (8 if index == 1 else 0)) // 8
            start, stop, _, _, _, _, top = words[place][stack : stack + 7]
            if start and stop and top:
                found[place] = (address, start, stop == _MAIN_STACK, top)
        frames = self._inside([top for *_, top in found.values()])
        return {
            place: Suspended(address, start, main, frame)
            for (place, (address, start, main, _)), frame in zip(found.items(), frames, strict=True)
            if frame
        }

    def _owners(self, words: Mapping[int, Sequence[int]]) -> Mapping[int, tuple[int, int]]:
        """C++ object -> (index of the word in it, address) of the Python object that points back to it.

        Which word that is depends on the release; some of the objects tell for all.
        """
        sample = list(words)[:_SAMPLE] + list(words)[-_SAMPLE:]
        likely = [(place, index) for place in sample for index in range(1, _OBJECT_BYTES // 8)]
        indexes = {index for _, index in self._pointing_back(words, likely)}
        found: dict[int, tuple[int, int]] = {}
        for index in sorted(indexes):
            for place, _ in self._pointing_back(words, [(place, index) for place in words]):
                found.setdefault(place, (index, words[place][index]))
        return found

    def _pointing_back(
        self, words: Mapping[int, Sequence[int]], pairs: Sequence[tuple[int, int]]
    ) -> Sequence[tuple[int, int]]:
        """Of these (C++ object, index of a word in it) those whose word is the address of its Python object."""
        mapped = [(place, index) for place, index in pairs if self._is_mapped(words[place][index])]
        backs = memory.read_words(self._pid, [words[place][index] + _PIMPL for place, index in mapped])
        return [pair for pair, back in zip(mapped, backs, strict=True) if back == pair[0]]

    def _is_mapped(self, address: int) -> bool:
        return address % 8 == 0 and self._mapped.find(address) is not None

    def _inside(self, frame_objects: Sequence[int]) -> list[int]:
        """The frames of these frame objects, 0 for what is none."""
        kinds = memory.read_words(self._pid, [each + 8 for each in frame_objects])
        self._reader.type_names({kind for kind in kinds if kind})
        frames = (
            frame_objects
            if self._minor < (3, 11)
            else memory.read_words(self._pid, [each + _FRAME_OF for each in frame_objects])
        )
        return [
            frame if frame and kind and self._reader.type_name(kind) == "frame" else 0
            for frame, kind in zip(frames, kinds, strict=True)
        ]
