"""Sockets, their peers, epoll sets and connection tracking."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TcpEvent:
    """An event on a socket of the target during the window. Source: tcp and sock tracepoints."""

    kind: str
    """"retransmit", "state", "error", "reset-received"."""
    inode: int | None
    local: str
    remote: str
    count: int
    error: int = 0
    """errno for kind "error"."""
    new_state: str = ""


@dataclass(frozen=True)
class Keepalive:
    """Keepalive settings of one TCP socket, in force now."""

    on: bool
    idle_s: float | None
    interval_s: float | None
    count: int | None
    probes_unanswered: int | None = None


@dataclass(frozen=True)
class Peer:
    """The other end of a socket when it lives on this node."""

    pids: tuple[int, ...]
    """Processes that hold it; () when nobody does (for example in an accept queue)."""
    command: str
    """The command name of the first holder, or ""."""
    state: str
    """Its TCP state, or CONNECTED for a UNIX socket."""
    unread_bytes: int | None
    """What it has received and its application has not read."""
    in_accept_queue: bool = False
    holder_state: str = ""
    """State letter of the first holder's main thread (T: stopped)."""
    inode: int | None = None
    listener_pids: tuple[int, ...] = ()
    """When in an accept queue: who holds the listening socket."""


@dataclass(frozen=True)
class ProbeFact:
    """What the peer's TCP answered when it was asked whether the connection lives. Source: own segments (--probe)."""

    answer: str
    """"alive" (it acknowledges), "reset" (it, or a firewall for it, knows nothing of the connection: the target's TCP
    has heard that too), "unreachable" (nothing came back)."""
    tries: int
    """Segments sent, about a second apart."""
    seconds: float
    """From the first segment to the answer, or until nothing more was waited for."""
    after_s: float | None = None
    """From the segment that was answered to its answer."""
    error: str = ""
    """Why the last segment could not even be sent."""
    time: float = 0.0
    """CLOCK_REALTIME of the answer."""
    unreceived_bytes: int = 0
    """"alive": what the peer has sent by its own word, and what did not come in while it was asked all three times; its
    FIN counts as one."""


@dataclass(frozen=True)
class SocketFact:
    """One socket of the target. Source: iter/task_file, else sock_diag, /proc/PID/net and getsockopt on a duplicate."""

    fds: tuple[int, ...]
    inode: int
    family: str
    """"inet", "inet6" or "unix"; "other"."""
    protocol: str
    """"tcp", "udp", "unix-stream", "unix-dgram", "unix-seqpacket", "raw", "netlink", "other"."""
    state: str
    """TCP state by its kernel name (ESTABLISHED, SYN_SENT, CLOSE_WAIT, LISTEN ...), or "" ."""
    local: str = ""
    """"address:port", "[v6]:port", or a UNIX path ("@name" for abstract)."""
    remote: str = ""
    direction: str = ""
    """"in" when it came through a listening port of the target or its parent, "out", or "" when not known."""
    unacked: int | None = None
    """Segments sent and not acknowledged (packets_out)."""
    retransmits: int | None = None
    """Retransmissions of the present outage (icsk_retransmits)."""
    backoff: int | None = None
    rto_s: float | None = None
    """The present retransmission timeout, backoff included."""
    timer: str = ""
    """"retransmit", "keepalive", "persist", "time-wait", "delayed-ack" or ""(none): the armed timer."""
    timer_expires_s: float | None = None
    last_send_s: float | None = None
    """Age of the last data segment sent; during an outage this is the last retransmission."""
    last_receive_s: float | None = None
    """Age of the last data received."""
    last_ack_s: float | None = None
    """Age of the last ACK received."""
    send_window_bytes: int | None = None
    bytes_sent: int | None = None
    bytes_acked: int | None = None
    bytes_received: int | None = None
    send_bytes: int | None = None
    """Send queue: written and not acknowledged."""
    receive_bytes: int | None = None
    """Receive queue: arrived and not read. For LISTEN: connections waiting for accept."""
    backlog: int | None = None
    """LISTEN only: the most connections that may wait."""
    keepalive: Keepalive | None = None
    user_timeout_s: float | None = None
    """TCP_USER_TIMEOUT; 0 is "not set"."""
    syn_retries: int | None = None
    """net.ipv4.tcp_syn_retries, or TCP_SYNCNT of this socket."""
    retries2: int | None = None
    """net.ipv4.tcp_retries2 of its network namespace."""
    soft_error: int = 0
    """sk_err_soft: for example EHOSTUNREACH reported by ICMP while retransmitting."""
    shared_with: tuple[int, ...] = ()
    """Other pids that hold the same open socket."""
    used_by: tuple[int, ...] = ()
    """Those of `shared_with` with a thread inside a call on it now; looked up only for sockets that are waited on."""
    peer: Peer | None = None
    conntrack: str | None = None
    """"present", "absent" (only where conntrack is hooked), or None."""
    conntrack_where: str = ""
    """The network namespace that `conntrack` is about."""
    conntrack_assumes: str = ""
    """What "absent" takes for granted to mean that packets are lost; "" when nothing."""
    conntrack_seen_s: float | None = None
    """How long ago the agent saw the entry there that is absent now; None: it did not."""
    window_received_bytes: int | None = None
    """Bytes that arrived between two looks; None when there was one look."""
    window_acked_bytes: int | None = None
    delayed_ack_pending: bool | None = None
    """True: data arrived and our ACK for it is still owed."""
    probe: ProbeFact | None = None
    """Only when it was asked for (--probe)."""


@dataclass(frozen=True)
class EpollWatch:
    """One registration in an epoll set. Source: /proc/PID/fdinfo/EPFD."""

    fd: int
    events: int
    inode: int
    present: bool
    """The fd table still has this fd, on this very file."""
    held_by: tuple[int, ...] = ()
    """Other pids that hold the file when it is stale."""


@dataclass(frozen=True)
class EpollFact:
    fd: int
    watches: tuple[EpollWatch, ...]


@dataclass(frozen=True)
class ConntrackFact:
    """The conntrack table of one network namespace. Source: ctnetlink GET_STATS and GET_STATS_CPU.

    The counters have been growing since the namespace was made: what counts is the difference between two reads.
    """

    netns: int
    """The namespace's inode."""
    count: int
    """Entries now."""
    maximum: int | None
    """nf_conntrack_max: the same number for every namespace of the node, each of which may have so many. None: an older
    kernel does not tell."""
    found: int = 0
    invalid: int = 0
    """Packets that belong to no known connection, where they should."""
    insert_failed: int = 0
    """New connections whose first packet was dropped because the entry was there already or the table changed."""
    drop: int = 0
    """New connections whose first packet was dropped because there was no room for an entry."""
    early_drop: int = 0
    """Unanswered entries thrown out to make room."""
    error: int = 0
    where: str = ""
    """What to call the namespace."""
    window_drop: int | None = None
    """How far `drop` grew between two reads; None when there was one."""
    search_restart: int = 0
    """Look-ups begun anew because the table changed meanwhile."""
    chain_too_long: int = 0
    """New connections dropped because too many others have their hash."""

    @property
    def fill(self) -> float | None:
        """Share of the table in use; None without a limit."""
        return self.count / self.maximum if self.maximum else None
