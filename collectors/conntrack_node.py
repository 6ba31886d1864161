"""What the conntrack tables of this node say of the connections of some processes, asked twice with a window between.

Source: CTA GET for each connection in each namespace that it may cross (conntrack_places.py); sock_diag for whether it
lives. No entry counts as an absent one only where this connection must have one: where another connection between the
same hosts has its own, or where its packets go for certain, conntrack is hooked and nothing is exempt.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from stucktrace.collectors import ctnetlink, netns, nft_rules, sock_diag, veth
from stucktrace.collectors.addresses import endpoint
from stucktrace.collectors.conntrack import as_sent_on, flow_of, is_alike
from stucktrace.collectors.conntrack_places import Place, again, find, known, open_all
from stucktrace.collectors.ctnetlink import Entry, Tuple
from stucktrace.facts import Missing, SocketFact
from stucktrace.facts.conntrack import ABSENT, NOT_TRACKED, TRACKED, UNKNOWN, Flow, FlowEntry, NamespaceTable

CONNECTED = frozenset({"ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT1", "FIN_WAIT2", "SYN_SENT"})


@dataclass(frozen=True)
class _Asked:
    """What a namespace said of a connection."""

    place: Place
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


def collect(sockets: Mapping[int, tuple[SocketFact, ...]], pids: Collection[int], window_s: float) -> Seen:
    """`sockets`: those of each process. `pids`: all processes looked at, also those without sockets."""
    missing: list[Missing] = []
    places = list(open_all(pids, missing))
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
        for place in places:
            place.from_address.clear()
        tables = tuple(map(again, places))
        flows = tuple(
            Flow(pid, found, tuple(_confirmed(pid, found, one) for one in said)) for pid, found, said in asked
        )
        return Seen(tables, flows, loopback, tuple(missing))
    finally:
        for place in places:
            place.netfilter.close()


def _ask_all(pid: int, flow: Tuple, found: SocketFact, places: Collection[Place]) -> Iterator[_Asked]:
    """What each namespace says, the process's own one first: behind it the addresses may be translated."""
    own = netns.inode_of(pid)
    home = next((place for place in places if place.named.netns == own), None)
    entry = None
    if home is not None:
        with suppress(OSError):
            entry = find(home, flow)
            yield _Asked(home, flow, _said(home, flow, entry, found, home))
            if entry is not None:
                flow = as_sent_on(flow, entry)
    # Where it goes from there is known, unless it is translated to something unknown.
    start = home if home is not None and (entry is not None or not home.rules.translates) else None
    for place in places:
        if place.named.transit and place is not home:
            with suppress(OSError):
                yield _Asked(place, flow, _said(place, flow, find(place, flow), found, start))


def _said(place: Place, flow: Tuple, entry: Entry | None, found: SocketFact, home: Place | None) -> FlowEntry:
    """`home`: where it comes from; None where it cannot be told how its packets go on from there."""
    own = place is home
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
    version = 4 if len(flow.source) == 4 else 6
    others = known(place, flow.source) if place.before.count else ()
    like_it = [one for one in others if one.answered and is_alike(one, flow)]
    alike = bool(like_it)
    translated = any(one.reply != one.orig.reversed() for one in like_it)
    # Entries of this address tell that it is tracked, whatever asked for that.
    hooked = version in place.rules.tracks or bool(others)
    if not hooked:
        return said if not place.rules.opaque else replace(said, state=UNKNOWN)
    # An entry of a connection that is being closed is let go long before its socket.
    if found.state != "ESTABLISHED":
        return replace(said, state=UNKNOWN)
    on_way = False
    if home is not None and not place.rules.exempts:
        on_way = own or veth.leads_through(home.named.path, place.named.path, flow.target)
    if not alike and not on_way:
        return replace(said, state=UNKNOWN)
    of = len(flow.source) == 4, own
    if of not in place.drops_invalid:
        look = partial(nft_rules.drops_invalid, of[0], own=own)
        place.drops_invalid[of] = netns.enter(place.named.path, look)
    drops_invalid = place.drops_invalid[of]
    return replace(said, state=ABSENT, alike=alike, translated=translated, on_way=on_way, drops_invalid=drops_invalid)


def _ends(one: Tuple) -> tuple[str, str]:
    return endpoint(one.source, one.source_port), endpoint(one.target, one.target_port)


def _confirmed(pid: int, found: SocketFact, asked: _Asked) -> FlowEntry:
    """After the window: an entry counts as absent if it still is, and its connection lives."""
    if asked.said.state != ABSENT:
        return asked.said
    with suppress(OSError):
        entry = find(asked.place, asked.flow)
        if entry is not None:
            return replace(_said(asked.place, asked.flow, entry, found, None), own=asked.said.own)
        if netns.inside(pid, partial(_lives, found)):
            return asked.said
    return replace(asked.said, state=UNKNOWN)


def _lives(found: SocketFact) -> bool:
    flow = flow_of(found)
    assert flow is not None
    with sock_diag.open_socket() as diag:
        now = sock_diag.find_tcp(diag, flow.source, flow.source_port, flow.target, flow.target_port)
        return now is not None and now["inode"] == found.inode and now["state"] == "ESTABLISHED"
