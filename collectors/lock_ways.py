"""What leads to an object in one step from a frame: a variable, a global that its code uses, an attribute of either.

For a lock that is how the code itself writes it: "lock", "self._lock", "registry.lock". An attribute can be of the
object's class as well. A `threading.Condition` leads to the lock inside it too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from stucktrace.collectors import memory
from stucktrace.collectors.cpython_objects import LOCK_TYPES, RLOCK_TYPE
from stucktrace.collectors.python_frames import Frame
from stucktrace.collectors.python_stacks import Stacks

PLAIN_TYPES = frozenset(
    {"", "int", "str", "bytes", "float", "bool", "NoneType", "tuple", "list", "dict", "set", "function", "module"}
    | {"method", "builtin_function_or_method", "generator", "cell", "code", *LOCK_TYPES, RLOCK_TYPE}
)
"""Types whose objects have no attributes of interest here."""


@dataclass(frozen=True)
class Way:
    """One way from a frame to an object."""

    name: str
    """The last step: a variable's or attribute's name."""
    holder: str = ""
    """The class of the object whose attribute it is."""
    base: str = ""
    """The variable or global that holds that object."""
    bare: bool = False
    """A variable of the frame: named for this call alone."""
    around: bool = False
    """Leads to a `threading.Condition` around it."""

    @property
    def path(self) -> str:
        return f"{self.holder}.{self.name}" if self.holder else self.name

    @property
    def expression(self) -> str:
        """As the frame's code writes it."""
        return f"{self.base}.{self.name}" if self.base else self.name


class Ways:
    """Answers from one reading of the frames, and remembers it."""

    def __init__(self, stacks: Stacks) -> None:
        self.stacks = stacks
        self._values, self._reader = stacks.values, stacks.walk.reader
        self._from: dict[Frame, Mapping[int, tuple[Way, ...]]] = {}
        self._variables: dict[Frame, Mapping[str, int]] = {}
        self._globals: dict[tuple[int, int], Mapping[str, int]] = {}
        self._below: dict[int, tuple[tuple[int, Way], ...]] = {}
        self._attributes: dict[int, dict[str, int]] = {}
        self._classes: dict[int, dict[str, int]] = {}

    def to(self, frame: Frame, address: int) -> tuple[Way, ...]:
        """From a frame to an object: straight ones before those around it, attributes before variables."""
        if frame not in self._from:
            found: dict[int, tuple[Way, ...]] = {}
            for target, way in self._all(frame):
                found[target] = (*found.get(target, ()), way)
            self._from[frame] = {
                target: tuple(sorted(ways, key=lambda way: way.around)) for target, ways in found.items()
            }
        return self._from[frame].get(address, ())

    def releases_by_another_name(self, frame: Frame, lock: int) -> bool:
        """It has the bound `release` of the lock itself: in a variable, or in a global or attribute that it uses."""
        used = self.stacks.named(frame.code).used
        variables = self.variables(frame)
        found = {*variables.values(), *self._used_globals(frame).values()}
        for address, kind in zip(variables.values(), self._values.types(list(variables.values())), strict=True):
            if kind not in PLAIN_TYPES:
                found.update(value for name, value in self.attributes(address).items() if name in used)
        values = [value for value in found if value]
        for value, kind in zip(values, self._values.types(values), strict=True):
            if kind == "builtin_function_or_method":
                definition, holder = self.stacks.walk.words(value + 16, 2)
                if holder == lock and definition:
                    text = memory.read_some(self.stacks.walk.pid, self.stacks.walk.word(definition), 16)
                    if text.partition(b"\0")[0] in (b"release", b"release_lock"):
                        return True
        return False

    def variables(self, frame: Frame) -> Mapping[str, int]:
        if frame not in self._variables:
            self._variables[frame] = self.stacks.variables(frame)
        return self._variables[frame]

    def attributes(self, address: int) -> Mapping[str, int]:
        """An object's own."""
        if address not in self._attributes:
            self._attributes[address] = self._values.attributes(address)
        return self._attributes[address]

    def full_name(self, address: int) -> str:
        """Of an object's type, with its module."""
        kind = self._type_of(address)
        name = self._reader.type_name(kind)
        module = self._values.text(self._class(kind).get("__module__", 0), 80)
        return name if "." in name or not module else f"{module}.{name}"

    def _all(self, frame: Frame) -> Iterator[tuple[int, Way]]:
        variables, globals_ = self.variables(frame), self._used_globals(frame)
        for base, address in (*variables.items(), *globals_.items()):
            yield from ((target, replace(way, base=base)) for target, way in self._under(address))
        yield from self._among(globals_)
        yield from ((target, replace(way, bare=True)) for target, way in self._among(variables))

    def _used_globals(self, frame: Frame) -> Mapping[str, int]:
        key = frame.code, self.stacks.globals(frame)
        if key not in self._globals:
            used = self.stacks.named(frame.code).used
            self._globals[key] = self._values.entries(key[1], used) or {} if used else {}
        return self._globals[key]

    def _under(self, address: int) -> tuple[tuple[int, Way], ...]:
        """The attributes of an object and its class."""
        if address not in self._below:
            kind = self._values.type(address)
            name = self._reader.type_name(address) if kind == "type" else kind
            if kind in PLAIN_TYPES:
                attributes: Mapping[str, int] = {}
            elif kind == "type":
                attributes = self._class(address)
            else:
                attributes = {**self._class(self._type_of(address)), **self.attributes(address)}
            self._below[address] = tuple(self._among(attributes, name.rpartition(".")[2]))
        return self._below[address]

    def _among(self, named: Mapping[str, int], holder: str = "") -> Iterator[tuple[int, Way]]:
        kinds = self._values.types(list(named.values())) if named else ()
        for (name, address), kind in zip(named.items(), kinds, strict=True):
            if kind in (*LOCK_TYPES, RLOCK_TYPE):
                yield address, Way(name, holder)
            elif kind == "Condition" and (inner := self.attributes(address).get("_lock")):
                yield inner, Way(name, holder, around=True)

    def _class(self, kind: int) -> dict[str, int]:
        if kind not in self._classes:
            self._classes[kind] = self._values.attributes_of_class(kind)
        return self._classes[kind]

    def _type_of(self, address: int) -> int:
        (kind,) = struct.unpack("<Q", memory.read(self.stacks.walk.pid, address + 8, 8))
        return int(kind)
