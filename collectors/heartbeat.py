"""gunicorn's heartbeat as it shows from outside.

A gunicorn worker touches an unlinked file named wgunicorn-* with CLOCK_MONOTONIC as its times, and its master sends
SIGABRT when that is older than the timeout. The master makes the file before it forks, so both hold the same one.
Source: the links of /proc/PID/fd and the files behind them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple

from stucktrace.collectors import procfs
from stucktrace.errors import CannotInspect

_NAME = "/wgunicorn-"
# The files are opened early in a process's life and have low numbers; a gevent worker may have 10,000 sockets above.
_LOWEST = 256
_MOST = 4096
"""Of a master, which has one for each worker."""
_MOST_SIBLINGS = 64

Identity = tuple[int, int]
"""(device, inode)."""


class _File(NamedTuple):
    link: str
    touched_s: float
    """Its modification time."""


def files(pid: int) -> frozenset[Identity] | None:
    """The heartbeat files that a process holds; None where its fd table may not be read."""
    found = _open_files(pid)
    return None if found is None else frozenset(found)


def shared(pid: int, other: int) -> bool | None:
    """Both hold a heartbeat file of the same worker; None where that cannot be read."""
    mine = _open_files(pid)
    # A master has a file for each of its workers: only those of the same name are asked what they are.
    theirs = _open_files(other, frozenset(found.link for found in (mine or {}).values()))
    return None if mine is None or theirs is None else bool(mine.keys() & theirs.keys())


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
    (file,) = found.values()
    age = time.clock_gettime(time.CLOCK_MONOTONIC) - file.touched_s
    # A file that was never touched still has the wall clock of its creation.
    return max(0.0, age) if age >= -1 else None


def _open_files(pid: int, links: Collection[str] | None = None) -> dict[Identity, _File] | None:
    """Those that a process holds, or only those with one of these links; None where that may not be read."""
    found: dict[Identity, _File] = {}
    try:
        directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return None
    except OSError:
        return {}
    try:
        for fd in sorted(map(int, os.listdir(directory)))[: _LOWEST if links is None else _MOST]:
            with suppress(FileNotFoundError, ProcessLookupError):
                link = os.readlink(str(fd), dir_fd=directory)
                if _NAME in link and (links is None or link in links):
                    status = os.stat(str(fd), dir_fd=directory)
                    found[status.st_dev, status.st_ino] = _File(link, status.st_mtime)
    except PermissionError:
        return None
    except OSError:
        return {}
    finally:
        os.close(directory)
    return found


def _without_older(found: dict[Identity, _File], pid: int, master: int) -> dict[Identity, _File]:
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
