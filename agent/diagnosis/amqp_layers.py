"""One answer over all layers for a process that hangs on an AMQP broker, in the order in which one asks by hand:

0 the call and the last frames of its connection, 1 the kernel's socket, 2 the broker, 3 conntrack's entry of the flow,
4 the settings in force that would have ended or noticed it. What was not looked at says so, and how it could be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stucktrace.diagnosis import broker, network, network_probe, tcp_timers
from stucktrace.diagnosis.model import STUCK, Finding
from stucktrace.diagnosis.waits import Wait, waits
from stucktrace.diagnosis.words import age, count, size
from stucktrace.facts import AmqpFact, Snapshot, SocketFact
from stucktrace.facts.conntrack import ABSENT, NOT_TRACKED, TRACKED
from stucktrace.facts.settings import SettingFact

NAMES = ("call", "socket", "broker", "conntrack", "settings")
OPTIONS = "broker_transport_options."
SHOWN_SETTINGS = (
    "timeout",
    f"{OPTIONS}heartbeat",
    "broker_heartbeat",
    f"{OPTIONS}confirm_publish",
    f"{OPTIONS}confirm_timeout",
    f"{OPTIONS}read_timeout",
    "task_soft_time_limit",
    "task_time_limit",
    "worker_soft_time_limit",
)
"""Those that bound a wait for the broker, or notice that it is gone."""


@dataclass(frozen=True)
class Layer:
    number: int
    name: str
    lines: tuple[str, ...]


def subject(snapshot: Snapshot, finding: Finding) -> Wait | None:
    """The wait for an AMQP broker that a finding is about; None: it is about something else."""
    if finding.verdict_class != STUCK:
        return None
    wait = next((wait for wait in waits(snapshot) if wait.tid == finding.tid), None)
    if wait is None or finding.fd not in (None, wait.fd):
        return None
    return wait if wait.reading.family == "amqp" or broker.fact_of(snapshot, wait) is not None else None


def layers(snapshot: Snapshot, finding: Finding) -> tuple[Layer, ...]:
    """() where the finding is not about a wait for an AMQP broker."""
    wait = subject(snapshot, finding)
    if wait is None:
        return ()
    fact = broker.fact_of(snapshot, wait)
    socket = wait.socket or (snapshot.socket(fact.fd) if fact is not None else None)
    said = (
        _call(snapshot, wait, fact, socket),
        _socket(socket),
        _broker(snapshot, fact, socket),
        _conntrack(snapshot, socket),
        _settings(snapshot, fact, socket),
    )
    return tuple(Layer(number, NAMES[number], tuple(lines)) for number, lines in enumerate(said))


def _call(snapshot: Snapshot, wait: Wait, fact: AmqpFact | None, socket: SocketFact | None) -> Iterator[str]:
    since_s = broker.waited_s(wait, fact, socket) if fact is not None else wait.age_s
    call = f"{wait.call or 'a call'}" + (f"(fd {wait.fd})" if wait.fd is not None else "")
    reason = f": {wait.reading.reason}" if wait.reading.reason else ""
    yield f"{network.thread_name(snapshot, wait.tid)} is in {call} for {age(since_s)}{reason}"
    if fact is None:
        yield "the client's objects could not be read: `stucktrace amqp` shows the frames from now on"
        return
    if fact.waits_for not in ("", "events"):
        where = f" on channel {fact.waiting_channel}" if fact.waiting_channel else ""
        limit = f", for {age(fact.confirm_timeout_s)} at most" if fact.confirm_timeout_s is not None else ""
        if fact.confirm_timeout_known and fact.confirm_timeout_s is None:
            limit = ", without a limit"
        yield f"{fact.client} waits for {'a confirm' if fact.waits_for == 'confirm' else fact.waits_for}{where}{limit}"
    if fact.last_in is not None:
        assumed = f", assuming that {fact.blocked_assumes}" if fact.blocked_assumes and fact.heartbeat_s else ""
        yield f"the last method from the broker is {fact.last_in.name}{assumed}"
    elif fact.blocked is None and not fact.unknown:
        yield "the last frames came before this look, and the client keeps no note of them"
    for name, ago_s in (("came in", fact.last_heartbeat_in_s), ("was sent", fact.last_heartbeat_out_s)):
        if ago_s is not None:
            yield f"the client saw that something {name} {age(ago_s)} ago (heartbeat_tick)"
    yield from fact.unknown


def _socket(socket: SocketFact | None) -> Iterator[str]:
    if socket is None:
        yield "which socket it is could not be told"
        return
    yield f"{socket.protocol} {socket.local} -> {network.peer_name(socket)} {socket.state}".rstrip()
    if socket.unacked and socket.retransmits:
        yield (
            f"{count(socket.unacked, 'segment')} not acknowledged, sent again {count(socket.retransmits, 'time')}; the "
            f"last ACK came {age(socket.last_ack_s)} ago"
        )
    elif socket.unacked is not None:
        yield "everything that was sent is acknowledged" if not socket.unacked else "the last data is on its way"
    if socket.last_send_s is not None and socket.last_receive_s is not None:
        yield f"data last went out {age(socket.last_send_s)} ago, and came in {age(socket.last_receive_s)} ago"
    if socket.probe is not None:
        yield network_probe.words(socket.probe, socket.remote)
    elif socket.protocol == "tcp":
        yield "the peer's TCP was not asked whether it still has it: --probe"
    if socket.receive_bytes:
        yield f"{size(socket.receive_bytes)} that came in are not read by the program"


def _broker(snapshot: Snapshot, fact: AmqpFact | None, socket: SocketFact | None) -> Iterator[str]:
    if fact is not None and fact.blocked is not None:
        reason = f" ({fact.blocked.text})" if fact.blocked.text else ""
        yield f"it said connection.blocked{reason}: a resource alarm holds publishers back"
    peer = socket.peer if socket is not None else None
    if peer is not None and peer.pids:
        state = "is stopped (state T)" if peer.holder_state in ("T", "t") else "runs on this node"
        unread = f", and has {size(peer.unread_bytes)} of this connection unread" if peer.unread_bytes else ""
        yield f"{peer.command or 'its process'} (pid {peer.pids[0]}) {state}{unread}"
    seen = snapshot.broker
    if seen is None:
        yield "its own view was not asked for: --broker URL, stucktrace probe-broker URL, rabbitmq-diagnostics alarms"
        return
    known = broker.at_the_broker(snapshot, socket) if socket is not None else None
    if known is None:
        yield f"its own view ({seen.source}) does not have this connection by its address"
        return
    yield f"by its own view ({seen.source}) this connection is {known.state or 'there'}"
    for channel in seen.channels:
        if channel.connection == known.name and channel.unacked:
            yield f"channel {channel.number} has {count(channel.unacked, 'delivery', 'deliveries')} not acknowledged"


def _conntrack(snapshot: Snapshot, socket: SocketFact | None) -> Iterator[str]:
    flow = snapshot.flow
    if flow is not None and socket is not None and flow.socket.inode == socket.inode:
        told = [entry for entry in flow.entries if entry.state in (TRACKED, ABSENT)]
        for entry in told:
            if entry.state == TRACKED:
                until = f", kept for {age(entry.timeout_s)} more" if entry.timeout_s is not None else ""
                yield f"its entry is there in {entry.where}: {entry.tcp_state or 'tracked'}{until}"
            else:
                yield f"its entry is gone from {entry.where}, where flows like it are tracked"
        if told:
            return
        if any(entry.state == NOT_TRACKED for entry in flow.entries):
            yield "nothing tracks this connection on this node"
            return
    if socket is not None and socket.conntrack is not None:
        yield f"its entry is {socket.conntrack}" + (f" in {socket.conntrack_where}" if socket.conntrack_where else "")
        return
    yield "no entry of this connection is known: stucktrace conntrack shows the tables"


def _settings(snapshot: Snapshot, fact: AmqpFact | None, socket: SocketFact | None) -> Iterator[str]:
    heartbeat_s = fact.heartbeat_s if fact is not None else None
    if heartbeat_s is None:
        yield "heartbeat: not known"
    elif heartbeat_s:
        yield f"heartbeat {age(heartbeat_s)}, agreed on with the broker"
    else:
        yield "heartbeat 0: a broker that is gone or silent is not noticed by AMQP"
    if socket is not None and socket.protocol == "tcp":
        idle_s = tcp_timers.detection_window_s(socket)
        on = socket.keepalive is not None and socket.keepalive.on
        idle = f"notices a dead peer after {age(idle_s)} without data" if on else "off: a dead peer is never noticed"
        flight = "not set" if not socket.user_timeout_s else age(socket.user_timeout_s)
        if socket.keepalive is not None:
            yield f"keepalive {idle}; TCP_USER_TIMEOUT {flight}"
    worker = snapshot.process.worker
    if worker.timeout_s and not any(setting.name == "timeout" for setting in snapshot.settings):
        yield f"the worker's timeout is {age(worker.timeout_s)}"
    yield from map(_setting, shown(snapshot.settings))


def shown(settings: tuple[SettingFact, ...]) -> tuple[SettingFact, ...]:
    """Of all settings, those that would have ended or noticed this wait."""
    by_name = {setting.name: setting for setting in settings if setting.known}
    return tuple(by_name[name] for name in SHOWN_SETTINGS if name in by_name)


def _setting(setting: SettingFact) -> str:
    value = "not set" if setting.value is None else setting.value
    source = "" if setting.in_force and setting.source == "process memory" else f" ({setting.source})"
    return f"{setting.subject} {setting.name}: {value}{source}"
