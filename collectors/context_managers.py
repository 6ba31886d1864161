"""Which lock a context manager holds while its `with` block is open, told from what ends the block: its `__exit__`.

A lock ends itself, and so does a `threading.Condition` for the lock inside it. Everything else holds one by way of its
own code, and that takes something for granted, which `locks` says in words:
- contextlib's generators: the suspended generator has `with` blocks of its own open;
- contextlib's ExitStack: the callbacks that it is still to call;
- a class whose `__enter__` acquires one of its attributes and whose `__exit__` releases it, by the names in their code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stucktrace.collectors import memory
from stucktrace.collectors.cpython_objects import LOCK_TYPES, RLOCK_TYPE
from stucktrace.collectors.python_containers import Containers
from stucktrace.collectors.python_frames import Frame
from stucktrace.collectors.python_stacks import Stacks

if TYPE_CHECKING:
    from stucktrace.collectors.with_blocks import Block

_DEEPEST = 4
_MAX_CALLBACKS = 256
_GENERATORS = ("_GeneratorContextManager", "_AsyncGeneratorContextManager")
_ACQUIRE, _RELEASE = frozenset({"acquire", "__enter__"}), frozenset({"release", "__exit__"})


@dataclass(frozen=True)
class Exit:
    """A method and its object."""

    name: str
    function: int
    """Address of the Python function, 0 for one in C."""
    holder: int


class Managers:
    """Reads the context managers of one reading of the frames.

    `blocks`: the open blocks of a frame, for those of a generator.
    """

    def __init__(self, stacks: Stacks, blocks: Callable[[Frame], Iterable[Block]]) -> None:
        self._stacks = stacks
        self._walk, self._values, self._reader = stacks.walk, stacks.values, stacks.walk.reader
        self._containers = Containers(stacks.walk.pid, stacks.values, stacks.minor)
        self._blocks = blocks
        self.generators: list[Frame] = []
        """The suspended generators of contextlib that were met since this was emptied."""
        self.given_up: set[int] = set()
        """Locks that a class's with block gives up while it is open, met since this was emptied."""
        self._depth = 0
        # A condition keeps its lock for life.
        self._conditions: dict[int, int | None] = {}
        # The header of 3.8 and 3.9 has the code first; from 3.10 on globals, builtins and names come before it.
        self._code, self._closure = (16, 48) if self._walk.offsets.function_name == 64 else (48, 72)

    def bound(self, value: int) -> Exit | None:
        """A method bound to its object."""
        kind = self._values.type(value) if value else ""
        if kind not in ("method", "builtin_function_or_method"):
            return None
        function, holder = self._walk.words(value + 16, 2)
        if not holder:
            return None
        if kind == "method":
            return self._method(function, holder)
        text = memory.read_some(self._walk.pid, self._walk.word(function), 16)
        return Exit(text.partition(b"\0")[0].decode("ascii", errors="replace"), 0, holder)

    def unbound(self, value: int, holder: int) -> Exit | None:
        """A function, and the object that follows it on the stack (3.14)."""
        return self._method(value, holder) if value and holder and self._stacks.minor >= (3, 14) else None

    def _method(self, function: int, holder: int) -> Exit | None:
        kind = self._values.type(function)
        if kind == "function":
            name = self._walk.word(function + self._walk.offsets.function_name)
            return Exit(self._values.text(name, 32) or "", function, holder)
        if kind in ("method_descriptor", "wrapper_descriptor"):
            return Exit(self._values.text(self._walk.word(function + 24), 32) or "", 0, holder)
        return self.bound(function)

    def locks(self, ends: Exit) -> Iterator[tuple[int, str]]:
        """(lock, what this takes for granted: "" for nothing)."""
        if ends.name == "__exit__" and (lock := self.lock_in(ends.holder)):
            yield lock, ""
        elif ends.function and self._depth < _DEEPEST:
            self._depth += 1
            try:
                yield from self._held_by(ends)
            finally:
                self._depth -= 1

    def lock_in(self, address: int) -> int | None:
        """The lock that this object is, or that is inside it if it is a `threading.Condition`."""
        kind = self._reader.class_name(address) if address else ""
        if kind in (*LOCK_TYPES, RLOCK_TYPE):
            return address
        if kind != "Condition":
            return None
        if address not in self._conditions:
            inner = self._values.attribute(address, "_lock") if self._is_of_threading(address) else None
            self._conditions[address] = inner if inner and self._is_lock(inner) else None
        return self._conditions[address]

    def _is_of_threading(self, instance: int) -> bool:
        """Other classes have the name too, and do as they like in their blocks."""
        kind = self._walk.word(instance + 8)
        module = self._values.attributes_of_class(kind).get("__module__", 0)
        return self._values.text(module, 16) == "threading"

    def _is_lock(self, address: int) -> bool:
        return self._reader.class_name(address) in (*LOCK_TYPES, RLOCK_TYPE)

    def _held_by(self, ends: Exit) -> Iterator[tuple[int, str]]:
        kind = self._reader.class_name(ends.holder)
        attributes = self._values.attributes(ends.holder)
        if kind in _GENERATORS and "gen" in attributes:
            frame = self.frame_of(attributes["gen"])
            if frame is not None:
                self.generators.append(frame)
                told = f"the with block of contextlib's generator {self._stacks.named(frame.code).function}"
                for block in self._blocks(frame):
                    yield block.lock, block.assumes or f"{told} still holds it"
        elif "_exit_callbacks" in attributes:
            for callback in self._callbacks(attributes["_exit_callbacks"]):
                for lock in self._released_by(callback):
                    yield lock, f"the with block of contextlib's {kind} still holds it"
        else:
            for name, value in attributes.items():
                inner = self.lock_in(value)
                if inner and self._wraps(ends, name, _ACQUIRE, _RELEASE):
                    yield inner, f"the with block of {kind}, which holds it as {name}, still does"
                elif inner and self._wraps(ends, name, _RELEASE, _ACQUIRE):
                    self.given_up.add(inner)

    def frame_of(self, generator: int) -> Frame | None:
        """The frame of a generator."""
        if self._values.type(generator) not in ("generator", "async_generator"):
            return None
        place = generator + self._walk.offsets.generator
        address = self._walk.word(place) if self._walk.offsets.blocks else place
        frame = self._walk.frame(address) if address else None
        return frame if frame is not None and self._walk.code(frame.code) is not None else None

    def _callbacks(self, deque: int) -> Iterator[int]:
        """The callbacks of an ExitStack: a deque of pairs, the callback second."""
        for pair in (self._containers.items(deque) or ())[:_MAX_CALLBACKS]:
            items = self._values.items(pair) or ()
            if len(items) == 2:
                yield items[1]

    def _released_by(self, callback: int) -> Iterator[int]:
        """The locks that an ExitStack's callback releases: an `__exit__`, or a function around `lock.release`."""
        ends = self.bound(callback)
        if ends is not None and ends.name in ("__exit__", "__aexit__"):
            yield from (lock for lock, _ in self.locks(ends))
        elif ends is None and self._values.type(callback) == "function":
            for cell in self._values.items(self._walk.word(callback + self._closure)) or ():
                called = self.bound(self._values.content(cell) or 0)
                if called is not None and called.name == "release" and (lock := self.lock_in(called.holder)):
                    yield lock

    def _wraps(self, ends: Exit, attribute: str, enters: frozenset[str], exits: frozenset[str]) -> bool:
        """Its `__enter__` does the one with this attribute and its `__exit__` the other, themselves or in a method."""
        methods = self._methods(ends.holder)
        entered = methods.get(ends.name.replace("exit", "enter"), 0)
        return self._uses(entered, methods, attribute, enters) and self._uses(ends.function, methods, attribute, exits)

    def _uses(self, function: int, methods: dict[str, int], attribute: str, how: frozenset[str]) -> bool:
        used = self._names_of(function)
        called = [self._names_of(methods[name]) for name in used if name in methods]
        return any(attribute in names and names & how for names in (used, *called))

    def _names_of(self, function: int) -> frozenset[str]:
        if not function or self._values.type(function) != "function":
            return frozenset()
        return self._stacks.named(self._walk.word(function + self._code)).used

    def _methods(self, instance: int) -> dict[str, int]:
        """What an object's class has, and what it inherits."""
        kind = self._walk.word(instance + 8)
        found: dict[str, int] = {}
        for each in reversed(self._values.method_resolution_order(kind)[:-1]):
            found |= self._values.attributes_of_class(each)
        return found
