"""What ends a child of billiard's pool on purpose: its number of tasks, its size.

Source: the variables of `workloop`, the frame in which each child waits for its tasks (billiard/pool.py), read from
memory without stopping it. The settings may come from anywhere: an option, a module, an environment.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from stucktrace.collectors import interpreter, python_frames, regions
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.python_frames import Frame, Walk
from stucktrace.collectors.python_values import Values

DEADLINE_S = 0.05
_FUNCTION, _FILE = "workloop", "billiard/pool.py"


@dataclass(frozen=True)
class PoolLimits:
    tasks: int | None
    """None: any number."""
    memory_kb: int | None
    """None: any size."""


def read(pid: int) -> PoolLimits | None:
    """None where there is no such frame, or it cannot be read."""
    try:
        mapped = regions.read(pid)
        found = interpreter.find(pid, mapped)
        reader = Reader(pid, mapped, Layout())
        walk = python_frames.walk(reader, found, DEADLINE_S)
        if walk is None or found is None or found.minor is None:
            return None
        values = Values(reader, found.minor)
        for state in walk.states():
            for frame in walk.frames(state):
                limits = _limits(walk, values, frame)
                if limits is not None:
                    return limits if _limits(walk, values, frame) == limits else None
    except (OSError, struct.error):
        pass
    return None


def _limits(walk: Walk, values: Values, frame: Frame) -> PoolLimits | None:
    code = walk.code(frame.code)
    if code is None or values.text(code.function, 16) != _FUNCTION:
        return None
    if not (values.text(code.file, 4096) or "").endswith(_FILE):
        return None
    names = [values.text(name, 64) for each in code.names for name in values.items(each) or ()]
    slots = walk.slots(frame)
    if len(names) != len(slots):
        return None
    found = dict(zip(names, walk.objects(slots.start, len(slots)), strict=True))
    tasks, size = found.get("maxtasks"), found.get("max_memory_per_child")
    if not tasks or not size:
        return None
    return PoolLimits(values.integer(tasks), values.integer(size) or None)
