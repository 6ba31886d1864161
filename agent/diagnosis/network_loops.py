"""Connections that only an event loop watches: a task waits on them, and the loop itself is at rest.

The loop's thread hangs on no single socket, and the tasks have no stack of their own to read. What is left is the
socket: one that its loop watches, that was opened from here, and that the kernel shows to be dead, unanswered, closed
for writing, or unread by a peer on this node, for longer than a request may take. `likely`: the one assumption is that
a task waits for it; where conntrack has certainly lost its entry it is `proven`, and at once. An inbound connection is
its client's business, and an unwatched one a pool's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stucktrace.diagnosis import (
    network,
    network_conntrack,
    network_inbound,
    network_outage,
    network_probe,
    network_remedies,
    tcp_timers,
)
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Evidence, Finding, Later
from stucktrace.diagnosis.network_outage import PROVEN_S
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import POLL_CALLS, Wait, quiet, waits
from stucktrace.diagnosis.words import age, size
from stucktrace.facts import Snapshot, SocketFact

_EPOLLOUT = 0x4


def watched(snapshot: Snapshot) -> Iterator[tuple[Wait, SocketFact, int]]:
    """(the wait of a loop at rest, a connection made from here that it watches, the events that it watches for)."""
    hanging = {socket.inode for _, socket in network.socket_waits(snapshot)}
    for wait in waits(snapshot):
        if wait.call not in POLL_CALLS or wait.purpose is not Purpose.WORK:
            continue
        own = {(socket.local, socket.remote) for socket in snapshot.sockets}
        for fd in wait.fds:
            socket = snapshot.socket(fd)
            if socket is None or socket.protocol != "tcp" or socket.direction == "in" or socket.inode in hanging:
                continue
            if socket.state != "LISTEN" and (socket.remote, socket.local) not in own:
                yield wait, socket, _events(snapshot, wait, fd)


def _events(snapshot: Snapshot, wait: Wait, fd: int) -> int:
    epoll = snapshot.epoll(wait.thread.syscall.fd) if wait.thread.syscall else None
    return next((watch.events for watch in epoll.watches if watch.fd == fd), 0) if epoll else 0


def loop_connections(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`half-open`, `connect-failing`, `peer-not-reading` and `peer-silent` for the connections of a loop at rest.

    Not it: a connection that moved bytes in the window, a kept-alive one at rest (nothing is on its way), a peer on
    this node that has read everything, a peer elsewhere that acknowledges.
    """
    limit_s = max(PROVEN_S, budgets.request_s(snapshot.process.worker.timeout_s))
    if budgets.stuck_after_given:
        limit_s = budgets.stuck_after_s
    for wait, socket, events in watched(snapshot):
        if socket.window_received_bytes or socket.window_acked_bytes:
            continue
        if socket.state == "SYN_SENT":
            yield from _unanswered(snapshot, wait, socket, limit_s)
        elif socket.state in network.CONNECTED:
            yield from _dead(snapshot, wait, socket, budgets, limit_s)
            yield from _full(snapshot, wait, socket, events, limit_s)
            yield from _unread(snapshot, wait, socket, limit_s)


def _unanswered(snapshot: Snapshot, wait: Wait, socket: SocketFact, limit_s: float) -> Iterator[Finding]:
    age_s = tcp_timers.connecting_s(socket)
    if age_s is None or age_s < limit_s or not socket.retransmits:
        return
    source = network.socket_source(snapshot)
    text = f"in SYN_SENT, the SYN was sent again {socket.retransmits} times without an answer"
    lines = [Evidence(source, "retransmits", socket.retransmits, text)]
    full = network_conntrack.full_table(snapshot, socket)
    if full is not None:
        lines += network_conntrack.full_lines(full, socket)
    why = network_conntrack.why(full)
    yield _finding(
        snapshot,
        (wait, socket),
        ("connect-failing", "no answer to the SYN"),
        f"has been connecting to {network.peer_name(socket)} for {age(age_s)} and not one SYN was answered{why}",
        tuple(lines),
    )


def _dead(snapshot: Snapshot, wait: Wait, socket: SocketFact, budgets: Budgets, limit_s: float) -> Iterator[Finding]:
    outage = network_outage.find_outage(snapshot, socket, budgets)
    # Where the answer of the peer tells it, the outage need not be long.
    told = outage is not None and (outage.ended or bool(network_probe.unreceived(socket.probe)))
    if outage is None or (outage.since_s < limit_s and not told and not network_outage.shows_early(socket)):
        return
    left_s = tcp_timers.gives_up_s(socket)
    ends = f"; the kernel gives up in about {age(left_s)}" if left_s is not None else ""
    text = f"holds a connection to {network.peer_name(socket)} on which {outage.what}: it is half-open{ends}"
    finding = _finding(snapshot, (wait, socket), ("half-open", outage.what), text, outage.evidence)
    # Whoever waits for it, what its packets need is gone.
    evicted = socket.conntrack == "absent" and outage.confidence == PROVEN
    yield replace(finding, confidence=PROVEN) if evicted or outage.ended else finding


def _full(snapshot: Snapshot, wait: Wait, socket: SocketFact, events: int, limit_s: float) -> Iterator[Finding]:
    closed_s = network_inbound.closed_s(socket)
    if not events & _EPOLLOUT or closed_s is None or closed_s < limit_s or not socket.send_bytes:
        return
    source = network.socket_source(snapshot)
    lines = (
        Evidence(source, "send_bytes", socket.send_bytes, f"{size(socket.send_bytes)} in the send queue", "bytes"),
        Evidence(source, "timer", socket.timer, f"the persist timer has probed a closed window for {age(closed_s)}"),
        *network.peer_lines(snapshot, socket),
    )
    text = f"cannot send to {network.peer_name(socket)}, whose receive window has been closed for {age(closed_s)}"
    yield _finding(snapshot, (wait, socket), ("peer-not-reading", "the peer reads nothing"), text, lines)


def _unread(snapshot: Snapshot, wait: Wait, socket: SocketFact, limit_s: float) -> Iterator[Finding]:
    """What was sent last lies unread with the peer on this node, or nobody there has accepted the connection."""
    peer, quiet_s = socket.peer, quiet(socket)
    if peer is None or quiet_s is None or quiet_s < limit_s or not peer.unread_bytes or socket.timer:
        return
    if socket.bytes_received and (socket.last_receive_s or 0.0) < (socket.last_send_s or 0.0):
        return
    why = f"the other end has left {size(peer.unread_bytes)} of it unread"
    if peer.holder_state in ("T", "t"):
        why = "the process at the other end is stopped (state T)"
    elif peer.in_accept_queue:
        why = "nobody has accepted the connection at the other end"
    text = f"sent to {network.peer_name(socket)} {age(quiet_s)} ago and has no answer: {why}"
    lines = (*network.queue_lines(snapshot, socket), *network.peer_lines(snapshot, socket))
    yield _finding(snapshot, (wait, socket), ("peer-silent", why), text, lines)


def _finding(
    snapshot: Snapshot, watching: tuple[Wait, SocketFact], says: tuple[str, str], text: str, lines: tuple[Evidence, ...]
) -> Finding:
    """What `says` has: the code, and the end of the chain."""
    wait, socket = watching
    code, end = says
    name = network.thread_name(snapshot, wait.tid)
    fd = socket.fds[0] if socket.fds else None
    about = f"the event loop of {name} waits for fd {fd} among others; which task does is not in any stack"
    return Finding(
        code,
        LIKELY,
        f"the event loop of {name} {text}; the loop itself turns, and the task that waits for this connection hangs",
        evidence=(
            network.call_line(snapshot, wait),
            Evidence("/proc/PID/fdinfo", "watched", fd, about),
            *lines,
        ),
        now=network_remedies.now(snapshot, wait, socket),
        later=(
            Later(
                "a timeout around every await on the network (asyncio.timeout, wait_for, the client's own timeout)",
                "the loop goes on and nothing ends the one task that waits for ever",
            ),
        ),
        tid=wait.tid,
        fd=fd,
        chain=(
            f"a task of {name} (tid {wait.tid})",
            f"{wait.call} (the loop's)",
            f"tcp {socket.local or '?'} -> {network.peer_name(socket)}",
            end,
        ),
        frame=wait.reading.frame,
    )
