"""What is sent to netfilter and what its answers mean, byte by byte; and when a rule certainly drops."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from stucktrace.collectors import conntrack, ctnetlink, netlink, nft_rules
from stucktrace.collectors.ctnetlink import Entry, Tuple
from stucktrace.collectors.netlink import attribute
from stucktrace.facts import SocketFact

CLIENT, SERVER = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 3])
FLOW = Tuple(CLIENT, 40000, SERVER, 5672)
ENCODED = bytes.fromhex(
    "3400 0180"  # CTA_TUPLE_ORIG, nested, 52 bytes
    "1400 0180"  # CTA_TUPLE_IP
    "0800 0100 0a000002"
    "0800 0200 0a000003"
    "1c00 0280"  # CTA_TUPLE_PROTO
    "0500 0100 06 000000"  # TCP, padded
    "0600 0200 9c40 0000"
    "0600 0300 1628 0000"
)


def entry(orig: Tuple = FLOW, reply: Tuple | None = None, status: int = 0x8E, zone: int = 0) -> Entry:
    return Entry(orig, reply or orig.reversed(), status, zone)


def test_a_tuple_as_it_goes_to_the_kernel() -> None:
    assert ctnetlink.encode_tuple(ctnetlink.TUPLE_ORIG, FLOW) == ENCODED


def test_a_tuple_of_ipv6() -> None:
    flow = Tuple(socket.inet_pton(socket.AF_INET6, "fd00::2"), 40000, socket.inet_pton(socket.AF_INET6, "fd00::3"), 80)
    encoded = ctnetlink.encode_tuple(ctnetlink.TUPLE_REPLY, flow)
    ((kind, body),) = netlink.attributes(encoded)
    assert kind == ctnetlink.TUPLE_REPLY
    assert len(encoded) == 76
    assert ctnetlink.decode_tuple(body) == flow


def test_an_entry_as_it_comes() -> None:
    body = (
        ENCODED
        + ctnetlink.encode_tuple(ctnetlink.TUPLE_REPLY, FLOW.reversed())
        + attribute(ctnetlink.STATUS, struct.pack("!I", 0x8E))
        + attribute(7, struct.pack("!I", 431999))
        + attribute(ctnetlink.ZONE, struct.pack("!H", 7))
    )
    found = ctnetlink.decode_entry(body)
    assert found == entry(zone=7)
    assert found is not None and found.answered


@pytest.mark.parametrize("length", range(0, 102, 3))
def test_a_torn_answer_is_no_entry(length: int) -> None:
    body = ENCODED + ctnetlink.encode_tuple(ctnetlink.TUPLE_REPLY, FLOW.reversed())
    found = ctnetlink.decode_entry(body[:length])
    assert found is None


def test_what_is_not_tcp_is_no_entry() -> None:
    udp = ENCODED.replace(bytes.fromhex("0500010006"), bytes.fromhex("0500010011"))
    assert ctnetlink.decode_entry(udp + ctnetlink.encode_tuple(ctnetlink.TUPLE_REPLY, FLOW.reversed())) is None


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends that keep messages apart, as netlink does: what is asked, and where the test answers."""
    asking, answering = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with asking, answering:
        yield asking, answering


def message(kind: int, body: bytes) -> bytes:
    return netlink.HEADER.pack(netlink.HEADER.size + len(body), kind, 0, 0, 0) + body


def answer(body: bytes) -> bytes:
    return message(ctnetlink.CTNETLINK << 8, ctnetlink.GENERAL.pack(socket.AF_INET, 0, 0) + body)


WHOLE = ENCODED + ctnetlink.encode_tuple(ctnetlink.TUPLE_REPLY, FLOW.reversed()) + attribute(3, struct.pack("!I", 0x8E))


Ends = tuple[socket.socket, socket.socket]


def test_the_question(ends: Ends) -> None:
    ends[1].send(answer(WHOLE))
    assert ctnetlink.find(ends[0], FLOW) == entry()
    header = "48000000 0101 0100 00000000 00000000"  # 72 bytes, CT_GET of ctnetlink, NLM_F_REQUEST
    assert ends[1].recv(4096) == bytes.fromhex(header + "02000000") + ENCODED


def test_no_such_entry(ends: Ends) -> None:
    ends[1].send(message(netlink.NLMSG_ERROR, struct.pack("=i", -errno.ENOENT)))
    assert ctnetlink.find(ends[0], FLOW) is None


def test_not_permitted(ends: Ends) -> None:
    ends[1].send(message(netlink.NLMSG_ERROR, struct.pack("=i", -errno.EPERM)))
    with pytest.raises(PermissionError):
        ctnetlink.find(ends[0], FLOW)


def test_a_dump_that_an_old_kernel_did_not_filter(ends: Ends) -> None:
    foreign = Tuple(bytes([10, 9, 9, 9]), 1, SERVER, 5672)
    other = ctnetlink.encode_tuple(1, foreign) + ctnetlink.encode_tuple(2, foreign.reversed())
    done = message(netlink.NLMSG_DONE, bytes(4))
    for data in (answer(WHOLE) + answer(other), done, answer(other), done):
        ends[1].send(data)
    assert list(ctnetlink.from_address(ends[0], CLIENT)) == [entry()]


def test_an_entry_is_found_by_either_side_of_a_translation() -> None:
    """A service's address: the client talks to 10.96.0.1, the server sees the node's address."""
    service, node = bytes([10, 96, 0, 1]), bytes([10, 0, 0, 1])
    translated = entry(Tuple(CLIENT, 40000, service, 5672), Tuple(SERVER, 5672, node, 61000))
    assert translated.is_of(Tuple(CLIENT, 40000, service, 5672))
    assert translated.is_of(Tuple(SERVER, 5672, node, 61000))
    assert not translated.is_of(FLOW)


def test_behind_a_translation_the_flow_has_other_addresses() -> None:
    """Masqueraded on the way out; and seen from the side that was reached through a translation."""
    node = bytes([10, 0, 0, 1])
    out = entry(FLOW, Tuple(SERVER, 5672, node, 61000))
    assert conntrack.as_sent_on(FLOW, out) == Tuple(node, 61000, SERVER, 5672)
    assert conntrack.as_sent_on(FLOW, entry()) == FLOW
    service = bytes([10, 96, 0, 1])
    inward = entry(Tuple(CLIENT, 40000, service, 80), Tuple(SERVER, 5672, CLIENT, 40000))
    assert conntrack.as_sent_on(FLOW.reversed(), inward) == Tuple(service, 80, CLIENT, 40000)


@pytest.mark.parametrize(
    ("orig", "alike"),
    [
        (Tuple(CLIENT, 40001, SERVER, 5672), True),
        (Tuple(CLIENT, 40001, SERVER, 6379), False),
        (Tuple(CLIENT, 40001, bytes([10, 0, 0, 4]), 5672), False),
        (Tuple(bytes([10, 0, 0, 5]), 40000, SERVER, 5672), False),
    ],
)
def test_which_other_flow_shows_that_this_one_was_tracked(orig: Tuple, alike: bool) -> None:
    assert conntrack.is_alike(entry(orig), FLOW) is alike


def test_an_inbound_flow_is_like_another_one_of_the_same_client_and_port() -> None:
    inbound = Tuple(SERVER, 5672, CLIENT, 40000)
    assert conntrack.is_alike(entry(Tuple(CLIENT, 40001, SERVER, 5672)), inbound)
    assert not conntrack.is_alike(entry(Tuple(CLIENT, 40001, SERVER, 6379)), inbound)


@pytest.mark.parametrize(
    ("changes", "suspect"),
    [
        ({}, True),
        ({"unacked": 0}, False),
        ({"retransmits": 0}, False),
        ({"timer": "persist"}, False),
        ({"fds": (8,)}, False),
        ({"protocol": "udp"}, False),
    ],
)
def test_who_is_asked_about(changes: dict[str, object], suspect: bool) -> None:
    fields: dict[str, object] = {
        "fds": (7,), "inode": 1, "family": "inet", "protocol": "tcp", "state": "ESTABLISHED", "unacked": 1, "retransmits": 2,
        "timer": "retransmit", **changes,
    }  # fmt: skip
    assert conntrack.is_suspect(SocketFact(**fields), {7}) is suspect  # type: ignore[arg-type]


def expression(name: str, *parts: bytes) -> bytes:
    return attribute(1, attribute(1, name.encode() + b"\0") + attribute(2, b"".join(parts)))


def load(key: int = 0) -> bytes:
    return expression("ct", attribute(1, struct.pack("!I", 1)), attribute(2, struct.pack("!I", key)))


def masked(bits: int) -> bytes:
    return expression("bitwise", attribute(4, attribute(1, struct.pack("=I", bits))))


def compared(operator: int = 1) -> bytes:
    return expression("cmp", attribute(2, struct.pack("!I", operator)), attribute(3, attribute(1, bytes(4))))


def verdict(code: int) -> bytes:
    return expression("immediate", attribute(2, attribute(2, attribute(1, struct.pack("!I", code)))))


DROP, ACCEPT = verdict(0), verdict(1)
ESTABLISHED = load() + masked(6) + compared() + ACCEPT
DROPS_INVALID = load() + masked(1) + compared() + DROP
META = expression("meta", attribute(1, struct.pack("!I", 1)))


@pytest.mark.parametrize(
    ("rules", "certain"),
    [
        ([DROPS_INVALID], True),
        ([ESTABLISHED, DROPS_INVALID], True),
        ([load() + masked(1) + compared() + expression("counter") + DROP], True),
        ([expression("counter"), DROPS_INVALID], True),
        ([], False),
        ([ESTABLISHED], False),
        ([ACCEPT, DROPS_INVALID], False),
        ([META + ACCEPT, DROPS_INVALID], False),
        ([META + expression("lookup") + ACCEPT, DROPS_INVALID], False),
        ([expression("lookup"), DROPS_INVALID], False),
        ([META + expression("cmp") + load() + masked(1) + compared() + DROP], False),
        ([load() + masked(1) + compared() + expression("limit") + DROP], False),
        ([load() + masked(1) + compared(0) + DROP], False),
        ([load(3) + masked(1) + compared() + DROP], False),
        ([load() + masked(1) + compared() + ACCEPT, DROPS_INVALID], False),
        ([load() + masked(8) + compared() + DROP], False),
    ],
)
def test_when_an_invalid_packet_is_certainly_dropped(rules: list[bytes], certain: bool) -> None:
    assert nft_rules.reaches_drop([nft_rules.decode_rule(rule) for rule in rules]) is certain
