"""Which packets the filter lets through: the kernel itself decides, on datagrams of a UNIX socket pair."""

import socket
import struct
from dataclasses import replace

import pytest
from stucktrace.collectors import capture, packet_filter
from stucktrace.collectors.addresses import parse_endpoint
from stucktrace.collectors.packet_filter import Flow


def flow(local, remote):
    return Flow(*parse_endpoint(local), *parse_endpoint(remote))


V4 = flow("10.0.0.1:40000", "10.0.0.2:5672")
V6 = flow("[fd00::1]:40000", "[fd00::2]:5672")
FRAME = bytes.fromhex("01 0001 00000005 003c0028 00 ce")


def packet(of, payload=b"", *, options=b"", protocol=6, offset=0, hop_by_hop=False, flags=0x18):
    tcp = struct.pack("!HHIIBBHHH", of.local_port, of.remote_port, 1, 1, 8 << 4, flags, 100, 0, 0) + bytes(12) + payload
    if len(of.local) == 4:
        length = 20 + len(options)
        head = struct.pack("!BBHHHBBH", 0x40 | length // 4, 0, length + len(tcp), 0, offset, 64, protocol, 0)
        return head + of.local + of.remote + options + tcp
    between = bytes([protocol]) + bytes(7) if hop_by_hop else b""
    first = 0 if hop_by_hop else protocol
    head = struct.pack("!IHBB", 6 << 28, len(between + tcp), first, 64)
    return head + of.local + of.remote + between + tcp


def passes(flows, *packets):
    """Whether each of these comes through."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        right.setblocking(False)
        capture.follow(right, flows)
        found = []
        for data in packets:
            left.send(data)
            try:
                assert right.recv(1 << 17) == data
                found.append(True)
            except BlockingIOError:
                found.append(False)
        return found


@pytest.mark.parametrize("wanted", [V4, V6])
def test_exactly_the_flow_both_ways(wanted):
    near = [
        replace(wanted, local_port=40001),
        replace(wanted, remote_port=5673),
        replace(wanted, local=wanted.local[:-1] + b"\x09"),
        replace(wanted, remote=wanted.remote[:-1] + b"\x09"),
        replace(wanted, remote=b"\x09" + wanted.remote[1:]),
        replace(wanted, local_port=wanted.remote_port, remote_port=wanted.local_port),
    ]
    other = replace(wanted, local_port=50000)
    flows = (other, wanted, V4, V6)
    assert passes(flows, packet(wanted, FRAME), packet(wanted.reversed(), FRAME), packet(wanted)) == [True] * 3
    assert passes((wanted,), *(packet(flow, FRAME) for flow in near)) == [False] * len(near)
    assert passes((wanted,), packet(wanted, protocol=17), b"", b"\x45") == [False] * 3


def test_options_fragments_and_hop_by_hop_headers():
    assert passes((V4,), packet(V4, options=bytes(8)), packet(V4, offset=0x2000)) == [True, True]
    assert passes((V4,), packet(V4, offset=0x2001)) == [False]
    assert passes((V6,), packet(V6, hop_by_hop=True), packet(V6, hop_by_hop=True, protocol=17)) == [True, False]


@pytest.mark.parametrize("stranger", [V4, V6])
def test_of_other_connections_only_how_they_begin_and_end(stranger):
    def method(number, channel=0, of=10):
        return packet(stranger, struct.pack("!BHIHH", 1, channel, 30, of, number) + b"arguments")

    assert passes((), packet(stranger, b"AMQP\0\0\x09\x01"), *map(method, (10, 30, 31, 40, 41, 50))) == [True] * 7
    assert passes((), packet(stranger, flags=0x02), packet(stranger, flags=0x12)) == [True, True]
    with_credentials = map(method, (11, 21, 70))
    assert passes((), *with_credentials, method(10, channel=1), method(40, of=60)) == [False] * 5
    assert (
        passes((), packet(stranger, flags=0x11), packet(stranger, b"AMQ"), packet(stranger, b"GET / HTTP/1.1"))
        == [False] * 3
    )


def test_more_flows_than_the_kernel_takes_a_program_for():
    many = [replace(V4, local_port=port) for port in range(1, 2000)]
    some = many[:500]
    stranger = replace(V4, local=b"\x09\0\0\1")
    assert passes(many, packet(many[1998]), packet(V6), packet(V4, protocol=17)) == [True, True, False]
    by_ports = packet(replace(stranger, local_port=some[9].local_port)), packet(many[1998])
    assert passes(some, packet(some[0]), packet(some[499].reversed()), *by_ports) == [True, True, True, False]


def test_nothing_more():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        right.setblocking(False)
        capture.attach(right, packet_filter.NOTHING)
        left.send(packet(V4))
        with pytest.raises(BlockingIOError):
            right.recv(100)
