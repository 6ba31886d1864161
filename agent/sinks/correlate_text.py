"""The answer of `stucktrace correlate` (schema stucktrace.correlate/1) as a person reads it. All times are UTC."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stucktrace.diagnosis.words import age, count, listing
from stucktrace.sinks.page import Page, clean

Json = dict[str, Any]

PAIRS_SHOWN = 20
UNMATCHED_SHOWN = 5
KINDS = {
    "closed-abruptly": ("abrupt close", "client unexpectedly closed TCP connection"),
    "missed-heartbeats": ("missed heartbeat", "missed heartbeats from client"),
    "failed": ("failure", "connection failed"),
    "handshake-timeout": ("handshake timeout", "handshake timed out"),
}
GAP = "  "


def render(answer: Json, *, colour: bool = False, width: int = 100) -> str:
    """The whole text, ending with a newline."""
    page = Page(width, colour)
    totals = answer["timeouts"]
    verb = "is" if totals["count"] == 1 else "are"
    text = f"{totals['matched']} of {count(totals['count'], 'worker timeout')} {verb} in the broker's log"
    if not totals["count"]:
        text = "no worker timeout is recorded in what was given: there is nothing to look for in the broker's log"
    if totals["matched"]:
        text += f": {totals['by_connection']} by connection (proven)" * bool(totals["by_connection"])
        text += (
            "," if totals["by_connection"] else ":"
        ) + f" {totals['by_time']} by time alone ({'possible' if totals['contested'] else 'likely'})"
        text = text if totals["by_time"] else text.rpartition(",")[0]
    page.text(text, "", "", "1")
    page.items(mode_text(mode) for mode in answer["delays"] if mode["count"] > 1 or mode["of"] == 1)
    _alarms(page, answer)
    _pairs(page, answer["pairs"])
    _unmatched(page, answer["unmatched"])
    _log(page, answer["log"])
    return "\n".join(page.lines) + "\n"


def mode_text(mode: Json) -> str:
    """ "41 of 43 abrupt closes come 30.0 s (within 0.5 s) after the wait began: that is gunicorn's timeout (30 s)"."""
    noun = KINDS.get(mode["event"], (mode["event"], ""))[0]
    since = "the wait began" if mode["since"] == "stuck" else "the SIGABRT"
    seconds = mode["seconds"]
    where = f"{abs(seconds):.1f} s (± {mode['within_s']} s) {'after' if seconds >= 0 else 'before'} {since}"
    verb = "comes" if mode["of"] == 1 else "come"
    means = f": {mode['means']}" if mode["means"] else ""
    return f"{mode['count']} of {count(mode['of'], noun)} {verb} {where}{means}"


def _alarms(page: Page, answer: Json) -> None:
    inside = answer["in_alarm"]
    if inside:
        resources = listing(sorted({one["resource"] for one in inside}))
        pids = len({(one["pid"], one["killed"]) for one in inside})
        text = (
            f"{pids} of {count(answer['timeouts']['count'], 'timeout')} fell into a {resources} alarm of the broker: "
        )
        page.items([text + "it lets publishers wait then, so the alarm is the first thing to look at"])


def _pairs(page: Page, pairs: Sequence[Json]) -> None:
    if not pairs:
        return
    page.heading("Worker timeouts and what the broker logged (UTC)")
    rows = [("SIGABRT", "PID", "CLIENT", "BROKER", "SINCE STUCK", "SINCE KILL", "")]
    for pair in pairs[:PAIRS_SHOWN]:
        event = pair["event"]
        rows.append(
            (
                at(pair["killed"]),
                str(pair["pid"]),
                event["client"],
                KINDS.get(event["kind"], (event["kind"], ""))[0],
                _delay(pair["after_stuck_s"]),
                _delay(pair["after_kill_s"]),
                pair["confidence"],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            text.rjust(wide) if column in (1, 4, 5) else text.ljust(wide)
            for column, (text, wide) in enumerate(zip(row, widths, strict=True))
        ]
        page.lines.append("  " + clean(GAP.join(cells).rstrip()))
    if len(pairs) > PAIRS_SHOWN:
        page.text(f"... and {len(pairs) - PAIRS_SHOWN} more (--json shows all)")


def _delay(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:+.2f} s"


def _unmatched(page: Page, those: Sequence[Json]) -> None:
    if not those:
        return
    page.heading("Not in the broker's log")
    reasons = Counter(one["because"] for one in those)
    for because, number in reasons.most_common(UNMATCHED_SHOWN):
        first = next(one for one in those if one["because"] == because)
        more = f" and {number - 1} more" if number > 1 else ""
        page.text(f"pid {first['pid']} at {at(first['killed'])}{more}: {because}", "  - ", "    ")


def _log(page: Page, log: Json) -> None:
    page.heading("The broker's log")
    events = log["events"]
    span = f"{at(log['first'])} to {at(log['last'])} UTC ({age(log['last'] - log['first'])})"
    parts = [f"{count(log['lines'], 'line')} from {span}"]
    parts += [count(number, KINDS[kind][0]) for kind, number in sorted(events.items()) if kind in KINDS]
    parts += [count(log["alarms"], "resource alarm")] * bool(log["alarms"])
    page.text(", ".join(parts))
    if log["unreadable_lines"]:
        page.text(
            f"{count(log['unreadable_lines'], 'line')} passed over that are no record of RabbitMQ's (a banner, garbage)"
        )
    if log["messages_dropped_by_broker"]:
        page.text(
            f"the broker itself left {count(log['messages_dropped_by_broker'], 'message')} out: it logged too fast"
        )
    if log["utc_offset"]:
        how = (
            "taken for UTC: --utc-offset says otherwise"
            if "assumed" in log["utc_offset"]
            else f"at {log['utc_offset']}"
        )
        page.text(f"its times tell no time zone, and were {how}".replace("were at", "were read as"))
    if log["utc_offset_that_matches"]:
        page.text(f"with --utc-offset {log['utc_offset_that_matches']} connections of these workers would match")


def at(when: float) -> str:
    """In UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(when))
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"
