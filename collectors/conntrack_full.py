"""A conntrack table without room: it drops the first packet of every new connection, whose SYN then gets no answer.

Source: ctnetlink's statistics, read twice where the table is full: what counts is that it drops right now.
"""

from __future__ import annotations

import socket
import time
from dataclasses import replace

from stucktrace.collectors import conntrack_stats
from stucktrace.facts import ConntrackFact

FULL = 0.99
"""Entries that expire make room for a moment."""
WINDOW_S, EVERY_S = 0.6, 0.1
REMEMBERED_S = 10.0
_reads: dict[int, tuple[float, ConntrackFact]] = {}
"""Namespace -> the first of the reads of the last seconds: one window is enough for many processes."""


def read(netfilter: socket.socket, where: str) -> ConntrackFact | None:
    """The table, when it is full, with what it dropped meanwhile. For a namespace that is asked from within it."""
    last = conntrack_stats.ask(netfilter)
    if last.fill is None or last.fill < FULL:
        return None
    began, first = _reads.get(last.netns, (0.0, last))
    now = time.monotonic()
    if now - began > REMEMBERED_S:
        began, first = _reads[last.netns] = now, last
    while last.drop == first.drop and time.monotonic() < began + WINDOW_S:
        time.sleep(EVERY_S)
        last = conntrack_stats.ask(netfilter)
    return replace(last, where=where, window_drop=max(0, last.drop - first.drop))
