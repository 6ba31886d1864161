"""Celery beats: one that does not wake up any more, and two that run one schedule.

A beat sleeps at most --max-interval (300 s) between two ticks. What nobody has looked at is not called stopped: a
scheduler can be given a longer interval in ways that do not show, and then its call has a timeout.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from stucktrace.collectors import beat_schedule, procfs, usage
from stucktrace.diagnosis.waits import SLEEP_CALLS
from stucktrace.errors import CannotInspect
from stucktrace.facts import Snapshot
from stucktrace.incidents import BeatStopped, BeatTwice
from stucktrace.node.tracker import Tracked

MARGIN_S = 60.0
TOGETHER_S = 300.0
"""The old and the new beat of a deployment may overlap for so long."""
TOGETHER_OPEN_S = 30.0
"""The same where both have the file open."""
COMPARED_EVERY_S = 30.0


@dataclass
class _Beat:
    process: Tracked
    argv: tuple[str, ...]
    switches: int | None
    ran: float
    """When its main thread had last run."""
    longest_s: float
    source: str
    together: dict[Tracked, tuple[float, str, bool]] = field(default_factory=dict)
    """An older beat of the same schedule -> (since when both are there, the file, both have it open)."""


class Beats:
    """What is remembered of each beat. Times are CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._beats: dict[int, _Beat] = {}
        self._compared = 0.0

    def sample(self, now: float, processes: Sequence[Tracked]) -> None:
        """`processes`: the beats among the watched ones."""
        there = set(processes)
        self._beats = {pid: beat for pid, beat in self._beats.items() if beat.process in there}
        for process in processes:
            switches, beat = usage.switches(process.pid), self._beats.get(process.pid)
            if beat is None:
                argv = _argv(process.pid)
                self._beats[process.pid] = _Beat(process, argv, switches, now, *beat_schedule.longest_sleep(argv))
            elif switches is None or switches != beat.switches:
                beat.switches, beat.ran = switches, now

    def overdue(self, now: float) -> list[int]:
        """Those that have not run for longer than they sleep: a look tells why."""
        return [pid for pid, beat in self._beats.items() if now - beat.ran > beat.longest_s + MARGIN_S]

    def stopped(self, pid: int, snapshot: Snapshot, now: float) -> BeatStopped | None:
        """A look at an overdue beat that found nothing stuck: whether anything will wake it."""
        beat, main = self._beats.get(pid), snapshot.main_thread
        if beat is None or pid not in self.overdue(now) or main is None or main.syscall is None:
            return None
        call = main.syscall
        if call.timeout_s is not None or call.endless is False or call.name in SLEEP_CALLS:
            beat.ran = now
            return None
        return BeatStopped(now - beat.ran, beat.longest_s, beat.source, " ".join(beat.argv))

    def ticks(self, pid: int, now: float) -> bool:
        """It has run lately."""
        beat = self._beats.get(pid)
        return beat is not None and now - beat.ran < MARGIN_S

    def twice(self, now: float) -> dict[Tracked, BeatTwice]:
        """The younger of two beats of one schedule -> that."""
        if len(self._beats) < 2:
            return {}
        if now - self._compared >= COMPARED_EVERY_S:
            self._compared = now
            self._compare(now)
        found = {}
        for beat in self._beats.values():
            for older, (since, schedule, both_open) in beat.together.items():
                if older.pid in self._beats and now - since >= (TOGETHER_OPEN_S if both_open else TOGETHER_S):
                    text = " ".join(beat.argv)
                    found[beat.process] = BeatTwice(older.pid, now - since, schedule, both_open, text)
        return found

    def _compare(self, now: float) -> None:
        beats = sorted(self._beats.values(), key=lambda beat: (beat.process.start_time, beat.process.pid))
        plans = {beat.process: beat_schedule.read(beat.process.pid, beat.argv) for beat in beats}
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        for older, younger in combinations(beats, 2):
            began = booted + younger.process.start_time / procfs.TICKS_PER_SECOND
            shared = beat_schedule.same(plans[older.process], plans[younger.process], began)
            if shared is None:
                younger.together.pop(older.process, None)
            else:
                since, _, _ = younger.together.get(older.process, (now, "", False))
                younger.together[older.process] = since, *shared


def _argv(pid: int) -> tuple[str, ...]:
    try:
        return procfs.read_argv(pid)
    except CannotInspect:
        return ()
