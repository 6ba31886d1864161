"""What a Python lock is called, and what it is inside of, by the objects that lead to it.

The waiting thread's frames are looked through for whatever leads to this very lock (`lock_ways.py`). That it is called
so is certain, unlike a name read off the line of source, which `source_lines.py` tells and which is kept where the
objects agree with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from stucktrace.collectors.cpython_objects import LockObject
from stucktrace.collectors.lock_ways import PLAIN_TYPES, Ways
from stucktrace.collectors.python_frames import Frame

BUDGET_S = 0.25
"""Of processor time: a busy machine must not change the answer."""
_FRAMES = 12


class LockNames:
    """Answers from one reading of the frames, as far as the time for it lasts."""

    def __init__(self, ways: Ways) -> None:
        self._ways, self._stacks, self._values = ways, ways.stacks, ways.stacks.values
        self._spent_s = 0.0
        self._seen: dict[tuple[object, ...], tuple[str, str]] = {}

    def named(self, ns_tid: int, held: LockObject, source: str) -> tuple[str, str]:
        """(its name, the full name of the type that it is inside of). `source`: its name in the line of source."""
        frames = self._frames(ns_tid)
        key = (held.address, source, *(frame.code for frame in frames))
        if key not in self._seen:
            if self._spent_s > BUDGET_S:
                return source, ""
            began = time.thread_time()
            path = source if self.is_notification(ns_tid, held) else self._path(frames, held.address, source)
            self._seen[key] = (path, self._container(frames, held.address))
            self._spent_s += time.thread_time() - began
        return self._seen[key]

    def is_notification(self, ns_tid: int, held: LockObject) -> bool:
        """The lock on which `Condition.wait` waits to be notified."""
        innermost = self._frames(ns_tid)[:1]
        return any(
            self._stacks.notified_by(frame) and self._ways.variables(frame).get("waiter") == held.address
            for frame in innermost
        )

    def _frames(self, ns_tid: int) -> tuple[Frame, ...]:
        return self._stacks.frames.get(ns_tid, ())[:_FRAMES]

    def _path(self, frames: tuple[Frame, ...], lock: int, source: str) -> str:
        # `with condition:` enters its lock in a frame of its own.
        naming = next((i for i, frame in enumerate(frames) if self._function(frame) != "__enter__"), 0)
        ways = list(self._ways.to(frames[naming], lock)) if frames else []
        agreeing = next((way for way in ways if way.name == source.rpartition(".")[2]), None)
        if agreeing is not None and not agreeing.bare:
            return agreeing.path if source.startswith("self.") else source
        outer = (way for frame in frames[naming + 1 :] for way in self._ways.to(frame, lock))
        ways += [way for way in outer if not way.bare and not way.around]
        ways.sort(key=lambda way: (way.bare, way.around))
        return ways[0].path if ways else source

    def _function(self, frame: Frame) -> str:
        return self._stacks.named(frame.code).function

    def _container(self, frames: tuple[Frame, ...], lock: int) -> str:
        """The type of what the lock is inside of: of a condition, that of the library's object around it, if any."""
        library = next((file[: -len("threading.py")] for frame in frames if (file := self._threading(frame))), "")
        inner = 0
        for frame in frames:
            variables = self._ways.variables(frame)
            this = variables.get("self", 0)
            if not inner:
                inner = self._inside(frame, variables, lock)
                if inner and self._values.type(inner) != "Condition":
                    break
            elif this != inner:
                if not self._in_library(frame, library):
                    break
                if this and {inner, lock} & set(self._ways.attributes(this).values()):
                    inner = this
                    break
        return self._ways.full_name(inner) if inner else ""

    def _inside(self, frame: Frame, variables: Mapping[str, int], lock: int) -> int:
        """The object of a frame's variables that has the lock; the condition of `Condition.wait` for its own lock."""
        this = variables.get("self", 0)
        if variables.get("waiter") == lock and (condition := self._stacks.notified_by(frame)):
            return condition
        objects = [address for address in (this, *variables.values()) if address]
        for address, kind in zip(objects, self._values.types(objects) if objects else (), strict=True):
            if kind not in PLAIN_TYPES and kind != "type" and lock in self._ways.attributes(address).values():
                return address
        return 0

    def _threading(self, frame: Frame) -> str:
        file = self._stacks.named(frame.code).file
        return file if file.endswith("/threading.py") else ""

    def _in_library(self, frame: Frame, library: str) -> bool:
        file = self._stacks.named(frame.code).file
        return bool(library) and file.startswith(library) and "-packages/" not in file
