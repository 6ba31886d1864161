"""`self-call` and `shared-connection`: the peer is the own pool, or the own pool is on the connection too.

From the reverse socket on this node, who else has the socket's inode and is inside a call on it, and the length of the
receive.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import behind, evidence, network, network_remedies
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Evidence, Finding, Later
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.remedies import restart
from stucktrace.diagnosis.waits import RECEIVE_CALLS, Wait
from stucktrace.diagnosis.words import listing, size
from stucktrace.facts import Frame, Snapshot, SocketFact

SURE_S = 1.0
"""Where nobody else could accept, a second is enough to tell it from a connection about to be accepted."""
ABSURD_BYTES = 16 * 1024 * 1024
"""No frame of these protocols is larger; a length beyond it was read from the middle of somebody else's frame."""
SERVERS = (
    "gunicorn/",
    "cheroot/",
    "waitress/",
    "werkzeug/",
    "wsgiref/",
    "uvicorn/",
    "socketserver.py",
    "http/server.py",
)
FRAMED = ("amqp", "sql", "redis", "mongo", "kafka")
PARSERS = ("read", "_read", "read_frame", "_read_bytes", "_read_packet", "recv", "_recv", "read_response", "recv_exact")


def self_call(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`self-call`: it waits for a reply from its own full pool.

    A worker asks its own application for something over the network, and every process that could answer waits
    likewise. Nobody is left to answer.

    Proven: the request lies in the accept queue of a port that this process alone serves, with one thread, and that
    one waits for it (1 s).

    Likely: the request lies unaccepted or unread with its own pool for 5 s; or the threads that answer requests
    wait for a lock that the caller holds, both for longer than a request may take.

    Now: restart the worker; the report has the command.

    Later: call the function directly instead of over HTTP, or serve that URL from another pool; a timeout on the
    inner call, and more workers than nested calls.

    Not: a call to a sibling that has accepted and read it: that one works on it. A pool that is stopped
    (`peer-silent`).

    Wrong: a pool that is busy for more than 5 s with other requests and then takes this one is `likely` meanwhile.

    Try: a process that asks itself:

        python3 -c "import socket, urllib.request
        s = socket.create_server(('127.0.0.1', 8093)); urllib.request.urlopen('http://127.0.0.1:8093')" &
        sleep 3; stucktrace pid $!
    """
    for wait, socket in network.connected_waits(snapshot):
        if not is_self_call(snapshot, wait, socket, budgets):
            continue
        age_s = wait.age_s or 0.0
        only_self = _only_self(snapshot, socket)
        if age_s < (SURE_S if only_self else budgets.owed_s):
            continue
        yield _self(snapshot, wait, socket, only_self, _held_up(snapshot, wait, socket, budgets))


def is_self_call(snapshot: Snapshot, wait: Wait, socket: SocketFact, budgets: Budgets) -> bool:
    """The other end belongs to the own pool, and nobody there has taken the request, or who did waits for the caller's
    lock."""
    peer = socket.peer
    if peer is None or socket.direction == "in" or wait.purpose is Purpose.SUBSCRIPTION:
        return False
    family = network.own_family(snapshot)
    if peer.holder_state in ("T", "t"):
        # Not a full pool: who should take it does not run at all.
        return False
    if peer.in_accept_queue:
        return bool(family.intersection(peer.listener_pids))
    if snapshot.process.pid not in peer.pids:
        return False
    return (bool(peer.unread_bytes) and _serves(snapshot, wait)) or bool(_held_up(snapshot, wait, socket, budgets))


def _held_up(snapshot: Snapshot, wait: Wait, socket: SocketFact, budgets: Budgets) -> tuple[int, ...]:
    """The threads of this process that answer requests, and wait for a lock that the caller itself holds meanwhile.

    Which of them has the caller's request is not known, so it takes the budget of a request, for both.
    """
    limit_s = budgets.request_s(snapshot.process.worker.timeout_s)
    peer, crowd = socket.peer, behind.crowd(snapshot, wait.tid)
    if peer is None or set(peer.pids) != {snapshot.process.pid} or crowd is None or (wait.age_s or 0.0) < limit_s:
        return ()
    if wait.purpose is not Purpose.REQUEST or (crowd.longest_s or 0.0) < limit_s:
        return ()
    return tuple(tid for tid in crowd.tids if _in_server(snapshot.frames(tid)))


def _in_server(frames: tuple[Frame, ...]) -> bool:
    return any(f"/{tail}" in f"/{frame.file}" for frame in frames for tail in SERVERS)


def _serves(snapshot: Snapshot, wait: Wait) -> bool:
    """The waiting thread is inside a request itself: with a server of threads that has accepted more than it can do."""
    return snapshot.process.worker.kind == "gunicorn-worker" or _in_server(wait.frames)


def _only_self(snapshot: Snapshot, socket: SocketFact) -> bool:
    """No process but this one (and a master, which never accepts) listens there."""
    peer, parent = socket.peer, snapshot.parent
    if peer is None or not peer.in_accept_queue:
        return False
    masters = {parent.pid} if parent is not None and parent.kind.endswith("-master") else set()
    single = snapshot.process.worker.worker_class in ("", "sync") and len(snapshot.threads) == 1
    return set(peer.listener_pids) - masters == {snapshot.process.pid} and single


def _self(snapshot: Snapshot, wait: Wait, socket: SocketFact, only_self: bool, held_up: tuple[int, ...]) -> Finding:
    peer, age_s = socket.peer, wait.age_s or 0.0
    assert peer is not None
    name = network.thread_name(snapshot, wait.tid)
    others = sorted(network.own_family(snapshot).intersection(peer.listener_pids) - {snapshot.process.pid})
    if peer.in_accept_queue:
        place = f"its request waits in the accept queue of its own listen port {socket.remote}"
    elif not peer.unread_bytes:
        place = "it has taken the request"
    else:
        place = "its request is held by this very process, and no thread of it has read it"
    free = "it is the only worker there" if only_self else "no worker of the pool has taken it"
    if not peer.in_accept_queue and not peer.unread_bytes:
        names = listing([evidence.who(snapshot, tid) for tid in held_up])
        waits, serves = (
            ("wait for a lock", "serve requests") if len(held_up) > 1 else ("waits for a lock", "serves one")
        )
        free = f"{names}, which {serves} here, {waits} that the caller holds"
    pooled = len(network.own_family(snapshot)) > 1 and (peer.in_accept_queue or bool(peer.unread_bytes))
    whose = "its own pool" if pooled else "this very process"
    pool = (f"a worker of its own pool: {listing(f'pid {pid}' for pid in others)}",) if others else ()
    finding = Finding(
        "self-call",
        PROVEN if only_self else LIKELY,
        f"{name} {network.waiting(wait, age_s, network.peer_name(socket))}, which is {whose}: {place}, and {free}",
        evidence=(
            network.call_line(snapshot, wait, age_s),
            *network.frame_lines(wait),
            *network.peer_lines(snapshot, socket),
            Evidence(
                network.socket_source(snapshot),
                "listener_pids",
                ", ".join(map(str, peer.listener_pids)) or None,
                f"the port is served by {listing(f'pid {pid}' for pid in peer.listener_pids) or 'this process'}",
            ),
        ),
        now=restart(snapshot),
        later=(
            Later(
                "call the function directly instead of over HTTP, or serve that URL from another pool",
                "a process that waits for itself while it holds a lock gives itself no answer"
                if held_up
                else "a pool that calls itself hangs as soon as all its workers do so at once",
            ),
            Later(
                "a timeout on the inner call (requests: timeout=(3.05, 10)), and more workers than nested calls",
                "a bounded call fails instead of holding its worker",
            ),
        ),
        chain=network.chain(
            snapshot, wait, "its own accept queue" if peer.in_accept_queue else "its own process", *pool
        ),
    )
    return network.about(snapshot, wait, finding)


def shared_connection(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`shared-connection`: two processes use one connection since a fork.

    A connection was opened before a fork and is one byte stream for both processes: each takes bytes that were
    meant for the other, and then waits for what never comes.

    Proven: another process is inside a call on the very same socket now, and this one asks for more than 16 MiB in
    one receive: a length that was read from the middle of somebody else's frame.

    Likely: one of the two.

    Now: restart the process; the report has the command.

    Later: open the connection in each process after the fork (gunicorn: `post_fork`; Celery:
    `worker_process_init`), or dispose of the inherited one there; the report names the call for the library.

    Not: a connection that was merely inherited, by a parent that does nothing with it; a listening socket in many
    workers; a socket pair within one program; a UNIX connection whose protocol is not known.

    Wrong: processes that take turns on one connection on purpose, with a lock of their own.

    Try: a connection over a fork:

        python3 -m http.server 8092 & sleep 1
        python3 -c "import os, socket
        c = socket.create_connection(('127.0.0.1', 8092)); os.fork(); c.recv(1)" &
        sleep 3; stucktrace pid $!
    """
    for wait, socket in network.connected_waits(snapshot):
        if not is_shared(snapshot, wait, socket):
            continue
        if (wait.age_s or 0.0) < SURE_S and _absurd(wait) is None:
            continue
        yield _shared(snapshot, wait, socket)


def is_shared(snapshot: Snapshot, wait: Wait, socket: SocketFact) -> bool:
    if not socket.shared_with or socket.protocol not in ("tcp", "unix-stream") or socket.direction == "in":
        return False
    if socket.protocol == "unix-stream" and not wait.reading.family:
        return False
    if socket.peer is not None and snapshot.process.pid in socket.peer.pids:
        return False
    return bool(socket.used_by) or _absurd(wait) is not None


def _absurd(wait: Wait) -> int | None:
    """The length of a receive that no frame of the protocol can have."""
    call = wait.thread.syscall
    if call is None or call.name not in RECEIVE_CALLS or len(call.args) < 3 or wait.reading.family not in FRAMED:
        return None
    if not any(frame.function.rpartition(".")[2] in PARSERS for frame in wait.frames):
        return None
    length = call.args[2]
    return length if ABSURD_BYTES < length < 1 << 40 else None


def _shared(snapshot: Snapshot, wait: Wait, socket: SocketFact) -> Finding:
    name, absurd = network.thread_name(snapshot, wait.tid), _absurd(wait)
    users = socket.used_by or socket.shared_with
    others = listing(f"pid {pid}" for pid in users)
    doing = f"{others} {'is' if len(users) == 1 else 'are'} inside a call on the same connection now"
    if not socket.used_by:
        doing = f"{others} {'holds' if len(users) == 1 else 'hold'} the same connection"
    lines = [network.call_line(snapshot, wait), *network.frame_lines(wait)]
    lines.append(
        Evidence(
            "/proc/PID/fd",
            "shared_with",
            ", ".join(map(str, socket.shared_with)),
            f"socket inode {socket.inode} is also open in {listing(f'pid {pid}' for pid in socket.shared_with)}",
        )
    )
    if socket.used_by:
        lines.append(Evidence("/proc/PID/task/TID/syscall", "used_by", ", ".join(map(str, socket.used_by)), doing))
    wrong = ""
    if absurd is not None:
        wrong = f"; it waits for {size(absurd)} of one frame, a length read from the middle of another's"
        lines.append(Evidence("iter/task", "length", absurd, f"it asks for {size(absurd)} in one receive", "bytes"))
    finding = Finding(
        "shared-connection",
        PROVEN if absurd is not None and socket.used_by else LIKELY,
        f"{name} {network.waiting(wait, wait.age_s, network.peer_name(socket))} on a connection shared since a fork: "
        f"{doing}, so each takes bytes meant for the other{wrong}",
        evidence=tuple(lines),
        now=restart(snapshot),
        later=network_remedies.own_connection(wait),
        chain=network.chain(snapshot, wait, *(f"pid {pid}" for pid in users)),
    )
    return network.about(snapshot, wait, finding)
