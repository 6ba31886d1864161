"""What is worth a line while AMQP connections are watched, and whether something is stuck in the end (pure).

Notices about frames come as the frames do (amqp_decoder.py); those about time, which no frame tells, are made here from
one look at the connections after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stucktrace.facts import AmqpChannel, AmqpFact

if TYPE_CHECKING:
    from stucktrace.collectors.amqp_wire import Event

UNCONFIRMED_S = 5.0
"""A confirm is owed at once."""
MISSED_BEATS = 2
"""AMQP 0-9-1, 4.2.7: a peer that is silent for two intervals may be taken for dead."""


@dataclass(frozen=True)
class Notice:
    """One line. Which fields say something depends on `event`."""

    time: float
    """Unix time."""
    local: str
    remote: str
    event: str
    """"opened", "ended", "blocked", "unblocked", "connection-closed", "channel-closed", "consumer-cancelled", "nacked",
    "returned", "unconfirmed", "confirmed", "broker-silent", "client-silent", "heard-again", "encrypted", "probed",
    "missed" (bytes that were not captured)."""
    channel: int = 0
    by: str = ""
    """"broker" or "client"."""
    count: int = 1
    age_s: float | None = None
    heartbeat_s: float | None = None
    code: int | None = None
    text: str = ""
    """From the wire, raw."""
    method: str = ""


_OF_METHODS = {
    "connection.blocked": "blocked",
    "connection.unblocked": "unblocked",
    "connection.close": "connection-closed",
    "channel.close": "channel-closed",
    "basic.return": "returned",
}
_OF_KINDS = {"opened": "opened", "ended": "ended", "gap": "missed", "lost": "missed", "encrypted": "encrypted"}


def notice_of(event: Event) -> Notice | None:
    """What a frame or a packet is worth; None for nothing."""
    by = "broker" if event.incoming else "client"
    method = event.method
    if method is None:
        kind = _OF_KINDS.get(event.kind)
        return Notice(event.time_s, event.local, event.remote, kind, by=by) if kind is not None else None
    name = _OF_METHODS.get(method.name, "")
    if method.name == "basic.cancel" and event.incoming:
        name = "consumer-cancelled"
    if not name:
        return None
    return Notice(
        event.time_s,
        event.local,
        event.remote,
        name,
        method.channel,
        by,
        code=method.code,
        text=method.text,
        method=method.method,
    )


@dataclass
class Watcher:
    """Remembers what has been said, so that it is said once."""

    _said: dict[tuple[str, str, str, int], float] = field(default_factory=dict)
    """(local, remote, event, channel) -> since when."""
    _nacks: dict[tuple[str, str, int], int] = field(default_factory=dict)
    """(local, remote, channel) -> how many were said."""

    def look(self, facts: Iterable[AmqpFact], now: float, watched_s: float = 0.0) -> list[Notice]:
        """`watched_s`: for how long every packet was seen."""
        found: list[Notice] = []
        for fact in facts:
            quiet_s = watched_s if untouched(fact) else None
            found += self._refused(fact, now)
            found += self._confirms(fact, now)
            found += self._silence(fact, now, "broker-silent", fact.last_frame_in_s or quiet_s)
            found += self._silence(fact, now, "client-silent", fact.last_frame_out_s or quiet_s)
        return found

    def _refused(self, fact: AmqpFact, now: float) -> Iterable[Notice]:
        for channel in fact.channels:
            key = fact.local, fact.remote, channel.number
            fresh = (channel.nacks or 0) - self._nacks.get(key, 0)
            self._nacks[key] = channel.nacks or 0
            if fresh > 0:
                yield Notice(now, fact.local, fact.remote, "nacked", channel.number, "broker", fresh)

    def _confirms(self, fact: AmqpFact, now: float) -> Iterable[Notice]:
        for channel in fact.channels:
            key = fact.local, fact.remote, "unconfirmed", channel.number
            if overdue(channel) and key not in self._said:
                age_s, count = channel.oldest_unconfirmed_s or 0.0, channel.unconfirmed or 1
                self._said[key] = now - age_s
                yield Notice(now, fact.local, fact.remote, "unconfirmed", channel.number, count=count, age_s=age_s)
            elif channel.unconfirmed == 0 and key in self._said:
                age_s = now - self._said.pop(key)
                yield Notice(now, fact.local, fact.remote, "confirmed", channel.number, age_s=age_s)

    def _silence(self, fact: AmqpFact, now: float, event: str, age_s: float | None) -> Iterable[Notice]:
        key = fact.local, fact.remote, event, 0
        if silent(fact, age_s) and key not in self._said:
            self._said[key] = now - (age_s or 0.0)
            yield Notice(now, fact.local, fact.remote, event, age_s=age_s, heartbeat_s=fact.heartbeat_s)
        elif not silent(fact, age_s) and self._said.pop(key, None) is not None:
            by = event.removesuffix("-silent")
            yield Notice(now, fact.local, fact.remote, "heard-again", by=by)


def untouched(fact: AmqpFact) -> bool:
    """Not one byte of it was seen: of what passed unread the fact says so."""
    return fact.last_frame_in_s is None and fact.last_frame_out_s is None and not (fact.encrypted or fact.unknown)


def overdue(channel: AmqpChannel) -> bool:
    """A publish has been without its confirm for longer than a confirm may take."""
    return bool(channel.unconfirmed) and (channel.oldest_unconfirmed_s or 0.0) > UNCONFIRMED_S


def silent(fact: AmqpFact, age_s: float | None) -> bool:
    """Nothing for so long that heartbeats must have been missed."""
    return bool(fact.heartbeat_s) and age_s is not None and age_s > MISSED_BEATS * (fact.heartbeat_s or 0.0)


def stuck(fact: AmqpFact) -> str:
    """What a publisher on this connection waits for in vain; "" when for nothing that the frames show."""
    if fact.blocked is not None and fact.closed is None:
        return "blocked"
    for channel in fact.channels:
        if channel.closed is not None and channel.closed_by == "broker" and channel.unconfirmed:
            return "channel-closed"
        if overdue(channel) and fact.closed is None:
            return "unconfirmed"
    return ""


def total(fact: AmqpFact, name: str) -> int | None:
    """The sum of a count over the channels; None where no channel knows it."""
    known = [number for number in (getattr(channel, name) for channel in fact.channels) if number is not None]
    return sum(known) if known else None


def oldest_s(fact: AmqpFact) -> float | None:
    """The age of the oldest publish without a confirm."""
    return max((age_s for c in fact.channels if (age_s := c.oldest_unconfirmed_s) is not None), default=None)
