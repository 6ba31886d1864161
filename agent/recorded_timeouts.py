"""Worker timeouts as they were recorded: in the agent's journals, in its stream of alerts, in gunicorn's own error log.

A report says which connections the worker had, on which of them it hung and since when; gunicorn's log tells the pid
and the second alone. One timeout that several of them tell of is one.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from stucktrace import recording, report
from stucktrace.collectors.rabbitmq_log import opened
from stucktrace.collectors.rabbitmq_records import moment_of
from stucktrace.diagnosis import incidents
from stucktrace.diagnosis.words import count
from stucktrace.errors import CannotInspect, JournalError, UsageError
from stucktrace.facts.correlation import Connection, WorkerTimeout
from stucktrace.facts_codec import DecodeError, decode_as
from stucktrace.incidents import Incident, WorkerAborted
from stucktrace.inspection import Inspection
from stucktrace.sinks import journal

Json = dict[str, Any]
Torn = Callable[[str], None]

CODE = "worker-timeout"
GUNICORN = re.compile(r"WORKER TIMEOUT \(pid:(?P<pid>\d+)\)")
CELERY = re.compile(r"Hard time limit \([\d.]+s?\) exceeded for ")
LONGEST_LINE = 64 << 20
SAME_S = 1.5
"""Two records of one timeout are no further apart."""
SOONEST_S = 1.0
"""A thread that has been inside its call for less polls: its wait began with the worker's last heartbeat."""
UPDATED_S = 2.0
"""How exact the time is of a timeout of which only the alert's `affected` tells."""


def from_journals(paths: Iterable[str], torn: Torn) -> Iterator[WorkerTimeout]:
    """`paths`: journals, and directories of them. JournalError for a file that is none."""
    for path in paths:
        files = sorted(Path(path).glob("*.journal")) if Path(path).is_dir() else [Path(path)]
        if not files:
            torn(f"{path}: no journal is in it")
        for file in files:
            yield from _from_journal(file, torn)


def _from_journal(path: Path, torn: Torn) -> Iterator[WorkerTimeout]:
    known: list[Json] = []
    for record in journal.read(path, lambda what: torn(f"{path}: {what}")):
        kind = record.get("record")
        if kind in (recording.HEADER, recording.ALERT) and isinstance(record.get("alert"), dict):
            known.append(record["alert"])
        elif kind == recording.EXAMINATION and record.get("incident") is not None:
            examined = recording.read_examination(record)
            try:
                incident = decode_as(Incident, examined.incident)
                if not isinstance(incident, WorkerAborted):
                    continue
                diagnosis = incidents.diagnose(examined.snapshot, incident)
            except (DecodeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
                torn(f"{path}: an incident cannot be read: {error}")
                continue
            told = from_report(report.build(Inspection(diagnosis, examined.snapshot)), "journal")
            yield from (told,) if told is not None else ()
    yield from _affected(known, None, "journal")


def from_alerts(path: str, torn: Torn) -> Iterator[WorkerTimeout]:
    """The JSON lines that the agent writes on its stdout. CannotInspect where they cannot be read."""
    events, timeout_s = [], None
    unreadable = lines = 0
    for line in lines_of(path):
        if not line.strip():
            continue
        lines += 1
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or not str(event.get("schema", "")).startswith("stucktrace.alert/"):
                raise ValueError("no alert")
        except (ValueError, RecursionError):
            unreadable += 1
            continue
        if event.get("code") != CODE:
            continue
        events.append(event)
        if isinstance(event.get("report"), dict):
            told = from_report(event["report"], "alerts")
            if told is not None:
                timeout_s = told.timeout_s or timeout_s
                yield told
    yield from _affected(events, timeout_s, "alerts")
    if lines and unreadable == lines:
        raise CannotInspect(f"{path}: no alert of stucktrace is in it", "give what `stucktrace agent --json` wrote")
    if unreadable:
        torn(f"{path}: {unreadable} of {lines} lines are no alert")


def from_report(told: Json, source: str) -> WorkerTimeout | None:
    """The timeout that a report (schema stucktrace.report/1) is about; None: it is about none, or not whole."""
    try:
        verdict, process = told["verdict"], told["process"]
        if verdict["code"] != CODE:
            return None
        lines = {line["what"]: line for line in reversed(verdict["evidence"])}
        killed = next(line["time"] for name in ("sender", "ended") if (line := lines.get(name)))
        looked = float(told["time"])
        beat_s = lines["heartbeat"]["value"] if "heartbeat" in lines else process["worker"]["timeout_s"]
        thread = next((one for one in told["threads"] if one["tid"] == verdict["tid"]), None)
        blocked_s = thread["blocked_s"] if thread is not None and verdict["fd"] is not None else None
        since = killed - beat_s if beat_s else None
        if blocked_s is not None and blocked_s >= SOONEST_S:
            since = looked - blocked_s
        sockets = [one for one in told["sockets"] if one["protocol"] == "tcp" and one["local"] and one["remote"]]
        hung = next((one for one in sockets if one["fd"] == verdict["fd"]), None)
        return WorkerTimeout(
            int(process["pid"]),
            float(killed),
            source,
            since,
            process["worker"]["timeout_s"],
            tuple(map(_connection, sockets)),
            looked,
            _connection(hung) if hung is not None else None,
            ns_pid=process["ns_pid"],
        )
    except (LookupError, TypeError, ValueError, ArithmeticError, StopIteration):
        return None


def _connection(socket: Json) -> Connection:
    return Connection(socket["local"], socket["remote"], socket["state"] != "ESTABLISHED")


def _affected(events: Iterable[Json], timeout_s: float | None, source: str) -> Iterator[WorkerTimeout]:
    """Those of which an alert tells no more than the pid and since when it hung."""
    said: set[int] = set()
    for event in events:
        if event.get("code") != CODE or event.get("type") == "resolved":
            continue
        try:
            for one in event["affected"]:
                since = float(event["time"]) - float(one["since_s"])
                if int(one["pid"]) not in said:
                    said.add(int(one["pid"]))
                    killed = min(float(event["time"]), since + timeout_s) if timeout_s else float(event["time"])
                    yield WorkerTimeout(int(one["pid"]), killed, source, since, timeout_s, resolution_s=UPDATED_S)
        except (LookupError, TypeError, ValueError, ArithmeticError):
            continue


def from_gunicorn(path: str, offset_s: float, torn: Torn) -> Iterator[WorkerTimeout]:
    """`[2026-11-21 10:00:30 +0000] [7] [CRITICAL] WORKER TIMEOUT (pid:9)`, also behind another logger's own head."""
    undated = found_any = celery = 0
    for line in lines_of(path):
        found = GUNICORN.search(line)
        if found is None:
            celery += bool(CELERY.search(line))
            continue
        found_any += 1
        when, exact = moment_of(line, offset_s)
        if when is None:
            undated += 1
            continue
        yield WorkerTimeout(int(found["pid"]), when, "gunicorn's log", resolution_s=0.0 if exact else 1.0)
    if undated:
        torn(f"{path}: {count(undated, 'worker timeout')} without a time, or without a year")
    if celery and not found_any:
        torn(f"{path}: {count(celery, 'hard time limit')} of Celery, which is not looked for: only gunicorn's timeouts")
    elif not found_any:
        torn(f"{path}: no WORKER TIMEOUT of gunicorn is in it")


def lines_of(path: str) -> Iterator[str]:
    """Plain or gzip, "-" for stdin. CannotInspect where it cannot be read."""
    with opened(path, "give another file, or - for stdin") as file:
        try:
            while line := file.readline(LONGEST_LINE):
                yield line.decode(errors="replace")
        except (EOFError, zlib.error) as error:
            raise CannotInspect(f"{path} is torn: {error}", "give the whole file") from None


def merged(found: Iterable[WorkerTimeout]) -> tuple[WorkerTimeout, ...]:
    """Each timeout once, the record that knows most; in the order of time."""
    kept: list[WorkerTimeout] = []
    for one in sorted(found, key=lambda one: (not one.connections, one.resolution_s, one.killed)):
        if not any(_same(one, other) for other in kept):
            kept.append(one)
    return tuple(sorted(kept, key=lambda one: one.killed))


def _same(one: WorkerTimeout, other: WorkerTimeout) -> bool:
    apart_s = max(SAME_S, one.resolution_s + SAME_S, other.resolution_s + SAME_S)
    return abs(one.killed - other.killed) <= apart_s and bool(
        {one.pid, one.ns_pid or one.pid} & {other.pid, other.ns_pid or other.pid}
    )


def read(
    journals: Iterable[str], alerts: Iterable[str], logs: Iterable[str], offset_s: float, torn: Torn
) -> tuple[WorkerTimeout, ...]:
    """All of them. UsageError without any source; CannotInspect and JournalError for what cannot be read."""
    sources = tuple(journals), tuple(alerts), tuple(logs)
    if not any(sources):
        raise UsageError(
            "worker timeouts have to come from somewhere", "give --journal, --alerts or --gunicorn-log, one or several"
        )
    found: list[WorkerTimeout] = []
    for path in sources[0]:
        if not Path(path).exists():
            raise JournalError(f"cannot read {path}: there is no such file", "give the agent's --journal directory")
    found += from_journals(sources[0], torn)
    for path in sources[1]:
        found += from_alerts(path, torn)
    for path in sources[2]:
        found += from_gunicorn(path, offset_s, torn)
    return merged(found)
