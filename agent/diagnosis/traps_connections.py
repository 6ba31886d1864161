"""When would a process notice that the peer of a connection is gone, against its worker's own timeout? Pure.

The kernel notices by keepalive while nothing is in flight, and by unacknowledged data otherwise (tcp_timers.py); a
program may bound its waits itself; AMQP has heartbeats. Judged are connections that the process made, not those that
clients made (a server closes them by its own rules). A peer in the same network namespace (a sidecar proxy, a broker
over loopback) cannot vanish without a word, but it can hang, and its kernel answers keepalive meanwhile: there only a
timeout or a heartbeat counts. A socket that an event loop polls is not judged against the worker's timeout: its waits
end elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from stucktrace.diagnosis import tcp_timers
from stucktrace.diagnosis.celery_view import View, add
from stucktrace.diagnosis.clients import CLIENTS, OTHER, Client
from stucktrace.diagnosis.words import age
from stucktrace.facts import AmqpFact, SocketFact
from stucktrace.facts.audited import Audited, Connection
from stucktrace.facts.settings import OK, WARN, Check, Value

SLOW_S = 3600.0
"""Keepalive that takes longer is the kernel's default (2 h 11 min), which nobody chose."""
FIXES_S = 45.0
"""What the fixes of clients.py come to, at most."""
_FITTED = "Celery"
"""Names a client whose fixes are made for the worker's timeout."""
MISSED_HEARTBEATS = 2
"""A peer is given up when two intervals passed in silence (AMQP 0-9-1, section 4.2.7)."""


def connections(member: Audited) -> Iterator[Connection]:
    """Every connection of a process, judged."""
    for socket in member.sockets:
        if socket.protocol == "tcp" and socket.state not in ("LISTEN", "CLOSE", "TIME_WAIT", ""):
            yield _connection(member, socket)


def budget_s(member: Audited) -> float | None:
    """After how long the worker is ended from outside when it hangs; None: never, or not known."""
    kind = member.process.worker.kind
    if kind == "gunicorn-worker":
        return member.number("timeout") or member.process.worker.timeout_s or None
    if kind == "celery-child":
        limits = [member.number(name) for name in ("task_soft_time_limit", "task_time_limit")]
        return min((limit for limit in limits if limit), default=member.process.worker.timeout_s or None)
    return None


def summary(family: Sequence[Audited]) -> Iterator[Check]:
    """One line where all connections are well; each that is not has its own."""
    judged = [each for member in family for each in connections(member) if each.direction == "out"]
    if judged and all(each.check.status == OK for each in judged):
        yield Check("detection", OK, "every connection would notice a dead peer in time, or its peer is on this node")


def _connection(member: Audited, socket: SocketFact) -> Connection:
    fd = min(socket.fds, default=-1)
    amqp = next((fact for fact in member.amqp if fact.inode == socket.inode or fact.local == socket.local), None)
    keepalive = socket.keepalive
    idle_s = tcp_timers.detection_window_s(socket)
    heartbeat_s = amqp.heartbeat_s if amqp else None
    connection = Connection(
        pid=member.process.pid,
        fd=fd,
        inode=socket.inode,
        direction=socket.direction,
        local=socket.local,
        remote=socket.remote,
        state=socket.state,
        keepalive=keepalive,
        user_timeout_s=socket.user_timeout_s,
        idle_window_s=idle_s,
        in_flight_window_s=tcp_timers.in_flight_window_s(socket) if socket.user_timeout_s is not None else None,
        own_timeout_s=member.own_timeouts.get(fd),
        waits=_waits(member, fd),
        heartbeat_s=heartbeat_s,
        confirms=_confirms(amqp),
        budget_s=budget_s(member) if socket.direction == "out" else None,
        check=Check("detection", OK, ""),
    )
    return _judged(member, connection, amqp)


def _confirms(amqp: AmqpFact | None) -> bool | None:
    known = [channel.confirms for channel in amqp.channels if channel.confirms is not None] if amqp else []
    return any(known) if known else None


def _waits(member: Audited, fd: int) -> str:
    if fd in member.own_timeouts:
        return "blocks" if member.own_timeouts[fd] is None else "bounded"
    if member.python_fds is None:
        return ""
    return "event loop" if fd in member.python_fds else "C library"


def _judged(member: Audited, connection: Connection, amqp: AmqpFact | None) -> Connection:
    if connection.direction != "out" or connection.state != "ESTABLISHED":
        return connection
    client = _spelled(member, connection, client_of(member, connection, amqp))
    if stays_here(connection.local, connection.remote):
        found = _silence(connection, client, polled=connection.inode in member.polled)
    else:
        found = _problem(connection, client)
    return connection if found is None else replace(connection, check=found)


def _spelled(member: Audited, connection: Connection, client: Client) -> Client:
    """Celery's options as this project writes them, with keepalive in two thirds of the worker's timeout."""
    view = View.of(member.settings)
    backend_s = (
        member.number("redis_socket_timeout") if str(member.value("result_backend")).startswith("redis") else None
    )
    if client is CLIENTS["kombu-redis"] and backend_s is not None and connection.own_timeout_s == backend_s:
        # Of the two kinds of connection to Redis only those of the result backend have this timeout.
        limit_s = min(connection.budget_s or 30.0, 30.0) / 2
        return replace(client, name=_FITTED, timeout=f"{view.spelled('redis_socket_timeout')} = {limit_s:g}")
    if client is not CLIENTS["kombu"] or not view.facts:
        return client
    third_s = int(min(30.0, connection.budget_s or 30.0)) // 3
    keepalive = zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), (third_s, max(1, third_s // 3), 3), strict=True)
    options: dict[str, Value] = {f"socket_settings[socket.{name}]": value for name, value in keepalive}
    return replace(client, name=_FITTED, keepalive=add(view, options))


def client_of(member: Audited, connection: Connection, amqp: AmqpFact | None) -> Client:
    """The library whose settings decide: by its object, by the broker's address, by who opened the socket."""
    kombu = "kombu" if "kombu" in member.process.packages else "amqp"
    if amqp is not None:
        return CLIENTS.get({"py-amqp": kombu, "pika": "pika", "amqpstorm": "amqp"}.get(amqp.client, ""), OTHER)
    scheme, _, place = str(member.value("broker_url") or "").partition("://")
    redis = scheme.startswith(("redis", "valkey", "sentinel"))
    port = place.partition(" ")[0].rpartition(":")[2] if ":" in place else "6379" if redis else "5672"
    if scheme and port == connection.remote.rpartition(":")[2]:
        return CLIENTS["kombu-redis" if redis else "kombu"]
    libraries = member.process.hooked_c_clients if connection.waits == "C library" else ()
    for library, client in (("libpq", "postgresql"), ("libmysqlclient", "mysql"), ("libmariadb", "mysql")):
        if library in libraries:
            return CLIENTS[client]
    return OTHER


def _problem(connection: Connection, client: Client) -> Check | None:
    """What is wrong with how a connection to elsewhere is guarded; None for nothing, or where that is not known."""
    if connection.keepalive is None:
        return None
    budget = connection.budget_s
    if connection.own_timeout_s is not None:
        return _own_timeout(connection, client)
    beats_s = connection.heartbeat_s * MISSED_HEARTBEATS if connection.heartbeat_s else None
    idle_s = min((each for each in (connection.idle_window_s, beats_s) if each is not None), default=None)
    if idle_s is None:
        return _unguarded(connection, client)
    if connection.waits == "event loop":
        return None
    in_flight_s = connection.in_flight_window_s
    late, fixes = [], []
    if idle_s > (SLOW_S if budget is None else budget):
        late.append(f"{age(idle_s)} while idle")
        fixes.append(client.keepalive)
    if budget is not None and in_flight_s is not None and in_flight_s > budget:
        late.append(f"{age(in_flight_s)} with data in flight")
        fixes.append(client.user_timeout)
    return _too_slow(connection, client, f"a dead peer is noticed after {' and '.join(late)}", fixes) if late else None


def _own_timeout(connection: Connection, client: Client) -> Check | None:
    budget, own_s = connection.budget_s, connection.own_timeout_s
    if own_s is None or budget is None or own_s <= budget:
        return None
    return _too_slow(connection, client, f"its socket timeout is {age(own_s)}", [client.timeout])


def _silence(connection: Connection, client: Client, *, polled: bool) -> Check | None:
    """What is wrong where only a peer that hangs is to be feared."""
    remote, keepalive, budget = connection.remote, connection.keepalive, connection.budget_s
    if connection.own_timeout_s is not None:
        return _own_timeout(connection, client)
    # Who turned keepalive on guards the connection, though not against this: no more than a remark elsewhere either.
    if keepalive is None or keepalive.on or connection.heartbeat_s:
        return None
    if connection.heartbeat_s == 0:
        text = f"{remote}: AMQP without a heartbeat: a broker that hangs is not noticed"
        return Check("no-heartbeat", WARN, text, fix=client.timeout)
    if connection.waits != "blocks" or polled:
        return None
    until = f"until the worker's timeout of {age(budget)} ends it" if budget is not None else "for ever"
    return Check(
        "no-timeout",
        WARN,
        f"{remote}: its socket has no timeout: when the peer on this machine hangs, a call on it waits {until}",
        fix=client.timeout,
    )


def _too_slow(connection: Connection, client: Client, what: str, fixes: Sequence[str]) -> Check:
    """`detection-too-slow`, `detection`: a dead peer would be noticed only after the worker's timeout.

    Computed from the live socket: keepalive and AMQP's heartbeat while nothing is in flight, TCP_USER_TIMEOUT or
    the kernel's retransmissions while something is, or the timeout that the program set on the socket.

    Warn: one of these is longer than the timeout after which the worker is ended; where it has none, keepalive
    takes longer than an hour (the kernel's default, which nobody chose).

    Later: keepalive, TCP_USER_TIMEOUT or a timeout in the words of the client that owns the connection.

    Not: a connection that a client made; one that an event loop polls, whose waits end elsewhere; a peer on this
    machine, which cannot vanish without a word (what can hang is `no-timeout` or `no-heartbeat`).

    Try: `stucktrace audit PID` of a worker with an open connection to another host.
    """
    budget = connection.budget_s
    against = f"; the worker's timeout is {age(budget)}" if budget is not None else ""
    short = budget is not None and budget <= FIXES_S and client.name != _FITTED
    limit = f", with values that stay below {age(budget)}" if short and budget is not None else ""
    return Check("detection-too-slow", WARN, f"{connection.remote}: {what}{against}", fix=" and ".join(fixes) + limit)


def _unguarded(connection: Connection, client: Client) -> Check | None:
    remote = connection.remote
    if connection.heartbeat_s == 0:
        return Check(
            "no-heartbeat",
            WARN,
            f"{remote}: AMQP without a heartbeat, and SO_KEEPALIVE is 0: a broker that is gone is not noticed",
            fix=f"{client.timeout}; and {client.keepalive}",
        )
    if connection.waits == "event loop":
        return None
    return Check(
        "no-timeout",
        WARN,
        f"{remote}: nothing notices a dead peer while idle: SO_KEEPALIVE is 0"
        + (", and its socket has no timeout" if connection.waits == "blocks" else ""),
        fix=f"{client.keepalive}; or {client.timeout}",
    )


def stays_here(local: str, remote: str) -> bool:
    """The connection never leaves this network namespace: over loopback, or to an address of its own."""
    return remote.startswith(("127.", "[::1]", "[::ffff:127.")) or local.rpartition(":")[0] == remote.rpartition(":")[0]
