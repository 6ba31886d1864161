"""`stucktrace correlate`: reads RabbitMQ's log and recorded worker timeouts, joins them, and prints the answer."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from stucktrace import __version__, recorded_timeouts
from stucktrace.collectors import rabbitmq_log
from stucktrace.diagnosis import broker_log
from stucktrace.diagnosis.broker_delays import CONNECTION, TIME, Mode, Pair
from stucktrace.diagnosis.broker_log import Correlation
from stucktrace.errors import CannotInspect, UsageError
from stucktrace.facts.correlation import BrokerLog, Connection, WorkerTimeout
from stucktrace.output import colour_wanted, complain, terminal_width, write, write_json

Json = dict[str, Any]

SCHEMA = "stucktrace.correlate/1"
NOTHING = 4
"""Exit status: nothing matched."""
OFFSET = re.compile(r"(?P<sign>[+-])(?P<hours>\d{1,2}):?(?P<minutes>\d\d)?")


def run(
    broker_logs: Sequence[str],
    journals: Sequence[str],
    alerts: Sequence[str],
    gunicorn_logs: Sequence[str],
    utc_offset: str | None,
    *,
    as_json: bool,
) -> int:
    """The exit status. Raises UsageError, CannotInspect, JournalError."""
    offset_s = parse_offset(utc_offset)
    torn: list[str] = []
    timeouts = recorded_timeouts.read(journals, alerts, gunicorn_logs, offset_s, torn.append)
    log = rabbitmq_log.read(broker_logs, offset_s, broker_log.wanted(timeouts), torn.append)
    if log.first is None:
        names = ", ".join(broker_logs)
        raise CannotInspect(
            f"no record of RabbitMQ is in {names} ({log.lines} lines read)",
            "give its log (in containers: kubectl logs or docker logs)",
        )
    for what in torn:
        complain(what, "")
    found = broker_log.correlate(timeouts, log)
    built = build(timeouts, log, found, utc_offset)
    if as_json:
        write_json(built)
    else:
        from stucktrace.sinks import correlate_text

        write(correlate_text.render(built, colour=colour_wanted(), width=terminal_width()))
    return 0 if found.pairs else NOTHING


def parse_offset(text: str | None) -> float:
    """ "+02:00", "-5", "Z": seconds ahead of UTC."""
    if text is None or text.upper() in ("Z", "UTC"):
        return 0.0
    found = OFFSET.fullmatch(text.strip())
    if found is None or int(found["hours"]) > 14 or int(found["minutes"] or 0) > 59:
        raise UsageError(f"--utc-offset: {text[:40]!r} is no offset", "give one like +02:00, -05:30 or Z")
    seconds = 3600.0 * int(found["hours"]) + 60.0 * int(found["minutes"] or 0)
    return -seconds if found["sign"] == "-" else seconds


def offset_text(seconds: float) -> str:
    """ "+02:00"."""
    minutes = round(abs(seconds) / 60)
    return f"{'-' if seconds < 0 else '+'}{minutes // 60:02}:{minutes % 60:02}"


def build(timeouts: Sequence[WorkerTimeout], log: BrokerLog, found: Correlation, utc_offset: str | None) -> Json:
    """The answer, schema stucktrace.correlate/1."""
    offset_s = parse_offset(utc_offset)
    return {
        "schema": SCHEMA,
        "time": round(time.time(), 3),
        "tool": {"version": __version__},
        "timeouts": {
            "count": len(timeouts),
            "with_connections": sum(bool(one.connections) for one in timeouts),
            "matched": len(found.pairs),
            "by_connection": sum(pair.by == CONNECTION for pair in found.pairs),
            "by_time": sum(pair.by == TIME for pair in found.pairs),
            "contested": sum(pair.contested for pair in found.pairs),
        },
        "delays": [_mode(mode) for mode in found.modes],
        "pairs": [_pair(pair) for pair in found.pairs],
        "unmatched": [{**_timeout(one.timeout), "because": one.because} for one in found.unmatched],
        "in_alarm": [
            {
                "pid": timeout.pid,
                "killed": round(timeout.killed, 3),
                "resource": alarm.resource,
                "node": alarm.node or None,
                "since": round(alarm.since, 3),
                "until": _rounded(alarm.until),
            }
            for timeout, alarm in found.in_alarm
        ],
        "log": {
            "lines": log.lines,
            "unreadable_lines": log.unreadable,
            "messages_dropped_by_broker": log.dropped,
            "first": _rounded(log.first),
            "last": _rounded(log.last),
            "events": dict(log.counts),
            "alarms": len(log.alarms),
            "utc_offset": utc_offset or ("+00:00 (assumed)" if log.zone_assumed else None),
            "utc_offset_that_matches": found.offset and offset_text(offset_s + found.offset[0]),
        },
    }


def _mode(mode: Mode) -> Json:
    return {
        "event": mode.kind,
        "since": mode.since,
        "seconds": round(mode.seconds, 3),
        "within_s": mode.within_s,
        "count": mode.count,
        "of": mode.of,
        "means": mode.means or None,
        "histogram": [{"second": second, "count": number} for second, number in mode.histogram],
    }


def _pair(pair: Pair) -> Json:
    event = pair.event
    return {
        **_timeout(pair.timeout),
        "connection": _connection(pair.connection),
        "event": {
            "kind": event.kind,
            "time": round(event.time, 6),
            "client": event.client,
            "server": event.server,
            "process": event.process or None,
            "reason": event.reason or None,
            "heartbeat_timeout_s": event.timeout_s,
            "accepted": _rounded(event.accepted),
        },
        "after_stuck_s": _rounded(pair.after_stuck_s),
        "after_kill_s": _rounded(pair.after_kill_s),
        "by": pair.by,
        "confidence": pair.confidence,
    }


def _timeout(timeout: WorkerTimeout) -> Json:
    return {
        "pid": timeout.pid,
        "killed": round(timeout.killed, 3),
        "killed_within_s": timeout.resolution_s,
        "stuck_since": _rounded(timeout.since),
        "timeout_s": timeout.timeout_s,
        "hung_on": _connection(timeout.hung_on),
        "source": timeout.source,
    }


def _connection(one: Connection | None) -> Json | None:
    return {"local": one.local, "remote": one.remote} if one is not None else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
