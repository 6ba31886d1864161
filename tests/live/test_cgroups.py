"""A frozen cgroup, in every hierarchy with a freezer that this machine mounts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stucktrace.collectors import cgroups

from tests.harness import command, kernel, targets
from tests.harness.pod_cgroups import pod_cgroups

WAITING = "import os, threading; os.write(int(os.environ['READY_FD']), b'ready\\n'); threading.Event().wait()"
FREEZERS = {"cgroup2": ("cgroup.freeze", "1", "0"), "freezer": ("freezer.state", "FROZEN", "THAWED")}


def mounts() -> dict[str, str]:
    found = cgroups.parse_mounts(Path("/proc/self/mountinfo").read_text())
    return {kind: mount for kind, mount in found.items() if kind in FREEZERS}


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


FROM_A_POD = """
import sys
from stucktrace.collectors import cgroups
cgroups.NODE_PID = int(sys.argv[3])
(path,) = [path for controllers, path in cgroups.read_paths(int(sys.argv[1])) if not controllers]
assert path.startswith("/../"), path
((root, folder),) = cgroups.folders("cgroup2", path)
assert sys.argv[2] in (folder / "cgroup.events").read_text().splitlines(), folder
print(folder.relative_to(root))
"""
OWN_NAMESPACE = """
echo $$ > "$1/cgroup.procs"; shift
exec unshare --cgroup --mount sh -ec 'umount "$1"; mount -t cgroup2 none "$1"; shift; exec "$@"' sh "$@"
"""


def test_from_a_cgroup_namespace_of_our_own(waiting: targets.Target):
    """As an agent in a pod: its own mount shows its own cgroup, process 1 of the node leads to the others.

    This test stands for process 1, which not every sandbox lets its root look at.
    """
    mount = mounts()["cgroup2"]
    with pod_cgroups() as theirs, pod_cgroups() as ours:
        folder, own = (next(one for one in each.folders if one.is_relative_to(mount)) for each in (theirs, ours))
        (folder / "cgroup.procs").write_text(str(waiting.pid))
        for number in "10":
            (folder / "cgroup.freeze").write_text(number)
            kernel.wait_until(lambda n=number: f"frozen {n}" in (folder / "cgroup.events").read_text(), "the freezer")  # type: ignore[misc]
            asked = ["sh", "-ec", OWN_NAMESPACE, "sh", str(own), mount, sys.executable, "-c", FROM_A_POD]
            done = subprocess.run(
                [*asked, str(waiting.pid), f"frozen {number}", str(os.getpid())],
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert (done.returncode, done.stdout) == (0, f"{folder.relative_to(mount)}\n"), done.stderr
        (Path(mount) / "cgroup.procs").write_text(str(waiting.pid))
