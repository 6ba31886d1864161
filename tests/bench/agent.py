"""What the agent costs beside idle gunicorn workers, once it has looked at everything, by the kernel's own accounts."""

from __future__ import annotations

import os
import re
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


def run() -> list[Row]:
    with (
        agent.gunicorn("--timeout", 30, workers=WORKERS) as server,
        agent.watching(server.master, "--engine", "core") as watcher,
    ):
        time.sleep(SETTLED_AFTER_S)
        before, began = cpu_s(watcher.pid), time.monotonic()
        time.sleep(MEASURED_S)
        share = (cpu_s(watcher.pid) - before) / (time.monotonic() - began)
        resident = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{watcher.pid}/status").read_text())
        assert resident and watcher.read(0) is None, agent.summaries(watcher.events)
    beside = f"idle beside {WORKERS} sync workers"
    return [
        Row(f"agent {beside}: CPU", share * 100, "% of one core", "", ""),
        Row(f"agent {beside}: resident", int(resident[1]) / 1024, "MB", "", ""),
    ]
