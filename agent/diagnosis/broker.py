"""What the last frames of an AMQP connection mean: `broker-blocked`, `channel-closed`, and heartbeats that do not come.

The frames are known from the wire or from the client's own objects (`AmqpFact.source`), and the same rules hold for
both. A broker says why it does not answer: connection.blocked before it stops reading a publisher's connection,
channel.close before it drops what was published on it; and where a heartbeat was agreed on it owes a frame at least
once an interval, whatever else it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from stucktrace.diagnosis import broker_words as words
from stucktrace.diagnosis import network, network_outage, network_probe
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Evidence, Finding
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait, waits
from stucktrace.diagnosis.words import age
from stucktrace.facts import AmqpChannel, AmqpFact, AmqpMethod, Snapshot, SocketFact
from stucktrace.facts.broker import BrokerConnection

MISSED_INTERVALS = 2
"""So many intervals without a frame mean that the peer is gone, by the specification (AMQP 0-9-1, 4.2.7)."""
BLOCKED_S = 1.0
"""RabbitMQ looks at its memory and disk only so often: an alarm is not over sooner."""
_TICK_S = 0.05
"""The kernel's ages are of its own ticks, and of two moments."""


@dataclass(frozen=True)
class Case:
    """A thread that waits on a connection whose frames are known."""

    wait: Wait
    fact: AmqpFact
    socket: SocketFact | None
    age_s: float | None
    """For how long the broker has owed its answer."""

    def overdue(self, budgets: Budgets) -> bool:
        """The thread needs something that the broker owes at once, and has waited for it too long."""
        budget_s = min(budgets.owed_s, budgets.stuck_after_s)
        # The heartbeats of a client that sends its own hide when the wait began: it is as old as the last of them. But
        # counts may be of another connection, and the answer is only slow.
        polls = (self.wait.polls and self.fact.waiting_s is None) or bool(self.fact.waiting_task)
        counted = self.fact.blocked_assumes and self.fact.last_in is None
        if polls and self.fact.heartbeat_s and self.fact.blocked is not None and not counted:
            budget_s = min(budget_s, BLOCKED_S)
        return owed(self.wait, self.fact) and self.age_s is not None and self.age_s >= budget_s


@dataclass(frozen=True)
class Said:
    """What a rule has to say of a case."""

    reason: str
    lines: tuple[Evidence, ...]
    end: str
    """The last step of the chain."""


def cases(snapshot: Snapshot) -> Iterator[Case]:
    """All of them: a loop's thread waits on as many connections as its tasks do."""
    for wait in waits(snapshot):
        for fact in facts_of(snapshot, wait):
            socket = snapshot.socket(fact.fd) or wait.socket
            yield Case(wait, fact, socket, waited_s(wait, fact, socket))


def facts_of(snapshot: Snapshot, wait: Wait) -> tuple[AmqpFact, ...]:
    """The connections that a thread waits on; of one that is known from the wire too, both."""
    return tuple(fact for fact in snapshot.amqp if _is_about(fact, wait))


def fact_of(snapshot: Snapshot, wait: Wait) -> AmqpFact | None:
    """The connection that a thread waits on: one that says why, else from the wire where that is known."""
    own = sorted(facts_of(snapshot, wait), key=lambda fact: (fact.blocked is None, fact.source != "wire"))
    return own[0] if own else None


def _is_about(fact: AmqpFact, wait: Wait) -> bool:
    if fact.waiting_tid == wait.tid and fact.waits_for:
        return True
    socket = wait.socket
    return socket is not None and bool(fact.remote) and (fact.local, fact.remote) == (socket.local, socket.remote)


def waited_s(wait: Wait, fact: AmqpFact, socket: SocketFact | None) -> float | None:
    """For how long the broker has owed its answer: at least since something was last sent to it.

    The call's own age begins anew with each heartbeat that comes in.
    """
    if fact.waiting_s is not None:
        return fact.waiting_s
    sent_s = socket.last_send_s if socket is not None and not socket.unacked else None
    return max((value for value in (wait.age_s, sent_s) if value is not None), default=None)


def owed(wait: Wait, fact: AmqpFact) -> bool:
    """The thread needs something of the broker that it owes at once: a confirm, an answer, room to send."""
    if fact.waiting_tid == wait.tid and fact.waits_for:
        return fact.waits_for != "events" and not fact.waits_for.startswith("basic.deliver")
    return wait.sends or wait.purpose in (Purpose.OWED, Purpose.SEND)


def broker_blocked(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`broker-blocked`: the broker told the publisher to wait: a resource alarm.

    RabbitMQ is low on memory or disk. It has said connection.blocked and reads nothing more that is published on
    this connection until the alarm is over; a publisher that waits for a confirm waits as long.

    Proven: the client's own object says that its connection is blocked; or the last method that this thread was
    given is connection.blocked, no heartbeat is agreed on, and the broker's last data came after the last that was
    sent to it; or the broker itself says that this connection's state is "blocked" (`--broker`, whatever the client
    is).

    Likely: the last method, or the count of such methods in the client's process, says so, with something left to
    assume; the summary says what.

    Now: on the broker `rabbitmq-diagnostics alarms`, then its memory breakdown or its disk. The thread goes on by
    itself once the alarm is over; a restarted one would block again.

    Later: a bound for the blocked time in the client's own words (pika: `blocked_connection_timeout`);
    `vm_memory_high_watermark` and `disk_free_limit` of the broker, and an alert on its alarms.

    Not: a consumer, or whoever else is owed nothing; a block that was taken back; a connection whose state at the
    broker is only "blocking".

    Wrong: none is known where it is proven. What is concluded from counts may be of another connection of the same
    process (`likely`).

    Try: `make test T=test_a_resource_alarm` in a clone: real publishers, and a RabbitMQ whose memory limit is set
    to almost nothing.
    """
    for case in cases(snapshot):
        confidence = blocked(case.fact, case.socket, case.age_s or 0.0)
        if confidence is not None and case.overdue(budgets):
            lines = words.blocked_lines(case.fact, case.socket)
            said = Said(words.blocked_reason(case.fact, confidence), lines, "connection.blocked")
            yield _finding(snapshot, case, "broker-blocked", confidence, said)


def blocked(fact: AmqpFact, socket: SocketFact | None, waited: float) -> str | None:
    """How sure it is that the broker blocks this connection now; None: it does not, as far as is known.

    What is concluded from the last method is only as new as the last data that came in: without heartbeats that was
    this method, and it came after the request was sent.
    """
    if fact.blocked is None:
        return None
    if not fact.blocked_assumes:
        return PROVEN
    if socket is None or socket.last_receive_s is None or socket.last_send_s is None:
        return LIKELY
    if socket.last_receive_s > waited + _TICK_S:
        return None
    answered = socket.last_receive_s <= socket.last_send_s
    certain = answered and fact.heartbeat_s == 0 and fact.last_in is not None
    return PROVEN if certain else LIKELY


def broker_says_blocked(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """The same by the broker's own view, whatever the client is: its state of this very connection is "blocked".

    Not it: "blocking" (an alarm, but nothing was published here), and a connection that is not surely this one.
    """
    for wait, socket in network.connected_waits(snapshot):
        connection = at_the_broker(snapshot, socket)
        if connection is None or connection.state != "blocked" or snapshot.broker is None:
            continue
        known = fact_of(snapshot, wait) or AmqpFact(socket.local, socket.remote, "broker", client=connection.client)
        fact = replace(known, blocked=AmqpMethod("connection.blocked"), blocked_assumes="")
        case = Case(wait, fact, socket, waited_s(wait, fact, socket))
        if case.overdue(budgets):
            line = Evidence(
                snapshot.broker.source,
                "amqp.blocked",
                "connection.blocked",
                f"the broker's state of this connection ({connection.name}) is blocked",
            )
            said = Said(words.blocked_reason(fact, PROVEN), (line,), "connection.blocked")
            yield _finding(snapshot, case, "broker-blocked", PROVEN, said)


def at_the_broker(snapshot: Snapshot, socket: SocketFact) -> BrokerConnection | None:
    """The connection as the broker has it: by its address, or the only one that there is on both sides."""
    seen = snapshot.broker
    if seen is None or seen.kind != "rabbitmq":
        return None
    alone = len(seen.connections) == 1 == seen.own_connections
    return next((each for each in seen.connections if each.peer == socket.local or alone), None)


def channel_closed(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`channel-closed`: it waits for a confirm on a channel that the broker has closed.

    The broker closed the channel after an error (an exchange that is not there, say), and forgot what was published
    on it: the confirm never comes. Another thread may have read the channel.close.

    Proven: channel.close of the broker is known for the channel on which the confirm is awaited; or the client's
    object has that channel closed, or without confirms in force below a publish that asked for them, which means
    that the client opened it anew.

    Now: read the broker's log for the channel.close of this connection: it names the exchange or queue. Then
    restart the process.

    Later: one connection for each thread that publishes; a timeout for the confirm.

    Not: a channel that was closed and opened again before this publish: that one confirms again.

    Wrong: none is known.

    Try: `make test T=test_a_channel_that_the_broker_closed` in a clone.
    """
    for case in cases(snapshot):
        channel = closed_channel(case.fact)
        if channel is not None and case.overdue(budgets):
            lines = words.closed_lines(case.fact, channel)
            said = Said(words.closed_reason(channel), lines, f"channel {channel.number}: closed")
            yield _finding(snapshot, case, "channel-closed", PROVEN, said)


def closed_channel(fact: AmqpFact) -> AmqpChannel | None:
    """The channel on which a confirm is awaited that cannot come any more.

    py-amqp asks for confirms before it publishes for one, and opens a channel anew that the broker closed, without
    them: a channel without confirms below a wait for one was closed meanwhile.
    """
    for channel in fact.channels:
        waits_here = fact.waits_for == "confirm" and fact.waiting_channel == channel.number
        if channel.closed is not None and channel.closed_by == "broker" and (waits_here or channel.unconfirmed):
            return channel
        if waits_here and fact.source == "memory" and (channel.confirms is False or channel.is_open is False):
            return channel
    return None


def heartbeats_missing(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """Heartbeats were agreed on, and nothing at all came for more than two intervals: the broker or the way is gone.

    Which of the two, TCP tells: an ACK that came later than the data means that the other end's kernel is there.
    """
    for case in cases(snapshot):
        fact, socket = case.fact, case.socket
        if socket is None or socket.direction == "in" or network_outage.find_outage(snapshot, socket, budgets):
            continue
        silence_s = silence(fact, socket)
        if silence_s is not None and silence_s < min(budgets.owed_s, budgets.stuck_after_s):
            # A busy broker is late by seconds: by a heartbeat of one or two this would be missed ones.
            continue
        if silence_s is None or not fact.heartbeat_s or socket.receive_bytes:
            # What has not been read here can keep the rest away.
            continue
        acked = socket.last_ack_s is not None and socket.last_ack_s < silence_s - fact.heartbeat_s
        lives = socket.peer is not None or acked or network_probe.lives(socket)
        lost = socket.conntrack == "absent" and not socket.conntrack_assumes and not network_probe.lives(socket)
        reason = words.silence_reason(fact.heartbeat_s, silence_s, lives=lives, lost=lost)
        said = Said(reason, words.silence_lines(fact, socket, silence_s), f"no heartbeat for {age(silence_s)}")
        code = "peer-silent" if lives and not lost else "half-open"
        yield _finding(snapshot, case, code, PROVEN if lives or lost else LIKELY, said)


def silence(fact: AmqpFact, socket: SocketFact | None) -> float | None:
    """For how long nothing came, where that is longer than the agreed heartbeat allows."""
    known = (socket.last_receive_s if socket is not None else None, fact.last_frame_in_s)
    silence_s = min((value for value in known if value is not None), default=None)
    if not fact.heartbeat_s or silence_s is None or silence_s <= MISSED_INTERVALS * fact.heartbeat_s:
        return None
    return silence_s


def explained(snapshot: Snapshot, wait: Wait, budgets: Budgets) -> bool:
    """The frames say why the broker does not answer this thread."""
    rules = (broker_blocked, broker_says_blocked, channel_closed)
    found = (finding for rule in rules for finding in rule(snapshot, budgets))
    return any(finding.tid == wait.tid for finding in found)


def _finding(snapshot: Snapshot, case: Case, code: str, confidence: str, said: Said) -> Finding:
    wait, fact, socket = case.wait, case.fact, case.socket
    name = network.thread_name(snapshot, wait.tid)
    if fact.waiting_task:
        name = f"task {fact.waiting_task} of {name}"
    peer = network.peer_name(socket) if socket is not None else fact.remote or "its broker"
    finding = Finding(
        code,
        confidence,
        f"{name} {words.waiting(wait, fact, case.age_s or 0.0, peer)}; {said.reason}",
        evidence=(
            network.call_line(snapshot, wait, case.age_s),
            *network.frame_lines(wait),
            *said.lines,
            *(network.queue_lines(snapshot, socket) if socket is not None else ()),
        ),
        now=words.now(snapshot, wait, socket, code),
        later=words.later(snapshot, wait, fact, socket, code),
        chain=network.chain(snapshot, wait, *(() if wait.socket else (f"AMQP connection to {peer}",)), said.end),
    )
    return network.about(snapshot, wait, finding)
