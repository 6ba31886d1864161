"""What the holders of a pipe do about it: who is blocked in a write to it, and whose threads all wait for a child.

Source: the call and its arguments in /proc/PID/task/TID/syscall. Few processes and few threads of each are looked at; a
pipe with more holders is one that many share, and who of them acts is not decided here.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from stucktrace.collectors import procfs, syscalls
from stucktrace.errors import CannotInspect

MOST_HOLDERS = 8
MOST_THREADS = 16
_WRITES = frozenset({"write", "writev", "sendfile", "splice", "vmsplice", "tee"})
_READS = frozenset({"read", "readv"})
_CHILD_WAITS = frozenset({"wait4", "waitid"})


def blocked_writers(writers: Collection[tuple[int, int]]) -> tuple[int, ...]:
    """Of these (pid, fd of the write end), the pids with a thread that is inside a write to that fd."""
    if len({pid for pid, _ in writers}) > MOST_HOLDERS:
        return ()
    found: dict[int, None] = {}
    for pid, fd in writers:
        if any(name in _WRITES and fd in args[:1] for name, *args in _calls(pid)):
            found[pid] = None
    return tuple(found)


def blocked_readers(readers: Collection[tuple[int, int]]) -> tuple[int, ...]:
    """Of these (pid, fd of the read end), the pids that do nothing but read from that fd, with every thread."""
    if len({pid for pid, _ in readers}) > MOST_HOLDERS:
        return ()
    found: dict[int, None] = {}
    for pid, fd in readers:
        calls = _calls(pid)
        if calls and all(name in _READS and fd in args[:1] for name, *args in calls):
            found[pid] = None
    return tuple(found)


def waiting_for_children(pids: Collection[int]) -> tuple[int, ...]:
    """Of these, the processes whose every thread waits for a child to end: they do nothing else meanwhile."""
    if len(pids) > MOST_HOLDERS:
        return ()
    return tuple(pid for pid in pids if (calls := _calls(pid)) and all(call[0] in _CHILD_WAITS for call in calls))


def _calls(pid: int) -> list[tuple[str, int]]:
    """(name, first argument) of the call that each thread sleeps in; ("", -1) for one that runs or cannot be read."""
    try:
        tids = procfs.thread_ids(pid)
        if len(tids) > MOST_THREADS:
            return []
        return [_call(procfs.read(pid, f"task/{tid}/syscall").split()) for tid in tids]
    except CannotInspect:
        return []


def _call(fields: list[bytes]) -> tuple[str, int]:
    with suppress(ValueError, IndexError):
        return syscalls.NAMES.get(int(fields[0]), ""), int(fields[1], 16)
    return "", -1
