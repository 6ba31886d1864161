"""What waits inside one thread: the suspended greenlets of a hub, the suspended tasks of an event loop."""

from __future__ import annotations

from dataclasses import dataclass

from stucktrace.facts.python import Frame


@dataclass(frozen=True)
class GreenletFact:
    """One that has begun and is switched out. Source: process_vm_readv, two readings that agree."""

    address: int
    kind: str
    """"gevent", "eventlet", "greenlet" (neither of them) or "asyncio-task"."""
    name: str
    """The function that it runs, by its outermost frame that is not of its library, or the name of the task."""
    frames: tuple[Frame, ...]
    """Innermost first."""
    calls: str = ""
    """What the line of its innermost frame calls, where compiled code without frames of its own is the rest of it."""
    tid: int | None = None
    """The thread it belongs to: the one its C stack is copied back to, or that runs its loop."""
    main: bool = False
    """The thread's own greenlet, in which no greenlet was spawned."""
    locks: tuple[tuple[int, int], ...] = ()
    """What its open `with` blocks hold: (a lock's address as in `LockFact`, index of the frame). Read only where the
    thread waits for a lock."""
