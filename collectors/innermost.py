"""The innermost Python frame of each thread, by name: read in memory, in a fraction of the time of a whole stack.

For a glance at many processes that are forks of one another: what is mapped where, and which interpreter it is, is read
of one of them. Nothing is stopped, so an answer can be torn: it is used only to leave alone what would be found idle.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from stucktrace.collectors import interpreter, python_frames, regions
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.python_values import Values

DEADLINE_S = 0.1
_LONGEST_FILE = 4096

Place = tuple[str, str]
"""(function, file)."""


class Family:
    """Forks of one process: a master's workers."""

    def __init__(self, pid: int) -> None:
        """`pid`: any of them. Raises OSError when it cannot be read."""
        self._regions = regions.read(pid)
        self._found: Interpreter | None = interpreter.find(pid, self._regions)

    def innermost(self, pid: int) -> tuple[Place, ...] | None:
        """One of each thread that has a Python frame; None where they cannot be read."""
        found = self._found
        if found is None or found.minor is None:
            return None
        try:
            reader = Reader(pid, self._regions, Layout())
            walk = python_frames.walk(reader, found, DEADLINE_S)
            return None if walk is None else tuple(_innermost(walk, Values(reader, found.minor)))
        except (OSError, struct.error):
            return None


def _innermost(walk: python_frames.Walk, values: Values) -> Iterator[Place]:
    names: dict[int, Place] = {}
    for state in walk.states():
        for frame in walk.frames(state):
            code = walk.code(frame.code)
            if code is None:
                # The interpreter's own shim.
                continue
            if frame.code not in names:
                (function,) = values.short_texts([code.function])
                names[frame.code] = function, values.text(code.file, _LONGEST_FILE) or ""
            yield names[frame.code]
            break
