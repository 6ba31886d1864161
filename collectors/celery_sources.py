"""Where Celery's settings come from: the project's own files, parsed and never run.

What the process's memory says is in force; a file explains it, and tells what was set there and did not arrive. A file
counts only if its module is loaded, if it belongs to the configuration (the configuration object, what it imports `*`
from, what the module that made the application gives to `config_from_object`), if it was not changed since the process
started, and if the module in memory bears it out.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from stucktrace.collectors import celery_bases, celery_names, procfs, settings_files, target_files
from stucktrace.collectors.celery_apps import PROJECT, App, spelled
from stucktrace.collectors.celery_bases import LIBRARY
from stucktrace.collectors.celery_target import Target
from stucktrace.collectors.python_classes import Objects
from stucktrace.collectors.python_literals import Literals
from stucktrace.collectors.settings_files import Assigned, Parsed
from stucktrace.errors import CannotInspect
from stucktrace.facts import ProcessFact
from stucktrace.facts.settings import CHANGED_SINCE, COMPUTED, NOT_SET, OF_OBJECT, SettingFact, Value, alike

_MOST_FILES = 24
_LONGEST_PATH = 4096
_LONGEST_FILE = 1 << 18
"""Of source text: longer ones take seconds to parse."""
_CLOCK_S = 1.0
"""When a process started is known to a tick, and a file's time only as well as its file system keeps it."""


@dataclass(frozen=True)
class _File:
    module: str
    address: int
    path: str
    parsed: Parsed
    changed_s: float
    """When it was last written, CLOCK_REALTIME."""

    def at(self, assigned: Assigned) -> str:
        return f"{self.path}:{assigned.line}"


class Sources:
    def __init__(self, target: Target, literals: Literals, process: ProcessFact, app: App, transport: int) -> None:
        """`transport`: the address of the broker's options that are in force."""
        self._target = target
        self._values = target.values
        self._modules = target.modules
        self._objects = Objects(target.reader, target.values)
        self._literals = literals
        self._process = process
        self._app = app
        self._transport = transport
        self._spellings = {old: name for name, old in celery_names.OLD.items()} | {n: n for n in celery_names.OLD}
        if app.prefix:
            self._spellings |= {spelled(app.prefix, name): name for name in celery_names.OLD}

    def explain(self, facts: Mapping[str, SettingFact]) -> dict[str, SettingFact]:
        """The facts with the files that set them, and with what else was set. Raises OSError."""
        files = list(self._files())
        loaded_s, started_s = started_between(self._process)
        found = dict(facts)
        older = [file for file in files if file.changed_s < loaded_s + _CLOCK_S]
        newer = [file for file in files if file.changed_s > started_s + _CLOCK_S]
        for do, of in ((self._located, older), (self._lost, older), (self._newer, newer)):
            for file in of:
                for name, assigned in settings_files.by_name(file.parsed.assigned, self._spellings):
                    if not assigned.owner or self._values.attribute(file.address, assigned.owner) == self._app.address:
                        do(found, file, name, assigned)
        self._overridden(found)
        return found

    def _overridden(self, found: dict[str, SettingFact]) -> None:
        """What a class's bases set in the dict that the application was given of that class."""
        for layer in self._app.layers:
            if layer.origin != PROJECT or layer.name or self._modules.holding(layer.address):
                continue
            for where, name, value in celery_bases.overridden(
                self._target, self._objects, self._literals, layer.address, self._spellings
            ):
                fact = found.get(name)
                if fact is None or name in celery_names.PRIVATE:
                    continue
                if name in celery_names.STRUCTURED and isinstance(value, dict):
                    for key, each in value.items():
                        _missing(found, name, key, each, where)
                elif _scalar(value) and not alike(value, fact.value):
                    found[name] = replace(fact, others=(*fact.others, (where, value)))

    def _files(self) -> Iterator[_File]:
        """Those of the configuration, the stronger first; behind them those that set something on the application."""
        layers = [layer for layer in self._app.layers if layer.origin == PROJECT]
        held = [name for layer in layers if not layer.name for name in self._modules.holding(layer.address)]
        waiting = [self._app.source.partition(":")[0], *(layer.name for layer in layers), *held]
        makers = [file for name in self._modules.holding(self._app.address) if (file := self._file(name)) is not None]
        for maker in makers:
            near = [maker, *(file for name in self._imported(maker) if (file := self._file(name)) is not None)]
            waiting += [*maker.parsed.configures, *(file.module for file in near if self._has_transport(file))]
        seen: set[str] = set()
        while waiting and len(seen) < _MOST_FILES:
            name = waiting.pop(0)
            if not self._modules.module(name):
                # A class, or another attribute of a module.
                name = name.rpartition(".")[0]
            file = self._file(name) if name not in seen else None
            if file is None:
                continue
            seen.add(name)
            yield file
            waiting = [*self._imported(file, {"*", *self._spellings}), *waiting]
        for maker in makers:
            if maker.module not in seen:
                on_it = tuple(each for each in maker.parsed.assigned if each.owner)
                yield replace(maker, parsed=replace(maker.parsed, assigned=on_it))

    def _imported(self, file: _File, names: Collection[str] = ()) -> list[str]:
        """The modules that it imports something from, one of these names; the last one is the strongest."""
        package = file.path.endswith("/__init__.py")
        return [
            settings_files.module_of(file.module, package, each.module, each.level)
            for each in reversed(file.parsed.imports)
            if not names or not set(each.names).isdisjoint(names)
        ][:_MOST_FILES]

    def _has_transport(self, file: _File) -> bool:
        """The broker's options that are in force are an object of this module."""
        named = (each for each in file.parsed.assigned if self._spellings[each.name] == celery_names.TRANSPORT)
        return any(self._place(file, each) == self._transport for each in named)

    def _file(self, name: str) -> _File | None:
        """None also for what is no file of the project."""
        address = self._modules.module(name)
        place = self._values.attribute(address, "__file__") if address else None
        path = self._values.text(place, _LONGEST_PATH) if place else None
        if not address or not path or not path.endswith(".py") or not path.startswith("/") or LIBRARY.search(path):
            return None
        text, changed_s = _read(self._process.pid, path)
        if text is None:
            return None
        return _File(name, address, path, settings_files.parse(text, self._spellings), changed_s)

    def _located(self, found: dict[str, SettingFact], file: _File, name: str, assigned: Assigned) -> None:
        """The winner's file and line, where that file's module has this very value."""
        fact = found.get(name)
        if fact is None or not self._sets(fact, assigned) or not self._bears(file, assigned):
            return
        written_out = not isinstance(assigned.value, dict) and assigned.value != COMPUTED
        if not written_out or assigned.value == fact.value or name in celery_names.PRIVATE:
            for key, each in list(found.items()):
                if (key == name or key.startswith(f"{name}.")) and each.source == fact.source:
                    found[key] = replace(each, source=file.at(assigned))

    def _sets(self, fact: SettingFact, assigned: Assigned) -> bool:
        """This may be what the fact's value comes from, as far as names tell."""
        return fact.source.endswith(f".{assigned.name}") or (bool(assigned.inside) and fact.source == OF_OBJECT)

    def _lost(self, found: dict[str, SettingFact], file: _File, name: str, assigned: Assigned) -> None:
        """What this file sets and the process does not have."""
        fact, where = found.get(name), file.at(assigned)
        if fact is None or not fact.known or fact.source == where:
            return
        if name in celery_names.STRUCTURED:
            if isinstance(assigned.value, dict) and self._replaced(file, assigned):
                for key, value in assigned.value.items():
                    _missing(found, name, key, value, where)
            return
        if assigned.owner or name in celery_names.PRIVATE or not _scalar(assigned.value):
            return
        told = self._bears(file, assigned)
        if told and not alike(assigned.value, fact.value):
            found[name] = replace(fact, others=(*fact.others, (where, assigned.value)))

    def _newer(self, found: dict[str, SettingFact], file: _File, name: str, assigned: Assigned) -> None:
        """What a file says now, and did not when the process read it."""
        fact, where = found.get(name), f"{file.at(assigned)}{CHANGED_SINCE}"
        if fact is None or not fact.known or assigned.value == COMPUTED or name in celery_names.PRIVATE:
            return
        if assigned.owner or settings_files.final(file.parsed, assigned) is not assigned:
            return
        held = self._held(file, assigned)
        if isinstance(assigned.value, dict) and (isinstance(held, dict) or held is None):
            for key, value in assigned.value.items():
                if key not in (held or {}):
                    _missing(found, name, key, value, where)
            return
        told = name not in celery_names.STRUCTURED and _scalar(assigned.value) and _scalar(held)
        if told and not alike(held, assigned.value):
            found[name] = replace(fact, others=(*fact.others, (where, assigned.value)))

    def _place(self, file: _File, assigned: Assigned) -> int | None:
        """The address of what the loaded module has there."""
        address = self._values.attribute(file.address, assigned.inside or assigned.name)
        if address and assigned.inside:
            return (self._objects.mapping(address, (assigned.name,)) or {}).get(assigned.name)
        return address

    def _held(self, file: _File, assigned: Assigned) -> Any:
        """None where it has nothing."""
        address = self._place(file, assigned)
        return self._literals.read(address) if address else None

    def _bears(self, file: _File, assigned: Assigned) -> bool:
        """The loaded module has what its file says last."""
        if settings_files.final(file.parsed, assigned) is not assigned:
            return False
        held, value = self._held(file, assigned), assigned.value
        if isinstance(value, dict):
            return isinstance(held, dict) and all(key in held for key in value)
        return value == COMPUTED or (type(held) is type(value) and held == value)

    def _replaced(self, file: _File, assigned: Assigned) -> bool:
        """The loaded module has these keys, or a later line of the file gave the name another value."""
        if assigned.owner or self._bears(file, assigned):
            return True
        later = settings_files.final(file.parsed, assigned) is not assigned
        return later or any(each.star and each.line > assigned.line for each in file.parsed.imports)


def _missing(found: dict[str, SettingFact], name: str, key: Any, value: Any, where: str) -> None:
    if not isinstance(key, str) or key not in celery_names.TRANSPORT_OPTIONS:
        return
    full = f"{name}.{key}"
    if key in celery_names.OPTION_TABLES and isinstance(value, dict) and value:
        for inner, held in value.items():
            _lacking(found, full, f"{full}[{inner!r}]", held, where)
    else:
        _lacking(found, full, full, value, where)


def _lacking(found: dict[str, SettingFact], table: str, name: str, value: Any, where: str) -> None:
    if any(each.source != NOT_SET and (held == table or held.startswith(f"{table}[")) for held, each in found.items()):
        return
    shown: Value = value if _scalar(value) else COMPUTED
    before = found.get(name)
    others = (*(before.others if before is not None else ()), (where, shown))
    found[name] = SettingFact(celery_names.SUBJECT, name, None, NOT_SET, in_force=True, others=others)


def _scalar(value: Any) -> TypeGuard[Value]:
    return value != COMPUTED and (value is None or isinstance(value, str | int | float))


def started_between(process: ProcessFact) -> tuple[float, float]:
    """(before when its modules were loaded at the earliest, when it started), CLOCK_REALTIME.

    A child that was forked has the modules of its parents: those count for what was loaded.
    """
    now, started = time.time(), procfs.age_s(process.start_time)
    oldest, pid, parent = started, process.pid, process.ppid
    for _ in range(4):
        try:
            if parent <= 1 or not procfs.forked(pid, parent):
                break
            found = procfs.read_stat(parent)
        except CannotInspect:
            break
        oldest, pid, parent = found.age_s, parent, found.ppid
    return now - oldest, now - started


def _read(pid: int, path: str) -> tuple[bytes | None, float]:
    """(text, when it was last written) of a file as the target sees it."""
    try:
        fd = target_files.open_inside(pid, path, os.O_PATH)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return (
            target_files.read_file(pid, path, _LONGEST_FILE, whole=True) if stat.S_ISREG(status.st_mode) else None
        ), status.st_mtime
    except OSError:
        return None, 0.0
