"""What a Python lock is called, and what it is inside of, by the objects that lead to it.

The waiting thread's frames are looked through for whatever leads to this very lock in one step: a variable, an
attribute of an object that a variable or a global holds, a global. That it is called so is certain, unlike a name read
off the line of source, which `source_lines.py` tells and which is kept where the objects agree with it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from stucktrace.collectors import memory
from stucktrace.collectors.cpython_objects import LOCK_TYPES, RLOCK_TYPE, LockObject
from stucktrace.collectors.python_frames import Frame
from stucktrace.collectors.python_stacks import Stacks

DEADLINE_S = 0.15
_FRAMES = 12
_TYPE_DICT = 264
_NO_ATTRIBUTES = frozenset(
    {"", "int", "str", "bytes", "float", "bool", "NoneType", "tuple", "list", "dict", "set", "function", "module"}
    | {"method", "builtin_function_or_method", "generator", "cell", "code", *LOCK_TYPES, RLOCK_TYPE}
)


@dataclass(frozen=True)
class Way:
    """One way from a frame to the lock."""

    name: str
    """The last step: a variable's or attribute's name."""
    holder: str = ""
    """The class of the object whose attribute it is."""
    bare: bool = False
    """A variable of the frame: named for this call alone."""
    around: bool = False
    """Leads to a `threading.Condition` around the lock."""

    @property
    def path(self) -> str:
        return f"{self.holder}.{self.name}" if self.holder else self.name


class LockNames:
    """Answers from one reading of the frames, as far as the time for it lasts."""

    def __init__(self, stacks: Stacks) -> None:
        self._stacks = stacks
        self._values, self._reader = stacks.values, stacks.walk.reader
        self._ends = time.monotonic() + DEADLINE_S
        self._seen: dict[tuple[object, ...], tuple[str, str]] = {}
        self._ways_from: dict[tuple[int, int], tuple[Way, ...]] = {}
        self._instances: dict[int, dict[str, int]] = {}
        self._classes: dict[int, dict[str, int]] = {}

    def named(self, ns_tid: int, held: LockObject, source: str) -> tuple[str, str]:
        """(its name, the full name of the type that it is inside of). `source`: its name in the line of source."""
        frames = self._stacks.frames.get(ns_tid, ())[:_FRAMES]
        key = (held.address, source, *(frame.code for frame in frames))
        if key not in self._seen:
            if time.monotonic() > self._ends:
                return source, ""
            self._seen[key] = (self._path(frames, held.address, source), self._container(frames, held.address))
        return self._seen[key]

    def _path(self, frames: tuple[Frame, ...], lock: int, source: str) -> str:
        # `with condition:` enters its lock in a frame of its own.
        naming = next((i for i, frame in enumerate(frames) if self._function(frame) != "__enter__"), 0)
        ways = list(self._ways(frames[naming], lock)) if frames else []
        agreeing = [way for way in ways if way.name == source.rpartition(".")[2]]
        if agreeing and not agreeing[0].bare:
            return agreeing[0].path if source.startswith("self.") else source
        outer = (way for frame in frames[naming + 1 :] for way in self._ways(frame, lock))
        ways += [way for way in outer if not way.bare and not way.around] if not agreeing or agreeing[0].bare else []
        ways.sort(key=lambda way: (way.bare, way.around))
        return ways[0].path if ways else source

    def _ways(self, frame: Frame, lock: int) -> Iterator[Way]:
        """What is the lock before a condition around it, and attributes before variables."""
        variables, globals_ = self._stacks.variables(frame), self._globals(frame)
        found: list[Way] = []
        for address in (*variables.values(), *globals_.values()):
            found += self._attributes(address, lock)
        found += self._among(globals_, lock)
        found += (replace(way, bare=True) for way in self._among(variables, lock))
        yield from sorted(found, key=lambda way: way.around)

    def _among(self, named: Mapping[str, int], lock: int, holder: str = "") -> Iterator[Way]:
        """Those of these names that hold the lock, or a `threading.Condition` around it."""
        kinds = self._values.types(list(named.values())) if named else ()
        for (name, address), kind in zip(named.items(), kinds, strict=True):
            if address == lock:
                yield Way(name, holder)
            elif kind == "Condition" and self._of(address).get("_lock") == lock:
                yield Way(name, holder, around=True)

    def _globals(self, frame: Frame) -> Mapping[str, int]:
        """The globals that a frame's code uses."""
        used = self._stacks.named(frame.code).used
        return self._values.entries(self._stacks.globals(frame), used) or {} if used else {}

    def _attributes(self, address: int, lock: int) -> tuple[Way, ...]:
        """The attributes of an object, or of its class, that are or surround the lock."""
        if (address, lock) not in self._ways_from:
            kind = self._values.type(address)
            name = self._reader.type_name(address) if kind == "type" else kind
            if kind in _NO_ATTRIBUTES:
                attributes: dict[str, int] = {}
            elif kind == "type":
                attributes = self._class(address)
            else:
                attributes = self._class(self._type_of(address)) | self._of(address)
            self._ways_from[address, lock] = tuple(self._among(attributes, lock, name.rpartition(".")[2]))
        return self._ways_from[address, lock]

    def _of(self, address: int) -> dict[str, int]:
        """An object's own attributes."""
        if address not in self._instances:
            self._instances[address] = self._values.attributes(address)
        return self._instances[address]

    def _class(self, kind: int) -> dict[str, int]:
        if kind not in self._classes:
            self._classes[kind] = self._values.mapping(self._stacks.walk.word(kind + _TYPE_DICT))
        return self._classes[kind]

    def _type_of(self, address: int) -> int:
        (kind,) = struct.unpack("<Q", memory.read(self._stacks.walk.pid, address + 8, 8))
        return int(kind)

    def _function(self, frame: Frame) -> str:
        return self._stacks.named(frame.code).function

    def _container(self, frames: tuple[Frame, ...], lock: int) -> str:
        """The type of what the lock is inside of: of a condition, that of the library's object around it, if any."""
        library = next((file[: -len("threading.py")] for frame in frames if (file := self._threading(frame))), "")
        inner = 0
        for frame in frames:
            variables = self._stacks.variables(frame)
            this = variables.get("self", 0)
            if not inner:
                inner = self._inside(frame, variables, lock)
                if inner and self._values.type(inner) != "Condition":
                    break
            elif this != inner:
                if not self._in_library(frame, library):
                    break
                if {inner, lock} & set(self._of(this).values()):
                    inner = this
                    break
        return self._full_name(inner) if inner else ""

    def _inside(self, frame: Frame, variables: Mapping[str, int], lock: int) -> int:
        """The object of a frame's variables that has the lock; the condition of `Condition.wait` for its own lock."""
        this = variables.get("self", 0)
        if self._function(frame) == "wait" and self._threading(frame) and variables.get("waiter") == lock:
            return this
        for address in (this, *variables.values()):
            known = address and self._values.type(address) not in (*_NO_ATTRIBUTES, "type")
            if known and lock in self._of(address).values():
                return address
        return 0

    def _threading(self, frame: Frame) -> str:
        file = self._stacks.named(frame.code).file
        return file if file.endswith("/threading.py") else ""

    def _in_library(self, frame: Frame, library: str) -> bool:
        file = self._stacks.named(frame.code).file
        return bool(library) and file.startswith(library) and "-packages/" not in file

    def _full_name(self, address: int) -> str:
        kind = self._type_of(address)
        name = self._reader.type_name(kind)
        module = self._values.text(self._class(kind).get("__module__", 0), 80)
        return name if "." in name or not module else f"{module}.{name}"
