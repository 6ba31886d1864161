"""Python frames that have returned and still lie in memory, beyond the innermost frame of a thread that sleeps.

From CPython 3.11 on the frames of a thread lie one behind the other in a block of its own, and a frame that returns is
not wiped: what the thread called last lies there until something else is called from the same depth. So a dead frame at
the very place where the next one of its kind would be put is the last of its kind. What its variables refer to may be
gone: only what is known to live by other means may be believed. Older versions keep nothing that could be read.
Source: `_PyInterpreterFrame` (pycore_frame.h), process_vm_readv.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from stucktrace.collectors import memory, python_frames
from stucktrace.collectors.pool_stacks import Stacks

SINCE = (3, 11)
_BYTES = 8 << 10
_STACK_SIZE_BEFORE = 8
"""In a code object the depth of its value stack stands so far before the number of its variables."""
_MOST_STACK = 1 << 12


@dataclass(frozen=True)
class Dead:
    """One dead frame."""

    function: str
    file: str
    variables: dict[str, int]
    """Name -> address of what it referred to, which may be gone."""


def read(stacks: Stacks, tid: int) -> Iterator[Dead]:
    """Those of one thread whose head is whole, the nearest first. Raises OSError."""
    places = stacks.of(tid)
    walk = stacks.walk
    if not places or stacks.read.minor < SINCE:
        return
    # What the innermost frame does not use of its own value stack is as it was, so dead ones can begin in there.
    slots = walk.slots(places[0].frame)
    start = slots.stop if slots else places[0].frame.address + walk.offsets.variables
    data = memory.read_some(walk.pid, start, _BYTES)
    words = struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8])
    codes = _codes(stacks, {python_frames.object_of(word) for word in words if word})
    for index, word in enumerate(words):
        code = python_frames.object_of(word)
        if code in codes:
            named = stacks.read.named(code)
            address = start + 8 * index - walk.offsets.code
            yield Dead(named.function, named.file, variables(stacks, address, code))


def variables(stacks: Stacks, address: int, code: int) -> dict[str, int]:
    """Of a frame of this code that began at an address, whatever its head is now. Raises OSError."""
    names = stacks.read.named(code).variables
    held = stacks.walk.objects(address + stacks.walk.offsets.variables, len(names))
    return {name: each for name, each in zip(names, held, strict=True) if each}


def size(stacks: Stacks, code: int) -> int:
    """How many bytes a frame of this code takes: 0 where it cannot be read."""
    offsets = stacks.walk.offsets
    data = memory.read(stacks.pid, code + offsets.local_count - _STACK_SIZE_BEFORE, 12)
    stack, _, count = struct.unpack("<3i", data)
    if not 0 <= stack <= _MOST_STACK or not 0 <= count <= _MOST_STACK:
        return 0
    taken: int = offsets.variables + 8 * (count + stack)
    return taken


def _codes(stacks: Stacks, words: set[int]) -> set[int]:
    likely = [word for word in words if word % 8 == 0 and stacks.walk.reader.regions.find(word) is not None]
    kinds = stacks.values.types(likely)
    return {word for word, kind in zip(likely, kinds, strict=True) if kind == "code"}
