"""Every socket of the target: addresses, TCP state, timers, queues, keepalive, who shares it, who is at the other end.

Source: the sockets iterator (BPF), else sock_diag or /proc/PID/net; options of suspects through a duplicate held for
microseconds. This file joins what the other socket files read, and opens nothing itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Protocol

from stucktrace.collectors import holders, shared_use, socket_ends, socket_options, socket_tables, sockets_bpf
from stucktrace.collectors.addresses import port_of
from stucktrace.collectors.kernel import Kernel
from stucktrace.collectors.libbpf import BpfError
from stucktrace.collectors.peers import OtherEnd
from stucktrace.collectors.sock_diag import parse_tcp_info
from stucktrace.collectors.socket_ends import UNCONNECTED, Ends
from stucktrace.collectors.socket_tables import Table
from stucktrace.errors import CollectorError
from stucktrace.facts import Keepalive, Missing, Peer, SocketFact


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
    tables: dict[int, Table] = {}
    detailed: dict[int, dict[int, int]] = {}
    missing: dict[Missing, None] = {}
    # The members of one family are each other's relatives: each is walked once.
    iterate = cache(kernel.iterate) if kernel is not None and kernel.iterates else None
    brief = cache(sockets_bpf.in_brief)
    sockets_of = cache(holders.sockets_of)
    for pid in pids:
        fds = set((detail_fds or {}).get(pid, ()))
        try:
            table = _read(pid, files, iterate, brief, sockets_of=sockets_of, missing=missing)
        except CollectorError as error:
            missing[error.missing] = None
            continue
        tables[pid] = table
        detailed[pid] = {inode: min(numbers) for inode, numbers in table.fds.items() if fds.intersection(numbers)}
        missing.update(dict.fromkeys(table.missing))
    _add_options(tables, detailed, missing)
    other = socket_ends.find(tables, detailed, kernel, missing)
    facts = {pid: _join(pid, table, detailed[pid], other) for pid, table in tables.items()}
    source = next((table.source for table in tables.values()), "")
    if kernel is not None and source:
        kernel.hooks["sockets"] = source
    return Sockets(facts, tuple(missing), source)


def _read(
    pid: int,
    files: Mapping[int, Files],
    iterate: sockets_bpf.Iterate | None,
    brief: sockets_bpf.Brief,
    *,
    sockets_of: socket_tables.SocketsOf,
    missing: dict[Missing, None],
) -> Table:
    relatives = holders.relatives(pid)
    if iterate is not None:
        try:
            return sockets_bpf.read(iterate, pid, relatives, brief)
        except BpfError as error:
            missing[Missing("sockets through BPF", str(error), "none needed: sock_diag was asked instead")] = None
    kin = {relative: sockets_of(relative) for relative in relatives}
    return socket_tables.read(pid, files[pid].sockets() if pid in files else {}, kin)


def _add_options(
    tables: Mapping[int, Table], detailed: Mapping[int, Mapping[int, int]], missing: dict[Missing, None]
) -> None:
    """What no table tells of the suspects: asked of the sockets themselves. Completes the drafts in place."""
    asked = {
        (pid, fd): inode
        for pid, table in tables.items()
        if not table.options_known
        for inode, fd in detailed[pid].items()
        if table.drafts[inode]["protocol"] == "tcp" and table.drafts[inode]["state"] not in {"LISTEN", "CLOSE"}
    }
    try:
        answers = socket_options.read(asked)
    except CollectorError as error:
        missing[error.missing] = None
        return
    for (pid, fd), options in answers.items():
        draft = tables[pid].drafts[asked[pid, fd]]
        if "unacked" not in draft:
            draft.update(parse_tcp_info(options.tcp_info))
        known: Keepalive | None = draft.get("keepalive")
        probes = known.probes_unanswered if known else None
        draft["keepalive"] = Keepalive(options.keepalive, options.idle_s, options.interval_s, options.count, probes)
        draft["user_timeout_s"] = options.user_timeout_s
        draft["syn_retries"] = options.syn_retries


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
        shared = tuple(sorted({*other.held.get(inode, ()), *table.held.get(inode, ())} - {pid}))
        # That many workers wait on one listening socket is as it should be.
        asked = shared and inode in detailed and draft["state"] != "LISTEN"
        using = shared_use.users(inode, shared) if asked else ()
        facts.append(SocketFact(fds=fds, inode=inode, shared_with=shared, used_by=using, **draft))
    return tuple(sorted(facts, key=lambda fact: fact.fds))


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
