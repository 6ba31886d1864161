"""What ends an answer, and that no message, however broken, holds the reader up or fails in it."""

from __future__ import annotations

import errno
import itertools
import socket
import struct
from collections.abc import Iterator

import pytest
from stucktrace.collectors import netlink

KIND = 20
Ends = tuple[socket.socket, socket.socket]


def message(kind: int, body: bytes, length: int | None = None) -> bytes:
    size = netlink.HEADER.size + len(body) if length is None else length
    return netlink.HEADER.pack(size, kind, 0, 0, 0) + body + bytes(-len(body) % 4)


DONE = message(netlink.NLMSG_DONE, bytes(4))


@pytest.fixture
def ends() -> Iterator[Ends]:
    """What asks, and where the test answers: messages stay apart, as in netlink."""
    asking, answering = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    asking.settimeout(60)
    with asking, answering:
        yield asking, answering


def answers(ends: Ends, *data: bytes, within_s: float = 60, dump: bool = True) -> list[bytes]:
    for one in data:
        ends[1].send(one)
    return list(netlink.ask(ends[0], KIND, b"what", dump=dump, within_s=within_s))


def test_a_dump_over_several_datagrams_until_it_is_done(ends: Ends) -> None:
    assert answers(ends, message(KIND, b"one") + message(KIND, b"four"), message(KIND, b""), DONE) == [
        b"one",
        b"four",
        b"",
    ]
    assert ends[1].recv(100) == netlink.HEADER.pack(20, KIND, 0x301, 0, 0) + b"what"


def test_one_answer_without_a_dump(ends: Ends) -> None:
    assert answers(ends, message(KIND, b"one"), dump=False) == [b"one"]
    assert ends[1].recv(100) == netlink.HEADER.pack(20, KIND, 1, 0, 0) + b"what"


@pytest.mark.parametrize("kind", [netlink.NLMSG_ERROR, netlink.NLMSG_DONE])
def test_an_error_ends_it(ends: Ends, kind: int) -> None:
    """A dump that failed half way must not pass for a whole one."""
    with pytest.raises(PermissionError):
        answers(ends, message(KIND, b"one"), message(kind, struct.pack("=i", -errno.EPERM)))


@pytest.mark.parametrize("body", [struct.pack("=i", -errno.ENOENT), bytes(4), b"", b"\xff"])
def test_no_such_thing_and_no_error_are_an_empty_answer(ends: Ends, body: bytes) -> None:
    assert answers(ends, message(netlink.NLMSG_ERROR, body)) == []


def test_a_kernel_that_never_comes_to_an_end(ends: Ends) -> None:
    with pytest.raises(TimeoutError):
        answers(ends, *[message(KIND, b"more")] * 3, within_s=0)


@pytest.mark.parametrize("length", [0, 1, 15, 1 << 16, 0xFFFFFFFF])
def test_a_length_that_cannot_be_ends_the_datagram(ends: Ends, length: int) -> None:
    assert answers(ends, message(KIND, b"one") + message(KIND, b"", length), DONE) == [b"one"]


def test_a_torn_message_is_none() -> None:
    whole = message(KIND, b"1234") + message(KIND, b"5678")
    assert [len(list(netlink.messages(whole[:cut]))) for cut in (0, 15, 19, 20, 39, 40)] == [0, 0, 0, 1, 1, 2]


def test_attributes_of_garbage_come_to_an_end() -> None:
    for length, kind, rest in itertools.product((0, 3, 4, 7, 8, 9, 0xFFFF), (0, 0xFFFF), range(9)):
        list(netlink.attributes(netlink.ATTRIBUTE.pack(length, kind) + bytes(rest)))
    assert list(netlink.attributes(netlink.attribute(0x8001, b"a") + netlink.attribute(2, b""))) == [
        (1, b"a"),
        (2, b""),
    ]
