"""AMQP 0-9-1 connections from captured segments: `Conversations.feed(segment)` -> events, `.facts(now)` -> AmqpFact.

Which end is the client: the process looked at, where the connections to follow are given; else the end that opened the
connection, that sent the protocol header, or that sent what only a client sends. Times are the segments' own
(CLOCK_REALTIME). Memory is bounded: so many connections, so many bytes held for order or for a frame boundary in each,
so many tags in each channel.
"""

from __future__ import annotations

from collections.abc import Set

from stucktrace.collectors.amqp_connection import Connection, Direction
from stucktrace.collectors.amqp_conversation import Event
from stucktrace.collectors.amqp_frames import Frame, Frames, begins_connection
from stucktrace.collectors.amqp_wire_fact import fact_of
from stucktrace.collectors.packets import ACK, FIN, RST, SYN, Segment
from stucktrace.collectors.tcp_streams import Piece, Stream
from stucktrace.facts.amqp import AmqpFact

__all__ = ["Conversations", "Event"]

MOST_CONNECTIONS = 4096
_FOREIGN_BYTES = 1 << 20
"""A connection that nobody asked for is let alone when this much of it holds no frame."""


class Conversations:
    """All AMQP connections of one capture.

    `follow`: (local, remote) of the connections in question, as SocketFact writes them; local is the client. None: all
    that turn out to be AMQP.
    """

    def __init__(self, follow: Set[tuple[str, str]] | None = None) -> None:
        self._follow = follow
        self._directions: dict[tuple[str, str], Direction] = {}
        self._connections: dict[int, Connection] = {}
        """In the order of their beginning; those that ended or were replaced too."""
        self._settled: list[Event] = []
        """Events that `facts` came upon."""
        self.segments_not_kept = 0
        """Of connections that came when there was no room for more."""

    def feed(self, segment: Segment) -> tuple[Event, ...]:
        key = (segment.source, segment.destination)
        direction = self._directions.get(key)
        opened: Event | None = None
        if direction is None or (segment.flags & SYN and self._is_new(direction, segment)):
            found = self._open(segment)
            if found is None:
                return ()
            direction = found
            if segment.flags & SYN:
                opened = direction.event(segment.time_s, "opened")
        connection = direction.connection
        if connection.foreign:
            return ()
        pieces = direction.stream.feed(segment)
        late = direction.peer.stream.acknowledged(segment.ack, segment.time_s) if segment.flags & ACK else None
        ends = segment.flags & (FIN | RST) and not connection.ended
        if not pieces and not late and not opened and not ends:
            return ()
        events: list[Event] = [opened] if opened else []
        if pieces:
            self._take(direction, pieces, events)
        if late:
            self._take(direction.peer, late, events)
        if ends:
            connection.ended = True
            events.append(direction.event(segment.time_s, "ended"))
        return tuple(events)

    def settle(self, now: float) -> tuple[Event, ...]:
        """What is said as nothing more came by `now`: gaps, and frames that were not sure while more might come."""
        events, self._settled = self._settled, []
        for connection in self._connections.values():
            for direction in connection.ends.values():
                self._take(direction, direction.stream.settle(now), events)
                told = direction.frames.settle(now) if direction.frames is not None else []
                if told:
                    direction.doubtful()
                    events.append(direction.event(now, "resynchronised"))
                    self._tell(direction, told, events)
        return tuple(events)

    def facts(self, now: float) -> tuple[AmqpFact, ...]:
        """All connections that are AMQP, or that were asked for, as of `now`."""
        self._settled = list(self.settle(now))
        return tuple(
            fact_of(connection, now)
            for connection in self._connections.values()
            if connection.followed or connection.is_amqp() or connection.is_amqps()
        )

    def _is_new(self, direction: Direction, segment: Segment) -> bool:
        """Whether a SYN opens another connection between ports that had one."""
        stream = direction.stream
        return stream.started and (segment.seq + 1 - stream.initial) & 0xFFFFFFFF != 0

    def _open(self, segment: Segment) -> Direction | None:
        source, destination = segment.source, segment.destination
        local = source
        if self._follow is not None:
            if (source, destination) in self._follow:
                local = source
            elif (destination, source) in self._follow:
                local = destination
            else:
                return None
        if len(self._connections) >= MOST_CONNECTIONS and not self._make_room():
            self.segments_not_kept += 1
            return None
        connection = Connection(local, destination if local == source else source, self._follow is not None)
        self._connections[id(connection)] = connection
        for end, direction in connection.ends.items():
            self._directions[end, direction.peer.end] = direction
        direction = connection.ends[source]
        if self._follow is not None:
            connection.client_is(connection.ends[local])
        elif segment.flags & SYN:
            connection.client_is(direction.peer if segment.flags & ACK else direction)
        return direction

    def _make_room(self) -> bool:
        """Forgets a connection that is not AMQP, or else the oldest that ended."""
        connections = self._connections.items()
        key = next((key for key, each in connections if each.foreign), None)
        if key is None:
            key = next((key for key, each in connections if each.ended), None)
        if key is None:
            return False
        for end, direction in self._connections.pop(key).ends.items():
            if self._directions.get((end, direction.peer.end)) is direction:
                del self._directions[end, direction.peer.end]
        return True

    def _take(self, direction: Direction, pieces: list[Piece], events: list[Event]) -> None:
        if not pieces:
            return
        connection = direction.connection
        frames = direction.frames
        if frames is None:
            direction.from_start = direction.stream.from_start or begins_connection(pieces[0].data)
            frames = direction.frames = Frames(direction.from_start)
        for time_s, data, gap_bytes in pieces:
            if gap_bytes:
                self._gap(direction, frames, gap_bytes, time_s, events)
                continue
            direction.bytes_seen += len(data)
            lost, found, protocol = frames.lost, frames.resynchronised, frames.protocol
            taken_back = frames.taken_back
            told = frames.feed(time_s, data)
            if frames.taken_back != taken_back:
                direction.take_back()
                events.append(direction.event(time_s, "lost"))
            elif frames.lost != lost and connection.is_amqp():
                direction.missed()
                events.append(direction.event(time_s, "lost"))
            if frames.resynchronised != found:
                direction.doubtful()
                events.append(direction.event(time_s, "resynchronised"))
            if told:
                self._tell(direction, told, events)
            if frames.protocol != protocol:
                self._protocol(direction, frames, time_s, events)
        if not connection.followed and frames.hunting and direction.bytes_seen > _FOREIGN_BYTES:
            self._let_alone(connection)

    def _tell(self, direction: Direction, told: list[Frame], events: list[Event]) -> None:
        connection = direction.connection
        connection.take(direction, told)
        if connection.conversation.has_told:
            for when, incoming, method in connection.conversation.told():
                events.append(direction.event(when, "method", incoming, method))

    def _gap(self, direction: Direction, frames: Frames, gap_bytes: int, time_s: float, events: list[Event]) -> None:
        if frames.gap(gap_bytes):
            return
        direction.gaps += 1
        direction.gap_bytes += gap_bytes
        direction.missed()
        if direction.connection.is_amqp():
            events.append(direction.event(time_s, "gap", gap_bytes=gap_bytes))

    def _protocol(self, direction: Direction, frames: Frames, time_s: float, events: list[Event]) -> None:
        connection = direction.connection
        if frames.protocol == "tls" and not connection.encrypted:
            connection.encrypted = True
            if connection.followed:
                events.append(direction.event(time_s, "encrypted"))
        elif frames.protocol == "0-9-1" and connection.client is None:
            connection.client_is(direction)

    def _let_alone(self, connection: Connection) -> None:
        if not any(each.frames is not None and each.frames.seen for each in connection.ends.values()):
            connection.foreign = True
            for direction in connection.ends.values():
                direction.frames, direction.stream = None, Stream()
