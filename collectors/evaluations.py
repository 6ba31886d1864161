"""How many Python frames each call of CPython's evaluation function runs, innermost first.

Up to CPython 3.10 it is one. Later a Python call from Python goes on in the same C frame, and the frames tell where
that one began: 3.11 marks the entry frame (`is_entry`, in pycore_frame.h of 3.11.7), from 3.12 on a shim of the
interpreter's own closes it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from stucktrace.collectors import python_frames
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.regions import Regions
from stucktrace.facts import PythonThread

_IS_ENTRY_311 = 68
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
    walk = python_frames.walk(Reader(pid, mapped, Layout()), found, _DEADLINE_S)
    if walk is None:
        return {}
    wanted = {thread.tid: len(thread.frames) for thread in threads}
    counted: dict[int, tuple[int, ...]] = {}
    for state in walk.states():
        tid = walk.owner(state, idents)
        if tid in wanted:
            groups = _groups(walk, state, marked=found.minor == (3, 11))
            if sum(groups) == wanted[tid]:
                counted[tid] = groups
        if counted.keys() == wanted.keys():
            break
    return counted


def _groups(walk: python_frames.Walk, state: int, *, marked: bool) -> tuple[int, ...]:
    """`marked`: the outermost frame of each call is, and no shim lies between."""
    groups: list[int] = []
    frames = 0
    for frame in walk.frames(state):
        runs_python = walk.runs_python(frame)
        frames += runs_python
        if frame.head[_IS_ENTRY_311] if marked else not runs_python:
            groups.append(frames)
            frames = 0
    return tuple(filter(None, groups)) if not frames else ()
