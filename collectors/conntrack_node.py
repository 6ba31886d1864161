"""The conntrack tables that concern some processes of this node, and the entry of each of their connections in each.

Source: ctnetlink in the node's own network namespace, in ours and in those of the processes, asked twice with a window
between; sock_diag and the sockets iterator for the connections. Only questions are sent. A socket opened in a namespace
stays there, so each is entered once.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from stucktrace.collectors import (
    conntrack_rules,
    conntrack_settings,
    conntrack_stats,
    ctnetlink,
    netns,
    nft_rules,
    sock_diag,
)
from stucktrace.collectors.addresses import endpoint
from stucktrace.collectors.conntrack import as_sent_on, flow_of, is_alike
from stucktrace.collectors.conntrack_rules import Rules
from stucktrace.collectors.ctnetlink import Entry, Tuple
from stucktrace.facts import ConntrackFact, Missing, SocketFact
from stucktrace.facts.conntrack import (
    ABSENT,
    NOT_TRACKED,
    TRACKED,
    UNKNOWN,
    ConntrackSettings,
    Flow,
    FlowEntry,
    NamespaceTable,
)

INITIAL_PID, INITIAL_NET = 0xEFFFFFFC, 0xEFFFFFF9
"""Inodes of the node's first PID namespace (PROC_PID_INIT_INO in linux/proc_ns.h) and, in new kernels, of its first
network namespace (NET_NS_INIT_INO in linux/nsfs.h); before, that one's number was any."""
CONNECTED = frozenset({"ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT1", "FIN_WAIT2", "SYN_SENT"})
NODE, OWN = "the node's own network namespace", "the network namespace that stucktrace runs in"
CANNOT_ASK = "CAP_NET_ADMIN in that namespace"
CANNOT_ENTER = "CAP_NET_ADMIN, and CAP_SYS_ADMIN with CAP_SYS_PTRACE to enter other network namespaces"


@dataclass(frozen=True)
class _Named:
    """A namespace that concerns the processes."""

    netns: int
    path: str
    """A file that stands for it."""
    where: str
    transit: bool
    """Connections of other namespaces may go through it."""
    pids: tuple[int, ...] = ()
    """Those of the processes that live there."""


@dataclass(eq=False)
class _Place:
    """A namespace that can be asked."""

    named: _Named
    netfilter: socket.socket
    before: ConntrackFact
    began_s: float
    settings: ConntrackSettings
    rules: Rules
    from_address: dict[bytes, tuple[Entry, ...]] = field(default_factory=dict)
    drops_invalid: dict[tuple[bool, bool], bool] = field(default_factory=dict)
    """(IPv4, of its own processes) -> a rule drops what is INVALID."""

    @property
    def hooked(self) -> bool:
        return self.rules.tracks or bool(self.before.count)


@dataclass(frozen=True)
class _Asked:
    """What a namespace said of a connection."""

    place: _Place
    flow: Tuple
    """As it is called there."""
    said: FlowEntry


@dataclass(frozen=True)
class Seen:
    tables: tuple[NamespaceTable, ...]
    flows: tuple[Flow, ...]
    loopback: int
    """Connections of the processes within their own host, which are left out."""
    missing: tuple[Missing, ...]


def node_inode() -> int | None:
    """The node's own network namespace, that of its first process; None where it cannot be seen from here."""
    own = netns.own()
    with suppress(OSError):
        if own != INITIAL_NET and os.stat("/proc/self/ns/pid").st_ino == INITIAL_PID:
            return netns.inode_of(1)
    return own if own == INITIAL_NET else None


def collect(sockets: Mapping[int, tuple[SocketFact, ...]], pids: Collection[int], window_s: float) -> Seen:
    """`sockets`: those of each process. `pids`: all processes looked at, also those without sockets."""
    missing: list[Missing] = []
    places = list(_open_all(pids, missing))
    until_s = time.monotonic() + window_s
    try:
        asked: list[tuple[int, SocketFact, list[_Asked]]] = []
        loopback = 0
        for pid, found in ((pid, found) for pid, facts in sockets.items() for found in facts):
            if found.protocol != "tcp" or found.state not in CONNECTED:
                continue
            flow = flow_of(found)
            if flow is None:
                loopback += 1
            else:
                asked.append((pid, found, list(_ask_all(pid, flow, found, places))))
        if places:
            time.sleep(max(0.0, until_s - time.monotonic()))
        tables = tuple(map(_again, places))
        flows = tuple(
            Flow(pid, found, tuple(_confirmed(pid, found, one) for one in said)) for pid, found, said in asked
        )
        return Seen(tables, flows, loopback, tuple(missing))
    finally:
        for place in places:
            place.netfilter.close()


def _open_all(pids: Collection[int], missing: list[Missing]) -> Iterator[_Place]:
    for named in _namespaces(pids):
        try:
            yield netns.enter(named.path, partial(_open, named))
        except PermissionError:
            remedy = CANNOT_ASK if named.netns == netns.own() else CANNOT_ENTER
            because = f"the kernel does not let it ask for the table of {named.where}"
            missing.append(Missing("conntrack", because, remedy))
        except OSError as error:
            because = f"{named.where} cannot be asked: {(error.strerror or str(error)).lower()}"
            missing.append(Missing("conntrack", because, "look again: the process may have ended meanwhile"))


def _namespaces(pids: Collection[int]) -> Iterator[_Named]:
    """The node's own one first."""
    found: dict[int, _Named] = {}
    node = node_inode()
    for pid, where in ((1, "the network namespace of pid 1"), (os.getpid(), OWN)):
        inode = netns.inode_of(pid)
        if inode is not None:
            found.setdefault(inode, _Named(inode, netns.path_of(pid), NODE if inode == node else where, True))
    for pid in pids:
        inode = netns.inode_of(pid)
        if inode is not None:
            where = f"the network namespace of pid {pid}"
            known = found.get(inode, _Named(inode, netns.path_of(pid), where, False))
            found[inode] = replace(known, pids=(*known.pids, pid))
    yield from found.values()


def _open(named: _Named) -> _Place:
    """Called in the namespace."""
    netfilter = ctnetlink.open_socket()
    try:
        before = replace(conntrack_stats.ask(netfilter, named.netns), where=named.where)
        began_s = time.monotonic()
        rules = conntrack_rules.read(netfilter)
        return _Place(named, netfilter, before, began_s, conntrack_settings.read(), rules)
    except BaseException:
        netfilter.close()
        raise


def _again(place: _Place) -> NamespaceTable:
    """The table after the window."""
    named, before = place.named, place.before
    after, window_s = before, 0.0
    with suppress(OSError):
        after = conntrack_stats.ask(place.netfilter, named.netns)
        window_s = time.monotonic() - place.began_s
    return NamespaceTable(
        named.netns,
        named.where,
        named.pids,
        before,
        replace(after, where=named.where, window_drop=max(0, after.drop - before.drop)),
        window_s,
        place.settings,
        place.hooked or bool(after.count),
        place.rules.translates,
        place.rules.exempts,
    )


def _ask_all(pid: int, flow: Tuple, found: SocketFact, places: Collection[_Place]) -> Iterator[_Asked]:
    """What each namespace says, the process's own one first: behind it the addresses may be translated."""
    own = netns.inode_of(pid)
    for place in sorted(places, key=lambda place: place.named.netns != own):
        home = place.named.netns == own
        if not home and not place.named.transit:
            continue
        with suppress(OSError):
            entry = _find(place, flow)
            yield _Asked(place, flow, _said(place, flow, entry, found, own=home))
            if entry is not None and home:
                flow = as_sent_on(flow, entry)


def _find(place: _Place, flow: Tuple) -> Entry | None:
    entry = ctnetlink.find(place.netfilter, flow) or ctnetlink.find(place.netfilter, flow.reversed())
    if entry is None and place.before.count:
        # In another zone, perhaps.
        entry = next((one for one in _known(place, flow.source) if one.is_of(flow)), None)
    return entry


def _known(place: _Place, address: bytes) -> tuple[Entry, ...]:
    """Entries with this address on either side. Costs a walk through the whole table, so once for each address."""
    if address not in place.from_address:
        place.from_address[address] = tuple(ctnetlink.from_address(place.netfilter, address))
    return place.from_address[address]


def _said(place: _Place, flow: Tuple, entry: Entry | None, found: SocketFact, *, own: bool) -> FlowEntry:
    said = FlowEntry(place.named.netns, place.named.where, NOT_TRACKED, own)
    if entry is not None:
        return replace(
            said,
            state=TRACKED,
            tcp_state=entry.tcp_state,
            timeout_s=entry.timeout_s,
            assured=bool(entry.status & ctnetlink.ASSURED),
            answered=entry.answered,
            offloaded=bool(entry.status & (ctnetlink.OFFLOAD | ctnetlink.HARDWARE_OFFLOAD)),
            zone=entry.zone,
            original=_ends(entry.orig),
            reply=_ends(entry.reply),
        )
    if not place.hooked:
        return said
    alike = bool(place.before.count) and any(one.answered and is_alike(one, flow) for one in _known(place, flow.source))
    # Through another namespace than its own it may not go at all, unless one like it does. An entry of a connection
    # that is being closed is let go long before its socket.
    if found.state != "ESTABLISHED" or not (alike or (own and not place.rules.exempts)):
        return replace(said, state=UNKNOWN)
    of = len(flow.source) == 4, own
    if of not in place.drops_invalid:
        look = partial(nft_rules.drops_invalid, of[0], own=own)
        place.drops_invalid[of] = netns.enter(place.named.path, look)
    return replace(said, state=ABSENT, alike=alike, drops_invalid=place.drops_invalid[of])


def _ends(one: Tuple) -> tuple[str, str]:
    return endpoint(one.source, one.source_port), endpoint(one.target, one.target_port)


def _confirmed(pid: int, found: SocketFact, asked: _Asked) -> FlowEntry:
    """After the window: an entry counts as absent if it still is, and its connection lives."""
    if asked.said.state != ABSENT:
        return asked.said
    asked.place.from_address.clear()
    with suppress(OSError):
        entry = _find(asked.place, asked.flow)
        if entry is not None:
            return _said(asked.place, asked.flow, entry, found, own=asked.said.own)
        if netns.inside(pid, partial(_lives, found)):
            return asked.said
    return replace(asked.said, state=UNKNOWN)


def _lives(found: SocketFact) -> bool:
    flow = flow_of(found)
    assert flow is not None
    with sock_diag.open_socket() as diag:
        now = sock_diag.find_tcp(diag, flow.source, flow.source_port, flow.target, flow.target_port)
        return now is not None and now["inode"] == found.inode and now["state"] == "ESTABLISHED"
