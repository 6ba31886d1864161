"""--probe: asks the peers' TCP whether the connections that a diagnosis is about live, and has it diagnosed again.

Off by default: it sends segments in the name of the process, and where the peer answers with a reset the connection
ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from stucktrace.diagnosis import diagnose, network, network_loops
from stucktrace.diagnosis.model import Diagnosis
from stucktrace.facts import Missing, ProbeFact, Snapshot, SocketFact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stucktrace.collectors.kernel import Kernel
    from stucktrace.run import Run

MOST_CONNECTIONS = 16


def ask(pid: int, inodes: Iterable[int], kernel: Kernel | None) -> Mapping[int, ProbeFact]:
    """Inode -> the answer, for those that are established TCP connections. CollectorError where it cannot be done."""
    from stucktrace.collectors import tcp_probe

    return tcp_probe.probe(pid, tuple(inodes)[:MOST_CONNECTIONS], kernel)


def possible(kernel: Kernel | None) -> bool:
    """Whether this process may ask at all: the sequence numbers, and a raw socket."""
    import socket

    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP).close()
    except OSError:
        return False
    return kernel is not None and kernel.iterates


def ask_alone(pid: int, inodes: Iterable[int]) -> Mapping[int, ProbeFact]:
    """The same for a command that looks at nothing else through BPF."""
    from stucktrace.collectors.kernel import open_kernel

    opened = open_kernel("auto")
    try:
        return ask(pid, inodes, opened.kernel)
    finally:
        if opened.kernel is not None:
            opened.kernel.close()


def probed(run: Run, snapshot: Snapshot, diagnosis: Diagnosis) -> tuple[Snapshot, Diagnosis]:
    """With the answers of the peers, where it was asked for, and what they say."""
    if not run.options.probe:
        return snapshot, diagnosis
    pid = snapshot.process.pid
    sockets = _in_question(snapshot, diagnosis)
    if len(sockets) > MOST_CONNECTIONS:
        rest = f"{len(sockets) - MOST_CONNECTIONS} more connections"
        run.miss(Missing(f"probe of {rest}", f"{MOST_CONNECTIONS} are asked at a time", "look again later"), pid)
    answers = (
        run.collect("probe", {}, partial(ask, pid, [socket.inode for socket in sockets], run.kernel), pid)
        if sockets
        else {}
    )
    if not sockets:
        because = "nothing waits for an established TCP connection"
        run.miss(Missing("probe of the connection", because, "stucktrace amqp PID --probe asks all of AMQP"), pid)
    elif not answers and not any(each.what.startswith("probe of") for each in run.missing.get(pid, ())):
        run.miss(Missing("probe of the connection", "it ended by itself meanwhile", "look again"), pid)
    asked = tuple(
        replace(socket, probe=answers[socket.inode]) if socket.inode in answers else socket
        for socket in snapshot.sockets
    )
    missing = tuple(dict.fromkeys((*snapshot.seen.missing, *run.missing.get(pid, ()))))
    snapshot = replace(snapshot, sockets=asked, seen=replace(snapshot.seen, missing=missing))
    return snapshot, diagnose(snapshot, run.options.budgets)


def _in_question(snapshot: Snapshot, diagnosis: Diagnosis) -> tuple[SocketFact, ...]:
    """The connections that findings are about, those that a thread waits for, and those that an event loop watches and
    that were made from here; the verdict's first."""
    about = (snapshot.socket(finding.fd) for finding in diagnosis.findings)
    waited = (socket for _, socket in network.connected_waits(snapshot))
    watched = (socket for _, socket, _ in network_loops.watched(snapshot))
    found = {socket.inode: socket for socket in (*about, *waited, *watched) if socket is not None and _is_open(socket)}
    return tuple(found.values())


def _is_open(socket: SocketFact) -> bool:
    return socket.protocol == "tcp" and socket.state == "ESTABLISHED"
