"""What threads do in the kernel: their state, their system calls, what these achieved."""

from __future__ import annotations

from dataclasses import dataclass

CALLS = "system calls"
"""The name of the `Missing` that says that they may not be read."""


@dataclass(frozen=True)
class Syscall:
    """The system call that a thread is inside. Source: bpf_task_pt_regs or /proc/PID/task/TID/syscall."""

    number: int
    name: str
    args: tuple[int, ...]
    """The six raw arguments, unsigned 64-bit."""
    fd: int | None = None
    """The fd it waits on: the call's own fd argument, or the one fd of a poll or select set, else None."""
    fds: tuple[int, ...] = ()
    """Every fd of a poll, ppoll, select or pselect6 set, read from the target's memory; else just `fd`."""
    waits_to: str = ""
    """"read", "write", "connect" or "": what it waits to be able to do with its fd, as far as its events tell."""
    endless: bool | None = None
    """True: no timeout was given. False: one was. None: the call takes none, or it could not be read."""
    timeout_s: float | None = None
    """The relative timeout given, where it could be read."""
    poll_events: int | None = None
    """The events asked for, where it is a poll or ppoll of one fd."""


@dataclass(frozen=True)
class ThreadFact:
    """One thread in the kernel's eyes. Source: iter/task, else /proc/PID/task/TID/{stat,syscall,status,sched,wchan}."""

    tid: int
    ns_tid: int
    name: str
    state: str
    """The kernel's letter: R S D T t Z X I."""
    syscall: Syscall | None = None
    """None: on the CPU in user space, or not readable."""
    on_cpu_s: float | None = None
    """User plus system CPU time since the thread began."""
    blocked_s: float | None = None
    """How long ago it went to sleep (its present sleep, which can be one of many short ones). None when running."""
    blocked_since_source: str = ""
    switches: int | None = None
    """Voluntary plus involuntary context switches; unchanged between two looks means it never woke."""
    wchan: str = ""
    kernel_stack: tuple[str, ...] = ()
    cpu_s_in_window: float | None = None
    """CPU time used between two looks (`Snapshot.window_s` apart); None when there was one look."""
    slept_through: bool | None = None
    """True: between two looks it never woke. None when there was one look."""


@dataclass(frozen=True)
class CallActivity:
    """What one thread did with one fd through one call during the sampling window. Source: the waits probes."""

    tid: int
    call: str
    fd: int | None
    returns: int
    """How often the call returned."""
    moved_bytes: int
    """Sum of positive results of calls that move bytes (recv*, send*, read, write); 0 for the rest."""
    empty: int
    """Returns that achieved nothing: EAGAIN, ETIMEDOUT, 0 events."""
    last_error: int
    """errno of the last failed return, 0 when none failed."""
