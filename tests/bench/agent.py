"""What the agent costs beside idle gunicorn workers, once it has looked at everything, by the kernel's own accounts."""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

from tests.bench import Row
from tests.harness import agent

WORKERS = 200
SETTLED_AFTER_S = 85.0
"""By then the polling master was examined twice, and will be ever more rarely."""
MEASURED_S = 45.0
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Its own CPU time and that of its children that ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


SINKS = {
    "Prometheus": ("--metrics", "127.0.0.1:9464"),
    "Sentry": ("--sentry-dsn", "http://key@127.0.0.1:9/1"),
    "OTLP": ("--otlp-endpoint", "http://127.0.0.1:9"),
    "a spool": ("--spool", "{folder}/spool"),
}
"""Each further part, by its option; nobody listens at these addresses."""
STARTED_AFTER_S = 10.0


def resident_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def run() -> list[Row]:
    with (
        agent.gunicorn("--timeout", 30, workers=WORKERS) as server,
        agent.watching(server.master, "--engine", "core", *SINKS["Prometheus"]) as watcher,
    ):
        time.sleep(SETTLED_AFTER_S)
        before, began = cpu_s(watcher.pid), time.monotonic()
        time.sleep(MEASURED_S)
        share = (cpu_s(watcher.pid) - before) / (time.monotonic() - began)
        resident = resident_mb(watcher.pid)
        assert watcher.read(0) is None, agent.summaries(watcher.events)
    beside = f"idle beside {WORKERS} sync workers, stdout and Prometheus"
    rows = [
        Row(f"agent {beside}: CPU", share * 100, "% of one core", "", "target: 1"),
        Row(f"agent {beside}: resident", resident, "MB", "", "target: 60"),
    ]
    with agent.gunicorn("--timeout", 30) as server, tempfile.TemporaryDirectory() as folder:
        bare = started_mb(server.master)
        for name, options in SINKS.items():
            added = started_mb(server.master, *(word.replace("{folder}", folder) for word in options)) - bare
            rows.append(Row(f"agent beside one worker: {name} adds", added, "MB", f"without: {bare:.1f} MB", ""))
    return rows


def started_mb(master: int, *options: str) -> float:
    """What an agent with these options has resident a little after its start."""
    with agent.watching(master, "--engine", "core", *options) as watcher:
        time.sleep(STARTED_AFTER_S)
        return resident_mb(watcher.pid)
