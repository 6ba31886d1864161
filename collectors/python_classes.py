"""What an object of another process would answer for a name: its own attributes, then those of its class and its bases.

Nothing is run, so a name that a property, a `__getattr__` or a mapping of its own would compute is unknown, never
absent. Layout: `tp_dict` and `tp_mro` of a class (CPython 3.8 to 3.14, the same offsets; a static type of 3.12 and
later keeps its dict elsewhere, and has nothing that is looked for here).
"""

from __future__ import annotations

from collections.abc import Collection

from stucktrace.collectors import memory
from stucktrace.collectors.cpython_objects import Reader
from stucktrace.collectors.python_values import Values

_TP_DICT, _TP_MRO = 264, 344
_COMPUTES = ("__getattr__", "__getattribute__")
_IS_CLASS = 1 << 31
_BUILT_IN = ("object", "dict", "type", "module")


class Objects:
    def __init__(self, reader: Reader, values: Values) -> None:
        self._pid = reader.pid
        self._reader = reader
        self._values = values

    def is_class(self, address: int) -> bool:
        (kind,) = memory.read_words(self._pid, [address + 8])
        return bool(kind and self._values.flags(kind) & _IS_CLASS)

    def class_of(self, address: int) -> int:
        (kind,) = memory.read_words(self._pid, [address + 8])
        return kind or 0

    def bases(self, kind: int) -> list[int]:
        """A class, and its bases in the order in which they are searched."""
        (order,) = memory.read_words(self._pid, [kind + _TP_MRO])
        return list(self._values.items(order) or ()) if order else []

    def base_names(self, kind: int) -> list[str]:
        return [self._reader.type_name(base) for base in self.bases(kind)]

    def name_of_class(self, kind: int) -> str:
        """ "package.module.Name" of a class."""
        (held,) = memory.read_words(self._pid, [kind + _TP_DICT])
        module = (self._values.entries(held, ("__module__",)) or {}).get("__module__") if held else None
        words = self._values.text(module, 200) if module else None
        name = self._reader.type_name(kind)
        return f"{words}.{name}" if words else name

    def own(self, address: int, wanted: Collection[str]) -> tuple[dict[str, int], bool]:
        """(name -> address, whether other names may be computed) of a class, module or object, without its bases."""
        if not self.is_class(address):
            found = self._values.attributes(address, (*wanted, _COMPUTES[0]))
            computes = bool(found.pop(_COMPUTES[0], None))
            return found, computes and self._values.type(address) == "module"
        if self._reader.type_name(address) in _BUILT_IN:
            return {}, False
        (held,) = memory.read_words(self._pid, [address + _TP_DICT])
        found = (self._values.entries(held, (*wanted, *_COMPUTES)) if held else None) or {}
        computes = any(name in found for name in _COMPUTES)
        return {name: value for name, value in found.items() if name not in _COMPUTES}, computes

    def class_attributes(self, kind: int, wanted: Collection[str]) -> tuple[dict[str, int], bool]:
        """As `own`, of a class and its bases."""
        found: dict[str, int] = {}
        computes = False
        for base in reversed(self.bases(kind)):
            own, may = self.own(base, wanted)
            found, computes = {**found, **own}, computes or may
        return found, computes

    def attribute(self, address: int, name: str) -> int | None:
        """Of any object: its own, else its class's."""
        kind = 0 if self.is_class(address) else self.class_of(address)
        for place in (address, *self.bases(kind or address)):
            found, _ = self.own(place, (name,))
            if name in found:
                return found[name]
        return None

    def mapping(self, address: int, wanted: Collection[str]) -> dict[str, int] | None:
        """Of a dict or a subclass, the values under the wanted keys; None where it is something else."""
        pairs = self._values.pairs(address)
        if pairs is None:
            return None
        names = self._values.short_texts([key for key, _ in pairs])
        return {name: value for name, (_, value) in zip(names, pairs, strict=True) if name in wanted}
