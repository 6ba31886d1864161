"""What would permit what was refused: never a capability that is there."""

from __future__ import annotations

import pytest
from stucktrace.collectors import permission

ALL = sum(1 << bit for bit in permission.BITS.values())


def having(monkeypatch: pytest.MonkeyPatch, *names: str, last: str = "40", files: dict[str, str] | None = None) -> None:
    """These capabilities, and these files of /proc and /sys alone."""
    shown = {str(permission.LAST): last, "/proc/self/uid_map": "0 0 4294967295", **(files or {})}
    effective = sum(1 << permission.BITS[name] for name in names) if names != ("ALL",) else ALL
    monkeypatch.setattr(permission, "_effective", lambda: effective)
    monkeypatch.setattr(permission, "_words", lambda path: shown.get(path, "").split())
    monkeypatch.setattr(permission, "_seccomp", lambda: "")
    monkeypatch.setattr("os.geteuid", lambda: 0)


def test_only_what_lacks_is_named(monkeypatch):
    having(monkeypatch, "SYS_PTRACE")
    assert permission.remedy("SYS_PTRACE", "DAC_READ_SEARCH") == "grant CAP_DAC_READ_SEARCH"
    assert permission.remedy("BPF", "PERFMON", "SYS_PTRACE") == "grant CAP_BPF and CAP_PERFMON"


def test_sys_admin_stands_in_for_bpf(monkeypatch):
    having(monkeypatch, "SYS_ADMIN")
    assert permission.lacking("BPF", "PERFMON") == ()


def test_a_kernel_that_does_not_know_the_capability_wants_sys_admin(monkeypatch):
    having(monkeypatch, "SYS_PTRACE", last="37")
    assert permission.lacking("BPF", "PERFMON", "SYS_PTRACE") == ("SYS_ADMIN",)


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({}, "a security module"),
        ({"/proc/self/attr/current": "docker-default (enforce)"}, "AppArmor profile docker-default"),
        ({"/proc/self/attr/current": "unconfined"}, "a security module"),
        (
            {"/proc/self/attr/current": "system_u:system_r:container_t:s0:c1,c2"},
            "SELinux context system_u:system_r:container_t",
        ),
        ({"/proc/sys/kernel/yama/ptrace_scope": "3"}, "ptrace_scope is 3"),
        ({"/proc/sys/kernel/yama/ptrace_scope": "1"}, "a security module"),
        ({"/proc/self/uid_map": "0 100000 65536"}, "hostUsers: true"),
        ({"/proc/cmdline": "quiet lockdown=confidentiality"}, "locked down"),
    ],
)
def test_with_all_capabilities_what_confines_it_is_named(monkeypatch, files, word):
    having(monkeypatch, "ALL", files=files)
    said = permission.remedy("SYS_PTRACE", "BPF")
    assert word in said and "CAP_" not in said, said


def test_a_seccomp_filter_forbids_calls_not_files(monkeypatch):
    having(monkeypatch, "ALL")
    monkeypatch.setattr(permission, "_seccomp", lambda: "its seccomp profile does")
    assert "seccomp" in permission.remedy("SYS_PTRACE")
    assert "seccomp" not in permission.remedy("SYS_PTRACE", call=False)
