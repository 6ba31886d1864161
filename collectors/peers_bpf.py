"""Who holds the other ends of some connections, and the same sockets, through one walk over every fd of the node.

Source: the peers iterator (bpf/peers.bpf.c), with CAP_BPF and CAP_PERFMON alone, in any network namespace. As in
peers.py a loopback connection is looked for in its own namespace only, and one behind NAT is not found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from ctypes import c_uint8, c_uint32, c_uint64
from dataclasses import dataclass, field

from stucktrace.collectors import events
from stucktrace.collectors.addresses import tcp_state
from stucktrace.collectors.events import EndKey, EndRecord, EndWanted
from stucktrace.collectors.kernel import Kernel
from stucktrace.collectors.peers import OtherEnd, Tuple4

PROGRAM = "peers"
_HELD, _PEER, _QUEUED = 1, 2, 3
MAX_HELD, MAX_ENDS = 32768, 4096
"""The sizes of the kernel's tables; what goes beyond is not asked for."""


@dataclass
class Found:
    ends: dict[int, OtherEnd] = field(default_factory=dict)
    """Inode of one of the target's TCP connections -> its other end."""
    listeners: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Inode of a connection that nobody accepted yet -> inodes of the listeners in whose queue it waits."""
    held: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Inode -> pids that hold it."""


def find(
    kernel: Kernel,
    held: Collection[int],
    wanted: Mapping[int, Mapping[int, Tuple4]],
    unaccepted: Collection[int],
) -> Found:
    """`held`: inodes whose holders are asked for. `wanted`: network namespace (its inode) -> connections. BpfError."""
    look = kernel.load("look")
    maps = {name: look.map(name) for name in ("held", "ends", "end_ports", "unaccepted")}
    used: list[tuple[str, c_uint64 | c_uint32 | EndKey]] = []

    def put(name: str, key: c_uint64 | c_uint32 | EndKey, value: c_uint8 | EndWanted) -> None:
        maps[name].update(key, value)
        used.append((name, key))

    one = c_uint8(1)
    ends = [(inode, end, namespace) for namespace, tuples in wanted.items() for inode, end in tuples.items()]
    try:
        for inode in list(held)[:MAX_HELD]:
            put("held", c_uint64(inode), one)
        for inode in list(unaccepted)[:MAX_ENDS]:
            put("unaccepted", c_uint64(inode), one)
        for inode, end, namespace in ends[:MAX_ENDS]:
            put("ends", _key(end), EndWanted(inode, namespace if end.confined else 0))
            put("end_ports", c_uint32(end.remote_port), one)
        return _read(kernel.iterate(PROGRAM, None))
    finally:
        for name, key in used:
            maps[name].delete(key)


def _key(end: Tuple4) -> EndKey:
    """As the other end has it."""
    key = EndKey(local_port=end.remote_port, remote_port=end.local_port)
    key.local[:] = list(end.remote.ljust(16, b"\0"))
    key.remote[:] = list(end.local.ljust(16, b"\0"))
    return key


def _read(data: bytes) -> Found:
    found = Found()
    pids: defaultdict[int, set[int]] = defaultdict(set)
    queues: defaultdict[int, set[int]] = defaultdict(set)
    for kind, offset in events.split(data):
        if kind != EndRecord.KIND:
            continue
        record = EndRecord.from_buffer_copy(data, offset)
        pids[record.inode].add(record.pid)
        if record.kind == _PEER:
            found.ends[record.of] = OtherEnd(record.inode, tcp_state(record.state), record.receive_bytes)
        elif record.kind == _QUEUED:
            queues[record.of].add(record.inode)
            found.ends[record.of] = OtherEnd(
                0,
                tcp_state(record.state),
                record.receive_bytes,
                in_accept_queue=True,
                listeners=tuple(sorted(queues[record.of])),
            )
    found.held = {inode: tuple(sorted(holders)) for inode, holders in pids.items()}
    found.listeners = {inode: tuple(sorted(listeners)) for inode, listeners in queues.items()}
    return found
