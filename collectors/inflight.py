"""Which threads of many processes have been in one wait for too long: a glance at hundreds of processes each tick.

From the iterator of bpf/inflight.bpf.c, which reports only those threads; without BPF from /proc, where every look
reads all threads and so has to be a rarer one. A wait is one sleep, or short sleeps in the same call on the same first
argument.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from ctypes import c_uint32
from dataclasses import dataclass, field
from typing import Protocol

from stucktrace.collectors import threads
from stucktrace.collectors.events import InflightLimit, InflightMute, InflightRecord, split
from stucktrace.collectors.kernel import Kernel

OBJECT = PROGRAM = "inflight"


@dataclass(frozen=True)
class Limit:
    """When a process's waits are reported."""

    after_s: float
    skip_main: bool
    """The main thread is not: its heartbeat tells."""


@dataclass(frozen=True)
class Waiting:
    """A thread that has been in one wait for too long."""

    pid: int
    tid: int
    wait_s: float
    """Since the wait began, over any number of short sleeps."""
    sleep_s: float
    """Since the present sleep began."""
    kernel_tid: int
    since_ns: int
    slept_at_ns: int
    now_ns: int
    """These three by the scan's own clock."""


class Scan(Protocol):
    """A means to look at all watched processes at once."""

    def watch(self, limits: Mapping[int, Limit]) -> None:
        """Chooses the processes to look at."""

    def look(self) -> list[Waiting]:
        """Those in a wait that is over its limit and not muted."""

    def mute(self, waiting: Waiting, seconds: float, *, this_sleep: bool) -> None:
        """Does not report this wait for so long; with `this_sleep` not before the thread has woken up."""


class KernelScan:
    """By BPF. BpfError from every method when the kernel refuses."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._limits: dict[int, Limit] = {}
        kernel.load(OBJECT)

    def watch(self, limits: Mapping[int, Limit]) -> None:
        known = self._kernel.load(OBJECT).map("limits")
        for pid in self._limits.keys() - limits.keys():
            known.delete(c_uint32(pid))
        for pid, limit in limits.items():
            if self._limits.get(pid) != limit:
                known.update(c_uint32(pid), InflightLimit(int(limit.after_s * 1e9), limit.skip_main, 0))
        self._limits = dict(limits)

    def look(self) -> list[Waiting]:
        found = []
        data = self._kernel.iterate_over_node(OBJECT, PROGRAM)
        for kind, offset in split(data):
            if kind == InflightRecord.KIND:
                record = InflightRecord.from_buffer_copy(data, offset)
                found.append(
                    Waiting(
                        record.pid,
                        record.tid,
                        (record.now_ns - record.since_ns) / 1e9,
                        max(0, record.now_ns - record.slept_at_ns) / 1e9,
                        record.kernel_tid,
                        record.since_ns,
                        record.slept_at_ns,
                        record.now_ns,
                    )
                )
        return found

    def mute(self, waiting: Waiting, seconds: float, *, this_sleep: bool) -> None:
        until_ns = waiting.now_ns + int(seconds * 1e9)
        mute = InflightMute(waiting.slept_at_ns if this_sleep else 0, waiting.since_ns, until_ns)
        self._kernel.load(OBJECT).map("mutes").update(c_uint32(waiting.kernel_tid), mute)


@dataclass
class _Wait:
    call: tuple[int, int]
    since_ns: int
    switches: int | None
    slept_at_ns: int
    muted_sleep: bool = False
    muted_until_ns: int = 0
    seen: int = field(default=0)


class ProcScan:
    """From /proc alone; what BPF remembers is remembered here."""

    def __init__(self) -> None:
        self._limits: Mapping[int, Limit] = {}
        self._waits: dict[tuple[int, int], _Wait] = {}
        self._looks = 0

    def watch(self, limits: Mapping[int, Limit]) -> None:
        self._limits = limits

    def look(self) -> list[Waiting]:
        self._looks += 1
        found = []
        now_ns = time.monotonic_ns()
        for pid, facts in threads.collect(tuple(self._limits), None).items():
            limit = self._limits[pid]
            for thread in facts:
                key = pid, thread.tid
                if thread.syscall is None or thread.blocked_s is None or (limit.skip_main and pid == thread.tid):
                    if key in self._waits:
                        self._waits[key].seen = self._looks
                    continue
                wait = self._seen(key, (thread.syscall.number, thread.syscall.args[0]), thread.switches, now_ns)
                if wait.slept_at_ns == 0:
                    wait.slept_at_ns = now_ns - int(thread.blocked_s * 1e9)
                wait.since_ns = min(wait.since_ns, wait.slept_at_ns)
                if now_ns - wait.since_ns < limit.after_s * 1e9 or wait.muted_sleep or now_ns < wait.muted_until_ns:
                    continue
                wait_s, sleep_s = (now_ns - wait.since_ns) / 1e9, (now_ns - wait.slept_at_ns) / 1e9
                found.append(
                    Waiting(pid, thread.tid, wait_s, sleep_s, thread.tid, wait.since_ns, wait.slept_at_ns, now_ns)
                )
        self._waits = {key: wait for key, wait in self._waits.items() if wait.seen == self._looks}
        return found

    def _seen(self, key: tuple[int, int], call: tuple[int, int], switches: int | None, now_ns: int) -> _Wait:
        wait = self._waits.get(key)
        if wait is None or wait.call != call:
            wait = self._waits[key] = _Wait(call, now_ns, switches, 0)
        elif wait.switches != switches or switches is None:
            wait.switches, wait.slept_at_ns, wait.muted_sleep = switches, 0, False
        wait.seen = self._looks
        return wait

    def mute(self, waiting: Waiting, seconds: float, *, this_sleep: bool) -> None:
        wait = self._waits.get((waiting.pid, waiting.tid))
        if wait is not None and wait.since_ns == waiting.since_ns:
            wait.muted_until_ns = waiting.now_ns + int(seconds * 1e9)
            wait.muted_sleep = this_sleep and wait.slept_at_ns == waiting.slept_at_ns
