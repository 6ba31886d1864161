"""Field tables of AMQP 0-9-1, as RabbitMQ and its clients write them. No I/O.

Source: "AMQP 0-9-1 errata" in RabbitMQ's documentation (its types differ from the specification's: s is a 16-bit
integer, l a 64-bit one). Depth, number of values and length are bounded: a table is data from a stranger.
"""

from __future__ import annotations

import struct
from decimal import Decimal, InvalidOperation

DEPTH = 16
VALUES = 4096

Value = None | bool | int | float | Decimal | bytes | list["Value"] | dict[str, "Value"]


class Malformed(ValueError):
    """Not a field table, or one beyond the bounds."""


class Timestamp(int):
    """Seconds since 1970, type T."""


_FIXED = {
    key: struct.Struct(f">{code}")
    for key, code in {
        "b": "b", "B": "B", "U": "h", "s": "h", "u": "H", "I": "i", "i": "I", "L": "q", "l": "q", "f": "f", "d": "d",
    }.items()
}  # fmt: skip


def read_table(data: bytes, at: int = 0) -> tuple[dict[str, Value], int]:
    """The table that begins (with its length) at `at`, and where it ends. Malformed for anything else."""
    try:
        return _Reader(data).table(at, DEPTH)
    except (struct.error, IndexError, InvalidOperation) as error:
        raise Malformed(f"cut short: {error}") from None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.left = VALUES

    def table(self, at: int, depth: int) -> tuple[dict[str, Value], int]:
        at, end = self._span(at, depth)
        found: dict[str, Value] = {}
        while at < end:
            size = self.data[at]
            name = self.data[at + 1 : at + 1 + size].decode(errors="replace")
            found[name], at = self.value(at + 1 + size, depth)
        if at != end:
            raise Malformed("a value reaches beyond its table")
        return found, end

    def array(self, at: int, depth: int) -> tuple[list[Value], int]:
        at, end = self._span(at, depth)
        found: list[Value] = []
        while at < end:
            value, at = self.value(at, depth)
            found.append(value)
        if at != end:
            raise Malformed("a value reaches beyond its array")
        return found, end

    def _span(self, at: int, depth: int) -> tuple[int, int]:
        """Where the content of a table, array or string of a four-byte length begins and ends."""
        if depth <= 0:
            raise Malformed("tables are nested too deeply")
        end = at + 4 + int.from_bytes(self.data[at : at + 4], "big")
        if at + 4 > len(self.data) or end > len(self.data):
            raise Malformed("longer than its frame")
        return at + 4, end

    def value(self, at: int, depth: int) -> tuple[Value, int]:
        self.left -= 1
        if self.left < 0:
            raise Malformed("too many values")
        kind = chr(self.data[at])
        at += 1
        fixed = _FIXED.get(kind)
        if fixed is not None:
            return fixed.unpack_from(self.data, at)[0], at + fixed.size
        if kind == "t":
            return self.data[at] != 0, at + 1
        if kind == "V":
            return None, at
        if kind == "T":
            return Timestamp(struct.unpack_from(">Q", self.data, at)[0]), at + 8
        if kind == "D":
            scale, number = struct.unpack_from(">Bi", self.data, at)
            return Decimal(number).scaleb(-scale), at + 5
        if kind in "Sx":
            begin, end = self._span(at, depth)
            return self.data[begin:end], end
        if kind == "F":
            return self.table(at, depth - 1)
        if kind == "A":
            return self.array(at, depth - 1)
        raise Malformed(f"no such type: {kind!r}")


def pack_table(table: dict[str, Value]) -> bytes:
    """With its length in front. An int takes 32 bits if it can."""
    content = b"".join(_short(name) + _packed(value) for name, value in table.items())
    return struct.pack(">I", len(content)) + content


def _short(text: str) -> bytes:
    raw = text.encode()
    return bytes([len(raw)]) + raw


def _packed(value: Value) -> bytes:
    if value is None:
        return b"V"
    if isinstance(value, bool):
        return b"t" + bytes([value])
    if isinstance(value, Timestamp):
        return b"T" + struct.pack(">Q", value)
    if isinstance(value, int):
        return b"I" + struct.pack(">i", value) if -(1 << 31) <= value < 1 << 31 else b"l" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"d" + struct.pack(">d", value)
    if isinstance(value, Decimal):
        sign, digits, exponent = value.as_tuple()
        number = int("".join(map(str, digits)) or "0") * (-1 if sign else 1)
        return b"D" + struct.pack(">Bi", -int(exponent), number)
    if isinstance(value, bytes):
        return b"S" + struct.pack(">I", len(value)) + value
    if isinstance(value, list):
        content = b"".join(map(_packed, value))
        return b"A" + struct.pack(">I", len(content)) + content
    return b"F" + pack_table(value)
