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

from stucktrace.collectors import ctnetlink
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
"""Expressions that hook conntrack."""
XT_TRACKING = frozenset(
    {
        *("conntrack", "state", "connmark", "connbytes", "connlimit", "connlabel"),
        *("CONNMARK", "MASQUERADE", "SNAT", "DNAT", "REDIRECT"),
    }
)
XT_EXEMPTING = frozenset({"CT", "NOTRACK"})
LEGACY = Path("/proc/net/ip_tables_names"), Path("/proc/net/ip6_tables_names")


@dataclass(frozen=True)
class Rules:
    """What the rules of a namespace do with connection tracking."""

    tracks: bool
    translates: bool
    exempts: bool
    """A rule exempts packets, or a raw table of iptables-legacy may hold one."""


def read(netfilter: socket.socket) -> Rules:
    """In the namespace of the calling thread, in which `netfilter` was opened. Never raises."""
    used, chains = set(), set()
    try:
        if nf_tables_is_there():
            used = set(_expressions(netfilter))
            chains = set(_chain_types(netfilter))
    except OSError:
        pass
    legacy = _legacy_tables()
    translates = "nat" in chains or "nat" in legacy
    return Rules(
        tracks=translates or bool(used & (TRACKING | XT_TRACKING)),
        translates=translates,
        exempts="notrack" in used or bool(used & XT_EXEMPTING) or "raw" in legacy,
    )


def _expressions(netfilter: socket.socket) -> Iterator[str]:
    for _, body in ctnetlink.ask(netfilter, ctnetlink.NF_TABLES, GETRULE, 0, b"", dump=True):
        yield from names(dict(attributes(body)).get(RULE_EXPRESSIONS, b""))


def names(expressions: bytes) -> Iterator[str]:
    """The names of a rule's expressions; for those of iptables (xt) the match's or target's own."""
    for _, expression in attributes(expressions):
        parts = dict(attributes(expression))
        name = _text(parts, EXPRESSION_NAME)
        if name in ("match", "target"):
            name = _text(dict(attributes(parts.get(EXPRESSION_DATA, b""))), XT_NAME)
        yield name


def _chain_types(netfilter: socket.socket) -> Iterator[str]:
    for _, body in ctnetlink.ask(netfilter, ctnetlink.NF_TABLES, GETCHAIN, 0, b"", dump=True):
        yield _text(dict(attributes(body)), CHAIN_TYPE)


def _text(parts: Mapping[int, bytes], kind: int) -> str:
    return parts.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def _legacy_tables() -> set[str]:
    found: set[str] = set()
    for path in LEGACY:
        try:
            # Of the calling thread's namespace, not of the process's.
            found.update(Path(str(path).replace("/proc/", "/proc/thread-self/", 1)).read_text().split())
        except OSError:
            continue
    return found


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
