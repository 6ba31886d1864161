"""`half-open`, from the timers and counters of the socket, its conntrack entry, and a probe where one was sent.

A probe that was answered says that the peer is there, and then only data that passes in neither way for long is an
outage: small segments alone come through (an MTU that nobody was told of), or the path has just come back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stucktrace.diagnosis import network, network_probe, network_remedies, tcp_timers
from stucktrace.diagnosis.model import LIKELY, POSSIBLE, PROVEN, WARNING, Budgets, Evidence, Finding, Now
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait
from stucktrace.diagnosis.words import age, count, listing
from stucktrace.facts import Snapshot, SocketFact

PROVEN_S = 30.0


@dataclass(frozen=True)
class Outage:
    """Why a connection is taken for dead."""

    confidence: str
    what: str
    """ "nothing it sent has been acknowledged for 35 s"."""
    since_s: float
    evidence: tuple[Evidence, ...]
    ended: bool = False
    """The target's own TCP knows by now."""


def half_open(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`half-open`: the peer is gone and the socket does not know.

    The other end of a connection, or the way to it, is gone, and this side's TCP has not noticed yet. The thread
    that waits on it goes on waiting until the kernel gives up: with the default settings after about a quarter of
    an hour while data is in flight, and never for a reader without keepalive.

    Proven: one of these.
    - What was sent has been retransmitted without an ACK for 30 s, and no other ACK came meanwhile.
    - Two or more keepalive probes in a row have had no answer, for 30 s.
    - This flow's conntrack entry is gone where conntrack is hooked, the retransmissions go unanswered, and nothing
      has to be assumed for that to be the reason; this needs no 30 s.
    - `--probe` was answered with a reset of the expected sequence number.
    - AMQP's heartbeat has been missed for more than two intervals, and the flow's conntrack entry is gone, with
      nothing assumed.

    Likely: the same for 5 s and more, for a cut of some seconds heals by itself (measured: one of 9.5 s, after 13
    s); data that is not acknowledged although ACKs still come, or although the peer answered a probe (large
    segments are lost); probes without an answer; a reply awaited for 5 s on a flow that conntrack has forgotten;
    AMQP's heartbeat missed for more than two intervals; a connection that only an event loop watches and that has
    been dead for longer than a request may take.

    Possible: a dead connection that no thread waits on. A pool drops it unused.

    Now: where it is proven and the connection is this process's own, `stucktrace unstick PID` ends that one
    connection, and the call fails so that the client's own retry takes over. Else the report has the `ss -K` line
    for this connection, and the command that restarts the process. After a reset nothing is left to do but to look
    again.

    Later: the options that are really 0 on this live socket: TCP_USER_TIMEOUT bounds how long unacknowledged data
    is retransmitted, SO_KEEPALIVE lets an idle wait notice that its peer is gone; and a timeout of the client,
    which needs neither.

    Not: an idle connection, however old its last ACK: nothing is on its way. A slow peer: it acknowledges
    (`peer-silent`). A closed window (`peer-not-reading`). A connect without an answer (`connect-failing`).

    Wrong: `likely` may heal, and says when the kernel gives up. A reset may come from a firewall instead of the
    peer; the connection is lost all the same. Where an eviction has to be assumed to cut the flow, the evidence
    says what is assumed.

    Try: `make demo` in a clone cuts the way between a gunicorn worker and Redis, and explains it.
    """
    hanging = {socket.inode: wait for wait, socket in reversed(list(network.socket_waits(snapshot)))}
    for socket in snapshot.sockets:
        outage = find_outage(snapshot, socket, budgets)
        if outage is None:
            continue
        wait = hanging.get(socket.inode)
        if wait is None:
            yield _unused(snapshot, socket, outage)
        else:
            yield _stuck(snapshot, wait, socket, outage)
    yield from _evicted(snapshot, budgets)


def find_outage(snapshot: Snapshot, socket: SocketFact, budgets: Budgets) -> Outage | None:
    """Whether the other end of this connection is not heard any more, and how sure that is."""
    if socket.protocol != "tcp" or socket.state not in network.CONNECTED:
        return None
    if network_probe.lives(socket):
        return _only_small(snapshot, socket, budgets)
    if network_probe.forgotten(socket):
        return _forgotten(snapshot, socket)
    silence_s = tcp_timers.keepalive_silence_s(socket)
    if socket.unacked and socket.timer == "retransmit" and (socket.retransmits or socket.backoff):
        return _unacknowledged(snapshot, socket, budgets)
    if silence_s is not None and silence_s >= budgets.owed_s:
        return _unanswered(snapshot, socket, silence_s)
    return _silent(snapshot, socket)


def _unacknowledged(snapshot: Snapshot, socket: SocketFact, budgets: Budgets) -> Outage | None:
    outage_s = tcp_timers.outage_s(socket)
    if outage_s is None:
        return None
    # The probes were sent after the kernel's figures were read.
    outage_s += network_probe.silent_s(socket)
    evicted = socket.conntrack == "absent" and not socket.conntrack_assumes
    if outage_s < budgets.owed_s and not shows_early(socket) and not network_probe.silent_s(socket):
        return None
    lines = [*_probe_lines(socket), *network.retransmit_lines(snapshot, socket)]
    what = f"nothing it sent has been acknowledged for {age(outage_s)}"
    # While ACKs still come (for other segments, or for keepalive of the same path) the peer is there: what is lost are
    # segments of one size or kind. That is an outage for the thread, and not a peer that is gone.
    ack_s = None if socket.last_ack_s is None else socket.last_ack_s + network_probe.silent_s(socket)
    heard = ack_s is not None and ack_s < outage_s / 2
    confidence = PROVEN if (outage_s >= PROVEN_S or evicted) and not heard else LIKELY
    if heard:
        what = (
            f"what it sent has not been acknowledged for {age(outage_s)} although an ACK came {age(ack_s)} "
            "ago (large segments may be lost on the way)"
        )
    if socket.conntrack == "absent":
        lines.append(conntrack_line(socket))
        where = f" in {socket.conntrack_where}" if socket.conntrack_where else ""
        what += f", and conntrack{where} has lost the entry of {socket.local} -> {socket.remote}"
    elif socket.conntrack == "present":
        lines.append(conntrack_line(socket))
    if socket.soft_error:
        lines.append(
            Evidence("tcp_info", "soft_error", socket.soft_error, f"the network answers with errno {socket.soft_error}")
        )
    lines.append(_gives_up(socket))
    return Outage(confidence, what, outage_s, tuple(lines))


def _only_small(snapshot: Snapshot, socket: SocketFact, budgets: Budgets) -> Outage | None:
    """The peer answered a segment without data; what carries data is lost, one way or the other."""
    assert socket.probe is not None
    lost = network_probe.unreceived(socket.probe)
    outage_s = tcp_timers.outage_s(socket) if socket.timer == "retransmit" and socket.retransmits else None
    if outage_s is not None and outage_s >= budgets.owed_s:
        soon = f", in {age(socket.timer_expires_s)}," if socket.timer_expires_s else ""
        what = (
            f"what it sent has not been acknowledged for {age(outage_s)}, although {network_probe.answered(socket)}: "
            f"only small segments pass, or the path came back since the last retransmission (the next one{soon} tells)"
        )
    elif lost:
        outage_s = socket.probe.seconds
        what = (
            f"{network_probe.answered(socket)}, and by the number of that answer it has sent {lost} that did not come "
            f"in for {age(outage_s)}: "
        )
        closed = socket.probe.unreceived_bytes == 1
        what += "it seems to have closed the connection" if closed else "only small segments pass"
    else:
        return None
    known = (line for line in network.retransmit_lines(snapshot, socket) if line.value or line.what == "unacked")
    ends = (_gives_up(socket),) if socket.unacked else ()
    return Outage(LIKELY, what, outage_s, (*_probe_lines(socket), *known, *ends))


def shows_early(socket: SocketFact) -> bool:
    """Whether a lost entry tells before the outage is long.

    Where the agent saw the entry before, one retransmission is enough if packets without one are certainly dropped, two
    if that is assumed. Where it is only known that flows like it have one, two and certainty.
    """
    if socket.conntrack != "absent":
        return False
    certain, seen = not socket.conntrack_assumes, socket.conntrack_seen_s is not None
    return (certain or seen) and (socket.retransmits or 0) >= (1 if certain and seen else 2)


def conntrack_line(socket: SocketFact) -> Evidence:
    """What conntrack knows of this very flow, where, and what is assumed when that is to explain the outage."""
    flow = f"{socket.local} -> {socket.remote}" + (f" in {socket.conntrack_where}" if socket.conntrack_where else "")
    if socket.conntrack == "present":
        # Another source than an eviction's: what is publicly known about evictions is found by that.
        return Evidence("ctnetlink", "entry", "present", f"conntrack has the entry of {flow}: it was not evicted")
    text = f"conntrack is hooked and has no entry any more for {flow}"
    if socket.conntrack_seen_s is not None:
        text += f"; it was there {age(socket.conntrack_seen_s)} ago"
    if socket.conntrack_assumes:
        text += f"; that this cuts the flow assumes that {socket.conntrack_assumes}"
    return Evidence("conntrack", "entry", "absent", text)


def _gives_up(socket: SocketFact) -> Evidence:
    left_s = tcp_timers.gives_up_s(socket)
    text = f"if the path comes back before, it heals; else the kernel gives up in about {age(left_s)}"
    if left_s is None:
        text = "it is not known when the kernel gives up"
    return Evidence("tcp timers", "gives_up_s", None if left_s is None else round(left_s, 1), text, "s")


def _unanswered(snapshot: Snapshot, socket: SocketFact, silence_s: float) -> Outage | None:
    keepalive = socket.keepalive
    assert keepalive is not None and keepalive.probes_unanswered
    if keepalive.probes_unanswered < 2:
        return None
    probes = keepalive.probes_unanswered
    silence_s += network_probe.silent_s(socket)
    lines = [
        *_probe_lines(socket),
        Evidence(
            network.socket_source(snapshot),
            "probes_unanswered",
            probes,
            f"{probes} keepalive probes in a row have no answer, one every {age(keepalive.interval_s)}",
        ),
        *(line for line in network.retransmit_lines(snapshot, socket) if line.what == "last_ack_s"),
        *network.option_lines(snapshot, socket),
        _gives_up(socket),
    ]
    what = f"{probes} keepalive probes have no answer, for {age(silence_s)}"
    return Outage(PROVEN if silence_s >= PROVEN_S else LIKELY, what, silence_s, tuple(lines))


def _probe_lines(socket: SocketFact) -> tuple[Evidence, ...]:
    line = network_probe.line(socket)
    return () if line is None else (line,)


def _forgotten(snapshot: Snapshot, socket: SocketFact) -> Outage:
    what = "its peer answered a probe with a reset, for nobody there knows this connection any more"
    known = (line for line in network.retransmit_lines(snapshot, socket) if line.value or line.what == "unacked")
    lines = (*_probe_lines(socket), *known)
    return Outage(PROVEN, what, tcp_timers.outage_s(socket) or 0.0, lines, ended=True)


def _silent(snapshot: Snapshot, socket: SocketFact) -> Outage | None:
    """Nothing is on its way, and probes had no answer. A young wait can be one that a short cut is about to let go."""
    silent_s = network_probe.silent_s(socket)
    if not silent_s or socket.probe is None:
        return None
    what = f"{count(socket.probe.tries, 'probe')} within {age(silent_s)} had no answer"
    lines = (
        *_probe_lines(socket),
        *(line for line in network.retransmit_lines(snapshot, socket) if line.what == "last_ack_s"),
        *network.option_lines(snapshot, socket),
    )
    return Outage(LIKELY, what, silent_s, lines)


def _stuck(snapshot: Snapshot, wait: Wait, socket: SocketFact, outage: Outage) -> Finding:
    # A wait for data cannot be younger in its own words than the outage that keeps the data away.
    age_s = max(wait.age_s or 0.0, outage.since_s) if wait.polls or wait.sends else wait.age_s
    name = network.thread_name(snapshot, wait.tid)
    left_s = tcp_timers.gives_up_s(socket)
    verdict = "the connection is half-open"
    if outage.confidence != PROVEN:
        verdict = "the connection looks half-open; it may heal"
    ends = f"; the kernel gives up in about {age(left_s)}" if left_s is not None else ""
    if outage.ended:
        verdict, ends = "the connection was half-open", "; the same reset has ended this wait (ECONNRESET)"
    summary = f"{name} {network.waiting(wait, age_s, network.peer_name(socket))}; {outage.what}: {verdict}{ends}"
    finding = Finding(
        "half-open",
        outage.confidence,
        summary,
        evidence=(network.call_line(snapshot, wait, age_s), *network.frame_lines(wait), *outage.evidence),
        now=_now(snapshot, wait, socket, outage),
        later=network_remedies.notice_dead_peer(snapshot, wait, socket),
        chain=network.chain(snapshot, wait, outage.what),
    )
    return network.about(snapshot, wait, finding)


def _now(snapshot: Snapshot, wait: Wait, socket: SocketFact, outage: Outage) -> tuple[Now, ...]:
    if outage.ended:
        return network_remedies.look_again(snapshot, wait)
    if outage.confidence == PROVEN and not socket.shared_with:
        return network_remedies.unstick(snapshot, wait)
    return network_remedies.now(snapshot, wait, socket)


def _unused(snapshot: Snapshot, socket: SocketFact, outage: Outage) -> Finding:
    fds = listing(f"fd {fd}" for fd in socket.fds)
    dead = "is dead" if outage.confidence == PROVEN or socket.probe is None else "seems to be dead"
    return Finding(
        "half-open",
        POSSIBLE,
        f"the connection to {network.peer_name(socket)} ({fds}) {dead}: {outage.what}; no thread waits on it now",
        evidence=outage.evidence,
        severity=WARNING,
        fd=socket.fds[0] if socket.fds else None,
        chain=(fds, f"tcp {socket.local} -> {network.peer_name(socket)}", outage.what),
    )


def _evicted(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """A reply is awaited on a flow that conntrack has forgotten: it would be dropped on its way.

    Nothing is unacknowledged here, so one assumption is left: that the entry was needed for the way back. Not it: an
    entry that the reply itself would make anew, or that no rule that was read asks for.
    """
    for wait, socket in network.connected_waits(snapshot):
        if (
            socket.conntrack != "absent"
            or socket.conntrack_assumes
            or network_probe.lives(socket)
            or find_outage(snapshot, socket, budgets) is not None
            or socket.peer is not None
        ):
            continue
        if wait.purpose not in (Purpose.OWED, Purpose.REQUEST) or (wait.age_s or 0.0) < budgets.owed_s:
            continue
        name = network.thread_name(snapshot, wait.tid)
        finding = Finding(
            "half-open",
            LIKELY,
            f"{name} {network.waiting(wait, wait.age_s, network.peer_name(socket))}; conntrack has no entry for this "
            "flow any more, so the reply is dropped on its way",
            evidence=(
                network.call_line(snapshot, wait),
                *network.frame_lines(wait),
                conntrack_line(socket),
                *network.queue_lines(snapshot, socket),
                *network.option_lines(snapshot, socket),
            ),
            now=network_remedies.now(snapshot, wait, socket),
            later=network_remedies.notice_dead_peer(snapshot, wait, socket),
            chain=network.chain(snapshot, wait, "conntrack: no entry"),
        )
        yield network.about(snapshot, wait, finding)
