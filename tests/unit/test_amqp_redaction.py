"""What of captured packets gets into a packet file: never a body, a property or a credential, and nothing else is lost."""

import random
import struct

import pytest
from stucktrace.collectors import amqp_redaction, packets
from stucktrace.collectors.addresses import parse_endpoint
from stucktrace.collectors.amqp_redaction import MOST_WAITING, Redaction
from stucktrace.collectors.packet_file import RAW_IP

from tests.unit.amqp_talks import CLIENT, SECRET, Wire, confirmed, decode, deliver, handshake, only_channel, segments_of

BODY = b"the body of a message, " * 200
TALK = [*handshake(), *confirmed(30, BODY), *((False, deliver(1, tag, BODY)) for tag in range(1, 20))]


def packet_of(segment, padding=b""):
    (source, source_port), (target, target_port) = map(parse_endpoint, (segment.source, segment.destination))
    tcp = struct.pack("!HHIIBBHHH", source_port, target_port, segment.seq, segment.ack, 5 << 4, segment.flags, 9, 0, 0)
    length = 20 + len(tcp) + len(segment.payload)
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, 64, 6, 0) + source + target
    return head + tcp + segment.payload + padding


def redacted(segments, padding=b""):
    redaction = Redaction()
    return [record for segment in segments for record in redaction.feed(packet_of(segment, padding), segment)]


def read_back(records):
    return [packets.segment(RAW_IP, record.packet, record.time_s, record.wire_bytes) for record in records]


def totals(segments):
    fact, _ = decode(segments)
    channel = only_channel(fact)
    return (
        fact.heartbeat_s, fact.client, fact.gaps, fact.confirms,
        channel.publishes, channel.acks, channel.unconfirmed, channel.deliveries,
    )  # fmt: skip


def cut(told):
    """Without the client's name."""
    return told[:1], told[2:]


@pytest.mark.parametrize("mss", [30, 100, 1448, 65000])
def test_the_same_is_told_without_bodies_properties_and_credentials(mss):
    segments = segments_of(TALK, random.Random(mss), mss)
    records = redacted(segments)
    told = totals(read_back(records))
    # Of a connection.start-ok that comes in pieces nothing is kept.
    assert told == totals(segments) if mss > 1000 else cut(told) == cut(totals(segments))
    assert [(record.time_s, record.wire_bytes) for record in records] == [
        (segment.time_s, len(packet_of(segment))) for segment in segments
    ]
    written = b"".join(segment.payload for segment in read_back(records))
    whole = b"".join(segment.payload for segment in segments)
    assert len(written) == len(whole)
    for secret in (SECRET.encode(), BODY[:16], b"tasks.add"):
        assert secret in whole and secret not in written
    assert b"celery" in written


def test_out_of_order_twice_and_padded():
    segments = segments_of(TALK, mss=500)
    chance = random.Random(3)
    mixed = segments[:20]
    for index in range(20, len(segments) - 1, 2):
        pair = [segments[index], segments[index + 1]]
        if pair[0].source == pair[1].source:
            chance.shuffle(pair)
        mixed += pair + pair[: chance.randrange(2)]
    records = redacted(mixed, padding=b"PAD" * 2)
    assert totals(read_back(records)) == totals(mixed)
    assert b"PAD" not in b"".join(record.packet for record in records)


def test_from_the_middle_on_and_over_a_gap():
    segments = segments_of([*handshake(), *confirmed(300, BODY)])
    begun = segments[len(segments) // 3 :]
    middle = len(begun) // 2
    for given in (begun, begun[:middle] + begun[middle + 2 :]):
        before, _ = decode(given)
        after, _ = decode(read_back(redacted(given)))
        assert only_channel(after).publishes == only_channel(before).publishes
        assert only_channel(after).acks == only_channel(before).acks
    written = b"".join(record.packet for record in redacted(begun))
    assert BODY[:16] not in written


def test_other_protocols_never_get_in():
    """Nor do they fill the memory."""
    wire = Wire().open()
    wire.write((number % 2 == 0, b"SELECT secret FROM table " * 40) for number in range(3 * MOST_WAITING))
    redaction = Redaction()
    assert not [record for segment in wire.segments for record in redaction.feed(packet_of(segment), segment)]
    assert all(len(direction._waiting) <= MOST_WAITING for direction in redaction._directions.values())


def test_a_process_that_opens_a_connection_for_each_publish(monkeypatch):
    monkeypatch.setattr(amqp_redaction, "MOST_DIRECTIONS", 8)
    redaction = Redaction()
    written = 0
    for number in range(20):
        for segment in segments_of(TALK):
            mine = segment.source == CLIENT
            ends = {"source" if mine else "destination": f"10.0.0.1:{40_000 + number}"}
            written += len(redaction.feed(packet_of(segment), segment._replace(**ends)))
        assert len(redaction._directions) <= 8
    assert written == 20 * len(segments_of(TALK))
