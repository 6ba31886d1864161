"""Packets as a capture delivers them -> TCP segments. No I/O, no checksums.

Ethernet (with VLAN tags), Linux cooked (1 and 2), BSD loopback and raw IP; IPv4 and IPv6 with extension headers. What
the network card or the kernel merged or will split (GRO, TSO) has wrong checksums, and an IP length of 0 when it is
longer than 64 KiB: then the packet's own length counts. Link types by their numbers in pcap files (tcpdump.org).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from stucktrace.collectors.addresses import endpoint

ETHERNET, LINUX_COOKED, LINUX_COOKED_2 = 1, 113, 276
NULL, LOOP = 0, 108
RAW_IP = frozenset({12, 14, 101, 228, 229})
LINK_TYPES = RAW_IP | {ETHERNET, LINUX_COOKED, LINUX_COOKED_2, NULL, LOOP}

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

_IPV4, _IPV6 = 0x0800, 0x86DD
_VLAN_TAGS = frozenset({0x8100, 0x88A8, 0x9100})
_TCP, _FRAGMENT, _AUTHENTICATION = 6, 44, 51
_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140, _FRAGMENT, _AUTHENTICATION})
_TCP_HEADER = struct.Struct(">IIBB")
"""seq, ack, data offset, flags: behind the ports."""


class Segment(NamedTuple):
    """One TCP segment. A tuple, not a dataclass: there are tens of thousands a second."""

    time_s: float
    source: str
    destination: str
    """ "address:port", as everywhere."""
    seq: int
    flags: int
    payload: bytes
    """As much of it as was captured."""
    payload_bytes_on_wire: int
    ack: int = 0
    """Holds where `flags` has ACK."""


def segment(link_type: int, packet: bytes, time_s: float, wire_bytes: int | None = None) -> Segment | None:
    """The TCP segment in a packet; None for any other packet, and for one cut before its TCP header ends.

    `wire_bytes`: the packet's length on the wire, where the capture cut it.
    """
    try:
        at = _network_header(link_type, packet)
        if at is None:
            return None
        return _from_ip(packet, at, time_s, max(wire_bytes or 0, len(packet)))
    except (struct.error, IndexError):
        return None


def _network_header(link_type: int, packet: bytes) -> int | None:
    """Where the IP header begins."""
    if link_type == ETHERNET:
        at = 12
    elif link_type == LINUX_COOKED:
        at = 14
    elif link_type in RAW_IP:
        return 0
    elif link_type in (NULL, LOOP):
        return 4
    elif link_type == LINUX_COOKED_2:
        return 20 if packet[0] << 8 | packet[1] in (_IPV4, _IPV6) else None
    else:
        return None
    kind = packet[at] << 8 | packet[at + 1]
    while kind in _VLAN_TAGS:
        at += 4
        kind = packet[at] << 8 | packet[at + 1]
    return at + 2 if kind in (_IPV4, _IPV6) else None


def _from_ip(packet: bytes, at: int, time_s: float, wire_bytes: int) -> Segment | None:
    version = packet[at] >> 4
    if version == 4:
        if packet[at + 9] != _TCP or (packet[at + 6] & 0x1F) << 8 | packet[at + 7]:
            return None
        length = packet[at + 2] << 8 | packet[at + 3]
        tcp = at + (packet[at] & 0x0F) * 4
        addresses = packet[at + 12 : at + 20]
    elif version == 6:
        length = packet[at + 4] << 8 | packet[at + 5]
        length += 40 if length else 0
        found = _behind_extensions(packet, at)
        if found is None:
            return None
        tcp = found
        addresses = packet[at + 8 : at + 40]
    else:
        return None
    seq, ack, offset, flags = _TCP_HEADER.unpack_from(packet, tcp + 4)
    begin = tcp + (offset >> 4) * 4
    end = at + length if length else wire_bytes
    if begin > end or begin < tcp + 20:
        return None
    source, destination = _ends(addresses, packet[tcp : tcp + 4])
    return Segment(time_s, source, destination, seq, flags, packet[begin:end], end - begin, ack)


def _behind_extensions(packet: bytes, at: int) -> int | None:
    """Where the TCP header of an IPv6 packet begins."""
    kind, where = packet[at + 6], at + 40
    while kind in _EXTENSIONS:
        following = packet[where]
        if kind == _FRAGMENT:
            if (packet[where + 2] << 8 | packet[where + 3]) & 0xFFF8:
                return None
            where += 8
        elif kind == _AUTHENTICATION:
            where += (packet[where + 1] + 2) * 4
        else:
            where += (packet[where + 1] + 1) * 8
        kind = following
    return where if kind == _TCP else None


@lru_cache(4096)
def _ends(addresses: bytes, ports: bytes) -> tuple[str, str]:
    half = len(addresses) // 2
    source_port, destination_port = struct.unpack(">HH", ports)
    return endpoint(addresses[:half], source_port), endpoint(addresses[half:], destination_port)
