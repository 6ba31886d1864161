"""What the child process of `stucktrace amqp` does: packets in, events and facts out (see amqp_decoder.py)."""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from stucktrace.amqp_decoder import Channel
from stucktrace.amqp_notices import Notice, notice_of
from stucktrace.collectors import amqp_layer, packet_file, packets
from stucktrace.collectors.addresses import parse_endpoint
from stucktrace.collectors.amqp_redaction import Redaction
from stucktrace.collectors.amqp_wire import Conversations, Event
from stucktrace.collectors.capture import Reader
from stucktrace.collectors.packet_file import RAW_IP, PacketFile
from stucktrace.collectors.packet_filter import Flow
from stucktrace.collectors.packets import ACK, SYN, Segment
from stucktrace.facts import AmqpFact
from stucktrace.facts_codec import encode

__all__ = ["Capture", "amqp_layer", "read_file"]

SETTLED_S = 60.0
"""So long after the last packet of a file none comes late any more."""
EVERY_S = 1.0
"""How often the parent is told how things stand."""
AT_A_TIME = 2000
"""Packets between two glances at the parent."""
FOREIGN_BYTES = 1 << 20
"""A connection that sent so much, and not one frame in it, is no AMQP connection."""
MOST_STRANGERS, MOST_HELD, MOST_OPENING, MOST_REFUSED = 64, 256, 1024, 4096
"""Connections that may turn out to be the process's own, segments kept of each meanwhile; opening segments of others;
connections that are not the process's."""

MOST_NOTICES = 10_000

Ends = tuple[str, str]


class Capture:
    """Reads the packets of a live capture until it is told to end, and then those that are left."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._reader = Reader(channel.fds.pop(0))
        self._file = PacketFile(channel.fds.pop(0)) if channel.fds else None
        self._redaction = Redaction()
        self._wanted: set[Ends] = set()
        """(local, remote): what `_conversations` follows."""
        self._conversations = Conversations(self._wanted)
        self._names: dict[Ends, Ends] = {}
        """(source, destination) on the wire -> as the process knows them."""
        self._bytes: dict[Ends, int] = {}
        """By (local, remote), while no frame was seen."""
        self._strangers: dict[Ends, deque[tuple[bytes, Segment]]] = {}
        self._opening: dict[Ends, tuple[bytes, Segment]] = {}
        """The SYN and the SYN-ACK of connections of which nothing else was seen."""
        self._refused: dict[Ends, None] = {}
        """Strangers that are not the process's."""
        self._notices: dict[Notice, Notice] = {}
        self._last_s = 0.0
        """The time of the last packet."""

    def run(self) -> None:
        try:
            self._run()
        finally:
            if self._file is not None:
                self._file.flush()

    def _run(self) -> None:
        poll = select.poll()
        for fd in (self._reader.fileno(), self._channel.fileno()):
            poll.register(fd, select.POLLIN)
        next_s = time.monotonic() + EVERY_S
        ending = drained = False
        while not (ending and drained):
            while not ending and self._channel.ready():
                order = self._channel.order()
                if "follow" in order:
                    self._follow(order["follow"], order["about"])
                if "end" in order:
                    self._reader.hold()
                    ending = True
            drained = self._read()
            if time.monotonic() >= next_s:
                # While packets wait to be read, it is not known what has come by now.
                self._report(time.time() if drained else self._last_s)
                next_s = time.monotonic() + EVERY_S
            if drained and not ending:
                poll.poll(max(0.0, next_s - time.monotonic()) * 1000)
        self._report(time.time())
        self._channel.tell({"end": True})

    def _read(self) -> bool:
        """Takes what is there, up to a limit. True: there is no more now."""
        for _ in range(AT_A_TIME):
            found = self._reader.read()
            if found is None:
                return True
            self._last_s, packet = found
            segment = packets.segment(RAW_IP, packet, self._last_s)
            if segment is not None:
                self._take(packet, segment)
        return False

    def _take(self, packet: bytes, segment: Segment) -> None:
        ends = segment.source, segment.destination
        names = self._names.get(ends)
        if names is None:
            self._hold(ends, packet, segment)
            return
        if names != ends:
            segment = segment._replace(source=names[0], destination=names[1])
        if self._file is not None:
            for record in self._redaction.feed(_readdressed(packet, *names) if names != ends else packet, segment):
                self._file.add(*record)
        key = names if names in self._bytes else names[::-1]
        if key in self._bytes:
            self._bytes[key] += len(segment.payload)
        self._note(self._conversations.feed(segment))

    def _note(self, events: Iterable[Event]) -> None:
        for event in events:
            notice = notice_of(event)
            if notice is not None:
                alike = replace(notice, time=0.0)
                known = self._notices.get(alike)
                self._notices[alike] = notice if known is None else replace(known, count=known.count + 1)

    def _hold(self, ends: Ends, packet: bytes, segment: Segment) -> None:
        """A connection that nobody asked for, but which begins like AMQP: the parent knows whose it is."""
        back = ends[::-1]
        if segment.flags & SYN:
            # The ports may have been another connection's.
            self._refused.pop(back if segment.flags & ACK else ends, None)
            opened = segment.source if segment.flags & ACK else segment.destination
            if not any(opened in names for names in self._names):
                # No broker as far as is known: if AMQP follows, this is where it began.
                self._opening[ends] = packet, segment
                _forget_oldest(self._opening, MOST_OPENING)
                return
        elif not segment.payload:
            return
        if ends in self._refused or back in self._refused:
            return
        key = back if back in self._strangers else ends
        if key not in self._strangers:
            _forget_oldest(self._strangers, MOST_STRANGERS - 1)
            opening = [found for each in (ends, back) if (found := self._opening.pop(each, None)) is not None]
            self._strangers[key] = deque(sorted(opening, key=lambda one: one[1].time_s), maxlen=MOST_HELD)
            # At once: by the time that its owner is known much of it may have passed.
            self._attach()
            self._channel.tell({"stranger": key})
        self._strangers[key].append((packet, segment))

    def _follow(self, flows: Iterable[tuple[str, str, str, str]], about: Iterable[Ends]) -> None:
        """`flows`: (local, remote) on the wire, and as the process knows them. `about`: the strangers asked about."""
        self._names = {}
        for local, remote, local_name, remote_name in flows:
            self._names[local, remote] = local_name, remote_name
            self._names[remote, local] = remote_name, local_name
            if (local_name, remote_name) not in self._wanted:
                self._wanted.add((local_name, remote_name))
                self._bytes[local_name, remote_name] = 0
        for source, destination in about:
            key = source, destination
            held = self._strangers.pop(key, ())
            if key in self._names:
                for packet, segment in held:
                    self._take(packet, segment)
            else:
                self._refused[key] = None
                _forget_oldest(self._refused, MOST_REFUSED)
        self._attach()

    def _attach(self) -> None:
        both_ways = {tuple(sorted(ends)) for ends in (*self._names, *self._strangers)}
        parsed = (tuple(map(parse_endpoint, ends)) for ends in sorted(both_ways))
        self._reader.follow([Flow(*one, *other) for one, other in parsed if one is not None and other is not None])

    def _report(self, now: float) -> None:
        self._note(self._conversations.settle(now))
        facts = self._conversations.facts(now)
        notices = [asdict(notice) for notice in self._notices.values()]
        self._notices.clear()
        told = {"facts": encode(facts), "now": now, "notices": notices}
        self._channel.tell({**told, "not_kept": self._conversations.segments_not_kept})
        self._let_go(facts)
        if self._file is not None and not self._file.failed:
            self._file.flush()
            if self._file.failed:
                self._channel.tell({"unwritten": self._file.failed})

    def _let_go(self, facts: Iterable[AmqpFact]) -> None:
        """Of connections that speak something else no more is wanted."""
        for fact in facts:
            key = fact.local, fact.remote
            if key not in self._bytes:
                continue
            if fact.last_frame_in_s is not None or fact.last_frame_out_s is not None:
                del self._bytes[key]
            elif self._bytes[key] > FOREIGN_BYTES:
                del self._bytes[key]
                self._channel.tell({"foreign": key})


def _readdressed(packet: bytes, source: str, destination: str) -> bytes:
    """With the ends as the process knows them: both directions bear the same then."""
    ends = parse_endpoint(source), parse_endpoint(destination)
    if ends[0] is None or ends[1] is None:
        return packet
    addresses = ends[0][0] + ends[1][0]
    ports = ends[0][1].to_bytes(2, "big") + ends[1][1].to_bytes(2, "big")
    at, tcp = (12, (packet[0] & 0x0F) * 4) if packet[0] >> 4 == 4 else (8, 40)
    return packet[:at] + addresses + packet[at + len(addresses) : tcp] + ports + packet[tcp + 4 :]


def _forget_oldest(held: dict[Ends, Any], most: int) -> None:
    while len(held) > most:
        del held[next(iter(held))]


def read_file(channel: Channel) -> None:
    """All that stands in a capture file."""
    conversations = Conversations()
    notices: list[Notice] = []
    last_s = 0.0
    file = os.fdopen(channel.fds.pop(0), "rb")
    records = packet_file.read(file)
    while True:
        try:
            link_type, time_s, packet, wire_bytes = next(records)
        except StopIteration:
            break
        except (ValueError, OSError) as error:
            channel.tell({"unreadable": str(error)})
            return
        last_s = max(last_s, time_s)
        segment = packets.segment(link_type, packet, time_s, wire_bytes)
        if segment is not None:
            notices += (found for event in conversations.feed(segment) if (found := notice_of(event)) is not None)
        if len(notices) > MOST_NOTICES:
            _tell(channel, conversations, last_s, notices)
    # Nothing more will come.
    settled = conversations.settle(last_s + SETTLED_S)
    notices += (found for event in settled if (found := notice_of(event)) is not None)
    _tell(channel, conversations, last_s, notices)
    channel.tell({"end": True})


def _tell(channel: Channel, conversations: Conversations, now: float, notices: list[Notice]) -> None:
    facts = encode(conversations.facts(now))
    told = {"facts": facts, "now": now, "notices": [asdict(notice) for notice in notices]}
    channel.tell({**told, "not_kept": conversations.segments_not_kept})
    notices.clear()
