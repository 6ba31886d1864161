"""Advice from the options of live sockets: `keepalive-too-slow`, `no-timeout`, `no-heartbeat`.

A settings file says what was meant; the socket says what is in force. Only connections are judged that a thread waits
on now, and only where the peer can vanish. Advice accompanies a verdict, it never is one.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import broker, network, network_remedies, tcp_timers
from stucktrace.diagnosis.clients import client_of
from stucktrace.diagnosis.model import INFO, LIKELY, PROVEN, WARNING, Budgets, Finding, Later
from stucktrace.diagnosis.network_silence import ASKING
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait
from stucktrace.diagnosis.words import age
from stucktrace.facts import Snapshot, SocketFact

SETTLED_S = 1.0
"""A younger wait is most likely answered at once: advice about it would come and go."""
HEARTBEAT_AT_MOST_S = 150.0
"""Brokers that agreed on a heartbeat send one at least this often (RabbitMQ's default: every 30 s)."""


def keepalive_too_slow(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`keepalive-too-slow`: keepalive would notice a dead peer only after the worker's own timeout.

    Keepalive is on for the connection that a thread waits on now, and idle + interval * count is longer than the
    timeout that kills the worker: when the peer vanishes, the worker dies first.

    Proven: always, from the live socket's own options.

    Later: the client's settings for keepalive, so that the sum stays below the worker's timeout.

    Not: a peer on this node; a wait younger than 1 s; a wait for work. What `stucktrace audit` says of idle
    connections is `detection-too-slow`.

    Wrong: none is known.

    Try: `stucktrace pid` on a gunicorn worker in a query to a database elsewhere: the kernel's default keepalive
    takes 2 h 11 min.
    """
    timeout_s = snapshot.process.worker.timeout_s
    if not timeout_s:
        return
    for wait, socket in _waits_on_peers(snapshot):
        window_s = tcp_timers.detection_window_s(socket)
        if window_s is None or window_s <= timeout_s or wait.purpose not in ASKING:
            continue
        yield _advice(
            snapshot,
            wait,
            socket,
            "keepalive-too-slow",
            f"keepalive to {network.peer_name(socket)} notices a dead peer after {age(window_s)}, and this worker is "
            f"killed after {age(timeout_s)}",
            Later(
                client_of(snapshot, wait).keepalive,
                f"idle + interval * count has to be below the worker's timeout of {age(timeout_s)}",
            ),
        )


def no_timeout(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`no-timeout`: a request whose wait nothing would ever end.

    A request is pending in a call without a timeout, on a socket with neither keepalive nor TCP_USER_TIMEOUT. If
    the peer vanished now, the thread would wait for ever.

    Proven: always, from the call's arguments and the live socket's options.

    Warn: `stucktrace audit` says it of idle connections too: nothing notices a dead peer while they are idle; and
    of one to a peer on this machine whose socket blocks without a timeout, for that peer can hang.

    Later: a timeout of the client, or its keepalive.

    Not: a wait younger than 1 s, a wait for work, a client's connection, a call that polls with a timeout.

    Wrong: a library may bound the wait in another thread, which the socket does not show.

    Try: `stucktrace audit PID` of a worker with an open connection; the fix stands beside it.
    """
    for wait, socket in _waits_on_peers(snapshot):
        call = wait.thread.syscall
        if wait.purpose not in ASKING or call is None or wait.polls or socket.user_timeout_s:
            continue
        if call.endless is False or (socket.keepalive is not None and socket.keepalive.on):
            continue
        if socket.keepalive is None:
            continue
        name = network.thread_name(snapshot, wait.tid)
        yield _advice(
            snapshot,
            wait,
            socket,
            "no-timeout",
            f"{name}'s request to {network.peer_name(socket)} has no end: {wait.call} without a timeout, "
            "SO_KEEPALIVE 0, TCP_USER_TIMEOUT 0",
            *network_remedies.bound_the_wait(snapshot, wait, socket),
        )


def no_heartbeat(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`no-heartbeat`: an AMQP consumer that would never learn that its broker is gone.

    No heartbeat is agreed on, and keepalive is off: a consumer waits for messages, sends nothing, and so nothing
    notices when the broker or the way to it is gone.

    Proven: the client's own object says that the heartbeat is 0.

    Likely: it is not known, and nothing has come for 150 s: brokers that agreed on a heartbeat send one sooner.

    Warn: `stucktrace audit` says it of every AMQP connection without a heartbeat and without keepalive.

    Later: a heartbeat (Celery: `broker_heartbeat`; publishers need it in `broker_transport_options`), or keepalive.

    Not: a broker on this node, which cannot vanish without a word (`audit` says it there too, for that broker can
    hang).

    Wrong: none is known where it is proven.

    Try: `stucktrace audit PID` of a Celery worker with `broker_heartbeat = 0`.
    """
    for wait, socket in _waits_on_peers(snapshot):
        keepalive = socket.keepalive
        fact = broker.fact_of(snapshot, wait)
        if wait.purpose is not Purpose.SUBSCRIPTION or wait.reading.family != "amqp" or keepalive is None:
            continue
        known = fact is not None and fact.heartbeat_s is not None
        if keepalive.on or (known and fact is not None and fact.heartbeat_s):
            continue
        if not known and (socket.last_receive_s is None or socket.last_receive_s < HEARTBEAT_AT_MOST_S):
            continue
        why = f"the heartbeat of the connection to {network.peer_name(socket)} is 0"
        if not known:
            silence = f"nothing came from {network.peer_name(socket)} for {age(socket.last_receive_s)}"
            why = f"{silence}, so no heartbeat is agreed on"
        yield _advice(
            snapshot,
            wait,
            socket,
            "no-heartbeat",
            f"{why}, and SO_KEEPALIVE is 0: this consumer would not notice that its broker is gone",
            Later(client_of(snapshot, wait).timeout, "a heartbeat notices a broker that is gone or silent"),
            Later(client_of(snapshot, wait).keepalive, "keepalive notices a broker that is gone"),
            confidence=PROVEN if known else LIKELY,
        )


def _waits_on_peers(snapshot: Snapshot) -> Iterator[tuple[Wait, SocketFact]]:
    """Waits for some time on a TCP connection to a peer that is not on this node."""
    for wait, socket in network.connected_waits(snapshot):
        if socket.protocol != "tcp" or socket.direction == "in" or socket.state != "ESTABLISHED":
            continue
        if socket.peer is None and (wait.age_s or 0.0) >= SETTLED_S and not _is_loopback(socket.remote):
            yield wait, socket


def _is_loopback(address: str) -> bool:
    return address.startswith(("127.", "[::1]", "[::ffff:127."))


def _advice(
    snapshot: Snapshot,
    wait: Wait,
    socket: SocketFact,
    code: str,
    summary: str,
    *later: Later,
    confidence: str = PROVEN,
) -> Finding:
    finding = Finding(
        code,
        confidence,
        summary,
        evidence=(network.call_line(snapshot, wait), *network.option_lines(snapshot, socket)),
        severity=INFO if code == "no-timeout" else WARNING,
        later=later,
        chain=network.chain(snapshot, wait),
    )
    return network.about(snapshot, wait, finding)
