"""The frames of suspended coroutines and of those that they await, which are on no thread's stack.

A coroutine or generator has its frame inside (up to CPython 3.10 a pointer to it), and a byte near it says whether it
is suspended; while it is, the topmost value of the frame's stack is what it awaits. So the chain is followed as long as
that is another coroutine, or one of CPython's wrappers around one; a future, or anything else, ends it. Many are
followed side by side, a level at a time, for few system calls. Layouts: the headers of CPython 3.9.18, 3.10.13, 3.11.7,
3.12.1 and 3.13.0 (genobject.h, internal/pycore_frame.h, frameobject.h).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from stucktrace.collectors import memory, python_frames
from stucktrace.collectors.python_frames import Frame, Walk

KNOWN = ((3, 9), (3, 10), (3, 11), (3, 12), (3, 13))
_DEEPEST = 200
_GENERATORS = ("coroutine", "generator", "async_generator")
_WRAPPERS = ("coroutine_wrapper", "async_generator_asend", "async_generator_athrow")
_INSIDE = 16
"""In a wrapper: what it is around."""
_STATE_BEFORE = 5
"""Before the frame inside a generator: its state, below zero while it is suspended."""
_SUSPENDED = {(3, 11): (-1,), (3, 12): (-1,), (3, 13): (-1, -2)}
_HEAD_BYTES = 112
_STACK, _TOP = 64, 72
_RUNNING_3_9, _LAST_INSTRUCTION_3_9 = 24, 104
_DEPTH_3_10, _STATE_3_10, _SUSPENDED_3_10 = 80, 108, -1
_MOST_VALUES = 1 << 16


class Coroutines:
    """Those of one process."""

    def __init__(self, walk: Walk, minor: tuple[int, int]) -> None:
        self._walk = walk
        self._pid = walk.pid
        self._minor = minor
        self._place = walk.offsets.generator

    def frames(self, coroutines: Sequence[int]) -> Mapping[int, tuple[Frame, ...]]:
        """Of those that are suspended, innermost first. One that runs, has not begun or has ended has none.

        Raises OSError.
        """
        found: dict[int, list[Frame]] = {each: [] for each in coroutines}
        awaited = {each: each for each in coroutines}
        for _ in range(_DEEPEST):
            if not awaited:
                break
            awaited = self._step(awaited, found)
        return {each: tuple(reversed(frames)) for each, frames in found.items() if frames}

    def _step(self, awaited: Mapping[int, int], found: Mapping[int, list[Frame]]) -> dict[int, int]:
        """Adds the frame of what each awaits; answers what that awaits in turn."""
        mapped = {each: address for each, address in awaited.items() if self._is_mapped(address)}
        objects = dict(
            zip(mapped, memory.read_each(self._pid, list(mapped.values()), self._place + _HEAD_BYTES), strict=True)
        )
        kinds = {each: self._kind(data) for each, data in objects.items()}
        following = {each: _word(objects[each], _INSIDE) for each, kind in kinds.items() if kind in _WRAPPERS}
        generators = [each for each, kind in kinds.items() if kind in _GENERATORS]
        frames = self._frames({each: (mapped[each], objects[each]) for each in generators})
        tops = [self._top(frame) for frame in frames.values()]
        for (each, frame), top in zip(frames.items(), memory.read_words(self._pid, tops), strict=True):
            found[each].append(frame)
            if top:
                following[each] = python_frames.object_of(top)
        return following

    def _is_mapped(self, address: int) -> bool:
        return address % 8 == 0 and self._walk.reader.regions.find(address) is not None

    def _kind(self, data: bytes) -> str:
        """The type of the object that begins so."""
        return self._walk.reader.type_name(_word(data, 8)) if len(data) >= _INSIDE + 8 else ""

    def _frames(self, generators: Mapping[int, tuple[int, bytes]]) -> dict[int, Frame]:
        """Of those that are suspended. `generators`: the address of each, and what it begins with."""
        if self._minor >= (3, 11):
            suspended = _SUSPENDED[self._minor]
            return {
                each: self._frame(address + self._place, data[self._place :])
                for each, (address, data) in generators.items()
                if len(data) == self._place + _HEAD_BYTES
                and struct.unpack_from("<b", data, self._place - _STATE_BEFORE)[0] in suspended
            }
        pointers = {each: _word(data, self._place) for each, (_, data) in generators.items()}
        heads = memory.read_each(self._pid, list(pointers.values()), _HEAD_BYTES)
        return {
            each: self._frame(pointer, head)
            for (each, pointer), head in zip(pointers.items(), heads, strict=True)
            if len(head) == _HEAD_BYTES and self._has_stopped(generators[each][1], head)
        }

    def _frame(self, address: int, head: bytes) -> Frame:
        return Frame(address, head, python_frames.object_of(_word(head, self._walk.offsets.code)))

    def _has_stopped(self, generator: bytes, head: bytes) -> bool:
        """Begun and suspended, up to 3.10."""
        if self._minor == (3, 10):
            return bool(struct.unpack_from("<b", head, _STATE_3_10)[0] == _SUSPENDED_3_10)
        return (
            not any(generator[_RUNNING_3_9 : _RUNNING_3_9 + 1])
            and struct.unpack_from("<i", head, _LAST_INSTRUCTION_3_9)[0] >= 0
        )

    def _top(self, frame: Frame) -> int:
        """Where the topmost value of a suspended frame's stack lies; 0 when it is empty."""
        if self._minor >= (3, 11):
            start = frame.address + self._walk.offsets.variables
            above = start + 8 * int(struct.unpack_from("<i", frame.head, _STACK)[0])
        else:
            start = frame.word(_STACK)
            depth = struct.unpack_from("<i", frame.head, _DEPTH_3_10)[0]
            above = start + 8 * int(depth) if self._minor == (3, 10) else frame.word(_TOP)
        return above - 8 if start < above <= start + 8 * _MOST_VALUES else 0


def _word(data: bytes, place: int) -> int:
    word: int = struct.unpack_from("<Q", data, place)[0]
    return word
