"""Pools: whose results or connections a thread waits for, and what every member of the pool does meanwhile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolMember:
    """One thread or process of a pool; of a pool of connections, one connection that is checked out."""

    pid: int
    tid: int | None = None
    """The thread that works for the pool, or that has the connection; None: not known."""
    work: int | None = None
    """Which result its present task will give (as `Awaited.result`), or the connection's address; None: no task."""
    does: str = ""
    """The function of its task, or the variable that has the connection."""
    idle: bool = False
    """It waits for its next task."""
    start_time: int | None = None
    """Of a process: when it was started, in clock ticks since boot."""
    age_s: float | None = None
    """Of a process: how long ago that was."""


@dataclass(frozen=True)
class Awaited:
    """One result of the pool, or one of its connections, that a thread of the target waits for."""

    tid: int
    result: int
    """Address of the future; of a process pool the number of its job; 0 for a connection."""
    state: str
    """"queued", "running" (a member works on it), "unsent" (no thread is there to hand it out), "nowhere" (in no queue,
    in no pipe and in no member's hands), "locked" (every member waits for the lock of their queue, and none has it),
    "unknown"; of a connection "none free"."""
    runs_on: int | None = None
    """The tid of the member that works on it."""
    of: int = 1
    """How many unfinished results this thread waits for at once, those of other pools included."""
    frame: int | None = None
    """Index (innermost 0) of the Python frame that waits, in the frames of `tid`."""


@dataclass(frozen=True)
class PoolFact:
    """A pool for whose results or connections a thread waits. Source: process_vm_readv, read twice."""

    address: int
    kind: str
    """"threads", "processes" or "connections"."""
    name: str
    """What its code calls it: the prefix of its threads' names, or its type."""
    size: int | None
    """The most members it may have; None: not known."""
    members: tuple[PoolMember, ...] = ()
    queued: int | None = None
    """Tasks that wait for a member; None: not known."""
    awaited: tuple[Awaited, ...] = ()
    complete: bool = False
    """Every member is in `members`; of connections: all that the pool may ever open are checked out, by these."""
    certain: bool = False
    """Of connections: open `with` blocks have them, and the pool's limit was read; else variables tell, which may keep
    what was given back."""
    made_by: int | None = None
    """The process that made it, in the target's own pid words, where that is not this one."""
    helpers: tuple[int, ...] = ()
    """The tids of the threads that hand out its tasks and take its results, as far as that rests on them."""
