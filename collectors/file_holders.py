"""Who else holds a file: the fd tables of the whole node, read once. Source: /proc/*/fd."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass

from stucktrace.collectors import procfs
from stucktrace.errors import CannotInspect


@dataclass(frozen=True)
class Held:
    pid: int
    fd: int
    link: str
    mode: int | None = None
    """O_RDONLY, O_WRONLY or O_RDWR; None when it could not be read. Read once, however many targets share the file."""


def find(links: Collection[str]) -> tuple[tuple[Held, ...], bool]:
    """Every fd on the node that links to one of these, and whether every process's table could be read.

    Ours are left out: we hold a pipe only as long as we look.
    """
    wanted = frozenset(links)
    found: list[Held] = []
    complete = True
    for pid in procfs.all_pids():
        if pid == os.getpid():
            continue
        try:
            found += _of(pid, wanted)
        except PermissionError:
            complete = complete and _no_user_space(pid)
        except OSError:
            continue
    return tuple(found), complete


def unreadable() -> tuple[int, ...]:
    """The processes whose fd tables cannot be read."""
    found = []
    for pid in procfs.all_pids():
        try:
            _of(pid, frozenset())
        except PermissionError:
            if not _no_user_space(pid):
                found.append(pid)
        except OSError:
            continue
    return tuple(found)


def _of(pid: int, wanted: frozenset[str]) -> list[Held]:
    found = []
    directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(directory):
            try:
                link = os.readlink(name, dir_fd=directory)
            except FileNotFoundError:
                continue
            if link in wanted:
                found.append(Held(pid, int(name), link, access_mode(pid, int(name))))
    finally:
        os.close(directory)
    return found


def _no_user_space(pid: int) -> bool:
    try:
        stat = procfs.read_stat(pid)
    except CannotInspect:
        return True
    return stat.kernel_thread or stat.ending


def access_mode(pid: int, fd: int) -> int | None:
    """O_RDONLY, O_WRONLY or O_RDWR of an open file, as the mode of its link tells; None when it cannot be read."""
    try:
        mode = os.lstat(f"/proc/{pid}/fd/{fd}").st_mode
    except OSError:
        return None
    return {
        stat.S_IRUSR: os.O_RDONLY,
        stat.S_IWUSR: os.O_WRONLY,
        stat.S_IRUSR | stat.S_IWUSR: os.O_RDWR,
    }.get(mode & (stat.S_IRUSR | stat.S_IWUSR))


def flags(pid: int, fd: int) -> int | None:
    """The O_* flags of an open file, from /proc/PID/fdinfo; None when it cannot be read."""
    try:
        for line in procfs.read(pid, f"fdinfo/{fd}").splitlines():
            if line.startswith(b"flags:"):
                return int(line.split()[1], 8)
    except (CannotInspect, ValueError, IndexError):
        return None
    return None
