"""`connect-failing` and `dns-unanswered`: the connection never comes about.

From the socket in SYN_SENT, the TCP events and failed calls of the look, and the frames that sleep between attempts.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from stucktrace.diagnosis import network, network_conntrack, network_remedies, tcp_timers, vocabulary
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Evidence, Finding, Later
from stucktrace.diagnosis.network_outage import PROVEN_S
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import POLL_CALLS, SLEEP_CALLS, Wait, waits
from stucktrace.diagnosis.words import age, count
from stucktrace.facts import Snapshot, SocketFact

RESOLVER_POLL_S = 3.0
"""glibc asks anew every 5 s, so its present poll never gets older: 3 s of it, and no resolver on a network is slow."""
FAILURES = {
    errno.ECONNREFUSED: "is refused",
    errno.ETIMEDOUT: "times out",
    errno.EHOSTUNREACH: "finds no route to the host",
    errno.ENETUNREACH: "finds no route to the network",
}
_CONNECTING = frozenset(
    {
        "ensure_connection", "_ensure_connection", "ensure_connected", "connect", "_connect", "establish_connection",
        "_establish_connection", "reconnect", "_reconnect", "connection_for_read", "connection_for_write",
        "default_channel",
    }
)  # fmt: skip


def connect_failing(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`connect-failing`: connects time out or are refused again and again.

    The connection never comes about: no SYN is answered, or each attempt fails and the program tries again.

    Proven: not one SYN has been answered for 30 s, or the network says that the host cannot be reached, or the
    conntrack table on the way is full and drops first packets (and nothing has to be assumed for that). Or three
    and more attempts to one address failed during the look.

    Likely: the SYN has been sent again without an answer for 5 s; two attempts failed during the look; the thread
    sleeps in a library's code that sleeps only between two attempts to connect; an event loop's connection that has
    been connecting for longer than a request may take.

    Possible: redis-py sleeps between attempts: the number of its retries is bounded.

    Now: `nc -zvw3` from the process's own network namespace tells a dead path from a full backlog; start what
    should listen there, or look at route and firewall. For a full conntrack table, what fills it, and
    `nf_conntrack_max`. This process tries again by itself.

    Later: a timeout for the connect and a bounded number of attempts, in the client's own words;
    `net.ipv4.tcp_syn_retries = 3`, for with the default one connect takes about two minutes to fail.

    Not: a SYN that is younger than 5 s. A single refusal. A service that was reached at another of its addresses
    (`localhost` is ::1 first, then 127.0.0.1).

    Wrong: a program that polls for a service to come up on purpose looks the same.

    Try: nothing listens on this port:

        python3 -c '
        import socket, time
        while True:
            try:
                socket.create_connection(("127.0.0.1", 9))
            except OSError:
                time.sleep(0.05)' &
        sleep 1; stucktrace pid $!
    """
    unanswered = [(wait, socket) for wait, socket in network.socket_waits(snapshot) if socket.state == "SYN_SENT"]
    for wait, socket in unanswered:
        finding = _unanswered(snapshot, wait, socket, budgets)
        if finding is not None:
            yield finding
    if not unanswered:
        yield from _failing_again(snapshot)


def _unanswered(snapshot: Snapshot, wait: Wait, socket: SocketFact, budgets: Budgets) -> Finding | None:
    known = [
        value for value in (tcp_timers.connecting_s(socket), None if wait.polls else wait.age_s) if value is not None
    ]
    age_s = max(known, default=None)
    if age_s is None or age_s < budgets.owed_s or socket.retransmits == 0:
        return None
    left_s = tcp_timers.gives_up_s(socket)
    ends = f"; the kernel gives up in about {age(left_s)}" if left_s is not None else ""
    source = network.socket_source(snapshot)
    lines = [network.call_line(snapshot, wait, age_s), *network.frame_lines(wait)]
    lines.append(
        Evidence(source, "state", "SYN_SENT", "the connection is in SYN_SENT: the peer has not answered at all")
    )
    full = network_conntrack.full_table(snapshot, socket)
    if socket.retransmits is not None:
        text = f"the SYN was sent again {count(socket.retransmits, 'time')} without an answer"
        lines.append(Evidence(source, "retransmits", socket.retransmits, text))
    if socket.soft_error:
        text = f"the network answers with errno {socket.soft_error} ({_error_name(socket.soft_error)})"
        lines.append(Evidence(source, "soft_error", socket.soft_error, text))
    if full is not None:
        lines += network_conntrack.full_lines(full, socket)
    if left_s is not None:
        lines.append(
            Evidence("tcp timers", "gives_up_s", round(left_s, 1), f"the kernel gives up in {age(left_s)}", "s")
        )
    finding = Finding(
        "connect-failing",
        PROVEN if age_s >= PROVEN_S or socket.soft_error or (full and not socket.conntrack_assumes) else LIKELY,
        f"{network.thread_name(snapshot, wait.tid)} has been connecting to {network.peer_name(socket)} for {age(age_s)}"
        f" and not one SYN was answered{network_conntrack.why(full)}{ends}",
        evidence=tuple(lines),
        now=network_conntrack.make_room(full) if full else network_remedies.check_path(snapshot, socket),
        later=network_remedies.bound_the_connect(snapshot, wait),
        chain=network.chain(snapshot, wait, "conntrack: table full" if full else "no answer to the SYN"),
    )
    return network.about(snapshot, wait, finding)


def _error_name(error: int) -> str:
    return errno.errorcode.get(error, str(error))


def _failing_again(snapshot: Snapshot) -> Iterator[Finding]:
    """Attempts that fail one after the other, seen in the window, or known from the frames that sleep between them."""
    failures = _failures(snapshot)
    retrying = next((wait for wait in waits(snapshot) if wait.purpose is Purpose.RETRY), None)
    for remote, (error, number) in failures.items():
        wait = _who_connects(snapshot, retrying)
        if number < 2 and (wait is None or wait.purpose is not Purpose.RETRY):
            continue
        yield _again(snapshot, wait, remote, error, number)
        return
    if retrying is not None and retrying.reading.family == "retry":
        connecting = _connecting_frame(retrying)
        if connecting is not None:
            yield _between_attempts(snapshot, retrying, connecting)


def _failures(snapshot: Snapshot) -> dict[str, tuple[int, int]]:
    """remote -> (errno, how many attempts failed so in the window).

    Not an address of a service that was reached at another of its addresses, or later: `localhost` is ::1 first, then
    127.0.0.1, where the server listens.
    """
    found: dict[str, tuple[int, int]] = {}
    for event in snapshot.tcp_events:
        if event.kind == "error" and event.error in FAILURES and event.remote:
            found[event.remote] = (event.error, found.get(event.remote, (0, 0))[1] + max(1, event.count))
    if found:
        reached = {_port(event.remote) for event in snapshot.tcp_events if event.new_state == "ESTABLISHED"}
        found = {remote: failed for remote, failed in found.items() if _port(remote) not in reached}
    else:
        for entry in snapshot.activity:
            if entry.call == "connect" and entry.last_error in FAILURES and entry.returns:
                number = found.get("", (0, 0))[1] + max(entry.returns, 1)
                found[""] = (entry.last_error, number)
    return found


def _port(remote: str) -> str:
    return remote.rpartition(":")[2]


def _who_connects(snapshot: Snapshot, retrying: Wait | None) -> Wait | None:
    """The thread that makes the attempts: the one that connected in the window, else the one that sleeps in between."""
    if retrying is not None:
        return retrying
    tids = {entry.tid for entry in snapshot.activity if entry.call == "connect"}
    candidates = [wait for wait in waits(snapshot) if wait.tid in tids or (not tids and wait.call in SLEEP_CALLS)]
    return candidates[0] if candidates else None


def _again(snapshot: Snapshot, wait: Wait | None, remote: str, error: int, number: int) -> Finding:
    to = f"to {remote} " if remote else ""
    who = network.thread_name(snapshot, wait.tid) if wait else "the process"
    frame = f" under {network.where(wait.frame)}" if wait and wait.frame else ""
    text = f"{count(number, 'attempt')} {to}failed with {_error_name(error)} within {age(snapshot.window_s)}"
    lines: list[Evidence] = [Evidence("tcp events", "failed connects", number, text)]
    if wait is not None:
        lines += [network.call_line(snapshot, wait), *network.frame_lines(wait)]
    return Finding(
        "connect-failing",
        PROVEN if number >= 3 else LIKELY,
        f"{who} connects {to}again and again{frame}, and {FAILURES[error]} each time ({_error_name(error)}, "
        f"{count(number, 'time')} within {age(snapshot.window_s)})",
        evidence=tuple(lines),
        now=network_remedies.check_listener(remote, error),
        later=network_remedies.bound_the_connect(snapshot, wait),
        tid=wait.tid if wait else None,
        frame=wait.reading.frame if wait else None,
        chain=(f"{who} (tid {wait.tid})" if wait else who, "connect", remote or "its peer", _error_name(error)),
    )


def _connecting_frame(wait: Wait) -> int | None:
    """The frame that shows what is retried: a connect, in the library that sleeps."""
    index = wait.reading.frame
    if index is None:
        return None
    place = vocabulary.place(wait.frames[index])
    for outer, frame in enumerate(wait.frames[index + 1 :], index + 1):
        if vocabulary.place(frame) != place:
            return None
        if vocabulary.bare(frame.function) in _CONNECTING:
            return outer
    return None


def _between_attempts(snapshot: Snapshot, wait: Wait, connecting: int) -> Finding:
    """The library sleeps between two attempts to connect: the last one failed, or it would not sleep here."""
    name, frame = network.thread_name(snapshot, wait.tid), wait.frames[connecting]
    retry = wait.frame
    assert retry is not None
    bounded = retry.file.endswith(("redis/retry.py", "valkey/retry.py"))
    return Finding(
        "connect-failing",
        "possible" if bounded else LIKELY,
        f"{name} sleeps between attempts to connect: {network.where(retry)} under {network.where(frame)} sleeps only "
        "after an attempt has failed",
        evidence=(network.call_line(snapshot, wait), *network.frame_lines(wait)),
        now=network_remedies.check_listener("", 0),
        later=network_remedies.bound_the_connect(snapshot, wait),
        tid=wait.tid,
        frame=connecting,
        chain=(f"{name} (tid {wait.tid})", wait.call, network.where(frame)),
    )


def dns_unanswered(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`dns-unanswered`: the resolver does not answer.

    A thread resolves a name, and no answer to its query comes. glibc waits 5 s for each resolver, twice, and
    nothing in Python shortens that.

    Proven: one wait for the answer has lasted for 30 s.

    Likely: it has lasted for 5 s; or, over UDP, one poll has lasted for 3 s, the query ran into its timeout during
    the look, or another resolver had been asked before.

    Now: the report has the `dig` line that asks the same resolver once, from the process's own network namespace.

    Later: `options timeout:1 attempts:2` in /etc/resolv.conf (Kubernetes: dnsConfig.options); a resolver on the
    node, so that a lost packet costs nothing.

    Not: a query that is under way for less; a resolver that is slow and answers; a name that does not exist, for
    that is an answer.

    Wrong: a datagram socket to port 53 that is not a resolver's, with nothing in the stack that says what it is
    for.

    Try: a resolver that says nothing (as root, in a mount namespace of its own):

        python3 -c "import socket, time
        s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.2', 53)); time.sleep(60)" &
        echo nameserver 127.0.0.2 > /tmp/resolv.conf
        unshare -m sh -c "mount --bind /tmp/resolv.conf /etc/resolv.conf
        exec python3 -c 'import socket; socket.getaddrinfo(\\"example.org\\", 80)'" &
        sleep 4.5; stucktrace pid $!
    """
    for wait in waits(snapshot):
        socket = wait.socket
        port = socket.remote.rpartition(":")[2] if socket else ""
        asks_port_53 = socket is not None and port == "53" and socket.direction != "in" and socket.state != "LISTEN"
        if wait.purpose is not Purpose.RESOLVE and not (asks_port_53 and wait.purpose is Purpose.UNKNOWN):
            continue
        if socket is None or wait.lock is not None or socket.state == "SYN_SENT" or not wait.call:
            continue
        resolver = asks_port_53 or socket.protocol.startswith("unix")
        if not resolver:
            continue
        reason = _overdue(snapshot, wait, socket, budgets)
        if reason:
            yield _dns(snapshot, wait, socket, reason)


def _overdue(snapshot: Snapshot, wait: Wait, socket: SocketFact, budgets: Budgets) -> str:
    """Why the answer is overdue, or ""."""
    age_s = wait.age_s or 0.0
    if age_s >= budgets.owed_s:
        return f"the budget of an answer that is owed at once, {age(budgets.owed_s)}, is spent"
    if socket.protocol != "udp":
        return ""
    if age_s >= RESOLVER_POLL_S:
        return "a resolver's poll lasts 5 s at most before it asks anew"
    timeouts = sum(
        entry.empty
        for entry in snapshot.activity_of(wait.tid)
        if entry.call in POLL_CALLS and (entry.fd is None or entry.fd in wait.fds)
    )
    if timeouts:
        return f"the query ran into its timeout {count(timeouts, 'time')} within {age(snapshot.window_s)}"
    others = {
        other.remote
        for other in snapshot.sockets
        if other.protocol == "udp" and other.remote.rpartition(":")[2] == "53" and other.remote != socket.remote
    }
    if others and age_s >= 1.0:
        return f"{count(len(others), 'other resolver')} did not answer before"
    return ""


def _dns(snapshot: Snapshot, wait: Wait, socket: SocketFact, reason: str) -> Finding:
    name, resolver = network.thread_name(snapshot, wait.tid), socket.remote or "the local resolver"
    text = f"the query went to {resolver} over {socket.protocol} and has no answer: {reason}"
    lines = [network.call_line(snapshot, wait), *network.frame_lines(wait)]
    lines.append(Evidence(network.socket_source(snapshot), "remote", resolver, text))
    caller = _caller(wait)
    finding = Finding(
        "dns-unanswered",
        PROVEN if (wait.age_s or 0.0) >= PROVEN_S else LIKELY,
        f"{name} resolves a name{caller}, and the resolver {resolver} has not answered for {age(wait.age_s)}: {reason}",
        evidence=tuple(lines),
        now=network_remedies.ask_resolver(snapshot, socket),
        later=(
            Later(
                "options timeout:1 attempts:2 in /etc/resolv.conf (Kubernetes: dnsConfig.options)",
                "glibc waits 5 s for each resolver, twice, and nothing in Python can shorten it",
            ),
            Later(
                "a resolver on the node (node-local DNS cache, systemd-resolved)",
                "a lost UDP packet then costs nothing",
            ),
        ),
        chain=network.chain(snapshot, wait, "no answer"),
    )
    return network.about(snapshot, wait, finding)


def _caller(wait: Wait) -> str:
    """Who asked for the name: the frame above the resolver's own."""
    index = wait.reading.frame
    if wait.purpose is not Purpose.RESOLVE or index is None or index + 1 >= len(wait.frames):
        return ""
    return f" for {network.where(wait.frames[index + 1])}"
