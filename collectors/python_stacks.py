"""One reading of every thread's Python frames, with what a frame's code is called, which names it uses, and what its
variables hold.

Source: `python_frames.py` walks the frames, `python_values.py` reads the objects. The frames that the interpreter puts
between Python and C are left out, so the index of a frame counts as py-spy counts. A suspended generator or coroutine
is on no thread's stack, and its frame is not here.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from stucktrace.collectors import python_frames
from stucktrace.collectors.cpython_objects import Reader
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.python_frames import Frame, Walk
from stucktrace.collectors.python_values import Values
from stucktrace.facts import Frame as Shown

DEADLINE_S = 3.0
BUDGET_S = 0.8
"""Of processor time: a busy machine must not change the answer before the deadline."""
_READINGS = 3
_LONGEST_PATH = 4096
_LONGEST_NAME = 512


@dataclass(frozen=True)
class Named:
    """What a code object says of itself."""

    function: str
    file: str
    first_line: int
    used: frozenset[str]
    """The attributes and globals that it uses, by name."""
    variables: tuple[str, ...]
    qualified: str = ""

    @property
    def shown(self) -> str:
        """As py-spy shows it."""
        return self.qualified or self.function


_NAMELESS = Named("", "", 0, frozenset(), ())


@dataclass
class Stacks:
    """The frames of each thread, innermost first, by the thread's own tid in the target's view."""

    minor: tuple[int, int]
    walk: Walk
    values: Values
    frames: Mapping[int, tuple[Frame, ...]]
    complete: bool
    """Every thread with a Python state was read to the end."""
    _named: dict[int, Named] = field(default_factory=dict)

    def named(self, code: int) -> Named:
        if code not in self._named:
            self._named[code] = self._read(code)
        return self._named[code]

    def _read(self, address: int) -> Named:
        code = self.walk.code(address)
        if code is None:
            return _NAMELESS
        tuples = [self.values.items(each) or () for each in (*code.names, code.used)]
        names = iter(self.values.short_texts([name for each in tuples for name in each]))
        *variables, used = [tuple(next(names) for _ in each) for each in tuples]
        return Named(
            self.values.text(code.function, _LONGEST_NAME) or "",
            self.values.text(code.file, _LONGEST_PATH) or "",
            code.first_line,
            frozenset(used),
            tuple(name for each in variables for name in each),
            (self.values.text(code.qualified, _LONGEST_NAME) or "") if code.qualified else "",
        )

    def variables(self, frame: Frame) -> dict[str, int]:
        """The addresses of what a frame's variables hold, out of their cells; those that hold nothing are left out."""
        names, slots = self.named(frame.code).variables, self.walk.slots(frame)
        if len(names) != len(slots):
            return {}
        held = self.walk.objects(slots.start, len(slots)) if names else ()
        kinds = self.values.types(held)
        content = (
            self.values.content(address) if kind == "cell" else address if kind else 0
            for address, kind in zip(held, kinds, strict=True)
        )
        # Up to 3.10 an argument that became a cell has a slot of each kind; the cell is the later one.
        return {name: address for name, address in zip(names, content, strict=True) if address}

    def notified_by(self, frame: Frame) -> int:
        """The `threading.Condition` whose `wait` this frame is; 0 for any other frame.

        It acquires a lock of its own twice, the second time for the notification, which no thread holds.
        """
        named = self.named(frame.code)
        if named.function != "wait" or not named.file.endswith("/threading.py") or "waiter" not in named.variables:
            return 0
        return self.variables(frame).get("self", 0)

    def globals(self, frame: Frame) -> int:
        """Address of the dict of a frame's module."""
        return python_frames.object_of(frame.word(self.walk.offsets.globals))

    def index(self, ns_tid: int, place: int, shown: Sequence[Shown]) -> int | None:
        """The index in py-spy's frames of the frame at `place` in ours; None unless the two agree throughout."""
        ours = [self.named(frame.code) for frame in self.frames.get(ns_tid, ())]
        theirs = [(index, frame) for index, frame in enumerate(shown) if not frame.native]
        if len(ours) != len(theirs) or not 0 <= place < len(ours):
            return None
        agree = all(
            named.shown == frame.function and (not frame.file.startswith("/") or frame.file.endswith(named.file))
            for named, (_, frame) in zip(ours, theirs, strict=True)
        )
        return theirs[place][0] if agree else None


Examined = list[tuple[int, int, str, int]]
"""What was found in a thread's frames: how far from the outermost frame, counted from 1, and what; [] for nothing."""


def read(
    reader: Reader,
    found: Interpreter | None,
    idents: Mapping[int, int],
    examine: Callable[[Stacks], Callable[[int, int, tuple[Frame, ...]], Examined]],
) -> Stacks | None:
    """`idents`: pthread address -> the target's own tid. None for a version whose frames are not known.

    `examine` makes of this reading what looks at each thread's frames while they are fresh: (ns_tid, how many frames
    that thread has inside of these, frames). It has to come to the same twice, on the same frames, or it is done again:
    a frame's memory is soon that of another one, up to 3.10 of another thread's.
    """
    walk = python_frames.walk(reader, found, DEADLINE_S)
    if walk is None or found is None or found.minor is None:
        return None
    frames: dict[int, tuple[Frame, ...]] = {}
    stacks = Stacks(found.minor, walk, Values(reader, found.minor), frames, False)
    examined, complete = examine(stacks), True
    ends = time.thread_time() + BUDGET_S
    try:
        for state in walk.states():
            ns_tid = walk.owner(state, idents)
            if ns_tid is None or time.thread_time() > ends:
                return stacks
            inside = frames.get(ns_tid, ())
            seen = _read(walk, state, partial(examined, ns_tid, len(inside)))
            complete = complete and seen is not None
            frames[ns_tid] = inside + (seen or ())
    except ProcessLookupError:
        raise
    except (OSError, struct.error):
        return stacks
    return replace(stacks, complete=complete and set(idents.values()) <= frames.keys())


def _read(walk: Walk, state: int, examine: Callable[[tuple[Frame, ...]], Examined]) -> tuple[Frame, ...] | None:
    """The frames of one thread; None where they are not read to the end or do not stand still."""
    for _ in range(_READINGS):
        try:
            frames = _frames(walk, state)
            examined = examine(frames) if frames else []
            if frames is None or not examined:
                return frames
            again = _frames(walk, state)
            outer = max(distance for distance, *_ in examined)
            if again is not None and _places(again[-outer:]) == _places(frames[-outer:]) and examine(again) == examined:
                return again
        except ProcessLookupError:
            raise
        except (OSError, struct.error):
            # A frame that went while it was read: that thread runs, and what it holds changes.
            continue
    return None


def _frames(walk: Walk, state: int) -> tuple[Frame, ...] | None:
    seen = tuple(walk.frames(state))
    if len(seen) >= python_frames.MAX_FRAMES or time.monotonic() > walk.ends:
        return None
    return tuple(filter(walk.runs_python, seen))


def _places(frames: Sequence[Frame]) -> list[tuple[int, int]]:
    return [(frame.address, frame.code) for frame in frames]
