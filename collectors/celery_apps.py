"""The Celery applications of a process, and where each keeps its configuration, found in the process's memory.

Sources: celery 5.2 to 5.7. `celery._state._apps` is a WeakSet of every application made. `app._conf` is a `Settings`
(celery/app/utils.py), a chain of mappings, the strongest first: what was set on it or given to `Celery()`, the
project's configuration object, the defaults. Before its first use it is a `PendingConfiguration` (celery/app/base.py)
over `app._preconf`; the configuration object is then what `app._config_source` names, if that is imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from stucktrace.collectors import memory
from stucktrace.collectors.cpython_objects import Reader
from stucktrace.collectors.python_classes import Objects
from stucktrace.collectors.python_containers import Containers
from stucktrace.collectors.python_modules import Modules
from stucktrace.collectors.python_values import Values

STATE, DEFAULTS = "celery._state", "celery.app.defaults"
_APP = ("main", "_conf", "_preconf", "_config_source", "namespace", "configured", "_pool", "amqp", "loader_cls")
_REFERENT = 16
_MOST_APPS = 64
_WRAPPERS = ("_wrapped", "default_settings")
"""Django: what a lazy object wraps; what `settings.configure()` falls back on."""


@dataclass(frozen=True)
class Layer:
    """One mapping of the chain, as far as it could be read."""

    origin: str
    """CHANGED, PROJECT or DEFAULT."""
    name: str
    """The module or class that the configuration object is, where it is one."""
    values: dict[str, int]
    computes: bool = False
    """A name that is not in `values` may still have a value."""
    address: int = 0


CHANGED, PROJECT, DEFAULT = "changed", "project", "default"


@dataclass(frozen=True)
class App:
    address: int
    name: str
    configured: bool
    """False: it has not been used yet, and its configuration will be read at its first use."""
    used: int
    """How much speaks for it being the one that works here."""
    prefix: str
    """The namespace of its settings with its underscore, "" for none."""
    layers: tuple[Layer, ...]
    source: str = ""
    """What `config_from_object` was given, where that is text."""


class Finder:
    """Raises OSError where the process or the permission is gone."""

    def __init__(self, reader: Reader, values: Values, modules: Modules, minor: tuple[int, int]) -> None:
        self._pid = reader.pid
        self._values = values
        self._modules = modules
        self._objects = Objects(reader, values)
        self._containers = Containers(reader.pid, values, minor)

    def apps(self, spellings: Collection[str], in_use: int | None = None) -> list[App]:
        """Every living application, the one in use first. `spellings`: the settings, and all ways to write them."""
        state = self._modules.module(STATE)
        if state is None:
            return []
        known = self._values.attributes(state, ("_apps",))
        found = [self._app(address, in_use, spellings) for address in self._alive(known)]
        return sorted((app for app in found if app is not None), key=lambda app: -app.used)

    def _alive(self, known: dict[str, int]) -> list[int]:
        data = self._values.attribute(known["_apps"], "data") if "_apps" in known else None
        references = (self._containers.items(data) or ())[:_MOST_APPS] if data else ()
        words = memory.read_words(self._pid, [reference + _REFERENT for reference in references])
        # Of one that is gone None is left.
        return [word for word in words if word and self._values.attribute(word, "_conf")]

    def _app(self, address: int, in_use: int | None, spellings: Collection[str]) -> App | None:
        own = self._values.attributes(address, _APP)
        conf = self._values.attributes(own["_conf"], ("maps", "prefix")) if "_conf" in own else {}
        maps = self._containers.items(conf["maps"]) if "maps" in conf else None
        if not maps:
            return None
        pending = self._values.type(maps[0]) == "PendingConfiguration"
        prefix = self._values.text(own.get("namespace", 0) if pending else conf.get("prefix", 0), 64) or ""
        prefix = f"{prefix.rstrip('_')}_" if prefix else ""
        names = {*spellings, *(spelled(prefix, name) for name in spellings)}
        source = self._values.text(own.get("_config_source", 0), 300) or ""
        layers = tuple(self._pending(own, source, names) if pending else self._chain(maps, names))
        main = self._values.text(own.get("main", 0), 200) or ""
        used = 4 * ("_pool" in own and self._values.type(own["_pool"]) != "NoneType") + 2 * (not pending)
        # Celery makes one of its own, "default", where one is asked for before there is another.
        made = main == "default" and not source and not layers[0].values
        used += ("amqp" in own) - 8 * made + 16 * (address == in_use)
        return App(address, main, not pending, used, prefix, layers, source)

    def _chain(self, maps: tuple[int, ...], names: Collection[str]) -> Iterator[Layer]:
        for index, address in enumerate(maps):
            origin = CHANGED if index == 0 else DEFAULT if index == len(maps) - 1 else PROJECT
            yield from self._layers(address, origin, names)

    def _pending(self, own: dict[str, int], source: str, names: Collection[str]) -> Iterator[Layer]:
        yield from self._layers(own.get("_preconf", 0), CHANGED, names)
        given = self._named(source) if source else own.get("_config_source")
        if given is None:
            yield Layer(PROJECT, source, {}, computes=True)
        elif self._values.type(given) != "NoneType":
            yield from self._layers(given, PROJECT, names)
        module = self._modules.module(DEFAULTS)
        defaults = self._values.attribute(module, "DEFAULTS") if module else None
        if defaults:
            yield from self._layers(defaults, DEFAULT, names)

    def _named(self, source: str) -> int | None:
        """What "module", "module:attribute" or "module.attribute" stands for, as far as it is imported already."""
        module, _, attribute = source.partition(":")
        found = self._modules.module(module)
        if found is None and not attribute:
            module, _, attribute = source.rpartition(".")
            found = self._modules.module(module) if module else None
        for name in filter(None, attribute.split(".")):
            found = self._objects.attribute(found, name) if found else None
        return found

    def _layers(self, address: int, origin: str, names: Collection[str]) -> Iterator[Layer]:
        """One mapping: a dict, or the attributes of a module, of a class and its bases, of an object and its class."""
        kind = self._values.type(address) if address else ""
        if kind == "DictAttribute":
            yield from self._layers(self._values.attribute(address, "obj") or 0, origin, names)
            return
        held = self._objects.mapping(address, names) if address else None
        if held is not None or not kind:
            yield Layer(origin, "", held or {}, computes=held is None, address=address)
            return
        if not self._objects.is_class(address):
            inner = next(filter(None, (self._values.attribute(address, wrapper) for wrapper in _WRAPPERS)), None)
            own, computes = self._objects.own(address, names)
            if inner or own or kind == "module":
                yield Layer(origin, self._name(address, kind), own, computes, address)
            if inner:
                yield from self._layers(inner, origin, names)
            if inner or kind == "module":
                return
            address = self._objects.class_of(address)
        for base in self._objects.bases(address):
            found, computes = self._objects.own(base, names)
            if found or computes:
                yield Layer(origin, self._objects.name_of_class(base), found, computes, base)

    def _name(self, address: int, kind: str) -> str:
        for attribute in ("__name__",) if kind == "module" else ("SETTINGS_MODULE",):
            found = self._values.attribute(address, attribute)
            if text := self._values.text(found, 300) if found else None:
                return text
        return self._objects.name_of_class(self._objects.class_of(address))


def spelled(prefix: str, name: str) -> str:
    """With its namespace, in the namespace's own case (celery.utils.collections.match_case)."""
    if not prefix or name.startswith(prefix):
        return name
    return (prefix + name).upper() if prefix.isupper() else (prefix + name).lower()
