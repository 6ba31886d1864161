"""Diagnoses a journal again: the same rules over the recorded facts, and the same answer as `stucktrace pid` printed.

An alert's journal holds many examinations of the same wait: the text shows a process's report where its verdict
changed; `verbose`, and JSON, show all.
"""

from __future__ import annotations

import time
from pathlib import Path

from stucktrace import recording, report
from stucktrace.diagnosis import diagnose, incidents
from stucktrace.diagnosis.model import Diagnosis
from stucktrace.errors import JournalError
from stucktrace.facts_codec import DecodeError, decode_as
from stucktrace.incidents import Incident
from stucktrace.inspection import Inspection
from stucktrace.output import colour_wanted, complain, terminal_width, write, write_json
from stucktrace.recording import Examination, Json
from stucktrace.sinks import journal, stream, text
from stucktrace.sinks.page import clean


def run(path: Path, *, as_json: bool, verbose: bool) -> set[int]:
    """Prints the journal's answers, and tells every one's exit status. JournalError when it is no journal."""
    records = journal.read(path, lambda what: complain(f"{path}: {what}", ""))
    header = next(records, None)
    if header is None or header.get("record") != recording.HEADER or header.get("schema") != recording.SCHEMA:
        raise JournalError(
            f"{path}: a stucktrace journal without its header ({recording.SCHEMA})", "use the version that wrote it"
        )
    player = _Player(header, as_json=as_json, verbose=verbose)
    for record in records:
        player.play(record)
    if not player.statuses:
        raise JournalError(f"{path}: no examination is in it", "nothing was recorded of the processes concerned")
    return player.statuses


class _Player:
    def __init__(self, header: Json, *, as_json: bool, verbose: bool) -> None:
        self._host = header.get("host")
        self._as_json = as_json
        self._verbose = verbose
        self._shown: dict[int, tuple[str, str]] = {}
        """pid -> the verdict that was shown last."""
        self.statuses: set[int] = set()
        self._headline(header)

    def play(self, record: Json) -> None:
        """Prints one record."""
        kind = record.get("record")
        if kind == recording.EXAMINATION:
            self._examination(recording.read_examination(record))
        elif kind == recording.NOTE and not self._as_json:
            write(_note(record))
        elif kind == recording.ALERT:
            self._headline(record)

    def _headline(self, record: Json) -> None:
        if record.get("alert") is None or self._as_json:
            return
        try:
            write(stream.headline(record["alert"]) + "\n")
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            raise JournalError("an alert in this journal cannot be read", "use the version that wrote it") from None

    def _examination(self, examined: Examination) -> None:
        inspection = again(examined)
        self.statuses |= recording.statuses(inspection)
        built = report.build(inspection)
        if isinstance(self._host, dict):
            built["host"] = self._host
        if self._as_json:
            write_json(built)
            return
        verdict, pid = inspection.diagnosis.verdict, examined.snapshot.process.pid
        shown = verdict.code, verdict.confidence
        if self._shown.get(pid) == shown and not self._verbose:
            write(f"{_at(examined.snapshot.time)} pid {pid}: still {verdict.code} ({verdict.confidence})\n")
            return
        self._shown[pid] = shown
        page = text.render(built, verbose=self._verbose, colour=colour_wanted(), width=terminal_width())
        write(f"{_at(examined.snapshot.time)} pid {pid} was looked at:\n\n{page}\n")


def again(examined: Examination) -> Inspection:
    """The inspection that was recorded, diagnosed by the present rules; says so where they decide otherwise."""
    diagnosis = _diagnosis(examined)
    _compare(examined, diagnosis)
    return Inspection(
        diagnosis,
        examined.snapshot,
        tuple(again(child) for child in examined.children),
        examined.siblings,
        {"total": 0.0, **examined.timings_ms},
    )


def _diagnosis(examined: Examination) -> Diagnosis:
    if examined.incident is None:
        return diagnose(examined.snapshot, examined.budgets)
    try:
        incident: Incident = decode_as(Incident, examined.incident)
        return incidents.diagnose(examined.snapshot, incident)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        because = str(error) if isinstance(error, DecodeError) else f"its figures make no sense, {error}"
        raise JournalError(
            f"an incident in this journal cannot be read: {because}", "use the version of stucktrace that wrote it"
        ) from None


def _compare(examined: Examination, diagnosis: Diagnosis) -> None:
    then, now = examined.said, recording.said(diagnosis.verdict)
    if (then.verdict_class, then.code, then.confidence) != (now.verdict_class, now.code, now.confidence):
        complain(
            f"process {examined.snapshot.process.pid} at {_at(examined.snapshot.time)}: the verdict is now {now.code} "
            f"({now.confidence}), and was {then.code} ({then.confidence}): {then.summary}",
            "",
        )


def _note(record: Json) -> str:
    pid = f"pid {record['pid']}: " if isinstance(record.get("pid"), int) else ""
    line = f"{_at(record.get('time'))} {record.get('category')}: {pid}{record.get('message')}"
    return clean(line, 500) + "\n"


def _at(when: object) -> str:
    """As the alerts' own lines show it."""
    try:
        assert isinstance(when, int | float)
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    except (AssertionError, ValueError, OverflowError, OSError):
        return "at an unknown time"
