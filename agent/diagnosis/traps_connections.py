"""When would a process notice that the peer of a connection is gone, against its worker's own timeout? Pure.

The kernel notices by keepalive while nothing is in flight, and by unacknowledged data otherwise (tcp_timers.py); a
program may bound its waits itself; AMQP has heartbeats. Judged are connections that the process made, to peers that
can vanish without a word: not those over loopback, and not those that clients made (a server closes them by its own
rules). A socket that an event loop polls is not judged against the worker's timeout: its waits end elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stucktrace.diagnosis import tcp_timers
from stucktrace.diagnosis.words import age
from stucktrace.facts import AmqpFact, SocketFact
from stucktrace.facts.audited import Audited, Connection
from stucktrace.facts.settings import OK, WARN, Check

SLOW_S = 3600.0
"""Keepalive that takes longer is the kernel's default (2 h 11 min), which nobody chose."""
MISSED_HEARTBEATS = 2
"""A peer is given up when two intervals passed in silence (AMQP 0-9-1, section 4.2.7)."""
_KEEPALIVE = "SO_KEEPALIVE=1 with TCP_KEEPIDLE + TCP_KEEPINTVL * TCP_KEEPCNT"


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
    return _judged(connection)


def _confirms(amqp: AmqpFact | None) -> bool | None:
    known = [channel.confirms for channel in amqp.channels if channel.confirms is not None] if amqp else []
    return any(known) if known else None


def _waits(member: Audited, fd: int) -> str:
    if fd in member.own_timeouts:
        return "blocks" if member.own_timeouts[fd] is None else "bounded"
    if member.python_fds is None:
        return ""
    return "event loop" if fd in member.python_fds else "C library"


def _judged(connection: Connection) -> Connection:
    from dataclasses import replace

    if connection.direction != "out" or connection.state != "ESTABLISHED" or loopback(connection.remote):
        return connection
    found = _problem(connection)
    return connection if found is None else replace(connection, check=found)


def _problem(connection: Connection) -> Check | None:
    if connection.keepalive is None:
        return None
    remote, budget = connection.remote, connection.budget_s
    if connection.own_timeout_s is not None:
        if budget is None or connection.own_timeout_s <= budget:
            return None
        return Check(
            "detection-too-slow",
            WARN,
            f"{remote}: its socket timeout is {age(connection.own_timeout_s)}, and the worker's timeout {age(budget)}",
            fix=f"set the client's timeout below {age(budget)}, so that the request fails instead of the worker",
        )
    heartbeat_s = connection.heartbeat_s
    idle = [connection.idle_window_s, heartbeat_s * MISSED_HEARTBEATS if heartbeat_s else None]
    idle_s = min((window for window in idle if window is not None), default=None)
    if idle_s is None:
        return _unguarded(connection)
    if connection.waits == "event loop":
        return None
    in_flight_s = connection.in_flight_window_s
    if budget is not None:
        slow = [
            f"{age(window)} {when}"
            for window, when in ((idle_s, "while idle"), (in_flight_s, "with data in flight"))
            if window is not None and window > budget
        ]
        if slow:
            return Check(
                "detection-too-slow",
                WARN,
                f"{remote}: a dead peer is noticed after {' and '.join(slow)}; the worker's timeout is {age(budget)}",
                fix=_faster(budget, idle=idle_s > budget, in_flight=in_flight_s is not None and in_flight_s > budget),
            )
    elif idle_s >= SLOW_S:
        return Check(
            "detection-too-slow",
            WARN,
            f"{remote}: keepalive notices a dead peer only after {age(idle_s)}",
            fix=f"{_KEEPALIVE} of a minute or two, in the client's socket options",
        )
    return None


def _faster(budget_s: float, *, idle: bool, in_flight: bool) -> str:
    wanted = []
    if idle:
        wanted.append(f"{_KEEPALIVE} below {age(budget_s)}")
    if in_flight:
        wanted.append(f"TCP_USER_TIMEOUT below {age(budget_s)}")
    return " and ".join(wanted) + ", in the client's socket options; or a timeout of the client's own"


def _unguarded(connection: Connection) -> Check | None:
    remote = connection.remote
    if connection.heartbeat_s == 0:
        return Check(
            "no-heartbeat",
            WARN,
            f"{remote}: AMQP without a heartbeat, and SO_KEEPALIVE is 0: a broker that is gone is not noticed",
            fix="a heartbeat of 30 s (Celery's publishers: broker_transport_options={'heartbeat': 30}), and "
            f"{_KEEPALIVE} of a minute or two",
        )
    if connection.waits == "event loop":
        return None
    return Check(
        "no-timeout",
        WARN,
        f"{remote}: nothing notices a dead peer while idle: SO_KEEPALIVE is 0"
        + (", and its socket has no timeout" if connection.waits == "blocks" else ""),
        fix=f"{_KEEPALIVE} of a minute or two, in the client's socket options; or a timeout of the client's own",
    )


def loopback(address: str) -> bool:
    return address.startswith(("127.", "[::1]", "[::ffff:127."))
