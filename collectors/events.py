"""The records of bpf/events.h, field by field, and how a stream of them is read.

tests/unit/test_abi.py compares every class here with the struct of the same name (CamelCase for snake_case) in the
objects' BTF. Ids and times are as described in bpf/events.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import c_char, c_int32, c_int64, c_uint32, c_uint64
from typing import ClassVar

STACK_DEPTH = 12
SYMBOL_BYTES = 40


class Record(ctypes.Structure):
    """The header that every record of a stream begins with."""

    _fields_ = (("kind", c_uint32), ("length", c_uint32))
    kind: int
    length: int


class ThreadRecord(ctypes.Structure):
    KIND: ClassVar = 1
    _fields_ = (
        ("header", Record),
        ("pid", c_uint32),
        ("tid", c_uint32),
        ("ns_pid", c_uint32),
        ("ns_tid", c_uint32),
        ("kernel_pid", c_uint32),
        ("kernel_tid", c_uint32),
        ("state", c_uint32),
        ("exit_state", c_uint32),
        ("on_cpu", c_uint32),
        ("syscall", c_int32),
        ("args", c_uint64 * 6),
        ("result", c_int64),
        ("now_ns", c_uint64),
        ("reader_arrival_ns", c_uint64),
        ("slept_at_ns", c_uint64),
        ("cpu_ns", c_uint64),
        ("switches_voluntary", c_uint64),
        ("switches_involuntary", c_uint64),
        ("name", c_char * 16),
    )
    pid: int
    tid: int
    ns_pid: int
    ns_tid: int
    kernel_pid: int
    kernel_tid: int
    state: int
    exit_state: int
    on_cpu: int
    syscall: int
    args: ctypes.Array[c_uint64]
    result: int
    now_ns: int
    reader_arrival_ns: int
    slept_at_ns: int
    cpu_ns: int
    switches_voluntary: int
    switches_involuntary: int
    name: bytes


class StackRecord(ctypes.Structure):
    KIND: ClassVar = 2
    _fields_ = (
        ("header", Record),
        ("tid", c_uint32),
        ("depth", c_uint32),
        ("symbols", (c_char * SYMBOL_BYTES) * STACK_DEPTH),
    )
    tid: int
    depth: int
    symbols: ctypes.Array[ctypes.Array[c_char]]


class CallKey(ctypes.Structure):
    """Key of the map `calls` in waits.bpf.c."""

    _fields_ = (("kernel_pid", c_uint32), ("kernel_tid", c_uint32), ("syscall", c_int32), ("fd", c_int32))
    kernel_pid: int
    kernel_tid: int
    syscall: int
    fd: int


class CallCount(ctypes.Structure):
    """Value of the map `calls` in waits.bpf.c."""

    _fields_ = (
        ("returns", c_uint64),
        ("moved_bytes", c_uint64),
        ("empty", c_uint64),
        ("last_error", c_uint32),
        ("pad", c_uint32),
    )
    returns: int
    moved_bytes: int
    empty: int
    last_error: int


def split(data: bytes) -> Iterator[tuple[int, int]]:
    """(kind, offset) of each record in a stream; what is cut off or makes no sense ends it."""
    offset, end = 0, len(data) - ctypes.sizeof(Record)
    while offset <= end:
        header = Record.from_buffer_copy(data, offset)
        if header.length < ctypes.sizeof(Record) or offset + header.length > len(data):
            return
        yield header.kind, offset
        offset += header.length
