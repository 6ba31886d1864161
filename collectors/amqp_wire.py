"""AMQP 0-9-1 connections from captured segments: `Conversations.feed(segment)` -> events, `.facts(now)` -> AmqpFact.

Which end is the client: the process looked at, where the connections to follow are given; else the end that opened the
connection, that sent the protocol header, or that sent what only a client sends. Times are the segments' own
(CLOCK_REALTIME). Memory is bounded: so many connections, so many bytes held for order or for a frame boundary in each,
so many tags in each channel.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from stucktrace.collectors.addresses import port_of
from stucktrace.collectors.amqp_conversation import Conversation, Event
from stucktrace.collectors.amqp_frames import METHOD, Frame, Frames, begins_connection
from stucktrace.collectors.amqp_methods import BROKER, CLIENT, METHODS
from stucktrace.collectors.amqp_unknown import sentences
from stucktrace.collectors.packets import ACK, FIN, RST, SYN, Segment
from stucktrace.collectors.tcp_streams import Piece, Stream
from stucktrace.facts.amqp import AmqpFact, AmqpMethod

__all__ = ["Conversations", "Event"]

MOST_CONNECTIONS = 4096
_FOREIGN_BYTES = 1 << 20
"""A connection that nobody asked for is let alone when this much of it holds no frame."""
_FRAMES_WITHOUT_ROLES = 2048


class Direction:
    """What one end sends."""

    def __init__(self, connection: Connection, end: str) -> None:
        self.connection = connection
        self.end = end
        self.stream = Stream()
        self.frames: Frames | None = None
        self.from_start = False
        """All of it is here, from the connection's first byte on (but for gaps)."""
        self.peer: Direction = self
        self.gaps = 0
        self.gap_bytes = 0
        self.bytes_seen = 0


class Connection:
    """Two directions and what they say to each other."""

    def __init__(self, first: str, second: str, followed: bool) -> None:
        self.followed = followed
        self.ends = {end: Direction(self, end) for end in (first, second)}
        self.ends[first].peer, self.ends[second].peer = self.ends[second], self.ends[first]
        self.conversation = Conversation()
        self.client: Direction | None = None
        self.waiting: list[tuple[Direction, list[Frame]]] = []
        """Frames from before it is known which end is the client."""
        self.foreign = False
        self.ended = False
        self.encrypted = False
        self.role_assumed = False

    def is_amqp(self) -> bool:
        """Whether frames were seen, or its header."""
        return any(
            direction.frames is not None and (direction.frames.protocol not in ("", "tls") or direction.frames.seen > 0)
            for direction in self.ends.values()
        )

    def side(self, direction: Direction) -> str:
        return CLIENT if direction is self.client else BROKER

    def client_is(self, direction: Direction) -> None:
        self.client = direction
        waiting, self.waiting = self.waiting, []
        for sender, frames in waiting:
            self.take(sender, frames)

    def take(self, direction: Direction, frames: list[Frame]) -> None:
        """Frames of one direction."""
        client = self.client
        if client is None:
            client = _client_by_methods(direction, frames)
            if client is None:
                if len(self.waiting) < _FRAMES_WITHOUT_ROLES:
                    self.waiting.append((direction, frames))
                return
            self.client_is(client)
        conversation = self.conversation
        conversation.frames(self.side(direction), frames)
        frame_max = conversation.frame_max
        if frame_max is not None:
            for each in self.ends.values():
                if each.frames is not None:
                    each.frames.frame_max = frame_max


def _client_by_methods(direction: Direction, frames: list[Frame]) -> Direction | None:
    for frame in frames:
        if frame.kind == METHOD:
            spec = METHODS.get(int.from_bytes(frame.payload[:4], "big"))
            if spec is not None and spec.sender:
                return direction if spec.sender == CLIENT else direction.peer
    return None


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
        self.connections_not_kept = 0

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
                opened = _event(direction, segment.time_s, "opened")
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
            events.append(_event(direction, segment.time_s, "ended"))
        return tuple(events)

    def facts(self, now: float) -> tuple[AmqpFact, ...]:
        """All connections that are AMQP, or that were asked for, as of `now`."""
        ignored: list[Event] = []
        for connection in self._connections.values():
            for direction in connection.ends.values():
                self._take(direction, direction.stream.settle(now), ignored)
                told = direction.frames.settle(now) if direction.frames is not None else []
                if told:
                    _remember(direction)
                    self._tell(direction, told, ignored)
        return tuple(
            _fact(connection, now)
            for connection in self._connections.values()
            if connection.followed or connection.is_amqp()
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
            self.connections_not_kept += 1
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
                _take_back(direction)
                events.append(_event(direction, time_s, "lost"))
            elif frames.lost != lost and connection.is_amqp():
                _missed(direction)
                events.append(_event(direction, time_s, "lost"))
            if frames.resynchronised != found:
                _remember(direction)
                events.append(_event(direction, time_s, "resynchronised"))
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
                events.append(_event(direction, when, "method", incoming, method))

    def _gap(self, direction: Direction, frames: Frames, gap_bytes: int, time_s: float, events: list[Event]) -> None:
        if frames.gap(gap_bytes):
            return
        direction.gaps += 1
        direction.gap_bytes += gap_bytes
        _missed(direction)
        if direction.connection.is_amqp():
            events.append(_event(direction, time_s, "gap")._replace(gap_bytes=gap_bytes))

    def _protocol(self, direction: Direction, frames: Frames, time_s: float, events: list[Event]) -> None:
        connection = direction.connection
        if frames.protocol == "tls" and not connection.encrypted:
            connection.encrypted = True
            if connection.followed:
                events.append(_event(direction, time_s, "encrypted"))
        elif frames.protocol == "0-9-1" and connection.client is None:
            connection.client_is(direction)

    def _let_alone(self, connection: Connection) -> None:
        if not any(each.frames is not None and each.frames.seen for each in connection.ends.values()):
            connection.foreign = True
            for direction in connection.ends.values():
                direction.frames, direction.stream = None, Stream()


def _missed(direction: Direction) -> None:
    connection = direction.connection
    if connection.client is not None:
        connection.conversation.missed(connection.side(direction))


def _remember(direction: Direction) -> None:
    connection = direction.connection
    if connection.client is not None:
        connection.conversation.remember(connection.side(direction))


def _take_back(direction: Direction) -> None:
    connection = direction.connection
    if connection.client is not None:
        connection.conversation.take_back(connection.side(direction))
    connection.waiting = [each for each in connection.waiting if each[0] is not direction]


def _event(
    direction: Direction, time_s: float, kind: str, incoming: bool | None = None, method: AmqpMethod | None = None
) -> Event:
    connection = direction.connection
    client = connection.client or next(iter(connection.ends.values()))
    if incoming is None:
        incoming = direction is not client
    return Event(time_s, client.end, client.peer.end, kind, incoming, method)


def _fact(connection: Connection, now: float) -> AmqpFact:
    if connection.client is None:
        # Nothing was said that only one side says. Brokers listen on a port, clients take a high one.
        first, second = connection.ends.values()
        connection.client_is(first if (port_of(first.end) or 0) > (port_of(second.end) or 0) else second)
        connection.role_assumed = True
    client = connection.client
    assert client is not None
    talk = connection.conversation
    heartbeat_s, source = talk.heartbeat_s, "tune-ok"
    if heartbeat_s is None:
        # RabbitMQ beats twice in the interval while it has nothing else to send.
        heartbeat_s, source = (float(round(2 * min(talk.beats))), "observed") if len(talk.beats) >= 2 else (None, "")

    def age_s(time_s: float | None) -> float | None:
        return None if time_s is None else max(now - time_s, 0.0)

    def method(sender: str) -> AmqpMethod | None:
        frame = talk.last_method[sender]
        return None if frame is None else talk.method(frame, age_s(frame.time_s))

    def last_s(sender: str) -> float | None:
        frame = talk.last[sender]
        return None if frame is None else age_s(frame.time_s)

    directions = (client, client.peer)
    whole = all(direction.frames is not None and direction.frames.whole for direction in directions)
    encrypted = connection.encrypted and not connection.is_amqp()
    seen = connection.is_amqp()
    return AmqpFact(
        local=client.end,
        remote=client.peer.end,
        source="wire",
        client=talk.client,
        encrypted=encrypted,
        heartbeat_s=heartbeat_s,
        heartbeat_source=source if heartbeat_s is not None else "",
        last_in=method(BROKER),
        last_out=method(CLIENT),
        last_frame_in_s=last_s(BROKER),
        last_frame_out_s=last_s(CLIENT),
        heartbeats_in=talk.heartbeats[BROKER] if seen else None,
        heartbeats_out=talk.heartbeats[CLIENT] if seen else None,
        last_heartbeat_in_s=age_s(talk.last_heartbeat_s[BROKER]),
        last_heartbeat_out_s=age_s(talk.last_heartbeat_s[CLIENT]),
        blocked=replace(talk.blocked, age_s=age_s(talk.blocked_since_s)) if talk.blocked else None,
        closed=replace(talk.closed[1], age_s=age_s(talk.closed[0])) if talk.closed else None,
        closed_by=talk.closed[2] if talk.closed else "",
        confirms=talk.latencies().summary(),
        channels=tuple(channel.fact(now, whole) for _, channel in sorted(talk.channels.items()) if channel.number),
        mid_stream=any(direction.frames is not None and not direction.from_start for direction in directions),
        gaps=sum(direction.gaps for direction in directions),
        unknown=tuple(sentences(connection, directions)),
    )
