"""Every open AMQP connection of a process, found as an instance of its client library's class anywhere in its memory.

`amqp_clients.py` finds those that a thread has in hand, at a glance. This finds idle ones in pools too, by a pass over
the heap for each class that is imported: for `stucktrace audit`. A freed object may still look like one: only one whose
socket the process has open and connected counts, and only if two readings agree.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from stucktrace.collectors import (
    amqp_client_amqpstorm,
    amqp_client_pika,
    amqp_client_pyamqp,
    heap_search,
    interpreter,
    python_frames,
    python_modules,
    python_stacks,
    regions,
)
from stucktrace.collectors.amqp_client_objects import Things
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.pool_stacks import Stacks
from stucktrace.collectors.python_values import Values
from stucktrace.collectors.regions import Regions
from stucktrace.facts import AmqpFact, PythonFact, SocketFact

SEARCH_S = 1.0
"""Of processor time, for each class."""
_MOST_FOUND = 4096
CLASSES: Mapping[tuple[str, str], ModuleType] = {
    ("kombu.transport.pyamqp", "Connection"): amqp_client_pyamqp,
    ("amqp.connection", "Connection"): amqp_client_pyamqp,
    ("pika.adapters.select_connection", "SelectConnection"): amqp_client_pika,
    ("pika.adapters.asyncio_connection", "AsyncioConnection"): amqp_client_pika,
    ("pika.adapters.gevent_connection", "GeventConnection"): amqp_client_pika,
    ("amqpstorm.connection", "Connection"): amqp_client_amqpstorm,
}
"""(module, class) -> what reads its instances. aiormq's do not lead to their socket."""


def collect(pid: int, sockets: Sequence[SocketFact]) -> tuple[AmqpFact, ...]:
    """Of a Python process with these sockets. Raises nothing: what cannot be read is not there."""
    connected = {fd: socket for socket in sockets if socket.state == "ESTABLISHED" for fd in socket.fds}
    try:
        mapped = regions.read(pid)
        found = interpreter.find(pid, mapped)
        if not connected or found is None or found.minor is None:
            return ()
        reader = Reader(pid, mapped, Layout())
        values = Values(reader, found.minor)
        modules, walk = python_modules.read(reader, values, found), python_frames.walk(reader, found, SEARCH_S)
        if modules is None or walk is None:
            return ()
        stacks = python_stacks.Stacks(found.minor, walk, values, {}, complete=False)
        things = Things(Stacks(stacks, (), PythonFact("", ())), same_clock=False)
        facts: dict[int, AmqpFact] = {}
        for client, address in _instances(things, modules, mapped):
            fd, fact = client.read(things, address, None)
            if fd in connected and (fd, fact) == client.read(things, address, None):
                facts[fd] = replace(fact, fd=fd, **_place(connected[fd]))
        return tuple(facts.values())
    except (OSError, struct.error):
        return ()


def _instances(things: Things, modules: python_modules.Modules, mapped: Regions) -> Iterator[tuple[ModuleType, int]]:
    for (module, name), client in CLASSES.items():
        imported = modules.module(module)
        kind = things.classes.attribute(imported, name) if imported else None
        if kind and things.classes.is_class(kind):
            for address in heap_search.instances(things.stacks.pid, mapped, kind, SEARCH_S)[:_MOST_FOUND]:
                yield client, address


def _place(socket: SocketFact) -> dict[str, Any]:
    return {"inode": socket.inode, "local": socket.local, "remote": socket.remote}
