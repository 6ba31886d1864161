"""A glance at all watched processes every quarter of a second: which threads have been in one wait for too long.

By BPF; where the kernel refuses that, at the start or later, by /proc, with longer intervals.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from stucktrace.collectors import inflight
from stucktrace.collectors.inflight import Limit, Waiting
from stucktrace.collectors.kernel import Kernel
from stucktrace.collectors.libbpf import BpfError
from stucktrace.node.figures import Durations

PROC_INTERVAL_S = 2.0
"""The shortest time between two glances without BPF."""
SHARE = 20
"""Where a glance is dear there are fewer: it rests for so many times its own length."""


class Glances:
    def __init__(self, kernel: Kernel | None, interval_s: float, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._scan: inflight.Scan = (
            inflight.KernelScan(kernel) if kernel is not None and kernel.iterates else inflight.ProcScan()
        )
        self._by_proc = isinstance(self._scan, inflight.ProcScan)
        self.interval_s = interval_s
        self._next = 0.0
        self.took = Durations()
        self.last_s = 0.0

    def watch(self, limits: Mapping[int, Limit]) -> None:
        """Chooses the processes."""
        try:
            self._scan.watch(limits)
        except BpfError as error:
            self._without_bpf(error)
            self._scan.watch(limits)
        for missing in self._scan.missing:
            self._complain(f"cannot see {missing.what}: {missing.because}; {missing.remedy} helps")

    def _without_bpf(self, error: BpfError) -> None:
        self._complain(f"BPF: {error}; going on with /proc")
        self._scan, self._by_proc = inflight.ProcScan(), True

    def due(self, now: float) -> bool:
        return now >= self._next

    def look(self) -> Mapping[int, tuple[Waiting, ...]]:
        """pid -> its threads that have waited for too long."""
        began = time.monotonic()
        found: defaultdict[int, list[Waiting]] = defaultdict(list)
        try:
            for thread in self._scan.look():
                found[thread.pid].append(thread)
        except BpfError as error:
            self._without_bpf(error)
        took_s = time.monotonic() - began
        self.took, self.last_s = self.took.plus(took_s), took_s
        interval_s = max(self.interval_s, PROC_INTERVAL_S) if self._by_proc else self.interval_s
        self._next = began + max(interval_s, SHARE * took_s)
        return {pid: tuple(threads) for pid, threads in found.items()}

    def mute(self, waiting: Waiting, seconds: float, *, this_sleep: bool) -> None:
        self._scan.mute(waiting, seconds, this_sleep=this_sleep)
