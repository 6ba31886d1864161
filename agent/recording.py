"""What stands in a journal (schema `stucktrace.journal/1`): a header, alert events, notes and examinations.

Every record is a mapping with its kind under "record". An examination holds all facts of one snapshot, what else the
verdict depends on, and the verdict as it was said; so it can be diagnosed again, by any version, anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stucktrace import __version__, report
from stucktrace.collectors.command_line import without_userinfo
from stucktrace.diagnosis.model import EXIT_STATUS, Budgets, Finding
from stucktrace.errors import JournalError
from stucktrace.facts import Snapshot
from stucktrace.facts_codec import DecodeError, decode, encode, encode_as
from stucktrace.incidents import Incident
from stucktrace.inspection import Inspection
from stucktrace.siblings import Siblings

Json = dict[str, Any]

SCHEMA = "stucktrace.journal/1"
HEADER, ALERT, NOTE, EXAMINATION = "header", "alert", "note", "examination"


@dataclass(frozen=True)
class Said:
    """A verdict, as it was said."""

    verdict_class: str
    code: str
    confidence: str
    summary: str


@dataclass(frozen=True)
class Examination:
    """One look at a process, and what was said of it."""

    snapshot: Snapshot
    budgets: Budgets
    said: Said
    siblings: Siblings | None = None
    children: tuple[Examination, ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    incident: Any = None
    """As `of_incident` gives it: the verdict is about this, and the snapshot shows the process it happened to."""


def header(at: float, event: Json | None) -> Json:
    """The first record. `event`: the alert's, whose report stands in the examinations."""
    host = report.host()
    return {
        "record": HEADER,
        "schema": SCHEMA,
        "version": __version__,
        "host": host,
        "time": at,
        "alert": _without_report(event) if event is not None else None,
    }


def alert(event: Json) -> Json:
    """A later event of the header's alert."""
    return {"record": ALERT, "alert": _without_report(event)}


def _without_report(event: Json) -> Json:
    return {**event, "report": None}


def note(time: float, category: str, message: str, pid: int | None, data: Json | None) -> Json:
    """Something that happened."""
    return {"record": NOTE, "time": time, "category": category, "message": message, "pid": pid, "data": data}


def of_inspection(inspection: Inspection, budgets: Budgets) -> Examination:
    """What is to be recorded of an inspection."""
    return Examination(
        inspection.snapshot,
        budgets,
        said(inspection.diagnosis.verdict),
        inspection.siblings,
        tuple(of_inspection(child, budgets) for child in inspection.children),
        dict(inspection.timings_ms),
    )


def of_incident(incident: Incident | None) -> Json | None:
    """An incident as it is recorded; None stays None."""
    if incident is None:
        return None
    ((name, data),) = encode_as(Incident, incident).items()
    return {name: {key: without_userinfo(value) if isinstance(value, str) else value for key, value in data.items()}}


def statuses(inspection: Inspection) -> set[int]:
    """The exit statuses that the verdicts on a process and its children ask for."""
    return {EXIT_STATUS[answer.diagnosis.verdict.verdict_class] for answer in (inspection, *inspection.children)}


def said(verdict: Finding) -> Said:
    return Said(verdict.verdict_class, verdict.code, verdict.confidence, verdict.summary)


def examination(examined: Examination) -> Json:
    """Its record; nothing in it is more secret than in a report."""
    return {"record": EXAMINATION, **encode(_harmless(examined))}


def _harmless(examined: Examination) -> Examination:
    process = examined.snapshot.process
    argv = tuple(without_userinfo(word) for word in process.argv)
    snapshot = replace(examined.snapshot, process=replace(process, argv=argv))
    return replace(examined, snapshot=snapshot, children=tuple(map(_harmless, examined.children)))


def read_examination(record: Json) -> Examination:
    """The examination of a record. JournalError when it is none."""
    try:
        return decode(Examination, record)
    except DecodeError as error:
        raise JournalError(
            f"an examination in this journal cannot be read: {error}", "use the version of stucktrace that wrote it"
        ) from None
