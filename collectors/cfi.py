"""Where a function keeps its caller's registers at one instruction: the call frame information of .eh_frame.

.eh_frame_hdr is a table of all functions sorted by address; it leads to the one FDE (frame description entry) that
covers an address, and that to its CIE (what many FDEs have in common). Their instructions, run up to the address, give
a row: how the CFA (the caller's stack pointer) is computed, and where each register was saved. Formats: Linux Standard
Base 5.0 (.eh_frame, .eh_frame_hdr) and DWARF 4, section 6.4 and 7.23.

The bytes are a stranger's: whatever makes no sense raises `Malformed`, and every loop and length is bounded.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from stucktrace.collectors.dwarf_bytes import DATAREL, Bytes, Malformed
from stucktrace.collectors.elf import Module

Read = Callable[[int, int], bytes]
"""(address, length) -> exactly that many bytes of the target. Raises OSError."""

_MAX_TABLE_BYTES = 16 << 20
_MAX_ENTRY_BYTES = 1 << 16
_MAX_INSTRUCTIONS = 10_000
_MAX_REMEMBERED = 64


@dataclass(frozen=True)
class Rule:
    """How one register of the caller is found: at CFA + offset ("offset"), CFA + offset itself ("value"), in another
    register ("register"), at the address an expression gives ("expression"), or that itself ("value expression");
    "undefined" is lost, "same" is unchanged."""

    kind: str
    number: int = 0
    expression: bytes = b""


@dataclass(frozen=True)
class Row:
    """The CFA is `register` + `offset`, or what `expression` gives."""

    register: int = -1
    offset: int = 0
    expression: bytes = b""
    rules: dict[int, Rule] = field(default_factory=dict)
    signed: bool = False
    """The return address carries a pointer authentication code (arm64)."""


@dataclass(frozen=True)
class Function:
    """What the information of one function says at one address in it."""

    start: int
    end: int
    row: Row
    return_register: int
    signal_frame: bool
    """The kernel called it: what it returns to is an instruction that was not run yet, not one behind a call."""


class Table:
    """The functions of one loaded file, by address. Raises OSError, Malformed."""

    def __init__(self, module: Module, read: Read) -> None:
        header = module.unwind_header
        if header is None:
            raise Malformed("no .eh_frame_hdr")
        self._read = read
        self._start, size = header
        if not 12 <= size <= _MAX_TABLE_BYTES:
            raise Malformed("the size of .eh_frame_hdr")
        data = Bytes(read(self._start, size), self._start)
        version, frame_encoding, count_encoding, table_encoding = (data.byte() for _ in range(4))
        if version != 1 or table_encoding != DATAREL | 0x0B:
            raise Malformed("an unknown kind of .eh_frame_hdr")
        data.pointer(frame_encoding)
        count = data.pointer(count_encoding)
        self._entries = data.data[data.place : data.place + 8 * count]
        self._count = len(self._entries) // 8
        self._common: dict[int, _Common] = {}

    def __getitem__(self, index: int) -> int:
        """Where the function of this index starts, relative to the header: what a search in the table goes by."""
        return int(struct.unpack_from("<i", self._entries, 8 * index)[0])

    def __len__(self) -> int:
        return self._count

    def find(self, address: int) -> Function | None:
        """What is said of `address`, None when no function covers it. Raises OSError, Malformed."""
        index = bisect_right(self, address - self._start) - 1
        if index < 0:
            return None
        (offset,) = struct.unpack_from("<i", self._entries, 8 * index + 4)
        return self._entry(self._start + offset, address)

    def _entry(self, place: int, address: int) -> Function | None:
        data, identity = self._block(place)
        if identity == 0:
            raise Malformed("a CIE where an FDE should be")
        common = self._common_of(data.address - 4 - identity)
        start = data.pointer(common.encoding)
        size = data.pointer(common.encoding & 0x0F)
        if not start <= address < start + size:
            return None
        if common.augmented:
            data.take(data.unsigned())
        initial = _run(Bytes(common.instructions, 0), common, Row())
        row = _run(data, common, initial, start, address)
        return Function(start, start + size, row, common.return_register, common.signal_frame)

    def _block(self, place: int) -> tuple[Bytes, int]:
        """(what follows the id of the entry at `place`, that id)."""
        length, identity = struct.unpack("<II", self._read(place, 8))
        if not 4 <= length <= _MAX_ENTRY_BYTES:
            raise Malformed("the length of an entry")
        return Bytes(self._read(place + 8, length - 4), place + 8), identity

    def _common_of(self, place: int) -> _Common:
        if place not in self._common:
            data, identity = self._block(place)
            if identity != 0:
                raise Malformed("an FDE where a CIE should be")
            self._common[place] = _parse_common(data)
        return self._common[place]


@dataclass(frozen=True)
class _Common:
    """A CIE."""

    code_unit: int
    data_unit: int
    return_register: int
    augmented: bool
    encoding: int
    signal_frame: bool
    instructions: bytes


def _parse_common(data: Bytes) -> _Common:
    version = data.byte()
    augmentation = data.data[data.place :].partition(b"\0")[0]
    data.take(len(augmentation) + 1)
    if version not in (1, 3, 4) or len(augmentation) > 16:
        raise Malformed(f"CIE version {version}")
    if version == 4:
        data.take(2)
    code_unit, data_unit = data.unsigned(), data.signed()
    return_register = data.byte() if version == 1 else data.unsigned()
    encoding, signal_frame = 0, False
    augmented = augmentation.startswith(b"z")
    if augmentation and not augmented:
        raise Malformed("an unknown augmentation")
    if augmented:
        length = data.unsigned()
        end = data.place + length
        for letter in augmentation[1:].decode(errors="replace"):
            if letter == "R":
                encoding = data.byte()
            elif letter == "L":
                data.byte()
            elif letter == "P":
                data.pointer(data.byte())
            elif letter == "S":
                signal_frame = True
            elif letter not in "BG":
                break
        data.place = end
    return _Common(code_unit, data_unit, return_register, augmented, encoding, signal_frame, data.data[data.place :])


def _run(data: Bytes, common: _Common, initial: Row, start: int = 0, address: int | None = None) -> Row:
    """The row after all instructions up to `address`, from the one that the CIE begins with."""
    row = initial
    location, remembered = start, list[Row]()
    rules = dict(row.rules)
    for _ in range(_MAX_INSTRUCTIONS):
        if data.place >= len(data.data):
            break
        byte = data.byte()
        kind, low = byte & 0xC0, byte & 0x3F
        advance = None
        if kind == 0x40:
            advance = low
        elif kind == 0x80:
            rules[low] = Rule("offset", data.unsigned() * common.data_unit)
        elif kind == 0xC0:
            _restore(rules, initial, low)
        elif low in (0x02, 0x03, 0x04):
            advance = data.number({2: "<B", 3: "<H", 4: "<I"}[low])
        elif low == 0x01:
            location = data.pointer(common.encoding)
            advance = 0
        elif low == 0x0A:
            if len(remembered) >= _MAX_REMEMBERED:
                raise Malformed("too many states")
            remembered.append(replace(row, rules=dict(rules)))
        elif low == 0x0B:
            if not remembered:
                raise Malformed("no state to restore")
            row = remembered.pop()
            rules = dict(row.rules)
        elif low in (0x0C, 0x0D, 0x0E, 0x0F, 0x12, 0x13):
            row = _cfa(data, common, row, low)
        elif low == 0x2D:
            row = replace(row, signed=not row.signed)
        else:
            _rule(data, common, rules, initial, low)
        if advance is not None:
            location += advance * common.code_unit
            if address is not None and location > address:
                break
    return replace(row, rules=rules)


def _cfa(data: Bytes, common: _Common, row: Row, kind: int) -> Row:
    if kind == 0x0C:
        return replace(row, register=data.unsigned(), offset=data.unsigned(), expression=b"")
    if kind == 0x12:
        return replace(row, register=data.unsigned(), offset=data.signed() * common.data_unit, expression=b"")
    if kind == 0x0D:
        return replace(row, register=data.unsigned(), expression=b"")
    if kind == 0x0F:
        return replace(row, register=-1, expression=data.take(data.unsigned()))
    return replace(row, offset=data.unsigned() if kind == 0x0E else data.signed() * common.data_unit)


def _rule(data: Bytes, common: _Common, rules: dict[int, Rule], initial: Row, kind: int) -> None:
    if kind == 0x00:
        return
    if kind == 0x2E:
        data.unsigned()
        return
    register = data.unsigned()
    if kind == 0x05:
        rules[register] = Rule("offset", data.unsigned() * common.data_unit)
    elif kind == 0x06:
        _restore(rules, initial, register)
    elif kind == 0x07:
        rules[register] = Rule("undefined")
    elif kind == 0x08:
        rules[register] = Rule("same")
    elif kind == 0x09:
        rules[register] = Rule("register", data.unsigned())
    elif kind == 0x10:
        rules[register] = Rule("expression", 0, data.take(data.unsigned()))
    elif kind == 0x11:
        rules[register] = Rule("offset", data.signed() * common.data_unit)
    elif kind == 0x14:
        rules[register] = Rule("value", data.unsigned() * common.data_unit)
    elif kind == 0x15:
        rules[register] = Rule("value", data.signed() * common.data_unit)
    elif kind == 0x16:
        rules[register] = Rule("value expression", 0, data.take(data.unsigned()))
    else:
        raise Malformed(f"instruction {kind:#x}")


def _restore(rules: dict[int, Rule], initial: Row, register: int) -> None:
    if register in initial.rules:
        rules[register] = initial.rules[register]
    else:
        rules.pop(register, None)
