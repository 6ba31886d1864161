"""What waits for one sink, oldest first and bounded: in memory until it is saved, then on disk alone.

Three threads meet here: one adds, one delivers the first, one saves (disks can be slow). When it grows over its bound
the oldest fall out and are counted.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from stucktrace.sinks.sink import SinkDown
from stucktrace.sinks.spool import Spool, Torn

MEMORY_BYTES = 16 << 20
"""What may wait in memory for one sink."""
PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE})
"""What keeps a file from being read now and says nothing about it."""
BLOCK_BYTES = 4096
"""A file takes whole blocks."""


@dataclass(eq=False)
class Entry:
    number: int
    size_bytes: int
    data: bytes | None
    """None: it is on disk."""
    gone: bool = False


class Backlog:
    def __init__(self, spool: Spool | None, spool_bytes: int) -> None:
        self.changed = threading.Condition()
        self.dropped = 0
        self.size_bytes = 0
        self._spool, self._spool_bytes = spool, spool_bytes
        self._entries: deque[Entry] = deque()
        self._held: deque[Entry] = deque()
        """Those with data in memory."""
        self._held_bytes = 0
        self._current: Entry | None = None
        """It is being delivered and cannot fall out."""
        self._rubbish: deque[int] = deque()
        """Numbers of files that fell out."""
        self._next = 1
        with self.changed:
            for number, size_bytes in spool.found if spool else ():
                self._append(Entry(number, _blocks(size_bytes), None))

    @property
    def pending(self) -> int:
        return len(self._entries)

    @property
    def unsaved(self) -> int:
        """How many a kill -9 would take."""
        return len(self._held)

    def add(self, data: bytes) -> None:
        """Never waits for a disk."""
        with self.changed:
            self._append(Entry(self._next, _blocks(len(data)), data))
            self.changed.notify_all()

    def _append(self, entry: Entry) -> None:
        self._next = entry.number + 1
        self._entries.append(entry)
        self.size_bytes += entry.size_bytes
        if entry.data is not None:
            self._held.append(entry)
            self._held_bytes += len(entry.data)
        while self._held_bytes > MEMORY_BYTES and self._drop_oldest(self._held):
            pass
        while self._spool and self.size_bytes > self._spool_bytes and self._drop_oldest(self._entries):
            pass

    def _drop_oldest(self, entries: deque[Entry]) -> bool:
        oldest = next((entry for entry in entries if entry is not self._current), None)
        if oldest is None:
            return False
        if oldest.data is None:
            self._rubbish.append(oldest.number)
        self._leave(oldest)
        self.dropped += 1
        return True

    def _leave(self, entry: Entry) -> None:
        entry.gone = True
        self._entries.remove(entry)
        self.size_bytes -= entry.size_bytes
        self._release(entry)

    def _release(self, entry: Entry) -> None:
        if entry.data is not None:
            self._held.remove(entry)
            self._held_bytes -= len(entry.data)
            entry.data = None

    def take(self) -> tuple[Entry, bytes] | None:
        """The first one, to be given back by `put_back` or `done`; None when there is none. SinkDown: not now."""
        while True:
            with self.changed:
                if not self._entries:
                    return None
                entry = self._current = self._entries[0]
                data = entry.data
            if data is None and self._spool:
                try:
                    data = self._spool.read(entry.number)
                except OSError as error:
                    if error.errno in PASSING:
                        reason = os.strerror(error.errno or 0)
                        raise SinkDown(f"its spool cannot be read: {reason}", remedy="see the disk") from None
                except Torn:
                    pass
            if data is not None:
                return entry, data
            with self.changed:
                self.dropped += 1
            self.done(entry)

    def put_back(self) -> None:
        with self.changed:
            self._current = None

    def done(self, entry: Entry) -> None:
        """It needs no more delivery."""
        with self.changed:
            on_disk = entry.data is None
            self._leave(entry)
            self._current = None
        if on_disk and self._spool:
            # At once: what is still there after kill -9 is sent again.
            with suppress(OSError):
                self._spool.remove(entry.number)

    def save(self) -> None:
        """Puts on disk what is only in memory, and takes off it what fell out. OSError when the disk refuses."""
        if self._spool is None:
            return
        while self._rubbish:
            self._spool.remove(self._rubbish[0])
            self._rubbish.popleft()
        while True:
            with self.changed:
                entry = next(iter(self._held), None)
                if entry is None or entry.data is None:
                    return
                data = entry.data
            self._spool.write(entry.number, data)
            with self.changed:
                if not entry.gone:
                    self._release(entry)
                    continue
            self._spool.remove(entry.number)


def _blocks(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
