"""Threads that wait for a flock, fcntl or lease, and who holds it. Source: /proc/locks, where "->" marks a waiter."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stucktrace.collectors import procfs
from stucktrace.errors import CannotInspect
from stucktrace.facts import FileLockFact, ProcessFact, ThreadFact

_LINE = re.compile(r"^(\d+): (-> )?(\w+)\s+\w+\s+\w+\s+(-?\d+) (?:([0-9a-f]+:[0-9a-f]+):(\d+)|<none>)")
_CALLS = {"flock", "fcntl", "open", "openat", "truncate", "ftruncate"}


@dataclass(frozen=True)
class Entry:
    """One line of /proc/locks."""

    number: int
    waits: bool
    kind: str
    pid: int
    """-1 for locks of an open file description."""
    file: str
    """"major:minor:inode", hex device numbers."""


def parse(text: str) -> list[Entry]:
    entries = []
    for line in text.splitlines():
        if match := _LINE.match(line):
            number, waits, kind, pid, device, inode = match.groups()
            entries.append(Entry(int(number), bool(waits), kind, int(pid), f"{device}:{inode}" if device else ""))
    return entries


def collect(process: ProcessFact, threads: Iterable[ThreadFact]) -> tuple[FileLockFact, ...]:
    """One fact a waiting thread. /proc/locks is read only when a thread sits in a call that can wait so."""
    waiting = [
        thread for thread in threads if thread.state in "SD" and thread.syscall and thread.syscall.name in _CALLS
    ]
    if not waiting:
        return ()
    try:
        entries = parse(Path("/proc/locks").read_text())
    except OSError:
        return ()
    facts = []
    for thread in waiting:
        call = thread.syscall
        file, path = _file(process.pid, call.fd if call and call.fd is not None else _first_argument(thread))
        waits = [
            entry
            for entry in entries
            if entry.waits and entry.pid in (process.pid, thread.tid, -1) and _same_file(entry, file, process.pid)
        ]
        if not file or not waits:
            continue
        holders = tuple(
            dict.fromkeys(
                entry.pid for entry in entries if not entry.waits and entry.number == waits[0].number and entry.pid > 0
            )
        )
        facts.append(
            FileLockFact(thread.tid, waits[0].kind.lower(), path, holders, tuple(_command(pid) for pid in holders))
        )
    return tuple(facts)


def _same_file(entry: Entry, file: str, pid: int) -> bool:
    """The kernel names the file system's own device; some (btrfs, overlay) show another in stat: the waiter decides."""
    return entry.file == file or (entry.pid == pid and entry.file.rpartition(":")[2] == file.rpartition(":")[2])


def _first_argument(thread: ThreadFact) -> int | None:
    call = thread.syscall
    return call.args[0] & 0xFFFFFFFF if call and call.args and call.name in ("flock", "fcntl") else None


def _file(pid: int, fd: int | None) -> tuple[str, str]:
    """(name as /proc/locks writes it, path) of an open file."""
    if fd is None:
        return "", ""
    try:
        status = os.stat(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return "", ""
    name = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return name, procfs.read_link(pid, f"fd/{fd}")


def _command(pid: int) -> str:
    try:
        return procfs.read_stat(pid).command
    except CannotInspect:
        return ""
