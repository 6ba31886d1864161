"""What `stucktrace conntrack` looks at: a network namespace's table and settings, and a connection's entries."""

from __future__ import annotations

from dataclasses import dataclass

from stucktrace.facts.network import ConntrackFact, SocketFact

TRACKED, ABSENT, NOT_TRACKED, UNKNOWN = "tracked", "absent", "not-tracked", "unknown"
"""What a namespace says of a connection. ABSENT: it has no entry where it should. NOT_TRACKED: nothing is tracked there
that could be it. UNKNOWN: no entry, and it may be that it needs none (another way, or exempt)."""


@dataclass(frozen=True)
class ConntrackSettings:
    """net.netfilter.nf_conntrack_tcp_* of one network namespace. None: this kernel has no such setting."""

    established_s: int | None = None
    """For how long an entry is kept in which nothing passes."""
    unacknowledged_s: int | None = None
    """The same, while sent data is not acknowledged."""
    max_retrans_s: int | None = None
    """The same, after `max_retrans` retransmissions."""
    max_retrans: int | None = None
    syn_sent_s: int | None = None
    fin_wait_s: int | None = None
    close_wait_s: int | None = None
    loose: int | None = None
    """0: only a SYN makes an entry; else a packet in mid-stream does too."""
    be_liberal: int | None = None
    """0: segments outside the window are INVALID too."""


@dataclass(frozen=True)
class NamespaceTable:
    """The conntrack table of one network namespace, read twice."""

    netns: int
    where: str
    pids: tuple[int, ...]
    """Those of the processes looked at that live there."""
    before: ConntrackFact
    after: ConntrackFact
    window_s: float
    """Between the two."""
    settings: ConntrackSettings
    hooked: bool
    """Something makes the kernel track connections there: an entry, or a rule that asks for it."""
    translates: bool
    """NAT is set up there."""
    exempts: bool
    """A rule there takes packets out of tracking, or there may be one that cannot be read."""


@dataclass(frozen=True)
class FlowEntry:
    """What one namespace says of one connection."""

    netns: int
    where: str
    state: str
    """TRACKED, ABSENT, NOT_TRACKED or UNKNOWN."""
    own: bool
    """It is the namespace that the socket lives in."""
    tcp_state: str = ""
    timeout_s: int | None = None
    """Until it is forgotten, if nothing comes."""
    assured: bool = False
    answered: bool = False
    offloaded: bool = False
    zone: int = 0
    original: tuple[str, str] | None = None
    """(source, target) as the side that opened it sends."""
    reply: tuple[str, str] | None = None
    """(source, target) of the answers: not the reverse where addresses are translated."""
    alike: bool = False
    """ABSENT: another connection between the same two hosts to the same service has its entry there right now."""
    translated: bool = False
    """ABSENT: the entry of such another connection translates addresses, so this one's did."""
    on_way: bool = False
    """ABSENT: its packets go through there for certain."""
    drops_invalid: bool = False
    """ABSENT: a rule that was read drops what conntrack calls INVALID."""


@dataclass(frozen=True)
class Flow:
    """One TCP connection of a process, and its entries."""

    pid: int
    socket: SocketFact
    entries: tuple[FlowEntry, ...]
