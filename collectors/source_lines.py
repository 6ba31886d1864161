"""A line of the target's own source, to name a lock as its code does: "Handler.lock" from `with self.lock:`.

The file is opened in the target's root, with links resolved inside it (openat2, RESOLVE_IN_ROOT: Linux 5.6), read only
when it is a regular file of a reasonable size, and may have changed since the target loaded it: a name is all that is
taken.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import struct
from collections.abc import Mapping

from stucktrace.facts import Frame

_MAX_FILE_BYTES = 2 << 20
_MAX_NAME = 60
_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_libc = ctypes.CDLL(None, use_errno=True)

_NAME = r"[A-Za-z_][\w.]*(?:\[[\w'\"]{1,30}\])?"
_WITH = re.compile(rf"^\s*(?:async\s+)?with\s+\(?\s*({_NAME})\s*(?:as\s+\w+\s*)?\)?\s*:")
_CALL = re.compile(rf"({_NAME})\.(?:acquire|__enter__)\(")


def lock_name(pid: int, frame: Frame, seen: dict[str, Mapping[int, str]]) -> str:
    """What the code calls the lock that this frame acquires, "" when its line does not tell.

    `seen`: the files read so far.
    """
    if frame.native or not frame.file.startswith("/"):
        return ""
    if frame.file not in seen:
        seen[frame.file] = _lines(pid, frame.file)
    return name_in(seen[frame.file].get(frame.line, ""), frame.function)


def name_in(line: str, function: str) -> str:
    """The lock in one line of code; `self.` becomes the class, where the function's name has it."""
    calls = _CALL.findall(line)
    found = _WITH.match(line)
    name = found[1] if found else calls[0] if len(calls) == 1 else ""
    holder, _, attribute = name.partition(".")
    parts = function.split(".")
    if holder == "self" and attribute and len(parts) > 1 and parts[-2] != "<locals>":
        name = f"{parts[-2]}.{attribute}"
    return name[:_MAX_NAME]


def _lines(pid: int, path: str) -> Mapping[int, str]:
    try:
        fd = _open(pid, path)
    except OSError:
        return {}
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_FILE_BYTES:
            return {}
        try:
            text = file.read(_MAX_FILE_BYTES).decode(errors="replace")
        except OSError:
            return {}
    return dict(enumerate(text.splitlines(), 1))


def _open(pid: int, path: str) -> int:
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = struct.pack(
            "<3Q",
            os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY,
            0,
            _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS,
        )
        fd: int = _libc.syscall(_OPENAT2, root, os.fsencode(path), how, len(how))
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return fd
    finally:
        os.close(root)
