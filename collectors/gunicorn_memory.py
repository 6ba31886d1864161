"""gunicorn's settings as the running process has them: its own Config object, read from memory.

An arbiter, a worker and an application each have one as `self.cfg`, and the main thread of a master or a worker stands
in a method of theirs (gunicorn/arbiter.py, app/base.py, workers/*.py). A Config has a dict `settings` of Setting
objects, each with its `value`. Under gevent and eventlet that stack is switched out while the worker waits: nothing is
found then, and the master's object, which the worker got at its fork, answers for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from stucktrace.collectors import interpreter, python_frames, regions
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.python_classes import Objects
from stucktrace.collectors.python_frames import Frame, Walk
from stucktrace.collectors.python_literals import Literals, Other
from stucktrace.collectors.python_values import Values
from stucktrace.facts.settings import Value

DEADLINE_S = 0.2
_CONFIG, _ENOUGH = "Config", {"timeout", "worker_class", "bind"}
"""What the object has to look like: its class's name, and settings that every version of gunicorn has."""


def read(pid: int, names: frozenset[str]) -> Mapping[str, Value]:
    """The settings of these names, as far as they are plain values; {} where the object is not found."""
    try:
        mapped = regions.read(pid)
        found = interpreter.find(pid, mapped)
        reader = Reader(pid, mapped, Layout())
        walk = python_frames.walk(reader, found, DEADLINE_S)
        if walk is None or found is None or found.minor is None:
            return {}
        values = Values(reader, found.minor)
        literals, objects = Literals(reader, values, found.minor), Objects(reader, values)
        for config in _configs(walk, values):
            settings = _settings(values, literals, objects, config, names)
            if settings and settings == _settings(values, literals, objects, config, names):
                return settings
    except (OSError, struct.error):
        pass
    return {}


def _configs(walk: Walk, values: Values) -> Iterator[int]:
    """Addresses of objects that are somebody's `self.cfg`."""
    seen: set[int] = set()
    for state in walk.states():
        for frame in walk.frames(state):
            owner = _self(walk, values, frame)
            if owner and owner not in seen:
                seen.add(owner)
                config = values.attribute(owner, "cfg")
                if config and values.type(config) == _CONFIG:
                    yield config


def _self(walk: Walk, values: Values, frame: Frame) -> int:
    code = walk.code(frame.code)
    if code is None or not code.names:
        return 0
    first = (values.items(code.names[0]) or (0,))[:1]
    if not first or values.text(first[0], 8) != "self":
        return 0
    slots = walk.slots(frame)
    return walk.objects(slots.start, 1)[0] if slots else 0


def _settings(
    values: Values, literals: Literals, objects: Objects, config: int, names: frozenset[str]
) -> dict[str, Value]:
    table = values.attribute(config, "settings")
    held = values.entries(table, names | _ENOUGH) if table else None
    if not held or not held.keys() >= _ENOUGH:
        return {}
    found: dict[str, Value] = {}
    for name in names & held.keys():
        address = values.attribute(held[name], "value")
        if address is None:
            # It was never set: the class's own `value` is None.
            found[name] = None
        elif objects.is_class(address):
            found[name] = objects.name_of_class(address)
        elif not isinstance(literal := literals.read(address), Other | tuple | dict):
            found[name] = literal
    return found
