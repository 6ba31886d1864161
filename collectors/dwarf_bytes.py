"""Numbers as unwind tables and DWARF write them, one after another: fixed sizes, LEB128, encoded pointers.

The bytes are a stranger's: what makes no sense raises `Malformed`, and nothing is read beyond the end.
"""

from __future__ import annotations

import struct

# Pointer encodings: DW_EH_PE_*.
_OMIT, PCREL, DATAREL = 0xFF, 0x10, 0x30
_FORMATS = {0x00: "<Q", 0x02: "<H", 0x03: "<I", 0x04: "<Q", 0x0A: "<h", 0x0B: "<i", 0x0C: "<q"}


class Malformed(ValueError):
    """Not call frame information, or none that is known here."""


class Bytes:
    """Reads numbers one after another, never beyond the end. `address` is where the first byte lies in the target."""

    def __init__(self, data: bytes, address: int) -> None:
        self.data, self.address, self.place = data, address, 0

    def number(self, form: str) -> int:
        try:
            value: int = struct.unpack_from(form, self.data, self.place)[0]
        except struct.error:
            raise Malformed("cut off") from None
        self.place += struct.calcsize(form)
        return value

    def byte(self) -> int:
        return self.number("<B")

    def take(self, length: int) -> bytes:
        if not 0 <= length <= len(self.data) - self.place:
            raise Malformed("cut off")
        self.place += length
        return self.data[self.place - length : self.place]

    def unsigned(self) -> int:
        return self._leb()[0]

    def signed(self) -> int:
        value, bits, last = self._leb()
        return value - (1 << bits) if last & 0x40 else value

    def _leb(self) -> tuple[int, int, int]:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value, shift + 7, byte
        raise Malformed("a number without an end")

    def pointer(self, encoding: int, data_start: int = 0) -> int:
        here = self.address + self.place
        if encoding == _OMIT:
            return 0
        form, base = encoding & 0x0F, encoding & 0x70
        if form == 0x01:
            value = self.unsigned()
        elif form == 0x09:
            value = self.signed()
        elif form in _FORMATS:
            value = self.number(_FORMATS[form])
        else:
            raise Malformed(f"pointer encoding {encoding:#x}")
        if base not in (0, PCREL, DATAREL):
            raise Malformed(f"pointer encoding {encoding:#x}")
        return (value + {PCREL: here, DATAREL: data_start}.get(base, 0)) & (1 << 64) - 1
