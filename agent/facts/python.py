"""The Python side of a process: frames, threads, the work in hand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """One Python frame (or, with `native`, one C frame), as py-spy names it."""

    function: str
    """Qualified with its class from CPython 3.11 on ("Condition.wait"), bare before ("wait")."""
    file: str
    """Full path in the target's view, or the library of a native frame."""
    line: int
    native: bool = False
    locals: tuple[tuple[str, str], ...] = ()
    """(name, repr) when --locals was asked for, already redacted."""

    @property
    def text(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


@dataclass(frozen=True)
class PythonThread:
    """The Python side of one thread. Frames are innermost first."""

    tid: int
    name: str
    frames: tuple[Frame, ...]
    owns_gil: bool = False
    ident: int | None = None
    """`threading.get_ident()`: the pthread address."""


@dataclass(frozen=True)
class PythonFact:
    """The interpreter in the target. Source: py-spy dump --json."""

    version: str
    threads: tuple[PythonThread, ...]
    gil_readable: bool = True
    """False where the GIL's holder cannot be known (free-threaded build, or a partial read)."""
    paused_at_most_s: float | None = None
    """Upper bound of the time the target stood still; None: not stopped at all."""


@dataclass(frozen=True)
class WorkFact:
    """What a thread is serving. Source: the frames' variables, read from memory without stopping the target."""

    tid: int
    kind: str
    """"request" or "task"."""
    name: str
    """"GET /orders/7" (never the query), or the task's name."""
    id: str = ""
    """The task's id."""
    age_s: float | None = None
    method: str = ""
    path: str = ""
    peer: str = ""
    """The client's "address:port", or its address alone."""
