"""Native call stacks: the C side of a thread, beside its Python frames."""

from __future__ import annotations

from dataclasses import dataclass

from stucktrace.facts.python import Frame

NO_TABLE = "no unwind table"


@dataclass(frozen=True)
class NativeStack:
    """The C frames of one thread, innermost first, without the interpreter's own machinery.

    Source: unwound from the saved registers while the thread slept, or py-spy --native.
    """

    tid: int
    frames: tuple[Frame, ...]
    """Each with `native`: the function and the mapped file it is in."""
    inside: tuple[int, ...]
    """Of each frame: how many of the thread's Python frames lie inside of it. 0: it is what the innermost Python line
    called; as many as there are: it called them all."""
    ended: str = ""
    """Why outer frames may be missing, NO_TABLE and for what among them; "" for a whole stack."""
