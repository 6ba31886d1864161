"""Segments in any order -> bytes in theirs; what is missing is told, and nothing is kept for ever."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from stucktrace.collectors.packets import ACK, FIN, SYN, Segment
from stucktrace.collectors.tcp_streams import HELD_BYTES, LATE_S, Piece, Stream

WRAP = 1 << 32


def part(seq: int, data: bytes, time_s: float = 0.0, wire: int | None = None, flags: int = ACK) -> Segment:
    return Segment(time_s, "a:1", "b:2", seq % WRAP, flags, data, len(data) if wire is None else wire)


def joined(pieces: list[Piece]) -> bytes:
    return b"".join(piece.data if not piece.gap_bytes else b"?" * piece.gap_bytes for piece in pieces)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32), st.integers(1, 5000))
@settings(max_examples=100, deadline=None)
def test_order_duplication_overlap_and_wrap(first: int, seed: int, size: int) -> None:
    generator = random.Random(seed)
    data = generator.randbytes(size)
    parts = []
    at = 0
    while at < size:
        step = generator.randint(1, 300)
        begin = max(0, at - generator.choice([0, 0, 0, 50]))  # some send again what was sent
        parts.append(part(first + 1 + begin, data[begin : at + step]))
        at += step
    parts += generator.choices(parts, k=5)
    generator.shuffle(parts)
    stream = Stream()
    pieces = stream.feed(part(first, b"", flags=SYN))
    for each in parts:
        pieces += stream.feed(each)
    assert joined(pieces) == data and stream.from_start and not stream._held and not stream._held_bytes


def test_a_hole_is_told_once_the_receiver_has_its_bytes() -> None:
    stream = Stream()
    assert joined(stream.feed(part(100, b"abc"))) == b"abc"
    assert stream.feed(part(105, b"fg", 1.0)) == []
    assert stream.acknowledged(107, 1.1) == []
    assert stream.settle(1.2) == []  # the capture may bring it late
    assert stream.settle(1.2 + LATE_S) == [Piece(1.0, b"", 2), Piece(1.0, b"fg")]
    assert joined(stream.feed(part(107, b"h", 3.0))) == b"h"


def test_a_hole_at_the_end_is_told_too() -> None:
    stream = Stream()
    stream.feed(part(100, b"abc"))
    stream.acknowledged(110, 1.0)
    assert [piece.gap_bytes for piece in stream.settle(1.0 + LATE_S)] == [7]
    assert stream.settle(99.0) == []


def test_what_is_not_acknowledged_is_waited_for() -> None:
    """Lost on the network, not in the capture: it will be sent again."""
    stream = Stream()
    stream.feed(part(100, b"abc"))
    stream.feed(part(105, b"fg", 1.0))
    stream.acknowledged(103, 1.1)
    assert stream.settle(60.0) == []
    assert joined(stream.feed(part(103, b"de", 61.0))) == b"defg"


def test_the_end_is_no_gap() -> None:
    stream = Stream()
    stream.feed(part(100, b"abc"))
    stream.feed(part(103, b"", flags=FIN | ACK))
    stream.acknowledged(104, 1.0)
    assert stream.settle(99.0) == []


def test_keepalive_probes_are_not_data() -> None:
    stream = Stream()
    stream.feed(part(100, b"abc"))
    assert stream.feed(part(102, b"\0")) == [] and stream.feed(part(102, b"")) == []
    assert joined(stream.feed(part(103, b"d"))) == b"d"


def test_cut_by_the_snap_length() -> None:
    stream = Stream()
    assert joined(stream.feed(part(100, b"abc", wire=10))) == b"abc" + b"?" * 7
    assert joined(stream.feed(part(115, b"x", wire=5)) + stream.feed(part(110, b"yz", wire=5))) == b"yz???x????"


def test_what_is_held_is_bounded() -> None:
    stream = Stream()
    stream.feed(part(0, b"a"))
    pieces = []
    for number in range(HELD_BYTES // 60_000 + 2):
        pieces += stream.feed(part(10 + number * 60_000, bytes(60_000)))
    assert stream._held_bytes <= HELD_BYTES and pieces[0].gap_bytes == 9
