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
from stucktrace.collectors.python_values import Values
from stucktrace.facts import Frame

_BOOTSTRAP = "importlib._bootstrap"
_MAX_NAME = 200


def waits_for_a_module(frames: tuple[Frame, ...]) -> bool:
    """The innermost frame is `_ModuleLock.acquire`."""
    return bool(frames) and frames[0].function.rpartition(".")[2] == "acquire" and _BOOTSTRAP in frames[0].file


def read(reader: Reader, wakeup: LockObject, minor: tuple[int, int]) -> tuple[int | None, str]:
    """(pthread address of the thread that imports, name of the module); (None, "") where they were not found."""
    values = Values(reader, minor)
    for address in reader.pointers_to(wakeup.address):
        try:
            name, holder = struct.unpack("<2Q", memory.read(reader.pid, address + 8, 16))
            if reader.class_name(name) == "str" and reader.class_name(holder) == "int":
                return values.integer(holder), _module(values.text(name, _MAX_NAME) or "")
        except ProcessLookupError:
            raise
        except OSError:
            continue
    return None, ""


def _module(name: str) -> str:
    return name if all(part.isidentifier() for part in name.split(".")) else ""
