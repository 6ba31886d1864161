"""How full the conntrack table of one network namespace is, and what it had to drop.

Source: ctnetlink GET_STATS (entries, maximum) and GET_STATS_CPU (counters of each CPU, summed here), asked in the
namespace. The maximum is the node's: a namespace has no table of its own beyond its count. Only questions are sent.
"""

from __future__ import annotations

import socket

from stucktrace.collectors import ctnetlink, netns
from stucktrace.collectors.ctnetlink import CTNETLINK, number
from stucktrace.collectors.netlink import attributes
from stucktrace.facts import ConntrackFact

GET_STATS_CPU, GET_STATS = 4, 5
GLOBAL_ENTRIES, GLOBAL_MAXIMUM = 1, 2
COUNTERS = {
    2: "found",
    4: "invalid",
    9: "insert_failed",
    10: "drop",
    11: "early_drop",
    12: "error",
    13: "search_restart",
    15: "chain_too_long",
}
"""enum ctattr_stats_cpu -> field."""


def read(pid: int | None = None) -> ConntrackFact | None:
    """The table that the process (None: this one) lives with; None where conntrack is not there.

    OSError where the kernel does not answer: PermissionError without CAP_NET_ADMIN there.
    """
    # Asking would make the kernel load its modules.
    if not ctnetlink.is_there():
        return None
    return _read() if pid is None else netns.inside(pid, _read)


def _read() -> ConntrackFact:
    with ctnetlink.open_socket() as netfilter:
        return ask(netfilter)


def ask(netfilter: socket.socket, inode: int | None = None) -> ConntrackFact:
    """As a socket tells it that was opened in the namespace with this inode (None: the calling thread's)."""
    table: dict[int, int] = {}
    for _, body in ctnetlink.ask(netfilter, CTNETLINK, GET_STATS, 0, b"", dump=False):
        table.update((kind, number(value)) for kind, value in attributes(body))
    counters = dict.fromkeys(COUNTERS.values(), 0)
    for _, body in ctnetlink.ask(netfilter, CTNETLINK, GET_STATS_CPU, 0, b"", dump=True):
        for kind, value in attributes(body):
            if kind in COUNTERS and len(value) == 4:
                counters[COUNTERS[kind]] += number(value)
    if inode is None:
        inode = netns.inode_of("thread-self") or 0
    return ConntrackFact(
        inode,
        table.get(GLOBAL_ENTRIES, 0),
        table.get(GLOBAL_MAXIMUM),
        found=counters["found"],
        invalid=counters["invalid"],
        insert_failed=counters["insert_failed"],
        drop=counters["drop"],
        early_drop=counters["early_drop"],
        error=counters["error"],
        search_restart=counters["search_restart"],
        chain_too_long=counters["chain_too_long"],
    )
