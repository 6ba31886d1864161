"""A code object's exception table (CPython 3.11 and later): how much of the value stack is alive in a `with` block, and
which handler ends the block.

An entry is four numbers of six bits a byte, most significant first (0x40: more follows, 0x80: an entry begins): start,
length and target in instructions, and twice the depth plus a flag, "lasti" (Objects/exception_handling_notes.txt).
Every `with` sets that flag, `try` does not; a handler's own clean-up sets it too, but lies deeper.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_MAX_DEPTH = 1 << 10
_MAX_NUMBER = 1 << 32


class Entry(NamedTuple):
    """Instructions from `start` on, before `end`, are guarded by the handler at `target`."""

    start: int
    end: int
    target: int
    depth: int
    """How many values of the stack are alive."""
    lasti: bool


def entries(table: bytes) -> Iterator[Entry]:
    """In the order of their instructions; a table that is cut off, or makes no sense, ends early."""
    position = 0

    def number() -> int:
        nonlocal position
        value = table[position] & 0x3F
        while table[position] & 0x40:
            position += 1
            value = value << 6 | table[position] & 0x3F
            if value > _MAX_NUMBER:
                raise IndexError
        position += 1
        return value

    try:
        while position < len(table):
            start, length, target, depth = number(), number(), number(), number()
            yield Entry(start, start + length, target, min(depth >> 1, _MAX_DEPTH), bool(depth & 1))
    except IndexError:
        return


def alive(table: bytes, instruction: int) -> int:
    """How many values of the stack are alive at an instruction; 0 outside all ranges."""
    return next((entry.depth for entry in entries(table) if entry.start <= instruction < entry.end), 0)


def ends_at(table: bytes, instruction: int, depth: int) -> int | None:
    """The handler of the open `with` block whose last value on the stack is the one number `depth` (from 1), at this
    instruction: it has the line of the `with` itself.

    Blocks inside it guard their own instructions, so the last entry before the instruction counts, not one around it.
    """
    found = [
        entry.target for entry in entries(table) if entry.lasti and entry.depth == depth and entry.start <= instruction
    ]
    return found[-1] if found else None
