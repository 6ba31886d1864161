"""How many Python frames each call of CPython's evaluation function runs, innermost first.

Up to CPython 3.10 it is one. Later a Python call from Python goes on in the same C frame, and the frames tell where
that one began: 3.11 marks the entry frame (`is_entry`), from 3.12 on a frame of the interpreter's own closes it (its
`owner` is the C stack). From pycore_frame.h of 3.11.7, 3.12.1 and 3.13.0.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping

from stucktrace.collectors import python_frames
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.regions import Regions
from stucktrace.facts import PythonThread

_IS_ENTRY_311 = 68
_OWNER = {(3, 12): 70, (3, 13): 70}
_NOT_PYTHON = 3
"""FRAME_OWNED_BY_CSTACK."""
_DEADLINE_S = 0.2


def calls(
    pid: int,
    mapped: Regions,
    found: Interpreter | None,
    threads: Collection[PythonThread],
    idents: Mapping[int, int],
) -> dict[int, tuple[int, ...]]:
    """By tid; a thread of which it cannot be known is absent. `idents`: pthread address -> tid. Raises OSError."""
    if found is None or found.minor is None:
        return {}
    if found.minor < (3, 11):
        return {thread.tid: (1,) * len(thread.frames) for thread in threads}
    if found.minor != (3, 11) and found.minor not in _OWNER:
        return {}
    walk = python_frames.walk(Reader(pid, mapped, Layout()), found, _DEADLINE_S)
    if walk is None:
        return {}
    wanted = {thread.tid: len(thread.frames) for thread in threads}
    counted: dict[int, tuple[int, ...]] = {}
    for state in walk.states():
        tid = walk.owner(state, idents)
        if tid in wanted:
            groups = _groups(walk, state, found.minor)
            if sum(groups) == wanted[tid]:
                counted[tid] = groups
        if counted.keys() == wanted.keys():
            break
    return counted


def _groups(walk: python_frames.Walk, state: int, minor: tuple[int, int]) -> tuple[int, ...]:
    groups: list[int] = []
    frames = 0
    for frame in walk.frames(state):
        if minor == (3, 11):
            frames += 1
            ends = struct.unpack_from("<B", frame.head, _IS_ENTRY_311)[0] != 0
        else:
            ends = struct.unpack_from("<B", frame.head, _OWNER[minor])[0] >= _NOT_PYTHON
            frames += not ends
        if ends:
            groups.append(frames)
            frames = 0
    return tuple(groups) if not frames else ()
