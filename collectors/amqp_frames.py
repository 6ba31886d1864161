"""AMQP 0-9-1 frames in one direction's bytes: where each begins and ends, also from the middle on or after a gap.

Source: the specification, section 2.3: type (1 method, 2 header, 3 body, 8 heartbeat), channel, size, payload, 0xCE.
Bodies are skipped without being kept, of content headers the first 14 bytes are kept. Where the boundary is lost it is
hunted for (amqp_resync) and until it is found nothing is told.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from stucktrace.collectors.amqp_methods import without_secrets
from stucktrace.collectors.amqp_resync import Hunt

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE
FRAME_MAX = 131072
"""What clients and RabbitMQ agree on unless told otherwise."""
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"

_LARGEST = 256 << 20
"""A larger frame than any that was negotiated is no frame."""
_METHOD_BYTES = 64 << 10
_HEADER_BYTES = 14
"""class, weight, body size, property flags."""

_LEAST = {METHOD: 4, HEADER: 14, BODY: 0, HEARTBEAT: 0}
"""Payload bytes that a frame has at least."""

_FRAME = struct.Struct(">BHI")


class Frame(NamedTuple):
    time_s: float
    """When its last byte came."""
    kind: int
    channel: int
    payload: bytes
    """Of a method: all of it (64 KiB at most), its secrets zeroed. Of a header: the first 14 bytes. Else empty."""
    size: int


class Frames:
    """`feed` and `gap` take what a `tcp_streams.Stream` gives out, in its order."""

    def __init__(self, from_start: bool) -> None:
        self.frame_max: int | None = None
        """As negotiated, where the handshake was seen. 0: no limit."""
        self.protocol = ""
        """ "0-9-1" when its header was seen, another version's number when that was; "tls" for TLS records."""
        self.lost = 0
        """How often the boundary was lost without a gap: what came before may have been no frames at all."""
        self.resynchronised = 0
        self.taken_back = 0
        """How often what was told since the last of them was, it turned out, the inside of a body."""
        self._doubtful_bytes = 0
        """So many bytes on, a boundary that was hunted for is beyond doubt."""
        self.seen = 0
        """Frames told, and not taken back."""
        self.whole = from_start
        """Nothing is missing from the connection's first byte on."""
        self._hunt: Hunt | None = None if from_start else Hunt(FRAME_MAX)
        self._trusted = from_start
        self._part = b""
        """The beginning of a frame, as far as it has come."""
        self._open: tuple[int, int, bytes, int] | None = None
        """kind, channel, kept payload, size of a frame whose other bytes are skipped."""
        self._left = 0
        """So many bytes of it are to come, its end octet included."""

    @property
    def hunting(self) -> bool:
        return self._hunt is not None

    def feed(self, time_s: float, data: bytes) -> list[Frame]:
        if self._hunt is None and not self._trusted and not self._doubtful_bytes:
            frames: list[Frame] = []
            self._walk(time_s, data, frames)
            self.seen += len(frames)
            return frames
        frames = self._feed(time_s, data)
        if self._doubtful_bytes:
            self._doubtful_bytes = max(0, self._doubtful_bytes - len(data))
        self.seen += len(frames)
        return frames

    def _feed(self, time_s: float, data: bytes) -> list[Frame]:
        if self._hunt is not None:
            return self._feed_hunt(time_s, data)
        if self._trusted:
            data = self._after_protocol_header(time_s, data)
            if not data:
                return []
            if self._hunt is not None:
                return self._feed_hunt(time_s, data)
        frames: list[Frame] = []
        self._walk(time_s, data, frames)
        return frames

    def gap(self, gap_bytes: int) -> bool:
        """Bytes are missing. True where they do no harm: inside of a frame that is skipped anyway."""
        if self._hunt is None and gap_bytes < self._left:
            self._left -= gap_bytes
            return True
        self.whole = False
        self._start_hunt()
        return False

    def _start_hunt(self) -> None:
        self._part, self._open, self._left = b"", None, 0
        self._trusted = False
        self._hunt = Hunt(self.frame_max or FRAME_MAX)

    def _after_protocol_header(self, time_s: float, data: bytes) -> bytes:
        """What follows the eight bytes with which a client (or a broker that refuses the version) begins."""
        data = self._part + data
        self._part = b""
        if data[:4] == PROTOCOL_HEADER[: len(data[:4])]:
            if len(data) < 8:
                self._part = data
                return b""
            self._trusted = False
            self._saw_protocol(data[:8])
            return data[8:]
        self._trusted = False
        if not _plausible_start(data):
            # No AMQP from its first byte on: TLS, another protocol, or another's connection.
            self._start_hunt()
        return data

    def _saw_protocol(self, header: bytes) -> None:
        if header == PROTOCOL_HEADER:
            self.protocol = "0-9-1"
        else:
            # 0-8 and 0-9 wrote 1, 1 and then their number; AMQP 1.0 a protocol id and its version.
            old = header[4:6] == b"\x01\x01"
            self.protocol = f"0-{max(header[6:8])}" if old else ".".join(map(str, header[5:8]))
            self._start_hunt()

    def _walk(self, time_s: float, data: bytes, frames: list[Frame]) -> None:
        """Cuts `data` into frames; it begins where the last one stopped."""
        if self._left:
            if len(data) < self._left:
                self._left -= len(data)
                return
            begin = self._left
            self._left = 0
            assert self._open is not None
            if data[begin - 1] != FRAME_END:
                self._lose(time_s, data[begin:], frames)
                return
            frames.append(Frame(time_s, *self._open))
            self._open = None
            if begin == len(data):
                return
            data = data[begin:]
        elif self._part:
            data = self._part + data
            self._part = b""
        at, end = 0, len(data)
        unpack, append, new = _FRAME.unpack_from, frames.append, tuple.__new__
        largest = (self.frame_max - 8) if self.frame_max else _LARGEST
        while at + 7 <= end:
            kind, channel, size = unpack(data, at)
            begin = at + 7
            stop = begin + size
            if stop < end:
                if data[stop] != FRAME_END or size < _LEAST.get(kind, _LARGEST):
                    self._lose(time_s, data[at + 1 :], frames)
                    return
                if kind == METHOD:
                    payload = data[begin:stop]
                    if payload[1] == 10:  # class connection: its methods alone can have secrets
                        payload = without_secrets(payload)
                    append(new(Frame, (time_s, METHOD, channel, payload, size)))
                elif kind == BODY:
                    append(new(Frame, (time_s, BODY, channel, b"", size)))
                elif kind == HEADER:
                    append(new(Frame, (time_s, HEADER, channel, data[begin : min(stop, begin + 14)], size)))
                else:
                    append(new(Frame, (time_s, HEARTBEAT, channel, b"", size)))
                at = stop + 1
                continue
            if not _LEAST.get(kind, _LARGEST) <= size <= largest:
                self._lose(time_s, data[at + 1 :], frames)
                return
            needed = 0 if kind == BODY else min(size, _HEADER_BYTES if kind == HEADER else _METHOD_BYTES)
            if end - begin < needed:
                break
            if kind == METHOD and needed == size:
                break  # its end octet alone is missing
            payload = data[begin : begin + needed]
            self._open = (kind, channel, without_secrets(payload) if kind == METHOD else payload, size)
            self._left = stop + 1 - end
            return
        self._part = data[at:]

    def _lose(self, time_s: float, rest: bytes, frames: list[Frame]) -> None:
        """What should be a frame is none."""
        self.lost += 1
        if self._doubtful_bytes > 0:
            self.taken_back += 1
            self.seen = 0
            frames.clear()
        self._doubtful_bytes = 0
        self.whole = False
        self._start_hunt()
        frames += self._feed_hunt(time_s, rest)

    def _feed_hunt(self, time_s: float, data: bytes) -> list[Frame]:
        assert self._hunt is not None
        found = self._hunt.feed(time_s, data)
        if self._hunt.tls:
            self.protocol = "tls"
        return [] if found is None else self._found(found)

    def settle(self, now: float) -> list[Frame]:
        """Frames that were not sure while more was expected."""
        found = None if self._hunt is None else self._hunt.settle(now)
        frames = [] if found is None else self._found(found)
        self.seen += len(frames)
        return frames

    def _found(self, found: list[tuple[float, bytes]]) -> list[Frame]:
        assert self._hunt is not None
        self._doubtful_bytes = self._hunt.frame_max
        self._hunt = None
        self.resynchronised += 1
        if self.protocol == "tls":
            self.protocol = ""
        frames: list[Frame] = []
        for when, part in found:
            if self._hunt is not None:
                frames += self._feed_hunt(when, part)
            else:
                self._walk(when, part, frames)
        return frames


_START = re.compile(rb"AMQP\x00\x00\x09\x01|\x01\x00\x00....\x00\x0a\x00\x0a", re.DOTALL)


def begins_connection(data: bytes) -> bool:
    """Whether these are surely a connection's first bytes: the protocol header, or the broker's connection.start."""
    return _START.match(data) is not None


def _plausible_start(data: bytes) -> bool:
    """Whether a connection's first bytes can be a frame's: a broker's first is connection.start on channel 0."""
    return data[:3] == b"\x01\x00\x00"[: len(data)]
