"""The object of a running Celery worker (`WorkController`), found as `self` of the frames that run it.

It keeps what the command line and the settings came to: concurrency, pool, prefetch multiplier, limits of its children.
A child of a prefork pool still has these frames below its own. Source: celery/worker/worker.py, 5.2 to 5.7.
"""

from __future__ import annotations

from stucktrace.collectors import memory, python_frames
from stucktrace.collectors.cpython_objects import Reader
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.python_classes import Objects

DEADLINE_S = 0.05
_CLASS = "WorkController"


def find(reader: Reader, found: Interpreter, objects: Objects) -> int | None:
    """Its address; None where no frame that is on a stack has it. Raises OSError."""
    walk = python_frames.walk(reader, found, DEADLINE_S)
    if walk is None:
        return None
    seen: dict[int, bool] = {}
    for state in walk.states():
        firsts = [slots.start for frame in walk.frames(state) if (slots := walk.slots(frame))]
        held = [python_frames.object_of(word or 0) for word in memory.read_words(reader.pid, firsts)]
        kinds = memory.read_words(reader.pid, [address + 8 if address % 8 == 0 else 0 for address in held])
        for address, kind in zip(reversed(held), reversed(kinds), strict=True):
            if not kind or not address:
                continue
            if kind not in seen:
                seen[kind] = bool(reader.type_name(kind)) and _CLASS in objects.base_names(kind)
            if seen[kind]:
                return address
    return None
