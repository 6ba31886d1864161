"""Every socket of the target: addresses, TCP state, timers, queues, keepalive, who shares it, who is at the other end.

Source: the sockets iterator (BPF), else sock_diag or /proc/PID/net; options of suspects through a duplicate held for
microseconds. This file joins what the other socket files read, and opens nothing itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

from stucktrace.collectors import (
    holders,
    netns,
    peers,
    peers_bpf,
    shared_use,
    socket_options,
    socket_tables,
    sockets_bpf,
    unix_peers,
)
from stucktrace.collectors.addresses import parse_endpoint, port_of
from stucktrace.collectors.kernel import Kernel
from stucktrace.collectors.libbpf import BpfError
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
    # The members of one family are each other's relatives: each is walked once.
    iterate = cache(kernel.iterate) if kernel is not None else None
    for pid in pids:
        fds = set((detail_fds or {}).get(pid, ()))
        try:
            table = _read(pid, files, iterate, missing)
            detailed = {inode: min(numbers) for inode, numbers in table.fds.items() if fds.intersection(numbers)}
            if not table.options_known:
                _add_options(pid, table, detailed, missing)
            facts[pid] = _join(pid, table, detailed, _find_ends(pid, table, detailed, kernel, missing))
        except CollectorError as error:
            missing[error.missing] = None
            continue
        source = table.source
        missing.update(dict.fromkeys(table.missing))
    if kernel is not None and source:
        kernel.hooks["sockets"] = source
    return Sockets(facts, tuple(missing), source)


def _read(
    pid: int, files: Mapping[int, Files], iterate: sockets_bpf.Iterate | None, missing: dict[Missing, None]
) -> Table:
    relatives = holders.relatives(pid)
    if iterate is not None:
        try:
            return sockets_bpf.read(iterate, pid, relatives)
        except BpfError as error:
            missing[Missing("sockets through BPF", str(error), "none needed: sock_diag was asked instead")] = None
    return socket_tables.read(pid, files[pid].sockets() if pid in files else {}, relatives)


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


@dataclass(frozen=True)
class Ends:
    """What is known beyond the target."""

    ends: Mapping[int, OtherEnd]
    """Inode of one of the target's sockets -> its other end."""
    held: Mapping[int, tuple[int, ...]]
    """Any inode -> pids that hold it."""


def _find_ends(
    pid: int, table: Table, detailed: Collection[int], kernel: Kernel | None, missing: dict[Missing, None]
) -> Ends:
    """The other ends of the sockets on which something waits, and who holds those and these."""
    if not detailed:
        return Ends({}, table.held)
    tuples = _tuples(table.drafts, detailed)
    unix = {inode: end for inode, end in table.unix_ends.items() if inode in detailed}
    if kernel is not None:
        try:
            return _find_ends_in_kernel(pid, table, tuples, unix, kernel)
        except BpfError as error:
            missing[Missing("peers through BPF", str(error), "none needed: sock_diag was asked instead")] = None
    ends = {**peers.find(pid, tuples), **unix, **unix_peers.find_elsewhere(unix)}
    wanted = {end.inode for end in ends.values() if end.inode}
    wanted.update(listener for end in ends.values() for listener in end.listeners)
    if not wanted:
        return Ends(ends, table.held)
    return Ends(ends, holders.find(wanted.union(table.fds), holders.everybody()))


def _find_ends_in_kernel(
    pid: int, table: Table, tuples: Mapping[int, Tuple4], unix: Mapping[int, OtherEnd], kernel: Kernel
) -> Ends:
    asked = {end.inode for end in unix.values() if end.inode}.union(table.fds)
    unaccepted = [inode for inode, end in unix.items() if not end.inode]
    found = peers_bpf.find(kernel, asked, tuples, unaccepted, netns.inode_of(pid))
    ends = dict(unix)
    for inode in unaccepted:
        listeners = found.listeners.get(inode, ())
        ends[inode] = replace(unix[inode], in_accept_queue=bool(listeners), listeners=listeners)
    # A connection whose listener has no room left is in no queue yet; its own namespace's table knows it.
    left = {inode: end for inode, end in tuples.items() if inode not in found.ends}
    ends.update(peers.find(pid, left, elsewhere=False))
    ends.update((inode, end) for inode, end in found.ends.items() if inode in tuples)
    return Ends(ends, found.held)


def _join(pid: int, table: Table, detailed: Collection[int], other: Ends) -> tuple[SocketFact, ...]:
    facts = []
    for inode, fds in table.fds.items():
        draft = table.drafts[inode]
        if draft["protocol"] == "tcp":
            if draft["state"] == "SYN_SENT":
                draft["direction"] = "out"
            elif draft["state"] not in UNCONNECTED:
                draft["direction"] = "in" if port_of(draft.get("local", "")) in table.served else "out"
        elif draft["family"] == "unix" and inode in table.unix_ends:
            name = other.ends.get(inode, table.unix_ends[inode]).name
            draft["remote"] = name
            # An accepted UNIX socket bears its listener's name; of an unnamed pair neither end called the other.
            draft["direction"] = "in" if draft.get("local") else "out" if name else ""
        if inode in other.ends:
            draft["peer"] = _peer(other.ends[inode], other.held)
        shared = tuple(holder for holder in other.held.get(inode, ()) if holder != pid)
        # That many workers wait on one listening socket is as it should be.
        asked = shared and inode in detailed and draft["state"] != "LISTEN"
        using = shared_use.users(inode, shared) if asked else ()
        facts.append(SocketFact(fds=fds, inode=inode, shared_with=shared, used_by=using, **draft))
    return tuple(sorted(facts, key=lambda fact: fact.fds))


def _tuples(drafts: Mapping[int, Draft], detailed: Collection[int]) -> dict[int, Tuple4]:
    """The detailed TCP sockets that are connected."""
    found = {}
    for inode in detailed:
        draft = drafts[inode]
        if draft["protocol"] == "tcp" and draft["state"] not in UNCONNECTED:
            local, remote = parse_endpoint(draft.get("local", "")), parse_endpoint(draft.get("remote", ""))
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
