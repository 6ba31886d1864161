"""The view of a broker on this node: the process at the other end of the worker's connections.

RabbitMQ is asked by its own rabbitmqctl, run where the broker lives (its namespaces, its user, its cookie): four short
commands that only list. Redis is asked as by its URL. The program's lists are of the moment, not of the last interval.
Source: rabbitmqctl(8), --formatter json, 3.8 and later.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stucktrace.broker_urls import BrokerUrl
from stucktrace.collectors import broker_view, broker_view_redis, child_output, permission
from stucktrace.collectors.broker_view import WHAT, outbound
from stucktrace.collectors.broker_view_management import number, pid_in
from stucktrace.errors import CollectorError
from stucktrace.facts import ProcessFact, SocketFact
from stucktrace.facts.broker import BrokerChannel, BrokerConnection, BrokerConsumer, BrokerFact, BrokerQueue

SOURCE = "rabbitmqctl"
_CHILD = Path(__file__).with_name("inside.py")
_PROGRAMS = (
    "/usr/lib/rabbitmq/bin/rabbitmqctl",
    "/opt/rabbitmq/sbin/rabbitmqctl",
    "/opt/bitnami/rabbitmq/sbin/rabbitmqctl",
    "/usr/local/sbin/rabbitmqctl",
    "/usr/sbin/rabbitmqctl",
)
_COMMAND_S = 20
_COULD_NOT_ENTER = 126
"""The status of inside.py."""
_MOST_BYTES, _MOST_ERROR_BYTES = 64 << 20, 1 << 16
_REDIS = ("redis-server", "valkey-server", "keydb-server")


def collect(
    way: str, password: str, process: ProcessFact, sockets: tuple[SocketFact, ...], queues: tuple[str, ...]
) -> BrokerFact:
    """`way`: "find", or "rabbitmqctl" for this program alone, also where no broker is found. Raises CollectorError."""
    ends = outbound(sockets)
    peers = [
        (pid, socket.remote) for socket in sockets if socket.peer and socket.local in ends for pid in socket.peer.pids
    ]
    for pid, remote in peers:
        command = _command(pid)
        if command.startswith("beam"):
            return _rabbitmq(pid, process, ends, queues)
        if command in _REDIS and way == "find":
            return _redis(remote, password, process, ends, queues)
    if way == "rabbitmqctl":
        return _rabbitmq(None, process, ends, queues)
    raise CollectorError(
        WHAT,
        "no RabbitMQ or Redis of this node is at the other end of a connection of this process",
        "give the broker's URL: --broker http://user@host:15672, or redis://host",
    )


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _redis(
    remote: str, password: str, process: ProcessFact, ends: tuple[str, ...], queues: tuple[str, ...]
) -> BrokerFact:
    host, _, port = remote.rpartition(":")
    url = BrokerUrl("redis", host.strip("[]"), int(port), "", password, "0")
    return broker_view.near(process.pid, lambda: broker_view_redis.read(url, ends, queues))


def _rabbitmq(pid: int | None, process: ProcessFact, ends: tuple[str, ...], wanted: tuple[str, ...]) -> BrokerFact:
    ctl = _Ctl(pid)
    listed = ctl.rows("list_connections", "pid name peer_host peer_port vhost user state client_properties")
    connections = [(str(row.get("pid")), _connection(row)) for row in listed]
    mine, matched_by = broker_view.own([each for _, each in connections], ends, process.ns_pid)
    names = {pid: each.name for pid, each in connections if each in mine}
    rows = ctl.rows("list_channels", _CHANNELS) if mine else []
    channels = {str(row.get("pid")): _channel(row, names) for row in rows if str(row.get("connection")) in names}
    consumers: list[BrokerConsumer] = []
    queues: list[BrokerQueue] = []
    for vhost in sorted({each.vhost for each in mine}):
        consumers += _consumers(ctl, vhost, channels)
        for row in ctl.rows("list_queues", "name messages_ready messages_unacknowledged consumers state", vhost):
            queue = _queue(row, vhost)
            if queue.ready or queue.unacked or queue.name in wanted:
                queues.append(queue)
    return BrokerFact(
        "rabbitmq",
        SOURCE,
        f"rabbitmqctl, where the broker lives (pid {pid})" if pid else "rabbitmqctl",
        broker_view.now(),
        mine,
        matched_by,
        len(ends),
        len(connections),
        tuple(channels.values()),
        tuple(consumers),
        tuple(queues),
        # Each list is made by a program of its own: what they say of one another has to agree.
        complete=sum(each.consumers or 0 for each in channels.values()) == len(consumers),
    )


_CHANNELS = "pid connection number messages_unacknowledged prefetch_count global_prefetch_count consumer_count"


class _Ctl:
    """rabbitmqctl, where process `pid` lives; None: here."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid

    def rows(self, command: str, columns: str, vhost: str = "") -> list[dict[str, Any]]:
        """Raises CollectorError."""
        limit = ("-t", str(_COMMAND_S), "-q", "--formatter", "json")
        arguments = [*limit, command, *(("-p", vhost) if vhost else ()), *columns.split()]
        program = shutil.which("rabbitmqctl") or "rabbitmqctl"
        line = (
            [program, *arguments]
            if self._pid is None
            else [sys.executable, "-I", str(_CHILD), str(self._pid), *_PROGRAMS]
        )
        status, output, errors = _run(line, json.dumps(arguments).encode() if self._pid is not None else b"")
        if status:
            said = (errors or output).decode(errors="replace").strip().splitlines()
            why = said[0] if said else f"status {status}"
            remedy = _to_run_there(self._pid) if status == _COULD_NOT_ENTER and self._pid is not None else _REMEDY
            raise CollectorError(WHAT, f"rabbitmqctl {command} failed: {why[:200]}", remedy)
        try:
            answer = json.loads(output or b"[]")
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, list):
            raise CollectorError(WHAT, f"rabbitmqctl {command} gave no list", _REMEDY)
        return [row for row in answer if isinstance(row, dict)]


def _to_run_there(pid: int) -> str:
    needs = ("DAC_READ_SEARCH", "SYS_CHROOT", "SETUID", "SETGID")
    return f"{permission.to_enter(pid, *needs)}, or give --broker http://user@host:15672"


def _run(line: list[str], given: bytes) -> tuple[int, bytes, bytes]:
    """(status, stdout, stderr). What does not end in time, or says too much, is ended with all that it started: in a
    container it is a stranger's program. Raises CollectorError."""
    ends = time.monotonic() + 2 * _COMMAND_S
    try:
        child = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        raise CollectorError(WHAT, f"rabbitmqctl cannot be run: {error.strerror}", _REMEDY) from None
    ended = False
    with child:
        assert child.stdin is not None
        try:
            with suppress(BrokenPipeError):
                child.stdin.write(given)
            child.stdin.close()
            output, errors, complete = child_output.read(child, ends, _MOST_BYTES, _MOST_ERROR_BYTES)
            if complete:
                status = child.wait(max(ends - time.monotonic(), 0.1))
                ended = True
                return status, output, errors
        except subprocess.TimeoutExpired:
            pass
        finally:
            if not ended:
                # It is not waited for yet, so the number is still its own.
                os.killpg(child.pid, signal.SIGKILL)
    because = f"rabbitmqctl did not end within {2 * _COMMAND_S} s, or said too much"
    raise CollectorError(WHAT, because, _REMEDY)


_REMEDY = "run stucktrace as root on the broker's node, or give --broker http://user@host:15672"


def _host(value: object) -> str:
    """An address as Erlang writes it: 4 or 8 numbers."""
    if isinstance(value, list) and all(isinstance(part, int) and 0 <= part < 1 << 16 for part in value):
        if len(value) == 8:
            packed = b"".join(part.to_bytes(2, "big") for part in value)
            return socket.inet_ntop(socket.AF_INET6, packed)
        return ".".join(map(str, value))
    return str(value)


def _connection(row: dict[str, Any]) -> BrokerConnection:
    from stucktrace.collectors.broker_view_management import endpoint

    given = row.get("client_properties")
    properties = {str(each[0]): each[2] for each in (given if isinstance(given, list) else ()) if _is_property(each)}
    return BrokerConnection(
        str(row.get("name", "")),
        endpoint(_host(row.get("peer_host")), row.get("peer_port")),
        str(row.get("vhost", "")),
        str(row.get("user", "")),
        str(row.get("state", "")),
        str(properties.get("product", "")),
        pid_in(properties),
    )


def _is_property(each: object) -> bool:
    return isinstance(each, list) and len(each) == 3


def _channel(row: dict[str, Any], names: dict[str, str]) -> BrokerChannel:
    limits = [limit for name in ("prefetch_count", "global_prefetch_count") if (limit := number(row.get(name)))]
    return BrokerChannel(
        names[str(row.get("connection"))],
        number(row.get("number")) or 0,
        number(row.get("messages_unacknowledged")),
        min(limits) if limits else 0,
        number(row.get("consumer_count")),
    )


def _consumers(ctl: _Ctl, vhost: str, channels: dict[str, BrokerChannel]) -> Iterable[BrokerConsumer]:
    for row in ctl.rows("list_consumers", "queue_name channel_pid consumer_tag ack_required prefetch_count", vhost):
        channel = channels.get(str(row.get("channel_pid")))
        if channel is not None:
            yield BrokerConsumer(
                str(row.get("queue_name", "")),
                vhost,
                channel.connection,
                channel.number,
                str(row.get("consumer_tag", "")),
                number(row.get("prefetch_count")),
                row.get("ack_required") if isinstance(row.get("ack_required"), bool) else None,
            )


def _queue(row: dict[str, Any], vhost: str) -> BrokerQueue:
    return BrokerQueue(
        str(row.get("name", "")),
        vhost,
        number(row.get("messages_ready")),
        number(row.get("messages_unacknowledged")),
        number(row.get("consumers")),
        str(row.get("state", "")),
    )
