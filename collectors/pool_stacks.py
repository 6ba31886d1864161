"""The frames and variables of the target's threads by tid, for what reads its pools, and its children.

A thin layer over `python_stacks.py`, which reads all frames at once: `Stacks` is one such reading.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from stucktrace.collectors import procfs, python_frames, python_stacks
from stucktrace.collectors.python_containers import Containers
from stucktrace.collectors.python_frames import Walk
from stucktrace.collectors.python_values import Values
from stucktrace.errors import CannotInspect
from stucktrace.facts import Frame, PythonFact, ThreadFact


@dataclass(frozen=True)
class Place:
    """One frame of a thread."""

    frame: python_frames.Frame
    function: str
    """Its bare name."""
    file: str


class Stacks:
    """The stacks of one process at one instant."""

    def __init__(self, read: python_stacks.Stacks, threads: Sequence[ThreadFact], python: PythonFact) -> None:
        self.read = read
        self.containers = Containers(read.walk.pid, read.values, read.minor)
        self.threads = {thread.tid: thread for thread in threads}
        self.frames: Mapping[int, tuple[Frame, ...]] = {thread.tid: thread.frames for thread in python.threads}
        """py-spy's."""
        self.sources: dict[str, list[str]] = {}
        """The lines of the source files read so far."""
        self._places: dict[int, tuple[Place, ...]] = {}
        self._variables: dict[Place, dict[str, int]] = {}

    @property
    def walk(self) -> Walk:
        return self.read.walk

    @property
    def values(self) -> Values:
        return self.read.values

    @property
    def pid(self) -> int:
        return self.read.walk.pid

    def of(self, tid: int) -> tuple[Place, ...]:
        """Innermost first; () where it could not be read whole."""
        if tid not in self._places:
            thread = self.threads.get(tid)
            frames = self.read.frames.get(thread.ns_tid, ()) if thread is not None else ()
            named = ((frame, self.read.named(frame.code)) for frame in frames)
            self._places[tid] = tuple(Place(frame, name.function, name.file) for frame, name in named)
        return self._places[tid]

    def index(self, tid: int, place: Place) -> int | None:
        """Where py-spy's frames of the thread have this frame."""
        places, thread = self.of(tid), self.threads.get(tid)
        at = next((at for at, other in enumerate(places) if other is place), None)
        if at is None or thread is None:
            return None
        return self.read.index(thread.ns_tid, at, self.frames.get(tid, ()))

    def variables(self, place: Place) -> dict[str, int]:
        """Name -> address of the object, for those that hold one."""
        if place not in self._variables:
            self._variables[place] = self.read.variables(place.frame)
        return self._variables[place]

    def variable(self, place: Place, name: str) -> int | None:
        return self.variables(place).get(name)

    def sleeping(self) -> Iterable[int]:
        """The threads that sleep, by the kernel's word."""
        return (tid for tid, thread in self.threads.items() if thread.state in "SD" and self.of(tid))

    @cached_property
    def ns_pid(self) -> int:
        """The process's own pid, in its own words."""
        return next((thread.ns_tid for tid, thread in self.threads.items() if tid == self.pid), self.pid)

    @property
    def whole(self) -> bool:
        """The frames of every living thread were read."""
        return all(self.frames.get(tid) for tid, thread in self.threads.items() if thread.state not in "ZX")

    def children(self) -> dict[int, int]:
        """Its children: the pid in their own words -> pid."""
        found = {}
        for pid in procfs.children(self.pid):
            with contextlib.suppress(CannotInspect):
                found[procfs.last_number(procfs.read_status(pid).get("NSpid", ""), pid)] = pid
        return found
