"""What Prometheus and OTLP show of the figures: one table of measures with names, units and labels, said once. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stucktrace.node.figures import Durations, Figures

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
Labels = tuple[str, ...]


@dataclass(frozen=True)
class Measure:
    name: str
    """Without prefix, unit and _total."""
    kind: str
    unit: str
    """seconds, bytes or none."""
    labels: Labels
    text: str
    values: Callable[[Figures], Mapping[Labels, float]] | None = None
    """Values of the labels -> value."""
    durations: Callable[[Figures], Durations] | None = None
    """Of a histogram."""


def _one(read: Callable[[Figures], float]) -> Callable[[Figures], Mapping[Labels, float]]:
    return lambda figures: {(): read(figures)}


def _each(read: Callable[[Figures], Mapping[str, float]]) -> Callable[[Figures], Mapping[Labels, float]]:
    return lambda figures: {(label,): value for label, value in read(figures).items()}


def _pairs(read: Callable[[Figures], Mapping[tuple[str, str], float]]) -> Callable[[Figures], Mapping[Labels, float]]:
    return lambda figures: {tuple(labels): value for labels, value in read(figures).items()}


def _info(figures: Figures) -> Mapping[Labels, float]:
    return {(figures.version, figures.engine, figures.node, figures.kernel): 1}


def _fill(figures: Figures) -> Mapping[str, float]:
    return {str(table.netns): table.count for table in figures.conntrack}


def _limits(figures: Figures) -> Mapping[str, float]:
    return {str(table.netns): table.maximum for table in figures.conntrack if table.maximum is not None}


def _drops(figures: Figures) -> Mapping[Labels, float]:
    return {
        (str(table.netns), reason): number
        for table in figures.conntrack
        for reason, number in (
            ("drop", table.drop),
            ("early_drop", table.early_drop),
            ("insert_failed", table.insert_failed),
        )
    }


# fmt: off
MEASURES = (
    Measure("agent_info", GAUGE, "", ("version", "engine", "node", "kernel"),
            "Always 1: what runs is in the labels.", _info),
    Measure("start_time", GAUGE, "seconds", (), "When the agent started, since the epoch.",
            _one(lambda f: f.started_s)),
    Measure("watched_processes", GAUGE, "", ("kind",), "Processes that are watched now.", _each(lambda f: f.watched)),
    Measure("alerts_open", GAUGE, "", ("code", "severity"), "Alerts that are open now.", _pairs(lambda f: f.open)),
    Measure("affected_processes", GAUGE, "", ("code",), "Processes in alerts that are open now.",
            _each(lambda f: f.affected)),
    Measure("alerts_opened", COUNTER, "", ("code",), "Alerts opened.", _each(lambda f: f.opened)),
    Measure("alerts_resolved", COUNTER, "", ("code", "how"), "Alerts resolved, and how.", _pairs(lambda f: f.resolved)),
    Measure("alert_delay", HISTOGRAM, "seconds", (), "From a threshold crossed to its alert.",
            durations=lambda f: f.alert_delay),
    Measure("glance_duration", HISTOGRAM, "seconds", (), "Looks at the waits of all watched processes.",
            durations=lambda f: f.glances),
    Measure("last_glance_duration", GAUGE, "seconds", (), "What the last of these looks took.",
            _one(lambda f: f.last_glance_s)),
    Measure("scan_duration", HISTOGRAM, "seconds", (), "Looks through /proc for new processes.",
            durations=lambda f: f.scans),
    Measure("examination_duration", HISTOGRAM, "seconds", (), "Examinations of suspects, with stacks and verdict.",
            durations=lambda f: f.examinations),
    Measure("examination_failures", COUNTER, "", (), "Examinations that gave no verdict.",
            _one(lambda f: f.examination_failures)),
    Measure("lost_records", COUNTER, "", (), "Records that BPF programs had to drop.", _one(lambda f: f.lost_records)),
    Measure("bpf_runs", COUNTER, "", ("program",), "Runs of the agent's BPF programs.",
            _each(lambda f: {name: runs.count for name, runs in f.bpf.items()})),
    Measure("bpf_run", COUNTER, "seconds", ("program",), "Time in the agent's BPF programs.",
            _each(lambda f: {name: runs.seconds for name, runs in f.bpf.items()})),
    Measure("cpu", COUNTER, "seconds", (), "CPU time of the agent and of its helpers that ended.",
            _one(lambda f: f.cpu_s)),
    Measure("resident_memory", GAUGE, "bytes", (), "Resident memory of the agent.", _one(lambda f: f.rss_bytes)),
    Measure("shed_level", GAUGE, "", (), "0: all is done; more: the agent does less, to stay inside its budget.",
            _one(lambda f: f.shed_level)),
    Measure("sink_delivered", COUNTER, "", ("sink",), "Events that the sink took.",
            _each(lambda f: {name: sink.delivered for name, sink in f.sinks.items()})),
    Measure("sink_dropped", COUNTER, "", ("sink",), "Events that fell over the bound of what may wait.",
            _each(lambda f: {name: sink.dropped for name, sink in f.sinks.items()})),
    Measure("sink_refused", COUNTER, "", ("sink",), "Events that the sink will never take.",
            _each(lambda f: {name: sink.refused for name, sink in f.sinks.items()})),
    Measure("sink_pending", GAUGE, "", ("sink",), "Events that wait for the sink.",
            _each(lambda f: {name: sink.pending for name, sink in f.sinks.items()})),
    Measure("spool", GAUGE, "bytes", (), "What waits for the sinks.", _one(lambda f: f.spool_bytes)),
    Measure("journal", GAUGE, "bytes", (), "Journals on disk.", _one(lambda f: f.journal_bytes)),
    Measure("conntrack_entries", GAUGE, "", ("netns",), "Entries in the conntrack table of a network namespace.",
            _each(_fill)),
    Measure("conntrack_limit", GAUGE, "", ("netns",), "How many entries the table may have.", _each(_limits)),
    Measure("conntrack_drops", COUNTER, "", ("netns", "reason"), "What the table had no room for, by its counters.",
            _drops),
    Measure("worker_timeouts", COUNTER, "", (), "Workers that gunicorn killed for their silence.",
            _one(lambda f: f.worker_timeouts)),
    Measure("worker_restarts", COUNTER, "", (), "Workers that came after others of their master.",
            _one(lambda f: f.restarts)),
)
