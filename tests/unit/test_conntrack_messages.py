"""Events and counters of conntrack as they come from the kernel, byte by byte, and torn."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from stucktrace.collectors import conntrack_events, conntrack_stats, ctnetlink, netlink
from stucktrace.collectors.conntrack_events import DESTROY, NEW, FlowEvent
from stucktrace.collectors.ctnetlink import Tuple
from stucktrace.facts import ConntrackFact

DESTROYED = bytes.fromhex(
    "a4000000 0201 0000 00000000 a43e24e2 02000000"
    "34000180 14000180 080001007f000001 080002007f000001 1c000280 0500010006000000 06000200982c0000 0600030000090000"
    "34000280 14000180 080001007f000001 080002007f000001 1c000280 0500010006000000 0600020000090000 06000300982c0000"
    "08000c00454ac93a 080003000000020e 080007000006977f 10000480 0c000180 0500010003000000"
)
LOCAL = bytes([127, 0, 0, 1])
FLOW = Tuple(LOCAL, 38956, LOCAL, 9)


def test_an_event_as_it_comes() -> None:
    assert conntrack_events.decode(DESTROYED, 7.0) == [FlowEvent(DESTROY, FLOW, FLOW.reversed(), 7.0)]
    new = DESTROYED[:4] + b"\0" + DESTROYED[5:]
    assert [event.kind for event in conntrack_events.decode(DESTROYED + new, 7.0)] == [DESTROY, NEW]


def test_what_is_torn_or_not_conntrack_is_no_event() -> None:
    for cut in range(len(DESTROYED)):
        assert conntrack_events.decode(DESTROYED[:cut], 0.0) == []
        # A message that says that it is whole, and is not.
        short = struct.pack("=I", cut) + DESTROYED[4:cut]
        assert len(conntrack_events.decode(short, 0.0)) in ((0, 1) if cut >= 124 else (0,))
    for position in range(4, len(DESTROYED)):
        conntrack_events.decode(
            DESTROYED[:position] + bytes([DESTROYED[position] ^ 0xFF]) + DESTROYED[position + 1 :], 0.0
        )
    assert conntrack_events.decode(DESTROYED.replace(bytes.fromhex("0201"), bytes.fromhex("0202"), 1), 0.0) == []


def test_both_ends_of_a_translated_flow_are_known() -> None:
    service, server, client = bytes([10, 96, 0, 1]), bytes([10, 0, 0, 3]), bytes([10, 0, 0, 2])
    event = FlowEvent(DESTROY, Tuple(client, 4000, service, 80), Tuple(server, 8080, client, 4000), 0.0)
    assert Tuple(client, 4000, service, 80) in conntrack_events.tuples(event)
    assert Tuple(server, 8080, client, 4000) in conntrack_events.tuples(event)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    asking, answering = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    asking.settimeout(60)
    with asking, answering:
        yield asking, answering


def message(body: bytes) -> bytes:
    content = ctnetlink.GENERAL.pack(0, 0, 0) + body
    return netlink.HEADER.pack(netlink.HEADER.size + len(content), 0x105, 0, 0, 0) + content


def counter(kind: int, value: int) -> bytes:
    return netlink.attribute(kind, struct.pack("!I", value))


DONE = netlink.HEADER.pack(20, netlink.NLMSG_DONE, 0, 0, 0) + bytes(4)


def test_the_counters_of_all_cpus_are_added(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].send(message(counter(1, 250) + counter(2, 256)))
    cpu = message(
        counter(2, 1)
        + counter(4, 2)
        + counter(9, 3)
        + counter(10, 4)
        + counter(11, 5)
        + counter(12, 6)
        + counter(99, 9)
    )
    ends[1].send(cpu + cpu)
    ends[1].send(DONE)
    fact = conntrack_stats.ask(ends[0], 42)
    assert fact == ConntrackFact(42, 250, 256, found=2, invalid=4, insert_failed=6, drop=8, early_drop=10, error=12)
    assert fact.fill == 250 / 256


def test_an_older_kernel_and_garbage(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].send(message(counter(1, 250)))
    ends[1].send(message(netlink.attribute(10, b"\1") + b"\xff\xff\xff"))
    ends[1].send(DONE)
    fact = conntrack_stats.ask(ends[0], 42)
    assert (fact, fact.fill) == (ConntrackFact(42, 250, None), None)
