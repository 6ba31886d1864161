"""Pools of connections (or of anything that is lent): who waits for one, and which threads have those that are out.

There is no one class to know: libraries and programs make their own, on a queue, a semaphore or a condition. So the
shape is read. The waiter's frames lead from what it waits on outwards to the object that has it among its attributes,
and so on: the last of them is the pool, the next frame its user. That it lends things, its own names have to say.
What is out is told by
- the pool's own lists and sets: what is in them, and what was lately in its queue, when a thread's variable has it too;
- a `with` block of one of the pool's methods that is still open;
- else a connection that knows its pool.
A variable that may have kept its value from an earlier turn of a loop does not count (`loops.py`): who takes jobs from
a queue has the last one there.
Source: process_vm_readv; the lines of source through the target's root.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from stucktrace.collectors import context_managers, loops, source_lines, with_blocks
from stucktrace.collectors.lock_ways import PLAIN_TYPES
from stucktrace.collectors.pool_stacks import Place, Stacks
from stucktrace.facts import Awaited, Frame, PoolFact, PoolMember, ThreadFact

_PRIMITIVES = ("/threading.py", "/queue.py", "/sqlalchemy/util/queue.py")
_NOT_HERE = ("concurrent/futures/", "multiprocessing/", "billiard/", "asyncio/", "/gevent/", "/eventlet/")
_LENDS = re.compile(
    r"conn|pool|acquire|check_?out|borrow|lease|lend|resource|session|cursor|channel|client|sock|engine|driver", re.I
)
_CONNECTION = re.compile(r"conn(?!.*pool)|session|channel|client", re.I)
_LIMIT = re.compile(r"max|size|limit|capacity|bound|initial_value|total", re.I)
_NO_LIMIT = re.compile(r"min|time|age|wait|idle|retr", re.I)
_NOT_LENT = PLAIN_TYPES | {"float", "Condition", "Event", "Thread", "collections.deque", "weakref", "type", "frame"}
_FUTEX = ("futex", "futex_wait", "futex_waitv")
_MOST_ITEMS = 64
_MOST_SIZE = 4096
_DEEPEST = 4


@dataclass(frozen=True)
class _Wait:
    """One thread that waits for something of a pool."""

    tid: int
    chain: tuple[int, ...]
    """The objects from what it waits on to the pool, innermost first."""
    user: int
    """Index of the frame that called the pool."""


def may_wait(thread: ThreadFact, frames: tuple[Frame, ...]) -> bool:
    """By its frames, the thread may wait for something that others lent (py-spy's frames).

    A frame below that of the pool has to be there that uses it: a thread whose own loop waits at its outermost frame
    waits for work.
    """
    if thread.syscall is None or thread.syscall.name not in _FUTEX:
        return False
    own = [frame for frame in frames if not frame.native and not frame.file.endswith(_PRIMITIVES)]
    return (
        len(own) > 1
        and not any(part in own[0].file for part in _NOT_HERE)
        and own[0].function != "<module>"
        and not own[0].function.endswith("_worker")
    )


def read(stacks: Stacks) -> Iterator[PoolFact]:
    waiting: dict[int, list[_Wait]] = {}
    for tid in stacks.sleeping():
        wait = _wait(stacks, tid) if may_wait(stacks.threads[tid], stacks.frames.get(tid, ())) else None
        if wait is not None:
            waiting.setdefault(wait.chain[-1], []).append(wait)
    for waits in waiting.values():
        fact = _pool(stacks, waits)
        if fact is not None:
            yield fact


def _wait(stacks: Stacks, tid: int) -> _Wait | None:
    places = stacks.of(tid)
    first = next((at for at, place in enumerate(places) if not place.file.endswith(_PRIMITIVES)), None)
    if first is None:
        return None
    chain = [each for place in places[:first] if (each := stacks.variable(place, "self"))]
    if not chain:
        chain = _empty_queues(stacks, places[first])
    names, user = [], first
    for user in range(first, len(places)):
        place = places[user]
        this = stacks.variable(place, "self")
        if place.file.endswith("/contextlib.py"):
            continue
        if not this or not (this in chain or (len(chain) <= _DEEPEST + first and _has(stacks, this, chain))):
            break
        if this not in chain:
            chain.append(this)
        names.append(place.function)
    if not names or user >= len(places) or places[user].file.endswith("/threading.py"):
        return None
    names.append(stacks.values.type(chain[-1]))
    return _Wait(tid, tuple(dict.fromkeys(chain)), user) if any(map(_LENDS.search, names)) else None


def _empty_queues(stacks: Stacks, place: Place) -> list[int]:
    """Of the object whose method waits in C: its queues that have nothing."""
    this = stacks.variable(place, "self")
    held = list(stacks.values.attributes(this).values()) if this else []
    kinds = stacks.values.types(held) if held else []
    return [
        address
        for address, kind in zip(held, kinds, strict=True)
        if kind == "_queue.SimpleQueue" and stacks.containers.items(address) == ()
    ]


def _has(stacks: Stacks, this: int, chain: list[int]) -> bool:
    """One of its attributes is one of these, or a container of it has one."""
    held = stacks.values.attributes(this).values()
    return any(address in chain for address in held) or any(
        set((stacks.containers.items(address) or ())[:_MOST_ITEMS]) & set(chain) for address in held
    )


@dataclass(frozen=True)
class _Lent:
    tid: int
    address: int
    name: str
    block: bool = False
    """An open `with` block has it."""


def _pool(stacks: Stacks, waits: list[_Wait]) -> PoolFact | None:
    chain = tuple(dict.fromkeys(each for wait in waits for each in wait.chain))
    kept, past = _belongings(stacks, chain)
    lent = _lent(stacks, waits, chain, kept, past)
    if not lent:
        return None
    kinds = dict(zip(kept | past, stacks.values.types(list(kept | past)), strict=True)) if kept | past else {}
    types = {kinds[each.address] for each in lent if each.address in kinds}
    seen = {address for address, kind in kinds.items() if kind in types}
    limits = _limits(stacks, chain)
    size = max([*limits, len(seen)])
    pool = waits[0].chain[-1]
    out = {each.address for each in lent}
    certain = bool(limits) and max(limits) >= len(seen) and all(each.block for each in lent)
    return PoolFact(
        pool,
        "connections",
        stacks.values.type(pool).rpartition(".")[2],
        size or None,
        tuple(PoolMember(stacks.pid, each.tid, each.address, each.name) for each in lent),
        0,
        tuple(Awaited(wait.tid, 0, "none free", frame=_shown(stacks, wait)) for wait in waits),
        complete=len(out) == size,
        certain=certain,
    )


def _shown(stacks: Stacks, wait: _Wait) -> int | None:
    return stacks.index(wait.tid, stacks.of(wait.tid)[wait.user])


def _belongings(stacks: Stacks, chain: tuple[int, ...]) -> tuple[set[int], set[int]]:
    """What the pool keeps in its containers now, and what may have been in its queues."""
    kept: set[int] = set()
    past: set[int] = set()
    for owner in chain:
        for address in stacks.values.attributes(owner).values():
            kept.update((stacks.containers.items(address) or ())[:_MOST_ITEMS])
            kept.update(key for key, _ in (stacks.values.pairs(address) or ())[:_MOST_ITEMS])
            past.update(stacks.containers.past_items(address))
    return _live(stacks, kept, chain), _live(stacks, past, chain)


def _live(stacks: Stacks, addresses: set[int], chain: tuple[int, ...]) -> set[int]:
    """Those that are objects with a type that a pool may lend."""
    some = [each for each in addresses if each and each % 8 == 0 and each not in chain]
    kinds = stacks.values.types(some) if some else []
    return {each for each, kind in zip(some, kinds, strict=True) if kind not in _NOT_LENT}


def _limits(stacks: Stacks, chain: tuple[int, ...]) -> list[int]:
    """As many as the pool may have, if its numbers tell: the highest one by its name, and what may come on top."""
    found, more = [], 0
    for owner in chain:
        for name, address in stacks.values.attributes(owner).items():
            number = stacks.values.integer(address) if _LIMIT.search(name) and not _NO_LIMIT.search(name) else None
            if number is not None and 0 < number <= _MOST_SIZE:
                found.append(number)
                more += number if "overflow" in name else 0
    return [max(found) + more] if found else []


def _lent(
    stacks: Stacks, waits: list[_Wait], chain: tuple[int, ...], kept: set[int], past: set[int]
) -> tuple[_Lent, ...]:
    """What is out, with the thread that has it: by its variables, or by its open blocks where those are more.

    What two threads have in a variable, no one knows who has: it is left out.
    """
    users = {wait.tid: wait.user for wait in waits}
    by_address: dict[int, set[_Lent]] = {}
    by_block: dict[int, set[_Lent]] = {}
    for tid in stacks.threads:
        for at, place in enumerate(stacks.of(tid)):
            if at < users.get(tid, 0) or place.file.endswith(_PRIMITIVES):
                continue
            found = {name: each for name, each in stacks.variables(place).items() if each in kept or each in past}
            stale = _stale(stacks, tid, place, found) if found else set()
            for name, address in found.items():
                if name not in stale and name != "self":
                    by_address.setdefault(address, set()).add(_Lent(tid, address, name))
            for address, name in _blocks(stacks, place, chain, kept | past):
                by_block.setdefault(address, set()).add(_Lent(tid, address, name, block=True))
    if not by_address and not by_block:
        by_address = _that_know_their_pool(stacks, users, chain[-1])
    best = by_address if len(by_address) > len(by_block) else by_block
    alone = (min(lent, key=lambda each: each.name) for lent in best.values() if len({each.tid for each in lent}) == 1)
    return tuple(sorted(alone, key=lambda each: (each.tid, each.address)))


def _that_know_their_pool(stacks: Stacks, users: Mapping[int, int], pool: int) -> dict[int, set[_Lent]]:
    """Connections that have their pool as an attribute, or what a variable's object has inside does (SQLAlchemy)."""
    found: dict[int, set[_Lent]] = {}
    for tid in stacks.threads:
        for place in stacks.of(tid)[users.get(tid, 0) :]:
            variables = {name: each for name, each in stacks.variables(place).items() if name != "self"}
            kinds = stacks.values.types(list(variables.values())) if variables else []
            likely = [pair for pair, kind in zip(variables.items(), kinds, strict=True) if _CONNECTION.search(kind)]
            stale = _stale(stacks, tid, place, [name for name, _ in likely]) if likely else set()
            for name, address in likely:
                if name not in stale and (inner := _of_pool(stacks, address, pool)):
                    found.setdefault(inner, set()).add(_Lent(tid, inner, name))
    return found


def _of_pool(stacks: Stacks, address: int, pool: int) -> int | None:
    held = list(stacks.values.attributes(address).values())
    if pool in held:
        return address
    kinds = stacks.values.types(held) if held else []
    inside = (each for each, kind in zip(held, kinds, strict=True) if _CONNECTION.search(kind))
    return next((each for each in inside if pool in stacks.values.attributes(each).values()), None)


def _stale(stacks: Stacks, tid: int, place: Place, names: Iterable[str]) -> set[str]:
    """Of a frame's variables, those that may have the value of an earlier turn of a loop."""
    index = stacks.index(tid, place)
    frame = stacks.frames[tid][index] if index is not None else None
    if frame is None:
        return set(names)
    if frame.file not in stacks.sources:
        stacks.sources[frame.file] = source_lines.text(stacks.pid, frame.file).splitlines()
    return set(loops.stale(stacks.sources[frame.file], frame.line, names))


def _blocks(stacks: Stacks, place: Place, chain: tuple[int, ...], things: set[int]) -> Iterator[tuple[int, str]]:
    """The open `with` blocks of a frame that the pool made: by a generator of its own, or by an object that has it."""
    try:
        ends = with_blocks.exits(stacks.read, place.frame)
    except (ProcessLookupError, PermissionError):
        raise
    except (OSError, struct.error):
        return
    managers = context_managers.Managers(stacks.read, lambda _: ())
    for each in ends:
        held: Mapping[str, int] = stacks.values.attributes(each.holder)
        frame = managers.frame_of(held["gen"]) if "gen" in held else None
        if frame is not None:
            variables = stacks.read.variables(frame)
            if variables.get("self") in chain:
                lent = next((address for address in variables.values() if address in things), each.holder)
                yield lent, stacks.read.named(frame.code).function
        elif each.holder not in chain and set(held.values()) & set(chain[-1:]):
            yield each.holder, stacks.values.type(each.holder).rpartition(".")[2]
