"""Who took a lock with `lock.acquire()` by hand: told from the objects that a frame leads to and from its source.

Nothing in memory remembers it. But where a frame leads to this very lock by a name, and its source says that `acquire`
of that name lies behind every way to the line where the frame stands, it holds it most likely: the source may have
changed since, and another function may have released it. Never the frame that is just acquiring. The line is py-spy's,
which read it earlier, so the thread must not have run since.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stucktrace.collectors import source_lines
from stucktrace.collectors.lock_ways import Ways
from stucktrace.collectors.python_frames import Frame
from stucktrace.facts import Frame as Shown

if TYPE_CHECKING:
    from stucktrace.collectors.acquire_lines import Function

BUDGET_S = 0.25
"""Of processor time: a busy machine must not change the answer."""


@dataclass(frozen=True)
class Acquired:
    """One frame that holds the lock by hand."""

    ns_tid: int
    place: int
    taken: Shown
    """The frame, with the line of its `acquire`."""

    @property
    def assumes(self) -> str:
        called = f"{self.taken.function}, which called acquire() on line {self.taken.line}"
        return f"{called}, got it and did not release it since"


class HandAcquires:
    """Answers from one reading of the frames, for one lock after the other.

    `shown`: py-spy's frames of a thread. `still`: the thread has not run since they were read.
    """

    def __init__(self, ways: Ways, shown: Mapping[int, tuple[Shown, ...]], still: Callable[[int], bool]) -> None:
        self._stacks, self._ways, self._shown, self._still = ways.stacks, ways, shown, still
        self._functions: dict[int, Function] = {}
        self._places: dict[str, list[tuple[int, int, Frame]]] = {}
        self._spent_s = 0.0

    def holders(self, lock: int, waiting: frozenset[int]) -> tuple[Acquired, ...] | None:
        """`waiting`: the threads that wait for this lock. None where nothing can be said: no time, or the lock is one
        that another thread's frame may release."""
        began = time.thread_time()
        found: list[Acquired] = []
        for ns_tid, place, frame in self._using("acquire"):
            if self._spent_s + time.thread_time() - began > BUDGET_S:
                return None
            if (place or ns_tid not in waiting) and (each := self._acquired(ns_tid, place, frame, lock)):
                found.append(each)
        holders = {each.ns_tid for each in found}
        for ns_tid, _, frame in self._using("release") if found else ():
            if ns_tid not in holders | waiting and self._releases(frame, lock):
                return None
        self._spent_s += time.thread_time() - began
        return tuple(found)

    def gives_back(self, frames: Sequence[Frame], lock: int) -> str | None:
        """Whether one of these frames may have released the lock by hand: the one that has it in a `with` block, those
        called from there, those of generators whose own blocks are open.

        "": no. The name of a function whose source is not there to tell; None where one does release it.
        """
        unread = ""
        for frame in frames:
            if self._ways.releases_by_another_name(frame, lock):
                return None
            named = self._stacks.named(frame.code)
            if "release" not in named.used:
                continue
            releases = self._releases(frame, lock)
            if releases and self._function(frame).known:
                return None
            unread = unread or (named.shown if releases else "")
        return unread

    def _using(self, name: str) -> list[tuple[int, int, Frame]]:
        """(ns_tid, place, frame) of all frames whose code uses an attribute of this name."""
        if name not in self._places:
            self._places[name] = [
                (ns_tid, place, frame)
                for ns_tid, frames in self._stacks.frames.items()
                for place, frame in enumerate(frames)
                if name in self._stacks.named(frame.code).used and not self._stacks.notified_by(frame)
            ]
        return self._places[name]

    def _acquired(self, ns_tid: int, place: int, frame: Frame, lock: int) -> Acquired | None:
        names = self._names(frame, lock)
        shown = self._shown.get(ns_tid, ())
        index = self._stacks.index(ns_tid, place, shown) if names else None
        if index is None:
            return None
        line = self._function(frame).acquired(names, shown[index].line)
        return Acquired(ns_tid, place, replace(shown[index], line=line)) if line and self._still(ns_tid) else None

    def _releases(self, frame: Frame, lock: int) -> bool:
        """It leads to the lock and releases it by that name; where its source is not there, it may."""
        names = self._names(frame, lock)
        function = self._function(frame) if names else None
        return function is not None and (not function.known or function.releases(names))

    def _names(self, frame: Frame, lock: int) -> frozenset[str]:
        return frozenset(way.expression for way in self._ways.to(frame, lock))

    def _function(self, frame: Frame) -> Function:
        if frame.code not in self._functions:
            # It brings the parser of the language along, which seldom is needed.
            from stucktrace.collectors.acquire_lines import Function

            named = self._stacks.named(frame.code)
            text = source_lines.text(self._stacks.walk.pid, named.file) if named.file.startswith("/") else ""
            self._functions[frame.code] = Function(text, named.first_line, named.function)
        return self._functions[frame.code]
