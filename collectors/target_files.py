"""Files of the target, opened in its own root with links resolved inside it (openat2, RESOLVE_IN_ROOT: Linux 5.6).

So a link that a stranger made cannot lead us out of the container. Only regular files are read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterator

_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10

_libc = ctypes.CDLL(None, use_errno=True)


def open_inside(pid: int, path: str, flags: int = os.O_RDONLY) -> int:
    """An fd on `path` as the target sees it. Raises OSError."""
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = struct.pack(
            "QQQ", flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS
        )
        fd: int = _libc.syscall(_OPENAT2, root, os.fsencode(path), how, len(how))
        if fd < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), path)
        return fd
    finally:
        os.close(root)


def read_inside(pid: int, path: str, limit: int = 1 << 20) -> bytes | None:
    """The first `limit` bytes of a regular file; None when it is not one, or cannot be read."""
    try:
        fd = open_inside(pid, path)
    except OSError:
        return None
    with open(fd, "rb") as file, contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return file.read(limit)
    return None


def list_inside(pid: int, path: str) -> list[str]:
    """The names in a directory; [] when it is none."""
    try:
        fd = open_inside(pid, path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return []
    try:
        return os.listdir(fd)
    except OSError:
        return []
    finally:
        os.close(fd)


def lines_inside(pid: int, path: str) -> Iterator[str]:
    text = read_inside(pid, path)
    yield from (text or b"").decode(errors="replace").splitlines()
