"""A Python process, opened for reading its objects: the interpreter, its types and its modules."""

from __future__ import annotations

from dataclasses import dataclass

from stucktrace.collectors import interpreter, python_modules, regions
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.python_values import Values


@dataclass(frozen=True)
class Target:
    """One process, opened for reading."""

    reader: Reader
    values: Values
    found: Interpreter
    minor: tuple[int, int]
    modules: python_modules.Modules


def open_target(pid: int) -> Target | None:
    """None where it is not Python, or of a version that cannot be read. Raises OSError."""
    mapped = regions.read(pid)
    found = interpreter.find(pid, mapped)
    if found is None or found.minor is None:
        return None
    reader = Reader(pid, mapped, Layout())
    values = Values(reader, found.minor)
    modules = python_modules.read(reader, values, found)
    return Target(reader, values, found, found.minor, modules) if modules is not None else None
