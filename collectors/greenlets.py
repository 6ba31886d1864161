"""The greenlets that are switched out, of gevent, of eventlet or bare: found and read without stopping the target.

Nobody keeps a list of them. From greenlet 2.0 on each has a C++ object, which begins with the address of its class's
table of functions: that word is searched in the memory that holds objects, within `SCAN_BYTES` and `SCAN_S`, and what
is found is one if it leads to a Python object that leads back to it. Further in are the state of its C stack, whose
start tells that it runs or is switched out and whose thread's it is, and its topmost Python frame, from which
`python_frames.py` walks on. From CPython 3.12 on greenlet itself links the frames past those that lie on the C stack,
for as long as it is switched out. Sources: TGreenlet.hpp, TPythonState.cpp and TUserGreenlet.cpp of greenlet 2.0.2,
3.0.3, 3.1.1, 3.2.4 and 3.5.6.

All is read twice, and what does not agree is left out: that greenlet ran.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stucktrace.collectors import cpython_objects, interpreter, memory, python_frames, regions
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.frame_names import Names
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.python_frames import Walk
from stucktrace.collectors.python_values import Values
from stucktrace.collectors.regions import Region, Regions
from stucktrace.errors import CollectorError
from stucktrace.facts import Frame, GreenletFact, Missing, ProcessFact, PythonFact, ThreadFact

WHAT = "greenlets"
SCAN_BYTES = 96 << 20
SCAN_S = 0.15
FRAMES_S = 0.3
MOST = 2_000
_CHUNK_BYTES = 4 << 20
_MODULE = "_greenlet"
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
_PERMISSION = "run as root, or with CAP_SYS_PTRACE in the target's user namespace"
_HUBS = ("/gevent/hub.py", "/eventlet/hubs/hub.py", "/eventlet/hubs/asyncio.py")
_POOLS = ("/gevent/threadpool.py", "/eventlet/tpool.py")
_LIBRARIES = ("gevent", "eventlet")


@dataclass(frozen=True)
class Greenlets:
    facts: tuple[GreenletFact, ...]
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True)
class _Suspended:
    """One reading of a greenlet that is switched out."""

    address: int
    """Of the Python object."""
    stack_start: int
    main: bool
    top: int
    """Its innermost frame."""


def has_hub(process: ProcessFact, python: PythonFact | None) -> bool:
    """Greenlets are loaded, and gevent or eventlet runs them: by its own libraries or a frame of its code."""
    if not any(name.startswith(_MODULE) for name in process.libraries):
        return False
    if any(_is_gevent(name) for name in process.libraries):
        return True
    frames = (frame for thread in python.threads for frame in thread.frames) if python else ()
    return any(f"/{library}/" in frame.file for frame in frames for library in _LIBRARIES)


def _is_gevent(library: str) -> bool:
    return library.startswith("_gevent_c")


def collect(process: ProcessFact, threads: Sequence[ThreadFact]) -> Greenlets:
    """Raises CollectorError when the memory may not be read, or none could be looked for."""
    try:
        mapped = regions.read(process.pid)
        found = interpreter.find(process.pid, mapped)
        reader = Reader(process.pid, mapped, Layout())
        walk = python_frames.walk(reader, found, SCAN_S + FRAMES_S)
        tables = _tables(process.pid, mapped)
        if walk is None or found is None or found.minor is None or not tables:
            raise CollectorError(WHAT, _unknown(found, tables), "none; the frames of its threads are shown")
        return _Target(threads, mapped, walk, found.minor).read(tables)
    except (ProcessLookupError, FileNotFoundError):
        raise CollectorError(WHAT, "the process ended", "") from None
    except PermissionError:
        raise CollectorError(WHAT, "its memory may not be read", _PERMISSION) from None
    except OSError as error:
        raise CollectorError(WHAT, f"its memory could not be read: {error.strerror}", "run stucktrace again") from None


def _unknown(found: Interpreter | None, tables: Mapping[int, bool]) -> str:
    if not tables:
        return "this release of greenlet keeps them in a way that is not known (2.0 and later are)"
    return f"the frames of Python {found.version if found else ''} are not known"


def _tables(pid: int, mapped: Regions) -> Mapping[int, bool]:
    """What the C++ objects begin with -> it is that of a thread's own greenlet."""
    paths = {region.path for region in mapped.regions if region.path.rpartition("/")[2].startswith(_MODULE)}
    found: dict[int, bool] = {}
    for path in paths:
        for name in _TABLES:
            symbol = interpreter.symbol(pid, mapped, path, name)
            if symbol is not None:
                found[symbol[0] + _TABLE_HEAD] = name == _TABLES[1]
    return found


class _Target:
    def __init__(self, threads: Sequence[ThreadFact], mapped: Regions, walk: Walk, minor: tuple[int, int]) -> None:
        self._pid = walk.pid
        self._mapped = mapped
        self._reader = walk.reader
        self._walk = walk
        self._minor = minor
        self._names = Names(walk, Values(walk.reader, minor), minor)
        # Behind the table: from 3.1 on the Python object's address; an exception's state, of one value less from
        # CPython 3.11 on; two words of arguments; the C stack's five; the context; the top frame.
        self._stack_at = 8 + (24 if minor >= (3, 11) else 40) + 16
        self._has_gevent = any(_is_gevent(region.path.rpartition("/")[2]) for region in mapped.regions)
        self._stacks = _stacks(walk.pid, threads, mapped)

    def read(self, tables: Mapping[int, bool]) -> Greenlets:
        places, whole = self._scan(tables)
        first = self._suspended(places)
        stacks = {place: self._frames(each) for place, each in first.items()}
        again = self._suspended({place: places[place] for place in first})
        facts = []
        for place, each in first.items():
            frames = stacks[place]
            if frames and not _is_hub(frames) and again.get(place) == each and self._frames(each) == frames:
                facts.append(self._fact(each, frames))
        missing = () if whole else (Missing(WHAT, "there was more memory to search than time", "none needed"),)
        return Greenlets(tuple(facts), missing)

    def _scan(self, tables: Mapping[int, bool]) -> tuple[dict[int, bool], bool]:
        """Where words lie that are one of `tables` -> of which; and whether all memory was searched."""
        ends, left, found = time.monotonic() + SCAN_S, SCAN_BYTES, dict[int, bool]()
        for region in self._searched():
            for start in range(region.start, region.end, _CHUNK_BYTES):
                length = min(_CHUNK_BYTES, region.end - start)
                left -= length
                if left < 0 or time.monotonic() > ends or len(found) > MOST:
                    return found, False
                try:
                    data = memory.read_some(self._pid, start, length)
                except (ProcessLookupError, PermissionError):
                    raise
                except OSError:
                    continue
                for table, main in tables.items():
                    found.update((start + place, main) for place in _aligned(data, table))
        return found, True

    def _searched(self) -> Iterator[Region]:
        """CPython's arenas, the smallest first, and the heap; no stack of a thread."""
        regions = [region for region in self._mapped.anonymous_writable() if region.start not in self._stacks]
        return iter(sorted(regions, key=lambda region: (region.path == "[heap]", region.size)))

    def _suspended(self, places: Mapping[int, bool]) -> dict[int, _Suspended]:
        """Of the C++ objects at these places, those that are greenlets, begun and switched out."""
        objects = memory.read_each(self._pid, list(places), _OBJECT_BYTES)
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
            place: _Suspended(address, start, main, frame)
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

    def _frames(self, suspended: _Suspended) -> tuple[Frame, ...]:
        """Innermost first; () when they could not be read to the end."""
        try:
            walked = list(self._walk.chain(suspended.top))
            if len(walked) == python_frames.MAX_FRAMES or time.monotonic() > self._walk.ends:
                return ()
            return tuple(frame for each in walked if (frame := self._names.frame(each)) is not None)
        except (ProcessLookupError, PermissionError):
            raise
        except (OSError, struct.error):
            return ()

    def _fact(self, suspended: _Suspended, frames: tuple[Frame, ...]) -> GreenletFact:
        region = self._mapped.find(suspended.stack_start)
        tid = self._stacks.get(region.start) if region is not None else None
        return GreenletFact(
            suspended.address, self._kind(frames), frames[-1].function, frames, tid=tid, main=suspended.main
        )

    def _kind(self, frames: Sequence[Frame]) -> str:
        """By the library whose code it waits in, or whose code spawned it; much of gevent is compiled."""
        for frame in (*frames[:4], frames[-1]):
            for library in _LIBRARIES:
                if f"/{library}/" in frame.file:
                    return library
        return "gevent" if self._has_gevent else "greenlet"


def _is_hub(frames: Sequence[Frame]) -> bool:
    """A hub that is switched out while it runs a greenlet, or the own greenlet of a native thread of a pool."""
    function, file = frames[-1].function.rpartition(".")[2], frames[-1].file
    return (function == "run" and file.endswith(_HUBS)) or file.endswith(_POOLS)


def _stacks(pid: int, threads: Sequence[ThreadFact], mapped: Regions) -> Mapping[int, int]:
    """Start of the mapping that a thread's C stack lies in -> the thread's tid."""
    found = {}
    for thread in threads:
        pointer = cpython_objects.stack_pointer(pid, thread.tid)
        region = mapped.find(pointer) if pointer is not None else None
        if region is not None:
            found[region.start] = thread.tid
    return found


def _aligned(data: bytes, word: int) -> Iterator[int]:
    # Without its zeros at the end the search skips memory that was never used.
    needle = struct.pack("<Q", word).rstrip(b"\0")
    place = data.find(needle)
    while place >= 0:
        if place % 8 == 0 and int.from_bytes(data[place : place + 8], "little") == word:
            yield place
        place = data.find(needle, place + 1)
