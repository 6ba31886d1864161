"""The frames and variables of a few threads of the target, for what reads its pools.

py-spy's frames choose the threads; `python_frames` walks them in memory; a frame's variables are reached by name.
Source: process_vm_readv; nothing is stopped.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stucktrace.collectors import memory, procfs, python_frames
from stucktrace.collectors.python_containers import Containers
from stucktrace.collectors.python_frames import Walk
from stucktrace.collectors.python_values import Values
from stucktrace.errors import CannotInspect
from stucktrace.facts import PythonFact, ThreadFact

_FILE_LENGTH = 4096
_NAME_LENGTH = 128


@dataclass(frozen=True)
class Place:
    """One frame of a thread."""

    frame: python_frames.Frame
    function: str
    """Its bare name."""
    file: str


class Stacks:
    """The stacks of one process."""

    def __init__(
        self,
        walk: Walk,
        values: Values,
        containers: Containers,
        threads: Sequence[ThreadFact],
        python: PythonFact,
    ) -> None:
        self.walk = walk
        self.values = values
        self.containers = containers
        self.threads = {thread.tid: thread for thread in threads}
        self.frames = {thread.tid: thread.frames for thread in python.threads}
        """py-spy's."""
        idents = {thread.ident: thread.tid for thread in python.threads if thread.ident and thread.frames}
        self._states = {tid: state for state in walk.states() if (tid := walk.owner(state, idents)) is not None}
        self._names: dict[int, tuple[str, ...]] = {}
        self._codes: dict[int, tuple[str, str]] = {}
        self._places: dict[int, tuple[Place, ...]] = {}

    def forget(self) -> None:
        """The next questions are answered from memory anew."""
        self._places = {}

    def of(self, tid: int) -> tuple[Place, ...]:
        """Innermost first, the interpreter's own shims left out; () where it could not be read whole."""
        if tid not in self._places:
            self._places[tid] = self._read(tid)
        return self._places[tid]

    def _read(self, tid: int) -> tuple[Place, ...]:
        if tid not in self._states:
            return ()
        try:
            places = [
                Place(frame, *named)
                for frame in self.walk.frames(self._states[tid])
                if (named := self._named(frame.code)) is not None
            ]
        except (ProcessLookupError, PermissionError):
            raise
        except (OSError, struct.error):
            return ()
        return tuple(places)

    def _named(self, code: int) -> tuple[str, str] | None:
        if code not in self._codes:
            read = self.walk.code(code)
            if read is None:
                return None
            function = self.values.text(read.function, _NAME_LENGTH) or ""
            self._codes[code] = (function, self.values.text(read.file, _FILE_LENGTH) or "")
        return self._codes[code]

    def index(self, tid: int, place: Place) -> int | None:
        """Where py-spy's frames of the thread have this frame."""
        places, frames = self.of(tid), [f for f in enumerate(self.frames.get(tid, ())) if not f[1].native]
        # py-spy leaves out what the walk has too much; counted among the frames of one function both agree.
        same = [other for other in places if (other.function, other.file) == (place.function, place.file)]
        likely = [index for index, frame in frames if frame.function.rpartition(".")[2] == place.function]
        at = next((number for number, other in enumerate(same) if other is place), None)
        return likely[at] if at is not None and at < len(likely) and len(likely) == len(same) else None

    def variables(self, place: Place) -> dict[str, int]:
        """Name -> address of the object, for those that hold one; what is in a cell is taken out of it."""
        names, slots = self.names(place), self.walk.slots(place.frame)
        if len(names) != len(slots):
            return {}
        held = [word if word and word % 8 == 0 else 0 for word in memory.read_words(self.walk.pid, slots)]
        kinds = self.values.types(held)
        return {
            name: content
            for name, address, kind in zip(names, held, kinds, strict=True)
            if address and (content := (self.values.content(address) if kind == "cell" else address))
        }

    def variable(self, place: Place, name: str) -> int | None:
        return self.variables(place).get(name)

    def names(self, place: Place) -> tuple[str, ...]:
        code = place.frame.code
        if code not in self._names:
            read = self.walk.code(code)
            tuples = [self.values.items(each) or () for each in read.names] if read is not None else []
            self._names[code] = tuple(self.values.short_texts([name for each in tuples for name in each]))
        return self._names[code]

    @property
    def ns_pid(self) -> int:
        """The process's own pid, in its own words."""
        return next((thread.ns_tid for tid, thread in self.threads.items() if tid == self.walk.pid), self.walk.pid)

    @property
    def whole(self) -> bool:
        """The frames of every living thread were read."""
        return all(self.frames.get(tid) for tid, thread in self.threads.items() if thread.state not in "ZX")

    def children(self) -> dict[int, int]:
        """Its children: the pid in their own words -> pid."""
        found = {}
        for pid in procfs.children(self.walk.pid):
            with contextlib.suppress(CannotInspect):
                found[procfs.last_number(procfs.read_status(pid).get("NSpid", ""), pid)] = pid
        return found

    def sleeping(self) -> Iterable[int]:
        """The threads that sleep, by the kernel's word."""
        return (tid for tid, thread in self.threads.items() if thread.state in "SD" and tid in self._states)
