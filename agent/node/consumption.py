"""What each watched process uses: memory, open files, CPU; sampled every few seconds, with two or three reads each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from stucktrace.collectors import cgroup_memory, cgroups, usage
from stucktrace.collectors.cgroup_memory import CgroupMemory
from stucktrace.incidents import FDS, RSS, Growth
from stucktrace.node import growth
from stucktrace.node.growth import Series
from stucktrace.node.tracker import Tracked

BUSY_SHARE, MAYBE_SHARE = 0.9, 0.2
"""Of one core: busy; busy if it waits for a CPU for the rest of the time."""
BUSY_S = 20.0
LOOK_AGAIN_S, LOOK_AGAIN_AT_MOST_S = 10.0, 600.0
"""How soon a busy process is worth another look: at first, and later."""
LOOKS_BEFORE_REST = 3


@dataclass
class _Used:
    sample: usage.Sample
    at: float
    rss: Series = field(default_factory=lambda: Series(growth.MEMORY_EVERY_S))
    fds: Series = field(default_factory=lambda: Series(growth.FDS_EVERY_S))
    wanted_s: float | None = None
    """CPU that its main thread wanted, where that was asked for at the last sample."""
    busy_since: float | None = None
    looks: int = 0
    look_at: float = 0.0
    oom_kills: int | None = None
    """In its cgroup, when it was last sampled."""


class Consumption:
    """Times are CLOCK_MONOTONIC. `count_kills`: the kernel does not tell of OOM kills, so the cgroups' counters do."""

    def __init__(self, *, count_kills: bool) -> None:
        self._count_kills = count_kills
        self._used: dict[Tracked, _Used] = {}

    def sample(self, now: float, processes: Mapping[int, Tracked]) -> None:
        there: dict[Tracked, _Used] = {}
        cgroups_read: dict[tuple[tuple[str, str], ...], CgroupMemory | None] = {}
        for process in processes.values():
            sample = usage.read(process.pid)
            if sample is None or sample.start_time != process.start_time:
                continue
            used = self._used.get(process)
            if used is None:
                used = _Used(sample, now)
            else:
                _busy(process.pid, used, sample, now)
                used.sample, used.at = sample, now
            there[process] = used
            used.rss.add(now, sample.rss_bytes)
            if used.fds.due(now) and (count := usage.fd_count(process.pid)) is not None:
                used.fds.add(now, count)
            if self._count_kills:
                paths = cgroups.read_paths(process.pid)
                if paths not in cgroups_read:
                    cgroups_read[paths] = cgroup_memory.read(paths)
                memory = cgroups_read[paths]
                used.oom_kills = memory.oom_kills if memory is not None else None
        self._used = there

    def last(self, process: Tracked) -> usage.Sample | None:
        used = self._used.get(process)
        return used.sample if used is not None else None

    def oom_kills(self, process: Tracked) -> int | None:
        """Kills in its cgroup up to the last sample."""
        used = self._used.get(process)
        return used.oom_kills if used is not None else None

    def busy(self, now: float) -> set[int]:
        """Who has had a core for itself for a while and is worth a look; a look at the same again comes later."""
        found = set()
        for process, used in self._used.items():
            if used.busy_since is None or now - used.busy_since < BUSY_S or now < used.look_at:
                continue
            used.looks += 1
            factor = 2.0 ** min(10, max(0, used.looks - LOOKS_BEFORE_REST))
            used.look_at = now + min(LOOK_AGAIN_AT_MOST_S, LOOK_AGAIN_S * factor)
            found.add(process.pid)
        return found

    def growths(self, realtime: float) -> Iterator[tuple[Tracked, Growth]]:
        """What grows steadily. `realtime`: CLOCK_REALTIME minus CLOCK_MONOTONIC."""
        for process, used in self._used.items():
            rate = growth.memory_rate(used.rss)
            if rate is not None:
                left, limit, source = _room(process, used.sample.rss_bytes)
                if left is not None and growth.runs_out(used.rss, rate, left):
                    yield process, Growth(RSS, _shown(used.rss, realtime), rate, limit, source)
            if used.fds.values and used.fds.values[-1] > growth.FDS_AT_LEAST:
                files = usage.fd_limit(process.pid)
                rate = growth.fds_rate(used.fds, files)
                if rate is not None:
                    yield process, Growth(FDS, _shown(used.fds, realtime), rate, files, "RLIMIT_NOFILE")


def _busy(pid: int, used: _Used, sample: usage.Sample, now: float) -> None:
    elapsed_s = now - used.at
    if elapsed_s <= 0:
        return
    share, before_s, used.wanted_s = (sample.cpu_s - used.sample.cpu_s) / elapsed_s, used.wanted_s, None
    if MAYBE_SHARE < share <= BUSY_SHARE:
        used.wanted_s = usage.wanted_cpu_s(pid)
        if before_s is not None and used.wanted_s is not None:
            share = (used.wanted_s - before_s) / elapsed_s
    if share > BUSY_SHARE:
        used.busy_since = used.at if used.busy_since is None else used.busy_since
    else:
        used.busy_since = None
        if now > used.look_at:
            used.looks = 0


def _room(process: Tracked, rss_bytes: int) -> tuple[float | None, float | None, str]:
    """(what is left, where its own memory would end then, whose limit that is)."""
    memory = cgroup_memory.read(cgroups.read_paths(process.pid))
    node = usage.node_memory_bytes()
    if memory is not None and memory.limit_bytes is not None and memory.usage_bytes is not None:
        left = max(0, memory.limit_bytes - memory.usage_bytes)
        if node is None or left <= node:
            return left, memory.limit_bytes, f"cgroup {memory.path}"
    return node, rss_bytes + node if node is not None else None, "the node's memory"


def _shown(series: Series, realtime: float) -> tuple[tuple[float, float], ...]:
    return tuple((at + realtime, value) for at, value in zip(series.times, series.values, strict=True))
