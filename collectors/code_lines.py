"""Which source line an instruction of a code object is of: CPython's three tables of line numbers.

- up to 3.9, `co_lnotab`: pairs of bytes, how far the address moves and how far (signed) the line does
  (Objects/lnotab_notes.txt);
- 3.10, `co_linetable`: pairs of bytes, length of a range and how far (signed) its line is from the last one's, -128 for
  a range without a line (PEP 626);
- from 3.11 on, `co_linetable`: one entry for each range, its first byte 0x80 | form << 3 | length - 1; lines and
  columns follow as the form says (PEP 657, Objects/locations.md).

Addresses are in bytes from the code's first instruction. A table that ends early gives the last line it told.
"""

from __future__ import annotations

_NO_LINE_3_10 = -128
_NO_LOCATION, _LONG, _NO_COLUMNS = 15, 14, 13
_ONE_LINE = (10, 11, 12)
_INSTRUCTION_BYTES = 2


def line(minor: tuple[int, int], table: bytes, first_line: int, address: int) -> int | None:
    """The line of the instruction at `address` (-1: before the first one); None for one that has none."""
    if address < 0:
        return first_line
    if minor >= (3, 11):
        return _from_locations(table, first_line, address)
    return _from_ranges(table, first_line, address) if minor == (3, 10) else _from_steps(table, first_line, address)


def _from_steps(table: bytes, found: int, address: int) -> int:
    place = 0
    for index in range(0, len(table) - 1, 2):
        place += table[index]
        if place > address:
            break
        found += _signed(table[index + 1])
    return found


def _from_ranges(table: bytes, found: int, address: int) -> int | None:
    end = 0
    for index in range(0, len(table) - 1, 2):
        end += table[index]
        step = _signed(table[index + 1])
        if step != _NO_LINE_3_10:
            found += step
        if address < end:
            return None if step == _NO_LINE_3_10 else found
    return None


def _from_locations(table: bytes, found: int, address: int) -> int | None:
    end = position = 0
    while position < len(table):
        form = table[position] >> 3 & 15
        end += ((table[position] & 7) + 1) * _INSTRUCTION_BYTES
        position += 1
        if form in (_LONG, _NO_COLUMNS):
            found += _signed_number(table, position)
        elif form in _ONE_LINE:
            found += form - _ONE_LINE[0]
        if address < end:
            return None if form == _NO_LOCATION else found
        # Only an entry's first byte has its highest bit set.
        while position < len(table) and not table[position] & 0x80:
            position += 1
    return None


def _signed_number(table: bytes, position: int) -> int:
    """Six bits a byte, least significant first, 0x40: more follows; the lowest bit of all is the sign."""
    value = shift = 0
    for byte in table[position : position + 6]:
        value |= (byte & 0x3F) << shift
        shift += 6
        if not byte & 0x40:
            break
    return -(value >> 1) if value & 1 else value >> 1


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte
