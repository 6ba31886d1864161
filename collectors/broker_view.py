"""The broker's own view of one process's connections: which way to ask, and what of the answer is the process's.

"http(s)://..." is RabbitMQ's management API, "redis(s)://..." a Redis server, "rabbitmqctl" that program on this node,
"find" whatever the process's connections lead to on this node. Servers are asked from the network namespace of the
process, for that is where it reaches them from; else from our own. Nothing is changed on a broker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from stucktrace.broker_urls import BrokerUrl
from stucktrace.collectors import netns
from stucktrace.errors import CollectorError
from stucktrace.facts import ProcessFact, SocketFact
from stucktrace.facts.broker import BrokerConnection, BrokerFact

WHAT = "the broker's view"
T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """How the broker is asked."""

    way: str
    """"url", "rabbitmqctl" or "find"."""
    url: BrokerUrl | None = None
    password: str = field(default="", repr=False)
    """For a server that is found."""


def collect(view: View, process: ProcessFact, sockets: tuple[SocketFact, ...], queues: tuple[str, ...]) -> BrokerFact:
    """One reading. `queues`: those that the process should consume. Raises CollectorError."""
    locals_ = outbound(sockets)
    if view.way == "url" and view.url is not None:
        return _of_url(view.url, process, locals_, queues)
    from stucktrace.collectors import broker_view_found

    return broker_view_found.collect(view.way, view.password, process, sockets, queues)


def _of_url(url: BrokerUrl, process: ProcessFact, ends: tuple[str, ...], queues: tuple[str, ...]) -> BrokerFact:
    if url.kind == "redis":
        from stucktrace.collectors import broker_view_redis

        return near(process.pid, lambda: broker_view_redis.read(url, ends, queues))
    from stucktrace.collectors import broker_view_management

    return near(process.pid, lambda: broker_view_management.read(url, process, ends, queues))


def near(pid: int, ask: Callable[[], T]) -> T:
    """`ask` done in the network namespace of the process, and in our own where that cannot be entered or helps not."""
    try:
        return netns.inside(pid, ask)
    except PermissionError:
        return ask()
    except (CollectorError, OSError) as error:
        if netns.inode_of(pid) in (None, netns.own()):
            raise failed(error) from None
        try:
            return ask()
        except (CollectorError, OSError):
            raise failed(error) from None


def failed(error: CollectorError | OSError) -> CollectorError:
    if isinstance(error, CollectorError):
        return error
    return CollectorError(WHAT, error.strerror or str(error), "is the address right, as seen from the worker?")


def outbound(sockets: Iterable[SocketFact]) -> tuple[str, ...]:
    """The own ends of the process's TCP connections."""
    return tuple(
        socket.local
        for socket in sockets
        if socket.protocol == "tcp" and socket.state in ("ESTABLISHED", "CLOSE_WAIT") and socket.direction != "in"
    )


def own(
    connections: Iterable[BrokerConnection], ends: tuple[str, ...], ns_pid: int = 0
) -> tuple[tuple[BrokerConnection, ...], str]:
    """Those of the process, and how they were told: by address, or else by the pid that the client gave the broker."""
    known = list(connections)
    found = tuple(each for each in known if each.peer in ends)
    if found:
        return found, "address"
    found = tuple(each for each in known if ns_pid and each.client_pid == ns_pid)
    return found, "client properties" if found else ""


def now() -> float:
    return time.time()
