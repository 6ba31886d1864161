"""The lock behind each thread's futex wait: its kind, where it lies, who owns it.

Source: the arguments of the futex call, the memory around its word (`futexes.py` tells the kind), CPython's lock
objects (`cpython_objects.py`) and the owner's name (`lock_owners.py`). Every word is read twice; where the two readings
differ, or the thread has left its call meanwhile, the lock is on the move, nobody is stuck in it, and nothing is said
about it. A kind that is not known has no owner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from stucktrace.collectors import import_locks, interpreter, libc, memory, regions, source_lines
from stucktrace.collectors.block_owners import BlockOwners
from stucktrace.collectors.cpython_objects import LOCK_TYPES, QUEUE_TYPE, RLOCK_TYPE, Layout, LockObject, Reader
from stucktrace.collectors.futexes import Wait
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.lock_owners import Owners
from stucktrace.collectors.lock_waiters import Place, Waiter, in_call, look, wait_of, woke
from stucktrace.collectors.regions import Regions
from stucktrace.facts import Frame, LockFact, LockOwner, ProcessFact, PythonFact, Relative, ThreadFact

if TYPE_CHECKING:
    from stucktrace.collectors.semlocks import SemLocks

WHAT = "locks"


@dataclass(frozen=True)
class _Target:
    """What is known of the process before its locks are read."""

    pid: int
    mapped: Regions
    owners: Owners
    reader: Reader
    runtime: tuple[tuple[int, int], ...]
    """Where CPython keeps its own conditions."""
    blocks: BlockOwners
    frames: Mapping[int, tuple[Frame, ...]]
    interpreter: Interpreter | None
    family: tuple[int, ...]
    place: Place

    @property
    def minor(self) -> tuple[int, int] | None:
        return self.interpreter.minor if self.interpreter is not None else None

    @cached_property
    def semlocks(self) -> SemLocks:
        from stucktrace.collectors.semlocks import SemLocks

        return SemLocks(self.pid, self.reader.layout, self.interpreter, self.family)


def collect(
    process: ProcessFact,
    threads: Sequence[ThreadFact],
    python: PythonFact | None,
    relatives: Sequence[Relative] = (),
) -> tuple[LockFact, ...]:
    """One fact for each thread that waits in a futex. Raises CollectorError when the memory may not be read."""
    calls = [(thread, wait) for thread in threads if (wait := wait_of(thread)) is not None]
    if not calls:
        return ()
    with memory.reading(WHAT):
        mapped = regions.read(process.pid)
        found = interpreter.find(process.pid, mapped)
        owners = Owners(process, threads, python, relatives, mapped)
        reader = Reader(process.pid, mapped, Layout.of(found.free_threaded if found else False))
        blocks = BlockOwners(reader, found, owners, python)
        frames = {thread.tid: thread.frames for thread in python.threads} if python is not None else {}
        target = _Target(
            process.pid,
            mapped,
            owners,
            reader,
            _runtime(found, mapped),
            blocks,
            frames,
            found,
            tuple(relative.pid for relative in relatives),
            Place(process.pid, mapped, libc.of(process.pid, mapped), owners.ns_tids),
        )
        return _collect(target, calls)


def _collect(target: _Target, calls: Sequence[tuple[ThreadFact, Wait]]) -> tuple[LockFact, ...]:
    facts = [_gil(target, thread, wait) for thread, wait in calls if _is_gil(target, thread, wait)]
    others = [(thread, wait) for thread, wait in calls if not _is_gil(target, thread, wait)]
    waiters = [waiter for thread, wait in others if (waiter := look(target.place, thread, wait)) is not None]
    objects = _objects(target.reader, waiters)
    sources: dict[str, Mapping[int, str]] = {}
    waiting: dict[int, set[int]] = {}
    for waiter in waiters:
        waiting.setdefault(waiter.lock, set()).add(waiter.thread.ns_tid)
    for waiter in waiters:
        held = objects.get(waiter.lock)
        if look(target.place, waiter.thread, waiter.wait) != waiter or not in_call(target.pid, waiter):
            continue
        if held is not None and target.reader.again(held, inside=waiter.parked is not None) != held:
            continue
        fact = _fact(target, waiter, held, frozenset(waiting[waiter.lock]))
        if fact.owner is not None and woke(target.pid, waiter.thread):
            continue
        facts.append(_named(target, fact, waiter, held, sources) if held is not None else fact)
    return tuple(facts)


def _named(
    target: _Target, fact: LockFact, waiter: Waiter, held: LockObject, sources: dict[str, Mapping[int, str]]
) -> LockFact:
    """With the name that the code gives it, and with what it is inside of."""
    if fact.path:
        return replace(fact, part_of="_frozen_importlib._ModuleLock")
    frames = target.frames.get(fact.waiter_tid, ())
    # `with condition:` enters its lock in a frame of its own.
    naming = next((frame for frame in frames if not frame.function.endswith("__enter__")), None)
    source = source_lines.lock_name(target.pid, naming, sources) if naming is not None else ""
    if held.type_name == QUEUE_TYPE:
        return replace(fact, path=source, part_of=held.type_name)
    path, part_of = target.blocks.named(waiter.thread.ns_tid, held, source)
    return replace(fact, path=path, part_of=part_of)


def _is_gil(target: _Target, thread: ThreadFact, wait: Wait) -> bool:
    """A wait with a timeout on a word of the interpreter's own state: nothing else there is waited for that way.

    Such a thread wakes every 5 ms, so two readings of its word seldom agree, and the address alone has to do.
    """
    call = thread.syscall
    timed = call is not None and call.endless is False
    return timed and any(start <= wait.address < end for start, end in target.runtime)


def _gil(target: _Target, thread: ThreadFact, wait: Wait) -> LockFact:
    return LockFact(wait.address, "gil", thread.tid, target.mapped.describe(wait.address, None))


def _objects(reader: Reader, waiters: Sequence[Waiter]) -> Mapping[int, LockObject]:
    found: dict[int, LockObject] = {}
    searched: dict[int, list[int]] = {}
    for waiter in waiters:
        if waiter.word.kind != "semaphore":
            continue
        inside = reader.around(waiter.lock) if waiter.parked is not None and waiter.lock not in found else None
        if inside is not None:
            found[waiter.lock] = inside
        elif waiter.lock not in found and not waiter.event:
            searched.setdefault(waiter.lock, []).append(waiter.thread.tid)
    return {**reader.find(searched), **found} if searched else found


def _runtime(found: Interpreter | None, mapped: Regions) -> tuple[tuple[int, int], ...]:
    """Where CPython keeps its own conditions: inside `_PyRuntime`, else anywhere in the interpreter's static data."""
    if found is None:
        return ()
    if found.runtime is not None and found.runtime[1] > 4096:
        return ((found.runtime[0], found.runtime[0] + found.runtime[1]),)
    return tuple((region.start, region.end) for region in interpreter.data_of(mapped, found.library))


def _fact(target: _Target, waiter: Waiter, held: LockObject | None, waiting: frozenset[int]) -> LockFact:
    thread, word, owners = waiter.thread, waiter.word, target.owners
    region = target.mapped.find(waiter.lock)
    fact = LockFact(
        waiter.lock,
        word.kind,
        thread.tid,
        target.mapped.describe(waiter.lock, owners.ident_of(thread.tid)),
        shared=region is not None and region.shared,
        word=word.word if waiter.parked is None else waiter.parked,
        count=word.count,
        note=word.note if word.kind != "condition" else "",
    )
    if word.kind == "condition" and any(start <= word.address < end for start, end in target.runtime):
        return replace(fact, kind="gil")
    if waiter.parked is not None and held is None:
        return _parked_lock(target, fact, waiter)
    if held is not None:
        return _python_lock(target, fact, waiter, held, waiting)
    if word.kind == "shared-semaphore" and (lock := target.semlocks.find(thread.tid, word.address)) is not None:
        return replace(fact, kind=lock.kind, owner=lock.owner, note=lock.note, beyond=lock.beyond)
    if word.died:
        return replace(fact, owner=LockOwner("absent", how="owner field"))
    if word.owner is not None:
        shared = fact.shared and not waiter.wait.private
        owner = owners.by_ns_tid(word.owner, thread, shared=shared, address=word.address)
        return replace(fact, owner=_from_field(owner))
    return fact


def _parked_lock(target: _Target, fact: LockFact, waiter: Waiter) -> LockFact:
    """A lock of CPython's own that is in no object; the event of a thread's handle says whose end is waited for."""
    if not waiter.event:
        return replace(fact, kind="pymutex")
    joined = target.owners.joined(waiter.lock)
    if joined is None:
        return replace(fact, kind="condition")
    return replace(fact, kind="join", owner=_from_field(target.owners.by_ns_tid(joined, waiter.thread, shared=False)))


def _from_field(owner: LockOwner) -> LockOwner:
    return replace(owner, how="owner field")


def _import_lock(target: _Target, fact: LockFact, waiter: Waiter, held: LockObject) -> LockFact:
    note = "a module is being imported"
    if target.minor is None:
        return replace(fact, note=note)
    ident, module = import_locks.read(target.reader, held, target.minor)
    owner = _from_field(target.owners.by_ident(ident, waiter.thread, lambda *_: True)) if ident else None
    return replace(fact, owner=owner, note=note, path=f"_ModuleLock({module!r})" if module else "")


def _python_lock(
    target: _Target, fact: LockFact, waiter: Waiter, held: LockObject, waiting: frozenset[int]
) -> LockFact:
    if held.type_name in LOCK_TYPES:
        fact = replace(fact, kind="lock")
        if not waiter.locked:
            return fact
        if import_locks.waits_for_a_module(target.frames.get(fact.waiter_tid, ())):
            return _import_lock(target, fact, waiter, held)
        owner = target.blocks.owner(held, waiter.thread, waiting)
        return replace(fact, owner=owner, note=_found_by(owner) if owner else "")
    if held.type_name != RLOCK_TYPE:
        return replace(fact, note=f"of a {held.type_name.removeprefix('_')}")
    fact = replace(fact, kind="rlock", count=held.count)
    if not held.owner or not held.count:
        # Released, and the waiter is about to take it.
        return fact

    def held_by_parent(parent: int, ident: int) -> bool:
        theirs = Reader(parent, target.mapped, target.reader.layout)
        try:
            copy = theirs.again(held, inside=waiter.parked is not None)
        except OSError:
            return False
        return copy is not None and copy.owner == ident and bool(copy.count)

    owner = _from_field(target.owners.by_ident(held.owner, waiter.thread, held_by_parent))
    if owner.state == "unknown" and owner.parent_thread:
        owner = target.blocks.settle(owner, held, waiter.thread)
    return replace(fact, owner=target.blocks.placed(owner, held))


def _found_by(owner: LockOwner) -> str:
    return "its owner is inside a with block of it" if owner.how == "with block" else ""
