"""What all network rules share: which waits hang on which socket, and how both are named in summaries and evidence."""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import tcp_timers
from stucktrace.diagnosis.model import Evidence, Finding
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait, waits
from stucktrace.diagnosis.words import age, count, listing, process, size
from stucktrace.facts import Frame, Snapshot, SocketFact

CONNECTED = frozenset({"ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT1", "FIN_WAIT2", "CLOSING", "LAST_ACK", "CONNECTED"})


def socket_waits(snapshot: Snapshot) -> Iterator[tuple[Wait, SocketFact]]:
    """The threads that hang on one socket, each with it. An event loop at rest hangs on none: it has others."""
    for wait in waits(snapshot):
        if wait.socket is not None and wait.purpose is not Purpose.WORK:
            yield wait, wait.socket


def connected_waits(snapshot: Snapshot) -> Iterator[tuple[Wait, SocketFact]]:
    """As `socket_waits`, on connections only."""
    for wait, socket in socket_waits(snapshot):
        if is_connection(socket):
            yield wait, socket


def is_connection(socket: SocketFact) -> bool:
    if socket.protocol == "tcp":
        return socket.state in CONNECTED
    return socket.protocol.startswith("unix") and socket.state in (*CONNECTED, "")


def same_socket(snapshot: Snapshot, wait: Wait) -> tuple[int, ...]:
    """The other threads that hang on the same socket."""
    inode = wait.socket.inode if wait.socket else None
    return tuple(other.tid for other, socket in socket_waits(snapshot) if socket.inode == inode and other is not wait)


def own_family(snapshot: Snapshot) -> frozenset[int]:
    """The process, its siblings, children, and the parent where it is the master of the same pool."""
    pids = {relative.pid for relative in snapshot.relatives if relative.relation in ("sibling", "child")}
    parent = snapshot.parent
    if parent is not None and (pids or parent.kind.endswith(("-master", "-main"))):
        pids.add(parent.pid)
    return frozenset({snapshot.process.pid, *pids})


def thread_name(snapshot: Snapshot, tid: int) -> str:
    python, thread = snapshot.python_thread(tid), snapshot.thread(tid)
    if python is not None and python.name:
        return python.name
    if tid == snapshot.process.pid:
        return "the main thread"
    return (thread.name if thread else "") or f"thread {tid}"


def where(frame: Frame) -> str:
    """A frame in short: "Channel.wait (amqp/channel.py:97)"."""
    file = "/".join(frame.file.split("/")[-2:]) if "-packages/" in frame.file or "/lib/python" in frame.file else None
    place = file or frame.file.rsplit("/", 1)[-1]
    name = frame.function.rpartition("<locals>.")[2]
    return f"{name} ({place}:{frame.line})" if frame.line else f"{name} ({place})"


def peer_name(socket: SocketFact) -> str:
    """ "10.0.0.5:5672", with the process at the other end where it lives on this node."""
    name = socket.remote or ("a UNIX socket" if socket.protocol.startswith("unix") else "an unknown peer")
    if socket.peer is not None and socket.peer.pids:
        return f"{name} ({process(socket.peer.pids[0], socket.peer.command).replace(' (', ', ').rstrip(')')})"
    return name


def waiting(wait: Wait, age_s: float | None, peer: str) -> str:
    """ "waits 35 s for an AMQP confirm (basic_publish_confirm) from 10.0.0.5:5672"."""
    since = age(age_s)
    reason = wait.reading.reason
    if reason.startswith("waits for "):
        joint = "of" if reason.endswith("handshake") else "from"
        what = reason.removeprefix("waits for ")
        if what.startswith("the ") and what.endswith(("server", "host", "broker")):
            return f"has waited {since} for {what} {peer}"
        return f"has waited {since} for {what} {joint} {peer}"
    if reason.startswith("connects to "):
        return f"has been connecting to {peer} for {since} ({reason})"
    if reason:
        return f"{reason}, for {since} now, with {peer}"
    frame = wait.frame
    place = f" in {where(frame)}" if frame else ""
    verb = "to send to" if wait.sends else "for"
    return f"has waited {since} {verb} {peer}{place}"


def call_line(snapshot: Snapshot, wait: Wait, age_s: float | None = None) -> Evidence:
    """The call that the thread is in, with its age."""
    call = wait.thread.syscall
    name = f"{call.name}(fd {wait.fd})" if call and wait.fd is not None else call.name if call else "a call"
    limit = ""
    if call and call.endless:
        limit = ", without a timeout"
    elif call and call.timeout_s is not None:
        limit = f", with a timeout of {age(call.timeout_s)}"
    known_s = wait.age_s if age_s is None else age_s
    polled = ", again and again" if wait.polls else ""
    return Evidence(
        wait.age_source or snapshot.seen.hooks.get("threads", "threads"),
        "blocked_s",
        _round(known_s),
        f"{thread_name(snapshot, wait.tid)} (tid {wait.tid}) is in {name}{limit}{polled} for {age(known_s)}",
        "s",
    )


def frame_lines(wait: Wait) -> Iterator[Evidence]:
    frame = wait.frame
    if frame is not None:
        reason = f": it {wait.reading.reason}" if wait.reading.reason else ""
        yield Evidence("py-spy", "frame", frame.text, f"its code is in {where(frame)}{reason}")


def socket_source(snapshot: Snapshot) -> str:
    return snapshot.seen.hooks.get("sockets", "tcp_info")


def queue_lines(snapshot: Snapshot, socket: SocketFact) -> Iterator[Evidence]:
    """What is on its way, and when each side was last heard."""
    source = socket_source(snapshot)
    if socket.unacked is not None:
        queued = f", {size(socket.send_bytes)} in the send queue" if socket.send_bytes else ""
        text = f"{count(socket.unacked, 'segment')} sent and not acknowledged{queued}"
        yield Evidence(source, "unacked", socket.unacked, text, "segments")
    if socket.last_receive_s is not None:
        text = f"data last came in {age(socket.last_receive_s)} ago"
        yield Evidence(source, "last_receive_s", _round(socket.last_receive_s), text, "s")


def retransmit_lines(snapshot: Snapshot, socket: SocketFact) -> Iterator[Evidence]:
    """The evidence of an outage: unacked data, growing backoff, an old ACK."""
    source = socket_source(snapshot)
    yield from (line for line in queue_lines(snapshot, socket) if line.what == "unacked")
    if socket.retransmits is not None:
        text = f"sent again {count(socket.retransmits, 'time')} without an answer"
        yield Evidence(source, "retransmits", socket.retransmits, text)
    if socket.backoff is not None:
        text = f"the kernel has doubled its timeout {count(socket.backoff, 'time')}, to {age(socket.rto_s)}"
        yield Evidence(source, "backoff", socket.backoff, text)
    if socket.last_ack_s is not None:
        text = f"the last ACK came {age(socket.last_ack_s)} ago"
        yield Evidence(source, "last_ack_s", _round(socket.last_ack_s), text, "s")
    yield from option_lines(snapshot, socket)


def option_lines(snapshot: Snapshot, socket: SocketFact) -> Iterator[Evidence]:
    """What guards the connection, as the live socket has it."""
    source = socket_source(snapshot)
    if socket.user_timeout_s is not None:
        value = age(socket.user_timeout_s) if socket.user_timeout_s else "0 (not set)"
        yield Evidence(source, "user_timeout_s", socket.user_timeout_s, f"TCP_USER_TIMEOUT is {value}", "s")
    keepalive = socket.keepalive
    if keepalive is not None:
        window_s = tcp_timers.detection_window_s(socket)
        text = "SO_KEEPALIVE is 0 (off)"
        if keepalive.on:
            text = f"SO_KEEPALIVE is on: a dead peer is noticed after {age(window_s)} without data"
        yield Evidence(source, "keepalive", keepalive.on, text)


def peer_lines(snapshot: Snapshot, socket: SocketFact) -> Iterator[Evidence]:
    """The other end where it lives on this node."""
    peer = socket.peer
    if peer is None:
        return
    source = socket_source(snapshot)
    if peer.in_accept_queue:
        holders = f" of {listing(f'pid {pid}' for pid in peer.listener_pids)}" if peer.listener_pids else ""
        yield Evidence(source, "peer", "in accept queue", f"the other end waits in the accept queue{holders}")
    elif peer.pids:
        yield Evidence(source, "peer", peer.pids[0], f"the other end is held by {process(peer.pids[0], peer.command)}")
    if peer.unread_bytes is not None:
        text = f"the other end has {size(peer.unread_bytes)} that nobody has read"
        if not peer.unread_bytes:
            text = "the other end has read all that was sent"
        yield Evidence(source, "peer.unread_bytes", peer.unread_bytes, text, "bytes")
    if peer.holder_state in ("T", "t"):
        yield Evidence(
            "/proc/PID/stat", "state", peer.holder_state, f"{process(*_holder(socket))} is stopped (state T)"
        )


def _holder(socket: SocketFact) -> tuple[int, str]:
    assert socket.peer is not None
    return (socket.peer.pids[0] if socket.peer.pids else 0), socket.peer.command


def chain(snapshot: Snapshot, wait: Wait, *ends: str) -> tuple[str, ...]:
    """Thread -> call -> connection -> `ends`."""
    call = wait.call or "a call"
    steps = [
        f"{thread_name(snapshot, wait.tid)} (tid {wait.tid})",
        call if wait.fd is None else f"{call}(fd {wait.fd})",
    ]
    socket = wait.socket
    if socket is not None:
        steps.append(f"{socket.protocol} {socket.local or '?'} -> {peer_name(socket)}")
    return (*steps, *ends)


def about(snapshot: Snapshot, wait: Wait, finding: Finding) -> Finding:
    """The finding with what every one about a waiting thread says: tid, fd, frame, and who waits likewise."""
    from dataclasses import replace

    return replace(
        finding,
        tid=wait.tid,
        fd=wait.fd,
        frame=wait.reading.frame,
        explains=same_socket(snapshot, wait),
    )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
