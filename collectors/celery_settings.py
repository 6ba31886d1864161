"""What a running process's Celery is configured to, read from its memory: the settings that decide how its broker
connections and its workers behave. A web server that only publishes has them as well as a worker.

Sources: the application's chain of mappings (celery_apps.py), and a worker's own object (celery_worker.py). Nothing is
stopped or run. Of a URL only the scheme and the host are kept; only the settings of celery_names.py are read at all.
Everything is read twice and has to agree. Nothing is said of a setting that could not be read, or is computed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stucktrace.collectors import (
    celery_apps,
    celery_names,
    celery_public,
    celery_sources,
    celery_worker,
    memory,
    startup,
)
from stucktrace.collectors.celery_apps import CHANGED, DEFAULT, App, Finder
from stucktrace.collectors.celery_target import Target, open_target
from stucktrace.collectors.python_classes import Objects
from stucktrace.collectors.python_literals import Literal, Literals, Other
from stucktrace.errors import CollectorError
from stucktrace.facts import ProcessFact, settings
from stucktrace.facts.settings import SettingFact

WHAT = "Celery's settings"
_WORKERS = ("celery-main", "celery-child")
COMPUTED = Other("")
"""Stands for a value that has to be computed."""
_SPELLINGS = (*celery_names.OLD, *celery_names.NEW)


def collect(process: ProcessFact) -> tuple[SettingFact, ...]:
    """() for a process without Celery. Raises CollectorError when its memory may not be read."""
    with memory.reading(WHAT):
        target = open_target(process.pid)
        if target is None or target.modules.module(celery_apps.STATE) is None:
            return ()
        objects, of_celery = Objects(target.reader, target.values), process.worker.kind in _WORKERS
        worker = celery_worker.find(target.reader, target.found, objects, search=of_celery)
        for _ in range(2):
            found, again = read(target, process, objects, worker), _app(target, worker)
            values = {fact.name: (fact.value, fact.known) for fact in found}
            if again is None or all(
                values.get(name) == (fact.value, fact.known)
                for name, fact in again[-1].items()
                if name not in celery_names.WORKER
            ):
                return found
    raise CollectorError(WHAT, "they changed while they were read, twice", "look again")


def read(target: Target, process: ProcessFact, objects: Objects, worker: int | None) -> tuple[SettingFact, ...]:
    """One reading. Raises OSError, struct.error."""
    known = _app(target, worker)
    if known is None:
        return ()
    app, others, literals, found = known
    transport = next((address for address, _ in _hits(app, celery_names.TRANSPORT)), 0)
    found = celery_sources.Sources(target, literals, process, app, transport).explain(found)
    of_celery = process.worker.kind in _WORKERS
    if worker is not None:
        found.update({fact.name: fact for fact in _of_worker(target, objects, literals, worker, found)})
    elif of_celery:
        # Its command line may have set them: without its own object nobody knows.
        found = {name: fact for name, fact in found.items() if name not in celery_names.WORKER}
    role = "worker" if worker is not None or of_celery else "publisher"
    besides = tuple(("another application here", other.name) for other in others if other.configured)
    about = (
        _fact("app", app.name, settings.MEMORY, others=besides),
        _fact("app_state", "configured" if app.configured else "not used yet", settings.MEMORY),
        _fact("app_role", role, settings.MEMORY),
        _fact("app_namespace", app.prefix, settings.MEMORY),
        _fact("app_settings", app.source or _project(app), settings.MEMORY),
    )
    return (*about, *found.values())


def _app(target: Target, worker: int | None) -> tuple[App, list[App], Literals, dict[str, SettingFact]] | None:
    """The application in use, the others, and the settings of the one in use."""
    own = target.values.attribute(worker, "app") if worker else None
    apps = Finder(target.reader, target.values, target.modules, target.minor).apps(_SPELLINGS, own)
    if not apps:
        return None
    literals = Literals(target.reader, target.values, target.minor)
    return apps[0], apps[1:], literals, {fact.name: fact for fact in _of_app(target, literals, apps[0])}


def _project(app: App) -> str:
    return next((layer.name for layer in app.layers if layer.origin == celery_apps.PROJECT and layer.name), "")


def _of_app(target: Target, literals: Literals, app: App) -> Iterator[SettingFact]:
    environ = startup.read_environ(target.reader.pid, target.reader.regions, target.found)
    for name in celery_names.OLD:
        hits = [_read(literals, name, hit) for hit in _hits(app, name)]
        variable = celery_names.ENVIRONMENT.get(name)
        if variable and environ.get(variable):
            hits = [(environ[variable], f"environment ({variable})"), *hits]
        if not hits or (name in celery_names.RARE and hits[0][1] == settings.DEFAULT):
            continue
        if name in celery_names.STRUCTURED:
            yield from _options(name, hits)
        else:
            yield _plain(name, hits)


def _hits(app: App, name: str) -> Iterator[tuple[int, str]]:
    """(address of the value, where it was set), the first one wins, as `Settings.__getitem__` looks for it.

    The address is 0 where the value is computed: what follows is in force then or not.
    """
    old = celery_names.OLD[name]
    with_prefix = (celery_apps.spelled(app.prefix, name),) if app.prefix else ()
    for layer in app.layers:
        for spelling in (*with_prefix, name, old):
            if spelling in layer.values:
                yield layer.values[spelling], _source(layer, spelling)
                break
        else:
            if layer.computes:
                yield 0, _source(layer, name)


def _read(literals: Literals, name: str, hit: tuple[int, str]) -> tuple[Literal, str]:
    address, source = hit
    return literals.read(address) if address else COMPUTED, source


def _source(layer: celery_apps.Layer, spelling: str) -> str:
    if layer.origin == DEFAULT:
        return settings.DEFAULT
    if layer.origin == CHANGED:
        return settings.SET_IN_CODE
    return f"{layer.name}.{spelling}" if layer.name else settings.OF_OBJECT


def _options(name: str, hits: list[tuple[Literal, str]]) -> Iterator[SettingFact]:
    """A dict of options, one fact each; those that only a weaker dict has are NOT_SET."""
    tables = [(_flat(name, literal), _filled(name, literal, source)) for literal, source in hits]
    (wins, source), others = tables[0], tables[1:]
    if wins is None:
        yield _fact(name, None, source, known=hits[0][0] is None)
        return
    count = len(hits[0][0]) if isinstance(hits[0][0], dict) else 0
    yield _fact(name, f"{count} option{'' if count == 1 else 's'}", source)
    for key in dict.fromkeys(key for table, _ in tables if table for key in table):
        lost = tuple(
            (where, table[key][0])
            for table, where in others
            if table and key in table and where not in (settings.DEFAULT, source)
        )
        if key in wins:
            value, known = wins[key]
            yield _fact(key, value, source, known=known, others=lost)
        elif lost:
            yield _fact(key, None, settings.NOT_SET, others=lost)


def _filled(name: str, literal: Literal, source: str) -> str:
    """Celery's own default for the transport's options is an empty dict: what stands in it was put there in place."""
    return settings.SET_IN_CODE if source == settings.DEFAULT and name == celery_names.TRANSPORT and literal else source


def _flat(name: str, literal: Literal) -> dict[str, tuple[settings.Value, bool]] | None:
    """Option -> (value, whether it is known), of those that may be told; None for what is no dict."""
    if not isinstance(literal, dict):
        return None
    found: dict[str, tuple[settings.Value, bool]] = {}
    for key, value in literal.items():
        if not isinstance(key, str) or (name == celery_names.TRANSPORT and key not in celery_names.TRANSPORT_OPTIONS):
            continue
        if key in celery_names.OPTION_TABLES and isinstance(value, dict):
            for inner, held in value.items():
                shown = f"({inner.type_name})" if isinstance(inner, Other) else repr(inner)
                found[f"{name}.{key}[{shown}]"] = celery_public.value(held)
        else:
            found[f"{name}.{key}"] = celery_public.value(value)
    return found


def _plain(name: str, hits: list[tuple[Literal, str]]) -> SettingFact:
    told = [(celery_public.public(name, literal), source) for literal, source in hits]
    (wins, source), others = told[0], told[1:]
    lost = tuple(
        (where, value[0]) for value, where in others if value[1] and value[0] != wins[0] and where != settings.DEFAULT
    )
    return _fact(name, wins[0], source, known=wins[1], others=lost)


def _of_worker(
    target: Target, objects: Objects, literals: Literals, worker: int, app: Mapping[str, SettingFact]
) -> Iterator[SettingFact]:
    """What a worker made of the command line and the settings."""
    attributes = {attribute: name for name, attribute in celery_names.WORKER.items()}
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
            told = before is not None and before.known and before.source != settings.DEFAULT
            lost = ((before.source, before.value), *before.others) if before is not None and told else ()
            yield _fact(name, literal, settings.MEMORY, others=lost)


def _pool(objects: Objects, address: int, literal: Literal) -> Literal:
    """ "prefork" of celery.concurrency.prefork.TaskPool; the full name of another's."""
    if isinstance(literal, str):
        return literal
    if not objects.is_class(address):
        return Other("")
    name = objects.name_of_class(address)
    match = re.fullmatch(r"celery\.concurrency\.(\w+)\.TaskPool", name)
    return {"thread": "threads"}.get(match[1], match[1]) if match else name


def _fact(
    name: str,
    value: settings.Value,
    source: str,
    *,
    known: bool = True,
    others: tuple[tuple[str, settings.Value], ...] = (),
) -> SettingFact:
    return SettingFact(celery_names.SUBJECT, name, value, source, in_force=True, known=known, others=others)
