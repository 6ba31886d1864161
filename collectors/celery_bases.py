"""A dict of settings that is an attribute of a class, and what the class's bases have under the same name.

Flask's way: `class Base: CELERY = {...}`, `class Production(Base): CELERY = {...}`, and the application is given the
latter: what only the base's dict has is not in force. All from memory: the class is found among the project's modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stucktrace.collectors import memory
from stucktrace.collectors.celery_target import Target
from stucktrace.collectors.python_classes import Objects
from stucktrace.collectors.python_literals import Literal, Literals

LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib/python3\.\d+t?/")
"""A path that is no project's own."""
_LONGEST_PATH = 4096
_MODULE_DICT, _CLASS_DICT = 16, 264


def overridden(
    target: Target, objects: Objects, literals: Literals, held: int, spellings: Mapping[str, str]
) -> Iterator[tuple[str, str, Literal]]:
    """(where, setting, value) of what bases set in a dict of the name under which a class has the dict `held`."""
    pid, values = target.reader.pid, target.values
    classes = _classes(target)
    tables = [word or 0 for word in memory.read_words(pid, [each + _CLASS_DICT for each in classes])]
    for found, table, holds in zip(classes, tables, values.holding(tables, held), strict=True):
        names = [name for name, value in values.mapping(table).items() if value == held] if holds else []
        for base in objects.bases(found)[1:]:
            for name, other in objects.own(base, names)[0].items() if names else ():
                for spelling, address in (objects.mapping(other, spellings) or {}).items():
                    where = f"{objects.name_of_class(base)}.{name}"
                    yield where, spellings[spelling], literals.read(address)


def _classes(target: Target) -> list[int]:
    """The classes that are globals of the project's own modules."""
    pid, values = target.reader.pid, target.values
    dicts = [word or 0 for word in memory.read_words(pid, [each + _MODULE_DICT for each in target.modules.addresses])]
    files = [(each or {}).get("__file__", 0) for each in values.entries_of(dicts, ("__file__",))]
    paths = [values.text(file, _LONGEST_PATH) if file else None for file in files]
    own = [each for each, path in zip(dicts, paths, strict=True) if path and not LIBRARY.search(path)]
    found = dict.fromkeys(value for each in values.entries_of(own, None) for value in (each or {}).values())
    return [address for address, kind in zip(found, values.types(list(found)), strict=True) if kind == "type"]
