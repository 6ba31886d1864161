"""Pools of multiprocessing.pool, of processes and of threads: is a result that somebody waits for still on its way?

The waiter's `self` is the result, and leads to the pool: its queues, its workers, its cache of unfinished jobs. A task
passes from the task queue through the task handler's hands into the queue of the workers, is worked on, and its result
passes through the result handler's hands. Each of these places can be seen: a handler that is parked has nothing in its
hands, a worker that is blocked in the read of their pipe found it empty (`pool_workers.py`). Source:
multiprocessing/pool.py of CPython 3.8 to 3.14.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stucktrace.collectors import pool_workers
from stucktrace.collectors.pool_stacks import Place, Stacks
from stucktrace.facts import Awaited, Frame, PoolFact, PoolMember

FILE = "multiprocessing/pool.py"
WAITS = frozenset({"get", "wait", "next", "join"})
_RESULT = ("_pool", "_job", "_cache")
_POOL = ("_inqueue", "_outqueue", "_taskqueue", "_cache", "_pool", "_processes", "_state")
_MOST_JOBS = 64
_MOST_WORKERS = 256


def waits(frames: tuple[Frame, ...]) -> int | None:
    """The index of the frame that waits for a pool, if the thread does nothing else (py-spy's frames)."""
    for index, frame in enumerate(frames):
        if frame.native or frame.file.endswith("/threading.py"):
            continue
        ours = frame.file.endswith(FILE) and "billiard" not in frame.file
        return index if ours and frame.function.rpartition(".")[2] in WAITS else None
    return None


@dataclass(frozen=True)
class _Pool:
    address: int
    attributes: Mapping[str, int]
    size: int | None
    threads: bool
    workers: tuple[int, ...]
    """Addresses of its Process objects."""

    def __getitem__(self, name: str) -> int:
        return self.attributes.get(name, 0)


def read(stacks: Stacks) -> Iterator[PoolFact]:
    waiting: dict[int, list[tuple[int, int]]] = {}
    for tid in stacks.sleeping():
        for owner, job in _awaits(stacks, tid):
            waiting.setdefault(owner, []).append((tid, job))
    for address, jobs in waiting.items():
        pool = _pool(stacks, address)
        if pool is not None:
            fact = _of_threads(stacks, pool, jobs) if pool.threads else _of_processes(stacks, pool, jobs)
            if fact is not None:
                yield fact


def _awaits(stacks: Stacks, tid: int) -> list[tuple[int, int]]:
    """(pool, job) of each unfinished result that a thread waits for."""
    if waits(stacks.frames.get(tid, ())) is None:
        return []
    place = next((place for place in stacks.of(tid) if place.file.endswith(FILE)), None)
    self = stacks.variable(place, "self") if place is not None and place.function in WAITS else None
    if place is None or not self:
        return []
    if place.function == "join":
        cache = stacks.values.attribute(self, "_cache")
        results = stacks.containers.items(cache) if cache else None
        return [each for result in (results or ())[:_MOST_JOBS] for each in _result(stacks, result) if each[0] == self]
    return _result(stacks, self)


def _result(stacks: Stacks, result: int) -> list[tuple[int, int]]:
    held = stacks.values.attributes(result, _RESULT)
    job = stacks.values.integer(held["_job"]) if "_job" in held else None
    # A finished result has left the cache, and its pool is None.
    unfinished = stacks.containers.items(held["_cache"]) if "_cache" in held else None
    if job is None or "_pool" not in held or result not in (unfinished or ()):
        return []
    return [(held["_pool"], job)]


def _pool(stacks: Stacks, address: int) -> _Pool | None:
    found = stacks.values.attributes(address, _POOL)
    if not all(name in found for name in _POOL):
        return None
    workers = stacks.containers.items(found["_pool"])
    if workers is None or len(workers) > _MOST_WORKERS:
        return None
    threads = stacks.values.type(found["_inqueue"]) == "_queue.SimpleQueue"
    return _Pool(address, found, stacks.values.integer(found["_processes"]), threads, workers)


def _index(stacks: Stacks, tid: int) -> int | None:
    return waits(stacks.frames.get(tid, ()))


def _of_threads(stacks: Stacks, pool: _Pool, jobs: list[tuple[int, int]]) -> PoolFact | None:
    """A ThreadPool: its workers are threads with the frame `worker`."""
    members: list[PoolMember] = []
    for tid, frames in stacks.frames.items():
        if any(frame.file.endswith(FILE) and frame.function == "worker" for frame in frames):
            member = _member(stacks, tid, pool["_inqueue"])
            members.extend((member,) if member else ())
    tasks = stacks.containers.items(pool["_inqueue"])
    queued = [_job_of(stacks, task) for task in tasks] if tasks is not None else []
    awaited: list[Awaited] = []
    gone = not members and _inherited(stacks, pool)
    for tid, job in jobs:
        index = _index(stacks, tid)
        if gone:
            awaited.append(Awaited(tid, job, "unsent", frame=index))
        elif job in queued:
            awaited.append(Awaited(tid, job, "queued", frame=index))
        else:
            running = [member.tid for member in members if member.work == job]
            awaited.extend(Awaited(tid, job, "running", at, len(running), index) for at in running)
    return PoolFact(
        pool.address,
        "threads",
        f"ThreadPool({pool.size})",
        pool.size,
        tuple(members),
        None if tasks is None else len(tasks),
        tuple(awaited),
        complete=len(members) == pool.size,
    )


def _inherited(stacks: Stacks, pool: _Pool) -> bool:
    """It should run, and not one of its threads is here."""
    helpers = ("_handle_tasks", "_handle_results", "_handle_workers")
    here = any(
        frame.file.endswith(FILE) and frame.function.rpartition(".")[2] in helpers
        for frames in stacks.frames.values()
        for frame in frames
    )
    return not here and stacks.whole and stacks.values.text(pool["_state"], 16) == "RUN"


def _member(stacks: Stacks, tid: int, inqueue: int) -> PoolMember | None:
    places = stacks.of(tid)
    at = next((at for at, place in enumerate(places) if place.function == "worker" and _ours(place)), None)
    variables = stacks.variables(places[at]) if at is not None else {}
    if at is None or variables.get("inqueue") != inqueue:
        return None
    task = variables.get("task")
    job = _job_of(stacks, task) if task else None
    does = places[at - 1].function if job is not None and at else ""
    return PoolMember(stacks.pid, tid, job, does, idle=at == 0 and job is None)


def _ours(place: Place) -> bool:
    return place.file.endswith(FILE)


def _job_of(stacks: Stacks, task: int) -> int | None:
    """A task is (job, number within the job, function, ...)."""
    items = stacks.values.items(task)
    return stacks.values.integer(items[0]) if items else None


def _of_processes(stacks: Stacks, pool: _Pool, jobs: list[tuple[int, int]]) -> PoolFact | None:
    maker = _maker(stacks, pool)
    handlers = {
        name: tid
        for tid, frames in stacks.frames.items()
        for name in ("_handle_tasks", "_handle_results")
        if (place := _handler(stacks, tid, frames, name)) is not None
        and stacks.variable(place, "outqueue") == pool["_outqueue"]
    }
    members: tuple[PoolMember, ...] = ()
    if maker is not None and maker != stacks.ns_pid:
        state = "unsent" if not handlers and stacks.whole else "unknown"
        maker_named: int | None = maker
    else:
        members, held = pool_workers.read(stacks, pool.workers, pool["_inqueue"])
        state = _where(stacks, pool, handlers, members, held)
        maker_named = None
    return PoolFact(
        pool.address,
        "processes",
        f"Pool({pool.size})",
        pool.size,
        members,
        0 if state == "nowhere" else None,
        tuple(Awaited(tid, job, state, frame=_index(stacks, tid)) for tid, job in jobs),
        complete=bool(members) and len(members) == pool.size,
        made_by=maker_named,
        helpers=tuple(sorted(handlers.values())),
    )


def _maker(stacks: Stacks, pool: _Pool) -> int | None:
    """The pid of the process that started the workers, as it names itself."""
    parent = stacks.values.attribute(pool.workers[0], "_parent_pid") if pool.workers else None
    return stacks.values.integer(parent) if parent else None


def _handler(stacks: Stacks, tid: int, frames: tuple[Frame, ...], name: str) -> Place | None:
    if not any(frame.file.endswith(FILE) and frame.function.rpartition(".")[2] == name for frame in frames):
        return None
    return next((place for place in stacks.of(tid) if place.function == name and _ours(place)), None)


def _where(
    stacks: Stacks, pool: _Pool, handlers: Mapping[str, int], members: tuple[PoolMember, ...], held: Mapping[int, str]
) -> str:
    """Where the unfinished jobs of this pool are: "nowhere", "locked", or "unknown" for all that can still end well."""
    if not members or len(members) != pool.size or not _nothing_to_send(stacks, pool, handlers):
        return "unknown"
    if not _awaits_results(stacks, pool, handlers):
        return "unknown"
    places = [held.get(member.pid, "") for member in members]
    if not all(places):
        return "unknown"
    return "nowhere" if "reads" in places else "locked"


def _nothing_to_send(stacks: Stacks, pool: _Pool, handlers: Mapping[str, int]) -> bool:
    """The task handler is parked with empty hands before an empty queue, or has ended after `close`."""
    if stacks.containers.items(pool["_taskqueue"]) != ():
        return False
    tid = handlers.get("_handle_tasks")
    if tid is None:
        return stacks.values.text(pool["_state"], 16) == "CLOSE"
    places, thread = stacks.of(tid), stacks.threads.get(tid)
    parked = bool(places) and places[0].function == "_handle_tasks" and thread is not None and thread.state == "S"
    return parked and not {"taskseq", "task"} & _set(stacks, places[0])


def _set(stacks: Stacks, place: Place) -> set[str]:
    """The variables that hold something."""
    found = stacks.variables(place)
    kinds = stacks.values.types(list(found.values()))
    return {name for name, kind in zip(found, kinds, strict=True) if kind != "NoneType"}


def _awaits_results(stacks: Stacks, pool: _Pool, handlers: Mapping[str, int]) -> bool:
    """The result handler is blocked in the read of the result pipe: it is empty."""
    tid = handlers.get("_handle_results")
    thread = stacks.threads.get(tid or 0)
    call = thread.syscall if thread is not None else None
    return call is not None and call.name == "read" and call.fd == pool_workers.reader(stacks, pool["_outqueue"])
