"""AMQP 0-9-1 connections: what their frames said, on the wire or in the client's memory.

Ages are seconds before the fact was made, times are Unix seconds. None is always "not known", never "no".
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AmqpMethod:
    """One method frame that says something about the connection's state."""

    name: str
    """By the specification's names, with a dot: "connection.blocked", "channel.close"."""
    channel: int = 0
    age_s: float | None = None
    code: int | None = None
    """reply-code of a close or return."""
    text: str = ""
    """reply-text, or the reason of connection.blocked. Raw: escape it before showing it."""
    method: str = ""
    """Of a close: the method that caused it ("basic.publish"), or ""."""


@dataclass(frozen=True)
class Latency:
    """From a publish to its confirm, in seconds."""

    count: int
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True)
class AmqpChannel:
    """One channel of a connection."""

    number: int
    confirms: bool | None = None
    """Whether confirm.select is in force."""
    transactional: bool | None = None
    """Whether tx.select is."""
    publishes: int | None = None
    acks: int | None = None
    """Publishes that were acked, those of `multiple` counted one by one."""
    nacks: int | None = None
    returns: int | None = None
    deliveries: int | None = None
    """Received by a consumer or basic.get."""
    consumer_acks: int | None = None
    """Deliveries that the client acked, those of `multiple` counted one by one."""
    consumer_nacks: int | None = None
    """Deliveries that it rejected."""
    unconfirmed: int | None = None
    """Publishes in confirm mode without ack or nack."""
    unconfirmed_exact: bool | None = None
    """False: there may be more, from before the capture or from a gap in it (`AmqpFact.unknown` says so)."""
    oldest_unconfirmed_s: float | None = None
    consumers: tuple[str, ...] | None = None
    """Consumer tags in force."""
    closed: AmqpMethod | None = None
    """channel.close, from the broker or the client (`closed_by`)."""
    closed_by: str = ""
    """"broker" or "client"."""
    is_open: bool | None = None
    """From memory: what the client's object says."""


@dataclass(frozen=True)
class AmqpFact:
    """One connection. Source: the capture of `stucktrace amqp` ("wire"), or the client's objects ("memory")."""

    local: str
    """"address:port", as in SocketFact: the end of the process looked at."""
    remote: str
    source: str
    """"wire" or "memory"."""
    client: str = ""
    """The client library: "py-amqp", "pika", ...; from client-properties on the wire."""
    inode: int | None = None
    fd: int | None = None
    encrypted: bool = False
    """TLS: frames cannot be read on the wire."""
    heartbeat_s: float | None = None
    """Negotiated interval; 0: off; None: not known."""
    heartbeat_source: str = ""
    """"tune-ok", "client" (its object in memory), "observed" (the broker's beat), or ""."""
    last_in: AmqpMethod | None = None
    """The last frame from the broker that was not a heartbeat."""
    last_out: AmqpMethod | None = None
    last_frame_in_s: float | None = None
    """Age of the last frame of any kind from the broker."""
    last_frame_out_s: float | None = None
    heartbeats_in: int | None = None
    heartbeats_out: int | None = None
    last_heartbeat_in_s: float | None = None
    last_heartbeat_out_s: float | None = None
    blocked: AmqpMethod | None = None
    """connection.blocked, while it is in force."""
    blocked_assumes: str = ""
    """What `blocked` takes for granted; "" when nothing."""
    closed: AmqpMethod | None = None
    """connection.close."""
    closed_by: str = ""
    confirms: Latency | None = None
    channels: tuple[AmqpChannel, ...] = ()
    waits_for: str = ""
    """From memory: what a thread waits for on it: "confirm", a method's name ("queue.declare-ok"), "events", or ""."""
    waiting_channel: int | None = None
    waiting_tid: int | None = None
    """From memory: the thread that waits on it."""
    waiting_task: str = ""
    """From memory: the task of that thread's event loop, by its name."""
    waiting_s: float | None = None
    """For how long (of a task: at least), where the client's own variables tell."""
    confirm_timeout_s: float | None = None
    """The limit of that wait; None: not known, or there is none (`confirm_timeout_known`)."""
    confirm_timeout_known: bool = False
    mid_stream: bool = False
    """The capture began after the connection did."""
    gaps: int = 0
    """Places where bytes are missing in the capture and frames may be; inside of bodies they do no harm."""
    unknown: tuple[str, ...] = ()
    """What cannot be known of it and why, a sentence each."""
