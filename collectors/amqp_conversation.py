"""One AMQP 0-9-1 connection, both directions' frames joined: what it said, and what cannot be known of it. No I/O.

The hot methods (publish, ack, nack, deliver) are read with struct, the rest by the scapy layer.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from stucktrace.collectors.amqp_channels import TX, Channel
from stucktrace.collectors.amqp_confirms import Latencies
from stucktrace.collectors.amqp_frames import HEARTBEAT, METHOD, Frame
from stucktrace.collectors.amqp_methods import BROKER, CLIENT, METHODS, NUMBERS, name_of_both
from stucktrace.facts.amqp import AmqpMethod

_TAG = struct.Struct(">Q")
_PUBLISH, _ACK, _NACK, _DELIVER, _REJECT = (
    NUMBERS[f"basic.{name}"].to_bytes(4, "big") for name in ("publish", "ack", "nack", "deliver", "reject")
)
_MOST_CHANNELS = 4096
_BEATS = 8


class Event(NamedTuple):
    """Something that a person wants to see when it happens. Publishes, acks and deliveries are counted only."""

    time_s: float
    local: str
    remote: str
    kind: str
    """"method"; "resynchronised" (the frame boundary was found), "gap" (bytes are missing), "lost" (the frame boundary
    is), "encrypted", "opened" (a TCP connection), "ended" (by FIN or RST)."""
    incoming: bool = True
    """From the broker."""
    method: AmqpMethod | None = None
    gap_bytes: int = 0


class Conversation:
    """`frame` takes the frames of both sides in the order of their arrival."""

    def __init__(self) -> None:
        self.channels: dict[int, Channel] = {}
        self.channels_not_kept = 0
        self.client = ""
        self.heartbeat_s: float | None = None
        self.frame_max: int | None = None
        self.blocked: AmqpMethod | None = None
        self.blocked_since_s = 0.0
        self.closed: tuple[float, AmqpMethod, str] | None = None
        self.last: dict[str, Frame | None] = {CLIENT: None, BROKER: None}
        self.last_method: dict[str, Frame | None] = {CLIENT: None, BROKER: None}
        self.heartbeats = {CLIENT: 0, BROKER: 0}
        self.last_heartbeat_s: dict[str, float | None] = {CLIENT: None, BROKER: None}
        self.beats: deque[float] = deque(maxlen=_BEATS)
        """Times between the broker's heartbeats."""
        self._sure: dict[str, dict[int, tuple[int, int, int, int]]] = {CLIENT: {}, BROKER: {}}
        """By the sender: what the channels' counts were when its frame boundary was found."""
        self._told: list[tuple[float, bool, AmqpMethod]] = []
        self._cold: dict[str, Callable[[Channel, dict[str, Any], Frame, str], None]] = {
            "connection.start-ok": self._start_ok,
            "connection.tune-ok": self._tune_ok,
            "connection.blocked": self._blocked,
            "connection.unblocked": self._unblocked,
            "connection.close": self._close,
            "channel.open": lambda channel, *_: channel.opened(),
            "channel.close": self._channel_close,
            "confirm.select": lambda channel, *_: channel.confirms_selected(),
            "basic.return": self._return,
            "basic.consume": lambda channel, given, *_: channel.consume(
                _text(given["consumer_tag"]), bool(given["no_ack"]), bool(given["nowait"])
            ),
            "basic.consume-ok": lambda channel, given, *_: channel.consume_ok(_text(given["consumer_tag"])),
            "basic.cancel": lambda channel, given, *_: channel.cancelled(_text(given["consumer_tag"])),
            "basic.get": lambda channel, given, *_: channel.get(bool(given["no_ack"])),
            "basic.get-ok": lambda channel, given, *_: channel.get_answered(int(given["delivery_tag"])),
            "basic.get-empty": lambda channel, *_: channel.get_answered(None),
        }

    def channel(self, number: int) -> Channel:
        channel = self.channels.get(number)
        if channel is None:
            channel = Channel(number)
            if len(self.channels) < _MOST_CHANNELS:
                self.channels[number] = channel
            else:
                self.channels_not_kept += 1
        return channel

    def frames(self, sender: str, frames: list[Frame]) -> None:
        """What one side sent, in order."""
        from_client = sender is CLIENT
        method = None
        for frame in frames:
            time_s, kind, number, payload, _ = frame
            if kind == METHOD:
                method = frame
                head = payload[:4]
                if head == _PUBLISH and from_client:
                    (self.channels.get(number) or self.channel(number)).publish(time_s)
                elif head in (_ACK, _NACK) and len(payload) >= 13:
                    (tag,) = _TAG.unpack_from(payload, 4)
                    channel = self.channels.get(number) or self.channel(number)
                    if from_client:
                        channel.consumer_settles(tag, bool(payload[12] & 1), head == _ACK)
                    else:
                        channel.confirm(tag, bool(payload[12] & 1), time_s, head == _ACK)
                elif head == _DELIVER and not from_client:
                    self._deliver(number, payload)
                elif head == _REJECT and from_client and len(payload) >= 12:
                    self.channel(number).consumer_settles(_TAG.unpack_from(payload, 4)[0], False, False)
                else:
                    self._other(frame, sender)
            elif kind == HEARTBEAT:
                self._heartbeat(time_s, sender)
        if frames:
            self.last[sender] = frames[-1]
        if method is not None:
            self.last_method[sender] = method

    @property
    def has_told(self) -> bool:
        return bool(self._told)

    def told(self) -> list[tuple[float, bool, AmqpMethod]]:
        """(time, from the broker, method) of what happened since the last call, the hot methods left out."""
        told, self._told = self._told, []
        return told

    def missed(self, sender: str) -> None:
        """Frames of this side may be missing from here on."""
        for channel in self.channels.values():
            if sender is CLIENT:
                channel.publishes_missed()
            else:
                channel.acks_missed()
        if sender is BROKER:
            self.beats.clear()
            self.last_heartbeat_s[BROKER] = None
            self.blocked = None

    def remember(self, sender: str) -> None:
        """From here on what this side is said to have sent is doubtful."""
        self._sure[sender] = {number: channel.counts(sender) for number, channel in self.channels.items()}

    def take_back(self, sender: str) -> None:
        """What this side was said to have sent since then was the inside of a body."""
        sure = self._sure[sender]
        for number, channel in list(self.channels.items()):
            channel.set_counts(sender, sure.get(number, (0, 0, 0, 0)))
            if not any(channel.counts(CLIENT) + channel.counts(BROKER)):
                del self.channels[number]
        self.last[sender] = self.last_method[sender] = None
        self.missed(sender)

    def method(self, frame: Frame, age_s: float | None) -> AmqpMethod:
        """A method frame as a fact."""
        number = int.from_bytes(frame.payload[:4], "big")
        name = name_of_both(number)
        given = _arguments(frame.payload) if name.endswith((".close", ".return", ".blocked")) else None
        if not given:
            return AmqpMethod(name, frame.channel, age_s)
        cause = given.get("class_id", 0) << 16 | given.get("method_id", 0)
        text = _text(given.get("reply_text", given.get("reason", b"")))
        return AmqpMethod(name, frame.channel, age_s, given.get("reply_code"), text, name_of_both(cause))

    def latencies(self) -> Latencies:
        latencies = Latencies()
        for channel in self.channels.values():
            channel.latencies_into(latencies)
        return latencies

    def _deliver(self, number: int, payload: bytes) -> None:
        size = payload[4] if len(payload) > 4 else 0
        if len(payload) < 14 + size:
            return
        (tag,) = _TAG.unpack_from(payload, 5 + size)
        channel = self.channels.get(number) or self.channel(number)
        channel.deliver(tag, payload[5 : 5 + size].decode(errors="replace"))

    def _heartbeat(self, time_s: float, sender: str) -> None:
        self.heartbeats[sender] += 1
        before = self.last_heartbeat_s[sender]
        if sender is BROKER and before is not None:
            self.beats.append(time_s - before)
        self.last_heartbeat_s[sender] = time_s

    def _other(self, frame: Frame, sender: str) -> None:
        number = int.from_bytes(frame.payload[:4], "big")
        spec = METHODS.get(number)
        if spec is None or spec.sender not in ("", sender):
            return
        channel = self.channel(frame.channel) if frame.channel else Channel(0)
        if spec.name.startswith("tx."):
            if channel.mode != TX:
                channel.transactional()
        else:
            handler = self._cold.get(spec.name)
            if handler is not None:
                given = _arguments(frame.payload)
                if given is None:
                    return
                handler(channel, given, frame, sender)
        if len(self._told) < 10_000:
            self._told.append((frame.time_s, sender is BROKER, self.method(frame, None)))

    def _start_ok(self, _channel: Channel, given: dict[str, Any], _frame: Frame, _sender: str) -> None:
        product = given["client_properties"].get("product", b"")
        name = _text(product)[:100] if isinstance(product, bytes) else ""
        self.client = "pika" if name == "Pika Python Client Library" else name

    def _tune_ok(self, _channel: Channel, given: dict[str, Any], _frame: Frame, _sender: str) -> None:
        self.heartbeat_s = float(given["heartbeat"])
        self.frame_max = int(given["frame_max"])

    def _blocked(self, _channel: Channel, given: dict[str, Any], frame: Frame, _sender: str) -> None:
        self.blocked = AmqpMethod("connection.blocked", 0, None, None, _text(given["reason"]))
        self.blocked_since_s = frame.time_s

    def _unblocked(self, _channel: Channel, _given: dict[str, Any], _frame: Frame, _sender: str) -> None:
        self.blocked = None

    def _close(self, _channel: Channel, _given: dict[str, Any], frame: Frame, sender: str) -> None:
        self.closed = (frame.time_s, self.method(frame, None), sender)

    def _channel_close(self, channel: Channel, _given: dict[str, Any], frame: Frame, sender: str) -> None:
        channel.closed = self.method(frame, None)
        channel.closed_by = sender
        channel.closed_s = frame.time_s

    def _return(self, channel: Channel, _given: dict[str, Any], _frame: Frame, _sender: str) -> None:
        channel.returns += 1


def _arguments(payload: bytes) -> dict[str, Any] | None:
    from stucktrace.collectors import amqp_layer

    return amqp_layer.arguments(payload)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
