"""Which threads of many processes have been in one wait for too long: a glance at hundreds of processes each tick.

From the iterator of bpf/inflight.bpf.c, which reports only those threads; without BPF from /proc, where every look
reads all threads and so has to be a rarer one. A wait is one sleep, or short sleeps in the same call on the same first
argument. A sleep on the word of a mutex that somebody holds is no healthy thread's way to idle, so it is reported soon.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from ctypes import c_uint32
from dataclasses import dataclass, field
from typing import Protocol

from stucktrace.collectors import futexes, threads
from stucktrace.collectors.events import InflightLimit, InflightMute, InflightRecord, split
from stucktrace.collectors.kernel import Kernel
from stucktrace.collectors.libbpf import BpfError
from stucktrace.facts import Missing, ThreadFact

OBJECT = PROGRAM = "inflight"
MOST = 16384
"""Processes that bpf/inflight.bpf.c watches."""


@dataclass(frozen=True)
class Limit:
    """When a process's waits are reported."""

    after_s: float
    rests_in_select: bool
    """The main thread's waits in select are not: it rests there, and its heartbeat tells how it is."""
    lock_after_s: float = 1.0
    """A sleep on a mutex that somebody holds, without a timeout."""


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
    on_lock: bool = False
    """It sleeps, without a timeout, until a mutex is free."""


class Scan(Protocol):
    """A means to look at all watched processes at once."""

    missing: tuple[Missing, ...]
    """What it cannot look at."""

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
        self.missing: tuple[Missing, ...] = ()
        kernel.load(OBJECT)

    def watch(self, limits: Mapping[int, Limit]) -> None:
        known = self._kernel.load(OBJECT).map("limits")
        for pid in self._limits.keys() - limits.keys():
            known.delete(c_uint32(pid))
            del self._limits[pid]
        self.missing = ()
        for pid, limit in limits.items():
            if self._limits.get(pid) == limit:
                continue
            value = InflightLimit(int(limit.after_s * 1e9), int(limit.lock_after_s * 1e9), limit.rests_in_select, 0)
            try:
                known.update(c_uint32(pid), value)
            except BpfError as error:
                if error.errno != errno.E2BIG:
                    raise
                self.missing = (_too_many(len(limits)),)
                break
            self._limits[pid] = limit

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
                        bool(record.on_lock),
                    )
                )
        return found

    def mute(self, waiting: Waiting, seconds: float, *, this_sleep: bool) -> None:
        until_ns = waiting.now_ns + int(seconds * 1e9)
        mute = InflightMute(waiting.slept_at_ns if this_sleep else 0, waiting.since_ns, until_ns)
        self._kernel.load(OBJECT).map("mutes").update(c_uint32(waiting.kernel_tid), mute)


def _too_many(count: int) -> Missing:
    because = f"{count} processes are watched, and {MOST} fit"
    return Missing("the waits of some processes", because, "a narrower --match")


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

    missing: tuple[Missing, ...] = ()

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
                on_lock = _on_mutex(thread)
                if thread.syscall is None or thread.blocked_s is None or _rests(thread, pid, limit):
                    if key in self._waits:
                        self._waits[key].seen = self._looks
                    continue
                wait = self._seen(key, (thread.syscall.number, thread.syscall.args[0]), thread.switches, now_ns)
                if wait.slept_at_ns == 0:
                    wait.slept_at_ns = now_ns - int(thread.blocked_s * 1e9)
                wait.since_ns = min(wait.since_ns, wait.slept_at_ns)
                wait_s, sleep_s = (now_ns - wait.since_ns) / 1e9, (now_ns - wait.slept_at_ns) / 1e9
                # Of a mutex only the present sleep counts: a busy one is waited for again and again, and healthy.
                is_over = wait_s >= limit.after_s or (on_lock and sleep_s >= limit.lock_after_s)
                if not is_over or wait.muted_sleep or now_ns < wait.muted_until_ns:
                    continue
                since_ns, slept_at_ns = wait.since_ns, wait.slept_at_ns
                found.append(
                    Waiting(pid, thread.tid, wait_s, sleep_s, thread.tid, since_ns, slept_at_ns, now_ns, on_lock)
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


def _rests(thread: ThreadFact, pid: int, limit: Limit) -> bool:
    call = thread.syscall.name if thread.syscall else ""
    return limit.rests_in_select and thread.tid == pid and call in ("select", "pselect6")


def _on_mutex(thread: ThreadFact) -> bool:
    return thread.syscall is not None and thread.syscall.name == "futex" and futexes.is_on_mutex(thread.syscall.args)
