"""One direction of a TCP connection, put in order from captured segments: bytes, and gaps where some were not captured.

Segments may come out of order, twice, overlapping, cut by the capture's snap length, and with the sequence number going
round. A hole is waited for until the receiver has acknowledged what lies behind it (then it had the bytes and only the
capture has not) and the capture had time to bring them late; or until more is held back than `HELD_BYTES`.
"""

from __future__ import annotations

from typing import NamedTuple

from stucktrace.collectors.packets import FIN, RST, SYN, Segment

HELD_BYTES = 4 << 20
HELD_SEGMENTS = 4096
LATE_SEGMENTS = 256
"""So many segments of this direction may pass before one that comes late in the capture ..."""
LATE_S = 1.0
"""... or so much time, once its bytes are acknowledged."""

_HALF, _MASK = 1 << 31, (1 << 32) - 1


class Piece(NamedTuple):
    """The next bytes of the stream, or a gap in it."""

    time_s: float
    """When the receiver could have them: a segment that waited for an earlier one has that one's time."""
    data: bytes
    gap_bytes: int = 0
    """Bytes that were not captured, in front of `data`."""


class Stream:
    """`feed` takes a direction's segments, `acknowledged` what the other direction's segments acknowledge."""

    def __init__(self) -> None:
        self._next: int | None = None
        """The sequence number of the next byte, counted on over the wrap."""
        self._held: dict[int, tuple[float, bytes, int]] = {}
        """Sequence number -> (time, bytes, bytes on the wire) of what came too early."""
        self._held_bytes = 0
        self._acked: int | None = None
        """The highest acknowledgement that lies behind a hole; when it came, in time and in segments."""
        self._acked_s = 0.0
        self._acked_passed = 0
        self._passed = 0
        self._time_s = 0.0
        self.initial = 0
        """The first sequence number."""
        self.from_start = False
        """The SYN was seen."""
        self.ended = False
        """A FIN or RST was seen."""

    @property
    def started(self) -> bool:
        """Whether anything was seen of it."""
        return self._next is not None

    @property
    def waits(self) -> bool:
        """Bytes are missing that may still come."""
        return bool(self._held) or self._acked is not None

    def feed(self, segment: Segment) -> list[Piece]:
        time_s, _, _, seq, flags, payload, wire_bytes, _ = segment
        following = self._next
        if following is not None and seq == following & _MASK and not self._held and not flags & (SYN | FIN | RST):
            # Nearly every segment.
            self._passed += 1
            self._next = following + wire_bytes
            if not payload and not wire_bytes:
                return []
            self._time_s = max(self._time_s, time_s)
            if len(payload) >= wire_bytes:
                return [Piece(self._time_s, payload)]
            return [Piece(self._time_s, payload), Piece(self._time_s, b"", wire_bytes - len(payload))]
        return self._feed_slowly(segment)

    def _feed_slowly(self, segment: Segment) -> list[Piece]:
        self._passed += 1
        seq, flags = segment.seq, segment.flags
        if flags & SYN:
            if self._next is None:
                self.from_start = True
                self._next = self.initial = seq + 1
            seq += 1
        if flags & (FIN | RST):
            self.ended = True
        if self._next is None:
            if not segment.payload_bytes_on_wire:
                return []
            self._next = self.initial = seq
        place = self._unwrapped(seq)
        if segment.payload_bytes_on_wire and place + segment.payload_bytes_on_wire > self._next:
            held = self._held.get(place)
            if held is None or held[2] < segment.payload_bytes_on_wire or len(held[1]) < len(segment.payload):
                self._held_bytes += len(segment.payload) - (len(held[1]) if held else 0)
                self._held[place] = (segment.time_s, segment.payload, segment.payload_bytes_on_wire)
        pieces = self._in_order()
        if self._held_bytes > HELD_BYTES or len(self._held) > HELD_SEGMENTS:
            pieces += self._over_the_hole()
        return pieces + self.settle(segment.time_s)

    def acknowledged(self, ack: int, time_s: float) -> list[Piece]:
        """The receiver has everything before `ack`."""
        if self._next is None:
            return []
        if (ack - self._next) & _MASK >= _HALF or ack == self._next & _MASK:
            if self._held:
                return self.settle(time_s)
            self._acked = None
            return []
        place = self._unwrapped(ack)
        if self._acked is None:
            self._acked_s, self._acked_passed = time_s, self._passed
        if self._acked is None or place > self._acked:
            self._acked = place
        return self.settle(time_s)

    def settle(self, time_s: float) -> list[Piece]:
        """Gives up on what is acknowledged and did not come late either."""
        pieces: list[Piece] = []
        while self._acked is not None and self._next is not None:
            if self._acked <= self._next:
                self._acked = None
                break
            if time_s - self._acked_s < LATE_S and self._passed - self._acked_passed < LATE_SEGMENTS:
                break
            first = min(self._held, default=None)
            if first is not None and first <= self._acked:
                pieces += self._over_the_hole()
                continue
            missing = self._acked - self._next - (1 if self.ended and not self._held else 0)
            self._next = self._acked
            self._acked = None
            if missing > 0:
                pieces.append(Piece(max(self._time_s, time_s), b"", missing))
        return pieces

    def _unwrapped(self, seq: int) -> int:
        """The place in the stream nearest to the next byte that `seq` can mean."""
        assert self._next is not None
        ahead = (seq - self._next) & _MASK
        return self._next + (ahead if ahead < _HALF else ahead - _MASK - 1)

    def _in_order(self) -> list[Piece]:
        """What is held and can be given out now."""
        assert self._next is not None
        pieces: list[Piece] = []
        while self._held:
            place = self._next if self._next in self._held else min(self._held)
            if place > self._next:
                break
            time_s, data, wire_bytes = self._held.pop(place)
            self._held_bytes -= len(data)
            already = self._next - place
            if wire_bytes <= already:
                continue
            self._time_s = max(self._time_s, time_s)
            self._next = place + wire_bytes
            if already < len(data):
                pieces.append(Piece(self._time_s, data[already:]))
            if len(data) < wire_bytes:
                pieces.append(Piece(self._time_s, b"", wire_bytes - max(already, len(data))))
        return pieces

    def _over_the_hole(self) -> list[Piece]:
        assert self._next is not None
        first = min(self._held)
        missing = first - self._next
        self._next = first
        gap = [Piece(self._held[first][0], b"", missing)] if missing > 0 else []
        return gap + self._in_order()
