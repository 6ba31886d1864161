"""The purposes that a wait can have, and how a stack is read into one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Purpose(Enum):
    """Why a thread would be waiting, as its frames say."""

    WORK = "work"
    """Parked where its role waits for work: a pool's queue, an accept or event loop, a consumer, a signal wait."""
    SUBSCRIPTION = "subscription"
    """A call whose purpose is to wait for a peer: BLPOP, XREAD BLOCK, pub/sub, LISTEN, a consumer, a long poll."""
    OWED = "owed"
    """A reply that the protocol owes at once: AMQP -ok or confirm, TLS or database handshake, greeting."""
    REQUEST = "request"
    """A reply with an open end: SQL, HTTP, a command."""
    RESOLVE = "resolve"
    CONNECT = "connect"
    SEND = "send"
    INBOUND = "inbound"
    """Reading a request from a client."""
    LOCK = "lock"
    """Acquiring a mutual-exclusion lock."""
    CONDITION = "condition"
    """Condition, Event, Barrier: waits for a notification."""
    JOIN = "join"
    """Waits for a thread, process or future to finish."""
    SLEEP = "sleep"
    RETRY = "retry"
    """Sleeps between attempts."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Reading:
    """How a stack was read."""

    purpose: Purpose
    reason: str
    """In words for the report: "parked in its pool's queue", "waits for an AMQP confirm"."""
    frame: int | None
    """Index of the frame that decided, innermost 0."""
    family: str = ""
    """The library family whose frames decided: "amqp", "redis", "sql", "http", ...; "" when none is known."""
    by_name: bool = False
    """Decided by the function's name alone, in code that the vocabulary does not know."""
