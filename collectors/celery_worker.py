"""The object of a running Celery worker (`WorkController`), found as `self` of the frames that run it.

It keeps what the command line and the settings came to: concurrency, pool, prefetch multiplier, limits of its children.
A child of a prefork pool still has these frames below its own; under gevent and eventlet they are on no stack most of
the time, but in the thread's own greenlet, switched out. Source: celery/worker/worker.py, 5.2 to 5.7.
"""

from __future__ import annotations

from collections.abc import Iterable

from stucktrace.collectors import greenlet_objects, memory, python_frames
from stucktrace.collectors.cpython_objects import Reader
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.python_classes import Objects
from stucktrace.collectors.python_frames import Frame, Walk

DEADLINE_S = 0.05
_CLASS = "WorkController"


def find(reader: Reader, found: Interpreter, objects: Objects, *, search: bool) -> int | None:
    """Its address; None where it was not found. `search`: greenlets are searched for in memory too. Raises OSError."""
    walk = python_frames.walk(reader, found, DEADLINE_S)
    if walk is None or found.minor is None:
        return None
    known: dict[int, bool] = {}
    for state in walk.states():
        worker = _among(walk, objects, known, walk.frames(state))
        if worker is not None:
            return worker
    return _switched_out(reader, found, objects, known) if search else None


def _switched_out(reader: Reader, found: Interpreter, objects: Objects, known: dict[int, bool]) -> int | None:
    begin = greenlet_objects.tables(reader.pid, reader.regions)
    if not begin or found.minor is None:
        return None
    stacks = [region.start for region in reader.regions.regions if region.path == "[stack]"]
    greenlets = greenlet_objects.Objects(reader, found.minor, stacks)
    places, _ = greenlets.find(begin)
    walk = python_frames.walk(reader, found, DEADLINE_S)
    for suspended in greenlets.suspended(places).values() if walk is not None else ():
        worker = _among(walk, objects, known, walk.chain(suspended.top)) if suspended.main and walk else None
        if worker is not None:
            return worker
    return None


def _among(walk: Walk, objects: Objects, known: dict[int, bool], frames: Iterable[Frame]) -> int | None:
    """The first variable of one of these frames, outermost first, that is a worker."""
    reader = walk.reader
    firsts = [slots.start for frame in frames if (slots := walk.slots(frame))]
    held = [python_frames.object_of(word or 0) for word in memory.read_words(reader.pid, firsts)]
    kinds = memory.read_words(reader.pid, [address + 8 if address % 8 == 0 else 0 for address in held])
    for address, kind in zip(reversed(held), reversed(kinds), strict=True):
        if not kind or not address:
            continue
        if kind not in known:
            known[kind] = bool(reader.type_name(kind)) and _CLASS in objects.base_names(kind)
        if known[kind]:
            return address
    return None
