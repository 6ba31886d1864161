"""The network namespaces whose conntrack tables concern some processes of this node, each with a socket to ask it.

Source: ctnetlink in the node's own network namespace, in ours and in those of the processes. A socket opened in a
namespace stays there, so each is entered once. Only questions are sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from stucktrace.collectors import (
    conntrack_rules,
    conntrack_settings,
    conntrack_stats,
    ctnetlink,
    netns,
    permission,
    procfs,
)
from stucktrace.collectors.conntrack_rules import Rules
from stucktrace.collectors.ctnetlink import Entry, Tuple
from stucktrace.facts import ConntrackFact, Missing
from stucktrace.facts.conntrack import ConntrackSettings, NamespaceTable

INITIAL_NET = 0xEFFFFFF9
"""Inode of the node's first network namespace in new kernels (NET_NS_INIT_INO in linux/nsfs.h); before it was any."""
NODE, OWN = "the node's own network namespace", "the network namespace that stucktrace runs in"


@dataclass(frozen=True)
class Named:
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
class Place:
    """A namespace that can be asked."""

    named: Named
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
        return bool(self.rules.tracks or self.before.count)


def node_inode() -> int | None:
    """The node's own network namespace, that of its first process; None where it cannot be seen from here."""
    own = netns.own()
    with suppress(OSError):
        if own != INITIAL_NET and not procfs.own_pids():
            return netns.inode_of(1)
    return own if own == INITIAL_NET else None


def open_all(pids: Collection[int], missing: list[Missing]) -> Iterator[Place]:
    for named in namespaces(pids):
        try:
            yield netns.enter(named.path, partial(_open, named))
        except PermissionError:
            remedy = permission.to_enter(named.path.split("/")[2], "NET_ADMIN")
            because = f"the kernel does not let it ask for the table of {named.where}"
            missing.append(Missing("conntrack", because, remedy))
        except OSError as error:
            because = f"{named.where} cannot be asked: {(error.strerror or str(error)).lower()}"
            missing.append(Missing("conntrack", because, "look again: the process may have ended meanwhile"))


def namespaces(pids: Collection[int]) -> Iterator[Named]:
    """The node's own one first."""
    found: dict[int, Named] = {}
    node = node_inode()
    for pid, where in ((1, "the network namespace of pid 1"), (os.getpid(), OWN)):
        inode = netns.inode_of(pid)
        if inode is not None:
            found.setdefault(inode, Named(inode, netns.path_of(pid), NODE if inode == node else where, True))
    for pid in pids:
        inode = netns.inode_of(pid)
        where = f"the network namespace of pid {pid}"
        if inode is None:
            # Not to be seen, or gone: opening it will tell which.
            found[-pid] = Named(-pid, netns.path_of(pid), where, False, (pid,))
        else:
            known = found.get(inode, Named(inode, netns.path_of(pid), where, False))
            found[inode] = replace(known, pids=(*known.pids, pid))
    yield from found.values()


def _open(named: Named) -> Place:
    """Called in the namespace."""
    netfilter = ctnetlink.open_socket()
    try:
        before = replace(conntrack_stats.ask(netfilter, named.netns), where=named.where)
        began_s = time.monotonic()
        rules = conntrack_rules.read(netfilter)
        return Place(named, netfilter, before, began_s, conntrack_settings.read(), rules)
    except BaseException:
        netfilter.close()
        raise


def again(place: Place) -> NamespaceTable:
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


def find(place: Place, flow: Tuple) -> Entry | None:
    entry = ctnetlink.find(place.netfilter, flow) or ctnetlink.find(place.netfilter, flow.reversed())
    if entry is None and place.before.count:
        # In another zone, perhaps.
        entry = next((one for one in known(place, flow.source) if one.is_of(flow)), None)
    return entry


def known(place: Place, address: bytes) -> tuple[Entry, ...]:
    """Entries with this address on either side. Costs a walk through the whole table, so once for each address."""
    if address not in place.from_address:
        place.from_address[address] = tuple(ctnetlink.from_address(place.netfilter, address))
    return place.from_address[address]
