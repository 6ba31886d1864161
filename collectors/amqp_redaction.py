"""Captured packets of AMQP connections, without what nobody else should read: fit to be given away (pure).

Kept are the IP and TCP headers, the frames' headers and ends, methods, and of content headers the class and the body's
size. Zeroed, with their length, are message bodies, the properties and headers of messages, the credentials in
connection.start-ok and its like, and all bytes in which no frame can be told. A packet of a connection that has shown
no AMQP frame yet waits, and is forgotten when that takes too long: other protocols never get into the file.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from stucktrace.collectors.amqp_frames import BODY, FRAME_END, FRAME_MAX, HEADER, HEARTBEAT, METHOD, PROTOCOL_HEADER
from stucktrace.collectors.amqp_methods import WITH_SECRET, without_secrets
from stucktrace.collectors.amqp_resync import Hunt
from stucktrace.collectors.packets import ACK, Segment
from stucktrace.collectors.tcp_streams import Piece, Stream

MOST_DIRECTIONS = 2048
"""Of a process that opens a connection for each publish there is no end: the oldest are forgotten."""
MOST_WAITING = 512
MOST_WAITING_BYTES = 8 << 20
"""Of one direction."""
REMEMBERED_BYTES = 256 << 10
"""Of what was given out already: what comes again is the same again."""

_LEAST = {METHOD: 4, HEADER: 14, BODY: 0, HEARTBEAT: 0}
_IDS = 4
"""Class and method."""
_KEPT_OF_HEADER = 12
_MASK, _HALF = (1 << 32) - 1, 1 << 31


class Record(NamedTuple):
    """A packet of the file."""

    time_s: float
    packet: bytes
    wire_bytes: int


class _Waiting(NamedTuple):
    time_s: float
    head: bytes
    """IP and TCP header."""
    place: int
    """Of its payload in the stream."""
    payload_bytes: int
    wire_bytes: int


class Redaction:
    """`feed` takes every packet with its segment, and gives out those that are ready, each direction in its order."""

    def __init__(self) -> None:
        self._directions: dict[tuple[str, str], _Direction] = {}

    def feed(self, packet: bytes, segment: Segment) -> list[Record]:
        """`packet` begins with its IP header."""
        ends = segment.source, segment.destination
        direction = self._directions.get(ends)
        if direction is None:
            if len(self._directions) >= MOST_DIRECTIONS:
                self._forget(next(iter(self._directions)))
            direction = self._directions[ends] = _Direction()
            direction.other = self._directions.get(ends[::-1])
            if direction.other is not None:
                direction.other.other = direction
        other = direction.other
        if other is not None and segment.flags & ACK:
            other.acknowledged(segment)
        direction.feed(_without_padding(packet), segment)
        found = direction.ready()
        if other is not None and (waited := other.ready()):
            # The first frame of either direction sets both free.
            found = sorted([*waited, *found], key=lambda record: record.time_s)
        return found

    def _forget(self, ends: tuple[str, str]) -> None:
        other = self._directions.pop(ends).other
        if other is not None:
            other.other = None


def _without_padding(packet: bytes) -> bytes:
    """As long as its IP header says; one that says 0 is as long as it is."""
    if packet[0] >> 4 == 4:
        length = int.from_bytes(packet[2:4], "big")
    else:
        length = int.from_bytes(packet[4:6], "big")
        length += 40 if length else 0
    return packet[:length] if length else packet


@dataclass
class _Direction:
    other: _Direction | None = None
    _stream: Stream = field(default_factory=Stream)
    _bytes: _Bytes | None = None
    _clean: bytearray = field(default_factory=bytearray)
    """Redacted bytes, from position `_base` of the stream on."""
    _base: int = 0
    _next: int = 0
    """The position of the next byte of the stream."""
    _waiting: deque[_Waiting] = field(default_factory=deque)
    _waiting_bytes: int = 0

    def feed(self, packet: bytes, segment: Segment) -> None:
        pieces = self._stream.feed(segment)
        if self._bytes is None and self._stream.started:
            self._bytes = _Bytes(self._stream.from_start)
            self._base = self._next = self._stream.initial
        self._take(pieces)
        payload_bytes = len(segment.payload)
        head = packet[: len(packet) - payload_bytes]
        self._waiting.append(_Waiting(segment.time_s, head, self._place(segment.seq), payload_bytes, len(packet)))
        self._waiting_bytes += payload_bytes

    def acknowledged(self, segment: Segment) -> None:
        """By a segment of the other direction."""
        self._take(self._stream.acknowledged(segment.ack, segment.time_s))

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            assert self._bytes is not None
            self._next += piece.gap_bytes + len(piece.data)
            self._clean += self._bytes.gap(piece.gap_bytes) + self._bytes.feed(piece.time_s, piece.data)

    def speaks_amqp(self) -> bool:
        return self._bytes is not None and self._bytes.told

    def _place(self, seq: int) -> int:
        """Nearest to the next byte that is expected."""
        ahead = (seq - self._next) & _MASK
        return self._next + (ahead if ahead < _HALF else ahead - _MASK - 1)

    def ready(self) -> list[Record]:
        if not self._waiting:
            return []
        known = self.speaks_amqp() or (self.other is not None and self.other.speaks_amqp())
        found = []
        decided = self._base + len(self._clean)
        while self._waiting:
            first = self._waiting[0]
            full = len(self._waiting) > MOST_WAITING or self._waiting_bytes > MOST_WAITING_BYTES
            undecided = first.payload_bytes and first.place + first.payload_bytes > decided
            if not full and (undecided or not known):
                break
            self._waiting.popleft()
            self._waiting_bytes -= first.payload_bytes
            if known:
                found.append(Record(first.time_s, first.head + self._redacted(first), first.wire_bytes))
        self._forget(decided)
        return found

    def _redacted(self, waiting: _Waiting) -> bytes:
        """Its payload; zeros for what is not remembered."""
        begin = waiting.place - self._base
        again = min(max(-begin, 0), waiting.payload_bytes)
        known = bytes(self._clean[max(begin, 0) : max(begin + waiting.payload_bytes, 0)])
        return (bytes(again) + known).ljust(waiting.payload_bytes, b"\0")

    def _forget(self, decided: int) -> None:
        needed = min([decided, *(waiting.place for waiting in self._waiting if waiting.payload_bytes)])
        needed -= REMEMBERED_BYTES
        if needed > self._base + REMEMBERED_BYTES:
            del self._clean[: needed - self._base]
            self._base = needed


class _Bytes:
    """One direction's bytes in order: the same number comes out, later where a frame's beginning is hunted for."""

    def __init__(self, from_start: bool) -> None:
        self.told = False
        """A frame was told."""
        self._hunt: Hunt | None = None if from_start else Hunt(FRAME_MAX)
        self._hunted_bytes = 0
        self._before_frames = from_start
        self._head = b""
        """The first bytes of a frame, up to its class and method."""
        self._left = 0
        """Of its payload and end."""

    def gap(self, gap_bytes: int) -> bytes:
        """So many bytes are missing."""
        if not gap_bytes:
            return b""
        hunted, self._hunted_bytes = self._hunted_bytes, 0
        if self._hunt is None and len(self._head) >= 7 and gap_bytes < self._left:
            self._left -= gap_bytes
        else:
            self._start_hunt()
        return bytes(hunted + gap_bytes)

    def _start_hunt(self) -> None:
        self._hunt, self._hunted_bytes = Hunt(FRAME_MAX), 0
        self._head, self._left = b"", 0
        self._before_frames = False

    def feed(self, time_s: float, data: bytes) -> bytes:
        if self._hunt is None:
            return self._walk(time_s, data) if data else b""
        found = self._hunt.feed(time_s, data)
        self._hunted_bytes += len(data)
        if found is None:
            return b""
        hunted, self._hunt, self._hunted_bytes = self._hunted_bytes, None, 0
        out = b"".join(self.feed(at_s, part) for at_s, part in found)
        return bytes(hunted - sum(len(part) for _, part in found)) + out

    def _walk(self, time_s: float, data: bytes) -> bytes:
        out = bytearray()
        at = 0
        while at < len(data):
            if self._before_frames:
                # No frame begins as the protocol header does.
                if len(self._head) == 0 and data[at] != PROTOCOL_HEADER[0]:
                    self._before_frames = False
                    continue
                taken = data[at : at + len(PROTOCOL_HEADER) - len(self._head)]
                self._head += taken
                out += taken
                at += len(taken)
                if len(self._head) == len(PROTOCOL_HEADER):
                    self._before_frames, self._head = False, b""
                continue
            if len(self._head) < 7:
                taken = data[at : at + 7 - len(self._head)]
                self._head += taken
                out += taken
                at += len(taken)
                if len(self._head) == 7:
                    size = int.from_bytes(self._head[3:7], "big")
                    if size < _LEAST.get(self._head[0], 1 << 32):
                        return bytes(out) + self._lose(time_s, data[at:])
                    self._left = size + 1
                continue
            part = data[at : at + self._left]
            at += len(part)
            out += self._payload(part)
            if not self._left:
                if part[-1] != FRAME_END:
                    return bytes(out) + self._lose(time_s, data[at:])
                self.told = True
                self._head = b""
        return bytes(out)

    def _lose(self, time_s: float, rest: bytes) -> bytes:
        self._start_hunt()
        return self.feed(time_s, rest)

    def _payload(self, part: bytes) -> bytes:
        """The next bytes of a frame's payload, and of its end."""
        whole = int.from_bytes(self._head[3:7], "big")
        passed = whole + 1 - self._left
        self._left -= len(part)
        end = part[-1:] if not self._left else b""
        body = part[: len(part) - len(end)]
        kind = self._head[0]
        if kind == METHOD:
            return self._method(body, passed, whole) + end
        kept = max(0, _KEPT_OF_HEADER - passed) if kind == HEADER else 0
        return body[:kept] + bytes(max(0, len(body) - kept)) + end

    def _method(self, body: bytes, passed: int, whole: int) -> bytes:
        if passed == 0 and len(body) == whole:
            return without_secrets(body)
        ids = max(0, _IDS - passed)
        self._head += body[:ids]
        if self._head[7:11] in WITH_SECRET:
            # Where in it the secret lies is not told from a part.
            return body[:ids] + bytes(len(body) - len(body[:ids]))
        return body
