"""The kernel's statistics of our own BPF programs: asked for only now and then, and estimated from that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stucktrace.collectors import inflight, kernel
from stucktrace.collectors.bpf_stats import EVERY_S, Runs


def counted() -> int:
    """Runs of `inflight` as /proc/self/fdinfo tells them."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:bpf-prog":
                info = dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
                found[info["prog_id"]] = int(info["run_cnt"])
        except OSError:
            pass
    return sum(found.values())


def test_runs_are_measured_for_a_second_and_estimated_for_the_minute():
    if Path("/proc/sys/kernel/bpf_stats_enabled").read_text().strip() == "1":
        pytest.fail("kernel.bpf_stats_enabled is on here: nothing can be told about asking for it")
    with kernel.open_kernel("core").kernel as core:
        scan = inflight.KernelScan(core)
        scan.watch({})
        runs = Runs()
        scan.look()
        # Another agent or test on this machine may have asked for statistics, too.
        before = counted()
        assert runs.read(100.0) == {}
        scan.look()
        measured = counted() - before
        found = runs.read(102.0)["inflight"]
        assert measured > 0 and abs(found.count - measured * EVERY_S / 2) <= measured
        assert 0 < found.seconds < 60
        assert runs.read(103.0)["inflight"] == found
        assert runs.read(100.0 + EVERY_S)["inflight"] == found
        scan.look()
        assert runs.read(101.0 + EVERY_S)["inflight"].count > found.count
    assert runs.read(102.0 + EVERY_S)["inflight"].count > found.count
    runs.close()
