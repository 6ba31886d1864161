"""How full the conntrack table of one network namespace is, and what it had to drop.

Source: ctnetlink GET_STATS (entries, maximum) and GET_STATS_CPU (counters of each CPU, summed here), asked in the
namespace. The maximum is the node's: a namespace has no table of its own beyond its count. Only questions are sent.
"""

from __future__ import annotations

import socket
from collections import Counter
from functools import partial

from stucktrace.collectors import ctnetlink, netns
from stucktrace.collectors.ctnetlink import CTNETLINK, number
from stucktrace.collectors.netlink import attributes
from stucktrace.facts import ConntrackFact

GET_STATS_CPU, GET_STATS = 4, 5
GLOBAL_ENTRIES, GLOBAL_MAXIMUM = 1, 2
COUNTERS = {2: "found", 4: "invalid", 9: "insert_failed", 10: "drop", 11: "early_drop", 12: "error"}
"""enum ctattr_stats_cpu -> field."""


def read(pid: int | None = None) -> ConntrackFact | None:
    """The table that the process (None: this one) lives with; None where conntrack is not there.

    OSError where the kernel does not answer: PermissionError without CAP_NET_ADMIN there.
    """
    inode = netns.inode_of("self" if pid is None else pid)
    # Asking would make the kernel load its modules.
    if inode is None or not ctnetlink.is_there():
        return None
    work = partial(_read, inode)
    return work() if pid is None else netns.inside(pid, work)


def _read(inode: int) -> ConntrackFact:
    with ctnetlink.open_socket() as netfilter:
        return ask(netfilter, inode)


def ask(netfilter: socket.socket, inode: int) -> ConntrackFact:
    """As a socket tells it that was opened in the namespace with this inode."""
    table: dict[int, int] = {}
    for _, body in ctnetlink.ask(netfilter, CTNETLINK, GET_STATS, 0, b"", dump=False):
        table.update((kind, number(value)) for kind, value in attributes(body))
    counters: Counter[str] = Counter()
    for _, body in ctnetlink.ask(netfilter, CTNETLINK, GET_STATS_CPU, 0, b"", dump=True):
        for kind, value in attributes(body):
            if kind in COUNTERS and len(value) == 4:
                counters[COUNTERS[kind]] += number(value)
    return ConntrackFact(inode, table.get(GLOBAL_ENTRIES, 0), table.get(GLOBAL_MAXIMUM), **counters)
