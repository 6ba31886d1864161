"""`slow-client` and `peer-not-reading`: the other side sends too little, or reads too little.

From the bytes that came in, the persist timer of a closed window, and the queue of a peer on this node.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import network, network_remedies
from stucktrace.diagnosis.model import LIKELY, POSSIBLE, PROVEN, WARNING, Budgets, Evidence, Finding
from stucktrace.diagnosis.network_outage import PROVEN_S
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait, quiet
from stucktrace.diagnosis.words import age, process, size
from stucktrace.facts import Snapshot, SocketFact

_ONE_AT_A_TIME = ("gunicorn/workers/sync.py", "wsgiref/simple_server.py")
_OWN_THREAD = ("process_request_thread", "_worker", "run_forever", "handler_thread")


def slow_client(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`slow-client`: a client that sends nothing holds a worker.

    A worker that serves one client at a time reads a request that does not come, or not on. Nobody else is served
    meanwhile; gunicorn ends such a worker at its timeout.

    Proven: the client connected to this process's own listen port, not one byte came in for 5 s, and the thread
    that reads is the one that accepts.

    Likely: something came in, and nothing more for 5 s.

    Possible: the connection holds only the thread that serves it, and others go on.

    Now: the report has the `ss -K` line that ends this client's connection (it loses its request), and the command
    that restarts the worker.

    Later: a buffering proxy in front of the workers; for gunicorn a worker class with threads, so that a silent
    client holds no worker; for other servers a timeout on accepted connections.

    Not: a connection that is kept alive under gthread or an event loop; a server with a thread or a child for each
    client; a client that is still sending.

    Wrong: none is known where it is proven; a client on a very slow line may send on (`likely`).

    Try: a server of one thread, and a client that says nothing:

        python3 -c "from wsgiref.simple_server import *
        make_server('127.0.0.1', 8095, demo_app).serve_forever()" & sleep 1
        exec 9<>/dev/tcp/127.0.0.1/8095; sleep 6; stucktrace pid $!; exec 9>&-
    """
    for wait, socket in network.connected_waits(snapshot):
        if wait.purpose not in (Purpose.INBOUND, Purpose.OWED) or socket.direction != "in" or wait.sends:
            continue
        if wait.purpose is Purpose.OWED and "TLS" not in wait.reading.reason:
            continue
        silent_s = _silent_s(wait, socket)
        if silent_s is None or silent_s < budgets.owed_s:
            continue
        yield _slow(snapshot, wait, socket, silent_s)


def _silent_s(wait: Wait, socket: SocketFact) -> float | None:
    """For how long the client has sent nothing while its request is being read."""
    if socket.bytes_received and socket.last_receive_s is not None:
        return socket.last_receive_s
    return wait.age_s


def _slow(snapshot: Snapshot, wait: Wait, socket: SocketFact, silent_s: float) -> Finding:
    name, alone = network.thread_name(snapshot, wait.tid), one_at_a_time(snapshot, wait)
    nothing = socket.bytes_received == 0
    sent = "has sent nothing at all" if nothing else f"has sent nothing more for {age(silent_s)}"
    confidence = POSSIBLE
    if alone:
        confidence = PROVEN if nothing else LIKELY
    holds = "it holds this worker, which serves one client at a time" if alone else "it holds the thread that serves it"
    lines = [network.call_line(snapshot, wait, silent_s), *network.frame_lines(wait)]
    source = network.socket_source(snapshot)
    text = f"{size(socket.bytes_received)} came in over this connection"
    lines.append(Evidence(source, "bytes_received", socket.bytes_received, text, "bytes"))
    lines.append(
        Evidence(source, "direction", "in", f"the client connected to this process's own listen port {socket.local}")
    )
    lines.extend(
        line for line in network.queue_lines(snapshot, socket) if line.what == "last_receive_s" and not nothing
    )
    finding = Finding(
        "slow-client",
        confidence,
        f"{name} has been reading a request from the client {network.peer_name(socket)} for {age(silent_s)}; the "
        f"client {sent}, and {holds}",
        evidence=tuple(lines),
        severity=WARNING if confidence == POSSIBLE else "critical",
        now=network_remedies.drop_client(snapshot, wait, socket),
        later=network_remedies.shield_from_clients(snapshot),
        chain=network.chain(snapshot, wait, f"the client {sent}"),
    )
    return network.about(snapshot, wait, finding)


def one_at_a_time(snapshot: Snapshot, wait: Wait) -> bool:
    """The waiting thread is the one that accepts: while it reads this request, it takes no other."""
    if snapshot.process.worker.kind == "gunicorn-worker" and snapshot.process.worker.worker_class not in ("", "sync"):
        return False
    if any(frame.function.rpartition(".")[2] in _OWN_THREAD for frame in wait.frames):
        return False
    if _forked_for_it(snapshot, wait):
        return False
    if any(f"/{frame.file}".endswith(f"/{tail}") for frame in wait.frames for tail in _ONE_AT_A_TIME):
        return True
    return any(
        f"/{frame.file}".endswith("/socketserver.py") and "serve_forever" in frame.function for frame in wait.frames
    )


def _forked_for_it(snapshot: Snapshot, wait: Wait) -> bool:
    """A child of a server that forks one for each client (ForkingMixIn): its parent goes on accepting.

    Before CPython 3.11 py-spy does not name the class, so there any child of the same program may be one.
    """
    handing = [
        frame.function
        for frame in wait.frames
        if f"/{frame.file}".endswith("/socketserver.py") and frame.function.endswith("process_request")
    ]
    if any(function.startswith("ForkingMixIn.") for function in handing):
        return True
    parent = snapshot.parent
    return "process_request" in handing and parent is not None and parent.alive and parent.same_program


def peer_not_reading(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`peer-not-reading`: a send is blocked, for the peer does not read.

    The peer's receive buffer is full and its window closed: a thread can send no more until the application there
    reads.

    Proven: the window has been closed for 30 s, as the persist timer's probes show, or the peer on this node is
    stopped.

    Likely: it has been closed, or the queue of a peer on this node has been full, for 5 s; of a client's connection
    for as long as `--stuck-after` says, where that is given. An event loop's connection that waits to send for
    longer than a request may take.

    Now: a peer that is stopped is continued. Else the report has the `ss -K` line for the connection, and the
    command that restarts the process.

    Later: for clients a buffering proxy; for a peer that was asked for something a timeout of the client.

    Not: a slow reader, whose window opens now and then. A closed window with nothing to send. Data that is not
    acknowledged (`half-open`).

    Wrong: a peer that reads nothing for longer than 5 s on purpose (it works through what it has) is `likely` until
    it reads on.

    Try: a server that accepts and never reads:

        python3 -c "import socket, time
        s = socket.create_server(('127.0.0.1', 8094)); c = s.accept(); time.sleep(60)" & sleep 1
        python3 -c "import socket
        socket.create_connection(('127.0.0.1', 8094)).sendall(bytes(10**8))" &
        sleep 10; stucktrace pid $!
    """
    for wait, socket in network.connected_waits(snapshot):
        if not (wait.sends or wait.purpose is Purpose.SEND):
            continue
        blocked = _blocked(socket)
        age_s = _stalled_s(wait, socket)
        limit_s = budgets.owed_s
        if budgets.stuck_after_given and socket.direction == "in":
            # A client that takes 500 kB/s keeps its window closed for eight seconds at a time (measured).
            limit_s = budgets.patience_s(main=wait.tid == snapshot.process.pid)
        if not blocked or age_s is None or age_s < limit_s:
            continue
        if socket.window_acked_bytes:
            continue
        yield _not_reading(snapshot, wait, socket, blocked, age_s)


def _blocked(socket: SocketFact) -> str:
    """Why the send cannot go on, or ""."""
    if socket.protocol == "tcp" and socket.timer == "persist" and socket.send_bytes != 0:
        return "the peer's receive window is closed (the persist timer probes it)"
    peer = socket.peer
    if peer is not None and peer.unread_bytes and (socket.send_bytes or socket.protocol.startswith("unix")):
        return f"the peer has left {size(peer.unread_bytes)} unread"
    return ""


def _stalled_s(wait: Wait, socket: SocketFact) -> float | None:
    """For how long nothing was taken. A window probe is a send for the kernel, so only the wait's age is sure."""
    shut_s = closed_s(socket)
    if shut_s is not None:
        # A window that opens now and then is a slow reader's, however long the send of all of it takes.
        return shut_s if wait.polls or wait.age_s is None else min(wait.age_s, shut_s)
    if wait.polls:
        return max((value for value in (wait.age_s, quiet(socket)) if value is not None), default=None)
    if socket.protocol == "tcp" and socket.last_send_s is not None and wait.age_s is not None:
        return min(wait.age_s, socket.last_send_s)
    return wait.age_s


def closed_s(socket: SocketFact) -> float | None:
    """For how long the peer's window has been closed, from its probes: they begin anew whenever it opens.

    After b probes the next one comes 2^b timeouts later. None where it is not probed.
    """
    if socket.timer != "persist" or socket.rto_s is None or socket.backoff is None:
        return None
    factor: int = 1 << min(socket.backoff, 9)
    since_s = 0.0
    if socket.timer_expires_s is not None:
        since_s = max(0.0, socket.rto_s * factor - socket.timer_expires_s)
    return socket.rto_s * (factor - 1) + since_s


def _not_reading(snapshot: Snapshot, wait: Wait, socket: SocketFact, blocked: str, age_s: float) -> Finding:
    name, source = network.thread_name(snapshot, wait.tid), network.socket_source(snapshot)
    lines = [network.call_line(snapshot, wait, age_s), *network.frame_lines(wait)]
    if socket.send_bytes is not None:
        text = f"{size(socket.send_bytes)} wait in the send queue"
        lines.append(Evidence(source, "send_bytes", socket.send_bytes, text, "bytes"))
    if socket.timer:
        text = f"the armed timer is {socket.timer}, its backoff {socket.backoff}"
        lines.append(Evidence(source, "timer", socket.timer, text))
    if socket.send_window_bytes is not None:
        text = f"the peer's window is {size(socket.send_window_bytes)}"
        lines.append(Evidence(source, "send_window_bytes", socket.send_window_bytes, text, "bytes"))
    lines.extend(network.peer_lines(snapshot, socket))
    peer = socket.peer
    stopped = (
        f"; {process(peer.pids[0], peer.command)} is stopped" if peer and peer.pids and peer.holder_state == "T" else ""
    )
    role = "the client" if socket.direction == "in" else "the peer"
    finding = Finding(
        "peer-not-reading",
        PROVEN if age_s >= PROVEN_S or stopped else LIKELY,
        f"{name} has been trying to send to {role} {network.peer_name(socket)} for {age(age_s)}, which reads nothing: "
        f"{blocked}, {size(socket.send_bytes)} wait{stopped}",
        evidence=tuple(lines),
        now=network_remedies.drop_client(snapshot, wait, socket)
        if socket.direction == "in"
        else network_remedies.now(snapshot, wait, socket),
        later=network_remedies.shield_from_clients(snapshot)
        if socket.direction == "in"
        else network_remedies.bound_the_wait(snapshot, wait, socket),
        chain=network.chain(snapshot, wait, blocked),
    )
    return network.about(snapshot, wait, finding)
