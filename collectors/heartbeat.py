"""gunicorn's heartbeat as it shows from outside.

A gunicorn worker touches an unlinked file named wgunicorn-* with CLOCK_MONOTONIC as its times, and its master sends
SIGABRT when that is older than the timeout. The master makes the file before it forks, so both hold the same one.
Source: the links of /proc/PID/fd and the files behind them.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from stucktrace.collectors import procfs
from stucktrace.errors import CannotInspect

_NAME = "/wgunicorn-"
# The files are opened early in a process's life and have low numbers; a gevent worker may have 10,000 sockets above.
_LOWEST = 256
_MOST_SIBLINGS = 64

Identity = tuple[int, int]
"""(device, inode)."""


def files(pid: int) -> frozenset[Identity] | None:
    """The heartbeat files that a process holds; None where its fd table may not be read."""
    found = _open_files(pid)
    return None if found is None else frozenset(found)


def shared(pid: int, other: int) -> bool | None:
    """Both hold a heartbeat file of the same worker; None where that cannot be read."""
    mine, theirs = files(pid), files(other)
    return None if mine is None or theirs is None else bool(mine & theirs)


def last_notify_s(pid: int, master: int) -> float | None:
    """Age of a worker's last heartbeat; None when it has none yet, or it cannot be told from another worker's.

    A worker closes the files of the workers before it; in old versions of gunicorn it did not, and then its own one is
    the one that no older worker has.
    """
    found = _open_files(pid) or {}
    if len(found) > 1:
        found = _without_older(found, pid, master)
    if len(found) != 1:
        return None
    (touched,) = found.values()
    age = time.clock_gettime(time.CLOCK_MONOTONIC) - touched
    # A file that was never touched still has the wall clock of its creation.
    return max(0.0, age) if age >= -1 else None


def _open_files(pid: int) -> dict[Identity, float] | None:
    """Identity -> modification time."""
    found: dict[Identity, float] = {}
    try:
        directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return None
    except OSError:
        return {}
    try:
        for fd in sorted(map(int, os.listdir(directory)))[:_LOWEST]:
            with suppress(FileNotFoundError, ProcessLookupError):
                if _NAME in os.readlink(str(fd), dir_fd=directory):
                    status = os.stat(str(fd), dir_fd=directory)
                    found[status.st_dev, status.st_ino] = status.st_mtime
    except PermissionError:
        return None
    except OSError:
        return {}
    finally:
        os.close(directory)
    return found


def _without_older(found: dict[Identity, float], pid: int, master: int) -> dict[Identity, float]:
    try:
        born = (procfs.read_stat(pid).start_time, pid)
        left = dict(found)
        for sibling in procfs.children(master)[:_MOST_SIBLINGS]:
            with suppress(CannotInspect):
                if (procfs.read_stat(sibling).start_time, sibling) < born:
                    for identity in files(sibling) or ():
                        left.pop(identity, None)
    except CannotInspect:
        return {}
    return left
