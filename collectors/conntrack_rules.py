"""Whether anything in a network namespace makes the kernel track connections, translates them, or exempts some.

Source: nf_tables chains and rules over netlink, for nft and iptables-nft; /proc/net/ip_tables_names and
ip6_tables_names for iptables-legacy, whose tables say that they are in use but not what is in them. Nothing is asked of
a subsystem that is not loaded: asking would load it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stucktrace.collectors import ctnetlink, nft_rules
from stucktrace.collectors.netlink import attributes
from stucktrace.collectors.nft_rules import (
    EXPRESSION_DATA,
    EXPRESSION_NAME,
    GETCHAIN,
    GETRULE,
    RULE_EXPRESSIONS,
)

CHAIN_TYPE = 7
XT_NAME = 1
"""NFTA_MATCH_NAME, NFTA_TARGET_NAME."""
TRACKING = frozenset({"ct", "nat", "masq", "redir", "connlimit", "synproxy", "flow_offload"})
"""Expressions, and types of chains, that hook conntrack."""
XT_TRACKING = frozenset(
    {
        *("conntrack", "state", "connmark", "connbytes", "connlimit", "connlabel"),
        *("CONNMARK", "MASQUERADE", "SNAT", "DNAT", "REDIRECT"),
    }
)
EXEMPTING = frozenset({"notrack", "CT", "NOTRACK", "raw"})
"""Expressions, targets, and the table of iptables-legacy that may hold such targets."""
VERSIONS = {nft_rules.INET: (4, 6), nft_rules.IPV4: (4,), nft_rules.IPV6: (6,)}
"""Table family -> versions of IP."""
LEGACY = {4: Path("/proc/thread-self/net/ip_tables_names"), 6: Path("/proc/thread-self/net/ip6_tables_names")}
"""Of the calling thread's namespace."""


@dataclass(frozen=True)
class Rules:
    """What the rules of a namespace do with connection tracking."""

    tracks: frozenset[int]
    """For IPv4 (4) and IPv6 (6): something asks for it. What else is tracked, entries tell."""
    translates: bool
    exempts: bool
    """A rule exempts packets, or a raw table of iptables-legacy may hold one."""
    opaque: bool = False
    """There are tables of iptables-legacy, whose rules were not read."""


def read(netfilter: socket.socket) -> Rules:
    """In the namespace of the calling thread, in which `netfilter` was opened. Never raises."""
    found: set[tuple[int, str]] = set()
    try:
        if nf_tables_is_there():
            found.update(_expressions(netfilter))
            found.update(_chain_types(netfilter))
    except OSError:
        pass
    legacy = {(version, table) for version, path in LEGACY.items() for table in _tables(path)}
    return Rules(
        frozenset(version for version, name in found | legacy if name in TRACKING | XT_TRACKING),
        any(name == "nat" for _, name in found | legacy),
        any(name in EXEMPTING for _, name in found | legacy),
        bool(legacy),
    )


def _expressions(netfilter: socket.socket) -> Iterator[tuple[int, str]]:
    for family, body in ctnetlink.ask(netfilter, ctnetlink.NF_TABLES, GETRULE, 0, b"", dump=True):
        for name in names(dict(attributes(body)).get(RULE_EXPRESSIONS, b"")):
            yield from ((version, name) for version in VERSIONS.get(family, ()))


def names(expressions: bytes) -> Iterator[str]:
    """The names of a rule's expressions; for those of iptables (xt) the match's or target's own."""
    for _, expression in attributes(expressions):
        parts = dict(attributes(expression))
        name = _text(parts, EXPRESSION_NAME)
        if name in ("match", "target"):
            name = _text(dict(attributes(parts.get(EXPRESSION_DATA, b""))), XT_NAME)
        yield name


def _chain_types(netfilter: socket.socket) -> Iterator[tuple[int, str]]:
    for family, body in ctnetlink.ask(netfilter, ctnetlink.NF_TABLES, GETCHAIN, 0, b"", dump=True):
        kind = _text(dict(attributes(body)), CHAIN_TYPE)
        yield from ((version, kind) for version in VERSIONS.get(family, ()))


def _text(parts: Mapping[int, bytes], kind: int) -> str:
    return parts.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def _tables(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


@cache
def nf_tables_is_there() -> bool:
    """It is loaded, or built into this kernel."""
    try:
        return any(line.startswith(b"nf_tables ") for line in Path("/proc/modules").read_bytes().splitlines())
    except FileNotFoundError:
        # A kernel without modules has it or not: asking loads nothing.
        return True
    except OSError:
        return False
