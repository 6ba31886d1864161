"""What is read of every watched process every few seconds: few and cheap reads of /proc.

Source: /proc/PID/stat, the size of the directory /proc/PID/fd (Linux 6.2; before, its entries), and for a few processes
the context switches of the main thread.
"""

from __future__ import annotations

import os
import re
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stucktrace.collectors.procfs import PAGE_BYTES, PF_EXITING, TICKS_PER_SECOND
from stucktrace.facts import ThreadFact


@dataclass(frozen=True)
class Sample:
    ppid: int
    start_time: int
    cpu_s: float
    rss_bytes: int
    ending: bool


def read(pid: int) -> Sample | None:
    """None when it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fields = os.read(fd, 4096).rpartition(b")")[2].split()
        return Sample(
            int(fields[1]),
            int(fields[19]),
            (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND,
            int(fields[21]) * PAGE_BYTES,
            fields[0] in b"ZX" or bool(int(fields[6]) & PF_EXITING),
        )
    except (OSError, IndexError, ValueError):
        return None
    finally:
        os.close(fd)


def fd_count(pid: int) -> int | None:
    path = f"/proc/{pid}/fd"
    try:
        return os.stat(path).st_size or len(os.listdir(path))
    except OSError:
        return None


def fd_limit(pid: int) -> int | None:
    """RLIMIT_NOFILE."""
    try:
        return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except (OSError, ValueError):
        return None


def switches(pid: int, tid: int | None = None) -> int | None:
    """How often a thread, by default the main one, was put to sleep or set aside; unchanged: it has not run."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/task/{tid or pid}/status").read_text(errors="replace")
        found = re.findall(r"^(?:non)?voluntary_ctxt_switches:\s*(\d+)$", text, re.MULTILINE)
        if found:
            return sum(map(int, found))
    return None


def has_run(pid: int, thread: ThreadFact) -> bool | None:
    """Since the look that this fact is of; None: that look did not tell how often it had run."""
    return None if thread.switches is None else switches(pid, thread.tid) != thread.switches


def wanted_cpu_s(pid: int) -> float | None:
    """For how long the main thread has run or waited for a CPU: on a busy node it gets less than it wants."""
    with suppress(OSError, ValueError, IndexError):
        ran, waited = Path(f"/proc/{pid}/schedstat").read_text().split()[:2]
        return (int(ran) + int(waited)) / 1e9
    return None


def node_memory_bytes() -> int | None:
    """What is available on the node."""
    with suppress(OSError):
        match = re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if match:
            return int(match[1]) * 1024
    return None
