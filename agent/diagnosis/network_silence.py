"""`peer-silent`, from what the wait is for, how old it is, and what the other end on this node shows of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stucktrace.diagnosis import (
    behind,
    broker,
    broker_words,
    network,
    network_probe,
    network_remedies,
    network_sharing,
    tcp_timers,
    waits,
)
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Evidence, Finding
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait
from stucktrace.diagnosis.words import age, process, size
from stucktrace.facts import Snapshot, SocketFact

ASKING = (Purpose.OWED, Purpose.REQUEST)
READS_ALWAYS = ("amqp", "redis", "sql", "mongo", "kafka", "mqtt", "stomp")
"""Protocols whose servers read what a subscriber sends, whatever they are doing."""


@dataclass(frozen=True)
class Reason:
    """Why the peer's silence is more than a wait."""

    confidence: str
    text: str
    evidence: tuple[Evidence, ...] = ()


def peer_silent(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`peer-silent`: the peer's TCP answers, its application does not, and a reply is owed.

    Everything that was sent is acknowledged, nothing comes back, and the answer is overdue. Either the application
    at the other end hangs, or it works on the request for longer than it should.

    Proven: the peer lives on this node, and it is stopped, or it has left the request unread, or has not accepted
    the connection, for longer than a request may take. Or AMQP's heartbeat has been missed for more than two
    intervals although the peer's kernel answers.

    Likely: the protocol owes the reply at once (an AMQP confirm or -ok, a handshake, a greeting) and 5 s are over.
    An open-ended request (SQL, HTTP) has used up its budget: `--stuck-after`, else the worker's own timeout, else
    30 s. A peer on this node has left the request unread for 5 s. A connection that only an event loop watches has
    waited that long for a peer on this node that has not read what was sent.

    Now: a peer that is stopped is continued (`kill -CONT`). For a missing confirm the broker is asked for its
    alarms first. Else the report has the `ss -K` line for this connection, and the command that restarts the
    process.

    Later: a timeout of the client, or a heartbeat of the protocol. No TCP setting can end this wait, for the peer's
    TCP answers.

    Not: a call whose purpose is to wait (BLPOP, XREAD BLOCK, pub/sub, LISTEN, a consumer). A client that has sent
    nothing (`slow-client`). Data without an ACK (`half-open`). A connection on which bytes came in during the look.
    A request to one's own pool (`self-call`).

    Wrong: a request that may take longer than its budget: give `--stuck-after`, or raise the worker's timeout.
    Without keepalive nobody knows that a remote peer still lives once everything is acknowledged; the evidence says
    so, and `--probe` asks.

    Try: a server that is stopped before it can answer:

        python3 -m http.server 8099 & sleep 1; kill -STOP $!
        python3 -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8099')" &
        sleep 6; stucktrace pid $!
    """
    for wait, socket in network.connected_waits(snapshot):
        if wait.sends or socket.direction == "in" or wait.purpose is Purpose.INBOUND or _on_its_way(socket):
            continue
        if network_sharing.is_self_call(snapshot, wait, socket, budgets) or network_sharing.is_shared(
            snapshot, wait, socket
        ):
            continue
        if network_probe.forgotten(socket) or network_probe.silent_s(socket) or network_probe.unreceived(socket.probe):
            continue
        if wait.still is False and socket.window_received_bytes:
            continue
        reason = _reason(snapshot, wait, socket, budgets)
        if reason is not None and (reason.confidence == PROVEN or not broker.explained(snapshot, wait, budgets)):
            yield _finding(snapshot, wait, socket, reason)


def _on_its_way(socket: SocketFact) -> bool:
    """Data that the peer's TCP has not acknowledged: whether its application answers is not the question yet."""
    return bool(socket.unacked) and (bool(socket.retransmits) or bool(socket.backoff))


def age_of(wait: Wait, socket: SocketFact) -> float | None:
    """For how long the answer has been awaited: the wait's age, but no longer than nothing moved on the socket.

    A thread that slept through arriving data does not exist; a series of calls has only the socket's own ages.
    """
    quiet_s = waits.quiet(socket)
    if wait.age_s is None or quiet_s is None:
        return wait.age_s
    return wait.age_s if not wait.polls else max(wait.age_s, quiet_s)


def _reason(snapshot: Snapshot, wait: Wait, socket: SocketFact, budgets: Budgets) -> Reason | None:
    age_s = age_of(wait, socket)
    # A user who asks for less than the protocols' own patience gets it.
    if age_s is None or age_s < min(budgets.owed_s, budgets.stuck_after_s):
        return None
    purpose = wait.purpose
    main = wait.thread.tid == snapshot.process.pid
    known = _from_the_peer(wait, socket, age_s, budgets, main=main)
    if known is not None:
        return known
    if purpose is Purpose.OWED:
        text = f"the protocol owes this reply at once (budget {age(budgets.owed_s)})"
        return Reason(LIKELY, text + _or_an_alarm(wait))
    budget_s = budgets.request_s(snapshot.process.worker.timeout_s, main=main)
    if purpose is Purpose.REQUEST and age_s > budget_s:
        return Reason(LIKELY, f"the budget of a request, {age(budget_s)}, is spent")
    asked = purpose is Purpose.UNKNOWN and bool(socket.bytes_sent) and _asked(socket)
    if asked and age_s > budget_s and _blocks_others(snapshot, wait, budget_s):
        return Reason(LIKELY, f"the budget of a request, {age(budget_s)}, is spent while others wait for its lock")
    return None


def _blocks_others(snapshot: Snapshot, wait: Wait, budget_s: float) -> bool:
    """Others have waited as long for a lock that this thread holds: it does not listen for as long as it takes."""
    crowd = behind.crowd(snapshot, wait.tid)
    return crowd is not None and crowd.longest_s is not None and crowd.longest_s >= budget_s


def _from_the_peer(wait: Wait, socket: SocketFact, age_s: float, budgets: Budgets, *, main: bool) -> Reason | None:
    """What the other end on this node tells: it is stopped, nobody accepted it, or the request is unread."""
    peer = socket.peer
    if peer is None:
        return None
    purpose, unread = wait.purpose, bool(peer.unread_bytes)
    expects = purpose in ASKING or (purpose is Purpose.UNKNOWN and _asked(socket))
    subscribed = purpose is Purpose.SUBSCRIPTION and not wait.reading.by_name
    holders = peer.pids or peer.listener_pids
    if peer.holder_state in ("T", "t") and holders and (expects or subscribed):
        sure = len(holders) == 1 and (unread or expects)
        return Reason(PROVEN if sure else LIKELY, f"{process(holders[0], peer.command)} is stopped (state T)")
    spent = age_s > budgets.patience_s(main=main)
    if peer.in_accept_queue and (expects or subscribed):
        return Reason(PROVEN if spent else LIKELY, "nobody has accepted the connection at the other end")
    if unread and (expects or (subscribed and wait.reading.family in READS_ALWAYS)):
        text = f"the other end has left {size(peer.unread_bytes)} of it unread"
        alarm = _or_an_alarm(wait)
        return Reason(PROVEN if spent and not alarm else LIKELY, text + alarm)
    return None


def _or_an_alarm(wait: Wait) -> str:
    """What else a missing confirm can mean: a broker under an alarm reads nothing more of a publisher's connection."""
    if "confirm" not in wait.reading.reason:
        return ""
    return "; a broker that holds publishers back (a resource alarm) looks the same from here"


def _asked(socket: SocketFact) -> bool:
    """The last data that moved was sent from here, and nothing came since."""
    if socket.last_send_s is None:
        return socket.protocol.startswith("unix")
    if not socket.bytes_received and socket.bytes_sent:
        return True
    return socket.last_receive_s is None or socket.last_receive_s >= socket.last_send_s


def _finding(snapshot: Snapshot, wait: Wait, socket: SocketFact, reason: Reason) -> Finding:
    age_s = age_of(wait, socket)
    name = network.thread_name(snapshot, wait.tid)
    lives = _knows_alive(socket)
    acknowledged = "everything sent is acknowledged" if socket.protocol == "tcp" else "the connection is open"
    if network_probe.lives(socket):
        acknowledged += f", {network_probe.answered(socket)},"
    summary = (
        f"{name} {network.waiting(wait, age_s, network.peer_name(socket))}; {acknowledged} and no answer comes: "
        f"{reason.text}"
    )
    lines = [network.call_line(snapshot, wait, age_s), *network.frame_lines(wait)]
    lines += [*network.queue_lines(snapshot, socket), *network.peer_lines(snapshot, socket), *reason.evidence]
    if socket.protocol == "tcp":
        lines += [*network.option_lines(snapshot, socket), lives]
    finding = Finding(
        "peer-silent",
        reason.confidence,
        summary,
        evidence=tuple(lines),
        now=(
            *([broker_words.ALARMS] if _or_an_alarm(wait) and reason.confidence != PROVEN else ()),
            *network_remedies.now(snapshot, wait, socket),
        ),
        later=network_remedies.bound_the_wait(snapshot, wait, socket),
        chain=network.chain(snapshot, wait, reason.text),
    )
    return network.about(snapshot, wait, finding)


def _knows_alive(socket: SocketFact) -> Evidence:
    """Whether anything would notice if the peer were gone."""
    keepalive = socket.keepalive
    asked = network_probe.line(socket)
    if asked is not None:
        return asked
    if socket.peer is not None:
        text = "the other end lives on this node, so the connection itself is whole"
        return Evidence("tcp_info", "alive", True, text)
    if keepalive is not None and keepalive.on:
        window_s = tcp_timers.detection_window_s(socket)
        recent = socket.last_ack_s is not None and window_s is not None and socket.last_ack_s < window_s
        text = f"keepalive is armed and none of its probes is unanswered (last ACK {age(socket.last_ack_s)} ago)"
        return Evidence("tcp_info", "alive", recent, text)
    text = "keepalive is off: once everything is acknowledged, nobody knows whether the peer still lives"
    return Evidence("tcp_info", "alive", None, text)
