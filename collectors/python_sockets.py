"""The timeouts that Python programs set on their sockets: they stand in the socket objects, the kernel has no part in
it.

A `socket.socket` begins with its head, then fd, family, type and protocol (ints), a pointer and the timeout in
nanoseconds, negative for none, 0 for a socket that never blocks (Modules/socketmodule.h, PySocketSockObject, CPython
3.8 to 3.14). Memory that holds objects is searched for the family and type of a TCP socket; what is found counts if
its type's name says socket. A closed one has fd -1. A socket without an object was opened by a C library.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from stucktrace.collectors import heap_search, interpreter, regions
from stucktrace.collectors.cpython_objects import Layout, Reader

SCAN_S = 1.0
"""Of processor time, for one process: past it no more objects are found."""
_MARKS = tuple(struct.pack("<ii", family, socket.SOCK_STREAM) for family in (socket.AF_INET, socket.AF_INET6))
_AT, _SIZE = 20, 48
"""Where family and type stand in the object, and how much of it is read."""


@dataclass(frozen=True)
class Timeouts:
    """Of the sockets of one process."""

    seconds: Mapping[int, float | None]
    """fd -> the timeout; None: the calls on it block without an end. Without those that never block."""
    objects: frozenset[int]
    """Every fd that a Python socket object has."""
    complete: bool
    """The search came to its end: an fd that is not in `objects` belongs to a C library."""


NOTHING = Timeouts({}, frozenset(), complete=False)


def read(pid: int, fds: Collection[int]) -> Timeouts:
    """The timeouts of these TCP sockets. Raises nothing: what cannot be read is not there."""
    try:
        mapped = regions.read(pid)
        found = interpreter.find(pid, mapped)
        if found is None or found.minor is None:
            return NOTHING
        reader = Reader(pid, mapped, Layout())
        seen: dict[int, set[int]] = {}
        complete = True
        ends = time.thread_time() + SCAN_S
        for _, data in heap_search.chunks(pid, mapped):
            if time.thread_time() > ends:
                return _answer(seen, complete=False)
            if data is None:
                complete = False
                continue
            for fd, timeout_ns in _objects(reader, data, fds):
                seen.setdefault(fd, set()).add(timeout_ns)
        return _answer(seen, complete=complete)
    except (OSError, struct.error):
        return NOTHING


def _answer(seen: Mapping[int, set[int]], *, complete: bool) -> Timeouts:
    # Two objects of one fd that do not agree: one of them is a left-over.
    sure = {fd: min(values) for fd, values in seen.items() if len(values) == 1}
    seconds = {fd: None if value < 0 else value / 1e9 for fd, value in sure.items() if value != 0}
    return Timeouts(seconds, frozenset(seen), complete)


def _objects(reader: Reader, data: bytes, fds: Collection[int]) -> Iterator[tuple[int, int]]:
    """(fd, timeout in nanoseconds) of the socket objects in `data`."""
    for mark in _MARKS:
        place = data.find(mark)
        while place >= 0:
            start = place - _AT
            if start >= 0 and start % 8 == 0 and start + _SIZE <= len(data):
                kind, fd, _, _, protocol, _, timeout_ns = struct.unpack_from("<Qiiii Qq", data, start + 8)
                if fd in fds and protocol in (0, socket.IPPROTO_TCP) and _is_socket(reader.type_name(kind)):
                    yield fd, timeout_ns
            place = data.find(mark, place + 4)


def _is_socket(type_name: str) -> bool:
    return type_name.rpartition(".")[2].lower().endswith("socket")
