"""What the agent itself costs, and when it does less so as not to hurt the node.

CPU: getrusage of the process and of its ended children (py-spy runs as one). Memory: /proc/self/statm.
"""

from __future__ import annotations

import resource
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from stucktrace.collectors import bcc
from stucktrace.collectors.procfs import PAGE_BYTES
from stucktrace.settings import Settings

NORMAL, RARER, RARE_REPEATS = 0, 1, 2
INTERVAL_FACTOR = (1, 4, 4)
"""By level: how much longer the time between two glances is."""
SAID = (
    "back inside its own budget: everything is done again",
    "over its own budget: it looks four times less often",
    "still over its own budget: a process whose alert is open is examined once a minute",
)
"""By level: what the agent says when it gets there."""
WINDOW_S = 30.0
"""CPU time is judged over this time, and a new level stands at least for so long: a burst is no load."""
CALM_CPU = 0.2
"""A level ends below this share of the CPU budget: looking four times as often again then stays inside it."""
CALM_MEMORY = 0.9


@dataclass(frozen=True)
class Usage:
    cpu_s: float
    """Total."""
    cpu_share: float
    """Of one core, over the last WINDOW_S."""
    rss_bytes: int
    level: int


def shed_level(cpu_share: float, rss_bytes: int, settings: Settings, previous: int) -> int:
    """One level up while over a budget, one down when well below both. Pure."""
    if cpu_share > settings.cpu_budget or rss_bytes > settings.memory_budget_bytes:
        return min(previous + 1, RARE_REPEATS)
    calm = cpu_share < CALM_CPU * settings.cpu_budget and rss_bytes < CALM_MEMORY * settings.memory_budget_bytes
    return max(previous - 1, NORMAL) if calm else previous


class SelfWatch:
    def __init__(self, now: float) -> None:
        """`now`, here and below: CLOCK_MONOTONIC. What was spent before is start-up, and counts for the total only."""
        self._samples = deque([(now, cpu_s() - bcc.spent_s())])
        self._level = NORMAL
        self._changed_s = float("-inf")

    def look(self, now: float, settings: Settings) -> Usage:
        """Call it about once a second."""
        spent_s, rss = cpu_s(), rss_bytes()
        # Compiling is part of beginning, though it is begun when it is needed.
        lasting_s = spent_s - bcc.spent_s()
        self._samples.append((now, lasting_s))
        while len(self._samples) > 2 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()
        began_s, before_s = self._samples[0]
        share = (lasting_s - before_s) / max(WINDOW_S, now - began_s)
        if now - self._changed_s >= WINDOW_S:
            level = shed_level(share, rss, settings, self._level)
            if level != self._level:
                self._level, self._changed_s = level, now
        return Usage(spent_s, share, rss, self._level)


def cpu_s() -> float:
    """CPU time so far, with that of ended children."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in used)


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
