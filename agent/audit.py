"""`stucktrace audit`: collects what is in force in a process (and a master's workers), and has the rules judge it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from stucktrace.diagnosis import traps, traps_connections
from stucktrace.errors import CannotInspect, NoSuchProcess, NotPermitted, StucktraceError
from stucktrace.facts import MASTERS, WORKERS, Missing, ProcessFact, SettingFact, SocketFact
from stucktrace.facts.audited import Audited, Connection
from stucktrace.facts.settings import MEMORY, Check, alike
from stucktrace.run import Options, Run

if TYPE_CHECKING:
    from stucktrace.collectors.kernel import Opened
    from stucktrace.collectors.openfiles import OpenFiles

MOST_MEMBERS = 64
"""Workers of one master that are looked at."""
MOST_SOCKETS = 1024
"""Of one process, whose options are asked for."""


@dataclass(frozen=True)
class Audit:
    """The answer."""

    family: tuple[Audited, ...]
    """The process asked for, and behind it its workers if it is a master."""
    connections: tuple[Connection, ...]
    checks: tuple[Check, ...]
    """Of the process as a whole; those of a connection stand with it."""
    missing: tuple[Missing, ...]

    @property
    def status(self) -> str:
        return traps.worst((*self.checks, *(each.check for each in self.connections)))


def audit(pid: int, options: Options, opened: Callable[[], Opened]) -> Audit:
    """Raises NoSuchProcess, KernelThread, NotPermitted, CannotInspect."""
    run = Run(options)
    family = _family(run, pid)
    found = opened()
    run.kernel = found.kernel
    sockets, polled = _sockets(run, family)
    seen = tuple(
        _member(run, process, sockets.get(process.pid, ()), polled.get(process.pid, frozenset())) for process in family
    )
    from stucktrace.collectors.process import still_same

    if not still_same(family[0]):
        raise NoSuchProcess(f"process {pid} ended while it was looked at", "look at the one that took its place")
    # A worker that was recycled meanwhile says nothing of the others.
    seen = tuple(member for member in seen if still_same(member.process))
    connections = tuple(each for member in seen for each in traps_connections.connections(member))
    of_members = (each for member in seen for each in run.missing.get(member.process.pid, ()))
    return Audit(seen, connections, traps.check(seen), tuple(dict.fromkeys((*run.for_all, *of_members))))


def _family(run: Run, pid: int) -> tuple[ProcessFact, ...]:
    from stucktrace.collectors import candidates
    from stucktrace.collectors.process import read_process

    process = read_process(pid)
    if process.state in "ZX":
        raise CannotInspect(f"process {pid} ({process.command}) has ended", f"see its parent: {process.ppid}")
    found = [process]
    if process.worker.kind in MASTERS:
        for child in run.collect("children", (), partial(candidates.children_of, process), pid)[:MOST_MEMBERS]:
            try:
                found.append(read_process(child))
            except NoSuchProcess:
                continue
            except StucktraceError as error:
                run.miss(Missing(f"child {child}", error.message, error.remedy), pid)
    return tuple(found)


def _sockets(
    run: Run, family: Sequence[ProcessFact]
) -> tuple[Mapping[int, tuple[SocketFact, ...]], Mapping[int, frozenset[int]]]:
    """(pid -> its TCP sockets with their options, pid -> the inodes that its family's event loop watches)."""
    from stucktrace.collectors import openfiles, sockets

    files: dict[int, OpenFiles] = {}
    for process in family:
        table = run.collect("files", None, partial(openfiles.read_fds, process.pid), process.pid)
        if table is not None:
            files[process.pid] = table
    own = family[0].pid
    if own not in files:
        unseen = run.missing[own][-1]
        raise NotPermitted(unseen.because, unseen.remedy)
    asked = {
        pid: sorted(fd for fds in table.sockets().values() for fd in fds)[:MOST_SOCKETS] for pid, table in files.items()
    }
    pids = [process.pid for process in family]
    found = run.collect("sockets", None, partial(sockets.collect, pids, files, run.kernel, asked))
    for missing in found.missing if found is not None else ():
        run.miss(missing, None)
    tcp = {pid: tuple(each for each in of if each.protocol == "tcp") for pid, of in (found or {}).items()}
    return tcp, {process.pid: _polled(run, process, files) for process in family}


def _polled(run: Run, process: ProcessFact, files: dict[int, OpenFiles]) -> frozenset[int]:
    """The inodes that the epoll sets of a process watch, or those of a Celery child's main process."""
    from stucktrace.collectors import epoll, openfiles
    from stucktrace.collectors.process import read_process

    if process.worker.kind == "celery-child":
        above = run.collect("main process", None, partial(read_process, process.ppid), process.pid)
        if above is None or above.worker.kind != "celery-main":
            return frozenset()
        process = above
    if process.pid not in files:
        table = run.collect("files", None, partial(openfiles.read_fds, process.pid), process.pid)
        if table is None:
            return frozenset()
        files[process.pid] = table
    sets = run.collect("epoll", (), partial(epoll.collect, process, files[process.pid]), process.pid)
    return frozenset(watch.inode for each in sets for watch in each.watches if watch.present)


def _member(run: Run, process: ProcessFact, sockets: tuple[SocketFact, ...], polled: frozenset[int]) -> Audited:
    """All that concerns one process."""
    member = Audited(process, sockets, polled=polled)
    if not process.is_python:
        return member
    from stucktrace.collectors import amqp_objects, c_clients, monkey_patches, procfs, python_modules, python_sockets

    pid = process.pid
    if (unread := python_modules.unreadable(pid)) is not None:
        run.miss(unread, pid)
    clients = run.collect("C clients", (), partial(c_clients.collect, pid, process.libraries), pid)
    amqp = run.collect("AMQP connections", (), partial(amqp_objects.collect, pid, sockets), pid)
    member = replace(member, c_clients=clients, amqp=amqp)
    if clients:
        patched_by = run.collect("greenlets", "", partial(monkey_patches.by, pid, process.libraries), pid)
        member = replace(member, greenlets=patched_by)
    outside = {fd for each in sockets if each.direction == "out" and each.state == "ESTABLISHED" for fd in each.fds}
    if outside:
        timeouts = run.collect(
            "socket timeouts", python_sockets.NOTHING, partial(python_sockets.read, pid, outside), pid
        )
        member = replace(
            member, own_timeouts=timeouts.seconds, python_fds=timeouts.objects if timeouts.complete else None
        )
    kind = process.worker.kind
    if kind in WORKERS:
        member = replace(member, siblings=frozenset(procfs.children(process.ppid)) - {pid})
    if kind.startswith("gunicorn-"):
        member = run.collect("gunicorn's settings", member, partial(_gunicorn, member), pid)
    return run.collect("Celery's settings", member, partial(_celery, run, member), pid)


def _gunicorn(member: Audited) -> Audited:
    import time

    from stucktrace.collectors import filesystems, gunicorn_settings, heartbeat, startup

    process = member.process
    argv, environ = startup.recall(process.pid, process.argv)
    worker = process.worker.kind in WORKERS
    settings, file = gunicorn_settings.collect(process, argv, environ, process.ppid if worker else None)
    devices = [device for device, _ in heartbeat.files(process.pid) or ()]
    return replace(
        member,
        settings=settings,
        config_file=file,
        config_age_s=max(0.0, time.time() - file.changed) if file.changed is not None else None,
        heartbeat_filesystem=filesystems.type_of(process.pid, devices[0]) if devices else "",
    )


def _celery(run: Run, member: Audited) -> Audited:
    from stucktrace.collectors import celery_options, celery_settings, startup

    process = member.process
    given: tuple[SettingFact, ...] = ()
    if process.worker.kind in ("celery-main", "celery-child"):
        given = celery_options.collect(startup.recall(process.pid, process.argv)[0])
    in_force = _explained(celery_settings.collect(process), given)
    if process.worker.kind == "celery-child":
        in_force = _explained(celery_options.limits_in_force(process.pid), in_force)
    in_force, unloaded = _loaded(in_force)
    if unloaded:
        because = f"the application has not been used yet, and loads {unloaded} when it is"
        run.miss(Missing("Celery's settings", because, "look again after it has published"), process.pid)
    return replace(member, settings=(*member.settings, *in_force))


def _loaded(settings: tuple[SettingFact, ...]) -> tuple[tuple[SettingFact, ...], str]:
    """(those that are settled, the module of settings that Celery will load at first use; "" for none)."""
    told = {each.name: each.value for each in settings}
    source = str(told.get("app_settings") or "")
    # A configured application has values of a module too that cannot be read: those are worth a line each.
    if not source or told.get("app_state") == "configured":
        return settings, ""
    settled = tuple(each for each in settings if each.known or not each.source.startswith(f"{source}."))
    return settled, source if len(settled) < len(settings) else ""


def _explained(in_force: Collection[SettingFact], given: Collection[SettingFact]) -> tuple[SettingFact, ...]:
    """What is in force, with the source of whatever was given and says the same; and what else was given."""
    words = {each.name: each for each in given}
    merged = []
    for fact in in_force:
        word = words.pop(fact.name, None)
        if word is None:
            merged.append(fact)
        elif alike(fact.value, word.value):
            merged.append(replace(fact, source=word.source, others=(*word.others, *fact.others)))
        elif fact.source != MEMORY:
            # A setting that the command line overrides, of a worker whose own object was not found.
            merged.append(replace(word, others=((fact.source, fact.value), *fact.others)))
        else:
            merged.append(replace(fact, others=((word.source, word.value), *fact.others)))
    return (*merged, *words.values())
