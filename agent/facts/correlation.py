"""What `stucktrace correlate` joins: what RabbitMQ logged of its connections, and recorded worker timeouts.

Times are CLOCK_REALTIME, each by the clock of the machine that wrote it down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ABRUPT, MISSED, HANDSHAKE, FAILED, CLOSED = (
    "closed-abruptly",
    "missed-heartbeats",
    "handshake-timeout",
    "failed",
    "closed",
)
"""How a connection ended. FAILED: for another reason, which the log gives. CLOSED: as it should."""
LOSSES = frozenset({ABRUPT, MISSED, FAILED})
"""Ends of a connection that had been opened, and that nobody closed as he should."""


@dataclass(frozen=True)
class BrokerEvent:
    """The end of a connection, as the broker saw it."""

    time: float
    kind: str
    client: str
    """ "address:port" of the client's end, as the broker sees it."""
    server: str
    process: str = ""
    """The broker's own name of the connection, "<0.677.0>"."""
    reason: str = ""
    timeout_s: float | None = None
    """MISSED: the heartbeat timeout of the connection."""
    accepted: float | None = None
    """When it was accepted; None: before the log begins, or not logged."""


@dataclass(frozen=True)
class Alarm:
    """A resource alarm of the broker: it reads nothing from publishers meanwhile."""

    resource: str
    """ "memory", "disk" ..."""
    node: str
    since: float
    until: float | None
    """None: not cleared when the log ends."""


@dataclass(frozen=True)
class BrokerLog:
    """What one broker's log says."""

    events: tuple[BrokerEvent, ...] = ()
    """Of those asked for, in the order of time."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Of all, by kind; also "accepted"."""
    open: Mapping[str, float] = field(default_factory=dict)
    """Client -> when it was accepted: connections whose end is not in the log."""
    alarms: tuple[Alarm, ...] = ()
    lines: int = 0
    unreadable: int = 0
    """Lines that are no part of a record."""
    dropped: int = 0
    """Messages that the broker itself says it left out."""
    first: float | None = None
    last: float | None = None
    zone_assumed: bool = False
    """Some of its times tell no time zone."""


@dataclass(frozen=True)
class Connection:
    """As the worker's own socket has it."""

    local: str
    remote: str
    ended: bool = False
    """The peer had closed it already when it was looked at."""


@dataclass(frozen=True)
class WorkerTimeout:
    """gunicorn ended a worker for its old heartbeat."""

    pid: int
    killed: float
    """When it was sent SIGABRT."""
    source: str
    """ "journal", "alerts" or "gunicorn's log"."""
    since: float | None = None
    """When the wait began in which it hung."""
    timeout_s: float | None = None
    connections: tuple[Connection, ...] = ()
    """Those it had when it was looked at."""
    looked: float | None = None
    """When that was."""
    hung_on: Connection | None = None
    resolution_s: float = 0.0
    """How exact `killed` is."""
    ns_pid: int | None = None
    """As its own PID namespace calls it."""
