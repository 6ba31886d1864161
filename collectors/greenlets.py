"""The greenlets that are switched out, of gevent, of eventlet or bare: found and read without stopping the target.

`greenlet_objects.py` finds them, `python_frames.py` walks their frames, `suspended_locks.py` tells what they hold.
From CPython 3.12 on greenlet itself links the frames past those that lie on the C stack, for as long as it is switched
out. Which thread's each of them is, its own C stack tells: it is copied back to where it was.

All is read twice, and what does not agree is left out: that greenlet ran.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from stucktrace.collectors import (
    agreeing,
    cpython_objects,
    greenlet_objects,
    interpreter,
    memory,
    python_frames,
    regions,
    source_lines,
    suspended_locks,
)
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.frame_names import Names
from stucktrace.collectors.greenlet_objects import Objects, Suspended
from stucktrace.collectors.hubs import green_library, is_gevent
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.python_frames import Walk
from stucktrace.collectors.python_values import Values
from stucktrace.collectors.regions import Regions
from stucktrace.errors import CollectorError
from stucktrace.facts import Frame, GreenletFact, Missing, ProcessFact, PythonFact, ThreadFact

WHAT = "greenlets"
FRAMES_S = 0.5
_PARTLY = "they are searched for in memory, and there was more of it than time: more of them may wait"
_NOWHERE = "none was found where they are searched for, though there must be some"
_AGAIN = "run stucktrace again, on a quieter machine if it can be"
_HUBS = ("/gevent/hub.py", "/eventlet/hubs/hub.py", "/eventlet/hubs/asyncio.py")
_POOLS = ("/gevent/threadpool.py", "/eventlet/tpool.py")


@dataclass(frozen=True)
class Greenlets:
    facts: tuple[GreenletFact, ...]
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True)
class _Read:
    """One reading of all that a fact tells."""

    suspended: Suspended
    frames: tuple[Frame, ...]
    locks: tuple[tuple[int, int], ...]


def collect(
    process: ProcessFact, threads: Sequence[ThreadFact], python: PythonFact | None, *, locks: bool
) -> Greenlets:
    """`locks`: which locks they hold is asked too. Raises CollectorError when none could be looked for."""
    with memory.reading(WHAT):
        mapped = regions.read(process.pid)
        found = interpreter.find(process.pid, mapped)
        reader = Reader(process.pid, mapped, Layout())
        walk = python_frames.walk(reader, found, greenlet_objects.LONGEST_S + FRAMES_S)
        begin = greenlet_objects.tables(process.pid, mapped)
        if walk is None or found is None or found.minor is None or not begin:
            raise CollectorError(WHAT, _unknown(found, begin), "none; the frames of its threads are shown")
        return _Target(walk, found.minor, _stacks(threads, python, mapped, process.pid)).read(begin, locks)


def _unknown(found: Interpreter | None, begin: Sequence[int]) -> str:
    if not begin:
        return "this release of greenlet keeps them in a way that is not known (2.0 and later are)"
    return f"the frames of Python {found.version if found else ''} are not known"


class _Target:
    def __init__(self, walk: Walk, minor: tuple[int, int], stacks: Mapping[int, int]) -> None:
        self._mapped = walk.reader.regions
        self._reader = walk.reader
        self._walk = walk
        self._minor = minor
        self._values = Values(walk.reader, minor)
        self._names = Names(walk, self._values, minor)
        self._has_gevent = any(is_gevent(region.path.rpartition("/")[2]) for region in self._mapped.regions)
        self._stacks = stacks
        self._sources: dict[str, Mapping[int, str]] = {}
        self._objects = Objects(walk.reader, minor, stacks.keys())

    def read(self, begin: Sequence[int], locks: bool) -> Greenlets:
        places, whole = self._objects.find(begin)
        if not places:
            raise CollectorError(WHAT, _NOWHERE, "none; the frames of its threads are shown")
        agreed, in_time = agreeing.read(partial(self._read, locks=locks), places, self._walk.ends)
        facts = [self._fact(read) for read in agreed.values() if not _is_hub(read.frames)]
        return Greenlets(tuple(facts), () if whole and in_time else (Missing(WHAT, _PARTLY, _AGAIN),))

    def _read(self, places: Sequence[int], locks: bool) -> dict[int, _Read]:
        """One reading of all those at these places that are switched out."""
        found: dict[int, _Read] = {}
        for place, suspended in self._objects.suspended(places).items():
            read = self._stack(suspended, locks)
            if read is not None:
                found[place] = read
        return found

    def _stack(self, suspended: Suspended, locks: bool) -> _Read | None:
        """None where its frames could not be read to the end."""
        try:
            walked = list(self._walk.chain(suspended.top))
            if len(walked) == python_frames.MAX_FRAMES or time.monotonic() > self._walk.ends:
                return None
            walked = [frame for frame in walked if self._walk.runs_python(frame)]
            frames = tuple(named for frame in walked if (named := self._names.frame(frame)) is not None)
            if not frames or len(frames) != len(walked):
                return None
            held = suspended_locks.read(self._walk, self._values, self._minor, walked) if locks else ()
            return _Read(suspended, frames, held)
        except (ProcessLookupError, PermissionError):
            raise
        except (OSError, struct.error):
            return None

    def _fact(self, read: _Read) -> GreenletFact:
        suspended, frames = read.suspended, read.frames
        region = self._mapped.find(suspended.stack_start)
        tid = self._stacks.get(region.start) if region is not None else None
        return GreenletFact(
            suspended.address,
            self._kind(frames),
            _spawned(frames).function,
            frames,
            calls="" if green_library(frames[0]) else source_lines.called(self._walk.pid, frames[0], self._sources),
            tid=tid,
            main=suspended.main,
            locks=read.locks,
        )

    def _kind(self, frames: Sequence[Frame]) -> str:
        """By the library whose code it waits in, or whose code spawned it; much of gevent is compiled."""
        for frame in (*frames[:4], frames[-1]):
            if library := green_library(frame):
                return library
        return "gevent" if self._has_gevent else "greenlet"


def _spawned(frames: Sequence[Frame]) -> Frame:
    """The outermost frame that is not of the library that spawned it."""
    return next((frame for frame in reversed(frames) if not green_library(frame)), frames[-1])


def _is_hub(frames: Sequence[Frame]) -> bool:
    """A hub that is switched out while it runs a greenlet, or the own greenlet of a native thread of a pool."""
    function, file = frames[-1].function.rpartition(".")[2], frames[-1].file
    return (function == "run" and file.endswith(_HUBS)) or file.endswith(_POOLS)


def _stacks(threads: Sequence[ThreadFact], python: PythonFact | None, mapped: Regions, pid: int) -> Mapping[int, int]:
    """Start of the mapping that a thread's C stack lies in -> the thread's tid."""
    found = {region.start: pid for region in mapped.regions if region.path == "[stack]"}
    places = [(thread.ident, thread.tid) for thread in python.threads if thread.tid != pid] if python else []
    places += [(cpython_objects.stack_pointer(pid, thread.tid), thread.tid) for thread in threads]
    for place, tid in places:
        region = mapped.find(place) if place is not None else None
        if region is not None:
            found.setdefault(region.start, tid)
    return found
