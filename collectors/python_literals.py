"""Settings as Python values, read from another process's memory: None, bool, int, float, str, list, tuple and dict.

What is anything else (a lazy string, a class, a callable, a subclass of str or int) is `Other`: its type, never a guess
at its value. Layouts as in python_values.py; a bool is an int whose type is `bool`.
"""

from __future__ import annotations

from dataclasses import dataclass

from stucktrace.collectors import memory
from stucktrace.collectors.cpython_objects import Reader
from stucktrace.collectors.python_containers import Containers
from stucktrace.collectors.python_values import Values

LONGEST_TEXT = 1 << 11
_MOST_ITEMS = 256
_DEPTH = 4


@dataclass(frozen=True)
class Other:
    """An object whose value is not read."""

    type_name: str


Key = str | int | Other
Literal = None | bool | int | float | str | Other | tuple["Literal", ...] | dict[Key, "Literal"]


class Literals:
    """Reads the values of one process."""

    def __init__(self, reader: Reader, values: Values, minor: tuple[int, int]) -> None:
        self._pid = reader.pid
        self._values = values
        self._containers = Containers(reader.pid, values, minor)

    def read(self, address: int, depth: int = _DEPTH) -> Literal:
        """The value at an address. Lists are tuples. Raises OSError where the process or the permission is gone."""
        kind = self._values.type(address)
        found: Literal = None
        if kind == "NoneType":
            return None
        if kind == "bool":
            found = self._truth(address)
        elif kind == "int":
            found = self._values.integer(address)
        elif kind == "float":
            found = self._values.number(address)
        elif kind == "str":
            found = self._values.text(address, LONGEST_TEXT)
        elif kind in ("list", "tuple") and depth:
            items = self._containers.items(address)
            if items is not None and len(items) <= _MOST_ITEMS:
                found = tuple(self.read(item, depth - 1) for item in items)
        elif depth:
            found = self.table(address, depth - 1)
        return Other(kind) if found is None else found

    def table(self, address: int, depth: int = _DEPTH) -> dict[Key, Literal] | None:
        """Of a dict or a kind of it, all that it holds; None for anything else."""
        pairs = self._values.pairs(address)
        if pairs is None or len(pairs) > _MOST_ITEMS:
            return None
        return {self.key(key): self.read(value, depth) for key, value in pairs}

    def key(self, address: int) -> Key:
        """Of a kind of int its value: it is as good a key."""
        number = self._values.integer(address, kinds=True)
        found = self.read(address, 0) if number is None else number
        return found if isinstance(found, str | int | Other) else Other(self._values.type(address))

    def _truth(self, address: int) -> bool:
        return memory.read(self._pid, address + 24, 4) == b"\1\0\0\0"
