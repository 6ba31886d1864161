"""The rows of `stucktrace ps` as a table, and as JSON objects of schema stucktrace.ps/1 (ps.schema.json).

On a terminal what does not fit is cut where it hurts least; in a pipe nothing is. Text that came from a target is
escaped (`page.clean`).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stucktrace.collectors.command_line import without_userinfo
from stucktrace.diagnosis.model import HEALTHY, STUCK, UNKNOWN
from stucktrace.diagnosis.words import age, count
from stucktrace.facts import WorkFact
from stucktrace.rows import Inside, Row
from stucktrace.sinks.page import clean

SCHEMA = "stucktrace.ps/1"
GAP = "  "
LONGEST_CELL = 300
NARROWEST = 12
"""Columns that a cell is cut to at most."""
_TO_THE_RIGHT = frozenset({"PID", "AGE", "RSS", "FDS", "FOR"})
_LEFT_OUT_WHEN_EMPTY = frozenset({"POD", "WORK"})
_CUT = ("IN", "WORK", "KIND", "POD")
_LEFT_OUT_FIRST = ("FDS", "AGE", "RSS", "POD", "KIND", "FOR", "WORK", "IN")
"""On a terminal that is too narrow even for columns that are cut."""
_COLOURS = {STUCK: "31;1", HEALTHY: "32", UNKNOWN: "33;1"}
_ADVICE_COLOUR = "33"


def render(rows: Sequence[Row], *, width: int | None = None, colour: bool = False, looking: bool = False) -> list[str]:
    """The lines of the table, its heading first. `width` None: no limit. `looking`: verdicts are still to come."""
    columns: dict[str, list[str]] = {}
    for row in rows:
        for name, text in _cells(row, looking).items():
            columns.setdefault(name, [name]).append(clean(text, LONGEST_CELL))
    for name in _LEFT_OUT_WHEN_EMPTY & columns.keys():
        if set(columns[name][1:]) == {"-"}:
            del columns[name]
    widths = _fitted({name: max(map(cells_wide, texts)) for name, texts in columns.items()}, width)
    lines = []
    for index in range(len(rows) + 1 if rows else 0):
        parts = [padded(columns[name][index], wide, name in _TO_THE_RIGHT) for name, wide in widths.items()]
        if colour and index:
            parts[-1] = _painted(parts[-1], rows[index - 1])
        line = GAP.join(parts).rstrip()
        lines.append(f"\x1b[1m{line}\x1b[0m" if colour and not index else line)
    return lines


def _cells(row: Row, looking: bool) -> dict[str, str]:
    """Heading -> text, the verdict last."""
    process, inside = row.process, row.inside
    return {
        "PID": str(row.pid),
        "KIND": ("  " if row.master is not None else "") + _kind(row),
        "POD": _pod(row),
        "AGE": age(process.age_s),
        "RSS": "-" if process.rss_bytes is None else _short_size(process.rss_bytes),
        "FDS": "-" if process.fd_count is None else str(process.fd_count),
        "IN": "?" if inside is None else _in(row, inside),
        "FOR": "-" if inside is None or inside.since_s is None else age(inside.since_s),
        "WORK": _work(row.work),
        "VERDICT": verdict_text(row, looking),
    }


def _kind(row: Row) -> str:
    worker = row.process.worker
    return f"{worker.kind.replace('-', ' ')} {worker.worker_class or worker.pool}".rstrip()


def _pod(row: Row) -> str:
    container = row.process.container
    if container is None:
        return "-"
    name = f"/{container.name}" if container.name else ""
    pod = container.pod_name or container.pod[:8]
    return (pod + name) if pod else container.id[:12] or "-"


def _short_size(length_bytes: int) -> str:
    return f"{length_bytes / 1e9:.1f}G" if length_bytes >= 999.5e6 else f"{length_bytes / 1e6:.0f}M"


def _in(row: Row, inside: Inside) -> str:
    return (f"{inside.thread}: " if inside.tid != row.pid else "") + call_text(inside)


def call_text(inside: Inside) -> str:
    """ "recvfrom 10.0.0.5:5672", "futex (lock)", "on CPU"."""
    if inside.state == "R":
        return "on CPU"
    on = inside.on if inside.on.startswith("/") or ":" in inside.on else f"({inside.on})" if inside.on else ""
    call = f"{inside.call or '?'} {on}".rstrip()
    how = {"T": "stopped in ", "t": "traced in ", "D": "uninterruptible in ", "Z": "ended", "X": "ended"}
    return how[inside.state] + call * (inside.state not in "ZX") if inside.state in how else call


def _work(work: Sequence[WorkFact]) -> str:
    if not work:
        return "-"
    first = work[0].name + (f" {age(work[0].age_s)}" if work[0].age_s is not None else "")
    return first + (f" +{len(work) - 1}" if len(work) > 1 else "")


def verdict_text(row: Row, looking: bool = False) -> str:
    """ "idle", "half-open likely"; "..." while it is still looked at."""
    verdict = row.verdict
    if verdict is None:
        return "..." if looking and not row.because else "-"
    return verdict.code + (f" {verdict.confidence}" if verdict.verdict_class == STUCK else "")


def summary(rows: Iterable[Row]) -> str:
    """ "12 processes: 10 idle, 2 half-open"."""
    codes = Counter(row.verdict.code for row in rows if row.verdict is not None)
    said = ", ".join(f"{number} {code}" for code, number in codes.most_common())
    return count(sum(1 for _ in rows), "process", "processes") + (f": {said}" if said else "")


def _fitted(widths: Mapping[str, int], width: int | None) -> dict[str, int]:
    """The columns with the width that each one gets: the widest is cut first; then whole columns are left out."""
    left = dict(widths)
    if width is None:
        return left

    def too_wide() -> int:
        return sum(left.values()) + len(GAP) * (len(left) - 1) - width

    while (over := too_wide()) > 0:
        cut = [name for name in _CUT if left.get(name, 0) > NARROWEST]
        if cut:
            widest = max(cut, key=lambda name: left[name])
            left[widest] = max(NARROWEST, left[widest] - over, left[widest] - max(1, over // 4))
            continue
        name = next((name for name in _LEFT_OUT_FIRST if name in left), None)
        if name is None:
            break
        del left[name]
    return left


def cells_wide(text: str) -> int:
    """How many columns of a terminal it takes."""
    if text.isascii():
        return len(text)
    return sum(map(_cell, text))


def _cell(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def padded(text: str, wide: int, to_the_right: bool = False) -> str:
    """The text in just so many columns of a terminal, cut where it is longer."""
    if cells_wide(text) > wide:
        kept, used = "", 0
        for char in text:
            used += _cell(char)
            if used > wide - 1:
                break
            kept += char
        text = kept + "…"
    blanks = " " * (wide - cells_wide(text))
    return blanks + text if to_the_right else text + blanks


def _painted(text: str, row: Row) -> str:
    if row.verdict is None:
        return text
    return f"\x1b[{_COLOURS.get(row.verdict.verdict_class, _ADVICE_COLOUR)}m{text.rstrip()}\x1b[0m"


def as_json(row: Row, time_s: float) -> dict[str, Any]:
    """One row; `time_s` is the same for all rows of one table."""
    process, inside, verdict, container = row.process, row.inside, row.verdict, row.process.container
    return {
        "schema": SCHEMA,
        "time": round(time_s, 3),
        "pid": row.pid,
        "ppid": process.ppid,
        "master": row.master,
        "start_time": process.start_time,
        "kind": process.worker.kind,
        "role": process.worker.worker_class or process.worker.pool or None,
        "command": without_userinfo(" ".join(process.argv)) or process.command,
        "container": None
        if container is None
        else {
            "id": container.id or None,
            "pod": container.pod or None,
            "pod_name": container.pod_name or None,
            "namespace": container.namespace or None,
            "name": container.name or None,
        },
        "age_s": round(process.age_s, 3),
        "rss_bytes": process.rss_bytes,
        "fd_count": process.fd_count,
        "threads": row.threads,
        "inside": None
        if inside is None
        else {
            "tid": inside.tid,
            "thread": inside.thread,
            "state": inside.state,
            "syscall": inside.call or None,
            "fd": inside.fd,
            "on": inside.on or None,
            "for_s": None if inside.since_s is None else round(inside.since_s, 3),
        },
        "work": [
            {
                "tid": work.tid,
                "kind": work.kind,
                "name": work.name,
                "id": work.id or None,
                "age_s": None if work.age_s is None else round(work.age_s, 3),
            }
            for work in row.work
        ],
        "verdict": None
        if verdict is None
        else {
            "class": verdict.verdict_class,
            "code": verdict.code,
            "confidence": verdict.confidence,
            "summary": verdict.summary,
            "tid": verdict.tid,
        },
        "because": row.because or None,
    }
