"""The sockets of one process through the sockets iterator (bpf/sockets.bpf.c): in any namespace, touching nothing.

It needs CAP_BPF and CAP_PERFMON alone. Ages come in the kernel's ticks; how many make a second is found out by
comparing the two clocks that each record carries.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Collection

from stucktrace.collectors import events
from stucktrace.collectors.addresses import endpoint, remote_endpoint, tcp_state, unix_name
from stucktrace.collectors.events import SocketRecord, UnixSocketRecord
from stucktrace.collectors.peers import CONNECTED, OtherEnd
from stucktrace.collectors.sock_diag import LISTEN, SYN_SENT, TIMERS, UNIX_TYPES, Draft, unix_state
from stucktrace.collectors.socket_tables import Table
from stucktrace.facts import Keepalive

PROGRAM = "sockets"
SOURCE = "iter/task_file"
AF_INET, AF_INET6, AF_NETLINK = 2, 10, 16
TCP, UDP, RAW = 6, 17, 3
CLOSE = 7
TICK_RATES = (100, 250, 300, 1000)
"""Every CONFIG_HZ that the architectures' menus offer."""
_BOOT_TICKS_S = 300
"""The tick counter begins at -300 s in 32 bits, so that its overflow is tested early."""


Iterate = Callable[[str, int], bytes]
"""`Kernel.iterate`, or a memory of it."""
Brief = Callable[[bytes], tuple[tuple[int, int], ...]]


def read(iterate: Iterate, pid: int, relatives: Collection[int], brief: Brief | None = None) -> Table:
    """BpfError when the iterator cannot run. The options are there for every socket, the ends of UNIX sockets too.

    `brief`: `in_brief`, or a memory of it.
    """
    brief = brief or in_brief
    fds: defaultdict[int, list[int]] = defaultdict(list)
    drafts: dict[int, Draft] = {}
    unix_ends: dict[int, OtherEnd] = {}
    served: set[int] = set()
    rate = 0
    data = iterate(PROGRAM, pid)
    for kind, offset in events.split(data):
        if kind == SocketRecord.KIND:
            record = SocketRecord.from_buffer_copy(data, offset)
            inode = record.inode
            if inode not in fds:
                rate = rate or tick_rate(record.now_ns, record.now_jiffies)
                drafts[inode] = _inet(record, rate)
                if record.state == LISTEN and record.protocol == TCP:
                    served.add(record.local_port)
        elif kind == UnixSocketRecord.KIND:
            unix = UnixSocketRecord.from_buffer_copy(data, offset)
            inode = unix.inode
            record = unix  # type: ignore[assignment]
            if inode not in fds:
                drafts[inode] = _unix(unix)
                if unix.has_peer:
                    name = unix_name(unix.peer_name_raw())
                    unread = unix.peer_receive_bytes if unix.peer_inode else None
                    unix_ends[inode] = OtherEnd(unix.peer_inode, CONNECTED, unread, name=name)
        else:
            continue
        fds[inode].append(record.fd)
    held: defaultdict[int, list[int]] = defaultdict(list)
    for relative in relatives:
        for inode, port in brief(iterate(PROGRAM, relative)):
            if port:
                served.add(port)
            if inode in fds:
                held[inode].append(relative)
    return Table(
        SOURCE,
        {inode: tuple(sorted(numbers)) for inode, numbers in fds.items()},
        drafts,
        unix_ends,
        served,
        {inode: tuple(dict.fromkeys(pids)) for inode, pids in held.items()},
        options_known=True,
    )


def in_brief(data: bytes) -> tuple[tuple[int, int], ...]:
    """(inode, port it listens on or 0) of each record."""
    found = []
    inode_at, port_at = SocketRecord.inode.offset, SocketRecord.local_port.offset  # type: ignore[attr-defined]
    state_at, protocol_at = SocketRecord.state.offset, SocketRecord.protocol.offset  # type: ignore[attr-defined]
    for kind, offset in events.split(data):
        (inode,) = struct.unpack_from("=Q", data, offset + inode_at)
        port = 0
        if kind == SocketRecord.KIND and data[offset + state_at] == LISTEN:
            (protocol,) = struct.unpack_from("=H", data, offset + protocol_at)
            if protocol == TCP:
                (port,) = struct.unpack_from("=H", data, offset + port_at)
        found.append((inode, port))
    return tuple(found)


def tick_rate(now_ns: int, now_ticks: int) -> int:
    """Ticks a second: the rate at which the tick counter would stand where it does after this time since boot."""
    since_s = now_ns / 1e9 - _BOOT_TICKS_S

    def error_s(rate: int) -> float:
        return abs((now_ticks - (1 << 32)) / rate - since_s)

    return min(TICK_RATES, key=error_s)


def _inet(record: SocketRecord, rate: int) -> Draft:
    family = {AF_INET: "inet", AF_INET6: "inet6"}.get(record.family, "other")
    protocol = _protocol(record)
    state = record.state
    draft: Draft = {"family": family, "protocol": protocol, "state": "", "local": "", "remote": ""}
    if record.soft_error:
        draft["soft_error"] = record.soft_error
    if family == "other":
        return draft
    size = 4 if family == "inet" else 16
    if record.local_port or protocol == "raw":
        draft["local"] = endpoint(bytes(record.local)[:size], record.local_port)
    if state != LISTEN:
        draft["remote"] = remote_endpoint(bytes(record.remote)[:size], record.remote_port)
    draft["receive_bytes"] = record.receive_bytes
    if protocol != "tcp":
        draft["send_bytes"] = record.send_bytes
        return draft
    draft["state"] = tcp_state(state)
    if state == LISTEN:
        draft["backlog"] = record.backlog
    elif state != CLOSE:
        draft["send_bytes"] = record.send_bytes
        _add_tcp(draft, record, rate)
    return draft


def _protocol(record: SocketRecord) -> str:
    if record.family in (AF_INET, AF_INET6):
        if record.type == RAW:
            return "raw"
        return {TCP: "tcp", UDP: "udp"}.get(record.protocol, "other")
    return "netlink" if record.family == AF_NETLINK else "other"


def _add_tcp(draft: Draft, record: SocketRecord, rate: int) -> None:
    timer = TIMERS[record.timer]
    draft["timer"] = timer
    if timer:
        draft["timer_expires_s"] = max(0, record.expires_jiffies) / rate
    draft["unacked"] = record.packets_out
    draft["retransmits"] = record.retransmits
    draft["backoff"] = record.backoff
    draft["rto_s"] = record.rto_jiffies / rate
    if record.state != SYN_SENT:
        # Before the handshake is done the kernel's time stamps are still zero.
        draft["last_send_s"] = record.sent_jiffies / rate
        draft["last_receive_s"] = record.received_jiffies / rate
        draft["last_ack_s"] = record.acked_jiffies / rate
    draft["send_window_bytes"] = record.send_window_bytes
    draft["bytes_sent"] = record.bytes_sent
    draft["bytes_acked"] = record.bytes_acked
    draft["bytes_received"] = record.bytes_received
    draft["user_timeout_s"] = record.user_timeout_ms / 1000
    draft["delayed_ack_pending"] = bool(record.ack_pending)
    draft["syn_retries"] = record.syn_retries or record.netns_syn_retries
    draft["retries2"] = record.netns_retries2
    draft["keepalive"] = Keepalive(
        on=bool(record.keepalive),
        idle_s=(record.keepalive_idle_jiffies or record.netns_keepalive_idle_jiffies) / rate,
        interval_s=(record.keepalive_interval_jiffies or record.netns_keepalive_interval_jiffies) / rate,
        count=record.keepalive_count or record.netns_keepalive_count,
        probes_unanswered=record.probes_out if timer == "keepalive" else 0 if timer == "" else None,
    )


def _unix(record: UnixSocketRecord) -> Draft:
    return {
        "family": "unix",
        "protocol": UNIX_TYPES.get(record.type, "other"),
        "state": unix_state(record.state, bool(record.has_peer)),
        "local": unix_name(record.name_raw()),
        "receive_bytes": record.receive_bytes,
        "backlog" if record.state == LISTEN else "send_bytes": record.backlog or record.send_bytes,
    }
