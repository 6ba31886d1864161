"""The view of a Redis server that kombu uses as a broker: CLIENT LIST, LLEN, HLEN; nothing is written.

A kombu consumer sits in BRPOP over the keys of its queues: one list for each queue, and one more for each priority
above 0, its name followed by kombu's separator and the number. Messages that were taken and not acknowledged stand in
the hash `unacked`, for all workers together. Source: kombu/transport/redis.py, 5.2 to 5.7; Redis's CLIENT LIST.
"""

from __future__ import annotations

import socket
import ssl

from stucktrace.broker_urls import BrokerUrl
from stucktrace.collectors import broker_view
from stucktrace.collectors.broker_view import WHAT
from stucktrace.collectors.resp import Resp, RespError
from stucktrace.errors import CollectorError
from stucktrace.facts.broker import BrokerConnection, BrokerConsumer, BrokerFact, BrokerQueue

SOURCE = "CLIENT LIST"
_STEP_S = 5.0
SEPARATOR = "\x06\x16"
PRIORITIES = range(1, 10)
POPPING = ("brpop", "blpop", "bzpopmin", "bzmpop", "blmpop", "brpoplpush", "blmove")
_MOST_QUEUES = 200
POPPED_S = 5.0
"""kombu pops for a second at a time, and at once again."""


def read(url: BrokerUrl, ends: tuple[str, ...], wanted: tuple[str, ...]) -> BrokerFact:
    """One reading. Raises CollectorError."""
    try:
        with _connected(url) as sock:
            return _read(Resp(sock), url, ends, wanted)
    except RespError as error:
        raise CollectorError(
            WHAT, f"{url} refuses: {error}", "check user and password; CLIENT LIST and LLEN have to be allowed"
        ) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise CollectorError(
            WHAT, f"{url} cannot be asked: {why}", "is it the Redis server, as seen from the worker?"
        ) from None


def _connected(url: BrokerUrl) -> socket.socket:
    sock = socket.create_connection((url.host, url.port), _STEP_S)
    return ssl.create_default_context().wrap_socket(sock, server_hostname=url.host) if url.encrypted else sock


def _read(resp: Resp, url: BrokerUrl, ends: tuple[str, ...], wanted: tuple[str, ...]) -> BrokerFact:
    resp.log_in(url.user, url.password, url.path)
    clients = [connection(line) for line in str(resp.ask("CLIENT", "LIST")).splitlines() if line]
    mine, matched_by = broker_view.own(clients, ends)
    waiting = [each for each in mine if pops(each)]
    # Which lists a blocked client waits for is not told: kombu waits for all of its queues in one command.
    consumers = tuple(BrokerConsumer(queue, each.vhost, each.name) for each in waiting for queue in wanted)
    databases = sorted({each.vhost for each in mine if each.vhost.isdigit()}) or [url.path or "0"]
    queues = tuple(_queue(resp, name, databases) for name in wanted[:_MOST_QUEUES])
    return BrokerFact(
        "redis",
        SOURCE,
        str(url),
        broker_view.now(),
        mine,
        matched_by,
        len(ends),
        len(clients),
        (),
        consumers,
        queues,
    )


def _queue(resp: Resp, name: str, databases: list[str]) -> BrokerQueue:
    """In the databases that the process's connections have selected; the list is in one of them."""
    ready = unacked = 0
    for database in databases:
        resp.ask("SELECT", database)
        ready += sum(_length(resp, "LLEN", key) for key in keys(name))
        unacked += _length(resp, "HLEN", "unacked")
    return BrokerQueue(name, ",".join(databases), ready, unacked)


def pops(client: BrokerConnection) -> bool:
    """It waits in a pop, or popped a moment ago: one that takes messages is between two pops as often as in one."""
    return client.command in POPPING and (client.blocking or (client.idle_s or 0.0) < POPPED_S)


def keys(queue: str) -> tuple[str, ...]:
    """The lists that a queue's messages are in."""
    return (queue, *(f"{queue}{SEPARATOR}{priority}" for priority in PRIORITIES))


def _length(resp: Resp, command: str, key: str) -> int:
    try:
        length = resp.ask(command, key)
    except RespError as error:
        if error.code == "WRONGTYPE":
            return 0
        raise
    return length if isinstance(length, int) else 0


def connection(line: str) -> BrokerConnection:
    """One line of CLIENT LIST: "id=3 addr=10.0.0.5:40000 ... flags=b ... cmd=brpop ..."."""
    fields = dict(word.split("=", 1) for word in line.split(" ") if "=" in word)
    idle = fields.get("idle", "")
    return BrokerConnection(
        f"client {fields.get('id', '?')}",
        fields.get("addr", ""),
        fields.get("db", ""),
        fields.get("user", ""),
        client=fields.get("lib-name", ""),
        command=fields.get("cmd", "").lower().partition("|")[0],
        blocking="b" in fields.get("flags", ""),
        idle_s=float(idle) if idle.isdecimal() else None,
    )
