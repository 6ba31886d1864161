"""What a running process's Celery is configured to, read from its memory: the settings that decide how its broker
connections and its workers behave. A web server that only publishes has them as well as a worker.

Sources: the application's chain of mappings (celery_apps.py), and a worker's own object (celery_worker.py). Nothing is
stopped or run. Of a URL only the scheme and the host are kept; only the settings of celery_names.py are read at all.
Everything is read twice and has to agree. Nothing is said of a setting that could not be read, or is computed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stucktrace.collectors import (
    celery_apps,
    celery_names,
    celery_worker,
    interpreter,
    memory,
    python_modules,
    regions,
    startup,
)
from stucktrace.collectors.celery_apps import CHANGED, DEFAULT, App, Finder
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.python_classes import Objects
from stucktrace.collectors.python_literals import Literal, Literals, Other
from stucktrace.collectors.python_values import Values
from stucktrace.facts import ProcessFact, settings
from stucktrace.facts.settings import SettingFact

WHAT = "Celery's settings"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+._-]{0,40})://([^/?#;]*)")
_HOST = re.compile(r"[A-Za-z0-9._-]+(?::\d{1,5})?|\[[0-9A-Fa-f:.]+\](?::\d{1,5})?")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,60}")
_SPELLINGS = (*celery_names.OLD, *celery_names.NEW)


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


def collect(process: ProcessFact) -> tuple[SettingFact, ...]:
    """() for a process without Celery. Raises CollectorError when its memory may not be read."""
    with memory.reading(WHAT):
        target = open_target(process.pid)
        if target is None or target.modules.module(celery_apps.STATE) is None:
            return ()
        first = read(target)
        for _ in range(2):
            again = read(target)
            if first == again:
                return first
            first = again
    return ()


def read(target: Target) -> tuple[SettingFact, ...]:
    """One reading. Raises OSError, struct.error."""
    finder = Finder(target.reader, target.values, target.modules, target.minor)
    apps = finder.apps(_SPELLINGS)
    if not apps:
        return ()
    literals = Literals(target.reader, target.values, target.minor)
    found = {fact.name: fact for fact in _of_app(target, literals, apps[0])}
    found.update({fact.name: fact for fact in _of_worker(target, literals, found)})
    others = tuple(("another application here", app.name) for app in apps[1:] if app.configured)
    state = "configured" if apps[0].configured else "not used yet"
    app = (
        _fact("app", apps[0].name, settings.MEMORY, others=others),
        _fact("app_state", state, settings.MEMORY),
        _fact("app_namespace", apps[0].prefix, settings.MEMORY),
        _fact("app_settings", apps[0].source or _project(apps[0]), settings.MEMORY),
    )
    return (*app, *found.values())


def _project(app: App) -> str:
    return next((layer.name for layer in app.layers if layer.origin == celery_apps.PROJECT and layer.name), "")


def _of_app(target: Target, literals: Literals, app: App) -> Iterator[SettingFact]:
    environ = startup.read_environ(target.reader.pid, target.reader.regions, target.found)
    for name in celery_names.OLD:
        variable = celery_names.ENVIRONMENT.get(name)
        if variable and environ.get(variable):
            yield _fact(name, _public(name, environ[variable]), f"environment ({variable})")
            continue
        found = _lookup(app, name)
        if found is None:
            continue
        address, source = found
        if name in celery_names.RARE and source == settings.DEFAULT:
            continue
        if not address:
            yield _fact(name, None, source, known=False)
            continue
        literal = literals.read(address)
        if name in celery_names.STRUCTURED:
            yield from _options(name, literal, source)
        elif isinstance(literal, Other | tuple | dict):
            yield from _unplain(name, literal, source)
        else:
            yield _fact(name, _public(name, literal), source)


def _lookup(app: App, name: str) -> tuple[int, str] | None:
    """(address of the value, where it was set) as `Settings.__getitem__` finds it; (0, ...) where that is computed."""
    old = celery_names.OLD[name]
    with_prefix = (celery_apps.spelled(app.prefix, name),) if app.prefix else ()
    for layer in app.layers:
        for spelling in (*with_prefix, name, old):
            if spelling in layer.values:
                return layer.values[spelling], _source(layer, spelling)
        if layer.computes:
            return 0, _source(layer, name)
    return None


def _source(layer: celery_apps.Layer, spelling: str) -> str:
    if layer.origin == DEFAULT:
        return settings.DEFAULT
    if layer.origin == CHANGED:
        return "set on the application in code"
    return f"{layer.name}.{spelling}" if layer.name else "the application's configuration object"


def _options(name: str, literal: Literal, source: str) -> Iterator[SettingFact]:
    """A dict of options, one fact each."""
    if not isinstance(literal, dict):
        yield _fact(name, None, source, known=literal is None)
        return
    yield _fact(name, f"{len(literal)} options" if len(literal) != 1 else "1 option", source)
    for key, value in literal.items():
        if not isinstance(key, str) or (name == celery_names.TRANSPORT and key not in celery_names.TRANSPORT_OPTIONS):
            continue
        if key in celery_names.OPTION_TABLES and isinstance(value, dict):
            for inner, held in value.items():
                shown = f"({inner.type_name})" if isinstance(inner, Other) else repr(inner)
                yield from _plain(f"{name}.{key}[{shown}]", held, source)
        else:
            yield from _plain(f"{name}.{key}", value, source)


def _plain(name: str, value: Literal, source: str) -> Iterator[SettingFact]:
    if isinstance(value, Other | tuple | dict):
        yield _fact(name, None, source, known=False)
    else:
        yield _fact(name, value, source)


def _unplain(name: str, literal: Literal, source: str) -> Iterator[SettingFact]:
    """A list of URLs; everything else is not known."""
    if name in celery_names.URLS and isinstance(literal, tuple) and all(isinstance(each, str) for each in literal):
        yield _fact(name, " ".join(host_of(each) for each in literal if isinstance(each, str)), source)
    else:
        yield _fact(name, None, source, known=False)


def _public(name: str, value: Literal) -> settings.Value:
    """What of a value may leave this process."""
    if not isinstance(value, str):
        return value if not isinstance(value, Other | tuple | dict) else None
    if name in celery_names.URLS:
        return " ".join(host_of(each) for each in value.split(";"))
    if name == "result_backend":
        scheme = value.partition("://")[0] if "://" in value else value.partition(":")[0]
        return scheme if _WORD.fullmatch(scheme) else "(hidden)"
    if name == "broker_host" and not _HOST.fullmatch(value):
        return "(hidden)"
    return value


def host_of(url: str) -> str:
    """ "amqp://broker:5672" of a broker's URL: no user, password, virtual host or option; "" for the host where it
    cannot be told for certain."""
    match = _URL.match(url)
    if match is None:
        return url if _WORD.fullmatch(url) else "(hidden)"
    scheme, place = match.groups()
    # A password that holds "/", "?" or "#" unquoted would end the host early: then an "@" is left behind it.
    host = place.rpartition("@")[2]
    plain = "@" not in url[match.end() :] and (_HOST.fullmatch(host) or not host)
    return f"{scheme}://{host if plain else '(hidden)'}"


def _of_worker(target: Target, literals: Literals, app: Mapping[str, SettingFact]) -> Iterator[SettingFact]:
    """What a worker made of the command line and the settings."""
    objects = Objects(target.reader, target.values)
    worker = celery_worker.find(target.reader, target.found, objects)
    if worker is None:
        return
    attributes = {attribute: name for name, (attribute, *_) in celery_names.WORKER.items()}
    for attribute, address in target.values.attributes(worker, attributes).items():
        name, literal = attributes[attribute], literals.read(address)
        if attribute == "pool_cls":
            literal = _pool(objects, address, literal)
        if isinstance(literal, Other | tuple | dict):
            continue
        before = app.get(name)
        if before is not None and before.known and before.value == literal:
            yield before
        else:
            lost = ((before.source, before.value),) if before is not None and before.known else ()
            yield _fact(name, literal, settings.MEMORY, others=lost)


def _pool(objects: Objects, address: int, literal: Literal) -> Literal:
    """ "prefork" of celery.concurrency.prefork.TaskPool; the full name of another's."""
    if isinstance(literal, str):
        return literal
    if not objects.is_class(address):
        return Other("")
    name = objects.name_of_class(address)
    match = re.fullmatch(r"celery\.concurrency\.(\w+)\.TaskPool", name)
    return match[1] if match else name


def _fact(
    name: str,
    value: settings.Value,
    source: str,
    *,
    known: bool = True,
    others: tuple[tuple[str, settings.Value], ...] = (),
) -> SettingFact:
    return SettingFact(celery_names.SUBJECT, name, value, source, in_force=True, known=known, others=others)
