"""The records of bpf/events.h, field by field, and how a stream of them is read.

tests/unit/test_abi.py compares every class here with the struct of the same name (CamelCase for snake_case) in the
objects' BTF. Ids and times are as described in bpf/events.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import c_char, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from typing import ClassVar

STACK_DEPTH = 12
REGISTER_WORDS = 34
SYMBOL_BYTES = 40
UNIX_NAME_BYTES = 112


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


class RegistersRecord(ctypes.Structure):
    KIND: ClassVar = 5
    _fields_ = (("header", Record), ("tid", c_uint32), ("pad", c_uint32), ("words", c_uint64 * REGISTER_WORDS))
    tid: int
    words: ctypes.Array[c_uint64]


class ThreadStackRecord(ctypes.Structure):
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


class InflightRecord(ctypes.Structure):
    KIND: ClassVar = 3
    _fields_ = (
        ("header", Record),
        ("pid", c_uint32),
        ("tid", c_uint32),
        ("kernel_tid", c_uint32),
        ("syscall", c_int32),
        ("arg0", c_uint64),
        ("since_ns", c_uint64),
        ("slept_at_ns", c_uint64),
        ("now_ns", c_uint64),
        ("on_lock", c_uint32),
        ("pad", c_uint32),
    )
    pid: int
    tid: int
    kernel_tid: int
    syscall: int
    arg0: int
    since_ns: int
    slept_at_ns: int
    now_ns: int
    on_lock: int


class LifeRecord(ctypes.Structure):
    KIND: ClassVar = 4
    _fields_ = (
        ("header", Record),
        ("time_ns", c_uint64),
        ("kind", c_uint32),
        ("pid", c_uint32),
        ("parent", c_uint32),
        ("sender", c_uint32),
        ("kernel_pid", c_uint32),
        ("signal", c_uint32),
        ("status", c_int32),
        ("pad", c_uint32),
        ("command", c_char * 16),
    )
    time_ns: int
    kind: int
    pid: int
    parent: int
    sender: int
    kernel_pid: int
    signal: int
    status: int
    command: bytes


class InflightLimit(ctypes.Structure):
    """Value of the map `limits` in inflight.bpf.c."""

    _fields_ = (
        ("after_ns", c_uint64),
        ("lock_after_ns", c_uint64),
        ("rests_in_select", c_uint32),
        ("pad", c_uint32),
    )
    after_ns: int
    lock_after_ns: int
    rests_in_select: int


class InflightMute(ctypes.Structure):
    """Value of the map `mutes` in inflight.bpf.c."""

    _fields_ = (("slept_at_ns", c_uint64), ("since_ns", c_uint64), ("until_ns", c_uint64))
    slept_at_ns: int
    since_ns: int
    until_ns: int


class CallKey(ctypes.Structure):
    """Key of the map `calls` in waits.bpf.c."""

    _fields_ = (("kernel_pid", c_uint32), ("kernel_tid", c_uint32), ("syscall", c_int32), ("fd", c_int32))
    kernel_pid: int
    kernel_tid: int
    syscall: int
    fd: int


class EnteredCall(ctypes.Structure):
    """Value of the map `entered` in waits.bpf.c."""

    _fields_ = (("number", c_uint32), ("fd", c_int32), ("operation", c_uint32))
    number: int
    fd: int
    operation: int


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


class SocketRecord(ctypes.Structure):
    KIND: ClassVar = 16
    _fields_ = (
        ("header", Record),
        ("pid", c_uint32),
        ("fd", c_uint32),
        ("inode", c_uint64),
        ("now_ns", c_uint64),
        ("now_jiffies", c_uint64),
        ("bytes_sent", c_uint64),
        ("bytes_acked", c_uint64),
        ("bytes_received", c_uint64),
        ("netns", c_uint32),
        ("family", c_uint16),
        ("type", c_uint16),
        ("protocol", c_uint16),
        ("local_port", c_uint16),
        ("remote_port", c_uint16),
        ("state", c_uint8),
        ("keepalive", c_uint8),
        ("local", c_uint8 * 16),
        ("remote", c_uint8 * 16),
        ("send_bytes", c_uint32),
        ("receive_bytes", c_uint32),
        ("backlog", c_uint32),
        ("soft_error", c_int32),
        ("packets_out", c_uint32),
        ("send_window_bytes", c_uint32),
        ("rto_jiffies", c_uint32),
        ("sent_jiffies", c_uint32),
        ("received_jiffies", c_uint32),
        ("acked_jiffies", c_uint32),
        ("expires_jiffies", c_int32),
        ("user_timeout_ms", c_uint32),
        ("keepalive_idle_jiffies", c_uint32),
        ("keepalive_interval_jiffies", c_uint32),
        ("keepalive_count", c_uint8),
        ("timer", c_uint8),
        ("retransmits", c_uint8),
        ("backoff", c_uint8),
        ("probes_out", c_uint8),
        ("syn_retries", c_uint8),
        ("ack_pending", c_uint8),
        ("netns_keepalive_count", c_uint8),
        ("netns_keepalive_idle_jiffies", c_uint32),
        ("netns_keepalive_interval_jiffies", c_uint32),
        ("netns_syn_retries", c_uint8),
        ("netns_retries2", c_uint8),
        ("timestamps", c_uint8),
        ("receive_window_scale", c_uint8),
        ("signed_segments", c_uint8),
        ("pad", c_uint8 * 3),
        ("snd_una", c_uint32),
        ("snd_nxt", c_uint32),
        ("rcv_nxt", c_uint32),
        ("receive_window_bytes", c_uint32),
        ("timestamp_recent", c_uint32),
        ("timestamp_offset", c_uint32),
        ("mark", c_uint32),
        ("bound_interface", c_int32),
    )
    pid: int
    fd: int
    inode: int
    now_ns: int
    now_jiffies: int
    bytes_sent: int
    bytes_acked: int
    bytes_received: int
    netns: int
    family: int
    type: int
    protocol: int
    local_port: int
    remote_port: int
    state: int
    keepalive: int
    local: ctypes.Array[c_uint8]
    remote: ctypes.Array[c_uint8]
    send_bytes: int
    receive_bytes: int
    backlog: int
    soft_error: int
    packets_out: int
    send_window_bytes: int
    rto_jiffies: int
    sent_jiffies: int
    received_jiffies: int
    acked_jiffies: int
    expires_jiffies: int
    user_timeout_ms: int
    keepalive_idle_jiffies: int
    keepalive_interval_jiffies: int
    keepalive_count: int
    timer: int
    retransmits: int
    backoff: int
    probes_out: int
    syn_retries: int
    ack_pending: int
    netns_keepalive_count: int
    netns_keepalive_idle_jiffies: int
    netns_keepalive_interval_jiffies: int
    netns_syn_retries: int
    netns_retries2: int
    timestamps: int
    receive_window_scale: int
    signed_segments: int
    snd_una: int
    snd_nxt: int
    rcv_nxt: int
    receive_window_bytes: int
    timestamp_recent: int
    timestamp_offset: int
    mark: int
    bound_interface: int


class UnixSocketRecord(ctypes.Structure):
    KIND: ClassVar = 17
    _fields_ = (
        ("header", Record),
        ("pid", c_uint32),
        ("fd", c_uint32),
        ("inode", c_uint64),
        ("peer_inode", c_uint64),
        ("netns", c_uint32),
        ("type", c_uint16),
        ("state", c_uint8),
        ("has_peer", c_uint8),
        ("send_bytes", c_uint32),
        ("receive_bytes", c_uint32),
        ("backlog", c_uint32),
        ("peer_receive_bytes", c_uint32),
        ("name_bytes", c_uint16),
        ("peer_name_bytes", c_uint16),
        ("pad", c_uint32),
        ("name", c_char * UNIX_NAME_BYTES),
        ("peer_name", c_char * UNIX_NAME_BYTES),
    )
    pid: int
    fd: int
    inode: int
    peer_inode: int
    netns: int
    type: int
    state: int
    has_peer: int
    send_bytes: int
    receive_bytes: int
    backlog: int
    peer_receive_bytes: int
    name_bytes: int
    peer_name_bytes: int

    def name_raw(self) -> bytes:
        """sun_path, zeros of an abstract name included."""
        return self._raw("name", self.name_bytes)

    def peer_name_raw(self) -> bytes:
        return self._raw("peer_name", self.peer_name_bytes)

    def _raw(self, field: str, length: int) -> bytes:
        # Most sockets have no name, and a process can have ten thousands of sockets.
        return ctypes.string_at(ctypes.addressof(self) + getattr(type(self), field).offset, length) if length else b""


class EndRecord(ctypes.Structure):
    KIND: ClassVar = 18
    _fields_ = (
        ("header", Record),
        ("pid", c_uint32),
        ("kind", c_uint32),
        ("inode", c_uint64),
        ("of", c_uint64),
        ("state", c_uint32),
        ("receive_bytes", c_uint32),
    )
    pid: int
    kind: int
    inode: int
    of: int
    state: int
    receive_bytes: int


class EndKey(ctypes.Structure):
    """Key of the map `ends` in peers.bpf.c."""

    _fields_ = (
        ("local", c_uint8 * 16),
        ("remote", c_uint8 * 16),
        ("local_port", c_uint16),
        ("remote_port", c_uint16),
    )
    local: ctypes.Array[c_uint8]
    remote: ctypes.Array[c_uint8]
    local_port: int
    remote_port: int


class EndWanted(ctypes.Structure):
    """Value of the map `ends` in peers.bpf.c."""

    _fields_ = (
        ("inode", c_uint64),
        ("netns", c_uint32),
        ("pad", c_uint32),
    )
    inode: int
    netns: int


class TcpKey(ctypes.Structure):
    """Key of the map `tcp_events` in tcp.bpf.c."""

    _fields_ = (
        ("inode", c_uint64),
        ("kind", c_uint32),
        ("detail", c_uint32),
    )
    inode: int
    kind: int
    detail: int


class TcpCount(ctypes.Structure):
    """Value of the map `tcp_events` in tcp.bpf.c."""

    _fields_ = (
        ("count", c_uint64),
        ("local", c_uint8 * 16),
        ("remote", c_uint8 * 16),
        ("local_port", c_uint16),
        ("remote_port", c_uint16),
        ("family", c_uint16),
        ("pad", c_uint16),
        ("process", c_uint32),
        ("pad2", c_uint32),
    )
    count: int
    local: ctypes.Array[c_uint8]
    remote: ctypes.Array[c_uint8]
    local_port: int
    remote_port: int
    family: int
    process: int


class TroubleRecord(ctypes.Structure):
    KIND: ClassVar = 19
    _fields_ = (
        ("header", Record),
        ("time_ns", c_uint64),
        ("inode", c_uint64),
        ("count", c_uint64),
        ("kind", c_uint32),
        ("error", c_uint32),
        ("netns", c_uint32),
        ("family", c_uint16),
        ("local_port", c_uint16),
        ("remote_port", c_uint16),
        ("pad", c_uint16 * 3),
        ("local", c_uint8 * 16),
        ("remote", c_uint8 * 16),
    )
    time_ns: int
    inode: int
    count: int
    kind: int
    error: int
    netns: int
    family: int
    local_port: int
    remote_port: int
    local: ctypes.Array[c_uint8]
    remote: ctypes.Array[c_uint8]


class FlowKey(ctypes.Structure):
    """Key of the map `flows` in conntrack.bpf.c."""

    _fields_ = (
        ("source", c_uint8 * 16),
        ("target", c_uint8 * 16),
        ("source_port", c_uint16),
        ("target_port", c_uint16),
    )
    source: ctypes.Array[c_uint8]
    target: ctypes.Array[c_uint8]
    source_port: int
    target_port: int


class ConntrackRecord(ctypes.Structure):
    KIND: ClassVar = 20
    _fields_ = (
        ("header", Record),
        ("time_ns", c_uint64),
        ("kind", c_uint32),
        ("reason", c_uint32),
        ("netns", c_uint32),
        ("status", c_uint32),
        ("family", c_uint16),
        ("state", c_uint8),
        ("pad", c_uint8 * 5),
        ("original", FlowKey),
        ("reply", FlowKey),
    )
    time_ns: int
    kind: int
    reason: int
    netns: int
    status: int
    family: int
    state: int
    original: FlowKey
    reply: FlowKey


def split(data: bytes) -> Iterator[tuple[int, int]]:
    """(kind, offset) of each record in a stream; what is cut off or makes no sense ends it."""
    offset, end = 0, len(data) - ctypes.sizeof(Record)
    while offset <= end:
        header = Record.from_buffer_copy(data, offset)
        if header.length < ctypes.sizeof(Record) or offset + header.length > len(data):
            return
        yield header.kind, offset
        offset += header.length
