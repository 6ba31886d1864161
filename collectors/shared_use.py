"""Which other processes are inside a call on a socket right now. Source: /proc/PID/task/TID/syscall and /proc/PID/fd.

Holding an inherited socket is harmless; two processes that use it take each other's bytes. A process whose calls cannot
be read (another user's) is left out: the answer names users, never their absence.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from stucktrace.collectors import syscalls

MOST_THREADS = 64


def users(inode: int, pids: Iterable[int]) -> tuple[int, ...]:
    """Those of `pids` with a thread that receives from, sends to or polls this socket."""
    return tuple(pid for pid in pids if _uses(pid, f"socket:[{inode}]"))


def _uses(pid: int, link: str) -> bool:
    try:
        tids = os.listdir(f"/proc/{pid}/task")[:MOST_THREADS]
    except OSError:
        return False
    return any(_links_to(pid, fd, link) for tid in tids for fd in _fds_of_call(pid, tid))


def _fds_of_call(pid: int, tid: str) -> tuple[int, ...]:
    """The fds that the thread's present call is about; () outside of any call."""
    try:
        with open(f"/proc/{pid}/task/{tid}/syscall") as file:
            words = file.read().split()
        number = int(words[0])
        args = tuple(int(word, 16) for word in words[1:7])
    except (OSError, ValueError, IndexError):
        return ()
    if number < 0 or len(args) < 6:
        return ()
    call = syscalls.decode(pid, number, args)
    return call.fds or (() if call.fd is None else (call.fd,))


def _links_to(pid: int, fd: int, link: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}") == link
    except OSError:
        return False
