"""What `stucktrace amqp` knows so far of the connections it watches, and what it comes to. Writes nothing."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from stucktrace.amqp_notices import Notice, Watcher, stuck, total
from stucktrace.collectors.addresses import port_of
from stucktrace.collectors.amqp_unknown import HEARTBEAT_UNSEEN
from stucktrace.collectors.outbound import Connection
from stucktrace.facts import AmqpFact, ProbeFact
from stucktrace.facts_codec import decode
from stucktrace.sinks.amqp import Row

LINGER_S = 5.0
"""So long a connection is followed that the process has closed: its last packets may still come."""
LIKELY_PORTS = frozenset({5671, 5672})
"""Only a hint for what to show of a connection before a frame of it has passed."""
STUCK, UNREADABLE = 1, 4

Key = tuple[str, str]
"""(local, remote)."""


@dataclass
class State:
    connections: dict[Key, Connection] = field(default_factory=dict)
    """Of the process now, AMQP or not."""
    gone: dict[Key, tuple[Connection, float]] = field(default_factory=dict)
    """With the (monotonic) time when it was gone."""
    remembered: dict[Key, AmqpFact] = field(default_factory=dict)
    """What the client's own objects said when the watching began."""
    facts: dict[Key, AmqpFact] = field(default_factory=dict)
    now: float = 0.0
    """Of `facts`, Unix time."""
    live: bool = True
    """A process is watched; else a file is read, whose last instant is taken for now."""
    failed: str = ""
    """Why the decoder did not come to its end."""
    probes: dict[Key, ProbeFact] = field(default_factory=dict)
    """What the peers' TCP answered."""
    not_kept: int = 0
    """Segments of connections for which there was no room."""
    unwritten: str = ""
    """Why the packet file is not whole."""
    unreadable: str = ""
    """Why the capture file is none."""
    _foreign: set[Key] = field(default_factory=set)
    """Connections that speak something else."""
    _rates: dict[Key, float] = field(default_factory=dict)
    _began: float = 0.0
    """When the first facts came."""
    _watcher: Watcher = field(default_factory=Watcher)
    _followed: frozenset[Key] = frozenset()

    def take(self, message: dict[str, Any]) -> list[Notice]:
        """One message of the decoder; what of it is worth a line."""
        if "facts" in message:
            found = self._take_facts(message)
            notices = [Notice(**notice) for notice in message["notices"]]
            return [notice for notice in notices if self._concerns((notice.local, notice.remote))] + found
        if "foreign" in message:
            local, remote = message["foreign"]
            self._foreign.add((local, remote))
        self.failed = message.get("failed", self.failed)
        self.unwritten = message.get("unwritten", self.unwritten)
        self.unreadable = message.get("unreadable", self.unreadable)
        return []

    def _take_facts(self, message: dict[str, Any]) -> list[Notice]:
        before, past = self.facts, self.now
        self.not_kept = message["not_kept"]
        self.now = message["now"]
        # One of which nothing has passed is a connection, too.
        untouched = (AmqpFact(*key, "wire", mid_stream=True) for key in self.remembered if key in self.connections)
        facts = map(self._completed, (*untouched, *(decode(AmqpFact, raw) for raw in message["facts"])))
        self.facts = {(fact.local, fact.remote): fact for fact in facts}
        for key, fact in self.facts.items():
            if key in before and self.now > past:
                published = (total(fact, "publishes") or 0) - (total(before[key], "publishes") or 0)
                self._rates[key] = max(0, published) / (self.now - past)
        if not self.live:
            return []
        self._began = self._began or self.now
        known = (fact for key, fact in self.facts.items() if key not in self.gone)
        return self._watcher.look(known, self.now, self.now - self._began)

    def _completed(self, fact: AmqpFact) -> AmqpFact:
        """With what was agreed on before the capture began."""
        known = self.remembered.get((fact.local, fact.remote))
        if known is None:
            return fact
        fact = replace(fact, client=fact.client or known.client)
        if known.heartbeat_s is None or fact.heartbeat_source == "tune-ok":
            return fact
        unknown = tuple(sentence for sentence in fact.unknown if sentence != HEARTBEAT_UNSEEN)
        return replace(fact, heartbeat_s=known.heartbeat_s, heartbeat_source=known.heartbeat_source, unknown=unknown)

    def _concerns(self, key: Key) -> bool:
        """It speaks AMQP, by its frames or the client's objects, or should by its port."""
        fact = self.facts.get(key)
        return key in self.remembered or port_of(key[1]) in LIKELY_PORTS or (fact is not None and read(fact))

    def learn(self, found: Collection[Connection]) -> bool:
        """Brings the connections up to date; whether others are to be followed now."""
        now = time.monotonic()
        fresh = {(connection.local, connection.remote): connection for connection in found}
        for key in self.connections.keys() - fresh.keys():
            self.gone[key] = self.connections[key], now
        for key in fresh.keys() & self.gone.keys():
            del self.gone[key]
        self.connections = fresh
        before, self._followed = self._followed, frozenset(self.followed())
        return before != self._followed

    def followed(self) -> dict[Key, Connection]:
        """Whose packets are wanted."""
        now = time.monotonic()
        leaving = {key: connection for key, (connection, since) in self.gone.items() if now - since < LINGER_S}
        return {key: each for key, each in {**self.connections, **leaving}.items() if key not in self._foreign}

    def rows(self) -> list[Row]:
        """The connections that speak AMQP, and those that by their port should."""
        found = []
        for key in dict.fromkeys((*self.facts, *self.connections)):
            if self._concerns(key):
                known = self.connections.get(key) or (self.gone[key][0] if key in self.gone else None)
                is_open = not self.live or key in self.connections
                found.append(
                    Row(
                        *key,
                        self.facts.get(key),
                        known.fd if known else None,
                        is_open,
                        self._rates.get(key),
                        known.inode if known else None,
                        self.probes.get(key),
                        self.now - self._began if self.live else None,
                    )
                )
        return found

    def status(self) -> int:
        """The exit status."""
        rows = self.rows()
        if any(row.fact is not None and row.open and stuck(row.fact) for row in rows):
            return STUCK
        if any(probe.answer != "alive" or probe.unreceived_bytes for probe in self.probes.values()):
            return STUCK
        return 0 if any(row.fact is not None and read(row.fact) for row in rows) else UNREADABLE


def read(fact: AmqpFact) -> bool:
    """Frames of it were read."""
    return not fact.encrypted and (fact.last_frame_in_s is not None or fact.last_frame_out_s is not None)
