"""What happens to processes, as it happens: exec of anyone; fork, kill, OOM and end of those that are watched.

Source: the kernel's process tracepoints (bpf/lifecycle.bpf.c). A child of a watched process is watched from its first
instruction on, so one that dies at once still tells its status; it stays watched when `watch` names it in time.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Collection
from ctypes import c_uint32
from dataclasses import dataclass

from stucktrace.collectors import libbpf, procfs, threads
from stucktrace.collectors.events import LifeRecord
from stucktrace.collectors.hooks import Hooks
from stucktrace.collectors.kernel import Kernel
from stucktrace.facts import Missing

OBJECT = "lifecycle"
HOOKS = {
    "on_exec": "sched_process_exec",
    "on_fork": "sched_process_fork",
    "on_exit": "sched_process_exit",
    "on_signal": "signal_generate",
    "on_oom": "mark_victim",
}
"""Program -> the tracepoint it sits on."""
MOST = 16384
"""Processes that bpf/lifecycle.bpf.c watches."""
CHILD_WATCHED_S = 60.0
"""How long a watched process's child is watched unasked."""
_EXEC, _FORK, _EXIT, _SIGNAL, _OOM = 1, 2, 3, 4, 5
_KINDS = {_EXEC: "exec", _FORK: "fork", _EXIT: "exit", _SIGNAL: "signal", _OOM: "oom"}


@dataclass(frozen=True)
class LifeEvent:
    """Ids as the tool's own PID namespace has them; 0 where it does not see that process."""

    kind: str
    """exec, fork, exit, abort (SIGABRT was sent), signal (SIGKILL or SIGTERM was sent), oom (chosen to free memory)."""
    time_s: float
    """CLOCK_MONOTONIC."""
    pid: int
    """Of a fork: the child."""
    parent: int = 0
    status: int | None = None
    """Of an exit, as wait(2) tells it."""
    sender: int = 0
    """Of a signal; 0 is the kernel too."""
    command: str = ""
    """The kernel's name of the process (comm); of an exec: the new one."""
    signal: int = 0


class Lifecycle:
    """The hooks, attached until `close`. BpfError when the kernel takes none, or later refuses a question.

    `missing` names the hooks that this kernel does not have, and the processes that are too many. `fd` becomes readable
    at once for an abort or an OOM kill; within a tick is soon enough for the rest.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._kernel_pids: dict[int, int] = {}
        """pid -> in the initial namespace, of those that `watch` named."""
        self._children: dict[int, tuple[int, float]] = {}
        """The same of those that the kernel added, with the time of their fork."""
        self._events: list[LifeEvent] = []
        self._hooks = Hooks(kernel, OBJECT, HOOKS, "process events")
        loaded = self._hooks.loaded
        loaded.map("own_namespace").update(c_uint32(0), c_uint32(os.stat("/proc/self/ns/pid").st_ino))
        self._watched = loaded.map("watched")
        self._ring = self._hooks.stream()
        self._hooks.attach()
        self.missing = self._hooks.missing
        self.complete = not self.missing
        """Every hook is attached."""
        self.fd = self._ring.fd

    def close(self) -> None:
        self._hooks.close()

    def watch(self, pids: Collection[int]) -> None:
        """Chooses the processes. One that is gone is passed over."""
        self._read()
        for pid in self._kernel_pids.keys() - set(pids):
            self._watched.delete(c_uint32(self._kernel_pids.pop(pid)))
        for pid in self._children.keys() & set(pids):
            self._kernel_pids[pid] = self._children.pop(pid)[0]
        old = time.monotonic() - CHILD_WATCHED_S
        for pid in [pid for pid, (_, forked_s) in self._children.items() if forked_s < old]:
            self._watched.delete(c_uint32(self._children.pop(pid)[0]))
        self.missing = self._hooks.missing
        for pid, kernel_pid in self._ids([pid for pid in pids if pid not in self._kernel_pids]).items():
            try:
                self._watched.update(c_uint32(kernel_pid), c_uint32(pid))
            except libbpf.BpfError as error:
                if error.errno != errno.E2BIG:
                    raise
                because = f"{len(pids)} are watched, and {MOST} fit"
                self.missing += (Missing("the ends of some processes", because, "a narrower --match"),)
                break
            self._kernel_pids[pid] = kernel_pid

    def _ids(self, pids: list[int]) -> dict[int, int]:
        if not pids or not procfs.own_pids():
            return {pid: pid for pid in pids}
        return threads.look(pids, self._kernel).kernel_pids

    def events(self) -> list[LifeEvent]:
        """What happened since the last call; never waits."""
        self._read()
        events, self._events = self._events, []
        return events

    def _read(self) -> None:
        for data in self._ring.consume():
            record = LifeRecord.from_buffer_copy(data)
            if record.kind == _FORK:
                self._children[record.pid] = record.kernel_pid, record.time_ns / 1e9
            elif record.kind == _EXIT:
                self._children.pop(record.pid, None)
                self._kernel_pids.pop(record.pid, None)
            self._events.append(_event(record))


def _event(record: LifeRecord) -> LifeEvent:
    return LifeEvent(
        kind="abort" if record.signal == signal.SIGABRT else _KINDS.get(record.kind, ""),
        time_s=record.time_ns / 1e9,
        pid=record.pid,
        parent=record.parent,
        status=record.status if record.kind == _EXIT else None,
        sender=record.sender,
        command=record.command.decode(errors="replace"),
        signal=record.signal,
    )
