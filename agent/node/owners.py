"""Which of the watched processes hold a socket: for events that name a socket and no process.

The fd tables are searched when an unknown inode comes, never for more than a hundredth of the time; what is found to
be nobody's here is not searched for again for a while.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress

from stucktrace.collectors import holders
from stucktrace.errors import StucktraceError

SEARCH_EVERY_S = 0.5
SHARE = 100
STRANGER_S = 60.0
MOST_STRANGERS = 10_000


class Owners:
    def __init__(self) -> None:
        self._holders: dict[int, tuple[int, ...]] = {}
        self._strangers: dict[int, float] = {}
        """Inodes that nobody here holds -> until when that is believed."""
        self._asked: set[int] = set()
        self._next = 0.0

    def ask(self, inodes: Iterable[int]) -> None:
        """These are looked for at the next search."""
        self._asked.update(inodes)

    def found(self, pids: Collection[int], now: float) -> dict[int, tuple[int, ...]]:
        """Inode -> pids that hold it, of all that were asked for and can be answered now."""
        self._strangers = {inode: until for inode, until in self._strangers.items() if until > now}
        self._asked -= self._strangers.keys()
        if self._asked - self._holders.keys() and now >= self._next:
            self._search(pids, now)
        answered = {inode: self._holders[inode] for inode in self._asked if inode in self._holders}
        self._asked -= answered.keys()
        return answered

    def _search(self, pids: Collection[int], now: float) -> None:
        began = time.monotonic()
        found: defaultdict[int, list[int]] = defaultdict(list)
        for pid in pids:
            with suppress(OSError, StucktraceError):
                for inode in holders.sockets_of(pid):
                    found[inode].append(pid)
        self._holders = {inode: tuple(owners) for inode, owners in found.items()}
        if len(self._strangers) < MOST_STRANGERS:
            self._strangers.update((inode, now + STRANGER_S) for inode in self._asked - self._holders.keys())
        self._asked &= self._holders.keys()
        self._next = now + max(SEARCH_EVERY_S, SHARE * (time.monotonic() - began))
