"""The suspended tasks of asyncio's event loops, with the coroutines that each of them is inside.

asyncio keeps a weak set of its tasks in `asyncio.tasks` (`_all_tasks`, from CPython 3.12 on `_scheduled_tasks`). The
way to it begins at a frame of the loop's thread, whose module imports `asyncio.tasks` and does so under uvloop too; no
search of memory is needed. In a task the one word that leads to a coroutine is its own, and its name is the word behind
it (from 3.12 on a number, until somebody asks for the name). `coroutines.py` follows what the coroutine awaits. All is
read twice, and what does not agree is left out: it ran. CPython 3.9 to 3.13; from 3.14 on asyncio keeps a list in each
thread's state instead. Source: process_vm_readv.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stucktrace.collectors import agreeing, interpreter, memory, python_frames, regions, suspended_locks
from stucktrace.collectors.coroutines import KNOWN, Coroutines
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.frame_names import Names
from stucktrace.collectors.hubs import LOOP_FILES, loop_threads
from stucktrace.collectors.python_frames import Walk
from stucktrace.collectors.python_values import Values
from stucktrace.errors import CollectorError
from stucktrace.facts import Frame, GreenletFact, Missing, ProcessFact, PythonFact

WHAT = "asyncio tasks"
DEADLINE_S = 1.0
MOST = 2_000
_SETS = ("_scheduled_tasks", "_all_tasks")
_TASK_BYTES = 192
_MODULE_DICT = 16
_SET_MASK, _SET_TABLE = 32, 40
_MOST_SLOTS = 1 << 16
_REFERENT = 16
"""In a weak reference: its object. In a task: its loop."""
_PARTLY = "there were more of them than time"


@dataclass(frozen=True)
class Tasks:
    facts: tuple[GreenletFact, ...]
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True)
class _Read:
    """One reading of all that a fact tells."""

    name: int
    """Address of what it is called by."""
    loop: int
    frames: tuple[Frame, ...]
    locks: tuple[tuple[int, int], ...]


def collect(process: ProcessFact, python: PythonFact, *, locks: bool) -> Tasks:
    """`locks`: which locks they hold is asked too. Raises CollectorError when none could be looked for."""
    tids = loop_threads(python)
    idents = {thread.ident: thread.tid for thread in python.threads if thread.ident}
    with memory.reading(WHAT):
        mapped = regions.read(process.pid)
        found = interpreter.find(process.pid, mapped)
        walk = python_frames.walk(Reader(process.pid, mapped, Layout()), found, DEADLINE_S)
        if walk is None or found is None or found.minor not in KNOWN:
            because = f"those of Python {found.version if found else ''} are kept in a way that is not known"
            raise CollectorError(WHAT, because, "none; the frames of its threads are shown")
        return _Target(walk, found.minor, idents, tids, locks).read()


class _Target:
    def __init__(
        self, walk: Walk, minor: tuple[int, int], idents: Mapping[int, int], tids: Sequence[int], locks: bool
    ) -> None:
        self._walk = walk
        self._minor = minor
        self._idents = idents
        self._tids = tids
        self._with_locks = locks
        self._values = Values(walk.reader, minor)
        self._names = Names(walk, self._values, minor)
        self._coroutines = Coroutines(walk, minor)
        self._known = 0
        self._loops: dict[int, int | None] = {}

    def read(self) -> Tasks:
        known = self._weak_set()
        if known is None:
            raise CollectorError(WHAT, "asyncio's set of them was not found", "run stucktrace again")
        tasks, whole = self._tasks(known)
        agreed, in_time = agreeing.read(self._read, tasks, self._walk.ends)
        names = self._values.short_texts([read.name for read in agreed.values()])
        facts = tuple(
            GreenletFact(
                task,
                "asyncio-task",
                name or read.frames[-1].function,
                read.frames,
                tid=self._tid(read.loop),
                locks=read.locks,
            )
            for (task, read), name in zip(agreed.items(), names, strict=True)
        )
        partly = Missing(WHAT, _PARTLY, "run stucktrace again, on a quieter machine if it can be")
        return Tasks(facts, () if whole and in_time else (partly,))

    def _weak_set(self) -> int | None:
        for state in self._walk.states():
            if self._walk.owner(state, self._idents) not in self._tids:
                continue
            for frame in self._walk.frames(state):
                named = self._names.frame(frame) if self._walk.runs_python(frame) else None
                if named is not None and named.file.endswith(LOOP_FILES):
                    return self._set_of(python_frames.object_of(frame.word(self._walk.offsets.globals)))
        return None

    def _set_of(self, names: int) -> int | None:
        """The set inside the weak one, by way of a module's names."""
        module = (self._values.entries(names, ("tasks",)) or {}).get("tasks")
        if module is None or self._values.type(module) != "module":
            return None
        kept = self._values.entries(self._walk.word(module + _MODULE_DICT), _SETS) or {}
        weak = next((kept[name] for name in _SETS if name in kept), None)
        return self._values.attribute(weak, "data") if weak is not None else None

    def _tasks(self, known: int) -> tuple[Sequence[int], bool]:
        """The tasks in this set of weak references, and whether these are all."""
        slots = self._walk.word(known + _SET_MASK) + 1
        if self._values.type(known) != "set" or not 0 < slots <= _MOST_SLOTS:
            return (), False
        table = self._walk.word(known + _SET_TABLE)
        references = [each for each in self._walk.words(table, 2 * slots)[::2] if self._is_mapped(each)]
        tasks = memory.read_words(self._walk.pid, [each + _REFERENT for each in references[:MOST]])
        return [task for task in tasks if task and self._is_mapped(task)], len(references) <= MOST

    def _is_mapped(self, address: int) -> bool:
        return address % 8 == 0 and self._walk.reader.regions.find(address) is not None

    def _read(self, tasks: Sequence[int]) -> dict[int, _Read]:
        """One reading of those that are suspended."""
        read = memory.read_each(self._walk.pid, tasks, _TASK_BYTES)
        words = {
            task: struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8])
            for task, data in zip(tasks, read, strict=True)
        }
        places = {task: place for task, each in words.items() if (place := self._place(each)) is not None}
        coroutines = {task: words[task][place] for task, place in places.items()}
        stacks = self._coroutines.frames(list(coroutines.values()))
        found: dict[int, _Read] = {}
        for task, coroutine in coroutines.items():
            walked = stacks.get(coroutine, ())
            named = self._named(walked)
            if named is not None:
                name, loop = words[task][places[task] + 1], words[task][_REFERENT // 8]
                found[task] = _Read(name, loop, *named)
        return found

    def _named(
        self, walked: Sequence[python_frames.Frame]
    ) -> tuple[tuple[Frame, ...], tuple[tuple[int, int], ...]] | None:
        """Its frames, and the locks that they hold; None for one without, or where they could not be read."""
        try:
            frames = tuple(named for frame in walked if (named := self._names.frame(frame)) is not None)
            if not frames or len(frames) != len(walked):
                return None
            if not self._with_locks:
                return frames, ()
            return frames, suspended_locks.read(self._walk, self._values, self._minor, walked)
        except (ProcessLookupError, PermissionError):
            raise
        except (OSError, struct.error):
            return None

    def _place(self, words: Sequence[int]) -> int | None:
        """Index of the word of a task that leads to its coroutine: the same in all of them."""
        if not self._known:
            for index in range(3, len(words) - 1):
                word = words[index]
                if self._is_mapped(word) and self._values.type(word) in ("coroutine", "generator"):
                    self._known = index
                    break
        return self._known if 0 < self._known < len(words) - 1 else None

    def _tid(self, loop: int) -> int | None:
        """The thread that runs the loop: the only one that does run one, or the one that the loop names."""
        if len(self._tids) == 1:
            return self._tids[0]
        if loop not in self._loops:
            running = self._values.attribute(loop, "_thread_id")
            ident = self._values.integer(running) if running is not None else None
            self._loops[loop] = self._idents.get(ident) if ident is not None else None
        return self._loops[loop]
