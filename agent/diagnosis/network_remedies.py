"""What to do about a connection: now (end it, restart the worker, look at the peer), and later (the setting to change).

The settings are computed from the live socket: only an option that is really 0 is named as the one to set.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from stucktrace.diagnosis import tcp_timers
from stucktrace.diagnosis.clients import client_of
from stucktrace.diagnosis.model import Later, Now
from stucktrace.diagnosis.remedies import restart
from stucktrace.diagnosis.waits import Wait
from stucktrace.diagnosis.words import age
from stucktrace.facts import Snapshot, SocketFact


def _ss(snapshot: Snapshot, rest: str) -> str:
    return f"nsenter -t {snapshot.process.pid} -n ss {rest}"


def _split(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    return host, port


def end_connection(snapshot: Snapshot, wait: Wait, socket: SocketFact) -> Iterator[Now]:
    """Closes this one connection from outside: the call returns with an error, and the library can connect anew."""
    host, port = _split(socket.remote)
    own_port = _split(socket.local)[1]
    if socket.protocol != "tcp" or not host or not own_port:
        return
    yield Now(
        _ss(snapshot, f"-K dst '{host}' dport = :{port} sport = :{own_port}"),
        "this call fails with ECONNABORTED at once; the process lives on and has to connect anew "
        "(needs CONFIG_INET_DIAG_DESTROY)",
        client_of(snapshot, wait).loses,
    )


def now(snapshot: Snapshot, wait: Wait, socket: SocketFact) -> tuple[Now, ...]:
    """End the connection, else restart the process; a stopped peer on this node is continued first."""
    steps: list[Now] = []
    peer = socket.peer
    if peer is not None and peer.holder_state in ("T", "t") and peer.pids:
        pid = peer.pids[0]
        steps.append(Now(f"kill -CONT {pid}", f"{peer.command or 'the peer'} goes on where it was stopped", "nothing"))
    return (*steps, *end_connection(snapshot, wait, socket), *restart(snapshot))


def unstick(snapshot: Snapshot, wait: Wait) -> tuple[Now, ...]:
    """For a proven outage of a connection that is the process's own."""
    risk = (
        "it looks once more, asks, and ends this connection alone: the call fails, and the process has to connect anew"
    )
    do = f"stucktrace unstick {snapshot.process.pid}"
    return (Now(do, risk, client_of(snapshot, wait).loses), *restart(snapshot))


def look_again(snapshot: Snapshot, wait: Wait) -> tuple[Now, ...]:
    """For a wait that the look itself has ended."""
    do = f"stucktrace pid {snapshot.process.pid}"
    return (Now(do, "none: the wait is over, and this shows what came after it", client_of(snapshot, wait).loses),)


def check_path(snapshot: Snapshot, socket: SocketFact) -> tuple[Now, ...]:
    host, port = _split(socket.remote)
    return (
        Now(
            f"nsenter -t {snapshot.process.pid} -n nc -zvw3 {host.strip('[]')} {port}",
            "none: it only tries to connect, to tell a dead path from a full backlog",
            "nothing",
        ),
    )


def check_listener(remote: str, error: int) -> tuple[Now, ...]:
    where = f"on {remote}" if remote else "at the peer"
    do = f"start what should listen {where}, or correct the address"
    if error in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT):
        do = f"look at the route and the firewall to {remote or 'the peer'}"
    return (Now(do, "none for this process: it tries again by itself", "nothing"),)


def ask_resolver(snapshot: Snapshot, socket: SocketFact) -> tuple[Now, ...]:
    host = _split(socket.remote)[0].strip("[]")
    at = f" @{host}" if host else ""
    return (
        Now(
            f"nsenter -t {snapshot.process.pid} -n dig +time=2 +tries=1{at} example.org",
            "none: it asks once",
            "nothing",
        ),
    )


def drop_client(snapshot: Snapshot, wait: Wait, socket: SocketFact) -> tuple[Now, ...]:
    host, port = _split(socket.remote)
    if socket.protocol != "tcp" or not host:
        return restart(snapshot)
    return (
        Now(
            _ss(snapshot, f"-K dst '{host}' dport = :{port}"),
            "this client's connection ends; the worker takes the next one (needs CONFIG_INET_DIAG_DESTROY)",
            "this client's request",
        ),
        *restart(snapshot),
    )


def notice_dead_peer(snapshot: Snapshot, wait: Wait, socket: SocketFact) -> tuple[Later, ...]:
    """For an outage: the option of this live socket that lets it wait so long."""
    client, later = client_of(snapshot, wait), []
    retries_s = tcp_timers.in_flight_window_s(socket)
    if not socket.user_timeout_s:
        state = "is 0 on this socket" if socket.user_timeout_s == 0 else "could not be read on this socket"
        later.append(
            Later(
                client.user_timeout,
                f"TCP_USER_TIMEOUT {state}, so unacknowledged data is retransmitted for about {age(retries_s)}",
            )
        )
    else:
        later.append(
            Later(
                f"a shorter TCP_USER_TIMEOUT than {age(socket.user_timeout_s)}",
                "that is how long unacknowledged data is retransmitted on this socket",
            )
        )
    later.extend(_keepalive(snapshot, wait, socket))
    later.append(Later(client.timeout, "a wait with an end of its own does not depend on the network noticing"))
    return tuple(later)


def _keepalive(snapshot: Snapshot, wait: Wait, socket: SocketFact) -> Iterator[Later]:
    keepalive = socket.keepalive
    if keepalive is not None and not keepalive.on and socket.protocol == "tcp":
        yield Later(
            client_of(snapshot, wait).keepalive,
            "SO_KEEPALIVE is 0 on this socket: an idle wait never notices that its peer is gone",
        )


def bound_the_wait(snapshot: Snapshot, wait: Wait, socket: SocketFact) -> tuple[Later, ...]:
    """For a live, silent peer: no TCP setting can help, only a timeout or a heartbeat."""
    call = wait.thread.syscall
    endless = call is not None and (call.endless is True or (call.endless is None and not wait.polls))
    why = "the peer's TCP answers, so no TCP setting can end this wait: only a timeout or a heartbeat can"
    if endless:
        why += "; this call has none"
    return (Later(client_of(snapshot, wait).timeout, why), *_keepalive(snapshot, wait, socket))


def bound_the_connect(snapshot: Snapshot, wait: Wait | None) -> tuple[Later, ...]:
    family = wait.reading.family if wait is not None else ""
    settings = {
        "redis": "redis.Redis(..., socket_connect_timeout=5)",
        "sql": "connect_timeout=5",
        "http": "requests.get(..., timeout=(3.05, 27)): the first number bounds the connect",
        "amqp": "broker_connection_timeout = 4 (Celery), connect_timeout=4 (kombu), socket_timeout=4 (pika)",
        "retry": "broker_connection_max_retries (Celery's worker), retry_policy={'max_retries': 3} (a publisher)",
    }
    setting = settings.get(family, "a timeout for the connect (socket.create_connection(..., timeout=5))")
    return (
        Later(setting, "an attempt that ends soon and a bounded number of them turn a hang into an error"),
        Later(
            "net.ipv4.tcp_syn_retries = 3 in the network namespace",
            "with the default of 6 one connect without a timeout of its own takes about two minutes to fail",
        ),
    )


def shield_from_clients(snapshot: Snapshot) -> tuple[Later, ...]:
    kind = snapshot.process.worker.kind
    later = [
        Later(
            "a buffering proxy (nginx) in front of the workers",
            "it reads and writes at the speed of slow clients, so that a worker sees whole requests only",
        )
    ]
    if kind == "gunicorn-worker":
        later.append(
            Later(
                "gunicorn --worker-class gthread --threads 8",
                "a silent client then holds no worker, only a file descriptor",
            )
        )
    else:
        later.append(Later("a timeout on accepted connections (settimeout)", "a client that does not go on is dropped"))
    return tuple(later)


def own_connection(wait: Wait) -> tuple[Later, ...]:
    steps = {
        "sql": "after the fork: engine.dispose(close=False) (SQLAlchemy), connections.close_all() (Django)",
        "amqp": "after the fork: app.pool.force_close_all() (Celery), or open the connection in the child",
        "redis": "create the client in the child, or connection_pool.disconnect() after the fork",
    }
    do = steps.get(wait.reading.family, "open the connection in each process, after the fork")
    return (
        Later(
            f"{do} (gunicorn: post_fork; Celery: worker_process_init; else os.register_at_fork)",
            "a connection that is opened before a fork is one byte stream for all processes",
        ),
    )
