"""The locks that frames hold which are switched out, by their open `with` blocks (`with_blocks.py`).

What one of the frames inside a block may have released by hand (`hand_acquires.py`) is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from stucktrace.collectors import with_blocks
from stucktrace.collectors.hand_acquires import HandAcquires
from stucktrace.collectors.lock_ways import Ways
from stucktrace.collectors.python_frames import Frame, Walk
from stucktrace.collectors.python_stacks import Stacks
from stucktrace.collectors.python_values import Values

_LOCKED = 1
"""In the byte of a PyMutex. Source: pycore_lock.h of CPython 3.13."""
_ALONE = 0
"""Stands for the one stack that is asked about."""


def read(walk: Walk, values: Values, minor: tuple[int, int], frames: Sequence[Frame]) -> tuple[tuple[int, int], ...]:
    """(where a thread that waits for the lock sleeps, index of the frame); () when not all could be read.

    Raises OSError, struct.error.
    """
    stacks = Stacks(minor, walk, values, {_ALONE: tuple(frames)}, True)
    held = with_blocks.read(stacks)
    if not held.complete:
        return ()
    returned = held.returned.get(_ALONE, frozenset())
    blocks = [each for each in held.blocks.get(_ALONE, ()) if not each.assumes and each.lock not in returned]
    if not blocks:
        return ()
    hands = HandAcquires(Ways(stacks), {}, lambda _: False)
    return tuple(
        (_sleeps_at(walk, each.lock), each.place)
        for each in blocks
        if hands.gives_back(frames[: each.place + 1], each.lock) == ""
    )


def _sleeps_at(walk: Walk, lock: int) -> int:
    """Up to CPython 3.13.3 a lock object points to its lock, later it is inside: one byte, which is odd while held."""
    inside = lock + walk.reader.layout.head
    pointer = walk.word(inside)
    return inside if pointer & _LOCKED else pointer
