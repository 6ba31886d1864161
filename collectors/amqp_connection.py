"""One TCP connection that may be AMQP: what is kept of its two directions, and which end is the client. No I/O."""

from __future__ import annotations

from stucktrace.collectors.amqp_conversation import Conversation, Event
from stucktrace.collectors.amqp_frames import METHOD, Frame, Frames
from stucktrace.collectors.amqp_methods import BROKER, CLIENT, METHODS
from stucktrace.collectors.tcp_streams import Stream
from stucktrace.facts.amqp import AmqpMethod

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

    def missed(self) -> None:
        """Frames may be missing from here on."""
        if self.connection.client is not None:
            self.connection.conversation.missed(self.connection.side(self))

    def doubtful(self) -> None:
        """A frame boundary was found in the middle: what is told from here on may have to be taken back."""
        if self.connection.client is not None:
            self.connection.conversation.remember(self.connection.side(self))

    def take_back(self) -> None:
        """It had to."""
        connection = self.connection
        if connection.client is not None:
            connection.conversation.take_back(connection.side(self))
        connection.waiting = [each for each in connection.waiting if each[0] is not self]

    def event(
        self,
        time_s: float,
        kind: str,
        incoming: bool | None = None,
        method: AmqpMethod | None = None,
        gap_bytes: int = 0,
    ) -> Event:
        client = self.connection.client or next(iter(self.connection.ends.values()))
        if incoming is None:
            incoming = self is not client
        return Event(time_s, client.end, client.peer.end, kind, incoming, method, gap_bytes)


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
        self.frame_max: int | None = None

    def is_amqp(self) -> bool:
        """Whether frames were seen, or its header."""
        return any(
            direction.frames is not None and (direction.frames.protocol not in ("", "tls") or direction.frames.seen > 0)
            for direction in self.ends.values()
        )

    def is_amqps(self) -> bool:
        """TLS, to or from the port that is registered for AMQP over it."""
        return self.encrypted and any(end.endswith(":5671") for end in self.ends)

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
        if frame_max != self.frame_max:
            self.frame_max = frame_max
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
