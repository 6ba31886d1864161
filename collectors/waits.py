"""What the threads of some processes achieved during a sampling window: returns of calls that wait or move bytes.

Counted in the kernel (bpf/waits.bpf.c) at the end of these calls, by what collectors/call_hooks.py can attach, for the
window only. A wait that shows no return at all in the window did not move; a loop of short polls shows many that
achieved nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ctypes import c_int32, c_uint8, c_uint32

from stucktrace.collectors import call_hooks, libbpf, syscalls, threads
from stucktrace.collectors.events import CallCount, CallKey, EnteredCall
from stucktrace.collectors.hooks import Window
from stucktrace.collectors.kernel import Kernel
from stucktrace.facts import CallActivity, Missing


class Watch(Window):
    """A running window. `complete` is True when every return since its begin was counted."""

    def __init__(self, pids: Collection[int], kernel: Kernel | None, loaded: libbpf.Object | None) -> None:
        super().__init__(pids, kernel, loaded)
        self._tids: dict[int, tuple[int, int]] = {}
        """Thread in the initial namespace -> (pid, tid)."""
        self._lost_before = 0

    @property
    def complete(self) -> bool:
        return self._object is not None and self._lost() == 0

    def activity(self) -> Mapping[int, tuple[CallActivity, ...]]:
        """pid -> what its threads did so far, by thread; empty when nothing is counted."""
        if self._object is None or self._kernel is None:
            return {}
        # Threads that began since are known to the iterator alone; those that ended, from before.
        self._learn(threads.look(self._pids, self._kernel))
        found: dict[int, list[CallActivity]] = {}
        calls = self._object.map("calls")
        for key in calls.keys(CallKey):
            count = CallCount()
            if key.kernel_tid not in self._tids or not calls.lookup(key, count):
                continue
            pid, tid = self._tids[key.kernel_tid]
            found.setdefault(pid, []).append(_fact(tid, key, count))
        return {pid: tuple(sorted(facts, key=lambda fact: (fact.tid, fact.call))) for pid, facts in found.items()}

    def attach(self, kernel: Kernel) -> call_hooks.Returns:
        """Counts from here on, until the answer is closed. BpfError."""
        self._kernel = kernel
        returns = call_hooks.attach(kernel, self._begin, self._in_calls)
        self._object = returns.loaded
        self._lost_before = self._object.lost_records()
        return returns

    def _begin(self, loaded: libbpf.Object) -> None:
        """Learns the ids and puts the processes into the kernel's filter."""
        look = threads.look(self._pids, self._kernel)
        if look.facts and not look.kernel_ids:
            raise libbpf.BpfError(errno.ENOTSUP, "watch processes by ids of another PID namespace")
        self._learn(look)
        for kernel_pid in look.kernel_pids.values():
            loaded.map("watched").update(c_uint32(kernel_pid), c_uint8(1))
            loaded.map("watched_slots").update(c_uint32(kernel_pid % call_hooks.SLOTS), c_uint32(kernel_pid))

    def _in_calls(self) -> dict[int, EnteredCall]:
        look = threads.look(self._pids, self._kernel)
        self._learn(look)
        return {
            look.kernel_ids[thread.tid][1]: EnteredCall(
                thread.syscall.number, c_int32(thread.syscall.args[0]).value, c_uint32(thread.syscall.args[1]).value
            )
            for facts in look.facts.values()
            for thread in facts
            if thread.syscall is not None
        }

    def _learn(self, look: threads.Look) -> None:
        owners = {thread.tid: pid for pid, facts in look.facts.items() for thread in facts}
        for tid, (_, kernel_tid) in look.kernel_ids.items():
            if tid in owners:
                self._tids[kernel_tid] = (owners[tid], tid)

    def _lost(self) -> int:
        return self._object.lost_records() - self._lost_before if self._object else 0


@contextmanager
def watching(pids: Collection[int], kernel: Kernel | None) -> Iterator[Watch]:
    """Counts while the context is open. Without BPF the watch is there but never `complete`, and says nothing."""
    with ExitStack() as stack:
        watch = Watch(pids, kernel, None)
        if kernel is not None:
            try:
                stack.callback(watch.attach(kernel).close)
            except libbpf.BpfError as error:
                watch = Watch(pids, kernel, None)
                watch.missing = (Missing("counts of calls", _because(error), "a longer --sample tells the same later"),)
                kernel.hooks["waits"] = f"{kernel.hooks.get('threads', '/proc')} only"
        yield watch


def _because(error: libbpf.BpfError) -> str:
    if error.errno == errno.EPERM:
        return "the kernel does not let this process attach to system calls"
    return str(error)


def _fact(tid: int, key: CallKey, count: CallCount) -> CallActivity:
    return CallActivity(
        tid=tid,
        call=syscalls.NAMES.get(key.syscall, f"syscall_{key.syscall}"),
        fd=key.fd if key.fd >= 0 else None,
        returns=count.returns,
        moved_bytes=count.moved_bytes,
        empty=count.empty,
        last_error=count.last_error,
    )
