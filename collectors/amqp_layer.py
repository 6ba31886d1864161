"""AMQP 0-9-1 as a scapy layer: frames, every method of amqp_methods, content headers and properties, field tables.

`arguments(payload)` decodes a method frame's payload; `Frame` is a whole frame, to build and to dissect. The bytes of
secrets (SASL responses and challenges) are dropped while dissecting, from scapy's own copies of the packet too. scapy's
import costs 0.3 s: only ever in a command or child process that needs it.
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar

from scapy.fields import (
    BitField,
    ByteEnumField,
    ByteField,
    Field,
    IntField,
    LongField,
    ShortField,
)
from scapy.packet import Packet, Raw
from stucktrace.collectors.amqp_methods import METHODS, without_secrets
from stucktrace.collectors.amqp_tables import Malformed, Value, pack_table, read_table

FRAME_END = 0xCE
KINDS = {1: "method", 2: "header", 3: "body", 8: "heartbeat"}


class _Text(Field[bytes, bytes]):
    """A string with its length in front, in one byte or in four."""

    __slots__ = ["length_bytes"]

    def __init__(self, name: str, length_bytes: int) -> None:
        super().__init__(name, b"")
        self.length_bytes = length_bytes

    def addfield(self, pkt: Packet | None, s: bytes, val: bytes | str | None) -> bytes:
        raw = val.encode() if isinstance(val, str) else bytes(val or b"")
        return s + len(raw).to_bytes(self.length_bytes, "big") + raw

    def getfield(self, pkt: Packet | None, s: bytes) -> tuple[bytes, bytes]:
        end = self.length_bytes + int.from_bytes(s[: self.length_bytes], "big")
        if len(s) < max(end, self.length_bytes):
            raise Malformed(f"{self.name} is cut short")
        return s[end:], s[self.length_bytes : end]

    def any2i(self, pkt: Packet | None, x: bytes | str) -> bytes:
        return x.encode() if isinstance(x, str) else x


class _Secret(_Text):
    """Dropped at once: what is dissected is always empty."""

    def __init__(self, name: str) -> None:
        super().__init__(name, 4)

    def getfield(self, pkt: Packet | None, s: bytes) -> tuple[bytes, bytes]:
        return super().getfield(pkt, s)[0], b""


class _Table(Field[dict[str, Value], bytes]):
    def __init__(self, name: str) -> None:
        super().__init__(name, {})

    def addfield(self, pkt: Packet | None, s: bytes, val: dict[str, Value] | None) -> bytes:
        return s + pack_table(val or {})

    def getfield(self, pkt: Packet | None, s: bytes) -> tuple[bytes, dict[str, Value]]:
        table, end = read_table(s)
        return s[end:], table


_FIELDS: dict[str, Any] = {
    "o": ByteField, "s": ShortField, "l": IntField, "L": LongField, "F": lambda name, _: _Table(name),
    "c": lambda name, _: _Text(name, 1), "S": lambda name, _: _Text(name, 4), "X": lambda name, _: _Secret(name),
}  # fmt: skip


def _fields(arguments: tuple[tuple[str, str], ...]) -> list[Any]:
    """Neighbouring bits share octets, the first argument in the lowest bit: scapy wants them from the highest down."""
    fields: list[Any] = []
    bits: list[str] = []

    def put_bits() -> None:
        if bits:
            if len(bits) < 8:
                fields.append(BitField(f"spare_{len(fields)}", 0, 8 - len(bits)))
            fields.extend(BitField(name, 0, 1) for name in reversed(bits))
            bits.clear()

    for name, kind in arguments:
        if kind == "b":
            bits.append(name)
            continue
        put_bits()
        fields.append(_FIELDS[kind](name, 0))
    put_bits()
    return fields


class Method(Packet):
    """The arguments of a method; a subclass for each."""

    name = "AMQP method"
    number = 0

    def __init__(self, _pkt: bytes = b"", *arguments: Any, **fields: Any) -> None:
        head = self.number.to_bytes(4, "big")
        super().__init__(without_secrets(head + _pkt)[4:] if _pkt else _pkt, *arguments, **fields)

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes | None]:
        return b"", s


_BY_NUMBER: dict[int, type[Method]] = {
    number: type(
        "".join(word.capitalize() for word in spec.name.replace("-", ".").split(".")),
        (Method,),
        {"name": f"AMQP {spec.name}", "number": number, "fields_desc": _fields(spec.arguments), "__module__": __name__},
    )
    for number, spec in METHODS.items()
}


def method_class(number: int) -> type[Method]:
    """`number`: class << 16 | method. KeyError for one that is in no specification."""
    return _BY_NUMBER[number]


_PROPERTIES: tuple[Any, ...] = (
    _Text("content_type", 1),
    _Text("content_encoding", 1),
    _Table("headers"),
    ByteField("delivery_mode", 0),
    ByteField("priority", 0),
    _Text("correlation_id", 1),
    _Text("reply_to", 1),
    _Text("expiration", 1),
    _Text("message_id", 1),
    LongField("timestamp", 0),
    _Text("type", 1),
    _Text("user_id", 1),
    _Text("app_id", 1),
    _Text("cluster_id", 1),
)
"""Of class basic, from the highest flag bit (15) down. Bit 0 would announce more flags: basic has none."""


class _Properties(Field[dict[str, Any], bytes]):
    """Property flags and those properties that they announce."""

    def addfield(self, pkt: Packet | None, s: bytes, val: dict[str, Any] | None) -> bytes:
        flags, content = 0, b""
        for bit, field in enumerate(_PROPERTIES):
            if val and field.name in val:
                flags |= 1 << 15 - bit
                content = field.addfield(pkt, content, val[field.name])
        return s + flags.to_bytes(2, "big") + content

    def getfield(self, pkt: Packet | None, s: bytes) -> tuple[bytes, dict[str, Any]]:
        flags = int.from_bytes(s[:2], "big")
        s = s[2:]
        found = {}
        for bit, field in enumerate(_PROPERTIES):
            if flags & 1 << 15 - bit:
                s, found[field.name] = field.getfield(pkt, s)
        return s, found


class ContentHeader(Packet):
    name = "AMQP content header"
    fields_desc: ClassVar[list[Any]] = [
        ShortField("class_id", 60),
        ShortField("weight", 0),
        LongField("body_size", 0),
        _Properties("properties", {}),
    ]

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes | None]:
        return b"", s


class Frame(Packet):
    """type, channel, size, payload (a Method, a ContentHeader, or Raw), 0xCE."""

    name = "AMQP"
    fields_desc: ClassVar[list[Any]] = [
        ByteEnumField("type", 1, KINDS),
        ShortField("channel", 0),
        IntField("size", None),
    ]

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        if self.type == 1 and isinstance(self.payload, Method):
            pay = self.payload.number.to_bytes(4, "big") + pay
        if self.size is None:
            pkt = pkt[:3] + len(pay).to_bytes(4, "big")
        return pkt + pay + bytes([FRAME_END])

    def do_dissect_payload(self, s: bytes) -> None:
        payload, rest = s[: self.size], s[self.size :]
        if rest[:1] != bytes([FRAME_END]):
            raise Malformed("no frame end")
        if self.type == 1:
            self.add_payload(_method(payload))
        elif self.type == 2:
            self.add_payload(ContentHeader(payload))
        elif payload:
            self.add_payload(Raw(payload))
        if rest[1:]:
            self.add_payload(Raw(rest[1:]))
        # Its own copy of the packet would keep what was dropped.
        self.original = b""
        self.raw_packet_cache = None


def _method(payload: bytes) -> Packet:
    kind = _BY_NUMBER.get(int.from_bytes(payload[:4], "big"))
    return Raw(payload) if kind is None else kind(payload[4:])


def arguments(payload: bytes) -> dict[str, Any] | None:
    """A method frame's arguments by their names; None for an unknown method, and for bytes that are not one."""
    kind = _BY_NUMBER.get(int.from_bytes(payload[:4], "big"))
    if kind is None:
        return None
    packet = kind()
    rest = without_secrets(payload)[4:]
    try:
        for field in packet.fields_desc:
            rest, packet.fields[field.name] = field.getfield(packet, rest)
    except (Malformed, struct.error, IndexError):
        return None
    return {name: packet.fields[name] for name, _ in METHODS[kind.number].arguments}
