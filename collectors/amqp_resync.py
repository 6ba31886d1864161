"""Finds AMQP 0-9-1 frame boundaries in the middle of a stream. No I/O.

A boundary is believed when frames follow each other from it: each of a plausible form (amqp_methods knows the methods)
and closed by 0xCE. Bodies may hold anything, even frames, so a few frames in a row prove nothing: either the chain also
meets the beginnings and ends of segments, where programs begin and end their writes and what is inside of a body does
not, or it is long. Until then nothing is told, and what follows is kept to be told then. Only a chain longer than any
body frame can be is beyond doubt: one that breaks before is taken back (amqp_conversation).
"""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass, field

from stucktrace.collectors.amqp_methods import CLASSES, METHODS, NUMBERS

_ANSWERS = {
    NUMBERS["basic.ack"]: (13, 0),
    NUMBERS["basic.nack"]: (13, 0),
    NUMBERS["connection.blocked"]: (5, 4),
    NUMBERS["connection.unblocked"]: (4, 0),
    NUMBERS["connection.close"]: (11, 6),
    NUMBERS["channel.close"]: (11, 6),
}
"""Payload bytes without the short string in it, and where the string's length stands; 0: there is none."""

_WITH_CONTENT = frozenset(NUMBERS[f"basic.{name}"] for name in ("publish", "return", "deliver", "get-ok"))

_CLASS_OCTETS = b"".join(re.escape(bytes([number])) for number in CLASSES)
_CANDIDATE = re.compile(
    rb"(?=\x01..\x00[\x00-\x03]..\x00[" + _CLASS_OCTETS + rb"]\x00|\x02..\x00[\x00-\x03]..\x00\x3c\x00\x00|"
    rb"\x03..\x00[\x00-\x03]..|\x08\x00\x00\x00\x00\x00\x00\xce)",
    re.DOTALL,
)
_CANDIDATE_BYTES = 11
"""So many bytes are looked at before a place is a candidate."""

_PAUSE_S = 0.5
_MOST_CHAINS = 1024
_ENOUGH_FRAMES = 64
_TLS_RECORD_BYTES = (1 << 14) + 256
_TLS_RECORDS = 3


@dataclass
class _Chain:
    begin: int
    segment: int
    """The number of the segment in which it begins."""
    at_start: bool
    """It begins where that segment does."""
    frames: int = 0
    """Heartbeats left out: eight bytes that a body's pattern may well repeat."""
    met_ends: int = 0
    """How often a frame ended where a segment did."""
    contents: int = 0
    """Messages that were there from their method to the last byte of their body."""
    open_contents: dict[int, int] = field(default_factory=dict)
    """Channel -> bytes of its message that are to come; -1 before its content header."""


class Hunt:
    """`feed` takes the stream's bytes, a segment at a time. Positions count from the hunt's beginning."""

    def __init__(self, frame_max: int) -> None:
        self.frame_max = frame_max
        self._passed: set[int] = set()
        """Where a chain's frames begin: no need to begin another there."""
        self._segments = 0
        self.tls = False
        self._tls_records = 0
        self._tls_next = 0
        self._kept: list[tuple[float, bytes]] = []
        self._data = bytearray()
        """The bytes of `_kept`, from position `_first`."""
        self._first = 0
        self._looked = 0
        """Every position before it was looked at."""
        self._chains: dict[int, _Chain] = {}
        """The position where the next frame has to begin -> the chain that leads there."""
        self._wanted: list[tuple[int, int]] = []
        """(how far the bytes must go before there is more to see, that position), a heap."""

    def feed(self, time_s: float, data: bytes) -> list[tuple[float, bytes]] | None:
        """None while no boundary is sure; else the stream's bytes from the boundary on, with their times."""
        if not data:
            return None
        segment_begin = self._first + len(self._data)
        self._kept.append((time_s, data))
        self._data += data
        end = segment_begin + len(data)
        self._segments += 1
        self._follow_tls(segment_begin, end)
        found = self._follow(end)
        if found is None:
            found = self._look(segment_begin, end)
        if found is not None:
            return self._since(found)
        self._forget(end)
        return None

    def settle(self, now: float) -> list[tuple[float, bytes]] | None:
        """As `feed`, when nothing came for a while: whole frames that are whole segments are believed then."""
        if not self._kept or now - self._kept[-1][0] < _PAUSE_S:
            return None
        chain = self._chains.get(self._first + len(self._data))
        if chain is None or not (chain.at_start and chain.met_ends and chain.frames):
            return None
        return self._since(chain.begin)

    def _follow(self, end: int) -> int | None:
        """Goes on with the chains whose next frame has come."""
        while self._wanted and self._wanted[0][0] <= end:
            _, place = heapq.heappop(self._wanted)
            chain = self._chains.pop(place, None)
            found = None if chain is None else self._run(place, chain, end)
            if found is not None:
                return found
        return None

    def _look(self, segment_begin: int, end: int) -> int | None:
        """Begins a chain wherever a frame may begin."""
        low = max(self._looked, self._first)
        for match in _CANDIDATE.finditer(self._data, low - self._first):
            place = self._first + match.start()
            if place in self._passed:
                continue
            if len(self._chains) >= _MOST_CHAINS and (place != segment_begin or len(self._chains) > 2 * _MOST_CHAINS):
                continue
            found = self._run(place, _Chain(place, self._segments, place == segment_begin), end)
            if found is not None:
                return found
        self._looked = max(low, end - _CANDIDATE_BYTES + 1)
        self._passed = {place for place in self._passed if place >= self._looked}
        return None

    def _run(self, place: int, chain: _Chain, end: int) -> int | None:
        """Follows one chain as far as the bytes go; its beginning, when it is to be believed."""
        data, first = self._data, self._first
        wanted = place + _CANDIDATE_BYTES
        while place + 7 <= end:
            at = place - first
            size = int.from_bytes(data[at + 3 : at + 7], "big")
            stop = place + 7 + size
            if size > self.frame_max - 8 or (known := _possible(data, at, size)) is False:
                return None
            wanted = stop + 1 if known else place + _CANDIDATE_BYTES
            if known is None or stop >= end:
                break
            if data[stop - first] != 0xCE:
                return None
            if not _content_goes_on(chain, data, at, size):
                # What came before on this channel was none of this connection's, or a part of it only.
                chain = _Chain(place, chain.segment, False)
                _content_goes_on(chain, data, at, size)
            self._passed.add(place)
            alone = chain.at_start and chain.begin == place and stop + 1 == end and _is_alone(data, at, size, place)
            chain.frames += data[at] != 8 or alone
            place = stop + 1
            if place == end:
                chain.met_ends += 1
            wanted = place + 7
            if self._believed(chain, place, alone):
                return chain.begin
        other = self._chains.get(place)
        if other is None:
            heapq.heappush(self._wanted, (wanted, place))
        if other is None or other.begin > chain.begin:
            self._chains[place] = chain
        return None

    def _believed(self, chain: _Chain, place: int, alone: bool) -> bool:
        if place - chain.begin > self.frame_max:
            return chain.frames > 1
        if chain.frames >= _ENOUGH_FRAMES:
            return not self._may_be_inside(chain, only_at_start=False)
        if not chain.met_ends:
            return False
        if alone:
            # A segment that is one frame of those that are sent alone.
            return True
        passed_ends = self._segments - chain.segment + 1
        whole_messages = chain.at_start and 2 <= chain.contents <= chain.met_ends
        aligned = chain.at_start + chain.met_ends >= 3 and chain.met_ends * 2 >= passed_ends
        return chain.frames >= 2 and (whole_messages or aligned) and not self._may_be_inside(chain, only_at_start=True)

    def _may_be_inside(self, chain: _Chain, *, only_at_start: bool) -> bool:
        """Whether an earlier chain waits for the rest of a frame: this one may be in it."""
        return any(
            other.begin < chain.begin and (other.at_start or not only_at_start) for other in self._chains.values()
        )

    def _follow_tls(self, begin: int, end: int) -> None:
        """Counts TLS records that follow each other."""
        if self._tls_next < begin or not self._tls_records:
            self._tls_next, self._tls_records = begin, 0
        while self._tls_next + 5 <= end:
            record = self._data[self._tls_next - self._first : self._tls_next - self._first + 5]
            if len(record) < 5 or not _is_tls(record):
                self._tls_next, self._tls_records = end, 0
                return
            self._tls_next += 5 + (record[3] << 8 | record[4])
            self._tls_records += 1
            if self._tls_records >= _TLS_RECORDS or (self._tls_next == end and self._tls_records and begin == 0):
                self.tls = True

    def _since(self, place: int) -> list[tuple[float, bytes]]:
        position = self._first
        kept = []
        for time_s, data in self._kept:
            if position + len(data) > place:
                kept.append((time_s, data[max(place - position, 0) :]))
            position += len(data)
        return kept

    def _forget(self, end: int) -> None:
        """Drops what no chain begins in, and chains that reach further back than is worth keeping."""
        oldest = end - 3 * self.frame_max
        if self._chains and end - self._first < 2 * self.frame_max:
            return
        self._chains = {place: chain for place, chain in self._chains.items() if chain.begin >= oldest}
        self._wanted = [each for each in self._wanted if each[1] in self._chains]
        heapq.heapify(self._wanted)
        needed = min((chain.begin for chain in self._chains.values()), default=end)
        needed = min(needed, self._looked, max(end - 5, 0))
        while self._kept and self._first + len(self._kept[0][1]) <= needed:
            size = len(self._kept.pop(0)[1])
            del self._data[:size]
            self._first += size


def _is_tls(header: bytearray) -> bool:
    """A record's header (RFC 8446, 5.1): type, version 3.x, length."""
    length = header[3] << 8 | header[4]
    return 20 <= header[0] <= 23 and header[1] == 3 and header[2] <= 4 and 0 < length <= _TLS_RECORD_BYTES


def _is_alone(data: bytearray, at: int, size: int, place: int) -> bool:
    """A heartbeat; and where nothing came before, one of the methods by which a silent broker answers, of exactly its
    length: what is waited for is often all that comes."""
    if data[at] == 8:
        return True
    length = _ANSWERS.get(int.from_bytes(data[at + 7 : at + 11], "big")) if data[at] == 1 and place == 0 else None
    if length is None:
        return False
    fixed, text_at = length
    return size == fixed + (data[at + 7 + text_at] if text_at else 0)


def _possible(data: bytearray, at: int, size: int) -> bool | None:
    """Whether a frame can begin so; None while too little of it is there to say."""
    kind = data[at]
    if kind == 8:
        return size == 0 and data[at + 1] == 0 and data[at + 2] == 0
    if kind == 3:
        return size > 0 and (data[at + 1] != 0 or data[at + 2] != 0)
    if kind not in (1, 2) or size < 4:
        return False
    head = data[at + 7 : at + 11]
    if len(head) < 4:
        return None
    if kind == 1:
        return int.from_bytes(head, "big") in METHODS
    return size >= 14 and head == b"\x00\x3c\x00\x00"


def _content_goes_on(chain: _Chain, data: bytearray, at: int, size: int) -> bool:
    """Counts the messages that are complete; False where a message is not what its method and header announced."""
    kind, channel = data[at], data[at + 1] << 8 | data[at + 2]
    left = chain.open_contents.get(channel)
    if kind == 1:
        if left is not None:
            # An exception of the broker's may come at any time, but nothing else on this channel.
            return int.from_bytes(data[at + 7 : at + 11], "big") == NUMBERS["channel.close"]
        if int.from_bytes(data[at + 7 : at + 11], "big") in _WITH_CONTENT:
            chain.open_contents[channel] = -1
        return True
    if left is None or kind == 8:
        return True
    if kind == 2:
        left, announced = int.from_bytes(data[at + 11 : at + 19], "big"), left
        if announced != -1:
            return False
    elif size > left:
        return False
    else:
        left -= size
    chain.open_contents[channel] = left
    if not left:
        chain.contents += 1
        del chain.open_contents[channel]
    return True
