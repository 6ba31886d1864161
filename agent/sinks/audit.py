"""`stucktrace audit`'s answer, as text and as JSON (schema stucktrace.audit/1). What is alike is said once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from stucktrace import __version__
from stucktrace.audit import Audit
from stucktrace.diagnosis.celery_view import NAMES
from stucktrace.diagnosis.traps_connections import stays_here
from stucktrace.diagnosis.words import age, count
from stucktrace.facts import SettingFact
from stucktrace.facts.audited import Audited, Connection
from stucktrace.facts.settings import DEFAULT, ERROR, NOT_SET, OK, WARN, Check
from stucktrace.sinks.page import Page, clean

SCHEMA = "stucktrace.audit/1"
_COLOURS = {OK: "32", WARN: "33", ERROR: "31;1"}
_LONGEST_COLUMN = 44
_PIDS_SHOWN = 6


def as_json(audit: Audit) -> dict[str, Any]:
    own, *workers = audit.family
    return {
        "schema": SCHEMA,
        "time": round(time.time(), 3),
        "tool": {"version": __version__},
        "status": audit.status,
        "pid": own.process.pid,
        "kind": own.process.worker.kind,
        "workers": [member.process.pid for member in workers],
        "connections": [
            {**{key: value for key, value in asdict(group[0]).items() if key not in ("pid", "fd", "inode")},
             "held": [{"pid": each.pid, "fd": each.fd, "inode": each.inode} for each in group]}
            for group in _groups(audit.connections)
        ],
        "settings": [
            {**asdict(setting), "pids": pids} for setting, pids in _settings(audit.family)
        ],
        "checks": [asdict(check) for check in _all_checks(audit)],
        "missing": [asdict(each) for each in audit.missing],
    }  # fmt: skip


def render(audit: Audit, *, verbose: bool = False, colour: bool = False, width: int = 100) -> str:
    """The whole text, ending with a newline."""
    page = Page(width, colour)
    _headline(page, audit)
    _connections(page, audit.connections)
    found = _settings(audit.family)
    for subject, title in (("gunicorn", "gunicorn"), ("celery", "Celery")):
        _subject(page, title, [(each, pids) for each, pids in found if each.subject == subject], audit, verbose)
    _checks(page, audit)
    codes = dict.fromkeys(check.code for check in _all_checks(audit) if check.status in (ERROR, WARN))
    if codes:
        page.lines.append("")
        page.text(f"What that means: stucktrace explain {' '.join(codes)}", "")
    if audit.missing:
        page.heading("Not seen")
        page.items(
            f"{each.what}: {each.because}{'; ' if each.remedy else ''}{each.remedy}"
            for each in audit.missing[: None if verbose else 3]
        )
    return "\n".join(page.lines) + "\n"


def _headline(page: Page, audit: Audit) -> None:
    own, *workers = audit.family
    process, status = own.process, audit.status
    kind = process.worker.kind.replace("-", " ")
    who = kind if kind != "other" else process.command
    found = Counter(check.status for check in _all_checks(audit))
    well = "nothing that was seen would hurt" if audit.missing else "nothing here would hurt"
    bad = [count(found[each], word) for each, word in ((ERROR, "error"), (WARN, "warning")) if found[each]]
    what = ", ".join(bad) or well
    words = [f"pid {process.pid}", who]
    if workers:
        words.append(f"{count(len(workers), 'worker')} ({_pids([member.process.pid for member in workers])})")
    page.lines.append(page.paint(status, _COLOURS[status]) + f"  {clean(', '.join(words), 200)}: {what}")


def _connections(page: Page, connections: Sequence[Connection]) -> None:
    page.heading("Connections")
    if not connections:
        page.text("none over TCP")
        return
    groups = _groups(connections)
    rows = [(_end(group[0]), _times(group)) for group in groups]
    widths = [min(max(len(row[place]) for row in rows), _LONGEST_COLUMN) for place in range(2)]
    for group, row in zip(groups, rows, strict=True):
        status, window = group[0].check.status, _window(group[0])
        columns = "  ".join(clean(text, 120).ljust(size) for text, size in zip(row, widths, strict=True))
        _line(page, status, f"{columns}  {_options(group[0])}")
        if window:
            page.text(window, " " * 9)


def _line(page: Page, status: str, text: str) -> None:
    """With its status in front, in colour."""
    first, start = f"  {status.ljust(5)}  ", len(page.lines)
    # Columns are kept apart by more than one space: only what is too long is wrapped.
    if len(first) + len(text) <= page.width:
        page.lines.append(first + clean(text).rstrip())
    else:
        page.text(text, first, " " * len(first))
    page.lines[start] = f"  {page.paint(status.ljust(5), _COLOURS[status])}{page.lines[start][7:]}"


def _end(connection: Connection) -> str:
    if connection.direction == "in":
        return f"in  {connection.local}"
    return f"out {connection.remote}" + ("" if connection.state == "ESTABLISHED" else f" {connection.state}")


def _times(group: Sequence[Connection]) -> str:
    pids = sorted({each.pid for each in group})
    return (f"{len(group)} in " if len(group) > 1 else "") + _pids(pids)


def _pids(pids: Sequence[int]) -> str:
    shown = ", ".join(map(str, pids[:_PIDS_SHOWN]))
    return shown if len(pids) <= _PIDS_SHOWN else f"{shown} and {len(pids) - _PIDS_SHOWN} more"


def _options(connection: Connection) -> str:
    keepalive, words = connection.keepalive, []
    if keepalive is None:
        words.append("options not read")
    elif not keepalive.on:
        words.append("keepalive off")
    else:
        words.append(f"keepalive {_s(keepalive.idle_s)}+{keepalive.count}x{_s(keepalive.interval_s)}")
    if connection.user_timeout_s is not None:
        words.append(f"user timeout {age(connection.user_timeout_s) if connection.user_timeout_s else 'off'}")
    if connection.own_timeout_s is not None:
        words.append(f"socket timeout {age(connection.own_timeout_s)}")
    if connection.heartbeat_s is not None:
        words.append(f"heartbeat {age(connection.heartbeat_s) if connection.heartbeat_s else 'off'}")
    if connection.confirms is not None:
        words.append("confirms" if connection.confirms else "no confirms")
    return ", ".join(words)


def _s(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:g}s"


def _window(connection: Connection) -> str:
    if connection.direction == "in" or connection.in_flight_window_s is None:
        return ""
    if stays_here(connection.local, connection.remote):
        return f"on this machine: the kernel tells at once when the peer ends{_hangs(connection)}"
    idle = [f"{age(connection.idle_window_s)} idle" if connection.idle_window_s is not None else "never while idle"]
    if connection.heartbeat_s:
        idle.append(f"{age(2 * connection.heartbeat_s)} by heartbeat")
    against = f"; the worker's timeout is {age(connection.budget_s)}" if connection.budget_s is not None else ""
    return f"notices a dead peer: {', '.join(idle)}, {age(connection.in_flight_window_s)} with data in flight{against}"


def _hangs(connection: Connection) -> str:
    if connection.own_timeout_s is not None:
        return f"; one that hangs is noticed after {age(connection.own_timeout_s)}"
    if connection.heartbeat_s:
        return f"; one that hangs is noticed after {age(2 * connection.heartbeat_s)} by heartbeat"
    return "; one that hangs is never noticed" if connection.waits == "blocks" or connection.heartbeat_s == 0 else ""


def _groups(connections: Iterable[Connection]) -> list[list[Connection]]:
    """Those that are alike together: outgoing ones first."""
    found: dict[tuple[object, ...], list[Connection]] = {}
    for each in connections:
        end = each.local if each.direction == "in" else each.remote
        key = (
            each.direction, end, each.state, _options(each), _window(each), each.waits, each.check,
        )  # fmt: skip
        found.setdefault(key, []).append(each)
    return sorted(found.values(), key=lambda group: (group[0].direction == "in", group[0].remote))


def _settings(family: Sequence[Audited]) -> list[tuple[SettingFact, list[int]]]:
    """Each setting with the processes that have it so."""
    found: dict[SettingFact, list[int]] = {}
    for member in family:
        for setting in member.settings:
            found.setdefault(setting, []).append(member.process.pid)
    order = {name: place for place, name in enumerate(dict.fromkeys(setting.name for setting in found))}
    return sorted(found.items(), key=lambda item: order[item[0].name])


def _subject(
    page: Page, title: str, settings: Sequence[tuple[SettingFact, list[int]]], audit: Audit, verbose: bool
) -> None:
    if not settings:
        return
    page.heading(title)
    shown = [each for each in settings if verbose or _worth_a_line(each[0])]
    if not shown:
        page.text("everything is at its default (-v shows it)")
        return
    everybody = {
        member.process.pid
        for member in audit.family
        if any(s.subject == settings[0][0].subject for s in member.settings)
    }
    rows = [(setting.name, _value(setting), _source(setting, pids, everybody)) for setting, pids in shown]
    widths = [min(max(len(row[place]) for row in rows), _LONGEST_COLUMN) for place in range(2)]
    for name, value, source in rows:
        head = f"  {clean(name, 90).ljust(widths[0])}  {clean(value, 90).ljust(widths[1])}  "
        page.text(source, head, " " * min(len(head), page.width // 2))
    if len(shown) < len(settings):
        page.lines.append(f"  {len(settings) - len(shown)} more are at their default (-v shows them)")


def _worth_a_line(setting: SettingFact) -> bool:
    """What somebody set; of gunicorn everything. An empty text says nothing."""
    return setting.subject == "gunicorn" or (setting.source != DEFAULT and setting.value != "")


def _value(setting: SettingFact) -> str:
    key = setting.name.rpartition("[")[2].removesuffix("]")
    if setting.known and key in NAMES:
        return f"{setting.value} ({NAMES[key].removeprefix('socket.')})"
    if setting.known:
        return "" if setting.source == NOT_SET else str(setting.value)
    return "(computed, not read)" if "." in setting.source else "(not known)"


def _source(setting: SettingFact, pids: Sequence[int], everybody: set[int]) -> str:
    words = [setting.source]
    if not setting.in_force and setting.known:
        words.append("(by its sources)")
    if set(pids) != everybody:
        words.append(f"in {_pids(pids)}")
    others = [f"{source}: {value}" for source, value in setting.others if source != DEFAULT]
    if others:
        words.append(f"{'though' if setting.source == NOT_SET else 'over'} {', '.join(others)}")
    return " ".join(words)


def _all_checks(audit: Audit) -> list[Check]:
    """Those of connections that are not well, and all others; the worst first."""
    of_connections = [each.check for each in audit.connections if each.check.status != OK]
    order = {ERROR: 0, WARN: 1, OK: 2}
    return sorted(dict.fromkeys((*audit.checks, *of_connections)), key=lambda check: order[check.status])


def _checks(page: Page, audit: Audit) -> None:
    checks = _all_checks(audit)
    if not checks:
        return
    page.heading("Traps")
    for check in checks:
        _line(page, check.status, check.text)
        for line in check.evidence:
            page.text(line, " " * 9 + "- ", " " * 11)
        if check.fix:
            page.text(f"fix: {check.fix}", " " * 9, " " * 14)
