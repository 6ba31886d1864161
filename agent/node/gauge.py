"""Gathers the agent's figures from its parts."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from stucktrace import __version__, report
from stucktrace.collectors.bpf_stats import Runs
from stucktrace.collectors.kernel import Kernel
from stucktrace.node.desk import Desk
from stucktrace.node.examiner import Examiner
from stucktrace.node.figures import Figures
from stucktrace.node.glances import Glances
from stucktrace.node.self_watch import Usage
from stucktrace.node.signs import Signs
from stucktrace.node.tracker import Tracker
from stucktrace.settings import Settings
from stucktrace.sinks.delivery import Delivery


def gather(
    settings: Settings,
    usage: Usage,
    *,
    started_s: float,
    kernel: Kernel | None,
    runs: Runs,
    tracker: Tracker,
    glances: Glances,
    examiner: Examiner,
    desk: Desk,
    delivery: Delivery,
    signs: Signs,
) -> Figures:
    """All figures of this instant. `started_s`: CLOCK_REALTIME."""
    host, sinks = report.host(), delivery.status()
    return Figures(
        turned_s=time.monotonic(),
        started_s=started_s,
        version=__version__,
        engine=kernel.engine if kernel is not None else "none",
        node=settings.node or host["node"],
        kernel=host["kernel"],
        watched=Counter(process.worker.kind for process in tracker.processes.values()),
        open=desk.alerts.open(),
        affected=desk.alerts.affected(),
        opened=dict(desk.opened),
        resolved=dict(desk.resolved),
        alert_delay=desk.delay,
        glances=glances.took,
        last_glance_s=glances.last_s,
        scans=tracker.took,
        examinations=examiner.took,
        examination_failures=examiner.failures,
        lost_records=(kernel.lost_records() if kernel is not None else 0) + examiner.lost_records,
        bpf=runs.read(time.monotonic()) if kernel is not None else {},
        cpu_s=usage.cpu_s,
        rss_bytes=usage.rss_bytes,
        shed_level=usage.level,
        sinks=sinks,
        spool_bytes=sum(sink.pending_bytes for sink in sinks.values()),
        journal_bytes=_size_bytes(settings.journal),
        conntrack=signs.flows.facts,
        worker_timeouts=desk.happened_so_far["worker-timeout"],
        restarts=tracker.replaced,
    )


def _size_bytes(directory: Path | None) -> int:
    """Of all files in it."""
    size = 0
    if directory is not None:
        with suppress(OSError):
            for path in directory.iterdir():
                with suppress(OSError):
                    size += path.stat().st_size
    return size
