"""A loaded ELF file as it lies in another process's memory: its segments, its exported symbols, its unwind table.

Everything but the full symbol table is mapped with the program itself, so it is read from the target's memory: that
holds across mount namespaces and for files that were deleted or replaced since. The target is a stranger and may have
written anything over its own headers: each number is checked before it is used, and every read is bounded.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from stucktrace.collectors import memory
from stucktrace.collectors.regions import Region, Regions

LOAD, _PT_DYNAMIC, _PT_GNU_EH_FRAME = 1, 2, 0x6474E550
WRITABLE = 1 << 1
"""Of `Segment.flags`."""
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 4, 5, 6, 0x6FFFFEF5
_MAX_SEGMENTS = 64
_MAX_SYMBOLS = 100_000
_SYMBOL_BYTES = 24
MAX_NAME_BYTES = 512
_FUNCTIONS = (2, 10)
"""STT_FUNC and STT_GNU_IFUNC."""


@dataclass(frozen=True)
class Symbol:
    name: str
    address: int
    size: int


@dataclass(frozen=True)
class Segment:
    """One program header; addresses are the file's own."""

    kind: int
    flags: int
    offset: int
    start: int
    size: int


class Table:
    """Symbols by address. Entries are the ELF's own, `(value, size, place of the name)`; names are read when asked."""

    def __init__(self, data: bytes) -> None:
        whole = data[: len(data) // _SYMBOL_BYTES * _SYMBOL_BYTES]
        self.entries = sorted(
            (value, size, name)
            for name, info, _, section, value, size in struct.iter_unpack("<IBBHQQ", whole)
            if info & 15 in _FUNCTIONS and section and value
        )
        self._starts = [entry[0] for entry in self.entries]

    def find(self, value: int) -> tuple[int, int, int] | None:
        """The function that contains `value`: of those that do, the one that begins last."""
        index = bisect_right(self._starts, value)
        # Aliases have the same start; a function without a size is as long as the way to the next one.
        for start, size, name in reversed(self.entries[max(0, index - 8) : index]):
            following = self._starts[index] if index < len(self._starts) else start + 1
            if value < (start + size if size else following):
                return start, size, name
        return None


@dataclass(frozen=True)
class Module:
    """A mapped ELF file. `bias` is what is added to the file's own addresses."""

    pid: int
    path: str
    bias: int
    start: int
    machine: int
    header: bytes
    segments: tuple[Segment, ...]

    @cached_property
    def _dynamic(self) -> dict[int, int]:
        segment = next((segment for segment in self.segments if segment.kind == _PT_DYNAMIC), None)
        if segment is None:
            return {}
        return dict(_tags(memory.read_some(self.pid, self.bias + segment.start, min(segment.size, 4096))))

    def _located(self, tag: int) -> int:
        # glibc relocates these in place; musl and the vdso leave them relative to the load address.
        value = self._dynamic.get(tag, 0)
        return value + self.bias if 0 < value < self.start else value

    def symbol(self, name: str) -> tuple[int, int] | None:
        """(address, size) of an exported symbol, through DT_GNU_HASH. Raises OSError."""
        hashes, symbols, strings = self._located(_DT_GNU_HASH), self._located(_DT_SYMTAB), self._located(_DT_STRTAB)
        if not hashes or not symbols or not strings:
            return None
        head = _gnu_header(self.pid, hashes)
        if head is None:
            return None
        buckets, first, table = head
        wanted = _gnu_hash(name)
        (index,) = struct.unpack("<I", memory.read(self.pid, table + 4 * (wanted % buckets), 4))
        if index < first:
            return None
        encoded = name.encode() + b"\0"
        for step in range(4096):
            (found,) = struct.unpack("<I", memory.read(self.pid, table + 4 * (buckets + index + step - first), 4))
            if found | 1 == wanted | 1:
                entry = memory.read(self.pid, symbols + _SYMBOL_BYTES * (index + step), _SYMBOL_BYTES)
                text, _, _, section, value, size = struct.unpack("<IBBHQQ", entry)
                if section and memory.read_some(self.pid, strings + text, len(encoded)) == encoded:
                    return self.bias + value, size
            if found & 1:
                return None
        return None

    @cached_property
    def _exported(self) -> Table:
        """All exported functions (.dynsym). Raises OSError."""
        symbols, count = self._located(_DT_SYMTAB), min(self._symbol_count(), _MAX_SYMBOLS)
        return Table(memory.read_some(self.pid, symbols, _SYMBOL_BYTES * count) if symbols and count > 0 else b"")

    def _symbol_count(self) -> int:
        """No table says how many symbols there are: the hash tables that lead to them do."""
        plain, hashes = self._located(_DT_HASH), self._located(_DT_GNU_HASH)
        if plain:
            return int(struct.unpack("<II", memory.read(self.pid, plain, 8))[1])
        head = _gnu_header(self.pid, hashes) if hashes else None
        if head is None:
            return 0
        buckets, first, table = head
        filled = memory.read_some(self.pid, table, 4 * min(buckets, _MAX_SYMBOLS))
        last = max((word for (word,) in struct.iter_unpack("<I", filled)), default=0)
        if last < first:
            return first
        chain = memory.read_some(self.pid, table + 4 * (buckets + last - first), 4096)
        return last + 1 + next((i for i, (word,) in enumerate(struct.iter_unpack("<I", chain)) if word & 1), 0)

    def exported(self, address: int) -> Symbol | None:
        """The exported function that contains this address of the target. Raises OSError."""
        found = self._exported.find(address - self.bias)
        if found is None:
            return None
        value, size, text = found
        name = memory.read_some(self.pid, self._located(_DT_STRTAB) + text, MAX_NAME_BYTES)
        return Symbol(text_of(name), self.bias + value, size)

    @property
    def unwind_header(self) -> tuple[int, int] | None:
        """Start (in the target) and size of .eh_frame_hdr, the sorted table of all functions' unwind data."""
        segment = next((segment for segment in self.segments if segment.kind == _PT_GNU_EH_FRAME), None)
        return (self.bias + segment.start, segment.size) if segment else None


def module_of(pid: int, mapped: Regions, path: str) -> Module | None:
    """A mapped file's first loading of its beginning. Raises OSError."""
    first = next((region for region in mapped.of_file(path) if region.offset == 0), None)
    return read(pid, first) if first is not None else None


def module_at(pid: int, mapped: Regions, address: int) -> Module | None:
    """The file mapped at an address of the target. Raises OSError."""
    region = mapped.find(address)
    if region is None or (not region.path and "x" not in region.permissions):
        return None
    first = region
    if region.offset:
        before = (each for each in reversed(mapped.of_file(region.path)) if each.start < region.start)
        found = next((each for each in before if each.offset == 0), None)
        if found is None:
            return None
        first = found
    return read(pid, first)


def read(pid: int, first: Region) -> Module | None:
    """Parses the ELF header and the program headers of a 64-bit file where it lies in memory. Raises OSError."""
    header = memory.read_some(pid, first.start, 4096)
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        return None
    (machine,) = struct.unpack_from("<H", header, 18)
    position, entry_size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
    if entry_size != 56 or not 0 < count <= _MAX_SEGMENTS or position > 1 << 30:
        return None
    end = position + entry_size * count
    table = header[position:end] if end <= len(header) else memory.read(pid, first.start + position, end - position)
    segments = []
    for kind, flags, offset, start, _, _, size, _ in struct.iter_unpack("<IIQQQQQQ", table):
        segments.append(Segment(kind, flags, offset, start, size))
    load = next((segment for segment in segments if segment.kind == LOAD and segment.offset == 0), None)
    if load is None:
        return None
    return Module(pid, first.path, first.start - load.start, first.start, machine, header, tuple(segments))


def _gnu_header(pid: int, address: int) -> tuple[int, int, int] | None:
    """(number of buckets, first symbol that is hashed, address of the buckets)."""
    buckets, first, bloom_words, _ = struct.unpack("<IIII", memory.read(pid, address, 16))
    if not 0 < buckets < 1 << 24 or not 0 < bloom_words < 1 << 20:
        return None
    return buckets, first, address + 16 + 8 * bloom_words


def _gnu_hash(name: str) -> int:
    value = 5381
    for character in name.encode():
        value = (value * 33 + character) & 0xFFFFFFFF
    return value


def _tags(data: bytes) -> Iterator[tuple[int, int]]:
    for tag, value in struct.iter_unpack("<QQ", data[: len(data) // 16 * 16]):
        if tag == 0:
            return
        yield tag, value


def text_of(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace")
