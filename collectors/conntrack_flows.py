"""The agent's memory of conntrack entries (conntrack_memory.py), kept up by a thread of its own beside the loop.

Every few seconds, at once for new processes, within a share of one core; the kernel's events are heard as they come.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial

from stucktrace.collectors import conntrack_hooks
from stucktrace.collectors.conntrack import Sighting
from stucktrace.collectors.conntrack_memory import Lost, Memory
from stucktrace.collectors.ctnetlink import Tuple
from stucktrace.facts import ConntrackFact, Missing

EVERY_S, NEW_PROCESSES_AFTER_S = 10.0, 1.0
SHARE = 0.005
"""Of one core at most."""
CLOSE_S = 1.0


class Flows:
    """As `conntrack.Sightings`. `wake` is called when there is news."""

    def __init__(self, wake: Callable[[], None], hooks: conntrack_hooks.Stream | None = None) -> None:
        self._wake = wake
        self._memory = Memory(self._lose, hooks)
        self._news: queue.SimpleQueue[Lost] = queue.SimpleQueue()
        self._fresh: tuple[tuple[int, ConntrackFact], ...] = ()
        self._said: set[Missing] = set()
        self._pids: frozenset[int] = frozenset()
        self._thread: threading.Thread | None = None
        self._poke = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = self._soon = False
        self._next_s = self._not_before_s = 0.0

    def watch(self, pids: Collection[int]) -> None:
        """Whose connections are followed. The first call begins it: what is there then is known when it returns."""
        wanted = frozenset(pids)
        new, self._pids = wanted - self._pids, wanted
        if self._thread is None:
            self._round()
            self._thread = threading.Thread(target=self._run, name="conntrack", daemon=True)
            self._thread.start()
        elif new:
            self._soon = True
            os.eventfd_write(self._poke, 1)

    @property
    def means(self) -> str:
        """What tells of an entry's end as it happens."""
        return self._memory.means

    @property
    def lost(self) -> frozenset[int]:
        """Sockets of which an entry is gone."""
        return self._memory.lost

    def of(self, inode: int, flow: Tuple) -> tuple[Sighting, ...]:
        """Where the entry of this connection was seen."""
        return self._memory.of(inode, flow)

    @property
    def facts(self) -> tuple[ConntrackFact, ...]:
        """Every table with entries; `window_drop` since it was read before."""
        return self._memory.facts

    @property
    def overruns(self) -> int:
        """How often the kernel dropped events."""
        return self._memory.overruns

    def news(self) -> list[Lost]:
        """What was lost since the last call; never waits."""
        found: list[Lost] = []
        with suppress(queue.Empty):
            while True:
                found.append(self._news.get_nowait())
        return found

    def readings(self) -> tuple[tuple[int, ConntrackFact], ...]:
        """(a watched process whose connections it concerns, table) of each table read since the last call."""
        fresh, self._fresh = self._fresh, ()
        return fresh

    def unsaid(self) -> tuple[Missing, ...]:
        """What it may not do; each is given once."""
        new = tuple(missing for missing in self._memory.missing if missing not in self._said)
        self._said.update(new)
        return new

    def _lose(self, lost: Lost) -> None:
        self._news.put(lost)
        self._wake()

    def close(self) -> None:
        self._closing = True
        os.eventfd_write(self._poke, 1)
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not self._closing:
            poll = select.poll()
            poll.register(self._poke, select.POLLIN)
            for fd in self._memory.fds():
                poll.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(max(0.0, self._next_s - time.monotonic()) * 1000)}
            if self._poke in ready:
                os.eventfd_read(self._poke)
            if self._soon:
                self._soon = False
                self._next_s = min(self._next_s, max(time.monotonic() + NEW_PROCESSES_AFTER_S, self._not_before_s))
            self._guarded(partial(self._memory.listen, ready))
            if time.monotonic() >= self._next_s:
                self._round()
        self._memory.close()

    def _round(self) -> None:
        """One round, and when the next one is due."""
        began = time.thread_time()
        self._guarded(partial(self._memory.round, self._pids))
        self._fresh = self._memory.concerned
        now = time.monotonic()
        self._not_before_s = now + (time.thread_time() - began) / SHARE
        self._next_s = max(now + EVERY_S, self._not_before_s)

    def _guarded(self, work: Callable[[], None]) -> None:
        """What fails costs this once only."""
        try:
            work()
        except Exception as error:
            because = f"internal error, {type(error).__name__}: {error}"[:300]
            self._memory.missing = (Missing("conntrack", because, "report this"),)
