"""Names for addresses in a mapped file: the exported symbols in the target's memory, else the file's full table.

The full table (.symtab) is not mapped, so it is read from the file, opened inside the target's root, and only when the
file's beginning is what is mapped. A stripped file has none: then it is the library and the place in it.
"""

from __future__ import annotations

import os
import stat
import struct

from stucktrace.collectors import target_files
from stucktrace.collectors.elf import MAX_NAME_BYTES, Module, Table, text_of

_MAX_TABLE_BYTES = 3 << 20
_MAX_STRINGS_BYTES = 32 << 20
_MAX_SECTIONS = 4096
_SHT_SYMTAB = 2


class Symbols:
    """The functions of the files of one process. Tables are read once, when an address needs them."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._full: dict[str, _Full | None] = {}
        self._names: dict[int, str] = {}

    def name(self, module: Module, address: int) -> str:
        """The function that contains `address` of the target; "" where no table names one."""
        if address not in self._names:
            self._names[address] = self._find(module, address)
        return self._names[address]

    def _find(self, module: Module, address: int) -> str:
        try:
            found = module.exported(address)
        except (OSError, struct.error):
            found = None
        if found is not None:
            return found.name
        if not module.path.startswith("/"):
            return ""
        if module.path not in self._full:
            try:
                self._full[module.path] = _read(self._pid, module)
            except (OSError, struct.error):
                self._full[module.path] = None
        full = self._full[module.path]
        return full.name(address - module.bias) if full is not None else ""


class _Full:
    """A file's .symtab with the strings it names."""

    def __init__(self, table: bytes, strings: bytes) -> None:
        self._table, self._strings = Table(table), strings

    def name(self, value: int) -> str:
        found = self._table.find(value)
        return text_of(self._strings[found[2] : found[2] + MAX_NAME_BYTES]) if found else ""


def _read(pid: int, module: Module) -> _Full | None:
    """None for a stripped file, and for one that is not what is mapped. Raises OSError, struct.error."""
    path = target_files.open_inside(pid, module.path, os.O_PATH)
    try:
        if not stat.S_ISREG(os.fstat(path).st_mode):
            return None
        with open(f"/proc/self/fd/{path}", "rb", buffering=0) as file:
            return parse(file.fileno(), module.header)
    finally:
        os.close(path)


def parse(fd: int, header: bytes) -> _Full | None:
    """The full table of the file open as `fd`, if it begins with `header`. Raises OSError, struct.error."""
    if os.pread(fd, len(header), 0) != header:
        return None
    sections_at, entry_size, count = struct.unpack_from("<Q", header, 40)[0], *struct.unpack_from("<HH", header, 58)
    if entry_size != 64 or not 0 < count <= _MAX_SECTIONS or sections_at >= 1 << 62:
        return None
    data = os.pread(fd, entry_size * count, sections_at)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, place) for place in range(0, len(data) - 63, 64)]
    table = next((section for section in sections if section[1] == _SHT_SYMTAB), None)
    if table is None or not 0 <= table[6] < len(sections):
        return None
    strings = sections[table[6]]
    if table[5] > _MAX_TABLE_BYTES or strings[5] > _MAX_STRINGS_BYTES or max(table[4], strings[4]) >= 1 << 62:
        return None
    return _Full(os.pread(fd, table[5], table[4]), os.pread(fd, strings[5], strings[4]))
