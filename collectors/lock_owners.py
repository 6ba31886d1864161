"""Who an owner field names: a live thread of the process, one of the parent's from before a fork, or nobody.

Two kinds of names are found in lock words. glibc's mutexes keep the owner's tid as the target knows it; RLocks keep its
pthread address. Fork copies both as they are: the child's memory goes on naming the parent's threads. There
- the one thread that survives, the child's first, has a new tid but keeps its pthread address: an RLock of the forking
  thread is the child's own, and a mutex that names the forking thread's old tid belongs to the child's first thread;
- every other thread is gone. Its tid names nobody here. Its pthread address names nobody either (fork clears the tid
  field there), until a new thread of the child gets the same stack: then the address alone cannot tell the two apart,
  and what can (the parent still holds its copy for that address; the waiter slept before the new thread began) is
  asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from stucktrace.collectors import memory, pthread, regions
from stucktrace.collectors.regions import Regions
from stucktrace.errors import CannotInspect
from stucktrace.facts import LockOwner, ProcessFact, PythonFact, Relative, ThreadFact


@dataclass(frozen=True)
class Parent:
    """The process that the target was forked from and shares its address layout with."""

    pid: int
    threads: Mapping[int, str]
    """ns_tid -> name."""


class Owners:
    """Answers for one process at one instant."""

    def __init__(
        self,
        process: ProcessFact,
        threads: Sequence[ThreadFact],
        python: PythonFact | None,
        relatives: Sequence[Relative],
        mapped: Regions,
    ) -> None:
        self.pid = process.pid
        self._threads = {thread.ns_tid: thread for thread in threads}
        self._names = {thread.tid: thread.name for thread in threads}
        if python is not None:
            self._names |= {thread.tid: thread.name for thread in python.threads if thread.name}
        self._idents = {thread.tid: thread.ident for thread in python.threads if thread.ident} if python else {}
        self._relatives = relatives
        self._mapped = mapped

    @property
    def ns_tids(self) -> Mapping[int, ThreadFact]:
        return self._threads

    @property
    def idents(self) -> Mapping[int, int]:
        """Pthread address -> the target's own tid, of each Python thread."""
        ns_tids = {thread.tid: ns_tid for ns_tid, thread in self._threads.items()}
        return {ident: ns_tids[tid] for tid, ident in self._idents.items() if tid in ns_tids}

    def ident_of(self, tid: int) -> int | None:
        return self._idents.get(tid)

    @cached_property
    def offset(self) -> int | None:
        """Of the tid field in this process's `struct pthread`."""
        return pthread.tid_offset(self.pid, list(self._idents.values())[:16], self._threads)

    @cached_property
    def parent(self) -> Parent | None:
        """The parent, if the target is its fork and has not called exec since."""
        found = next((relative for relative in self._relatives if relative.relation == "parent"), None)
        if found is None or not found.alive or found.pid <= 1:
            return None
        try:
            theirs = regions.read(found.pid)
        except OSError:
            return None
        # exec places the vdso and the stack anew; fork keeps both.
        if _places(theirs) != _places(self._mapped) or not _same_pid_namespace(self.pid, found.pid):
            return None
        return Parent(found.pid, dict(found.threads) or _names_of(found.pid))

    def by_ns_tid(self, ns_tid: int, waiter: ThreadFact, *, shared: bool, address: int = 0) -> LockOwner:
        """The owner of a C library's lock, as its word or field names it. `address`: of one in shared memory."""
        if shared:
            return self._sharing(ns_tid, waiter, address)
        thread = self._threads.get(ns_tid)
        if thread is not None:
            return self._here(thread, waiter)
        if ns_tid in self._begun_since():
            return LockOwner("unknown", ns_tid=ns_tid)
        if self.parent is None:
            return LockOwner("absent", ns_tid=ns_tid, pid=self.pid)
        if ns_tid == self.forking_thread:
            first = self._threads.get(self._first_ns_tid())
            if first is not None:
                return self._here(first, waiter)
        name = self.parent.threads.get(ns_tid)
        return LockOwner("absent", ns_tid=ns_tid, pid=self.pid, name=name or "", parent_thread=name is not None)

    def by_ident(self, ident: int, waiter: ThreadFact, held_by_parent: Callable[[int, int], bool]) -> LockOwner:
        """The owner of an RLock.

        `held_by_parent(pid, ident)`: the parent's copy of the lock is held for that very address.
        """
        if self.offset is None:
            return LockOwner("unknown")
        ns_tid = pthread.tid(self.pid, ident, self.offset)
        thread = self._threads.get(ns_tid) if ns_tid else None
        if thread is None and ns_tid and ns_tid in self._begun_since():
            return LockOwner("unknown", ns_tid=ns_tid)
        before = self._parent_thread(ident)
        if thread is None:
            name = self.parent.threads.get(before, "") if self.parent and before else ""
            return LockOwner("absent", ns_tid=before, pid=self.pid, name=name, parent_thread=before is not None)
        if thread.ns_tid == self._first_ns_tid() or thread.tid == waiter.tid or before is None or self.parent is None:
            return self._here(thread, waiter)
        # A thread of the parent had this stack at the fork, a thread of ours has it now: whose name is it?
        name = self.parent.threads.get(before, "")
        began = began_s(self.pid, thread.tid)
        if waiter.blocked_s is not None and began is not None and waiter.blocked_s > began + 0.1:
            return LockOwner("absent", ns_tid=before, pid=self.pid, name=name, parent_thread=True)
        if held_by_parent(self.parent.pid, ident):
            return LockOwner("unknown", thread.tid, thread.ns_tid, self.pid, name, parent_thread=True)
        return self._here(thread, waiter)

    def joined(self, event: int) -> int | None:
        """The target's own tid of the thread whose end this event of CPython 3.13+ tells.

        The event lies in the thread's handle, behind two words that both are the thread's pthread address.
        """
        words = memory.read_words(self.pid, [event // 8 * 8 - 8 * step for step in range(8)])
        for tid, ident in self._idents.items():
            if any(later == ident == earlier for later, earlier in pairwise(words)):
                return next((thread.ns_tid for thread in self._threads.values() if thread.tid == tid), None)
        return None

    def _here(self, thread: ThreadFact, waiter: ThreadFact) -> LockOwner:
        state = "self" if thread.tid == waiter.tid else "alive"
        return LockOwner(state, thread.tid, thread.ns_tid, self.pid, self._names.get(thread.tid, ""))

    def _first_ns_tid(self) -> int:
        """The process's first thread: after a fork, the copy of the one that forked."""
        return next((ns_tid for ns_tid, thread in self._threads.items() if thread.tid == self.pid), 0)

    @cached_property
    def forking_thread(self) -> int | None:
        """The parent's thread that forked us: it has the pthread address that our first thread still has."""
        ident = self._idents.get(self.pid)
        return self._parent_thread(ident) if ident else None

    def _parent_thread(self, ident: int) -> int | None:
        """The parent's tid (its own view) of the thread at this pthread address, now."""
        if self.parent is None or self.offset is None:
            return None
        try:
            ns_tid = pthread.tid(self.parent.pid, ident, self.offset)
        except OSError:
            return None
        return ns_tid if ns_tid in self.parent.threads else None

    def _sharing(self, ns_tid: int, waiter: ThreadFact, address: int) -> LockOwner:
        """The owner of a lock in shared memory, as its word or field names it: a thread of any process that maps it.

        Each process writes the number that its thread has in its own PID namespace, so several can be meant.
        """
        from stucktrace.collectors import sharers

        try:
            shared = sharers.of(self.pid, address)
            if shared is None:
                return LockOwner("unknown", ns_tid=ns_tid)
            pids, hidden = sharers.all_of(shared)
        except CannotInspect:
            return LockOwner("unknown", ns_tid=ns_tid)
        found = [(pid, tid) for pid in pids if (tid := _numbered(pid, ns_tid))]
        if len(found) > 1:
            return LockOwner("unknown", ns_tid=ns_tid)
        if not found:
            assumes = "no process whose mappings may not be read shares it" if hidden else ""
            return LockOwner("absent", ns_tid=ns_tid, assumes=assumes)
        ((pid, tid),) = found
        thread = self._threads.get(ns_tid) if pid == self.pid else None
        if thread is not None:
            return self._here(thread, waiter)
        status = _status(Path(f"/proc/{pid}/task/{tid}/status")) or {}
        return LockOwner("alive", tid, ns_tid, pid, status.get("Name", ""))

    def _begun_since(self) -> frozenset[int]:
        """ns_tids of threads that began after `threads` was taken."""
        known = {thread.tid for thread in self._threads.values()}
        found = set()
        for name in _task_names(self.pid):
            if int(name) not in known:
                status = _status(Path(f"/proc/{self.pid}/task/{name}/status"))
                found.add(int((status or {}).get("NSpid", name).split()[-1]))
        return frozenset(found)


def _numbered(pid: int, ns_tid: int) -> int | None:
    """The thread of a process that has this number in its own PID namespace."""
    for name in _task_names(pid):
        status = _status(Path(f"/proc/{pid}/task/{name}/status"))
        if status is not None and int(status.get("NSpid", name).split()[-1]) == ns_tid:
            return int(name)
    return None


def began_s(pid: int, tid: int) -> float | None:
    """Age of a thread. Source: /proc/PID/task/TID/stat, to a clock tick (10 ms), and /proc/uptime."""
    try:
        fields = Path(f"/proc/{pid}/task/{tid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, IndexError, ValueError):
        return None
    return max(uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"), 0.0)


def _places(mapped: Regions) -> tuple[int, ...]:
    return tuple(region.end for region in mapped.regions if region.path in ("[vdso]", "[stack]"))


def _same_pid_namespace(pid: int, other: int) -> bool:
    try:
        theirs = Path(f"/proc/{other}/ns/pid").readlink()
        return Path(f"/proc/{pid}/ns/pid").readlink() == theirs
    except OSError:
        return False


def _task_names(pid: int) -> list[str]:
    try:
        return [entry.name for entry in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []


def _names_of(pid: int) -> Mapping[int, str]:
    """ns_tid -> name of a process's threads."""
    names = {}
    for name in _task_names(pid):
        status = _status(Path(f"/proc/{pid}/task/{name}/status"))
        if status is not None:
            names[int(status.get("NSpid", name).split()[-1])] = status.get("Name", "")
    return names


def _status(path: Path) -> Mapping[str, str] | None:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
