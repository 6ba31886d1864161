"""Packets -> segments, beside scapy's own encoders."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import CookedLinux, Dot1Q, Ether
from scapy.packet import Packet
from stucktrace.collectors.packets import ACK, LINK_TYPES, PSH, segment

DATA = b"\x08\x00\x00\x00\x00\x00\x00\xce"
MAC = "02:00:00:00:00:01"
ETHER = Ether(src=MAC, dst=MAC)
"""Without addresses scapy would ask the network for them."""
V4 = IP(src="10.0.0.1", dst="10.0.0.2")
V6 = IPv6(src="fe80::1", dst="fe80::2")
MAPPED = IPv6(src="::ffff:10.0.0.1", dst="::ffff:10.0.0.2")
OVER = TCP(sport=40000, dport=5672, seq=7, ack=9, flags="PA", options=[("Timestamp", (1, 2))])

SHAPES: dict[str, tuple[int, Packet]] = {
    "ethernet": (1, ETHER / V4),
    "padded": (1, ETHER / V4),
    "vlan": (1, ETHER / Dot1Q(vlan=7) / V4),
    "vlan in vlan": (1, Ether(src=MAC, dst=MAC, type=0x88A8) / Dot1Q(vlan=7) / Dot1Q(vlan=9) / V4),
    "cooked": (113, CookedLinux(proto=0x0800) / V4),
    "raw": (101, V4),
    "ip options": (101, IP(src="10.0.0.1", dst="10.0.0.2", options=[b"\x01" * 4])),
    "ipv6": (1, ETHER / V6),
    "ipv6 extensions": (1, ETHER / V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()),
    "ipv6 first fragment": (229, V6 / IPv6ExtHdrFragment(offset=0)),
    "mapped": (12, MAPPED),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes(shape: str) -> None:
    link_type, below = SHAPES[shape]
    raw = bytes(below / OVER / DATA) + (bytes(20) if shape == "padded" else b"")
    found = segment(link_type, raw, 1.5)
    assert found is not None
    ends = ("[fe80::1]:40000", "[fe80::2]:5672") if "ipv6" in shape else ("10.0.0.1:40000", "10.0.0.2:5672")
    assert (found.source, found.destination) == ends
    assert (found.seq, found.ack, found.flags, found.time_s) == (7, 9, ACK | PSH, 1.5)
    assert (found.payload, found.payload_bytes_on_wire) == (DATA, len(DATA))


def test_the_other_loopbacks_and_cooked_2() -> None:
    raw = bytes(V4 / OVER / DATA)
    cooked_2 = struct.pack(">HHIHBB8s", 0x0800, 0, 1, 772, 0, 6, bytes(8))
    for link_type, head in ((0, struct.pack("=I", 2)), (108, struct.pack(">I", 2)), (276, cooked_2)):
        found = segment(link_type, head + raw, 0.0)
        assert found is not None and found.payload == DATA


def test_merged_packets_whose_ip_length_is_zero() -> None:
    for below in (V4, V6):
        raw = bytearray(bytes(below / OVER / (b"x" * 9000)))
        at = 2 if below is V4 else 4
        raw[at : at + 2] = b"\0\0"
        found = segment(101, bytes(raw), 0.0)
        assert found is not None and len(found.payload) == found.payload_bytes_on_wire == 9000


def test_what_the_snap_length_cut_is_known() -> None:
    raw = bytes(ETHER / V4 / OVER / (b"x" * 1000))
    found = segment(1, raw[:200], 0.0, len(raw))
    assert found is not None and found.payload_bytes_on_wire == 1000
    assert len(found.payload) == 200 - 14 - 20 - 32
    for size in range(14 + 20 + 14):
        assert segment(1, raw[:size], 0.0, len(raw)) is None


def test_what_is_no_segment() -> None:
    assert segment(1, bytes(ETHER / V4 / UDP() / DATA), 0.0) is None
    assert segment(1, bytes(ETHER / IP(frag=5) / DATA), 0.0) is None
    assert segment(1, bytes(Ether(src=MAC, dst=MAC, type=0x0806) / DATA), 0.0) is None
    assert segment(147, bytes(V4 / OVER), 0.0) is None


RAW = [(link_type, bytes(below / OVER / DATA)) for link_type, below in SHAPES.values()]


@given(st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_hostile_packets(seed: int) -> None:
    generator = random.Random(seed)
    link_type, whole = generator.choice(RAW)
    raw = bytearray(whole)
    for _ in range(4):
        raw[generator.randrange(len(raw))] = generator.randrange(256)
    found = segment(
        generator.choice([link_type, *sorted(LINK_TYPES)]), bytes(raw[: generator.randint(0, len(raw))]), 0.0
    )
    assert found is None or len(found.payload) <= found.payload_bytes_on_wire
