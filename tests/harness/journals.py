"""What the agent wrote to its --journal directory, replayed: it has to give what was alerted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stucktrace.diagnosis.model import CODES
from stucktrace.sinks import journal

from tests.harness import command, kernel

Event = dict[str, Any]


def of(directory: Path, event: Event) -> list[Path]:
    """The journal of an event's alert, if it is there."""
    return list(directory.glob(f"stucktrace-*-{event['id'][:8]}.journal"))


def check(directory: Path, events: list[Event]) -> None:
    """Every alert of these events has its journal, and every journal there gives its verdict again."""
    opened = [event for event in events if event["type"] == "opened"]
    for event in opened:
        kernel.wait_until(lambda event=event: of(directory, event), f"the journal of {event['summary']}")
    by_id = {event["id"]: event for event in opened}
    for path in directory.glob("*.journal"):
        replay(path, by_id)
    kernel.wait_until(lambda: not list(directory.glob(".*")), "nothing half-written is left")


def replay(path: Path, by_id: dict[str, Event]) -> None:
    """One journal, held against the event that opened its alert."""
    torn: list[str] = []
    first = next(journal.read(path, torn.append))["alert"]
    alert = by_id.get(first["id"], first)
    done = command.run("replay", path, "--json")
    assert done.stderr == "" and not torn, (path.name, done.stderr, torn)
    reports = [command.Report(json.loads(line)) for line in done.stdout.splitlines()]
    for report in reports:
        command.validator().validate(report)
    same = [report for report in reports if (report.code, report.confidence) == (alert["code"], alert["confidence"])]
    assert same, (alert["summary"], [report.summary for report in reports])
    assert done.status == (1 if any(CODES[report.code] == "stuck" for report in reports) else 5)
    if alert["report"] is not None:
        assert alert["report"]["verdict"] in [report.verdict for report in same], alert["summary"]
