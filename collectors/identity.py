"""Joins py-spy's threads with the kernel's, in any PID namespace and for any CPython.

From CPython 3.11 on py-spy gives each thread's id as the *target* knows it (`native_thread_id`); before that, without
stopping the target, it gives none, only pthread addresses. The kernel's side has both ids (`ThreadFact.tid` is ours,
`ns_tid` the target's). The tid field of `struct pthread` says whose address it is, and settles every doubt: after a
fork CPython 3.11 can still name the parent's thread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from stucktrace.collectors import pthread
from stucktrace.facts import ThreadFact


def join(
    pid: int, pairs: Collection[tuple[int | None, int | None]], threads: Collection[ThreadFact]
) -> Mapping[tuple[int | None, int | None], int]:
    """(pthread address, target's tid as py-spy gave it) -> tid as we see it. Who cannot be joined is absent."""
    ours = {thread.ns_tid: thread.tid for thread in threads}
    idents = [ident for ident, _ in pairs if ident]
    in_memory = _in_memory(pid, idents, ours)
    joined = {}
    for ident, told in pairs:
        ns_tid = in_memory.get(ident) if ident else None
        if ns_tid not in ours:
            ns_tid = told
        if ns_tid in ours:
            joined[ident, told] = ours[ns_tid]
    return joined


def _in_memory(pid: int, idents: list[int], ours: Mapping[int, int]) -> Mapping[int, int]:
    try:
        offset = pthread.tid_offset(pid, idents[:16], ours)
        return pthread.tids(pid, idents, offset) if offset is not None else {}
    except OSError:
        return {}
