"""Whether conntrack still knows a TCP flow that gets no answer, and what a missing entry can prove.

Source: ctnetlink in the target's own network namespace, in ours and in pid 1's (where they differ and may be entered).
Nothing is asked where conntrack tracks nothing. A missing entry says nothing by itself: the flow may take another way,
be exempt (notrack), or stand in another zone. So it counts only where conntrack tracks a flow like it right now, and
is certain only where a rule that was read drops whatever has no entry and nothing can give the flow a new one.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from stucktrace.collectors import ctnetlink, netns, nft_rules
from stucktrace.collectors.addresses import is_loopback, parse_endpoint
from stucktrace.collectors.ctnetlink import Entry, Tuple
from stucktrace.facts import Missing, SocketFact

SYSCTL = Path("/proc/sys/net/netfilter")
PRESENT, ABSENT = "present", "absent"


@dataclass(frozen=True)
class Answer:
    """What one namespace says about one flow."""

    state: str
    where: str
    assumes: str = ""
    """What "absent" takes for granted; "" where nothing is."""
    entry: Entry | None = None


def is_suspect(socket: SocketFact, waited_fds: Collection[int]) -> bool:
    """A thread waits on it, and what it sent is being retransmitted."""
    return bool(
        socket.protocol == "tcp"
        and socket.unacked
        and socket.timer == "retransmit"
        and socket.retransmits
        and not set(socket.fds).isdisjoint(waited_fds)
    )


def collect(
    pid: int, sockets: tuple[SocketFact, ...], waited_fds: Collection[int]
) -> tuple[tuple[SocketFact, ...], tuple[Missing, ...]]:
    """The same sockets, the suspects among them with their `conntrack` fields.

    A namespace that does not answer costs its own answers only.
    """
    flows = {socket.inode: flow for socket in sockets if is_suspect(socket, waited_fds) and (flow := _flow(socket))}
    found: dict[int, Answer] = {}
    missing: list[Missing] = []
    # Behind the target's own namespace the flow has the addresses that were translated there.
    outside = dict(flows)
    for representative, where in _namespaces(pid) if flows else ():
        own = representative == pid
        try:
            answers = netns.inside(representative, partial(_look, outside, where, own=own))
        except OSError as error:
            missing.extend(_missing(error, where))
            continue
        for inode, answer in answers.items():
            if own and answer.entry is not None:
                outside[inode] = as_sent_on(flows[inode], answer.entry)
            found[inode] = max((found.get(inode, answer), answer), key=_weight)
    return tuple(_with(socket, found.get(socket.inode)) for socket in sockets), tuple(missing)


def _with(socket: SocketFact, answer: Answer | None) -> SocketFact:
    if answer is None:
        return socket
    return replace(socket, conntrack=answer.state, conntrack_where=answer.where, conntrack_assumes=answer.assumes)


def _missing(error: OSError, where: str) -> Iterator[Missing]:
    """Nothing for a target that ended, or a kernel without ctnetlink: there is nothing to be had then."""
    if isinstance(error, TimeoutError):
        yield Missing(
            "conntrack", f"the table of {where} could not be searched within a second", "conntrack -L shows it"
        )
    elif isinstance(error, PermissionError):
        yield Missing(
            "conntrack",
            f"the kernel does not let it ask for entries in {where}",
            "CAP_NET_ADMIN, and CAP_SYS_ADMIN to enter other network namespaces",
        )


def _weight(answer: Answer) -> int:
    """One namespace without the entry is enough to cut the flow, however many others have it."""
    if answer.state == PRESENT:
        return 0
    return 1 if answer.assumes else 2


def _flow(socket: SocketFact) -> Tuple | None:
    local, remote = parse_endpoint(socket.local), parse_endpoint(socket.remote)
    if local is None or remote is None or len(local[0]) != len(remote[0]) or is_loopback(remote[0]):
        return None
    return Tuple(*local, *remote)


def _namespaces(pid: int) -> Iterator[tuple[int, str]]:
    """(a pid that lives there, what to call it) of each namespace to ask, the target's own one first."""
    seen = set()
    for representative, where in (
        (pid, "the target's network namespace"),
        (os.getpid(), "the network namespace that stucktrace runs in"),
        (1, "the network namespace of pid 1"),
    ):
        inode = netns.inode_of(representative)
        if inode is not None and inode not in seen:
            seen.add(inode)
            yield representative, where


def _look(flows: dict[int, Tuple], where: str, *, own: bool) -> dict[int, Answer]:
    """What the namespace of the calling thread says; flows that it says nothing about are left out."""
    # Asking would make the kernel load its modules: so only where they are and where something is tracked.
    if not _sysctl("nf_conntrack_count"):
        return {}
    found = {}
    tracked: dict[bytes, tuple[Entry, ...]] = {}
    with ctnetlink.open_socket() as netfilter:
        for inode, flow in flows.items():
            entry = ctnetlink.find(netfilter, flow) or ctnetlink.find(netfilter, flow.reversed())
            if entry is not None:
                found[inode] = Answer(PRESENT, where, entry=entry)
                continue
            if flow.source not in tracked:
                tracked[flow.source] = tuple(ctnetlink.from_address(netfilter, flow.source))
            answer = _absent(flow, tracked[flow.source], where, own=own)
            if answer is not None:
                found[inode] = answer
    return found


def _absent(flow: Tuple, tracked: tuple[Entry, ...], where: str, *, own: bool) -> Answer | None:
    """No entry in the default zone: what that is worth, by what else is tracked of the flow's own address."""
    for entry in tracked:
        if entry.is_of(flow):
            return Answer(PRESENT, f"{where} (zone {entry.zone})", entry=entry)
    alike = [entry for entry in tracked if entry.answered and is_alike(entry, flow)]
    if not alike:
        return None
    if _sysctl("nf_conntrack_tcp_loose") != 0:
        assumes = "a firewall rule lets no packet through that belongs to no known connection"
    elif not nft_rules.drops_invalid(len(flow.source) == 4, own=own):
        assumes = "a firewall rule drops what conntrack calls INVALID"
    else:
        assumes = ""
    return Answer(ABSENT, where, assumes)


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
