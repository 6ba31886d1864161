"""The modules that a Python process has imported, found in its memory: `sys.modules` of its main interpreter.

The interpreter's state points to that dict; where, the headers of CPython 3.8 to 3.12 fix for a minor version
(internal/pycore_interp.h: `modules`, from 3.12 on `imports.modules`), and from 3.13 on the runtime's own table of
offsets says (`_Py_DebugOffsets.interpreter_state.imports_modules`). A dict is taken for it only if it holds the module
`sys`.
"""

from __future__ import annotations

import os
import re
import struct

from stucktrace.collectors import frame_offsets, interpreter, memory
from stucktrace.collectors.cpython_objects import Reader
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.python_values import Values
from stucktrace.facts import Missing

_OFFSETS = {(3, 8): 56, (3, 9): 856, (3, 10): 856, (3, 11): 888, (3, 12): 944}
_TABLE = {(3, 13): 88, (3, 14): 96}
"""Where `_Py_DebugOffsets` has the offset: 3.14 put `threads_main` before it."""
_DICT = 16
"""Where a module object has its dict (moduleobject.c)."""
_NAME_BYTES = 48 + 64
"""A str that is ASCII: its head (40 bytes from 3.12 on), and as much of it as tells the names asked for."""


class Modules:
    """Modules by name. Raises OSError where the memory cannot be read."""

    def __init__(self, reader: Reader, values: Values, entries: list[tuple[int, int]]) -> None:
        self._reader = reader
        self._values = values
        self._keys = [key for key, _ in entries]
        self.addresses = [module for _, module in entries]
        # A large application has thousands: the names are searched as one text, not each for itself.
        heads = memory.read_each(reader.pid, self._keys, _NAME_BYTES)
        self._text = b"".join(head.ljust(_NAME_BYTES, b"\xff") for head in heads)

    def module(self, name: str) -> int | None:
        """The address of the module object; None when it was not imported."""
        if not name:
            return None
        for match in re.finditer(re.escape(name.encode()) + b"\0", self._text):
            index = match.start() // _NAME_BYTES
            if self._values.text(self._keys[index], len(name) + 1) == name:
                return self.addresses[index]
        return None

    def holding(self, address: int) -> list[str]:
        """The names of the modules that have an object as one of their globals."""
        dicts = memory.read_words(self._reader.pid, [module + _DICT for module in self.addresses])
        found = self._values.holding([word or 0 for word in dicts], address)
        return self._values.short_texts([key for key, holds in zip(self._keys, found, strict=True) if holds])


def unreadable(pid: int) -> Missing | None:
    """Why a Python process's objects cannot be read, by its interpreter; None where they can."""
    what = "what stands in Python's memory, such as Celery's settings"
    try:
        # It asks for the same right as the memory.
        os.stat(f"/proc/{pid}/exe")
        found = interpreter.find(pid)
    except PermissionError:
        return Missing(what, "its memory may not be read", memory.permission_remedy())
    except OSError:
        return None
    if found is None or _is_known(found):
        return None
    name = f"{found.implementation} {found.version}{' without a GIL' if found.free_threaded else ''}".strip()
    known = not found.free_threaded and found.minor in frame_offsets.KNOWN
    because = f"{name} {'does not say where its state is' if known else 'is not one whose objects can be read'}"
    return Missing(what, because, "CPython 3.8 to 3.14 can")


def _is_known(found: Interpreter) -> bool:
    return found.runtime is not None and not found.free_threaded and found.minor in frame_offsets.KNOWN


def read(reader: Reader, values: Values, found: Interpreter | None) -> Modules | None:
    """None for an interpreter whose layout is not known. Raises OSError."""
    if found is None or found.runtime is None or found.minor is None or not _is_known(found):
        return None
    pid, runtime, minor = reader.pid, found.runtime[0], found.minor
    offset = _OFFSETS.get(minor)
    if offset is None:
        table = memory.read(pid, runtime, 128)
        if table[:8] != b"xdebugpy":
            return None
        (offset,) = struct.unpack_from("<Q", table, _TABLE[minor])
    interpreters = frame_offsets.of(pid, minor, runtime).interpreters
    (state,) = memory.read_words(pid, [runtime + interpreters])
    while state:
        (modules,) = memory.read_words(pid, [state + offset])
        entries = values.pairs(modules) if modules else None
        # The list of interpreters begins with the newest; the main one is the last.
        (following,) = memory.read_words(pid, [state + frame_offsets.of(pid, minor, runtime).next_interpreter])
        if not following and entries:
            answer = Modules(reader, values, entries)
            return answer if answer.module("sys") else None
        state = following
    return None
