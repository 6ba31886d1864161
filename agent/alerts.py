"""Alerts: stuck verdicts that live over time. Pure: observations in, events out; the caller's clock is an argument.

An alert is one fault, however many processes it holds: its fingerprint is (code, frame that matters, peer). It is
opened once, updated at growing intervals or when it becomes surer or twice as large, and resolved when the last process
has left it, with how long it lasted and how it ended. The events are those of alert.schema.json beside this file.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stucktrace import reported
from stucktrace.diagnosis.model import CONFIDENCES, POSSIBLE, PROVEN, SEVERITIES

Json = dict[str, Any]

SCHEMA = "stucktrace.alert/1"
UPDATE_AFTER_S = (30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""How long after the last word the next update comes; the last one repeats."""
MOMENTS = frozenset({"worker-timeout", "oom-killed"})
"""What happened in a moment: there is nothing to say about how long it lasts."""
GROWN_AFTER_S = 1.0
"""The shortest time before an update because more processes came in: they come by the dozen."""
AFFECTED_SHOWN = 100
"""Processes named in one event; `count` counts all."""

RECOVERED, KILLED, EXITED, SUPERSEDED = "recovered", "killed", "exited", "superseded"
"""How a process leaves an alert. Superseded: it is in another alert now."""


@dataclass(frozen=True)
class Member:
    """A process in a fault."""

    pid: int
    start_time: int
    pod: str | None = None
    incident: str = ""
    """The code of what happened to it over time: beside what it is stuck in, it is a member of that alert too."""


@dataclass(frozen=True)
class Observed:
    """A stuck verdict about one process."""

    member: Member
    since: float
    """When its wait began, CLOCK_REALTIME."""
    report: Json


@dataclass
class _Alert:
    fingerprint: tuple[str, str, str]
    report: Json
    """The latest of the surest observations: the representative."""
    since: float
    members: dict[Member, float] = field(default_factory=dict)
    """Who is in it -> since when."""
    left: Counter[str] = field(default_factory=Counter)
    """How many left it, by how."""
    id: str = ""
    """Given when it is opened."""
    said: float = 0.0
    """When the last event came."""
    said_count: int = 0
    said_confidence: str = ""
    updates: int = 0


class Alerts:
    """All open alerts. `tick` gives the events; what is told in between is only taken note of."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._alerts: dict[tuple[str, str, str], _Alert] = {}
        self._of: dict[Member, _Alert] = {}

    def members(self) -> frozenset[Member]:
        """Every process in an open alert."""
        return frozenset(self._of)

    def __contains__(self, member: Member) -> bool:
        """The process is in an open alert."""
        return member in self._of

    def observe(self, observed: Observed) -> None:
        """A process is stuck."""
        member, report = observed.member, observed.report
        alert = self._of.get(member)
        if alert is not None and alert.fingerprint[0] != report["verdict"]["code"]:
            if _still(alert, report):
                return
            self.left(member, SUPERSEDED)
            alert = None
        if alert is None:
            # One that is in an alert stays there though its stack may move: a retry is the same fault.
            wanted = fingerprint(report)
            alert = self._alerts.setdefault(wanted, _Alert(wanted, report, observed.since))
            self._of[member] = alert
        alert.members[member] = min(observed.since, alert.members.get(member, observed.since))
        alert.since = min(alert.since, observed.since)
        if _rank(report) <= _rank(alert.report):
            alert.report = report

    def left(self, member: Member, how: str) -> None:
        """A process is no longer in its alert."""
        alert = self._of.pop(member, None)
        if alert is not None:
            alert.members.pop(member, None)
            alert.left[how] += 1

    def open(self) -> Counter[tuple[str, str]]:
        """How many are open, by code and severity."""
        verdicts = (alert.report["verdict"] for alert in self._alerts.values() if alert.id and alert.members)
        return Counter((verdict["code"], verdict["severity"]) for verdict in verdicts)

    def affected(self) -> Counter[str]:
        """How many processes are in open alerts, by code."""
        return Counter(alert.fingerprint[0] for alert in self._of.values())

    def of(self, alert_id: str) -> tuple[Member, ...]:
        """The processes of an alert, the representative first."""
        alert = next((alert for alert in self._alerts.values() if alert.id == alert_id), None)
        if alert is None:
            return ()
        pid = alert.report["process"]["pid"]
        return tuple(sorted(alert.members, key=lambda member: member.pid != pid))

    def tick(self, now: float) -> list[Json]:
        """The events that are due."""
        return list(self._events(now))

    def _events(self, now: float) -> Iterator[Json]:
        for key, alert in list(self._alerts.items()):
            if not alert.members:
                del self._alerts[key]
                if alert.id:
                    yield self._event("resolved", now, alert)
            elif not alert.id:
                alert.id = uuid.uuid4().hex
                yield self._event("opened", now, alert)
            elif _news(alert, now) or _quiet_too_long(now, alert):
                # A clock that was set back must not silence the alert.
                alert.updates += 1
                yield self._event("updated", now, alert)

    def _event(self, kind: str, now: float, alert: _Alert) -> Json:
        verdict = alert.report["verdict"]
        alert.said, alert.said_confidence = now, verdict["confidence"]
        alert.said_count = max(alert.said_count, len(alert.members))
        oldest = sorted(alert.members.items(), key=lambda entry: (entry[1], entry[0].pid))[:AFFECTED_SHOWN]
        return {
            "schema": SCHEMA,
            "type": kind,
            "time": round(now, 3),
            "id": alert.id,
            "fingerprint": hashlib.sha256("\0".join(alert.fingerprint).encode(errors="replace")).hexdigest()[:16],
            "code": verdict["code"],
            "severity": verdict["severity"],
            "confidence": verdict["confidence"],
            "summary": verdict["summary"],
            "count": len(alert.members) if kind != "resolved" else alert.left.total(),
            "affected": [
                {"pid": member.pid, "pod": member.pod, "since_s": round(max(0.0, now - since), 3)}
                for member, since in oldest
            ],
            "duration_s": round(max(0.0, now - alert.since), 3),
            "how": alert.left.most_common(1)[0][0] if kind == "resolved" else None,
            "node": self._node,
            "report": alert.report if kind == "opened" else None,
        }


def _still(alert: _Alert, report: Json) -> bool:
    """What was told holds beside the new verdict, which is no surer: one hang is one alert."""
    told = {finding["code"] for finding in report["findings"] if finding["confidence"] != POSSIBLE}
    return alert.fingerprint[0] in told and _rank(report) >= _rank(alert.report)


def _rank(report: Json) -> tuple[int, int]:
    """The surer and graver, the less."""
    verdict = report["verdict"]
    return CONFIDENCES.index(verdict["confidence"]), SEVERITIES.index(verdict["severity"])


def _news(alert: _Alert, now: float) -> bool:
    surer = alert.report["verdict"]["confidence"] == PROVEN != alert.said_confidence
    return surer or (len(alert.members) >= 2 * alert.said_count and abs(now - alert.said) >= GROWN_AFTER_S)


def _quiet_too_long(now: float, alert: _Alert) -> bool:
    if alert.fingerprint[0] in MOMENTS:
        return False
    return abs(now - alert.said) >= UPDATE_AFTER_S[min(alert.updates, len(UPDATE_AFTER_S) - 1)]


def fingerprint(report: Json) -> tuple[str, str, str]:
    """(code, function and file of the frame that matters, peer): the same for all processes in one fault.

    Where there is neither a frame nor a peer the finding's own subject stands for them.
    """
    verdict = report["verdict"]
    thread = reported.thread(report)
    frame = ""
    if thread is not None and verdict["frame"] is not None and verdict["frame"] < len(thread["python"]):
        found = thread["python"][verdict["frame"]]
        file = found["file"].rpartition("/site-packages/")[2].rpartition("/dist-packages/")[2]
        frame = f"{found['function']} {file}"
    peer = reported.peer(report) or ""
    if not frame and not peer:
        peer = verdict.get("subject") or ""
    return verdict["code"], frame, peer
