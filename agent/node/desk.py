"""The alerts of this node on their way out: into the journal, and to the sinks with the timeline of their processes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from stucktrace.alerts import Alerts, Member, Observed
from stucktrace.diagnosis.model import Budgets
from stucktrace.incidents import Incident
from stucktrace.inspection import Inspection
from stucktrace.node.figures import Durations
from stucktrace.node.incidents import realtime
from stucktrace.node.pod_names import PodNames
from stucktrace.node.recorder import Recorder
from stucktrace.report import build
from stucktrace.sinks.delivery import Item


class Desk:
    def __init__(self, node: str, recorder: Recorder, put: Callable[[Item], None], names: PodNames) -> None:
        self.alerts = Alerts(node)
        self._recorder = recorder
        self._names = names
        self.put = put
        """Takes what goes to the sinks; never waits."""
        self._overdue: dict[Member, float] = {}
        """Who is new in an alert -> since when it could have been, CLOCK_MONOTONIC."""
        self.opened: Counter[str] = Counter()
        """Alerts opened so far, by code."""
        self.resolved: Counter[tuple[str, str]] = Counter()
        """Alerts resolved so far, by code and how."""
        self.happened_so_far: Counter[str] = Counter()
        """Incidents so far, by code; several processes can be in one alert."""
        self.delay = Durations()
        """From the moment when a process's examination was due to its alert."""

    def note(self, at: float, category: str, message: str, pid: int | None) -> None:
        """A line for the timeline, of this CLOCK_MONOTONIC."""
        self._recorder.note(realtime(at), category, message, pid)

    def stuck(self, member: Member, since: float, due: float, inspection: Inspection, budgets: Budgets) -> None:
        """A process was found stuck; its examination was due at this CLOCK_MONOTONIC."""
        inspection = self._named(inspection)
        self._recorder.examined(inspection.snapshot, budgets, None, inspection.diagnosis, inspection.siblings)
        if member not in self.alerts:
            self._overdue[member] = due
        self.alerts.observe(Observed(member, since, build(inspection)))

    def happened(self, member: Member, since: float, incident: Incident, inspection: Inspection) -> None:
        """Something happened to a process; `inspection` has the incident's verdict."""
        inspection = self._named(inspection)
        self.happened_so_far[inspection.diagnosis.verdict.code] += 1
        self._recorder.examined(inspection.snapshot, Budgets(), incident, inspection.diagnosis)
        self.alerts.observe(Observed(member, since, build(inspection)))

    def _named(self, inspection: Inspection) -> Inspection:
        snapshot = inspection.snapshot
        process = replace(snapshot.process, container=self._names.named(snapshot.process.container))
        return replace(inspection, snapshot=replace(snapshot, process=process))

    def left(self, member: Member, how: str) -> None:
        """A process is no longer in its alert."""
        self.alerts.left(member, how)

    def tick(self) -> None:
        """Sends the events that are due."""
        for event in self.alerts.tick(time.time()):
            if event["type"] == "opened":
                self.opened[event["code"]] += 1
            elif event["type"] == "resolved":
                self.resolved[event["code"], event["how"]] += 1
            for affected in event["affected"]:
                affected["pod"] = affected["pod"] and self._names.called(affected["pod"])
            members = self.alerts.of(event["id"])
            self._recorder.write(event, members)
            self.put(Item(event, self._recorder.timeline([member.pid for member in members])))
        now = time.monotonic()
        for due in self._overdue.values():
            self.delay = self.delay.plus(now - due)
        self._overdue.clear()
