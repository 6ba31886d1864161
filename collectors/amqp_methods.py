"""The methods of AMQP 0-9-1 and RabbitMQ's extensions: number, name, arguments, and which side may send them. No I/O.

Source: the specification's amqp0-9-1.xml (2008, errata of 2010) and the protocol extensions in RabbitMQ's documentation
(confirm.select, basic.nack, connection.blocked, exchange.bind, connection.update-secret).

An argument is "name:type"; types: o octet, s short, l long, L long long, c short string, S long string, F field table,
b bit (neighbours share octets, the first one lowest), X a secret (a long string whose bytes are dropped at once).
"""

from __future__ import annotations

from typing import NamedTuple

CLIENT, BROKER, EITHER = "client", "broker", ""


class MethodSpec(NamedTuple):
    name: str
    """ "basic.publish"."""
    sender: str
    """CLIENT, BROKER, or EITHER."""
    arguments: tuple[tuple[str, str], ...]
    """(name, type)."""


CLASSES = {
    10: "connection",
    20: "channel",
    30: "access",
    40: "exchange",
    50: "queue",
    60: "basic",
    85: "confirm",
    90: "tx",
}

_CLOSE = "reply_code:s reply_text:c class_id:s method_id:s"

_TABLE: tuple[tuple[int, int, str, str, str], ...] = (
    (10, 10, "start", BROKER, "version_major:o version_minor:o server_properties:F mechanisms:S locales:S"),
    (10, 11, "start-ok", CLIENT, "client_properties:F mechanism:c response:X locale:c"),
    (10, 20, "secure", BROKER, "challenge:X"),
    (10, 21, "secure-ok", CLIENT, "response:X"),
    (10, 30, "tune", BROKER, "channel_max:s frame_max:l heartbeat:s"),
    (10, 31, "tune-ok", CLIENT, "channel_max:s frame_max:l heartbeat:s"),
    (10, 40, "open", CLIENT, "virtual_host:c capabilities:c insist:b"),
    (10, 41, "open-ok", BROKER, "known_hosts:c"),
    (10, 50, "close", EITHER, _CLOSE),
    (10, 51, "close-ok", EITHER, ""),
    (10, 60, "blocked", BROKER, "reason:c"),
    (10, 61, "unblocked", BROKER, ""),
    (10, 70, "update-secret", CLIENT, "new_secret:X reason:c"),
    (10, 71, "update-secret-ok", BROKER, ""),
    (20, 10, "open", CLIENT, "out_of_band:c"),
    (20, 11, "open-ok", BROKER, "channel_id:S"),
    (20, 20, "flow", EITHER, "active:b"),
    (20, 21, "flow-ok", EITHER, "active:b"),
    (20, 40, "close", EITHER, _CLOSE),
    (20, 41, "close-ok", EITHER, ""),
    (30, 10, "request", CLIENT, "realm:c exclusive:b passive:b active:b write:b read:b"),
    (30, 11, "request-ok", BROKER, "ticket:s"),
    (40, 10, "declare", CLIENT,
     "ticket:s exchange:c type:c passive:b durable:b auto_delete:b internal:b nowait:b arguments:F"),
    (40, 11, "declare-ok", BROKER, ""),
    (40, 20, "delete", CLIENT, "ticket:s exchange:c if_unused:b nowait:b"),
    (40, 21, "delete-ok", BROKER, ""),
    (40, 30, "bind", CLIENT, "ticket:s destination:c source:c routing_key:c nowait:b arguments:F"),
    (40, 31, "bind-ok", BROKER, ""),
    (40, 40, "unbind", CLIENT, "ticket:s destination:c source:c routing_key:c nowait:b arguments:F"),
    (40, 51, "unbind-ok", BROKER, ""),
    (50, 10, "declare", CLIENT,
     "ticket:s queue:c passive:b durable:b exclusive:b auto_delete:b nowait:b arguments:F"),
    (50, 11, "declare-ok", BROKER, "queue:c message_count:l consumer_count:l"),
    (50, 20, "bind", CLIENT, "ticket:s queue:c exchange:c routing_key:c nowait:b arguments:F"),
    (50, 21, "bind-ok", BROKER, ""),
    (50, 30, "purge", CLIENT, "ticket:s queue:c nowait:b"),
    (50, 31, "purge-ok", BROKER, "message_count:l"),
    (50, 40, "delete", CLIENT, "ticket:s queue:c if_unused:b if_empty:b nowait:b"),
    (50, 41, "delete-ok", BROKER, "message_count:l"),
    (50, 50, "unbind", CLIENT, "ticket:s queue:c exchange:c routing_key:c arguments:F"),
    (50, 51, "unbind-ok", BROKER, ""),
    (60, 10, "qos", CLIENT, "prefetch_size:l prefetch_count:s global_qos:b"),
    (60, 11, "qos-ok", BROKER, ""),
    (60, 20, "consume", CLIENT,
     "ticket:s queue:c consumer_tag:c no_local:b no_ack:b exclusive:b nowait:b arguments:F"),
    (60, 21, "consume-ok", BROKER, "consumer_tag:c"),
    (60, 30, "cancel", EITHER, "consumer_tag:c nowait:b"),
    (60, 31, "cancel-ok", EITHER, "consumer_tag:c"),
    (60, 40, "publish", CLIENT, "ticket:s exchange:c routing_key:c mandatory:b immediate:b"),
    (60, 50, "return", BROKER, "reply_code:s reply_text:c exchange:c routing_key:c"),
    (60, 60, "deliver", BROKER, "consumer_tag:c delivery_tag:L redelivered:b exchange:c routing_key:c"),
    (60, 70, "get", CLIENT, "ticket:s queue:c no_ack:b"),
    (60, 71, "get-ok", BROKER, "delivery_tag:L redelivered:b exchange:c routing_key:c message_count:l"),
    (60, 72, "get-empty", BROKER, "cluster_id:c"),
    (60, 80, "ack", EITHER, "delivery_tag:L multiple:b"),
    (60, 90, "reject", CLIENT, "delivery_tag:L requeue:b"),
    (60, 100, "recover-async", CLIENT, "requeue:b"),
    (60, 110, "recover", CLIENT, "requeue:b"),
    (60, 111, "recover-ok", BROKER, ""),
    (60, 120, "nack", EITHER, "delivery_tag:L multiple:b requeue:b"),
    (85, 10, "select", CLIENT, "nowait:b"),
    (85, 11, "select-ok", BROKER, ""),
    (90, 10, "select", CLIENT, ""),
    (90, 11, "select-ok", BROKER, ""),
    (90, 20, "commit", CLIENT, ""),
    (90, 21, "commit-ok", BROKER, ""),
    (90, 30, "rollback", CLIENT, ""),
    (90, 31, "rollback-ok", BROKER, ""),
)  # fmt: skip


def _arguments(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, kind) for name, _, kind in (word.partition(":") for word in text.split()))


METHODS: dict[int, MethodSpec] = {
    class_id << 16 | method_id: MethodSpec(f"{CLASSES[class_id]}.{name}", sender, _arguments(arguments))
    for class_id, method_id, name, sender, arguments in _TABLE
}
"""class << 16 | method, as the first four bytes of a method frame's payload say it."""

NUMBERS = {spec.name: number for number, spec in METHODS.items()}

WITH_SECRET = frozenset(
    number.to_bytes(4, "big") for number, spec in METHODS.items() if any(kind == "X" for _, kind in spec.arguments)
)


ACK, NACK = (60, 80), (60, 120)
BLOCKED = (10, 60)


def name_of(class_number: int, number: int) -> str:
    """ "basic.ack", or the two numbers of one that is not known."""
    spec = METHODS.get(class_number << 16 | number)
    return spec.name if spec is not None else f"{class_number}.{number}"


def name_of_both(numbers: int) -> str:
    """As `name_of`, of class << 16 | method; "" for 0 (what a close for no method's sake says)."""
    return name_of(numbers >> 16, numbers & 0xFFFF) if numbers else ""


def without_secrets(payload: bytes) -> bytes:
    """A method frame's payload with the bytes of its secrets zeroed; where its form is not clear, all arguments are."""
    if payload[:4] not in WITH_SECRET:
        return payload
    kept = bytearray(payload)
    at = 4
    for _, kind in METHODS[int.from_bytes(payload[:4], "big")].arguments:
        if kind in "cSFX":
            width = 1 if kind == "c" else 4
            size = int.from_bytes(payload[at : at + width], "big")
            begin, at = at + width, at + width + size
            if at > len(payload):
                return payload[:4] + bytes(len(payload) - 4)
            if kind == "X":
                kept[begin:at] = bytes(size)
        else:
            raise ValueError(f"a secret beside an argument of type {kind}")
    return bytes(kept)
