"""DWARF expressions, as far as unwind tables use them (DWARF 4, section 2.5): a stack machine for one address.

glibc's signal frames and every PLT have them. No branch is among the operations known here, so an expression ends.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from stucktrace.collectors.dwarf_bytes import Malformed

_WORD = (1 << 64) - 1
_MAX_BYTES = 512
_CONSTANTS = {0x08: "<B", 0x09: "<b", 0x0A: "<H", 0x0B: "<h", 0x0C: "<I", 0x0D: "<i", 0x0E: "<Q", 0x0F: "<q"}
_COMPARE: Mapping[int, Callable[[int, int], bool]] = {
    0x29: lambda a, b: a == b,
    0x2A: lambda a, b: a >= b,
    0x2B: lambda a, b: a > b,
    0x2C: lambda a, b: a <= b,
    0x2D: lambda a, b: a < b,
    0x2E: lambda a, b: a != b,
}
_ARITHMETIC: Mapping[int, Callable[[int, int], int]] = {
    0x1A: lambda a, b: a & b,
    0x1C: lambda a, b: a - b,
    0x1E: lambda a, b: a * b,
    0x21: lambda a, b: a | b,
    0x22: lambda a, b: a + b,
    0x24: lambda a, b: a << min(b & _WORD, 64),
    0x25: lambda a, b: (a & _WORD) >> min(b & _WORD, 64),
    0x27: lambda a, b: a ^ b,
}


def evaluate(
    expression: bytes, registers: Mapping[int, int], word: Callable[[int], int], first: int | None = None
) -> int:
    """The value on top in the end. `word` reads the target's memory. Raises Malformed, OSError, and KeyError for a
    register that is not known."""
    if len(expression) > _MAX_BYTES:
        raise Malformed("a long expression")
    stack = [] if first is None else [first]
    place = 0
    try:
        while place < len(expression):
            place = _operation(expression, place, stack, registers, word)
        return stack[-1] & _WORD
    except (IndexError, struct.error):
        raise Malformed("an expression that does not work out") from None


def _operation(
    code: bytes, place: int, stack: list[int], registers: Mapping[int, int], word: Callable[[int], int]
) -> int:
    """Runs the one at `place`; where the next one is."""
    operation, place = code[place], place + 1
    if 0x30 <= operation <= 0x4F:
        stack.append(operation - 0x30)
    elif 0x50 <= operation <= 0x6F:
        stack.append(registers[operation - 0x50])
    elif 0x70 <= operation <= 0x8F:
        offset, place = _signed(code, place)
        stack.append(registers[operation - 0x70] + offset & _WORD)
    elif operation in _CONSTANTS:
        stack.append(struct.unpack_from(_CONSTANTS[operation], code, place)[0])
        place += struct.calcsize(_CONSTANTS[operation])
    elif operation == 0x11:
        value, place = _signed(code, place)
        stack.append(value)
    elif operation in (0x10, 0x23):
        value, place = _unsigned(code, place)
        stack.append(stack.pop() + value & _WORD if operation == 0x23 else value)
    elif operation == 0x06:
        stack.append(word(stack.pop()))
    elif operation == 0x12:
        stack.append(stack[-1])
    elif operation == 0x13:
        stack.pop()
    elif operation == 0x14:
        stack.append(stack[-2])
    elif operation == 0x16:
        stack[-1], stack[-2] = stack[-2], stack[-1]
    elif operation in _ARITHMETIC:
        right, left = stack.pop(), stack.pop()
        stack.append(_ARITHMETIC[operation](left, right) & _WORD)
    elif operation in _COMPARE:
        right, left = _as_signed(stack.pop()), _as_signed(stack.pop())
        stack.append(int(_COMPARE[operation](left, right)))
    elif operation != 0x96:
        raise Malformed(f"operation {operation:#x}")
    return place


def _as_signed(value: int) -> int:
    value &= _WORD
    return value - (1 << 64) if value >> 63 else value


def _unsigned(code: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = code[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, place
    raise Malformed("a number without an end")


def _signed(code: bytes, place: int) -> tuple[int, int]:
    value, after = _unsigned(code, place)
    bits = 7 * (after - place)
    return (value - (1 << bits) if code[after - 1] & 0x40 else value), after
