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
_CLASS_FLAGS_BUILTIN = ("object", "dict", "type", "module")


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

    def class_attributes(self, kind: int, wanted: Collection[str]) -> tuple[dict[str, int], bool]:
        """(name -> address, whether other names may be computed) of a class."""
        found: dict[str, int] = {}
        for base in self.bases(kind):
            if self._reader.type_name(base) in _CLASS_FLAGS_BUILTIN:
                continue
            (held,) = memory.read_words(self._pid, [base + _TP_DICT])
            for name, value in ((self._values.entries(held, (*wanted, *_COMPUTES)) if held else None) or {}).items():
                found.setdefault(name, value)
        computes = any(found.pop(name, None) for name in _COMPUTES)
        return found, computes

    def attributes(self, address: int, wanted: Collection[str]) -> tuple[dict[str, int], bool]:
        """(name -> address, whether other names may be computed) of any object: instance, module or class."""
        if self.is_class(address):
            return self.class_attributes(address, wanted)
        own = self._values.attributes(address, (*wanted, *_COMPUTES))
        inherited, computes = self.class_attributes(self.class_of(address), wanted)
        # A module's own `__getattr__` answers for what it does not have.
        computes |= self._values.type(address) == "module" and _COMPUTES[0] in own
        found = {**inherited, **{name: value for name, value in own.items() if name in wanted}}
        return found, computes

    def mapping(self, address: int, wanted: Collection[str]) -> dict[str, int] | None:
        """Of a dict or a subclass, the values under the wanted keys; None where it is something else."""
        pairs = self._values.pairs(address)
        if pairs is None:
            return None
        names = self._values.short_texts([key for key, _ in pairs])
        return {name: value for name, (_, value) in zip(names, pairs, strict=True) if name in wanted}
