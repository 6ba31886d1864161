"""Asks netfilter of one network namespace: the conntrack entry of a tuple, the entries of an address, nftables rules.

Source: NETLINK_NETFILTER (ctnetlink, nf_tables), opened in the namespace in question; only questions are sent, never a
change. Needs NET_ADMIN in that namespace. `struct nfgenmsg` and every number in an attribute are in network order.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stucktrace.collectors import netlink
from stucktrace.collectors.netlink import NLA_F_NESTED, attribute, attributes

NETLINK_NETFILTER = 12
CTNETLINK, NF_TABLES = 1, 10
"""Subsystems."""
CT_GET = 1

TUPLE_ORIG, TUPLE_REPLY, STATUS, PROTOINFO, TIMEOUT, ZONE, FILTER = 1, 2, 3, 4, 7, 18, 25
TUPLE_IP, TUPLE_PROTO = 1, 2
IP_V4_SOURCE, IP_V4_TARGET, IP_V6_SOURCE, IP_V6_TARGET = 1, 2, 3, 4
PROTO_NUM, PROTO_SOURCE_PORT, PROTO_TARGET_PORT = 1, 2, 3
FILTER_ORIG_FLAGS, FILTER_REPLY_FLAGS = 1, 2
FILTER_SOURCE, FILTER_PROTOCOL = 1 << 0, 1 << 3
PROTOINFO_TCP, TCP_STATE = 1, 1
SEEN_REPLY, ASSURED, SOURCE_NAT, TARGET_NAT, OFFLOAD, HARDWARE_OFFLOAD = (
    1 << 1,
    1 << 2,
    1 << 4,
    1 << 5,
    1 << 14,
    1 << 15,
)
"""IPS_SEEN_REPLY and so on, of CTA_STATUS."""
TCP_STATES = (
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
)
"""enum tcp_conntrack."""

GENERAL = struct.Struct("!BBH")
"""struct nfgenmsg."""
REPLY_S = 1.0
"""A namespace that does not answer a question in this time is not asked further."""


COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")


@dataclass(frozen=True)
class Tuple:
    """One direction of a TCP flow; addresses are 4 or 16 bytes in network order."""

    source: bytes
    source_port: int
    target: bytes
    target_port: int

    def reversed(self) -> Tuple:
        return Tuple(self.target, self.target_port, self.source, self.source_port)


@dataclass(frozen=True)
class Entry:
    """One tracked TCP flow."""

    orig: Tuple
    """As the side that opened it sends."""
    reply: Tuple
    """As the answers come; not the reverse of `orig` where addresses are translated."""
    status: int
    zone: int = 0
    timeout_s: int | None = field(default=None, compare=False)
    """Until it is forgotten, if nothing comes; of an offloaded flow it is not counted."""
    tcp_state: str = field(default="", compare=False)
    """As conntrack has it: "ESTABLISHED", "FIN_WAIT" ..."""

    @property
    def answered(self) -> bool:
        """Packets of both directions have crossed this namespace."""
        return bool(self.status & SEEN_REPLY)

    def is_of(self, flow: Tuple) -> bool:
        """Whether this is the entry of a flow, given in either direction as either side sees it."""
        return not {self.orig, self.reply}.isdisjoint({flow, flow.reversed()})


def is_there() -> bool:
    """The kernel tracks connections at all, in this network namespace or in another one."""
    return COUNT.exists()


def open_socket() -> socket.socket:
    """A netfilter socket in the calling thread's network namespace; it stays there. OSError where there is none."""
    return netlink.open_socket(NETLINK_NETFILTER, REPLY_S)


def find(netfilter: socket.socket, flow: Tuple) -> Entry | None:
    """The entry in the default zone with this tuple as its original or its reply direction."""
    family = socket.AF_INET if len(flow.source) == 4 else socket.AF_INET6
    for _, body in ask(netfilter, CTNETLINK, CT_GET, family, encode_tuple(TUPLE_ORIG, flow), dump=False):
        return decode_entry(body)
    return None


def from_address(netfilter: socket.socket, address: bytes) -> Iterator[Entry]:
    """TCP entries of every zone in which `address` opened the flow or answers it.

    The kernel filters (5.9 and later); an older one sends its whole table, which is filtered here.
    """
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    wanted = Tuple(address, 0, bytes(len(address)), 0)
    for side, flags in ((TUPLE_ORIG, FILTER_ORIG_FLAGS), (TUPLE_REPLY, FILTER_REPLY_FLAGS)):
        question = encode_tuple(side, wanted) + attribute(
            FILTER | NLA_F_NESTED, attribute(flags, struct.pack("=I", FILTER_SOURCE | FILTER_PROTOCOL))
        )
        for _, body in ask(netfilter, CTNETLINK, CT_GET, family, question, dump=True):
            entry = decode_entry(body)
            if entry is not None and address == (entry.orig if side == TUPLE_ORIG else entry.reply).source:
                yield entry


def ask(
    netfilter: socket.socket, subsystem: int, message: int, family: int, attributes: bytes, *, dump: bool
) -> Iterator[tuple[int, bytes]]:
    """(family, attributes) of each answer. OSError as `netlink.ask` raises it."""
    body = GENERAL.pack(family, 0, 0) + attributes
    for answer in netlink.ask(netfilter, subsystem << 8 | message, body, dump=dump, within_s=REPLY_S):
        if len(answer) >= GENERAL.size:
            yield answer[0], answer[GENERAL.size :]


def number(value: bytes) -> int:
    return int.from_bytes(value, "big")


def encode_tuple(kind: int, flow: Tuple) -> bytes:
    """A TCP tuple as CTA_TUPLE_ORIG or CTA_TUPLE_REPLY."""
    v4 = len(flow.source) == 4
    ip = attribute(IP_V4_SOURCE if v4 else IP_V6_SOURCE, flow.source) + attribute(
        IP_V4_TARGET if v4 else IP_V6_TARGET, flow.target
    )
    protocol = (
        attribute(PROTO_NUM, bytes([socket.IPPROTO_TCP]))
        + attribute(PROTO_SOURCE_PORT, flow.source_port.to_bytes(2, "big"))
        + attribute(PROTO_TARGET_PORT, flow.target_port.to_bytes(2, "big"))
    )
    nested = attribute(TUPLE_IP | NLA_F_NESTED, ip) + attribute(TUPLE_PROTO | NLA_F_NESTED, protocol)
    return attribute(kind | NLA_F_NESTED, nested)


def decode_tuple(body: bytes) -> Tuple | None:
    """None for what is not TCP, or not whole."""
    parts = dict(attributes(body))
    ip, protocol = dict(attributes(parts.get(TUPLE_IP, b""))), dict(attributes(parts.get(TUPLE_PROTO, b"")))
    source = ip.get(IP_V4_SOURCE) or ip.get(IP_V6_SOURCE)
    target = ip.get(IP_V4_TARGET) or ip.get(IP_V6_TARGET)
    ports = protocol.get(PROTO_SOURCE_PORT), protocol.get(PROTO_TARGET_PORT)
    if protocol.get(PROTO_NUM) != bytes([socket.IPPROTO_TCP]) or not source or not target or None in ports:
        return None
    return Tuple(source, number(ports[0] or b""), target, number(ports[1] or b""))


def decode_entry(body: bytes) -> Entry | None:
    """None for what is not a whole TCP entry."""
    parts = dict(attributes(body))
    orig, reply = decode_tuple(parts.get(TUPLE_ORIG, b"")), decode_tuple(parts.get(TUPLE_REPLY, b""))
    if orig is None or reply is None:
        return None
    return Entry(
        orig,
        reply,
        number(parts.get(STATUS, b"")),
        number(parts.get(ZONE, b"")),
        number(parts[TIMEOUT]) if TIMEOUT in parts else None,
        _tcp_state(parts.get(PROTOINFO, b"")),
    )


def _tcp_state(body: bytes) -> str:
    tcp = dict(attributes(dict(attributes(body)).get(PROTOINFO_TCP, b"")))
    state = number(tcp[TCP_STATE]) if TCP_STATE in tcp else len(TCP_STATES)
    return TCP_STATES[state] if state < len(TCP_STATES) else ""
