"""The pools for whose results or connections a thread of the target waits.

Which threads are looked at, their frames decide; what pools are, the files `pools_*.py` know, one family each. All is
read twice and has to agree, and a waiting thread that has run meanwhile is dropped: a pool that works never looks
starved. Source: process_vm_readv; nothing is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from stucktrace.collectors import (
    interpreter,
    memory,
    pools_connections,
    pools_futures,
    pools_multiprocessing,
    procfs,
    python_stacks,
    regions,
    usage,
)
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.pool_stacks import Stacks
from stucktrace.facts import PoolFact, ProcessFact, PythonFact, ThreadFact

WHAT = "pools"
_TRIES = 3
"""A thread that runs can change its frames while they are read."""


def collect(process: ProcessFact, threads: Sequence[ThreadFact], python: PythonFact | None) -> tuple[PoolFact, ...]:
    """() where no thread waits for a pool. Raises CollectorError when the memory may not be read."""
    if python is None or not any(_may_wait(thread, python) for thread in threads):
        return ()
    try:
        with memory.reading(WHAT):
            target = _Target(process, threads, python)
            first = target.read()
            second = target.read() if first else []
    except memory.MemoryChanged:
        # Something changed while it was read.
        return ()
    woke = {thread.tid for thread in threads if usage.has_run(process.pid, thread)}
    settled = (_settled(pool, woke) for pool in second if pool in first)
    return tuple(pool for pool in settled if pool.awaited)


def _may_wait(thread: ThreadFact, python: PythonFact) -> bool:
    frames = next((each.frames for each in python.threads if each.tid == thread.tid), ())
    if thread.state not in "SD" or not frames:
        return False
    return (
        pools_futures.waits(frames) is not None
        or pools_multiprocessing.waits(frames) is not None
        or pools_connections.may_wait(thread, frames)
    )


def _nothing_more(_: python_stacks.Stacks) -> Callable[[int, int, object], python_stacks.Examined]:
    """What is read of the frames here is read as a whole once more."""
    return lambda *_: []


class _Target:
    """What one reading after the other is made of."""

    def __init__(self, process: ProcessFact, threads: Sequence[ThreadFact], python: PythonFact) -> None:
        mapped = regions.read(process.pid)
        self._found = interpreter.find(process.pid, mapped)
        self._reader = Reader(process.pid, mapped, Layout())
        self._threads, self._python = threads, python
        numbers = {thread.tid: thread.ns_tid for thread in threads}
        self._idents = {
            thread.ident: numbers[thread.tid] for thread in python.threads if thread.ident and thread.tid in numbers
        }

    def read(self) -> list[PoolFact]:
        for _ in range(_TRIES):
            read = python_stacks.read(self._reader, self._found, self._idents, _nothing_more)
            if read is None or read.complete:
                break
        if read is None:
            return []
        stacks = Stacks(read, self._threads, self._python)
        families = (pools_futures, pools_multiprocessing, pools_connections)
        return [pool for family in families for pool in family.read(stacks)]


def _settled(pool: PoolFact, woke: Collection[int]) -> PoolFact:
    """Without the waits of threads that ran meanwhile; a member may have ended its task, a helper have passed it on."""
    running = any(member.tid in woke for member in pool.members)
    moved = any(tid in woke for tid in pool.helpers)
    members = (replace(m, age_s=procfs.age_s(m.start_time)) if m.start_time else m for m in pool.members)
    return replace(
        pool,
        members=tuple(members),
        awaited=() if moved else tuple(each for each in pool.awaited if each.tid not in woke),
        complete=pool.complete and not running,
    )
