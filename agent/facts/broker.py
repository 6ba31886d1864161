"""A broker's own view of itself, as far as it concerns one worker, and what that worker means to consume.

Ages are seconds before the view was read. None is "not known", never "no".
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Subscription:
    """The queues that a consumer of the process is there for. Source: its command line and its objects in memory."""

    name: str
    """Which consumer: "Celery's task consumer", "a kombu Consumer"."""
    queues: tuple[str, ...]
    """What it should consume."""
    source: str
    """Who says so: "-Q on its command line", "its queues (app.amqp)", "its Consumer object"."""
    active: tuple[str, ...] | None = None
    """The queues for which the object itself has a consumer tag now."""
    prefetch: int | None = None
    """How many messages it may hold; 0: any number."""
    initial_prefetch: int | None = None
    """Celery raises `prefetch` by one for each message that it keeps for later (ETA, countdown)."""
    held: int | None = None
    """Redis: messages that it holds now."""
    rate_limited: bool | None = None
    """Celery: a task has a rate limit, so messages may be held back on purpose."""

    @property
    def cancelled(self) -> tuple[str, ...]:
        """Queues for which the object itself has no consumer."""
        return () if self.active is None else tuple(name for name in self.queues if name not in self.active)

    @property
    def full(self) -> bool | None:
        """It holds as many as it may."""
        if self.prefetch is None or self.held is None:
            return None
        return 0 < self.prefetch <= self.held


@dataclass(frozen=True)
class BrokerConsumer:
    """One consumer as the broker has it."""

    queue: str
    vhost: str
    connection: str
    """The connection's name; "" where it is not told."""
    channel: int | None = None
    tag: str = ""
    prefetch: int | None = None
    ack_required: bool | None = None


@dataclass(frozen=True)
class BrokerChannel:
    connection: str
    number: int
    unacked: int | None = None
    """Deliveries that the client has not acknowledged."""
    prefetch: int | None = None
    """The limit of the whole channel; that of one consumer stands there."""
    consumers: int | None = None
    idle_s: float | None = None
    """Since when nothing passed."""


@dataclass(frozen=True)
class BrokerConnection:
    name: str
    peer: str
    """ "address:port" of the client, as the broker sees it."""
    vhost: str = ""
    user: str = ""
    state: str = ""
    client: str = ""
    """The client's library, by its own properties."""
    client_pid: int | None = None
    """Where the client tells it in its properties."""
    command: str = ""
    """Redis: the last command on it."""
    blocking: bool = False
    """Redis: it waits in a blocking command."""
    idle_s: float | None = None


@dataclass(frozen=True)
class BrokerQueue:
    name: str
    vhost: str = ""
    ready: int | None = None
    """Messages that wait for a consumer."""
    unacked: int | None = None
    consumers: int | None = None
    state: str = ""


@dataclass(frozen=True)
class BrokerFact:
    """What the broker says. Source: RabbitMQ's management API, rabbitmqctl, or Redis's CLIENT LIST and LLEN."""

    kind: str
    """"rabbitmq" or "redis"."""
    source: str
    """"management API", "rabbitmqctl", "CLIENT LIST"."""
    where: str
    """Whom was asked, without a password."""
    time: float
    """CLOCK_REALTIME of the reading."""
    connections: tuple[BrokerConnection, ...] = ()
    """Those of the process looked at."""
    matched_by: str = ""
    """"address" or "client properties"; "" where none was found."""
    own_connections: int = 0
    """How many connections to the broker's ports the process has by its own sockets."""
    known_connections: int = 0
    """How many the broker has in all."""
    channels: tuple[BrokerChannel, ...] = ()
    """Of those connections."""
    consumers: tuple[BrokerConsumer, ...] = ()
    """Of those connections."""
    queues: tuple[BrokerQueue, ...] = ()
    """Those of the connections' virtual hosts that have messages or matter to the process."""
    complete: bool = True
    """Everything was told; why not stands in `Seen.missing`."""
    busy: tuple[int, ...] = ()
    """The process's children that did not wait for work."""

    def queue(self, name: str) -> BrokerQueue | None:
        return next((queue for queue in self.queues if queue.name == name), None)
