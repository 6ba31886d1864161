"""`stucktrace conntrack`: reads the tables and the connections, judges them, and prints the answer. Changes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from stucktrace import __version__, report
from stucktrace.collectors import (
    candidates,
    conntrack_node,
    conntrack_places,
    ctnetlink,
    openfiles,
    process,
    procfs,
    workers,
)
from stucktrace.collectors.conntrack_node import Seen
from stucktrace.commands.common import worst
from stucktrace.diagnosis import conntrack_table
from stucktrace.errors import CannotInspect, NotPermitted
from stucktrace.facts import MASTERS, ROLES, Check, Missing, ProcessFact, SocketFact
from stucktrace.facts.conntrack import Flow, NamespaceTable
from stucktrace.facts.settings import ERROR, OK, WARN
from stucktrace.inspection import Opening
from stucktrace.output import colour_wanted, complain, terminal_width, write, write_json
from stucktrace.run import Options, Run

Json = dict[str, Any]

SCHEMA = "stucktrace.conntrack/1"
EXIT_STATUS = {OK: 0, WARN: 5, ERROR: 1}
STATUS_NAME = {0: OK, 5: WARN, 1: ERROR, 3: "incomplete"}
"""Incomplete: nothing is wrong with what was seen, and a table of the processes asked for was not."""
VENDOR = Path("/sys/class/dmi/id/sys_vendor")
NOT_THE_NODE = Missing(
    "conntrack",
    "the node's own network namespace cannot be seen from here: connections may have entries there too",
    "run it on the node, or in a pod with hostPID: true and CAP_SYS_PTRACE",
)


def run(pids: tuple[int, ...], window_s: float, *, as_json: bool) -> int:
    """The exit status. Without pids: all of gunicorn and Celery. Raises CannotInspect."""
    frame = Run(Options())
    processes = _processes(frame, pids)
    if ctnetlink.is_there():
        opening = Opening("auto")
        sockets = _sockets(frame, processes, given=bool(pids), opening=opening)
        seen = conntrack_node.collect(sockets, tuple(processes), window_s)
    else:
        seen = Seen((), (), 0, ())
    unseen = (*(one for those in frame.missing.values() for one in those), *seen.missing)
    missing = (*frame.for_all, *unseen)
    if conntrack_places.node_inode() is None and ctnetlink.is_there():
        missing += (NOT_THE_NODE,)
    if ctnetlink.is_there() and not seen.tables:
        first = next(iter(seen.missing), NOT_THE_NODE)
        raise NotPermitted(first.because, first.remedy)
    checks = conntrack_table.checks(seen.tables, seen.flows, on_aws=_on_aws())
    status = worst({0, *(EXIT_STATUS[check.status] for check in checks), *({3} if pids and unseen else ())})
    built = build(processes, seen, checks, tuple(dict.fromkeys(missing)), given=bool(pids))
    built["status"] = STATUS_NAME[status]
    if as_json:
        write_json(built)
    else:
        from stucktrace.sinks import conntrack_text

        write(conntrack_text.render(built, colour=colour_wanted(), width=terminal_width()))
    if status == 3:
        complain(unseen[0].because, unseen[0].remedy)
    return status


def _processes(frame: Run, pids: tuple[int, ...]) -> dict[int, ProcessFact]:
    """Those given, with what stands below a tini, a shell or a master; else every gunicorn and Celery process."""
    found: dict[int, ProcessFact] = {}
    if pids:
        for pid in pids:
            try:
                below = candidates.find_python(pid)
            except NotPermitted:
                below = (pid,)
            for one in below:
                found[one] = process.read_process(one)
                for child in candidates.children_of(found[one]) if found[one].worker.kind in MASTERS else ():
                    with suppress(CannotInspect):
                        found[child] = process.read_process(child)
        return found
    for pid in procfs.all_pids():
        with suppress(CannotInspect):
            glimpse = workers.glance(pid) if pid != os.getpid() else None
            if glimpse is not None and glimpse.kind in ROLES:
                found[pid] = process.read_process(pid)
    return found


def _sockets(
    frame: Run, processes: Mapping[int, ProcessFact], *, given: bool, opening: Opening
) -> dict[int, tuple[SocketFact, ...]]:
    """The sockets of the processes; their options too, where BPF tells them or the processes were asked for."""
    from stucktrace.collectors import sockets

    files = {}
    for pid in processes:
        table = frame.collect("open files", None, partial(openfiles.read_fds, pid), pid)
        if table is None and not given and not Path(f"/proc/{pid}").exists():
            frame.missing.pop(pid, None)
        if table is not None:
            files[pid] = table
    kernel = opening.opened().kernel
    details = {pid: {fd for fds in table.sockets().values() for fd in fds} for pid, table in files.items()}
    wanted = details if given and kernel is None else {}
    seen = frame.collect("sockets", None, partial(sockets.collect, tuple(files), files, kernel, wanted))
    return dict(seen) if seen is not None else {}


def _on_aws() -> bool:
    try:
        return VENDOR.read_text().startswith("Amazon")
    except OSError:
        return False


def build(
    processes: Mapping[int, ProcessFact],
    seen: Seen,
    checks: tuple[Check, ...],
    missing: tuple[Missing, ...],
    *,
    given: bool,
) -> Json:
    """The answer, schema stucktrace.conntrack/1."""
    return {
        "schema": SCHEMA,
        "time": round(time.time(), 3),
        "tool": {"version": __version__},
        "host": report.host(),
        "status": OK,
        "tracking": ctnetlink.is_there(),
        "asked_for": given,
        "checks": [
            {"code": one.code, "status": one.status, "text": one.text, "evidence": list(one.evidence), "fix": one.fix}
            for one in checks
        ],
        "namespaces": [_table(table) for table in seen.tables],
        "processes": [_process(fact) for fact in processes.values()],
        "connections": [_flow(flow) for flow in seen.flows],
        "loopback_connections": seen.loopback,
        "missing": [{"what": one.what, "because": one.because, "remedy": one.remedy} for one in missing],
    }


def _process(fact: ProcessFact) -> Json:
    return {"pid": fact.pid, "kind": fact.worker.kind, "command": fact.command}


def _table(table: NamespaceTable) -> Json:
    before, after, settings = table.before, table.after, table.settings
    counters = ("drop", "early_drop", "insert_failed", "search_restart", "invalid", "chain_too_long", "error")
    return {
        "netns": table.netns,
        "name": table.where,
        "pids": list(table.pids),
        "hooked": table.hooked,
        "translates": table.translates,
        "exempts": table.exempts,
        "count": after.count,
        "maximum": after.maximum,
        "fill": None if after.fill is None else round(after.fill, 4),
        "window_s": round(table.window_s, 3),
        "counters": {
            one: {"total": getattr(after, one), "in_window": max(0, getattr(after, one) - getattr(before, one))}
            for one in counters
        },
        "tcp": {name: getattr(settings, name) for name in settings.__dataclass_fields__},
    }


def _flow(flow: Flow) -> Json:
    socket = flow.socket
    keepalive = socket.keepalive
    return {
        "pid": flow.pid,
        "fd": socket.fds[0] if socket.fds else None,
        "local": socket.local,
        "remote": socket.remote,
        "state": socket.state,
        "keepalive": keepalive
        and {
            "on": keepalive.on,
            "idle_s": keepalive.idle_s,
            "interval_s": keepalive.interval_s,
            "count": keepalive.count,
        },
        "entries": [
            {
                "netns": one.netns,
                "namespace": one.where,
                "state": one.state,
                "tcp_state": one.tcp_state or None,
                "timeout_s": one.timeout_s,
                "assured": one.assured,
                "unreplied": one.state == "tracked" and not one.answered,
                "offloaded": one.offloaded,
                "zone": one.zone,
                "original": one.original and list(one.original),
                "reply": one.reply and list(one.reply),
                "drops_invalid": one.drops_invalid,
            }
            for one in flow.entries
        ],
    }
