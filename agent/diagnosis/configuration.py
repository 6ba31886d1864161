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
    """Keepalive is on, but would notice a dead peer only after the worker's own timeout has killed it."""
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
    """A request is pending in a call without an end, on a socket where nothing else would end it either."""
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
    """An AMQP consumer that would never learn that its broker is gone: no heartbeat comes in, and keepalive is off.

    What was agreed on, the connection's own facts say; where they are not known, a long silence does.
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
