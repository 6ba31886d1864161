"""What a conversation says of a connection: counts, confirms, states, and what it admits not to know."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pika import spec
from stucktrace.collectors import amqp_wire
from stucktrace.collectors.amqp_wire import Conversations
from stucktrace.collectors.packets import ACK, FIN, SYN, Segment

from tests.unit.amqp_talks import (
    BROKER,
    CLIENT,
    SECRET,
    Wire,
    confirmed,
    content,
    decode,
    deliver,
    handshake,
    heartbeat,
    method,
    only_channel,
    publish,
    segments_of,
)

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def ack(tag: int, multiple: bool = False) -> tuple[bool, bytes]:
    return False, method(1, spec.Basic.Ack(tag, multiple))


def test_confirmed_publishes_are_counted_and_timed() -> None:
    fact, events = decode(segments_of(handshake() + confirmed(1000)))
    channel = only_channel(fact)
    assert (channel.publishes, channel.acks, channel.nacks, channel.unconfirmed) == (1000, 1000, 0, 0)
    assert channel.confirms is True and channel.unconfirmed_exact is True
    assert (fact.client, fact.heartbeat_s, fact.heartbeat_source) == ("py-amqp", 60.0, "tune-ok")
    assert fact.confirms is not None and fact.confirms.count == 1000
    for figure in (fact.confirms.p50_s, fact.confirms.p99_s, fact.confirms.max_s):
        assert figure == pytest.approx(0.001, rel=0.02)
    assert not fact.mid_stream and not fact.gaps and not fact.unknown
    assert [event.method.name for event in events if event.method][:2] == ["connection.start", "connection.start-ok"]
    assert SECRET not in repr(fact) + repr(events)


def test_multiple_settles_all_up_to_its_tag() -> None:
    talk = [*handshake(), (True, b"".join(publish(1, b"x") for _ in range(10)))]
    talk += [ack(2), ack(5, multiple=True), (False, method(1, spec.Basic.Nack(7))), ack(6), ack(0, multiple=True)]
    talk += [(True, publish(1, b"y")), (True, publish(1, b"z")), ack(12)]
    fact, _ = decode(segments_of(talk))
    channel = only_channel(fact)
    assert (channel.publishes, channel.acks, channel.nacks, channel.unconfirmed) == (12, 10, 1, 1)
    assert channel.oldest_unconfirmed_s == pytest.approx(5.002, abs=0.0005)
    assert fact.confirms is not None and fact.confirms.count == 11


def test_what_is_not_in_confirm_mode_is_never_unconfirmed() -> None:
    plain, _ = decode(segments_of([*handshake(confirms=False), (True, publish(1, b"x"))]))
    assert only_channel(plain).unconfirmed == 0 and only_channel(plain).confirms is False
    transaction = [(True, method(1, spec.Tx.Select())), (True, publish(1, b"x")), (True, method(1, spec.Tx.Commit()))]
    tx, _ = decode(segments_of([*handshake(confirms=False), *transaction]))
    assert (only_channel(tx).unconfirmed, only_channel(tx).transactional) == (0, True)
    late, _ = decode(segments_of([*handshake(confirms=False), *transaction * 3])[-6:])
    assert (only_channel(late).unconfirmed, only_channel(late).transactional) == (0, True)


def test_deliveries_and_the_clients_acks() -> None:
    talk = [*handshake(confirms=False), (True, method(1, spec.Basic.Consume(queue="celery", consumer_tag="")))]
    talk += [(False, method(1, spec.Basic.ConsumeOk("ctag1")))]
    talk += [(False, deliver(1, tag, b"m" * 3000)) for tag in range(1, 8)]
    talk += [(True, method(1, spec.Basic.Ack(1))), (True, method(1, spec.Basic.Ack(5, True)))]
    talk += [(True, method(1, spec.Basic.Reject(6))), (True, method(1, spec.Basic.Nack(7, True)))]
    talk += [(True, method(1, spec.Basic.Get(0, "celery"))), (False, method(1, spec.Basic.GetEmpty()))]
    talk += [(True, method(1, spec.Basic.Get(0, "celery", True)))]
    talk += [(False, method(1, spec.Basic.GetOk(8, False, "", "celery", 0)) + content(1, b"m"))]
    fact, _ = decode(segments_of(talk))
    channel = only_channel(fact)
    assert (channel.deliveries, channel.consumer_acks, channel.consumer_nacks) == (8, 5, 2)
    assert channel.consumers == ("ctag1",)


def test_states_say_who_and_why() -> None:
    talk = [*handshake(), (True, publish(1, b"x"))]
    talk += [(False, method(1, spec.Channel.Close(404, "NOT_FOUND - no exchange 'nope'", 60, 40)))]
    talk += [(False, method(0, spec.Connection.Blocked("low on memory"))), (False, heartbeat())]
    fact, events = decode(segments_of(talk))
    channel = only_channel(fact)
    assert channel.closed is not None and channel.closed_by == "broker" and channel.unconfirmed == 1
    assert (channel.closed.code, channel.closed.method) == (404, "basic.publish")
    assert fact.blocked is not None and fact.blocked.text == "low on memory"
    assert fact.blocked.age_s == pytest.approx(5.001, abs=0.0005)
    assert fact.last_in is not None and fact.last_in.name == "connection.blocked" and fact.heartbeats_in == 1
    assert events[-1].method is not None and events[-1].method.name == "connection.blocked"

    talk += [
        (False, method(0, spec.Connection.Unblocked())),
        (True, method(0, spec.Connection.Close(200, "bye", 0, 0))),
    ]
    fact, _ = decode(segments_of(talk))
    assert fact.blocked is None and fact.closed_by == "client" and fact.closed is not None and fact.closed.text == "bye"


def test_a_channel_opened_again_counts_its_tags_from_one() -> None:
    again = [(True, method(1, spec.Channel.Close(200, "", 0, 0))), (False, method(1, spec.Channel.CloseOk()))]
    again += handshake()[-4:]
    fact, _ = decode(segments_of(handshake() + confirmed(5) + again + confirmed(7)))
    channel = only_channel(fact)
    assert (channel.publishes, channel.acks, channel.unconfirmed, channel.closed) == (12, 12, 0, None)


def test_the_heartbeat_is_observed_where_it_was_not_seen_agreed() -> None:
    wire = Wire()
    for _ in range(5):
        wire.write([(False, heartbeat())])
        wire.time_s += 29.999
    fact, _ = decode(wire.segments)
    assert (fact.heartbeat_s, fact.heartbeat_source, fact.heartbeats_in) == (60.0, "observed", 5)


@pytest.mark.parametrize(
    "body", [b"[1, 2]", b"\xce" * 5000, b"x" * 140_000, b""], ids=["small", "0xce", "large", "none"]
)
def test_from_the_middle_on_nothing_is_invented(body: bytes) -> None:
    whole = segments_of(handshake() + confirmed(40, body), mss=1448 if len(body) < 9000 else 14480)
    generator = random.Random(5)
    for first in {0, 1, 2, 31, *(generator.randrange(len(whole) * 3 // 5) for _ in range(12))}:
        fact, events = decode(whole[first:])
        channel = only_channel(fact)
        assert channel.publishes is not None and channel.acks is not None
        # No frame is counted that is not there, and after a few messages none is missed.
        published = sum(
            1 for each in whole[first:] if each.source == CLIENT and each.payload[7:11] == b"\x00\x3c\x00\x28"
        )
        acked = sum(1 for each in whole[first:] if each.source == BROKER and each.payload[7:11] == b"\x00\x3c\x00\x50")
        assert published - 3 <= channel.publishes <= published, first
        assert acked - 3 <= channel.acks <= acked, first
        assert channel.unconfirmed == 0 and fact.mid_stream is (first > 2)
        if first > 30:
            assert channel.unconfirmed_exact is False and fact.unknown
            assert {event.incoming for event in events if event.kind == "resynchronised"} == {True, False}
        assert "lost" not in {event.kind for event in events}
        step_s = 0.001 * (1 + len(publish(1, body)) // (14480 if len(body) > 9000 else 1448))
        assert fact.confirms is not None and fact.confirms.p50_s == pytest.approx(step_s, rel=0.02)


def test_one_publish_that_is_never_confirmed_is_told_of_a_connection_met_late() -> None:
    talk = handshake() + confirmed(30)
    fact, _ = decode(segments_of([*talk, (True, publish(1, b"lost"))])[-8:])
    channel = only_channel(fact)
    assert (channel.unconfirmed, channel.unconfirmed_exact) == (1, False)
    assert channel.oldest_unconfirmed_s == pytest.approx(5.0, abs=0.01)
    # All that the capture has is the publish itself: whether it is to be confirmed at all, the wire does not tell.
    fact, _ = decode(segments_of([*talk, (True, publish(1, b"lost"))])[-1:])
    channel = only_channel(fact)
    assert (channel.publishes, channel.confirms, channel.unconfirmed) == (1, None, None) and fact.unknown


def test_publishes_in_flight_from_before_are_not_called_confirmed() -> None:
    """A publisher that keeps ten in flight: each ack is of a publish ten earlier."""
    talk = [*handshake(), (True, b"".join(publish(1, b"x") for _ in range(10)))]
    late = []
    for tag in range(1, 200):
        late += [ack(tag), (True, publish(1, b"x"))]
    fact, _ = decode(segments_of([*talk, *late])[len(segments_of(talk)) :])
    channel = only_channel(fact)
    assert channel.unconfirmed is not None and channel.unconfirmed <= 10
    assert channel.unconfirmed_exact is False
    assert any("may be unconfirmed" in sentence for sentence in fact.unknown)


@FEW
@given(st.integers(0, 2**32), st.integers(1, 3000), st.data())
def test_any_segmentation_order_and_duplication_give_the_same(seed: int, mss: int, data: st.DataObject) -> None:
    generator = random.Random(seed)
    wire = Wire(mss=9999).open().write(handshake())
    begin, wire.mss = len(wire.segments), mss
    segments = wire.write(confirmed(40, b"b" * min(2000, mss * 5)), generator).segments
    disorder = data.draw(st.integers(0, 20))
    places = [(index + generator.randint(0, disorder), index) for index in range(begin, len(segments))]
    shuffled = [*segments[:begin], *(segments[index] for _, index in sorted(places))]
    for _ in range(data.draw(st.integers(0, 30))):
        place = generator.randrange(2, len(shuffled))
        shuffled.insert(generator.randint(place + 1, len(shuffled)), shuffled[place])
    fact, events = decode(shuffled)
    channel = only_channel(fact)
    assert (channel.publishes, channel.acks, channel.unconfirmed, fact.gaps) == (40, 40, 0, 0)
    assert fact.confirms is not None and fact.confirms.count == 40
    assert {event.kind for event in events} == {"opened", "method"}


@FEW
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_lost_segments_never_add_to_a_count(seed: int, lost: int) -> None:
    generator = random.Random(seed)
    segments = segments_of(handshake() + confirmed(60, b"b" * generator.randint(0, 4000)))
    for _ in range(lost):
        del segments[generator.randrange(12, len(segments) - 2)]
    conversations = Conversations()
    for segment in segments:
        conversations.feed(segment)
    (fact,) = conversations.facts(segments[-1].time_s + 60)
    channel = only_channel(fact)
    assert channel.publishes is not None and 60 - 10 * lost <= channel.publishes <= 60
    assert channel.acks is not None and 60 - 10 * lost <= channel.acks <= 60
    assert channel.unconfirmed is None or channel.unconfirmed <= lost
    if channel.publishes + channel.acks < 120:
        assert fact.unknown


def test_what_settles_without_another_segment_is_told_too() -> None:
    segments = segments_of([*handshake(), *confirmed(20), (False, method(0, spec.Connection.Blocked("low")) * 2)])
    conversations = Conversations({(CLIENT, BROKER)})
    assert not conversations.feed(segments[-1])
    events = conversations.settle(segments[-1].time_s + 1)
    assert [event.kind for event in events] == ["resynchronised"] + ["method"] * 2
    assert not conversations.settle(segments[-1].time_s + 2)
    conversations.facts(segments[-1].time_s + 2)
    assert not conversations.settle(segments[-1].time_s + 3)


def test_what_was_lost_while_the_connection_hangs_is_admitted() -> None:
    segments = segments_of([*handshake(), *confirmed(5), (True, publish(1, b"x")), ack(6)])
    del segments[-2]
    fact, _ = decode(segments)
    assert fact.gaps == 1 and any("not captured" in sentence for sentence in fact.unknown)


def test_a_connection_that_ends_and_its_ports_used_again() -> None:
    first = Wire().open().write([*handshake(), *confirmed(5)])
    first.segments.append(Segment(first.time_s, BROKER, CLIENT, first.seq[False], FIN | ACK, b"", 0, first.seq[True]))
    second = (
        Wire(seq={True: 10_000, False: 20_000}, time_s=first.time_s + 1).open().write([*handshake(), *confirmed(3)])
    )
    conversations = Conversations()
    events = [event.kind for each in first.segments + second.segments for event in conversations.feed(each)]
    facts = conversations.facts(second.time_s)
    assert [only_channel(fact).publishes for fact in facts] == [5, 3]
    assert events.count("opened") == 2 and events.count("ended") == 1


def test_tls_is_called_by_its_name() -> None:
    records = b"".join(b"\x17\x03\x03\x02\x00" + bytes(512) for _ in range(5))
    for talk in ([(True, b"\x16\x03\x01\x02\x00" + b"h" * 512), (True, records)], [(True, records)]):
        fact, events = decode(segments_of(talk))
        assert fact.encrypted and fact.unknown == ("encrypted: frames cannot be read",)
        assert [event.kind for event in events] == ["opened", "encrypted"]
    late, _ = decode(segments_of([(True, records), (False, records)])[3:])
    assert late.encrypted


def test_other_protocols_are_no_amqp() -> None:
    http = [(True, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), (False, b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3_000_000)]
    conversations = Conversations()
    for segment in segments_of(http * 2):
        assert {event.kind for event in conversations.feed(segment)} <= {"opened"}
    assert conversations.facts(2000.0) == ()
    fact, _ = decode(segments_of([(True, b"AMQP\x03\x01\x00\x00"), (False, b"AMQP\x03\x01\x00\x00" + b"x" * 99)]))
    assert "AMQP 1.0.0" in fact.unknown[0]


def test_without_knowing_the_process_the_client_is_told_by_what_it_says() -> None:
    for first in range(10, 40):
        fact, _ = decode(segments_of(handshake() + confirmed(20))[first:], follow=False)
        assert (fact.local, fact.remote) == (CLIENT, BROKER)


@FEW
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_mutated_bytes_neither_crash_nor_grow(seed: int, mutations: int) -> None:
    generator = random.Random(seed)
    talk = [*handshake(), *confirmed(30, generator.randbytes(500)), (False, deliver(1, 1, b"x"))]
    segments = segments_of(talk, generator)
    for _ in range(mutations):
        index = generator.randrange(len(segments))
        payload = bytearray(segments[index].payload)
        for _ in range(generator.randint(1, 4) if payload else 0):
            payload[generator.randrange(len(payload))] = generator.randrange(256)
        segments[index] = segments[index]._replace(payload=bytes(payload))
    decode(segments, follow=generator.random() < 0.5) if generator.random() < 0.9 else None


def test_random_bytes_do_not_fill_the_memory() -> None:
    generator = random.Random(7)
    conversations = Conversations({(CLIENT, BROKER)})
    seq = 1
    sizes = []
    tracemalloc.start()
    try:
        for round_ in range(3):
            for _ in range(150):
                data = generator.randbytes(1448) if round_ else b"\x01\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x28" * 131
                conversations.feed(Segment(1.0, CLIENT, BROKER, seq, ACK, data, len(data), 1))
                seq += len(data)
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(sizes) < 8 << 20
    (fact,) = conversations.facts(2.0)
    assert fact.channels == () and any("no frame boundary" in sentence for sentence in fact.unknown)


def test_what_is_outstanding_is_bounded() -> None:
    wire = Wire(mss=60_000).open().write(handshake())
    wire.write([(True, publish(1, b"") * 1000)] * 150)
    wire.write([ack(3), ack(70_000, multiple=True)])
    fact, _ = decode(wire.segments)
    channel = only_channel(fact)
    assert (channel.publishes, channel.acks, channel.unconfirmed) == (150_000, 70_000, 80_000)


def test_syn_again_is_the_same_connection() -> None:
    segments = segments_of(handshake() + confirmed(3))
    again = [segments[0], segments[0], *segments[1:2] * 2, *segments[2:]]
    fact, events = decode(again)
    assert only_channel(fact).publishes == 3 and [event.kind for event in events].count("opened") == 1
    assert segments[0].flags == SYN


def test_connections_without_room_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp_wire, "MOST_CONNECTIONS", 1)
    conversations = Conversations()
    talk = segments_of([*handshake(), *confirmed(3)])
    for segment in talk:
        conversations.feed(segment)
    assert not conversations.segments_not_kept
    for segment in talk:
        ends = {"source": "10.0.0.9:1"} if segment.source == CLIENT else {"destination": "10.0.0.9:1"}
        conversations.feed(segment._replace(**ends))
    assert len(conversations.facts(talk[-1].time_s)) == 1
    assert conversations.segments_not_kept == len(talk)
