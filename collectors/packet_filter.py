"""Classic BPF programs for a packet socket: which packets of a network namespace the kernel hands over (pure).

Accepts TCP packets of exactly the given flows, both ways, IPv4 and IPv6. Of any other connection only what opens it
(segments with SYN) and the frames by which an AMQP 0-9-1 connection begins and ends: so one that is opened later is
noticed at once. Never frames that carry the credentials of a connection that was not asked for (connection.start-ok,
secure-ok, update-secret).

Offsets count from the network header, as a packet socket of type SOCK_DGRAM has it: whatever the device, and where VLAN
tags are stripped. Source: linux/filter.h, linux/if_packet.h; RFC 791, 8200, 9293; AMQP 0-9-1, sections 2.3.5, 4.2.2.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from stucktrace.collectors.addresses import endpoint

INSTRUCTION = struct.Struct("=HBBI")
"""struct sock_filter."""

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_LOAD_WORD_AT_X, _LOAD_BYTE_AT_X = 0x40, 0x50
_LOAD_X, _LOAD_X_HEADER_LENGTH = 0x01, 0xB1
_AND, _SHIFT_RIGHT, _ADD_X, _TO_X = 0x54, 0x74, 0x0C, 0x07
_JUMP, _IF_EQUAL, _IF_SET, _RETURN = 0x05, 0x15, 0x45, 0x06

_ANCILLARY = 0xFFFFF000
"""SKF_AD_OFF."""
_PACKET_TYPE, _DEVICE_TYPE = _ANCILLARY + 4, _ANCILLARY + 28
_OUTGOING, _LOOPBACK = 4, 772
"""PACKET_OUTGOING, ARPHRD_LOOPBACK."""
_TCP, _HOP_BY_HOP = 6, 0
_SYN = 0x02
_WHOLE = 0x7FFFFFFF

_PROTOCOL_HEADER = int.from_bytes(b"AMQP", "big")
_METHOD_OF_CHANNEL_0 = 0x01000000
"""Type and channel of the frame, and the first byte of its size."""
_CONNECTION_METHODS = tuple(10 << 16 | method for method in (10, 30, 31, 40, 41, 50))
"""start, tune, tune-ok, open, open-ok, close."""


@dataclass(frozen=True)
class Flow:
    """A TCP connection as its packets bear it; addresses are 4 or 16 bytes in network order."""

    local: bytes
    local_port: int
    remote: bytes
    remote_port: int

    def reversed(self) -> Flow:
        return Flow(self.remote, self.remote_port, self.local, self.local_port)

    def names(self) -> tuple[str, str]:
        """Both ends as "address:port"."""
        return endpoint(self.local, self.local_port), endpoint(self.remote, self.remote_port)


Instruction = tuple[int, int, int, int]
"""(code, instructions skipped if true, if false, operand)."""
NOTHING = ((_RETURN, 0, 0, 0),)


def programs(flows: Collection[Flow]) -> Iterator[tuple[Instruction, ...]]:
    """What accepts these flows: first the program for exactly them, then for their ports, then for all TCP: the kernel
    takes 4096 instructions, and of a socket's programs together as much as net.core.optmem_max (20 KiB before 6.7)."""
    v4, v6 = ([flow for flow in flows if len(flow.local) == size] for size in (4, 16))
    yield _assemble([line for flow in v4 for line in _exactly(flow)], [line for flow in v6 for line in _exactly(flow)])
    yield _assemble([*_ports(v4)], [*_ports(v6)])
    yield _assemble([(_RETURN, 0, 0, _WHOLE)], [(_RETURN, 0, 0, _WHOLE)])


def _assemble(v4: Sequence[Instruction], v6: Sequence[Instruction]) -> tuple[Instruction, ...]:
    beginnings = tuple(_beginnings())
    ipv4 = (
        (_LOAD_BYTE, 0, 0, 9),
        (_IF_EQUAL, 1, 0, _TCP),
        (_RETURN, 0, 0, 0),
        # Only a first fragment has ports.
        (_LOAD_HALF, 0, 0, 6),
        (_IF_SET, 0, 1, 0x1FFF),
        (_RETURN, 0, 0, 0),
        (_LOAD_X_HEADER_LENGTH, 0, 0, 0),
        *v4,
        *beginnings,
    )
    ipv6 = (
        (_LOAD_BYTE, 0, 0, 6),
        (_IF_EQUAL, 4, 0, _TCP),
        # A hop-by-hop header stands before segments over 64 KiB.
        (_IF_EQUAL, 0, 2, _HOP_BY_HOP),
        (_LOAD_BYTE, 0, 0, 40),
        (_IF_EQUAL, 3, 0, _TCP),
        (_RETURN, 0, 0, 0),
        (_LOAD_X, 0, 0, 40),
        (_JUMP, 0, 0, 1),
        (_LOAD_X, 0, 0, 48),
        *v6,
        *beginnings,
    )
    return (
        # The loopback device shows each packet as it leaves and again as it arrives.
        (_LOAD_WORD, 0, 0, _PACKET_TYPE),
        (_IF_EQUAL, 0, 3, _OUTGOING),
        (_LOAD_HALF, 0, 0, _DEVICE_TYPE),
        (_IF_EQUAL, 0, 1, _LOOPBACK),
        (_RETURN, 0, 0, 0),
        (_LOAD_BYTE, 0, 0, 0),
        (_SHIFT_RIGHT, 0, 0, 4),
        (_IF_EQUAL, 2, 0, 4),
        (_IF_EQUAL, 2, 0, 6),
        (_RETURN, 0, 0, 0),
        (_JUMP, 0, 0, 1),
        (_JUMP, 0, 0, len(ipv4)),
        *ipv4,
        *ipv6,
    )


def _exactly(flow: Flow) -> Iterator[Instruction]:
    """Accepts a packet of the flow in either direction, and falls through on any other. X is the TCP header's place."""
    for way in (flow, flow.reversed()):
        yield (_LOAD_WORD_AT_X, 0, 0, 0)
        compared = [*_compared(way)]
        yield (_IF_EQUAL, 0, len(compared) + 1, way.local_port << 16 | way.remote_port)
        yield from compared
        yield (_RETURN, 0, 0, _WHOLE)


def _compared(way: Flow) -> Iterator[Instruction]:
    addresses = way.local + way.remote
    at = 12 if len(way.local) == 4 else 8
    words = range(0, len(addresses), 4)
    for place in words:
        yield (_LOAD_WORD, 0, 0, at + place)
        # To the end of the comparison, and over its return.
        behind = 2 * (len(words) - place // 4 - 1) + 1
        yield (_IF_EQUAL, 0, behind, int.from_bytes(addresses[place : place + 4], "big"))


def _ports(flows: Collection[Flow]) -> Iterator[Instruction]:
    """Accepts what has both ports of one of them."""
    yield (_LOAD_WORD_AT_X, 0, 0, 0)
    for flow in flows:
        for way in (flow, flow.reversed()):
            yield (_IF_EQUAL, 0, 1, way.local_port << 16 | way.remote_port)
            yield (_RETURN, 0, 0, _WHOLE)


def _beginnings() -> Iterator[Instruction]:
    """Accepts a segment with SYN, and one that begins with an AMQP protocol header or with a frame of one of
    _CONNECTION_METHODS."""
    yield (_LOAD_BYTE_AT_X, 0, 0, 13)
    yield (_IF_SET, 0, 1, _SYN)
    yield (_RETURN, 0, 0, _WHOLE)
    yield (_LOAD_BYTE_AT_X, 0, 0, 12)
    yield (_AND, 0, 0, 0xF0)
    yield (_SHIFT_RIGHT, 0, 0, 2)
    yield (_ADD_X, 0, 0, 0)
    yield (_TO_X, 0, 0, 0)
    # A load behind the packet's end ends the program with 0.
    yield (_LOAD_WORD_AT_X, 0, 0, 0)
    methods = len(_CONNECTION_METHODS)
    yield (_IF_EQUAL, methods + 4, 0, _PROTOCOL_HEADER)
    yield (_AND, 0, 0, 0xFFFFFF00)
    yield (_IF_EQUAL, 0, methods + 1, _METHOD_OF_CHANNEL_0)
    yield (_LOAD_WORD_AT_X, 0, 0, 7)
    for number, method in enumerate(_CONNECTION_METHODS):
        yield (_IF_EQUAL, methods - number, 0, method)
    yield (_RETURN, 0, 0, 0)
    yield (_RETURN, 0, 0, _WHOLE)


def encode(instructions: Collection[Instruction]) -> bytes:
    """As the kernel reads it."""
    return b"".join(INSTRUCTION.pack(*instruction) for instruction in instructions)
