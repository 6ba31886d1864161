"""Brings every alert to every sink: one thread and one queue a sink, so that none waits for another, nor the loop.

What a sink has not taken yet is kept on disk where there is a directory for it (spool.py), else in memory. Both are
bounded: the oldest fall out, are counted, and it is said. Timers are CLOCK_MONOTONIC: a clock step moves no retry.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stucktrace.output import OutputFailed
from stucktrace.sinks.backlog import Backlog
from stucktrace.sinks.lane import Lane
from stucktrace.sinks.sink import Item, Sink, SinkDown, SinkRefused, SinkStatus, pack
from stucktrace.sinks.spool import Spool, lock

__all__ = ["Delivery", "Item", "Sink", "SinkDown", "SinkRefused", "SinkStatus"]

NEVER_SPOOLED = "stdout"
SPOOL_RETRY_S = 10.0
"""How often a disk that refused is tried again while something waits in memory."""


class Delivery:
    def __init__(
        self, sinks: Sequence[Sink], spool_dir: Path | None, spool_bytes: int, complain: Callable[[str, str], None]
    ) -> None:
        """Threads start, and what an earlier process left in `spool_dir` is delivered first. `spool_bytes` is each
        sink's bound. `complain(message, remedy)` is called from any thread. CannotInspect when another agent uses the
        directory."""
        self._complain = complain
        self._spool_dir = spool_dir
        self._said_unusable = False
        self._lock = self._locked()
        self._ending = False
        self._added = threading.Event()
        self._lanes = [Lane(sink, Backlog(self._spool(sink.name), spool_bytes), complain) for sink in sinks]
        self._keeper = threading.Thread(target=self._keep, name="spool", daemon=True)
        self._keeper.start()

    def _locked(self) -> int | None:
        try:
            return lock(self._spool_dir) if self._spool_dir else None
        except OSError as error:
            self._unusable(error)
            return None

    def _spool(self, name: str) -> Spool | None:
        if self._spool_dir is None or self._lock is None or name == NEVER_SPOOLED:
            return None
        try:
            return Spool(self._spool_dir / name)
        except OSError as error:
            self._unusable(error)
            return None

    def _unusable(self, error: OSError) -> None:
        if not self._said_unusable:
            self._said_unusable = True
            self._complain(
                f"the spool {self._spool_dir}: {_why(error)}; what the sinks do not take is kept in memory only",
                "give the agent a directory that it can write",
            )

    def put(self, item: Item) -> None:
        """Gives it to every sink; never waits and never raises."""
        try:
            data = pack(item)
        except Exception as error:
            self._complain(f"an alert could not be packed: {type(error).__name__}: {error}", "report this")
            return
        for lane in self._lanes:
            lane.put(data)
        self._added.set()

    def _keep(self) -> None:
        failing = False
        while True:
            self._added.wait(SPOOL_RETRY_S if failing else None)
            self._added.clear()
            ending = self._ending
            errors = [error for lane in self._lanes if (error := lane.save())]
            if errors and not failing:
                self._complain(
                    f"the spool {self._spool_dir}: {_why(errors[0])}; new alerts wait in memory meanwhile",
                    "make room there, or see why it cannot be written",
                )
            elif failing and not errors:
                self._complain(f"the spool {self._spool_dir} works again", "")
            failing = bool(errors)
            if ending:
                return

    @property
    def failed(self) -> OutputFailed | None:
        """Why stdout is broken, if it is."""
        return next((lane.failed for lane in self._lanes if lane.failed), None)

    def status(self) -> dict[str, SinkStatus]:
        return {lane.name: lane.status for lane in self._lanes}

    def drain(self, deadline_s: float) -> None:
        """Every sink gets one more chance to take what waits for it; then, or after the deadline, it is over."""
        end = time.monotonic() + deadline_s
        for lane in self._lanes:
            lane.end()
        for lane in self._lanes:
            lane.join(end - time.monotonic())
        self._ending = True
        self._added.set()
        self._keeper.join(max(0.5, end - time.monotonic()))
        for lane in self._lanes:
            pending, unsaved = lane.backlog.pending, lane.backlog.unsaved
            if lane.failed or not pending:
                continue
            kept = (
                f"; {pending - unsaved} are in the spool and are sent after the next start" if pending - unsaved else ""
            )
            lost = f"; {unsaved} are lost" if unsaved else ""
            self._complain(f"{lane.name}: {pending} alerts could not be delivered{kept}{lost}", "")
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
