"""Thread pools of concurrent.futures: who works in them on what, what is in their queue, who waits for which future.

A member is a thread with the frame `_worker` of concurrent/futures/thread.py: its variables lead to the executor, the
queue and the task in hand. A waiter sits in `result`, `exception`, `wait` or `as_completed` of concurrent/futures/
_base.py, with nothing but the waiting of threading.py inside. A future that is PENDING and in the queue runs nowhere.
Sources: these two modules of CPython 3.8 to 3.14.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from stucktrace.collectors import memory
from stucktrace.collectors.pool_stacks import Place, Stacks
from stucktrace.facts import Awaited, Frame, PoolFact, PoolMember

WORKERS = "concurrent/futures/thread.py"
FUTURES = "concurrent/futures/_base.py"
WAITS = frozenset({"result", "exception", "wait", "as_completed"})
_MOST_QUEUED = 1_000
_FUTURES_AT_MOST = 1_000
_EXECUTOR = ("_work_queue", "_max_workers", "_threads", "_thread_name_prefix")
_REFERENT = 16
_UNFINISHED = ("PENDING", "RUNNING")


@dataclass(frozen=True)
class _Executor:
    address: int
    name: str
    size: int | None
    queue: tuple[int, ...] | None
    """The futures of the tasks in its queue."""
    members: tuple[PoolMember, ...]


def waits(frames: tuple[Frame, ...]) -> int | None:
    """The index of the frame that waits for futures, if the thread does nothing else (py-spy's frames)."""
    for index, frame in enumerate(frames):
        if frame.native or frame.file.endswith("/threading.py"):
            continue
        bare = frame.function.rpartition(".")[2]
        return index if frame.file.endswith(FUTURES) and bare in WAITS else None
    return None


def read(stacks: Stacks) -> Iterator[PoolFact]:
    """The pools of the futures that somebody waits for."""
    waiting = {tid: found for tid in stacks.sleeping() if (found := _futures(stacks, tid))}
    if not waiting:
        return
    executors = list(_executors(stacks))
    if stacks.whole:
        yield from _inherited(stacks, waiting, {executor.address for executor in executors})
    for executor in executors:
        runs = {member.work: member.tid for member in executor.members if member.work is not None}
        queued = executor.queue or ()
        awaited = tuple(
            Awaited(
                tid,
                future,
                "running" if future in runs else "queued",
                runs.get(future),
                len(futures),
                waits(stacks.frames.get(tid, ())),
            )
            for tid, futures in waiting.items()
            for future in futures
            if future in runs or future in queued
        )
        if awaited:
            yield PoolFact(
                executor.address,
                "threads",
                executor.name,
                executor.size,
                executor.members,
                None if executor.queue is None else len(executor.queue),
                awaited,
                complete=len(executor.members) == executor.size,
            )


def _inherited(stacks: Stacks, waiting: Mapping[int, tuple[int, ...]], alive: Collection[int]) -> Iterator[PoolFact]:
    """Executors that have threads, of which not one is in this process: it was forked from the one that they are in.

    Who waits leads to the executor, by a variable, a global or an attribute; its queue has the future. One that may
    start another thread would, if anybody submitted something more: nobody does where the waiter is alone.
    """
    for tid, futures in waiting.items():
        for address in _near(stacks, tid):
            attributes = stacks.values.attributes(address, _EXECUTOR)
            if address in alive or not all(name in attributes for name in _EXECUTOR):
                continue
            threads = stacks.containers.items(attributes["_threads"])
            size = stacks.values.integer(attributes["_max_workers"])
            queued = _queued(stacks, attributes["_work_queue"])
            lost = [future for future in futures if future in (queued or ())]
            if not threads or len(lost) != len(futures) or (len(threads) != size and len(stacks.threads) > 1):
                continue
            name = stacks.values.text(attributes["_thread_name_prefix"], 80) or "ThreadPoolExecutor"
            index = waits(stacks.frames.get(tid, ()))
            awaited = (Awaited(tid, future, "unsent", None, len(futures), index) for future in lost)
            yield PoolFact(address, "threads", name, size, (), len(queued or ()), tuple(awaited))
            break


def _near(stacks: Stacks, tid: int) -> Iterator[int]:
    """What the waiter's frames lead to in one step or two."""
    seen: set[int] = set()
    for place in stacks.of(tid):
        used = stacks.read.named(place.frame.code).used
        globals_ = stacks.values.entries(stacks.read.globals(place.frame), used) or {} if used else {}
        for address in (*stacks.variables(place).values(), *globals_.values()):
            for each in (address, *stacks.values.attributes(address).values()):
                if each not in seen:
                    seen.add(each)
                    yield each


def _futures(stacks: Stacks, tid: int) -> tuple[int, ...]:
    """The unfinished futures that a thread waits for."""
    if waits(stacks.frames.get(tid, ())) is None:
        return ()
    place = next((place for place in stacks.of(tid) if place.file.endswith(FUTURES)), None)
    if place is None or place.function not in WAITS:
        return ()
    variables = stacks.variables(place)
    if place.function in ("result", "exception"):
        futures: tuple[int, ...] | None = (variables["self"],) if "self" in variables else ()
    else:
        held = variables.get("pending") or variables.get("not_done") or variables.get("fs")
        futures = stacks.containers.items(held) if held else ()
    return tuple(future for future in (futures or ())[:_FUTURES_AT_MOST] if _state(stacks, future) in _UNFINISHED)


def _state(stacks: Stacks, future: int) -> str | None:
    state = stacks.values.attribute(future, "_state")
    return stacks.values.text(state, 32) if state else None


def _executors(stacks: Stacks) -> Iterator[_Executor]:
    by_queue: dict[int, list[tuple[PoolMember, int]]] = {}
    for tid, frames in stacks.frames.items():
        if not any(frame.file.endswith(WORKERS) and frame.function == "_worker" for frame in frames):
            continue
        if (found := _member(stacks, tid)) is not None:
            queue, reference, member = found
            by_queue.setdefault(queue, []).append((member, reference))
    for queue, found_members in by_queue.items():
        (address,) = memory.read_words(stacks.pid, [found_members[0][1] + _REFERENT])
        attributes: Mapping[str, int] = stacks.values.attributes(address, _EXECUTOR) if address else {}
        if not address or attributes.get("_work_queue") != queue:
            continue
        prefix = attributes.get("_thread_name_prefix")
        name = (stacks.values.text(prefix, 80) if prefix else "") or "ThreadPoolExecutor"
        size = stacks.values.integer(attributes["_max_workers"]) if "_max_workers" in attributes else None
        members = tuple(sorted((member for member, _ in found_members), key=lambda member: member.tid or 0))
        yield _Executor(address, name, size, _queued(stacks, queue), members)


def _member(stacks: Stacks, tid: int) -> tuple[int, int, PoolMember] | None:
    """(its queue, the weak reference to its executor, the member)."""
    places = stacks.of(tid)
    at = next((at for at, place in enumerate(places) if _is_worker(place)), None)
    if at is None:
        return None
    variables = stacks.variables(places[at])
    queue, reference, item = (variables.get(name) for name in ("work_queue", "executor_reference", "work_item"))
    if not queue or not reference:
        return None
    future = stacks.values.attribute(item, "future") if item else None
    # Inside it runs `_WorkItem.run`, and inside that the task, or the callbacks of the future when the task is done.
    task = places[at - 2].function if future and at >= 2 and not places[at - 2].file.endswith(FUTURES) else ""
    member = PoolMember(stacks.pid, tid, future, task, idle=at == 0 and future is None)
    return queue, reference, member


def _is_worker(place: Place) -> bool:
    return place.function == "_worker" and place.file.endswith(WORKERS)


def _queued(stacks: Stacks, queue: int) -> tuple[int, ...] | None:
    try:
        items = stacks.containers.items(queue)
    except struct.error:
        return None
    if items is None:
        return None
    # The None that shutdown() puts there is no task.
    tasks = [item for item in items[:_MOST_QUEUED] if stacks.values.type(item) != "NoneType"]
    return tuple(stacks.values.attribute(item, "future") or 0 for item in tasks)
