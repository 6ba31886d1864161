"""Threads that wait for a flock, fcntl or lease, and who holds it.

Source: /proc/locks, where "->" marks a waiter, and the fdinfo of everybody who has the file open.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stucktrace.collectors import file_holders, procfs
from stucktrace.errors import CannotInspect
from stucktrace.facts import FileLockFact, FileLockStep, ProcessFact, ThreadFact

_LINE = re.compile(r"^(\d+): (-> )?(\w+)\s+\w+\s+\w+\s+(-?\d+) (?:([0-9a-f]+:[0-9a-f]+):(\d+)|<none>)")
# F_SETLKW and F_OFD_SETLKW.
_COMMANDS = {7: "posix", 38: "ofdlck"}
_MOST_STEPS = 8
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
    found = [(thread, fact) for thread in waiting if (fact := _fact(process.pid, thread, entries)) is not None]
    return tuple(replace(fact, beyond=_read_twice(process.pid, thread, fact, entries)) for thread, fact in found)


def _read_twice(pid: int, thread: ThreadFact, fact: FileLockFact, entries: Sequence[Entry]) -> tuple[FileLockStep, ...]:
    """The steps behind a wait: holders and waits are read one after the other, so all of it once more."""
    beyond = _beyond(pid, fact, entries)
    try:
        entries = parse(Path("/proc/locks").read_text()) if beyond else ()
    except OSError:
        return ()
    again = _fact(pid, thread, entries) if beyond else None
    return beyond if again == fact and _beyond(pid, again, entries) == beyond else ()


def _fact(pid: int, thread: ThreadFact, entries: Sequence[Entry]) -> FileLockFact | None:
    call = thread.syscall
    fd = call.fd if call and call.fd is not None else _first_argument(thread)
    file, path = _file(pid, fd)
    waits = [
        entry
        for entry in entries
        if entry.waits and entry.pid in (pid, thread.tid, -1) and _same_file(entry, file, pid)
    ]
    kind = waits[0].kind.lower() if waits else _kind(thread)
    if not file or not kind:
        return None
    named = [entry.pid for entry in entries if waits and not entry.waits and entry.number == waits[0].number]
    holders = tuple(dict.fromkeys(pid for pid in (*filter(_alive, named), *_keepers(path, kind))))
    return FileLockFact(thread.tid, kind, path, holders, tuple(_command(pid) for pid in holders))


def _beyond(pid: int, fact: FileLockFact, entries: Sequence[Entry]) -> tuple[FileLockStep, ...]:
    """Along the holders. Any thread of a process may release its lock, so only one with a single thread is followed."""
    from stucktrace.collectors import threads

    steps: list[FileLockStep] = []
    while len(fact.holders) == 1 and len(steps) < _MOST_STEPS:
        (holder,) = fact.holders
        seen = {pid, *(step.pid for step in steps)}
        if holder in seen:
            return (*steps, FileLockStep(holder, _command(holder))) if steps else ()
        own = threads.collect([holder], None).get(holder, ())
        call = own[0].syscall if len(own) == 1 else None
        after = _fact(holder, own[0], entries) if call is not None and call.name in ("flock", "fcntl") else None
        if after is None:
            break
        steps.append(FileLockStep(holder, _command(holder), after.path))
        fact = after
    return tuple(steps)


def _kind(thread: ThreadFact) -> str:
    """What it waits for, by its call alone; "" for a call that does not have to be one for a lock.

    The kernel does not list a lock, nor who waits for it, when the process that took it is gone: its forks keep it.
    """
    call = thread.syscall
    if call is None or len(call.args) < 2:
        return ""
    return "flock" if call.name == "flock" else _COMMANDS.get(call.args[1], "") if call.name == "fcntl" else ""


def _keepers(path: str, kind: str) -> list[int]:
    """Who has an open file that holds such a lock: the one who took it, and whoever inherited or was sent that file.

    Source: the "lock:" lines of /proc/PID/fdinfo. Also for locks of an open file description, which name nobody.
    """
    found, _ = file_holders.find([path]) if path else ((), True)
    lock = re.compile(rf"^lock:\s+\d+: {kind.upper()}\s", re.MULTILINE)
    keepers = []
    for held in found:
        try:
            if lock.search(procfs.read(held.pid, f"fdinfo/{held.fd}").decode(errors="replace")):
                keepers.append(held.pid)
        except CannotInspect:
            continue
    return keepers


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


def _alive(pid: int) -> bool:
    """Not -1, as an open file description is listed, and not the zombie of one whose fork keeps the lock."""
    try:
        return pid > 0 and not procfs.read_stat(pid).ending
    except CannotInspect:
        return False


def _command(pid: int) -> str:
    try:
        return procfs.read_stat(pid).command
    except CannotInspect:
        return ""
