"""AMQP conversations made with pika's own encoder, and cut into TCP segments: what the decoder's tests feed it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pika import frame, spec
from stucktrace.collectors.amqp_wire import Conversations, Event
from stucktrace.collectors.packets import ACK, PSH, SYN, Segment
from stucktrace.facts.amqp import AmqpChannel, AmqpFact

CLIENT, BROKER = "10.0.0.1:40000", "10.0.0.2:5672"
SECRET = "hunter2-is-secret"
FRAME_MAX = 131072
BEGIN_S = 1000.0
Write = tuple[bool, bytes]
"""(from the client, bytes): what a program writes at once."""


def method(channel: int, what: spec.amqp_object.Method) -> bytes:
    return frame.Method(channel, what).marshal()


def heartbeat() -> bytes:
    return frame.Heartbeat().marshal()


def content(channel: int, body: bytes, properties: spec.BasicProperties | None = None) -> bytes:
    largest = FRAME_MAX - 8
    bodies = [body[at : at + largest] for at in range(0, len(body), largest)]
    header = frame.Header(channel, len(body), properties or spec.BasicProperties(headers={"task": "tasks.add"}))
    return header.marshal() + b"".join(frame.Body(channel, part).marshal() for part in bodies)


def publish(channel: int, body: bytes) -> bytes:
    return method(channel, spec.Basic.Publish(exchange="", routing_key="celery")) + content(channel, body)


def deliver(channel: int, tag: int, body: bytes, consumer: str = "ctag1") -> bytes:
    return method(channel, spec.Basic.Deliver(consumer, tag, False, "", "celery")) + content(channel, body)


def handshake(heartbeat_s: int = 60, *, confirms: bool = True) -> list[Write]:
    talk = [
        (True, b"AMQP\x00\x00\x09\x01"),
        (False, method(0, spec.Connection.Start(server_properties={"product": "RabbitMQ"}))),
        (True, method(0, spec.Connection.StartOk({"product": "py-amqp"}, "PLAIN", f"\0guest\0{SECRET}"))),
        (False, method(0, spec.Connection.Tune(2047, FRAME_MAX, heartbeat_s))),
        (True, method(0, spec.Connection.TuneOk(2047, FRAME_MAX, heartbeat_s))),
        (True, method(0, spec.Connection.Open("/"))),
        (False, method(0, spec.Connection.OpenOk())),
        (True, method(1, spec.Channel.Open())),
        (False, method(1, spec.Channel.OpenOk())),
    ]
    if confirms:
        talk += [(True, method(1, spec.Confirm.Select())), (False, method(1, spec.Confirm.SelectOk()))]
    return talk


def confirmed(number: int, body: bytes = b"[1, 2]", first: int = 1) -> list[Write]:
    """Publishes one after the other, each waiting for its ack."""
    talk: list[Write] = []
    for tag in range(first, first + number):
        talk += [(True, publish(1, body)), (False, method(1, spec.Basic.Ack(tag)))]
    return talk


@dataclass
class Wire:
    """Writes -> segments."""

    mss: int = 1448
    step_s: float = 0.001
    seq: dict[bool, int] = field(default_factory=lambda: {True: (1 << 32) - 3000, False: 77})
    time_s: float = BEGIN_S
    segments: list[Segment] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """The segments that begin what the client wrote."""

    def open(self) -> Wire:
        self._send(True, SYN, b"")
        self.seq[True] += 1
        self._send(False, SYN | ACK, b"")
        self.seq[False] += 1
        return self

    def write(self, talk: Iterable[Write], cuts: random.Random | None = None) -> Wire:
        for from_client, data in talk:
            at = 0
            if from_client:
                self.starts.append(len(self.segments))
            while at < len(data):
                size = self.mss if cuts is None else cuts.randint(1, self.mss)
                self._send(from_client, ACK | PSH, data[at : at + size])
                self.seq[from_client] += len(data[at : at + size])
                at += size
        return self

    def _send(self, from_client: bool, flags: int, data: bytes) -> None:
        self.time_s += self.step_s
        ends = (CLIENT, BROKER) if from_client else (BROKER, CLIENT)
        seq, ack = self.seq[from_client] & 0xFFFFFFFF, self.seq[not from_client] & 0xFFFFFFFF
        self.segments.append(Segment(self.time_s, *ends, seq, flags, data, len(data), ack))


def segments_of(talk: Iterable[Write], cuts: random.Random | None = None, mss: int = 1448) -> list[Segment]:
    return Wire(mss).open().write(talk, cuts).segments


def decode(segments: Sequence[Segment], *, follow: bool = True) -> tuple[AmqpFact, list[Event]]:
    conversations = Conversations({(CLIENT, BROKER)} if follow else None)
    events = [event for segment in segments for event in conversations.feed(segment)]
    (fact,) = conversations.facts(max(segment.time_s for segment in segments) + 5.0)
    return fact, events


def only_channel(fact: AmqpFact) -> AmqpChannel:
    (channel,) = fact.channels
    return channel
