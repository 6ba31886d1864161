"""Whether conntrack still knows a TCP flow that gets no answer, and what a missing entry can prove.

Source: ctnetlink in the target's own network namespace, in ours and in pid 1's (where they differ and may be entered),
and wherever the agent has seen the entry. Nothing is asked where conntrack tracks nothing. A missing entry says nothing
by itself: the flow may take another way, be exempt (notrack), or stand in another zone. So it counts only where the
agent saw it before, or where conntrack tracks a flow like it right now; and it is certain only where a rule that was
read drops whatever has no entry and nothing can give the flow a new one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from socket import socket as NetlinkSocket
from typing import Protocol

from stucktrace.collectors import conntrack_full, conntrack_proc, ctnetlink, netns, nft_rules, permission
from stucktrace.collectors.addresses import endpoint, is_loopback, parse_endpoint
from stucktrace.collectors.ctnetlink import Entry, Tuple
from stucktrace.facts import ConntrackFact, Missing, SocketFact

SYSCTL = Path("/proc/sys/net/netfilter")
PRESENT, ABSENT = "present", "absent"
RECENTLY_S = 1.0
UNKNOWN_RULES = "a firewall rule lets no packet through that belongs to no known connection"
_recently: dict[tuple[int, bytes], tuple[float, tuple[Entry, ...]]] = {}
"""(namespace, address) -> when it was asked for, and its entries: the workers of a host ask for the same."""


@dataclass(frozen=True)
class Sighting:
    """A conntrack table had the entry of a connection."""

    netns: int
    """The namespace's inode."""
    path: str
    """A file that stands for it."""
    where: str
    flow: Tuple
    """The connection as it is seen there: its own address and its peer's."""
    time_s: float
    """CLOCK_MONOTONIC."""


class Sightings(Protocol):
    """What the agent saw of the connections of its processes, by the inode of the socket."""

    @property
    def means(self) -> str:
        """What tells the agent of an entry's end: fentry/..., kprobe/... or ctnetlink."""

    @property
    def lost(self) -> Collection[int]:
        """Sockets of which an entry is gone."""

    def of(self, inode: int, flow: Tuple) -> tuple[Sighting, ...]: ...


@dataclass(frozen=True)
class Answer:
    """What one namespace says about one flow."""

    state: str
    where: str
    assumes: str = ""
    """What "absent" takes for granted; "" where nothing is."""
    entry: Entry | None = None
    seen_s: float | None = None
    flow: Tuple | None = None
    """The connection as it is called there."""


@dataclass(frozen=True)
class Place:
    """A namespace to ask."""

    netns: int
    path: str
    where: str
    pid: int
    """One that lives there; 0: not known."""
    own: bool
    """It is the target's."""
    seen: Mapping[int, Sighting]
    """Inode of a socket -> when its entry was there."""


@dataclass(frozen=True)
class Answers:
    sockets: tuple[SocketFact, ...]
    """The suspects among them with their `conntrack` fields."""
    full: tuple[ConntrackFact, ...] = ()
    """The tables that have no room for the connection that a suspect asks for."""
    missing: tuple[Missing, ...] = ()


def is_suspect(socket: SocketFact, waited_fds: Collection[int], lost: Collection[int] = ()) -> bool:
    """A thread waits on it, and what it sent is being retransmitted, or its entry is known to be gone."""
    retransmits = socket.unacked and socket.timer == "retransmit" and socket.retransmits
    return bool(
        socket.protocol == "tcp"
        and (retransmits or (socket.inode in lost and socket.state == "ESTABLISHED"))
        and not set(socket.fds).isdisjoint(waited_fds)
    )


def collect(
    pid: int, sockets: tuple[SocketFact, ...], waited_fds: Collection[int], sightings: Sightings | None = None
) -> Answers:
    """A namespace that does not answer costs its own answers only."""
    lost = sightings.lost if sightings else ()
    flows = {
        socket.inode: flow for socket in sockets if is_suspect(socket, waited_fds, lost) and (flow := flow_of(socket))
    }
    asking = {socket.inode for socket in sockets if socket.state == "SYN_SENT"}
    known = {inode: sightings.of(inode, flow) for inode, flow in flows.items()} if sightings else {}
    found: dict[int, Answer] = {}
    full: list[ConntrackFact] = []
    missing: list[Missing] = []
    # Behind the target's own namespace the flow has the addresses that were translated there.
    outside = dict(flows)
    for place in _places(pid, known) if flows else ():
        try:
            answers, table = netns.enter(place.path, partial(_look, outside, asking, place))
        except PermissionError:
            table = None
            try:
                answers = _look_by_proc(outside, asking, place)
            except OSError as error:
                missing.append(_unseen(error, place))
                continue
        except OSError as error:
            missing.extend(_missing(error, place.where))
            continue
        full += [table] if table is not None else []
        for inode, answer in answers.items():
            if place.own and answer.entry is not None:
                outside[inode] = as_sent_on(flows[inode], answer.entry)
            found[inode] = max((found.get(inode, answer), answer), key=_weight)
    return Answers(tuple(_with(socket, found.get(socket.inode)) for socket in sockets), tuple(full), tuple(missing))


def _with(socket: SocketFact, answer: Answer | None) -> SocketFact:
    if answer is None:
        return socket
    return replace(
        socket,
        conntrack=answer.state,
        conntrack_where=f"{answer.where}{_alias(socket, answer)}",
        conntrack_assumes=answer.assumes,
        conntrack_seen_s=answer.seen_s,
    )


def _alias(socket: SocketFact, answer: Answer) -> str:
    """How its addresses were translated on the way to the missing entry's place."""
    flow = answer.flow
    if flow is None or flow == flow_of(socket):
        return ""
    return f" (as {endpoint(flow.source, flow.source_port)} -> {endpoint(flow.target, flow.target_port)})"


def _missing(error: OSError, where: str) -> Iterator[Missing]:
    """Nothing for a target that ended, or a kernel without ctnetlink: there is nothing to be had then."""
    if isinstance(error, TimeoutError):
        yield Missing(
            "conntrack", f"the table of {where} could not be searched within a second", "conntrack -L shows it"
        )


def _unseen(error: OSError, place: Place) -> Missing:
    """Neither netfilter nor /proc tells: `error` is what the latter said."""
    because = f"the kernel does not let it ask for entries in {place.where}"
    if error.errno is None:
        because += f", and {error}"
    return Missing("conntrack", because, permission.to_enter(place.pid, "NET_ADMIN"))


def _weight(answer: Answer) -> int:
    """One namespace without the entry is enough to cut the flow, however many others have it."""
    if answer.state == PRESENT:
        return 0
    return 1 if answer.assumes else 2


def flow_of(socket: SocketFact) -> Tuple | None:
    """From its own address to its peer's; None where it has no peer elsewhere."""
    local, remote = parse_endpoint(socket.local), parse_endpoint(socket.remote)
    if local is None or remote is None or len(local[0]) != len(remote[0]) or is_loopback(remote[0]):
        return None
    return Tuple(*local, *remote)


def places(pid: int) -> Iterator[tuple[int, str, str]]:
    """(inode, path, what to call it) of each namespace that every flow of `pid` may cross, its own one first."""
    seen = set()
    for representative, where in (
        (pid, "the target's network namespace"),
        (os.getpid(), "the network namespace that stucktrace runs in"),
        (1, "the network namespace of pid 1"),
    ):
        inode = netns.inode_of(representative)
        if inode is None and representative == pid:
            # Not to be seen: opening it will tell why.
            inode = 0
        if inode is not None and inode not in seen:
            seen.add(inode)
            yield inode, netns.path_of(representative), where


def _places(pid: int, known: Mapping[int, tuple[Sighting, ...]]) -> Iterator[Place]:
    seen: dict[int, dict[int, Sighting]] = {}
    for socket, sightings in known.items():
        for sighting in sightings:
            seen.setdefault(sighting.netns, {})[socket] = sighting
    for inode, path, where in places(pid):
        lives = int(path.split("/")[2])
        yield Place(inode, path, where, lives, lives == pid, seen.pop(inode, {}))
    for inode, there in seen.items():
        one = next(iter(there.values()))
        yield Place(inode, one.path, one.where, 0, False, there)


def _look(
    flows: Mapping[int, Tuple], asking: AbstractSet[int], place: Place
) -> tuple[dict[int, Answer], ConntrackFact | None]:
    """What the namespace of the calling thread says; flows that it says nothing about are left out.

    Of a connection that is being asked for (`asking`) only a full table says anything.
    """
    if netns.inode_of("thread-self") != place.netns:
        # The file stands for another namespace by now.
        return {}, None
    # Asking would make the kernel load its modules: so only where they are and where something is or was tracked.
    if not _sysctl("nf_conntrack_count") and not place.seen:
        return {}, None
    found = {}
    with ctnetlink.open_socket() as netfilter:
        table = conntrack_full.read(netfilter, place.where) if not asking.isdisjoint(flows) else None
        for inode, socket_flow in flows.items():
            seen = place.seen.get(inode)
            flow = seen.flow if seen else socket_flow
            entry = ctnetlink.find(netfilter, flow) or ctnetlink.find(netfilter, flow.reversed())
            if entry is not None:
                found[inode] = Answer(PRESENT, place.where, entry=entry)
            elif inode in asking:
                if table is not None:
                    assumes = "" if place.own else "the connection goes through there"
                    found[inode] = Answer(ABSENT, place.where, assumes)
            else:
                # Where the entry was seen, nobody has to be asked what is tracked there.
                tracked = () if seen else _tracked(netfilter, place.netns, flow.source)
                answer = _absent(flow, tracked, place, seen)
                if answer is not None:
                    found[inode] = answer
    return found, table


def _look_by_proc(flows: Mapping[int, Tuple], asking: AbstractSet[int], place: Place) -> dict[int, Answer]:
    """As `_look`, where netfilter may not be asked. What rules there are is not seen, and so is taken for granted.

    An entry is absent only when a second look does not see it either: a single one can overlook it.
    """
    found: dict[int, Answer] = {}
    read = partial(conntrack_proc.from_address, place.pid)
    for inode, flow in flows.items() if ctnetlink.is_there() else ():
        tracked = _remembered(place.netns or -place.pid, flow.source, read)
        entry = _entry_of(flow, tracked)
        missed = entry is None and inode not in asking and any(one.answered and is_alike(one, flow) for one in tracked)
        if missed:
            entry = _entry_of(flow, read(flow.source))
        if entry is not None:
            zone = f" (zone {entry.zone})" if entry.zone else ""
            found[inode] = Answer(PRESENT, f"{place.where}{zone}", entry=entry)
        elif missed:
            found[inode] = Answer(ABSENT, place.where, UNKNOWN_RULES, flow=flow)
    return found


def _entry_of(flow: Tuple, tracked: tuple[Entry, ...]) -> Entry | None:
    return min((one for one in tracked if one.is_of(flow)), key=lambda one: one.zone, default=None)


def _remembered(inode: int, address: bytes, ask: Callable[[bytes], tuple[Entry, ...]]) -> tuple[Entry, ...]:
    now = time.monotonic()
    known = _recently.get((inode, address))
    if known is None or now - known[0] > RECENTLY_S:
        _recently.clear()
        known = _recently[inode, address] = now, ask(address)
    return known[1]


def _tracked(netfilter: NetlinkSocket, inode: int, address: bytes) -> tuple[Entry, ...]:
    """Entries with this address on either side. Each time costs a walk through the node's whole table."""
    return _remembered(inode, address, lambda wanted: tuple(ctnetlink.from_address(netfilter, wanted)))


def _absent(flow: Tuple, tracked: tuple[Entry, ...], place: Place, seen: Sighting | None) -> Answer | None:
    """No entry in the default zone: what that is worth, by what was and what else is tracked of the flow's address."""
    for entry in tracked:
        if entry.is_of(flow):
            return Answer(PRESENT, f"{place.where} (zone {entry.zone})", entry=entry)
    if seen is None and not any(entry.answered and is_alike(entry, flow) for entry in tracked):
        return None
    if _sysctl("nf_conntrack_tcp_loose") != 0:
        assumes = UNKNOWN_RULES
    elif not nft_rules.drops_invalid(len(flow.source) == 4, own=place.own):
        assumes = "a firewall rule drops what conntrack calls INVALID"
    else:
        assumes = ""
    seen_s = max(0.0, time.monotonic() - seen.time_s) if seen else None
    return Answer(ABSENT, place.where, assumes, seen_s=seen_s, flow=flow)


def is_alike(entry: Entry, flow: Tuple) -> bool:
    """Another connection between the same two hosts to the same service: what holds for it holds for this flow.

    Not less: exemptions (notrack) and routes go by host and by port.
    """
    return any(
        one.source == flow.source
        and one.target == flow.target
        and (one.target_port == flow.target_port or one.source_port == flow.source_port)
        for one in (entry.orig, entry.reply)
    )


def as_sent_on(flow: Tuple, entry: Entry) -> Tuple:
    """The flow's tuple as it leaves the namespace of `entry`, which may translate addresses."""
    return entry.reply.reversed() if entry.orig == flow else entry.orig.reversed() if entry.reply == flow else flow


def _sysctl(name: str) -> int | None:
    """As the calling thread's namespace has it (/proc/sys/net shows that one)."""
    try:
        return int((SYSCTL / name).read_text())
    except (OSError, ValueError):
        return None
