"""What is said of a broker that does not answer: the reason, its evidence, what to do now, which setting to change."""

from __future__ import annotations

from stucktrace.diagnosis import network, network_remedies
from stucktrace.diagnosis.clients import client_of
from stucktrace.diagnosis.model import LIKELY, Evidence, Later, Now
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.remedies import restart
from stucktrace.diagnosis.waits import Wait
from stucktrace.diagnosis.words import age
from stucktrace.facts import AmqpChannel, AmqpFact, Snapshot, SocketFact

SOURCES = {"memory": "client memory", "wire": "capture"}
BLOCKED_TIMEOUTS = {
    "pika": "pika.ConnectionParameters(..., blocked_connection_timeout=60)",
    "amqpstorm": "connection.channel(rpc_timeout=60), and connection.is_blocked before each publish",
    "aiormq": "await exchange.publish(..., timeout=10)",
}


ALARMS = Now(
    "on the broker: rabbitmq-diagnostics alarms",
    "none: it only asks. Under an alarm the broker reads nothing that is published, and a restart would not help",
    "nothing",
)


def source(fact: AmqpFact) -> str:
    return SOURCES.get(fact.source, fact.source)


def waiting(wait: Wait, fact: AmqpFact, age_s: float, peer: str) -> str:
    # Another frame than the library's may be the one that the stack is read by: the objects know better.
    if (
        wait.socket is not None
        and not fact.waiting_task
        and (wait.purpose is Purpose.OWED or not fact.waits_for or fact.waits_for == "events")
    ):
        return network.waiting(wait, age_s, peer)
    what = "an AMQP confirm" if fact.waits_for == "confirm" else fact.waits_for or "an answer"
    return f"has waited {age(age_s)} for {what} from {peer}"


def blocked_reason(fact: AmqpFact, confidence: str) -> str:
    assumed = fact.blocked.text if fact.blocked is not None else ""
    why = f" ({assumed})" if assumed else " (a resource alarm: memory or disk)"
    reason = f"the broker blocks this connection{why}: it reads nothing that is published until the alarm is over"
    if confidence == LIKELY and fact.blocked_assumes:
        reason += f", assuming that {fact.blocked_assumes}"
    return reason


def blocked_lines(fact: AmqpFact, socket: SocketFact | None) -> tuple[Evidence, ...]:
    assert fact.blocked is not None
    when = f", {age(fact.blocked.age_s)} ago" if fact.blocked.age_s is not None else ""
    text = f"{fact.client or 'the client'} says that its connection is blocked{when}"
    if fact.source == "wire":
        text = f"the broker sent connection.blocked{when}, and no connection.unblocked since"
    elif fact.blocked_assumes:
        text = "the last method that this thread was given by the broker is connection.blocked"
        if fact.last_in is None:
            text = f"{fact.client} was told connection.blocked more often than connection.unblocked in this process"
    lines = [Evidence(source(fact), "amqp.blocked", "connection.blocked", text)]
    both = socket is not None and socket.last_receive_s is not None and socket.last_send_s is not None
    if fact.blocked_assumes and socket is not None and both:
        since = "after" if (socket.last_receive_s or 0.0) <= (socket.last_send_s or 0.0) else "before"
        beats = "no heartbeat is agreed on, so it was a method" if fact.heartbeat_s == 0 else "it may be a heartbeat"
        text = f"the broker's last data came {since} the last that was sent to it; {beats}"
        lines.append(Evidence("tcp_info", "received_after_send", since == "after", text))
    return tuple(lines)


def closed_reason(channel: AmqpChannel) -> str:
    why = ""
    if channel.closed is not None:
        code = f" {channel.closed.code}" if channel.closed.code else ""
        why = f" ({channel.closed.text or 'channel.close'}{code})"
    return f"the broker closed channel {channel.number} meanwhile{why}: nobody will confirm what was published on it"


def closed_lines(fact: AmqpFact, channel: AmqpChannel) -> tuple[Evidence, ...]:
    if channel.closed is not None:
        cause = f", caused by {channel.closed.method}" if channel.closed.method else ""
        text = f"channel.close came on channel {channel.number}{cause}: {channel.closed.text}"
        return (Evidence(source(fact), "amqp.channel", channel.number, text),)
    text = f"channel {channel.number} is not open any more"
    if channel.confirms is False and channel.is_open is not False:
        text = (
            f"channel {channel.number} has no confirms in force below a publish that asked for them: "
            f"{fact.client} opened it anew after channel.close"
        )
    return (Evidence(source(fact), "amqp.channel", channel.number, text),)


def silence_reason(heartbeat_s: float, silence_s: float, *, lives: bool, lost: bool) -> str:
    owed = f"a heartbeat of {age(heartbeat_s)} is agreed on, and nothing came for {age(silence_s)}"
    if lost:
        return f"{owed}: conntrack has lost the flow, and nothing comes through it"
    if lives:
        return f"{owed} although its kernel answers: the broker itself stands still"
    return f"{owed}: the connection looks half-open, assuming that the broker itself does not stand still"


def silence_lines(fact: AmqpFact, socket: SocketFact, silence_s: float) -> tuple[Evidence, ...]:
    lines = [
        Evidence(
            source(fact),
            "amqp.heartbeat_s",
            fact.heartbeat_s,
            f"the connection's heartbeat is {age(fact.heartbeat_s)}: the broker owes a frame twice as often",
            "s",
        )
    ]
    if socket.last_ack_s is not None:
        text = f"the last ACK came {age(socket.last_ack_s)} ago"
        lines.append(Evidence("tcp_info", "last_ack_s", round(socket.last_ack_s, 3), text, "s"))
    return tuple(lines)


def now(snapshot: Snapshot, wait: Wait, socket: SocketFact | None, code: str) -> tuple[Now, ...]:
    if code == "broker-blocked":
        return (
            Now(
                "on the broker: rabbitmq-diagnostics alarms; then rabbitmq-diagnostics memory_breakdown, or df for its "
                "disk (free_disk_space below disk_free_limit)",
                "none: it only asks. This thread goes on by itself once the alarm is over; a restart would block again",
                "nothing",
            ),
        )
    if code == "channel-closed":
        return (
            Now(
                "read the broker's log for the channel.close of this connection (the exchange or queue that it names)",
                "none",
                "nothing",
            ),
            *restart(snapshot),
        )
    return network_remedies.now(snapshot, wait, socket) if socket is not None else restart(snapshot)


def later(snapshot: Snapshot, wait: Wait, fact: AmqpFact, socket: SocketFact | None, code: str) -> tuple[Later, ...]:
    bound = BLOCKED_TIMEOUTS.get(fact.client, client_of(snapshot, wait).timeout)
    if code == "broker-blocked":
        return (
            Later(bound, "a publish that gives up can be tried again or refused, and the worker goes on"),
            Later(
                "vm_memory_high_watermark and disk_free_limit of the broker, and an alert on its alarms",
                "publishers are held back as soon as one of them is passed, on every node of the cluster",
            ),
        )
    if code == "channel-closed":
        return (
            Later(
                "one connection for each thread that publishes",
                "an error of a channel reaches the thread that reads the frame, and that was not the one that waits",
            ),
            Later(bound, "a wait with an end of its own does not depend on the broker's answer"),
        )
    return network_remedies.notice_dead_peer(snapshot, wait, socket) if socket is not None else ()
