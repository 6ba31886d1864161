"""Files of the target, opened in its own root with links resolved inside it (openat2, RESOLVE_IN_ROOT: Linux 5.6).

So a link that a stranger made cannot lead us out of the container. Only regular files are read.
"""

from __future__ import annotations

import ctypes
import errno
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
    link = f"/proc/{pid}/root"
    root = os.open(link, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # For a process in a mere chroot the kernel names its files from our root: what lies above its own is cut off.
        above = os.readlink(link)
        if above != "/" and path.startswith(above + "/"):
            path = path[len(above) :]
        # openat2 refuses flags that O_PATH makes meaningless.
        flags |= os.O_CLOEXEC | (0 if flags & os.O_PATH else os.O_NONBLOCK | os.O_NOCTTY)
        how = struct.pack("QQQ", flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        fd: int = _libc.syscall(_OPENAT2, root, os.fsencode(path), how, len(how))
        if fd < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), path)
        return fd
    finally:
        os.close(root)


def read_file(pid: int, path: str, limit: int = 1 << 20, *, whole: bool = False) -> bytes:
    """The first `limit` bytes of a regular file; `whole`: a longer one is an error. Raises OSError."""
    # Looked at before it is opened: opening a pipe's reading end would let go a writer that waits for a reader.
    found = open_inside(pid, path, os.O_PATH)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        with open(f"/proc/self/fd/{found}", "rb") as file:
            text = file.read(limit + 1 if whole else limit)
        if len(text) > limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return text
    finally:
        os.close(found)


def read_inside(pid: int, path: str, limit: int = 1 << 20) -> bytes | None:
    """As `read_file`; None when it cannot be read."""
    try:
        return read_file(pid, path, limit)
    except OSError:
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
