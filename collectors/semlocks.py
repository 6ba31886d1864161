"""Who holds a lock of multiprocessing or billiard: its `SemLock` objects in every process that shares the semaphore.

The semaphore alone names nobody. But each process that has such a lock has an object for it, whose `count` is above 0
in the one process that holds it, with `last_tid`, the pthread address of the thread that took it. Source:
semlock_objects.py, sharers.py.

- The waiting thread has its object on its C stack. A semaphore without a name was unlinked as soon as it was made
  (start method fork), so each process has one object for it, at the same address as here. Another one is opened by name
  (spawn, forkserver), by every object anew: there the memory of each process is searched for all of them.
- Only a lock has a holder: the most that its value may be is 1, and the object around it is a `Lock` or an `RLock`. A
  semaphore is a count that anybody may raise. Where a process has released more often than it acquired, the lock is
  used as a signal, and has no holder either.
- Nobody holds a lock that is taken: its holder ended, or it is on its way to the GIL to say that it has it. That one
  still has the object on its stack.
"""

from __future__ import annotations

import platform
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stucktrace.collectors import cpython_objects, memory, procfs, semlock_users, sharers, usage
from stucktrace.collectors.cpython_objects import Layout
from stucktrace.collectors.futexes import Wait
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.semlock_objects import Process, SemLock, own_number
from stucktrace.collectors.sharers import Shared
from stucktrace.collectors.syscall_names import BY_MACHINE
from stucktrace.errors import CannotInspect
from stucktrace.facts import LockOwner, OwnerElsewhere

_ACQUIRING_BYTES = 2 << 10
"""From the call in which a thread waits for the GIL up to the frame of the lock's method."""
_RECURSIVE = 0
_FUTEX = next((number for number, name in BY_MACHINE.get(platform.machine(), {}).items() if name == "futex"), -1)
_MOST_STEPS = 16
_RELEASED_BY_HOLDER = "who acquires it releases it"
_TRIES = 3
_SETTLED_S = 0.1
LOCK, RLOCK, SEMAPHORE = "process-lock", "process-rlock", "process-semaphore"


@dataclass(frozen=True)
class _Objects:
    objects: tuple[SemLock, ...]
    complete: bool
    """Each process that maps the semaphore showed its object."""


@dataclass(frozen=True)
class Found:
    """What the lock behind a wait is."""

    kind: str
    owner: LockOwner | None
    note: str = ""
    beyond: tuple[OwnerElsewhere, ...] = ()
    """From the owner in another process on: what each waits for in turn, as far as that is such a lock too."""


class SemLocks:
    """Answers for the waiting threads of one process; other processes are read only when one waits for such a lock."""

    def __init__(self, pid: int, layout: Layout, found: Interpreter | None, family: Sequence[int]) -> None:
        self._layout = layout
        self._interpreter = found
        self._family = [pid, *(other for other in family if other != pid)]
        self._processes: dict[int, Process | None] = {}
        self._pid = pid

    def find(self, tid: int, address: int) -> Found | None:
        """The lock that a thread waits for at the address of a shared semaphore; None: it is no SemLock's."""
        for _ in range(_TRIES):
            try:
                first = self._read(self._pid, tid, address)
                if first is not None and first.owner is not None and first.owner.state == "absent":
                    # While a pool is ended its members go one after the other.
                    time.sleep(_SETTLED_S)
                if first is None or self._read(self._pid, tid, address) == first:
                    return first
            except (OSError, CannotInspect, struct.error):
                # Somebody ended meanwhile.
                continue
        return None

    def _read(self, pid: int, tid: int, address: int) -> Found | None:
        found = self._lock(pid, tid, address)
        if found is None or found.owner is None or found.owner.state != "alive":
            return found
        return replace(found, beyond=self._beyond(found.owner, pid, tid))

    def _lock(self, pid: int, tid: int, address: int) -> Found | None:
        """The lock that a thread waits for, and who holds it."""
        here = self._process(pid)
        semlock = here.on_stack(tid, address) if here is not None else None
        if here is None or semlock is None:
            return None
        if semlock.most != 1:
            return Found(SEMAPHORE, None)
        used = semlock_users.read(here.reader, self._interpreter_of(here), tid, semlock.address)
        if semlock.kind == _RECURSIVE:
            return Found(RLOCK, self._owner(here, semlock, tid, True))
        if used.class_name != "Lock":
            return Found(SEMAPHORE, None, note="" if used.class_name else "a lock, or a semaphore whose most is 1")
        return Found(LOCK, self._owner(here, semlock, tid, used.in_with))

    def _owner(self, here: Process, semlock: SemLock, tid: int, released_by_holder: bool) -> LockOwner:
        shared = sharers.of(here.pid, semlock.handle)
        if shared is None or _value(semlock) != 0:
            return LockOwner("unknown")
        nearby = self._objects(self._family, here, semlock, shared)
        holders = [each for each in nearby.objects if each.count > 0]
        if not holders:
            everyone, hidden = sharers.everyone()
            nearby = self._objects(everyone, here, semlock, shared)
            holders = [each for each in nearby.objects if each.count > 0]
            if not holders:
                return self._nobody(nearby, here, semlock, hidden, released_by_holder)
        if len(holders) > 1 or any(each.count < 0 for each in nearby.objects):
            return LockOwner("unknown")
        return self._named(holders[0], here, semlock, tid, released_by_holder)

    def _named(self, holder: SemLock, here: Process, semlock: SemLock, tid: int, released_by_holder: bool) -> LockOwner:
        process = self._process(holder.pid)
        thread = process.thread_of(holder.last_tid) if process is not None else None
        if process is None or thread is None:
            return LockOwner("unknown", pid=holder.pid)
        own, name = own_number(holder.pid, thread), _thread_name(holder.pid, thread)
        owner = LockOwner("alive", thread, own, holder.pid, name, how="semaphore count")
        if (holder.pid, thread) != (here.pid, tid):
            return owner if released_by_holder else replace(owner, assumes=_RELEASED_BY_HOLDER)
        shared = sharers.of(here.pid, semlock.handle)
        if shared is not None and sharers.all_of(shared) == ([here.pid], False):
            return replace(owner, state="self")
        # Another process may release it: a signal to this one, unless it is used as a lock.
        assumes = "no other process releases it"
        return replace(owner, state="self", assumes=assumes) if released_by_holder else LockOwner("unknown")

    def _nobody(
        self, seen: _Objects, here: Process, semlock: SemLock, hidden: Sequence[int], released_by_holder: bool
    ) -> LockOwner:
        if not seen.complete or any(each.count < 0 for each in seen.objects) or self._is_acquired(seen, semlock):
            return LockOwner("unknown")
        assumes = []
        if any(sharers.may_share(pid, {each.pid for each in seen.objects}) for pid in hidden):
            assumes.append("no process whose mappings may not be read has this lock")
        if not released_by_holder:
            assumes.append(_RELEASED_BY_HOLDER)
        return LockOwner("absent", how="semaphore count", assumes=" and ".join(assumes))

    def _is_acquired(self, seen: _Objects, semlock: SemLock) -> bool:
        """A thread has the semaphore already, and waits for the GIL to note it: the object is on its stack."""
        for each in seen.objects:
            process = self._process(each.pid)
            if process is None:
                return True
            for tid in procfs.thread_ids(each.pid):
                fields = cpython_objects.call_fields(each.pid, tid)
                waits = fields is not None and len(fields) == 9 and int(fields[1], 16) == each.handle
                if not waits and process.on_stack(tid, each.handle, _ACQUIRING_BYTES) is not None:
                    return True
        return False

    def _objects(self, pids: Sequence[int], here: Process, semlock: SemLock, shared: Shared) -> _Objects:
        found: list[SemLock] = []
        complete = True
        for pid in pids:
            try:
                if not semlock.named and pid in self._family:
                    # Most of a family have it without holding it: one small read tells.
                    near = self._near(pid, semlock)
                    if near is not None and near.count == 0:
                        found.append(near)
                        continue
                place = sharers.mapped_at(pid, shared)
                if place is None:
                    continue
                objects = self._in(pid, semlock, shared, place)
            except (ProcessLookupError, FileNotFoundError):
                continue
            except PermissionError:
                complete = False
                continue
            complete = complete and bool(objects)
            found += objects or ()
        return _Objects(tuple(found), complete)

    def _near(self, pid: int, semlock: SemLock) -> SemLock | None:
        process = self._process(pid)
        return process.object_at(semlock.address, semlock.handle) if process is not None else None

    def _in(self, pid: int, semlock: SemLock, shared: Shared, place: int) -> tuple[SemLock, ...] | None:
        process = self._process(pid)
        if process is None:
            return None
        handle = place + semlock.handle - shared.start
        if semlock.named:
            return process.search(handle)
        found = process.object_at(semlock.address, handle)
        return (found,) if found is not None else None

    def _beyond(self, owner: LockOwner, pid: int, tid: int) -> tuple[OwnerElsewhere, ...]:
        """Along the owners: what each is inside of, until one waits for no such lock, or is one of those before."""
        steps: list[OwnerElsewhere] = []
        seen = {(pid, tid)}
        while owner.state == "alive" and owner.pid and owner.tid and len(steps) < _MOST_STEPS:
            address = awaited(cpython_objects.call_fields(owner.pid, owner.tid) or ())
            again = (owner.pid, owner.tid) in seen
            found = self._lock(owner.pid, owner.tid, address) if address and not again else None
            steps.append(
                OwnerElsewhere(
                    owner.pid,
                    owner.tid,
                    procfs.read_stat(owner.pid).command,
                    _state(owner.pid, owner.tid),
                    address if found is not None else None,
                    found.kind if found is not None else "",
                    usage.switches(owner.pid, owner.tid),
                    found.owner.assumes if found is not None and found.owner is not None else "",
                )
            )
            seen.add((owner.pid, owner.tid))
            if found is None or found.owner is None:
                break
            owner = found.owner
        return tuple(steps)

    def _process(self, pid: int) -> Process | None:
        if pid not in self._processes:
            try:
                self._processes[pid] = Process(pid, self._layout)
            except (OSError, CannotInspect):
                self._processes[pid] = None
        return self._processes[pid]

    def _interpreter_of(self, process: Process) -> Interpreter | None:
        from stucktrace.collectors import interpreter

        if process.interpreter is None:
            process.interpreter = (
                self._interpreter if process.pid == self._pid else interpreter.find(process.pid, process.mapped)
            )
        return process.interpreter


def _value(semlock: SemLock) -> int:
    """The low half of glibc's semaphore on 64 bits."""
    value: int = struct.unpack("<I", memory.read(semlock.pid, semlock.handle, 4))[0]
    return value


def _thread_name(pid: int, tid: int) -> str:
    return procfs.read(pid, f"task/{tid}/comm").decode(errors="replace").rstrip("\n")


def _state(pid: int, tid: int) -> str:
    return procfs.parse_stat(procfs.read(pid, f"task/{tid}/stat").decode(errors="surrogateescape")).state


def awaited(fields: Sequence[str]) -> int:
    """The word that a thread waits for without a timeout; 0 when it does something else."""
    if len(fields) != 9 or int(fields[0]) != _FUTEX:
        return 0
    wait = Wait.of(tuple(int(field, 16) for field in fields[1:7]))
    return wait.address if wait is not None and not wait.private and not int(fields[4], 16) else 0
