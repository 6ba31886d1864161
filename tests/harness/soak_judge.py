"""What the soak showed, held against what was done: every hang, every alert, every sample."""

from __future__ import annotations

import contextlib
import re
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import linear_regression, median
from typing import TYPE_CHECKING

from stucktrace.sinks import journal

from tests.harness import kernel, sentry_server
from tests.harness.soak_agent import Life, Sample

if TYPE_CHECKING:
    from tests.bench.soak import Hang, Soak

EXPECTED_AFTER_S = 40.0
"""A hang that the agent could watch for so long must have been told: the longest threshold is 10 s, and the machine is
shared."""
LATE_S = 20.0
"""A process counts as hung for so long after its hang ended: an examination may still run."""
RESOLVED_WITHIN_S = 120.0
MOST_GROWTH_MB = 4.0
"""Of memory over the second half, by its slope."""
MOST_MORE = 6
"""Descriptors, threads, maps or programs."""
UNSAVED_S = 2.0
"""What was told so shortly before a kill may not have been on disk yet."""


@dataclass
class Report:
    wrong: list[str] = field(default_factory=list)
    expected: int = 0
    met: int = 0
    delays_s: list[float] = field(default_factory=list)
    false_alarms: int = 0
    figures: dict[str, float] = field(default_factory=dict)


def judge(soak: Soak, sentry: sentry_server.Server) -> Report:
    """Ends the agent."""
    report = Report()
    for hang in soak.hangs:
        _hang(soak, hang, report)
    _alarms(soak, report)
    _metrics(report)
    _delivered(soak, sentry, report)
    soak.watcher.end()
    soak.check_leftovers()
    _journals(soak, report)
    _growth(soak, report)
    said = soak.watcher.said()
    report.wrong += [f"the agent said: {line}" for line in said.splitlines() if re.search(r"\b[A-Z]\w+Error\b", line)]
    report.wrong += soak.watcher.wrong
    return report


def _hang(soak: Soak, hang: Hang, report: Report) -> None:
    if hang.failed:
        report.wrong.append(f"{hang.owner} could not be made: {hang.failed}")
    for life in soak.watcher.lives:
        seen_s = min(hang.ended, life.ended) - max(hang.began, life.began)
        if seen_s < EXPECTED_AFTER_S or hang.ended == float("inf"):
            continue
        report.expected += 1
        opened = [
            at
            for at, event, owners in soak.told
            # Two processes in one fault are one alert: the second one is told by an update.
            if event["type"] != "resolved" and hang.owner in owners and event["code"] in hang.kind.codes
            if life.began <= at <= min(hang.ended, life.ended) + 1.0
        ]
        if opened:
            report.met += 1
            report.delays_s.append(opened[0] - max(hang.began, life.began))
        else:
            told = [
                (event["code"], round(at - hang.began, 1)) for at, event, owners in soak.told if hang.owner in owners
            ]
            report.wrong.append(f"missed: {hang.owner}, {seen_s:.0f} s long; told of it: {told}")
        if hang.ended + RESOLVED_WITHIN_S < life.ended:
            _resolved(soak, hang, life, report)


def _resolved(soak: Soak, hang: Hang, life: Life, report: Report) -> None:
    resolved = life.of("resolved")
    for at, event, owners in soak.told:
        if event["type"] == "opened" and hang.owner in owners and event["id"] in life.of("opened"):
            after_s = resolved.get(event["id"], float("inf")) - hang.ended
            if after_s > RESOLVED_WITHIN_S + LATE_S:
                report.wrong.append(f"not resolved: {event['code']} of {hang.owner}: {after_s:.0f} s after its end")
            if at > hang.ended + LATE_S:
                report.wrong.append(f"told too late: {event['code']} of {hang.owner}")


def _alarms(soak: Soak, report: Report) -> None:
    """Every alert is about a process that hung then, and says why."""
    for at, event, owners in soak.told:
        if event["type"] == "resolved":
            continue
        hung = {
            hang.owner: hang.kind
            for hang in soak.hangs
            if hang.began - 60 <= at <= min(hang.ended, soak.end) + RESOLVED_WITHIN_S
        }
        for owner in owners:
            kind = hung.get(owner)
            if kind is None:
                report.false_alarms += event["type"] == "opened"
                report.wrong.append(f"false alarm: {event['type']} {event['code']} of {owner!r}: {event['summary']}")
            elif event["code"] not in kind.codes + kind.beside:
                report.wrong.append(f"wrong reason: {event['code']} of {owner}: {event['summary']}")


def _metrics(report: Report) -> None:
    text = urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=60).read().decode()
    for name in ("lost_records", "examination_failures", "shed_level"):
        found = re.findall(rf"^stucktrace_{name}(?:_total)? ([\d.e+]+)$", text, re.MULTILINE)
        report.figures[name.replace("_", " ")] = float(found[0])
    if report.figures["lost records"]:
        report.wrong.append(f"{report.figures['lost records']:.0f} records of BPF programs were lost")


def _delivered(soak: Soak, sentry: sentry_server.Server, report: Report) -> None:
    """Everything that was told has come to Sentry, over all restarts."""
    last_told = {
        event["id"]
        for life in soak.watcher.lives
        for at, event in life.events
        if event["type"] == "opened" and not (life.killed and at > life.ended - UNSAVED_S)
    }

    def missing() -> set[str]:
        return last_told - {event["contexts"]["alert"]["id"] for event in sentry.events}

    with contextlib.suppress(AssertionError):
        kernel.wait_until(lambda: not missing(), "", 120)
    if missing():
        report.wrong.append(f"{len(missing())} of {len(last_told)} alerts never came to Sentry")
    report.wrong += sentry.errors
    with contextlib.suppress(AssertionError):
        kernel.wait_until(lambda: not list(soak.watcher.spool.glob("*/*")), "", 60)
    if left := list(soak.watcher.spool.glob("*/*")):
        report.wrong.append(f"{len(left)} items are left in the spool")


def _journals(soak: Soak, report: Report) -> None:
    if half := list(soak.watcher.journals.glob(".*")):
        report.wrong.append(f"half-written journals are left: {half}")
    journals = list(soak.watcher.journals.glob("*.journal"))
    report.figures["journals"] = len(journals)
    for path in journals:
        torn: list[str] = []
        if not list(journal.read(path, torn.append)) or torn:
            report.wrong.append(f"{path.name} is torn: {torn}")


def _growth(soak: Soak, report: Report) -> None:
    """Of the last agent, over the second half of the run."""
    middle = (soak.began + soak.end) / 2
    samples = [
        sample
        for sample in soak.watcher.samples
        if sample.life == len(soak.watcher.lives) and middle <= sample.at <= soak.end
    ]
    if len(samples) < 4:
        report.wrong.append("too few samples")
        return
    times = [sample.at for sample in samples]
    slope, _ = linear_regression(times, [sample.rss_mb for sample in samples])
    grown = slope * (times[-1] - times[0])
    report.figures["RSS growth by slope over the second half, MB"] = grown
    if grown > MOST_GROWTH_MB:
        report.wrong.append(f"memory grew by {grown:.1f} MB over the second half")
    early, late = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    for what in ("fds", "threads", "maps", "programs", "children"):
        before, after = (median(getattr(sample, what) for sample in part) for part in (early, late))
        if after > before + MOST_MORE:
            report.wrong.append(f"{what}: {before:.0f} in the third quarter, {after:.0f} in the last one")


def table(soak: Soak, report: Report) -> str:
    """The numbers, and what is wrong."""
    last = [sample for sample in soak.watcher.samples if sample.life == len(soak.watcher.lives)]
    opened = [event for _, event, _ in soak.told if event["type"] == "opened"]
    lines = [
        f"soak of {soak.minutes:g} minutes, seed {soak.seed}: {'WRONG' if report.wrong else 'fine'}",
        f"hangs: {len(soak.hangs)} of {len(soak.hangs and {hang.kind.name for hang in soak.hangs})} kinds; "
        f"expected alerts {report.expected}, met {report.met}; opened in all {len(opened)}: "
        + ", ".join(f"{code} {count}" for code, count in Counter(event["code"] for event in opened).most_common()),
        f"false alarms: {report.false_alarms}; healthy programs that came: {sum(soak.came.values())}, "
        f"short-lived: {soak.short_lived}, processes in all: {len(soak.owners)}",
        f"agents: {len(soak.watcher.lives)}, killed: {sum(life.killed for life in soak.watcher.lives)}",
    ]
    if report.delays_s:
        lines.append(
            f"begin of a hang to its alert: median {median(report.delays_s):.1f} s, most {max(report.delays_s):.1f} s"
        )
    lines += [
        _column(what, [getattr(sample, what) for sample in last])
        for what in Sample.__annotations__
        if what not in ("at", "life", "cpu_s") and last
    ]
    if len(last) > 1:
        shares = [(after.cpu_s - before.cpu_s) / (after.at - before.at) for before, after in pairwise(last)]
        whole = (last[-1].cpu_s - last[0].cpu_s) / (last[-1].at - last[0].at)
        lines.append(f"cpu: {whole:.1%} of one core, with helpers; most in 5 s {max(shares):.0%}")
    lines += [f"{name}: {figure:g}" for name, figure in report.figures.items()]
    return "\n".join([*lines, *(f"WRONG: {line}" for line in report.wrong)])


def _column(what: str, figures: list[float]) -> str:
    return f"{what}: start {figures[0]:.4g}, end {figures[-1]:.4g}, most {max(figures):.4g}"
