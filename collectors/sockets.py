"""Every socket of the target: addresses, TCP state, timers, queues, keepalive, who shares it, who is at the other end.

Source: the sockets iterator (BPF), else sock_diag or /proc/PID/net; options of suspects through a duplicate held for
microseconds. This file joins what the other socket files read, and opens nothing itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from stucktrace.collectors import holders, peers, shared_use, socket_options, socket_tables, unix_peers
from stucktrace.collectors.addresses import parse_endpoint, port_of
from stucktrace.collectors.kernel import Kernel
from stucktrace.collectors.peers import OtherEnd, Tuple4
from stucktrace.collectors.sock_diag import Draft, parse_tcp_info
from stucktrace.collectors.socket_tables import Table
from stucktrace.errors import CollectorError
from stucktrace.facts import Keepalive, Missing, Peer, SocketFact

UNCONNECTED = {"", "CLOSE", "LISTEN", "SYN_SENT"}


class Files(Protocol):
    """As much of OpenFiles as is needed here."""

    def sockets(self) -> Mapping[int, tuple[int, ...]]: ...


class Sockets(dict[int, tuple[SocketFact, ...]]):
    """pid -> its sockets in the order of their first fd; a pid whose sockets could not be read is absent."""

    def __init__(self, facts: Mapping[int, tuple[SocketFact, ...]], missing: tuple[Missing, ...], source: str) -> None:
        super().__init__(facts)
        self.missing = missing
        self.source = source
        """The means that was used: "iter/task_file", "sock_diag", "/proc/net"."""


def collect(
    pids: Collection[int],
    files: Mapping[int, Files],
    kernel: Kernel | None,
    detail_fds: Mapping[int, Collection[int]] | None = None,
) -> Sockets:
    """The sockets of `pids`; for `detail_fds` (pid -> fds on which something waits) their options and peer too."""
    facts: dict[int, tuple[SocketFact, ...]] = {}
    missing: dict[Missing, None] = {}
    source = ""
    for pid in pids:
        sockets = files[pid].sockets() if pid in files else {}
        detail_set = set((detail_fds or {}).get(pid, ()))
        detailed = {inode: min(fds) for inode, fds in sockets.items() if detail_set.intersection(fds)}
        try:
            table = socket_tables.read(pid, sockets)
            source = table.source
            missing.update(dict.fromkeys(table.missing))
            _add_options(pid, table, detailed, missing)
            facts[pid] = _join(pid, sockets, table, detailed)
        except CollectorError as error:
            missing[error.missing] = None
    return Sockets(facts, tuple(missing), source)


def _add_options(pid: int, table: Table, detailed: Mapping[int, int], missing: dict[Missing, None]) -> None:
    """What no table tells of the suspects: asked of the socket itself. Completes the drafts in place."""
    asked = {
        fd: inode
        for inode, fd in detailed.items()
        if table.drafts[inode]["protocol"] == "tcp" and table.drafts[inode]["state"] not in {"LISTEN", "CLOSE"}
    }
    try:
        answers = socket_options.read(pid, asked)
    except CollectorError as error:
        missing[error.missing] = None
        return
    for fd, options in answers.items():
        draft = table.drafts[asked[fd]]
        if "unacked" not in draft:
            draft.update(parse_tcp_info(options.tcp_info))
        known: Keepalive | None = draft.get("keepalive")
        probes = known.probes_unanswered if known else None
        draft["keepalive"] = Keepalive(options.keepalive, options.idle_s, options.interval_s, options.count, probes)
        draft["user_timeout_s"] = options.user_timeout_s
        draft["syn_retries"] = options.syn_retries


def _join(
    pid: int, sockets: Mapping[int, tuple[int, ...]], table: Table, detailed: Mapping[int, int]
) -> tuple[SocketFact, ...]:
    family = holders.relatives(pid)
    relatives_sockets = {relative: holders.sockets_of(relative) for relative in family}
    served = _served_ports(sockets, relatives_sockets, table.listeners)
    tcp_peers = peers.find(pid, _tuples(table.drafts, detailed))
    unix = unix_peers.find(detailed, table.unix, elsewhere=True)
    local_unix = unix_peers.find(sockets, table.unix, elsewhere=False)
    wanted = {peer.inode for peer in (*tcp_peers.values(), *unix.values()) if peer.inode}
    wanted.update(inode for peer in (*tcp_peers.values(), *unix.values()) for inode in peer.listeners)
    if wanted:
        held = holders.find(wanted | set(sockets), holders.everybody())
    else:
        held = holders.invert(relatives_sockets, sockets)
    facts = []
    for inode, fds in sockets.items():
        draft = table.drafts[inode]
        if draft["protocol"] == "tcp":
            _complete_tcp(draft, table, served)
            if inode in tcp_peers:
                draft["peer"] = _peer(tcp_peers[inode], held)
        elif draft["family"] == "unix":
            other = unix.get(inode) or local_unix.get(inode)
            if other is not None:
                draft["remote"] = other.name
                # An accepted UNIX socket bears its listener's name; of an unnamed pair neither end called the other.
                draft["direction"] = "in" if draft.get("local") else "out" if other.name else ""
            if inode in unix:
                draft["peer"] = _peer(unix[inode], held)
        shared = tuple(holder for holder in held.get(inode, ()) if holder != pid)
        using = shared_use.users(inode, shared) if shared and inode in detailed else ()
        facts.append(SocketFact(fds=tuple(fds), inode=inode, shared_with=shared, used_by=using, **draft))
    return tuple(sorted(facts, key=lambda fact: fact.fds))


def _served_ports(
    own: Collection[int], relatives: Mapping[int, Collection[int]], listeners: Mapping[int, tuple[bytes, int]]
) -> set[int]:
    """Ports on which the target or a relative of it listens, in the target's namespace."""
    inodes = set(own).union(*relatives.values())
    return {port for inode, (_, port) in listeners.items() if inode in inodes}


def _complete_tcp(draft: Draft, table: Table, served: Collection[int]) -> None:
    defaults = table.defaults
    if draft["state"] not in UNCONNECTED:
        draft["direction"] = "in" if port_of(draft["local"]) in served else "out"
    elif draft["state"] == "SYN_SENT":
        draft["direction"] = "out"
    if draft["state"] != "LISTEN":
        draft["retries2"] = defaults.retries2
        if draft.get("syn_retries") is None:
            draft["syn_retries"] = defaults.syn_retries


def _tuples(drafts: Mapping[int, Draft], detailed: Collection[int]) -> dict[int, Tuple4]:
    """The detailed sockets that are connected."""
    found = {}
    for inode in detailed:
        draft = drafts[inode]
        if draft["protocol"] == "tcp" and draft["state"] not in UNCONNECTED:
            local, remote = parse_endpoint(draft["local"]), parse_endpoint(draft["remote"])
            if local and remote:
                found[inode] = Tuple4(*local, *remote)
    return found


def _peer(end: OtherEnd, held: Mapping[int, tuple[int, ...]]) -> Peer:
    pids = held.get(end.inode, ()) if end.inode else ()
    listening = tuple(sorted({pid for listener in end.listeners for pid in held.get(listener, ())}))
    first = pids or listening
    return Peer(
        pids=pids,
        command=holders.command_of(first[0]) if first else "",
        state=end.state,
        unread_bytes=end.unread_bytes,
        in_accept_queue=end.in_accept_queue,
        holder_state=holders.state_of(first[0]) if first else "",
        inode=end.inode or None,
        listener_pids=listening,
    )
