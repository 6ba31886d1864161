"""Python objects in another process's memory: str, int, float, tuple, dict, datetime and an instance's attributes.

Nothing is stopped, so any object can go or change while it is read. What a word is, its type's name says; lengths and
counts have to be plausible; a read that fails, or finds something else, gives None, never a guess. Layouts are those of
the headers of CPython 3.8 to 3.14 (not free-threaded).
"""

from __future__ import annotations

import struct
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from stucktrace.collectors import memory
from stucktrace.collectors.cpython_objects import Reader

if TYPE_CHECKING:
    from datetime import datetime

_MAX_ENTRIES = 1 << 15
_MAX_ITEMS = 1 << 10
_DIGIT_BITS = 30
_DIGITS_AT_MOST = 4
_KEY_BYTES = 96
_GENERAL = 0
_EMPTY = (0, 1)
"""Stands for a dict without entries."""
_MANAGED_DICT = 1 << 4
_INLINE_VALUES = 1 << 2
_DICT_SUBCLASS = 1 << 29
_INT_SUBCLASS = 1 << 24
_TYPE_FLAGS, _BASIC_SIZE, _DICT_OFFSET = 168, 32, 288
_TYPE_DICT, _TYPE_MRO = 264, 344


class Values:
    """Reads the objects of one process."""

    def __init__(self, reader: Reader, minor: tuple[int, int]) -> None:
        self._reader = reader
        self._minor = minor
        # From 3.12 on a str no longer has a wchar_t copy.
        self._ascii, self._compact = (40, 56) if minor >= (3, 12) else (48, 72)
        # From 3.14 on a tuple keeps its hash before its items.
        self._items = 32 if minor >= (3, 14) else 24

    def types(self, addresses: Sequence[int]) -> list[str]:
        """The name of each object's type; "" where there is no object."""
        words = memory.read_words(self._reader.pid, [address + 8 if address % 8 == 0 else 0 for address in addresses])
        self._reader.type_names({word for word in words if word})
        return [self._reader.type_name(word) if word else "" for word in words]

    def type(self, address: int) -> str:
        return self.types([address])[0]

    def text(self, address: int, longest: int) -> str | None:
        """A str's first `longest` characters."""
        head = self._object(address, "str", 36)
        if head is None:
            return None
        width, start = self._form(head)
        (length,) = struct.unpack_from("<q", head, 16)
        if not width or length < 0:
            return None
        data = self._read(address + start, width * min(length, longest))
        return None if data is None else _decoded(data, width)

    def _form(self, head: bytes) -> tuple[int, int]:
        """(bytes of a character, offset of the text) of a str; (0, 0) where it is not in the object itself."""
        (state,) = struct.unpack_from("<I", head, 32)
        width, compact, ascii_only = state >> 2 & 7, state & 0x20, state & 0x40
        if width not in (1, 2, 4) or not compact or (ascii_only and width != 1):
            return 0, 0
        return width, self._ascii if ascii_only else self._compact

    def short_texts(self, addresses: list[int]) -> list[str]:
        """Of several objects at once: strings that are ASCII and short enough to be a name, "" for everything else."""
        heads = memory.read_each(self._reader.pid, addresses, _KEY_BYTES)
        self._reader.type_names({struct.unpack_from("<Q", head, 8)[0] for head in heads if len(head) >= 16})
        return [self._short_text(head) for head in heads]

    def integer(self, address: int, *, kinds: bool = False) -> int | None:
        """An int of up to 120 bits. `kinds`: also of a subclass, such as a constant of an enumeration."""
        head = self._object(address, "int", 24)
        if head is None and kinds and address % 8 == 0:
            head = self._read(address, 24)
            head = head if head is not None and self.flags(_word(head, 8)) & _INT_SUBCLASS else None
        if head is None:
            return None
        (size,) = struct.unpack_from("<q", head, 16)
        # From 3.12 on the count stands above three bits, the lowest two of which tell the sign: 2 is negative.
        count, negative = (size >> 3, size & 3 == 2) if self._minor >= (3, 12) else (abs(size), size < 0)
        if not 0 <= count <= _DIGITS_AT_MOST:
            return None
        data = self._read(address + 24, 4 * count)
        if data is None:
            return None
        value = sum(digit << _DIGIT_BITS * place for place, (digit,) in enumerate(struct.iter_unpack("<I", data)))
        return int(-value if negative else value)

    def number(self, address: int) -> float | None:
        """A float."""
        head = self._object(address, "float", 24)
        return None if head is None else float(struct.unpack_from("<d", head, 16)[0])

    def items(self, address: int) -> tuple[int, ...] | None:
        """The addresses of a tuple's items."""
        head = self._object(address, "tuple", 24)
        if head is None:
            return None
        (count,) = struct.unpack_from("<q", head, 16)
        return self._words(address + self._items, count) if 0 <= count <= _MAX_ITEMS else None

    def content(self, cell: int) -> int | None:
        """The address of what a closure's cell holds; None when it is empty."""
        head = self._object(cell, "cell", 24)
        return None if head is None else int(struct.unpack_from("<Q", head, 16)[0]) or None

    def moment(self, address: int) -> datetime | None:
        """A datetime without a time zone."""
        head = self._object(address, "datetime.datetime", 35)
        if head is None or head[24]:
            return None
        from datetime import datetime

        year, month, day, hour, minute, second, high, low = struct.unpack_from(">HBBBBBBH", head, 25)
        try:
            return datetime(year, month, day, hour, minute, second, high << 16 | low)
        except ValueError:
            return None

    def entries(self, address: int, wanted: Container[str]) -> dict[str, int] | None:
        """Of a dict, the addresses of the values under the `wanted` keys that it has."""
        return self.entries_of([address], wanted)[0]

    def entries_of(self, addresses: Sequence[int], wanted: Container[str] | None) -> list[dict[str, int] | None]:
        """As `entries`, of several dicts at once; `wanted` None: of all keys that are short strings."""
        held: list[tuple[int, int]] = []
        for address, head in zip(addresses, memory.read_each(self._reader.pid, addresses, 48), strict=True):
            if address % 8 == 0 and len(head) == 48 and self._reader.type_name(_word(head, 8)) == "dict":
                used = _word(head, 16)
                held.append((_word(head, 32), _word(head, 40)) if 0 < used <= _MAX_ENTRIES else _EMPTY)
            else:
                held.append((0, 0))
        return self._lookup(held, wanted)

    def mapping(self, address: int) -> dict[str, int]:
        """Of a dict, every value whose key is a short string."""
        return self.entries_of([address], None)[0] or {}

    def attributes_of_class(self, kind: int) -> dict[str, int]:
        """What a class itself has, without what it inherits. Raises OSError."""
        return self.mapping(self._pointer(kind + _TYPE_DICT))

    def method_resolution_order(self, kind: int) -> tuple[int, ...]:
        """A class, those it inherits from, `object` last. Raises OSError."""
        return self.items(self._pointer(kind + _TYPE_MRO)) or ()

    def _pointer(self, address: int) -> int:
        return _word(memory.read(self._reader.pid, address, 8), 0)

    def pairs(self, address: int) -> list[tuple[int, int]] | None:
        """The addresses of a dict's keys and values, whatever the keys are; of a subclass too."""
        head = self._read(address, 48) if address % 8 == 0 else None
        if head is None or not self.flags(_word(head, 8)) & _DICT_SUBCLASS:
            return None
        used, keys, values = _word(head, 16), _word(head, 32), _word(head, 40)
        if not 0 < used <= _MAX_ENTRIES:
            return None if used else []
        start, count, width = table = _table(keys, self._read(keys, 40) or b"", self._minor)
        before = 8 if self._minor >= (3, 13) else 0
        apart = (self._read(values + before, 8 * count) or b"") if values else None
        found = _pairs(self._read(start, count * width) or b"", table, apart) if start else None
        return found if found is not None and len(found) == used else None

    def holding(self, addresses: Sequence[int], wanted: int) -> list[bool]:
        """Of several dicts that are no split tables: whether each has this object among its keys or values."""
        pid, needle = self._reader.pid, struct.pack("<Q", wanted)
        keys = [_word(head, 32) if len(head) == 40 else 0 for head in memory.read_each(pid, addresses, 40)]
        heads = memory.read_each(pid, keys, 40)
        tables = [_table(each, head, self._minor) for each, head in zip(keys, heads, strict=True)]
        raws = memory.read_ranges(pid, [(start, count * width) for start, count, width in tables])
        return [needle in raw for raw in raws]

    def flags(self, kind: int) -> int:
        """Of a type: what it is a subclass of, and more (`tp_flags`)."""
        return (self._words(kind + _TYPE_FLAGS, 1) or (0,))[0] if self._reader.type_name(kind) else 0

    def attribute(self, address: int, name: str) -> int | None:
        """The address of an instance's attribute, as its own dict or its inline values hold it."""
        return self.attributes(address, (name,)).get(name)

    def attributes(self, address: int, wanted: Container[str] | None = None) -> dict[str, int]:
        """As `attribute`, of all names or the `wanted` ones."""
        head = self._read(address, 16) if address % 8 == 0 else None
        if head is None:
            return {}
        (kind,) = struct.unpack_from("<Q", head, 8)
        if not self._reader.type_name(kind):
            return {}
        values, dictionary = self._held(address, kind)
        if values:
            return self._lookup([(self._cached_keys(kind), values)], wanted)[0] or {}
        return (self.entries_of([dictionary], wanted)[0] or {}) if dictionary else {}

    def _held(self, address: int, kind: int) -> tuple[int, int]:
        """(its values, its dict): where an instance keeps its attributes; 0 for what it does not have."""
        words = memory.read_words(self._reader.pid, [kind + _TYPE_FLAGS, kind + _DICT_OFFSET, kind + _BASIC_SIZE])
        flags, offset, size = (word or 0 for word in words)
        if self._minor >= (3, 11) and flags & _MANAGED_DICT:
            values, dictionary = self._words(address - 32, 2) or (0, 0)
            if self._minor == (3, 11):
                return values, dictionary
            if self._minor == (3, 12):
                return (dictionary + 1, 0) if dictionary & 1 else (0, dictionary)
            # Inline values are right behind the object, as long as they say that they are valid.
            inline = self._read(address + size, 4) if flags & _INLINE_VALUES else None
            return (address + size, 0) if inline is not None and inline[3] else (0, dictionary)
        if 0 < offset < 1 << 16:
            return 0, (self._words(address + offset, 1) or (0,))[0]
        return 0, 0

    def _cached_keys(self, kind: int) -> int:
        return (self._words(kind + (880 if self._minor >= (3, 12) else 872), 1) or (0,))[0]

    def _lookup(self, held: Sequence[tuple[int, int]], wanted: Container[str] | None) -> list[dict[str, int] | None]:
        """`held`: (a table of keys, where a split table has its values, 0 for one that has them beside the keys)."""
        pid, before = self._reader.pid, 8 if self._minor >= (3, 13) else 0
        heads = memory.read_each(pid, [keys for keys, _ in held], 40)
        tables = [_table(keys, head, self._minor) for (keys, _), head in zip(held, heads, strict=True)]
        raws = memory.read_ranges(pid, [(start, count * width) for start, count, width in tables])
        apart = memory.read_ranges(
            pid,
            [
                (values + before, 8 * count) if values else (0, 0)
                for (_, values), (_, count, _) in zip(held, tables, strict=True)
            ],
        )
        pairs = [
            _pairs(raw, table, beside if values else None)
            for (_, values), table, raw, beside in zip(held, tables, raws, apart, strict=True)
        ]
        names = iter(self.short_texts([key for each in pairs for key, _ in each or ()]))
        return [
            {}
            if pair == _EMPTY
            else None
            if each is None
            else {
                name: value
                for (_, value), name in zip(each, names, strict=False)
                if name and (wanted is None or name in wanted)
            }
            for pair, each in zip(held, pairs, strict=True)
        ]

    def _short_text(self, head: bytes) -> str:
        if len(head) < self._ascii or self._reader.type_name(struct.unpack_from("<Q", head, 8)[0]) != "str":
            return ""
        width, start = self._form(head)
        (length,) = struct.unpack_from("<q", head, 16)
        if start != self._ascii or not 0 <= length <= len(head) - start:
            return ""
        return _decoded(head[start : start + length], width)

    def _object(self, address: int, type_name: str, length: int) -> bytes | None:
        """The first bytes of the object at an address, if it is of this very type."""
        head = self._read(address, length) if address % 8 == 0 else None
        if head is None or self._reader.type_name(struct.unpack_from("<Q", head, 8)[0]) != type_name:
            return None
        return head

    def _words(self, address: int, count: int) -> tuple[int, ...] | None:
        data = self._read(address, 8 * count)
        return None if data is None else struct.unpack(f"<{count}Q", data)

    def _read(self, address: int, length: int) -> bytes | None:
        try:
            return memory.read(self._reader.pid, address, length)
        except (ProcessLookupError, PermissionError):
            raise
        except OSError:
            return None


def _word(data: bytes, place: int) -> int:
    word: int = struct.unpack_from("<Q", data, place)[0]
    return word


def _table(keys: int, head: bytes, minor: tuple[int, int]) -> tuple[int, int, int]:
    """(address of the entries, how many were ever used, bytes of one) of a dict's keys; all 0 where it is none."""
    if len(head) < 40 or keys % 8:
        return 0, 0, 0
    if minor >= (3, 11):
        log2_size, log2_index_bytes, kind = head[8:11]
        count = _word(head, 24)
        if log2_size > 62 or count > min(1 << log2_size, _MAX_ENTRIES) or log2_index_bytes > log2_size + 3:
            return 0, 0, 0
        return keys + 32 + (1 << log2_index_bytes), count, 24 if kind == _GENERAL else 16
    size, count = _word(head, 8), _word(head, 32)
    if not size or size & (size - 1) or count > min(size, _MAX_ENTRIES):
        return 0, 0, 0
    return keys + 40 + size * (1 if size <= 0xFF else 2 if size <= 0xFFFF else 4), count, 24


def _pairs(raw: bytes, table: tuple[int, int, int], apart: bytes | None) -> list[tuple[int, int]] | None:
    """(key, value) of each entry in use. `apart`: the values of a split table. None: it was not read whole."""
    start, count, width = table
    if not start or len(raw) < count * width or (apart is not None and len(apart) < 8 * count):
        return None
    pairs = [struct.unpack_from("<2Q", raw, place) for place in range(width - 16, len(raw), width)]
    if apart is not None:
        values = struct.unpack(f"<{count}Q", apart)
        pairs = [(key, value) for (key, _), value in zip(pairs, values, strict=True)]
    return [(key, value) for key, value in pairs if key and value]


def _decoded(data: bytes, width: int) -> str:
    return data.decode({1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}[width], errors="replace")
