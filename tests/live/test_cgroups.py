"""A frozen cgroup, in every hierarchy with a freezer that this machine mounts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stucktrace.collectors import cgroups

from tests.harness import command, kernel, targets

WAITING = "import os, threading; os.write(int(os.environ['READY_FD']), b'ready\\n'); threading.Event().wait()"
FREEZERS = {"cgroup2": ("cgroup.freeze", "1", "0"), "freezer": ("freezer.state", "FROZEN", "THAWED")}


def mounts() -> dict[str, str]:
    return cgroups.parse_mounts(Path("/proc/self/mountinfo").read_text())


@pytest.fixture
def waiting() -> Iterator[targets.Target]:
    with targets.start([sys.executable, "-c", WAITING]) as target:
        kernel.wait_for_call(target.pid, "futex")
        yield target


def test_this_machine_mounts_a_freezer():
    assert mounts()


@pytest.mark.parametrize("below", ["", "child"])
@pytest.mark.parametrize("hierarchy", sorted(mounts()))
def test_frozen_and_thawed(waiting: targets.Target, hierarchy: str, below: str):
    file, freeze, thaw = FREEZERS[hierarchy]
    group = Path(mounts()[hierarchy]) / f"stucktrace-test-{os.getpid()}-{waiting.pid}"
    inner = group / below if below else group
    inner.mkdir(parents=True)
    try:
        (inner / "cgroup.procs").write_text(str(waiting.pid))
        (group / file).write_text(freeze)
        kernel.wait_until(lambda: is_frozen(waiting.pid), "frozen")
        report = command.check(waiting.pid, "stopped")
        assert "frozen" in report.summary
        (group / file).write_text(thaw)
        kernel.wait_until(lambda: not is_frozen(waiting.pid), "thawed")
        command.check(waiting.pid, "idle")
    finally:
        (group / file).write_text(thaw)
        (group.parent / "cgroup.procs").write_text(str(waiting.pid))
        for folder in dict.fromkeys((inner, group)):
            kernel.wait_until(lambda folder=folder: not (folder / "cgroup.procs").read_text(), "the group is empty")
            folder.rmdir()


def test_the_kernel_function_tells_it_where_the_cgroup_file_system_cannot(waiting: targets.Target):
    file, freeze, thaw = FREEZERS["cgroup2"]
    group = Path(mounts()["cgroup2"]) / f"stucktrace-test-{os.getpid()}-{waiting.pid}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(waiting.pid))
        (group / file).write_text(freeze)
        kernel.wait_until(lambda: cgroups.frozen(waiting.pid, ()), "frozen, by its wait alone")
    finally:
        (group / file).write_text(thaw)
        (group.parent / "cgroup.procs").write_text(str(waiting.pid))
        kernel.wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()
    kernel.wait_until(lambda: not cgroups.frozen(waiting.pid, ()), "thawed")


def is_frozen(pid: int) -> bool:
    return cgroups.frozen(pid, cgroups.read_paths(pid))
