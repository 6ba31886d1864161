"""How often this process's BPF programs ran and for how long: struct bpf_prog_info, for every program it has open.

The kernel counts while somebody asks for it (BPF_ENABLE_STATS, which needs CAP_SYS_ADMIN), or while the sysctl
kernel.bpf_stats_enabled is on, which is never changed here. It then counts for all programs of the node, and that costs
each of their runs about 100 ns (measured). So it is asked for one second in a minute, and the totals are estimates.
"""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict
from contextlib import suppress
from ctypes import c_char, c_uint8, c_uint32, c_uint64
from dataclasses import dataclass
from pathlib import Path

from stucktrace.collectors import libbpf

MEASURED_S, EVERY_S = 1.0, 60.0
_PROGRAM = "anon_inode:bpf-prog"


@dataclass(frozen=True)
class ProgramRuns:
    """Of the programs with one name."""

    count: int
    seconds: float


class _Info(ctypes.Structure):
    """The beginning of struct bpf_prog_info (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("lengths", c_uint32 * 2),
        ("instructions", c_uint64 * 2),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * 16),
        ("ifindex", c_uint32),
        ("gpl_compatible", c_uint32),
        ("netns", c_uint64 * 2),
        ("nr_jited", c_uint32 * 2),
        ("jited", c_uint64 * 2),
        ("btf", c_uint32 * 2),
        ("func_info", c_uint64),
        ("nr_info", c_uint32 * 2),
        ("line_info", c_uint64 * 2),
        ("nr_line_info", c_uint32 * 4),
        ("prog_tags", c_uint64),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
    )


class Runs:
    def __init__(self) -> None:
        self._always = _switched_on()
        self._enabled: int | None = None
        self._began_s = float("-inf")
        self._seen: dict[int, tuple[int, int]] = {}
        """Id of a program -> its run_cnt and run_time_ns when last read."""
        self._totals: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    def read(self, now: float) -> dict[str, ProgramRuns]:
        """Name (the kernel keeps 15 characters) -> runs since the start, also of programs that were closed since.

        `now`: CLOCK_MONOTONIC. Call it about once a second; it never waits. Empty without the right to measure.
        """
        if self._always:
            self._add(1.0)
        elif self._enabled is not None and now - self._began_s >= MEASURED_S:
            self._add(EVERY_S / (now - self._began_s))
            self.close()
        elif self._enabled is None and now - self._began_s >= EVERY_S:
            self._began_s = now
            with suppress(OSError):
                self._add(0.0)
                self._enabled = libbpf.enable_run_time_statistics()
        return {name: ProgramRuns(round(count), ns / 1e9) for name, (count, ns) in self._totals.items() if count}

    def _add(self, factor: float) -> None:
        seen = {}
        for info in _open_programs():
            seen[info.id] = info.run_cnt, info.run_time_ns
            before_count, before_ns = self._seen.get(info.id, (0, 0))
            name = info.name.decode(errors="replace")
            count, ns = self._totals[name]
            count, ns = count + factor * (info.run_cnt - before_count), ns + factor * (info.run_time_ns - before_ns)
            self._totals[name] = count, ns
        self._seen = seen

    def close(self) -> None:
        if self._enabled is not None:
            os.close(self._enabled)
            self._enabled = None


def _switched_on() -> bool:
    with suppress(OSError):
        return Path("/proc/sys/kernel/bpf_stats_enabled").read_text().strip() == "1"
    return False


def _open_programs() -> list[_Info]:
    """Each once, of all threads."""
    found: dict[int, _Info] = {}
    for name in os.listdir("/proc/self/fd"):
        # Another thread may close it meanwhile.
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == _PROGRAM:
                info = _Info()
                libbpf.program_info(int(name), info)
                found[info.id] = info
    return list(found.values())
