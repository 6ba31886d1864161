"""The worker processes of multiprocessing's pools, and which of them wait for their next task.

A worker waits in the read of the pool's pipe, or for the semaphore that guards it. Sources: multiprocessing/pool.py and
queues.py of CPython 3.8 to 3.14, Modules/_multiprocessing/semaphore.c; /proc/PID/{syscall,fd,maps} of the workers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence

from stucktrace.collectors import memory, procfs, regions, syscalls
from stucktrace.collectors.pool_stacks import Stacks
from stucktrace.errors import CannotInspect
from stucktrace.facts import PoolMember

_HANDLE = 16
"""In a SemLock object, behind its head: where its semaphore is mapped."""


def reader(stacks: Stacks, queue: int) -> int | None:
    """The fd of a multiprocessing queue's read end in the process that made it."""
    connection = stacks.values.attribute(queue, "_reader")
    handle = stacks.values.attribute(connection, "_handle") if connection else None
    return stacks.values.integer(handle) if handle else None


def read(stacks: Stacks, processes: Sequence[int], inqueue: int) -> tuple[tuple[PoolMember, ...], Mapping[int, str]]:
    """Every worker, and of the idle ones what they are blocked in: "reads" their pipe, or "locks" its lock.

    `processes`: addresses of the pool's Process objects; `inqueue`: of the queue of their tasks. Raises OSError.
    """
    fd, lock = reader(stacks, inqueue), _semaphore(stacks, inqueue)
    pipe = _link(stacks.pid, fd) if fd is not None else ""
    pids = stacks.children()
    members: list[PoolMember] = []
    held: dict[int, str] = {}
    for worker in processes:
        popen = stacks.values.attribute(worker, "_popen")
        number = stacks.values.attribute(popen, "pid") if popen else None
        pid = pids.get(stacks.values.integer(number) or 0) if number else None
        if pid is None:
            continue
        with contextlib.suppress(CannotInspect, OSError):
            held[pid] = _blocked(pid, pipe, lock)
            members.append(PoolMember(pid, pid, idle=bool(held[pid]), start_time=procfs.read_stat(pid).start_time))
    return tuple(members), held


def _semaphore(stacks: Stacks, queue: int) -> tuple[int, int] | None:
    """(inode, offset) of the semaphore behind a queue's read lock."""
    lock = stacks.values.attribute(queue, "_rlock")
    inner = stacks.values.attribute(lock, "_semlock") if lock else None
    (handle,) = memory.read_words(stacks.pid, [inner + _HANDLE if inner else 0])
    return _mapped(stacks.pid, handle) if handle else None


def _mapped(pid: int, address: int) -> tuple[int, int] | None:
    region = regions.read(pid).find(address)
    if region is None or not region.shared or not region.inode:
        return None
    return region.inode, address - region.start + region.offset


def _blocked(pid: int, pipe: str, lock: tuple[int, int] | None) -> str:
    """What a worker's main thread sleeps in, if it waits for its next task."""
    fields = procfs.read(pid, f"task/{pid}/syscall").split()
    try:
        name, first, timeout = syscalls.NAMES.get(int(fields[0]), ""), int(fields[1], 16), int(fields[4], 16)
    except (ValueError, IndexError):
        # It runs, or is in no call.
        return ""
    if name == "read":
        return "reads" if pipe and _link(pid, first) == pipe else ""
    if name == "futex" and lock is not None and not timeout:
        return "locks" if _mapped(pid, first) == lock else ""
    return ""


def _link(pid: int, fd: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return ""
