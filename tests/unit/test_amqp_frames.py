"""Where frames begin and end, from the first byte on, from the middle on, and in bodies made to mislead."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import spec
from stucktrace.collectors.amqp_frames import BODY, HEADER, HEARTBEAT, METHOD, Frames

from tests.unit.amqp_talks import (
    SECRET,
    Wire,
    confirmed,
    decode,
    deliver,
    handshake,
    heartbeat,
    method,
    only_channel,
    publish,
)

ACKS = b"".join(method(1, spec.Basic.Ack(tag)) for tag in range(1, 500))
MISLEADING = {
    "0xce": b"\xce" * 120_000,
    "heartbeats": heartbeat() * 15_000,
    "acks": ACKS * 5,
    "publishes": publish(1, b"inner") * 1000,
    "deliveries": deliver(1, 9, b"inner") * 1000,
    "headers": b"\x01\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x28" * 10_000,
    "zeros": bytes(120_000),
}


@given(st.integers(0, 2**32), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_the_same_frames_however_the_bytes_are_cut(seed: int, size: int) -> None:
    generator = random.Random(seed)
    data = publish(3, generator.randbytes(generator.randint(0, 900))) + heartbeat() + method(7, spec.Basic.Ack(9))
    frames = Frames(True)
    found, at = frames.feed(0.0, b"AMQP\0\0\x09\x01"), 0
    while at < len(data):
        step = generator.randint(1, size)
        found += frames.feed(1.0, data[at : at + step])
        at += step
    assert [(frame.kind, frame.channel) for frame in found if frame.kind != BODY] == [
        (METHOD, 3), (HEADER, 3), (HEARTBEAT, 0), (METHOD, 7),
    ]  # fmt: skip
    assert found[0].payload == data[7 : 7 + found[0].size] and frames.lost == 0
    assert all(not frame.payload for frame in found if frame.kind == BODY)


def test_a_large_body_is_not_kept() -> None:
    frames = Frames(True)
    frames.feed(0.0, b"AMQP\0\0\x09\x01")
    data = publish(1, b"x" * 100_000)
    for at in range(0, len(data), 1000):
        frames.feed(1.0, data[at : at + 1000])
        assert len(frames._part) < 1100


def test_secrets_are_gone_before_anybody_sees_them() -> None:
    frames = Frames(True)
    frames.feed(0.0, b"AMQP\0\0\x09\x01")
    (frame,) = frames.feed(1.0, handshake()[2][1])
    assert SECRET.encode() not in frame.payload and b"py-amqp" in frame.payload and len(frame.payload) == frame.size


def test_a_gap_inside_of_a_body_does_no_harm() -> None:
    frames = Frames(True)
    frames.feed(0.0, b"AMQP\0\0\x09\x01")
    data = publish(1, b"x" * 5000)
    assert [frame.kind for frame in frames.feed(1.0, data[:1000])] == [METHOD, HEADER]
    assert frames.gap(3000)
    assert [frame.kind for frame in frames.feed(1.0, data[4000:] + heartbeat())] == [BODY, HEARTBEAT]
    assert not frames.gap(1) and frames.hunting


@pytest.mark.parametrize("body", MISLEADING.values(), ids=MISLEADING)
@pytest.mark.parametrize("mss", [1448, 1460, 65483])
def test_bodies_that_look_like_frames_mislead_nobody(body: bytes, mss: int) -> None:
    """The capture begins anywhere in such a body; the connection's own frames are found, and nothing else counted."""
    wire = Wire(mss).open().write(handshake() + confirmed(6, body))
    generator = random.Random(3)
    publishes = wire.starts[-6:]
    for first in [generator.randint(publishes[0], publishes[2]) for _ in range(4)]:
        fact, _ = decode(wire.segments[first:])
        published = sum(start >= first for start in publishes)
        channel = only_channel(fact)
        assert channel.publishes is not None and published - 2 <= channel.publishes <= published, first
        assert channel.unconfirmed == 0


def test_a_hundred_frames_are_enough() -> None:
    """Small messages, one write each, cut anywhere: the boundary is found within a hundred frames."""
    generator = random.Random(11)
    for _ in range(20):
        body = generator.randbytes(generator.choice([0, 10, 700, 3000, 9000]))
        wire = Wire(generator.choice([536, 1448, 8000])).open().write(handshake() + confirmed(60, body))
        first = generator.randrange(12, len(wire.segments) // 4)
        fact, _ = decode(wire.segments[first:])
        seen = sum(start >= first for start in wire.starts)
        channel = only_channel(fact)
        assert channel.publishes is not None and 0 <= seen - channel.publishes <= 33
