"""What each thread serves: the HTTP request or the Celery task, read from the variables of its frames.

`work_shapes.py` knows what they look like. The outermost frame that has one counts: an inner one may be a call that
this work makes itself. Everything is read twice and has to agree, for a running thread changes it; a stack that was not
read to its end says nothing. Source: process_vm_readv; nothing is stopped.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from stucktrace.collectors import interpreter, memory, procfs, python_frames, regions, work_shapes
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.python_frames import Frame, Walk
from stucktrace.collectors.python_values import Values
from stucktrace.collectors.regions import Regions
from stucktrace.facts import ProcessFact, PythonFact, ThreadFact, WorkFact

if TYPE_CHECKING:
    from datetime import datetime

WHAT = "work in hand"
DEADLINE_S = 0.1
_MAX_DICTS = 1_000


@dataclass(frozen=True)
class _Work:
    """One reading: the fact, but for its age, and when the work began by which clock."""

    fact: WorkFact
    monotonic: float | None = None
    local: datetime | None = None


class _Changed(OSError):
    """The thread went on while it was read."""


def collect(process: ProcessFact, threads: Sequence[ThreadFact], python: PythonFact | None) -> tuple[WorkFact, ...]:
    """At most one fact a thread. Raises CollectorError when the memory may not be read."""
    idents = {thread.ident: thread.tid for thread in python.threads if thread.ident and thread.frames} if python else {}
    if python is None or not idents:
        return ()
    tasks = {
        thread.tid
        for thread in python.threads
        if any(frame.function.rpartition(".")[2] == work_shapes.TASK_FRAME for frame in thread.frames)
    }
    depths = {thread.tid: len(thread.frames) for thread in python.threads}
    slept_s = {thread.tid: thread.blocked_s or 0.0 for thread in threads}
    try:
        with memory.reading(WHAT):
            mapped = regions.read(process.pid)
            found = interpreter.find(process.pid, mapped)
            reader = Reader(process.pid, mapped, Layout())
            walk = python_frames.walk(reader, found, DEADLINE_S)
            if walk is None or found is None or found.minor is None:
                return ()
            states = [(tid, state) for state in walk.states() if (tid := walk.owner(state, idents)) is not None]
            target = _Target(walk, Values(reader, found.minor))
            readings: dict[int, _Work] = {}
            # Should the time not suffice for all: a thread that serves something has a deep stack.
            for tid, state in sorted(states, key=lambda pair: -depths[pair[0]]):
                if tid not in readings and (work := target.work(state, tid, tid in tasks)) is not None:
                    readings[tid] = work
    except memory.MemoryChanged:
        # The list of the threads' states changed while it was read.
        return ()
    return tuple(
        replace(work.fact, age_s=_age_s(process, mapped, work, slept_s.get(tid, 0.0))) for tid, work in readings.items()
    )


class _Target:
    def __init__(self, walk: Walk, values: Values) -> None:
        self._walk = walk
        self._values = values
        self._pid = walk.pid
        self._names: dict[int, tuple[str, ...]] = {}

    def work(self, state: int, tid: int, may_run_task: bool) -> _Work | None:
        """What the thread with this state serves, by its outermost frame that tells."""
        try:
            for read in self._places(state, tid, may_run_task):
                if (work := read()) is not None:
                    return work if read() == work else None
        except (ProcessLookupError, PermissionError):
            raise
        except (OSError, struct.error):
            pass
        return None

    def _places(self, state: int, tid: int, may_run_task: bool) -> Iterator[Callable[[], _Work | None]]:
        """Where to look, outermost frame first."""
        frames = list(self._walk.frames(state))[::-1]
        if len(frames) == python_frames.MAX_FRAMES or time.monotonic() > self._walk.ends:
            return
        slots = [self._walk.slots(frame) for frame in frames]
        held = self._held([slot for each in slots for slot in each])
        dicts = self._dicts(held)
        likely = self._likely(list(dicts))
        values = iter(held)
        for frame, each in zip(frames, slots, strict=True):
            if may_run_task:
                yield partial(self._task, frame, tid)
            for slot in each:
                address = next(values)
                if dicts.pop(address, False) and next(likely):
                    yield partial(self._request, frame, slot, address, tid)
        for frame in frames:
            if "request" in self._variables(frame.code):
                yield partial(self._request_object, frame, tid)

    def _held(self, slots: Sequence[int]) -> list[int]:
        """The addresses of what these variables hold, out of its cell where it is in one; 0 where it is nothing."""
        held = [python_frames.object_of(word or 0) for word in memory.read_words(self._pid, slots)]
        objects = list(dict.fromkeys(filter(None, held)))
        kinds = self._values.types(objects)
        cells = [address for address, kind in zip(objects, kinds, strict=True) if kind == "cell"]
        content = dict(zip(cells, (self._values.content(cell) or 0 for cell in cells), strict=True))
        return [content.get(address, address) for address in held]

    def _dicts(self, held: Sequence[int]) -> dict[int, bool]:
        """Those that are dicts with more than one entry, in the same order."""
        objects = list(dict.fromkeys(filter(None, held)))
        kinds = self._values.types(objects)
        dicts = [address for address, kind in zip(objects, kinds, strict=True) if kind == "dict"][:_MAX_DICTS]
        sizes = memory.read_words(self._pid, [address + 16 for address in dicts])
        return {address: True for address, size in zip(dicts, sizes, strict=True) if size and size > 1}

    def _likely(self, dicts: Sequence[int]) -> Iterator[bool]:
        """Whether each has a key that a request has; the first ones alone, for there it mostly is, then ever more."""
        start, count = 0, 4
        while start < len(dicts):
            for found in self._values.entries_of(dicts[start : start + count], work_shapes.KEYS):
                if found is None:
                    raise _Changed
                yield "REQUEST_METHOD" in found or "path" in found
            start, count = start + count, min(4 * count, 64)

    def _request(self, frame: Frame, slot: int, address: int, tid: int) -> _Work | None:
        """The request that a dict is, while this variable holds it."""
        work = self._request_in(frame, address, tid)
        if work is not None and (self._held([slot]) != [address] or not self._still(frame)):
            raise _Changed
        return work

    def _request_object(self, frame: Frame, tid: int) -> _Work | None:
        """The request that a variable `request` has as an attribute.

        Frameworks on an event loop run a plain function in a thread of a pool: there nothing else has the scope.
        """
        request = self._variable(frame, "request")
        for name in ("scope", "environ") if request else ():
            address = self._values.attribute(request or 0, name)
            if address and self._values.type(address) == "dict":
                work = self._request_in(frame, address, tid)
                if self._variable(frame, "request") != request or not self._still(frame):
                    raise _Changed
                return work
        return None

    def _request_in(self, frame: Frame, address: int, tid: int) -> _Work | None:
        found = self._values.entries(address, work_shapes.KEYS)
        if found is None:
            raise _Changed
        fact = work_shapes.request(self._values, found, tid)
        if fact is None:
            return None
        # gunicorn keeps beside the environ when it began to handle the request, as local time.
        began = self._variable(frame, "request_start")
        return _Work(fact, local=self._values.moment(began) if began else None)

    def _task(self, frame: Frame, tid: int) -> _Work | None:
        code = self._walk.code(frame.code)
        if code is None or self._values.text(code.function, 32) != work_shapes.TASK_FRAME:
            return None
        if not (self._values.text(code.file, 4096) or "").endswith(work_shapes.TASK_FILE):
            return None
        fact = work_shapes.task(self._values, partial(self._variable, frame), tid)
        began = self._variable(frame, "time_start")
        if not self._still(frame):
            raise _Changed
        return _Work(fact, monotonic=self._values.number(began) if began else None) if fact is not None else None

    def _still(self, frame: Frame) -> bool:
        (code,) = memory.read_words(self._pid, [frame.address + self._walk.offsets.code])
        return python_frames.object_of(code or 0) == frame.code

    def _variable(self, frame: Frame, name: str) -> int | None:
        """The address of what a frame's variable holds."""
        names, slots = self._variables(frame.code), self._walk.slots(frame)
        if name not in names or len(names) != len(slots):
            return None
        # Up to 3.10 an argument that became a cell has a slot of each kind; the cell is the later one.
        index = len(names) - 1 - names[::-1].index(name)
        return self._held([slots[index]])[0] or None

    def _variables(self, address: int) -> tuple[str, ...]:
        if address not in self._names:
            code = self._walk.code(address)
            tuples = [self._values.items(each) or () for each in code.names] if code is not None else []
            self._names[address] = tuple(self._values.short_texts([name for each in tuples for name in each]))
        return self._names[address]


def _age_s(process: ProcessFact, mapped: Regions, work: _Work, slept_s: float) -> float | None:
    """For how long the work has lasted; None where it cannot be said for certain."""
    ages: list[float] = []
    if work.monotonic is not None and procfs.same_monotonic_clock(process.pid):
        ages = [time.monotonic() - work.monotonic]
    elif work.local is not None:
        from stucktrace.collectors import local_time

        try:
            ages = local_time.ages_s(process.pid, mapped, work.local)
        except OSError:
            ages = []
    # It began after the process, and before the thread's present sleep; else a clock was set meanwhile.
    process_s = time.clock_gettime(time.CLOCK_BOOTTIME) - process.start_time / os.sysconf("SC_CLK_TCK")
    possible = [age for age in ages if slept_s - 0.1 <= age <= process_s + 0.1]
    return max(possible[0], 0.0) if len(possible) == 1 else None
