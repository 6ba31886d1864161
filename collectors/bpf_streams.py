"""Streams of records out of BPF programs (bpf/ring.h): a ring buffer, or a perf event array on kernels before 5.8.

Both give every record once, in the order of their making. What does not fit is counted by the programs themselves.
"""

from __future__ import annotations

import ctypes
import errno
import time
from collections.abc import Callable
from ctypes import c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Protocol

from stucktrace.collectors import libbpf
from stucktrace.collectors.libbpf import Map, checked, library, map_type

PAGES_PER_CPU = 16
"""Of the perf buffer, beside one for its head: within what anybody may lock (perf_event_mlock_kb)."""
MOST_AT_ONCE = 8192
"""Records in one `RingBuffer.consume`, for a flood must not hold its reader."""
_HEADER = 8
"""struct record: kind and length; the time it was made follows."""
_SAMPLE = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
_PERF_SAMPLE = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p, c_uint32)


class Stream(Protocol):
    fd: int
    """Readable while there are records; of a perf buffer: when one came since it was looked at."""

    def consume(self) -> list[bytes]:
        """The records there are now, in their order; never waits."""

    def close(self) -> None: ...


def open_stream(ring: Map) -> Stream:
    """The reader for this map, by its type. BpfError."""
    return PerfBuffer(ring) if map_type(ring.fd) == libbpf.PERF_EVENT_ARRAY else RingBuffer(ring)


class RingBuffer:
    def __init__(self, ring: Map) -> None:
        self.fd = ring.fd
        self._records: list[bytes] = []
        self._callback: Callable[..., int] = _SAMPLE(self._keep)
        pointer = library().ring_buffer__new(ring.fd, ctypes.cast(self._callback, c_void_p), None, None)
        self._pointer: int | None = checked(pointer, f"read the ring buffer {ring.name}")

    def _keep(self, _context: int | None, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        # This one is taken in either case.
        return 0 if len(self._records) < MOST_AT_ONCE else -errno.EAGAIN

    def consume(self) -> list[bytes]:
        result = library().ring_buffer__consume(self._pointer)
        records, self._records = self._records, []
        if result != -errno.EAGAIN:
            checked(result, "read a ring buffer")
        return records

    def close(self) -> None:
        if self._pointer is not None:
            library().ring_buffer__free(self._pointer)
            self._pointer = None


class PerfBuffer:
    """One buffer for each CPU, read one after the other: what is made meanwhile is kept for the next time."""

    def __init__(self, array: Map) -> None:
        self._records: list[bytes] = []
        self._callback: Callable[..., None] = _PERF_SAMPLE(self._keep)
        callback = ctypes.cast(self._callback, c_void_p)
        pointer = library().perf_buffer__new(array.fd, PAGES_PER_CPU, callback, None, None, None)
        self._pointer: int | None = checked(pointer, f"read the perf buffers of {array.name}")
        self.fd = int(library().perf_buffer__epoll_fd(self._pointer))

    def _keep(self, _context: int | None, _cpu: int, data: int, size: int) -> None:
        padded = ctypes.string_at(data, size)
        self._records.append(padded[: c_uint32.from_buffer_copy(padded, 4).value])

    def consume(self) -> list[bytes]:
        began_ns = time.monotonic_ns()
        checked(library().perf_buffer__consume(self._pointer), "read the perf buffers")
        records = sorted(self._records, key=_made_ns)
        ready = [record for record in records if _made_ns(record) < began_ns]
        self._records = records[len(ready) :]
        return ready

    def close(self) -> None:
        if self._pointer is not None:
            library().perf_buffer__free(self._pointer)
            self._pointer = None


def _made_ns(record: bytes) -> int:
    return c_uint64.from_buffer_copy(record, _HEADER).value
