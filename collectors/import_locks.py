"""Who is importing the module that a thread waits for: the owner of importlib's `_ModuleLock`.

The lock is a Python object; what its waiters sleep on is its attribute `wakeup`, a plain lock, and the owner's pthread
address is its attribute `owner`. `__init__` sets lock, wakeup, name, owner, count, and CPython keeps the attributes in
that order, so the pointer to the wakeup lock is followed by one to a string and one to an integer. The object's memory
is searched for those three (CPython 3.6 to 3.13).
"""

from __future__ import annotations

import struct

from stucktrace.collectors import memory
from stucktrace.collectors.cpython_objects import LockObject, Reader
from stucktrace.facts import Frame

_BOOTSTRAP = "importlib._bootstrap"
_DIGIT_BITS = 30
_MAX_NAME = 200


def waits_for_a_module(frames: tuple[Frame, ...]) -> bool:
    """The innermost frame is `_ModuleLock.acquire`."""
    return bool(frames) and frames[0].function.rpartition(".")[2] == "acquire" and _BOOTSTRAP in frames[0].file


def read(reader: Reader, wakeup: LockObject, minor: tuple[int, int]) -> tuple[int | None, str]:
    """(pthread address of the thread that imports, name of the module); (None, "") where they were not found."""
    for address in reader.pointers_to(wakeup.address):
        try:
            name, holder = struct.unpack("<2Q", memory.read(reader.pid, address + 8, 16))
            if reader.class_name(name) == "str" and reader.class_name(holder) == "int":
                return _integer(reader.pid, holder, minor), _module(reader.pid, name, minor)
        except ProcessLookupError:
            raise
        except OSError:
            continue
    return None, ""


def _module(pid: int, address: int, minor: tuple[int, int]) -> str:
    """A module's name: the text of a short string, as long as it is one."""
    (length,) = struct.unpack("<Q", memory.read(pid, address + 16, 8))
    if not 0 < length <= _MAX_NAME:
        return ""
    text = memory.read(pid, address + (40 if minor >= (3, 12) else 48), length).decode("ascii", errors="replace")
    return text if all(part.isidentifier() for part in text.split(".")) else ""


def _integer(pid: int, address: int, minor: tuple[int, int]) -> int | None:
    """A positive int of at most three digits of 30 bits; from 3.12 on the number of digits is shifted by three bits."""
    size: int
    digits: list[int]
    size, *digits = struct.unpack("<Q3I", memory.read(pid, address + 16, 20))
    count = size >> 3 if minor >= (3, 12) else size
    if not 0 < count <= 3:
        return None
    return sum(digit << (_DIGIT_BITS * place) for place, digit in enumerate(digits[:count]))
