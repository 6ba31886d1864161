"""Why a target beside us in a container may not be read. Literal statuses."""

from __future__ import annotations

import pytest
from stucktrace.collectors import procfs, rights
from stucktrace.facts import ProcessFact

SYS_PTRACE, DAC, ALL = 1 << 19, 1 << 2, (1 << 41) - 1


def explained(
    monkeypatch: pytest.MonkeyPatch, *, uid: int, held: int, target: int, has: int = 0, yama: int = 0, pod: bool = True
):
    statuses = {"CapEff": f"{held:016x}"}, {"CapPrm": f"{has:016x}"}
    monkeypatch.setattr(rights.os, "geteuid", lambda: uid)
    monkeypatch.setattr(rights.os, "getpid", lambda: 50)
    monkeypatch.setattr(procfs, "own_pids", lambda: True)
    monkeypatch.setattr(procfs, "read_status", lambda pid: statuses[pid == 1])
    monkeypatch.setattr(rights, "yama", lambda: yama)
    monkeypatch.setattr(rights, "in_a_pod", lambda: pod)
    found = rights.explain(ProcessFact(1, 1, 0, 5, "python", (), "S", uid=target))
    return (found.because, found.remedy) if found else None


@pytest.mark.parametrize(
    ("case", "because", "remedy"),
    [
        ({"uid": 0, "held": 0, "target": 0, "has": DAC}, "the target has capabilities", "--profile=sysadmin -- stucktrace pid 1"),
        ({"uid": 1001, "held": 0, "target": 1001, "yama": 1}, "ptrace_scope is 1", "runAsUser: 0"),
        ({"uid": 0, "held": DAC, "target": 1001, "yama": 1}, "user 0 without CAP_SYS_PTRACE, the target as user 1001", "sysadmin -- stucktrace pid 1"),
        ({"uid": 0, "held": 0, "target": 1001, "pod": False}, "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH", "docker run --rm --pid=container:NAME --user=0"),
    ],
)  # fmt: skip
def test_what_stands_in_the_way(monkeypatch, case, because, remedy):
    found = explained(monkeypatch, **case)
    assert found is not None and because in found[0] and remedy in found[1], found
    # Yama refuses the target's own user too, and root is nobody to become.
    assert ("as the target's user" in found[1]) == (case["target"] == 1001 != case["uid"] and not case.get("yama")), (
        found
    )


@pytest.mark.parametrize(
    "case",
    [
        {"uid": 0, "held": ALL, "target": 1001},
        {"uid": 0, "held": SYS_PTRACE | 1 << 1, "target": 1001},
        {"uid": 1001, "held": 0, "target": 1001},
    ],
)
def test_nothing_does(monkeypatch, case):
    assert explained(monkeypatch, **case) is None


def test_on_the_node_the_collectors_say_all():
    assert procfs.own_pids() or rights.explain(ProcessFact(1, 1, 0, 5, "python", (), "S", uid=5)) is None
