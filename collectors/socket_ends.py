"""Beyond the targets: the other ends of the sockets on which something waits, and who holds those and these.

One walk for all targets together, through the peers iterator (BPF), else sock_diag in every namespace and /proc/*/fd.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from stucktrace.collectors import holders, netns, peers, peers_bpf, unix_peers
from stucktrace.collectors.addresses import parse_endpoint
from stucktrace.collectors.kernel import Kernel
from stucktrace.collectors.libbpf import BpfError
from stucktrace.collectors.peers import OtherEnd, Tuple4
from stucktrace.collectors.socket_tables import Table
from stucktrace.facts import Missing

UNCONNECTED = {"", "CLOSE", "LISTEN", "SYN_SENT"}


@dataclass(frozen=True)
class Ends:
    """By inode, over all targets."""

    ends: Mapping[int, OtherEnd] = field(default_factory=dict)
    """One of the targets' sockets -> its other end."""
    held: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Any socket -> pids that hold it."""


@dataclass(frozen=True)
class Question:
    """The sockets on which something waits, over all targets."""

    tcp: Mapping[int, Mapping[int, Tuple4]]
    """Inode of a network namespace (0: not known) -> its connections by inode."""
    unix: Mapping[int, OtherEnd]
    inodes: frozenset[int]
    """Every socket of these targets: who else holds it?"""
    inhabitants: Mapping[int, int]
    """Inode of a network namespace -> a target that lives there."""


def find(
    tables: Mapping[int, Table],
    detailed: Mapping[int, Collection[int]],
    kernel: Kernel | None,
    missing: dict[Missing, None],
) -> Ends:
    """`tables`: pid -> its sockets. `detailed`: pid -> inodes of those on which something waits."""
    question = _question(tables, detailed)
    if not question.inodes:
        return Ends()
    if kernel is not None and kernel.iterates:
        try:
            return _ask_kernel(question, kernel)
        except BpfError as error:
            missing[Missing("peers through BPF", str(error), "none needed: sock_diag was asked instead")] = None
    return _ask_tables(question)


def _question(tables: Mapping[int, Table], detailed: Mapping[int, Collection[int]]) -> Question:
    tcp: dict[int, dict[int, Tuple4]] = {}
    unix: dict[int, OtherEnd] = {}
    inodes: set[int] = set()
    inhabitants: dict[int, int] = {}
    for pid, table in tables.items():
        if not detailed.get(pid):
            continue
        namespace = netns.inode_of(pid) or 0
        inhabitants.setdefault(namespace, pid)
        inodes.update(table.fds)
        tcp.setdefault(namespace, {}).update(_tuples(table, detailed[pid]))
        unix.update((inode, table.unix_ends[inode]) for inode in detailed[pid] if inode in table.unix_ends)
    return Question(tcp, unix, frozenset(inodes), inhabitants)


def _tuples(table: Table, detailed: Collection[int]) -> dict[int, Tuple4]:
    """The detailed TCP sockets that are connected."""
    found = {}
    for inode in detailed:
        draft = table.drafts[inode]
        if draft["protocol"] == "tcp" and draft["state"] not in UNCONNECTED:
            local, remote = parse_endpoint(draft.get("local", "")), parse_endpoint(draft.get("remote", ""))
            if local and remote:
                found[inode] = Tuple4(*local, *remote)
    return found


def _ask_tables(question: Question) -> Ends:
    ends = {**question.unix, **unix_peers.find_elsewhere(question.unix)}
    for namespace, tuples in question.tcp.items():
        ends.update(peers.find(question.inhabitants[namespace], tuples))
    wanted = {end.inode for end in ends.values() if end.inode}
    wanted.update(listener for end in ends.values() for listener in end.listeners)
    # Reading every process's fd table is the dearest part; relatives were asked before.
    held = holders.find(wanted | question.inodes, holders.everybody()) if wanted else {}
    return Ends(ends, held)


def _ask_kernel(question: Question, kernel: Kernel) -> Ends:
    asked = {end.inode for end in question.unix.values() if end.inode} | question.inodes
    unaccepted = [inode for inode, end in question.unix.items() if not end.inode]
    found = peers_bpf.find(kernel, asked, question.tcp, unaccepted)
    ends = {**found.ends, **question.unix}
    for inode in unaccepted:
        listeners = found.listeners.get(inode, ())
        ends[inode] = replace(ends[inode], in_accept_queue=bool(listeners), listeners=listeners)
    for namespace, tuples in question.tcp.items():
        # A connection that nobody holds and that is in no queue (closed, or its listener has no room) shows in the
        # table of its own namespace only.
        left = {inode: end for inode, end in tuples.items() if inode not in found.ends}
        ends.update(peers.find(question.inhabitants[namespace], left, elsewhere=False))
    return Ends(ends, found.held)
