"""A Celery main process whose event loop does not come back to its poll: seen by looks one after another.

Only where nothing else says so: a callback that sits in one blocking call is found by the look itself. A pool without
processes runs its tasks in this very process; there a long callback is a task.
"""

from __future__ import annotations

from dataclasses import dataclass

from stucktrace.diagnosis import loops, vocabulary
from stucktrace.diagnosis.waits import POLL_CALLS
from stucktrace.facts import Frame, Snapshot
from stucktrace.incidents import LoopStalled
from stucktrace.node.tracker import Tracked

LOOKS, SECONDS, GAP_S = 3, 30.0, 90.0
AGAIN_S = 12.0


@dataclass
class _Streak:
    callback: tuple[str, str]
    first: float
    last: float
    looks: int = 1


class Stalls:
    """Times are CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._streaks: dict[Tracked, _Streak] = {}

    def forget(self, process: Tracked) -> None:
        self._streaks.pop(process, None)

    def examined(self, process: Tracked, snapshot: Snapshot, now: float) -> LoopStalled | None:
        """Another look, in which nothing was stuck."""
        callback = standing(process, snapshot)
        streak = self._streaks.get(process)
        if callback is None:
            self.forget(process)
            return None
        own = vocabulary.own_frame(snapshot.frames(snapshot.process.pid))
        key = own.function if own is not None else callback.function, callback.file
        if streak is None or streak.callback != key or now - streak.last > GAP_S:
            self._streaks[process] = _Streak(key, now, now)
            return None
        streak.last, streak.looks = now, streak.looks + 1
        seconds = now - streak.first
        return LoopStalled(streak.looks, seconds) if streak.looks >= LOOKS and seconds >= SECONDS else None

    def turns(self, process: Tracked) -> bool:
        """The last look saw the loop turn."""
        return process not in self._streaks

    def wanted(self, now: float) -> set[int]:
        """Those in a streak, for the next look."""
        return {process.pid for process, streak in self._streaks.items() if now - streak.last >= AGAIN_S}


def standing(process: Tracked, snapshot: Snapshot) -> Frame | None:
    """The callback that the main thread was in during the whole look; None: the loop turned, or that is not known."""
    if process.worker.kind != "celery-main" or process.worker.pool not in ("prefork", ""):
        return None
    main, pid = snapshot.main_thread, snapshot.process.pid
    if main is None or snapshot.window_s <= 0 or not snapshot.activity_complete:
        return None
    if any(entry.call in POLL_CALLS and entry.returns for entry in snapshot.activity_of(pid)):
        return None
    return loops.callback_frame(snapshot, pid)
