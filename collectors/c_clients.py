"""Database and broker clients written in C that a process has loaded, and whether psycopg2 yields to greenlets.

Source: the names of the mapped extension modules. psycopg2 keeps what `set_wait_callback` was given in a static
variable (psycopg/green.c, `wait_callback`), beside types, modules and dicts: of all static variables of its module
only that one ever refers to something made to be called by Python alone (a function, a method, a partial).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

from stucktrace.collectors import elf, memory, regions
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.facts.audited import CClient

_MODULES = {
    "_psycopg": "psycopg2",
    "_mysql": "MySQLdb",
    "_mysql_connector": "mysql.connector",
    "_librabbitmq": "librabbitmq",
    "_pymssql": "pymssql",
    "_mssql": "pymssql",
    "_pylibmc": "pylibmc",
    "pyodbc": "pyodbc",
}
"""Extension module -> the client. psycopg (3) waits in Python code that gevent and eventlet can patch."""
_OF_PSYCOPG_3 = re.compile(r"/psycopg_(?:binary|c)/[^/]*$")
"""Its extension has the name of psycopg2's."""
_MODULE = re.compile(r"^(\w+)\.(?:cpython-|abi3|pypy|so$)")
_FUNCTIONS = frozenset({"function", "method", "functools.partial", "cython_function_or_method"})
_MOST_BYTES = 1 << 20


def collect(pid: int, libraries: Sequence[str]) -> tuple[CClient, ...]:
    """`libraries`: base names of what is mapped. Raises nothing: what cannot be read is not known."""
    stems = [match.group(1) for name in libraries if (match := _MODULE.match(name))]
    found = dict.fromkeys(_MODULES[stem] for stem in stems if stem in _MODULES)
    if "psycopg2" in found and not _module_path(pid):
        del found["psycopg2"]
    return tuple(CClient(name, _has_callback(pid) if name == "psycopg2" else False) for name in found)


def _module_path(pid: int) -> str:
    try:
        return _path(regions.read(pid))
    except OSError:
        return ""


def _path(mapped: regions.Regions) -> str:
    """Of psycopg2's extension; "" where there is none."""
    paths = (each.path for each in mapped.regions if each.path.rpartition("/")[2].startswith("_psycopg."))
    return next((path for path in paths if not _OF_PSYCOPG_3.search(path)), "")


def _has_callback(pid: int) -> bool | None:
    try:
        mapped = regions.read(pid)
        path = _path(mapped)
        module = elf.module_of(pid, mapped, path) if path else None
        if module is None:
            return None
        words: set[int] = set()
        # The static variables alone: what is mapped right behind them may be anything.
        for segment in module.segments:
            if segment.kind == elf.LOAD and segment.flags & elf.WRITABLE:
                data = memory.read_some(pid, module.bias + segment.start, min(segment.size, _MOST_BYTES))
                words.update(word for (word,) in struct.iter_unpack("<Q", data[: len(data) // 8 * 8]))
        reader = Reader(pid, mapped, Layout())
        objects = [word for word in words if word % 8 == 0 and _holds_objects(mapped, word)]
        kinds = memory.read_words(pid, [word + 8 for word in objects])
        return any(reader.type_name(kind) in _FUNCTIONS for kind in kinds if kind) if objects else None
    except (OSError, struct.error):
        return None


def _holds_objects(mapped: regions.Regions, address: int) -> bool:
    region = mapped.find(address)
    return region is not None and region.writable and not region.shared
