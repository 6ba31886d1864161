"""The `SemLock` objects of multiprocessing and billiard in one process's memory.

Source: process_vm_readv; `SemLockObject` (Modules/_multiprocessing/semaphore.c) of CPython 3.8 to 3.14 and of billiard
3 and 4, behind the object's head: handle 0, last_tid 8, count 16 (int), maxvalue 20, kind 24 (0: recursive), name 32.
What an object is, its type says; nothing is concluded from a pointer alone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from stucktrace.collectors import cpython_objects, memory, procfs, pthread, regions, touched
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.interpreter import Interpreter

_BODY = struct.Struct("<QQiii4xQ")
_BODY_BYTES = _BODY.size
_STACK_BYTES = 8 << 10
_SEARCH_BYTES = 1 << 30


@dataclass(frozen=True)
class SemLock:
    """One object. `last_tid` is a pthread address of its process."""

    pid: int
    address: int
    handle: int
    last_tid: int
    count: int
    most: int
    kind: int
    named: bool


class Process:
    """One of the processes that share a lock."""

    def __init__(self, pid: int, layout: Layout, found: Interpreter | None = None) -> None:
        self.pid = pid
        self.mapped = regions.read(pid)
        self.reader = Reader(pid, self.mapped, layout)
        self.interpreter = found
        self._searched: dict[int, tuple[int, ...] | None] = {}

    def object_at(self, address: int, handle: int) -> SemLock | None:
        head = self.reader.layout.head
        data = _some(self.pid, address, head + _BODY_BYTES) if address > 0 and address % 8 == 0 else b""
        if len(data) < head + _BODY_BYTES:
            return None
        (kind_of,) = struct.unpack_from("<Q", data, head - 8)
        at, last_tid, count, most, kind, name = _BODY.unpack_from(data, head)
        if at != handle or not self.reader.type_name(kind_of).endswith(".SemLock") or kind not in (0, 1) or most < 1:
            return None
        return SemLock(self.pid, address, at, last_tid, count, most, kind, bool(name))

    def on_stack(self, tid: int, handle: int, length: int = _STACK_BYTES) -> SemLock | None:
        """The object that a thread inside a system call has on its C stack."""
        pointer = cpython_objects.stack_pointer(self.pid, tid)
        words = self.reader.on_stack(pointer, handle, length) if pointer else ()
        return next((found for word in words if (found := self.object_at(word, handle)) is not None), None)

    def search(self, handle: int) -> tuple[SemLock, ...] | None:
        """All objects with this handle; None where there is too much memory to search."""
        if handle not in self._searched:
            self._searched[handle] = self._pointing_to(handle)
        places = self._searched[handle]
        found = [self.object_at(place, handle) for place in places] if places is not None else None
        return tuple(semlock for semlock in found if semlock is not None) if found is not None else None

    def _pointing_to(self, handle: int) -> tuple[int, ...] | None:
        areas = list(self.mapped.anonymous_writable())
        if sum(area.size for area in areas) > _SEARCH_BYTES:
            return None
        found: list[int] = []
        for start, length in touched.ranges(self.pid, areas):
            places = memory.places_of(_some(self.pid, start, length), handle)
            addresses = (start + place - self.reader.layout.head for place in places)
            found += (address for address in addresses if self.object_at(address, handle) is not None)
        return tuple(found)

    def thread_of(self, ident: int) -> int | None:
        """tid of the living thread at a pthread address."""
        numbers = {own_number(self.pid, tid): tid for tid in procfs.thread_ids(self.pid)}
        offset = pthread.tid_offset(self.pid, [ident], numbers)
        own = pthread.tid(self.pid, ident, offset) if offset is not None else None
        return numbers.get(own) if own else None


def own_number(pid: int, tid: int) -> int:
    """The thread's number in its own PID namespace."""
    status = procfs.parse_status(procfs.read(pid, f"task/{tid}/status").decode(errors="replace"))
    return procfs.last_number(status.get("NSpid", ""), tid)


def _some(pid: int, start: int, length: int) -> bytes:
    try:
        return memory.read_some(pid, start, length)
    except (ProcessLookupError, PermissionError):
        raise
    except OSError:
        return b""
