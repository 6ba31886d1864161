"""The scapy layer: beside pika's own encoder, there and back, with hostile bytes, and beside the fast path."""

from __future__ import annotations

import inspect
import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import spec
from stucktrace.collectors import amqp_frames as wire_frames
from stucktrace.collectors.amqp_channels import Channel
from stucktrace.collectors.amqp_conversation import Conversation
from stucktrace.collectors.amqp_layer import ContentHeader, Frame, arguments, method_class
from stucktrace.collectors.amqp_methods import BROKER, CLIENT, METHODS, NUMBERS, without_secrets
from stucktrace.collectors.amqp_tables import Malformed, Timestamp, pack_table, read_table

from tests.unit.amqp_talks import SECRET, content, handshake, method

FEW = settings(max_examples=80, deadline=None)

SHORT = st.text(max_size=40)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(0, 2**62).map(Timestamp)
    | st.floats(allow_nan=False)
    | st.binary(max_size=50)
    | st.builds(
        lambda number, scale: Decimal(number).scaleb(-scale), st.integers(-(2**31), 2**31 - 1), st.integers(0, 9)
    )
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SHORT, inner, max_size=4), max_leaves=12
)
TABLES = st.dictionaries(SHORT, VALUES, max_size=6)


def pika_methods() -> list[tuple[int, Any]]:
    return [
        (what.INDEX, what)
        for group in vars(spec).values()
        if inspect.isclass(group)
        for what in vars(group).values()
        if inspect.isclass(what) and hasattr(what, "INDEX") and hasattr(what, "encode")
    ]


def test_every_method_has_pikas_number_name_and_arguments() -> None:
    found = dict(pika_methods())
    assert len(found) > 60 and set(found) <= set(METHODS)
    for number, what in found.items():
        names = list(inspect.signature(what.__init__).parameters)[1:]
        assert [name for name, _ in METHODS[number].arguments] == names, what


@pytest.mark.parametrize("number", METHODS, ids=lambda number: METHODS[number].name)
def test_what_pika_encodes_is_read_and_built_alike(number: int) -> None:
    what = dict(pika_methods()).get(number)
    if what is None:
        assert number == NUMBERS["connection.update-secret"] or METHODS[number].name.startswith("access.")
        return
    generator = random.Random(number)
    for _ in range(5):
        given_: dict[str, Any] = {}
        for name, kind in METHODS[number].arguments:
            if kind == "b":
                given_[name] = generator.random() < 0.5
            elif kind == "F":
                given_[name] = {"x-max-length": 5, "name": "value", "inner": {"deep": True}}
            elif kind in "cSX":
                given_[name] = "".join(generator.choices("abcdé", k=generator.randint(0, 30)))
            else:
                given_[name] = generator.randrange(1 << {"o": 8, "s": 16, "l": 32, "L": 63}[kind])
        raw = method(5, what(**given_))
        found = arguments(raw[7:-1])
        assert found is not None
        for name, kind in METHODS[number].arguments:
            if kind == "F":
                assert found[name] == {"x-max-length": 5, "name": b"value", "inner": {"deep": True}}
            elif kind == "X":
                assert found[name] == b""
            else:
                assert found[name] == (given_[name].encode() if kind in "cS" else given_[name])
        if not any(kind == "X" for _, kind in METHODS[number].arguments):
            frame = Frame(raw)
            assert bytes(frame) == raw
            assert bytes(Frame(channel=5) / method_class(number)(**found)) == raw


def test_content_headers_there_and_back() -> None:
    raw = content(
        9, b"[1]", spec.BasicProperties(content_type="application/json", headers={"id": "x"}, delivery_mode=2)
    )
    header = Frame(raw[: raw.index(b"\x03\x00\x09")])[ContentHeader]
    assert header.body_size == 3
    assert header.properties == {"content_type": b"application/json", "headers": {"id": b"x"}, "delivery_mode": 2}
    assert bytes(header) in raw


@FEW
@given(TABLES)
def test_tables_there_and_back(table: dict[str, Any]) -> None:
    raw = pack_table(table)
    assert read_table(raw) == (table, len(raw))


@FEW
@given(TABLES, st.integers(0, 2**32))
def test_hostile_tables_are_refused(table: dict[str, Any], seed: int) -> None:
    generator = random.Random(seed)
    raw = bytearray(pack_table(table))
    for _ in range(3):
        raw[generator.randrange(len(raw))] = generator.randrange(256)
    try:
        read_table(bytes(raw[: generator.randint(0, len(raw))]))
    except Malformed:
        pass


def test_tables_are_bounded() -> None:
    nested: dict[str, Any] = {}
    for _ in range(30):
        nested = {"a": nested}
    with pytest.raises(Malformed, match="too deeply"):
        read_table(pack_table(nested))
    with pytest.raises(Malformed, match="too many"):
        read_table(pack_table({"a": [None] * 10_000}))


@FEW
@given(st.integers(0, 2**32))
def test_hostile_methods_are_none(seed: int) -> None:
    generator = random.Random(seed)
    number = generator.choice(list(METHODS))
    arguments(number.to_bytes(4, "big") + generator.randbytes(generator.randint(0, 60)))


@FEW
@given(st.integers(0, 2**64 - 1), st.booleans(), st.text(max_size=60))
def test_the_short_way_of_the_hot_methods_reads_the_same(tag: int, multiple: bool, consumer: str) -> None:
    """Acks, nacks, rejects and deliveries are read with struct in a conversation."""
    frames = [
        (CLIENT, method(3, spec.Basic.Ack(tag, multiple))),
        (CLIENT, method(3, spec.Basic.Nack(tag, multiple, False))),
        (CLIENT, method(3, spec.Basic.Reject(tag, multiple))),
        (BROKER, method(3, spec.Basic.Ack(tag, multiple))),
        (BROKER, method(3, spec.Basic.Nack(tag, multiple, True))),
        (BROKER, method(3, spec.Basic.Deliver(consumer, tag, multiple, "x", "y"))),
    ]
    seen: list[tuple[Any, ...]] = []

    class Spy(Channel):
        def confirm(self, tag: int, multiple: bool, time_s: float, positive: bool) -> None:
            seen.append((tag, multiple))

        def consumer_settles(self, tag: int, multiple: bool, positive: bool) -> None:
            seen.append((tag, multiple))

        def deliver(self, tag: int, consumer: str | None, no_ack: bool = False) -> None:
            seen.append((tag, consumer))

    wanted = []
    conversation = Conversation()
    conversation.channels[3] = Spy(3)
    for side, raw in frames:
        given_ = arguments(raw[7:-1])
        assert given_ is not None
        second = given_["consumer_tag"].decode() if "consumer_tag" in given_ else bool(given_.get("multiple", 0))
        wanted.append((given_["delivery_tag"], second))
        conversation.frames(side, [wire_frames.Frame(0.0, 1, 3, raw[7:-1], len(raw) - 8)])
    assert seen == wanted


def test_no_trace_of_a_secret() -> None:
    raw = handshake()[2][1]
    assert SECRET.encode() in raw
    frame = Frame(raw)
    everything = [bytes(frame), frame.original, frame.payload.original, frame.raw_packet_cache, repr(frame)]
    assert all(SECRET not in str(each) for each in everything)
    assert SECRET.encode() not in without_secrets(raw[7:-1])
    assert not any(without_secrets(raw[7:-10])[11:])  # cut short: what is the secret is not clear, so nothing stays
    assert SECRET not in str(arguments(raw[7:-1]))
    update = bytes(Frame() / method_class(NUMBERS["connection.update-secret"])(new_secret=SECRET, reason="r"))
    assert SECRET.encode() in update and SECRET.encode() not in without_secrets(update[7:-1])
