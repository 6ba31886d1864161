"""Which processes hold which sockets. Source: /proc/*/fd, read once per question.

A table that cannot be read (another user's process without PTRACE) is skipped: the answer names holders, never their
absence.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

MAX_RELATIVES = 64
MAX_ANCESTORS = 4


def relatives(pid: int) -> tuple[int, ...]:
    """Ancestors, siblings and children of a process: those who can share a socket since a fork."""
    ancestors: list[int] = []
    parent = parent_of(pid)
    while parent and parent > 1 and len(ancestors) < MAX_ANCESTORS:
        ancestors.append(parent)
        parent = parent_of(parent)
    siblings = [sibling for sibling in _children(ancestors[0]) if sibling != pid] if ancestors else []
    return tuple(dict.fromkeys((*ancestors, *siblings, *_children(pid))))[:MAX_RELATIVES]


def parent_of(pid: int) -> int | None:
    stat = _read(f"/proc/{pid}/stat")
    words = stat[stat.rfind(")") + 1 :].split()
    return int(words[1]) if len(words) > 1 else None


def state_of(pid: int) -> str:
    """The state letter of the main thread, "" when it is gone."""
    stat = _read(f"/proc/{pid}/stat")
    words = stat[stat.rfind(")") + 1 :].split()
    return words[0] if words else ""


def command_of(pid: int) -> str:
    return _read(f"/proc/{pid}/comm").rstrip("\n")


def _children(pid: int) -> list[int]:
    """A child belongs to the thread that forked it."""
    found: list[int] = []
    try:
        tids = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for tid in tids:
        found += [int(word) for word in _read(f"/proc/{pid}/task/{tid}/children").split()]
    return found


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def sockets_of(pid: int) -> dict[int, tuple[int, ...]]:
    """inode -> fds of one process; empty when its table cannot be read."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                try:
                    link = os.readlink(entry.path)
                except OSError:
                    continue
                if link.startswith("socket:["):
                    found[int(link[8:-1])].append(int(entry.name))
    except OSError:
        pass
    return {inode: tuple(sorted(fds)) for inode, fds in found.items()}


def find(inodes: Collection[int], pids: Iterable[int]) -> Mapping[int, tuple[int, ...]]:
    """inode -> those of `pids` that hold it."""
    return invert({pid: sockets_of(pid) for pid in pids} if inodes else {}, inodes)


def invert(tables: Mapping[int, Collection[int]], inodes: Collection[int]) -> dict[int, tuple[int, ...]]:
    """pid -> its socket inodes, turned round: inode -> pids, for these inodes."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for pid, held in tables.items():
        for inode in held:
            if inode in inodes:
                found[inode].append(pid)
    return {inode: tuple(holders) for inode, holders in found.items()}


def everybody() -> tuple[int, ...]:
    return tuple(sorted(int(entry) for entry in os.listdir("/proc") if entry.isdecimal()))
