"""What Python code does with a `SemLock`: through an object of which class, and whether in a `with` block.

A `Lock` and a `BoundedSemaphore(1)` have the very same `SemLock`; the class of the object around it tells them apart.
Source: the innermost frames of the waiting thread (`python_frames.py`) and what their code can name: the object whose
attribute `_semlock` it is. In `with lock:` that is the variable `self` of `__enter__` (multiprocessing/synchronize.py,
billiard/synchronize.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from stucktrace.collectors import procfs, pthread, python_frames
from stucktrace.collectors.cpython_objects import Reader
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.python_frames import Code, Frame, Walk
from stucktrace.collectors.python_values import Values

_DEADLINE_S = 0.5
_FRAMES = 3
_STATE_BYTES = 256
_MOST_VARIABLES = 64
_MOST_OWNERS = 16
_CLASSES = ("Lock", "RLock", "Semaphore", "BoundedSemaphore")


@dataclass(frozen=True)
class Used:
    class_name: str
    """"" where it could not be read."""
    in_with: bool = False
    """The thread is at the beginning of a `with` block of it."""


UNKNOWN = Used("")


def read(reader: Reader, found: Interpreter | None, tid: int, semlock: int) -> Used:
    """`semlock`: the object that the thread `tid` waits in. Raises ProcessLookupError."""
    try:
        walk = python_frames.walk(reader, found, _DEADLINE_S)
        state = _state_of(walk, tid) if walk is not None else None
        if walk is None or state is None or found is None or found.minor is None:
            return UNKNOWN
        return _used(walk, state, Values(reader, found.minor), semlock)
    except ProcessLookupError:
        raise
    except (OSError, struct.error):
        return UNKNOWN


def _used(walk: Walk, state: int, values: Values, semlock: int) -> Used:
    depth = 0
    for frame in walk.frames(state):
        code = walk.code(frame.code)
        if code is None:
            continue
        for candidate in _named(walk, frame, code, values):
            kind = values.type(candidate)
            if kind in _CLASSES and values.attribute(candidate, "_semlock") == semlock:
                return Used(kind, not depth and values.text(code.function, 16) == "__enter__")
        depth += 1
        if depth == _FRAMES:
            break
    return UNKNOWN


def _named(walk: Walk, frame: Frame, code: Code, values: Values) -> Iterator[int]:
    """The objects that a frame's code can name: its variables, the globals that it uses, its variables' attributes."""
    slots = walk.slots(frame)[:_MOST_VARIABLES]
    held = walk.objects(slots.start, len(slots)) if len(slots) else ()
    variables = [values.content(each) or each for each in held if each]
    yield from variables
    used = values.short_texts(list(values.items(code.used) or ())) if code.used else []
    names = frozenset(filter(None, used))
    if not names:
        return
    yield from (values.entries(python_frames.object_of(frame.word(walk.offsets.globals)), names) or {}).values()
    for variable in variables[:_MOST_OWNERS]:
        yield from filter(None, (values.attribute(variable, name) for name in names))


def _state_of(walk: Walk, tid: int) -> int | None:
    """The thread's state: the one that holds its pthread address, where its own number stands."""
    status = procfs.parse_status(procfs.read(walk.pid, f"task/{tid}/status").decode(errors="replace"))
    own = procfs.last_number(status.get("NSpid", ""), tid)
    offset = pthread.tid_offset(walk.pid, (), ())
    if offset is None:
        return None
    for state in walk.states():
        words = walk.words(state, _STATE_BYTES // 8)
        if own in pthread.tids(walk.pid, [word for word in words if word % 8 == 0], offset).values():
            return state
    return None
